"""What ``gnc figures`` promises, on tiny notebooks: figures fresh and complete, failures clear, nothing old lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from gnclib.suite import claims, ledger, notebooks, plots, reproduce
from gnclib.suite.ledger import differences
from gnclib.suite.notebooks import Figure, NotebookError
from tests.suite import whole

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
SAVE = """\
from pathlib import Path
if out:
    for suffix, text in ((".png", "png"), (".pdf", "pdf"), (".json", '{"values": [1.0, 2.0]}')):
        Path(out, "NAME" + suffix).write_text(text)"""
CLAIM = """\
from gnclib.suite import claims
claims.record("A1-tweedie", {"largest_difference": 0.0, "steps": 3 if full else 4})"""


def write(folder: Path, name: str, *cells: str, parameters: str = 'full = False\nout = ""') -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    node = new_notebook(cells=[new_markdown_cell("# Tiny"), first, *map(new_code_cell, cells)])
    node.metadata["kernelspec"] = KERNEL
    for number, cell in enumerate(node.cells):
        cell["id"] = f"cell-{number}"
    path = folder / f"{name}.ipynb"
    nbformat.write(node, path)
    return path


def saving(name: str) -> str:
    return SAVE.replace("NAME", name)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run_once(monkeypatch):
    """From now on each notebook runs in a kernel once; after that it has the outputs and the files of that run."""
    execute, kept = notebooks.execute, {}

    def executed(node, name, given, threads=0, seen=True):
        out = Path(given["out"])
        if name not in kept:
            kept[name] = execute(node, name, given, threads, seen), files(out)
        for file, content in kept[name][1].items():
            (out / file).write_bytes(content)
        return deepcopy(kept[name][0])

    monkeypatch.setattr(notebooks, "execute", executed)


def test_figures_and_claims_arrive_and_a_partial_run_keeps_the_rest(tmp_path):
    folder, out = tmp_path / "notebooks", tmp_path / "figures"
    write(
        folder, "01_tiny", saving("one"), "import os; assert os.listdir() == []  # an empty working directory"
    )
    source = write(folder, "02_tiny", saving("two"), CLAIM)
    before = source.read_bytes()
    manifest = {"one": Figure("01_tiny", "One"), "two": Figure("02_tiny", "Two")}
    lines = []
    done = reproduce.run(out=out, manifest=manifest, folder=folder, say=lines.append)
    assert [(item.notebook, item.figures) for item in done] == [("01_tiny", ("one",)), ("02_tiny", ("two",))]
    assert [line.split()[0] for line in lines if line[0] != " "] == ["01_tiny", "02_tiny"]
    made = {name + suffix for name in ("one", "two") for suffix in reproduce.SUFFIXES}
    assert files(out).keys() == made | {"claims.json", "claims.md", "README.md"}
    (record,) = ledger.load(out / "claims.json")
    assert (record.verdict, record.mode, record.evidence["steps"]) == ("verified identity", "quick", 4)
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figures",
        "notebooks",
    ]  # nothing left lying about

    claim = {"claim A1-tweedie": "recorded in only one of the two"}
    assert [item.changed for item in done] == [{"one": "new"}, {"two": "new"} | claim]
    reproduce.run(["one"], full=True, out=out, manifest=manifest, folder=folder)
    assert [record.mode for record in ledger.load(out / "claims.json")] == ["quick"]
    reproduce.run(["02_tiny"], full=True, out=out, manifest=manifest, folder=folder)
    (record,) = ledger.load(out / "claims.json")
    assert (record.mode, record.evidence["steps"]) == ("full", 3)


def test_what_agrees_stays_and_what_changed_is_named(tmp_path, monkeypatch):
    """Another processor: last digits differ, and so does the picture, perhaps; or a number has really changed."""
    folder, out = tmp_path / "notebooks", tmp_path / "figures"
    write(folder, "02_tiny", saving("two"), CLAIM)
    lines, options = [], {"manifest": {"two": Figure("02_tiny", "Two")}, "folder": folder, "out": out}

    def again():
        (item,) = reproduce.run(**options, say=lines.append)
        return item

    again()
    first = files(out)
    run_once(monkeypatch)
    item = again()  # the same machine: every byte
    assert (item.changed, item.redrawn, files(out)) == ({}, (), first)

    (out / "two.json").write_text('{"values": [1.0, 2.0000001]}')
    (out / "two.png").write_text("the same curve, another antialiasing")
    entries = json.loads((out / "claims.json").read_text())
    entries["records"][0]["evidence"]["largest_difference"] = 3e-16
    (out / "claims.json").write_text(json.dumps(entries))
    elsewhere = files(out)
    item = again()
    assert (item.changed, item.redrawn) == ({}, ("two",))
    assert {name for name, content in files(out).items() if content != elsewhere[name]} <= {
        "claims.json",
        "claims.md",
    }
    assert json.loads((out / "claims.json").read_text()) == entries

    (out / "two.json").write_text('{"values": [1.0, 2.1]}')
    item = again()
    assert list(item.changed) == ["two"]
    assert item.changed["two"].startswith("values: off by 0.1, allowed")
    assert lines[-1] == f"  changed: two: {item.changed['two']}"
    assert files(out)["two.png"] == first["two.png"]
    (out / "two.png").unlink()
    assert again().changed == {"two": "new"}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["x = 1"], r"did not make new\.json, new\.pdf, new\.png"),
        ([saving("new"), "Path(out, 'new.pdf').write_bytes(b'')"], r"did not make new\.pdf"),
        (
            [saving("new"), "Path(out, 'other.png').write_bytes(b'x')"],
            r"wrote other\.png, which .* not declare",
        ),
        (
            [saving("new"), "values = [1]\nvalues[3]"],
            r"In \[3\], at 'values\[3\]': IndexError: list index out of",
        ),
        ([saving("new"), CLAIM + ";\n0"], "records A1-tweedie but does not show the record"),
    ],
    ids=["missing", "empty", "undeclared", "failing", "claim lost"],
)
def test_a_bad_notebook_fails_and_leaves_everything(tmp_path, cells, message):
    folder, out = tmp_path / "notebooks", tmp_path / "figures"
    write(folder, "02_tiny", *cells)
    out.mkdir()
    ledger.save(out, [])
    (out / "new.png").write_bytes(b"old")
    before = files(out)
    with pytest.raises(NotebookError, match=message) as caught:
        reproduce.run(out=out, manifest={"new": Figure("02_tiny", "New")}, folder=folder)
    assert "02_tiny" in str(caught.value)
    assert files(out) == before


def test_one_failure_does_not_stop_the_others(tmp_path):
    folder, out = tmp_path / "notebooks", tmp_path / "figures"
    write(folder, "01_tiny", "raise ValueError('no such luck')")
    write(folder, "02_tiny", saving("two"))
    with pytest.raises(NotebookError, match=r"1 of 2 notebooks failed(.|\n)*01_tiny.*no such luck"):
        reproduce.run(out=out, manifest={"two": Figure("02_tiny", "")}, folder=folder, jobs=2)
    assert (out / "two.png").read_text() == "png"


def test_two_jobs_really_run_at_the_same_time(tmp_path):
    folder = tmp_path / "notebooks"
    meet = f"""\
import pathlib, time
place = pathlib.Path({str(tmp_path)!r})
(place / "ME").touch()
until = time.monotonic() + 60
while not (place / "OTHER").exists() and time.monotonic() < until:
    time.sleep(0.05)
assert (place / "OTHER").exists()"""
    write(folder, "01_tiny", meet.replace("ME", "a").replace("OTHER", "b"))
    write(folder, "02_tiny", meet.replace("ME", "b").replace("OTHER", "a"))
    done = reproduce.run(out=tmp_path / "out", manifest={}, folder=folder, jobs=2)
    assert {item.notebook for item in done} == {"01_tiny", "02_tiny"}


def test_two_kernels_share_the_cores_and_show_their_figures(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cell = (
        "import os\nassert os.environ['OMP_NUM_THREADS'] == '3'\nassert 'inline' in os.environ['MPLBACKEND']\n"
        "from ipykernel.connect import get_connection_info\n"
        "assert os.name != 'posix' or '\"ipc\"' in get_connection_info()  # ports may collide"
    )
    monkeypatch.setattr(reproduce.os, "cpu_count", lambda: 6)
    for name in ("01_tiny", "02_tiny"):
        write(tmp_path / "notebooks", name, cell)
    reproduce.run(out=tmp_path / "out", manifest={}, folder=tmp_path / "notebooks", jobs=2)
    assert (os.environ["MPLBACKEND"], os.environ.get("OMP_NUM_THREADS")) == ("agg", None)


@pytest.mark.skipif(os.name != "posix", reason="signals are for Unix")
def test_ctrl_c_stops_all_notebooks_and_their_kernels(tmp_path):
    waiting = "import os, pathlib, time\npathlib.Path(PLACE, str(os.getpid())).touch()\ntime.sleep(60)"
    for name in ("01_tiny", "02_tiny", "03_tiny"):
        write(tmp_path / "notebooks", name, waiting.replace("PLACE", repr(str(tmp_path / "kernels"))))
    (tmp_path / "kernels").mkdir()
    code = (
        "import signal, sys; from pathlib import Path; from gnclib.suite import reproduce\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it\n"
        "here = Path(sys.argv[1])\n"
        "reproduce.run(out=here / 'out', manifest={}, folder=here / 'notebooks', jobs=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while len(kernels := list((tmp_path / "kernels").iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1].decode()
    assert process.returncode != 0
    assert error.splitlines()[-1] == "KeyboardInterrupt"
    assert len(kernels) == len(list((tmp_path / "kernels").iterdir())) == 2  # the third was not begun
    for path in kernels:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
    assert list((tmp_path / "out").iterdir()) == []


def test_papermill_sets_the_parameters(tmp_path):
    """Their cell comes after the defaults, the file stays as it is, and a failure is counted without that cell."""
    tiny = "import os\nprint(full, out, os.environ['GNC_HEADLESS'])\n1 / 0 if out == 'bad' else None"
    path = write(tmp_path, "01_tiny", tiny)
    before, node = path.read_bytes(), notebooks.load(path)
    done = notebooks.execute(node, path.name, {"full": True, "out": "there"})
    tags = [tag for cell in done.cells for tag in cell.metadata.get("tags", [])]
    assert tags.index("parameters") < tags.index("injected-parameters")
    assert "True there 1\n" in [o.text for cell in done.cells for o in cell.get("outputs", ()) if "text" in o]
    with pytest.raises(
        NotebookError, match=r"01_tiny\.ipynb, cell In \[2\], at '1 / 0 if .*ZeroDivisionError"
    ):
        notebooks.execute(node, path.name, {"out": "bad"})
    assert path.read_bytes() == before


@pytest.mark.parametrize("seen", [True, False])
def test_pictures_are_drawn_only_where_somebody_looks(tmp_path, monkeypatch, seen):
    monkeypatch.delenv(plots.UNSEEN, raising=False)
    tiny = "import matplotlib.pyplot as plt\nfrom gnclib.suite import plots\nplots.use_style(full)\nplt.plot([0, 1])"
    path = write(tmp_path, "01_tiny", tiny)
    done = notebooks.execute(notebooks.load(path), path.name, seen=seen)
    kinds = {kind for cell in done.cells for o in cell.get("outputs", ()) for kind in o.get("data", ())}
    assert kinds == ({"image/png", "text/plain"} if seen else {"text/plain"})


def test_parameters_and_files_that_are_no_notebook(tmp_path):
    path = write(tmp_path, "01_tiny", parameters='full = False  # small\nout = ""\nsteps = 3')
    assert "steps = 3" in notebooks.parameters(notebooks.load(path), path.name).source
    for parameters in ("full = True\nout = ''", "full = False", "out = ''"):
        other = write(tmp_path, "02_tiny", parameters=parameters)
        with pytest.raises(
            NotebookError, match=r"02_tiny.ipynb has 1 cells .* with full = False and out = ''"
        ):
            notebooks.parameters(notebooks.load(other), other.name)
    other.write_text("no json")
    with pytest.raises(NotebookError, match=r"02_tiny\.ipynb is not a notebook: Expecting value"):
        notebooks.load(other)
    other.write_text('{"metadata": {}, "nbformat": 3, "nbformat_minor": 0, "cells": []}')
    with pytest.raises(NotebookError, match=r"02_tiny\.ipynb is not a notebook: it is not of version 4"):
        notebooks.load(other)


def test_wrong_names_are_explained(tmp_path):
    write(tmp_path, "02_tiny")
    manifest = {"figure1": Figure("02_tiny", "")}
    with pytest.raises(ValueError, match="'figur1'; did you mean 'figure1'"):
        reproduce.select(["figur1"], manifest, tmp_path)
    with pytest.raises(ValueError, match="there are: figure1, 02_tiny"):
        reproduce.select(["xyz"], manifest, tmp_path)
    with pytest.raises(FileNotFoundError, match="no notebooks in"):
        notebooks.find(tmp_path / "empty")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "claims.json").write_text("{}")
    with pytest.raises(ValueError, match="is no claims ledger"):
        reproduce.run(out=tmp_path / "damaged", manifest=manifest, folder=tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        reproduce.run(out=tmp_path / "02_tiny.ipynb", manifest=manifest, folder=tmp_path)


def test_refresh_and_check(tmp_path):
    path = write(tmp_path, "01_tiny", "# NBVAL_CHECK_OUTPUT\nprint(1 + 1)", "", "full")
    assert any("run once each" in line for line in reproduce.check(path, []))
    notebooks.refresh(path)
    assert reproduce.check(path, []) == []
    first = path.read_bytes()
    notebooks.refresh(path)
    assert path.read_bytes() == first
    node = json.loads(first)
    assert node["cells"][2]["outputs"][0]["text"] == ["2\n"]

    def spoiled(change) -> str:
        copy = json.loads(first)
        change(copy)
        path.write_text(json.dumps(copy, indent=1, ensure_ascii=False) + "\n")
        return "\n".join(reproduce.check(path, []))

    code = [i for i, cell in enumerate(node["cells"]) if cell["cell_type"] == "code"]
    error = {"output_type": "error", "ename": "KeyError", "evalue": "'x'", "traceback": []}
    stderr = {"output_type": "stream", "name": "stderr", "text": ["UserWarning: no\n"]}
    assert spoiled(lambda nb: None) == ""
    shown = [claims.record("A1-tweedie", {"largest_difference": 0.0})._repr_mimebundle_()]
    recorded = {"output_type": "display_data", "data": shown[0], "metadata": {}}
    assert "claim A1-tweedie: recorded in only one" in spoiled(
        lambda nb: nb["cells"][code[1]]["outputs"].append(recorded)
    )
    assert "run once each" in spoiled(lambda nb: nb["cells"][code[1]].update(execution_count=7))
    assert "ended in KeyError" in spoiled(lambda nb: nb["cells"][code[1]]["outputs"].append(error))
    assert "wrote to stderr: UserWarning" in spoiled(
        lambda nb: nb["cells"][code[1]]["outputs"].append(stderr)
    )
    assert "has no output" in spoiled(lambda nb: nb["cells"][code[1]].update(outputs=[]))
    assert "it is not clean" in spoiled(lambda nb: nb["metadata"].update(papermill={"duration": 1}))
    slider = {"output_type": "display_data", "data": {notebooks.WIDGET: {"model_id": "1"}}, "metadata": {}}
    assert "it is not clean" in spoiled(lambda nb: nb["cells"][code[1]]["outputs"].append(slider))
    assert "0 cells tagged" in spoiled(lambda nb: nb["cells"][code[0]]["metadata"].update(tags=[]))
    assert "full = False" in spoiled(
        lambda nb: nb["cells"][code[0]].update(source=["full = True\n", 'out = ""'])
    )


def test_reading_a_notebook_imports_no_grammar_of_addresses(tmp_path):
    """Building it takes two seconds, for each notebook that is run."""
    program = """
import sys; from pathlib import Path; from gnclib.suite import notebooks
notebooks.load(Path(sys.argv[1]))
assert "jsonschema" in sys.modules
assert "lark" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(write(tmp_path, "01_tiny"))], check=True)


def test_a_failed_refresh_leaves_the_notebook(tmp_path):
    path = write(tmp_path, "01_tiny", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(NotebookError, match=r"at '1 / 0': ZeroDivisionError"):
        notebooks.refresh(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["01_tiny.ipynb"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"a": [1.0, 1000.0], "b": {"n": 3}, "s": "x"}, None),
        ({"a": [1.9, 1000.0], "b": {"n": 3}, "s": "x"}, None),  # within 0.1 % of the array's largest value
        ({"a": [1.0, 1001.1], "b": {"n": 3}, "s": "x"}, "a: off by 1.1, allowed 1"),
        ({"a": [1.0, 1000.0], "b": {"n": 4}, "s": "x"}, "b.n: off by 1"),
        ({"a": [1.0], "b": {"n": 3}, "s": "x"}, "a: shape"),
        ({"a": [1.0, float("nan")], "b": {"n": 3}, "s": "x"}, "a: nan or infinite"),
        ({"a": [1.0, 1000.0], "b": {}, "s": "x"}, "b.n: only in one"),
        ({"a": [1.0, 1000.0], "b": {"n": 3}, "s": "y"}, "s: 'y' instead of 'x'"),
    ],
)
def test_differences(value, found):
    reference = {"a": [1.0, 1000.0], "b": {"n": 3}, "s": "x"}
    result = differences(reference, value, rtol=1e-3, atol=0.0)
    assert result == [] if found is None else (len(result) == 1 and result[0].startswith(found))


def test_comparison_of_two_runs(tmp_path):
    def record(value):
        evidence = {"largest_t_star_over_diam2": 0.25, "smallest_scaled_eigenvalue": value}
        return replace(claims.record("C2.3", evidence), notebook="02_tiny", mode="quick")

    def compared():
        return reproduce.compared("02_tiny", old, new, {"two": Figure("02_tiny", "")})

    old, new = tmp_path / "old", tmp_path / "new"
    for folder, value in ((old, 1.0), (new, 1.0 + 1e-5)):
        folder.mkdir()
        (folder / "two.json").write_text(json.dumps({"data": "bsds68", "value": value}))
        ledger.save(folder, [record(value)])
    assert compared() == ({}, {})

    (new / "two.json").write_text(json.dumps({"data": "bsds68", "value": 1.01}))
    ledger.save(new, [record(1.01)])
    changed, elsewhere = compared()
    assert (list(changed), elsewhere) == (["two", "claim C2.3"], {})
    assert changed["claim C2.3"].startswith("smallest_scaled_eigenvalue: off by 0.01, allowed 0.001")

    (new / "two.json").write_text(json.dumps({"data": "embedded", "value": 9.0}))
    assert compared() == ({}, {"two": "made from embedded here, from bsds68 in the reference"})

    (new / "two.json").unlink()
    assert "there is no file" in compared()[0]["two"]


def test_a_check_says_what_differs_and_changes_nothing(tmp_path, monkeypatch):
    run_once(monkeypatch)
    folder, out = tmp_path / "notebooks", tmp_path / "figures"
    write(folder, "02_tiny", saving("two"), CLAIM)
    options = {"manifest": {"two": Figure("02_tiny", "Two")}, "folder": folder, "out": out}
    reproduce.run(**options)
    (same,) = reproduce.run(**options, keep=False)
    assert (same.changed, same.elsewhere, same.redrawn) == ({}, {}, ())
    (out / "two.json").write_text('{"values": [1.0, 2.1]}')
    stored = json.loads((out / "claims.json").read_text())
    stored["records"][0]["evidence"]["steps"] = 5
    (out / "claims.json").write_text(json.dumps(stored))
    before = files(out)
    (item,) = reproduce.run(**options, keep=False)
    assert list(item.changed) == ["two", "claim A1-tweedie"]
    assert files(out) == before


def test_one_run_of_a_notebook_is_compared_with_its_figures_and_claims(tmp_path, monkeypatch):
    """The plugin of `make test`, on what the notebook would have written: all as stored, then one of each changed."""
    monkeypatch.setattr(whole.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setenv(whole.FOLDER, "")
    stored, name = whole.ROOT / "figures", "02_gnc_flow"
    records = {r.id: r for r in ledger.load(stored / "claims.json") if r.notebook == name}

    def write_claim(record):
        (tmp_path / "claims" / f"{record.id}.json").write_text(json.dumps(record.to_json()))

    (tmp_path / "claims").mkdir()
    for figure in (key for key, item in reproduce.MANIFEST.items() if item.notebook == name):
        shutil.copy(stored / f"{figure}.json", tmp_path)
    for record in records.values():
        write_claim(record)
    found = whole.Whole()
    found.compare([name])
    assert (found.figures, found.claims, found.unlike, found.lines) == (5, len(records), 0, [])

    arrive = records["A1-arrive"]
    evidence = arrive.evidence | {"gradient_descent_share": 1.01 * arrive.evidence["gradient_descent_share"]}
    write_claim(replace(arrive, evidence=evidence))  # the verdict stays
    numbers = json.loads((tmp_path / "figure1.json").read_text())
    numbers["t_0"][-1] *= 2
    (tmp_path / "figure1.json").write_text(json.dumps(numbers))
    found.compare([name])
    assert found.unlike == 2
    assert [line.split(":")[0] for line in found.lines] == ["figure1", "claim A1-arrive"]
