"""The subcommand ``gnc sweep``: options, workers and progress."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["sweep_parser"]


def sweep_parser(add) -> None:
    sub = add(
        "sweep", _sweep, "compute Figure 3: attainment and PSNR over t_0 and I, image by image",
        "Run the GNC flow and joint optimisation from 8 initial smoothings t_0 with 1 to 64 steps for denoising and\n"
        "inpainting, and measure energy and PSNR. One job is one image and task; its result is added to FILE at once.\n"
        "Started again after an interruption, the command computes what is missing. One process by default; with\n"
        "--workers a local dask cluster, with --scheduler an existing one, whose workers need this package and read\n"
        "the weights themselves, by the name of a shipped prior or from a folder with the same path.",
        "  gnc sweep                                      R1, everything; some hours on one core\n"
        "  gnc sweep --set embedded --limit 1             one bundled photograph, no BSDS500 needed\n"
        "  gnc sweep --workers 8                          eight processes on this machine\n"
        "  gnc sweep --scheduler tcp://10.0.0.1:8786      workers started there with: dask worker ADDRESS\n"
        "  gnc sweep --crop 0 --device cuda               whole images on a GPU",
    )  # fmt: skip
    sub.add_argument(
        "--prior", default="R1", metavar="NAME", help="a prior of the package or a folder (default: R1)"
    )
    sub.add_argument(
        "--task", action="append", choices=("denoise", "inpaint"), help="may be repeated (default: both)"
    )
    sub.add_argument("--set", action="append", choices=("embedded", "bsds68"),
                     help="images; may be repeated (default: both, the four embedded photographs first)")  # fmt: skip
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N images of each set")
    sub.add_argument("--crop", type=int, default=160, metavar="PIXELS",
                     help="side of the middle square of an image, 0 for whole images (default: 160)")  # fmt: skip
    sub.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes of one thread (default: 1, without dask)",
    )
    sub.add_argument("--scheduler", default="", metavar="ADDRESS", help="dask scheduler to work with")
    sub.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where jobs compute (default: cpu)"
    )
    sub.add_argument("--out", type=Path, metavar="FILE", help="default: runs/figure3_NAME.json")


def _sweep(args: argparse.Namespace) -> None:
    """Run ``gnc sweep``. Raises ValueError for options that do not fit together or the file."""
    from dataclasses import replace
    from functools import partial

    from gnclib.studies import figure3, figure3_run

    if args.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {args.workers}")
    if args.scheduler and args.workers > 1:
        raise ValueError("--workers starts a cluster of its own: leave it away with --scheduler")
    prior = figure3_run.identify(args.prior)
    settings = replace(figure3_run.SETTINGS, crop=args.crop)
    out = args.out or Path("runs") / f"figure3_{prior['name']}.json"
    known = set()
    if out.exists():
        content = figure3_run.load(out)
        try:
            figure3_run.check(content, prior, settings)
        except ValueError as error:
            raise ValueError(f"{out} cannot be continued: {error}") from None
        known = figure3_run.done(content)
    chosen = figure3_run.jobs(settings, args.set or figure3_run.SETS, args.task or figure3.TASKS, args.limit)
    wanted = [job for job in chosen if job.key not in known]
    print(f"{len(wanted)} jobs to do, {len(chosen) - len(wanted)} in {out} already", flush=True)
    if not wanted:
        return
    function = partial(figure3_run.work, prior=prior, settings=settings, device=args.device)
    runs = _runs(function, wanted, args)
    for run in _shown(runs, len(chosen), len(wanted)):
        figure3_run.add(out, prior, settings, run)
    print(f"{len(chosen)} jobs are in {out}", flush=True)


def _runs(function, wanted, args) -> Iterator[dict]:
    from gnclib.studies import figure3_run

    if args.workers == 1 and not args.scheduler:
        yield from figure3_run.serially(function, wanted)
        return
    with figure3_run.client(args.workers, args.scheduler) as connected:
        yield from figure3_run.on_cluster(connected, function, wanted)


def _shown(runs: Iterator[dict], total: int, left: int) -> Iterator[dict]:
    """Pass the runs on, with a bar on a terminal and a line each elsewhere; both tell the time left."""
    from tqdm import tqdm

    bar = tqdm(total=total, initial=total - left, unit="job", desc="sweep", disable=not sys.stderr.isatty())
    started = time.monotonic()
    with bar:
        for k, run in enumerate(runs, 1):
            yield run  # written before it counts
            bar.update()
            if bar.disable:
                rest = tqdm.format_interval((time.monotonic() - started) / k * (left - k))
                what = f"{run['set']} {run['image']} {run['task']}"
                text = f"{total - left + k}/{total}  {what}: {run['seconds']:.0f} s, {rest} left"
                print(text, file=sys.stderr, flush=True)
