"""The class of the commands, the options that several of them have, and how they print."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from textwrap import indent
from typing import Any

import click

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}
PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)
#: what --scheme may be, and what the help says about it
SCHEMES = {
    "mmse": "one Tweedie step",
    "symmetric": "mean of eight, of the turned and mirrored image",
    "gnc": "GNC flow, schedule of ours",
    "linear": "GNC flow, schedule of the paper",
    "joint": "over image and smoothing",
    "learned": "learned schedule",
    "finetuned": "and the prior with it",
}
#: :func:`gnclib.cli.main.main` looks for it
DEBUG = click.Option(["--debug"], is_flag=True, expose_value=False, help="show the traceback of an error")


def command(examples: str) -> Callable[[Callable], click.Command]:
    """Make a command of a function, with ``--debug``: its docstring is the help, which ends in these examples."""

    def make(function: Callable) -> click.Command:
        text = indent(inspect.cleandoc(examples), "  ")
        made = click.command(epilog=f"\b\nexamples:\n{text}")(function)
        made.params.append(DEBUG)
        return made

    return make


def together(*parts: Callable) -> Callable:
    """One decorator of several arguments and options, which the help shows in this order."""
    return lambda function: functools.reduce(lambda made, part: part(made), reversed(parts), function)


def repeated(*names: str, help: str, **options: Any) -> Callable:
    """An option that may be given several times; its values come as a tuple."""
    return click.option(*names, multiple=True, help=f"{help}; may be repeated", **options)


def only(what: str) -> Callable:
    """The option --only for things of one kind."""
    return repeated("--only", metavar="NAME", help=what)


precision = click.option(
    "--precision",
    type=click.Choice(["float32", "bf16"]),
    default="float32",
    help="of convolutions between channels; bf16 is faster for R3 and G1 where the processor has it",
)
device = click.option("--device", default="cpu", metavar="D", help="where to compute: cpu, cuda, ...")
task = click.option(
    "--task",
    type=click.Choice(["denoise", "inpaint"]),
    default="denoise",
    help="remove noise, or fill in pixels",
)
image_set = together(
    click.option("--images", type=PATH, metavar="DIR", help="folder of images (default: BSDS68)"),
    click.option("--limit", type=POSITIVE, metavar="N", help="only the first N images"),
)


def solver_options(*schemes: str, default: str | None = "gnc", more: str = "") -> Callable:
    """The options --prior, --scheme, --steps, --device and --precision."""
    meanings = "; ".join(f"{name}: {SCHEMES[name]}" for name in schemes)
    place = "a prior of the package, a folder, or hf:owner/name on the Hugging Face hub"
    counts = "steps of gnc (default: 10, inpainting 30), linear (64, 30) and joint (12, 60)"
    return together(
        click.option("--prior", default="R1", metavar="NAME", help=place),
        click.option("--scheme", type=click.Choice(schemes), default=default, help=meanings + more),
        click.option("--steps", type=int, metavar="I", help=counts),
        device,
        precision,
    )


def say(text: str, error: bool = False) -> None:
    """Print a line at once, to stdout or stderr; who does not listen (any more) does not stop the work.

    Raises OSError where the line cannot be written for another reason, such as a full disk.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError as stop:
        with suppress(OSError, ValueError):  # of the rest Python would complain at its end
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        if not isinstance(stop, BrokenPipeError):  # the reader has gone, as in `gnc data | head -1`
            raise


def progress(items: Iterable, unit: str, **options: Any) -> Iterable:
    """The items, with a bar on a terminal."""
    from tqdm import tqdm

    return tqdm(items, unit=unit, disable=not sys.stderr.isatty(), **options)
