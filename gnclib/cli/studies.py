"""The commands that measure, some of them for hours: ``gnc evaluate``, ``compare``, ``problems``, ``coverage``..."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, quantiles

import click

from gnclib.cli import options
from gnclib.cli.options import PATH, POSITIVE, command, progress, say

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
@table_option
def compare(sigma, missing, only, images, limit, out, timing, table):
    """Run methods side by side on the same measurements and add PSNR, SSIM and seconds of every image to FILE.
    Started again after an interruption, the command runs what is missing, and what has become stale because weights
    have changed. Image k has noise or mask of seed k; nothing is clipped; everything runs on the CPU in one thread.
    BM3D needs the package bm3d (pip install 'gnclib[compare]'), which is free for non-commercial use only."""
    _one_thread()
    from gnclib.images import bsds68, folder_images
    from gnclib.restore import Task
    from gnclib.studies import field

    if table:
        say(field.table(field.load(out or field.SHIPPED)))
        return
    path = out or Path("runs/field.json")
    if few := [p for p in missing if p < 1]:
        raise ValueError(
            f"--missing is in percent here: {few[0]:g} of the pixels is --missing {100 * few[0]:g}"
        )
    tasks = [Task("denoise", s) for s in sigma] + [Task("inpaint", p / 100) for p in missing]
    found = folder_images(images) if images else bsds68()
    name = str(images.resolve()) if images else "BSDS68"
    found = dict(list(found.items())[: timing or limit])
    if timing:
        rows = field.timing(path, found, name, tasks or field.TASKS[:2], only)
        unit = sum(sum(row.cpu) for row in rows if (row.method, row.task) == ("BM3D", str(field.REFERENCE)))
        say(f"BM3D: {unit / len(found):.2f} s of processor time per image, {len(found)} images")
        for row in rows:
            say(f"{row.method:<14}{row.task:<12}{sum(row.cpu) / unit:8.3f} of it")
        return
    done = _consume(field.compare(path, found, name, tasks or field.TASKS, only), str)
    say(f"{done} results were added to {path}; 'gnc compare --table --out {path}' shows them")


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
    from gnclib.studies import problems as study

    if table:
        say(study.table(study.load(out or study.SHIPPED)))
        return
    path = out or Path("runs/problems.json")
    images, name = study.images(), "BSDS68, the first 12, middle 192 x 192"
    done = _consume(study.restore(path, images, name, problem, only), str)
    say(f"{done} results were added to {path}; 'gnc problems --table --out {path}' shows them")


def _one_thread() -> None:
    """Compute in one thread: seconds are compared."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded
    import torch

    torch.set_num_threads(1)


def _consume(rows: Iterable, line: Callable, total: int | None = None) -> int:
    """Compute the rows, with a bar on a terminal and a line each elsewhere; their number."""
    done = 0
    for row in progress(rows, "row", total=total):
        done += 1
        if not sys.stderr.isatty():
            say(line(row))
    return done


@command(
    """
    gnc certify C1                                 at ten noise levels
    gnc certify R1 --sigma 25 --sigma 255
    """
)
@click.argument("prior")
@options.repeated(
    "--sigma", type=float, metavar="S", help="noise in grey levels of 0..255 (default: ten levels)"
)
def certify(prior, sigma):
    """Certificates of a prior, the name of one of the package or a folder, that hold for all images: is
    t Hess R proved to be positive semidefinite, and between which bounds lie its eigenvalues, with features at the
    border or without."""
    from gnclib.deep import load_prior

    model = load_prior(prior)
    low, high = model.sigma_min, model.sigma_max
    levels = [s / 255 for s in sigma] or [low * (high / low) ** (k / 9) for k in range(10)]
    say("sigma     convex      t Hess between          inside of the image between")
    for level in levels:
        found = model.certify(level**2)
        verdict = "proved" if found.convex else "not proved"
        say(
            f"{level:<9.4f} {verdict:<11} {found.modulus:<9.3f} {found.curvature:<13.2f} "
            f"{found.inner_modulus:<9.3f} {found.inner_curvature:.2f}"
        )


@command(
    """
    gnc sweep                                      R1, everything; some hours on one core
    gnc sweep --set embedded --limit 1             one bundled photograph, no BSDS500 needed
    gnc sweep --workers 8                          eight processes on this machine
    gnc sweep --crop 0 --device cuda               whole images on a GPU
    gnc sweep --prior P1 --t-first 1 --only gnc --only literal --reference 0 --out few.json
    """
)
@click.option("--prior", default="R1", metavar="NAME", help="a prior of the package or a folder")
@options.repeated("--task", type=click.Choice(["denoise", "inpaint"]), help="default: both")
@options.repeated("--set", "sets", type=click.Choice(["embedded", "bsds68"]), help="of images; default: both")
@click.option("--limit", type=POSITIVE, metavar="N", help="only the first N images of each set")
@click.option(
    "--crop", type=int, default=160, metavar="PIXELS", help="side of the middle square, 0 for whole images"
)
@options.repeated("--t-first", type=float, metavar="T", help="initial smoothing (default: eight)")
@click.option(
    "--steps", type=POSITIVE, metavar="N", help="numbers of steps: powers of two up to N (default: 64)"
)
@options.only("an algorithm")
@click.option("--reference", type=int, metavar="N", help="steps of the reference's schedule; 0: no reference")
@click.option("--workers", type=POSITIVE, default=1, metavar="N", help="processes of one thread")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="where jobs compute")
@click.option("--out", type=PATH, metavar="FILE", help="result file (default: runs/figure3_NAME.json)")
def sweep(prior, task, sets, limit, crop, t_first, steps, only, reference, workers, device, out):
    """Run the GNC flow (linear: gnc, and "gnc log") and joint optimisation (joint: N = 2n; only on demand literal:
    N = 48n) from 8 initial smoothings t_0 with 1, 2, 4, ... steps for denoising and inpainting, and measure energy and
    PSNR. One job is one image and task; its result is added to FILE at once. Started again after an interruption, the
    command computes what is missing. Several commands, also on several machines, can fill one file."""
    from dataclasses import replace

    from gnclib.studies import figure3

    chosen = {"t_firsts": tuple(sorted(t_first)), "algorithms": tuple(only), "reference_schedule": reference}
    chosen["steps"] = tuple(2**k for k in range((steps or 0).bit_length()))
    given = {name: value for name, value in chosen.items() if value not in ((), None)}
    settings = replace(figure3.SETTINGS, crop=crop, **given)
    jobs = figure3.jobs(prior, settings, sets or figure3.SETS, task or figure3.TASKS, limit, device)
    out = out or Path("runs") / f"figure3_{Path(prior).resolve().name}.json"
    table = figure3.opened(out, prior, settings, device)
    wanted = table.missing("runs", jobs)
    say(f"{len(wanted)} jobs to do, {len(jobs) - len(wanted)} in {out} already")
    rows = table.fill("runs", wanted, workers)
    _consume(rows, lambda run: f"{run.set} {run.image} {run.task}: {run.seconds:.0f} s", len(wanted))
    say(f"{len(jobs)} jobs are in {out}")


@command(
    """
    gnc coverage --table                       the results that come with the package
    gnc coverage --prior R1 --limit 10         ten images of each set
    gnc coverage                               everything; an hour and a half on one core, of which G1 an hour
    """
)
@options.repeated("--prior", metavar="NAME", help="a prior of the package (default: R1, R3, C1, G1)")
@options.repeated(
    "--sigma", type=int, metavar="S", help="noise in grey levels of 0..255 (default: 15, 25, 50)"
)
@options.repeated("--photons", type=POSITIVE, metavar="N", help="instead: N photons at white, on BSDS68 only")
@click.option("--drift", is_flag=True, help="instead: the mean of d_tau R on val, by default for all priors")
@click.option("--limit", type=POSITIVE, metavar="N", help="only the first N images of each set")
@click.option("--out", type=PATH, metavar="FILE", help="result file (default: runs/coverage.json)")
@table_option
def coverage(prior, sigma, photons, drift, limit, out, table):
    """Measure how often the error of a pixel lies within the interval that the posterior of the prior states, on the
    middles of the images of BSDS68; a scale of the intervals is fitted on the other images of val. Beside that the
    squared error, what the prior expects it to be, and Stein's estimate of it. Image k has noise of seed k. Started
    again, the command computes what is missing."""
    from gnclib.studies import coverage as study

    if drift and (sigma or photons):
        raise ValueError("--drift has noise levels of its own: leave --sigma and --photons away")
    if table:
        say((study.drift_table if drift else study.table)(study.load(out or study.SHIPPED)))
        return
    path, noise = out or Path("runs/coverage.json"), sigma or (() if photons else study.NOISE)
    if drift:
        rows, text = study.drifts(path, prior or study.SHOWN, limit), "{0.prior} {0.sigma:g}"
    else:
        rows = study.compute(path, prior or study.PRIORS, noise, limit, photons)
        text = "{0.prior} {0.sigma} {0.set} {0.image}: {0.inside[8]:.1%} within 90 %"
    done = _consume(rows, text.format)
    kind = "--drift --table" if drift else "--table"
    say(f"{done} results were added to {path}; 'gnc coverage {kind} --out {path}' shows them")


@command(
    """
    gnc entropy --table                        the results that come with the package
    gnc entropy --prior R1 --limit 8
    gnc entropy                                everything; an hour and a half on one core
    """
)
@options.repeated("--prior", metavar="NAME", help="a prior of the package (default: R1, C1, R3, G1)")
@click.option("--limit", type=POSITIVE, metavar="N", help="only the first N images")
@click.option("--out", type=PATH, metavar="FILE", help="result file (default: runs/entropy.json)")
@table_option
def entropy(prior, limit, out, table):
    """Find the constant that makes an energy a density, measure the entropy of noisy photographs by it and by the
    errors of its denoiser, and what noisy images in 8 bits cost under it and in files of PNG, WebP, JPEG-LS and JPEG XL
    (the last two by the package imagecodecs), in bits per pixel; and draw from it by chains. The images are the middle
    64 x 64 pixels of those of BSDS68. Started again, the command computes what is missing."""
    from gnclib.studies import entropy as study

    if table:
        say(study.table(study.load(out or study.SHIPPED)))
        return
    path = out or Path("runs/entropy.json")
    done = _consume(study.compute(path, prior or study.PRIORS, limit), _entropy)
    say(f"{done} results were added to {path}; 'gnc entropy --table --out {path}' shows them")


def _entropy(row) -> str:
    kind, of = type(row).__name__.lower(), getattr(row, "prior", None) or row.coder
    return f"{kind} of {of} at sigma {row.sigma:g}"


@command(
    """
    gnc pairs                                  an hour on one core
    gnc pairs --prior R1 --count 2 --limit 4 --out few.json
    """
)
@options.repeated("--prior", metavar="NAME", help="a prior of the package (default: R1, P1)")
@options.repeated("--count", type=POSITIVE, metavar="N", help="number of pairs (default: 1, 2, 4, 8, 16, 64)")
@click.option("--limit", type=POSITIVE, metavar="N", help="only the first N images of BSDS68")
@click.option("--out", type=PATH, default="runs/pairs.json", metavar="FILE", help="result file")
def pairs(prior, count, limit, out):
    """Learn the schedules of R1 and P1 at sigma 25 from few pairs of clean and noisy patches, tune the beginning of
    linear and logarithmic schedules on the same pairs, and judge them all on BSDS68. Needs BSDS500. Started again, the
    command computes what is missing. The notebook 06_inverse_problems shows the results that come with the package."""
    _one_thread()
    from gnclib.images import bsds68, training_images
    from gnclib.studies import pairs as study

    judges = dict(list(bsds68().items())[:limit])
    rows = study.compute(out, training_images(), judges, count or study.COUNTS, priors=prior or study.PRIORS)
    text = "{0.prior} {0.method}, {0.pairs} pairs, draw {0.seed}: {1:.3f} dB"
    done = _consume(rows, lambda r: text.format(r, fmean(r.psnr)))
    say(f"{done} results were added to {out}")


@command(
    """
    gnc patches                                some minutes on one core
    gnc patches --per-image 2 --out few.json   fewer patches
    """
)
@click.option("--per-image", type=POSITIVE, default=25, metavar="N", help="patches per image")
@click.option("--seed", type=int, default=0, metavar="K", help="of the patches and of the search")
@click.option("--out", type=PATH, default="runs/patches.json", metavar="FILE", help="result file")
def patches(per_image, seed, out):
    """Bound, from above and below, the convexity threshold of the empirical measure of 3x3 to 8x8 patches of the
    training images of BSDS500 (corollary 2.3). Each patch size is written at once; started again, the command
    computes what is missing."""
    from gnclib.images import data
    from gnclib.studies import patches

    images = data.training_images()
    for row in patches.compute(images, "BSDS500 train and test", per_image, seed, out):
        edge = f"{row.edge:.3f}" if row.edge else "none found"
        say(
            f"{row.size}x{row.size}: {row.patches} patches; sigma by the corollary {row.theorem:.3f}, Popoviciu"
            f" {row.popoviciu:.3f}; not convex on R^d below {edge}, in the cube at {row.cube:.3f}"
        )
    say(f"results are in {out}")


@command(
    """
    gnc evaluate --scheme mmse --sigma 15 --sigma 25 --sigma 50
    gnc evaluate --prior R1 --scheme learned --task inpaint --missing 0.8
    gnc evaluate --sigma 25 --images photos/ --limit 10 --json numbers.json
    gnc evaluate --sigma 25 --scheme learned --colour opponent             CBSD68, see 'gnc denoise --help'
    """
)
@options.solver_options(*options.SCHEMES, default=None, more=" (default: mmse, for inpainting gnc)")
@options.task
@options.repeated("--sigma", type=float, metavar="S", help="noise in grey levels of 0..255 (default: 25)")
@options.repeated("--missing", type=float, metavar="F", help="fraction of missing pixels (default: 0.8)")
@click.option(
    "--colour", type=click.Choice(["opponent", "channels"]), help="images in colour, restored in this basis"
)
@options.image_set
@click.option("--json", "file", type=PATH, metavar="FILE", help="write the numbers, image by image, to FILE")
def evaluate(prior, scheme, steps, device, precision, task, sigma, missing, images, colour, limit, file):
    """Measure mean PSNR and SSIM over a set of images. Image k of the set gets Gaussian noise, or a mask, of seed k;
    nothing is clipped; data range 1. The set is BSDS68 unless --images names a folder."""
    from gnclib import io
    from gnclib.foe import is_hub_name
    from gnclib.images import bsds68, folder_images
    from gnclib.restore import Task, schemes

    denoising = task == "denoise"
    option, other = ("sigma", "missing") if denoising else ("missing", "sigma")
    if missing if denoising else sigma:
        raise ValueError(f"--{other} is not for --task {task}: use --{option}")
    if colour == "opponent" and not denoising:
        raise ValueError("missing pixels are filled in channel by channel: use --colour channels")
    scheme = scheme or ("mmse" if denoising else "gnc")
    levels = (sigma or [25]) if denoising else (missing or [0.8])
    options = {"device": device, "precision": precision}
    loaded = [schemes.load(scheme, prior, Task(task, level), steps, **options) for level in levels]
    found = folder_images(images, colour is not None) if images else bsds68(colour is not None)
    found = dict(list(found.items())[:limit])
    numbers = {f"{one.task.level:g}": _measured(one, found, colour or "channels") for one in loaded}
    if file:
        about = {
            "prior": prior if is_hub_name(prior) else Path(prior).resolve().name,
            "scheme": scheme,
            "steps": loaded[0].steps if loaded[0].steps > 1 else None,
            "task": task,
            "colour": colour,
            **({"precision": precision} if precision != "float32" else {}),
            "clipping": "none",
            "noise": "image k has torch.Generator seed k",
            "set": str(images or ("CBSD68" if colour else "BSDS68")),
            "energy": "D + R at the smallest t of the prior, nats per pixel",
            f"psnr_by_{option}": numbers,
        }
        io.write_text(file, io.dumps({name: value for name, value in about.items() if value is not None}))


def _measured(scheme, images, basis: str) -> dict:
    """The numbers of a scheme on images (name -> image), and a line of text about them."""
    from gnclib.restore import evaluate

    items = progress(images.items(), "image", desc=str(scheme.task))
    done = {name: evaluate.restoration(scheme, x, k, basis) for k, (name, x) in enumerate(items)}

    def per_step(key: str, of) -> list:
        return [of(values) for values in zip(*(getattr(r, key) for r in done.values()), strict=True)]

    def quartiles(values: tuple[float, ...]) -> list[float]:
        return quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else [*values, *values]

    psnrs, similarity = per_step("psnr", fmean), fmean(r.ssim for r in done.values())
    seconds, start = (fmean(getattr(r, key) for r in done.values()) for key in ("seconds", "start"))
    level = f"sigma {scheme.task.level:>4g}" if scheme.task.kind == "denoise" else str(scheme.task)
    say(
        f"{level}: {psnrs[-1]:.2f} dB, SSIM {similarity:.4f}, mean of {len(done)} images, not clipped;"
        f" {seconds:.2f} s and {scheme.evaluations} gradient(s) per image"
    )
    return {
        "mean": psnrs[-1],
        "mean_ssim": similarity,
        "mean_psnr_of_measurement": start,
        "mean_psnr_per_step": psnrs,
        "mean_energy_per_step": per_step("energy", fmean),
        "quartiles_psnr_per_step": per_step("psnr", quartiles),
        "quartiles_energy_per_step": per_step("energy", quartiles),
        "gradients_per_image": scheme.evaluations,
        "images": {name: r.psnr[-1] for name, r in done.items()},
    }
