"""Architecture of a network energy as numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gnclib import io
from gnclib.foe.config import Architecture, Count, Level, Nodes

Channels = Annotated[
    tuple[Count, ...],
    Field(min_length=1, max_length=8, description="must be one to eight positive integers, at most 1000"),
]


@io.settings
class NetworkConfig(Architecture):
    """Architecture of :class:`gnclib.deep.NetworkEnergy`; all are our choices.

    Raises ValueError: an unknown name, or a value of another type or outside of its range.
    """

    channels: Channels = (32, 64, 96, 32, 32)  # of the U-Net per scale, from fine to coarse
    embedding: Count = 24  # numbers that tau is embedded in
    nodes_tau: Nodes = 17  # of the spline in c(tau)
    sigma_min: Level = 0.01  # grey values; the energy is defined from here ...
    sigma_max: Level = 8.0  # ... to here
    sigma_open: Level = 1.0  # up to here the gate is 1
    sigma_convex: Level = 4.0  # from here on it is 0 and the energy is convex
    mean: Annotated[float, Field(ge=0, le=1, description="must lie in [0, 1]")] = 0.45  # m
    sigma_0: Level = 0.25
    border: Literal["reflected", "zeros"] = "reflected"  # zeros: only in records of old trainings
    family: Literal["network"] = "network"  # what config.json says about the kind of prior

    @model_validator(mode="after")
    def _in_order(self) -> NetworkConfig:
        levels = ("sigma_min", "sigma_open", "sigma_convex", "sigma_max")
        values = [getattr(self, name) for name in levels]
        if not values[0] < values[1] < values[2] <= values[3]:
            raise ValueError(
                f"sigma_min < sigma_open < sigma_convex <= sigma_max does not hold for {', '.join(map(str, values))}"
            )
        return self

    @property
    def alignment(self) -> int:
        """Pixels along one of the coarsest scale."""
        return 2 ** (len(self.channels) - 1)

    @property
    def margin(self) -> int:
        """How many pixels away N sees, at most: 2^l per 3 x 3 kernel at scale l, and what the strides skip.

        Rounded up to whole pixels of the coarsest scale.
        """
        last, pixel = len(self.channels) - 1, self.alignment
        blocks = sum((4 if scale < last else 2) * 2**scale for scale in range(last + 1))
        return -(-(2 + blocks + 2 * (pixel - 1)) // pixel) * pixel

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights of an energy with this architecture, found without making one."""
        c, e = self.channels, self.embedding
        found = {"offset": (self.nodes_tau,)}
        for k, size in (0, 16), (2, e):
            found |= {f"network.embed.{k}.weight": (e, size), f"network.embed.{k}.bias": (e,)}
        for name, channels in ("encode", c), ("decode", c[:-1]):
            for k, n in enumerate(channels):
                block = {"a.weight": (n, n, 3, 3), "b.weight": (n, n, 3, 3), "film.weight": (2 * n, e)}
                block |= {"film.bias": (2 * n,)}
                found |= {f"network.{name}.{k}.{part}": shape for part, shape in block.items()}
        for k, (fine, coarse) in enumerate(pairwise(c)):
            found |= {f"network.{name}.{k}.weight": (coarse, fine, 2, 2) for name in ("down", "up")}
        return found | {"network.first.weight": (c[0], 1, 3, 3), "network.last.weight": (1, c[0], 3, 3)}
