r"""Proofs of convexity, and of its absence, for mixtures on the line: the sign of ``hess F(y, t)``.

A grid can miss a dip. Here every number is a set that is guaranteed to contain the true value (interval arithmetic,
rounded outwards), so a positive lower bound over a box ``[y] x [t]`` proves convexity on the whole box
(`gnclib.certify.boxes` says how it is made sharp). `certify_convex` bisects the rectangle until every
box is proved (branch and bound), `witness_nonconvex` proves the opposite at one point, `enclose_threshold` puts both
together around ``t*``, and `pave` colours a rectangle by what is proved where.

**For all larger t** (``t_hi = None``), by the two arguments of `gnclib.gmm.threshold`: on a bounded X the boxes only
need to reach ``t_top = max_i max_X (y - mu_i)^2 - s_i^2``; on the whole line convexity at t_lo alone is enough, which
boxes prove on an interval and the tail bound beyond it.

**Which mixture is it about?** A float is not the number one typed: 0.15 is stored as 0.1499999999999999944.
Parameters and interval ends given as floats are read as the shortest decimal that prints them (0.15 means
3/20). Ends may also be ints, strings or Fractions.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from gnclib.certify.boxes import HessianBoxes


class NotProved(RuntimeError):
    """A proof was asked for and not found; the message says how far it got. It is no proof of the contrary."""


class Box(NamedTuple):
    """A box [y_lo, y_hi] x [t_lo, t_hi] in floats, for pictures; the status is "convex", "not convex" or "open"."""

    y_lo: float
    y_hi: float
    t_lo: float
    t_hi: float
    status: str = "convex"


@dataclass(frozen=True)
class Certificate:
    """Outcome of `certify_convex`: whether hess F > 0 is proved for all y in the domain and all t in t_range.

    Not to be proved proves nothing. The proved boxes tile the rectangle (whole line: the segment between the tails at
    t_lo) if all is proved.
    """

    proved: bool
    lower_bound: float  # smallest proved one of hess F over all boxes and tails (-inf if not proved)
    boxes: tuple[Box, ...]
    evaluations: int  # number of boxes evaluated
    domain: tuple[Fraction, Fraction] | None  # exact ends; None is the whole line
    t_range: tuple[Fraction, Fraction | None]  # exact ends; an upper end None means all t >= t_lo
    tails: tuple[tuple[float, float], ...]  # whole line: (y, lower bound of hess F beyond y), left and right
    arithmetic: str

    def __str__(self) -> str:
        ends = self.domain and "[{:.6g}, {:.6g}]".format(*map(float, self.domain))
        lo, hi = self.t_range
        when = f">= {float(lo):.9g}" if hi is None else f"in [{float(lo):.9g}, {float(hi):.9g}]"
        return (
            f"{'proved' if self.proved else 'NOT proved'}: F(., t) is convex on {ends or 'the whole line'} for every t"
            f" {when}; {len(self.boxes)} boxes ({self.evaluations} evaluated), {self.arithmetic}"
        )


@dataclass(frozen=True)
class Witness:
    """A point of proved non-convexity: hess F(y, t) <= upper_bound < 0, with y and t exact."""

    y: Fraction
    t: Fraction
    upper_bound: float


@dataclass(frozen=True)
class ThresholdEnclosure:
    """``lo < t* <= hi`` by two proofs: a witness of non-convexity at lo, and a certificate for every t >= hi.

    It unpacks as ``lo, hi = enclosure`` (Fractions). If F(., t) is convex for every admissible t, lo = 0 and there is
    no witness.
    """

    lo: Fraction
    hi: Fraction
    witness: Witness | None
    certificate: Certificate

    def __iter__(self):
        return iter((self.lo, self.hi))

    def __str__(self) -> str:
        lo, hi, below = float(self.lo), float(self.hi), "no smaller t to exclude"
        if self.witness:
            y, bound = float(self.witness.y), self.witness.upper_bound
            below = f"not convex at t = {lo:.9g} (hess F({y:.6g}) <= {bound:.3g})"
        return f"t* in [{lo:.9g}, {hi:.9g}]: {below}; {self.certificate}"


def exact(value, name: str = "value") -> Fraction:
    """The rational number meant by ``value`` (int, float, str such as "0.1" or "1/3", or Fraction).

    Floats are read as the decimal that prints them. Raises ValueError if it is not a finite number.
    """
    try:  # numpy's float64 is a float with a repr of its own
        return Fraction(repr(float(value)) if isinstance(value, float) else value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{name} must be a finite number, a string or a Fraction, got {value!r}") from error


def _interval(pair, name: str, endless: bool = False) -> tuple[Fraction, Fraction]:
    """The exact ends of an interval; with ``endless`` the upper one may be None."""
    try:
        lo, hi = pair
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a pair (lo, hi), got {pair!r}") from error
    lo, hi = exact(lo, name), None if endless and hi is None else exact(hi, name)
    if hi is not None and lo > hi:
        raise ValueError(f"{name} must have lo <= hi, got {pair!r}")
    return lo, hi


def _boxes_of(mixture, name: str) -> HessianBoxes:
    if mixture.means.ndim != 1:
        raise ValueError("certificates are for mixtures on the line (means of shape (K,))")
    rows = zip(mixture.weights.tolist(), mixture.means.tolist(), mixture.variances.tolist(), strict=True)
    rows = [tuple(exact(x, "parameter") for x in row) for row in rows if row[0] > 0]
    return HessianBoxes(rows, name)


def _need_positive(boxes: HessianBoxes, t: Fraction):
    if t < 0 or boxes.smallest + t <= 0:
        raise ValueError(f"t must be >= 0, and > 0 if a component is a point mass, got {float(t):.6g}")


def certify_convex(
    mixture, domain, t_range, *, arithmetic: str = "auto", max_boxes: int = 20_000
) -> Certificate:
    """Prove ``hess F(y, t) > 0`` for every y in the domain and every t in t_range, by interval branch and bound.

    Parameters
    ----------
    mixture : gnclib.gmm.GaussianMixture on the line
    domain : (lo, hi), or None for the whole line
        See `exact` for how the ends are read.
    t_range : (t_lo, t_hi)
        t_hi = None means every t >= t_lo.
    arithmetic : {"auto", "arb", "mpmath.iv"}
    max_boxes : int
        Give up (proved = False) after evaluating that many boxes.

    Raises
    ------
    ValueError
        A mixture that is not on the line, a malformed interval, or t_lo = 0 at a point mass.
    """
    boxes = _boxes_of(mixture, arithmetic)
    t_lo, t_hi = _interval(t_range, "t_range", endless=True)
    _need_positive(boxes, t_lo)
    if max_boxes < 1:
        raise ValueError(f"max_boxes must be >= 1, got {max_boxes}")
    if domain is None:
        tails = _tails(boxes, t_lo)
        ys, ts = tuple(y for y, _ in tails), (t_lo, t_lo)
    else:
        tails, ys = (), _interval(domain, "domain")
        ts = (t_lo, max(t_lo, _top(boxes, ys)) if t_hi is None else t_hi)
    done, lower, proved, evaluations = _bound(boxes, ys, ts, max_boxes) if ys else (False, -math.inf, [], 0)
    lower = min([lower, *(bound for _, bound in tails)])
    return Certificate(
        proved=done,
        lower_bound=lower if done else -math.inf,
        boxes=tuple(Box(*map(float, (*y, *t))) for y, t in proved),
        evaluations=evaluations,
        domain=None if domain is None else ys,
        t_range=(t_lo, t_hi),
        tails=tuple((float(y), bound) for y, bound in tails),
        arithmetic=boxes.sets.name,
    )


def _top(boxes: HessianBoxes, ys) -> Fraction:
    """t_top of the module's head: from there on every component's own term is non-negative on [ys]."""
    return max(max((m - ys[0]) ** 2, (m - ys[1]) ** 2) - s2 for _, m, s2 in boxes.rows)


def _tails(boxes: HessianBoxes, t: Fraction) -> tuple[tuple[Fraction, float], ...]:
    """Where the two tails begin, with the bounds; found by doubling. Empty if a bound is never positive."""
    means = [m for _, m, _ in boxes.rows]
    width = math.sqrt(max(s2 for _, _, s2 in boxes.rows) + t)
    found = []
    for side, outermost in ((-1, min(means)), (1, max(means))):
        step = Fraction(math.ceil(16 * width), 8)
        for _ in range(60):
            start = outermost + side * step
            bound = boxes.below_on_tail(start, t, side)
            if bound > 0:
                found.append((start, bound))
                break
            step *= 2
    return tuple(found) if len(found) == 2 else ()


def _bound(boxes: HessianBoxes, y_range, t_range, max_boxes: int):
    """Branch and bound: (done, smallest lower bound, proved boxes, evaluations)."""
    proved, lower, evaluations = [], math.inf, 0
    queue = [(lower, evaluations, y_range, t_range)]  # the worst lower bound first: a failure shows early
    while queue and evaluations < max_boxes:
        _, _, ys, ts = heapq.heappop(queue)
        evaluations += 1
        below, _, spread_y, spread_t = boxes.on_box(ys, ts)
        if below > 0:
            proved.append((ys, ts))
            lower = min(lower, below)
            continue
        if boxes.at_point(_middle(ys), _middle(ts))[0] <= 0:
            break  # a point of the rectangle cannot be proved: nor can the rectangle
        for part_y, part_t in _bisect(boxes, ys, ts, spread_y, spread_t):
            heapq.heappush(queue, (below, evaluations, part_y, part_t))
    done = not queue and _tiles(proved, y_range, t_range)
    return done, lower, proved, evaluations


def _tiles(proved, y_range, t_range) -> bool:
    """Do the boxes, which never overlap, cover the rectangle? Their exact areas (or lengths) must add up to it."""
    area = [(ys[1] - ys[0] or 1) * (ts[1] - ts[0] or 1) for ys, ts in [*proved, (y_range, t_range)]]
    return sum(area[:-1]) == area[-1]


def _middle(pair) -> Fraction:
    return (pair[0] + pair[1]) / 2


def _bisect(boxes: HessianBoxes, ys, ts, spread_y: float, spread_t: float):
    if boxes.prefers_y(ys, ts, spread_y, spread_t):
        middle = _middle(ys)
        return (((ys[0], middle), ts), ((middle, ys[1]), ts))
    middle = _middle(ts)
    return ((ys, (ts[0], middle)), (ys, (middle, ts[1])))


def pave(mixture, domain, t_range, *, arithmetic: str = "auto", max_boxes: int = 6000) -> tuple[Box, ...]:
    """Tile a rectangle by boxes that are proved convex, proved not convex (hess F < 0 all over the box), or still open.

    The largest open box (in share of the rectangle) is cut next, until ``max_boxes`` boxes are evaluated; what is open
    then is the proved location of the curve ``hess F = 0``. Arguments and errors as `certify_convex`; t_hi a number.
    """
    boxes = _boxes_of(mixture, arithmetic)
    y_range, t_range = _interval(domain, "domain"), _interval(t_range, "t_range")
    _need_positive(boxes, t_range[0])
    settled, evaluations = [], 0
    queue = [(-math.inf, evaluations, y_range, t_range)]
    while queue and evaluations < max_boxes:
        _, _, ys, ts = heapq.heappop(queue)
        evaluations += 1
        below, above, spread_y, spread_t = boxes.on_box(ys, ts)
        if below > 0 or above < 0:
            settled.append((ys, ts, "convex" if below > 0 else "not convex"))
            continue
        for part_y, part_t in _bisect(boxes, ys, ts, spread_y, spread_t):
            share = float((part_y[1] - part_y[0]) * (part_t[1] - part_t[0]))
            heapq.heappush(queue, (-share, evaluations, part_y, part_t))
    found = settled + [(ys, ts, "open") for _, _, ys, ts in queue]
    return tuple(Box(*map(float, (*ys, *ts)), status) for ys, ts, status in found)


def witness_nonconvex(mixture, domain, t, *, arithmetic: str = "auto") -> Witness | None:
    """A point y of the domain with ``hess F(y, t) < 0``, proved; None if none was found (which proves nothing).

    Arguments and errors as `certify_convex`; t one number.
    """
    boxes = _boxes_of(mixture, arithmetic)
    t = exact(t, "t")
    _need_positive(boxes, t)
    ends = None if domain is None else _interval(domain, "domain")
    if ends and ends[0] == ends[1]:
        guess = ends[0]
    else:
        guess = Fraction(mixture.min_hessian(float(t), ends)[1])
        guess = min(max(guess, ends[0]), ends[1]) if ends else guess
    upper = boxes.at_point(guess, t)[1]
    return Witness(guess, t, upper) if upper < 0 else None


def enclose_threshold(
    mixture, domain, tol="1e-6", *, arithmetic: str = "auto", max_boxes: int = 20_000
) -> ThresholdEnclosure:
    """Enclose t* by proof: ``lo, hi = enclose_threshold(...)`` with ``hi - lo <= tol`` and ``lo < t* <= hi``.

    At ``t = lo`` a witness shows that F(., lo) is not convex on the domain; for every ``t >= hi`` it is convex
    (boxes up to t_top and theory above, see the module's head). The numerical t* only tells where to look.

    Parameters
    ----------
    tol : int, float, str or Fraction
        Largest width of the enclosure, > 0. All else, and its errors, as for `certify_convex`.

    Raises
    ------
    NotProved
        One of the two halves could not be proved within ``max_boxes`` boxes.
    """
    boxes, tol = _boxes_of(mixture, arithmetic), exact(tol, "tol")
    if tol <= 0:
        raise ValueError(f"tol must be positive, got {tol}")
    estimate = mixture.convexity_threshold(None if domain is None else _interval(domain, "domain"))
    grain = tol / 100
    lo = (Fraction(estimate) / grain).__floor__() * grain - tol / 2 + grain / 2
    if lo < 0:  # t* is 0, or nearer to it than the tolerance
        lo, witness = Fraction(0), None
        hi = lo if boxes.smallest > 0 and estimate == 0 else tol
    else:
        hi = lo + tol
        witness = witness_nonconvex(mixture, domain, lo, arithmetic=arithmetic)
        if witness is None:
            raise NotProved(
                f"no point with hess F(y, {float(lo):.9g}) < 0 was found below t* = {estimate:.9g}"
            )
    certificate = certify_convex(mixture, domain, (hi, None), arithmetic=arithmetic, max_boxes=max_boxes)
    if not certificate.proved:
        raise NotProved(f"{certificate}; a larger tol or max_boxes may help")
    return ThresholdEnclosure(lo, hi, witness, certificate)
