"""The declared figures (figures.toml): titles, alternative texts and tolerances; their gallery and contact sheet."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MANIFEST", "Figure", "Manifest", "contact_sheet", "describe", "gallery", "of"]

_SAVED = re.compile(r"\bsave\(\s*\w+,\s*[\"']([\w-]+)[\"']")


@dataclass(frozen=True)
class Figure:
    """A declared figure: its notebook, title, tolerance of its numbers (`gnclib.suite.compare`), and what is seen."""

    notebook: str
    title: str
    rtol: float = 1e-3
    atol: float = 1e-9
    alt: str = ""


def _declared() -> dict[str, Figure]:
    by_notebook = tomllib.loads(Path(__file__).with_name("figures.toml").read_text(encoding="utf-8"))
    alt = by_notebook.pop("alt")
    return {
        name: Figure(notebook, **({"title": item} if isinstance(item, str) else item), alt=alt.get(name, ""))
        for notebook, figures in by_notebook.items()
        for name, item in figures.items()
    }


#: every figure by its name
MANIFEST = _declared()
Manifest = Mapping[str, Figure]


def of(notebook: str, manifest: Manifest) -> dict[str, Figure]:
    """The figures of one notebook."""
    return {name: figure for name, figure in manifest.items() if figure.notebook == notebook}


def gallery(manifest: Manifest = MANIFEST) -> str:
    """A Markdown page for the folder of the figures: each with its title and files, under its notebook."""
    lines = [
        "# Figures",
        "",
        "All of them, by the notebook that makes them; written by `gnc figures`, as are the numbers behind each figure",
        "(JSON) and the [ledger of claims](claims.md).",
    ]
    for notebook in dict.fromkeys(figure.notebook for figure in manifest.values()):
        lines += ["", f"## {notebook}"]
        for name, figure in of(notebook, manifest).items():
            lines += ["", f"![{figure.alt or figure.title}]({name}.png)", ""]
            lines += [f"*{figure.title}.* [pdf]({name}.pdf), [numbers]({name}.json)"]
    return "\n".join(lines) + "\n"


def describe(node: Any, manifest: Manifest = MANIFEST) -> None:
    """Give each picture in a notebook (nbformat's object) the alternative text of the figure that its cell saves.

    It stands in the metadata of the output, where nbconvert, and GitHub with it, look for it.
    """
    for cell in node.cells:
        if cell.cell_type == "code":
            shown = [output for output in cell.outputs if "image/png" in output.get("data", {})]
            for output, name in zip(shown, _SAVED.findall(cell.source), strict=False):
                if name in manifest and manifest[name].alt:
                    output.metadata["image/png"] = {"alt": manifest[name].alt}


def contact_sheet(folder: Path, manifest: Manifest = MANIFEST, side: int = 190, columns: int = 6) -> Any:
    """All figures of a folder as small pictures with their names, a PIL image; `side` is that of a cell in pixels."""
    from PIL import Image, ImageDraw

    rows = -(-len(manifest) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    draw = ImageDraw.Draw(sheet)
    for k, name in enumerate(manifest):
        left, top = k % columns * side, k // columns * side
        with Image.open(folder / f"{name}.png") as picture:
            small = picture.convert("RGB")
        small.thumbnail((side - 10, side - 26))
        sheet.paste(small, (left + (side - small.width) // 2, top + 18 + (side - 26 - small.height) // 2))
        draw.text((left + 6, top + 3), name, fill="black")
    return sheet
