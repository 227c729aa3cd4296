r"""Learned schedules: the GNC flow of I steps with learned smoothings and step sizes (a variational network).

    x_i = prox_{eta_i D}( x_{i-1} - eta_i grad_1 R(x_{i-1}, t_i) ),   i = 1..I        (Kobler & Pock 2023, eq. 9)

A predefined schedule lets t_i fall and steps by eta_i = t_i, with the minimum of D + R(., t_I) in mind. A learned one
has no such aim: all t_i and eta_i, 2 I numbers, are those that make x_I the best estimate of the clean image in the
mean square, over training pairs of one task. The prior stays as it is, or is fine-tuned as well
(:mod:`gnclib.restore.learn`).

*Parameters.* t and eta live on logarithmic scales, and learning moves them from where it began,

    t_i = t_i^0 exp(2 a_i),   eta_i = eta_i^0 exp(b_i),       a_i = b_i = 0 in the beginning,

a_i being a shift in tau = 0.5 log t. The constraints t_min <= t_i <= t_max, where the prior is defined, and eta_i > 0
are boxes on these scales: the values are clamped, and :meth:`LearnedSchedule.project` takes the parameters back after
an update. Unlike a sigmoid this does not slow down at the ends, at which schedules begin, and what is written to a file
is read back to the bit.

*Noise levels in between.* :func:`find_schedule` mixes the schedules of the two nearest levels (:func:`between`), and
scales that of the nearest one just beyond them (:func:`scaled`).
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from gnclib.foe import WEIGHTS, LearnedEnergy, is_hub_name, locate
from gnclib.io import dumps, read_json, write_text
from gnclib.restore import LEVELS, Denoising, Inpainting, State, Task, gnc_flow

#: step sizes that a schedule may have, in squared grey values
ETA_RANGE = (1e-8, 1e2)
#: where the steps may begin
STARTS = {"denoise": ("start",), "inpaint": ("start", "guess")}
#: how far beyond a learned noise level its schedule is scaled
NEAR = 1.25
SCHEDULE = "schedule.json"
#: a schedule.json of more bytes than this is refused unread
LARGEST = 1_000_000


class LearnedSchedule(nn.Module):
    """The 2 I numbers t_i and eta_i of eq. (9), for one prior and one task; see the module for the formulas.

    Parameters
    ----------
    t : (I,), noise variances, each in [t_min, t_max]
    eta : (I,), step sizes, each within :data:`ETA_RANGE`, optional
        None for eta_i = t_i, the GNC flow.
    t_range : (t_min, t_max), the squares of the prior's sigma_min and sigma_max
    task : what the schedule is for
    x_0 : {"start", "guess"}
        data.start(), the noisy image, or mid grey where pixels are missing; or data.guess() of missing pixels.
    prior, prior_sha256 : str
        Name of the prior, SHA-256 of its weights (:func:`weights_sha256`); "" where not known.
    provenance : how the schedule was made, as JSON data

    Raises ValueError: a value outside of its range, different numbers of t and eta, or no such x_0 for this task.
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

        prior: an energy with `grad(y, t)`, differentiable in t, which is given as a tensor. start: x_0, shaped like the
        measurement (B, 1, H, W); that of the schedule by default.
        """
        x = getattr(data, self.x_0)() if start is None else start
        for t, eta in zip(*(v.to(x) for v in self._values()), strict=True):
            x = data.prox(x - eta * prior.grad(x, t), eta)
        return x

    def states(self, prior, data: Denoising | Inpainting, start: Tensor | None = None) -> Iterator[State]:
        """The steps of :meth:`forward` one by one, without gradients: the `gnc_flow` with these t and eta."""
        begin = getattr(data, self.x_0)() if start is None else start
        return gnc_flow(prior, self.t, data, begin, step_sizes=self.eta, rising=True)

    def demand_fit(self, prior: LearnedEnergy) -> None:
        """Raise ValueError, saying what to do, unless these are the weights that the schedule was learned with."""
        if (digest := weights_sha256(prior)) != self.prior_sha256:
            raise ValueError(
                f"this schedule ({self.task}) was learned with other weights of the prior {self.prior or '?'}: with"
                f" SHA-256 {self.prior_sha256[:12] or '?'}.., these have {digest[:12]}..; learn it again by 'gnc learn'"
            )

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `schedule.json` into the folder, whole or not at all; a fine-tuned prior lies in it as well."""
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
        write_text(Path(folder) / SCHEDULE, dumps(values))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike) -> LearnedSchedule:
        """A schedule of the package ("R1-denoise-25"), of a folder, or of the hub.

        Raises
        ------
        FileNotFoundError, ConnectionError, ImportError
            It is not found (:func:`gnclib.foe.hub.locate`), or has no schedule.json.
        ValueError
            The file is no schedule; the message says why.
        """
        path = locate(name, (SCHEDULE,), "learned schedule") / SCHEDULE
        values = read_json(path, "learned schedule", _File, LARGEST)
        try:
            level = LEVELS[values["task"]]
            if (has := values.keys() & set(LEVELS.values())) != {level}:
                raise ValueError(f"its level must be called {level}, got {', '.join(sorted(has)) or 'none'}")
            schedule = cls(**values | {"task": Task(values["task"], values.pop(level))})
        except ValueError as error:
            raise ValueError(f"{path} is no learned schedule: {error}") from error
        return schedule.requires_grad_(False).eval()


def weights_sha256(prior: LearnedEnergy) -> str:
    """SHA-256 of the model.safetensors that :meth:`LearnedEnergy.save_pretrained` writes for this prior."""
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


class _File(TypedDict):
    """The content of schedule.json; the name of the level depends on the task, :data:`LEVELS`."""

    task: Literal["denoise", "inpaint"]
    sigma_255: NotRequired[float]
    missing: NotRequired[float]
    x_0: NotRequired[str]
    prior: str
    prior_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    t_range: Annotated[list[float], Field(min_length=2, max_length=2)]
    t: list[float]
    eta: list[float]
    provenance: dict[str, Any]


# --- which schedule for which task ------------------------------------------------------------------------


def find_schedule(name: str | Path, task: Task) -> LearnedSchedule:
    """The schedule `name` of the package, a folder or the hub; where there is none, one made from those nearby.

    Raises FileNotFoundError: nothing was learned for this task, nor for noise levels near enough; ValueError: the
    schedule is for another task, or the file is none.
    """
    try:
        schedule = LearnedSchedule.from_pretrained(name)
    except FileNotFoundError:
        schedule = _nearby(name, task)
        if schedule is None:
            known = sorted(path.parent.name for path in WEIGHTS.glob("*/schedule.json"))
            raise FileNotFoundError(
                f"nothing was learned for {name}, nor for noise levels below and above: 'gnc learn' learns into a"
                f" folder of that name, or take the scheme gnc; the package has {', '.join(known) or 'none'}"
            ) from None
    if str(schedule.task) != str(task):  # 25.000001 is 25
        raise ValueError(f"the schedule {name} was learned for {schedule.task}, not for {task}")
    return schedule


def _nearby(name: str | Path, task: Task) -> LearnedSchedule | None:
    levels = {} if is_hub_name(name) else _learned_levels(str(name), task)
    below, above = ([v for v in levels if (v < task.level) == lower] for lower in (True, False))
    if below and above:
        return between(levels[max(below)], levels[min(above)], task)
    near = [v for v in levels if task.level / NEAR <= v <= NEAR * task.level]
    return scaled(levels[min(near, key=lambda v: abs(math.log(v / task.level)))], task) if near else None


def _learned_levels(name: str, task: Task) -> dict[float, LearnedSchedule]:
    """The schedules of the same prior for denoising, by their noise level."""
    if task.kind != "denoise" or not name.endswith(f"-{task}"):
        return {}
    text = name.removesuffix(str(task))
    stem = Path(text)
    places = [stem.parent.absolute()]
    if stem.name == text:
        places.append(WEIGHTS)  # the package has the last word
    pattern = f"{glob.escape(stem.name)}denoise-*/{SCHEDULE}"
    found = [file.parent for place in places for file in sorted(place.glob(pattern))]
    folders = [f for f in found if not (f / "config.json").is_file()]  # a fine-tuned one has its own prior
    schedules = map(LearnedSchedule.from_pretrained, folders)
    return {s.task.level: s for s in schedules if s.task.kind == "denoise"}


def scaled(schedule: LearnedSchedule, task: Task) -> LearnedSchedule:
    """A schedule for a noise level beyond those that were learned: all t_i and eta_i in proportion to sigma^2."""
    ratio = task.level / schedule.task.level
    t, eta = (ratio**2 * values for values in (schedule.t, schedule.eta))
    origin = {"scaled": str(schedule.task)}
    return _made(t.clamp(*schedule.t_range), eta.clamp(*ETA_RANGE), schedule, task, origin)


def between(low: LearnedSchedule, high: LearnedSchedule, task: Task) -> LearnedSchedule:
    """A schedule for a noise level between those of two learned ones: log t_i and log eta_i linear in log sigma.

    Raises ValueError for different numbers of steps or priors.
    """
    if len(low) != len(high) or low.prior_sha256 != high.prior_sha256:
        raise ValueError(
            "schedules can be mixed only if they are of one prior and have the same number of steps"
        )
    weight = math.log(task.level / low.task.level) / math.log(high.task.level / low.task.level)
    t, eta = (getattr(low, k) ** (1 - weight) * getattr(high, k) ** weight for k in ("t", "eta"))
    return _made(t, eta, low, task, {"between": [str(low.task), str(high.task)]})


def _made(t: Tensor, eta: Tensor, like: LearnedSchedule, task: Task, origin: dict) -> LearnedSchedule:
    kept = {"t_range": like.t_range, "prior": like.prior, "prior_sha256": like.prior_sha256}
    return LearnedSchedule(t, eta, task=task, provenance=origin, **kept).requires_grad_(False)
