"""The figures of the project: which notebook makes which, as declared in figures.toml.

A figure is three files, NAME.png, NAME.pdf and NAME.json (the numbers behind it), written by `gnclib.suite.plots.save`.
A notebook that saves a figure which is not declared fails in ``gnc figures``, and so does one which does not save a
figure that is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MANIFEST", "SUFFIXES", "Figure", "gallery"]

SUFFIXES = (".png", ".pdf", ".json")


@dataclass(frozen=True)
class Figure:
    """A declared figure: its notebook, its title, and the tolerance of its numbers (`gnclib.suite.compare`)."""

    notebook: str
    title: str
    rtol: float = 1e-3
    atol: float = 1e-9


def _declared() -> dict[str, Figure]:
    notebooks = tomllib.loads(Path(__file__).with_name("figures.toml").read_text(encoding="utf-8"))
    return {
        name: Figure(notebook, **({"title": item} if isinstance(item, str) else item))
        for notebook, figures in notebooks.items()
        for name, item in figures.items()
    }


MANIFEST = _declared()


def gallery(manifest: Mapping[str, Figure] = MANIFEST) -> str:
    """A Markdown page for the folder of the figures: each with its title and files, under its notebook."""
    lines = [
        "# Figures",
        "",
        "All of them, by the notebook that makes them; written by `gnc figures`, as are the numbers behind each figure",
        "(JSON) and the [ledger of claims](claims.md).",
    ]
    for notebook in dict.fromkeys(figure.notebook for figure in manifest.values()):
        lines += ["", f"## {notebook}"]
        for name, figure in manifest.items():
            if figure.notebook == notebook:
                lines += ["", f"![{figure.title}]({name}.png)", ""]
                lines += [f"*{figure.title}.* [pdf]({name}.pdf), [numbers]({name}.json)"]
    return "\n".join(lines) + "\n"
