r"""Exact convexity threshold of a mixture on the line: the largest root of ``t -> min_y hess F(y, t)``.

``hess F(y, t) = sum_i g_i p_i - Var_g(a)`` can only be negative where at least two components have a say, that
is near a *crossing*, a root of the quadratic ``log(w_i N_i) - log(w_j N_j)``. So the points tried are a uniform
grid over the bulk, a fine grid about each mean, and a fine grid about each crossing (which may be far outside
of the means when weights or variances are very unequal). `scipy.optimize.minimize_scalar` refines the lowest ones.

In t, two arguments give a safe upper end:

* bounded X: if ``s_i^2 + t >= max_{y in X} (y - mu_i)^2`` for all i then ``p_i - a_i^2 >= 0`` term by term
  (the step of theorem 2.2, one component at a time), so F(., t) is convex from there on;
* whole line: convolution keeps log-concavity (Prekopa-Leindler), so the convex t form an interval [t*, inf) and
  one sign change is all there is.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from scipy.optimize import brentq, minimize_scalar

#: log-weights, means and smoothed variances s_i^2 + t of the components of positive weight, each (K,)
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def min_hessian(mixture, t: float, domain=None) -> tuple[float, float]:
    """``min_y hess F(y, t)`` over the domain and where it is attained; for mixtures on the line.

    The domain is (lo, hi), or None for the whole line. Raises ValueError: a malformed domain, a bad t (as `energy`), or
    a mixture that is not on the line.
    """
    log_w, mu, s2 = _components(mixture)
    mixture.energy([0.0], t)  # refuses what is no time
    return _lowest((log_w, mu, s2 + float(t)), _ends(domain))


def _lowest(parts: Parts, ends: tuple[float, float]) -> tuple[float, float]:
    """The lowest hess F among the candidates, after a search around each dip that may be deeper than they show."""
    y = _candidates(parts, *ends)
    h = _hessian(y, parts)
    best = int(h.argmin())
    found = [(float(h[best]), float(y[best]))]
    for k in _dips(y, h):
        # measured from y[k]: far out a step may be small beside y itself
        bounds = y[k - 1] - y[k], y[k + 1] - y[k]
        search = {"bounds": bounds, "method": "bounded", "options": {"xatol": 1e-7 * (bounds[1] - bounds[0])}}
        dip = minimize_scalar(lambda u, at=y[k]: _hessian(np.array([at + u]), parts)[0], **search)
        found.append((float(dip.fun), float(y[k] + dip.x)))
    return min(found)


def _dips(y: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Indices of up to six local minima of h that may hide the lowest value between their neighbours, deepest first.

    How deep? No convex function goes below the chord from one neighbour through the dip, drawn on to the other.
    """
    step, rise = np.diff(y), np.diff(h)
    left, right, ratio = -rise[:-1], rise[1:], step[1:] / step[:-1]
    depth = h[1:-1] - np.maximum(left * ratio, right / ratio)
    dips = np.flatnonzero((left >= 0) & (right >= 0) & (depth < h.min() - 1e-12 * np.abs(h[1:-1])))
    return 1 + dips[np.argsort(depth[dips], kind="stable")[:6]]


def convexity_threshold(mixture, domain=None) -> float:
    """The exact threshold ``t*``: the largest root of ``t -> min_y hess F(y, t)``; for mixtures on the line.

    F(., t) is convex on the domain for every t >= t*, and just below t* it is not; 0.0 if it is convex for
    every t > 0. Numerical: about 1e-10 relative, and a Hessian between -1e-13 / (t + min s_i^2) and 0 is
    below rounding and counts as convex. See `gnclib.certify` for a proof on an interval. The domain is (lo, hi), or
    None for the whole line. Raises ValueError: a malformed domain, or a mixture that is not on the line.
    """
    (lo, hi), (log_w, mu, variances) = _ends(domain), _components(mixture)
    smallest = float(variances.min())

    def dip(t: float) -> float:
        """min hess F, scaled to be of order one at every t; rounding counts as convex."""
        value = _lowest((log_w, mu, variances + t), (lo, hi))[0] * (smallest + t)
        return 0.0 if abs(value) < 1e-13 else value

    if domain is None:
        top = max(float(np.ptp(mu)) ** 2, float(np.ptp(variances))) or 1.0
        while dip(top) <= 0:
            top *= 2
        below, above = 1e-12 * top, top
    else:
        top = float((np.maximum((mu - lo) ** 2, (mu - hi) ** 2) - variances).max())
        below, above = _last_change(dip, top, smallest) if top > 0 else (0.0, 0.0)
    if above == 0 or dip(below) >= 0:
        return 0.0
    return float(brentq(dip, below, above, xtol=1e-300, rtol=1e-14, maxiter=500))


def _last_change(dip, top: float, smallest: float) -> tuple[float, float]:
    """The last interval (below, above) in which the dip falls below 0; (0, 0) without one. Convex from top on.

    A scan from top down, geometric in the smallest smoothed variance, then a closer look at the bottoms of the four
    lowest positive dips in t: a short non-convex spell is not to be missed.
    """
    start = max(smallest, 1e-9 * top)
    ts = np.geomspace(start + top, start, 160) - start
    ts[0], ts[-1] = top, 1e-12 * top
    values = [math.inf]  # the top is convex by construction
    while values[-1] >= 0 and len(values) < len(ts):
        values.append(dip(ts[len(values)]))
    h = np.array(values)
    bottoms = 1 + np.flatnonzero(h[1:-1] < np.minimum(h[:-2], h[2:]) - 1e-9)
    pairs = list(zip(ts, values, strict=False))
    for k in bottoms[np.argsort(h[bottoms], kind="stable")[:4]]:
        ends = (ts[k + 1], ts[k - 1])
        options = {"xatol": 1e-6 * (ends[1] - ends[0])}
        found = minimize_scalar(dip, bounds=ends, method="bounded", options=options)
        pairs.append((found.x, found.fun))
    pairs.sort(reverse=True)
    for (above, _), (below, value) in pairwise(pairs):
        if value < 0:
            return float(below), float(above)
    return 0.0, 0.0


def _ends(domain) -> tuple[float, float]:
    """(lo, hi) as floats; None is the whole line. Raises ValueError if it is not a pair with lo < hi."""
    if domain is None:
        return -math.inf, math.inf
    try:
        lo, hi = map(float, domain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"domain must be a pair (lo, hi), or None for the line, got {domain!r}") from error
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"domain must be finite with lo < hi (None is the whole line), got {domain!r}")
    return lo, hi


def _components(mixture) -> Parts:
    """Log-weights, means and variances of a mixture on the line. Raises ValueError if it is none."""
    if not mixture.on_line:
        raise ValueError(f"thresholds are for mixtures on the line, means of shape (K,), not for {mixture!r}")
    return mixture._log_w.numpy(), mixture._mu[:, 0].numpy(), mixture._lam[:, 0].numpy()


def _log_terms(y: np.ndarray, parts: Parts) -> np.ndarray:
    log_w, mu, v = parts
    return log_w - 0.5 * ((y[:, None] - mu) ** 2 / v + np.log(v))


def _pieces(y: np.ndarray, parts: Parts) -> list[np.ndarray]:
    """y (B,) cut so that a table (B, K) stays below 32 MB."""
    return np.array_split(y, 1 + len(y) * len(parts[0]) // 4_000_000)


def _hessian(y: np.ndarray, parts: Parts) -> np.ndarray:
    """`GaussianMixture.hessian` at points (B,) in plain numpy, forty times as fast: it is called very often."""
    _, mu, v = parts
    values = []
    for piece in _pieces(y, parts):
        g = _log_terms(piece, parts)
        g = np.exp(g - g.max(1, keepdims=True))
        g /= g.sum(1, keepdims=True)
        a = (mu - piece[:, None]) / v
        centred = a - (g * a).sum(1, keepdims=True)
        values.append((g * (1 / v - centred**2)).sum(1))
    return np.concatenate(values)


def _crossings(parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Points where two leading components balance (or come closest), and the width of each transition."""
    log_w, mu, v = parts
    i, j = np.triu_indices(len(mu), 1)
    shift = (mu[i] + mu[j]) / 2  # centre each pair: its quadratic is A z^2 + B z + C in z = y - shift
    half = (mu[i] - mu[j]) / 2
    with np.errstate(all="ignore"):
        A = 0.5 * (1 / v[j] - 1 / v[i])
        B = half * (1 / v[i] + 1 / v[j])
        C = log_w[i] - log_w[j] - 0.5 * np.log(v[i] / v[j]) + half**2 * A
        q = -0.5 * (B + np.copysign(np.sqrt(np.maximum(B**2 - 4 * A * C, 0)), B))
        z = np.stack([q / A, C / q, -B / (2 * A)])  # two roots, stable form, and the vertex
        width = 1 / np.maximum(np.abs(2 * A * z + B), np.sqrt(np.abs(A)))
    y, width, pair = (z + shift).ravel(), width.ravel(), np.tile(np.stack([i, j]), 3)
    keep = np.flatnonzero(np.isfinite(y) & np.isfinite(width))
    leading = [np.zeros(0, int)]
    for piece in _pieces(keep, parts):
        log = _log_terms(y[piece], parts)
        second = np.take_along_axis(log, pair[:, piece].T, 1).min(1)
        leading.append(piece[second > log.max(1) - 12.0] if len(piece) else piece)
    leading = np.concatenate(leading)
    return y[leading], width[leading]


def _candidates(parts: Parts, lo: float, hi: float) -> np.ndarray:
    """Sorted points of [lo, hi] that resolve every place where the Hessian can dip."""
    _, mu, v = parts
    bulk = (max(lo, mu.min() - 4 * math.sqrt(v.max())), min(hi, mu.max() + 4 * math.sqrt(v.max())))
    if bulk[0] >= bulk[1]:
        bulk = (lo, hi)
    y, width = _crossings(parts)
    octave = np.exp2(np.round(np.log2(width)))  # many components: one crossing per place and width is enough
    _, first = np.unique(np.stack([octave, np.round(y / octave)]), axis=1, return_index=True)
    y, width = y[first], width[first]
    points = [
        np.linspace(*bulk, 1001),
        (mu[:, None] + np.sqrt(v)[:, None] * np.linspace(-6, 6, 49)).ravel(),
        (y[:, None] + width[:, None] * np.linspace(-16, 16, 65)).ravel(),
    ]
    if math.isfinite(lo):  # a dip beside an end shows as a dip of its own
        points.append(np.array([lo, lo + 1e-7 * (hi - lo), hi - 1e-7 * (hi - lo), hi]))
    points = np.unique(np.concatenate(points))
    return points[(points >= lo) & (points <= hi)]
