r"""Warm starts: a deeper energy, or one with coarser scales, that begins as a trained one (ours, not the paper's).

*Deeper.* Hidden activations are the identity and K_l = identity + 0.1 Kaiming-normal for l >= 2, so that training sets
out from R_1's quality (the paper starts from DCT and Kaiming-normal kernels). Without the random part (and as long as
features stay within the range of the nodes) it is R_1 but for the border.

With identities the potentials see signed features only, and by the symmetry of images under a change of sign of their
contrast little drives them to anything else: training tends to stay near straight activations. ``hidden="magnitude"``
lets the last hidden layer compute magnitudes, and the potentials undo it:

    phi_{L-1}(x) = m(x) = sqrt(x^2 + s^2) - s
    phi_L(m) = [rho(x) + rho(-x)] / 2  at x = sqrt((m + s)^2 - s^2),

rho R_1's potential, s = 0.3, and phi_L continued linearly to m < 0. It is the same energy for even rho, but K_L now
pools magnitudes of neighbouring features, which potentials can use at once.

*With coarser scales.* The fine scale is the trained one; its range of noise levels may end earlier. Where several
layers are to be convex, activations are the identity and last potentials quadratics as in an untrained energy.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gnclib import spline
from gnclib.foe import convexity
from gnclib.foe.config import START_ACTIVATIONS

if TYPE_CHECKING:
    from gnclib.foe.energy import FieldsOfExperts

#: what a fine scale has in common with the energy that sets out from it
SAME = (
    *("layers", "features", "kernel_size", "deep_kernel_size", "dilation"),
    *("nodes_x", "range", "sigma_0", "scaled_input", "constant"),
)


@torch.no_grad()
def warm_start(
    prior: FieldsOfExperts, shallow: FieldsOfExperts, generator: torch.Generator | None, hidden: str
) -> None:
    """Make ``prior`` nearly the energy ``shallow`` of one layer, in place; see the module.

    The last hidden activation is "identity" or "magnitude". Raises ValueError: ``shallow`` has other nodes, first
    kernels or features, or more than one layer; or another name of an activation, or a magnitude without a hidden
    layer.
    """
    config = prior.config
    if config.scales:
        return _beside_coarser_scales(prior, shallow)
    if hidden not in START_ACTIVATIONS:
        raise ValueError(f"hidden must be one of {', '.join(START_ACTIVATIONS)}, got {hidden!r}")
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


def _beside_coarser_scales(prior: FieldsOfExperts, fine: FieldsOfExperts) -> None:
    if fine.coarse or any(getattr(fine.config, name) != getattr(prior.config, name) for name in SAME):
        raise ValueError(
            f"a fine scale like that of {prior.config} is needed to set out from, got {fine.config}"
        )
    grids = fine.config.grid_tau, prior.config.grid_tau
    for l, (kernel, weights) in enumerate(zip(fine.kernels, fine.weights, strict=True)):
        prior.kernels[l].copy_(kernel)
        prior.weights[l].copy_(refit(weights, *grids))
    if prior.config.layers > 1:
        first, fresh = convexity.convex_nodes(prior.config), type(prior)(prior.config)
        for weights, start in zip(prior.weights, fresh.weights, strict=True):
            weights[..., first:] = start[..., first:]
    prior.offset.copy_(refit(fine.offset[None], *grids)[0])
    prior.make_convex()


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
