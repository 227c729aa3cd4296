"""gnc train and gnc evaluate end to end, on small runs; a kill in the middle changes nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from gnclib import cli, data, evaluate, training_run
from gnclib.foe import FieldsOfExperts
from gnclib.train import TrainConfig, TrainState, load_checkpoint

SMALL = TrainConfig(steps=4, batch=2, patch=20)
quick = ("--batch", "2", "--patch", "20", "--threads", "1")


@pytest.fixture
def few_images(monkeypatch):
    """Training and validation on embedded photographs instead of BSDS500."""
    photos = data.embedded()
    monkeypatch.setattr(data, "training_images", lambda: {"camera": photos["camera"]})
    monkeypatch.setattr(data, "validation_images", lambda: {"coins": photos["coins"]})


def test_a_run_leaves_log_checkpoint_and_weights(tmp_path, few_images):
    model = training_run.run(training_run.start("R1", SMALL), tmp_path, every=3)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == training_run.COLUMNS
    assert [row.split(",")[0] for row in rows[1:]] == ["3", "4"]
    again = FieldsOfExperts.from_pretrained(tmp_path)
    for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    card = (tmp_path / "README.md").read_text()
    assert "| iterations | 4 of batch 2, patches of side 20 |" in card
    assert f"| parameters | {48 * 49 + 48 * 95 * 11 + 11} |" in card
    psnr = evaluate.denoising_psnr(again, [data.embedded()["coins"][..., :256, :256]], 25 / 255)
    assert rows[-1].split(",")[5] == f"{psnr[0]:.3f}"


def test_resuming_an_older_checkpoint_rewrites_the_log(tmp_path, few_images):
    training_run.run(training_run.start("R1", SMALL), tmp_path / "a", every=2)
    state = training_run.start("R1", SMALL)
    interrupted = training_run.training(state, data.training_images())
    for _ in range(2):
        next(interrupted)
    training_run.save_checkpoint(state, tmp_path / "b")
    rows = (tmp_path / "a" / "log.csv").read_text().splitlines()
    (tmp_path / "b" / "log.csv").write_text("\n".join(rows) + "\n")  # with a row from the future
    training_run.run(load_checkpoint(tmp_path / "b"), tmp_path / "b", every=2)
    resumed = (tmp_path / "b" / "log.csv").read_text().splitlines()
    assert [r.rsplit(",", 1)[0] for r in resumed] == [
        r.rsplit(",", 1)[0] for r in rows
    ]  # all but the seconds
    a, b = (load_file(tmp_path / folder / "model.safetensors") for folder in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


EMBEDDED_RUN = """
import sys
from gnclib import cli, data, training_run
photos = data.embedded()
data.training_images = lambda: {"camera": photos["camera"]}
data.validation_images = lambda: {"coins": photos["coins"][..., :64, :64]}
run = training_run.run
training_run.run = lambda *args, **options: run(*args, **{**options, "every": 5})
sys.exit(cli.main())
"""


def test_killed_and_resumed_is_bit_identical(tmp_path):
    command = [sys.executable, "-c", EMBEDDED_RUN, "train", "R1"]
    whole = subprocess.run(
        [*command, *quick, "--steps", "20", "--out", tmp_path / "whole"], capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [*command, *quick, "--steps", "20", "--out", tmp_path / "cut"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_checkpoint(tmp_path / "cut").step >= 5
    resumed = subprocess.run(
        [*command, "--resume", "--threads", "1", "--out", tmp_path / "cut"], capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    a, b = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, few_images, monkeypatch):
    training_run.run(training_run.start("R1", SMALL), tmp_path, every=4)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        training_run.run(training_run.start("R1", SMALL), tmp_path, every=2)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md", "checkpoint.safetensors", "config.json", "log.csv", "model.safetensors", "training.json",
    ]  # fmt: skip


def failing(capsys, *words):
    status = cli.main([str(w) for w in words])
    return status, capsys.readouterr().err


def test_contradicting_options_are_refused(tmp_path, few_images, capsys):
    training_run.run(training_run.start("R1", SMALL), tmp_path, every=4)
    for words, message in [
        (("--resume", "--batch", "3"), "leave out --batch"),
        ((), "continue it with --resume"),
        (("--threads", "0"), "--threads must be at least 1"),
    ]:
        status, error = failing(capsys, "train", "R1", "--out", tmp_path, *words)
        assert status == 2, error
        assert message in error
    status, error = failing(capsys, "train", "R2", "--out", tmp_path, "--resume")
    assert (status, "of another prior" in error) == (2, True)
    status, error = failing(capsys, "train", "R1", "--out", tmp_path / "none", "--resume")
    assert (status, "start without --resume" in error) == (1, True)
    with pytest.raises(ValueError, match="no prior 'R9'"):
        training_run.start("R9", SMALL)


def test_evaluate_any_folder(tmp_path, capsys):
    from PIL import Image

    prior = tmp_path / "prior"
    TrainState(training_run.start("R1", SMALL).model, SMALL).model.save_pretrained(prior)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("camera", "coins"):
        grey = (data.embedded()[name][0, 0, :64, :80] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(grey).save(photos / f"{name}.png")
    (photos / "notes.txt").write_text("no image")
    file = tmp_path / "n.json"
    assert (
        cli.main(
            ["evaluate", "--prior", str(prior), "--images", str(photos), "--sigma", "20", "--json", str(file)]
        )
        == 0
    )
    assert "mean of 2 images" in capsys.readouterr().out
    images = evaluate.folder_images(photos)
    values = []
    for k, name in enumerate(("camera.png", "coins.png")):  # written out once more
        x = images[name]
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
        y = x + 20 / 255 * z
        estimate = y - (20 / 255) ** 2 * FieldsOfExperts.from_pretrained(prior).grad(y, (20 / 255) ** 2)
        values.append(-10 * torch.log10((estimate - x).double().square().mean()).item())
    import json

    written = json.loads(file.read_text())["psnr_by_sigma"]["20"]
    assert written["mean"] == pytest.approx(sum(values) / 2, abs=1e-4)


def test_evaluate_bad_input(tmp_path, capsys):
    for words, message in [
        (("--images", tmp_path), "no image in"),
        (("--images", tmp_path / "none"), "there is no folder"),
        (("--limit", "0"), "--limit must be at least 1"),
        (("--sigma", "500"), "outside of this prior's range"),
    ]:
        status, error = failing(capsys, "evaluate", *words)
        assert status in (1, 2)
        assert message in error
    with pytest.raises(ValueError, match="no images to evaluate"):
        evaluate.denoising_psnr(None, [], 0.1)
