r"""Figure 3: is the minimal energy attained, and how good is the image, over t_0 and the number of steps I.

:mod:`gnclib.studies.attainment` makes the runs of one image; here are the file with all images, and what is drawn. The
global minimum of E cannot be computed. The runs that are made for an image stand for it, in two readings of "attained"
whose tolerances are our choice (the paper's is not known):

    lowest      E is at most ``tolerance`` above the lowest E that any run has found
    reference   E is at most ``tolerance`` above that of the reference, and the image is the reference's: their root
                mean square difference is at most ``distance``

They differ where a learned energy has valleys that are deeper than that of natural images, far from everything it was
trained on: there the lowest E belongs to no image at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor

from gnclib.checks import as_device
from gnclib.deep import load_prior
from gnclib.foe import LearnedEnergy, weights_sha256
from gnclib.images import data
from gnclib.io import Content, Form, Job, Record, Row, Table, from_object
from gnclib.studies.attainment import TASKS, Settings, measure

#: the results that come with the package: of R_1 and P_1; of both with up to 512 steps; of R_3 and P_3 on 24 images; of
#: R_1 and P_1 on 24 whole images
SHIPPED, RESTORED, LONG, RESTORED_LONG, DEEP, RESTORED_DEEP, WHOLE, RESTORED_WHOLE = (
    Path(__file__).with_name(f"figure3_{k}.json")
    for k in ("R1", "P1", "long_R1", "long_P1", "R3", "P3", "whole_R1", "whole_P1")
)
#: sets of images; the embedded photographs come first, anyone can recompute them
SETS = ("embedded", "bsds68")
EMBEDDED = ("camera", "chelsea", "coins", "rocket")
#: what the shipped results were made with
SETTINGS = Settings()
MINIMA = ("lowest", "reference")
#: how far above the lowest energy that was found counts as attained, in nats per pixel (our choice)
TOLERANCE = 0.05
#: how far from the reference an image may be, root mean square in grey values (our choice)
DISTANCE = 0.05


# the file ------------------------------------------------------------------------------------------------------------


class About(Record):
    """The prior of a file, by its name and the SHA-256 of its weights, and the settings."""

    prior: str
    weights: str
    settings: from_object(Settings)


class Run(Row):
    """The runs of one image and task, as :func:`gnclib.studies.attainment.measure` returns them.

    The seed of noise or mask is the number of the image in its set; `size` is height and width in pixels.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # a flow may diverge

    by: ClassVar[tuple[str, ...]] = ("set", "task")
    key: ClassVar[tuple[str, ...]] = ("image",)
    set: str
    task: str
    image: str
    seed: int
    size: list[int]
    seconds: float
    cpu_seconds: float
    start: list[float]
    reference: list[float] | None
    maps: dict[str, dict[str, list[list[float]]]]


FORM = Form("result of gnc sweep", About, {"runs": Run})


def load(path: str | Path = SHIPPED) -> Content:
    """The table "runs" of a file; raises as :meth:`gnclib.io.table.Form.load`."""
    content = FORM.load(path)
    settings = content.about.settings
    shape = [len(settings.steps)] * len(settings.t_firsts)
    for run in content.rows["runs"]:
        if (len(run.start), len(run.reference or (0, 0, 0)), len(run.size)) != (2, 3, 2):
            raise ValueError(f"{path} is no {FORM.kind}: {run.image} lacks numbers")
        if {*run.maps} != {*settings.algorithms}:
            raise ValueError(f"{path} is no {FORM.kind}: {run.image} lacks an algorithm")
        for name, found in run.maps.items():
            needed = {"energy", "psnr", *(["distance"] if run.reference else [])}
            if not needed <= {*found} or any([len(row) for row in rows] != shape for rows in found.values()):
                raise ValueError(
                    f"{path} is no {FORM.kind}: {name} of {run.image} lacks a table of t_0 by number of steps"
                )
    return content


# what is run ---------------------------------------------------------------------------------------------------------


def opened(path: str | Path, prior: str, settings: Settings, device: str = "cpu") -> Table:
    """The file to be filled with the :func:`jobs` of a prior."""
    about = About(prior=Path(prior).resolve().name, weights=weights_sha256(prior), settings=settings)
    return Table(path, FORM, about, device)


def jobs(
    prior: str,
    settings: Settings,
    sets: Sequence[str] = SETS,
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
    device: str = "cpu",
) -> list[Job]:
    """The rows of a prior, in an order in which any beginning is useful: all tasks of an image together.

    `prior` is a shipped prior or a folder; `limit` takes only the first images of each set, >= 1. This process and
    those of the jobs compute with one torch thread from then on. Raises ValueError: an unknown device;
    FileNotFoundError: no such prior; and as :func:`gnclib.images.data.bsds68`.
    """
    as_device(device)
    torch.set_num_threads(1)
    energy = load_prior(prior)
    chosen = []
    for name in (s for s in SETS if s in sets):
        images = data.bsds68() if name == "bsds68" else {k: data.embedded()[k] for k in EMBEDDED}
        for seed, (image, x) in list(enumerate(images.items()))[:limit]:
            x = data.middle(x, settings.crop) if settings.crop else x
            for task in (t for t in TASKS if t in tasks):
                given = {"set": name, "task": task, "image": image, "seed": seed}
                chosen.append(Job(given, {}, partial(_work, energy, task, x, seed, settings, device)))
    return chosen


def _work(
    prior: LearnedEnergy, task: str, x: Tensor, seed: int, settings: Settings, device: str
) -> dict[str, object]:
    """The other columns of a :class:`Run`."""
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    result = measure(prior.to(device), task, x.to(device), seed, settings)
    return {
        "size": list(x.shape[-2:]),
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **result,
    }


# what is drawn -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """One algorithm and task over all images; tensors are float64 (T, J), t_0 by number of steps."""

    images: int
    rate: Tensor  # part of the images whose minimal energy is attained, in [0, 1]
    psnr: Tensor  # mean, dB
    gap: Tensor  # mean of E minus the minimal energy (that of the reading), nats per pixel


def lowest(run: Run) -> float:
    """The minimal energy of an image: the lowest E that any algorithm or the reference has found."""
    found = [e for maps in run.maps.values() for row in maps["energy"] for e in row if not math.isnan(e)]
    return min([*found, run.reference[0]] if run.reference else found)


def aggregate(
    content: Content, tolerance: float = TOLERANCE, *, minimum: str = "lowest", distance: float = DISTANCE
) -> dict[tuple[str, str], Summary]:
    """What Figure 3 shows, of the images of BSDS68: (task, algorithm) -> :class:`Summary`.

    The `tolerance` is in nats per pixel, > 0; `minimum` is the reading of "attained", "lowest" or "reference", the
    latter with a `distance` in grey values, > 0. Raises ValueError: another reading, a bad tolerance or distance, or no
    reference.
    """
    if minimum not in MINIMA:
        raise ValueError(f"the minimum must be one of {', '.join(MINIMA)}, got {minimum!r}")
    for name, value in (("tolerance", tolerance), ("distance", distance)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"the {name} must be finite and > 0, got {value}")
    runs = [run for run in content.rows["runs"] if run.set == "bsds68"]
    if minimum == "reference" and not all(run.reference for run in runs):
        raise ValueError("these runs were made without a reference")
    summaries = {}
    for task in TASKS:
        of_task = [run for run in runs if run.task == task]
        floor = [lowest(run) if minimum == "lowest" else run.reference[0] for run in of_task]
        floor = torch.tensor(floor, dtype=torch.float64)[:, None, None]  # (N, 1, 1)
        for algorithm in content.about.settings.algorithms if of_task else ():
            gap = _stacked(of_task, algorithm, "energy") - floor
            there = gap <= tolerance
            if minimum == "reference":
                there &= _stacked(of_task, algorithm, "distance") <= distance
            psnr = _stacked(of_task, algorithm, "psnr").mean(0)
            summaries[task, algorithm] = Summary(len(of_task), there.double().mean(0), psnr, gap.mean(0))
    return summaries


def _stacked(runs: Sequence[Run], algorithm: str, quantity: str) -> Tensor:
    """(N, T, J)"""
    return torch.tensor([run.maps[algorithm][quantity] for run in runs], dtype=torch.float64)
