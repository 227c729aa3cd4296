"""Methods without learning against closed forms and other solvers."""

import sys

import numpy as np
import pytest
import scipy.fft
import torch

from gnclib.images import data, psnr
from gnclib.studies import comparison


def photo(height, width, top=200, left=220, name="camera"):
    return data.embedded()[name][..., top : top + height, left : left + width]


# --- TV ---------------------------------------------------------------------------------------------------


def test_tv_of_a_step_is_known_exactly():
    """Two flat halves of n and m columns: each moves towards the other, by w / n and w / m."""
    y = torch.cat([torch.full((1, 1, 6, 4), 0.2), torch.full((1, 1, 6, 8), 0.8)], dim=3).double()
    expected = torch.cat(
        [torch.full((1, 1, 6, 4), 0.2 + 0.1 / 4), torch.full((1, 1, 6, 8), 0.8 - 0.1 / 8)], dim=3
    )
    assert torch.allclose(comparison.tv(y, 0.1), expected.double(), atol=2e-3)
    assert (expected - y).abs().max() > 0.02  # ten times that


def chambolle_pock(y, weight, steps=3000):
    """The same minimiser by another algorithm: the primal-dual method of Chambolle & Pock 2011."""
    x = bar = y.copy()
    p = np.zeros((2, *y.shape))
    step = 1 / np.sqrt(8)
    for _ in range(steps):
        slope = np.zeros_like(p)
        slope[0, :-1], slope[1, :, :-1] = np.diff(bar, axis=0), np.diff(bar, axis=1)
        p = p + step * slope
        p = p / np.maximum(1, np.sqrt((p**2).sum(0)) / weight)
        adjoint = np.zeros_like(x)
        adjoint[:-1] -= p[0, :-1]
        adjoint[1:] += p[0, :-1]
        adjoint[:, :-1] -= p[1, :, :-1]
        adjoint[:, 1:] += p[1, :, :-1]
        new = (x - step * adjoint + step * y) / (1 + step)
        bar, x = 2 * new - x, new
    return x


def test_tv_agrees_with_another_solver():
    y = data.add_noise(photo(24, 20).double(), 0.1, 0)
    x = comparison.tv(y, 0.1)
    expected = torch.from_numpy(chambolle_pock(y[0, 0].numpy(), 0.1))
    assert (x[0, 0] - expected).square().mean().sqrt() < 3e-3
    assert (y[0, 0] - expected).square().mean().sqrt() > 0.05


def test_tuned_weight_beats_its_neighbours():
    images = {"a": photo(40, 40), "b": photo(40, 40, 60, 200)}
    tuned = comparison.tune_tv(images, 0.1)
    assert tuned["images"] == 2

    def quality(weight):
        noisy = [data.add_noise(x, 0.1, k) for k, x in enumerate(images.values())]
        pairs = zip(images.values(), noisy, strict=True)
        return np.mean([psnr(comparison.tv(y, weight), x).item() for x, y in pairs])

    assert quality(tuned["weight"]) == pytest.approx(tuned["psnr"], abs=1e-4)
    for factor in (0.3, 0.8, 1.25, 3):
        assert quality(factor * tuned["weight"]) < tuned["psnr"]


def test_tuning_never_sees_the_benchmark():
    with pytest.raises(ValueError, match="BSDS68"):
        comparison.tune_tv({data.bsds68_ids()[0]: photo(20, 20)}, 0.1)


# --- BM3D and biharmonic inpainting -----------------------------------------------------------------------


def test_bm3d_denoises_and_repeats_itself():
    pytest.importorskip("bm3d")
    x = photo(40, 48)
    y = data.add_noise(x, 25 / 255, 0)
    first, again = (comparison.bm3d(y, 25 / 255) for _ in range(2))
    assert first.shape == y.shape
    assert first.dtype == y.dtype
    assert torch.equal(first, again)  # one thread: the order of its sums is fixed
    assert psnr(first, x) > psnr(y, x) + 5
    assert psnr(first, x) > psnr(comparison.tv(y, 0.07), x)


def test_bm3d_gets_the_noise_level_right():
    """A weaker or stronger filter than sigma asks for is worse."""
    pytest.importorskip("bm3d")
    x = photo(40, 48)
    y = data.add_noise(x, 25 / 255, 0)
    quality = [psnr(comparison.bm3d(y, sigma / 255), x).item() for sigma in (12, 25, 60)]
    assert quality[1] > max(quality[0], quality[2]) + 0.3


def test_a_missing_bm3d_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ImportError, match=r"non-commercial.*gnclib\[compare\]"):
        comparison.bm3d(torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)), 0.1)


def test_the_wiener_filter_is_the_best_linear_one_for_its_spectrum(monkeypatch):
    """Images drawn with variance S of their cosine coefficients: the error is sum S sigma^2 / (S + sigma^2)."""
    rng, sigma = np.random.default_rng(0), 0.3
    rows, columns = np.indices(comparison.SIZE)
    variance = 5.0 / (1 + rows**2 + columns**2)
    mean = np.zeros(comparison.SIZE)
    mean[0, 0] = 0.5 * np.sqrt(mean.size)
    monkeypatch.setattr(comparison, "spectrum", lambda: (mean, variance))
    coefficients = mean + np.sqrt(variance) * rng.standard_normal(mean.shape)
    x = torch.from_numpy(scipy.fft.idctn(coefficients, norm="ortho"))[None, None]
    y = data.add_noise(x, sigma, 0)
    restored = comparison.wiener(y, sigma)
    expected = (variance * sigma**2 / (variance + sigma**2)).sum()
    assert (restored - x).square().sum().item() == pytest.approx(expected, rel=0.05)
    assert all(psnr(comparison.wiener(y, s), x) < psnr(restored, x) - 0.5 for s in (0.1, 0.9))
    assert torch.equal(comparison.wiener(y.mT.contiguous(), sigma), restored.mT)  # upright


@pytest.mark.skipif(not data.available(("train", "test")), reason="needs train and test of BSDS500")
def test_the_spectrum_is_that_of_the_training_images():
    """Cosine coefficients keep lengths: mean square of all grey values."""
    mean, variance = comparison.spectrum()
    images = data.training_images().values()
    squares = np.mean([x.double().square().sum().item() for x in images])
    assert (variance + mean**2).sum() == pytest.approx(squares, rel=1e-6)
    assert mean[0, 0] / np.sqrt(mean.size) == pytest.approx(
        np.mean([x.mean().item() for x in images]), rel=1e-6
    )
    assert not mean.ravel()[1:].any()
    assert variance.min() > 0


def test_biharmonic_inpainting_completes_cubic_polynomials():
    """Their fourth differences vanish, so they solve the discrete equation; holes stay clear of the border."""
    v, u = torch.meshgrid(
        torch.linspace(-1, 1, 15).double(), torch.linspace(-1, 1, 18).double(), indexing="ij"
    )
    x = (0.5 + 0.1 * u - 0.2 * v + 0.2 * u * v + 0.05 * u**3 + 0.1 * u**2 - 0.03 * v**3)[None, None]
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    known[..., :2, :] = known[..., -2:, :] = known[..., :2] = known[..., -2:] = True
    filled = comparison.biharmonic(torch.where(known, x, torch.nan).nan_to_num(9.0), known)
    assert torch.equal(filled[known], x[known])
    assert torch.allclose(filled, x, atol=1e-9)
    assert torch.equal(comparison.biharmonic(x, torch.ones_like(known)), x)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: comparison.bm3d(x.repeat(2, 1, 1, 1), 0.1), "one image"),
        (lambda x: comparison.tv(x[0, 0], 0.1), "shape"),
        (lambda x: comparison.wiener(x, 0.1), "321 x 481"),
        (lambda x: comparison.biharmonic(x, torch.zeros_like(x, dtype=torch.bool)), "no pixel is known"),
    ],
)
def test_methods_refuse_nonsense(call, says):
    with pytest.raises(ValueError, match=says):
        call(torch.full((1, 1, 16, 16), 0.5))
