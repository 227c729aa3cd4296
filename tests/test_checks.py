"""The shared validators: what they let through, unchanged, and what they refuse, by name."""

import math

import pytest
import torch

from gnclib.checks import FARTHEST, as_device, as_images, as_measured, as_time

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


def test_as_device():
    assert as_device("cpu") == torch.device("cpu")
    for name, message in (("abacus", "abacus"), ("meta", "nothing is computed"), ("cuda:99", "use cpu")):
        with pytest.raises(ValueError, match=message):
            as_device(name)
