"""A whole training run in a folder: checkpoints, log, validation, weights; the options of ``gnc train``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from gnclib import card, data, files
from gnclib.evaluate import denoising_psnr
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.train import CHECKPOINT, TrainConfig, TrainState, load_checkpoint, save_checkpoint, training

LOG = "log.csv"
COLUMNS = "step,loss,image,smoothing,lr,validation_psnr_25,seconds"
#: the priors that can be trained by name: number of layers
PRIORS = {"R1": 1, "R2": 2, "R3": 3}


def start(name: str, config: TrainConfig) -> TrainState:
    """A new run of R1, R2 or R3. Raises ValueError for another name."""
    if name not in PRIORS:
        raise ValueError(f"there is no prior {name!r} to train: choose one of {', '.join(PRIORS)}")
    generator = torch.Generator().manual_seed(config.seed)
    return TrainState(FieldsOfExperts(FoEConfig(layers=PRIORS[name]), generator=generator), config)


def run(
    state: TrainState, folder: str | Path, *, every: int = 1000, progress: Callable = lambda steps, **_: steps
) -> FieldsOfExperts:
    """Train to the end on train + test of BSDS500; every ``every`` steps a checkpoint, a validation, a row of the log.

    ``folder`` gets ``checkpoint.safetensors``, ``log.csv`` and, at the end, ``model.safetensors`` with ``config.json``,
    ``training.json`` and a model card, ``README.md``.
    The log has means of the loss parts over the steps since its last row, and the validation PSNR: one-step MMSE at
    sigma 25/255 on the upper left 256 x 256 pixels of the first eight images of val outside of BSDS68.

    Args:
        progress: wraps the iterator of steps, for instance tqdm.

    Raises:
        ValueError, ConnectionError, FloatingPointError: as :func:`gnclib.train.training` and :mod:`gnclib.data`.
    """
    folder = Path(folder)
    images = data.training_images()
    held_out = [x[..., :256, :256] for x in list(data.validation_images().values())[:8]]
    rows = _rows_until(folder / LOG, state.step)
    before = float(rows[-1].split(",")[-1]) if len(rows) > 1 else 0.0
    started, recent = time.monotonic(), []
    for step in progress(training(state, images), total=state.config.steps, initial=state.step):
        recent.append(step)
        if step.step % every == 0 or step.step == state.config.steps:
            loss, image, smoothing = (
                sum(getattr(s, part) for s in recent) / len(recent) for part in ("loss", "image", "smoothing")
            )
            values = denoising_psnr(state.model, held_out, 25 / 255)
            quality, seconds = sum(values) / len(values), before + time.monotonic() - started
            rows.append(
                f"{step.step},{loss:.6f},{image:.6f},{smoothing:.6f},{step.lr:.3e},{quality:.3f},{seconds:.0f}"
            )
            save_checkpoint(state, folder)
            files.write_text(folder / LOG, "\n".join(rows) + "\n")
            recent = []
    state.model.save_pretrained(folder)
    seconds = float(rows[-1].split(",")[-1])
    files.write_text(folder / "training.json", json.dumps(card.provenance(state, seconds), indent=2) + "\n")
    card.write(folder)
    return state.model


def _rows_until(log: Path, step: int) -> list[str]:
    """The log so far, without rows that a resumed run will write again."""
    if not step or not log.is_file():
        return [COLUMNS]
    rows = log.read_text().splitlines()[1:]
    return [COLUMNS, *(row for row in rows if int(row.split(",")[0]) <= step)]


# the command -------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``gnc train``; those of :class:`gnclib.train.TrainConfig` with its defaults."""
    parser.add_argument("prior", choices=sorted(PRIORS), help="which prior: the number is that of its layers")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/PRIOR)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    parser.add_argument("--threads", type=int, metavar="N", help="torch threads (default: torch's own)")
    help = {
        "steps": "iterations (the paper: 100000)",
        "batch": "patches per iteration",
        "patch": "side of a patch in pixels",
        "lr": "first learning rate of kernels and potentials",
        "lr_constant": "first learning rate of c(tau)",
        "lr_last": "last learning rate",
        "smoothing": "lambda of eq. 7, per pixel",
        "fraction": "part of the batch on which the smoothing part is evaluated",
        "objective": "corrected (eq. 7 with its boundary term), printed (eq. 7) or denoising (in tau as well)",
        "roughness": "weight of the decoupled smoothing of the potentials",
        "seed": "of patches, noise levels and noise",
    }
    for item in fields(TrainConfig):
        option = "--" + item.name.replace("_", "-")
        text = f"{help[item.name]} (default: {item.default})"
        parser.add_argument(option, type=type(item.default), default=None, metavar="X", help=text)


def main(args: argparse.Namespace) -> None:
    """Run ``gnc train``. Raises ValueError where the options contradict each other or the checkpoint."""
    folder = args.out or Path("runs") / args.prior
    given = {f.name: v for f in fields(TrainConfig) if (v := getattr(args, f.name)) is not None}
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    if args.resume:
        state = load_checkpoint(folder)
        if changed := [name for name, value in given.items() if value != getattr(state.config, name)]:
            raise ValueError(
                "--resume goes on with the settings of the checkpoint; leave out --" + ", --".join(changed)
            )
        if state.model.config.layers != PRIORS[args.prior]:
            raise ValueError(f"the checkpoint in {folder} is of another prior than {args.prior}")
    elif (folder / CHECKPOINT).exists():
        raise ValueError(f"{folder} holds a run already: continue it with --resume or choose another --out")
    else:
        state = start(args.prior, TrainConfig(**given))

    def progress(steps, total, initial):
        with tqdm(steps, total=total, initial=initial, unit="it", desc=args.prior) as bar:
            for step in bar:
                bar.set_postfix(image=f"{step.image:.4f}", smoothing=f"{step.smoothing:.2f}", refresh=False)
                yield step

    run(state, folder, progress=progress)
    print(f"{args.prior}: weights, log and checkpoint are in {folder}")
