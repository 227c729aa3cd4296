"""How good a prior is as a denoiser, in the conventions that this project states beside every number.

The schemes are those of :mod:`gnclib.denoise`: the one-step MMSE estimate, and the GNC flow (Kobler & Pock 2023, eq. 9)
with its predefined schedule. Noise: y = x + sigma z, image k of a list gets z from a torch.Generator with seed k.
Neither the noisy image nor the result is clipped; PSNR has data range 1 and is averaged over the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gnclib.data import add_noise
from gnclib.denoise import denoise
from gnclib.metrics import psnr


def mmse(prior, y: Tensor, t: float) -> Tensor:
    """y - t grad_1 R(y, t): the estimate E[X | Y = y] if R is the energy of the data (Tweedie), shaped like y."""
    (estimate,) = denoise(prior, y, t**0.5, "mmse")
    return estimate


def denoising_psnr(
    prior,
    images: Iterable[Tensor],
    sigma: float,
    scheme: str = "mmse",
    steps: int = 10,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[float]:
    """PSNR in dB of the denoised image for each image; see the module for the conventions.

    Args:
        prior: an energy with ``grad(y, t)`` on images (1, 1, H, W).
        images: clean images (1, 1, H, W) in [0, 1]; the k-th gets noise of seed k.
        sigma: noise standard deviation in grey values of [0, 1], for instance 25 / 255.
        scheme: "mmse" or "gnc"; steps: of the GNC flow.
        progress: wraps the iteration, for instance tqdm.

    Raises:
        ValueError: no images, an unknown scheme, or sigma outside of the range of the prior.
    """
    values = []
    for k, x in enumerate(progress(images)):
        *_, estimate = denoise(prior, add_noise(x, sigma, k), sigma, scheme, steps)
        values.append(psnr(estimate, x).item())
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
