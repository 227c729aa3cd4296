"""Architecture of a Fields-of-Experts energy as numbers (Kobler & Pock 2023, eqs. 2 and 3); it loads no torch."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from gnclib import io, spline


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"must be odd, got {value}")
    return value


Count = Annotated[int, Field(ge=1, le=1000, description="must be a positive integer, at most 1000")]
Features = Annotated[int, Field(ge=1, description="must be a positive integer")]
Taps = Annotated[int, Field(ge=1, description="must be odd and positive"), AfterValidator(_odd)]
Nodes = Annotated[int, Field(ge=5, description="must be an integer, at least 5")]
Scales = Annotated[int, Field(ge=0, le=10, description="must be an integer from 0 to 10")]
Level = Annotated[float, Field(ge=1e-6, le=1e6, description="must lie in [1e-6, 1e6]")]


class Architecture:
    """What the configurations of all learned energies have in common: noise levels, nodes in tau, how they are read."""

    #: fields that older files lack; their defaults are what held before there was a choice
    later: tuple[str, ...] = ()

    @property
    def grid_tau(self) -> spline.SplineGrid:
        """Nodes in tau = log sigma."""
        return spline.SplineGrid(self.nodes_tau, math.log(self.sigma_min), math.log(self.sigma_max))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``, also where JSON has made a list of a tuple.

        Raises ValueError for an unknown or missing name, and for a value of another type or outside of its range.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        values = {name: defaults[name] for name in cls.later} | values
        if wrong := values.keys() ^ defaults.keys():
            raise ValueError(f"no configuration of an energy, names are missing or unknown: {io.some(wrong)}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


@io.settings
class FoEConfig(Architecture):
    """Architecture of a Fields-of-Experts energy; defaults are our choices where the paper's numbers are lost.

    Raises ValueError: an unknown name, or a value of another type or outside of its range.
    """

    layers: Count = 1  # L
    features: Features = 48  # channels per layer; at most kernel_size^2 - 1 DCT kernels without the constant
    kernel_size: Taps = 7  # side of the kernels of K_1
    deep_kernel_size: Taps = 3  # taps of the kernels of K_2 ... K_L in each direction
    dilation: Count = 1  # their distance d in pixels
    nodes_x: Nodes = 95  # N_x, spline nodes per potential
    range: Level = 6.0  # the potentials are complete on [-range, range]
    nodes_tau: Nodes = 11  # N_tau, spline nodes in tau
    sigma_min: Level = 0.01  # grey values in [0, 1]; the energy is defined from here ...
    sigma_max: Level = 1.0  # ... to here
    sigma_0: Level = 0.1  # of the input scaling and of c(tau)
    scaled_input: bool = True  # the first layer sees s(tau) y (ours), or y (as restored from the paper)
    constant: bool = True  # n c(tau) is a term of its own (ours), or left to the potentials (as restored)
    scales: Scales = 0  # coarser scales 2, 4, ..., 2^scales with experts of their own (ours)
    coarse_features: Features = 24  # channels at each of them
    coarse_nodes: Nodes = 63  # spline nodes per potential at each of them
    coarse_sigma_0: Level = 0.3  # sigma_0 of the input scaling at each of them
    convex_from: Level | None = None  # noise level from which training keeps it convex (ours)

    later = (
        *("dilation", "constant", "scales"),
        *("coarse_features", "coarse_nodes", "coarse_sigma_0", "convex_from"),
    )

    @model_validator(mode="after")
    def _fit_each_other(self) -> FoEConfig:
        most = self.kernel_size**2 - 1
        for name in ("features", "coarse_features"):
            if (self.scales or name == "features") and getattr(self, name) > most:
                raise ValueError(
                    f"{name} must lie in 1..{most} (kernel_size^2 - 1), got {getattr(self, name)}"
                )
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min < sigma_max does not hold for {self.sigma_min}, {self.sigma_max}")
        return self

    @property
    def grid_x(self) -> spline.SplineGrid:
        """Nodes of the potentials in their argument."""
        return spline.SplineGrid(self.nodes_x, -self.range, self.range)

    @property
    def coarse_grid(self) -> spline.SplineGrid:
        """Nodes of the potentials of the coarser scales in their argument."""
        return spline.SplineGrid(self.coarse_nodes, -self.range, self.range)

    @property
    def margin(self) -> int:
        """Half the receptive field: pixels added on each side by reflection."""
        return self.kernel_size // 2 + sum(self.dilations[1:]) * (self.deep_kernel_size // 2)

    @property
    def dilations(self) -> tuple[int, ...]:
        """Distance of the taps of K_1 ... K_L in pixels: 1, d, ..., d."""
        return (1, *[self.dilation] * (self.layers - 1))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights of an energy with this architecture, found without making one."""
        c, deep = self.features, (self.deep_kernel_size,) * 2
        kernels = [(c, 1, self.kernel_size, self.kernel_size), *[(c, c, *deep)] * (self.layers - 1)]
        found = {f"kernels.{k}": shape for k, shape in enumerate(kernels)}
        found |= {f"weights.{k}": (c, self.nodes_x, self.nodes_tau) for k in range(self.layers)}
        for k in range(self.scales):
            found[f"coarse.kernels.{k}"] = (self.coarse_features, 1, self.kernel_size, self.kernel_size)
            found[f"coarse.weights.{k}"] = (self.coarse_features, self.coarse_nodes, self.nodes_tau)
        return found | {"offset": (self.nodes_tau,)}
