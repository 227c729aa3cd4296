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
import torch
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
    y, first = np.unique(y, return_index=True)
    points = [
        np.linspace(*bulk, 1001),
        (mu[:, None] + np.sqrt(v)[:, None] * np.linspace(-6, 6, 49)).ravel(),
        (y[:, None] + width[first][:, None] * np.linspace(-16, 16, 65)).ravel(),
        np.array([end for end in (lo, hi) if math.isfinite(end)]),
    ]
    points = np.unique(np.concatenate(points))
    return points[(points >= lo) & (points <= hi)]


def _hessian(mixture, y: np.ndarray, t: float) -> np.ndarray:
    with torch.no_grad():
        parts = np.array_split(y, 1 + len(y) * len(mixture.weights) // 2_000_000)
        return np.concatenate([mixture.hessian(torch.from_numpy(part), t).numpy() for part in parts])


def min_hessian(mixture, t: float, domain=None, refine: int = 12) -> tuple[float, float]:
    """``min_y hess F(y, t)`` and its place: candidates, then golden section about the `refine` lowest dips."""
    y = candidates(mixture, t, *check_domain(domain))
    h = _hessian(mixture, y, t)
    padded = np.concatenate([[np.inf], h, [np.inf]])
    dips = np.flatnonzero((h <= padded[:-2]) & (h <= padded[2:]))
    dips = dips[np.argsort(h[dips])[:refine]]
    left, right = y[np.maximum(dips - 1, 0)], y[np.minimum(dips + 1, len(y) - 1)]
    inner, outer = right - GOLDEN * (right - left), left + GOLDEN * (right - left)
    h_inner, h_outer = np.split(_hessian(mixture, np.concatenate([inner, outer]), t), 2)
    for _ in range(36):  # shrinks each bracket by 3e-8; the minimum value is then exact to rounding
        down = h_inner < h_outer  # the minimum lies in [left, outer]
        left, right = np.where(down, left, inner), np.where(down, outer, right)
        fresh = np.where(down, right - GOLDEN * (right - left), left + GOLDEN * (right - left))
        h_fresh = _hessian(mixture, fresh, t)
        inner, outer = np.where(down, fresh, outer), np.where(down, inner, fresh)
        h_inner, h_outer = np.where(down, h_fresh, h_outer), np.where(down, h_inner, h_fresh)
    values = np.concatenate([h, h_inner, h_outer])
    best = int(values.argmin())
    return float(values[best]), float(np.concatenate([y, inner, outer])[best])


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
    else:
        reach = np.maximum((mu - lo) ** 2, (mu - hi) ** 2)
        top = float((reach - variances).max())
        ts = _descending(max(top, 0.0), smallest, 160)
    values = np.array([math.inf] + [dip(t) for t in ts[1:]])
    if domain is not None:
        ts, values = _refine_in_time(ts, values, dip)
    negative = np.flatnonzero(values < 0)
    if len(negative) == 0:
        return 0.0
    k = negative[0]
    above = ts[k - 1]
    if dip(above) <= 0:  # a root that sits on a grid point
        return float(above)
    return float(brentq(dip, ts[k], above, xtol=1e-14, rtol=1e-14, maxiter=200))


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
    """Add the bottoms of positive dips in t, so that a short non-convex spell between grid points is not missed."""
    negative = np.flatnonzero(values < 0)
    last = negative[0] if len(negative) else len(ts)
    extra = []
    for k in range(1, min(last, len(ts) - 1)):
        if values[k] <= values[k - 1] and values[k] <= values[k + 1]:
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
