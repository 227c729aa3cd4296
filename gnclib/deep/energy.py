r"""An expressive energy for all noise levels, convex for strong smoothing by construction.

    E(y, t) = 1/2 || sqrt(t) s u - N(u, tau) ||^2 + n c(tau),     u = s (y - m),   s = (t + sigma_0^2)^(-1/2),

with tau = 0.5 log t, m the mean grey value of photographs and sigma_0 their spread, N a network, n the number of
pixels, and c(tau) = 0.5 log(t + sigma_0^2) + a spline in tau. The paper's outlook ("more expressive energies") leaves
the form open; this one is ours.

The gate g(tau) is 1 up to ``sigma_open``, falls as a cubic in tau, and is 0 from ``sigma_convex`` on. There N is affine
in y, so that E is half the squared norm of an affine map: **convex on all images, whatever the weights are**.

The network is a gated U-Net of five scales, each half as wide as the one before; every block is residual,

    x  ->  x + B a_g( (1 + alpha(tau)) A x + beta(tau) ),        A, B convolutions 3 x 3 without biases,

alpha and beta two numbers per channel from an embedding of tau. The activation

    a_g(v) = (1 - g) v / 2 + g v / (1 + e^-v)

is SiLU for g = 1 and linear for g = 0: then u -> N(u, tau) is affine, whatever the weights are. Beyond the border the
image is continued by reflection, as far as the first block sees and until the scales divide its sides; N is cropped
again, and images of every size from 1 x 1 on are served. Features of the coarser scales are continued by their nearest
value, those of the finest by zeros on the way back, which blur no border into another scale. The gradient is one
backward pass of automatic differentiation, which gives dE/dtau along with it.
"""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnclib import spline
from gnclib.checks import hidden
from gnclib.deep.config import NetworkConfig
from gnclib.foe import (
    Certificate,
    FieldsOfExperts,
    FoEConfig,
    LearnedEnergy,
    demand_shape,
    read_prior,
    recorded,
)

#: frequencies of the embedding of tau: from one period over several decades of noise to one over a tenth of a decade
FREQUENCIES = torch.linspace(-1, 2, 8, dtype=torch.float32).exp()


class Block(nn.Module):
    """x + B a_g((1 + alpha) A x + beta), with torch's name for what A and B see beyond the border.

    Where this is "valid" they see nothing, and the result has two pixels less on each side.
    """

    def __init__(self, channels: int, embedding: int, border: str):
        super().__init__()
        self.inside = slice(2, -2) if border == "valid" else slice(None)
        how = {} if border == "valid" else {"padding": 1, "padding_mode": border}
        self.a = nn.Conv2d(channels, channels, 3, bias=False, **how)
        self.b = nn.Conv2d(channels, channels, 3, bias=False, **how)
        self.film = nn.Linear(embedding, 2 * channels)
        with torch.no_grad():
            self.b.weight.mul_(0.3)
            self.film.weight.zero_()
            self.film.bias.zero_()

    def forward(self, x: Tensor, embedding: Tensor, gate: Tensor | None) -> Tensor:
        alpha, beta = self.film(embedding)[:, :, None, None].to(x.dtype).chunk(2, 1)
        v = self.a(x) * (1 + alpha) + beta
        active = F.silu(v) if gate is None else torch.lerp(0.5 * v, F.silu(v), gate.to(v.dtype))
        return x[..., self.inside, self.inside] + self.b(active)


class GatedUNet(nn.Module):
    """N(u, tau): (B, 1, H, W) and (B,) to (B, 1, H, W); the parameters are those of :class:`NetworkConfig`."""

    def __init__(self, channels: tuple[int, ...] = (32, 64, 96, 32, 32), embedding: int = 24):
        super().__init__()
        fine, coarse = channels[:-1], channels[1:]
        self.embed = nn.Sequential(
            nn.Linear(2 * len(FREQUENCIES), embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.first = nn.Conv2d(1, channels[0], 3, bias=False)
        self.encode, self.decode = (
            nn.ModuleList([Block(c, embedding, "replicate" if k else border) for k, c in enumerate(part)])
            for part, border in ((channels, "valid"), (fine, "zeros"))
        )
        sides = list(zip(fine, coarse, strict=True))
        self.down = nn.ModuleList([nn.Conv2d(a, b, 2, stride=2, bias=False) for a, b in sides])
        self.up = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, stride=2, bias=False) for a, b in sides])
        self.last = nn.Conv2d(channels[0], 1, 3, padding=1, bias=False)
        nn.init.normal_(self.last.weight, std=0.1 / math.sqrt(9 * channels[0]))

    def forward(self, u: Tensor, tau: Tensor, gate: Tensor | None = None) -> Tensor:
        """N(u, tau) with activations of the gate (B, 1, 1, 1); None is 1."""
        phase = FREQUENCIES.to(tau) * tau[:, None]
        embedding = self.embed(torch.cat([phase.sin(), phase.cos()], 1))
        x = self.first(_continued(u, 3, 2 ** len(self.down)))  # with the first block it sees 3 pixels far
        skipped = []
        for block, down in zip(self.encode, self.down, strict=False):
            x = block(x, embedding, gate)
            skipped.append(x)
            x = down(x)
        x = self.encode[-1](x, embedding, gate)
        for block, up, skip in zip(reversed(self.decode), reversed(self.up), reversed(skipped), strict=True):
            x = block(skip + up(x), embedding, gate)
        return self.last(x)[..., : u.shape[-2], : u.shape[-1]]


class NetworkEnergy(LearnedEnergy):
    """E(y, t), an energy in which a network replaces kernels and potentials; see the module for the formula.

    Parameters
    ----------
    config : NetworkConfig, optional
        The architecture.
    generator : torch.Generator, optional
        Of the first weights.

    Attributes
    ----------
    bf16 : bool
        Whether the network's convolutions are computed in bfloat16: faster where the processor has it, and less exact.

    Raises ValueError for a configuration with ``border="zeros"``.
    """

    def __init__(self, config: NetworkConfig | None = None, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config = c = config or NetworkConfig()
        if c.border == "zeros":
            raise ValueError("networks that see zeros beyond the border are of an older version: train anew")
        with torch.random.fork_rng(devices=[]):  # torch's own initialisations take no generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)) if generator else 0)
            self.network = GatedUNet(c.channels, c.embedding).to(memory_format=torch.channels_last)
        self.offset = nn.Parameter(torch.zeros(c.nodes_tau))
        self.float()  # whatever torch's default is

    margin = property(lambda self: self.config.margin, doc="How many pixels away a term of the energy sees.")
    alignment = property(lambda self: self.config.alignment, doc="Where parts of an image have to begin.")

    def parameter_groups(self) -> dict[str, list[Tensor]]:
        """What is learned, by the setting that is its learning rate."""
        return {"lr": list(self.network.parameters()), "lr_constant": [self.offset]}

    # the energy contract ---------------------------------------------------------------------------------------------

    def energy(self, y: Tensor, t: float | Tensor) -> Tensor:
        """E(y, t), (B,): images (B, 1, H, W), t and errors as of :meth:`FieldsOfExperts.energy`."""
        return self._value(*self._check(y, t))

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor:
        """The gradient of :meth:`energy` in y, shaped like y."""
        return self.energy_and_grad(y, t)[1]

    def energy_and_grad(self, y: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`energy` and :meth:`grad` by one pass forward and one backward."""
        y, tau = self._check(y, t)
        recorded = self._recorded(y, tau)
        with torch.enable_grad():
            y = _leaf(y)
            value = self._value(y, tau)
            (grad,) = torch.autograd.grad(value.sum(), y, create_graph=recorded)
        return (value if recorded else value.detach()), grad

    def grads(self, y: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """The gradient in y and the derivative in tau, (B, 1, H, W) and (B,), by one backward pass."""
        y, tau = self._check(y, t)
        recorded = self._recorded(y, tau)
        with torch.enable_grad():
            y, tau = _leaf(y), _leaf(tau)
            return torch.autograd.grad(self._value(y, tau).sum(), (y, tau), create_graph=recorded)

    def dtau(self, y: Tensor, t: float | Tensor, *, order: int = 2) -> tuple[Tensor, ...]:
        """The derivatives of E in tau = 0.5 log t at fixed y up to ``order`` (1 or 2): as many tensors (B,)."""
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order!r}")
        y, tau = self._check(y, t)
        recorded, found = self._recorded(y, tau), []
        with torch.enable_grad():
            tau = _leaf(tau)
            value = self._value(y, tau)
            for k in range(order):
                more = recorded or k + 1 < order
                (value,) = torch.autograd.grad(value.sum(), tau, create_graph=more)
                found.append(value)
        return tuple(found if recorded else (v.detach() for v in found))

    def hvp(self, y: Tensor, t: float | Tensor, v: Tensor) -> Tensor:
        """Hessian of :meth:`energy` in y times v, shaped like y: the gradient of <grad E, v>."""
        y, tau = self._check(y, t)
        demand_shape(v, y)
        recorded = self._recorded(y, tau)
        with torch.enable_grad():
            y = _leaf(y)
            (grad,) = torch.autograd.grad(self._value(y, tau).sum(), y, create_graph=True)
            return torch.autograd.grad(grad, y, v, create_graph=recorded)[0]

    def certify(self, t: float) -> Certificate:
        """Proof of convexity for all images where the gate is shut; there is none elsewhere, and no other bound.

        Then E is half the squared norm of an affine map, as a function of real numbers. Its curvature is not bounded
        here: a product of the norms of all layers would be far above it. Raises ValueError if t leaves the range.
        """
        self._range(t, 1, torch.zeros(1, dtype=torch.float64))
        convex = float(t) >= self.config.sigma_convex**2  # the computed gate rounds to 0 a little earlier
        lowest = 0.0 if convex else -math.inf
        return Certificate(convex, math.inf, lowest, math.inf, lowest)

    def gate(self, tau: Tensor) -> Tensor:
        """g(tau) = 1 - 3 x^2 + 2 x^3, x the position of tau between log sigma_open and log sigma_convex, in [0, 1]."""
        low, high = math.log(self.config.sigma_open), math.log(self.config.sigma_convex)
        x = ((tau - low) / (high - low)).clamp(0, 1)
        return 1 - x**2 * (3 - 2 * x)

    # parts -----------------------------------------------------------------------------------------------------------

    def _check(self, y: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        self._demand_images(y, self.smallest)
        return y, self._range(t, y.shape[0], y)

    def _value(self, y: Tensor, tau: Tensor) -> Tensor:
        root = ((2 * tau).exp() + self.config.sigma_0**2).sqrt()
        u = (y - self.config.mean) / root[:, None, None, None]
        gate = self.gate(tau)[:, None, None, None]
        if not hidden() and bool((gate == 1).all()):
            gate = None
        with torch.autocast(y.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            n = self.network(u, tau, gate)
        r = (tau.exp() / root)[:, None, None, None] * u - n.to(u.dtype)
        constant = root.log() + spline.contract(self.offset, tau, self.config.grid_tau)
        return 0.5 * r.square().sum((1, 2, 3)) + y[0].numel() * constant

    def _recorded(self, y: Tensor, tau: Tensor) -> bool:
        """Whether torch records what is done with these or with the weights."""
        return recorded(y, tau, *self.parameters())


def _continued(u: Tensor, margin: int, multiple: int) -> Tensor:
    """Images (..., H, W) continued by reflection, the edge repeated: to multiples, and by a margin on each side."""
    for axis in (-2, -1):
        side = u.shape[axis]
        k = torch.arange(-margin, -(-side // multiple) * multiple + margin, device=u.device) % (2 * side)
        u = u.index_select(axis, torch.minimum(k, 2 * side - 1 - k))
    return u


def _leaf(v: Tensor) -> Tensor:
    """v, or a copy that torch records where v is not recorded."""
    return v if v.requires_grad else v.detach().requires_grad_(True)


# priors by name, whatever kind of energy they are ---------------------------------------------------------------------


def configuration(values: dict[str, Any]) -> FoEConfig | NetworkConfig:
    """The configuration that a config.json holds: a network's where it names a family. Raises ValueError."""
    return (NetworkConfig if "family" in values else FoEConfig).from_dict(values)


def kind_of(config: FoEConfig | NetworkConfig) -> type[LearnedEnergy]:
    """The class of the energies with such a configuration."""
    return NetworkEnergy if isinstance(config, NetworkConfig) else FieldsOfExperts


def load_prior(name: str | os.PathLike) -> LearnedEnergy:
    """A trained prior, ready for every solver: ``energy(y, t)`` and ``grad(y, t)`` for images in [0, 1].

    Parameters
    ----------
    name
        A prior of the package ("C1", "C3", "G1", "M1", "M3", "P1" to "P3", "R1" to "R3"), the folder of one
        (``config.json`` and ``model.safetensors``, as ``gnc train`` and ``save_pretrained`` write it), or a repository
        of the Hugging Face hub: "hf:owner/name" or "hf:owner/name@revision". The package comes first: write "./R1" for
        a folder of that name.

    Returns
    -------
    FieldsOfExperts or NetworkEnergy
        On the CPU in float32, its parameters without gradients; ``.to("cuda")``, ``.double()`` and
        ``.requires_grad_()`` change that.

    Raises
    ------
    FileNotFoundError
        There is no such prior, or one of its files is missing; the message lists the shipped ones.
    ValueError
        A file is damaged or does not fit the configuration, or a malformed hub name.
    ConnectionError, ImportError
        The hub cannot be reached, and its cache does not hold the repository; ``huggingface_hub`` is not installed.
    """
    config, state = read_prior(name, configuration)
    return kind_of(config).from_state(config, state).requires_grad_(False).eval()
