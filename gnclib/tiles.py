"""Large images in tiles: the gradient of a prior computed piece by piece, so that memory does not grow with the image.

The gradient of a Fields-of-Experts energy at a pixel depends on the pixels up to two margins away (half a receptive
field from the pixel to a feature, another half from the feature to what it sees). Tiles that overlap by that much
therefore give the gradient of the whole image, up to rounding: there are no seams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gnclib.foe import FieldsOfExperts

__all__ = ["Tiled"]


@dataclass(frozen=True)
class Tiled:
    """A prior with its gradient computed in tiles; the other methods are those of the prior, on the whole image.

    prior: a `FieldsOfExperts`. tile: side of a tile in pixels (without its overlap), >= 1; ValueError else.
    """

    prior: FieldsOfExperts
    tile: int = 512

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f"the side of a tile must be at least 1 pixel, got {self.tile}")

    @property
    def config(self):
        return self.prior.config

    def energy(self, y: Tensor, t: float | Tensor) -> Tensor:
        return self.prior.energy(y, t)

    def dtau(self, y: Tensor, t: float | Tensor, *, order: int = 2) -> tuple[Tensor, ...]:
        return self.prior.dtau(y, t, order=order)

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor:
        """grad_1 R(y, t), shaped like y (B, 1, H, W): equal to the prior's own up to rounding."""
        height, width = y.shape[-2:]
        if max(height, width) <= self.tile:
            return self.prior.grad(y, t)
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
