r"""Evidence: energies as normalised densities, log p(y | t) = -R(y, t) - log Z.

Training normalises an energy along t: E[d_tau R] = 0 for every t. What is left is one constant, log Z, which depends on
the size of the images alone. It is found where the energy is simple, at strong noise.

*By a determinant* (:func:`quadratic_constant`), where the energy of n pixels is a quadratic with the minimiser y* and
the Hessian H: log Z = n/2 log 2 pi - 1/2 log det H - R(y*, t).

*By annealed importance sampling* (:func:`annealed_constant`; Neal 2001) elsewhere. From a Gaussian exp(-R_0) whose
log Z_0 is known, chains of MALA follow (1 - b) R_0 + b R for b = 0 ... 1, and

    log w = log Z_0 - sum_k (b_k - b_{k-1}) (R - R_0)(y_k),     E[w] = Z,     E[log w] <= log Z.

The same path walked back from samples of exp(-R) has E[log w] >= log Z: log Z is *bracketed* (Grosse et al. 2015), as
far as the chains at b = 1, from which the way back begins, have forgotten where they came from. Both ways together
give the estimate of smallest variance (Bennett 1976), the root c of
sum_forward 1 / (1 + exp(c - log w)) = sum_back 1 / (1 + exp(log w - c)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from gnclib.checks import as_time
from gnclib.restore import Prior, as_count, energy_and_grad, wide
from gnclib.restore.sampling import ACCEPTED, cosines, squared


class Gaussian:
    """A Gaussian with independent coefficients of the cosine transform (images) or coordinates (vectors), an energy.

    R(y, t) = 1/2 sum_k (DCT(y - m)_k^2 / v_k + log 2 pi v_k) with v = variances + t: with its constant, so log Z = 0.

    Parameters
    ----------
    mean : float, or (d,)
    variances : (H, W) or (d,), >= 0
        Of clean images; [0, 0] is n times the variance of the mean grey value.
    """

    def __init__(self, mean: float | Tensor, variances: Tensor):
        self.mean, self.variances = mean, torch.as_tensor(variances)

    @classmethod
    def of(cls, images: Tensor) -> Gaussian:
        """With the mean grey value and the spectrum of images (N, 1, H, W)."""
        mean = images.mean().item()
        return cls(mean, cosines(images - mean).square().mean((0, 1)))

    def energy(self, y: Tensor, t: float | Tensor) -> Tensor:
        """R(y, t), (B,)."""
        v = self.spread(y, t)
        return 0.5 * (cosines(y - self.mean).square() / v + (2 * math.pi * v).log()).flatten(1).sum(1)

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor:
        """The gradient of :meth:`energy`, shaped like y."""
        return cosines(cosines(y - self.mean) / self.spread(y, t), inverse=True)

    def coloured(self, u: Tensor, t: float) -> Tensor:
        """m + DCT^-1 (v^(1/2) u): a sample for white u, (B, 1, H, W) or (B, d)."""
        return self.mean + cosines(self.spread(u, t).sqrt() * u, inverse=True)

    def spread(self, like: Tensor, t: float | Tensor) -> Tensor:
        """v, (B, 1, H, W) or (B, d)."""
        return self.variances.to(like) + wide(as_time(t, len(like), like=like), like)


@dataclass(frozen=True)
class WithBrightness:
    """An energy that does not see the mean grey value, with a Gaussian density of it: else exp(-R) has no integral.

    R(y, t) + a^2 / (2 (v + t)) + 1/2 log 2 pi (v + t), a = n^(1/2) (mean(y) - m), v = `variance`, n times that of the
    mean grey values of clean images. Fields of Experts, whose kernels have no mean, need it.
    """

    prior: Prior
    mean: float
    variance: float

    def energy(self, y: Tensor, t: float | Tensor) -> Tensor:
        """(B,)."""
        return self.prior.energy(y, t) + self._of_mean(y, t)[0]

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor:
        """The gradient of :meth:`energy`, shaped like y."""
        return self.prior.grad(y, t) + self._of_mean(y, t)[1]

    def energy_and_grad(self, y: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Both by one pass."""
        (value, grad), (of_mean, slope) = energy_and_grad(self.prior, y, t), self._of_mean(y, t)
        return value + of_mean, grad + slope

    def _of_mean(self, y: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        v, off = self.variance + as_time(t, len(y), like=y), y.mean((1, 2, 3)) - self.mean
        value = 0.5 * (y[0].numel() * off.square() / v + (2 * math.pi * v).log())
        return value, wide(off / v, y)


@torch.no_grad()
def quadratic_constant(energy: Prior, t: float, like: Tensor) -> float:
    """log Z of an energy that is a quadratic at t, by n gradients and the determinant of the dense Hessian.

    `like` (1, 1, H, W) or (1, d) is any point, best a probable one, in the number format of the energy.

    Raises ValueError if the energy is no quadratic, judged at a point that was not used, or has no minimum.
    """
    n, slope, value = like.numel(), energy.grad(like, t), energy.energy(like, t).double().item()
    units = math.sqrt(t) * torch.eye(n, dtype=like.dtype, device=like.device).reshape(n, *like.shape[1:])
    rows = torch.cat([energy.grad(like + v, t) - slope for v in units.split(64)])
    hessian = rows.reshape(n, n).double() / math.sqrt(t)
    hessian, slope = 0.5 * (hessian + hessian.T), slope.reshape(n).double()
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if failed:
        raise ValueError(f"exp(-R) has no integral at t = {t:g}: the Hessian is not positive definite")
    step = math.sqrt(t) * torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
    v = step.reshape(n).double()
    expected, found = value + (slope @ v + v @ hessian @ v / 2).item(), energy.energy(like + step, t).item()
    if abs(expected - found) > 1e-4 * (n + abs(value)):
        raise ValueError(f"the energy is no quadratic at t = {t:g}: {found:.6g} instead of {expected:.6g}")
    lowest = value - (slope @ torch.cholesky_solve(slope[:, None], factor)).item() / 2
    return 0.5 * n * math.log(2 * math.pi) - factor.diagonal().log().sum().item() - lowest


# annealing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bracket:
    """log Z, in nats: means of log w forward (`lower`) and back (`upper`), and Bennett's estimate (`value`).

    `error` is the standard error of the estimate, `accepted` the share of the proposals.
    """

    lower: float
    upper: float
    value: float
    error: float
    accepted: float


def annealed_constant(
    energy: Prior,
    t: float,
    base: Gaussian,
    like: Tensor,
    *,
    steps: int,
    generator: torch.Generator | None = None,
) -> Bracket:
    """log Z of an energy at t, bracketed by annealing from a Gaussian and back.

    Parameters
    ----------
    energy : with ``energy`` and ``grad``
    t : float
        Noise variance, best where the energy is convex.
    base : Gaussian
        The closer it is to exp(-R) at this t, the smaller the gap.
    like : (B, 1, H, W) or (B, d), B >= 2
        B chains of this shape and number format.
    steps : int >= 1
        4 B steps gradients: a way forward, on which the steps of MALA are tuned, as many proposals at b = 1, the way
        back from there, and a new way forward.
    """
    path = _Path(energy, t, base, as_count(steps), generator)
    _, end = path.walk(path.white(like))
    path.tuning = False
    for _ in range(path.steps):
        end = path.move(end, path.steps)
    path.rates.clear()
    back, _ = path.walk(end[0], back=True)
    forward, _ = path.walk(path.white(like))
    first = 0.5 * (2 * math.pi * base.spread(like[:1], t).double()).log().sum().item()
    forward, back = forward.numpy() + first, back.numpy() + first
    value, error = _bennett(forward, back)
    return Bracket(float(forward.mean()), float(back.mean()), value, error, float(np.mean(path.rates)))


def _bennett(forward: np.ndarray, back: np.ndarray) -> tuple[float, float]:
    """The estimate and its standard error, from as many log w forward as back."""
    both = np.concatenate([forward, back])
    root = brentq(
        lambda c: expit(forward - c).mean() - expit(c - back).mean(), both.min() - 1, both.max() + 1
    )
    shares = expit(forward - root), expit(root - back)
    return root, math.sqrt(sum((s.var() / s.mean() ** 2) / len(s) for s in shares))


class _Path:
    """MALA on (1 - b) |u|^2 / 2 + b R(y(u)), b = k / steps, with a step for each k; a point is (u, R, grad_u R)."""

    def __init__(
        self, energy: Prior, t: float, base: Gaussian, steps: int, generator: torch.Generator | None
    ):
        self.energy, self.t, self.base, self.steps, self.generator = energy, t, base, steps, generator
        self.sizes, self.tuning, self.rates = [0.5] * (steps + 1), True, []

    def white(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)

    def point(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.base.coloured(u, self.t)
        with torch.no_grad():
            value, grad = energy_and_grad(self.energy, y, self.t)
        return u, value.double(), self.base.spread(u, self.t).sqrt() * cosines(grad)

    def move(self, at: tuple[Tensor, Tensor, Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
        """One proposal at b = k / steps."""
        b, h, (u, value, grad) = k / self.steps, self.sizes[k], at
        slope = (1 - b) * u + b * grad
        step = math.sqrt(2 * h) * self.white(u) - h * slope
        new = self.point(u + step)
        ahead, back = step + h * slope, h * ((1 - b) * new[0] + b * new[2]) - step
        ratio = (1 - b) / 2 * (squared(u) - squared(new[0])) + b * (value - new[1])
        ratio += (squared(ahead) - squared(back)) / (4 * h)
        accepted = torch.rand(len(u), generator=self.generator, dtype=torch.float64).log() < ratio
        self.rates.append(ratio.exp().clamp(max=1).nan_to_num().mean().item())
        if self.tuning and k < self.steps:
            self.sizes[k + 1] = h * math.exp(0.3 * (self.rates[-1] - ACCEPTED))
        return tuple(torch.where(wide(accepted, a), a, b) for a, b in zip(new, at, strict=True))

    def walk(self, u: Tensor, back: bool = False) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """-sum_k (R - R_0)(u_k) / steps, (B,), forward or back, and where the chains end."""
        at, total = self.point(u), torch.zeros(len(u), dtype=torch.float64)
        for k in range(self.steps):
            at = self.move(at, self.steps - k) if back else at
            total -= (at[1] - squared(at[0]) / 2) / self.steps
            at = at if back else self.move(at, k + 1)
        return total, at
