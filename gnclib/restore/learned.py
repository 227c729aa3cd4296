r"""Learned schedules: the GNC flow of I steps, with what it does in each step learned (a variational network).

    x_i = prox_{eta_i D}( x_{i-1} - eta_i grad_1 R(x_{i-1}, t_i) ),   i = 1..I        (Kobler & Pock 2023, eq. 9)

A predefined schedule lets t_i fall and steps by eta_i = t_i, with the minimum of D + R(., t_I) in mind. The third
scheme of section 5 has no such aim: all t_i and eta_i, 2 I numbers, are those that make x_I the best estimate of the
clean image in the mean square, over training pairs of one :class:`Task`. The prior stays as it is, or is fine-tuned
as well (:mod:`gnclib.restore.learn`).

*Parameters.* t and eta live on logarithmic scales, and learning moves them from where it began,

    t_i = t_i^0 exp(2 a_i),   eta_i = eta_i^0 exp(b_i),       a_i = b_i = 0 in the beginning,

a_i being a shift in tau = 0.5 log t. The constraints t_min <= t_i <= t_max, where the prior is defined, and eta_i > 0
are boxes on these scales: the values are clamped, and :meth:`LearnedSchedule.project` takes the parameters back after
an update. Unlike a sigmoid this does not slow down at the ends, at which schedules begin, and what is written to a file
is read back to the bit.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gnclib.foe import WEIGHTS, FieldsOfExperts, hub
from gnclib.images.data import add_noise
from gnclib.io import files, reading
from gnclib.restore.flow import State, gnc_flow
from gnclib.restore.operators import Denoising, Inpainting

__all__ = ["ETA_RANGE", "LearnedSchedule", "Task", "weights_sha256"]

#: step sizes that a schedule may have, in squared grey values
ETA_RANGE = (1e-8, 1e2)
SCHEDULE = "schedule.json"
#: a schedule.json of more bytes than this is refused unread
LARGEST = 1_000_000


@dataclass(frozen=True)
class Task:
    """The inverse problem that a schedule is learned for.

    Attributes:
        kind: "denoise" (white Gaussian noise) or "inpaint" (pixels are missing independently of each other).
        level: standard deviation of the noise in grey levels of 0..255, or the fraction of missing pixels.

    Raises:
        ValueError: another kind, a noise level outside of (0, 255] or a fraction outside of (0, 1).
    """

    kind: str
    level: float

    def __post_init__(self) -> None:
        if self.kind not in LEVELS:
            raise ValueError(f"the task must be one of {', '.join(LEVELS)}, got {self.kind!r}")
        object.__setattr__(self, "level", float(self.level))
        if self.kind == "denoise" and not 0 < self.level <= 255:
            raise ValueError(f"sigma is in grey levels of 0..255 and must lie in (0, 255], got {self.level}")
        if self.kind == "inpaint" and not 0 < self.level < 1:
            raise ValueError(f"the fraction of missing pixels must lie in (0, 1), got {self.level}")

    def __str__(self) -> str:
        """ "denoise-25" or "inpaint-80": the name of a shipped schedule after that of its prior."""
        return f"{self.kind}-{self.level if self.kind == 'denoise' else 100 * self.level:g}"

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise in grey values of [0, 1]; 0 for inpainting."""
        return self.level / 255 if self.kind == "denoise" else 0.0

    def measure(self, x: Tensor, generator: torch.Generator) -> Denoising | Inpainting:
        """The data term of a measurement of clean images (B, 1, H, W): noise or mask are drawn from the generator."""
        if self.kind == "denoise":
            return Denoising(add_noise(x, self.sigma, generator), self.sigma)
        mask = torch.rand(x.shape, generator=generator).to(x.device) < 1 - self.level  # True: observed
        return Inpainting(torch.where(mask, x, torch.zeros_like(x)), mask)


#: the name of a task's level in schedule.json
LEVELS = {"denoise": "sigma_255", "inpaint": "missing"}
#: where the steps may begin
STARTS = {"denoise": ("start",), "inpaint": ("start", "guess")}


class LearnedSchedule(nn.Module):
    """The 2 I numbers t_i and eta_i of eq. (9), for one prior and one task; see the module for the formulas.

    Args:
        t: noise variances t_1 .. t_I, each in [t_min, t_max].
        eta: step sizes, as many, each within :data:`ETA_RANGE`; None for eta_i = t_i, the GNC flow.
        t_range: (t_min, t_max), the squares of the prior's sigma_min and sigma_max.
        task: what the schedule is for.
        x_0: "start" for x_0 = data.start(), the noisy image, or mid grey where pixels are missing; "guess" for the
            guess of missing pixels, data.guess().
        prior: name of the prior; prior_sha256: SHA-256 of its weights (:func:`weights_sha256`); "" where not known.
        provenance: how the schedule was made, as JSON data.

    Raises:
        ValueError: a value outside of its range, different numbers of t and eta, or no such x_0 for this task.
    """

    def __init__(
        self,
        t: Tensor | Sequence[float],
        eta: Tensor | Sequence[float] | None = None,
        *,
        t_range: tuple[float, float],
        task: Task,
        x_0: str = "start",
        prior: str = "",
        prior_sha256: str = "",
        provenance: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if not 0 < t_range[0] < t_range[1] < math.inf:
            raise ValueError(f"t_range must be (t_min, t_max) with 0 < t_min < t_max < inf, got {t_range}")
        first_t = _column("t", t, t_range)
        first_eta = first_t.clamp(*ETA_RANGE) if eta is None else _column("eta", eta, ETA_RANGE)
        if len(first_t) != len(first_eta):
            raise ValueError(f"each step has one t and one eta, got {len(first_t)} and {len(first_eta)}")
        if x_0 not in STARTS[task.kind]:
            raise ValueError(f"x_0 must be one of {', '.join(STARTS[task.kind])} to {task.kind}, got {x_0!r}")
        self.t_range, self.task, self.x_0 = (float(t_range[0]), float(t_range[1])), task, x_0
        self.prior, self.prior_sha256, self.provenance = prior, prior_sha256, dict(provenance or {})
        self.register_buffer("first_t", first_t)  # (I,)
        self.register_buffer("first_eta", first_eta)
        self.shift_tau = nn.Parameter(torch.zeros_like(first_t))
        self.shift_log_eta = nn.Parameter(torch.zeros_like(first_eta))

    def __len__(self) -> int:
        """I, the number of steps."""
        return len(self.first_t)

    @property
    def t(self) -> Tensor:
        """t_1 .. t_I, float64 (I,), without gradient."""
        return self._values()[0].detach()

    @property
    def eta(self) -> Tensor:
        """eta_1 .. eta_I, float64 (I,), without gradient."""
        return self._values()[1].detach()

    def _values(self) -> tuple[Tensor, Tensor]:
        t = self.first_t * torch.exp(2 * self.shift_tau)
        eta = self.first_eta * torch.exp(self.shift_log_eta)
        return t.clamp(*self.t_range), eta.clamp(*ETA_RANGE)

    @torch.no_grad()
    def project(self) -> None:
        """Take the parameters back to where t and eta just reach the ends of their ranges, in place."""
        low, high = (0.5 * torch.log(end / self.first_t) for end in self.t_range)
        self.shift_tau.clamp_(low, high)
        low, high = (torch.log(end / self.first_eta) for end in ETA_RANGE)
        self.shift_log_eta.clamp_(low, high)

    def forward(self, prior, data: Denoising | Inpainting, start: Tensor | None = None) -> Tensor:
        """x_I of eq. (9), differentiable in t, eta and what of the prior requires a gradient.

        Args:
            prior: an energy with `grad(y, t)`, differentiable in t, which is given as a tensor.
            data: the data term of the measurement.
            start: x_0, shaped like the measurement (B, 1, H, W); where it is not given, that of the schedule.
        """
        x = self._begin(data) if start is None else start
        for t, eta in zip(*(v.to(x) for v in self._values()), strict=True):
            x = data.prox(x - eta * prior.grad(x, t), eta)
        return x

    def states(self, prior, data: Denoising | Inpainting, start: Tensor | None = None) -> Iterator[State]:
        """The steps of :meth:`forward` one by one, without gradients: the `gnc_flow` with these t and eta.

        prior: anything with `grad(y, t)`, :class:`gnclib.restore.tiles.Tiled` for instance.
        """
        begin = self._begin(data) if start is None else start
        return gnc_flow(prior, self.t, data, begin, step_sizes=self.eta, rising=True)

    def _begin(self, data: Denoising | Inpainting) -> Tensor:
        return data.guess() if self.x_0 == "guess" else data.start()

    # which prior it is for -----------------------------------------------------------------------------------------

    def fits(self, prior: FieldsOfExperts | str) -> bool:
        """Whether these are the weights that the schedule was learned with.

        prior: the prior, or the SHA-256 of its weights.
        """
        return self.prior_sha256 == (prior if isinstance(prior, str) else weights_sha256(prior))

    def demand_fit(self, prior: FieldsOfExperts | str) -> None:
        """Raise ValueError, saying what to do, unless the schedule :meth:`fits`."""
        if not self.fits(prior):
            digest = prior if isinstance(prior, str) else weights_sha256(prior)
            raise ValueError(
                f"this schedule ({self.task}) was learned with other weights of the prior {self.prior or '?'}: with"
                f" SHA-256 {self.prior_sha256[:12] or '?'}.., these have {digest[:12]}..; learn it again with"
                " 'gnc learn'"
            )

    # files ---------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `schedule.json` into the folder, whole or not at all. Of a fine-tuned prior the folder holds the
        prior as well (:meth:`FieldsOfExperts.save_pretrained`)."""
        values = {
            "task": self.task.kind,
            LEVELS[self.task.kind]: self.task.level,
            "x_0": self.x_0,
            "prior": self.prior,
            "prior_sha256": self.prior_sha256,
            "t_range": list(self.t_range),
            "t": self.t.tolist(),
            "eta": self.eta.tolist(),
            "provenance": self.provenance,
        }
        files.write_text(Path(folder) / SCHEDULE, files.dumps(values))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike) -> LearnedSchedule:
        """Load a schedule of the package ("R1-denoise-25"), from a folder, or from the hub ("hf:owner/name@revision").

        Looked for in this order, see :mod:`gnclib.foe.hub`.

        Raises:
            FileNotFoundError: none of the three, or no schedule.json there.
            ConnectionError: the hub cannot be reached. ImportError: a hub name without ``huggingface_hub``.
            ValueError: the file is no schedule; the message says why.
        """
        path = hub.locate(name, WEIGHTS, (SCHEDULE,), "learned schedule") / SCHEDULE
        content = reading.read_bytes(path, LARGEST)
        try:
            schedule = cls(**_arguments(reading.parse_json(content)))
        except ValueError as error:
            raise ValueError(f"{path} is no learned schedule: {error}") from error
        return schedule.requires_grad_(False).eval()


def weights_sha256(prior: FieldsOfExperts) -> str:
    """SHA-256 of the model.safetensors that :meth:`FieldsOfExperts.save_pretrained` writes for this prior."""
    return hashlib.sha256(prior.weights_file()).hexdigest()


def _column(name: str, values, bounds: tuple[float, float]) -> Tensor:
    """(I,) float64, not empty, within the bounds."""
    try:
        column = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be a list of numbers, one per step: {error}") from error
    if column.ndim != 1 or not len(column):
        raise ValueError(f"{name} must be a list of numbers, one per step, got shape {tuple(column.shape)}")
    low, high = bounds
    if not bool(((column >= low) & (column <= high)).all()):  # nan compares false
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}] in each step, got {column.tolist()}")
    return column


def _arguments(values: dict) -> dict[str, Any]:
    """The arguments of :class:`LearnedSchedule` from the content of a schedule.json. Raises ValueError."""
    kind = reading.demand(values, dict).get("task")
    if not isinstance(kind, str) or kind not in LEVELS:
        raise ValueError(f"task must be one of {', '.join(LEVELS)}, got {kind!r}")
    numbers = {"t_range": [float], "t": [float], "eta": [float]}
    texts = {"task": str, "x_0?": str, "prior": str, "prior_sha256": str}
    reading.demand(values, {**texts, LEVELS[kind]: float, **numbers, "provenance": dict})
    if not re.fullmatch(r"([0-9a-f]{64})?", values["prior_sha256"]):
        raise ValueError(f"prior_sha256 must be 64 hexadecimal digits, got {values['prior_sha256'][:80]!r}")
    if len(values["t_range"]) != 2:
        raise ValueError(f"t_range must hold two numbers, got {len(values['t_range'])}")
    names = ("t", "eta", "t_range", "x_0", "prior", "prior_sha256", "provenance")
    return {name: values[name] for name in names if name in values} | {
        "task": Task(kind, values[LEVELS[kind]])
    }
