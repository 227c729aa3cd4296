r"""More inverse problems on the same priors: deblurring, super-resolution, compressed sensing, few-view tomography.

The measurement is y = A x + sigma z with a linear operator A (:mod:`gnclib.restore.linear`), the reconstruction a
minimiser of

    D(x) + R(x, t_I),        D(x) = ||A x - y||^2 / (2 sigma^2),

or with TV in the place of the energy. The prior has never seen A. Each problem is solved by

    least squares   a little regularised; all others start from it (``LinearMeasurement.start``)
    TV              min D(x) + w TV(x), by the alternating direction method of multipliers (:func:`total_variation`)
    fixed           proximal gradient on D + R(., t) at one t, with step t: the same solver without GNC
    gnc             eq. (9) of Kobler & Pock 2023 along t_1 > ... > t_I, logarithmic, eta_i = t_i

What is tuned (w; t; t_1 and t_I) is tuned by one rule for all of them: the best mean PSNR over a grid on training
images, see :func:`grid`. The file keeps the whole grid with its PSNR, so that a reader sees how much the choice
matters. The prior is a method's first word: "R1 gnc", "R3 gnc"; "least squares" and "TV" have none. A tuning made with
other weights is made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnclib.deep import load_prior
from gnclib.images import bsds68, middle, psnr, refuse_validation, training_images
from gnclib.io import Content, Form, Job, Row, Table, markdown, rounded
from gnclib.restore import (
    Blur,
    LinearMeasurement,
    LinearOperator,
    LowResolution,
    Prior,
    Projections,
    SampledTransform,
    State,
    gaussian_kernel,
    gnc_flow,
    last,
    log_schedule,
    proximal_gradient,
    weights_sha256,
)
from gnclib.studies.comparison import PACKAGES, Images, Method, Quality, jobs, tv

#: the results that come with the package
SHIPPED = Path(__file__).with_name("problems.json")
#: the images: the middle of the first COUNT of BSDS68, squares of so many pixels
COUNT, SIDE = 12, 192
#: the images to tune on: every so many-th training image, squares of so many pixels
TUNING_STEP, TUNING_SIDE = 67, 96
#: gradients of the energy that "gnc" and "fixed" take, and "fixed long"
STEPS, LONG = 30, 150
#: the values of t, t_1 and t_I among which is chosen, where the prior allows them
TIMES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST_TIMES = (3e-2, 1e-1, 3e-1, 1.0)
#: the values of sigma^2 w, the weight of TV beside ||A x - y||^2 / 2, relative to sigma
TV_WEIGHTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
#: relative residual of the conjugate gradients within a proximal map; at 1e-3 rounding decides over 0.02 dB
ACCURACY = 1e-4
METHODS = ("least squares", "TV", "fixed", "fixed long", "gnc")
#: the methods with their priors
NAMES = (*METHODS[:2], *(f"{prior} {m}" for prior in ("R1", "R3") for m in METHODS[2:]), "G1 gnc")


@dataclass(frozen=True)
class Problem:
    """A linear inverse problem, by its name in files and on the command line, and its title in words."""

    name: str
    title: str
    operator: Callable[[tuple[int, int], torch.Generator], LinearOperator]  # of a size: A
    sigma: float  # of the noise, in the units of the measurement

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


# solvers -------------------------------------------------------------------------------------------------------------


def total_variation(
    data: LinearMeasurement, weight: float, steps: int = 100, accuracy: float = 1e-5
) -> Iterator[State]:
    """The iterates of the alternating direction method of multipliers for min_x D(x) + w TV(x) (Boyd et al. 2011).

        x = prox_{eta D}(z - u),    z = prox_{eta w TV}(x + u),    u <- u + x - z

    `data` is of one image, the weight w > 0; 100 steps come within 0.1 dB of 300 on photographs; `accuracy` is that of
    the second proximal map (:func:`gnclib.studies.comparison.tv`). The x of a State is z, its ``t`` nan.
    """
    if not 0 < weight < math.inf:
        raise ValueError(f"the weight of TV must be a finite number > 0, got {weight}")
    eta = 0.02 / weight  # sets the speed and not the limit
    z = data.start()
    u = torch.zeros_like(z)
    for step in range(1, steps + 1):
        x = data.prox(z - u, eta)
        z = tv(x + u, eta * weight, accuracy)
        u = u + x - z
        yield State(step, float("nan"), z, None, data)


def grid(method: str, t_min: float, t_max: float) -> list[dict[str, float]]:
    """The settings among which is chosen for a method of a prior whose range of t is [t_min, t_max]."""
    ends = [t for t in TIMES if t_min <= t * (1 + 1e-6)]
    if method == "TV":
        return [{"weight": w} for w in TV_WEIGHTS]
    if method in ("fixed", "fixed long"):
        return [{"t": t} for t in ends]
    if method == "gnc":
        firsts = [t for t in FIRST_TIMES if t <= t_max * (1 + 1e-6)]
        return [{"t_first": first, "t_last": t} for first in firsts for t in ends if t < first]
    return [{}]


def solve(
    method: str, data: LinearMeasurement, settings: Mapping[str, Any], prior: Prior | None = None
) -> Iterator[State]:
    """The iterates of a method of :data:`METHODS` with the settings of :func:`grid`; "least squares" has one."""
    if method == "least squares":
        return iter([State(1, float("nan"), data.start(), None, data)])
    if method == "TV":
        return total_variation(data, settings["weight"] / data.sigma)
    if method == "gnc":
        return gnc_flow(prior, log_schedule(settings["t_first"], settings["t_last"], STEPS), data)
    steps = {"fixed": STEPS, "fixed long": LONG}[method]
    return proximal_gradient(prior, settings["t"], data, steps=steps)


# the file ------------------------------------------------------------------------------------------------------------


class Tuning(Row):
    """The settings chosen for a method; all that were tried, with the mean PSNR in dB of each; the training images."""

    by: ClassVar[tuple[str, ...]] = ("task", "method")
    task: str
    method: str
    best: dict[str, float]
    grid: list[dict[str, float]]
    psnr: list[rounded(3)]
    on: list[str]


FORM = Form("file of inverse problems", Images, {"results": Quality, "tuned": Tuning}, SHIPPED)
load = FORM.load


def images() -> dict[str, Tensor]:
    """The squares in the middle of the first 12 images of BSDS68: name -> (1, 1, 192, 192)."""
    return {name: middle(x, SIDE) for name, x in list(bsds68().items())[:COUNT]}


def _parts(name: str) -> tuple[str, Prior | None, dict[str, Any]]:
    """The method of a name of :data:`NAMES`, its energy, and the settings that this stands for."""
    prior, _, kind = name.partition(" ")
    if kind not in METHODS:
        return name, None, {"accuracy": ACCURACY}
    energy = load_prior(prior)
    return kind, energy, {"accuracy": ACCURACY, "weights": weights_sha256(energy)}


def tune(problem: Problem, name: str, clean: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of :func:`grid` with the best mean PSNR on training images, as the columns of a :class:`Tuning`.

    The images (1, 1, H, W) are all of one size; image k is measured with seed k. Raises ValueError for images that must
    not be trained on.
    """
    refuse_validation(clean)
    kind, prior, _ = _parts(name)
    ends = (prior.sigma_min**2, prior.sigma_max**2) if prior else (0, 0)
    tried = grid(kind, *ends)
    found = [0.0] * len(tried)
    for k, x in enumerate(clean.values()):
        measured = problem.measure(x, torch.Generator().manual_seed(k))
        for i, choice in enumerate(tried):
            found[i] += psnr(last(solve(kind, measured, choice, prior)).x, x).item() / len(clean)
    best = max(range(len(tried)), key=found.__getitem__)
    return {"best": tried[best], "grid": tried, "psnr": found, "on": list(clean)}


def method(name: str, best: Mapping[str, float]) -> Method:
    """A method of :data:`NAMES` with its tuned settings."""
    kind, prior, settings = _parts(name)
    learned = sum(p.numel() for p in prior.parameters()) if prior else 0

    def restored(measured: LinearMeasurement) -> tuple[Tensor, int | None]:
        state = last(solve(kind, measured, best, prior))
        return state.x, state.step if prior is not None else None

    return Method(name, restored, settings | dict(best), learned + len(best))


def _tuned(file: Table, problem: Problem, name: str) -> dict[str, float]:
    """The settings of a method, from the file, or tuned now and recorded in it."""

    def compute() -> dict[str, Any]:
        training = list(training_images().items())[::TUNING_STEP]
        return tune(problem, name, {k: middle(x, TUNING_SIDE) for k, x in training})

    given = {"task": str(problem), "method": name}
    list(file.fill("tuned", [Job(given, _parts(name)[2], compute)]))
    (row,) = (row for row in file.read().rows["tuned"] if (row.task, row.method) == (str(problem), name))
    return row.best


def restore(
    path: str | Path,
    clean: Mapping[str, Tensor],
    name: str,
    problems: Iterable[str] = (),
    only: Iterable[str] = (),
    among: Mapping[str, Problem] = PROBLEMS,
) -> Iterator[Quality]:
    """Run what is missing in the file, tuning first; yield rows as they are added.

    Image k (1, 1, H, W) in [0, 1] of the set of this name is measured with seed k. Raises ValueError for unknown
    problems, or methods in ``only`` (all by default).
    """
    problems, names = list(problems) or list(among), list(only) or list(NAMES)
    for kind, given, known in (("problem", problems, among), ("method", names, NAMES)):
        if unknown := [one for one in given if one not in known]:
            raise ValueError(f"unknown {kind} {unknown[0]!r}: choose one of {', '.join(known)}")
    file = Table(path, FORM, Images(set=name), packages=PACKAGES)
    for problem in map(among.get, problems):
        for wanted in names:
            made = method(wanted, _tuned(file, problem, wanted))
            yield from file.fill("results", jobs(problem, [made], clean))


def table(content: Content) -> str:
    """Mean PSNR in dB by method and problem as markdown, with the number of gradients; "-" was not measured.

    Raises ValueError: there is no result in it.
    """
    cells: dict[tuple[str, str], list[Quality]] = {}
    for row in content.rows["results"]:
        cells.setdefault((row.method, row.task), []).append(row)
    if not cells:
        raise ValueError("there are no results to make a table of")
    tasks = [task for task in PROBLEMS if any(t == task for _, t in cells)]
    lines = []
    for name in (n for n in NAMES if any(m == n for m, _ in cells)):
        found = [cells.get((name, task), []) for task in tasks]
        steps = {row.evaluations for rows in found for row in rows}
        count = ", ".join("-" if s is None else str(s) for s in sorted(steps, key=str))
        means = [f"{sum(row.psnr for row in rows) / len(rows):.2f}" if rows else "-" for rows in found]
        lines.append([name, count, *means])
    return markdown(["method", "gradients", *(PROBLEMS[task].title for task in tasks)], lines)
