"""Attacks on certificates: statements that are nearly true, proofs attacked by an optimiser, safeguards taken away."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import differential_evolution, minimize_scalar

from gnclib.certify import certify_convex, exact, proofs
from gnclib.certify.boxes import Arb, HessianBoxes
from gnclib.gmm import GaussianMixture, figure1_mixture

F64 = torch.float64


def hessian(mixture, y, t):
    """(t + smallest variance) hess F, of order one at every t; from the mixture, which the certificates do not use."""
    y, t = torch.as_tensor(np.atleast_1d(y)), torch.as_tensor(np.atleast_1d(t)).expand(len(np.atleast_1d(y)))
    return ((t + mixture.variances.min()) * mixture.hessian(y, t)).numpy()


def lowest(mixture, domain, t_lo, t_hi=None) -> float:
    """The smallest scaled Hessian that a search over y and t >= t_lo finds: a grid, then differential evolution.

    On the whole line y = centre + sinh(u): a logarithmic scale on both sides, out to a million.
    """
    centre = float(mixture.means.mean())
    ends = (-14.5, 14.5) if domain is None else tuple(map(float, domain))
    t_hi = 20 * (1 + t_lo) if t_hi is None else t_hi

    def at(x):  # (2, N): u and log(t + s^2)
        y = centre + np.sinh(x[0]) if domain is None else x[0]
        return hessian(mixture, y, np.maximum(np.exp(x[1]) - shift, t_lo))

    shift = 1e-12 + float(mixture.variances.min())
    times = np.log(t_lo + shift), np.log(t_hi + shift)
    grid = np.stack(np.meshgrid(np.linspace(*ends, 600), np.linspace(*times, 24))).reshape(2, -1)
    best = grid[:, np.argsort(at(grid))[:40]]
    options = {"vectorized": True, "updating": "deferred", "maxiter": 30, "polish": False, "rng": 0}
    return differential_evolution(at, [ends, times], init=best.T, **options).fun


# --- statements that are false, though they look true -------------------------------------------------------------

EXACT_ZERO = (
    GaussianMixture([0.5, 0.5], [-0.7, 0.7], [0.04, 0.04]),
    (0, 0),
    ("9/20", "9/20"),
)  # hess F(0, t) = 0
FALSE = {
    "the dip comes into the domain later": (
        GaussianMixture([0.982, 0.018], [-1.0, 1.0], [1e-6, 1e-6]),
        (0.9, 1.1),
        ("0.05", None),
    ),
    "a dip at y = 931 of a component of weight 1e-12": (
        GaussianMixture([1 - 1e-12, 1e-12], [-4.0, 4.0], [1.0, 0.9]),
        None,
        (5, None),
    ),
    "the same, mirrored": (
        GaussianMixture([1e-12, 1 - 1e-12], [-4.0, 4.0], [0.9, 1.0]),
        None,
        (5, None),
    ),
    "a rare component of the same mean": (
        GaussianMixture([1 - 1e-9, 1e-9], [0.0, 0.0], [0.01, 1.0]),
        None,
        ("0.05", None),
    ),
    "convex on most of the rectangle": (figure1_mixture(), (-1, 1), ("0.176", None)),
    "convex at most points of a segment in t": (
        figure1_mixture(),
        (figure1_mixture().min_hessian(0.1, (-1, 1))[1],) * 2,
        ("0.1", "0.5"),
    ),
    "convex at most points of a segment in y": (figure1_mixture(), (-1, 1), ("0.17", "0.17")),
    "a narrow dip beside the centre": (
        GaussianMixture([0.5, 0.5], [-1.0, 1.0], [1e-4, 1e-4]),
        (-0.001, 0.5),
        ("0.0001", "0.0001"),
    ),
    "a dip in the first half": (
        GaussianMixture([0.5, 0.5], [-0.7, 0.7], [0.04, 0.04]),
        (-1, 3),
        ("0.3", "0.3"),
    ),
    "zero at one point, positive beside": EXACT_ZERO,
}


@pytest.mark.parametrize("statement", FALSE.values(), ids=FALSE)
@pytest.mark.parametrize("arithmetic", ["arb", "mpmath.iv"])
def test_false_statements_are_not_proved(statement, arithmetic):
    mixture, domain, (t_lo, t_hi) = statement
    certificate = certify_convex(mixture, domain, (t_lo, t_hi), arithmetic=arithmetic, max_boxes=4000)
    assert not certificate.proved
    assert certificate.lower_bound == -math.inf
    t_lo, t_hi = float(Fraction(t_lo)), t_hi and float(Fraction(t_hi))
    if statement is EXACT_ZERO:
        assert abs(hessian(mixture, 0.0, t_lo)) < 1e-15
    else:
        assert lowest(mixture, domain, t_lo, t_hi) < -1e-4  # and they are false


# --- safeguards taken away ----------------------------------------------------------------------------------------


def off(target, name, replacement):
    return lambda monkeypatch: monkeypatch.setattr(target, name, replacement)


def _middle(self, ends):
    return self.sets.number(sum(ends) / 2)


def _second_half(*arguments, whole=proofs._bisect):
    return whole(*arguments)[1:]


def _half_of_the_rectangle(monkeypatch):
    monkeypatch.setattr(proofs, "_bisect", _second_half)
    monkeypatch.setattr(proofs, "_tiles", lambda *_: True)


def _rounded_to_nearest(monkeypatch):
    monkeypatch.setattr(Arb, "floats", lambda self, x: (float(x.mid()) or 1e-30,) * 2)


def _weights_of_the_centre(self, logits, whole=HessianBoxes._softmax):
    return whole(self, [self.sets.centre(x) for x in logits])


def _value_at_the_centre(self, y, t):
    return self._at(self.sets.centre(y), self.sets.centre(t))[-1], self.zero, self.zero


LATER, FAR, MIRRORED = list(FALSE)[:3]
SAFEGUARDS = {
    "boxes up to t_top": (off(proofs, "_top", lambda boxes, ys: Fraction(0)), LATER),
    "t_top over both ends and all components": (
        off(proofs, "_top", lambda boxes, ys: min((m - y) ** 2 - s2 for _, m, s2 in boxes.rows for y in ys)),
        LATER,
    ),
    "tails must fall": (off(HessianBoxes, "_falls", lambda *_: True), FAR),
    "tails must fall, on the left": (off(HessianBoxes, "_falls", lambda *_: True), MIRRORED),
    "a bound on the tails": (off(HessianBoxes, "below_on_tail", lambda *_: 1.0), FAR),
    "the whole box": (off(HessianBoxes, "interval", _middle), "convex on most of the rectangle"),
    "the whole segment in t": (
        off(HessianBoxes, "interval", _middle),
        "convex at most points of a segment in t",
    ),
    "the whole segment in y": (
        off(HessianBoxes, "interval", _middle),
        "convex at most points of a segment in y",
    ),
    "derivatives in the mean-value form": (
        off(HessianBoxes, "_mean_value_form", _value_at_the_centre),
        "convex on most of the rectangle",
    ),
    "weights over the whole box": (
        off(HessianBoxes, "_softmax", _weights_of_the_centre),
        "a narrow dip beside the centre",
    ),
    "rounding outwards": (_rounded_to_nearest, "zero at one point, positive beside"),
    "both halves of a box": (_half_of_the_rectangle, "a dip in the first half"),
}


@pytest.mark.parametrize(("take_away", "statement"), SAFEGUARDS.values(), ids=SAFEGUARDS)
def test_without_a_safeguard_a_false_statement_is_proved(monkeypatch, take_away, statement):
    """Each safeguard is needed: the statements above are refused because of it."""
    take_away(monkeypatch)
    assert certify_convex(*FALSE[statement], arithmetic="arb").proved


def test_lost_boxes_are_noticed(monkeypatch):
    """Where branch and bound loses a part of the rectangle, the areas of the proved boxes do not add up."""
    monkeypatch.setattr(proofs, "_bisect", _second_half)
    assert not certify_convex(figure1_mixture(), (-1, 1), ("0.2", "4"), arithmetic="arb").proved
    assert not certify_convex(figure1_mixture(), (-1, 1), ("0.2", "0.2"), arithmetic="arb").proved


# --- proofs attacked ----------------------------------------------------------------------------------------------


def near_degenerate(rng) -> GaussianMixture:
    """Weights down to 1e-14, variances over three decades, some of them and some means equal; six digits each."""
    k = int(rng.integers(2, 5))
    weights = 10.0 ** -rng.uniform(0, 14 if rng.random() < 0.5 else 2, k)
    weights = np.array([float(f"{w:.6g}") for w in weights / weights.sum()])
    weights[weights.argmax()] += 1 - weights.sum()
    means = np.round(rng.uniform(-1, 1, k) * 10 ** rng.uniform(-1, 1), 6)
    variances = np.round(10.0 ** rng.uniform(-3, 0, k), 6)
    if rng.random() < 0.3:
        variances[:2] = variances[0]
    if rng.random() < 0.2:
        means[:2] = means[0]
    return GaussianMixture(weights, means, variances)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_proved_withstands_an_optimiser(seed):
    """Narrow domains, wide ones and the line; from times about the numerical threshold, below it and above."""
    rng, proved = np.random.default_rng(seed), []
    for k in range(6):
        mixture = near_degenerate(rng)
        domain = None
        if k % 3:
            centre, half = rng.uniform(-1.5, 1.5), 10.0 ** rng.uniform(-2, 0.5)
            domain = (round(centre - half, 6), round(centre + half, 6))
        threshold = mixture.convexity_threshold(domain)
        for factor in (0.99, 1.05, 2):
            t_lo = round(max(factor * threshold, 1e-4 * factor), 9)
            certificate = certify_convex(mixture, domain, (t_lo, None), max_boxes=500)
            if certificate.proved:
                assert lowest(mixture, domain, t_lo) > 0
            if factor < 1 and threshold > 1e-3:
                assert not certificate.proved
            proved.append(certificate.proved)
    assert sum(proved) >= 6  # of 18, two thirds of them true


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("side", [-1, 1])
def test_tail_bounds_withstand_an_optimiser(seed, side):
    """From starts near to the means as well as far out, where the bound says something at all."""
    rng, known = np.random.default_rng(seed), 0
    for _ in range(6):
        mixture, t = near_degenerate(rng), round(10.0 ** rng.uniform(-3, 0.5), 6)
        parts = (mixture.weights, mixture.means, mixture.variances)
        rows = list(zip(*([exact(x) for x in part.tolist()] for part in parts), strict=True))
        boxes = HessianBoxes(rows)
        outermost = float((side * mixture.means).max())
        for distance in 10.0 ** rng.uniform(-1.5, 4, 8):
            start = round(side * (outermost + distance * math.sqrt(t)), 6)
            below = boxes.below_on_tail(exact(start), exact(t), side)
            if math.isfinite(below):
                known += 1
                tail = start + side * np.geomspace(1e-9, 1e7, 1500)
                h = mixture.hessian(torch.as_tensor(tail), t).numpy()
                near = slice(max(int(h.argmin()) - 1, 0), int(h.argmin()) + 2)
                found = minimize_scalar(
                    lambda y, mixture=mixture, t=t: mixture.hessian([y], t).item(),
                    bounds=sorted(tail[near][[0, -1]]),
                    method="bounded",
                )
                assert below <= min(found.fun, h.min()) + 1e-12 * abs(below)
    assert known > 10


def test_from_t_top_on_every_component_bends_upwards():
    """t_top is the smallest t with s_i^2 + t >= (y - mu_i)^2 for all i and all y of the domain: against a grid."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        mixture = near_degenerate(rng)
        lo, hi = np.sort(np.round(rng.uniform(-2, 2, 2), 6))
        rows = [
            (None, exact(m), exact(s))
            for m, s in zip(mixture.means.tolist(), mixture.variances.tolist(), strict=True)
        ]
        boxes = type("Rows", (), {"rows": rows})
        squares = (
            np.linspace(lo, hi, 1001)[:, None] - mixture.means.numpy()
        ) ** 2 - mixture.variances.numpy()
        top = proofs._top(boxes, (exact(float(lo)), exact(float(hi))))
        assert float(top) == pytest.approx(squares.max(), rel=1e-12)
