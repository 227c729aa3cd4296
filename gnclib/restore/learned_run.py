"""How a schedule is learned: training pairs, the loss, checkpoints, validation, what is exported (``gnc learn``).

For clean patches x, a measurement of each (:class:`gnclib.restore.learned.Task`) and x_I from eq. (9) of
Kobler & Pock 2023,

    minimise  E || x_I(t, eta) - x ||^2 / n   over t_1 .. t_I, eta_1 .. eta_I

by Adam with cosine annealing on random patches of BSDS500 train + test; a patch is continued by reflection, as every
image is. The prior stays as it is, or is fine-tuned as well (section 5: "the whole prior"): its kernels and potentials
then get the same loss with a learning rate of their own. The result is still an energy, but no longer the one of
score matching: it serves this task with this schedule.

:func:`drive` is a generator and prints nothing. A folder of a run holds

    checkpoint.safetensors    all that the run needs to go on, from its start
    log.csv                   a row every so many iterations, the first one before any
    schedule.json, README.md  what was learned and its card, when the run is finished
    model.safetensors, config.json    the prior, if it was fine-tuned

Files are replaced atomically, the log before the checkpoint. A run that is killed at any moment and resumed ends with
the same numbers to the bit on the same machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from gnclib.foe import WEIGHTS, FieldsOfExperts
from gnclib.images import data
from gnclib.images.metrics import psnr
from gnclib.io import files, reading
from gnclib.io import run as io_run
from gnclib.restore.flow import last, log_schedule
from gnclib.restore.learned import SCHEDULE, STARTS, LearnedSchedule, Task, weights_sha256
from gnclib.restore.learned_state import LearnConfig, LearnState, load_checkpoint, save_checkpoint
from gnclib.restore.schemes import check_sigma
from gnclib.score import card, training_set
from gnclib.score.training import learning_rate

LOG = "log.csv"
COLUMNS = "step,loss,lr,validation_psnr,seconds"
#: x_0 of inpainting in the words of a card
X_0 = {
    "start": "missing pixels at mid grey",
    "guess": "missing pixels guessed coarse to fine, `gnclib.restore.operators.first_guess`",
}
#: the last learning rate is this part of the first
FINAL = 0.01
#: where a schedule for inpainting begins; from sigma_max^2 = 1 and mid grey R_1 learned one that was 0.2 dB worse
FIRST_INPAINTING = 0.03


@dataclass(frozen=True)
class Step:
    """One update: its number, its loss (squared error per pixel), and t and eta after it, float64 (I,)."""

    step: int
    loss: float
    t: Tensor
    eta: Tensor


@dataclass(frozen=True)
class Row:
    """One row of the log.

    Attributes:
        step: after how many updates; loss: mean since the last row, nan in the first one; lr: of the schedule.
        validation: mean PSNR in dB of x_I on the upper left 256 x 256 pixels of the first eight images of val outside
            of BSDS68, or of the images held out of others; image k with noise or mask of seed k, nothing clipped.
        seconds: that the run has taken so far, pauses not counted.
    """

    step: int
    loss: float
    lr: float
    validation: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.step},{self.loss:.8f},{self.lr:.3e},{self.validation:.4f},{self.seconds:.0f}"


def start(
    prior: str,
    task: Task,
    config: LearnConfig,
    *,
    steps: int = 10,
    t_first: float | None = None,
    schedule: str = "",
    device: torch.device | str = "cpu",
) -> LearnState:
    """A new run.

    Args:
        prior: a shipped name ("R1") or a folder.
        steps: I, for a schedule that begins as the GNC flow, eta_i = t_i: t_i logarithmic down to sigma_min^2.
        t_first: its t_1, in [sigma_min^2, sigma_max^2]; None for sigma_max^2, for inpainting :data:`FIRST_INPAINTING`.
            Denoising needs no more than a few times sigma^2: first steps far above do next to nothing, and learning
            leaves them there.
        schedule: a learned one to set out from instead, of this prior and task: a shipped name or a folder.
        device: where to compute; all random numbers are drawn on the CPU.

    Raises:
        ValueError: a noise level or t_first outside of the range of the prior, steps < 1, or a schedule of other
            weights or for another task. FileNotFoundError: no such prior or schedule.
    """
    model = FieldsOfExperts.from_pretrained(prior).to(device)
    low, high = model.config.sigma_min, model.config.sigma_max
    if task.kind == "denoise":
        check_sigma(task.level, low, high)
    origin = {"prior": Path(prior).resolve().name, "prior_sha256": weights_sha256(model)}
    if schedule:
        begun = LearnedSchedule.from_pretrained(schedule)
        begun.demand_fit(model)
        if begun.task != task:
            raise ValueError(f"the schedule {schedule} was learned for {begun.task}, not for {task}")
        t, eta, x_0 = begun.t, begun.eta, begun.x_0
        rule = f"the learned schedule {Path(schedule).resolve().name}"
    else:
        if t_first is None:
            t_first = high**2 if task.kind == "denoise" else min(FIRST_INPAINTING, high**2)
        if not low**2 <= t_first <= high**2:
            raise ValueError(
                f"t_0 must lie in the range of this prior, {low**2:g} to {high**2:g}, got {t_first:g}"
            )
        t, eta, x_0 = log_schedule(t_first, low**2, steps), None, STARTS[task.kind][-1]
        rule = f"t_i logarithmic from {t_first:g} to {low**2:g}, eta_i = t_i"
    learned = LearnedSchedule(t, eta, t_range=(low**2, high**2), task=task, x_0=x_0, **origin)
    return LearnState(learned, model, config, record={"start": rule, "learned_from": origin["prior_sha256"]})


def learning(state: LearnState, images) -> Iterator[Step]:
    """Learn on random patches of ``images`` and yield a :class:`Step` after each update.

    Args:
        state: changed in place.
        images: dict or list of (1, 1, H, W) images, from :func:`gnclib.images.data.training_images` for a real
        schedule.

    Raises:
        ValueError: an image of BSDS68 or of val among ``images``, or patches that do not fit.
        FloatingPointError: the iterates, the loss or its gradient are no longer finite; the parameters are then as
            before that update.
    """
    config, need = state.config, state.model.config.margin + 1
    if config.patch < need:
        raise ValueError(f"patches of {config.patch} pixels are too small: this prior needs {need} or more")
    if hasattr(images, "keys"):
        data.refuse_validation(images.keys())
    sampler = data.PatchSampler(images, config.patch, state.generator)
    rates = (config.lr, config.lr_prior)
    while state.step < config.iterations:
        for group, first in zip(state.optimizer.param_groups, rates, strict=False):
            group["lr"] = learning_rate(first, FINAL * first, state.step, config.iterations)
        loss = _gradient(state, sampler.sample(config.batch).to(state.model.offset))
        state.optimizer.step()
        state.schedule.project()
        if config.lr_prior:
            state.model.project()
        state.step += 1
        yield Step(state.step, loss, state.schedule.t, state.schedule.eta)


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
    if not all(bool(p.grad.isfinite().all()) for p in trained):
        raise FloatingPointError(f"the gradient of the loss is not finite {at}")
    return loss.item()


# a run in a folder -------------------------------------------------------------------------------------------------


def drive(
    state: LearnState, folder: str | Path, *, every: int = 100, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Step, Row | None]]:
    """Learn to the end on the images that the settings name; yield each step, with the row of the log it brought.

    Every ``every`` updates and at the end: a validation, a row, a checkpoint. After the last one the result is
    exported. A generator that is closed, or whose consumer leaves its loop, writes a checkpoint first.

    Args:
        state: from :func:`start` or :func:`load_checkpoint`; changed in place.
        folder: of the run; made if need be.
        every: >= 1.
        stop: asked after each update; when it says yes a checkpoint is written and the generator ends.

    Raises:
        ValueError: ``every`` < 1; or what :func:`learning` raises. OSError: a file cannot be written; its older
            version is intact.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"the updates between two rows of the log must be a positive integer, got {every!r}")
    images = training_set.load(state)
    keeper = _Keeper(state, Path(folder), images.held_out)
    for step in learning(state, images.train):
        ended = state.step == state.config.iterations
        keeper.losses.append(step.loss)
        row = keeper.row() if ended or state.step % every == 0 else None
        try:
            yield step, row
        except GeneratorExit:
            keeper.checkpoint()
            raise
        if not ended and stop():
            keeper.checkpoint()
            return
    export(folder)


class _Keeper:
    """What surrounds learning: validation, log, clock, checkpoints."""

    def __init__(self, state: LearnState, folder: Path, held_out: list[Tensor]):
        self.state, self.folder = state, folder
        for remainder in folder.glob(".*.tmp"):  # of a run that was killed while it wrote a file
            remainder.unlink()
        self.held_out = [
            (x, state.schedule.task.measure(x, torch.Generator().manual_seed(k)))
            for k, x in enumerate(x.to(state.model.offset) for x in held_out)
        ]
        self.rows = rows(folder, state.step) if state.step else []
        self.losses: list[float] = state.record.setdefault("losses", [])
        self.before, self.started = state.record.get("seconds", 0.0), time.monotonic()
        card.remember(state)
        if not self.rows:
            task = state.schedule.task
            if task.kind == "denoise":
                with torch.no_grad():
                    single = [
                        (x, d.y - task.sigma**2 * state.model.grad(d.y, task.sigma**2))
                        for x, d in self.held_out
                    ]
                state.record["validation_mmse"] = fmean(psnr(estimate, x).item() for x, estimate in single)
            self.row()

    def row(self) -> Row:
        """Validate, write the log and the checkpoint."""
        state = self.state
        ends = (last(state.schedule.states(state.model, measured)).x for _, measured in self.held_out)
        quality = fmean(psnr(end, x).item() for end, (x, _) in zip(ends, self.held_out, strict=True))
        loss = fmean(self.losses) if self.losses else math.nan
        self.losses.clear()
        rate = state.optimizer.param_groups[0]["lr"]
        self.rows.append(Row(state.step, loss, rate, quality, self._clock()))
        files.write_text(self.folder / LOG, "\n".join([COLUMNS, *map(str, self.rows)]) + "\n")
        self.checkpoint()
        return self.rows[-1]

    def checkpoint(self) -> None:
        self.state.record["seconds"] = round(self._clock(), 1)
        save_checkpoint(self.state, self.folder)

    def _clock(self) -> float:
        return self.before + time.monotonic() - self.started


def rows(folder: str | Path, step: int | None = None) -> list[Row]:
    """The rows of the log in ``folder``, up to that of ``step``. Raises ValueError for a damaged one."""
    log = Path(folder) / LOG
    found = io_run.read_log(log, COLUMNS) if log.is_file() else []
    return [Row(int(first), *rest) for first, *rest in found if step is None or first <= step]


# what is exported --------------------------------------------------------------------------------------------------


def export(folder: str | Path) -> LearnedSchedule:
    """Write what the checkpoint in ``folder`` has learned: schedule.json, its card, and a fine-tuned prior.

    Raises:
        FileNotFoundError: there is no checkpoint. ValueError: it cannot be read. OSError: a file cannot be written.
    """
    folder, state = Path(folder), load_checkpoint(folder)
    learned, log = state.schedule, rows(folder, state.step)
    validation = {"initial schedule": log[0].validation, "learned": log[-1].validation}
    if "validation_mmse" in state.record:
        validation = {"one-step MMSE": state.record["validation_mmse"], **validation}
    learned.provenance = card.provenance(state, state.record["seconds"]) | {
        "parameters": sum(p.numel() for group in state.optimizer.param_groups for p in group["params"]),
        "hours": round(state.record["seconds"] / 3600, 3),
        "start": state.record["start"],
        "learned_from": state.record["learned_from"],
        "validation_psnr": {name: round(value, 4) for name, value in validation.items()},
    }
    if state.config.lr_prior:
        state.model.save_pretrained(folder)
        learned.prior_sha256 = weights_sha256(state.model)
    learned.save_pretrained(folder)
    files.write_text(folder / "README.md", _card(folder))
    return learned


def _named(prior: str, digest: str) -> str:
    """The name of a prior in a card; one of one's own that is called like a shipped one is told apart."""
    shipped = WEIGHTS / prior / "model.safetensors"
    other = shipped.is_file() and files.sha256(shipped) != digest
    return f"`{prior}`" + (" (of one's own, not the one that comes with gnclib)" if other else "")


def _card(folder: Path) -> str:
    """README.md from schedule.json."""
    values = reading.read_json(folder / SCHEDULE, "learned schedule", dict)
    run, settings = values["provenance"], values["provenance"]["settings"]
    level, tuned = values.get("sigma_255"), settings["lr_prior"] > 0
    task = (
        f"denoising, sigma {level:g}/255"
        if level
        else f"inpainting, {values['missing']:.0%} of the pixels missing"
    )
    trained = f"{run['parameters']}" + (
        " (kernels and potentials as well)" if tuned else " (all t_i and eta_i)"
    )
    named = _named(values["prior"], run["learned_from"])
    weights = [("weights of the prior", f"SHA-256 {values['prior_sha256']}")]
    if tuned:
        weights.append(("fine-tuned from", f"{named}, SHA-256 {run['learned_from']}"))
    table = [
        ("task", task),
        ("prior", named + (", fine-tuned: model.safetensors beside this file" if tuned else "")),
        *weights,
        ("learned numbers", trained),
        ("training data", run["images"]),
        ("loss", "squared error of x_I per pixel, all pixels of the patches"),
        ("start", run["start"]),
        *([("x_0", X_0[values.get("x_0", "start")])] if not level else []),
        (
            "iterations",
            f"{run['iterations']} of batch {settings['batch']}, patches of side {settings['patch']}",
        ),
        (
            "optimiser",
            f"Adam, cosine from {settings['lr']:g} to {FINAL * settings['lr']:g} (tau and log eta)",
        ),
        *(
            [("", f"and from {settings['lr_prior']:g} to {FINAL * settings['lr_prior']:g} (prior)")]
            if tuned
            else []
        ),
        ("seed", settings["seed"]),
        ("time", f"{run['hours']} h"),
        ("machine", run["machine"]),
        ("software", f"{run['software']}; revision {run['revision']}"),
        *((f"validation, {name}", f"{value:.2f} dB") for name, value in run["validation_psnr"].items()),
    ]
    tags = ("image-restoration", "denoising" if level else "inpainting", "learned-schedule")
    held_out = run.get("held_out", "the first 8 images of val outside of BSDS68")
    lines = [
        *card.front_matter(*tags, bsds500="held_out" not in run),
        f"# {folder.resolve().name}: a learned schedule of {len(values['t'])} steps",
        "",
        "t_i and eta_i of x_i = prox_{eta_i D}(x_{i-1} - eta_i grad R(x_{i-1}, t_i)) (Kobler & Pock 2023, eq. 9),",
        "learned. Written by `gnclib.restore.learned_run` from `schedule.json`.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in table),
        "",
        f"Validation: mean PSNR over {held_out}, of each the upper left 256 x 256 pixels,",
        "noise or mask of image k with seed k, nothing clipped.",
        "",
        "| i | t_i | eta_i |",
        "|---|---|---|",
        *(
            f"| {i} | {t:.4g} | {eta:.4g} |"
            for i, (t, eta) in enumerate(zip(values["t"], values["eta"], strict=True), 1)
        ),
    ]
    return "\n".join(lines) + "\n"
