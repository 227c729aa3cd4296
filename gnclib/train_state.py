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
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from gnclib import files
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.settings import TrainConfig

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class TrainState:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        model: the prior in training, on the device where the work is done.
        step: iterations done; generator: of all random draws, on the CPU whatever the device of the model.
        optimizer: AdaBelief with one group for kernels and potentials and one for c(tau).
        average: the moving average of the model, None if ``config.averaging`` is 0.
        record: what the run remembers about itself, as JSON data; filled by :mod:`gnclib.training_run`.
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
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["state"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}
        return _restore(meta, tensors, device)
    except Exception as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error


def _restore(meta: dict, tensors: dict[str, Tensor], device: torch.device | str) -> TrainState:
    model = FieldsOfExperts(FoEConfig.from_dict(meta["prior"]))
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    config = TrainConfig.from_dict(meta["config"])
    state = TrainState(model.to(device), config, step=meta["step"], record=meta.get("record", {}))
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            entries.setdefault(int(index), {})[key] = value
    for group in meta["groups"]:  # JSON has no tuples
        group.update({k: tuple(v) for k, v in group.items() if k == "betas"})
    state.optimizer.load_state_dict({"state": entries, "param_groups": meta["groups"]})
    state.generator.set_state(tensors["generator"])
    average = {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
    if average:
        state.average.load_state_dict(average)
    return state
