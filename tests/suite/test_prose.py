"""The numbers in the prose of the notebooks, against the outputs beside them and against the stored results."""

import json
import re
from pathlib import Path

import nbformat
import pytest
import torch

from gnclib.foe import WEIGHTS
from gnclib.gmm import figure1_mixture
from gnclib.studies import ablations, patches, problems
from gnclib.suite import claims

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = re.compile(
    r"arXiv:\S+|(?:Theorem|Corollary|[Ss]ection) \d\.\d|\]\([^)]*\)|`[^`]*`"
)  # digits, no numbers
NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?=\s?%|\s?dB)|(?<![\w.])(\d+\.\d+)(?![\d.])")
IN_CODE = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def text(path: Path) -> str:
    """The prose of a notebook, without its exercises, whose numbers are suggestions."""
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    return "\n".join(re.sub(r"(?m)^## (\d+\. )?Exercises$[\s\S]*?(?=^## |\Z)", "", cell) for cell in cells)


def printed(path: Path):
    """The numbers of the code and of its outputs."""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            yield from IN_CODE.findall(cell.source)
            for output in cell.outputs:
                texts = output.get("text", ""), *output.get("data", {}).values()
                yield from IN_CODE.findall(
                    "\n".join(x for x in texts if isinstance(x, str) and len(x) < 20_000)
                )


def stored(*names: str) -> dict:
    return json.loads(WEIGHTS.joinpath(*names).read_text(encoding="utf-8"))


def claim(id: str) -> dict:
    """The evidence that the ledger stored with a claim."""
    records = json.loads((FOLDER.parent / "figures" / "claims.json").read_text(encoding="utf-8"))["records"]
    (found,) = [record["evidence"] for record in records if record["id"] == id]
    return found


def mean_psnr(*names: str) -> float:
    mean = stored(*names)["psnr_by_sigma"]["25"]
    assert len(mean["images"]) == 68
    return mean["mean"]


def ratio(over: str, under: str) -> tuple[float, float]:
    """The smallest and the largest ratio of two bounds of patches, over their sizes."""
    ratios = [getattr(row, over) / getattr(row, under) for row in patches.load().rows["sizes"]]
    return min(ratios), max(ratios)


def views(side: int) -> float:
    """How many views of an image of that width are taken, each as wide as the image."""
    measured = problems.PROBLEMS["tomography"].measure(torch.zeros(1, 1, side, side), torch.Generator())
    return measured.y.numel() / side


def figure(name: str) -> dict:
    """The numbers behind a committed figure."""
    return json.loads((FOLDER.parent / "figures" / f"{name}.json").read_text(encoding="utf-8"))


#: of the shipped P_1, in a page of the guide, of which a test computes it
GUIDED = re.compile(r"an eigenvalue of -(\d\.\d+) there")
# Numbers in the prose that no cell of the notebook prints or sets: a function computes them, or a text says whose
# they are.
ELSEWHERE = {
    "00_the_paper_in_fifteen_minutes": {"27.6": lambda: figure("overview_eye")["psnr"][-1]},
    "03_score_matching": {"0.42": lambda: figure1_mixture().convexity_threshold((-1.0, 1.0)) ** 0.5},
    "08_ablations": {
        "3.87": lambda: float(GUIDED.search((FOLDER / "guide" / "priors.md").read_text()).group(1))
    },
    "appendix_robustness": {"30.71": "cited, with its source"},
    "appendix_inverse_problems": {"0.005": lambda: problems.PROBLEMS["tomography"].sigma},
}

# Sentences whose numbers are words, or come from files of results: the text, and a function that says if it is true.
SENTENCES = [
    ("06_inverse_problems", "28.63 dB (68 images, not clipped, seed k; shorter steps without learning 28.47)", lambda: (
        round(mean_psnr("R1", "evaluation_gnc.json"), 2) == 28.47
        and round(mean_psnr("R1-denoise-25", "evaluation.json"), 2) == 28.63
        and round(mean_psnr("R1", "evaluation.json"), 2) == 28.41
    )),
    ("08_ablations", "with nineteen variants and seven measures", lambda: (
        len({run.variant for run in ablations.load(ablations.SHIPPED).rows["runs"]}) == 1 + 19
    )),
    ("08_ablations", "no damping, a hundred thousand iterations", lambda: (
        {stored(name, "training.json")["iterations"] for name in ("P1", "P2", "P3")} == {100_000}
    )),
    ("appendix_inverse_problems", "along the lines of 45 views", lambda: views(192) == 45),
    ("appendix_inverse_problems", "22 for the crop of 96 pixels", lambda: views(96) == 22),
    ("appendix_beyond_the_line", "on 51 % of the runs (17 % without smoothing)", lambda: (
        f"{claim('X-attain')['gnc']:.0%} {claim('X-attain')['no_smoothing']:.0%}" == "51% 17%"
    )),
    ("appendix_beyond_the_line", "about three to four times lower", lambda: (
        [round(end) for end in ratio("edge", "cube")] == [3, 4]
    )),
    ("appendix_beyond_the_line", "up to a factor between two and three in", lambda: (
        2 < ratio("theorem", "edge")[0] and ratio("theorem", "edge")[1] < 3
    )),
    ("appendix_beyond_the_line", "(in the ledger, `R-convex` does not hold)", lambda: (
        float(claim("R-convex")["smallest_at_largest_sigma_R_1"]) < 0
    )),
]  # fmt: skip


def unexplained(prose: str, known: set[float], elsewhere: dict) -> list[str]:
    """Where the prose has a number that rounds no known one and none of `elsewhere`; what `elsewhere` has in vain."""
    unknown, used = [], set()
    for match in NUMBER.finditer(NAMES.sub("", prose)):
        number = match.group(1) or match.group(2)
        digits = len(number.partition(".")[2])
        if any(float(number) in (round(a, digits), round(100 * a, digits)) for a in known):
            continue
        used.add(number)
        source = elsewhere.get(number)
        if source is None or (callable(source) and round(source(), digits) != float(number)):
            unknown.append(match.string[max(match.start() - 40, 0) : match.end() + 20])
    gone = (f"{number}: it has gone, or a cell prints it now" for number in elsewhere.keys() - used)
    return unknown + sorted(gone)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_number_in_the_prose_is_computed(path):
    """Decimals, percentages and decibels agree with a number of a cell, rounded as in the prose."""
    assert unexplained(text(path), set(map(float, printed(path))), ELSEWHERE.get(path.stem, {})) == []


@pytest.mark.parametrize(("name", "sentence", "true"), SENTENCES, ids=[item[1] for item in SENTENCES])
def test_sentences_with_numbers_are_those_of_the_stored_results(name, sentence, true):
    assert sentence in text(FOLDER / f"{name}.ipynb")
    assert true()


def test_the_verdicts_of_the_overview_are_those_of_the_ledger():
    """It reads them from the ledger when it runs; the stored output must not lag behind."""
    records = json.loads((FOLDER.parent / "figures" / "claims.json").read_text(encoding="utf-8"))["records"]
    now = {claims.claim(record["id"]).sentence: record["verdict"] for record in records}
    cells = nbformat.read(FOLDER / "00_the_paper_in_fifteen_minutes.ipynb", 4).cells
    shown = [
        output.data.get("text/markdown", "")
        for c in cells
        for output in c.get("outputs", [])
        if "data" in output
    ]
    rows = re.findall(r"\| \*\*(.+)\*\* \| (.+) \|", "\n".join(shown))
    assert len(rows) == 3
    assert all(now[sentence] == verdict for verdict, sentence in rows)


#: notebooks that are still longer than they should be
TOO_LONG = set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_enough_to_be_read(path):
    """At most 2,200 words, 250 lines of code and 30 cells; the overview 1,500 words and 80 lines."""
    cells = nbformat.read(path, 4).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    code = [cell.source.splitlines() for cell in cells if cell.cell_type == "code"]
    lines = sum(bool(line.strip()) for source in code for line in source)
    most = (1500, 80, 30) if path.stem.startswith("00") else (2200, 250, 30)
    fits = all(a <= b for a, b in zip((words, lines, len(cells)), most, strict=True))
    assert fits != (path.stem in TOO_LONG), f"{words} words, {lines} lines of code, {len(cells)} cells"
