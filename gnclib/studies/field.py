"""Comparison with the field: the schemes of this project beside BM3D, TV and biharmonic inpainting, on BSDS68.

*Problems.* A :class:`~gnclib.restore.Task` measures image k with a torch.Generator of seed k: noise
y = x + sigma z, never clipped, or a mask that keeps each pixel with the probability 1 - missing.

*Methods.* :func:`methods` names them all: those without learning and our schemes. Their settings, the SHA-256 of
trained weights above all, tell which results are out of date.

*Time.* Seconds of each call are kept, but they tell little about a machine that others use, too. :func:`timing` runs
all methods in turn on a few images, in one process with one thread, kept on one core where the system allows it. It
records processor time beside the clock; ratios to BM3D are taken within such a run only. The libraries under numpy and
scipy need OMP_NUM_THREADS=1 before they are loaded.

What was not measured here is in :data:`CITED`, with its source.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gnclib.foe import WEIGHTS, weights_sha256
from gnclib.images import data
from gnclib.io import Content, Form, Job, Row, Table, markdown, rounded
from gnclib.restore import Denoising, Inpainting, Task, schemes
from gnclib.studies.comparison import (
    PACKAGES,
    SIZE,
    Images,
    Method,
    Quality,
    biharmonic,
    bm3d,
    jobs,
    solved,
    tune_tv,
    tv,
    wiener,
)

#: the results that come with the package: of everything at three noise levels, of one step from the weakest noise on
SHIPPED, ALL_LEVELS = (Path(__file__).with_name(name) for name in ("field.json", "levels.json"))
#: what is compared by default, the most telling first
TASKS = (Task("denoise", 25), Task("inpaint", 0.8), Task("denoise", 15), Task("denoise", 50))
#: the task on which BM3D is the unit of time
REFERENCE = Task("denoise", 25)
PRIORS = ("P1", "P2", "P3", "R1", "C1", "M1", "R2", "R3", "C3", "M3", "G1")
#: those of which the mean over turns and reflections is compared
SYMMETRIC = ("R3", "G1")
#: every so many-th training image is used to tune TV
TUNING_STEP = 20


class Tuning(Row):
    """The weight of TV for a denoising task, its mean PSNR in dB on the training images, and which these are."""

    by: ClassVar[tuple[str, ...]] = ("task",)
    task: str
    weight: float
    psnr: float
    images: int
    on: list[str]


class Timing(Row):
    """Seconds of the processor and of the clock that a method took for each image, in one run of :func:`timing`."""

    by: ClassVar[tuple[str, ...]] = ("run",)
    key: ClassVar[tuple[str, ...]] = ("task", "method")
    run: int
    task: str
    method: str
    cpu: list[rounded(4)]
    wall: list[rounded(4)]
    evaluations: int | None


FORM = Form("file of comparisons", Images, {"results": Quality, "tv": Tuning, "timing": Timing})


def load(path: str | Path = SHIPPED) -> Content:
    """The tables "results", "tv" and "timing" of a file; raises as :meth:`gnclib.io.table.Form.load`."""
    content = FORM.load(path)
    for run in {row.run for row in content.rows["timing"]}:
        if not _unit(content, run) > 0:
            raise ValueError(f"{path} is no {FORM.kind}: timing {run} lacks the time of BM3D")
    return content


def _unit(content: Content, run: int) -> float:
    """The seconds of BM3D in a timing."""
    rows = [row for row in content.rows["timing"] if (row.run, row.method) == (run, "BM3D")]
    return sum(sum(row.cpu) for row in rows if row.task == row.settings.get("reference"))


# methods -------------------------------------------------------------------------------------------------------------


def methods(task: Task, weight: float | None = None) -> dict[str, Callable[[], Method]]:
    """All that can be run on a task: name -> what makes it, which loads what it needs; TV needs its weight."""
    if task.kind == "denoise":
        found = {
            "BM3D": lambda: Method("BM3D", lambda m: (bm3d(m.y, task.sigma), None), {"profile": "np"}),
            "TV": lambda: Method("TV", lambda m: (tv(m.y, weight), None), {"weight": weight}, 1),
            "Wiener": lambda: Method(
                "Wiener", lambda m: (wiener(m.y, task.sigma), None), {}, SIZE[0] * SIZE[1]
            ),
        }
    else:
        found = {"biharmonic": lambda: Method("biharmonic", lambda m: (biharmonic(m.y, m.mask), None), {})}
    for prior in PRIORS:
        for scheme in schemes.SCHEMES:
            folder = {"learned": f"{prior}-{task}", "finetuned": f"{prior}-finetuned-{task}"}.get(scheme)
            fits = task.kind in schemes.SCHEMES[scheme] and scheme != "linear"
            fits = fits and (scheme != "symmetric" or prior in SYMMETRIC)
            if fits and (not folder or (WEIGHTS / folder / "schedule.json").is_file()):
                found[f"{prior} {scheme}"] = partial(ours, prior, scheme, task)
    return found


def ours(prior: str, name: str, task: Task) -> Method:
    """A scheme of :data:`gnclib.restore.schemes.SCHEMES` with a prior of the package."""
    scheme = schemes.load(name, prior, task)
    settings = {"weights": weights_sha256(f"{prior}-finetuned-{task}" if name == "finetuned" else prior)}
    model = scheme.prior.prior if name == "symmetric" else scheme.prior
    parameters = sum(p.numel() for part in model.parameter_groups().values() for p in part)
    if scheme.schedule is not None:
        t, eta = scheme.schedule.t, scheme.schedule.eta
        if scheme.schedule.x_0 != "start":
            settings["x_0"] = scheme.schedule.x_0
        parameters += 2 * scheme.steps
    elif name == "gnc":
        t, eta = schemes.predefined(scheme.prior, task, scheme.steps)
    else:
        t = eta = None
        settings["steps"] = scheme.steps
    if t is not None:
        settings |= {
            key: [float(f"{v:.6g}") for v in column.tolist()] for key, column in (("t", t), ("eta", eta))
        }

    def solve(measured: Denoising | Inpainting) -> tuple[Tensor, int]:
        *_, state = scheme.states(measured)
        return state.x, scheme.evaluations

    return Method(f"{prior} {name}", solve, settings, parameters)


def _offered(tasks: Iterable[Task], only: Collection[str]) -> list[tuple[Task, str]]:
    """The methods for each task, by name; all of them where ``only`` is empty. ValueError for one that no task has."""
    offered = {task: list(methods(task)) for task in tasks}
    names = list(dict.fromkeys(name for found in offered.values() for name in found))
    for name in only:
        if name not in names:
            raise ValueError(
                f"there is no method {name!r} for these problems: choose one of {', '.join(names)}"
            )
    return [(task, name) for task, found in offered.items() for name in found if name in only or not only]


# runs ----------------------------------------------------------------------------------------------------------------


def _tuning(task: Task) -> dict[str, Any]:
    """The columns of a :class:`Tuning`: those of the shipped file, or tuned on every 20th training image."""
    for row in load().rows["tv"]:
        if row.task == str(task):
            return {column: getattr(row, column) for column in Tuning.columns()}
    images = dict(list(data.training_images().items())[::TUNING_STEP])
    return tune_tv(images, task.sigma) | {"on": sorted(images)}


def made(file: Table, offered: Iterable[tuple[Task, str]]) -> list[tuple[Task, Method]]:
    """The methods, ready to run; TV with its weight, which is recorded in the file."""
    found = []
    for task, name in offered:
        weight = None
        if name == "TV":
            list(file.fill("tv", [Job({"task": str(task)}, {}, partial(_tuning, task))]))
            (weight,) = (row.weight for row in file.read().rows["tv"] if row.task == str(task))
        found.append((task, methods(task, weight)[name]()))
    return found


def compare(
    path: str | Path,
    images: Mapping[str, Tensor],
    name: str,
    tasks: Iterable[Task] = TASKS,
    only: Collection[str] = (),
) -> Iterator[Quality]:
    """Run what is missing in the file: task by task, image by image, method by method; yield rows as they are added.

    Image k (1, 1, H, W) in [0, 1] of the set of this name is measured with seed k. Raises ValueError for an unknown
    method in ``only`` (all by default).
    """
    file, tasks = Table(path, FORM, Images(set=name), packages=PACKAGES), list(tasks)
    found = made(file, _offered(tasks, only))
    for task in tasks:
        yield from file.fill("results", jobs(task, [method for t, method in found if t == task], images))


def timing(
    path: str | Path,
    images: Mapping[str, Tensor],
    name: str,
    tasks: Iterable[Task] = TASKS[:2],
    only: Collection[str] = (),
) -> list[Timing]:
    """Time methods in turns on a few images and add the run to the file.

    BM3D at sigma = 25 is always among them. Each method runs once on a small crop before, so that nothing is loaded or
    compiled while it is timed. Parameters and errors as for :func:`compare`.
    """
    file = Table(path, FORM, Images(set=name), packages=PACKAGES)
    run = 1 + max((row.run for row in file.read().rows["timing"]), default=0)
    tasks = [REFERENCE, *(task for task in tasks if task != REFERENCE)]
    chosen = made(file, _offered(tasks, {*only, "BM3D"} if only else ()))
    spent: list[list[dict]] = [[] for _ in chosen]
    with _one_core():
        small = next(iter(images.values()))[..., :64, :64]
        for k, x in enumerate([small, *images.values()], -1):
            for (task, method), rows in zip(chosen, spent, strict=True):
                measured = task.measure(x, torch.Generator().manual_seed(max(k, 0)))
                rows.append(solved(method, measured)[1])
    settings, found = {"reference": str(REFERENCE), "images": list(images)}, []
    for (task, method), (_, *values) in zip(chosen, spent, strict=True):  # the small one was to warm up
        columns = {column: [value[column] for value in values] for column in ("cpu", "wall")}
        columns["evaluations"] = values[0]["evaluations"]
        given = {"run": run, "task": str(task), "method": method.name}
        found.append((Job(given, settings, dict), columns))
    return file.add("timing", *found)


@contextmanager
def _one_core() -> Iterator[None]:
    """This process stays on one core, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


# the table -----------------------------------------------------------------------------------------------------------


#: Published, not measured here: other realisations of the noise, and clipping that the sources do not always state.
#: Method, parameters in words ("" where unsure), mean PSNR in dB on BSDS68 by noise level, source.
CITED = (
    ("EPLL", "", {15: 31.21, 25: 28.68, 50: 25.67},
     "Zoran & Weiss 2011, as measured by Zhang et al., IEEE TIP 26(7), 2017"),
    ("WCRR-NN", "< 15,000", {25: 28.68},
     "Goujon, Neumayer & Unser, Learning Weakly Convex Regularizers, arXiv 2308.10542, 2023"),
    ("TNRD (7x7, 5 stages)", "26,645", {15: 31.42, 25: 28.92, 50: 25.97},
     "Chen & Pock, IEEE TPAMI 39(6), 2017; one network per noise level"),
    ("DnCNN-S", "0.56 million", {15: 31.73, 25: 29.23, 50: 26.23},
     "Zhang, Zuo, Chen, Meng & Zhang, IEEE TIP 26(7), 2017; one network per noise level"),
)  # fmt: skip


def table(content: Content) -> str:
    """The comparison as markdown: what was measured, by PSNR at sigma 25, and apart from it what is cited.

    A cell is "PSNR in dB (SSIM)", the mean over the images of that method; "-" was not measured. Relative times are
    processor time over that of BM3D on the same images in the same run. Raises ValueError: there is no result in it.
    """
    found: dict[str, dict[str, list[Quality]]] = {}
    for row in content.rows["results"]:
        found.setdefault(row.method, {}).setdefault(row.task, []).append(row)
    if not found:
        raise ValueError("there are no results to make a table of")
    tasks = sorted({task for of_task in found.values() for task in of_task}, key=_task_order)
    times = _relative_times(content)
    timed = sorted({task for of_task in times.values() for task in of_task}, key=_task_order)
    head = ["method", "parameters", *map(_title, tasks), *(f"time, {_title(t)}" for t in timed), "images"]
    rows = []
    for method, of_task in sorted(found.items(), key=lambda item: _mean_psnr(item[1].get("denoise-25"))):
        counts = {row.settings["parameters"] for rows in of_task.values() for row in rows}
        parameters = " / ".join(sorted("-" if n is None else f"{n:,}" for n in counts))
        cells = [_cell(of_task.get(task)) for task in tasks]
        shares = [f"{times[method][task]:.3g}" if task in times.get(method, {}) else "-" for task in timed]
        images = " / ".join(map(str, sorted({len(rows) for rows in of_task.values()}, reverse=True)))
        rows.append([method, parameters, *cells, *shares, images])
    spent = "; time: processor time relative to BM3D in the run that timed it, one thread"
    lines = [
        markdown(head, rows),
        "",
        f"Measured here on {content.about.set}: PSNR in dB (SSIM), means over the images, nothing clipped, noise or"
        f" mask of image k with seed k{spent if timed else ''}.",
        "",
        "Cited, not measured here:",
        "",
    ]
    levels = sorted({level for _, _, psnr, _ in CITED for level in psnr})
    head = ["method", "parameters", *(_title(f"denoise-{level}") for level in levels), "source"]
    rows = []
    for method, parameters, psnr, source in CITED:
        cells = [f"{psnr[level]:.2f}" if level in psnr else "-" for level in levels]
        rows.append([method, parameters, *cells, source])
    return "\n".join([*lines, markdown(head, rows)])


def _mean_psnr(rows: list[Quality] | None) -> float:
    return float(np.mean([row.psnr for row in rows])) if rows else float("inf")


def _cell(rows: list[Quality] | None) -> str:
    return f"{_mean_psnr(rows):.2f} ({np.mean([row.ssim for row in rows]):.3f})" if rows else "-"


def _title(task: str) -> str:
    kind, level = task.split("-", 1)
    return f"sigma {level}" if kind == "denoise" else f"{level} % missing"


def _task_order(task: str) -> tuple[str, float]:
    kind, level = task.split("-", 1)
    return kind, float(level)


def _relative_times(content: Content) -> dict[str, dict[str, float]]:
    """method -> task -> processor time over that of BM3D, from the last run that timed it.

    A time is left out where its method takes another number of gradients by now.
    """
    taken: dict[tuple[str, str], set] = {}
    for row in content.rows["results"]:
        taken.setdefault((row.method, row.task), set()).add(row.evaluations)
    found: dict[str, dict[str, float]] = {}
    for row in sorted(content.rows["timing"], key=lambda row: row.run):
        if taken.get((row.method, row.task)) == {row.evaluations}:
            found.setdefault(row.method, {})[row.task] = sum(row.cpu) / _unit(content, row.run)
    return found


def psnr_by_image(content: Content, method: str, task: str) -> dict[str, float]:
    """PSNR in dB of every image, by its name, of a method ("R3 learned") at a task ("denoise-25"), or ValueError."""
    rows = [row for row in content.rows["results"] if (row.method, row.task) == (method, task)]
    if not rows:
        raise ValueError(f"there is no result of {method!r} at {task!r} yet: run 'gnc compare'")
    return {row.image: row.psnr for row in rows}
