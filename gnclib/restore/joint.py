r"""Joint optimisation over the image and the smoothing (Kobler & Pock 2023, Algorithm 2).

The learned R is the energy of the pair (image, noise level), so that t need not be scheduled: it can be sought,

    min over x and t in [t_min, t_0] of   D(x) + R(x, t),

by steps that alternate between x and tau = 0.5 log t. Both solvers start at t_0, where the problem is nearly convex
in x, and stay in the interval. They ask for R and for its tau-derivative, not for grad_1 R alone.

*Algorithm 2* (`joint_descent`) uses what is known of the curvature instead of a line search,

    x   <-  prox_{t D}( x - t grad_1 R(x, t) )            grad_1 R(., t) is about 1/t-Lipschitz
    tau <-  clip( tau - d_tau R(x, tau) / (2 n) )         n pixels: R is a sum of n terms

Why 2 n: the paper preconditions the step in the smoothing by the number of summands of R. For the energy of a Gaussian
of variance s^2, R = n tau' + ||x||^2 / (2 e^(2 tau')) with e^(2 tau') = s^2 + t, the second derivative in tau' is
2 ||x||^2 / (s^2 + t), which is 2 n where x is as noisy as tau' says, and less where x is cleaner. So 1/(2 n) is the
Newton step at the valley, and approaching from above (x cleaner than t claims) it never overshoots.

*PALM* (`palm`; Bolte, Sabach & Teboulle 2014), of which the paper says that it could be used, replaces both constants
by local Lipschitz estimates, found by backtracking until the quadratic model lies above the energy. D + R then
decreases with every step, whatever the prior, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from gnclib.restore.flow import DataTerm, Prior, State, checked_start, wide
from gnclib.restore.schedules import as_count

__all__ = ["JointPrior", "joint_descent", "palm"]

#: how often `palm` may double a Lipschitz estimate within one step
DOUBLINGS = 60
#: share of its first value below which no Lipschitz estimate falls: half of the doublings lead back to it
LEAST = 2.0 ** -(DOUBLINGS // 2)


class JointPrior(Prior, Protocol):
    """What joint optimisation needs of an energy: its tau-derivatives too."""

    def dtau(self, y: Tensor, t: float | Tensor, *, order: int) -> tuple[Tensor, ...]: ...


def joint_descent(
    prior: JointPrior,
    t_first: float,
    data: DataTerm | None = None,
    start: Tensor | None = None,
    *,
    steps: int,
    t_last: float | None = None,
) -> Iterator[State]:
    """Algorithm 2: alternating preconditioned proximal gradient steps on x and tau; one State per pair of steps.

    A State's t, (B,), is that *after* its tau-step, so that its energy is the value D(x_i) + R(x_i, t_i) reached.

    prior: with `energy`, `grad` and `dtau(y, t, order=1)`.
    t_first: t_0, where the search starts and the largest t allowed; of the range of the prior where it has one.
    data, start: as for `gnclib.restore.flow.gnc_flow`.
    steps: I >= 1. t_last: t_min, in (0, t_first); sigma_min^2 of the prior where it is not given.

    Raises ValueError for bad input, at the call.
    """
    x, tau_min, tau_max = _checked(prior, t_first, t_last, data, start)
    return _joint_steps(prior, data, x, tau_min, tau_max, as_count(steps))


def _joint_steps(
    prior: JointPrior, data: DataTerm | None, x: Tensor, tau_min: float, tau_max: float, steps: int
) -> Iterator[State]:
    size = x[0].numel()
    tau = x.new_full((x.shape[0],), tau_max)
    for i in range(1, steps + 1):
        with torch.no_grad():
            t = (2 * tau).exp()
            x = x - wide(t, x) * prior.grad(x, t)
            x = x if data is None else data.prox(x, t)
            tau = (tau - prior.dtau(x, t, order=1)[0] / (2 * size)).clamp(tau_min, tau_max)
        yield State(i, (2 * tau).exp(), x, prior, data)


def palm(
    prior: JointPrior,
    t_first: float,
    data: DataTerm | None = None,
    start: Tensor | None = None,
    *,
    steps: int,
    t_last: float | None = None,
) -> Iterator[State]:
    """Proximal alternating linearised minimisation with backtracking; arguments and States as for `joint_descent`.

        x   <-  prox_{D / L}( x - grad_1 R(x, t) / L ),   L doubled until
                R(x_new, t) <= R(x, t) + <grad_1 R(x, t), x_new - x> + L/2 ||x_new - x||^2
        tau <-  clip( tau - d_tau R / M ),                M doubled until the same holds in tau

    L and M are estimated per sample. They start from 1/t and 2 n and are halved before each step, so that steps can
    grow again, but not below :data:`LEAST` of where they started: once an iterate stays where it is, any L will do.
    Each step costs one gradient, one tau-derivative and at least four energies.

    Raises ValueError as `joint_descent`; RuntimeError if no L is large enough (an energy that is not finite).
    """
    x, tau_min, tau_max = _checked(prior, t_first, t_last, data, start)
    return _palm_steps(prior, data, x, tau_min, tau_max, as_count(steps))


def _palm_steps(
    prior: JointPrior, data: DataTerm | None, x: Tensor, tau_min: float, tau_max: float, steps: int
) -> Iterator[State]:
    tau = x.new_full((x.shape[0],), tau_max)
    bound_x, bound_tau = (-2 * tau).exp(), torch.full_like(tau, 2.0 * x[0].numel())
    least_x, least_tau = LEAST * bound_x, LEAST * bound_tau
    for i in range(1, steps + 1):
        with torch.no_grad():
            t = (2 * tau).exp()
            g, old = prior.grad(x, t), prior.energy(x, t)

            def move_x(bound, x=x, g=g):
                v = x - g / wide(bound, x)
                return v if data is None else data.prox(v, 1 / bound)

            def energy_x(x, t=t):
                return prior.energy(x, t)

            x, bound_x = _backtrack(move_x, energy_x, x, g, old, torch.maximum(bound_x / 2, least_x))
            (slope,) = prior.dtau(x, t, order=1)

            def move_tau(bound, tau=tau, slope=slope):
                return (tau - slope / bound).clamp(tau_min, tau_max)

            def energy_tau(tau, x=x):
                return prior.energy(x, (2 * tau).exp())

            guess = torch.maximum(bound_tau / 2, least_tau)
            tau, bound_tau = _backtrack(move_tau, energy_tau, tau, slope, energy_x(x), guess)
        yield State(i, (2 * tau).exp(), x, prior, data)


def _backtrack(
    move: Callable[[Tensor], Tensor],
    energy: Callable[[Tensor], Tensor],
    at: Tensor,
    slope: Tensor,
    old: Tensor,
    bound: Tensor,
) -> tuple[Tensor, Tensor]:
    """The move with the smallest bound * 2^k, per sample, for which the quadratic model lies above the energy."""
    slack = 8 * torch.finfo(old.dtype).eps * old.abs()  # rounding of sums as large as the energy
    for _ in range(DOUBLINGS):
        new = move(bound)
        change = (new - at).flatten(1) if at.ndim > 1 else (new - at)[:, None]  # (B, n)
        linear = (slope.reshape(change.shape) * change).sum(1)
        good = energy(new) <= old + linear + bound / 2 * change.square().sum(1) + slack
        if bool(good.all()):
            return new, bound
        bound = torch.where(good, bound, 2 * bound)
    raise RuntimeError(
        f"no step was short enough in {DOUBLINGS} halvings: the energy of the prior is not finite or not smooth"
    )


def _checked(
    prior: JointPrior, t_first: float, t_last: float | None, data: DataTerm | None, start: Tensor | None
) -> tuple[Tensor, float, float]:
    """The start and the interval of tau."""
    for need in ("energy", "dtau"):
        if not callable(getattr(prior, need, None)):
            raise ValueError(
                f"joint optimisation needs {need}(y, t) of the prior, {type(prior).__name__} has none"
            )
    x = checked_start(prior, data, start)
    knows = hasattr(prior, "sigma_min")
    if t_last is None:
        if not knows:
            raise ValueError(
                f"{type(prior).__name__} has no range of t of its own: pass t_last, the smallest t"
            )
        t_last = prior.sigma_min**2
    if not (math.isfinite(t_first) and 0 < t_last < t_first):
        raise ValueError(
            f"t must fall from t_first to t_last > 0, got t_first = {t_first}, t_last = {t_last}"
        )
    if knows and not prior.sigma_min**2 * (1 - 1e-6) <= t_last < t_first <= prior.sigma_max**2:
        raise ValueError(
            f"this prior knows t from {prior.sigma_min**2:g} to {prior.sigma_max**2:g} (noise variances, grey values"
            f" in [0, 1]), got t_first = {t_first}, t_last = {t_last}"
        )
    return x, 0.5 * math.log(t_last), 0.5 * math.log(t_first)
