"""One-step denoising and the PSNR that watches a training: Wiener's filter, and noise of its own for each image."""

import math

import pytest
import torch

from gnclib.score import denoising_psnr, mmse
from tests import child_runs


class Gaussian:
    """X ~ N(m, v) per pixel: R(y, t) = (y - m)^2 / (2 (v + t)), whose posterior mean is known."""

    m, v = 0.4, 0.04

    def grad(self, y, t):
        return (y - self.m) / (self.v + t)


def test_the_estimate_of_a_gaussian_is_wieners():
    y = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wiener = Gaussian.m + Gaussian.v / (Gaussian.v + 0.09) * (y - Gaussian.m)
    torch.testing.assert_close(mmse(Gaussian(), y, 0.09), wiener, rtol=1e-12, atol=1e-12)


def test_each_image_has_noise_of_its_own_seed():
    """Image k has the noise of seed k, written out; equal images do not get equal noise."""
    x = child_runs.leaves(24)
    found = denoising_psnr(Gaussian(), [x, x, x], 0.2)
    for k, value in enumerate(found):
        noisy = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
        estimate = Gaussian.m + 0.5 * (noisy - Gaussian.m)  # v = sigma^2
        assert value == pytest.approx(-10 * math.log10((estimate - x).square().mean().item()), abs=1e-4)
    assert len({round(value, 3) for value in found}) == 3


def test_without_images_there_is_no_mean():
    with pytest.raises(ValueError, match="no images to evaluate on"):
        denoising_psnr(Gaussian(), [], 0.2)
