r"""Denoising and inpainting of numpy arrays, in the manner of ``skimage.restoration``.

    denoise_gnc    argmin over x of  ||x - y||^2 / (2 sigma^2) + R(x, t)
    inpaint_gnc    argmin over x of  R(x, t)  subject to x = y at the known pixels

approached by the schemes of :mod:`gnclib.restore.schemes`. The rules of scikit-image hold:

* *Floats* are grey values in [0, 1] as they are; noise may leave the range. *uint8, uint16 and bools* are first scaled
  to [0, 1] from 0..255, 0..65535 and 0..1. Everything else needs ``data_range``: the value of white, or a pair of those
  of black and white, which become 0 and 1. 12 bits in uint16 are ``data_range=4095``. The result is float: float64 for
  integers, bools and float64, float32 for float32 and float16. Inside, everything is computed in float32.
* sigma and the result are in the units of the float image in [0, 1]: noise of 25 grey levels of 255 is
  ``sigma=25 / 255``, whatever the dtype.
* A *mask* is True where pixels are MISSING, as in ``skimage.restoration.inpaint_biharmonic``. This is the opposite of
  :class:`gnclib.restore.operators.Inpainting`, where True means observed.
* ``channel_axis`` names the axis of the channels of a colour image. Three channels are denoised in planes that suit
  their noise (:mod:`gnclib.restore.colour`), any other number of channels, and what is missing, one by one. Of four
  channels the last one is taken for alpha: it stays as it is, and the others are denoised as three.
  ``colour="channels"`` denoises all four, one by one.

Both are thin faces of a pair of functions on channels (C, H, W) of float grey values, which the command line uses too:

    denoise_channels(channels, sigma=None, *, progress=None, ...)  ->  image, Planes
    inpaint_channels(channels, missing, *, progress=None, ...)     ->  image

``progress(done, total)`` is called before the first step and after each one, steps being counted over all planes.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch

from gnclib.checks import DataRange, as_channels, as_device, as_measured
from gnclib.deep import load_prior
from gnclib.restore import (
    Denoising,
    Inpainting,
    NoiseCurve,
    State,
    Task,
    Tiled,
    doubts,
    flaws,
    posterior_moments,
)
from gnclib.restore.colour import Planes, as_tensor, choose_planes
from gnclib.restore.schemes import FREE, load

#: called with the number of steps done and that of all steps
Progress = Callable[[int, int], object]
#: schemes for inpainting do not depend on the fraction that is missing; schedules were learned for this one
INPAINTING = Task("inpaint", 0.8)


def denoise_gnc(
    image: np.ndarray,
    sigma: float | np.ndarray | NoiseCurve | None = None,
    *,
    prior: str = "R1",
    scheme: str = "gnc",
    steps: int | None = None,
    channel_axis: int | None = None,
    data_range: DataRange | None = None,
    colour: str = "auto",
    clip: bool = False,
    device: torch.device | str | None = None,
    tile: int | None = 512,
    precision: str = "float32",
    return_std: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Image without its white Gaussian noise, by a learned prior.

    Parameters
    ----------
    image : (H, W), or with one more axis, that of the channels
        Never changed. Dtypes and ranges: see the module.
    sigma : float, array or NoiseCurve, optional
        Standard deviation of the noise in the units of the float image, in the range of the prior (from 0.01 on for the
        shipped ones) and at most 1. None: estimated; what has no noise that the prior could remove is then left as it
        is. Warns where the noise does not look white, or grows with brightness. An array that broadcasts to the image
        has a level for each pixel, a :class:`gnclib.restore.NoiseCurve` one that grows with brightness: both for "gnc",
        "linear" and "joint".
    prior : a shipped prior ("R1", "R3", "C1"), a folder, or a name on the hub
    scheme : {"gnc", "linear", "mmse", "symmetric", "joint", "learned", "finetuned"}
        See :mod:`gnclib.restore.schemes`. GNC flow is defined at every noise level of the prior; "learned" is a little
        better where a schedule was learned nearby (R1: 12 to 62 of 255).
    steps : int, optional, of gnc, linear and joint
    channel_axis : int, optional, of a colour image
    data_range : float or pair of floats, optional
        White, or black and white, in the units of the image; see the module.
    colour : {"auto", "opponent", "channels"}
        See :func:`gnclib.restore.colour.choose_planes`.
    clip : bool
        Whether to clip the result to [0, 1].
    device : where to compute; None is the CPU
    tile : int, optional
        Larger images are computed in tiles of this side, without seams; None for all at once.
    precision : {"float32", "bf16"}
        Of the convolutions between channels: bfloat16 is faster for R3 and G1 where the processor has it. Standard
        deviations are computed in float32.
    return_std : bool
        Whether to return the standard deviation of each pixel as well, that of the errors of "mmse", see
        :func:`std_channels`. It takes 50 to 100 times as long as a gradient. A UserWarning says where the noise or the
        scheme is not what it assumes.

    Returns
    -------
    ndarray, shaped like the image, or two of them
        float32 for float32 and float16, float64 for all else. For an 8-bit image,
        ``skimage.img_as_ubyte(result.clip(0, 1))`` makes one of it again.

    Raises
    ------
    ValueError
        No such image (wrong axes, complex, nan, far outside of [0, 1], integers without a range of their own, smaller
        than the prior's receptive field), sigma outside of the prior's range, another ``colour``, or what
        :func:`gnclib.restore.schemes.load` refuses.
    FileNotFoundError
        No such prior, or no schedule was learned for it near this noise level.
    """
    channels, back = as_channels(image, channel_axis, data_range)
    if return_std and (np.ndim(sigma) or isinstance(sigma, NoiseCurve)):
        raise ValueError("standard deviations need one sigma for all pixels: give it, or no return_std")
    if not (sigma is None or isinstance(sigma, NoiseCurve)):
        sigma = _as_sigma(sigma, np.shape(image), channel_axis)
    same = {"prior": prior, "scheme": scheme, "tile": tile, "device": device or "cpu"}
    count = 3 if len(channels) == 4 and colour != "channels" else len(channels)
    colours, alpha = channels[:count], channels[count:]
    level = sigma[:count] if np.ndim(sigma) else sigma
    result, planes = denoise_channels(colours, level, colour=colour, steps=steps, precision=precision, **same)
    result = back(np.concatenate([result, alpha]), clip)
    if planes.doubt:
        warnings.warn(planes.doubt, stacklevel=2)
    if not return_std:
        return result
    std, reasons = std_channels(colours, planes, estimated=sigma is None, **same)
    if reasons:
        warnings.warn(f"the standard deviations are uncertain: {'; '.join(reasons)}", stacklevel=2)
    return result, back(np.concatenate([std, np.zeros_like(alpha)]), False)


def inpaint_gnc(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    prior: str = "R1",
    scheme: str = "gnc",
    steps: int | None = None,
    channel_axis: int | None = None,
    data_range: DataRange | None = None,
    clip: bool = False,
    device: torch.device | str | None = None,
    tile: int | None = 512,
    precision: str = "float32",
) -> np.ndarray:
    """Image with its missing pixels filled in by a learned prior; the others stay exactly as they are.

    Parameters
    ----------
    image : (H, W), or with one more axis, that of the channels
        What it holds at missing pixels is not looked at and may be nan.
    mask : (H, W), bool or 0 and 1
        **True where the pixel is MISSING** (scikit-image's convention).
    scheme : {"gnc", "linear", "joint", "learned"}
        "learned": for 80 % scattered missing pixels.
    prior, steps, channel_axis, data_range, clip, device, tile, precision
        As for :func:`denoise_gnc`.

    Returns
    -------
    ndarray, shaped like the image
        float32 or float64 as for :func:`denoise_gnc`.

    Raises
    ------
    ValueError
        As :func:`denoise_gnc`; a mask of another shape or with other values; no pixel is known.
    FileNotFoundError
        No such prior, or no schedule was learned for it.
    """
    channels, back = as_channels(image, channel_axis, data_range)
    mask = np.asarray(mask)
    if mask.shape != (shape := channels.shape[1:]):
        raise ValueError(f"the mask has the shape {mask.shape}, the image {shape} (without its channels)")
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise ValueError("the mask must be boolean or hold only 0 (known) and 1 (MISSING)")
    options = {"prior": prior, "scheme": scheme, "steps": steps, "tile": tile, "precision": precision}
    return back(inpaint_channels(channels, mask.astype(bool), device=device or "cpu", **options), clip)


# --- channels of grey values ------------------------------------------------------------------------------


def denoise_channels(
    channels: np.ndarray,
    sigma: float | np.ndarray | NoiseCurve | None = None,
    *,
    prior: str = "R1",
    scheme: str = "gnc",
    colour: str = "auto",
    tile: int | None = 512,
    progress: Progress | None = None,
    **options,
) -> tuple[np.ndarray, Planes]:
    """Channels (C, H, W) of float grey values without their noise, and the planes in which it was removed.

    See the module; arguments and errors as for :func:`denoise_gnc`.
    """
    for channel in channels:
        as_measured(as_tensor(channel))  # said of the image, not of the planes made of it
    if sigma is None:
        load_prior(prior)  # a name that is none is refused before the estimation
    if isinstance(sigma, NoiseCurve):
        sigma = sigma.sigma(channels)
    if np.ndim(sigma) and scheme not in FREE:
        raise ValueError(f"a sigma for each pixel needs the scheme gnc, linear or joint, got {scheme!r}")
    planes = choose_planes(channels, sigma, colour)
    made = {
        level: load(scheme, prior, Task("denoise", 255 * level), tile=tile, **options)
        for level in set(planes.levels) - {None}
    }
    tick = _ticker(progress, sum(made[level].steps for level in planes.levels if level is not None))
    if not made:
        return np.array(channels), planes
    result = np.array(planes.values)
    for k, (plane, level) in enumerate(zip(result, planes.levels, strict=True)):
        if level is not None:
            noise = made[level].task.sigma if planes.maps is None else as_tensor(planes.maps[k])
            data = Denoising(as_tensor(plane).to(made[level].device), noise)
            plane[...] = _solve(made[level].states(data), tick)
    return planes.join(result), planes


def std_channels(
    channels: np.ndarray,
    planes: Planes,
    *,
    estimated: bool,
    scheme: str = "mmse",
    prior: str = "R1",
    device: torch.device | str = "cpu",
    tile: int | None = 512,
) -> tuple[np.ndarray, list[str]]:
    """Standard deviations (C, H, W) of the clean channels given the noisy ones, and why to doubt them.

    Those of :func:`gnclib.restore.posterior.posterior_moments` at the noise level of each plane; its mean is the scheme
    "mmse", and beside the result of another ``scheme`` that is a doubt, as is a noise level that was ``estimated``.
    Planes are independent there, so variances of channels are sums. Where no noise was found in a plane, nothing is
    known: nan. ``channels`` is the noisy image, ``planes`` are as :func:`denoise_channels` returns them.
    """
    model = load_prior(prior).to(as_device(device))
    energy = model if tile is None else Tiled(model, tile)
    variances, reasons = np.full_like(planes.values, np.nan), []
    if scheme != "mmse":
        reasons.append(f"they are those of one step (scheme mmse), not of {scheme}")
    if estimated:
        reasons.append("sigma was estimated")
    for variance, plane, level in zip(variances, planes.values, planes.levels, strict=True):
        if level is None:
            reasons.append("no noise was found")
            continue
        found = posterior_moments(energy, as_tensor(plane).to(device), level**2)
        variance[...] = found.std[0, 0].square().cpu().numpy()
        reasons += [*flaws(channels, level), *doubts(found)]
    if planes.basis != "channels":  # x = J planes + const
        mixing = (planes.join(np.eye(3)) - planes.join(np.zeros((3, 3)))) ** 2
        parts = [[j * v for j, v in zip(row, variances, strict=True) if j] for row in mixing]  # 0 nan is nan
        variances = np.stack([np.sum(part, axis=0) for part in parts])
    return np.sqrt(variances).astype(channels.dtype, copy=False), list(dict.fromkeys(reasons))


def inpaint_channels(
    channels: np.ndarray,
    missing: np.ndarray,
    *,
    prior: str = "R1",
    scheme: str = "gnc",
    tile: int | None = 512,
    progress: Progress | None = None,
    **options,
) -> np.ndarray:
    """Channels (C, H, W) with the missing pixels (H, W) filled in; see the module and :func:`inpaint_gnc`.

    A gradient at a pixel depends on pixels up to two margins away. So only the smallest rectangle that holds all
    missing pixels and two margins around them, and begins where a pixel of the prior's coarsest scale does, is looked
    at, except by "joint", whose t depends on the whole image.
    """
    found = load(scheme, prior, INPAINTING, tile=tile, **options)
    result = np.array(channels)
    if not missing.any():
        return result
    if missing.all():
        raise ValueError("the mask says that every pixel is missing (True is MISSING): is it inverted?")
    box = ...
    if scheme != "joint":
        reach, pixel = 2 * found.prior.margin, found.prior.alignment
        profiles = (np.flatnonzero(missing.any(axis)) for axis in (1, 0))
        box = tuple(slice(max(0, at[0] - reach) // pixel * pixel, at[-1] + reach + 1) for at in profiles)
    hole, tick = missing[box], _ticker(progress, len(channels) * found.steps)
    for channel in result:
        seen = np.where(hole, 0.5, channel[box])  # nan may lie in the hole
        data = Inpainting(as_tensor(seen).to(found.device), torch.from_numpy(~hole))
        start = None if found.schedule else data.guess()
        np.copyto(channel[box], _solve(found.states(data, start), tick), where=hole)
    return result


def _ticker(progress: Progress | None, total: int) -> Callable[[], object]:
    """What is to be called after each step; `progress` is told at once that none is done."""
    if progress is None:
        return lambda: None
    progress(0, total)
    done = itertools.count(1)
    return lambda: progress(next(done), total)


def _solve(states: Iterator[State], tick: Callable[[], object]) -> np.ndarray:
    """The last iterate, (H, W)."""
    for state in states:  # noqa: B007
        tick()
    return state.x[0, 0].cpu().numpy()


def _as_sigma(sigma, shape: tuple[int, ...], channel_axis: int | None) -> float | np.ndarray:
    """sigma of all pixels, or of each with the channels first, checked."""
    found = np.asarray(sigma, dtype=np.float64)
    low, high = (found.min(), found.max()) if found.size else (np.nan, np.nan)
    if not (low > 0 and high <= 1):
        told = f"{low:g}" if low == high or np.isnan(low) else f"{low:g} to {high:g}"
        raise ValueError(
            f"sigma is in the units of the float image, in (0, 1], got {told}: divide grey levels by 255"
        )
    if not found.ndim:
        return float(found)
    try:
        found = np.broadcast_to(found, shape)
    except ValueError:
        raise ValueError(f"a map of sigma of shape {found.shape} does not fit an image of {shape}") from None
    return found[None] if channel_axis is None else np.moveaxis(found, channel_axis, 0)
