"""Warm starts, and the start of coarser scales and of c(tau) by least squares against the normal equations."""

import math
from dataclasses import replace

import pytest
import torch

from gnclib.foe import FieldsOfExperts, FoEConfig, convexity
from gnclib.foe.filters import crop_to, reflect
from gnclib.score import starts
from gnclib.spline import SplineGrid, contract
from tests.draws import generator, random_energy
from tests.leaves import dead_leaves

f64 = {"dtype": torch.float64}
SMALL = FoEConfig(features=4, kernel_size=3, nodes_x=15, range=3.0, nodes_tau=7)
T = torch.tensor([0.003, 0.4], **f64)


def images(height, width, batch=2):
    return torch.rand(batch, 1, height, width, generator=generator(1), **f64)


@pytest.mark.parametrize("layers", [1, 3])
def test_scores_of_single_experts_sum_to_the_gradient(layers):
    """The columns of the least squares: gains 1 for the fine scale and for quadratics give the energy's gradient."""
    config = FoEConfig(layers=layers, scales=2, coarse_features=5, range=30.0)
    energy = FieldsOfExperts(config, generator=generator()).requires_grad_(False)
    quadratic = energy.config.coarse_grid.quadratic(c=0.5).float()
    for w in energy.coarse.weights:
        w.copy_(quadratic[None, :, None].expand_as(w))
    y, tau = torch.rand(1, 1, 40, 36, generator=generator(1)), torch.tensor([math.log(0.3)])
    columns = starts._scores(energy, y, tau)
    gains = torch.zeros(len(columns))
    gains[:48] = 1
    for l in range(2):
        gains[96 + 15 * l : 101 + 15 * l] = 1
    total = torch.einsum("k,khw->hw", gains, columns) / 0.3
    torch.testing.assert_close(total, energy.grad(y, 0.09)[0, 0], rtol=1e-3, atol=1e-4)
    kept, bent = columns[:48], columns[48:96]  # untrained potentials are quadratics: multiples of each other
    torch.testing.assert_close(kept, (kept * bent).sum() / (bent * bent).sum() * bent, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 2])
def test_least_squares_start_denoises_better(layers):
    """On dead leaves at strong noise, against the quadratic start; its potentials are convex."""
    shape = {"layers": layers, "features": 8, "scales": 2, "coarse_features": 5, "nodes_tau": 6}
    energy = FieldsOfExperts(FoEConfig(**shape, sigma_max=0.5), generator=generator())
    leaves = [dead_leaves(96, 96, generator(k)) for k in range(3)]
    y = leaves[0] + 0.4 * torch.randn(1, 1, 96, 96, generator=generator(7))
    errors = []
    for _ in range(2):
        with torch.no_grad():
            errors.append(float((y - 0.16 * energy.grad(y, 0.16) - leaves[0]).square().mean()))
        starts.fit_coarse(energy, leaves, generator(), crops=3, side=64)
    assert errors[1] < 0.97 * errors[0]
    assert min(float(w.detach().double().diff(n=2, dim=1).min()) for w in energy.coarse.weights) > -1e-6


def test_gains_solve_the_normal_equations_of_the_ridge():
    """Least squares with gains >= 0: no slope at a positive gain, none downwards at 0 (Karush, Kuhn and Tucker)."""
    energy = FieldsOfExperts(
        FoEConfig(features=4, kernel_size=3, scales=1, coarse_features=3)
    ).requires_grad_(False)
    energy.kernels[0][1] = 0  # an expert that sees nothing: the ridge alone decides
    energy.kernels[0][2] *= 1e-3  # one that sees little: the ridge decides as well
    x, tau, ridge = dead_leaves(40, 40, generator(1)), math.log(0.3), 1e-4
    found = torch.from_numpy(starts._gains(energy, x, tau, generator(2), ridge))
    noise = torch.randn(x.shape, generator=generator(2))
    columns = starts._scores(energy, x + 0.3 * noise, torch.tensor([tau])).flatten(1).double()
    start = torch.zeros(len(found), dtype=torch.float64)
    start[:4] = 1
    square = columns @ columns.T
    weight = ridge * square.diagonal() + 1e-6 * square.diagonal().mean()
    slope = square @ found - columns @ noise.flatten().double() + weight * (found - start)
    size = square.diagonal().sqrt() * noise.norm() + weight
    assert (found >= 0).all()
    assert (found > 0).any()
    assert (found == 0).any()
    assert (slope.abs() < 1e-5 * size)[found > 0].all()
    assert (slope > -1e-5 * size).all()
    assert found[1] == pytest.approx(1, abs=1e-3)


def test_the_constant_makes_energies_of_noise_levels_comparable():
    """The mean of d_tau R over noisy images, which a normalised energy has at 0, vanishes after the fit."""
    energy = FieldsOfExperts(FoEConfig(features=6, kernel_size=3, nodes_tau=7, constant=True)).requires_grad_(
        False
    )
    leaves = [dead_leaves(48, 48, generator(k)) for k in range(6)]

    def mean(sigma):
        noisy = [x + sigma * torch.randn(x.shape, generator=generator(50 + k)) for k, x in enumerate(leaves)]
        return (
            sum(energy.dtau(y, sigma**2, order=1)[0].item() for y in noisy) / len(noisy) / leaves[0].numel()
        )

    levels = (0.02, 0.1, 0.4, 0.9)
    before = max(abs(mean(s)) for s in levels)
    starts.fit_constant(energy, leaves, generator(3))
    assert max(abs(mean(s)) for s in levels) < 0.2 * before


def test_refit_is_the_same_function_on_other_nodes():
    before, after = SplineGrid(7, -3.0, 0.0), SplineGrid(9, -3.0, 1.0)
    w = before.quadratic(1.0, 0.5, 0.25).expand(2, 3, -1)
    tau = torch.linspace(-2.9, -1.0, 20, **f64)
    found = contract(starts.refit(w, before, after), tau, after)
    torch.testing.assert_close(found[:, 0, 0], 1 + 0.5 * tau + 0.25 * tau**2, rtol=0, atol=0.02)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_start_from_a_fine_prior_and_files(tmp_path, layers):
    """Without coarse potentials it is the prior that it set out from; saved and loaded it is itself."""
    fine = FoEConfig(features=6, layers=layers, dilation=layers)
    config = replace(fine, sigma_max=2.0, nodes_tau=12, scales=2)
    fine = FieldsOfExperts(fine, generator=generator()).requires_grad_(False)
    energy = FieldsOfExperts(config).requires_grad_(False)
    starts.warm_start(energy, fine)
    for w in energy.coarse.weights:
        w.zero_()
    y = images(13, 10).float()
    torch.testing.assert_close(energy.grad(y, 0.09), fine.grad(y, 0.09), rtol=1e-3, atol=1e-4)
    energy.save_pretrained(tmp_path)
    again = FieldsOfExperts.from_pretrained(tmp_path)
    assert again.config == config
    torch.testing.assert_close(again.grad(y, 0.5), energy.grad(y, 0.5))
    with pytest.raises(ValueError, match="fine scale"):
        starts.warm_start(energy, energy)


@pytest.mark.parametrize(("scales", "layers"), [(0, 1), (2, 2)])
def test_a_start_of_several_layers_that_are_to_be_convex(scales, layers):
    """Identities and quadratics from the first node on that counts, the fine prior below."""
    shape = FoEConfig(features=4, layers=layers, coarse_features=3, convex_from=None if scales else 0.6)
    fine, config = random_energy(shape).float(), replace(shape, layers=2, scales=scales, convex_from=0.6)
    energy = FieldsOfExperts(config).requires_grad_(False)
    starts.warm_start(energy, fine, hidden="identity" if scales else "magnitude")
    first, fresh = convexity.convex_nodes(config), FieldsOfExperts(config)
    assert energy.certify(0.36).convex
    for found, start in zip(energy.weights, fresh.weights, strict=True):
        torch.testing.assert_close(found[..., first:], start[..., first:], atol=1e-4, rtol=0)
    if scales:
        below = energy.weights[0][..., :first], fine.weights[0][..., :first]
        torch.testing.assert_close(*below, atol=1e-3, rtol=0)


# --- warm start -------------------------------------------------------------------------------------------


def start_without_random_part(shallow, layers):
    """A warm start whose random kernels are removed again."""
    deep = FieldsOfExperts(replace(shallow.config, layers=layers)).double()
    starts.warm_start(deep, shallow, generator(5))
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
    starts.warm_start(deep, shallow, generator(3))
    assert all(torch.equal(before[name], value) for name, value in shallow.state_dict().items())
    for kernel in deep.kernels[1:]:
        rest = kernel.detach().clone()
        rest[:, :, 1, 1] -= torch.eye(48)
        assert rest.std().item() == pytest.approx(0.1 * math.sqrt(2 / (48 * 9)), rel=0.03)
    again = FieldsOfExperts(replace(config, layers=3), generator=generator(99))
    starts.warm_start(again, shallow, generator(3))
    assert all(torch.equal(a, b) for a, b in zip(deep.parameters(), again.parameters(), strict=True))
    starts.warm_start(again, shallow, generator(4))
    assert not torch.equal(deep.kernels[1], again.kernels[1])


def test_a_warm_start_from_the_shipped_prior_begins_near_its_gradient():
    """The random part is small: a tenth of the gradient of R_1, roughly, at a high noise level."""
    shallow = FieldsOfExperts.from_pretrained("R1")
    deep = FieldsOfExperts(replace(shallow.config, layers=3))
    starts.warm_start(deep, shallow, generator(0))
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
    starts.warm_start(deep, shallow, generator(5), hidden="magnitude")
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


def test_magnitudes_need_a_hidden_layer():
    with pytest.raises(ValueError, match="needs a hidden layer"):
        starts.warm_start(FieldsOfExperts(SMALL), FieldsOfExperts(SMALL), hidden="magnitude")


def test_a_warm_start_that_does_not_fit():
    deep = FieldsOfExperts(replace(SMALL, layers=3))
    for other in (replace(SMALL, layers=2), replace(SMALL, nodes_x=17), replace(SMALL, kernel_size=5)):
        with pytest.raises(
            ValueError, match="needs a prior of one layer with the same configuration otherwise"
        ):
            starts.warm_start(deep, FieldsOfExperts(other))
