r"""Noise of an image from its calmest blocks: level, covariance between channels, whether it is white, or grows.

The method of Ponomarenko et al. (SPIE 6796, 2007; analysed by Colom & Buades, IPOL 3, 2013): white noise has the same
variance sigma^2 in each coefficient of the orthonormal discrete cosine transform of an 8 x 8 block, whereas images have
little at high frequencies and nearly nothing where they are calm. So

1. of all blocks, those with the least energy at low frequencies are kept (the share :data:`SHARE`). High frequencies of
   white noise are independent of low ones, hence the choice does not bias what follows;
2. sigma^2 is the median over the high frequencies of the mean of their squares over the kept blocks.

The products of two channels instead of squares give the covariance of their noise.

*What cannot be noise* is left out first: blocks with a pixel whose 3 x 3 neighbourhood is exactly a plane or repeats
one row or column, as in bars, borders, masks, ramps and drawings, and blocks that overlap one which differs from a
plane by no more than the rounding of the file. *What lacks noise*, because grey values were cut off, lies near an end
of the range: blocks whose mean is within :data:`FAR` sigma of the least or greatest value of the image are left out,
sigma and they being found in turn; where few are farther away, the farthest are taken. What noise of sigma loses there,
z ~ N(0, 1) being read as max(z, -d) at the distance of d sigma, is made good: sigma^2 is divided by its variance.

*Structure without a calm block*, as in a fine checkerboard, occupies few directions in the space of blocks: where the
mean of the small eigenvalues of their covariance (Chen, Zhu & Heng, ICCV 2015) lies far below the median above, it is
taken instead.

*White?* Noise that was blurred, enlarged or compressed has less at the highest frequencies than at medium ones; so has
dense texture. Noise is called white if the ratio of these variances is at least :data:`EVEN`. That there is no noise is
said if the kept blocks hold less than the priors could remove, all frequencies together.

*Noise that grows with brightness*: photons counted by a detector, then read out. A pixel that counts K photons, K
Poisson with mean lambda, is read as y = gain K + offset + read noise, so that

    E y = gain lambda + offset,    var y = gain (E y - offset) + read^2 = gain E y + floor,

a line in brightness (Foi, Trimeche, Katkovnik & Egiazarian, IEEE TIP 17, 2008). Its slope is the gain; of one image,
offset and read noise appear in the floor only. Denoising needs no more: sigma of each pixel,

    sigma_i = (gain m_i + floor)^(1/2),    m the image, smoothed (a Gaussian of :data:`SMOOTHING` pixels).

The unsmoothed y instead of m would trust dark outliers most, being dark by chance.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.special import ndtr
from torch import Tensor

from gnclib.checks import DataRange, as_channels, as_measured

#: pixels along each side of a block, and how many blocks are looked at, spread evenly over the image
SIDE, MOST = 8, 100_000
#: of the blocks, which are kept, and at least so many; how many must be able to hold noise
SHARE, FEWEST, ENOUGH = 0.02, 400, 100
#: a block whose mean lies so many sigma from both ends of the range holds its noise; rounds in which sigma is refined
FAR, ROUNDS = 2.0, 4
#: the least sigma that the shipped priors remove; below it there is no noise
LEAST = 0.01
#: the least ratio of variances at the highest and medium frequencies at which noise is called white
EVEN = 0.6
#: sigma from eigenvalues is believed if smaller than sigma from high frequencies by this factor
STRUCTURED = 0.9
#: neighbours that differ by less are equal, in grey values of [0, 1]
EQUAL = 1e-6
#: standard deviation, in pixels, of the Gaussian that makes a mean of a noisy image
SMOOTHING = 1.5
#: brightnesses at which the variance is measured, at most, and blocks for each, at least
BINS, BLOCKS = 16, 4 * ENOUGH
#: relative error of a variance, beyond which it counts less in the fit
ROBUST = 0.1
#: the noise is said to grow if sigma at bright places is so many times that at dark ones, or twice as many times where
#: more than a share CUT of the pixels lies at an end of the range, which takes noise away there
GROWS, CUT = 1.75, 0.05

_FREQUENCY = np.add.outer(np.arange(SIDE), np.arange(SIDE))
_LOW, _MIDDLE = (1 <= _FREQUENCY) & (_FREQUENCY <= 4), (6 <= _FREQUENCY) & (_FREQUENCY <= 8)
_HIGH, _HIGHEST = _FREQUENCY >= 11, _FREQUENCY >= 12

GROWING = (
    "the noise seems to grow with brightness, as that of photons does: one sigma for all pixels is too little at bright"
    " places; give each its own (--gain auto, in Python sigma=NoiseCurve.estimate(image))"
)
NOT_WHITE = (
    "what varies in the calmest parts of the image does not look like white noise, but like noise that was blurred,"
    " enlarged, compressed or cut off, or like dense texture: the noise level may be wrong, give sigma"
)


@dataclass(frozen=True)
class Noise:
    """What the calm blocks of an image tell about its noise, in grey values of [0, 1] squared."""

    covariance: np.ndarray  # (C, C), of the noise between channels, from high frequencies; 0 if there is none
    middle: np.ndarray  # the same from medium frequencies
    highest: np.ndarray  # the same from the highest frequencies
    whole: np.ndarray  # the same from all but the mean
    blocks: int = 0  # how many calm blocks there were
    certain: bool = True  # whether enough of the image could show noise

    @property
    def levels(self) -> np.ndarray:
        """sigma of each channel, (C,)."""
        return np.sqrt(np.diag(self.covariance))

    def evenness(self, weights: np.ndarray) -> float:
        """Variance at the highest over that at medium frequencies, of the channels summed with these weights (C,).

        1 for white noise; also 1 where there is less than the priors could remove at all frequencies.
        """
        highest, middle, whole = (weights @ m @ weights for m in (self.highest, self.middle, self.whole))
        return 1.0 if whole < LEAST**2 else float(highest / max(middle, EQUAL**2))

    def white(self, weights: np.ndarray) -> bool:
        """Whether that sum holds white noise, or, with evidence, none."""
        return self.certain and self.evenness(weights) >= EVEN


def estimate_sigma(y: Tensor) -> float:
    """The standard deviation of white noise in y; see the module.

    Parameters
    ----------
    y : (B, 1, H, W)
        Images of one and the same noise level, grey values of [0, 1] plus noise, at least 8 x 8 pixels.

    Returns
    -------
    float
        sigma in grey values (25/255 = 0.098), the median over the batch; 0.0 where nothing can be noise.
        Warns where it does not look white.

    Raises
    ------
    ValueError
        y is no finite image batch in [0, 1] up to noise, or too small.
    """
    images = as_measured(y).detach().cpu().numpy()
    found = [measure_noise(image) for image in images]
    if not all(noise.white(np.ones(1)) for noise in found):
        warnings.warn(NOT_WHITE, stacklevel=2)
    return float(np.median([noise.levels[0] for noise in found]))


def measure_noise(channels: np.ndarray) -> Noise:
    """The noise of an image (C, H, W), grey values of [0, 1] plus noise. Raises ValueError if it is below 8 x 8."""
    spectra, used = live_spectra(channels)  # (N, c, 8, 8)
    bands, kept, certain = [np.zeros((len(used), len(used)))] * 4, spectra, True
    if len(spectra):
        kept, certain, share = _uncut(spectra, channels[used])
        products = np.einsum("nauv,nbuv->uvab", kept, kept) / len(kept) / np.outer(share, share)
        bands = [np.median(products[band], axis=0) for band in (_HIGH, _MIDDLE, _HIGHEST)]
        bands.append(products[_FREQUENCY > 0].mean(0))
        factors = _structure(kept, np.sqrt(np.diag(bands[0])))
        if certain and (factors < STRUCTURED).any():  # at all frequencies: they say nothing about whiteness
            bands = [bands[0] * np.outer(factors, factors)] * 4
    found = np.zeros((4, len(channels), len(channels)))
    for whole, band in zip(found, bands, strict=True):
        whole[np.ix_(used, used)] = band
    return Noise(*found, len(kept), certain)


def live_spectra(channels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Cosine transforms of the blocks that can hold noise (N, c, 8, 8), and the c channels that have any."""
    if min(channels.shape[1:]) < SIDE:
        raise ValueError(
            f"images of {channels.shape[1]} x {channels.shape[2]} pixels are too small to estimate the noise, which"
            f" needs {SIDE} x {SIDE}: give sigma"
        )
    channels = channels.astype(np.float32, copy=False)
    step = math.ceil(math.sqrt(channels[0].size / MOST))

    def spread(values: np.ndarray) -> np.ndarray:
        return sliding_window_view(values, (SIDE, SIDE), (-2, -1))[..., ::step, ::step, :, :]

    each = [~spread(_drawn(channel)).any((-1, -2)) for channel in channels]
    used = [c for c, live in enumerate(each) if live.sum() >= min(ENOUGH, live.size)]
    if not used:
        return np.zeros((0, 0, SIDE, SIDE)), used
    live = np.logical_and.reduce([each[c] for c in used])
    blocks = spread(channels[used])[:, live]  # (c, N, 8, 8)
    spectra = np.moveaxis(dctn(blocks, axes=(-2, -1), norm="ortho"), 0, 1)
    values = np.unique(blocks[:, :: max(1, blocks.shape[1] // 100)])
    rounding = np.diff(values).min() ** 2 / 12 if len(values) > 1 else 0.0
    plain = np.zeros(live.shape, bool)
    plain[live] = (spectra[..., _FREQUENCY > 1] ** 2).mean(-1).min(-1) <= 2 * rounding
    overlapping = maximum_filter(plain, 2 * math.ceil((SIDE - 1) / step) + 1)
    return spectra[~overlapping[live]], used


def _uncut(spectra: np.ndarray, channels: np.ndarray) -> tuple[np.ndarray, bool, np.ndarray]:
    """The calmest blocks of those far from both ends of the range, whether these are far enough to hold all noise, and
    the share of sigma (c,) that they hold where noise was cut off at the nearer end."""
    means = spectra[:, :, 0, 0] / SIDE
    ends = (channels.min((1, 2)), channels.max((1, 2)))
    distance, inside = np.minimum(means - ends[0], ends[1] - means), np.ones(len(spectra), bool)  # (N, c)
    few = min(FEWEST + ENOUGH, len(spectra))
    for _ in range(ROUNDS):
        kept = calm(spectra[inside])
        sigma = np.sqrt(high_variance(kept))
        far = (distance / sigma.clip(min=EQUAL)).min(1)
        inside = far >= min(FAR, np.partition(far, -few)[-few])
    means = kept[:, :, 0, 0] / SIDE
    d = np.minimum(means - ends[0], ends[1] - means) / sigma.clip(min=EQUAL)
    low, bell = d * ndtr(-d), np.exp(-(d**2) / 2) / math.sqrt(2 * math.pi)
    variance = ndtr(d) - d * bell + d * low - (bell - low) ** 2
    share = np.sqrt([v.mean() for v in variance.clip(min=0.5).T.copy()])  # rows: the same for equal channels
    return kept, bool(np.median(far[inside]) > 1.5), share


def calm(spectra: np.ndarray, fewest: int = FEWEST) -> np.ndarray:
    """The share of the blocks (N, c, 8, 8) that has the least energy at low frequencies."""
    energy = (spectra[..., _LOW] ** 2).sum((1, 2))
    return spectra[np.argsort(energy, kind="stable")[: max(fewest, int(SHARE * len(spectra)))]]


def high_variance(spectra: np.ndarray) -> np.ndarray:
    """Median over the high frequencies of the mean squares of spectra (N, c, 8, 8): (c,)."""
    return np.median((spectra[..., _HIGH] ** 2).mean(0), axis=-1)


def _drawn(channel: np.ndarray) -> np.ndarray:
    """Pixels (H, W) whose 3 x 3 neighbourhood is exactly a plane, or repeats one row or column."""
    down, right = (np.abs(np.diff(channel, axis=axis)) < EQUAL for axis in (0, 1))
    bend_down, bend_right, twist = (
        np.abs(np.diff(np.diff(channel, axis=a), axis=b)) < EQUAL for a, b in ((0, 0), (1, 1), (0, 1))
    )

    def all_of(equal: np.ndarray, height: int, width: int) -> np.ndarray:
        return sliding_window_view(equal, (height, width)).all((-1, -2))

    found = np.zeros(channel.shape, bool)
    found[1:-1, 1:-1] = all_of(down, 2, 3) | all_of(right, 3, 2)
    found[1:-1, 1:-1] |= all_of(bend_down, 1, 3) & all_of(bend_right, 3, 1) & all_of(twist, 2, 2)
    return found


def _structure(spectra: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """sigma of each channel (c,) by the small eigenvalues of the blocks (N, c, 8, 8), over sigma; 1 if not smaller."""
    factors = np.ones(len(sigma))
    if len(spectra) < FEWEST + ENOUGH:
        return factors
    for c, level in enumerate(sigma):
        vectors = spectra[:, c, _FREQUENCY > 4]
        values = np.linalg.eigvalsh(vectors.T @ vectors / len(vectors))
        while len(values) > SIDE and values.mean() > 1.05 * np.median(values):
            values = values[:-1]
        factors[c] = min(1.0, math.sqrt(max(values.mean(), 0.0)) / max(level, EQUAL))
    return np.where(factors < STRUCTURED, factors, 1.0)


# noise by brightness -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseCurve:
    """The variance of noise by brightness, gain * brightness + floor, in units of the float image (white is 1).

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
    def estimate(
        cls, image: np.ndarray, *, channel_axis: int | None = None, data_range: DataRange | None = None
    ) -> NoiseCurve:
        """From one image: a line through the variances of its calmest blocks, by brightness.

        The image, ``channel_axis`` and ``data_range`` as for :func:`gnclib.denoise_gnc`, which can then be given the
        curve. Raises ValueError where that function does, and if too few blocks can hold noise.
        """
        channels, _ = as_channels(image, channel_axis, data_range)
        spectra = np.concatenate(
            [found for found, used in map(live_spectra, channels[:, None]) if used] or [np.zeros(0)]
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
        options = {"bounds": ([0, -10 * mean], [np.inf, 10 * mean]), "x_scale": start}
        fit = scipy.optimize.least_squares(misfit, start, loss="soft_l1", f_scale=ROBUST, **options)
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
    dark, bright = curve.gain * np.quantile(mean, (0.05, 0.95)) + curve.floor
    cut = np.isin(channels, (channels.min(), channels.max())).mean() > CUT
    return bool(bright > (GROWS * (1 + cut)) ** 2 * max(dark, 0.0))
