"""How good a prior is as a denoiser, in the conventions that this project states beside every number.

The schemes are those of :mod:`gnclib.denoise`: the one-step MMSE estimate, and the GNC flow (Kobler & Pock 2023, eq. 9)
with its predefined schedule. Noise: y = x + sigma z, image k of a list gets z from a torch.Generator with seed k.
Neither the noisy image nor the result is clipped; PSNR has data range 1 and is averaged over the images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gnclib.data import add_noise
from gnclib.denoise import denoise
from gnclib.metrics import psnr
from gnclib.operators import Denoising


def mmse(prior, y: Tensor, t: float) -> Tensor:
    """y - t grad_1 R(y, t): the estimate E[X | Y = y] if R is the energy of the data (Tweedie), shaped like y."""
    (estimate,) = denoise(prior, y, t**0.5, "mmse")
    return estimate


def denoising_path(
    prior, x: Tensor, sigma: float, seed: int, scheme: str = "mmse", steps: int = 10
) -> list[tuple[float, float]]:
    """PSNR in dB and energy per pixel after each step of denoising y = x + sigma z, z of this seed.

    The energy is the one that the schedules end with, D(x_i) + R(x_i, t_min), in nats per pixel (eq. 9).

    Args:
        prior: an energy with ``energy``, ``grad`` and ``config`` on images (1, 1, H, W).
        x: a clean image (1, 1, H, W) in [0, 1].
        sigma: noise standard deviation in grey values of [0, 1], for instance 25 / 255.
        scheme: "mmse" or "gnc"; steps: of the GNC flow.

    Raises:
        ValueError: an unknown scheme, fewer than one step, or sigma outside of the range of the prior.
    """
    y = add_noise(x, sigma, seed)
    data, t_min = Denoising(y, sigma), prior.config.sigma_min**2
    path = []
    for estimate in denoise(prior, y, sigma, scheme, steps):
        with torch.no_grad():
            energy = (data.energy(estimate) + prior.energy(estimate, t_min)).item() / x.numel()
        path.append((psnr(estimate, x).item(), energy))
    return path


def denoising_psnr(prior, images: Iterable[Tensor], sigma: float) -> list[float]:
    """PSNR in dB of the one-step MMSE estimate of each image, the k-th with noise of seed k.

    Raises:
        ValueError: no images; otherwise as :func:`denoising_path`.
    """
    values = [psnr(mmse(prior, add_noise(x, sigma, k), sigma**2), x).item() for k, x in enumerate(images)]
    if not values:
        raise ValueError("there are no images to evaluate on")
    return values


def folder_images(folder: str | os.PathLike) -> dict[str, Tensor]:
    """All images of a folder in the order of their names, grey (PIL's "L"): name -> (1, 1, H, W) in [0, 1].

    Files that are no images are passed over.

    Raises:
        FileNotFoundError: no such folder. ValueError: no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    images = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            with Image.open(path) as image:
                grey = np.array(image.convert("L"))
        except UnidentifiedImageError:
            continue
        images[path.name] = torch.from_numpy(grey).float().div_(255)[None, None]
    if not images:
        raise ValueError(f"there is no image in {folder}")
    return images
