"""Students' copies, instructor's copies and an nbgrader course, all made from one source.

The source notebooks in ``notebooks/exercises/source`` hold everything: text, stubs, solutions, checks, and remarks for
the instructor. In them

* a *solution cell* (nbgrader's ``solution``, grade id ``exercise-1-2``) has its solution between the lines
  ``### BEGIN SOLUTION`` and ``### END SOLUTION``; a student finds ``raise NotImplementedError("exercise 1.2")`` there;
* the *check cell* behind it (nbgrader's ``grade``, grade id ``check-1-2``) is ``check("1.2", function)``;
* cells tagged ``instructor`` are not for students, and the outputs of cells tagged ``widget`` are not stored, because
  sliders live only as long as their kernel.

`gnclib.course.sources` says in words where a source breaks these rules or disagrees with the exercises.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path

from nbformat import NotebookNode

from gnclib.io import write_text
from gnclib.suite import notebooks

__all__ = [
    "CourseError",
    "folder",
    "for_nbgrader",
    "lesson",
    "number",
    "read",
    "sources",
    "student",
    "unsolved",
    "write_executed",
    "write_nbgrader",
]

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
CONFIG = '''\
"""nbgrader's settings for the course, written by `gnc course --nbgrader`."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "gnclib"
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("to do")'}
c.Execute.timeout = 600  # seconds per cell
c.OverwriteCells.add_missing_cells = True  # a check that was deleted counts as not passed, not as not there
'''
# nbgrader gives nothing to a cell that writes to stderr, and takes the number that a cell shows as its points
GRADED = """\
import contextlib
import io

from gnclib.course import check

with contextlib.redirect_stderr(io.StringIO()):  # a warning must not cost points
    points = {call}
points"""


class CourseError(RuntimeError):
    """The source or a copy of it is not as it should be; the message has one line for each thing that is wrong."""


def folder() -> Path:
    """``notebooks/exercises`` of the clone."""
    return Path(__file__).parents[2] / "notebooks" / "exercises"


def sources(only: Iterable[str] = (), where: Path | None = None) -> dict[str, Path]:
    """The source notebooks by name; `only` chooses some, by name or by the number of the lesson.

    Raises
    ------
    FileNotFoundError
        There are none.
    ValueError
        An unknown name in `only`.
    """
    found = notebooks.find((where or folder()) / "source")
    for word in only:
        if not any(word in (name, lesson(name)) for name in found):
            raise ValueError(f"there is no lesson {word!r}; there are {', '.join(found)}")
    return {name: path for name, path in found.items() if not only or {name, lesson(name)} & set(only)}


def read(path: Path) -> NotebookNode:
    """A notebook; CourseError if the file is none."""
    try:
        return notebooks.load(path)
    except notebooks.NotebookError as error:
        raise CourseError(str(error)) from None


def lesson(name: str) -> str:
    """The number of the lesson that a notebook belongs to: "1" for 1_mixtures."""
    return name.split("_")[0]


def number(cell: NotebookNode, kind: str) -> str | None:
    """The exercise that a cell belongs to, "1.2" for ``exercise-1-2``; "" if the grade id is no such thing.

    None for a cell of another kind; `kind` is nbgrader's "solution" or "grade".
    """
    marked = cell.metadata.get("nbgrader", {})
    if not marked.get(kind):
        return None
    prefix = {"solution": "exercise", "grade": "check"}[kind]
    found = re.fullmatch(rf"{prefix}-(\d+)-(\d+)", marked.get("grade_id", ""))
    return ".".join(found.groups()) if found else ""


def unsolved(code: str, id: str) -> str:
    """The code with ``raise NotImplementedError`` in place of every solution.

    Raises
    ------
    CourseError
        Markers that are missing, not in pairs, or not exactly as they should be.
    """
    kept, inside, count = [], False, 0
    for number, line in enumerate(code.splitlines(), 1):
        mark = line.strip()
        if mark not in (BEGIN, END) and ("BEGIN SOLUTION" in mark or "END SOLUTION" in mark):
            raise CourseError(f"line {number}, {mark!r}, should be {BEGIN!r} or {END!r} alone on its line")
        if mark in (BEGIN, END):
            if inside == (mark == BEGIN):
                raise CourseError(f"line {number}, {mark!r}, has no partner")
            inside = not inside
            if inside:
                kept.append(f'{line[: line.index("#")]}raise NotImplementedError("exercise {id}")')
                count += 1
        elif not inside:
            kept.append(line)
    if inside:
        raise CourseError(f"the last {BEGIN!r} has no partner")
    if not count:
        raise CourseError(f"there is no {BEGIN!r} in it")
    return "\n".join(kept)


def _has_tag(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _without_instructor(source: NotebookNode) -> NotebookNode:
    node = deepcopy(source)
    node.cells = [cell for cell in node.cells if not _has_tag(cell, "instructor")]
    return node


def student(source: NotebookNode) -> NotebookNode:
    """The student's copy: nothing for the instructor, no solutions, all else untouched; not executed yet."""
    node = _without_instructor(source)
    for cell in node.cells:
        if (id := number(cell, "solution")) is not None:
            cell.source = unsolved(cell.source, id)
    return node


def for_nbgrader(source: NotebookNode) -> NotebookNode:
    """nbgrader's source: solutions inside (nbgrader clears them), checks that show the points and nothing else."""
    node = _without_instructor(source)
    for cell in node.cells:
        if number(cell, "grade"):
            cell.source = GRADED.format(call=cell.source)
    return node


def write_executed(node: NotebookNode, path: Path) -> None:
    """Run a copy, clean it, and write it in one step.

    Raises
    ------
    NotebookError
        A cell failed; nothing is written.
    """
    asyncio.run(notebooks.execute(node, path.name))
    for cell in node.cells:
        if _has_tag(cell, "widget"):
            cell.outputs = []
    notebooks.write(node, path)


def write_nbgrader(nodes: Mapping[str, NotebookNode], out: Path) -> list[Path]:
    """Write an nbgrader course: ``source/lessonN/NAME.ipynb`` and, if there is none yet, ``nbgrader_config.py``.

    Parameters
    ----------
    nodes : mapping
        The source notebooks by name.
    out : Path
        Folder of the course.

    Returns
    -------
    list of Path
        The files written.
    """
    written = []
    for name, source in nodes.items():
        path = out / "source" / f"lesson{lesson(name)}" / f"{name}.ipynb"
        written.append(notebooks.write(for_nbgrader(source), path))
    if not (out / "nbgrader_config.py").exists():
        written.append(write_text(out / "nbgrader_config.py", CONFIG))
    return written
