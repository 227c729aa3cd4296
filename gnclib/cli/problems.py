"""The subcommand ``gnc problems``: deblurring, super-resolution, compressed sensing and tomography."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gnclib.cli.evaluate import say

__all__ = ["problems_parser"]

#: the keys of `gnclib.studies.problems.PROBLEMS`, which would load torch for ``--help``
PROBLEM_NAMES = ("deblur", "super-2", "super-3", "sensing", "tomography")


def problems_parser(add) -> None:
    sub = add(
        "problems", _problems, "more inverse problems: deblurring, super-resolution, compressed sensing, tomography",
        "Solve linear inverse problems with the priors of the package, with and without graduated non-convexity, and\n"
        "with TV; add PSNR, SSIM and seconds of every image to FILE. Every method is tuned on training images first,\n"
        "by the same rule. The images are the squares of 192 pixels in the middle of the first 12 images of BSDS68;\n"
        "image k is measured with seed k; nothing is clipped. Started again, the command runs what is missing.",
        "  gnc problems --table                                     the results that come with the package\n"
        "  gnc problems --problem deblur --only TV --only 'R1 gnc'\n"
        "  gnc problems                                             everything; some hours on one core",
    )  # fmt: skip
    sub.add_argument("--problem", action="append", default=[], choices=PROBLEM_NAMES, metavar="NAME",
                     help=f"{', '.join(PROBLEM_NAMES)}; may be repeated (default: all)")  # fmt: skip
    sub.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a method; may be repeated (default: all)"
    )
    sub.add_argument("--out", type=Path, metavar="FILE", help="result file (default: runs/problems.json)")
    sub.add_argument(
        "--table", action="store_true", help="run nothing, print the table of FILE (default: the shipped one)"
    )


def _problems(args: argparse.Namespace) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded
    import torch
    from tqdm import tqdm

    from gnclib.studies import problems_run
    from gnclib.studies.problems import PROBLEMS

    if args.table:
        say(problems_run.table(problems_run.load(args.out or problems_run.SHIPPED)))
        return
    torch.set_num_threads(1)
    path = args.out or Path("runs/problems.json")
    run = problems_run.restore(
        path,
        problems_run.images(),
        "BSDS68, the first 12, middle 192 x 192",
        args.problem or list(PROBLEMS),
        args.only,
    )
    done = 0
    for result in tqdm(run, unit="result", disable=not sys.stderr.isatty()):
        done += 1
        if not sys.stderr.isatty():
            say(f"{result.task}  {result.image}  {result.method}: {result.psnr:.2f} dB, {result.cpu:.2f} s")
    say(f"{done} results were added to {path}; 'gnc problems --table --out {path}' shows them")
