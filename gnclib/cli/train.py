"""The subcommand ``gnc train``: progress, and what happens on Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from gnclib.cli.evaluate import say
from gnclib.cli.options import TRAIN_SETTINGS
from gnclib.score import run as training_run
from gnclib.score.distributed import ALONE, Group, join
from gnclib.score.recipes import PRIORS, RECIPES
from gnclib.score.run import Row
from gnclib.score.training import CHECKPOINT, Step, TrainState, load_checkpoint
from gnclib.score.training_set import EMBEDDED

__all__ = ["images_of", "main", "signals"]


def main(args: argparse.Namespace) -> None:
    """Run ``gnc train``.

    Raises:
        ValueError: options that contradict each other, the checkpoint or the machine; or as
            :func:`gnclib.score.run.drive`.
        SystemExit: it was told to stop by a signal; the checkpoint is then written.
    """
    folder = args.out or Path("runs") / args.prior
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    if args.export_only:
        state = training_run.export(folder)
        done = f"{state.step} of {state.config.steps} iterations"
        say(f"{args.prior}: weights after {done} and their card are in {folder}")
        return
    group, device = join(args.device)
    state = _prepare(args, folder, device)
    weights = torch.cat([p.detach().reshape(-1) for p in state.model.parameters()])
    group.agree(
        torch.cat([weights, weights.new_tensor([state.step])]), "weights"
    )  # and all have looked for a checkpoint
    if group.rank == 0:
        say(f"{args.prior}: from iteration {state.step} to {state.config.steps}, reports every {args.every}")
    with signals() as received:
        steps = training_run.drive(state, folder, every=args.every, group=group, stop=lambda: bool(received))
        _show(steps, args.prior, state, group)
    group.close()
    if state.step < state.config.steps:
        name = received[0].name if received else "a signal to another process"
        if group.rank == 0:
            done = f"{state.step} of {state.config.steps} iterations"
            say(
                f"{args.prior}: stopped by {name} after {done}; the checkpoint is in {folder}, --resume goes on"
            )
        raise SystemExit(128 + (received[0] if received else signal.SIGTERM))
    if group.rank == 0:
        say(f"{args.prior}: weights, log and checkpoint are in {folder}")


def _prepare(args: argparse.Namespace, folder: Path, device: torch.device) -> TrainState:
    """A new run or the one in ``folder``, as the options say."""
    given = {name: v for name in TRAIN_SETTINGS if (v := getattr(args, name)) is not None}
    if not args.resume:
        if (folder / CHECKPOINT).exists():
            raise ValueError(
                f"{folder} holds a run already: continue it with --resume or choose another --out"
            )
        config = replace(RECIPES[args.prior], **given, images=images_of(args))
        return training_run.start(args.prior, config, warm_start=args.warm_start or "", device=device)
    state = load_checkpoint(folder, device)
    if args.images is not None:  # the folder may have moved; other images are refused when they are read
        state.config = replace(state.config, images=images_of(args))
    if args.warm_start:
        start = training_run.warm_start_settings(args.warm_start)
        if not state.record:  # older versions did not record it: --resume --warm-start does so now
            state.config = replace(state.config, **start)
        given["warm_start_sha256"] = start["warm_start_sha256"]
    if changed := [name for name, value in given.items() if value != getattr(state.config, name)]:
        options = ", ".join("--" + name.removesuffix("_sha256").replace("_", "-") for name in changed)
        raise ValueError(f"--resume goes on with the settings of the checkpoint; leave out {options}")
    if state.model.config.layers != PRIORS[args.prior].layers:
        raise ValueError(f"the checkpoint in {folder} is of another prior than {args.prior}")
    return state


def images_of(args: argparse.Namespace) -> str:
    """What ``--images`` names, as the settings have it: "" for BSDS500, "embedded", or the whole path of a folder."""
    if args.images is None:
        return ""
    return EMBEDDED if args.images == EMBEDDED else str(Path(args.images).resolve())


@contextmanager
def signals() -> Iterator[list[signal.Signals]]:
    """A list that gets SIGINT and SIGTERM when they come; a second Ctrl-C, over a second later, interrupts at once.

    Within a second it is the same one: torchrun passes on what the terminal has sent to its processes already.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    times: list[float] = []

    def note(number: int, _) -> None:
        times.append(time.monotonic())
        received.append(signal.Signals(number))
        if number == signal.SIGINT and times[-1] - times[0] > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# progress ----------------------------------------------------------------------------------------------------------


def _show(
    steps: Iterator[tuple[Step, Row | None]], name: str, state: TrainState, group: Group = ALONE
) -> None:
    """Consume the steps; rank 0 shows a bar on a terminal, and a line per row of the log elsewhere."""
    if group.rank:
        for _ in steps:
            pass
    elif sys.stderr.isatty():
        _bar(steps, name, state)
    else:
        _lines(steps, name, state)


def _bar(steps: Iterator[tuple[Step, Row | None]], name: str, state: TrainState) -> None:
    quality = "-"
    with tqdm(total=state.config.steps, initial=state.step, unit="it", desc=name) as bar:
        for step, row in steps:
            if row:
                quality = f"{row.validation:.2f} dB"
            parts = {
                "image": f"{step.image:.4f}",
                "smoothing": f"{step.smoothing:.2f}",
                "validation": quality,
            }
            bar.set_postfix(parts, refresh=False)
            bar.update()


def _lines(steps: Iterator[tuple[Step, Row | None]], name: str, state: TrainState) -> None:
    first, started = state.step, time.monotonic()
    for step, row in steps:
        if row:
            left = (time.monotonic() - started) / (step.step - first) * (state.config.steps - step.step)
            parts = (
                f"image {row.image:.4f}, smoothing {row.smoothing:.2f}, validation {row.validation:.2f} dB"
            )
            text = f"{name} {row.step}/{state.config.steps}: {parts}, {tqdm.format_interval(left)} left"
            print(text, file=sys.stderr, flush=True)
