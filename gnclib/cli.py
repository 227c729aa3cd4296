"""The command ``gnc``: figures, notebooks, train, denoise, evaluate, data.

Heavy imports happen inside the subcommands, so that ``gnc --help`` answers at once. Mistakes end in one line
``gnc: error: ...`` and exit status 2 (wrong usage) or 1 (the work failed); ``--debug`` shows where.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gnclib import __version__

__all__ = ["build_parser", "main"]

_ROOT = Path(__file__).parents[1]


class Failed(Exception):
    """The work was done and found something wrong; already explained in the message."""


def _say(text: str) -> None:
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(next((word for word in argv if not word.startswith("-")), ""))
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except KeyboardInterrupt:
        print("gnc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `gnc data | head -1`
        sys.stderr.close()
        return 1
    except Exception as error:
        if args.debug:
            raise
        known = isinstance(error, (Failed, ValueError, OSError, RuntimeError, ImportError))
        text = str(error) or type(error).__name__
        hint = "" if known else f" ({type(error).__name__}; run it again with --debug to see where)"
        print(f"gnc: error: {text}{hint}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


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
    _train_parser(add, command)
    _denoise_parser(add)
    _evaluate_parser(add)
    _data_parser(add)
    return parser


# --- figures and notebooks --------------------------------------------------------------------------------


def _figures_parser(add) -> None:
    sub = add(
        "figures", _figures, "run the notebooks and make every figure and the claims ledger",
        "Run the notebooks in temporary copies, check that every declared figure was made, and collect the figures,\n"
        "their numbers (NAME.json) and the claims ledger (claims.md). A notebook that fails changes nothing.",
        "  gnc figures                            everything with small, quick settings\n"
        "  gnc figures --only figure1             one figure (or one notebook: --only 02_gnc_flow)\n"
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
    sub.add_argument("--list", action="store_true", help="only list the figures and their notebooks")


def _figures(args: argparse.Namespace) -> None:
    import tempfile

    from gnclib import reproduce

    if args.list:
        for name, figure in reproduce.MANIFEST.items():
            _say(f"{name:<24}{figure.notebook:<26}{figure.title}")
        return
    out = args.out or _ROOT / "figures" / ("full" if args.full else "")
    options = {"only": args.only, "full": args.full, "progress": sys.stderr.isatty(), "say": _say}
    if not args.check:
        reproduce.run(out=out, **options)
        _say(f"figures and claims.md are in {out}")
        return
    if not out.is_dir():
        raise FileNotFoundError(
            f"there is no folder {out} to compare with: run 'gnc figures --out {out}' first"
        )
    with tempfile.TemporaryDirectory(prefix="gnc-figures-") as folder:
        reproduce.run(out=folder, **options)
        wrong, remarks = reproduce.compare_runs(out, Path(folder), args.only)
    for line in (*remarks, *wrong):
        _say(line)
    if wrong:
        raise Failed(f"{len(wrong)} differences from the figures in {out}, see above")
    _say(f"the fresh run agrees with {out}")


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

    from gnclib import notebooks, reproduce

    chosen = reproduce.select(args.only)
    if args.check:
        wrong = [line for path in chosen.values() for line in notebooks.check(path)]
        for line in wrong:
            _say(line)
        if wrong:
            raise Failed(f"{len(wrong)} things are wrong with the committed notebooks, see above")
        _say(f"{len(chosen)} notebooks are executed and clean")
        return
    for path in tqdm(chosen.values(), unit="notebook", disable=not sys.stderr.isatty()):
        notebooks.refresh(path)


# --- train ------------------------------------------------------------------------------------------------


def _train_parser(add, command: str) -> None:
    sub = add(
        "train", _train, "train a prior by joint score matching",
        "Train a Fields-of-Experts prior on image patches by joint score matching (Kobler & Pock 2023, eq. 7).",
        "  gnc data verify                                first see whether the training images are there\n"
        "  gnc train R1 --steps 50000 --batch 16          as the shipped R_1; about an hour on one core\n"
        "  gnc train R1 --resume                          go on after an interruption, bit for bit the same",
    )  # fmt: skip
    if command == "train":
        from gnclib import training_run

        training_run.add_arguments(sub)


def _train(args: argparse.Namespace) -> None:
    from gnclib import training_run

    training_run.main(args)


# --- denoise ----------------------------------------------------------------------------------------------


def _denoise_parser(add) -> None:
    sub = add(
        "denoise", _denoise, "denoise an image file with a learned prior",
        "Denoise a grey or colour image (8 or 16 bit; colour channel by channel; alpha is kept). S is the standard\n"
        "deviation of the noise in grey levels of an 8-bit image (0..255), as in the literature, whatever the depth.",
        "  gnc denoise noisy.png --sigma 25 -o clean.png\n"
        "  gnc denoise noisy.png --sigma 25 -o clean.png --scheme mmse      one step, no data term\n"
        "  gnc denoise photo.png --sigma 25 --add-noise -o demo.png         add the noise first, print PSNRs\n"
        "  gnc denoise noisy.png --sigma 25 -o clean.png --clean truth.png  print PSNRs against a reference",
    )  # fmt: skip
    sub.add_argument("input", type=Path, metavar="IN", help="image file: png, tif, jpg, bmp, ...")
    sub.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="file to write: png, tif, jpg, bmp"
    )
    sub.add_argument(
        "--sigma", type=float, required=True, metavar="S", help="noise level in grey levels of 0..255"
    )
    sub.add_argument(
        "--prior", default="R1", metavar="NAME", help="a prior of the package or a folder (default: R1)"
    )
    sub.add_argument("--scheme", choices=("gnc", "mmse"), default="gnc",
                     help="gnc: GNC flow with data term (default); mmse: one Tweedie step")  # fmt: skip
    sub.add_argument("--steps", type=int, default=10, metavar="I",
                     help="steps of the GNC flow (default: 10; more lower the energy, not the error)")  # fmt: skip
    sub.add_argument("--clean", type=Path, metavar="REF", help="noise-free image to measure the PSNR against")
    sub.add_argument("--add-noise", nargs="?", type=int, const=0, metavar="SEED",
                     help="take IN as clean: add Gaussian noise of this sigma first (default seed: 0)")  # fmt: skip
    sub.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    sub.add_argument("--force", action="store_true", help="overwrite OUT if it exists")


def _denoise(args: argparse.Namespace) -> None:
    import numpy as np

    from gnclib import images

    if args.add_noise is not None and args.clean is not None:
        raise ValueError("--add-noise takes IN as the clean image: leave --clean away")
    if args.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {args.steps}")
    picture = images.read(args.input)
    images.check_writable(args.output, picture, args.force)
    reference = images.read(args.clean).pixels if args.clean else None
    if reference is not None and reference.shape != picture.pixels.shape:
        raise ValueError(f"{args.clean} has the shape {reference.shape} (channels, height, width), "
                         f"{args.input} has {picture.pixels.shape}: they must agree")  # fmt: skip
    noisy, reference, result = _denoise_pixels(args, picture.pixels, reference)
    made = images.quantise(picture, result)
    if reference is not None:
        before, after = (-10 * np.log10(np.mean((a - reference) ** 2) + 1e-30) for a in (noisy, made.pixels))
        kind = "unclipped" if args.add_noise is not None else "as in the file"
        _say(f"PSNR {before:.2f} dB noisy ({kind}), {after:.2f} dB denoised (as written), data range 1")
    images.write(args.output, made, args.force)
    _say(f"{args.output}: {made}")


def _denoise_pixels(args: argparse.Namespace, pixels, reference):
    """(noisy, reference, result), each (C, H, W) or None for the reference, after the work on the device."""
    import torch
    from tqdm import tqdm

    from gnclib import denoise
    from gnclib.foe import FieldsOfExperts

    prior = FieldsOfExperts.from_pretrained(args.prior)
    sigma = denoise.check_sigma(args.sigma, prior.config.sigma_min, prior.config.sigma_max)
    x = torch.from_numpy(pixels)  # (C, H, W)
    if args.add_noise is not None:
        reference = pixels
        x = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(args.add_noise))
    device = torch.device(args.device)
    tiled, steps = denoise.Tiled(prior.to(device)), 1 if args.scheme == "mmse" else args.steps
    result = []
    bar = tqdm(total=len(x) * steps, unit="step", disable=not sys.stderr.isatty())
    for channel in x.to(device):
        final = None
        for iterate in denoise.denoise(tiled, channel[None, None], sigma, args.scheme, steps):
            final = iterate[0].cpu()  # (1, H, W)
            bar.update()
        result.append(final)
    bar.close()
    return x.numpy(), reference, torch.cat(result).numpy()


# --- evaluate ---------------------------------------------------------------------------------------------


def _evaluate_parser(add) -> None:
    sub = add(
        "evaluate", _evaluate, "measure how well a prior denoises a set of images",
        "Mean PSNR over a set of images. Image k of the set gets Gaussian noise of seed k; nothing is clipped; data\n"
        "range 1. The set is BSDS68 unless --images names a folder.",
        "  gnc evaluate --sigma 15 --sigma 25 --sigma 50\n"
        "  gnc evaluate --sigma 25 --images photos/ --limit 10 --json numbers.json",
    )  # fmt: skip
    sub.add_argument("--prior", default="R1", metavar="NAME", help="shipped name or folder (default: R1)")
    sub.add_argument("--scheme", choices=("mmse", "gnc"), default="mmse",
                     help="mmse: one Tweedie step (default); gnc: GNC flow with data term")  # fmt: skip
    sub.add_argument("--steps", type=int, default=10, metavar="I", help="steps of the GNC flow (default: 10)")
    sub.add_argument("--task", choices=("denoise",), default="denoise", help="denoise: white Gaussian noise")
    sub.add_argument("--sigma", type=float, action="append", metavar="S",
                     help="noise level in grey levels of 0..255; may be repeated (default: 25)")  # fmt: skip
    sub.add_argument("--images", type=Path, metavar="DIR", help="folder of images (default: BSDS68)")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, image by image, to FILE")


def _evaluate(args: argparse.Namespace) -> None:
    import numpy as np
    from tqdm import tqdm

    from gnclib import data, denoise, evaluate, files
    from gnclib.foe import FieldsOfExperts

    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {args.limit}")
    prior = FieldsOfExperts.from_pretrained(args.prior)
    sigmas = [
        denoise.check_sigma(s, prior.config.sigma_min, prior.config.sigma_max) for s in args.sigma or [25]
    ]
    images = evaluate.folder_images(args.images) if args.images else data.bsds68()
    images = dict(list(images.items())[: args.limit])
    numbers = {}
    for sigma in sigmas:
        bar = tqdm(images.items(), desc=f"sigma {255 * sigma:g}", disable=not sys.stderr.isatty())
        paths = {
            name: evaluate.denoising_path(prior, x, sigma, k, args.scheme, args.steps)
            for k, (name, x) in enumerate(bar)
        }
        mean = np.mean(list(paths.values()), axis=0).T.tolist()  # PSNR and energy, per step
        level = f"{255 * sigma:g}"
        numbers[level] = {
            "mean": mean[0][-1],
            "mean_psnr_per_step": mean[0],
            "mean_energy_per_step": mean[1],
            "images": {name: path[-1][0] for name, path in paths.items()},
        }
        _say(f"sigma {level:>4}: {mean[0][-1]:.2f} dB, mean of {len(images)} images, not clipped")
    if args.json:
        steps = {"steps": args.steps} if args.scheme == "gnc" else {}
        about = {"prior": args.prior, "scheme": args.scheme, **steps, "task": args.task, "clipping": "none",
                 "noise": "image k has torch.Generator seed k", "set": str(args.images or "BSDS68"),
                 "energy": "D + R at the smallest t of the prior, nats per pixel"}  # fmt: skip
        files.write_text(args.json, files.dumps({**about, "psnr_by_sigma": numbers}))


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
    import os

    from gnclib import data

    root = os.environ.get("GNC_DATA_DIR")
    where = f"GNC_DATA_DIR = {root}" if root else "the download cache (GNC_DATA_DIR is not set)"
    there = data.available()
    if args.action == "show":
        for split in data.SPLITS:
            state = "there" if data.available([split]) else "not there"
            _say(f"{split:<6} {len(data.bsds500_ids(split)):>4} images  {state}")
        _say(f"looked in {where}")
        _say(f"BSDS68 (test set): {len(data.bsds68_ids())} images, all in val, which is never trained on")
        if not there:
            _say("'gnc data download' fetches them; nothing in the notebooks requires it")
        return
    if args.action == "verify" and not there:
        raise FileNotFoundError(
            f"BSDS500 is not complete in {where}: run 'gnc data download' or set GNC_DATA_DIR"
        )
    _say(f"{data.verify()} images have the right SHA-256, in {where}")
