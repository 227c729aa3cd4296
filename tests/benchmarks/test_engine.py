"""The benchmark of the energies: what it counts, and that its table says what was measured. No test of speed."""

import json

import pytest
import torch

from benchmarks import engine
from gnclib.foe import FieldsOfExperts, FoEConfig

RATE = 1e9


def found(seconds: dict[str, float], operations: dict[str, int] | None = None, rate: float = RATE) -> dict:
    rows = {
        name: {"seconds": s} | ({"operations": operations[name]} if operations else {})
        for name, s in seconds.items()
    }
    return {"rate": rate, "bandwidth": 1e9, "tasks": rows}  # fmt: skip


def test_operations_of_a_gradient_are_those_of_its_convolutions(monkeypatch):
    """K_1 and its adjoint: 2 x 2 x 49 x 48 per feature; the two layers behind, 2 x 2 x 9 x 48 x 48 each."""
    monkeypatch.setattr(engine.torch, "set_num_threads", lambda n: None)
    for layers in (1, 3):
        prior = FieldsOfExperts(
            FoEConfig(layers=layers)
        ).double()  # the plain definition: float32 is compiled
        y = torch.rand(1, 1, 40, 50, dtype=torch.float64)
        with torch.no_grad():
            counted = engine.operations(lambda p=prior, y=y: p.grad(y, 0.01))
        margin = prior.margin
        exact, height, width = 0, 40 + 2 * margin, 50 + 2 * margin
        for kernel, inputs in zip(prior.kernels, (1, 48, 48), strict=False):
            side = kernel.shape[-1] - 1
            height, width = height - side, width - side
            exact += 2 * 2 * (side + 1) ** 2 * inputs * 48 * height * width
        assert 0 <= counted / exact - 1 < 0.02  # beside them the contraction over tau


def test_ratios_follow_from_the_seconds():
    seconds = {"R1 gradient": 0.5, "R1 gradient, 64 x 64": 0.1, "BM3D": 9.0, "splines, both passes": 1.0}
    plain = found({"R1 gradient": 4.0}, {"R1 gradient": 10**8})
    table = engine.collect({"ours": found(seconds, rate=RATE / 2), "plain torch": plain})
    row = table["rows"]["R1 gradient"]
    assert row["seconds"] == {"ours": 0.5, "plain torch": 4.0}
    assert row["floor"] == pytest.approx(0.1)  # the faster of the two convolutions counts
    assert row["ratio"] == pytest.approx(5.0)
    small = table["rows"]["R1 gradient, 64 x 64"]
    assert small["operations"] == round(10**8 * 64**2 / (321 * 481))
    assert "ratio" not in table["rows"]["BM3D"]
    assert table["rows"]["splines, both passes"] == {
        "seconds": {"ours": 1.0}
    }  # no other size of a task "splines"
    text = engine.report(json.loads(json.dumps(table)))
    (line,) = [line for line in text.splitlines() if line.startswith("R1 gradient  ")]
    assert line.split()[2:] == ["0.10", "100.0", "500.0", "4000.0", "-", "-", "5.00", "0", "MISSES", "3"]


def test_the_least_processor_time_counts(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr(engine.time, "process_time", lambda: next(clock))
    assert engine.seconds(lambda: None, 3) == 2.0


def test_tasks_run_on_a_small_image():
    names = []
    for name, function in engine.tasks("plain torch", priors=("R1",), size=(32, 40)):
        names.append(name)
        if name != "splines, both passes":  # 7 million points
            function()
    assert names == [
        f"R1 {task}" for task in ("gradient", "energy + gradient", "Hessian product", "training step")
    ] + ["splines, both passes"]


def test_a_process_that_was_killed_is_told(monkeypatch):
    """By the system, for want of memory: it says nothing."""
    killed = engine.subprocess.CompletedProcess([], -9, stdout="", stderr="")
    monkeypatch.setattr(engine.subprocess, "run", lambda *args, **kwargs: killed)
    with pytest.raises(RuntimeError, match="ours: exit status -9"):
        engine.child("ours", 1)


def test_the_picture_is_drawn(tmp_path):
    seconds = {f"{name} gradient": 0.1 for name in ("R1", "R2", "R3")}
    work = dict.fromkeys(seconds, 10**9)
    table = engine.collect({"ours": found(seconds), "plain torch": found(seconds, work)})
    engine.draw(table, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"


def test_a_second_thread_is_compared_in_turn(monkeypatch):
    """Two threads take half of the time of one here, whatever the machine is."""
    count, now = [1], [0.0]

    def work():
        now[0] += 1.0 / count[0]

    monkeypatch.setattr(engine.torch, "set_num_threads", lambda n: count.__setitem__(0, n))
    monkeypatch.setattr(engine.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(engine.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(engine, "training_step", lambda *args: work)
    monkeypatch.setattr(engine, "no_grad", lambda function: work)
    assert set(engine.second_thread(3).values()) == {2.0}
    monkeypatch.setattr(engine.os, "cpu_count", lambda: 1)
    assert engine.second_thread(3) == {}
