"""The command ``gnc evaluate``."""

from __future__ import annotations

from statistics import fmean, quantiles

import click

from gnclib.cli import options
from gnclib.cli.options import PATH, command, progress, say


@command(
    """
    gnc evaluate --scheme mmse --sigma 15 --sigma 25 --sigma 50
    gnc evaluate --prior R1 --scheme learned --task inpaint --missing 0.8
    gnc evaluate --sigma 25 --images photos/ --limit 10 --json numbers.json
    gnc evaluate --sigma 25 --scheme learned --colour opponent             CBSD68, see 'gnc denoise --help'
    """
)
@options.solver_options(*options.SCHEMES, default=None, more=" (default: mmse, for inpainting gnc)")
@options.task
@options.repeated("--sigma", type=float, metavar="S", help="noise in grey levels of 0..255 (default: 25)")
@options.repeated("--missing", type=float, metavar="F", help="fraction of missing pixels (default: 0.8)")
@click.option(
    "--colour", type=click.Choice(["opponent", "channels"]), help="images in colour, restored in this basis"
)
@options.image_set
@click.option("--json", "file", type=PATH, metavar="FILE", help="write the numbers, image by image, to FILE")
def evaluate(prior, scheme, steps, device, precision, task, sigma, missing, images, colour, limit, file):
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
    options = {"device": device, "precision": precision}
    loaded = [schemes.load(scheme, prior, Task(task, level), steps, **options) for level in levels]
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
            **({"precision": precision} if precision != "float32" else {}),
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

    def per_step(key: str, of) -> list:
        return [of(values) for values in zip(*(getattr(r, key) for r in done.values()), strict=True)]

    def quartiles(values: tuple[float, ...]) -> list[float]:
        return quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else [*values, *values]

    psnrs, similarity = per_step("psnr", fmean), fmean(r.ssim for r in done.values())
    seconds, start = (fmean(getattr(r, key) for r in done.values()) for key in ("seconds", "start"))
    level = f"sigma {scheme.task.level:>4g}" if scheme.task.kind == "denoise" else str(scheme.task)
    say(
        f"{level}: {psnrs[-1]:.2f} dB, SSIM {similarity:.4f}, mean of {len(done)} images, not clipped;"
        f" {seconds:.2f} s and {scheme.evaluations} gradient(s) per image"
    )
    return {
        "mean": psnrs[-1],
        "mean_ssim": similarity,
        "mean_psnr_of_measurement": start,
        "mean_psnr_per_step": psnrs,
        "mean_energy_per_step": per_step("energy", fmean),
        "quartiles_psnr_per_step": per_step("psnr", quartiles),
        "quartiles_energy_per_step": per_step("energy", quartiles),
        "gradients_per_image": scheme.evaluations,
        "images": {name: r.psnr[-1] for name, r in done.items()},
    }
