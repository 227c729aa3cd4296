r"""Ablations: trainings of variants under one budget, and the three yardsticks that compare priors.

* *Denoising*: PSNR of the one-step MMSE estimate y - t grad_1 R(y, t) on images that the training has not seen
  (:func:`gnclib.score.denoising_psnr`).
* *Calibration*: the true smoothed energy satisfies E[d_tau F(y, tau) | tau] = 0 for every tau, because the density it
  belongs to stays normalised. For a learned R the mean of d_tau R / n over images is an error that needs no ground
  truth (n pixels; the natural scale is 1, since d_tau of the Gaussian energy is n - ||z||^2: two parts of size n).
* *Curvature*: the smallest eigenvalue of t times the Hessian in y at noisy images, negative where R is not convex.

Training data: train + test of BSDS500. Judged on the middle of each of the 32 images of val outside of BSDS68: the
benchmark plays no part in any choice.
"""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor

from gnclib import io
from gnclib.deep import configuration, kind_of
from gnclib.foe import FieldsOfExperts, LearnedEnergy, PointHessian, smallest_eigenvalue
from gnclib.images import add_noise, middle, patches, psnr, validation_images
from gnclib.io import (
    CHECKPOINT,
    Content,
    Form,
    Job,
    Origin,
    Record,
    Row,
    Table,
    from_object,
    markdown,
    rounded,
)
from gnclib.restore import Denoising, joint_descent
from gnclib.score import (
    VARIANTS,
    TrainConfig,
    TrainState,
    Variant,
    denoising_psnr,
    load_checkpoint,
    run,
    starts,
)
from gnclib.score.training import training

#: the results that come with the package: of Fields of Experts, of a network, of networks that see less or more, and of
#: the way from P_1 to R_1
SHIPPED, NETWORK, WINDOWS, DEPARTURES = (
    Path(__file__).with_name(f"ablations{kind}.json") for kind in ("", "_network", "_windows", "_departures")
)
CROP = 160
#: variants whose priors are also tried in joint optimisation, on that many of the held-out crops
JOINT, JOINT_CROPS = ("recipe", "objective corrected", "objective restored", "objective vanishing"), 8
Levels = Annotated[tuple[float, ...], Field(strict=False)]  # a list will do, as JSON has no tuples


# yardsticks ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def calibration(prior: LearnedEnergy, x: Tensor, taus: Tensor, seed: int = 0) -> Tensor:
    """d_tau R(y, tau) / n, (S, B), for noisy versions of clean patches: its mean over them should vanish for every tau.

    `x` are clean patches (B, 1, H, W), n = H W, `taus` at least one tau in the range of the prior, (S,); `seed` is of
    the noise, one draw per tau.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for tau in taus.tolist():
        y = add_noise(x, math.exp(tau), generator)
        rows.append(prior.dtau(y, math.exp(2 * tau), order=1)[0] / x[0].numel())
    return torch.stack(rows)


def joint_outcome(
    prior: LearnedEnergy,
    images: Sequence[Tensor],
    sigma: float = 25 / 255,
    sigma_first: float = 75 / 255,
    steps: int = 60,
) -> tuple[float, float]:
    """Mean PSNR in dB and mean final noise level sqrt(t) of Algorithm 2, where the sign of d_tau R decides.

    Image k gets noise of seed k; x starts at the noisy image and t at ``sigma_first^2``, in the range of the prior.
    """
    psnrs, ends = [], []
    for k, x in enumerate(images):
        y = add_noise(x, sigma, k)
        *_, last = joint_descent(prior, sigma_first**2, Denoising(y, sigma), start=y, steps=steps)
        psnrs.append(psnr(last.x, x).item())
        ends.append(last.t.sqrt().item())
    return fmean(psnrs), fmean(ends)


@io.settings
class Judge:
    """How priors are compared: the same images, noise, patches and noise levels for all."""

    sigmas: Levels = (15 / 255, 25 / 255, 50 / 255)  # of the PSNR, grey values in [0, 1]
    levels: Annotated[int, Field(ge=2)] = 9  # equidistant tau from tau_min to tau_max for the calibration
    patches: int = 48  # number of random crops for the calibration
    size: int = 48  # their side
    curvature_at: Levels = ()  # noise levels
    curved: int = 2  # so many of these crops, cut to 32 pixels, show the curvature

    def __call__(self, prior: LearnedEnergy, held_out: Sequence[Tensor]) -> dict[str, list[float]]:
        """The columns "psnr", "profile", "error" and "curvature" of a :class:`Training`, on images (1, 1, H, W)."""
        low, high = math.log(prior.sigma_min), math.log(prior.sigma_max)
        taus = torch.linspace(low, high, self.levels, dtype=torch.float64)
        x = patches(held_out, self.size, self.patches, torch.Generator().manual_seed(0))
        profile = calibration(prior, x, taus)
        exact, crops = copy.deepcopy(prior).double(), x[: self.curved, ..., :32, :32].double()
        return {
            "psnr": [fmean(denoising_psnr(prior, held_out, s)) for s in self.sigmas],
            "profile": profile.mean(1).tolist(),
            "error": (profile.std(1) / math.sqrt(len(x))).tolist(),
            "curvature": [
                min(_smallest_eigenvalue(exact, add_noise(c[None], s, k), s) for k, c in enumerate(crops))
                for s in self.curvature_at
            ],
        }


def _smallest_eigenvalue(prior: LearnedEnergy, y: Tensor, sigma: float) -> float:
    """Of t times the Hessian at one image (1, 1, H, W), without the constant image where no kernel of K_1 sees it."""
    if isinstance(prior, FieldsOfExperts):
        blind = bool((prior.kernels[0].mean((-2, -1)).abs() < 1e-5).all())
        return smallest_eigenvalue(PointHessian(prior, y, sigma), y.shape, y.dtype, 1e-6, lift=float(blind))
    t = sigma**2
    return smallest_eigenvalue(lambda v: t * prior.hvp(y, t, v), y.shape, y.dtype, 1e-4, lift=0.0)


JUDGE = Judge(sigmas=tuple(s / 255 for s in (15, 25, 50, 128)), patches=64, curvature_at=(0.1, 1.0))
#: the files of all kinds, by the names of :data:`gnclib.score.recipes.VARIANTS`, and who judges them
KINDS = {
    "": (SHIPPED, JUDGE),
    "network": (NETWORK, replace(JUDGE, sigmas=(*JUDGE.sigmas, 1.0, 4.0), curvature_at=(0.1, 1.0, 4.0))),
    "windows": (
        WINDOWS,
        replace(JUDGE, sigmas=(0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 8.0, 16.0), curvature_at=()),
    ),
    "departures": (DEPARTURES, replace(JUDGE, sigmas=(*JUDGE.sigmas, 1.0), curved=8)),
}


# trainings -----------------------------------------------------------------------------------------------------------


def settings(variant: Variant) -> dict[str, Any]:
    """A variant as JSON data; what it starts from by name."""
    return {
        "prior": asdict(variant.prior),
        "config": asdict(variant.config),
        "kernels": variant.kernels,
        "warm": variant.warm and variant.warm.name,
    }


def held_out() -> list[Tensor]:
    """The middle of every validation image: 32 crops (1, 1, 160, 160)."""
    return [middle(x, CROP) for x in validation_images().values()]


class Trained(NamedTuple):
    """A prior, the seconds of the processor that it took, those of its start included, and what made a run's steps."""

    prior: LearnedEnergy
    seconds: float
    revisions: str


def train(
    variant: Variant,
    seed: int,
    images,
    known: dict[tuple[Variant, int], Trained],
    folder: Path | None = None,
) -> Trained:
    """The trained prior of a variant.

    A seed decides training patches, noise levels, noise and random kernels, so that variants share all of these as far
    as their shapes agree. `images` is as for :func:`gnclib.score.training.training`, which refuses val and BSDS68.
    `known` holds trainings without a warm start that were made before, whatever their name; this one is added, and
    where weights are averaged, with its last weights, the one that does not average. With a `folder` the training is a
    run in it on BSDS500, not on `images` (:func:`gnclib.score.run.drive`), with checkpoints, log and card, and goes on
    where it was stopped; ValueError if it holds that of other settings.
    """
    nameless = replace(variant, name="")
    if (nameless, seed) in known:
        return known[nameless, seed]
    start, before, _ = train(variant.warm, seed, images, known) if variant.warm else (None, 0.0, "")
    begun = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    kernels = {"kernels": variant.kernels} if kind_of(variant.prior) is FieldsOfExperts else {}
    prior = kind_of(variant.prior)(variant.prior, generator=generator, **kernels)
    if start is not None:
        starts.warm_start(prior, start, generator, variant.config.warm_start_hidden)
    state = TrainState(prior, replace(variant.config, seed=seed))
    if folder is None:
        for _ in training(state, images):
            pass
        seconds, revisions = time.process_time() - begun, ""
    else:
        state = _begun(state, folder)
        for _ in run.drive(state, folder):
            pass
        seconds = state.record["cpu_seconds"]
        turns = (turn["revision"] for turn in state.record["history"] if turn["from"] < state.total)
        revisions = ", ".join(dict.fromkeys(turns))
    last, done = (
        Trained(p.requires_grad_(False), before + seconds, revisions) for p in (state.model, state.prior)
    )
    if not variant.warm:  # others may start from it
        plain = replace(nameless, config=replace(variant.config, averaging=0.0))
        known |= {(plain, seed): last, (nameless, seed): done}
    return done


def _begun(fresh: TrainState, folder: Path) -> TrainState:
    """The state of the run in a folder, or, where there is none, the fresh one."""
    if not (folder / CHECKPOINT).is_file():
        return fresh
    state = load_checkpoint(folder)
    if (state.config, state.model.config) != (fresh.config, fresh.model.config):
        raise ValueError(f"{folder} holds a run with other settings: choose another --out, or move it away")
    return state


def jobs(
    chosen: Iterable[Variant],
    seeds: Iterable[int],
    images,
    crops: Sequence[Tensor],
    judge: Judge,
    joint: Collection[str] = (),
    folder: Path | None = None,
) -> Iterator[Job]:
    """The trainings of every variant with every seed: all variants with the first seed, then with the second, ...

    Those that average their weights come first: the others among them may be the last weights of the same training.
    The priors are judged on the `crops`, images (1, 1, H, W); those of the variants named in `joint` also by
    :func:`joint_outcome`. In a `folder` each training is a run in one of its own (:func:`train`).
    """
    chosen, known = sorted(chosen, key=lambda variant: not variant.config.averaging), {}

    def measured(variant: Variant, seed: int) -> dict[str, Any]:
        own = folder and folder / re.sub(r"\W+", "_", f"{variant.name} {seed}").strip("_")
        prior, seconds, revisions = train(variant, seed, images, known, own)
        outcome = joint_outcome(prior, crops[:JOINT_CROPS]) if variant.name in joint else None
        found = judge(prior, crops) | {"joint": outcome and list(outcome), "cpu_seconds": round(seconds)}
        if revisions:  # of a run in a folder, which may be older than its judgement
            found["made"] = Origin.here().model_copy(update={"trained": revisions})
        return found

    for seed in seeds:
        for variant in chosen:
            given = {"variant": variant.name, "seed": seed}
            yield Job(given, settings(variant), partial(measured, variant, seed))


# the file ------------------------------------------------------------------------------------------------------------


class About(Record):
    """The judge of a file, what it judges on in words, and the number of steps of each training."""

    judge: from_object(Judge)
    held_out: str
    steps: int


class Training(Row):
    """What one training gave."""

    by: ClassVar[tuple[str, ...]] = ("variant",)
    key: ClassVar[tuple[str, ...]] = ("seed",)
    variant: str
    seed: int
    psnr: list[rounded(4)]  # in dB for each noise level, means over the held-out images
    profile: list[rounded(5)]  # mean over the held-out patches of d_tau R / n at each noise level
    error: list[rounded(5)]  # its standard error
    curvature: list[rounded(4)]  # smallest eigenvalue of t Hess R at the worst patch, for each level
    joint: list[rounded(4)] | None  # joint_outcome: mean PSNR in dB and mean final sigma
    cpu_seconds: float  # of the training, including that of what it started from

    @property
    def calibration(self) -> float:
        """The error of calibration as one number: the mean over tau of ``|profile|``."""
        return fmean(map(abs, self.profile))

    @field_validator("settings")
    @classmethod
    def _complete(cls, value: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that an older version did not have count as their defaults."""
        if value.keys() != {"code", "prior", "config", "kernels", "warm"}:
            raise ValueError("these are no settings of a variant")
        prior, config = (io.check(value[name], dict[str, Any], name) for name in ("prior", "config"))
        made = {"prior": configuration(prior), "config": TrainConfig(**config)}
        return value | {name: io.encode(asdict(part)) for name, part in made.items()}


FORM = Form("file of ablations", About, {"runs": Training}, SHIPPED)
load = FORM.load


def opened(path: str | Path, steps: int, judge: Judge | None = None) -> Table:
    """The file to be filled with :func:`jobs` of so many steps, judged (by :data:`JUDGE`) on :func:`held_out`."""
    where = f"the middle {CROP} x {CROP} pixels of each of the 32 images of val of BSDS500 outside of BSDS68"
    return Table(path, FORM, About(judge=judge or JUDGE, held_out=where, steps=steps))


def table(content: Content) -> str:
    """The trainings as markdown, in the order of their list.

    PSNR in dB at each noise level, calibration error, smallest eigenvalue of t Hess R at the worst patch, minutes.
    """
    judge, order = content.about.judge, [v.name for made in VARIANTS.values() for v in made()]
    head = [f"{255 * s:.0f}" for s in judge.sigmas] + ["calibration"]
    head += [f"eigenvalue, {255 * s:g}" for s in judge.curvature_at]
    lines = []
    for row in sorted(content.rows["runs"], key=lambda row: (order.index(row.variant), row.seed)):
        numbers = [f"{v:.2f}" for v in row.psnr] + [f"{row.calibration:.3f}"]
        numbers += [f"{v:.2f}" for v in row.curvature] + [f"{row.cpu_seconds / 60:.0f}"]
        lines.append([row.variant, str(row.seed), *numbers])
    return markdown(["training", "seed", *head, "minutes"], lines)
