r"""Posterior of a clean image by Tweedie's two formulas: mean, covariance, risk without the clean image.

For y = x + t^(1/2) z with white Gaussian z, and an energy R(y, t) = -log p_t(y) + const of noisy images,

    E[x | y] = y - t grad R,        Cov[x | y] = t (I - t Hess R)

(Kobler & Pock 2023 use the first one). The trace of the covariance is what the energy believes the squared error of
the mean to be. What it is can be estimated without x and without trust in R, as long as the noise is white, Gaussian
and of variance t (Stein's unbiased risk estimate, n pixels):

    SURE = -n t + ||t grad R||^2 + 2 t (n - t tr Hess R).

The two agree if ||t grad R||^2 = t^2 tr Hess R, which holds on average over y for the energy of the true density:
:func:`doubts` compares the sides, at distance 0 and between neighbours, and says where not to trust uncertainty.

*The diagonal of the Hessian* is read from products with images that are 0 but on a lattice of spacing q, where they
are 1 or -1 at random: q^2 products reach all pixels (coloured probing). Entries of the Hessian between pixels that are
q or more apart are the error. With q above 2 margins of an energy without coarser scales there are none: it is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from gnclib.checks import as_time
from gnclib.restore.flow import Hessian, wide

#: values in one product with the Hessian: probes are joined up to so many
BATCH = 2**16
#: spacing of probes where it is not said and an exact diagonal would cost more
SPACING = 7
#: standard deviations are no less than those of this part of an image's mean variance: our choice. With R_1 the
#: likelihood of the errors on images of val is best for 0.3 / 0.4 / 0.6 at sigma 15 / 25 / 50
FLOOR = 0.3
#: power of the removed noise relative to what the energy expects, and the largest correlation of neighbours beyond
#: that; on BSDS68 with white noise of sigma 15 to 50, 96 % of the images have 0.92 to 1.16 and at most 0.02
POWER, CORRELATION = (0.85, 1.2), 0.04
#: the share of the grey values at 0 or 1 above which they count as cut off, where none lies beyond
CLIPPED = 0.01


@dataclass(frozen=True)
class Posterior:
    """Mean and variance of x given y, shaped like y, and sums over each image.

    Where the energy is none of a density, or probing is not exact, a variance can come out negative; :attr:`std` does
    not use it then.
    """

    mean: Tensor  # E[x | y]
    variance: Tensor  # the diagonal of t (I - t Hess R)
    removed: Tensor  # t grad R = y - mean
    t: Tensor  # (B,)
    neighbours: Tensor  # (2, B), sums of covariances of vertical and horizontal neighbours; nan for vectors
    error: Tensor  # (B,), of the variance by probing: root mean square, relative to its mean; 0 where exact

    @property
    def std(self) -> Tensor:
        """Standard deviation of each pixel, shaped like y, for intervals; see :data:`FLOOR`."""
        least = FLOOR * (self.total / self.mean[0].numel()).clamp(min=0)
        return torch.maximum(self.variance, wide(least, self.variance)).sqrt()

    @property
    def total(self) -> Tensor:
        """Trace of the covariance, (B,): the squared error of the mean that the energy expects."""
        return self.variance.reshape(len(self.t), -1).sum(1)

    @property
    def dimension(self) -> Tensor:
        """Effective dimension tr(I - t Hess R), (B,): how many of the n numbers the noise leaves free."""
        return self.total / self.t

    @property
    def risk(self) -> Tensor:
        """SURE, (B,): an unbiased estimate of the squared error of the mean, whatever the energy is."""
        squares = self.removed.reshape(len(self.t), -1).square().sum(1)
        return squares - self.t * self.mean[0].numel() + 2 * self.total


@torch.no_grad()
def posterior_moments(
    energy: Hessian, y: Tensor, t: float | Tensor, *, spacing: int | None = None, seed: int = 0
) -> Posterior:
    """Mean and variance of the clean image given a noisy one.

    Parameters
    ----------
    energy : with ``grad(y, t)`` and ``hvp(y, t, v)``
    y : (B, 1, H, W), or (B, d) and (B,) for energies of vectors and numbers
        Noisy images; the noise is white, Gaussian, of variance t.
    t : float or (B,)
        In the range of the energy.
    spacing : int >= 1, optional
        q of the probes, see the module: q^2 products with the Hessian. By default exact where that takes no more than
        :data:`SPACING` squared, else that spacing. Vectors are always probed exactly.
    seed : of the signs of the probes

    Raises as the energy, and ValueError for a spacing below 1.
    """
    ts = as_time(t, len(y), like=y)
    removed = wide(ts, y) * energy.grad(y, t)
    exact = 2 * getattr(energy, "margin", math.inf) + 1 if y.ndim == 4 else math.inf
    spacing = min(exact, SPACING) if spacing is None else spacing
    if spacing < 1:
        raise ValueError(f"the spacing of probes is a number of pixels >= 1, got {spacing}")
    colours = _colours(y, spacing)
    diagonal, beside, _ = _probe(energy, y, ts, colours, seed)
    error = torch.zeros_like(ts)
    if y.ndim == 4 and spacing < min(exact, max(y.shape[-2:])):
        chosen = torch.arange(0, spacing**2, max(1, spacing**2 // 8))  # a second draw of signs for an eighth
        again, _, seen = _probe(energy, y, ts, colours, seed + 1, chosen)
        error = ((again - diagonal)[:, seen].square().mean(1) / 2).sqrt() * ts
        error = error / (1 - ts * diagonal.flatten(1).mean(1)).abs()
    variance = wide(ts, y) * (1 - wide(ts, y) * diagonal)
    return Posterior(y - removed, variance, removed, ts, -(ts**2) * beside, error)


def _colours(y: Tensor, spacing: int) -> Tensor:
    """The number of the probe that sees each coordinate, shaped like y[0]."""
    if y.ndim < 4:
        return torch.arange(y[0].numel(), device=y.device).reshape(y.shape[1:])
    rows, columns = (torch.arange(n, device=y.device) % spacing for n in y.shape[-2:])
    return (rows[:, None] * spacing + columns)[None]


def _probe(
    energy: Hessian, y: Tensor, ts: Tensor, colours: Tensor, seed: int, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal of Hess R, shaped like y; sums of entries between neighbours (2, B); which coordinates were probed.

    colours, chosen: the probe of each coordinate, and which probes to make (all).
    """
    generator, count = torch.Generator().manual_seed(seed), len(y)
    signs = 2.0 * torch.randint(2, colours.shape, generator=generator).to(y) - 1
    if chosen is None:
        chosen = torch.arange(int(colours.max()) + 1)
    diagonal, beside = torch.zeros_like(y), y.new_zeros(2, count)
    for some in chosen.to(y.device).split(max(1, BATCH // y.numel())):
        v = signs * (colours == some.reshape(-1, *[1] * colours.ndim))  # (k, ...), k probes
        v = v[:, None].expand(-1, *y.shape)  # (k, B, ...)
        many = y.expand_as(v).flatten(0, 1), ts.repeat(len(some)), v.flatten(0, 1)
        product = energy.hvp(*many).reshape(v.shape)
        diagonal += (v * product).sum(0)
        if y.ndim == 4:
            beside[0] += (v[..., :-1, :] * product[..., 1:, :]).sum((0, 2, 3, 4))
            beside[1] += (v[..., :-1] * product[..., 1:]).sum((0, 2, 3, 4))
    seen = torch.isin(colours, chosen.to(y.device))
    return diagonal, beside if y.ndim == 4 else beside * math.nan, seen


@torch.no_grad()
def posterior_components(
    energy: Hessian, y: Tensor, t: float, count: int, box: tuple[slice, slice] = (slice(None), slice(None))
) -> tuple[Tensor, Tensor]:
    """Principal components of the posterior in a part of one image: where another plausible image differs.

    The largest eigenvalues of the covariance t (I - t Hess R), restricted to the pixels of the box, by Lanczos'
    method. A constant has the variance t: an energy of differences does not know how bright the part is.

    Parameters
    ----------
    energy : with ``hvp(y, t, v)``
    y : (1, 1, H, W)
    t : float
        Noise variance.
    count : int >= 1
        Fewer than the pixels of the box.
    box : rows and columns of the part; all by default

    Returns
    -------
    variances : (count,)
        Falling. mean + c variances[k]^(1/2) images[k] is the direction k, c standard deviations away.
    images : (count, h, w)
        Each of norm 1.
    """
    if len(y) != 1:
        raise ValueError(f"one image at a time, got {len(y)}")
    shape = y[0, 0][box].shape

    def product(vector: np.ndarray) -> np.ndarray:
        v = torch.zeros_like(y)
        v[0, 0][box] = torch.from_numpy(vector.reshape(shape)).to(y)
        return (t * (v - t * energy.hvp(y, t, v)))[0, 0][box].flatten().double().cpu().numpy()

    operator = LinearOperator((math.prod(shape),) * 2, product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(math.prod(shape))
    values, vectors = eigsh(operator, count, which="LA", v0=start, tol=1e-3)
    order = np.argsort(-values)
    images = torch.from_numpy(vectors.T[order].copy()).reshape(count, *shape)
    return torch.from_numpy(values[order]).to(y), images.to(y)


def doubts(found: Posterior) -> list[str]:
    """Why the uncertainty of an image is not to be trusted, judged by the noise that was removed; empty if it is.

    ||t grad R||^2 and t^2 tr Hess R agree on average if R is the energy of such images at this t, and so do products
    of neighbours, sum (t grad R)_i (t grad R)_j, and t^2 sum Hess R_ij. Noise of another level, correlated noise and
    parts without noise show there.

    Parameters
    ----------
    found : the posterior of one image (1, 1, H, W)
    """
    removed, n = found.removed[0, 0].double(), found.removed[0].numel()
    t, total, neighbours = float(found.t), float(found.total), found.neighbours[:, 0].tolist()
    slack = 3 * math.sqrt(2 / n)  # three standard deviations of the mean of n squares
    power = float(removed.square().sum()) / (n * t - total)
    observed = (removed[1:] * removed[:-1]).sum(), (removed[:, 1:] * removed[:, :-1]).sum()
    excess = max(((float(a) + b) / (n * t) for a, b in zip(observed, neighbours, strict=True)), key=abs)
    found_doubts = []
    if not POWER[0] - slack < power < POWER[1] + slack:
        found_doubts.append(
            f"the removed noise has {100 * power:.0f} % of the power that this sigma and this prior expect: another"
            " sigma, parts without noise, or an image unlike photographs"
        )
    if abs(excess) > CORRELATION + slack:
        found_doubts.append(f"the noise is not white: neighbouring pixels have the correlation {excess:+.2f}")
    return found_doubts


def flaws(channels: np.ndarray, sigma: float) -> list[str]:
    """Why the noise of an image (C, H, W) cannot be white and Gaussian of this sigma, judged by its grey values."""
    found = []
    share = float(np.isin(channels, (0, 1)).mean())
    if share > CLIPPED and 0 <= channels.min() <= channels.max() <= 1:
        found.append(
            f"{100 * share:.1f} % of the grey values were cut off at 0 or 1, and the noise with them"
        )
    levels = np.unique(channels.ravel()[:: max(1, channels.size // 2**16)])
    step = float(np.diff(levels).min()) if len(levels) > 1 else 0.0
    if step > sigma / 2:
        found.append(f"grey values are in steps of {step:.3g}, more than half of sigma")
    return found
