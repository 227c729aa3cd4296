"""A network energy in the training loop of all energies: its loss, its options, resuming to the bit."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from gnclib.deep import NetworkConfig, NetworkEnergy
from gnclib.images import data
from gnclib.io import save_checkpoint
from gnclib.score import RECIPES, TrainState, load_checkpoint
from gnclib.score import training as train
from tests.leaves import dead_leaves

SMALL = NetworkConfig(channels=(3, 4), embedding=6, nodes_tau=7)
SHORT = replace(RECIPES["G1"], steps=6, batch=4, patch=14, wide=0.5, bf16=False)


@pytest.fixture(scope="module")
def images():
    return {f"leaves{k}": dead_leaves(40, 40, torch.Generator().manual_seed(k)) for k in range(2)}


def fresh(config=SHORT) -> TrainState:
    model = NetworkEnergy(SMALL, generator=torch.Generator().manual_seed(5))
    return TrainState(model, config)


@pytest.mark.parametrize(("fraction", "emphasis"), [(0.5, 0.0), (1.0, 0.5)])
def test_the_loss_is_that_of_the_formula(fraction, emphasis):
    """Both parts from the energy alone, by automatic differentiation and at the same draws."""
    model = NetworkEnergy(SMALL).double()
    with torch.no_grad():
        model.offset += torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.rand(4, 1, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    levels, config = train.Levels(0.1, 0.5), replace(SHORT, fraction=fraction, emphasis=emphasis)
    generator = torch.Generator().manual_seed(3)
    image, smoothing = train.loss_parts(model, x, config, generator, levels=levels)
    generator = torch.Generator().manual_seed(3)
    tau, z = train.sample_noise(levels, 4, x.shape, generator)
    assert 0.1 <= tau.exp().min()
    assert tau.exp().max() <= 0.5
    chosen = torch.randperm(4, generator=generator)[:2] if fraction < 1 else torch.arange(4)
    tau, z = tau.double().requires_grad_(True), z.double()
    y = (x + tau.detach().exp()[:, None, None, None] * z).requires_grad_(True)
    slope, first = torch.autograd.grad(model.energy(y, (2 * tau).exp()).sum(), (y, tau))
    of_image = 0.5 * (tau.exp()[:, None, None, None] * slope - z).square().sum((1, 2, 3)) / 81
    of_image = of_image * (tau.exp() / 0.1) ** emphasis
    of_tau = 0.5 * (first + z.square().sum((1, 2, 3)) - 81).square() / 81
    torch.testing.assert_close(image, of_image.mean())
    torch.testing.assert_close(smoothing, of_tau[chosen].mean())


def test_wide_patches_have_their_own_noise_levels(images, monkeypatch):
    """About half of the batches are a quarter as many patches, twice as wide, with noise of another range."""
    seen, loss_parts = [], train.loss_parts

    def watch(model, x, config, generator, group, levels):
        seen.append((tuple(x.shape), levels))
        return loss_parts(model, x, config, generator, group, levels)

    monkeypatch.setattr(train, "loss_parts", watch)
    for _ in train.training(fresh(replace(SHORT, steps=20, wide_from=0.3)), images):
        pass
    assert set(seen) == {((4, 1, 14, 14), (0.01, 1.0)), ((1, 1, 28, 28), (0.3, 8.0))}
    assert 4 <= sum(shape[0] == 1 for shape, _ in seen) <= 16


def test_the_gradient_is_shortened_but_for_the_constant(images):
    """With a tiny bound, plain steps of the network are tiny and those of c(tau) are not."""
    state = fresh(replace(SHORT, clip=1e-6, steps=1, optimiser="adam"))
    state.optimizer = torch.optim.SGD(state.optimizer.param_groups)
    network, offset = (torch.cat([p.detach().flatten() for p in part]) for part in _parts(state))
    list(train.training(state, images))
    moved = [torch.cat([p.detach().flatten() for p in part]) for part in _parts(state)]
    assert (moved[0] - network).norm() <= 1.001e-6 * SHORT.lr
    assert (moved[1] - offset).norm() > 1e-6


def _parts(state: TrainState):
    return state.model.parameter_groups().values()


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_a_resumed_run_ends_the_same_to_the_bit(images, tmp_path, optimiser):
    config = replace(SHORT, optimiser=optimiser)
    whole, half = fresh(config), fresh(config)
    list(train.training(whole, images))
    list(islice(train.training(half, images), 3))
    save_checkpoint(half, tmp_path)
    again = load_checkpoint(tmp_path)
    assert isinstance(again.model, NetworkEnergy)
    list(train.training(again, images))
    for a, b in ((whole.model, again.model), (whole.prior, again.prior)):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("low", [False, True])
def test_training_gets_better(images, low):
    """The image part of the loss at given draws falls, in float32 and with convolutions in bfloat16."""
    x = data.PatchSampler(images, 32, torch.Generator().manual_seed(9)).sample(16)
    state = fresh(replace(SHORT, steps=60, lr=1e-2, wide=0.0, bf16=low))
    image = lambda: train.loss_parts(state.model, x, SHORT, torch.Generator().manual_seed(1))[0].item()  # noqa: E731
    before = image()
    list(train.training(state, images))
    assert state.model.bf16 == low
    assert image() < 0.97 * before


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="a quarter of the batch"):
        replace(SHORT, batch=3)
