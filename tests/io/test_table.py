"""Tables of results: what is resumed, replaced, refused, and what several and killed processes leave."""

import json
import math
import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest

from gnclib.io import provenance, table
from gnclib.io.table import Content, Form, Job, Origin, Record, Row, Table, rounded


class About(Record):
    set: str


class Square(Row):
    by: ClassVar[tuple[str, ...]] = ("method",)
    key: ClassVar[tuple[str, ...]] = ("image",)
    method: str
    image: str
    seed: int
    value: rounded(3)
    more: list[float] | None = None


class Pair(Row):
    by: ClassVar[tuple[str, ...]] = ("a", "b")
    a: str
    b: str
    x: float


FORM = Form("table of squares", About, {"squares": Square, "pairs": Pair})
MADE = Origin(revision="r", machine="m", software="s")


@pytest.fixture
def opened(tmp_path):
    return Table(tmp_path / "a.json", FORM, About(set="letters"))


def square(x):
    return {"value": x**2, "more": None}


def jobs(images="abc", method="plain", scale=1.0, compute=square):
    return [
        Job(
            {"method": method, "image": image, "seed": k},
            {"scale": scale},
            partial(compute, scale * (k + 1.5)),
        )
        for k, image in enumerate(images)
    ]


def values(path, name="squares"):
    return {(row.method, row.image): row.value for row in FORM.load(path).rows[name]}


# --- resuming ---------------------------------------------------------------------------------------------


def test_rows_are_computed_once_in_their_order_and_written_one_by_one(opened):
    filling = opened.fill("squares", jobs())
    first = next(filling)
    assert (first.image, first.value) == ("a", 2.25)
    assert values(opened.path) == {("plain", "a"): 2.25}
    filling.close()  # what has been yielded is in the file
    assert [job.given["image"] for job in opened.missing("squares", jobs())] == ["b", "c"]
    assert [row.image for row in opened.fill("squares", jobs())] == ["b", "c"]
    before = opened.path.read_bytes()
    assert list(opened.fill("squares", jobs(compute=pytest.fail))) == []
    assert opened.path.read_bytes() == before
    assert values(opened.path) == {("plain", "a"): 2.25, ("plain", "b"): 6.25, ("plain", "c"): 12.25}


def test_an_interrupted_file_ends_as_one_that_was_not(opened, tmp_path):
    whole = Table(tmp_path / "whole.json", FORM, opened.about)
    list(whole.fill("squares", jobs() + jobs("ab", "other")))
    for count in (1, 2, 2):
        killed = opened.fill("squares", jobs() + jobs("ab", "other"))
        for _ in range(count):
            next(killed, None)
        killed.close()
    assert opened.path.read_bytes() == whole.path.read_bytes()


def test_stale_rows_are_computed_again_and_replaced(opened):
    list(opened.fill("squares", jobs() + jobs("a", "other")))
    assert len(opened.missing("squares", jobs(scale=2.0))) == 3
    next(opened.fill("squares", jobs(scale=2.0)))  # and then it is killed
    assert values(opened.path) == {("plain", "a"): 9.0, ("other", "a"): 2.25}  # no mixture of both settings
    assert [row.image for row in opened.fill("squares", jobs(scale=2.0))] == ["b", "c"]


def test_a_given_column_that_changes_makes_a_row_missing(opened):
    list(opened.fill("squares", jobs("abc")))
    assert [row.image for row in opened.fill("squares", jobs("acb"))] == ["c", "b"]  # other seeds
    rows = FORM.load(opened.path).rows["squares"]
    assert {row.image: row.seed for row in rows} == {"a": 0, "c": 1, "b": 2}


def test_other_code_counts_and_gets_a_group_of_its_own(opened, monkeypatch):
    next(opened.fill("squares", jobs()))
    monkeypatch.setattr(provenance, "revision", lambda: "next")
    again = Table(opened.path, FORM, opened.about)
    assert [row.image for row in again.fill("squares", jobs())] == ["b", "c"]
    groups = json.loads(opened.path.read_text())["squares"]
    assert [[row[0] for row in group["rows"]] for group in groups] == [["a"], ["b", "c"]]
    assert groups[1]["made"]["revision"] == "next"
    assert groups[0]["made"]["revision"] == opened.origin.revision


def test_the_origin_says_where(opened):
    assert opened.origin.machine == provenance.machine("cpu")
    assert opened.origin.software == provenance.software("torch")
    assert opened.origin.OMP_NUM_THREADS == os.environ.get("OMP_NUM_THREADS", "")


def test_rows_whose_whole_key_is_that_of_the_group(opened):
    first, other = Job({"a": "1", "b": "2"}, {"w": 1}, dict), Job({"a": "1", "b": "3"}, {}, dict)
    opened.add("pairs", (first, {"x": 0.5}), (other, {"x": 1.5}))
    opened.add("pairs", (replace(first, settings={"w": 2}), {"x": 2.5}))
    rows = FORM.load(opened.path).rows["pairs"]
    assert {(row.b, row.x, row.settings.get("w")) for row in rows} == {("2", 2.5, 2), ("3", 1.5, None)}


def test_values_are_rounded_and_read_back_as_they_are(opened):
    (row,) = opened.add(
        "squares",
        (
            Job({"method": "m", "image": "ä", "seed": 0}, {"t": [0.1, 1]}, dict),
            {"value": 1 / 3, "more": [0.1, 1e-300, -7]},
        ),
    )
    assert row.value == 0.333
    content = FORM.load(opened.path)
    assert content.rows["squares"] == [row]
    assert table.dumps(content, FORM) == opened.path.read_text()


# --- what is refused --------------------------------------------------------------------------------------


def test_a_file_about_something_else_is_refused_and_left_as_it_is(opened):
    next(opened.fill("squares", jobs()))
    before = opened.path.read_bytes()
    other = Table(opened.path, FORM, About(set="digits"))
    with pytest.raises(ValueError, match="its set is letters, not digits; choose another --out"):
        next(other.fill("squares", jobs()))
    assert opened.path.read_bytes() == before


@pytest.mark.parametrize(
    "found",
    [
        {"value": math.nan, "more": None}, {"value": "1.0"}, {"value": 1.0, "extra": 1}, {"more": None},
        {"value": 1.0, "more": [None]},
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_refused_before_it_is_written(opened, found):
    with pytest.raises(ValueError):  # noqa: PT011
        list(opened.fill("squares", [Job({"method": "m", "image": "a", "seed": 0}, {}, lambda: found)]))
    assert not opened.path.exists()


def changed(change):
    content = {
        "about": {"set": "letters"},
        "columns": {"squares": ["image", "seed", "value", "more"], "pairs": ["x"]},
        "squares": [
            {"method": "m", "settings": {}, "made": MADE.model_dump(), "rows": [["a", 0, 1.0, None]]}
        ],
        "pairs": [],
    }
    found = change(content)
    return content if found is None else found


def test_the_file_that_the_next_test_damages_is_whole(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(changed(lambda c: None)))
    (row,) = FORM.load(tmp_path / "a.json").rows["squares"]
    assert row == Square(method="m", image="a", seed=0, value=1.0, settings={}, made=MADE)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: [],
        lambda c: c.pop("pairs") and None,
        lambda c: c.update(extra=[]),
        lambda c: c["about"].update(set=3),
        lambda c: c["about"].update(more=3),
        lambda c: c["columns"].update(pairs=["y"]),
        lambda c: c.update(squares={}),
        lambda c: c["squares"].append(3),
        lambda c: c["squares"][0].pop("method") and None,
        lambda c: c["squares"][0].update(image="a"),
        lambda c: c["squares"][0].pop("made") and None,
        lambda c: c["squares"][0]["made"].pop("revision") and None,
        lambda c: c["squares"][0]["rows"].append(["a", 0, 1.0, None]),
        lambda c: c["squares"][0]["rows"].append(["b", 0, 1.0]),
        lambda c: c["squares"][0]["rows"].append(["b", 0.0, 1.0, None]),
        lambda c: c["squares"][0]["rows"].append(["b", True, 1.0, None]),
        lambda c: c["squares"][0]["rows"].append(["b", 0, {"float": "nan"}, None]),
        lambda c: c["squares"][0]["rows"].append(["b", 0, 1.0, [{"float": "inf"}]]),
    ],
)
def test_what_is_no_such_table(tmp_path, change):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(changed(change)))
    with pytest.raises(ValueError, match=r"a\.json is no table of squares"):
        FORM.load(path)


# --- processes --------------------------------------------------------------------------------------------

context = multiprocessing.get_context("fork")  # they import nothing anew


def fill_letters(path, letters):
    for _ in Table(path, FORM, About(set="letters")).fill("squares", jobs(letters, method="".join(letters))):
        pass


def test_processes_at_once_lose_nothing_of_each_other(tmp_path):
    path = tmp_path / "a.json"
    parts = ["abcdefgh", "ijklmnop", "qrstuvwx"]
    children = [context.Process(target=fill_letters, args=(path, part)) for part in parts]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert values(path).keys() == {(part, letter) for part in parts for letter in part}


def test_a_process_that_is_killed_leaves_whole_rows_and_no_lock(tmp_path):
    path, many = tmp_path / "a.json", [str(k) for k in range(200)]
    killed = 0
    for seconds in (0.02, 0.05, 0.1):
        child = context.Process(target=fill_letters, args=(path, many))
        child.start()
        child.join(seconds)
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        if path.exists():
            values(path)
    assert killed
    fill_letters(path, many)
    assert len(values(path)) == 200


def test_workers_give_the_same_rows(opened, tmp_path):
    """Jobs of builtins: worker processes know nothing of this file."""
    wanted = [
        Job({"method": "m", "image": str(k), "seed": k}, {}, partial(dict, value=math.hypot(k, 1), more=None))
        for k in range(5)
    ]
    alone = Table(tmp_path / "alone.json", FORM, opened.about)
    list(alone.fill("squares", wanted))
    next(opened.fill("squares", wanted))
    assert {row.seed for row in opened.fill("squares", wanted, workers=2)} == {1, 2, 3, 4}
    assert values(opened.path) == values(alone.path)


def test_a_worker_that_dies_is_told_and_what_is_finished_stays(opened):
    next(opened.fill("squares", jobs()))
    dying = [Job({"method": "m", "image": "z", "seed": 0}, {}, os.abort)]
    with pytest.raises(RuntimeError, match=r"a worker process died .* what is finished is in .*a\.json"):
        list(opened.fill("squares", dying, workers=2))
    assert values(opened.path) == {("plain", "a"): 2.25}


def test_an_error_of_a_job_comes_through_from_a_worker(opened):
    bad = [Job({"method": "m", "image": "z", "seed": 0}, {}, partial(math.sqrt, -1.0))]
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        list(opened.fill("squares", bad, workers=2))


def test_a_content_without_rows_can_be_written(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(table.dumps(Content(About(set="x"), {"squares": [], "pairs": []}), FORM))
    assert FORM.load(path).rows == {"squares": [], "pairs": []}
