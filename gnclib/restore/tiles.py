"""Large images in tiles: a prior computed piece by piece, so that memory does not grow by all features of the image.

A term of the energy at a pixel depends on the pixels up to one margin away, the gradient on those up to two. Tiles that
overlap by two margins on each side therefore give the gradient of the whole image, up to rounding, without seams. The
energy is a sum over pixels; for tiles A and B that overlap by two margins,

    R(A and B together) = R(A) + R(B) - R(what both have),

since the terms at the two new borders occur twice with opposite signs. So are its derivatives in tau.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gnclib.restore.flow import Energy


@dataclass(frozen=True)
class Composed:
    """A prior made of several calls of another; ``_whole`` makes an image of what a function of images gives."""

    prior: Energy

    sigma_min = property(lambda self: self.prior.sigma_min)
    sigma_max = property(lambda self: self.prior.sigma_max)
    margin = property(lambda self: self.prior.margin)

    def parameters(self) -> Iterator[Tensor]:
        """Those of the prior."""
        return self.prior.parameters()

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor:
        """The gradient of the energy in y, shaped like y (B, 1, H, W)."""
        return self._whole(lambda part: self.prior.grad(part, t), y)

    def hvp(self, y: Tensor, t: float | Tensor, v: Tensor) -> Tensor:
        """The Hessian of the energy in y times v, shaped like y."""
        return self._whole(lambda part, along: self.prior.hvp(part, t, along), y, v)


@dataclass(frozen=True)
class Tiled(Composed):
    """A prior whose energy and derivatives are computed in tiles, equal to its own up to rounding."""

    tile: int = 512  # side of a tile in pixels, >= 1, without its overlap

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f"the side of a tile must be at least 1 pixel, got {self.tile}")

    alignment = property(lambda self: self.prior.alignment)

    def energy(self, y: Tensor, t: float | Tensor) -> Tensor:
        """R(y, t), (B,)."""
        return sum(sign * self.prior.energy(part, t) for sign, part in self._pieces(y))

    def dtau(self, y: Tensor, t: float | Tensor, *, order: int = 2) -> tuple[Tensor, ...]:
        """The derivatives of R in tau up to an order, as many tensors (B,)."""
        by_piece = [
            [sign * d for d in self.prior.dtau(part, t, order=order)] for sign, part in self._pieces(y)
        ]
        return tuple(map(sum, zip(*by_piece, strict=True)))

    def _whole(self, function: Callable[..., Tensor], *images: Tensor) -> Tensor:
        """What a function of images gives that sees two margins far, tile by tile."""
        if max(images[0].shape[-2:]) <= self.tile:
            return function(*images)
        margin, result = 2 * self.margin, torch.empty_like(images[0])
        for rows, columns in itertools.product(*(self._cuts(length) for length in result.shape[-2:])):
            (i, seen_rows), (j, seen_columns) = (_widened(part, margin) for part in (rows, columns))
            part = function(*(image[..., seen_rows, seen_columns].contiguous() for image in images))
            height, width = rows.stop - rows.start, columns.stop - columns.start
            result[..., rows, columns] = part[..., i : i + height, j : j + width]
        return result

    def _cuts(self, length: int) -> list[slice]:
        """Ranges of about the length of a tile, which together cover [0, length) once.

        They begin where the pixels of the coarsest scale of the prior do.
        """
        count, pixel = max(1, round(length / self.tile)), self.alignment
        edges = {length * i // count // pixel * pixel for i in range(count)}
        return [slice(*ends) for ends in pairwise([*sorted(edges), length])]

    def _pieces(self, y: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Tiles that overlap by two margins, with the sign 1, and what neighbours share, with -1."""
        signed = []
        for length in y.shape[-2:]:
            cuts = self._cuts(length)
            shared = [slice(part.start, part.start) for part in cuts[1:]]
            ranges = [(1, part) for part in cuts] + [(-1, part) for part in shared]
            signed.append([(sign, _widened(part, self.margin)[1]) for sign, part in ranges])
        for (a, rows), (b, columns) in itertools.product(*signed):
            yield a * b, y[..., rows, columns].contiguous()


def _widened(part: slice, margin: int) -> tuple[int, slice]:
    """A range that sees the margin on both sides, as far as the image goes, and where the part begins in it."""
    first = max(0, part.start - margin)
    return part.start - first, slice(first, part.stop + margin)
