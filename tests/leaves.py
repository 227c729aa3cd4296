"""Dead leaves: random images of occluding discs, with the edges and scales of photographs, for tests without data.

Discs of independent radii (density ~ r^-3 on [r_min, r_max], so the image is scale invariant), uniform centres and
uniform grey values fall on top of each other (Lee, Mumford & Huang, IJCV 2001). Seen from below, the first leaf that
reaches a pixel is the one that stays visible: leaves are drawn front to back until no pixel is bare.
"""

import math

import numpy as np
import torch
from torch import Tensor


def dead_leaves(height: int, width: int, generator, r_min: float = 2.0, r_max: float | None = None) -> Tensor:
    """A dead-leaves image: float32 (1, 1, height, width) in [0, 1]; r_max is half the longer side by default."""
    r_max = max(height, width, 4 * r_min) / 2 if r_max is None else r_max
    image = np.zeros((height, width))
    bare = np.ones((height, width), dtype=bool)
    while bare.any():
        u = torch.rand(4096, generator=generator, dtype=torch.float64)
        radii = ((r_min**-2 - u * (r_min**-2 - r_max**-2)) ** -0.5).numpy()
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
                if not bare.any():
                    break
    return torch.from_numpy(image).float()[None, None]
