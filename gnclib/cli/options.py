"""The options of ``gnc train``, ``gnc learn`` and ``gnc ablate``, known without torch, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from gnclib.foe import START_ACTIVATIONS
from gnclib.score.recipes import LEARN_RECIPES, PRIORS, RECIPES, STEPS, variants
from gnclib.score.settings import OBJECTIVES

__all__ = ["LEARN_SETTINGS", "TRAIN_SETTINGS", "ablate_arguments", "learn_arguments", "train_arguments"]

TRAIN_SETTINGS = {
    "steps": "iterations (the paper: 100000)",
    "batch": "patches per iteration, over all processes",
    "patch": "side of a patch in pixels",
    "lr": "first learning rate of kernels and potentials",
    "lr_constant": "first learning rate of c(tau)",
    "lr_last": "last learning rate",
    "smoothing": "lambda of eq. 7, per pixel",
    "fraction": "part of the batch on which the smoothing part is evaluated",
    "objective": "corrected (eq. 7 with its boundary term), printed (eq. 7), vanishing (eq. 7, prior of tau zero at the"
    " ends), or denoising (in tau as well; departs from eq. 7, same minimiser)",
    "roughness": "weight of the decoupled smoothing of the potentials",
    "roughness_hidden": "the same for hidden activations, relative to it",
    "warm_start_hidden": "last hidden activation at a warm start, identity or magnitude",
    "averaging": "decay of the moving average of the weights, 0 for none",
    "seed": "of patches, noise levels and noise",
}

LEARN_SETTINGS = {
    "iterations": "updates",
    "batch": "patches per update",
    "patch": "side of a patch in pixels",
    "lr": "first learning rate of tau and log eta",
    "lr_prior": "first learning rate of the prior, with --finetune",
    "seed": "of patches, noise and masks",
}


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``gnc train``; defaults are the recipes of the shipped priors."""
    parser.add_argument("prior", choices=sorted(PRIORS), help="which prior: the number is that of its layers")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/PRIOR)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    parser.add_argument(
        "--export-only",
        action="store_true",
        help="train nothing: write weights and model card of the checkpoint in DIR, finished or not",
    )
    parser.add_argument(
        "--warm-start",
        metavar="PRIOR",
        help="set out from this prior of one layer, a shipped name or a folder (default: as in the paper, from DCT and"
        " random kernels); with --resume of a checkpoint that does not say what it set out from: record it",
    )
    parser.add_argument(
        "--every", type=int, default=1000, metavar="N", help="steps between two checkpoints (default: 1000)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: cpu)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="torch threads (default: torch's own)")
    _images(parser)
    for name, text in TRAIN_SETTINGS.items():
        defaults = [getattr(recipe, name) for recipe in RECIPES.values()]
        alike = len(set(defaults)) == 1
        shown = (
            defaults[0]
            if alike
            else ", ".join(f"{d} for {r}" for r, d in zip(RECIPES, defaults, strict=True))
        )
        _setting(parser, name, type(defaults[0]), f"{text} (default: {shown})")


def learn_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``gnc learn``; defaults are the recipes of the shipped schedules."""
    parser.add_argument("prior", metavar="PRIOR", help="a prior of the package (R1) or a folder")
    parser.add_argument("--task", choices=("denoise", "inpaint"), default="denoise", help="default: denoise")
    parser.add_argument(
        "--sigma",
        type=float,
        metavar="S",
        help="of denoise: noise level in grey levels of 0..255 (default: 25)",
    )
    parser.add_argument(
        "--missing", type=float, metavar="Q", help="of inpaint: fraction of missing pixels (default: 0.8)"
    )
    parser.add_argument("--steps", type=int, metavar="I", help="steps of the schedule (default: 10)")
    parser.add_argument("--t0", type=float, metavar="T",
                        help="noise variance that learning begins with in step 1, down to the smallest of the prior"
                        " in the last (default: the largest of the prior; 0.03 for inpaint)")  # fmt: skip
    parser.add_argument(
        "--finetune",
        nargs="?",
        const="",
        metavar="SCHEDULE",
        help="train the prior as well, from this learned schedule, a shipped name or a folder (default: PRIOR-TASK)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the run (default: runs/PRIOR-TASK, as in runs/R1-denoise-25); --scheme learned of gnc denoise"
        " looks for it beside the prior",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    parser.add_argument(
        "--device", default="cpu", metavar="D", help="where to compute: cpu (default), cuda, ..."
    )
    parser.add_argument(
        "--every", type=int, default=100, metavar="N", help="updates between two checkpoints (default: 100)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="torch threads (default: torch's own)")
    _images(parser)
    plain, tuned = LEARN_RECIPES["schedule"], LEARN_RECIPES["finetune"]
    for name, text in LEARN_SETTINGS.items():
        default, other = getattr(plain, name), getattr(tuned, name)
        shown = other if name == "lr_prior" else default
        shown = f"{shown}, {other} with --finetune" if shown != other else f"{shown}"
        _setting(parser, name, type(default), f"{text} (default: {shown})")


def _setting(parser: argparse.ArgumentParser, name: str, kind: type, text: str) -> None:
    """The option for one setting of a training: a number, or one of a few words."""
    words = {"objective": OBJECTIVES, "warm_start_hidden": START_ACTIVATIONS}
    shown = {"choices": words[name]} if name in words else {"metavar": "N" if kind is int else "X"}
    parser.add_argument("--" + name.replace("_", "-"), type=kind, help=text, **shown)


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="train on the images of this folder (not of its subfolders), turned to grey, or on 'embedded', the"
        " photographs of scikit-image; one in eight, at least one and at most eight, is held out for validation"
        " (default: BSDS500 train + test)",
    )


def ablate_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``gnc ablate``."""
    names = [v.name for v in variants()]
    parser.add_argument(
        "--steps", type=int, default=STEPS, metavar="N", help=f"iterations per training (default: {STEPS})"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1],
        metavar="K",
        help="default: 0 1; all of one come first",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", choices=names,
        help=f"a variant; may be repeated (default: all of {', '.join(names)})",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablations.json"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="torch threads (default: 1)")
