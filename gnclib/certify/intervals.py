"""Interval arithmetic behind one small interface: python-flint's ``arb`` where it is installed, else mpmath's ``iv``.

Both carry sets of real numbers, a ball or a pair of ends, and round outwards: whatever numbers one takes from the
arguments, the result of an operation contains the exact result. ``+ - * /`` work on the
sets themselves; the rest is here. arb is some twenty times faster; mpmath is plain Python and comes with torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

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
        self.exp, self.log = self._iv.exp, self._iv.log

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
