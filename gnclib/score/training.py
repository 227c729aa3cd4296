r"""Joint score matching on image patches (Kobler & Pock 2023, eq. 7): state, loss of a batch, and training loop.

The loss of one batch, with everything divided by the number of pixels n so that lambda does not depend on the size,

    1/n mean_b 1/2 || e^tau grad_1 R - z ||^2  +  lambda/n ( mean_b [1/2 (d_tau R)^2 - d_tautau R] + boundary term ).

The image part is taken over the pixels whose receptive field lies inside of the patch; the smoothing part on a
fraction of the batch (unbiased). Optimiser: AdaBelief with cosine annealing, as in the paper, Adam, or Muon. The loop
serves every :class:`gnclib.foe.LearnedEnergy`.

All random numbers are drawn on the CPU, for the whole batch, whatever the device and the number of processes: these
change how a run is computed, not which run it is. With several processes each computes the loss on its own part
(:mod:`gnclib.score.distributed`).

:func:`training` is a generator: it yields one :class:`Step` per iteration and prints nothing, so that a notebook can
drive it and plot while it runs. :mod:`gnclib.score.run` drives it with checkpoints and a log (`gnc train`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_optimizer import AdaBelief, Muon
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gnclib import io
from gnclib.deep import NetworkEnergy, configuration, kind_of
from gnclib.foe import FieldsOfExperts, FoEConfig, LearnedEnergy
from gnclib.images import PatchSampler, refuse_validation
from gnclib.score import ALONE, Group, TrainConfig, learning_rate
from gnclib.score import losses as sm

# the state -----------------------------------------------------------------------------------------------------------


@dataclass
class TrainState(io.State):
    """Everything that a training needs to go on: the prior in training, beside what :class:`gnclib.io.State` has.

    The optimiser has one group of parameters for each learning rate. ``average`` is the moving average of the model,
    made here; None if ``config.averaging`` is 0.
    """

    model: LearnedEnergy
    config: TrainConfig
    average: AveragedModel | None = None

    def __post_init__(self) -> None:
        self.generator.manual_seed(self.config.seed)
        self.optimizer = _optimiser(self.config.optimiser, self.parts, self.rates)
        self.model.bf16 = self.config.bf16
        if self.config.averaging:
            self.average = AveragedModel(self.model, multi_avg_fn=partial(_average, self.config.averaging))

    @property
    def prior(self) -> LearnedEnergy:
        """What the run has learned so far: the averaged model, or the model itself where nothing is averaged."""
        return self.average.module if self.average else self.model

    @property
    def trained(self) -> list[Tensor]:
        """The parameters that are learned."""
        return [p for part in self.parts.values() for p in part]

    @property
    def parts(self) -> dict[str, list[Tensor]]:
        """The parameters by the setting that is their first learning rate."""
        parts = dict(self.model.parameter_groups())
        if self.config.optimiser == "muon":
            matrices = {p for p in parts["lr"] if p.ndim == 4 and min(p.shape[:2]) > 1}
            parts["lr_matrix"] = [p for p in parts["lr"] if p in matrices]
            parts["lr"] = [p for p in parts["lr"] if p not in matrices]
        return parts

    @property
    def rates(self) -> tuple[float, ...]:
        """First learning rates of the groups of parameters, that of coarser scales by default as of the fine one."""
        return tuple(getattr(self.config, name) or self.config.lr for name in self.parts)

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


def _optimiser(name: str, parts: dict[str, list[Tensor]], rates: tuple[float, ...]) -> torch.optim.Optimizer:
    groups = [{"params": part, "lr": lr} for part, lr in zip(parts.values(), rates, strict=True)]
    if name == "adam":
        return torch.optim.Adam(groups, betas=(0.9, 0.99))
    if name == "adabelief":
        return AdaBelief(groups, weight_decay=0.0)
    for part, group in zip(parts, groups, strict=True):
        group["use_muon"] = part == "lr_matrix"
    return Muon(groups, adamw_betas=(0.9, 0.99), adamw_eps=1e-8)


def _average(decay: float, averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    """Average <- average + (1 - beta) (current - average), beta = min(decay, (1 + count) / (10 + count)), in place."""
    beta = min(decay, (1 + count.item()) / (10 + count.item()))
    torch._foreach_lerp_(averaged, current, 1 - beta)


class _Checkpoint(io.Checkpoint):
    prior: dict[str, Any]


def load_checkpoint(folder: str | Path, device: torch.device | str = "cpu") -> TrainState:
    """The state that :func:`gnclib.io.save_checkpoint` wrote, its model and optimiser on ``device``; raises alike."""

    def build(meta: dict[str, Any], parts: dict[str, dict[str, Tensor]]) -> TrainState:
        config = configuration(meta["prior"])
        model = kind_of(config).from_state(config, parts.pop("model", {}))
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
    weights = {k.removeprefix("module."): v for k, v in average.items()}
    io.demand_tensors(weights, state.model.config.shapes, "the moving average")
    state.average.load_state_dict({f"module.{k}": v for k, v in weights.items()} | {"n_averaged": count})


# the loss ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One iteration: its number, loss and its two parts per pixel, the learning rate of kernels and potentials."""

    step: int
    loss: float
    image: float
    smoothing: float
    lr: float


class Levels(NamedTuple):
    """Ends of an interval of noise levels, as configurations and energies have them too."""

    sigma_min: float
    sigma_max: float


def sample_noise(
    levels: Levels, count: int, shape: torch.Size, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """tau ~ U(tau_min, tau_max), stratified over the batch (B,), and z ~ N(0, I) of ``shape``.

    Stratified: image b of ``count`` gets the b-th of as many equal parts of the interval. Each batch covers all noise
    levels, and the mean over the batch stays unbiased.
    """
    low, high = math.log(levels.sigma_min), math.log(levels.sigma_max)
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return low + (high - low) * u, torch.randn(shape, generator=generator)


def smoothing_part(
    model: LearnedEnergy,
    x: Tensor,
    tau: Tensor,
    z: Tensor,
    config: TrainConfig,
    generator: torch.Generator,
    group: Group = ALONE,
) -> Tensor:
    """The tau-part of the loss (eq. 7) on some patches, per pixel: a scalar.

    ``x``, ``tau`` and ``z`` are clean patches (B, 1, H, W), logarithmic noise levels (B,) and noise, for all ranks. The
    corrected objective needs noise at the two ends of the tau interval as well: patch k goes to tau_max for even k and
    to tau_min for odd k. With N ranks, rank r takes the patches r, r + N, ... and returns its share of the mean, which
    is 0 (and depends on no parameter) if there is none.
    """
    total, corrected = len(x), config.objective == "corrected"
    z_ends = torch.randn(x.shape, generator=generator) if corrected else z
    mine = torch.arange(total)[group.rank :: group.world]
    if not len(mine):
        return torch.zeros_like(model.offset[0]).detach()
    x, tau, z, z_ends = (v[mine].to(model.offset) for v in (x, tau, z, z_ends))
    order = 1 if config.objective == "denoising" else 2
    options, margin = ({"border": "valid"}, model.margin) if model.has_valid_part else ({}, 0)
    first, *second = model.dtau(_noisy(x, tau, z), (2 * tau).exp(), order=order, **options)
    inner = F.pad(z, [-margin] * 4)  # one feature position per pixel
    pixels = inner[0].numel()
    if config.objective == "denoising":
        return group.share(sm.denoising_term(first, inner), total) / pixels
    if config.objective == "vanishing":
        ends = model.config.grid_tau
        return group.share(sm.vanishing_term(first, *second, tau, ends.low, ends.high), total) / pixels
    value = group.share(sm.implicit_term(first, *second), total)
    if corrected:
        ends, high = model.config.grid_tau, mine % 2 == 0
        tau = torch.where(high, ends.high, ends.low).to(tau)
        (first,) = model.dtau(_noisy(x, tau, z_ends), (2 * tau).exp(), order=1, **options)
        high = high.to(first.device)
        at_max, at_min = group.share(first[high], (total + 1) // 2), group.share(first[~high], total // 2)
        value = value + sm.boundary_term(at_max, at_min, ends.low, ends.high)
    return value / pixels


def loss_parts(
    model: LearnedEnergy,
    x: Tensor,
    config: TrainConfig,
    generator: torch.Generator,
    group: Group = ALONE,
    levels: Levels | None = None,
) -> tuple[Tensor, Tensor]:
    """Image and smoothing part of eq. (7), each per pixel, for a batch of clean patches: two scalars.

    ``x`` is the whole batch (B, 1, H, W) in [0, 1]. The smoothing part is the mean over round(fraction B) patches, at
    least one (two if corrected). With several ranks both parts are this rank's share: their means over the ranks are
    the loss. The noise has the levels of the energy by default.
    """
    tau, z = sample_noise(levels or model.config, len(x), x.shape, generator)
    mine = group.slice(len(x))
    own_x, own_tau, own_z = (v[mine].to(model.offset) for v in (x, tau, z))
    t, y = (2 * own_tau).exp(), _noisy(own_x, own_tau, own_z)
    # an energy without a valid part, with coarser scales or a network, sees the whole patch
    edge = 2 * model.margin if model.has_valid_part else 0
    noise = F.pad(own_z, [-edge] * 4)
    at_once = isinstance(model, NetworkEnergy) and config.fraction == 1 and config.objective == "denoising"
    if at_once:  # one backward pass gives both derivatives
        grad, first = model.grads(y, t)
    else:
        grad = model.inner_grad(y, t) if model.has_valid_part else model.grad(y, t)
    weight = (10 * own_tau.exp()) ** config.emphasis
    image = group.share(weight * sm.image_term(grad, noise, t), len(x)) / noise[0].numel()
    if config.smoothing == 0:
        return image, torch.zeros_like(image).detach()
    if at_once:
        return image, group.share(sm.denoising_term(first, noise), len(x)) / noise[0].numel()
    least = 2 if config.objective == "corrected" else 1  # both ends of the tau interval
    count = max(least, round(config.fraction * len(x)))
    chosen = torch.randperm(len(x), generator=generator)[:count]
    return image, smoothing_part(model, x[chosen], tau[chosen], z[chosen], config, generator, group)


def _noisy(x: Tensor, tau: Tensor, z: Tensor) -> Tensor:
    """y = x + e^tau z, (B, 1, H, W)."""
    return x + tau.exp()[:, None, None, None] * z


def training(state: TrainState, images, group: Group = ALONE) -> Iterator[Step]:
    """Train ``state.model`` on random patches of ``images`` and yield a :class:`Step` after each iteration.

    The state is changed in place; one from :func:`load_checkpoint` goes on where it was. The images (1, 1, H, W) are a
    dict or a list, the same in all processes that train together.

    Raises
    ------
    ValueError
        An image of the benchmark BSDS68 or of val among ``images``, patches that do not fit, or a batch that cannot be
        divided among the processes.
    FloatingPointError
        The loss or its gradient is no longer finite; weights and step are then as before that iteration.
    """
    config, model = state.config, state.model
    need = 4 * model.margin + 1 if model.has_valid_part else model.smallest
    if config.patch < need:
        raise ValueError(f"patches of {config.patch} pixels are too small: this prior needs {need} or more")
    counts = [config.batch, *([config.batch // 4] if config.wide else [])]
    if any(count % group.world for count in counts):
        raise ValueError(
            f"a batch of {' or '.join(map(str, counts))} cannot be divided equally among {group.world} processes"
        )
    if hasattr(images, "keys"):
        refuse_validation(images.keys())
    narrow = PatchSampler(images, config.patch, state.generator)
    wide = PatchSampler(images, 2 * config.patch, state.generator) if config.wide else None
    while state.step < config.steps:
        begun = int(config.hold * config.steps)  # below config.steps
        for part, first in zip(state.optimizer.param_groups, state.rates, strict=True):
            since = max(0, state.step - begun)
            part["lr"] = learning_rate(first, config.lr_last, since, config.steps - begun)
        if wide is None:
            x, levels = narrow.sample(config.batch), None
        elif torch.rand((), generator=state.generator) < config.wide:
            x, levels = wide.sample(config.batch // 4), Levels(config.wide_from, model.sigma_max)
        else:
            x, levels = narrow.sample(config.batch), Levels(model.sigma_min, config.narrow_to)
        loss, image, smoothing = _gradient(state, x, group, levels)
        lr = state.optimizer.param_groups[0]["lr"]
        state.optimizer.step()
        if config.projected:
            model.project()
        if config.roughness:
            model.smooth(config.roughness * lr, config.roughness_hidden)
        if state.step % 10 == 9 or state.step + 1 == config.steps:
            model.make_convex()
        if state.average:
            state.average.update_parameters(model)
        state.step += 1
        yield Step(state.step, loss, image, smoothing, lr)


def _gradient(
    state: TrainState, x: Tensor, group: Group, levels: Levels | None
) -> tuple[float, float, float]:
    """Leave the gradient of the loss on the whole batch in the parameters; return the loss and its two parts.

    Where there is a bound of its norm it is shortened to that, but for the part of c(tau).
    """
    config, parameters = state.config, list(state.model.parameters())
    image, smoothing = loss_parts(state.model, x, config, state.generator, group, levels)
    loss = image + config.smoothing * smoothing
    state.optimizer.zero_grad()
    loss.backward()
    values = torch.stack([loss.detach(), image.detach(), smoothing.detach()])
    if group.world > 1:  # a rank without a share of the smoothing part has no gradient of c(tau)
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        group.average([*(p.grad for p in parameters), values])
    found = values.tolist()
    at = f"at step {state.step + 1}: training stopped, and the last checkpoint is good"
    if not math.isfinite(found[0]):
        raise FloatingPointError(f"the loss is {found[0]} {at}")
    if not all(bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None):
        raise FloatingPointError(f"the gradient of the loss is not finite {at}")
    if config.clip:
        groups = state.model.parameter_groups()
        bounded = [p for name in groups if name != "lr_constant" for p in groups[name]]
        nn.utils.clip_grad_norm_(bounded, config.clip)
    return tuple(found)


def small_prior(seed: int = 0) -> FieldsOfExperts:
    """The R_1 of notebook 4, trained here and now, in seconds, on eight photographs of scikit-image; reproducible."""
    from gnclib.images import data

    kept = {k: v for k, v in data.embedded().items() if k not in ("camera", "chelsea", "coins")}
    most = {"steps": 240, "batch": 16, "patch": 24, "fraction": 0.25, "lr": 1e-2, "roughness": 10.0}
    config = TrainConfig(**most, objective="denoising", seed=seed)
    state = TrainState(FieldsOfExperts(FoEConfig(features=24, kernel_size=5, nodes_x=63)), config)
    for _ in training(state, kept):
        pass
    return state.prior
