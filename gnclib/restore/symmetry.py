r"""A prior that knows no direction: its mean over the eight symmetries of the square.

Photographs turned or mirrored are photographs, but a trained prior rates them a little differently. The energy

    R_8(y, t) = 1/8 sum_g R(g y, t),   g the turns by multiples of 90 degrees, with and without a reflection,

rates them alike, is convex where R is, and costs eight times as much. Its gradient is 1/8 sum_g g^-1 grad_1 R(g y, t),
the Hessian alike. So its Tweedie step is the mean of eight: what is known as geometric self-ensemble (Timofte, Rothe
& Van Gool 2016) is an energy, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gnclib.restore.tiles import Composed

#: quarter turns, and whether a reflection comes first
SYMMETRIES = tuple(itertools.product(range(4), (False, True)))


@dataclass(frozen=True)
class Symmetrised(Composed):
    """R_8 of a prior with its derivatives; large images: R_8 of a :class:`gnclib.restore.Tiled`, not its tiles."""

    def energy(self, y: Tensor, t: float | Tensor) -> Tensor:
        """R_8(y, t), (B,), of images (B, 1, H, W)."""
        return _mean(self.prior.energy(_turned(y, *g), t) for g in SYMMETRIES)

    def dtau(self, y: Tensor, t: float | Tensor, *, order: int = 2) -> tuple[Tensor, ...]:
        """The derivatives of R_8 in tau up to an order, as many tensors (B,)."""
        every = [self.prior.dtau(_turned(y, *g), t, order=order) for g in SYMMETRIES]
        return tuple(map(_mean, zip(*every, strict=True)))

    def _whole(self, function: Callable[..., Tensor], *images: Tensor) -> Tensor:
        return _mean(_back(function(*(_turned(image, *g) for image in images)), *g) for g in SYMMETRIES)


def _turned(x: Tensor, quarters: int, reflected: bool) -> Tensor:
    """g x."""
    return torch.rot90(x.flip(-1) if reflected else x, quarters, (-2, -1)).contiguous()


def _back(x: Tensor, quarters: int, reflected: bool) -> Tensor:
    """g^-1 x."""
    x = torch.rot90(x, -quarters, (-2, -1))
    return x.flip(-1) if reflected else x


def _mean(parts: Iterable[Tensor]) -> Tensor:
    return sum(parts) / len(SYMMETRIES)
