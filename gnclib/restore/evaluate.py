"""How well a prior solves inverse problems, in the conventions that this project states beside every number.

Problems: y = x + sigma z, or x with a fraction of its pixels missing; image k of a list gets its noise or mask from a
torch.Generator with seed k. Neither the noisy image nor the result is clipped; PSNR and SSIM have data range 1 and are
averaged over the images. The schemes are those of :mod:`gnclib.restore.schemes`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gnclib.images import reading as image_reading
from gnclib.images.data import add_noise
from gnclib.images.metrics import psnr, ssim
from gnclib.restore import colour
from gnclib.restore.flow import gnc_flow, last
from gnclib.restore.operators import Denoising, Inpainting
from gnclib.restore.schemes import Scheme

#: what image files of a folder end in, in small or capital letters
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
#: weights of red, green and blue in grey, ITU-R BT.601
LUMA = (0.299, 0.587, 0.114)


def mmse(prior, y: Tensor, t: float) -> Tensor:
    """y - t grad_1 R(y, t): the estimate E[X | Y = y] if R is the energy of the data (Tweedie), shaped like y."""
    return last(gnc_flow(prior, [t], start=y)).x


@dataclass(frozen=True)
class Restoration:
    """How one image went.

    Attributes:
        psnr: in dB, after each step; start: that of the measurement.
        energy: D(x_i) + R(x_i, t_min) in nats per pixel after each step, t_min the smallest t of the prior (eq. 9).
        t: noise variance of each step. ssim: of the result.
        seconds: wall clock of the solver alone, without what is measured here.
        image: the result, shaped like the image.
    """

    start: float
    psnr: tuple[float, ...]
    energy: tuple[float, ...]
    t: tuple[float, ...]
    ssim: float
    seconds: float
    image: Tensor


def restoration(scheme: Scheme, x: Tensor, seed: int, basis: str = "channels") -> Restoration:
    """Measure the clean image x, with noise or mask of this seed, and restore it step by step.

    Noise and masks are drawn on the CPU, so that they are the same everywhere; the rest happens where the scheme is.

    Args:
        scheme: what restores.
        x: (1, 1, H, W), or the channels of a colour image (3, 1, H, W), whose PSNR is that of all channels together,
            whose SSIM is their mean.
        seed: of noise or mask, drawn for each channel anew.
        basis: "opponent" restores the planes of :mod:`gnclib.restore.colour` instead of the channels.

    Raises:
        ValueError: as the solvers do; another basis, or "opponent" for inpainting.
    """
    x = x.to(scheme.device)
    data, back = _in_basis(scheme.task.measure(x, torch.Generator().manual_seed(seed)), basis)
    t_min = scheme.prior.config.sigma_min**2
    path, seconds, states, begun = [], 0.0, scheme.states(data), time.perf_counter()
    for state in states:
        if x.is_cuda:  # which returns before it is done
            torch.cuda.synchronize(x.device)
        seconds += time.perf_counter() - begun
        with torch.no_grad():
            energy = (data.energy(state.x) + scheme.prior.energy(state.x, t_min)).sum().item() / x.numel()
        found = back(state.x)
        path.append((_psnr(found, x), energy, float(state.t)))
        begun = time.perf_counter()
    per_step = tuple(map(tuple, zip(*path, strict=True)))
    return Restoration(_psnr(back(data.start()), x), *per_step, ssim(found, x).mean().item(), seconds, found)


def _in_basis(
    data: Denoising | Inpainting, basis: str
) -> tuple[Denoising | Inpainting, Callable[[Tensor], Tensor]]:
    """The data term of the planes that are restored, and the way back from them to the channels."""
    if basis == "channels":
        return data, lambda x: x
    if not isinstance(data, Denoising):
        raise ValueError(
            "missing pixels are filled in channel by channel: opponent colours are for denoising"
        )
    planes, join = colour.split(data.y.cpu().numpy(), basis)
    data = Denoising(torch.from_numpy(planes).to(data.y), data.sigma)
    return data, lambda x: torch.from_numpy(join(x.cpu().numpy())).to(x)


def _psnr(found: Tensor, x: Tensor) -> float:
    """In dB, over all channels (C, 1, H, W) together."""
    return psnr(*(v.flatten(0, 2)[None, None] for v in (found, x))).item()


def denoising_psnr(prior, images: Iterable[Tensor], sigma: float) -> list[float]:
    """PSNR in dB of the one-step MMSE estimate of each image, the k-th with noise of seed k.

    Raises:
        ValueError: no images, or sigma outside of the range of the prior.
    """
    values = [psnr(mmse(prior, add_noise(x, sigma, k), sigma**2), x).item() for k, x in enumerate(images)]
    if not values:
        raise ValueError("there are no images to evaluate on")
    return values


def image_files(folder: str | os.PathLike) -> list[Path]:
    """The files of a folder that claim to be images, by name: those with one of :data:`SUFFIXES`, not hidden ones.

    Raises FileNotFoundError or NotADirectoryError for what is no folder, ValueError where there is none.
    """
    folder = Path(folder)
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file: give the folder that it lies in")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not (files := [path for path in files if not path.name.startswith(".")]):
        raise ValueError(
            f"there is no image in {folder}: its files (not those of its subfolders) count if they end in one of"
            f" {', '.join(SUFFIXES)}"
        )
    return files


def folder_images(folder: str | os.PathLike, colour: bool = False) -> dict[str, Tensor]:
    """All images of a folder in the order of their names: name -> (1, 1, H, W), float32 in [0, 1].

    Which files count: :func:`image_files`. Colour becomes grey by ITU-R 601 luma, rounded to the levels of the file; or
    stays, with ``colour``: (3, 1, H, W).

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder. ValueError: no image in it, or one that is damaged, of a
            kind that is refused (:func:`gnclib.images.reading.read`), or grey where colour is asked for; the message
            names it.
    """
    pictures = ((path.name, image_reading.read(path)) for path in image_files(folder))
    if not colour:
        return {name: _grey(picture) for name, picture in pictures}
    found = {name: torch.from_numpy(picture.pixels)[:, None] for name, picture in pictures}
    if grey := [name for name, x in found.items() if len(x) != 3]:
        raise ValueError(
            f"{grey[0]}{f' and {len(grey) - 1} more' if grey[1:] else ''} in {folder}: not in colour"
        )
    return found


def _grey(picture: image_reading.Picture) -> Tensor:
    if len(picture.pixels) == 1:
        return torch.from_numpy(picture.pixels)[None]
    top = 2**picture.depth - 1
    if picture.depth == 8:  # as PIL does it, which is what BSDS68 is made with
        colours = np.rint(np.moveaxis(picture.pixels, 0, -1) * top).astype(np.uint8)
        grey = np.array(Image.fromarray(colours).convert("L"), np.float32)
    else:
        grey = np.rint(np.tensordot(LUMA, picture.pixels * top, 1)).astype(np.float32)
    return torch.from_numpy(grey).div_(top)[None, None]
