"""Results of methods on images in one resumable file: what is there is not computed again, what is out of date is.

*Stale results.* A result depends on more than the name of its method, on trained weights above all. Each entry of the
file has these settings, among them the SHA-256 of the weights. A result whose settings are no longer those of its
method is not counted: it is run again and then replaced. Code and machine are told apart, too: results of another
revision make an entry of their own.

A *task* is anything with a name, ``str(task)``, and ``measure(x, generator)``, which returns the data term of a
measurement of the clean image x; image k of a list is measured with a torch.Generator of seed k. A method sees that
data term and nothing of the clean image.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gnclib.images.metrics import psnr, ssim
from gnclib.io import files, reading
from gnclib.io import provenance as origin
from gnclib.restore.flow import DataTerm

__all__ = [
    "COLUMNS",
    "Method",
    "Result",
    "Task",
    "empty",
    "fill",
    "load",
    "opened",
    "provenance",
    "run",
    "stale",
]

#: what the numbers of an image are
COLUMNS = ("seed", "psnr", "ssim", "wall", "cpu", "evaluations")
#: what computed something, see :func:`provenance`
ABOUT = {"revision": str, "machine": str, "software": str, "OMP_NUM_THREADS": str}
_SHAPE = {
    "set": str,
    "columns": [str],
    "results": [
        {
            "method": str,
            "task": str,
            "parameters": (int, None),
            "settings": dict,
            "provenance": ABOUT,
            "images": {str: [(float, None)]},
        }
    ],
}


class Task(Protocol):
    """An inverse problem with a name."""

    def measure(self, x: Tensor, generator: torch.Generator) -> DataTerm: ...


@dataclass(frozen=True)
class Method:
    """A method, ready for the measurements of one task.

    Attributes:
        name: as in the table.
        solve: data term of a measurement -> (x, how many gradients of an energy that took, None where it has none).
        settings: what its results depend on, as JSON data.
        parameters: how many numbers were learned or tuned for it, None where they were designed.
    """

    name: str
    solve: Callable[[DataTerm], tuple[Tensor, int | None]]
    settings: Mapping[str, Any]
    parameters: int | None = None


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


def load(path: str | Path, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of a result file: "set", "columns", "results" and ``more``, name -> shape (`gnclib.io.reading`).

    Raises:
        FileNotFoundError: there is none. ValueError: it is no result file.
    """
    kind = "file of comparisons"
    content = reading.read_json(path, kind, {**_SHAPE, **(more or {})})
    if content["columns"] != list(COLUMNS):
        raise ValueError(f"{path} is no {kind}: its columns must be {', '.join(COLUMNS)}")
    for entry in content["results"]:
        for image, numbers in entry["images"].items():
            whole = len(numbers) == len(COLUMNS) and isinstance(numbers[0], int)
            if not whole or None in numbers[:-1] or isinstance(numbers[-1], float):
                raise ValueError(f"{path} is no {kind}: {image} of {entry['method']} lacks numbers")
    return content


def empty(name: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A file without results about the set of images ``name``; ``more`` is as for :func:`load`."""
    return {
        "set": name,
        "columns": list(COLUMNS),
        **{key: type(shape)() for key, shape in (more or {}).items()},
        "results": [],
    }


def opened(path: Path, name: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The file to go on with, or an empty one. Raises ValueError if it is about other images."""
    if not path.is_file():
        return empty(name, more)
    content = load(path, more)
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


def _add(content: dict[str, Any], method: Method, result: Result, about: dict[str, Any]) -> None:
    """Add one result; what it makes obsolete goes."""
    same = lambda e: (e["method"], e["task"]) == (result.method, result.task)  # noqa: E731
    content["results"] = [e for e in content["results"] if not (same(e) and stale(e, method))]
    for entry in filter(same, content["results"]):
        entry["images"].pop(result.image, None)
    entry = {
        "method": result.method,
        "task": result.task,
        "parameters": method.parameters,
        "settings": files.encode(method.settings),
        "provenance": about,
    }
    fitting = [e for e in content["results"] if {k: v for k, v in e.items() if k != "images"} == entry]
    if not fitting:
        fitting = [entry | {"images": {}}]
        content["results"] += fitting
    numbers = [round(v, 5) if isinstance(v := getattr(result, column), float) else v for column in COLUMNS]
    fitting[0]["images"][result.image] = numbers
    content["results"] = [e for e in content["results"] if e["images"]]


def run(method: Method, measured: DataTerm) -> tuple[Tensor, int | None, float, float]:
    """(x, evaluations, wall seconds, seconds of the processor)."""
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        x, evaluations = method.solve(measured)
    return x, evaluations, time.perf_counter() - wall, time.process_time() - cpu


def fill(
    path: Path,
    images: Mapping[str, Tensor],
    name: str,
    jobs: Iterable[tuple[Task, list[Method]]],
    more: Mapping[str, Any] | None = None,
) -> Iterator[Result]:
    """Run what is missing in the file: task by task, image by image, method by method; yield results as they are added.

    Args:
        path: the result file; made where it is missing. Each result is added atomically.
        images: id -> (1, 1, H, W) in [0, 1]; image k is measured with seed k.
        name: of the set of images, which the file must be about.
        jobs: tasks with their methods.
        more: what else the file holds, see :func:`empty`.

    Raises:
        ValueError: a file that is none or is about other images.
    """
    about = provenance()
    for task, methods in jobs:
        content = opened(path, name, more)
        known = {method.name: _known(content, task, method) for method in methods}
        for k, (image, x) in enumerate(images.items()):
            for method in [method for method in methods if (image, k) not in known[method.name]]:
                measured = task.measure(x, torch.Generator().manual_seed(k))
                y, evaluations, wall, cpu = run(method, measured)
                quality = psnr(y, x).item(), ssim(y, x).item()
                result = Result(method.name, str(task), image, k, *quality, wall, cpu, evaluations)
                content = opened(path, name, more)
                _add(content, method, result, about)
                files.write_text(path, files.dumps(content))
                yield result


def provenance() -> dict[str, Any]:
    """What computed a result: revision, machine, versions, and how many threads."""
    return {
        "revision": origin.revision(),
        "machine": origin.machine(),
        "software": origin.software("torch", "numpy", "scipy", "scikit-image", "bm3d", "bm4d"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
    }
