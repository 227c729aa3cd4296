"""Logs of runs."""

from __future__ import annotations

import os

from gnclib.io.reading import LARGEST_JSON, read_bytes


def read_log(path: str | os.PathLike, columns: str) -> list[list[float]]:
    """The rows of a log.csv with these columns; the first one counts steps, which rise from row to row.

    The means of a row without steps are nan; no number is infinite.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is no such log; the message says in which line.
    """
    text = read_bytes(path, LARGEST_JSON).decode("utf-8", errors="replace")
    first, *lines = text.split("\n")
    if first != columns or lines[-1:] != [""]:
        raise ValueError(f"{path} is no log with the columns {columns}, or its end is missing")
    found: list[list[float]] = []
    for number, line in enumerate(lines[:-1], 2):
        try:
            row = [number_of_log(part) for part in line.split(",")]
            if len(row) != columns.count(",") + 1 or row[0] != int(row[0]) or row[0] < 0:
                raise ValueError("these are not its columns")
            if found and row[0] <= found[-1][0]:
                raise ValueError("its step does not come after the one before")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, {line[:80]!r}: {error}") from None
        found.append(row)
    return found


def number_of_log(text: str) -> float:
    """A number as a log has it: digits, sign, point and exponent, or nan. Raises ValueError."""
    if text != "nan" and not set(text) <= set("0123456789+-.e"):
        raise ValueError(f"{text[:30]!r} is no number")
    if abs(value := float(text)) >= 1e300:
        raise ValueError(f"{text[:30]} is too large")
    return value
