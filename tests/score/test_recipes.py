"""Recipes of the priors: each trains, K_1 is projected where it should be, and they are what the shipped files say."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from gnclib import load_prior
from gnclib.foe import WEIGHTS, FieldsOfExperts, FoEConfig
from gnclib.score import LEARN_RECIPES, PRIORS, RECIPES, LearnConfig, TrainConfig
from gnclib.score import run as training_run
from gnclib.score.recipes import variants
from gnclib.studies import ablations
from tests import child_runs


@pytest.mark.parametrize("name", PRIORS)
def test_a_few_iterations(name, tmp_path, drawn_images):
    small = replace(RECIPES[name], steps=3, batch=4, patch=32, wide=0.0, lr=0.01)
    trained = child_runs.run(training_run.start(name, small), tmp_path)
    again = load_prior(tmp_path)
    assert again.config == trained.config == PRIORS[name]
    begun = training_run.start(name, small).model
    card = (tmp_path / "README.md").read_text()
    if not isinstance(trained, FieldsOfExperts):
        assert all(
            not torch.equal(a, b) for a, b in zip(begun.parameters(), trained.parameters(), strict=True)
        )
        assert f"| parameters | {sum(p.numel() for p in begun.parameters())} |" in card
        return
    assert all(not torch.equal(a, b) for a, b in zip(begun.kernels, trained.kernels, strict=True))
    first, constant = trained.kernels[0].detach(), PRIORS[name].constant
    means, norms = first.mean((-1, -2)).abs().max(), first.flatten(1).norm(dim=1).max()
    assert constant == bool(means < 1e-6) == bool(norms < 1 + 1e-5)
    assert constant == bool(trained.offset.any())
    count = sum(p.numel() for p in begun.parameters()) - (0 if constant else begun.offset.numel())
    assert f"| parameters | {count} |" in card
    assert ("neither zero mean nor a bounded norm" in card) is (not constant)


@pytest.mark.parametrize("name", ["P1", "P2", "P3"])
def test_the_recipe_of_the_paper_s_is_that_of_the_shipped_priors(name):
    shipped = json.loads((WEIGHTS / name / "training.json").read_text())
    assert asdict(TrainConfig(**shipped["settings"])) == asdict(RECIPES[name])
    assert shipped["iterations"] == RECIPES[name].steps
    assert FoEConfig.from_dict(json.loads((WEIGHTS / name / "config.json").read_text())) == PRIORS[name]
    assert shipped["parameters"] == sum(p.numel() for p in training_run.start(name, RECIPES[name]).trained)


FILLED_IN = {"warm_start", "warm_start_sha256", "images", "images_sha256"}


def differing(stored, settings, apart=FILLED_IN):
    """What stored settings, which may lack later names, have of their own."""
    ours = asdict(settings)
    return {name: value for name, value in stored.items() if name not in apart and ours[name] != value}


@pytest.mark.parametrize("name", ["R1", "R2", "R3", "C3", "M1", "M3", "G1"])
def test_the_recipes_are_those_of_the_shipped_priors(name):
    shipped = json.loads((WEIGHTS / name / "training.json").read_text())
    kept = {"warm_start_hidden", "seed"} if name == "G1" else set()  # trained further from its own weights
    assert differing(shipped["settings"], RECIPES[name], FILLED_IN | kept) == {}
    assert shipped["iterations"] == RECIPES[name].steps
    assert load_prior(name).config == PRIORS[name]


def test_the_recipe_of_c1():
    """Its range of noise levels ends earlier than that of the training."""
    shipped = json.loads((WEIGHTS / "C1" / "training.json").read_text())
    assert differing(shipped["settings"], RECIPES["C1"], FILLED_IN) == {}
    assert shipped["iterations"] == RECIPES["C1"].steps


@pytest.mark.parametrize("path", sorted(WEIGHTS.glob("*-*/schedule.json")), ids=lambda path: path.parent.name)
def test_the_recipes_of_schedules(path):
    """Fine-tuning has its own; some took fewer iterations."""
    shipped = json.loads(path.read_text())["provenance"]["settings"]
    recipe = LEARN_RECIPES["finetune" if "finetuned" in path.parent.name else "schedule"]
    assert differing(shipped, recipe, FILLED_IN | {"iterations"}) == {}
    few = {f"{prior}-denoise-{sigma}": 200 for prior in ("R3", "C3") for sigma in (15, 25, 50)}
    few |= {f"G1-denoise-{sigma}": 200 for sigma in (15, 25, 50)} | {"G1-inpaint-80": 300}
    assert shipped["iterations"] == few.get(path.parent.name, recipe.iterations)


def test_the_variants_are_those_of_the_stored_ablations():
    stored = {run["variant"]: run["settings"] for run in json.loads(ablations.SHIPPED.read_text())["runs"]}
    for variant in variants():
        settings = stored.pop(variant.name)
        assert (
            differing(settings["prior"], variant.prior) == differing(settings["config"], variant.config) == {}
        )
        assert (settings["kernels"], settings["warm"]) == (
            variant.kernels,
            variant.warm and variant.warm.name,
        )
    assert stored == {}
    assert {variant.config.steps for variant in variants(7)} == {7}


def test_nothing_departs_from_eq_7_unless_it_is_asked_for():
    config = TrainConfig()
    names = ("lr_coarse", "hold", "emphasis", "roughness", "averaging", "seed")
    assert {getattr(config, name) for name in names} == {0}
    assert (config.objective, config.projected, config.roughness_hidden) == ("corrected", True, 1)
    assert (config.steps, config.batch, config.patch) == (100_000, 32, 48)
    assert (config.lr, config.lr_constant, config.lr_last) == (1e-3, 1e-2, 1e-5)
    assert (config.smoothing, config.fraction) == (5e-4, 0.125)


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        (TrainConfig, {"steps": 1, "objective": "restored", "batch": 1}, {"steps": 0}),
        (TrainConfig, {"lr": 0.999}, {"lr": 1.0}),
        (TrainConfig, {"lr_last": 1e-300}, {"lr_last": 0.0}),
        (TrainConfig, {"hold": 0.0, "averaging": 0.999}, {"averaging": 1.0}),
        (TrainConfig, {"smoothing": 0.0}, {"smoothing": -1e-300}),
        (TrainConfig, {"fraction": 1.0}, {"fraction": 0.0}),
        (TrainConfig, {"fraction": 1e-300}, {"fraction": 1.001}),
        (TrainConfig, {"batch": 2}, {"batch": 1}),  # the boundary term takes pairs
        (TrainConfig, {"batch": 1, "smoothing": 0.0}, {"batch": 1, "smoothing": 1e-9}),
        (TrainConfig, {"wide": 0.5, "objective": "denoising"}, {"wide": 0.5, "objective": "corrected"}),
        (TrainConfig, {"wide": 0.5, "smoothing": 0.0}, {"wide": 0.5, "objective": "vanishing"}),
        (LearnConfig, {"iterations": 1, "lr_prior": 0.0}, {"lr_prior": -1e-300}),
    ],
    ids=str,
)
def test_settings_at_their_limits(kind, inside, outside):
    assert {name: getattr(kind(**inside), name) for name in inside} == inside
    with pytest.raises(
        ValueError, match=f"{[*outside][-1]} must|batch must be >= 2|choose the objective denoising"
    ):
        kind(**outside)
