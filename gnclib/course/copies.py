"""Notebooks of the course: students' copies, instructor's copies and nbgrader's, all made from one source.

The source notebooks in ``notebooks/exercises/source`` hold everything: text, stubs, solutions, checks, and remarks for
the instructor. In them

* each exercise of the lesson has, in order, a *solution cell* (nbgrader's ``solution``, grade id ``exercise-1-2``),
  whose solution stands between the lines ``### BEGIN SOLUTION`` and ``### END SOLUTION``; a student finds
  ``raise NotImplementedError("exercise 1.2")`` there;
* and a *check cell* (nbgrader's ``grade``, grade id ``check-1-2``), which is ``check("1.2", function)``;
* cells tagged ``instructor`` are not for students.

`problems` says in words where a source breaks these rules or disagrees with the exercises, `check` where a committed
copy is not what its source makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from itertools import groupby, zip_longest
from pathlib import Path

from nbformat import NotebookNode

from gnclib.course.engine import EXERCISES
from gnclib.course.lesson import Exercise, Heading
from gnclib.io import write_text
from gnclib.suite import notebooks
from gnclib.suite.notebooks import NotebookError

Exercises = Mapping[str, Exercise]
PAGE = "INSTRUCTOR.md"  # beside the copies; has the table of all exercises
STATEMENT = re.compile(r"\*\*Exercise (\d+\.\d+)\*\*\s*\((\d+) points?, (?:about )?(\d+) min")
KINDS = {"solution": "exercise", "grade": "check"}  # nbgrader's names, and how the grade ids begin
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SOLUTION = re.compile(rf"^( *){BEGIN}\n(?:.*\n)*? *{END}$", re.MULTILINE)
CONFIG = '''\
"""nbgrader's settings for the course, written by `gnc course --nbgrader`."""

import os

os.environ["GNC_HEADLESS"] = "1"  # no sliders where nobody moves them
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


def folder() -> Path:
    """``notebooks/exercises`` of the clone."""
    return Path(__file__).parents[2] / "notebooks" / "exercises"


def sources(only: Iterable[str] = (), where: Path | None = None) -> dict[str, Path]:
    """The source notebooks by name; `only` chooses some, by name or by the number of the lesson.

    Raises FileNotFoundError: there are none; ValueError: an unknown name in `only`.
    """
    found = notebooks.find((where or folder()) / "source")
    for word in only:
        if not any(word in (name, lesson(name)) for name in found):
            raise ValueError(f"there is no lesson {word!r}; there are {', '.join(found)}")
    return {name: path for name, path in found.items() if not only or {name, lesson(name)} & set(only)}


def lesson(name: str) -> str:
    """The number of the lesson that a notebook or an exercise belongs to: "1" for 1_mixtures and for 1.2."""
    return re.split(r"[_.]", name)[0]


def marked(cell: NotebookNode) -> tuple[str, str] | None:
    """Kind and exercise of a cell that nbgrader knows, ("grade", "1.2") for ``check-1-2``; None for other cells.

    Raises NotebookError: the grade id is no such thing.
    """
    data = cell.metadata.get("nbgrader", {})
    for kind, word in KINDS.items():
        if data.get(kind):
            if not (found := re.fullmatch(rf"{word}-(\d+)-(\d+)", data.get("grade_id", ""))):
                raise NotebookError(f"the grade id should be like {word}-1-2")
            return kind, ".".join(found.groups())
    return None


def unsolved(code: str, id: str) -> str:
    """The code with ``raise NotImplementedError`` in place of every solution.

    Raises NotebookError: markers that are missing, not in pairs, or not exactly as they should be.
    """
    kept, count = SOLUTION.subn(rf'\1raise NotImplementedError("exercise {id}")', code)
    if not count or not count == code.count("BEGIN SOLUTION") == code.count("END SOLUTION"):
        raise NotebookError(
            f"each solution stands between lines {BEGIN!r} and {END!r}; there are {count} such pairs"
        )
    return kept


def _copy(source: NotebookNode, kind: str, made: Callable[[str, str], str]) -> NotebookNode:
    """Without the cells for the instructor, and with what is made of code and exercise in the cells of a kind."""
    node = deepcopy(source)
    node.cells = [cell for cell in node.cells if "instructor" not in cell.metadata.get("tags", [])]
    for cell in node.cells:
        if (of := marked(cell)) and of[0] == kind:
            cell.source = made(cell.source, of[1])
    return node


def student(source: NotebookNode) -> NotebookNode:
    """The student's copy: nothing for the instructor, no solutions, all else untouched; not executed yet."""
    return _copy(source, "solution", unsolved)


def for_nbgrader(source: NotebookNode) -> NotebookNode:
    """nbgrader's source: solutions inside (nbgrader clears them), checks that show the points and nothing else."""
    return _copy(source, "grade", lambda code, _: GRADED.format(call=code))


def write_nbgrader(nodes: Mapping[str, NotebookNode], out: Path) -> list[Path]:
    """Write an nbgrader course: ``source/lessonN/NAME.ipynb`` and, if there is none yet, ``nbgrader_config.py``.

    `nodes` are the source notebooks by name, `out` is the folder of the course. Returns the files written.
    """
    written = []
    for name, source in nodes.items():
        path = out / "source" / f"lesson{lesson(name)}" / f"{name}.ipynb"
        written.append(notebooks.write(for_nbgrader(source), path))
    if not (out / "nbgrader_config.py").exists():
        written.append(write_text(out / "nbgrader_config.py", CONFIG))
    return written


# --- what is wrong with sources and copies ------------------------------------------------------------------------


def problems(source: NotebookNode, name: str, known: Exercises = EXERCISES) -> list[str]:
    """What is wrong with a source notebook, in words; [] if it keeps the rules and agrees with the exercises.

    Its name begins with the number of the lesson: 1_mixtures.
    """
    wrong, there, code = [], [], ""
    for index, cell in enumerate(source.cells):
        try:
            of = marked(cell)
            there += [of] if of else []
            if cell.cell_type == "markdown":
                _check_statement(cell.source, known)
            elif of and of[0] == "solution":
                code = cell.source
                unsolved(code, of[1])
            elif of:
                _check_check(cell, of[1], code, known)
            elif BEGIN in cell.source or END in cell.source:
                raise NotebookError("there is a solution in it, but it is not marked as a solution cell")
        except NotebookError as error:
            wrong.append(f"{name}, cell {index}: {error}")
    wanted = [(kind, id) for id in known if lesson(id) == lesson(name) for kind in KINDS]
    if there != wanted:
        has, wants = next(pair for pair in zip_longest(there, wanted) if pair[0] != pair[1])
        wrong.append(f"{name}: there is {_called(has)} where {_called(wants)} should be")
    return wrong


def _called(of: tuple[str, str] | None) -> str:
    return f"the {of[0]} cell of exercise {of[1]}" if of else "nothing"


def _check_statement(text: str, known: Exercises) -> None:
    """Points and minutes in the statement of an exercise are those of the exercise."""
    for id, points, minutes in STATEMENT.findall(text):
        heading = known[id].heading if id in known else None
        if heading and (int(points), int(minutes)) != (heading.points, heading.minutes):
            raise NotebookError(
                f"exercise {id} is announced with {points} points and {minutes} minutes, gnclib.course says "
                f"{heading.points} points and {heading.minutes} minutes"
            )


def _check_check(cell: NotebookNode, id: str, code: str, known: Exercises) -> None:
    """A check cell calls check with a function of the solution cell before it, for the points of the exercise."""
    call = re.fullmatch(rf'check\("{re.escape(id)}", (\w+)\)', cell.source)
    if not call:
        raise NotebookError(f'the check of exercise {id} should be exactly check("{id}", function)')
    if not re.search(rf"(?m)^def {call[1]}\(", code):
        raise NotebookError(
            f"exercise {id} checks {call[1]}, which the solution cell before it does not define"
        )
    points, right = cell.metadata.nbgrader.get("points"), known[id].heading.points if id in known else None
    if right not in (points, None):
        raise NotebookError(
            f"the check of exercise {id} is worth {points} points, gnclib.course says {right}"
        )


def check(where: Path | None = None, known: Exercises = EXERCISES) -> list[str]:
    """What is wrong with sources and committed students' copies, in words; [] if nothing is. Runs no kernel.

    `where` is the folder with the copies and with ``source/``, by default that of the clone.
    """
    where, wrong = where or folder(), []
    found = sources(where=where)
    for name, path in found.items():
        source = notebooks.load(path)
        of_source = problems(source, name, known)
        if any(cell.get("outputs") for cell in source.cells):
            of_source.append(f"{name}: the source should be stored without outputs")
        wrong += of_source or [
            f"{name}.ipynb: {text}; run 'gnc course --only {name}'"
            for text in _differences(student(source), where / f"{name}.ipynb")
        ]
    lessons = set(map(lesson, found))
    wrong += [
        f"exercise {id}: there is no notebook of its lesson" for id in known if lesson(id) not in lessons
    ]
    extra = {path.stem for path in where.glob("[0-9]*.ipynb")} - found.keys()
    wrong += [f"{name}.ipynb: it has no source" for name in sorted(extra)]
    page = where / PAGE
    if page.is_file() and table(known) not in page.read_text(encoding="utf-8"):
        wrong.append(
            f"{PAGE}: its table is not that of gnclib.course; put there what 'gnc course --table' prints"
        )
    return wrong


def _differences(wanted: NotebookNode, path: Path) -> list[str]:
    if not path.is_file():
        return ["it is missing"]
    there = notebooks.load(path)
    if len(there.cells) != len(wanted.cells):
        return [f"it has {len(there.cells)} cells, the source makes {len(wanted.cells)}"]
    wrong = notebooks.unfinished(there, path.read_bytes())
    for index, (a, b) in enumerate(zip(there.cells, wanted.cells, strict=True)):
        if (a.cell_type, a.source, a.metadata) != (b.cell_type, b.source, b.metadata):
            wrong.append(f"cell {index} is not what the source makes")
        elif (marked(a) or ("",))[0] == "grade" and " - to do" not in str(a.outputs):
            wrong.append(f"cell {index} is a check that does not say 'to do'")
    return wrong


def table(known: Exercises = EXERCISES) -> str:
    """All exercises with points and minutes, and the sums by lesson, as a Markdown table."""
    lines = ["| exercise | about | points | minutes |", "|---|---|---:|---:|"]
    headings = [item.heading for item in known.values()]
    for number, group in groupby(headings, key=lambda item: lesson(item.id)):
        items = list(group)
        lines += [f"| {item.id} | {item.title} | {item.points} | {item.minutes} |" for item in items]
        lines.append(_sum(f"lesson {number}", items))
    return "\n".join([*lines, _sum("the course", headings)])


def _sum(title: str, items: list[Heading]) -> str:
    points, minutes = sum(item.points for item in items), sum(item.minutes for item in items)
    count = "1 exercise" if len(items) == 1 else f"{len(items)} exercises"
    return f"| **{title}** | {count} | **{points}** | **{minutes}** |"
