"""Settings of trainings of priors and of schedules; no torch is loaded for them."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from gnclib.foe import StartActivation
from gnclib.io import settings

__all__ = ["OBJECTIVES", "LearnConfig", "TrainConfig"]

Objective = Literal["corrected", "printed", "vanishing", "denoising"]
#: what is minimised, see :mod:`gnclib.score.losses`
OBJECTIVES: tuple[str, ...] = get_args(Objective)

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
    fraction
        Part of the batch on which the smoothing part is evaluated.
    objective
        "corrected" (eq. 7 with its boundary term), "printed" (eq. 7 as printed), "vanishing" (eq. 7 with a prior of tau
        that vanishes at both ends, in the smoothing part) or "denoising" (denoising score matching in tau as well,
        which departs from eq. 7); see :mod:`gnclib.score.losses`.
    roughness
        Weight of the decoupled decay of :meth:`FieldsOfExperts.smooth`, taken after each step times the learning rate
        (as AdamW decays weights): where data are rare a potential stays smooth.
    roughness_hidden
        The same for hidden activations, relative to ``roughness``.
    averaging
        Decay beta of the exponential moving average of the weights; 0 for none. The average is what is validated and
        exported; it forgets over about 1 / (1 - beta) steps, fewer in the beginning.
    seed
        Of patches, noise levels and noise.
    warm_start, warm_start_sha256
        Name of the prior that the run set out from (:meth:`FieldsOfExperts.warm_start`), "" for none, and SHA-256 of
        its model.safetensors, both filled in by :func:`gnclib.score.run.start`.
    warm_start_hidden
        Last hidden activation at a warm start.
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
    smoothing: Weight = 5e-4
    fraction: Part = 0.125
    objective: Annotated[Objective, Field(description=f"must be one of {', '.join(OBJECTIVES)}")] = (
        "corrected"
    )
    roughness: Weight = 0.0
    roughness_hidden: Weight = 1.0
    averaging: RateOrZero = 0.0
    seed: int = 0
    warm_start: str = ""
    warm_start_sha256: str = ""
    warm_start_hidden: StartActivation = "identity"
    images: str = ""
    images_sha256: str = ""

    @model_validator(mode="after")
    def _in_pairs(self) -> TrainConfig:
        if self.objective == "corrected" and self.smoothing and self.batch < 2:
            raise ValueError(
                "the boundary term of the corrected objective takes pairs of patches: batch must be >= 2"
            )
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
