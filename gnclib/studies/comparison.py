"""Methods side by side: what a method is, and what is kept of its result for one image.

A *task* has a name, ``str(task)``, and ``measure(x, generator)``, which returns the data term of a measurement of the
clean image x. Image k of a set is measured with a torch.Generator of seed k. A method sees that data term and nothing
of the clean image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from gnclib.images import psnr, ssim
from gnclib.io import Job, Record, Row, rounded
from gnclib.restore import DataTerm

#: packages whose versions belong to the origin of a result
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "bm3d", "bm4d")


class Task(Protocol):
    """An inverse problem with a name."""

    def measure(self, x: Tensor, generator: torch.Generator) -> DataTerm: ...


@dataclass(frozen=True)
class Method:
    """A method, ready for the measurements of one task.

    Attributes
    ----------
    name
        As in the table.
    solve
        Data term of a measurement -> (x, how many gradients of an energy that took; None where there is no energy).
    settings
        What its results depend on, as JSON data.
    parameters
        How many numbers were learned or tuned for it, None where they were designed.
    code
        Version of the method, see :class:`gnclib.io.table.Job`.
    """

    name: str
    solve: Callable[[DataTerm], tuple[Tensor, int | None]]
    settings: Mapping[str, Any]
    parameters: int | None = None
    code: int = 1


class Images(Record):
    """The set of images that a file of results is about."""

    set: str


class Quality(Row):
    """The result of a method for one image: PSNR in dB with data range 1, SSIM, nothing clipped.

    Beside them the seed of the measurement, the seconds of the clock and of the processor, and the number of gradients
    of an energy, None where there is none.
    """

    by: ClassVar[tuple[str, ...]] = ("method", "task")
    key: ClassVar[tuple[str, ...]] = ("image",)
    method: str
    task: str
    image: str
    seed: int
    psnr: rounded(5)
    ssim: rounded(5)
    wall: rounded(5)
    cpu: rounded(5)
    evaluations: int | None


def solved(method: Method, measured: DataTerm) -> tuple[Tensor, dict[str, Any]]:
    """The image that a method finds, and the columns "wall", "cpu" and "evaluations"."""
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        x, evaluations = method.solve(measured)
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return x, spent | {"evaluations": evaluations}


def _judged(method: Method, task: Task, x: Tensor, seed: int) -> dict[str, Any]:
    """The values of a :class:`Quality`."""
    found, spent = solved(method, task.measure(x, torch.Generator().manual_seed(seed)))
    return {"psnr": psnr(found, x).item(), "ssim": ssim(found, x).item()} | spent


def jobs(task: Task, methods: Iterable[Method], images: Mapping[str, Tensor]) -> Iterator[Job]:
    """The rows of some methods for one task, image by image: name -> (1, 1, H, W) in [0, 1], image k with seed k."""
    methods = list(methods)
    for seed, (image, x) in enumerate(images.items()):
        for method in methods:
            yield Job(
                {"method": method.name, "task": str(task), "image": image, "seed": seed},
                {**method.settings, "parameters": method.parameters},
                partial(_judged, method, task, x, seed),
                method.code,
            )


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    head = list(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
