"""Data terms against a numerical minimiser, the optimality condition and firm non-expansiveness."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from gnclib.restore.operators import Denoising, Inpainting

SHAPE = (2, 1, 3, 4)


def images(seed, scale=1.0):
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_mask(seed=7):
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.5


def operators():
    y = images(0)
    return [Denoising(y, 0.3), Inpainting(y, random_mask())]


def test_denoising_energy_by_hand():
    y = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    x = torch.tensor([[[[3.0, 4.0]]]], dtype=torch.float64)
    assert Denoising(y, 0.5).energy(x).tolist() == [50.0]  # 25 / (2 * 0.25)


@pytest.mark.parametrize("eta", [1e-3, 0.07, 5.0])
def test_denoising_prox_minimises(eta):
    """argmin_x D(x) + ||x - v||^2 / (2 eta) found by scipy's BFGS from a far start, with D from energy()."""
    data, v = Denoising(images(0), 0.3), images(1)

    def objective(flat):
        x = torch.from_numpy(flat).reshape(SHAPE).requires_grad_()
        value = data.energy(x).sum() + (x - v).square().sum() / (2 * eta)
        (slope,) = torch.autograd.grad(value, x)
        return value.item(), slope.flatten().numpy()

    found = minimize(objective, np.full(v.numel(), 3.0), jac=True, method="BFGS", options={"gtol": 1e-9})
    torch.testing.assert_close(data.prox(v, eta).flatten(), torch.from_numpy(found.x), atol=1e-7, rtol=0)


def test_inpainting_prox_is_the_projection():
    """On a tiny problem: of all feasible grid images none is closer to v than prox(v)."""
    y = torch.tensor([[[[0.2, 0.9]]]], dtype=torch.float64)
    v = torch.tensor([[[[0.7, 0.4]]]], dtype=torch.float64)
    data = Inpainting(y, torch.tensor([[True, False]]))
    p = data.prox(v, 0.3)
    assert data.energy(p).item() == 0.0
    grid = torch.linspace(-1, 2, 3001, dtype=torch.float64)
    candidates = torch.stack([torch.full_like(grid, 0.2), grid], dim=-1)
    best = candidates[(candidates - v.flatten()).square().sum(-1).argmin()]
    torch.testing.assert_close(p.flatten(), best, atol=1e-3, rtol=0)


def test_values_outside_of_the_range_of_grey_values_are_kept():
    """Noise and the iterates of a solver leave [0, 1]; neither a measurement nor a projection clips them."""
    y, v, mask = images(0, 3.0), images(1, 3.0), random_mask()
    assert min(y.min(), v.min()) < -1 < 2 < max(y.max(), v.max())
    data = Inpainting(y, mask)
    assert torch.equal(data.prox(v, 0.1), torch.where(mask, y, v))
    assert torch.equal(data.start()[mask], y[mask])
    assert torch.equal(Denoising(y, 0.3).start(), y)
    torch.testing.assert_close(Denoising(y, 0.3).prox(v, 0.0), v)


@pytest.mark.parametrize("data", operators(), ids=lambda data: type(data).__name__)
@pytest.mark.parametrize("eta", [0.01, 1.0])
def test_firmly_nonexpansive(data, eta):
    """||Pu - Pv||^2 <= <Pu - Pv, u - v>, which holds for the prox of every convex function."""
    for seed in range(20):
        u, v = images(2 * seed, 3.0), images(2 * seed + 1, 3.0)
        moved = data.prox(u, eta) - data.prox(v, eta)
        assert moved.square().sum() <= (moved * (u - v)).sum() + 1e-12


def test_prox_step_per_image_and_limits():
    data, v = Denoising(images(0), 0.3), images(1)
    both = data.prox(v, torch.tensor([0.01, 2.0], dtype=torch.float64))
    torch.testing.assert_close(both[0], data.prox(v, 0.01)[0])
    torch.testing.assert_close(both[1], data.prox(v, 2.0)[1])
    torch.testing.assert_close(data.prox(v, 0.0), v)
    torch.testing.assert_close(data.prox(v, 1e12), data.y, atol=1e-9, rtol=0)


def test_inpainting_energy_is_exact():
    y, mask = images(0), random_mask()
    data = Inpainting(y, mask)
    x = torch.where(mask, y, images(3))
    assert data.energy(x).tolist() == [0.0, 0.0]
    row, column = torch.nonzero(mask[1, 0])[0].tolist()
    x[1, 0, row, column] += 1e-12
    assert data.energy(x).tolist() == [0.0, math.inf]


def test_start_and_mask_forms():
    y, mask = images(0), random_mask()
    expected = torch.where(mask, y, torch.full_like(y, 0.5))
    for form in (mask, mask.to(torch.uint8), mask.double()):
        assert torch.equal(Inpainting(y, form).start(), expected)
    flat = Inpainting(y, mask[0, 0])  # one (H, W) mask for the batch
    assert torch.equal(flat.mask[1], mask[0])


@pytest.mark.parametrize("data", operators(), ids=lambda data: type(data).__name__)
def test_operators_keep_their_measurement(data):
    """Neither the caller's y nor the returned start aliases what the operator remembers."""
    before = data.start()
    data.start().zero_()
    assert torch.equal(data.start(), before)
    y = images(0)
    held = Denoising(y, 0.3)
    y.zero_()
    assert held.y.abs().sum() > 0


@pytest.mark.parametrize("sigma", [0.0, -0.1, float("nan"), float("inf")])
def test_bad_sigma(sigma):
    with pytest.raises(ValueError, match="sigma"):
        Denoising(images(0), sigma)


def test_a_sigma_for_each_image_is_refused():
    with pytest.raises(ValueError, match=r"one number, or one for each pixel, shaped like y .*: got \(2,\)"):
        Denoising(images(0), torch.tensor([0.1, 0.2]))


def test_bad_measurements():
    with pytest.raises(ValueError, match="shape"):
        Denoising(torch.zeros(4, 4), 0.1)
    with pytest.raises(ValueError, match=r"finite|nan"):
        Inpainting(torch.full((1, 1, 2, 2), math.nan), torch.ones(2, 2))


@pytest.mark.parametrize(
    "mask", [torch.full((3, 4), 0.5), torch.full((3, 4), 255), torch.ones(4, 3), torch.ones(5)]
)
def test_bad_mask(mask):
    with pytest.raises(ValueError, match="mask"):
        Inpainting(images(0), mask)


@pytest.mark.parametrize("data", operators(), ids=lambda data: type(data).__name__)
def test_bad_arguments(data):
    with pytest.raises(ValueError, match="shape"):
        data.energy(torch.zeros(2, 1, 4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="shape"):
        data.prox(torch.zeros(1, 1, 3, 4, dtype=torch.float64), 0.1)  # would broadcast silently
    with pytest.raises(ValueError, match="float32"):
        data.energy(torch.zeros(SHAPE))
    for step in (-0.1, float("nan"), torch.ones(3)):
        with pytest.raises(ValueError, match="step"):
            data.prox(images(1), step)
