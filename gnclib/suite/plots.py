"""Figures: one style, one way to save, and the numbers beside every picture.

`save` writes NAME.png (for reading here), NAME.pdf (for print) and NAME.json (the numbers behind the figure). The files
hold no dates and no program names, so two runs give the same bytes, and they appear atomically. Pictures change with
every version of matplotlib; what a reproduction can be compared by are the numbers, so these are kept in JSON.

`columns_figure` and `sheet` draw Figure 2: kernels as grey images, with the curves of their non-linearities below.
Mid-grey is zero in every kernel image; each has its own contrast, and each panel its own vertical scale.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gnclib.io import dumps, write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLLECT", "STYLE", "Block", "columns_figure", "save", "sheet", "tau_colours", "use_style"]

#: names a folder to which figures and claims go when a notebook is run without one of its own, as by ``make test``
COLLECT = "GNC_COLLECT"
STYLE = Path(__file__).with_name("gnclib.mplstyle")
WIDTH = 7.2  # of the figures that are laid out by hand, in inches
_DIGITS = 8  # significant digits kept in NAME.json
_METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def use_style(full: bool = False) -> None:
    """Switch matplotlib to the style of this project (`gnclib/gnclib.mplstyle`): print sizes, colour-blind safe.

    `full`, the parameter of the notebook, is checked here, ValueError: papermill's ``-p full no`` is the text "no",
    which would count as true.
    """
    import matplotlib.pyplot as plt

    if not isinstance(full, bool):
        raise ValueError(f"full must be true or false, got {full!r}: write -p full True or -p full False")
    plt.style.use(["default", str(STYLE)])


def save(
    fig: Figure, name: str, out: str | os.PathLike | None, numbers: Mapping[str, Any] | None = None, frames=()
) -> list[Path]:
    """Write a figure to ``out/name.png`` and ``out/name.pdf``, and its numbers to ``out/name.json``; return their
    paths.

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

    Raises
    ------
    ValueError, NotADirectoryError
        A name that is no plain file name, or numbers that do not fit into JSON; `out` is a file.
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
    """`k` RGBA colours for curves of growing tau: blue is the smallest, red the largest, as in the paper's Figure 2.

    The lower 60 % of matplotlib's "plasma": lightness rises with tau, so the order survives a grey printer and
    colour blindness.
    """
    from matplotlib import colormaps

    return [tuple(map(float, colormaps["plasma"](0.6 * i / max(k - 1, 1)))) for i in range(k)]


# --- Figure 2 -------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """One layer: a `label`, kernel images (C, 1, s, s), and curves f over x, both (S, C, N).

    S noise levels from small to large, C channels, N points of each curve.
    """

    label: str
    kernels: np.ndarray
    x: np.ndarray
    f: np.ndarray


def columns_figure(blocks: Sequence[Block], sigmas: Sequence[float]) -> Figure:
    """Every block as a row of kernels above a row of curves, one column per channel; all with as many channels.

    The layout is fixed in inches, so that the figure looks the same with any number of blocks; the legend has the S
    noise levels `sigmas`.
    """
    columns = len(blocks[0].kernels)
    left, gap, image, curve, ticks, foot = 0.56, 0.1, 0.5, 0.55, 0.26, 0.46
    cell = (WIDTH - left - 0.06) / columns
    height = len(blocks) * (image + 0.05 + curve + ticks) + foot + 0.06
    fig = _figure(height)

    def axes(x: float, y: float, w: float, h: float):
        return fig.add_axes((x / WIDTH, y / height, w / WIDTH, h / height))

    top = height - 0.06
    for block in blocks:
        for k in range(columns):
            x = left + k * cell
            _kernel(
                axes(x + (cell - gap - image) / 2 + gap / 2, top - image, image, image), block.kernels[k, 0]
            )
            ax = axes(x + gap / 2, top - image - 0.05 - curve, cell - gap, curve)
            _curves(ax, block.x[:, k], block.f[:, k])
        middle = (top - (image + 0.05 + curve) / 2) / height
        fig.text(0.24 / WIDTH, middle, block.label, rotation=90, va="center", ha="center", fontsize=8)
        top -= image + 0.05 + curve + ticks
    _legend(fig, sigmas)
    return fig


def _figure(height: float) -> Figure:
    import matplotlib.pyplot as plt

    with plt.rc_context({"figure.constrained_layout.use": False}):  # axes are placed by hand
        return plt.figure(figsize=(WIDTH, height))


def _kernel(ax, kernel: np.ndarray) -> None:
    limit = np.abs(kernel).max()
    ax.imshow(kernel, vmin=-limit, vmax=limit)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set(visible=True, linewidth=0.5)


def _curves(ax, x: np.ndarray, f: np.ndarray) -> None:
    for xs, fs, colour in zip(x, f, tau_colours(len(x)), strict=True):
        ax.plot(xs, fs, color=colour, ls="-", lw=0.9)
    ax.grid(False)
    ax.axvline(0, color="0.8", lw=0.5, ls="-", zorder=0)
    ax.spines["left"].set_visible(False)
    _few_ticks(ax)
    ax.tick_params(labelsize=6, length=2, pad=1)
    ax.set_yticks([])


def _few_ticks(ax) -> None:
    """Ticks at 0 and at the largest round number on either side, so that neighbours' labels stay apart."""
    from matplotlib.ticker import MaxNLocator

    low, high = ax.get_xlim()
    widest = max(-low, high)
    digit = 10.0 ** np.floor(np.log10(widest))
    round_number = max(m * digit for m in (1, 2, 5) if m * digit <= widest)
    ticks = [v for v in (-round_number, 0.0, round_number) if low <= v <= high]
    if len(ticks) > 1:
        ax.set_xticks(ticks, labels=[f"{v:g}".replace("-", "\N{MINUS SIGN}") for v in ticks])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10], min_n_ticks=2))


def _legend(fig: Figure, sigmas: Sequence[float]) -> None:
    import matplotlib.pyplot as plt

    colours = tau_colours(len(sigmas))
    handles = [
        plt.Line2D([], [], color=c, ls="-", label=rf"$\sigma={s:.2g}$")
        for c, s in zip(colours, sigmas, strict=True)
    ]
    title = r"smoothing $\tau=\log\sigma$, from the smallest to the largest"
    fig.legend(
        handles=handles, loc="lower center", ncols=len(sigmas), title=title, fontsize=7, title_fontsize=7
    )


def sheet(block: Block, sigmas: Sequence[float], limit: float, columns: int = 12) -> Figure:
    """All channels of a layer, with one horizontal scale for all: x from -limit to limit, cut off beyond.

    Everything is drawn into one pair of axes, in units of cells; that is many times faster than an axes per panel.
    """
    from matplotlib.collections import LineCollection

    rows, tall, foot, head = -(-len(block.kernels) // columns), 1.72, 0.46, 0.22
    unit = WIDTH / (columns + 0.2)
    height = rows * tall * unit + foot + head
    fig = _figure(height)
    ax = fig.add_axes((0, foot / height, 1, rows * tall * unit / height))
    segments, colours, baselines, zeros = [], [], [], []
    for k, kernel in enumerate(block.kernels[:, 0]):
        x0, y0 = k % columns + 0.2, -(k // columns) * tall
        contrast = np.abs(kernel).max()
        box = (x0 + 0.02, x0 + 0.78, y0 - 0.78, y0 - 0.02)
        ax.imshow(kernel, vmin=-contrast, vmax=contrast, extent=box, zorder=1)
        bottom, high = y0 - 1.52, 0.66
        parts = _normalised(block.x[:, k], block.f[:, k], limit)
        for part, colour in zip(parts, tau_colours(len(parts)), strict=True):
            segments.append(part * (0.4, high) + (x0 + 0.4, bottom))
            colours.append(colour)
        baselines.append([(x0, bottom - 0.03), (x0 + 0.8, bottom - 0.03)])
        zeros.append([(x0 + 0.4, bottom - 0.03), (x0 + 0.4, bottom + high)])
    ax.add_collection(LineCollection(zeros, colors="0.85", linewidths=0.5, zorder=0))
    ax.add_collection(LineCollection(baselines, colors="0.3", linewidths=0.5))
    ax.add_collection(LineCollection(segments, colors=colours, linewidths=0.8))
    ax.set(xlim=(0, columns + 0.2), ylim=(-rows * tall, 0.0), aspect="auto")
    ax.set_axis_off()
    fig.text(0.5, 1 - 0.5 * head / height, block.label, ha="center", va="center", fontsize=8)
    _legend(fig, sigmas)
    return fig


def _normalised(x: np.ndarray, f: np.ndarray, limit: float) -> list[np.ndarray]:
    """Curves of one panel in units of it: x / limit in [-1, 1], f between its lowest (0) and highest (1) value.

    x, f: (S, N). What lies beyond the limit is cut off and does not count for the height. Returns S arrays (n, 2).
    """
    inside = np.abs(x) <= limit
    low, high = f[inside].min(), f[inside].max()
    scaled = (f - low) / max(high - low, 1e-300)
    return [np.stack([xs[m] / limit, fs[m]], 1) for xs, fs, m in zip(x, scaled, inside, strict=True)]
