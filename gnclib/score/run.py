"""A whole training run in a folder: checkpoints, log, validation, weights and model card.

:func:`drive` is a generator, like :func:`gnclib.score.training.training` which it drives: a notebook plots
what it yields, and ``gnc train`` (:mod:`gnclib.cli.train`) shows a progress bar. A folder holds

    checkpoint.safetensors    all that the run needs to go on; from the start of the run
    log.csv                   a row every so many steps: means of the loss parts since the last row, validation PSNR
    model.safetensors, config.json, training.json, README.md    the prior, what it is made from, and its model card

The last four are written at the end, or by :func:`export` from the checkpoint of a run that is not finished. Every
file is replaced atomically, and the log is written before the checkpoint: a run that is killed at any moment goes on
from its checkpoint and ends with the same weights, to the bit, and the same log but for the seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from gnclib.foe import WEIGHTS, FieldsOfExperts, hub
from gnclib.io import files
from gnclib.io import run as io_run
from gnclib.restore.evaluate import denoising_psnr
from gnclib.score import card, training_set
from gnclib.score.distributed import ALONE, Group
from gnclib.score.recipes import PRIORS
from gnclib.score.recipes import RECIPES as RECIPES
from gnclib.score.training import Step, TrainConfig, TrainState, load_checkpoint, save_checkpoint, training

LOG = "log.csv"
COLUMNS = card.COLUMNS


@dataclass(frozen=True)
class Row:
    """One row of the log.

    Attributes:
        step: after which iteration; loss, image, smoothing: means over the iterations since the last row, per pixel.
        lr: learning rate of kernels and potentials.
        validation: PSNR in dB of the one-step MMSE estimate at sigma 25/255, mean over the upper left 256 x 256 pixels
            of the first eight images of val outside of BSDS68, or of the images held out of others.
        seconds: that the run has taken so far, validation included, pauses between a stop and a resumption not.
    """

    step: int
    loss: float
    image: float
    smoothing: float
    lr: float
    validation: float
    seconds: float

    def __str__(self) -> str:
        parts = f"{self.step},{self.loss:.6f},{self.image:.6f},{self.smoothing:.6f},{self.lr:.3e}"
        return f"{parts},{self.validation:.3f},{self.seconds:.0f}"


def start(
    name: str, config: TrainConfig, *, warm_start: str | Path = "", device: torch.device | str = "cpu"
) -> TrainState:
    """A new run of R1, R2 or R3.

    Args:
        name: which prior of :data:`PRIORS`.
        config: of the training. Its ``warm_start`` and ``warm_start_sha256`` are filled in.
        warm_start: a prior of one layer to set out from, a shipped name or a folder; "" for none.
        device: where to train.

    Raises:
        ValueError: another name, or a warm start that does not fit. FileNotFoundError: no such prior to start from.
    """
    if name not in PRIORS:
        raise ValueError(f"there is no prior {name!r} to train: choose one of {', '.join(PRIORS)}")
    generator = torch.Generator().manual_seed(config.seed)
    model = FieldsOfExperts(PRIORS[name], generator=generator)
    if str(warm_start):
        shallow = FieldsOfExperts.from_pretrained(warm_start)
        model.warm_start(shallow, torch.Generator().manual_seed(config.seed), hidden=config.warm_start_hidden)
        config = replace(config, **warm_start_settings(warm_start))
    return TrainState(model.to(device), config)


def warm_start_settings(prior: str | Path) -> dict[str, str]:
    """What a :class:`TrainConfig` records of the prior that a run sets out from: its name and its weights' SHA-256."""
    return {"warm_start": Path(prior).resolve().name, "warm_start_sha256": weights_sha256(prior)}


def weights_sha256(prior: str | Path) -> str:
    """SHA-256 of the model.safetensors that :meth:`FieldsOfExperts.from_pretrained` reads for this name or folder."""
    folder = hub.locate(prior, WEIGHTS, ("config.json", "model.safetensors"), "prior")
    return files.sha256(folder / "model.safetensors")


def drive(
    state: TrainState,
    folder: str | Path,
    *,
    every: int = 1000,
    group: Group = ALONE,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Step, Row | None]]:
    """Train to the end on the images that the settings name; yield each step, with the row of the log it brought.

    Every ``every`` steps and at the end: a validation, a row, a checkpoint. After the last step the prior is exported.
    With several processes only rank 0 does this; the others compute, and get None. A generator that is closed, or whose
    consumer leaves its loop, writes a checkpoint first.

    Args:
        state: from :func:`start` or :func:`gnclib.score.training.load_checkpoint`; changed in place.
        folder: of the run; made if need be.
        every: steps between two rows, >= 1.
        group: the processes that train together.
        stop: asked after each step; when it says yes, on any rank, a checkpoint is written and the generator ends, with
            ``state.step < state.config.steps``.

    Raises:
        ValueError: ``every`` < 1. OSError: a file cannot be written; its older version is intact. ValueError,
            FileNotFoundError, ConnectionError, FloatingPointError: what :func:`gnclib.score.training.training` and
            :mod:`gnclib.score.training_set` raise.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"the steps between two rows of the log must be a positive integer, got {every!r}")
    images = training_set.load(state)
    keeper = _Keeper(state, Path(folder), group, images.held_out) if group.rank == 0 else None
    for step in training(state, images.train, group):
        row, last = None, step.step == state.config.steps
        if keeper:
            keeper.add(step)
            row = keeper.row() if last or step.step % every == 0 else None
        try:
            yield step, row
        except GeneratorExit:
            if keeper:
                keeper.checkpoint()
            raise
        if not last and group.any(stop(), state.model.offset.device):
            if keeper:
                keeper.checkpoint()
            return
    if keeper:
        export(folder)


def run(state: TrainState, folder: str | Path, **options) -> FieldsOfExperts:
    """:func:`drive` to the end: the trained prior."""
    for _ in drive(state, folder, **options):
        pass
    return state.prior


def export(folder: str | Path) -> TrainState:
    """Write the prior of the checkpoint in ``folder``: weights, config.json, training.json and the model card.

    The run need not be finished: the card then says how many of the planned iterations were made, and the run can be
    resumed as before, whereupon these files are written anew. Evaluations of other weights (``evaluation*.json``) are
    renamed to ``*.json.old``, so that the card does not quote them.

    Raises:
        FileNotFoundError: there is no checkpoint. ValueError: it cannot be read. OSError: a file cannot be written.
    """
    folder, state = Path(folder), load_checkpoint(folder)
    weights = folder / "model.safetensors"
    before = weights.read_bytes() if weights.is_file() else b""
    state.prior.save_pretrained(folder)
    if weights.read_bytes() != before:
        for stale in folder.glob("evaluation*.json"):
            stale.rename(stale.with_name(stale.name + ".old"))
    about = card.provenance(state, _seconds(state, folder)) | {
        "weights_sha256": weights_sha256(folder.resolve())
    }
    files.write_text(folder / "training.json", json.dumps(about, indent=2) + "\n")
    card.write(folder)
    return state


class _Keeper:
    """What rank 0 does beside training: it validates, keeps log and clock, and writes the checkpoints of one run."""

    def __init__(self, state: TrainState, folder: Path, group: Group, held_out: list[Tensor]):
        self.state, self.folder = state, folder
        self.held_out = [x.to(state.model.offset) for x in held_out]
        for remainder in folder.glob(".*.tmp"):  # of a run that was killed while it wrote a file
            remainder.unlink()
        self.rows = rows(folder, state.step) if state.step else []
        self.before, self.started = _seconds(state, folder), time.monotonic()
        self.saved = (
            state.step or None
        )  # the step of the last checkpoint; a new run writes one before its first step
        card.remember(state, group.world)
        if self.saved is None:
            self.checkpoint()

    def add(self, step: Step) -> None:
        """Take a step into the means of the next row."""
        sums = self.state.record.setdefault("sums", {"count": 0, "loss": 0.0, "image": 0.0, "smoothing": 0.0})
        sums["count"] += 1
        for part in ("loss", "image", "smoothing"):
            sums[part] += getattr(step, part)
        self.state.record["lr"] = step.lr

    def row(self) -> Row:
        """Validate, write the log and the checkpoint, and begin new means."""
        record = self.state.record
        sums = record.pop("sums")
        quality = fmean(denoising_psnr(self.state.prior, self.held_out, 25 / 255))
        means = (sums[part] / sums["count"] for part in ("loss", "image", "smoothing"))
        row = Row(self.state.step, *means, record["lr"], quality, self._clock())
        self.rows.append(row)
        self._write(
            lambda: files.write_text(self.folder / LOG, "\n".join([COLUMNS, *map(str, self.rows)]) + "\n")
        )
        self.checkpoint()
        return row

    def checkpoint(self) -> None:
        """Write the checkpoint, unless that of this step is written."""
        if self.saved != self.state.step:
            self.state.record["seconds"] = round(self._clock(), 1)
            self._write(lambda: save_checkpoint(self.state, self.folder))
            self.saved = self.state.step

    def _clock(self) -> float:
        return self.before + time.monotonic() - self.started

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            kept = (
                "no checkpoint was written yet"
                if self.saved is None
                else f"that of step {self.saved} is intact"
            )
            raise OSError(
                error.errno,
                f"cannot write to {self.folder} at step {self.state.step} ({error.strerror}); {kept}",
            ) from error


def rows(folder: str | Path, step: int | None = None) -> list[Row]:
    """The rows of the log in ``folder``, up to that of ``step``: a run that is resumed writes later ones again.

    Raises ValueError for a damaged one.
    """
    log = Path(folder) / LOG
    found = io_run.read_log(log, COLUMNS) if log.is_file() else []
    return [Row(int(first), *rest) for first, *rest in found if step is None or first <= step]


def _seconds(state: TrainState, folder: Path) -> float:
    """How long the run has taken up to this state; checkpoints of older versions leave that to the log."""
    if "seconds" in state.record or not state.step:
        return state.record.get("seconds", 0.0)
    return max((row.seconds for row in rows(folder, state.step)), default=0.0)
