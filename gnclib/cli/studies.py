"""The commands for what takes hours: ``gnc compare``, ``problems``, ``sweep`` and ``patches``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from gnclib.cli import options
from gnclib.cli.options import PATH, POSITIVE, command, progress, say

__all__ = ["compare", "patches", "problems", "sweep"]

table_option = click.option(
    "--table", is_flag=True, help="run nothing, print the table of FILE (default: as shipped)"
)


@command(
    """
    gnc compare --table                                        the results that come with the package
    gnc compare --only BM3D --only 'R1 mmse' --sigma 25 --limit 4
    gnc compare --images photos/ --missing 80 --only biharmonic --only 'R1 gnc'
    gnc compare --timing 4                                     seconds relative to BM3D, in turns on one core
    gnc compare                                                everything on BSDS68; many hours
    """
)
@options.repeated("--sigma", type=float, metavar="S", help="noise level in grey levels of 0..255")
@options.repeated("--missing", type=float, metavar="P", help="percent of the pixels that are missing")
@options.only("a method")
@options.image_set
@click.option("--out", type=PATH, metavar="FILE", help="result file (default: runs/field.json)")
@click.option("--timing", type=POSITIVE, metavar="N", help="instead: time the methods in turns on N images")
@click.option(
    "--tune-tv", is_flag=True, help="tune the weight of TV anew on training images (default: as recorded)"
)
@table_option
def compare(sigma, missing, only, images, limit, out, timing, tune_tv, table):
    """Run methods side by side on the same measurements and add PSNR, SSIM and seconds of every image to FILE.
    Started again after an interruption, the command runs what is missing, and what has become stale because weights
    have changed. Image k has noise or mask of seed k; nothing is clipped; everything runs on the CPU in one thread.
    BM3D needs the package bm3d (pip install 'gnclib[compare]'), which is free for non-commercial use only."""
    _one_thread()
    from gnclib.images import bsds68, folder_images
    from gnclib.restore import Task
    from gnclib.studies import field, field_run

    if table:
        say(field.table(field_run.load(out or field_run.SHIPPED)))
        return
    path = out or Path("runs/field.json")
    tasks = [Task("denoise", s) for s in sigma] + [Task("inpaint", p / 100) for p in missing]
    found = folder_images(images) if images else bsds68()
    name = str(images.resolve()) if images else "BSDS68"
    found = dict(list(found.items())[: timing or limit])
    if tune_tv:
        weights = field_run.tuned(path, name, tasks or field_run.TASKS, again=True)
        say(", ".join(f"TV, {task}: weight {weight:g}" for task, weight in weights.items()))
    if timing:
        seconds = field_run.timing(path, found, name, tasks or field_run.TASKS[:2], only)
        unit = sum(seconds[str(field_run.REFERENCE)]["BM3D"])
        say(f"BM3D: {unit / len(found):.2f} s of processor time per image, {len(found)} images")
        for task, times in seconds.items():
            for method, values in times.items():
                say(f"{method:<14}{task:<12}{sum(values) / unit:8.3f} of it")
        return
    _show_results(field_run.compare(path, found, name, tasks or field_run.TASKS, only), "compare", path)


@command(
    """
    gnc problems --table                                     the results that come with the package
    gnc problems --problem deblur --only TV --only 'R1 gnc'
    gnc problems                                             everything; some hours on one core
    """
)
@options.repeated("--problem", metavar="NAME", help="deblur, super-2, super-3, sensing or tomography")
@options.only("a method")
@click.option("--out", type=PATH, metavar="FILE", help="result file (default: runs/problems.json)")
@table_option
def problems(problem, only, out, table):
    """Solve linear inverse problems with the priors of the package, with and without graduated non-convexity, and
    with TV; add PSNR, SSIM and seconds of every image to FILE. Every method is tuned on training images first, by the
    same rule. The images are the squares of 192 pixels in the middle of the first 12 images of BSDS68; image k is
    measured with seed k; nothing is clipped. Started again, the command runs what is missing."""
    _one_thread()
    from gnclib.studies import problems_run
    from gnclib.studies.problems import PROBLEMS

    if table:
        say(problems_run.table(problems_run.load(out or problems_run.SHIPPED)))
        return
    path = out or Path("runs/problems.json")
    images, name = problems_run.images(), "BSDS68, the first 12, middle 192 x 192"
    _show_results(problems_run.restore(path, images, name, problem or list(PROBLEMS), only), "problems", path)


def _one_thread() -> None:
    """Compute in one thread: seconds are compared."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded
    import torch

    torch.set_num_threads(1)


def _show_results(results: Iterable, name: str, path: Path) -> None:
    """Run what is missing, and say each result, or show a bar on a terminal."""
    done = 0
    for result in progress(results, "result"):
        done += 1
        if not sys.stderr.isatty():
            say(
                f"{result.task}  {result.image}  {result.method}: {result.psnr:.2f} dB, SSIM {result.ssim:.3f},"
                f" {result.cpu:.2f} s"
            )
    say(f"{done} results were added to {path}; 'gnc {name} --table --out {path}' shows them")


@command(
    """
    gnc sweep                                      R1, everything; some hours on one core
    gnc sweep --set embedded --limit 1             one bundled photograph, no BSDS500 needed
    gnc sweep --workers 8                          eight processes on this machine
    gnc sweep --scheduler tcp://10.0.0.1:8786      workers started there with: dask worker ADDRESS
    gnc sweep --crop 0 --device cuda               whole images on a GPU
    """
)
@click.option("--prior", default="R1", metavar="NAME", help="a prior of the package or a folder")
@options.repeated("--task", type=click.Choice(["denoise", "inpaint"]), help="default: both")
@options.repeated("--set", "sets", type=click.Choice(["embedded", "bsds68"]), help="of images; default: both")
@click.option("--limit", type=POSITIVE, metavar="N", help="only the first N images of each set")
@click.option(
    "--crop", type=int, default=160, metavar="PIXELS", help="side of the middle square, 0 for whole images"
)
@click.option(
    "--workers", type=POSITIVE, default=1, metavar="N", help="processes of one thread; 1 needs no dask"
)
@click.option("--scheduler", default="", metavar="ADDRESS", help="dask scheduler to work with")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="where jobs compute")
@click.option("--out", type=PATH, metavar="FILE", help="result file (default: runs/figure3_NAME.json)")
def sweep(prior, task, sets, limit, crop, workers, scheduler, device, out):
    """Run the GNC flow and joint optimisation from 8 initial smoothings t_0 with 1 to 64 steps for denoising and
    inpainting, and measure energy and PSNR. One job is one image and task; its result is added to FILE at once.
    Started again after an interruption, the command computes what is missing. One process by default; with --workers a
    local dask cluster, with --scheduler an existing one, whose workers need this package and read the weights
    themselves, by the name of a shipped prior or from a folder with the same path."""
    from dataclasses import replace
    from functools import partial

    from gnclib.studies import figure3, figure3_run

    if scheduler and workers > 1:
        raise ValueError("--workers starts a cluster of its own: leave it away with --scheduler")
    about = figure3_run.identify(prior)
    settings = replace(figure3_run.SETTINGS, crop=crop)
    out = out or Path("runs") / f"figure3_{about['name']}.json"
    known = set()
    if out.exists():
        content = figure3_run.load(out)
        try:
            figure3_run.check(content, about, settings)
        except ValueError as error:
            raise ValueError(f"{out} cannot be continued: {error}") from None
        known = figure3_run.done(content)
    chosen = figure3_run.jobs(settings, sets or figure3_run.SETS, task or figure3.TASKS, limit)
    wanted = [job for job in chosen if job.key not in known]
    say(f"{len(wanted)} jobs to do, {len(chosen) - len(wanted)} in {out} already")
    if not wanted:
        return
    function = partial(figure3_run.work, prior=about, settings=settings, device=device)
    runs = _on_workers(function, wanted, workers, scheduler)
    for run in _shown(runs, len(chosen), len(wanted)):
        figure3_run.add(out, about, settings, run)
    say(f"{len(chosen)} jobs are in {out}")


def _on_workers(function, wanted, workers: int, scheduler: str) -> Iterator[dict]:
    from gnclib.studies import figure3_run

    if workers == 1 and not scheduler:
        yield from figure3_run.serially(function, wanted)
        return
    with figure3_run.client(workers, scheduler) as connected:
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


@command(
    """
    gnc patches                                some minutes on one core
    gnc patches --per-image 2 --out few.json   fewer patches
    """
)
@click.option("--per-image", type=int, default=25, metavar="N", help="patches per image")
@click.option("--seed", type=int, default=0, metavar="K", help="of the patches and of the search")
@click.option("--out", type=PATH, default="runs/patches.json", metavar="FILE", help="result file")
def patches(per_image, seed, out):
    """Bound, from above and below, the convexity threshold of the empirical measure of 3x3 to 8x8 patches of the
    training images of BSDS500 (corollary 2.3). Each patch size is written at once; started again, the command
    computes what is missing."""
    from gnclib.images import data
    from gnclib.studies import patches, results

    out.parent.mkdir(parents=True, exist_ok=True)
    images, about = data.training_images(), results.provenance()
    for size, found in patches.compute(images, "BSDS500 train and test", per_image, seed, out, about):
        edge = f"{found['edge']:.3f}" if found["edge"] else "none found"
        say(
            f"{size}x{size}: {found['patches']} patches; sigma by the corollary {found['theorem']:.3f}, Popoviciu"
            f" {found['popoviciu']:.3f}; not convex on R^d below {edge}, in the cube at {found['cube']:.3f}"
        )
    say(f"results are in {out}")
