r"""Experts on coarser scales of the image: the far sight that strong noise asks for (not in the paper).

With D the binomial 5 x 5 low pass followed by every second pixel in each direction (images continued by reflection),

    R_coarse(y, t) = sum_l < psi_l(K_l s_l(tau) P D^l y, tau), 1 >,    l = 1 ... L,

P the continuation of each scale by reflection, K_l kernels of the size of K_1 without a mean, psi_l quartic splines of
(feature, tau). White noise of D^l y has about the standard deviation sigma 2^-l while photographs keep their contrast,
so that the input of scale l is scaled by s_l = (4^-l t + sigma_0^2)^(-1/2). An image too small for the kernels of a
scale goes without it. Every map has its exact adjoint: gradients and Hessians are those of the energy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnclib import spline
from gnclib.foe.config import FoEConfig
from gnclib.foe.filters import convolve, dct_kernels, reflect, reflect_adjoint
from gnclib.foe.layers import Layers

#: gain of the quadratic start relative to that of the fine scale: small, since the fine scale denoises already
START = 0.2


def down(y: Tensor) -> Tensor:
    """D: the low pass (1, 4, 6, 4, 1) / 16 in both directions, every second pixel; (B, 1, H, W), H and W >= 3.

    The result has ceil(H / 2) x ceil(W / 2) pixels.
    """
    return F.conv2d(reflect(y, 2), _binomial(y), stride=2)


def down_adjoint(g: Tensor, height: int, width: int) -> Tensor:
    """The adjoint of :func:`down` for images of ``height`` x ``width`` pixels."""
    g = F.conv_transpose2d(g, _binomial(g), stride=2)
    return reflect_adjoint(F.pad(g, (0, width + 4 - g.shape[-1], 0, height + 4 - g.shape[-2])), 2)


def _binomial(like: Tensor) -> Tensor:
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]).to(like) / 16
    return (row[:, None] * row)[None, None]


def scale(tau: Tensor, noise: float, sigma_0: float) -> tuple[Tensor, Tensor, Tensor]:
    """s = (noise^2 t + sigma_0^2)^(-1/2) and its first two derivatives in tau, each (B,)."""
    t = noise**2 * torch.exp(2 * tau)
    s = (t + sigma_0**2) ** -0.5
    return s, -t * s**3, -2 * t * s**3 + 3 * t**2 * s**5


class CoarseExperts(nn.Module):
    """R_coarse(y, t); see the module. The first kernels are the DCT basis, the potentials weak quadratics.

    Methods take images y (B, 1, H, W) and tau (B,).
    """

    def __init__(self, config: FoEConfig):
        super().__init__()
        self.config = c = config
        kernels = dct_kernels(c.kernel_size, c.coarse_features).float()
        potential = c.coarse_grid.quadratic(c=0.5 * START / c.kernel_size**2).float()
        potentials = potential[None, :, None].repeat(c.coarse_features, 1, c.nodes_tau)
        self.kernels = nn.ParameterList([kernels.clone() for _ in range(c.scales)])
        self.weights = nn.ParameterList([potentials.clone() for _ in range(c.scales)])

    def value(self, y: Tensor, tau: Tensor) -> Tensor:
        """R_coarse: (B,)."""
        parts = (self._layer(l, tau).value(z) for l, z in enumerate(self.inputs(y, tau)))
        return sum(parts, torch.zeros_like(tau))

    def slope(self, y: Tensor, tau: Tensor) -> Tensor:
        """The gradient in y: sum_l (D^l)^T s_l P^T K_l^T psi_l'."""
        parts = [self._layer(l, tau).slope(z) for l, z in enumerate(self.inputs(y, tau))]
        return self._gather(parts, y, tau)

    def curved(self, y: Tensor, tau: Tensor, v: Tensor) -> Tensor:
        """The Hessian times v, shaped like y."""
        pairs = enumerate(zip(self.inputs(y, tau), self.inputs(v, tau), strict=True))
        return self._gather([self._layer(l, tau).curved(z, w) for l, (z, w) in pairs], y, tau)

    def dtau(self, y: Tensor, tau: Tensor, order: int) -> tuple[Tensor, ...]:
        """The derivatives in tau at fixed y up to ``order``, 1 or 2: each (B,)."""
        grid, totals = self.config.coarse_grid, [torch.zeros_like(tau)] * order
        for l, u in enumerate(self._pyramid(y)):
            x = convolve(reflect(u, self._margin), self.kernels[l])
            x, x1, x2 = (s[:, None, None, None] * x for s in self._scale(tau, l))
            a, at, att = (self._coefficients(tau, l, k) for k in range(3))
            ft, fxt = spline.evaluate(x, at, grid, (0, 1))
            fx, fxx = spline.evaluate(x, a, grid, (1, 2))
            found = [ft + fx * x1]
            if order == 2:
                (ftt,) = spline.evaluate(x, att, grid)
                found.append(ftt + 2 * fxt * x1 + fxx * x1**2 + fx * x2)
            totals = [total + f.sum((1, 2, 3)) for total, f in zip(totals, found, strict=True)]
        return tuple(totals)

    @property
    def _margin(self) -> int:
        return self.config.kernel_size // 2

    def _pyramid(self, y: Tensor) -> list[Tensor]:
        """D y, D^2 y, ... as far as the kernels fit."""
        found = []
        while len(found) < self.config.scales and min(y.shape[-2:]) >= 3:
            y = down(y)
            if min(y.shape[-2:]) <= self._margin:
                break
            found.append(y)
        return found

    def _scale(self, tau: Tensor, l: int) -> tuple[Tensor, Tensor, Tensor]:
        return scale(tau, 0.5 ** (l + 1), self.config.coarse_sigma_0)

    def _coefficients(self, tau: Tensor, l: int, derivative: int = 0) -> Tensor:
        return spline.contract(self.weights[l], tau, self.config.grid_tau, derivative)

    def _layer(self, l: int, tau: Tensor) -> Layers:
        return Layers([self.kernels[l]], (1,), [self._coefficients(tau, l)], self.config.coarse_grid)

    def inputs(self, y: Tensor, tau: Tensor) -> list[Tensor]:
        """s_l P D^l y, what the kernels of each scale see."""
        scaled = enumerate(self._pyramid(y))
        return [self._scale(tau, l)[0][:, None, None, None] * reflect(u, self._margin) for l, u in scaled]

    def _gather(self, parts: list[Tensor], y: Tensor, tau: Tensor) -> Tensor:
        """sum_l (D^l)^T s_l P^T parts_l, from the coarsest scale on."""
        sizes = [tuple(y.shape[-2:])]
        for _ in parts:
            sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
        total = None
        for l in reversed(range(len(parts))):
            part = self._scale(tau, l)[0][:, None, None, None] * reflect_adjoint(parts[l], self._margin)
            total = down_adjoint(part if total is None else total + part, *sizes[l])
        return torch.zeros_like(y) if total is None else total
