r"""A gated U-Net N(u, tau), the expressive part of :class:`gnclib.deep.NetworkEnergy`.

Five scales, each half as wide as the one before; every block is residual,

    x  ->  x + B a_g( (1 + alpha(tau)) A x + beta(tau) ),        A, B convolutions 3 x 3 without biases,

alpha and beta two numbers per channel from an embedding of tau. The activation

    a_g(v) = (1 - g) v / 2 + g v / (1 + e^-v)

is SiLU for g = 1 and linear for g = 0: then u -> N(u, tau) is affine, whatever the weights are. Beyond the border of
the image every convolution sees zeros; images may have any size from 1 x 1 on.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GatedUNet"]

#: frequencies of the embedding of tau: from one period over several decades of noise to one over a tenth of a decade
FREQUENCIES = torch.linspace(-1, 2, 8).exp()


class Block(nn.Module):
    """x + B a_g((1 + alpha) A x + beta)."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.film = nn.Linear(embedding, 2 * channels)
        with torch.no_grad():
            self.b.weight.mul_(0.3)
            self.film.weight.zero_()
            self.film.bias.zero_()

    def forward(self, x: Tensor, embedding: Tensor, gate: Tensor | None) -> Tensor:
        alpha, beta = self.film(embedding)[:, :, None, None].to(x.dtype).chunk(2, 1)
        v = self.a(x) * (1 + alpha) + beta
        active = F.silu(v) if gate is None else torch.lerp(0.5 * v, F.silu(v), gate.to(v.dtype))
        return x + self.b(active)


class GatedUNet(nn.Module):
    """N(u, tau): (B, 1, H, W) and (B,) to (B, 1, H, W).

    Parameters
    ----------
    channels : tuple of int
        Channels per scale, from fine to coarse.
    embedding : int
        Numbers that tau is embedded in.
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 96, 32, 32), embedding: int = 24):
        super().__init__()
        fine, coarse = channels[:-1], channels[1:]
        self.embed = nn.Sequential(
            nn.Linear(2 * len(FREQUENCIES), embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.first = nn.Conv2d(1, channels[0], 3, padding=1, bias=False)
        self.encode = nn.ModuleList([Block(c, embedding) for c in channels])
        self.decode = nn.ModuleList([Block(c, embedding) for c in fine])
        sides = list(zip(fine, coarse, strict=True))
        self.down = nn.ModuleList([nn.Conv2d(a, b, 2, stride=2, bias=False) for a, b in sides])
        self.up = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, stride=2, bias=False) for a, b in sides])
        self.last = nn.Conv2d(channels[0], 1, 3, padding=1, bias=False)
        nn.init.normal_(self.last.weight, std=0.1 / math.sqrt(9 * channels[0]))

    def forward(self, u: Tensor, tau: Tensor, gate: Tensor | None = None) -> Tensor:
        """N(u, tau) with activations of the gate (B, 1, 1, 1); None is 1."""
        phase = FREQUENCIES.to(tau) * tau[:, None]
        embedding = self.embed(torch.cat([phase.sin(), phase.cos()], 1))
        x, skipped = self.first(u), []
        for block, down in zip(self.encode, self.down, strict=False):
            x = block(x, embedding, gate)
            skipped.append(x)
            x = down(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)))
        x = self.encode[-1](x, embedding, gate)
        for block, up, skip in zip(reversed(self.decode), reversed(self.up), reversed(skipped), strict=True):
            x = block(skip + up(x)[..., : skip.shape[-2], : skip.shape[-1]], embedding, gate)
        return self.last(x)
