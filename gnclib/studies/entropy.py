r"""Entropies of noisy photographs, two ways, and code lengths: is the energy a density?

On squares of SIDE x SIDE pixels in the middle of the images of BSDS68, y = x + sigma z. *By the energy*: the mean of
R(y, t) + log Z, with the constant of :mod:`gnclib.restore.evidence`, is the entropy of y, or more where exp(-R) / Z
is not its density. *By the errors of the denoiser* (I-MMSE; Guo, Shamai and Verdu 2005):

    d h(Y_t) / d log sigma = n - mmse(t) / t,

integrated down from the strongest noise of a prior, where the Gaussian with the spectrum of photographs has the same
entropy but for some thousandths of a bit. What the constant and the training in t have to do with each other shows
in the difference.

*Code lengths*: noisy images in 8 bits, grey values of [0, 1] as 64 to 191.5 so that none is cut off, in bits per pixel;
files hold all images one below the other. JPEG-LS and JPEG XL are those of the package imagecodecs.

*Samples*: chains of MALA from exp(-R(., t)) itself, which come down from white noise or set out from a noisy
photograph. Where both kinds have the same mean energy, they may have forgotten their starts; where that is not the mean
energy of noisy photographs, the density believes in other images than these.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from scipy.interpolate import CubicSpline
from torch import Tensor

from gnclib.deep import load_prior
from gnclib.foe import FieldsOfExperts
from gnclib.images import add_noise, bsds68, middle, patches, training_images
from gnclib.io import Content, Form, Job, Record, Row, Table, markdown, rounded
from gnclib.restore import (
    Gaussian,
    Prior,
    WithBrightness,
    annealed_constant,
    energy_and_grad,
    mala,
    quadratic_constant,
    weights_sha256,
)

#: the results that come with the package
SHIPPED = Path(__file__).with_name("entropy.json")
PRIORS = ("R1", "C1", "R3", "G1")
PACKAGES = ("torch", "numpy", "scipy", "pillow", "imagecodecs")
#: grey values; a prior is measured up to the largest in its range
SIGMAS = tuple(round(0.01 * 10 ** (k / 6), 6) for k in range(17))
SIDE = 64
#: chains and steps of annealing, and patches of training images for the spectrum
CHAINS, STEPS, PATCHES = 8, 200, 4000
#: noise levels of the code lengths, and steps of the 8-bit grey scale for a grey value of 1
CODED, SCALE = (SIGMAS[2], SIGMAS[4], SIGMAS[6]), 127.5
#: whose chains run, their gradients, starts and seeds; those from noise come down from t = 1
SAMPLED, GRADIENTS, STARTS, SEEDS = ("R1", "R3", "G1"), 4000, ("noise", "photograph"), (0, 1)
#: without loss, by imagecodecs: its functions and their options
FURTHER = {"JPEG-LS": ("jpegls_encode", {}), "JPEG XL": ("jpegxl_encode", {"lossless": True, "effort": 9})}


class About(Record):
    """Side and number of the images, and the density of mean grey values: n times its variance is `brightness`."""

    side: int
    images: list[str]
    mean: rounded(6)
    brightness: rounded(6)


class Constant(Row):
    """log Z per pixel of an energy (with the density of mean grey values where it has none) at `sigma`, in nats."""

    by: ClassVar[tuple[str, ...]] = ("prior",)
    key: ClassVar[tuple[str, ...]] = ("sigma",)
    prior: str
    sigma: float
    method: str
    lower: rounded(6)
    upper: rounded(6)
    value: rounded(6)
    error: rounded(6)
    accepted: rounded(3)


class Level(Row):
    """Of each image: R(y, t) per pixel in nats, without log Z; squared error of one step per pixel over t."""

    by: ClassVar[tuple[str, ...]] = ("prior",)
    key: ClassVar[tuple[str, ...]] = ("sigma",)
    prior: str
    sigma: float
    energy: list[rounded(5)]
    left: list[rounded(5)]


class Code(Row):
    """Bits per pixel of the noisy images by a coder: a prior, "Gaussian", "PNG", "WebP" or one of :data:`FURTHER`."""

    by: ClassVar[tuple[str, ...]] = ("coder",)
    key: ClassVar[tuple[str, ...]] = ("sigma",)
    coder: str
    sigma: float
    bits: rounded(4)


class Chain(Row):
    """A chain without data: R(y, t) per pixel in nats, means over the first and the second half of its draws, the share
    of accepted proposals, and one step from its last draw, in thousandths of the grey scale, row by row."""

    by: ClassVar[tuple[str, ...]] = ("prior",)
    key: ClassVar[tuple[str, ...]] = ("sigma", "start", "seed")
    prior: str
    sigma: float
    start: str
    seed: int
    energy: list[rounded(4)]
    accepted: rounded(3)
    image: list[int]


TABLES = {"constants": Constant, "levels": Level, "codes": Code, "chains": Chain}
FORM = Form("file of entropies", About, TABLES, SHIPPED)
load = FORM.load


def noisy(x: Tensor, sigma: float) -> Tensor:
    """Images (N, 1, H, W) with noise; that of image k has seed k, at every level."""
    return torch.cat([add_noise(one, sigma, k) for k, one in enumerate(x.split(1))])


def measured(prior: Prior, x: Tensor, sigma: float) -> dict[str, Any]:
    """The values of a :class:`Level` of clean images (N, 1, H, W)."""
    y, n = noisy(x, sigma), x[0].numel()
    with torch.no_grad():
        parts = [energy_and_grad(prior, part, sigma**2) for part in y.split(4)]
    energy, steps = map(torch.cat, zip(*parts, strict=True))
    left = (y - x - sigma**2 * steps).double().square().sum((1, 2, 3)) / sigma**2
    return {"energy": (energy.double() / n).tolist(), "left": (left / n).tolist()}


def constant(prior: Prior, sigma: float, base: Gaussian, quadratic: bool) -> dict[str, Any]:
    """The values of a :class:`Constant`: by a determinant where the energy is quadratic, else by annealing."""
    shape, n = tuple(base.variances.shape), base.variances.numel()
    if quadratic:
        value = quadratic_constant(prior, sigma**2, torch.full((1, 1, *shape), base.mean)) / n
        same = dict.fromkeys(("lower", "upper", "value"), value)
        return {"method": "determinant", **same, "error": 0.0, "accepted": 1.0}
    generator, zeros = torch.Generator().manual_seed(0), torch.zeros(CHAINS, 1, *shape)
    found = annealed_constant(prior, sigma**2, base, zeros, steps=STEPS, generator=generator)
    values = {name: v / n if name != "accepted" else v for name, v in asdict(found).items()}
    return {"method": f"annealing, {CHAINS} chains, {STEPS} steps", **values}


def coded(x: Tensor, sigma: float, coder: str, prior: Prior | None, log_z: float) -> dict[str, Any]:
    """Bits per pixel of the noisy images in 8 bits; those of a prior by its density at the grey values."""
    levels = (64 + SCALE * noisy(x, sigma)).round().clamp(0, 255)
    picture = levels.reshape(-1, x.shape[-1]).byte().numpy()
    if coder in FURTHER:
        try:
            import imagecodecs
        except ImportError as error:
            raise ImportError(
                "JPEG-LS and JPEG XL need imagecodecs: pip install 'gnclib[compare]'"
            ) from error
        encode, options = FURTHER[coder]
        return {"bits": 8 * len(getattr(imagecodecs, encode)(picture, **options)) / levels.numel()}
    if prior is None:
        file = io.BytesIO()
        options = {"PNG": {"optimize": True}, "WebP": {"lossless": True, "quality": 100, "method": 6}}[coder]
        Image.fromarray(picture).save(file, coder, **options)
        return {"bits": 8 * file.tell() / levels.numel()}
    t = sigma**2 + 1 / (12 * SCALE**2)  # rounding adds the variance of a step
    with torch.no_grad():
        energy = torch.cat([prior.energy(part, t).double() for part in ((levels - 64) / SCALE).split(4)])
    nats = energy.mean().item() / x[0].numel() + log_z
    return {"bits": nats / math.log(2) + math.log2(SCALE)}


def chain(prior: Prior, x: Tensor, sigma: float, start: str, seed: int, gradients: int) -> dict[str, Any]:
    """The values of a :class:`Chain`, that from a photograph begins at image `seed` of x (N, 1, H, W)."""
    generator, n = torch.Generator().manual_seed(seed), x[0].numel()
    if start == "noise":
        y, first = 0.5 + torch.randn(x[:1].shape, generator=generator), 1.0
    else:
        y, first = add_noise(x[seed % len(x)][None], sigma, seed), None
    energies, accepted = [], []
    for draw in mala(prior, sigma**2, start=y, gradients=gradients, first=first, generator=generator):
        energies.append(draw.energy.item() / n)
        accepted.append(draw.accepted.item())
    _, grad = energy_and_grad(prior, draw.x, sigma**2)
    image = (1000 * (draw.x - sigma**2 * grad)).round().int().flatten().tolist()
    halves = [half.mean().item() for half in np.array_split(energies, 2)]
    return {"energy": halves, "accepted": fmean(accepted), "image": image}


def spectrum() -> Gaussian:
    """The Gaussian with the spectrum of patches of the training images."""
    generator = torch.Generator().manual_seed(0)
    return Gaussian.of(patches(list(training_images().values()), SIDE, PATCHES, generator))


def density(prior: Prior, mean: float, brightness: float) -> Prior:
    """A prior with a density of mean grey values, where it has none."""
    return WithBrightness(prior, mean, brightness) if isinstance(prior, FieldsOfExperts) else prior


def compute(path: str | Path, priors: Iterable[str] = PRIORS, limit: int | None = None) -> Iterator[Row]:
    """Compute what is missing in the file, made where it is missing; yield rows as they are added.

    BSDS68 is needed, the first `limit` images of it, and the training images. Raises ValueError for a file that is
    none.
    """
    base = spectrum()
    images = dict(list(bsds68().items())[:limit])
    x = torch.cat([middle(image, SIDE) for image in images.values()])
    about = About(side=SIDE, images=list(images), mean=base.mean, brightness=base.variances[0, 0].item())
    file = Table(path, FORM, about, packages=PACKAGES)
    for name in ("Gaussian", *priors):
        prior, settings, sigmas, log_z = base, {}, SIGMAS, 0.0
        if name != "Gaussian":
            energy = load_prior(name)
            prior = density(energy, about.mean, about.brightness)
            settings = {"weights": weights_sha256(energy)}
            sigmas = [s for s in SIGMAS if s <= energy.sigma_max]
            quadratic = getattr(energy.config, "sigma_convex", math.inf) <= sigmas[-1]
            found = partial(constant, prior, sigmas[-1], base, quadratic)
            yield from file.fill("constants", [Job({"prior": name, "sigma": sigmas[-1]}, settings, found)])
            log_z = next(row.value for row in file.read().rows["constants"] if row.prior == name)
        levels = [Job({"prior": name, "sigma": s}, settings, partial(measured, prior, x, s)) for s in sigmas]
        yield from file.fill("levels", levels)
        yield from file.fill("codes", _codes(x, name, {**settings, "log_z": log_z}, prior))
        for s, start, seed in itertools.product(CODED, STARTS, SEEDS) if name in SAMPLED else ():
            given = {"prior": name, "sigma": s, "start": start, "seed": seed}
            found = partial(chain, prior, x, s, start, seed, GRADIENTS)
            yield from file.fill("chains", [Job(given, settings | {"gradients": GRADIENTS}, found)])
    for coder in ("PNG", "WebP", *FURTHER):
        yield from file.fill("codes", _codes(x, coder, {}))


def _codes(x: Tensor, coder: str, needs: dict[str, Any], prior: Prior | None = None) -> list[Job]:
    """The rows of a coder: a prior, whose log Z is in what they need, or a kind of files."""
    found = {s: partial(coded, x, s, coder, prior, needs.get("log_z", 0.0)) for s in CODED}
    return [Job({"sigma": s, "coder": coder}, needs, bits) for s, bits in found.items()]


# summaries -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """A prior over the noise levels, per pixel, means over the images, each (S,); entropies in bits."""

    sigmas: np.ndarray
    energy: np.ndarray  # entropy by the energy and its constant
    errors: np.ndarray  # entropy by the errors of the denoiser, from the Gaussian's at the last sigma
    left: np.ndarray  # squared error of the denoiser over t

    @property
    def gap(self) -> float:
        """The largest difference of the two entropies."""
        return float(np.abs(self.energy - self.errors).max())


def curves(content: Content, prior: str) -> Curves:
    """The curves of a prior or of "Gaussian". Raises ValueError where the file has none."""
    rows = sorted((r for r in content.rows["levels"] if r.prior == prior), key=lambda r: r.sigma)
    log_z = {r.prior: r.value for r in content.rows["constants"]} | {"Gaussian": 0.0}
    top = {r.sigma: np.mean(r.energy) for r in content.rows["levels"] if r.prior == "Gaussian"}
    if not rows or prior not in log_z:
        raise ValueError(f"there are no results of {prior}")
    sigmas = np.array([r.sigma for r in rows])
    left = np.array([np.mean(r.left) for r in rows])
    rise = CubicSpline(np.log(sigmas), 1 - left).antiderivative()(np.log(sigmas))
    energy = np.array([np.mean(r.energy) for r in rows]) + log_z[prior]
    return Curves(sigmas, energy / math.log(2), (top[sigmas[-1]] + rise - rise[-1]) / math.log(2), left)


def table(content: Content) -> str:
    """Constants, largest differences of the two entropies and code lengths, as markdown."""
    head = ["density or format", "sigma", "log Z, nats/pixel", "gap, bits", "entropies apart, bits"]
    head += [f"code, {s:.3f}" for s in CODED]
    codes = {(r.coder, r.sigma): r.bits for r in content.rows["codes"]}
    rows = {r.prior: r for r in content.rows["constants"]}
    lines = []
    for name in dict.fromkeys(coder for coder, _ in codes):
        cells = ["", "", "", ""]
        if name in rows:
            r = rows[name]
            gap = (r.upper - r.lower) / math.log(2)
            cells = [f"{r.sigma:g}", f"{r.value:.4f}", f"{gap:.4f}", f"{curves(content, name).gap:.4f}"]
        lines.append([name, *cells, *(f"{codes[name, s]:.3f}" if (name, s) in codes else "" for s in CODED)])
    floor = [f"{0.5 * math.log2(2 * math.pi * math.e * (SCALE * s) ** 2):.3f}" for s in CODED]
    lines.sort(key=lambda cells: float(cells[5] or "inf"))
    return markdown(head, [*lines, ["noise alone", "", "", "", "", *floor]])
