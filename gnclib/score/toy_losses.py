r"""Losses of joint score matching (Kobler & Pock 2023, section 3.2) as quadratic forms in toy weights.

Each function turns weighted points into L(w) = 1/2 w^T A w - b^T w + c. Forms add and scale like the terms of the
paper, e.g. eq. (7) as printed is ``image_denoising(basis, points) + lam * tau_implicit(basis, points)``.
The per-sample terms used for training are in `gnclib.score.losses`; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import linalg, sparse
from torch import Tensor

from gnclib.gmm import GaussianMixture
from gnclib.score.toy import Points, SplineBasis, SplineEnergy, UniformTau


@dataclass(frozen=True)
class Quadratic:
    """L(w) = 1/2 w^T A w - b^T w + c, the value of a loss for the weights w. Forms add, and scale by numbers."""

    matrix: sparse.csr_array
    vector: np.ndarray
    constant: float = 0.0

    def __add__(self, other: Quadratic) -> Quadratic:
        return Quadratic(
            self.matrix + other.matrix, self.vector + other.vector, self.constant + other.constant
        )

    def __rmul__(self, factor: float) -> Quadratic:
        return Quadratic(factor * self.matrix, factor * self.vector, factor * self.constant)

    def __call__(self, energy: SplineEnergy) -> float:
        w = energy.weights.reshape(-1).double().numpy()
        return float(0.5 * w @ (self.matrix @ w) - self.vector @ w + self.constant)

    def minimise(self, basis: SplineBasis, ridge: float = 1e-9) -> SplineEnergy:
        """The minimiser of L(w) + ridge/2 m ||w||^2, with m the mean of the diagonal of A.

        The ridge settles what the loss leaves open (a constant, or c(tau) if there is no smoothing part, and weights
        where there are no data): there w stays as small as it can.

        Raises
        ------
        ValueError
            A ridge <= 0, or a basis of another size.
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
    """E 1/2 (d_tau R)^2 - d_tautau R, the second term of eq. (7) as printed, without lambda.

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
