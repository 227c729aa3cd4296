"""Lesson 1, mixtures, smoothing, convexity: the truths, the random inputs and the usual mistakes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gnclib.course.engine import Exercise, Law, Mistake
from gnclib.gmm import GaussianMixture

F64 = {"dtype": torch.float64}


def draw_mixture(g: torch.Generator, largest: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and variances (K,) of a random mixture on the line."""
    k = int(torch.randint(2, largest + 1, (1,), generator=g))
    weights = torch.rand(k, generator=g, **F64) + 0.05
    means = 2 * torch.rand(k, generator=g, **F64) - 1
    variances = 0.3 * torch.rand(k, generator=g, **F64) + 0.01
    return weights / weights.sum(), means, variances


def _points(g: torch.Generator) -> tuple[Tensor, float]:
    """Points y (B,) and a noise variance t."""
    n = int(torch.randint(3, 9, (1,), generator=g))
    return 3 * torch.rand(n, generator=g, **F64) - 1.5, float(0.05 + 0.7 * torch.rand(1, generator=g, **F64))


def _mixture_and_far_points(g: torch.Generator) -> tuple:
    """A random mixture, points and t; the last point lies so far out that every density underflows to zero."""
    w, mu, v = draw_mixture(g)
    y, t = _points(g)
    y[-1] = 60.0
    return w, mu, v, y, t


def _energy(w, mu, v, y, t):
    return GaussianMixture(w, mu, v).energy(y, t)


def _log_normal(y, mu, v):
    return -0.5 * ((y[:, None] - mu) ** 2 / v + v.log())


def _slipped_energy(square=0.5, root=0.5, deviation=False):
    """The energy with other factors in front of (y - mu)^2 / s and log(2 pi s), or with s read as a deviation."""

    def formula(w, mu, v, y, t):
        s = (v + t) ** 2 if deviation else v + t
        terms = w.log() - square * (y[:, None] - mu) ** 2 / s - root * (2 * math.pi * s).log()
        return -terms.logsumexp(1)

    return formula


ENERGY = Exercise(
    "1.1",
    "the smoothed energy",
    points=2,
    minutes=10,
    solution=_energy,
    draw=_mixture_and_far_points,
    mistakes=(
        Mistake(
            lambda w, mu, v, y, t: _energy(w, mu, v, y, 0.0),
            "the noise is missing: smoothing adds its variance t to the variance of every component",
        ),
        Mistake(
            lambda w, mu, v, y, t: _energy(w, mu, v, y, t**2),
            "t is the noise variance already: add t to the variances, not its square",
        ),
        Mistake(
            lambda w, mu, v, y, t: _energy(w, mu, v, y, t**0.5),
            "variances add, standard deviations do not: add t, not its root",
        ),
        Mistake(
            lambda w, mu, v, y, t: -(w.log() + _log_normal(y, mu, v + t)).logsumexp(1),
            "the factor 1/sqrt(2 pi) of the normal density is missing: exp(-F) does not integrate to one",
        ),
        Mistake(
            lambda w, mu, v, y, t: -(_log_normal(y, mu, v + t) - 0.5 * math.log(2 * math.pi)).logsumexp(1),
            "the weights w_i are missing",
        ),
        Mistake(
            lambda w, mu, v, y, t: (-_energy(w, mu, v, y, t)).exp(),
            "this is the density itself: its energy is minus its logarithm",
        ),
        Mistake(
            _slipped_energy(root=0.0),
            "the factor 1/sqrt(2 pi s) of the normal density is missing; s differs between the components, so it is no "
            "constant",
        ),
        Mistake(_slipped_energy(root=1.0), "log sqrt(2 pi s) is half of log(2 pi s)"),
        Mistake(_slipped_energy(square=1.0), "the 2 in the exponent -(y - mu)^2 / (2 s) is missing"),
        Mistake(
            _slipped_energy(deviation=True),
            "the variance v_i + t was taken for a standard deviation (which torch.distributions.Normal expects)",
        ),
    ),
    laws=(
        Law(
            lambda f, *a: bool((f > -10).all()), "the energy is far too low: an energy is MINUS a log-density"
        ),
        Law(
            lambda f, *a: float(f[-1]) > 1000,
            "at y = 60, far away from all means, the energy is too low: exp underflows there, stay with logarithms",
        ),
    ),
)


# --- 1.2 responsibilities -----------------------------------------------------------------------------------------


def _responsibilities(w, mu, v, y, t):
    return (w.log() + _log_normal(y, mu, v + t)).softmax(1)


RESPONSIBILITIES = Exercise(
    "1.2",
    "responsibilities",
    points=2,
    minutes=10,
    solution=_responsibilities,
    draw=_mixture_and_far_points,
    mistakes=(
        Mistake(
            lambda w, mu, v, y, t: _responsibilities(torch.ones_like(w), mu, v, y, t),
            "the weights are missing: before y was seen, component i had the probability w_i",
        ),
        Mistake(
            lambda w, mu, v, y, t: _responsibilities(w, mu, v, y, 0.0),
            "the noise is missing: the noisy point is compared with components of variance v_i + t",
        ),
        Mistake(
            lambda w, mu, v, y, t: _responsibilities(w, mu, v, y, t**0.5),
            "variances add, standard deviations do not: add t, not its root",
        ),
        Mistake(
            lambda w, mu, v, y, t: (w.log() - 0.5 * (y[:, None] - mu) ** 2 / (v + t)).softmax(1),
            "the factor 1/sqrt(v_i + t) of the normal density is missing; it differs between the components and does "
            "not cancel",
        ),
        Mistake(
            lambda w, mu, v, y, t: (w.log() + _log_normal(y, mu, v + t)).softmax(0),
            "you have normalised over the points: for every point the K responsibilities sum to one",
        ),
        Mistake(
            lambda w, mu, v, y, t: (w.log() + _log_normal(y, mu, v + t) - 0.5 * math.log(2 * math.pi)).exp(),
            "these are the numerators w_i N(y; mu_i, v_i + t): Bayes' rule divides them by their sum",
        ),
    ),
    laws=(
        Law(lambda g, *a: bool((g >= 0).all()), "a probability cannot be negative"),
        Law(
            lambda g, w, mu, v, y, t: torch.allclose(g.sum(1), torch.ones_like(y), atol=1e-6),
            "the responsibilities of every point sum to one; yours do not, at least far away from all means, where "
            "exp underflows: stay with logarithms as long as you can",
        ),
    ),
)


# --- 1.3 and 1.4: gradient and Hessian from the responsibilities, in R^d ------------------------------------------


def _spatial(g: torch.Generator) -> tuple:
    """g (B, K), means mu (K, d), isotropic variances v (K,), points y (B, d) and t, with d from 2 to 4."""
    d, n = (int(torch.randint(2, 5, (1,), generator=g)) for _ in range(2))
    w, _, v = draw_mixture(g)
    mu = torch.randn(len(w), d, generator=g, **F64)
    y = torch.randn(n + 1, d, generator=g, **F64)
    t = float(0.05 + 0.7 * torch.rand(1, generator=g, **F64))
    log_terms = w.log() - 0.5 * (torch.cdist(y, mu) ** 2 / (v + t) + d * (v + t).log())
    return log_terms.softmax(1), mu, v, y, t


def _scores(mu, s, y):
    """a_i = (mu_i - y) / s_i, (B, K, d)."""
    return (mu - y[:, None, :]) / s[:, None]


def _mean(g, a):
    return (g[..., None] * a).sum(1)


def _grad(g, mu, v, y, t):
    return -_mean(g, _scores(mu, v + t, y))


GRADIENT = Exercise(
    "1.3",
    "the gradient",
    points=2,
    minutes=10,
    solution=_grad,
    draw=_spatial,
    mistakes=(
        Mistake(
            lambda g, mu, v, y, t: -_grad(g, mu, v, y, t),
            "the sign is wrong: this is the score, which points uphill in density; the energy is MINUS log f",
        ),
        Mistake(
            lambda g, mu, v, y, t: -_mean(g, mu - y[:, None, :]),
            "mu_i - y is not divided by the variance v_i + t: a narrow component pulls harder than a wide one",
        ),
        Mistake(
            lambda g, mu, v, y, t: _grad(g, mu, v, y, 0.0),
            "the noise is missing: every component has the variance v_i + t",
        ),
        Mistake(
            lambda g, mu, v, y, t: -_mean(g, _scores(mu, torch.full_like(v, t), y)),
            "you divide by t, but the component has its own width, too: its variance is v_i + t",
        ),
        Mistake(
            lambda g, mu, v, y, t: -_mean(g, _scores(mu, (v + t).sqrt(), y)),
            "you divide by the standard deviation: differentiate (y - mu)^2 / (2 s), where s is the variance",
        ),
        Mistake(
            lambda g, mu, v, y, t: -_scores(mu, v + t, y).mean(1),
            "the components are averaged with equal weights: average them with the responsibilities g",
        ),
    ),
    factors=lambda g, mu, v, y, t: {"t": t, "sigma": t**0.5, "K": float(len(v)), "d": float(mu.shape[1])},
)


def _covariance(g, a):
    centred = a - _mean(g, a)[:, None]
    return torch.einsum("bk,bki,bkj->bij", g, centred, centred)


def _precision(g, v, t, d):
    """E_g[P], (B, d, d)."""
    return (g / (v + t)).sum(1)[:, None, None] * torch.eye(d, **F64)


def _slipped_hessian(precision=None, cut=None):
    """The Hessian with other weights (B, K) for the P_i, or ``cut(g, a, mu, p)`` (B, d, d) for Cov_g(a)."""

    def formula(g, mu, v, y, t):
        a, p = _scores(mu, v + t, y), 1 / (v + t)
        bowl = _precision(precision(g) if precision else g, v, t, y.shape[1])
        return bowl - (cut(g, a, mu.expand(len(g), -1, -1), p) if cut else _covariance(g, a))

    return formula


def _outer(weights, u):
    return torch.einsum("bk,bki,bkj->bij", weights, u, u)


def _hessian(g, mu, v, y, t):
    return _precision(g, v, t, y.shape[1]) - _covariance(g, _scores(mu, v + t, y))


HESSIAN = Exercise(
    "1.4",
    "the Hessian",
    points=3,
    minutes=15,
    solution=_hessian,
    draw=_spatial,
    mistakes=(
        Mistake(
            lambda g, mu, v, y, t: _precision(g, v, t, y.shape[1]),
            "this is E_g[P] alone, which is always positive: subtract how much the components disagree",
        ),
        Mistake(
            lambda g, mu, v, y, t: _precision(g, v, t, y.shape[1]) + _covariance(g, _scores(mu, v + t, y)),
            "the sign of the covariance is wrong: disagreement takes curvature away",
        ),
        Mistake(
            lambda g, mu, v, y, t: (
                _precision(g, v, t, y.shape[1])
                - torch.einsum("bk,bki,bkj->bij", g, *2 * [_scores(mu, v + t, y)])
            ),
            "you subtract E_g[a a^T], the second moment: a covariance is taken about the mean E_g[a]",
        ),
        Mistake(
            lambda g, mu, v, y, t: (
                (g / (v + t)).sum(1)[:, None, None] - _covariance(g, _scores(mu, v + t, y))
            ),
            "E_g[P] is a multiple of the identity: it belongs on the diagonal, you add it to every entry",
        ),
        Mistake(
            lambda g, mu, v, y, t: _precision(g, v, t, y.shape[1]) - _covariance(g, mu - y[:, None, :]),
            "you take the covariance of the means mu_i; it is that of the a_i, which are divided by v_i + t",
        ),
        Mistake(
            lambda g, mu, v, y, t: _hessian(g, mu, v, y, 0.0),
            "the noise is missing: every component has the variance v_i + t",
        ),
        Mistake(
            lambda g, mu, v, y, t: (
                _precision(g, v, t, y.shape[1])
                - _covariance(torch.full_like(g, 1 / len(v)), _scores(mu, v + t, y))
            ),
            "the covariance treats all components alike: its weights are the responsibilities g",
        ),
        *(
            Mistake(
                _slipped_hessian(precision=weights),
                "the P_i are not weighted with the responsibilities: E_g[P] is a mean under g, too",
            )
            for weights in (torch.ones_like, lambda g: torch.full_like(g, 1 / g.shape[1]))
        ),
        Mistake(
            _slipped_hessian(cut=lambda g, a, mu, p: _outer(g, a - a.mean(1, keepdim=True))),
            "the a_i are centred at their plain mean: the mean a_bar = E_g[a] has the responsibilities as weights",
        ),
        *(
            Mistake(
                _slipped_hessian(
                    cut=lambda g, a, mu, p, centre=centre: _outer(torch.ones_like(g), centre(g, a))
                ),
                "the outer products are added up without weights: each one counts with its responsibility",
            )
            for centre in (lambda g, a: a - _mean(g, a)[:, None], lambda g, a: a - a.mean(1, keepdim=True))
        ),
        Mistake(
            _slipped_hessian(
                cut=lambda g, a, mu, p: torch.diag_embed(_covariance(g, a).diagonal(dim1=1, dim2=2))
            ),
            "off the diagonal the covariances are missing: you subtract the variances of the single coordinates only",
        ),
        *(
            Mistake(
                _slipped_hessian(
                    cut=lambda g, a, mu, p, s=square: s(g, p)[:, None, None] * _covariance(g, mu)
                ),
                "Cov_g(mu) times P^2 is right for equal variances only: else each P_i belongs into its a_i, inside the "
                "covariance",
            )
            for square in (lambda g, p: (g @ p) ** 2, lambda g, p: g @ p**2)
        ),
    ),
    laws=(
        Law(
            lambda h, *a: torch.allclose(h, h.mT),
            "a Hessian is symmetric and yours is not: are both factors of the outer product made of the a_i?",
        ),
    ),
    factors=lambda g, mu, v, y, t: {"t": t, "sigma": t**0.5, "K": float(len(v)), "d": float(mu.shape[1])},
)


# --- 1.5 the bound of theorem 2.2 ---------------------------------------------------------------------------------


def _clusters(g: torch.Generator) -> tuple:
    """Means mu (K, d) and covariances (K, d, d), d = 2 or 3; every third time or so wide ones that need no t."""
    k, d = int(torch.randint(3, 7, (1,), generator=g)), int(torch.randint(2, 4, (1,), generator=g))
    root = torch.randn(k, d, d, generator=g, **F64)
    width = 30.0 if torch.rand(1, generator=g) < 0.3 else 0.2
    cov = width * (0.3 * root @ root.mT + torch.eye(d, **F64))
    return torch.randn(k, d, generator=g, **F64), cov


def _diameter(mu):
    return float((mu[:, None] - mu).norm(dim=-1).max())


def _lambda_min(cov):
    return float(torch.linalg.eigvalsh(cov).min())


def _theorem_bound(mu, cov):
    return max(_diameter(mu) ** 2 - _lambda_min(cov), 0.0)


THEOREM = Exercise(
    "1.5",
    "the bound of Theorem 2.2",
    points=2,
    minutes=10,
    solution=_theorem_bound,
    draw=_clusters,
    mistakes=(
        Mistake(
            lambda mu, cov: _diameter(mu) ** 2 - _lambda_min(cov),
            "wide components can make the difference negative, but a variance t cannot be: nothing needs to be added",
        ),
        Mistake(
            lambda mu, cov: max(_diameter(mu) - _lambda_min(cov), 0.0),
            "a distance minus a variance: the units do not match, the diameter enters squared",
        ),
        Mistake(
            lambda mu, cov: max(_diameter(mu) ** 2, 0.0),
            "the components' own width is not used: it counts as smoothing that has been done already",
        ),
        Mistake(
            lambda mu, cov: max(_diameter(mu) ** 2 - float(torch.linalg.eigvalsh(cov).max()), 0.0),
            "with the largest eigenvalue the narrow components and directions are not covered: (S) must hold for all i",
        ),
        Mistake(
            lambda mu, cov: max(_diameter(mu) ** 2 - float(cov.diagonal(dim1=1, dim2=2).min()), 0.0),
            "that is the smallest variance along the axes; a tilted ellipse is narrower in some other direction",
        ),
        Mistake(
            lambda mu, cov: max(float((mu - mu.mean(0)).norm(dim=1).max()) ** 2 - _lambda_min(cov), 0.0),
            "that is a radius about the mean of the means; a diameter is the largest distance of two of them",
        ),
        Mistake(
            lambda mu, cov: max(float((mu.amax(0) - mu.amin(0)).square().sum()) - _lambda_min(cov), 0.0),
            "that is the diagonal of the bounding box, which no two means need to span",
        ),
        Mistake(
            lambda mu, cov: max(_diameter(mu) ** 2 / 4 - _lambda_min(cov), 0.0),
            "the factor 1/4 is Popoviciu's, who needs equal covariances; Theorem 2.2 does not have it",
        ),
    ),
    laws=(Law(lambda t, *a: float(t) >= 0, "a variance t cannot be negative"),),
    factors=lambda mu, cov: {"K": float(len(mu)), "d": float(mu.shape[1])},
)


# --- 1.6 the exact threshold --------------------------------------------------------------------------------------

CALLS = 300  # bisection from a bracket of length 4 to 1e-9 takes 32


def _bracket(g: torch.Generator) -> tuple:
    """``lowest`` of the pair +-a with variance s2, a bracket and a tolerance; at times convex from t_low on."""
    a, s2, u = (float(x) for x in torch.rand(3, generator=g, **F64))
    a, s2, calls = 0.6 + a, 0.01 + 0.2 * s2, 0
    enough = f"lowest(t) has been asked {CALLS} times; halving the bracket needs about 30: does your loop ever end?"

    def lowest(t):
        nonlocal calls
        calls += 1
        if calls > CALLS:
            raise RuntimeError(enough)
        v = s2 + float(t)
        return 1 / v - a**2 / v**2

    t_star = a**2 - s2
    return lowest, (1.2 * t_star if u < 0.25 else u * t_star), t_star + 2 * u + 0.5, 1e-9


def _bisection(lowest, t_low, t_high, tol):
    if lowest(t_low) >= 0:
        return t_low
    while t_high - t_low > tol:
        middle = (t_low + t_high) / 2
        if lowest(middle) < 0:
            t_low = middle
        else:
            t_high = middle
    return t_high


_CONVEX_AT_LOW = (
    "right wherever lowest(t_low) < 0; but where the energy is convex at t_low already there is no change of sign to "
    "be found, and the result is t_low"
)
_WRONG_END = "the wrong end of the bracket moves: where lowest(t) < 0, the threshold lies ABOVE t"


def _swapped(lowest, t_low, t_high, tol):
    """Where bisection ends if it keeps the wrong half: the first step decides."""
    return t_low if lowest((t_low + t_high) / 2) < 0 else t_high


BISECTION = Exercise(
    "1.6",
    "the exact threshold by bisection",
    points=3,
    minutes=15,
    solution=_bisection,
    draw=_bracket,
    mistakes=(
        Mistake(_swapped, _WRONG_END),
        Mistake(lambda lowest, low, *a: low if lowest(low) >= 0 else _swapped(lowest, low, *a), _WRONG_END),
        Mistake(
            lambda lowest, t_low, t_high, tol: (t_low + t_high) / 2,
            "this is the middle of the first bracket: halve again, until the bracket is shorter than tol",
        ),
        Mistake(
            lambda lowest, t_low, t_high, tol: lowest(_bisection(lowest, t_low, t_high, tol)),
            "this is the value of lowest at the threshold; the threshold t itself is wanted",
        ),
        *(
            Mistake(
                lambda lowest, t_low, t_high, tol, end=end: (
                    _bisection(lowest, t_low, t_high, tol) if lowest(t_low) < 0 else end(t_low, t_high)
                ),
                _CONVEX_AT_LOW,
            )
            for end in (lambda low, high: high, lambda low, high: (low + high) / 2)
        ),
        Mistake(
            lambda lowest, t_low, t_high, tol: 0.0,
            "the result is always about zero: hand back the threshold, not the length of the bracket",
        ),
    ),
    laws=(
        Law(
            lambda t, lowest, t_low, t_high, tol: (
                lowest(t_low) >= 0 or t_low - tol <= float(t) <= t_high + tol
            ),
            "the result lies outside of the bracket [t_low, t_high]",
        ),
        Law(
            lambda t, lowest, t_low, t_high, tol: (
                lowest(t_low) >= 0 or abs(float(t) - _bisection(lowest, t_low, t_high, tol)) < 1e-2
            ),
            "the result is not where lowest changes its sign: which end of the bracket moves when?",
        ),
        Law(
            lambda t, lowest, t_low, t_high, tol: lowest(t_low) < 0 or abs(float(t) - t_low) < 1e-2,
            "where the energy is convex at t_low already, there is no change of sign to be found: the result is t_low",
        ),
        Law(
            lambda t, *a: False,
            "close, but the bracket has not been halved often enough: go on until it is shorter than tol",
        ),
    ),
    rtol=1e-7,
    atol=1e-7,
)

EXERCISES = (ENERGY, RESPONSIBILITIES, GRADIENT, HESSIAN, THEOREM, BISECTION)
