"""PSNR against scikit-image, and the convention that nothing is clipped."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from gnclib.metrics import psnr


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
def test_bad_input(x, reference):
    with pytest.raises(ValueError, match=r"shape|floating|finite"):
        psnr(x, reference)
