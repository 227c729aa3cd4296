"""The subcommand ``gnc compare``: our schemes beside BM3D, TV and biharmonic inpainting."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gnclib.cli.evaluate import say

__all__ = ["compare_parser"]


def compare_parser(add) -> None:
    sub = add(
        "compare", _compare, "compare the priors with BM3D, TV and biharmonic inpainting",
        "Run methods side by side on the same measurements and add PSNR, SSIM and seconds of every image to FILE.\n"
        "Started again after an interruption, the command runs what is missing, and what has become stale because\n"
        "weights have changed. Image k has noise or mask of seed k; nothing is clipped; everything runs on the CPU\n"
        "in one thread. BM3D needs the package bm3d (pip install 'gnclib[compare]'), which is free for non-commercial\n"
        "use only.",
        "  gnc compare --table                                        the results that come with the package\n"
        "  gnc compare --only BM3D --only 'R1 mmse' --sigma 25 --limit 4\n"
        "  gnc compare --images photos/ --missing 80 --only biharmonic --only 'R1 gnc'\n"
        "  gnc compare --timing 4                                     seconds relative to BM3D, in turns on one core\n"
        "  gnc compare                                                everything on BSDS68; many hours",
    )  # fmt: skip
    sub.add_argument("--sigma", type=float, action="append", default=[], metavar="S",
                     help="denoising: noise level in grey levels of 0..255; may be repeated")  # fmt: skip
    sub.add_argument("--missing", type=float, action="append", default=[], metavar="P",
                     help="inpainting: percent of the pixels that are missing; may be repeated"
                     " (default of both: sigma 25, 80 %% missing, sigma 15, sigma 50)")  # fmt: skip
    sub.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a method; may be repeated (default: all)"
    )
    sub.add_argument("--images", type=Path, metavar="DIR", help="folder of images (default: BSDS68)")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    sub.add_argument("--out", type=Path, metavar="FILE", help="result file (default: runs/field.json)")
    sub.add_argument("--timing", type=int, metavar="N",
                     help="instead: time the methods in turns on the first N images")  # fmt: skip
    sub.add_argument("--tune-tv", action="store_true",
                     help="tune the weight of TV anew on training images (default: as recorded)")  # fmt: skip
    sub.add_argument(
        "--table", action="store_true", help="run nothing, print the table of FILE (default: the shipped one)"
    )


def _compare(args: argparse.Namespace) -> None:
    for option in ("limit", "timing"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option} must be at least 1, got {value}")
    for value in args.sigma:
        if not 0 < value <= 255:
            raise ValueError(f"--sigma must lie in (0, 255], got {value:g}")
    for value in args.missing:
        if not 0 < value < 100:
            raise ValueError(f"--missing must lie between 0 and 100 percent, got {value:g}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded
    import torch
    from tqdm import tqdm

    from gnclib.images import data
    from gnclib.restore import evaluate
    from gnclib.restore.learned import Task
    from gnclib.studies import field, field_run

    if args.table:
        say(field.table(field_run.load(args.out or field_run.SHIPPED)))
        return
    torch.set_num_threads(1)
    path = args.out or Path("runs/field.json")
    tasks = [Task("denoise", s) for s in args.sigma] + [Task("inpaint", p / 100) for p in args.missing]
    images = evaluate.folder_images(args.images) if args.images else data.bsds68()
    name = str(args.images.resolve()) if args.images else "BSDS68"
    images = dict(list(images.items())[: args.timing or args.limit])
    if args.tune_tv:
        weights = field_run.tuned(path, name, tasks or field_run.TASKS, again=True)
        say(", ".join(f"TV, {task}: weight {weight:g}" for task, weight in weights.items()))
    if args.timing:
        seconds = field_run.timing(path, images, name, tasks or field_run.TASKS[:2], args.only)
        unit = sum(seconds[str(field_run.REFERENCE)]["BM3D"])
        say(f"BM3D: {unit / len(images):.2f} s of processor time per image, {len(images)} images")
        for task, found in seconds.items():
            for method, values in found.items():
                say(f"{method:<14}{task:<12}{sum(values) / unit:8.3f} of it")
        return
    results = field_run.compare(path, images, name, tasks or field_run.TASKS, args.only)
    done = 0
    for result in tqdm(results, unit="result", disable=not sys.stderr.isatty()):
        done += 1
        if not sys.stderr.isatty():
            say(
                f"{result.task}  {result.image}  {result.method}: {result.psnr:.2f} dB, SSIM {result.ssim:.3f},"
                f" {result.cpu:.2f} s"
            )
    say(f"{done} results were added to {path}; 'gnc compare --table --out {path}' shows them")
