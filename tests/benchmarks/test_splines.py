"""The benchmark: what it counts, what it refuses, and that its table says what was measured. No test of speed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from benchmarks import splines as bench
from benchmarks.splines import Problem
from gnclib.spline import native as spline_native
from gnclib.spline import reference as spline_reference

ROOT = Path(__file__).parents[2]
SMALL = {"threads": 1, "size": 12, "images": 1, "channels": 8, "rounds": 2, "nodes": 31}
QUICK = ("dense basis", "torch gather", "native")  # without compiling for half a minute


@pytest.fixture(scope="module")
def result():
    if spline_native.library() is None:
        pytest.skip("no compiled splines on this machine")
    return bench.measure(names=QUICK, **SMALL)


def test_dense_candidate_against_scipy():
    p = Problem.random(2, 40, 31).double()
    knots = p.grid.nodes()[0].item() + p.grid.spacing * (np.arange(36) - 2.5)
    for order, values in zip(bench.ORDERS, bench.dense(p.x, p.a, p.grid, bench.ORDERS), strict=True):
        for x, a, found in zip(p.x, p.a, values, strict=True):
            np.testing.assert_allclose(found, BSpline(knots, a.numpy(), 4).derivative(order)(x), atol=1e-10)


def test_bytes_are_those_of_the_tensors_read_and_written():
    p = Problem.random(5, 70, 31)
    results = p.both(spline_reference.evaluate)  # phi, phi', gradient in x, gradient in a
    forward = p.x.nbytes + p.a.nbytes + sum(v.nbytes for v in results[:2])
    backward = p.x.nbytes + p.a.nbytes + sum(g.nbytes for g in p.g) + sum(v.nbytes for v in results[2:])
    assert p.bytes() == {"forward": forward, "both": forward + backward}


def test_the_fastest_of_all_turns_counts(monkeypatch):
    """A clock on which the turns of the only candidate take 5, 2 and 9 seconds, and two threads share its time."""
    steps = [1, 1, 5, 5, 1, 1, 2, 2, 1, 1, 9, 9]  # per turn: copy, triad, forward, forward + backward
    ticks = [t for k, step in enumerate(steps) for t in (sum(steps[:k]), sum(steps[: k + 1]))]
    monkeypatch.setitem(bench.CLOCKS, "cpu", iter(ticks).__next__)
    settings = SMALL | {"rounds": 3, "clock": "cpu", "threads": 2}
    found = bench.measure(names=("torch gather",), **settings)
    assert found["candidates"]["torch gather"]["seconds"] == {"forward": 1.0, "both": 1.0}
    assert found["bandwidth"] == {"copy": 2 * 8 * 8 * 144, "triad": 2 * 12 * 8 * 144}


def test_ratios_follow_from_the_seconds(result):
    bandwidth = max(result["bandwidth"].values())
    assert list(result["candidates"]) == list(QUICK)
    for name, row in result["candidates"].items():
        planes = 4 if name == "dense basis" else 8
        needed = Problem.random(planes, 144, 31).bytes()
        assert row["points"] == planes * 144
        assert row["error"] < 1e-4
        for what, seconds in row["seconds"].items():
            assert 0 < seconds < 10
            assert row["rate"][what] == pytest.approx(planes * 144 / seconds)
            assert row["floor"][what] == pytest.approx(seconds * bandwidth / needed[what])
            assert row["compile"][what] is None
    assert json.loads(json.dumps(result)) == result


def test_table_says_what_was_measured(result):
    text = bench.report(result, {"batch": 16, "patch": 48, "peak": {"R1": 300 * 2**20, "R2": None}})
    for name, row in result["candidates"].items():
        (line,) = [line for line in text.splitlines() if line.startswith(name)]
        assert f"{row['rate']['forward'] / 1e6:.1f}" in line
    assert "R1 300 MiB, R2 unknown" in text
    assert "5 times torch.compile: not measured" in text
    assert "N_x = 31" in text
    assert torch.get_num_threads() >= 1


def test_goals():
    row = {"compile": {"both": 6.0}, "floor": {"both": 5.5, "forward": 2.0}}
    assert [goal["met"] for goal in bench.goals({"native": row})] == [True, False, True]
    assert [goal["met"] for goal in bench.goals({})] == [None, None, None]


def test_wrong_results_are_not_timed(monkeypatch):
    def wrong(x, a, grid, orders):
        return tuple(1.01 * v for v in spline_reference.evaluate(x, a, grid, orders))

    monkeypatch.setattr(bench, "functions", lambda names: {"torch gather": wrong})
    with pytest.raises(RuntimeError, match="wrong results"):
        bench.measure(names=("torch gather",), **SMALL)


def test_a_candidate_that_cannot_be_built_is_named(monkeypatch):
    def broken(x, a, grid, orders):
        raise OSError("no compiler")

    monkeypatch.setattr(
        bench, "functions", lambda names: {"torch.compile": broken, "torch gather": spline_reference.evaluate}
    )
    found = bench.measure(names=("torch.compile", "torch gather"), **SMALL)
    assert found["failed"] == {"torch.compile": "no compiler"}
    assert "not measured: torch.compile: no compiler" in bench.report(found)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"threads": 0}, {"size": 0}, {"rounds": 0}, {"channels": 0}, {"nodes": 4}),
        *({"names": ("x",)}, {"clock": "sun"}),
    ],
)
def test_bad_settings(wrong):
    with pytest.raises(ValueError, match=r"at least|no candidate|the clock"):
        bench.measure(**(SMALL | {"names": ("torch gather",)} | wrong))


def test_memory_of_a_process():
    """In a process of its own: this one may have freed pages left, which an allocation then takes without growing."""
    code = (
        "import torch; from benchmarks.splines import _memory; before = _memory('VmRSS');"
        "block = torch.ones(16 * 2**20); now = _memory('VmRSS');"
        "print(*((now - before, block.nbytes, _memory('VmHWM') - now) if before is not None else ()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    if not done.stdout.split():
        pytest.skip("this system does not tell")
    grown, size, above = map(int, done.stdout.split())
    assert grown > 0.9 * size  # 64 MiB, touched
    assert above >= 0


def test_memory_of_a_training_step():
    """More than x and phi' of the image part (58 - 2 x 3 features wide), less than fifty times that."""
    peak = bench.step_memory("R1", batch=8, patch=58)
    if peak is None:
        pytest.skip("this system does not tell")
    least = 2 * 8 * 48 * 52**2 * 4
    assert least < peak < 50 * least


def test_a_training_step_that_was_killed_is_told(monkeypatch):
    """By the system, for want of memory: it says nothing."""
    killed = subprocess.CompletedProcess([], -9, stdout="", stderr="")
    monkeypatch.setattr(bench.subprocess, "run", lambda *args, **kwargs: killed)
    with pytest.raises(RuntimeError, match="training step of R1 failed: exit status -9"):
        bench.step_memory("R1")
