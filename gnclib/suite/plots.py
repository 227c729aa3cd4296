"""Figures: one style, one way to save, and the numbers beside every picture.

`save` writes NAME.png (for reading here), NAME.pdf (for print) and NAME.json (the numbers behind the figure). The files
hold no dates and no program names, so two runs give the same bytes, and they appear atomically. Pictures change with
every version of matplotlib; what a reproduction can be compared by are the numbers, so these are kept in JSON.

`columns_figure` and `sheet` draw Figure 2: kernels as grey images, with the curves of their non-linearities below.
Mid-grey is zero in every kernel image; each has its own contrast, and each curve its own range and height.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gnclib.io import dumps, write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: names a folder to which figures and claims go when a notebook is run without one of its own, as by ``make test``
COLLECT = "GNC_COLLECT"
#: set where a program runs the notebook, and nobody moves a slider
HEADLESS = "GNC_HEADLESS"
#: set where nobody looks at the notebook either, as by ``gnc figures``: figures are saved, and not drawn there again
UNSEEN = "GNC_UNSEEN"
STYLE = Path(__file__).with_name("gnclib.mplstyle")
WIDTH = 7.2  # of the figures that are laid out by hand, in inches
_DIGITS = 8  # significant digits kept in NAME.json
_METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}


def use_style(full: bool = False) -> None:
    """Switch matplotlib to the style of this project (`gnclib/suite/gnclib.mplstyle`): print sizes, colour-blind safe.

    `full`, the parameter of the notebook, is checked here, ValueError: papermill's ``-p full no`` is the text "no",
    which would count as true.
    """
    import matplotlib.pyplot as plt

    if not isinstance(full, bool):
        raise ValueError(f"full must be true or false, got {full!r}: write -p full True or -p full False")
    plt.style.use(["default", str(STYLE)])
    if UNSEEN in os.environ and "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        shell.run_line_magic("config", "InlineBackend.figure_formats = set()")


def sliders(of: str = "t") -> bool:
    """Whether a notebook shows its sliders, of `of`; says so if not. Run by a program they are left out, since nbclient
    sometimes waits forever for a cell with widgets."""
    shown = HEADLESS not in os.environ and find_spec("ipywidgets") is not None
    if not shown:
        print(f"in JupyterLab with the package ipywidgets a slider for {of} appears here")
    return shown


def save(
    fig: Figure, name: str, out: str | os.PathLike | None, numbers: Mapping[str, Any] | None = None, frames=()
) -> list[Path]:
    """Write a figure to ``out/name.png`` and ``out/name.pdf``, and its numbers to ``out/name.json``; return their
    paths.

    The figure stays open, so that a notebook can show it as well; its parts stay where the first file has them, for
    to lay them out takes as long as to draw. The folder is made where it is missing;
    ``frames`` are sliders of the notebook, whose last position the file shows.
    ``""`` or None writes nothing, unless the variable `COLLECT` of the environment names a folder. Numbers, what the
    figure shows by name, are numbers, lists, arrays or tensors (8 significant digits are kept). Raises ValueError or
    NotADirectoryError: a name not of lower case letters, digits, ``_`` and ``-``, or numbers that do not fit into JSON;
    `out` is a file.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"figure name {name!r}: use lower case letters, digits, '_' and '-', and no suffix")
    _turn_to(frames, -1)
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
        fig.set_layout_engine("none")
        files.append(write_bytes(folder / f"{name}.{suffix}", buffer.getvalue()))
    if frames:
        write_bytes(folder / f"{name}.png", _animated(fig, frames))
    if text is not None:
        files.append(write_text(folder / f"{name}.json", text))
    return files


def _turn_to(frames: Sequence, k: int) -> None:
    for artist in (artist for frame in frames for artist in frame):
        artist.set_visible(artist in frames[k])


def _animated(fig: Figure, frames: Sequence) -> bytes:
    """An animated PNG, ten pictures a second, that rests at its end and begins again."""
    from PIL import Image

    shots = []
    for k in range(len(frames)):
        _turn_to(frames, k)
        fig.savefig(shot := io.BytesIO(), format="png", dpi=100)
        shots.append(Image.open(shot).convert("RGB"))
    times = [100] * (len(shots) - 1) + [2500]
    shots[0].save(made := io.BytesIO(), "PNG", save_all=True, append_images=shots[1:], duration=times)
    return made.getvalue()


def tau_colours(k: int) -> list[tuple[float, float, float, float]]:
    """`k` RGBA colours for curves of growing tau, from dark blue to light orange: the order survives a grey printer."""
    from matplotlib import colormaps

    return [tuple(map(float, colormaps["plasma"](0.72 * i / max(k - 1, 1)))) for i in range(k)]


# --- Figure 2 -------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """One row: a `label`, kernel images (C, 1, s, s), and curves f over x, both (S, C, N).

    S noise levels from small to large, C channels, N equally spaced points of each curve. The best polynomial of the
    `degree` is drawn dashed below each curve, none where it is 0.
    """

    label: str
    kernels: np.ndarray
    x: np.ndarray
    f: np.ndarray
    degree: int = 2


def curve_parts(x: np.ndarray, f: np.ndarray, degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A curve (N,) in units of its own range and height: points (N, 2) in [0, 1]^2, its best polynomial, its minima.

    The minima are those that `gnclib.foe.curves.local_minima` counts at a prominence of 1 % of the height.
    """
    from scipy.signal import find_peaks

    u = (x - x[0]) / (x[-1] - x[0])
    v = (f - f.min()) / max(np.ptp(f), 1e-300)
    curve, fit = np.stack([u, v], 1), np.polynomial.Polynomial.fit(u, v, degree)(u)
    return curve, np.stack([u, fit], 1), curve[find_peaks(-v, prominence=0.01)[0]]


def columns_figure(blocks: Sequence[Block], sigmas: Sequence[float], title: str = "") -> Figure:
    """Every block as a row of kernels, and below each kernel its curves, from the smallest sigma up to the largest.

    Each curve spans its own range and height (`curve_parts`), a dot marks a minimum, and a short stroke below a curve
    where its argument is 0. The layout is in inches; the legend has the S noise levels `sigmas`.
    """
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    labelled, columns = any(block.label for block in blocks), max(len(block.kernels) for block in blocks)
    left, foot, head, shift, tall = 0.5 if labelled else 0.1, 0.5, 0.3 if title else 0.06, 0.19, 0.27
    cell = (WIDTH - left - 0.06) / columns
    image, curves = min(0.5, 0.8 * cell), (len(sigmas) - 1) * shift + tall
    row = image + 0.06 + curves + 0.2
    height, colours = len(blocks) * row + foot + head, tau_colours(len(sigmas))
    with plt.rc_context({"figure.constrained_layout.use": False}):  # placed by hand
        fig = plt.figure(figsize=(WIDTH, height), layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    drawn, fits, zeros, dots, centred = [], [], [], [], {"va": "center", "ha": "center"}
    for number, block in enumerate(blocks):
        top = height - head - number * row
        for k, kernel in enumerate(block.kernels[:, 0]):
            x0, contrast = left + k * cell, np.abs(kernel).max()
            middle = x0 + (cell - image) / 2
            box = (middle, middle + image, top - image, top)
            ax.imshow(kernel, vmin=-contrast, vmax=contrast, extent=box)
            for level, colour in enumerate(colours):
                x, f = block.x[level, k], block.f[level, k]
                scale = np.array([cell - 0.14, tall])
                origin = np.array([x0 + 0.07, top - image - 0.06 - curves + level * shift])
                curve, fit, minima = (part * scale + origin for part in curve_parts(x, f, block.degree))
                drawn.append(curve)
                fits += [fit] if block.degree else []
                dots += [(*point, colour) for point in minima]
                if x[0] < 0 < x[-1]:
                    at = origin[0] - x[0] / (x[-1] - x[0]) * scale[0]
                    zeros.append([(at, origin[1] - 0.05), (at, origin[1])])
        ax.text(left / 2, top - (row - 0.2) / 2, block.label, rotation=90, fontsize=8, **centred)
    ax.add_collection(LineCollection(fits, colors="0.55", linewidths=0.7, linestyles="--"))
    ax.add_collection(LineCollection(zeros, colors="0.6", linewidths=0.6))
    ax.add_collection(LineCollection(drawn, colors=colours * (len(drawn) // len(colours)), lw=1, zorder=3))
    if dots:
        x, y, colour = zip(*dots, strict=True)
        ax.scatter(x, y, s=7, color=colour, zorder=4)
    ax.set(xlim=(0, WIDTH), ylim=(0, height), aspect="auto")
    ax.set_axis_off()
    fig.text(0.5, 1 - 0.5 * head / height, title, fontsize=8, **centred)
    pairs = zip(colours, sigmas, strict=True)
    handles = [plt.Line2D([], [], color=c, label=rf"$\sigma={s:.2g}$") for c, s in pairs]
    title = r"smoothing $\tau=\log\sigma$, from the smallest (bottom) to the largest (top)"
    small = {"fontsize": 7, "title_fontsize": 7}
    fig.legend(handles=handles, loc="lower center", ncols=len(sigmas), title=title, **small)
    return fig


def sheet(block: Block, sigmas: Sequence[float], columns: int = 12) -> Figure:
    """All channels of a layer, in rows of so many columns, as `columns_figure` draws them."""
    parts = [slice(k, k + columns) for k in range(0, len(block.kernels), columns)]
    rows = [Block("", block.kernels[p], block.x[:, p], block.f[:, p], block.degree) for p in parts]
    return columns_figure(rows, sigmas, block.label)
