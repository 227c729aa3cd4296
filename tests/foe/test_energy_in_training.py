"""What training asks of an energy beyond the contract: inner gradients, first derivatives, smoothing."""

import math
from dataclasses import replace

import pytest
import torch

from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.foe.filters import convolve_adjoint, convolve_adjoint_inner, crop_to
from tests.draws import generator, random_energy

f64 = {"dtype": torch.float64}
SMALL = FoEConfig(features=4, kernel_size=3, nodes_x=15, range=3.0, nodes_tau=7)
T = torch.tensor([0.003, 0.4], **f64)


def images(height, width, batch=2, seed=1):
    return torch.rand(batch, 1, height, width, generator=generator(seed), **f64)


# --- filters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("channels", "features", "size"), [(1, 5, 3), (1, 4, 7), (3, 4, 3), (4, 4, 5)])
def test_the_inner_adjoint_is_the_centre_of_the_adjoint(channels, features, size, dilation):
    g = torch.randn(2, features, 16, 15, generator=generator(size), **f64)
    kernel = torch.randn(features, channels, size, size, generator=generator(0), **f64)
    found = convolve_adjoint_inner(g, kernel, dilation)
    assert found.shape == (2, channels, 16 - dilation * (size - 1), 15 - dilation * (size - 1))
    torch.testing.assert_close(found, crop_to(convolve_adjoint(g, kernel, dilation), found))


def test_crop_to_takes_the_centre():
    x = torch.arange(7 * 6).view(1, 1, 7, 6)
    assert torch.equal(crop_to(x, torch.empty(2, 5, 3, 2)), x[..., 2:5, 2:4])
    assert torch.equal(crop_to(x, x), x)


# --- inner gradient and first derivative ------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kernels", [(3, 3, 1), (5, 3, 1), (3, 5, 1), (3, 3, 2), (3, 3, 3)], ids=str)
def test_inner_gradient_is_that_of_any_larger_image(layers, kernels):
    """Cropped "valid" and "reflect" gradients, and the gradient of an image of which y is a part."""
    first, deep, dilation = kernels
    config = replace(SMALL, layers=layers, kernel_size=first, deep_kernel_size=deep, dilation=dilation)
    energy = random_energy(config)
    m = energy.config.margin
    large = images(4 * m + 9, 4 * m + 8)
    y = large[..., 2:-2, 1:-2]
    inner = energy.inner_grad(y, T)
    assert inner.shape == (2, 1, 5, 5)
    torch.testing.assert_close(inner, energy.grad(y, T, border="valid")[..., 2 * m : -2 * m, 2 * m : -2 * m])
    torch.testing.assert_close(inner, crop_to(energy.grad(y, T), inner))
    torch.testing.assert_close(inner, energy.grad(large, T)[..., 2 + 2 * m :, 1 + 2 * m :][..., :5, :5])
    assert inner.abs().max() > 0.01
    compiled = energy.float().requires_grad_(False).inner_grad(y.float(), T)
    torch.testing.assert_close(compiled, inner.detach().float(), rtol=1e-3, atol=1e-4)


def test_inner_gradient_needs_an_inner_pixel():
    energy = random_energy(replace(SMALL, layers=2))  # margin 2
    assert energy.inner_grad(images(9, 9), T).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match="needs more than 8 in each direction"):
        energy.inner_grad(images(8, 20), T)
    with pytest.raises(ValueError, match="leaves the range"):
        energy.inner_grad(images(9, 9), 1.5)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("border", ["reflect", "valid"])
def test_the_first_tau_derivative_alone_is_the_first_of_both(layers, border):
    energy, y = random_energy(replace(SMALL, layers=layers)), images(11, 10)
    (alone,) = energy.dtau(y, T, border=border, order=1)
    first, _ = energy.dtau(y, T, border=border, order=2)
    torch.testing.assert_close(alone, first, rtol=1e-12, atol=1e-12)
    for order in (0, 3, None):
        with pytest.raises(ValueError, match="order must be 1 or 2"):
            energy.dtau(y, T, order=order)


# --- smoothing of the potentials --------------------------------------------------------------------------


def third_difference(n):
    """D^3 (n - 3, n) from its definition: (D^3 w)_i = w_{i+3} - 3 w_{i+2} + 3 w_{i+1} - w_i."""
    d = torch.zeros(n - 3, n, **f64)
    for i in range(n - 3):
        d[i, i : i + 4] = torch.tensor([-1.0, 3.0, -3.0, 1.0], **f64)
    return d


@pytest.mark.parametrize("amount", [0.0, 1e-3, 0.7, 1e4])
def test_smoothing_solves_the_implicit_step(amount):
    """(I + a D^3^T D^3) w_new = w_old, for all layers, channels and tau nodes; nothing else changes."""
    energy = random_energy(replace(SMALL, layers=2))
    before = {name: value.clone() for name, value in energy.state_dict().items()}
    energy.smooth(amount)
    d = third_difference(SMALL.nodes_x)
    matrix = torch.eye(SMALL.nodes_x, **f64) + amount * d.T @ d
    for name, value in energy.state_dict().items():
        if name.startswith("weights"):
            expected = torch.linalg.solve(matrix, before[name])  # (C, N_x, N_tau): along N_x
            torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-8)
            if amount:
                assert (d @ value).norm() < (d @ before[name]).norm() * (1 - 1e-4)
            assert value.norm() <= before[name].norm() * (1 + 1e-12)
        else:
            assert torch.equal(value, before[name]), name


def test_smoothing_leaves_quadratics_alone():
    energy = FieldsOfExperts(replace(SMALL, layers=2)).double()  # identities and quadratics
    before = [w.clone() for w in energy.weights]
    for _ in range(20):
        energy.smooth(100.0)
    for w, b in zip(energy.weights, before, strict=True):
        torch.testing.assert_close(w.detach(), b, rtol=0, atol=2e-6)  # the coefficients were float32


def test_hidden_activations_are_smoothed_by_their_own_amount():
    energies = [random_energy(replace(SMALL, layers=3)) for _ in range(3)]
    energies[0].smooth(0.3, hidden=0.5)
    energies[1].smooth(0.3)
    energies[2].smooth(0.15)
    assert torch.equal(energies[0].weights[2], energies[1].weights[2])
    for layer in (0, 1):
        assert torch.equal(energies[0].weights[layer], energies[2].weights[layer])
    with pytest.raises(ValueError, match="amount of smoothing"):
        energies[0].smooth(0.3, hidden=-1.0)


def test_smoothing_again_and_again_ends_in_quadratics():
    energy = random_energy(SMALL)
    for _ in range(200):
        energy.smooth(1e4)
    assert (third_difference(SMALL.nodes_x) @ energy.weights[0]).abs().max() < 1e-6
    for amount in (-1e-3, math.inf, math.nan):
        with pytest.raises(ValueError, match="amount of smoothing"):
            energy.smooth(amount)
