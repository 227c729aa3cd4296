"""Lesson 2."""

import itertools
import math

import numpy as np
import torch

# --- 2.1 ---


def step_in_place(grad, y, t):
    y -= t * grad(y, t)
    return y


# --- 2.2 ---


def normal(y, mu, s):
    """N(y; mu, s I) of one point and one component."""
    d = len(mu)
    return math.exp(-float(((y - mu) ** 2).sum()) / (2 * float(s))) / (2 * math.pi * float(s)) ** (d / 2)


def posterior_with_exp(w, mu, v, y, t):
    rows = []
    for point in y:
        joint = torch.tensor([a * normal(point, m, s + t) for a, m, s in zip(w, mu, v, strict=True)])
        g = joint / joint.sum()
        rows.append(sum(p * (t * m + s * point) / (s + t) for p, m, s in zip(g, mu, v, strict=True)))
    return torch.stack(rows)


def posterior(
    w, mu, v, y, t, swapped=False, weigh=True, power=None, listen=True, noise=True, tiny=1e-9, half=2
):
    power = mu.shape[1] if power is None else power
    s = v + t if noise else v + tiny
    rows = []
    for point in y:
        logits = -((mu - point) ** 2).sum(1) / (half * s) - power / 2 * s.log()
        if weigh:
            logits = logits + w.log()
        g = torch.softmax(logits, 0)
        trust = t / (v + t) if swapped else v / (v + t)
        trust = trust[:, None] if listen else 0.0
        rows.append((g[:, None] * ((1 - trust) * mu + trust * point)).sum(0))
    return torch.stack(rows)


def posterior_with_prior_weights(w, mu, v, y, t):
    trust = v / (v + t)
    return y * (w * trust).sum() + (w * (1 - trust)) @ mu


def posterior_that_overshoots(w, mu, v, y, t):
    return y + 2 * (posterior(w, mu, v, y, t) - y)


# --- 2.3 ---


def schedule_by_ratio(t_first, t_last, steps):
    values = [t_first]
    ratio = (t_last / t_first) ** (1 / steps)
    while len(values) < steps:
        values.append(values[-1] * ratio)
    return torch.tensor(values, dtype=torch.float64)


def schedule_without_the_first(t_first, t_last, steps):
    return schedule_by_ratio(t_first, t_last, steps) * (t_last / t_first) ** (1 / steps)


def schedule_of_exponents(t_first, t_last, steps, first=0):
    if steps == 1:
        return torch.tensor([t_first], dtype=torch.float64)
    exponents = torch.arange(first, first + steps, dtype=torch.float64) / (steps - 1)
    return t_first * (t_last / t_first) ** exponents


def schedule_by_numpy(first, last, steps):
    return torch.from_numpy(np.geomspace(first, last, steps))


def schedule_of_the_last(t_first, t_last, steps):
    return schedule_by_numpy(t_first, t_last, steps) if steps > 1 else torch.tensor([t_last]).double()


def schedule_of_squares(t_first, t_last, steps):
    if steps == 1:
        return torch.tensor([t_first]).double()
    return t_first * (t_last / t_first) ** (torch.linspace(0, 0.9, steps).double() ** 2)


def schedule_divides_by_zero(t_first, t_last, steps):
    ratio = (t_last / t_first) ** (1 / (steps - 1))
    return torch.tensor([t_first * ratio**i for i in range(steps)], dtype=torch.float64)


def schedule_that_goes_to_zero(t_first, t_last, steps):
    return torch.tensor([t_first * (1 - i / steps) for i in range(steps)], dtype=torch.float64)


# --- 2.4 and 2.5 ---


def flow(grad, schedule, start, length=lambda t: t, at=lambda t: t, sign=-1.0):
    path = [start]
    for t in schedule:
        path.append(path[-1] + sign * length(t) * grad(path[-1], at(t)))
    return torch.stack(path)


def flow_keeps_one_tensor(grad, schedule, start):
    y = start.clone()
    path = [y]
    for t in schedule:
        y -= t * grad(y, t)
        path.append(y)
    return torch.stack(path)


def flow_in_place(grad, schedule, start):
    y, path = start, [start.clone()]
    for t in schedule:
        y -= t * grad(y, t)
        path.append(y.clone())
    return torch.stack(path)


def flow_from_the_start(grad, schedule, start):
    return torch.stack([start] + [start - t * grad(start, t) for t in schedule])


def flow_one_ahead(grad, schedule, start):
    path = torch.empty(len(schedule) + 1, *start.shape, dtype=start.dtype)
    path[0] = start
    for i in range(len(schedule)):
        after = schedule[min(i + 1, len(schedule) - 1)]
        path[i + 1] = path[i] - schedule[i] * grad(path[i], after)
    return path


def flow_into_rows_of_numbers(grad, schedule, start):
    """Right for starts (B,) only."""
    path = torch.zeros(len(schedule) + 1, len(start), dtype=start.dtype)
    path[0] = start
    for i, t in enumerate(schedule):
        path[i + 1] = path[i] - t * grad(path[i], t)
    return path


def flow_keeps_one_tensor_but_the_start(grad, schedule, start):
    y = start.clone()
    path = [start]
    for t in schedule:
        y -= t * grad(y, t)
        path.append(y)
    return torch.stack(path)


def flow_sorts(grad, schedule, start):
    return flow(grad, schedule.sort(descending=True).values, start)


def flow_asks_with_an_axis(grad, schedule, start):
    path = [start]
    for t in schedule:
        path.append(path[-1] - t * grad(path[-1], t[None]))
    return torch.stack(path)


def flow_forgets_the_start(grad, schedule, start):
    path = torch.zeros(len(schedule) + 1, *start.shape, dtype=start.dtype)
    for i, t in enumerate(schedule):
        path[i + 1] = (start if i == 0 else path[i]) - t * grad(start if i == 0 else path[i], t)
    return path


def ddim(grad, schedule, start, share, end=0.0):
    y, path = start, [start]
    ts = [*schedule.tolist(), end]
    for t, after in itertools.pairwise(ts):
        y = y - share(t, after) * t * grad(y, t)
        path.append(y)
    return torch.stack(path)


def ddim_keeps_one_tensor(grad, schedule, start):
    y, path = start.clone(), [start]
    for t, after in itertools.pairwise([*schedule.tolist(), 0.0]):
        y -= (1 - math.sqrt(after / t)) * t * grad(y, t)
        path.append(y)
    return torch.stack(path)


def ddim_without_the_last_step(grad, schedule, start):
    y, path = start.clone(), [start]
    sigma = schedule.sqrt()
    for i in range(len(schedule) - 1):
        y = y - (1 - sigma[i + 1] / sigma[i]) * schedule[i] * grad(y, schedule[i])
        path.append(y)
    return torch.stack(path)


def ddim_divides_by_the_next(grad, schedule, start):
    sigma = torch.cat([schedule.sqrt(), torch.zeros(1)])
    path = [start]
    for i, t in enumerate(schedule):
        path.append(path[-1] - (1 - sigma[i] / sigma[i + 1]) * t * grad(path[-1], t))
    return torch.stack(path)


def ddim_always_from_the_start(grad, schedule, start):
    """Both the gradient and the iterate that is mixed with the denoised point are the start's."""
    sigma = [*schedule.sqrt().tolist(), 0.0]
    path = [start]
    for i, t in enumerate(schedule):
        clean = start - t * grad(start, t)
        path.append(clean + sigma[i + 1] / sigma[i] * (start - clean))
    return torch.stack(path)


# --- 2.6 ---


def ends(grad, starts, t_first, steps, t_last):
    y = starts
    for t in np.geomspace(t_first, t_last, steps):
        y = y - t * grad(y, t)
    return y


def attainment(grad, starts, t_firsts, steps, target, tolerance, t_last, hit=None, rate=None, cut=0):
    hit = hit or (lambda y: (y - target).abs() <= tolerance)
    rate = rate or (lambda arrived: arrived.double().mean())
    table = torch.zeros(len(t_firsts), len(steps), dtype=torch.float64)
    for m, t_first in enumerate(t_firsts):
        for n, count in enumerate(steps):
            table[m, n] = rate(hit(ends(grad, starts, t_first, count - cut, t_last)))
    return table


def attainment_of_the_starts(grad, starts, t_firsts, steps, target, tolerance, t_last):
    arrived = (starts - target).abs() <= tolerance
    return arrived.double().mean() * torch.ones(len(t_firsts), len(steps), dtype=torch.float64)


def attainment_with_fixed_end(grad, starts, t_firsts, steps, target, tolerance, t_last):
    return attainment(grad, starts, t_firsts, steps, target, tolerance, 1e-4)


def attainment_linear(grad, starts, t_firsts, steps, target, tolerance, t_last):
    table = torch.zeros(len(t_firsts), len(steps)).double()
    for m, t_first in enumerate(t_firsts):
        for n, count in enumerate(steps):
            y = starts
            for t in torch.linspace(t_first, t_last, count).double():
                y = y - t * grad(y, t)
            table[m, n] = ((y - target).abs() <= tolerance).sum() / len(starts)
    return table


def attainment_carried_over(grad, starts, t_firsts, steps, target, tolerance, t_last):
    rows = []
    for t_first in t_firsts:
        row = []
        for count in steps:
            starts = ends(grad, starts, t_first, count, t_last)
            row.append(((starts - target).abs() <= tolerance).double().mean())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def mean_distance(grad, starts, t_firsts, steps, target, tolerance, t_last):
    return attainment(
        grad, starts, t_firsts, steps, target, tolerance, t_last, lambda y: (y - target).abs() / 10
    )


WRONG = {
    "2.1": [
        (lambda grad, y, t: y + t * grad(y, t), "goes uphill"),
        (lambda grad, y, t: y - math.sqrt(t) * grad(y, t), "has the variance t"),
        (lambda grad, y, t: y - grad(y, t), "not a distance"),
        (lambda grad, y, t: grad(y, t) * t, "this is the noise"),
        (lambda grad, y, t: y - t * grad(y, math.sqrt(t)), "not sigma"),
        (step_in_place, "number 2 in place"),
        (lambda grad, y, t: y - t * grad(y), "your code stopped with TypeError"),
        (lambda grad, y, t: y - t * grad, "your code stopped with TypeError"),
    ],
    "2.2": [
        (posterior_with_exp, "nan or inf"),
        (lambda *a: posterior(*a, swapped=True), "changed places"),
        (lambda *a: posterior(*a, listen=False), "averages the means"),
        (posterior_with_prior_weights, "averaged with their weights"),
        (lambda *a: posterior(*a, power=1), r"s\^\(-d/2\)"),
        (lambda *a: posterior(*a, power=0), "in front of the exponential of the normal density is missing"),
        (lambda *a: posterior(*a, weigh=False), "weights w_i are missing"),
        (lambda *a: posterior(*a, noise=False), "the noise is missing"),
        (lambda *a: posterior(*a, noise=False, tiny=0.0), "the noise is missing"),
        (lambda *a: posterior(*a, half=1), "2 in the exponent"),
        (lambda w, mu, *a: posterior(w, mu, *a, power=2 * mu.shape[1]), "log sqrt"),
        (posterior_that_overshoots, "lies between them"),
        (lambda *a: posterior(*a).mean(1), "shape"),
    ],
    "2.3": [
        (
            lambda t_first, t_last, steps: torch.linspace(t_first, t_last, steps, dtype=torch.float64),
            "equal differences",
        ),
        (
            lambda t_first, t_last, steps: torch.linspace(t_first**0.5, t_last**0.5, steps).double() ** 2,
            "equally spaced in sigma",
        ),
        (lambda a, b, n: torch.linspace(math.log(a), math.log(b), n), "values of log t"),
        (lambda a, b, n: torch.logspace(math.log(a), math.log(b), n), "exponents of 10"),
        (lambda a, b, n: torch.from_numpy(np.geomspace(b, a, n)), "the schedule rises"),
        (schedule_by_ratio, "n - 1 ratios"),
        (schedule_without_the_first, "the first value is not t_first"),
        (lambda *a: schedule_of_exponents(*a, first=1), "the first value is not t_first"),
        (lambda a, b, n: schedule_of_exponents(b, a, n), "largest value comes first"),
        (lambda a, b, n: schedule_by_numpy(a**0.5, b**0.5, n), "these are standard deviations"),
        (lambda a, b, n: schedule_of_exponents(a**0.5, b**0.5, n), "these are standard deviations"),
        (schedule_of_the_last, "with one step only"),
        (schedule_of_squares, "the last value is not t_last"),
        (schedule_divides_by_zero, "ZeroDivisionError"),
        (schedule_that_goes_to_zero, "the last value is not t_last: both ends"),
        (lambda a, b, n: torch.logspace(math.log10(a), math.log10(b), n + 1), "shape"),
        (lambda a, b, n: np.geomspace(a, b, n), "a torch.Tensor is wanted"),
    ],
    "2.4": [
        (flow_from_the_start, "every step sets out from the start"),
        (flow_keeps_one_tensor, "stored again and again"),
        (flow_in_place, "number 3 in place"),
        (lambda *a: flow(*a, sign=1.0), "goes down the energy"),
        (lambda *a: flow(*a, length=lambda t: t**0.5), "step size is sigma_i"),
        (lambda grad, ts, y: flow(grad, ts, y, at=lambda t: ts[0]), "always taken at the first t"),
        (lambda grad, ts, y: flow(grad, ts, y, length=lambda t: ts[0]), "always the first t"),
        (flow_one_ahead, "both belong to the same t"),
        (lambda grad, ts, y: flow(grad, ts.flip(0), y), "run backwards"),
        (lambda grad, ts, y: flow(grad, ts, y, at=lambda t: t**0.5), "grad expects the variance"),
        (lambda grad, ts, y: flow(grad, ts.sqrt(), y), "sigma_i stands where the variance"),
        (flow_keeps_one_tensor_but_the_start, "all rows but the first are the last iterate"),
        (flow_sorts, "sorted first"),
        (flow_into_rows_of_numbers, "your code stopped with RuntimeError"),
        (flow_asks_with_an_axis, r"grad\(y, t\) wants one number"),
        (lambda *a: flow(*a).float(), "in single precision only"),
        (flow_forgets_the_start, "the first row of the path"),
        (lambda *a: flow(*a)[1:], "shape"),
        (lambda *a: flow(*a)[-1], "shape"),
    ],
    "2.5": [
        (flow, "these are full steps"),
        (lambda *a: ddim(*a, share=lambda t, s: 1 - s / t), "made of the standard deviations"),
        (lambda *a: ddim(*a, share=lambda t, s: math.sqrt(s / t)), "the noise that stays"),
        (
            lambda grad, ts, y: ddim(grad, ts, y, share=lambda t, s: 1 - math.sqrt(s / t), end=float(ts[-1])),
            "the last step is missing",
        ),
        (lambda *a: ddim(*a, share=lambda t, s: math.sqrt(s / t) - 1), "the sign is wrong"),
        (lambda *a: ddim(*a, share=lambda t, s: (1 - math.sqrt(s / t)) / t), "you have forgotten t_i"),
        (lambda *a: ddim(*a, share=lambda t, s: 1 - math.sqrt(s / t), end=1e-4), "all steps but the last"),
        (ddim_without_the_last_step, "shape"),
        (ddim_divides_by_the_next, "nan or inf"),
        (ddim_always_from_the_start, "every step sets out from the start"),
        (ddim_keeps_one_tensor, "all rows but the first are the last iterate"),
        (lambda *a: ddim(*a, share=lambda t, s: (1 - math.sqrt(s / t)) / math.sqrt(t)), "of sigma_i grad F"),
        (
            lambda grad, ts, y: ddim(grad, ts.sqrt(), y, lambda s, after: 1 - after / s),
            "sigma_i stands where",
        ),
        (
            lambda grad, ts, y: ddim(
                grad, ts.sort(descending=True).values, y, lambda t, s: 1 - (s / t) ** 0.5
            ),
            "sorted",
        ),
    ],
    "2.6": [
        (
            lambda *a: attainment(*a, rate=lambda arrived: arrived.sum()),
            "fraction of all starts",
        ),
        (lambda *a: attainment(*a, hit=lambda y: y - a[4] <= a[5]), "absolute value"),
        (lambda *a: attainment(*a, hit=lambda y: (y - a[4]) ** 2 <= a[5]), "squared distance"),
        (lambda *a: attainment(*a, hit=lambda y: (y - a[4]).abs() > a[5]), "NOT arrive"),
        (attainment_with_fixed_end, "use the argument t_last"),
        (attainment_of_the_starts, "before any step"),
        (lambda *a: attainment(*a, cut=1), "one step too few"),
        (attainment_linear, "equal differences"),
        (attainment_carried_over, "flow of the entry before"),
        (mean_distance, "a multiple of 1/B"),
        (lambda *a: attainment(*a).T, "shape"),
    ],
}
