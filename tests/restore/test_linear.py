"""Linear measurements: adjoints to rounding, operators against direct sums, proximal maps against dense solves."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, signal

from gnclib.restore.linear import (
    Blur,
    LinearMeasurement,
    LowResolution,
    PeriodicBlur,
    Projections,
    SampledFourier,
    SampledTransform,
    gaussian_kernel,
)
from tests.draws import generator

F64 = {"dtype": torch.float64}
SIZE = (11, 14)


def operators():
    uneven = torch.rand(3, 4, generator=generator(5), **F64)
    return {
        "blur": Blur(gaussian_kernel(0.8), SIZE),
        "uneven blur": Blur(uneven, SIZE),
        "blur with a stride": Blur(uneven, SIZE, stride=3),
        "low resolution": LowResolution(2, SIZE),
        "low resolution by 3": LowResolution(3, SIZE, sigma=0.6),
        "periodic blur": PeriodicBlur(uneven, SIZE),
        "sampled Fourier": SampledFourier(SIZE, 3, generator(), centre=0.2),
        "sampled Fourier, odd width": SampledFourier(SIZE[::-1], 4, generator(1)),
        "sampled transform": SampledTransform(SIZE, 0.3, generator()),
        "projections": Projections(SIZE, views=5),
        "projections, few bins": Projections(SIZE, views=3, bins=7),
    }


@pytest.fixture(params=operators(), scope="module")
def operator(request):
    return operators()[request.param]


def dense(operator):
    """A as a matrix (M, H W), column by column."""
    unit = torch.eye(SIZE[0] * SIZE[1], **F64).reshape(-1, 1, *operator.size)
    return operator(unit).flatten(1).T


def test_adjoint(operator):
    x = torch.randn(3, 1, *operator.size, generator=generator(1), **F64)
    forward = operator(x)
    u = torch.randn(forward.shape, generator=generator(2), **F64)
    back = operator.adjoint(u)
    assert back.shape == x.shape
    left, right = (forward * u).flatten(1).sum(1), (x * back).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.adjoint(u)[1:2], operator.adjoint(u[1:2]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("step", [0.001, 0.3])
def test_prox_against_the_dense_solution(operator, step):
    matrix, sigma = dense(operator), 0.2
    v = torch.rand(2, 1, *operator.size, generator=generator(3), **F64)
    y = operator(torch.rand(2, 1, *operator.size, generator=generator(4), **F64))
    data = LinearMeasurement(operator, y, sigma, accuracy=1e-10)
    c = step / sigma**2
    system = torch.eye(matrix.shape[1], **F64) + c * matrix.T @ matrix
    goal = v.flatten(1) + c * y.flatten(1) @ matrix
    expected = torch.linalg.solve(system, goal.T).T.reshape(v.shape)
    torch.testing.assert_close(data.prox(v, step), expected, rtol=1e-7, atol=1e-8)
    each = data.prox(v, torch.tensor([step, 2 * step], **F64))
    torch.testing.assert_close(each[:1], expected[:1], rtol=1e-7, atol=1e-8)
    assert (each[1] - expected[1]).abs().max() > 1e-6


def test_energy_and_start(operator):
    x = torch.rand(2, 1, *operator.size, generator=generator(6), **F64)
    y = operator(x)
    data = LinearMeasurement(operator, y, 0.5)
    assert data.energy(x).abs().max() < 1e-20
    z = torch.rand(x.shape, generator=generator(7), **F64)
    expected = ((operator(z) - y) ** 2).flatten(1).sum(1) / 0.5
    torch.testing.assert_close(data.energy(z), expected)
    grey = torch.full_like(x, 0.5)
    assert (data.energy(data.start()) < data.energy(grey)).all()
    torch.testing.assert_close(
        LinearMeasurement(operator, operator(grey), 0.5).start(), grey, rtol=1e-4, atol=1e-4
    )


def test_periodic_blur_is_the_wrapped_convolution_of_scipy():
    kernel, x = np.random.default_rng(0).random((3, 5)), np.random.default_rng(1).random(SIZE)
    found = PeriodicBlur(kernel, SIZE)(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found, ndimage.convolve(x, kernel, mode="wrap"), rtol=1e-12)


def test_sampled_fourier_keeps_columns_of_the_transform_of_numpy():
    x = np.random.default_rng(2).random((6, 48))
    operator = SampledFourier(x.shape, 4, generator())
    found = operator(torch.from_numpy(x)[None, None])[0, 0].numpy()
    whole = np.fft.fft2(x, norm="ortho")[:, operator.kept.numpy()]
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], whole, atol=1e-13)
    assert len(operator.kept) == 12
    assert {46, 47, 0, 1} <= set(operator.kept.tolist())  # 8 % of 48 columns around the frequency 0


@pytest.mark.parametrize(("acceleration", "centre"), [(0.5, 0.08), (4, 0.3), (math.inf, 0.0)])
def test_sampled_fourier_refuses(acceleration, centre):
    with pytest.raises(ValueError, match="acceleration must be a number >= 1"):
        SampledFourier(SIZE, acceleration, generator(), centre)


def test_blur_is_the_valid_convolution_of_scipy():
    kernel, x = np.random.default_rng(0).random((3, 5)), np.random.default_rng(1).random(SIZE)
    found = Blur(kernel, SIZE)(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found, signal.convolve2d(x, kernel, mode="valid"), rtol=1e-12)


def test_low_resolution_of_a_slope_is_a_slope():
    i, j = torch.meshgrid(torch.arange(20.0, **F64), torch.arange(24.0, **F64), indexing="ij")
    low = LowResolution(3, (20, 24))((0.1 + 0.02 * i + 0.01 * j)[None, None])[0, 0]
    torch.testing.assert_close(low.diff(dim=0), torch.full_like(low.diff(dim=0), 0.06))
    torch.testing.assert_close(low.diff(dim=1), torch.full_like(low.diff(dim=1), 0.03))


def test_rows_of_the_sampled_transform_are_orthonormal():
    matrix = dense(SampledTransform(SIZE, 0.4, generator(3)))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix), **F64), rtol=0, atol=1e-12)
    assert len(matrix) == round(0.4 * SIZE[0] * SIZE[1])


def test_projections_of_a_disc_are_its_chords():
    """A disc of radius 0.3 (of the width) and height 1: the ray at distance s has length 2 sqrt(0.09 - s^2)."""
    n, views = 128, 7
    i, j = torch.meshgrid(*[(torch.arange(n, **F64) + 0.5) / n - 0.5] * 2, indexing="ij")
    disc = ((i**2 + j**2).sqrt() < 0.3).double()[None, None]
    found = Projections((n, n), views)(disc)[0, 0]  # (views, bins)
    s = (torch.arange(n, **F64) + 0.5) / n - 0.5
    chord = 2 * (0.09 - s**2).clamp_min(0).sqrt()
    away = (s.abs() - 0.3).abs() > 0.03  # not at the rim, where pixels are too coarse
    assert ((found - chord)[:, away]).abs().max() < 0.02
    torch.testing.assert_close(
        found.sum(1) / n, torch.full((views,), math.pi * 0.09, **F64), rtol=0.01, atol=0
    )


def test_start_where_a_constant_is_not_seen():
    """Differences of neighbours, whose norm is nearly 2; and nothing at all, which leaves the image grey."""
    x = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blur = Blur(torch.tensor([[1.0, -1.0]], dtype=torch.float64), (24, 24))
    term = LinearMeasurement(blur, blur(x), 0.1)
    assert term._norm() == pytest.approx(4, rel=0.05)
    e = 0.01 * term._norm()
    assert blur.adjoint(blur(term.start()) - blur(x)).add(e * (term.start() - 0.5)).abs().max() < 1e-4
    nothing = Blur(torch.zeros(1, 2, dtype=torch.float64), (24, 24))
    assert bool((LinearMeasurement(nothing, nothing(x), 0.1).start() == 0.5).all())


def test_single_precision_and_batches():
    operator = LowResolution(2, SIZE)
    x = torch.rand(2, 1, *SIZE, generator=generator(8))
    data = LinearMeasurement(operator, operator(x), 0.05)
    assert data.prox(x, 0.01).dtype == torch.float32
    torch.testing.assert_close(data.prox(x, 0.01), x, rtol=1e-4, atol=1e-4)  # x fits the data already


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(torch.ones(3), SIZE), "must be a finite matrix"),
        (lambda: Blur(torch.ones(12, 3), SIZE), "does not fit into images"),
        (lambda: Blur(torch.ones(3, 3), SIZE, stride=0), "stride must be at least 1"),
        (lambda: gaussian_kernel(0), "sigma must be"),
        (lambda: gaussian_kernel(1.0, 4), "must be odd"),
        (lambda: LowResolution(1, SIZE), "factor must be"),
        (lambda: SampledTransform(SIZE, 0.0, generator()), "fraction must lie"),
        (lambda: Projections(SIZE, 0), "views and bins"),
        (lambda: Blur(torch.ones(3, 3), SIZE)(torch.zeros(1, 1, 5, 5)), "this operator is for images of"),
        (lambda: LinearMeasurement(Blur(torch.ones(3, 3), SIZE), torch.zeros(1, 1, *SIZE), 0.1), "the operator gives"),
        (lambda: LinearMeasurement(Blur(torch.ones(3, 3), SIZE), torch.full((1, 1, 9, 12), math.nan), 0.1), "finite"),
        (lambda: LinearMeasurement(Blur(torch.ones(3, 3), SIZE), torch.zeros(1, 1, 9, 12), 0.0), "sigma must be"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_conjugate_gradients_that_do_not_converge_say_so():
    operator = Projections(SIZE, views=5)
    y = operator(torch.rand(1, 1, *SIZE, generator=generator(9), **F64))
    data = LinearMeasurement(operator, y, 1e-6, iterations=3)
    with pytest.raises(RuntimeError, match=r"relative residual of .* in 3 iterations"):
        data.prox(torch.zeros(1, 1, *SIZE, **F64), 1.0)
