"""Looking into a prior: against autograd, dense matrices, numpy.polyfit, scipy's convex hull and closed forms."""

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull
from torch.autograd.functional import hessian

from gnclib.foe import FieldsOfExperts, FoEConfig, spectra
from gnclib.foe import curves as inspect_foe
from gnclib.foe.filters import convolve, reflect
from gnclib.suite import plots
from tests.draws import generator

SMALL = {"features": 4, "kernel_size": 3, "nodes_x": 15, "range": 3.0, "nodes_tau": 7}


def random_energy(layers, scaled=True, dilation=1):
    """A small float64 energy whose every parameter is random, K_1 without a mean."""
    g = generator()
    config = FoEConfig(layers=layers, scaled_input=scaled, dilation=dilation, **SMALL)
    energy = FieldsOfExperts(config, generator=g).double()
    for p in energy.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64)
    energy.project()
    return energy.requires_grad_(False)


def image(height=9, width=8, seed=1, batch=1):
    return torch.rand(batch, 1, height, width, generator=generator(seed), dtype=torch.float64)


# --- features and curves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("scaled", [True, False])
def test_last_curves_at_last_features_sum_to_the_energy(layers, scaled):
    """R is the sum of the last potentials at the last features, plus n c(tau), which is the same for all images."""
    energy, y, sigma = random_energy(layers, scaled), image(batch=3), 0.3
    x = inspect_foe.features(energy, y, sigma)
    total = inspect_foe.curves(energy, layers, x[-1], sigma).view(4, 3, -1).sum((0, 2))
    constant = energy.energy(y, sigma**2) - total
    torch.testing.assert_close(constant, constant[:1].expand(3), rtol=0, atol=1e-10)


def test_curves_are_derivatives_of_each_other_and_channels_are_chosen():
    energy, h = random_energy(2), 1e-5
    x = torch.linspace(-2.6, 2.6, 40, dtype=torch.float64).expand(4, -1)
    for order in (0, 1):
        up, down = (inspect_foe.curves(energy, 2, x + d, 0.05, order) for d in (h, -h))
        exact = inspect_foe.curves(energy, 2, x, 0.05, order + 1)
        torch.testing.assert_close((up - down) / (2 * h), exact, rtol=1e-6, atol=1e-6)
    one = inspect_foe.curves(energy, 1, x[:1], 0.05, channels=slice(2, 3))
    torch.testing.assert_close(one[0], inspect_foe.curves(energy, 1, x, 0.05)[2])
    with pytest.raises(ValueError, match="layers 1 to 2"):
        inspect_foe.curves(energy, 3, x, 0.05)


def test_quantiles_of_a_uniform_sample():
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)[None] * torch.tensor([[1.0], [-4.0]])
    found = inspect_foe.feature_quantiles(x, 5)
    expected = torch.linspace(0.01, 0.99, 5, dtype=torch.float64)
    torch.testing.assert_close(found, torch.stack([expected, 4 * (expected - 1)]))
    assert inspect_foe.feature_quantiles(x).shape == (2, 197)


# --- kernels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [1, 2])
def test_effective_kernels_are_exact_for_linear_activations(dilation):
    """With activations a_c x the features of every layer are convolutions of s y with the effective kernels."""
    energy, y, sigma = random_energy(3, dilation=dilation), 0.2 * image(14, 13), 0.5
    grid, slopes = energy.config.grid_x, []
    for layer in (0, 1):
        slopes.append(torch.tensor([0.5, -0.3, 0.2, 0.4], dtype=torch.float64))
        lines = torch.stack([grid.quadratic(b=float(a)) for a in slopes[-1]])
        energy.weights[layer].copy_(lines[:, :, None].expand_as(energy.weights[layer]))
    x = inspect_foe.features(energy, y, sigma)
    assert max(v.abs().max() for v in x) < grid.high  # where the lines are lines
    for measured, given in zip(inspect_foe.mean_slopes(energy, x, sigma), slopes, strict=True):
        torch.testing.assert_close(measured, given)
    padded = inspect_foe.input_scale(energy.config, sigma) * reflect(y, energy.config.margin)
    for kernel, features in zip(inspect_foe.effective_kernels(energy, slopes), x, strict=True):
        torch.testing.assert_close(convolve(padded, kernel)[0].flatten(1), features)


def test_magnitudes_are_told_from_lines_and_shown_by_their_strongest_input():
    energy, y, sigma = random_energy(3, dilation=2), 0.2 * image(14, 13), 0.5
    grid = energy.config.grid_x
    line = grid.quadratic(b=-0.7)
    x = torch.linspace(grid.low, grid.high, 400, dtype=torch.float64)
    magnitude = grid.fit(x, (x**2 + 0.09).sqrt())
    for weights, curve in zip(energy.weights, (line, magnitude), strict=False):
        weights.copy_(curve[None, :, None].expand_as(weights))
    energy.kernels[1].copy_(energy.kernels[1] - energy.kernels[1].mean((1, 2, 3), keepdim=True))
    found = inspect_foe.features(energy, y, sigma)
    first, second = inspect_foe.straightness(energy, found, sigma)
    assert first == pytest.approx(1.0)
    assert second < 0.5
    energy.kernels[2].mul_(0.01)
    for channel, strongest in enumerate((2, 0, 3, 3)):
        energy.kernels[2][channel, strongest, 0, 1] = -1.0
    slopes = inspect_foe.mean_slopes(energy, found, sigma)
    shown = inspect_foe.effective_kernels(energy, slopes, {2})
    for kernel, plain in zip(shown[:2], inspect_foe.effective_kernels(energy, slopes), strict=False):
        assert torch.equal(kernel, plain)
    assert shown[2].shape == (4, 1, 11, 11)
    assert torch.equal(shown[2][..., 2:-2, 2:-2], shown[1][[2, 0, 3, 3]])


def test_mean_frequency_of_a_difference():
    """The power of (1, -1) along one axis is 4 sin^2(pi f): low along it, anything across."""
    kernel = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    kernel[0, 0, 1, :2] = torch.tensor([1.0, -1.0])
    kernel[1, 0, 1, 1] = 7.0  # white
    f = np.fft.fftfreq(32)
    weight = np.sin(np.pi * f[None]) ** 2 * np.ones((32, 1))
    radius = np.hypot(f[:, None], f[None])
    expected = [(weight * radius).sum() / weight.sum(), radius.mean()]
    np.testing.assert_allclose(inspect_foe.mean_frequency(kernel), expected, rtol=1e-10)


# --- shapes of curves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2])
def test_distance_to_polynomial_against_polyfit(degree):
    f, x = np.random.default_rng(0).standard_normal((3, 50)).cumsum(1), np.arange(50.0)
    fits = [np.polyval(np.polyfit(x, row, degree), x) for row in f]
    expected = (f - fits).std(1) / f.std(1)
    np.testing.assert_allclose(inspect_foe.distance_to_polynomial(f, degree), expected, rtol=1e-8)
    np.testing.assert_allclose(inspect_foe.distance_to_polynomial([3 - 2 * x**degree], degree), 0, atol=1e-12)
    assert inspect_foe.distance_to_polynomial(np.full(9, 2.0), 1) == 0


def test_convexity_gap_against_scipy_hull():
    """The lower envelope of a curve is the lower part of the convex hull of its points and of two points far above."""
    f = np.random.default_rng(1).standard_normal((4, 30)).cumsum(1)
    x = np.arange(30.0)
    for row, gap in zip(f, inspect_foe.convexity_gap(f), strict=True):
        points = np.stack([np.r_[x, 0, 29], np.r_[row, 1e3, 1e3]], 1)
        lower = np.sort([v for v in ConvexHull(points).vertices if v < 30])
        expected = (row - np.interp(x, x[lower], row[lower])).max() / np.ptp(row)
        assert gap == pytest.approx(expected, abs=1e-12)
    parabola = np.linspace(-1, 2, 50) ** 2
    assert inspect_foe.convexity_gap(parabola) == pytest.approx(0, abs=1e-12)
    assert inspect_foe.convexity_gap(-parabola) > 0.5


def test_local_minima_by_hand():
    deep, shallow = [3, 1, 2, 0, 5, 4.9, 6], [0, 1, 2, 1.5, 3]
    assert inspect_foe.local_minima([deep]).tolist() == [3]
    assert inspect_foe.local_minima([deep], prominence=0.1).tolist() == [
        2
    ]  # climbs: 1 from 1, 3 from 0, 0.1 from 4.9
    assert inspect_foe.local_minima(shallow) == 1  # the end at 0 is no interior minimum
    assert inspect_foe.local_minima(shallow, prominence=0.2) == 0


# --- Hessian ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_point_hessian_against_autograd_and_dense_eigenvalues(layers):
    energy, y, sigma = random_energy(layers), image(8, 7), 0.4
    at = spectra.PointHessian(energy, y, sigma)
    dense = sigma**2 * hessian(lambda v: energy.energy(v, sigma**2).sum(), y).view(56, 56)
    v = torch.randn(y.shape, generator=generator(2), dtype=torch.float64)
    torch.testing.assert_close(at(v).flatten(), dense @ v.flatten())
    torch.testing.assert_close(at(v), sigma**2 * energy.hvp(y, sigma**2, v))
    assert sum(at.by_layer(v)) == pytest.approx(float(v.flatten() @ dense @ v.flatten()), rel=1e-9)
    lifted = dense + torch.full((56, 56), 0.5 / 56, dtype=torch.float64)
    expected = torch.linalg.eigvalsh(lifted)
    low, high, vector = spectra.extreme_eigenvalues(at, at.shape, torch.float64, tolerance=1e-8)
    assert low == pytest.approx(float(expected[0]), abs=1e-6)
    assert high == pytest.approx(float(expected[-1]), abs=1e-6)
    assert float((vector * at(vector)).sum()) == pytest.approx(low, abs=1e-6)
    assert spectra.smallest_eigenvalue(at, at.shape, torch.float64, 1e-8) == pytest.approx(low, abs=1e-6)


def test_point_hessian_wants_one_image_and_one_scale():
    with pytest.raises(ValueError, match="one image"):
        spectra.PointHessian(random_energy(1), image(batch=2), 0.1)
    coarse = FieldsOfExperts(FoEConfig(**SMALL, scales=1, coarse_features=3)).double()
    with pytest.raises(ValueError, match="use its hvp"):
        spectra.PointHessian(coarse, image(), 0.1)


def test_the_constant_image_is_lifted_to_one_half():
    found = spectra.extreme_eigenvalues(lambda v: 0.2 * (v - v.mean()), (1, 1, 6, 5), torch.float64)
    assert found[:2] == pytest.approx((0.2, 0.5), abs=1e-6)


# --- drawing ----------------------------------------------------------------------------------------------


def block(channels=5, levels=3):
    x = np.linspace(-1, 1, 21)[None, None] * np.array([1.0, 2.0, 4.0])[:levels, None, None]
    x = np.broadcast_to(x, (levels, channels, 21))
    kernels = np.zeros((channels, 1, 3, 3))
    kernels[np.arange(channels), 0, 1, np.arange(channels) % 3] = 1
    return plots.Block("a layer", kernels, x, 3 + x**2 * np.arange(1, channels + 1)[None, :, None])


def test_a_curve_fills_its_unit_square_beside_its_best_polynomial():
    x = np.linspace(-3, 1, 401)
    curve, fit, minima = plots.curve_parts(x, 5 + 2 * x**2, 2)
    assert (curve.min(0), curve.max(0)) == (pytest.approx([0, 0]), pytest.approx([1, 1]))
    np.testing.assert_allclose(fit, curve, atol=1e-12)
    np.testing.assert_allclose(minima, [[0.75, 0]], atol=1e-12)  # x = 0
    curve, fit, minima = plots.curve_parts(x, np.cos(2 * np.pi * x), 1)  # minima at -5/2, -3/2, -1/2, 1/2
    np.testing.assert_allclose(minima, [[1 / 8, 0], [3 / 8, 0], [5 / 8, 0], [7 / 8, 0]], atol=1e-12)
    np.testing.assert_allclose(fit[:, 1], np.polyval(np.polyfit(*curve.T, 1), curve[:, 0]), atol=1e-12)


@pytest.mark.parametrize("draw", [plots.sheet, lambda b, s, columns: plots.columns_figure([b], s)])
def test_every_channel_has_a_kernel_above_curves_of_one_size(draw):
    import matplotlib.pyplot as plt

    made = draw(block(), [0.01, 0.1, 1.0], columns=3)
    ax = made.axes[0]
    curves, dots = ax.collections[2].get_segments(), ax.collections[3].get_offsets()
    assert len(curves) == len(dots) == 15  # 5 channels, 3 levels, a parabola each
    for k, image in enumerate(ax.images):
        np.testing.assert_array_equal(image.get_array(), block().kernels[k, 0])
        left, right, bottom, _ = image.get_extent()
        for curve in curves[3 * k : 3 * k + 3]:
            np.testing.assert_allclose(np.ptp(curve, axis=0), np.ptp(curves[0], axis=0))
            assert curve[:, 1].max() < bottom
            assert (left + right) / 2 == pytest.approx((curve[0, 0] + curve[-1, 0]) / 2)
        heights = [curve[:, 1].min() for curve in curves[3 * k : 3 * k + 3]]
        assert heights == sorted(heights)  # the largest sigma on top
    plt.close(made)
