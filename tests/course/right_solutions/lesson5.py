"""Lesson 5."""

import math

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio


def psnr_by_norms(x, reference):
    return 20 * math.log10(x[0].numel() ** 0.5) - 20 * torch.log10((x - reference).flatten(1).norm(dim=1))


def psnr_in_a_loop(x, reference):
    errors = [float((a - b).square().mean()) for a, b in zip(x, reference, strict=True)]
    return torch.tensor([-10 * math.log10(error) for error in errors], dtype=torch.float64)


def psnr_by_skimage(x, reference):
    pairs = zip(x.numpy(), reference.numpy(), strict=True)
    return torch.tensor(np.array([peak_signal_noise_ratio(b, a, data_range=1) for a, b in pairs]))


def prox_pixel_by_pixel(v, y, sigma, eta):
    pairs = zip(v.flatten().tolist(), y.flatten().tolist(), strict=True)
    values = [(sigma**2 * a + eta * b) / (sigma**2 + eta) for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64).reshape(v.shape)


def prox_by_numpy(v, y, sigma, eta):
    return torch.from_numpy(np.average([v.numpy(), y.numpy()], axis=0, weights=[sigma**2, eta]))


def masked_by_numpy(v, y, mask, sigma, eta):
    share = eta / (sigma**2 + eta)
    return torch.from_numpy(np.where(mask, (1 - share) * v.numpy() + share * y.numpy(), v))


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


def flow_in_double_precision(grad, prox, t, eta, x0):
    x = x0.double()
    for level, length in zip(t.double(), eta.double(), strict=True):
        x = prox(x - length * grad(x, level), length).double()
    return x


def flow_by_numpy(grad, prox, t, eta, x0):
    x = x0.numpy().astype(np.float64)
    for level, length in zip(t.numpy(), eta.numpy(), strict=True):
        v = x - length * grad(torch.from_numpy(x), float(level)).numpy()
        x = prox(torch.from_numpy(v), float(length)).numpy()
    return torch.from_numpy(x)


def schedule_in_a_loop(t_first, t_last, steps):
    t, factor = [t_first], (t_last / t_first) ** (1 / max(steps - 1, 1))
    for _ in range(steps - 1):
        t.append(t[-1] * factor)
    eta = [now - after for now, after in zip(t, [*t[1:], 0.0], strict=True)]
    return torch.tensor(t, dtype=torch.float64), torch.tensor(eta, dtype=torch.float64)


def schedule_by_numpy(t_first, t_last, steps):
    t = np.geomspace(t_first, t_last, steps)
    return torch.from_numpy(t), torch.from_numpy(-np.diff(t, append=0))


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


def joint_in_double_precision(grad, dtau, prox, x, t, t_min, t_max):
    x, t = x.double(), t.double()
    x = prox(x - t[:, None, None, None] * grad(x, t), t).double()
    tau = t.log() / 2 - dtau(x, t).double() / (2 * x[0].numel())
    ends = torch.tensor([t_min, t_max], dtype=torch.float64).log() / 2
    return [x, (2 * torch.minimum(torch.maximum(tau, ends[0]), ends[1])).exp()]


def joint_by_numpy(grad, dtau, prox, x, t, t_min, t_max):
    level = t.numpy().astype(np.float64)
    x = prox(x - torch.from_numpy(level.reshape(-1, 1, 1, 1)) * grad(x, t), t)
    sigma = np.sqrt(level) * np.exp(-dtau(x, t).numpy() / (2 * x[0].numel()))
    return x, torch.from_numpy(np.clip(sigma**2, t_min, t_max))


def joint_of_the_paper(grad, dtau, prox, x, t, t_min, t_max):
    """Preconditioned by the summands of eq. (3), read literally: 48 channels times n pixels."""
    x = prox(x - t.reshape(-1, 1, 1, 1) * grad(x, t), t)
    tau = 0.5 * torch.log(t) - dtau(x, t) / (48 * x.shape[-1] * x.shape[-2])
    return x, torch.exp(2 * tau).clamp(t_min, t_max)


RIGHT = {
    "5.1": [psnr_by_norms, psnr_in_a_loop, psnr_by_skimage],
    "5.2": [prox_by_precisions, prox_pixel_by_pixel, prox_by_numpy],
    "5.3": [masked_by_weights, masked_in_two_cases, masked_by_numpy],
    "5.4": [
        flow_by_index,
        flow_that_stops_early,
        flow_by_recursion,
        flow_in_double_precision,
        flow_by_numpy,
    ],
    "5.5": [schedule_as_a_list, schedule_in_a_loop, schedule_by_numpy],
    "5.6": [joint_image_by_image, joint_of_the_paper, joint_in_double_precision, joint_by_numpy],
}
