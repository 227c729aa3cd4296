"""Every figure has an alternative text, and it goes where a figure is shown; headings come in order."""

import itertools
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from gnclib.suite import notebooks
from gnclib.suite.notebooks import MANIFEST, Figure

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/exercises/*.ipynb")])
PAGES += sorted([ROOT / "README.md", *ROOT.glob("notebooks/**/*.md"), *ROOT.glob("figures/*.md")])


@pytest.mark.parametrize("name", MANIFEST)
def test_a_figure_has_a_text_for_those_who_do_not_see_it(name):
    figure = MANIFEST[name]
    assert len(figure.alt.split()) >= 12, f"say in figures.toml, [alt], what is seen in {name}"
    assert figure.alt.endswith(".")
    assert not set(figure.alt) & set('[]"<>')  # they would end the text in Markdown or HTML
    assert f"![{figure.alt}]({name}.png)" in notebooks.gallery()


def test_a_written_notebook_describes_each_picture_by_the_figure_that_its_cell_saves(tmp_path):
    picture = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "x"}}
    source = 'plots.save(\n    fig, "one", out)\nplots.save(other, "two", out)'
    outputs = [nbformat.from_dict(json.loads(json.dumps(picture))) for _ in range(2)]
    cells = [nbformat.v4.new_code_cell(source, outputs=outputs), nbformat.v4.new_code_cell("1")]
    node = nbformat.v4.new_notebook(cells=cells)
    notebooks.describe(
        node, {"two": Figure("n", "Two", alt="Seen in two."), "one": Figure("n", "One", alt="Seen.")}
    )
    found = [output.metadata["image/png"]["alt"] for output in node.cells[0].outputs]
    assert found == ["Seen.", "Seen in two."]
    written = notebooks.load(notebooks.write(node, tmp_path / "n.ipynb"))  # cleaning keeps it
    assert [output.metadata["image/png"]["alt"] for output in written.cells[0].outputs] == found


def test_the_texts_in_the_notebooks_are_those_of_the_manifest():
    for path in notebooks.find().values():
        stored, described = notebooks.load(path), notebooks.load(path)
        notebooks.describe(described)
        assert stored == described, f"{path.name}: run 'gnc notebooks --only {path.stem}'"


def test_the_contact_sheet_of_the_guide_shows_the_figures_as_they_are():
    kept = Image.open(ROOT / "notebooks" / "guide" / "contact_sheet.png").convert("RGB")
    fresh = notebooks.contact_sheet(ROOT / "figures")
    assert kept.size == fresh.size
    off = np.abs(np.asarray(kept, float) - np.asarray(fresh, float)).reshape(kept.height // 190, 190, -1)
    assert off.mean((1, 2)).max() < 4, "run 'gnc figures --only' some notebook: it draws the sheet anew"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_headings_come_in_order(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    levels = [len(found) for found in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), re.M)]
    assert levels[:1] == [1]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
