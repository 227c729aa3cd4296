"""Data terms D of the inverse problems of section 4, and the tasks that they come from.

A reconstruction minimises D(x) + R(x, t). The solvers touch D only through its proximal map

    prox_{eta D}(v) = argmin_x  D(x) + ||x - v||^2 / (2 eta),      eta = the step,

so a data term is three methods: `energy(x) -> (B,)`, `prox(v, step)` shaped like v, and `start()`, the image at which a
reconstruction begins. Images are (B, 1, H, W) with grey values in [0, 1]. Other linear measurements:
:mod:`gnclib.restore.linear`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gnclib.checks import FARTHEST, as_images, as_measured, as_time
from gnclib.images import add_noise

#: the kinds of tasks, and the name of the level of each in files
LEVELS = {"denoise": "sigma_255", "inpaint": "missing"}


class Denoising:
    """Gaussian noise of known level: D(x) = ||x - y||^2 / (2 sigma^2)   (Kobler & Pock 2023, section 4).

    With a level for each pixel D(x) = sum_i (x_i - y_i)^2 / (2 sigma_i^2).

    Parameters
    ----------
    y : (B, 1, H, W)
        Noisy image, in [0, 1] up to noise, not clipped.
    sigma : float in (0, 10], or (B, 1, H, W) or what broadcasts to it
        Standard deviation of the noise in grey values (25/255 = 0.098), of all pixels or of each.

    Raises ValueError for another y or sigma.
    """

    def __init__(self, y: Tensor, sigma: float | Tensor) -> None:
        self.y = as_images(y).detach().clone()
        if of_pixels := isinstance(sigma, Tensor) and sigma.ndim > 1:
            self.sigma = _expanded("map of sigma", sigma.to(self.y), self.y)
            low, high = (v.item() for v in self.sigma.aminmax())
        elif isinstance(sigma, Tensor) and sigma.numel() != 1:
            raise ValueError(
                f"sigma must be one number, or one for each pixel, shaped like y {tuple(y.shape)}: got"
                f" {tuple(sigma.shape)}"
            )
        else:
            self.sigma = low = high = float(sigma)
        if not 0 < low <= high <= FARTHEST:
            raise ValueError(
                "sigma must be a number > 0 in units of the grey range (25 of 255 is 0.098), got"
                f" {f'{low:g} to {high:g}' if of_pixels else f'{low:g}'}: divide grey levels by 255"
            )
        as_measured(self.y, high)

    def energy(self, x: Tensor) -> Tensor:
        """The sum of (x - y)^2 / (2 sigma^2) per image: (B, 1, H, W) -> (B,)."""
        squares = (_like(self.y, x) - self.y).square()
        if isinstance(self.sigma, Tensor):
            return (squares / (2 * self.sigma**2)).sum(dim=(1, 2, 3))
        return squares.sum(dim=(1, 2, 3)) / (2 * self.sigma**2)

    def prox(self, v: Tensor, step: float | Tensor) -> Tensor:
        """(sigma^2 v + eta y) / (sigma^2 + eta), eta = step >= 0 (a float or (B,)); shaped like v."""
        v = _like(self.y, v)
        eta = _step(step, v)  # (B, 1, 1, 1)
        return (self.sigma**2 * v + eta * self.y) / (self.sigma**2 + eta)

    def start(self) -> Tensor:
        """A copy of the noisy image."""
        return self.y.clone()


class Inpainting:
    """Noise-free pixels under a mask: D = indicator{ m x = m y }   (Kobler & Pock 2023, section 4).

    Parameters
    ----------
    y : (B, 1, H, W)
        Image of which only the observed pixels are looked at.
    mask : boolean or {0, 1}, (B, 1, H, W) or what broadcasts to it, such as (H, W)
        True = OBSERVED.

    Raises ValueError for other values or shapes.
    """

    def __init__(self, y: Tensor, mask: Tensor) -> None:
        self.y = as_measured(y).detach().clone()
        mask = torch.as_tensor(mask, device=self.y.device)
        if mask.dtype != torch.bool:
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise ValueError("the mask must be boolean or hold only 0 (missing) and 1 (observed)")
            mask = mask == 1
        self.mask = _expanded("mask", mask, self.y)  # (B, 1, H, W)

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
    the same way first; what is missing here is then interpolated from there. A prior sees a few pixels far, so from mid
    grey it takes many steps to the middle of a hole. An image of which nothing is known is mid grey. known: bool,
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


@dataclass(frozen=True)
class Task:
    """An inverse problem for images that are known: which kind, how hard. Raises ValueError for another one.

    "denoise" is white Gaussian noise, "inpaint" pixels missing independently of each other.
    """

    kind: str
    level: float  # standard deviation in grey levels, in (0, 2550], or fraction of missing pixels, in (0, 1)

    def __post_init__(self) -> None:
        if self.kind not in LEVELS:
            raise ValueError(f"the task must be one of {', '.join(LEVELS)}, got {self.kind!r}")
        object.__setattr__(self, "level", float(self.level))
        if self.kind == "denoise" and not 0 < self.level <= 2550:
            raise ValueError(f"sigma is in grey levels of 0..255 and must lie in (0, 2550], got {self.level}")
        if self.kind == "inpaint" and not 0 < self.level < 1:
            raise ValueError(f"the fraction of missing pixels must lie in (0, 1), got {self.level}")

    def __str__(self) -> str:
        """ "denoise-25" or "inpaint-80": the name of a shipped schedule after that of its prior."""
        return f"{self.kind}-{self.level if self.kind == 'denoise' else 100 * self.level:g}"

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise in grey values of [0, 1]; 0 for inpainting."""
        return self.level / 255 if self.kind == "denoise" else 0.0

    def measure(self, x: Tensor, generator: torch.Generator) -> Denoising | Inpainting:
        """The data term of a measurement of clean images (B, 1, H, W): noise or mask are drawn from the generator."""
        if self.kind == "denoise":
            return Denoising(add_noise(x, self.sigma, generator), self.sigma)
        mask = torch.rand(x.shape, generator=generator).to(x.device) < 1 - self.level  # True: observed
        return Inpainting(torch.where(mask, x, torch.zeros_like(x)), mask)


def _expanded(name: str, values: Tensor, y: Tensor) -> Tensor:
    """Values of pixels as a copy shaped like y."""
    try:
        return values.expand(y.shape).clone()
    except RuntimeError as error:
        raise ValueError(
            f"a {name} of shape {tuple(values.shape)} does not fit images of shape {tuple(y.shape)}"
        ) from error


def _like(y: Tensor, v: Tensor) -> Tensor:
    """The image batch v, checked to have the shape, type and device of the measurement y."""
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
