"""What a training run is: its settings, everything it needs to go on, and the checkpoint that keeps both.

A checkpoint is one safetensors file: weights, optimiser moments and the state of the random generator as tensors, the
rest as JSON in its metadata. It is replaced atomically, so that whoever reads it sees a whole one, old or new.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from pytorch_optimizer import AdaBelief
from safetensors.torch import save
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.io import files, reading
from gnclib.io import tensors as stored
from gnclib.score.settings import TrainConfig

CHECKPOINT = "checkpoint.safetensors"
_ROW = {"count": int, "loss": float, "image": float, "smoothing": float}
_HISTORY = {"from": int, "revision": str, "machine": str, "software": str}
#: what the JSON of a checkpoint holds; versions before the shipped priors had no record
_STATE = {
    "step": int,
    "prior": dict,
    "config": dict,
    "groups": [dict],
    "record?": {
        "sums?": _ROW,
        "lr?": float,
        "seconds?": float,
        "history?": [_HISTORY],
        "note?": str,
        **{"images?": str, "held_out?": str},
    },
}


@dataclass
class TrainState:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        model: the prior in training, on the device where the work is done.
        step: iterations done; generator: of all random draws, on the CPU whatever the device of the model.
        optimizer: AdaBelief with one group for kernels and potentials and one for c(tau).
        average: the moving average of the model, None if ``config.averaging`` is 0.
        record: what the run remembers about itself, as JSON data; filled by :mod:`gnclib.score.run`.
    """

    model: FieldsOfExperts
    config: TrainConfig
    step: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)
    optimizer: torch.optim.Optimizer = None
    average: AveragedModel | None = None
    record: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.step == 0:
            self.generator.manual_seed(self.config.seed)
        if self.optimizer is None:
            groups = [
                {"params": [*self.model.kernels, *self.model.weights], "lr": self.config.lr},
                {"params": [self.model.offset], "lr": self.config.lr_constant},
            ]
            self.optimizer = AdaBelief(groups, weight_decay=0.0)
        if self.average is None and self.config.averaging:
            self.average = AveragedModel(self.model, multi_avg_fn=partial(_average, self.config.averaging))

    @property
    def prior(self) -> FieldsOfExperts:
        """What the run has learned so far: the averaged model, or the model itself where nothing is averaged."""
        return self.average.module if self.average else self.model


def _average(decay: float, averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    """Average <- average + (1 - beta) (current - average), beta = min(decay, (1 + count) / (10 + count)), in place."""
    beta = min(decay, (1 + count.item()) / (10 + count.item()))
    torch._foreach_lerp_(averaged, current, 1 - beta)


def save_checkpoint(state: TrainState, folder: str | Path) -> Path:
    """Write the whole state into ``folder/checkpoint.safetensors``, atomically.

    Raises:
        OSError: it cannot be written, for instance on a full disk; an older checkpoint is then intact.
    """
    tensors = {f"model.{k}": v.detach() for k, v in state.model.state_dict().items()}
    optimizer = state.optimizer.state_dict()
    for index, entries in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in entries.items()}
    if state.average:
        tensors |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    tensors["generator"] = state.generator.get_state()
    meta = {
        "step": state.step,
        "prior": asdict(state.model.config),
        "config": asdict(state.config),
        "groups": optimizer["param_groups"],
        "record": state.record,
    }
    content = save(
        {k: v.cpu().contiguous() for k, v in tensors.items()}, metadata={"state": json.dumps(meta)}
    )
    return files.write_bytes(Path(folder) / CHECKPOINT, content)


def load_checkpoint(folder: str | Path, device: torch.device | str = "cpu") -> TrainState:
    """The state that :func:`save_checkpoint` wrote, its model and optimiser on ``device``.

    Raises:
        FileNotFoundError: there is none. ValueError: it cannot be read.
    """
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint in {folder}: start without --resume")
    try:
        tensors, metadata = stored.read_tensors(path)
        meta = reading.demand(reading.parse_json(metadata.get("state", "")), _STATE)
        return _restore(meta, tensors, device)
    except ValueError as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error


def _restore(meta: dict, tensors: dict[str, Tensor], device: torch.device | str) -> TrainState:
    parts = stored.in_parts(tensors, ("model", "optimizer", "average", "generator"))
    model = FieldsOfExperts.from_state(FoEConfig.from_dict(meta["prior"]), parts["model"])
    config = TrainConfig(**meta["config"])
    if not 0 <= meta["step"] <= config.steps:
        raise ValueError(f"step {meta['step']} is none of {config.steps}")
    generator = stored.generator_from(parts["generator"].get("", torch.empty(0)))
    state = TrainState(model.to(device), config, meta["step"], generator, record=meta.get("record", {}))
    if state.step == 0:
        generator.set_state(tensors["generator"])  # a new state has seeded it
    moments = stored.moments(parts["optimizer"], state.optimizer)
    groups = _groups(meta["groups"], state.optimizer.state_dict()["param_groups"])
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    if parts["average"] or state.average:
        _restore_average(state, dict(parts["average"]))
    return state


def _groups(found: list[dict], ours: list[dict]) -> list[dict]:
    """The optimiser's settings: learning rate and steps of the file, all else as it is here, and equal in the file."""
    changing = {"lr": float, "step": int}
    if len(found) != len(ours):
        raise ValueError(f"the optimiser has {len(ours)} groups of parameters, not {len(found)}")
    for theirs, mine in zip(found, ours, strict=True):
        for name in changing.keys() & theirs.keys():
            reading.demand(theirs[name], changing[name], f"{name} of the optimiser")
        mine_here = json.loads(json.dumps(mine))  # JSON has no tuples
        other = [k for k in mine.keys() & theirs.keys() - changing.keys() if mine_here[k] != theirs[k]]
        if other or theirs.keys() - mine.keys() - changing.keys():
            raise ValueError("the optimiser has other settings than this version's")
    return [
        mine | {k: theirs[k] for k in changing if k in theirs}
        for theirs, mine in zip(found, ours, strict=True)
    ]


def _restore_average(state: TrainState, average: dict[str, Tensor]) -> None:
    """Load the moving average. Raises ValueError if it is none of this model, or none is wanted."""
    count = average.pop("n_averaged", None)
    if state.average is None or count is None or count.shape or count.dtype != torch.int64 or count < 0:
        raise ValueError("the moving average of the weights is damaged")
    weights = {name.removeprefix("module."): v for name, v in average.items()}
    stored.demand_tensors(weights, state.model.config.shapes, "the moving average")
    state.average.load_state_dict(
        {f"module.{name}": v for name, v in weights.items()} | {"n_averaged": count}
    )
