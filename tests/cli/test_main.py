"""The command gnc: clear errors with the right exit status, help that answers at once, and denoising end to end."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gnclib.cli import main as cli
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.images import data
from gnclib.restore.schemes import SCHEMES
from tests.commands import gnc


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    torch.manual_seed(0)
    FieldsOfExperts(FoEConfig(features=8, kernel_size=3)).save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    image = (data.embedded()["camera"][0, 0, 128:192, 200:280] * 255).round().to(torch.uint8).numpy()
    Image.fromarray(image).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_version():
    done = subprocess.run([sys.executable, "-m", "gnclib", "--version"], capture_output=True, text=True)
    assert re.fullmatch(r"gnclib \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_with_examples(capsys, command):
    status, out, _ = gnc(capsys, command, "--help")
    assert status == 0
    assert "examples:" in out
    assert f"  gnc {command}" in out


def test_the_help_knows_the_numbers_of_steps(capsys):
    _, out, _ = gnc(capsys, "denoise", "--help")
    gnc_, linear, joint = (tuple(SCHEMES[name].values()) for name in ("gnc", "linear", "joint"))
    said = f"gnc (default: {gnc_[0]}, inpainting {gnc_[1]}), linear {linear} and joint {joint}"
    assert said in " ".join(out.split())


def test_wrong_usage_ends_in_one_line(capsys):
    for words in ([], ["figure"], ["denoise", "a.png"], ["figures", "--only"]):
        status, _, err = gnc(capsys, *words)
        assert status == 2
        assert re.search(r"^gnc.*: error: .+$", err.strip().splitlines()[-1])


def test_unknown_figure(capsys, tmp_path):
    status, _, err = gnc(capsys, "figures", "--only", "figur1", "--out", tmp_path)
    assert status == 2
    assert err == "gnc: error: no figure or notebook is called 'figur1'; did you mean 'figure1'?\n"


def test_figures_list(capsys):
    from gnclib.suite.reproduce import MANIFEST

    _, out, _ = gnc(capsys, "figures", "--list")
    assert {line.split()[0]: line.split()[1] for line in out.splitlines()} == {
        name: figure.notebook for name, figure in MANIFEST.items()
    }


@pytest.mark.parametrize("changed", [{}, {"figure1": "t: off by 1"}])
def test_figures_says_what_changed(capsys, monkeypatch, tmp_path, changed):
    from gnclib.suite import reproduce

    done = [reproduce.Done("02_gnc_flow", 1.0, ("figure1", "gnc_failure"), changed=changed)]
    monkeypatch.setattr(reproduce, "run", lambda *_, **__: done)
    assert cli.main(["figures", "--only", "figure1", "--out", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    says = "changed: figure1" if changed else "no number has changed"
    assert last == f"2 figures and claims.md are in {tmp_path}; {says}"


def test_check_without_a_reference(capsys, tmp_path):
    status, _, err = gnc(capsys, "figures", "--check", "--out", tmp_path / "absent")
    assert status == 1
    assert "no folder" in err


def test_denoise_improves_and_reports(capsys, tmp_path, photo, prior):
    out = tmp_path / "out.png"
    words = (
        "denoise",
        photo,
        "--sigma",
        25,
        "--add-noise",
        3,
        "-o",
        out,
        "--prior",
        prior,
        "--scheme",
        "mmse",
    )
    status, text, err = gnc(capsys, *words)
    assert (status, err) == (0, "")
    noisy, denoised = map(float, re.search(r"PSNR ([\d.]+) dB noisy .* ([\d.]+) dB denoised", text).groups())
    assert noisy == pytest.approx(20 * np.log10(255 / 25), abs=0.3)
    clean, written = (np.asarray(Image.open(path), float) / 255 for path in (photo, out))
    assert -10 * np.log10(np.mean((clean - written) ** 2)) == pytest.approx(denoised, abs=0.006)


def test_denoise_works_channel_by_channel_and_keeps_alpha(capsys, tmp_path, prior):
    array = np.random.default_rng(0).integers(0, 256, (24, 30, 4), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "rgba.png")
    Image.fromarray(array[..., 1]).save(tmp_path / "green.png")
    for name in ("rgba", "green"):
        words = ("denoise", tmp_path / f"{name}.png", "--sigma", 20, "-o", tmp_path / f"{name}-out.png")
        assert gnc(capsys, *words, "--colour", "channels", "--prior", prior, "--steps", 3)[0] == 0
    colour, green = (np.asarray(Image.open(tmp_path / f"{name}-out.png")) for name in ("rgba", "green"))
    np.testing.assert_array_equal(colour[..., 3], array[..., 3])
    np.testing.assert_array_equal(colour[..., 1], green)
    assert (green != array[..., 1]).mean() > 0.5


def test_denoise_errors(capsys, tmp_path, photo, prior):
    out = tmp_path / "out.png"
    small = tmp_path / "small.png"
    Image.new("L", (5, 5)).save(small)
    good = ["denoise", photo, "--sigma", 25, "-o", out, "--prior", prior]
    for words, status, message in [
        ([*good[:3], 1, *good[4:]], 2, "outside of this prior's range, 2.55 to 255"),
        ([*good[:3], "nan", *good[4:]], 2, "must lie in (0, 255]"),
        (["denoise", tmp_path / "no.png", *good[2:]], 1, "there is no file"),
        ([*good[:5], tmp_path / "out.xyz", *good[6:]], 2, "choose one of the suffixes"),
        ([*good[:7], tmp_path / "nothing"], 1, "nothing"),
        ([*good, "--clean", small], 2, "they must agree"),
        ([*good, "--clean", photo, "--add-noise"], 2, "leave --clean away"),
        ([*good, "--steps", 0], 2, "integer >= 1"),
        ([*good, "--device", "abacus"], 2, "abacus"),
        ([*good[:5], photo, *good[6:]], 1, "--force"),
    ]:
        result, _, err = gnc(capsys, *words)
        assert (result, message in err) == (status, True), (words, err)
        assert "Traceback" not in err
        assert not out.exists()


def test_debug_shows_the_traceback(capsys, tmp_path):
    with pytest.raises(FileNotFoundError):
        cli.main(
            ["denoise", str(tmp_path / "no.png"), "--sigma", "25", "-o", str(tmp_path / "o.png"), "--debug"]
        )


def test_data_says_what_is_missing(capsys, tmp_path, monkeypatch):
    (tmp_path / "BSDS500").mkdir()
    monkeypatch.setenv("GNC_DATA_DIR", str(tmp_path))
    status, out, _ = gnc(capsys, "data")
    assert status == 0
    assert out.count("not there") == 3
    assert "gnc data download" in out
    status, _, err = gnc(capsys, "data", "verify")
    assert status == 1
    assert "not complete" in err
    assert str(tmp_path) in err


def test_evaluate_chooses_a_scheme_that_fits_the_task(capsys, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    for task, gradients in (("denoise", 1), ("inpaint", 30)):
        code, out, _ = gnc(capsys, "evaluate", "--task", task, "--images", tmp_path)
        assert code == 0
        assert f"{gradients} gradient(s) per image" in out
