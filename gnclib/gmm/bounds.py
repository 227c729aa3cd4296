r"""Bounds of the convexity threshold of an empirical measure, from above and from below (corollary 2.3).

For points x_1 ... x_N in R^d, ``F(y, t) = -log 1/N sum_i N(y; x_i, t I)`` has the Hessian ``(I - Cov_g(x)/t)/t`` with
the responsibilities ``g_i ~ exp(<y, x_i>/t - |x_i|^2/(2 t))``. So convexity on a set means
``lambda_max(Cov_g(x)) <= t`` there.

* From above: corollary 2.3 gives ``t <= D^2`` on the hull, Popoviciu ``t* <= D^2/4`` on R^d, D the diameter.
* From below, on R^d: let [a, b] be an *edge* of the convex hull, i.e. some direction u has <u, a> = <u, b> > <u, x_i>
  for all other points. Far out along u only a and b keep weight, and a shift along b - a gives them one half each: the
  covariance tends to ``|a - b|^2/4``. So ``t* >= |a - b|^2/4`` for every edge, and u is found by a linear program.
* From below, on a box: a search for y with ``lambda_max(Cov_g(x)) > t``, by ascent, continued from small t to large.

If the farthest two points form an edge, both bounds on R^d agree and ``t* = D^2/4`` exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor


@dataclass(frozen=True)
class Edge:
    """Edge of a convex hull, by the indices of its ends."""

    a: int
    b: int
    length: float
    direction: np.ndarray  # the unit vector u that exposes it, (d,)
    margin: float  # <u, a> - max over the other points of <u, x>: positive, with rounding well below it

    @property
    def t_below(self) -> float:
        """``|a - b|^2/4``: on all of R^d the energy is not convex for any smaller t."""
        return self.length**2 / 4


def squared_diameter(points: Tensor) -> float:
    """The largest squared distance of two points (N, d)."""
    exact = "donot_use_mm_for_euclid_dist"  # products would cancel far from the origin
    return max(float(torch.cdist(part, points, compute_mode=exact).max()) for part in points.split(1000)) ** 2


def edge_direction(points: Tensor, a: int, b: int) -> Edge | None:
    """The edge [x_a, x_b] of the convex hull of points (N, d), or None if it is none.

    Solves ``<u, x_b - x_a> = 0, <u, x_i - x_a> <= -1 for all other i`` and verifies the solution on the points.
    """
    others = np.delete(points.numpy(), [a, b], 0)
    along = (points[b] - points[a]).numpy()
    below = {"A_ub": others - points[a].numpy(), "b_ub": -np.ones(len(others))}
    across = {"A_eq": along[None], "b_eq": [0.0]}
    solved = linprog(np.zeros(points.shape[1]), **below, **across, bounds=(None, None), method="highs")
    if solved.status != 0:
        return None
    u = solved.x - along * (solved.x @ along) / (along @ along)  # exactly across the edge
    u = u / np.linalg.norm(u)
    margin = float((points[a].numpy() @ u) - (others @ u).max())
    if margin <= 1e-9 * np.abs(points.numpy()).max():
        return None
    return Edge(a, b, float(np.linalg.norm(along)), u, margin)


def longest_edge(points: Tensor, candidates: Tensor, tries: int = 60) -> Edge | None:
    """A long edge of the convex hull, not certainly the longest: the first one found, from the farthest pairs down.

    Of the distinct points (N, d) only pairs of those with the indices ``candidates``, likely vertices, are tried, by at
    most so many linear programs; the steps through the sorted pairs grow.
    """
    outer = points[candidates]
    distances, order = torch.triu(torch.cdist(outer, outer), diagonal=1).flatten().sort(descending=True)
    k = 0
    for _ in range(tries):
        if distances[k] == 0:  # more than half of all: the diagonal and below
            break
        a, b = (int(candidates[index]) for index in divmod(int(order[k]), len(candidates)))
        edge = edge_direction(points, a, b)
        if edge:
            return edge
        k += max(1, k // 15)
    return None


def largest_spread(
    points: Tensor, starts: Tensor, t: float, box: tuple[float, float], steps: int = 60
) -> tuple[Tensor, Tensor]:
    """Ascent of ``lambda_max(Cov_g(x))`` over y in the box from many starts: the values (B,) at all end points (B, d).

    The gradient is the third moment ``E_g[<u, x - m>^2 (x - m)]/t`` with u the leading eigenvector and m = E_g[x]; each
    start (B, d) has its own step, halved when it did not help. The box (lo, hi) is the same in every coordinate.
    """
    norms = points.square().sum(1)
    step = torch.full((len(starts), 1), 0.1 * float(norms.max().sqrt()), dtype=points.dtype)
    y = starts.clamp(*box)
    u = torch.nn.functional.normalize(torch.ones_like(y), dim=1)
    value, gradient, u = _spread(points, norms, y, u, t, 30)
    for _ in range(steps):
        moved = (y + step * torch.nn.functional.normalize(gradient, dim=1)).clamp(*box)
        new, new_gradient, new_u = _spread(points, norms, moved, u, t, 4)
        better = (new > value)[:, None]
        y, u = torch.where(better, moved, y), torch.where(better, new_u, u)
        gradient, value = torch.where(better, new_gradient, gradient), torch.maximum(value, new)
        step = torch.where(better, 1.2 * step, step / 2)
    return value, y


def _spread(points, norms, y, u, t: float, power: int):
    """Rayleigh quotient (B,) of Cov_g at the vectors u after some power iterations, its gradient in y, and u."""
    g = ((y @ points.T - norms / 2) / t).softmax(1)  # (B, N)
    mean = g @ points
    for _ in range(power):
        projected = u @ points.T - (u * mean).sum(1, keepdim=True)
        moved = (g * projected) @ points - (g * projected).sum(1, keepdim=True) * mean
        u = torch.nn.functional.normalize(moved, dim=1)
    projected = u @ points.T - (u * mean).sum(1, keepdim=True)
    weight = g * projected.square()
    value = weight.sum(1)
    return value, (weight @ points - value[:, None] * mean) / t, u


def threshold_on_box(
    points: Tensor, box: tuple[float, float], generator: torch.Generator, accuracy: float = 0.02
) -> tuple[float, Tensor]:
    """Lower bound of the threshold on a box: the largest t found where F is *not* convex, and a point where.

    Begins at a small t with midpoints of random pairs and follows the maximisers of the covariance while t grows, until
    ``lambda_max <= t`` at all of them; then bisects to the relative accuracy. (0, a point) if nothing is found.
    """
    pairs = torch.randint(len(points), (2, 24), generator=generator)
    y = points[pairs].mean(0)
    widest = squared_diameter(points)
    low, high, where, t = 0.0, math.inf, y[0], 0.01 * widest
    while high > (1 + accuracy) * low and t > 1e-12 * widest:
        values, ends = largest_spread(points, y, t, box)
        if values.max() > t:
            low, y, where = t, ends, ends[values.argmax()]
        else:
            high = t
        t = 1.3 * t if high == math.inf else (low + high) / 2
    return low, where
