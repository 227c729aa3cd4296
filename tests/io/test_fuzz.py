"""Every file that gnclib reads, damaged in a thousand ways each: it is refused with its name, or it is whole.

| reader | files | here |
|---|---|---|
| `FieldsOfExperts.from_pretrained` | config.json, model.safetensors | PRIORS, test_pickles, test_bombs |
| `LearnedSchedule.from_pretrained` | schedule.json | test_json |
| `score.load_checkpoint`, `learn.load_checkpoint` | checkpoint.safetensors | test_checkpoints |
| `io.rows` | log.csv | test_logs |
| `card.write` | config.json, training.json, evaluation*.json, log.csv | test_cards |
| `field`, `problems`, `figure3`, `ablations`, `patches`: `load` | five result files | test_json |
| `ledger.load` | claims.json | test_json |
| `ledger.compare_files` | NAME.json of a figure | test_json |
| `notebooks.load`, `parameters` | notebooks | test_notebooks |
| `data` | images of BSDS500 | test_images_with_hashes |

`gnclib.images.writing` and `images.folder_images`, which read any image, have their own tests. Files that only this
process has just written (staged figures, the JSON of `bench`'s child) are not input. The draws are seeded: set GNC_FUZZ
to multiply their number.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from gnclib import io
from gnclib.foe import WEIGHTS, FieldsOfExperts, FoEConfig
from gnclib.images import data
from gnclib.io import CHECKPOINT, files, read_tensors, reading, save_checkpoint, table
from gnclib.io import state as run_state
from gnclib.io.table import Content
from gnclib.restore import learn
from gnclib.restore.learned import ETA_RANGE, LearnedSchedule, Task
from gnclib.score import LearnConfig, TrainState, card, load_checkpoint
from gnclib.score import training as train
from gnclib.studies import ablations, field, figure3, patches, problems
from gnclib.suite import ledger, notebooks
from gnclib.suite.notebooks import NotebookError
from tests import child_runs
from tests.fuzzing import bytes_changed, feed, json_changed, log_changed, pickles, tensors_changed, zipped

MANY = 1000 * int(os.environ.get("GNC_FUZZ", "1"))
CONFIG = FoEConfig(layers=2, features=3, kernel_size=3, nodes_x=7, nodes_tau=5)
ROOT = Path(__file__).parents[2]


def mutants(change, whole: bytes, many: int = MANY, seed: int = 0):
    draw = random.Random(f"{change.__name__} {seed}")
    return (change(draw, whole) for _ in range(many))


def most(outcome, at_least: int = 500) -> None:
    """The mutants were no harmless ones, and there were as many as there should be."""
    assert outcome.total() >= MANY
    assert outcome["refused"] >= at_least, outcome
    print(dict(outcome))


# --- priors -----------------------------------------------------------------------------------------------


@pytest.fixture
def prior(tmp_path):
    FieldsOfExperts(CONFIG).save_pretrained(tmp_path)
    return tmp_path


def whole_prior(model):
    """Its weights are those of its configuration, finite, and give a finite energy."""
    c = model.config
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == c.shapes
    assert all(p.isfinite().all() for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) < 2000
    values = asdict(c)
    assert all(type(values[k]) is type(v) or type(v) is float for k, v in asdict(FoEConfig()).items())


def test_shapes_are_told_without_making_a_prior():
    for config in (CONFIG, FoEConfig(), replace(CONFIG, layers=3, deep_kernel_size=5, dilation=2)):
        assert {k: tuple(v.shape) for k, v in FieldsOfExperts(config).state_dict().items()} == config.shapes


@pytest.mark.parametrize(
    ("name", "change"), [("config.json", json_changed), ("model.safetensors", tensors_changed)]
)
def test_priors(prior, name, change):
    path = prior / name
    read = lambda: FieldsOfExperts.from_pretrained(prior)  # noqa: E731
    most(feed(read, path, mutants(change, path.read_bytes()), whole_prior, named=prior.name))


def test_weights_with_nan_are_refused(prior):
    tensors, _ = read_tensors(prior / "model.safetensors")
    for bad, message in ((float("nan"), "holds nan or infinity"), (float("inf"), "holds nan or infinity")):
        spoiled = {k: v.clone() for k, v in tensors.items()}
        spoiled["weights.1"][2, 3, 4] = bad
        files.write_bytes(prior / "model.safetensors", save(spoiled))
        with pytest.raises(ValueError, match=rf"weights\.1 {message}"):
            FieldsOfExperts.from_pretrained(prior)
    spoiled["weights.1"] = (
        spoiled["weights.1"].double().nan_to_num(posinf=1e200)
    )  # finite, but not as float32
    files.write_bytes(prior / "model.safetensors", save(spoiled))
    with pytest.raises(ValueError, match="too large for float32"):
        FieldsOfExperts.from_pretrained(prior)


NAMES = (
    "",
    ".",
    "..",
    "\0",
    "R1\0",
    "R1/../../..",
    "x" * 300,
    "x" * 5000,
    "é\n",
    "/dev",
    "/dev/zero",
    "/proc/self/mem",
    "*",
    "nul",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_priors(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    loaders = (FieldsOfExperts.from_pretrained, LearnedSchedule.from_pretrained, load_checkpoint)
    for load in (*loaders, learn.load_checkpoint, field.load, figure3.load, ablations.load):
        with pytest.raises(
            (ValueError, OSError)
        ):  # FileNotFoundError where the system does not find the name too long
            load(name)


# --- checkpoints ------------------------------------------------------------------------------------------


def training_checkpoint(folder, monkeypatch):
    config = replace(child_runs.SETTINGS, steps=5, averaging=0.9)
    prior = replace(CONFIG, nodes_x=9)
    state = TrainState(FieldsOfExperts(prior), config)
    images = [child_runs.leaves(40, k) for k in range(2)]
    steps = train.training(state, images)
    next(steps), next(steps)
    state.record |= {"count": 2, "sums": {"loss": 1.0, "image": 1.0, "smoothing": 1.0}, "seconds": 3.5}
    run_state.remember(state)
    save_checkpoint(state, folder)
    return images


def learning_checkpoint(folder):
    model = FieldsOfExperts(CONFIG)
    origin = {"start": "here", "learned_from": "x"}
    learned = LearnedSchedule(
        [0.1, 0.05, 0.01], t_range=(1e-4, 1.0), task=Task("denoise", 25), prior="R9", provenance=origin
    )
    config = LearnConfig(iterations=5, batch=1, patch=16, lr_prior=1e-3)
    state = learn.LearnState(learned, model, config)
    images = [child_runs.leaves(40, k) for k in range(2)]
    steps = learn.learning(state, images)
    next(steps), next(steps)
    run_state.remember(state)
    save_checkpoint(state, folder)
    return images


def finite(state):
    assert all(p.isfinite().all() for p in state.model.parameters())
    assert 0 <= state.step <= 5
    for entries in state.optimizer.state_dict()["state"].values():
        assert all(torch.as_tensor(v).isfinite().all() for v in entries.values())


@pytest.mark.parametrize("kind", ["training", "learning"])
def test_checkpoints(kind, tmp_path, monkeypatch):
    """What is accepted can be gone on with: a step is made of each tenth, which ends, or stops with what it may."""
    make, load, go_on = {
        "training": (lambda f: training_checkpoint(f, monkeypatch), load_checkpoint, train.training),
        "learning": (learning_checkpoint, learn.load_checkpoint, learn.learning),
    }[kind]
    images, path, accepted = make(tmp_path), tmp_path / CHECKPOINT, []

    def valid(state):
        finite(state)
        files.dumps(state.record)
        accepted.append(state)
        if len(accepted) % 10 == 0 and state.config.batch < 50 and state.config.patch < 40:
            try:
                next(go_on(state, images), None)
            except FloatingPointError:
                pass

    most(feed(lambda: load(tmp_path), path, mutants(tensors_changed, path.read_bytes()), valid))
    assert len(accepted) > 50


# --- pickles and bombs ------------------------------------------------------------------------------------


def test_nothing_is_executed(prior):
    """Pickles under every name that is read, alone, zipped, or with the beginning of a good file: no marker appears."""
    marker = prior / "executed"
    learning_checkpoint(prior)
    (prior / "schedule.json").write_text("{}")
    readers = {
        "config.json": FieldsOfExperts.from_pretrained,
        "model.safetensors": FieldsOfExperts.from_pretrained,
        "schedule.json": LearnedSchedule.from_pretrained,
        "checkpoint.safetensors": learn.load_checkpoint,
    }
    bad = pickles(marker)
    assert len(bad) == 16
    for name, read in readers.items():
        whole = (prior / name).read_bytes()
        contents = [*bad, *(whole + content for content in bad), *(whole[:40] + content for content in bad)]
        outcome = feed(lambda: read(prior), prior / name, contents, lambda result: None, named=prior.name)  # noqa: B023
        assert outcome == {"refused": 48}
    assert not marker.exists()
    import pickle

    pickle.loads(bad[0])
    assert marker.is_dir(), "these pickles do nothing: the test shows nothing"


BOMBS = '''
import json, os, resource, sys
from pathlib import Path
from gnclib import io
from gnclib.score import card, load_checkpoint
from gnclib.studies import ablations, field, patches
from gnclib.suite import ledger, notebooks
from gnclib.foe import FieldsOfExperts
from gnclib.restore.learned import LearnedSchedule

folder, prior = Path(sys.argv[1]), Path(sys.argv[2])
FieldsOfExperts.from_pretrained(prior)
now = next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000,) * 2)
config = json.loads((prior / "config.json").read_text())
weights = (prior / "model.safetensors").read_bytes()
size = int.from_bytes(weights[:8], "little")
count = 0

def refused(name, content, read):
    """content: bytes, or the size of a file of zeros that takes no room on the disk."""
    global count
    count += 1
    path = folder / name
    with open(path, "wb") as file:
        file.write(content) if isinstance(content, bytes) else file.truncate(content)
    try:
        read()
    except (ValueError, notebooks.NotebookError) as error:
        assert folder.name in str(error), error
    else:
        raise AssertionError(f"{name} was accepted, {str(content)[:100]}")
    path.unlink()

good = lambda: (folder / "model.safetensors").write_bytes(weights)
load = lambda: FieldsOfExperts.from_pretrained(folder)
huge = {"features": 10**6, "kernel_size": 99_999, "nodes_x": 2**40, "nodes_tau": 10**9, "layers": 10**9}
huge["dilation"] = 10**18
for name, value in huge.items():
    good()
    more = {"kernel_size": 9999} if name == "features" else {}
    refused("config.json", json.dumps(config | {name: value} | more).encode(), load)
(folder / "config.json").write_text(json.dumps(config))
for shape in ([2**20, 2**20], [2**63], [2**32, 2**32]):  # tensors far larger than the file
    header = json.loads(weights[8 : 8 + size])
    header["offset"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0] * shape[-1]]}
    text = json.dumps(header).encode()
    refused("model.safetensors", len(text).to_bytes(8, "little") + text + weights[8 + size :], load)
for length in (10**8, 2**31, 2**63, 2**64 - 1):
    refused("model.safetensors", length.to_bytes(8, "little") + weights[8:], load)
refused("model.safetensors", 2 * 10**9, load)
good()
refused("config.json", 10**8, load)
everything = {
    "schedule.json": lambda: LearnedSchedule.from_pretrained(folder), "log.csv": lambda: io.rows(folder, card.Row),
    "checkpoint.safetensors": lambda: load_checkpoint(folder),
    "a.ipynb": lambda: notebooks.load(folder / "a.ipynb"),
    "claims.json": lambda: ledger.load(folder / "claims.json"),
    "field.json": lambda: field.load(folder / "field.json"),
    "ablations.json": lambda: ablations.load(folder / "ablations.json"),
    "patches.json": lambda: patches.load(folder / "patches.json"),
}
for name, read in everything.items():
    refused(name, 10**8 if name != "checkpoint.safetensors" else 2 * 10**9, read)
    refused(name, b"[" * 1_000_000, read)
    refused(name, b'{"a":' * 100_000, read)
    refused(name, b"1" * 1_000_000, read)
print(count, "refused")
'''


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is limited as Linux does it")
def test_bombs(prior, tmp_path_factory):
    """What claims to be huge is refused in a process that may take no more than 300 MB for all of it."""
    folder = tmp_path_factory.mktemp("bombs")
    run = [sys.executable, "-c", BOMBS, str(folder), str(prior)]
    done = subprocess.run(
        run, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "47 refused\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_pipes_and_devices_do_not_block(prior):
    (prior / "config.json").unlink()
    os.mkfifo(prior / "config.json")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        FieldsOfExperts.from_pretrained(prior)
    (prior / "schedule.json").symlink_to("/dev/zero")
    with pytest.raises(FileNotFoundError):
        LearnedSchedule.from_pretrained(prior)


# --- logs and cards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["R1", "R1-denoise-25"])
def test_logs(kind, tmp_path):
    row = card.Row if kind == "R1" else learn.Row
    whole = (WEIGHTS / kind / "log.csv").read_bytes()
    path = tmp_path / "log.csv"
    path.write_bytes(b"\n".join(whole.split(b"\n")[:7]) + b"\n" if kind == "R1" else whole)
    assert len(io.rows(tmp_path, row)) > 4

    def valid(rows):
        steps = [row.step for row in rows]
        assert all(isinstance(step, int) for step in steps)
        assert steps == sorted(set(steps))
        for found in rows:  # neither text nor infinity; and what was read is written again
            assert all(abs(v) < 1e300 or v != v for v in vars(found).values())
            assert str(found).count(",") == row.COLUMNS.count(",")

    most(feed(lambda: io.rows(tmp_path, row), path, mutants(log_changed, path.read_bytes()), valid), 300)


@pytest.mark.parametrize("name", ["training.json", "evaluation.json", "config.json"])
def test_cards(name, tmp_path):
    """A card is written from good files only: else it stays as it was."""
    folder = WEIGHTS / "R3"
    for file in ("config.json", "training.json", "evaluation.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    values = json.loads((tmp_path / "evaluation.json").read_text())
    for level in values["psnr_by_sigma"].values():  # fewer images
        level["images"] = dict(list(level["images"].items())[:3])
    (tmp_path / "evaluation.json").write_text(json.dumps(values))
    card.write(tmp_path)
    valid = lambda path: path.read_text().startswith(f"# {tmp_path.name}")  # noqa: E731
    contents = mutants(json_changed, (tmp_path / name).read_bytes())
    made = ("README.md",)
    read = lambda: card.write(tmp_path)  # noqa: E731
    most(feed(read, tmp_path / name, contents, valid, made=made, named=name.partition(".")[0]), 400)


# --- files of JSON ----------------------------------------------------------------------------------------


def small(study, **tables):
    """The text of a shipped file with a few rows of each table only."""
    content = study.load()
    few = {name: content.rows[name][:count] for name, count in tables.items()}
    return table.dumps(Content(content.about, few), study.FORM)


def whole_rows(*names):
    """A check that these columns hold finite numbers in all rows."""

    def valid(content):
        for rows in content.rows.values():
            for row in rows:
                assert isinstance(row.made.revision, str)
                for name in names:
                    assert torch.tensor(getattr(row, name, 0.0)).isfinite().all()

    return valid


def whole_figure3(content):
    settings = content.about.settings
    for run in content.rows["runs"]:
        for maps in run.maps.values():
            for rows in maps.values():
                assert torch.tensor(rows).shape == (len(settings.t_firsts), len(settings.steps))


def whole_schedule(schedule):
    low, high = schedule.t_range
    assert bool(((schedule.t >= low) & (schedule.t <= high)).all())
    assert bool(((schedule.eta >= ETA_RANGE[0]) & (schedule.eta <= ETA_RANGE[1])).all())


def whole_ledger(entries):
    assert all(record.verdict in ledger.VERDICTS for record in entries)
    ledger.to_markdown(entries)


def schedule_file(path):
    task, learned = Task("denoise", 25), [0.1, 0.05, 0.01]
    LearnedSchedule(learned, t_range=(1e-4, 1.0), task=task, prior_sha256="0" * 64).save_pretrained(
        path.parent
    )


def figure_file(path):
    (path.parent.parent / "reference.json").write_bytes((ROOT / "figures" / "figure4.json").read_bytes())
    path.write_bytes((ROOT / "figures" / "figure4.json").read_bytes())


def ledger_file(path):
    entries = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))["records"][:4]
    path.write_text(json.dumps({"records": entries}))


def result_file(study, **tables):
    return lambda path: path.write_text(small(study, **tables))


JSON = {
    "schedule.json": (schedule_file, lambda p: LearnedSchedule.from_pretrained(p.parent), whole_schedule),
    "field.json": (result_file(field, results=5, tv=2, timing=14), field.load, whole_rows("psnr", "cpu")),
    "figure3.json": (result_file(figure3, runs=1), figure3.load, whole_figure3),
    "problems.json": (result_file(problems, results=5, tuned=3), problems.load, whole_rows("psnr")),
    "ablations.json": (result_file(ablations, runs=3), ablations.load, whole_rows("psnr", "profile")),
    "patches.json": (result_file(patches, sizes=1), patches.load, whole_rows("cube")),
    "claims.json": (ledger_file, ledger.load, whole_ledger),
    "figure4.json": (
        figure_file,
        lambda p: ledger.compare_files(p.parent.parent / "reference.json", p, 1e-2, 1e-3),
        lambda found: all(isinstance(line, str) for line in found[0]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JSON)
def test_json(name, tmp_path):
    make, read, valid = JSON[name]
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    make(path)
    valid(read(path))
    contents = mutants(json_changed, path.read_bytes())
    most(feed(lambda: read(path), path, contents, valid), 500 if name != "figure4.json" else 200)


def test_numbers_that_are_none(tmp_path):
    """What Python's JSON takes and the standard does not, and what has no place in 64 bits, is refused by name."""
    path = tmp_path / "a.json"
    wrong = (
        "NaN",
        "-Infinity",
        "1e999",
        "1" * 21,
        str(2**63),
        '{"a": 1, "a": 2}',
        "[" * 51 + "]" * 51,
        "\ufeff1",
        "01",
    )
    for text in wrong:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"a\.json is no list of numbers"):
            reading.read_json(path, "list of numbers")
    for text in (str(-(2**63)), "1e299", "[" * 50 + "]" * 50, '"\\u0000"'):
        path.write_text(text, encoding="utf-8")
        assert reading.read_json(path, "list of numbers") == json.loads(text)


# --- notebooks --------------------------------------------------------------------------------------------

TINY = {
    "cells": [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Title"]},
        {
            "cell_type": "code", "execution_count": 1, "id": "b", "metadata": {"tags": ["parameters"]}, "outputs": [],
            "source": ["full = False\n", "out = ''\n", "seed = 0"],
        },
        {
            "cell_type": "code", "execution_count": 2, "id": "c", "metadata": {}, "source": ["print(1)"],
            "outputs": [
                {"name": "stdout", "output_type": "stream", "text": ["1\n"]},
                {"data": {"text/plain": ["1"]}, "execution_count": 2, "metadata": {}, "output_type": "execute_result"},
            ],
        },
    ],
    "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                 "language_info": {"name": "python"}},
    "nbformat": 4, "nbformat_minor": 5,
}  # fmt: skip


def test_notebooks(tmp_path):
    path = tmp_path / "01_tiny.ipynb"
    path.write_text(json.dumps(TINY))
    assert "seed = 0" in notebooks.parameters(notebooks.load(path), path.name).source
    contents = list(mutants(json_changed, path.read_bytes()))

    def valid(content):
        assert all(cell["cell_type"] in ("code", "markdown", "raw") for cell in content["cells"])

    most(feed(lambda: notebooks.load(path), path, contents, valid, allowed=NotebookError))
    read = lambda: notebooks.parameters(notebooks.load(path), path.name)  # noqa: E731
    feed(read, path, contents[::10], lambda cell: "full = False" in cell.source, allowed=NotebookError)


# --- data -------------------------------------------------------------------------------------------------


def test_images_with_hashes(tmp_path, monkeypatch):
    """An image of BSDS500 is read if it has the right hash; whatever else lies in its place is refused by name."""
    import hashlib

    whole = random.Random(0).randbytes(5000)
    monkeypatch.setattr(data, "_hashes", lambda: {"val/3096.jpg": hashlib.sha256(whole).hexdigest()})
    path = tmp_path / "val" / "3096.jpg"
    path.parent.mkdir()
    path.write_bytes(whole)
    read = lambda: data._read_local(tmp_path, "val/3096.jpg")  # noqa: E731
    changed = [c for c in mutants(bytes_changed, whole, 1200) if c != whole][:MANY]
    changed += [b"", zipped(whole), whole + b"\0" * 3_000_000, *pickles(tmp_path / "executed")]

    def never(content):
        raise AssertionError("accepted")

    most(feed(read, path, changed, never))
    assert read() == whole
    assert not (tmp_path / "executed").exists()
