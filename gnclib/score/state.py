"""The state of a training run: the prior, its optimiser and its average."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_optimizer import AdaBelief
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gnclib import io
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.score.settings import TrainConfig

__all__ = ["TrainState", "load_checkpoint"]


@dataclass
class TrainState(io.State):
    """Everything that a training needs to go on: the prior in training, beside what :class:`gnclib.io.State` has.

    The optimiser is AdaBelief with one group for kernels and potentials and one for c(tau). ``average`` is the moving
    average of the model, made here; None if ``config.averaging`` is 0.
    """

    model: FieldsOfExperts
    config: TrainConfig
    average: AveragedModel | None = None

    def __post_init__(self) -> None:
        self.generator.manual_seed(self.config.seed)
        groups = [
            {"params": [*self.model.kernels, *self.model.weights], "lr": self.config.lr},
            {"params": [self.model.offset], "lr": self.config.lr_constant},
        ]
        self.optimizer = AdaBelief(groups, weight_decay=0.0)
        if self.config.averaging:
            self.average = AveragedModel(self.model, multi_avg_fn=partial(_average, self.config.averaging))

    @property
    def prior(self) -> FieldsOfExperts:
        """What the run has learned so far: the averaged model, or the model itself where nothing is averaged."""
        return self.average.module if self.average else self.model

    @property
    def total(self) -> int:
        return self.config.steps

    @property
    def device(self) -> torch.device:
        return self.model.offset.device

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model} | ({"average": self.average} if self.average else {})

    def about(self) -> dict[str, Any]:
        return {"prior": asdict(self.model.config)}


def _average(decay: float, averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    """Average <- average + (1 - beta) (current - average), beta = min(decay, (1 + count) / (10 + count)), in place."""
    beta = min(decay, (1 + count.item()) / (10 + count.item()))
    torch._foreach_lerp_(averaged, current, 1 - beta)


class _Checkpoint(io.Checkpoint):
    prior: dict[str, Any]


def load_checkpoint(folder: str | Path, device: torch.device | str = "cpu") -> TrainState:
    """The state that :func:`gnclib.io.save_checkpoint` wrote, its model and optimiser on ``device``.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        It cannot be read.
    """

    def build(meta: dict[str, Any], parts: dict[str, dict[str, Tensor]]) -> TrainState:
        model = FieldsOfExperts.from_state(FoEConfig.from_dict(meta["prior"]), parts.pop("model", {}))
        state = TrainState(model.to(device), TrainConfig(**meta["config"]))
        if state.average:
            _restore_average(state, parts.pop("average", {}))
        return state

    return io.load_checkpoint(folder, _Checkpoint, build)


def _restore_average(state: TrainState, average: dict[str, Tensor]) -> None:
    """Load the moving average. Raises ValueError if it is none of this model."""
    count = average.pop("n_averaged", None)
    if count is None or count.shape or count.dtype != torch.int64 or count < 0:
        raise ValueError("the moving average of the weights is damaged")
    weights = {name.removeprefix("module."): v for name, v in average.items()}
    io.demand_tensors(weights, state.model.config.shapes, "the moving average")
    state.average.load_state_dict(
        {f"module.{name}": v for name, v in weights.items()} | {"n_averaged": count}
    )
