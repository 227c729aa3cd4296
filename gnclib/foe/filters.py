"""Linear maps of a Fields of Experts: convolution without biases, continuation by reflection, and their adjoints.

Each map comes with its exact adjoint, <A x, g> = <x, A^T g>: the gradient of an energy <phi(A y), 1> is A^T phi'(A y).
"""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


def dct_kernels(size: int, count: int) -> Tensor:
    """The 2D DCT-II basis of size x size patches without the constant, by increasing frequency: (count, 1, size, size).

    Each kernel has unit Euclidean norm and zero mean.
    """
    k, x = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi * k * (2 * x + 1) / (2 * size)) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    basis = torch.einsum("ax,by->abxy", rows, rows)
    order = sorted(product(range(size), repeat=2), key=lambda ab: (ab[0] ** 2 + ab[1] ** 2, ab))[1:]
    return torch.stack([basis[a, b] for a, b in order[:count]])[:, None]


def reflect(x: Tensor, margin: int) -> Tensor:
    """Continue images by reflection, the edge repeated: (..., H, W) -> (..., H + 2 margin, W + 2 margin).

    The row c b a | a b c goes on with a, as numpy's "symmetric". Then every pixel lies in as many windows as any other;
    without the repetition the first row would lie in about half as many, and the second in more. H, W >= margin.
    """
    for _ in range(2 if margin else 0):  # continue along the last axis, then swap the two axes
        x = torch.cat([x[..., :margin].flip(-1), x, x[..., -margin:].flip(-1)], -1).transpose(-1, -2)
    return x


def reflect_adjoint(g: Tensor, margin: int) -> Tensor:
    """The adjoint of `reflect`: what lies in the margin is folded back and added."""
    if not margin:
        return g
    for _ in range(2):  # fold along the last axis, then swap the two axes and fold the other one
        g = g.transpose(-1, -2)
        n = g.shape[-1] - 2 * margin
        left, centre, right = g.split([margin, n, margin], -1)
        g = centre + F.pad(left.flip(-1), (0, n - margin)) + F.pad(right.flip(-1), (n - margin, 0))
    return g


def dilate(kernel: Tensor, dilation: int) -> Tensor:
    """The kernel with zeros between its taps, which are ``dilation`` pixels apart: (D, C, s, s) -> (D, C, r, r).

    r = dilation (s - 1) + 1.
    """
    side = dilation * (kernel.shape[-1] - 1) + 1
    dilated = kernel.new_zeros(*kernel.shape[:2], side, side)
    dilated[..., ::dilation, ::dilation] = kernel
    return dilated


def convolve(x: Tensor, kernel: Tensor, dilation: int = 1) -> Tensor:
    """Valid 2D convolution (correlation, as in networks): (B, C, H, W), (D, C, s, s) -> (B, D, H - r + 1, W - r + 1).

    The taps are ``dilation`` pixels apart, r as in `dilate`: the convolution with `dilate` of the kernel.
    A single input channel is a matrix product with all shifts of the image, several times faster on CPU than conv2d.
    Kernels between channels may be bfloat16: then features are rounded to that on their way in.
    """
    if kernel.shape[1] > 1:
        return F.conv2d(x.to(kernel.dtype), kernel, dilation=dilation).to(x.dtype)
    kernel = dilate(kernel, dilation) if dilation > 1 else kernel
    h, w = x.shape[-2] - kernel.shape[-2] + 1, x.shape[-1] - kernel.shape[-1] + 1
    shifts = x.unfold(2, h, 1).unfold(3, w, 1).reshape(len(x), -1, h * w)  # (B, s s, h w)
    return torch.bmm(kernel.flatten(1).expand(len(x), -1, -1), shifts).unflatten(-1, (h, w))


def convolve_adjoint(g: Tensor, kernel: Tensor, dilation: int = 1) -> Tensor:
    """The adjoint of `convolve` in x: (B, D, h, w) -> (B, C, h + r - 1, w + r - 1)."""
    if kernel.shape[1] > 1:
        return F.conv_transpose2d(g.to(kernel.dtype), kernel, dilation=dilation).to(g.dtype)
    kernel = dilate(kernel, dilation) if dilation > 1 else kernel
    s = kernel.shape[-1]
    size = g.shape[-2] + s - 1, g.shape[-1] + s - 1
    return F.fold(torch.bmm(kernel.flatten(1).t().expand(len(g), -1, -1), g.flatten(2)), size, s)


def convolve_adjoint_inner(g: Tensor, kernel: Tensor, dilation: int = 1) -> Tensor:
    """`convolve_adjoint` where ``g`` has all that it needs: (B, D, h, w) -> (B, C, h - r + 1, w - r + 1)."""
    if kernel.shape[1] > 1:
        turned = kernel.flip(-1, -2).transpose(0, 1)
        return F.conv2d(g.to(kernel.dtype), turned, dilation=dilation).to(g.dtype)
    return F.pad(convolve_adjoint(g, kernel, dilation), [dilation * (1 - kernel.shape[-1])] * 4)


def crop_to(x: Tensor, smaller: Tensor) -> Tensor:
    """The central part of ``x`` (..., H, W) with the height and width of ``smaller``."""
    top, left = ((a - b) // 2 for a, b in zip(x.shape[-2:], smaller.shape[-2:], strict=True))
    return x[..., top : top + smaller.shape[-2], left : left + smaller.shape[-1]]
