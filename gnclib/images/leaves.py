"""Dead leaves: random images of occluding discs, the simplest model with the edges and scales of photographs.

Two points at distance d lie on the same visible leaf with probability B(d) / (2 B(0) - B(d)), where
B(d) = E |D ^ (D + d)| is the mean area that a leaf shares with its copy shifted by d (of the leaves that touch
either point the first one decides, and it must touch both). The tests check the images against this.
"""

import math

import numpy as np
import torch
from torch import Tensor


def leaf_radii(count: int, generator, r_min: float, r_max: float, exponent: float = 3.0) -> Tensor:
    """Radii with density p(r) proportional to r^-exponent on [r_min, r_max]: float64 (count,).

    Drawn by inversion: with a = exponent - 1, r = (r_min^-a - u (r_min^-a - r_max^-a))^(-1/a), u ~ U(0, 1).
    Raises ValueError unless 0 < r_min < r_max and exponent > 1.
    """
    if not 0 < r_min < r_max < math.inf:
        raise ValueError(f"radii need 0 < r_min < r_max, got r_min = {r_min}, r_max = {r_max}")
    if not 1 < exponent < math.inf:
        raise ValueError(f"the exponent of the law of the radii must be > 1, got {exponent}")
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    a = exponent - 1
    return (r_min**-a - u * (r_min**-a - r_max**-a)) ** (-1 / a)


def dead_leaves(
    height: int, width: int, generator, r_min: float = 2.0, r_max: float | None = None, exponent: float = 3.0
) -> Tensor:
    """A dead-leaves image (Lee, Mumford & Huang, IJCV 2001): float32 (1, 1, height, width) in [0, 1].

    Discs of independent radii (density ~ r^-exponent on [r_min, r_max]; 3 makes the image scale invariant),
    uniform centres and uniform grey values fall on top of each other. Seen from below, the first leaf that
    reaches a pixel is the one that stays visible: leaves are drawn front to back until no pixel is bare,
    which samples the stationary law exactly. Centres also fall outside of the image, up to r_max away, so that
    its border is like its inside. r_max is by default half the longer side, at least 2 r_min. Raises ValueError for
    sides that are not positive integers and for radii as in `leaf_radii`.
    """
    for name, side in (("height", height), ("width", width)):
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise ValueError(f"{name} must be a positive integer, got {side!r}")
    r_max = max(height, width, 4 * r_min) / 2 if r_max is None else r_max
    image = np.zeros((height, width))
    bare = np.ones((height, width), dtype=bool)
    while bare.any():
        radii = leaf_radii(4096, generator, r_min, r_max, exponent).numpy()
        place = torch.rand(4096, 3, generator=generator, dtype=torch.float64).numpy()
        rows = place[:, 0] * (height + 2 * r_max) - r_max  # pixel (i, j) is the point (i + 1/2, j + 1/2)
        columns = place[:, 1] * (width + 2 * r_max) - r_max
        for row, column, r, grey in zip(rows, columns, radii, place[:, 2], strict=True):
            top, left = max(0, math.floor(row - r)), max(0, math.floor(column - r))
            here = np.s_[top : max(top, math.ceil(row + r)), left : max(left, math.ceil(column + r))]
            seen = bare[here]
            if seen.any():
                i, j = np.ogrid[top : top + seen.shape[0], left : left + seen.shape[1]]
                leaf = seen & ((i + 0.5 - row) ** 2 + (j + 0.5 - column) ** 2 <= r * r)
                image[here][leaf] = grey
                seen[leaf] = False
    return torch.from_numpy(image).float()[None, None]
