"""Data terms D of the inverse problems of section 5: what the measurement says about the image.

A reconstruction minimises D(x) + R(x, t). The solvers touch D only through its proximal map

    prox_{eta D}(v) = argmin_x  D(x) + ||x - v||^2 / (2 eta),      eta = the step,

so a data term is three methods: `energy(x) -> (B,)`, `prox(v, step)` shaped like v, and `start()`, the image
at which a reconstruction begins. Images are (B, 1, H, W) with grey values in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gnclib.checks import as_images, as_measured, as_time


def _like(y: Tensor, v: Tensor) -> Tensor:
    """Check that v is an image batch of the shape, type and device of the measurement y; return it."""
    v = as_images(v)
    if v.shape != y.shape:
        raise ValueError(f"the measurement has shape {tuple(y.shape)}, the image {tuple(v.shape)}")
    if v.dtype != y.dtype or v.device != y.device:
        raise ValueError(
            f"the measurement is {y.dtype} on {y.device}, the image {v.dtype} on {v.device}; "
            "convert one of them with .to(...)"
        )
    return v


def _step(step: float | Tensor, v: Tensor) -> Tensor:
    """The step eta >= 0 as (B, 1, 1, 1)."""
    try:
        return as_time(step, v.shape[0], like=v).reshape(-1, 1, 1, 1)
    except ValueError as error:
        raise ValueError(f"bad prox step (a float or one per image is wanted): {error}") from error


class Denoising:
    """Gaussian noise of known level: D(x) = ||x - y||^2 / (2 sigma^2)   (Kobler & Pock 2023, section 5).

    y: (B, 1, H, W) noisy image, not clipped. sigma: noise standard deviation in grey values (25/255 = 0.098).
    Raises ValueError unless y is a finite image batch, in [0, 1] up to noise, and sigma a finite positive number.
    """

    def __init__(self, y: Tensor, sigma: float) -> None:
        self.y = as_measured(y).detach().clone()
        self.sigma = float(sigma)
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(
                f"sigma must be a finite number > 0 in units of the grey range (25/255 = 0.098), got {sigma}"
            )

    def energy(self, x: Tensor) -> Tensor:
        """||x - y||^2 / (2 sigma^2) per image: (B, 1, H, W) -> (B,)."""
        return (_like(self.y, x) - self.y).square().sum(dim=(1, 2, 3)) / (2 * self.sigma**2)

    def prox(self, v: Tensor, step: float | Tensor) -> Tensor:
        """(sigma^2 v + eta y) / (sigma^2 + eta), eta = step >= 0 (a float or (B,)); shaped like v."""
        v = _like(self.y, v)
        eta = _step(step, v)  # (B, 1, 1, 1)
        return (self.sigma**2 * v + eta * self.y) / (self.sigma**2 + eta)

    def start(self) -> Tensor:
        """A copy of the noisy image."""
        return self.y.clone()


class Inpainting:
    """Noise-free pixels under a mask: D = indicator{ m x = m y }   (Kobler & Pock 2023, section 5).

    y: (B, 1, H, W) image of which only the pixels under the mask are looked at.
    mask: boolean or {0, 1} values, True = observed; (B, 1, H, W) or what broadcasts to it, such as (H, W).
    Raises ValueError for other values or shapes.
    """

    def __init__(self, y: Tensor, mask: Tensor) -> None:
        self.y = as_measured(y).detach().clone()
        mask = torch.as_tensor(mask, device=self.y.device)
        if mask.dtype != torch.bool:
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise ValueError("the mask must be boolean or hold only 0 (missing) and 1 (observed)")
            mask = mask == 1
        try:
            self.mask = mask.expand(self.y.shape).clone()  # (B, 1, H, W)
        except RuntimeError as error:
            raise ValueError(
                f"a mask of shape {tuple(mask.shape)} does not fit images of shape {tuple(self.y.shape)}"
            ) from error

    def energy(self, x: Tensor) -> Tensor:
        """0 where x agrees with every observed pixel exactly, else +inf: (B, 1, H, W) -> (B,)."""
        violated = (self.mask & (_like(self.y, x) != self.y)).flatten(1).any(dim=1)  # (B,)
        return torch.zeros_like(self.y[:, 0, 0, 0]).masked_fill(violated, math.inf)

    def prox(self, v: Tensor, step: float | Tensor) -> Tensor:
        """The projection m y + (1 - m) v: the same for every step >= 0; shaped like v."""
        v = _like(self.y, v)
        _step(step, v)
        return torch.where(self.mask, self.y, v)

    def start(self) -> Tensor:
        """Observed pixels as measured, missing ones at 0.5 (mid grey: our choice, not the paper's)."""
        return torch.where(self.mask, self.y, torch.full_like(self.y, 0.5))

    def guess(self) -> Tensor:
        """Observed pixels as measured, missing ones by :func:`first_guess`: a nearer start, ours as well."""
        return first_guess(self.y, self.mask)


def first_guess(y: Tensor, known: Tensor) -> Tensor:
    """The missing pixels of y (B, 1, H, W) from means of the known ones around them, coarse to fine.

    Half the resolution: each pixel the mean of the known ones among its four. What is still missing there is guessed in
    the same way first; what is missing here is then interpolated from there. A prior sees a few pixels far, so from
    mid grey it takes many steps to the middle of a hole. An image of which nothing is known is mid grey. known: bool,
    shaped like y.
    """
    if bool(known.all()):
        return y.clone()
    height, width = y.shape[-2:]
    if height == width == 1:
        return torch.where(known, y, 0.5)
    even = (0, width % 2, 0, height % 2)
    weight = F.avg_pool2d(F.pad(known.to(y), even), 2)
    total = F.avg_pool2d(F.pad(torch.where(known, y, 0.0), even), 2)
    mean = total / weight.clamp(min=0.25)  # of four pixels at least one is known, or none
    fine = F.interpolate(first_guess(mean, weight > 0), scale_factor=2, mode="bilinear")
    return torch.where(known, y, fine[..., :height, :width])
