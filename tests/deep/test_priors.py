"""Priors by name, from the package, from folders and from the hub; see test_hub.py for the ways there."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import gnclib
from gnclib import load_prior
from gnclib.foe import WEIGHTS, FieldsOfExperts, FoEConfig


@pytest.mark.parametrize("name", sorted(path.parent.name for path in WEIGHTS.glob("*/model.safetensors")))
def test_every_shipped_prior_by_name(name):
    prior, stored = load_prior(name), load_file(WEIGHTS / name / "model.safetensors")
    assert prior.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, prior.state_dict()[key]) for key, value in stored.items())
    if isinstance(prior, FieldsOfExperts):
        assert prior.config.layers == int(name[1])
    assert not prior.training
    assert not any(p.requires_grad for p in prior.parameters())
    y = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (slope,) = torch.autograd.grad(prior.energy(y, 0.01), y)
    torch.testing.assert_close(prior.grad(y.detach(), 0.01), slope, rtol=1e-4, atol=1e-3)


def test_priors_are_float32_whatever_the_default_is():
    """In a process of its own, for modules keep what they found when they were imported."""
    code = """
import torch
torch.set_default_dtype(torch.float64)
from gnclib import load_prior
from gnclib.foe import WEIGHTS
for name in sorted(path.parent.name for path in WEIGHTS.glob("*/model.safetensors")):
    if (WEIGHTS / name / "config.json").exists():
        prior = load_prior(name)
        assert prior.grad(torch.rand(1, 1, 32, 32, dtype=torch.float32), 0.1).dtype == torch.float32, name
        prior.double().grad(torch.rand(1, 1, 32, 32), 0.1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_as_text_or_path(tmp_path, monkeypatch):
    mine = FieldsOfExperts(FoEConfig(features=4, kernel_size=3))
    mine.save_pretrained(tmp_path / "R1")
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "R1", str(tmp_path / "R1"), "./R1"):
        assert torch.equal(load_prior(name).kernels[0], mine.kernels[0])
    assert load_prior("R1").config.features == 48  # that of the package comes first


def test_what_is_no_prior_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no prior 'R99'.*shipped ones are C1, C3, G1, M1, M3, P1, P2, P3, R1"
    ):
        load_prior("R99")
    with pytest.raises(ValueError, match="write hf:owner/name"):
        load_prior("hf:R1")
    FieldsOfExperts(FoEConfig(features=4, kernel_size=3)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"features": 5}))
    with pytest.raises(ValueError, match=r"do not fit its config\.json"):
        load_prior(tmp_path)


def test_it_is_a_public_name_that_loads_torch_only_when_it_is_used():
    assert load_prior is gnclib.deep.load_prior
    code = "import gnclib, sys; assert 'load_prior' in dir(gnclib); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
