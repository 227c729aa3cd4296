r"""Fields of Experts whose potentials depend on the noise level: the learned energies R_1, R_2, R_3.

    R_L(y, t) = < phi_L(K_L phi_{L-1}( ... K_2 phi_1(K_1 y, tau) ... , tau), tau), 1 > + n c(tau)
                                                            (Kobler & Pock 2023, eqs. 2 and 3)

``K_l`` are convolutions without biases, every phi is one quartic-spline function of (feature, tau) per channel, and
tau = 0.5 log t. Our choices, each a field of :class:`FoEConfig` or said here:

* *Scaled input.* The first convolution sees ``s(tau) y`` with ``s = (t + sigma_0^2)^(-1/2)`` instead of ``y``, so that
  one node range serves all noise levels. ``scaled_input=False`` is the restored formula.
* *Constant in y.* ``c(tau) = 0.5 log(t + sigma_0^2) + a spline in tau``, n the number of pixels. The paper's potentials
  can express it (their splines contain constants); named apart, it trains faster. ``constant=False`` leaves it to them.
* *Border.* Images are continued by reflection, the edge repeated, by half the receptive field, so that there is one
  feature per pixel and channel, and the energy is the sum over exactly these. ``grad`` is its exact gradient.
* *Dilation.* The taps of ``K_2 ... K_L`` are ``dilation`` pixels apart, for the farther sight that strong noise asks
  for at the cost of 3 x 3 kernels.
* *Coarser scales.* With ``scales`` > 0 the energy of :class:`gnclib.foe.layers.CoarseExperts` is added.
* *Convexity.* With ``convex_from`` the training keeps the potentials convex from that noise level on, and
  :meth:`FieldsOfExperts.certify` proves that the energy is (:mod:`gnclib.foe.convexity`).
* *Range ends.* Potentials are continued linearly outside of their nodes (:mod:`gnclib.spline`).

``grad`` is an explicit backward pass written in forward operations, so that training needs first-order automatic
differentiation only; ``dtau`` carries first and second tau-derivatives through the layers.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor, nn

from gnclib import spline
from gnclib.checks import in_full_precision
from gnclib.foe import FoEConfig, LearnedEnergy, convexity, demand_shape, read_prior
from gnclib.foe.filters import convolve, dct_kernels, reflect, reflect_adjoint
from gnclib.foe.layers import CoarseExperts, Layers, scale


class FieldsOfExperts(LearnedEnergy):
    """R_L(y, t) of Kobler & Pock 2023, eqs. (2) and (3); see the module for the formula and our choices.

    A new one starts as the paper describes: DCT kernels in K_1, Kaiming-normal K_l, identity activations, and a
    quadratic last potential (gain 1 / kernel_size^2, which makes K_1^T K_1 about the identity on zero-mean signals).

    Parameters
    ----------
    config
        None for R_1's.
    generator
        Of the random kernels (l >= 2, or ``kernels="random"``).
    kernels
        "dct" or "random" (unit norm, zero mean) for K_1.
    """

    def __init__(
        self,
        config: FoEConfig | None = None,
        *,
        generator: torch.Generator | None = None,
        kernels: str = "dct",
    ):
        super().__init__()
        self.config = c = config or FoEConfig()
        generator = generator or torch.Generator().manual_seed(0)
        if kernels == "dct":
            first = dct_kernels(c.kernel_size, c.features).float()
        elif kernels == "random":
            first = torch.randn(c.features, 1, c.kernel_size, c.kernel_size, generator=generator)
        else:
            raise ValueError(f'kernels must be "dct" or "random", got {kernels!r}')
        deep = (c.features, c.features, c.deep_kernel_size, c.deep_kernel_size)
        gain = math.sqrt(2 / (c.features * c.deep_kernel_size**2))  # Kaiming-normal, fan in
        others = (gain * torch.randn(deep, generator=generator) for _ in range(c.layers - 1))
        self.kernels = nn.ParameterList([first, *others])
        hidden, last = c.grid_x.quadratic(b=1.0), c.grid_x.quadratic(c=0.5 / c.kernel_size**2)
        potentials = (p.float()[None, :, None] for p in [hidden] * (c.layers - 1) + [last])
        self.weights = nn.ParameterList([p.repeat(c.features, 1, c.nodes_tau) for p in potentials])
        self.offset = nn.Parameter(torch.zeros(c.nodes_tau))
        self.coarse = CoarseExperts(c) if c.scales else None
        self.float()  # whatever torch's default type is
        self.project()

    @property
    def margin(self) -> int:
        """How far a feature sees, in pixels; the gradient sees twice as far.

        With coarser scales up to 2^L it is 2 (2^L - 1) for the low passes and 3 2^L for kernels of side 7 where the
        fine scale sees no farther, in whole pixels of the coarsest scale.
        """
        config, pixel = self.config, self.alignment
        reach = max(2 * (pixel - 1) + config.kernel_size // 2 * pixel, config.margin)
        return -(-reach // pixel) * pixel

    alignment = property(lambda self: 2**self.config.scales)
    smallest = property(lambda self: self.config.margin, doc="Side of what can be continued by reflection.")
    has_valid_part = property(lambda self: self.coarse is None)

    def parameter_groups(self) -> dict[str, list[Tensor]]:
        """What is learned, by the setting that is its learning rate; c(tau) only where the energy has such a term."""
        groups = {"lr": [*self.kernels, *self.weights]}
        if self.config.constant:
            groups["lr_constant"] = [self.offset]
        if self.coarse:
            groups["lr_coarse"] = list(self.coarse.parameters())
        return groups

    @property
    def projected(self) -> bool:
        """Whether K_1 and the kernels of coarser scales are as :meth:`project` leaves them, to 1e-4."""
        kernels = [self.kernels[0], *(self.coarse.kernels if self.coarse else ())]
        norms = (torch.linalg.vector_norm(k.detach(), dim=(-1, -2)).max() for k in kernels)
        means = (k.detach().mean((-1, -2)).abs().max() for k in kernels)
        return bool(max(norms) <= 1 + 1e-4 and max(means) <= 1e-4)

    @torch.no_grad()
    def project(self) -> None:
        """Put K_1 and the kernels of coarser scales back to zero mean and norm at most 1 per kernel, in place."""
        for k in [self.kernels[0], *(self.coarse.kernels if self.coarse else ())]:
            k -= k.mean((-1, -2), keepdim=True)
            k /= torch.linalg.vector_norm(k, dim=(-1, -2), keepdim=True).clamp(min=1.0)

    @torch.no_grad()
    def make_convex(self) -> None:
        """Replace potentials by the closest ones that are as convex as ``convex_from`` demands, in place.

        Those of the fine scale from that noise level on, those of coarser scales at all levels
        (:func:`gnclib.foe.convexity.project`). Of several layers hidden activations become affine from there on
        (:func:`gnclib.foe.convexity.straighten`), and the last potentials are free before.
        """
        if self.config.convex_from is not None:
            first, grid = convexity.convex_nodes(self.config), self.config.grid_x
            *hidden, last = self.weights
            if hidden:
                convexity.project(last[..., first:], 0, grid)
            else:
                convexity.project(last, first, grid, self.kernels[0].flatten(1).norm(dim=1))
            for w in hidden:
                convexity.straighten(w, first, grid)
            for w in self.coarse.weights if self.coarse else ():
                convexity.project(w, 0, self.config.coarse_grid)

    @torch.no_grad()
    def smooth(self, amount: float, hidden: float = 1.0) -> None:
        """Take one implicit step of length ``amount`` down the roughness 1/2 ||D^3 w||^2 of all potentials, in place.

        w becomes (I + amount D^3^T D^3)^-1 w, with D^3 the third difference along x: what is rough from node to node is
        damped, quadratic functions stay as they are. Stable for every amount >= 0, that of the activations before the
        last potentials being ``hidden`` times as large; ValueError else.
        """
        last = self.config.layers - 1
        for layer, w in enumerate(self.weights):
            step = amount if layer == last else hidden * amount
            if not 0 <= step < math.inf:
                raise ValueError(f"the amount of smoothing must be >= 0 and finite, got {step}")
            eye = torch.eye(w.shape[1], dtype=torch.float64)
            third = eye.diff(n=3, dim=0)
            w.copy_(torch.einsum("ij,cjt->cit", (eye + step * third.T @ third).inverse().to(w), w))

    def certify(self, t: float) -> convexity.Certificate:
        """Proof of convexity and bounds of the curvature, see :func:`gnclib.foe.convexity.certify`."""
        return convexity.certify(self, t)

    # the energy contract -------------------------------------------------------------------------------------------

    def energy(self, y: Tensor, t: float | Tensor, *, border: str = "reflect") -> Tensor:
        """R(y, t), eqs. (2) and (3).

        Parameters
        ----------
        y : (B, 1, H, W)
            Images, grey values of [0, 1] plus noise.
        t : float or (B,)
            Noise variance, in [sigma_min^2, sigma_max^2].
        border
            "reflect", or "valid" for the sum over the features that need no continuation (used in training).

        Returns
        -------
        (B,)

        Raises
        ------
        ValueError
            Bad shapes, non-finite images, images smaller than the continuation, t outside of its range.
        """
        y, tau = self._check(y, t, border)
        z = self._input(y, tau, border)
        value = self._layers(tau).value(z) + self._count(z) * self._constant(tau)[0]
        return value + self.coarse.value(y, tau) if self.coarse else value

    def grad(self, y: Tensor, t: float | Tensor, *, border: str = "reflect") -> Tensor:
        """The exact gradient of :meth:`energy` in y, shaped like y: s pad^T K_1^T phi_1' K_2^T ... phi_L'."""
        y, tau = self._check(y, t, border)
        g = self._output(self._layers(tau).slope(self._input(y, tau, border)), tau, border)
        return g + self.coarse.slope(y, tau) if self.coarse else g

    def energy_and_grad(
        self, y: Tensor, t: float | Tensor, *, border: str = "reflect"
    ) -> tuple[Tensor, Tensor]:
        """:meth:`energy` and :meth:`grad` in little more time than the gradient alone."""
        y, tau = self._check(y, t, border)
        z = self._input(y, tau, border)
        value, slope = self._layers(tau).value_and_slope(z)
        value, slope = value + self._count(z) * self._constant(tau)[0], self._output(slope, tau, border)
        if self.coarse:
            value, slope = value + self.coarse.value(y, tau), slope + self.coarse.slope(y, tau)
        return value, slope

    def inner_grad(self, y: Tensor, t: float | Tensor) -> Tensor:
        """:meth:`grad` at the pixels all of whose features lie inside of y, where no border is felt.

        (B, 1, H - 4 margin, W - 4 margin), cheaper than cropping :meth:`grad`: no layer computes what is cut off. H and
        W must be above 4 ``config.margin``, else ValueError.
        """
        if min(y.shape[-2:]) <= 4 * self.config.margin:
            raise ValueError(
                f"images of {y.shape[-2]}x{y.shape[-1]} pixels have no inner pixel: this energy needs more than"
                f" {4 * self.config.margin} in each direction"
            )
        y, tau = self._check(y, t, "valid")
        return self._output(self._layers(tau).inner_slope(self._input(y, tau, "valid")), tau, "valid")

    @in_full_precision
    def dtau(
        self, y: Tensor, t: float | Tensor, *, border: str = "reflect", order: int = 2
    ) -> tuple[Tensor, ...]:
        """The derivatives of R in tau = 0.5 log t at fixed y up to ``order`` (1 or 2): as many tensors (B,).

        Each layer maps (x, x', x'') to (phi, phi_tau + phi_x x', phi_tautau + 2 phi_xtau x' + phi_xx x'^2 + phi_x x'').
        """
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order!r}")
        y, tau = self._check(y, t, border)
        s, *moved = self._scale(tau)[: order + 1]
        by_order = [self._coefficients(tau, k) for k in range(order + 1)]
        jet = [self._input(y, tau, border)]
        for l, (kernel, dilation) in enumerate(zip(self.kernels, self.config.dilations, strict=True)):
            x, *xs = (convolve(j, kernel, dilation) for j in jet)
            x1, *x2 = xs or [(d / s)[:, None, None, None] * x for d in moved]  # the input is s(tau) y
            values = int(l + 1 < self.config.layers)  # those of the last layer serve nothing
            orders = tuple(range(1 - values, order + 1))
            found = spline.evaluate(x, by_order[0][l], self.config.grid_x, orders)
            fx, *fxx = found[values:]
            ft, *fxt = spline.evaluate(x, by_order[1][l], self.config.grid_x, (0, 1)[:order])
            jet = [*found[:values], ft + fx * x1]
            if order == 2:
                (ftt,) = spline.evaluate(x, by_order[2][l], self.config.grid_x, (0,))
                jet.append(ftt + 2 * fxt[0] * x1 + fxx[0] * x1**2 + fx * x2[0])
        constant = self._constant(tau)[: order + 1]
        found = tuple(j.sum((1, 2, 3)) + j[0, 0].numel() * c for j, c in zip(jet, constant[1:], strict=True))
        if self.coarse:
            found = tuple(map(torch.add, found, self.coarse.dtau(y, tau, order)))
        return found

    @in_full_precision
    def hvp(self, y: Tensor, t: float | Tensor, v: Tensor, *, border: str = "reflect") -> Tensor:
        """Hessian of :meth:`energy` in y times v, shaped like y: the derivative of :meth:`grad` along v."""
        y, tau = self._check(y, t, border)
        demand_shape(v, y)
        inputs = self._input(y, tau, border), self._input(v, tau, border)
        found = self._output(self._layers(tau).curved(*inputs), tau, border)
        return found + self.coarse.curved(y, tau, v) if self.coarse else found

    # parts ---------------------------------------------------------------------------------------------------------

    def _check(self, y: Tensor, t, border: str) -> tuple[Tensor, Tensor]:
        if border not in ("reflect", "valid"):
            raise ValueError(f'border must be "reflect" or "valid", got {border!r}')
        if border == "valid" and self.coarse:
            raise ValueError(
                "an energy with coarser scales continues images by reflection: it has no valid part"
            )
        self._demand_images(y, self.smallest if border == "reflect" else 2 * self.config.margin + 1)
        return y, self._range(t, y.shape[0], y)

    def _coefficients(self, tau: Tensor, derivative: int = 0) -> list[Tensor]:
        """Of phi_1 ... phi_L at each tau, or of a derivative in tau: each (B, C, N_x)."""
        return [spline.contract(w, tau, self.config.grid_tau, derivative) for w in self.weights]

    def _layers(self, tau: Tensor) -> Layers:
        config = self.config
        return Layers(self.kernels, config.dilations, self._coefficients(tau), config.grid_x, self.bf16)

    def _scale(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s(tau) and its first two derivatives, each (B,)."""
        if not self.config.scaled_input:
            return torch.ones_like(tau), torch.zeros_like(tau), torch.zeros_like(tau)
        return scale(tau, 1.0, self.config.sigma_0)

    def _constant(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c(tau) and its first two derivatives, each (B,)."""
        if not self.config.constant:
            return torch.zeros_like(tau), torch.zeros_like(tau), torch.zeros_like(tau)
        t = torch.exp(2 * tau)
        q = t / (t + self.config.sigma_0**2)
        c = 0.5 * torch.log(t + self.config.sigma_0**2), q, 2 * q * (1 - q)
        return tuple(a + spline.contract(self.offset, tau, self.config.grid_tau, k) for k, a in enumerate(c))

    def _input(self, y: Tensor, tau: Tensor, border: str) -> Tensor:
        """What the first convolution sees: y, continued and scaled."""
        padded = reflect(y, self.config.margin) if border == "reflect" else y
        return self._scale(tau)[0][:, None, None, None] * padded

    def _output(self, g: Tensor, tau: Tensor, border: str) -> Tensor:
        """The adjoint of :meth:`_input`."""
        g = self._scale(tau)[0][:, None, None, None] * g
        return reflect_adjoint(g, self.config.margin) if border == "reflect" else g

    def _count(self, z: Tensor) -> int:
        """n, the number of features per channel."""
        return (z.shape[-2] - 2 * self.config.margin) * (z.shape[-1] - 2 * self.config.margin)

    # files ---------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike) -> FieldsOfExperts:
        """Load a prior of the package ("R1"), from a folder, or from the hub ("hf:owner/name@revision").

        Raises as :func:`gnclib.foe.hub.locate`, and ValueError for a file that is damaged or does not fit.
        """
        return cls.from_state(*read_prior(name)).requires_grad_(False).eval()
