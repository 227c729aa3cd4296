"""A run may be killed anywhere, and also while it writes; resumed, it ends as if nothing had happened."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gnclib.io import CHECKPOINT
from gnclib.score import load_checkpoint
from tests import child_runs, kill_runs

KILLED = -9


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody has stopped: its weights and its log."""
    folder = tmp_path_factory.mktemp("whole")
    process = child_runs.child(child_runs.finish, "R1", folder, 4)
    process.join(600)
    assert process.exitcode == 0
    return load_file(folder / "model.safetensors"), child_runs.rows(folder)


def ends_like(whole, folder):
    """Resume until the end: the weights are those of the whole run to the bit, the log is the same but for seconds."""
    weights, log = whole
    process = child_runs.child(child_runs.finish, "R1", folder, 4)
    process.join(600)
    assert process.exitcode == 0
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    for a, b in zip(child_runs.rows(folder), log, strict=True):
        assert str(a).rpartition(",")[0] == str(b).rpartition(",")[0]
    assert not list(Path(folder).glob(".*.tmp"))


@pytest.mark.parametrize("phase", ["before", "middle", "after"])
@pytest.mark.parametrize(("name", "number"), [(CHECKPOINT, 3), ("log.csv", 2)])
def test_killed_while_writing(whole, tmp_path, name, number, phase):
    """The checkpoint that is there is whole: the new one after its write, the old one before."""
    process = child_runs.child(child_runs.finish, "R1", tmp_path, 4, ("write", number, name, phase))
    process.join(600)
    assert process.exitcode == KILLED
    step = load_checkpoint(tmp_path).step
    assert step == (8 if (name, phase) == (CHECKPOINT, "after") else 4)
    ends_like(whole, tmp_path)


def test_killed_in_the_midst_of_an_update(whole, tmp_path):
    process = child_runs.child(child_runs.finish, "R1", tmp_path, 4, ("step", 8))
    process.join(600)
    assert process.exitcode == KILLED
    assert load_checkpoint(tmp_path).step == 4
    ends_like(whole, tmp_path)


def test_killed_at_random_moments_again_and_again(whole, tmp_path):
    """Up to eight kills, each after a random time; a run that was killed before its first checkpoint starts anew.

    On a fast machine a run may end before its first kill: it is then begun once more, with half the time.
    """
    draw, codes, longest = random.Random(0), [], 0.6
    while KILLED not in codes or (len(codes) < 8 and codes[-1] == KILLED):
        if codes and KILLED not in codes:
            shutil.rmtree(tmp_path / "run")
            longest /= 2
        fault = ("seconds", draw.uniform(0.02, 1) * longest)
        process = child_runs.child(child_runs.finish, "R1", tmp_path / "run", 4, fault)
        process.join(600)
        codes.append(process.exitcode)
        assert codes[-1] in (KILLED, 0)
    ends_like(whole, tmp_path / "run")


#: kills of each command; set GNC_KILLS=20 for more
KILLS = int(os.environ.get("GNC_KILLS", "3"))


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is for Unix")
@pytest.mark.parametrize("name", kill_runs.SUBJECTS)
def test_every_command_killed_again_and_again(name, tmp_path):
    """The result is that of a run which nobody has killed; nothing half-written is seen, nothing is left over."""
    if name == "figures":
        pytest.importorskip("papermill")
    result = kill_runs.kill_again_and_again(name, tmp_path, KILLS)
    assert result.hit == KILLS
    left = [path for path in kill_runs.remains(tmp_path) if name != "download"]
    assert left == []
    print(f"{name}: {result}")
