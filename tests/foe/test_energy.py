"""Fields of Experts against autograd, finite differences, closed forms and a float64 twin; files and bad input."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian

from gnclib.foe import FieldsOfExperts, FoEConfig, hub
from gnclib.foe.filters import dct_kernels, dilate, reflect, reflect_adjoint
from tests.draws import generator

f64 = {"dtype": torch.float64}
SMALL = {"features": 4, "kernel_size": 3, "nodes_x": 15, "range": 3.0, "nodes_tau": 7}
KINDS = [
    pytest.param(layers, border, scaled, id=f"L{layers}-{border}-{'scaled' if scaled else 'restored'}")
    for layers in (1, 2, 3)
    for border in ("reflect", "valid")
    for scaled in (True, False)
]


def random_energy(layers=1, scaled=True, seed=0, dilation=1):
    """A small float64 energy whose every parameter is random: nothing is hidden by a symmetric start."""
    g = generator(seed)
    config = FoEConfig(layers=layers, scaled_input=scaled, dilation=dilation, **SMALL)
    energy = FieldsOfExperts(config, generator=g).double()
    for p in energy.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=g, **f64)
    return energy.requires_grad_(False)


def images(batch=2, height=9, width=8, seed=1, dtype=torch.float64):
    return torch.rand(batch, 1, height, width, generator=generator(seed), **f64).to(dtype)


T = torch.tensor([0.003, 0.4], **f64)


# --- derivatives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "border", "scaled"), KINDS)
def test_gradient_against_autograd(layers, border, scaled):
    energy, y = random_energy(layers, scaled), images().requires_grad_()
    (exact,) = torch.autograd.grad(energy.energy(y, T, border=border).sum(), y)
    found = energy.grad(y.detach(), T, border=border)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)
    assert exact.abs().max() > 0.1


@pytest.mark.parametrize(("layers", "border", "scaled"), KINDS)
def test_tau_derivatives_against_autograd(layers, border, scaled):
    """Differentiate energy(y, e^(2 tau)) twice: the forward jets must give the same."""
    energy, y = random_energy(layers, scaled), images()
    tau = (0.5 * T.log()).requires_grad_()
    value = energy.energy(y, (2 * tau).exp(), border=border)
    (first,) = torch.autograd.grad(value.sum(), tau, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), tau)
    for found, exact in zip(energy.dtau(y, T, border=border), (first, second), strict=True):
        torch.testing.assert_close(found, exact.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_hessian_vector_products(layers):
    """Against central differences of the gradient and against autograd's full Hessian; symmetric."""
    energy, y = random_energy(layers), images(1, 6, 6)
    u, v = (torch.randn(y.shape, generator=generator(k), **f64) for k in (5, 6))
    product, h = energy.hvp(y, 0.1, v), 1e-6
    difference = (energy.grad(y + h * v, 0.1) - energy.grad(y - h * v, 0.1)) / (2 * h)
    torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((u * product).sum(), (v * energy.hvp(y, 0.1, u)).sum())
    full = hessian(lambda flat: energy.energy(flat.view(1, 1, 6, 6), 0.1).sum(), y.flatten())
    torch.testing.assert_close(product.flatten(), full @ v.flatten())
    assert not energy.hvp(y, 0.1, v).requires_grad


@pytest.mark.parametrize("border", ["reflect", "valid"])
@pytest.mark.parametrize(("layers", "dilation", "margin"), [(2, 2, 3), (2, 3, 4), (3, 2, 5)])
def test_dilated_kernels(layers, dilation, margin, border):
    """The energy is that of the kernels with the zeros written out; its derivatives against autograd."""
    energy, y = random_energy(layers, dilation=dilation), images(2, 13, 12).requires_grad_()
    assert energy.config.margin == margin
    written_out = random_energy(layers, seed=1)
    written_out.config = replace(energy.config, dilation=1, deep_kernel_size=2 * dilation + 1)
    written_out.load_state_dict(energy.state_dict())
    for kernel in written_out.kernels[1:]:
        kernel.data = dilate(kernel.data, dilation)
    value = energy.energy(y, T, border=border)
    torch.testing.assert_close(value, written_out.energy(y, T, border=border))
    (exact,) = torch.autograd.grad(value.sum(), y)
    torch.testing.assert_close(energy.grad(y.detach(), T, border=border), exact, rtol=1e-10, atol=1e-12)
    y = y.detach()
    for ours, theirs in zip(energy.dtau(y, T), written_out.dtau(y, T), strict=True):
        torch.testing.assert_close(ours, theirs)
    v = images(2, 13, 12, seed=5)
    torch.testing.assert_close(energy.hvp(y, T, v), written_out.hvp(y, T, v))


def test_parameters_receive_the_gradient_of_a_score_loss():
    """Training differentiates ||grad_1 R||^2 in kernels and weights: against finite differences."""
    energy, y = random_energy(2).requires_grad_(True), images()

    def loss():
        return energy.grad(y, T, border="valid").square().sum()

    loss().backward()
    for parameter in (energy.kernels[0], energy.kernels[1], energy.weights[0], energy.weights[1]):
        direction = torch.randn(parameter.shape, generator=generator(9), **f64)
        slope = (parameter.grad * direction).sum().item()
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
                values.append(loss().item())
                parameter -= step * direction
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


# --- what the energy is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [True, False])
def test_a_new_energy_is_the_quadratic_of_the_paper(scaled):
    """R(y, t) = 1/(2 s^2) sum_c ||K_c pad(s(t) y)||^2 + n 1/2 log(t + s_0^2) with s = kernel size, inside the range."""
    config = FoEConfig(scaled_input=scaled)
    energy = FieldsOfExperts(config).double()
    y, t = images(1, 12, 10), 0.3
    scale = (t + config.sigma_0**2) ** -0.5 if scaled else 1.0
    features = scale * F.conv2d(reflect(y, 3), dct_kernels(7, 48))
    assert features.abs().max() < config.range
    expected = 0.5 / 49 * features.square().sum() + 120 * 0.5 * math.log(t + 0.1**2)
    assert energy.energy(y, t).item() == pytest.approx(expected.item(), rel=1e-6)  # coefficients were float32


def test_deep_layers_start_as_identities():
    """With identity activations R_2 is a quadratic form of K_2 K_1 y: doubling y quadruples it."""
    energy, y = FieldsOfExperts(FoEConfig(layers=2)).double(), 0.3 * images(1, 20, 20)
    offset = energy.energy(0 * y, 0.5)
    one, two = (energy.energy(k * y, 0.5) - offset for k in (1, 2))
    torch.testing.assert_close(two, 4 * one, rtol=1e-4, atol=0)
    assert one > 0


def test_kernels_stay_in_their_set():
    energy = FieldsOfExperts(kernels="random")
    energy.kernels[0].data = 3 * energy.kernels[0].data + 1
    energy.project()
    flat = energy.kernels[0].flatten(1)
    assert flat.sum(1).abs().max() < 1e-5
    assert flat.norm(dim=1).max() <= 1 + 1e-6


def test_kernels_shorter_than_one_keep_their_length():
    """The set is a ball: projection takes the mean away and shortens what is too long, nothing else."""
    energy, g = FieldsOfExperts(FoEConfig(**SMALL)).double(), generator(2)
    kernels = torch.randn(energy.kernels[0].shape, generator=g, **f64)
    kernels -= kernels.mean((-1, -2), keepdim=True)
    lengths = torch.tensor([0.0, 0.3, 1.0, 4.0], **f64)[:, None, None, None]
    kernels *= lengths / torch.linalg.vector_norm(kernels, dim=(-1, -2), keepdim=True)
    energy.kernels[0].data = kernels + 0.7
    energy.project()
    torch.testing.assert_close(energy.kernels[0].data, kernels / lengths.clamp(min=1.0))


def test_samples_of_a_batch_do_not_see_each_other():
    """A batch with different t equals the samples one by one, in every method."""
    energy, y = random_energy(2), images(3)
    t = torch.tensor([1e-4, 0.02, 1.0], **f64)
    v = images(3, seed=7)
    together = energy.energy(y, t), energy.grad(y, t), *energy.dtau(y, t), energy.hvp(y, t, v)
    for k in range(3):
        one = y[k : k + 1]
        alone = energy.energy(one, t[k]), energy.grad(one, t[k].item()), *energy.dtau(one, t[k : k + 1])
        alone += (energy.hvp(one, t[k], v[k : k + 1]),)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[k : k + 1], b, rtol=1e-10, atol=1e-12)


def test_no_hidden_state():
    """The same question after another one gets the same answer, and y is left alone."""
    energy, y = random_energy(), images()
    before, copy = energy.grad(y, 0.01), y.clone()
    energy.grad(images(seed=5), 0.9), energy.energy(y, 1.0)
    assert torch.equal(energy.grad(y, 0.01), before)
    assert torch.equal(y, copy)


def test_valid_border_is_the_sum_over_the_inner_features():
    """On an image that is continued by hand, "valid" gives what "reflect" gives, gradient folded back."""
    energy, y = random_energy(2), images()
    padded = reflect(y, energy.config.margin)
    torch.testing.assert_close(energy.energy(y, T), energy.energy(padded, T, border="valid"))
    folded = reflect_adjoint(energy.grad(padded, T, border="valid"), energy.config.margin)
    torch.testing.assert_close(energy.grad(y, T), folded)


def test_float32_and_its_float64_twin():
    """The compiled float32 path within 1e-5 of float64, relative to the largest value, on the shipped prior."""
    energy = FieldsOfExperts.from_pretrained("R1")
    twin = FieldsOfExperts.from_pretrained("R1").double()
    y, t = images(2, 40, 40, dtype=torch.float32), torch.tensor([0.001, 0.3])
    for name in ("energy", "grad"):
        found, exact = getattr(energy, name)(y, t), getattr(twin, name)(y.double(), t.double())
        assert (found.double() - exact).abs().max() < 1e-5 * exact.abs().max(), name
    for found, exact in zip(energy.dtau(y, t), twin.dtau(y.double(), t.double()), strict=True):
        assert (found.double() - exact).abs().max() < 1e-4 * exact.abs().max()


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", ["reflect", "valid"])
def test_bfloat16_rounds_the_gradient_of_deep_layers_only(border):
    """bfloat16 has 8 significant bits: each rounding is off by at most 2^-8."""
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(1, 1, 40, 44, generator=generator)
    for layers in (1, 3):
        prior = FieldsOfExperts(FoEConfig(layers=layers), generator=generator).requires_grad_(False)
        exact = (
            prior.grad(y, 0.01, border=border),
            prior.energy(y, 0.01),
            *prior.dtau(y, 0.01),
            prior.hvp(y, 0.01, y),
        )
        prior.bf16 = True
        rounded = (
            prior.grad(y, 0.01, border=border),
            prior.energy(y, 0.01),
            *prior.dtau(y, 0.01),
            prior.hvp(y, 0.01, y),
        )
        off = ((rounded[0] - exact[0]).norm() / exact[0].norm()).item()
        assert (0 < off < 2**-8 * layers) if layers > 1 else off == 0
        assert all(torch.equal(a, b) for a, b in zip(rounded[1:], exact[1:], strict=True))
        both = prior.energy_and_grad(y, 0.01)
        torch.testing.assert_close(both[0], exact[1], rtol=1e-6, atol=0)
        torch.testing.assert_close(both[1], prior.grad(y, 0.01), rtol=1e-5, atol=1e-6)


def test_saved_and_loaded(tmp_path):
    energy = FieldsOfExperts(FoEConfig(layers=2, **SMALL), generator=generator(4))
    energy.save_pretrained(tmp_path / "prior")
    assert sorted(p.name for p in (tmp_path / "prior").iterdir()) == ["config.json", "model.safetensors"]
    stored = json.loads((tmp_path / "prior" / "config.json").read_text())
    assert set(stored) == set(FoEConfig.__dataclass_fields__)
    assert stored["layers"] == 2
    loaded = FieldsOfExperts.from_pretrained(tmp_path / "prior")
    assert loaded.config == energy.config
    for name, value in energy.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    y = images(dtype=torch.float32)
    assert torch.equal(loaded.grad(y, 0.1), energy.grad(y, 0.1))
    assert not any(p.requires_grad for p in loaded.parameters())
    before = (tmp_path / "prior" / "model.safetensors").read_bytes()
    loaded.save_pretrained(tmp_path / "prior")
    assert (tmp_path / "prior" / "model.safetensors").read_bytes() == before


def test_the_shipped_prior_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert FieldsOfExperts.from_pretrained("R1").config == FoEConfig()
    (tmp_path / "R1").mkdir()  # an empty folder of that name in the cwd does not hide it
    assert FieldsOfExperts.from_pretrained("R1").config == FoEConfig()


def test_missing_priors(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"shipped ones are .*R1"):
        FieldsOfExperts.from_pretrained("R99")
    FieldsOfExperts(FoEConfig(**SMALL)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        FieldsOfExperts.from_pretrained(tmp_path)
    monkeypatch.setattr(hub, "WEIGHTS", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="shipped ones are none"):
        FieldsOfExperts.from_pretrained("R1")


def test_damaged_priors(tmp_path):
    FieldsOfExperts(FoEConfig(**SMALL)).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    weights = (tmp_path / "model.safetensors").read_bytes()

    def refused(match):
        with pytest.raises(ValueError, match=match):
            FieldsOfExperts.from_pretrained(tmp_path)

    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    refused("cannot be read")
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text(config[:-20])
    refused("cannot be read")
    (tmp_path / "config.json").write_text(config.replace('"layers"', '"depth"'))
    refused("missing or unknown: depth, layers")
    (tmp_path / "config.json").write_text(config.replace('"nodes_tau": 7', '"nodes_tau": 9'))
    refused("do not fit its config.json")
    (tmp_path / "config.json").write_text(config.replace('"layers": 1', '"layers": 2'))
    refused("do not fit its config.json")


# --- bad input --------------------------------------------------------------------------------------------

METHODS = [
    pytest.param(lambda e, y, t: e.energy(y, t), id="energy"),
    pytest.param(lambda e, y, t: e.grad(y, t), id="grad"),
    pytest.param(lambda e, y, t: e.dtau(y, t), id="dtau"),
    pytest.param(lambda e, y, t: e.hvp(y, t, y), id="hvp"),
]


@pytest.mark.parametrize("method", METHODS)
def test_bad_times(method):
    energy, y = random_energy(), images()
    for t in (0.0, 1e-5, 1.1, torch.tensor([0.1, 2.0], **f64)):
        with pytest.raises(ValueError, match=r"leaves the range .* of noise variances"):
            method(energy, y, t)
    for t in (-0.1, math.nan, math.inf, "x", torch.full((3,), 0.1)):
        with pytest.raises(ValueError, match=r"\bt (must|is)\b"):
            method(energy, y, t)
    method(energy, y, 1e-4)  # both ends belong to the range
    method(energy, y, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_bad_images(method):
    energy = random_energy()
    for y in (images()[0], images().repeat(1, 3, 1, 1), torch.zeros(1, 1, 0, 5, **f64)):
        with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
            method(energy, y, 0.1)
    with pytest.raises(ValueError, match="floating point"):
        method(energy, torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 0.1)
    with pytest.raises(ValueError, match="finite"):
        method(energy, images() * math.nan, 0.1)
    with pytest.raises(ValueError, match=r"convert one, e\.g\. prior\.double"):
        method(energy, images().float(), 0.1)


def test_too_small_images_and_unknown_borders():
    energy = FieldsOfExperts(FoEConfig(layers=2)).double()  # 7x7 and 3x3: margin 4
    assert energy.config.margin == 4
    energy.grad(images(1, 4, 4), 0.1)
    energy.grad(images(1, 9, 9), 0.1, border="valid")
    with pytest.raises(ValueError, match="needs 4x4"):
        energy.grad(images(1, 3, 30), 0.1)
    with pytest.raises(ValueError, match="needs 9x9"):
        energy.energy(images(1, 8, 30), 0.1, border="valid")
    with pytest.raises(ValueError, match="border must be"):
        energy.energy(images(1, 9, 9), 0.1, border="same")
    with pytest.raises(ValueError, match="shape and dtype of y"):
        energy.hvp(images(1, 9, 9), 0.1, images(1, 9, 8))
    with pytest.raises(ValueError, match="shape and dtype of y"):
        energy.hvp(images(1, 9, 9), 0.1, images(1, 9, 9).float())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"layers": 0}, "layers"),
        ({"layers": 1.5}, "layers must be a positive integer"),
        ({"features": 7.0}, "features must be a positive integer"),
        ({"nodes_x": True}, "nodes_x must be an integer"),
        ({"dilation": True}, "dilation must be a positive integer"),
        ({"features": 49}, "features"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"deep_kernel_size": -1}, "deep_kernel_size"),
        ({"dilation": 0}, "dilation must be a positive integer"),
        ({"dilation": 1.5}, "dilation must be a positive integer"),
        ({"nodes_tau": 4}, "at least 5"),
        ({"range": math.inf}, "range"),
        ({"sigma_min": 1.0}, "sigma_min < sigma_max"),
        ({"sigma_0": 0.0}, "sigma_0"),
    ],
)
def test_bad_configurations(change, match):
    with pytest.raises(ValueError, match=match):
        FoEConfig(**change)


def test_unknown_kernels_and_configuration_keys():
    with pytest.raises(ValueError, match='"dct" or "random"'):
        FieldsOfExperts(FoEConfig(**SMALL), kernels="haar")
    with pytest.raises(ValueError, match="missing"):
        FoEConfig.from_dict({"layers": 1})
    older = asdict(FoEConfig(**SMALL))
    del older["dilation"]  # kernels could not be dilated then
    assert FoEConfig.from_dict(older) == FoEConfig(**SMALL)
