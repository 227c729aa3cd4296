"""The state of a run: all that it needs to go on as if it had never stopped, its checkpoint, and its history.

A checkpoint is one safetensors file: modules, moments of the optimiser and the state of the random generator as
tensors, the rest as JSON in its metadata. It is replaced atomically: who reads it sees a whole one, old or new.
Safetensors, those of priors as well, hold numbers and nothing that could be executed. They are read with care: bounded,
finite, with the demanded names and shapes.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import torch
from pydantic import Field
from safetensors.torch import load, save
from torch import Tensor, nn
from typing_extensions import TypedDict

from gnclib.io import files, provenance, reading

CHECKPOINT = "checkpoint.safetensors"
#: bytes of the largest file of tensors that is read, and of its largest header
LARGEST, LARGEST_HEADER = 1_000_000_000, 5_000_000
#: kinds of numbers in tensors
KINDS = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8")

#: from which step on which code ran on which machine
Turn = TypedDict("Turn", {"from": int, "revision": str, "machine": str, "software": str})


class Record(TypedDict):
    """What a run remembers about itself."""

    count: NotRequired[Annotated[int, Field(ge=0)]]  # steps since the last row of the log
    sums: NotRequired[dict[str, float]]  # over these steps
    seconds: NotRequired[float]  # that the run has taken, pauses not counted
    cpu_seconds: NotRequired[float]  # of the processor, all threads of this process together
    history: NotRequired[list[Turn]]
    images: NotRequired[str]  # what it learns from, in words, unless that is the default
    held_out: NotRequired[str]  # what it is watched with


@dataclass(kw_only=True)
class State(ABC):
    """Everything that a run needs to go on as if it had never stopped; a subclass adds its settings, ``config``."""

    step: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)  # of all random draws, on the CPU
    optimizer: torch.optim.Optimizer = None  # with all parameters that are learned
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
    found = {f"{part}.{k}": v for part, m in state.modules().items() for k, v in m.state_dict().items()}
    optimizer = state.optimizer.state_dict()
    for index, entries in optimizer["state"].items():
        found |= {f"optimizer.{index}.{k}": v for k, v in entries.items()}
    found["generator"] = state.generator.get_state()
    meta = {
        "step": state.step,
        "config": asdict(state.config),
        "groups": [{k: g[k] for k in ("lr", "step") if k in g} for g in optimizer["param_groups"]],
        "record": state.record,
        **state.about(),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in found.items()}
    return files.write_bytes(Path(folder) / CHECKPOINT, save(tensors, metadata={"state": json.dumps(meta)}))


def load_checkpoint(
    folder: str | Path, kind: type, build: Callable[[dict[str, Any], dict[str, dict[str, Tensor]]], S]
) -> S:
    """The state that :func:`save_checkpoint` wrote.

    ``build`` makes a state at step 0 from the JSON, a ``kind`` of :class:`Checkpoint`, and the tensors NAME.REST by
    NAME and REST; what it does not take out of them must be the optimiser and the generator. Raises FileNotFoundError,
    or ValueError for a checkpoint that is damaged or of another kind.
    """
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint in {folder}: start without --resume")
    try:
        found, metadata = read_tensors(path)
        meta = reading.check(reading.parse_json(metadata.get("state", "")), kind)
        parts: dict[str, dict[str, Tensor]] = {}  # the tensors NAME.REST, "" for NAME alone
        for name, tensor in found.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        optimizer, generator = parts.pop("optimizer", {}), parts.pop("generator", {})
        state = build(meta, parts)
        if parts:
            raise ValueError(f"there are tensors that have no meaning here: {reading.some(parts)}")
        if not 0 <= meta["step"] <= state.total:
            raise ValueError(f"step {meta['step']} is none of {state.total}")
        state.step, state.record = meta["step"], meta["record"]
        state.generator = generator_from(generator.get("", torch.empty(0)))
        ours, theirs = state.optimizer.state_dict()["param_groups"], meta["groups"]
        if len(ours) != len(theirs):
            raise ValueError(f"the optimiser has {len(ours)} groups of parameters, not {len(theirs)}")
        groups = [mine | group for mine, group in zip(ours, theirs, strict=True)]
        found = moments(optimizer, state.optimizer)
        state.optimizer.load_state_dict({"state": found, "param_groups": groups})
        return state
    except ValueError as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error


# tensors -------------------------------------------------------------------------------------------------------------


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, by name, and its metadata. They take as much memory as the file again.

    Raises FileNotFoundError, or ValueError if it is damaged or no such file, or holds nan or infinity.
    """
    content = reading.read_bytes(path, LARGEST)
    try:
        size = int.from_bytes(content[:8], "little")
        if len(content) < 8 or size > min(len(content) - 8, LARGEST_HEADER):
            raise ValueError("it does not begin as a safetensors file")
        header = reading.check(reading.parse_json(content[8 : 8 + size]), dict, "its header")
        metadata = reading.check(header.get("__metadata__", {}), dict[str, str], "its metadata")
        return _tensors(content), metadata
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _tensors(content: bytes) -> dict[str, Tensor]:
    try:
        tensors = load(content)
    except Exception as error:  # its own, and what torch says of shapes and kinds of numbers
        raise ValueError(f"{type(error).__name__}: {error}") from None
    for name, tensor in tensors.items():
        if str(tensor.dtype).removeprefix("torch.") not in KINDS:
            raise ValueError(f"the tensor {name} is of the kind {tensor.dtype}, which is not used here")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"the tensor {name} holds nan or infinity")
    return tensors


def demand_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise ValueError unless there are these names with these shapes, all of them floating point numbers."""
    if wrong := found.keys() ^ wanted.keys():
        raise ValueError(f"{what}: these tensors are missing or unknown: {reading.some(wrong)}")
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape or not found[name].is_floating_point():
            is_now = f"{tuple(found[name].shape)} of {found[name].dtype}"
            raise ValueError(f"{what}: {name} must hold floating point numbers {shape}, got {is_now}")
        if not bool((found[name].abs() <= 3e38).all()):
            raise ValueError(f"{what}: {name} holds numbers that are too large for float32")


def moments(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """The state of an optimiser from tensors INDEX.KEY, each shaped like its parameter or a single number.

    Raises ValueError for another shape, a parameter that there is not, or different keys in a group of parameters.
    """
    groups = [k for k, group in enumerate(optimizer.param_groups) for _ in group["params"]]
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if not (index.isascii() and index.isdigit() and int(index) < len(shapes) and key):
            raise ValueError(f"the optimiser has no state {name[:40]!r}")
        if tuple(tensor.shape) not in ((), shapes[int(index)]) or not tensor.is_floating_point():
            raise ValueError(f"the state {name[:40]!r} of the optimiser has the shape {tuple(tensor.shape)}")
        if key not in ("exp_avg", "max_exp_avg", "momentum_buffer") and bool((tensor < 0).any()):
            raise ValueError(
                f"the state {name[:40]!r} of the optimiser, a count or a mean of squares, is negative"
            )
        found.setdefault(int(index), {})[key] = tensor
    kinds = {(groups[index], frozenset(keys)) for index, keys in found.items()}
    if len(kinds) > len({group for group, _ in kinds}):
        raise ValueError("parts of the state of the optimiser are missing")
    return found


def generator_from(state: Tensor) -> torch.Generator:
    """The random generator on the CPU with this state. Raises ValueError if it is none."""
    generator, trial = torch.Generator(), torch.Generator()
    try:
        generator.set_state(state)
        trial.set_state(state)
        drawn = torch.randn(2, generator=trial, dtype=torch.float64), torch.randn(2, generator=trial)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the state of the random generator is damaged: {error}") from None
    if not all(bool(values.isfinite().all()) for values in drawn):
        raise ValueError("the state of the random generator is damaged: it gives nan")
    return generator


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
    settings = asdict(state.config) | {"images": Path(state.config.images).name}  # not where that folder lies
    hours = round(state.record.get("seconds", 0.0) / 3600, 3)
    found = {"settings": settings, "iterations": state.step, **words, "hours": hours}
    return found | turns | {"history": history}


def _in_turn(history: list[Turn], key: str) -> str:
    grouped = groupby(history, lambda entry: entry[key])
    turns = [(next(entries)["from"], value) for value, entries in grouped]
    if len(turns) == 1:
        return turns[0][1]
    parts = [f"{turns[0][1]} for the first {turns[1][0]} iterations"]
    return ", ".join([*parts, *(f"{value} from {first} on" for first, value in turns[1:])])
