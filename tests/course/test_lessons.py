"""The exercises: solutions in the source pass, plausible wrong solutions are caught and told what is wrong."""

import importlib
import re
from pathlib import Path

import matplotlib
import nbformat
import pytest

from gnclib import course as exercises

matplotlib.use("Agg")
SOURCE = Path(__file__).parents[2] / "notebooks" / "exercises" / "source"
LESSONS = sorted({item.id.split(".")[0] for item in exercises.EXERCISES.values()})
WRONG = {
    id: entries
    for lesson in LESSONS
    for id, entries in importlib.import_module(f"tests.course.wrong_solutions.lesson{lesson}").WRONG.items()
}
CASES = [(id, k) for id, entries in WRONG.items() for k in range(len(entries))]


def test_every_exercise_has_at_least_four_wrong_solutions():
    assert WRONG.keys() == exercises.EXERCISES.keys()
    for id, entries in WRONG.items():
        assert len({message for _, message in entries}) >= 4, f"{id}: four different messages are wanted"


@pytest.mark.parametrize(("id", "k"), CASES)
def test_wrong_solutions_are_caught_and_explained(id, k):
    function, message = WRONG[id][k]
    verdict = exercises.examine(exercises.exercise(id), function)
    assert verdict.status == "not yet", f"{id}: a wrong solution ({message}) was taken for {verdict.status}"
    assert re.search(message, verdict.message), f"{id}: told {verdict.message!r}, expected {message!r}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib about tensors
@pytest.mark.parametrize("lesson", LESSONS)
def test_the_solutions_of_the_source_are_right(lesson, capsys, monkeypatch):
    """All code cells of the source run in order; every exercise of the lesson is checked and earns all its points."""
    (path,) = SOURCE.glob(f"{lesson}_*.ipynb")
    monkeypatch.setattr(exercises, "_latest", {})
    namespace = {"__name__": "__main__"}
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code" and "widget" not in cell.metadata.get("tags", []):
            exec(compile(cell.source, path.name, "exec"), namespace)
    matplotlib.pyplot.close("all")
    wanted = {id for id in exercises.EXERCISES if id.startswith(f"{lesson}.")}
    right = {id for id, verdict in exercises._latest.items() if verdict.status == "right"}
    assert right == wanted, capsys.readouterr().out
