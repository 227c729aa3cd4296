"""nbgrader grades the course: `make integrations` runs this where it is installed, elsewhere it is skipped.

One student hands in lesson 4 with a right, a wrong and an untouched exercise, one the copy from the repository.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from gnclib.course import EXERCISES
from gnclib.course import copies as course
from gnclib.suite import notebooks

NAME = "4_fields_of_experts"
IDS = ("4.1", "4.2", "4.3")
RIGHT_BUT_LOUD = """
    import sys
    print("something on stderr must not cost points", file=sys.stderr)
"""

if importlib.util.find_spec("nbgrader") is None:
    pytest.skip("nbgrader is not installed: make integrations", allow_module_level=True)


def nbgrader(folder: Path, *words: str) -> str:
    python_path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # nbgrader calls alembic
    environment = os.environ | {"PYTHONPATH": python_path, "PATH": tools, "JUPYTER_PREFER_ENV_PATH": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def essentials(path: Path) -> nbformat.NotebookNode:
    """The notebook without all that is not an import or one of three exercises: grading runs every cell."""
    node = notebooks.load(path)
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    wanted = {f"{kind}-{id.replace('.', '-')}" for kind in ("exercise", "check") for id in IDS}
    node.cells = [code[0], *(c for c in code if c.metadata.get("nbgrader", {}).get("grade_id") in wanted)]
    return node


def solve(node: nbformat.NotebookNode, id: str, solution: str) -> None:
    """Put a solution in place of the NotImplementedError."""
    (cell,) = [cell for cell in node.cells if course.marked(cell) == ("solution", id)]
    (line,) = [line for line in cell.source.splitlines() if "NotImplementedError" in line]
    cell.source = cell.source.replace(line, solution)


def test_nbgrader_gives_the_points_of_the_checks(tmp_path):
    source = notebooks.load(course.sources([NAME])[NAME])
    course.write_nbgrader({NAME: source}, tmp_path)
    made = tmp_path / "source" / "lesson4" / f"{NAME}.ipynb"
    nbformat.write(essentials(made), made)
    nbgrader(tmp_path, "generate_assignment", "lesson4", "--create")
    release = tmp_path / "release" / "lesson4" / f"{NAME}.ipynb"
    assert "BEGIN SOLUTION" not in release.read_text()

    solutions = {}
    for cell in source.cells:
        kind, id = course.marked(cell) or ("", "")
        if kind == "solution":
            solutions[id] = cell.source.split(course.BEGIN)[1].split(course.END)[0].strip("\n ")
    ada = notebooks.load(release)
    solve(ada, "4.1", RIGHT_BUT_LOUD + "    " + solutions["4.1"])
    solve(ada, "4.2", "    return u")
    bob = essentials(course.folder() / f"{NAME}.ipynb")  # without nbgrader's checksums
    solve(bob, "4.3", "    " + solutions["4.3"])
    for student, node in (("ada", ada), ("bob", bob)):
        path = tmp_path / "submitted" / student / "lesson4" / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(node, path)
    nbgrader(tmp_path, "autograde", "lesson4", "--create")

    from nbgrader.api import Gradebook

    scores = {}
    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}", "gnclib") as book:
        for student in ("ada", "bob"):
            submission = book.find_submission("lesson4", student)
            assert not submission.needs_manual_grade
            assert submission.max_score == sum(EXERCISES[id].heading.points for id in IDS)
            (notebook,) = submission.notebooks
            scores[student] = {grade.name: grade.score for grade in notebook.grades}
    points = {id: EXERCISES[id].heading.points for id in IDS}
    assert scores["ada"] == {"check-4-1": points["4.1"], "check-4-2": 0, "check-4-3": 0}
    assert scores["bob"] == {"check-4-1": 0, "check-4-2": 0, "check-4-3": points["4.3"]}
