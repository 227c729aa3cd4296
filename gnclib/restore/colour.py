r"""Colour photographs with an energy of grey ones: denoised in opponent colours.

Red, green and blue of a photograph show nearly the same edges. Denoised one by one, each sees them under its own noise.
An orthonormal change of basis,

    Q (red, green, blue)^T,    rows of Q: (1, 1, 1) / 3^(1/2), (1, 0, -1) / 2^(1/2), (1, -2, 1) / 6^(1/2),

brightness and two differences of colour, keeps white noise white: of the same level in each of the three planes, and
independent between them where it was independent between the channels. The image it changes: brightness gets sqrt(3)
times the contrast of a channel under the same noise, and the differences hold little but noise, which is easily
removed. So an energy that has seen grey photographs only restores the planes one by one, with the sigma of the
channels; || x - y ||^2 is the same in both bases.

Q is the cosine basis of three points (the discrete cosine transform, type II, orthonormal); the name and the idea are
those of colour BM3D (Dabov, Foi, Katkovnik & Egiazarian, ICIP 2007). Planes are moved by the constant that keeps mid
grey at 0.5, which an energy of differences does not see.

*Noise that is unequal or correlated.* Let C be its covariance between the channels, measured on the image
(:mod:`gnclib.restore.noise_level`). Planes A (red, green, blue)^T with A C A^T diagonal have independent noise, each
with a level of its own, sigma_k^2 = (A C A^T)_kk. The rows of A are C^-1 times those of Q, made orthogonal one after
the other in the inner product of C and scaled to length 1; the first is the best linear estimate of brightness; for
C = sigma^2 I it is A = Q. Channels without noise are no part of it and stay as they are to the bit. An image goes
channel by channel where nearly all noise is common to the channels, since nothing is gained, and where a plane holds
coarse noise, as in files that store colour with fewer pixels (JPEG).

Missing pixels are filled in channel by channel: without noise nothing is gained (on four crops of training images with
80 % missing, the planes were 0.2 dB worse on average).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.fft import dct

from gnclib.restore.noise_level import GROWING, LEAST, NOT_WHITE, SIDE, Noise, grows, measure_noise

#: in which basis a colour image is denoised
BASES = ("opponent", "channels")
GREY = 0.5
#: noise is equal and independent if levels are within this factor and correlations no larger, estimates from n blocks
#: being uncertain by UNCERTAIN n^(-1/2)
UNEQUAL, CORRELATED, UNCERTAIN = 1.1, 0.1, 4.0
#: below this :meth:`Noise.evenness` a plane holds little but coarse noise
COARSE = 0.2
#: noise is one and the same in all channels, and mixing them of no use, if the least eigenvalue of the correlation of
#: the channels is below
COMMON = 0.1


def _cosines(count: int) -> np.ndarray:
    """The rows of Q, or of the cosine basis of another number of points."""
    return dct(np.eye(count), type=2, norm="ortho", axis=0)


@dataclass(frozen=True)
class Planes:
    """The planes of an image, the noise in each, and the way back.

    The basis is "opponent", "whitened" (planes that fit the measured covariance), or "channels", as of every image
    without three different ones. Levels are None where there is no noise that the shipped priors could remove.
    """

    values: np.ndarray  # (C, H, W)
    join: Callable[[np.ndarray], np.ndarray]  # the way from planes to channels
    levels: list[float | None]  # sigma of each plane in grey values of [0, 1], given or estimated
    basis: str
    doubt: str = ""  # what was seen of the noise that one estimated level of white noise does not describe
    maps: np.ndarray | None = None  # (C, H, W), sigma of each pixel, if given so; levels are the largest


def choose_planes(
    channels: np.ndarray, sigma: float | np.ndarray | None = None, colour: str = "auto"
) -> Planes:
    """The planes in which an image (C, H, W) is denoised, with the noise level of each, given or estimated.

    sigma is the level in every channel, or of each pixel (planes then suit the mean variances of the channels);
    estimated by default (:func:`gnclib.restore.noise_level.measure_noise`). colour is "auto", "channels", or
    "opponent": as if noise were equal and independent; ValueError for another one.
    """
    if colour not in ("auto", *BASES):
        raise ValueError(f"colour must be one of auto, {', '.join(BASES)}, got {colour!r}")
    if len(channels) != 3 or bool((channels == channels[:1]).all()):
        colour = "channels"
    if np.ndim(sigma):
        return _with_maps(channels, np.broadcast_to(sigma, channels.shape), colour)
    basis, matrix = ("channels", np.eye(len(channels))) if colour == "channels" else ("opponent", _cosines(3))
    if sigma is not None and (sigma < LEAST or colour != "auto" or min(channels.shape[1:]) < SIDE):
        return _planes(channels, matrix, [sigma] * len(channels), basis)
    noise = measure_noise(channels)
    covariance = noise.covariance
    if colour == "opponent":
        covariance = np.eye(3) * np.trace(covariance) / 3
    elif colour == "auto":
        basis, matrix, covariance = _fitting(noise, sigma)
    levels = np.sqrt(np.einsum("ka,ab,kb->k", matrix, covariance, matrix))
    found = [float(s) if s >= LEAST else None for s in levels]
    doubt = "" if sigma is not None or all(map(noise.white, matrix)) else NOT_WHITE
    if sigma is None and not doubt and any(found) and grows(channels):
        doubt = GROWING
    return _planes(channels, matrix, found, basis, doubt)


def _planes(
    channels: np.ndarray, matrix: np.ndarray, levels: list, basis: str, doubt="", maps=None
) -> Planes:
    """The channels mixed by a matrix; one that it leaves alone stays as it is to the bit."""
    mixed = np.abs(matrix - np.eye(len(matrix))).any(1)
    join = partial(_apply, np.linalg.inv(matrix), mixed)
    return Planes(_apply(matrix, mixed, channels), join, levels, basis, doubt, maps)


def _with_maps(channels: np.ndarray, maps: np.ndarray, colour: str) -> Planes:
    """The planes for noise of these sigmas (C, H, W), independent between the channels."""
    variances, matrix = maps.astype(np.float64) ** 2, np.eye(len(channels))
    if colour != "channels":
        matrix = _whitening(np.diag(variances.mean((1, 2)))) if colour == "auto" else _cosines(3)
    maps = np.sqrt(np.tensordot(matrix**2, variances, 1))
    levels = [float(m.max()) if m.max() >= LEAST else None for m in maps]
    return _planes(channels, matrix, levels, "whitened" if colour == "auto" else colour, maps=maps)


def _fitting(noise: Noise, sigma: float | None) -> tuple[str, np.ndarray, np.ndarray]:
    """Name and matrix of the planes for this noise of three channels, and the covariance of the channels."""
    noisy, covariance = noise.levels >= LEAST, noise.covariance
    if sigma is not None:  # it says how much, the image how correlated
        scale = sigma / noise.levels.clip(min=LEAST)
        covariance = covariance * np.outer(scale, scale)
        np.fill_diagonal(covariance, sigma**2)
    channels = "channels", np.eye(3), covariance
    if not noisy.any():
        return channels if sigma is None else ("opponent", _cosines(3), covariance)
    if noisy.sum() == 1 or (sigma is not None and not noisy.all()):
        return channels
    name, matrix = "whitened", np.eye(3)
    levels = np.sqrt(np.diag(covariance))[noisy]
    correlation = covariance[np.ix_(noisy, noisy)] / np.outer(levels, levels)
    doubt = UNCERTAIN / math.sqrt(noise.blocks)
    equal = levels.max() <= (UNEQUAL + doubt) * levels.min()
    if np.linalg.eigvalsh(correlation)[0] < COMMON:
        return channels
    if noisy.all() and equal and np.abs(correlation - np.eye(3)).max() <= CORRELATED + doubt:
        name, matrix, covariance = "opponent", _cosines(3), np.eye(3) * np.trace(covariance) / 3
    else:
        matrix[np.ix_(noisy, noisy)] = _whitening(covariance[np.ix_(noisy, noisy)])
    coarse = any(noise.evenness(row) < COARSE for row in matrix)  # no one covariance fits all frequencies
    return channels if coarse else (name, matrix, covariance)


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """A of the module for this covariance (C, C): rows of length 1 with A C A^T diagonal, brightness first."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors / np.sqrt(values) @ vectors.T  # C^-1/2
    rotation, _ = np.linalg.qr(root @ _cosines(len(covariance)).T)
    rows = rotation.T @ root
    rows *= np.sign((rows * _cosines(len(covariance))).sum(1, keepdims=True))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _apply(matrix: np.ndarray, noisy: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """The noisy channels mixed by their part of the matrix, the others as they are; mid grey stays what it is."""
    if not noisy.any():
        return channels
    found = channels.copy()
    part = matrix[np.ix_(noisy, noisy)].astype(channels.dtype)
    found[noisy] = GREY + np.tensordot(part, channels[noisy] - GREY, 1)
    return found


def as_tensor(channel: np.ndarray) -> torch.Tensor:
    """(1, 1, H, W) in float32, a copy."""
    return torch.from_numpy(np.array(channel, dtype=np.float32, order="C"))[None, None]
