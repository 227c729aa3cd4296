"""How fast the energies are, as ratios to what the arithmetic costs: ``python benchmarks/engine.py``.

One table from one run. Each variant is a process of its own, since it is chosen by the environment:

* *ours*: what a user gets;
* *plain torch*: ``GNC_NATIVE=0``, as on a machine without a compiler;
* *torch.compile*: the same through torch.compile with inductor;
* *AVX2*: ours with ``ATEN_CPU_CAPABILITY=avx2`` and ``ONEDNN_MAX_CPU_ISA=AVX2``: torch as on an older processor.

The floor of a task is the number of its operations over the speed of the fastest convolution of this machine (3 x 3,
48 to 48 channels, channels_last), measured in each process before and after its tasks. Operations are those of
convolutions and matrix products, two per multiply-add, counted by torch's own counter in the plain variant; splines are
not counted. Times are processor times (user and system) of one thread, the least of several turns: on a busy machine
other turns were disturbed, so that only ratios of one run mean something. What a second thread brings is measured at
the clock: only an idle machine shows it.

The roofline draws operations per second against operations per byte: of the image in and out, and, for deep energies,
of the features that have to be written and read between two layers (activation, derivative and adjoint).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gnclib import Denoising, load_prior
from gnclib.io import files, provenance
from gnclib.restore import schemes
from gnclib.restore.operators import Task
from gnclib.restore.tiles import Tiled
from gnclib.score import TrainConfig
from gnclib.score import run as score_run
from gnclib.score.training import training
from gnclib.spline import SplineGrid, evaluate

VARIANTS = {
    "ours": {},
    "plain torch": {"GNC_NATIVE": "0"},
    "torch.compile": {"GNC_NATIVE": "0"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
PRIORS = ("R1", "R2", "R3", "C1")
HEIGHT, WIDTH = 321, 481
#: the gradient is also timed on these, to see that time is linear in pixels; what is larger than 1024 in tiles
SIZES = (
    *(("R1", 64, 64), ("R1", 256, 256), ("R1", 1024, 1024), ("R1", 4000, 6000)),
    *(("R3", 64, 64), ("R3", 256, 256), ("R3", 1024, 1024), ("R3", 2000, 3000)),
)
T = (25 / 255) ** 2
#: (task, limit): the floor is to be exceeded at most so many times by ours
GOALS = {"R1 gradient": 3.0, "R3 gradient": 1.4, "R1 training step": 3.0, "R3 training step": 1.5}


# tasks ---------------------------------------------------------------------------------------------------------------


def tasks(
    variant: str, priors: tuple[str, ...] = PRIORS, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> Iterator:
    """(name, function to time) for the tasks of a variant, made one after the other."""
    compiled = (lambda f: torch.compile(f, dynamic=False)) if variant == "torch.compile" else (lambda f: f)
    random = torch.Generator().manual_seed(0)
    y = torch.rand(1, 1, *size, generator=random)
    v = torch.randn(1, 1, *size, generator=random)
    for name in priors:
        prior = load_prior(name)
        yield f"{name} gradient", no_grad(compiled(lambda p=prior: p.grad(y, T)))
        if variant != "torch.compile":
            yield f"{name} energy + gradient", no_grad(lambda p=prior: p.energy_and_grad(y, T))
            yield f"{name} Hessian product", no_grad(lambda p=prior: p.hvp(y, T, v))
    if variant != "torch.compile":
        for name, batch, patch in (("R1", 16, 48), ("R3", 4, 72)):
            if name in priors:
                yield f"{name} training step", training_step(name, batch, patch)
    yield "splines, both passes", spline_pass(compiled)
    if variant in ("ours", "plain torch") and priors == PRIORS:
        network = load_prior("G1")
        yield "G1 gradient", no_grad(lambda: network.grad(y, T))
    if variant == "ours":
        for name, height, width in SIZES:
            part = torch.rand(1, 1, height, width, generator=random)
            prior = Tiled(load_prior(name)) if max(height, width) > 1024 else load_prior(name)
            yield f"{name} gradient, {height} x {width}", no_grad(lambda p=prior, x=part: p.grad(x, T))
        for name in ("R2", "R3", "G1"):
            prior = load_prior(name)
            prior.bf16 = True
            yield f"{name} gradient, bfloat16", no_grad(lambda p=prior: p.grad(y, T))
        data = Denoising(y, 25 / 255)
        for name in ("R1", "R3", "R3, bfloat16"):
            scheme = schemes.load("learned", name[:2], Task("denoise", 25))
            scheme.prior.bf16 = len(name) > 2
            yield f"{name[:2]} learned schedule{name[2:]}", no_grad(lambda s=scheme: list(s.states(data)))
        yield "BM3D", bm3d(y[0, 0].numpy())


def no_grad(function: Callable) -> Callable:
    return torch.no_grad()(function)


def training_step(name: str, batch: int, patch: int) -> Callable:
    """One iteration of the shipped recipe's loss on random images, after two that set up the optimiser."""
    config = TrainConfig(steps=1000, batch=batch, patch=patch, objective="denoising", fraction=0.25)
    images = [torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))]
    steps = training(score_run.start(name, config), images)
    next(steps), next(steps)
    return lambda: next(steps)


def spline_pass(compiled: Callable) -> Callable:
    """phi and phi' of 16 x 48 planes of 96 x 96 points, and the gradients in points and coefficients."""
    grid, random = SplineGrid(63, -6.0, 6.0), torch.Generator().manual_seed(0)
    x = (1.5 * torch.randn(768, 96 * 96, generator=random)).clamp(-5.99, 5.99).requires_grad_()
    a = torch.randn(768, 63, generator=random).requires_grad_()
    g = [torch.randn(768, 96 * 96, generator=random) for _ in range(2)]
    function = compiled(lambda x, a: evaluate(x, a, grid, (0, 1)))
    return lambda: torch.autograd.grad(function(x, a), (x, a), g)


def bm3d(image) -> Callable | None:
    try:
        from bm3d import bm3d
    except ImportError:
        return None
    return lambda: bm3d(image, sigma_psd=25 / 255)


# measuring -----------------------------------------------------------------------------------------------------------


def seconds(function: Callable, rounds: int) -> float:
    """Least processor time of ``rounds`` calls after a first one; of two in all where a call takes seconds."""
    best = float("inf")
    for k in range(rounds + 1):
        start = time.process_time()
        function()
        took = time.process_time() - start
        best = min(best, took) if k else best
        if k and took > 2:
            break
    return best


def second_thread(rounds: int) -> dict[str, float]:
    """How many times faster two threads are than one, least times at the clock; nothing where there is one core."""
    if (os.cpu_count() or 1) < 2:
        return {}
    y, found = torch.rand(8, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)), {}
    for name, batch, patch in (("R1", 16, 48), ("R3", 4, 72)):
        prior = load_prior(name)
        gradient = no_grad(lambda p=prior: p.grad(y, T))
        for task, function in (
            ("training step", training_step(name, batch, patch)),
            ("gradient, 8 images", gradient),
        ):
            least = {1: math.inf, 2: math.inf}
            for count in (*[1] * rounds, *[2] * rounds) * 2:  # a change of the number costs time
                torch.set_num_threads(count)
                start = time.perf_counter()
                function()
                least[count] = min(least[count], time.perf_counter() - start)
            found[f"{name} {task}"] = least[1] / least[2]
    return found


def convolution_rate(rounds: int = 20) -> float:
    """Operations per second of a 3 x 3 convolution of 48 to 48 channels, channels_last."""
    x = torch.randn(1, 48, 160, 160).to(memory_format=torch.channels_last)
    k = torch.randn(48, 48, 3, 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        took = seconds(lambda: torch.nn.functional.conv2d(x, k), rounds)
    return 2 * 48 * 48 * 9 * 158**2 / took


def bandwidth(rounds: int = 10) -> float:
    """Bytes per second of out = a + 0.3 b on arrays that no cache holds."""
    a, b, out = (torch.zeros(2**25) for _ in range(3))
    return 12 * 2**25 / seconds(lambda: torch.add(a, b, alpha=0.3, out=out), rounds)


def operations(function: Callable) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def measure(variant: str, rounds: int, **options) -> dict:
    """The tasks of one variant in this process: rates of the machine, and seconds (and operations) by task."""
    torch.set_num_threads(1)
    rate, rows = convolution_rate(), {}
    for name, function in tasks(variant, **options):
        if function is None:
            continue
        rows[name] = {"seconds": seconds(function, rounds)}
        if variant == "plain torch":
            rows[name]["operations"] = operations(function)
    return {
        "rate": max(rate, convolution_rate()),
        "bandwidth": bandwidth(),
        "tasks": rows,
    }


def child(variant: str, rounds: int) -> dict:
    """:func:`measure` in a process with the environment of the variant. Raises RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as cache:  # of inductor: a damaged one would fail
        done = subprocess.run(
            [sys.executable, __file__, "--variant", variant, "--rounds", str(rounds)],
            capture_output=True,
            text=True,
            env=os.environ | VARIANTS[variant] | {"TORCHINDUCTOR_CACHE_DIR": cache},
        )
    if done.returncode:
        said = done.stderr.strip().splitlines()  # nothing if the system killed it, for want of memory perhaps
        raise RuntimeError(f"{variant}: {said[-1] if said else f'exit status {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def collect(found: dict[str, dict], threads: dict[str, float] | None = None) -> dict:
    """The table from what the variants measured: one row per task, with the floor and the ratios to it.

    Parameters
    ----------
    found
        Result of :func:`measure` by variant; "plain torch" has the operations.
    threads
        Result of :func:`second_thread`.

    Returns
    -------
    dict
        For JSON: ``machine``, ``rate`` (the best of all processes), ``bandwidth`` and ``rows``, by task: ``seconds`` by
        variant, ``operations``, ``floor`` in seconds, ``ratio`` (ours / floor), ``goal`` where there is one; and
        ``second_thread``.
    """
    rate = max(result["rate"] for result in found.values())
    rows: dict[str, dict] = {}
    for variant, result in found.items():
        for name, row in result["tasks"].items():
            rows.setdefault(name, {"seconds": {}})["seconds"][variant] = row["seconds"]
            if row.get("operations"):
                rows[name]["operations"] = row["operations"]
    for name, row in rows.items():
        task, _, size = name.partition(", ")
        # the same task on other pixels, or in another arithmetic
        if size and "operations" in rows.get(task, {}):
            height, width = map(int, size.split(" x ")) if " x " in size else (HEIGHT, WIDTH)
            row["operations"] = round(rows[task]["operations"] * height * width / (HEIGHT * WIDTH))
        if row.get("operations"):
            row["floor"] = row["operations"] / rate
            if "ours" in row["seconds"]:
                row["ratio"] = row["seconds"]["ours"] / row["floor"]
        if name in GOALS:
            row["goal"] = GOALS[name]
    return {
        "machine": {"processor": provenance.processor(), "torch": torch.__version__, "threads": 1},
        "rate": rate,
        "bandwidth": max(result["bandwidth"] for result in found.values()),
        "rows": rows,
        "second_thread": threads or {},
    }  # fmt: skip


# what is shown -------------------------------------------------------------------------------------------------------


def report(table: dict) -> str:
    """The table that the command prints, times in milliseconds."""
    machine = table["machine"]
    lines = [
        f"one thread of {machine['processor']}, torch {machine['torch']}",
        f"image {HEIGHT} x {WIDTH}, processor time in ms",
        f"fastest convolution {table['rate'] / 1e9:.0f} GFLOP/s, memory {table['bandwidth'] / 1e9:.0f} GB/s",
        "",
        f"{'':<26}{'GFLOP':>8}{'floor':>8}{''.join(f'{v:>15}' for v in VARIANTS)}{'ours/floor':>12}{'GFLOP/s':>9}",
    ]
    for name, row in table["rows"].items():
        times = "".join(_cell(row["seconds"].get(v), 1e3, 15) for v in VARIANTS)
        ours, work = row["seconds"].get("ours"), row.get("operations")
        speed = work / ours / 1e9 if work and ours else None
        line = f"{name:<26}{_cell(work, 1e-9, 8, 2)}{_cell(row.get('floor'), 1e3, 8)}{times}"
        line += f"{_cell(row.get('ratio'), 1, 12, 2)}{_cell(speed, 1, 9, 0)}"
        if "goal" in row and "ratio" in row:
            line += f"  {'at most' if row['ratio'] <= row['goal'] else 'MISSES'} {row['goal']:g}"
        lines.append(line)
    ours = {name: row["seconds"].get("ours") for name, row in table["rows"].items()}
    for name in (name for name in ours if "learned" in name):
        if ours.get(name) and ours.get("BM3D"):
            lines.append(f"{name}: {ours[name] / ours['BM3D']:.3f} of the time of BM3D")
    lines += [
        f"{name}: {factor:.2f} times faster with two threads"
        for name, factor in table["second_thread"].items()
    ]
    return "\n".join(lines)


def _cell(value: float | None, scale: float, width: int, digits: int = 1) -> str:
    return f"{'-' if value is None else f'{scale * value:.{digits}f}':>{width}}"


def intensity(name: str, operations: int) -> float:
    """Operations per byte of a gradient on the benchmark's image; see the module for which bytes count."""
    layers = load_prior(name).config.layers
    return operations / (4 * HEIGHT * WIDTH * (2 + 6 * 48 * (layers - 1)))


def draw(table: dict, path: Path) -> None:
    """The roofline: speed of each prior's gradient, ours and in plain torch, under what the machine allows."""
    from gnclib.suite import plots

    plots.use_style()
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(5.2, 3.4))
    x = np.geomspace(1, 3000, 200)
    axes.loglog(x, np.minimum(table["bandwidth"] * x, table["rate"]) / 1e9, color="0.4")
    axes.annotate("memory", (1.0, 1.7 * table["bandwidth"] / 1e9), rotation=38, color="0.4")
    axes.annotate("fastest convolution", (3000, 1.1 * table["rate"] / 1e9), ha="right", color="0.4")
    for name in PRIORS[:3]:
        row = table["rows"].get(f"{name} gradient", {})
        if row.get("operations"):
            at = intensity(name, row["operations"])
            for variant, marker in (("ours", "o"), ("plain torch", "s")):
                if variant in row["seconds"]:
                    speed = row["operations"] / row["seconds"][variant] / 1e9
                    colour, label = ("C0", "C1")[marker == "s"], variant if name == "R1" else None
                    axes.plot(at, speed, marker, color=colour, label=label)
                    up = {"R2": "top", "R3": "bottom"}.get(name, "center")  # R2 and R3 lie close together
                    axes.annotate(f"  ${name[0]}_{name[1]}$", (at, speed), va=up)
    axes.set(xlabel="operations per byte", ylabel="GFLOP/s, one thread", ylim=(5, 2 * table["rate"] / 1e9))
    axes.legend(loc="lower left")
    figure.savefig(path)


def main() -> None:
    """Measure, print the table, and write the numbers and the picture where asked."""
    parser = argparse.ArgumentParser(description="The energies against the machine's fastest convolution.")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each task")
    parser.add_argument(
        "--variant", choices=VARIANTS, help="measure this one in this process, and print JSON"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="the roofline")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.variant:
        print(json.dumps(measure(args.variant, args.rounds)))
        return
    found = {}
    for variant in VARIANTS:
        try:
            found[variant] = child(variant, args.rounds)
        except RuntimeError as error:  # no compiler, for instance
            print(f"not measured: {error}", file=sys.stderr)
    table = collect(found, second_thread(args.rounds))
    print(report(table))
    if args.json:
        files.write_text(args.json, json.dumps(table, indent=2) + "\n")
    if args.figure:
        draw(table, args.figure)


if __name__ == "__main__":
    main()
