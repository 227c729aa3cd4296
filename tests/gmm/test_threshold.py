"""The search for thresholds: it commutes with shifts and scales, and finds short spells in t."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from gnclib.gmm import GaussianMixture, empirical, figure1_mixture, threshold
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


@pytest.mark.parametrize("apart", [1e-13, 2e-8, 1.0, 1e6])
def test_two_points_however_near(apart):
    assert empirical([0.0, apart]).convexity_threshold() == pytest.approx(apart**2 / 4, rel=1e-9)


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


@pytest.mark.parametrize("at", [0.47, 0.48, 0.49, 0.5])
def test_a_slope_that_is_lower_than_a_spell_hides_it_not(at):
    """Near t = 0 values are small and fall: these are no bottoms, the dip between two points of the scan is one."""

    def dip(t):
        return min(1.0, 0.01 + 10 * t) - 1.05 * math.exp(-(((t - at) / 0.05) ** 2))

    below, above = _last_change(dip, 1.0, 0.0)
    assert dip(below) < 0 <= dip(above)
    assert below == pytest.approx(at, abs=0.012)


def test_a_hessian_of_zero_is_convex_and_the_scan_goes_on():
    def dip(t):
        return -1.0 if 0.1 < t < 0.2 else 0.0 if 0.4 < t < 0.6 else 1.0

    below, above = _last_change(dip, 1.0, 0.0)
    assert 0.1 < below < 0.2 <= above


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


def dips_one_by_one(y, h):
    """(depth, k) of each local minimum: how low the two chords through it reach on the other side."""
    found = []
    for k in range(1, len(y) - 1):
        if h[k - 1] >= h[k] <= h[k + 1]:
            chords = [np.polyfit(y[[k, k + d]], h[[k, k + d]], 1) for d in (-1, 1)]
            depth = min(np.polyval(chords[0], y[k + 1]), np.polyval(chords[1], y[k - 1]))
            if depth < h.min() - 1e-9:
                found.append((depth, k))
    return [k for _, k in sorted(found)]


@pytest.mark.parametrize("seed", range(8))
def test_dips_are_the_deepest_local_minima_by_their_chords(seed):
    rng = np.random.default_rng(seed)
    y, h = np.cumsum(rng.uniform(0.1, 3, 60)), rng.uniform(-1, 5, 60).round(1)  # with plateaus
    expected = dips_one_by_one(y, h)
    assert len(expected) > 6
    assert threshold._dips(y, h).tolist() == expected[:6]


def test_where_nothing_can_be_deeper_there_is_no_dip():
    y = np.array([0.0, 1.0, 3.0, 4.0])
    assert threshold._dips(y, np.full(4, 0.3)).tolist() == []
    assert threshold._dips(y, y).tolist() == []
    assert threshold._dips(y, np.array([1.0, 0.0, 0.0, 1.0])).tolist() == [
        1,
        2,
    ]  # 0 on the grid, less between


@pytest.mark.parametrize("seed", range(6))
def test_the_scan_in_t_begins_where_every_component_bends_upwards(seed, monkeypatch):
    """The largest (y - mu_i)^2 - s_i^2 over the domain and the components: against a grid."""
    rng, tops = np.random.default_rng(seed), []
    mixture = GaussianMixture([0.3, 0.3, 0.4], rng.uniform(-1, 1, 3), rng.uniform(0, 0.5, 3))
    lo, hi = sorted(rng.uniform(-3, 3, 2))
    monkeypatch.setattr(threshold, "_last_change", lambda dip, top, smallest: tops.append(top) or (0.0, 0.0))
    assert mixture.convexity_threshold((lo, hi)) == 0
    grid = (np.linspace(lo, hi, 501)[:, None] - mixture.means.numpy()) ** 2 - mixture.variances.numpy()
    assert tops == [pytest.approx(grid.max(), rel=1e-12)]


@pytest.mark.parametrize("domain", [None, (-1.0, 1.0)])
@pytest.mark.parametrize(("depth", "convex"), [(5e-14, True), (2e-13, False)])
def test_rounding_is_told_from_a_dip_in_units_of_the_smallest_variance(domain, depth, convex, monkeypatch):
    """A Hessian of -depth / v, v the smallest smoothed variance, counts as convex if depth is below 1e-13."""

    def lowest(parts, ends):
        v = parts[2].min()
        return (-depth / v if v < 0.02 else 1 / v), 0.0

    monkeypatch.setattr(threshold, "_lowest", lowest)
    found = GaussianMixture([0.5, 0.5], [-1.0, 1.0], [1e-4, 1e-4]).convexity_threshold(domain)
    assert found == pytest.approx(0 if convex else 0.02 - 1e-4, rel=1e-6)


def test_where_no_component_ever_bends_downwards_nothing_is_searched(monkeypatch):
    monkeypatch.setattr(threshold, "_last_change", None)
    mixture = GaussianMixture([0.5, 0.5], [-0.1, 0.1], [1.0, 1.0])
    assert mixture.convexity_threshold((-0.01, 0.01)) == 0


def test_the_search_looks_at_the_ends_of_the_domain_and_just_inside():
    parts = (np.zeros(1), np.zeros(1), np.ones(1))
    for lo, hi in ((-3.0, 1.0), (-6.0, -4.0), (7.0, 15.0)):  # two of them at four deviations and beyond
        y = threshold._candidates(parts, lo, hi)
        assert (y[0], y[-1]) == (lo, hi)
        assert y[1] - lo == pytest.approx(1e-7 * (hi - lo), rel=1e-6)
        assert hi - y[-2] == pytest.approx(1e-7 * (hi - lo), rel=1e-6)
        assert np.diff(y).max() <= (hi - lo) / 1000 * 1.001


def test_crossings_at_several_places_are_all_resolved():
    """Transitions of the same width, far narrower than the steps of the uniform grid."""
    mu, v = np.array([-0.6, -0.25, 0.2, 0.7]), np.full(4, 1e-6)
    y = threshold._candidates((np.log(np.full(4, 0.25)), mu, v), -1.0, 1.0)
    for left, right in pairwise(mu):
        width = 1e-6 / (right - left)
        near = np.sort(np.abs(y - (left + right) / 2))
        assert near[9] < 3 * width


def test_tables_are_cut_to_at_most_four_million_numbers():
    parts = (np.zeros(2), np.zeros(2), np.ones(2))
    y = np.arange(5_000_000.0)
    pieces = threshold._pieces(y, parts)
    assert max(map(len, pieces)) * 2 <= 4_000_000
    assert np.array_equal(np.concatenate(pieces), y)
    assert len(threshold._pieces(y[:1000], parts)) == 1
