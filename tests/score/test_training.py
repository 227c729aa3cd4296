"""The training loop: loss against automatic differentiation, optimiser against its paper, resuming to the bit."""

import math
from dataclasses import asdict, replace
from functools import partial
from itertools import islice, pairwise

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import kstest

from gnclib.deep import NetworkConfig, NetworkEnergy
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.images import data
from gnclib.io import save_checkpoint
from gnclib.score import OBJECTIVES, TrainConfig, TrainState, denoising_psnr, load_checkpoint, small_prior
from gnclib.score import training as train
from tests.leaves import dead_leaves

PRIOR = FoEConfig(features=6, kernel_size=3, nodes_x=31, nodes_tau=7)
SHORT = TrainConfig(steps=6, batch=4, patch=14, fraction=0.5, lr=5e-3)
NETWORK = partial(NetworkEnergy, NetworkConfig(channels=(4, 6), embedding=4, nodes_tau=5))
NETWORK_SHORT = replace(SHORT, optimiser="muon", objective="denoising", fraction=1.0)


@pytest.fixture(scope="module")
def images():
    return {f"leaves{k}": dead_leaves(40, 40, torch.Generator().manual_seed(k)) for k in range(2)}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def prior(seed=0, config=PRIOR):
    """A prior away from its start: nothing in it is symmetric, quadratic or constant in tau."""
    model, generator = FieldsOfExperts(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    model.project()
    return model


def same(a: TrainState, b: TrainState) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    equal = all(torch.equal(p, q) for p, q in pairs)
    return equal and a.step == b.step and torch.equal(a.generator.get_state(), b.generator.get_state())


# --- noise levels and learning rates -----------------------------------------------------------------------


def test_learning_rate_is_a_cosine_from_first_to_last():
    rates = [train.learning_rate(1e-2, 1e-4, k, 100) for k in range(101)]
    assert rates[0] == 1e-2
    assert rates[100] == pytest.approx(1e-4, rel=1e-12)
    assert rates[50] == pytest.approx((1e-2 + 1e-4) / 2, rel=1e-12)
    assert all(a > b for a, b in pairwise(rates))


def test_both_groups_follow_the_schedule(images):
    state = TrainState(FieldsOfExperts(PRIOR), SHORT)
    for step in train.training(state, images):
        kernels, constant = (group["lr"] for group in state.optimizer.param_groups)
        at = step.step - 1, SHORT.steps
        assert step.lr == kernels == train.learning_rate(SHORT.lr, SHORT.lr_last, *at)
        assert constant == train.learning_rate(SHORT.lr_constant, SHORT.lr_last, *at)
    assert step.step == state.step == SHORT.steps


def test_learning_rates_are_held_before_they_fall(images):
    held = replace(SHORT, steps=8, hold=0.5)
    rates = [step.lr for step in train.training(TrainState(FieldsOfExperts(PRIOR), held), images)]
    falling = [train.learning_rate(held.lr, held.lr_last, k, 4) for k in range(4)]
    assert rates == [held.lr] * 4 + falling


def test_noise_levels_are_stratified_and_uniform():
    count, batches = 16, 500
    generator = torch.Generator().manual_seed(0)
    low, high = math.log(PRIOR.sigma_min), math.log(PRIOR.sigma_max)
    draws = [train.sample_noise(PRIOR, count, (count, 1, 2, 2), generator)[0] for _ in range(batches)]
    u = (torch.stack(draws).double() - low) / (high - low)  # (batches, count)
    assert torch.equal((u * count).floor().long(), torch.arange(count).expand(batches, -1))
    # within a stratum: uniform; Kolmogorov-Smirnov, p < 1e-6 would happen once in a million seeds
    assert kstest((u * count - torch.arange(count)).flatten().numpy(), "uniform").pvalue > 1e-6
    # over the interval: the stratified mean has standard deviation 1 / (count sqrt(12 count batches)); six of them
    assert abs(u.mean() - 0.5) < 6 / (count * math.sqrt(12 * count * batches)) + 1e-6


# --- the loss ----------------------------------------------------------------------------------------------


def slow_parts(model, x, tau, z, chosen, extra, config):
    """Eq. 7 per pixel from nothing but the energy: nested automatic differentiation, one image after the other."""

    def derivatives(x, tau, z):
        tau = tau.clone().requires_grad_()
        y = (x + tau.detach().exp() * z)[None].requires_grad_()
        energy = model.energy(y, (2 * tau).exp()[None], border="valid").sum()
        along_y, along_tau = torch.autograd.grad(energy, (y, tau), create_graph=True)
        return along_y[0], along_tau, torch.autograd.grad(along_tau, tau)[0]

    m = model.config.margin
    image, smoothing, steps = [], [], []
    for b in range(len(x)):
        g = derivatives(x[b], tau[b], z[b])[0]
        residual = (tau[b].exp() * g - z[b])[:, 2 * m : -2 * m, 2 * m : -2 * m]
        image.append(0.5 * (residual**2).mean())
    ends = math.log(model.config.sigma_max), math.log(model.config.sigma_min)
    for k, b in enumerate(chosen.tolist()):
        _, first, second = derivatives(x[b], tau[b], z[b])
        n = z[b][:, m:-m, m:-m].numel()
        if config.objective == "denoising":
            smoothing.append(0.5 * (first + (z[b][:, m:-m, m:-m] ** 2).sum() - n) ** 2 / n)
        elif config.objective == "vanishing":  # d/dtau of w(tau), by automatic differentiation as well
            at = tau[b].clone().requires_grad_()
            weight = 1 - torch.cos(2 * math.pi * (at - ends[1]) / (ends[0] - ends[1]))
            (slope,) = torch.autograd.grad(weight, at)
            smoothing.append((weight.detach() * (0.5 * first**2 - second) - slope * first) / n)
        else:
            smoothing.append((0.5 * first**2 - second) / n)
        if config.objective == "corrected":
            at = torch.tensor(ends[k % 2])
            steps.append((-1) ** k * derivatives(x[b], at, extra[k])[1] / n)
    value = sum(smoothing) / len(chosen)
    if steps:
        value = value + sum(steps) / (len(chosen) / 2) / (ends[0] - ends[1])
    return sum(image) / len(x), value


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "config", [PRIOR, replace(PRIOR, layers=2, scaled_input=False)], ids=["one layer", "two layers, unscaled"]
)
@pytest.mark.usefixtures("double")
def test_loss_parts_agree_with_automatic_differentiation(objective, config):
    model = prior(3, config).double()
    settings = replace(SHORT, objective=objective, batch=8)
    x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    tau, z = train.sample_noise(config, 8, x.shape, generator)  # the same draws, in the same order
    chosen = torch.randperm(8, generator=generator)[:4]
    extra = torch.randn(4, 1, 16, 16, generator=generator)
    expected = slow_parts(model, x, tau, z, chosen, extra, settings)
    found = train.loss_parts(model, x, settings, torch.Generator().manual_seed(2))
    for ours, slow in zip(found, expected, strict=True):
        assert ours.item() == pytest.approx(slow.item(), rel=1e-9, abs=1e-12)
    assert abs(expected[1].item()) > 1e-3  # the comparison of the smoothing part is not 0 = 0


def test_restored_and_corrected_objectives_differ_and_lambda_zero_skips_the_smoothing_part():
    x = torch.rand(4, 1, 14, 14, generator=torch.Generator().manual_seed(1))
    parts = {}
    for objective in OBJECTIVES:
        settings = replace(SHORT, objective=objective)
        parts[objective] = train.loss_parts(prior(), x, settings, torch.Generator().manual_seed(2))
    image = {parts[o][0].item() for o in parts}
    assert len(image) == 1
    assert len({parts[o][1].item() for o in parts}) == len(OBJECTIVES)
    none = train.loss_parts(prior(), x, replace(SHORT, smoothing=0.0), torch.Generator().manual_seed(2))
    assert none[0].item() in image
    assert none[1].item() == 0


# --- the optimiser -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_adabelief_makes_the_published_update():
    """Zhuang et al., NeurIPS 2020, algorithm 2: s tracks (g - m)^2, eps inside of s and beside the root."""
    model = FieldsOfExperts(PRIOR).double()
    state = TrainState(model, SHORT)
    generator = torch.Generator().manual_seed(0)
    groups = [([*model.kernels, *model.weights], SHORT.lr), ([model.offset], SHORT.lr_constant)]
    ours = [(p, p.detach().clone(), lr) for parameters, lr in groups for p in parameters]
    m, s = ([torch.zeros_like(p) for p, _, _ in ours] for _ in range(2))
    b1, b2, eps = 0.9, 0.999, 1e-16
    for k in range(1, 13):
        for i, (p, q, lr) in enumerate(ours):
            p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (-i - k % 3)
            m[i] = b1 * m[i] + (1 - b1) * p.grad
            s[i] = b2 * s[i] + (1 - b2) * (p.grad - m[i]) ** 2 + eps
            q -= lr * m[i] / (1 - b1**k) / ((s[i] / (1 - b2**k)).sqrt() + eps)
        state.optimizer.step()
        for p, q, _ in ours:
            torch.testing.assert_close(p.detach(), q, rtol=1e-10, atol=1e-13)


def test_muon_steps_have_singular_values_of_about_one():
    """The first step of a kernel is that of the polar factor of its gradient, as a matrix; other parameters have
    the sign of it, as with Adam. Newton and Schulz's five iterations leave singular values in about [0.7, 1.2]."""
    state = TrainState(NETWORK(), replace(NETWORK_SHORT, lr_matrix=0.02))
    parts, generator = state.parts, torch.Generator().manual_seed(0)
    names = {id(p): name for name, p in state.model.named_parameters()}
    assert all(
        ".a.weight" in n or ".b.weight" in n or "down" in n or "up" in n
        for n in (names[id(p)] for p in parts["lr_matrix"])
    )
    assert {id(p) for part in parts.values() for p in part} == names.keys()
    before = {id(p): p.detach().clone() for p in state.trained}
    for p in state.trained:
        p.grad = torch.randn(p.shape, generator=generator)
    grads = {id(p): p.grad.clone() for p in state.trained}
    state.optimizer.step()
    for name, rate in zip(parts, state.rates, strict=True):
        for p in parts[name]:
            step, grad = before[id(p)] - p.detach(), grads[id(p)]
            if name != "lr_matrix":
                torch.testing.assert_close(step, rate * grad.sign(), rtol=1e-2, atol=1e-6)
                continue
            rows, columns = len(p), p[0].numel()
            u, _, v = torch.linalg.svd(grad.reshape(rows, columns), full_matrices=False)
            found = u.T @ step.reshape(rows, columns) @ v.T / (0.02 * max(1, rows / columns) ** 0.5)
            assert 0.6 < found.diagonal().min() < found.diagonal().max() < 1.3
            assert (found - found.diagonal().diag()).abs().max() < 0.1


def test_muon_is_resumed_to_the_bit(images, tmp_path):
    whole, first = (TrainState(NETWORK(), NETWORK_SHORT) for _ in range(2))
    steps = list(train.training(whole, images))
    again = list(islice(train.training(first, images), 3))
    save_checkpoint(first, tmp_path)
    second = load_checkpoint(tmp_path)
    again += list(train.training(second, images))
    assert again == steps
    assert same(whole, second)
    assert [group["lr"] for group in second.optimizer.param_groups] == [
        train.learning_rate(first, second.config.lr_last, 5, 6) for first in second.rates
    ]


def test_a_tiny_problem_is_overfitted(images):
    one = {"only": images["leaves0"][..., :14, :14]}
    state = TrainState(FieldsOfExperts(PRIOR), replace(SHORT, steps=60, batch=8, lr=1e-2))
    losses = torch.tensor([step.image for step in train.training(state, one)])
    assert losses[-15:].mean() < 0.75 * losses[:10].mean()


def test_roughness_is_a_decoupled_decay(images):
    """After each step amount = roughness times the learning rate of the potentials, beside the gradient's step."""
    plain, rough = (
        TrainState(FieldsOfExperts(PRIOR), replace(SHORT, roughness=value)) for value in (0.0, 50.0)
    )
    step = next(train.training(plain, images))
    assert next(train.training(rough, images)) == step  # the loss does not know of it
    assert not same(plain, rough)
    plain.model.smooth(50.0 * step.lr)
    assert same(plain, rough)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_smoothing_part_sees_so_many_patches(objective, monkeypatch):
    """At least one, or two for the two ends of tau."""
    seen = []
    monkeypatch.setattr(train, "smoothing_part", lambda model, x, *_: seen.append(len(x)) or x.mean())
    for fraction in (0.01, 0.5, 1.0):
        settings = replace(SHORT, objective=objective, fraction=fraction)
        train.loss_parts(prior(3), torch.rand(8, 1, 9, 9), settings, torch.Generator())
    assert seen == [2 if objective == "corrected" else 1, 4, 8]


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.usefixtures("double")
def test_the_reported_smoothing_part_is_a_mean_whatever_the_fraction(objective, fraction):
    """Patches that are all the same up to their noise: its expectation cannot depend on how many are chosen.

    The mean over 60 draws, against the mean over 60 draws on whole batches, within six standard errors of both.
    """
    model, x = (
        prior(3).double(),
        torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(1)).repeat(8, 1, 1, 1),
    )

    def draws(part, seed):
        settings, generator = replace(SHORT, batch=8, objective=objective, fraction=part), torch.Generator()
        generator.manual_seed(seed)
        with torch.no_grad():
            return torch.stack([train.loss_parts(model, x, settings, generator)[1] for _ in range(60)])

    found, whole = draws(fraction, 5), draws(1.0, 6)
    error = (found.var() / 60 + whole.var() / 60).sqrt()
    assert abs(found.mean() - whole.mean()) < 6 * error


# --- stopping and going on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_resuming_is_identical_to_the_bit(images, tmp_path, objective):
    config = replace(SHORT, objective=objective)
    whole, first = (TrainState(FieldsOfExperts(PRIOR), config) for _ in range(2))
    steps = list(train.training(whole, images))
    again = list(islice(train.training(first, images), 3))
    save_checkpoint(first, tmp_path)
    second = load_checkpoint(tmp_path)
    assert second.config == config
    assert second.model.config == PRIOR
    again += list(train.training(second, images))
    assert again == steps
    assert same(whole, second)
    assert not same(whole, first)


def test_the_average_of_the_weights(images):
    """By hand: beta_k = min(beta, (1 + k) / (10 + k)); the first update copies."""
    state = TrainState(FieldsOfExperts(PRIOR), replace(SHORT, averaging=0.3))
    expected = None
    for k, _ in enumerate(train.training(state, images)):
        now = state.model.weights[0].detach().clone()
        beta = min(0.3, (1 + k) / (10 + k))
        expected = now if expected is None else beta * expected + (1 - beta) * now
        torch.testing.assert_close(state.prior.weights[0], expected, rtol=1e-5, atol=1e-7)
    assert k == 5
    assert not torch.equal(state.prior.weights[0], state.model.weights[0])


def test_averaging_does_not_change_the_training_and_is_resumed(images, tmp_path):
    plain, whole, first = (
        TrainState(FieldsOfExperts(PRIOR), replace(SHORT, averaging=beta)) for beta in (0.0, 0.9, 0.9)
    )
    assert plain.average is None
    assert plain.prior is plain.model
    assert list(train.training(plain, images)) == list(train.training(whole, images))
    list(islice(train.training(first, images), 3))
    save_checkpoint(first, tmp_path)
    second = load_checkpoint(tmp_path)
    list(train.training(second, images))
    assert same(whole, second)
    for p, q in zip(whole.prior.parameters(), second.prior.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(images, tmp_path, monkeypatch):
    loss_parts, calls = train.loss_parts, []

    def failing(*arguments):
        calls.append(1)
        image, smoothing = loss_parts(*arguments)
        return (image * math.nan if len(calls) == 4 else image), smoothing

    whole = TrainState(FieldsOfExperts(PRIOR), SHORT)
    for _ in train.training(whole, images):
        pass
    monkeypatch.setattr(train, "loss_parts", failing)
    broken = TrainState(FieldsOfExperts(PRIOR), SHORT)
    steps = train.training(broken, images)
    list(islice(steps, 2))
    save_checkpoint(broken, tmp_path)
    next(steps)
    kept = {name: value.clone() for name, value in broken.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="the loss is nan at step 4"):
        next(steps)
    assert broken.step == 3
    assert all(torch.equal(kept[name], value) for name, value in broken.model.state_dict().items())
    state = load_checkpoint(tmp_path)
    assert state.step == 2
    for _ in train.training(state, images):
        pass
    assert same(state, whole)


def test_the_callers_images_are_not_changed(images):
    before = {name: image.clone() for name, image in images.items()}
    for _ in train.training(TrainState(FieldsOfExperts(PRIOR), SHORT), images):
        pass
    assert all(torch.equal(before[name], image) for name, image in images.items())


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (data.bsds68_ids()[0], "test set BSDS68"),
        (sorted(set(data.bsds500_ids("val")) - set(data.bsds68_ids()))[0], "val"),
    ],
    ids=["BSDS68", "val"],
)
def test_images_of_val_are_refused(images, name, says):
    state = TrainState(FieldsOfExperts(PRIOR), SHORT)
    with pytest.raises(ValueError, match=says):
        next(train.training(state, images | {name: images["leaves0"]}))
    assert state.step == 0


@pytest.mark.parametrize(
    ("patch", "says"), [(4, "too small: this prior needs 5"), (41, "does not fit into an image of 40 x 40")]
)
def test_patches_that_do_not_fit_are_refused(images, patch, says):
    with pytest.raises(ValueError, match=says):
        next(train.training(TrainState(FieldsOfExperts(PRIOR), replace(SHORT, patch=patch)), images))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"steps": 0}, "steps must be a positive integer"),
        ({"steps": 10.5}, "steps must be a positive integer"),
        ({"batch": True}, "batch must be a positive integer"),
        ({"patch": -3}, "patch must be a positive integer"),
        ({"lr": 0.0}, "lr must lie in"),
        ({"lr_constant": math.nan}, "lr_constant must lie in"),
        ({"lr_last": 2.0}, "lr_last must lie in"),
        ({"smoothing": -1e-4}, "smoothing"),
        ({"smoothing": math.inf}, "smoothing"),
        ({"fraction": 0.0}, "fraction must lie in"),
        ({"fraction": 1.5}, "fraction must lie in"),
        ({"objective": "explicit"}, "objective must be one of corrected, restored, vanishing, denoising"),
        ({"averaging": 1.0}, r"averaging must lie in \[0, 1\)"),
        ({"roughness": -1.0}, "roughness must be >= 0"),
        ({"roughness": math.nan}, "roughness must be >= 0"),
        ({"roughness_hidden": -0.1}, "roughness_hidden must be >= 0"),
        ({"warm_start_hidden": "relu"}, "warm_start_hidden must be one of identity, magnitude"),
        ({"batch": 1}, "takes pairs of patches"),
    ],
)
def test_bad_settings_are_named(setting, says):
    with pytest.raises(ValueError, match=says):
        TrainConfig(**setting)


def test_settings_of_older_and_newer_versions():
    """What an older version did not have gets its default; what a newer one has is refused by name."""
    newer = {"roughness": 2.0, "roughness_hidden": 0.5, "averaging": 0.5, "warm_start": "R1"}
    newer |= {"warm_start_sha256": "ab", "warm_start_hidden": "magnitude"}
    stored = asdict(replace(SHORT, **newer))
    assert TrainConfig(**stored) == replace(SHORT, **newer)
    for name in newer:
        del stored[name]
    assert TrainConfig(**stored) == SHORT
    with pytest.raises(ValueError, match="missing or unknown: ema"):
        TrainConfig(**stored, ema=0.9)


def test_no_checkpoint_and_unreadable_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    path = save_checkpoint(TrainState(FieldsOfExperts(PRIOR), SHORT), tmp_path)
    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", whole[:200], whole[:-50]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read"):
            load_checkpoint(tmp_path)
    save_file({"x": torch.zeros(2)}, path)  # a safetensors file, but not ours
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path)
    path.write_bytes(whole)
    assert load_checkpoint(tmp_path).step == 0


def test_the_small_prior_of_the_notebooks_denoises_and_is_the_same_every_time():
    clean = data.embedded()["coins"][..., 60:156, 60:156]
    prior = small_prior()
    start, end = (denoising_psnr(p, [clean], 25 / 255)[0] for p in (type(prior)(prior.config), prior))
    assert end > start + 2
    assert torch.equal(prior.kernels[0], small_prior().kernels[0])
