"""One-step denoising by a prior (Tweedie) and its PSNR, by which a training is watched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from gnclib.images import add_noise, psnr


class Prior(Protocol):
    """An energy with its gradient in y."""

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor: ...


@torch.no_grad()
def mmse(prior: Prior, y: Tensor, t: float) -> Tensor:
    """The estimate E[X | Y = y] = y - t grad_1 R(y, t), if R is the energy of the data (Tweedie).

    Parameters
    ----------
    prior
        The energy R.
    y
        Noisy images (B, 1, H, W), grey values of [0, 1] plus noise.
    t
        Variance of the noise, in the range of the prior.

    Returns
    -------
    Tensor
        Shaped like y, not clipped.
    """
    return y - t * prior.grad(y, t)


def denoising_psnr(prior: Prior, images: Iterable[Tensor], sigma: float) -> list[float]:
    """PSNR in dB (data range 1, nothing clipped) of the one-step estimate of each image, the k-th with noise of seed k.

    Parameters
    ----------
    images
        Clean ones, each (1, 1, H, W), grey values in [0, 1].
    sigma
        Standard deviation of the noise, in the range of the prior.

    Raises
    ------
    ValueError
        No images, or sigma outside of the range of the prior.
    """
    values = [psnr(mmse(prior, add_noise(x, sigma, k), sigma**2), x).item() for k, x in enumerate(images)]
    if not values:
        raise ValueError("there are no images to evaluate on")
    return values
