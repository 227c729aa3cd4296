"""Lesson 2."""

import math

import torch


def posterior_by_distances(w, mu, v, y, t):
    s = v + t
    logits = w.log() - torch.cdist(y, mu) ** 2 / (2 * s) - mu.shape[1] / 2 * s.log()
    g = torch.exp(logits - logits.logsumexp(1, keepdim=True))
    return (g * (t / s)) @ mu + (g * (v / s)).sum(1)[:, None] * y


def schedule_by_decimal_exponents(t_first, t_last, steps):
    return torch.logspace(math.log10(t_first), math.log10(t_last), steps, dtype=torch.float64)


def schedule_by_ratios(t_first, t_last, steps):
    ratio = (t_last / t_first) ** (1 / max(steps - 1, 1))
    return torch.tensor([t_first * ratio**i for i in range(steps)], dtype=torch.float64)


def flow_into_an_array(grad, schedule, start):
    path = torch.empty(len(schedule) + 1, *start.shape, dtype=start.dtype)
    path[0] = start
    for i, t in enumerate(schedule):
        path[i + 1] = path[i] - t * grad(path[i], t)
    return path


def flow_with_copies(grad, schedule, start):
    y = start.clone()
    path = [y.clone()]
    for i in range(len(schedule)):
        y -= schedule[i] * grad(y, schedule[i])
        path.append(y.clone())
    return torch.stack(path)


def ddim_by_the_clean_guess(grad, schedule, start):
    sigma, path = torch.cat([schedule.sqrt(), torch.zeros(1)]), [start]
    for i, t in enumerate(schedule):
        clean = path[-1] - t * grad(path[-1], t)
        path.append(clean + sigma[i + 1] / sigma[i] * (path[-1] - clean))
    return torch.stack(path)


def ddim_into_an_array(grad, schedule, start):
    path = torch.zeros((len(schedule) + 1, *start.shape), dtype=torch.float64)
    path[0] = start
    for i in range(len(schedule)):
        part = 1 - (schedule[i + 1] / schedule[i]).sqrt() if i + 1 < len(schedule) else 1
        path[i + 1] = path[i] - part * schedule[i] * grad(path[i], schedule[i])
    return path


def attainment_of_one_batch(grad, starts, t_firsts, steps, target, tolerance, t_last):
    """All t_0 with the same number of steps at once, each start with a t of its own."""
    columns = []
    for count in steps:
        schedules = torch.stack([schedule_by_decimal_exponents(t, t_last, count) for t in t_firsts])
        y = starts.repeat(len(t_firsts))
        for t in schedules.repeat_interleave(len(starts), 0).T:
            y = y - t * grad(y, t)
        arrived = (y - target).abs() <= tolerance
        columns.append(arrived.reshape(len(t_firsts), -1).double().mean(1))
    return torch.stack(columns, 1)


RIGHT = {
    "2.1": [lambda grad, y, t: y.sub(grad(y, t), alpha=t)],
    "2.2": [posterior_by_distances],
    "2.3": [schedule_by_decimal_exponents, schedule_by_ratios],
    "2.4": [flow_into_an_array, flow_with_copies],
    "2.5": [ddim_by_the_clean_guess, ddim_into_an_array],
    "2.6": [attainment_of_one_batch],
}
