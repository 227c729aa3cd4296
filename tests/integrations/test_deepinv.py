"""The energies inside deepinv: its own physics and algorithms with our prior and denoiser, against our own solvers.

deepinv needs torchvision, whose operators are compiled for one build of torch and are absent beside another. Nothing
here calls them, so where torchvision's import stops at "operator torchvision::nms does not exist" they are declared
(names and signatures only) and the import is tried again: all Python code of torchvision and deepinv is the real one.
"""

import importlib.util
import os
import subprocess
import sys
import warnings

import pytest
import torch

from gnclib.foe import FieldsOfExperts
from gnclib.images import data, metrics
from gnclib.restore import flow as solvers
from gnclib.restore import linear, operators, sampling, schedules, schemes
from gnclib.restore.learned import Task

DECLARED = []  # keeps the declarations alive


def _declared():
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    DECLARED.append(library)


@pytest.fixture(scope="module")
def deepinv():
    if importlib.util.find_spec("deepinv") is None:
        pytest.skip("deepinv is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("deepinv")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
        for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "deepinv")]:
            del sys.modules[name]
        _declared()
        return importlib.import_module("deepinv")


@pytest.fixture(scope="module")
def ours(deepinv):
    return importlib.import_module("gnclib.integrations.deepinv")


@pytest.fixture(scope="module")
def energy():
    return FieldsOfExperts.from_pretrained("R1").double()


@pytest.fixture(scope="module")
def clean():
    return data.embedded()["camera"][..., 100:124, 120:148].double()  # (1, 1, 24, 28)


def colour(x):
    return torch.cat([x, x.flip(-1), 0.7 * x + 0.1], 1)  # (B, 3, H, W)


# --- without deepinv --------------------------------------------------------------------------------------


def in_a_new_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_missing_deepinv_is_named_and_nothing_else_needs_it():
    code = (
        "import sys; sys.modules['deepinv'] = None\n"
        "import gnclib.integrations; assert 'torch' not in sys.modules\n"
        "try: import gnclib.integrations.deepinv\n"
        "except ImportError as error: print(error)"
    )
    assert "pip install deepinv torchvision" in in_a_new_process(code)


def test_a_torchvision_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "deepinv").mkdir()
    (tmp_path / "deepinv" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    code = (
        "import sys, gnclib\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "try: import gnclib.integrations.deepinv\n"
        "except ImportError as error: print(error)"
    )
    said = in_a_new_process(code)
    assert "torchvision::nms" in said
    assert "built together with your torch" in said


# --- the prior --------------------------------------------------------------------------------------------


def test_value_and_gradient_are_the_energy_s(deepinv, ours, energy, clean):
    prior = ours.EnergyPrior(energy)
    assert prior.explicit_prior
    assert isinstance(prior, deepinv.optim.Prior)
    x = data.add_noise(torch.cat([colour(clean), colour(clean.flip(-2))]), 0.1, seed=0)  # (2, 3, H, W)
    sigma = torch.tensor([0.05, 0.2], dtype=torch.float64)
    for given in (sigma, sigma.reshape(2, 1, 1, 1), sigma.tolist()):
        value, slope = prior(x, given, reduce=False), prior.grad(x, given)
        for b in range(2):
            grey = x[b][:, None]  # (3, 1, H, W)
            t = sigma[b].item() ** 2
            torch.testing.assert_close(value[b], energy.energy(grey, t).sum(), rtol=1e-12, atol=0)
            torch.testing.assert_close(slope[b], energy.grad(grey, t)[:, 0], rtol=1e-12, atol=1e-12)
    same = prior(x, 0.05)
    torch.testing.assert_close(same[0], value[0], rtol=1e-12, atol=0)
    by_autograd = deepinv.optim.Potential.grad(prior, x.clone(), sigma)  # deepinv's own, through fn
    torch.testing.assert_close(prior.grad(x, sigma), by_autograd, rtol=1e-8, atol=1e-8)


def test_prox_meets_its_condition_and_descends(ours, energy, clean):
    prior = ours.EnergyPrior(energy, tolerance=1e-7)
    x = data.add_noise(torch.cat([colour(clean), colour(clean.flip(-2))]), 0.1, seed=0)
    sigma = torch.tensor([0.05, 0.1], dtype=torch.float64)
    for gamma in (0.01, torch.tensor([0.0025, 0.02], dtype=torch.float64)):
        z = prior.prox(x, sigma, gamma=gamma)
        wide = torch.as_tensor(gamma).double().reshape(-1, 1, 1, 1)
        residual = z - x + wide * prior.grad(z, sigma)
        assert residual.square().mean((2, 3)).sqrt().max() <= 1e-7
        value = wide.reshape(-1) * prior(z, sigma) + 0.5 * (z - x).square().sum((1, 2, 3))
        assert bool((value < wide.reshape(-1) * prior(x, sigma) - 1).all())


def test_prox_says_when_it_did_not_arrive(ours, energy, clean):
    prior = ours.EnergyPrior(energy, iterations=2)
    x = data.add_noise(clean, 0.1, seed=0)
    with pytest.warns(RuntimeWarning, match="after 2 steps, not 1.0e-05"):
        z = prior.prox(x, 0.1, gamma=0.1)
    assert 0.1 * prior(z, 0.1) + 0.5 * (z - x).square().sum() < 0.1 * prior(x, 0.1)


def test_bad_input(ours, energy, clean):
    prior = ours.EnergyPrior(energy)
    for sigma, message in (
        (None, "needs sigma_denoiser"), (-0.1, "> 0"), (0.0, "> 0"), (float("nan"), "finite"), ("a", "number"),
        (torch.ones(3), r"images \(1, 1, 24, 28\)"), (torch.full((24, 28), 0.1), "one value per image"),
        (0.1 * torch.ones(1, 1, 24, 28), "one value per pixel"), (2.0, "range"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            prior(clean, sigma)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        prior.grad(clean[0], 0.1)
    with pytest.raises(ValueError, match="gamma"):
        prior.prox(clean, 0.1, gamma=-1.0)
    with pytest.raises(RuntimeError, match="no derivative"):
        prior.prox(clean.clone().requires_grad_(), 0.1)
    with pytest.raises(FileNotFoundError, match="shipped ones"):
        ours.EnergyPrior("R9")
    with pytest.raises(ValueError, match="one step only"):
        ours.EnergyDenoiser(torch.nn.Identity(), steps=2)


# --- deepinv's algorithms ---------------------------------------------------------------------------------


class Circular:
    """A x = k * x, periodic, by the DFT of the whole plane, for our solver."""

    def __init__(self, kernel, size):
        self.size = size
        placed = torch.zeros(size, dtype=kernel.dtype)
        placed[: kernel.shape[0], : kernel.shape[1]] = kernel
        middle = [-(n // 2) for n in kernel.shape]
        self.transform = torch.fft.fft2(placed.roll(middle, (0, 1)))

    def __call__(self, x):
        return torch.fft.ifft2(self.transform * torch.fft.fft2(x)).real

    def adjoint(self, u):
        return torch.fft.ifft2(self.transform.conj() * torch.fft.fft2(u)).real


class Masked:
    """A x = mask x, for our solver."""

    def __init__(self, mask):
        self.mask, self.size = mask, tuple(mask.shape[-2:])

    def __call__(self, x):
        return self.mask * x

    adjoint = __call__


NOISE = 0.05


def problem(deepinv, kind, clean):
    """(deepinv's physics, measurement, our data term, start) of one inverse problem."""
    generator = torch.Generator().manual_seed(3)
    if kind == "denoise":
        physics = deepinv.physics.Denoising()
    elif kind == "inpaint":
        mask = (torch.rand(clean.shape, generator=generator) < 0.6).double()
        physics = deepinv.physics.Inpainting(img_size=clean.shape[1:], mask=mask)
    else:
        kernel = linear.gaussian_kernel(1.2)
        physics = deepinv.physics.BlurFFT(clean.shape[1:], kernel[None, None])
    y = physics.A(clean)
    y = y + NOISE * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    if kind == "denoise":
        return physics, y, operators.Denoising(y, NOISE), y
    operator = Masked(mask) if kind == "inpaint" else Circular(kernel, tuple(clean.shape[-2:]))
    y = physics.A(y) if kind == "inpaint" else y
    term = linear.LinearMeasurement(operator, y, NOISE, accuracy=1e-13, iterations=500)
    return physics, y, term, term.start()


@pytest.mark.parametrize("kind", ["denoise", "inpaint", "blur"])
@pytest.mark.parametrize("builder", [False, True], ids=["PGD", "optim_builder"])
def test_deepinv_s_proximal_gradient_is_ours(deepinv, ours, energy, clean, kind, builder):
    physics, y, term, start = problem(deepinv, kind, clean)
    sigma, step, steps = 0.05, 0.0025, 15
    fidelity, prior = deepinv.optim.L2(sigma=NOISE), ours.EnergyPrior(energy)
    options = {"data_fidelity": fidelity, "prior": prior, "max_iter": steps, "g_first": True}
    if builder:
        parameters = {"stepsize": step, "lambda": 1.0, "g_param": sigma}
        model = deepinv.optim.optim_builder("PGD", params_algo=parameters, **options)
    else:
        model = deepinv.optim.PGD(stepsize=step, sigma_denoiser=sigma, **options)
    theirs = model(y, physics, init=start)
    mine = solvers.last(solvers.proximal_gradient(energy, sigma**2, term, start, steps=steps, step=step)).x
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-10)
    assert metrics.psnr(theirs, clean).item() > metrics.psnr(start, clean).item() + 2


def test_a_list_of_noise_levels_makes_it_the_gnc_flow(deepinv, ours, energy, clean):
    physics, y, term, start = problem(deepinv, "inpaint", clean)
    ts = schedules.log_schedule(0.03, 1e-3, 12)
    flow = deepinv.optim.PGD(
        data_fidelity=deepinv.optim.L2(sigma=NOISE), prior=ours.EnergyPrior(energy), g_first=True, max_iter=12,
        sigma_denoiser=ts.sqrt().tolist(), stepsize=ts.tolist(),
    )  # fmt: skip
    mine = solvers.last(solvers.gnc_flow(energy, ts, term, start)).x
    torch.testing.assert_close(flow(y, physics, init=start), mine, rtol=0, atol=1e-10)


def test_the_order_of_the_two_steps_does_not_change_the_end(deepinv, ours, energy, clean):
    """prox of the prior after a gradient of the data, or the other way: the same stationary point of D + R."""
    physics, y, term, start = problem(deepinv, "denoise", clean)
    sigma = 0.05
    data_first = deepinv.optim.PGD(
        data_fidelity=deepinv.optim.L2(sigma=NOISE), prior=ours.EnergyPrior(energy, tolerance=1e-9),
        stepsize=0.5 * NOISE**2, sigma_denoiser=sigma, max_iter=25,
    )  # fmt: skip
    theirs = data_first(y, physics, init=start)
    mine = solvers.last(solvers.proximal_gradient(energy, sigma**2, term, start, steps=300)).x
    slope = (theirs - y) / NOISE**2 + energy.grad(theirs, sigma**2)
    assert (NOISE**2 * slope).abs().max() < 1e-6
    assert (theirs - mine).abs().max() < 1e-5


# --- the denoiser -----------------------------------------------------------------------------------------


def test_denoiser_is_tweedie_s_formula_and_the_predefined_flow(deepinv, ours, energy, clean):
    y = data.add_noise(torch.cat([colour(clean), colour(clean.flip(-2))]), 0.1, seed=0)
    sigma = torch.tensor([0.06, 0.1], dtype=torch.float64)
    one, flow = ours.EnergyDenoiser(energy), ours.EnergyDenoiser(energy, steps=4)
    assert isinstance(one, deepinv.models.Denoiser)
    for b in range(2):
        s, grey = sigma[b].item(), y[b][:, None]
        expected = grey - s**2 * energy.grad(grey, s**2)
        torch.testing.assert_close(one(y, sigma)[b], expected[:, 0], rtol=0, atol=1e-12)
        ts, etas = schemes.predefined(energy, Task("denoise", 255 * s), 4)
        term = operators.Denoising(grey, s)
        expected = solvers.last(solvers.gnc_flow(energy, ts, term, step_sizes=etas)).x
        torch.testing.assert_close(flow(y, sigma)[b], expected[:, 0], rtol=0, atol=1e-9)
    noisy = data.add_noise(clean, 0.1, seed=1)
    for model in (one, flow):
        assert metrics.psnr(model(noisy, 0.1), clean).item() > metrics.psnr(noisy, clean).item() + 5


def test_sigma_of_each_channel_and_pixel(ours, energy, clean):
    y = data.add_noise(torch.cat([colour(clean), colour(clean.flip(-2))]), 0.1, seed=0)  # (2, 3, H, W)
    one, flow = ours.EnergyDenoiser(energy), ours.EnergyDenoiser(energy, steps=4)
    each = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64).reshape(1, 3, 1, 1)
    for model in (one, flow):
        apart = [model(y[:, c : c + 1], each[0, c].item()) for c in range(3)]
        torch.testing.assert_close(model(y, each), torch.cat(apart, 1), rtol=0, atol=1e-12)
    noise = 0.05 + 0.1 * torch.rand(
        clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    ts, etas = schemes.predefined(energy, Task("denoise", 255 * noise.max().item()), 4)
    term = operators.Denoising(y[:1, :1], noise)
    expected = solvers.last(solvers.gnc_flow(energy, ts, term, step_sizes=etas)).x
    torch.testing.assert_close(flow(y, noise)[:1, :1], expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="one value per pixel"):
        one(y, noise)
    for model in (one, flow):
        with pytest.raises(ValueError, match="range"):
            model(y, 0.001)


def test_denoiser_under_autocast(ours, clean):
    """Under autocast as without it, also for what a layer before it has rounded; the derivative too."""
    model, y = ours.EnergyDenoiser("R1"), data.add_noise(clean.float(), 0.1, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(y, 0.1)
        rounded = model(torch.nn.functional.conv2d(y, torch.ones(1, 1, 1, 1)), 0.1)
    torch.testing.assert_close(found, model(y, 0.1), rtol=0, atol=1e-6)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - found).abs().max() < 0.02


def test_denoiser_has_derivatives(ours, energy, clean):
    x = clean[..., :16, :16].clone().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    model = ours.EnergyDenoiser(energy)
    (found,) = torch.autograd.grad((model(x, 0.1) * direction).sum(), x)
    expected = direction - 0.01 * energy.hvp(x.detach(), 0.01, direction)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    with pytest.raises(RuntimeError, match="no derivative"):
        ours.EnergyDenoiser(energy, steps=3)(x, 0.1)


def test_plug_and_play(deepinv, ours, energy, clean):
    """deepinv's PnP with our one-step denoiser and step 1: the iteration written out, and a better image."""
    physics, y, _, start = problem(deepinv, "inpaint", clean)
    model = ours.EnergyDenoiser(energy)
    pnp = deepinv.optim.PGD(
        prior=deepinv.optim.PnP(model),
        data_fidelity=deepinv.optim.L2(),
        stepsize=1.0,
        sigma_denoiser=0.06,
        max_iter=20,
    )
    theirs = pnp(y, physics, init=start)
    x = start
    for _ in range(20):
        z = x - physics.mask * (x - y)
        x = z - 0.06**2 * energy.grad(z, 0.06**2)
    torch.testing.assert_close(theirs, x, rtol=0, atol=1e-11)
    assert metrics.psnr(theirs, clean).item() > metrics.psnr(start, clean).item() + 5


# --- deepinv's samplers -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Deprecated")
@pytest.mark.parametrize("name", ["ULA", "SKRock"])
def test_deepinv_s_samplers_have_our_posterior_mean(deepinv, ours, energy, clean, name):
    """Noise removed by sampling: two chains of theirs, whose difference is the Monte Carlo error, against MALA."""
    x, level, noise = clean[..., :16, :16], 0.1, 0.1
    y = data.add_noise(x, noise, seed=0)
    options = {"thresh_conv": 0.0, "clip": None, "thinning": 1, "burnin_ratio": 0.2, "sigma": level}
    if name == "ULA":  # the largest second derivative of the sum is about 200
        options |= {"step_size": 5e-4, "max_iter": 4000}
    else:
        options |= {"step_size": 5e-3, "max_iter": 400, "inner_iter": 5, "eta": 0.05}
    sampler = getattr(deepinv.sampling, name)(
        ours.EnergyPrior(energy), deepinv.optim.L2(sigma=noise), **options
    )
    physics = deepinv.physics.Denoising()
    theirs = torch.cat([sampler(y, physics, seed=k, x_init=y)[0] for k in (1, 2)])
    chain = sampling.mala(
        energy, level**2, operators.Denoising(y.repeat(4, 1, 1, 1), noise), gradients=1500,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    draws = torch.stack([sample.x for sample in chain])
    mean = draws.mean((0, 1))[None]
    error = (draws.var((0, 1)) / sampling.effective_size(draws)).mean()  # squared, of our mean
    error = error + (theirs[:1] - theirs[1:]).square().mean() / 4  # and that of the mean of theirs
    apart = (theirs.mean(0, keepdim=True) - mean).square().mean()
    assert apart < 2 * error
    assert (y - mean).square().mean() > 50 * error
