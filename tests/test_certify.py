"""Certificates: the balls contain what they must, proofs agree with closed forms, and false statements are refused."""

import math
from fractions import Fraction

import pytest
import torch
from flint import arb, ctx, fmpq

from gnclib import certify
from gnclib.certify import certify_convex, exact, pin_threshold, witness_nonconvex
from gnclib.gmm import GaussianMixture, empirical, figure1_mixture

X = (-1, 1)


def two(a=0.7, s2=0.04, w=0.5):
    return GaussianMixture([w, 1 - w], [-a, a], [s2, s2])


@pytest.mark.parametrize(
    ("y_lo", "t_lo", "width"),
    [(-1.0, 0.05, 0.02), (0.1, 0.2, 0.1), (0.3, 0.0, 0.001), (-0.5, 1.0, 0.5)],
)
def test_the_box_enclosure_contains_sampled_hessians(y_lo, t_lo, width):
    mixture = figure1_mixture()
    y_range = (exact(y_lo), exact(y_lo) + exact(width))
    t_range = (exact(t_lo), exact(t_lo) + exact(width))
    h, _, _ = certify._Mixture(mixture, False).on_box(certify._hull(y_range), certify._hull(t_range))
    low, high = float(h.lower()), float(h.upper())
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
        h, _, _ = certify._Mixture(mixture, False).on_box(certify._hull(y), certify._hull(t))
        grids = (torch.linspace(float(a), float(b), 80, dtype=torch.float64) for a, b in (y, t))
        sampled = mixture.hessian(*(g.ravel() for g in torch.meshgrid(*grids, indexing="ij")))
        excess.append(float(h.upper() - h.lower()) - (sampled.max() - sampled.min()).item())
    assert excess[1] / excess[0] < 0.35
    assert excess[2] / excess[1] < 0.35


def test_derivatives_of_the_hessian_against_finite_differences():
    """On a thin box the spread returned for y is |d_y h| times the half-width."""
    mixture, w = figure1_mixture(), Fraction(1, 10**9)
    y, t = Fraction(1, 5), Fraction(3, 10)
    _, in_y, in_t = certify._Mixture(mixture, False).on_box(
        certify._hull((y, y + w)), certify._hull((t, t + w))
    )
    step = 1e-5
    by_y = (mixture.hessian([0.2 + step], 0.3) - mixture.hessian([0.2 - step], 0.3)).item() / (2 * step)
    by_t = (mixture.hessian([0.2], 0.3 + step) - mixture.hessian([0.2], 0.3 - step)).item() / (2 * step)
    assert float(in_y.rad()) / 0.5e-9 == pytest.approx(abs(by_y), rel=1e-4)
    assert float(in_t.rad()) / 0.5e-9 == pytest.approx(abs(by_t), rel=1e-4)


def test_pins_the_threshold_of_figure_1():
    pinned = pin_threshold(figure1_mixture(), X, "1e-6")
    assert pinned.proved
    assert pinned.witness.upper_bound < 0 < pinned.certificate.lower_bound
    assert pinned.certificate.t_range[0] - pinned.witness.t == Fraction(2, 10**6)
    assert pinned.witness.t < Fraction(pinned.estimate) < pinned.certificate.t_range[0]
    assert float(pinned.witness.t) == pytest.approx(0.17637, abs=1e-5)
    assert pinned.certificate.t_range[1] <= Fraction("3.9984")  # the theorem takes over from there
    assert pinned.certificate.evaluations < 5000


def test_the_boxes_tile_the_rectangle():
    certificate = certify_convex(figure1_mixture(), X, ("0.2", "3.9984"))
    assert certificate.proved
    area = sum((b - a) * (d - c) for a, b, c, d in certificate.boxes)
    assert area == pytest.approx(2 * (3.9984 - 0.2), rel=1e-12)
    centres = torch.tensor(
        [[(a + b) / 2, (c + d) / 2] for a, b, c, d in certificate.boxes], dtype=torch.float64
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
    assert pin_threshold(empirical([-1.0, 1.0]), X, "1e-4").proved
    assert pin_threshold(empirical([-1.0, 1.0]), X, "1e-4").estimate == pytest.approx(1.0, abs=1e-10)


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


def test_floats_are_read_as_decimals_or_as_binary():
    assert exact(0.15) == Fraction(3, 20) == exact("0.15") == exact("3/20")
    assert exact(0.15, binary=True) == Fraction(5404319552844595, 2**55) != Fraction(3, 20)
    assert figure1_mixture().weights.tolist() == [0.15, 0.2, 0.1, 0.3, 0.25]
    assert certify_convex(figure1_mixture(), X, (0.2, 4), binary=True).proved


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


def test_witness_refuses():
    with pytest.raises(ValueError, match="point mass"):
        witness_nonconvex(empirical([0.0, 1.0]), X, 0)
    with pytest.raises(ValueError, match="domain must have"):
        witness_nonconvex(figure1_mixture(), (1, -1), "0.1")


def test_pin_refuses():
    with pytest.raises(ValueError, match="eps must be positive"):
        pin_threshold(figure1_mixture(), X, 0)
    with pytest.raises(ValueError, match="nothing to witness"):
        pin_threshold(GaussianMixture([1.0], [0.0], [1.0]), X, "1e-3")
