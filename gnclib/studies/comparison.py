r"""Methods side by side: what a method is, what is kept of its result for one image, and those of others.

A *task* has a name, ``str(task)``, and ``measure(x, generator)``, which returns the data term of a measurement of the
clean image x, all that a method sees. Image k of a set is measured with a torch.Generator of seed k.

Methods of others take images (1, 1, H, W), grey values in [0, 1], not clipped:

* *BM3D* (Dabov, Foi, Katkovnik & Egiazarian 2007; Maekinen, Azzari & Foi 2020), from its authors' package `bm3d`. It
  and its `bm4d` are free for non-commercial use only; they belong to the optional extra ``gnclib[compare]``, and
  nothing else in this project uses them.
* *TV* (Rudin, Osher & Fatemi 1992), argmin_x 1/2 ||x - y||^2 + w sum_pixels |grad x| with forward differences, in its
  dual by Chambolle's projection (scikit-image); :func:`tune_tv` chooses w on training images.
* *Biharmonic inpainting* (scikit-image): Laplace(Laplace x) = 0 at the missing pixels.
* *Wiener*: of the quadratic energies that are diagonal in the discrete cosine transform c, the best; convex at every
  noise level, and the edge is continued as the priors do. With the mean m and the variance S of each coefficient over
  training images, c(x) = m + S / (S + sigma^2) (c(y) - m).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from gnclib.checks import as_images
from gnclib.images import add_noise, middle, psnr, refuse_validation, ssim, training_images
from gnclib.io import Job, Record, Row, rounded
from gnclib.restore import DataTerm

#: packages whose versions belong to the origin of a result
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "bm3d", "bm4d")
#: side of the square in the middle of each image on which TV is tuned; size of the images of BSDS500, if not upright
CROP, SIZE = 160, (321, 481)


class Task(Protocol):
    """An inverse problem with a name."""

    def measure(self, x: Tensor, generator: torch.Generator) -> DataTerm: ...


@dataclass(frozen=True)
class Method:
    """A method, ready for the measurements of one task; settings as of :class:`gnclib.io.table.Job`."""

    name: str
    #: data term of a measurement -> (x, how many gradients of an energy that took; None where there is no energy)
    solve: Callable[[DataTerm], tuple[Tensor, int | None]]
    settings: Mapping[str, Any]
    parameters: int | None = None  # that were learned or tuned for it, None where they were designed


class Images(Record):
    """The set of images that a file of results is about."""

    set: str


class Quality(Row):
    """The result of a method for one image: PSNR in dB with data range 1, SSIM, nothing clipped.

    Beside them the seed of the measurement, the seconds of the clock and of the processor, and the number of gradients
    of an energy, None where there is none.
    """

    by: ClassVar[tuple[str, ...]] = ("method", "task")
    key: ClassVar[tuple[str, ...]] = ("image",)
    method: str
    task: str
    image: str
    seed: int
    psnr: rounded(5)
    ssim: rounded(5)
    wall: rounded(5)
    cpu: rounded(5)
    evaluations: int | None

    def __str__(self) -> str:
        return f"{self.task}  {self.image}  {self.method}: {self.psnr:.2f} dB, SSIM {self.ssim:.3f}, {self.cpu:.2f} s"


def solved(method: Method, measured: DataTerm) -> tuple[Tensor, dict[str, Any]]:
    """The image that a method finds, and the columns "wall", "cpu" and "evaluations"."""
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        x, evaluations = method.solve(measured)
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return x, spent | {"evaluations": evaluations}


def _judged(method: Method, task: Task, x: Tensor, seed: int) -> dict[str, Any]:
    """The values of a :class:`Quality`."""
    found, spent = solved(method, task.measure(x, torch.Generator().manual_seed(seed)))
    return {"psnr": psnr(found, x).item(), "ssim": ssim(found, x).item()} | spent


def jobs(task: Task, methods: Iterable[Method], images: Mapping[str, Tensor]) -> Iterator[Job]:
    """The rows of some methods for one task, image by image: name -> (1, 1, H, W) in [0, 1], image k with seed k."""
    methods = list(methods)
    for seed, (image, x) in enumerate(images.items()):
        for method in methods:
            yield Job(
                {"method": method.name, "task": str(task), "image": image, "seed": seed},
                {**method.settings, "parameters": method.parameters},
                partial(_judged, method, task, x, seed),
            )


# methods without learning --------------------------------------------------------------------------------------------


def _array(y: Tensor) -> np.ndarray:
    """(1, 1, H, W) -> (H, W) in float64."""
    if as_images(y).shape[0] != 1:
        raise ValueError(f"one image (1, 1, H, W) at a time, got {y.shape[0]} of them")
    return y[0, 0].detach().double().cpu().numpy()


def _like(result: np.ndarray, y: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(result)).to(y)[None, None]


def bm3d(y: Tensor, sigma: float) -> Tensor:
    """The BM3D estimate of an image with noise of standard deviation sigma > 0.

    Standard profile ("np"), both stages, one thread, so always the same. Raises ImportError if the package `bm3d`
    cannot be loaded; the message says what to do.
    """
    noisy = _array(y)
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


def _cosines(x: np.ndarray) -> np.ndarray:
    """The coefficients of the discrete cosine transform of an image (321, 481), or of an upright one, turned."""
    return dctn(x if x.shape == SIZE else x.T, norm="ortho")


@cache
def spectrum() -> tuple[np.ndarray, np.ndarray]:
    """Mean, of the first alone (an image is as likely as its mirror image), and variance over BSDS500's train, test."""
    mean, square = np.zeros(SIZE), np.zeros(SIZE)
    images = training_images().values()
    for c in map(_cosines, map(_array, images)):
        mean[0, 0] += c[0, 0] / len(images)
        square += c**2 / len(images)
    return mean, square - mean**2


def wiener(y: Tensor, sigma: float) -> Tensor:
    """The Wiener estimate of an image (1, 1, 321, 481) or upright with noise of standard deviation sigma.

    Raises ValueError for another size, FileNotFoundError without the training images, whose spectrum it needs.
    """
    noisy = _array(y)
    if sorted(noisy.shape) != sorted(SIZE):
        raise ValueError(f"the Wiener filter is for 321 x 481 pixels, got {noisy.shape}")
    mean, variance = spectrum()
    x = idctn(mean + variance / (variance + sigma**2) * (_cosines(noisy) - mean), norm="ortho")
    return _like(x if noisy.shape == SIZE else x.T, y)


def tv(y: Tensor, weight: float, accuracy: float = 1e-6) -> Tensor:
    """The minimiser of 1/2 ||x - y||^2 + weight sum |grad x|, up to a relative change of the energy of `accuracy`.

    The weight is > 0, in grey values.
    """
    from skimage.restoration import denoise_tv_chambolle

    return _like(denoise_tv_chambolle(_array(y), weight=weight, eps=accuracy, max_num_iter=2000), y)


def biharmonic(y: Tensor, mask: Tensor) -> Tensor:
    """The biharmonic interpolation of the known pixels, clipped to their range; known pixels stay as they are.

    The mask is boolean, shaped like y, True = known: y is looked at there only. Raises ValueError if no pixel is known.
    """
    from skimage.restoration import inpaint_biharmonic

    known = _array(y)
    missing = ~mask[0, 0].cpu().numpy()
    if missing.all():
        raise ValueError("no pixel is known: there is nothing to interpolate")
    if not missing.any():
        return y.clone()
    return _like(inpaint_biharmonic(np.where(missing, 0.0, known), missing), y)


def tune_tv(images: Mapping[str, Tensor], sigma: float) -> dict[str, Any]:
    """The weight of TV with the best mean PSNR on training images, by Brent's method on log(weight / sigma).

    The middle 160 x 160 pixels of each image, noise of image k with seed k. weight / sigma is sought in [0.1, 10].
    Returns "weight" (four digits), "psnr" (its mean in dB) and "images" (how many). Raises ValueError: images of val of
    BSDS500, which must not be trained on.
    """
    from scipy.optimize import minimize_scalar

    refuse_validation(images)
    clean = [middle(x, CROP) for x in images.values()]
    noisy = [add_noise(x, sigma, k) for k, x in enumerate(clean)]

    def quality(weight: float) -> float:
        return float(np.mean([psnr(tv(y, weight), x).item() for x, y in zip(clean, noisy, strict=True)]))

    end, search = math.log(10), {"method": "bounded", "options": {"xatol": 0.01}}
    found = minimize_scalar(lambda u: -quality(sigma * math.exp(u)), bounds=(-end, end), **search)
    weight = float(f"{sigma * math.exp(found.x):.4g}")
    return {"weight": weight, "psnr": round(quality(weight), 4), "images": len(clean)}
