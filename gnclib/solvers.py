"""Descent on a smoothed energy: GNC flow and what it is compared with.

Every solver is a generator: it computes one step, yields a frozen `State` and waits. The caller owns the
loop, and with it stopping, plots and progress bars. An energy is anything with `grad(y, t)`, t being the
noise variance.

    GNC flow  x_i = prox_{t_i D}( x_{i-1} - t_i grad_1 R(x_{i-1}, t_i) )   (Kobler & Pock 2023, Alg. 1, eq. 9)

Without data the prox is the identity and, by Tweedie's formula, each step is the posterior mean
E[ X | X + sqrt(t_i) Z = x_{i-1} ]: the flow denoises its own iterate, again and again, believing in less and
less noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Prior(Protocol):
    """What the solvers need of an energy."""

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor: ...


class DataTerm(Protocol):
    """What the solvers need of a data term (see gnclib.operators)."""

    def prox(self, v: Tensor, step: float | Tensor) -> Tensor: ...

    def start(self) -> Tensor: ...


@dataclass(frozen=True)
class State:
    """Where a solver stands after `step` steps (counted from 1).

    t: the noise variance of that step, a float, or (B,) where every sample has a schedule of its own.
    x: the iterate, shaped like the start.
    """

    step: int
    t: float | Tensor
    x: Tensor


# ---------------------------------------------------------------------------------------------- schedules


def log_schedule(t_first: float, t_last: float, steps: int) -> Tensor:
    """Noise variances equally spaced in log t, both ends included, float64 (steps,); steps = 1: [t_first].

    Either end may be the larger one. Raises ValueError unless both are finite and > 0 and steps is an
    integer >= 1.
    """
    _check_schedule_ends(t_first, t_last, steps)
    ts = torch.linspace(math.log(t_first), math.log(t_last), int(steps), dtype=torch.float64).exp()
    return _exact_ends(ts, t_first, t_last)


def linear_schedule(t_first: float, t_last: float, steps: int) -> Tensor:
    """Noise variances equally spaced in t, both ends included, float64 (steps,); steps = 1: [t_first].

    Either end may be the larger one. Raises ValueError unless both are finite and > 0 and steps is an
    integer >= 1.
    """
    _check_schedule_ends(t_first, t_last, steps)
    return _exact_ends(torch.linspace(t_first, t_last, int(steps), dtype=torch.float64), t_first, t_last)


def _check_schedule_ends(t_first: float, t_last: float, steps: int) -> None:
    for name, t in (("t_first", t_first), ("t_last", t_last)):
        if not (math.isfinite(t) and t > 0):
            raise ValueError(f"{name} is a noise variance: it must be finite and > 0, got {t}")
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps}")


def _exact_ends(ts: Tensor, t_first: float, t_last: float) -> Tensor:
    """Undo the rounding of exp(log t) at both ends."""
    ts[-1] = t_last
    ts[0] = t_first
    return ts


def _as_schedule(schedule: Tensor | Sequence[float], batch: int) -> Tensor:
    """(I,) or (I, B), float64, on the CPU where it stands alone; finite, positive, not empty."""
    try:  # the dtype is named here: a list of floats would become float32
        ts = torch.as_tensor(schedule, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a schedule is a tensor or list of noise variances, got {schedule!r}") from error
    if ts.ndim not in (1, 2) or ts.numel() == 0:
        raise ValueError(
            f"a schedule has shape (steps,) or (steps, batch), steps >= 1, got {tuple(ts.shape)}"
        )
    if ts.ndim == 2 and ts.shape[1] != batch:
        raise ValueError(f"a schedule per sample has shape (steps, {batch}) here, got {tuple(ts.shape)}")
    if not bool((torch.isfinite(ts) & (ts > 0)).all()):
        raise ValueError("a schedule holds noise variances: all must be finite and > 0")
    return ts


# ------------------------------------------------------------------------------------------------ solvers


def gnc_flow(
    prior: Prior,
    schedule: Tensor | Sequence[float],
    data: DataTerm | None = None,
    start: Tensor | None = None,
) -> Iterator[State]:
    """GNC flow: one State per schedule entry (the start itself is not yielded).

        x_i = prox_{t_i D}( x_{i-1} - t_i grad_1 R(x_{i-1}, t_i) ),   i = 1..I     (Kobler & Pock 2023, eq. 9)

    prior: an energy with grad(y, t).
    schedule: noise variances t_1..t_I, (I,), or (I, B) for one schedule per sample. The theory wants them
        falling from a t_1 at which R is convex, but any order runs (learned schedules climb at times).
    data: a data term (gnclib.operators), or None: the prox is then the identity, which is Algorithm 1.
    start: (B, ...) floating; data.start() where it is not given.

    Nothing is computed before the first `next`; bad input raises ValueError at the call already.
    """
    if start is None:
        if data is None:
            raise ValueError("without a data term the flow has no default start: pass start=...")
        start = data.start()
    x, ts = _checked(prior, schedule, start)
    return _gnc_steps(prior, ts, data, x)


def _gnc_steps(prior: Prior, ts: Tensor, data: DataTerm | None, x: Tensor) -> Iterator[State]:
    for i, t in enumerate(ts, start=1):
        t, step = _time_and_step(t, x)
        with torch.no_grad():  # not around the yield: the caller's gradient mode is the caller's
            x = x - step * prior.grad(x, t)
            x = x if data is None else data.prox(x, t)
        yield State(i, t, x)


def ddim_flow(prior: Prior, schedule: Tensor | Sequence[float], start: Tensor) -> Iterator[State]:
    """Deterministic DDIM for the variance-exploding process: the same gradient, a shorter step.

        x_i = x_{i-1} - (1 - sigma_{i+1} / sigma_i) t_i grad_1 R(x_{i-1}, t_i),    sigma_{I+1} = 0

    with sigma_i = sqrt(t_i). It moves the iterate to where a sample of the next noise level would be, where
    GNC flow goes all the way to the denoised point. The last step is the full one. The schedule must not rise
    (ValueError); otherwise as `gnc_flow` without data.
    """
    x, ts = _checked(prior, schedule, start)
    if bool((ts.diff(dim=0) > 0).any()):
        raise ValueError("ddim_flow removes noise: its schedule must not rise")
    sigmas = torch.cat([ts.sqrt(), torch.zeros_like(ts[:1])])  # (I + 1,) or (I + 1, B)
    return _ddim_steps(prior, ts, 1 - sigmas[1:] / sigmas[:-1], x)


def _ddim_steps(prior: Prior, ts: Tensor, fractions: Tensor, x: Tensor) -> Iterator[State]:
    for i, (t, fraction) in enumerate(zip(ts, fractions, strict=True), start=1):
        _, share = _time_and_step(fraction, x)
        t, step = _time_and_step(t, x)
        with torch.no_grad():
            x = x - share * step * prior.grad(x, t)
        yield State(i, t, x)


def gradient_descent(prior: Prior, start: Tensor, t: float, step: float, steps: int) -> Iterator[State]:
    """Plain gradient descent on R(., t) at one fixed t: x_i = x_{i-1} - step * grad_1 R(x_{i-1}, t).

    start: (B, ...) floating; t >= 0 (t = 0 is the energy itself, where the prior allows it); step > 0, and
    at most 1 / (Lipschitz constant of the gradient) for a sure descent; steps >= 1. Raises ValueError else.
    """
    x, _ = _checked(prior, [1.0], start)
    if not (math.isfinite(t) and t >= 0):
        raise ValueError(f"t is a noise variance: it must be finite and >= 0, got {t}")
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"the step must be finite and > 0, got {step}")
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps}")
    return _descent_steps(prior, x, float(t), step, int(steps))


def _descent_steps(prior: Prior, x: Tensor, t: float, step: float, steps: int) -> Iterator[State]:
    for i in range(1, steps + 1):
        with torch.no_grad():
            x = x - step * prior.grad(x, t)
        yield State(i, t, x)


def _checked(prior: Prior, schedule: Tensor | Sequence[float], start: Tensor) -> tuple[Tensor, Tensor]:
    """Validate what all flows share; the start comes back as a detached copy."""
    if not callable(getattr(prior, "grad", None)):
        raise ValueError(f"the prior must offer grad(y, t), {type(prior).__name__} does not")
    if not isinstance(start, Tensor) or start.ndim == 0 or not start.is_floating_point():
        raise ValueError("the start must be a floating-point tensor: (B,), (B, d) or (B, 1, H, W)")
    if start.shape[0] == 0 or not bool(torch.isfinite(start).all()):
        raise ValueError("the start must hold at least one sample and only finite values")
    return start.detach().clone(), _as_schedule(schedule, start.shape[0])


def _time_and_step(t: Tensor, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """One schedule entry as the prior wants it (float or (B,)), and as a factor that broadcasts against x."""
    if t.ndim == 0:
        return float(t), float(t)
    t = t.to(x)
    return t, t.reshape(-1, *[1] * (x.ndim - 1))


# --------------------------------------------------------------------------------------------- attainment


def last(states: Iterator[State]) -> State:
    """Run a solver to its end and return the last state. Raises ValueError if there is none."""
    state = None
    for state in states:  # noqa: B007
        pass
    if state is None:
        raise ValueError("the solver yielded no state (was it run before? a generator runs once)")
    return state


def attained(x: Tensor, target: Tensor | float, tolerance: float) -> Tensor:
    """Which samples lie at the target: ||x_b - target|| <= tolerance. x: (B, ...), returns boolean (B,)."""
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"the tolerance is a distance: it must be finite and > 0, got {tolerance}")
    target = torch.as_tensor(target, dtype=x.dtype, device=x.device)
    if target.shape not in (x.shape[1:], torch.Size([])):
        raise ValueError(f"the target is one point of shape {tuple(x.shape[1:])}, got {tuple(target.shape)}")
    return (x - target).flatten(1).norm(dim=1) <= tolerance if x.ndim > 1 else (x - target).abs() <= tolerance


def attainment(
    prior: Prior, starts: Tensor, schedule: Tensor | Sequence[float], target: Tensor | float, tolerance: float
) -> float:
    """Fraction of the starts (B, ...) whose GNC flow ends within `tolerance` of the target; in [0, 1]."""
    end = last(gnc_flow(prior, schedule, start=starts))
    return attained(end.x, target, tolerance).double().mean().item()


def attainment_map(
    prior: Prior,
    starts: Tensor,
    t_firsts: Sequence[float] | Tensor,
    steps: Sequence[int],
    target: Tensor | float,
    tolerance: float,
    t_last: float = 1e-4,
) -> Tensor:
    """Figure 1 (centre): attainment over initial smoothing t_0 and number of steps I, logarithmic schedules.

    starts: (B, ...). t_firsts: (M,), steps: (N,). Returns float64 (M, N) in [0, 1]. The final value t_last of
    all schedules is our choice, the paper's is not known. All t_0 run as one batch of M * B samples.
    """
    t_firsts = [float(t) for t in t_firsts]
    if not t_firsts or len(steps) == 0:
        raise ValueError("the map needs at least one t_first and one number of steps")
    count = starts.shape[0]
    everything = starts.repeat(len(t_firsts), *[1] * (starts.ndim - 1))  # (M B, ...)
    columns = []
    for total in steps:
        schedules = torch.stack([log_schedule(t, t_last, total) for t in t_firsts], dim=1)  # (I, M)
        end = last(gnc_flow(prior, schedules.repeat_interleave(count, dim=1), start=everything))
        columns.append(attained(end.x, target, tolerance).reshape(len(t_firsts), count).double().mean(dim=1))
    return torch.stack(columns, dim=1)  # (M, N)


def steps_until_all_arrive(arrival: Tensor, steps: Sequence[int]) -> list[float]:
    """N(t_0): the smallest number of steps such that all starts arrive with it and with every larger one tried.

    arrival: (M, N) from `attainment_map`; steps: the N numbers of steps of its columns, rising. Returns M
    numbers, nan where not even the largest is enough. Raises ValueError for shapes that do not match.
    """
    if arrival.ndim != 2 or arrival.shape[1] != len(steps) or list(steps) != sorted(steps):
        raise ValueError(
            f"an attainment map of shape {tuple(arrival.shape)} needs one rising number of steps per column, "
            f"got {len(steps)}"
        )
    late = (
        (arrival == 1).flip(1).cumprod(dim=1).sum(dim=1).tolist()
    )  # how many columns, from the last one, are 1
    return [float(steps[len(steps) - n]) if n else math.nan for n in late]
