r"""Samples of the posterior exp(-R(x, t) - D(x)) by the Metropolis-adjusted Langevin algorithm (MALA).

With the energy U = R(., t) + D, gradient g = grad U and step h,

    proposal    x' = x - h g(x) + (2 h)^(1/2) z,    z white Gaussian
    accepted    with probability  min(1, exp( U(x) - U(x') + log q(x | x') - log q(x' | x) )),
                log q(b | a) = -||b - a + h g(a)||^2 / (4 h)

(Roberts & Tweedie 1996): the chain has the density exp(-U) / Z for every h, unlike Langevin steps that are always
accepted. Each sample of a batch is a chain of its own. The step is tuned during the first part of the budget so that
:data:`ACCEPTED` of the proposals are accepted, the optimum in many dimensions (Roberts & Rosenthal 1998), then kept.

:func:`r_hat` and :func:`effective_size` say whether chains have mixed: near 1, and how many independent samples the
chains are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gnclib.restore.flow import DataTerm, Prior, checked_start, wide
from gnclib.restore.schedules import as_count

__all__ = ["ACCEPTED", "Sample", "effective_size", "mala", "r_hat"]

#: share of the proposals that the tuning aims at
ACCEPTED = 0.574
#: part of the budget that is spent on tuning, which yields no samples
TUNING = 0.3


@dataclass(frozen=True)
class Sample:
    """Where the chains stand after a proposal.

    Attributes
    ----------
    step : number of proposals since the tuning ended, from 1
    x : (B, ...), one state per chain
    energy : (B,), R(x, t) + D(x)
    accepted : (B,), bool
    size : the step h
    """

    step: int
    x: Tensor
    energy: Tensor
    accepted: Tensor
    size: float


def mala(
    prior: Prior,
    t: float,
    data: DataTerm | None = None,
    start: Tensor | None = None,
    *,
    gradients: int,
    generator: torch.Generator | None = None,
    free: Tensor | None = None,
    step: float | None = None,
) -> Iterator[Sample]:
    """Chains with the density exp(-R(x, t) - D(x)), a Sample after each proposal.

    Parameters
    ----------
    prior : energy with ``energy(y, t)`` and ``grad(y, t)``
    t : float >= 0
        At which the prior is used.
    data : data term, optional
        With ``energy(x)`` in operations that torch can differentiate; none for samples of the prior.
    start : (B, ...), floating, optional
        B chains; data.start() by default. Chains that are to be compared should start far apart.
    gradients : int >= 1
        The budget: gradients per chain, the first :data:`TUNING` of them for tuning the step.
    generator : of the noise; torch's own by default
    free : bool, shaped like start, optional
        What moves; the rest, the known pixels in inpainting, stays as in the start.
    step : float > 0, optional
        The first h; t by default, or 1e-3.

    Raises
    ------
    ValueError
        As the solvers in :mod:`gnclib.restore.flow`; no gradients, a step that is not finite and > 0.
    """
    x = checked_start(prior, data, start)
    budget = as_count(gradients)
    h = (t or 1e-3) if step is None else step
    if not (math.isfinite(h) and h > 0):
        raise ValueError(f"the step must be finite and > 0, got {h}")
    return _chain(_target(prior, t, data), x, h, budget, generator, free)


def _target(prior: Prior, t: float, data: DataTerm | None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x -> U(x), (B,), in double precision, and its gradient."""

    def target(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            value, grad = prior.energy(x, t).double(), prior.grad(x, t)
        if data is None:
            return value, grad
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            fit = data.energy(leaf)
            (slope,) = torch.autograd.grad(fit.sum(), leaf)
        return value + fit.detach().double(), grad + slope

    return target


def _chain(target, x: Tensor, h: float, budget: int, generator, free: Tensor | None) -> Iterator[Sample]:
    tuning = round(TUNING * budget)
    value, grad = target(x)
    for k in range(1, budget):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        move = -h * grad + math.sqrt(2 * h) * z
        move = move if free is None else torch.where(free, move, 0.0)
        proposal = x + move
        new_value, new_grad = target(proposal)
        back, ahead = -move + h * new_grad, move + h * grad  # for log q(x | x') and log q(x' | x)
        if free is not None:
            back, ahead = (torch.where(free, v, 0.0) for v in (back, ahead))
        log_ratio = value - new_value + (_squared(ahead) - _squared(back)) / (4 * h)
        u = torch.rand(len(x), generator=generator, dtype=torch.float64).to(x.device)
        accepted = u.log() < log_ratio  # nan and far too large energies are never accepted
        value = torch.where(accepted, new_value, value)
        x, grad = (torch.where(wide(accepted, x), a, b) for a, b in ((proposal, x), (new_grad, grad)))
        if k < tuning:
            rate = log_ratio.exp().clamp(max=1).nan_to_num().mean().item()
            h *= math.exp((rate - ACCEPTED) / k**0.5)
        else:
            yield Sample(k - tuning + 1, x, value, accepted, h)


def _squared(v: Tensor) -> Tensor:
    return v.reshape(len(v), -1).double().square().sum(1)


# diagnostics ---------------------------------------------------------------------------------------------------------


def r_hat(chains: Tensor) -> Tensor:
    """Split R-hat of chains (N, B, ...): N draws of B chains, each cut into halves (Gelman et al. 2013, section 11.4).

    The square root of (variance of all draws) over (variance within chains), shaped like one draw: 1 where the chains
    have forgotten their starts, above 1.01 where they should run longer.
    """
    half = len(chains) // 2
    if half < 2:
        raise ValueError(f"R-hat needs 4 draws or more, got {len(chains)}")
    parts = torch.cat([chains[:half], chains[half : 2 * half]], 1)  # (N / 2, 2 B, ...)
    within = parts.var(0).mean(0)
    return ((half - 1) / half + parts.mean(0).var(0) / within).sqrt()


def effective_size(chains: Tensor) -> Tensor:
    """How many independent draws B chains of N draws (N, B, ...) are worth, shaped like one draw.

    N B / (1 + 2 sum_k rho_k), the autocorrelations rho_k summed in pairs as long as a pair is positive (Geyer 1992),
    with the variance of all draws.
    """
    n = len(chains)
    if n < 4:
        raise ValueError(f"an effective sample size needs 4 draws or more, got {n}")
    centred = chains - chains.mean((0, 1))
    spectrum = torch.fft.rfft(centred.double(), 2 * n, dim=0).abs().square()
    covariances = torch.fft.irfft(spectrum, 2 * n, dim=0)[:n].mean(1) / n  # (N, ...)
    rho = covariances / covariances[0]
    pairs = rho[: n - n % 2].unflatten(0, (-1, 2)).sum(1)  # rho_0 + rho_1, rho_2 + rho_3, ...
    positive = (pairs > 0).cumprod(0)
    time = 2 * (pairs * positive).sum(0) - 1
    return n * chains.shape[1] / time.clamp(min=1 / n)
