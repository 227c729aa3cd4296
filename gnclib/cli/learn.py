"""The subcommand ``gnc learn``: progress, and what happens on Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import torch
from tqdm import tqdm

from gnclib.checks import as_device
from gnclib.cli.evaluate import say
from gnclib.cli.options import LEARN_SETTINGS
from gnclib.cli.train import images_of, signals
from gnclib.restore import learned_run
from gnclib.restore.learned import Task
from gnclib.restore.learned_run import Row, Step
from gnclib.restore.learned_state import CHECKPOINT, LearnConfig, LearnState, load_checkpoint
from gnclib.score.recipes import LEARN_RECIPES

__all__ = ["main"]


def main(args: argparse.Namespace) -> None:
    """Run ``gnc learn``.

    Raises:
        ValueError: options that contradict each other or the checkpoint; or as
        :func:`gnclib.restore.learned_run.drive`.
        SystemExit: it was told to stop by a signal; the checkpoint is then written.
    """
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    task = _task(args)
    prior = Path(args.prior).resolve().name
    tuned = "" if args.finetune is None else "finetuned-"
    name = f"{prior}-{tuned}{task}"
    folder = args.out or Path("runs") / name
    state = _resumed(args, folder, task) if args.resume else _new(args, folder, task, f"{args.prior}-{task}")
    with signals() as received:
        steps = learned_run.drive(state, folder, every=args.every, stop=lambda: bool(received))
        _show(steps, name, state)
    if state.step < state.config.iterations:
        done = f"{state.step} of {state.config.iterations} iterations"
        say(
            f"{name}: stopped by {received[0].name} after {done}; the checkpoint is in {folder}, --resume goes on"
        )
        raise SystemExit(128 + received[0])
    say(f"{name}: schedule, card and log are in {folder}")


def _task(args: argparse.Namespace) -> Task:
    wrong = args.missing if args.task == "denoise" else args.sigma
    if wrong is not None:
        raise ValueError("--sigma is for --task denoise, --missing for --task inpaint: leave the other away")
    given, default = (args.sigma, 25.0) if args.task == "denoise" else (args.missing, 0.8)
    return Task(args.task, default if given is None else given)


def _given(args: argparse.Namespace) -> dict:
    return {name: value for name in LEARN_SETTINGS if (value := getattr(args, name)) is not None}


def _new(args: argparse.Namespace, folder: Path, task: Task, schedule: str) -> LearnState:
    if (folder / CHECKPOINT).exists():
        raise ValueError(f"{folder} holds a run already: continue it with --resume or choose another --out")
    given, device = _given(args) | {"images": images_of(args)}, as_device(args.device)
    if args.finetune is None:
        if "lr_prior" in given:
            raise ValueError("--lr-prior is for --finetune: without it the prior stays as it is")
        config = LearnConfig(**vars(LEARN_RECIPES["schedule"]) | given)
        steps = 10 if args.steps is None else args.steps
        return learned_run.start(args.prior, task, config, steps=steps, t_first=args.t0, device=device)
    if args.steps is not None or args.t0 is not None:
        raise ValueError(
            "--finetune sets out from a learned schedule, which has its steps: leave --steps and --t0 away"
        )
    config = LearnConfig(**vars(LEARN_RECIPES["finetune"]) | given)
    if not config.lr_prior:
        raise ValueError("--finetune needs --lr-prior above 0")
    return learned_run.start(args.prior, task, config, schedule=args.finetune or schedule, device=device)


def _resumed(args: argparse.Namespace, folder: Path, task: Task) -> LearnState:
    state = load_checkpoint(folder, as_device(args.device))
    if args.images is not None:  # the folder may have moved; other images are refused when they are read
        state.config = replace(state.config, images=images_of(args))
    if state.schedule.task != task:
        raise ValueError(f"the checkpoint in {folder} is for {state.schedule.task}, not for {task}")
    begun = {name: getattr(args, name) for name in ("steps", "t0") if getattr(args, name) is not None}
    given, first = _given(args) | begun, state.schedule.first_t
    kept = {f.name: getattr(state.config, f.name) for f in fields(state.config)} | {
        "steps": len(first),
        "t0": first[0].item(),
    }
    if changed := [f"--{name.replace('_', '-')}" for name, value in given.items() if value != kept[name]]:
        raise ValueError(
            f"--resume goes on with the settings of the checkpoint; leave out {', '.join(changed)}"
        )
    return state


# progress ----------------------------------------------------------------------------------------------------------


def _show(steps: Iterator[tuple[Step, Row | None]], name: str, state: LearnState) -> None:
    """Consume the steps with a bar on a terminal, and a line per row of the log elsewhere."""
    total, first, started, quality = state.config.iterations, state.step, time.monotonic(), "-"
    on_terminal = sys.stderr.isatty()
    with tqdm(total=total, initial=first, unit="it", desc=name, disable=not on_terminal) as bar:
        for step, row in steps:
            if row:
                quality = f"{row.validation:.2f} dB"
            bar.set_postfix({"loss": f"{step.loss:.2e}", "validation": quality}, refresh=False)
            bar.update()
            if row and not on_terminal:
                left = (time.monotonic() - started) / (step.step - first) * (total - step.step)
                text = f"loss {row.loss:.3e}, validation {quality}, {tqdm.format_interval(left)} left"
                print(f"{name} {row.step}/{total}: {text}", file=sys.stderr, flush=True)
