"""Certificates: the sets contain what they must, proofs agree with closed forms, and false statements are refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from flint import arb, ctx, fmpq

from gnclib.certify import (
    NotProved,
    certify_convex,
    enclose_threshold,
    exact,
    pave,
    proofs,
    witness_nonconvex,
)
from gnclib.certify.boxes import Arb, HessianBoxes, arithmetic
from gnclib.gmm import GaussianMixture, empirical, figure1_mixture

X = (-1, 1)
BOTH = pytest.mark.parametrize("name", ["arb", "mpmath.iv"])


def two(a=0.7, s2=0.04, w=0.5):
    return GaussianMixture([w, 1 - w], [-a, a], [s2, s2])


def boxes_of(mixture, name="arb"):
    parts = (mixture.weights, mixture.means, mixture.variances)
    rows = zip(*([exact(x) for x in part.tolist()] for part in parts), strict=True)
    return HessianBoxes(list(rows), name)


def random_mixture(generator, components=5):
    """Rounded to six digits, so that the decimals read by the certificate are the floats to rounding."""
    k = int(torch.randint(2, components + 1, (1,), generator=generator))
    draw = torch.rand(3, k, generator=generator, dtype=torch.float64)
    weights = (draw[0] + 0.05) / (draw[0] + 0.05).sum()
    means, deviations = 1.6 * draw[1] - 0.8, 0.03 + 0.2 * draw[2]
    weights = (weights * 1e6).round() / 1e6
    weights[0] += 1 - weights.sum()
    return GaussianMixture(
        (weights * 1e6).round() / 1e6, (means * 1e6).round() / 1e6, (deviations**2 * 1e6).round() / 1e6
    )


# --- the arithmetics --------------------------------------------------------------------------------------


@BOTH
def test_arithmetic_contains_the_exact_result(name):
    sets = arithmetic(name)
    third = Fraction(1, 3)
    with sets.precision():
        x = sets.hull(sets.number(-third), sets.number(Fraction(1, 7)))
        for result, low, high in (
            (sets.square(x), 0.0, float(third) ** 2),
            (sets.exp(x), math.exp(-1 / 3), math.exp(1 / 7)),
            (x + 1, 2 / 3, 8 / 7),
            (1 / (x + 1), 7 / 8, 1.5),
        ):
            below, above = sets.floats(result)
            assert below <= low
            assert high <= above
            assert above - below == pytest.approx(high - low, rel=1e-6)
        below, above = sets.floats(sets.square(sets.hull(sets.number(third), sets.number(Fraction(1, 2)))))
        assert 0.09 < below <= 1 / 9  # x * x of a ball about 5/12 is a little larger than the set of all x^2
        assert 1 / 4 <= above < 0.27
        assert sets.floats(sets.square(sets.number(Fraction(0)))) == pytest.approx((0, 0), abs=1e-300)
        assert sets.floats(1 / x) == (-math.inf, math.inf)
        below, above = sets.floats(sets.number(third))
        assert Fraction(below) < third < Fraction(above)
        assert above - below < 2e-16


def test_the_choice_of_arithmetic(monkeypatch):
    assert arithmetic().name == "arb"
    with pytest.raises(ValueError, match="must be 'auto', 'arb' or"):
        arithmetic("float")
    monkeypatch.setitem(__import__("sys").modules, "flint", None)  # as if python-flint were not installed
    assert arithmetic().name == "mpmath.iv"
    with pytest.raises(ImportError, match="python-flint"):
        arithmetic("arb")


@BOTH
def test_other_peoples_precision_is_left_alone(name):
    import mpmath

    before = mpmath.iv.prec, mpmath.mp.prec, ctx.prec
    certify_convex(two(), X, ("0.5", "1"), arithmetic=name)
    assert (mpmath.iv.prec, mpmath.mp.prec, ctx.prec) == before


# --- the enclosures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y_lo", "t_lo", "width"),
    [(-1.0, 0.05, 0.02), (0.1, 0.2, 0.1), (0.3, 0.0, 0.001), (-0.5, 1.0, 0.5)],
)
@BOTH
def test_the_box_enclosure_contains_sampled_hessians(name, y_lo, t_lo, width):
    mixture = figure1_mixture()
    y_range = (exact(y_lo), exact(y_lo) + exact(width))
    t_range = (exact(t_lo), exact(t_lo) + exact(width))
    low, high, _, _ = boxes_of(mixture, name).on_box(y_range, t_range)
    y, t = torch.meshgrid(
        *(torch.linspace(a, a + width, 40, dtype=torch.float64) for a in (y_lo, t_lo)), indexing="ij"
    )
    sampled = mixture.hessian(y.ravel(), t.ravel())
    slack = 1e-9 * sampled.abs().max().item()  # the samples are floats, the balls are not
    assert low - slack <= sampled.min().item()
    assert sampled.max().item() <= high + slack
    assert high - low < 100 * (sampled.max() - sampled.min()).item()  # and it is not vacuous


def test_mean_value_form_converges_quadratically():
    """The excess over the true range shrinks with the square of the box: a first-order form would give 1/2."""
    mixture, excess = figure1_mixture(), []
    for width in (Fraction(1, 64), Fraction(1, 128), Fraction(1, 256)):
        y, t = (Fraction(1, 5), Fraction(1, 5) + width), (Fraction(1, 2), Fraction(1, 2) + width)
        low, high, _, _ = boxes_of(mixture).on_box(y, t)
        grids = (torch.linspace(float(a), float(b), 80, dtype=torch.float64) for a, b in (y, t))
        sampled = mixture.hessian(*(g.ravel() for g in torch.meshgrid(*grids, indexing="ij")))
        excess.append(high - low - (sampled.max() - sampled.min()).item())
    assert excess[1] / excess[0] < 0.35
    assert excess[2] / excess[1] < 0.35


@pytest.mark.parametrize(("y_lo", "times"), [(3, 40), (-3, 60)])
def test_the_enclosure_stays_sharp_where_every_term_is_large(y_lo, times):
    """Three from the means a and l are large and all alike: taken about their mean only what differs counts."""
    mixture, width = figure1_mixture(), Fraction(1, 100)
    ys, ts = (Fraction(y_lo), y_lo + width), (exact("0.05"), exact("0.05") + width)
    low, high, _, _ = boxes_of(mixture).on_box(ys, ts)
    grids = (torch.linspace(float(a), float(b), 60, dtype=torch.float64) for a, b in (ys, ts))
    sampled = mixture.hessian(*(g.ravel() for g in torch.meshgrid(*grids, indexing="ij")))
    assert high - low < times * (sampled.max() - sampled.min()).item()


def test_derivatives_of_the_hessian_against_finite_differences():
    """On a thin box the spread returned for y is |d_y h| times the half-width."""
    mixture, w = figure1_mixture(), Fraction(1, 10**9)
    y, t = Fraction(1, 5), Fraction(3, 10)
    _, _, in_y, in_t = boxes_of(mixture).on_box((y, y + w), (t, t + w))
    step = 1e-5
    by_y = (mixture.hessian([0.2 + step], 0.3) - mixture.hessian([0.2 - step], 0.3)).item() / (2 * step)
    by_t = (mixture.hessian([0.2], 0.3 + step) - mixture.hessian([0.2], 0.3 - step)).item() / (2 * step)
    assert in_y / 0.5e-9 == pytest.approx(abs(by_y), rel=1e-4)
    assert in_t / 0.5e-9 == pytest.approx(abs(by_t), rel=1e-4)


@pytest.mark.parametrize("side", [-1, 1])
def test_the_tail_bound_is_below_the_hessian_on_the_tail(side):
    mixture, t = figure1_mixture(), 0.35
    for start in (2, 3, 5, 20, 100, 300, 1000):
        below = boxes_of(mixture).below_on_tail(Fraction(side * start), exact(t), side)
        if math.isfinite(below):
            tail = side * (start + torch.logspace(-3, 5, 400, dtype=torch.float64))
            assert below <= mixture.hessian(tail, t).min().item()
    assert below > 0
    assert below == pytest.approx(1 / (0.01 + t), rel=1e-9)  # far out only the widest component is left


def test_the_tail_bound_knows_nothing_where_components_still_balance():
    assert boxes_of(figure1_mixture()).below_on_tail(Fraction(-50), Fraction(1, 2), 1) == -math.inf
    assert boxes_of(two()).below_on_tail(Fraction(0), Fraction(1, 2), 1) < 0


def single(mean, s2):
    return GaussianMixture([1.0], [mean], [s2])


@pytest.mark.parametrize(
    ("s2", "t", "first"), [(1.0, 0, 2), (0.25, 2, 3), (0.01, 0, "1/4"), (0.04, 0, "1/2")]
)
def test_tails_begin_two_widths_beyond_the_means_rounded_up_to_eighths(s2, t, first):
    """A single Gaussian of variance s^2 + t needs no tail: its Hessian is constant."""
    boxes, far = boxes_of(single(0.5, s2)), Fraction(first)
    (left, left_bound), (right, right_bound) = proofs._tails(boxes, Fraction(t))
    assert (left, right) == (Fraction(1, 2) - far, Fraction(1, 2) + far)
    assert left_bound == right_bound == pytest.approx(1 / (s2 + t), rel=1e-15)
    assert Fraction(left_bound) < 1 / (exact(s2) + t)


def test_tails_are_looked_for_twice_as_far_each_time_and_not_for_ever():
    mixture = GaussianMixture([0.999999, 0.000001], [-1.0, 2.0], [1.0, 0.5])
    boxes = boxes_of(mixture)
    for side, mean, (start, bound) in zip((-1, 1), (-1, 2), proofs._tails(boxes, Fraction(1)), strict=True):
        step = side * (start - mean)
        doublings = round(math.log2(step * 8 / 23))  # 16 sqrt(2) = 22.6
        assert step == Fraction(23, 8) * 2**doublings
        assert bound == boxes.below_on_tail(start, Fraction(1), side) > 0
        nearer = boxes.below_on_tail(mean + side * step / 2, Fraction(1), side)
        assert doublings == 0 or nearer <= 0
    assert doublings > 0
    # the wider component, wider by 1e-16 only, wins at 1e19 and beyond: too far out
    alike = GaussianMixture([0.5, 0.5], [0.0, 1000.0], [1.0, 1 - 2**-53])
    certificate = certify_convex(alike, None, (250_000, None))
    assert (certificate.proved, certificate.tails, certificate.evaluations) == (False, (), 0)
    assert certificate.lower_bound == -math.inf


def exact_floats(monkeypatch):
    """Sets without rounding, so that a bound can be exactly 0."""
    monkeypatch.setattr(Arb, "floats", lambda self, x: (float(x.lower()), float(x.upper())))


def test_s_i_falls_from_d_squared_equal_to_2q_on_but_not_at_d_equal_to_0(monkeypatch):
    exact_floats(monkeypatch)
    boxes = boxes_of(two())
    for d, q, falls in ((-2, 2, True), (-2, 2.001, False), (-1, 0.5, True), (0, 0, False), (2, 1, False)):
        assert boxes._falls(arb(d), arb(q)) is falls, (d, q)


def test_a_bound_of_exactly_zero_proves_nothing(monkeypatch):
    mixture = two()
    monkeypatch.setattr(HessianBoxes, "on_box", lambda *_: (0.0, 0.0, 1.0, 1.0))
    assert not certify_convex(mixture, X, (1, 2), max_boxes=3).proved
    assert {box.status for box in pave(mixture, X, (0, 1), max_boxes=5)} == {"open"}
    monkeypatch.setattr(HessianBoxes, "at_point", lambda *_: (0.0, 0.0))
    assert witness_nonconvex(mixture, X, "0.1") is None
    assert certify_convex(mixture, X, (1, 2)).evaluations == 1  # a point of the rectangle cannot be proved
    monkeypatch.setattr(HessianBoxes, "below_on_tail", lambda *_: 0.0)
    assert certify_convex(mixture, None, (1, None)).tails == ()


def test_a_box_is_cut_along_its_larger_spread():
    boxes = boxes_of(GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.25, 4.0]))
    ys, ts = (Fraction(1), Fraction(2)), (Fraction(2), Fraction(3))
    for spread_y, spread_t in ((5.0, 4.0), (5.0, 5.0), (500.0, 499.0), (4.0, 5.0), (400.0, 599.0)):
        assert boxes.prefers_y(ys, ts, spread_y, spread_t) == (spread_y >= spread_t)


def test_while_the_spreads_are_huge_a_box_is_cut_along_its_longer_side_in_natural_units():
    """y in units of sqrt(smallest s^2 + t_lo) = 3/2 here, t in units of its square."""
    boxes = boxes_of(GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.25, 4.0]))
    for spreads in ((600.0, 400.0), (400.0, 600.0), (0.0, 1e6), (math.inf, math.inf)):
        for length, along_y in (("1.4", True), ("1.5", True), ("1.6", False), (0, True)):
            ts = (Fraction(2), 2 + Fraction(length))
            assert boxes.prefers_y((Fraction(1), Fraction(2)), ts, *spreads) is along_y
        assert not boxes.prefers_y((Fraction(1), Fraction(1)), (Fraction(2), Fraction(3)), *spreads)


# --- proofs -----------------------------------------------------------------------------------------------


@BOTH
def test_encloses_the_threshold_of_figure_1(name):
    mixture = figure1_mixture()
    enclosure = enclose_threshold(mixture, X, "1e-6", arithmetic=name)
    lo, hi = enclosure
    assert hi - lo == Fraction(1, 10**6)
    assert enclosure.witness.upper_bound < 0 < enclosure.certificate.lower_bound
    assert lo == enclosure.witness.t < Fraction(mixture.convexity_threshold(X)) < hi
    assert float(lo) == pytest.approx(0.17637, abs=1e-5)
    assert enclosure.certificate.t_range == (hi, None)
    assert enclosure.certificate.arithmetic == name
    assert enclosure.certificate.evaluations < 1130  # boxes about their centre, cut along the larger spread
    assert abs((lo + hi) / 2 - Fraction(mixture.convexity_threshold(X))) <= Fraction(1, 2 * 10**8)
    assert (lo * 2 * 10**8).denominator == 1  # on a grid of a two-hundredth of the tolerance
    assert max(box.t_hi for box in enclosure.certificate.boxes) <= 3.9984  # above, component by component
    assert f"convex on [-1, 1] for every t >= {float(hi):.9g}" in str(enclosure)
    assert name in str(enclosure)


def test_encloses_the_threshold_of_figure_1_on_the_whole_line():
    """The last dip is at y = -210, where the density is exp(-67000): found, enclosed, and nothing is beyond."""
    mixture = figure1_mixture()
    enclosure = enclose_threshold(mixture, None, "1e-6")
    lo, hi = enclosure
    assert lo < Fraction(mixture.convexity_threshold()) < hi
    assert float(enclosure.witness.y) == pytest.approx(-210.76, abs=0.1)
    (left, left_bound), (right, right_bound) = enclosure.certificate.tails
    assert left < -211
    assert right > 0.75
    assert min(left_bound, right_bound) > 0
    assert "on the whole line" in str(enclosure)
    assert not certify_convex(mixture, None, (lo, None)).proved


@pytest.mark.parametrize("w", [0.5, 0.2, 0.01])
def test_the_line_against_the_closed_form(w):
    lo, hi = enclose_threshold(two(w=w), None, "1e-6")
    assert lo < Fraction(9, 20) <= hi  # a^2 - s^2, whatever the weights
    assert certify_convex(two(w=w), None, ("0.4501", 3)).proved
    assert not certify_convex(two(w=w), None, ("0.4499", 3)).proved


def test_already_convex_mixtures():
    lo, hi = enclose_threshold(GaussianMixture([1.0], [0.0], [1.0]), X)
    assert (lo, hi) == (0, 0)
    lo, hi = enclose_threshold(GaussianMixture([0.5, 0.5], [-0.1, 0.1], [1.0, 1.0]), None)
    assert (lo, hi) == (0, 0)
    enclosure = enclose_threshold(empirical([0.0]), (-0.1, 0.1), "1e-2")
    assert tuple(enclosure) == (0, Fraction(1, 100))  # a point mass: no statement at t = 0 itself
    assert enclosure.witness is None
    assert str(enclosure).startswith("t* in [0, 0.01]: no smaller t to exclude; proved: F(., t) is convex on")
    enclosure = enclose_threshold(two(0.2, 0.03), X, "0.1")  # t* = 1/100, less than the tolerance
    assert (*enclosure, enclosure.witness) == (0, Fraction(1, 10), None)


def test_random_mixtures_against_brute_force():
    """Below the enclosure a dense grid sees a negative Hessian, at its upper end and above it sees none."""
    generator = torch.Generator().manual_seed(0)
    y = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    positive = 0
    for k in range(15):
        mixture = random_mixture(generator)
        lo, hi = map(float, enclose_threshold(mixture, X, "1e-3"))
        positive += lo > 0
        for t in (hi, 1.01 * hi + 1e-3, 2 * hi + 0.1):
            assert mixture.hessian(y, t).min() > 0
        if lo > 0:
            assert mixture.hessian(y, 0.999 * lo).min() < 0
            assert witness_nonconvex(mixture, X, Fraction(lo)) is not None
        if lo > 0 and k < 3:
            assert not certify_convex(mixture, X, (Fraction(lo), None), max_boxes=3000).proved
    assert positive > 12


def test_the_bounds_of_theory_are_above_every_certified_threshold():
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        mixture = random_mixture(generator)
        assert float(enclose_threshold(mixture, X, "1e-3").lo) < mixture.theorem_bound(X)
        equal = GaussianMixture(mixture.weights, mixture.means, torch.full_like(mixture.means, 0.01))
        assert float(enclose_threshold(equal, None, "1e-3").lo) <= equal.popoviciu_bound()


def test_the_boxes_tile_the_rectangle():
    certificate = certify_convex(figure1_mixture(), X, ("0.2", "3.9984"))
    assert certificate.proved
    area = sum((b - a) * (d - c) for a, b, c, d, _ in certificate.boxes)
    assert area == pytest.approx(2 * (3.9984 - 0.2), rel=1e-12)
    centres = torch.tensor(
        [[(a + b) / 2, (c + d) / 2] for a, b, c, d, _ in certificate.boxes], dtype=torch.float64
    )
    assert figure1_mixture().hessian(centres[:, 0], centres[:, 1]).min().item() >= certificate.lower_bound > 0


@pytest.mark.parametrize("w", [0.5, 0.2])
def test_both_sides_of_the_closed_form(w):
    """t* = a^2 - s^2 = 9/20; for w = 1/5 the place t* log(1/4) / (2 a) = -0.446... is inside X."""
    mixture = two(w=w)
    assert certify_convex(mixture, X, ("0.450001", "2")).proved
    assert witness_nonconvex(mixture, X, "0.449999") is not None
    assert witness_nonconvex(mixture, X, "0.450001") is None
    assert not certify_convex(mixture, X, ("0.449999", "2")).proved


def test_an_empirical_measure():
    lo, hi = enclose_threshold(empirical([-1.0, 1.0]), X, "1e-4")
    assert lo < 1 <= hi  # D^2 / 4


def test_a_witness_is_negative_in_exact_arithmetic():
    witness = witness_nonconvex(two(), X, Fraction(2, 5))
    # t + s^2 = 11/25; by hand: h = 1/v - (a/v)^2 (1 - tanh(a y / v)^2), at 200 bits
    with ctx.workprec(200):
        v, a = arb(fmpq(11, 25)), arb(fmpq(7, 10))
        y = arb(fmpq(witness.y.numerator, witness.y.denominator))
        h = 1 / v - (a / v) ** 2 * (1 - (a * y / v).tanh() ** 2)
        assert h < 0
        assert float(h) <= witness.upper_bound
        assert float(h) == pytest.approx(witness.upper_bound, rel=1e-12)


@pytest.mark.parametrize(("means", "domain"), [((-0.2, 0.8), ("1/3", 1)), ((-0.8, 0.2), (-1, "-1/3"))])
def test_a_witness_lies_in_the_domain_exactly(means, domain):
    """Where the lowest point of the domain is an end that is no float, the search returns the float beside it."""
    lo, hi = map(Fraction, domain)
    mixture = GaussianMixture([0.5, 0.5], means, [0.01, 0.01])
    witness = witness_nonconvex(mixture, domain, "0.07")
    assert lo <= witness.y <= hi
    assert witness.y in (lo, hi)
    assert witness_nonconvex(mixture, (witness.y, witness.y), "0.07") == witness


def test_what_is_false_or_trivially_true_is_settled_early():
    assert certify_convex(single(0.0, 1.0), X, (0, 1), max_boxes=1).evaluations == 1
    certificate = certify_convex(figure1_mixture(), X, ("0.1", "4"))
    assert not certificate.proved
    assert certificate.evaluations < 40
    certificate = certify_convex(two(), (0, 0), ("9/20", "9/20"))  # hess F = 0 there
    assert (certificate.proved, certificate.evaluations) == (False, 1)


def test_the_lower_bound_is_that_of_the_boxes_and_of_the_tails():
    """Far out only the widest component is left, and 1/(s^2 + t) of it is the lowest value on the line."""
    mixture = GaussianMixture([0.5, 0.5], [0.0, 0.0], [0.5, 1.0])
    certificate = certify_convex(mixture, None, (3, None))
    assert certificate.proved
    tails = [bound for _, bound in certificate.tails]
    y = torch.linspace(-50, 50, 20_001, dtype=torch.float64)
    lowest = mixture.hessian(y, 3.0).min().item()
    assert certificate.lower_bound <= min(*tails, lowest)
    inside = certify_convex(mixture, tuple(exact(y) for y, _ in certificate.tails), (3, 3))
    assert certificate.lower_bound == min(*tails, inside.lower_bound)


def test_giving_up_is_not_a_proof():
    certificate = certify_convex(figure1_mixture(), X, ("0.18", "3.9984"), max_boxes=10)
    assert not certificate.proved
    assert certificate.lower_bound == -math.inf
    assert certificate.evaluations == 10


def test_segments_and_points():
    mixture = figure1_mixture()
    assert certify_convex(mixture, X, ("0.2", "0.2")).proved
    assert certify_convex(mixture, ("0.1", "0.1"), ("0.2", "1")).proved
    assert certify_convex(mixture, (0, 0), (1, 1)).proved
    assert not certify_convex(mixture, X, ("0.1", "0.1")).proved


def test_floats_are_read_as_decimals():
    assert exact(0.15) == Fraction(3, 20) == exact("0.15") == exact("3/20")
    assert exact(np.float64(0.15)) == Fraction(3, 20)  # although numpy prints it with its type
    assert figure1_mixture().weights.tolist() == [0.15, 0.2, 0.1, 0.3, 0.25]


@pytest.mark.parametrize("value", ["a", math.nan, math.inf, None, "1/0"])
def test_exact_refuses(value):
    with pytest.raises(ValueError, match="finite number"):
        exact(value)


@pytest.mark.parametrize(
    ("domain", "t_range", "message"),
    [
        ((1, -1), (0.2, 1), "domain must have lo <= hi"),
        (0.5, (0.2, 1), "domain must be a pair"),
        (X, (1, 0.2), "t_range must have lo <= hi"),
        (X, (-0.2, 1), "t must be >= 0"),
        (X, ("x", 1), "t_range must be a finite number"),
        ((0, None), (0.2, 1), "domain must be a finite number"),
    ],
)
def test_certify_refuses(domain, t_range, message):
    with pytest.raises(ValueError, match=message):
        certify_convex(figure1_mixture(), domain, t_range)


def test_certify_refuses_mixtures_in_space_and_no_boxes():
    with pytest.raises(ValueError, match="on the line"):
        certify_convex(GaussianMixture([1.0], [[0.0, 0.0]], [1.0]), X, (0.2, 1))
    with pytest.raises(ValueError, match="max_boxes"):
        certify_convex(figure1_mixture(), X, (0.2, 1), max_boxes=0)


def test_components_of_weight_zero_do_not_matter():
    assert certify_convex(GaussianMixture([1.0, 0.0], [0.0, 5.0], [1.0, 0.0]), X, (0, 1)).proved


def test_equal_variances_have_the_outermost_component_in_each_tail():
    certificate = certify_convex(
        GaussianMixture([0.2, 0.3, 0.5], [0.5, 1.0, 2.0], [1.0, 1.0, 1.0]), None, (1, None)
    )
    assert certificate.proved
    (_, left), (_, right) = certificate.tails
    assert max(left, right) < 0.5


def test_witness_refuses():
    with pytest.raises(ValueError, match="point mass"):
        witness_nonconvex(GaussianMixture([0.5, 0.5], [0.0, 1.0], [1.0, 0.0]), X, 0)
    with pytest.raises(ValueError, match="point mass"):
        pave(empirical([0.0, 1.0]), X, (0, 1))
    with pytest.raises(ValueError, match="point mass"):
        witness_nonconvex(empirical([0.0, 1.0]), X, 0)
    with pytest.raises(ValueError, match="domain must have"):
        witness_nonconvex(figure1_mixture(), (1, -1), "0.1")


def test_enclose_refuses():
    with pytest.raises(ValueError, match="tol must be positive"):
        enclose_threshold(figure1_mixture(), X, 0)
    with pytest.raises(NotProved, match=r"NOT proved.*max_boxes may help"):
        enclose_threshold(figure1_mixture(), X, max_boxes=10)


def test_a_wrong_numerical_threshold_is_not_believed(monkeypatch):
    """The proof does not rest on the search that says where to look."""
    for wrong in (0.1, 0.3):
        monkeypatch.setattr(GaussianMixture, "convexity_threshold", lambda *_, value=wrong: value)
        with pytest.raises(NotProved):
            enclose_threshold(figure1_mixture(), X, "1e-3")


def test_a_paving_is_a_map_of_what_is_proved():
    mixture = figure1_mixture()
    boxes = pave(mixture, X, (0, "0.3"), max_boxes=8000)
    assert sum((b.y_hi - b.y_lo) * (b.t_hi - b.t_lo) for b in boxes) == pytest.approx(0.6, rel=1e-12)
    for status, sign in (("convex", 1), ("not convex", -1)):
        some = [b for b in boxes if b.status == status]
        assert len(some) > 30
        corners = torch.tensor([[y, t] for b in some for y in b[:2] for t in b[2:4]], dtype=torch.float64)
        assert (sign * mixture.hessian(corners[:, 0], corners[:, 1])).min() > 0
    still = [(b.y_hi - b.y_lo) * (b.t_hi - b.t_lo) for b in boxes if b.status == "open"]
    assert sum(still) < 0.06  # a tenth of the rectangle


def test_a_paving_cuts_the_largest_box_first_and_counts_what_it_evaluates():
    mixture = figure1_mixture()
    assert [box.status for box in pave(mixture, X, (0, "0.3"), max_boxes=0)] == ["open"]
    assert [box[:4] for box in pave(mixture, X, (0, "0.3"), max_boxes=1)] == [
        (-1.0, 1.0, 0.0, 0.15),
        (-1.0, 1.0, 0.15, 0.3),
    ]
    boxes = pave(mixture, X, (0, "0.3"), max_boxes=64)
    areas = {(b.y_hi - b.y_lo) * (b.t_hi - b.t_lo) for b in boxes if b.status == "open"}
    assert max(areas) < 2.1 * min(areas)
