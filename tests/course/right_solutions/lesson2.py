"""Lesson 2."""

import math
from itertools import pairwise

import numpy as np
import torch
from scipy.special import softmax


def step_point_by_point(grad, y, t):
    return torch.cat([point - t * grad(point, t) for point in y.split(1)])


def step_by_numpy(grad, y, t):
    return torch.tensor(y.numpy() - t * grad(y, t).numpy())


def posterior_in_a_loop(w, mu, v, y, t):
    result, s = torch.empty_like(y), v + t
    for b, point in enumerate(y):
        g = (w.log() - (mu - point).square().sum(1) / (2 * s) - len(point) / 2 * s.log()).softmax(0)
        estimates = (t * mu + v[:, None] * point) / s[:, None]
        result[b] = g @ estimates
    return result


def posterior_by_numpy(w, mu, v, y, t):
    w, mu, v, y = (array.numpy() for array in (w, mu, v, y))
    squared = ((y[:, None] - mu) ** 2).sum(2)
    g = softmax(np.log(w) - squared / (2 * (v + t)) - mu.shape[1] / 2 * np.log(v + t), axis=1)
    return torch.from_numpy((g * t / (v + t)) @ mu + (g @ (v / (v + t)))[:, None] * y)


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


def schedule_by_numpy(t_first, t_last, steps):
    return torch.from_numpy(np.geomspace(t_first, t_last, steps))


def flow_of_each_start(grad, schedule, start):
    paths = []
    for y in start.split(1):
        path = [y]
        for t in schedule:
            path.append(path[-1] - t * grad(path[-1], t))
        paths.append(torch.stack(path))
    return torch.cat(paths, 1)


def flow_by_numpy(grad, schedule, start):
    path = [start.numpy()]
    for t in schedule.numpy():
        path.append(path[-1] - t * grad(torch.from_numpy(path[-1]), float(t)).numpy())
    return torch.tensor(np.array(path))


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


def ddim_by_numpy(grad, schedule, start):
    path, sigma = [start.numpy()], np.append(np.sqrt(schedule.numpy()), 0)
    for now, after in pairwise(sigma):
        path.append(path[-1] - (now - after) * now * grad(torch.tensor(path[-1]), now**2).numpy())
    return torch.tensor(np.stack(path))


def attainment_as_a_list(grad, starts, t_firsts, steps, target, tolerance, t_last):
    table = []
    for t_first in t_firsts:
        table.append([])
        for count in steps:
            ends = flow_with_copies(grad, schedule_by_ratios(t_first, t_last, count), starts)[-1].tolist()
            table[-1].append(sum(abs(end - target) <= tolerance for end in ends) / len(ends))
    return torch.tensor(table, dtype=torch.float64)


def attainment_by_numpy(grad, starts, t_firsts, steps, target, tolerance, t_last):
    table = np.zeros((len(t_firsts), len(steps)))
    for (m, n), _ in np.ndenumerate(table):
        ends = flow_by_numpy(grad, schedule_by_numpy(t_firsts[m], t_last, steps[n]), starts)[-1]
        table[m, n] = np.mean(np.isclose(ends.numpy(), target, rtol=0, atol=tolerance))
    return torch.from_numpy(table)


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
    "2.1": [lambda grad, y, t: y.sub(grad(y, t), alpha=t), step_point_by_point, step_by_numpy],
    "2.2": [posterior_by_distances, posterior_in_a_loop, posterior_by_numpy],
    "2.3": [schedule_by_decimal_exponents, schedule_by_ratios, schedule_by_numpy],
    "2.4": [flow_into_an_array, flow_with_copies, flow_by_numpy, flow_of_each_start],
    "2.5": [ddim_by_the_clean_guess, ddim_into_an_array, ddim_by_numpy],
    "2.6": [attainment_of_one_batch, attainment_as_a_list, attainment_by_numpy],
}
