"""Lesson 3, score matching: the truths, the random inputs and the usual mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gnclib.course.engine import Exercise, Law, Mistake
from gnclib.score.toy import cells

F64 = {"dtype": torch.float64}


def _number(g: torch.Generator, low: float, high: float) -> float:
    return float(low + (high - low) * torch.rand(1, generator=g, **F64))


# --- 3.1 explicit score matching ----------------------------------------------------------------------------------


def _explicit_draw(g: torch.Generator) -> tuple:
    a, b, c, m = (_number(g, -1, 1) for _ in range(4))
    s2, t = _number(g, 0.05, 0.6), _number(g, 0.05, 0.6)
    reach = 9 * math.sqrt(s2 + t)
    y, q = cells(m - reach, m + reach, 30)
    return lambda y: (1.5 + a) * (y - b) + c * torch.tanh(2 * y), m, s2, t, y, q


def _explicit(grad, m, s2, t, y, q, *, v=None, score_v=None, density=True, sign=1.0, norm=True, weight=None):
    v = s2 + t if v is None else v
    score_v = v if score_v is None else score_v
    f = torch.exp(-0.5 * (y - m) ** 2 / v) / (math.sqrt(2 * math.pi * v) if norm else 1.0)
    residual = grad(y) + sign * (m - y) / score_v
    weight = t if weight is None else weight
    return 0.5 * weight * (q * (f if density else 1.0) * residual**2).sum()


EXPLICIT = Exercise(
    "3.1",
    "explicit score matching by quadrature",
    points=2,
    minutes=10,
    solution=_explicit,
    draw=_explicit_draw,
    mistakes=(
        Mistake(
            partial(_explicit, sign=-1.0),
            "the loss does not vanish at the true energy, whose gradient is MINUS the score: check a sign",
        ),
        Mistake(
            lambda grad, m, s2, t, y, q: _explicit(grad, m, s2, t, y, q, v=s2),
            "these are density and score of the clean data: the noise of variance t is missing",
        ),
        Mistake(
            lambda grad, m, s2, t, y, q: _explicit(grad, m, s2, t, y, q, v=s2 + t**2),
            "t is the noise variance already: do not square it again",
        ),
        Mistake(
            lambda grad, m, s2, t, y, q: _explicit(grad, m, s2, t, y, q, score_v=s2),
            "the density is that of the noisy data, but the score still that of the clean ones: both have the noise",
        ),
        Mistake(
            lambda grad, m, s2, t, y, q: _explicit(grad, m, s2, t, y, q, v=s2, score_v=s2 + t),
            "the score is that of the noisy data, but the density still that of the clean ones: both have the noise",
        ),
        *(
            Mistake(
                lambda grad, m, s2, t, y, q, wide=wide: _explicit(grad, m, s2, t, y, q, v=wide(s2, t)),
                "s2 is the VARIANCE of the clean data, and variances add: it was squared as if it were a deviation",
            )
            for wide in (lambda s2, t: s2**2 + t, lambda s2, t: s2**2 + t**2)
        ),
        *(
            Mistake(
                lambda grad, m, s2, t, y, q, right=right: _explicit(
                    grad, m, s2, t, y, q, v=(s2 + t) ** 2, score_v=s2 + t if right else None
                ),
                "s2 + t is a variance, and was taken for a standard deviation (torch.distributions.Normal expects one)",
            )
            for right in (True, False)
        ),
        Mistake(
            partial(_explicit, density=False),
            "all nodes count alike: in an expectation over y each one counts with the density of y there, too",
        ),
        Mistake(
            partial(_explicit, norm=False),
            "the weights do not sum to one: the normal density lacks its factor in front of the exponential",
        ),
        Mistake(
            lambda grad, m, s2, t, y, q: _explicit(grad, m, s2, t, y, torch.ones_like(q)) / len(y),
            "the nodes y are no sample: an integral is a sum with the quadrature weights q, not a mean over nodes",
        ),
        Mistake(
            lambda grad, m, s2, t, y, q: _explicit(grad, m, s2, t, y, torch.ones_like(q)),
            "the quadrature weights q are missing: the nodes are not equally spaced",
        ),
    ),
    laws=(Law(lambda loss, *a: float(loss) >= 0, "a mean of squares cannot be negative"),),
    factors=lambda grad, m, s2, t, y, q: {"t": t, "sigma": t**0.5},
)

# --- 3.2 implicit score matching ----------------------------------------------------------------------------------


class Ridges:
    """R(y) = 1/2 y^T A y + sum_k c_k log cosh(b_k . y): smooth, not convex, all derivatives in closed form."""

    def __init__(self, g: torch.Generator, d: int):
        a = torch.randn(d, d, generator=g, **F64)
        self.a, self.b = a + a.T, torch.randn(4, d, generator=g, **F64)
        self.c = torch.randn(4, generator=g, **F64)

    def __call__(self, y: Tensor) -> Tensor:
        u = y @ self.b.T  # (B, 4)
        log_cosh = torch.logaddexp(u, -u) - math.log(2)
        return 0.5 * ((y @ self.a) * y).sum(-1) + log_cosh @ self.c

    def derivatives(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (B, d) and Hessian (B, d, d)."""
        slope = torch.tanh(y @ self.b.T)
        bends = torch.einsum("bk,ki,kj->bij", self.c * (1 - slope**2), self.b, self.b)
        return y @ self.a + (self.c * slope) @ self.b, self.a + bends


def _implicit_draw(g: torch.Generator) -> tuple:
    d, count = (int(torch.randint(low, low + 4, (1,), generator=g)) for low in (2, 5))
    return Ridges(g, d), torch.randn(count, d, generator=g, **F64), _number(g, 0.05, 0.7)


def _implicit(energy, y, t, *, half=0.5, sign=-1.0, trace="diagonal"):
    grad, hess = energy.derivatives(y)
    second = hess.diagonal(dim1=1, dim2=2).sum(1) if trace == "diagonal" else hess.sum((1, 2))
    return t * (half * grad.square().sum(1) + sign * second).mean()


IMPLICIT = Exercise(
    "3.2",
    "implicit score matching by autograd",
    points=3,
    minutes=15,
    solution=_implicit,
    draw=_implicit_draw,
    mistakes=(
        Mistake(
            partial(_implicit, sign=1.0),
            "the Laplacian has the wrong sign: written for a score s the loss has + div s, but s = -grad R",
        ),
        Mistake(
            partial(_implicit, sign=0.0),
            "the second derivative is missing, and without it every constant energy would be a minimiser",
        ),
        Mistake(
            partial(_implicit, trace="all"),
            "mixed derivatives have come in: the gradient of a SUM of first derivatives adds whole rows of the "
            "Hessian, the Laplacian is its diagonal only",
        ),
        Mistake(
            partial(_implicit, half=1.0),
            "the square has lost its factor 1/2: the two terms must keep their balance",
        ),
        Mistake(
            partial(_implicit, half=0.0),
            "only the second derivative is left: the square of the gradient is missing",
        ),
    ),
    factors=lambda energy, y, t: {
        "t": t,
        "sigma": t**0.5,
        "the number of points B": len(y),
        "the dimension d": y.shape[1],
    },
)

# --- 3.3 denoising score matching ---------------------------------------------------------------------------------


def _image_gradient(g: torch.Generator):
    a, b, s2 = _number(g, 0.5, 2), _number(g, -1, 1), _number(g, 0.05, 0.5)

    def grad(y: Tensor, t: Tensor) -> Tensor:
        return a * y / (s2 + torch.as_tensor(t).reshape(-1, 1, 1, 1)) + b * torch.tanh(3 * y)

    return grad


def _denoising_draw(g: torch.Generator) -> tuple:
    """As many images as rows and columns, so that a wrong broadcasting runs and is seen."""
    side = int(torch.randint(2, 6, (1,), generator=g))
    x = torch.rand(side, 1, side, side, generator=g, **F64)
    z = torch.randn(x.shape, generator=g, **F64)
    return _image_gradient(g), x, z, 0.02 + 0.6 * torch.rand(side, generator=g, **F64)


def _denoising(
    grad,
    x,
    z,
    t,
    *,
    shape=(-1, 1, 1, 1),
    shape_2=None,
    noise=0.5,
    power=0.5,
    sign=-1.0,
    at_clean=False,
    ask=1.0,
):
    wide, wide_2 = t.reshape(shape), t.reshape(shape_2 or shape)
    y = x if at_clean else x + wide**noise * z
    return 0.5 * (wide_2**power * grad(y, t**ask) + sign * z).square().mean()


DENOISING = Exercise(
    "3.3",
    "denoising score matching",
    points=2,
    minutes=10,
    solution=_denoising,
    draw=_denoising_draw,
    mistakes=(
        Mistake(
            partial(_denoising, noise=1.0),
            "the noise is too weak where t < 1: z is scaled by a standard deviation, and t is a variance",
        ),
        Mistake(
            partial(_denoising, sign=1.0),
            "the sign of z is wrong: the gradient of an ENERGY points where the noise has pushed",
        ),
        Mistake(
            partial(_denoising, power=0.0),
            "gradient and noise are compared on different scales: the gradient grows as t falls, z does not",
        ),
        Mistake(
            partial(_denoising, power=1.0),
            "t times the gradient is the noise sqrt(t) z itself, not z: check the power of t",
        ),
        Mistake(
            lambda grad, x, z, t: (
                0.5
                * (grad(x + t.reshape(-1, 1, 1, 1).sqrt() * z, t) - z / t.sqrt().reshape(-1, 1, 1, 1))
                .square()
                .mean()
            ),
            "every noise level counts by its own scale, so that small t drown all others: the weight t is missing",
        ),
        Mistake(
            partial(_denoising, at_clean=True),
            "the gradient is taken at the clean image: it is the noisy one that it has to explain",
        ),
        *(
            Mistake(
                partial(_denoising, shape=shape),
                "t (B,) was broadcast along rows or columns of the images: give it the shape (B, 1, 1, 1)",
            )
            for shape in ((-1,), (-1, 1))
        ),
        *(
            Mistake(
                partial(_denoising, **shapes),
                "only one of the two factors sqrt(t) has the shape (B, 1, 1, 1): the other one was broadcast along "
                "rows or columns of the images",
            )
            for shape in ((-1,), (-1, 1))
            for shapes in ({"shape_2": shape}, {"shape": shape, "shape_2": (-1, 1, 1, 1)})
        ),
        *(
            Mistake(
                partial(_denoising, **shapes),
                "every image meets every noise level, (B, B, H, W): one t per image needs the shape (B, 1, 1, 1)",
            )
            for shapes in (
                {"shape": (-1, 1, 1)},
                {"shape_2": (-1, 1, 1)},
                {"shape": (-1, 1, 1), "shape_2": (-1, 1, 1, 1)},
            )
        ),
        Mistake(
            partial(_denoising, ask=0.5),
            "grad expects the noise variances t as its second argument, not sigma",
        ),
    ),
    laws=(Law(lambda loss, *a: float(loss) >= 0, "a mean of squares cannot be negative"),),
    factors=lambda grad, x, z, t: {
        "the number of pixels n": x[0].numel(),
        "the batch size B": len(x),
        "the number n B of all pixels": x.numel(),
    },
)

# --- 3.4 from t to tau --------------------------------------------------------------------------------------------


def _chain_draw(g: torch.Generator) -> tuple:
    count = int(torch.randint(2, 7, (1,), generator=g))
    first, second, t = torch.randn(3, count, generator=g, **F64)
    return first, second, 0.1 + t.abs()


CHAIN = Exercise(
    "3.4",
    "from t to tau",
    points=2,
    minutes=8,
    solution=lambda d, dd, t: (2 * t * d, 4 * t * d + 4 * t**2 * dd),
    draw=_chain_draw,
    mistakes=(
        Mistake(
            lambda d, dd, t: (t * d, t * d + t**2 * dd),
            "these are the derivatives in log t: tau is the logarithm of sigma, and sigma is the root of t",
        ),
        Mistake(
            lambda d, dd, t: (2 * t * d, 4 * t**2 * dd),
            "the second derivative lacks a term: the factor of the first derivative depends on tau as well",
        ),
        Mistake(
            lambda d, dd, t: (2 * t * d, 2 * d + 4 * t**2 * dd),
            "in the second derivative the factor 2 t was differentiated in t: it is the derivative in tau that counts",
        ),
        Mistake(
            lambda d, dd, t: (2 * t * d, 2 * t * d + 4 * t**2 * dd),
            "the second derivative is nearly right: what is the derivative of 2 t in tau, once more?",
        ),
        Mistake(
            lambda d, dd, t: (2 * t * d, 2 * t * dd),
            "in the second derivative the chain rule was used once only",
        ),
    ),
    laws=(
        Law(
            lambda r, d, dd, t: not torch.allclose(r[0], d / (2 * t)),
            "the first derivative was divided by dt/dtau: write R as a function of tau and differentiate outside in",
        ),
        Law(
            lambda r, d, dd, t: torch.allclose(r[0], 2 * t * d),
            "the first derivative is wrong already: what is dt/dtau, if t = exp(2 tau)?",
        ),
        Law(
            lambda r, d, dd, t: torch.allclose(r[1], 4 * t * d + 4 * t**2 * dd),
            "the first derivative is right, the second is not: differentiate the product 2 t d_t R once more",
        ),
    ),
)

# --- 3.5 implicit score matching in tau, with its boundary --------------------------------------------------------


def _tau_draw(g: torch.Generator) -> tuple:
    """The three numbers of samples differ."""
    counts = [int(torch.randint(low, low + 4, (1,), generator=g)) for low in (13, 9, 5)]
    first, second = torch.randn(2, counts[0], generator=g, **F64)
    high, low = (torch.randn(count, generator=g, **F64) + 0.5 for count in counts[1:])
    tau_min = _number(g, -4, -2)
    return first, second, high, low, tau_min, tau_min + _number(g, 1.3, 3)


def _tau(first, second, high, low, tau_min, tau_max, *, half=0.5, sign=-1.0, edge=1.0, power=-1):
    inside = (half * first**2 + sign * second).mean()
    return inside + edge * (high.mean() - low.mean()) * (tau_max - tau_min) ** power


BOUNDARY = Exercise(
    "3.5",
    "implicit score matching in tau",
    points=2,
    minutes=10,
    solution=_tau,
    draw=_tau_draw,
    mistakes=(
        Mistake(
            partial(_tau, edge=0.0),
            "this is eq. (7) as printed: what the integration by parts leaves at the two ends is missing",
        ),
        Mistake(
            partial(_tau, edge=-1.0),
            "the boundary term has the wrong sign: it must CHARGE for a rise of R at tau_max",
        ),
        Mistake(
            partial(_tau, power=0),
            "the boundary term lacks the density of tau, which is not 1 on this interval",
        ),
        Mistake(
            partial(_tau, power=1),
            "the boundary term was multiplied by the length of the interval: the density of tau is its inverse",
        ),
        Mistake(
            partial(_tau, sign=1.0),
            "the second derivative has the wrong sign: for an energy it lowers the loss",
        ),
        Mistake(
            partial(_tau, half=1.0), "the square has lost its factor 1/2: the terms must keep their balance"
        ),
        Mistake(
            lambda first, second, high, low, a, b: (
                (0.5 * first**2 - second).sum() + (high.sum() - low.sum()) / (b - a)
            ),
            "these are sums over samples: an expectation is estimated by a mean",
        ),
        Mistake(
            lambda first, second, high, low, a, b: (
                (0.5 * first**2 - second).mean() + (high.sum() - low.sum()) / (b - a) / len(high)
            ),
            "both ends are divided by the number of samples at tau_max: at tau_min there are others",
        ),
        Mistake(
            lambda first, second, high, low, a, b: (
                (0.5 * first**2 - second).mean() + (high.sum() - low.sum()) / (b - a)
            ),
            "at the two ends sums were taken: there, too, an expectation is estimated by a mean",
        ),
        Mistake(
            lambda first, second, high, low, a, b: (
                (0.5 * first**2 - second).mean() + (high.mean() + low.mean()) / (b - a)
            ),
            "both ends come with the same sign: an integral by parts leaves a difference",
        ),
    ),
)

# --- 3.6 the joint fit --------------------------------------------------------------------------------------------


def _fit_draw(g: torch.Generator) -> tuple:
    count, size = (int(torch.randint(low, low + 5, (1,), generator=g)) for low in (20, 3))
    phi_y, phi_tau = torch.randn(2, count, size, generator=g, **F64)
    z = torch.randn(count, generator=g, **F64)
    t = 0.05 + 2 * torch.rand(count, generator=g, **F64)
    return phi_y, phi_tau, z, t, _number(g, 0.1, 0.8), _number(g, 0.05, 0.5)


def _fit(
    phi_y,
    phi_tau,
    z,
    t,
    lam,
    ridge,
    *,
    root=0.5,
    right=None,
    sign=1.0,
    target=None,
    in_matrix=None,
    in_vector=None,
    count=None,
    over=None,
    times=1.0,
):
    count = len(z) if count is None else count
    target = 1 - z**2 if target is None else target
    rows = t[:, None] ** root * phi_y
    matrix = rows.T @ rows + (lam if in_matrix is None else in_matrix) * phi_tau.T @ phi_tau
    image = sign * (t[:, None] ** (root if right is None else right) * phi_y).T @ z
    vector = image + (lam if in_vector is None else in_vector) * phi_tau.T @ target
    eye = torch.eye(len(vector), **F64)
    return torch.linalg.solve(
        matrix / count + times * ridge * eye, vector / (count if over is None else over)
    )


def _slipped(**changes: Callable) -> Callable[..., Tensor]:
    """The fit with some of its ingredients, functions of (z, lam), exchanged."""
    return lambda phi_y, phi_tau, z, t, lam, ridge: _fit(
        phi_y, phi_tau, z, t, lam, ridge, **{name: change(z, lam) for name, change in changes.items()}
    )


FIT = Exercise(
    "3.6",
    "a joint energy by least squares",
    points=3,
    minutes=15,
    solution=_fit,
    draw=_fit_draw,
    mistakes=(
        Mistake(
            _slipped(target=lambda z, lam: z**2 - 1),
            "the target in tau has the wrong sign: more noise than expected means that R should FALL with tau",
        ),
        Mistake(
            _slipped(target=lambda z, lam: -(z**2)),
            "the target in tau lacks the number of pixels, here 1: its mean must be zero",
        ),
        Mistake(
            _slipped(target=lambda z, lam: 1 - z),
            "the target in tau is 1 - z: its mean is one, but E[d_tau F | tau] = 0. Look at the exponent of z",
        ),
        Mistake(
            _slipped(root=lambda z, lam: 0.0),
            "sqrt(t) is missing before the derivative in y: the rows of the first regression are sqrt(t) phi_y",
        ),
        Mistake(
            _slipped(root=lambda z, lam: 1.0),
            "the derivative in y is multiplied by t: the regression of z needs a standard deviation there",
        ),
        Mistake(
            _slipped(in_matrix=lambda z, lam: 1.0, in_vector=lambda z, lam: 1.0),
            "lambda is not used: it weighs the smoothing part against the image part",
        ),
        Mistake(
            _slipped(in_matrix=lambda z, lam: 0.0, in_vector=lambda z, lam: 0.0),
            "only the image part is fitted: the smoothing part is missing",
        ),
        Mistake(
            _slipped(in_matrix=lambda z, lam: lam**2, in_vector=lambda z, lam: lam**2),
            "lambda enters squared: if rows are stacked, which factor of a row gives lambda in its square?",
        ),
        Mistake(
            _slipped(in_vector=lambda z, lam: 1.0),
            "lambda is in the matrix but not in the right-hand side: differentiate the whole loss once more",
        ),
        Mistake(
            _slipped(in_matrix=lambda z, lam: 1.0),
            "lambda is in the right-hand side but not in the matrix: differentiate the whole loss once more",
        ),
        Mistake(
            _slipped(count=lambda z, lam: 1),
            "the loss is a mean over samples and the ridge is not: with sums the ridge counts B times too little",
        ),
        Mistake(
            _slipped(over=lambda z, lam: 1),
            "the matrix is a mean over samples, the right-hand side a sum: divide both by B",
        ),
        Mistake(
            _slipped(count=lambda z, lam: 1, over=lambda z, lam: len(z)),
            "the matrix is a sum over samples, the right-hand side a mean: divide both by B",
        ),
        Mistake(
            _slipped(sign=lambda z, lam: -1.0),
            "the target in y has the wrong sign: by (*) sqrt(t) times the gradient of the energy is z, not -z",
        ),
        Mistake(
            _slipped(right=lambda z, lam: 0.0),
            "in the right-hand side sqrt(t) is missing before phi_y: the same rows as in the matrix meet z there",
        ),
        Mistake(
            _slipped(right=lambda z, lam: 1.0),
            "t is right in the matrix, but on the right-hand side the rows meet z, and only one of them has a sqrt(t)",
        ),
        Mistake(
            _slipped(times=lambda z, lam: 2.0),
            "the ridge is twice too large: the derivative of rho/2 ||w||^2 is rho w",
        ),
        Mistake(
            _slipped(times=lambda z, lam: 0.5),
            "the ridge is half of what it should be: the derivative of rho/2 ||w||^2 is rho w",
        ),
        Mistake(
            lambda phi_y, phi_tau, z, t, lam, ridge: _fit(phi_y, phi_tau, z, t, lam, 0.0),
            "the ridge is missing: without it whatever the data leave open makes the system singular",
        ),
    ),
)

EXERCISES = (EXPLICIT, IMPLICIT, DENOISING, CHAIN, BOUNDARY, FIT)
