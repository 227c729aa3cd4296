"""`gnc course`: copies made from a source notebook, and what is said of sources and copies that are wrong."""

import re
from copy import deepcopy

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from gnclib.course import EXERCISES, Exercise
from gnclib.course import copies as course
from gnclib.course.lesson import Heading
from gnclib.suite import notebooks
from tests.commands import gnc

SOLUTION = '''\
def double(x: float) -> float:
    """2 x."""
    if x:
        ### BEGIN SOLUTION
        y = 2 * x
        return y
        ### END SOLUTION
    ### BEGIN SOLUTION
    return 0.0
    ### END SOLUTION'''
STUB = '''\
def double(x: float) -> float:
    """2 x."""
    if x:
        raise NotImplementedError("exercise 8.1")
    raise NotImplementedError("exercise 8.1")'''
# a check of the tiny course, in place of the one that `from gnclib.course import check` brings
CHECK = """\
def check(id, function):
    try:
        print(id, "- right" if function(2.0) == 4 else "- not yet")
        return 3
    except NotImplementedError:
        print(id, "- to do")
        return 0"""


def exercise(id: str = "8.1", points: int = 3) -> Exercise:
    return Exercise(Heading(id, "twice", points, 5), solution=lambda x: 2 * x, draw=lambda g: (1.0,))


KNOWN = {"8.1": exercise()}


def marked(kind: str, id: str, source: str, **more):
    grade, name = kind == "check", f"{kind}-{id.replace('.', '-')}"
    nbgrader = {"grade": grade, "grade_id": name, "locked": grade, "schema_version": 3, "solution": not grade}
    return new_code_cell(source, metadata={"nbgrader": nbgrader | {"task": False} | more})


def tiny(solution: str = SOLUTION, statement: str = "**Exercise 8.1** (3 points, 5 minutes). Double."):
    cells = [
        new_markdown_cell(statement),
        new_code_cell(CHECK),
        marked("exercise", "8.1", solution),
        marked("check", "8.1", 'check("8.1", double)', points=3),
        new_markdown_cell("People halve.", metadata={"tags": ["instructor"]}),
        new_code_cell("from gnclib.suite import plots\nplots.sliders()"),
        new_code_cell("1 + 1"),
    ]
    node = new_notebook(cells=cells)
    node.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for index, cell in enumerate(node.cells):
        cell["id"] = f"cell-{index}"
    return node


# --- copies -------------------------------------------------------------------------------------------------


def test_a_students_copy_lacks_solutions_and_remarks_and_nothing_else():
    source = tiny()
    before = deepcopy(source)
    copy = course.student(source)
    assert source == before
    left = [cell for cell in source.cells if cell.source != "People halve."]
    assert [cell.id for cell in copy.cells] == [cell.id for cell in left]
    assert [cell.metadata for cell in copy.cells] == [cell.metadata for cell in left]
    assert [cell.source for cell in copy.cells] == [STUB if "2 x" in c.source else c.source for c in left]


@pytest.mark.parametrize(
    ("code", "pairs"),
    [
        ("x = 1", 0),
        ("### BEGIN SOLUTION\nx = 1", 0),
        ("x = 1\n### END SOLUTION", 0),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", 1),
        ("# BEGIN SOLUTION\nx = 1\n### END SOLUTION", 0),
        ("### BEGIN SOLUTION\nx = 1\n### END SOLUTION\nx = 2  ### BEGIN SOLUTION", 1),
        ("### BEGIN SOLUTION\nx = 1\n### END SOLUTION  # and more", 0),
    ],
)
def test_markers_that_do_not_fit(code, pairs):
    message = f"each solution stands between lines .* there are {pairs} such pairs"
    with pytest.raises(notebooks.NotebookError, match=message):
        course.unsolved(code, "8.1")
    assert any(
        re.match(f"8_tiny, cell 2: {message}", line) for line in course.problems(tiny(code), "8_tiny", KNOWN)
    )


def test_nbgraders_source_has_the_solution_and_checks_that_show_nothing_but_points():
    copy = course.for_nbgrader(tiny())
    assert copy.cells[2].source == SOLUTION
    assert "People halve." not in [cell.source for cell in copy.cells]
    assert copy.cells[3].source.splitlines()[-2:] == ['    points = check("8.1", double)', "points"]


def test_an_nbgrader_course_keeps_a_configuration_that_is_there(tmp_path):
    made = course.write_nbgrader({"8_tiny": tiny()}, tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in made] == [
        "source/lesson8/8_tiny.ipynb",
        "nbgrader_config.py",
    ]
    (tmp_path / "nbgrader_config.py").write_text("mine")
    assert len(course.write_nbgrader({"8_tiny": tiny()}, tmp_path)) == 1
    assert (tmp_path / "nbgrader_config.py").read_text() == "mine"


# --- what is wrong with a source ----------------------------------------------------------------------------


def test_a_source_that_is_right():
    assert course.problems(tiny(), "8_tiny", KNOWN) == []


def spoilt(change) -> list[str]:
    node = tiny()
    change(node.cells)
    return course.problems(node, "8_tiny", KNOWN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[2].metadata.pop("nbgrader"), "cell 2: there is a solution in it, but it is not marked"),
        (
            lambda c: c[2].metadata.nbgrader.update(grade_id="ex1"),
            "cell 2: the grade id should be like exercise-1-2",
        ),
        (
            lambda c: c.pop(3),
            "8_tiny: there is nothing where the grade cell of exercise 8.1 should be",
        ),
        (
            lambda c: c.insert(2, c.pop(3)),
            "there is the grade cell of exercise 8.1 where the solution cell of exercise 8.1 should be",
        ),
        (
            lambda c: c.insert(2, c.pop(3)),
            "cell 2: exercise 8.1 checks double, which the solution cell before",
        ),
        (lambda c: c[3].update(source='check("8.1", double(2))'), "should be exactly check"),
        (
            lambda c: c[3].update(source='check("8.1", triple)'),
            "checks triple, which the solution cell before it does not",
        ),
        (lambda c: c[3].metadata.nbgrader.update(points=2), "is worth 2 points, gnclib.course says 3"),
        (
            lambda c: c[0].update(source="**Exercise 8.1** (1 point, 5 minutes)."),
            "announced with 1 points and 5 minutes",
        ),
    ],
)
def test_sources_that_break_a_rule(change, message):
    assert any(message in line for line in spoilt(change)), spoilt(change)


def test_exercises_without_a_cell_and_cells_without_an_exercise():
    more = KNOWN | {"8.2": exercise("8.2")}
    assert course.problems(tiny(), "8_tiny", more) == [
        "8_tiny: there is nothing where the solution cell of exercise 8.2 should be"
    ]
    assert course.problems(tiny(), "8_tiny", {}) == [
        "8_tiny: there is the solution cell of exercise 8.1 where nothing should be"
    ]
    assert course.problems(tiny(), "8_tiny", {"8.1": exercise(points=2)}) == [
        "8_tiny, cell 0: exercise 8.1 is announced with 3 points and 5 minutes, gnclib.course says "
        "2 points and 5 minutes",
        "8_tiny, cell 3: the check of exercise 8.1 is worth 3 points, gnclib.course says 2",
    ]


# --- the committed copies -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The student's copy of the tiny course, run once."""
    path = tmp_path_factory.mktemp("course") / "8_tiny.ipynb"
    notebooks.write(notebooks.execute(course.student(tiny()), path.name), path)
    return path.read_bytes()


@pytest.fixture
def place(tmp_path, executed):
    """A folder with the source of the tiny course and that copy."""
    (tmp_path / "source").mkdir()
    nbformat.write(tiny(), tmp_path / "source" / "8_tiny.ipynb")
    (tmp_path / "8_tiny.ipynb").write_bytes(executed)
    return tmp_path


def test_copies_are_executed_and_clean(executed):
    node = nbformat.reads(executed.decode(), 4)
    assert notebooks.clean(executed) == executed
    by_source = {cell.source: cell for cell in node.cells}
    (said, points) = by_source['check("8.1", double)'].outputs
    assert (said.text, points.data["text/plain"]) == ("8.1 - to do\n", "0")
    assert (
        "a slider for t appears here"
        in by_source["from gnclib.suite import plots\nplots.sliders()"].outputs[0].text
    )
    assert by_source["1 + 1"].outputs[0].data["text/plain"] == "2"


def test_copies_that_are_what_the_source_makes(place):
    assert course.check(place, KNOWN) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.cells.pop(), "it has 5 cells, the source makes 6"),
        (lambda n: n.cells[0].update(source="**Exercise**"), "cell 0 is not what the source makes"),
        (lambda n: n.cells[3].metadata.nbgrader.update(points=9), "cell 3 is not what the source makes"),
        (lambda n: n.cells[3].outputs[0].update(text="8.1 - right"), "cell 3 is a check that does not say"),
        (lambda n: n.cells[5].update(execution_count=None, outputs=[]), "not run once each"),
        (
            lambda n: n.cells[5].update(
                outputs=[new_output("error", ename="ZeroDivisionError", evalue="by 0", traceback=[])]
            ),
            "cell 5 ended in ZeroDivisionError: by 0",
        ),
        (
            lambda n: n.cells[5].update(outputs=[new_output("stream", name="stderr", text="hm")]),
            "cell 5 wrote to stderr",
        ),
        (lambda n: n.metadata.update(papermill={}), "it is not clean"),
    ],
)
def test_copies_that_are_not(place, change, message):
    node = nbformat.read(place / "8_tiny.ipynb", 4)
    change(node)
    nbformat.write(node, place / "8_tiny.ipynb")
    lines = course.check(place, KNOWN)
    assert any(message in line for line in lines), lines
    assert all(line.startswith("8_tiny.ipynb: ") for line in lines)
    assert all(line.endswith("run 'gnc course --only 8_tiny'") for line in lines)


def test_copies_without_source_missing_ones_and_sources_with_outputs(place):
    (place / "9_more.ipynb").write_text("{}")
    (place / "8_tiny.ipynb").unlink()
    more = KNOWN | {"7.1": exercise("7.1")}
    assert course.check(place, more) == [
        "8_tiny.ipynb: it is missing; run 'gnc course --only 8_tiny'",
        "exercise 7.1: there is no notebook of its lesson",
        "9_more.ipynb: it has no source",
    ]
    node = tiny()
    node.cells[6].outputs = [new_output("stream", name="stdout", text="2")]
    nbformat.write(node, place / "source" / "8_tiny.ipynb")
    assert "8_tiny: the source should be stored without outputs" in course.check(place, KNOWN)


def test_the_committed_copies_are_what_the_source_makes():
    assert course.check() == []


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_refuses_before_it_writes(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(course, "folder", lambda: tmp_path)
    (tmp_path / "source").mkdir()
    nbformat.write(tiny(), tmp_path / "source" / "8_tiny.ipynb")  # 8.1 is no exercise of the library
    status, out, err = gnc(capsys, "course", "--nbgrader", tmp_path / "out")
    assert (status, out) == (1, "")
    assert err.startswith(
        "gnc: error: the source is wrong, nothing was written:\n  8_tiny: there is the solution cell"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    for words, message in (
        (["--only", "7"], "there is no lesson '7'; there are 8_tiny"),
        (["--instructor", tmp_path], "holds the notebooks themselves"),
        (["--check", "--only", "8"], "--only cannot go with"),
    ):
        status, _, err = gnc(capsys, "course", *words)
        assert (status, message in err) == (2, True), err


def test_the_table_adds_up(capsys):
    status, out, _ = gnc(capsys, "course", "--table")
    assert status == 0
    rows = [[word.strip(" *") for word in line.strip("|").split("|")] for line in out.splitlines()[2:]]
    single = [row for row in rows if row[0][0].isdigit()]
    (last,) = [row for row in rows if row[0] == "the course"]
    assert last[1].split()[0] == str(len(single))
    assert last[2:] == [str(sum(int(row[k]) for row in single)) for k in (2, 3)]


def test_the_instructors_page_has_the_table(place):
    page = place / course.PAGE
    page.write_text("before\n\nafter\n")
    (line,) = course.check(place, KNOWN)
    assert line.startswith("INSTRUCTOR.md: its table is not that of gnclib.course")
    page.write_text(f"before\n\n{course.table(KNOWN)}\n\nafter\n")
    assert course.check(place, KNOWN) == []
    assert "| 8.1 | twice | 3 | 5 |\n" in page.read_text()


def planned() -> list[str]:
    """The exercises in the plan of the committed instructor's page; "1.1 to 1.3" are three."""
    page = (course.folder() / course.PAGE).read_text(encoding="utf-8")
    rows = page.split("| lesson | first 90 minutes | second 90 minutes |")[1].split("\n\n")[0].splitlines()
    plan = "\n".join("|".join(row.split("|")[2:4]) for row in rows)  # without what may be skipped
    named = []
    for first, last in re.findall(r"\b(\d\.\d)\b(?: to (\d\.\d)\b)?", plan):
        lesson, k = first.split(".")
        named += [f"{lesson}.{n}" for n in range(int(k), int((last or first).split(".")[1]) + 1)]
    return named


def test_every_exercise_has_its_place_in_the_plan():
    assert sorted(planned()) == sorted(EXERCISES)
