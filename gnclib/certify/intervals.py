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
from typing import Any, Protocol

PRECISION = 96  # bits; the sets stay far narrower than the boxes that are cut


class Arithmetic(Protocol):
    """What a certificate needs of an interval arithmetic. ``Any`` is its own type of set."""

    name: str

    def precision(self) -> Any:
        """Context in which everything is computed with `PRECISION` bits."""

    def number(self, value: Fraction) -> Any:
        """A set that contains the rational number."""

    def hull(self, lo: Any, hi: Any) -> Any:
        """A set that contains both sets and everything between them."""

    def square(self, x: Any) -> Any:
        """All x^2, never below 0: sharper than x * x, which takes its factors for independent."""

    def exp(self, x: Any) -> Any: ...

    def log(self, x: Any) -> Any: ...

    def centre(self, x: Any) -> Any:
        """One number of the set, exactly."""

    def exp_ends(self, x: Any) -> tuple[Any, Any]:
        """exp of the two ends, each as a set of (nearly) one number."""

    def floats(self, x: Any) -> tuple[float, float]:
        """Floats certainly <= and >= every number of the set; infinite where it is unbounded or undefined."""


class Arb:
    """Balls ``[m +- r]`` of python-flint."""

    name = "arb"

    def __init__(self):
        import flint

        self._flint = flint

    @contextmanager
    def precision(self) -> Iterator[None]:
        with self._flint.ctx.workprec(PRECISION):
            yield

    def number(self, value: Fraction):
        return self._flint.arb(self._flint.fmpq(value.numerator, value.denominator))

    def hull(self, lo, hi):
        return lo.union(hi)

    def square(self, x):
        if x.abs_lower() > 0:
            return x * x
        most = x.abs_upper()
        return (0 * most).union(most * most)

    def exp(self, x):
        return x.exp()

    def log(self, x):
        return x.log()

    def centre(self, x):
        return x.mid()

    def exp_ends(self, x):
        return x.lower().exp(), x.upper().exp()

    def floats(self, x) -> tuple[float, float]:
        if not x.is_finite():
            return -math.inf, math.inf
        lo, hi = float(x.lower()), float(x.upper())
        return math.nextafter(lo, -math.inf), math.nextafter(hi, math.inf)


class Mpmath:
    """Pairs of ends ``[a, b]`` of mpmath, in a context of its own: nobody else's precision is changed."""

    name = "mpmath.iv"

    def __init__(self):
        from mpmath.ctx_iv import MPIntervalContext
        from mpmath.libmp import to_float

        self._iv, self._to_float = MPIntervalContext(), to_float
        self._iv.prec = PRECISION

    @contextmanager
    def precision(self) -> Iterator[None]:
        yield

    def number(self, value: Fraction):
        return self._iv.mpf(value.numerator) / value.denominator

    def hull(self, lo, hi):
        return self._iv.mpf([min(lo.a, hi.a), max(lo.b, hi.b)])

    def square(self, x):
        return x**2

    def exp(self, x):
        return self._iv.exp(x)

    def log(self, x):
        return self._iv.log(x)

    def centre(self, x):
        middle = x.mid
        return self._iv.mpf(middle.a)

    def exp_ends(self, x):
        both = self._iv.exp(x)
        return self._iv.mpf(both.a), self._iv.mpf(both.b)

    def floats(self, x) -> tuple[float, float]:
        lo, hi = (self._to_float(end) for end in x._mpi_)
        if math.isnan(lo) or math.isnan(hi):
            return -math.inf, math.inf
        return math.nextafter(lo, -math.inf), math.nextafter(hi, math.inf)


def arithmetic(name: str = "auto") -> Arithmetic:
    """The arithmetic "arb" or "mpmath.iv"; "auto" takes arb if python-flint is installed.

    Raises
    ------
    ValueError
        Another name.
    ImportError
        "arb" without python-flint.
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
