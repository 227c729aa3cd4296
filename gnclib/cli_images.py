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
        say(f"PSNR {before:.2f} dB noisy ({kind}), {after:.2f} dB denoised (as written), data range 1")
    images.write(args.output, made, args.force)
    say(f"{args.output}: {made}")


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


def evaluate_parser(add) -> None:
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
        say(f"sigma {level:>4}: {mean[0][-1]:.2f} dB, mean of {len(images)} images, not clipped")
    if args.json:
        steps = {"steps": args.steps} if args.scheme == "gnc" else {}
        about = {"prior": args.prior, "scheme": args.scheme, **steps, "task": args.task, "clipping": "none",
                 "noise": "image k has torch.Generator seed k", "set": str(args.images or "BSDS68"),
                 "energy": "D + R at the smallest t of the prior, nats per pixel"}  # fmt: skip
        files.write_text(args.json, files.dumps({**about, "psnr_by_sigma": numbers}))
