"""The yardsticks of the ablations on energies whose answers are known, the sweep itself, and the file it fills."""

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from gnclib.cli import training as _real_choices  # noqa: F401  (imported before the lists are exchanged)
from gnclib.cli.main import gnc
from gnclib.deep import NetworkConfig, NetworkEnergy
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.images import data
from gnclib.io.table import Job
from gnclib.score import TrainConfig, TrainState, training_set
from gnclib.score import run as score_run
from gnclib.score.recipes import (
    PRIORS,
    RECIPES,
    VARIANTS,
    departure_variants,
    network_variants,
    window_variants,
)
from gnclib.score.training import load_checkpoint, training
from gnclib.studies import ablations
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


def test_calibration_wants_images():
    with pytest.raises(ValueError, match="images must have shape"):
        ablations.calibration(FieldsOfExperts(TINY), torch.zeros(3, 8, 8), TAUS)


# --- the sweep --------------------------------------------------------------------------------------------

JUDGE = Judge(sigmas=(0.1, 0.3), levels=3, patches=5, size=10, curvature_at=(0.3,), curved=2)


def leaves(count=2):
    return {str(k): dead_leaves(32, 32, torch.Generator().manual_seed(k)) for k in range(count)}


def crops():
    return [dead_leaves(24, 24, torch.Generator().manual_seed(9))]


def sweep(variants, seeds=(0,), images=None, **options):
    """(variant, seed) -> columns, without the time."""
    found = {}
    for job in ablations.jobs(variants, seeds, images or leaves(), crops(), JUDGE, **options):
        values = job.compute()
        assert values.pop("cpu_seconds") >= 0
        found[job.given["variant"], job.given["seed"]] = values
    return found


def test_trainings_repeat_themselves_and_are_judged():
    variants = [Variant("dct", TINY, BRIEF), Variant("random", TINY, BRIEF, "random")]
    first, again = (sweep(variants, [0, 1], joint={"dct"}) for _ in range(2))
    assert list(first) == [("dct", 0), ("random", 0), ("dct", 1), ("random", 1)]
    assert first == again
    assert len({tuple(found["psnr"]) for found in first.values()}) == 4
    x = data.patches(crops(), 10, 5, torch.Generator().manual_seed(0))
    taus = torch.tensor([math.log(0.01), math.log(0.1), 0.0])
    for variant in variants:
        found, (prior, *_) = first[variant.name, 1], ablations.train(variant, 1, leaves(), {})
        profile = ablations.calibration(prior, x, taus)
        assert found["profile"] == pytest.approx(profile.mean(1).tolist(), abs=1e-5)
        assert found["error"] == pytest.approx((profile.std(1) / math.sqrt(5)).tolist(), abs=1e-5)
        outcome = list(ablations.joint_outcome(prior, crops()))
        assert found["joint"] == (pytest.approx(outcome, abs=1e-5) if variant.name == "dct" else None)
        exact = prior.double()
        lowest = []
        for k in range(2):  # of the dense Hessian, the constant image lifted
            y = data.add_noise(x[k : k + 1].double(), 0.3, k)
            basis = torch.eye(100, dtype=torch.float64).view(100, 1, 1, 10, 10)
            hessian = 0.09 * torch.stack([exact.hvp(y, 0.09, v).detach().flatten() for v in basis])
            lowest.append(torch.linalg.eigvalsh(hessian + torch.ones(100, 100))[0].item())
        assert found["curvature"] == pytest.approx([min(lowest)], abs=1e-4)


def test_a_network_is_trained_and_judged():
    """Its curvature is that of the dense Hessian, the constant image as any other."""
    network = NetworkConfig(channels=(4, 4), embedding=4)
    variant = Variant("network", network, replace(BRIEF, optimiser="adam"))
    found = sweep([variant], [0])["network", 0]
    prior, *_ = ablations.train(variant, 0, leaves(), {})
    assert isinstance(prior, NetworkEnergy)
    x, exact, lowest = data.patches(crops(), 10, 5, torch.Generator().manual_seed(0)), prior.double(), []
    for k in range(2):
        y = data.add_noise(x[k : k + 1].double(), 0.3, k)
        basis = torch.eye(100, dtype=torch.float64).view(100, 1, 1, 10, 10)
        hessian = 0.09 * torch.stack([exact.hvp(y, 0.09, v).flatten() for v in basis])
        lowest.append(torch.linalg.eigvalsh(hessian)[0].item())
    assert found["curvature"] == pytest.approx([min(lowest)], abs=1e-3)


def test_the_order_and_what_was_trained_before_do_not_matter():
    variants = [Variant("a", TINY, BRIEF), Variant("b", TINY, replace(BRIEF, lr=0.01))]
    everything = sweep(variants, [0, 1])
    for variant in variants:
        assert sweep([variant], [1]) == {(variant.name, 1): everything[variant.name, 1]}


def test_a_warm_start_sets_out_from_the_trained_shallow_variant():
    """With a vanishing learning rate a warm start keeps the kernels, potentials and constant that it starts from."""
    shallow = Variant("shallow", TINY, BRIEF)
    still = replace(BRIEF, patch=16, lr=1e-9, lr_constant=1e-9, lr_last=1e-9)
    deep = Variant("deep", replace(TINY, layers=2), still, warm=shallow)
    known = {}
    before, seconds, _ = ablations.train(shallow, 5, leaves(), known)
    warm, more, _ = ablations.train(deep, 5, leaves(), known)
    assert more > seconds > 0
    assert {variant for variant, _ in known} == {replace(shallow, name="")}
    alone, *_ = ablations.train(deep, 5, leaves(), {})
    assert torch.equal(alone.kernels[0], warm.kernels[0])
    assert torch.allclose(warm.kernels[0], before.kernels[0], atol=1e-6)
    assert torch.allclose(warm.weights[-1], before.weights[0], atol=1e-6)
    assert torch.allclose(warm.offset, before.offset, atol=1e-6)
    cold, *_ = ablations.train(replace(deep, warm=None), 5, leaves(), {})
    assert torch.allclose(cold.kernels[0], FieldsOfExperts(TINY).kernels[0], atol=1e-6)
    assert not torch.allclose(warm.kernels[0], cold.kernels[0], atol=1e-3)


def test_averaged_weights_are_what_is_judged():
    averaged, known = Variant("averaged", TINY, replace(BRIEF, averaging=0.9)), {}
    last, mean = (ablations.train(v, 2, leaves(), {})[0] for v in (Variant("last", TINY, BRIEF), averaged))
    ablations.train(averaged, 2, leaves(), known)  # one training has both
    both = [
        ablations.train(v, 2, {}, known)[0] for v in (Variant("b", TINY, BRIEF), replace(averaged, name="c"))
    ]
    for found, alone in zip(both, (last, mean), strict=True):
        assert all(torch.equal(found.state_dict()[k], v) for k, v in alone.state_dict().items())
    generator = torch.Generator().manual_seed(2)
    state = TrainState(FieldsOfExperts(TINY, generator=generator), replace(averaged.config, seed=2))
    for _ in training(state, leaves()):
        pass
    assert torch.equal(last.weights[0], state.model.weights[0])
    assert torch.equal(mean.weights[0], state.average.module.weights[0])
    assert not torch.equal(mean.weights[0], last.weights[0])


def test_a_judge_wants_both_ends_of_the_noise_levels():
    with pytest.raises(ValueError, match="levels must be"):
        Judge(levels=1)


def test_no_variant_is_trained_on_the_benchmark():
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="BSDS68"):
        sweep([Variant("a", TINY, BRIEF)], images={data.bsds68_ids()[3]: image})


# --- the file and the command -----------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The command with two tiny variants, no BSDS500, and a tiny judge."""
    pair = lambda steps=1: [  # noqa: E731
        Variant("recipe", TINY, replace(BRIEF, steps=steps)),
        Variant("lambda = 0", TINY, replace(BRIEF, steps=steps), "random"),
    ]
    monkeypatch.setitem(VARIANTS, "", pair)
    monkeypatch.setitem(ablations.KINDS, "", (ablations.SHIPPED, JUDGE))
    monkeypatch.setattr(ablations, "JUDGE", JUDGE)
    monkeypatch.setattr(data, "training_images", leaves)
    monkeypatch.setattr(ablations, "held_out", crops)


def command(*words):
    with gnc.make_context("gnc", ["ablate", *map(str, words)]) as context:
        gnc.invoke(context)


def without_seconds(path):
    return [row.model_copy(update={"cpu_seconds": 0}) for row in ablations.load(path).rows["runs"]]


def test_a_killed_sweep_goes_on_and_ends_as_if_it_had_not_been(small, tmp_path, monkeypatch, capsys):
    command("--steps", 3, "--out", tmp_path / "whole.json")
    kept, calls = ablations.train, []

    def killed(*args):
        calls.append(args[0].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return kept(*args)

    monkeypatch.setattr(ablations, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        command("--steps", 3, "--out", tmp_path / "parts.json")
    assert [(r.variant, r.seed) for r in ablations.load(tmp_path / "parts.json").rows["runs"]] == [
        ("recipe", 0)
    ]
    command("--steps", 3, "--out", tmp_path / "parts.json")
    assert without_seconds(tmp_path / "parts.json") == without_seconds(tmp_path / "whole.json")
    capsys.readouterr()
    command("--steps", 3, "--out", tmp_path / "parts.json")
    assert capsys.readouterr().out.startswith("0 trainings to do, 4 in ")


def test_runs_of_another_judge_or_length_are_not_mixed(small, tmp_path, monkeypatch):
    path = tmp_path / "sweep.json"
    command("--steps", 3, "--out", path, "--only", "recipe", "--seeds", 0)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="its steps is 3, not 4"):
        command("--steps", 4, "--out", path)
    monkeypatch.setitem(ablations.KINDS, "", (ablations.SHIPPED, replace(JUDGE, levels=4)))
    with pytest.raises(ValueError, match="its levels is 3, not 4"):
        command("--steps", 3, "--out", path)
    assert path.read_bytes() == before


def test_settings_that_did_not_exist_yet_count_as_defaults(small, tmp_path):
    path = tmp_path / "sweep.json"
    command("--steps", 3, "--out", path, "--only", "recipe", "--seeds", 0)
    jobs = list(ablations.jobs(VARIANTS[""](3)[:1], [0], leaves(), crops(), JUDGE))
    content = json.loads(path.read_text())
    config = content["runs"][0]["settings"]["config"]
    del config["roughness"]
    path.write_text(json.dumps(content))
    assert ablations.opened(path, 3).missing("runs", jobs) == []
    config["roughness"] = 3.0
    path.write_text(json.dumps(content))
    assert ablations.opened(path, 3).missing("runs", jobs) == jobs
    config["roughness"] = "much"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no file of ablations"):
        ablations.load(path)


def test_long_trainings_go_on_where_they_were_stopped(small, tmp_path, monkeypatch):
    """Each is a run in a folder beside the file; one of other settings is not continued, last weights are shared."""
    part = lambda steps=4: [  # noqa: E731
        Variant("plain", TINY, replace(BRIEF, steps=steps)),
        Variant("+ a, b/c", TINY, replace(BRIEF, steps=steps, averaging=0.5)),
    ]
    monkeypatch.setitem(VARIANTS, "departures", part)
    monkeypatch.setitem(ablations.KINDS, "departures", (ablations.DEPARTURES, JUDGE))
    monkeypatch.setattr(
        training_set, "of_run", lambda state: training_set.TrainingSet(leaves(), crops(), "", "")
    )
    words = "--departures", "--seeds", 0, "--out"
    command(*words, tmp_path / "whole.json")
    rows = ablations.load(tmp_path / "whole.json").rows["runs"]
    alone = {key: found for v in part() for key, found in sweep([v]).items()}
    assert [row.variant for row in rows] == ["+ a, b/c", "plain"]
    assert [path.name for path in (tmp_path / "whole_runs").iterdir()] == ["a_b_c_0"]
    for row in rows:
        assert row.psnr == pytest.approx(alone[row.variant, 0]["psnr"], abs=1e-4)

    made = []

    def watched(state, images, group):
        for step in training(state, images, group):
            made.append(step.step)
            if len(made) == 3:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(score_run, "training", watched)
    monkeypatch.setattr(score_run, "drive", partial(score_run.drive, every=1))
    with pytest.raises(KeyboardInterrupt):
        command(*words, tmp_path / "parts.json")
    folder = tmp_path / "parts_runs" / "a_b_c_0"
    assert load_checkpoint(folder).step == 2
    monkeypatch.setitem(VARIANTS, "departures", lambda: part(5))
    with pytest.raises(ValueError, match="a_b_c_0 holds a run with other settings"):
        command(*words, tmp_path / "parts.json")
    monkeypatch.setitem(VARIANTS, "departures", part)
    command(*words, tmp_path / "parts.json")
    assert made == [1, 2, 3, 3, 4]
    assert without_seconds(tmp_path / "parts.json") == without_seconds(tmp_path / "whole.json")
    assert {path.name for path in folder.iterdir()} >= {"log.csv", "README.md", "model.safetensors"}


def test_the_way_from_P1_to_R1_takes_one_departure_after_the_other():
    known = departure_variants()
    ends = [(v.prior, v.config) for v in (known[0], known[-1])]
    assert ends == [(PRIORS[name], RECIPES[name]) for name in ("P1", "R1")]
    changes = []
    for before, after in pairwise(known):
        old, new = ablations.settings(before), ablations.settings(after)
        changes.append({k for part in ("prior", "config") for k in old[part] if old[part][k] != new[part][k]})
    assert changes == [
        {"averaging"},
        {"objective", "fraction"},
        {"projected", "constant"},
        {"scaled_input", "range", "nodes_x"},
        {"roughness"},
    ]


def test_the_command_refuses_nonsense(small, tmp_path):
    for words in (["--only", "nothing"], ["--only", "G1"], ["--network", "--only", "recipe"]):
        with pytest.raises(ValueError, match=f"^{words[-1]}: .*other lists: --network, --windows, --dep"):
            command(*words, "--out", tmp_path / "a.json")


def test_variants_differ_from_the_recipe_in_one_ingredient():
    recipe, *others = VARIANTS[""]()
    assert (recipe.config.objective, recipe.config.roughness, recipe.config.batch) == ("denoising", 10.0, 16)
    deep = {v.name: v for v in others if v.prior.layers > 1}
    steps = {"R_3 magnitudes": "R_3 lambda / 5", "R_3 dilated": "R_3 magnitudes"}  # others: "R_3 warm"
    for v in others:
        if v.prior.layers == 1:
            base, linked = recipe, {"range", "nodes_x"} if not v.prior.scaled_input else set()
        else:
            base, linked = deep[steps.get(v.name, "R_3 warm")], {"roughness_hidden"}
        old, new = ablations.settings(base), ablations.settings(v)
        changed = {
            key
            for part in ("prior", "config")
            for key in old[part]
            if old[part][key] != new[part][key] and key not in linked
        }
        changed |= {key for key in ("kernels", "warm") if old[key] != new[key]}
        assert len(changed) == (0 if v is others[0] else 1), v.name


def test_variants_of_the_network_differ_from_it_in_one_ingredient():
    recipe, *others = network_variants()
    for v in others:
        old, new = ablations.settings(recipe), ablations.settings(v)
        changed = {k for part in ("prior", "config") for k in old[part] if old[part][k] != new[part][k]}
        assert changed in ({"sigma_open", "sigma_convex"}, {"channels"}, {"smoothing"}, {"optimiser"}), v.name


def test_networks_for_one_window_differ_in_their_gate_alone():
    for bent, linear in zip(*[iter(window_variants())] * 2, strict=True):
        assert bent.name.replace("bent", "linear") == linear.name
        assert bent == replace(linear, name=bent.name, prior=bent.prior)
        assert bent.prior == replace(linear.prior, sigma_open=19.9, sigma_convex=20.0)
        low, high = ((NetworkEnergy(v.prior), math.log(s)) for v, s in ((linear, 0.06), (bent, 19.0)))
        assert low[0].gate(torch.tensor(low[1])) == 0
        assert high[0].gate(torch.tensor(high[1])) == 1
    names = [v.name for made in VARIANTS.values() for v in made()]
    assert len(names) == len({*names})
    assert VARIANTS.keys() == ablations.KINDS.keys()


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_shipped_results_are_those_of_the_present_variants(kind):
    """Those of networks saw zeros beyond the border; ``gnc ablate`` would train them anew."""
    (path, judge), known = ablations.KINDS[kind], {v.name: v for v in VARIANTS[kind]()}
    content, (steps,) = ablations.load(path), {v.config.steps for v in known.values()}
    assert content.about == ablations.opened(path, steps, judge).about
    runs = content.rows["runs"]
    assert {run.variant for run in runs} == known.keys()
    twice = {"": known, "network": ("G1", "no gate")}.get(kind, ())
    assert all({run.seed for run in runs if run.variant == name} == {0, 1} for name in twice)
    assert {run.seed for run in runs} == ({0, 1} if twice else {0})
    for run in runs:
        settings = Job({}, ablations.settings(known[run.variant]), dict).depends
        if kind in ("network", "windows"):
            assert settings["prior"]["border"] == "reflected"
            settings |= {"prior": settings["prior"] | {"border": "zeros"}}
        assert run.settings == settings
        assert (len(run.psnr), len(run.curvature)) == (len(judge.sigmas), len(judge.curvature_at))
        assert len(run.profile) == len(run.error) == judge.levels
        assert (run.joint is not None) == (run.variant in ablations.JOINT)
        assert "dirty" not in f"{run.made}"


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
