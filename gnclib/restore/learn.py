"""Learning of schedules (``gnc learn``).

For clean patches x, a measurement of each (:class:`gnclib.restore.operators.Task`) and x_I from eq. (9) of
Kobler & Pock 2023,

    minimise  E || x_I(t, eta) - x ||^2 / n   over t_1 .. t_I, eta_1 .. eta_I

by Adam with cosine annealing on random patches of BSDS500 train + test; a patch is continued by reflection, as every
image is. The prior stays as it is, or is fine-tuned as well (section 5: "the whole prior"): its kernels and potentials
then get the same loss with a learning rate of their own. The result is still an energy, but no longer the one of
score matching: it serves this task with this schedule.

:func:`drive` is a generator and prints nothing. Beside checkpoint and log (:mod:`gnclib.io.run`), which has a row
before the first update, too, the folder of a finished run gets

    schedule.json, README.md          what was learned and its card
    model.safetensors, config.json    the prior, if it was fine-tuned
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, NotRequired

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from gnclib import io, restore
from gnclib.deep import configuration, kind_of, load_prior
from gnclib.foe import LearnedEnergy
from gnclib.images import PatchSampler, psnr, refuse_validation
from gnclib.restore import STARTS, LearnedSchedule, Task, check_sigma, last, log_schedule, weights_sha256
from gnclib.score import LEARN_LAST, LearnConfig, card, learning_rate, mmse, training_set


@dataclass(frozen=True)
class Step:
    """One update: its number and its loss (squared error per pixel)."""

    step: int
    loss: float


@dataclass(frozen=True)
class Row:
    """One row of the log; the validation is on images that are held out, image k with noise or mask of seed k."""

    COLUMNS: ClassVar[str] = "step,loss,lr,validation_psnr,seconds"
    step: int  # updates so far
    loss: float  # mean since the last row, nan in the first one
    lr: float  # of the schedule
    validation: float  # mean PSNR of x_I in dB, nothing clipped
    seconds: float  # that the run has taken so far, pauses not counted

    def __str__(self) -> str:
        return f"{self.step},{self.loss:.8f},{self.lr:.3e},{self.validation:.4f},{self.seconds:.0f}"


# the state -----------------------------------------------------------------------------------------------------------


@dataclass
class LearnState(io.State):
    """Everything that a run needs to go on: schedule and prior, beside what :class:`gnclib.io.State` has.

    The schedule is on the CPU; its provenance says how it began. The prior is on the device where the work is done, and
    trained as well if ``config.lr_prior`` > 0: by a second group of Adam. A checkpoint holds it also where it is not
    trained: a run does not depend on a file that may be replaced meanwhile.
    """

    schedule: LearnedSchedule
    model: LearnedEnergy
    config: LearnConfig

    def __post_init__(self) -> None:
        self.generator.manual_seed(self.config.seed)
        self.schedule.requires_grad_(True)
        self.model.requires_grad_(self.config.lr_prior > 0)
        groups = [{"params": list(self.schedule.parameters()), "lr": self.config.lr}]
        if self.config.lr_prior:  # c(tau) has no part in the gradient of the energy in y
            trained = [p for name, p in self.model.named_parameters() if name != "offset"]
            groups.append({"params": trained, "lr": self.config.lr_prior})
        self.optimizer = torch.optim.Adam(groups)

    @property
    def total(self) -> int:
        return self.config.iterations

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def modules(self) -> dict[str, nn.Module]:
        return {"schedule": self.schedule, "model": self.model}

    def about(self) -> dict[str, Any]:
        schedule = {name: getattr(self.schedule, name) for name in _Schedule.__annotations__}
        return {"model": asdict(self.model.config), "task": asdict(self.schedule.task), "schedule": schedule}


class _Origin(TypedDict):
    """How a schedule began: in words, the SHA-256 of the prior's weights, the PSNR in dB of the one-step estimate."""

    start: str
    learned_from: str
    validation_mmse: NotRequired[float]


class _Schedule(TypedDict):
    t_range: Annotated[list[float], Field(min_length=2, max_length=2)]
    x_0: str
    prior: str
    prior_sha256: str
    provenance: _Origin


class _Checkpoint(io.Checkpoint):
    model: dict[str, Any]
    task: TypedDict("_Task", {"kind": str, "level": float})
    schedule: _Schedule


def load_checkpoint(folder: str | Path, device: torch.device | str = "cpu") -> LearnState:
    """The state that :func:`gnclib.io.save_checkpoint` wrote, its prior on ``device``; errors as of :func:`export`."""

    def build(meta: dict[str, Any], parts: dict[str, dict[str, Tensor]]) -> LearnState:
        config = configuration(meta["model"])
        model = kind_of(config).from_state(config, parts.pop("model", {}))
        values, of = parts.pop("schedule", {}), meta["schedule"]
        shape = (values["first_t"].numel() if "first_t" in values else 0,)
        names = ("first_t", "first_eta", "shift_tau", "shift_log_eta")
        io.demand_tensors(values, dict.fromkeys(names, shape), "the schedule")
        schedule = LearnedSchedule(values["first_t"], values["first_eta"], task=Task(**meta["task"]), **of)
        schedule.load_state_dict(values)
        return LearnState(schedule, model.eval().to(device), LearnConfig(**meta["config"]))

    return io.load_checkpoint(folder, _Checkpoint, build)


def start(
    prior: str | Path,
    task: Task,
    config: LearnConfig,
    *,
    steps: int = 10,
    t_first: float | None = None,
    schedule: str | Path = "",
    device: torch.device | str = "cpu",
) -> LearnState:
    """A new run for one prior and one inverse problem.

    The schedule begins as the GNC flow of I ``steps``, eta_i = t_i: t_i logarithmic from ``t_first``, in the range of
    the prior (by default its end sigma_max^2, for inpainting ``FIRST_INPAINTING``), down to sigma_min^2. Denoising
    needs no more than a few times sigma^2: first steps far above do next to nothing, and learning leaves them there. Or
    it sets out from a learned ``schedule`` of this prior and task. All random numbers are drawn on the CPU.

    Raises ValueError: a number outside of its range, or a schedule of other weights or for another task;
    FileNotFoundError: there is no such prior or schedule.
    """
    model = load_prior(prior).to(device)
    low, high = model.sigma_min, model.sigma_max
    if task.kind == "denoise":
        check_sigma(task.level, model)
    if schedule:
        begun = LearnedSchedule.from_pretrained(schedule)
        begun.demand_fit(model)
        if begun.task != task:
            raise ValueError(f"the schedule {schedule} was learned for {begun.task}, not for {task}")
        t, eta, x_0 = begun.t, begun.eta, begun.x_0
        rule = f"the learned schedule {Path(schedule).resolve().name}"
    else:
        if t_first is None:
            t_first = high**2 if task.kind == "denoise" else min(restore.FIRST_INPAINTING, high**2)
        if not low**2 <= t_first <= high**2:
            raise ValueError(
                f"t_0 must lie in the range of this prior, {low**2:g} to {high**2:g}, got {t_first:g}"
            )
        t, eta, x_0 = log_schedule(t_first, low**2, steps), None, STARTS[task.kind][-1]
        rule = f"t_i logarithmic from {t_first:g} to {low**2:g}, eta_i = t_i"
    digest = weights_sha256(model)
    named = {"prior": Path(prior).resolve().name, "prior_sha256": digest}
    origin = _Origin(start=rule, learned_from=digest)
    learned = LearnedSchedule(
        t, eta, t_range=(low**2, high**2), task=task, x_0=x_0, provenance=origin, **named
    )
    return LearnState(learned, model, config)


# learning ------------------------------------------------------------------------------------------------------------


def learning(state: LearnState, images) -> Iterator[Step]:
    """Learn on random patches of ``images`` and yield a :class:`Step` after each update.

    The state is changed in place. Raises ValueError: an image of BSDS68 or of val among ``images``, or patches that do
    not fit; FloatingPointError: the iterates, the loss or its gradient are no longer finite; the parameters are then as
    before that update.
    """
    config, need = state.config, state.model.smallest
    if config.patch < need:
        raise ValueError(f"patches of {config.patch} pixels are too small: this prior needs {need} or more")
    if hasattr(images, "keys"):
        refuse_validation(images.keys())
    sampler = PatchSampler(images, config.patch, state.generator)
    rates, projected = (config.lr, config.lr_prior), state.model.projected
    while state.step < config.iterations:
        for group, first in zip(state.optimizer.param_groups, rates, strict=False):
            group["lr"] = learning_rate(first, LEARN_LAST * first, state.step, config.iterations)
        loss = _gradient(state, sampler.sample(config.batch).to(next(state.model.parameters())))
        state.optimizer.step()
        state.schedule.project()
        if config.lr_prior and projected:  # kernels that were free stay free
            state.model.project()
        if config.lr_prior:
            state.model.make_convex()
        state.step += 1
        yield Step(state.step, loss)


def _gradient(state: LearnState, x: Tensor) -> float:
    """Leave the gradient of the squared error per pixel in the parameters; return that error."""
    at = f"at step {state.step + 1}: learning stopped, and the last checkpoint is good"
    measured = state.schedule.task.measure(x, state.generator)
    try:
        loss = (state.schedule(state.model, measured) - x).square().mean()
    except ValueError as error:  # the prior refuses iterates that are not finite; all else was checked before
        raise FloatingPointError(f"the iterates diverge ({error}) {at}") from error
    state.optimizer.zero_grad()
    loss.backward()
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"the loss is {loss.item()} {at}")
    trained = (p for group in state.optimizer.param_groups for p in group["params"])
    if not all(bool(p.grad.isfinite().all()) for p in trained if p.grad is not None):
        raise FloatingPointError(f"the gradient of the loss is not finite {at}")
    return loss.item()


def drive(
    state: LearnState, folder: str | Path, *, every: int = 100, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Step, Row | None]]:
    """Learn to the end on the images that the settings name, and export the result: :func:`gnclib.io.run.drive`.

    The state, from :func:`start` or :func:`load_checkpoint`, is changed in place. Raises as :func:`learning` and
    :mod:`gnclib.score.training_set`, ValueError for ``every`` < 1, and OSError.
    """
    images = training_set.of_run(state)
    task, model, pairs = state.schedule.task, state.model, []
    for k, x in enumerate(x.to(next(model.parameters())) for x in images.held_out):
        pairs.append((x, task.measure(x, torch.Generator().manual_seed(k))))
    if task.kind == "denoise" and not state.step:
        once = fmean(psnr(mmse(model, measured.y, task.sigma**2), x).item() for x, measured in pairs)
        state.schedule.provenance["validation_mmse"] = once

    def validate() -> float:
        return fmean(psnr(last(state.schedule.states(model, data)).x, x).item() for x, data in pairs)

    keeper = io.Keeper(state, folder, Row, ("loss",), validate, every)
    if not keeper.rows:
        keeper.row()
    yield from io.drive(learning(state, images.train), state.total, keeper, stop)
    if state.step == state.total:
        export(folder)


def export(folder: str | Path) -> LearnedSchedule:
    """Write what the checkpoint in ``folder`` has learned: schedule.json, its card, and a fine-tuned prior.

    Raises FileNotFoundError or ValueError: there is no checkpoint, or it cannot be read; OSError: a file cannot be
    written.
    """
    folder, state = Path(folder), load_checkpoint(folder)
    learned, log = state.schedule, io.rows(folder, Row, state.step)
    validation = {"initial schedule": log[0].validation, "learned": log[-1].validation}
    if "validation_mmse" in learned.provenance:
        validation = {"one-step MMSE": learned.provenance["validation_mmse"], **validation}
    learned.provenance = {
        "parameters": sum(p.numel() for group in state.optimizer.param_groups for p in group["params"]),
        "images": training_set.TRAINED_ON,
        **io.told(state),
        "start": learned.provenance["start"],
        "learned_from": learned.provenance["learned_from"],
        "validation_psnr": {name: round(value, 4) for name, value in validation.items()},
    }
    if state.config.lr_prior:
        state.model.save_pretrained(folder)
        learned.prior_sha256 = weights_sha256(state.model)
    learned.save_pretrained(folder)
    card.write_of_schedule(folder)
    return learned
