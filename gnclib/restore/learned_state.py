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
from safetensors.torch import save
from torch import Tensor

from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.io import files, reading
from gnclib.io import tensors as stored
from gnclib.restore.learned import LearnedSchedule, Task
from gnclib.score.settings import LearnConfig

CHECKPOINT = "checkpoint.safetensors"
_HISTORY = {"from": int, "revision": str, "machine": str, "software": str}
#: what the JSON of a checkpoint holds
_STATE = {
    "step": int,
    "config": dict,
    "model": dict,
    "task": {"kind": str, "level": float},
    "schedule": {"t_range": [float], "x_0?": str, "prior": str, "prior_sha256": str},
    "record": {
        "start?": str,
        "learned_from?": str,
        "losses?": [float],
        "seconds?": float,
        "validation_mmse?": float,
        "history?": [_HISTORY],
        "note?": str,
        "images?": str,
        "held_out?": str,
    },
}


@dataclass
class LearnState:
    """Everything that a run needs to go on.

    Attributes:
        schedule: what is learned, on the CPU.
        model: its prior, trained as well if ``config.lr_prior`` > 0, on the device where the work is done.
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
        "schedule": {k: getattr(learned, k) for k in ("t_range", "x_0", "prior", "prior_sha256")},
        "record": state.record,
    }
    content = save(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"state": json.dumps(meta)}
    )
    return files.write_bytes(Path(folder) / CHECKPOINT, content)


def load_checkpoint(folder: str | Path, device: torch.device | str = "cpu") -> LearnState:
    """The state that :func:`save_checkpoint` wrote, its prior on ``device``.

    Raises:
        FileNotFoundError: there is none. ValueError: it cannot be read.
    """
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint in {folder}: start without --resume")
    try:
        tensors, metadata = stored.read_tensors(path)
        return _restore(
            reading.demand(reading.parse_json(metadata.get("state", "")), _STATE), tensors, device
        )
    except ValueError as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error


def _restore(meta: dict, tensors: dict[str, Tensor], device: torch.device | str) -> LearnState:
    parts = stored.in_parts(tensors, ("model", "schedule", "optimizer", "generator"))
    model = FieldsOfExperts.from_state(FoEConfig.from_dict(meta["model"]), parts["model"]).eval().to(device)
    values, length = parts["schedule"], len(parts["schedule"].get("first_t", ()))
    names = ("first_t", "first_eta", "shift_tau", "shift_log_eta")
    stored.demand_tensors(values, dict.fromkeys(names, (length,)), "the schedule")
    if len(meta["schedule"]["t_range"]) != 2:
        raise ValueError(f"t_range must hold two numbers, got {len(meta['schedule']['t_range'])}")
    first = values["first_t"], values["first_eta"]
    schedule = LearnedSchedule(*first, task=Task(**meta["task"]), **meta["schedule"])
    schedule.load_state_dict(values)
    config = LearnConfig(**meta["config"])
    if not 0 <= meta["step"] <= config.iterations:
        raise ValueError(f"step {meta['step']} is none of {config.iterations}")
    generator = stored.generator_from(parts["generator"].get("", torch.empty(0)))
    state = LearnState(schedule, model, config, meta["step"], generator, record=meta["record"])
    if state.step == 0:
        generator.set_state(tensors["generator"])  # a new state has seeded it
    groups = state.optimizer.state_dict()["param_groups"]
    moments = stored.moments(parts["optimizer"], state.optimizer)
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return state
