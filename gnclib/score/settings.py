"""What trainings of priors and of schedules are set to: plain numbers, checked; no torch is loaded for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from gnclib.io.reading import demand, shape_of_fields

__all__ = ["OBJECTIVES", "START_ACTIVATIONS", "LearnConfig", "TrainConfig"]

#: what is minimised, see :mod:`gnclib.score.losses`
OBJECTIVES = ("corrected", "printed", "vanishing", "denoising")
#: the last hidden activation at a warm start, see :meth:`gnclib.foe.FieldsOfExperts.warm_start`
START_ACTIVATIONS = ("identity", "magnitude")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; all are our choices but the optimiser, the schedule and eq. (7).

    Attributes:
        steps: iterations; batch: patches per iteration, over all processes; patch: side of a patch in pixels.
        lr, lr_constant: first learning rates of kernels and potentials, and of c(tau); lr_last: the last of both.
        smoothing: lambda, weight of the smoothing part.
        fraction: part of the batch on which the smoothing part is evaluated.
        objective: "corrected" (eq. 7 with its boundary term), "printed" (eq. 7 as printed), "vanishing" (eq. 7 with a
            prior of tau that vanishes at both ends, in the smoothing part) or "denoising" (denoising score matching in
            tau as well, which departs from eq. 7); see :mod:`gnclib.score.losses`.
        roughness: weight of the decoupled decay of :meth:`FieldsOfExperts.smooth`, taken after each step times the
            learning rate (as AdamW decays weights): where data are rare a potential stays smooth.
        roughness_hidden: the same for hidden activations, relative to ``roughness``.
        averaging: decay beta of the exponential moving average of the weights, in [0, 1); 0 for none. The average is
            what is validated and exported; it forgets over about 1 / (1 - beta) steps, fewer in the beginning.
        seed: of patches, noise levels and noise.
        warm_start: name of the prior that the run set out from (:meth:`FieldsOfExperts.warm_start`), "" for none;
            warm_start_sha256: SHA-256 of its model.safetensors, and ``warm_start_hidden`` as there ("identity" or
            "magnitude"). :func:`gnclib.score.run.start` fills in the first two.
        images, images_sha256: what to train on, "" for BSDS500, "embedded" or the path of a folder, and the digest of
            those images; see :mod:`gnclib.score.training_set`, which fills in the second.

    Raises:
        ValueError: a value outside of its range.
    """

    steps: int = 100_000
    batch: int = 32
    patch: int = 48
    lr: float = 1e-3
    lr_constant: float = 1e-2
    lr_last: float = 1e-5
    smoothing: float = 5e-4
    fraction: float = 0.125
    objective: str = "corrected"
    roughness: float = 0.0
    roughness_hidden: float = 1.0
    averaging: float = 0.0
    seed: int = 0
    warm_start: str = ""
    warm_start_sha256: str = ""
    warm_start_hidden: str = "identity"
    images: str = ""
    images_sha256: str = ""

    def __post_init__(self):
        for name in ("steps", "batch", "patch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name in ("lr", "lr_constant", "lr_last"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {getattr(self, name)}")
        if not 0 <= self.smoothing < math.inf:
            raise ValueError(f"smoothing (lambda) must be >= 0, got {self.smoothing}")
        for name in ("roughness", "roughness_hidden"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must lie in [0, 1), got {self.averaging}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {self.fraction}")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.warm_start_hidden not in START_ACTIVATIONS:
            known = ", ".join(START_ACTIVATIONS)
            raise ValueError(f"warm_start_hidden must be one of {known}, got {self.warm_start_hidden!r}")
        if self.objective == "corrected" and self.smoothing and self.batch < 2:
            raise ValueError(
                "the boundary term of the corrected objective takes pairs of patches: batch must be >= 2"
            )

    @classmethod
    def from_dict(cls, values: dict) -> TrainConfig:
        """The inverse of ``dataclasses.asdict``; settings that an older version did not have get their defaults.

        Raises:
            ValueError: a setting that this version does not know, or a value outside of its range.
        """
        if unknown := sorted(set(values) - {f.name for f in fields(cls)}):
            raise ValueError(f"settings that this version does not know: {', '.join(unknown)}")
        return cls(**demand(values, shape_of_fields(cls)))


@dataclass(frozen=True)
class LearnConfig:
    """Settings of a run; all are our choices.

    Attributes:
        iterations: updates; batch: patches per update; patch: side of a patch in pixels.
        lr: first learning rate of the shifts in tau and log eta.
        lr_prior: first learning rate of kernels and potentials; 0 leaves the prior as it is.
        seed: of patches, noise and masks.
        images, images_sha256: what to train on, "" for BSDS500, "embedded" or the path of a folder, and the digest of
            those images; see :mod:`gnclib.score.training_set`, which fills in the second.

    Raises:
        ValueError: a value outside of its range.
    """

    iterations: int = 400
    batch: int = 2
    patch: int = 96
    lr: float = 0.05
    lr_prior: float = 0.0
    seed: int = 0
    images: str = ""
    images_sha256: str = ""

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "patch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if not 0 < self.lr < 1:
            raise ValueError(f"lr must lie in (0, 1), got {self.lr}")
        if not 0 <= self.lr_prior < 1:
            raise ValueError(f"lr_prior must lie in [0, 1), got {self.lr_prior}")
