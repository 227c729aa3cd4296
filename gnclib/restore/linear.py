r"""Linear measurements ``y = A x + noise``: blur, low resolution, incomplete transforms, few projections.

The data term is ``D(x) = ||A x - y||^2 / (2 sigma^2)``, and its proximal map solves a linear system,

    prox_{eta D}(v) = (I + c A^T A)^{-1} (v + c A^T y),      c = eta / sigma^2,

by conjugate gradients: the matrix is symmetric with eigenvalues in [1, 1 + c ||A||^2], and is only ever applied. So all
that an operator has to know is ``A`` and its adjoint ``A^T``, with ``<A x, u> = <x, A^T u>`` for all x and u, which the
tests check to rounding for every operator here. Images are (B, 1, H, W) with grey values in [0, 1].

Where the Fourier transform F makes ``A^T A = F^H diag(w) F`` diagonal, the operator has these w, ``spectrum``, and the
system is solved exactly, ``F^H diag(1 / (1 + c w)) F (v + c A^T y)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy import fft, sparse
from torch import Tensor

from gnclib.checks import as_images, as_time


class LinearOperator(Protocol):
    """Linear map of images of one size (H, W)."""

    size: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        """A x: (B, 1, H, W) -> (B, ...)."""

    def adjoint(self, u: Tensor) -> Tensor:
        """A^T u: (B, ...) -> (B, 1, H, W)."""


def gaussian_kernel(sigma: float, side: int | None = None) -> Tensor:
    """Samples of a Gaussian of standard deviation ``sigma`` pixels on a square, sum 1: (side, side), float64.

    The side is odd, 2 ceil(3 sigma) + 1 by default. Raises ValueError for a sigma <= 0 or an even side.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be a finite number of pixels > 0, got {sigma}")
    side = 2 * math.ceil(3 * sigma) + 1 if side is None else side
    if side < 1 or side % 2 == 0:
        raise ValueError(f"the side of a kernel must be odd, got {side}")
    line = torch.arange(side, dtype=torch.float64) - side // 2
    bell = torch.exp(-(line**2) / (2 * sigma**2))
    return torch.outer(bell, bell) / bell.sum() ** 2


class Blur:
    """Convolution with a known kernel, seen through a window: only pixels whose whole neighbourhood is in the image.

    ``(A x)(p) = sum_q k(q) x(p - q)`` on the (H - kh + 1) x (W - kw + 1) pixels where this needs nothing from outside:
    a photograph does not continue periodically, nor is it zero beyond its border.

    Parameters
    ----------
    kernel : (kh, kw), finite, not larger than the image; a blur sums to 1
    size : (H, W) of the sharp image
    stride : int >= 1, every so many-th pixel is kept
    """

    def __init__(self, kernel, size: tuple[int, int], stride: int = 1) -> None:
        self.kernel = torch.as_tensor(kernel, dtype=torch.float64)
        self.size, self.stride = tuple(size), int(stride)
        if self.kernel.ndim != 2 or self.kernel.numel() == 0 or not torch.isfinite(self.kernel).all():
            raise ValueError(
                f"a kernel must be a finite matrix (kh, kw), got shape {tuple(self.kernel.shape)}"
            )
        if any(k > n for k, n in zip(self.kernel.shape, self.size, strict=True)):
            raise ValueError(
                f"a kernel of {tuple(self.kernel.shape)} does not fit into images of {self.size}"
            )
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")

        self._transfer = _transfer(self.kernel, self.size)

    def __call__(self, x: Tensor) -> Tensor:
        return self._window(_filtered(_sized(x, self.size), self._transfer))

    def adjoint(self, u: Tensor) -> Tensor:
        wide = u.new_zeros(*u.shape[:2], *self.size)
        self._window(wide).copy_(u)
        return _filtered(wide, self._transfer.conj())

    def _window(self, x: Tensor) -> Tensor:
        """The pixels of an image that are measured: of the periodic convolution, those that it leaves right."""
        height, width = self.kernel.shape
        return x[..., height - 1 :: self.stride, width - 1 :: self.stride]


class LowResolution(Blur):
    """Every ``factor``-th pixel of the image blurred by a Gaussian: a coarser camera, for super-resolution.

    Parameters
    ----------
    factor : int >= 2
    size : (H, W) of the fine image
    sigma : float, optional
        Of the Gaussian in fine pixels; 0.5 factor by default (our choice: little aliasing, little blur).
    """

    def __init__(self, factor: int, size: tuple[int, int], sigma: float | None = None) -> None:
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
            raise ValueError(f"factor must be a whole number >= 2, got {factor!r}")
        super().__init__(gaussian_kernel(0.5 * factor if sigma is None else sigma), size, stride=factor)


class SampledTransform:
    """Compressed sensing: some coefficients of the cosine transform of the image with random signs, ``A = S C D``.

    D flips the signs of random pixels, C is the orthonormal 2D DCT-II, S keeps a random part of the coefficients:
    ``A A^T = I``, and every measurement sees all pixels.

    Parameters
    ----------
    size : (H, W)
    fraction : float in (0, 1], of coefficients kept
    generator : torch.Generator, of signs and choice
    """

    def __init__(self, size: tuple[int, int], fraction: float, generator: torch.Generator) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
        self.size = tuple(size)
        pixels = self.size[0] * self.size[1]
        self.signs = 2.0 * torch.randint(2, self.size, generator=generator) - 1
        self.kept = (
            torch.randperm(pixels, generator=generator)[: max(1, round(fraction * pixels))].sort().values
        )

    def __call__(self, x: Tensor) -> Tensor:
        signed = (_sized(x, self.size) * self.signs.to(x)).cpu().numpy()
        found = fft.dctn(signed, axes=(-2, -1), norm="ortho")
        return torch.from_numpy(found).to(x).flatten(1)[:, self.kept.to(x.device)]  # (B, M)

    def adjoint(self, u: Tensor) -> Tensor:
        full = u.new_zeros(len(u), self.size[0] * self.size[1])
        full[:, self.kept.to(u.device)] = u
        found = fft.idctn(full.reshape(-1, 1, *self.size).cpu().numpy(), axes=(-2, -1), norm="ortho")
        return torch.from_numpy(found).to(u) * self.signs.to(u)


class PeriodicBlur(Blur):
    """Convolution with a known kernel of an image that continues periodically, as most papers on deblurring assume.

    ``(A x)(p) = sum_q k(q) x(p - q + m)``, indices modulo the size, m = (kh // 2, kw // 2) the middle of the kernel.

    Parameters
    ----------
    kernel : (kh, kw), finite, not larger than the image
    size : (H, W)
    """

    def __init__(self, kernel, size: tuple[int, int]) -> None:
        super().__init__(kernel, size)
        self._transfer = _transfer(self.kernel, self.size, [-(n // 2) for n in self.kernel.shape])
        self.spectrum = self._transfer.abs() ** 2

    def _window(self, x: Tensor) -> Tensor:
        return x


class SampledFourier:
    r"""One-dimensional Cartesian sampling, as in magnetic resonance imaging: some columns of the Fourier transform.

    ``A x`` are real and imaginary parts of the kept columns of the orthonormal 2D transform, (B, 1, H, M, 2). Real
    images are a simplification: those of a scanner are complex. A column and its mirror image then tell the same,

        w(k) = (m(k) + m(-k)) / 2,    m(k) = 1 for kept columns, else 0    (the Hermitian part of the mask).

    Parameters
    ----------
    size : (H, W)
    acceleration : float >= 1, W over the number M of kept columns
    generator : torch.Generator, of the choice
    centre : float in [0, 1 / acceleration], share of the columns that are kept around the lowest frequency; the others
        are drawn from the rest
    """

    def __init__(
        self, size: tuple[int, int], acceleration: float, generator: torch.Generator, centre: float = 0.08
    ) -> None:
        if not 1 <= acceleration < math.inf or not 0 <= centre <= 1 / acceleration:
            raise ValueError(
                "acceleration must be a number >= 1 and centre at most its inverse, got"
                f" {acceleration} and {centre}"
            )
        self.size, width = tuple(size), size[1]
        low = round(centre * width)
        near = (torch.arange(low) - low // 2) % width  # around the frequency 0
        others = torch.randperm(width, generator=generator)
        others = others[~torch.isin(others, near)]
        count = max(1, round(width / acceleration))
        self.kept = torch.cat([near, others])[:count].sort().values  # (M,)
        mask = torch.zeros(width, dtype=torch.float64).index_fill_(0, self.kept, 1.0)
        self.spectrum = (0.5 * (mask + mask.flip(0).roll(1))).expand(self.size)

    def __call__(self, x: Tensor) -> Tensor:
        full = torch.fft.fft2(_sized(x, self.size), norm="ortho")
        return torch.view_as_real(full[..., self.kept.to(x.device)])

    def adjoint(self, u: Tensor) -> Tensor:
        kept = torch.view_as_complex(u.contiguous())
        full = kept.new_zeros(*kept.shape[:2], *self.size)
        full[..., self.kept.to(u.device)] = kept
        return torch.fft.ifft2(full, norm="ortho").real


def _transfer(kernel: Tensor, size: tuple[int, int], shift: Sequence[int] = (0, 0)) -> Tensor:
    """The Fourier transform (H, W) of a kernel in the upper left corner of an image, shifted by some pixels."""
    rest = [n - k for n, k in zip(size, kernel.shape, strict=True)]
    return torch.fft.fft2(F.pad(kernel, (0, rest[1], 0, rest[0])).roll(tuple(shift), (0, 1)))


def _filtered(x: Tensor, transfer: Tensor) -> Tensor:
    """F^H diag(transfer) F x for real x (B, 1, H, W) and the transfer (H, W) of a real filter; shaped like x."""
    half = transfer[..., : x.shape[-1] // 2 + 1].to(x.device, torch.promote_types(x.dtype, torch.complex32))
    return torch.fft.irfft2(torch.fft.rfft2(x) * half, s=x.shape[-2:])


class Projections:
    """Parallel-beam tomography with few views: line integrals of the image, in units of its longer side.

    Ray (angle, offset) samples the image bilinearly at steps of half a pixel; all rays together are one sparse matrix,
    so that the adjoint is its transpose exactly. The disc inscribed in the image is seen by all views.

    Parameters
    ----------
    size : (H, W)
    views : int >= 1, number of angles, equally spaced in [0, pi)
    bins : int >= 1, rays per view; max(H, W) by default
    """

    def __init__(self, size: tuple[int, int], views: int, bins: int | None = None) -> None:
        self.size, self.views = tuple(size), int(views)
        self.bins = max(self.size) if bins is None else int(bins)
        if self.views < 1 or self.bins < 1:
            raise ValueError(f"views and bins must be at least 1, got {views} and {bins}")
        self._matrix = _rays(self.size, self.views, self.bins)
        self._transpose = self._matrix.T.tocsr()  # kept: conjugate gradients apply it in each iteration

    def _apply(self, matrix, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1).double().cpu().numpy()
        return torch.from_numpy(np.ascontiguousarray((matrix @ flat.T).T)).to(x)

    def __call__(self, x: Tensor) -> Tensor:
        return self._apply(self._matrix, _sized(x, self.size)).reshape(-1, 1, self.views, self.bins)

    def adjoint(self, u: Tensor) -> Tensor:
        return self._apply(self._transpose, u).reshape(-1, 1, *self.size)


def _rays(size: tuple[int, int], views: int, bins: int) -> sparse.csr_array:
    """The matrix of bilinear line integrals, (views * bins, H * W)."""
    height, width = size
    reach = max(size) / 2
    along = np.arange(-reach * math.sqrt(2), reach * math.sqrt(2), 0.5)
    offsets = (np.arange(bins) + 0.5) * (2 * reach / bins) - reach
    rows, columns, values = [], [], []
    for k in range(views):
        c, s = math.cos(math.pi * k / views), math.sin(math.pi * k / views)
        x = offsets[:, None] * c - along * s + (width - 1) / 2  # (bins, steps)
        y = offsets[:, None] * s + along * c + (height - 1) / 2
        ray = np.broadcast_to(k * bins + np.arange(bins)[:, None], x.shape)
        i, j = np.floor(y).astype(int), np.floor(x).astype(int)
        for di in (0, 1):
            for dj in (0, 1):
                weight = (1 - np.abs(y - i - di)) * (1 - np.abs(x - j - dj))
                inside = (i + di >= 0) & (i + di < height) & (j + dj >= 0) & (j + dj < width) & (weight > 0)
                rows.append(ray[inside])
                columns.append(((i + di) * width + j + dj)[inside])
                values.append(0.5 / max(size) * weight[inside])
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sparse.coo_array(entries, shape=(views * bins, height * width)).tocsr()


def _sized(x: Tensor, size: tuple[int, int]) -> Tensor:
    x = as_images(x)
    if tuple(x.shape[-2:]) != size:
        raise ValueError(f"this operator is for images of {size} pixels, got {tuple(x.shape[-2:])}")
    return x


class LinearMeasurement:
    """Data term ``D(x) = ||A x - y||^2 / (2 sigma^2)`` of y = A x + noise (Kobler & Pock 2023, section 4).

    Parameters
    ----------
    operator : LinearOperator A
    y : (B, ...), finite, shaped as the operator returns it
    sigma : float > 0, noise level of y
    accuracy, iterations
        Of the conjugate gradients: relative residual, and how many at most.

    Raises
    ------
    ValueError
        A measurement that does not fit the operator, nan, or a sigma <= 0.
    """

    def __init__(
        self, operator: LinearOperator, y: Tensor, sigma: float, accuracy: float = 1e-5, iterations: int = 200
    ) -> None:
        if not isinstance(y, Tensor) or not y.is_floating_point() or not torch.isfinite(y).all():
            raise ValueError("the measurement must be a finite floating-point tensor (B, ...)")
        self.operator, self.y, self.sigma = operator, y.detach().clone(), float(sigma)
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be finite and > 0, in the units of the measurement, got {sigma}")
        expected = tuple(operator(y.new_zeros(len(y), 1, *operator.size)).shape)
        if tuple(y.shape) != expected:
            raise ValueError(f"the operator gives {expected}, the measurement has {tuple(y.shape)}")
        self.accuracy, self.iterations = accuracy, iterations
        self._back = operator.adjoint(self.y)

    def energy(self, x: Tensor) -> Tensor:
        """||A x - y||^2 / (2 sigma^2) per image, (B,)."""
        return (self.operator(x) - self.y).square().flatten(1).sum(1) / (2 * self.sigma**2)

    def prox(self, v: Tensor, step: float | Tensor) -> Tensor:
        """(I + c A^T A)^{-1} (v + c A^T y), c = step / sigma^2, shaped like v.

        Exact if the operator has a ``spectrum``, else by conjugate gradients started at v. Raises RuntimeError if they
        do not reach the accuracy: a smaller step or more iterations are needed.
        """
        v = _sized(v, self.operator.size)
        c = as_time(step, len(v), like=v).reshape(-1, 1, 1, 1) / self.sigma**2
        return self._solve(v, c)

    def start(self) -> Tensor:
        """The regularised least-squares image ``argmin ||A x - y||^2 + e ||x - 1/2||^2`` with e = 0.01 ||A^T||^2.

        Our choice: it leans on mid grey where nothing was measured.
        """
        return self._solve(torch.full_like(self._back, 0.5), 100.0 / self._norm())

    def _norm(self) -> float:
        """||A||^2 by power iteration."""
        x = torch.ones_like(self._back[:1])
        for _ in range(20):
            x = x / x.norm()
            x = self.operator.adjoint(self.operator(x))
            if not bool(x.any()):  # a constant is not seen, or nothing is
                x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        return float(x.norm())

    def _solve(self, v: Tensor, c: float | Tensor) -> Tensor:
        """(I + c A^T A) x = v + c A^T y, one system per image; started at v."""

        def apply(x: Tensor) -> Tensor:
            return x + c * self.operator.adjoint(self.operator(x))

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum((1, 2, 3), keepdim=True)

        goal = v + c * self._back
        if (spectrum := getattr(self.operator, "spectrum", None)) is not None:
            return _filtered(goal, 1 / (1 + c * spectrum.to(goal)))
        x, residual = v, goal - apply(v)
        direction, old = residual, dot(residual, residual)
        enough = self.accuracy**2 * dot(goal, goal).clamp_min(1e-30)
        for _ in range(self.iterations):
            if bool((old <= enough).all()):
                return x
            applied = apply(direction)
            length = torch.where(old > enough, old / dot(direction, applied).clamp_min(1e-38), 0.0)
            x, residual = x + length * direction, residual - length * applied
            new = dot(residual, residual)
            direction, old = residual + (new / old.clamp_min(1e-38)) * direction, new
        if bool((old <= enough).all()):
            return x
        reached = float((old / enough).max()) ** 0.5 * self.accuracy
        raise RuntimeError(
            f"conjugate gradients reached a relative residual of {reached:.1e} in {self.iterations} iterations, not "
            f"{self.accuracy:.1e}: take a smaller step, more iterations or a larger accuracy"
        )
