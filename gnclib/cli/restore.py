"""The commands that restore image files: ``gnc denoise`` and ``inpaint``."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from gnclib.cli import options
from gnclib.cli.options import PATH, command, say

#: in grey levels; a warning is printed about more noise than this: little of an image is left
STRANGE = 100.0
#: masks that mark more than this share as missing are asked about
MUCH = 0.6

OUT_HELP = "file to write: png, tif, jpg, bmp; or a folder (existing, or ending in /)"
WHITE_HELP = "value of white in IN: 4095 for 12 bits in 16 (default: 255 or 65535)"
file_options = options.together(
    click.argument("inputs", type=PATH, nargs=-1, required=True, metavar="IN..."),
    click.option("-o", "--output", "out", required=True, metavar="OUT", help=OUT_HELP),
    click.option("--force", is_flag=True, help="overwrite OUT if it exists"),
    click.option("--white", type=float, metavar="N", help=WHITE_HELP),
    click.option("--black", type=float, metavar="N", help="value of black in IN (default: 0)"),
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
        except (ValueError, OSError, RuntimeError) as error:
            failed += 1
            say(f"gnc: {source.name} failed: {error}", error=True)
    if failed:
        raise RuntimeError(f"{failed} of {len(targets)} images failed, see above")


def _bar(unit: str = "step") -> Callable[[int, int], None]:
    """Shows, on a terminal, how many of how many are done."""
    from tqdm import tqdm

    bar = tqdm(unit=unit, disable=not sys.stderr.isatty())

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


def _limits(source: Path, picture, white: float | None, black: float | None) -> tuple[float, float]:
    """Black of a picture, and white minus black, as fractions of its depth; warns where white may be less."""
    from gnclib.checks import USED

    top = 2**picture.depth - 1
    low, high = (black or 0) / top, (top if white is None else white) / top
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"--black {low * top:g} and --white {high * top:g}: of {source} they must be 0 <= black < white <= {top}"
        )
    used = float(picture.pixels.max() - picture.pixels.min())
    if white is None and picture.depth == 16 and used < USED:
        say(
            f"warning: {source} uses {100 * used:.1f} % of its 16 bits; if white is less than 65535, say so"
            " (--white 4095 for 12 bits)"
        )
    return low, high - low


# --- denoise ----------------------------------------------------------------------------------------------

COLOUR_HELP = "denoise brightness and differences of colour, or red, green and blue; auto: as the noise looks"
STD_HELP = "write the standard deviation of each pixel (float TIFF, grey levels of 0..255) and a PNG of it"
GAIN_HELP = "numbers of the file per photon, for noise that grows with brightness; or 'auto': estimated"
FRAME_HELP = "of a TIFF stack: estimate sigma in each frame (default: one for each channel of the stack)"
NOISE_HELP = "take IN as clean: add Gaussian noise of this sigma first (seed: 0 if none is given)"


@command(
    """
    gnc denoise noisy.png -o clean.png                               sigma is estimated, and printed
    gnc denoise noisy.png --sigma 25 -o clean.png --scheme mmse      one step, no data term
    gnc denoise scans/*.tif -o restored/                             several files, into a folder
    gnc denoise photo.png --sigma 25 --add-noise -o demo.png         add the noise first, print PSNRs
    gnc denoise noisy.png --sigma 25 -o clean.png --clean truth.png  print PSNRs against a reference
    gnc denoise noisy.png --sigma 25 -o clean.png --scheme mmse --uncertainty std.tif   how sure each pixel is
    gnc denoise cells.ome.tif --white 4095 -o clean.ome.tif          a stack, frame by frame, of 12 bits
    """
)
@file_options
@click.option("--sigma", type=float, metavar="S", help="noise in grey levels of 0..255 (default: estimated)")
@click.option("--gain", metavar="G", help=GAIN_HELP)
@click.option("--offset", type=float, default=0.0, metavar="O", help="with --gain: the number without light")
@click.option("--read-noise", type=float, default=0.0, metavar="R", help="with --gain: sigma without light")
@options.solver_options(*options.SCHEMES)
@click.option(
    "--colour", type=click.Choice(["auto", "opponent", "channels"]), default="auto", help=COLOUR_HELP
)
@click.option("--clean", type=PATH, metavar="REF", help="noise-free image to measure the PSNR against")
@click.option("--add-noise", "seed", type=int, is_flag=False, flag_value=0, metavar="[SEED]", help=NOISE_HELP)
@click.option("--uncertainty", "std", type=PATH, metavar="FILE", help=STD_HELP)
@click.option("--per-frame", is_flag=True, help=FRAME_HELP)
def denoise(
    inputs, out, force, white, black, sigma, gain, offset, read_noise, clean, seed, std, per_frame, **solver
):
    """Denoise grey or colour images (8 or 16 bit; alpha, colour profile, EXIF and resolution are kept where OUT can
    hold them). S is the standard deviation of the noise in grey levels of an 8-bit image (0..255), as in the
    literature, whatever the depth; with --white or --black, in 255ths of their distance. Without --sigma it is
    estimated from the calmest parts of the image. Colour is denoised in brightness and two differences, better by a
    decibel or two than channel by channel, or, where the noise of red, green and blue is unequal or correlated, in
    planes that fit its measured covariance. TIFF stacks, and floats with nan for missing pixels, keep axes, metadata
    and type; started again after an interruption, gnc goes on after the last finished frame."""
    if seed is not None and clean is not None:
        raise ValueError("--add-noise takes IN as the clean image: leave --clean away")
    if seed is not None and sigma is None:
        raise ValueError("--add-noise needs --sigma: how much noise to add")
    if len(inputs) > 1 and (clean or std):
        raise ValueError("--clean and --uncertainty are for one image, not for several")
    if gain is not None and (sigma is not None or std is not None):
        raise ValueError("--gain makes a noise level for each pixel: leave --sigma and --uncertainty away")
    if per_frame and not sigma is gain is None:
        raise ValueError("--per-frame estimates the noise of each frame: leave --sigma and --gain away")
    if gain is None and (offset or read_noise):
        raise ValueError("--offset and --read-noise go with --gain")
    fraction = None if sigma is None else _fraction(sigma)
    import torch

    from gnclib import images
    from gnclib.restore import denoise_channels, denoise_stack, evaluate, std_channels

    def curve(*found):
        return _curve(gain, offset, read_noise, *found)

    def work(source: Path, target: Path) -> None:
        layout = images.layout(source)
        if layout == "stack":
            if clean is not None or seed is not None or std is not None:
                raise ValueError(f"{source} is a stack: leave --clean, --add-noise and --uncertainty away")
            level, bar = fraction if gain is None else curve, _bar("frame")
            options = {"per_frame": per_frame, "force": force, "progress": bar, "say": say, **solver}
            denoise_stack(source, target, level, limits=(black, white), **options)
            say(f"{target}: denoised frame by frame")
            return
        picture = images.read(source)
        images.check_writable(target, picture, force)
        if per_frame:
            raise ValueError(f"--per-frame is for stacks, and {source} is a picture")
        if layout == "planes":
            say(
                f"warning: {source} is stored plane by plane, and says that these are {picture}; if they are frames,"
                " save them as grey (tifffile.imwrite(..., photometric='minisblack'))"
            )
        if std is not None:
            _demand_apart(std, source, target, clean)
            images.check_map(std, force)
        low, unit = _limits(source, picture, white, black)
        noisy, reference = (picture.pixels - low) / unit, None
        if clean is not None:
            truth = images.read(clean)  # of another depth it has a range of its own
            reference = (truth.pixels - low) / unit if truth.depth == picture.depth else truth.pixels
            if reference.shape != noisy.shape:
                raise ValueError(
                    f"{clean} has the shape {reference.shape} (channels, height, width), {source} has"
                    f" {noisy.shape}: they must agree"
                )
        elif seed is not None:
            noisy, reference = images.add_noise(torch.from_numpy(noisy), fraction, seed).numpy(), noisy
        top = 2**picture.depth - 1
        level = fraction if gain is None else curve(source, noisy, top * low, top * unit)
        pixels, planes = denoise_channels(noisy, level, progress=_bar(), **solver)
        made = images.quantise(picture, low + unit * pixels)
        images.write(target, made, force)
        _say_found(source, planes, sigma is None and gain is None)
        if reference is not None:
            kind = "as in the file" if clean else "unclipped"
            truth, written = torch.from_numpy(reference), (made.pixels - low) / unit
            before, after = (evaluate.psnr(torch.from_numpy(a), truth) for a in (noisy, written))
            say(f"PSNR {before:.2f} dB noisy ({kind}), {after:.2f} dB denoised (as written), data range 1")
        say(f"{target}: {made}")
        if std is not None:
            told = {key: solver[key] for key in ("scheme", "prior", "device")}
            values, reasons = std_channels(noisy, planes, estimated=sigma is None, **told)
            _write_std(std, values, reasons, force)

    _each(inputs, out, work)


def _demand_apart(uncertainty: Path, *others: Path | None) -> None:
    """Refuse a file of standard deviations that would replace another, or whose picture would."""
    taken = {path.resolve() for path in others if path}
    for made in (uncertainty, uncertainty.with_suffix(".png")):
        if made.resolve() in taken:
            raise ValueError(
                f"--uncertainty {uncertainty} would replace {made}, which is IN, OUT or REF (beside FILE lies a PNG of"
                " its name): give it another name"
            )


def _write_std(file: Path, std, reasons: list[str], force: bool) -> None:
    """The standard deviation of each pixel in FILE, and lines about it."""
    import numpy as np

    from gnclib import images

    for reason in reasons:
        say(f"warning: the standard deviations in {file} are uncertain: {reason}")
    levels = 255 * std
    white = max(float(np.nan_to_num(levels).max()), 1e-6)
    picture, rms = images.write_map(file, levels, white, force), np.sqrt((levels**2).mean())
    say(f"{file}: standard deviation in grey levels of 0..255, {rms:.2f} on average (rms)")
    say(f"{picture}: a picture of it, white is {white:.1f}")


def _curve(gain: str, offset: float, read_noise: float, name, noisy, zero: float, unit: float):
    """The noise of grey values by brightness, of a detector whose data are in numbers of the file, or estimated."""
    from gnclib.restore import NoiseCurve

    if gain == "auto":
        if offset or read_noise:
            raise ValueError("--gain auto estimates it all: leave --offset and --read-noise away")
        curve = NoiseCurve.estimate(noisy, channel_axis=0)
        dark, bright = (unit * math.sqrt(max(v, 0.0)) for v in (curve.floor, curve.gain + curve.floor))
        say(
            f"{name}: gain {round(unit * curve.gain, 4):g}, sigma {dark:.3g} at black and {bright:.3g} at white, in"
            " numbers of the file, estimated"
        )
        return curve
    try:
        number = float(gain)
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf and 0 <= read_noise < math.inf):
        raise ValueError(
            "--gain must be above 0 (numbers of the file per photon) or 'auto', and --read-noise at least 0; got"
            f" {gain} and {read_noise:g}"
        )
    return NoiseCurve.of_detector(number / unit, (offset - zero) / unit, read_noise / unit)


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
    if planes.doubt:
        say(f"warning: {source}: {planes.doubt}")
    if not any(planes.levels):
        say(f"{source}: no noise of sigma 2.55 (of 255) or more was found, the picture stays as it is")
    elif estimated:
        words = ", ".join("below 2.55" if level is None else f"{255 * level:.1f}" for level in planes.levels)
        names = {"opponent": "brightness, two differences of colour", "whitened": "planes that fit the noise"}
        name = f" ({names.get(planes.basis, 'red, green, blue')})" if len(planes.levels) == 3 else ""
        say(f"{source}: sigma {words}{name} of 255, estimated")
        if 255 * max(level or 0 for level in planes.levels) > STRANGE:
            say("warning: that is very strong noise; if the image is no photograph, give --sigma yourself")


# --- inpaint ----------------------------------------------------------------------------------------------


@command(
    """
    gnc inpaint scratched.png --mask scratches.png -o whole.png      white (anything but black) = missing
    gnc inpaint cutout.png --mask alpha -o whole.png                 missing where fully transparent
    gnc inpaint noisy80.png --mask holes.png --scheme learned --yes -o whole.png    80 % are missing indeed
    """
)
@file_options
@click.option(
    "--mask", required=True, metavar="MASK", help="image that is not black where IN is missing; or 'alpha'"
)
@click.option("--invert", is_flag=True, help="MASK marks what is known instead")
@click.option("--yes", is_flag=True, help=f"yes, more than {100 * MUCH:.0f} % may be missing")
@options.solver_options("gnc", "linear", "joint", "learned")
def inpaint(inputs, out, force, white, black, mask, invert, yes, **solver):
    """Fill in the pixels of grey or colour images that a mask marks as missing; the others stay as they are, and so do
    colour profile, EXIF and resolution where OUT can hold them. White marks what is missing: all that is not black; in
    JPEG files, what is brighter than half; on a transparent ground, ink of any colour; in 1-bit TIFF files, true. The
    prior sees a few pixels far: scratches, writing
    and scattered pixels vanish, larger holes are filled smoothly."""
    import numpy as np

    from gnclib import images
    from gnclib.restore import inpaint_channels

    def work(source: Path, target: Path) -> None:
        picture = images.read(source)
        missing, whole, meaning = _missing(mask, source, picture, invert)
        meaning = f"{meaning}: {100 * missing.mean():.3g} %"
        images.check_writable(target, whole, force)
        low, unit = _limits(source, picture, white, black)
        if not missing.any():
            say(f"warning: {mask} marks no pixel as missing ({meaning}), {source} stays as it is")
        elif missing.mean() > MUCH and not yes and not missing.all():
            raise ValueError(
                f"{mask} marks most of {source} as missing ({meaning}): is it inverted? --invert takes it the other"
                " way round, --yes as it is"
            )
        filled = inpaint_channels((picture.pixels - low) / unit, missing, progress=_bar(), **solver)
        made = images.quantise(whole, np.where(missing, low + unit * filled, picture.pixels))
        images.write(target, made, force)
        say(f"{target}: {made}, {meaning} filled in")

    _each(inputs, out, work)


def _missing(mask: str, source: Path, picture, invert: bool):
    """Where pixels are missing, (H, W), the picture as it will be, with alpha opaque there, and what marked them."""
    import numpy as np

    from gnclib import images

    if mask == "alpha":
        if picture.alpha is None or picture.kind == "unspecified":
            raise ValueError(f"{source} has no alpha channel: give an image as --mask")
        missing = (picture.alpha == 0) != invert
        opaque = np.where(missing, 2**picture.depth - 1, picture.alpha)
        return missing, replace(picture, alpha=opaque), f"{'not ' * invert}transparent = missing"
    missing, meaning = images.read_mask(mask)
    if missing.shape != picture.pixels.shape[1:]:
        sizes = " x ".join(map(str, missing.shape[::-1])), " x ".join(map(str, picture.pixels.shape[:0:-1]))
        raise ValueError(f"the mask {mask} has {sizes[0]} pixels, {source} has {sizes[1]}: they must agree")
    return missing != invert, picture, meaning.replace("missing", "known") if invert else meaning
