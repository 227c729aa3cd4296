"""Claims and the records of their tests: the evidence that a notebook measured, and the verdict that follows from it.

A notebook that tests a claim ends a cell with

    claims.record("F1-steps", {"steps_at_small_t0": 94, "steps_at_large_t0": 11}, "on 120 values of t")

The claim stands in claims.toml, the rule that judges it in `gnclib.suite.rules`; nobody types a verdict. The record is
shown as a table and travels in the cell's output under the MIME type `MIME`, from where `gnclib.suite.ledger` takes it.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AllowInfNan
from typing_extensions import TypedDict

from gnclib.io import check, decode, dumps, encode, write_text
from gnclib.suite import rules
from gnclib.suite.plots import COLLECT
from gnclib.suite.verdicts import FAILS, HOLDS, IDENTITY, UNDECIDED, VERDICTS, Evidence, NotANumber

__all__ = ["CLAIMS", "MIME", "Claim", "Record", "Stored", "cell", "claim", "record"]

MIME = "application/vnd.gnclib.claim+json"
Value = bool | int | float | str


class Stored(TypedDict):
    """A record as it is stored."""

    id: str
    evidence: dict[str, bool | int | Annotated[float, AllowInfNan(True)] | str]
    note: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """A testable statement and the rule that judges it.

    Attributes
    ----------
    id, where, sentence
        Short name; the place in the paper that makes the statement or that it is about; the statement.
    source
        "paper" for what Kobler & Pock 2023 say, "ours" for what goes beyond it.
    rule
        Function of the evidence: true, false, or one of `gnclib.suite.verdicts.VERDICTS`.
    identity
        The statement is true by algebra; its verdict is "verified identity" or "does not hold".
    rtol, atol
        Two runs agree if each number differs by at most `atol + rtol * |number|`.
    """

    id: str
    where: str
    sentence: str
    source: str
    rule: Callable[[Evidence], bool | str]
    identity: bool = False
    rtol: float = 1e-3
    atol: float = 1e-6

    def verdict(self, evidence: Mapping[str, Any]) -> str:
        """The verdict on this evidence; where the rule uses a nan, it is undecided.

        Raises
        ------
        ValueError
            The evidence lacks what the rule uses, or has it of another kind.
        """
        try:
            found = self.rule(Evidence(evidence))
        except NotANumber:
            return UNDECIDED
        except (TypeError, ArithmeticError, ValueError) as error:
            raise ValueError(f"claim {self.id}: {error}") from None
        if found in VERDICTS:
            return found
        return (IDENTITY if self.identity else HOLDS) if found else FAILS

    def rule_text(self) -> str:
        """The body of the rule as one line of Python, for the reader."""
        (function,) = ast.parse(inspect.getsource(self.rule)).body
        body = "; ".join(ast.unparse(node) for node in function.body)
        return re.sub(r"\be\.(?=\w)", "", body.removeprefix("return "))


def _declared() -> dict[str, Claim]:
    text = Path(__file__).with_name("claims.toml").read_text(encoding="utf-8")
    found = [
        (id, source, item) for source, items in tomllib.loads(text).items() for id, item in items.items()
    ]
    return {
        id: Claim(id=id, source=source, rule=getattr(rules, re.sub(r"\W", "_", id).lower()), **item)
        for id, source, item in found
    }


#: every claim by its id: the paper's first, then those of this project
CLAIMS = _declared()


def claim(id: str) -> Claim:
    """The claim with this id; an unknown id is a ValueError that lists the known ones."""
    if id not in CLAIMS:
        raise ValueError(f"unknown claim {id!r}; the ledger has: {', '.join(CLAIMS)}")
    return CLAIMS[id]


@dataclass(frozen=True)
class Record:
    """One test of a claim: its id, the evidence by name, and a note for the reader."""

    id: str
    evidence: Mapping[str, Value]
    note: str = ""

    @property
    def verdict(self) -> str:
        """One of `gnclib.suite.verdicts.VERDICTS`, computed from the evidence."""
        return claim(self.id).verdict(self.evidence)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the ledger; `from_json` reads it back."""
        names = ("id", "evidence", "note", "verdict")
        return {name: encode(getattr(self, name)) for name in names}

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """The record that `to_json` wrote.

        Raises
        ------
        ValueError
            The data are no record, or the stored verdict does not follow from the evidence.
        """
        own = {name: value for name, value in dict(data).items() if name in Stored.__annotations__}
        data = check(decode(own), Stored, "record")
        made = cls(data["id"], data["evidence"], data["note"])
        if made.verdict != data["verdict"]:
            raise ValueError(
                f"claim {made.id}: stored verdict {data['verdict']!r}, but the numbers give {made.verdict!r}"
            )
        return made

    def to_markdown(self) -> str:
        """The table that a notebook shows."""
        item = claim(self.id)
        rows = {
            f"claim **{self.id}**": item.sentence,
            "where": item.where,
            "evidence": self.evidence_text(),
            "rule": f"`{item.rule_text()}`",
            "**verdict**": f"**{self.verdict}**",
            "note": self.note,
        }
        first, *rest = [f"| {name} | {cell(text)} |" for name, text in rows.items() if text]
        return "\n".join([first, "|---|---|", *rest])

    def evidence_text(self) -> str:
        """The evidence on one line, numbers with four significant digits."""
        return ", ".join(
            f"`{k}` = {v:.4g}" if isinstance(v, float) else f"`{k}` = {v}" for k, v in self.evidence.items()
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        text = f"claim {self.id}: {self.verdict}"
        return {"text/plain": text, "text/markdown": self.to_markdown(), MIME: self.to_json()}


def cell(text: str) -> str:
    """`text` made fit for one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def record(id: str, evidence: Mapping[str, Any], note: str = "") -> Record:
    """Test a claim: compute its verdict from the evidence.

    Parameters
    ----------
    id
        Id of a claim in `CLAIMS`.
    evidence
        Numbers, booleans or text by name; one-element arrays and tensors are turned into numbers.
    note
        A remark for the reader, without effect on the verdict.

    Returns
    -------
    Record
        Make it the last expression of the cell (or `display` it): shown output is what gets collected.

    Raises
    ------
    ValueError
        Unknown claim, evidence that is no single number, boolean or text, or evidence that the rule lacks.
    """
    made = Record(id, {name: _value(id, name, value) for name, value in evidence.items()}, note)
    data = made.to_json()  # computes the verdict, so that a mistake shows here
    if folder := os.environ.get(COLLECT):
        write_text(Path(folder) / "claims" / f"{id}.json", dumps(data))
    return made


def _value(id: str, name: Any, value: Any) -> Value:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"claim {id}: evidence name {name!r} must be a plain Python name")
    if not isinstance(value, Value) and hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            raise ValueError(
                f"claim {id}: evidence {name} has more than one element: give one number"
            ) from None
    if not isinstance(value, Value):
        raise ValueError(
            f"claim {id}: evidence {name} is a {type(value).__name__}: give a number, a boolean or text"
        )
    return value if isinstance(value, (bool, str)) else int(value) if isinstance(value, int) else float(value)
