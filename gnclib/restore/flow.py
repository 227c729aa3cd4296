"""GNC flow (Algorithm 1, eq. 9) and the descents that it is compared with.

Every solver is a generator: it computes one step, yields a frozen `State` and waits. The caller owns the loop, and with
it stopping, plots and progress bars. All but `ddim_flow`, which has no data term, have one signature,

    solver(prior, smoothing, data=None, start=None, *, ...)  ->  Iterator[State],

where the smoothing is a schedule (`gnc_flow`, `ddim_flow`), one fixed t (`proximal_gradient`), or the t from which a
search over t sets out (`gnclib.restore.joint`). The prior is anything with `grad(y, t)`, t being the noise variance;
the data term anything of `gnclib.restore.operators`. Bad input raises ValueError at the call, before the first step.

    GNC flow  x_i = prox_{t_i D}( x_{i-1} - t_i grad_1 R(x_{i-1}, t_i) )   (Kobler & Pock 2023, Alg. 1, eq. 9)

Without data the prox is the identity and, by Tweedie's formula, each step is the posterior mean
E[ X | X + sqrt(t_i) Z = x_{i-1} ]: the flow denoises its own iterate with less and less noise in mind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from gnclib.restore.schedules import as_count, as_schedule, log_schedule


class Prior(Protocol):
    """An energy as the solvers need it: R(y, t) only where a State is asked for it, and its gradient in y."""

    def energy(self, y: Tensor, t: float | Tensor) -> Tensor: ...

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor: ...


class Hessian(Prior, Protocol):
    """An energy whose Hessian in y is known by its products with v, shaped like y."""

    def hvp(self, y: Tensor, t: float | Tensor, v: Tensor) -> Tensor: ...


class Energy(Hessian, Protocol):
    """The contract of a learned energy of images: all that this package asks of the priors that it loads.

    sigma_min, sigma_max: the noise levels between which it is defined, grey values; t = sigma^2.
    margin: how many pixels away a term of the energy sees; the gradient sees twice as far.
    alignment: a part of an image gives the same terms where it begins at a multiple of this number of pixels.
    """

    sigma_min: float
    sigma_max: float
    margin: int
    alignment: int

    def energy_and_grad(self, y: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]: ...

    def dtau(self, y: Tensor, t: float | Tensor, *, order: int) -> tuple[Tensor, ...]: ...


def energy_and_grad(prior: Prior, y: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
    """R(y, t), (B,), and its gradient: by one pass through the energy where it has one."""
    both = getattr(prior, "energy_and_grad", None)
    return both(y, t) if both else (prior.energy(y, t), prior.grad(y, t))


class DataTerm(Protocol):
    """A data term as the solvers need it (see gnclib.restore.operators)."""

    def energy(self, x: Tensor) -> Tensor: ...

    def prox(self, v: Tensor, step: float | Tensor) -> Tensor: ...

    def start(self) -> Tensor: ...


@dataclass(frozen=True)
class State:
    """Where a solver stands after a step; energies are computed when first asked for."""

    step: int  # number of steps taken, from 1
    t: float | Tensor  # noise variance of that step, or (B,) where every sample has one of its own
    x: Tensor  # iterate, shaped like the start
    prior: Prior | None = field(default=None, repr=False, compare=False)
    data: DataTerm | None = field(default=None, repr=False, compare=False)

    @cached_property
    def energy(self) -> Tensor:
        """D(x) + R(x, t), (B,), at the state's own t; without data R(x, t)."""
        with torch.no_grad():
            value = self.prior.energy(self.x, self.t)
            return value if self.data is None else self.data.energy(self.x) + value


# --- solvers ----------------------------------------------------------------------------------------------


def gnc_flow(
    prior: Prior,
    schedule: Tensor | Sequence[float],
    data: DataTerm | None = None,
    start: Tensor | None = None,
    *,
    step_sizes: Tensor | Sequence[float] | None = None,
    rising: bool = False,
) -> Iterator[State]:
    """GNC flow, one State per schedule entry (Kobler & Pock 2023, eq. 9; without data Algorithm 1).

        x_i = prox_{eta_i D}( x_{i-1} - eta_i grad_1 R(x_{i-1}, t_i) ),   i = 1..I

    Parameters
    ----------
    prior : energy with grad(y, t)
    schedule : (I,), or (I, B) for one schedule per sample
        Noise variances t_1 .. t_I, not rising. GNC wants a t_1 at which R is convex, which is not checked.
    data : data term, optional
        None: the prox is the identity.
    start : (B, ...), floating, optional
        x_0; data.start() where it is not given. It is copied, and not yielded.
    step_sizes : shaped like the schedule, optional
        eta_1 .. eta_I > 0; the paper's eta_i = t_i by default. Rules: :func:`gnclib.restore.schedules.step_sizes`.
    rising : bool
        True allows schedules that rise, as learned ones do at times.

    Raises
    ------
    ValueError
        A schedule that rises or is not finite and > 0, another shape of step sizes, no start, no gradient.
    """
    x = checked_start(prior, data, start)
    ts = as_schedule(schedule, x.shape[0])
    if not rising and bool((ts.diff(dim=0) > 0).any()):
        raise ValueError(
            "the schedule rises: graduated non-convexity goes from strong smoothing to weak (rising=True allows it)"
        )
    etas = ts if step_sizes is None else as_schedule(step_sizes, x.shape[0])
    if etas.shape != ts.shape:
        raise ValueError(f"one step size per schedule entry: {tuple(etas.shape)} is not {tuple(ts.shape)}")
    return _steps(prior, ts, etas, data, x)


def ddim_flow(prior: Prior, schedule: Tensor | Sequence[float], start: Tensor) -> Iterator[State]:
    """Deterministic DDIM for the variance-exploding process: the gradient of `gnc_flow`, a shorter step.

        x_i = x_{i-1} - (1 - sigma_{i+1} / sigma_i) t_i grad_1 R(x_{i-1}, t_i),    sigma_i = t_i^(1/2), sigma_{I+1} = 0

    It moves the iterate to where a sample of the next noise level would be, where GNC flow goes all the way to the
    denoised point. The last step is the full one. Arguments and errors as for `gnc_flow` without data.
    """
    ts = as_schedule(schedule)
    sigmas = torch.cat([ts.sqrt(), torch.zeros_like(ts[:1])])  # (I + 1,) or (I + 1, B)
    return gnc_flow(prior, ts, start=start, step_sizes=(1 - sigmas[1:] / sigmas[:-1]) * ts)


def proximal_gradient(
    prior: Prior,
    t: float,
    data: DataTerm | None = None,
    start: Tensor | None = None,
    *,
    steps: int,
    step: float | None = None,
) -> Iterator[State]:
    """Proximal gradient descent on D + R(., t) at one fixed t: the control without graduated non-convexity.

        x_i = prox_{step D}( x_{i-1} - step grad_1 R(x_{i-1}, t) )

    Without data it is plain gradient descent. The energy falls for steps up to 1 / (Lipschitz constant of
    grad_1 R(., t)).

    Parameters
    ----------
    prior, data, start
        As for `gnc_flow`.
    t : float >= 0, where the prior allows 0
    steps : int >= 1
    step : float > 0, optional
        t by default: for a true smoothed energy t Hess R <= 1, so that t is 1 / Lipschitz wherever the Hessian is not
        much below -1/t.
    """
    x = checked_start(prior, data, start)
    if not (math.isfinite(t) and t >= 0):
        raise ValueError(f"t is a noise variance: it must be finite and >= 0, got {t}")
    step = t if step is None else step
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"the step must be finite and > 0, got {step}")
    ts, etas = torch.tensor([[t], [step]], dtype=torch.float64).expand(2, as_count(steps))
    return _steps(prior, ts, etas, data, x)


def _steps(prior: Prior, ts: Tensor, etas: Tensor, data: DataTerm | None, x: Tensor) -> Iterator[State]:
    """Eq. 9 for schedules and step sizes (I,) or (I, B), float64."""
    for i, pair in enumerate(zip(ts, etas, strict=True), start=1):
        t, eta = (v.to(x) if v.ndim else float(v) for v in pair)
        with torch.no_grad():  # not around the yield: the caller's gradient mode is the caller's
            x = x - wide(eta, x) * prior.grad(x, t)
            x = x if data is None else data.prox(x, eta)
        yield State(i, t, x, prior, data)


def checked_start(prior: Prior, data: DataTerm | None, start: Tensor | None) -> Tensor:
    """The start as a detached copy, checked as by all solvers, as is that the prior has a gradient."""
    if not callable(getattr(prior, "grad", None)):
        raise ValueError(f"the prior must offer grad(y, t), {type(prior).__name__} does not")
    if start is None:
        if data is None:
            raise ValueError("without a data term a solver has no default start: pass start=...")
        start = data.start()
    if not isinstance(start, Tensor) or start.ndim == 0 or not start.is_floating_point():
        raise ValueError("the start must be a floating-point tensor: (B,), (B, d) or (B, 1, H, W)")
    if start.shape[0] == 0 or not bool(torch.isfinite(start).all()):
        raise ValueError("the start must hold at least one sample and only finite values")
    return start.detach().clone()


def wide(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A number as it is, or (B,) as a factor that broadcasts against x, (B, ...)."""
    return value.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(value, Tensor) else value


def last(states: Iterator[State]) -> State:
    """The last state of a solver run to its end. Raises ValueError if there is none."""
    state = None
    for state in states:  # noqa: B007
        pass
    if state is None:
        raise ValueError("the solver yielded no state (was it run before? a generator runs once)")
    return state


# --- attainment -------------------------------------------------------------------------------------------


def attained(x: Tensor, target: Tensor | float, tolerance: float) -> Tensor:
    """Which samples lie at the target, ||x_b - target|| <= tolerance: (B, ...) -> boolean (B,)."""
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"the tolerance is a distance: it must be finite and > 0, got {tolerance}")
    target = torch.as_tensor(target, dtype=x.dtype, device=x.device)
    if target.shape not in (x.shape[1:], torch.Size([])):
        raise ValueError(f"the target is one point of shape {tuple(x.shape[1:])}, got {tuple(target.shape)}")
    return (x - target).reshape(len(x), -1).norm(dim=1) <= tolerance


def attainment_map(
    prior: Prior,
    starts: Tensor,
    t_firsts: Sequence[float] | Tensor,
    steps: Sequence[int],
    target: Tensor | float,
    tolerance: float,
    t_last: float = 1e-4,
) -> Tensor:
    """Attainment over initial smoothing t_0, (M,), and number of steps I, (N,) (Figure 1, centre): float64 (M, N).

    The fraction of the starts (B, ...) whose flow ends at the target, see :func:`attained`. Schedules are logarithmic
    from t_0 to ``t_last``, which is our choice. All t_0 run as one batch of M * B samples.
    """
    t_firsts = [float(t) for t in t_firsts]
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

    Of an :func:`attainment_map` (M, N) whose columns have rising numbers of steps: M numbers, nan where not even the
    largest is enough. Raises ValueError for columns of another number, or in another order.
    """
    if list(steps) != sorted(steps) or arrival.shape[1:] != (len(steps),):
        raise ValueError(f"steps must be rising, one per column of {tuple(arrival.shape)}, got {list(steps)}")
    full = (arrival == 1).flip(1).cumprod(dim=1).sum(dim=1).tolist()  # columns of 1, from the last one
    return [float(steps[len(steps) - n]) if n else math.nan for n in full]
