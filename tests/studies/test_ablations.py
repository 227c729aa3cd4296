"""The yardsticks of the ablations on energies whose answers are known, the sweep itself, and the file it fills."""

import json
import math
from dataclasses import replace

import click
import pytest
import torch

from gnclib.cli.main import gnc
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.images import data
from gnclib.score import TrainConfig, TrainState
from gnclib.score.training import training
from gnclib.studies import ablation_run, ablations
from gnclib.studies.ablations import Judge, Variant
from tests.leaves import dead_leaves

TINY = FoEConfig(features=4, kernel_size=3, nodes_x=21, nodes_tau=5)
BRIEF = TrainConfig(steps=3, batch=4, patch=12, fraction=0.5)
TAUS = torch.linspace(-3, 0, 4)


class Gaussian:
    """Pixels independent N(1/2, v), smoothed: F = n/2 log(v + t) + ||y - 1/2||^2 / (2 (v + t))."""

    def __init__(self, v):
        self.v = v

    def dtau(self, y, t, order=2):
        first = (t - t * (y - 0.5) ** 2 / (self.v + t)) / (self.v + t)
        return first.sum((1, 2, 3)), None


def patches(v, count=400, size=12):
    return 0.5 + math.sqrt(v) * torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def test_calibration_vanishes_for_the_true_energy():
    value = ablations.calibration(Gaussian(0.04), patches(0.04), TAUS)
    assert value.shape == (4, 400)
    error = value.std(1) / math.sqrt(400)
    assert (value.mean(1).abs() < 6 * error).all()


def test_calibration_of_a_wrong_energy_is_what_theory_says():
    """With pixels N(1/2, u) instead of v the mean of d_tau F / n is t (v - u) / (v + t)^2."""
    u, v = 0.04, 0.16
    value = ablations.calibration(Gaussian(v), patches(u), TAUS)
    t = (2 * TAUS).exp()
    expected = t * (v - u) / (v + t) ** 2
    assert ((value.mean(1) - expected).abs() < 6 * value.std(1) / math.sqrt(400)).all()
    assert (expected > 30 * value.std(1) / math.sqrt(400)).any()  # the test could have failed


@pytest.mark.parametrize("taus", [torch.zeros(0), torch.zeros(2, 2), torch.tensor(0.0)])
def test_calibration_wants_a_vector_of_taus(taus):
    with pytest.raises(ValueError, match="taus must be a vector"):
        ablations.calibration(Gaussian(1.0), patches(1.0, 2), taus)


def test_calibration_wants_images():
    with pytest.raises(ValueError, match="shape"):
        ablations.calibration(Gaussian(1.0), torch.zeros(3, 8, 8), TAUS)


# --- curvature --------------------------------------------------------------------------------------------


class Quadratic:
    """y^T A y / 2 on images of 3 x 3 pixels; constant images are in the kernel of A."""

    def __init__(self, eigenvalues):
        generator = torch.Generator().manual_seed(2)
        vectors = torch.randn(9, 9, generator=generator, dtype=torch.float64)
        vectors[:, 0] = 1
        q, _ = torch.linalg.qr(vectors)
        self.matrix = q @ torch.diag(torch.tensor([0.0, *eigenvalues], dtype=torch.float64)) @ q.T

    def hvp(self, y, t, v):
        return (self.matrix @ v.flatten()).view_as(v)


@pytest.mark.parametrize("lowest", [-3.0, 0.25])
def test_smallest_eigenvalue_of_a_quadratic_leaves_constants_out(lowest):
    energy = Quadratic([lowest, 1, 2, 3, 4, 5, 6, 7])
    y = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    for steps in (8, 100):
        assert ablations.smallest_eigenvalue(energy, y, 0.5, steps) == pytest.approx(0.25 * lowest, abs=1e-9)
    assert ablations.smallest_eigenvalue(energy, y, 0.5, 3) >= 0.25 * lowest - 1e-9  # Ritz values lie above


def test_smallest_eigenvalue_of_a_prior_is_that_of_its_dense_hessian():
    prior = FieldsOfExperts(TINY).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    prior.weights[0] += 5.0 * torch.randn(prior.weights[0].shape, generator=generator)
    y = torch.rand(1, 1, 9, 9, generator=generator, dtype=torch.float64)
    basis = torch.eye(81, dtype=torch.float64).view(81, 1, 1, 9, 9)
    hessian = 0.09 * torch.stack([prior.hvp(y, 0.09, v).flatten() for v in basis])
    expected = torch.linalg.eigvalsh(hessian + torch.ones(81, 81) * 10)[0].item()  # lifts the constant image
    assert expected < -0.1
    assert ablations.smallest_eigenvalue(prior, y, 0.3, 60) == pytest.approx(expected, rel=1e-6)


def test_smallest_eigenvalue_takes_one_image_and_some_steps():
    with pytest.raises(ValueError, match="one image"):
        ablations.smallest_eigenvalue(None, torch.zeros(2, 1, 9, 9), 0.1)
    with pytest.raises(ValueError, match="steps"):
        ablations.smallest_eigenvalue(None, torch.zeros(1, 1, 9, 9), 0.1, 0)


# --- the sweep --------------------------------------------------------------------------------------------

JUDGE = Judge(sigmas=(0.1, 0.3), levels=3, patches=5, size=10, curvature_at=(0.3,), curved=2)


def leaves(count=2):
    return {str(k): dead_leaves(32, 32, torch.Generator().manual_seed(k)) for k in range(count)}


def test_sweep_repeats_itself_and_judges_what_it_trained():
    held_out = [dead_leaves(24, 24, torch.Generator().manual_seed(9))]
    variants = [Variant("dct", TINY, BRIEF), Variant("random", TINY, BRIEF, "random")]
    first, again = (list(ablations.sweep(variants, [0, 1], leaves(), held_out, JUDGE)) for _ in range(2))
    assert [(r.variant, r.seed) for r in first] == [("dct", 0), ("random", 0), ("dct", 1), ("random", 1)]
    assert first == again
    assert len({r.psnr for r in first}) == 4
    x = data.patches(held_out, 10, 5, torch.Generator().manual_seed(0))
    for r in first:
        assert r.taus == pytest.approx((math.log(0.01), math.log(0.1), 0.0), abs=1e-12)
        profile = ablations.calibration(r.prior, x, torch.tensor(r.taus))
        assert r.profile == pytest.approx(profile.mean(1).tolist(), abs=1e-5)
        assert r.error == pytest.approx((profile.std(1) / math.sqrt(5)).tolist(), abs=1e-5)
        assert r.calibration == pytest.approx(profile.mean(1).abs().mean().item(), abs=1e-5)
        exact = r.prior.double()
        values = [
            ablations.smallest_eigenvalue(exact, data.add_noise(x[k : k + 1].double(), 0.3, k), 0.3)
            for k in range(2)
        ]
        assert r.curvature == pytest.approx((min(values),), abs=1e-5)


def test_sweep_skips_what_is_known():
    held_out = [dead_leaves(24, 24, torch.Generator().manual_seed(9))]
    variants = [Variant("a", TINY, BRIEF), Variant("b", TINY, replace(BRIEF, lr=0.01))]
    known = {("a", 0), ("b", 1)}
    everything = list(ablations.sweep(variants, [0, 1], leaves(), held_out, JUDGE))
    rest = list(ablations.sweep(variants, [0, 1], leaves(), held_out, JUDGE, known))
    assert rest == [r for r in everything if (r.variant, r.seed) not in known]


def test_a_warm_start_sets_out_from_the_trained_shallow_variant():
    """With a vanishing learning rate a warm start keeps the kernels, potentials and constant that it starts from."""
    held_out = [dead_leaves(24, 24, torch.Generator().manual_seed(9))]
    shallow = Variant("shallow", TINY, BRIEF)
    still = replace(BRIEF, patch=16, lr=1e-9, lr_constant=1e-9, lr_last=1e-9)
    deep = Variant("deep", replace(TINY, layers=2), still, warm=shallow)
    (warm,) = ablations.sweep([deep], [5], leaves(), held_out, JUDGE)
    before, after = ablations.sweep([shallow, deep], [5], leaves(), held_out, JUDGE)
    assert after == warm
    assert after.seconds > before.seconds > 0
    assert torch.allclose(warm.prior.kernels[0], before.prior.kernels[0], atol=1e-6)
    assert torch.allclose(warm.prior.weights[-1], before.prior.weights[0], atol=1e-6)
    assert torch.allclose(warm.prior.offset, before.prior.offset, atol=1e-6)
    (cold,) = ablations.sweep([replace(deep, warm=None)], [5], leaves(), held_out, JUDGE)
    assert torch.allclose(cold.prior.kernels[0], FieldsOfExperts(TINY).kernels[0], atol=1e-6)
    assert not torch.allclose(warm.prior.kernels[0], cold.prior.kernels[0], atol=1e-3)


def test_averaged_weights_are_what_is_judged():
    held_out = [dead_leaves(24, 24, torch.Generator().manual_seed(9))]
    averaged = Variant("averaged", TINY, replace(BRIEF, averaging=0.9))
    last, mean = ablations.sweep([Variant("last", TINY, BRIEF), averaged], [2], leaves(), held_out, JUDGE)
    state = TrainState(ablations.build(averaged, 2), replace(averaged.config, seed=2))
    for _ in training(state, leaves()):
        pass
    assert torch.equal(last.prior.weights[0], state.model.weights[0])
    assert torch.equal(mean.prior.weights[0], state.average.module.weights[0])
    assert mean.psnr != last.psnr


@pytest.mark.parametrize(
    ("variants", "says"),
    [
        ([], "at least one"),
        ([Variant("a", TINY, BRIEF), Variant("a", TINY, replace(BRIEF, lr=0.01))], "different names"),
    ],
)
def test_sweep_refuses_what_cannot_be_compared(variants, says):
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=says):
        next(ablations.sweep(variants, [0], [image], [image]))


def test_a_judge_wants_both_ends_of_the_noise_levels():
    with pytest.raises(ValueError, match="levels must be at least 2"):
        Judge(levels=1)


def test_sweep_never_trains_on_the_benchmark():
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="BSDS68"):
        next(ablations.sweep([Variant("a", TINY, BRIEF)], [0], {data.bsds68_ids()[3]: image}, [image]))


# --- the file and the command -----------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The command with two tiny variants, no BSDS500, and a tiny judge."""
    pair = lambda steps: [  # noqa: E731
        Variant("recipe", TINY, replace(BRIEF, steps=steps)),
        Variant("other", TINY, replace(BRIEF, steps=steps), "random"),
    ]
    monkeypatch.setattr(ablation_run, "variants", lambda steps=3: pair(steps))
    monkeypatch.setattr(ablation_run, "JUDGE", JUDGE)
    monkeypatch.setattr(data, "training_images", leaves)
    monkeypatch.setattr(ablation_run, "held_out", lambda: [leaves(1)["0"]])


def command(*words):
    with gnc.make_context("gnc", ["ablate", *map(str, words)]) as context:
        gnc.invoke(context)


def without_seconds(path):
    content = ablation_run.load(path)
    return content | {
        "runs": [{k: v for k, v in run.items() if k != "cpu_seconds"} for run in content["runs"]]
    }


def test_a_killed_sweep_goes_on_and_ends_as_if_it_had_not_been(small, tmp_path, monkeypatch, capsys):
    command("--steps", 3, "--out", tmp_path / "whole.json")
    kept, calls = ablation_run.add, []

    def killed(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(kept(*args))

    monkeypatch.setattr(ablation_run, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        command("--steps", 3, "--out", tmp_path / "parts.json")
    assert [(r["variant"], r["seed"]) for r in ablation_run.load(tmp_path / "parts.json")["runs"]] == [
        ("recipe", 0)
    ]
    monkeypatch.setattr(ablation_run, "add", kept)
    command("--steps", 3, "--out", tmp_path / "parts.json")
    assert without_seconds(tmp_path / "parts.json") == without_seconds(tmp_path / "whole.json")
    capsys.readouterr()
    command("--steps", 3, "--out", tmp_path / "parts.json")
    assert capsys.readouterr().out.startswith("0 trainings to do, 4 in ")


def test_runs_of_other_settings_are_not_mixed(small, tmp_path, monkeypatch):
    path = tmp_path / "sweep.json"
    command("--steps", 3, "--out", path, "--only", "recipe", "--seeds", 0)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="other settings"):
        command("--steps", 4, "--out", path)
    monkeypatch.setattr(ablation_run, "JUDGE", replace(JUDGE, levels=4))
    with pytest.raises(ValueError, match="judged otherwise"):
        command("--steps", 3, "--out", path)
    assert path.read_bytes() == before


def test_settings_that_did_not_exist_yet_count_as_defaults(small, tmp_path):
    path = tmp_path / "sweep.json"
    command("--steps", 3, "--out", path, "--only", "recipe", "--seeds", 0)
    content = json.loads(path.read_text())
    del content["variants"]["recipe"]["config"]["roughness"]
    ablation_run.check(content, ablation_run.variants(3))
    content["variants"]["recipe"]["config"]["roughness"] = 3.0
    with pytest.raises(ValueError, match="other settings"):
        ablation_run.check(content, ablation_run.variants(3))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"runs": []}'])
def test_what_is_no_result_file(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="no file of ablations"):
        ablation_run.load(tmp_path / "a.json")


def test_the_command_refuses_nonsense(small, tmp_path):
    with pytest.raises(click.UsageError, match="nothing"):
        command("--only", "nothing", "--out", tmp_path / "a.json")


def test_variants_differ_from_the_recipe_in_one_ingredient():
    recipe, *others = ablation_run.variants()
    assert (recipe.config.objective, recipe.config.roughness, recipe.config.batch) == ("denoising", 10.0, 16)
    deep = {v.name: v for v in others if v.prior.layers > 1}
    steps = {"R_3 magnitudes": "R_3 lambda / 5", "R_3 dilated": "R_3 magnitudes"}  # others: "R_3 warm"
    for v in others:
        if v.prior.layers == 1:
            base, linked = recipe, {"range", "nodes_x"} if not v.prior.scaled_input else set()
        else:
            base, linked = deep[steps.get(v.name, "R_3 warm")], {"roughness_hidden"}
        old, new = ablation_run.settings(base), ablation_run.settings(v)
        changed = {
            key
            for part in ("prior", "config")
            for key in old[part]
            if old[part][key] != new[part][key] and key not in linked
        }
        changed |= {key for key in ("kernels", "warm") if old[key] != new[key]}
        assert len(changed) == (0 if v is others[0] else 1), v.name


def test_the_shipped_results_are_those_of_the_present_variants():
    content, variants = ablation_run.load(), ablation_run.variants()
    ablation_run.check(content, variants)
    assert content["variants"].keys() == {v.name for v in variants}
    sizes = [len(judged) for judged in (content["judge"]["sigmas"], content["judge"]["curvature_at"])]
    for v in variants:
        runs = [run for run in content["runs"] if run["variant"] == v.name]
        assert len({run["seed"] for run in runs}) == len(runs) >= 2, v.name
        for run in runs:
            assert [len(run["psnr"]), len(run["curvature"])] == sizes
            assert len(run["profile"]) == len(run["error"]) == content["judge"]["levels"]
            assert all(map(math.isfinite, run["psnr"] + run["profile"] + run["error"] + run["curvature"]))
            assert not run["revision"].endswith("dirty")


def test_joint_outcome_is_that_of_algorithm_2():
    """Against the algorithm written out, with the closed-form prox, on two small images."""
    prior = FieldsOfExperts(FoEConfig(features=4, kernel_size=3), generator=torch.Generator().manual_seed(0))
    images = [torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(k)) for k in (5, 6)]
    psnr, sigma = ablations.joint_outcome(prior, images, sigma=0.1, sigma_first=0.3, steps=3)
    expected = []
    for k, x in enumerate(images):
        y = data.add_noise(x, 0.1, k)
        current, tau = y, torch.tensor([math.log(0.3)])
        for _ in range(3):
            t = (2 * tau).exp()
            v = current - t * prior.grad(current, t)
            current = (0.01 * v + t * y) / (0.01 + t)
            tau = tau - prior.dtau(current, t, order=1)[0] / (2 * 256)
            tau = tau.clamp(math.log(prior.config.sigma_min), math.log(0.3))
        expected.append((-10 * ((current - x) ** 2).mean().log10().item(), tau.exp().item()))
    assert psnr == pytest.approx(sum(e[0] for e in expected) / 2, rel=1e-5)
    assert sigma == pytest.approx(sum(e[1] for e in expected) / 2, rel=1e-5)
