r"""How well the posterior of a denoised image is calibrated: coverage of its intervals, expected and estimated risk.

For each image, noise level and prior the posterior of :mod:`gnclib.restore.posterior` is compared with the clean image:
the share of the pixels whose error is below z standard deviations, where a Gaussian has the share p, with standard
deviations as the formula has them ("raw": negative variances count as 0) and with their floor ("inside"); and the
squared error beside what the energy expects (tr Cov) and what SURE estimates without the clean image.

One scale of the standard deviation per prior and noise level is fitted on images of val that are not in BSDS68, so
that 90 % of the errors lie inside of the intervals of 90 %.

The mean of d_tau R over noisy photographs is 0 at every tau for the logarithm of a true density (section 3.2).
:func:`drifts` measures it on the same images of val.

Counted photons have another noise in every pixel. :func:`counted` makes it nearly equal; the posterior is then that of
the transformed image. These rows are of the set "20 photons" (at white), and have no scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.stats import norm, poisson
from torch import Tensor

from gnclib.deep import load_prior
from gnclib.images import add_noise, bsds68, middle, validation_images
from gnclib.io import Content, Form, Job, Record, Row, Table, markdown, rounded
from gnclib.restore import Energy, posterior_moments, weights_sha256

#: the results that come with the package
SHIPPED = Path(__file__).with_name("coverage.json")
PRIORS, NOISE = ("R1", "R3", "C1", "G1"), (15, 25, 50)
#: intervals that a Gaussian would leave with the probability 1 - p
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
#: numbers of standard deviations within which a Gaussian has the probabilities LEVELS
Z = norm.ppf((1 + np.array(LEVELS)) / 2)
#: pixels along each side of the square in the middle of an image, and spacing of the probes
SIDE, SPACING = 96, 7
SETS = {"BSDS68": bsds68, "val": validation_images}
#: the priors and noise levels of the drifts, the levels as far as the range of the prior goes
SHOWN = ("P1", "P2", "P3", "R1", "R2", "R3", "C1", "C3", "M1", "M3", "G1")
SIGMAS = tuple(round(10 ** (k / 4 - 2), 6) for k in range(12))
#: standard deviation of the read noise, in photons
READ = 1.0


class About(Record):
    """Which part of the images, how it is probed, and the probabilities of the intervals."""

    side: int
    spacing: int
    levels: list[float]


class Calibration(Row):
    """One image: squared error, tr Cov and SURE per pixel, in squared grey levels; shares of errors in intervals.

    `error` is that of the variance by probing, relative to its mean; `seed` that of the noise.
    """

    by: ClassVar[tuple[str, ...]] = ("prior", "sigma", "set")
    key: ClassVar[tuple[str, ...]] = ("image",)
    prior: str
    sigma: int
    set: str
    image: str
    seed: int
    squared: rounded(3)
    expected: rounded(3)
    risk: rounded(3)
    error: rounded(4)
    raw: list[rounded(4)]
    inside: list[rounded(4)]


class Drift(Row):
    """d_tau R(y, tau) per pixel for each image of val, seed 0, in nats."""

    by: ClassVar[tuple[str, ...]] = ("prior",)
    key: ClassVar[tuple[str, ...]] = ("sigma",)
    prior: str
    sigma: float
    values: list[rounded(5)]


FORM = Form("file of coverages", About, {"images": Calibration, "drifts": Drift}, SHIPPED)
load = FORM.load


def counted(x: Tensor, peak: int, seed: int) -> tuple[Tensor, Tensor, float]:
    r"""Counted photons, made equal: the noisy image, its mean given the clean image x, and the sigma of its noise.

        y = a f(z) + b,   f(z) = 2 (z + 3/8 + READ^2)^(1/2),   z = Poisson(peak x) + READ N(0, 1),

    the generalised Anscombe transform (Makitalo & Foi, IEEE TIP 22(1), 2013), a and b such that no photon is black and
    `peak` photons are white; x is (1, 1, H, W) in [0, 1], sigma = a.
    """

    def forward(z: np.ndarray) -> np.ndarray:
        return 2 * np.sqrt(np.maximum(z + 3 / 8 + READ**2, 0))

    draw, low = np.random.default_rng(seed), forward(np.zeros(()))
    photons, sigma = peak * x.double().numpy(), 1 / (forward(np.array(peak)) - low)
    z = draw.poisson(photons) + READ * draw.standard_normal(x.shape)
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    counts, means = np.arange(2 * peak + 40), np.linspace(0, peak, 20 * peak + 1)
    readings = forward(counts[:, None] + READ * nodes) @ weights / weights.sum()
    expected = np.interp(photons, means, poisson.pmf(counts, means[:, None]) @ readings)
    y, mean = (torch.from_numpy(sigma * (v - low)).to(x) for v in (forward(z), expected))
    return y, mean, sigma.item()


def measured(prior: Energy, x: Tensor, sigma: int, seed: int, peak: int = 0) -> dict[str, Any]:
    """The values of a :class:`Calibration` of a clean image (1, 1, H, W); the middle SIDE x SIDE pixels of it.

    With a `peak` the noise is that of photons (:func:`counted`), and `sigma` is not used.
    """
    x = middle(x, SIDE)
    y, x, level = counted(x, peak, seed) if peak else (add_noise(x, sigma / 255, seed), x, sigma / 255)
    with torch.no_grad():
        found = posterior_moments(prior, y, level**2, spacing=SPACING)
    off = (found.mean - x).abs()

    def shares(std: Tensor) -> list[float]:
        return [(off < q * std).float().mean().item() for q in Z.tolist()]

    unit = 255**2 / x.numel()
    return {
        "squared": unit * off.square().sum().item(),
        "expected": unit * found.total.item(),
        "risk": unit * found.risk.item(),
        "error": found.error.item(),
        "raw": shares(found.variance.clamp(min=0).sqrt()),
        "inside": shares(found.std),
    }


def compute(
    path: str | Path,
    priors: Iterable[str] = PRIORS,
    noise: Iterable[int] = NOISE,
    limit: int | None = None,
    peaks: Iterable[int] = (),
) -> Iterator[Calibration]:
    """Compute what is missing in the file, made where it is missing; yield rows as they are added.

    Image k of each set, the first `limit` of them, has noise of seed k; `peaks` are of photons, on BSDS68. Raises
    ValueError for a file that is none.
    """
    file = _table(path)
    images = {name: dict(list(read().items())[:limit]) for name, read in SETS.items()}
    for prior in priors:
        energy = load_prior(prior)
        settings = {"weights": weights_sha256(energy)}
        cases = [(name, sigma, 0) for sigma in noise for name in SETS]
        cases += [(f"{peak} photons", equal_sigma(peak), peak) for peak in peaks]
        for name, sigma, peak in cases:
            wanted = [
                Job(
                    {"prior": prior, "sigma": sigma, "set": name, "image": image, "seed": k},
                    settings,
                    partial(measured, energy, x, sigma, k, peak),
                )
                for k, (image, x) in enumerate(images[name if name in SETS else "BSDS68"].items())
            ]
            yield from file.fill("images", wanted)


def drifts(path: str | Path, priors: Iterable[str] = SHOWN, limit: int | None = None) -> Iterator[Drift]:
    """As :func:`compute`, for d_tau R on the middles of the images of val, at the levels of the prior's range."""
    x = torch.cat([middle(image, SIDE) for image in list(validation_images().values())[:limit]])

    def found(prior: Energy, sigma: float) -> dict[str, list[float]]:
        with torch.no_grad():
            slopes = prior.dtau(add_noise(x, sigma, 0), sigma**2, order=1)[0]
        return {"values": (slopes / SIDE**2).tolist()}

    for name in priors:
        prior = load_prior(name)
        settings = {"weights": weights_sha256(prior), "images": len(x)}
        levels = [sigma for sigma in SIGMAS if sigma <= prior.sigma_max * (1 + 1e-6)]
        jobs = [Job({"prior": name, "sigma": s}, settings, partial(found, prior, s)) for s in levels]
        yield from _table(path).fill("drifts", jobs)


def _table(path: str | Path) -> Table:
    about = About(side=SIDE, spacing=SPACING, levels=list(LEVELS))
    return Table(path, FORM, about, packages=("torch", "numpy", "scipy"))


def equal_sigma(peak: int) -> int:
    """The noise of :func:`counted` in grey levels of 0..255, rounded."""
    return round(255 * counted(torch.zeros(1, 1, 1, 1), peak, 0)[2])


# summaries -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """One prior and noise level, on BSDS68; tr Cov and SURE are sums over the images, relative to the squared error."""

    raw: np.ndarray  # (len(LEVELS),), mean coverage with standard deviations as the formula has them
    inside: np.ndarray  # with their floor
    scaled: np.ndarray  # times the scale
    scale: float  # of the standard deviation, fitted on the images of val
    expected: float  # tr Cov
    risk: float  # SURE
    risk_error: float  # its standard error
    correlation: float  # of SURE and the squared error over the images
    dimension: float  # effective dimension relative to the number of pixels


def _shares(rows: list[Calibration], kind: str) -> np.ndarray:
    """The mean share of errors below Z standard deviations."""
    return np.mean([getattr(row, kind) for row in rows], 0)


def _gaussian(shares: np.ndarray) -> np.ndarray:
    """The number of standard deviations within which a Gaussian has these shares: Z itself for Gaussian errors."""
    return norm.ppf((1 + np.clip(shares, 0, 1 - 1e-6)) / 2)


def summary(rows: list[Calibration], prior: str, sigma: int) -> Summary:
    """What the rows say of a prior at a noise level. Raises ValueError if BSDS68 or val is not in them."""
    found = {name: [r for r in rows if (r.prior, r.sigma, r.set) == (prior, sigma, name)] for name in SETS}
    if not all(found.values()):
        raise ValueError(f"there are no results of {prior} at sigma {sigma} on BSDS68 and on val")
    scale = float(np.interp(norm.ppf(0.95), _gaussian(_shares(found["val"], "inside")), Z) / norm.ppf(0.95))
    test = found["BSDS68"]
    inside = _shares(test, "inside")
    squared, expected, risk = np.array([(r.squared, r.expected, r.risk) for r in test]).T
    ratio = risk.sum() / squared.sum()
    return Summary(
        raw=_shares(test, "raw"),
        inside=inside,
        scaled=2 * norm.cdf(np.interp(scale * Z, np.r_[0, Z], np.r_[0, _gaussian(inside)])) - 1,
        scale=scale,
        expected=expected.sum() / squared.sum(),
        risk=ratio,
        risk_error=(risk - ratio * squared).std(ddof=1) / squared.mean() / len(test) ** 0.5,
        correlation=float(np.corrcoef(risk, squared)[0, 1]),
        dimension=float(expected.mean() / sigma**2),
    )


def table(content: Content) -> str:
    """The summaries as markdown: coverage of 50, 90 and 95 % intervals in %, ratios to the squared error.

    Photons, if there are any, have a table of their own below.
    """
    rows = content.rows["images"]
    pairs = dict.fromkeys((row.prior, row.sigma) for row in rows if row.set in SETS)
    if not pairs:
        raise ValueError("there are no results to make a table of")
    head = "prior, sigma, raw 50/90/95, with floor, scale, scaled, tr Cov, SURE, corr., dim.".split(", ")
    at = [LEVELS.index(p) for p in (0.5, 0.9, 0.95)]
    lines = []
    for prior, sigma in pairs:
        s = summary(rows, prior, sigma)
        covers = [" / ".join(f"{100 * c[k]:.1f}" for k in at) for c in (s.raw, s.inside, s.scaled)]
        numbers = [f"{s.expected:.3f}", f"{s.risk:.3f}", f"{s.correlation:.3f}", f"{100 * s.dimension:.1f} %"]
        lines.append([prior, str(sigma), *covers[:2], f"{s.scale:.3f}", covers[2], *numbers])
    photons = dict.fromkeys((row.prior, row.set) for row in rows if row.set not in SETS)
    below = []
    for prior, name in photons:
        found = [row for row in rows if (row.prior, row.set) == (prior, name)]
        covers = [" / ".join(f"{100 * _shares(found, k)[i]:.1f}" for i in at) for k in ("raw", "inside")]
        squared, *others = (sum(getattr(r, k) for r in found) for k in ("squared", "expected", "risk"))
        ratios = [f"{other / squared:.3f}" for other in others]
        below.append([prior, name, str(found[0].sigma), *covers, *ratios, str(len(found))])
    head_below = "prior, noise, sigma, raw 50/90/95, with floor, tr Cov, SURE, images".split(", ")
    return markdown(head, lines) + (f"\n\n{markdown(head_below, below)}" if below else "")


def drift_table(content: Content) -> str:
    """E[d_tau R] / n in % as markdown: mean over the images and its standard error, by noise level."""
    means: dict[str, dict[float, str]] = {}
    for row in content.rows["drifts"]:
        mean, error = np.mean(row.values), np.std(row.values, ddof=1) / len(row.values) ** 0.5
        means.setdefault(row.prior, {})[row.sigma] = f"{100 * mean:+.1f} +- {100 * error:.1f}"
    names = [name for name in SHOWN if name in means]
    head = ["sigma", *names]
    return markdown(head, [[f"{s:.2g}", *(means[n].get(s, "-") for n in names)] for s in SIGMAS])
