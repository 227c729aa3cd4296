r"""Enclosures of ``hess F(y, t)`` of a mixture on the line, over boxes and over the two tails of the line.

With ``v_i = s_i^2 + t``, ``p_i = 1/v_i``, ``a_i = p_i (mu_i - y)``, ``l_i = d_t log N_i = (a_i^2 - p_i)/2`` and
E, Cov taken over the responsibilities g_i, ``h = hess F = E[p] - Var(a)`` has the derivatives

    d_y h = 3 Cov(p, a) - E[(a - E a)^3]
    d_t h = Cov(p, l) - E[p^2] - Cov((a - E a)^2, l) + 2 Cov(a, a p)

**Boxes.** The bound on a box with centre c is the mean-value form
``h(c) + d_y h(box) (y - y_c) + d_t h(box) (t - t_c)``, whose excess shrinks with the *square* of the box: that is what
keeps the number of boxes at a few hundred when the rectangle begins just above t*, where h is nearly zero. The
log-weights of the components are bounded in the same way, after taking off a common affine function of (y, t), which
g does not feel.

**Tails.** Let m be the widest component, among equally wide ones the outermost on the right. As
Var(a) <= E[(a - a_m)^2], p_i >= p_m and g_i <= g_i/g_m,

    h(y) >= p_m - sum_{i != m} s_i(y),    s_i = (w_i N_i)/(w_m N_m) D_i^2,    D_i = a_i - a_m.

D_i is affine in y with slope -(p_i - p_m) <= 0, and ``d_y log(N_i/N_m) = D_i``. So
``(log s_i)' = D_i - 2 (p_i - p_m)/D_i``, which is <= 0 as soon as D_i < 0 and D_i^2 >= 2 (p_i - p_m), and stays so to
the right: all s_i fall on [Y, inf) if this holds at Y. One evaluation at Y then bounds h on the whole tail. The left
tail is the right one of the mirrored mixture.

**Interval arithmetic** stands behind one small interface: python-flint's ``arb`` where it is installed, else mpmath's
``iv``. Both carry sets of real numbers, a ball or a pair of ends, and round outwards: whatever numbers one takes from
the arguments, the result of an operation contains the exact result. ``+ - * /`` work on the
sets themselves; the rest is here. arb is some twenty times faster; mpmath is plain Python and comes with torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from operator import mul
from typing import Any

Ends = tuple[Fraction, Fraction]


class HessianBoxes:
    """Enclosures for the mixture with exact parameters, rows (w_i, mu_i, s_i^2) of Fractions with w_i > 0."""

    def __init__(self, rows: list[tuple[Fraction, Fraction, Fraction]], name: str = "auto"):
        self.rows, self.sets = rows, arithmetic(name)
        self.smallest = min(s2 for _, _, s2 in rows)
        with self.sets.precision():
            self.zero = self.sets.number(Fraction(0))
            weights, self.mu, self.s2 = (
                [self.sets.number(x) for x in part] for part in zip(*rows, strict=True)
            )
            self.log_w = [self.sets.log(w) for w in weights]

    def interval(self, ends: Ends) -> Any:
        """The set of all numbers between two rationals."""
        lo, hi = map(self.sets.number, ends)
        return lo if ends[0] == ends[1] else self.sets.hull(lo, hi)

    def prefers_y(self, ys: Ends, ts: Ends, spread_y: float, spread_t: float) -> bool:
        """Cut along y or t? The larger spread; while that is huge, the side that is longer in natural units."""
        if spread_y + spread_t < 1e3:
            return spread_y >= spread_t
        v = float(self.smallest + ts[0])
        return float(ys[1] - ys[0]) * math.sqrt(v) >= float(ts[1] - ts[0])

    def at_point(self, y: Fraction, t: Fraction) -> tuple[float, float]:
        """Floats below and above h(y, t)."""
        with self.sets.precision():
            return self.sets.floats(self._at(self.sets.number(y), self.sets.number(t))[-1])

    def on_box(self, ys: Ends, ts: Ends) -> tuple[float, float, float, float]:
        """Floats below and above h over the box, and the spread due to y and to t (for choosing where to cut)."""
        with self.sets.precision():
            h, h_y, h_t = self._mean_value_form(self.interval(ys), self.interval(ts))
            spreads = [(hi - lo) / 2 for lo, hi in map(self.sets.floats, (h_y, h_t))]
            return (*self.sets.floats(h), *spreads)

    def below_on_tail(self, start: Fraction, t: Fraction, side: int) -> float:
        """A float below h(., t) on ``[start, inf)`` (side = 1) or ``(-inf, start]`` (side = -1); -inf if not known.

        The bound is the one in the module's head; where the s_i do not fall yet, nothing is known.
        """
        widest = max(self.rows, key=lambda row: (row[2], side * row[1]))
        m = self.rows.index(widest)
        with self.sets.precision():
            p, a, _ = self._features(self.sets.number(start), self.sets.number(t))
            logits = self._logits(p, a)
            total = self.zero
            for i, (_, mean, s2) in enumerate(self.rows):
                if (mean, s2) == widest[1:]:
                    continue  # the same Gaussian: D_i = 0 everywhere
                d = side * (a[i] - a[m])
                if not self._falls(d, p[i] - p[m]):
                    return -math.inf
                total += self.sets.exp(logits[i] - logits[m]) * self.sets.square(d)
            return self.sets.floats(p[m] - total)[0]

    def _falls(self, d, q) -> bool:
        """Is s_i certain to fall from here on: D_i < 0 and D_i^2 >= 2 (p_i - p_m)?"""
        return self.sets.floats(d)[1] < 0 <= self.sets.floats(self.sets.square(d) - 2 * q)[0]

    def _features(self, y, t):
        square = self.sets.square
        p = [1 / (s2 + t) for s2 in self.s2]
        a = [pi * (mu - y) for pi, mu in zip(p, self.mu, strict=True)]
        return p, a, [(square(ai) - pi) / 2 for ai, pi in zip(a, p, strict=True)]

    def _logits(self, p, a):
        terms = zip(self.log_w, p, a, strict=True)
        return [w + (self.sets.log(pi) - self.sets.square(ai) / pi) / 2 for w, pi, ai in terms]

    def _at(self, y, t):
        """Features, logits and h at a point."""
        p, a, l = self._features(y, t)
        logits = self._logits(p, a)
        g = self._softmax(logits)
        mean = self._dot(g, a)
        h = self._dot(g, p) - self._dot(g, [self.sets.square(ai - mean) for ai in a])
        return p, a, l, logits, g, h

    def _mean_value_form(self, y, t):
        """h over the box, and the parts of it due to y and to t."""
        yc, tc = self.sets.centre(y), self.sets.centre(t)
        pc, ac, lc, logits, g, h = self._at(yc, tc)
        p_ref, a_ref, l_ref = (self.sets.centre(self._dot(g, x)) for x in (pc, ac, lc))
        p, a, l = self._features(y, t)
        a0, l0 = [x - a_ref for x in a], [x - l_ref for x in l]  # centred: Cov does not change
        dy, dt = y - yc, t - tc
        g = self._softmax([w + x * dy + z * dt for w, x, z in zip(logits, a0, l0, strict=True)])
        p0 = [x - p_ref for x in p]
        mean = self._dot(g, a0)
        centred = [x - mean for x in a0]
        square = [self.sets.square(x) for x in centred]
        h_y = 3 * self._cov(g, p0, a0) - self._dot(g, map(mul, square, centred))
        ap = [x * q - a_ref * p_ref for x, q in zip(a, p, strict=True)]
        h_t = self._cov(g, p0, l0) - self._dot(g, [self.sets.square(q) for q in p]) - self._cov(g, square, l0)
        h_t += 2 * self._cov(g, a0, ap)
        h_y, h_t = h_y * dy, h_t * dt
        return h + h_y + h_t, h_y, h_t

    def _dot(self, x, y):
        return sum(map(mul, x, y), self.zero)

    def _cov(self, g, x, y):
        return self._dot(g, map(mul, x, y)) - self._dot(g, x) * self._dot(g, y)

    def _softmax(self, logits):
        """g_i = 1 / (1 + sum_j exp(l_j - l_i)), decreasing in every difference: take their lower and upper ends."""
        one = self.zero + 1
        low, high = [one] * len(logits), [one] * len(logits)
        for i, li in enumerate(logits):
            for j in range(i):
                least, most = self.sets.exp_ends(logits[j] - li)
                low[i], high[i] = low[i] + least, high[i] + most
                low[j], high[j] = low[j] + 1 / most, high[j] + 1 / least
        return [self.sets.hull(1 / most, 1 / least) for least, most in zip(low, high, strict=True)]


# --- interval arithmetic ------------------------------------------------------------------------------------

PRECISION = 96  # bits; the sets stay far narrower than the boxes that are cut


class Arb:
    """Balls ``[m +- r]`` of python-flint."""

    name = "arb"

    def __init__(self):
        import flint

        self._flint = flint

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Everything is computed with `PRECISION` bits in this context."""
        with self._flint.ctx.workprec(PRECISION):
            yield

    def number(self, value: Fraction):
        """A set that contains the rational number."""
        return self._flint.arb(self._flint.fmpq(value.numerator, value.denominator))

    def hull(self, lo, hi):
        """A set that contains both sets and everything between them."""
        return lo.union(hi)

    def square(self, x):
        """All x^2, never below 0: sharper than x * x, which takes its factors for independent."""
        if x.abs_lower() > 0:
            return x * x
        most = x.abs_upper()
        return self._flint.arb(0).union(most * most)

    def exp(self, x):
        return x.exp()

    def log(self, x):
        return x.log()

    def centre(self, x):
        """One number of the set, exactly."""
        return x.mid()

    def exp_ends(self, x):
        """exp of the two ends, each as a set of (nearly) one number."""
        return x.lower().exp(), x.upper().exp()

    def floats(self, x) -> tuple[float, float]:
        """Floats certainly <= and >= every number of the set; infinite where it is unbounded or undefined."""
        if not x.is_finite():
            return -math.inf, math.inf
        lo, hi = float(x.lower()), float(x.upper())
        return math.nextafter(lo, -math.inf), math.nextafter(hi, math.inf)


class Mpmath:
    """The same for pairs of ends ``[a, b]`` of mpmath, in a context of its own: nobody's precision is changed."""

    name = "mpmath.iv"

    def __init__(self):
        from mpmath.ctx_iv import MPIntervalContext
        from mpmath.libmp import to_float

        self._iv, self._to_float = MPIntervalContext(), to_float
        self._iv.prec = PRECISION
        # they are rounded from values that were cut off some bits later: a relative and an absolute 2^-90 wider
        more = self._iv.mpf([-1, 1]) * 2.0**-90
        self.exp = lambda x: self._iv.exp(x) * (1 + more)
        self.log = lambda x: self._iv.log(x) * (1 + more) + more

    @contextmanager
    def precision(self) -> Iterator[None]:
        yield

    def number(self, value: Fraction):
        return self._iv.mpf(value.numerator) / value.denominator

    def hull(self, lo, hi):
        return self._iv.mpf([min(lo.a, hi.a), max(lo.b, hi.b)])

    def square(self, x):
        return x**2

    def centre(self, x):
        return self._iv.mpf(x.mid.a)

    def exp_ends(self, x):
        both = self._iv.exp(x)
        return self._iv.mpf(both.a), self._iv.mpf(both.b)

    def floats(self, x) -> tuple[float, float]:
        lo, hi = (self._to_float(end) for end in x._mpi_)
        return math.nextafter(lo, -math.inf), math.nextafter(hi, math.inf)


def arithmetic(name: str = "auto") -> Arb | Mpmath:
    """The arithmetic "arb" or "mpmath.iv"; "auto" takes arb if python-flint is installed.

    Raises ValueError: another name; ImportError: "arb" without python-flint.
    """
    if name not in ("auto", "arb", "mpmath.iv"):
        raise ValueError(f"arithmetic must be 'auto', 'arb' or 'mpmath.iv', got {name!r}")
    if name == "mpmath.iv":
        return Mpmath()
    try:
        return Arb()
    except ImportError:
        if name == "arb":
            raise ImportError(
                "arithmetic='arb' needs python-flint: pip install 'gnclib[arb]', or take 'mpmath.iv'"
            ) from None
        return Mpmath()
