"""The state of a run: all that it needs to go on as if it had never stopped, its checkpoint, and its history.

A checkpoint is one safetensors file: modules, moments of the optimiser and the state of the random generator as
tensors, the rest as JSON in its metadata. It is replaced atomically: who reads it sees a whole one, old or new.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor, nn
from typing_extensions import TypedDict

from gnclib.io import files, provenance, reading, tensors

CHECKPOINT = "checkpoint.safetensors"

#: from which step on which code ran on which machine
Turn = TypedDict("Turn", {"from": int, "revision": str, "machine": str, "software": str})


class Record(TypedDict):
    """What a run remembers about itself."""

    count: NotRequired[Annotated[int, Field(ge=0)]]  # steps since the last row of the log
    sums: NotRequired[dict[str, float]]  # over these steps
    seconds: NotRequired[float]  # that the run has taken, pauses not counted
    history: NotRequired[list[Turn]]
    images: NotRequired[str]  # what it learns from, in words, unless that is the default
    held_out: NotRequired[str]  # what it is watched with


@dataclass(kw_only=True)
class State(ABC):
    """Everything that a run needs to go on as if it had never stopped.

    A subclass has settings ``config`` with a ``seed``.

    Parameters
    ----------
    step
        Steps that were made.
    generator
        Of all random draws, on the CPU whatever the device.
    optimizer
        With all parameters that are learned.
    record
        What the run remembers about itself.
    """

    step: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)
    optimizer: torch.optim.Optimizer = None
    record: Record = field(default_factory=dict)

    @property
    @abstractmethod
    def total(self) -> int:
        """Steps of the whole run."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the work is done."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """All modules that change, by the names that their tensors have in a checkpoint."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What else a checkpoint needs to make these modules, as JSON data."""


S = TypeVar("S", bound=State)


# checkpoints ---------------------------------------------------------------------------------------------------------


class Group(TypedDict):
    """What changes in a group of an optimiser beside its parameters."""

    lr: float
    step: NotRequired[int]


class Checkpoint(TypedDict):
    """The JSON of a checkpoint; a subclass adds what :meth:`State.about` returns."""

    step: int
    config: dict[str, Any]
    groups: list[Group]
    record: Record


def save_checkpoint(state: State, folder: str | Path) -> Path:
    """Write the state into ``folder/checkpoint.safetensors``, atomically; an OSError leaves an older one intact."""
    found = {
        f"{part}.{k}": v for part, module in state.modules().items() for k, v in module.state_dict().items()
    }
    optimizer = state.optimizer.state_dict()
    for index, entries in optimizer["state"].items():
        found |= {f"optimizer.{index}.{k}": v for k, v in entries.items()}
    found["generator"] = state.generator.get_state()
    meta = {
        "step": state.step,
        "config": asdict(state.config),
        "groups": [
            {k: group[k] for k in ("lr", "step") if k in group} for group in optimizer["param_groups"]
        ],
        "record": state.record,
        **state.about(),
    }
    content = save(
        {k: v.detach().cpu().contiguous() for k, v in found.items()}, metadata={"state": json.dumps(meta)}
    )
    return files.write_bytes(Path(folder) / CHECKPOINT, content)


def load_checkpoint(
    folder: str | Path, kind: type, build: Callable[[dict[str, Any], dict[str, dict[str, Tensor]]], S]
) -> S:
    """The state that :func:`save_checkpoint` wrote.

    Parameters
    ----------
    kind
        A subclass of :class:`Checkpoint`.
    build
        Makes a state at step 0 from that JSON and the tensors NAME.REST by NAME and REST; what it does not take out of
        them must be the optimiser and the generator.

    Raises
    ------
    FileNotFoundError, ValueError
        There is none; it is damaged, or of another kind.
    """
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint in {folder}: start without --resume")
    try:
        found, metadata = tensors.read_tensors(path)
        meta = reading.check(reading.parse_json(metadata.get("state", "")), kind)
        parts = tensors.in_parts(found)
        moments, generator = parts.pop("optimizer", {}), parts.pop("generator", {})
        state = build(meta, parts)
        if parts:
            raise ValueError(f"there are tensors that have no meaning here: {reading.some(parts)}")
        if not 0 <= meta["step"] <= state.total:
            raise ValueError(f"step {meta['step']} is none of {state.total}")
        state.step, state.record = meta["step"], meta["record"]
        state.generator = tensors.generator_from(generator.get("", torch.empty(0)))
        ours, theirs = state.optimizer.state_dict()["param_groups"], meta["groups"]
        if len(ours) != len(theirs):
            raise ValueError(f"the optimiser has {len(ours)} groups of parameters, not {len(theirs)}")
        groups = [mine | group for mine, group in zip(ours, theirs, strict=True)]
        moments = tensors.moments(moments, state.optimizer)
        state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return state
    except ValueError as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error


# history -------------------------------------------------------------------------------------------------------------


def remember(state: State, processes: int = 1) -> None:
    """Add to ``state.record["history"]`` from which step on which code ran on which machine, where anything has
    changed.

    To be called when a run starts or resumes.
    """
    history = state.record.setdefault("history", [])
    if state.step and not history:  # its steps were made outside of a folder
        history.append({"from": 0, "revision": "unknown", "machine": "unknown", "software": "unknown"})
    now: Turn = {
        "from": state.step,
        "revision": provenance.revision(),
        "machine": provenance.machine(state.device, processes),
        "software": provenance.software("torch"),
    }
    if history and history[-1]["from"] == state.step:
        history.pop()  # no step was made with it
    if not history or {**history[-1], "from": state.step} != now:
        history.append(now)


def told(state: State) -> dict[str, Any]:
    """What a run has to tell about itself: settings, steps, what it learned from, hours, machines, software, code.

    Where machine, software or revision changed the text is "a for the first 2000 iterations, b from 2000 on".
    """
    if not state.record.get("history"):
        remember(state)
    history = state.record["history"]
    turns = {name: _in_turn(history, name) for name in ("machine", "software", "revision")}
    words = {name: state.record[name] for name in ("images", "held_out") if name in state.record}
    settings = asdict(state.config)
    settings["images"] = Path(settings["images"]).name  # where that folder lies is nobody else's business
    hours = round(state.record.get("seconds", 0.0) / 3600, 3)
    return {
        "settings": settings,
        "iterations": state.step,
        **words,
        "hours": hours,
        **turns,
        "history": history,
    }


def _in_turn(history: list[Turn], key: str) -> str:
    turns: list[tuple[int, str]] = []
    for entry in history:
        if not turns or turns[-1][1] != entry[key]:
            turns.append((entry["from"], entry[key]))
    if len(turns) == 1:
        return turns[0][1]
    parts = [f"{turns[0][1]} for the first {turns[1][0]} iterations"]
    return ", ".join([*parts, *(f"{value} from {first} on" for first, value in turns[1:])])
