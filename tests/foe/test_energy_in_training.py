"""What training asks of an energy beyond the contract: inner gradients, first derivatives, smoothing, warm starts."""

import math
from dataclasses import replace

import pytest
import torch

from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.foe.filters import convolve_adjoint, convolve_adjoint_inner, crop_to, reflect
from tests.draws import generator

f64 = {"dtype": torch.float64}
SMALL = FoEConfig(features=4, kernel_size=3, nodes_x=15, range=3.0, nodes_tau=7)
T = torch.tensor([0.003, 0.4], **f64)


def random_energy(config, seed=0, spread=0.2):
    """A float64 energy whose every parameter is random."""
    g = generator(seed)
    energy = FieldsOfExperts(config, generator=g).double()
    for p in energy.parameters():
        p.data += spread * torch.randn(p.shape, generator=g, **f64)
    return energy.requires_grad_(False)


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


# --- warm start -------------------------------------------------------------------------------------------


def start_without_random_part(shallow, layers):
    """A warm start whose random kernels are removed again."""
    deep = FieldsOfExperts(replace(shallow.config, layers=layers)).double()
    deep.warm_start(shallow, generator(5))
    middle = shallow.config.deep_kernel_size // 2
    for kernel in deep.kernels[1:]:
        identity = torch.zeros_like(kernel)
        identity[:, :, middle, middle] = torch.eye(shallow.config.features)
        kernel.data = identity
    return deep


@pytest.mark.parametrize("layers", [2, 3])
def test_without_its_random_part_a_warm_start_is_the_shallow_energy(layers):
    """ "valid" sums over the features of the larger margin: the shallow energy of the image without the difference.

    Features stay within the nodes, where the identity activations are exact (but for float32 coefficients).
    """
    shallow = random_energy(replace(SMALL, range=6.0), spread=0.05)
    deep = start_without_random_part(shallow, layers)
    y, cut = images(24, 22), layers - 1
    inner = y[..., cut:-cut, cut:-cut]
    expected = shallow.energy(inner, T, border="valid")
    torch.testing.assert_close(deep.energy(y, T, border="valid"), expected, rtol=1e-5, atol=0)
    found, exact = deep.inner_grad(y, T), shallow.grad(y, T)
    torch.testing.assert_close(found, crop_to(exact, found), rtol=1e-4, atol=1e-5)
    for a, b in zip(deep.dtau(y, T, border="valid"), shallow.dtau(inner, T, border="valid"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_a_warm_start_adds_a_tenth_of_kaiming():
    """K_l = identity + 0.1 Kaiming: entries of standard deviation 0.1 sqrt(2 / (C s^2)); the generator decides."""
    config = FoEConfig()
    shallow, deep = FieldsOfExperts(config), FieldsOfExperts(replace(config, layers=3))
    before = {name: value.clone() for name, value in shallow.state_dict().items()}
    deep.warm_start(shallow, generator(3))
    assert all(torch.equal(before[name], value) for name, value in shallow.state_dict().items())
    for kernel in deep.kernels[1:]:
        rest = kernel.detach().clone()
        rest[:, :, 1, 1] -= torch.eye(48)
        assert rest.std().item() == pytest.approx(0.1 * math.sqrt(2 / (48 * 9)), rel=0.03)
    again = FieldsOfExperts(replace(config, layers=3), generator=generator(99))
    again.warm_start(shallow, generator(3))
    assert all(torch.equal(a, b) for a, b in zip(deep.parameters(), again.parameters(), strict=True))
    again.warm_start(shallow, generator(4))
    assert not torch.equal(deep.kernels[1], again.kernels[1])


def test_a_warm_start_from_the_shipped_prior_begins_near_its_gradient():
    """The random part is small: a tenth of the gradient of R_1, roughly, at a high noise level."""
    shallow = FieldsOfExperts.from_pretrained("R1")
    deep = FieldsOfExperts(replace(shallow.config, layers=3))
    deep.warm_start(shallow, generator(0))
    y = reflect(images(24, 24, 1).float(), 8)
    with torch.no_grad():
        found, exact = deep.inner_grad(y, 0.25), shallow.grad(y, 0.25)
    difference = found - crop_to(exact, found)
    assert difference.norm() < 0.5 * crop_to(exact, found).norm()


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_warm_start_with_magnitudes_is_the_energy_of_the_even_parts(layers, dilation):
    """Its gradient and that of R_1 with (rho(x) + rho(-x)) / 2 for every potential, on features within the nodes."""
    config = replace(SMALL, nodes_x=95, range=6.0)
    g = generator(3)
    shallow = FieldsOfExperts(config, generator=g).double().requires_grad_(False)
    for bend in (0.03, 0.05):  # smooth potentials, neither even nor odd
        x = shallow.config.grid_x.nodes()
        shallow.weights[0] += (bend * torch.sin(x + torch.rand(4, 1, generator=g, **f64)))[:, :, None]
    deep = FieldsOfExperts(replace(config, layers=layers, dilation=dilation)).double()
    deep.warm_start(shallow, generator(5), hidden="magnitude")
    for kernel in deep.kernels[1:]:
        kernel.data = torch.zeros_like(kernel)
        kernel.data[:, :, 1, 1] = torch.eye(4)
    mirrored = FieldsOfExperts(config).double()
    mirrored.load_state_dict(shallow.state_dict())
    mirrored.weights[0].data = (shallow.weights[0] + shallow.weights[0].flip(1)) / 2
    y, cut = images(40, 38), dilation * (layers - 1)
    inner = y[..., cut:-cut, cut:-cut]
    tight = {"rtol": 1e-3, "atol": 2e-3}
    torch.testing.assert_close(
        deep.energy(y, T, border="valid") / inner[0].numel(),
        mirrored.energy(inner, T, border="valid") / inner[0].numel(),
        **tight,
    )
    found, exact = deep.inner_grad(y, T), mirrored.grad(y, T)
    exact = crop_to(exact, found)
    assert (found - exact).norm() < 1e-3 * exact.norm()
    assert (found - crop_to(shallow.grad(y, T), found)).norm() > 0.03 * exact.norm()  # odd parts are lost


def test_magnitudes_need_a_hidden_layer_and_a_known_name():
    shallow = FieldsOfExperts(SMALL)
    with pytest.raises(ValueError, match="needs a hidden layer"):
        FieldsOfExperts(SMALL).warm_start(shallow, hidden="magnitude")
    with pytest.raises(ValueError, match="hidden must be one of identity, magnitude"):
        FieldsOfExperts(replace(SMALL, layers=2)).warm_start(shallow, hidden="relu")


def test_a_warm_start_that_does_not_fit():
    deep = FieldsOfExperts(replace(SMALL, layers=3))
    for other in (replace(SMALL, layers=2), replace(SMALL, nodes_x=17), replace(SMALL, kernel_size=5)):
        with pytest.raises(
            ValueError, match="needs a prior of one layer with the same configuration otherwise"
        ):
            deep.warm_start(FieldsOfExperts(other))
