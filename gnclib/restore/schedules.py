r"""Schedules: which smoothing t_i at which step, and how far each step goes.

A schedule is a list of noise variances t_1 .. t_I, usually falling from a t_1 at which the energy is convex. The GNC
flow (Kobler & Pock 2023, eq. 9) takes with each of them the step

    x_i = prox_{eta_i D}( x_{i-1} - eta_i grad_1 R(x_{i-1}, t_i) ).

Without data the full step eta_i = t_i is the posterior mean (Tweedie). With data each step also moves towards the
measurement, and what the flow does to an image is decided by the *sum* of the steps taken at smoothings below the noise
level: steps eta explicit in R and implicit in D are one Euler step of length eta of the flow x' = -grad (D + R). With
eta_i = t_i this length depends on the number of steps; with the rule "increment" it does not, because it telescopes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor


def log_schedule(t_first: float, t_last: float, steps: int) -> Tensor:
    """Noise variances equally spaced in log t, both ends included, float64 (steps,); steps = 1: [t_first].

    Either end may be the larger one. Raises ValueError unless both are finite and > 0 and steps is an integer >= 1.
    """
    return _spaced(t_first, t_last, steps, math.log, torch.exp)


def linear_schedule(t_first: float, t_last: float, steps: int) -> Tensor:
    """Noise variances equally spaced in t; otherwise as :func:`log_schedule`."""
    return _spaced(t_first, t_last, steps, float, lambda ts: ts)


def _spaced(t_first: float, t_last: float, steps: int, there: Callable, back: Callable) -> Tensor:
    """Equally spaced where ``there`` leads, and back; both ends are exact."""
    for name, t in (("t_first", t_first), ("t_last", t_last)):
        if not (math.isfinite(t) and t > 0):
            raise ValueError(f"{name} is a noise variance: it must be finite and > 0, got {t}")
    ts = back(torch.linspace(there(t_first), there(t_last), as_count(steps), dtype=torch.float64))
    ts[-1], ts[0] = t_last, t_first  # in this order: a single step is the first
    return ts


def as_count(steps: int) -> int:
    """A number of steps, checked: an integer >= 1 (numpy's, or a float without fraction, will do). ValueError else."""
    whole = isinstance(steps, Integral) or (isinstance(steps, float) and steps.is_integer())
    if isinstance(steps, bool) or not whole or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps}")
    return int(steps)


def as_schedule(schedule: Tensor | Sequence[float], batch: int | None = None) -> Tensor:
    """A schedule, checked, as a detached copy: (I,) or (I, B), float64, on the device of a tensor, else on the CPU.

    Noise variances (or step sizes) are finite and > 0, at least one; those of shape (I, B) are for ``batch`` samples,
    if it is given. Raises ValueError: anything else.
    """
    try:  # the dtype is named here: a list of floats would become float32
        ts = torch.as_tensor(schedule, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a schedule is a tensor or list of noise variances, got {schedule!r}") from error
    if ts.ndim not in (1, 2) or ts.numel() == 0:
        raise ValueError(f"a schedule has shape (steps,) or (steps, batch), not empty, got {tuple(ts.shape)}")
    if ts.ndim == 2 and batch not in (None, ts.shape[1]):
        raise ValueError(f"a schedule per sample has shape (steps, {batch}) here, got {tuple(ts.shape)}")
    if not bool((torch.isfinite(ts) & (ts > 0)).all()):
        raise ValueError("a schedule, of noise variances or of step sizes, must be finite and > 0 throughout")
    return ts


def step_sizes(schedule: Tensor | Sequence[float], rule: str = "full") -> Tensor:
    """Step sizes eta_1 .. eta_I for a schedule, float64, shaped like it: (I,) or (I, B).

    Parameters
    ----------
    schedule : (I,) or (I, B), noise variances
    rule : {"full", "increment"}
        "full" is the paper's, eta_i = t_i (eq. 9). "increment" is eta_i = t_i - t_{i+1} with t_{I+1} = 0, the full step
        times 1 - t_{i+1} / t_i, as DDIM for the variance-exploding process does with sigma instead of t. The steps from
        any t_j on sum to t_j, however many there are. Where the schedule is level the step is 0, which
        `gnclib.restore.flow.gnc_flow` refuses.

    Raises ValueError: another rule, a bad schedule, or one that rises under "increment".
    """
    ts = as_schedule(schedule)
    if rule == "full":
        return ts
    if rule != "increment":
        raise ValueError(f"unknown rule {rule!r} for the steps: choose full or increment")
    steps = ts - torch.cat([ts[1:], torch.zeros_like(ts[:1])])
    if bool((steps < 0).any()):
        raise ValueError('the rule "increment" needs a schedule that does not rise')
    return steps
