"""The engine of runs on a toy: a line is fitted to noisy points; stopped anywhere it ends like one that was not."""

import json
import math
import os
import signal
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from gnclib import io
from gnclib.io import run as engine
from gnclib.io import state as states


@io.settings
class Config:
    steps: int = 10
    seed: int = 0
    images: str = ""


@dataclass(frozen=True)
class Row:
    COLUMNS: ClassVar[str] = "step,loss,lr,validation,seconds"
    step: int
    loss: float
    lr: float
    validation: float
    seconds: float

    def __str__(self):
        return f"{self.step},{self.loss:.9f},{self.lr:.3e},{self.validation:.6f},{self.seconds:.0f}"


@dataclass
class Line(io.State):
    """y = 2 x + 1 and noise, by Adam."""

    config: Config

    def __post_init__(self):
        self.generator.manual_seed(self.config.seed)
        self.line = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.line.weight)
        torch.nn.init.zeros_(self.line.bias)
        self.optimizer = torch.optim.Adam(self.line.parameters(), lr=0.1)

    @property
    def total(self):
        return self.config.steps

    @property
    def device(self):
        return self.line.weight.device

    def modules(self):
        return {"line": self.line}

    def about(self):
        return {"kind": "line"}


class LineCheckpoint(io.Checkpoint):
    kind: str


def load(folder):
    def build(meta, parts):
        state = Line(Config(**meta["config"]))
        values = parts.pop("line", {})
        io.demand_tensors(values, {"weight": (1, 1), "bias": (1,)}, "the line")
        state.line.load_state_dict(values)
        return state

    return io.load_checkpoint(folder, LineCheckpoint, build)


def fitting(state):
    while state.step < state.total:
        x = torch.randn(8, 1, generator=state.generator)
        y = 2 * x + 1 + 0.1 * torch.randn(8, 1, generator=state.generator)
        loss = (state.line(x) - y).square().mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.step += 1
        yield SimpleNamespace(step=state.step, loss=loss.item())


def drive(state, folder, every=4, **options):
    keeper = io.Keeper(state, folder, Row, ("loss",), lambda: state.line.bias.item(), every)
    return io.drive(fitting(state), state.total, keeper, **options)


def log(folder):
    return [str(row).rpartition(",")[0] for row in io.rows(folder, Row)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    losses = [step.loss for step, _ in drive(Line(Config()), folder)]
    return load(folder), losses, log(folder)


def same(a, b):
    pairs = zip(a.line.parameters(), b.line.parameters(), strict=True)
    one, other = (state.optimizer.state_dict()["state"] for state in (a, b))
    return (
        all(torch.equal(p, q) for p, q in pairs)
        and one.keys() == other.keys()
        and all(torch.equal(one[k][name], other[k][name]) for k in one for name in one[k])
        and torch.equal(a.generator.get_state(), b.generator.get_state())
        and a.step == b.step
    )


@pytest.mark.parametrize("at", range(1, 10))
@pytest.mark.parametrize("how", ["left", "told"])
def test_stopped_anywhere_and_resumed(whole, tmp_path, at, how):
    state = Line(Config())
    if how == "told":
        list(drive(state, tmp_path, stop=lambda: state.step == at))
    else:
        for step, _ in drive(state, tmp_path):
            if step.step == at:
                break
    again = load(tmp_path)
    assert again.step == at
    assert same(again, state)
    losses = [step.loss for step, _ in drive(again, tmp_path)]
    assert losses == whole[1][at:]
    assert same(again, whole[0])
    assert log(tmp_path) == whole[2]


def test_rows_are_means_since_the_last_row(whole, tmp_path):
    _, losses, _ = whole
    rows = [row for _, row in drive(Line(Config()), tmp_path) if row]
    assert [row.step for row in rows] == [4, 8, 10]
    for row, part in zip(rows, (losses[:4], losses[4:8], losses[8:]), strict=True):
        assert row.loss == pytest.approx(math.fsum(part) / len(part), rel=1e-12)
    assert rows[-1].lr == 0.1
    assert [str(row) for row in io.rows(tmp_path, Row)] == [str(row) for row in rows]
    assert [row.step for row in io.rows(tmp_path, Row, 8)] == [4, 8]


def test_a_new_run_has_a_checkpoint_before_its_first_step(tmp_path):
    drive(Line(Config()), tmp_path)
    state = load(tmp_path)
    assert (state.step, state.record["history"][0]["from"]) == (0, 0)


def test_a_state_in_a_new_folder_has_a_checkpoint_there_at_once(tmp_path):
    state = Line(Config())
    state.step = 5
    next(drive(state, tmp_path / "new", 3))
    assert load(tmp_path / "new").step >= 5


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    state = Line(Config())
    path = io.save_checkpoint(state, tmp_path)
    good = path.read_bytes()
    state.line.register_buffer("more", torch.zeros(2))
    io.save_checkpoint(state, tmp_path)
    with pytest.raises(ValueError, match="missing or unknown: more"):
        load(tmp_path)
    state = Line(Config())
    state.modules = lambda: {"line": state.line, "other": torch.nn.Linear(1, 1)}
    io.save_checkpoint(state, tmp_path)
    with pytest.raises(ValueError, match="no meaning here: other"):
        load(tmp_path)
    state = Line(Config())
    state.step = 11
    io.save_checkpoint(state, tmp_path)
    with pytest.raises(ValueError, match="step 11 is none of 10"):
        load(tmp_path)
    path.write_bytes(good)
    assert load(tmp_path).step == 0


def test_the_optimiser_of_the_file_is_ours(tmp_path):
    """Its learning rate goes on, all else is as here; other groups of parameters are refused."""
    state = Line(Config())
    state.optimizer.param_groups[0]["lr"] = 0.03
    io.save_checkpoint(state, tmp_path)
    assert load(tmp_path).optimizer.param_groups[0]["lr"] == 0.03
    state.optimizer.param_groups[0]["betas"] = (0.5, 0.5)
    io.save_checkpoint(state, tmp_path)
    assert load(tmp_path).optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    state.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    io.save_checkpoint(state, tmp_path)
    with pytest.raises(ValueError, match="has 1 groups of parameters, not 2"):
        load(tmp_path)


def test_what_a_run_tells(tmp_path, monkeypatch):
    """Code and machine by the steps that they made; hours without pauses; nothing of where its images lie."""
    state = Line(Config(images="/home/me/photos"))
    for name, steps in (("aaa", 3), ("bbb", 2), ("bbb", 2), ("ccc", 0), ("ddd", 3)):
        monkeypatch.setattr(io.provenance, "revision", lambda name=name: name)
        states.remember(state)
        state.step += steps
    state.record["seconds"] = 1800.0
    told = io.told(state)
    assert told["revision"] == "aaa for the first 3 iterations, bbb from 3 on, ddd from 7 on"
    assert (told["hours"], told["iterations"]) == (0.5, 10)
    assert told["settings"] == asdict(Config(images="photos"))
    assert "/home" not in json.dumps(told)


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_steps_between_rows(tmp_path, every):
    with pytest.raises(ValueError, match="rows of the log must be a positive integer"):
        next(drive(Line(Config()), tmp_path, every))
    assert not list(tmp_path.iterdir())


# --- signals -----------------------------------------------------------------------------------------------


def test_a_second_ctrl_c_does_not_wait(monkeypatch):
    clock = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    before = signal.getsignal(signal.SIGINT)
    with io.signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # half a second later: the same one, passed on by torchrun
        assert received == [signal.SIGINT, signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
