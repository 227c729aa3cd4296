"""How well a prior solves inverse problems, in the conventions that this project states beside every number.

Problems: y = x + sigma z, or x with a fraction of its pixels missing; image k of a list gets its noise or mask from a
torch.Generator with seed k. Neither the noisy image nor the result is clipped; PSNR and SSIM have data range 1 and are
averaged over the images. The schemes are those of :mod:`gnclib.schemes`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gnclib.data import add_noise
from gnclib.metrics import psnr, ssim
from gnclib.schemes import Scheme
from gnclib.solvers import gnc_flow, last


def mmse(prior, y: Tensor, t: float) -> Tensor:
    """y - t grad_1 R(y, t): the estimate E[X | Y = y] if R is the energy of the data (Tweedie), shaped like y."""
    return last(gnc_flow(prior, [t], start=y)).x


@dataclass(frozen=True)
class Restoration:
    """How one image went.

    Attributes:
        psnr: in dB, after each step; start: that of the measurement.
        energy: D(x_i) + R(x_i, t_min) in nats per pixel after each step, t_min the smallest t of the prior (eq. 9).
        t: noise variance of each step. ssim: of the result.
        seconds: wall clock of the solver alone, without what is measured here.
        image: the result (1, 1, H, W).
    """

    start: float
    psnr: tuple[float, ...]
    energy: tuple[float, ...]
    t: tuple[float, ...]
    ssim: float
    seconds: float
    image: Tensor


def restoration(scheme: Scheme, x: Tensor, seed: int) -> Restoration:
    """Measure the clean image x (1, 1, H, W), with noise or mask of this seed, and restore it step by step.

    Noise and masks are drawn on the CPU, so that they are the same everywhere; the rest happens where the scheme is.

    Raises:
        ValueError: as the solvers do.
    """
    x = x.to(scheme.device)
    data = scheme.task.measure(x, torch.Generator().manual_seed(seed))
    t_min = scheme.prior.config.sigma_min**2
    path, seconds, states, begun = [], 0.0, scheme.states(data), time.perf_counter()
    for state in states:
        if x.is_cuda:  # which returns before it is done
            torch.cuda.synchronize(x.device)
        seconds += time.perf_counter() - begun
        with torch.no_grad():
            energy = (data.energy(state.x) + scheme.prior.energy(state.x, t_min)).item() / x.numel()
        path.append((psnr(state.x, x).item(), energy, float(state.t)))
        begun = time.perf_counter()
    per_step = tuple(map(tuple, zip(*path, strict=True)))
    return Restoration(psnr(data.start(), x).item(), *per_step, ssim(state.x, x).item(), seconds, state.x)


def denoising_psnr(prior, images: Iterable[Tensor], sigma: float) -> list[float]:
    """PSNR in dB of the one-step MMSE estimate of each image, the k-th with noise of seed k.

    Raises:
        ValueError: no images, or sigma outside of the range of the prior.
    """
    values = [psnr(mmse(prior, add_noise(x, sigma, k), sigma**2), x).item() for k, x in enumerate(images)]
    if not values:
        raise ValueError("there are no images to evaluate on")
    return values


def folder_images(folder: str | os.PathLike) -> dict[str, Tensor]:
    """All images of a folder in the order of their names, in grey: name -> (1, 1, H, W), float32 in [0, 1].

    PIL's "L" over 255, or 16-bit grey over 65535. Files that are no images are passed over.

    Raises:
        FileNotFoundError: no such folder. ValueError: no image in it, or one that is damaged or holds numbers without
            a known range (32 bit, floating point).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    images = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            with Image.open(path) as image:
                if image.mode in ("I", "F"):
                    raise ValueError(
                        f"{path} has the mode {image.mode}: convert it to 8 or 16 bit grey or to RGB first"
                    )
                wide = image.mode.startswith("I;16")  # convert would clip to 255
                grey = np.array(image if wide else image.convert("L"), np.float32)
        except UnidentifiedImageError:
            continue
        except OSError as error:
            raise ValueError(f"{path} is a damaged image file: {error}") from error
        images[path.name] = torch.from_numpy(grey).div_(65535 if wide else 255)[None, None]
    if not images:
        raise ValueError(f"there is no image in {folder}")
    return images
