"""The architecture of a Fields-of-Experts energy as numbers (Kobler & Pock 2023, eqs. 2 and 3): config.json.

:func:`read_prior` reads it, and the weights beside it, from files that need not be right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from gnclib.io.reading import demand, demand_tensors, read_json, read_tensors, shape_of_fields

if TYPE_CHECKING:
    from torch import Tensor

    from gnclib.spline import SplineGrid

#: layers and pixels between the taps of a kernel that are more than this
MOST = 1000
#: numbers of a configuration that are larger than this, or a noise level below its inverse, mean nothing
LARGEST = 1e6


@dataclass(frozen=True)
class FoEConfig:
    """Architecture of a Fields-of-Experts energy; defaults are our choices where the paper's numbers are lost.

    Attributes:
        layers: L >= 1.
        features: channels per layer; at most kernel_size^2 - 1, the number of DCT kernels without the constant.
        kernel_size: side of the kernels of K_1, odd.
        deep_kernel_size: taps of the kernels of K_2 ... K_L in each direction, odd.
        dilation: d >= 1, distance of the taps of K_2 ... K_L in pixels.
        nodes_x: N_x, spline nodes per potential; range: the potentials are complete on [-range, range].
        nodes_tau: N_tau, spline nodes in tau.
        sigma_min, sigma_max: noise levels (grey values in [0, 1]) between which the energy is defined.
        sigma_0: sigma_0 of the input scaling and of c(tau).
        scaled_input: whether the first layer sees s(tau) y (ours) or y (as printed).

    Raises:
        ValueError: a value outside of its range.
    """

    layers: int = 1
    features: int = 48
    kernel_size: int = 7
    deep_kernel_size: int = 3
    dilation: int = 1
    nodes_x: int = 95
    range: float = 6.0
    nodes_tau: int = 11
    sigma_min: float = 0.01
    sigma_max: float = 1.0
    sigma_0: float = 0.1
    scaled_input: bool = True

    def __post_init__(self):
        def needs(condition, message):
            if not condition:
                raise ValueError(f"FoEConfig: {message}")

        for name in ("layers", "features", "kernel_size", "deep_kernel_size", "nodes_x", "nodes_tau"):
            value = getattr(self, name)
            needs(isinstance(value, int) and value is not True, f"{name} must be an integer, got {value!r}")
        needs(1 <= self.layers <= MOST, f"layers must be at least 1, at most {MOST}, got {self.layers}")
        for name in ("kernel_size", "deep_kernel_size"):
            needs(
                getattr(self, name) % 2 == 1 and getattr(self, name) > 0,
                f"{name} must be odd, got {getattr(self, name)}",
            )
        needs(
            isinstance(self.dilation, int) and self.dilation is not True and 1 <= self.dilation <= MOST,
            f"dilation must be a positive integer, at most {MOST}, got {self.dilation!r}",
        )
        most = self.kernel_size**2 - 1
        needs(
            1 <= self.features <= most,
            f"features must lie in 1..{most} (kernel_size^2 - 1), got {self.features}",
        )
        needs(self.nodes_x >= 5 and self.nodes_tau >= 5, "nodes_x and nodes_tau must be at least 5")
        needs(1 / LARGEST <= self.range <= LARGEST, f"range must lie in [1e-6, 1e6], got {self.range}")
        needs(
            1 / LARGEST <= self.sigma_min < self.sigma_max <= LARGEST,
            f"1e-6 <= sigma_min < sigma_max <= 1e6 does not hold for {self.sigma_min}, {self.sigma_max}",
        )
        needs(1 / LARGEST <= self.sigma_0 <= LARGEST, f"sigma_0 must lie in [1e-6, 1e6], got {self.sigma_0}")

    @property
    def grid_x(self) -> SplineGrid:
        from gnclib.spline import SplineGrid  # here and not above: numbers are known without torch

        return SplineGrid(self.nodes_x, -self.range, self.range)

    @property
    def grid_tau(self) -> SplineGrid:
        from gnclib.spline import SplineGrid

        return SplineGrid(self.nodes_tau, math.log(self.sigma_min), math.log(self.sigma_max))

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
        return found | {"offset": (self.nodes_tau,)}

    @classmethod
    def from_dict(cls, values: dict) -> FoEConfig:
        """The inverse of ``dataclasses.asdict``; unknown or missing names and values of other types raise ValueError.

        Files written before kernels could be dilated lack ``dilation``, which was 1.
        """
        values = {"dilation": 1} | values
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            unknown, missing = sorted(set(values) - known), sorted(known - set(values))
            raise ValueError(
                f"config.json does not describe a FieldsOfExperts: unknown names {unknown}, missing names {missing}"
            )
        return cls(**demand(values, shape_of_fields(cls)))


def read_prior(folder: Path) -> tuple[FoEConfig, dict[str, Tensor]]:
    """Configuration and weights of the prior in a folder: config.json and model.safetensors.

    The weights are compared with the configuration before anybody makes something as large as that says.

    Raises:
        FileNotFoundError: one of the files is missing. ValueError: one is damaged, or they do not fit each other.
    """
    try:
        config = FoEConfig.from_dict(read_json(folder / "config.json", "configuration", dict))
        state, _ = read_tensors(folder / "model.safetensors")
    except ValueError as error:
        raise ValueError(f"the prior in {folder} cannot be read: {error}") from None
    demand_tensors(state, config.shapes, f"the weights in {folder} do not fit its config.json")
    return config, state
