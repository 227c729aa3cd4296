"""Recipes of the priors: each trains, K_1 is projected where it should be, and P1 is the shipped one's."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from gnclib.foe import WEIGHTS, FieldsOfExperts, FoEConfig
from gnclib.score import PRIORS, RECIPES, TrainConfig
from gnclib.score import run as training_run
from tests import child_runs


@pytest.mark.parametrize("name", PRIORS)
def test_a_few_iterations(name, tmp_path, monkeypatch):
    for function in ("training_images", "validation_images"):
        monkeypatch.setattr(child_runs.data, function, None)  # put back afterwards
    child_runs.offline()
    small = replace(RECIPES[name], steps=3, batch=4, patch=32, lr=0.01)
    trained = training_run.run(training_run.start(name, small), tmp_path)
    again = FieldsOfExperts.from_pretrained(tmp_path)
    assert again.config == trained.config == PRIORS[name]
    begun = training_run.start(name, small).model
    assert all(not torch.equal(a, b) for a, b in zip(begun.kernels, trained.kernels, strict=True))
    first, constant = trained.kernels[0].detach(), PRIORS[name].constant
    means, norms = first.mean((-1, -2)).abs().max(), first.flatten(1).norm(dim=1).max()
    assert constant == bool(means < 1e-6) == bool(norms < 1 + 1e-5)
    assert constant == bool(trained.offset.any())
    card = (tmp_path / "README.md").read_text()
    count = sum(p.numel() for p in begun.parameters()) - (0 if constant else begun.offset.numel())
    assert f"| parameters | {count} |" in card
    assert ("neither zero mean nor a bounded norm" in card) is (not constant)


def test_the_recipe_of_p1_is_that_of_the_shipped_prior():
    shipped = json.loads((WEIGHTS / "P1" / "training.json").read_text())
    assert asdict(TrainConfig(**shipped["settings"])) == asdict(RECIPES["P1"])
    assert shipped["iterations"] == RECIPES["P1"].steps
    assert FoEConfig.from_dict(json.loads((WEIGHTS / "P1" / "config.json").read_text())) == PRIORS["P1"]
    assert shipped["parameters"] == sum(p.numel() for p in training_run.start("P1", RECIPES["P1"]).trained)
