"""The start of coarser scales by least squares, and of c(tau): against the energy, and against the normal equations."""

import math

import pytest
import torch

from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.score import coarse_start
from tests.draws import generator
from tests.leaves import dead_leaves


@pytest.mark.parametrize("layers", [1, 3])
def test_scores_of_single_experts_sum_to_the_gradient(layers):
    """The columns of the least squares: gains 1 for the fine scale and for quadratics give the energy's gradient."""
    config = FoEConfig(layers=layers, scales=2, coarse_features=5, range=30.0)
    energy = FieldsOfExperts(config, generator=generator()).requires_grad_(False)
    quadratic = energy.config.coarse_grid.quadratic(c=0.5).float()
    for w in energy.coarse.weights:
        w.copy_(quadratic[None, :, None].expand_as(w))
    y, tau = torch.rand(1, 1, 40, 36, generator=generator(1)), torch.tensor([math.log(0.3)])
    columns = coarse_start._scores(energy, y, tau)
    gains = torch.zeros(len(columns))
    gains[:48] = 1
    for l in range(2):
        gains[96 + 15 * l : 101 + 15 * l] = 1
    total = torch.einsum("k,khw->hw", gains, columns) / 0.3
    torch.testing.assert_close(total, energy.grad(y, 0.09)[0, 0], rtol=1e-3, atol=1e-4)


def test_least_squares_start_denoises_better():
    """On dead leaves at strong noise, against the quadratic start; its potentials are convex."""
    energy = FieldsOfExperts(FoEConfig(features=8, scales=2, coarse_features=5, nodes_tau=6, sigma_max=0.5))
    leaves = [dead_leaves(96, 96, generator(k)) for k in range(3)]
    y = leaves[0] + 0.4 * torch.randn(1, 1, 96, 96, generator=generator(7))
    errors = []
    for _ in range(2):
        with torch.no_grad():
            errors.append(float((y - 0.16 * energy.grad(y, 0.16) - leaves[0]).square().mean()))
        coarse_start.fit_coarse(energy, leaves, generator(), crops=3, side=64)
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
    found = torch.from_numpy(coarse_start._gains(energy, x, tau, generator(2), ridge))
    noise = torch.randn(x.shape, generator=generator(2))
    columns = coarse_start._scores(energy, x + 0.3 * noise, torch.tensor([tau])).flatten(1).double()
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
    coarse_start.fit_constant(energy, leaves, generator(3))
    assert max(abs(mean(s)) for s in levels) < 0.2 * before
