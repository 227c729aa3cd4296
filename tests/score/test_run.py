"""gnc train end to end on small runs: what a run leaves, stopping and going on, options, bad input, the model card."""

import builtins
import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
from dataclasses import asdict, replace
from itertools import islice

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from gnclib.cli import main as cli
from gnclib.deep import load_prior
from gnclib.foe import WEIGHTS, FieldsOfExperts, weights_sha256
from gnclib.images import data, folder_images
from gnclib.io import CHECKPOINT, files, provenance, save_checkpoint
from gnclib.io import state as run_state
from gnclib.score import TrainConfig, TrainState, card, denoising_psnr, load_checkpoint, starts
from gnclib.score import run as training_run
from gnclib.score import training as train
from gnclib.score.recipes import PRIORS, RECIPES
from tests import child_runs
from tests.commands import gnc

SMALL = replace(RECIPES["R1"], steps=4, batch=2, patch=20)
quick = ("--batch", "2", "--patch", "20", "--steps", "4")
CARD = ["README.md", "checkpoint.safetensors", "config.json", "log.csv", "model.safetensors", "training.json"]
pytestmark = pytest.mark.usefixtures("drawn_images")


def equal_weights(a, b):
    a, b = (load_file(folder / "model.safetensors") for folder in (a, b))
    return all(torch.equal(a[k], b[k]) for k in a)


def fresh(config=SMALL, prior="R1"):
    return child_runs.fresh(prior, config)


# --- what a run leaves -------------------------------------------------------------------------------------


def test_a_run_leaves_log_checkpoint_weights_and_card(tmp_path):
    model = child_runs.run(training_run.start("R1", SMALL), tmp_path, every=3)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == card.Row.COLUMNS
    assert [row.split(",")[0] for row in rows[1:]] == ["3", "4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == CARD
    again = FieldsOfExperts.from_pretrained(tmp_path)
    for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    text = (tmp_path / "README.md").read_text()
    assert "| iterations | 4 of batch 2, patches of side 20 |" in text
    assert f"| parameters | {48 * 49 + 48 * 95 * 11 + 11} |" in text
    psnr = denoising_psnr(again, data.validation_images().values(), 25 / 255)
    assert rows[-1].split(",")[5] == f"{psnr[0]:.3f}"


def test_a_notebook_can_drive_a_run(tmp_path):
    """Steps as the training loop gives them, rows as the log has them: means since the last row."""
    steps, rows = zip(*training_run.drive(fresh(), tmp_path, every=3), strict=True)
    assert list(steps) == list(train.training(fresh(), data.training_images()))
    assert [row and row.step for row in rows] == [None, None, 3, 4]
    assert rows[2].image == pytest.approx(sum(s.image for s in steps[:3]) / 3)
    assert rows[3].loss == pytest.approx(steps[3].loss)
    assert [str(row) for row in child_runs.rows(tmp_path)] == [str(rows[2]), str(rows[3])]
    for every in (0, 2.5, True):
        with pytest.raises(ValueError, match="rows of the log must be a positive integer"):
            next(training_run.drive(fresh(), tmp_path, every=every))


def test_leaving_the_loop_writes_a_checkpoint(tmp_path):
    for step, _ in training_run.drive(fresh(), tmp_path / "cut", every=100):
        if step.step == 2:
            break
    state = load_checkpoint(tmp_path / "cut")
    assert state.step == 2
    child_runs.run(state, tmp_path / "cut", every=100)
    child_runs.run(fresh(), tmp_path / "whole", every=100)
    assert equal_weights(tmp_path / "cut", tmp_path / "whole")
    logs = [str(child_runs.rows(tmp_path / name)[0]).rpartition(",")[0] for name in ("cut", "whole")]
    assert logs[0] == logs[1]  # the means are over all four steps


def test_resuming_an_older_checkpoint_rewrites_the_log(tmp_path):
    child_runs.run(fresh(), tmp_path / "a", every=2)
    list(islice(training_run.drive(fresh(), tmp_path / "b", every=2), 2))
    shutil.copy(tmp_path / "a" / "log.csv", tmp_path / "b")  # with a row from the future
    child_runs.run(load_checkpoint(tmp_path / "b"), tmp_path / "b", every=2)
    logs = [[str(r).rpartition(",")[0] for r in child_runs.rows(tmp_path / name)] for name in "ab"]
    assert logs[0] == logs[1]
    assert equal_weights(tmp_path / "a", tmp_path / "b")


def test_a_run_that_was_killed_before_its_first_step_begins_once(tmp_path, monkeypatch):
    """Coarser scales are fitted at the beginning, before the first checkpoint, and not again."""
    begun = []
    monkeypatch.setattr(starts, "begin", lambda *_: begun.append(1))
    config = replace(child_runs.PRIORS["R1"], scales=1, coarse_features=3)
    state = TrainState(FieldsOfExperts(config), replace(SMALL, patch=32))
    running = training_run.drive(state, tmp_path, every=20)
    next(running)
    killed = load_checkpoint(tmp_path)
    assert killed.step == 0
    next(training_run.drive(killed, tmp_path / "again", every=20))
    assert begun == [1]


# --- stopping by a signal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_writes_a_checkpoint_before_it_ends_the_run(tmp_path, capsys, monkeypatch, number):
    loss_parts, calls, handler = train.loss_parts, [], signal.getsignal(number)

    def signalling(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return loss_parts(*arguments)

    monkeypatch.setattr(train, "loss_parts", signalling)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "R1", *quick, "--out", str(tmp_path / "cut")])
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name} after 3 of 4 iterations" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "cut").step == 3
    assert signal.getsignal(number) is handler
    assert gnc(capsys, "train", "R1", "--resume", "--out", tmp_path / "cut")[0] == 0
    child_runs.run(training_run.start("R1", SMALL), tmp_path / "whole")
    assert equal_weights(tmp_path / "cut", tmp_path / "whole")


# --- what can go wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["limit", "write", "replace"])
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, monkeypatch, capsys, how):
    """A real limit on the size of files, which cuts a write in two; and the error of a full disk."""
    steps = training_run.drive(fresh(), tmp_path, every=2)
    assert next(steps)[0].step == 1
    steps.close()
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    else:
        monkeypatch.setattr(files if how == "write" else os, {"write": "write_bytes"}.get(how, how), full)
    try:
        with pytest.raises(OSError, match=r"cannot write to .* at step 2 \(.*\); that of step 1 is intact"):
            next(training_run.drive(load_checkpoint(tmp_path), tmp_path, every=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} <= {CHECKPOINT, "log.csv"}


def break_data(how, root, monkeypatch):
    """BSDS500 below ``root`` as it should not be."""
    monkeypatch.undo()  # the real data.training_images
    monkeypatch.setenv("GNC_DATA_DIR", str(root))
    first = data.bsds500_ids("train")[0]
    path = root / "BSDS500" / "train" / f"{first}.jpg"
    if how == "no folder":
        return "there is no folder"
    path.parent.mkdir(parents=True)
    if how == "no image":
        return f"{path} is missing"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(1000))  # the head of a JPEG
    return f"{path} is not the image of BSDS500 (its SHA-256 differs)"


@pytest.mark.parametrize("how", ["no folder", "no image", "damaged image"])
def test_unreadable_data_stop_the_run_and_keep_the_checkpoint(tmp_path, monkeypatch, capsys, how):
    run = tmp_path / "run"
    list(islice(training_run.drive(fresh(), run), 2))
    before = (run / CHECKPOINT).read_bytes()
    says = break_data(how, tmp_path / "images", monkeypatch)
    status, _, error = gnc(capsys, "train", "R1", "--resume", "--out", run)
    assert status in (1, 2)
    assert error.startswith("gnc: error: ")
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert (run / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_loss_that_is_nan_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch, capsys, part):
    loss_parts, calls = train.loss_parts, []

    def failing(model, *arguments):
        calls.append(1)
        image, smoothing = loss_parts(model, *arguments)
        if len(calls) == 4:  # sqrt has an infinite slope at 0
            image = image * float("nan") if part == "loss" else image + (0 * model.offset).sum().sqrt()
        return image, smoothing

    monkeypatch.setattr(train, "loss_parts", failing)
    status, _, error = gnc(capsys, "train", "R1", *quick, "--every", "2", "--out", tmp_path)
    assert status == 1
    assert {"loss": "the loss is nan", "gradient": "the gradient of the loss is not finite"}[part] in error
    assert "at step 4" in error
    state = load_checkpoint(tmp_path)
    assert state.step == 2
    assert all(p.isfinite().all() for p in state.model.parameters())


def test_contradicting_options_are_refused(tmp_path, capsys, monkeypatch):
    assert gnc(capsys, "train", "R1", *quick, "--out", tmp_path)[0] == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, message in [
        (("--resume", "--batch", "3"), "leave out --batch"),
        (("--resume", "--warm-start", "R1"), "leave out --warm-start"),
        ((), "--resume goes on with it, --out chooses another"),
        (("--resume", "--every", "0"), "--every"),
        (("--device", "cuda"), "torch finds no CUDA here"),
    ]:
        status, _, error = gnc(capsys, "train", "R1", "--out", tmp_path, *words)
        assert status == 2, error
        assert message in error
    status, _, error = gnc(capsys, "train", "R2", "--out", tmp_path, "--resume")
    assert (status, "of another prior" in error) == (2, True)
    for option in ("--resume", "--export-only"):
        status, _, error = gnc(capsys, "train", "R1", "--out", tmp_path / "none", option)
        assert (status, "there is no checkpoint" in error) == (1, True)
    with pytest.raises(ValueError, match="no prior 'R9'"):
        training_run.start("R9", SMALL)


# --- progress ----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_and_elsewhere(tmp_path, capsys, monkeypatch):
    _, out, lines = gnc(capsys, "train", "R1", *quick, "--every", "2", "--out", tmp_path / "a")
    form = r"R1 {}/4: image \d\.\d{{4}}, smoothing -?\d+\.\d\d, validation \d+\.\d\d dB, \d\d:\d\d left"
    assert all(re.fullmatch(form.format(k), line) for k, line in zip((2, 4), lines.splitlines(), strict=True))
    assert "weights, log and checkpoint are in" in out
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert cli.main(["train", "R1", *quick, "--every", "2", "--out", str(tmp_path / "b")]) == 0
    bar = sys.stderr.getvalue().split("\r")[-1]
    rest = r" 4/4 \[.*<00:00.*it.*, image=\d\.\d{4}, smoothing=-?\d+\.\d\d, validation=\d+\.\d\d dB\]"
    assert re.search(r"R1: 100%.*" + rest, bar)


def test_the_library_prints_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(builtins, "print", lambda *_, **__: pytest.fail("the library printed"))
    child_runs.run(fresh(), tmp_path, every=2)
    assert capsys.readouterr() == ("", "")


# --- warm starts -------------------------------------------------------------------------------------------


def test_a_warm_start_is_recorded(tmp_path, capsys):
    shutil.copytree(WEIGHTS / "R1", tmp_path / "mine")
    words = (
        "train",
        "R2",
        *quick,
        "--patch",
        22,
        "--warm-start",
        tmp_path / "mine",
        "--out",
        tmp_path / "run",
    )
    assert gnc(capsys, *words)[0] == 0
    digest = weights_sha256("R1")
    about = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (about["settings"]["warm_start"], about["settings"]["warm_start_sha256"]) == ("mine", digest)
    assert (
        f"| warm start | `mine`, SHA-256 of its weights {digest}" in (tmp_path / "run/README.md").read_text()
    )
    assert load_checkpoint(tmp_path / "run").config.warm_start_sha256 == digest
    # the run started from these weights: the same as by hand
    config = replace(SMALL, warm_start="mine", warm_start_sha256=digest)
    assert training_run.start("R2", SMALL, warm_start="R1").config == replace(config, warm_start="R1")
    for hidden in ("identity", "magnitude"):
        model = FieldsOfExperts(PRIORS["R2"])
        starts.warm_start(
            model, FieldsOfExperts.from_pretrained("R1"), torch.Generator().manual_seed(0), hidden=hidden
        )
        config = replace(SMALL, warm_start_hidden=hidden)
        started = training_run.start("R2", config, warm_start=tmp_path / "mine").model
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), started.parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match="no prior"):
        training_run.start("R2", SMALL, warm_start="R77")


@pytest.mark.parametrize("name", ["R3", "C1", "G1"])
def test_a_prior_is_trained_further(tmp_path, capsys, name):
    """From a prior of the same kind training sets out with its weights; coarser scales are not fitted anew."""
    words = ("train", name, "--warm-start", name, *quick, "--batch", 4, "--steps", 1, "--lr", 1e-30)
    words += ("--lr-constant", 1e-30, "--lr-last", 1e-30, "--lr-coarse", 1e-30, "--patch", 65)
    words += ("--roughness", 0, "--averaging", 0, "--lr-matrix", 1e-30)
    assert gnc(capsys, *words, "--images", "embedded", "--out", tmp_path)[0] == 0
    before, after = load_prior(name), load_prior(tmp_path)
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    settings = json.loads((tmp_path / "training.json").read_text())["settings"]
    assert (settings["warm_start"], settings["warm_start_hidden"]) == (name, "kept")
    about = f"| warm start | `{name}`, SHA-256 of its weights {weights_sha256(name)}, trained further (our choice) |"
    card = (tmp_path / "README.md").read_text()
    assert about in card
    assert "least squares" not in card


def test_no_prior_of_another_kind_is_trained_further(tmp_path, capsys):
    for name, start in (("G1", "R3"), ("R3", "G1")):
        with pytest.raises(ValueError, match=f"{name} cannot set out from {start}"):
            training_run.start(name, SMALL, warm_start=start)
    for name, start, hidden, message in (
        ("R3", "R3", "identity", "leave out --warm-start-hidden"),
        ("M1", "R1", "kept", "'kept' is not one of"),
    ):
        words = ("train", name, "--warm-start", start, "--warm-start-hidden", hidden, "--out", tmp_path)
        assert message in gnc(capsys, *words)[2]
    further = TrainConfig(**json.loads((WEIGHTS / "G1" / "training.json").read_text())["settings"])
    with pytest.raises(ValueError, match="name the prior to start from"):
        training_run.start("G1", further)


# --- model cards -------------------------------------------------------------------------------------------


def test_the_card_of_a_run_that_is_not_finished(tmp_path, capsys):
    """Exported from the checkpoint; resumed later, the run ends as if nobody had asked, and the card changes."""
    child_runs.run(training_run.start("R1", SMALL), tmp_path / "whole")
    list(islice(training_run.drive(training_run.start("R1", SMALL), tmp_path / "R1", every=2), 3))
    status, out, _ = gnc(capsys, "train", "R1", "--export-only", "--out", tmp_path / "R1")
    assert status == 0
    assert "weights after 3 of 4 iterations" in out
    state, shipped = load_checkpoint(tmp_path / "R1"), FieldsOfExperts.from_pretrained(tmp_path / "R1")
    assert all(torch.equal(a, b) for a, b in zip(shipped.parameters(), state.prior.parameters(), strict=True))
    text = (tmp_path / "R1" / "README.md").read_text()
    assert "| iterations | 3 of 4 planned, each of batch 2, patches of side 20 |" in text
    assert "**Not finished.** These are the weights after 3 of 4 planned" in text
    assert "| validation, sigma 25/255, at iteration 2 |" in text
    shutil.copy(WEIGHTS / "R1" / "evaluation.json", tmp_path / "R1")
    card.write(tmp_path / "R1")
    mean = json.loads((WEIGHTS / "R1" / "evaluation.json").read_text())["psnr_by_sigma"]["25"]["mean"]
    assert f"| BSDS68, sigma 25/255 | {mean:.2f} dB" in (tmp_path / "R1" / "README.md").read_text()
    assert gnc(capsys, "train", "R1", "--resume", "--out", tmp_path / "R1")[0] == 0
    assert equal_weights(tmp_path / "R1", tmp_path / "whole")
    text = (tmp_path / "R1" / "README.md").read_text()
    assert "Not finished" not in text
    assert "BSDS68, sigma" not in text  # those numbers were of other weights
    assert (tmp_path / "R1" / "evaluation.json.old").is_file()
    again = (tmp_path / "R1" / "training.json").read_text()
    with open(tmp_path / "R1" / "log.csv", "a") as log:  # killed between the row and the checkpoint
        log.write("999,9.0,9.0,9.0,9.0e-01,99.0,9\n")
    training_run.export(tmp_path / "R1")
    assert "at iteration 999" not in (tmp_path / "R1" / "README.md").read_text()
    assert (tmp_path / "R1" / "training.json").read_text() == again


def test_export_before_the_first_row(tmp_path):
    list(islice(training_run.drive(fresh(), tmp_path), 1))
    training_run.export(tmp_path)
    assert "| validation | none yet |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_exported_is_convex_where_its_configuration_says_so(tmp_path, layers):
    """Also between two of the projections that the training makes, and for its moving average."""
    config = replace(child_runs.PRIORS["R1"], convex_from=0.5, layers=layers)
    state = TrainState(FieldsOfExperts(config), replace(SMALL, averaging=0.5))
    for w in (*state.model.weights, *state.prior.weights):
        w.data += torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    assert not state.prior.certify(1.0).convex
    save_checkpoint(state, tmp_path)
    training_run.export(tmp_path)
    assert FieldsOfExperts.from_pretrained(tmp_path).certify(1.0).convex


@pytest.mark.parametrize(
    ("objective", "says"),
    [("corrected", "boundary term"), ("restored", "eq. 7 as restored"), ("denoising", "departs from eq. 7")],
)
def test_the_card_says_what_was_minimised(tmp_path, objective, says):
    config = replace(SMALL, objective=objective, roughness=3.0, steps=1)
    child_runs.run(fresh(config), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert f"| loss | objective `{objective}`" in text
    assert says in text
    assert "| roughness | 3 times the learning rate" in text
    assert "| warm start | none" in text
    for word in (" torch thread(s)", "BSDS500 train + test", "| seed | 0 |", "AdaBelief"):
        assert word in text
    about = json.loads((tmp_path / "training.json").read_text())
    assert about["settings"] == asdict(config)
    assert about["weights_sha256"] == weights_sha256(tmp_path)


def test_all_revisions_are_named(tmp_path, monkeypatch):
    """Code that made no iteration is forgotten, code that made some is kept, the same code is named once."""
    monkeypatch.setattr(provenance, "revision", lambda: "aaa")
    state = fresh()
    run_state.remember(state)  # and killed before its first step
    save_checkpoint(state, tmp_path)
    for revision, steps in [("bbb", 2), ("ccc", 1), ("ccc", 1)]:
        monkeypatch.setattr(provenance, "revision", lambda name=revision: name)
        state = load_checkpoint(tmp_path)
        for step, _ in training_run.drive(state, tmp_path):
            steps -= 1
            if not steps and step.step < 4:
                break
    about = json.loads((tmp_path / "training.json").read_text())
    assert [(entry["from"], entry["revision"]) for entry in about["history"]] == [(0, "bbb"), (2, "ccc")]
    assert about["revision"] == "bbb for the first 2 iterations, ccc from 2 on"


@pytest.mark.parametrize("name", ["R1", "R2", "R3", "P1", "P2", "P3", "G1"])
def test_the_shipped_cards_are_those_of_the_shipped_files(tmp_path, name):
    shutil.copytree(WEIGHTS / name, tmp_path / name)
    (tmp_path / name / "README.md").unlink()
    assert card.write(tmp_path / name).read_text() == (WEIGHTS / name / "README.md").read_text()
    head = yaml.safe_load((tmp_path / name / "README.md").read_text().split("---\n")[1])
    ((index,), stored) = head["model-index"], json.loads((WEIGHTS / name / "evaluation.json").read_text())
    found = {r["dataset"]["name"]: r["metrics"][0]["value"] for r in reversed(index["results"])}
    for sigma, result in stored["psnr_by_sigma"].items():
        assert found[f"{stored['set']}, sigma {sigma}/255"] == pytest.approx(result["mean"], abs=0.0051)
    assert {(r["task"]["type"], r["metrics"][0]["type"]) for r in index["results"]} == {
        ("image-to-image", "psnr")
    }
    (tmp_path / name / "training.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no training\.json"):
        card.write(tmp_path / name)


@pytest.mark.parametrize("name", sorted(f.parent.name for f in WEIGHTS.glob("*/schedule.json")))
def test_the_shipped_cards_of_schedules_are_those_of_their_files(tmp_path, name):
    (tmp_path / name).mkdir()
    shutil.copy(WEIGHTS / name / "schedule.json", tmp_path / name)
    assert card.write_of_schedule(tmp_path / name).read_text() == (WEIGHTS / name / "README.md").read_text()


# --- gnc evaluate ------------------------------------------------------------------------------------------


def test_evaluate_any_folder(tmp_path, capsys):
    prior = tmp_path / "prior"
    training_run.start("R1", SMALL).model.save_pretrained(prior)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("camera", "coins"):
        grey = (data.embedded()[name][0, 0, :64, :80] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(grey).save(photos / f"{name}.png")
    (photos / "notes.txt").write_text("no image")
    file = tmp_path / "n.json"
    status, out, _ = gnc(
        capsys, "evaluate", "--prior", prior, "--images", photos, "--sigma", "20", "--json", file
    )
    assert status == 0
    assert "mean of 2 images" in out
    images = folder_images(photos)
    values = []
    for k, name in enumerate(("camera.png", "coins.png")):  # written out once more
        x = images[name]
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
        y = x + 20 / 255 * z
        estimate = y - (20 / 255) ** 2 * FieldsOfExperts.from_pretrained(prior).grad(y, (20 / 255) ** 2)
        values.append(-10 * torch.log10((estimate - x).double().square().mean()).item())
    written = json.loads(file.read_text())["psnr_by_sigma"]["20"]
    assert written["mean"] == pytest.approx(sum(values) / 2, abs=1e-4)


def test_the_card_names_the_scheme_that_was_evaluated(tmp_path):
    known = json.loads((WEIGHTS / "R1" / "evaluation_gnc.json").read_text())
    for scheme, words in (("gnc", "GNC flow of 10 steps"), ("joint", "joint descent of 10 steps")):
        (tmp_path / "evaluation.json").write_text(json.dumps(known | {"scheme": scheme}))
        assert f"({words}, mean of 68 images" in card._evaluations(tmp_path)[0][1]


def test_the_card_names_the_precision_and_quotes_the_set(tmp_path):
    known = json.loads((WEIGHTS / "R1" / "evaluation_gnc.json").read_text())
    (tmp_path / "evaluation.json").write_text(json.dumps(known | {"precision": "bf16", "set": "bob's"}))
    assert "GNC flow of 10 steps, in bf16," in card._evaluations(tmp_path)[0][1]
    ((index,),) = yaml.safe_load("\n".join(card._model_index(tmp_path))).values()
    assert index["results"][0]["dataset"]["name"].startswith("bob's, sigma")


def test_old_evaluations_go_before_new_weights_come(tmp_path, monkeypatch):
    """An export that is killed in between leaves no evaluation of other weights beside the new ones."""
    save_checkpoint(fresh(), tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")
    monkeypatch.setattr(FieldsOfExperts, "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training_run.export(tmp_path)
    assert [p.name for p in tmp_path.glob("evaluation*")] == ["evaluation.json.old"]


def test_a_run_of_another_prior_is_not_resumed(tmp_path, capsys):
    config = replace(PRIORS["R1"], features=4, scales=1, coarse_features=3)
    save_checkpoint(TrainState(FieldsOfExperts(config), replace(SMALL, patch=32)), tmp_path)
    for name in ("R1", "C1", "M1"):  # M1 has four coarser scales
        assert "is of another prior than" in gnc(capsys, "train", name, "--resume", "--out", tmp_path)[2]


def test_evaluate_bad_input(tmp_path, capsys):
    for words, message in [
        (("--images", tmp_path), "no image in"),
        (("--images", tmp_path / "none"), "there is no folder"),
        (("--limit", "0"), "--limit"),
        (("--sigma", "2551"), "must lie in (0, 2550]"),
    ]:
        status, _, error = gnc(capsys, "evaluate", *words)
        assert status in (1, 2)
        assert message in error
    with pytest.raises(ValueError, match="no images to evaluate"):
        denoising_psnr(None, [], 0.1)
