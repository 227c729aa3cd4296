r"""The exact convexity threshold of a mixture on the line: the largest root of ``t -> min_y hess F(y, t)``.

``hess F(y, t) = sum_i g_i p_i - Var_g(a)`` can only be negative where at least two components have a say, that
is near a *crossing*, a root of the quadratic ``log(w_i N_i) - log(w_j N_j)``. So the points tried are a uniform
grid over the bulk, a fine grid about each mean, and a fine grid about each crossing (which may be far outside
of the means when weights or variances are very unequal). The best ones are then refined by golden section.

In t, two arguments give a safe upper end:

* bounded X: if ``s_i^2 + t >= max_{y in X} (y - mu_i)^2`` for all i then ``p_i - a_i^2 >= 0`` term by term
  (the step of theorem 2.2, one component at a time), so F(., t) is convex from there on;
* whole line: convolution keeps log-concavity (Prekopa-Leindler), so the convex t form an interval [t*, inf) and
  one sign change is all there is.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq

GOLDEN = (math.sqrt(5) - 1) / 2


def check_domain(domain) -> tuple[float, float]:
    """(lo, hi) as floats; None is the whole line. Raises ValueError if it is not a pair with lo < hi."""
    if domain is None:
        return -math.inf, math.inf
    try:
        lo, hi = (float(end) for end in domain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"domain must be a pair (lo, hi) or None for the whole line, got {domain!r}"
        ) from error
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"domain must be finite with lo < hi (None is the whole line), got {domain!r}")
    return lo, hi


def _components(mixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    active = mixture.weights.numpy() > 0
    return tuple(part.numpy()[active] for part in (mixture.weights, mixture.means, mixture.variances))


def _log_terms(y, log_w, mu, v):
    return log_w - 0.5 * ((y[:, None] - mu) ** 2 / v + np.log(v))


def _hessian(mixture, y: np.ndarray, t: float) -> np.ndarray:
    """The closed form of ``GaussianMixture.hessian`` for points (B,), in plain numpy: it is called very often."""
    w, mu, variances = _components(mixture)
    v, log_w, parts = variances + t, np.log(w), []
    for part in np.array_split(y, 1 + len(y) * len(w) // 2_000_000):  # bounds the memory
        g = _log_terms(part, log_w, mu, v)
        g = np.exp(g - g.max(1, keepdims=True))
        g /= g.sum(1, keepdims=True)
        a = (mu - part[:, None]) / v
        centred = a - (g * a).sum(1, keepdims=True)
        parts.append((g * (1 / v - centred**2)).sum(1))
    return np.concatenate(parts)


def crossings(mixture, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Points where two leading components balance (or come closest), and the width of each transition."""
    w, mu, variances = _components(mixture)
    log_w, v = np.log(w), variances + t
    i, j = np.triu_indices(len(w), 1)
    shift = (mu[i] + mu[j]) / 2  # centre each pair: its quadratic is A z^2 + B z + C in z = y - shift
    half = (mu[i] - mu[j]) / 2
    with np.errstate(all="ignore"):
        A = 0.5 * (1 / v[j] - 1 / v[i])
        B = half * (1 / v[i] + 1 / v[j])
        C = log_w[i] - log_w[j] - 0.5 * np.log(v[i] / v[j]) + half**2 * A
        q = -0.5 * (B + np.copysign(np.sqrt(np.maximum(B**2 - 4 * A * C, 0)), B))
        z = np.stack([q / A, C / q, -B / (2 * A)])  # two roots, stable form, and the vertex
        width = 1 / np.maximum(np.abs(2 * A * z + B), np.sqrt(np.abs(A)))
    y = (z + shift).ravel()
    keep = np.isfinite(y) & np.isfinite(width.ravel())
    y, width, a, b = y[keep], width.ravel()[keep], np.tile(i, 3)[keep], np.tile(j, 3)[keep]
    leading = np.zeros(len(y), bool)
    for part in np.array_split(np.arange(len(y)), 1 + len(y) * len(w) // 4_000_000):  # bounds the memory
        log = _log_terms(y[part], log_w, mu, v)
        rows = np.arange(len(part))
        pair = np.minimum(log[rows, a[part]], log[rows, b[part]])
        leading[part] = pair > log.max(1) - 12.0 if len(part) else False
    return y[leading], width[leading]


def candidates(mixture, t: float, lo: float, hi: float) -> np.ndarray:
    """Sorted points of [lo, hi] that resolve every place where the Hessian can dip."""
    _, mu, variances = _components(mixture)
    v = variances + t
    bulk = (max(lo, mu.min() - 4 * math.sqrt(v.max())), min(hi, mu.max() + 4 * math.sqrt(v.max())))
    if bulk[0] >= bulk[1]:
        bulk = (lo, hi)
    y, width = crossings(mixture, t)
    octave = np.exp2(np.round(np.log2(width)))  # many components: one crossing per place and width is enough
    _, first = np.unique(np.stack([octave, np.round(y / octave)]), axis=1, return_index=True)
    y, width = y[first], width[first]
    points = [
        np.linspace(*bulk, 1001),
        (mu[:, None] + np.sqrt(v)[:, None] * np.linspace(-6, 6, 49)).ravel(),
        (y[:, None] + width[:, None] * np.linspace(-16, 16, 65)).ravel(),
        np.array([end for end in (lo, hi) if math.isfinite(end)]),
    ]
    points = np.unique(np.concatenate(points))
    return points[(points >= lo) & (points <= hi)]


def min_hessian(mixture, t: float, domain=None) -> tuple[float, float]:
    """``min_y hess F(y, t)`` and its place: the candidates, then a zoom into each of the twelve lowest dips."""
    y = candidates(mixture, t, *check_domain(domain))
    h = _hessian(mixture, y, t)
    padded = np.concatenate([[np.inf], h, [np.inf]])
    dips = np.flatnonzero((h <= padded[:-2]) & (h <= padded[2:]))
    dips = dips[np.argsort(h[dips], kind="stable")[:12]]
    left, right = y[np.maximum(dips - 1, 0)], y[np.minimum(dips + 1, len(y) - 1)]
    steps, rows = np.linspace(0, 1, 25), np.arange(len(dips))
    for _ in range(7):  # each round shrinks the bracket twelvefold; the value is then exact to rounding
        zoom = left[:, None] + (right - left)[:, None] * steps  # (dips, 25)
        values = _hessian(mixture, zoom.ravel(), t).reshape(zoom.shape)
        k = values.argmin(1)
        left, right = zoom[rows, np.maximum(k - 1, 0)], zoom[rows, np.minimum(k + 1, 24)]
    values, y = np.append(h, values[rows, k]), np.append(y, zoom[rows, k])
    best = int(values.argmin())
    return float(values[best]), float(y[best])


def threshold(mixture, domain=None) -> float:
    """Largest t at which ``min_y hess F(y, t)`` changes sign; 0.0 when it is never negative."""
    lo, hi = check_domain(domain)
    _, mu, variances = _components(mixture)
    smallest = variances.min()

    def dip(t: float) -> float:
        """The sign of min hess F, scaled to be of order one at every t; rounding counts as convex."""
        value = min_hessian(mixture, t, domain)[0] * (smallest + t)
        return 0.0 if abs(value) < 1e-13 else value

    if domain is None:
        ts = _whole_line_grid(mu, variances, dip)
        first = _first_negative_of_one_change(ts, dip)
    else:
        reach = np.maximum((mu - lo) ** 2, (mu - hi) ** 2)
        ts = _descending(max(float((reach - variances).max()), 0.0), smallest, 160)
        ts, first = _first_negative(ts, dip)
    if first is None:
        return 0.0
    above = ts[first - 1]
    if dip(above) <= 0:  # a root that sits on a grid point
        return float(above)
    return float(brentq(dip, ts[first], above, xtol=1e-14, rtol=1e-14, maxiter=200))


def _first_negative_of_one_change(ts: np.ndarray, dip) -> int | None:
    """Index of the first t (descending) where the dip is negative, if there is at most one change: bisection."""
    low, high = 0, len(ts) - 1
    if high == 0 or dip(ts[high]) >= 0:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if dip(ts[middle]) < 0 else (middle, high)
    return high


def _first_negative(ts: np.ndarray, dip) -> tuple[np.ndarray, int | None]:
    """The same without that assumption: a scan, with a closer look at the lowest dips; ts with these added."""
    values = [math.inf]  # the top is convex by construction
    for t in ts[1:]:
        values.append(dip(t))
        if values[-1] < 0:
            break
    ts, values = _refine_in_time(ts[: len(values)], np.array(values), dip)
    negative = np.flatnonzero(values < 0)
    return ts, int(negative[0]) if len(negative) else None


def _descending(top: float, smallest: float, count: int) -> np.ndarray:
    """From top to (nearly) 0, geometric in the smallest smoothed variance ``smallest + t``."""
    if top <= 0:
        return np.array([0.0])
    start = max(smallest, 1e-9 * top)
    ts = np.geomspace(start + top, start, count) - start
    ts[0], ts[-1] = top, 0.0 if smallest > 0 else 1e-12 * top
    return ts


def _whole_line_grid(mu: np.ndarray, variances: np.ndarray, dip) -> np.ndarray:
    """A descending grid whose first entry is convex on the whole line, found by doubling."""
    top = max(float(np.ptp(mu)) ** 2, float(np.ptp(variances)), 1e-12)
    for _ in range(200):
        if dip(top) > 0:
            return _descending(top, variances.min(), 48)
        top *= 2
    raise RuntimeError("no convex t found on the whole line")  # pragma: no cover


def _refine_in_time(ts: np.ndarray, values: np.ndarray, dip) -> tuple[np.ndarray, np.ndarray]:
    """Add the bottoms of the four lowest positive dips in t: a short non-convex spell is not to be missed."""
    extra = []
    bottoms = 1 + np.flatnonzero(values[1:-1] < np.minimum(values[:-2], values[2:]) - 1e-9)
    for k in bottoms[np.argsort(values[bottoms], kind="stable")[:4]]:
        left, right = ts[k + 1], ts[k - 1]
        for _ in range(24):
            a, b = right - GOLDEN * (right - left), left + GOLDEN * (right - left)
            left, right = (left, b) if dip(a) < dip(b) else (a, right)
        extra.append((left + right) / 2)
    if extra:
        ts = np.concatenate([ts, extra])
        values = np.concatenate([values, [dip(t) for t in extra]])
        order = np.argsort(-ts)
        ts, values = ts[order], values[order]
    return ts, values
