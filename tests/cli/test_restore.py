"""gnc denoise and gnc inpaint on files: estimated noise, several inputs, masks, what is kept, and what is refused."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from gnclib.images import data
from gnclib.restore import restoration
from tests.commands import gnc


def grey(height=64, width=80, sigma=0.0, seed=0):
    x = data.embedded()["camera"][..., 128 : 128 + height, 200 : 200 + width]
    y = data.add_noise(x, sigma / 255, seed) if sigma else x
    return (255 * y[0, 0]).round().clamp(0, 255).to(torch.uint8).numpy()


@pytest.fixture
def noisy(tmp_path):
    Image.fromarray(grey(sigma=20)).save(tmp_path / "noisy.png", dpi=(300, 300))
    return tmp_path / "noisy.png"


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_sigma_is_estimated_and_said(capsys, tmp_path, noisy):
    status, out, err = gnc(capsys, "denoise", noisy, "-o", tmp_path / "a.png", "--steps", 3)
    assert (status, err) == (0, "")
    (said,) = re.findall(r"noisy\.png: sigma ([\d.]+) of 255, estimated", out)
    assert float(said) == pytest.approx(20, abs=2.5)
    expected = restoration.denoise_gnc(read(noisy), steps=3, clip=True)
    assert np.abs(read(tmp_path / "a.png") / 255 - expected).max() < 0.51 / 255
    colour = np.stack([grey(sigma=s, seed=s) for s in (10, 20, 40)], -1)
    Image.fromarray(colour).save(tmp_path / "colour.tif")
    words = ("denoise", tmp_path / "colour.tif", "--steps", 1, "--force", "-o", tmp_path / "b.png")
    pattern = r"sigma ([\d.]+), ([\d.]+), ([\d.]+) \((.+)\) of 255, estimated"
    ((*said, planes),) = re.findall(pattern, gnc(capsys, *words, "--colour", "channels")[1])
    np.testing.assert_allclose(np.array(said, float), [10, 20, 40], rtol=0.25)
    assert planes == "red, green, blue"
    ((*said, planes),) = re.findall(pattern, gnc(capsys, *words, "--colour", "opponent")[1])
    squares = np.array([[1, 1, 1], [1.5, 0, 1.5], [0.5, 2, 0.5]]) / 3  # of the orthonormal basis
    np.testing.assert_allclose(np.array(said, float), (squares @ [100, 400, 1600]) ** 0.5, rtol=0.25)
    assert planes == "brightness, two differences of colour"


def test_without_noise_the_picture_stays(capsys, tmp_path):
    flat = np.full((20, 30), 77, np.uint8)
    Image.fromarray(flat).save(tmp_path / "flat.png")
    status, out, _ = gnc(capsys, "denoise", tmp_path / "flat.png", "-o", tmp_path / "out.png")
    assert status == 0
    assert "stays as it is" in out
    np.testing.assert_array_equal(read(tmp_path / "out.png"), flat)


def test_several_files_go_into_a_folder(capsys, tmp_path, noisy):
    name = tmp_path / "mit Leerzeichen und ümläut 図.png"
    Image.fromarray(grey(sigma=20, seed=1)).save(name)
    (tmp_path / "broken.png").write_bytes(noisy.read_bytes()[:200])
    words = ["--sigma", 20, "--steps", 1, "-o", f"{tmp_path}/new/folder/"]
    status, out, err = gnc(capsys, "denoise", noisy, tmp_path / "broken.png", name, *words)
    assert status == 1
    assert "gnc: broken.png failed: " in err
    assert "1 of 3 images failed" in err
    assert sorted(p.name for p in (tmp_path / "new/folder").iterdir()) == sorted(["noisy.png", name.name])
    assert out.count("grey, 8 bit") == 2
    assert gnc(capsys, "denoise", noisy, name, *words)[0] == 1  # they exist
    assert gnc(capsys, "denoise", noisy, name, *words, "--force")[0] == 0
    for bad, message in [
        ([noisy, name, *words[:-1], tmp_path / "one.png"], "need a folder"),
        ([noisy, tmp_path / "new/folder" / "noisy.png", *words[:-1], f"{tmp_path}/x/"], "called noisy.png"),
        ([noisy, name, *words[:-1], noisy], "need a folder"),
    ]:
        status, _, err = gnc(capsys, "denoise", *bad)
        assert status == 2
        assert message in err


def test_in_place_only_by_force_and_never_half(capsys, tmp_path, noisy):
    before = noisy.read_bytes()
    words = ["denoise", noisy, "--sigma", 20, "--steps", 1, "-o", noisy]
    status, _, err = gnc(capsys, *words)
    assert status == 1
    assert "--force" in err
    assert noisy.read_bytes() == before
    assert gnc(capsys, *words, "--force")[0] == 0
    assert noisy.read_bytes() != before
    with Image.open(noisy) as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert [p.name for p in tmp_path.iterdir()] == ["noisy.png"]  # nothing temporary is left


def test_inpaint_fills_the_mask_and_keeps_the_rest(capsys, tmp_path):
    x = grey()
    missing = np.zeros(x.shape, bool)
    missing[20:24, 10:60] = True
    Image.fromarray(np.where(missing, 0, x).astype(np.uint8)).save(tmp_path / "in.png")
    Image.fromarray(missing).save(tmp_path / "bilevel.png")
    Image.fromarray(missing.astype(np.uint8)).save(tmp_path / "ones.png")
    Image.fromarray(np.dstack([0 * x, 200 * missing, 0 * x]).astype(np.uint8)).save(tmp_path / "green.bmp")
    Image.fromarray(np.dstack([np.where(missing, 9, x), 255 - 255 * missing]).astype(np.uint8)).save(
        tmp_path / "cut.png"
    )
    results = []
    for source, mask in [("in", "bilevel.png"), ("in", "ones.png"), ("in", "green.bmp"), ("cut", "alpha")]:
        where = mask if mask == "alpha" else tmp_path / mask
        out = tmp_path / f"out-{mask}.png"
        status, text, err = gnc(capsys, "inpaint", tmp_path / f"{source}.png", "--mask", where, "-o", out)
        assert (status, err) == (0, "")
        assert f"{100 * missing.mean():.3g} % filled in" in text
        results.append(read(out))
    assert (results[3][..., 1] == 255).all()  # opaque now
    results[3] = results[3][..., 0]
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_array_equal(results[0][~missing], x[~missing])
    expected = restoration.inpaint_gnc(x, missing, clip=True)
    assert np.abs(results[0] / 255 - expected).max() < 0.51 / 255


def test_inpaint_errors(capsys, tmp_path, noisy):
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    Image.new("L", (80, 64), 255).save(tmp_path / "all.png")
    Image.new("L", (80, 64), 0).save(tmp_path / "none.png")
    out = tmp_path / "out.png"
    for mask, status, message in [
        (tmp_path / "small.png", 2, "they must agree"), (tmp_path / "all.png", 2, "is it inverted?"),
        ("alpha", 2, "no alpha channel"), (tmp_path / "absent.png", 1, "there is no file"),
        (tmp_path, 1, "is a folder"),
    ]:  # fmt: skip
        result, _, err = gnc(capsys, "inpaint", noisy, "--mask", mask, "-o", out)
        assert (result, message in err) == (status, True), (mask, err)
        assert not out.exists()
    status, text, _ = gnc(capsys, "inpaint", noisy, "--mask", tmp_path / "none.png", "-o", out)
    assert status == 0
    assert "marks no pixel as missing" in text
    np.testing.assert_array_equal(read(out), read(noisy))


def test_strange_noise_levels(capsys, tmp_path, noisy):
    out = tmp_path / "out.png"
    status, _, err = gnc(capsys, "denoise", noisy, "--sigma", 0.1, "-o", out)
    assert status == 2
    assert "--sigma 25.5" in err
    _, text, _ = gnc(capsys, "denoise", noisy, "--sigma", 120, "--scheme", "mmse", "-o", out)
    assert "very strong noise" in text
    status, text, err = gnc(capsys, "denoise", noisy, "--sigma", 400, "-o", out, "--force")
    assert (status, "warning" in text, "must lie in (0, 255]" in err) == (2, False, True)
    status, _, err = gnc(capsys, "denoise", noisy, "--sigma", 0, "-o", out, "--force")
    assert (status, "leave --sigma out" in err) == (2, True)
    assert (
        "--add-noise needs --sigma" in gnc(capsys, "denoise", noisy, "--add-noise", "-o", out, "--force")[2]
    )


def test_a_wrong_prior_is_found_before_sigma_is_estimated(capsys, tmp_path, noisy, monkeypatch):
    monkeypatch.setattr(restoration, "choose_planes", lambda *_: pytest.fail("estimated first"))
    status, text, err = gnc(capsys, "denoise", noisy, "--prior", "R7", "-o", tmp_path / "out.png")
    assert (status, text, "R7" in err) == (1, "", True)


@pytest.mark.parametrize("depth", [8, 16])
def test_sixteen_bits_and_colour_profile_survive(capsys, tmp_path, depth):
    kind = np.uint8 if depth == 8 else np.uint16
    image = np.stack([grey(40, 40, 20, k) for k in range(3)], -1).astype(kind) * (257 if depth == 16 else 1)
    tifffile.imwrite(
        tmp_path / "in.tif", image, photometric="rgb", iccprofile=b"profile", resolution=(150, 150),
        resolutionunit="inch", description="a roof", metadata=None,
    )  # fmt: skip
    words = ["denoise", tmp_path / "in.tif", "--sigma", 20, "--steps", 2, "-o", tmp_path / "out.tif"]
    assert gnc(capsys, *words)[0] == 0
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        page = file.pages[0]
        assert page.dtype == kind
        assert page.iccprofile == b"profile"
        assert page.tags[270].value == "a roof"
        assert page.tags[282].value == (150, 1)
        levels = page.asarray().astype(float)
    assert (np.unique(levels).size > 256) == (depth == 16)
    expected = restoration.denoise_gnc(image, 20 / 255, steps=2, clip=True, channel_axis=-1)
    assert np.abs(levels - expected * (2**depth - 1)).max() < 0.6


def test_uncertainty_is_written_as_numbers_and_as_a_picture(capsys, tmp_path):
    noisy, pixels = tmp_path / "noisy.png", grey(sigma=20) // 2 + 60  # nothing is cut off
    Image.fromarray(pixels).save(noisy)
    words = ("denoise", noisy, "--sigma", 10, "--scheme", "mmse", "-o", tmp_path / "a.png")
    status, out, err = gnc(capsys, *words, "--uncertainty", tmp_path / "std.tif")
    assert (status, err) == (0, "")
    assert "warning" not in out
    expected = restoration.denoise_gnc(pixels, 10 / 255, scheme="mmse", return_std=True)[1]
    std = tifffile.imread(tmp_path / "std.tif")
    assert std.dtype == np.float32
    np.testing.assert_allclose(std, 255 * expected, rtol=1e-4)
    np.testing.assert_allclose(read(tmp_path / "std.png"), 255 * std / std.max(), atol=0.51)
    assert f"white is {std.max():.1f}" in out
    status, _, err = gnc(capsys, *words, "--force", "--uncertainty", tmp_path / "std.png")
    assert (status, "suffixes .tif" in err) == (2, True)
    (tmp_path / "std.tif").unlink()
    status, _, err = gnc(capsys, *words, "--force", "--uncertainty", tmp_path / "nowhere" / "std.tif")
    assert (status, "no folder" in err) == (1, True)
    status, _, err = gnc(capsys, *words, "--uncertainty", tmp_path / "std.tif")
    assert (status, "a.png exists" in err) == (1, True)
    Image.fromarray(pixels[..., None].repeat(3, -1)).save(tmp_path / "rgb.png")
    words = ("denoise", tmp_path / "rgb.png", "-o", tmp_path / "b.png", "--force", "--scheme", "mmse")
    status, out, _ = gnc(capsys, *words, "--uncertainty", tmp_path / "std.tif")
    assert (status, "sigma was estimated" in out) == (0, True)
    assert tifffile.imread(tmp_path / "std.tif").shape == (64, 80, 3)


@pytest.mark.parametrize(
    ("out", "file", "lost"),
    [("y.png", "y.tif", "y.png"), ("z.tif", "z.tif", "z.tif"), ("w.png", "noisy.tif", "noisy.png")],
)
def test_a_map_of_uncertainty_replaces_neither_the_result_nor_the_image(
    capsys, tmp_path, noisy, out, file, lost
):
    """Neither as TIFF nor as the PNG beside it, also with --force, and before anything is computed."""
    before = noisy.read_bytes()
    words = (
        "denoise",
        noisy,
        "--sigma",
        20,
        "-o",
        tmp_path / out,
        "--force",
        "--uncertainty",
        tmp_path / file,
    )
    status, _, err = gnc(capsys, *words)
    assert status == 2
    assert f"would replace {tmp_path / lost}" in err
    assert noisy.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [noisy.name]


def test_a_reference_of_another_depth_has_its_own_range(capsys, tmp_path):
    y = grey(sigma=20)
    tifffile.imwrite(tmp_path / "y.tif", y.astype(np.uint16) * 16)
    Image.fromarray(grey()).save(tmp_path / "8.png")
    tifffile.imwrite(tmp_path / "12.tif", grey().astype(np.uint16) * 16)
    words = ("denoise", tmp_path / "y.tif", "--sigma", 20, "--white", 4080, "--scheme", "mmse", "--force")
    said = [
        gnc(capsys, *words, "-o", tmp_path / "o.tif", "--clean", tmp_path / k)[1] for k in ("8.png", "12.tif")
    ]
    first, second = (
        re.search(r"PSNR ([\d.]+) dB noisy .* ([\d.]+) dB denoised", text).groups() for text in said
    )
    assert first == second
    assert float(first[0]) > 20


def test_a_stack_that_is_busy_does_not_end_a_batch(capsys, tmp_path, noisy, monkeypatch):
    def busy(source, *_, **__):
        raise RuntimeError(f"another process works on {source}")

    monkeypatch.setattr("gnclib.restore.denoise_stack", busy)
    tifffile.imwrite(tmp_path / "a.tif", np.stack([grey()] * 5), photometric="minisblack")
    words = (
        "denoise",
        tmp_path / "a.tif",
        noisy,
        "--sigma",
        20,
        "--scheme",
        "mmse",
        "-o",
        f"{tmp_path}/out/",
    )
    status, _, err = gnc(capsys, *words)
    assert (status, "a.tif failed: another process" in err, "1 of 2 images failed" in err) == (1, True, True)
    assert (tmp_path / "out" / noisy.name).is_file()


def test_planes_that_may_be_frames_are_named(capsys, tmp_path):
    frames, words = np.stack([grey(sigma=20, seed=k) for k in range(4)]), ("--sigma", 20, "--scheme", "mmse")
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="rgb", planarconfig="separate")
    _, out, err = gnc(capsys, "denoise", tmp_path / "a.tif", *words, "-o", tmp_path / "b.tif")
    assert "stored plane by plane" in out + err
    tifffile.imwrite(tmp_path / "c.tif", frames, photometric="minisblack")
    gnc(capsys, "denoise", tmp_path / "c.tif", *words, "-o", tmp_path / "d.tif")
    assert tifffile.imread(tmp_path / "d.tif").shape == frames.shape


def test_the_noise_of_each_frame_is_for_stacks_and_estimated(capsys, tmp_path, noisy):
    words = ("denoise", noisy, "--scheme", "mmse", "--per-frame", "-o", tmp_path / "b.png")
    assert "is for stacks" in gnc(capsys, *words)[2]
    for more in (("--sigma", 20), ("--gain", 0.01)):
        assert "leave --sigma and --gain away" in gnc(capsys, *words, *more)[2]
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("shape", [(48, 48), (48, 48, 3)])
def test_less_noise_than_the_prior_knows_is_refused_in_grey_and_colour(shape):
    y = np.random.default_rng(0).uniform(0, 1, shape)
    with pytest.raises(ValueError, match="range"):
        restoration.denoise_gnc(y, 1.5 / 255, channel_axis=-1 if len(shape) == 3 else None)


def test_most_of_an_image_is_missing_only_if_that_is_meant(capsys, tmp_path, noisy):
    x, out = read(noisy), tmp_path / "out.png"
    known = np.zeros(x.shape, np.uint8)
    known[:50] = 255
    Image.fromarray(known).save(tmp_path / "mask.png")
    words = ("inpaint", noisy, "--mask", tmp_path / "mask.png", "-o", out, "--steps", 1, "--force")
    status, _, err = gnc(capsys, *words)
    assert (status, "white = missing: 78.1 %): is it inverted?" in err) == (2, True)
    assert not out.exists()
    status, text, _ = gnc(capsys, *words, "--invert")
    assert (status, "white = known: 21.9 % filled in" in text) == (0, True)
    np.testing.assert_array_equal(read(out)[:50], x[:50])
    assert gnc(capsys, *words, "--yes")[0] == 0
    np.testing.assert_array_equal(read(out)[50:], x[50:])


def test_twelve_bits_in_sixteen(capsys, tmp_path):
    x = np.rint(grey(sigma=20) / 255 * 4000).astype(np.uint16)
    Image.fromarray(x + 95).save(tmp_path / "in.png")
    words = (
        "denoise",
        tmp_path / "in.png",
        "-o",
        tmp_path / "out.png",
        "--sigma",
        20,
        "--steps",
        2,
        "--force",
    )
    assert "--white 4095 for 12 bits" in gnc(capsys, *words)[1]
    status, out, _ = gnc(capsys, *words, "--white", 4095, "--black", 95)
    assert (status, "warning" in out) == (0, False)
    expected = 95 + 4000 * restoration.denoise_gnc(x / 4000, 20 / 255, steps=2)
    assert np.abs(read(tmp_path / "out.png") - expected).max() < 0.6
    for wrong in (("--white", 0), ("--black", 70000), ("--white", 70000), ("--black", -1)):
        status, _, err = gnc(capsys, *words, *wrong)
        assert (status, "0 <= black < white <= 65535" in err) == (2, True)


@pytest.mark.skipif(os.name != "posix", reason="about the shell of Unix")
def test_files_are_written_whoever_reads_the_report(tmp_path, noisy):
    gnc = f"{sys.executable} -m gnclib denoise noisy.png --force --steps 1 -o"
    (tmp_path / "o").mkdir()
    (tmp_path / "two.png").write_bytes(noisy.read_bytes())
    commands = [f"{gnc} p.png | true", f"{gnc} q.png 2>&- >&-", f"{gnc} o/ two.png 2>&1 | head -1"]
    done = [subprocess.run(c, shell=True, cwd=tmp_path, capture_output=True, text=True) for c in commands]
    assert [process.stderr for process in done] == [""] * 3
    expected = (tmp_path / "p.png").read_bytes()
    for name in ("q.png", "o/noisy.png", "o/two.png"):
        assert (tmp_path / name).read_bytes() == expected
