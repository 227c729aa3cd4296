"""The shared validators: what they let through, unchanged, and what they refuse, by name."""

import math

import pytest
import torch

from gnclib.checks import FARTHEST, as_device, as_images, as_measured, as_time
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.restore import Denoising

LIKE = torch.zeros(3, dtype=torch.float64)


def test_as_time_spreads_a_number_over_the_batch():
    assert as_time(0.25, 3, like=LIKE).tolist() == [0.25] * 3
    assert as_time(torch.tensor(0.25), 3, like=LIKE).dtype == torch.float64
    assert as_time(torch.tensor([1.0, 2.0, 3.0]), 3, like=LIKE).tolist() == [1.0, 2.0, 3.0]


def test_as_time_keeps_the_graph():
    t = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    as_time(t, 3, like=LIKE).sum().backward()
    assert t.grad.item() == 3.0


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (-0.1, "must be >= 0"),
        (math.nan, "finite"),
        (math.inf, "finite"),
        (torch.ones(2), r"shape \(3,\)"),
        ("0.1", "number"),
        (None, "number"),
    ],
)
def test_as_time_refuses(t, message):
    with pytest.raises(ValueError, match=message):
        as_time(t, 3, like=LIKE)


def test_as_images_returns_the_same_tensor():
    x = torch.rand(2, 1, 5, 4)
    assert as_images(x) is x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(5, 4), r"x\[None, None\]"),
        (torch.rand(2, 3, 5, 4), "colour"),
        (torch.zeros(0, 1, 5, 4), "shape"),
        (torch.zeros(1, 1, 5, 4, dtype=torch.uint8), "255"),
        (torch.full((1, 1, 2, 2), math.nan), "nan"),
        ([[0.0]], "tensor"),
    ],
)
def test_as_images_refuses(x, message):
    with pytest.raises(ValueError, match=message):
        as_images(x)


def test_as_measured_takes_strong_noise_but_no_bytes():
    x = torch.full((1, 1, 3, 3), 0.5)
    for value in (-FARTHEST, FARTHEST):
        x[0, 0, 1, 1] = value
        assert as_measured(x) is x
        x[0, 0, 1, 1] = 1.01 * value
        with pytest.raises(ValueError, match="divide by 255"):
            as_measured(x)
    with pytest.raises(ValueError, match="shape"):
        as_measured(torch.zeros(3, 3))
    y = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    for value in (-FARTHEST - 48, FARTHEST + 48):
        y[0, 0, 1, 1] = value
        Denoising(y, 8.0)
        y[0, 0, 1, 1] = 1.01 * value
        with pytest.raises(ValueError, match="divide by 255"):
            Denoising(y, 8.0)


def test_as_measured_knows_counts_by_their_mean():
    """Poisson counts of an image stay below FARTHEST, but noise of mean 0 does not move the mean of an image."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 32, 32, generator=generator)
    for sigma in (0, 0.1, 1):
        as_measured(x + sigma * torch.randn(x.shape, generator=generator))
        as_measured(x.round() * 0 + sigma * torch.randn(x.shape, generator=generator))
    with pytest.raises(ValueError, match="data_range"):
        as_measured(torch.poisson(5 * x, generator=generator))
    with pytest.raises(ValueError, match="data_range"):
        as_measured(-2 + x)


def test_energies_of_bytes_are_warned_about():
    prior = FieldsOfExperts(FoEConfig(features=4, kernel_size=3, nodes_x=31, nodes_tau=5))
    y = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    for far in (3 * y, -300 * y):
        prior.energy(far, 0.01)
    for method in (prior.energy, prior.grad):
        with pytest.warns(RuntimeWarning, match="divide by 255"):
            method(255 * y, 0.01)


def test_as_device():
    assert as_device("cpu") == torch.device("cpu")
    for name, message in (("abacus", "abacus"), ("meta", "nothing is computed"), ("cuda:99", "use cpu")):
        with pytest.raises(ValueError, match=message):
            as_device(name)
