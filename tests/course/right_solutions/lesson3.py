"""Lesson 3."""

import torch


def explicit_by_autograd(grad, m, s2, t, y, q):
    y = y.clone().requires_grad_()
    log_f = torch.distributions.Normal(m, (s2 + t) ** 0.5).log_prob(y)
    (score,) = torch.autograd.grad(log_f.sum(), y)
    return (q * log_f.exp() * t / 2 * (grad(y) + score) ** 2).sum().detach()


def explicit_normalised(grad, m, s2, t, y, q):
    f = q * torch.exp(-((y - m) ** 2) / (2 * (s2 + t)))
    return float((f / f.sum()) @ (t / 2 * (grad(y) - (y - m) / (s2 + t)) ** 2))


def implicit_point_by_point(energy, y, t):
    total = 0.0
    for point in y:
        x = point[None].clone().requires_grad_()
        (g,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        rows = [torch.autograd.grad(g[0, k], x, retain_graph=True)[0][0, k] for k in range(y.shape[1])]
        total += t * float((0.5 * g.square().sum() - sum(rows)).detach())
    return total / len(y)


def implicit_by_vmap(energy, y, t):
    def one(point):
        return energy(point[None])[0]

    gradient = torch.func.vmap(torch.func.grad(one))(y)
    hessian = torch.func.vmap(torch.func.hessian(one))(y)
    return t * (0.5 * gradient.square().sum(1) - hessian.diagonal(dim1=1, dim2=2).sum(1)).mean()


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


def to_tau_by_autograd(d_t, d_tt, t):
    tau = (0.5 * t.log()).requires_grad_()
    s = (2 * tau).exp()
    energy = d_t * (s - t) + 0.5 * d_tt * (s - t) ** 2  # the same derivatives at t
    (first,) = torch.autograd.grad(energy.sum(), tau, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), tau)
    return [first.detach(), second]


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
    "3.1": [explicit_by_autograd, explicit_normalised],
    "3.2": [implicit_point_by_point, implicit_by_vmap, implicit_with_its_graph],
    "3.3": [denoising_image_by_image],
    "3.4": [to_tau_by_autograd],
    "3.5": [
        lambda d, dd, high, low, a, b: float((d * d / 2 - dd).mean() + (high.mean() - low.mean()) / (b - a))
    ],
    "3.6": [fit_by_stacked_rows, fit_with_large_matrices],
}
