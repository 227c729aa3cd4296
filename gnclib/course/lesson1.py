"""Lesson 1, mixtures, smoothing, convexity: truths, random inputs, usual mistakes."""

from __future__ import annotations

import math

import torch

from gnclib.course.lesson import F64, Exercise, Heading, hints, slip
from gnclib.gmm import GaussianMixture


def _draw_line(g):
    """A random mixture, points (B,) and t; the last point lies so far out that every density underflows to zero."""
    mixture = g.mixture()
    y = 3 * g.rand(g.integer(3, 8)) - 1.5
    y[-1] = 60.0
    return *mixture, y, g.number(0.05, 0.75)


def log_terms(w, mu, s, y, square=0.5, root=0.5):
    """log w_i + log N(y; mu_i, s_i I), (B, K), on the line or in R^d.

    `square` and `root` are factors of ||y - mu||^2 / s and of log (2 pi s)^d that should be 1/2.
    """
    off, d = (y[:, None] - mu) ** 2, 1
    if mu.ndim == 2:
        off, d = off.sum(2), mu.shape[1]
    return w.log() - square * off / s - root * d * (2 * math.pi * s).log()


def term_mistakes(result):
    """Wrong log-terms; ``result(terms, mu, v, y, t)`` makes of them what the exercise asks for."""

    def wrong(weights=lambda w: w, variances=lambda v, t: v + t, **factors):
        return lambda w, mu, v, y, t: result(
            log_terms(weights(w), mu, variances(v, t), y, **factors), mu, v, y, t
        )

    return hints(
        "the noise is missing: the noisy point y is compared with components of variance v_i + t",
        wrong(variances=lambda v, t: v),
        wrong(variances=lambda v, t: v + 1e-9),
        "t is the noise variance already: add t to the variances, not its square",
        wrong(variances=lambda v, t: v + t**2),
        "variances add, standard deviations do not: add t, not its root",
        wrong(variances=lambda v, t: v + t**0.5),
        "the weights w_i are missing: before y was seen, component i had the probability w_i",
        wrong(weights=torch.ones_like),
        "the factor in front of the exponential of the normal density is missing: 1/sqrt(2 pi s), in R^d to the power "
        "d; s = v_i + t differs between the components, so that it does not cancel",
        wrong(root=0.0),
        "log sqrt(2 pi s) is half of log(2 pi s): the factor of the normal density has a root",
        wrong(root=1.0),
        "the 2 in the exponent -(y - mu)^2 / (2 s) of the normal density is missing",
        wrong(square=1.0),
        "the variance v_i + t was taken for a standard deviation (which torch.distributions.Normal expects)",
        wrong(variances=lambda v, t: (v + t) ** 2),
    )


# --- 1.1 the smoothed energy --------------------------------------------------------------------------------------


def _energy(w, mu, v, y, t):
    """F(y, t) = -log sum_i w_i N(y; mu_i, v_i + t), (B,)."""
    return GaussianMixture(w, mu, v).energy(y, t)


ENERGY = Exercise(
    Heading("1.1", "the smoothed energy", points=2, minutes=10),
    solution=_energy,
    draw=_draw_line,
    mistakes=term_mistakes(lambda terms, *a: -terms.logsumexp(1))
    | hints(
        "the factor 1/sqrt(2 pi) of the normal density is missing: exp(-F) does not integrate to one",
        lambda *a: _energy(*a) - 0.5 * math.log(2 * math.pi),
        "this is the density itself: its energy is minus its logarithm",
        lambda *a: (-_energy(*a)).exp(),
        "the factor of the normal density is 1/sqrt(2 pi s): the variance s stands under the root, too",
        lambda w, mu, v, y, t: (
            -log_terms(w, mu, v + t, y, root=1.0).logsumexp(1) - 0.5 * math.log(2 * math.pi)
        ),
        "a logarithm of a sum is no sum of logarithms: add the densities of the components first",
        lambda w, mu, v, y, t: -(log_terms(torch.ones_like(w), mu, v + t, y) @ w),
        lambda w, mu, v, y, t: -log_terms(w, mu, v + t, y).sum(1),
        "this is the energy of the likeliest component alone: the others add to the density, too",
        lambda w, mu, v, y, t: -log_terms(w, mu, v + t, y).amax(1),
    ),
    laws=hints(
        "at y = 60, far away from all means, the energy is too low: exp underflows there, stay with logarithms",
        lambda f, *a: float(f[-1]) > 1000,
    ),
)


# --- 1.2 responsibilities -----------------------------------------------------------------------------------------


def _responsibilities(w, mu, v, y, t):
    """g_i(y, t), the probability that y came from component i, (B, K)."""
    return log_terms(w, mu, v + t, y).softmax(1)


RESPONSIBILITIES = Exercise(
    Heading("1.2", "responsibilities", points=2, minutes=10),
    solution=_responsibilities,
    draw=_draw_line,
    mistakes=term_mistakes(lambda terms, *a: terms.softmax(1))
    | hints(
        "you have normalised over the points: for every point the K responsibilities sum to one",
        lambda w, mu, v, y, t: log_terms(w, mu, v + t, y).softmax(0),
        "these are the numerators w_i N(y; mu_i, v_i + t): Bayes' rule divides them by their sum",
        lambda w, mu, v, y, t: log_terms(w, mu, v + t, y).exp(),
    ),
    laws=hints(
        "the responsibilities of every point sum to one; yours do not, at least far away from all means, where exp "
        "underflows: stay with logarithms as long as you can",
        lambda g, *a: torch.allclose(g.sum(1), torch.ones(len(g), **F64), atol=1e-6),
    ),
)


# --- 1.3 and 1.4: gradient and Hessian from the responsibilities, in R^d ------------------------------------------


def _draw_space(g):
    """g (B, K), means mu (K, d), isotropic variances v (K,), points y (B, d) and t, with d from 2 to 4."""
    d, n = g.integer(2, 4), g.integer(3, 5)
    w, _, v = g.mixture()
    mu = g.randn(len(w), d)
    y = g.randn(n, d)
    t = g.number(0.05, 0.75)
    return log_terms(w, mu, v + t, y).softmax(1), mu, v, y, t


def _space_factors(g, mu, v, y, t):
    return {"t": t, "sigma": t**0.5, "K": float(len(v)), "d": float(mu.shape[1])}


def _scores(mu, s, y):
    """a_i = (mu_i - y) / s_i, (B, K, d)."""
    return (mu - y[:, None, :]) / s[:, None]


def _mean(g, a):
    """E_g[a], (B, d)."""
    return (g[..., None] * a).sum(1)


def _gradient(g, mu, v, y, t):
    """-E_g[a], (B, d)."""
    return -_mean(g, _scores(mu, v + t, y))


GRADIENT = Exercise(
    Heading("1.3", "the gradient", points=2, minutes=10),
    solution=_gradient,
    draw=_draw_space,
    mistakes=hints(
        "the sign is wrong: this is the score, which points uphill in density; the energy is MINUS log f",
        lambda *a: -_gradient(*a),
        "mu_i - y is not divided by the variance v_i + t: a narrow component pulls harder than a wide one",
        lambda g, mu, v, y, t: -_mean(g, mu - y[:, None, :]),
        "the noise is missing: every component has the variance v_i + t",
        slip(_gradient, t=0.0),
        "you divide by t, but the component has its own width, too: its variance is v_i + t",
        slip(_gradient, v=torch.zeros_like),
        "you divide by the standard deviation: differentiate (y - mu)^2 / (2 s), where s is the variance",
        lambda g, mu, v, y, t: -_mean(g, _scores(mu, (v + t).sqrt(), y)),
        "the components are averaged with equal weights: average them with the responsibilities g",
        lambda g, mu, v, y, t: -_scores(mu, v + t, y).mean(1),
        "averaged first and divided afterwards: each pull is divided by the variance of its own component",
        lambda g, mu, v, y, t: (y - g @ mu) / (g @ (v + t))[:, None],
        lambda g, mu, v, y, t: (y - g @ mu) * (g @ (1 / (v + t)))[:, None],
    ),
    factors=_space_factors,
)


def _outer(weights, u):
    """sum_i weights_i u_i u_i^T, (B, d, d)."""
    return torch.einsum("bk,bki,bkj->bij", weights, u, u)


def _covariance(g, a):
    """Cov_g(a), (B, d, d)."""
    return _outer(g, a - _mean(g, a)[:, None])


def _bowl(weights, s, y):
    """sum_i weights_i I / s_i, (B, d, d)."""
    return (weights / s).sum(1)[:, None, None] * torch.eye(y.shape[1], **F64)


def _hessian(g, mu, v, y, t, weigh=lambda g: g, cut=_covariance):
    """E_g[P] - Cov_g(a), (B, d, d), or with other weights of the P_i, or another matrix ``cut(g, a)`` taken away."""
    return _bowl(weigh(g), v + t, y) - cut(g, _scores(mu, v + t, y))


def _from_plain_mean(a):
    return a - a.mean(1, keepdim=True)


def _equal(g):
    return torch.full_like(g, 1 / g.shape[1])


HESSIAN = Exercise(
    Heading("1.4", "the Hessian", points=3, minutes=15),
    solution=_hessian,
    draw=_draw_space,
    mistakes=hints(
        "this is E_g[P] alone, which is always positive: subtract how much the components disagree",
        lambda g, mu, v, y, t: _bowl(g, v + t, y),
        "the sign of the covariance is wrong: disagreement takes curvature away",
        slip(_hessian, cut=lambda g, a: -_covariance(g, a)),
        "you subtract E_g[a a^T], the second moment: a covariance is taken about the mean E_g[a]",
        slip(_hessian, cut=_outer),
        "E_g[P] is a multiple of the identity: it belongs on the diagonal, you add it to every entry",
        lambda g, mu, v, y, t: (g / (v + t)).sum(1)[:, None, None] - _covariance(g, _scores(mu, v + t, y)),
        "you take the covariance of the means mu_i; it is that of the a_i, which are divided by v_i + t",
        lambda g, mu, v, y, t: _bowl(g, v + t, y) - _covariance(g, mu - y[:, None, :]),
        "the noise is missing: every component has the variance v_i + t",
        slip(_hessian, t=0.0),
        "the covariance treats all components alike: its weights are the responsibilities g",
        slip(_hessian, cut=lambda g, a: _covariance(_equal(g), a)),
        slip(
            _hessian, cut=lambda g, a: _covariance(_equal(g), a) * g.shape[1] / (g.shape[1] - 1)
        ),  # torch.cov
        "the P_i are not weighted with the responsibilities: E_g[P] is a mean under g, too",
        slip(_hessian, weigh=torch.ones_like),
        slip(_hessian, weigh=_equal),
        "the a_i are centred at their plain mean: the mean a_bar = E_g[a] has the responsibilities as weights",
        slip(_hessian, cut=lambda g, a: _outer(g, _from_plain_mean(a))),
        "the outer products are added up without weights: each one counts with its responsibility",
        slip(_hessian, cut=lambda g, a: _outer(torch.ones_like(g), a - _mean(g, a)[:, None])),
        slip(_hessian, cut=lambda g, a: _outer(torch.ones_like(g), _from_plain_mean(a))),
        "off the diagonal the covariances are missing: you subtract the variances of the single coordinates only",
        slip(_hessian, cut=lambda g, a: torch.diag_embed(_covariance(g, a).diagonal(dim1=1, dim2=2))),
        "Cov_g(mu) times P^2 is right for equal variances only: else each P_i belongs into its a_i, inside the "
        "covariance",
        lambda g, mu, v, y, t: (
            _bowl(g, v + t, y) - (g @ (1 / (v + t)))[:, None, None] ** 2 * _covariance(g, mu - y[:, None, :])
        ),
        lambda g, mu, v, y, t: (
            _bowl(g, v + t, y) - (g @ (1 / (v + t)) ** 2)[:, None, None] * _covariance(g, mu - y[:, None, :])
        ),
    ),
    laws=hints(
        "a Hessian is symmetric and yours is not: are both factors of the outer product made of the a_i?",
        lambda h, *a: torch.allclose(h, h.mT),
    ),
    factors=_space_factors,
)


# --- 1.5 the bound of theorem 2.2 ---------------------------------------------------------------------------------


def _draw_ellipses(g):
    """Means mu (K, d) and covariances (K, d, d), d = 2 or 3; every third time or so wide ones that need no t."""
    k, d = g.integer(3, 6), g.integer(2, 3)
    root = g.randn(k, d, d)
    width = 30.0 if g.rand(1) < 0.3 else 0.2
    cov = width * (0.3 * root @ root.mT + torch.eye(d, **F64))
    return g.randn(k, d), cov


def _diameter(mu):
    return float((mu[:, None] - mu).norm(dim=-1).max())


def _narrowest(cov):
    return float(torch.linalg.eigvalsh(cov).min())


def _bound(mu, cov, square=lambda mu: _diameter(mu) ** 2, width=_narrowest):
    """diam(X)^2 - min_i lambda_min(Sigma_i), at least 0, or with another squared length or width."""
    return max(square(mu) - width(cov), 0.0)


THEOREM = Exercise(
    Heading("1.5", "the bound of Theorem 2.2", points=2, minutes=10),
    solution=_bound,
    draw=_draw_ellipses,
    mistakes=hints(
        "wide components can make the difference negative, but a variance t cannot be: nothing needs to be added",
        lambda mu, cov: _diameter(mu) ** 2 - _narrowest(cov),
        lambda mu, cov: abs(_diameter(mu) ** 2 - _narrowest(cov)),
        "a distance minus a variance: the units do not match, the diameter enters squared",
        slip(_bound, square=_diameter),
        "the components' own width is not used: it counts as smoothing that has been done already",
        slip(_bound, width=lambda cov: 0.0),
        "with the largest eigenvalue the narrow components and directions are not covered: (S) must hold for all i",
        slip(_bound, width=lambda cov: float(torch.linalg.eigvalsh(cov).max())),
        "that is the smallest variance along the axes; a tilted ellipse is narrower in some other direction",
        slip(_bound, width=lambda cov: float(cov.diagonal(dim1=1, dim2=2).min())),
        "that is a radius about the mean of the means; a diameter is the largest distance of two of them",
        slip(_bound, square=lambda mu: float((mu - mu.mean(0)).square().sum(1).max())),
        "that is the diagonal of the bounding box, which no two means need to span",
        slip(_bound, square=lambda mu: float((mu.amax(0) - mu.amin(0)).square().sum())),
        "the factor 1/4 is Popoviciu's, who needs equal covariances; Theorem 2.2 does not have it",
        slip(_bound, square=lambda mu: _diameter(mu) ** 2 / 4),
    ),
    laws=hints("a variance t cannot be negative", lambda t, *a: float(t) >= 0),
    factors=lambda mu, cov: {"K": float(len(mu)), "d": float(mu.shape[1])},
)


# --- 1.6 the exact threshold --------------------------------------------------------------------------------------

CALLS = 300  # bisection from a bracket of length 4 to 1e-9 takes 32


def _draw_bracket(g):
    """``lowest`` of the pair +-a with variance s2, a bracket and a tolerance; at times convex from t_low on."""
    a, s2, u, calls = g.number(0.6, 1.6), g.number(0.01, 0.21), g.number(0.0, 1.0), 0
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
    """The t at which ``lowest`` changes from negative to non-negative; t_low if it is not negative there."""
    if lowest(t_low) >= 0:
        return t_low
    while t_high - t_low > tol:
        middle = (t_low + t_high) / 2
        if lowest(middle) < 0:
            t_low = middle
        else:
            t_high = middle
    return t_high


def _wrong_half(lowest, t_low, t_high, tol):
    """Where bisection ends if it keeps the wrong half: the first step decides."""
    return t_low if lowest((t_low + t_high) / 2) < 0 else t_high


def _or_if_convex(otherwise):
    """Bisection with another result, ``otherwise(t_low, t_high)``, where the energy is convex at t_low already."""
    return lambda lowest, low, high, tol: (
        _bisection(lowest, low, high, tol) if lowest(low) < 0 else otherwise(low, high)
    )


BISECTION = Exercise(
    Heading("1.6", "the exact threshold by bisection", points=3, minutes=15),
    solution=_bisection,
    draw=_draw_bracket,
    mistakes=hints(
        "the wrong end of the bracket moves: where lowest(t) < 0, the threshold lies ABOVE t",
        _wrong_half,
        lambda lowest, low, *a: low if lowest(low) >= 0 else _wrong_half(lowest, low, *a),
        "this is the middle of the first bracket: halve again, until the bracket is shorter than tol",
        lambda lowest, t_low, t_high, tol: (t_low + t_high) / 2,
        "this is the value of lowest at the threshold; the threshold t itself is wanted",
        lambda lowest, *a: lowest(_bisection(lowest, *a)),
        "right wherever lowest(t_low) < 0; but where the energy is convex at t_low already there is no change of sign "
        "to be found, and the result is t_low",
        _or_if_convex(lambda low, high: high),
        _or_if_convex(lambda low, high: (low + high) / 2),
        "the result is always about zero: hand back the threshold, not the length of the bracket",
        lambda *a: 0.0,
    ),
    laws=hints(
        "the result lies outside of the bracket [t_low, t_high]",
        lambda t, lowest, low, high, tol: lowest(low) >= 0 or low - tol <= float(t) <= high + tol,
        "the result is not where lowest changes its sign: which end of the bracket moves when?",
        lambda t, lowest, low, *a: lowest(low) >= 0 or abs(float(t) - _bisection(lowest, low, *a)) < 1e-2,
        "where the energy is convex at t_low already, there is no change of sign to be found: the result is t_low",
        lambda t, lowest, low, *a: lowest(low) < 0 or abs(float(t) - low) < 1e-2,
        "close, but the bracket has not been halved often enough: go on until it is shorter than tol",
        lambda *a: False,
    ),
    rtol=1e-7,
    atol=1e-7,
)
