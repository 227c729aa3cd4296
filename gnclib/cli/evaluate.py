"""The subcommand ``gnc evaluate``, and what it shares with those that restore files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["evaluate_parser", "say", "scheme_arguments"]


def say(text: str) -> None:
    """Print a line of results at once."""
    print(text, flush=True)


#: what --scheme may be, and what the help says about it
SCHEMES = {
    "mmse": "one Tweedie step",
    "gnc": "GNC flow, predefined schedule",
    "joint": "over image and smoothing",
    "learned": "learned schedule",
    "finetuned": "and the prior with it",
}


def scheme_arguments(
    sub: argparse.ArgumentParser, schemes: tuple[str, ...] = tuple(SCHEMES), default: str = "gnc"
) -> None:
    """The options --prior, --scheme, --steps and --device."""
    sub.add_argument(
        "--prior",
        default="R1",
        metavar="NAME",
        help="a prior of the package, a folder, or owner/name on the Hugging Face hub (default: R1)",
    )
    meanings = "; ".join(f"{name}: {SCHEMES[name]}" for name in schemes)
    sub.add_argument("--scheme", choices=schemes, default="gnc", help=f"{meanings} (default: {default})")
    sub.add_argument("--steps", type=int, metavar="I",
                     help="steps of gnc (default: 10, inpainting 30) and joint (12, 60)")  # fmt: skip
    sub.add_argument("--device", default="cpu", help="where to compute: cpu (default), cuda, ...")


# --- evaluate ---------------------------------------------------------------------------------------------


def evaluate_parser(add) -> None:
    sub = add(
        "evaluate", _evaluate, "measure how well a prior denoises or inpaints a set of images",
        "Mean PSNR and SSIM over a set of images. Image k of the set gets Gaussian noise, or a mask, of seed k;\n"
        "nothing is clipped; data range 1. The set is BSDS68 unless --images names a folder.",
        "  gnc evaluate --scheme mmse --sigma 15 --sigma 25 --sigma 50\n"
        "  gnc evaluate --prior R1 --scheme learned --task inpaint --missing 0.8\n"
        "  gnc evaluate --sigma 25 --images photos/ --limit 10 --json numbers.json\n"
        "  gnc evaluate --sigma 25 --scheme learned --colour opponent             CBSD68, see 'gnc denoise --help'",
    )  # fmt: skip
    scheme_arguments(sub, default="mmse, for inpainting gnc")
    sub.set_defaults(scheme=None)
    sub.add_argument("--task", choices=("denoise", "inpaint"), default="denoise",
                     help="denoise: white Gaussian noise (default); inpaint: missing pixels")  # fmt: skip
    sub.add_argument("--sigma", type=float, action="append", metavar="S",
                     help="noise level in grey levels of 0..255; may be repeated (default: 25)")  # fmt: skip
    sub.add_argument("--missing", type=float, action="append", metavar="F",
                     help="fraction of missing pixels; may be repeated (default: 0.8)")  # fmt: skip
    sub.add_argument("--images", type=Path, metavar="DIR", help="folder of images (default: BSDS68)")
    sub.add_argument("--colour", choices=("opponent", "channels"),
                     help="images in colour, restored in opponent colours or channel by channel")  # fmt: skip
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, image by image, to FILE")


def _evaluate(args: argparse.Namespace) -> None:
    from gnclib.images import data
    from gnclib.io import files
    from gnclib.restore import evaluate, schemes
    from gnclib.restore.learned import Task

    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {args.limit}")
    option, other = ("sigma", "missing") if args.task == "denoise" else ("missing", "sigma")
    if getattr(args, other):
        raise ValueError(f"--{other} is not for --task {args.task}: use --{option}")
    scheme = args.scheme or ("mmse" if args.task == "denoise" else "gnc")
    levels = getattr(args, option) or [25 if args.task == "denoise" else 0.8]
    loaded = [
        schemes.load(scheme, args.prior, Task(args.task, v), args.steps, device=args.device) for v in levels
    ]
    if args.colour == "opponent" and args.task == "inpaint":
        raise ValueError("missing pixels are filled in channel by channel: use --colour channels")
    colour = args.colour is not None
    images = evaluate.folder_images(args.images, colour) if args.images else data.bsds68(colour)
    images = dict(list(images.items())[: args.limit])
    basis = args.colour or "channels"
    numbers = {f"{level:g}": _measured(one, images, basis) for level, one in zip(levels, loaded, strict=True)}
    if args.json:
        steps = {"steps": loaded[0].steps} if loaded[0].steps > 1 else {}
        kind = {"colour": args.colour} if args.colour else {}
        benchmark = "CBSD68" if args.colour else "BSDS68"
        about = {"prior": args.prior, "scheme": scheme, **steps, "task": args.task, **kind, "clipping": "none",
                 "noise": "image k has torch.Generator seed k", "set": str(args.images or benchmark),
                 "energy": "D + R at the smallest t of the prior, nats per pixel"}  # fmt: skip
        files.write_text(args.json, files.dumps({**about, f"psnr_by_{option}": numbers}))


def _measured(scheme, images, basis: str) -> dict:
    """The numbers of a scheme on images (name -> image), and a line of text about them."""
    from statistics import fmean

    from tqdm import tqdm

    from gnclib.restore import evaluate

    bar = tqdm(images.items(), desc=str(scheme.task), disable=not sys.stderr.isatty())
    done = {name: evaluate.restoration(scheme, x, k, basis) for k, (name, x) in enumerate(bar)}
    means = {key: fmean(getattr(r, key) for r in done.values()) for key in ("start", "ssim", "seconds")}
    per_step = {
        key: [fmean(column) for column in zip(*(getattr(r, key) for r in done.values()), strict=True)]
        for key in ("psnr", "energy")
    }
    level = f"sigma {scheme.task.level:>4g}" if scheme.task.kind == "denoise" else str(scheme.task)
    say(
        f"{level}: {per_step['psnr'][-1]:.2f} dB, SSIM {means['ssim']:.4f}, mean of {len(done)} images, not clipped;"
        f" {means['seconds']:.2f} s and {scheme.evaluations} gradient(s) per image"
    )
    return {
        "mean": per_step["psnr"][-1],
        "mean_ssim": means["ssim"],
        "mean_psnr_of_measurement": means["start"],
        "mean_psnr_per_step": per_step["psnr"],
        "mean_energy_per_step": per_step["energy"],
        "gradients_per_image": scheme.evaluations,
        "images": {name: r.psnr[-1] for name, r in done.items()},
    }
