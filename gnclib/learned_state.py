"""What a run that learns a schedule is: its settings, everything it needs to go on, and its checkpoint.

A checkpoint is one safetensors file: schedule, prior, moments of Adam and the state of the random generator as tensors,
the rest as JSON in its metadata. The prior is in it also where it is not trained: a run does not depend on a file that
may be replaced meanwhile.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from gnclib import files
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.learned import LearnedSchedule, Task
from gnclib.settings import LearnConfig

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class LearnState:
    """Everything that a run needs to go on.

    Attributes:
        schedule: what is learned; model: its prior, trained as well if ``config.lr_prior`` > 0.
        step: updates done; generator: of all random draws.
        optimizer: Adam, with a second group for the prior if that is trained.
        record: what the run remembers about itself, as JSON data.
    """

    schedule: LearnedSchedule
    model: FieldsOfExperts
    config: LearnConfig
    step: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)
    optimizer: torch.optim.Optimizer = None
    record: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.step == 0:
            self.generator.manual_seed(self.config.seed)
        self.schedule.requires_grad_(True)
        self.model.requires_grad_(self.config.lr_prior > 0)
        groups = [{"params": list(self.schedule.parameters()), "lr": self.config.lr}]
        if self.config.lr_prior:  # c(tau) has no part in the gradient of the energy in y
            trained = [*self.model.kernels, *self.model.weights]
            groups.append({"params": trained, "lr": self.config.lr_prior})
        self.optimizer = torch.optim.Adam(groups)


def save_checkpoint(state: LearnState, folder: str | Path) -> Path:
    """Write the whole state into ``folder/checkpoint.safetensors``, atomically.

    Raises:
        OSError: it cannot be written; an older checkpoint is then intact.
    """
    tensors = {f"schedule.{k}": v for k, v in state.schedule.state_dict().items()}
    tensors |= {f"model.{k}": v for k, v in state.model.state_dict().items()}
    for index, entries in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in entries.items()}
    tensors["generator"] = state.generator.get_state()
    learned = state.schedule
    meta = {
        "step": state.step,
        "config": asdict(state.config),
        "model": asdict(state.model.config),
        "task": asdict(learned.task),
        "schedule": {k: getattr(learned, k) for k in ("t_range", "prior", "prior_sha256")},
        "record": state.record,
    }
    content = save(
        {k: v.detach().contiguous() for k, v in tensors.items()}, metadata={"state": json.dumps(meta)}
    )
    return files.write_bytes(Path(folder) / CHECKPOINT, content)


def load_checkpoint(folder: str | Path) -> LearnState:
    """The state that :func:`save_checkpoint` wrote.

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
        return _restore(meta, tensors)
    except Exception as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error


def _restore(meta: dict, tensors: dict[str, Tensor]) -> LearnState:
    def part(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(name + "."): v for k, v in tensors.items() if k.startswith(name + ".")}

    model = FieldsOfExperts(FoEConfig.from_dict(meta["model"])).eval()
    model.load_state_dict(part("model"))
    values = part("schedule")
    first = values["first_t"], values["first_eta"]
    schedule = LearnedSchedule(*first, task=Task(**meta["task"]), **meta["schedule"])
    schedule.load_state_dict(values)
    state = LearnState(schedule, model, LearnConfig(**meta["config"]), meta["step"], record=meta["record"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimizer").items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = value
    state.optimizer.load_state_dict(
        {"state": moments, "param_groups": state.optimizer.state_dict()["param_groups"]}
    )
    state.generator.set_state(tensors["generator"])
    return state
