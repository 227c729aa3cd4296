"""The search for thresholds: it commutes with shifts and scales, and finds short spells in t."""

import math

import numpy as np
import pytest
import torch

from gnclib.gmm import GaussianMixture, figure1_mixture
from gnclib.gmm.threshold import _last_change

SAME_MEAN = GaussianMixture([1 - 1e-6, 1e-6], [0.0, 0.0], [0.01, 1.0])


@pytest.mark.parametrize("scale", [0.05, 1.0, -1.0, 30.0])
@pytest.mark.parametrize("shift", [0.0, -3.0, 7.5])
@pytest.mark.parametrize(
    ("mixture", "domain"),
    [
        (figure1_mixture(), (-1.0, 1.0)),
        (figure1_mixture(), None),
        (SAME_MEAN, (-3.0, 3.0)),
        (SAME_MEAN, (0.2, 2.0)),
    ],
)
def test_thresholds_follow_shifts_scales_and_reflections(mixture, domain, scale, shift):
    """With Y = scale X + shift, t* is scale^2 times as large, the lowest Hessian 1/scale^2 times, at the same place."""
    moved = GaussianMixture(mixture.weights, scale * mixture.means + shift, scale**2 * mixture.variances)
    there = domain and sorted(scale * end + shift for end in domain)
    threshold = mixture.convexity_threshold(domain)
    assert threshold > 0.01
    assert moved.convexity_threshold(there) == pytest.approx(scale**2 * threshold, rel=1e-6)
    t = 0.7 * threshold
    lowest, where = mixture.min_hessian(t, domain)
    found, at = moved.min_hessian(scale**2 * t, there)
    assert found == pytest.approx(lowest / scale**2, rel=1e-6)
    assert moved.hessian([at], scale**2 * t).item() == pytest.approx(found, rel=1e-9)
    assert mixture.hessian([where], t).item() == pytest.approx(lowest, rel=1e-9)


@pytest.mark.parametrize("smallest", [0.0, 0.01])
@pytest.mark.parametrize("last", [0.02, 0.3, 0.77])
@pytest.mark.parametrize("half", [1e-5, 1e-3, 0.05])
def test_the_last_spell_is_found_however_short(smallest, last, half):
    """A function of t that is negative on two known spells only, the last of them shorter than a step of the scan."""

    def dip(t):
        spells = [(last, half * last), (last / 3, 1e-4 * last), (last / 5, 0.02 * last)]
        return min(((t - a) / last) ** 2 - (b / last) ** 2 for a, b in spells)

    below, above = _last_change(dip, 1.0, smallest)
    end = last + half * last
    assert below <= end <= above
    assert dip(below) < 0 <= dip(above)
    assert below >= last - half * last
    assert np.all([dip(t) >= -1e-15 for t in np.linspace(max(above, end), 1, 2000)])


@pytest.mark.parametrize("smallest", [0.0, 0.01])
def test_without_a_spell_nothing_is_found(smallest):
    assert _last_change(lambda t: 0.1 + math.sin(40 * t) ** 2, 1.0, smallest) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_no_lower_hessian_on_a_fine_grid(seed):
    """Components of many widths and weights: no point of a dense grid is lower than what the search returns."""
    g = torch.Generator().manual_seed(seed)
    draw = torch.rand(3, 6, generator=g, dtype=torch.float64)
    weights = 10 ** (-6 * draw[0])
    mixture = GaussianMixture(weights / weights.sum(), 4 * draw[1] - 2, 10 ** (-4 * draw[2]))
    for domain in ((-2.5, 2.5), (-0.3, 0.4)):
        for t in (1e-4, 1e-2, 0.3):
            y = torch.linspace(*domain, 200_001, dtype=torch.float64)
            h = torch.cat([mixture.hessian(part, t) for part in y.split(20_000)]).min().item()
            assert mixture.min_hessian(t, domain)[0] <= h + 1e-9 * abs(h)
