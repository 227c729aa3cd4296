r"""Toy energy on the line, small enough that every score-matching loss is minimised exactly.

The energy is a tensor product of quartic B-splines in the point y and in tau = 0.5 log t,

    R(y, t) = sum_ij w_ij beta((y - mu_i)/dy) beta((tau - nu_j)/dtau),

one potential of a Field of Experts without its convolution. It is linear in the weights w, so each loss of
section 3.2 (Kobler & Pock 2023, eqs. 4 to 7) is a quadratic form in w and its minimiser a linear solve.

An expectation over (y, tau) is a set of weighted `Points`: made by `quadrature` it is exact to rounding where the prior
of tau spans the whole grid (the integrands are smooth on each cell of it), made by `sample` it is what training sees.
Losses are assembled from both by the same functions. Outside of its grid y is continued linearly, as in
`gnclib.spline`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import linalg, sparse
from torch import Tensor

from gnclib.checks import as_time
from gnclib.gmm import GaussianMixture
from gnclib.spline.splines import ORDER, SplineGrid, quartic_bspline


@dataclass(frozen=True)
class SplineBasis:
    """The tensor-product basis: ``y`` and ``tau`` are the two grids; weights are flattened as i * N_tau + j."""

    y: SplineGrid
    tau: SplineGrid

    @property
    def size(self) -> int:
        """Number of weights, N_y N_tau."""
        return self.y.count * self.tau.count

    def features(self, y: Tensor, tau: Tensor, orders: tuple[int, int] = (0, 0)) -> sparse.csr_array:
        """Derivatives of order (k, l) <= (2, 2) in (y, tau) of all basis functions at points (B,): sparse (B, size)."""
        if y.ndim != 1 or y.shape != tau.shape:
            raise ValueError(f"y and tau must both be (B,), got {tuple(y.shape)} and {tuple(tau.shape)}")
        if len(y) and not (self.tau.low - 1e-6 <= tau.min() and tau.max() <= self.tau.high + 1e-6):
            raise ValueError(f"tau must lie in [{self.tau.low:.4g}, {self.tau.high:.4g}]")
        first_y, by = _local(y, self.y, orders[0])
        first_tau, bt = _local(tau.clamp(self.tau.low, self.tau.high), self.tau, orders[1])
        near = torch.arange(ORDER)
        rows, places = first_y[:, None] + near, first_tau[:, None] + near  # (B, 5)
        columns = rows[:, :, None] * self.tau.count + places[:, None]
        values = by[:, :, None] * bt[:, None]  # (B, 5, 5)
        starts = np.arange(0, ORDER**2 * len(y) + 1, ORDER**2)
        content = (values.reshape(-1).numpy(), columns.reshape(-1).numpy(), starts)
        return sparse.csr_array(content, shape=(len(y), self.size))


def _local(x: Tensor, grid: SplineGrid, order: int) -> tuple[Tensor, Tensor]:
    """Index of the first of the five basis functions at x, and their derivatives: (B,) and (B, 5), float64."""
    if order not in (0, 1, 2):
        raise ValueError(f"the order of a derivative must be 0, 1 or 2, got {order!r}")
    x = x.double()
    inside = x.clamp(grid.low, grid.high)
    first = ((inside - grid.low) / grid.spacing).floor().clamp(0, grid.intervals - 1).long()
    u = (inside - grid.low)[:, None] / grid.spacing + 1.5 - (first[:, None] + torch.arange(ORDER))
    beyond = (x - inside)[:, None]
    values = quartic_bspline(u, order) / grid.spacing**order
    if order == 0:
        values = values + beyond * quartic_bspline(u, 1) / grid.spacing
    return first, torch.where(beyond == 0, values, 0.0) if order == 2 else values


@dataclass(frozen=True)
class SplineEnergy:
    """The energy R, with the contract of every energy: y is (B,), t the noise variance, float or (B,).

    The weights are (N_y, N_tau) float64. Raises ValueError: another shape, or not finite; later, a t whose tau is
    outside of the grid.
    """

    basis: SplineBasis
    weights: Tensor

    def __post_init__(self):
        shape = (self.basis.y.count, self.basis.tau.count)
        if tuple(self.weights.shape) != shape or not torch.isfinite(self.weights).all():
            raise ValueError(f"weights must be finite and of shape {shape}, got {tuple(self.weights.shape)}")

    def _derivative(self, y: Tensor, t: float | Tensor, *orders: int) -> Tensor:
        tau = 0.5 * as_time(t, len(y), like=y.double()).log()
        values = self.basis.features(y, tau, orders) @ self.weights.reshape(-1).double().numpy()
        return torch.from_numpy(values)

    def energy(self, y: Tensor, t: float | Tensor) -> Tensor:
        """R(y, t), (B,)."""
        return self._derivative(y, t, 0, 0)

    def grad(self, y: Tensor, t: float | Tensor) -> Tensor:
        """grad_1 R(y, t), (B,)."""
        return self._derivative(y, t, 1, 0)

    def hessian(self, y: Tensor, t: float | Tensor) -> Tensor:
        """Second derivative in y, (B,); zero outside of the grid."""
        return self._derivative(y, t, 2, 0)

    def dtau(self, y: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative in tau = 0.5 log t, each (B,)."""
        return self._derivative(y, t, 0, 1), self._derivative(y, t, 0, 2)


# --- priors of tau ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UniformTau:
    """tau ~ U(low, high), the prior of eq. (7). Its density jumps at both ends."""

    low: float
    high: float

    def __post_init__(self):
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"the range of tau must be finite with low < high, got [{self.low}, {self.high}]"
            )

    def density(self, tau: Tensor) -> Tensor:
        return torch.full_like(tau, 1 / (self.high - self.low))

    def slope(self, tau: Tensor) -> Tensor:
        """d log f_T / d tau."""
        return torch.zeros_like(tau)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return self.low + (self.high - self.low) * torch.rand(count, generator=generator, dtype=torch.float64)


class SineTau(UniformTau):
    """f_T(tau) = 2/L sin(pi (tau - low)/L)^2 with L = high - low: vanishes at both ends together with its slope."""

    def _phase(self, tau: Tensor) -> Tensor:
        return math.pi * (tau - self.low) / (self.high - self.low)

    def density(self, tau: Tensor) -> Tensor:
        return 2 / (self.high - self.low) * self._phase(tau).sin() ** 2

    def slope(self, tau: Tensor) -> Tensor:
        """d log f_T / d tau = 2 pi/L cot(phase); infinite at the ends, where nothing is ever drawn."""
        return 2 * math.pi / (self.high - self.low) / self._phase(tau).tan()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """By inversion of u - sin(2 pi u)/(2 pi) with bisection (60 halvings: exact to rounding)."""
        p = torch.rand(count, generator=generator, dtype=torch.float64)
        low, high = torch.zeros_like(p), torch.ones_like(p)
        for _ in range(60):
            mid = (low + high) / 2
            below = mid - (2 * math.pi * mid).sin() / (2 * math.pi) < p
            low, high = torch.where(below, mid, low), torch.where(below, high, mid)
        return self.low + (self.high - self.low) * (low + high) / 2


# --- expectations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
    """Weighted points: E g(y, tau) = sum_k weight_k g(y_k, tau_k). ``z``: the noise of y = x + e^tau z, if sampled."""

    y: Tensor
    tau: Tensor
    weight: Tensor
    z: Tensor | None = None

    @property
    def t(self) -> Tensor:
        return (2 * self.tau).exp()

    def mean(self, values: Tensor) -> Tensor:
        return (self.weight * values).sum()


def cells(low: float, high: float, count: int) -> tuple[Tensor, Tensor]:
    """Six Gauss-Legendre nodes and weights in each of ``count`` equal cells of [low, high], both (6 count,)."""
    x, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(6))
    h = (high - low) / count
    centres = low + h * (torch.arange(count, dtype=torch.float64) + 0.5)
    return (centres[:, None] + h / 2 * x).reshape(-1), (h / 2 * w).repeat(count)


def _need_line(mixture: GaussianMixture) -> None:
    if not mixture.on_line:
        raise ValueError("the toy energy lives on the line: give a mixture with means of shape (K,)")


def quadrature(
    mixture: GaussianMixture, basis: SplineBasis, prior: UniformTau, at: float | None = None
) -> Points:
    """The expectation over tau ~ prior and y ~ f(. | tau), or over y alone at the fixed tau ``at``.

    Six Gauss-Legendre nodes per cell of both grids; y runs over the grid and, in cells of the same width, eight
    standard deviations beyond the outermost mean. Points whose density is below 1e-16 of the largest are left out.
    Raises ValueError for a mixture that is not on the line; points that leave the tau-grid are refused by the losses.
    """
    _need_line(mixture)
    grid = basis.y
    reach = 8 * (mixture.variances.max() + math.exp(2 * prior.high)).sqrt().item()
    left = max(0, math.ceil((grid.low - mixture.means.min().item() + reach) / grid.spacing))
    right = max(0, math.ceil((mixture.means.max().item() + reach - grid.high) / grid.spacing))
    low, high = grid.low - left * grid.spacing, grid.high + right * grid.spacing
    y, wy = cells(low, high, grid.intervals + left + right)
    if at is None:
        tau, wtau = cells(prior.low, prior.high, basis.tau.intervals)
        wtau = wtau * prior.density(tau)
    else:
        tau, wtau = torch.tensor([float(at)], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    tau, y = tau.repeat_interleave(len(y)), y.repeat(len(tau))
    density = (-mixture.energy(y, (2 * tau).exp())).exp()
    weight = density * torch.outer(wtau, wy).reshape(-1)
    keep = density > 1e-16 * density.max()
    return Points(y[keep], tau[keep], weight[keep])


def sample(
    mixture: GaussianMixture,
    count: int,
    prior: UniformTau,
    generator: torch.Generator,
    at: float | None = None,
) -> Points:
    """``count`` samples x ~ f_X, tau ~ prior (or fixed, ``at``), z ~ N(0, 1), y = x + e^tau z, of equal weight."""
    _need_line(mixture)
    x = mixture.sample(count, generator)
    tau = prior.draw(count, generator) if at is None else torch.full_like(x, at)
    z = torch.randn(count, generator=generator, dtype=torch.float64)
    return Points(x + tau.exp() * z, tau, torch.full_like(x, 1 / count), z)


def with_noise(mixture: GaussianMixture, points: Points) -> Points:
    """The same expectation with the noise z beside y: exact for polynomials in z up to degree 5.

    Given y, tau and the component i (with probability g_i), z is Gaussian with mean ``sqrt(t) (y - mu_i)/v_i`` and
    variance ``sigma_i^2/v_i``, ``v_i = sigma_i^2 + t``: each point becomes 3 K points with Gauss-Hermite nodes.
    """
    y, t = points.y[:, None], points.t[:, None]
    v = mixture.variances + t  # (B, K)
    g = (mixture.weights.log() - 0.5 * ((y - mixture.means) ** 2 / v + v.log())).softmax(1)
    x, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(3))
    mean, deviation = t.sqrt() * (y - mixture.means) / v, (mixture.variances / v).sqrt()
    z = mean[..., None] + deviation[..., None] * x  # (B, K, 3)
    weight = (points.weight[:, None] * g)[..., None] * (w / w.sum())
    y, tau = (v.repeat_interleave(z[0].numel()) for v in (points.y, points.tau))
    return Points(y, tau, weight.reshape(-1), z.reshape(-1))


# --- losses -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quadratic:
    """L(w) = 1/2 w^T A w - b^T w + c, the value of a loss for the weights w. Forms add, and scale by numbers."""

    matrix: sparse.csr_array
    vector: np.ndarray
    constant: float = 0.0

    def __add__(self, other: Quadratic) -> Quadratic:
        matrix, vector = self.matrix + other.matrix, self.vector + other.vector
        return Quadratic(matrix, vector, self.constant + other.constant)

    def __rmul__(self, factor: float) -> Quadratic:
        return Quadratic(factor * self.matrix, factor * self.vector, factor * self.constant)

    def __call__(self, energy: SplineEnergy) -> float:
        w = energy.weights.reshape(-1).double().numpy()
        return float(0.5 * w @ (self.matrix @ w) - self.vector @ w + self.constant)

    def minimise(self, basis: SplineBasis, ridge: float = 1e-9) -> SplineEnergy:
        """The minimiser of L(w) + ridge/2 m ||w||^2, with m the mean of the diagonal of A.

        The ridge settles what the loss leaves open (a constant, or c(tau) if there is no smoothing part, and weights
        where there are no data): there w stays as small as it can. Raises ValueError: a ridge <= 0, or a basis of
        another size.
        """
        if not ridge > 0:
            raise ValueError(f"the ridge must be positive, or constants remain undetermined; got {ridge}")
        if len(self.vector) != basis.size:
            raise ValueError(f"this form has {len(self.vector)} weights, the basis {basis.size}")
        matrix = self.matrix.toarray()
        matrix[np.diag_indices_from(matrix)] += ridge * matrix.diagonal().mean()
        weights = linalg.solve(matrix, self.vector, assume_a="pos", overwrite_a=True)
        return SplineEnergy(basis, torch.from_numpy(weights).reshape(basis.y.count, basis.tau.count))


def _regression(basis: SplineBasis, points: Points, orders, scale: Tensor, target: Tensor) -> Quadratic:
    """E 1/2 (scale D R - target)^2 for the derivative D of the given orders."""
    features = basis.features(points.y, points.tau, orders)
    scaled = features.multiply((points.weight.sqrt() * scale).numpy()[:, None]).tocsr()
    vector = features.T @ (points.weight * scale * target).numpy()
    return Quadratic((scaled.T @ scaled).tocsr(), vector, 0.5 * points.mean(target**2).item())


def _noise(points: Points) -> Tensor:
    if points.z is None:
        raise ValueError("denoising score matching needs the noise z: make the points with sample()")
    return points.z


def image_explicit(basis: SplineBasis, points: Points, mixture: GaussianMixture) -> Quadratic:
    """E t/2 (d_y R + d_y log f)^2, the first term of eq. (5), where the true score is known."""
    root = points.t.sqrt()
    return _regression(basis, points, (1, 0), root, root * mixture.grad(points.y, points.t))


def image_denoising(basis: SplineBasis, points: Points) -> Quadratic:
    """E 1/2 (sqrt(t) d_y R - z)^2, the first term of eqs. (6) and (7)."""
    return _regression(basis, points, (1, 0), points.t.sqrt(), _noise(points))


def tau_explicit(basis: SplineBasis, points: Points, mixture: GaussianMixture) -> Quadratic:
    """E 1/2 (d_tau R + d_tau log f(y | tau))^2, the second term of eq. (5) in tau, without lambda."""
    return _regression(basis, points, (0, 1), torch.ones_like(points.y), mixture.dtau(points.y, points.t)[0])


def tau_denoising(basis: SplineBasis, points: Points) -> Quadratic:
    """E 1/2 (d_tau R + z^2 - 1)^2: denoising score matching in tau, not in the paper."""
    return _regression(basis, points, (0, 1), torch.ones_like(points.y), 1 - _noise(points) ** 2)


def tau_implicit(basis: SplineBasis, points: Points, prior: UniformTau | None = None) -> Quadratic:
    """E 1/2 (d_tau R)^2 - d_tautau R, the second term of eq. (7) as restored, without lambda.

    With a ``prior`` of tau, R stands for -log f(y | tau) and R - log f_T is put into the formula, which adds
    -E (d_tau log f_T) d_tau R: nothing for a uniform prior, the correct loss for one that vanishes at its ends.
    """
    form = _regression(basis, points, (0, 1), torch.ones_like(points.y), torch.zeros_like(points.y))
    vector = basis.features(points.y, points.tau, (0, 2)).T @ points.weight.numpy()
    if prior is not None:
        slope = points.weight * prior.slope(points.tau)
        vector = vector + basis.features(points.y, points.tau, (0, 1)).T @ slope.numpy()
    return replace(form, vector=vector)


def boundary(basis: SplineBasis, at_high: Points, at_low: Points, prior: UniformTau) -> Quadratic:
    """(E[d_tau R | tau_max] - E[d_tau R | tau_min]) / (tau_max - tau_min): what eq. (7) lacks; linear in w.

    ``at_high`` and ``at_low`` are points at the two ends (argument ``at`` of `quadrature` and `sample`).
    """
    ends = [basis.features(p.y, p.tau, (0, 1)).T @ p.weight.numpy() for p in (at_high, at_low)]
    vector = (ends[1] - ends[0]) / (prior.high - prior.low)  # the form is -b^T w
    return Quadratic(sparse.csr_array((basis.size, basis.size)), vector)
