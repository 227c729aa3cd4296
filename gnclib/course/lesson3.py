"""Lesson 3, score matching: truths, random inputs, usual mistakes."""

from __future__ import annotations

import math

import numpy as np
import torch

from gnclib.course.lesson import F64, Exercise, Heading, Ridges, hints, shaped, slip, wide

# --- 3.1 explicit score matching ----------------------------------------------------------------------------------


def _draw_explicit(g):
    """The slope of an energy on the line, mean and variance of Gaussian data, t, quadrature nodes and weights (K,)."""
    a, b, c, m = (g.number(-1, 1) for _ in range(4))
    s2, t = g.number(0.05, 0.6), g.number(0.05, 0.6)
    reach = 9 * math.sqrt(s2 + t)
    y, q = (reach * torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(90))
    return lambda y: (1.5 + a) * (y - b) + c * torch.tanh(2 * y), m, s2, t, m + y, q


def _normal(y, m, v):
    return torch.exp(-0.5 * (y - m) ** 2 / v) / math.sqrt(2 * math.pi * v)


def _misfit(residual, t, weights):
    return 0.5 * t * (weights * residual**2).sum()


def _explicit(grad, m, s2, t, y, q):
    """E t/2 (R'(y) + d/dy log f(y | t))^2, one number."""
    return _misfit(grad(y) - (y - m) / (s2 + t), t, q * _normal(y, m, s2 + t))


def _explicit_with(density, score):
    """The loss with other variances of density and score, functions of s2 and t."""
    return lambda grad, m, s2, t, y, q: _misfit(
        grad(y) - (y - m) / score(s2, t), t, q * _normal(y, m, density(s2, t))
    )


EXPLICIT = Exercise(
    Heading("3.1", "explicit score matching by quadrature", points=2, minutes=10),
    solution=_explicit,
    draw=_draw_explicit,
    mistakes=hints(
        "the loss does not vanish at the true energy, whose gradient is MINUS the score: check a sign",
        lambda grad, m, s2, t, y, q: _misfit(grad(y) + (y - m) / (s2 + t), t, q * _normal(y, m, s2 + t)),
        "these are density and score of the clean data: the noise of variance t is missing",
        _explicit_with(lambda s2, t: s2, lambda s2, t: s2),
        "t is the noise variance already: do not square it again",
        _explicit_with(lambda s2, t: s2 + t**2, lambda s2, t: s2 + t**2),
        "the density is that of the noisy data, but the score still that of the clean ones: both have the noise",
        _explicit_with(lambda s2, t: s2 + t, lambda s2, t: s2),
        "the score is that of the noisy data, but the density still that of the clean ones: both have the noise",
        _explicit_with(lambda s2, t: s2, lambda s2, t: s2 + t),
        "s2 is the VARIANCE of the clean data, and variances add: it was squared as if it were a deviation",
        _explicit_with(lambda s2, t: s2**2 + t, lambda s2, t: s2**2 + t),
        _explicit_with(lambda s2, t: s2**2 + t**2, lambda s2, t: s2**2 + t**2),
        "s2 + t is a variance, and was taken for a standard deviation (torch.distributions.Normal expects one)",
        _explicit_with(lambda s2, t: (s2 + t) ** 2, lambda s2, t: s2 + t),
        _explicit_with(lambda s2, t: (s2 + t) ** 2, lambda s2, t: (s2 + t) ** 2),
        "all nodes count alike: in an expectation over y each one counts with the density of y there, too",
        lambda grad, m, s2, t, y, q: _misfit(grad(y) - (y - m) / (s2 + t), t, q),
        "the weights do not sum to one: the normal density lacks its factor in front of the exponential",
        lambda grad, m, s2, t, y, q: _explicit(grad, m, s2, t, y, q) * math.sqrt(2 * math.pi * (s2 + t)),
        "the nodes y are no sample: an integral is a sum with the quadrature weights q, not a mean over nodes",
        lambda grad, m, s2, t, y, q: _explicit(grad, m, s2, t, y, torch.ones_like(q) / len(q)),
        "the quadrature weights q are missing: the nodes are not equally spaced",
        slip(_explicit, q=torch.ones_like),
    ),
    factors=lambda grad, m, s2, t, y, q: {"t": t, "sigma": t**0.5},
)

# --- 3.2 implicit score matching ----------------------------------------------------------------------------------


def _draw_implicit(g):
    """An energy of points in R^d, points (B, d), and t."""
    d, count = g.integer(2, 5), g.integer(5, 8)
    return Ridges(g, d), g.randn(count, d), g.number(0.05, 0.7)


def _trace(hessian):
    return hessian.diagonal(dim1=1, dim2=2).sum(1)


def _implicit(energy, y, t, square=0.5, second=-1.0, trace=_trace):
    """The mean over the points of t (1/2 ||grad R||^2 - Laplacian of R), or with other factors or another trace."""
    gradient, hessian = energy.derivatives(y)
    return t * (square * gradient.square().sum(1) + second * trace(hessian)).mean()


IMPLICIT = Exercise(
    Heading("3.2", "implicit score matching by autograd", points=3, minutes=15),
    solution=_implicit,
    draw=_draw_implicit,
    mistakes=hints(
        "the Laplacian has the wrong sign: written for a score s the loss has + div s, but s = -grad R",
        slip(_implicit, second=1.0),
        "the second derivative is missing, and without it every constant energy would be a minimiser",
        slip(_implicit, second=0.0),
        "mixed derivatives have come in: the gradient of a SUM of first derivatives adds whole rows of the Hessian, "
        "the Laplacian is its diagonal only",
        slip(_implicit, trace=lambda hessian: hessian.sum((1, 2))),
        "the square has lost its factor 1/2: the two terms must keep their balance",
        slip(_implicit, square=1.0),
        "the Laplacian is halved, too: the factor 1/2 belongs to the square only",
        slip(_implicit, second=-0.5),
        "only the second derivative is left: the square of the gradient is missing",
        slip(_implicit, square=0.0),
    ),
    factors=lambda energy, y, t: {
        "t": t,
        "sigma": t**0.5,
        "the number of points B": len(y),
        "the dimension d": y.shape[1],
    },
    keeps_graph=True,  # a loss with which one trains has it
)

# --- 3.3 denoising score matching ---------------------------------------------------------------------------------


def _draw_batch(g):
    """The gradient of an energy of images, x and z (B, 1, H, W), and t (B,).

    At first B = H = W, so that a wrong broadcasting runs and is seen; then all three differ, as their names do.
    """
    a, b, s2 = g.number(0.5, 2), g.number(-1, 1), g.number(0.05, 0.5)
    side = g.integer(2, 5)
    size = g.in_turn(*4 * [(side, side, side)], (3, 4, 5), (4, 5, 3))
    x, z = g.rand(2, size[0], 1, *size[1:])

    def grad(y, t):
        t = wide(shaped("grad(y, t)", t, (len(y),)))
        return a * y / (s2 + t) + b * torch.tanh(3 * y)

    return grad, x, z, 0.02 + 0.6 * g.rand(size[0])


def _root(*shape):
    return lambda t: t.sqrt().reshape(shape)


_sigma = _root(-1, 1, 1, 1)


def _denoising(grad, x, z, t, noise=_sigma, weight=_sigma):
    """1/B sum_b 1/(2 n) ||sqrt(t) grad R(x + sqrt(t) z, t) - z||^2, or with other factors of t for sqrt(t)."""
    return 0.5 * (weight(t) * grad(x + noise(t) * z, t) - z).square().mean()


DENOISING = Exercise(
    Heading("3.3", "denoising score matching", points=2, minutes=10),
    solution=_denoising,
    draw=_draw_batch,
    mistakes=hints(
        "the noise is too weak where t < 1: z is scaled by a standard deviation, and t is a variance",
        slip(_denoising, noise=wide),
        "t stands where sigma = sqrt(t) belongs, at the noise and before the gradient: t is a variance",
        slip(_denoising, noise=wide, weight=wide),
        "the sign of z is wrong: the gradient of an ENERGY points where the noise has pushed",
        slip(_denoising, weight=lambda t: -_sigma(t)),
        "gradient and noise are compared on different scales: the gradient grows as t falls, z does not",
        slip(_denoising, weight=lambda t: 1.0),
        "t times the gradient is the noise sqrt(t) z itself, not z: check the power of t",
        slip(_denoising, weight=wide),
        "every noise level counts by its own scale, so that small t drown all others: the weight t is missing",
        lambda grad, x, z, t: 0.5 * (grad(x + _sigma(t) * z, t) - z / _sigma(t)).square().mean(),
        "the gradient is taken at the clean image: it is the noisy one that it has to explain",
        slip(_denoising, noise=lambda t: 0.0),
        "t (B,) was broadcast along rows or columns of the images: give it the shape (B, 1, 1, 1)",
        slip(_denoising, noise=_root(-1), weight=_root(-1)),
        slip(_denoising, noise=_root(-1, 1), weight=_root(-1, 1)),
        "only one of the two factors sqrt(t) has the shape (B, 1, 1, 1): the other one was broadcast along rows or "
        "columns of the images",
        slip(_denoising, weight=_root(-1)),
        slip(_denoising, noise=_root(-1)),
        slip(_denoising, weight=_root(-1, 1)),
        slip(_denoising, noise=_root(-1, 1)),
        "every image meets every noise level, (B, B, H, W): one t per image needs the shape (B, 1, 1, 1)",
        slip(_denoising, noise=_root(-1, 1, 1), weight=_root(-1, 1, 1)),
        slip(_denoising, weight=_root(-1, 1, 1)),
        slip(_denoising, noise=_root(-1, 1, 1)),
        "grad expects the noise variances t as its second argument, not sigma",
        slip(_denoising, grad=lambda grad: lambda y, t: grad(y, t.sqrt())),
        "the sum over the pixels is divided by one side of the images: n counts all their pixels, H times W",
        lambda grad, x, z, t: _denoising(grad, x, z, t) * x.shape[2],
        lambda grad, x, z, t: _denoising(grad, x, z, t) * x.shape[3],
    ),
    factors=lambda grad, x, z, t: {
        "the number of pixels n": x[0].numel(),
        "the batch size B": len(x),
        "the number n B of all pixels": x.numel(),
    },
)

# --- 3.4 from t to tau --------------------------------------------------------------------------------------------


def _draw_derivatives(g):
    """First and second derivatives in t, and t itself, all (B,)."""
    first, second, t = g.randn(3, g.integer(2, 6))
    return first, second, 0.1 + t.abs()


CHAIN = Exercise(
    Heading("3.4", "from t to tau", points=2, minutes=8),
    solution=lambda d, dd, t: (2 * t * d, 4 * t * d + 4 * t**2 * dd),
    draw=_draw_derivatives,
    mistakes=hints(
        "these are the derivatives in log t: tau is the logarithm of sigma, and sigma is the root of t",
        lambda d, dd, t: (t * d, t * d + t**2 * dd),
        "the second derivative lacks a term: the factor of the first derivative depends on tau as well",
        lambda d, dd, t: (2 * t * d, 4 * t**2 * dd),
        "in the second derivative the factor 2 t was differentiated in t: it is the derivative in tau that counts",
        lambda d, dd, t: (2 * t * d, 2 * d + 4 * t**2 * dd),
        "the second derivative is nearly right: what is the derivative of 2 t in tau, once more?",
        lambda d, dd, t: (2 * t * d, 2 * t * d + 4 * t**2 * dd),
        "in the second derivative the chain rule was used once only",
        lambda d, dd, t: (2 * t * d, 2 * t * dd),
    ),
    laws=hints(
        "the first derivative was divided by dt/dtau: write R as a function of tau and differentiate outside in",
        lambda r, d, dd, t: not torch.allclose(r[0], d / (2 * t)),
        "the first derivative is wrong already: what is dt/dtau, if t = exp(2 tau)?",
        lambda r, d, dd, t: torch.allclose(r[0], 2 * t * d),
        "the first derivative is right, the second is not: differentiate the product 2 t d_t R once more",
        lambda r, d, dd, t: torch.allclose(r[1], 4 * t * d + 4 * t**2 * dd),
    ),
)

# --- 3.5 implicit score matching in tau, with its boundary --------------------------------------------------------


def _draw_samples(g):
    """Derivatives over the interval and at its ends, in different numbers, and the ends."""
    counts = [g.integer(low, low + 3) for low in (13, 9, 5)]
    first, second = g.randn(2, counts[0])
    high, low = (g.randn(count) + 0.5 for count in counts[1:])
    tau_min = g.number(-4, -2)
    return first, second, high, low, tau_min, tau_min + g.number(1.3, 3)


def _inside(first, second):
    return (0.5 * first**2 - second).mean()


def _tau(first, second, high, low, a, b):
    """The implicit loss in tau on [a, b] with its boundary term, one number."""
    return _inside(first, second) + (high.mean() - low.mean()) / (b - a)


BOUNDARY = Exercise(
    Heading("3.5", "implicit score matching in tau", points=2, minutes=10),
    solution=_tau,
    draw=_draw_samples,
    mistakes=hints(
        "this is eq. (7) alone: what the integration by parts leaves at the two ends is missing",
        lambda first, second, *a: _inside(first, second),
        "the boundary term has the wrong sign: it must CHARGE for a rise of R at tau_max",
        lambda first, second, high, low, a, b: _tau(first, second, low, high, a, b),
        "the boundary term lacks the density of tau, which is not 1 on this interval",
        lambda first, second, high, low, a, b: _tau(first, second, high, low, 0.0, 1.0),
        "the boundary term was multiplied by the length of the interval: the density of tau is its inverse",
        lambda first, second, high, low, a, b: _tau(first, second, high, low, 0.0, 1 / (b - a)),
        "the second derivative has the wrong sign: for an energy it lowers the loss",
        slip(_tau, second=lambda second: -second),
        "the square has lost its factor 1/2: the terms must keep their balance",
        slip(_tau, first=lambda first: 2**0.5 * first),
        "the second derivative is halved, too: the factor 1/2 belongs to the square only",
        slip(_tau, second=lambda second: 0.5 * second),
        "these are sums over samples: an expectation is estimated by a mean",
        lambda first, second, high, low, a, b: (
            len(first) * _inside(first, second) + (high.sum() - low.sum()) / (b - a)
        ),
        "both ends are divided by the number of samples at tau_max: at tau_min there are others",
        lambda first, second, high, low, a, b: (
            _inside(first, second) + (high.sum() - low.sum()) / len(high) / (b - a)
        ),
        "at the two ends sums were taken: there, too, an expectation is estimated by a mean",
        slip(_tau, high=lambda high: len(high) * high, low=lambda low: len(low) * low),
        "both ends come with the same sign: an integral by parts leaves a difference",
        slip(_tau, low=lambda low: -low),
        "the lower end is missing: an integral by parts leaves a difference of two ends",
        slip(_tau, low=torch.zeros_like),
        "the boundary term is halved: the factor 1/2 belongs to the square only",
        slip(_tau, high=lambda high: high / 2, low=lambda low: low / 2),
        "everything was divided by the length of the interval: inside it, a mean over samples has done that already",
        lambda first, second, high, low, a, b: (_inside(first, second) + high.mean() - low.mean()) / (b - a),
        "this is the square of a mean: the loss has the mean of the square",
        lambda first, second, *a: _tau(first.mean() * torch.ones_like(first), second, *a),
    ),
)

# --- 3.6 the joint fit --------------------------------------------------------------------------------------------


def _draw_features(g):
    """Derivatives of J basis functions in y and in tau at B points, (B, J), the noise z and t (B,), lambda, rho."""
    count, size = g.integer(20, 24), g.integer(3, 7)
    phi_y, phi_tau = g.randn(2, count, size)
    z = g.randn(count)
    t = 0.05 + 2 * g.rand(count)
    return phi_y, phi_tau, z, t, g.number(0.1, 0.8), g.number(0.05, 0.5)


def _regress(rows, target, tau_rows, tau_target, lam, ridge):
    """The w with the least 1/(2 B) (||rows w - target||^2 + lam ||tau_rows w - tau_target||^2) + ridge/2 ||w||^2."""
    matrix = (rows.T @ rows + lam * tau_rows.T @ tau_rows) / len(rows)
    vector = (rows.T @ target + lam * tau_rows.T @ tau_target) / len(rows)
    return torch.linalg.solve(matrix + ridge * torch.eye(len(vector), **F64), vector)


def _rows(phi_y, t):
    return t.sqrt()[:, None] * phi_y


def _fit(phi_y, phi_tau, z, t, lam, ridge):
    return _regress(_rows(phi_y, t), z, phi_tau, 1 - z**2, lam, ridge)


FIT = Exercise(
    Heading("3.6", "a joint energy by least squares", points=3, minutes=15),
    solution=_fit,
    draw=_draw_features,
    mistakes=hints(
        "the target in tau has the wrong sign: more noise than expected means that R should FALL with tau",
        lambda p, q, z, t, lam, ridge: _regress(_rows(p, t), z, q, z**2 - 1, lam, ridge),
        "the target in tau lacks the number of pixels, here 1: its mean must be zero",
        lambda p, q, z, t, lam, ridge: _regress(_rows(p, t), z, q, -(z**2), lam, ridge),
        "the target in tau is 1 - z: its mean is one, but E[d_tau F | tau] = 0. Look at the exponent of z",
        lambda p, q, z, t, lam, ridge: _regress(_rows(p, t), z, q, 1 - z, lam, ridge),
        "sqrt(t) is missing before the derivative in y: the rows of the first regression are sqrt(t) phi_y",
        slip(_fit, t=torch.ones_like),
        "the derivative in y is multiplied by t: the regression of z needs a standard deviation there",
        slip(_fit, t=torch.square),
        "lambda is not used: it weighs the smoothing part against the image part",
        slip(_fit, lam=1.0),
        "only the image part is fitted: the smoothing part is missing",
        slip(_fit, lam=0.0),
        "lambda enters squared: if rows are stacked, which factor of a row gives lambda in its square?",
        slip(_fit, lam=lambda lam: lam**2),
        "lambda is twice too large: the derivative of lambda/2 (...)^2 is lambda times (...)",
        slip(_fit, lam=lambda lam: 2 * lam),
        "lambda is half of what it should be: the derivative of lambda/2 (...)^2 is lambda times (...)",
        slip(_fit, lam=lambda lam: lam / 2),
        "lambda is in the matrix but not in the right-hand side: differentiate the whole loss once more",
        lambda p, q, z, t, lam, ridge: _regress(_rows(p, t), z, q, (1 - z**2) / lam, lam, ridge),
        "lambda is in the right-hand side but not in the matrix: differentiate the whole loss once more",
        lambda p, q, z, t, lam, ridge: _regress(_rows(p, t), z, q, lam * (1 - z**2), 1.0, ridge),
        "the loss is a mean over samples and the ridge is not: with sums the ridge counts B times too little",
        lambda p, q, z, t, lam, ridge: _fit(p, q, z, t, lam, ridge / len(z)),
        "the matrix is a mean over samples, the right-hand side a sum: divide both by B",
        lambda p, q, z, *a: len(z) * _fit(p, q, z, *a),
        "the matrix is a sum over samples, the right-hand side a mean: divide both by B",
        lambda p, q, z, t, lam, ridge: _fit(p, q, z, t, lam, ridge / len(z)) / len(z),
        "the target in y has the wrong sign: by (*) sqrt(t) times the gradient of the energy is z, not -z",
        slip(_fit, z=lambda z: -z),
        "in the right-hand side sqrt(t) is missing before phi_y: the same rows as in the matrix meet z there",
        lambda p, q, z, t, lam, ridge: _regress(_rows(p, t), z / t.sqrt(), q, 1 - z**2, lam, ridge),
        "t is right in the matrix, but on the right-hand side the rows meet z, and only one of them has a sqrt(t)",
        lambda p, q, z, t, lam, ridge: _regress(_rows(p, t), z * t.sqrt(), q, 1 - z**2, lam, ridge),
        "the ridge is twice too large: the derivative of rho/2 ||w||^2 is rho w",
        slip(_fit, ridge=lambda ridge: 2 * ridge),
        "the ridge is half of what it should be: the derivative of rho/2 ||w||^2 is rho w",
        slip(_fit, ridge=lambda ridge: ridge / 2),
        "the ridge is missing: without it whatever the data leave open makes the system singular",
        slip(_fit, ridge=0.0),
    ),
)
