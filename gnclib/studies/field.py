"""The field: methods that others use for the same problems, numbers that others measured, and the table of both.

Three methods without learning stand beside the learned energies. Images are (1, 1, H, W), grey values in [0, 1].

*BM3D* (Dabov, Foi, Katkovnik & Egiazarian 2007; Maekinen, Azzari & Foi 2020) groups similar patches and shrinks each
group in a transform domain. We call the package of its authors, `bm3d`, with its standard profile. Its licence is not
ours: it and the `bm4d` that it needs are free for non-commercial use only, so they belong to the optional extra
``gnclib[compare]``, and nothing else in this project uses them.

*TV* (Rudin, Osher & Fatemi 1992) is the one-parameter energy

    x = argmin  1/2 ||x - y||^2 + w sum_pixels |grad x|,      grad: forward differences, |.|: Euclidean norm,

solved in its dual by Chambolle's projection (scikit-image). The weight w is the one number in it: :func:`tune_tv`
finds, for a noise level, the w of the best mean PSNR on training images.

*Biharmonic inpainting* (scikit-image) solves Laplace(Laplace x) = 0 at the missing pixels with the known ones fixed. As
the library does it, the result is clipped to the range of the known pixels; nothing else here is clipped.

What was not measured here is in :data:`CITED`, with its source, and is never mixed with results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnclib.checks import as_images
from gnclib.images.data import add_noise, middle, refuse_validation
from gnclib.images.metrics import psnr

__all__ = ["CITED", "Cited", "biharmonic", "bm3d", "bm3d_package", "psnr_by_image", "table", "tune_tv", "tv"]

#: side of the square in the middle of each image on which the weight of TV is tuned
CROP = 160


# the methods -------------------------------------------------------------------------------------------------------


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


def bm3d_package() -> ModuleType:
    """The package bm3d. Raises ImportError, saying what to do, if it cannot be loaded."""
    try:
        import bm3d
    except (ImportError, OSError) as error:  # OSError: its binary is for other machines
        raise ImportError(
            f"BM3D needs the package bm3d, which cannot be loaded ({error}). It is free for non-commercial use only and"
            " not installed with gnclib by default: pip install 'gnclib[compare]', or choose other methods"
        ) from error
    return bm3d


def bm3d(y: Tensor, sigma: float) -> Tensor:
    """BM3D of a noisy image, standard profile ("np"), both stages, in one thread (and so the same each time).

    y: (1, 1, H, W), not clipped; sigma: noise standard deviation in grey values (25 / 255). Returns the same shape.
    Raises ValueError for bad input and ImportError if the package is not installed.
    """
    noisy, sigma = _array(y), _positive("sigma", sigma)
    package = bm3d_package()
    profile = package.BM3DProfile()
    profile.num_threads = 1  # its default, 0, takes all cores
    return _like(package.bm3d(noisy, sigma, profile), y)


def tv(y: Tensor, weight: float, accuracy: float = 1e-6) -> Tensor:
    """argmin_x 1/2 ||x - y||^2 + weight sum |grad x|, up to a relative change of the energy of ``accuracy``.

    y: (1, 1, H, W), not clipped; weight in grey values. Returns the same shape. Raises ValueError for bad input.
    """
    from skimage.restoration import denoise_tv_chambolle

    noisy, weight = _array(y), _positive("weight", weight)
    return _like(denoise_tv_chambolle(noisy, weight=weight, eps=accuracy, max_num_iter=2000), y)


def biharmonic(y: Tensor, mask: Tensor) -> Tensor:
    """The biharmonic interpolation of the known pixels, clipped to their range; known pixels stay as they are.

    y: (1, 1, H, W), looked at under the mask only; mask: boolean, shaped like y, True = known.
    Raises ValueError for bad input, also if no pixel is known.
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
    """The weight of TV with the best mean PSNR on training images, found by Brent's method on log(weight / sigma).

    The middle 160 x 160 pixels of each image, noise of image k with seed k. weight / sigma is sought in [0.1, 10].

    Args:
        images: id -> (1, 1, H, W) in [0, 1]; none of val of BSDS500, of which BSDS68 is a part.
        sigma: noise standard deviation in grey values.

    Returns:
        JSON data: "weight" (four digits), "psnr" (its mean in dB), "images" (how many).

    Raises:
        ValueError: no images, or some that must not be trained on; or sigma <= 0.
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
        lambda u: -quality(sigma * math.exp(u)), bounds=(-math.log(10), math.log(10)), method="bounded",
        options={"xatol": 0.01},
    )  # fmt: skip
    weight = float(f"{sigma * math.exp(found.x):.4g}")
    return {"weight": weight, "psnr": round(quality(weight), 4), "images": len(clean)}


# numbers of others -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cited:
    """A published mean PSNR in dB on BSDS68 by noise level, with its source; parameters in words, "" where unsure."""

    method: str
    parameters: str
    psnr: Mapping[int, float]
    source: str


#: Published, not measured here: other realisations of the noise, and clipping that the sources do not always state.
CITED = (
    Cited("EPLL", "", {15: 31.21, 25: 28.68, 50: 25.67},
          "Zoran & Weiss 2011, as measured by Zhang et al., IEEE TIP 26(7), 2017"),
    Cited("WCRR-NN", "< 15,000", {25: 28.68},
          "Goujon, Neumayer & Unser, Learning Weakly Convex Regularizers, arXiv 2308.10542, 2023"),
    Cited("TNRD (7x7, 5 stages)", "26,645", {15: 31.42, 25: 28.92, 50: 25.97},
          "Chen & Pock, IEEE TPAMI 39(6), 2017; one network per noise level"),
    Cited("DnCNN-S", "0.56 million", {15: 31.73, 25: 29.23, 50: 26.23},
          "Zhang, Zuo, Chen, Meng & Zhang, IEEE TIP 26(7), 2017; one network per noise level"),
)  # fmt: skip


# the table ---------------------------------------------------------------------------------------------------------


def table(content: Mapping[str, Any]) -> str:
    """The comparison as markdown: what was measured, and apart from it what is cited.

    content: of a result file, as `gnclib.studies.field_run.load` returns it. A cell is "PSNR in dB (SSIM)",
    the mean over the
    images of that method; "-" was not measured. Relative times are processor time over that of BM3D on the same images
    in the same run. Returns text without a final newline. Raises ValueError if there is no result in it.
    """
    means, parameters = _means(content)
    if not means:
        raise ValueError("there are no results to make a table of")
    tasks = sorted({task for row in means.values() for task in row}, key=_task_order)
    times = _relative_times(content)
    timed = sorted({task for row in times.values() for task in row}, key=_task_order)
    head = [
        "method",
        "parameters",
        *map(_title, tasks),
        *(f"time, {_title(task)}" for task in timed),
        "images",
    ]
    lines = [_row(head), _row(["---"] * len(head))]
    for method, row in means.items():
        cells = [f"{row[task][0]:.2f} ({row[task][1]:.3f})" if task in row else "-" for task in tasks]
        shares = [f"{times[method][task]:.3g}" if task in times.get(method, {}) else "-" for task in timed]
        counts = sorted({count for _, _, count in row.values()}, reverse=True)
        lines.append(_row([method, parameters[method], *cells, *shares, " / ".join(map(str, counts))]))
    spent = "; time: processor time relative to BM3D in the same run, one thread"
    lines += [
        "",
        f"Measured here on {content['set']}: PSNR in dB (SSIM), means over the images, nothing clipped, noise or mask"
        f" of image k with seed k{spent if timed else ''}.",
        "",
        "Cited, not measured here:",
        "",
    ]
    levels = sorted({level for cited in CITED for level in cited.psnr})
    head = ["method", "parameters", *(_title(f"denoise-{level}") for level in levels), "source"]
    lines += [_row(head), _row(["---"] * len(head))]
    for cited in CITED:
        cells = [f"{cited.psnr[level]:.2f}" if level in cited.psnr else "-" for level in levels]
        lines.append(_row([cited.method, cited.parameters, *cells, cited.source]))
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _title(task: str) -> str:
    kind, level = task.split("-", 1)
    return f"sigma {level}" if kind == "denoise" else f"{level} % missing"


def _task_order(task: str) -> tuple[str, float]:
    kind, level = task.split("-", 1)
    return kind, float(level)


def psnr_by_image(content: Mapping[str, Any], method: str, task: str) -> dict[str, float]:
    """PSNR in dB of every image, by its name, of a method ("R3 learned") at a task ("denoise-25").

    content: of a result file. Raises ValueError if it holds no result of this method at this task.
    """
    column = content["columns"].index("psnr")
    found = {}
    for entry in content["results"]:
        if (entry["method"], entry["task"]) == (method, task):
            found |= {image: values[column] for image, values in entry["images"].items()}
    if not found:
        raise ValueError(f"there is no result of {method!r} at {task!r} yet: run 'gnc compare'")
    return found


def _means(content: Mapping[str, Any]) -> tuple[dict, dict[str, str]]:
    """method -> task -> (PSNR, SSIM, number of images), and the parameters of each method in words."""
    rows: dict[str, dict[str, dict]] = {}
    parameters: dict[str, set[str]] = {}
    for entry in content["results"]:
        rows.setdefault(entry["method"], {}).setdefault(entry["task"], {}).update(entry["images"])
        count = entry["parameters"]
        parameters.setdefault(entry["method"], set()).add("-" if count is None else f"{count:,}")
    columns = [content["columns"].index(name) for name in ("psnr", "ssim")]
    means = {
        method: {
            task: (*np.mean([[v[c] for c in columns] for v in images.values()], axis=0), len(images))
            for task, images in row.items()
        }
        for method, row in rows.items()
    }
    return means, {method: " / ".join(sorted(found)) for method, found in parameters.items()}


def _relative_times(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """method -> task -> processor time over that of BM3D, from the last run that timed it.

    A time is left out where its method takes another number of gradients by now.
    """
    last = content["columns"].index("evaluations")
    taken = {(e["method"], e["task"]): {v[last] for v in e["images"].values()} for e in content["results"]}
    found: dict[str, dict[str, float]] = {}
    for run in content["timing"]:
        reference = sum(run["cpu"][run["reference"]]["BM3D"])
        for task, methods in run["cpu"].items():
            for method, seconds in methods.items():
                if taken.get((method, task)) == {run["evaluations"][task][method]}:
                    found.setdefault(method, {})[task] = sum(seconds) / reference
    return found
