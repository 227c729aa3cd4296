"""Schemes against their formulas written out, tiles against the whole image, and what they refuse."""

import shutil

import numpy as np
import pytest
import torch

from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.images.data import add_noise
from gnclib.images.metrics import psnr
from gnclib.restore import evaluate, learned, schemes
from gnclib.restore.flow import last
from gnclib.restore.learned import LearnedSchedule, Task, weights_sha256
from gnclib.restore.operators import Denoising, Inpainting
from gnclib.restore.symmetry import Symmetrised
from gnclib.restore.tiles import Tiled

DENOISE, INPAINT = Task("denoise", 25), Task("inpaint", 0.8)


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    model = FieldsOfExperts(FoEConfig(layers=2, features=6, kernel_size=5, deep_kernel_size=3)).double()
    for parameter in model.parameters():  # away from the quadratic start
        parameter.data += 0.05 * torch.randn(parameter.shape, dtype=parameter.dtype)
    return model


@pytest.mark.parametrize(("shape", "tile"), [((64, 50), 16), ((33, 47), 20), ((20, 20), 64)])
def test_tiles_do_not_change_the_gradient(prior, shape, tile):
    y = torch.rand(1, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, tiled = prior.grad(y, 0.01), Tiled(prior, tile).grad(y, 0.01)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(tiled, whole, rtol=1e-10, atol=1e-10 * float(whole.abs().max()))


@pytest.mark.parametrize(("shape", "tile"), [((64, 50), 16), ((33, 47), 20), ((20, 20), 64), ((9, 40), 7)])
def test_tiles_do_not_change_the_energy_nor_its_derivatives_in_tau(prior, shape, tile):
    y = torch.rand(2, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tiled, t = Tiled(prior, tile), torch.tensor([0.01, 0.2], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(tiled.energy(y, t), prior.energy(y, t), rtol=1e-10, atol=1e-8)
        for order in (1, 2):
            expected = prior.dtau(y, t, order=order)
            torch.testing.assert_close(tiled.dtau(y, t, order=order), expected, rtol=1e-10, atol=1e-8)


@pytest.fixture
def folder(prior, tmp_path):
    """A prior with a learned schedule of two steps and a "fine-tuned" one beside it, as folders."""
    single = FieldsOfExperts(prior.config)
    single.load_state_dict(prior.state_dict())
    single.save_pretrained(tmp_path / "P")
    config = prior.config
    schedule = LearnedSchedule(
        [0.02, 0.005], [0.01, 0.004], t_range=(config.sigma_min**2, config.sigma_max**2), task=DENOISE,
        prior="P", prior_sha256=weights_sha256(FieldsOfExperts.from_pretrained(tmp_path / "P")),
    )  # fmt: skip
    schedule.save_pretrained(tmp_path / f"P-{DENOISE}")
    return tmp_path / "P"


def image(side=24, seed=2):
    return torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(seed))


def test_mmse_and_gnc_are_the_stated_formulas(folder):
    prior, y, sigma = FieldsOfExperts.from_pretrained(folder), image(), 25 / 255
    one = last(schemes.load("mmse", folder, DENOISE).states(Denoising(y, sigma))).x
    torch.testing.assert_close(one, y - sigma**2 * prior.grad(y, sigma**2))
    x, ts = y, [sigma**2, sigma * 0.01, 1e-4]  # equal ratios
    for t, eta in zip(ts, [ts[0] - ts[1], ts[1] - ts[2], ts[2]], strict=True):
        x = x - eta * prior.grad(x, t)
        x = (sigma**2 * x + eta * y) / (sigma**2 + eta)
    gnc = last(schemes.load("gnc", folder, DENOISE, 3, tile=12).states(Denoising(y, sigma))).x
    torch.testing.assert_close(gnc, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tile", [None, 12])
def test_the_symmetric_prior_knows_no_direction(folder, tile):
    """R_8 is the mean of eight energies, which differ; its derivatives are those that autograd finds of it, and a
    mirrored image has the mirrored result. Two images of 24 x 20 pixels, each with a t of its own."""
    whole = FieldsOfExperts.from_pretrained(folder).double()
    energy = Symmetrised(whole if tile is None else Tiled(whole, tile))
    y, v = (torch.cat([image(seed=k)[..., :20] for k in seeds]).double() for seeds in ((2, 3), (4, 5)))
    y, t = y.requires_grad_(True), torch.tensor([0.01, 0.1], dtype=y.dtype)
    turned = [torch.rot90(z, k, (2, 3)) for z in (y, y.mT) for k in range(4)]
    values = torch.stack([whole.energy(z, t) for z in turned])
    assert (values.std(0) > 1e-4 * values.mean(0).abs()).all()
    (grad,) = torch.autograd.grad(values.mean(0).sum(), y, create_graph=True)
    (product,) = torch.autograd.grad((grad * v).sum(), y)
    y, same = y.detach(), {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(energy.energy(y, t), values.detach().mean(0), **same)
    torch.testing.assert_close(energy.grad(y, t), grad.detach(), **same)
    torch.testing.assert_close(energy.hvp(y, t, v), product, **same)
    torch.testing.assert_close(
        energy.dtau(y, t)[1], torch.stack([whole.dtau(z.detach(), t)[1] for z in turned]).mean(0), **same
    )
    scheme = schemes.load("symmetric", folder, DENOISE, tile=tile)
    assert scheme.evaluations == 8
    x, other = (last(scheme.states(Denoising(z.float().contiguous(), 25 / 255))).x for z in (y, y.mT))
    expected = y - (25 / 255) ** 2 * energy.grad(y, (25 / 255) ** 2)
    torch.testing.assert_close(x, expected.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other, x.mT, rtol=1e-4, atol=1e-5)


def test_linear_is_the_flow_of_the_paper(folder):
    prior, y, sigma = FieldsOfExperts.from_pretrained(folder), image(), 25 / 255
    x, filled, data = (
        y,
        None,
        Inpainting(y, torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) < 0.2),
    )
    for t in (sigma**2, (sigma**2 + 1e-4) / 2, 1e-4):
        x = (sigma**2 * (x - t * prior.grad(x, t)) + t * y) / (sigma**2 + t)
    found = last(schemes.load("linear", folder, DENOISE, 3).states(Denoising(y, sigma))).x
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)
    for t in (0.03, (0.03 + 1e-4) / 2, 1e-4):
        z = data.start() if filled is None else filled
        filled = data.prox(z - t * prior.grad(z, t), t)
    found = last(schemes.load("linear", folder, INPAINT, 3).states(data)).x
    torch.testing.assert_close(found, filled, rtol=1e-4, atol=1e-5)


def test_gnc_fills_holes_with_full_steps(folder):
    prior, y = FieldsOfExperts.from_pretrained(folder), image()
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    data = Inpainting(y, mask)
    x = data.start()
    for t in (0.03, 0.03**0.5 * 0.01, 1e-4):
        x = torch.where(mask, y, x - t * prior.grad(x, t))
    found = last(schemes.load("gnc", folder, INPAINT, 3).states(data)).x
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def test_learned_scheme_takes_the_schedule_of_prior_and_task(folder):
    prior, y, sigma = FieldsOfExperts.from_pretrained(folder), image(), 25 / 255
    x = y
    for t, eta in ((0.02, 0.01), (0.005, 0.004)):
        x = x - eta * prior.grad(x, t)
        x = (sigma**2 * x + eta * y) / (sigma**2 + eta)
    scheme = schemes.load("learned", folder, DENOISE)
    assert (scheme.steps, scheme.evaluations) == (2, 2)
    torch.testing.assert_close(last(scheme.states(Denoising(y, sigma))).x, x, rtol=1e-4, atol=1e-5)


def test_a_fine_tuned_schedule_serves_its_own_level_only(folder):
    """Its prior was learned with it: there is none for the levels around."""
    tuned = f"{folder}-finetuned-denoise-25"
    prior = FieldsOfExperts.from_pretrained(folder)
    prior.save_pretrained(tuned)
    like = LearnedSchedule.from_pretrained(f"{folder}-denoise-25")
    like.save_pretrained(tuned)
    assert schemes.load("finetuned", folder, DENOISE).steps == 2
    with pytest.raises(FileNotFoundError, match="learned for"):
        schemes.load("finetuned", folder, Task("denoise", 24))


def test_between_two_noise_levels_the_schedule_is_a_geometric_mean(folder):
    low = LearnedSchedule.from_pretrained(f"{folder}-denoise-25")
    high = LearnedSchedule(
        [0.08, 0.01],
        [0.09, 0.001],
        t_range=low.t_range,
        task=Task("denoise", 100),
        prior_sha256=low.prior_sha256,
    )
    high.save_pretrained(f"{folder}-denoise-100")
    middle = schemes.load("learned", folder, Task("denoise", 50)).schedule  # half way in log sigma
    torch.testing.assert_close(middle.t, (low.t * high.t).sqrt())
    torch.testing.assert_close(middle.eta, (low.eta * high.eta).sqrt())
    assert torch.equal(schemes.load("learned", folder, Task("denoise", 100)).schedule.t, high.t)
    for level in (19.9, 126):
        with pytest.raises(FileNotFoundError, match="below and above"):
            schemes.load("learned", folder, Task("denoise", level))
    # just beyond the learned ones, up to a factor NEAR: in proportion to sigma^2
    for level, nearest in ((120, high), (21, low), (100 * learned.NEAR, high), (25 / learned.NEAR, low)):
        beyond = schemes.load("learned", folder, Task("denoise", level)).schedule
        ratio = (level / nearest.task.level) ** 2
        torch.testing.assert_close(beyond.t, (ratio * nearest.t).clamp(*low.t_range))
        torch.testing.assert_close(beyond.eta, ratio * nearest.eta)
        assert (beyond.task.level, beyond.prior_sha256) == (level, low.prior_sha256)
    longer = LearnedSchedule([0.1], t_range=low.t_range, task=high.task, prior_sha256=low.prior_sha256)
    with pytest.raises(ValueError, match="number of steps"):
        learned.between(low, longer, Task("denoise", 50))


def test_between_two_noise_levels_only_plain_schedules_count_and_those_of_the_package_first(
    folder, monkeypatch
):
    """Beside P-denoise-25 lies P-finetuned-denoise-40, as `gnc learn` names them: it belongs to other weights."""
    low = LearnedSchedule.from_pretrained(f"{folder}-denoise-25")
    kept = {"t_range": low.t_range, "prior_sha256": low.prior_sha256}
    LearnedSchedule([0.08, 0.01], task=Task("denoise", 100), **kept).save_pretrained(f"{folder}-denoise-100")
    tuned = LearnedSchedule(
        [0.05, 0.01], t_range=low.t_range, task=Task("denoise", 40), prior_sha256="0" * 64
    )
    tuned.save_pretrained(f"{folder}-finetuned-denoise-40")
    assert schemes.load("learned", folder, Task("denoise", 50)).schedule.prior_sha256 == low.prior_sha256

    package = folder.parent / "package"
    for level in (25, 100):
        shutil.copytree(f"{folder}-denoise-{level}", package / f"P-denoise-{level}")
    LearnedSchedule([0.07, 0.02], task=DENOISE, **kept).save_pretrained(f"{folder}-denoise-25")
    monkeypatch.setattr(learned, "WEIGHTS", package)
    monkeypatch.chdir(folder.parent)
    assert torch.equal(learned._learned_levels("P-denoise-50", Task("denoise", 50))[25.0].t, low.t)


def test_a_folder_named_like_a_prior_of_the_package_has_schedules_of_its_own(folder, monkeypatch):
    """./R3 is the folder, R3 that of the package; a slash at its end means nothing."""
    for suffix in ("", f"-{DENOISE}"):
        shutil.copytree(f"{folder}{suffix}", folder.parent / f"R3{suffix}")
    monkeypatch.chdir(folder.parent)
    own, t = FieldsOfExperts.from_pretrained(folder), LearnedSchedule.from_pretrained(f"{folder}-{DENOISE}").t
    for name in ("./R3", "./R3/", f"{folder.parent}/R3/"):
        for level in (25, 26):  # one that was learned, one near by
            found = schemes.load("learned", name, Task("denoise", level))
            assert torch.equal(found.prior.kernels[0], own.kernels[0])
            torch.testing.assert_close(found.schedule.t, (level / 25) ** 2 * t)
    assert schemes.load("learned", "R3", DENOISE).prior.config.features != own.config.features


def test_a_noise_level_up_to_rounding_is_the_one_that_was_learned(folder):
    task = Task("denoise", 255 * float(np.float32(25 / 255)))
    assert task != DENOISE
    assert torch.equal(
        schemes.load("learned", folder, task).schedule.t, schemes.load("learned", folder, DENOISE).schedule.t
    )


@pytest.mark.parametrize("level", [2.55, 255 * 0.01, 255 * float(np.float32(0.01)), 255])
def test_the_ends_of_the_range_of_the_prior_are_in_it(folder, level):
    """0.01 to 1 in grey values, 2.55 to 255 in grey levels; neither has a double of its own."""
    task, y = Task("denoise", level), image()
    for name in ("mmse", "gnc"):
        scheme = schemes.load(name, folder, task)
        assert bool(last(scheme.states(Denoising(y, task.sigma))).x.isfinite().all())
    ts, etas = schemes.predefined(scheme.prior, task, 10)
    assert bool((ts.diff() <= 0).all())
    assert etas.sum().item() == pytest.approx(task.sigma**2)


def test_a_schedule_of_other_weights_is_refused(folder):
    prior = FieldsOfExperts.from_pretrained(folder)
    prior.kernels[0].data *= 0.99
    prior.save_pretrained(folder)
    with pytest.raises(ValueError, match="learned with other weights"):
        schemes.load("learned", folder, DENOISE)


def test_a_schedule_of_another_task_is_refused(folder):
    shutil.move(f"{folder}-denoise-25", f"{folder}-inpaint-80")
    with pytest.raises(ValueError, match="learned for denoise-25, not for inpaint-80"):
        schemes.load("learned", folder, INPAINT)


def test_restoration_measures_the_problem_that_it_states(folder):
    x, sigma = image(), 25 / 255
    scheme = schemes.load("gnc", folder, DENOISE, 4)
    found = evaluate.restoration(scheme, x, 7)
    y = add_noise(x, sigma, 7)
    states = list(scheme.states(Denoising(y, sigma)))
    assert found.start == psnr(y, x).item()
    assert found.psnr == tuple(psnr(s.x, x).item() for s in states)
    prior = FieldsOfExperts.from_pretrained(folder)
    energy = (
        (states[-1].x - y).square().sum() / (2 * sigma**2) + prior.energy(states[-1].x, 1e-4)
    ) / x.numel()
    assert found.energy[-1] == pytest.approx(energy.item(), rel=1e-5)
    assert torch.equal(found.image, states[-1].x)


def test_the_known_pixels_of_image_k_are_those_below_a_fifth(folder):
    x = image(32)
    data = INPAINT.measure(x, torch.Generator().manual_seed(5))
    assert torch.equal(data.mask, torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) < 1 - 0.8)


@pytest.mark.parametrize(
    ("name", "task", "steps", "error", "message"),
    [
        ("dct", DENOISE, None, ValueError, "unknown scheme 'dct'"),
        (
            "mmse",
            INPAINT,
            None,
            ValueError,
            "cannot inpaint: choose one of gnc, linear, joint, learned, finetuned",
        ),
        ("mmse", DENOISE, 3, ValueError, "steps of its own"),
        ("gnc", DENOISE, 0, ValueError, "steps must be an integer >= 1"),
        ("joint", DENOISE, -1, ValueError, "steps must be an integer >= 1"),
        ("gnc", Task("denoise", 1), None, ValueError, r"sigma 1 is outside .* 2\.55 to 255"),
        ("learned", Task("denoise", 32), None, FileNotFoundError, "nothing was learned for"),
        ("finetuned", DENOISE, None, FileNotFoundError, "nothing was learned for"),
    ],
)
def test_refused(folder, name, task, steps, error, message):
    with pytest.raises(error, match=message):
        schemes.load(name, folder, task, steps)


def test_bfloat16_rounds_the_convolutions_between_channels_only():
    """Eight bits of mantissa: relative errors of some 2^-8 in R_3's gradient, none in R_1's, none in the energy."""
    y = torch.rand(1, 1, 40, 44, generator=torch.Generator().manual_seed(0))
    for prior, least, most in (("R3", 1e-5, 2**-6), ("R1", 0.0, 0.0)):
        exact, rounded = (
            schemes.load("mmse", prior, Task("denoise", 25), precision=p) for p in schemes.PRECISIONS
        )
        g, h = (scheme.prior.grad(y, 0.01) for scheme in (exact, rounded))
        assert least <= ((g - h).norm() / g.norm()).item() <= most
        assert torch.equal(exact.prior.energy(y, 0.01), rounded.prior.energy(y, 0.01))
    with pytest.raises(ValueError, match="unknown precision 'half': choose one of float32, bf16"):
        schemes.load("mmse", "R1", Task("denoise", 25), precision="half")


def test_refuses_an_unknown_prior_and_data_of_another_task(folder):
    with pytest.raises(FileNotFoundError, match="the shipped ones are C1, C3, G1, M1, M3, P1, P2, P3, R1"):
        schemes.load("gnc", "R7", DENOISE)
    with pytest.raises(ValueError, match="for the task denoise-25, got Inpainting"):
        schemes.load("gnc", folder, DENOISE).states(Inpainting(image(), torch.ones(24, 24)))
    with pytest.raises(ValueError, match="side of a tile"):
        schemes.load("gnc", folder, DENOISE, tile=0)
    with pytest.raises(ValueError, match="sigma nan is outside"):
        schemes.check_sigma(float("nan"), FieldsOfExperts.from_pretrained("R1"))


@pytest.mark.parametrize("device", ["teapot", "cuda:99", "meta", "cpu:1:1", ""])
def test_devices_that_are_not_there(device):
    with pytest.raises(ValueError, match=r"device .*use cpu"):
        schemes.load("mmse", "R1", Task("denoise", 25), device=device)
