"""Figures: the same bytes on every run, whole files or none, and the numbers beside them."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import skimage.color
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from gnclib.io import files
from gnclib.suite import notebooks, plots

SCRIPT = """
import sys, matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from gnclib.suite import notebooks, plots
plots.use_style()
fig, ax = plt.subplots()
for k, colour in enumerate(plots.tau_colours(4)):
    ax.plot([0, 1, 2], [k, k * k, 1], color=colour, label=rf"$\\tau = {k}$")
ax.set_xlabel(r"$y$ [grey value]")
ax.legend()
plots.save(fig, "demo", sys.argv[1], numbers={"k": list(range(4))})
"""


def test_sliders_are_for_people(monkeypatch, capsys):
    monkeypatch.delenv(plots.HEADLESS, raising=False)
    assert plots.sliders()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(plots, "find_spec", lambda _: None)
    assert not plots.sliders()
    assert "ipywidgets" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv(plots.HEADLESS, "1")
    assert not plots.sliders("sigma")
    assert "a slider for sigma appears" in capsys.readouterr().out


def test_two_processes_write_the_same_bytes(tmp_path):
    for run, seed in (("a", "1"), ("b", "2")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": ""}
        environment.pop("SOURCE_DATE_EPOCH")
        subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / run)], check=True, env=environment)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["demo.json", "demo.pdf", "demo.png"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.fixture
def figure():
    fig, ax = plt.subplots()
    ax.plot([0, 1], [1, 0])
    yield fig
    plt.close(fig)


def test_png_and_pdf_hold_no_date_and_no_program(figure, tmp_path):
    plots.save(figure, "demo", tmp_path)
    assert b"CreationDate" not in (tmp_path / "demo.pdf").read_bytes()
    assert b"matplotlib" not in (tmp_path / "demo.png").read_bytes().lower()
    assert not (tmp_path / "demo.json").exists()


def test_an_interrupted_save_leaves_the_old_files(figure, tmp_path, monkeypatch):
    plots.save(figure, "demo", tmp_path, {"a": 1})
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    figure.axes[0].plot([0, 1], [0, 1])
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, "demo", tmp_path, {"a": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_numbers_come_back(figure, tmp_path):
    numbers = {"grid": np.arange(6.0).reshape(2, 3) / 3, "t": torch.tensor(0.1), "gap": [np.nan, -np.inf, 1]}
    plots.save(figure, "demo", tmp_path, numbers)
    back = files.decode(json.loads((tmp_path / "demo.json").read_text()))
    np.testing.assert_allclose(back["grid"], numbers["grid"], rtol=1e-7)
    np.testing.assert_allclose(back["t"], 0.1, rtol=1e-7)
    np.testing.assert_array_equal(back["gap"], numbers["gap"])


@pytest.mark.parametrize("out", ["", None])
def test_empty_folder_writes_nothing(figure, tmp_path, out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plots.save(figure, "demo", out, {"a": 1}) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_environment_takes_what_has_none(figure, tmp_path, monkeypatch):
    monkeypatch.setenv(plots.COLLECT, str(tmp_path / "collected"))
    plots.save(figure, "demo", "", {"a": 1})
    plots.save(figure, "demo", tmp_path / "own", {"a": 2})
    for place, value in (("collected", 1), ("own", 2)):
        assert json.loads((tmp_path / place / "demo.json").read_text()) == {"a": value}


@pytest.mark.parametrize("name", ["figure1.png", "../figure1", "", "Figure 1"])
def test_bad_names(figure, tmp_path, name):
    with pytest.raises(ValueError, match="figure name"):
        plots.save(figure, name, tmp_path)


def test_bad_folder_and_bad_numbers(figure, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        plots.save(figure, "demo", tmp_path / "file")
    with pytest.raises(ValueError, match="cannot store a Figure"):
        plots.save(figure, "demo", tmp_path, {"fig": figure})
    with pytest.raises(ValueError, match="JSON keys are strings"):
        plots.save(figure, "demo", tmp_path, {"by_t": {0.1: 1}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_tau_colours_run_from_blue_to_red_and_get_lighter():
    colours = np.array(plots.tau_colours(9))[:, :3]
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    assert colours[0].argmax() == 2
    assert colours[-1].argmax() == 0
    assert (np.diff(colours[:, 0]) > 0).all()


def test_style_differs_in_more_than_colour():
    with matplotlib.rc_context():
        plots.use_style()
        cycle = list(matplotlib.rcParams["axes.prop_cycle"])
    assert len({entry["color"] for entry in cycle}) == len(cycle) == 7
    assert len({entry["linestyle"] for entry in cycle}) >= 4
    for before, after in pairwise(cycle):
        assert before["linestyle"] != after["linestyle"]
    colours = np.array([matplotlib.colors.to_rgb(entry["color"]) for entry in cycle])
    lightness = np.sort(skimage.color.rgb2lab(colours[None])[0, :, 0])  # of 100, what a grey print keeps
    assert np.diff(lightness).min() > 8


def test_a_text_is_no_answer_to_full():
    """What papermill makes of `-p full no`; every notebook asks."""
    for wrong in ("no", "yes", "", 1, None):
        with pytest.raises(ValueError, match="-p full True or -p full False"):
            plots.use_style(wrong)
    for path in notebooks.find().values():
        (cell,) = [cell for cell in notebooks.load(path).cells if "use_style(" in cell.source]
        assert "plots.use_style(full)" in cell.source, path


def test_frames_make_a_png_that_moves_and_a_figure_that_keeps_the_last(tmp_path):
    plots.use_style()
    fig, ax = plt.subplots(figsize=(2, 1))
    frames = [ax.plot([0, 1], [0, k]) for k in range(4)]
    for folder in ("a", "b"):
        plots.save(fig, "moves", tmp_path / folder, {"k": [0, 1, 2, 3]}, frames)
    assert [line.get_visible() for line in ax.lines] == [False, False, False, True]
    with Image.open(tmp_path / "a" / "moves.png") as picture:
        shown = []
        for k in range(picture.n_frames):
            picture.seek(k)
            shown.append(np.asarray(picture.convert("L")).copy())
    assert len(shown) == 4
    assert all((a != b).any() for a, b in pairwise(shown))
    assert (tmp_path / "a" / "moves.png").read_bytes() == (tmp_path / "b" / "moves.png").read_bytes()
    fig.savefig(tmp_path / "still.png", dpi=100)
    alone = np.asarray(Image.open(tmp_path / "still.png").convert("L")).astype(int)
    assert (alone == shown[-1]).all()
    assert np.abs(alone - shown[0]).mean() > 2
