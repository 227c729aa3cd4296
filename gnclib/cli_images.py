"""The subcommands that work on images: ``gnc denoise`` and ``gnc evaluate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["denoise_parser", "evaluate_parser", "say"]


def say(text: str) -> None:
    """Print a line of results at once."""
    print(text, flush=True)


# --- denoise ----------------------------------------------------------------------------------------------


def _scheme_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--prior",
        default="R1",
        metavar="NAME",
        help="a prior of the package, a folder, or owner/name on the Hugging Face hub (default: R1)",
    )
    sub.add_argument("--scheme", choices=("mmse", "gnc", "joint", "learned", "finetuned"), default="gnc",
                     help="mmse: one Tweedie step; gnc: GNC flow, predefined schedule (default); joint: over image and "
                     "smoothing; learned: learned schedule; finetuned: and the prior with it")  # fmt: skip
    sub.add_argument("--steps", type=int, metavar="I",
                     help="steps of gnc (default: 10, inpainting 30) and joint (12, 60)")  # fmt: skip


def denoise_parser(add) -> None:
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
    _scheme_arguments(sub)
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
        say(f"PSNR {before:.2f} dB noisy ({kind}), {after:.2f} dB denoised (as written), data range 1")
    images.write(args.output, made, args.force)
    say(f"{args.output}: {made}")


def _denoise_pixels(args: argparse.Namespace, pixels, reference):
    """(noisy, reference, result), each (C, H, W) or None for the reference, after the work on the device."""
    import torch
    from tqdm import tqdm

    from gnclib import schemes
    from gnclib.learned import Task
    from gnclib.operators import Denoising

    task = Task("denoise", args.sigma)
    scheme = schemes.load(args.scheme, args.prior, task, args.steps, device=args.device, tile=512)
    x = torch.from_numpy(pixels)  # (C, H, W)
    if args.add_noise is not None:
        reference = pixels
        x = x + task.sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(args.add_noise))
    result = []
    bar = tqdm(total=len(x) * scheme.steps, unit="step", disable=not sys.stderr.isatty())
    for channel in x.to(args.device):
        final = None
        for state in scheme.states(Denoising(channel[None, None], task.sigma)):
            final = state.x[0].cpu()  # (1, H, W)
            bar.update()
        result.append(final)
    bar.close()
    return x.numpy(), reference, torch.cat(result).numpy()


# --- evaluate ---------------------------------------------------------------------------------------------


def evaluate_parser(add) -> None:
    sub = add(
        "evaluate", _evaluate, "measure how well a prior denoises or inpaints a set of images",
        "Mean PSNR and SSIM over a set of images. Image k of the set gets Gaussian noise, or a mask, of seed k;\n"
        "nothing is clipped; data range 1. The set is BSDS68 unless --images names a folder.",
        "  gnc evaluate --scheme mmse --sigma 15 --sigma 25 --sigma 50\n"
        "  gnc evaluate --prior R1 --scheme learned --task inpaint --missing 0.8\n"
        "  gnc evaluate --sigma 25 --images photos/ --limit 10 --json numbers.json",
    )  # fmt: skip
    _scheme_arguments(sub)
    sub.set_defaults(scheme="mmse")
    sub.add_argument("--task", choices=("denoise", "inpaint"), default="denoise",
                     help="denoise: white Gaussian noise (default); inpaint: missing pixels")  # fmt: skip
    sub.add_argument("--sigma", type=float, action="append", metavar="S",
                     help="noise level in grey levels of 0..255; may be repeated (default: 25)")  # fmt: skip
    sub.add_argument("--missing", type=float, action="append", metavar="F",
                     help="fraction of missing pixels; may be repeated (default: 0.8)")  # fmt: skip
    sub.add_argument("--images", type=Path, metavar="DIR", help="folder of images (default: BSDS68)")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, image by image, to FILE")


def _evaluate(args: argparse.Namespace) -> None:
    from gnclib import data, evaluate, files, schemes
    from gnclib.learned import Task

    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {args.limit}")
    option, other = ("sigma", "missing") if args.task == "denoise" else ("missing", "sigma")
    if getattr(args, other):
        raise ValueError(f"--{other} is not for --task {args.task}: use --{option}")
    levels = getattr(args, option) or [25 if args.task == "denoise" else 0.8]
    loaded = [schemes.load(args.scheme, args.prior, Task(args.task, v), args.steps) for v in levels]
    images = evaluate.folder_images(args.images) if args.images else data.bsds68()
    images = dict(list(images.items())[: args.limit])
    numbers = {f"{level:g}": _measured(scheme, images) for level, scheme in zip(levels, loaded, strict=True)}
    if args.json:
        steps = {"steps": loaded[0].steps} if loaded[0].steps > 1 else {}
        about = {"prior": args.prior, "scheme": args.scheme, **steps, "task": args.task, "clipping": "none",
                 "noise": "image k has torch.Generator seed k", "set": str(args.images or "BSDS68"),
                 "energy": "D + R at the smallest t of the prior, nats per pixel"}  # fmt: skip
        files.write_text(args.json, files.dumps({**about, f"psnr_by_{option}": numbers}))


def _measured(scheme, images) -> dict:
    """The numbers of a scheme on images (name -> image), and a line of text about them."""
    from statistics import fmean

    from tqdm import tqdm

    from gnclib import evaluate

    bar = tqdm(images.items(), desc=str(scheme.task), disable=not sys.stderr.isatty())
    done = {name: evaluate.restoration(scheme, x, k) for k, (name, x) in enumerate(bar)}
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
