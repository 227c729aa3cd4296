"""Sphinx extension: formulas become MathML when the book is built, so that a page needs no script and no network.

Browsers draw MathML themselves. An equation number, ``\\tag{7}``, goes beside its formula.
"""

import html
import re
import unicodedata

from docutils import nodes
from latex2mathml.converter import convert

TAG = re.compile(r"\\tag\*?\{((?:[^{}]|\{[^{}]*\})*)\}")

REPLACED = (  # what the converter does not know
    (re.compile(r"\\arg(?![A-Za-z])"), r"\\operatorname{arg}"),
    (re.compile(r"\\[bB]ig+[lr]?\s*(\\[lr](?:angle|[vV]ert))"), r"\1"),
)
STYLES = {
    "script": ("MATHEMATICAL SCRIPT", "SCRIPT"),
    "double-struck": ("MATHEMATICAL DOUBLE-STRUCK", "DOUBLE-STRUCK"),
    "bold": ("MATHEMATICAL BOLD", "BOLD"),
    "sans-serif": ("MATHEMATICAL SANS-SERIF", "SANS-SERIF"),
}


def styled(match: re.Match) -> str:
    """A letter in another alphabet as its own character: browsers ignore the attribute."""
    style, letter = match[1], match[2]
    for prefix in STYLES[style]:
        size = "CAPITAL" if letter.isupper() else "SMALL"
        try:
            return f"<mi>{unicodedata.lookup(f'{prefix} {size} {letter.upper()}')}</mi>"
        except KeyError:
            continue
    return match[0]


def formula(latex: str, display: str) -> str:
    """The MathML of a formula. Raises ValueError, with the formula, for what is not understood."""
    known = latex.strip()
    for pattern, replacement in REPLACED:
        known = pattern.sub(replacement, known)
    try:
        found = convert(known, display=display)
    except Exception as error:
        raise ValueError(f"cannot read the formula {latex!r}: {type(error).__name__} {error}") from error
    unknown = re.search(r"\\[A-Za-z]+", html.unescape(found))
    if unknown:
        raise ValueError(f"unknown command {unknown[0]} in the formula {latex!r}")
    return re.sub(rf'<mi mathvariant="({"|".join(STYLES)})">([A-Za-z])</mi>', styled, found)


def visit_inline(self, node):
    self.body.append(formula(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(self, node):
    latex, number = TAG.sub("", node.astext()), TAG.search(node.astext())
    self.body.append('<div class="formula">' + formula(latex, "block"))
    if number:
        text = number[1].strip()
        inside = formula(text.strip("$"), "inline") if text.startswith("$") else html.escape(text)
        self.body.append(f'<span class="number">({inside})</span>')
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
