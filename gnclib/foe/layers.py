r"""What all learned energies of images have in common, and the layers of a Field of Experts (eq. 3).

All have a range of noise levels, checks of what comes in, and files. Passes through the layers, forward and backward:

    x_1 = K_1 z,    x_l = K_l phi_{l-1}(x_{l-1}),    value = < phi_L(x_L), 1 >,    slope = K_1^T phi_1' K_2^T ... phi_L'

for images z that are continued and scaled already. Energies of one layer go through :mod:`gnclib.foe.experts` where
that serves their tensors.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor, nn

from gnclib import io, spline
from gnclib.checks import as_images, as_time, hidden
from gnclib.foe import experts
from gnclib.foe.filters import convolve, convolve_adjoint, convolve_adjoint_inner, crop_to


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

    @property
    def sigma_min(self) -> float:
        """Smallest noise level at which the energy is defined, a grey value."""
        return self.config.sigma_min

    @property
    def sigma_max(self) -> float:
        """Largest noise level at which the energy is defined."""
        return self.config.sigma_max

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


class Layers(LearnedEnergy):
    """Base of the energies with filters ``kernels``, splines ``weights`` (C, N_x, N_tau) and a :class:`FoEConfig`."""

    def _coefficients(self, tau: Tensor, derivative: int = 0) -> list[Tensor]:
        return [
            spline.contract(w, tau, self.config.grid_tau, derivative) for w in self.weights
        ]  # each (B, C, N_x)

    def _fused(self, z: Tensor, coefficients: list[Tensor]) -> bool:
        """Whether :mod:`gnclib.foe.experts` serves this energy and these tensors."""
        return self.config.layers == 1 and experts.usable(z, self.kernels[0], coefficients[0])

    def _value(self, z: Tensor, coefficients: list[Tensor]) -> Tensor:
        """< phi_L(x_L), 1 >: (B,)."""
        if self._fused(z, coefficients) and not recorded(*self.kernels, *coefficients):
            return experts.value(z, self.kernels[0], coefficients[0], self.config.grid_x)
        for l in range(self.config.layers):
            x = convolve(z, self.kernels[l], self.config.dilations[l])
            (z,) = spline.evaluate(x, coefficients[l], self.config.grid_x)
        return z.sum((1, 2, 3))

    def _slope(self, z: Tensor, coefficients: list[Tensor]) -> Tensor:
        """K_1^T phi_1' K_2^T ... phi_L', shaped like z."""
        if self._fused(z, coefficients):
            return experts.slope(z, self.kernels[0], coefficients[0], self.config.grid_x)
        return self._backward(self._slopes(z, coefficients))

    def _value_and_slope(self, z: Tensor, coefficients: list[Tensor]) -> tuple[Tensor, Tensor]:
        if self._fused(z, coefficients) and not recorded(z, *self.kernels, *coefficients):
            return experts.value_and_slope(z, self.kernels[0], coefficients[0], self.config.grid_x)
        value, slopes = self._slopes(z, coefficients, value=True)
        return value.sum((1, 2, 3)), self._backward(slopes)

    def _layers(self) -> list[tuple[Tensor, int]]:
        """Kernel and dilation of each layer for the gradient; kernels between channels in bfloat16 where chosen."""
        kernels = (k.bfloat16() if self.bf16 and k.shape[1] > 1 else k for k in self.kernels)
        return list(zip(kernels, self.config.dilations, strict=True))

    def _slopes(self, z: Tensor, coefficients: list[Tensor], value: bool = False):
        """phi_1'(x_1) ... phi_L'(x_L); with ``value`` phi_L(x_L) before them."""
        slopes, last = [], self.config.layers - 1
        for l, (kernel, dilation) in enumerate(self._layers()):
            x = convolve(z, kernel, dilation)
            orders = (0, 1) if l < last or value else (1,)
            *values, slope = spline.evaluate(x, coefficients[l], self.config.grid_x, orders)
            z = values[0] if values else None
            slopes.append(slope)
        return (z, slopes) if value else slopes

    def _backward(self, slopes: list[Tensor]) -> Tensor:
        g, layers = slopes[-1], self._layers()
        for l in reversed(range(self.config.layers)):
            g = convolve_adjoint(g, *layers[l])
            if l:
                g = g * slopes[l - 1]
        return g

    def _curved(self, z: Tensor, v: Tensor, coefficients: list[Tensor]) -> Tensor:
        """The derivative of :meth:`_slope` in z along v."""
        if self._fused(z, coefficients) and not recorded(z, v, *self.kernels, *coefficients):
            return experts.curved(z, v, self.kernels[0], coefficients[0], self.config.grid_x)
        kept, last = [], self.config.layers - 1
        for l, (kernel, dilation) in enumerate(zip(self.kernels, self.config.dilations, strict=True)):
            x, v = convolve(z, kernel, dilation), convolve(v, kernel, dilation)
            orders = (0, 1, 2) if l < last else (1, 2)
            *values, slope, curvature = spline.evaluate(x, coefficients[l], self.config.grid_x, orders)
            kept.append((slope, curvature * v))
            z, v = values[0] if values else None, slope * v
        g, g_v = kept[-1]
        for l in reversed(range(self.config.layers)):
            g_v = convolve_adjoint(g_v, self.kernels[l], self.config.dilations[l])
            if l:
                g = convolve_adjoint(g, self.kernels[l], self.config.dilations[l])
                slope, bent = kept[l - 1]
                g, g_v = g * slope, g_v * slope + g * bent
        return g_v

    def _inner_slope(self, z: Tensor, coefficients: list[Tensor]) -> Tensor:
        """:meth:`_slope` at the pixels all of whose features lie inside of z."""
        if self._fused(z, coefficients):
            edge = 2 * self.config.margin
            return self._slope(z, coefficients)[..., edge:-edge, edge:-edge]
        slopes = self._slopes(z, coefficients)
        g = slopes[-1]
        for l in reversed(range(1, self.config.layers)):
            g = convolve_adjoint_inner(g, self.kernels[l], self.config.dilations[l])
            g = g * crop_to(slopes[l - 1], g)
        return convolve_adjoint_inner(g, self.kernels[0])
