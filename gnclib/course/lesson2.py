"""Lesson 2, Tweedie's formula and GNC flow: the truths, the random inputs and the usual mistakes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from gnclib.course.engine import Exercise, Law, Mistake
from gnclib.course.lesson1 import F64, draw_mixture
from gnclib.gmm import GaussianMixture
from gnclib.restore import flow as solvers
from gnclib.restore import schedules


def _number(g: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=g, **F64))


# --- 2.1 Tweedie --------------------------------------------------------------------------------------------------


def _grad_points(g: torch.Generator) -> tuple:
    """The gradient of a random smoothed energy on the line, points (B,) and t."""
    points = 3 * torch.rand(5, generator=g, **F64) - 1.5
    return GaussianMixture(*draw_mixture(g)).grad, points, _number(g, 0.05, 0.8)


TWEEDIE = Exercise(
    "2.1",
    "the MMSE estimate from a gradient",
    points=1,
    minutes=5,
    solution=lambda grad, y, t: y - t * grad(y, t),
    draw=_grad_points,
    mistakes=(
        Mistake(
            lambda grad, y, t: y + t * grad(y, t),
            "the sign is wrong: this step goes uphill, towards more noise; the energy is MINUS log f",
        ),
        Mistake(
            lambda grad, y, t: y - t**0.5 * grad(y, t),
            "the gradient is multiplied by sigma: Tweedie's formula has the variance t there",
        ),
        Mistake(
            lambda grad, y, t: y - grad(y, t),
            "a gradient is not a distance: it must be multiplied by the noise variance",
        ),
        Mistake(
            lambda grad, y, t: t * grad(y, t),
            "this is the noise that Tweedie's formula finds in y: take it away from y",
        ),
        Mistake(
            lambda grad, y, t: y - t * grad(y, t**0.5),
            "grad expects the noise variance t as its second argument, not sigma",
        ),
    ),
    factors=lambda grad, y, t: {"t": t, "sigma": t**0.5},
)


# --- 2.2 the posterior mean ---------------------------------------------------------------------------------------


def _spatial_mixture(g: torch.Generator) -> tuple:
    """A mixture in R^d, d = 2 to 4, some components being points; the last y lies far away from all means."""
    w, _, v = draw_mixture(g)
    d = int(torch.randint(2, 5, (1,), generator=g))
    v[0] = 0.0
    y = 1.5 * torch.randn(6, d, generator=g, **F64)
    y[-1] *= 60 / y[-1].norm()
    return w, torch.randn(len(w), d, generator=g, **F64), v, y, _number(g, 0.05, 0.8)


def _log_terms(w, mu, s, y, power):
    return w.log() - 0.5 * ((y[:, None] - mu).square().sum(2) / s + power * s.log())


def _estimate(mu, v, y, t):
    """E[X | Y = y, component i], (B, K, d)."""
    return (t * mu + v[:, None] * y[:, None]) / (v + t)[:, None]


def _mix(log_terms, estimate):
    return (log_terms.softmax(1)[..., None] * estimate).sum(1)


def _terms(w, mu, v, y, t):
    return _log_terms(w, mu, v + t, y, mu.shape[1])


POSTERIOR = Exercise(
    "2.2",
    "the posterior mean of a mixture",
    points=3,
    minutes=15,
    solution=lambda w, mu, v, y, t: GaussianMixture(w, mu, v).denoise(y, t),
    draw=_spatial_mixture,
    mistakes=(
        Mistake(
            lambda w, mu, v, y, t: _mix(
                _terms(w, mu, v, y, t), (v[:, None] * mu + t * y[:, None]) / (v + t)[:, None]
            ),
            "v_i and t have changed places: with little noise the observation y is trusted, not the mean mu_i",
        ),
        Mistake(
            lambda w, mu, v, y, t: _mix(_terms(w, mu, v, y, t), mu),
            "this averages the means mu_i: it is right only for components that are points (v_i = 0); the others also "
            "listen to y",
        ),
        Mistake(
            lambda w, mu, v, y, t: (w[:, None] * _estimate(mu, v, y, t)).sum(1),
            "the components are averaged with their weights w_i: having seen y, use the responsibilities",
        ),
        Mistake(
            lambda w, mu, v, y, t: _estimate(mu, v, y, t).mean(1),
            "the components are averaged with equal weights: having seen y, use the responsibilities",
        ),
        Mistake(
            lambda w, mu, v, y, t: _mix(_log_terms(w, mu, v + t, y, 1), _estimate(mu, v, y, t)),
            "the normal density in R^d has the factor s^(-d/2), not s^(-1/2)",
        ),
        Mistake(
            lambda w, mu, v, y, t: _mix(_log_terms(w, mu, v + t, y, 0), _estimate(mu, v, y, t)),
            "the factor (v_i + t)^(-d/2) of the normal density is missing in the responsibilities",
        ),
        Mistake(
            lambda w, mu, v, y, t: _mix(_terms(torch.ones_like(w), mu, v, y, t), _estimate(mu, v, y, t)),
            "the weights w_i are missing in the responsibilities",
        ),
    ),
    laws=(
        Law(
            lambda x, w, mu, v, y, t: bool(
                (x <= torch.maximum(y, mu.amax(0)) + 1e-6).all()
                and (x >= torch.minimum(y, mu.amin(0)) - 1e-6).all()
            ),
            "a posterior mean is an average of y and the means mu_i and lies between them; yours does not",
        ),
    ),
    factors=lambda w, mu, v, y, t: {"t": t, "sigma": t**0.5, "K": float(len(w))},
)


# --- 2.3 the schedule ---------------------------------------------------------------------------------------------


def _ends(g: torch.Generator) -> tuple:
    """Two ends and a number of steps, which is 1 at times."""
    steps = max(1, int(torch.randint(-1, 9, (1,), generator=g)))
    return _number(g, 0.5, 4.0), 10 ** _number(g, -4, -1), steps


def _open_end(t_first, t_last, steps, shift):
    ratio = (t_last / t_first) ** (1 / steps)
    return t_first * ratio ** (torch.arange(steps, **F64) + shift)


SCHEDULE = Exercise(
    "2.3",
    "a logarithmic schedule",
    points=2,
    minutes=8,
    solution=schedules.log_schedule,
    draw=_ends,
    mistakes=(
        Mistake(
            lambda a, b, n: torch.linspace(a, b, n, **F64),
            "these values have equal differences: that is a linear schedule, wanted are equal ratios",
        ),
        Mistake(
            lambda a, b, n: torch.linspace(a**0.5, b**0.5, n, **F64) ** 2,
            "these are equally spaced in sigma: space log t equally",
        ),
        Mistake(
            lambda a, b, n: torch.linspace(math.log(a), math.log(b), n, **F64),
            "these are the values of log t: you want t itself",
        ),
        Mistake(
            lambda a, b, n: torch.logspace(math.log(a), math.log(b), n, **F64),
            "torch.logspace takes exponents of 10: natural logarithms do not fit to it",
        ),
        Mistake(
            lambda a, b, n: _open_end(a, b, n, 0),
            "the last value is not t_last: between n values there are n - 1 ratios",
        ),
    ),
    laws=(  # those that hold of themselves for n = 1 come first
        Law(
            lambda t, a, b, n: n == 1 or not torch.allclose(t, schedules.log_schedule(a**0.5, b**0.5, n)),
            "these are standard deviations: the schedule consists of variances t",
        ),
        Law(
            lambda t, a, b, n: n == 1 or bool((t.diff() < 0).any()),
            "the schedule rises: the largest value comes first",
        ),
        Law(
            lambda t, a, b, n: n == 1 or abs(float(t[0]) - a) < 1e-6,
            "the first value is not t_first: which exponent belongs to the first of several values?",
        ),
        Law(lambda t, *a: bool((t.diff() < 0).all()), "the schedule must fall"),
        Law(
            lambda t, a, b, n: n == 1 or abs(float(t[-1]) - b) < 1e-6 * b,
            "the last value is not t_last: both ends belong to the schedule",
        ),
        Law(
            lambda t, a, b, n: n > 1 or abs(float(t[0]) - a) < 1e-6,
            "with one step only (I = 1) the schedule is t_first alone",
        ),
    ),
)


# --- 2.4 GNC flow and 2.5 DDIM ------------------------------------------------------------------------------------


def _flow_input(g: torch.Generator) -> tuple:
    """A gradient, a falling schedule (I,) and starts (B,)."""
    grad, start, t = _grad_points(g)
    steps = int(torch.randint(3, 7, (1,), generator=g))
    ratios = 0.2 + 0.6 * torch.rand(steps, generator=g, **F64)
    return grad, 4 * t * ratios.cumprod(0), start


def _walk(step, schedule, y) -> Tensor:
    """All iterates (I + 1, B) of y <- step(y, i, t_i)."""
    path = [y]
    for i, t in enumerate(schedule.tolist()):
        path.append(step(path[-1], i, t))
    return torch.stack(path)


def _gnc(grad, schedule, y):
    states = solvers.gnc_flow(SimpleNamespace(grad=grad), schedule, start=y)
    return torch.stack([y, *(state.x for state in states)])


def _next(schedule, i, after_last=None):
    return float(schedule[i + 1]) if i + 1 < len(schedule) else after_last


GNC = Exercise(
    "2.4",
    "the GNC flow",
    points=3,
    minutes=12,
    solution=_gnc,
    draw=_flow_input,
    mistakes=(
        Mistake(
            lambda grad, ts, y: _walk(lambda x, i, t: y - t * grad(y, t), ts, y),
            "every step sets out from the start: step i sets out from the iterate of step i - 1",
        ),
        Mistake(
            lambda grad, ts, y: _gnc(grad, ts, y)[-1:].expand(len(ts) + 1, -1),
            "all rows are the last iterate: the same tensor is stored again and again and changed in place; store "
            "copies, or write y = y - ... instead of y -= ...",
        ),
        Mistake(
            lambda grad, ts, y: _walk(lambda x, i, t: x + t * grad(x, t), ts, y),
            "the sign is wrong: the flow goes down the energy",
        ),
        Mistake(
            lambda grad, ts, y: _walk(lambda x, i, t: x - t**0.5 * grad(x, t), ts, y),
            "the step size is sigma_i; it is the variance t_i",
        ),
        Mistake(
            lambda grad, ts, y: _walk(lambda x, i, t: x - t * grad(x, float(ts[0])), ts, y),
            "the gradient is always taken at the first t: the energy changes with every step",
        ),
        Mistake(
            lambda grad, ts, y: _walk(lambda x, i, t: x - float(ts[0]) * grad(x, t), ts, y),
            "the step size is always the first t: it falls together with the smoothing",
        ),
        Mistake(
            lambda grad, ts, y: _walk(lambda x, i, t: x - t * grad(x, _next(ts, i, t)), ts, y),
            "step size t_i, but the gradient is taken at t_(i+1): both belong to the same t",
        ),
        Mistake(
            lambda grad, ts, y: _walk(lambda x, i, t: x - t * grad(x, t), ts.flip(0), y),
            "the schedule is run backwards: begin with its first, largest value",
        ),
    ),
    laws=(
        Law(
            lambda path, grad, ts, y: torch.equal(torch.as_tensor(path[0]).to(y), y),
            "the first row of the path is the start itself",
        ),
        Law(
            lambda path, grad, ts, y: torch.allclose(path[1], y - ts[0] * grad(y, float(ts[0]))),
            "the first step is wrong already: from y_0 with t_1, the first entry of the schedule",
        ),
        Law(lambda *a: False, "the first step is right, a later one is not: what changes from step to step?"),
    ),
)


def _ddim(grad, schedule, y):
    states = solvers.ddim_flow(SimpleNamespace(grad=grad), schedule, y)
    return torch.stack([y, *(state.x for state in states)])


def _shares(ts, share):
    """A walk with the part share(t_i, t_(i+1)) of the step t_i grad F(., t_i), t_(I+1) = 0."""
    return lambda grad, y: _walk(lambda x, i, t: x - share(t, _next(ts, i, 0.0)) * t * grad(x, t), ts, y)


DDIM = Exercise(
    "2.5",
    "deterministic DDIM",
    points=3,
    minutes=12,
    solution=_ddim,
    draw=_flow_input,
    mistakes=(
        Mistake(
            _gnc,
            "these are full steps, the GNC flow: DDIM goes only the part 1 - sigma_(i+1)/sigma_i of each",
        ),
        Mistake(
            lambda grad, ts, y: _shares(ts, lambda t, s: 1 - s / t)(grad, y),
            "the part is made of the variances t; it is made of the standard deviations sigma = sqrt(t)",
        ),
        Mistake(
            lambda grad, ts, y: _shares(ts, lambda t, s: (s / t) ** 0.5)(grad, y),
            "sigma_(i+1)/sigma_i is the part of the noise that stays; the step removes the rest",
        ),
        Mistake(
            lambda grad, ts, y: _shares(ts, lambda t, s: 1 - (s / t) ** 0.5 if s else 0.0)(grad, y),
            "the last step is missing: after it no noise is left, sigma_(I+1) = 0",
        ),
        Mistake(
            lambda grad, ts, y: _shares(ts, lambda t, s: (1 - (s / t) ** 0.5) / t)(grad, y),
            "the part must be taken of the full step t_i grad F, you have forgotten t_i",
        ),
        Mistake(
            lambda grad, ts, y: _shares(ts, lambda t, s: (s / t) ** 0.5 - 1)(grad, y),
            "the sign is wrong: DDIM removes noise, it goes down the energy",
        ),
        Mistake(
            lambda grad, ts, y: _shares(ts, lambda t, s: 1 - t**0.5 + s**0.5)(grad, y),
            "a difference of two sigmas is no part of a step: relate it to sigma_i",
        ),
    ),
    laws=(
        Law(
            lambda path, grad, ts, y: torch.equal(torch.as_tensor(path[0]).to(y), y),
            "the first row of the path is the start itself",
        ),
        Law(
            lambda path, grad, ts, y: torch.allclose(path[1], _ddim(grad, ts, y)[1]),
            "the first step is wrong already: it goes from sigma_1 to sigma_2",
        ),
        Law(
            lambda path, grad, ts, y: torch.allclose(path[:-1], _ddim(grad, ts, y)[:-1]),
            "the first step is right, a later one is not: what changes from step to step?",
        ),
        Law(lambda *a: False, "all steps but the last are right: after the last one no noise is left"),
    ),
)


# --- 2.6 attainment -----------------------------------------------------------------------------------------------


def _map_input(g: torch.Generator) -> tuple:
    """A gradient, starts (20,), three t_first, two numbers of steps, a target, a tolerance and t_last."""
    w, mu, v = draw_mixture(g)
    mixture = GaussianMixture(w, mu, 0.05 * v)
    starts = torch.linspace(-1, 1, 20, **F64)
    return mixture.grad, starts, [0.02, 0.3, 2.0], [3, 6], float(mu[w.argmax()]), _number(g, 0.1, 0.3), 1e-3


def _ends_of(grad, starts, t_firsts, steps, t_last, schedule=schedules.log_schedule):
    """Where the flows end, (M, N, B)."""
    rows = [[_gnc(grad, schedule(t, t_last, n), starts)[-1] for n in steps] for t in t_firsts]
    return torch.stack([torch.stack(row) for row in rows])


def _ends_in_a_row(grad, y, t_firsts, steps, t_last):
    """The same if every flow sets out from where the one before has ended."""
    ends = []
    for t in t_firsts:
        for n in steps:
            y = _gnc(grad, schedules.log_schedule(t, t_last, n), y)[-1]
            ends.append(y)
    return torch.stack(ends).reshape(len(t_firsts), len(steps), -1)


def _map(grad, starts, t_firsts, steps, target, tolerance, t_last):
    return solvers.attainment_map(
        SimpleNamespace(grad=grad), starts, t_firsts, steps, target, tolerance, t_last
    )


ATTAINMENT = Exercise(
    "2.6",
    "the attainment map",
    points=3,
    minutes=15,
    solution=_map,
    draw=_map_input,
    mistakes=(
        Mistake(
            lambda *a: 20 * _map(*a),
            "these are numbers of starts; wanted is the fraction of all starts",
        ),
        Mistake(
            lambda grad, y, ts, steps, x, tol, last: (
                (_ends_of(grad, y, ts, steps, last) - x <= tol).double().mean(-1)
            ),
            "iterates far to the left of the target are counted, too: a distance needs an absolute value",
        ),
        Mistake(
            lambda grad, y, ts, steps, x, tol, last: (
                ((_ends_of(grad, y, ts, steps, last) - x) ** 2 <= tol).double().mean(-1)
            ),
            "the squared distance is compared with the tolerance, which is a distance",
        ),
        Mistake(lambda *a: 1 - _map(*a), "this is the fraction of the starts that do NOT arrive"),
        Mistake(
            lambda grad, y, ts, steps, x, tol, last: _map(grad, y, ts, steps, x, tol, 1e-4),
            "your schedules end at 1e-4: use the argument t_last",
        ),
        Mistake(
            lambda grad, y, ts, steps, x, tol, last: (
                ((y - x).abs() <= tol).double().mean().expand(len(ts), len(steps))
            ),
            "this counts the starts, before any step: look at where the flow ends",
        ),
        Mistake(
            lambda grad, y, ts, steps, x, tol, last: _map(grad, y, ts, [n - 1 for n in steps], x, tol, last),
            "the schedules have one step too few",
        ),
        Mistake(
            lambda grad, y, ts, steps, x, tol, last: (
                ((_ends_of(grad, y, ts, steps, last, schedules.linear_schedule) - x).abs() <= tol)
                .double()
                .mean(-1)
            ),
            "your schedules have equal differences: logarithmic ones are wanted",
        ),
        Mistake(
            lambda grad, y, ts, steps, x, tol, last: (
                ((_ends_in_a_row(grad, y, ts, steps, last) - x).abs() <= tol).double().mean(-1)
            ),
            "only the first entry is right: are the starts of an entry where the flow of the entry before has ended?",
        ),
    ),
    laws=(
        Law(lambda a, *_: bool(((a >= 0) & (a <= 1)).all()), "a fraction lies between 0 and 1"),
        Law(
            lambda a, grad, y, *_: torch.allclose(len(y) * a, (len(y) * a).round(), atol=1e-4),
            "a fraction of B starts is a multiple of 1/B; yours is not",
        ),
    ),
    rounds=5,
)

EXERCISES = (TWEEDIE, POSTERIOR, SCHEDULE, GNC, DDIM, ATTAINMENT)
