r"""Peak signal-to-noise ratio and structural similarity, in the conventions used throughout.

    PSNR(x, x*) = -10 log10( mean (x - x*)^2 )   [dB],   grey values in [0, 1], so the peak is 1.

    SSIM(x, x*) = mean over pixels of  (2 m m* + C_1)(2 c + C_2) / ((m^2 + m*^2 + C_1)(v + v* + C_2)),

where m, m* are local means, v, v* local variances and c the local covariance of x and x*, all of them weighted by a
Gaussian window (Wang, Bovik, Sheikh & Simoncelli 2004).

Nothing is clipped. Clipping a noisy image to [0, 1] before measuring it raises its PSNR (by about 0.4 dB at
sigma = 25/255 on natural images), so numbers of papers that clip and of papers that do not cannot be
compared to the decimal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnclib.checks import as_images

#: side of the window of SSIM in pixels; images must be at least as large
WINDOW = 11


def psnr(x: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels, data range 1, without clipping.

    Parameters
    ----------
    x, reference
        (B, 1, H, W) of the same shape.

    Returns
    -------
    Tensor
        (B,) in float64; +inf for identical images.

    Raises
    ------
    ValueError
        Anything that is not such a pair of finite images.
    """
    x, reference = _pair("psnr", x, reference)
    error = (x.double() - reference.double()).square().mean(dim=(1, 2, 3))  # (B,)
    return -10.0 * torch.log10(error)


def ssim(x: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image with the settings of Wang et al. 2004: 1 for equal images, at most 1.

    Window: Gaussian of standard deviation 1.5 on 11 x 11 pixels, its centre nowhere nearer than 5 pixels to the border.
    K_1 = 0.01, K_2 = 0.03, data range 1 (so C_1 = 1e-4, C_2 = 9e-4), covariances not corrected for the number of
    pixels, nothing clipped and no subsampling. Computed by scikit-image in float64.

    Parameters
    ----------
    x, reference
        (B, 1, H, W) of the same shape, H and W at least 11.

    Returns
    -------
    Tensor
        (B,) in float64.

    Raises
    ------
    ValueError
        Anything that is not such a pair of finite images.
    """
    from skimage.metrics import structural_similarity  # takes a while to load

    x, reference = _pair("ssim", x, reference)
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(
            f"ssim needs images of {WINDOW} x {WINDOW} pixels or more, got {x.shape[-2]} x {x.shape[-1]}"
        )
    pairs = zip(*(image[:, 0].detach().double().cpu().numpy() for image in (x, reference)), strict=True)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    values = [structural_similarity(a, b, data_range=1.0, K1=0.01, K2=0.03, **window) for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64)  # (B,)


def _pair(name: str, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both images, checked."""
    x, reference = as_images(x), as_images(reference)
    if x.shape != reference.shape:
        raise ValueError(
            f"{name} compares images of one shape, got {tuple(x.shape)} and {tuple(reference.shape)}; "
            "crop or expand one of them first"
        )
    return x, reference
