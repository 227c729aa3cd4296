"""Side by side with the field: every method on every image, in one resumable file; what ``gnc compare`` does.

*Problems.* A :class:`~gnclib.restore.learned.Task` measures image k with a torch.Generator of seed k: noise y
= x + sigma z,
never clipped, or a mask that keeps each pixel with the probability 1 - missing. A method sees the data term of the
measurement and nothing of the clean image.

*Time.* Seconds of each call are kept, but they tell little about a machine that others use, too. :func:`timing` takes a
few images and, for each of them, runs all methods in turn, in one process with one thread and kept on one core where
the system allows it. It records processor time (`time.process_time`, which sums over all threads of the process) beside
the wall clock; ratios to BM3D are taken within such a run only. Torch and BM3D get one thread by their own settings;
the libraries under numpy and scipy do as the variable OMP_NUM_THREADS says, which must be set before they are loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnclib.images import data
from gnclib.io import files
from gnclib.restore.learned import Task
from gnclib.studies import field, results
from gnclib.studies.field_methods import chosen

__all__ = ["SHIPPED", "TASKS", "compare", "load", "timing", "tuned"]

#: the results that come with the package
SHIPPED = Path(__file__).with_name("field.json")
#: what is compared by default, the most telling first
TASKS = (Task("denoise", 25), Task("inpaint", 0.8), Task("denoise", 15), Task("denoise", 50))
#: the task on which BM3D is the unit of time
REFERENCE = Task("denoise", 25)
_TABLE = {str: {str: [float]}}
#: what a file of comparisons holds beside the results
MORE = {
    "tv": {str: {"weight": float, "psnr": float, "images": int, "on": [str], "provenance": results.ABOUT}},
    "timing": [
        {
            "reference": str,
            "images": [str],
            "cpu": _TABLE,
            "wall": _TABLE,
            "evaluations": {str: {str: (int, None)}},
            "provenance": results.ABOUT,
        }
    ],
}
#: every so many-th training image is used to tune TV
TUNING_STEP = 20


# the file ----------------------------------------------------------------------------------------------------------


def load(path: str | Path = SHIPPED) -> dict[str, Any]:
    """The content of a result file: "set", "columns", "tv", "timing" and "results".

    Raises:
        FileNotFoundError: there is none. ValueError: it is no result file.
    """
    content = results.load(path, MORE)
    for run in content["timing"]:
        counted = {(task, method) for task, found in run["evaluations"].items() for method in found}
        if not _pairs(run) <= counted or not sum(run["cpu"].get(run["reference"], {}).get("BM3D", ())) > 0:
            raise ValueError(
                f"{path} is no file of comparisons: a timing lacks the time of BM3D or how many gradients"
            )
    return content


# what is run -------------------------------------------------------------------------------------------------------


def tuned(path: Path, name: str, tasks: Iterable[Task], *, again: bool = False) -> dict[str, float]:
    """The weight of TV for each denoising task: task -> weight, in grey values.

    Recorded in the file; what is missing is taken from the shipped file or else (or always, with ``again``) tuned on
    every 20th training image. What others add to the file meanwhile stays. Raises ValueError as
    :func:`gnclib.studies.results.opened`.
    """
    content = results.opened(path, name, MORE)
    shipped = load(SHIPPED)["tv"] if SHIPPED.is_file() else {}
    images = None
    for task in tasks:
        if task.kind != "denoise" or (str(task) in content["tv"] and not again):
            continue
        record = shipped.get(str(task))
        if record is None or again:
            if images is None:
                images = dict(list(data.training_images().items())[::TUNING_STEP])
            record = field.tune_tv(images, task.sigma) | {
                "on": sorted(images),
                "provenance": results.provenance(),
            }
        content = results.opened(path, name, MORE)  # anew: tuning takes a while
        content["tv"][str(task)] = record
        files.write_text(path, files.dumps(content))
    return {task: record["weight"] for task, record in content["tv"].items()}


def compare(
    path: str | Path,
    images: Mapping[str, Tensor],
    name: str,
    tasks: Iterable[Task] = TASKS,
    only: Iterable[str] = (),
) -> Iterator[results.Result]:
    """Run what is missing in the file: task by task, image by image, method by method; yield results as they are added.

    Args:
        path: the result file; made where it is missing.
        images: id -> (1, 1, H, W) in [0, 1]; image k is measured with seed k.
        name: of the set of images, which the file must be about.
        tasks, only: which problems, and which methods (all).

    Raises:
        ValueError: no images, a file that is none or is about other images, an unknown method.
    """
    path = Path(path)
    if not images:
        raise ValueError("there are no images to compare on")
    tasks, only = list(tasks), list(only)
    results.opened(path, name, MORE)
    chosen(tasks, only, dict.fromkeys(map(str, tasks), 1.0))  # mistakes show before TV is tuned
    yield from results.fill(
        path,
        images,
        name,
        chosen(tasks, only, tuned(path, name, tasks if not only or "TV" in only else [])),
        MORE,
    )


def timing(
    path: str | Path,
    images: Mapping[str, Tensor],
    name: str,
    tasks: Iterable[Task] = TASKS[:2],
    only: Iterable[str] = (),
) -> dict[str, dict[str, list[float]]]:
    """Time methods in turns on a few images and add the run to the file: task -> method -> seconds of CPU per image.

    BM3D at sigma = 25 is always among them. Each method runs once on a small crop before, so that nothing is loaded or
    compiled while it is timed. Arguments and errors as for :func:`compare`.
    """
    path, only = Path(path), list(only)
    if not images:
        raise ValueError("there are no images to time on")
    results.opened(path, name, MORE)
    tasks = [REFERENCE, *(task for task in tasks if task != REFERENCE)]
    weights = tuned(path, name, tasks if not only or "TV" in only else [])
    made = chosen(tasks, {*only, "BM3D"} if only else (), weights)
    cpu, wall, taken = ({str(task): {} for task, _ in made} for _ in range(3))
    with _one_core():
        small = next(iter(images.values()))[..., :64, :64]
        for k, x in enumerate([small, *images.values()], -1):
            for task, found in made:
                for method in found:
                    measured = task.measure(x, torch.Generator().manual_seed(max(k, 0)))
                    _, evaluations, seconds, processor = results.run(method, measured)
                    taken[str(task)][method.name] = evaluations
                    if k >= 0:  # the small one was to warm up
                        wall[str(task)].setdefault(method.name, []).append(round(seconds, 4))
                        cpu[str(task)].setdefault(method.name, []).append(round(processor, 4))
    content = results.opened(path, name, MORE)
    run = {
        "reference": str(REFERENCE),
        "images": list(images),
        "cpu": cpu,
        "wall": wall,
        "evaluations": taken,
        "provenance": results.provenance(),
    }
    older = [r for r in content["timing"] if not _pairs(r) <= _pairs(run)]
    content["timing"] = [*older, run]
    files.write_text(path, files.dumps(content))
    return cpu


def _pairs(run: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(task, method) for task, found in run["cpu"].items() for method in found}


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
