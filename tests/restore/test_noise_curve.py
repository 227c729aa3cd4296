"""Noise that grows with brightness: the data term of pixels with their own sigma, and what is gained by it."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as samples
from skimage.metrics import peak_signal_noise_ratio

from benchmarks.noise_maps import READ, by_anscombe, counted, crop
from gnclib.restore import Denoising, NoiseCurve, denoise_gnc
from gnclib.restore.colour import choose_planes
from gnclib.restore.noise_level import GROWING
from tests.commands import gnc

#: brightness from 0.05 to 0.95
IMAGES = {name: crop(name, 112) for name in ("coins", "cell", "camera")}


def psnr(found, x):
    return peak_signal_noise_ratio(x, found, data_range=1)


def truth(x, peak, read=READ):
    return np.sqrt(x / peak + read**2)


def test_the_data_term_is_weighted_by_pixel_and_its_prox_is_exact():
    g = torch.Generator().manual_seed(0)
    y, v = torch.rand(2, 2, 1, 5, 6, generator=g, dtype=torch.float64)
    sigma = 0.05 + 0.2 * torch.rand(2, 1, 5, 6, generator=g, dtype=torch.float64)
    data, step = Denoising(y, sigma), torch.tensor([0.01, 0.3])
    x = data.prox(v, step).requires_grad_()
    total = data.energy(x).sum() + ((x - v).square() / (2 * step.double()[:, None, None, None])).sum()
    (slope,) = torch.autograd.grad(total, x)
    assert slope.abs().max() < 1e-12 * total
    assert data.energy(v)[1] == pytest.approx(float((((v - y) / sigma)[1] ** 2).sum() / 2))
    flat, one = Denoising(y, torch.full((1, 1, 1, 1), 0.1)), Denoising(y, 0.1)
    torch.testing.assert_close(flat.prox(v, step), one.prox(v, step))
    torch.testing.assert_close(flat.energy(v), one.energy(v))
    for wrong, said in ((0 * sigma, "0 to 0"), (sigma[..., :3], "does not fit"), (torch.nan * sigma, "nan")):
        with pytest.raises(ValueError, match=said):
            Denoising(y, wrong)


def test_a_level_map_is_that_level_and_sure_pixels_stay():
    x = IMAGES["camera"][:64, :64]
    y = x + 0.1 * np.random.default_rng(0).standard_normal(x.shape)
    np.testing.assert_allclose(denoise_gnc(y, np.full(x.shape, 0.1)), denoise_gnc(y, 0.1), atol=1e-5)
    sigma = np.where(np.arange(64) < 32, 1e-4, 0.1)
    half = np.where(sigma < 0.1, x, y)
    found = denoise_gnc(half, sigma)
    np.testing.assert_allclose(found[:, :32], x[:, :32], atol=1e-3)
    assert psnr(found[:, 32:], x[:, 32:]) > psnr(
        denoise_gnc(y, 0.1)[:, 32:], x[:, 32:]
    )  # it helps beside them


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("peak", [5, 20, 100])
def test_gain_and_read_noise_are_estimated(peak, offset):
    """sigma within 5 % at three brightnesses, from one image."""
    for name in ("coins", "camera"):
        x = 0.05 + 0.9 * getattr(samples, name)()[:300, :300] / 255
        curve = NoiseCurve.estimate(counted(x, peak) + offset)
        levels = np.array([0.1, 0.3, 0.6])
        found = curve.gain * (levels + offset) + curve.floor
        np.testing.assert_allclose(np.sqrt(found), truth(levels, peak), rtol=0.05)


def test_a_detector_has_the_variance_of_its_samples():
    curve = NoiseCurve.of_detector(0.02, 0.1, 0.03)
    g = np.random.default_rng(0)
    for photons in (2, 10, 30):
        y = 0.02 * g.poisson(photons, 200_000) + 0.1 + 0.03 * g.standard_normal(200_000)
        assert curve.gain * y.mean() + curve.floor == pytest.approx(y.var(), rel=0.02)
    flat = np.full((20, 20), 0.5)
    np.testing.assert_allclose(curve.sigma(flat), np.sqrt(0.02 * 0.4 + 0.03**2), rtol=1e-5)


@pytest.mark.parametrize("peak", [5, 20, 100])
@pytest.mark.parametrize("name", IMAGES)
def test_within_a_third_of_a_decibel_of_the_true_map(name, peak):
    x = IMAGES[name]
    y, sigma = counted(x, peak), truth(x, peak)
    best = psnr(denoise_gnc(y, sigma), x)
    known = psnr(denoise_gnc(y, NoiseCurve.of_detector(1 / peak, 0, READ)), x)
    found = psnr(denoise_gnc(y, NoiseCurve.estimate(y)), x)
    assert known > best - 0.1
    assert found > best - 0.35
    assert found > psnr(denoise_gnc(y, np.sqrt(np.mean(sigma**2))), x)
    if (name, peak) != ("cell", 5):  # nearly flat, where the transform makes the noise more Gaussian
        assert known > psnr(by_anscombe(y, peak), x)


def test_colour_keeps_its_gain_over_channels():
    x = 0.05 + 0.9 * np.moveaxis(samples.astronaut()[:96, 150:246], -1, 0) / 255
    y, curve = counted(x, 30), NoiseCurve.of_detector(1 / 30, 0, READ)
    one_by_one, found = (
        psnr(denoise_gnc(y, curve, channel_axis=0, colour=c), x) for c in ("channels", "auto")
    )
    assert found > one_by_one + 1


def test_what_a_map_cannot_be_used_for():
    y = np.full((32, 32, 3), 0.5)
    for sigma, options, said in [
        (np.full((32, 31, 1), 0.1), {}, "does not fit an image"),
        (np.full((32, 32, 1), 25.0), {}, "divide grey levels by 255"),
        (np.full((32, 32, 1), 0.1), {"scheme": "learned"}, "needs the scheme gnc, linear or joint"),
        (NoiseCurve(0.01), {"scheme": "mmse"}, "needs the scheme gnc, linear or joint"),
        (NoiseCurve(0.01), {"return_std": True}, "need one sigma"),
    ]:
        with pytest.raises(ValueError, match=said):
            denoise_gnc(y, sigma, channel_axis=-1, **options)
    for wrong in ((-1.0, 0.0), (0.0, 0.0), (np.inf, 0.0)):
        with pytest.raises(ValueError, match="a gain must be"):
            NoiseCurve(*wrong)
    with pytest.raises(ValueError, match="give gain and read noise"):
        NoiseCurve.estimate(y[..., 0])
    denoise_gnc(counted(y, 20), np.full((32, 32, 1), 0.1), channel_axis=-1, scheme="joint", steps=2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(np.uint8, {}), (np.uint16, {}), (np.uint16, {"data_range": 4095}), (float, {"data_range": 300})],
)
def test_a_curve_is_estimated_in_the_units_in_which_it_is_used(kind, options):
    """Integers and other ranges: as the float image, grey and in colour."""
    x = IMAGES["camera"][:160, :160]
    white = options.get("data_range") or np.iinfo(kind).max
    y = counted(0.5 * x, 60).clip(0, 1)
    image = (np.rint(white * y) if kind is not float else white * y).astype(kind)
    known = NoiseCurve.estimate(image / white)
    found = NoiseCurve.estimate(image, **options)
    assert found.gain == pytest.approx(known.gain, rel=1e-3)
    clean = denoise_gnc(image, found, **options)
    assert psnr(clean, 0.5 * x) > psnr(y, 0.5 * x) + 4
    colour = np.stack([image] * 3, -1)
    again = NoiseCurve.estimate(colour, channel_axis=-1, **options)
    assert again.gain == pytest.approx(found.gain, rel=0.1)
    with pytest.raises(ValueError, match="channel_axis=-1"):
        NoiseCurve.estimate(colour, **options)


def test_gnc_denoise_with_a_gain(capsys, tmp_path):
    """In numbers of a 16-bit file: 400 per photon, 1000 without light."""
    x, top = IMAGES["camera"], 2**16 - 1
    numbers = (
        400 * np.random.default_rng(0).poisson(60 * x)
        + 1000
        + 80 * np.random.default_rng(1).standard_normal(x.shape)
    )
    Image.fromarray(np.rint(numbers.clip(0, top)).astype(np.uint16)).save(tmp_path / "in.tif")
    y = np.rint(numbers.clip(0, top)) / top

    def run(*words):
        return gnc(capsys, "denoise", tmp_path / "in.tif", "-o", tmp_path / "out.tif", "--force", *words)

    assert run("--gain", 400, "--offset", 1000, "--read-noise", 80)[0] == 0
    written = np.asarray(Image.open(tmp_path / "out.tif")) / top
    expected = denoise_gnc(y, NoiseCurve.of_detector(400 / top, 1000 / top, 80 / top))
    np.testing.assert_allclose(written, expected, atol=1e-4)
    status, said, _ = run("--gain", "auto")
    assert status == 0
    assert float(said.split("gain ")[1].split(",")[0]) == pytest.approx(400, rel=0.2)
    for words in (
        ["--gain", "much"],
        ["--gain", 400, "--sigma", 25],
        ["--offset", 3],
        ["--gain", "auto", "--offset", 3],
    ):
        status, _, error = run(*words)
        assert (status, "--gain" in error or "gain" in error) == (2, True)


def test_noise_that_grows_is_said_and_other_noise_is_not():
    """Poisson noise of both peaks that one estimated sigma serves badly, against Gaussian noise on the same images."""
    for name in ("coins", "camera"):
        x = crop(name, 200)
        for peak in (20, 100):
            with pytest.warns(UserWarning, match="grow with brightness.*NoiseCurve"):
                denoise_gnc(counted(x, peak, 0), scheme="mmse")
            assert not choose_planes(counted(x, peak, 0)[None], 0.1).doubt
        for sigma in (0.05, 0.1):
            y = x + sigma * np.random.default_rng(0).standard_normal(x.shape)
            assert choose_planes(y[None]).doubt == ""
            unequal = np.stack([y, x + 3 * (y - x), x + (y - x) / 2])
            assert choose_planes(unequal).doubt == ""


@pytest.mark.parametrize(
    ("name", "place"), [("coffee", np.s_[100:260, 200:360]), ("rocket", np.s_[100:260, 200:360])]
)
def test_photons_are_named_in_dark_pictures_and_in_such_with_much_black(name, place):
    x = np.moveaxis(getattr(samples, name)()[place] / 255, -1, 0)
    assert choose_planes(np.random.default_rng(1).poisson(30 * x) / 30).doubt == GROWING
