"""The architecture of a Fields-of-Experts energy as numbers (Kobler & Pock 2023, eqs. 2 and 3): config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnclib.spline import SplineGrid


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
        def demand(condition, message):
            if not condition:
                raise ValueError(f"FoEConfig: {message}")

        demand(self.layers >= 1, f"layers must be at least 1, got {self.layers}")
        for name in ("kernel_size", "deep_kernel_size"):
            demand(
                getattr(self, name) % 2 == 1 and getattr(self, name) > 0,
                f"{name} must be odd, got {getattr(self, name)}",
            )
        demand(
            isinstance(self.dilation, int) and self.dilation >= 1,
            f"dilation must be a positive integer, got {self.dilation!r}",
        )
        most = self.kernel_size**2 - 1
        demand(
            1 <= self.features <= most,
            f"features must lie in 1..{most} (kernel_size^2 - 1), got {self.features}",
        )
        demand(self.nodes_x >= 5 and self.nodes_tau >= 5, "nodes_x and nodes_tau must be at least 5")
        demand(self.range > 0 and math.isfinite(self.range), f"range must be positive, got {self.range}")
        demand(
            0 < self.sigma_min < self.sigma_max < math.inf,
            f"0 < sigma_min < sigma_max does not hold: {self.sigma_min}, {self.sigma_max}",
        )
        demand(self.sigma_0 > 0, f"sigma_0 must be positive, got {self.sigma_0}")

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

    @classmethod
    def from_dict(cls, values: dict) -> FoEConfig:
        """The inverse of ``dataclasses.asdict``; unknown or missing names raise ValueError.

        Files written before kernels could be dilated lack ``dilation``, which was 1.
        """
        values = {"dilation": 1} | values
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            unknown, missing = sorted(set(values) - known), sorted(known - set(values))
            raise ValueError(
                f"config.json does not describe a FieldsOfExperts: unknown names {unknown}, missing names {missing}"
            )
        return cls(**values)
