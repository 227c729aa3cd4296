"""Runs in a folder: log, clock, checkpoints, and the signals that stop them.

A run makes steps, be it that a prior is trained (:mod:`gnclib.score.run`) or a schedule is learned
(:mod:`gnclib.restore.learn`). Its folder holds

    checkpoint.safetensors    all that the run needs to go on (:mod:`gnclib.io.state`); from the start of the run
    log.csv                   a row every so many steps: means since the last row, validation, seconds

Both are replaced atomically, the log before the checkpoint: a run that is killed at any moment goes on from its
checkpoint and ends with the same numbers, to the bit, and the same log but for the seconds.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from gnclib.io import files, reading
from gnclib.io.state import CHECKPOINT, State, remember, save_checkpoint

LOG = "log.csv"
S, R = TypeVar("S"), TypeVar("R")  # a step, a row of a log


# log -----------------------------------------------------------------------------------------------------------------


def rows(folder: str | Path, kind: type[R], step: int | None = None) -> list[R]:
    """The rows of the log in a folder up to a step, none without a log.

    ``kind.COLUMNS`` are the first line of the log, the ``str`` of a row is a line; its first number, the step, rises.
    Raises ValueError, which names the line, if the log is damaged.
    """
    path = Path(folder) / LOG
    if not path.is_file():
        return []
    text = reading.read_bytes(path, reading.LARGEST_JSON).decode("utf-8", errors="replace")
    first, *lines = text.split("\n")
    if first != kind.COLUMNS or lines[-1:] != [""]:
        raise ValueError(f"{path} is no log with the columns {kind.COLUMNS}, or its end is missing")
    found: list[R] = []
    for number, line in enumerate(lines[:-1], 2):
        try:
            values = [_number(part) for part in line.split(",")]
            if len(values) != kind.COLUMNS.count(",") + 1 or values[0] != int(values[0]) or values[0] < 0:
                raise ValueError("these are not its columns")
            if found and values[0] <= found[-1].step:
                raise ValueError("its step does not come after the one before")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, {line[:80]!r}: {error}") from None
        found.append(kind(int(values[0]), *values[1:]))
    return [row for row in found if step is None or row.step <= step]


def _number(text: str) -> float:
    """A number as a log has it: digits, sign, point and exponent, or nan."""
    if text != "nan" and not set(text) <= set("0123456789+-.e"):
        raise ValueError(f"{text[:30]!r} is no number")
    if abs(value := float(text)) >= reading.TOO_LARGE:
        raise ValueError(f"{text[:30]} is too large")
    return value


# the run -------------------------------------------------------------------------------------------------------------


class Keeper(Generic[R]):
    """What surrounds the steps of one run: it validates, keeps log and clock, and writes the checkpoints.

    A row of the log (:func:`rows`), one ``every`` so many steps, has the step, the means of those numbers of a step
    that ``means`` names, the learning rate, what ``validate`` returns, and the seconds.
    """

    def __init__(
        self,
        state: State,
        folder: str | Path,
        row: type[R],
        means: Sequence[str],
        validate: Callable[[], float],
        every: int,
        processes: int = 1,
    ):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(
                f"the steps between two rows of the log must be a positive integer, got {every!r}"
            )
        self.state, self.folder, self.kind, self.every = state, Path(folder), row, every
        self.means, self.validate = means, validate
        if self.folder.is_dir():
            files.remove_remains(self.folder)
        self.rows = rows(folder, row, state.step) if state.step else []
        self.before, self.started = state.record.get("seconds", 0.0), time.monotonic()
        self.cpu = state.record.get("cpu_seconds", 0.0) - time.process_time()
        there = (self.folder / CHECKPOINT).is_file()
        self.saved = state.step if state.step and there else None  # the step of the last checkpoint
        remember(state, processes)
        self.checkpoint()

    def add(self, step: Any, last: bool) -> R | None:
        """Take a step into the means; return the row that it brings."""
        record = self.state.record
        record["count"] = record.get("count", 0) + 1
        sums = record.setdefault("sums", {})
        for name in self.means:
            sums[name] = sums.get(name, 0.0) + getattr(step, name)
        return self.row() if last or step.step % self.every == 0 else None

    def row(self) -> R:
        """Validate, write the log and the checkpoint, and begin new means."""
        state, count = self.state, self.state.record.pop("count", 0)
        sums = state.record.pop("sums", {})
        means = (sums[name] / count if count else math.nan for name in self.means)
        rate = state.optimizer.param_groups[0]["lr"]
        self.rows.append(self.kind(state.step, *means, rate, self.validate(), self._clock()))
        text = "\n".join([self.kind.COLUMNS, *map(str, self.rows)]) + "\n"
        self._write(lambda: files.write_text(self.folder / LOG, text))
        self.checkpoint()
        return self.rows[-1]

    def checkpoint(self) -> None:
        """Write the checkpoint, unless that of this step is written."""
        if self.saved != self.state.step:
            self.state.record["seconds"] = round(self._clock(), 1)
            self.state.record["cpu_seconds"] = round(self.cpu + time.process_time(), 1)
            self._write(lambda: save_checkpoint(self.state, self.folder))
            self.saved = self.state.step

    def _clock(self) -> float:
        return self.before + time.monotonic() - self.started

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            kept = "there is no checkpoint" if self.saved is None else f"that of step {self.saved} is intact"
            place = f"cannot write to {self.folder} at step {self.state.step}"
            raise OSError(error.errno, f"{place} ({error.strerror}); {kept}") from error


def drive(
    steps: Iterator[S], total: int, keeper: Keeper[R] | None, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[S, R | None]]:
    """Make the steps, whose numbers ``step`` go up to ``total``; yield each, with the row of the log it brought.

    A generator that is closed, or whose consumer leaves its loop, writes a checkpoint first, as does one whose
    ``stop``, asked after each step, says yes. A process that only takes part in the work has no keeper.
    """
    for step in steps:
        last = step.step == total
        row = keeper.add(step, last) if keeper else None
        try:
            yield step, row
        except GeneratorExit:
            if keeper:
                keeper.checkpoint()
            raise
        if not last and stop():
            if keeper:
                keeper.checkpoint()
            return


@contextmanager
def signals() -> Iterator[list[signal.Signals]]:
    """A list that gets SIGINT and SIGTERM when they come; a second Ctrl-C, over a second later, interrupts at once.

    Within a second it is the same one: torchrun passes on what the terminal has sent to its processes already.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    times: list[float] = []

    def note(number: int, _) -> None:
        times.append(time.monotonic())
        received.append(signal.Signals(number))
        if number == signal.SIGINT and times[-1] - times[0] > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
