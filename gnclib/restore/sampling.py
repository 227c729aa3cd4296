r"""Samples of the posterior exp(-R(x, t) - D(x)) by the Metropolis-adjusted Langevin algorithm (MALA).

With the energy U = R(., t) + D, gradient g = grad U and step h,

    proposal    x' = x - h g(x) + (2 h)^(1/2) z,    z white Gaussian
    accepted    with probability  min(1, exp( U(x) - U(x') + log q(x | x') - log q(x' | x) )),
                log q(b | a) = -||b - a + h g(a)||^2 / (4 h)

(Roberts & Tweedie 1996): the chain has the density exp(-U) / Z for every h, unlike Langevin steps that are always
accepted. Each sample of a batch is a chain of its own. The step is tuned during the first part of the budget so that
:data:`ACCEPTED` of the proposals are accepted, the optimum in many dimensions (Roberts & Rosenthal 1998), then kept.

*Annealed* (:func:`annealed_mala`): the chains follow R(., t) from sigma = 1, where energies are nearly convex and
chains forget their starts, down to the t that is wanted. Images move along their cosines, each at its own scale: with
p_k the inverse of the curvature of U along the cosine k, MALA runs on DCT(x)_k / p_k^(1/2).

:func:`r_hat` and :func:`effective_size` say whether chains have mixed: near 1, and how many independent samples the
chains are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from gnclib.restore import DataTerm, Prior, as_count, checked_start, energy_and_grad, log_schedule, wide

__all__ = ["ACCEPTED", "Sample", "annealed_mala", "cosines", "effective_size", "mala", "r_hat"]

#: share of the proposals that the tuning aims at
ACCEPTED = 0.574
#: part of the budget that is spent on tuning, which yields no samples
TUNING = 0.3
#: noise levels of an annealed chain, the part of the budget that the way down takes, and proposals for each at least
LEVELS, DESCENT, LEAST = 16, 0.3, 10


@dataclass(frozen=True)
class Sample:
    """Where the chains stand after a proposal."""

    step: int  # proposals since the tuning ended, from 1; while it lasts <= 0, and no sample of the posterior
    x: Tensor  # (B, ...), one state per chain
    energy: Tensor  # (B,), R(x, t) + D(x)
    accepted: Tensor  # (B,), bool
    size: float  # the step h


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

    Raises as the solvers in :mod:`gnclib.restore.flow`; ValueError: no gradients, a step that is not finite and > 0.
    """
    x = checked_start(prior, data, start)
    budget = as_count(gradients)
    h = (t or 1e-3) if step is None else step
    if not (math.isfinite(h) and h > 0):
        raise ValueError(f"the step must be finite and > 0, got {h}")
    chain = _chain(_target(prior, t, data), x, h, budget, round(TUNING * budget), generator, free)
    return (sample for sample in chain if sample.step > 0)


def annealed_mala(
    prior: Prior,
    t: float,
    data: DataTerm | None = None,
    start: Tensor | None = None,
    *,
    gradients: int,
    generator: torch.Generator | None = None,
    first: float | None = None,
) -> Iterator[Sample]:
    """Chains that come down from sigma = 1 (or the prior's largest, or that of t) and end with exp(-R(x, t) - D(x)).

    A Sample after each proposal: those on the way and while the step is tuned have a step <= 0, the others are draws.
    Of the gradients per chain a share :data:`DESCENT` is for the way down, the rest for MALA at t > 0; ``first`` is
    another t to come down from, for chains that have been there. Other arguments and errors as of :func:`mala`;
    ValueError for fewer than LEAST LEVELS / DESCENT gradients.
    """
    x, budget = checked_start(prior, data, start), as_count(gradients)
    each = int(DESCENT * budget / LEVELS)
    if each < LEAST:
        raise ValueError(
            f"annealing takes {math.ceil(LEAST * LEVELS / DESCENT)} gradients or more, got {budget}"
        )
    highest = first or max(t, min(1.0, getattr(prior, "sigma_max", 1.0)) ** 2)
    levels = log_schedule(highest, t, LEVELS + 1).tolist()
    return _annealed(prior, levels, data, x, each, budget, generator, 0 if first else each // 2)


def _annealed(prior, levels, data, x: Tensor, each: int, budget: int, generator, sure) -> Iterator[Sample]:
    h, last = 0.1, budget - each * LEVELS
    for k, t in enumerate(levels):
        target, root = _target(prior, t, data), None
        if x.ndim == 4:
            root = _curvature(target, x, math.sqrt(t), generator).rsqrt()
        else:
            h *= t / levels[k - 1] if k else t / h
        count, tuning = (each, each) if k < LEVELS else (last, round(TUNING * last))
        rest = each * (LEVELS - 1 - k) + round(TUNING * last)
        for sample in _chain(target, x, h, count - 2, tuning, generator, root=root, sure=0 if k else sure):
            yield sample if k == LEVELS else replace(sample, step=sample.step - rest)
        x, h = sample.x, sample.size


def cosines(y: Tensor, inverse: bool = False) -> Tensor:
    """The orthonormal cosine transform of images (B, 1, H, W); vectors stay as they are."""
    if y.ndim < 4:
        return y
    made = (idctn if inverse else dctn)(y.detach().cpu().numpy(), axes=(-2, -1), norm="ortho")
    return torch.from_numpy(made).to(y)


def _curvature(target, x: Tensor, sigma: float, generator) -> Tensor:
    """Second derivatives of U along cosines, (H, W), means over chains and frequencies of about one length."""
    signs = 2.0 * torch.randint(2, x.shape, generator=generator).to(x) - 1
    v = 0.5 * sigma * cosines(signs, inverse=True)
    found = (signs * cosines(target(x + v)[1] - target(x - v)[1]) / sigma).mean((0, 1))  # (H, W)
    rows, columns = (torch.arange(n, device=x.device) / n for n in x.shape[-2:])
    rings = (6 * torch.log2(1 + max(x.shape[-2:]) * torch.hypot(rows[:, None], columns))).round().long()
    sums, counts = (torch.bincount(rings.flatten(), w.flatten()) for w in (found, torch.ones_like(found)))
    means = (sums / counts.clamp(min=1)).clamp(min=1e-3 / sigma**2)
    return means.to(x)[rings]


def _target(prior: Prior, t: float, data: DataTerm | None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x -> U(x), (B,), in double precision, and its gradient."""

    def target(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            value, grad = energy_and_grad(prior, x, t)
        value = value.double()
        if data is None:
            return value, grad
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            fit = data.energy(leaf)
            (slope,) = torch.autograd.grad(fit.sum(), leaf)
        return value + fit.detach().double(), grad + slope

    return target


def _chain(
    target, x: Tensor, h: float, budget: int, tuning: int, generator, free=None, root=None, sure: int = 0
) -> Iterator[Sample]:
    """`budget` - 1 proposals; the chain runs on u with x = DCT^-1(root u), or on x where there is no root.

    The first `sure` proposals, on the way from a start far away, are accepted if their energy is finite.
    """
    if root is not None:
        x, of_image = cosines(x) / root, target

        def target(u: Tensor) -> tuple[Tensor, Tensor]:
            found, slope = of_image(cosines(root * u, inverse=True))
            return found, root * cosines(slope)

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
        accepted = torch.isfinite(new_value) if k <= sure else accepted
        value = torch.where(accepted, new_value, value)
        x, grad = (torch.where(wide(accepted, x), a, b) for a, b in ((proposal, x), (new_grad, grad)))
        if sure < k < tuning:
            rate = log_ratio.exp().clamp(max=1).nan_to_num().mean().item()
            h *= math.exp((rate - ACCEPTED) / (k - sure) ** 0.5)
        image = x if root is None else cosines(root * x, inverse=True)
        yield Sample(k - tuning if k < tuning else k - tuning + 1, image, value, accepted, h)


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
