"""Lesson 6."""

import math

import torch
from scipy.stats import norm

# --- 6.1 ---


def gaussian(m, cov, y, t, noise=None, sign=-1.0, spread=None):
    eye = torch.eye(len(m), dtype=torch.float64)
    hessian = torch.linalg.inv(cov + (t * eye if noise is None else noise))
    mean = torch.stack([point + sign * t * hessian @ (point - m) for point in y])
    return mean, spread(eye, hessian) if spread else t * (eye - t * hessian)


def gaussian_about_zero(m, cov, y, t):
    return gaussian(0 * m, cov, y, t)


def gaussian_entry_by_entry(m, cov, y, t):
    hessian = (cov + t * torch.eye(len(m))) ** -1.0
    return y - t * (y - m) @ hessian, t * (torch.eye(len(m)) - t * hessian)


def gaussian_with_the_covariance_as_hessian(m, cov, y, t):
    hessian = cov + t * torch.eye(len(m))
    return y - t * (y - m) @ hessian, t * (torch.eye(len(m)) - t * hessian)


def gaussian_gradient_without_t(m, cov, y, t):
    hessian = torch.linalg.inv(cov + t * torch.eye(len(m)))
    return y - (y - m) @ hessian, t * (torch.eye(len(m)) - t * hessian)


def gaussian_by_autograd(m, cov, y, t):
    noisy = cov + t * torch.eye(len(m), dtype=torch.float64)
    y = y.clone().requires_grad_()
    energy = 0.5 * torch.einsum("bi,ij,bj->", y - m, torch.linalg.inv(noisy), y - m)
    (grad,) = torch.autograd.grad(energy, y)
    return (y - t * grad).detach(), gaussian(m, cov, y.detach(), t)[1]


# --- 6.2 ---


def sure(grad, hvp, y, t, probes, image=1.0, minus=1.0, last=2.0, trace=None, n=None, bracket=None):
    n = y[0].numel() if n is None else n
    total = 0
    for v in probes:
        total = total + (v * hvp(y, t, v)).sum((1, 2, 3))
    trace = total / len(probes) if trace is None else trace
    bracket = n - t * trace if bracket is None else bracket(n, trace)
    return image * (t * grad(y, t)).square().sum((1, 2, 3)) - minus * n * t + last * t * bracket


def sure_of_the_gradient(grad, hvp, y, t, probes):
    return sure(lambda y, t: grad(y, t) / t, hvp, y, t, probes)


def sure_with_sigma(grad, hvp, y, t, probes):
    return sure(grad, hvp, y, math.sqrt(t), probes)


def sure_without_the_left_factor(grad, hvp, y, t, probes):
    products = torch.stack([hvp(y, t, v) for v in probes])
    return sure(grad, hvp, y, t, probes, trace=products.sum((2, 3, 4)).mean(0))


def sure_of_squares(grad, hvp, y, t, probes):
    products = torch.stack([hvp(y, t, v) for v in probes])
    return sure(grad, hvp, y, t, probes, trace=products.square().sum((2, 3, 4)).mean(0))


def sure_of_ones(grad, hvp, y, t, probes):
    ones = torch.ones_like(y)
    return sure(grad, hvp, y, t, probes, trace=(ones * hvp(y, t, ones)).sum((1, 2, 3)))


def sure_by_unit_images(grad, hvp, y, t, probes):
    trace = 0
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            unit = torch.zeros_like(y)
            unit[:, :, row, column] = 1
            trace = trace + hvp(y, t, unit)[:, 0, row, column]
    return sure(grad, hvp, y, t, probes, trace=trace)


def sure_with_a_sum_of_probes(grad, hvp, y, t, probes):
    trace = sum((v * hvp(y, t, v)).sum((1, 2, 3)) for v in probes)
    return sure(grad, hvp, y, t, probes, trace=trace)


def sure_with_a_mean_of_pixels(grad, hvp, y, t, probes):
    trace = torch.stack([(v * hvp(y, t, v)).mean((1, 2, 3)) for v in probes]).mean(0)
    return sure(grad, hvp, y, t, probes, trace=trace)


def sure_of_all_images(grad, hvp, y, t, probes):
    return sure(grad, hvp, y, t, probes).sum()


def sure_of_probes_at_once(grad, hvp, y, t, probes):
    """All probes in one product, but y is not repeated."""
    return sure(grad, hvp, y, t, probes, trace=(probes * hvp(y, t, probes)).sum((2, 3, 4)).mean(0))


def sure_at_the_result(grad, hvp, y, t, probes):
    clean = y - t * grad(y, t)
    return sure(grad, lambda _, t, v: hvp(clean, t, v), y, t, probes)


# --- 6.3 ---


def coverage(x, mean, std, levels, reach=lambda p: norm.ppf((1 + p) / 2), off=abs):
    shares = []
    for level in levels.tolist():
        inside = off(x - mean) <= float(reach(level)) * std
        shares.append(inside.double().mean())
    return torch.stack(shares)


def coverage_of_own_errors(x, mean, std, levels):
    return coverage(x, mean, (x - mean).std() * torch.ones_like(std), levels)


def coverage_counts(x, mean, std, levels):
    return coverage(x, mean, std, levels) * x.numel()


def coverage_of_each_image(x, mean, std, levels):
    return torch.stack([coverage(*three, levels) for three in zip(x, mean, std, strict=True)])


def coverage_of_the_mean_error(x, mean, std, levels):
    reach = torch.tensor([norm.ppf((1 + p) / 2) for p in levels.tolist()])
    return torch.sigmoid(reach - ((x - mean).abs() / std).mean())


# --- 6.4 ---


def rebuilt(slopes, a):
    b = torch.zeros_like(a)
    for i, slope in enumerate(slopes):
        b[i + 1] = b[i] + slope
    return b + a[len(a) // 2] - b[len(a) // 2]


def pooled(a, w, weigh=lambda w: w, sign=1.0):
    blocks = []
    for weight, slope in zip(weigh(w).tolist(), (sign * a.diff()).tolist(), strict=True):
        blocks.append([weight, slope, 1])
        while len(blocks) > 1 and blocks[-2][1] > blocks[-1][1]:
            w2, s2, n2 = blocks.pop()
            w1, s1, n1 = blocks.pop()
            blocks.append([w1 + w2, (w1 * s1 + w2 * s2) / (w1 + w2), n1 + n2])
    return [sign * slope for _, slope, n in blocks for _ in range(n)]


def convex_by_running_maximum(a, w):
    slopes = a.diff().tolist()
    for i in range(1, len(slopes)):
        slopes[i] = max(slopes[i], slopes[i - 1])
    return rebuilt(slopes, a)


def convex_by_running_minimum(a, w):
    slopes = a.diff().tolist()
    for i in reversed(range(len(slopes) - 1)):
        slopes[i] = min(slopes[i], slopes[i + 1])
    return rebuilt(slopes, a)


def convex_by_bends(a, w):
    bends = a.diff(n=2).clamp(min=0)
    first = a[1] - a[0]
    return rebuilt([first, *(first + bends.cumsum(0))], a)


def convex_in_one_pass(a, w):
    slopes = a.diff().tolist()
    for i in range(len(slopes) - 1):
        if slopes[i] > slopes[i + 1]:
            mean = (w[i] * slopes[i] + w[i + 1] * slopes[i + 1]) / (w[i] + w[i + 1])
            slopes[i] = slopes[i + 1] = float(mean)
    return rebuilt(slopes, a)


def convex_from_the_first(a, w):
    return torch.cat([a[:1], a[0] + torch.tensor(pooled(a, w), dtype=torch.float64).cumsum(0)])


def convex_about_zero(a, w):
    return rebuilt(pooled(a, w), a) - a[len(a) // 2]


def convex_by_an_envelope(a, w):
    """The largest convex function that is nowhere above a."""
    n = len(a)
    chords = [
        [a[j] + (a[k] - a[j]) * (i - j) / (k - j) for j in range(i) for k in range(i + 1, n)]
        for i in range(n)
    ]
    return torch.stack([torch.stack([a[i], *chord]).min() for i, chord in enumerate(chords)])


def convex_in_place(a, w):
    a[:] = rebuilt(pooled(a, w), a.clone())
    return a


WRONG = {
    "6.1": [
        (lambda m, cov, y, t: gaussian(m, cov, y, t, noise=0.0), "the noise is missing"),
        (lambda m, cov, y, t: gaussian(m, cov, y, t, noise=t), "t I has zeros off the diagonal"),
        (
            lambda m, cov, y, t: gaussian(m, cov, y, t, noise=math.sqrt(t) * torch.eye(len(m))),
            "added with its standard deviation",
        ),
        (gaussian_entry_by_entry, "inverted one by one"),
        (gaussian_with_the_covariance_as_hessian, "is the inverse of it"),
        (
            lambda m, cov, y, t: gaussian(m, cov, y, t, spread=lambda one, h: t * (1 - t * h)),
            "identity matrix",
        ),
        (lambda m, cov, y, t: gaussian(m, cov, y, t, spread=lambda one, h: one - t * h), "is t times it"),
        (lambda m, cov, y, t: gaussian(m, cov, y, t, spread=lambda one, h: t * (one - h)), "lacks its t"),
        (
            lambda m, cov, y, t: gaussian(m, cov, y, t, spread=lambda one, h: t * one + t * t * h),
            "wrong sign inside",
        ),
        (
            lambda m, cov, y, t: gaussian(m, cov, y, t, spread=lambda one, h: t * t * h),
            "by how much .* falls below",
        ),
        (
            lambda m, cov, y, t: gaussian(m, cov, y, t, spread=lambda one, h: cov + t * one),
            "is the covariance of y",
        ),
        (lambda m, cov, y, t: gaussian(m, cov, y, t, spread=lambda one, h: cov), "before y was seen"),
        (lambda *a: gaussian(*a, sign=1.0), "moves away from m"),
        (gaussian_about_zero, "m is missing in the gradient"),
        (gaussian_gradient_without_t, "the gradient lacks its t"),
        (gaussian_by_autograd, "by automatic differentiation, which this exercise does not allow"),
        (lambda *a: gaussian(*a)[0], "2 results are wanted"),
        (lambda *a: gaussian(*a)[::-1], "shape"),
        (
            lambda m, cov, y, t: gaussian(m, cov, y, t, spread=lambda one, h: torch.diag(t * (one - t * h))),
            "shape",
        ),
    ],
    "6.2": [
        (lambda *a: sure(*a, minus=-1.0), "n t has the wrong sign"),
        (lambda *a: sure(*a, minus=0.0), "- n t is missing"),
        (lambda *a: sure(*a, last=1.0), "lacks its 2"),
        (lambda g, h, y, t, v: sure(g, h, y, t, v, last=2 / t), "lacks the noise variance"),
        (lambda *a: sure(*a, bracket=lambda n, trace: n - trace), "the trace lacks its t"),
        (lambda *a: sure(*a, bracket=lambda n, trace: n + a[3] * trace), "the mean is y MINUS"),
        (lambda *a: sure(*a, bracket=lambda n, trace: a[3] * trace), "wanted is that of what is left"),
        (lambda *a: sure(*a, last=0.0), "hands back y"),
        (lambda *a: sure(*a, image=0.0, minus=0.0, last=1.0), "what the energy believes"),
        (lambda *a: sure(*a, bracket=lambda n, trace: -a[3] * trace), "check the sign of n t"),
        (sure_of_the_gradient, "in the first term t is missing"),
        (sure_with_sigma, "do not take its root"),
        (sure_with_a_sum_of_probes, "by their MEAN"),
        (lambda g, h, y, t, v: sure(g, h, y, t, v[:1]), "only the first probe"),
        (sure_with_a_mean_of_pixels, "the mean over the pixels"),
        (sure_without_the_left_factor, "multiply by v once more"),
        (sure_of_ones, "ALL entries"),
        (sure_of_squares, "trace of H"),
        (sure_by_unit_images, "this trace is exact"),
        (sure_at_the_result, "at the denoised image"),
        (lambda *a: sure(*a, n=a[2].numel()), "pixels of ONE image"),
        (lambda *a: sure(*a) / a[2][0].numel(), "number of pixels n times too small"),
        (sure_of_all_images, "shape"),
        (sure_of_probes_at_once, "wants v shaped like y"),
    ],
    "6.3": [
        (lambda *a: coverage(*a, reach=norm.ppf), "on ONE side"),
        (lambda *a: coverage(*a, reach=lambda p: norm.isf(p / 2)), "leaves p OUTSIDE"),
        (lambda *a: coverage(*a, reach=lambda p: p), "no number of standard deviations"),
        (
            lambda *a: coverage(*a, reach=lambda p: torch.erfinv(torch.tensor(p, dtype=torch.float64))),
            r"a factor sqrt\(2\) is missing",
        ),
        (lambda *a: coverage(*a, reach=lambda p: norm.ppf((1 + p) / 2) / 2), "half as wide"),
        (lambda *a: coverage(*a, reach=lambda p: 2 * norm.ppf((1 + p) / 2)), "twice as wide"),
        (lambda *a: coverage(*a, off=lambda e: e), "absolute value"),
        (lambda *a: coverage(*a, off=lambda e: e**2), "take its root"),
        (lambda x, mean, std, p: coverage(x, mean, std**2, p), "std is none of a variance"),
        (lambda x, mean, std, p: coverage(x, mean, std.sqrt(), p), "a standard deviation already"),
        (lambda x, mean, std, p: coverage(x, mean, std.mean(), p), "all pixels got the same interval"),
        (lambda x, mean, std, p: coverage(x, mean, 1.0, p), "standard deviations are not used"),
        (coverage_of_own_errors, "would be right for any std"),
        (lambda *a: 1 - coverage(*a), "OUTSIDE"),
        (lambda *a: a[3], "levels that were promised"),
        (coverage_counts, "the number of pixels times too large"),
        (lambda *a: 100 * coverage(*a), "is 100 times"),
        (coverage_of_the_mean_error, r"a multiple of 1/\(B H W\)"),
        (coverage_of_each_image, "shape"),
        (lambda *a: coverage(*a).tolist(), "a torch.Tensor is wanted"),
    ],
    "6.4": [
        (lambda a, w: rebuilt(pooled(a, w, torch.ones_like), a), "the WEIGHTED mean"),
        (lambda a, w: rebuilt(pooled(a, w, torch.square), a), "weights enter squared"),
        (lambda a, w: rebuilt(pooled(a, w, lambda w: 1 / w), a), "weights enter inverted"),
        (convex_by_running_maximum, "running maximum"),
        (convex_by_running_minimum, "running minimum"),
        (lambda a, w: rebuilt(sorted(a.diff().tolist()), a), "were sorted"),
        (convex_by_bends, "negative bends were set to zero"),
        (convex_in_one_pass, "look back"),
        (lambda a, w: rebuilt(pooled(a, w, sign=-1.0), a), "CONCAVE"),
        (convex_from_the_first, "the first coefficient is kept"),
        (convex_about_zero, "the middle coefficient has moved"),
        (convex_by_an_envelope, "the middle coefficient has moved"),
        (lambda a, w: torch.tensor(sorted(a.tolist()), dtype=torch.float64), "not convex"),
        (lambda a, w: a, "nothing was changed"),
        (lambda a, w: torch.tensor(pooled(a, w)), "shape"),
        (convex_in_place, "number 1 in place"),
    ],
}
