"""Large images in tiles: a prior computed piece by piece, so that memory does not grow by all features of the image.

The gradient of a Fields-of-Experts energy at a pixel depends on the pixels up to two margins away (half a receptive
field from the pixel to a feature, another half from the feature to what it sees). Tiles that overlap by that much
therefore give the gradient of the whole image, up to rounding: there are no seams. The energy is a sum of features over
pixels; each tile of the continued image adds those of its own pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gnclib.foe import FieldsOfExperts
from gnclib.foe.filters import reflect

__all__ = ["Tiled"]


@dataclass(frozen=True)
class Tiled:
    """A prior whose energy and derivatives are computed in tiles, equal to its own up to rounding.

    prior: a `FieldsOfExperts`. tile: side of a tile in pixels (without its overlap), >= 1; ValueError else.
    """

    prior: FieldsOfExperts
    tile: int = 512

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f"the side of a tile must be at least 1 pixel, got {self.tile}")

    sigma_min = property(lambda self: self.prior.sigma_min)
    sigma_max = property(lambda self: self.prior.sigma_max)
    margin = property(lambda self: self.prior.margin)

    def energy(self, y: Tensor, t: float | Tensor) -> Tensor:
        """R(y, t), (B,): the sum over the tiles of the features that lie in each."""
        return sum(self.prior.energy(part, t, border="valid") for part in self._parts(y))

    def dtau(self, y: Tensor, t: float | Tensor, *, order: int = 2) -> tuple[Tensor, ...]:
        """The derivatives of R in tau, as those of the prior, summed over the tiles."""
        by_tile = [self.prior.dtau(part, t, border="valid", order=order) for part in self._parts(y)]
        return tuple(map(sum, zip(*by_tile, strict=True)))

    def _parts(self, y: Tensor) -> Iterator[Tensor]:
        """Tiles of the image continued by reflection, each with what its features see beyond it."""
        margin = self.prior.margin
        if min(y.shape[-2:]) <= margin:
            raise ValueError(
                f"images of {y.shape[-2]}x{y.shape[-1]} pixels are too small: this energy needs"
                f" {margin + 1}x{margin + 1} or more"
            )
        padded = reflect(y, margin)
        for _, rows in _cuts(y.shape[-2], self.tile, 0):
            for _, columns in _cuts(y.shape[-1], self.tile, 0):
                yield padded[
                    ..., rows[0] : rows[1] + 2 * margin, columns[0] : columns[1] + 2 * margin
                ].contiguous()

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor:
        """grad_1 R(y, t), shaped like y (B, 1, H, W): equal to the prior's own up to rounding."""
        height, width = y.shape[-2:]
        if max(height, width) <= self.tile:
            return self.prior.grad(y, t)
        margin, result = 2 * self.prior.margin, torch.empty_like(y)
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
