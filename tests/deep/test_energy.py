"""The network energy: its contract against automatic differentiation, convexity by the gate, borders, files."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

import gnclib
from gnclib.deep import NetworkConfig, NetworkEnergy
from gnclib.deep.energy import FREQUENCIES, GatedUNet, _continued
from gnclib.restore.tiles import Tiled

SMALL = NetworkConfig(channels=(3, 4, 5), embedding=6, nodes_tau=7)


@pytest.fixture(scope="module")
def prior() -> NetworkEnergy:
    """A small energy whose weights are all random, so that nothing vanishes by its initialisation."""
    torch.manual_seed(0)
    made = NetworkEnergy(SMALL).double()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made.requires_grad_(False)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def differences(f, x: torch.Tensor, v: torch.Tensor, h: float = 1e-5) -> torch.Tensor:
    """Central differences of fourth order of f along v."""
    return (8 * (f(x + h * v) - f(x - h * v)) - (f(x + 2 * h * v) - f(x - 2 * h * v))) / (12 * h)


@pytest.mark.parametrize("sigma", [0.05, 2.0, 6.0])
@pytest.mark.parametrize("shape", [(7, 1, 8, 8), (1, 1, 9, 13)])
def test_contract(prior, sigma, shape):
    """Gradient, tau-derivatives and Hessian are those of the energy, by finite differences."""
    y, v, t = images(*shape), images(*shape, seed=1) - 0.5, sigma**2
    value, grad = prior.energy_and_grad(y, t)
    torch.testing.assert_close(value, prior.energy(y, t))
    torch.testing.assert_close(grad, prior.grad(y, t))
    along = differences(lambda z: prior.energy(z, t), y, v)
    torch.testing.assert_close((grad * v).sum((1, 2, 3)), along, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(
        prior.hvp(y, t, v), differences(lambda z: prior.grad(z, t), y, v), rtol=1e-6, atol=1e-8
    )
    one = torch.ones(shape[0], dtype=torch.float64)
    tau = math.log(sigma) * one
    first, second = prior.dtau(y, t)
    energy = lambda s: prior.energy(y, (2 * s).exp())  # noqa: E731
    torch.testing.assert_close(first, differences(energy, tau, one), rtol=1e-7, atol=1e-7)
    derivative = lambda s: prior.dtau(y, (2 * s).exp(), order=1)[0]  # noqa: E731
    torch.testing.assert_close(second, differences(derivative, tau, one), rtol=1e-6, atol=1e-6)
    both = prior.grads(y, t)
    torch.testing.assert_close(both[0], grad)
    torch.testing.assert_close(both[1], first)


def test_gradients_pass_through_when_asked_for(prior):
    """d/dy of <grad, v> is the Hessian times v; without a request nothing is recorded."""
    y, v = images(2, 1, 8, 8).requires_grad_(True), images(2, 1, 8, 8, seed=1)
    (found,) = torch.autograd.grad((prior.grad(y, 0.01) * v).sum(), y)
    torch.testing.assert_close(found, prior.hvp(y.detach(), 0.01, v))
    assert not prior.grad(y.detach(), 0.01).requires_grad
    with torch.no_grad():
        assert not prior.grad(y, 0.01).requires_grad


def test_the_gate(prior):
    sigma = torch.tensor([0.01, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    gate = prior.gate(sigma.log())
    assert gate[:2].tolist() == [1, 1]
    assert gate[3:].tolist() == [0, 0]
    assert gate[2].item() == pytest.approx(0.5)  # half-way between log 1 and log 4
    assert (prior.gate(torch.linspace(-1, 2, 100)).diff() <= 0).all()
    assert not prior.certify(math.nextafter(16.0, 0)).convex  # where the gate is 0 but for rounding
    proofs = [prior.certify(s**2) for s in (1.0, 3.99, 4.0, 8.0)]
    assert [p.convex for p in proofs] == [False, False, True, True]
    assert [p.modulus for p in proofs] == [
        -math.inf,
        -math.inf,
        0,
        0,
    ]  # that there is no bound is said as well
    assert {p.curvature for p in proofs} == {math.inf}
    with pytest.raises(ValueError, match="leaves the range"):
        prior.certify(100.0)


def test_convex_where_the_gate_is_shut(prior):
    """There N is affine: N(a) + N(b) = N(a + b) + N(0), and the whole Hessian, made by columns, has no negative
    eigenvalue; with the gate open the same weights have one."""
    a, b = images(1, 1, 6, 6), 100 * images(1, 1, 6, 6, seed=1)
    tau = torch.tensor([math.log(5.0)], dtype=torch.float64)
    network = lambda u: prior.network(u, tau, prior.gate(tau)[:, None, None, None])  # noqa: E731
    torch.testing.assert_close(network(a) + network(b), network(a + b) + network(torch.zeros_like(a)))

    def lowest(y: torch.Tensor, sigma: float) -> float:
        basis = torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)
        hessian = prior.hvp(y.expand(36, -1, -1, -1), sigma**2, basis).reshape(36, 36).numpy()
        assert np.allclose(hessian, hessian.T)
        return np.linalg.eigvalsh(hessian)[0]

    assert min(lowest(scale * a - scale / 2, 4.0) for scale in (1, 30, 1000)) > -1e-9
    assert min(lowest(scale * a - scale / 2, 0.9) for scale in (1, 3, 10, 30)) < -1e-3


def test_no_border_is_special():
    """Far inside of an image, the gradient is that of a larger image; nearer than two margins it need not be."""
    config = NetworkConfig(channels=(2, 2), embedding=4)
    torch.manual_seed(1)
    prior = NetworkEnergy(config).double().requires_grad_(False)
    reach = 2 * config.margin
    y = images(1, 1, 2 * reach + 6, 2 * reach + 6)
    inner = prior.grad(y, 0.01)[..., reach:-reach, reach:-reach]
    assert inner.shape[-1] == 6
    changed = y.clone()
    changed[..., 0, :] += 1
    assert torch.equal(prior.grad(changed, 0.01)[..., reach:-reach, reach:-reach], inner)
    assert not torch.equal(prior.grad(changed, 0.01)[..., 2:3, :], prior.grad(y, 0.01)[..., 2:3, :])


def test_in_tiles():
    """Tiles that begin where pixels of the coarsest scale do give the gradient, energy and derivatives of the whole."""
    torch.manual_seed(1)
    prior = NetworkEnergy(NetworkConfig(channels=(2, 3, 2), embedding=4)).double().requires_grad_(False)
    assert (prior.margin, prior.alignment) == (28, 4)
    y, v, tiled = images(1, 1, 131, 74), images(1, 1, 131, 74, seed=1), Tiled(prior, 64)
    torch.testing.assert_close(tiled.grad(y, 0.01), prior.grad(y, 0.01))
    torch.testing.assert_close(tiled.hvp(y, 0.01, v), prior.hvp(y, 0.01, v))
    torch.testing.assert_close(tiled.energy(y, 0.01), prior.energy(y, 0.01))
    torch.testing.assert_close(tiled.dtau(y, 0.01), prior.dtau(y, 0.01))


def test_what_is_seen_ends_at_the_margin():
    """A term depends on what lies one margin away at most, and on something at least two coarse pixels nearer."""
    torch.manual_seed(1)
    prior = NetworkEnergy(NetworkConfig(channels=(2, 2, 2), embedding=4)).double().requires_grad_(False)
    y, tau = images(1, 1, 96, 96).requires_grad_(True), torch.zeros(1, dtype=torch.float64)
    for at in range(46, 50):
        (slope,) = torch.autograd.grad(prior.network(y, tau)[0, 0, at, at], y)
        seen = slope[0, 0].abs().amax(0).nonzero().flatten()
        reach = max(at - int(seen[0]), int(seen[-1]) - at)
        assert prior.margin - 3 * prior.alignment < reach <= prior.margin


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (17, 9)])
def test_images_of_every_size(prior, size):
    assert prior.grad(images(2, 1, *size), 0.01).shape == (2, 1, *size)


@pytest.mark.parametrize("channels", [(2,), (2, 2, 2, 2, 2)])
@pytest.mark.parametrize("size", [(1, 1), (17, 9)])
def test_networks_of_one_and_of_five_scales(channels, size):
    torch.manual_seed(0)
    prior = NetworkEnergy(NetworkConfig(channels=channels, embedding=4)).double().requires_grad_(False)
    y, v = images(1, 1, *size), images(1, 1, *size, seed=1)
    along = differences(lambda z: prior.energy(z, 0.01), y, v)
    torch.testing.assert_close((prior.grad(y, 0.01) * v).sum((1, 2, 3)), along, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (17, 9), (8, 12)])
def test_beyond_the_border_is_the_mirror_image(size):
    """The continuation is numpy's "symmetric", up to sides that the scales divide and by a margin."""
    u = images(2, 1, *size)
    expected = np.pad(u.numpy(), ((0, 0), (0, 0), *((3, 3 + -n % 4) for n in size)), mode="symmetric")
    assert np.array_equal(_continued(u, 3, 4).numpy(), expected)


def test_what_the_network_sees_beyond_the_border(prior):
    """N written out: the image mirrored, the features of coarser scales repeated, zeros on the finest way back."""
    network, u, tau = prior.network, images(2, 1, 9, 14), torch.tensor([-1.0, 0.3], dtype=torch.float64)
    phase = FREQUENCIES.to(tau) * tau[:, None]
    embedding = network.embed(torch.cat([phase.sin(), phase.cos()], 1))

    def block(part, x, pad):
        alpha, beta = part.film(embedding)[:, :, None, None].chunk(2, 1)
        v = functional.conv2d(pad(x), part.a.weight) * (1 + alpha) + beta
        inner = x if pad is not nothing else x[..., 2:-2, 2:-2]
        return inner + functional.conv2d(pad(functional.silu(v)), part.b.weight)

    nothing, zeros = (lambda x: x), (lambda x: functional.pad(x, (1, 1, 1, 1)))
    nearest = lambda x: functional.pad(x, (1, 1, 1, 1), mode="replicate")  # noqa: E731
    far = np.pad(
        u.numpy(), ((0, 0), (0, 0), (3, 6), (3, 5)), mode="symmetric"
    )  # to 12 x 16, and 3 on each side
    fine = block(network.encode[0], functional.conv2d(torch.from_numpy(far), network.first.weight), nothing)
    half = block(network.encode[1], network.down[0](fine), nearest)
    quarter = block(network.encode[2], network.down[1](half), nearest)
    half = block(network.decode[1], half + network.up[1](quarter), nearest)
    fine = block(network.decode[0], fine + network.up[0](half), zeros)
    by_hand = functional.conv2d(zeros(fine), network.last.weight)[..., :9, :14]
    torch.testing.assert_close(network(u, tau), by_hand)


def test_half_the_precision_is_close():
    torch.manual_seed(0)
    prior = NetworkEnergy().requires_grad_(False)
    y = images(1, 1, 32, 32).float()
    exact = prior.grad(y, 0.01)
    prior.bf16 = True
    assert (prior.grad(y, 0.01) - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("config", [SMALL, NetworkConfig(), NetworkConfig(channels=(2,))])
def test_shapes_are_known_without_an_energy(config):
    assert {k: tuple(v.shape) for k, v in NetworkEnergy(config).state_dict().items()} == config.shapes


def test_first_weights_are_those_of_the_generator():
    first = [NetworkEnergy(SMALL, generator=torch.Generator().manual_seed(k)).network for k in (0, 0, 1)]
    a, b, c = (network.first.weight for network in first)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_parameters_fit_into_the_package():
    assert sum(p.numel() for p in NetworkEnergy().parameters()) <= 700_000


def test_bad_input(prior):
    y = images(1, 1, 8, 8)
    for t in (0.0, 65.0, 1e-6):
        with pytest.raises(ValueError, match="leaves the range"):
            prior.grad(y, t)
    with pytest.raises(ValueError, match="float32 but the energy is"):
        prior.energy(y.float(), 0.01)
    with pytest.raises(ValueError, match="shape and dtype of y"):
        prior.hvp(y, 0.01, y[..., :4])
    with pytest.raises(ValueError, match="order must be 1 or 2"):
        prior.dtau(y, 0.01, order=3)
    with pytest.raises(ValueError, match="sigma_min < sigma_open"):
        NetworkConfig(sigma_convex=0.5)
    with pytest.raises(ValueError, match="one to eight positive integers"):
        NetworkConfig(channels=())


def test_files(prior, tmp_path):
    """What is saved is loaded again by name; a damaged file, or one from before `border`, is refused by name."""
    prior = copy.deepcopy(prior).float()
    prior.save_pretrained(tmp_path)
    loaded, y = gnclib.load_prior(tmp_path), images(1, 1, 8, 8).float()
    assert isinstance(loaded, NetworkEnergy)
    assert loaded.config == SMALL
    assert torch.equal(loaded.energy(y, 0.01), prior.energy(y, 0.01))
    about = json.loads((tmp_path / "config.json").read_text())
    for change in (
        {"embedding": 7},
        {"channels": [3, 4]},
        {"channels": "345"},
        {"depth": 1},
        {"family": "other"},
        {"family": None},
    ):
        (tmp_path / "config.json").write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match=f"the (prior|weights) in {tmp_path}"):
            gnclib.load_prior(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(about | {"border": "zeros"}))
    with pytest.raises(ValueError, match="older version"):
        gnclib.load_prior(tmp_path)
    del about["border"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"names are missing or unknown: .*border"):
        gnclib.load_prior(tmp_path)


def test_a_field_of_experts_is_loaded_by_the_same_name():
    assert isinstance(gnclib.load_prior("R1"), gnclib.FieldsOfExperts)


def test_the_network_starts_small():
    """An untrained N is close to 0, so that training begins at the energy of the Gaussian."""
    torch.manual_seed(0)
    u = torch.randn(1, 1, 32, 32)
    assert GatedUNet(NetworkConfig().channels, 24)(u, torch.tensor([-2.0])).norm() < 0.3 * u.norm()
