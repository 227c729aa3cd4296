r"""What all learned energies have in common, and the parts of a Field of Experts: its layers and coarser scales.

All have a range of noise levels, checks of what comes in, and files. Passes through the layers, forward and backward:

    x_1 = K_1 z,    x_l = K_l phi_{l-1}(x_{l-1}),    value = < phi_L(x_L), 1 >,    slope = K_1^T phi_1' K_2^T ... phi_L'

for images z that are continued and scaled already (eq. 3). One layer goes through :mod:`gnclib.foe.experts` where that
serves its tensors.

*Coarser scales* are the far sight that strong noise asks for (not in the paper). With D the binomial 5 x 5 low pass
followed by every second pixel in each direction (images continued by reflection),

    R_coarse(y, t) = sum_l < psi_l(K_l s_l(tau) P D^l y, tau), 1 >,    l = 1 ... L,

P the continuation of each scale by reflection, K_l kernels of the size of K_1 without a mean, psi_l quartic splines of
(feature, tau). White noise of D^l y has about the standard deviation sigma 2^-l while photographs keep their contrast,
so that the input of scale l is scaled by s_l = (4^-l t + sigma_0^2)^(-1/2). An image too small for the kernels of a
scale goes without it. Every map has its exact adjoint: gradients and Hessians are those of the energy.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from gnclib import io, spline
from gnclib.checks import as_images, as_time, hidden
from gnclib.foe import FoEConfig, experts
from gnclib.foe.filters import (
    convolve,
    convolve_adjoint,
    convolve_adjoint_inner,
    crop_to,
    dct_kernels,
    reflect,
    reflect_adjoint,
)


class LearnedEnergy(nn.Module):
    """Base of the energies R(y, t), which have a ``config`` and the parameter ``offset`` of c(tau).

    A subclass is made from its configuration and adds ``energy``, ``grad``, ``energy_and_grad``, ``dtau``, ``hvp`` and
    ``certify``, and ``parameter_groups()``: what is learned, by the setting that is its learning rate.
    """

    #: whether the gradient's convolutions between channels are computed in bfloat16, where the processor is faster so;
    #: energies, derivatives in tau and Hessian products of a Fields of Experts stay exact
    bf16 = False
    #: whether ``border="valid"`` gives the part of the energy that sees nothing beyond the image
    has_valid_part = False
    #: a part of an image gives the same features where it begins at a multiple of this number of pixels
    alignment = 1
    #: side of the smallest image, in pixels
    smallest = 1
    #: whether parameters are as :meth:`project` leaves them
    projected = True

    sigma_min = property(
        lambda self: self.config.sigma_min, doc="Smallest noise level of the energy, a grey value."
    )
    sigma_max = property(lambda self: self.config.sigma_max, doc="Largest noise level of the energy.")

    def project(self) -> None:
        """Put parameters back to where they are meant to stay, in place; nothing where there is no such rule."""

    def make_convex(self) -> None:
        """Make the energy as convex as its configuration demands, in place; nothing where it is by construction."""

    def _range(self, t: float | Tensor, batch: int, like: Tensor) -> Tensor:
        """tau = 0.5 log t of each image, (B,). Raises ValueError if it leaves the range of the energy."""
        t = as_time(t, batch, like=like)
        low, high = self.sigma_min**2, self.sigma_max**2
        if not hidden() and bool(((t < low * (1 - 1e-5)) | (t > high * (1 + 1e-5))).any()):
            raise ValueError(
                f"t = {t.min().item():.4g} .. {t.max().item():.4g} leaves the range [{low:.4g}, {high:.4g}] of noise"
                " variances on which this energy is defined (t is sigma^2, with grey values in [0, 1])"
            )
        return (0.5 * t.log()).clamp(math.log(self.sigma_min), math.log(self.sigma_max))

    def _demand_images(self, y: Tensor, side: int) -> None:
        """Raise ValueError unless y is a batch of grey images in the number format of the energy, this large."""
        as_images(y, bytes_above=100)
        if y.dtype != self.offset.dtype:
            raise ValueError(
                f"images are {y.dtype} but the energy is {self.offset.dtype}: convert one, e.g. prior.double()"
            )
        if min(y.shape[-2:]) < side:
            raise ValueError(
                f"images of {y.shape[-2]}x{y.shape[-1]} pixels are too small: this energy needs {side}x{side} or more"
            )

    def weights_file(self) -> bytes:
        """The content of ``model.safetensors``: the same for the same weights, wherever they are."""
        return save({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()})

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write ``model.safetensors`` and ``config.json`` into ``folder``, each whole or not at all."""
        io.write_bytes(Path(folder) / "model.safetensors", self.weights_file())
        io.write_text(Path(folder) / "config.json", json.dumps(asdict(self.config), indent=2) + "\n")

    @classmethod
    def from_state(cls, config: Any, state: dict[str, Tensor]) -> Self:
        """The energy with these weights. Raises ValueError, before it makes anything, where they do not fit."""
        io.demand_tensors(state, config.shapes, "weights that do not fit the configuration")
        model = cls(config)
        model.load_state_dict(state)
        return model


def demand_shape(v: Tensor, y: Tensor) -> None:
    """Raise ValueError unless a direction v has the shape and dtype of the images."""
    if v.shape != y.shape or v.dtype != y.dtype:
        raise ValueError(
            f"v must have the shape and dtype of y, {tuple(y.shape)} {y.dtype}, got {tuple(v.shape)} {v.dtype}"
        )


def recorded(*tensors: Tensor) -> bool:
    """Whether torch records what is done with them."""
    return torch.is_grad_enabled() and any(v.requires_grad for v in tensors)


@dataclass(frozen=True)
class Layers:
    """The layers at given smoothing: what a Field of Experts is for images whose tau has been put in.

    ``kernels`` and ``dilations`` of K_1 ... K_L, ``coefficients`` (B, C, N_x) of the splines on ``grid``, one per
    layer. With ``bf16`` the gradient's convolutions between channels are computed in bfloat16.
    """

    kernels: Sequence[Tensor]
    dilations: Sequence[int]
    coefficients: Sequence[Tensor]
    grid: spline.SplineGrid
    bf16: bool = False

    def _fused(self, z: Tensor, *recorded_too: Tensor) -> bool:
        """Whether :mod:`gnclib.foe.experts` serves these tensors, none of the latter being recorded."""
        inputs = self.kernels[0], self.coefficients[0]
        return len(self.kernels) == 1 and experts.usable(z, *inputs) and not recorded(*recorded_too)

    def value(self, z: Tensor) -> Tensor:
        """< phi_L(x_L), 1 >: (B,)."""
        if self._fused(z, *self.kernels, *self.coefficients):
            return experts.value(z, self.kernels[0], self.coefficients[0], self.grid)
        for kernel, dilation, c in zip(self.kernels, self.dilations, self.coefficients, strict=True):
            (z,) = spline.evaluate(convolve(z, kernel, dilation), c, self.grid)
        return z.sum((1, 2, 3))

    def slope(self, z: Tensor) -> Tensor:
        """K_1^T phi_1' K_2^T ... phi_L', shaped like z."""
        if self._fused(z):
            return experts.slope(z, self.kernels[0], self.coefficients[0], self.grid)
        return self.backward(self._slopes(z)[1])

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`value` and :meth:`slope` at once."""
        if self._fused(z, z, *self.kernels, *self.coefficients):
            return experts.value_and_slope(z, self.kernels[0], self.coefficients[0], self.grid)
        if self.bf16:  # values stay exact
            return self.value(z), self.slope(z)
        value, slopes = self._slopes(z, value=True)
        return value.sum((1, 2, 3)), self.backward(slopes)

    def inner_slope(self, z: Tensor) -> Tensor:
        """:meth:`slope` at the pixels all of whose features lie inside of z."""
        if self._fused(z):
            edge = self.kernels[0].shape[-1] - 1
            return self.slope(z)[..., edge:-edge, edge:-edge]
        *slopes, g = self._slopes(z)[1]
        for l in reversed(range(1, len(self.kernels))):
            g = convolve_adjoint_inner(g, self.kernels[l], self.dilations[l])
            g = g * crop_to(slopes[l - 1], g)
        return convolve_adjoint_inner(g, self.kernels[0])

    def curved(self, z: Tensor, v: Tensor) -> Tensor:
        """The derivative of :meth:`slope` in z along v: the Hessian of :meth:`value` times v."""
        if self._fused(z, z, v, *self.kernels, *self.coefficients):
            return experts.curved(z, v, self.kernels[0], self.coefficients[0], self.grid)
        return self.bent(v, *self.taken_apart(z)[1:])

    def taken_apart(self, z: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """x_l, phi_l'(x_l) and g_l phi_l''(x_l) of all layers, g_l the derivative of the value in phi_l."""
        features, slopes, bends, last = [], [], [], len(self.kernels) - 1
        for kernel, dilation, c in zip(self.kernels, self.dilations, self.coefficients, strict=True):
            features.append(convolve(z, kernel, dilation))
            orders = (0, 1, 2) if len(features) <= last else (1, 2)
            *values, slope, bend = spline.evaluate(features[-1], c, self.grid, orders)
            z = values[0] if values else None
            slopes.append(slope)
            bends.append(bend)
        g = slopes[last]
        for l in reversed(range(last)):
            g = convolve_adjoint(g, self.kernels[l + 1], self.dilations[l + 1])
            bends[l] = g * bends[l]
            g = g * slopes[l]
        return features, slopes, bends

    def tangents(self, v: Tensor, slopes: list[Tensor]) -> list[Tensor]:
        """The derivatives of x_1 ... x_L along v, by the slopes of :meth:`taken_apart`."""
        found = []
        for kernel, dilation, slope in zip(self.kernels, self.dilations, slopes, strict=True):
            found.append(convolve(v, kernel, dilation))
            v = slope * found[-1]
        return found

    def bent(self, v: Tensor, slopes: list[Tensor], bends: list[Tensor]) -> Tensor:
        """The Hessian times v from the slopes and bends of :meth:`taken_apart`: sum_l J_l^T diag(bends_l) J_l v."""
        moved, g = self.tangents(v, slopes), 0.0
        for l in reversed(range(len(bends))):
            g = convolve_adjoint(bends[l] * moved[l] + slopes[l] * g, self.kernels[l], self.dilations[l])
        return g

    def _steps(self) -> list[tuple[Tensor, int]]:
        """Kernel and dilation of each layer for the gradient; kernels between channels in bfloat16 where chosen."""
        kernels = (k.bfloat16() if self.bf16 and k.shape[1] > 1 else k for k in self.kernels)
        return list(zip(kernels, self.dilations, strict=True))

    def _slopes(self, z: Tensor, value: bool = False) -> tuple[Tensor | None, list[Tensor]]:
        """phi_L(x_L) if ``value``, and phi_1'(x_1) ... phi_L'(x_L)."""
        slopes, last = [], len(self.kernels) - 1
        for l, (kernel, dilation) in enumerate(self._steps()):
            orders = (0, 1) if l < last or value else (1,)
            x = convolve(z, kernel, dilation)
            *values, slope = spline.evaluate(x, self.coefficients[l], self.grid, orders)
            z = values[0] if values else None
            slopes.append(slope)
        return z, slopes

    def backward(self, slopes: list[Tensor]) -> Tensor:
        """K_1^T phi_1' K_2^T ... phi_L' from the slopes phi_1'(x_1) ... phi_L'(x_L)."""
        g, steps = slopes[-1], self._steps()
        for l in reversed(range(len(steps))):
            g = convolve_adjoint(g, *steps[l])
            if l:
                g = g * slopes[l - 1]
        return g


# coarser scales -------------------------------------------------------------------------------------------------------

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
