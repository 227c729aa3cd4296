"""Lesson 3."""

import math

import torch

# --- 3.1 ----------------------------------------------------------------------------------------------------------


def explicit_score_sign(grad, m, s2, t, y, q):
    v = s2 + t
    f = torch.exp(-((y - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
    return (q * f * t / 2 * (grad(y) - (-(y - m) / v)) ** 2).sum().item()


def explicit_clean(grad, m, s2, t, y, q):
    f = torch.distributions.Normal(m, s2**0.5).log_prob(y).exp()
    return (q * f * t / 2 * (grad(y) - (y - m) / s2) ** 2).sum().item()


def explicit_unweighted(grad, m, s2, t, y, q):
    normal = torch.distributions.Normal(m, math.sqrt(s2 + t))
    return float((q * normal.log_prob(y).exp() * 0.5 * (grad(y) - (y - m) / (s2 + t)) ** 2).sum())


def explicit_no_half(grad, m, s2, t, y, q):
    normal = torch.distributions.Normal(m, math.sqrt(s2 + t))
    return (q * normal.log_prob(y).exp() * t * (grad(y) - (y - m) / (s2 + t)) ** 2).sum()


def explicit_no_density(grad, m, s2, t, y, q):
    return 0.5 * t * torch.sum(q * (grad(y) - (y - m) / (s2 + t)) ** 2)


def explicit_mean(grad, m, s2, t, y, q):
    normal = torch.distributions.Normal(m, math.sqrt(s2 + t))
    return torch.mean(normal.log_prob(y).exp() * t / 2 * (grad(y) - (y - m) / (s2 + t)) ** 2)


def explicit_no_q(grad, m, s2, t, y, q):
    normal = torch.distributions.Normal(m, math.sqrt(s2 + t))
    return torch.sum(normal.log_prob(y).exp() * t / 2 * (grad(y) - (y - m) / (s2 + t)) ** 2)


def explicit_not_normalised(grad, m, s2, t, y, q):
    v = s2 + t
    return torch.sum(q * torch.exp(-((y - m) ** 2) / (2 * v)) * t / 2 * (grad(y) - (y - m) / v) ** 2)


def explicit_per_node(grad, m, s2, t, y, q):
    normal = torch.distributions.Normal(m, math.sqrt(s2 + t))
    return q * normal.log_prob(y).exp() * t / 2 * (grad(y) - (y - m) / (s2 + t)) ** 2


def explicit_t_squared(grad, m, s2, t, y, q):
    v = s2 + t**2
    f = torch.exp(-((y - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
    return (q * f * t / 2 * (grad(y) - (y - m) / v) ** 2).sum()


def explicit_mixed(grad, m, s2, t, y, q, density=None, score=None):
    v = s2 + t
    normal = torch.distributions.Normal(m, v**0.5 if density is None else density(s2, t))
    s = (m - y) / (v if score is None else score(s2, t))
    return (q * normal.log_prob(y).exp() * t / 2 * (grad(y) + s) ** 2).sum()


def explicit_keeps_the_graph(grad, m, s2, t, y, q):
    y = y.clone().requires_grad_()
    log_f = torch.distributions.Normal(m, (s2 + t) ** 0.5).log_prob(y)
    (score,) = torch.autograd.grad(log_f.sum(), y, create_graph=True)
    return (q * log_f.exp() * t / 2 * (grad(y) + score) ** 2).sum()


# --- 3.2 ----------------------------------------------------------------------------------------------------------


def _first(energy, y):
    y = y.clone().requires_grad_()
    (g,) = torch.autograd.grad(energy(y).sum(), y, create_graph=True)
    return y, g


def _trace(y, g):
    return sum(torch.autograd.grad(g[:, k].sum(), y, retain_graph=True)[0][:, k] for k in range(y.shape[1]))


def implicit_score_form(energy, y, t):
    y, g = _first(energy, y)
    return t * (0.5 * (g**2).sum(1) + _trace(y, g)).mean().item()


def implicit_sum_of_hessian(energy, y, t):
    y, g = _first(energy, y)
    (h,) = torch.autograd.grad(g.sum(), y)
    return t * (0.5 * (g**2).sum(1) - h.sum(1)).mean().item()


def implicit_no_second(energy, y, t):
    _, g = _first(energy, y)
    return t * 0.5 * (g**2).sum(1).mean().item()


def implicit_no_weight(energy, y, t):
    y, g = _first(energy, y)
    return (0.5 * (g**2).sum(1) - _trace(y, g)).mean().item()


def implicit_sum(energy, y, t):
    y, g = _first(energy, y)
    return t * (0.5 * (g**2).sum(1) - _trace(y, g)).sum().item()


def implicit_mean_over_axes(energy, y, t):
    y, g = _first(energy, y)
    return t * (0.5 * (g**2).mean(1) - _trace(y, g) / y.shape[1]).mean().item()


def implicit_no_half(energy, y, t):
    y, g = _first(energy, y)
    return t * ((g**2).sum(1) - _trace(y, g)).mean().item()


def implicit_half_of_both(energy, y, t):
    y, g = _first(energy, y)
    return t * (0.5 * (g**2).sum(1) - 0.5 * _trace(y, g)).mean().item()


def implicit_of_bare_points(energy, y, t):
    """A Hessian per point, of points without their first axis."""
    total = 0.0
    for point in y:
        g = torch.autograd.functional.jacobian(energy, point)
        total += t * (0.5 * g @ g - torch.autograd.functional.hessian(energy, point).trace())
    return total / len(y)


def implicit_no_graph(energy, y, t):
    y = y.clone().requires_grad_()
    (g,) = torch.autograd.grad(energy(y).sum(), y)
    return t * (0.5 * (g**2).sum(1) - _trace(y, g)).mean().item()


def implicit_per_point(energy, y, t):
    y, g = _first(energy, y)
    return t * (0.5 * (g**2).sum(1) - _trace(y, g))


# --- 3.3 ----------------------------------------------------------------------------------------------------------


def denoising_t_as_deviation(grad, x, z, t):
    t_wide = t[:, None, None, None]
    y = x + t_wide * z
    return (0.5 * (t_wide.sqrt() * grad(y, t) - z) ** 2).mean().item()


def denoising_plus(grad, x, z, t):
    s = t.sqrt()[:, None, None, None]
    return (0.5 * (s * grad(x + s * z, t) + z) ** 2).mean()


def denoising_no_weight(grad, x, z, t):
    s = t.sqrt()[:, None, None, None]
    return (0.5 * (grad(x + s * z, t) - z) ** 2).mean()


def denoising_t_weight(grad, x, z, t):
    v = t[:, None, None, None]
    return (0.5 * (v * grad(x + v.sqrt() * z, t) - z) ** 2).mean()


def denoising_unweighted_score(grad, x, z, t):
    s = t.sqrt()[:, None, None, None]
    return (0.5 * (grad(x + s * z, t) - z / s) ** 2).mean()


def denoising_broadcast(grad, x, z, t):
    return (0.5 * (t.sqrt() * grad(x + t.sqrt() * z, t) - z) ** 2).mean()


def denoising_broadcast_rows(grad, x, z, t):
    s = t.sqrt()[:, None]
    return (0.5 * (s * grad(x + s * z, t) - z) ** 2).mean()


def denoising_sum_over_pixels(grad, x, z, t):
    s = t.sqrt()[:, None, None, None]
    return (0.5 * (s * grad(x + s * z, t) - z) ** 2).sum((1, 2, 3)).mean()


def denoising_mean_over_pixels_only(grad, x, z, t):
    s = t.sqrt()[:, None, None, None]
    return (0.5 * (s * grad(x + s * z, t) - z) ** 2).mean((1, 2, 3)).sum()


def denoising_divides_by(grad, x, z, t, count=None):
    s = t.sqrt()[:, None, None, None]
    return ((s * grad(x + s * z, t) - z) ** 2).sum((1, 2, 3)).mean() / (2 * count(x))


def denoising_t_for_sigma(grad, x, z, t):
    v = t[:, None, None, None]
    return (0.5 * (v * grad(x + v * z, t) - z) ** 2).mean()


def denoising_asks_with_axes(grad, x, z, t):
    v = t[:, None, None, None]
    return (0.5 * (v.sqrt() * grad(x + v.sqrt() * z, v) - z) ** 2).mean()


def denoising_at_clean(grad, x, z, t):
    s = t.sqrt()[:, None, None, None]
    return (0.5 * (s * grad(x, t) - z) ** 2).mean()


def denoising_in_place(grad, x, z, t):
    s = t.sqrt()[:, None, None, None]
    x += s * z
    return (0.5 * (s * grad(x, t) - z) ** 2).mean()


def denoising_two_shapes(grad, x, z, t, noise_shape=(-1, 1, 1, 1), weight_shape=(-1, 1, 1, 1)):
    y = x + t.sqrt().view(noise_shape) * z
    return 0.5 * ((t.sqrt().view(weight_shape) * grad(y, t) - z) ** 2).mean()


def denoising_asks_for_sigma(grad, x, z, t):
    sigma = t.sqrt()
    wide = sigma[:, None, None, None]
    return (0.5 * (wide * grad(x + wide * z, sigma) - z) ** 2).mean()


# --- 3.5 ----------------------------------------------------------------------------------------------------------


def tau_restored(first, second, first_high, first_low, tau_min, tau_max):
    return (first**2 / 2 - second).mean().item()


def tau_edges_swapped(first, second, first_high, first_low, tau_min, tau_max):
    edge = (first_low.mean() - first_high.mean()) / (tau_max - tau_min)
    return (first**2 / 2 - second).mean() + edge


def tau_no_length(first, second, first_high, first_low, tau_min, tau_max):
    return (first**2 / 2 - second).mean() + first_high.mean() - first_low.mean()


def tau_plus_second(first, second, first_high, first_low, tau_min, tau_max):
    edge = (first_high.mean() - first_low.mean()) / (tau_max - tau_min)
    return (first**2 / 2 + second).mean() + edge


def tau_sum_of_ends(first, second, first_high, first_low, tau_min, tau_max):
    edge = (first_high.mean() + first_low.mean()) / (tau_max - tau_min)
    return (first**2 / 2 - second).mean() + edge


def tau_sums(first, second, first_high, first_low, tau_min, tau_max):
    edge = (first_high.sum() - first_low.sum()) / (tau_max - tau_min)
    return (first**2 / 2 - second).mean() + edge


def tau_mixed_sizes(first, second, first_high, first_low, tau_min, tau_max):
    return (first**2 / 2 - second + (first_high - first_low) / (tau_max - tau_min)).mean()


def tau_pairs_the_ends(first, second, first_high, first_low, tau_min, tau_max):
    edge = (first_high - first_low).mean() / (tau_max - tau_min)
    return (first**2 / 2 - second).mean() + edge


def tau_one_count(first, second, first_high, first_low, tau_min, tau_max):
    edge = (first_high.sum() - first_low.sum()) / len(first_high) / (tau_max - tau_min)
    return (first**2 / 2 - second).mean() + edge


# --- 3.6 ----------------------------------------------------------------------------------------------------------


def _solve(a, b, ridge):
    return torch.linalg.solve(a + ridge * torch.eye(len(b), dtype=b.dtype), b)


def fit_target_sign(phi_y, phi_tau, z, t, lam, ridge):
    b = len(z)
    p = t.sqrt()[:, None] * phi_y
    return _solve(
        (p.T @ p + lam * phi_tau.T @ phi_tau) / b, (p.T @ z + lam * phi_tau.T @ (z**2 - 1)) / b, ridge
    )


def fit_target_not_centred(phi_y, phi_tau, z, t, lam, ridge):
    b = len(z)
    p = t.sqrt()[:, None] * phi_y
    return _solve((p.T @ p + lam * phi_tau.T @ phi_tau) / b, (p.T @ z - lam * phi_tau.T @ z**2) / b, ridge)


def fit_no_root(phi_y, phi_tau, z, t, lam, ridge):
    b = len(z)
    a = (phi_y.T @ phi_y + lam * phi_tau.T @ phi_tau) / b
    return _solve(a, (phi_y.T @ z + lam * phi_tau.T @ (1 - z**2)) / b, ridge)


def fit_image_only(phi_y, phi_tau, z, t, lam, ridge):
    p = t.sqrt()[:, None] * phi_y
    return _solve(p.T @ p / len(z), p.T @ z / len(z), ridge)


def fit_stacked(phi_y, phi_tau, z, t, lam, ridge):
    rows = torch.cat([t.sqrt()[:, None] * phi_y, lam * phi_tau])
    right = torch.cat([z, lam * (1 - z**2)])
    return _solve(rows.T @ rows / len(z), rows.T @ right / len(z), ridge)


def fit_sums(phi_y, phi_tau, z, t, lam, ridge):
    p = t.sqrt()[:, None] * phi_y
    return _solve(p.T @ p + lam * phi_tau.T @ phi_tau, p.T @ z + lam * phi_tau.T @ (1 - z**2), ridge)


def fit_column(phi_y, phi_tau, z, t, lam, ridge):
    b = len(z)
    p, z = t.sqrt()[:, None] * phi_y, z[:, None]
    a = (p.T @ p + lam * phi_tau.T @ phi_tau) / b
    return _solve(a, (p.T @ z + lam * phi_tau.T @ (1 - z**2)) / b, ridge)


def fit_no_ridge(phi_y, phi_tau, z, t, lam, ridge):
    b = len(z)
    p = t.sqrt()[:, None] * phi_y
    return _solve((p.T @ p + lam * phi_tau.T @ phi_tau) / b, (p.T @ z + lam * phi_tau.T @ (1 - z**2)) / b, 0)


def fit_forgotten_factor(phi_y, phi_tau, z, t, lam, ridge):
    b = len(z)
    p = t.sqrt()[:, None] * phi_y
    return _solve((p.T @ p + lam * phi_tau.T @ phi_tau) / b, (p.T @ z + phi_tau.T @ (1 - z**2)) / b, ridge)


def fit_times_t(phi_y, phi_tau, z, t, lam, ridge):
    b = len(z)
    p = t[:, None] * phi_y
    return _solve(
        (p.T @ p + lam * phi_tau.T @ phi_tau) / b, (p.T @ z + lam * phi_tau.T @ (1 - z**2)) / b, ridge
    )


def fit_normal(phi_y, phi_tau, z, t, lam, ridge, sign=1.0, power=0.5, divide=(True, True), times=1.0):
    b = len(z)
    a = phi_y.T @ torch.diag(t) @ phi_y + lam * phi_tau.T @ phi_tau
    r = sign * phi_y.T @ (t**power * z) + lam * phi_tau.T @ (1 - z**2)
    return _solve(a / b if divide[0] else a, r / b if divide[1] else r, times * ridge)


WRONG = {
    "3.1": [
        (explicit_score_sign, "MINUS the score"),
        (explicit_clean, "of the clean data"),
        (explicit_unweighted, "is t times too small"),
        (explicit_no_half, "2 times the right one"),
        (explicit_no_density, "density of y there, too"),
        (explicit_mean, "not a mean over nodes"),
        (explicit_no_q, "not equally spaced"),
        (explicit_not_normalised, "do not sum to one"),
        (explicit_per_node, "one number is wanted"),
        (explicit_t_squared, "noise variance already"),
        (lambda *a: explicit_mixed(*a, score=lambda s2, t: s2), "score still that of the clean"),
        (lambda *a: explicit_mixed(*a, density=lambda s2, t: s2**0.5), "density still that of the clean"),
        (
            lambda *a: explicit_mixed(
                *a, density=lambda s2, t: (s2**2 + t) ** 0.5, score=lambda s2, t: s2**2 + t
            ),
            "squared as if it were a deviation",
        ),
        (
            lambda *a: explicit_mixed(
                *a, density=lambda s2, t: math.hypot(s2, t), score=lambda s2, t: s2**2 + t**2
            ),
            "squared as if it were a deviation",
        ),
        (lambda *a: explicit_mixed(*a, density=lambda s2, t: s2 + t), "taken for a standard deviation"),
        (explicit_keeps_the_graph, "carries the graph"),
    ],
    "3.2": [
        (implicit_score_form, "div s"),
        (implicit_sum_of_hessian, "diagonal only"),
        (implicit_no_second, "second derivative is missing"),
        (implicit_no_weight, "is t times too small"),
        (implicit_sum, "number of points B times too large"),
        (implicit_mean_over_axes, "dimension d times too small"),
        (implicit_no_half, "lost its factor 1/2"),
        (implicit_half_of_both, "belongs to the square only"),
        (implicit_of_bare_points, r"energy\(y\) wants points of the shape"),
        (implicit_no_graph, "stopped with RuntimeError"),
        (implicit_per_point, "one number is wanted"),
    ],
    "3.3": [
        (denoising_t_as_deviation, "t is a variance"),
        (denoising_plus, "sign of z"),
        (denoising_no_weight, "different scales"),
        (denoising_t_weight, "power of t"),
        (denoising_unweighted_score, "weight t is missing"),
        (denoising_broadcast, r"\(B, 1, 1, 1\)"),
        (denoising_broadcast_rows, r"\(B, 1, 1, 1\)"),
        (lambda *a: denoising_two_shapes(*a, weight_shape=(-1,)), "only one of the two factors"),
        (lambda *a: denoising_two_shapes(*a, noise_shape=(-1, 1)), "only one of the two factors"),
        (
            lambda *a: denoising_two_shapes(*a, noise_shape=(-1, 1, 1), weight_shape=(-1, 1, 1)),
            "meets every noise level",
        ),
        (lambda *a: denoising_two_shapes(*a, weight_shape=(-1, 1, 1)), "meets every noise level"),
        (lambda *a: denoising_two_shapes(*a, noise_shape=(-1, 1, 1)), "meets every noise level"),
        (denoising_asks_for_sigma, "not sigma"),
        (denoising_sum_over_pixels, "number of pixels n times too large"),
        (denoising_mean_over_pixels_only, "batch size B times too large"),
        (denoising_at_clean, "clean image"),
        (lambda *a: denoising_divides_by(*a, count=lambda x: x.shape[-1]), "one side of the images"),
        (lambda *a: denoising_divides_by(*a, count=lambda x: x.shape[-2]), "one side of the images"),
        (denoising_t_for_sigma, "t stands where sigma"),
        (denoising_asks_with_axes, r"grad\(y, t\) wants the shape \(\d,\)"),
        (denoising_in_place, "changes its argument number 2 in place"),
    ],
    "3.4": [
        (lambda d_t, d_tt, t: (t * d_t, t * d_t + t**2 * d_tt), "derivatives in log t"),
        (lambda d_t, d_tt, t: (2 * t * d_t, 4 * t**2 * d_tt), "lacks a term"),
        (lambda d_t, d_tt, t: (2 * t * d_t, 2 * d_t + 4 * t**2 * d_tt), "derivative in tau that counts"),
        (lambda d_t, d_tt, t: (d_t / (2 * t), d_tt / (4 * t**2)), "divided by dt/dtau"),
        (lambda d_t, d_tt, t: (2 * t.sqrt() * d_t, 4 * t * d_tt), "wrong already"),
        (lambda d_t, d_tt, t: (2 * t * d_t, 4 * t * d_t - 4 * t**2 * d_tt), "the second is not"),
        (lambda d_t, d_tt, t: (2 * t * d_t, 2 * t * d_tt), "once only"),
        (lambda d_t, d_tt, t: 2 * t * d_t, "2 results are wanted"),
    ],
    "3.5": [
        (tau_restored, r"eq. \(7\) alone"),
        (tau_edges_swapped, "CHARGE"),
        (tau_no_length, "lacks the density of tau"),
        (tau_plus_second, "lowers the loss"),
        (
            lambda d, dd, *a: (
                tau_restored(d, dd / 2, *a) + a[0].mean() / (a[3] - a[2]) - a[1].mean() / (a[3] - a[2])
            ),
            "square only",
        ),
        (tau_sum_of_ends, "leaves a difference"),
        (
            lambda d, dd, high, low, a, b: tau_restored(d, dd, high, low, a, b) + high.mean() / (b - a),
            "lower end",
        ),
        (lambda *a: (tau_restored(*a) + a[2].mean() - a[3].mean()) / (a[5] - a[4]), "everything was divided"),
        (lambda *a: tau_restored(*a) + (a[2].mean() - a[3].mean()) / 2 / (a[5] - a[4]), "term is halved"),
        (
            lambda d, dd, *a: d.mean() ** 2 / 2 - dd.mean() + (a[0].mean() - a[1].mean()) / (a[3] - a[2]),
            "square of a mean",
        ),
        (tau_sums, "at the two ends sums"),
        (tau_mixed_sizes, "stopped with RuntimeError"),
        (tau_pairs_the_ends, "stopped with RuntimeError"),
        (tau_one_count, "at tau_min there are others"),
    ],
    "3.6": [
        (fit_target_sign, "should FALL"),
        (fit_target_not_centred, "mean must be zero"),
        (fit_no_root, "sqrt.t. is missing"),
        (fit_image_only, "smoothing part is missing"),
        (fit_stacked, "enters squared"),
        (lambda p, q, z, t, lam, rho: fit_normal(p, q, z, t, 2 * lam, rho), "lambda is twice too large"),
        (lambda p, q, z, t, lam, rho: fit_normal(p, q, z, t, lam / 2, rho), "lambda is half"),
        (fit_sums, "B times too little"),
        (fit_column, "shape"),
        (fit_no_ridge, "ridge is missing"),
        (fit_forgotten_factor, "not in the right-hand side"),
        (fit_times_t, "standard deviation there"),
        (lambda *a: fit_normal(*a, sign=-1.0), "is z, not -z"),
        (lambda *a: fit_normal(*a, power=0.0), "in the right-hand side sqrt.t. is missing"),
        (lambda *a: fit_normal(*a, power=1.0), "only one of them has a sqrt"),
        (lambda *a: fit_normal(*a, divide=(True, False)), "right-hand side a sum"),
        (lambda *a: fit_normal(*a, divide=(False, True)), "right-hand side a mean"),
        (lambda *a: fit_normal(*a, times=2.0), "twice too large"),
        (lambda *a: fit_normal(*a, times=0.5), "half of what it should be"),
    ],
}
