"""The command ``gnc``: its list of commands, and how it ends.

A command is loaded when it is called, and loads what it needs when it runs, so ``gnc --help`` answers at once. Errors
end in one line ``gnc: error: ...`` and exit status 2 (wrong usage) or 1 (the work failed); ``--debug`` shows the
traceback.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import click

from gnclib import __version__
from gnclib.cli.options import DEBUG, SETTINGS, say

#: name -> (module of this package, what `gnc --help` says)
COMMANDS = {
    "figures": ("suite", "run the notebooks and make every figure and the claims ledger"),
    "notebooks": ("suite", "run the notebooks in place, or check that they are executed and clean"),
    "course": ("suite", "make the notebooks of the course, with exercises, from their source"),
    "train": ("training", "train a prior by joint score matching"),
    "ablate": ("training", "train variants of the recipe with one small budget and compare them"),
    "learn": ("training", "learn the schedule of a prior for one task"),
    "denoise": ("restore", "denoise image files with a learned prior"),
    "inpaint": ("restore", "fill in missing pixels of image files with a learned prior"),
    "evaluate": ("studies", "measure how well a prior denoises or inpaints a set of images"),
    "certify": ("studies", "prove from which noise level on a prior is convex, and bound its curvature"),
    "compare": ("studies", "compare the priors with BM3D, TV and biharmonic inpainting"),
    "problems": ("studies", "solve other inverse problems: blur, low resolution, sensing, tomography"),
    "coverage": ("studies", "measure how often errors lie within the uncertainty that a prior states"),
    "entropy": ("studies", "normalise energies, and measure entropies and code lengths by them"),
    "pairs": ("studies", "learn schedules from few pairs of images, beside tuned ones"),
    "sweep": ("studies", "compute Figure 3: attainment and PSNR over t_0 and I, image by image"),
    "patches": ("studies", "bound the sigma from which patches have a convex energy (corollary 2.3)"),
    "doctor": ("suite", "say what is installed, and whether it works: for a bug report"),
    "data": ("suite", "show, download or verify the images of BSDS500"),
}
#: the end of the help
START = """\b
start with:  gnc figures --only figure1
             gnc denoise photo.png --sigma 25 --add-noise -o denoised.png
each command explains itself:  gnc COMMAND --help"""


class _Commands(click.Group):
    """The commands of :data:`COMMANDS`, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return getattr(import_module(f"gnclib.cli.{COMMANDS[name][0]}"), name) if name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings=SETTINGS, params=[DEBUG], no_args_is_help=False, epilog=START)
@click.version_option(__version__, message="gnclib %(version)s")
def gnc() -> None:
    """An executable version of Kobler & Pock 2023, 'Learning Gradually Non-convex Image Priors Using Score
    Matching': every figure from a notebook, every claim with a computed verdict."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process.

    Returns the exit status: 0, 1 (the work failed), 2 (wrong usage) or 130 (interrupted).
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by 2>&-
            setattr(sys, name, open(os.devnull, "w"))
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the work
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if argv is None:  # the process is ours
        _keep_memory()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with gnc.make_context("gnc", list(words)) as context:
            gnc.invoke(context)
    except click.exceptions.Exit as stop:  # --help and --version
        return stop.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "gnc"
        say(f"gnc: error: {error.format_message().rstrip('.')}; see {path} --help", error=True)
        return 2
    except KeyboardInterrupt:
        say("gnc: interrupted", error=True)
        return 130
    except BrokenPipeError:  # what click prints, as in `gnc --help | true`
        say("")
        return 1
    except Exception as error:
        if "--debug" in words:
            raise
        say(f"gnc: error: {_explained(error)}", error=True)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _keep_memory() -> None:
    """Let the allocator of glibc keep up to 2 GB of freed memory, in this process and in its children.

    By default it returns large blocks to the system and gets them back as fresh pages, filled with zeros: half of the
    time of ``gnc denoise --prior R3``.
    """
    most = 2**31 - 1
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(most))
    os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, most)  # M_TRIM_THRESHOLD
        mallopt(-4, 0)  # M_MMAP_MAX


def _explained(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return f"{text} (a package is missing: is the environment active? . .venv/bin/activate)"
    if isinstance(error, (ValueError, OSError, RuntimeError, ImportError)):
        return text
    return f"{text} ({type(error).__name__}; run it again with --debug to see where)"
