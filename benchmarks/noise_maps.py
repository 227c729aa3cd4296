"""What is gained by a noise level for each pixel: ``python benchmarks/noise_maps.py``, the table of the guide.

A detector counts photons, y = Poisson(peak x) / peak + read noise, x a crop of a photograph or micrograph of
scikit-image with brightness 0.05 to 0.95, seed 0, nothing clipped. R_1 removes the noise by GNC flow, given

* one sigma, the root of the mean variance; the true sigma of each pixel; the gain and read noise of the detector; a
  curve estimated from the image (:class:`gnclib.NoiseCurve`);
* or, by the generalised Anscombe transform, an image whose noise has sigma 1, and its exact unbiased inverse
  (Makitalo & Foi, IEEE TIP 22(1), 2013), tabulated here: by R_1, and by BM3D;
* and R_3 by GNC flow, given the detector or the estimated curve.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import poisson
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from gnclib import NoiseCurve, denoise_gnc
from gnclib.foe import WEIGHTS
from gnclib.io import Origin, dumps, markdown, read_json, sha256, write_text
from gnclib.studies.comparison import bm3d

STORED = Path(__file__).with_name("noise_maps.json")
READ, PEAKS, SIDE = 0.02, (5, 20, 100), 128
CORNERS = {"coins": (0, 0), "cell": (200, 200), "camera": (80, 120)}
COLUMNS = ("one sigma", "true map", "detector known", "estimated", "Anscombe")
COLUMNS += ("Anscombe, BM3D", "R_3, detector known", "R_3, estimated")


def crop(name: str, side: int = SIDE) -> np.ndarray:
    """A clean image (side, side), brightness 0.05 to 0.95."""
    row, column = CORNERS[name]
    return 0.05 + 0.9 * getattr(data, name)()[row : row + side, column : column + side] / 255


def counted(x: np.ndarray, peak: float, read: float = READ, seed: int = 0) -> np.ndarray:
    """What a detector reads where peak photons are white."""
    g = np.random.default_rng(seed)
    return g.poisson(peak * x) / peak + read * g.standard_normal(x.shape)


def by_bm3d(y: np.ndarray, sigma: float) -> np.ndarray:
    return bm3d(torch.from_numpy(y)[None, None], sigma)[0, 0].numpy()


def by_anscombe(
    y: np.ndarray, peak: float, read: float = READ, denoise: Callable = denoise_gnc
) -> np.ndarray:
    """Denoised where its noise has sigma 1, and back."""

    def forward(photons):
        return 2 * np.sqrt(np.maximum(photons + 3 / 8 + (read * peak) ** 2, 0))

    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    means = np.concatenate([np.linspace(0, 2, 81), np.linspace(2, 2 * peak, 200)[1:]])
    counts = np.arange(int(4 * peak + 40))
    readings = forward(counts[:, None] + read * peak * nodes) @ weights / weights.sum()
    expected = poisson.pmf(counts, means[:, None]) @ readings
    low, high = forward(0), forward(peak)
    found = low + (high - low) * denoise((forward(peak * y) - low) / (high - low), 1 / (high - low))
    return np.interp(found, expected, means) / peak


def measured(name: str, peak: float) -> list[float]:
    """PSNR in dB of the columns."""
    x = crop(name)
    y, variance = counted(x, peak), x / peak + READ**2
    curves = NoiseCurve.of_detector(1 / peak, 0, READ), NoiseCurve.estimate(y)
    made = [denoise_gnc(y, level) for level in (np.sqrt(variance.mean()), np.sqrt(variance), *curves)]
    made += [by_anscombe(y, peak), by_anscombe(y, peak, denoise=by_bm3d)]
    made += [denoise_gnc(y, curve, prior="R3") for curve in curves]
    return [peak_signal_noise_ratio(x, found, data_range=1) for found in made]


def table(stored: dict) -> str:
    """As markdown, PSNR in dB."""
    cells = ([row["image, peak"], *(f"{row[column]:.2f}" for column in COLUMNS)] for row in stored["rows"])
    return markdown(["image, peak", *COLUMNS], cells)


def load(path: Path = STORED) -> dict:
    """The stored results."""
    return read_json(path, "table of noise maps", dict)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=STORED)
    given, rows = parser.parse_args(words), []
    for name in CORNERS:
        for peak in PEAKS:
            rows.append(
                {"image, peak": f"{name}, {peak}", **dict(zip(COLUMNS, measured(name, peak), strict=True))}
            )
    made = Origin.here(packages=("torch", "numpy", "scipy", "scikit-image", "bm3d")).model_dump()
    weights = {prior: sha256(WEIGHTS / prior / "model.safetensors") for prior in ("R1", "R3")}
    settings = {"side": SIDE, "read": READ, "weights": weights}
    write_text(given.out, dumps({"made": made, "settings": settings, "rows": rows}, digits=6))
    print(table(load(given.out)))


if __name__ == "__main__":
    main()
