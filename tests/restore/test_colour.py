"""Opponent colours: an orthonormal basis, what it gains on photographs, and where it must not be used."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from gnclib.cli import main as cli
from gnclib.foe import WEIGHTS
from gnclib.images import data
from gnclib.images.metrics import ssim
from gnclib.restore import colour, evaluate, schemes
from gnclib.restore.learned import Task
from gnclib.restore.restoration import denoise_gnc

SIGMA = 25 / 255
QUICK = {"steps": 3}
Q = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])  # written out by hand


def cat(noise=SIGMA, seed=0, size=64):
    """Channels (3, H, W) of a photograph."""
    x = data.embedded(colour=True)["chelsea"][:, 0, 60 : 60 + size, 120 : 120 + size]
    return (data.add_noise(x, noise, seed) if noise else x).numpy()


def error(found, x):
    return ((found - x) ** 2).mean()


def in_decibels(ratio):
    return 10 * np.log10(ratio)


def test_the_basis_is_orthonormal_and_its_inverse_exact():
    x = np.random.default_rng(0).random((3, 5, 7))
    planes = colour.to_opponent(x)
    np.testing.assert_allclose(planes - 0.5, np.tensordot(Q, x - 0.5, 1), atol=1e-14)
    np.testing.assert_allclose(colour.from_opponent(planes), x, atol=1e-14)
    grey = np.repeat(x[:1], 3, 0)
    np.testing.assert_allclose(colour.to_opponent(grey)[1:], 0.5, atol=1e-14)  # no difference of colour
    assert colour.to_opponent(x.astype(np.float32)).dtype == np.float32


def test_white_noise_stays_white_and_of_one_level():
    z = np.random.default_rng(1).standard_normal((3, 200, 200))
    planes = colour.to_opponent(z) - 0.5
    covariance = np.cov(planes.reshape(3, -1))
    np.testing.assert_allclose(covariance, np.eye(3), atol=6 / 200)  # 6 standard errors


@pytest.mark.parametrize("count", [1, 2, 4])
def test_only_three_different_channels_are_mixed(count):
    channels = np.random.default_rng(0).random((count, 4, 4))
    assert colour.split(channels)[0] is channels
    grey = np.repeat(channels[:1], 3, 0)
    assert colour.split(grey)[0] is grey  # their noise would be the same, too
    with pytest.raises(ValueError, match=r"opponent or channels, got 'lab'"):
        colour.split(channels, "lab")


def test_denoising_in_opponent_colours_is_denoising_the_planes():
    y = cat()
    planes = [denoise_gnc(plane, SIGMA, **QUICK) for plane in colour.to_opponent(y)]
    found = denoise_gnc(y, SIGMA, channel_axis=0, **QUICK)
    np.testing.assert_allclose(found, colour.from_opponent(np.stack(planes)), atol=1e-6)
    alone = denoise_gnc(y, SIGMA, channel_axis=0, colour="channels", **QUICK)
    np.testing.assert_array_equal(alone, np.stack([denoise_gnc(channel, SIGMA, **QUICK) for channel in y]))


@pytest.mark.parametrize("sigma", [SIGMA, None])
def test_a_decibel_is_gained_on_a_photograph(sigma):
    x, y = cat(0), cat()
    errors = [error(denoise_gnc(y, sigma, channel_axis=0, colour=basis), x) for basis in colour.BASES]
    assert in_decibels(errors[1] / errors[0]) > 1
    np.testing.assert_array_equal(
        denoise_gnc(y, sigma, channel_axis=0, **QUICK),
        denoise_gnc(y, sigma, channel_axis=0, colour="opponent", **QUICK),
    )


def test_equal_channels_are_denoised_as_the_grey_image_they_are():
    grey = cat()[1]
    found = denoise_gnc(np.stack([grey] * 3, -1), channel_axis=-1, **QUICK)
    for k in range(3):
        np.testing.assert_array_equal(found[..., k], denoise_gnc(grey, **QUICK))


def correlated(rho, sigmas=(25, 25, 25)):
    """A photograph under noise with the correlation rho between any two channels."""
    g, x = np.random.default_rng(3), cat(0, size=128)
    common, own = g.standard_normal((1, *x.shape[1:])), g.standard_normal(x.shape)
    noise = np.sqrt(rho) * common + np.sqrt(1 - rho) * own
    return x, (x + np.array(sigmas)[:, None, None] / 255 * noise).astype(np.float32)


@pytest.mark.parametrize("sigma", [SIGMA, None])
@pytest.mark.parametrize("rho", [0.4, 0.8, 1.0])
def test_against_correlated_noise_the_channels_are_taken(rho, sigma):
    """There one sigma for all planes is wrong: brightness would keep its noise."""
    x, y = correlated(rho)
    one_by_one, found, mixed = (
        denoise_gnc(y, sigma, channel_axis=0, colour=basis) for basis in ("channels", "auto", "opponent")
    )
    np.testing.assert_array_equal(found, one_by_one)
    if sigma and rho > 0.5:
        assert in_decibels(error(mixed, x) / error(found, x)) > 1  # what it saves


def test_gnc_denoise_says_that_it_takes_the_channels(capsys, tmp_path):
    for name, rho in (("independent", 0.0), ("common", 0.8)):
        pixels = np.rint(255 * correlated(rho)[1].clip(0, 1)).astype(np.uint8)
        Image.fromarray(np.moveaxis(pixels, 0, -1)).save(tmp_path / f"{name}.png")
        out = tmp_path / f"{name}-out.png"
        words = ["denoise", tmp_path / f"{name}.png", "--sigma", 25, "--steps", 1, "-o", out]
        assert cli.main([str(word) for word in words]) == 0
        said = "does not look independent: they are denoised one by one" in capsys.readouterr().out
        assert said == (name == "common")


@pytest.mark.parametrize("sigmas", [(25, 0, 25), (0, 0, 25)])
def test_clean_channels_stay_as_they_are(sigmas):
    _, y = correlated(0.0, sigmas)
    y[1] = 0.5  # nothing at all in green
    found = denoise_gnc(y, channel_axis=0, **QUICK)
    np.testing.assert_array_equal(found[1], y[1])


@pytest.mark.parametrize("change", ["a pixel", "a tint"])
def test_grey_pictures_stored_in_colour(change):
    noisy = np.stack([correlated(0.0)[1][1]] * 3)
    if change == "a pixel":
        noisy[0, 0, 0] += 1 / 255
    else:
        noisy *= np.array([1.0, 0.9, 0.75], np.float32)[:, None, None]
    found, one_by_one = (denoise_gnc(noisy, SIGMA, channel_axis=0, colour=c) for c in ("auto", "channels"))
    np.testing.assert_array_equal(found, one_by_one)


def test_where_a_plane_shows_no_noise_the_channels_are_taken():
    """A JPEG file stores colour with a quarter of the pixels: its noise is not independent between channels."""
    written = io.BytesIO()
    noisy = np.rint(cat(30 / 255, size=160).clip(0, 1) * 255).astype(np.uint8)
    Image.fromarray(np.moveaxis(noisy, 0, -1)).save(written, "JPEG", quality=92)
    channels = np.moveaxis(np.asarray(Image.open(written)) / np.float32(255), -1, 0)
    planes = colour.choose_planes(channels)
    assert planes.values is channels
    assert (planes.basis, planes.unlike) == ("channels", True)
    assert all(planes.levels)
    flat = np.full((3, 40, 40), 0.4)
    flat[1] = 0.6  # in colour, and nowhere any noise
    np.testing.assert_array_equal(denoise_gnc(flat, channel_axis=0), flat)


def test_clipped_pixels_are_left_out_of_the_estimate_in_the_planes(monkeypatch):
    """Bright skies and dark corners have lost their noise, which the planes no longer show."""
    x, noise = cat(0, size=200), cat(20 / 255, size=200) - cat(0, size=200)
    x[:, :, :60], x[:, :, 140:] = 0.0, 1.0
    y = np.rint((x + noise).clip(0, 1) * 255).astype(np.float32) / 255
    planes = colour.choose_planes(y)
    assert (planes.basis, planes.unlike) == ("opponent", False)
    kept = np.ascontiguousarray((x + noise)[:, :, 60:140])  # where nothing was cut off
    np.testing.assert_allclose(planes.levels, colour.choose_planes(kept, None, "opponent").levels, rtol=0.05)
    monkeypatch.setattr(colour, "clipped", lambda channel: torch.zeros_like(channel) > 0)
    assert 255 * max(colour.choose_planes(y).levels) < 16  # what they would spoil


# --- evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", colour.BASES)
def test_evaluation_measures_all_channels_together(basis):
    x = torch.from_numpy(cat(0))[:, None]
    scheme = schemes.load("gnc", "R1", Task("denoise", 25), 3)
    one = evaluate.restoration(scheme, x, 5, basis)
    y = data.add_noise(x, SIGMA, 5)
    found = denoise_gnc(y[:, 0].numpy(), SIGMA, channel_axis=0, colour=basis, **QUICK)
    np.testing.assert_allclose(one.image[:, 0], found, atol=1e-6)
    assert one.psnr[-1] == pytest.approx(-in_decibels(error(found, x[:, 0].numpy())), abs=1e-3)
    assert one.start == pytest.approx(-in_decibels(error(y, x).item()), abs=1e-3)
    assert one.ssim == pytest.approx(ssim(torch.from_numpy(found)[:, None], x).mean().item(), abs=1e-5)
    assert len(one.psnr) == 3


def test_gnc_evaluate_in_colour(capsys, tmp_path):
    for k in range(2):
        pixels = np.moveaxis(np.rint(255 * cat(0, size=40 + k)), 0, -1).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    values = {}
    for basis in colour.BASES:
        words = ["evaluate", "--images", str(tmp_path), "--colour", basis, "--json", str(tmp_path / "n.json")]
        assert cli.main(words) == 0
        values[basis] = float(re.search(r"sigma +25: ([\d.]+) dB", capsys.readouterr().out)[1])
        assert f'"colour": "{basis}"' in (tmp_path / "n.json").read_text()
    assert values["opponent"] > values["channels"] + 0.5
    assert cli.main([*words[:3], "--task", "inpaint", "--colour", "opponent"]) == 2
    assert "use --colour channels" in capsys.readouterr().err
    assert cli.main([*words[:3], "--task", "inpaint", "--colour", "channels"]) == 0


def test_the_benchmark_in_colour_has_the_grey_one_as_its_luma():
    if not data.available(("val",)):
        pytest.skip("BSDS500 is not at hand")
    colours, grey = (next(iter(data.bsds68(flag).values())) for flag in (True, False))
    assert colours.shape == (3, *grey.shape[1:])
    luma = (torch.tensor(data.LUMA)[:, None, None, None] * colours).sum(0)
    assert (luma - grey[0]).abs().max() < 0.51 / 255 + 1e-3


def test_grey_files_are_none_in_colour(capsys, tmp_path):
    for k in range(2):
        Image.new("L", (20, 20), 90).save(tmp_path / f"{k}.png")
    assert cli.main(["evaluate", "--images", str(tmp_path), "--colour", "opponent"]) == 2
    assert f"0.png and 1 more in {tmp_path}: not in colour" in capsys.readouterr().err


def test_the_guide_tells_what_was_measured_in_colour():
    page = WEIGHTS.parents[1] / "notebooks" / "guide" / "own_images.md"
    told = page.read_text(encoding="utf-8")
    for name in ("R1/evaluation_channels", "R1/evaluation_opponent", "R3/evaluation_opponent"):
        measured = json.loads((WEIGHTS / f"{name}.json").read_text())
        assert (measured["scheme"], measured["set"], measured["clipping"]) == ("learned", "CBSD68", "none")
        assert measured["colour"] == name.split("_")[1]
        one = measured["psnr_by_sigma"]["25"]
        assert len(one["images"]) == 68
        assert f"{one['mean']:.2f} dB" in told
