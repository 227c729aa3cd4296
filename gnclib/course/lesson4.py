"""Lesson 4, Fields of Experts from scratch: truths, random inputs, usual mistakes."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import idctn
from scipy.interpolate import BSpline

from gnclib.course.lesson import F64, Exercise, Heading, Slopes, hints, slip
from gnclib.spline import quartic_bspline

# --- 4.1 the cosine filters -----------------------------------------------------------------------------------------


def _filters(s):
    """By scipy: the inverse transform of each unit vector but the first, which is the constant."""
    units = np.eye(s * s).reshape(-1, s, s)[1:]
    return torch.from_numpy(idctn(units, axes=(1, 2), norm="ortho"))


def _cosines(s, first=0.5**0.5, shift=0.5, period=1.0, gain=None):
    k, n = torch.arange(s, **F64)[:, None], torch.arange(s, **F64)
    rows = torch.cos(math.pi * k * (n + shift) / (s * period)) * (math.sqrt(2 / s) if gain is None else gain)
    rows[0] *= first
    return torch.einsum("ax,by->abxy", rows, rows).reshape(-1, s, s)[1:]


DCT = Exercise(
    Heading("4.1", "cosine filters", points=2, minutes=10),
    solution=_filters,
    draw=lambda g: (g.integer(3, 7),),
    mistakes=hints(
        "the row k = 0 has norm sqrt(2), not 1: a constant needs another factor than a cosine",
        slip(_cosines, first=1.0),
        "these are the bare cosines: scale each row to norm one",
        slip(_cosines, first=1.0, gain=1.0),
        "the cosines are sampled at n, not in the middle n + 1/2 of a pixel: they are not orthogonal",
        slip(_cosines, shift=0.0),
        "the cosines are too fast: row k has k HALF periods on the s pixels",
        slip(_cosines, period=0.5),
        "rows and columns are exchanged: a is the frequency from top to bottom, b from left to right",
        lambda s: _filters(s).transpose(1, 2),
    ),
    laws=hints(
        "not all filters have norm one",
        lambda k, s: torch.allclose(k.flatten(1).norm(dim=1), torch.ones(s * s - 1, **F64)),
        "not all filters have mean zero: is the constant one still among them?",
        lambda k, s: bool((k.sum((1, 2)).abs() < 1e-8).all()),
    ),
)


# --- 4.2 B-splines --------------------------------------------------------------------------------------------------

ENDS = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], **F64)


def _draw_points(g):
    """Every degree from 0 to 5 in turn; the ends of boxes and hats are among the points of the lowest two."""
    degree, u = g.in_turn(0, 1, 2, 3, 4, 5), 6 * g.rand(12) - 3
    return (torch.cat([u, ENDS]) if degree < 2 else u), degree


def _bspline(u, degree):
    """By scipy, from the knots; the box is one at its left end only."""
    if degree == 0:
        return ((u >= -0.5) & (u < 0.5)).to(u.dtype)
    knots = np.arange(degree + 2) - (degree + 1) / 2
    values = BSpline.basis_element(knots, extrapolate=False)(u.numpy())
    return torch.from_numpy(np.nan_to_num(values))


def _recursion(u, degree, shift=0.5, half=1, sign=1, left=-0.5, right=0.5):
    if degree == 0:
        return ((u >= left) & (u < right)).to(u.dtype)
    a, b = (_recursion(u + s, degree - 1, shift, half, sign, left, right) for s in (shift, -shift))
    edge = (degree + half) / 2
    return ((edge + sign * u) * a + (edge - sign * u) * b) / degree


BSPLINE = Exercise(
    Heading("4.2", "B-splines of any degree", points=2, minutes=10),
    solution=_bspline,
    draw=_draw_points,
    mistakes=hints(
        "the degree is not used: this is the quartic spline whatever the degree",
        lambda u, d: _bspline(u, 4),
        "the two splines of lower degree are centred at -1/2 and 1/2: shift u by 1/2",
        slip(_recursion, shift=1.0),
        "the weights must vanish at the ends of the support, u = +-(d + 1)/2",
        slip(_recursion, half=0),
        "the weights are exchanged: the one that grows with u belongs to the spline centred at -1/2",
        slip(_recursion, sign=-1),
        "the box is not centred: it is one on [-1/2, 1/2), not on [0, 1)",
        slip(_recursion, left=0.0, right=1.0),
        "the box is too wide: it has width one and integrates to one",
        slip(_recursion, left=-1.0, right=1.0),
    ),
    laws=hints(
        "right but for the ends of the boxes: the box is half-open, count its ends once",
        lambda b, u, d: torch.allclose(b, _bspline(u, d)) or not torch.allclose(b[:12], _bspline(u, d)[:12]),
        "some values are negative: a B-spline is a density",
        lambda b, u, d: bool((b >= -1e-12).all()),
        "the support is too wide: it is [-(d + 1)/2, (d + 1)/2]",
        lambda b, u, d: bool((b[u.abs() > (d + 1) / 2].abs() < 1e-12).all()),
        "degree 0 is not yet the box (in a formula with powers, mind that 0 ** 0 is 1)",
        lambda b, u, d: d > 0 or torch.allclose(b[:12], _bspline(u, 0)[:12]),
    ),
    factors=lambda u, d: {"degree!": math.factorial(d), "degree": max(d, 1)},
)


# --- 4.3 a parabola -------------------------------------------------------------------------------------------------


def _draw_nodes(g):
    h = g.number(0.2, 0.9)
    return g.number(-3.0, -1.0) + h * torch.arange(g.integer(8, 14), **F64), g.number(0.3, 2.0)


def _parabola(mu, c, variance=5 / 12, power=2):
    return c * (mu**2 - variance * (mu[1] - mu[0]) ** power)


QUADRATIC = Exercise(
    Heading("4.3", "the coefficients of a parabola", points=2, minutes=8),
    solution=_parabola,
    draw=_draw_nodes,
    mistakes=hints(
        "these are samples of the parabola: their spline lies above it, by c times the variance of the basis",
        slip(_parabola, variance=0.0),
        "the correction has the wrong sign: samples give too much already",
        slip(_parabola, variance=-5 / 12),
        "5/12 is the variance of beta(u); in x, where nodes are h apart, it is another number",
        slip(_parabola, power=0),
        "a variance scales with the square of h, not with h",
        slip(_parabola, power=1),
        "1/12 is the variance of one uniform variable; beta is the density of a sum of five",
        slip(_parabola, variance=1 / 12),
        "4/12 would be the variance of a sum of four; degree four is a sum of five",
        slip(_parabola, variance=4 / 12),
        "the factor c is missing: this is the spline of x^2",
        slip(_parabola, c=1.0),
        "the factor c belongs to the correction, too",
        lambda mu, c: c * mu**2 - 5 / 12 * (mu[1] - mu[0]) ** 2,
    ),
    laws=hints(
        "the second differences of the coefficients should all be 2 c h^2, and yours are not",
        lambda a, mu, c: torch.allclose(a.diff(n=2), 2 * c * (mu[1] - mu[0]).square().expand(len(a) - 2)),
    ),
)


# --- 4.4 potentials that know the noise level -----------------------------------------------------------------------


def _within(nodes, share):
    """Points of the complete range, from its lower end (share 0) to its upper end (share 1)."""
    low, high = (nodes[1] + nodes[2]) / 2, (nodes[-3] + nodes[-2]) / 2
    return low + (high - low) * share


def _draw_potential(g):
    b, c, m, n, j = (g.integer(*r) for r in ((2, 4), (2, 4), (3, 6), (9, 12), (6, 8)))
    mu = -2.0 + g.number(0.3, 0.6) * torch.arange(n, **F64)
    nu = -4.0 + g.number(0.6, 0.9) * torch.arange(j, **F64)
    x, tau = _within(mu, g.rand(b, c, m)), _within(nu, g.rand(b))
    return x, g.randn(c, n, j), torch.exp(2 * tau), mu, nu


def _basis(x, nodes, spacing=None):
    return quartic_bspline((x[..., None] - nodes) / (nodes[1] - nodes[0] if spacing is None else spacing))


def _potential(x, w, t, mu, nu, tau=lambda t: 0.5 * t.log(), dx=None, dtau=None):
    a = torch.einsum("cnj,bj->bcn", w, _basis(tau(t), nu, dtau))
    return (_basis(x, mu, dx) * a[:, :, None, :]).sum(-1)


POTENTIAL = Exercise(
    Heading("4.4", "a potential for every noise level", points=3, minutes=12),
    solution=_potential,
    draw=_draw_potential,
    mistakes=hints(
        "tau is log sigma, and t is sigma^2: this is twice the right tau",
        slip(_potential, tau=torch.log),
        "the second basis is one in tau = log sigma, not in t",
        slip(_potential, tau=torch.clone),
        "the second basis is one in tau = log sigma, not in sigma",
        slip(_potential, tau=torch.sqrt),
        "tau is the NATURAL logarithm of sigma",
        slip(_potential, tau=lambda t: 0.5 * t.log10()),
        "tau is the natural logarithm of sigma, not the decimal one of t",
        slip(_potential, tau=torch.log10),
        "distances from the nodes are measured in spacings: divide by them",
        slip(_potential, dx=1.0, dtau=1.0),
        "distances in x are measured in spacings of mu, as those in tau are in spacings of nu",
        slip(_potential, dx=1.0),
        "distances in tau are measured in spacings of nu, as those in x are in spacings of mu",
        slip(_potential, dtau=1.0),
        "the nodes nu have their own spacing, which is not that of mu",
        lambda x, w, t, mu, nu: _potential(x, w, t, mu, nu, dtau=mu[1] - mu[0]),
        "the nodes mu have their own spacing, which is not that of nu",
        lambda x, w, t, mu, nu: _potential(x, w, t, mu, nu, dx=nu[1] - nu[0]),
        "the spacings are exchanged: distances from mu are measured in spacings of mu, those from nu in those of nu",
        lambda x, w, t, mu, nu: _potential(x, w, t, mu, nu, dx=nu[1] - nu[0], dtau=mu[1] - mu[0]),
        "the basis functions are divided by their spacings: that belongs to their derivatives only",
        lambda x, w, t, mu, nu: _potential(x, w, t, mu, nu) / (mu[1] - mu[0]) / (nu[1] - nu[0]),
        "all images are treated as if they had the noise level of the first",
        slip(_potential, t=lambda t: t[:1].expand(len(t))),
        "every channel has coefficients of its own; here all have those of the first",
        slip(_potential, w=lambda w: w[:1].expand(len(w), -1, -1)),
    ),
    factors=lambda x, w, t, mu, nu: {"the spacing of mu": mu[1] - mu[0], "the spacing of nu": nu[1] - nu[0]},
)


# --- 4.5 the gradient -----------------------------------------------------------------------------------------------


def _draw_kernels(g, size):
    kernels = g.randn(g.integer(2, 5), 1, size, size)
    return kernels - kernels.mean((2, 3), keepdim=True)


def _draw_field(g):
    kernels = _draw_kernels(g, g.integer(2, 4))
    y = g.randn(g.integer(1, 3), 1, g.integer(6, 8), g.integer(9, 11))
    return y, kernels, Slopes(g, len(kernels))


def _grad(y, kernels, slope):
    return F.conv_transpose2d(slope(F.conv2d(y, kernels)), kernels)


def _back(g, kernels):
    """Filtering once more instead of with the transpose."""
    return F.conv2d(F.pad(g, [kernels.shape[-1] - 1] * 4), kernels.transpose(0, 1))


GRADIENT = Exercise(
    Heading("4.5", "the gradient of a field of experts", points=3, minutes=12),
    solution=_grad,
    draw=_draw_field,
    mistakes=hints(
        "the stamps are upside down: conv_transpose2d turns the kernels already, as K^T has to; conv2d does not",
        lambda y, k, f: _back(f(F.conv2d(y, k)), k),
        "flipped along one axis only: conv2d needs each kernel turned by 180 degrees, conv_transpose2d does not",
        lambda y, k, f: _back(f(F.conv2d(y, k)), k.flip(-1)),
        lambda y, k, f: _back(f(F.conv2d(y, k)), k.flip(-2)),
        "the transpose of the convolution is meant, not kernels with rows and columns exchanged",
        lambda y, k, f: _back(f(F.conv2d(y, k)), k.transpose(-1, -2)),
        "this is K^T K y, the gradient of a quadratic energy: the slope of the potentials is missing",
        lambda y, k, f: F.conv_transpose2d(F.conv2d(y, k), k),
        "the slope is multiplied with the features once more: phi'(Ky) is what goes back through K^T",
        lambda y, k, f: F.conv_transpose2d(f(F.conv2d(y, k)) * F.conv2d(y, k), k),
    ),
    laws=hints(
        "these kernels have mean zero, so the energy ignores the brightness of the image and its gradient must sum"
        " to zero over the pixels: yours does not. Did you pad on the way there?",
        lambda r, y, k, f: bool((r.sum((1, 2, 3)).abs() < 1e-8).all()),
    ),
    factors=lambda y, k, f: {
        "the number of channels": len(k),
        "the number of images": len(y),
        "the number of pixels": y[0].numel(),
    },
    by_hand=True,
)


# --- 4.6 one step of training ---------------------------------------------------------------------------------------


def _draw_training(g):
    kernels = 0.5 * _draw_kernels(g, 3)
    size = g.integer(2, 4), 1, g.integer(5, 7), g.integer(8, 9)
    x, z = g.rand(size), g.randn(size)
    mu = g.number(0.4, 0.7) * (torch.arange(13, **F64) - 6)
    a = g.randn(len(kernels), 13)
    return a, x, z, g.number(0.1, 0.6), kernels, mu, g.number(0.5, 2.0)


def _slope_of_loss(a, x, z, t, kernels, mu, rate, noise=0.5, gain=0.5, front=0.5, sign=-1.0, orders=(1, 1)):
    """dJ/da without automatic differentiation: the residual goes through K once more.

    noise, gain, front : powers of t at the noise, before grad R and before the sum; sign : of z in the residual;
    orders : of the splines' derivatives in grad R and in the sum.
    """
    features, h = F.conv2d(x + t**noise * z, kernels), mu[1] - mu[0]  # (B, C, h, w)
    slopes, again = (quartic_bspline((features[..., None] - mu) / h, order) / h for order in orders)
    gradient = F.conv_transpose2d(torch.einsum("bchwn,cn->bchw", slopes, a), kernels)
    residual = t**gain * gradient + sign * z
    return t**front * torch.einsum("bchwn,bchw->cn", again, F.conv2d(residual, kernels)) / x.numel()


def _positions(x, kernels):
    """How many positions a kernel has in one image."""
    return F.conv2d(x[:1], kernels[:1]).numel()


def _step(a, x, z, t, kernels, mu, rate, times=lambda x, kernels: 1.0, **wrong):
    return a - rate * times(x, kernels) * _slope_of_loss(a, x, z, t, kernels, mu, rate, **wrong)


def _step_without_spacing(a, x, z, t, kernels, mu, rate):
    """Without 1/h in both slopes: h times as large coefficients, and a slope of the loss that is h times as large."""
    h = mu[1] - mu[0]
    return a - rate * h * _slope_of_loss(h * a, x, z, t, kernels, mu, rate)


TRAINING = Exercise(
    Heading("4.6", "one step of training", points=3, minutes=18),
    solution=_step,
    draw=_draw_training,
    mistakes=hints(
        "the step goes UP the loss: subtract rate times its gradient",
        slip(_step, times=lambda x, k: -1.0),
        "the sign in the residual is wrong: grad R is MINUS the score, so sqrt(t) grad R should be +z",
        slip(_step, sign=1.0),
        "t is the variance of the noise: y is x + sqrt(t) z",
        slip(_step, noise=1.0),
        "the energy is to be examined at the noisy image y, not at x",
        slip(_step, noise=math.inf),
        "the loss compares sqrt(t) grad R with z, not t grad R",
        slip(_step, gain=1.0, front=1.0),
        "the loss compares sqrt(t) grad R with z; here the factor sqrt(t) is missing",
        slip(_step, gain=0.0, front=0.0),
        "the step is twice too long: where is the 1/2 of the loss?",
        slip(_step, times=lambda x, k: 2.0),
        "the loss is the mean over all pixels of all images; here it is their sum",
        slip(_step, times=lambda x, k: x.numel()),
        "the loss is the mean over the pixels, too, not only over the images",
        slip(_step, times=lambda x, k: x[0].numel()),
        "n counts all pixels of the batch; here it is those of ONE image",
        slip(_step, times=lambda x, k: len(x)),
        "n counts all pixels of the batch, not the positions of a kernel and not the features",
        slip(_step, times=lambda x, k: x.numel() / len(x) / _positions(x, k)),
        slip(_step, times=lambda x, k: x.numel() / _positions(x, k)),
        slip(_step, times=lambda x, k: x.numel() / len(x) / _positions(x, k) / len(k)),
        "the factor sqrt(t) is missing in front of the sum over the pixels",
        slip(_step, front=0.0),
        "in front of the sum over the pixels stands sqrt(t), not t",
        slip(_step, front=1.0),
        "beta was used where its slope beta' belongs, in grad R",
        slip(_step, orders=(0, 1)),
        "beta was used where its slope beta' belongs, in the derivative of J",
        slip(_step, orders=(1, 0)),
        "beta was used where its slope beta' belongs",
        slip(_step, orders=(0, 0)),
        "the slope of a spline is sum_i a_i beta'((x - mu_i)/h) / h: here 1/h is missing",
        _step_without_spacing,
        "this is the gradient of the loss; the new coefficients are wanted",
        _slope_of_loss,
        "the coefficients come back unchanged: nothing was learned in this step",
        lambda a, *_: a,
    ),
    keeps_graph=True,
)
