"""Settings of trainings, the recipes of the priors and schedules, and the variants of ``gnc ablate``.

No torch is loaded for them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from gnclib.deep import NetworkConfig
from gnclib.foe import FoEConfig
from gnclib.io import settings

# settings -------------------------------------------------------------------------------------------------------------

Objective = Literal["corrected", "restored", "vanishing", "denoising"]
#: what is minimised, see :mod:`gnclib.score.losses`
OBJECTIVES: tuple[str, ...] = get_args(Objective)
StartActivation = Literal["identity", "magnitude", "kept"]
#: the last hidden activation at a warm start, see :mod:`gnclib.score.starts`
START_ACTIVATIONS: tuple[str, ...] = get_args(StartActivation)

Count = Annotated[int, Field(ge=1, description="must be a positive integer")]
Rate = Annotated[float, Field(gt=0, lt=1, description="must lie in (0, 1)")]
RateOrZero = Annotated[float, Field(ge=0, lt=1, description="must lie in [0, 1)")]
Weight = Annotated[float, Field(ge=0, description="must be >= 0 and finite")]
Part = Annotated[float, Field(gt=0, le=1, description="must lie in (0, 1]")]


@settings
class TrainConfig:
    """Settings of a training run; all are our choices but the optimiser, the schedule and eq. (7).

    Parameters
    ----------
    steps
        Iterations (the paper: 100000).
    batch
        Patches per iteration, over all processes.
    patch
        Side of a patch in pixels.
    lr
        First learning rate of kernels and potentials.
    lr_constant
        First learning rate of c(tau).
    lr_last
        Last learning rate of all.
    smoothing
        lambda, weight of the smoothing part.
    lr_coarse
        First learning rate of coarser scales, 0 for that of the fine scale.
    hold
        Part of the iterations before the learning rates begin to fall.
    optimiser
        AdaBelief (the paper), Adam with beta = (0.9, 0.99), or Muon: the step of a kernel with several inputs and
        outputs, as a matrix, is the momentum with its singular values made about equal, and what else is learned has
        Adam (K. Jordan 2024).
    lr_matrix
        First learning rate of such kernels, for Muon.
    clip
        Largest norm of the gradient of all but c(tau), to which a larger one is shortened; 0 for none.
    bf16
        Whether the convolutions of a network energy are computed in bfloat16.
    wide
        Part of the iterations that see a quarter of the batch with patches twice as wide, 0 for none; these have noise
        levels from ``wide_from`` on, all others up to ``narrow_to`` (ours, for energies that see far).
    wide_from, narrow_to
        Lowest noise level of wide patches and highest one of the others, grey values.
    emphasis
        The image part at noise level sigma has the weight (sigma / 0.1)^emphasis: 0 is eq. (7), 1 gives a change of
        the PSNR about the same weight at all noise levels (ours).
    fraction
        Part of the batch on which the smoothing part is evaluated.
    objective
        "corrected" (eq. 7 with its boundary term), "restored" (eq. 7 without it), "vanishing" (eq. 7 with a prior of
        tau that vanishes at both ends, in the smoothing part) or "denoising" (denoising score matching in tau as well,
        which departs from eq. 7); see :mod:`gnclib.score.losses`.
    roughness
        Weight of the decoupled decay of :meth:`gnclib.foe.FieldsOfExperts.smooth`, taken after each step times the
        learning rate (as AdamW decays weights): where data are rare a potential stays smooth.
    roughness_hidden
        The same for hidden activations, relative to ``roughness``.
    projected
        Whether the kernels of K_1 are put back to zero mean and norm at most 1 after each step (ours), or free (as
        restored from the paper).
    averaging
        Decay beta of the exponential moving average of the weights; 0 for none. The average is what is validated and
        exported; it forgets over about 1 / (1 - beta) steps, fewer in the beginning.
    seed
        Of patches, noise levels and noise.
    warm_start, warm_start_sha256
        Name of the prior that the run set out from (:mod:`gnclib.score.starts`), "" for none, and SHA-256 of
        its model.safetensors, both filled in by :func:`gnclib.score.run.start`.
    warm_start_hidden
        Last hidden activation at a warm start; "kept" is filled in where all weights are those of the prior.
    images, images_sha256
        What to train on, "" for BSDS500, "embedded" or the path of a folder; digest of those images, filled in when
        they are read (:mod:`gnclib.score.training_set`).

    Raises
    ------
    ValueError
        An unknown name, or a value of another type or outside of its range.
    """

    steps: Count = 100_000
    batch: Count = 32
    patch: Count = 48
    lr: Rate = 1e-3
    lr_constant: Rate = 1e-2
    lr_last: Rate = 1e-5
    lr_coarse: RateOrZero = 0.0
    hold: RateOrZero = 0.0
    optimiser: Literal["adabelief", "adam", "muon"] = "adabelief"
    lr_matrix: Rate = 1e-2
    clip: Weight = 0.0
    bf16: bool = False
    wide: RateOrZero = 0.0
    wide_from: Weight = 0.3
    narrow_to: Weight = 1.0
    emphasis: Weight = 0.0
    smoothing: Weight = 5e-4
    fraction: Part = 0.125
    objective: Annotated[Objective, Field(description=f"must be one of {', '.join(OBJECTIVES)}")] = (
        "corrected"
    )
    roughness: Weight = 0.0
    roughness_hidden: Weight = 1.0
    projected: bool = True
    averaging: RateOrZero = 0.0
    seed: int = 0
    warm_start: str = ""
    warm_start_sha256: str = ""
    warm_start_hidden: Annotated[
        StartActivation, Field(description=f"must be one of {', '.join(START_ACTIVATIONS)}")
    ] = "identity"
    images: str = ""
    images_sha256: str = ""

    @model_validator(mode="after")
    def _in_pairs(self) -> TrainConfig:
        if self.objective == "corrected" and self.smoothing and self.batch < 2:
            raise ValueError(
                "the boundary term of the corrected objective takes pairs of patches: batch must be >= 2"
            )
        if self.wide and self.smoothing and self.objective in ("corrected", "vanishing"):
            raise ValueError(
                f"the objective {self.objective} needs noise of the whole range in every batch, and with wide patches"
                " batches have parts of it: choose the objective denoising, or wide = 0"
            )
        if self.wide and self.batch < 4:
            raise ValueError("wide patches come in a quarter of the batch: batch must be >= 4")
        if self.warm_start_hidden == "kept" and not self.warm_start:
            raise ValueError("warm_start_hidden is kept only with a warm start from a prior of the same kind")
        return self


@settings
class LearnConfig:
    """Settings of a run that learns a schedule; all are our choices.

    Parameters
    ----------
    iterations
        Updates.
    batch
        Patches per update.
    patch
        Side of a patch in pixels.
    lr
        First learning rate of the shifts in tau and log eta.
    lr_prior
        First learning rate of kernels and potentials, for fine-tuning; 0 leaves the prior as it is.
    seed
        Of patches, noise and masks.
    images, images_sha256
        As in :class:`TrainConfig`.

    Raises
    ------
    ValueError
        An unknown name, or a value of another type or outside of its range.
    """

    iterations: Count = 400
    batch: Count = 2
    patch: Count = 96
    lr: Rate = 0.05
    lr_prior: RateOrZero = 0.0
    seed: int = 0
    images: str = ""
    images_sha256: str = ""


def learning_rate(first: float, last: float, step: int, steps: int) -> float:
    """Cosine annealing: ``first`` at step 0, ``last`` at the end."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * step / steps))


# recipes --------------------------------------------------------------------------------------------------------------

_PAPER = FoEConfig(scaled_input=False, range=4.0, nodes_x=127, constant=False)
_SCALES = FoEConfig(layers=1, sigma_max=2.0, nodes_tau=20, scales=4)
#: the priors that can be trained by name: R1 to R3 with our changes, P1 to P3 as restored from the paper, M1 and M3
#: with coarser scales (one and three layers), C1 and C3 the same and convex from sigma = 0.6 on, G1 with a network
PRIORS = {
    "R1": FoEConfig(layers=1),
    "R2": FoEConfig(layers=2, dilation=2),
    "R3": FoEConfig(layers=3, dilation=2),
    **{f"P{layers}": replace(_PAPER, layers=layers) for layers in (1, 2, 3)},
    "G1": NetworkConfig(),
    "M1": _SCALES,
    "M3": replace(_SCALES, layers=3, dilation=2),
    "C1": replace(_SCALES, convex_from=0.6),
    "C3": replace(_SCALES, layers=3, dilation=2, convex_from=0.6),
}
_SHIPPED = TrainConfig(objective="denoising", roughness=10.0, averaging=0.9995)
_DEEP = {"lr": 5e-4, "smoothing": 1e-4, "roughness_hidden": 0.1, "warm_start_hidden": "magnitude"}
_RESTORED = TrainConfig(objective="restored", projected=False, batch=16, fraction=0.25)
_RESTORED_DEEP = replace(_RESTORED, batch=4, patch=64, lr=5e-4, smoothing=1e-4)
_SCALED = replace(
    _SHIPPED,
    steps=8_000,
    batch=4,
    patch=128,
    lr=3e-4,
    lr_coarse=1e-3,
    hold=0.6,
    smoothing=2e-6,
    emphasis=1.0,
    fraction=0.25,
    roughness=1.0,
    averaging=0.997,
)
#: the settings with which they are trained; of G1, C1, C3, M1 and M3 those of the last stage (see their cards)
RECIPES = {
    "R1": replace(_SHIPPED, batch=16, patch=48),
    "R2": replace(_SHIPPED, batch=4, patch=64, **_DEEP),
    "R3": replace(_SHIPPED, batch=4, patch=72, **_DEEP),
    "P1": _RESTORED,
    "P2": _RESTORED_DEEP,
    "P3": replace(_RESTORED_DEEP, patch=48),
    "G1": TrainConfig(
        steps=12_000,
        batch=16,
        patch=64,
        lr=6e-4,
        lr_matrix=6e-3,
        lr_last=1e-6,
        smoothing=1e-4,
        hold=0.4,
        optimiser="muon",
        clip=1.0,
        bf16=True,
        wide=0.3,
        wide_from=1.0,
        emphasis=0.75,
        fraction=1.0,
        objective="denoising",
        averaging=0.999,
    ),
    "M1": _SCALED,
    "M3": replace(_SCALED, roughness_hidden=0.1),
    "C1": _SCALED,
    "C3": replace(_SCALED, roughness_hidden=0.1),
}
#: G1's recipe before Muon, around which ``gnc ablate --network`` varies
FIRST_G1 = replace(RECIPES["G1"], lr=1e-3, lr_matrix=0.01, optimiser="adam", hold=0.7)
FIRST_G1 = replace(FIRST_G1, smoothing=5e-4, wide=0.2, wide_from=0.3, emphasis=0.0)
#: the settings of the shipped schedules, and those of fine-tuning; lr_prior on validation images for R3 at sigma 25:
#: 3e-4 had gained 0.02 dB after 120 updates, where 1e-3 had lost 0.03
LEARN_RECIPES = {"schedule": LearnConfig(), "finetune": LearnConfig(iterations=1000, lr=0.01, lr_prior=3e-4)}
#: the last learning rate of a schedule is this part of the first
LEARN_LAST = 0.01
#: iterations of each training of ``gnc ablate``, but for the departures
STEPS = 1000


@dataclass(frozen=True)
class Variant:
    """One way to build and train a prior: a name, the architecture, the training and the start.

    ``warm``, what a deeper prior sets out from (:func:`gnclib.score.starts.warm_start`), is a variant of one
    layer, which is trained first with the same seed, or None for the cold start.
    """

    name: str
    prior: FoEConfig | NetworkConfig = field(default_factory=FoEConfig)
    config: TrainConfig = field(default_factory=TrainConfig)
    kernels: str = "dct"  # or "random", K_1; the others are Kaiming-normal
    warm: Variant | None = None

    def but(self, name: str, **values: Any) -> Variant:
        """The same under another name, with other settings of its architecture or training. TypeError: unknown ones."""
        shape = {key: values.pop(key) for key in [*values] if key in asdict(self.prior)}
        prior, config = replace(self.prior, **shape), replace(self.config, **values)
        return replace(self, name=name, prior=prior, config=config)


def variants(steps: int = STEPS) -> list[Variant]:
    """The variants that are compared.

    The recipe of the shipped R_1 with so many steps (but for the averaging of weights, which is one of the variants),
    the same with one ingredient exchanged at a time, and R_3 from the warm start on the way to its own recipe: a
    smaller lambda, then magnitudes for identities, then kernels that reach further.
    """
    config = TrainConfig(
        steps=steps, batch=16, patch=48, lr=1e-3, smoothing=5e-4, fraction=0.125, objective="denoising", roughness=10.0
    )  # fmt: skip
    recipe = Variant("recipe", FoEConfig(), config)
    deep = replace(recipe.but("R_3 warm", layers=3, batch=4, patch=64, lr=5e-4), warm=recipe)
    light = deep.but("R_3 lambda / 5", smoothing=config.smoothing / 5)
    magnitudes = light.but("R_3 magnitudes", warm_start_hidden="magnitude", roughness_hidden=0.1)
    return [
        recipe,
        deep,
        replace(deep, name="R_3 cold", warm=None),
        light,
        magnitudes,
        magnitudes.but("R_3 dilated", dilation=2),
        recipe.but("lambda = 0", smoothing=0.0),
        recipe.but("lambda x 10", smoothing=10 * config.smoothing),
        recipe.but("roughness = 0", roughness=0.0),
        recipe.but("input not scaled", scaled_input=False, range=4.0, nodes_x=127),
        replace(recipe, name="random kernels", kernels="random"),
        recipe.but("objective corrected", objective="corrected"),
        recipe.but("objective restored", objective="restored"),
        recipe.but("objective vanishing", objective="vanishing"),
        recipe.but("N_tau = 5", nodes_tau=5),
        recipe.but("N_tau = 21", nodes_tau=21),
        recipe.but("N_x = 31", nodes_x=31),
        recipe.but("N_x = 191", nodes_x=191),
        recipe.but("roughness x 10", roughness=10 * config.roughness),
        recipe.but("averaged weights", averaging=0.9995),
    ]


def network_variants(steps: int = STEPS) -> list[Variant]:
    """G1 with its recipe before Muon and so many steps, and with one ingredient exchanged at a time.

    Without a gate activations bend at every noise level but the very largest; where they are linear everywhere, the
    energy is a convex quadratic at every noise level.
    """
    recipe = Variant("G1", PRIORS["G1"], replace(FIRST_G1, steps=steps))
    low, high, channels = recipe.prior.sigma_min, recipe.prior.sigma_max, recipe.prior.channels
    return [
        recipe,
        recipe.but("no gate", sigma_open=0.99 * high, sigma_convex=high),
        recipe.but("linear activations", sigma_open=1.01 * low, sigma_convex=1.02 * low),
        recipe.but("no time score", smoothing=0.0),
        recipe.but("Muon", optimiser="muon"),
        recipe.but("half the width", channels=tuple(c // 2 for c in channels)),
        recipe.but("three scales", channels=channels[:3]),
        recipe.but("twice the width", channels=tuple(2 * c for c in channels)),
    ]


def window_variants(steps: int = STEPS) -> list[Variant]:
    """The networks of one, two and three scales, which see windows of 9, 25 and 57 pixels, with bent activations at all
    noise levels and with linear ones at all: what bending brings is the price of convexity for that window.

    At noise levels from 0.05 to 20, each with about the same weight.
    """
    base, found = replace(PRIORS["G1"], sigma_min=0.05, sigma_max=20.0, nodes_tau=15), []
    config = replace(FIRST_G1, steps=steps, wide=0.5, emphasis=1.0, optimiser="muon")
    ends = {"bent": (19.9, 20.0), "linear": (0.051, 0.052)}
    for scales in (1, 2, 3):
        for name, (opened, convex) in ends.items():
            prior = replace(base, channels=base.channels[:scales], sigma_open=opened, sigma_convex=convex)
            found.append(Variant(f"{name}, {2 * prior.margin + 1} pixels", prior, config))
    return found


def departure_variants(steps: int = RECIPES["R1"].steps) -> list[Variant]:
    """From P_1, the recipe as restored from the paper, to R_1: one departure after the other, each kept from then on.

    The first departure are averaged weights, so that all later comparisons have less noise. Some come together and are
    not separated: objective and fraction, projected kernels and a c(tau) of its own, scaling and nodes. One layer; by
    default as many iterations as the shipped priors had.
    """
    ours = RECIPES["R1"]
    found = [Variant("P_1", PRIORS["P1"], replace(RECIPES["P1"], steps=steps))]
    found.append(found[-1].but("+ averaged weights", averaging=ours.averaging))
    found.append(found[-1].but("+ denoising in tau", objective=ours.objective, fraction=ours.fraction))
    found.append(found[-1].but("+ projected kernels, c(tau)", constant=True, projected=True))
    found.append(replace(found[-1], name="+ scaled input", prior=PRIORS["R1"]))
    found.append(found[-1].but("+ damping (R_1)", roughness=ours.roughness))
    return found


#: the lists of ``gnc ablate``
VARIANTS = {
    "": variants, "network": network_variants, "windows": window_variants, "departures": departure_variants
}  # fmt: skip
