r"""Denoising and inpainting of numpy arrays, in the manner of ``skimage.restoration``.

    denoise_gnc    argmin over x of  ||x - y||^2 / (2 sigma^2) + R(x, t)
    inpaint_gnc    argmin over x of  R(x, t)  subject to x = y at the known pixels

approached by the schemes of :mod:`gnclib.restore.schemes`. The rules of scikit-image hold:

* *Floats* are grey values in [0, 1] as they are; noise may leave the range. *Integers and bools* are first scaled by
  ``skimage.img_as_float``, unsigned ones to [0, 1]. The result is float: float64 for integers, bools and float64,
  float32 for float32 and float16. Inside, everything is computed in float32.
* sigma is in the units of the float image: noise of 25 grey levels of 255 is ``sigma=25 / 255``, whatever the dtype.
* A *mask* is True where pixels are MISSING, as in ``skimage.restoration.inpaint_biharmonic``. This is the opposite of
  :class:`gnclib.restore.operators.Inpainting`, where True means observed.
* ``channel_axis`` names the axis of the channels of a colour image. Three channels are denoised in opponent colours
  (:mod:`gnclib.restore.colour`) if their noise looks independent and equally strong, any other number of
  channels, and what is missing, one by one.

The default scheme is GNC flow with a predefined schedule: it is defined at every noise level of the prior. "learned" is
a little better where a schedule was learned nearby (R1: 12 to 62 of 255).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from gnclib.checks import as_measured
from gnclib.foe import FieldsOfExperts
from gnclib.restore.colour import BASES, split
from gnclib.restore.flow import last
from gnclib.restore.learned import Task
from gnclib.restore.noise_level import clipped, estimate_sigma
from gnclib.restore.operators import Denoising, Inpainting
from gnclib.restore.schemes import Scheme, load

__all__ = [
    "denoise_gnc",
    "denoise_planes",
    "estimated",
    "inpaint_channels",
    "inpaint_gnc",
    "levels_of",
]

#: estimates of sigma farther apart than this factor say that the noise is not the same in all planes
UNEQUAL = 4 / 3
#: schemes for inpainting do not depend on the fraction that is missing; schedules were learned for this one
INPAINTING = Task("inpaint", 0.8)


def denoise_gnc(
    image: np.ndarray,
    sigma: float | None = None,
    *,
    prior: str = "R1",
    scheme: str = "gnc",
    steps: int | None = None,
    channel_axis: int | None = None,
    colour: str = "auto",
    clip: bool = False,
    device: torch.device | str | None = None,
    tile: int | None = 512,
) -> np.ndarray:
    """Remove white Gaussian noise from an image with a learned prior.

    Args:
        image: (H, W), or with one more axis, that of the channels. Never changed. Dtypes and ranges: see the module.
        sigma: standard deviation of the noise in the units of the float image, in the range of the prior, [0.01, 1] for
            the shipped ones. None: estimated (:func:`estimated`), in each plane alone; one with no noise that the
            prior could remove is then left as it is.
        prior: a shipped prior ("R1", "R2", "R3") or a folder.
        scheme: "gnc", "mmse", "joint", "learned" or "finetuned", see :mod:`gnclib.restore.schemes`. steps: of
        gnc and joint. channel_axis: of a colour image, or None for grey.
        colour: "opponent" for noise that is independent between red, green and blue and equally strong in them, which
            then are denoised together; "channels" one by one; "auto" as the noise looks (:func:`estimated`).
        clip: whether to clip the result to [0, 1].
        device: where to compute; None is the CPU.
        tile: larger images are computed in tiles of this side, without seams; None for all at once.

    Returns:
        A new array shaped like the image: float32 for float32 and float16, float64 for all else. For an 8-bit image,
        ``skimage.img_as_ubyte(result.clip(0, 1))`` makes one of it again.

    Raises:
        ValueError: no such image (wrong axes, complex, nan, far outside of [0, 1], smaller than the prior's receptive
            field), sigma outside of the prior's range, another ``colour``, what
            :func:`gnclib.restore.schemes.load` refuses.
        FileNotFoundError: no such prior, or no schedule was learned for it near this noise level.
    """
    channels, back = _as_channels(image, channel_axis)
    for channel in channels:
        as_measured(_tensor(channel))  # said of the image, not of the planes made of it
    planes, join, levels = levels_of(channels, None if sigma is None else _number(sigma), colour)
    made = {
        s: load(scheme, prior, Task("denoise", 255 * s), steps, device=device or "cpu", tile=tile)
        for s in set(levels) - {None}
    }
    if not made:
        return back(np.array(channels), clip)
    return back(join(denoise_planes(planes, [None if s is None else made[s] for s in levels])), clip)


def inpaint_gnc(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    prior: str = "R1",
    scheme: str = "gnc",
    steps: int | None = None,
    channel_axis: int | None = None,
    clip: bool = False,
    device: torch.device | str | None = None,
    tile: int | None = 512,
) -> np.ndarray:
    """Fill in the missing pixels of an image with a learned prior; the others stay exactly as they are.

    Args:
        image: as for :func:`denoise_gnc`; what it holds at missing pixels is not looked at and may be nan.
        mask: (H, W), bool or 0 and 1: **True where the pixel is MISSING** (scikit-image's convention).
        scheme: "gnc", "joint", or "learned": learned for 80 % scattered missing pixels.
        prior, steps, channel_axis, clip, device, tile: as for :func:`denoise_gnc`.

    Returns:
        A new array shaped like the image, float32 or float64 as for :func:`denoise_gnc`.

    Raises:
        ValueError: as :func:`denoise_gnc`; a mask of another shape or with other values; no pixel is known.
        FileNotFoundError: no such prior, or no schedule was learned for it.
    """
    channels, back = _as_channels(image, channel_axis)
    missing = _as_mask(mask, channels.shape[1:])
    loaded = load(scheme, prior, INPAINTING, steps, device=device or "cpu", tile=tile)
    return back(inpaint_channels(channels, missing, loaded), clip)


# --- plane by plane -----------------------------------------------------------------------------------


def levels_of(
    channels: np.ndarray, sigma: float | None, colour: str = "auto"
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], list[float | None]]:
    """The planes of (C, H, W) that are denoised, the way back from them, and the sigma of each: given, or estimated.

    Raises ValueError for another ``colour`` than "auto", "opponent" and "channels".
    """
    if colour not in ("auto", *BASES):
        raise ValueError(f"colour must be one of auto, {', '.join(BASES)}, got {colour!r}")
    if sigma is None:
        return estimated(channels, colour)
    if colour == "auto" and len(channels) == 3:
        planes, join, _ = estimated(channels)
    else:
        planes, join = split(channels, "opponent" if colour == "auto" else colour)
    return planes, join, [sigma] * len(planes)


def estimated(
    channels: np.ndarray, colour: str = "auto"
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], list[float | None]]:
    """The planes of (C, H, W) that are denoised, the way back from them, and the estimated sigma of each.

    sigma is None where there is no noise that the shipped priors could remove. Noise that is independent between red,
    green and blue and equally strong in them is equally strong in the opponent planes. For "auto", if the estimates
    there are more than :data:`UNEQUAL` apart, or none in one of them, as in files that store colour with fewer pixels
    (JPEG), in pictures that were grey, and in those with a clean channel, the image goes channel by channel.
    """
    prior = FieldsOfExperts.from_pretrained("R1")
    planes, join = split(channels, "opponent" if colour == "auto" else colour)
    cut_off = None if planes is channels else _cut_off(channels)
    found = [estimate_sigma(_tensor(plane), prior, cut_off) for plane in planes]
    levels = [None if sigma <= prior.config.sigma_min else sigma for sigma in found]
    alike = None not in levels and max(found) <= UNEQUAL * min(found)
    if colour == "auto" and planes is not channels and any(levels) and not alike:
        return estimated(channels, "channels")
    return planes, join, levels


def _cut_off(channels: np.ndarray) -> torch.Tensor:
    """Pixels where a channel is clipped lack noise in each plane: (1, 1, H, W)."""
    return torch.stack([clipped(_tensor(channel)) for channel in channels]).any(0)


def denoise_planes(
    planes: np.ndarray, schemes: list[Scheme | None], tick: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Each plane of (C, H, W) by its own scheme, or as it is (None); `tick` is called after each step."""
    result = np.array(planes)
    for plane, into, scheme in zip(planes, result, schemes, strict=True):
        if scheme is not None:
            into[...] = _solve(scheme, Denoising(_tensor(plane, scheme), scheme.task.sigma), tick)
    return result


def inpaint_channels(
    channels: np.ndarray, missing: np.ndarray, scheme: Scheme, tick: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Each channel of (C, H, W) with the missing pixels (H, W) filled in; `tick` is called after each step.

    A gradient at a pixel depends on pixels up to two margins away. So only the smallest rectangle that holds all
    missing pixels and two margins around them is looked at, except by "joint", whose t depends on the whole image.
    """
    result = np.array(channels)
    if not missing.any():
        return result
    if missing.all():
        raise ValueError("the mask says that every pixel is missing (True is MISSING): is it inverted?")
    box = ...
    if scheme.name != "joint":
        reach = 2 * scheme.prior.config.margin
        box = tuple(
            slice(max(0, at[0] - reach), at[-1] + reach + 1) for at in map(np.flatnonzero, _profiles(missing))
        )
    hole = missing[box]
    for channel, into in zip(channels, result, strict=True):
        seen = np.where(hole, 0.5, channel[box])  # nan may lie in the hole
        data = Inpainting(_tensor(seen, scheme), torch.from_numpy(~hole))
        start = None if scheme.schedule else data.guess()
        np.copyto(into[box], _solve(scheme, data, tick, start), where=hole)
    return result


def _profiles(missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return missing.any(1), missing.any(0)


def _solve(
    scheme: Scheme,
    data: Denoising | Inpainting,
    tick: Callable[[], object],
    start: torch.Tensor | None = None,
) -> np.ndarray:
    def ticking(states):
        for state in states:
            tick()
            yield state

    return last(ticking(scheme.states(data, start))).x[0, 0].cpu().numpy()


def _tensor(channel: np.ndarray, scheme: Scheme | None = None) -> torch.Tensor:
    """(1, 1, H, W) in float32, a copy, on the device of the scheme."""
    y = torch.from_numpy(np.array(channel, dtype=np.float32, order="C"))[None, None]
    return y if scheme is None else y.to(scheme.device)


# --- what arrays may be -----------------------------------------------------------------------------------


def _as_channels(image, channel_axis: int | None) -> tuple[np.ndarray, Callable]:
    """(C, H, W) floats, and the way back to the layout of the image."""
    if isinstance(image, np.ma.MaskedArray):
        raise ValueError("masked arrays are not supported: pass the mask to inpaint_gnc")
    image = np.asarray(image)
    if image.ndim != (2 if channel_axis is None else 3):
        raise ValueError(
            f"an image is (H, W), or has one axis more, named by channel_axis (a colour image: channel_axis=-1);"
            f" got shape {image.shape} and channel_axis={channel_axis}"
        )
    if channel_axis is not None and not -3 <= channel_axis < 3:
        raise ValueError(f"channel_axis must name one of 3 axes, got {channel_axis}")
    if image.size == 0:
        raise ValueError(f"the image has no pixels: its shape is {image.shape}")
    image = _as_float(image)
    channels = image[None] if channel_axis is None else np.moveaxis(image, channel_axis, 0)

    def back(result: np.ndarray, clip: bool) -> np.ndarray:
        result = result[0] if channel_axis is None else np.moveaxis(result, 0, channel_axis)
        return np.clip(result, 0.0, 1.0) if clip else np.ascontiguousarray(result)

    return channels, back


def _as_float(image: np.ndarray) -> np.ndarray:
    if image.dtype.kind in "biu":
        from skimage import img_as_float  # takes a while to load

        return img_as_float(image)
    if image.dtype.kind != "f":
        raise ValueError(f"an image holds real numbers, got {image.dtype}")
    return image.astype(np.float32 if image.dtype.itemsize <= 4 else np.float64, copy=False)


def _as_mask(mask, shape: tuple[int, int]) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise ValueError(f"the mask has the shape {mask.shape}, the image {shape} (without its channels)")
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise ValueError("the mask must be boolean or hold only 0 (known) and 1 (MISSING)")
    return mask.astype(bool)


def _number(sigma: float) -> float:
    try:
        value = float(sigma)
    except (TypeError, ValueError):
        raise ValueError(f"sigma must be one number, or None to estimate it, got {sigma!r}") from None
    if not 0 < value <= 1:
        raise ValueError(
            f"sigma is in the units of the float image, in (0, 1], got {value:g}: divide grey levels by 255"
        )
    return value
