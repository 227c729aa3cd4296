"""The command ``gnc``: figures, notebooks, course, train, denoise, inpaint, evaluate, data, bench ...

Heavy imports happen inside the subcommands, so that ``gnc --help`` answers at once. Mistakes end in one line
``gnc: error: ...`` and exit status 2 (wrong usage) or 1 (the work failed); ``--debug`` shows where.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gnclib import __version__
from gnclib.cli import compare as cli_field
from gnclib.cli import course as cli_course
from gnclib.cli import evaluate as cli_images
from gnclib.cli import patches as cli_patches
from gnclib.cli import problems as cli_problems
from gnclib.cli import restore as cli_restore
from gnclib.cli import sweep as cli_sweep
from gnclib.cli.evaluate import say

__all__ = ["build_parser", "main"]


class Failed(Exception):
    """The work was done and found something wrong; already explained in the message."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return the exit status."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the work
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(next((word for word in argv if not word.startswith("-")), ""))
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except KeyboardInterrupt:
        print("gnc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `gnc data | head -1`
        _drop_output()
        return 1
    except Exception as error:
        if args.debug:
            raise
        known = isinstance(error, (Failed, ValueError, OSError, RuntimeError, ImportError))
        text = str(error) or type(error).__name__
        hint = "" if known else f" ({type(error).__name__}; run it again with --debug to see where)"
        if isinstance(error, ModuleNotFoundError):
            hint = " (a package is missing: is the environment active? . .venv/bin/activate)"
        print(f"gnc: error: {text}{hint}", file=sys.stderr)
        _drop_output()
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _drop_output() -> None:
    """Where what is still to be printed cannot be, forget it: Python would complain about it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # a stream without a file
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser. Options of `train` come from the training module, which is loaded only if `command` asks for it."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser = argparse.ArgumentParser(
        prog="gnc",
        description="An executable version of Kobler & Pock 2023, 'Learning Gradually Non-convex Image Priors Using "
        "Score Matching': every figure from a notebook, every claim with a computed verdict.",
        epilog="start with:  gnc figures --only figure1\n"
        "             gnc denoise photo.png --sigma 25 --add-noise -o denoised.png\n"
        "each command explains itself:  gnc COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gnclib {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run, help: str, text: str, examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, parents=[shared], help=help, description=text, epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        return sub

    _figures_parser(add)
    _notebooks_parser(add)
    cli_course.course_parser(add)
    _train_parser(add, command)
    _ablate_parser(add, command)
    _learn_parser(add, command)
    cli_restore.denoise_parser(add)
    cli_restore.inpaint_parser(add)
    cli_images.evaluate_parser(add)
    cli_field.compare_parser(add)
    cli_problems.problems_parser(add)
    cli_sweep.sweep_parser(add)
    cli_patches.patches_parser(add)
    _data_parser(add)
    _bench_parser(add)
    return parser


# --- figures and notebooks --------------------------------------------------------------------------------


def _figures_parser(add) -> None:
    sub = add(
        "figures", _figures, "run the notebooks and make every figure and the claims ledger",
        "Run the notebooks in temporary copies, check that every declared figure was made, and collect the figures,\n"
        "their numbers (NAME.json) and the claims ledger (claims.md). A notebook that fails changes nothing.",
        "  gnc figures                            everything with small, quick settings\n"
        "  gnc figures --only figure1             all figures of its notebook (or --only 02_gnc_flow)\n"
        "  gnc figures --list                     which figure comes from which notebook\n"
        "  gnc figures --full --out /tmp/full     the settings of the paper, where known; takes much longer\n"
        "  gnc figures --check                    run into a temporary folder and compare the numbers",
    )  # fmt: skip
    sub.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a figure or notebook; may be repeated"
    )
    sub.add_argument("--full", action="store_true", help="full instead of quick settings")
    sub.add_argument("--out", type=Path, metavar="DIR",
                     help="where the figures go (default: figures/ of the clone; --full: figures/full/)")  # fmt: skip
    sub.add_argument("--check", action="store_true",
                     help="change nothing; compare a fresh run with DIR, exit 1 if they differ")  # fmt: skip
    sub.add_argument("--jobs", type=int, metavar="N",
                     help="notebooks at the same time (default: one per core, at most 4)")  # fmt: skip
    sub.add_argument("--list", action="store_true", help="only list the figures and their notebooks")


def _figures(args: argparse.Namespace) -> None:
    import tempfile

    from gnclib.suite import notebooks, reproduce

    if args.list:
        for name, figure in reproduce.MANIFEST.items():
            say(f"{name:<24}{figure.notebook:<26}{figure.title}")
        return
    clone = next(iter(notebooks.find().values())).parents[1]  # not where an installed package lies
    out = args.out or clone / "figures" / ("full" if args.full else "")
    jobs = min(4, os.cpu_count() or 1) if args.jobs is None else args.jobs
    options = {
        "only": args.only,
        "full": args.full,
        "progress": sys.stderr.isatty(),
        "say": say,
        "jobs": jobs,
    }
    count = len(reproduce.select(args.only))
    say(f"running {count} notebook(s), {min(jobs, count)} at a time; each takes a minute or two")
    if not args.check:
        done = reproduce.run(out=out, **options)
        changed = [name for item in done for name in item.changed]
        news = f"changed: {', '.join(changed)}" if changed else "every file is, byte for byte, the one before"
        say(f"{sum(len(item.figures) for item in done)} figures and claims.md are in {out}; {news}")
        return
    if not out.is_dir():
        raise FileNotFoundError(
            f"there is no folder {out} to compare with: run 'gnc figures --out {out}' first"
        )
    with tempfile.TemporaryDirectory(prefix="gnc-figures-") as folder:
        reproduce.run(out=folder, **options)
        wrong, remarks = reproduce.compare_runs(out, Path(folder), args.only)
    for line in (*remarks, *wrong):
        say(line)
    if wrong:
        raise Failed(f"{len(wrong)} differences from the figures in {out}, see above")
    say(f"the fresh run agrees with {out}")


def _notebooks_parser(add) -> None:
    sub = add(
        "notebooks", _notebooks, "run the notebooks anew in place, or check that they are executed and clean",
        "Run the notebooks of the clone with their quick defaults and store them executed and cleaned, each in one\n"
        "step; or, with --check, only say which of them are not.",
        "  gnc notebooks                          after a change of the library\n"
        "  gnc notebooks --only 02_gnc_flow       only this one\n"
        "  gnc notebooks --check                  what continuous integration asks",
    )  # fmt: skip
    sub.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a notebook; may be repeated"
    )
    sub.add_argument(
        "--check", action="store_true", help="run nothing, exit 1 if a notebook is not executed or clean"
    )


def _notebooks(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from gnclib.suite import notebooks, reproduce

    chosen = reproduce.select(args.only)
    if args.check:
        wrong = [line for path in chosen.values() for line in notebooks.check(path)]
        for line in wrong:
            say(line)
        if wrong:
            raise Failed(f"{len(wrong)} things are wrong with the committed notebooks, see above")
        say(f"{len(chosen)} notebooks are executed and clean")
        return
    for path in tqdm(chosen.values(), unit="notebook", disable=not sys.stderr.isatty()):
        notebooks.refresh(path)


# --- train ------------------------------------------------------------------------------------------------


def _train_parser(add, command: str) -> None:
    sub = add(
        "train", _train, "train a prior by joint score matching",
        "Train a Fields-of-Experts prior on image patches by joint score matching (Kobler & Pock 2023, eq. 7).\n"
        "A run can be stopped at any moment: Ctrl-C and SIGTERM write a checkpoint first, after a kill the last one\n"
        "counts. A resumed run on the CPU ends with the same weights, bit for bit, as one that was never stopped.\n"
        "Under torchrun several processes share each batch.",
        "  gnc data verify                                first see whether the training images are there\n"
        "  gnc train R1 --steps 2000                      a first look; some minutes on one core\n"
        "  gnc train R1 --images embedded --steps 2000    the same on photographs that need no download\n"
        "  gnc train R1 --images DIR                      on photographs of your own\n"
        "  gnc train R1 --resume                          go on after an interruption\n"
        "  gnc train R3 --warm-start R1 --batch 16        three layers, from the shipped R_1\n"
        "  gnc train R3 --export-only                     weights and model card of a run that is not finished\n"
        "  torchrun --nproc-per-node=2 -m gnclib train R3 --device cuda       one process per GPU",
    )  # fmt: skip
    if command == "train":
        from gnclib.cli import options as cli_options

        cli_options.train_arguments(sub)


def _train(args: argparse.Namespace) -> None:
    from gnclib.cli import train as cli_train

    cli_train.main(args)


def _ablate_parser(add, command: str) -> None:
    sub = add(
        "ablate", _ablate, "train variants of the recipe under one small budget and compare them",
        "Train variants of the recipe of the shipped priors, each with the same few steps and several seeds, and\n"
        "judge them on validation images outside of BSDS68. Each finished training is added to FILE at once; started\n"
        "again after an interruption, the command trains what is missing. Needs BSDS500. The notebook 07_ablations\n"
        "reads the results that come with the package, gnclib/ablations.json.",
        "  gnc ablate                                     all variants, seeds 0 and 1; an hour and more on one core\n"
        "  gnc ablate --only recipe --only 'N_tau = 5'    two of them",
    )  # fmt: skip
    if command == "ablate":
        from gnclib.cli import options as cli_options

        cli_options.ablate_arguments(sub)


def _ablate(args: argparse.Namespace) -> None:
    from gnclib.studies import ablation_run

    ablation_run.main(args)


def _learn_parser(add, command: str) -> None:
    sub = add(
        "learn", _learn, "learn the schedule of a prior for one task",
        "Learn all t_i and eta_i of the GNC flow (Kobler & Pock 2023, eq. 9, unrolled for I steps) for one prior and\n"
        "one task from patches of images, and with --finetune the whole prior as well. A run can be stopped and\n"
        "resumed like those of 'gnc train'.",
        "  gnc learn R1 --task denoise --sigma 25         as the shipped R1-denoise-25; minutes on one core\n"
        "  gnc learn R1 --task inpaint --missing 0.8\n"
        "  gnc learn R1 --sigma 25 --finetune             schedule and prior, from R1-denoise-25",
    )  # fmt: skip
    if command == "learn":
        from gnclib.cli import options as cli_options

        cli_options.learn_arguments(sub)


def _learn(args: argparse.Namespace) -> None:
    from gnclib.cli import learn as cli_learn

    cli_learn.main(args)


# --- data -------------------------------------------------------------------------------------------------


def _data_parser(add) -> None:
    sub = add(
        "data", _data, "show, download or verify the images of BSDS500",
        "The Berkeley images are read from the folder named by GNC_DATA_DIR (the one that holds\n"
        "BSDS500/{train,val,test}/*.jpg), or from a cache that 'download' fills from a public mirror.\n"
        "Nothing needs them: without BSDS500 the notebooks use photographs bundled with scikit-image.",
        "  gnc data                               is it there, and where\n"
        "  gnc data download                      fetch what is missing (about 45 MB) and check it\n"
        "  gnc data verify                        check the SHA-256 of all 500 images, no download",
    )  # fmt: skip
    sub.add_argument("action", nargs="?", choices=("show", "download", "verify"), default="show",
                     help="what to do (default: show)")  # fmt: skip


def _data(args: argparse.Namespace) -> None:
    from gnclib.images import data

    root = os.environ.get("GNC_DATA_DIR")
    where = f"GNC_DATA_DIR = {root}" if root else "the download cache (GNC_DATA_DIR is not set)"
    there = data.available()
    if args.action == "show":
        for split in data.SPLITS:
            state = "there" if data.available([split]) else "not there"
            say(f"{split:<6} {len(data.bsds500_ids(split)):>4} images  {state}")
        say(f"looked in {where}")
        say(f"BSDS68 (test set): {len(data.bsds68_ids())} images, all in val, which is never trained on")
        if not there:
            say("'gnc data download' fetches them; nothing in the notebooks requires it")
        return
    if args.action == "verify" and not there:
        raise FileNotFoundError(
            f"BSDS500 is not complete in {where}: run 'gnc data download' or set GNC_DATA_DIR"
        )
    say(f"{data.verify()} images have the right SHA-256, in {where}")


# --- bench ------------------------------------------------------------------------------------------------


def _bench_parser(add) -> None:
    sub = add(
        "bench", _bench, "measure the spline operation against torch.compile and the memory bandwidth",
        "Time the spline operation, forward and backward, in all its implementations and beside the bandwidth of the\n"
        "memory, and the peak memory of a training step. Ratios count: all is measured in one run, in turns.",
        "  gnc bench splines                      on two threads; about two minutes on an idle machine\n"
        "  gnc bench splines --threads 1 --nodes 95 --json bench.json\n"
        "  gnc bench splines --only native --only 'torch gather' --no-memory",
    )  # fmt: skip
    sub.add_argument("what", choices=("splines",), help="what to measure")
    sub.add_argument("--threads", type=int, default=2, metavar="N", help="torch threads (default: 2)")
    sub.add_argument("--nodes", type=int, default=63, metavar="N_x", help="nodes per spline (default: 63)")
    sub.add_argument(
        "--size", type=int, default=96, metavar="PIXELS", help="side of the images (default: 96)"
    )
    sub.add_argument(
        "--rounds", type=int, default=15, metavar="N", help="turns of each candidate (default: 15)"
    )
    sub.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                     help="wall clock, or processor time / threads for a busy machine (default: wall)")  # fmt: skip
    sub.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a candidate; may be repeated"
    )
    sub.add_argument("--no-memory", dest="memory", action="store_false", help="leave out the training steps")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE, too")


def _bench(args: argparse.Namespace) -> None:
    from gnclib.studies import bench

    bench.main(args)
