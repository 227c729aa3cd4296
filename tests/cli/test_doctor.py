"""gnc doctor: what it says of a sound installation, and that it finds what is wrong."""

import re

import pytest
import torch

from gnclib.foe import WEIGHTS, FieldsOfExperts
from gnclib.io import sha256
from tests.commands import gnc


def test_all_is_well_here(capsys):
    status, out, err = gnc(capsys, "doctor")
    assert (status, err) == (0, ""), out
    assert out.endswith("all is well\n")
    assert f"torch {torch.__version__}" in out
    assert torch.backends.cpu.get_cpu_capability() in out
    for file in WEIGHTS.glob("*/model.safetensors"):
        assert f"{file.parent.name}: SHA-256 {sha256(file)[:16]}" in out
    assert float(re.search(r"denoising gains ([\d.]+) dB", out)[1]) > 8


@pytest.mark.parametrize(
    ("broken", "remedy"), [(lambda g: g * 1.01, "set GNC_NATIVE=0"), (lambda g: 0 * g, "not restored")]
)
def test_a_wrong_gradient_is_found(capsys, monkeypatch, broken, remedy):
    right = FieldsOfExperts.grad

    def wrong(self, y, *args, **options):
        return right(self, y, *args, **options) if y.dtype == torch.float64 else broken(right(self, y, *args))

    monkeypatch.setattr(FieldsOfExperts, "grad", wrong)
    status, out, err = gnc(capsys, "doctor")
    assert (status, remedy in out, "wrong, see above" in err) == (1, True, True)


def test_damaged_weights_are_found(capsys, monkeypatch, tmp_path):
    folder = tmp_path / "R9"
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes((WEIGHTS / "R1" / name).read_bytes()[:900])
    monkeypatch.setattr("gnclib.foe.hub.WEIGHTS", tmp_path)
    monkeypatch.setattr("gnclib.foe.WEIGHTS", tmp_path)
    monkeypatch.setattr("gnclib.cli.suite._self_test", lambda: [])
    status, out, _ = gnc(capsys, "doctor")
    assert (status, "install gnclib again" in out) == (1, True)
