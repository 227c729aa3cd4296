"""What is compared, by name: the methods of the field and the schemes of this project, each ready for one problem.

A name is registered once, in :func:`methods`. What it makes is a :class:`Method`: a function of the data term of a
measurement, which says how many gradients of an energy it took, and the settings on which its results depend, the
SHA-256 of trained weights above all. By these settings `gnclib.studies.field_run` recognises results that are
out of date."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from torch import Tensor

from gnclib.foe import WEIGHTS
from gnclib.io.files import sha256
from gnclib.restore import schemes
from gnclib.restore.learned import Task
from gnclib.restore.operators import Denoising, Inpainting
from gnclib.studies import field
from gnclib.studies.results import Method

__all__ = ["PRIORS", "chosen", "methods"]

PRIORS = ("R1", "R2", "R3")


def methods(task: Task, weight: float | None = None) -> dict[str, Callable[[], Method]]:
    """Everything that can be run on a task: name -> what makes it, which loads what it needs.

    Learned and fine-tuned schedules are among them where the package has them. weight: that of TV for this task; it
    raises ValueError when it is made without.
    """
    if task.kind == "denoise":
        found = {"BM3D": partial(_bm3d, task), "TV": partial(_tv, weight)}
    else:
        found = {"biharmonic": _biharmonic}
    for prior in PRIORS:
        for scheme in schemes.SCHEMES:
            folder = {"learned": f"{prior}-{task}", "finetuned": f"{prior}-finetuned-{task}"}.get(scheme)
            if (scheme == "mmse" and task.kind != "denoise") or (
                folder and not (WEIGHTS / folder / "schedule.json").is_file()
            ):
                continue
            found[f"{prior} {scheme}"] = partial(_ours, prior, scheme, task)
    return found


def _bm3d(task: Task) -> Method:
    field.bm3d_package()  # says at once if it is missing
    return Method("BM3D", lambda measured: (field.bm3d(measured.y, task.sigma), None), {"profile": "np"})


def _tv(weight: float | None) -> Method:
    if weight is None:
        raise ValueError("TV needs its weight for this noise level: tune it first")
    return Method("TV", lambda measured: (field.tv(measured.y, weight), None), {"weight": weight}, 1)


def _biharmonic() -> Method:
    return Method("biharmonic", lambda measured: (field.biharmonic(measured.y, measured.mask), None), {})


def _ours(prior: str, name: str, task: Task) -> Method:
    scheme = schemes.load(name, prior, task)
    folder = WEIGHTS / {"finetuned": f"{prior}-finetuned-{task}"}.get(name, prior)
    settings = {"weights": sha256(folder / "model.safetensors")}
    parameters = sum(p.numel() for p in scheme.prior.parameters())
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


def chosen(
    tasks: Iterable[Task], only: Iterable[str], weights: Mapping[str, float]
) -> list[tuple[Task, list[Method]]]:
    """The methods for each task, made; all of them where ``only`` is empty.

    Raises ValueError for a method that none of the tasks has; otherwise as the methods do when they are made.
    """
    tasks, only = list(tasks), list(only)
    offered = {task: methods(task, weights.get(str(task))) for task in tasks}
    names = list(dict.fromkeys(name for found in offered.values() for name in found))
    for name in only:
        if name not in names:
            known = ", ".join(names)
            raise ValueError(f"there is no method {name!r} for these problems: choose one of {known}")
    return [(task, [make() for n, make in offered[task].items() if n in only or not only]) for task in tasks]
