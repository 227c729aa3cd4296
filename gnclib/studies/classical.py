r"""Methods without learning: BM3D, total variation, biharmonic inpainting.

Images are (1, 1, H, W), grey values in [0, 1], not clipped.

*BM3D* (Dabov, Foi, Katkovnik & Egiazarian 2007; Maekinen, Azzari & Foi 2020) groups similar patches and shrinks each
group in a transform domain. We call the package of its authors, `bm3d`, with its standard profile. It and the `bm4d`
that it needs are free for non-commercial use only; they belong to the optional extra ``gnclib[compare]``, and nothing
else in this project uses them.

*TV* (Rudin, Osher & Fatemi 1992) is the one-parameter energy

    x = argmin  1/2 ||x - y||^2 + w sum_pixels |grad x|,      grad: forward differences, |.|: Euclidean norm,

solved in its dual by Chambolle's projection (scikit-image). :func:`tune_tv` finds, for a noise level, the w of the best
mean PSNR on training images.

*Biharmonic inpainting* (scikit-image) solves Laplace(Laplace x) = 0 at the missing pixels with the known ones fixed.
The library clips the result to the range of the known pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnclib.checks import as_images
from gnclib.images import add_noise, middle, psnr, refuse_validation

#: side of the square in the middle of each image on which the weight of TV is tuned
CROP = 160


def _array(y: Tensor) -> np.ndarray:
    """(1, 1, H, W) -> (H, W) in float64."""
    if as_images(y).shape[0] != 1:
        raise ValueError(f"one image (1, 1, H, W) at a time, got {y.shape[0]} of them")
    return y[0, 0].detach().double().cpu().numpy()


def _like(result: np.ndarray, y: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(result)).to(y)[None, None]


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value}")
    return float(value)


def bm3d(y: Tensor, sigma: float) -> Tensor:
    """The BM3D estimate of an image with noise of standard deviation sigma > 0.

    Standard profile ("np"), both stages, one thread, so always the same. Raises ValueError: bad input; ImportError: the
    package `bm3d` cannot be loaded; the message says what to do.
    """
    noisy, sigma = _array(y), _positive("sigma", sigma)
    try:
        import bm3d as package
    except (ImportError, OSError) as error:  # OSError: its binary is for other machines
        raise ImportError(
            f"BM3D needs the package bm3d, which cannot be loaded ({error}). It is free for non-commercial use only and"
            " not installed with gnclib by default: pip install 'gnclib[compare]', or choose other methods"
        ) from error
    profile = package.BM3DProfile()
    profile.num_threads = 1  # its default, 0, takes all cores
    return _like(package.bm3d(noisy, sigma, profile), y)


def tv(y: Tensor, weight: float, accuracy: float = 1e-6) -> Tensor:
    """The minimiser of 1/2 ||x - y||^2 + weight sum |grad x|, up to a relative change of the energy of `accuracy`.

    The weight, in grey values, must be > 0; raises ValueError.
    """
    from skimage.restoration import denoise_tv_chambolle

    noisy, weight = _array(y), _positive("weight", weight)
    return _like(denoise_tv_chambolle(noisy, weight=weight, eps=accuracy, max_num_iter=2000), y)


def biharmonic(y: Tensor, mask: Tensor) -> Tensor:
    """The biharmonic interpolation of the known pixels, clipped to their range; known pixels stay as they are.

    The mask is boolean, shaped like y, True = known: y is looked at there only. Raises ValueError if no pixel is known.
    """
    from skimage.restoration import inpaint_biharmonic

    known = _array(y)
    if mask.shape != y.shape or mask.dtype != torch.bool:
        raise ValueError(f"the mask must be boolean and shaped like y, got {mask.dtype} {tuple(mask.shape)}")
    missing = ~mask[0, 0].cpu().numpy()
    if missing.all():
        raise ValueError("no pixel is known: there is nothing to interpolate")
    if not missing.any():
        return y.clone()
    return _like(inpaint_biharmonic(np.where(missing, 0.0, known), missing), y)


def tune_tv(images: Mapping[str, Tensor], sigma: float) -> dict[str, Any]:
    """The weight of TV with the best mean PSNR on training images, by Brent's method on log(weight / sigma).

    The middle 160 x 160 pixels of each image, noise of image k with seed k. weight / sigma is sought in [0.1, 10].
    Returns "weight" (four digits), "psnr" (its mean in dB) and "images" (how many). Raises ValueError: no images, or
    some of val of BSDS500, which must not be trained on.
    """
    from scipy.optimize import minimize_scalar

    refuse_validation(images)
    if not images:
        raise ValueError("there are no images to tune the weight of TV on")
    _positive("sigma", sigma)
    clean = [middle(x, CROP) for x in images.values()]
    noisy = [add_noise(x, sigma, k) for k, x in enumerate(clean)]

    def quality(weight: float) -> float:
        return float(np.mean([psnr(tv(y, weight), x).item() for x, y in zip(clean, noisy, strict=True)]))

    found = minimize_scalar(
        lambda u: -quality(sigma * math.exp(u)),
        bounds=(-math.log(10), math.log(10)),
        method="bounded",
        options={"xatol": 0.01},
    )
    weight = float(f"{sigma * math.exp(found.x):.4g}")
    return {"weight": weight, "psnr": round(quality(weight), 4), "images": len(clean)}
