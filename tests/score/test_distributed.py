"""Several processes against one: the same loss and gradient, the same run; and failures that leave nobody waiting."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gnclib.score import OBJECTIVES, distributed, load_checkpoint
from gnclib.score import run as training_run
from gnclib.score import training as train
from gnclib.score.distributed import ALONE, Group
from gnclib.score.recipes import RECIPES
from tests import child_runs

f64 = {"dtype": torch.float64}


def ended(processes, seconds=400):
    for process in processes:
        process.join(seconds)
    left = [p for p in processes if p.is_alive()]
    for process in left:
        process.kill()
    assert not left, "a process was left waiting"
    return [p.exitcode for p in processes]


# --- the loss, without any communication -------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("world", "fraction"), [(2, 0.5), (3, 0.8), (6, 0.5), (6, 0.01)])
def test_the_mean_of_the_shares_is_the_loss_of_the_whole_batch(objective, world, fraction):
    """Also where the smoothing part has an odd number of patches, or fewer than there are ranks."""
    config = replace(child_runs.SETTINGS, objective=objective, fraction=fraction)
    model = child_runs.fresh("R3").model.double()
    x = torch.rand(6, 1, 18, 18, generator=torch.Generator().manual_seed(3))

    def parts(group):
        values = train.loss_parts(model, x, config, torch.Generator().manual_seed(4), group)
        gradient = torch.autograd.grad(
            values[0] + 0.3 * values[1], list(model.parameters()), allow_unused=True, materialize_grads=True
        )
        return torch.stack([v.detach() for v in values]), torch.cat([g.flatten() for g in gradient])

    whole, slope = parts(ALONE)
    shares = [parts(Group(rank, world)) for rank in range(world)]
    torch.testing.assert_close(sum(s[0] for s in shares) / world, whole, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(sum(s[1] for s in shares) / world, slope, rtol=1e-9, atol=1e-13)
    assert (whole.abs() > 1e-3).all()


def test_slices_are_a_partition():
    parts = [list(range(12))[Group(rank, 4).slice(12)] for rank in range(4)]
    assert [k for part in parts for k in part] == list(range(12))
    assert {len(p) for p in parts} == {3}


def test_a_batch_that_cannot_be_divided_is_refused():
    images = {"leaves": child_runs.leaves(40)}
    with pytest.raises(ValueError, match="batch of 6 cannot be divided equally among 4 processes"):
        next(train.training(child_runs.fresh("R1"), images, Group(0, 4)))


# --- devices -----------------------------------------------------------------------------------------------


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch finds no CUDA here .*--device cpu"):
        distributed.join("cuda", {})
    with pytest.raises(ValueError, match="must be cpu or cuda"):
        distributed.join("tpu", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"1 GPU\(s\) for local rank 1"):
        distributed.join("cuda", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    assert distributed.join("cpu", {}) == (ALONE, torch.device("cpu"))


# --- two gloo processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prior", "objective"), [("R1", "corrected"), ("R3", "denoising")])
def test_two_processes_train_as_one(tmp_path, prior, objective):
    """In float64: weights after 8 steps within 1e-9 of one process, losses too; the two ranks identical to the bit."""
    config = replace(child_runs.SETTINGS, steps=8, objective=objective)
    (tmp_path / "one").mkdir()
    two = child_runs.start_ranks(2, child_runs.double_run, prior, config, tmp_path)
    one = child_runs.child(
        child_runs._as_rank, 0, 1, 0, child_runs.double_run, prior, config, tmp_path / "one"
    )
    assert ended([*two, one]) == [0, 0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    alone = load_file(tmp_path / "one" / "0.safetensors")
    assert all(torch.equal(first[k], second[k]) for k in first)
    for name in alone:
        torch.testing.assert_close(first[name], alone[name], rtol=1e-9, atol=1e-9)
    start = child_runs.fresh(prior).model.double().state_dict()
    assert all((alone[k] - start[k]).abs().max() > 1e-3 for k in start)  # all of it was trained


def test_all_ranks_stop_when_one_is_told_to(tmp_path):
    assert ended(child_runs.start_ranks(2, child_runs.one_rank_stops, tmp_path)) == [0, 0]
    assert [(tmp_path / f"stopped{rank}").read_text() for rank in range(2)] == ["3", "3"]
    assert load_checkpoint(tmp_path).step == 3


@pytest.mark.parametrize("how", ["dies", "raises", "nan"])
def test_a_rank_that_fails_does_not_leave_the_other_waiting(tmp_path, how):
    codes = ended(child_runs.start_ranks(2, child_runs.one_rank_fails, tmp_path, how))
    assert codes == [3, -9 if how == "dies" else 3]
    says = (tmp_path / "failed0").read_text()
    if how == "nan":
        assert says == (tmp_path / "failed1").read_text()
        assert says.startswith("FloatingPointError after 2: the loss is nan at step 3")
    assert " after 2: " in says
    assert load_checkpoint(tmp_path).step == 2


TORCHRUN = """
import sys, torch
from safetensors.torch import save_file
from tests import child_runs
from gnclib.cli import main as cli
from gnclib.score import run
child_runs.offline()
drive, kept = run.drive, {}
def keeping(state, folder, **options):
    kept.update(state=state, rank=options["group"].rank)
    return drive(state, folder, **options)
run.drive = keeping
status = cli.main(sys.argv[2:])
save_file(kept["state"].model.state_dict(), f"{sys.argv[1]}/rank{kept['rank']}.safetensors")
sys.exit(status)
"""


def test_torchrun(tmp_path, drawn_images):
    """The command under torchrun with two processes: one log and one card, weights those of one process."""
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        script,
        tmp_path,
    ]
    words = [
        "train",
        "R1",
        "--steps",
        "3",
        "--every",
        "2",
        "--batch",
        "4",
        "--patch",
        "18",
        "--fraction",
        "0.5",
        "--averaging",
        "0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(child_runs.__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*run, *words, "--out", tmp_path / "two"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights, log and checkpoint are in") == 1
    assert done.stderr.count("R1 2/3: ") == 1
    assert "2 processes" in (tmp_path / "two" / "README.md").read_text()
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))
    shipped = load_file(tmp_path / "two" / "model.safetensors")
    assert all(torch.equal(first[k], second[k]) and torch.equal(first[k], shipped[k]) for k in first)
    recipe = RECIPES["R1"]
    config = replace(recipe, steps=3, batch=4, patch=18, fraction=0.5, averaging=0.0)
    alone = child_runs.run(training_run.start("R1", config), tmp_path / "one").state_dict()
    start = training_run.start("R1", config).model.state_dict()
    for name, value in alone.items():
        moved = (value - start[name]).norm()
        assert (first[name] - value).norm() < 1e-2 * moved, name  # float32; the first steps amplify rounding
    for a, b in zip(child_runs.rows(tmp_path / "one"), child_runs.rows(tmp_path / "two")[-1:], strict=True):
        assert b.validation == pytest.approx(a.validation, abs=2e-3)
