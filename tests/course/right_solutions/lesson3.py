"""Lesson 3."""

import math
from statistics import fmean

import numpy as np
import torch


def explicit_by_autograd(grad, m, s2, t, y, q):
    y = y.clone().requires_grad_()
    log_f = torch.distributions.Normal(m, (s2 + t) ** 0.5).log_prob(y)
    (score,) = torch.autograd.grad(log_f.sum(), y)
    return (q * log_f.exp() * t / 2 * (grad(y) + score) ** 2).sum().detach()


def explicit_normalised(grad, m, s2, t, y, q):
    f = q * torch.exp(-((y - m) ** 2) / (2 * (s2 + t)))
    return float((f / f.sum()) @ (t / 2 * (grad(y) - (y - m) / (s2 + t)) ** 2))


def explicit_in_a_loop(grad, m, s2, t, y, q):
    total = 0.0
    for node, weight in zip(y, q.tolist(), strict=True):
        off = float(node) - m
        density = math.exp(-(off**2) / (2 * (s2 + t))) / math.sqrt(2 * math.pi * (s2 + t))
        total += weight * density * t / 2 * (float(grad(node[None])) - off / (s2 + t)) ** 2
    return total


def explicit_in_single_precision(grad, m, s2, t, y, q):
    slope, y, q = grad(y).float(), y.float(), q.float()
    noisy = torch.distributions.Normal(torch.tensor(m).float(), torch.tensor((s2 + t) ** 0.5).float())
    return (q * noisy.log_prob(y).exp() * t / 2 * (slope - (y - m) / (s2 + t)) ** 2).sum()


def implicit_in_pieces(energy, y, t):
    """A few points one by one, the others by the hundred."""
    total = 0.0
    for x in filter(len, [*y[:9].split(1), *y[9:].split(100)]):
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        rows = [torch.autograd.grad(g[:, k].sum(), x, retain_graph=True)[0][:, k] for k in range(y.shape[1])]
        total += t * float((0.5 * g.square().sum() - sum(rows).sum()).detach())
    return total / len(y)


def implicit_by_vmap(energy, y, t):
    def one(point):
        return energy(point[None])[0]

    gradient = torch.func.vmap(torch.func.grad(one))(y)
    hessian = torch.func.vmap(torch.func.hessian(one))(y)
    return t * (0.5 * gradient.square().sum(1) - hessian.diagonal(dim1=1, dim2=2).sum(1)).mean()


def implicit_summed_in_single_precision(energy, y, t):
    """The derivatives are in the dtype of the points, since an energy may insist on it."""
    y = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(y).sum(), y, create_graph=True)
    directions = torch.eye(y.shape[1], dtype=y.dtype)[:, None].expand(-1, *y.shape)
    (rows,) = torch.autograd.grad(gradient, y, directions, is_grads_batched=True)  # (d, B, d)
    bends = torch.einsum("kbk->b", rows.float())
    return t * (gradient.detach().float().square().sum(1) / 2 - bends).mean()


def implicit_with_its_graph(energy, y, t):
    y = y.clone().requires_grad_()
    (g,) = torch.autograd.grad(energy(y).sum(), y, create_graph=True)
    rows = [torch.autograd.grad(g[:, k].sum(), y, create_graph=True)[0][:, k] for k in range(y.shape[1])]
    return (t * (0.5 * g.square().sum(1) - sum(rows))).mean()


def denoising_image_by_image(grad, x, z, t):
    total = 0.0
    for b in range(len(x)):
        sigma = t[b].sqrt()
        error = sigma * grad(x[b : b + 1] + sigma * z[b : b + 1], t[b : b + 1]) - z[b : b + 1]
        total += float(error.square().mean()) / 2
    return total / len(x)


def denoising_of_all_pixels(grad, x, z, t):
    sigma = t.sqrt()[:, None, None, None].expand_as(x)
    return torch.nn.functional.mse_loss(sigma * grad(torch.addcmul(x, sigma, z), t), z) / 2


def denoising_by_numpy(grad, x, z, t):
    sigma = np.sqrt(t.numpy()).reshape(-1, 1, 1, 1)
    gradient = grad(torch.from_numpy(x.numpy() + sigma * z.numpy()), t).numpy()
    return np.mean((sigma * gradient - z.numpy()) ** 2) / 2


def to_tau_one_by_one(d_t, d_tt, t):
    rows = [
        (2 * s * d, 2 * s * (2 * d + 2 * s * dd))
        for d, dd, s in zip(d_t.tolist(), d_tt.tolist(), t.tolist(), strict=True)
    ]
    return tuple(torch.tensor(rows, dtype=torch.float64).T)


def to_tau_by_numpy(d_t, d_tt, t):
    first, s = 2 * t.numpy() * d_t.numpy(), t.numpy()
    return torch.from_numpy(first), torch.from_numpy(2 * first + 4 * s * s * d_tt.numpy())


def to_tau_by_autograd(d_t, d_tt, t):
    tau = (0.5 * t.log()).requires_grad_()
    s = (2 * tau).exp()
    energy = d_t * (s - t) + 0.5 * d_tt * (s - t) ** 2  # the same derivatives at t
    (first,) = torch.autograd.grad(energy.sum(), tau, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), tau)
    return [first.detach(), second]


def tau_loss_by_numpy(first, second, high, low, tau_min, tau_max):
    ends = np.mean(high.numpy()) - np.mean(low.numpy())
    return np.mean(first.numpy() ** 2 / 2 - second.numpy()) + ends / (tau_max - tau_min)


def tau_loss_in_a_loop(first, second, high, low, tau_min, tau_max):
    inside = fmean(d**2 / 2 - dd for d, dd in zip(first.tolist(), second.tolist(), strict=True))
    return inside + (fmean(high.tolist()) - fmean(low.tolist())) / (tau_max - tau_min)


def fit_sample_by_sample(phi_y, phi_tau, z, t, lam, ridge):
    matrix = ridge * torch.eye(phi_y.shape[1], dtype=torch.float64)
    vector = torch.zeros(phi_y.shape[1], dtype=torch.float64)
    for p, q, noise, s in zip(phi_y, phi_tau, z, t, strict=True):
        matrix += (s * torch.outer(p, p) + lam * torch.outer(q, q)) / len(z)
        vector += (s.sqrt() * noise * p + lam * (1 - noise**2) * q) / len(z)
    return torch.cholesky_solve(vector[:, None], torch.linalg.cholesky(matrix))[:, 0]


def fit_by_numpy(phi_y, phi_tau, z, t, lam, ridge):
    a, b, noise, s = (array.numpy() for array in (phi_y, phi_tau, z, t))
    a = np.sqrt(s)[:, None] * a
    matrix = (a.T @ a + lam * b.T @ b) / len(noise) + ridge * np.eye(a.shape[1])
    return torch.from_numpy(np.linalg.solve(matrix, (a.T @ noise + lam * b.T @ (1 - noise**2)) / len(noise)))


def fit_by_stacked_rows(phi_y, phi_tau, z, t, lam, ridge):
    b, size = phi_y.shape
    weight = (lam / b) ** 0.5
    eye = torch.eye(size, dtype=z.dtype)
    rows = torch.cat([(t / b).sqrt()[:, None] * phi_y, weight * phi_tau, ridge**0.5 * eye])
    right = torch.cat([z / b**0.5, weight * (1 - z**2), torch.zeros(size, dtype=z.dtype)])
    return torch.linalg.lstsq(rows, right).solution


def fit_with_large_matrices(phi_y, phi_tau, z, t, lam, ridge):
    a = phi_y.T @ torch.diag(t) @ phi_y + lam * phi_tau.T @ phi_tau
    r = phi_y.T @ (t.sqrt() * z) + lam * phi_tau.T @ (1 - z**2)
    return torch.linalg.solve(a / len(z) + ridge * torch.eye(len(r), dtype=r.dtype), r / len(z))


RIGHT = {
    "3.1": [explicit_by_autograd, explicit_normalised, explicit_in_a_loop, explicit_in_single_precision],
    "3.2": [
        implicit_in_pieces,
        implicit_by_vmap,
        implicit_with_its_graph,
        implicit_summed_in_single_precision,
    ],
    "3.3": [denoising_image_by_image, denoising_of_all_pixels, denoising_by_numpy],
    "3.4": [to_tau_by_autograd, to_tau_one_by_one, to_tau_by_numpy],
    "3.5": [
        lambda d, dd, high, low, a, b: float((d * d / 2 - dd).mean() + (high.mean() - low.mean()) / (b - a)),
        tau_loss_by_numpy,
        tau_loss_in_a_loop,
    ],
    "3.6": [fit_by_stacked_rows, fit_with_large_matrices, fit_by_numpy, fit_sample_by_sample],
}
