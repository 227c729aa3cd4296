"""Side by side with the field: every method on every image, in one resumable file; what ``gnc compare`` does.

*Problems.* A :class:`~gnclib.learned.Task` measures image k with a torch.Generator of seed k: noise y = x + sigma z,
never clipped, or a mask that keeps each pixel with the probability 1 - missing. A method sees the data term of the
measurement and nothing of the clean image.

*Stale results.* A result depends on more than the name of its method, on trained weights above all. Each entry of the
file has these settings, among them the SHA-256 of the weights. A result whose settings are no longer those of its
method is not counted: it is run again and then replaced.

*Time.* Seconds of each call are kept, but they tell little about a machine that others use, too. :func:`timing` takes a
few images and, for each of them, runs all methods in turn, in one process with one thread and kept on one core where
the system allows it. It records processor time (`time.process_time`, which sums over all threads of the process) beside
the wall clock; ratios to BM3D are taken within such a run only. Torch and BM3D get one thread by their own settings;
the libraries under numpy and scipy do as the variable OMP_NUM_THREADS says, which must be set before they are loaded.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnclib import __version__, card, data, field, files, reading
from gnclib.field_methods import Method, chosen
from gnclib.learned import Task
from gnclib.metrics import psnr, ssim
from gnclib.operators import Denoising, Inpainting

__all__ = ["SHIPPED", "TASKS", "Result", "compare", "load", "stale", "timing", "tuned"]

#: the results that come with the package
SHIPPED = Path(__file__).with_name("field.json")
#: what is compared by default, the most telling first
TASKS = (Task("denoise", 25), Task("inpaint", 0.8), Task("denoise", 15), Task("denoise", 50))
#: the task on which BM3D is the unit of time
REFERENCE = Task("denoise", 25)
#: what the numbers of an image are
COLUMNS = ("seed", "psnr", "ssim", "wall", "cpu", "evaluations")
_ABOUT = {"revision": str, "machine": str, "software": str, "OMP_NUM_THREADS": str}
_TABLE = {str: {str: [float]}}
#: what a result file holds
_SHAPE = {
    "set": str,
    "columns": [str],
    "tv": {str: {"weight": float, "psnr": float, "images": int, "on": [str], "provenance": _ABOUT}},
    "results": [
        {
            "method": str,
            "task": str,
            "parameters": (int, None),
            "settings": dict,
            "provenance": _ABOUT,
            "images": {str: [(float, None)]},
        }
    ],
    "timing": [
        {
            "reference": str,
            "images": [str],
            "cpu": _TABLE,
            "wall": _TABLE,
            "evaluations": {str: {str: (int, None)}},
            "provenance": _ABOUT,
        }
    ],
}
#: every so many-th training image is used to tune TV
TUNING_STEP = 20


# the file ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a method did to one image: PSNR in dB, SSIM, seconds, gradients of an energy (None: it has none)."""

    method: str
    task: str
    image: str
    seed: int
    psnr: float
    ssim: float
    wall: float
    cpu: float
    evaluations: int | None


def load(path: str | Path = SHIPPED) -> dict[str, Any]:
    """The content of a result file: "set", "columns", "tv", "results" and "timing".

    Raises:
        FileNotFoundError: there is none. ValueError: it is no result file.
    """
    kind = "file of comparisons"
    content = reading.read_json(path, kind, _SHAPE)
    if content["columns"] != list(COLUMNS):
        raise ValueError(f"{path} is no {kind}: its columns must be {', '.join(COLUMNS)}")
    for entry in content["results"]:
        for image, numbers in entry["images"].items():
            whole = len(numbers) == len(COLUMNS) and isinstance(numbers[0], int)
            if not whole or None in numbers[:-1] or isinstance(numbers[-1], float):
                raise ValueError(f"{path} is no {kind}: {image} of {entry['method']} lacks numbers")
    return content


def _empty(name: str) -> dict[str, Any]:
    return {"set": name, "columns": list(COLUMNS), "tv": {}, "results": [], "timing": []}


def _opened(path: Path, name: str) -> dict[str, Any]:
    """The file to go on with, or an empty one. Raises ValueError if it is about other images."""
    if not path.is_file():
        return _empty(name)
    content = load(path)
    if content["set"] != name:
        raise ValueError(f"{path} is about {content['set']}, not {name}: choose another --out")
    return content


def stale(entry: Mapping[str, Any], method: Method) -> bool:
    """Whether an entry of the file was made with other settings than those that the method has now."""
    return entry["settings"] != files.encode(method.settings)


def _known(content: Mapping[str, Any], task: Task, method: Method) -> set[tuple[str, int]]:
    """The (image, seed) that need not be run again."""
    entries = [e for e in content["results"] if (e["method"], e["task"]) == (method.name, str(task))]
    return {(image, v[0]) for e in entries if not stale(e, method) for image, v in e["images"].items()}


def _add(path: Path, name: str, method: Method, result: Result, provenance: dict[str, Any]) -> None:
    """Add one result, atomically; what it makes obsolete goes."""
    content = _opened(path, name)
    same = lambda e: (e["method"], e["task"]) == (result.method, result.task)  # noqa: E731
    content["results"] = [e for e in content["results"] if not (same(e) and stale(e, method))]
    for entry in filter(same, content["results"]):
        entry["images"].pop(result.image, None)
    entry = {
        "method": result.method,
        "task": result.task,
        "parameters": method.parameters,
        "settings": files.encode(method.settings),
        "provenance": provenance,
    }
    fitting = [e for e in content["results"] if {k: v for k, v in e.items() if k != "images"} == entry]
    if not fitting:
        fitting = [entry | {"images": {}}]
        content["results"] += fitting
    numbers = [round(v, 5) if isinstance(v := getattr(result, column), float) else v for column in COLUMNS]
    fitting[0]["images"][result.image] = numbers
    content["results"] = [e for e in content["results"] if e["images"]]
    files.write_text(path, files.dumps(content))


def provenance() -> dict[str, Any]:
    """What computed a result: revision, machine, versions, and how many threads."""
    packages = ("torch", "numpy", "scipy", "scikit-image", "bm3d", "bm4d")
    return {
        "revision": card.revision(),
        "machine": card.machine(torch.device("cpu")),
        "software": ", ".join([f"gnclib {__version__}", *filter(None, map(_version, packages))]),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
    }


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package).split('+')[0]}"
    except importlib.metadata.PackageNotFoundError:
        return ""


# what is run -------------------------------------------------------------------------------------------------------


def tuned(path: Path, name: str, tasks: Iterable[Task], *, again: bool = False) -> dict[str, float]:
    """The weight of TV for each denoising task: task -> weight. Recorded in the file; what is missing is taken from the
    shipped file or else (or always, with ``again``) tuned on every 20th training image."""
    content = _opened(path, name)
    shipped = load(SHIPPED)["tv"] if SHIPPED.is_file() else {}
    images = None
    for task in tasks:
        if task.kind != "denoise" or (str(task) in content["tv"] and not again):
            continue
        record = shipped.get(str(task))
        if record is None or again:
            if images is None:
                images = dict(list(data.training_images().items())[::TUNING_STEP])
            record = field.tune_tv(images, task.sigma) | {"on": sorted(images), "provenance": provenance()}
        content["tv"][str(task)] = record
        files.write_text(path, files.dumps(content))
    return {task: record["weight"] for task, record in content["tv"].items()}


def _run(method: Method, measured: Denoising | Inpainting) -> tuple[Tensor, int | None, float, float]:
    """(x, evaluations, wall seconds, seconds of the processor)."""
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        x, evaluations = method.solve(measured)
    return x, evaluations, time.perf_counter() - wall, time.process_time() - cpu


def compare(
    path: str | Path,
    images: Mapping[str, Tensor],
    name: str,
    tasks: Iterable[Task] = TASKS,
    only: Iterable[str] = (),
) -> Iterator[Result]:
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
    _opened(path, name)
    chosen(tasks, only, dict.fromkeys(map(str, tasks), 1.0))  # mistakes show before TV is tuned
    about = provenance()
    for task, made in chosen(tasks, only, tuned(path, name, tasks if not only or "TV" in only else [])):
        content = _opened(path, name)
        known = {method.name: _known(content, task, method) for method in made}
        for k, (image, x) in enumerate(images.items()):
            missing = [method for method in made if (image, k) not in known[method.name]]
            for method in missing:
                measured = task.measure(x, torch.Generator().manual_seed(k))
                y, evaluations, wall, cpu = _run(method, measured)
                quality = psnr(y, x).item(), ssim(y, x).item()
                result = Result(method.name, str(task), image, k, *quality, wall, cpu, evaluations)
                _add(path, name, method, result, about)
                yield result


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
    _opened(path, name)
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
                    _, evaluations, seconds, processor = _run(method, measured)
                    taken[str(task)][method.name] = evaluations
                    if k >= 0:  # the small one was to warm up
                        wall[str(task)].setdefault(method.name, []).append(round(seconds, 4))
                        cpu[str(task)].setdefault(method.name, []).append(round(processor, 4))
    content = _opened(path, name)
    run = {
        "reference": str(REFERENCE),
        "images": list(images),
        "cpu": cpu,
        "wall": wall,
        "evaluations": taken,
        "provenance": provenance(),
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
