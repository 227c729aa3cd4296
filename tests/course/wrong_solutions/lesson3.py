"""Lesson 3."""

import math

import torch

from gnclib.course.lesson import slip

# --- 3.1 ----------------------------------------------------------------------------------------------------------


def noisy(s2, t):
    return s2 + t


def clean(s2, t):
    return s2


def t_squared(s2, t):
    return s2 + t**2


def both_squared(s2, t):
    return s2**2 + t**2


def explicit(
    grad,
    m,
    s2,
    t,
    y,
    q,
    density=noisy,
    score=noisy,
    sign=1.0,
    factor=lambda t: t / 2,
    of_log=torch.exp,
    total=torch.sum,
):
    """Right, with the variances of the noisy data in both density and score."""
    f = of_log(torch.distributions.Normal(m, math.sqrt(density(s2, t))).log_prob(y))
    return total(q * f * factor(t) * (grad(y) - sign * (y - m) / score(s2, t)) ** 2)


def explicit_not_normalised(grad, m, s2, t, y, q):
    return explicit(grad, m, s2, t, y, q) * math.sqrt(2 * math.pi * (s2 + t))


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


def implicit(energy, y, t, square=0.5, second=-1.0, average=torch.mean):
    y, g = _first(energy, y)
    return t * average(square * (g**2).sum(1) + second * _trace(y, g)).detach()


def implicit_sum_of_hessian(energy, y, t):
    y, g = _first(energy, y)
    (h,) = torch.autograd.grad(g.sum(), y)
    return t * (0.5 * (g**2).sum(1) - h.sum(1)).mean().item()


def implicit_mean_over_axes(energy, y, t):
    return implicit(energy, y, t) / y.shape[1]


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


# --- 3.3 ----------------------------------------------------------------------------------------------------------


def as_it_is(t):
    return t


def denoising(
    grad,
    x,
    z,
    t,
    noise=torch.sqrt,
    gain=torch.sqrt,
    asked=as_it_is,
    sign=-1.0,
    noise_shape=(-1, 1, 1, 1),
    gain_shape=(-1, 1, 1, 1),
    average=torch.mean,
):
    y = x + noise(t).view(noise_shape) * z
    return average(0.5 * (gain(t).view(gain_shape) * grad(y, asked(t)) + sign * z) ** 2)


def denoising_unweighted_score(grad, x, z, t):
    s = t.sqrt()[:, None, None, None]
    return (0.5 * (grad(x + s * z, t) - z / s) ** 2).mean()


def denoising_in_place(grad, x, z, t):
    s = t.sqrt()[:, None, None, None]
    x += s * z
    return (0.5 * (s * grad(x, t) - z) ** 2).mean()


def over_images(count):
    """The sum over the pixels of an image, averaged over the images and divided by a count of its shape."""
    return lambda squares: squares.sum((1, 2, 3)).mean() / count(squares.shape)


# --- 3.5 ----------------------------------------------------------------------------------------------------------


def tau(first, second, first_high, first_low, tau_min, tau_max, high=1.0, low=1.0, curve=1.0, end=torch.mean):
    edges = (high * end(first_high) - low * end(first_low)) / (tau_max - tau_min)
    return (first**2 / 2 - curve * second).mean() + edges


def tau_all_divided(first, second, first_high, first_low, tau_min, tau_max):
    inside = (first**2 / 2 - second).mean()
    return (inside + first_high.mean() - first_low.mean()) / (tau_max - tau_min)


def tau_square_of_a_mean(first, second, first_high, first_low, tau_min, tau_max):
    edges = (first_high.mean() - first_low.mean()) / (tau_max - tau_min)
    return first.mean() ** 2 / 2 - second.mean() + edges


def tau_mixed_sizes(first, second, first_high, first_low, tau_min, tau_max):
    return (first**2 / 2 - second + (first_high - first_low) / (tau_max - tau_min)).mean()


def tau_pairs_the_ends(first, second, first_high, first_low, tau_min, tau_max):
    edge = (first_high - first_low).mean() / (tau_max - tau_min)
    return (first**2 / 2 - second).mean() + edge


def tau_one_count(first, second, first_high, first_low, tau_min, tau_max):
    edge = (first_high.sum() - first_low.sum()) / len(first_high) / (tau_max - tau_min)
    return (first**2 / 2 - second).mean() + edge


# --- 3.6 ----------------------------------------------------------------------------------------------------------


def fit(
    phi_y,
    phi_tau,
    z,
    t,
    lam,
    ridge,
    sign=1.0,
    power=0.5,
    aim=lambda z: 1 - z**2,
    weigh_aim=True,
    divide=(True, True),
):
    """The normal equations a w = r; `divide` says which of the two are means over the points."""
    left, right = (t**p * phi_y.T for p in (0.5, power))
    a = left @ left.T + lam * phi_tau.T @ phi_tau
    r = sign * right @ z + (lam if weigh_aim else 1.0) * phi_tau.T @ aim(z)
    a, r = (side / len(z) if mean else side for side, mean in zip((a, r), divide, strict=True))
    return torch.linalg.solve(a + ridge * torch.eye(len(a), dtype=z.dtype), r)


WRONG = {
    "3.1": [
        (slip(explicit, sign=-1.0), "MINUS the score"),
        (slip(explicit, density=clean, score=clean), "of the clean data"),
        (slip(explicit, factor=lambda t: 0.5), "is t times too small"),
        (slip(explicit, factor=lambda t: t), "2 times the right one"),
        (slip(explicit, of_log=torch.ones_like), "density of y there, too"),
        (slip(explicit, q=lambda q: torch.ones_like(q) / len(q)), "not a mean over nodes"),
        (slip(explicit, q=1.0), "not equally spaced"),
        (explicit_not_normalised, "do not sum to one"),
        (slip(explicit, total=lambda terms: terms), "one number is wanted"),
        (slip(explicit, density=t_squared, score=t_squared), "noise variance already"),
        (slip(explicit, score=clean), "score still that of the clean"),
        (slip(explicit, density=clean), "density still that of the clean"),
        (slip(explicit, s2=lambda s2: s2**2), "squared as if it were a deviation"),
        (slip(explicit, density=both_squared, score=both_squared), "squared as if it were a deviation"),
        (slip(explicit, density=lambda s2, t: (s2 + t) ** 2), "taken for a standard deviation"),
        (explicit_keeps_the_graph, "carries the graph"),
    ],
    "3.2": [
        (slip(implicit, second=1.0), "div s"),
        (implicit_sum_of_hessian, "diagonal only"),
        (slip(implicit, second=0.0), "second derivative is missing"),
        (slip(implicit, t=1.0), "is t times too small"),
        (slip(implicit, average=torch.sum), "number of points B times too large"),
        (implicit_mean_over_axes, "dimension d times too small"),
        (slip(implicit, square=1.0), "lost its factor 1/2"),
        (slip(implicit, second=-0.5), "belongs to the square only"),
        (implicit_of_bare_points, r"energy\(y\) wants points of the shape"),
        (implicit_no_graph, "stopped with RuntimeError"),
        (slip(implicit, average=lambda terms: terms), "one number is wanted"),
    ],
    "3.3": [
        (slip(denoising, noise=as_it_is), "t is a variance"),
        (slip(denoising, sign=1.0), "sign of z"),
        (slip(denoising, gain=torch.ones_like), "different scales"),
        (slip(denoising, gain=as_it_is), "power of t"),
        (denoising_unweighted_score, "weight t is missing"),
        (slip(denoising, noise_shape=(-1,), gain_shape=(-1,)), r"\(B, 1, 1, 1\)"),
        (slip(denoising, noise_shape=(-1, 1), gain_shape=(-1, 1)), r"\(B, 1, 1, 1\)"),
        (slip(denoising, gain_shape=(-1,)), "only one of the two factors"),
        (slip(denoising, noise_shape=(-1, 1)), "only one of the two factors"),
        (slip(denoising, noise_shape=(-1, 1, 1), gain_shape=(-1, 1, 1)), "meets every noise level"),
        (slip(denoising, gain_shape=(-1, 1, 1)), "meets every noise level"),
        (slip(denoising, noise_shape=(-1, 1, 1)), "meets every noise level"),
        (slip(denoising, asked=torch.sqrt), "not sigma"),
        (slip(denoising, average=over_images(lambda shape: 1)), "number of pixels n times too large"),
        (
            slip(denoising, average=lambda squares: squares.mean((1, 2, 3)).sum()),
            "batch size B times too large",
        ),
        (slip(denoising, noise=torch.zeros_like), "clean image"),
        (slip(denoising, average=over_images(lambda shape: shape[-1])), "one side of the images"),
        (slip(denoising, average=over_images(lambda shape: shape[-2])), "one side of the images"),
        (slip(denoising, noise=as_it_is, gain=as_it_is), "t stands where sigma"),
        (
            slip(denoising, asked=lambda t: t[:, None, None, None]),
            r"grad\(y, t\) wants the shape \(\d,\)",
        ),
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
        (slip(tau, high=0.0, low=0.0), r"eq. \(7\) alone"),
        (slip(tau, high=-1.0, low=-1.0), "CHARGE"),
        (slip(tau, tau_min=0.0, tau_max=1.0), "lacks the density of tau"),
        (slip(tau, curve=-1.0), "lowers the loss"),
        (slip(tau, curve=0.5), "square only"),
        (slip(tau, low=-1.0), "leaves a difference"),
        (slip(tau, low=0.0), "lower end"),
        (tau_all_divided, "everything was divided"),
        (slip(tau, high=0.5, low=0.5), "term is halved"),
        (tau_square_of_a_mean, "square of a mean"),
        (slip(tau, end=torch.sum), "at the two ends sums"),
        (tau_mixed_sizes, "stopped with RuntimeError"),
        (tau_pairs_the_ends, "stopped with RuntimeError"),
        (tau_one_count, "at tau_min there are others"),
    ],
    "3.6": [
        (slip(fit, aim=lambda z: z**2 - 1), "should FALL"),
        (slip(fit, aim=lambda z: -(z**2)), "mean must be zero"),
        (slip(fit, t=torch.ones_like), "sqrt.t. is missing"),
        (slip(fit, lam=0.0), "smoothing part is missing"),
        (slip(fit, lam=lambda lam: lam**2), "enters squared"),
        (slip(fit, lam=lambda lam: 2 * lam), "lambda is twice too large"),
        (slip(fit, lam=lambda lam: lam / 2), "lambda is half"),
        (slip(fit, divide=(False, False)), "B times too little"),
        (slip(fit, z=lambda z: z[:, None]), "shape"),
        (slip(fit, ridge=0.0), "ridge is missing"),
        (slip(fit, weigh_aim=False), "not in the right-hand side"),
        (slip(fit, t=torch.square), "standard deviation there"),
        (slip(fit, sign=-1.0), "is z, not -z"),
        (slip(fit, power=0.0), "in the right-hand side sqrt.t. is missing"),
        (slip(fit, power=1.0), "only one of them has a sqrt"),
        (slip(fit, divide=(True, False)), "right-hand side a sum"),
        (slip(fit, divide=(False, True)), "right-hand side a mean"),
        (slip(fit, ridge=lambda ridge: 2 * ridge), "twice too large"),
        (slip(fit, ridge=lambda ridge: ridge / 2), "half of what it should be"),
    ],
}
