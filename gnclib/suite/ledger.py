"""The ledger of claims: what the notebooks recorded, in claims.json and, for readers, in claims.md.

Two runs of a claim or of a figure are compared by their numbers, with a stated tolerance; a new matplotlib moves every
pixel of a picture. Array by array, the largest difference must not exceed
`atol + rtol * (largest finite magnitude in the reference array)`. Relative to the array and not to each entry, because
an entry near zero has no meaningful relative error.

The default rtol = 1e-3 has this reason: float32 sums taken in another order (another CPU, another number of threads)
differ by some 1e-6, and the iterations of the notebooks amplify that; a thousandth of the range of a curve is still
less than the width of its line. A figure that counts threshold crossings states its own tolerance in figures.toml.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from gnclib.io import decode, dumps, read_json, write_text
from gnclib.suite.claims import CLAIMS, MIME, Record, cell, claim
from gnclib.suite.rules import UNDECIDED, VERDICTS

_SOURCES = {"paper": "The paper's claims", "ours": "Beyond the paper"}
_INTRO = """\
# Claims ledger

What Kobler & Pock 2023 claim, and what the notebooks of this repository measured. Written by `gnc figures`: every
verdict is computed from the evidence by the rule printed beside it. A *verified identity* is true by algebra and was
checked to rounding. `graded(a, b)` holds if a is true, and with a caveat if only b is: in a narrower range.
`beyond_noise(margins, noise)` holds if all margins are larger than the noise, *does not hold* if one is as far below
zero, is a caveat if some are larger and the others positive, and else *undecided*.

A claim about learned priors is judged twice by the same rule: "verdict" is about ours, R_1 to R_3, which depart from
the paper (notebook 4, (a) to (g)), "on P" about P_1 to P_3, trained by the paper's recipe as restored. "Images" counts
the photographs or crops of each. "Quick" numbers come from the notebooks' small default settings, "full" ones from
`gnc figures --full`. The numbers of the paper's experiments are not known here; settings are our choice.
"""


class _File(TypedDict):
    records: list[dict[str, Any]]


def collect(notebook: Mapping[str, Any], name: str, mode: str) -> list[Record]:
    """The records in the outputs of an executed notebook, nbformat's object, in order.

    Its name and its mode, "quick" or "full", go into the records. Raises ValueError: a claim recorded twice, a verdict
    that does not follow from its evidence, or a claim that the source records but no output shows.
    """
    cells = [item for item in notebook["cells"] if item["cell_type"] == "code"]
    shown = [output["data"] for item in cells for output in item["outputs"] if "data" in output]
    found = [Record.from_json(data[MIME]) for data in shown if MIME in data]
    records = [replace(record, notebook=name, mode=mode) for record in found]
    counts = Counter(record.id for record in records)
    if twice := [id for id, count in counts.items() if count > 1]:
        raise ValueError(f"{name} records a claim twice: {', '.join(twice)}")
    source = "\n".join("".join(item["source"]) for item in cells)
    if lost := [id for id in re.findall(r"\brecord\(\s*[\"']([\w.-]+)[\"']", source) if id not in counts]:
        raise ValueError(
            f"{name} records {', '.join(lost)} but does not show the record: make it the last expression of its "
            "cell, or display() it"
        )
    return records


def load(path: Path) -> list[Record]:
    """The records of a claims.json, [] where there is none. Verdicts are computed anew.

    Raises ValueError: the file is no ledger, or a verdict in it does not follow from its numbers.
    """
    if not Path(path).exists():
        return []
    hint = "delete it and run 'gnc figures'"
    found = read_json(path, f"claims ledger ({hint})", _File)
    try:
        return [Record.from_json(data) for data in found["records"]]
    except ValueError as error:
        raise ValueError(f"{path} is no claims ledger: {error}; {hint}") from None


def changes(old: Iterable[Record], new: Iterable[Record]) -> dict[str, str]:
    """The claims that two ledgers do not agree on, each with the first difference.

    Verdicts must be equal, and the evidence within the tolerance of the claim.
    """
    before, after = ({record.id: record for record in records} for records in (old, new))
    found = dict.fromkeys(sorted(before.keys() ^ after.keys()), "recorded in only one of the two")
    for id in before.keys() & after.keys():
        item, a, b = claim(id), before[id], after[id]
        if a.verdict != b.verdict:
            found[id] = f"{b.verdict!r} instead of {a.verdict!r}"
        elif unlike := differences(a.evidence, b.evidence, item.rtol, item.atol):
            found[id] = unlike[0]
    return found


def merge(
    old: Iterable[Record], new: Iterable[Record], run: Iterable[str], known: Iterable[str]
) -> list[Record]:
    """Put new records, of a run, in place of old ones, in the order of the claims.

    An old record stays where the new one says the same within the tolerance. Old records of a notebook that is not
    among the known ones, or that was run and no longer makes them, go.
    """
    run, known = set(run), set(known)
    before = {record.id: record for record in old}
    merged = {id: record for id, record in before.items() if record.notebook in known - run}
    for record in new:
        last = before.get(record.id)
        same = last and replace(record, evidence=last.evidence) == last and not changes([last], [record])
        merged[record.id] = last if same else record
    return [merged[id] for id in CLAIMS if id in merged]


def save(out: Path, records: Iterable[Record]) -> None:
    """Write out/claims.json and out/claims.md, each atomically."""
    records = list(records)
    write_text(Path(out) / "claims.json", dumps({"records": [record.to_json() for record in records]}))
    write_text(Path(out) / "claims.md", to_markdown(records))


def to_markdown(records: Iterable[Record]) -> str:
    """The ledger as a Markdown page: counts, one table per source, then evidence and rule of every tested claim."""
    tested = {record.id: record for record in records}
    verdicts = {id: tested[id].verdict if id in tested else UNDECIDED for id in CLAIMS}
    lines = [_INTRO, "| | " + " | ".join(VERDICTS) + " |", "|---|" + "---:|" * len(VERDICTS)]
    for source, title in _SOURCES.items():
        counts = Counter(verdicts[id] for id, item in CLAIMS.items() if item.source == source)
        lines.append(f"| {title} | " + " | ".join(str(counts[verdict]) for verdict in VERDICTS) + " |")
    learned = [id for id, item in CLAIMS.items() if item.source == "paper" and item.learned and id in tested]
    on_p = Counter(tested[id].restored[0] for id in learned)
    lines.append("| of the paper's on P | " + " | ".join(str(on_p[verdict]) for verdict in VERDICTS) + " |")
    for source, title in _SOURCES.items():
        head = "| id | claim | where | verdict | images | on P | images | notebook |"
        lines += ["", f"## {title}", "", head, "|" + "---|" * 8]
        for id, item in CLAIMS.items():
            if item.source == source:
                made = f"{tested[id].notebook} ({tested[id].mode})" if id in tested else "- (not run)"
                seen, on_p = "", ("", None)
                if item.learned:
                    seen = tested[id].evidence.get("images", "") if id in tested else ""
                    on_p = tested[id].restored if id in tested else ("not measured", None)
                row = (verdicts[id], seen, on_p[0], "" if on_p[1] is None else on_p[1], made)
                cells = (id, cell(item.sentence), cell(item.where), *row)
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "## Evidence and rules"]
    for id, made in tested.items():
        lines += ["", f"### {id}: {verdicts[id]} ({made.notebook}, {made.mode})", "", claim(id).sentence, ""]
        lines += [f"- evidence: {made.evidence_text()}", f"- rule: `{claim(id).rule_text()}`"]
        lines += [f"- note: {cell(made.note)}"] if made.note else []
    return "\n".join(lines) + "\n"


# --- comparison ---


def differences(reference: Any, value: Any, rtol: float, atol: float, name: str = "") -> list[str]:
    """Where two values, decoded JSON, differ by more than the tolerance of each array of numbers, in words.

    `name` is the place of the two in the whole, for the words.
    """
    if isinstance(reference, dict) and isinstance(value, dict):
        found = [f"{name}{key}: only in one of the two" for key in sorted(reference.keys() ^ value.keys())]
        for key in sorted(reference.keys() & value.keys()):
            found += differences(reference[key], value[key], rtol, atol, f"{name}{key}.")
        return found
    label, a, b = name.rstrip("."), _numbers(reference), _numbers(value)
    if a is None or b is None:
        if isinstance(reference, list) and isinstance(value, list) and len(reference) == len(value):
            pairs = zip(reference, value, strict=True)
            return [d for i, (r, v) in enumerate(pairs) for d in differences(r, v, rtol, atol, f"{name}{i}.")]
        return [] if reference == value else [f"{label}: {value!r} instead of {reference!r}"]
    if a.shape != b.shape:
        return [f"{label}: shape {b.shape} instead of {a.shape}"]
    finite = np.isfinite(a)
    if not np.array_equal(np.where(finite, 0, a), np.where(np.isfinite(b), 0, b), equal_nan=True):
        return [f"{label}: nan or infinite at other places"]
    scale = np.abs(a[finite]).max(initial=0.0)
    worst, allowed = np.abs(a[finite] - b[finite]).max(initial=0.0), atol + rtol * scale
    if worst <= allowed:
        return []
    why = f"(atol {atol:g} + rtol {rtol:g} * {scale:.3g})"
    return [f"{label}: off by {worst:.3g}, allowed {allowed:.3g} {why}"]


def _numbers(value: Any) -> np.ndarray | None:
    """`value` as an array of float64 if it is a number or a full nested list of numbers, else None."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" else None


def compare_files(reference: Path, value: Path, rtol: float, atol: float) -> tuple[list[str], str | None]:
    """Differences between two NAME.json files, and the reason if they cannot be compared.

    A figure made from images says under the top-level key "data" from which ones. Where this differs (BSDS500 on one
    machine, the bundled photographs on another) the numbers differ rightly, so they are not compared. Raises
    FileNotFoundError or ValueError: one of the files is missing; one is damaged.
    """
    a, b = (decode(read_json(path, "file of numbers behind a figure")) for path in (reference, value))
    sources = [item.get("data") if isinstance(item, dict) else None for item in (a, b)]
    if sources[0] != sources[1] and all(isinstance(source, str) for source in sources):
        return [], f"made from {sources[1]} here, from {sources[0]} in the reference"
    return differences(a, b, rtol, atol), None
