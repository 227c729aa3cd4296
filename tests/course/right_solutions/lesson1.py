"""Lesson 1."""

import math

import numpy as np
import scipy.optimize
import torch
from scipy.spatial.distance import pdist
from scipy.special import logsumexp, softmax
from scipy.stats import norm


def energy_by_distributions(w, mu, v, y, t):
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(w), torch.distributions.Normal(mu, (v + t).sqrt())
    )
    return -mixture.log_prob(y)


def energy_in_a_loop(w, mu, v, y, t):
    values = []
    for point in y.tolist():
        terms = []
        for a, m, s in zip(w.tolist(), mu.tolist(), (v + t).tolist(), strict=True):
            terms.append(math.log(a) - (point - m) ** 2 / (2 * s) - math.log(2 * math.pi * s) / 2)
        top = max(terms)
        values.append(-top - math.log(sum(math.exp(term - top) for term in terms)))
    return torch.tensor(values, dtype=torch.float64)


def energy_by_scipy(w, mu, v, y, t):
    logs = norm.logpdf(y.numpy()[:, None], mu.numpy(), np.sqrt(v.numpy() + t))
    return torch.from_numpy(-logsumexp(logs, axis=1, b=w.numpy()))


def responsibilities_in_a_loop(w, mu, v, y, t):
    rows = []
    for point in y:
        logs = w.log() - (point - mu) ** 2 / (2 * (v + t)) - (v + t).log() / 2
        rows.append(logs.softmax(0))
    return torch.stack(rows)


def responsibilities_by_scipy(w, mu, v, y, t):
    s = v.numpy() + t
    logs = np.log(w.numpy()) - np.subtract.outer(y.numpy(), mu.numpy()) ** 2 / (2 * s) - np.log(s) / 2
    return torch.tensor(softmax(logs, axis=1))


def responsibilities_from_energies(w, mu, v, y, t):
    logs = torch.distributions.Normal(mu, (v + t).sqrt()).log_prob(y[:, None]) + w.log()
    return (logs - logs.logsumexp(1, keepdim=True)).exp()


def gradient_without_scores(g, mu, v, y, t):
    p = g / (v + t)
    return y * p.sum(1, keepdim=True) - p @ mu


def gradient_in_a_loop(g, mu, v, y, t):
    result = torch.zeros_like(y)
    for b in range(len(y)):
        for k in range(len(mu)):
            result[b] -= g[b, k] * (mu[k] - y[b]) / (v[k] + t)
    return result


def gradient_by_numpy(g, mu, v, y, t):
    g, mu, v, y = (array.numpy() for array in (g, mu, v, y))
    return torch.from_numpy(np.einsum("bk,bkd->bd", g, (y[:, None] - mu) / (v + t)[:, None]))


def hessian_of_products(g, mu, v, y, t):
    a = (mu - y[:, None]) / (v + t)[:, None]  # (B, K, d)
    second, first = a.mT @ (g[..., None] * a), torch.einsum("bk,bkd->bd", g, a)
    bowl = (g @ (1 / (v + t))).reshape(-1, 1, 1) * torch.eye(y.shape[1], dtype=torch.float64)
    return bowl - second + first[:, :, None] @ first[:, None, :]


def hessian_by_numpy(g, mu, v, y, t):
    g, mu, s, y = (array.numpy() for array in (g, mu, v + t, y))
    a = (mu - y[:, None]) / s[:, None]
    a = a - np.average(a, axis=1, weights=np.broadcast_to(g[:, :, None], a.shape), keepdims=True)
    covariance = np.matmul(a.transpose(0, 2, 1) * g[:, None], a)
    return torch.tensor((g @ (1 / s))[:, None, None] * np.eye(y.shape[1]) - covariance)


def hessian_in_a_loop(g, mu, v, y, t):
    eye, rows = torch.eye(y.shape[1], dtype=y.dtype), []
    for q, point in zip(g, y, strict=True):
        a = (mu - point) / (v + t)[:, None]
        rows.append((q / (v + t)).sum() * eye - torch.cov(a.T, aweights=q, correction=0))
    return torch.stack(rows)


def bound_of_a_tensor(mu, cov):
    return (torch.pdist(mu).max() ** 2 - torch.linalg.eigvalsh(cov).min()).clamp(min=0)


def bound_in_a_loop(mu, cov):
    longest = max(float((a - b).square().sum()) for a in mu for b in mu)
    narrowest = min(float(torch.linalg.eigh(one).eigenvalues[0]) for one in cov)
    return longest - narrowest if longest > narrowest else 0


def bound_by_numpy(mu, cov):
    return np.maximum(pdist(mu.numpy(), "sqeuclidean").max() - np.linalg.eigvalsh(cov.numpy()).min(), 0)


def bound_in_single_precision(mu, cov):
    mu, cov = mu.float(), cov.float()
    return (torch.pdist(mu).square().max() - torch.linalg.eigvalsh(cov).min()).relu()


def threshold_by_brent(lowest, t_low, t_high, tol):
    if lowest(t_low) >= 0:
        return t_low
    return scipy.optimize.brentq(lowest, t_low, t_high, xtol=tol)


def threshold_in_enough_steps(lowest, t_low, t_high, tol):
    if lowest(t_low) >= 0:
        return torch.tensor(t_low)
    for _ in range(2 + math.ceil(math.log2((t_high - t_low) / tol))):
        middle = (t_low + t_high) / 2
        t_low, t_high = (middle, t_high) if lowest(middle) < 0 else (t_low, middle)
    return torch.tensor(t_low, dtype=torch.float64)


def threshold_by_recursion(lowest, t_low, t_high, tol):
    if lowest(t_low) >= 0:
        return np.float64(t_low)
    if t_high - t_low <= tol:
        return np.float64((t_low + t_high) / 2)
    middle = np.mean([t_low, t_high])
    ends = (middle, t_high) if lowest(middle) < 0 else (t_low, middle)
    return threshold_by_recursion(lowest, *ends, tol)


def threshold_by_decimals(lowest, t_low, t_high, tol):
    """The bracket is cut into ten parts, not into two; the result is in single precision."""
    while lowest(t_low) < 0 and t_high - t_low > tol:
        cuts = torch.linspace(t_low, t_high, 11, dtype=torch.float64).tolist()
        k = next(k for k in range(1, 11) if k == 10 or lowest(cuts[k]) >= 0)
        t_low, t_high = cuts[k - 1], cuts[k]
    return torch.tensor(t_low, dtype=torch.float32)


RIGHT = {
    "1.1": [energy_by_distributions, energy_in_a_loop, energy_by_scipy],
    "1.2": [responsibilities_from_energies, responsibilities_in_a_loop, responsibilities_by_scipy],
    "1.3": [gradient_without_scores, gradient_in_a_loop, gradient_by_numpy],
    "1.4": [hessian_of_products, hessian_in_a_loop, hessian_by_numpy],
    "1.5": [bound_of_a_tensor, bound_in_a_loop, bound_by_numpy, bound_in_single_precision],
    "1.6": [
        threshold_by_brent,
        threshold_in_enough_steps,
        threshold_by_recursion,
        threshold_by_decimals,
    ],
}
