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
from gnclib.restore.colour import choose_planes
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


def opponent(channels):
    return choose_planes(channels, SIGMA, "opponent")


def in_decibels(ratio):
    return 10 * np.log10(ratio)


def test_the_basis_is_orthonormal_and_its_inverse_exact():
    x = np.random.default_rng(0).random((3, 5, 7))
    planes = opponent(x)
    np.testing.assert_allclose(planes.values - 0.5, np.tensordot(Q, x - 0.5, 1), atol=1e-14)
    np.testing.assert_allclose(planes.join(planes.values), x, atol=1e-14)
    grey = np.repeat(x[:1], 3, 0)
    grey[2] += 1e-15  # or else its channels stay what they are
    np.testing.assert_allclose(opponent(grey).values[1:], 0.5, atol=1e-14)  # no difference of colour
    assert opponent(x.astype(np.float32)).values.dtype == np.float32


def test_white_noise_stays_white_and_of_one_level():
    z = np.random.default_rng(1).standard_normal((3, 200, 200))
    planes = opponent(z).values - 0.5
    covariance = np.cov(planes.reshape(3, -1))
    np.testing.assert_allclose(covariance, np.eye(3), atol=6 / 200)  # 6 standard errors


@pytest.mark.parametrize("count", [1, 2, 4])
def test_only_three_different_channels_are_mixed(count):
    channels = np.random.default_rng(0).random((count, 4, 4))
    assert opponent(channels).values is channels
    grey = np.repeat(channels[:1], 3, 0)
    assert opponent(grey).values is grey  # their noise would be the same, too
    with pytest.raises(ValueError, match=r"auto, opponent, channels, got 'lab'"):
        choose_planes(channels, SIGMA, "lab")


def test_denoising_in_opponent_colours_is_denoising_the_planes():
    y = cat()
    planes = [denoise_gnc(plane, SIGMA, **QUICK) for plane in opponent(y).values]
    found = denoise_gnc(y, SIGMA, channel_axis=0, **QUICK)
    np.testing.assert_allclose(found, opponent(y).join(np.stack(planes)), atol=1e-6)
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


def gains(y, x, sigma=None):
    """Decibels gained over channel by channel, and the planes."""
    one_by_one, found = (denoise_gnc(y, sigma, channel_axis=0, colour=c) for c in ("channels", "auto"))
    return in_decibels(error(one_by_one, x) / error(found, x)), choose_planes(y, sigma)


@pytest.mark.filterwarnings("ignore:what varies")
@pytest.mark.parametrize("sigmas", [(40, 20, 10), (10, 15, 30)])
def test_unequal_noise_gains_what_equal_noise_does(sigmas):
    x, y = correlated(0.0, sigmas)
    gain, planes = gains(y, x)
    assert planes.basis == "whitened"
    assert gain > 1.5


@pytest.mark.parametrize("sigma", [SIGMA, None])
@pytest.mark.parametrize(("rho", "least"), [(0.4, 0.3), (0.7, -0.1), (1.0, -0.01)])
def test_correlated_noise_is_no_worse_than_channel_by_channel(rho, least, sigma):
    x, y = correlated(rho)
    gain, planes = gains(y, x, sigma)
    assert planes.basis == ("whitened" if rho < 1 else "channels")
    assert gain > least


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.7])
def test_the_noise_of_the_planes_is_independent_and_of_their_levels(rho):
    """Noise on a smooth image: the covariance of the planes' noise against the levels told."""
    noise = correlated(rho, (40, 20, 10))[1] - cat(0, size=128)
    smooth = 0.5 + np.outer(np.linspace(-0.2, 0.2, 128), np.ones(128)).astype(np.float32)
    planes, clean = choose_planes(smooth + noise), np.stack([smooth] * 3)
    assert planes.basis == "whitened"
    matrix = np.linalg.inv([planes.join(0.5 + e[:, None, None])[:, 0, 0] - 0.5 for e in np.eye(3)]).T
    of_planes = planes.values - (np.tensordot(matrix, clean - 0.5, 1) + 0.5)
    covariance = np.cov(of_planes.reshape(3, -1))
    levels = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(planes.levels, levels, rtol=0.06)
    assert np.abs(covariance / np.outer(levels, levels) - np.eye(3)).max() < 0.1
    np.testing.assert_allclose(planes.join(planes.values), smooth + noise, atol=1e-5)


def test_gnc_denoise_says_which_planes_it_takes(capsys, tmp_path):
    for name, rho in (("independent", 0.0), ("common", 0.6)):
        pixels = np.rint(255 * correlated(rho)[1].clip(0, 1)).astype(np.uint8)
        Image.fromarray(np.moveaxis(pixels, 0, -1)).save(tmp_path / f"{name}.png")
        words = ["denoise", tmp_path / f"{name}.png", "--steps", 1, "-o", tmp_path / f"{name}-out.png"]
        assert cli.main([str(word) for word in words]) == 0
        assert ("planes that fit the noise" in capsys.readouterr().out) == (name == "common")


@pytest.mark.filterwarnings("ignore:what varies")
@pytest.mark.parametrize("sigmas", [(25, 0, 25), (0, 0, 25)])
def test_a_channel_without_noise_stays_as_it_is(sigmas):
    _, y = correlated(0.0, sigmas)
    y[1] = 0.5  # nothing at all in green
    y[0] = y[0] if sigmas[0] else np.linspace(0, 1, y[0].size).reshape(y[0].shape)
    found = denoise_gnc(y, channel_axis=0, **QUICK)
    for k, sigma in enumerate(sigmas):
        assert np.array_equal(found[k], y[k]) == (sigma == 0)


def test_two_noisy_channels_gain_without_the_third():
    x, y = correlated(0.0)
    x[1] = y[1] = 0.5
    gain, planes = gains(y, x)
    assert planes.basis == "whitened"
    assert gain > 0.7


@pytest.mark.parametrize("change", ["a pixel", "a tint"])
def test_grey_pictures_stored_in_colour(change):
    """The noise is one and the same in all channels: no better than a grey picture, and no worse."""
    x, y = (np.stack([v[1]] * 3) for v in correlated(0.0))
    if change == "a pixel":
        y[0, 0, 0] += 1 / 255
    else:
        x, y = (v * np.array([1.0, 0.9, 0.75], np.float32)[:, None, None] for v in (x, y))
    assert gains(y, x)[0] > -0.01


@pytest.mark.filterwarnings("ignore:what varies")
def test_where_colour_is_stored_with_fewer_pixels_the_channels_are_taken():
    """A JPEG file stores colour with a quarter of the pixels: its noise is white in no plane but brightness."""
    written = io.BytesIO()
    noisy = np.rint(cat(30 / 255, size=160).clip(0, 1) * 255).astype(np.uint8)
    Image.fromarray(np.moveaxis(noisy, 0, -1)).save(written, "JPEG", quality=92)
    channels = np.moveaxis(np.asarray(Image.open(written)) / np.float32(255), -1, 0)
    planes = choose_planes(channels)
    assert planes.values is channels
    assert planes.basis == "channels"
    assert all(planes.levels)
    flat = np.full((3, 40, 40), 0.4)
    flat[1] = 0.6  # in colour, and nowhere any noise
    np.testing.assert_array_equal(denoise_gnc(flat, channel_axis=0), flat)


def test_clipped_pixels_are_left_out_of_the_estimate_in_the_planes():
    """Bright skies and dark corners have lost their noise, which the planes no longer show."""
    x, noise = cat(0, size=200), cat(20 / 255, size=200) - cat(0, size=200)
    x[:, :, :60], x[:, :, 140:] = 0.0, 1.0
    y = np.rint((x + noise).clip(0, 1) * 255).astype(np.float32) / 255
    planes = choose_planes(y)
    assert planes.basis == "opponent"
    np.testing.assert_allclose(planes.levels, 20 / 255, rtol=0.07)


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


def test_opponent_colours_are_for_denoising():
    scheme = schemes.load("gnc", "R1", Task("inpaint", 0.8), 3)
    with pytest.raises(ValueError, match="opponent colours are for denoising"):
        evaluate.restoration(scheme, torch.from_numpy(cat(0))[:, None], 5, "opponent")


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
