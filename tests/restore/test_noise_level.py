"""Noise levels: within 5 % of the truth, or 1.5 grey levels on photographs, whatever of the image cannot be noise."""

import io
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from gnclib.images import data
from gnclib.restore import denoise_gnc
from gnclib.restore.noise_level import _uncut, estimate_sigma, high_variance, measure_noise


def photo(name="camera", side=256):
    x = data.embedded()[name][0, 0].double().numpy()
    return x[60 : 60 + side, 100 : 100 + side]


def noisy(x, sigma, seed=0):
    return x + sigma / 255 * np.random.default_rng(seed).standard_normal(x.shape)


def in_8_bits(y):
    return np.rint(255 * y.clip(0, 1)) / 255


def found(y):
    """sigma in grey levels, and whether the noise is called white."""
    noise = measure_noise(y[None])
    return 255 * noise.levels[0], noise.white(np.ones(1))


def test_the_share_of_noise_that_is_left_where_it_was_cut_off():
    """Against an integral: the standard deviation of max(z, -d), d the distance from the end in sigma."""
    rng, z = np.random.default_rng(0), np.linspace(-9, 9, 200_001)
    for distance in (0.8, 1.2, 3.0):
        spectra = rng.standard_normal((600, 1, 8, 8))
        spectra[..., 0, 0] = 8 * distance
        channels = np.concatenate([np.zeros((1, 8, 8)), np.full((1, 8, 8), 20.0)], 1)
        kept, _, share = _uncut(spectra, channels)
        d = distance / np.sqrt(high_variance(kept))[0]
        weight, left = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum(), np.maximum(z, -d)
        variance = weight @ left**2 - (weight @ left) ** 2
        assert share == pytest.approx(max(variance, 0.5) ** 0.5, rel=1e-4)


ROWS, COLUMNS = np.indices((256, 256))
CALM = 0.2 + 0.6 * photo()
CELLS = np.zeros((256, 256), bool)
for y0, x0 in np.random.default_rng(0).integers(0, 256, (40, 2)):
    CELLS |= (ROWS - y0) ** 2 + (COLUMNS - x0) ** 2 < 20**2


def bar(value, part):
    return lambda y: np.where(ROWS < part * 256, value / 255, in_8_bits(y))


LEAVE_OUT = {
    "nothing": lambda y: y,
    "8 bits": in_8_bits,
    "black bar": bar(0, 0.6),
    "letterbox": bar(16, 0.6),
    "white bar": bar(255, 0.3),
    "grey bar": bar(128, 0.1),
    "zero border": lambda y: np.pad(y[:160, :160], 48),
    "masked cells": lambda y: np.where(CELLS, y, 0),
    "capped": lambda y: np.minimum(y, 0.6),
    "saturated": lambda y: in_8_bits(1.25 * y) / 1.25,
    "ramp in the image": lambda y: np.where(ROWS < 100, COLUMNS / 255, in_8_bits(y)),
    "slanted ramp in the image": lambda y: np.where(
        ROWS < 100, np.rint(90 + 0.3 * (ROWS + COLUMNS)) / 255, in_8_bits(y)
    ),
}


@pytest.mark.parametrize("sigma", [5, 25])
@pytest.mark.parametrize("kind", LEAVE_OUT)
def test_what_cannot_be_noise_is_left_out(kind, sigma):
    level, white = found(LEAVE_OUT[kind](noisy(CALM, sigma)))
    assert level == pytest.approx(sigma, rel=0.05)
    assert white


PATTERNS = {
    "ramp": COLUMNS / 255,
    "slanted ramp": (COLUMNS + 2 * ROWS) % 256 / 255,
    **{f"checkerboard {n}": 0.3 + 0.4 * ((ROWS // n + COLUMNS // n) % 2) for n in (1, 2, 4, 5, 8)},
    "text": 0.2 + 0.6 * (np.kron(np.random.default_rng(1).random((32, 32)), np.ones((8, 8))) > 0.3),
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_noise_on_drawings(kind):
    assert found(noisy(PATTERNS[kind], 8))[0] == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize(
    "kind", ["ramp", "slanted ramp", "checkerboard 4", "checkerboard 8", "text", "constant"]
)
def test_where_nothing_can_be_noise_there_is_none(kind):
    assert found(PATTERNS.get(kind, np.full((64, 64), 0.4))) == (0.0, True)
    assert found(in_8_bits(PATTERNS.get(kind, np.full((64, 64), 0.4)))) == (0.0, True)


def test_calm_photographs_have_none_with_evidence_and_texture_without():
    level, white = found(photo())
    assert level < 1
    assert white
    grass = gaussian_filter(np.random.default_rng(0).standard_normal((200, 200)), 0.9)
    level, white = found(0.5 + 0.2 * grass)
    assert level < 2.55
    assert not white


@pytest.mark.parametrize("sigma", [5, 10, 25, 50, 100])
def test_photographs(sigma):
    """Within 5 % or one grey level of the truth, over three photographs."""
    errors = [
        found(noisy(photo(name), sigma, k))[0] - sigma
        for k, name in enumerate(("camera", "astronaut", "coffee"))
    ]
    assert np.abs(errors).max() < max(0.05 * sigma, 1), errors


@pytest.mark.parametrize("sigma", [10, 20, 40])
def test_photographs_clipped_and_rounded_to_8_bits(sigma):
    errors = [
        found(in_8_bits(noisy(photo(n), sigma, k)))[0] - sigma
        for k, n in enumerate(("camera", "astronaut", "coffee"))
    ]
    assert np.abs(errors).max() < max(0.05 * sigma, 1), errors


def jpeg(y):
    written = io.BytesIO()
    Image.fromarray(np.uint8(255 * in_8_bits(y))).save(written, "JPEG", quality=60)
    return np.asarray(Image.open(written)) / 255


def small(y):
    return y[:128, :128]


COARSE = {
    "blurred a little": lambda z: gaussian_filter(z, 0.6),
    "blurred": lambda z: 2 * gaussian_filter(z, 1.2),
    "enlarged": lambda z: zoom(small(z), 2, order=1),
    "enlarged smoothly": lambda z: zoom(small(z), 2, order=3),
    "enlarged in squares": lambda z: np.kron(small(z), np.ones((2, 2))),
}


@pytest.mark.parametrize("kind", [*COARSE, "JPEG"])
def test_noise_that_is_not_white_is_named(kind):
    z = noisy(np.zeros((256, 256)), 12)
    y = jpeg(CALM + z) if kind == "JPEG" else CALM + COARSE[kind](z)
    with pytest.warns(UserWarning, match="does not look like white noise.*give sigma"):
        estimate_sigma(torch.from_numpy(y)[None, None])
    with pytest.warns(UserWarning, match="give sigma"):
        denoise_gnc(y, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoise_gnc(y, 12 / 255, steps=1)


def test_the_covariance_of_channels():
    """Known covariance, one of four channels constant: all entries within 5 % of the largest."""
    truth = np.outer([30, 20, 10], [30, 20, 10]) * (0.6 * np.eye(3) + 0.4)
    z = np.random.default_rng(0).standard_normal((256, 256, 3)) @ np.linalg.cholesky(truth).T / 255
    x = np.stack([CALM, 0.9 * CALM, 0.2 + 0.5 * CALM])
    y = np.insert(x + np.moveaxis(z, -1, 0), 1, 0.5, axis=0)
    noise = measure_noise(y)
    np.testing.assert_allclose(
        np.delete(np.delete(255**2 * noise.covariance, 1, 0), 1, 1), truth, atol=0.05 * 900
    )
    assert not noise.covariance[1].any()
    assert not noise.covariance[:, 1].any()


def test_in_float32_and_in_batches():
    batch = np.stack([noisy(CALM, 20, k) for k in range(3)]).astype(np.float32)
    each = [found(y)[0] for y in batch.astype(float)]
    assert 255 * estimate_sigma(torch.from_numpy(batch)[:, None]) == pytest.approx(np.median(each), rel=1e-3)


def test_a_long_strip_costs_what_a_square_costs():
    def seconds(*shape):
        y = torch.rand(1, 1, *shape) * 0.2 + 0.4
        estimate_sigma(y)
        begun = time.process_time()
        estimate_sigma(y)
        return time.process_time() - begun

    assert seconds(100, 10000) < 2 * seconds(1000, 1000)


def test_better_than_wavelets():
    """The texture of a photograph is noise to the smallest wavelets, but not to the calmest blocks."""
    pywt = pytest.importorskip("pywt")
    from skimage.restoration import estimate_sigma as by_wavelets

    assert pywt
    ours, theirs = 0.0, 0.0
    for name in ("astronaut", "camera", "coffee", "chelsea"):
        y = noisy(photo(name), 5)
        ours += abs(found(y)[0] - 5) / 4
        theirs += abs(255 * by_wavelets(y) - 5) / 4
    assert ours < 0.5 * theirs, (ours, theirs)


def test_bad_images():
    for y, message in [
        (torch.zeros(1, 1, 7, 9), "7 x 9 pixels are too small .* give sigma"),
        (torch.zeros(9, 9), "shape"),
        (torch.full((1, 1, 9, 9), 100.0), "divide by 255"),
        (torch.full((1, 1, 9, 9), torch.nan), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            estimate_sigma(y)
