r"""Reference engine: the splines in plain torch, as they are defined; every fast engine has to reproduce it.

Any device, any floating dtype, any order of differentiation. On a uniform grid with spacing h the five basis functions
that overlap on an interval are polynomials in the local variable f = (x - left end) / h, f in [0, 1], and so is their
sum: with the coefficients a_k ... a_{k+4} of interval k

    phi = sum_p c_p f^p + beyond sum_p p c_p f^(p-1),    c_p = sum_m a_{k+m} PIECES[m, p].

``beyond`` is how far x lies outside of the range, in units of h: zero inside, where f = 0 or 1 at the end otherwise. So
the spline is continued linearly, and its second derivative is zero there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: number of basis functions that overlap at a point, and of coefficients of a quartic polynomial
ORDER = 5
#: 24 PIECES: row m has the powers of f of the m-th of the five basis functions on an interval, times 4!
_PIECES_24 = (
    (1, -4, 6, -4, 1),
    (11, -12, -6, 12, -4),
    (11, 12, -6, -12, 6),
    (1, 4, 6, 4, -4),
    (0, 0, 0, 0, 1),
)


def pieces(dtype=torch.float64, device="cpu") -> Tensor:
    """PIECES (5, 5): on an interval, basis function m of the five is sum_p PIECES[m, p] f^p."""
    return torch.tensor([[c / 24 for c in row] for row in _PIECES_24], dtype=dtype, device=device)


def _locate(x: Tensor, grid) -> tuple[Tensor, Tensor, Tensor]:
    """Interval of each point, f, and how far the point lies beyond the range; nan is put into the first interval."""
    n, start = grid.intervals, grid.low / grid.spacing
    position = x / grid.spacing
    inside = position.clamp(start, start + n)
    interval = (inside.detach() - start).nan_to_num().floor().clamp(max=n - 1)
    f = inside - (interval + start)  # whole numbers last: accurate in the middle of the range
    return interval.long(), f, position - inside


def _polynomials(coefficients: Tensor, interval: Tensor) -> list[Tensor]:
    """c_0 ... c_4 at each point, from coefficients (S, N_x) and intervals (S, M): each (S, M)."""
    n = coefficients.shape[1] - (ORDER - 1)
    overlapping = torch.stack([coefficients[:, m : m + n] for m in range(ORDER)], -1)  # (S, intervals, 5)
    table = overlapping @ pieces(coefficients.dtype, coefficients.device)
    return [table[..., p].gather(1, interval) for p in range(ORDER)]


def evaluate(x: Tensor, coefficients: Tensor, grid, orders: tuple[int, ...]) -> tuple[Tensor, ...]:
    """:func:`gnclib.spline.evaluate` for x (S, M) and coefficients (S, N_x): one (S, M) tensor per order."""
    interval, f, beyond = _locate(x, grid)
    c = _polynomials(coefficients, interval)
    slope = c[1] + f * (2 * c[2] + f * (3 * c[3] + f * 4 * c[4]))  # h phi'
    values = []
    for order in orders:
        if order == 0:
            values.append(c[0] + f * (c[1] + f * (c[2] + f * (c[3] + f * c[4]))) + slope * beyond)
        elif order == 1:
            values.append(slope / grid.spacing)
        else:
            curvature = 2 * c[2] + f * (6 * c[3] + f * 12 * c[4])
            values.append(torch.where(beyond == 0, curvature, 0.0) / grid.spacing**2)
    return tuple(values)


def backward(
    x: Tensor, coefficients: Tensor, grid, orders: tuple[int, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    r"""The gradients of sum_k < g_k, phi^(k)(x) > in x and in the coefficients, by hand.

    With D^k f^p for the k-th derivative of a power, inside of the range

        d/dx   = sum_k h^(-k-1) g_k sum_p c_p D^(k+1) f^p
        d/dc_p = sum_k h^-k     g_k D^k f^p                      at the interval of x, summed over all points

    and d/da is d/dc times PIECES. Outside phi has the slope of the range's end, hence d/dc_p has one term more,
    g_0 beyond D f^p, and of d/dx remains g_0 phi'; phi'' = 0 contributes nothing.

    x is (S, M), the coefficients are (S, N_x), ``grads`` has one (S, M) tensor g_k for each k of ``orders``, which are
    distinct; the results are like x and like the coefficients.
    """
    interval, f, beyond = _locate(x, grid)
    c = _polynomials(coefficients, interval)
    power = [
        [math.perm(p, k) * f ** max(p - k, 0) for p in range(ORDER)] for k in range(max(orders) + 2)
    ]  # D^k f^p; math.perm(p, k) = p (p - 1) ... (p - k + 1), which is 0 for p < k
    g_x, weights = torch.zeros_like(x), [torch.zeros_like(x) for _ in range(ORDER)]
    for k, g in zip(orders, grads, strict=True):
        g = g / grid.spacing**k
        inner = torch.where(beyond == 0, g, 0.0)
        g_x = g_x + (g if k == 0 else inner) * sum(a * b for a, b in zip(c, power[k + 1], strict=True))
        for p in range(ORDER):
            weights[p] = weights[p] + (inner if k == 2 else g) * power[k][p]
            if k == 0:
                weights[p] = weights[p] + g * beyond * power[1][p]
    empty = x.new_zeros(x.shape[0], grid.intervals)
    table = torch.stack([empty.scatter_add(1, interval, w) for w in weights], -1)  # (S, intervals, 5)
    overlapping = table @ pieces(x.dtype, x.device).T
    shifted = [torch.nn.functional.pad(overlapping[..., m], (m, ORDER - 1 - m)) for m in range(ORDER)]
    return g_x / grid.spacing, sum(shifted)
