"""PSNR against scikit-image, SSIM against its formula, and the convention that nothing is clipped."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio

from gnclib.images.metrics import psnr, ssim


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(3, 1, 12, 9, generator=generator)
    return reference + 0.3 * torch.randn(3, 1, 12, 9, generator=generator), reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_scikit_image(pair, dtype):
    noisy, reference = (image.to(dtype) for image in pair)
    values = psnr(noisy, reference)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    for value, a, b in zip(values, noisy, reference, strict=True):
        expected = peak_signal_noise_ratio(b.double().numpy(), a.double().numpy(), data_range=1.0)
        assert value.item() == pytest.approx(expected, abs=1e-6)


def test_nothing_is_clipped(pair):
    noisy, reference = pair
    assert noisy.min() < 0
    assert noisy.max() > 1
    assert (psnr(noisy.clamp(0, 1), reference) > psnr(noisy, reference) + 0.1).all()


def formula(x, reference):
    """SSIM of arrays (H, W) as Wang et al. 2004 write it: moments under an 11 x 11 Gaussian window, where it fits."""
    weight = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(weight, weight) / weight.sum() ** 2

    def mean(a):
        return ndimage.correlate(a, window)[5:-5, 5:-5]

    m, n = mean(x), mean(reference)
    v, w, c = mean(x**2) - m**2, mean(reference**2) - n**2, mean(x * reference) - m * n
    return ((2 * m * n + 0.01**2) * (2 * c + 0.03**2) / ((m**2 + n**2 + 0.01**2) * (v + w + 0.03**2))).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssim_is_its_formula(dtype):
    generator = torch.Generator().manual_seed(1)
    reference = torch.rand(3, 1, 11, 14, generator=generator)  # 11 is as small as it may be
    x = reference + torch.tensor([0.0, 0.1, 1.0]).view(3, 1, 1, 1) * torch.randn(
        3, 1, 11, 14, generator=generator
    )
    x, reference = x.to(dtype), reference.to(dtype)
    values = ssim(x, reference)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    expected = [
        formula(a.double().numpy(), b.double().numpy()) for a, b in zip(x[:, 0], reference[:, 0], strict=True)
    ]
    assert values.tolist() == pytest.approx(expected, abs=1e-9)
    assert values[0] == 1.0
    assert values[1] > values[2] + 0.2


def test_ssim_does_not_clip(pair):
    noisy, reference = pair[0].repeat(1, 1, 2, 2), pair[1].repeat(1, 1, 2, 2)
    assert ((ssim(noisy.clamp(0, 1), reference) - ssim(noisy, reference)).abs() > 1e-3).all()


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20))


def test_known_value_and_identical_images():
    reference = torch.full((1, 1, 4, 4), 0.25, dtype=torch.float64)
    assert psnr(reference + 0.1, reference).item() == pytest.approx(20.0, abs=1e-9)
    assert psnr(reference, reference).item() == float("inf")


@pytest.mark.parametrize(
    ("x", "reference"),
    [
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5)),
        (torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4)),  # would broadcast silently
        (torch.zeros(4, 4), torch.zeros(4, 4)),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, 4)),
        (torch.full((1, 1, 4, 4), float("nan")), torch.zeros(1, 1, 4, 4)),
    ],
)
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_input(x, reference, metric):
    with pytest.raises(ValueError, match=r"shape|floating|finite"):
        metric(x, reference)
