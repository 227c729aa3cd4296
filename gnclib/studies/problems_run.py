"""The inverse problems of `gnclib.studies.problems` on BSDS68, tuned on training images first (``gnc problems``).

The file is one of `gnclib.studies.results` with "tuned" beside the results: for each problem and method the
grid that was tried
and its PSNR, in the order of the grid, so that a reader sees how much the choice matters. The prior is a method's first
word: "R1 gnc", "R3 gnc"; "least squares" and "TV" have none. A tuning made with other weights is made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnclib.foe import WEIGHTS, FieldsOfExperts
from gnclib.images import data
from gnclib.images.data import middle
from gnclib.images.metrics import psnr
from gnclib.io import files
from gnclib.io.files import sha256
from gnclib.restore.flow import Prior, last
from gnclib.studies import results
from gnclib.studies.problems import METHODS, PROBLEMS, Problem, grid, solve
from gnclib.studies.problems import SIDE as IMAGE_SIDE

__all__ = ["NAMES", "SHIPPED", "Tuning", "images", "load", "method", "restore", "table", "tune"]

#: the results that come with the package
SHIPPED = Path(__file__).with_name("problems.json")
#: the methods by name
NAMES = (
    "least squares",
    "TV",
    *(f"{prior} {m}" for prior in ("R1", "R3") for m in METHODS if m not in ("least squares", "TV")),
)
#: how many images of BSDS68, and every so many-th training image with a square of so many pixels to tune on
COUNT, STEP, SIDE = 12, 67, 96
_TUNED = {
    "best": dict,
    "grid": [dict],
    "psnr": [float],
    "on": [str],
    "weights?": str,
    "provenance": results.ABOUT,
}
MORE = {"tuned": {str: {str: _TUNED}}}

Tuning = dict[str, Any]


def load(path: str | Path = SHIPPED) -> dict[str, Any]:
    """The content of a result file: "set", "columns", "tuned", "results". Raises as `results.load`."""
    return results.load(path, MORE)


def images() -> dict[str, Tensor]:
    """The squares in the middle of the first 12 images of BSDS68: id -> (1, 1, 192, 192)."""
    return {name: middle(x, IMAGE_SIDE) for name, x in list(data.bsds68().items())[:COUNT]}


def _parts(name: str) -> tuple[str | None, str]:
    """(prior, method) of a name of :data:`NAMES`."""
    if name not in NAMES:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(NAMES)}")
    prior, _, rest = name.partition(" ")
    return (prior, rest) if rest in METHODS else (None, name)


def _prior(name: str | None) -> tuple[Prior | None, dict[str, str], int]:
    """The energy, the settings it stands for, and the number of its parameters."""
    if name is None:
        return None, {}, 0
    model = FieldsOfExperts.from_pretrained(name)
    return (
        model,
        {"weights": sha256(WEIGHTS / name / "model.safetensors")},
        sum(p.numel() for p in model.parameters()),
    )


def tune(problem: Problem, name: str, clean: Mapping[str, Tensor]) -> Tuning:
    """The settings of :func:`gnclib.studies.problems.grid` with the best mean PSNR on training images.

    clean: id -> (1, 1, H, W), all of one size; image k is measured with seed k. None of val of BSDS500.

    Returns:
        JSON data: "best" (settings), "grid" (settings, one object each), "psnr" (in dB, in the order of the grid),
        "on" (ids), and "weights" (SHA-256) for methods with a prior.

    Raises:
        ValueError: no images, or some that must not be trained on; unknown method.
    """
    data.refuse_validation(clean)
    if not clean:
        raise ValueError("there are no images to tune on")
    prior_name, kind = _parts(name)
    prior, settings, _ = _prior(prior_name)
    tried = (
        grid(kind, *(v**2 for v in (prior.config.sigma_min, prior.config.sigma_max)))
        if prior
        else grid(kind, 0, 0)
    )
    found = [0.0] * len(tried)
    for k, x in enumerate(clean.values()):
        measured = problem.measure(x, torch.Generator().manual_seed(k))
        for i, choice in enumerate(tried):
            found[i] += psnr(last(solve(kind, measured, choice, prior)).x, x).item() / len(clean)
    best = max(range(len(tried)), key=found.__getitem__)
    return {
        "best": tried[best],
        "grid": tried,
        "psnr": [round(v, 3) for v in found],
        "on": list(clean),
    } | settings


def method(name: str, tuning: Tuning) -> results.Method:
    """A method of :data:`NAMES` with its tuned settings."""
    prior_name, kind = _parts(name)
    prior, settings, parameters = _prior(prior_name)

    def restored(measured) -> tuple[Tensor, int | None]:
        state = last(solve(kind, measured, tuning["best"], prior))
        return state.x, state.step if prior is not None else None

    return results.Method(name, restored, settings | tuning["best"], parameters + len(tuning["best"]))


def _tuned(path: Path, name: str, problem: Problem, method_name: str) -> Tuning:
    """From the file, or made now and recorded in it."""
    content = results.opened(path, name, MORE)
    known = content["tuned"].get(str(problem), {}).get(method_name)
    weights = _prior(_parts(method_name)[0])[1]
    if known is None or {k: known.get(k) for k in weights} != weights:
        training = {k: middle(x, SIDE) for k, x in list(data.training_images().items())[::STEP]}
        known = tune(problem, method_name, training) | {"provenance": results.provenance()}
        content = results.opened(path, name, MORE)  # anew: tuning takes a while
        content["tuned"].setdefault(str(problem), {})[method_name] = known
        files.write_text(path, files.dumps(content))
    return known


def restore(
    path: str | Path,
    clean: Mapping[str, Tensor],
    name: str,
    problems: Iterable[str] = tuple(PROBLEMS),
    only: Iterable[str] = (),
) -> Iterator[results.Result]:
    """Run what is missing in the file, tuning first; yield results as they are added (`gnclib.studies.results.fill`).

    Args:
        path: the result file; made where it is missing.
        clean: id -> (1, 1, H, W) in [0, 1]; image k is measured with seed k. name: of the set.
        problems, only: which problems, and which methods (all).

    Raises:
        ValueError: no images, an unknown problem or method, a file that is none or is about other images.
    """
    path, problems = Path(path), list(problems)
    names = list(only) or list(NAMES)
    for wanted in names:
        _parts(wanted)
    for problem in problems:
        if problem not in PROBLEMS:
            raise ValueError(f"unknown problem {problem!r}: choose one of {', '.join(PROBLEMS)}")
    if not clean:
        raise ValueError("there are no images to restore")
    results.opened(path, name, MORE)
    for problem in (PROBLEMS[p] for p in problems):
        for wanted in names:
            made = method(wanted, _tuned(path, name, problem, wanted))
            yield from results.fill(path, clean, name, [(problem, [made])], MORE)


def table(content: Mapping[str, Any]) -> str:
    """Mean PSNR in dB by method and problem as markdown, with the number of gradients; "-" was not measured.

    Raises ValueError if there is no result in it.
    """
    column = {name: k for k, name in enumerate(content["columns"])}
    cells: dict[tuple[str, str], list[list]] = {}
    for entry in content["results"]:
        cells.setdefault((entry["method"], entry["task"]), []).extend(entry["images"].values())
    if not cells:
        raise ValueError("there are no results to make a table of")
    tasks = [task for task in PROBLEMS if any(t == task for _, t in cells)]
    lines = [
        "| method | gradients | " + " | ".join(PROBLEMS[task].title for task in tasks) + " |",
        "| --- " * (len(tasks) + 2) + "|",
    ]
    for name in (n for n in NAMES if any(m == n for m, _ in cells)):
        rows = [cells.get((name, task), []) for task in tasks]
        steps = {v[column["evaluations"]] for row in rows for v in row}
        count = ", ".join("-" if s is None else str(s) for s in sorted(steps, key=str))
        means = [f"{sum(v[column['psnr']] for v in row) / len(row):.2f}" if row else "-" for row in rows]
        lines.append("| " + " | ".join([name, count, *means]) + " |")
    return "\n".join(lines)
