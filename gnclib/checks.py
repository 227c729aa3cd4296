"""Checks of arguments that every package shares: times, images, devices."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import wraps
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

#: grey values farther from 0 than this are no noise: 1 plus nine standard deviations of the strongest
FARTHEST = 10.0
#: how far the mean of an image may lie from [0, 1]: noise moves it little, another unit much
FARTHEST_MEAN = 0.5
#: white, or black and white
DataRange = float | tuple[float, float]
#: an image that uses less than this share of 16 bits is thought to have fewer
USED = 1 / 8


def transformed() -> bool:
    """Whether a transform of torch.func runs: grad, vmap, hessian and the like."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def hidden() -> bool:
    """Whether values are not there to look at: under torch.compile, torch.export and the transforms of torch.func."""
    return torch.compiler.is_compiling() or transformed()


def in_full_precision(method):
    """The method without autocast: derivatives of the potentials of features of 16 bits are off by their size."""

    @wraps(method)
    def exact(self, *args, **options):
        devices = [v.device.type for v in (*args, *options.values()) if isinstance(v, Tensor)]
        with torch.autocast(devices[0] if devices else "cpu", enabled=False):
            return method(self, *args, **options)

    return exact


def as_time(t: float | Tensor, batch: int, *, like: Tensor) -> Tensor:
    """Smoothing parameter ``t`` (a noise *variance*) as one value per sample, (B,), differentiable in ``t``.

    t is a number, a tensor with one element, or a tensor of shape (B,), finite and >= 0, else ValueError; the result
    takes the dtype and device of ``like``.
    """
    try:
        value = torch.as_tensor(t, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"t must be a number or a tensor of shape ({batch},), got {t!r}") from error
    if value.numel() == 1:
        value = value.reshape(1).expand(batch)
    if value.shape != (batch,):
        raise ValueError(
            f"t must be a number or a tensor of shape ({batch},), one per sample, got {tuple(value.shape)}"
        )
    if hidden():
        return value
    seen = value.detach()
    if not torch.isfinite(seen).all():
        raise ValueError("t must be finite, got nan or inf")
    if (seen < 0).any():
        raise ValueError(
            f"t is a noise variance and must be >= 0, got {seen.min().item():.6g} (is it tau = 0.5 log t?)"
        )
    return value


def as_images(x: Tensor, bytes_above: float = math.inf) -> Tensor:
    """Check a batch of grey images, a floating tensor (B, 1, H, W), not empty and finite, else ValueError; return it.

    Grey values are meant to be in [0, 1], but noisy images and the iterates of a solver leave that range, so it is not
    checked (see :func:`as_measured`). Values above ``bytes_above``, few of them negative, get a RuntimeWarning: they
    look like 0..255.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"images must be a torch tensor of shape (B, 1, H, W), got {type(x).__name__}")
    if x.ndim != 4 or x.shape[1] != 1 or x.numel() == 0:
        raise ValueError(
            f"images must have shape (B, 1, H, W), none of them 0, got {tuple(x.shape)}; "
            "a single (H, W) image is x[None, None], a colour image goes channel by channel"
        )
    if not x.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], got {x.dtype}; divide by 255 first")
    if not hidden():
        low, high = (v.item() for v in x.detach().aminmax())
        if not -math.inf < low <= high < math.inf:
            raise ValueError("images must be finite, got nan or inf")
        if high > bytes_above and low > -high / 2:  # -high / 2: bytes with noise
            warnings.warn(f"gnclib: {_range(low, high)}", RuntimeWarning, stacklevel=3)
    return x


def as_measured(y: Tensor, sigma: float = 0.0) -> Tensor:
    """:func:`as_images` for what a user measured: noise takes grey values a few units beyond [0, 1], not to 255.

    Raises ValueError: as :func:`as_images`, and for values farther from 0 than :data:`FARTHEST` and six sigma or a mean
    farther from [0, 1] than :data:`FARTHEST_MEAN` and four standard errors.
    """
    if hidden():
        return as_images(y)
    seen = as_images(y).detach()
    (low, high), far = (v.item() for v in seen.aminmax()), 4 * seen.std(correction=0) / seen.numel() ** 0.5
    if max(-low, high) > FARTHEST + 6 * sigma or abs(seen.mean() - 0.5) > 0.5 + FARTHEST_MEAN + far:
        raise ValueError(_range(low, high))
    return y


def _range(low: float, high: float) -> str:
    return (
        f"images have grey values in [0, 1], up to noise; these go from {low:.4g} to {high:.4g}: divide by 255, or by"
        " what white is (data_range=)"
    )


def as_channels(
    image: np.ndarray, channel_axis: int | None, data_range: DataRange | None
) -> tuple[np.ndarray, Callable]:
    """An image as (C, H, W) floats whose black is 0 and whose white is 1, and the way back to its layout.

    Integers are scaled by what their type can hold, or, as floats are, by ``data_range``: white, or (black, white).
    Raises ValueError: not one image, integers without a range of their own, no range; warns (RuntimeWarning, of the
    caller's caller) of 16 bits of which less than :data:`USED` is used.
    """
    if isinstance(image, np.ma.MaskedArray):
        raise ValueError("masked arrays are not supported: pass the mask to inpaint_gnc")
    image = np.asarray(image)
    if image.ndim != (2 if channel_axis is None else 3):
        raise ValueError(
            f"an image is (H, W), or has one axis more, named by channel_axis (a colour image: channel_axis=-1);"
            f" got shape {image.shape} and channel_axis={channel_axis}"
        )
    if channel_axis is not None and not (isinstance(channel_axis, Integral) and -3 <= channel_axis < 3):
        raise ValueError(f"channel_axis must name one of 3 axes, got {channel_axis!r}")
    if image.size == 0:
        raise ValueError(f"the image has no pixels: its shape is {image.shape}")
    image = _scaled(image, data_range)
    channels = image[None] if channel_axis is None else np.moveaxis(image, channel_axis, 0)

    def back(result: np.ndarray, clip: bool) -> np.ndarray:
        result = result[0] if channel_axis is None else np.moveaxis(result, 0, channel_axis)
        return np.clip(result, 0.0, 1.0) if clip else np.ascontiguousarray(result)

    return channels, back


def _scaled(image: np.ndarray, data_range: DataRange | None) -> np.ndarray:
    """The float image whose black is 0 and whose white is 1."""
    kind = image.dtype.kind
    if kind not in "biuf":
        raise ValueError(f"an image holds real numbers, got {image.dtype}")
    if data_range is None and kind in "iu" and image.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"integers of the type {image.dtype} have no range of their own: say what white is (data_range=4095 for"
            " 12 bits), or convert the image to uint8, uint16, or floats in [0, 1]"
        )
    if data_range is None and image.dtype == np.uint16 and np.ptp(image) < USED * 65535:
        warnings.warn(
            f"gnclib: the image goes from {image.min()} to {image.max()} of 65535: if white is less, say so"
            " (data_range=4095 for 12 bits)",
            RuntimeWarning,
            stacklevel=4,
        )
    floats = image.astype(np.float32 if kind == "f" and image.dtype.itemsize <= 4 else np.float64, copy=False)
    if data_range is None and kind in "bf":
        return floats
    limits = np.iinfo(image.dtype).max if data_range is None else data_range
    black, white = map(float, (0, limits) if np.ndim(limits) == 0 else limits)
    if not -np.inf < black < white < np.inf:
        raise ValueError(f"data_range is white, or (black, white) with black below white, got {data_range!r}")
    return (floats - black) / (white - black)


def as_device(device: torch.device | str) -> torch.device:
    """A device that torch can compute on here.

    Raises ValueError: torch does not know the name, or there is no such device.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"torch cannot compute on the device {str(device)!r} here ({reason}): use cpu"
        ) from error
    if found.type == "meta":
        raise ValueError("on the device 'meta' nothing is computed: use cpu")
    return found
