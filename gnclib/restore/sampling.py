r"""Samples of the posterior exp(-R(x, t) - D(x)) by the Metropolis-adjusted Langevin algorithm (MALA).

With the energy U = R(., t) + D, gradient g = grad U and step h,

    proposal    x' = x - h g(x) + (2 h)^(1/2) z,    z white Gaussian
    accepted    with probability  min(1, exp( U(x) - U(x') + log q(x | x') - log q(x' | x) )),
                log q(b | a) = -||b - a + h g(a)||^2 / (4 h)

(Roberts & Tweedie 1996): the chain has the density exp(-U) / Z for every h, unlike Langevin steps that are always
accepted. Each sample of a batch is a chain of its own. The step is tuned during the first part of the budget so that
:data:`ACCEPTED` of the proposals are accepted, the optimum in many dimensions (Roberts & Rosenthal 1998), then kept.

*Coordinates.* Images do not move pixel by pixel but at t = 0: MALA runs on u, x = A u, and A A^T is about the inverse
of the curvature of U, which is about p_k along cosine k, measured where the chains stand: A = DCT^-1 diag(p)^(-1/2).
Where some pixels are known, the same in all chains, those that move have A = L^-T, L L^T the part of
DCT^-1 diag(p) DCT that belongs to them (in images of up to :data:`DENSE` pixels, since that matrix is dense).

*Annealed*: with ``first`` the chains come down from a larger t, where energies are nearly convex and chains forget
their starts, through :data:`LEVELS` noise levels to the t that is wanted.

:func:`r_hat` and :func:`effective_size` say whether chains have mixed: near 1, and how many independent samples the
chains are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from gnclib.restore import DataTerm, Prior, as_count, checked_start, energy_and_grad, log_schedule, wide

#: share of the proposals that the tuning aims at
ACCEPTED = 0.574
#: part of the budget that is spent on tuning, which yields no samples
TUNING = 0.3
#: noise levels of an annealed chain, the part of the budget that the way down takes, and gradients for each at least
LEVELS, DESCENT, LEAST = 16, 0.3, 10
#: pixels of the largest image with known pixels whose others have coordinates of their own
DENSE = 4096


@dataclass(frozen=True)
class Sample:
    """Where the chains stand after a proposal."""

    step: int  # from 1, after the tuning
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
    first: float | None = None,
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
        B chains; data.start() by default. Chains that are to be compared should start far apart. Images, (B, 1, H, W),
        have coordinates of their own; see the module.
    gradients : int >= 1
        The budget: gradients per chain, a share :data:`TUNING` of those at t for tuning the step.
    generator : of the noise; torch's own by default
    free : bool, shaped like start or its first chain, optional
        What moves; the rest, the known pixels in inpainting, stays as in the start.
    step : float > 0, optional
        The first h; 0.1 in coordinates of their own, else the first t, or 1e-3.
    first : float > 0, optional
        A larger t to come down from; a share :data:`DESCENT` of the gradients is for the way down, which yields none.

    Raises
    ------
    ValueError
        As the solvers in :mod:`gnclib.restore.flow`; no gradients, or fewer than LEAST LEVELS / DESCENT for the way
        down, a step that is not finite and > 0, t < 0, or a ``first`` that is not above t > 0.
    """
    x, budget = checked_start(prior, data, start), as_count(gradients)
    if step is not None and not (math.isfinite(step) and step > 0):
        raise ValueError(f"the step must be finite and > 0, got {step}")
    if not (math.isfinite(t) and t >= 0 and (first is None or math.inf > first > t > 0)):
        raise ValueError(
            f"t must be finite and >= 0, and below a first t if there is one, got {t} and {first}"
        )
    levels, each = [t], 0
    if first is not None:
        levels, each = log_schedule(first, t, LEVELS + 1).tolist(), int(DESCENT * budget / LEVELS)
        if each < LEAST:
            raise ValueError(
                f"annealing takes {math.ceil(LEAST * LEVELS / DESCENT)} gradients or more, got {budget}"
            )
    return _descended(prior, levels, data, x, each, budget, generator, free, step)


def _descended(
    prior, levels, data, x: Tensor, each: int, budget: int, generator, free, h
) -> Iterator[Sample]:
    for k, t in enumerate(levels):
        last, target = k == len(levels) - 1, _target(prior, t, data)
        count = budget - each * k if last else each
        made = _coordinates(target, x, t, generator, free)
        if h is None:
            h = 0.1 if made.own else t or 1e-3
        elif k and not made.own:
            h *= t / levels[k - 1]
        tuning, sure = round(TUNING * count) if last else count, 0 if k else each // 2
        for sample in _chain(target, made, h, count - 2 * made.own, tuning, generator, sure):
            x, h = sample.x, sample.size
            if sample.step > 0:
                yield sample


def cosines(y: Tensor, inverse: bool = False) -> Tensor:
    """The orthonormal cosine transform of images (B, 1, H, W); vectors stay as they are."""
    if y.ndim < 4:
        return y
    made = (idctn if inverse else dctn)(y.detach().cpu().numpy(), axes=(-2, -1), norm="ortho")
    return torch.from_numpy(made).to(y)


class _Coordinates(NamedTuple):
    """x = A u, on which a chain runs; ``own`` are those that the curvature gives."""

    own: bool
    u: Tensor  # of the start
    image: Callable[[Tensor], Tensor]  # A
    slope: Callable[[Tensor], Tensor]  # A^T


def _coordinates(target, x: Tensor, t: float, generator, free: Tensor | None) -> _Coordinates:
    free = torch.ones_like(x, dtype=torch.bool) if free is None else free.expand_as(x)
    moves, n, shaped = free[0].flatten(), x[0].numel(), x.ndim == 4 and x.shape[1] == 1 and t > 0
    if shaped and free.all():
        root = _curvature(target, x, math.sqrt(t), generator).rsqrt()
        return _Coordinates(
            True, cosines(x) / root, lambda u: cosines(root * u, inverse=True), lambda g: root * cosines(g)
        )
    if shaped and n <= DENSE and moves.any() and (free == free[:1]).all():
        pixels = torch.eye(n, dtype=torch.float64, device=x.device)[moves].view(-1, *x.shape[1:])
        p, basis = _curvature(target, x, math.sqrt(t), generator).double(), cosines(pixels).flatten(1)
        lower = torch.linalg.cholesky((basis * p.flatten()) @ basis.T)
        unit = torch.eye(len(lower)).to(lower)
        inverse = torch.linalg.solve_triangular(lower, unit, upper=False).to(x)  # A is its transpose
        return _Coordinates(
            True,
            x.flatten(1)[:, moves] @ lower.to(x),
            lambda u: x.flatten(1).index_copy(1, moves.nonzero()[:, 0], u @ inverse).view_as(x),
            lambda g: g.flatten(1)[:, moves] @ inverse.T,
        )
    return _Coordinates(False, x, lambda u: torch.where(free, u, x), lambda g: torch.where(free, g, 0.0))


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
    target, coordinates: _Coordinates, h: float, budget: int, tuning: int, generator, sure: int = 0
) -> Iterator[Sample]:
    """`budget` - 1 proposals, those while it is tuned with steps <= 0.

    The first `sure` ones, on the way from a start far away, are accepted unless their energy rises by more than ten and
    one per pixel, as it does where steps are too long: then they are halved.
    """
    _, u, image, slope = coordinates
    x = image(u)
    value, grad = target(x)
    grad = slope(grad)
    for k in range(1, budget):
        z = torch.randn(u.shape, generator=generator, dtype=u.dtype).to(u.device)
        move = -h * grad + math.sqrt(2 * h) * z
        proposal = image(u + move)
        new_value, new_grad = target(proposal)
        new_grad = slope(new_grad)
        # log q(u | u') - log q(u' | u)
        log_ratio = value - new_value + (squared(move + h * grad) - squared(h * new_grad - move)) / (4 * h)
        dice = torch.rand(len(u), generator=generator, dtype=torch.float64).to(u.device)
        accepted = dice.log() < log_ratio  # nan and far too large energies are never accepted
        if k <= sure:
            accepted = torch.isfinite(new_value) & (new_value <= value + x[0].numel() + 10)
            h = h if bool(accepted.all()) else h / 2
        value = torch.where(accepted, new_value, value)
        x = torch.where(wide(accepted, x), proposal, x)
        u, grad = (torch.where(wide(accepted, u), a, b) for a, b in ((u + move, u), (new_grad, grad)))
        if sure < k < tuning:
            rate = log_ratio.exp().clamp(max=1).nan_to_num().mean().item()
            h *= math.exp((rate - ACCEPTED) / (k - sure) ** 0.5)
        yield Sample(k - tuning if k < tuning else k - tuning + 1, x, value, accepted, h)


def squared(v: Tensor) -> Tensor:
    """||v||^2 in double precision, (B,)."""
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
