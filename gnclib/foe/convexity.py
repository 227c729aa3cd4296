r"""Convex potentials: the projections that keep them so, and certificates of energies (not in the paper).

A quartic spline with coefficients a_i has the second derivative h^-2 sum_i (a_{i+1} - 2 a_i + a_{i-1}) B_i(x) with B_i
quadratic B-splines. These are not negative and sum to 1, so second differences that are nowhere negative make it
convex on its range, and the linear continuation keeps it convex on the whole line. In tau the coefficients are
sum_j w_ij beta_j(tau), beta_j >= 0: it is enough that every node j with beta_j(tau) > 0 has such differences. The
energy is then a sum of convex functions of linear maps of the image (continuation by reflection and low passes
included), hence convex in y, for all images of all sizes. Coefficients that are arithmetic sequences make an activation
affine; where all hidden ones are, features of the last layer are affine in y and the same holds for them.

:func:`certify` also bounds the curvature of all images from both sides. With k_c = sup phi_c'' and K the filters (of
several layers K_L diag(phi_{L-1}') ... K_1, where hidden activations are affine),

    t Hess R <= t s^2 || P ||^2 max_omega sum_c k_c |K_c(omega)|^2,

|| P ||^2 <= 4 for continuation by reflection (in images of at least twice the continuation, a pixel occurs at most
twice in each direction), plus the same of each coarser scale times || D^l ||^2, where || P ||^2 <= 9 since it may be
as small as the kernels allow; the lower bound has -inf phi_c'' for k_c, where that is positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import scipy
import torch
from torch import Tensor

from gnclib import spline
from gnclib.foe.config import FoEConfig

if TYPE_CHECKING:
    from gnclib.foe.energy import FieldsOfExperts

#: what `project` keeps second differences above, so that rounding to float32 hardly makes one negative
FLOOR = 2e-6
#: bound of relative rounding errors of sums of a few hundred numbers in float64
ROUNDING = 1e-12


def convex_nodes(config: FoEConfig) -> int:
    """Index of the first node in tau that the potentials of a noise level >= ``convex_from`` depend on."""
    if config.convex_from is None:
        return config.nodes_tau
    grid = config.grid_tau
    return int((grid.nodes() + 2.5 * grid.spacing < math.log(config.convex_from) - 1e-8).sum())


@torch.no_grad()
def project(weights: Tensor, first: int, grid: spline.SplineGrid, deviation: Tensor | None = None) -> None:
    """Replace potentials (C, N_x, N_tau) by the closest ones that are convex at the nodes from ``first`` on, in place.

    Closest in the differences s_i from node to node, which the gradient of the energy sees: isotonic regression. They
    weigh as much as features visit them, as exp(-x_i^2 / (2 d_c^2)) + 1e-6 where the standard deviation d_c of the
    features of noise is given, ``deviation`` (C,), else (1 + x_i^2)^-2. The coefficient in the middle stays. At the
    nodes in tau before, no second difference may be more negative than the most negative one of each earlier node: the
    curvature that is allowed falls from node to node. Second differences are kept above :data:`FLOOR`, or rather above
    that curvature.
    """
    if first >= weights.shape[-1]:
        return
    v = weights.double().cpu().transpose(1, 2)  # (C, N_tau, N_x)
    slopes, middle = v.diff().numpy(), v.shape[-1] // 2
    # how negative they may be, (N_tau,)
    least = np.minimum.accumulate(-v.diff(n=2).amin((0, 2)).clamp(max=0).numpy())
    least[first:] = -FLOOR * max(1.0, v.abs().max().item())
    ramp = np.arange(slopes.shape[-1])
    x2 = np.broadcast_to((grid.nodes()[1:] - grid.spacing / 2).numpy() ** 2, (len(v), slopes.shape[-1]))
    visits = (1 + x2) ** -2.0
    if deviation is not None:
        visits = np.exp(-x2 / (2 * deviation.double().cpu().numpy()[:, None].clip(min=1e-3) ** 2)) + 1e-6
    for j, floor in enumerate(-least):
        for row, omega in zip(slopes[:, j], visits, strict=True):
            raised = row - floor * ramp
            if (np.diff(raised) < 0).any():
                row[:] = scipy.optimize.isotonic_regression(raised, weights=omega).x + floor * ramp
    values = torch.nn.functional.pad(torch.from_numpy(slopes).cumsum(-1), (1, 0))
    values = values + (v[..., middle] - values[..., middle])[..., None]
    weights.copy_(values.transpose(1, 2))


@torch.no_grad()
def straighten(weights: Tensor, first: int, grid: spline.SplineGrid) -> None:
    """Replace activations (C, N_x, N_tau) by straight lines at the nodes in tau from ``first`` on, in place.

    The slope is the mean of the steps from node to node, the height that of what is left, with the weights of
    :func:`project` without deviations. They are rounded to so few digits that the coefficients are arithmetic sequences
    exactly, in float32 too.
    """
    if first >= weights.shape[-1]:
        return
    v, x = weights[..., first:].double().cpu(), grid.nodes()
    ramp = torch.arange(len(x), dtype=v.dtype) - len(x) // 2

    def mean(values: Tensor, x: Tensor) -> Tensor:  # over the nodes: (C, J)
        visits = (1 + x**2) ** -2
        return torch.einsum("cij,i->cj", values, visits / visits.sum())

    steps = mean(v.diff(dim=1), x[1:] - grid.spacing / 2)
    heights = mean(v - steps[:, None] * ramp[:, None], x)
    size = (heights.abs() + steps.abs() * (len(x) // 2 + 1)).max().item()
    unit = 2.0 ** (math.ceil(math.log2(size)) - 23) if size else 1.0
    steps, heights = ((part / unit).round() * unit for part in (steps, heights))
    weights[..., first:] = (heights[:, None] + steps[:, None] * ramp[:, None]).to(weights)


@torch.no_grad()
def repaired(prior: FieldsOfExperts, t: float, most: float | None = None) -> FieldsOfExperts:
    """A copy of an energy of one layer, for use at this t alone, with the closest potentials that are convex there.

    With ``most`` > 0 they are the closest ones whose second differences are so small that t Hess R is certified to be
    at most that (``inner_curvature``): phi_c'' <= most / (t s^2 max_omega sum_c |K_c(omega)|^2). Closest as in
    :func:`project`, with the norms of the kernels for deviations. Raises ValueError: more than one layer, coarser
    scales, t outside of the range of the prior, or another bound.
    """
    config, kernels = prior.config, prior.kernels[0]
    if most is not None and not 0 < most < math.inf:
        raise ValueError(f"a bound of the curvature must be a finite number > 0, got {most}")
    if config.layers > 1 or config.scales:
        raise ValueError("only an energy of one layer and one scale is repaired, this one has more")
    tau = prior._range(t, 1, prior.offset.double())
    w = spline.contract(prior.weights[0].double(), tau, config.grid_tau)[0, ..., None]  # (C, N_x, 1)
    deviation = kernels.flatten(1).norm(dim=1)
    if most is None:
        project(w, 0, config.grid_x, deviation)
    else:
        spectrum = _spectrum(kernels, torch.zeros(1), np.ones(len(kernels)))
        gain = (t * prior._scale(tau)[0] ** 2).item() * spectrum
        steepest = most / gain / 2 * config.grid_x.nodes()[:, None] ** 2
        missing = steepest - w  # is convex where w bends less than the steepest parabola
        project(missing, 0, config.grid_x, deviation)
        w = steepest - missing
    made = prior.from_state(config, prior.state_dict()).requires_grad_(False)
    made.weights[0].copy_(w)
    return made


@dataclass(frozen=True)
class Certificate:
    """What holds for all images at one noise variance t.

    Attributes
    ----------
    convex : bool
        Whether R(., t) is proved to be convex. False means that there is no proof.
    curvature : float
        Upper bound of t L: every eigenvalue of t Hess R is at most that.
    modulus : float
        Lower bound of the smallest eigenvalue of t Hess R, at most 0; 0 where convex.
    inner_curvature, inner_modulus : float
        The same for features that see no border.
    """

    convex: bool
    curvature: float
    modulus: float
    inner_curvature: float
    inner_modulus: float


@torch.no_grad()
def certify(prior: FieldsOfExperts, t: float) -> Certificate:
    """Prove bounds of the curvature of an energy, for all images at least 2 ``config.margin`` + 2 pixels wide.

    They hold for the function of real numbers that the stored weights define; rounding in its evaluation is not part of
    it. Suprema over x are taken piece by piece in closed form, the one over frequencies from a grid with a bound for
    trigonometric polynomials in between; rounding errors are added outwards. Of several layers nothing is proved where
    a hidden activation is not affine: the bounds are infinite. Raises ValueError if t leaves the range of the prior.
    """
    config = prior.config
    tau = prior._range(t, 1, torch.zeros(1, dtype=torch.float64)).item()
    t = math.exp(2 * tau)
    s2 = 1 / (t + config.sigma_0**2) if config.scaled_input else 1.0
    if (composed := _composed(prior, tau)) is None:
        return Certificate(False, math.inf, -math.inf, math.inf, -math.inf)
    # factor, (bounds of the norm of what comes before the kernels, of all features and of inner ones), the experts
    parts = [(t * s2, (4.0, 1.0), composed, prior.weights[-1], config.grid_x)]
    coarse = prior.coarse
    for l in range(config.scales):
        s2 = 1 / (0.25 ** (l + 1) * t + config.coarse_sigma_0**2)
        norms = 9 * low_pass_norm(l + 1, config.kernel_size // 2), 0.25 ** (l + 1)
        exact = coarse.kernels[l], torch.zeros(1)
        parts.append((t * s2, norms, exact, coarse.weights[l], config.coarse_grid))
    convex, bounds = True, np.zeros((2, 2))  # (upper, lower) x (any, inner)
    for gain, norms, kernels, weights, grid in parts:
        convex &= all(bend >= 0 for bend in _bends(weights, tau, config.grid_tau))
        lower, upper = _curvatures(weights, tau, config.grid_tau, grid)
        for row, k in enumerate((upper, -lower)):
            bounds[row] += gain * _spectrum(*kernels, k.clip(min=0)) * np.array(norms)
    if convex:
        bounds[1] = 0
    bounds *= 1 + 1e-9
    bounds[1] = 0 - bounds[1]  # 0, not -0
    return Certificate(convex, *bounds.T.flatten().tolist())


def _bends(weights: Tensor, tau: float, grid: spline.SplineGrid) -> Iterator[float]:
    """The second differences at all nodes in tau that count, with exact signs.

    ``math.fsum`` rounds the exact sum of the floats once, which leaves its sign right.
    """
    distance = (grid.nodes() - tau).abs() / grid.spacing
    for row in weights[..., distance < 2.5 + 1e-9].double().transpose(1, 2).flatten(0, 1).tolist():
        for i in range(len(row) - 2):
            yield math.fsum((row[i], -row[i + 1], -row[i + 1], row[i + 2]))


def _composed(prior: FieldsOfExperts, tau: float) -> tuple[Tensor, Tensor] | None:
    """The kernels (C, 1, s, s) from the input to the features of the last layer and bounds of the rounding error of
    their transforms, (C, 1, 1); None where a hidden activation is not affine."""
    config, (kernels, *deeper) = prior.config, [k.double().cpu() for k in prior.kernels]
    if any(any(_bends(w, tau, config.grid_tau)) for w in prior.weights[:-1]):
        return None
    basis = spline.quartic_bspline((tau - config.grid_tau.nodes()) / config.grid_tau.spacing)
    sizes = kernels.abs()
    for kernel, w in zip(deeper, prior.weights, strict=False):
        slopes = w.diff(dim=1)[:, 0].double().cpu() / config.grid_x.spacing  # (C, N_tau)
        kernels = _after(kernels, slopes @ basis, kernel, config.dilation)
        sizes = _after(sizes, slopes[:, basis > 0].abs().sum(1), kernel.abs(), config.dilation)
    operations = config.layers * config.features * config.deep_kernel_size**2 + 100
    return kernels, operations * 2.0**-51 * sizes.sum((2, 3))[..., None]


def _after(kernels: Tensor, slopes: Tensor, kernel: Tensor, dilation: int) -> Tensor:
    """The kernels (C, 1, s, s) of a layer (C_out, C_in, k, k) that sees slopes (C_in,) times the features before."""
    inner, kernel = slopes[:, None, None] * kernels[:, 0], kernel.transpose(0, 1)
    return torch.nn.functional.conv_transpose2d(inner, kernel, dilation=dilation)[:, None]


def _curvatures(weights: Tensor, tau: float, grid_tau: spline.SplineGrid, grid: spline.SplineGrid):
    """inf and sup of phi_c'' over the line, rounded outwards, each (C,).

    On a piece, u in [0, 1]: phi'' = h^-2 [ (d_0 + d_1) / 2 + (d_1 - d_0) u + (d_0 - 2 d_1 + d_2) u^2 / 2 ].
    """
    basis = spline.quartic_bspline((tau - grid_tau.nodes()) / grid_tau.spacing)
    w = weights.detach().double().cpu()
    a, size = w @ basis, (w.abs() @ basis).amax(1, keepdim=True)  # (C, N_x), (C, 1)
    d = a.diff(n=2, dim=1) / grid.spacing**2
    d0, d1, d2 = d[:, :-2], d[:, 1:-1], d[:, 2:]
    bend = d0 - 2 * d1 + d2
    u = torch.where(bend == 0, 0.0, (d0 - d1) / bend).nan_to_num().clamp(0, 1)
    vertex = (d0 + d1) / 2 + (d1 - d0) * u + bend * u**2 / 2
    pieces = torch.cat([(d0 + d1) / 2, (d1 + d2) / 2, vertex], 1)
    error = 100 * ROUNDING * size[:, 0] / grid.spacing**2
    lower, upper = pieces.amin(1) - error, pieces.amax(1) + error
    return lower.clamp(max=0).numpy(), upper.clamp(min=0).numpy()


def _spectrum(kernels: Tensor, error: Tensor, gains: np.ndarray) -> float:
    """Upper bound of max_omega sum_c gains_c |K_c(omega)|^2: the largest value on a grid, divided by a cosine.

    K_c may be off by ``error``, (C, 1, 1), at each frequency. The sum is a trigonometric polynomial of degree s - 1 in
    each direction, s the side of the kernels. Such a polynomial of degree d is at most its largest absolute value at
    N > 2 d equidistant points over cos(pi d / N) in one dimension (Ehlich & Zeller 1964), twice that in two.
    """
    k = kernels.detach().double().cpu().numpy()[:, 0]
    points = max(128, 8 * k.shape[-1])
    power = (np.abs(np.fft.rfft2(k, (points, points))) + error.numpy()) ** 2
    largest = np.tensordot(gains, power, 1).max()
    return float(largest / math.cos(math.pi * (k.shape[-1] - 1) / points) ** 2 * (1 + ROUNDING))


@cache
def low_pass_norm(l: int, margin: int) -> float:
    """Upper bound of || D^l ||^2 over all images that have scale l: row sums are 1, so the largest column sum squared.

    The largest one occurs near the ends of a line. How it ends depends on its length modulo 2^l only, so that
    lengths up to three periods beyond the shortest one stand for all.
    """
    shortest, worst = margin * 2**l + 1, 0.0
    taps = torch.tensor([[[[1.0, 4.0, 6.0, 4.0, 1.0]]]], dtype=torch.float64) / 16
    for n in range(shortest, shortest + 3 * 2**l):
        rows = torch.eye(n, dtype=torch.float64)[None, None]
        for _ in range(l):  # one direction of D along the last axis
            rows = torch.cat([rows[..., :2].flip(-1), rows, rows[..., -2:].flip(-1)], -1)
            rows = torch.nn.functional.conv2d(rows, taps, stride=(1, 2))
        worst = max(worst, float(rows.sum(-1).max()))
    return worst**2 * (1 + ROUNDING)
