r"""Noise that grows with brightness: photons counted by a detector, then read out.

A pixel that counts K photons, K Poisson with mean lambda, is read as y = gain K + offset + read noise, so that

    E y = gain lambda + offset,    var y = gain (E y - offset) + read^2 = gain E y + floor,

a line in brightness (Foi, Trimeche, Katkovnik & Egiazarian, IEEE TIP 17, 2008). Its slope is the gain; of one image,
offset and read noise appear in the floor only. Denoising needs no more: sigma of each pixel,

    sigma_i = (gain m_i + floor)^(1/2),    m the image, smoothed (a Gaussian of :data:`SMOOTHING` pixels).

The unsmoothed y instead of m would trust dark outliers most, being dark by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import least_squares

from gnclib.restore.noise_level import ENOUGH, SIDE, calm, high_variance, live_spectra

#: standard deviation, in pixels, of the Gaussian that makes a mean of a noisy image
SMOOTHING = 1.5
#: brightnesses at which the variance is measured, at most, and blocks for each, at least
BINS, BLOCKS = 16, 4 * ENOUGH
#: relative error of a variance, beyond which it counts less in the fit
ROBUST = 0.1
#: the noise is said to grow if sigma at bright places is so many times that at dark ones, or twice as many times where
#: more than a share CUT of the pixels lies at an end of the range, which takes noise away there
GROWS, CUT = 1.75, 0.05

GROWING = (
    "the noise seems to grow with brightness, as that of photons does: one sigma for all pixels is too little at bright"
    " places; give each its own (--gain auto, in Python sigma=NoiseCurve.estimate(image))"
)


@dataclass(frozen=True)
class NoiseCurve:
    """The variance of noise by brightness, gain * brightness + floor, in units of the float image.

    Attributes
    ----------
    gain : float >= 0
        Grey values per photon: an integer image of 16 bits with g counts per photon has g / 65535.
    floor : float
        Variance at brightness 0; negative where the detector adds an offset that is larger than its read noise.
    """

    gain: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.gain < math.inf and math.isfinite(self.floor) and (self.gain or self.floor > 0)):
            raise ValueError(
                f"a gain must be >= 0, and some variance > 0; got {self.gain}, at brightness 0 {self.floor}"
            )

    @classmethod
    def of_detector(cls, gain: float, offset: float = 0.0, read_noise: float = 0.0) -> NoiseCurve:
        """From the data sheet: gain per photon, value without light, standard deviation of the read noise."""
        if not (math.isfinite(read_noise) and read_noise >= 0):
            raise ValueError(f"the read noise is a standard deviation, it must be >= 0, got {read_noise}")
        return cls(gain, read_noise**2 - gain * offset)

    @classmethod
    def estimate(cls, image: np.ndarray) -> NoiseCurve:
        """From one image (H, W) or (C, H, W): a line through the variances of its calmest blocks, by brightness.

        Raises ValueError if too few blocks can hold noise.
        """
        image = np.asarray(image)
        channels = image.reshape(-1, 1, *image.shape[-2:])
        spectra = np.concatenate(
            [found for found, used in map(live_spectra, channels) if used] or [np.zeros(0)]
        )
        if len(spectra) < BLOCKS:
            raise ValueError(
                "too little of the image shows noise to tell how it grows: give gain and read noise"
            )
        means = spectra[:, 0, 0, 0] / SIDE
        parts = np.array_split(np.argsort(means), min(BINS, len(means) // BLOCKS))
        kept = [calm(spectra[part], ENOUGH) for part in parts]
        m = np.array([k[:, 0, 0, 0].mean() / SIDE for k in kept])
        variance = np.array([high_variance(k)[0] for k in kept])

        def misfit(line: np.ndarray) -> np.ndarray:
            return np.log((line[0] * m + line[1]).clip(min=1e-12) / variance)

        mean = variance.mean()
        start = mean / max(m.mean(), 1e-3), 1e-3 * mean
        limits = [0, -10 * mean], [np.inf, 10 * mean]
        fit = least_squares(misfit, start, bounds=limits, loss="soft_l1", f_scale=ROBUST, x_scale=start)
        return cls(*map(float, fit.x))

    def sigma(self, image: np.ndarray) -> np.ndarray:
        """sigma of each pixel of a noisy image (..., H, W), shaped like it, no more than 1."""
        smooth = gaussian_filter(np.asarray(image, dtype=np.float32), SMOOTHING, axes=(-2, -1))
        variance = self.gain * smooth + self.floor
        return np.sqrt(variance.clip(min=max(0.01 * float(variance.mean()), 1e-8), max=1.0))


def grows(channels: np.ndarray) -> bool:
    """Whether the noise of the mean of the channels (C, H, W) is much stronger at bright places than at dark ones."""
    mean = channels.mean(0)
    try:
        curve = NoiseCurve.estimate(mean)
    except ValueError:
        return False
    dark, bright = curve.gain * np.quantile(mean, (0.1, 0.9)) + curve.floor
    cut = np.isin(channels, (channels.min(), channels.max())).mean() > CUT
    return bool(bright > (GROWS * (1 + cut)) ** 2 * max(dark, 0.0))
