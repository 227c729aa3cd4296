r"""Proofs, not samples: rigorous statements on the sign of ``hess F(y, t)`` for mixtures on the line.

A grid can miss a dip. Here every number is a ball that is guaranteed to contain the true value (python-flint's
``arb``, rounding included), so a positive lower bound over a box ``[y] x [t]`` proves convexity on the whole box.
`certify_convex` bisects the rectangle ``X x [t_lo, t_hi]`` until every box is proved (branch and bound),
`witness_nonconvex` proves the opposite at one point, and `pin_threshold` puts both together around ``t*``.

With ``v_i = s_i^2 + t``, ``p_i = 1/v_i``, ``a_i = p_i (mu_i - y)``, ``l_i = d_t log N_i = (a_i^2 - p_i)/2`` and
E, Cov taken over the responsibilities g_i, differentiating ``h = hess F = E[p] - Var(a)`` once more gives

    d_y h = 3 Cov(p, a) - E[(a - E a)^3]
    d_t h = Cov(p, l) - E[p^2] - Cov((a - E a)^2, l) + 2 Cov(a, a p)

The bound on a box with centre c is the mean-value form ``h(c) + d_y h(box) (y - y_c) + d_t h(box) (t - t_c)``,
whose excess shrinks with the *square* of the box: that is what keeps the number of boxes at a few hundred when
the rectangle begins just above t*, where h is nearly zero. The log-weights of the components are bounded in the
same way, after taking off a common affine function of (y, t), which g does not feel.

**Which mixture is it about?** A float is not the number one typed: 0.15 is stored as 0.1499999999999999944.
Parameters and interval ends given as floats are read as the shortest decimal that prints them (0.15 means
3/20); ``binary=True`` reads the stored binary number instead. Ends may also be ints, strings or Fractions.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from fractions import Fraction

from flint import arb, ctx, fmpq

from .convexity import min_hessian, threshold

PRECISION = 96  # bits; balls stay far narrower than the boxes


@dataclass(frozen=True)
class Certificate:
    """Outcome of `certify_convex`.

    Attributes:
        proved: True if hess F > 0 is proved on the whole rectangle. False is *no* proof of the contrary.
        lower_bound: smallest proved lower bound of hess F over all boxes (-inf if not proved).
        boxes: the proved boxes (y_lo, y_hi, t_lo, t_hi), as floats, for pictures; they tile the rectangle if proved.
        evaluations: number of boxes evaluated.
        domain, t_range: the rectangle, exactly.
    """

    proved: bool
    lower_bound: float
    boxes: tuple[tuple[float, float, float, float], ...]
    evaluations: int
    domain: tuple[Fraction, Fraction]
    t_range: tuple[Fraction, Fraction]


@dataclass(frozen=True)
class Witness:
    """A point of proved non-convexity: hess F(y, t) <= upper_bound < 0, with y and t exact."""

    y: Fraction
    t: Fraction
    upper_bound: float


@dataclass(frozen=True)
class PinnedThreshold:
    """t* between two proofs: non-convex at ``witness.t``, convex on ``certificate.t_range`` and above (theorem 2.2)."""

    estimate: float
    witness: Witness | None
    certificate: Certificate

    @property
    def proved(self) -> bool:
        """True if both halves are proved."""
        return self.witness is not None and self.certificate.proved


def exact(value, name: str = "value", binary: bool = False) -> Fraction:
    """The rational number meant by ``value`` (int, float, str such as "0.1" or "1/3", or Fraction).

    Floats are read as the decimal that prints them, with ``binary=True`` as the stored binary number.

    Raises:
        ValueError: not a finite number.
    """
    try:
        if isinstance(value, float) and not binary:
            return Fraction(repr(value))
        return Fraction(value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{name} must be a finite number, a string or a Fraction, got {value!r}") from error


def _interval(pair, name: str, binary: bool) -> tuple[Fraction, Fraction]:
    try:
        lo, hi = pair
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a pair (lo, hi), got {pair!r}") from error
    lo, hi = exact(lo, name, binary), exact(hi, name, binary)
    if lo > hi:
        raise ValueError(f"{name} must have lo <= hi, got {pair!r}")
    return lo, hi


def _ball(value: Fraction) -> arb:
    return arb(fmpq(value.numerator, value.denominator))


class _Mixture:
    """The parameters as balls, and enclosures of the Hessian over boxes."""

    def __init__(self, mixture, binary: bool):
        if getattr(mixture, "means", None) is None or mixture.means.ndim != 1:
            raise ValueError("certificates are for mixtures on the line (means of shape (K,))")
        rows = zip(mixture.weights.tolist(), mixture.means.tolist(), mixture.variances.tolist(), strict=True)
        self.rows = [[exact(x, "parameter", binary) for x in row] for row in rows if row[0] > 0]
        self.smallest = min(row[2] for row in self.rows)
        with ctx.workprec(PRECISION):
            self.log_w = [_ball(w).log() for w, _, _ in self.rows]
            self.mu = [_ball(m) for _, m, _ in self.rows]
            self.s2 = [_ball(v) for _, _, v in self.rows]

    def need_positive(self, t: Fraction):
        if t < 0 or self.smallest + t <= 0:
            raise ValueError(f"t must be >= 0, and > 0 if a component is a point mass, got {t}")

    def prefers_y(self, ys, ts, spread_y: arb, spread_t: arb) -> bool:
        """Cut along y or t? The larger spread; while that is huge, the side that is longer in natural units."""
        if spread_y.rad() + spread_t.rad() < 1e3:
            return bool(spread_y.rad() >= spread_t.rad())
        v = float(self.smallest + ts[0])
        return float(ys[1] - ys[0]) * math.sqrt(v) >= float(ts[1] - ts[0])

    def _features(self, y: arb, t: arb):
        p = [1 / (s2 + t) for s2 in self.s2]
        a = [pi * (mu - y) for pi, mu in zip(p, self.mu, strict=True)]
        return p, a, [(ai * ai - pi) / 2 for ai, pi in zip(a, p, strict=True)]

    def _logits(self, p, a):
        terms = zip(self.log_w, p, a, strict=True)
        return [w + (pi.log() - ai * ai / pi) / 2 for w, pi, ai in terms]

    def at_point(self, y: arb, t: arb):
        """Features, logits, responsibilities and h at a point."""
        p, a, l = self._features(y, t)
        logits = self._logits(p, a)
        g = _softmax(logits)
        mean = _dot(g, a)
        h = _dot(g, p) - _dot(g, [(ai - mean) ** 2 for ai in a])
        return p, a, l, logits, g, h

    def on_box(self, y: arb, t: arb) -> tuple[arb, arb, arb]:
        """Enclosure of h over the box, and the spread due to y and to t (for choosing where to cut)."""
        yc, tc = y.mid(), t.mid()
        pc, ac, lc, logits, g, h = self.at_point(yc, tc)
        p_ref, a_ref, l_ref = (_dot(g, x).mid() for x in (pc, ac, lc))
        p, a, l = self._features(y, t)
        a0, l0 = [x - a_ref for x in a], [x - l_ref for x in l]  # centred: Cov does not change
        dy, dt = y - yc, t - tc
        g = _softmax([w + x * dy + z * dt for w, x, z in zip(logits, a0, l0, strict=True)])
        p0 = [x - p_ref for x in p]
        mean = _dot(g, a0)
        square = [(x - mean) ** 2 for x in a0]
        third = [s * (x - mean) for s, x in zip(square, a0, strict=True)]
        h_y = 3 * _cov(g, p0, a0) - _dot(g, third)
        ap = [x * q for x, q in zip(a, p, strict=True)]
        centre = a_ref * p_ref
        h_t = _cov(g, p0, l0) - _dot(g, [q * q for q in p]) - _cov(g, square, l0)
        h_t += 2 * _cov(g, a0, [x - centre for x in ap])
        h_y, h_t = h_y * dy, h_t * dt
        return h + h_y + h_t, h_y, h_t


def _dot(x, y) -> arb:
    return sum((a * b for a, b in zip(x, y, strict=True)), arb(0))


def _cov(g, x, y) -> arb:
    return _dot(g, [a * b for a, b in zip(x, y, strict=True)]) - _dot(g, x) * _dot(g, y)


def _softmax(logits) -> list[arb]:
    """g_i = 1 / (1 + sum_j exp(l_j - l_i)), decreasing in every difference: take their lower and upper ends."""
    g = []
    for i, li in enumerate(logits):
        differences = [lj - li for j, lj in enumerate(logits) if j != i]
        least = 1 / (1 + sum((d.upper().exp() for d in differences), arb(0)))
        g.append(least.union(1 / (1 + sum((d.lower().exp() for d in differences), arb(0)))))
    return g


def certify_convex(mixture, domain, t_range, *, max_boxes: int = 20_000, binary: bool = False) -> Certificate:
    """Prove ``hess F(y, t) > 0`` for every y in the domain and every t in t_range, by interval branch and bound.

    Args:
        mixture: a `gnclib.gmm.GaussianMixture` on the line.
        domain: (lo, hi). t_range: (t_lo, t_hi). See `exact` for how the ends are read.
        max_boxes: give up (proved = False) after evaluating that many boxes.
        binary: read floats as the stored binary numbers, see the module's head.

    Raises:
        ValueError: a mixture that is not on the line, a malformed interval, or t_lo = 0 at a point mass.
    """
    balls = _Mixture(mixture, binary)
    y_range, t_range = _interval(domain, "domain", binary), _interval(t_range, "t_range", binary)
    balls.need_positive(t_range[0])
    if max_boxes < 1:
        raise ValueError(f"max_boxes must be >= 1, got {max_boxes}")
    proved, lower, evaluations = [], math.inf, 0
    queue = [(0.0, 0, y_range, t_range)]  # the worst lower bound first: a failure shows early
    with ctx.workprec(PRECISION):
        while queue and evaluations < max_boxes:
            _, _, ys, ts = heapq.heappop(queue)
            evaluations += 1
            h, spread_y, spread_t = balls.on_box(_hull(ys), _hull(ts))
            bound = _float_below(h)
            if bound > 0:
                proved.append((ys, ts))
                lower = min(lower, bound)
                continue
            if balls.at_point(_ball(_middle(ys)), _ball(_middle(ts)))[-1] <= 0:
                break  # a point of the rectangle is not convex: no proof exists
            cut_y = ts[0] == ts[1] or (ys[0] < ys[1] and balls.prefers_y(ys, ts, spread_y, spread_t))
            for part_y, part_t in _bisect(ys, ts, cut_y):
                heapq.heappush(queue, (bound, evaluations, part_y, part_t))
    done = not queue and evaluations <= max_boxes and _tiles(proved, y_range, t_range)
    boxes = tuple(tuple(float(end) for pair in box for end in pair) for box in proved)
    return Certificate(done, lower if done else -math.inf, boxes, evaluations, y_range, t_range)


def _tiles(boxes, y_range, t_range) -> bool:
    """Do the boxes, which never overlap, cover the rectangle? Their exact areas must add up to it."""
    if y_range[0] == y_range[1] or t_range[0] == t_range[1]:  # a segment: compare its length
        area = [ys[1] - ys[0] + ts[1] - ts[0] for ys, ts in boxes]
        return bool(boxes) and sum(area) == y_range[1] - y_range[0] + t_range[1] - t_range[0]
    area = [(ys[1] - ys[0]) * (ts[1] - ts[0]) for ys, ts in boxes]
    return sum(area) == (y_range[1] - y_range[0]) * (t_range[1] - t_range[0])


def _middle(pair):
    return (pair[0] + pair[1]) / 2


def _bisect(ys, ts, cut_y: bool):
    if cut_y:
        middle = _middle(ys)
        return (((ys[0], middle), ts), ((middle, ys[1]), ts))
    middle = _middle(ts)
    return ((ys, (ts[0], middle)), (ys, (middle, ts[1])))


def _hull(pair) -> arb:
    lo, hi = _ball(pair[0]), _ball(pair[1])
    return lo if pair[0] == pair[1] else lo.union(hi)


def _float_below(h: arb) -> float:
    """A float that is certainly <= every number in the ball; -inf where the ball is unbounded."""
    return math.nextafter(float(h.lower()), -math.inf) if h.is_finite() else -math.inf


def witness_nonconvex(mixture, domain, t, *, binary: bool = False) -> Witness | None:
    """A point y of the domain with ``hess F(y, t) < 0``, proved; None if none was found (which proves nothing).

    Args:
        mixture: a `gnclib.gmm.GaussianMixture` on the line. domain: (lo, hi). t: see `exact`.

    Raises:
        ValueError: a mixture that is not on the line, a malformed domain, or t = 0 at a point mass.
    """
    balls = _Mixture(mixture, binary)
    (lo, hi), t = _interval(domain, "domain", binary), exact(t, "t", binary)
    balls.need_positive(t)
    if lo == hi:
        guess = lo
    else:
        guess = min(max(Fraction(min_hessian(mixture, float(t), (float(lo), float(hi)))[1]), lo), hi)
    with ctx.workprec(PRECISION):
        h = balls.at_point(_ball(guess), _ball(t))[-1]
    upper = math.nextafter(float(h.upper()), math.inf)
    return Witness(guess, t, upper) if upper < 0 else None


def pin_threshold(
    mixture, domain, eps="1e-6", *, max_boxes: int = 20_000, binary: bool = False
) -> PinnedThreshold:
    """Enclose t* by proof: a witness at ``t* - eps``, a certificate on ``[t* + eps, t_top]``, and theory above.

    ``t_top = max_i max_{y in X} (y - mu_i)^2 - s_i^2`` (at least t* + eps) is the argument of theorem 2.2 for each
    component; it is <= t_bar, and F(., t) is convex on X from there on.

    Args:
        eps: half-width of the bracket, > 0; the bracket's ends are t* +- eps with t* rounded to eps / 100.

    Raises:
        ValueError: as `certify_convex`, or eps <= 0, or t* - eps < 0 (nothing to witness).
    """
    balls = _Mixture(mixture, binary)
    (lo, hi), eps = _interval(domain, "domain", binary), exact(eps, "eps", binary)
    if eps <= 0:
        raise ValueError(f"eps must be positive, got {eps}")
    estimate = threshold(mixture, (float(lo), float(hi)))
    grain = eps / 100
    centre = round(Fraction(estimate) / grain) * grain
    if centre - eps < 0 or balls.smallest + centre - eps <= 0:
        raise ValueError(
            f"t* = {estimate:.6g} is not above eps = {float(eps):.3g}: there is nothing to witness below"
        )
    top = max(max((m - lo) ** 2, (m - hi) ** 2) - s2 for _, m, s2 in balls.rows)
    span = (centre + eps, max(top, centre + eps))
    witness = witness_nonconvex(mixture, (lo, hi), centre - eps, binary=binary)
    certificate = certify_convex(mixture, (lo, hi), span, max_boxes=max_boxes, binary=binary)
    return PinnedThreshold(estimate, witness, certificate)
