r"""What the training of an energy begins with, beyond the paper's DCT and Kaiming-normal kernels (ours).

*A deeper energy* begins as a trained one of one layer. Hidden activations are the identity and K_l = identity + 0.1
Kaiming-normal for l >= 2, so that training sets out from R_1's quality. Without the random part (and as long as
features stay within the range of the nodes) it is R_1 but for the border.

With identities the potentials see signed features only, and by the symmetry of images under a change of sign of their
contrast little drives them to anything else: training tends to stay near straight activations. ``hidden="magnitude"``
lets the last hidden layer compute magnitudes, and the potentials undo it:

    phi_{L-1}(x) = m(x) = sqrt(x^2 + s^2) - s
    phi_L(m) = [rho(x) + rho(-x)] / 2  at x = sqrt((m + s)^2 - s^2),

rho R_1's potential, s = 0.3, and phi_L continued linearly to m < 0. It is the same energy for even rho, but K_L now
pools magnitudes of neighbouring features, which potentials can use at once.

*An energy with coarser scales* begins with a trained fine scale, whose range of noise levels may end earlier. Where
several layers are to be convex, at the nodes in tau that count, activations are the identity and last potentials
quadratics as in an untrained energy.
Experts of coarser scales begin by least squares: with kernels and shapes of potentials given, the score is linear in
their gains, so that the image part of eq. (7) is solved for gains that are not negative, at one noise level per node in
tau:

    min_{a, b >= 0}  E || sqrt(t) ( sum_c a_c grad r_c + sum_{l,k,m} b_lkm grad r_lkm ) - z ||^2 + ridge,

r_c the experts of the fine scale, phi_L,c(x_L,c), as they are and as quadratics of x_L,c, r_lkm those of scale l,
kernel k and shape m: x^2 / 2, or w^2 (sqrt(1 + x^2 / w^2) - 1), which is linear far out. Sums of convex shapes are
convex in their argument.
"""

from __future__ import annotations

import math
from dataclasses import asdict

import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import Tensor

from gnclib import spline
from gnclib.foe import FieldsOfExperts, convexity
from gnclib.foe.filters import convolve, reflect_adjoint
from gnclib.foe.layers import down_adjoint
from gnclib.images import PatchSampler

#: what a fine scale has in common with the energy that sets out from it
SAME = (
    *("layers", "features", "kernel_size", "deep_kernel_size", "dilation"),
    *("nodes_x", "range", "sigma_0", "scaled_input", "constant"),
)
#: widths w of the shapes; infinite is the quadratic
WIDTHS = (math.inf, 1.0, 0.25)
#: the least noise level at which gains are fitted; below, they are those found there
LEAST = 0.03


# trained layers -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def warm_start(
    prior: FieldsOfExperts,
    shallow: FieldsOfExperts,
    generator: torch.Generator | None = None,
    hidden: str = "identity",
) -> None:
    """Make ``prior`` nearly the energy ``shallow``, in place; see the module.

    With coarser scales that is the fine scale, of as many layers; else it has one layer, and the last hidden activation
    is "identity" or "magnitude". Raises ValueError: ``shallow`` has other nodes in x, kernels or features, or another
    number of layers; or a magnitude without a hidden layer.
    """
    if prior.config.scales:
        _as_fine_scale(prior, shallow)
    else:
        _deepen(prior, shallow, generator, hidden)
    first, fresh = convexity.convex_nodes(prior.config), type(prior)(prior.config)
    for weights, start in zip(prior.weights, fresh.weights, strict=True):
        if len(prior.weights) > 1:
            weights[..., first:] = start[..., first:]
    prior.make_convex()


def _deepen(prior: FieldsOfExperts, shallow: FieldsOfExperts, generator, hidden: str) -> None:
    config = prior.config
    if hidden == "magnitude" and config.layers == 1:
        raise ValueError('hidden="magnitude" needs a hidden layer, and this energy has one layer')
    of_deep_layers = {name: getattr(config, name) for name in ("deep_kernel_size", "dilation")}
    if asdict(shallow.config) | of_deep_layers != asdict(config) | {"layers": 1}:
        raise ValueError(
            "a warm start needs a prior of one layer with the same configuration otherwise, got"
            f" {shallow.config} for {config}"
        )
    fresh = type(prior)(config, generator=generator)
    for kernel, random in zip(prior.kernels[1:], fresh.kernels[1:], strict=True):
        kernel.copy_(0.1 * random)
        middle = config.deep_kernel_size // 2
        kernel[:, :, middle, middle] += torch.eye(config.features).to(kernel)
    for weights, start in zip(prior.weights, fresh.weights, strict=True):
        weights.copy_(start)
    prior.kernels[0].copy_(shallow.kernels[0])
    prior.weights[-1].copy_(shallow.weights[0])
    if hidden == "magnitude":
        magnitude, composed = _magnitude(config.grid_x, shallow.weights[0])
        prior.weights[-2].copy_(magnitude[None, :, None].expand_as(prior.weights[-2]))
        prior.weights[-1].copy_(composed)
    prior.offset.copy_(shallow.offset)


def _as_fine_scale(prior: FieldsOfExperts, fine: FieldsOfExperts) -> None:
    if fine.coarse or any(getattr(fine.config, name) != getattr(prior.config, name) for name in SAME):
        raise ValueError(
            f"a fine scale like that of {prior.config} is needed to set out from, got {fine.config}"
        )
    grids = fine.config.grid_tau, prior.config.grid_tau
    for l, (kernel, weights) in enumerate(zip(fine.kernels, fine.weights, strict=True)):
        prior.kernels[l].copy_(kernel)
        prior.weights[l].copy_(refit(weights, *grids))
    prior.offset.copy_(refit(fine.offset[None], *grids)[0])


def refit(weights: Tensor, before: spline.SplineGrid, after: spline.SplineGrid) -> Tensor:
    """Coefficients (..., N_tau) on other nodes in tau: the same function, constant beyond the old range."""
    tau = torch.linspace(after.low, after.high, 40 * after.intervals + 1, dtype=torch.float64)
    flat = weights.detach().double().flatten(0, -2)
    values = spline.contract(flat, tau.clamp(before.low, before.high), before).T.contiguous()
    return after.fit(tau, values).reshape(*weights.shape[:-1], after.count).to(weights)


def _magnitude(grid: spline.SplineGrid, potentials: Tensor, s: float = 0.3) -> tuple[Tensor, Tensor]:
    """Coefficients of m(x), (N_x,), and of rho after its inverse, shaped like the potentials rho (C, N_x, N_tau)."""
    m = torch.linspace(grid.low, grid.high, 40 * grid.intervals + 1, dtype=torch.float64)
    rho = potentials.detach().double().cpu().transpose(1, 2)  # (C, N_tau, N_x)
    x = ((m.clamp(min=0) + s) ** 2 - s**2).sqrt().expand(*rho.shape[:2], -1).contiguous()
    even = (spline.evaluate(x, rho, grid)[0] + spline.evaluate(-x, rho, grid)[0]) / 2
    (curvature,) = spline.evaluate(torch.zeros_like(x[..., :1]), rho, grid, (2,))
    even = even + s * curvature * m.clamp(max=0)  # rho(0) + s rho''(0) m for m < 0: no kink at 0
    return grid.fit(m, (m**2 + s**2).sqrt() - s), grid.fit(m, even).transpose(1, 2)


# coarser scales -------------------------------------------------------------------------------------------------------


def begin(model: FieldsOfExperts, images, seed: int) -> None:
    """:func:`fit_coarse`, convex potentials and :func:`fit_constant` on squares of the images, in place."""
    device = model.offset.device
    model.cpu()  # as the images are
    side = min(160, *(min(x.shape[-2:]) for x in images.values()))
    fit_coarse(model, images, torch.Generator().manual_seed(seed), side=side)
    model.make_convex()
    squares = [x[..., :side, :side] for x in images.values()]
    fit_constant(model, squares, torch.Generator().manual_seed(seed + 1))
    model.to(device)


@torch.no_grad()
def fit_coarse(model: FieldsOfExperts, images, generator: torch.Generator, crops: int = 6, side: int = 160):
    """Give the coarser scales of ``model`` fitted potentials and scale those of the fine one, in place.

    The model has coarser scales, and set out from a trained fine scale. `crops` and `side` are number and
    side of the crops of the images for each noise level; crops and noise are drawn from the generator.
    """
    config, grid = model.config, model.config.coarse_grid
    shapes = torch.stack([_shape(grid.nodes(), w) for w in WIDTHS]).float()  # (M, N_x), convex sequences
    quadratic = _shape(config.grid_x.nodes(), math.inf).float()
    sampler = PatchSampler(images, side, generator)
    levels = config.grid_tau.nodes().clamp(math.log(LEAST), math.log(config.sigma_max)).tolist()
    gains: dict[float, Tensor] = {}
    for tau in dict.fromkeys(levels):
        gains[tau] = torch.from_numpy(_gains(model, sampler.sample(crops), tau, generator)).float()
    for j, tau in enumerate(levels):
        kept, bent, coarse = gains[tau].tensor_split([config.features, 2 * config.features])
        model.weights[-1][..., j] *= kept[:, None]
        model.weights[-1][..., j] += bent[:, None] * quadratic
        coarse = coarse.view(-1, len(WIDTHS), config.coarse_features)  # of the scales that fit into the crops
        for w, gain in zip(model.coarse.weights, coarse, strict=False):
            w[..., j] = torch.einsum("mk,mi->ki", gain, shapes)


@torch.no_grad()
def fit_constant(model: FieldsOfExperts, images, generator: torch.Generator, levels: int = 60) -> None:
    """Choose the spline in c(tau) such that the mean of d_tau R over noisy images is 0 at all noise levels, in place.

    Each of so many levels, equidistant in tau, sees some of the clean images (1, 1, H, W), the next ones in turn, with
    fresh noise; least squares over the levels.
    """
    grid = model.config.grid_tau
    tau = torch.linspace(grid.low, grid.high, levels)
    means = []
    for k, (here, spread) in enumerate(zip(tau.tolist(), tau.exp().tolist(), strict=True)):
        found = []
        for m in range(6):
            x = images[(6 * k + m) % len(images)]
            y = x + spread * torch.randn(x.shape, generator=generator)
            found.append(model.dtau(y, math.exp(2 * here), order=1)[0].item() / x.numel())
        means.append(-sum(found) / len(found))
    slopes = spline.contract(torch.eye(grid.count, dtype=torch.float64), tau.double(), grid, 1)
    target = torch.tensor(means, dtype=torch.float64)[:, None]
    change = torch.linalg.lstsq(slopes, target, driver="gelsd").solution
    model.offset += change[:, 0].to(model.offset)


def _shape(x: Tensor, width: float) -> Tensor:
    return x**2 / 2 if math.isinf(width) else width**2 * ((1 + (x / width) ** 2).sqrt() - 1)


def _shape_slope(x: Tensor, width: float) -> Tensor:
    return x if math.isinf(width) else x * (1 + (x / width) ** 2).rsqrt()


def _gains(model: FieldsOfExperts, x: Tensor, tau: float, generator: torch.Generator, ridge: float = 1e-4):
    """The gains of all experts at one noise level: those of the fine scale are drawn to 1, the others to 0."""
    z = torch.randn(x.shape, generator=generator)
    square, right = 0.0, 0.0
    for clean, noise in zip(x, z, strict=True):
        columns = _scores(model, (clean + math.exp(tau) * noise)[None], torch.tensor([tau])).flatten(1)
        square = square + (columns @ columns.T).double()
        right = right + (columns @ noise.flatten()).double()
    start = torch.zeros(len(right), dtype=torch.float64)
    start[: model.config.features] = 1
    weight = ridge * square.diagonal() + 1e-6 * square.diagonal().mean()
    square, right = square + weight.diag(), right + weight * start
    root = torch.linalg.cholesky(square)
    reduced = torch.linalg.solve_triangular(root, right[:, None], upper=False)[:, 0]
    return nnls(root.T.numpy(), reduced.numpy(), maxiter=20 * len(right))[0]


def _scores(model: FieldsOfExperts, y: Tensor, tau: Tensor) -> Tensor:
    """sqrt(t) grad r of every expert with gain 1 at one image (1, 1, H, W): (experts, H, W)."""
    config, coarse, root = model.config, model.coarse, tau.exp()
    layers, found = model._layers(tau), []
    features, slopes, _ = layers.taken_apart(model._input(y, tau, "reflect"))
    each = torch.eye(config.features)[..., None, None]  # experts as a batch
    for last in (slopes[-1], features[-1]):
        g = layers.backward([*slopes[:-1], each * last])
        found.append(root * model._output(g, tau, "reflect")[:, 0])
    sizes = [tuple(y.shape[-2:])]
    for l, z in enumerate(coarse.inputs(y, tau)):
        x = convolve(z, coarse.kernels[l])
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
        for width in WIDTHS:
            g = F.conv_transpose2d(_shape_slope(x, width), coarse.kernels[l], groups=config.coarse_features)
            g = reflect_adjoint(g, config.kernel_size // 2).transpose(0, 1)
            for size in sizes[-2::-1]:
                g = down_adjoint(g, *size)
            found.append(root * coarse._scale(tau, l)[0] * g[:, 0])
    return torch.cat(found)
