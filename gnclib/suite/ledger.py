"""The ledger of claims: what the notebooks recorded, in claims.json and, for readers, in claims.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from gnclib.io import decode, dumps, encode, read_json, write_text
from gnclib.suite.claims import CLAIMS, MIME, Record, Stored, cell, claim
from gnclib.suite.compare import differences
from gnclib.suite.verdicts import UNDECIDED, VERDICTS

__all__ = ["changes", "collect", "load", "merge", "save", "to_markdown"]


class Entry(Stored):
    """A record, the notebook that made it, and how that was run."""

    notebook: str
    mode: Literal["quick", "full"]


class _File(TypedDict):
    records: list[Entry]


def collect(notebook: Mapping[str, Any], name: str, mode: str) -> list[Entry]:
    """The records in the outputs of an executed notebook, in order.

    Raises
    ------
    ValueError
        A claim recorded twice, a verdict that does not follow from its evidence, or a claim that the source records
        but no output shows.
    """
    entries: list[Entry] = []
    expected: list[str] = []
    for item in notebook["cells"]:
        if item["cell_type"] != "code":
            continue
        expected += re.findall(r"\brecord\(\s*[\"']([\w.-]+)[\"']", "".join(item["source"]))
        found = [output["data"][MIME] for output in item["outputs"] if MIME in output.get("data", {})]
        entries += [Record.from_json(data).to_json() | {"notebook": name, "mode": mode} for data in found]
    counts = Counter(entry["id"] for entry in entries)
    if twice := [id for id, count in counts.items() if count > 1]:
        raise ValueError(f"{name} records a claim twice: {', '.join(twice)}")
    if lost := [id for id in expected if id not in counts]:
        raise ValueError(
            f"{name} records {', '.join(lost)} but does not show the record: make it the last expression of its "
            "cell, or display() it"
        )
    return entries


def load(path: Path) -> list[Entry]:
    """The entries of a claims.json, [] where there is none. Verdicts are computed anew.

    Raises
    ------
    ValueError
        The file is no ledger, or a verdict in it does not follow from its numbers.
    """
    if not Path(path).exists():
        return []
    entries = read_json(path, "claims ledger (delete it and run 'gnc figures')", _File, plain=False)[
        "records"
    ]
    try:
        for e in entries:
            Record.from_json(e)
    except ValueError as error:
        raise ValueError(f"{path} is no claims ledger: {error}; delete it and run 'gnc figures'") from None
    return [encode(entry) for entry in entries]


def changes(old: Entry, new: Entry) -> list[str]:
    """What differs between two entries of a claim beyond its tolerance, in words."""
    item = claim(old["id"])
    if old["verdict"] != new["verdict"]:
        return [f"{new['verdict']!r} instead of {old['verdict']!r}"]
    return differences(decode(old["evidence"]), decode(new["evidence"]), item.rtol, item.atol)


def merge(
    old: Iterable[Entry], new: Iterable[Entry], run: Iterable[str], known: Iterable[str]
) -> list[Entry]:
    """Put the `new` entries of the notebooks in `run` in place of their old ones; the order is that of the claims.

    An old entry stays where the new one says the same within the tolerance, and so do those of the other notebooks
    that are `known`.
    """
    run, known = set(run), set(known)
    before = {entry["id"]: entry for entry in old}
    merged = {id: entry for id, entry in before.items() if entry["notebook"] in known - run}
    for entry in new:
        last = before.get(entry["id"])
        same = (
            last
            and all(last[key] == entry[key] for key in ("note", "mode", "notebook"))
            and not changes(last, entry)
        )
        merged[entry["id"]] = last if same else entry
    return [merged[id] for id in CLAIMS if id in merged]


def save(out: Path, entries: list[Entry]) -> None:
    """Write out/claims.json and out/claims.md, each atomically."""
    write_text(Path(out) / "claims.json", dumps({"records": entries}))
    write_text(Path(out) / "claims.md", to_markdown(entries))


_SOURCES = {"paper": "The paper's claims", "ours": "Beyond the paper"}
_INTRO = """\
# Claims ledger

What Kobler & Pock 2023 claim, and what the notebooks of this repository measured. Written by `gnc figures`: every
verdict is computed from the evidence by the rule printed beside it. A *verified identity* is true by algebra and was
checked to rounding. `graded(a, b)` holds if a is true, and with a caveat if only b is: in a narrower range.
`beyond_noise(margins, noise)` holds if all margins are larger than the noise, *does not hold* if one is as far below
zero, is a caveat if some are larger and the others positive, and else *undecided*. "Quick" numbers come from the
notebooks' small default settings, "full" ones from `gnc figures --full`. The numbers of the paper's experiments are not
known here; settings are this project's choice.
"""


def to_markdown(entries: list[Entry]) -> str:
    """The ledger as a Markdown page: counts, one table per source, then evidence and rule of every tested claim."""
    by_id = {entry["id"]: entry for entry in entries}
    untested = {"verdict": UNDECIDED, "notebook": "-", "mode": "not run"}
    lines = [_INTRO, "| | " + " | ".join(VERDICTS) + " |", "|---|" + "---:|" * len(VERDICTS)]
    for source, title in _SOURCES.items():
        verdicts = [
            by_id.get(id, untested)["verdict"] for id, item in CLAIMS.items() if item.source == source
        ]
        lines.append(
            f"| {title} | " + " | ".join(str(verdicts.count(verdict)) for verdict in VERDICTS) + " |"
        )
    for source, title in _SOURCES.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| id | claim | where | verdict | notebook |",
            "|---|---|---|---|---|",
        ]
        for item in [item for item in CLAIMS.values() if item.source == source]:
            e = by_id.get(item.id, untested)
            row = (
                item.id,
                cell(item.sentence),
                cell(item.where),
                e["verdict"],
                f"{e['notebook']} ({e['mode']})",
            )
            lines.append("| " + " | ".join(row) + " |")
    lines += ["", "## Evidence and rules"]
    for e in entries:
        made, item = Record.from_json(e), claim(e["id"])
        lines += ["", f"### {item.id}: {e['verdict']} ({e['notebook']}, {e['mode']})", "", item.sentence, ""]
        lines += [f"- evidence: {made.evidence_text()}", f"- rule: `{item.rule_text()}`"]
        lines += [f"- note: {cell(made.note)}"] if made.note else []
    return "\n".join(lines) + "\n"
