"""The commands that restore images: ``gnc denoise``, ``inpaint`` and ``evaluate``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import click

from gnclib.cli import options
from gnclib.cli.options import PATH, command, progress, say

__all__ = ["denoise", "evaluate", "inpaint"]

#: in grey levels; a warning is printed about more noise than this: little of an image is left
STRANGE = 100.0
#: what --scheme may be, and what the help says about it
SCHEMES = {
    "mmse": "one Tweedie step",
    "gnc": "GNC flow, predefined schedule",
    "joint": "over image and smoothing",
    "learned": "learned schedule",
    "finetuned": "and the prior with it",
}


def solver_options(*schemes: str, default: str | None = "gnc", more: str = "") -> Callable:
    """The options --prior, --scheme, --steps and --device."""
    meanings = "; ".join(f"{name}: {SCHEMES[name]}" for name in schemes)
    place = "a prior of the package, a folder, or hf:owner/name on the Hugging Face hub"
    counts = "steps of gnc (default: 10, inpainting 30) and joint (12, 60)"
    return options.together(
        click.option("--prior", default="R1", metavar="NAME", help=place),
        click.option("--scheme", type=click.Choice(schemes), default=default, help=meanings + more),
        click.option("--steps", type=int, metavar="I", help=counts),
        options.device,
    )


OUT_HELP = "file to write: png, tif, jpg, bmp; or a folder (existing, or ending in /)"
file_options = options.together(
    click.argument("inputs", type=PATH, nargs=-1, required=True, metavar="IN..."),
    click.option("-o", "--output", required=True, metavar="OUT", help=OUT_HELP),
    click.option("--force", is_flag=True, help="overwrite OUT if it exists"),
)


# --- files ------------------------------------------------------------------------------------------------


def _targets(inputs: tuple[Path, ...], output: str) -> list[Path]:
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
    folder.mkdir(parents=True, exist_ok=True)
    return targets


def _each(inputs: tuple[Path, ...], output: str, work: Callable[[Path, Path], None]) -> None:
    """Do work(input, output) for every file; with several, go on after one that fails, and say so in the end."""
    targets = _targets(inputs, output)
    if len(targets) == 1:
        work(inputs[0], targets[0])
        return
    failed = 0
    for source, target in zip(inputs, targets, strict=True):
        try:
            work(source, target)
        except (ValueError, OSError) as error:
            failed += 1
            print(f"gnc: {source.name} failed: {error}", file=sys.stderr)
    if failed:
        raise RuntimeError(f"{failed} of {len(targets)} images failed, see above")


def _bar() -> Callable[[int, int], None]:
    """Shows, on a terminal, how many steps of how many are done."""
    from tqdm import tqdm

    bar = tqdm(unit="step", disable=not sys.stderr.isatty())

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


# --- denoise ----------------------------------------------------------------------------------------------

COLOUR_HELP = "denoise brightness and differences of colour, or red, green and blue; auto: as the noise looks"
STD_HELP = "write the standard deviation of each pixel (float TIFF, grey levels of 0..255) and a PNG of it"
NOISE_HELP = "take IN as clean: add Gaussian noise of this sigma first (seed: 0 if none is given)"


@command(
    """
    gnc denoise noisy.png -o clean.png                               sigma is estimated, and printed
    gnc denoise noisy.png --sigma 25 -o clean.png --scheme mmse      one step, no data term
    gnc denoise scans/*.tif -o restored/                             several files, into a folder
    gnc denoise photo.png --sigma 25 --add-noise -o demo.png         add the noise first, print PSNRs
    gnc denoise noisy.png --sigma 25 -o clean.png --clean truth.png  print PSNRs against a reference
    gnc denoise noisy.png --sigma 25 -o clean.png --uncertainty std.tif   how sure each pixel is
    """
)
@file_options
@click.option("--sigma", type=float, metavar="S", help="noise in grey levels of 0..255 (default: estimated)")
@solver_options(*SCHEMES)
@click.option(
    "--colour", type=click.Choice(["auto", "opponent", "channels"]), default="auto", help=COLOUR_HELP
)
@click.option("--clean", type=PATH, metavar="REF", help="noise-free image to measure the PSNR against")
@click.option("--add-noise", type=int, is_flag=False, flag_value=0, metavar="[SEED]", help=NOISE_HELP)
@click.option("--uncertainty", type=PATH, metavar="FILE", help=STD_HELP)
def denoise(inputs, output, force, sigma, clean, add_noise, uncertainty, **solver):
    """Denoise grey or colour images (8 or 16 bit; alpha, colour profile, EXIF and resolution are kept where OUT can
    hold them). S is the standard deviation of the noise in grey levels of an 8-bit image (0..255), as in the
    literature, whatever the depth. Without --sigma it is estimated by maximum likelihood under the prior R1. Colour is
    denoised in opponent colours, brightness and two differences, if the noise of red, green and blue looks independent
    and equally strong: better by a decibel or two. Otherwise channel by channel."""
    if add_noise is not None and clean is not None:
        raise ValueError("--add-noise takes IN as the clean image: leave --clean away")
    if add_noise is not None and sigma is None:
        raise ValueError("--add-noise needs --sigma: how much noise to add")
    if clean is not None and len(inputs) > 1:
        raise ValueError("--clean is for one image, not for several")
    if uncertainty is not None and len(inputs) > 1:
        raise ValueError("--uncertainty is for one image, not for several")
    fraction = None if sigma is None else _fraction(sigma)
    import torch

    from gnclib import images
    from gnclib.restore import denoise_channels, evaluate

    def work(source: Path, target: Path) -> None:
        picture = images.read(source)
        images.check_writable(target, picture, force)
        if uncertainty is not None:
            images.check_map(uncertainty, force)
        noisy, reference = picture.pixels, None
        if clean is not None:
            reference = images.read(clean).pixels
            if reference.shape != noisy.shape:
                raise ValueError(
                    f"{clean} has the shape {reference.shape} (channels, height, width), {source} has"
                    f" {noisy.shape}: they must agree"
                )
        elif add_noise is not None:
            noisy, reference = images.add_noise(torch.from_numpy(noisy), fraction, add_noise).numpy(), noisy
        pixels, planes = denoise_channels(noisy, fraction, progress=_bar(), **solver)
        _say_found(source, planes, sigma is None)
        made = images.quantise(picture, pixels)
        if reference is not None:
            kind = "as in the file" if clean else "unclipped"
            truth = torch.from_numpy(reference)
            before, after = (evaluate.psnr(torch.from_numpy(a), truth) for a in (noisy, made.pixels))
            say(f"PSNR {before:.2f} dB noisy ({kind}), {after:.2f} dB denoised (as written), data range 1")
        images.write(target, made, force)
        say(f"{target}: {made}")
        if uncertainty is not None:
            _write_std(uncertainty, noisy, planes, sigma is None, solver["prior"], solver["device"], force)

    _each(inputs, output, work)


def _write_std(file: Path, noisy, planes, estimated: bool, prior: str, device: str, force: bool) -> None:
    """The standard deviation of each pixel in FILE, and lines about it."""
    import numpy as np

    from gnclib import images
    from gnclib.restore import std_channels

    std, reasons = std_channels(noisy, planes, prior=prior, device=device)
    for reason in [*["sigma was estimated"] * estimated, *reasons]:
        say(f"warning: {file} is uncertain: {reason}")
    levels = 255 * std
    white = max(float(np.nan_to_num(levels).max()), 1e-6)
    picture = images.write_map(file, levels, white, force)
    say(
        f"{file}: standard deviation in grey levels of 0..255, {np.sqrt((levels**2).mean()):.2f} on average (rms)"
    )
    say(f"{picture}: a picture of it, white is {white:.1f}")


def _fraction(sigma: float) -> float:
    """A noise level in grey levels of 0..255 as a fraction of the range; warns where another unit may be meant."""
    if sigma == 0:
        raise ValueError("--sigma 0 says that there is no noise: leave --sigma out and it is estimated")
    if not 0 < sigma <= 255:
        raise ValueError(f"--sigma must lie in (0, 255], got {sigma:g}")
    if sigma < 1:
        raise ValueError(
            f"--sigma is meant in grey levels of 0..255, so {sigma:g} of a range of 1 is --sigma {255 * sigma:g}"
        )
    if sigma > STRANGE:
        say(f"warning: sigma {sigma:g} is very strong noise; it is meant in grey levels of 0..255")
    return sigma / 255


def _say_found(source: Path, planes, estimated: bool) -> None:
    """Lines about the planes of a picture and the noise in them."""
    if planes.unlike and not estimated:
        noise = "the noise of red, green and blue does not look independent"
        say(f"{source}: {noise}: they are denoised one by one")
    if not any(planes.levels):
        say(f"{source}: no noise of sigma 2.55 (of 255) or more was found, the picture stays as it is")
    if not estimated or not any(planes.levels):
        return
    words = ", ".join("below 2.55" if level is None else f"{255 * level:.1f}" for level in planes.levels)
    names = "brightness, two differences of colour" if planes.basis == "opponent" else "red, green, blue"
    say(f"{source}: sigma {words}{f' ({names})' if len(planes.levels) == 3 else ''} of 255, estimated")
    if 255 * max(level or 0 for level in planes.levels) > STRANGE:
        say("warning: that is very strong noise; if the image is no photograph, give --sigma yourself")


# --- inpaint ----------------------------------------------------------------------------------------------


@command(
    """
    gnc inpaint scratched.png --mask scratches.png -o whole.png      white (anything but black) = missing
    gnc inpaint cutout.png --mask alpha -o whole.png                 missing where fully transparent
    gnc inpaint noisy80.png --mask holes.png --scheme learned -o whole.png
    """
)
@file_options
@click.option(
    "--mask", required=True, metavar="MASK", help="image that is not black where IN is missing; or 'alpha'"
)
@solver_options("gnc", "joint", "learned")
def inpaint(inputs, output, force, mask, **solver):
    """Fill in the pixels of grey or colour images that a mask marks as missing; the others stay as they are, and so do
    colour profile, EXIF and resolution where OUT can hold them. The prior sees a few pixels far: scratches, writing
    and scattered pixels vanish, larger holes are filled smoothly."""
    from gnclib import images
    from gnclib.restore import inpaint_channels

    def work(source: Path, target: Path) -> None:
        picture = images.read(source)
        missing, whole = _missing(mask, source, picture)
        images.check_writable(target, whole, force)
        if not missing.any():
            say(f"warning: {mask} marks no pixel as missing, {source} stays as it is")
        filled = inpaint_channels(picture.pixels, missing, progress=_bar(), **solver)
        made = images.quantise(whole, filled)
        images.write(target, made, force)
        say(f"{target}: {made}, {100 * missing.mean():.3g} % filled in")

    _each(inputs, output, work)


def _missing(mask: str, source: Path, picture):
    """Where pixels are missing, (H, W), and the picture as it will be: with the alpha channel opaque there."""
    import numpy as np

    from gnclib import images

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


# --- evaluate ---------------------------------------------------------------------------------------------


@command(
    """
    gnc evaluate --scheme mmse --sigma 15 --sigma 25 --sigma 50
    gnc evaluate --prior R1 --scheme learned --task inpaint --missing 0.8
    gnc evaluate --sigma 25 --images photos/ --limit 10 --json numbers.json
    gnc evaluate --sigma 25 --scheme learned --colour opponent             CBSD68, see 'gnc denoise --help'
    """
)
@solver_options(*SCHEMES, default=None, more=" (default: mmse, for inpainting gnc)")
@options.task
@options.repeated("--sigma", type=float, metavar="S", help="noise in grey levels of 0..255 (default: 25)")
@options.repeated("--missing", type=float, metavar="F", help="fraction of missing pixels (default: 0.8)")
@click.option(
    "--colour", type=click.Choice(["opponent", "channels"]), help="images in colour, restored in this basis"
)
@options.image_set
@click.option("--json", "file", type=PATH, metavar="FILE", help="write the numbers, image by image, to FILE")
def evaluate(prior, scheme, steps, device, task, sigma, missing, images, colour, limit, file):
    """Measure mean PSNR and SSIM over a set of images. Image k of the set gets Gaussian noise, or a mask, of seed k;
    nothing is clipped; data range 1. The set is BSDS68 unless --images names a folder."""
    from gnclib import io
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
    loaded = [schemes.load(scheme, prior, Task(task, level), steps, device=device) for level in levels]
    found = folder_images(images, colour is not None) if images else bsds68(colour is not None)
    found = dict(list(found.items())[:limit])
    numbers = {f"{one.task.level:g}": _measured(one, found, colour or "channels") for one in loaded}
    if file:
        about = {
            "prior": prior,
            "scheme": scheme,
            "steps": loaded[0].steps if loaded[0].steps > 1 else None,
            "task": task,
            "colour": colour,
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

    def mean(key: str) -> float | list[float]:
        values = [getattr(r, key) for r in done.values()]
        return list(map(fmean, zip(*values, strict=True))) if isinstance(values[0], tuple) else fmean(values)

    psnrs, similarity = mean("psnr"), mean("ssim")
    level = f"sigma {scheme.task.level:>4g}" if scheme.task.kind == "denoise" else str(scheme.task)
    say(
        f"{level}: {psnrs[-1]:.2f} dB, SSIM {similarity:.4f}, mean of {len(done)} images, not clipped;"
        f" {mean('seconds'):.2f} s and {scheme.evaluations} gradient(s) per image"
    )
    return {
        "mean": psnrs[-1],
        "mean_ssim": similarity,
        "mean_psnr_of_measurement": mean("start"),
        "mean_psnr_per_step": psnrs,
        "mean_energy_per_step": mean("energy"),
        "gradients_per_image": scheme.evaluations,
        "images": {name: r.psnr[-1] for name, r in done.items()},
    }
