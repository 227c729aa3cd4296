"""Stacks of microscopes and other detectors, denoised frame by frame in a copy of their TIFF file.

Integers of 8 and 16 bits mean 0..255 and 0..65535; floats go from the least to the greatest value of a channel of the
stack (its axis C). A channel has one sigma, the median over some of its frames, or each frame has its own. Pixels that
are nan or infinite stay so and have no part in the estimation; while their frame is denoised, means of the pixels
around them stand in. The copy grows in a folder ``.NAME.part`` beside the target, with a record of what is done: called
again with the same file and settings, denoising goes on there. In the end the copy takes the place of the target.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gnclib.checks import USED
from gnclib.foe import weights_sha256
from gnclib.images import Stack, check_place, unpack
from gnclib.io import dumps, held, read_json, write_text
from gnclib.restore.colour import as_tensor, choose_planes
from gnclib.restore.noise_level import GROWING, LEAST, NOT_WHITE, NoiseCurve, grows, measure_noise
from gnclib.restore.operators import first_guess
from gnclib.restore.restoration import Progress, denoise_channels

#: frames of a channel, evenly spread, whose noise is measured
LOOKED_AT = 9
WHITE = "if white is less than 65535, say so (--white 4095 for 12 bits)"
NONE = "no noise of sigma 2.55 (of 255) or more was found, its frames stay as they are"
#: makes a curve of a name, frames (N, H, W) of grey values, black, and white minus black
Detector = Callable[[str, np.ndarray, float, float], NoiseCurve]


def denoise_stack(
    source: str | os.PathLike, target: str | os.PathLike, sigma: float | Detector | None = None, *,
    limits: tuple[float | None, float | None] = (None, None), per_frame: bool = False, force: bool = False,
    progress: Progress | None = None, say: Callable[[str], Any] = lambda line: None, **options: Any,
) -> Path:  # fmt: skip
    """Denoise a TIFF stack; returns the target.

    Parameters
    ----------
    source, target : files; a target that exists is replaced if `force` is given
    sigma : float or Detector, optional
        Standard deviation of the noise in (0, 1], in units of white minus black; estimated by default.
    limits : black and white, each None where the module says what it is
    per_frame : whether the noise of each frame is estimated by itself
    progress, say : called with the numbers of frames done and of all, and with lines about ranges and noise
    options : prior, scheme, colour and others of :func:`gnclib.restore.denoise_gnc`

    Raises
    ------
    ValueError
        No such stack, or no such range; or as :func:`gnclib.restore.denoise_gnc`.
    FileExistsError, FileNotFoundError, IsADirectoryError
        As :func:`gnclib.images.check_writable`.
    RuntimeError
        Another process is at work on this target.
    """
    target = check_place(target, (".tif", ".tiff"), force)
    final, file = Path(os.path.realpath(target)), os.stat(source)
    weights = weights_sha256(options.get("prior", "R1"))
    stack, folder = Stack.open(source), final.with_name(f".{final.name}.part")
    folder.mkdir(exist_ok=True)
    with held(folder, "another process"):
        copy, record = folder / "stack.tif", folder / "done.json"
        try:
            if not stack.places:
                unpack(stack.path, folder / "source.tif")
                stack = Stack.open(folder / "source.tif")
            plans = _plans(str(source), stack, sigma, per_frame, limits, say)
            about = [file.st_size, file.st_mtime_ns, weights, str(source), repr(plans), repr(options)]
            done, total = 0, len(stack.places)
            with suppress(OSError, ValueError):
                found = read_json(record, "record of a stack", dict[str, Any])
                done = found["done"] if found["about"] == about and copy.is_file() else 0
            if done:
                say(f"{source}: {done} of {total} frames are done already, going on")
            else:
                record.unlink(missing_ok=True)
                shutil.copyfile(stack.path, copy)
            result = Stack.open(copy)
            for k in range(done, total):
                result.write(k, _denoised(stack.read(k), *plans[stack.channel(k)], **options))
                write_text(record, dumps({"about": about, "done": k + 1}))
                if progress:
                    progress(k + 1, total)
            with suppress(FileNotFoundError):
                shutil.copymode(final, copy)
            os.replace(copy, final)
            record.unlink()
        finally:
            if not record.exists():  # all is done, or nothing
                shutil.rmtree(folder, ignore_errors=True)
    return target


def _plans(name: str, stack: Stack, sigma, per_frame: bool, limits, say) -> dict[int, tuple]:
    """By channel: black, white minus black, and the noise in this unit, None where each frame has its own."""
    plans, every = {}, range(len(stack.places))
    for channel in sorted(set(map(stack.channel, every))):
        frames = [k for k in every if stack.channel(k) == channel]
        told = f"{name}, channel {channel + 1}" if "C" in stack.axes else name
        low, high = _range(told, stack, frames, *limits)
        seen = [(stack.read(k) - low) / (high - low) for k in frames[:: -(-len(frames) // LOOKED_AT)]]
        seen = [np.where(np.isfinite(frame), frame, 0) for frame in seen]  # constant parts have no noise
        if stack.dtype.kind == "f":
            say(f"{told}: black is {low:.6g}, white {high:.6g}")
        elif stack.dtype.itemsize == 2 and limits[1] is None and np.ptp(seen) < USED:
            say(f"warning: {told} uses {100 * np.ptp(seen):.1f} % of its 16 bits; {WHITE}")
        level = sigma(told, np.concatenate(seen), low, high - low) if callable(sigma) else sigma
        if level is None and not per_frame and len(seen[0]) == 3:
            say(f"{told}: the noise of red, green and blue is measured in each frame")
            if doubt := choose_planes(seen[0]).doubt:
                say(f"warning: {told}: {doubt}")
        elif level is None and not per_frame:
            levels, white = zip(*map(_level, seen), strict=True)
            level = float(np.median(levels))
            if not all(white) or (level and grows(seen[0])):
                say(f"warning: {told}: {GROWING if all(white) else NOT_WHITE}")
            say(f"{told}: sigma {255 * level:.1f} of 255, estimated" if level else f"{told}: {NONE}")
        plans[channel] = low, high - low, level
    return plans


def _range(name: str, stack: Stack, frames: list[int], black, white) -> tuple[float, float]:
    """Black and white of these frames."""
    ends = np.array([[0.0, 2.0 ** (8 * stack.dtype.itemsize) - 1]])
    if stack.dtype.kind == "f":
        finite = (frame[np.isfinite(frame)] for frame in map(stack.read, frames))
        ends = np.array([(values.min(), values.max()) for values in finite if values.size] or [(0.0, 1.0)])
    elif white is None and stack.dtype.str[1:] not in ("u1", "u2"):
        raise ValueError(f"{name}: {stack.dtype} has no range of its own, say what white is (--white 4095)")
    low = float(ends[:, 0].min() if black is None else black)
    high = float(ends[:, 1].max() if white is None else white)
    if not -np.inf < low < high < np.inf:
        if black is white is None:
            raise ValueError(f"{name}: all pixels are {low:g}, so there is nothing to denoise")
        raise ValueError(f"{name}: black must be below white, got {low:g} and {high:g} (--black, --white)")
    return low, high


def _level(frame: np.ndarray) -> tuple[float, bool]:
    """sigma of a frame (C, H, W), 0 if it is less than the priors remove, and whether the noise looks white."""
    noise = measure_noise(frame)
    level = float(np.sqrt((noise.levels**2).mean()))
    return (level if level >= LEAST else 0.0), noise.white(np.ones(len(frame)))


def _denoised(frame: np.ndarray, black: float, unit: float, sigma, **options) -> np.ndarray:
    """A frame (C, H, W) in the units of the file, denoised where it is finite."""
    known = np.isfinite(frame)
    y = np.where(known, (frame - black) / unit, 0).astype(np.float32)
    if not known.all():
        sigma = _level(y)[0] if sigma is None else sigma
        guesses = zip(map(as_tensor, y), torch.from_numpy(known)[:, None, None], strict=True)
        y = torch.cat([first_guess(*pair) for pair in guesses])[:, 0].numpy() if known.any() else y
    if sigma == 0 or not known.any():
        return frame
    made, planes = denoise_channels(y, sigma, **options)
    return np.where(known, black + unit * made, frame) if any(planes.levels) else frame
