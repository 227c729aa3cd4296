r"""Features of a Fields of Experts, curves of its non-linearities, effective kernels, and numbers on their shapes.

Layer l = 1 ... L of R_L (Kobler & Pock 2023, eq. 3) sees the features

    x_1 = s(tau) K_1 y,        x_l = K_l phi_{l-1}(x_{l-1}, tau),

with s(tau) the input scale of `gnclib.foe` (1 for the restored formula). A function phi_c(., tau) is only
determined where features occur; the first and the last of `feature_quantiles` bound its effective range.

A curve is an array of its values at equally spaced points of one interval, the last axis running along the curve; all
numbers on shapes (`distance_to_polynomial`, `convexity_gap`, `local_minima`) are invariant under
scaling and shifting of either axis, so it does not matter whether x_1 or the response u = x_1 / s is the abscissa.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import isotonic_regression
from scipy.signal import find_peaks
from torch import Tensor

from gnclib import spline
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.foe.filters import convolve, convolve_adjoint, dilate, reflect


def input_scale(config: FoEConfig, sigma: float) -> float:
    """s(tau) = (sigma^2 + sigma_0^2)^(-1/2), or 1 for the restored formula."""
    return (sigma**2 + config.sigma_0**2) ** -0.5 if config.scaled_input else 1.0


def _coefficients(prior: FieldsOfExperts, sigma: float) -> list[Tensor]:
    """Spline coefficients (1, C, N_x) of phi_1 ... phi_L at log sigma. ValueError if it leaves the range."""
    return prior._coefficients(prior._range(sigma**2, 1, prior.offset))


def curves(
    prior: FieldsOfExperts, layer: int, x: Tensor, sigma: float, order: int = 0, channels=slice(None)
) -> Tensor:
    """phi_layer(x, log sigma), layer 1 ... L, or a derivative in x of order 1 or 2, channel by channel, shaped like x.

    The features x are (C, ...), one row per channel in ``channels``, all by default. Raises ValueError: no such layer,
    or a noise level outside of the range of the prior.
    """
    if layer not in range(1, prior.config.layers + 1):
        raise ValueError(f"this prior has the layers 1 to {prior.config.layers}, got {layer!r}")
    coefficients = _coefficients(prior, sigma)[layer - 1][0, channels]
    return spline.evaluate(x, coefficients, prior.config.grid_x, (order,))[0]


def features(prior: FieldsOfExperts, y: Tensor, sigma: float) -> list[Tensor]:
    """The features x_1 ... x_L of eq. 3 at images (B, 1, H, W), continued by reflection as in the energy.

    Images are joined: each is (C, M), M the number of feature positions. Raises ValueError as :func:`curves`.
    """
    h, found = input_scale(prior.config, sigma) * reflect(y, prior.config.margin), []
    steps = zip(prior.kernels, prior.config.dilations, _coefficients(prior, sigma), strict=True)
    for kernel, dilation, coefficients in steps:
        x = convolve(h, kernel, dilation)
        found.append(x.transpose(0, 1).flatten(1))
        (h,) = spline.evaluate(x, coefficients.expand(len(x), -1, -1), prior.config.grid_x)
    return found


def feature_quantiles(x: Tensor, count: int = 197) -> Tensor:
    """Quantiles of features (C, M), from 1 to 99 %: (C, count).

    The first and the last column are the effective range; all columns together are a sample of the density within it.
    """
    levels = np.linspace(0.01, 0.99, count)
    return torch.from_numpy(np.quantile(x.detach().numpy(), levels, axis=1).T).to(x).contiguous()


# --- kernels ----------------------------------------------------------------------------------------------


def mean_slopes(prior: FieldsOfExperts, found: list[Tensor], sigma: float) -> list[Tensor]:
    """E[phi_l'(x_l, log sigma)] over `features`: one (C,) per hidden layer l = 1 ... L - 1."""
    return [curves(prior, l, x, sigma, 1).mean(1) for l, x in enumerate(found[:-1], start=1)]


def straightness(prior: FieldsOfExperts, found: list[Tensor], sigma: float) -> list[float]:
    """Median over the channels of |E phi_l'| / sqrt(E phi_l'^2) over features, per hidden layer l = 1 ... L - 1.

    1 for activations that are straight lines, 0 for even ones, magnitudes for instance, which no line resembles.
    """
    slopes = [curves(prior, l, x, sigma, 1) for l, x in enumerate(found[:-1], start=1)]
    return [(s.mean(1).abs() / s.square().mean(1).sqrt()).median().item() for s in slopes]


def effective_kernels(
    prior: FieldsOfExperts, slopes: list[Tensor], pooled: Collection[int] = ()
) -> list[Tensor]:
    """K_l A_{l-1} K_{l-1} ... A_1 K_1 for l = 1 ... L, with A_l = diag(slopes_l) in place of the activations.

    The linear filters that the features of layer l would be, were its activations straight lines with these slopes.
    No line stands for a magnitude: behind the hidden layers in ``pooled`` the kernel of channel c is that of the
    channel before whose magnitude enters c with the largest weight in K_l.

    (C, 1, s_l, s_l) with s_l = kernel_size + (l - 1) d (deep_kernel_size - 1), d the dilation.
    """
    composed = [prior.kernels[0].detach()]
    deep = zip(prior.kernels[1:], prior.config.dilations[1:], slopes, strict=True)
    for before, (kernel, dilation, slope) in enumerate(deep, start=1):
        taps = dilate(kernel.detach(), dilation)
        if before in pooled:
            strongest = kernel.detach().abs().amax((2, 3)).argmax(1)
            composed.append(F.pad(composed[-1][strongest], [taps.shape[-1] // 2] * 4))
        else:
            composed.append(convolve_adjoint(taps, slope[:, None, None, None] * composed[-1]))
    return composed


def mean_frequency(kernels: Tensor) -> Tensor:
    """Mean radial frequency of each kernel's power spectrum, in cycles per pixel: (C, 1, s, s) -> (C,)."""
    power = torch.fft.fft2(kernels[:, 0].double(), s=(32, 32)).abs() ** 2
    axis = torch.fft.fftfreq(32, dtype=torch.float64)
    radius = torch.hypot(axis[:, None], axis[None])
    return (power * radius).sum((1, 2)) / power.sum((1, 2))


# --- shapes of curves -------------------------------------------------------------------------------------


def distance_to_polynomial(f: np.ndarray, degree: int) -> np.ndarray:
    """min over polynomials p of the degree of std(f - p) / std(f), along the last axis: (..., N) -> (...).

    0: f is such a polynomial; 1: none is better than a constant. Points are equally spaced. A constant curve gives 0.
    """
    f = np.asarray(f, dtype=np.float64)
    basis = np.linalg.qr(np.polynomial.legendre.legvander(np.linspace(-1, 1, f.shape[-1]), degree)).Q
    centred = f - f.mean(-1, keepdims=True)
    left, total = (centred - centred @ basis @ basis.T).std(-1), centred.std(-1)
    flat = total <= 1e-12 * np.abs(f).max(-1)
    return np.where(flat, 0.0, left / np.where(flat, 1.0, total))


def convexity_gap(f: np.ndarray) -> np.ndarray:
    """max(f - e) / (max f - min f) with e the lower convex envelope of f, along the last axis: 0 for a convex curve.

    The envelope is the shape of a string pulled tight below the curve; its slopes are the isotonic regression of those
    of the curve (Barlow et al. 1972).
    """
    f = np.asarray(f, dtype=np.float64)
    gaps = []
    for curve in f.reshape(-1, f.shape[-1]):
        above = np.cumsum(np.diff(curve) - isotonic_regression(np.diff(curve)).x)  # of the envelope
        gaps.append(max(0.0, above.max()) / max(np.ptp(curve), 1e-300))
    return np.reshape(gaps, f.shape[:-1])


def local_minima(f: np.ndarray, prominence: float = 0.0) -> np.ndarray:
    """Number of interior local minima along the last axis: (..., N) -> (...).

    prominence: count those only from which one must climb by at least this part of the curve's height to reach a lower
    point or an end of the curve (the end counts as a wall of its own height).
    """
    f = np.asarray(f, dtype=np.float64)
    rows = f.reshape(-1, f.shape[-1])
    counts = [len(find_peaks(-r, prominence=max(prominence * np.ptp(r), 1e-300))[0]) for r in rows]
    return np.reshape(counts, f.shape[:-1])
