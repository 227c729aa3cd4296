"""Drawing for Figure 2 of Kobler & Pock 2023: kernels as grey images, with the curves of their non-linearities below.

A set of curves is x and f of shape (S, C, N): S noise levels from small to large, C channels, N points of each curve.
Mid-grey is zero in every kernel image; each has its own contrast, and each panel its own vertical scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gnclib.suite.plots import tau_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Block", "columns_figure", "sheet"]


class Block(NamedTuple):
    """One layer: a `label`, kernel images (C, 1, s, s), and curves f over x, both (S, C, N)."""

    label: str
    kernels: np.ndarray
    x: np.ndarray
    f: np.ndarray


def columns_figure(blocks: Sequence[Block], sigmas: Sequence[float], width: float = 7.2) -> Figure:
    """Every block as a row of kernels above a row of curves, one column per channel.

    The layout is fixed in inches, so that the figure looks the same with any number of blocks.

    Parameters
    ----------
    blocks
        All with the same number of channels.
    sigmas
        The S noise levels, for the legend.
    width
        Of the figure, in inches.
    """
    columns = len(blocks[0].kernels)
    left, gap, image, curve, ticks, foot = 0.56, 0.1, 0.5, 0.55, 0.26, 0.46
    cell = (width - left - 0.06) / columns
    height = len(blocks) * (image + 0.05 + curve + ticks) + foot + 0.06
    fig = _figure(width, height)

    def axes(x: float, y: float, w: float, h: float):
        return fig.add_axes((x / width, y / height, w / width, h / height))

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
        fig.text(0.24 / width, middle, block.label, rotation=90, va="center", ha="center", fontsize=8)
        top -= image + 0.05 + curve + ticks
    _legend(fig, sigmas)
    return fig


def _figure(width: float, height: float) -> Figure:
    import matplotlib.pyplot as plt

    with plt.rc_context({"figure.constrained_layout.use": False}):  # axes are placed by hand
        return plt.figure(figsize=(width, height))


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


def sheet(
    block: Block, sigmas: Sequence[float], limit: float, columns: int = 12, width: float = 7.2
) -> Figure:
    """All channels of a layer, with one horizontal scale.

    Everything is drawn into one pair of axes, in units of cells; that is many times faster than an axes per panel.

    Parameters
    ----------
    block
        The layer.
    sigmas
        The S noise levels, for the legend.
    limit
        Curves are drawn for x from -limit to limit, and cut off beyond.
    columns
        Channels in a row.
    width
        Of the figure, in inches.
    """
    from matplotlib.collections import LineCollection

    rows, tall, foot, head = -(-len(block.kernels) // columns), 1.72, 0.46, 0.22
    unit = width / (columns + 0.2)
    height = rows * tall * unit + foot + head
    fig = _figure(width, height)
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
