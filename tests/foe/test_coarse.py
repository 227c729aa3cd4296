"""Experts on coarser scales: adjoints, derivatives against autograd, images of every size, tiles and files."""

import math

import pytest
import torch
import torch.nn.functional as F

from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.foe.filters import reflect
from gnclib.foe.layers import down, down_adjoint
from gnclib.restore.tiles import Tiled
from gnclib.spline import contract, evaluate
from tests.draws import generator

f64 = {"dtype": torch.float64}
SMALL = {"features": 4, "kernel_size": 3, "nodes_x": 15, "range": 3.0, "nodes_tau": 7, "scales": 2}
COARSE = {"coarse_features": 3, "coarse_nodes": 11}
T = torch.tensor([0.003, 0.4], **f64)


def random_energy(**changes):
    g = generator(3)
    energy = FieldsOfExperts(FoEConfig(**SMALL | COARSE | changes)).double()
    for p in energy.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=g, **f64)
    return energy.requires_grad_(False)


def images(height=13, width=10, batch=2):
    return torch.rand(batch, 1, height, width, generator=generator(1), **f64)


@pytest.mark.parametrize("size", [(3, 3), (4, 7), (8, 5), (16, 17)])
def test_adjoint_of_the_low_pass(size):
    x = images(*size)
    g = torch.randn(down(x).shape, generator=generator(2), **f64)
    assert g.shape[-2:] == tuple(math.ceil(n / 2) for n in size)
    torch.testing.assert_close((down(x) * g).sum(), (x * down_adjoint(g, *size)).sum())


def test_low_pass_keeps_constants_and_lines():
    ramp = torch.arange(20.0, **f64).expand(1, 1, 20, 20)
    torch.testing.assert_close(down(ramp)[..., 1:-1], ramp[..., ::2, 2:-2:2])
    torch.testing.assert_close(down(torch.ones_like(ramp)), torch.ones(1, 1, 10, 10, **f64))


@pytest.mark.parametrize(
    ("layers", "size"), [(1, (13, 10)), (1, (8, 9)), (1, (5, 5)), (1, (3, 4)), (1, (2, 2)), (2, (13, 10))]
)
def test_derivatives_against_autograd(layers, size):
    energy, y = random_energy(layers=layers), images(*size).requires_grad_()
    tau = (0.5 * T.log()).requires_grad_()
    value = energy.energy(y, (2 * tau).exp())
    g, first = torch.autograd.grad(value.sum(), (y, tau), create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), tau, retain_graph=True)
    y0 = y.detach()
    torch.testing.assert_close(energy.grad(y0, T), g.detach(), rtol=1e-10, atol=1e-12)
    both = energy.energy_and_grad(y0, T)
    torch.testing.assert_close(both, (value.detach(), g.detach()), rtol=1e-10, atol=1e-12)
    for found, exact in zip(energy.dtau(y0, T), (first, second), strict=True):
        torch.testing.assert_close(found, exact.detach(), rtol=1e-9, atol=1e-9)
    (only,) = energy.dtau(y0, T, order=1)
    torch.testing.assert_close(only, first.detach())
    v = torch.randn(y.shape, generator=generator(5), **f64)
    (product,) = torch.autograd.grad((g * v).sum(), y)
    torch.testing.assert_close(energy.hvp(y0, T, v), product, rtol=1e-9, atol=1e-9)


def test_energy_is_the_sum_of_its_scales():
    """Each scale is a fine energy of the image that was filtered with the 5 x 5 kernel written out."""
    energy, y = random_energy(), images(24, 20, 1)
    parts = [random_energy(scales=0).energy(y, 0.04)]
    taps = torch.tensor([1.0, 4, 6, 4, 1], **f64) / 16
    fine = FieldsOfExperts(FoEConfig(**SMALL | {"scales": 0, "features": 3, "nodes_x": 11})).double()
    u = y
    for l in range(2):
        u = F.conv2d(reflect(u, 2), torch.outer(taps, taps)[None, None])[..., ::2, ::2]
        fine.kernels[0].data, fine.weights[0].data = energy.coarse.kernels[l], energy.coarse.weights[l]
        s = (0.04 / 4 ** (l + 1) + 0.3**2) ** -0.5 * math.sqrt(0.04 + 0.1**2)
        constant = fine._constant(torch.tensor([math.log(0.2)], **f64))[0] * u.numel()
        parts.append(fine.energy(s * u, 0.04).detach() - constant)
    fresh = random_energy()
    same = FieldsOfExperts(FoEConfig(**SMALL | {"scales": 0})).double()
    same.load_state_dict({k: v for k, v in fresh.state_dict().items() if not k.startswith("coarse")})
    parts[0] = same.energy(y, 0.04).detach()
    torch.testing.assert_close(energy.energy(y, 0.04), sum(parts))


def test_the_compiled_form_is_the_definition():
    """float32, kernels of side 7: the value and the gradient of the compiled experts against the float64 definition."""
    energy = FieldsOfExperts(FoEConfig(scales=3, sigma_max=2.0)).requires_grad_(False)
    y = images(41, 38)
    exact = FieldsOfExperts(energy.config).requires_grad_(False).double()
    exact.load_state_dict(energy.state_dict())
    torch.testing.assert_close(energy.grad(y.float(), 0.3), exact.grad(y, 0.3).float(), rtol=1e-4, atol=1e-5)
    for differentiable in (True, False):
        with torch.set_grad_enabled(differentiable):
            found, expected = energy.energy(y.float(), 0.3), exact.energy(y, 0.3).float()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_every_parameter_has_a_learning_rate():
    fine = ["lr", "lr_constant"]
    for energy, groups in ((random_energy(), [*fine, "lr_coarse"]), (random_energy(scales=0), fine)):
        found = energy.parameter_groups()
        assert list(found) == groups
        assert sorted(id(p) for part in found.values() for p in part) == sorted(map(id, energy.parameters()))
        assert all(found.values())


def test_the_start_is_a_fifth_of_the_curvature_of_the_fine_scale():
    energy = FieldsOfExperts(FoEConfig(scales=2))
    config, tau, x = energy.config, torch.tensor([-1.0]), torch.zeros(1, 24, 1)
    fine = contract(energy.weights[0], tau, config.grid_tau)[:, :24]
    (bend,) = evaluate(x, fine, config.grid_x, (2,))
    for kernels, weights in zip(energy.coarse.kernels, energy.coarse.weights, strict=True):
        (coarse,) = evaluate(x, contract(weights, tau, config.grid_tau), config.coarse_grid, (2,))
        torch.testing.assert_close(coarse, 0.2 * bend, rtol=1e-3, atol=0)
        assert torch.equal(kernels, energy.kernels[0][:24])


def test_small_images_go_without_the_scales_that_do_not_fit():
    energy = random_energy()
    counts = [len(energy.coarse._pyramid(images(n, n))) for n in (2, 3, 4, 5, 20)]
    assert counts == [0, 1, 1, 2, 2]
    assert [len(energy.coarse._pyramid(images(*size))) for size in ((2, 9), (9, 2), (3, 40))] == [0, 0, 1]
    wide = (
        FieldsOfExperts(FoEConfig(scales=2, coarse_features=3)).double().coarse
    )  # side 7: images of 4 and more
    assert [len(wide._pyramid(images(*size))) for size in ((5, 5), (6, 40), (7, 40), (13, 40))] == [
        0,
        0,
        1,
        2,
    ]
    assert (energy.coarse.slope(images(2, 2), 0.5 * T.log()) == 0).all()


@pytest.mark.parametrize(
    ("deep", "size", "tile"),
    [
        ({}, (70, 64), 20),
        ({}, (90, 41), 30),
        ({}, (30, 30), 8),
        ({"layers": 2, "dilation": 13}, (99, 60), 20),
    ],
)
def test_tiles_give_the_gradient_and_the_energy_of_the_whole(deep, size, tile):
    energy, y = random_energy(**deep), images(*size)
    assert energy.margin == (16 if deep else 12)  # 1 + 13, or 2 (4 - 1) + 1 * 4, in whole pixels of scale 4
    tiles = Tiled(energy, tile)
    torch.testing.assert_close(tiles.grad(y, T), energy.grad(y, T), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tiles.energy(y, T), energy.energy(y, T), rtol=1e-10, atol=1e-8)


def test_there_is_no_valid_part():
    with pytest.raises(ValueError, match="no valid part"):
        random_energy().energy(images(), 0.1, border="valid")
