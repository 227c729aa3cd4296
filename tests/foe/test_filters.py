"""Filters of a Fields of Experts against scipy, numpy and torch, and each map against its adjoint."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn, idctn

from gnclib.foe.filters import convolve, convolve_adjoint, dct_kernels, dilate, reflect, reflect_adjoint
from tests.draws import generator

f64 = {"dtype": torch.float64}


@pytest.mark.parametrize("size", [3, 7])
def test_dct_kernels_against_scipy(size):
    """Analysing a patch with the kernels gives scipy's orthonormal DCT-II, all but its constant entry."""
    kernels = dct_kernels(size, size**2 - 1)
    flat = kernels.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(size**2 - 1, **f64), atol=1e-12, rtol=0)
    assert flat.sum(1).abs().max() < 1e-12
    patch = torch.rand(1, 1, size, size, generator=generator(1), **f64)
    ours = np.sort(convolve(patch, kernels).flatten().numpy())
    theirs = np.sort(dctn(patch[0, 0].numpy(), norm="ortho").flatten()[1:])
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_dct_kernels_are_ordered_by_frequency():
    """By a^2 + b^2, then by (a, b), a the frequency down the rows: unit coefficients of scipy's inverse transform."""
    order = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)]
    units = np.zeros((8, 3, 3))
    units[(np.arange(8), *np.transpose(order))] = 1
    expected = idctn(units, axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(dct_kernels(3, 8)[:, 0], expected, atol=1e-12)
    spectra = dctn(dct_kernels(7, 20)[:, 0].numpy(), axes=(1, 2), norm="ortho")
    found = [divmod(int(np.abs(s).argmax()), 7) for s in spectra]
    squares = [a**2 + b**2 for a, b in found]
    assert squares == sorted(squares)
    assert squares[-1] == 20  # of the 48 the 20 lowest
    assert len(set(found)) == 20


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize(("channels", "features", "size"), [(1, 5, 3), (1, 4, 7), (3, 4, 3), (4, 4, 1)])
def test_convolution_and_its_adjoint(channels, features, size, dilation):
    """<K x, g> = <x, K^T g>, and K x is torch's conv2d, also with the kernel whose zeros are written out."""
    g = generator(size)
    side = dilation * (size - 1) + 1
    x = torch.randn(2, channels, 19, 21, generator=g, **f64)
    kernel = torch.randn(features, channels, size, size, generator=g, **f64)
    y = torch.randn(2, features, 20 - side, 22 - side, generator=g, **f64)
    found = convolve(x, kernel, dilation)
    torch.testing.assert_close(found, F.conv2d(x, kernel, dilation=dilation))
    torch.testing.assert_close(found, F.conv2d(x, dilate(kernel, dilation)))
    torch.testing.assert_close((found * y).sum(), (x * convolve_adjoint(y, kernel, dilation)).sum())


@pytest.mark.parametrize(("margin", "height", "width"), [(0, 4, 5), (1, 1, 5), (3, 3, 9), (4, 7, 5)])
def test_reflection_and_its_adjoint(margin, height, width):
    """<P x, g> = <x, P^T g> down to the smallest images, and P x is numpy's reflecting pad."""
    x = torch.randn(2, 3, height, width, generator=generator(0), **f64)
    g = torch.randn(2, 3, height + 2 * margin, width + 2 * margin, generator=generator(1), **f64)
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), (margin, margin), (margin, margin)], mode="symmetric")
    np.testing.assert_array_equal(reflect(x, margin), expected)
    torch.testing.assert_close((reflect(x, margin) * g).sum(), (x * reflect_adjoint(g, margin)).sum())


def test_every_pixel_lies_in_as_many_windows():
    """The adjoint of the ones: 7 x 7 windows around all pixels see each pixel 49 times, at the edge too."""
    ones = torch.ones(1, 1, 9, 8, **f64)
    seen = reflect_adjoint(convolve_adjoint(ones, torch.ones(1, 1, 7, 7, **f64)), 3)
    torch.testing.assert_close(seen, 49 * ones)
