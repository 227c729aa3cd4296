"""What a run is trained on: BSDS500, the photographs of scikit-image, a folder of one's own; and never val."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from gnclib.images import data
from gnclib.restore import learn
from gnclib.restore.learned import Task
from gnclib.score import LearnConfig, load_checkpoint, training_set
from gnclib.score import run as training_run
from gnclib.score.recipes import RECIPES
from gnclib.score.training_set import EMBEDDED
from tests import child_runs
from tests.commands import gnc

SMALL = replace(RECIPES["R1"], steps=4, batch=2, patch=20)


@pytest.fixture
def photos(tmp_path):
    """Eighteen drawn images of 40 x 30 pixels, one of them in colour, beside a text."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    for k in range(18):
        grey = (child_runs.leaves(40, k)[0, 0, :30] * 255).byte().numpy()
        Image.fromarray(np.stack([grey] * 3, -1) if k == 3 else grey).save(folder / f"p{k:02}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def no_bsds(monkeypatch):
    """A machine that has neither BSDS500 nor a network."""
    for name in ("training_images", "validation_images"):
        monkeypatch.setattr(data, name, lambda: pytest.fail("BSDS500 is not needed"))


def config(folder, **settings):
    return replace(SMALL, images=str(folder), **settings)


# --- which images ----------------------------------------------------------------------------------------------------


def test_one_image_in_eight_is_held_out(photos):
    found = training_set.training_set(photos)
    assert len(found.train) == 16
    assert len(found.held_out) == 2
    kept = {x.numpy().tobytes() for x in found.train.values()}
    assert not kept & {x.numpy().tobytes() for x in found.held_out}
    assert all(x.shape == (1, 1, 30, 40) and x.dtype == torch.float32 for x in found.train.values())
    assert found.about == "16 of the 18 images of the folder `my photos`; the other 2 for validation"


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (15, 1), (16, 2), (70, 8), (200, 8)])
def test_between_one_and_eight_are_held_out(monkeypatch, count, held_out):
    images = {f"p{k:03}": child_runs.leaves(8, k % 5) + k / 1000 for k in range(count)}
    monkeypatch.setattr(data, "embedded", lambda: images)
    found = training_set.training_set(EMBEDDED)
    assert (len(found.held_out), len(found.train)) == (held_out, count - held_out)


def test_held_out_images_are_cropped():
    found = training_set.training_set(EMBEDDED)
    assert [tuple(x.shape) for x in found.held_out] == [(1, 1, 256, 256)]
    assert max(x.shape[-1] for x in found.train.values()) > 256


def test_what_counts_as_an_image(photos):
    """Not hidden files, not those of subfolders, not a text with the name of an image of val; 16 bits and links do."""
    (photos / "sub").mkdir()
    for name in ("sub/p.png", ".hidden.png"):
        shutil.copy(photos / "p00.png", photos / name)
    (photos / "101085.txt").write_text("no image")
    wide = (np.arange(30 * 40).reshape(30, 40) * 54).astype(np.uint16)
    Image.fromarray(wide).save(photos / "wide.PNG")
    tifffile.imwrite(photos / "wide.tif", np.stack([wide[::-1]] * 3, -1), photometric="rgb")
    (photos / "p00.png").rename(photos / "sub" / "moved.png")
    (photos / "link.png").symlink_to(photos / "sub" / "moved.png")
    found = training_set.training_set(photos)
    assert len(found.train) + len(found.held_out) == 20
    assert not {"p.png", ".hidden.png"} & found.train.keys()
    for name, values in (("wide.PNG", wide), ("wide.tif", wide[::-1])):
        np.testing.assert_allclose(found.train[name][0, 0].numpy(), values / 65535, atol=1e-7)


def test_the_digest_knows_names_order_and_pixels(photos):
    first = training_set.training_set(photos).digest
    assert training_set.training_set(photos).digest == first
    (photos / "p05.png").rename(photos / "q05.png")
    renamed = training_set.training_set(photos).digest
    with Image.open(photos / "p07.png") as image:
        changed = np.array(image)
    changed[3, 4] ^= 1
    Image.fromarray(changed).save(photos / "p07.png")
    assert len({first, renamed, training_set.training_set(photos).digest}) == 3


def test_bsds500_by_default(monkeypatch):
    monkeypatch.setattr(data, "training_images", lambda: {"a": child_runs.leaves(40)})
    monkeypatch.setattr(
        data, "validation_images", lambda: {f"b{k}": child_runs.leaves(300, k) for k in range(9)}
    )
    found = training_set.training_set()
    assert (list(found.train), len(found.held_out), found.digest) == (["a"], 8, "")
    assert found.held_out[0].shape == (1, 1, 256, 256)


# --- never val -------------------------------------------------------------------------------------------------------


def test_images_of_val_are_refused_by_content_and_by_name(photos, monkeypatch):
    content = (photos / "p01.png").read_bytes()
    hashes = {**data._hashes(), "val/101085.jpg": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(data, "_hashes", lambda: hashes)
    with pytest.raises(ValueError, match=r"p01\.png is an image of BSDS500 val.*never train on it"):
        training_set.training_set(photos)
    (photos / "p01.png").rename(photos / "101085.png")
    Image.new("L", (40, 30)).save(photos / "101085.png")
    with pytest.raises(ValueError, match=r"names of images of BSDS500 val.*101085.*other names"):
        training_set.training_set(photos)


@pytest.mark.skipif(not os.environ.get("GNC_DATA_DIR"), reason="needs a local copy of BSDS500")
def test_a_real_image_of_val_is_refused_under_any_name(photos):
    source = data._local_folder() / "val" / f"{data.bsds68_ids()[0]}.jpg"
    shutil.copy(source, photos / "holiday.jpg")
    with pytest.raises(ValueError, match=r"holiday\.jpg is an image of BSDS500 val"):
        training_set.training_set(photos)


# --- what cannot be trained on ---------------------------------------------------------------------------------------


def test_bad_folders_are_refused(photos, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no folder .*'embedded'"):
        training_set.training_set(tmp_path / "nowhere")
    one = tmp_path / "one"
    one.mkdir()
    with pytest.raises(ValueError, match="no image in"):
        training_set.training_set(one)
    shutil.copy(photos / "p00.png", one)
    with pytest.raises(ValueError, match="at least two are needed"):
        training_set.training_set(one)
    with pytest.raises(ValueError, match=r"31 x 31 pixels do not fit into p00\.png \(40 x 30\).*--patch"):
        training_set.training_set(photos, patch=31)
    with pytest.raises(NotADirectoryError, match=r"p03\.png is a file: give the folder"):
        training_set.training_set(photos / "p03.png")
    Image.new("L", (2, 1)).save(photos / "a.png")  # comes first, and would be held out
    with pytest.raises(ValueError, match=r"do not fit into a\.png \(2 x 1\)"):
        training_set.training_set(photos, patch=20)
    (photos / "a.png").unlink()
    for name, kind in (("LAB.tif", "LAB"), ("far.png", "1")):
        Image.new(kind, (40, 30) if kind == "LAB" else (20_000, 20_000)).save(photos / name)
        with pytest.raises(ValueError, match=name):
            training_set.training_set(photos)
        (photos / name).unlink()
    for damage in (lambda b: b[:60], lambda b: b[:40] + bytes(50) + b[90:], lambda b: b""):
        whole = (photos / "p02.png").read_bytes()
        (photos / "p02.png").write_bytes(damage(whole))
        with pytest.raises(ValueError, match=r"p02\.png is "):
            training_set.training_set(photos)
        (photos / "p02.png").write_bytes(whole)
    (photos / "p02.png").write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"p02\.png is a damaged image file"):
        training_set.training_set(photos)
    monkeypatch.setattr(training_set, "MOST_PIXELS", 20_000)
    monkeypatch.setattr(data, "folder_images", lambda _: pytest.fail("decoded before it was counted"))
    with pytest.raises(ValueError, match="million pixels, more than"):
        training_set.training_set(photos)


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_copies_are_refused(photos):
    """Two files of one image, whatever their names and formats: one could be trained on, the other held out."""
    Image.open(photos / "p05.png").save(photos / "zz.bmp")
    with pytest.raises(ValueError, match=r"p05\.png and zz\.bmp are the same image: keep one of them"):
        training_set.training_set(photos)


def test_train_on_a_folder_and_resume(photos, tmp_path, capsys, no_bsds):
    options = ("--images", photos, "--batch", "2", "--patch", "20", "--steps", "4", "--every", "2")
    assert gnc(capsys, "train", "R1", *options, "--out", tmp_path / "whole")[0] == 0
    text = (tmp_path / "whole" / "README.md").read_text()
    assert (
        "| training data | 16 of the 18 images of the folder `my photos`; the other 2 for validation |"
        in text
    )
    assert "dB (one-step MMSE, 2 of the 18 images of the folder `my photos`, held out)" in text
    assert "BSDS500" not in text
    assert "license" not in text  # whose photographs they are is not known
    about = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert about["settings"]["images"] == "my photos"
    assert len(about["settings"]["images_sha256"]) == 64
    assert str(tmp_path) not in (tmp_path / "whole" / "training.json").read_text()

    parts = tmp_path / "parts"
    for step, _ in training_run.drive(training_run.start("R1", config(photos)), parts):
        if step.step == 2:
            break
    moved = photos.rename(tmp_path / "moved")
    assert "no folder" in gnc(capsys, "train", "R1", "--resume", "--out", parts)[2]
    assert gnc(capsys, "train", "R1", "--resume", "--images", moved, "--out", parts)[0] == 0
    one, other = (load_checkpoint(folder).prior.state_dict() for folder in (tmp_path / "whole", parts))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("began_with", ["", "photos"])
def test_no_resumption_on_other_images(photos, tmp_path, capsys, drawn_images, began_with):
    began = config(photos) if began_with else SMALL
    for step, _ in training_run.drive(training_run.start("R1", began), tmp_path / "run"):
        if step.step == 2:
            break
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    (photos / "p09.png").unlink()
    options = () if began_with else ("--images", photos)
    status, _, said = gnc(capsys, "train", "R1", "--resume", *options, "--out", tmp_path / "run")
    assert status
    assert "began with other images" in said
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


def test_learn_a_schedule_on_a_folder(photos, tmp_path, no_bsds):
    prior = tmp_path / "tiny"
    child_runs.fresh("R1").model.save_pretrained(prior)
    settings = LearnConfig(iterations=2, patch=16, images=str(photos))
    state = learn.start(prior, Task("denoise", 25), settings, steps=2)
    list(learn.drive(state, tmp_path / "run"))
    text = (tmp_path / "run" / "README.md").read_text()
    assert "16 of the 18 images of the folder `my photos`" in text
    assert "Validation: mean PSNR over 2 of the 18 images of the folder `my photos`, held out" in text
    assert "BSDS" not in text
    assert str(tmp_path) not in (tmp_path / "run" / "schedule.json").read_text()


def test_train_and_learn_take_the_photographs_of_scikit_image(tmp_path, capsys, no_bsds):
    few = ("--images", "embedded", "--batch", "2", "--patch", "20")
    assert gnc(capsys, "train", "R1", *few, "--steps", "2", "--out", tmp_path / "prior")[0] == 0
    words = (
        "learn",
        tmp_path / "prior",
        *few,
        "--iterations",
        "1",
        "--steps",
        "2",
        "--out",
        tmp_path / "run",
    )
    status, _, said = gnc(capsys, *words)
    assert status == 0, said
    assert "10 of the 11 images of scikit-image" in (tmp_path / "run" / "README.md").read_text()
