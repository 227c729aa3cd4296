"""Comparison of the numbers behind two runs of a figure or a claim, with a stated tolerance.

Pictures are not compared: a new matplotlib moves every pixel. Numbers are, array by array: the largest difference must
not exceed `atol + rtol * (largest finite magnitude in the reference array)`. Relative to the array and not to each
entry, because an entry near zero has no meaningful relative error.

The default rtol = 1e-3 has this reason: float32 sums taken in another order (another CPU, another number of threads)
differ by some 1e-6, and the iterations of the notebooks amplify that; a thousandth of the range of a curve is still
less than the width of its line. A figure that counts threshold crossings states its own tolerance in figures.toml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gnclib.io import read_json


def differences(reference: Any, value: Any, rtol: float, atol: float, name: str = "") -> list[str]:
    """Where two values, decoded JSON, differ by more than the tolerance of each array of numbers, in words.

    `name` is the place of the two in the whole, for the words.
    """
    if isinstance(reference, dict) and isinstance(value, dict):
        found = [f"{name}{key}: only in one of the two" for key in sorted(reference.keys() ^ value.keys())]
        for key in sorted(reference.keys() & value.keys()):
            found += differences(reference[key], value[key], rtol, atol, f"{name}{key}.")
        return found
    label, a, b = name.rstrip("."), _numbers(reference), _numbers(value)
    if a is None or b is None:
        if isinstance(reference, list) and isinstance(value, list) and len(reference) == len(value):
            pairs = zip(reference, value, strict=True)
            return [d for i, (r, v) in enumerate(pairs) for d in differences(r, v, rtol, atol, f"{name}{i}.")]
        return [] if reference == value else [f"{label}: {value!r} instead of {reference!r}"]
    if a.shape != b.shape:
        return [f"{label}: shape {b.shape} instead of {a.shape}"]
    finite = np.isfinite(a)
    if not np.array_equal(np.where(finite, 0, a), np.where(np.isfinite(b), 0, b), equal_nan=True):
        return [f"{label}: nan or infinite at other places"]
    scale = np.abs(a[finite]).max(initial=0.0)
    worst, allowed = np.abs(a[finite] - b[finite]).max(initial=0.0), atol + rtol * scale
    if worst <= allowed:
        return []
    return [
        f"{label}: off by {worst:.3g}, allowed {allowed:.3g} (atol {atol:g} + rtol {rtol:g} * {scale:.3g})"
    ]


def _numbers(value: Any) -> np.ndarray | None:
    """`value` as an array of float64 if it is a number or a full nested list of numbers, else None."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" else None


def compare_files(reference: Path, value: Path, rtol: float, atol: float) -> tuple[list[str], str | None]:
    """Differences between two NAME.json files, and the reason if they cannot be compared.

    A figure made from images says under the top-level key "data" from which ones. Where this differs (BSDS500 on one
    machine, the bundled photographs on another) the numbers differ rightly, so they are not compared. Raises
    FileNotFoundError or ValueError: one of the files is missing; one is damaged.
    """
    a, b = (read_json(path, "file of numbers behind a figure", plain=False) for path in (reference, value))
    sources = [item.get("data") if isinstance(item, dict) else None for item in (a, b)]
    if sources[0] != sources[1] and all(isinstance(source, str) for source in sources):
        return [], f"made from {sources[1]} here, from {sources[0]} in the reference"
    return differences(a, b, rtol, atol), None
