r"""More inverse problems on the same priors: deblurring, super-resolution, compressed sensing, few-view tomography.

The measurement is y = A x + sigma z with a linear operator A (:mod:`gnclib.restore.linear`), the
reconstruction a minimiser of

    D(x) + R(x, t_I),        D(x) = ||A x - y||^2 / (2 sigma^2),

or with TV in the place of the energy. The prior has never seen A: R_1 of the package does all of it. Each problem is
solved by

    least squares   a little regularised, where all the others start
    (:meth:`gnclib.restore.linear.LinearMeasurement.start`)
    TV              min D(x) + w TV(x), by the alternating direction method of multipliers (:func:`total_variation`)
    fixed           proximal gradient on D + R(., t) at one t, with step t: the same solver without GNC
    gnc             eq. (9) of Kobler & Pock 2023 along t_1 > ... > t_I, logarithmic, eta_i = t_i

What is tuned (w; t; t_1 and t_I) is tuned by one rule for all of them: the best mean PSNR over a grid on training
images, see :func:`grid`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gnclib.restore.flow import Prior, State, gnc_flow, proximal_gradient
from gnclib.restore.linear import (
    Blur,
    LinearMeasurement,
    LinearOperator,
    LowResolution,
    Projections,
    SampledTransform,
    gaussian_kernel,
)
from gnclib.restore.schedules import log_schedule
from gnclib.studies import field

__all__ = ["METHODS", "PROBLEMS", "SIDE", "Problem", "grid", "solve", "total_variation"]

#: side in pixels of the square in the middle of an image that is measured
SIDE = 192
#: gradients of the energy that "gnc" and "fixed" take, and "fixed long"
STEPS, LONG = 30, 150
#: the values of t, t_1 and t_I among which is chosen, where the prior allows them
TIMES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST_TIMES = (3e-2, 1e-1, 3e-1, 1.0)
#: the values of sigma^2 w, the weight of TV beside ||A x - y||^2 / 2, relative to sigma
WEIGHTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
#: relative residual of the conjugate gradients within a proximal map
ACCURACY = 1e-3
METHODS = ("least squares", "TV", "fixed", "fixed long", "gnc")


@dataclass(frozen=True)
class Problem:
    """A linear inverse problem.

    Attributes:
        name: short, as in files and on the command line; title: in words.
        operator: (size, generator) -> A for images of that size.
        sigma: standard deviation of the noise, in the units of the measurement.
    """

    name: str
    title: str
    operator: Callable[[tuple[int, int], torch.Generator], LinearOperator]
    sigma: float

    def __str__(self) -> str:
        return self.name

    def measure(self, x: Tensor, generator: torch.Generator) -> LinearMeasurement:
        """The data term of y = A x + sigma z for x (B, 1, H, W): what is random in A comes first, then z."""
        operator = self.operator(tuple(x.shape[-2:]), generator)
        y = operator(x)
        z = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
        return LinearMeasurement(operator, y + self.sigma * z, self.sigma, accuracy=ACCURACY)


#: problem by its name; sigma of grey values of [0, 1], for the projections of line integrals in units of the width
PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("deblur", "Gaussian blur of 1.6 pixels",
                lambda size, generator: Blur(gaussian_kernel(1.6), size), 0.01),
        Problem("super-2", "super-resolution x2", lambda size, generator: LowResolution(2, size), 0.01),
        Problem("super-3", "super-resolution x3", lambda size, generator: LowResolution(3, size), 0.01),
        Problem("sensing", "compressed sensing, 20 % of the coefficients",
                lambda size, generator: SampledTransform(size, 0.2, generator), 0.01),
        Problem("tomography", "tomography, 45 views",  # of 192 pixels; as densely for any other size
                lambda size, generator: Projections(size, max(1, round(45 * max(size) / SIDE))), 0.005),
    )
}  # fmt: skip


def total_variation(
    data: LinearMeasurement, weight: float, steps: int = 100, accuracy: float = 1e-5, threshold: float = 0.02
) -> Iterator[State]:
    """min_x D(x) + w TV(x) by the alternating direction method of multipliers (Boyd et al. 2011), TV as in `field.tv`:

        x = prox_{eta D}(z - u),    z = prox_{eta w TV}(x + u),    u <- u + x - z

    data: one image. weight: w > 0. accuracy: of the second proximal map (`field.tv`). threshold: eta w in grey values,
    which sets the speed and not the limit; 100 steps come within 0.1 dB of 300 on photographs. Yields States whose x
    is z, with ``t`` = nan.
    """
    if not 0 < weight < math.inf:
        raise ValueError(f"the weight of TV must be a finite number > 0, got {weight}")
    eta = threshold / weight
    z = data.start()
    u = torch.zeros_like(z)
    for step in range(1, steps + 1):
        x = data.prox(z - u, eta)
        z = field.tv(x + u, eta * weight, accuracy)
        u = u + x - z
        yield State(step, float("nan"), z, None, data)


def grid(method: str, t_min: float, t_max: float) -> list[dict[str, float]]:
    """The settings among which is chosen for a method of a prior whose range of t is [t_min, t_max]."""
    ends = [t for t in TIMES if t_min <= t * (1 + 1e-6)]
    if method == "TV":
        return [{"weight": w} for w in WEIGHTS]
    if method in ("fixed", "fixed long"):
        return [{"t": t} for t in ends]
    if method == "gnc":
        return [
            {"t_first": f, "t_last": t} for f in FIRST_TIMES if f <= t_max * (1 + 1e-6) for t in ends if t < f
        ]
    return [{}]


def solve(
    method: str, data: LinearMeasurement, settings: dict[str, Any], prior: Prior | None = None
) -> Iterator[State]:
    """The States of a method of :data:`METHODS` with the settings of :func:`grid`; "least squares" is one State.

    prior: for "fixed", "fixed long" and "gnc". Raises ValueError for an unknown method or one that lacks its prior.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if method == "least squares":
        return iter([State(1, float("nan"), data.start(), None, data)])
    if method == "TV":
        return total_variation(data, settings["weight"] / data.sigma)
    if prior is None:
        raise ValueError(f"the method {method!r} needs a prior")
    if method == "gnc":
        ts = log_schedule(settings["t_first"], settings["t_last"], STEPS)
        return gnc_flow(prior, ts, data)
    return proximal_gradient(prior, settings["t"], data, steps=STEPS if method == "fixed" else LONG)
