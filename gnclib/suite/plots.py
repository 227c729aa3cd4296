"""Figures: one style, one way to save, and the numbers beside every picture.

`save` writes NAME.png (for reading here), NAME.pdf (for print) and NAME.json (the numbers behind the figure). The files
hold no dates and no program names, so two runs give the same bytes, and they appear atomically. Pictures change with
every version of matplotlib; what a reproduction can be compared by are the numbers, so these are kept in JSON.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnclib.io import dumps, write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLLECT", "STYLE", "save", "tau_colours", "use_style"]

#: names a folder to which figures and claims go when a notebook is run without one of its own, as by ``make test``
COLLECT = "GNC_COLLECT"
STYLE = Path(__file__).with_name("gnclib.mplstyle")
_DIGITS = 8  # significant digits kept in NAME.json
_METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def use_style() -> None:
    """Switch matplotlib to the style of this project (`gnclib/gnclib.mplstyle`): print sizes, colour-blind safe."""
    import matplotlib.pyplot as plt

    plt.style.use(["default", str(STYLE)])


def save(
    fig: Figure, name: str, out: str | os.PathLike | None, numbers: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write a figure to ``out/name.png`` and ``out/name.pdf``, and its numbers to ``out/name.json``.

    Parameters
    ----------
    fig
        The figure; it stays open and unchanged, so a notebook can show it as well.
    name
        File name without suffix: lower case letters, digits, ``_`` and ``-``.
    out
        Folder, made where it is missing. ``""`` or None writes nothing, unless the variable `COLLECT` of the
        environment names a folder.
    numbers
        What the figure shows, by name: numbers, lists, arrays or tensors (8 significant digits are kept).

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ValueError
        A name that is no plain file name, or numbers that do not fit into JSON.
    NotADirectoryError
        `out` is a file.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(
            f"figure name {name!r}: use lower case letters, digits, '_' and '-', without a suffix"
        )
    text = None if numbers is None else dumps(dict(numbers), _DIGITS)
    out = out or os.environ.get(COLLECT)
    if not out:
        return []
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"out={str(out)!r} is a file: give a folder for the figures")
    import matplotlib

    files = []
    for suffix, metadata in _METADATA.items():
        buffer = io.BytesIO()
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            fig.savefig(buffer, format=suffix, metadata=metadata)
        files.append(write_bytes(folder / f"{name}.{suffix}", buffer.getvalue()))
    if text is not None:
        files.append(write_text(folder / f"{name}.json", text))
    return files


def tau_colours(k: int) -> list[tuple[float, float, float, float]]:
    """`k` RGBA colours for curves of growing tau: blue is the smallest, red the largest, as in the paper's Figure 2.

    The lower 60 % of matplotlib's "plasma": lightness rises with tau, so the order survives a grey printer and
    colour blindness.
    """
    from matplotlib import colormaps

    return [tuple(map(float, colormaps["plasma"](0.6 * i / max(k - 1, 1)))) for i in range(k)]
