"""The exercises: right solutions pass and the pictures run with them, wrong ones are caught and told what is wrong."""

import ast
import functools
import hashlib
import importlib
import io
import math
import re
import warnings
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot
import nbformat
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from gnclib import load_prior
from gnclib.course import EXERCISES, engine, examine, exercise
from gnclib.course.copies import PAGE, marked
from gnclib.foe import FieldsOfExperts
from gnclib.gmm import empirical, figure1_mixture, threshold
from gnclib.images import data
from gnclib.images.metrics import psnr
from gnclib.restore.flow import last, proximal_gradient
from gnclib.restore.operators import Inpainting
from gnclib.suite import plots
from tests.suite.test_prose import IN_CODE, unexplained

matplotlib.use("Agg")
SOURCE = Path(__file__).parents[2] / "notebooks" / "exercises" / "source"
LESSONS = sorted({id.split(".")[0] for id in EXERCISES})


def table(kind: str) -> dict[str, list]:
    """The solutions of a kind, WRONG or RIGHT, of all lessons by exercise."""
    modules = (importlib.import_module(f"tests.course.{kind}_solutions.lesson{lesson}") for lesson in LESSONS)
    return {id: entries for module in modules for id, entries in getattr(module, kind.upper()).items()}


WRONG, RIGHT = table("wrong"), table("right")


def test_every_exercise_has_three_right_solutions_and_six_wrong_ones():
    assert WRONG.keys() == RIGHT.keys() == EXERCISES.keys()
    for id, entries in WRONG.items():
        assert len({message for _, message in entries}) >= 6, f"{id}: six different messages are wanted"
        assert len(set(RIGHT[id])) >= 3, f"{id}: a loop, all at once, and another dtype on the way are wanted"


class Dtypes(TorchFunctionMode):
    """Notes the dtypes of all floating-point tensors that torch hands out while it is on, and "numpy" for arrays."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **options or {})
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, np.ndarray):
                self.seen.add("numpy")
            elif isinstance(part, torch.Tensor) and part.dtype.is_floating_point:
                self.seen.add(part.dtype)
        return result


@pytest.mark.parametrize("id", EXERCISES)
def test_one_right_solution_at_least_goes_through_another_dtype(id, monkeypatch):
    seen, from_numpy = set(), torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: seen.add("numpy") or from_numpy(array))
    for function in RIGHT[id]:
        with Dtypes() as dtypes:
            function(*exercise(id).arguments(0))
        seen |= dtypes.seen
    assert seen - {torch.float64}
    if id in ("1.5", "1.6", "3.1", "3.2"):  # numbers, which may be in any precision
        assert torch.float32 in seen


@pytest.mark.parametrize(("id", "k"), [(id, k) for id, entries in WRONG.items() for k in range(len(entries))])
def test_wrong_solutions_are_caught_and_explained(id, k):
    function, message = WRONG[id][k]
    verdict = examine(exercise(id), function)
    assert verdict.status == "not yet", f"{id}: a wrong solution ({message}) was taken for {verdict.status}"
    assert re.search(message, verdict.message), f"{id}: told {verdict.message!r}, expected {message!r}"


@pytest.mark.parametrize(("id", "k"), [(id, k) for id, entries in RIGHT.items() for k in range(len(entries))])
def test_right_solutions_are_right(id, k):
    verdict = examine(exercise(id), RIGHT[id][k])
    assert verdict.status == "right", verdict.message


@pytest.mark.parametrize("id", EXERCISES)
def test_results_in_single_precision_are_right_or_called_so(id):
    """Numbers may be in any precision; arrays may not, and no other hint is given to them."""

    def cast(value):
        if isinstance(value, (tuple, list)):
            return tuple(map(cast, value))
        return torch.as_tensor(value, dtype=torch.float32).detach()

    verdict = examine(exercise(id), lambda *arguments: cast(RIGHT[id][0](*arguments)))
    truth = exercise(id).solution(*exercise(id).arguments(0))
    array = isinstance(truth, tuple) or (isinstance(truth, torch.Tensor) and truth.ndim)
    assert (verdict.status, verdict.message) == (("not yet", engine.SINGLE) if array else ("right", ""))


@pytest.mark.parametrize("id", ["4.3", "4.4", "4.5", "4.6", "6.2"])
def test_single_precision_on_the_way_is_told_where_it_costs_digits(id):
    """All that the function gets and gives is cast there and back."""

    def cast(value, dtype):
        if isinstance(value, torch.Tensor) and value.dtype.is_floating_point:
            return value.to(dtype)
        return called(value) if callable(value) else value

    def called(function):
        return lambda *arguments: cast(function(*[cast(a, torch.float64) for a in arguments]), torch.float32)

    def single(*arguments):
        return exercise(id).solution(*[cast(a, torch.float32) for a in arguments]).double()

    assert examine(exercise(id), single).message == engine.ROUNDED


@pytest.mark.parametrize("id", EXERCISES)
def test_every_hint_is_given_to_the_formulas_that_it_is_for(id):
    """No hint is hidden behind another one, and no draw is so poor that a wrong formula is right on it."""
    item = exercise(id)
    for hint, formulas in item.mistakes.items():
        for formula in formulas:
            verdict = examine(item, formula)
            assert verdict.status == "not yet", f"{id}: {hint}"
            assert verdict.message == hint


def in_another_form(id, function):
    """The function with results in other forms that its check accepts: lists, numbers as tensors and the other way."""

    def formed(value):
        if isinstance(value, (tuple, list)):
            return list(map(formed, value))
        if isinstance(value, torch.Tensor) and value.ndim:
            carried = torch.zeros((), dtype=value.dtype, requires_grad=exercise(id).keeps_graph)
            return value + carried
        return float(value) if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)

    def function_in_another_form(*arguments):
        return formed(function(*arguments))

    assert examine(exercise(id), function_in_another_form).status == "right"
    return function_in_another_form


def remembering(monkeypatch, owner, name):
    """Let a function of the library compute once what all solutions ask of it: results are kept by the arguments."""
    function, kept = getattr(owner, name), {}

    def content(value):
        if isinstance(value, torch.Tensor):
            return value.dtype, value.shape, content(value.numpy())
        if isinstance(value, np.ndarray):
            return hashlib.sha256(np.ascontiguousarray(value)).digest()
        return tuple(map(content, value)) if isinstance(value, tuple) else value

    def remembered(*arguments, **options):
        if any(isinstance(value, torch.Tensor) and value.requires_grad for value in arguments):
            return function(*arguments, **options)
        key = content(arguments), content(tuple(options.items()))
        if key not in kept:
            kept[key] = function(*arguments, **options)
        return deepcopy(kept[key])

    monkeypatch.setattr(owner, name, remembered)


class Run(NamedTuple):
    """What came of a lesson: its notebook, the figures of each code cell, all texts with numbers, exercises solved."""

    lesson: str
    node: nbformat.NotebookNode
    figures: list[int]
    said: str
    right: set[str]


def in_the_figures() -> list[str]:
    """Titles and legends of the figures that are open."""
    figures = [matplotlib.pyplot.figure(number) for number in matplotlib.pyplot.get_fignums()]
    axes = [ax for figure in figures for ax in figure.axes]
    legends = [label for ax in axes for label in ax.get_legend_handles_labels()[1]]
    return [figure.get_suptitle() for figure in figures] + [ax.get_title() for ax in axes] + legends


@pytest.fixture(scope="module", params=LESSONS)
def ran(request):
    """A lesson whose code cells ran in order; what comes after a check and uses its function ran with the unusual right
    solutions, too."""
    (path,) = SOURCE.glob(f"{request.param}_*.ipynb")
    node, namespace, checked = nbformat.read(path, 4), {"__name__": "__main__"}, {}
    figures, texts, printed = [], [], io.StringIO()
    matplotlib.pyplot.close("all")  # of other tests
    with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings(), redirect_stdout(printed):
        warnings.simplefilter("ignore", DeprecationWarning)  # matplotlib about tensors
        monkeypatch.setattr(engine, "_latest", {})
        monkeypatch.setenv(plots.HEADLESS, "1")
        for owner, name in ((FieldsOfExperts, "grad"), (FieldsOfExperts, "hvp"), (threshold, "_lowest")):
            remembering(monkeypatch, owner, name)
        for cell in node.cells:
            if cell.cell_type != "code":
                continue
            kind, id = marked(cell) or ("", "")
            if kind == "grade":
                checked[id] = ast.parse(cell.source).body[0].value.args[1].id
            code = compile(cell.source, path.name, "exec")
            if "solved(" in cell.source:
                used = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
                variants = {
                    id: [*RIGHT[id], in_another_form(id, RIGHT[id][0])]
                    for id, name in checked.items()
                    if name in used
                }
                for k in range(max(map(len, variants.values()), default=0)):
                    others = {checked[id]: found[k] for id, found in variants.items() if k < len(found)}
                    exec(code, namespace | others)
                    matplotlib.pyplot.close("all")
            exec(code, namespace)
            figures.append(len(matplotlib.pyplot.get_fignums()))
            texts += [cell.source, *in_the_figures()]
            matplotlib.pyplot.close("all")
        right = {id for id, verdict in engine._latest.items() if verdict.status == "right"}
    return Run(request.param, node, figures, "\n".join([*texts, printed.getvalue()]), right)


def test_the_source_runs_and_its_pictures_with_every_right_solution(ran):
    """All checks earn their points."""
    assert ran.right == {id for id in EXERCISES if id.startswith(f"{ran.lesson}.")}, ran.said


def of_a_row(n: int) -> float:
    """The threshold of n equally spaced points on [0, 1], over h / (4 pi), where h is their distance."""
    return (
        empirical(torch.linspace(0, 1, n, dtype=torch.float64)).convexity_threshold() * 4 * math.pi * (n - 1)
    )


def stuck() -> float:
    """PSNR of lesson 5's picture with missing pixels after 1800 steps at the smallest t."""
    clean = data.embedded()["camera"][..., 61:157, 184:280]
    known = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    term = Inpainting(torch.where(known, clean, 0.0), known)
    steps = proximal_gradient(R1, R1.config.sigma_min**2, term, term.start(), steps=1800)
    return psnr(last(steps).x, clean).item()


@functools.cache
def error_in_ring(k: int) -> float:
    """Mean squared error of lesson 4's face after one step at sigma = 0.5, of the pixels k from the border."""
    face = data.embedded()["astronaut"][..., 40:136, 176:272].double()
    y = data.add_noise(face, 0.5, 0)
    error = (y - 0.25 * load_prior("R1").double().grad(y, 0.25) - face)[0, 0].square()
    inside = error[k : 96 - k, k : 96 - k]
    return ((inside.sum() - inside[1:-1, 1:-1].sum()) / (4 * (len(inside) - 1))).item()


R1, MIXTURE = load_prior("R1"), figure1_mixture()
# Numbers in the prose that no cell prints, draws or sets: a function computes them, or a text says whose they are.
ELSEWHERE = {
    "1": {"3.14": lambda: of_a_row(2), "1.26": lambda: of_a_row(10)},
    "2": {
        "0.322": MIXTURE.convexity_threshold,
        "0.0016": lambda: MIXTURE.variances.min().item(),
        "1.55": lambda: (MIXTURE.means.max() - MIXTURE.means.min()).item(),
        "2.401": lambda: MIXTURE.theorem_bound((MIXTURE.means.min().item(), MIXTURE.means.max().item())),
        "0.06": lambda: MIXTURE.variances[(MIXTURE.means - 0.35).abs().argmin()].sqrt().item(),
    },
    "3": {"0.42": lambda: MIXTURE.convexity_threshold((-1.0, 1.0)) ** 0.5},
    "4": {
        "0.41": "the digits of 5/12 before its period",
        "98": "the quantiles of `feature_quantiles`, 1 and 99 %",
        "94": lambda: 100 * (1 - error_in_ring(0) / 0.25),
        "97": lambda: 100 * (1 - error_in_ring(4) / 0.25),
        "0.12": lambda: error_in_ring(0) ** 0.5,
        "0.09": lambda: error_in_ring(4) ** 0.5,
    },
    "5": {
        "0.006": lambda: 60 * R1.config.sigma_min**2,
        "2.55": lambda: 255 * R1.config.sigma_min,
        "6.7": stuck,
    },
    "6": {
        "1.645": lambda: torch.special.ndtri(torch.tensor(0.95)).item(),
        "3.5": lambda: (4 + 3) / 2,
        "1.1": "a question sets it",
    },
}


def test_every_number_in_the_prose_is_computed(ran):
    """Decimals, percentages and decibels agree with a number that the lesson prints, draws or sets, rounded alike."""
    prose = "\n".join(cell.source for cell in ran.node.cells if cell.cell_type == "markdown")
    known = set(map(float, IN_CODE.findall(ran.said)))
    assert unexplained(prose, known, ELSEWHERE.get(ran.lesson, {})) == []


def test_a_cell_says_what_is_seen_if_it_draws_a_picture(ran):
    code = [cell for cell in ran.node.cells if cell.cell_type == "code"]
    assert set(ran.figures) == {0, 1}
    for cell, figures in zip(code, ran.figures, strict=True):
        assert ("alt" in cell.metadata) == figures, cell.source


def test_the_texts_for_pictures_are_texts_and_the_copies_have_them():
    texts = []
    for path in sorted(SOURCE.glob("*.ipynb")):
        texts += [cell.metadata.alt for cell in nbformat.read(path, 4).cells if "alt" in cell.metadata]
        for cell in nbformat.read(SOURCE.parent / path.name, 4).cells:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    assert output.metadata["image/png"] == {"alt": cell.metadata.alt}
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert len(text) >= 30
        assert text.endswith(".")
        assert not set(text) & set('[]"<>')  # they would end the text in Markdown or HTML


@pytest.mark.parametrize("lesson", LESSONS)
def test_sliders_are_shown_to_people_only(lesson):
    (path,) = SOURCE.glob(f"{lesson}_*.ipynb")
    for cell in nbformat.read(path, 4).cells:
        if "ipywidgets" in cell.source:
            assert cell.source.startswith("if plots.sliders(")


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_lesson_begins_alike(lesson):
    (path,) = SOURCE.glob(f"{lesson}_*.ipynb")
    first = next(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    assert first.startswith("import math\n")
    assert "\ntorch.set_num_threads(1)" in first


def test_the_example_of_a_new_exercise_runs():
    (code,) = re.findall(
        r"```python\n(.*?)```", (SOURCE.parent / PAGE).read_text(encoding="utf-8"), re.DOTALL
    )
    exec(code, {})
