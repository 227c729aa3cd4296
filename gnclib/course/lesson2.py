"""Lesson 2, Tweedie's formula and GNC flow: truths, random inputs, usual mistakes."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from gnclib.course.lesson import F64, Exercise, Heading, hints, shaped, slip
from gnclib.course.lesson1 import log_terms, term_mistakes
from gnclib.gmm import GaussianMixture
from gnclib.restore import linear_schedule, log_schedule


def _gradient(w, mu, v):
    """The function grad(y, t) of a mixture, for numbers t only."""
    mixture = GaussianMixture(w, mu, v)

    def grad(y, t):
        return mixture.grad(y, float(shaped("grad(y, t)", t, ())))

    return grad


# --- 2.1 Tweedie --------------------------------------------------------------------------------------------------


def _draw_gradient(g):
    """The gradient of a random smoothed energy on the line, points (B,) and t."""
    return _gradient(*g.mixture()), 3 * g.rand(5) - 1.5, g.number(0.05, 0.8)


TWEEDIE = Exercise(
    Heading("2.1", "the MMSE estimate from a gradient", points=1, minutes=5),
    solution=lambda grad, y, t: y - t * grad(y, t),
    draw=_draw_gradient,
    mistakes=hints(
        "the sign is wrong: this step goes uphill, towards more noise; the energy is MINUS log f",
        lambda grad, y, t: y + t * grad(y, t),
        "the gradient is multiplied by sigma: Tweedie's formula has the variance t there",
        lambda grad, y, t: y - t**0.5 * grad(y, t),
        "a gradient is not a distance: it must be multiplied by the noise variance",
        lambda grad, y, t: y - grad(y, t),
        "this is the noise that Tweedie's formula finds in y: take it away from y",
        lambda grad, y, t: t * grad(y, t),
        "grad expects the noise variance t as its second argument, not sigma",
        lambda grad, y, t: y - t * grad(y, t**0.5),
    ),
    factors=lambda grad, y, t: {"t": t, "sigma": t**0.5},
)


# --- 2.2 the posterior mean ---------------------------------------------------------------------------------------


def _draw_space(g):
    """A mixture in R^d, d = 2 to 4, every second time with a point among the components; the last y lies far away."""
    w, _, v = g.mixture()
    d = g.integer(2, 4)
    v[0] *= g.in_turn(1.0, 0.0)
    y = 1.5 * g.randn(6, d)
    y[-1] *= 60 / y[-1].norm()
    return w, g.randn(len(w), d), v, y, g.number(0.05, 0.8)


def _posterior_mean(w, mu, v, y, t):
    """E[X | Y = y], (B, d)."""
    return GaussianMixture(w, mu, v).denoise(y, t)


def _estimates(mu, v, y, t):
    """E[X | Y = y, component i], (B, K, d)."""
    return (t * mu + v[:, None] * y[:, None]) / (v + t)[:, None]


def _average(g, mu, v, y, t, estimates=_estimates):
    """The mean of the estimates under the responsibilities g (B, K), or of other ones."""
    return (g[..., None] * estimates(mu, v, y, t)).sum(1)


def _with_estimates(estimates):
    """The mean of other estimates, ``estimates(mu, v, y, t)``, under the right responsibilities."""
    return lambda w, mu, v, y, t: _average(log_terms(w, mu, v + t, y).softmax(1), mu, v, y, t, estimates)


POSTERIOR = Exercise(
    Heading("2.2", "the posterior mean of a mixture", points=3, minutes=15),
    solution=_posterior_mean,
    draw=_draw_space,
    mistakes=hints(
        "v_i and t have changed places: with little noise the observation y is trusted, not the mean mu_i",
        _with_estimates(lambda mu, v, y, t: (v[:, None] * mu + t * y[:, None]) / (v + t)[:, None]),
        "this averages the means mu_i: it is right only for components that are points (v_i = 0); the others also "
        "listen to y",
        _with_estimates(lambda mu, v, y, t: mu),
        "the components are averaged with their weights w_i: having seen y, use the responsibilities",
        lambda w, *a: _average(w, *a),
        "the components are averaged with equal weights: having seen y, use the responsibilities",
        lambda w, *a: _average(torch.full_like(w, 1 / len(w)), *a),
        "the normal density in R^d has the factor s^(-d/2), not s^(-1/2)",
        lambda w, mu, v, y, t: _average(
            log_terms(w, mu, v + t, y, root=0.5 / mu.shape[1]).softmax(1), mu, v, y, t
        ),
    )
    | term_mistakes(lambda terms, *a: _average(terms.softmax(1), *a)),
    laws=hints(
        "a posterior mean is an average of y and the means mu_i and lies between them; yours does not",
        lambda x, w, mu, v, y, t: bool((x <= torch.maximum(y, mu.amax(0)) + 1e-6).all()),
        lambda x, w, mu, v, y, t: bool((x >= torch.minimum(y, mu.amin(0)) - 1e-6).all()),
    ),
    factors=lambda w, mu, v, y, t: {"t": t, "sigma": t**0.5, "K": float(len(w))},
)


# --- 2.3 the schedule ---------------------------------------------------------------------------------------------


def _draw_ends(g):
    """Two ends and a number of steps, which is 1 at times."""
    steps = max(1, g.integer(-1, 8))
    return g.number(0.5, 4.0), 10 ** g.number(-4, -1), steps


def schedule_mistakes(result=lambda t: t):
    """Wrong schedules from a to b in n steps; ``result`` makes of them what the exercise asks for."""
    return hints(
        "these values have equal differences: that is a linear schedule, wanted are equal ratios",
        lambda a, b, n: result(torch.linspace(a, b, n, **F64)),
        "these are equally spaced in sigma: space log t equally",
        lambda a, b, n: result(torch.linspace(a**0.5, b**0.5, n, **F64) ** 2),
        "the last value is not t_last: between n values there are n - 1 ratios",
        lambda a, b, n: result(a * (b / a) ** (torch.arange(n, **F64) / n)),
    )


SCHEDULE = Exercise(
    Heading("2.3", "a logarithmic schedule", points=2, minutes=8),
    solution=log_schedule,
    draw=_draw_ends,
    mistakes=schedule_mistakes()
    | hints(
        "these are the values of log t: you want t itself",
        lambda a, b, n: torch.linspace(math.log(a), math.log(b), n, **F64),
        "torch.logspace takes exponents of 10: natural logarithms do not fit to it",
        lambda a, b, n: torch.logspace(math.log(a), math.log(b), n, **F64),
    ),
    laws=hints(  # those that hold of themselves for n = 1 come first
        "these are standard deviations: the schedule consists of variances t",
        lambda t, a, b, n: n == 1 or not torch.allclose(t, log_schedule(a**0.5, b**0.5, n)),
        "the schedule rises: the largest value comes first",
        lambda t, a, b, n: n == 1 or bool((t.diff() < 0).any()),
        "the first value is not t_first: which exponent belongs to the first of several values?",
        lambda t, a, b, n: n == 1 or abs(float(t[0]) - a) < 1e-6,
        "the last value is not t_last: both ends belong to the schedule",
        lambda t, a, b, n: n == 1 or abs(float(t[-1]) - b) < 1e-6 * b,
        "with one step only (I = 1) the schedule is t_first alone",
        lambda t, a, b, n: n > 1 or abs(float(t[0]) - a) < 1e-6,
    ),
)


# --- 2.4 GNC flow and 2.5 DDIM: both go the part share(t_i, t_(i+1)) of a full step -------------------------------


def _draw_flow(g):
    """A gradient, a schedule (I,) that need not fall, and starts, in turn (B,) and (B, d)."""
    w, mu, v = g.mixture()
    axes = g.in_turn((), (3,))
    mu = torch.stack([mu] * 3, 1) + 0.3 * g.randn(len(w), 3) if axes else mu
    schedule = 10 ** (0.3 - 2 * g.rand(g.integer(3, 6)))
    return _gradient(w, mu, v), schedule, 3 * g.rand(5, *axes) - 1.5


def _full(t, after):
    return 1.0


def _ddim_share(t, after):
    return 1 - (after / t) ** 0.5


def _full_step(grad, y, t, after):
    return t * grad(y, t)


def _walk(grad, schedule, y, share=_full, step=_full_step):
    """All iterates of y <- y - share(t_i, t_(i+1)) step(grad, y, t_i, t_(i+1)), (I + 1, ...), with t_(I+1) = 0."""
    path = [y]
    for t, after in pairwise([*schedule.tolist(), 0.0]):
        path.append(path[-1] - share(t, after) * step(grad, path[-1], t, after))
    return torch.stack(path)


def _always_from_the_start(grad, schedule, y, share):
    steps = [share(t, after) * t * grad(y, t) for t, after in pairwise([*schedule.tolist(), 0.0])]
    return torch.stack([y, *(y - step for step in steps)])


def _one_tensor(grad, schedule, y, share, keep=0):
    """The last iterate in all rows but the first `keep`, as if it had been changed in place."""
    path = _walk(grad, schedule, y, share)
    path[keep:] = path[-1].clone()
    return path


def _path_mistakes(share):
    """The mistakes that GNC flow and DDIM share."""
    return hints(
        "every step sets out from the start: step i sets out from the iterate of step i - 1",
        slip(_always_from_the_start, share=share),
        "all rows are the last iterate: the same tensor is stored again and again and changed in place; store copies, "
        "or write y = y - ... instead of y -= ...",
        slip(_one_tensor, share=share),
        "all rows but the first are the last iterate: the same tensor is stored again and again and changed in place; "
        "store copies, or write y = y - ... instead of y -= ...",
        slip(_one_tensor, share=share, keep=1),
        "the gradient is taken at sigma_i: grad expects the variance t_i",
        slip(_walk, share=share, step=lambda grad, y, t, after: t * grad(y, t**0.5)),
        "sigma_i stands where the variance t_i belongs, before the gradient and inside of it: t_i = sigma_i^2",
        slip(_walk, share=share, step=lambda grad, y, t, after: t**0.5 * grad(y, t**0.5)),
        "the gradient is always taken at the first t: the energy changes with every step",
        lambda grad, ts, y: _walk(grad, ts, y, share, lambda f, x, t, after: t * f(x, float(ts[0]))),
        "the step size is always the first t: it falls together with the smoothing",
        lambda grad, ts, y: _walk(grad, ts, y, share, lambda f, x, t, after: float(ts[0]) * f(x, t)),
        "step size t_i, but the gradient is taken at t_(i+1): both belong to the same t",
        slip(_walk, share=share, step=lambda grad, y, t, after: t * grad(y, after or t)),
        "the schedule is run backwards: begin with its first value",
        slip(_walk, share=share, schedule=lambda ts: ts.flip(0)),
        "the schedule is sorted first: take the t_i in the order in which they are given",
        slip(_walk, share=share, schedule=lambda ts: ts.sort(descending=True).values),
        slip(_walk, share=share, schedule=lambda ts: ts.sort().values),
    )


_PATH_LAWS = hints(
    "the first row of the path is the start itself",
    lambda path, grad, ts, y: torch.equal(path[0], y),
)


def _ddim(grad, schedule, y):
    return _walk(grad, schedule, y, _ddim_share)


GNC = Exercise(
    Heading("2.4", "the GNC flow", points=3, minutes=12),
    solution=_walk,
    draw=_draw_flow,
    mistakes=hints(
        "the sign is wrong: the flow goes down the energy",
        slip(_walk, share=lambda t, after: -1.0),
        "the step size is sigma_i; it is the variance t_i",
        slip(_walk, share=lambda t, after: t**-0.5),
    )
    | _path_mistakes(_full),
    laws=_PATH_LAWS
    | hints(
        "the first step is wrong already: from y_0 with t_1, the first entry of the schedule",
        lambda path, grad, ts, y: torch.allclose(path[1], y - ts[0] * grad(y, float(ts[0]))),
        "the first step is right, a later one is not: what changes from step to step?",
        lambda *a: False,
    ),
)


DDIM = Exercise(
    Heading("2.5", "deterministic DDIM", points=3, minutes=12),
    solution=_ddim,
    draw=_draw_flow,
    mistakes=hints(
        "these are full steps, the GNC flow: DDIM goes only the part 1 - sigma_(i+1)/sigma_i of each",
        _walk,
        "the part is made of the variances t; it is made of the standard deviations sigma = sqrt(t)",
        slip(_walk, share=lambda t, after: 1 - after / t),
        "sigma_(i+1)/sigma_i is the part of the noise that stays; the step removes the rest",
        slip(_walk, share=lambda t, after: (after / t) ** 0.5),
        "the last step is missing: after it no noise is left, sigma_(I+1) = 0",
        slip(_walk, share=lambda t, after: _ddim_share(t, after) if after else 0.0),
        "the part must be taken of the full step t_i grad F, you have forgotten t_i",
        slip(_walk, share=lambda t, after: _ddim_share(t, after) / t),
        "the sign is wrong: DDIM removes noise, it goes down the energy",
        slip(_walk, share=lambda t, after: -_ddim_share(t, after)),
        "a difference of two sigmas is no part of a step: relate it to sigma_i",
        slip(_walk, share=lambda t, after: 1 - t**0.5 + after**0.5),
        slip(_walk, share=lambda t, after: t**0.5 - after**0.5),
        "the part must be taken of the full step t_i grad F: you take it of sigma_i grad F",
        slip(_walk, share=lambda t, after: _ddim_share(t, after) * t**-0.5),
    )
    | _path_mistakes(_ddim_share),
    laws=_PATH_LAWS
    | hints(
        "the first step is wrong already: it is the part 1 - sigma_2/sigma_1 of the step t_1 grad F(y_0, t_1)",
        lambda path, grad, ts, y: torch.allclose(path[1], _ddim(grad, ts, y)[1]),
        "the first step is right, a later one is not: what changes from step to step?",
        lambda path, grad, ts, y: torch.allclose(path[:-1], _ddim(grad, ts, y)[:-1]),
        "all steps but the last are right: after the last one no noise is left",
        lambda *a: False,
    ),
)


# --- 2.6 attainment -----------------------------------------------------------------------------------------------


def _draw_map(g):
    """A gradient, starts (20,), three t_first, two numbers of steps, a target, a tolerance and t_last."""
    w, mu, v = g.mixture()
    starts, target = torch.linspace(-1, 1, 20, **F64), float(mu[w.argmax()])
    return (
        GaussianMixture(w, mu, 0.05 * v).grad,
        starts,
        [0.02, 0.3, 2.0],
        [3, 6],
        target,
        g.number(0.1, 0.3),
        1e-3,
    )


def _map(
    grad, starts, t_firsts, steps, target, tolerance, t_last,
    hit=lambda off, tolerance: off.abs() <= tolerance, schedule=log_schedule, carry=False,
):  # fmt: skip
    """The fraction of the starts that arrive, (M, N), or with another test, schedule, or start of each entry."""
    table = torch.zeros(len(t_firsts), len(steps), **F64)
    y = starts
    for m, t_first in enumerate(t_firsts):
        for n, count in enumerate(steps):
            end = _walk(grad, schedule(t_first, t_last, count), y if carry else starts)[-1]
            table[m, n] = hit(end - target, tolerance).double().mean()
            y = end
    return table


ATTAINMENT = Exercise(
    Heading("2.6", "the attainment map", points=3, minutes=15),
    solution=_map,
    draw=_draw_map,
    mistakes=hints(
        "these are numbers of starts; wanted is the fraction of all starts",
        lambda *a: 20 * _map(*a),
        "iterates far to the left of the target are counted, too: a distance needs an absolute value",
        slip(_map, hit=lambda off, tolerance: off <= tolerance),
        "the squared distance is compared with the tolerance, which is a distance",
        slip(_map, hit=lambda off, tolerance: off**2 <= tolerance),
        "this is the fraction of the starts that do NOT arrive",
        lambda *a: 1 - _map(*a),
        "your schedules end at 1e-4: use the argument t_last",
        slip(_map, t_last=1e-4),
        "this counts the starts, before any step: look at where the flow ends",
        slip(_map, schedule=lambda *a: torch.zeros(0)),
        "the schedules have one step too few",
        slip(_map, steps=lambda steps: [n - 1 for n in steps]),
        "your schedules have equal differences: logarithmic ones are wanted",
        slip(_map, schedule=linear_schedule),
        "only the first entry is right: are the starts of an entry where the flow of the entry before has ended?",
        slip(_map, carry=True),
    ),
    laws=hints(
        "a fraction of B starts is a multiple of 1/B; yours is not",
        lambda a, grad, y, *_: torch.allclose(len(y) * a, (len(y) * a).round(), atol=1e-4),
    ),
    rounds=5,
)
