r"""How fast the spline operation is, as ratios measured in one run: ``python benchmarks/splines.py``.

The task is that of a layer of the energy: phi and phi' at all pixels of all channels, then the gradients in x and in
the coefficients of sum < g, phi > + < g', phi' >. Measured are

* *dense basis*: all N_x basis functions at each point (on four planes, as it needs N_x times the memory);
* *torch gather*: :mod:`gnclib.spline.reference` with torch's automatic backward pass;
* *torch.compile*: the same through torch.compile, for these very shapes;
* *torch.compile, own backward*: :mod:`gnclib.spline.compiled`, the engine for CUDA, here on CPU;
* *native*: :mod:`gnclib.spline.native`, which :func:`gnclib.spline.evaluate` uses on CPU;
* *floor*: the time in which memory could at best deliver. Per point of float32 the forward pass reads x and writes phi
  and phi' (12 bytes), the backward pass reads x, g and g' and writes the gradient in x (16 bytes); coefficients and
  their gradient are added. These bytes are divided by the bandwidth measured beside the candidates, the better one of
  copy (out = a, 8 bytes per point) and triad (out = a + s b, 12 bytes), with arrays of the same size, the same number
  of threads and outputs that exist already. A read for ownership of a written line is counted nowhere.

The candidates take turns, and of all turns the fastest counts: on a busy machine the others were interrupted. Each
candidate allocates its results, as in use. Its values and gradients are first compared with the definition in float64.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gnclib.io import files
from gnclib.spline import SplineGrid
from gnclib.spline import compiled as spline_compiled
from gnclib.spline import native as spline_native
from gnclib.spline import reference as spline_reference
from gnclib.spline import splines as spline

ORDERS = (0, 1)
CANDIDATES = ("dense basis", "torch gather", "torch.compile", "torch.compile, own backward", "native")
COMPILED = ("torch.compile", "torch.compile, own backward")
#: (what, compared with, limit): at least this many times faster than torch.compile, at most this many floors
GOALS = (("both", "compile", 5.0), ("both", "floor", 5.0), ("forward", "floor", 3.0))
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
IMAGES, CHANNELS = 16, 48
_WORDS = {"forward": "forward", "both": "forward + backward"}


@dataclass(frozen=True)
class Problem:
    """Points x (S, M), coefficients a (S, N_x) and the gradients g_0, g_1 (S, M) that come back."""

    grid: SplineGrid
    x: Tensor
    a: Tensor
    g: tuple[Tensor, ...]

    @staticmethod
    def random(planes: int, points: int, nodes: int) -> Problem:
        """Nodes and a distribution of x like those of the trained priors: normal, range = 4 standard deviations."""
        grid, random = SplineGrid(nodes, -6.0, 6.0), torch.Generator().manual_seed(0)
        x = 1.5 * torch.randn(planes, points, generator=random)
        a = torch.randn(planes, nodes, generator=random)
        g = tuple(torch.randn(planes, points, generator=random) for _ in ORDERS)
        return Problem(grid, x.clamp(-5.99, 5.99), a, g)

    def first(self, planes: int) -> Problem:
        return Problem(self.grid, self.x[:planes], self.a[:planes], tuple(g[:planes] for g in self.g))

    def double(self) -> Problem:
        return Problem(self.grid, self.x.double(), self.a.double(), tuple(g.double() for g in self.g))

    def forward(self, function) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return function(self.x, self.a, self.grid, ORDERS)

    def both(self, function) -> tuple[Tensor, ...]:
        """Values, gradient in x and gradient in a."""
        x, a = self.x.detach().requires_grad_(), self.a.detach().requires_grad_()
        values = function(x, a, self.grid, ORDERS)
        return *(v.detach() for v in values), *torch.autograd.grad(values, (x, a), self.g)

    def bytes(self) -> dict[str, int]:
        """What has to be read and written at least."""
        item, points, coefficients = self.x.element_size(), self.x.numel(), self.a.numel()
        forward = item * (points * (1 + len(ORDERS)) + coefficients)
        backward = item * (points * (1 + len(ORDERS) + 1) + 2 * coefficients)
        return {"forward": forward, "both": forward + backward}


def dense(x: Tensor, a: Tensor, grid: SplineGrid, orders: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The sum over all basis functions as it is written down; x inside of the range."""
    u = (x[..., None] - grid.nodes(x.dtype)) / grid.spacing  # (S, M, N_x)
    return tuple(
        (spline.quartic_bspline(u, k) * a[:, None]).sum(-1) / grid.spacing**k for k in orders
    )  # each (S, M)


def functions(names: tuple[str, ...]) -> dict[str, Callable]:
    """The candidates of these names, as functions of (x, a, grid, orders)."""

    def through(engine):
        return lambda x, a, grid, orders: spline._Evaluate.apply(x, a, grid, orders, engine)

    def make(name):
        if name == "torch.compile":
            return torch.compile(spline_reference.evaluate, fullgraph=True, dynamic=False)
        return {
            "dense basis": dense,
            "torch gather": spline_reference.evaluate,
            "torch.compile, own backward": through(spline_compiled),
            "native": through(spline_native),
        }[name]

    return {name: make(name) for name in names}


def check(problem: Problem, function) -> float:
    """Largest error of values and gradients relative to the largest exact one, on four planes.

    All planes are evaluated, so that a function to be compiled is compiled for the right shapes.
    """
    found = problem.both(function)
    problem.forward(function)
    exact = problem.first(4).double().both(spline_reference.evaluate)
    return max(
        ((f[:4].double() - e).abs().max() / e.abs().max()).item() for f, e in zip(found, exact, strict=True)
    )


def _seconds(work: Callable, clock: Callable) -> float:
    start = clock()
    work()
    return clock() - start


def measure(
    *,
    threads: int = 2,
    nodes: int = 63,
    size: int = 96,
    rounds: int = 15,
    clock: str = "wall",
    names: tuple[str, ...] = CANDIDATES,
    images: int = IMAGES,
    channels: int = CHANNELS,
) -> dict:
    """Run the benchmark; see the module for what is measured.

    Args:
        threads: of torch; nodes: N_x >= 5; size: side of the square images; images, channels: how many.
        rounds: turns; in each, every candidate is called once forward and once forward + backward.
        clock: "wall", or "cpu" for the processor time divided by the number of threads, which leaves out the time in
            which other programs had the processor.
        names: which of :data:`CANDIDATES`.

    Returns:
        A dict for JSON: settings, ``bandwidth`` in bytes/s, ``candidates`` by name with seconds, rates in points/s
        ("pixel-channels"), ``floor`` (time over floor), ``compile`` (speed over the faster torch.compile), ``error``;
        ``failed`` with reasons; ``goals``.

    Raises:
        ValueError: a setting outside of its range.
        RuntimeError: a candidate gives wrong results.
    """
    counts = {"threads": threads, "size": size, "rounds": rounds, "images": images, "channels": channels}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if clock not in CLOCKS:
        raise ValueError(f"the clock must be one of {', '.join(CLOCKS)}, got {clock!r}")
    if unknown := set(names) - set(CANDIDATES):
        raise ValueError(f"no candidate {', '.join(sorted(unknown))}: choose from {'; '.join(CANDIDATES)}")
    names = tuple(name for name in CANDIDATES if name in names)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = Problem.random(images * channels, size**2, nodes)
        # the dense basis has N_x numbers per point, several times over
        problems = {
            n: whole.first(max(4, len(whole.x) // nodes) if n == "dense basis" else None) for n in names
        }
        timed, errors, failed = {}, {}, {}
        for name, function in functions(names).items():
            try:
                errors[name] = check(problems[name], function)
                broken = (name == "native" and spline_native.library() is None) or (
                    name == "torch.compile, own backward" and spline_compiled.failed
                )
                if broken:
                    raise RuntimeError("it could not be built, see the warning")
            except Exception as error:  # no compiler, for instance
                failed[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
                continue
            if not errors[name] < 1e-3:
                raise RuntimeError(f"{name} gives wrong results: relative error {errors[name]:.1e}")
            timed[name] = function
        seconds, copies = _interleaved(problems, timed, whole, rounds, clock, threads)
    finally:
        torch.set_num_threads(before)
    bandwidth = max(copies.values())
    rows = {n: _row(problems[n], seconds[n], bandwidth) | {"error": errors[n]} for n in timed}
    for what in _WORDS:
        fastest = max((rows[n]["rate"][what] for n in COMPILED if n in rows), default=None)
        for row in rows.values():
            row["compile"][what] = row["rate"][what] / fastest if fastest else None
    return {
        "settings": {
            "threads": threads, "nodes": nodes, "size": size, "images": images, "channels": channels,
            "rounds": rounds, "clock": clock, "torch": torch.__version__, "processor": _processor(),
        },
        "bandwidth": copies,
        "floor_rate": {k: whole.x.numel() / (whole.bytes()[k] / bandwidth) for k in _WORDS},
        "candidates": rows,
        "failed": failed,
        "goals": goals(rows),
    }  # fmt: skip


def _interleaved(problems, timed, whole, rounds, clock, threads):
    """Fastest seconds by candidate and pass, and bytes/s of copy and triad."""
    tick = CLOCKS[clock]
    share = threads if clock == "cpu" else 1
    out, b = torch.empty_like(whole.x), whole.g[0]
    size = whole.x.numel() * whole.x.element_size()
    memory = {
        "copy": (2 * size, lambda: out.copy_(whole.x)),
        "triad": (3 * size, lambda: torch.add(whole.x, b, alpha=0.3, out=out)),
    }
    seconds = {n: dict.fromkeys(_WORDS, float("inf")) for n in timed}
    copies = dict.fromkeys(memory, 0.0)
    for _ in range(rounds):
        for name, (count, work) in memory.items():
            copies[name] = max(copies[name], count / (_seconds(work, tick) / share))
        for name, function in timed.items():
            for what in _WORDS:
                run = getattr(problems[name], what)
                took = _seconds(lambda run=run, function=function: run(function), tick) / share
                seconds[name][what] = min(seconds[name][what], took)
    return seconds, copies


def _row(problem: Problem, seconds: dict[str, float], bandwidth: float) -> dict:
    points = problem.x.numel()
    return {
        "points": points,
        "seconds": seconds,
        "rate": {k: points / s for k, s in seconds.items()},
        "floor": {k: s * bandwidth / problem.bytes()[k] for k, s in seconds.items()},
        "compile": {},
    }


def goals(rows: dict) -> list[dict]:
    """The goals for the native engine, set for two cores, with what was found; ``met`` is None if not measured."""
    found = rows.get("native", {})
    result = []
    for what, against, limit in GOALS:
        value = found.get(against, {}).get(what)
        met = None if value is None else (value >= limit if against == "compile" else value <= limit)
        result.append({"pass": what, "against": against, "limit": limit, "value": value, "met": met})
    return result


# memory of a training step -----------------------------------------------------------------------------------------


def step_memory(prior: str, batch: int = 16, patch: int = 48, threads: int = 1) -> int | None:
    """Peak memory of a training step in bytes, above what the process held before it, measured in a new process.

    The step is that of :func:`gnclib.score.training.training` with its default loss, on random images: two
    steps, so that the optimiser's state is there. None where the system does not tell.
    Raises RuntimeError if the process fails.
    """
    code = f"import splines; splines._steps({prior!r}, {batch}, {patch}, {threads})"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()  # nothing if the system killed it, for want of memory perhaps
        reason = said[-1] if said else f"exit status {done.returncode}"
        raise RuntimeError(f"the training step of {prior} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def _steps(prior: str, batch: int, patch: int, threads: int) -> None:
    from gnclib.score import TrainConfig
    from gnclib.score import run as training_run
    from gnclib.score import training as train

    torch.set_num_threads(threads)
    state = training_run.start(prior, TrainConfig(steps=2, batch=batch, patch=patch))
    images = [torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))]
    before = _memory("VmRSS")
    for _ in train.training(state, images):
        pass
    peak = _memory("VmHWM")
    print(json.dumps(None if peak is None else peak - before))


def _memory(field: str) -> int | None:
    """VmRSS (now) or VmHWM (peak) of this process in bytes. getrusage would begin with the peak of the parent."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


# report ------------------------------------------------------------------------------------------------------------


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(result: dict, memory: dict | None = None) -> str:
    """The table that the command prints. ``memory``: batch, patch and bytes per prior, or None."""
    s = result["settings"]
    clock = {"wall": "wall clock", "cpu": "processor time / threads"}[s["clock"]]
    lines = [
        f"splines, float32, {s['images']} x {s['channels']} planes of {s['size']} x {s['size']} points,"
        f" N_x = {s['nodes']}: phi and phi' together",
        f"{s['threads']} thread(s) on {s['processor']}, torch {s['torch']};"
        f" fastest of {s['rounds']} interleaved rounds, {clock}",
        "",
        f"{'':<28}{'Mpixel-channels/s':>20}{'time / floor':>18}{'speed / torch.compile':>24}{'error':>10}",
        f"{'':<28}{'forward':>10}{'fwd+bwd':>10}{'forward':>9}{'fwd+bwd':>9}{'forward':>13}{'fwd+bwd':>11}",
    ]
    for name, row in result["candidates"].items():
        rate, floor, compiled = ([row[key][what] for what in _WORDS] for key in ("rate", "floor", "compile"))
        speed = ["-" if c is None else f"{c:.2f}" for c in compiled]
        lines.append(
            f"{name:<28}{rate[0] / 1e6:>10.1f}{rate[1] / 1e6:>10.1f}{floor[0]:>9.1f}{floor[1]:>9.1f}"
            f"{speed[0]:>13}{speed[1]:>11}{row['error']:>10.0e}"
        )
    f, copies = result["floor_rate"], result["bandwidth"]
    lines.append(
        f"{'memory-bandwidth floor':<28}{f['forward'] / 1e6:>10.1f}{f['both'] / 1e6:>10.1f}{1:>9.1f}{1:>9.1f}"
    )
    lines += ["", *(f"not measured: {name}: {reason}" for name, reason in result["failed"].items())]
    lines += [
        "floor: 12 (forward) + 16 (backward) bytes per pixel-channel and the coefficients, at the better one of"
        f" copy {copies['copy'] / 1e9:.1f} GB/s and triad {copies['triad'] / 1e9:.1f} GB/s",
        "speed / torch.compile: over the faster of its two rows, forward and forward + backward each",
    ]
    if memory:
        parts = [
            f"{name} {'unknown' if b is None else f'{b / 2**20:.0f} MiB'}"
            for name, b in memory["peak"].items()
        ]
        lines.append(
            f"peak memory of a training step above the process before it, batch {memory['batch']},"
            f" patches {memory['patch']} x {memory['patch']}: {', '.join(parts)}"
        )
    lines += ["", "goals of the native engine, set for two cores:"]
    for goal in result["goals"]:
        unit = "times torch.compile" if goal["against"] == "compile" else "times the floor"
        side = "at least" if goal["against"] == "compile" else "at most"
        state = "not measured" if goal["met"] is None else "met" if goal["met"] else "NOT met"
        value = "" if goal["value"] is None else f" ({goal['value']:.1f})"
        lines.append(f"  {_WORDS[goal['pass']]:<19} {side} {goal['limit']:g} {unit}: {state}{value}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write the numbers where ``--json`` says."""
    parser = argparse.ArgumentParser(
        description="The spline operation against torch.compile and the bandwidth."
    )
    parser.add_argument("--only", action="append", default=[], choices=CANDIDATES, help="may be repeated")
    for name, default in (("threads", 2), ("nodes", 63), ("size", 96), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--memory", action="store_true", help="of a training step of each prior")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = measure(
        threads=args.threads, nodes=args.nodes, size=args.size, rounds=args.rounds, clock=args.clock,
        names=tuple(args.only) or CANDIDATES,
    )  # fmt: skip
    memory = None
    if args.memory:
        batch, patch = 16, 48
        peak = {n: step_memory(n, batch, patch, args.threads) for n in ("R1", "R2", "R3")}
        memory = {"batch": batch, "patch": patch, "peak": peak}
    print(report(result, memory))
    if args.json:
        files.write_text(args.json, json.dumps(result | {"memory": memory}, indent=2) + "\n")


if __name__ == "__main__":
    main()
