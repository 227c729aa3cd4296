r"""Passes through the layers of a Field of Experts, forward and backward (Kobler & Pock 2023, eq. 3).

    x_1 = K_1 z,    x_l = K_l phi_{l-1}(x_{l-1}),    value = < phi_L(x_L), 1 >,    slope = K_1^T phi_1' K_2^T ... phi_L'

for images z that are continued and scaled already. Energies of one layer go through :mod:`gnclib.foe.experts` where
that serves their tensors.
"""

from __future__ import annotations

from torch import Tensor

from gnclib import spline
from gnclib.foe import experts
from gnclib.foe.base import LearnedEnergy, recorded
from gnclib.foe.filters import convolve, convolve_adjoint, convolve_adjoint_inner, crop_to


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
