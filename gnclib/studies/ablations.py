r"""Short trainings of variants under one budget, and the three yardsticks that compare priors.

* *Denoising*: PSNR of the one-step MMSE estimate y - t grad_1 R(y, t) on images that the training has not seen
  (:func:`gnclib.score.denoising_psnr`).
* *Calibration*: the true smoothed energy satisfies E[d_tau F(y, tau) | tau] = 0 for every tau, because the density it
  belongs to stays normalised. For a learned R the mean of d_tau R / n over images is an error that needs no ground
  truth (n pixels; the natural scale is 1, since d_tau of the Gaussian energy is n - ||z||^2: two parts of size n).
* *Curvature*: the smallest eigenvalue of t times the Hessian in y at noisy images, negative where R is not convex.

:func:`sweep` is a generator like :func:`gnclib.score.training.training`: one :class:`Result` per finished
training. The sweep that comes with the package is :mod:`gnclib.studies.ablation_run`'s.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from torch import Tensor

from gnclib.checks import as_images
from gnclib.foe import FieldsOfExperts
from gnclib.images import data, metrics
from gnclib.restore.joint import joint_descent
from gnclib.restore.operators import Denoising
from gnclib.score import TrainState, denoising_psnr
from gnclib.score.recipes import Variant
from gnclib.score.training import training

__all__ = [
    "Judge",
    "Result",
    "Variant",
    "build",
    "calibration",
    "joint_outcome",
    "smallest_eigenvalue",
    "sweep",
]


@torch.no_grad()
def calibration(prior: FieldsOfExperts, x: Tensor, taus: Tensor, seed: int = 0) -> Tensor:
    """d_tau R(y, tau) / n for noisy versions of clean patches, whose mean over images should vanish for every tau.

    Args:
        prior: an energy with ``dtau(y, t, order=1)``.
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
        rows.append(prior.dtau(y, math.exp(2 * tau), order=1)[0] / x[0].numel())
    return torch.stack(rows)


def smallest_eigenvalue(prior: FieldsOfExperts, y: Tensor, sigma: float, steps: int = 30) -> float:
    """The smallest eigenvalue of t Hess R(y, t), t = sigma^2, on images of mean zero, by Lanczos' method.

    Constant images are left out, because kernels of mean zero give them the eigenvalue 0 always. After ``steps``
    products the result is the smallest Ritz value: never below the true one, and above it by what has not converged.

    Args:
        prior: an energy with ``hvp``.
        y: one image (1, 1, H, W), dtype of the prior.

    Raises:
        ValueError: more than one image, or fewer than one step.
    """
    if as_images(y).shape[0] != 1:
        raise ValueError(f"one image at a time, got {y.shape[0]}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    t, steps = sigma**2, min(steps, y.numel() - 1)
    v = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
    v -= v.mean()
    constant = torch.full_like(y, y.numel() ** -0.5)
    basis, diagonal, beside = [v / v.norm()], [], []
    for _ in range(steps):
        w = t * prior.hvp(y, t, basis[-1])
        diagonal.append((w * basis[-1]).sum().item())
        known = torch.stack([constant, *basis])
        for _ in range(2):  # orthogonal to all that came before, twice against rounding
            w = w - torch.tensordot((known * w).sum((1, 2, 3, 4)), known, 1)
        beside.append(w.norm().item())
        if beside[-1] < 1e-10:  # an invariant subspace: nothing else is to be found from this start
            break
        basis.append(w / w.norm())
    off = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    ritz = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + off.diag(1) + off.diag(-1)
    return torch.linalg.eigvalsh(ritz)[0].item()


def joint_outcome(
    prior: FieldsOfExperts,
    images: Sequence[Tensor],
    sigma: float = 25 / 255,
    sigma_first: float = 75 / 255,
    steps: int = 60,
) -> tuple[float, float]:
    """Denoising by Algorithm 2, where the sign of d_tau R decides: mean PSNR in dB and mean final noise level sqrt(t).

    Image k gets noise of seed k; x starts at the noisy image and t at ``sigma_first^2``, in the range of the prior.
    """
    psnrs, ends = [], []
    for k, x in enumerate(images):
        y = data.add_noise(x, sigma, k)
        *_, last = joint_descent(prior, sigma_first**2, Denoising(y, sigma), start=y, steps=steps)
        psnrs.append(metrics.psnr(last.x, x).item())
        ends.append(last.t.sqrt().item())
    return fmean(psnrs), fmean(ends)


def build(variant: Variant, seed: int, start: FieldsOfExperts | None = None) -> FieldsOfExperts:
    """The prior of a variant as it is before its own training; ``start`` is the trained ``variant.warm``."""
    generator = torch.Generator().manual_seed(seed)
    prior = FieldsOfExperts(variant.prior, generator=generator, kernels=variant.kernels)
    if start is not None:
        prior.warm_start(start, generator, hidden=variant.config.warm_start_hidden)
    return prior


@dataclass(frozen=True)
class Result:
    """What one training gave.

    Attributes:
        psnr: mean over the held-out images for each noise level, in dB.
        profile, error: mean over the held-out patches of d_tau R / n at each of the noise levels ``taus``, and its
            standard error.
        curvature: for each level of :attr:`Judge.curvature_at`, the smallest eigenvalue of t Hess R at the worst of
            some noisy patches.
        joint: of variants for which it was measured, `joint_outcome`: mean PSNR in dB and mean final sigma.
        seconds: of processor time for the training, including that of what it started from; hardly depends on what else
            the machine does.
        prior: the trained prior.
    """

    variant: str
    seed: int
    psnr: tuple[float, ...]
    taus: tuple[float, ...]
    profile: tuple[float, ...]
    error: tuple[float, ...] = ()
    curvature: tuple[float, ...] = ()
    joint: tuple[float, ...] = ()
    seconds: float = field(default=math.nan, compare=False)
    prior: FieldsOfExperts = field(default=None, repr=False, compare=False)

    @property
    def calibration(self) -> float:
        """The error of calibration as one number: the mean over tau of ``|profile|``."""
        return fmean(map(abs, self.profile))


@dataclass(frozen=True)
class Judge:
    """How priors are compared: the same images, noise, patches and noise levels for all.

    Attributes:
        sigmas: of the PSNR (grey values in [0, 1]).
        levels: equidistant tau from tau_min to tau_max for the calibration.
        patches, size: number and side of the random crops for the calibration.
        curvature_at: noise levels of the curvature, on the first ``curved`` of these crops, cut to 32 pixels.

    Raises:
        ValueError: fewer than two levels.
    """

    sigmas: tuple[float, ...] = (15 / 255, 25 / 255, 50 / 255)
    levels: int = 9
    patches: int = 48
    size: int = 48
    curvature_at: tuple[float, ...] = ()
    curved: int = 2

    def __post_init__(self):
        if self.levels < 2:
            raise ValueError(
                f"levels must be at least 2, the two ends of the range of tau, got {self.levels}"
            )

    def __call__(self, name: str, seed: int, prior: FieldsOfExperts, held_out: Sequence[Tensor]) -> Result:
        """Judge one prior on ``held_out``, images (1, 1, H, W)."""
        low, high = math.log(prior.config.sigma_min), math.log(prior.config.sigma_max)
        taus = torch.linspace(low, high, self.levels, dtype=torch.float64)
        x = data.patches(held_out, self.size, self.patches, torch.Generator().manual_seed(0))
        profile = calibration(prior, x, taus)
        exact, crops = copy.deepcopy(prior).double(), x[: self.curved, ..., :32, :32].double()
        curvature = [
            min(smallest_eigenvalue(exact, data.add_noise(c[None], s, k), s) for k, c in enumerate(crops))
            for s in self.curvature_at
        ]
        return Result(
            name,
            seed,
            tuple(fmean(denoising_psnr(prior, held_out, s)) for s in self.sigmas),
            tuple(taus.tolist()),
            tuple(profile.mean(1).tolist()),
            tuple((profile.std(1) / math.sqrt(len(x))).tolist()),
            tuple(curvature),
            prior=prior,
        )


def sweep(
    variants: Iterable[Variant],
    seeds: Iterable[int],
    images,
    held_out: Sequence[Tensor],
    judge: Judge | None = None,
    skip: Collection[tuple[str, int]] = (),
) -> Iterator[Result]:
    """Train every variant with every seed and judge each prior on ``held_out``; one :class:`Result` per training.

    A seed decides training patches, noise levels, noise and random kernels, so that variants share all of these as far
    as their shapes agree. All variants come with the first seed, then all with the second, and so on.

    Args:
        images: what to train on, as for :func:`gnclib.score.training.training`, which refuses val and BSDS68.
        held_out: images (1, 1, H, W) that are not among them.
        skip: pairs (name, seed) that are not wanted, for instance because they are known already.

    Raises:
        ValueError: no variants, or two variants of one name.
    """
    variants, judge = list(variants), judge or Judge()
    names = [v.name for v in variants]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"variants must be at least one and have different names, got {names}")
    trained = {}  # (variant, seed) -> prior, seconds; for those that others start from

    def train(variant: Variant, seed: int) -> tuple[FieldsOfExperts, float]:
        if (variant, seed) not in trained:
            start, before = train(variant.warm, seed) if variant.warm else (None, 0.0)
            begun = time.process_time()
            state = TrainState(build(variant, seed, start), replace(variant.config, seed=seed))
            for _ in training(state, images):
                pass
            done = state.prior.requires_grad_(False), before + time.process_time() - begun
            if not any(variant == v.warm for v in variants):
                return done
            trained[variant, seed] = done
        return trained[variant, seed]

    for seed in seeds:
        for variant in variants:
            if (variant.name, seed) not in skip:
                prior, seconds = train(variant, seed)
                yield replace(judge(variant.name, seed, prior, held_out), seconds=seconds)
