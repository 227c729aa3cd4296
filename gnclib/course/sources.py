"""Rules of the notebooks of the course: source against exercises, students' copies against the source.

See `gnclib.course.copies` for the rules of the source. Also the table of all exercises for the instructor's page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from nbformat import NotebookNode

from gnclib.course.copies import (
    BEGIN,
    END,
    CourseError,
    folder,
    lesson,
    number,
    read,
    sources,
    student,
    unsolved,
)
from gnclib.course.exercises import EXERCISES
from gnclib.course.lesson import Exercise
from gnclib.io.files import write_text
from gnclib.suite import notebooks

__all__ = ["check", "problems", "refresh_page", "table"]

Exercises = Mapping[str, Exercise]
PAGE = "INSTRUCTOR.md"  # has the table of all exercises between these lines:
TABLE, END_TABLE = "<!-- table: written by gnc course -->", "<!-- end of table -->"
STATEMENT = re.compile(r"\*\*Exercise (\d+\.\d+)\*\*\s*\((\d+) points?, (?:about )?(\d+) min")


def problems(source: NotebookNode, name: str, known: Exercises = EXERCISES) -> list[str]:
    """What is wrong with a source notebook, in words; [] if it keeps the rules and agrees with the exercises.

    Parameters
    ----------
    source : NotebookNode
        The notebook.
    name : str
        Its name, which begins with the number of the lesson: 1_mixtures.
    known : mapping
        The exercises by number.
    """
    wrong: list[str] = []
    open_id, code = "", ""  # the exercise that waits for its check, and its code
    checked: list[str] = []
    for index, cell in enumerate(source.cells):
        place = f"{name}, cell {index}"
        if cell.cell_type == "markdown":
            wrong += [f"{place}: {text}" for text in _announced(cell.source, known)]
            continue
        solution, graded = number(cell, "solution"), number(cell, "grade")
        if "" in (solution, graded):
            wrong.append(f"{place}: the grade id should be like exercise-1-2 or check-1-2")
        elif solution:
            if open_id:
                wrong.append(f"{place}: exercise {open_id} before it has no check")
            try:
                unsolved(cell.source, solution)
            except CourseError as error:
                wrong.append(f"{place}, exercise {solution}: {error}")
            open_id, code = solution, cell.source
        elif graded:
            waits = code if open_id == graded else None
            wrong += [f"{place}: {text}" for text in _check_cell(cell, graded, waits, known)]
            checked.append(graded)
            open_id = ""
        elif BEGIN in cell.source or END in cell.source:
            wrong.append(f"{place}: there is a solution in it, but it is not marked as a solution cell")
    if open_id:
        wrong.append(f"{name}: exercise {open_id} has no check")
    wanted = [id for id in known if _lesson_of(id) == lesson(name)]
    here, there = "in gnclib.course but not in the notebook", "in the notebook but not in gnclib.course"
    wrong += [f"{name}: exercise {id} is {here}" for id in wanted if id not in checked]
    wrong += [f"{name}: exercise {id} is {there}" for id in checked if id not in wanted]
    if not wrong and checked != wanted:
        wrong.append(f"{name}: the exercises are in the order {', '.join(checked)}, not {', '.join(wanted)}")
    return wrong


def _lesson_of(id: str) -> str:
    """The number of the lesson of an exercise: "1" for 1.2."""
    return id.split(".")[0]


def _announced(text: str, known: Exercises) -> list[str]:
    """Points and minutes in the statement of an exercise against those of the exercise."""
    return [
        f"exercise {id} is announced with {points} points and {minutes} minutes, gnclib.course says "
        f"{known[id].points} points and {known[id].minutes} minutes"
        for id, points, minutes in STATEMENT.findall(text)
        if id in known and (int(points), int(minutes)) != (known[id].points, known[id].minutes)
    ]


def _check_cell(cell: NotebookNode, id: str, code: str | None, known: Exercises) -> list[str]:
    """What is wrong with a check cell; `code` is the solution cell before it, None if that is another one."""
    if code is None:
        return [f"the check of exercise {id} should follow its solution cell"]
    call = re.fullmatch(rf'check\("{re.escape(id)}", (\w+)\)', cell.source)
    if not call:
        return [f'the check of exercise {id} should be exactly check("{id}", function)']
    wrong = []
    if not re.search(rf"(?m)^def {call[1]}\(", code):
        wrong.append(f"exercise {id} checks {call[1]}, which its solution cell does not define")
    points = cell.metadata.nbgrader.get("points")
    if id in known and points != known[id].points:
        wrong.append(
            f"the check of exercise {id} is worth {points} points, gnclib.course says {known[id].points}"
        )
    return wrong


def check(where: Path | None = None, known: Exercises = EXERCISES) -> list[str]:
    """What is wrong with sources and committed students' copies, in words; [] if nothing is. Runs no kernel.

    Parameters
    ----------
    where : Path
        The folder with the copies and with ``source/`` (default: that of the clone).
    known : mapping
        As for `problems`.
    """
    where = where or folder()
    wrong = []
    found = sources(where=where)
    for name, path in found.items():
        source = read(path)
        of_source = problems(source, name, known)
        if any(cell.get("outputs") for cell in source.cells):
            of_source.append(f"{name}: the source should be stored without outputs")
        wrong += of_source or [
            f"{name}.ipynb: {text}; run 'gnc course --only {name}'"
            for text in _differences(student(source), where / f"{name}.ipynb")
        ]
    lessons = {lesson(name) for name in found}
    wrong += [
        f"exercise {id}: there is no notebook of its lesson" for id in known if _lesson_of(id) not in lessons
    ]
    extra = {path.stem for path in where.glob("[0-9]*.ipynb")} - found.keys()
    wrong += [f"{name}.ipynb: it has no source" for name in sorted(extra)]
    page = where / PAGE
    if page.is_file() and page.read_text(encoding="utf-8") != _with_table(page, known):
        wrong.append(f"{PAGE}: the table is not that of gnclib.course; run 'gnc course'")
    return wrong


def _differences(wanted: NotebookNode, path: Path) -> list[str]:
    if not path.is_file():
        return ["it is missing"]
    there = read(path)
    if len(there.cells) != len(wanted.cells):
        return [f"it has {len(there.cells)} cells, the source makes {len(wanted.cells)}"]
    wrong = [] if notebooks.clean(path.read_bytes()) == path.read_bytes() else ["it is not clean"]
    counts = []
    for index, (a, b) in enumerate(zip(there.cells, wanted.cells, strict=True)):
        if (a.cell_type, a.source, a.metadata) != (b.cell_type, b.source, b.metadata):
            wrong.append(f"cell {index} is not what the source makes")
        if a.cell_type == "code" and a.source.strip():
            counts.append(a.execution_count)
            wrong += [f"cell {index} {text}" for text in _wrong_outputs(a)]
    if counts != list(range(1, len(counts) + 1)):
        wrong.append("its cells were not run once each from top to bottom")
    return wrong


def _wrong_outputs(cell: NotebookNode) -> list[str]:
    wrong = [f"ended in {o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error"]
    wrong += ["wrote to stderr" for o in cell.outputs if o.get("name") == "stderr"]
    if number(cell, "grade") and not any(" - to do" in o.get("text", "") for o in cell.outputs):
        wrong.append("is a check that does not say 'to do'")
    return wrong


def table(known: Exercises = EXERCISES) -> str:
    """All exercises with points and minutes, and the sums by lesson, as a Markdown table."""
    lines = ["| exercise | about | points | minutes |", "|---|---|---:|---:|"]
    for number_, group in groupby(known.values(), key=lambda item: _lesson_of(item.id)):
        items = list(group)
        lines += [f"| {item.id} | {item.title} | {item.points} | {item.minutes} |" for item in items]
        lines.append(_sum(f"lesson {number_}", items))
    return "\n".join([*lines, _sum("the course", list(known.values()))])


def _sum(title: str, items: list[Exercise]) -> str:
    points, minutes = sum(item.points for item in items), sum(item.minutes for item in items)
    count = "1 exercise" if len(items) == 1 else f"{len(items)} exercises"
    return f"| **{title}** | {count} | **{points}** | **{minutes}** |"


def refresh_page(where: Path | None = None, known: Exercises = EXERCISES) -> None:
    """Put the table into the instructor's page, if there is one; parameters as for `check`."""
    page = (where or folder()) / PAGE
    if page.is_file() and page.read_text(encoding="utf-8") != (text := _with_table(page, known)):
        write_text(page, text)


def _with_table(page: Path, known: Exercises) -> str:
    before, begin, rest = page.read_text(encoding="utf-8").partition(TABLE)
    _, end, after = rest.partition(END_TABLE)
    if not (begin and end):
        raise CourseError(f"{page.name} has no place for the table, between {TABLE} and {END_TABLE}")
    return f"{before}{TABLE}\n\n{table(known)}\n\n{END_TABLE}{after}"
