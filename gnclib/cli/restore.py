"""The subcommands that restore image files: ``gnc denoise`` and ``gnc inpaint``."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from gnclib.cli.evaluate import say, scheme_arguments

__all__ = ["denoise_parser", "inpaint_parser"]

#: a noise level above this is asked about: little of an image is left
STRANGE = 100.0


def denoise_parser(add) -> None:
    sub = add(
        "denoise", _denoise, "denoise image files with a learned prior",
        "Denoise grey or colour images (8 or 16 bit; alpha, colour profile, EXIF and resolution are kept where OUT\n"
        "can hold them). S is the standard deviation of the noise in grey levels of an 8-bit image (0..255), as in\n"
        "the literature, whatever the depth. Without --sigma it is estimated by maximum likelihood under the prior\n"
        "R1. Colour is denoised in opponent colours, brightness and two differences, if the noise of red, green and\n"
        "blue looks independent and equally strong: better by a decibel or two. Otherwise channel by channel.",
        "  gnc denoise noisy.png -o clean.png                               sigma is estimated, and printed\n"
        "  gnc denoise noisy.png --sigma 25 -o clean.png --scheme mmse      one step, no data term\n"
        "  gnc denoise scans/*.tif -o restored/                             several files, into a folder\n"
        "  gnc denoise photo.png --sigma 25 --add-noise -o demo.png         add the noise first, print PSNRs\n"
        "  gnc denoise noisy.png --sigma 25 -o clean.png --clean truth.png  print PSNRs against a reference",
    )  # fmt: skip
    _file_arguments(sub)
    sub.add_argument(
        "--sigma", type=float, metavar="S", help="noise level in grey levels of 0..255 (default: estimated)"
    )
    scheme_arguments(sub)
    sub.add_argument("--colour", choices=("auto", "opponent", "channels"), default="auto",
                     help="denoise brightness and differences of colour, or red, green and blue"
                     " (default: as the noise looks)")  # fmt: skip
    sub.add_argument("--clean", type=Path, metavar="REF", help="noise-free image to measure the PSNR against")
    sub.add_argument("--add-noise", nargs="?", type=int, const=0, metavar="SEED",
                     help="take IN as clean: add Gaussian noise of this sigma first (default seed: 0)")  # fmt: skip


def inpaint_parser(add) -> None:
    sub = add(
        "inpaint", _inpaint, "fill in missing pixels of image files with a learned prior",
        "Fill in the pixels of grey or colour images that a mask marks as missing; the others stay as they are,\n"
        "and so do colour profile, EXIF and resolution where OUT can hold them. The prior sees a few pixels\n"
        "far: scratches, writing and scattered pixels vanish, larger holes are filled smoothly.",
        "  gnc inpaint scratched.png --mask scratches.png -o whole.png      white (anything but black) = missing\n"
        "  gnc inpaint cutout.png --mask alpha -o whole.png                 missing where fully transparent\n"
        "  gnc inpaint noisy80.png --mask holes.png --scheme learned -o whole.png",
    )  # fmt: skip
    _file_arguments(sub)
    sub.add_argument("--mask", required=True, metavar="MASK",
                     help="image of the same size, not black where IN is missing; or 'alpha'")  # fmt: skip
    scheme_arguments(sub, ("gnc", "joint", "learned"))


def _file_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("input", type=Path, nargs="+", metavar="IN", help="image files: png, tif, jpg, bmp, ...")
    sub.add_argument("-o", "--output", required=True, metavar="OUT",
                     help="file to write: png, tif, jpg, bmp; or a folder (existing, or ending in /)")  # fmt: skip
    sub.add_argument("--force", action="store_true", help="overwrite OUT if it exists")


# --- files ------------------------------------------------------------------------------------------------


def _targets(inputs: list[Path], output: str) -> list[Path]:
    """The file to write for each input; makes the folder if one is meant that does not exist."""
    folder, meant = Path(output), output.endswith(("/", os.sep))
    if len(inputs) == 1 and not (meant or folder.is_dir()):
        return [folder]
    if not folder.is_dir() and (folder.exists() or (folder.suffix and not meant)):
        raise ValueError(f"{len(inputs)} images need a folder to go to, {output} is not one: write {output}/")
    targets = [folder / path.name for path in inputs]
    twice = {path.name for path in targets if targets.count(path) > 1}
    if twice:
        raise ValueError(f"several inputs are called {', '.join(sorted(twice))}: they would go to one file")
    if not any(path.is_file() for path in inputs):
        if inputs[0].is_dir():
            raise IsADirectoryError(f"{inputs[0]} is a folder: name the images in it, {inputs[0]}/*.png")
        raise FileNotFoundError(f"there is no image file {inputs[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    return targets


def _each(args: argparse.Namespace, work) -> None:
    """Do work(input, output) for every file; with several, go on after one that fails, and say so in the end."""
    targets = _targets(args.input, args.output)
    if len(targets) == 1:
        work(args.input[0], targets[0])
        return
    failed = 0
    for source, target in zip(args.input, targets, strict=True):
        try:
            work(source, target)
        except (ValueError, OSError) as error:
            failed += 1
            print(f"gnc: {source.name} failed: {error}", file=sys.stderr)
    if failed:
        raise RuntimeError(f"{failed} of {len(targets)} images failed, see above")


def _bar():
    from tqdm import tqdm

    class Bar(tqdm):
        def to(self, done: int, total: int) -> None:
            self.total = total
            self.update(done - self.n)

    return Bar(unit="step", disable=not sys.stderr.isatty())


# --- denoise ----------------------------------------------------------------------------------------------


def _denoise(args: argparse.Namespace) -> None:
    if args.add_noise is not None and args.clean is not None:
        raise ValueError("--add-noise takes IN as the clean image: leave --clean away")
    if args.add_noise is not None and args.sigma is None:
        raise ValueError("--add-noise needs --sigma: how much noise to add")
    if args.clean is not None and len(args.input) > 1:
        raise ValueError("--clean is for one image, not for several")
    if args.sigma is not None and STRANGE < args.sigma <= 255:
        say(f"warning: sigma {args.sigma:g} is very strong noise; it is meant in grey levels of 0..255")
    _each(args, lambda source, target: _denoise_one(args, source, target))


def _denoise_one(args: argparse.Namespace, source: Path, target: Path) -> None:
    from gnclib.images import writing as images

    picture = images.read(source)
    images.check_writable(target, picture, args.force)
    reference = images.read(args.clean).pixels if args.clean else None
    if reference is not None and reference.shape != picture.pixels.shape:
        raise ValueError(f"{args.clean} has the shape {reference.shape} (channels, height, width), "
                         f"{source} has {picture.pixels.shape}: they must agree")  # fmt: skip
    noisy, added = picture.pixels, args.add_noise is not None
    if added:
        reference, noisy = noisy, _with_noise(noisy, args.sigma, args.add_noise)
    made = images.quantise(picture, _denoised(args, source, noisy))
    if reference is not None:
        before, after = (_psnr(a, reference) for a in (noisy, made.pixels))
        kind = "unclipped" if added else "as in the file"
        say(f"PSNR {before:.2f} dB noisy ({kind}), {after:.2f} dB denoised (as written), data range 1")
    images.write(target, made, args.force)
    say(f"{target}: {made}")


def _psnr(pixels, reference) -> float:
    """In dB over all channels (C, H, W) together."""
    import torch

    from gnclib.images.metrics import psnr

    return psnr(*(torch.from_numpy(a).flatten(0, 1)[None, None] for a in (pixels, reference))).item()


def _with_noise(pixels, sigma: float, seed: int):
    import torch

    from gnclib.images.data import add_noise
    from gnclib.restore.learned import Task

    return add_noise(torch.from_numpy(pixels), Task("denoise", sigma).sigma, seed).numpy()


def _denoised(args: argparse.Namespace, source: Path, pixels):
    """The pixels (C, H, W) without their noise, of the level asked for or estimated."""
    from gnclib.restore import restoration

    if args.sigma == 0:
        raise ValueError("--sigma 0 says that there is no noise: leave --sigma out and it is estimated")
    if args.sigma is not None and 0 < args.sigma < 1:
        raise ValueError(
            f"sigma {args.sigma:g} is outside of this prior's range: it is meant in grey levels of 0..255, so"
            f" {args.sigma:g} of a range of 1 is --sigma {255 * args.sigma:g}"
        )
    with _bar() as bar:
        found = restoration.denoise_channels(
            pixels, None if args.sigma is None else args.sigma / 255, prior=args.prior, scheme=args.scheme,
            steps=args.steps, colour=args.colour, device=args.device, progress=bar.to,
        )  # fmt: skip
    if args.sigma is None:
        levels = [None if s is None else 255 * s for s in found.levels]
        opponent = found.basis == "opponent"
        _say_levels(
            source, levels, "brightness, two differences of colour" if opponent else "red, green, blue"
        )
    elif found.unlike:
        say(
            f"{source}: the noise of red, green and blue does not look independent: they are denoised one by one"
        )
    return found.image


def _say_levels(source: Path, levels: list[float | None], planes: str) -> None:
    """What was estimated, in grey levels of 0..255."""
    if not any(levels):
        say(f"{source}: no noise of sigma 2.55 (of 255) or more was found, the picture stays as it is")
        return
    words = ", ".join("below 2.55" if level is None else f"{level:.1f}" for level in levels)
    say(f"{source}: sigma {words}{f' ({planes})' if len(levels) == 3 else ''} of 255, estimated")
    if max(level or 0 for level in levels) > STRANGE:
        say("warning: that is very strong noise; if the image is no photograph, give --sigma yourself")


# --- inpaint ----------------------------------------------------------------------------------------------


def _inpaint(args: argparse.Namespace) -> None:
    _each(args, lambda source, target: _inpaint_one(args, source, target))


def _inpaint_one(args: argparse.Namespace, source: Path, target: Path) -> None:
    from gnclib.images import writing as images
    from gnclib.restore import restoration

    picture = images.read(source)
    missing, whole = _missing(args.mask, source, picture)
    images.check_writable(target, whole, args.force)
    if not missing.any():
        say(f"warning: {args.mask} marks no pixel as missing, {source} stays as it is")
    with _bar() as bar:
        filled = restoration.inpaint_channels(
            picture.pixels, missing, prior=args.prior, scheme=args.scheme, steps=args.steps, device=args.device,
            progress=bar.to,
        )  # fmt: skip
    made = images.quantise(whole, filled)
    images.write(target, made, args.force)
    say(f"{target}: {made}, {100 * missing.mean():.3g} % filled in")


def _missing(mask: str, source: Path, picture):
    """Where pixels are missing, (H, W), and the picture as it will be: with the alpha channel opaque there."""
    import numpy as np

    from gnclib.images import writing as images

    if mask == "alpha":
        if picture.alpha is None:
            raise ValueError(f"{source} has no alpha channel: give an image as --mask")
        missing = picture.alpha == 0
        return missing, replace(picture, alpha=np.where(missing, 2**picture.depth - 1, picture.alpha))
    missing = (images.read(mask, bilevel=True).pixels > 0).any(0)
    if missing.shape != picture.pixels.shape[1:]:
        sizes = " x ".join(map(str, missing.shape[::-1])), " x ".join(map(str, picture.pixels.shape[:0:-1]))
        raise ValueError(f"the mask {mask} has {sizes[0]} pixels, {source} has {sizes[1]}: they must agree")
    return missing, picture
