"""Large images in tiles: a prior computed piece by piece, so that memory does not grow by all features of the image.

The gradient of a Fields-of-Experts energy at a pixel depends on the pixels up to two margins away (half a receptive
field from the pixel to a feature, another half from the feature to what it sees). Tiles that overlap by that much
therefore give the gradient of the whole image, up to rounding, without seams. The energy is a sum of features over
pixels; each tile of the continued image adds those of its own pixels.
"""

from __future__ import annotations

import itertools
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

    Parameters
    ----------
    prior : FieldsOfExperts
    tile : int >= 1
        Side of a tile in pixels, without its overlap; ValueError else.
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

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor:
        """grad_1 R(y, t), shaped like y (B, 1, H, W)."""
        if max(y.shape[-2:]) <= self.tile:
            return self.prior.grad(y, t)
        margin, result = 2 * self.prior.margin, torch.empty_like(y)
        for rows, columns in self._ranges(y):
            (i, seen_rows), (j, seen_columns) = (_widened(part, margin) for part in (rows, columns))
            part = self.prior.grad(y[..., seen_rows, seen_columns].contiguous(), t)
            height, width = rows.stop - rows.start, columns.stop - columns.start
            result[..., rows, columns] = part[..., i : i + height, j : j + width]
        return result

    def _parts(self, y: Tensor) -> Iterator[Tensor]:
        """Tiles of the image continued by reflection, each with what its features see beyond it."""
        margin = self.prior.margin
        if min(y.shape[-2:]) <= margin:
            raise ValueError(
                f"images of {y.shape[-2]}x{y.shape[-1]} pixels are too small: this energy needs"
                f" {margin + 1}x{margin + 1} or more"
            )
        padded = reflect(y, margin)
        for rows, columns in self._ranges(y):
            wide, high = (slice(part.start, part.stop + 2 * margin) for part in (columns, rows))
            yield padded[..., high, wide].contiguous()

    def _ranges(self, y: Tensor) -> Iterator[tuple[slice, slice]]:
        """The rows and columns of each tile; together they cover the image once."""
        cuts = []
        for length in y.shape[-2:]:
            count = max(1, round(length / self.tile))
            edges = [length * i // count for i in range(count + 1)]
            cuts.append([slice(*ends) for ends in pairwise(edges)])
        return itertools.product(*cuts)


def _widened(part: slice, margin: int) -> tuple[int, slice]:
    """A range that sees the margin on both sides, as far as the image goes, and where the part begins in it."""
    first = max(0, part.start - margin)
    return part.start - first, slice(first, part.stop + margin)
