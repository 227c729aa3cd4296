"""Noise levels are found: against the truth, a closed form, a brute-force search, and the wavelet estimator."""

import math

import pytest
import torch

from gnclib.foe import FieldsOfExperts
from gnclib.images import data
from gnclib.restore import noise_level
from gnclib.restore.noise_level import SIDE, WINDOWS, estimate_sigma


@pytest.fixture(scope="module")
def prior():
    return FieldsOfExperts.from_pretrained("R1")


def photo(name="camera", side=128):
    return data.embedded()[name][..., 60 : 60 + side, 100 : 100 + side]


class White(torch.nn.Module):
    """The exact joint energy of images of independent pixels N(0, s^2): R = n tau' + ||y||^2 / (2 (s^2 + t))."""

    def __init__(self, s):
        super().__init__()
        self.s, self.sigma_min, self.sigma_max, self.margin = s, 0.01, 1.0, 2
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def dtau(self, y, t, *, border="reflect", order):
        y = y if border == "reflect" else y[..., 4:-4, 4:-4]
        total, n = self.s**2 + t, y[0].numel()
        return (n * t / total - y.square().sum((1, 2, 3)) * t / total**2,)


class OneBorder(White):
    """The same as an energy that knows no other border than its own."""

    def dtau(self, y, t, *, order):
        return super().dtau(y, t, order=order)


class Slopes(White):
    """d_tau R = n c (tau - tau_1) (tau - tau_2): a minimum at tau_1, another where the interval begins."""

    def dtau(self, y, t, *, order):
        tau = 0.5 * math.log(t)
        return (y[0].numel() * 0.05 * torch.ones(len(y)) * (tau - math.log(0.2)) * (tau - math.log(0.15)),)


def test_of_several_minima_the_search_finds_the_one_at_the_largest_sigma():
    y = torch.zeros(1, 1, 20, 20, dtype=torch.float64)
    assert estimate_sigma(y, Slopes(0.1)) == pytest.approx(0.2, rel=2e-3)


@pytest.mark.parametrize("shape", [(1, 1, 50, 60), (2, 1, 500, 700)])
@pytest.mark.parametrize("white", [White, OneBorder])
def test_closed_form(shape, white):
    """For white images the likelihood has one maximum, t = mean(y^2) - s^2, or the end of the range."""
    for s, sigma in ((0.05, 0.2), (0.2, 0.02), (0.1, 0.7)):
        y = math.hypot(s, sigma) * torch.randn(
            shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        expected = math.sqrt(max(y.square().mean().item() - s**2, 1e-4))
        few = shape[-1] > WINDOWS * SIDE  # windows: another sample, with an error of 1 / sqrt(2 n)
        found = estimate_sigma(y, white(s))
        assert found == pytest.approx(expected, rel=0.002 if not few else 0.15 if sigma < s else 0.01)
    assert estimate_sigma(0 * y, white(0.1)) == 0.01
    assert estimate_sigma(10 + 0 * y, white(0.1)) == 1.0


@pytest.mark.parametrize("sigma", [5, 25, 100])
def test_photographs(prior, sigma):
    """Within 15 % or one grey level and a half of the truth, over three photographs."""
    found = [
        255 * estimate_sigma(data.add_noise(photo(name), sigma / 255, k), prior)
        for k, name in enumerate(("camera", "astronaut", "coffee"))
    ]
    assert all(abs(s - sigma) < max(0.15 * sigma, 1.5) for s in found), found


def test_it_is_the_largest_local_minimum_of_the_energy(prior):
    """Brute force: the energy on a fine grid of tau, walked down from the top until it rises."""
    y = data.add_noise(photo(side=64), 15 / 255, 3)
    taus = torch.linspace(math.log(prior.sigma_max), math.log(prior.sigma_min), 200)
    with torch.no_grad():
        energies = torch.cat([prior.energy(y, (2 * tau).exp()) for tau in taus])
    first = int((energies.diff() > 0).nonzero()[0])
    assert estimate_sigma(y, prior) == pytest.approx(math.exp(taus[first]), rel=0.03)


def test_nothing_to_find(prior):
    flat = torch.full((1, 1, 40, 40), 0.4)
    slope = torch.linspace(0, 1, 40).expand(1, 1, 40, 40)
    for clean in (flat, 0 * flat, flat + 0.6):
        assert estimate_sigma(clean, prior) == prior.sigma_min
    assert estimate_sigma(slope, prior) < 1.1 * prior.sigma_min
    noisy = flat + torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)) / 255  # one grey level
    assert estimate_sigma(noisy, prior) == prior.sigma_min


def test_windows_of_a_large_image_tell_the_same(prior, monkeypatch):
    monkeypatch.setattr(noise_level, "SIDE", 48)
    y = data.add_noise(data.embedded()["camera"][..., :300, :400], 0.1, 0)
    assert noise_level._windows(y, noise_level.clipped(y), 3)[0].shape == (16, 1, 54, 54)
    assert estimate_sigma(y, prior) == pytest.approx(0.1, rel=0.04)


def in_8_bits(y):
    """As an 8-bit file has it."""
    return (y.clamp(0, 1) * 255).round() / 255


def test_what_was_clipped_is_left_out(prior, monkeypatch):
    """A picture whose left third is black and right third white: the noise there is half of what it was, or none."""
    x = data.embedded()["camera"][..., :200, :300].clone()
    x[..., :100], x[..., 200:] = 0.0, 1.0
    y = in_8_bits(data.add_noise(x, 20 / 255, 0))
    assert ((y == 0) | (y == 1)).float().mean() > 0.3
    assert 255 * estimate_sigma(y, prior) == pytest.approx(20, abs=1.5)
    monkeypatch.setattr(noise_level, "_unclipped", lambda y, cut_off, margin: y[:0])
    assert 255 * estimate_sigma(y, prior) < 16


def small_windows(y):
    return noise_level._unclipped(y, noise_level.clipped(y), 3)


def test_small_windows_are_those_that_are_least_clipped(monkeypatch):
    y = torch.full((1, 1, 150, 150), 0.5)
    assert len(small_windows(y)) == 0  # nothing was cut off
    y[..., :, 75:] = 1.0
    windows = small_windows(y)
    assert windows.shape == (12, 1, 30, 30)  # 2 columns and 6 rows of windows lie in the left half
    assert bool((windows == 0.5).all())
    y[0, 0, 0, 0] = 1.01  # white noise that was not clipped
    assert len(small_windows(y)) == 0
    y = torch.zeros(1, 1, 150, 150)  # all of it was: as many as are needed
    assert len(small_windows(y)) == noise_level.FEWEST
    monkeypatch.setattr(noise_level, "WINDOWS", 1)  # no more than so many, from all over the image
    y[..., :140, :] = torch.linspace(0.1, 0.9, 140)[:, None]
    windows = small_windows(y)
    assert len(windows) == (noise_level.SIDE // noise_level.SMALL) ** 2
    assert windows[0].min() < 0.2
    assert windows[-1].max() > 0.7
    assert len(small_windows(y[..., -20:, :])) == 0  # too small for a window


def test_better_than_wavelets_where_noise_is_weak(prior):
    """The texture of a photograph is noise to the smallest wavelets, but not to the prior."""
    pywt = pytest.importorskip("pywt")
    from skimage.restoration import estimate_sigma as by_wavelets

    assert pywt
    ours, theirs = 0.0, 0.0
    for name in ("astronaut", "camera", "coffee", "chelsea"):
        y = data.add_noise(photo(name), 5 / 255, 0)
        ours += abs(255 * estimate_sigma(y, prior) - 5) / 4
        theirs += abs(255 * by_wavelets(y[0, 0].double().numpy()) - 5) / 4
    assert ours < 0.75 * theirs, (ours, theirs)


def test_bad_images(prior):
    for y, message in [
        (torch.zeros(1, 1, 3, 3), "too small"),
        (torch.zeros(4, 4), "shape"),
        (torch.full((1, 1, 9, 9), 100.0), "divide by 255"),
        (torch.full((1, 1, 9, 9), math.nan), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            estimate_sigma(y, prior)
