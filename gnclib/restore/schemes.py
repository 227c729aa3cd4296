r"""The ways to use a prior on a measurement (Kobler & Pock 2023, section 4), by name.

    mmse        x = y - sigma^2 grad_1 R(y, sigma^2), one step, no data term (Tweedie); denoising only
    symmetric   the same step of the energy averaged over turns and reflections (:mod:`gnclib.restore.symmetry`), ours
    gnc         GNC flow (eq. 9) along a predefined schedule of ours
    linear      GNC flow with the paper's: t_i linear down to the smallest t of the prior, eta_i = t_i
    joint       Algorithm 2: descent on D(x) + R(x, t) in x and t
    learned     eq. 9 with a schedule that was learned for this prior and task (:mod:`gnclib.restore.learned`)
    finetuned   the same with a prior that was fine-tuned together with its schedule

They are in :data:`SCHEMES`; :func:`load` makes one ready for measurements. The predefined schedules
(:func:`predefined`) are ours, chosen on validation images outside of BSDS68 with the shipped R_1: logarithmic down to
the smallest t of the prior, and

    denoising    t_0 = sigma^2,  eta_i = t_i - t_{i+1}    (:func:`gnclib.restore.schedules.step_sizes`, "increment")
    inpainting   t_0 = 0.03,     eta_i = t_i              ("full", the paper's)

"linear" begins at the same t_0. It goes to the minimum of D + R(., t_min), which for denoising is smoother than the
best estimate. Without noise there is no such conflict, and long steps carry known pixels into the holes faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gnclib.checks import as_device
from gnclib.deep import load_prior
from gnclib.foe import derived
from gnclib.restore import (
    SYMMETRIES,
    Denoising,
    Energy,
    Inpainting,
    LearnedSchedule,
    State,
    Symmetrised,
    Task,
    Tiled,
    as_count,
    find_schedule,
    gnc_flow,
    joint_descent,
    linear_schedule,
    log_schedule,
    step_sizes,
)

#: t_0 of inpainting, in learning, too: from sigma_max^2 = 1 and mid grey R_1 learned a schedule 0.2 dB worse
FIRST_INPAINTING = 0.03


@dataclass(frozen=True)
class Scheme:
    """A scheme with its prior, ready for measurements of one task; made by :func:`load`."""

    name: str  # one of SCHEMES
    prior: Energy  # possibly Tiled or Symmetrised
    task: Task
    steps: int  # how many States it yields
    schedule: LearnedSchedule | None = None  # of "learned" and "finetuned"

    @property
    def evaluations(self) -> int:
        """How many gradients of the energy one restoration costs, a derivative in tau counted as one."""
        return {"joint": 2, "symmetric": len(SYMMETRIES)}.get(self.name, 1) * self.steps

    @property
    def device(self) -> torch.device:
        """Where measurements have to lie."""
        return next(self.prior.parameters()).device

    def states(self, data: Denoising | Inpainting, start: Tensor | None = None) -> Iterator[State]:
        """The iterates for a measurement; the last one is the result. Raises ValueError for data of another task."""
        if not isinstance(data, Denoising if self.task.kind == "denoise" else Inpainting):
            raise ValueError(f"this scheme is for the task {self.task}, got {type(data).__name__} data")
        if self.schedule is not None:
            return self.schedule.states(self.prior, data, start)
        if self.name in ("mmse", "symmetric"):
            return gnc_flow(self.prior, [self.task.sigma**2], start=data.start() if start is None else start)
        if self.name == "joint":
            return joint_descent(self.prior, self.prior.sigma_max**2, data, start, steps=self.steps)
        if self.name == "linear":
            return gnc_flow(
                self.prior, linear_schedule(*_ends(self.prior, self.task), self.steps), data, start
            )
        ts, etas = predefined(self.prior, self.task, self.steps)
        return gnc_flow(self.prior, ts, data, start, step_sizes=etas)


#: of the convolutions between channels
PRECISIONS = ("float32", "bf16")
#: the schemes by their names, with their numbers of steps by the kind of task; None is that of the schedule
SCHEMES = {
    "mmse": {"denoise": 1},
    "symmetric": {"denoise": 1},
    "gnc": {"denoise": 10, "inpaint": 30},
    "linear": {"denoise": 64, "inpaint": 30},
    "joint": {"denoise": 12, "inpaint": 60},
    "learned": {"denoise": None, "inpaint": None},
    "finetuned": {"denoise": None, "inpaint": None},
}
#: those that take another number of steps as well
FREE = ("gnc", "linear", "joint")


def load(
    name: str,
    prior: str,
    task: Task,
    steps: int | None = None,
    *,
    device: torch.device | str = "cpu",
    tile: int | None = None,
    precision: str = "float32",
) -> Scheme:
    """A scheme by its name.

    What was learned for a prior, a shipped one ("R1"), a folder, or a hub name, is looked for beside it.

    Parameters
    ----------
    steps : int, optional
        Of "gnc", "linear" and "joint", which have a default; the others have a number of their own.
    tile : int, optional
        Side of the tiles of :class:`gnclib.restore.tiles.Tiled`; None for whole images.
    precision : {"float32", "bf16"}
        Of the gradient's convolutions between channels; R1 and C1 have none.

    Raises
    ------
    ValueError
        Unknown scheme or precision, one that cannot do the task, a noise level outside of the prior's range, a number
        of steps where it is not free or below 1, a schedule learned with other weights, a device that is not there.
    FileNotFoundError
        No such prior, or no schedule was learned for this prior and task.
    ConnectionError, ImportError
        A prior on the hub that cannot be fetched (:mod:`gnclib.foe.hub`).
    """
    if name not in SCHEMES:
        raise ValueError(f"unknown scheme {name!r}: choose one of {', '.join(SCHEMES)}")
    if task.kind not in SCHEMES[name]:
        able = ", ".join(other for other, kinds in SCHEMES.items() if task.kind in kinds)
        raise ValueError(f"the scheme {name!r} cannot {task.kind}: choose one of {able}")
    if steps is not None and name not in FREE:
        raise ValueError(f"the scheme {name!r} has a number of steps of its own: leave steps away")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    found = as_device(device)
    schedule = None
    if name in ("learned", "finetuned"):
        tuned = name == "finetuned"
        place = derived(prior, f"finetuned-{task}" if tuned else str(task))
        schedule = find_schedule(place, task)
        prior = place if tuned else prior  # a fine-tuned prior lies beside its schedule
    model = load_prior(prior)
    if task.kind == "denoise":
        check_sigma(task.level, model)
    if schedule is not None:
        schedule.demand_fit(model)
        steps = len(schedule)
    count = as_count(SCHEMES[name][task.kind] if steps is None else steps)
    model = model.to(found)
    model.bf16 = precision == "bf16"
    energy = model if tile is None else Tiled(model, tile)
    return Scheme(name, Symmetrised(energy) if name == "symmetric" else energy, task, count, schedule)


def predefined(prior: Energy, task: Task, steps: int) -> tuple[Tensor, Tensor]:
    """t_i and eta_i of the predefined schedule, float64 (I,) each; see the module.

    With sigma = sigma_min there is nowhere to go: all t_i are t_min, and all but the last step have length 0, which
    stands here as the smallest double.
    """
    t_first, t_min = _ends(prior, task)
    ts = log_schedule(t_first, t_min, steps)
    if task.kind != "denoise":
        return ts, step_sizes(ts, "full")
    ts = ts.clamp(min=t_min).cummin(0).values  # close to t_min the logarithms round
    return ts, step_sizes(ts, "increment").clamp(min=torch.finfo(ts.dtype).tiny)


def _ends(prior: Energy, task: Task) -> tuple[float, float]:
    """The first and the last t of the predefined schedules."""
    t_min = prior.sigma_min**2
    first = max(task.sigma**2, t_min) if task.kind == "denoise" else min(FIRST_INPAINTING, prior.sigma_max**2)
    return first, t_min


def check_sigma(level: float, prior: Energy) -> None:
    """Raise ValueError unless a noise level of 0..255, over 255, lies in the range of the prior, up to rounding."""
    low, high = 255 * prior.sigma_min, 255 * prior.sigma_max
    if not low * (1 - 1e-6) <= level <= high * (1 + 1e-6):  # 2.55 / 255 and 0.01 are two numbers
        raise ValueError(
            f"sigma {level:g} is outside of this prior's range, {low:.3g} to {high:.3g} (in grey levels of 0..255)"
        )
