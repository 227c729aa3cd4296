r"""Short trainings of variants under one budget, and the two yardsticks that compare priors.

* *Denoising*: PSNR of the one-step MMSE estimate y - t grad_1 R(y, t) on images that the training has not seen
  (:func:`gnclib.evaluate.denoising_psnr`).
* *Calibration*: the true smoothed energy satisfies E[d_tau F(y, tau) | tau] = 0 for every tau, because the density it
  belongs to stays normalised. For a learned R the mean of d_tau R / n over images is an error that needs no ground
  truth (n pixels; the natural scale is 1, since d_tau of the Gaussian energy is n - ||z||^2: two parts of size n).

:func:`sweep` is a generator like :func:`gnclib.train.training`: one :class:`Result` per finished training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from torch import Tensor

from gnclib import data
from gnclib.checks import as_images
from gnclib.evaluate import denoising_psnr
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.train import TrainConfig, TrainState, training

__all__ = ["Result", "Variant", "calibration", "sweep"]


@torch.no_grad()
def calibration(prior: FieldsOfExperts, x: Tensor, taus: Tensor, seed: int = 0) -> Tensor:
    """d_tau R(y, tau) / n for noisy versions of clean patches, whose mean over images should vanish for every tau.

    Args:
        prior: an energy with ``dtau(y, t)``.
        x: clean patches (B, 1, H, W), n = H W.
        taus: logarithmic smoothing parameters (S,), inside of the range of the prior.
        seed: of the noise, one draw per tau.

    Returns:
        (S, B): mean and standard error over B are the reader's.

    Raises:
        ValueError: taus is not a non-empty vector, or x is no batch of images.
    """
    x = as_images(x)
    taus = torch.as_tensor(taus)
    if taus.dim() != 1 or len(taus) == 0:
        raise ValueError(f"taus must be a vector of at least one value, got shape {tuple(taus.shape)}")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for tau in taus.tolist():
        y = data.add_noise(x, math.exp(tau), generator)
        rows.append(prior.dtau(y, math.exp(2 * tau))[0] / x[0].numel())
    return torch.stack(rows)


@dataclass(frozen=True)
class Variant:
    """One way to build and train a prior: a name, the architecture, the training and the first kernels."""

    name: str
    prior: FoEConfig = field(default_factory=FoEConfig)
    config: TrainConfig = field(default_factory=TrainConfig)
    kernels: str = "dct"


@dataclass(frozen=True)
class Result:
    """What one training gave.

    Attributes:
        psnr: mean over the held-out images for each noise level, in dB.
        profile: mean over the held-out patches of d_tau R / n at each of the noise levels ``taus``.
        prior: the trained prior.
    """

    variant: str
    seed: int
    psnr: tuple[float, ...]
    taus: tuple[float, ...]
    profile: tuple[float, ...]
    prior: FieldsOfExperts = field(repr=False, compare=False)

    @property
    def calibration(self) -> float:
        """The error of calibration as one number: the mean over tau of ``|profile|``."""
        return sum(map(abs, self.profile)) / len(self.profile)


def sweep(
    variants: Iterable[Variant],
    seeds: Iterable[int],
    images,
    held_out: Sequence[Tensor],
    sigmas: Sequence[float] = (15 / 255, 25 / 255, 50 / 255),
    levels: int = 9,
    patches: int = 48,
    size: int = 48,
) -> Iterator[Result]:
    """Train every variant with every seed and judge each prior on ``held_out``; one :class:`Result` per training.

    A seed decides training patches, noise levels, noise and random kernels, so that variants share all of these as far
    as their shapes agree. The judgement is the same for all: the same noise, the same ``patches`` crops of ``size``
    pixels, and ``levels`` equidistant tau from tau_min to tau_max.

    Args:
        images: what to train on, as for :func:`gnclib.train.training`, which refuses val and BSDS68.
        held_out: images (1, 1, H, W) that are not among them.

    Raises:
        ValueError: no variants, two variants of one name, or fewer than two levels.
    """
    variants, seeds = list(variants), list(seeds)
    names = [v.name for v in variants]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"variants must be at least one and have different names, got {names}")
    if levels < 2:
        raise ValueError(f"levels must be at least 2, the two ends of the range of tau, got {levels}")
    x = data.patches(held_out, size, patches, torch.Generator().manual_seed(0))
    for variant in variants:
        low, high = math.log(variant.prior.sigma_min), math.log(variant.prior.sigma_max)
        taus = torch.linspace(low, high, levels, dtype=torch.float64)
        for seed in seeds:
            prior = FieldsOfExperts(
                variant.prior, generator=torch.Generator().manual_seed(seed), kernels=variant.kernels
            )
            for _ in training(TrainState(prior, replace(variant.config, seed=seed)), images):
                pass
            quality = tuple(fmean(denoising_psnr(prior, held_out, sigma)) for sigma in sigmas)
            profile = calibration(prior, x, taus).mean(1)
            yield Result(variant.name, seed, quality, tuple(taus.tolist()), tuple(profile.tolist()), prior)
