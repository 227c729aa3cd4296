"""Denoise an image file with a learned prior: what ``gnc denoise`` does.

Two schemes, both with the prior R and the noise variance sigma^2:

    gnc    x_i = prox_{t_i D}(x_{i-1} - t_i grad_1 R(x_{i-1}, t_i)),  D(x) = ||x - y||^2 / (2 sigma^2)   (eq. 9)
    mmse   x   = y - sigma^2 grad_1 R(y, sigma^2), one step without a data term (Tweedie)

Kobler & Pock 2023. Colour images are denoised channel by channel with the same grey prior. Large images are worked on
in tiles with a margin as wide as the prior can see, which gives the same result as the whole image at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gnclib.operators import Denoising
from gnclib.solvers import gnc_flow, log_schedule

__all__ = ["SCHEMES", "Tiled", "check_sigma", "denoise", "schedule"]

SCHEMES = ("gnc", "mmse")


@dataclass(frozen=True)
class Tiled:
    """A prior whose gradient is computed tile by tile, so that memory does not grow with the image.

    prior: with `grad(y, t)` and `config.margin`, half of its receptive field; a gradient depends on pixels up to two
    margins away. tile: side of a tile in pixels (without its margin).
    """

    prior: object
    tile: int = 512

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f"the side of a tile must be at least 1 pixel, got {self.tile}")

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor:
        """grad_1 R(y, t), shaped like y (B, 1, H, W): equal to the prior's own up to rounding."""
        height, width = y.shape[-2:]
        margin, result = 2 * self.prior.config.margin, torch.empty_like(y)
        for rows, inner_rows in _cuts(height, self.tile, margin):
            for columns, inner_columns in _cuts(width, self.tile, margin):
                part = self.prior.grad(y[..., slice(*rows), slice(*columns)].contiguous(), t)
                below, right = inner_rows[0] - rows[0], inner_columns[0] - columns[0]
                part = part[..., below:, right:][
                    ..., : inner_rows[1] - inner_rows[0], : inner_columns[1] - inner_columns[0]
                ]
                result[..., slice(*inner_rows), slice(*inner_columns)] = part
        return result


def _cuts(length: int, tile: int, margin: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """(outer, inner) ranges: the inner ones partition [0, length), the outer ones are wider by the margin."""
    count = max(1, round(length / tile))
    edges = [length * i // count for i in range(count + 1)]
    for first, last in pairwise(edges):
        yield (max(0, first - margin), min(length, last + margin)), (first, last)


def check_sigma(levels: float, sigma_min: float, sigma_max: float) -> float:
    """The noise standard deviation in grey values of [0, 1], from 8-bit grey levels; it must suit the prior.

    Raises
    ------
    ValueError
        `levels` / 255 lies outside of [sigma_min, sigma_max].
    """
    low, high = 255 * sigma_min, 255 * sigma_max
    if not low <= levels <= high:
        raise ValueError(
            f"sigma {levels:g} is outside of this prior's range, {low:.3g} to {high:.3g} (in grey levels of 0..255)"
        )
    return float(levels) / 255


def schedule(sigma_min: float, sigma_max: float, steps: int) -> Tensor:
    """Logarithmic schedule from sigma_max^2 to sigma_min^2, the whole range of the prior, (steps,).

    Our choice: graduated non-convexity wants to start where the prior is as convex as it gets, and of linear and
    logarithmic schedules from sigma^2, 4 sigma^2, 0.1 and 1 with 5, 10 and 20 steps this one, with 10, had the best
    mean PSNR (shipped R_1, three crops of bundled photographs, noise 15, 25 and 50). More steps come closer to the
    minimal energy and lose PSNR, as the paper observes.
    """
    return log_schedule(sigma_max**2, sigma_min**2, steps)


def denoise(prior, y: Tensor, sigma: float, scheme: str = "gnc", steps: int = 10) -> Iterator[Tensor]:
    """Yield the iterates x_1 .. x_I of a scheme; the last one is the result.

    Parameters
    ----------
    prior
        A `FieldsOfExperts`, or `Tiled`.
    y
        Noisy images (B, 1, H, W), grey values in [0, 1] (not clipped).
    sigma
        Noise standard deviation in grey values.
    scheme
        "gnc" (`steps` steps) or "mmse" (always one).

    Raises
    ------
    ValueError
        Unknown scheme, or fewer than one step.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    if steps < 1:
        raise ValueError(f"the number of steps must be at least 1, got {steps}")
    if scheme == "mmse":
        flow = gnc_flow(prior, [sigma**2], start=y)
    else:
        base = prior.prior if isinstance(prior, Tiled) else prior
        config = base.config
        flow = gnc_flow(prior, schedule(config.sigma_min, config.sigma_max, steps), Denoising(y, sigma))
    return (state.x for state in flow)
