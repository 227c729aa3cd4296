r"""The ways to use a prior on a measurement (Kobler & Pock 2023, section 5), by name.

    mmse        x = y - sigma^2 grad_1 R(y, sigma^2), one step, no data term (Tweedie); denoising only
    gnc         GNC flow (eq. 9) along a predefined schedule
    joint       Algorithm 2: descent on D(x) + R(x, t) in x and t
    learned     eq. 9 with a learned schedule, of the same prior and task; :func:`between` two noise levels, a mixture,
                just beyond them the nearest one :func:`scaled`
    finetuned   the same with a prior that was fine-tuned together with its schedule

A :class:`Scheme` has all that it needs and takes data terms. The predefined schedules are ours, chosen on validation
images outside of BSDS68 with the shipped R_1 (:func:`predefined`): logarithmic down to the smallest t of the prior, and

    denoising    t_0 = sigma^2,  eta_i = t_i - t_{i+1}    (:func:`gnclib.restore.schedules.step_sizes`, "increment")
    inpainting   t_0 = 0.03,     eta_i = t_i              ("full", the paper's)

The paper's own (linear, eta_i = t_i) goes to the minimum of D + R(., t_min), which for denoising is smoother than the
best estimate. Without noise there is no such conflict, and long steps carry known pixels into the holes faster.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gnclib.checks import as_device
from gnclib.foe import WEIGHTS, FieldsOfExperts, hub
from gnclib.restore.flow import Energy, State, gnc_flow
from gnclib.restore.joint import joint_descent
from gnclib.restore.learned import ETA_RANGE, LearnedSchedule, Task
from gnclib.restore.operators import Denoising, Inpainting
from gnclib.restore.schedules import as_count, log_schedule, step_sizes
from gnclib.restore.tiles import Tiled

__all__ = ["SCHEMES", "STEPS", "Scheme", "between", "check_sigma", "load", "predefined", "scaled"]

SCHEMES = ("mmse", "gnc", "joint", "learned", "finetuned")
#: steps of the schemes whose number of steps is free, by the kind of task
STEPS = {"gnc": {"denoise": 10, "inpaint": 30}, "joint": {"denoise": 12, "inpaint": 60}}
#: how far beyond a learned noise level its schedule is scaled
NEAR = 1.25
#: t_0 of the predefined schedule for inpainting
T_FIRST_INPAINTING = 0.03


@dataclass(frozen=True)
class Scheme:
    """A scheme with its prior, ready for measurements of one task; made by :func:`load`.

    Attributes:
        name: one of :data:`SCHEMES`.
        prior: the energy, possibly :class:`gnclib.restore.tiles.Tiled`.
        task: what it solves.
        steps: how many States it yields.
        schedule: of "learned" and "finetuned".
    """

    name: str
    prior: Energy
    task: Task
    steps: int
    schedule: LearnedSchedule | None = None

    @property
    def evaluations(self) -> int:
        """How many gradients of the energy one restoration costs, a derivative in tau counted as one."""
        return 2 * self.steps if self.name == "joint" else self.steps

    @property
    def device(self) -> torch.device:
        """Where measurements have to lie."""
        model = self.prior.prior if isinstance(self.prior, Tiled) else self.prior
        return next(model.parameters()).device

    def states(self, data: Denoising | Inpainting, start: Tensor | None = None) -> Iterator[State]:
        """The iterates for a measurement; the last one is the result. Raises ValueError for data of another task."""
        wanted = Denoising if self.task.kind == "denoise" else Inpainting
        if not isinstance(data, wanted):
            raise ValueError(f"this scheme is for the task {self.task}, got {type(data).__name__} data")
        if self.name == "mmse":
            return gnc_flow(self.prior, [self.task.sigma**2], start=data.start() if start is None else start)
        if self.name == "joint":
            return joint_descent(self.prior, self.prior.sigma_max**2, data, start, steps=self.steps)
        if self.schedule is not None:
            return self.schedule.states(self.prior, data, start)
        ts, etas = predefined(self.prior, self.task, self.steps)
        return gnc_flow(self.prior, ts, data, start, step_sizes=etas)


def predefined(prior: Energy, task: Task, steps: int) -> tuple[Tensor, Tensor]:
    """t_i and eta_i of the predefined schedule, float64 (I,) each; see the module.

    With sigma = sigma_min there is nowhere to go: all t_i are t_min, and all but the last step have length 0, which
    stands here as the smallest double.
    """
    t_min = prior.sigma_min**2
    if task.kind != "denoise":
        ts = log_schedule(min(T_FIRST_INPAINTING, prior.sigma_max**2), t_min, steps)
        return ts, step_sizes(ts, "full")
    ts = log_schedule(max(task.sigma**2, t_min), t_min, steps)
    ts = ts.clamp(min=t_min).cummin(0).values  # close to t_min the logarithms round
    return ts, step_sizes(ts, "increment").clamp(min=torch.finfo(ts.dtype).tiny)


def check_sigma(levels: float, prior: Energy) -> None:
    """Raise ValueError unless a noise level in 8-bit grey levels, over 255, lies in the range of the prior.

    The ends count as inside up to a relative rounding of 1e-6: 2.55 / 255 and 0.01 are two numbers.
    """
    low, high = 255 * prior.sigma_min, 255 * prior.sigma_max
    if not low * (1 - 1e-6) <= levels <= high * (1 + 1e-6):
        raise ValueError(
            f"sigma {levels:g} is outside of this prior's range, {low:.3g} to {high:.3g} (in grey levels of 0..255)"
        )


def load(
    name: str,
    prior: str,
    task: Task,
    steps: int | None = None,
    *,
    device: torch.device | str = "cpu",
    tile: int | None = None,
) -> Scheme:
    """A scheme by its name.

    Args:
        name: one of :data:`SCHEMES`.
        prior: a shipped prior ("R1"), a folder, or a hub name; what was learned for it is looked for beside it.
        task: denoising at a noise level, or inpainting.
        steps: of "gnc" and "joint" (:data:`STEPS` where not given); "mmse" takes one, learned schedules have their own.
        device: where to compute, one that torch finds here.
        tile: side of the tiles of :class:`gnclib.restore.tiles.Tiled`, or None for whole images.

    Raises:
        ValueError: unknown scheme, one that cannot do the task, a noise level outside of the prior's range, a number of
            steps where it is not free or below 1, a schedule learned with other weights, a device that is not there.
        FileNotFoundError: no such prior, or no schedule was learned for this prior and task.
        ConnectionError, ImportError: a prior on the hub that cannot be fetched (:mod:`gnclib.foe.hub`).
    """
    if name not in SCHEMES:
        raise ValueError(f"unknown scheme {name!r}: choose one of {', '.join(SCHEMES)}")
    if steps is not None and name not in STEPS:
        raise ValueError(f"the scheme {name!r} has a number of steps of its own: leave it away")
    if name == "mmse" and task.kind != "denoise":
        raise ValueError(
            "one MMSE step removes noise, it fills no holes: choose another scheme for inpainting"
        )
    found = as_device(device)
    schedule, source = None, prior
    if name == "learned":
        schedule = _schedule(hub.derived(prior, str(task)), task)
    elif name == "finetuned":
        source = hub.derived(prior, f"finetuned-{task}")
        schedule = _schedule(source, task)
    model = FieldsOfExperts.from_pretrained(source)
    if schedule is not None:
        schedule.demand_fit(model)
    if task.kind == "denoise":
        check_sigma(task.level, model)
    if schedule is not None:
        count = len(schedule)
    elif name == "mmse":
        count = 1
    else:
        count = as_count(STEPS[name][task.kind] if steps is None else steps)
    model = model.to(found)
    return Scheme(name, model if tile is None else Tiled(model, tile), task, count, schedule)


def _schedule(name: str | Path, task: Task) -> LearnedSchedule:
    """The schedule ``name`` of the package, a folder or the hub; between two noise levels, one made from both."""
    try:
        schedule = LearnedSchedule.from_pretrained(name)
    except FileNotFoundError:
        levels = {} if hub.is_hub_name(name) else _learned_levels(str(name), task)
        below, above = (
            pick([v for v in levels if (v < task.level) == less], default=None)
            for pick, less in ((max, True), (min, False))
        )
        near = [v for v in levels if task.level / NEAR <= v <= NEAR * task.level]
        if (below is None or above is None) and near:
            return scaled(levels[min(near, key=lambda v: abs(math.log(v / task.level)))], task)
        if below is None or above is None:
            known = sorted(p.parent.name for p in WEIGHTS.glob("*/schedule.json"))
            raise FileNotFoundError(
                f"nothing was learned for {name}, nor for noise levels below and above: 'gnc learn' learns into a"
                f" folder of that name, beside the prior; the package has, for its priors, {', '.join(known) or 'none'}"
            ) from None
        schedule = between(levels[below], levels[above], task)
    if str(schedule.task) != str(task):  # 25.000001 is 25
        raise ValueError(f"the schedule {name} was learned for {schedule.task}, not for {task}")
    return schedule


def _learned_levels(name: str, task: Task) -> dict[float, LearnedSchedule]:
    """The schedules of the same prior for denoising, by their noise level."""
    if task.kind != "denoise" or not name.endswith(f"-{task}"):
        return {}
    stem = Path(name.removesuffix(str(task)))
    places = (
        [stem.parent, WEIGHTS] if stem.name == str(stem) else [stem.parent]
    )  # the package has the last word
    pattern = f"{glob.escape(stem.name)}denoise-*/schedule.json"
    folders = [file for place in places for file in sorted(place.glob(pattern))]
    found = [LearnedSchedule.from_pretrained(p.parent) for p in folders]
    return {s.task.level: s for s in found if s.task.kind == "denoise"}


def scaled(schedule: LearnedSchedule, task: Task) -> LearnedSchedule:
    """A schedule for a noise level beyond those that were learned: all t_i and eta_i in proportion to sigma^2.

    Raises ValueError for another task than denoising, and for levels more than a factor :data:`NEAR` apart.
    """
    ratio = task.level / schedule.task.level
    if {schedule.task.kind, task.kind} != {"denoise"} or not 1 / NEAR <= ratio <= NEAR:
        raise ValueError(f"{schedule.task} is too far from {task} to be scaled to it")
    low, high = schedule.t_range
    t, eta = ratio**2 * schedule.t, ratio**2 * schedule.eta
    return LearnedSchedule(
        t.clamp(low, high), eta.clamp(*ETA_RANGE), t_range=schedule.t_range, task=task, prior=schedule.prior,
        prior_sha256=schedule.prior_sha256, provenance={"scaled": str(schedule.task)},
    ).requires_grad_(False)  # fmt: skip


def between(low: LearnedSchedule, high: LearnedSchedule, task: Task) -> LearnedSchedule:
    """A schedule for a noise level between those of two learned ones: log t_i and log eta_i linear in log sigma.

    Raises:
        ValueError: different numbers of steps or priors, or a level that is not between theirs.
    """
    if len(low) != len(high) or low.prior_sha256 != high.prior_sha256:
        raise ValueError(
            "schedules can be mixed only if they are of one prior and have the same number of steps"
        )
    denoising = {low.task.kind, task.kind, high.task.kind} == {"denoise"}
    if not (denoising and low.task.level <= task.level <= high.task.level > low.task.level):
        raise ValueError(f"{task} does not lie between {low.task} and {high.task}")
    weight = math.log(task.level / low.task.level) / math.log(high.task.level / low.task.level)
    t, eta = (getattr(low, k) ** (1 - weight) * getattr(high, k) ** weight for k in ("t", "eta"))
    return LearnedSchedule(
        t, eta, t_range=low.t_range, task=task, prior=low.prior, prior_sha256=low.prior_sha256,
        provenance={"between": [str(low.task), str(high.task)]},
    ).requires_grad_(False)  # fmt: skip
