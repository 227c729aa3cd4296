"""The book: the notebooks as an HTML site that needs no network to read (``make book``). Nothing is executed here."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

project = "gnclib"
author = "The gnclib founders"
copyright = "MIT licence"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
# MathJax, as in JupyterLab, in one file that fetches nothing: formulas become SVG when a page is opened, also offline.
(MATHJAX,) = find_spec("mathjax").submodule_search_locations
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "local"}}
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True  # $$ after a line of text is a formula on a line of its own, too
nb_render_markdown_format = "myst"  # tables and formulas in what cells show
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # would be fetched when a page is read
nb_merge_streams = True
exclude_patterns = ["book", "exercises/source", "**.ipynb_checkpoints"]
suppress_warnings = ["mystnb.unknown_mime_type", "myst.xref_missing"]  # links to files outside of the book
html_theme = "sphinx_book_theme"
html_title = "Learning gradually non-convex image priors: an executable paper"
html_static_path = ["static", f"{MATHJAX}/static/mathjax/es5/tex-svg.js"]
html_css_files = ["book.css"]
html_copy_source = False
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2}
html_theme_options["navbar_persistent"] = []  # one search box, in the side bar

ALT = tomllib.loads((Path(__file__).parents[2] / "gnclib/suite/figures.toml").read_text(encoding="utf-8"))[
    "alt"
]


def describe(app, doctree):
    """Give the pictures that a cell shows the alternative texts of the figures that it saves."""
    from docutils import nodes

    for cell in doctree.findall(
        lambda node: "cell" in node.get("classes", ()) if isinstance(node, nodes.Element) else False
    ):
        names = re.findall(r"\bsave\(\s*\w+,\s*[\"']([\w-]+)[\"']", cell.astext())
        for image, name in zip(cell.findall(nodes.image), names, strict=False):
            image["alt"] = ALT[name]


def setup(app):
    app.connect("doctree-read", describe)
