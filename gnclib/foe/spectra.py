r"""Hessian of a Fields of Experts at one image, taken apart by layers, and its extreme eigenvalues (Lanczos).

With x_l the features, g_l = dR/dphi_l the adjoints (g_L = 1) and J_l = dx_l/dy the Jacobians,

    Hess R_L(y, t) = sum_l J_l^T diag( g_l phi_l''(x_l, tau) ) J_l,
    J_1 = s K_1 P,    J_l = K_l diag(phi_{l-1}') J_{l-1}

(P: continuation by reflection). For L = 1 this is s^2 P^T K^T diag(phi'') K P. Features, slopes and curvatures are
computed once per point; each product with a vector then takes convolutions only, unlike `FieldsOfExperts.hvp`, which
begins anew for each. And it says which layer bends the energy.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from gnclib.foe import FieldsOfExperts
from gnclib.foe.filters import reflect, reflect_adjoint


class PointHessian:
    """t Hess R(y, t) at one image (1, 1, H, W), t = sigma^2, as a linear map.

    Its ``features`` are x_1 ... x_L, each (1, C, H_l, W_l), its ``curvatures`` g_l phi_l''(x_l), shaped like them,
    which may be replaced, to ask what would be if.
    """

    @torch.no_grad()
    def __init__(self, prior: FieldsOfExperts, y: Tensor, sigma: float):
        if len(y) != 1:
            raise ValueError(f"one image at a time, got {len(y)}")
        if prior.coarse:
            raise ValueError("this takes one scale apart: for a prior with coarser scales use its hvp")
        self.t, self.margin, self.shape = sigma**2, prior.config.margin, tuple(y.shape)
        tau = prior._range(self.t, 1, y)
        self._scale, layers = prior._scale(tau)[0], prior._layers(tau)
        self._layers = replace(layers, kernels=[k.detach() for k in layers.kernels])
        found = self._layers.taken_apart(prior._input(y, tau, "reflect"))
        self.features, self._slopes, self.curvatures = found

    def __call__(self, v: Tensor) -> Tensor:
        """t Hess R v, shaped like v = (1, 1, H, W)."""
        bent = self._layers.bent(self._scale * reflect(v, self.margin), self._slopes, self.curvatures)
        return self.t * reflect_adjoint(self._scale * bent, self.margin)

    def by_layer(self, v: Tensor) -> list[float]:
        """t <J_l v, diag(g_l phi_l'') J_l v> for l = 1 ... L: the parts whose sum is t <v, Hess R v>."""
        moved = self._layers.tangents(self._scale * reflect(v, self.margin), self._slopes)
        pairs = zip(self.curvatures, moved, strict=True)
        return [self.t * float((c.double() * x.double() ** 2).sum()) for c, x in pairs]


def extreme_eigenvalues(
    product, shape: tuple[int, ...], dtype=torch.float32, tolerance: float = 2e-3, seed: int = 0, lift=0.5
) -> tuple[float, float, Tensor]:
    """Smallest and largest eigenvalue of a symmetric map of images, apart from the constant image, by Lanczos' method.

    The kernels of K_1 have no mean, so a constant image always has eigenvalue 0. A rank-one term lifts it to `lift`,
    amid the spectrum of any useful denoiser; otherwise the smallest eigenvalue could never be positive.

    Ritz values lie inside of the spectrum: the true smallest eigenvalue is at most the one returned plus rounding, the
    true largest at least.

    ``product`` is v -> A v for images of the ``shape`` (1, 1, H, W), with A 1 = 0; where kernels have a mean ``lift``
    is 0, which leaves the map as it is. The tolerance is absolute for eigenvalues of order one. The third result is the
    eigenvector of the smallest, of norm 1 and of the given shape.
    """
    values, vector = _lanczos(product, shape, dtype, tolerance, seed, lift, 2, "BE")
    return values.min().item(), values.max().item(), vector


def smallest_eigenvalue(
    product, shape: tuple[int, ...], dtype=torch.float32, tolerance: float = 2e-3, seed: int = 0, lift=0.5
) -> float:
    """The first result of :func:`extreme_eigenvalues` alone, in two thirds of its products or fewer."""
    return _lanczos(product, shape, dtype, tolerance, seed, lift, 1, "SA")[0].item()


def _lanczos(product, shape, dtype, tolerance, seed, lift, number, which) -> tuple[np.ndarray, Tensor]:
    """Some eigenvalues by ARPACK, and the eigenvector of the smallest of them."""
    shift, count = 2.0, math.prod(shape)  # makes both ends of order one: ARPACK's tolerance is relative

    def matvec(v: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(v.reshape(shape)).to(dtype)
        return (product(image) + lift * image.mean() + shift * image).flatten().double().numpy()

    operator = LinearOperator((count, count), matvec, dtype=np.float64)
    options = {"v0": np.random.default_rng(seed).standard_normal(count), "ncv": min(12 * number, count)}
    values, vectors = eigsh(operator, number, which=which, tol=tolerance / shift, **options)
    return values - shift, torch.from_numpy(vectors[:, values.argmin()].reshape(shape)).to(dtype)
