"""Lesson 4."""

import math
from itertools import pairwise, product

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from scipy.interpolate import BSpline
from scipy.signal import convolve2d, correlate2d

from gnclib.spline import quartic_bspline


def filters_in_loops(s):
    def row(k):
        c = math.sqrt((1 if k == 0 else 2) / s)
        return torch.tensor(
            [c * math.cos(math.pi * k * (n + 0.5) / s) for n in range(s)], dtype=torch.float64
        )

    return torch.stack([torch.outer(row(a), row(b)) for a in range(s) for b in range(s)][1:])


def filters_by_scipy(s):
    rows = scipy.fft.idct(np.eye(s), norm="ortho").T  # column k of the inverse transform has the frequency k
    return torch.from_numpy(np.einsum("ma,nb->abmn", rows, rows).reshape(-1, s, s)[1:])


def filters_by_kronecker_products(s):
    n = torch.arange(s, dtype=torch.float64)
    rows = (math.pi * n[:, None] * (n + 0.5) / s).cos() * math.sqrt(2 / s)
    rows[0] /= math.sqrt(2)
    return torch.kron(rows, rows)[1:].reshape(-1, s, s)


def spline_from_below(u, degree):
    """From the boxes up: at level d the splines of degree d, centred at -(degree - d)/2 ... (degree - d)/2."""
    centres = [k - degree / 2 for k in range(degree + 1)]
    level = [((u - c >= -0.5) & (u - c < 0.5)).double() for c in centres]
    for d in range(1, degree + 1):
        centres = [(a + b) / 2 for a, b in pairwise(centres)]
        pairs = zip(level[:-1], level[1:], centres, strict=True)
        level = [(((d + 1) / 2 + u - c) * a + ((d + 1) / 2 - u + c) * b) / d for a, b, c in pairs]
    return level[0]


def spline_by_scipy(u, degree):
    knots = np.arange(degree + 2) - (degree + 1) / 2
    return torch.tensor(np.nan_to_num(BSpline.basis_element(knots, extrapolate=False)(u.numpy()))) * (
        (u < knots[-1]) if degree == 0 else 1
    )


def spline_of_powers(u, degree):
    def power(x):
        return (x >= 0) * x.clamp(min=0) ** degree

    half = (degree + 1) / 2
    terms = [(-1) ** k * math.comb(degree + 1, k) * power(u + half - k) for k in range(degree + 2)]
    return sum(terms) / math.factorial(degree)


def parabola_by_least_squares(mu, c):
    h = mu[1] - mu[0]
    x = torch.linspace(float(mu[2] - h / 2), float(mu[-3] + h / 2), 200, dtype=torch.float64)
    return torch.linalg.lstsq(quartic_bspline((x[:, None] - mu) / h), (c * x**2)[:, None]).solution[:, 0]


def parabola_in_a_loop(mu, c):
    h = float(mu[1] - mu[0])
    return torch.tensor([c * (m * m - 5 * h * h / 12) for m in mu.tolist()], dtype=torch.float64)


def parabola_by_numpy(mu, c):
    nodes = mu.numpy()
    return torch.from_numpy(c * np.square(nodes) - c * np.diff(nodes).mean() ** 2 / 2.4)


def potential_at_once(x, w, t, mu, nu):
    in_x = quartic_bspline((x[..., None] - mu) / (mu[1] - mu[0]))
    in_tau = quartic_bspline((t.sqrt().log()[:, None] - nu) / (nu[1] - nu[0]))
    return torch.einsum("bcmn,bj,cnj->bcm", in_x, in_tau, w)


def potential_by_scipy(x, w, t, mu, nu):
    def basis(points, nodes):
        h = float(nodes[1] - nodes[0])
        one = BSpline.basis_element(np.arange(6) - 2.5, extrapolate=False)
        return np.nan_to_num(one((points.numpy()[..., None] - nodes.numpy()) / h))

    values = np.einsum("bcmn,bj,cnj->bcm", basis(x, mu), basis(t.log() / 2, nu), w.numpy())
    return torch.from_numpy(values)


def potential_in_loops(x, w, t, mu, nu):
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        in_tau = quartic_bspline((t[b].log() / 2 - nu) / (nu[1] - nu[0]))
        for c in range(x.shape[1]):
            a = w[c] @ in_tau
            out[b, c] = quartic_bspline((x[b, c][:, None] - mu) / (mu[1] - mu[0])) @ a
    return out


def potential_of_five_terms(x, w, t, mu, nu):
    """At each point only the five nonzero terms in x, and the five in tau."""

    def five(point, nodes):
        u = float((point - nodes[0]) / (nodes[1] - nodes[0]))
        first = round(u) - 2
        terms = torch.arange(first, first + 5, dtype=torch.float64)
        return range(first, first + 5), quartic_bspline(u - terms).tolist()

    out = torch.zeros_like(x)
    for b, c, m in np.ndindex(*x.shape):
        pairs = [zip(*five(*of), strict=True) for of in ((x[b, c, m], mu), (t[b].log() / 2, nu))]
        for (n, beta), (j, gamma) in product(*pairs):
            out[b, c, m] += w[c][n][j] * beta * gamma
    return out


def gradient_by_filtering(y, kernels, slope):
    padded = F.pad(slope(F.conv2d(y, kernels)), [kernels.shape[-1] - 1] * 4)
    return F.conv2d(padded, kernels.flip(-1, -2).transpose(0, 1))


def gradient_image_by_image(y, kernels, slope):
    return torch.cat([F.conv_transpose2d(slope(F.conv2d(image[None], kernels)), kernels) for image in y])


def gradient_by_patches(y, kernels, slope):
    (height, width), s = y.shape[2:], kernels.shape[-1]
    matrix = kernels.flatten(1)  # (C, s s)
    features = matrix @ F.unfold(y, s)  # (B, C, positions)
    bent = slope(features.unflatten(2, (height - s + 1, width - s + 1)))
    return F.fold(matrix.T @ bent.flatten(2), (height, width), s)


def gradient_by_scipy(y, kernels, slope):
    result = np.zeros(y.shape)
    for b, image in enumerate(y[:, 0].numpy()):
        features = np.stack([correlate2d(image, k, "valid") for k in kernels[:, 0].numpy()])
        bent = slope(torch.from_numpy(features)[None])[0].numpy()
        result[b, 0] = sum(convolve2d(g, k) for g, k in zip(bent, kernels[:, 0].numpy(), strict=True))
    return torch.from_numpy(result)


def training_image_by_image(a, x, z, t, kernels, mu, rate):
    coefficients = torch.nn.Parameter(a.clone())
    h = float(mu[1] - mu[0])
    for clean, noise in zip(x, z, strict=True):
        features = F.conv2d((clean + t**0.5 * noise)[None], kernels)[0]
        slopes = quartic_bspline((features[..., None] - mu) / h, 1) @ coefficients[:, None, :, None] / h
        gradient = F.conv_transpose2d(slopes[None, ..., 0], kernels)
        (0.5 * (t**0.5 * gradient[0] - noise).square().sum() / x.numel()).backward()
    with torch.no_grad():
        coefficients -= rate * coefficients.grad
    return coefficients.detach()


def training_by_numpy(a, x, z, t, kernels, mu, rate):
    h, nodes, stamps = float(mu[1] - mu[0]), mu.numpy(), kernels[:, 0].numpy()
    step = np.zeros(tuple(a.shape))
    for clean, noise in zip(x[:, 0].numpy(), z[:, 0].numpy(), strict=True):
        y = clean + math.sqrt(t) * noise
        features = np.stack([correlate2d(y, k, "valid") for k in stamps])
        slopes = quartic_bspline(torch.from_numpy((features[..., None] - nodes) / h), 1).numpy() / h
        bent = np.einsum("chwn,cn->chw", slopes, a.numpy())
        rest = math.sqrt(t) * sum(convolve2d(g, k) for g, k in zip(bent, stamps, strict=True)) - noise
        again = np.stack([correlate2d(rest, k, "valid") for k in stamps])
        step += math.sqrt(t) * np.einsum("chwn,chw->cn", slopes, again) / x.numel()
    return a - rate * torch.from_numpy(step)


def training_by_hand(a, x, z, t, kernels, mu, rate):
    h, y = mu[1] - mu[0], x + math.sqrt(t) * z
    slopes = quartic_bspline((F.conv2d(y, kernels)[..., None] - mu) / h, 1) / h
    r = math.sqrt(t) * F.conv_transpose2d(torch.einsum("bchwn,cn->bchw", slopes, a), kernels) - z
    total = torch.einsum("bchw,bchwn->cn", F.conv2d(r, kernels), slopes)
    return a - rate * math.sqrt(t) / x.numel() * total


def training_with_its_graph(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    h, y = mu[1] - mu[0], x + t**0.5 * z
    slopes = quartic_bspline((F.conv2d(y, kernels)[..., None] - mu) / h, 1) / h
    gradient = F.conv_transpose2d((slopes * a[:, None, None, :]).sum(-1), kernels)
    return a - rate * torch.autograd.grad(((t**0.5 * gradient - z) ** 2).mean() / 2, a)[0]


RIGHT = {
    "4.1": [filters_in_loops, filters_by_scipy, filters_by_kronecker_products],
    "4.2": [spline_of_powers, spline_from_below, spline_by_scipy],
    "4.3": [parabola_by_least_squares, parabola_in_a_loop, parabola_by_numpy],
    "4.4": [potential_in_loops, potential_at_once, potential_by_scipy, potential_of_five_terms],
    "4.5": [gradient_by_filtering, gradient_image_by_image, gradient_by_patches, gradient_by_scipy],
    "4.6": [training_by_hand, training_with_its_graph, training_image_by_image, training_by_numpy],
}
