r"""Joint optimisation over the image and the smoothing (Kobler & Pock 2023, Algorithm 2).

The learned R is the energy of the pair (image, noise level), so that t need not be scheduled: it can be sought,

    min over x and t in [t_min, t_0] of   D(x) + R(x, t),

by steps that alternate between x and tau = 0.5 log t. Both solvers start at t_0, where the problem is nearly convex in
x, and stay in the interval. They ask for R and for its tau-derivative, not for grad_1 R alone.

*Algorithm 2* (`joint_descent`) uses what is known of the curvature instead of a line search,

    x   <-  prox_{t D}( x - t grad_1 R(x, t) )            grad_1 R(., t) is about 1/t-Lipschitz
    tau <-  clip( tau - d_tau R(x, tau) / N )             N: the preconditioner

*The preconditioner.* The paper divides by it "to account for the number of summands of (3)". Its value is not in the
copy at hand; read literally it is channels x pixels, 48 n for the shipped priors (restored: ``summands=48 * n``). Ours
is N = 2 n. For the energy of a Gaussian of variance s^2, R = n tau' + ||x||^2 / (2 e^(2 tau')) with
e^(2 tau') = s^2 + t, the second derivative in tau' is 2 ||x||^2 / (s^2 + t), which is 2 n where x is as noisy as tau'
says, and less where x is cleaner. So 1/(2 n) is the Newton step at the valley, and approaching from above (x cleaner
than t claims) it never overshoots; 1/(48 n) goes the same way in steps 24 times shorter.

*PALM* (`palm`; Bolte, Sabach & Teboulle 2014), of which the paper says that it could be used, replaces both constants
by local Lipschitz estimates, found by backtracking until the quadratic model lies above the energy. D + R then
decreases with every step, whatever the prior, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gnclib.restore import DataTerm, Energy, State, as_count, checked_start, wide

#: how often `palm` may double a Lipschitz estimate within one step
DOUBLINGS = 60
#: share of its first value below which no Lipschitz estimate falls: half of the doublings lead back to it
LEAST = 2.0 ** -(DOUBLINGS // 2)


def joint_descent(
    prior: Energy,
    t_first: float,
    data: DataTerm | None = None,
    start: Tensor | None = None,
    *,
    steps: int,
    t_last: float | None = None,
    summands: float | None = None,
) -> Iterator[State]:
    """Algorithm 2: alternating preconditioned proximal gradient steps on x and tau; one State per pair of steps.

    A State's t, (B,), is that *after* its tau-step, so that its energy is the value D(x_i) + R(x_i, t_i) reached.

    Parameters
    ----------
    prior : energy with `energy`, `grad` and `dtau(y, t, order=1)`
    t_first : float
        t_0, where the search starts and the largest t allowed; of the range of the prior where it has one.
    data, start
        As for `gnclib.restore.flow.gnc_flow`.
    steps : int >= 1
    t_last : float in (0, t_first), optional
        t_min; sigma_min^2 of the prior where it is not given.
    summands : float > 0, optional
        The preconditioner N of the step in tau. None: 2 n, n pixels (our choice); 48 n is the paper's for 48 channels,
        read literally (restored).

    Raises ValueError for bad input, at the call.
    """
    x, *ends = _checked(prior, t_first, t_last, data, start)
    summands = 2 * x[0].numel() if summands is None else summands
    if not (math.isfinite(summands) and summands > 0):
        raise ValueError(f"the preconditioner summands must be finite and > 0, got {summands}")
    return _joint_steps(prior, data, x, ends, as_count(steps), summands)


def _joint_steps(
    prior: Energy, data: DataTerm | None, x: Tensor, ends: list[float], steps: int, summands: float
) -> Iterator[State]:
    tau = x.new_full((x.shape[0],), ends[1])
    for i in range(1, steps + 1):
        with torch.no_grad():
            t = (2 * tau).exp()
            x = x - wide(t, x) * prior.grad(x, t)
            x = x if data is None else data.prox(x, t)
            tau = (tau - prior.dtau(x, t, order=1)[0] / summands).clamp(*ends)
        yield State(i, (2 * tau).exp(), x, prior, data)


def palm(
    prior: Energy,
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

    Raises
    ------
    ValueError
        As `joint_descent`.
    RuntimeError
        No L is large enough (an energy that is not finite).
    """
    x, *ends = _checked(prior, t_first, t_last, data, start)
    return _palm_steps(prior, data, x, ends, as_count(steps))


def _palm_steps(
    prior: Energy, data: DataTerm | None, x: Tensor, ends: list[float], steps: int
) -> Iterator[State]:
    tau = x.new_full((x.shape[0],), ends[1])
    bound_x, bound_tau = (-2 * tau).exp(), torch.full_like(tau, 2.0 * x[0].numel())
    least_x, least_tau = LEAST * bound_x, LEAST * bound_tau
    for i in range(1, steps + 1):
        with torch.no_grad():
            x, bound_x = _image_step(prior, data, x, (2 * tau).exp(), torch.maximum(bound_x / 2, least_x))
            tau, bound_tau = _tau_step(prior, x, tau, ends, torch.maximum(bound_tau / 2, least_tau))
        yield State(i, (2 * tau).exp(), x, prior, data)


def _image_step(
    prior: Energy, data: DataTerm | None, x: Tensor, t: Tensor, bound: Tensor
) -> tuple[Tensor, Tensor]:
    slope = prior.grad(x, t)

    def move(bound: Tensor) -> Tensor:
        v = x - slope / wide(bound, x)
        return v if data is None else data.prox(v, 1 / bound)

    return _backtrack(lambda x: prior.energy(x, t), move, x, slope, bound)


def _tau_step(
    prior: Energy, x: Tensor, tau: Tensor, ends: list[float], bound: Tensor
) -> tuple[Tensor, Tensor]:
    (slope,) = prior.dtau(x, (2 * tau).exp(), order=1)

    def move(bound: Tensor) -> Tensor:
        return (tau - slope / bound).clamp(*ends)

    return _backtrack(lambda tau: prior.energy(x, (2 * tau).exp()), move, tau, slope, bound)


def _backtrack(
    energy: Callable[[Tensor], Tensor],
    move: Callable[[Tensor], Tensor],
    at: Tensor,
    slope: Tensor,
    bound: Tensor,
) -> tuple[Tensor, Tensor]:
    """The move with the smallest bound * 2^k, per sample, for which the quadratic model lies above the energy."""
    old = energy(at)
    slack = 8 * torch.finfo(old.dtype).eps * old.abs()  # rounding of sums as large as the energy
    for _ in range(DOUBLINGS):
        new = move(bound)
        change = (new - at).reshape(len(at), -1)  # (B, n)
        linear = (slope.reshape(change.shape) * change).sum(1)
        good = energy(new) <= old + linear + bound / 2 * change.square().sum(1) + slack
        if bool(good.all()):
            return new, bound
        bound = torch.where(good, bound, 2 * bound)
    raise RuntimeError(
        f"no step was short enough in {DOUBLINGS} halvings: the energy of the prior is not finite or not smooth"
    )


def _checked(
    prior: Energy, t_first: float, t_last: float | None, data: DataTerm | None, start: Tensor | None
) -> tuple[Tensor, float, float]:
    """The start and the interval of tau."""
    if not callable(getattr(prior, "dtau", None)):
        raise ValueError(f"joint optimisation needs dtau(y, t) of the prior, {type(prior).__name__} has none")
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
    if knows and not prior.sigma_min**2 * (1 - 1e-6) <= t_last < t_first <= prior.sigma_max**2 * (1 + 1e-6):
        raise ValueError(
            f"this prior knows t from {prior.sigma_min**2:g} to {prior.sigma_max**2:g} (noise variances, grey values"
            f" in [0, 1]), got t_first = {t_first}, t_last = {t_last}"
        )
    return x, 0.5 * math.log(t_last), 0.5 * math.log(t_first)
