"""Lesson 6, the energy as a probability and the price of convexity: truths, random inputs, usual mistakes."""

from __future__ import annotations

import math

import torch
from scipy.optimize import isotonic_regression

from gnclib.course.lesson import F64, Exercise, Heading, hints, shaped, slip

# --- 6.1 Tweedie's second formula for a Gaussian --------------------------------------------------------------------


def _draw_gaussian(g):
    """Mean (d,) and covariance (d, d) of clean points, noisy points (B, d) with B > d, and t."""
    d = g.integer(2, 4)
    root = g.randn(d, d)
    cov = 0.4 * root @ root.T + 0.1 * torch.eye(d, **F64)
    return g.randn(d), cov, g.randn(g.integer(d + 1, d + 3), d), g.number(0.05, 0.8)


def _one(m):
    return torch.eye(len(m), **F64)


def _bend(m, cov, t):
    """The Hessian (C + t I)^-1 of the energy of noisy points."""
    return torch.linalg.inv(cov + t * _one(m))


def _moments(m, cov, y, t, bend=_bend, gain=1.0, centre=1.0, spread=lambda one, h, t: t * (one - t * h)):
    """E[x | y] (B, d) and Cov[x | y] (d, d) by Tweedie's two formulas, or with other ingredients."""
    h = bend(m, cov, t)
    return y - gain * t * (y - centre * m) @ h, spread(_one(m), h, t)


TWEEDIE = Exercise(
    Heading("6.1", "Tweedie's second formula for a Gaussian", points=2, minutes=12),
    solution=_moments,
    draw=_draw_gaussian,
    mistakes=hints(
        "the noise is missing: F(y, t) belongs to the noisy points, whose covariance is C + t I",
        slip(_moments, bend=lambda m, cov, t: torch.linalg.inv(cov)),
        "the noise was added with its standard deviation: t is a variance already",
        slip(_moments, bend=lambda m, cov, t: _bend(m, cov, t**0.5)),
        "t was added to all entries of C: noise of two coordinates is independent, t I has zeros off the diagonal",
        slip(_moments, bend=lambda m, cov, t: torch.linalg.inv(cov + t)),
        "the entries of C + t I were inverted one by one: the Hessian is the inverse of the matrix",
        slip(_moments, bend=lambda m, cov, t: 1 / (cov + t * _one(m))),
        "C + t I is the covariance of y; the Hessian of its energy is the inverse of it",
        slip(_moments, bend=lambda m, cov, t: cov + t * _one(m)),
        "I is the identity matrix: t - t^2 H puts t at all entries of the covariance, also off the diagonal",
        slip(_moments, spread=lambda one, h, t: t - t**2 * h),
        "I - t H is the derivative of the mean in y, without unit: the covariance is t times it",
        slip(_moments, spread=lambda one, h, t: one - t * h),
        "inside of the bracket the Hessian lacks its t: I has no unit, and H has that of 1/t",
        slip(_moments, spread=lambda one, h, t: t * (one - h)),
        "the covariance has the wrong sign inside: where the energy is steep, the noise is SMALLER afterwards",
        slip(_moments, spread=lambda one, h, t: t * (one + t * h)),
        "t^2 H is by how much the covariance falls below that of the noise, t I: subtract it",
        slip(_moments, spread=lambda one, h, t: t**2 * h),
        "the inverse of the Hessian is the covariance of y, before it was seen; wanted is that of x, after",
        slip(_moments, spread=lambda one, h, t: torch.linalg.inv(h)),
        "this is the covariance of x before y was seen: what the measurement tells is missing",
        lambda m, cov, y, t: (_moments(m, cov, y, t)[0], cov),
        "the mean moves away from m: Tweedie's step goes down the energy",
        slip(_moments, gain=-1.0),
        "m is missing in the gradient: the energy of noisy points has its minimum at m, not at 0",
        slip(_moments, centre=0.0),
        "the gradient lacks its t: Tweedie's first formula is y - t grad F",
        lambda m, cov, y, t: (_moments(m, cov, y, t, gain=1 / t)[0], _moments(m, cov, y, t)[1]),
    ),
    laws=hints(
        "a covariance is symmetric, and yours is not",
        lambda r, *a: torch.allclose(r[1], r[1].T),
        "the mean is not yet right: y - t grad F(y, t), with the gradient of a quadratic function",
        lambda r, *a: torch.allclose(r[0], _moments(*a)[0]),
        "the mean is right, the covariance is not: t (I - t H) with the Hessian H of F(., t)",
        lambda *a: False,
    ),
    by_hand=True,
)

# --- 6.2 Stein's estimate of the error ------------------------------------------------------------------------------


def _draw_coupled(g):
    """grad and hvp of an energy that couples neighbours, images (B, 1, H, W), t, and random signs (K, B, 1, H, W)."""
    y, _ = g.images()
    b, s2, count = g.number(-1, 1), g.number(0.05, 0.5), g.integer(3, 5)

    def beside(v):
        return 2 * v - v.roll(1, -1) - v.roll(-1, -1)

    def grad(y, t):
        return (y - 0.5) / (s2 + shaped("grad(y, t)", t, ())) + b * torch.sin(3 * y) + beside(y)

    def hvp(y, t, v):
        if v.shape != y.shape:
            raise TypeError(f"hvp(y, t, v) wants v shaped like y, {tuple(y.shape)}, has got {tuple(v.shape)}")
        return v / (s2 + float(t)) + 3 * b * torch.cos(3 * y) * v + beside(v)

    return grad, hvp, y, g.number(0.05, 0.6), torch.sign(g.randn(count, *y.shape))


def _sum(x):
    return x.sum((-3, -2, -1))


def _trace(hvp, y, t, probes, term=torch.mul):
    """(B,), the mean over the probes of <v, H v>, or of the sum of another term(v, H v)."""
    return torch.stack([_sum(term(v, hvp(y, t, v))) for v in probes]).mean(0)


def _units(probes):
    """The n unit images as probes, of the length of a probe: the trace is exact."""
    shape = probes.shape[1:]
    n = shape[2] * shape[3]
    return n**0.5 * torch.eye(n, **F64).reshape(n, 1, *shape[1:]).expand(n, *shape)


def _sure(
    grad, hvp, y, t, probes, removed=lambda t: t, noise=-1.0, pixels=lambda y: y[0].numel(), trace=_trace,
    spread=lambda n, t, trace: 2 * t * (n - t * trace),
):  # fmt: skip
    """||t grad R||^2 - n t + 2 t (n - t tr H), (B,), or with other terms."""
    n = pixels(y)
    return _sum((removed(t) * grad(y, t)) ** 2) + noise * n * t + spread(n, t, trace(hvp, y, t, probes))


SURE = Exercise(
    Heading("6.2", "the error without the clean image (SURE)", points=3, minutes=15),
    solution=_sure,
    draw=_draw_coupled,
    mistakes=hints(
        "n t has the wrong sign: try R = 0, which removes nothing, so that the error is n t = 0 - n t + 2 n t",
        slip(_sure, noise=1.0),
        "- n t is missing: try R = 0, which removes nothing, so that the error is n t",
        slip(_sure, noise=0.0),
        "the last term lacks its 2: try R = 0, which removes nothing, so that the error is n t",
        slip(_sure, spread=lambda n, t, trace: t * (n - t * trace)),
        "the last term lacks the noise variance: it is 2 t times the divergence",
        slip(_sure, spread=lambda n, t, trace: 2 * (n - t * trace)),
        "inside of the bracket the trace lacks its t: the divergence of y - t grad R is n - t tr H",
        slip(_sure, spread=lambda n, t, trace: 2 * t * (n - trace)),
        "the divergence has the wrong sign inside: the mean is y MINUS t grad R",
        slip(_sure, spread=lambda n, t, trace: 2 * t * (n + t * trace)),
        "t tr H is the divergence of what was removed; wanted is that of what is left, n - t tr H",
        slip(_sure, spread=lambda n, t, trace: 2 * t**2 * trace),
        "with the bracket multiplied out the estimate is ||t grad R||^2 + n t - 2 t^2 tr H: check the sign of n t",
        slip(_sure, spread=lambda n, t, trace: -2 * t**2 * trace),
        "the divergence is missing: ||y - x_hat||^2 - n t alone rewards a denoiser that hands back y",
        slip(_sure, spread=lambda n, t, trace: 0.0),
        "this is what the energy believes, the trace of Cov[x | y]; SURE asks how much was really removed, too",
        slip(_sure, removed=lambda t: 0.0, noise=0.0, spread=lambda n, t, trace: t * (n - t * trace)),
        "the denoiser removes t grad R: in the first term t is missing",
        slip(_sure, removed=lambda t: 1.0),
        "t is the noise variance, not the standard deviation: do not take its root",
        slip(_sure, t=math.sqrt),
        "the probes were added up: the trace is estimated by their MEAN",
        slip(_sure, trace=lambda *a: len(a[-1]) * _trace(*a)),
        "only the first probe was used: average over all of them",
        slip(_sure, probes=lambda v: v[:1]),
        "the mean over the pixels was taken for the trace, which is the sum of v times H v over all pixels",
        slip(_sure, trace=lambda *a: _trace(*a) / a[1][0].numel()),
        "H v was summed up: multiply by v once more, the trace is the mean of <v, H v>",
        slip(_sure, trace=slip(_trace, term=lambda v, hv: hv)),
        "with an image of ones <v, H v> sums up ALL entries of the Hessian: random signs cancel those off the diagonal",
        slip(_sure, probes=torch.ones_like),
        "||H v||^2 estimates the trace of H^2: multiply H v by v, not by itself",
        slip(_sure, trace=slip(_trace, term=lambda v, hv: hv**2)),
        "n counts the pixels of ONE image: each image has an estimate of its own",
        slip(_sure, pixels=torch.numel),
        "the Hessian is taken at the denoised image: it belongs to y, as the gradient does",
        lambda grad, hvp, y, t, v: _sure(grad, lambda y, t, v: hvp(y - t * grad(y, t), t, v), y, t, v),
        "this trace is exact, with a product for each of the n pixels: use the probes, an image has many pixels",
        slip(_sure, probes=_units),
    ),
    factors=lambda grad, hvp, y, t, probes: {"the number of pixels n": y[0].numel()},
)

# --- 6.3 coverage ---------------------------------------------------------------------------------------------------


def _draw_intervals(g):
    """Clean images, means and standard deviations (B, 1, H, W), which are right on average or not, and levels (L,)."""
    x, _ = g.images()
    std = 0.05 + 0.4 * g.rand(*x.shape)
    mean = x + g.in_turn(0.7, 1.0, 1.5) * std * g.randn(*x.shape)
    return x, mean, std, 0.2 + 0.75 * g.rand(g.integer(5, 7))


def _reach(levels):
    """Numbers of standard deviations within which a Gaussian has these probabilities."""
    return torch.special.ndtri((1 + levels) / 2)


def _coverage(x, mean, std, levels, reach=_reach, off=lambda x, mean: (x - mean).abs(), hit=torch.le):
    """The share of pixels whose error is within the interval of each level, (L,)."""
    return hit(off(x, mean)[..., None], reach(levels) * std[..., None]).double().flatten(0, -2).mean(0)


COVERAGE = Exercise(
    Heading("6.3", "coverage", points=2, minutes=10),
    solution=_coverage,
    draw=_draw_intervals,
    mistakes=hints(
        "the quantile leaves 1 - p on ONE side; an interval leaves (1 - p)/2 on either: take the quantile of (1 + p)/2",
        slip(_coverage, reach=torch.special.ndtri),
        slip(_coverage, reach=lambda p: torch.special.ndtri(p).abs()),
        "this interval leaves p OUTSIDE: p is the probability inside, take the quantile of (1 + p)/2",
        slip(_coverage, reach=lambda p: torch.special.ndtri(1 - p / 2)),
        "a probability is no number of standard deviations: for 0.9 the interval reaches 1.645 of them",
        slip(_coverage, reach=lambda p: p),
        "erfinv belongs to exp(-u^2), a Gaussian has exp(-u^2 / 2): a factor sqrt(2) is missing",
        slip(_coverage, reach=torch.erfinv),
        "the interval is half as wide as it should be: it reaches so far to EITHER side of the mean",
        slip(_coverage, reach=lambda p: _reach(p) / 2),
        "the interval is twice as wide as it should be: its whole width is twice its reach",
        slip(_coverage, reach=lambda p: 2 * _reach(p)),
        "all intervals have the same reach: each level has its own, also in one call",
        slip(_coverage, levels=lambda p: p[:1].expand(len(p))),
        "errors far below the mean are counted, too: a distance needs an absolute value",
        slip(_coverage, off=lambda x, mean: x - mean),
        slip(_coverage, off=lambda x, mean: mean - x),
        "the squared error is compared with a number of standard deviations: take its root",
        slip(_coverage, off=lambda x, mean: (x - mean) ** 2),
        "the standard deviations were squared: std is none of a variance",
        slip(_coverage, std=torch.square),
        "std is a standard deviation already: do not take its root",
        slip(_coverage, std=torch.sqrt),
        "all pixels got the same interval: each one has a standard deviation of its own",
        slip(_coverage, std=lambda std: std.mean().expand_as(std)),
        "the standard deviations are not used: the reach is so many of them",
        slip(_coverage, std=torch.ones_like),
        "the intervals are made from the errors themselves, and would be right for any std: they have to come from std",
        lambda x, mean, std, levels: _coverage(x, mean, (x - mean).std().expand_as(std), levels),
        "this is the share of the pixels OUTSIDE of the intervals",
        slip(_coverage, hit=torch.gt),
        "these are the levels that were promised: count how many errors keep the promise",
        lambda x, mean, std, levels: levels,
    ),
    laws=hints(
        "a share of all pixels is a multiple of 1/(B H W); yours is not",
        lambda c, x, *a: torch.allclose(x.numel() * c, (x.numel() * c).round(), atol=1e-4),
    ),
    factors=lambda x, mean, std, levels: {"the number of pixels": x.numel(), "the number of images": len(x)},
)

# --- 6.4 the closest convex potential -------------------------------------------------------------------------------


def _draw_wavy(g):
    """Spline coefficients (N,), N odd, of a potential that is about a parabola, and weights (N - 1,)."""
    count = 2 * g.integer(4, 8) + 1
    u = torch.arange(count, **F64) - count // 2
    return 0.08 * u**2 + g.randn(count), 0.1 + g.rand(count - 1)


def _rising(s, w):
    """The rising sequence with the least sum of w (rising - s)^2."""
    return torch.from_numpy(isotonic_regression(s.numpy(), weights=w.numpy()).x)


def _closest(a, w, slopes=_rising, keep=lambda a: len(a) // 2):
    """The convex coefficients whose differences are closest to those of a, and the middle one that of a."""
    b = torch.cat([torch.zeros(1, **F64), slopes(a.diff(), w).cumsum(0)])
    return b - b[keep(a)] + a[keep(a)]


def _pairs_once(s, w):
    """Neighbours in the wrong order pooled in one pass, without looking back."""
    s = s.clone()
    for i in range(len(s) - 1):
        if s[i] > s[i + 1]:
            s[i : i + 2] = (w[i] * s[i] + w[i + 1] * s[i + 1]) / (w[i] + w[i + 1])
    return s


CONVEX = Exercise(
    Heading("6.4", "the closest convex potential", points=3, minutes=15),
    solution=_closest,
    draw=_draw_wavy,
    mistakes=hints(
        "the weights w are not used: a pooled slope is the WEIGHTED mean of its block",
        slip(_closest, w=torch.ones_like),
        "the weights enter squared: w itself stands in the sum of squares",
        slip(_closest, w=torch.square),
        "the weights enter inverted: a large weight means that this slope should change little",
        slip(_closest, w=torch.reciprocal),
        "this is the running maximum of the slopes: it rises, but never lowers a slope, and the closest one does both",
        slip(_closest, slopes=lambda s, w: s.cummax(0).values),
        "this is the running minimum from the right: it rises, but never lifts a slope, and the closest one does both",
        slip(_closest, slopes=lambda s, w: s.flip(0).cummin(0).values.flip(0)),
        "the slopes were sorted: each one should stay near its own place, not move to another",
        slip(_closest, slopes=lambda s, w: s.sort().values),
        "negative bends were set to zero: that is convex, but all slopes to the right of each are tilted with it",
        slip(_closest, slopes=lambda s, w: torch.cat([s[:1], s.diff().clamp(min=0)]).cumsum(0)),
        "neighbours were pooled once from left to right: a pooled block may be below the one before it, look back",
        slip(_closest, slopes=_pairs_once),
        "the slopes fall: this is the closest CONCAVE potential",
        slip(_closest, slopes=lambda s, w: -_rising(-s, w)),
        "the first coefficient is kept: it is the middle one that should stay",
        slip(_closest, keep=lambda a: 0),
        "the coefficients themselves were made to rise: convex means that their DIFFERENCES rise",
        lambda a, w: _rising(a, torch.ones_like(a)),
        "nothing was changed: some of the differences of a fall",
        lambda a, w: a,
    ),
    laws=hints(
        "not convex: some second difference of the result is negative",
        lambda b, *a: bool((b.diff(n=2) >= -1e-9).all()),
        "the middle coefficient has moved: add a constant in the end that brings it back to that of a",
        lambda b, a, w: abs(float(b[len(a) // 2] - a[len(a) // 2])) < 1e-8,
        "convex, but there is a closer one: each block of pooled slopes has the weighted mean of the slopes in it",
        lambda *a: False,
    ),
)
