"""Verdicts, and the evidence that leads to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "FAILS",
    "HOLDS",
    "IDENTITY",
    "UNDECIDED",
    "VERDICTS",
    "Evidence",
    "NotANumber",
    "beyond_noise",
    "graded",
]

IDENTITY, HOLDS, CAVEAT = "verified identity", "holds", "holds with caveat"
UNDECIDED, FAILS = "undecided", "does not hold"
#: from the most to the least favourable; an identity is true by algebra, and checked to rounding
VERDICTS = (IDENTITY, HOLDS, CAVEAT, UNDECIDED, FAILS)


class NotANumber(Exception):
    """A rule asked for a value that is nan: nothing follows from it."""


class Evidence:
    """Read access for rules: `e.name` is one value, `e.each("prefix")` all whose names begin so."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            raise ValueError(f"the evidence lacks {name}; it has: {', '.join(self._values)}")
        value = self._values[name]
        if isinstance(value, float) and math.isnan(value):
            raise NotANumber(name)
        return value

    def each(self, prefix: str) -> list[Any]:
        """The values whose names begin with `prefix`, in the order of the evidence; at least one."""
        found = [getattr(self, name) for name in self._values if name.startswith(prefix)]
        if not found:
            raise ValueError(f"the evidence has no name that begins with {prefix}")
        return found


def graded(holds: bool, caveat: bool) -> str:
    """`HOLDS`, else `CAVEAT` if the sentence is true in the narrower range of `caveat`, else `FAILS`."""
    return HOLDS if holds else CAVEAT if caveat else FAILS


def beyond_noise(margins: Iterable[float], noise: Iterable[float]) -> str:
    """Verdict on "every margin is positive", where a margin up to its `noise` happens by chance.

    All beyond the noise: it holds. One beyond it on the wrong side: it does not. Else a caveat if some are beyond it
    and the others at least positive; else undecided.
    """
    pairs = list(zip(margins, noise, strict=True))
    if any(margin < -limit for margin, limit in pairs):
        return FAILS
    shown = [margin > limit for margin, limit in pairs]
    if all(shown):
        return HOLDS
    return CAVEAT if any(shown) and all(margin > 0 for margin, _ in pairs) else UNDECIDED
