"""Lesson 6."""

import math

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import norm


def gaussian_by_precisions(m, cov, y, t):
    """The textbook way, without any energy."""
    precision = cov.inverse() + torch.eye(len(m), dtype=y.dtype) / t
    spread = precision.inverse()
    return (cov.inverse() @ m + y / t) @ spread, spread


def gaussian_by_eigenvectors(m, cov, y, t):
    widths, axes = torch.linalg.eigh(cov)
    shrink = widths / (widths + t)
    return m + ((y - m) @ axes * shrink) @ axes.T, t * axes @ torch.diag(shrink) @ axes.T


def gaussian_in_a_loop(m, cov, y, t):
    hessian = np.linalg.inv(cov.numpy() + t * np.eye(len(m)))
    means = [torch.from_numpy(point.numpy() - t * hessian @ (point - m).numpy()) for point in y]
    return torch.stack(means), torch.from_numpy(t * np.eye(len(m)) - t**2 * hessian)


def sure_in_a_loop(grad, hvp, y, t, probes):
    result = []
    for b in range(len(y)):
        image, n = y[b : b + 1], y[b].numel()
        traces = [float((v[b] * hvp(image, t, v[b : b + 1])).sum()) for v in probes]
        trace = sum(traces) / len(traces)
        result.append(float(((t * grad(image, t)) ** 2).sum()) - n * t + 2 * t * (n - t * trace))
    return torch.tensor(result, dtype=torch.float64)


def sure_of_one_batch(grad, hvp, y, t, probes):
    """All probes in one product; the risk from the residual and the divergence."""
    many = y.expand_as(probes).flatten(0, 1)
    products = hvp(many, t, probes.flatten(0, 1)).reshape(probes.shape)
    n = y.shape[-1] * y.shape[-2]
    divergence = n - t * torch.einsum("kbchw,kbchw->kb", probes, products).mean(0)
    mean = y - t * grad(y, t)
    return (y - mean).pow(2).sum((1, 2, 3)) + t * (2 * divergence - n)


def sure_by_numpy(grad, hvp, y, t, probes):
    removed = (t * grad(y, t)).numpy().reshape(len(y), -1)
    left = np.mean([(v * (v - t * hvp(y, t, v))).numpy().reshape(len(y), -1).sum(1) for v in probes], 0)
    return torch.from_numpy((removed**2).sum(1) - removed.shape[1] * t + 2 * t * left)


def coverage_by_scipy(x, mean, std, levels):
    shares = []
    for level in levels.tolist():
        low, high = norm.interval(level, loc=mean.numpy(), scale=std.numpy())
        shares.append(np.mean((low <= x.numpy()) & (x.numpy() <= high)))
    return torch.tensor(shares, dtype=torch.float64)


def coverage_by_erf(x, mean, std, levels):
    """The level at which each pixel would just be inside."""
    needed = torch.erf((x - mean).abs() / (math.sqrt(2) * std)).flatten()
    return (needed <= levels[:, None]).double().mean(1)


def coverage_pixel_by_pixel(x, mean, std, levels):
    normal, counts = torch.distributions.Normal(0.0, 1.0), []
    for level in levels:
        reach = float(normal.icdf((1 + level) / 2))
        triples = zip(*(image.flatten().tolist() for image in (x, mean, std)), strict=True)
        counts.append(sum(m - reach * s <= value <= m + reach * s for value, m, s in triples))
    return torch.tensor(counts).double() / x.numel()


def from_slopes(slopes, a):
    middle = len(a) // 2
    after = slopes[middle:].cumsum(0)
    before = slopes[:middle].flip(0).cumsum(0).flip(0)
    return a[middle] + torch.cat([-before, torch.zeros(1, dtype=a.dtype), after])


def convex_by_pooling(a, w):
    blocks = []  # sum of weights, weighted mean, length
    for weight, slope in zip(w.tolist(), a.diff().tolist(), strict=True):
        blocks.append((weight, slope, 1))
        while len(blocks) > 1 and blocks[-2][1] > blocks[-1][1]:
            (w2, s2, n2), (w1, s1, n1) = blocks.pop(), blocks.pop()
            blocks.append((w1 + w2, (w1 * s1 + w2 * s2) / (w1 + w2), n1 + n2))
    slopes = [slope for _, slope, length in blocks for _ in range(length)]
    return from_slopes(torch.tensor(slopes, dtype=torch.float64), a)


def convex_by_max_of_min(a, w):
    """s_i = max over j <= i of the min over k >= i of the mean of s_j ... s_k."""
    total, mass = (torch.cat([torch.zeros(1), x.cumsum(0)]).double() for x in (w * a.diff(), w))
    means = (total[1:] - total[:-1, None]) / (mass[1:] - mass[:-1, None])  # [j, k]
    lowest = means.flip(1).cummin(1).values.flip(1)  # [j, i], over k >= i; nan where i < j
    slopes = [float(lowest[: i + 1, i].max()) for i in range(len(w))]
    return from_slopes(torch.tensor(slopes).double(), a)


def convex_by_scipy(a, w):
    slopes = isotonic_regression(np.diff(a.numpy()), weights=w.numpy()).x
    b = np.concatenate([[0.0], np.cumsum(slopes)])
    return torch.from_numpy(b - b[len(b) // 2] + a.numpy()[len(b) // 2])


RIGHT = {
    "6.1": [gaussian_by_precisions, gaussian_by_eigenvectors, gaussian_in_a_loop],
    "6.2": [sure_of_one_batch, sure_in_a_loop, sure_by_numpy],
    "6.3": [coverage_by_erf, coverage_by_scipy, coverage_pixel_by_pixel],
    "6.4": [convex_by_max_of_min, convex_by_pooling, convex_by_scipy],
}
