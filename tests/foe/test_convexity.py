"""Convexity: the projection against brute force, certificates against Hessians, Lanczos, attacks and broken weights."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from gnclib.foe import FieldsOfExperts, FoEConfig, convexity
from gnclib.foe.layers import down
from gnclib.foe.spectra import extreme_eigenvalues
from gnclib.spline import SplineGrid, contract, evaluate
from tests.draws import generator

f64 = {"dtype": torch.float64}
CONFIG = FoEConfig(
    features=6, nodes_x=21, nodes_tau=12, sigma_max=2.0, scales=2, coarse_features=4, coarse_nodes=17, convex_from=0.6
)  # fmt: skip


def bent_energy(seed=0, size=0.1, layers=1):
    """An energy with random potentials, made convex where it should be."""
    energy = FieldsOfExperts(replace(CONFIG, layers=layers), generator=generator(seed)).requires_grad_(False)
    for w in [*energy.weights, *energy.coarse.weights]:
        w += size * torch.randn(w.shape, generator=generator(seed))
    energy.make_convex()
    return energy


@pytest.fixture(scope="module")
def energy():
    return bent_energy()


def test_the_first_convex_node():
    """Potentials at sigma >= convex_from depend on no node before; a little above the lower end of its knot they do."""
    grid, first = CONFIG.grid_tau, convexity.convex_nodes(CONFIG)
    w = torch.zeros(grid.count, **f64)
    w[:first] = 1
    tau = torch.linspace(math.log(0.6), grid.high, 50, **f64)
    assert contract(w, tau, grid).abs().max() == 0
    w[first - 1], w[first] = 0, 1
    assert contract(w, tau, grid).max() > 0


def test_the_first_convex_node_at_its_border():
    """With one node per unit of tau from -5.5 on, the potentials of sigma = 1/e depend on the node at -3.5 no more, but
    for rounding: it counts."""
    config = FoEConfig(nodes_tau=8, sigma_min=math.exp(-4), sigma_max=1.0, convex_from=math.exp(-1))
    assert config.grid_tau.nodes()[:3].tolist() == pytest.approx([-5.5, -4.5, -3.5])
    assert convexity.convex_nodes(config) == 2
    energy = FieldsOfExperts(config).requires_grad_(False)
    energy.weights[0] += 0.1 * torch.randn(energy.weights[0].shape, generator=generator())
    energy.make_convex()
    assert energy.certify(math.exp(-2)).convex
    assert convexity.convex_nodes(FoEConfig(nodes_tau=8)) == 8  # no constraint


def test_projection_of_nothing_and_of_large_potentials():
    grid, w = SplineGrid(9, -2.0, 2.0), 1000 * torch.randn(2, 9, 6, generator=generator())
    kept = w.clone()
    convexity.project(kept, 6, grid)
    assert torch.equal(kept, w)
    convexity.project(w, 0, grid)
    assert (w.diff(n=2, dim=1).double() > 0).all()  # rounding to float32 made none negative


@pytest.mark.parametrize("deviation", [None, torch.tensor([0.5, 2.0])])
def test_projection_is_the_closest_convex_sequence(deviation):
    """Against a general solver, in the weighted differences from node to node."""
    grid, v = SplineGrid(9, -2.0, 2.0), torch.randn(2, 9, 1, generator=generator(), **f64)
    w = v.clone()
    convexity.project(w, 0, grid, deviation)
    x = grid.nodes().numpy()
    for c, (row, found) in enumerate(zip(v[..., 0].numpy(), w[..., 0].numpy(), strict=True)):
        omega = (1 + ((x[1:] + x[:-1]) / 2) ** 2) ** -2.0
        if deviation is not None:
            omega = np.exp(-0.5 * ((x[1:] + x[:-1]) / 2 / deviation[c].item()) ** 2) + 1e-6
        slopes = np.diff(row)
        best = minimize(
            lambda s, slopes=slopes, omega=omega: float((omega * (s - slopes) ** 2).sum()),
            np.zeros(8),
            constraints={"type": "ineq", "fun": np.diff},
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        np.testing.assert_allclose(np.diff(found), best.x, atol=1e-4)
        assert found[4] == pytest.approx(row[4])


def test_projection_keeps_what_is_convex_and_lets_the_bend_only_fall():
    grid = SplineGrid(21, -6.0, 6.0)
    w = grid.quadratic(0.1, 0.2, 0.5).float()[None, :, None].repeat(3, 1, 8)
    kept = w.clone()
    convexity.project(kept, 0, grid)
    torch.testing.assert_close(kept, w)
    w += torch.randn(w.shape, generator=generator())
    convexity.project(w, 5, grid)
    bend = w.double().diff(n=2, dim=1).amin((0, 1))
    assert (bend[5:] > 0).all()
    assert bend[0] < -0.1
    assert (bend[:4].diff() > -1e-5).all()  # up to rounding to float32


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 0.6, 1.5])
def test_bounds_hold_for_the_full_hessian(sigma, layers):
    """On random, constant and checkered images, the border included, of several sizes."""
    found, exact = bent_energy(layers=layers).certify(sigma**2), bent_energy(layers=layers).double()
    assert found.convex == (sigma >= 0.6)
    assert found.modulus <= found.inner_modulus <= 0 <= found.inner_curvature <= found.curvature
    for height, width in [(9, 8), (14, 9)] if layers == 1 else [(10, 10), (12, 11)]:
        n = height * width
        checkers = ((torch.arange(height)[:, None] + torch.arange(width)) % 2).double()
        noise = torch.randn(height, width, generator=generator(1), **f64)
        for y in (sigma * noise, 3 * noise, checkers, 20 * checkers, torch.zeros(height, width, **f64)):
            y = y.expand(n, 1, height, width)
            hessian = exact.hvp(y, sigma**2, torch.eye(n, **f64).view(n, 1, height, width)).view(n, n)
            values = torch.linalg.eigvalsh(sigma**2 * (hessian + hessian.T) / 2)
            assert found.modulus - 1e-9 <= values[0]
            assert values[-1] <= found.curvature
            if found.convex:
                assert values[0] > -1e-9


def largest_gain(kernels, curvatures):
    """max over frequencies of sum_c k_c |K_c|^2, on a fine grid."""
    power = np.abs(np.fft.fft2(kernels[:, 0].double().numpy(), (512, 512))) ** 2
    return np.tensordot(curvatures, power, 1).max()


@pytest.mark.parametrize("sigma", [0.02, 0.3])
def test_bounds_are_the_ones_of_the_formula(energy, sigma):
    """Written out with potentials on a dense grid and spectra on a fine one, which the bound exceeds by 3 % at most."""
    t, tau = sigma**2, torch.tensor([math.log(sigma)], **f64)
    parts = [(t / (t + 0.1**2), 4, 1, energy.kernels[0], energy.weights[0], CONFIG.grid_x)]
    for l in (1, 2):
        gain, rows = t / (t / 4**l + 0.3**2), 9 * convexity.low_pass_norm(l, 3)
        coarse = energy.coarse.kernels[l - 1], energy.coarse.weights[l - 1]
        parts.append((gain, rows, 4.0**-l, *coarse, CONFIG.coarse_grid))
    expected = np.zeros((2, 2))
    for gain, everywhere, inside, kernels, weights, grid in parts:
        x = torch.linspace(grid.low, grid.high, 20_001, **f64).expand(len(weights), -1).contiguous()
        (bend,) = evaluate(x, contract(weights.double(), tau, CONFIG.grid_tau)[0], grid, (2,))
        for row, k in enumerate((bend.amax(1).clamp(min=0), -bend.amin(1).clamp(max=0))):
            expected[row] += gain * largest_gain(kernels, k.numpy()) * np.array([everywhere, inside])
    found = energy.certify(t)
    assert not found.convex
    bounds = np.array([[found.curvature, found.inner_curvature], [-found.modulus, -found.inner_modulus]])
    assert (expected <= bounds * (1 + 1e-6)).all()
    assert (bounds <= 1.03 * expected).all()


@pytest.mark.parametrize(("l", "margin"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_the_norm_of_the_low_passes_by_columns(l, margin):
    """The largest sum of a column of D^l in one direction, squared; lengths three periods further add nothing."""
    sums = []
    for n in range(margin * 2**l + 1, margin * 2**l + 1 + 6 * 2**l):
        y = torch.eye(n, **f64)[:, None, :, None].expand(n, 1, n, 3 * 2**l)  # constant in the other direction
        for _ in range(l):
            y = down(y)
        sums.append(y[..., 0].sum(-1).max().item())
    assert convexity.low_pass_norm(l, margin) == pytest.approx(max(sums) ** 2, rel=1e-9)


def attack(energy, sigma, steps=40):
    """The smallest eigenvalue of t Hess that gradient descent on image and direction finds."""
    y = (0.5 + sigma * torch.randn(1, 1, 14, 14, generator=generator(2), **f64)).requires_grad_()
    v = torch.randn(1, 1, 14, 14, generator=generator(3), **f64).requires_grad_()
    optimizer, worst = torch.optim.Adam([y, v], lr=0.1 * sigma), math.inf
    for _ in range(steps):
        u = (v - v.mean()) / torch.linalg.vector_norm(v - v.mean())
        value = sigma**2 * (u * energy.hvp(y, sigma**2, u)).sum()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        worst = min(worst, value.item())
    product = lambda v: sigma**2 * energy.hvp(y.detach(), sigma**2, v)  # noqa: E731
    return min(worst, extreme_eigenvalues(product, (1, 1, 14, 14), torch.float64)[0])


@pytest.mark.parametrize("layers", [1, 2])
def test_lanczos_at_attacked_images_breaks_no_certificate(layers):
    """It finds negative curvature where there is no proof, and none below the certified bound."""
    energy, exact = bent_energy(layers=layers), bent_energy(layers=layers).double()
    free, convex = energy.certify(0.05**2), energy.certify(0.8**2)
    assert not free.convex
    assert free.modulus < attack(exact, 0.05) < -1e-3
    assert convex.convex
    assert convex.modulus == 0
    assert attack(exact, 0.8) > -1e-9


def test_one_coefficient_that_is_not_convex_is_refused():
    """By the smallest step of float32 below a straight line, in the fine and in a coarse scale."""
    for scale in ("fine", "coarse"):
        energy = bent_energy()
        w = energy.weights[0] if scale == "fine" else energy.coarse.weights[1]
        w[2] = 0.125 * torch.arange(float(w.shape[1]))[:, None]  # straight, without rounding
        assert energy.certify(1.0).convex
        w[2, 5, -2] = torch.nextafter(w[2, 5, -2], torch.tensor(9.0))
        assert not energy.certify(1.0).convex
        assert energy.certify(1.0).modulus < 0


def test_a_hidden_activation_that_is_not_straight_is_refused():
    """By the smallest step of float32 at one node that counts; at one that does not, nothing changes."""
    energy = bent_energy(layers=2)
    first = convexity.convex_nodes(energy.config)
    for node, convex in [(first - 1, True), (first, False)]:
        energy.weights[0][2, 5, node] = energy.weights[0][2, 5, node].nextafter(torch.tensor(9.0))
        assert energy.certify(0.6**2).convex == convex
    assert energy.certify(0.6**2).curvature == math.inf


def test_kernels_of_several_layers_are_the_response_to_an_impulse():
    energy = FieldsOfExperts(
        FoEConfig(features=5, kernel_size=5, layers=3, dilation=2), generator=generator()
    )
    energy.requires_grad_(False)
    for k, w in enumerate(energy.weights[:-1]):
        w *= torch.linspace(0.5 - k, 1.5, w.shape[-1])  # slopes that depend on tau
        convexity.straighten(w, 0, energy.config.grid_x)
    tau = torch.tensor([-1.2])
    (kernels, error), size = convexity._composed(energy, -1.2), 21
    assert kernels.shape[-1] == 5 + 4 + 4
    z = torch.zeros(1, 1, 2 * size + 1, 2 * size + 1)
    at_rest = energy._layers(tau).taken_apart(z)[0][-1]
    z[..., size, size] = 1
    response = (energy._layers(tau).taken_apart(z)[0][-1] - at_rest)[0].flip(-1, -2)
    middle = (response.shape[-1] - kernels.shape[-1]) // 2
    cut = response[:, middle:-middle, middle:-middle]
    torch.testing.assert_close(cut, kernels[:, 0].float(), rtol=1e-4, atol=1e-5)
    assert response.square().sum() == pytest.approx(cut.square().sum().item(), rel=1e-5)  # nothing outside
    assert (error >= 1e-12 * kernels.abs().sum((2, 3))[..., None]).all()


def test_bounds_of_several_layers_are_those_of_their_kernels():
    """A last potential that is not convex: the formula with composed kernels, and the Hessian within the bounds."""
    energy, sigma = bent_energy(layers=2), 0.8
    energy.weights[1][3] += 0.05 * torch.randn(energy.weights[1][3].shape, generator=generator(4))
    found, t, tau = energy.certify(sigma**2), sigma**2, math.log(sigma)
    assert not found.convex
    kernels, error = convexity._composed(energy, tau)
    assert 0 < error.max() < 1e-9
    grid = CONFIG.grid_x
    x = torch.linspace(grid.low, grid.high, 20_001, **f64).expand(6, -1).contiguous()
    a = contract(energy.weights[1].double(), torch.tensor([tau], **f64), CONFIG.grid_tau)[0]
    (bend,) = evaluate(x, a, grid, (2,))
    concave = t / (t + 0.1**2) * largest_gain(kernels, -bend.amin(1).clamp(max=0).numpy())
    slack = 1.001 / math.cos(math.pi * 8 / 128) ** 2  # between 128 points, of kernels of side 9
    assert concave <= -found.inner_modulus <= slack * concave
    assert 4 * concave <= -found.modulus <= 4 * slack * concave
    exact = energy.double()
    y = 3 * torch.randn(1, 1, 12, 11, generator=generator(1), **f64).expand(132, -1, -1, -1)
    hessian = exact.hvp(y, t, torch.eye(132, **f64).view(132, 1, 12, 11)).view(132, 132)
    values = torch.linalg.eigvalsh(t * (hessian + hessian.T) / 2)
    assert found.modulus < values[0] < -1e-3
    assert values[-1] < found.curvature < math.inf


def test_straight_activations():
    """Arithmetic sequences to the last bit from a node on, nothing before it; lines stay as they are."""
    grid, w = SplineGrid(95, -6.0, 6.0), torch.randn(4, 95, 7, generator=generator())
    before, line = w.clone(), 0.3 - 0.7 * grid.nodes()
    w[1, :, 5] = line
    convexity.straighten(w, 3, grid)
    assert torch.equal(w[..., :3], before[..., :3])
    assert (w[..., 3:].double().diff(n=2, dim=1) == 0).all()
    torch.testing.assert_close(w[1, :, 5], line.float(), rtol=0, atol=2e-4)
    visits = (1 + grid.nodes() ** 2) ** -2
    means = (visits[:, None] * before[0, :, 3:].double()).sum(0) / visits.sum()
    torch.testing.assert_close(
        (visits[:, None] * w[0, :, 3:].double()).sum(0) / visits.sum(), means, atol=1e-4, rtol=0
    )
    kept = w.clone()
    convexity.straighten(w, 7, grid)
    convexity.straighten(w.zero_(), 0, grid)
    assert kept.any()
    assert not w.any()


def test_curvature_of_single_potentials():
    """Against the largest and smallest second derivative on a dense grid."""
    grid, grid_tau = SplineGrid(13, -3.0, 3.0), SplineGrid(7, -4.0, 0.0)
    w = torch.randn(5, 13, 7, generator=generator(), **f64)
    tau = -1.3
    lower, upper = convexity._curvatures(w, tau, grid_tau, grid)
    a = contract(w, torch.tensor([tau], **f64), grid_tau)[0]
    x = torch.linspace(-3, 3, 20001, **f64).expand(5, -1).contiguous()
    (bend,) = evaluate(x, a, grid, (2,))
    np.testing.assert_allclose(lower, bend.amin(1).clamp(max=0), atol=1e-4)
    np.testing.assert_allclose(upper, bend.amax(1).clamp(min=0), atol=1e-4)
    assert (lower <= bend.amin(1).numpy()).all()
    assert (upper >= bend.amax(1).numpy()).all()


def test_spectrum_and_low_pass_norm_are_bounds():
    kernels = torch.randn(3, 1, 7, 7, generator=generator())
    gains = np.array([0.3, 1.0, 2.0])
    dense = np.abs(np.fft.fft2(kernels[:, 0].double().numpy(), (1024, 1024))) ** 2
    largest = np.tensordot(gains, dense, 1).max()
    assert largest <= convexity._spectrum(kernels, torch.zeros(1), gains) < 1.1 * largest
    wide = torch.ones(1, 1, 127, 1) * torch.cos(
        math.pi * torch.arange(127) / 128
    )  # peaked between two of 128
    dense = np.abs(np.fft.fft2(wide[:, 0].double().numpy(), (2048, 2048))).max()
    assert dense**2 <= convexity._spectrum(wide, torch.zeros(1), np.ones(1)) < 1.2 * dense**2
    assert convexity._spectrum(wide, torch.full((1, 1, 1), 30.0), np.ones(1)) > (dense + 30) ** 2
    for height, width in [(13, 22), (17, 30), (61, 14)]:
        y = torch.eye(height * width, **f64).view(-1, 1, height, width)
        matrix = down(down(y)).flatten(1)
        norm = torch.linalg.matrix_norm(matrix, 2).item() ** 2
        assert 0.5 / 16 < norm <= convexity.low_pass_norm(2, 3)


def test_what_cannot_be_certified_is_said(energy):
    for t in (9.0, 0.9 * energy.sigma_min**2):
        with pytest.raises(ValueError, match="range"):
            energy.certify(t)
    assert not FieldsOfExperts.from_pretrained("R1").certify(0.25).convex
    proof = FieldsOfExperts.from_pretrained("R3").certify(0.25)
    assert not proof.convex
    assert (proof.curvature, proof.modulus) == (math.inf, -math.inf)


# --- repairs at one noise level -----------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("name", ["R1", "P1"])
def test_a_repaired_energy_is_certified(name, sigma):
    prior = FieldsOfExperts.from_pretrained(name)
    free = prior.certify(sigma**2)
    assert not free.convex
    assert convexity.repaired(prior, sigma**2).certify(sigma**2).convex
    for most in (0.9 * free.inner_curvature, 1.5):
        found = convexity.repaired(prior, sigma**2, most).certify(sigma**2)
        assert found.inner_curvature <= min(most * (1 + 1e-4), free.inner_curvature)
    assert found.inner_curvature > 0.75  # not flattened: some potentials are as steep as they may be


def test_a_bound_that_holds_anyway_changes_nothing():
    prior, y = FieldsOfExperts.from_pretrained("R1"), torch.rand(1, 1, 30, 30)
    t = 0.3**2
    same = convexity.repaired(prior, t, 1e3)
    torch.testing.assert_close(same.grad(y, t), prior.grad(y, t), rtol=1e-4, atol=1e-3)
    for refused in ("R3", "M1"):
        with pytest.raises(ValueError, match="one layer and one scale"):
            convexity.repaired(FieldsOfExperts.from_pretrained(refused), t)
    for most in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite number > 0"):
            convexity.repaired(prior, t, most)
