"""Lesson 1."""

import math

import torch

from gnclib.gmm import GaussianMixture


def energy(w, mu, v, y, t):
    return GaussianMixture(w, mu, v).energy(y, t)


def densities(w, mu, s, y):
    return w * torch.exp(-((y[:, None] - mu) ** 2) / (2 * s)) / torch.sqrt(2 * math.pi * s)


def energy_with_exp(w, mu, v, y, t):
    return -torch.log(densities(w, mu, v + t, y).sum(1))


def energy_with_a_patch(w, mu, v, y, t):
    return -torch.log(densities(w, mu, v + t, y).sum(1) + 1e-300)


def energy_by_hand(w, mu, v, y, t, square=0.5, root=0.5):
    s = v + t
    return -torch.logsumexp(
        torch.log(w) - square * (y[:, None] - mu) ** 2 / s - root * torch.log(2 * math.pi * s), dim=1
    )


def energy_with_variance_as_std(w, mu, v, y, t):
    return -torch.logsumexp(torch.distributions.Normal(mu, v + t).log_prob(y[:, None]) + w.log(), 1)


def energy_with_half_a_root(w, mu, v, y, t):
    s = v + t
    logs = w.log() - (y[:, None] - mu) ** 2 / (2 * s) - torch.log(math.sqrt(2 * math.pi) * s)
    return -torch.logsumexp(logs, 1)


# --- 1.2 ---


def bayes_with_exp(w, mu, v, y, t):
    joint = densities(w, mu, v + t, y)
    return joint / joint.sum(1, keepdim=True)


def bayes_with_a_patch(w, mu, v, y, t):
    joint = densities(w, mu, v + t, y)
    return joint / (joint.sum(1, keepdim=True) + 1e-12)


def nearest_mean(w, mu, v, y, t):
    g = torch.zeros(len(y), len(w), dtype=y.dtype)
    g[range(len(y)), (y[:, None] - mu).abs().argmin(1)] = 1.0
    return g


def log_normal(y, mu, s):
    return torch.distributions.Normal(mu, s.sqrt()).log_prob(y[:, None])


def changes_the_variances(w, mu, v, y, t):
    v += t
    return torch.softmax(w.log() + log_normal(y, mu, v), 1)


# --- 1.3 ---


def gradient_in_a_loop(g, mu, v, y, t, sign=-1, divide=lambda v, t: v + t):
    total = torch.zeros_like(y)
    for b in range(len(y)):
        for i in range(len(v)):
            total[b] += sign * g[b, i] * (mu[i] - y[b]) / divide(v[i], t)
    return total


def gradient_of_the_mean_component(g, mu, v, y, t):
    return (y - g @ mu) / (g @ (v + t))[:, None]


# --- 1.4 ---


def hessian_in_a_loop(g, mu, v, y, t, curvature=True, centre=True, sign=-1.0, diagonal=True):
    size, d = y.shape
    h = torch.zeros(size, d, d, dtype=y.dtype)
    for b in range(size):
        a = [(m - y[b]) / (s + t) for m, s in zip(mu, v, strict=True)]
        mean = sum(p * q for p, q in zip(g[b], a, strict=True)) if centre else torch.zeros(d, dtype=y.dtype)
        for p, q, s in zip(g[b], a, v, strict=True):
            if curvature:
                h[b] += p / (s + t) * (torch.eye(d, dtype=y.dtype) if diagonal else 1.0)
            h[b] += sign * p * torch.outer(q - mean, q - mean)
    return h


def hessian_one_factor_not_divided(g, mu, v, y, t):
    u = mu - y[:, None]
    a = u / (v + t)[:, None]
    outer = torch.einsum("bk,bki,bkj->bij", g, a - (g[..., None] * a).sum(1, keepdim=True), u)
    return (g / (v + t)).sum(1)[:, None, None] * torch.eye(y.shape[1], dtype=y.dtype) - outer


def hessian_diagonal_only(g, mu, v, y, t):
    a = (mu - y[:, None]) / (v + t)[:, None]
    mean = (g[..., None] * a).sum(1, keepdim=True)
    return (g / (v + t)).sum(1, keepdim=True) - (g[..., None] * (a - mean) ** 2).sum(1)


def hessian_of_the_gradient_code(g, mu, v, y, t):
    """The Jacobian of sum_i g_i P_i (y - mu_i) with g held fixed."""
    return torch.stack([(p / (v + t)).sum() * torch.eye(y.shape[1], dtype=y.dtype) for p in g])


def hessian_covariance_of_means(g, mu, v, y, t):
    eye = torch.eye(y.shape[1], dtype=y.dtype)
    cov = torch.stack([torch.cov(mu.T, aweights=p, correction=0) for p in g])
    return (g / (v + t)).sum(1)[:, None, None] * eye - cov


def hessian_two_terms(g, mu, v, y, t, weigh_p=True, weigh_mean=True, weigh_outer=True, full=True):
    p = 1 / (v + t)
    a = p[:, None] * (mu - y[:, None])
    a_bar = torch.einsum("bk,bki->bi", g, a) if weigh_mean else a.mean(1)
    u = a - a_bar[:, None]
    outer = u[..., None] * u[..., None, :]
    cov = (g[..., None, None] * outer if weigh_outer else outer).sum(1)
    if not full:
        cov = torch.diag_embed(torch.diagonal(cov, dim1=1, dim2=2))
    mean_p = (g * p).sum(1) if weigh_p else p.mean().expand(len(y))
    return mean_p[:, None, None] * torch.eye(y.shape[1], dtype=y.dtype) - cov


def hessian_sum_of_p(g, mu, v, y, t):
    extra = (1 / (v + t)).sum() - (g / (v + t)).sum(1)
    return hessian_two_terms(g, mu, v, y, t) + extra[:, None, None] * torch.eye(y.shape[1], dtype=y.dtype)


def hessian_equal_variances(g, mu, v, y, t):
    p = (g / (v + t)).sum(1)[:, None, None]
    cov = torch.stack([torch.cov(mu.T, aweights=row, correction=0) for row in g])
    return p * torch.eye(y.shape[1], dtype=y.dtype) - p**2 * cov


# --- 1.5 ---


def diameter(mu):
    return max(torch.dist(a, b).item() for a in mu for b in mu)


def narrowest(cov):
    return min(torch.linalg.eigvalsh(c)[0].item() for c in cov)


def bound_from_the_box(mu, cov):
    diagonal = (mu.max(0).values - mu.min(0).values).norm().item()
    return max(diagonal**2 - narrowest(cov), 0.0)


def bound_from_the_diagonal(mu, cov):
    return max(0.0, diameter(mu) ** 2 - min(c.diag().min().item() for c in cov))


def bound_per_component(mu, cov):
    return torch.tensor([diameter(mu) ** 2 - torch.linalg.eigvalsh(c)[0] for c in cov])


# --- 1.6 ---


def bisect(lowest, t_low, t_high, tol, swapped=False, give=lambda lowest, low, high: (low + high) / 2):
    low, high = t_low, t_high
    while high - low > tol:
        middle = 0.5 * (low + high)
        if (lowest(middle) < 0) != swapped:
            low = middle
        else:
            high = middle
    return give(lowest, low, high)


def bisect_eight_times(lowest, t_low, t_high, tol):
    for _ in range(8):
        middle = 0.5 * (t_low + t_high)
        t_low, t_high = (middle, t_high) if lowest(middle) < 0 else (t_low, middle)
    return t_high


def bisect_for_ever(lowest, t_low, t_high, tol):
    while t_low < t_high:
        middle = 0.5 * (t_low + t_high)
        if lowest(middle) < 0:
            t_low = middle
        else:
            t_high = middle
        t_high = max(t_high, t_low + tol)
    return t_high


def try_a_grid(lowest, t_low, t_high, tol):
    t = t_low
    while lowest(t) < 0:
        t += 1e-4
    return t


def halve_once(lowest, t_low, t_high, tol):
    middle = (t_low + t_high) / 2
    if lowest(middle) < 0:
        t_low = middle
    else:
        t_high = middle
    return (t_low + t_high) / 2


def bisect_by_products(lowest, t_low, t_high, tol):
    while t_high - t_low > tol:
        middle = (t_low + t_high) / 2
        if lowest(t_low) * lowest(middle) <= 0:
            t_high = middle
        else:
            t_low = middle
    return (t_low + t_high) / 2


def bisect_or_zero(lowest, t_low, t_high, tol):
    if lowest(t_low) >= 0:
        return 0.0
    return bisect(lowest, t_low, t_high, tol)


def hessian_by_torch_cov(g, mu, v, y, t):
    rows = []
    for weights, point in zip(g, y, strict=True):
        pulls = (mu - point) / (v + t)[:, None]
        rows.append((weights / (v + t)).sum() * torch.eye(len(point)) - torch.cov(pulls.T))
    return torch.stack(rows)


WRONG = {
    "1.1": [
        (lambda w, mu, v, y, t: -torch.log(densities(w, mu, v + t, y)).sum(1), "nan or inf"),
        (lambda w, mu, v, y, t: -(w * (log_normal(y, mu, v + t))).sum(1), "no sum of logarithms"),
        (lambda w, mu, v, y, t: -(w.log() + log_normal(y, mu, v + t)).amax(1), "likeliest component alone"),
        (energy_with_half_a_root, "stands under the root"),
        (lambda w, mu, v, y, t: -energy(w, mu, v, y, t), "sign is wrong"),
        (lambda w, mu, v, y, t: energy(w, mu, v, y, 0.0), "noise is missing"),
        (lambda w, mu, v, y, t: energy(w, mu, v + t**0.5, y, 0.0), "standard deviations do not"),
        (
            lambda w, mu, v, y, t: -torch.distributions.Normal(mu, (v + t).sqrt()).log_prob(y[:, None]),
            "shape",
        ),
        (lambda w, mu, v, y, t: -torch.logsumexp(log_normal(y, mu, v + t), 1), "weights w_i are missing"),
        (lambda w, mu, v, y, t: densities(w, mu, v + t, y).sum(1), "density itself"),
        (energy_with_exp, "nan or inf"),
        (energy_with_a_patch, "stay with logarithms"),
        (lambda *a: energy_by_hand(*a, root=0.0), "it does not cancel"),
        (lambda *a: energy_by_hand(*a, root=1.0), "half of log"),
        (lambda *a: energy_by_hand(*a, square=1.0), "2 in the exponent"),
        (energy_with_variance_as_std, "taken for a standard deviation"),
    ],
    "1.2": [
        (bayes_with_exp, "nan or inf"),
        (bayes_with_a_patch, "sum to one"),
        (nearest_mean, r"the result is [01], and"),
        (changes_the_variances, "number 3 in place"),
        (lambda w, mu, v, y, t: torch.softmax(log_normal(y, mu, v + t), 1), "weights w_i are missing"),
        (lambda w, mu, v, y, t: torch.softmax(w.log() + log_normal(y, mu, v), 1), "noise is missing"),
        (lambda w, mu, v, y, t: torch.softmax(w.log() + log_normal(y, mu, v + t), 0), "over the points"),
        (lambda w, mu, v, y, t: densities(w, mu, v + t, y), "divides them by their sum"),
        (
            lambda w, mu, v, y, t: torch.softmax(-((y[:, None] - mu) ** 2) / (2 * (v + t)) + w.log(), 1),
            "does not cancel",
        ),
        (
            lambda w, mu, v, y, t: torch.softmax(
                w.log() - (y[:, None] - mu) ** 2 / (v + t) - (v + t).log() / 2, 1
            ),
            "2 in the exponent",
        ),
        (
            lambda w, mu, v, y, t: torch.softmax(w.log() + log_normal(y, mu, (v + t) ** 2), 1),
            "for a standard dev",
        ),
        (lambda w, mu, v, y, t: torch.softmax(w.log() + log_normal(y, mu, v + t), 1).T, "shape"),
    ],
    "1.3": [
        (
            lambda g, mu, v, y, t: (y - g @ mu) / (g @ (v + t))[:, None],
            "averaged first and divided afterwards",
        ),
        (lambda g, mu, v, y, t: (y - g @ mu) * (g @ (1 / (v + t)))[:, None], "averaged first and divided"),
        (lambda g, mu, v, y, t: gradient_in_a_loop(g, mu, v, y, t, sign=1), "points uphill in density"),
        (
            lambda g, mu, v, y, t: gradient_in_a_loop(g, mu, v, y, t, divide=lambda v, t: 1.0),
            "not divided by the variance",
        ),
        (
            lambda g, mu, v, y, t: gradient_in_a_loop(g, mu, v, y, t, divide=lambda v, t: v),
            "noise is missing",
        ),
        (
            lambda g, mu, v, y, t: gradient_in_a_loop(g, mu, v, y, t, divide=lambda v, t: t),
            "its own width",
        ),
        (
            lambda g, mu, v, y, t: gradient_in_a_loop(
                g, mu, v, y, t, divide=lambda v, t: math.sqrt(float(v) + t)
            ),
            "standard deviation",
        ),
        (gradient_of_the_mean_component, "averaged first and divided afterwards"),
        (lambda g, mu, v, y, t: ((y[:, None] - mu) / (v + t)[:, None]).mean(1), "equal weights"),
        (lambda g, mu, v, y, t: g[..., None] * (y[:, None] - mu) / (v + t)[:, None], "shape"),
        (lambda g, mu, v, y, t: (g * (y - mu) / (v + t)).sum(1), "your code stopped with RuntimeError"),
    ],
    "1.4": [
        (hessian_by_torch_cov, "weights are the responsibilities"),
        (hessian_of_the_gradient_code, "how much the components disagree"),
        (
            lambda g, mu, v, y, t: hessian_in_a_loop(g, mu, v, y, t, centre=False),
            "second moment",
        ),
        (lambda g, mu, v, y, t: hessian_in_a_loop(g, mu, v, y, t, sign=1.0), "takes curvature away"),
        (lambda g, mu, v, y, t: hessian_in_a_loop(g, mu, v, y, t, diagonal=False), "belongs on the diagonal"),
        (lambda g, mu, v, y, t: hessian_in_a_loop(g, mu, v, y, 0.0), "noise is missing"),
        (hessian_covariance_of_means, "covariance of the means"),
        (lambda *a: hessian_two_terms(*a, weigh_p=False), "P_i are not weighted"),
        (hessian_sum_of_p, "P_i are not weighted"),
        (lambda *a: hessian_two_terms(*a, weigh_mean=False), "plain mean"),
        (lambda *a: hessian_two_terms(*a, weigh_outer=False), "without weights"),
        (lambda *a: hessian_two_terms(*a, weigh_mean=False, weigh_outer=False), "without weights"),
        (lambda *a: hessian_two_terms(*a, full=False), "off the diagonal"),
        (hessian_equal_variances, "for equal variances only"),
        (hessian_one_factor_not_divided, "symmetric"),
        (hessian_diagonal_only, "shape"),
        (lambda g, mu, v, y, t: -hessian_in_a_loop(g, mu, v, y, t), "the sign is wrong"),
    ],
    "1.5": [
        (lambda mu, cov: abs(diameter(mu) ** 2 - narrowest(cov)), "cannot be: nothing needs to be added"),
        (lambda mu, cov: diameter(mu) ** 2 - narrowest(cov), "cannot be: nothing needs to be added"),
        (lambda mu, cov: max(0.0, diameter(mu) - narrowest(cov)), "units do not match"),
        (lambda mu, cov: diameter(mu) ** 2, "own width is not used"),
        (
            lambda mu, cov: max(
                0.0, diameter(mu) ** 2 - max(torch.linalg.eigvalsh(c)[-1].item() for c in cov)
            ),
            "largest eigenvalue",
        ),
        (bound_from_the_diagonal, "tilted ellipse"),
        (bound_from_the_box, "bounding box"),
        (lambda mu, cov: max(0.0, diameter(mu) ** 2 / 4 - narrowest(cov)), "Popoviciu"),
        (bound_per_component, "one number is wanted"),
        (lambda mu, cov: torch.linalg.eigvals(cov).real.min() - diameter(mu) ** 2, "cannot be negative"),
    ],
    "1.6": [
        (lambda *a: bisect(*a, swapped=True), "the wrong end of the bracket moves"),
        (lambda *a: bisect(*a, give=lambda lowest, low, high: (low, high)), "one number is wanted"),
        (lambda *a: bisect(*a, give=lambda lowest, low, high: lowest(high)), "value of lowest"),
        (lambda *a: bisect(*a, give=lambda lowest, low, high: high - low), "not the length of the bracket"),
        (lambda *a: bisect(*a, give=lambda lowest, low, high: None), "is the `return` missing"),
        (bisect_eight_times, "not been halved often enough"),
        (bisect_for_ever, "does your loop ever end"),
        (try_a_grid, "asked 300 times"),
        (bisect_by_products, r"right wherever lowest\(t_low\) < 0"),
        (bisect_or_zero, "where the energy is convex at t_low already"),
        (halve_once, "not where lowest changes its sign"),
    ],
}
