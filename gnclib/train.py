r"""Joint score matching on image patches (Kobler & Pock 2023, eq. 7): how R_1 is made.

The loss of one batch, with everything divided by the number of pixels n so that lambda does not depend on the size,

    1/n mean_b 1/2 || e^tau grad_1 R - z ||^2  +  lambda/n ( mean_b [1/2 (d_tau R)^2 - d_tautau R] + boundary term ).

The image part is taken over the pixels whose receptive field lies inside of the patch; the smoothing part on a
fraction of the batch (unbiased). Optimiser: AdaBelief with cosine annealing, as in the paper.

:func:`training` is a generator: it yields one :class:`Step` per iteration and prints nothing, so that a notebook can
drive it and plot while it runs. :mod:`gnclib.training_run` drives it with checkpoints and a log (`gnc train`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pytorch_optimizer import AdaBelief
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from gnclib import data, files
from gnclib import score_matching as sm
from gnclib.filters import crop_to
from gnclib.foe import FieldsOfExperts, FoEConfig

OBJECTIVES = ("corrected", "printed", "denoising")
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; all are our choices but the optimiser, the schedule and eq. (7).

    Attributes:
        steps: iterations; batch: patches per iteration; patch: side of a patch in pixels.
        lr, lr_constant: first learning rates of kernels and potentials, and of c(tau); lr_last: the last of both.
        smoothing: lambda, weight of the smoothing part.
        fraction: part of the batch on which the smoothing part is evaluated.
        objective: "corrected" (eq. 7 with its boundary term), "printed" (eq. 7 as printed) or "denoising".
        roughness: weight of the decoupled decay of :meth:`FieldsOfExperts.smooth`, taken after each step times the
            learning rate (as AdamW decays weights): where data are rare a potential stays smooth.
        seed: of patches, noise levels and noise.

    Raises:
        ValueError: a value outside of its range.
    """

    steps: int = 100_000
    batch: int = 32
    patch: int = 48
    lr: float = 1e-3
    lr_constant: float = 1e-2
    lr_last: float = 1e-5
    smoothing: float = 5e-4
    fraction: float = 0.125
    objective: str = "corrected"
    roughness: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch", "patch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name in ("lr", "lr_constant", "lr_last"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {getattr(self, name)}")
        if not 0 <= self.smoothing < math.inf:
            raise ValueError(f"smoothing (lambda) must be >= 0, got {self.smoothing}")
        if not 0 <= self.roughness < math.inf:
            raise ValueError(f"roughness must be >= 0, got {self.roughness}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {self.fraction}")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")


@dataclass(frozen=True)
class Step:
    """What one iteration did: loss parts per pixel and the learning rate of kernels and potentials."""

    step: int
    loss: float
    image: float
    smoothing: float
    lr: float


@dataclass
class TrainState:
    """Everything that a run needs to go on as if it had never stopped."""

    model: FieldsOfExperts
    config: TrainConfig
    step: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)
    optimizer: torch.optim.Optimizer = None

    def __post_init__(self):
        if self.step == 0:
            self.generator.manual_seed(self.config.seed)
        if self.optimizer is None:
            groups = [
                {"params": [*self.model.kernels, *self.model.weights], "lr": self.config.lr},
                {"params": [self.model.offset], "lr": self.config.lr_constant},
            ]
            self.optimizer = AdaBelief(groups, weight_decay=0.0)


def sample_noise(
    config: FoEConfig, count: int, shape: torch.Size, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """tau ~ U(tau_min, tau_max), stratified over the batch (B,), and z ~ N(0, I) of ``shape``.

    Stratified: image b gets the b-th of B equal parts of the interval. Each batch covers all noise levels, and the
    mean over the batch stays unbiased.
    """
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return low + (high - low) * u, torch.randn(shape, generator=generator)


def smoothing_part(
    model: FieldsOfExperts, x: Tensor, tau: Tensor, z: Tensor, config: TrainConfig, generator
) -> Tensor:
    """The tau-part of the loss on some patches, per pixel: a scalar."""
    margin = model.config.margin
    spread = tau.exp()[:, None, None, None]
    order = 1 if config.objective == "denoising" else 2
    first, *second = model.dtau(x + spread * z, (2 * tau).exp(), border="valid", order=order)
    inner = z[..., margin:-margin, margin:-margin]  # one feature position per pixel of this part
    pixels = inner[0].numel()
    if config.objective == "denoising":
        return sm.denoising_term(first, inner).mean() / pixels
    value = sm.implicit_term(first, *second).mean()
    if config.objective == "corrected":
        ends = model.config.grid_tau
        tau = torch.where(torch.arange(len(x)) % 2 == 0, ends.high, ends.low)
        z = torch.randn(x.shape, generator=generator)
        (first,) = model.dtau(x + tau.exp()[:, None, None, None] * z, (2 * tau).exp(), border="valid", order=1)
        value = value + sm.boundary_term(first[::2], first[1::2], ends.low, ends.high)
    return value / pixels


def loss_parts(
    model: FieldsOfExperts, x: Tensor, config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Image and smoothing part of eq. (7), each per pixel, for a batch of clean patches (B, 1, H, W)."""
    tau, z = sample_noise(model.config, len(x), x.shape, generator)
    t = (2 * tau).exp()
    y = x + tau.exp()[:, None, None, None] * z
    grad = model.inner_grad(y, t)
    noise = crop_to(z, grad)
    image = sm.image_term(grad, noise, t).mean() / noise[0].numel()
    if config.smoothing == 0:
        return image, torch.zeros(())
    least = 2 if config.objective == "corrected" else 1  # both ends of the tau interval
    count = max(least, round(config.fraction * len(x)))
    chosen = torch.randperm(len(x), generator=generator)[:count]
    return image, smoothing_part(model, x[chosen], tau[chosen], z[chosen], config, generator)


def learning_rate(first: float, last: float, step: int, steps: int) -> float:
    """Cosine annealing: ``first`` at step 0, ``last`` at the end."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * step / steps))


def training(state: TrainState, images) -> Iterator[Step]:
    """Train ``state.model`` on random patches of ``images`` and yield a :class:`Step` after each iteration.

    Args:
        state: changed in place; a state from :func:`load_checkpoint` goes on where it was.
        images: dict or list of (1, 1, H, W) images, from :func:`gnclib.data.training_images` for a real prior.

    Raises:
        ValueError: an image of the benchmark BSDS68 or of val among ``images``, or patches that do not fit.
        FloatingPointError: the loss is no longer finite; weights and step are then as before that iteration.
    """
    config, model = state.config, state.model
    need = 4 * model.config.margin + 1
    if config.patch < need:
        raise ValueError(f"patches of {config.patch} pixels are too small: this prior needs {need} or more")
    if hasattr(images, "keys"):
        data.refuse_validation(images.keys())
    sampler = data.PatchSampler(images, config.patch, state.generator)
    while state.step < config.steps:
        for group, first in zip(state.optimizer.param_groups, (config.lr, config.lr_constant), strict=True):
            group["lr"] = learning_rate(first, config.lr_last, state.step, config.steps)
        image, smoothing = loss_parts(model, sampler.sample(config.batch), config, state.generator)
        loss = image + config.smoothing * smoothing
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {state.step + 1}: training stopped; the last checkpoint is good"
            )
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        model.project()
        if config.roughness:
            model.smooth(config.roughness * state.optimizer.param_groups[0]["lr"])
        state.step += 1
        yield Step(
            state.step, loss.item(), image.item(), smoothing.item(), state.optimizer.param_groups[0]["lr"]
        )


# checkpoints -------------------------------------------------------------------------------------------------------


def save_checkpoint(state: TrainState, folder: str | Path) -> Path:
    """Write the whole state into ``folder/checkpoint.safetensors``, atomically."""
    tensors = {f"model.{k}": v.detach() for k, v in state.model.state_dict().items()}
    optimizer = state.optimizer.state_dict()
    for index, entries in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in entries.items()}
    tensors["generator"] = state.generator.get_state()
    meta = {
        "step": state.step,
        "prior": asdict(state.model.config),
        "config": asdict(state.config),
        "groups": optimizer["param_groups"],
    }
    content = save({k: v.contiguous() for k, v in tensors.items()}, metadata={"state": json.dumps(meta)})
    return files.write_bytes(Path(folder) / CHECKPOINT, content)


def load_checkpoint(folder: str | Path) -> TrainState:
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
    except Exception as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error
    model = FieldsOfExperts(FoEConfig.from_dict(meta["prior"]))
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    state = TrainState(model, TrainConfig(**meta["config"]), step=meta["step"])
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            entries.setdefault(int(index), {})[key] = value
    for group in meta["groups"]:  # JSON has no tuples
        group.update({k: tuple(v) for k, v in group.items() if k == "betas"})
    state.optimizer.load_state_dict({"state": entries, "param_groups": meta["groups"]})
    state.generator.set_state(tensors["generator"])
    return state
