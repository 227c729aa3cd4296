"""Image quality: the peak signal-to-noise ratio, in the one convention used throughout.

    PSNR(x, x*) = -10 log10( mean (x - x*)^2 )   [dB],   grey values in [0, 1], so the peak is 1.

Nothing is clipped. Clipping a noisy image to [0, 1] before measuring it raises its PSNR (by about 0.4 dB at
sigma = 25/255 on natural images), so numbers of papers that clip and of papers that do not cannot be
compared to the decimal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnclib.checks import as_images


def psnr(x: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels, data range 1, without clipping.

    x, reference: (B, 1, H, W) of the same shape. Returns (B,) in float64; identical images give +inf.
    Raises ValueError for anything that is not such a pair of finite images.
    """
    x, reference = as_images(x), as_images(reference)
    if x.shape != reference.shape:
        raise ValueError(
            f"psnr compares images of one shape, got {tuple(x.shape)} and {tuple(reference.shape)}; "
            "crop or expand one of them first"
        )
    error = (x.double() - reference.double()).square().mean(dim=(1, 2, 3))  # (B,)
    return -10.0 * torch.log10(error)
