"""Lesson 5."""

import math

import torch


def psnr_by_norms(x, reference):
    return 20 * math.log10(x[0].numel() ** 0.5) - 20 * torch.log10((x - reference).flatten(1).norm(dim=1))


def prox_by_precisions(v, y, sigma, eta):
    return (v / eta + y / sigma**2) / (1 / eta + 1 / sigma**2)


def masked_by_weights(v, y, mask, sigma, eta):
    weight = mask * eta / (sigma**2 + eta)
    return v + weight * (y - v)


def masked_in_two_cases(v, y, mask, sigma, eta):
    if sigma == 0:
        return mask * y + ~mask * v
    return (v / eta + mask * y / sigma**2) / (1 / eta + mask / sigma**2)


def flow_by_index(grad, prox, t, eta, x0):
    x = x0.clone()
    for i in range(len(t)):
        x -= eta[i] * grad(x, t[i])
        x = prox(x, eta[i])
    return x


def flow_that_stops_early(grad, prox, t, eta, x0):
    """Needs a step at least: it returns the result of the last one."""
    for i in range(len(t)):
        x0 = result = prox(x0 - eta[i] * grad(x0, t[i]), eta[i])
    return result


def flow_by_recursion(grad, prox, t, eta, x0):
    if len(t) == 0:
        return x0
    return flow_by_recursion(grad, prox, t[1:], eta[1:], prox(x0 - eta[0] * grad(x0, t[0]), eta[0]))


def schedule_as_a_list(t_first, t_last, steps):
    t = torch.logspace(math.log10(t_first), math.log10(t_last), steps, dtype=torch.float64)
    return [t, -torch.diff(t, append=torch.zeros(1, dtype=torch.float64))]


def joint_image_by_image(grad, dtau, prox, x, t, t_min, t_max):
    images, levels = [], []
    for b in range(len(x)):
        one, level = x[b : b + 1], t[b : b + 1]
        one = prox(one - level * grad(one, level), level)
        tau = 0.5 * level.log() - dtau(one, level) / (2 * one.numel())
        images.append(one)
        levels.append(tau.clamp(0.5 * math.log(t_min), 0.5 * math.log(t_max)).mul(2).exp())
    return torch.cat(images), torch.cat(levels)


def joint_of_the_paper(grad, dtau, prox, x, t, t_min, t_max):
    """Preconditioned by the summands of eq. (3), read literally: 48 channels times n pixels."""
    x = prox(x - t.reshape(-1, 1, 1, 1) * grad(x, t), t)
    tau = 0.5 * torch.log(t) - dtau(x, t) / (48 * x.shape[-1] * x.shape[-2])
    return x, torch.exp(2 * tau).clamp(t_min, t_max)


RIGHT = {
    "5.1": [psnr_by_norms],
    "5.2": [prox_by_precisions],
    "5.3": [masked_by_weights, masked_in_two_cases],
    "5.4": [flow_by_index, flow_that_stops_early, flow_by_recursion],
    "5.5": [schedule_as_a_list],
    "5.6": [joint_image_by_image, joint_of_the_paper],
}
