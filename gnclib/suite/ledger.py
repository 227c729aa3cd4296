"""The ledger file: records of claims taken from executed notebooks, kept in claims.json, shown in claims.md.

`collect` reads the records out of a notebook's outputs, `merge` puts those of freshly run notebooks in place of their
older ones and keeps the rest, and `to_markdown` writes the page that the README links to.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gnclib.io.files import dumps, write_text
from gnclib.io.reading import read_json
from gnclib.suite.claims import CLAIMS, MIME, VERDICTS, Record, cell, claim

__all__ = ["collect", "load", "merge", "save", "to_markdown", "worst"]

MODES = ("quick", "full")
Entry = dict[str, Any]  # what Record.to_json gives, and "mode": "quick" or "full"


def collect(notebook: Mapping[str, Any], name: str, mode: str) -> list[Entry]:
    """The records in the outputs of an executed notebook (as a dict), in order.

    Raises
    ------
    ValueError
        A record under the wrong notebook's name, a claim recorded twice, a verdict that does not follow from its
        evidence, or a claim that the source records but no output shows (it would get lost silently).
    """
    entries: list[Entry] = []
    expected: list[str] = []
    for item in notebook["cells"]:
        if item["cell_type"] != "code":
            continue
        expected += _recorded_ids("".join(item["source"]))
        for output in item["outputs"]:
            data = output.get("data", {}).get(MIME)
            if data is not None:
                entries.append(Record.from_json(data).to_json() | {"mode": mode})
    for entry in entries:
        claim(entry["id"])
        if entry["notebook"] != name:
            raise ValueError(f"{name} records claim {entry['id']} as notebook {entry['notebook']!r}")
    counts = Counter(entry["id"] for entry in entries)
    if twice := [id for id, count in counts.items() if count > 1]:
        raise ValueError(f"{name} records a claim twice: {', '.join(twice)}")
    if lost := [id for id in expected if id not in counts]:
        raise ValueError(
            f"{name} records {', '.join(lost)} but does not show the record: make it the last expression of its "
            "cell, or display() it"
        )
    return entries


def _recorded_ids(source: str) -> list[str]:
    """The ids in calls of `record("ID", ...)` or `claims.record("ID", ...)` in the source of a cell."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell with IPython magic
        return []
    ids = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            if called == "record" and node.args[0].value in {c.id for c in CLAIMS}:
                ids.append(node.args[0].value)
    return ids


def load(path: Path) -> list[Entry]:
    """The records of a claims.json, [] where there is none. Verdicts are computed anew.

    Raises
    ------
    ValueError
        The file is no ledger, or a verdict in it does not follow from its numbers.
    """
    if not Path(path).exists():
        return []
    entries = read_json(path, "claims ledger (delete it and run 'gnc figures')", {"records": [dict]})[
        "records"
    ]
    try:
        return [Record.from_json(entry).to_json() | {"mode": _mode(entry)} for entry in entries]
    except ValueError as error:
        raise ValueError(f"{path} is no claims ledger: {error}; delete it and run 'gnc figures'") from None


def _mode(entry: Entry) -> str:
    if (mode := entry.get("mode")) not in MODES:
        raise ValueError(f"the mode of a record must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def merge(
    old: Iterable[Entry], new: Iterable[Entry], run: Iterable[str], known: Iterable[str]
) -> list[Entry]:
    """Replace what the notebooks in `run` said before by `new`; keep the rest of `known` notebooks; ledger order."""
    run, known = set(run), set(known)
    ids = {item.id: place for place, item in enumerate(CLAIMS)}
    kept = [e for e in old if e["notebook"] not in run and e["notebook"] in known and e["id"] in ids]
    return sorted([*kept, *new], key=lambda e: (ids[e["id"]], e["notebook"]))


def worst(entries: Iterable[Entry]) -> str:
    """The verdict on a claim with several records: the least favourable one; "not yet tested" with none."""
    verdicts = [entry["verdict"] for entry in entries]
    return max(verdicts, key=VERDICTS.index) if verdicts else VERDICTS[-1]


def save(out: Path, entries: list[Entry]) -> None:
    """Write out/claims.json and out/claims.md, each atomically."""
    write_text(Path(out) / "claims.json", dumps({"records": entries}))
    write_text(Path(out) / "claims.md", to_markdown(entries))


_SOURCES = {"paper": "The paper's claims", "ours": "Beyond the paper"}
_INTRO = """\
# Claims ledger

What Kobler & Pock 2023 claim, and what the notebooks of this repository measured. Written by `gnc figures`: every
verdict is computed from the evidence by the rule printed beside it. A claim with several records gets the least
favourable of their verdicts. "Quick" numbers come from the notebooks' small default settings, "full" ones from
`gnc figures --full`. The numbers of the paper's experiments are not known here; settings are this project's choice.
"""


def to_markdown(entries: list[Entry]) -> str:
    """The ledger as a Markdown page: counts, one table per source, then evidence and rule of every tested claim."""
    by_id = {item.id: [e for e in entries if e["id"] == item.id] for item in CLAIMS}
    lines = [_INTRO, "| | " + " | ".join(VERDICTS) + " |", "|---|" + "---:|" * len(VERDICTS)]
    for source, title in _SOURCES.items():
        counts = Counter(worst(by_id[item.id]) for item in CLAIMS if item.source == source)
        lines.append(f"| {title} | " + " | ".join(str(counts[verdict]) for verdict in VERDICTS) + " |")
    for source, title in _SOURCES.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| id | claim | where | verdict | notebook |",
            "|---|---|---|---|---|",
        ]
        for item in CLAIMS:
            if item.source == source:
                tested = by_id[item.id]
                books = ", ".join(f"{e['notebook']} ({e['mode']})" for e in tested) or "-"
                row = (item.id, cell(item.sentence), cell(item.where), worst(tested), books)
                lines.append("| " + " | ".join(row) + " |")
    lines += ["", "## Evidence and rules"]
    for item in CLAIMS:
        for entry in by_id[item.id]:
            lines += ["", f"### {item.id}: {entry['verdict']} ({entry['notebook']}, {entry['mode']})", ""]
            lines += [item.sentence, "", *_details(entry)]
    return "\n".join(lines) + "\n"


def _details(entry: Entry) -> list[str]:
    item = Record.from_json(entry)
    lines = [f"- evidence: {item.evidence_text()}", f"- holds if: `{item.holds}`"]
    if item.caveat:
        lines.append(f"- holds with caveat if: `{item.caveat}`")
    if item.note:
        lines.append(f"- note: {' '.join(item.note.split())}")
    return lines
