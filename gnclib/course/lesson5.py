"""Lesson 5, inverse problems and schedules: truths, random inputs, usual mistakes."""

from __future__ import annotations

import math

import torch

from gnclib.course.lesson import F64, Exercise, Heading, Wells, hints, slip, wide
from gnclib.course.lesson2 import log_schedule, schedule_mistakes

# --- 5.1 peak signal-to-noise ratio -------------------------------------------------------------------------------


def _draw_noisy(g):
    """Noisy images, at levels that differ, and their references."""
    x, noise = g.images()
    return x + wide(torch.logspace(-1.5, -0.3, len(x), **F64)) * noise, x.clamp(0.02, 0.93)


def _psnr(x, ref):
    """-10 log10 of the mean squared error, (B,)."""
    return -10 * (x - ref).square().mean((1, 2, 3)).log10()


def _decibels(peak):
    return 20 * torch.as_tensor(peak).log10()


PSNR = Exercise(
    Heading("5.1", "peak signal-to-noise ratio", points=1, minutes=5),
    solution=_psnr,
    draw=_draw_noisy,
    mistakes=hints(
        "the image was clipped to [0, 1] first, which flatters it: measure what the method returned",
        slip(_psnr, x=lambda x: x.clamp(0, 1)),
        "decibels are decimal: this is the natural logarithm",
        lambda x, ref: math.log(10) * _psnr(x, ref),
        "the squared error was summed, not averaged: the value would depend on the size of the image",
        lambda x, ref: -10 * (x - ref).square().sum((1, 2, 3)).log10(),
        "the peak is 1, the range of the data, not the brightest pixel of the reference",
        lambda x, ref: _psnr(x, ref) + _decibels(ref.amax((1, 2, 3))),
        "the peak is 1, the range of the data, not the brightest pixel of x: noise would raise the value",
        lambda x, ref: _psnr(x, ref) + _decibels(x.amax((1, 2, 3))),
        lambda x, ref: _psnr(x, ref) + _decibels(x.max()),
        "first the mean over the pixels, then the logarithm: decibels of single pixels are not averaged",
        lambda x, ref: -10 * (x - ref).square().log10().mean((1, 2, 3)),
        "the peak is 1: grey values are in [0, 1] here, not in 0..255",
        lambda x, ref: _psnr(x, ref) + _decibels(255.0),
        "the error was averaged over the batch, too: each image has a value of its own",
        lambda x, ref: -10 * (x - ref).square().mean().log10().expand(len(x)),
        "this is the mean absolute error: the S in MSE stands for squared",
        lambda x, ref: -20 * (x - ref).abs().mean((1, 2, 3)).log10(),
    ),
)

# --- 5.2 the proximal map for denoising ---------------------------------------------------------------------------


def _draw_prox(g):
    """v and y (B, 1, H, W), sigma and the step eta."""
    return *g.images(), g.number(0.05, 0.9), 10 ** g.number(-2, 0.5)


def _mean(v, y, a, b):
    return (a * v + b * y) / (a + b)


def _prox(v, y, sigma, eta):
    """The x with the least ||x - y||^2 / (2 sigma^2) + ||x - v||^2 / (2 eta)."""
    return _mean(v, y, sigma**2, eta)


_PROX_MISTAKES = hints(
    "sigma is a standard deviation, and the data term contains the variance",
    lambda v, y, sigma, eta: _mean(v, y, sigma, eta),
    "the measurement has twice its weight: a factor 1/2 was lost in D or in the distance to v",
    slip(_prox, eta=lambda eta: 2 * eta),
    "v has twice its weight: a factor 1/2 was lost in D or in the distance to v",
    slip(_prox, eta=lambda eta: eta / 2),
    "this is an explicit gradient step on D: the gradient must be taken at the RESULT of the step",
    lambda v, y, sigma, eta: v - eta * (v - y) / sigma**2 if sigma else y,
    "the weights do not sum to one: if v = y, the result must be y",
    lambda v, y, sigma, eta: sigma**2 * v + eta * y,
    "sigma is not used: the noisier the measurement, the less it should count",
    slip(_prox, sigma=1.0),
    "eta enters squared: by (x - v)/eta the distance from v has the weight 1/eta",
    slip(_prox, eta=lambda eta: eta**2),
    "the step enters inverted: a LONG step should end near the minimiser of D",
    slip(_prox, eta=lambda eta: 1 / eta),
)

DENOISING = Exercise(
    Heading("5.2", "proximal map for denoising", points=2, minutes=8),
    solution=_prox,
    draw=_draw_prox,
    mistakes=_PROX_MISTAKES
    | hints(
        "the weights are exchanged: what should a very small step eta do to v?",
        lambda v, y, sigma, eta: _mean(v, y, eta, sigma**2),
    ),
    laws=hints(
        "the result leaves the interval between v and y, which no proximal map of this D does",
        lambda p, v, y, sigma, eta: bool((torch.minimum(v, y) - 1e-9 <= p).all()),
        lambda p, v, y, sigma, eta: bool((p <= torch.maximum(v, y) + 1e-9).all()),
    ),
    factors=lambda v, y, sigma, eta: {"sigma^2": sigma**2, "eta": eta, "sigma^2 + eta": sigma**2 + eta},
)

# --- 5.3 the proximal map with missing pixels ---------------------------------------------------------------------


def _draw_mask(g):
    """v, y and a mask (B, 1, H, W), sigma, which is 0 (exact pixels) in every third round, and eta."""
    v, y = g.images()
    mask = g.rand(v.shape) < 0.4
    return v, y, mask, g.in_turn(1.0, 1.0, 0.0) * g.number(0.1, 0.9), 10 ** g.number(-1.5, 0.5)


def _where_known(formula):
    """``formula(v, y, sigma, eta)`` at the known pixels and v at the others."""
    return lambda v, y, mask, sigma, eta: torch.where(mask, formula(v, y, sigma, eta), v)


_masked = _where_known(_prox)

MASKED = Exercise(
    Heading("5.3", "proximal map with missing pixels", points=2, minutes=8),
    solution=_masked,
    draw=_draw_mask,
    mistakes=hints(
        "the mask is the wrong way round: True marks the pixels that were measured",
        slip(_masked, mask=torch.logical_not),
        "known pixels are taken over as they are, which is right for sigma = 0 only: these carry noise",
        lambda v, y, mask, sigma, eta: torch.where(mask, y, v),
        "the mask is not used: a missing pixel of y is not a measurement",
        lambda v, y, mask, sigma, eta: _prox(v, y, sigma, eta),
        "missing pixels are drawn towards zero, as if black had been measured there",
        lambda v, y, mask, sigma, eta: _prox(v, mask * y, sigma, eta),
        "missing pixels were put to mid grey, which is how to START: the prox leaves there what the prior did",
        lambda v, y, mask, sigma, eta: torch.where(mask, _prox(v, y, sigma, eta), 0.5),
        "missing pixels have become zero: where there is no data term, which x is closest to v?",
        lambda v, y, mask, sigma, eta: mask * _prox(v, y, sigma, eta),
        "the weights of v and y are exchanged: for sigma = 0 the known pixels must come out as measured",
        _where_known(lambda v, y, sigma, eta: _mean(v, y, eta, sigma**2)),
        "right for sigma > 0; for sigma = 0 the missing pixels, where y holds anything, were taken over, too",
        lambda v, y, mask, sigma, eta: _masked(v, y, mask, sigma, eta) if sigma else y,
    )
    | {hint: list(map(_where_known, formulas)) for hint, formulas in _PROX_MISTAKES.items()},
    laws=hints(
        "missing pixels must come out as they went in: there the data term is zero",
        lambda p, v, y, mask, sigma, eta: torch.allclose(p[~mask], v[~mask]),
        "for sigma = 0 the known pixels must come out exactly as measured",
        lambda p, v, y, mask, sigma, eta: sigma > 0 or torch.allclose(p[mask], y[mask]),
        "right for sigma = 0, wrong for sigma > 0: there the known pixels get the mean of v and y of exercise 5.2",
        lambda *a: False,
    ),
)

# --- 5.4 the GNC flow with a data term ----------------------------------------------------------------------------


def _draw_flow(g):
    """Gradient and proximal map, smoothings that need not fall and lengths of steps (I,), and a start (B, 1, H, W)."""
    wells, steps = Wells(g), g.integer(3, 6)
    t = 10 ** (-0.3 - 1.5 * g.rand(steps))
    return wells.grad, wells.prox, t, t * (0.3 + 0.6 * g.rand(steps)), wells.start


def _eq9(grad, prox, x, t, eta):
    return prox(x - eta * grad(x, t), eta)


def _flow(grad, prox, t, eta, x0, step=_eq9):
    """x_I of eq. (9), or of other steps."""
    x = x0
    for t_i, eta_i in zip(t.tolist(), eta.tolist(), strict=True):
        x = step(grad, prox, x, t_i, eta_i)
    return x


def _no_prox(grad, prox, x, t, eta):
    return x - eta * grad(x, t)


def _some_steps(which):
    """Only some of the steps, a slice of t and eta, or all in another order."""
    return slip(_flow, t=lambda t: t[which], eta=lambda eta: eta[which])


FLOW = Exercise(
    Heading("5.4", "GNC flow with a data term", points=2, minutes=10),
    solution=_flow,
    draw=_draw_flow,
    mistakes=hints(
        "the steps have the length t_i, eta_i is not used: t_i says how smooth, eta_i how far",
        lambda grad, prox, t, eta, x0: _flow(grad, prox, t, t, x0),
        "gradient and prox are two halves of ONE step: both have the length eta_i",
        slip(_flow, step=lambda grad, prox, x, t, eta: prox(x - eta * grad(x, t), t)),
        slip(_flow, step=lambda grad, prox, x, t, eta: prox(x - t * grad(x, t), eta)),
        "the gradient is taken at the smoothing eta_i: eta_i is the length of the step",
        lambda grad, prox, t, eta, x0: _flow(grad, prox, eta, eta, x0),
        "grad expects the variance t_i, not its root",
        slip(_flow, step=lambda grad, prox, x, t, eta: _eq9(grad, prox, x, t**0.5, eta)),
        "the step is t_i eta_i long: with both at hand t_i says only how smooth, and eta_i alone how far",
        slip(_flow, step=lambda grad, prox, x, t, eta: prox(x - t * eta * grad(x, t), eta)),
        "the gradient is always taken at the first t: the energy changes with every step",
        lambda grad, prox, t, eta, x0: _flow(lambda x, _: grad(x, float(t[0])), prox, t, eta, x0),
        "t_i and eta_i are exchanged: t_i says how smooth, eta_i how far",
        lambda grad, prox, t, eta, x0: _flow(grad, prox, eta, t, x0),
        "the flow climbs: an energy goes down AGAINST its gradient",
        slip(_flow, step=lambda grad, prox, x, t, eta: prox(x + eta * grad(x, t), eta)),
        "the data come first and the prior last: eq. (9) does it in the other order",
        slip(_flow, step=lambda grad, prox, x, t, eta: _no_prox(grad, prox, prox(x, eta), t, eta)),
        "the data term is missing: this is the flow of Algorithm 1",
        slip(_flow, step=_no_prox),
        "the prox is used once, at the end: it belongs into every step",
        lambda grad, prox, t, eta, x0: prox(_flow(grad, prox, t, eta, x0, _no_prox), eta[-1]),
        "the gradient is always taken at x_0: it belongs to the current x",
        lambda grad, prox, t, eta, x0: _flow(lambda x, t: grad(x0, t), prox, t, eta, x0),
        "the last step is missing",
        _some_steps(slice(-1)),
        "the first entry of the schedule is never used: Python counts from 0",
        _some_steps(slice(1, None)),
        "every step sets out from x_0, so that only the last one counts: it must start where the one before ended",
        _some_steps(slice(-1, None)),
        "only one step is taken: is the `return` inside the loop, or x never updated?",
        _some_steps(slice(1)),
        "the schedule runs backwards: from strong smoothing to weak",
        slip(_flow, t=lambda t: t.flip(0), eta=lambda eta: eta.flip(0)),
        "the schedule is sorted first: take the t_i and eta_i in the order in which they are given",
        lambda grad, prox, t, *a: _some_steps(t.argsort(descending=True))(grad, prox, t, *a),
        slip(_flow, t=lambda t: t.sort(descending=True).values),
    ),
)

# --- 5.5 a schedule and its clock ---------------------------------------------------------------------------------


def _draw_ends(g):
    """Two ends and a number of steps, which is 1 at times, though not in the first round."""
    last = 10 ** g.number(-4, -2)
    return last * 10 ** g.number(0.7, 3), last, g.in_turn(6, 1, 3, 9, 12, 2)


def _with_steps(t):
    """A schedule and by how much it falls in each step."""
    return t, t - torch.cat([t[1:], t.new_zeros(1)])


def _clock(first, last, steps):
    return _with_steps(log_schedule(first, last, steps))


SCHEDULE = Exercise(
    Heading("5.5", "a logarithmic schedule and its clock", points=2, minutes=10),
    solution=_clock,
    draw=_draw_ends,
    mistakes=schedule_mistakes(_with_steps)
    | hints(
        "the t_i are right, but eta_i = t_i is the paper's rule: here a step is as long as t falls",
        lambda *a: (log_schedule(*a),) * 2,
        "the t_i are right, the steps have the wrong sign: t falls, and lengths are positive",
        lambda *a: (log_schedule(*a), -_clock(*a)[1]),
    ),
    laws=hints(
        "the schedule rises: graduated non-convexity goes from strong smoothing to weak",
        lambda r, *a: bool((r[0].diff() <= 0).all()),
        "the t_i are not yet right: they start at t_first, end at t_last and have equal RATIOS",
        lambda r, *a: torch.allclose(r[0], log_schedule(*a)),
        "the t_i are right, but some step is zero or negative: after t_I comes t = 0, the last step is full",
        lambda r, *a: bool((r[1] > 0).all()),
        "the t_i are right, but the steps do not sum to t_1: which t comes after step i, and after step I?",
        lambda r, first, *a: abs(float(r[1].sum()) / first - 1) < 1e-5,
    ),
)

# --- 5.6 one step of Algorithm 2 ----------------------------------------------------------------------------------


def _draw_joint(g):
    """The functions of an energy with a data term, images, their t (B,), and the ends of its interval.

    The t are spread over the interval, both ends included, and in turn pass the lower end, the upper end, and move
    little; from an end even a short step leaves the interval.
    """
    t_min, t_max = 0.02, 0.3
    wells = Wells(g, rise=g.in_turn(0.9, -1.3, -0.1))
    b = len(wells.start)
    share = (torch.arange(b, **F64) + g.rand(b)) / b
    share[0], share[-1] = 0, 1
    return wells.grad, wells.dtau, wells.prox, wells.start, t_min * (t_max / t_min) ** share, t_min, t_max


def _image_step(grad, prox, x, t, wide=wide):
    return prox(x - wide(t) * grad(x, t), t)


def _tau_step(t, slope, n):
    """t after a step in tau = 0.5 log t, preconditioned by 2 n and not clipped."""
    return (t.log() - 2 * slope / (2 * n)).exp()


def _joint(
    grad,
    dtau,
    prox,
    x,
    t,
    t_min,
    t_max,
    n=lambda x: x[0].numel(),
    move=_tau_step,
    wide=wide,
    seen=lambda new, old: new,
):
    """One step in x, then one in tau at the image that is `seen`, the new one: x (B, 1, H, W) and t (B,)."""
    new = _image_step(grad, prox, x, t, wide)
    return new, move(t, dtau(seen(new, x), t), n(x)).clamp(t_min, t_max)


def _tau_first(grad, dtau, prox, x, t, t_min, t_max):
    t = _tau_step(t, dtau(x, t), x[0].numel()).clamp(t_min, t_max)
    return _image_step(grad, prox, x, t), t


def _at_tau(function):
    """The function asked at tau instead of t."""
    return lambda x, t: function(x, 0.5 * t.log())


JOINT = Exercise(
    Heading("5.6", "one step of Algorithm 2", points=3, minutes=15),
    solution=_joint,
    draw=_draw_joint,
    mistakes=hints(
        "the derivative in tau is taken at the old image: the two steps alternate, the second sees the first",
        slip(_joint, seen=lambda new, old: old),
        "t leaves the interval [t_min, t_max]: the step is a PROJECTED one, clipped AFTER it was made",
        slip(_joint, t_min=0.0, t_max=math.inf),
        "t is clipped at t_max only: it can leave the interval [t_min, t_max] at the lower end, too",
        slip(_joint, t_min=0.0),
        "t is clipped at t_min only: it can leave the interval [t_min, t_max] at the upper end, too",
        slip(_joint, t_max=math.inf),
        "tau was clipped to log t_min and log t_max: its ends need the 1/2, too",
        slip(_joint, t_min=lambda t: t**2, t_max=lambda t: t**2),
        "t moved before the image: the image has the first turn, with the old t",
        _tau_first,
        "grad and dtau want the variance t, not tau",
        slip(_joint, grad=_at_tau, dtau=_at_tau),
        "dtau(x, t) wants the variance t, not tau",
        slip(_joint, dtau=_at_tau),
        "the step in tau is twice as long as Newton's: see the second derivative of the Gaussian's energy",
        slip(_joint, n=lambda x: x[0].numel() / 2),
        "n counts the pixels of ONE image: this step depends on the size of the batch",
        slip(_joint, n=lambda x: x.numel()),
        "the step in tau is not preconditioned: R is a sum over pixels, and so is its derivative",
        slip(_joint, n=lambda x: 0.5),
        slip(_joint, n=lambda x: 1.0),
        "the step in tau climbs: it must go AGAINST the derivative",
        slip(_joint, dtau=lambda dtau: lambda x, t: -dtau(x, t)),
        "this step was made in log t, which is 2 tau: go from t to tau = 0.5 log t, step, and come back",
        slip(_joint, n=lambda x: 2 * x[0].numel()),
        "t itself was stepped with the derivative in tau: go from t to tau = 0.5 log t, step, and come back",
        slip(_joint, move=lambda t, slope, n: t - slope / (2 * n)),
        "t (B,) was broadcast along the columns of the images: give it the shape (B, 1, 1, 1)",
        slip(_joint, wide=lambda t: t),
    ),
    laws=hints(
        "grad(x, t) wants the variance t, not tau",
        lambda r, grad, dtau, prox, x, t, *a: (
            not torch.allclose(r[0], _image_step(_at_tau(grad), prox, x, t))
        ),
        "the image has not met its data: after the gradient step comes the prox",
        lambda r, grad, dtau, prox, x, t, *a: not torch.allclose(r[0], x - wide(t) * grad(x, t)),
        "the new image is not yet right: it is one step of eq. (9) with eta = t, image by image",
        lambda r, *a: torch.allclose(r[0], _joint(*a)[0]),
        "t leaves the interval [t_min, t_max]: was tau returned, or compared with the ends for t?",
        lambda r, *a: bool(((r[1] >= a[5] - 1e-12) & (r[1] <= a[6] + 1e-12)).all()),
        "the new image is right, the new t is not: check n, the 1/2 of tau and the ends of its interval",
        lambda *a: False,
    ),
    variants=hints(
        "with the paper's preconditioner read literally, 48 n for the 48 channels of R_1; its steps are 24 times as "
        "short, so that t has hardly moved at the end of the picture below",
        slip(_joint, n=lambda x: 24 * x[0].numel()),
    ),
)
