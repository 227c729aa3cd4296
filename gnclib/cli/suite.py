"""The commands for what is here: ``gnc figures``, ``notebooks`` and ``course`` of the clone, ``data``, ``doctor``."""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from io import BytesIO
from pathlib import Path

import click

from gnclib.cli import options
from gnclib.cli.options import PATH, POSITIVE, command, progress, say

#: whose versions a bug report names
PACKAGES = ("gnclib", "torch", "numpy", "scipy", "scikit-image", "pillow", "tifffile", "safetensors")
#: how far, relative to its largest value, the gradient may be from the definition's, which is plain torch in float64
TOLERANCE = 1e-4
#: in grey levels: how far the estimated noise may be from what was added
ESTIMATE = 3.0
#: dB that denoising gains at least on the photograph of the self-test
GAIN = 7.0


@command(
    """
    gnc figures                            everything with small, quick settings
    gnc figures --only figure1             all figures of its notebook (or --only 02_gnc_flow)
    gnc figures --list                     which figure comes from which notebook
    gnc figures --full --out /tmp/full     the settings of the paper, where known; takes much longer
    gnc figures --check                    run into a temporary folder and compare the numbers
    """
)
@options.only("a figure or notebook")
@click.option("--full", is_flag=True, help="full instead of quick settings")
@click.option(
    "--out",
    type=PATH,
    metavar="DIR",
    help="where the figures go (default: figures/ of the clone, figures/full/)",
)
@click.option(
    "--check", is_flag=True, help="change nothing; compare a fresh run with DIR, exit 1 if they differ"
)
@click.option(
    "--jobs", type=POSITIVE, metavar="N", help="notebooks at the same time (default: one per core, at most 4)"
)
@click.option("--list", "listed", is_flag=True, help="only list the figures and their notebooks")
def figures(only, full, out, check, jobs, listed):
    """Run the notebooks in temporary copies, check that every declared figure was made, and collect the figures,
    their numbers (NAME.json) and the claims ledger (claims.md). A notebook that fails changes nothing."""
    from gnclib.io import write_bytes
    from gnclib.suite import notebooks, reproduce

    if listed:
        for name, figure in reproduce.MANIFEST.items():
            say(f"{name:<24}{figure.notebook:<33}{figure.title}")
        return
    clone = next(iter(notebooks.find().values())).parents[1]  # not where an installed package lies
    out = (out or clone / "figures" / ("full" if full else "")).resolve()
    if check and not out.is_dir():
        raise FileNotFoundError(
            f"there is no folder {out} to compare with: run 'gnc figures --out {out}' first"
        )
    jobs, count = jobs or min(4, os.cpu_count() or 1), len(reproduce.select(only))
    say(f"running {count} notebook(s), {min(jobs, count)} at a time; each takes a minute or two")
    done = reproduce.run(only, full, out, jobs=jobs, keep=not check, say=say)
    changed = [name for item in done for name in item.changed]
    if check:
        if changed:
            raise RuntimeError(f"{len(changed)} differences from the figures and claims in {out}, see above")
        say(f"the fresh run agrees with {out}")
        return
    if out == clone / "figures":
        notebooks.contact_sheet(out).quantize(256, kmeans=3).save(sheet := BytesIO(), "PNG", optimize=True)
        write_bytes(clone / "notebooks" / "guide" / "contact_sheet.png", sheet.getvalue())
    redrawn = [name for item in done for name in item.redrawn]
    news = f"changed: {', '.join(changed)}" if changed else "no number has changed"
    if redrawn:
        news += f"; kept although drawn otherwise here: {', '.join(redrawn)} (delete a file to have it drawn anew)"
    say(f"{sum(len(item.figures) for item in done)} figures and claims.md are in {out}; {news}")


@command(
    """
    gnc notebooks                          after a change of the library
    gnc notebooks --only 02_gnc_flow       only this one
    gnc notebooks --check                  what continuous integration asks
    """
)
@options.only("a notebook")
@click.option(
    "--check",
    is_flag=True,
    help="run nothing, exit 1 if a notebook is not executed or clean, or disagrees with the ledger",
)
def notebooks(only, check):
    """Run the notebooks of the clone with their quick defaults and store them executed and cleaned, each in one
    step; or, with --check, only say which of them are not, or show claims other than those of figures/claims.json."""
    from gnclib.suite import ledger, notebooks, reproduce

    chosen = reproduce.select(only)
    if not check:
        for path in progress(chosen.values(), "notebook"):
            notebooks.refresh(path)
        return
    records = ledger.load(next(iter(chosen.values())).parents[1] / "figures" / "claims.json")
    wrong = [line for path in chosen.values() for line in reproduce.check(path, records)]
    for line in wrong:
        say(line)
    if wrong:
        raise RuntimeError(f"{len(wrong)} things are wrong with the committed notebooks, see above")
    say(f"{len(chosen)} notebooks are executed, clean, and agree with the ledger")


@command(
    """
    gnc course                             the students' copies, after a change of the source
    gnc course --only 4                    only lesson 4
    gnc course --instructor solved/        the instructor's copies: solved, with remarks, executed
    gnc course --nbgrader course/          a course folder for nbgrader: generate_assignment, autograde
    gnc course --check                     run nothing; are the students' copies those of the source?
    gnc course --table                     the exercises with points and minutes
    """
)
@options.only("a lesson, by number or name")
@click.option("--instructor", type=PATH, metavar="DIR", help="write the instructor's copies to DIR")
@click.option("--nbgrader", type=PATH, metavar="DIR", help="write a course for nbgrader to DIR")
@click.option("--check", is_flag=True, help="only check what is there, exit 1 if it is wrong")
@click.option("--table", is_flag=True, help="only print the table of the exercises")
def course(only, instructor, nbgrader, check, table):
    """Make the notebooks of the course. The sources in notebooks/exercises/source hold text, solutions, checks and
    remarks for the instructor. Without options, the students' copies in notebooks/exercises are made from them (no
    solutions, no remarks, executed). A source that disagrees with the exercises of the library changes nothing."""
    from gnclib.course import copies
    from gnclib.suite import notebooks
    from gnclib.suite.notebooks import NotebookError

    if sum(map(bool, (instructor, nbgrader, check, table))) > 1:
        raise ValueError("choose one of --instructor, --nbgrader, --check and --table")
    if only and (check or table):
        raise ValueError("--only cannot go with --check or --table: they are about the whole course")
    if table:
        say(copies.table())
        return
    if check:
        if wrong := copies.check():
            raise NotebookError("\n  ".join([f"{len(wrong)} things are wrong with the course:", *wrong]))
        say(f"the students' copies are what the source makes: {', '.join(copies.sources())}")
        return
    here = copies.folder().resolve()
    out = instructor or nbgrader or here
    if out is not here and out.resolve() in (here, here / "source"):
        raise ValueError(f"{out} holds the notebooks themselves: choose another folder")
    nodes = {name: notebooks.load(path) for name, path in copies.sources(only).items()}
    if wrong := [line for name, node in nodes.items() for line in copies.problems(node, name)]:
        raise NotebookError("\n  ".join(["the source is wrong, nothing was written:", *wrong]))
    if nbgrader:
        for path in copies.write_nbgrader(nodes, out):
            say(f"wrote {path}")
        return
    for name, node in progress(nodes.items(), "notebook"):
        path, copy = out / f"{name}.ipynb", node if instructor else copies.student(node)
        notebooks.write(notebooks.execute(copy, path.name), path)
        say(f"wrote {path}")


@command(
    """
    gnc data                               is it there, and where
    gnc data download                      fetch what is missing (about 45 MB) and check it
    gnc data verify                        check the SHA-256 of all 500 images, no download
    """
)
@click.argument("action", type=click.Choice(["show", "download", "verify"]), default="show")
def data(action):
    """Show, download or verify the Berkeley images. They are read from the folder named by GNC_DATA_DIR (the one that
    holds BSDS500/{train,val,test}/*.jpg), or from a cache that 'download' fills from a public mirror. Nothing needs
    them: without BSDS500 the notebooks use photographs bundled with scikit-image."""
    from gnclib.images import data

    root = os.environ.get("GNC_DATA_DIR")
    where = f"GNC_DATA_DIR = {root}" if root else "the download cache (GNC_DATA_DIR is not set)"
    there = data.available()
    if action == "show":
        for split in data.SPLITS:
            state = "there" if data.available([split]) else "not there"
            say(f"{split:<6} {len(data.bsds500_ids(split)):>4} images  {state}")
        say(f"looked in {where}")
        say(f"BSDS68 (test set): {len(data.bsds68_ids())} images, all in val, which is never trained on")
        if not there:
            say("'gnc data download' fetches them; nothing in the notebooks requires it")
        return
    if action == "verify" and not there:
        raise FileNotFoundError(
            f"BSDS500 is not complete in {where}: run 'gnc data download' or set GNC_DATA_DIR"
        )
    say(f"{data.verify()} images have the right SHA-256, in {where}")


@command(
    """
    gnc doctor                             a page for a bug report; exit 1 if something is wrong
    """
)
def doctor():
    """Say what is installed here (versions, processor, compiler, threads, data, weights) and whether it works: a
    self-test of a few seconds. What is wrong is said with its remedy, and the exit status is 1."""
    wrong = [line for part in (_versions, _machine, _weights, _self_test) for line in part()]
    for line in wrong:
        say(f"WRONG: {line}")
    if wrong:
        raise RuntimeError(f"{len(wrong)} things are wrong, see above")
    say("all is well")


def _versions() -> Iterator[str]:
    say(f"Python {platform.python_version()}, {platform.platform()}, in {sys.prefix}")
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield f"{name} is not installed: pip install {name}"
    say(", ".join(f"{name} {version}" for name, version in found.items()))


def _machine() -> Iterator[str]:
    import torch

    from gnclib.foe import experts
    from gnclib.images import data
    from gnclib.spline import native

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    say(
        f"processor: {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {torch.get_num_threads()}"
        f" threads; CUDA: {cuda}"
    )
    with warnings.catch_warnings(record=True, action="always") as said:
        built = native.available() and native.available(Path(experts.__file__).with_suffix(".cpp"))
    off = os.environ.get("GNC_NATIVE") == "0"
    state = "built" if built else "switched off by GNC_NATIVE=0" if off else "not built"
    say(f"compiled engine: {state} (compiler: {os.environ.get('CXX', 'c++')})")
    if not built and not off:
        reason = "; ".join(str(warning.message) for warning in said) or "an earlier attempt failed"
        yield f"{reason}; install a C++ compiler (g++ or clang++), or set GNC_NATIVE=0 to do without"
    where = os.environ.get("GNC_DATA_DIR", "the download cache")
    there = [split for split in data.SPLITS if data.available([split])]
    say(f"BSDS500 in {where}: {', '.join(there) or 'not there, and not needed'}")


def _weights() -> Iterator[str]:
    from gnclib.deep import load_prior
    from gnclib.foe import WEIGHTS
    from gnclib.io import read_json, sha256

    for file in sorted(WEIGHTS.glob("*/model.safetensors")):
        name, digest = file.parent.name, sha256(file)
        say(f"{name}: SHA-256 {digest[:16]}")
        try:
            load_prior(name)
            card = file.with_name("training.json")
            card = read_json(card, "card", dict, 10**7) if card.exists() else {}
        except (OSError, ValueError) as error:
            yield f"{error}; install gnclib again"
            continue
        if card.get("weights_sha256", digest) != digest:
            yield f"the weights of {name} are not those of its card: install gnclib again"


def _self_test() -> Iterator[str]:
    import torch

    from gnclib.deep import load_prior
    from gnclib.images import add_noise, embedded, psnr
    from gnclib.restore import denoise_gnc, estimate_sigma

    started, sigma = time.monotonic(), 25 / 255
    x = embedded()["camera"][..., 100:228, 200:328]
    y = add_noise(x, sigma, 0)
    prior = load_prior("R1")
    fast = prior.grad(y, sigma**2).double()
    exact = prior.double().grad(y.double(), sigma**2)
    error = ((fast - exact).abs().max() / exact.abs().max()).item()
    level = 255 * estimate_sigma(y)
    denoised = torch.from_numpy(denoise_gnc(y[0, 0].numpy(), sigma))[None, None]
    gain = psnr(denoised, x).item() - psnr(y, x).item()
    say(
        f"self-test: gradient within {error:.0e} of the definition, sigma 25 estimated as {level:.1f}, denoising"
        f" gains {gain:.1f} dB, {time.monotonic() - started:.1f} s"
    )
    if not error < TOLERANCE:
        yield "the compiled gradient is wrong: set GNC_NATIVE=0, and report this page"
    if not abs(level - 25) < ESTIMATE or not gain > GAIN:
        yield "an image is not restored as it should be: report this page"
