"""Claims and the records of their tests: the evidence that a notebook measured, and the verdict that follows from it.

A claim about learned priors is judged twice by the same rule: on ours (R_1 to R_3), and on those of the restored recipe
(P_1 to P_3), whose evidence has names that begin with `RESTORED`.

A notebook that tests a claim ends a cell with

    claims.record("F1-steps", {"steps_at_small_t0": 94, "steps_at_large_t0": 11}, "on 120 values of t")

The claim stands in claims.toml, the rule that judges it in `gnclib.suite.rules`; nobody types a verdict. The record is
shown as a table and travels in the cell's output under the MIME type `MIME`, from where `gnclib.suite.ledger` takes it.
"""

from __future__ import annotations

import ast
import inspect
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AllowInfNan

from gnclib.io import decode, dumps, encode, settings, write_text
from gnclib.suite import rules
from gnclib.suite.plots import COLLECT

MIME = "application/vnd.gnclib.claim+json"
#: how the names of the evidence of the restored priors begin
RESTORED = "P: "


class NotANumber(Exception):
    """A rule asked for a value that is nan: nothing follows from it."""


class Evidence:
    """Read access for rules: `e.name` is one value, `e.each("prefix")` all whose names begin so."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            raise ValueError(f"the evidence lacks {name}; it has: {', '.join(self._values)}")
        value = self._values[name]
        if isinstance(value, float) and math.isnan(value):
            raise NotANumber(name)
        return value

    def each(self, prefix: str) -> list[Any]:
        """The values whose names begin with `prefix`, in the order of the evidence; at least one."""
        found = [getattr(self, name) for name in self._values if name.startswith(prefix)]
        if not found:
            raise ValueError(f"the evidence has no name that begins with {prefix}")
        return found


@dataclass(frozen=True)
class Claim:
    """A testable statement and the rule that judges it.

    Two runs agree if each number differs by at most `atol + rtol * |number|`.
    """

    id: str
    where: str  # the place in the paper that makes the statement or that it is about
    sentence: str
    source: str  # "paper" for what Kobler & Pock 2023 say, "ours" for what goes beyond it
    rule: Callable[[Evidence], bool | str]  # or one of rules.VERDICTS
    identity: bool = False  # true by algebra; its verdict is "verified identity" or "does not hold"
    learned: bool = False  # about learned priors: it has two verdicts, on R and on P
    rtol: float = 1e-3
    atol: float = 1e-6

    def verdict(self, evidence: Mapping[str, Any]) -> str:
        """The verdict on this evidence; where the rule uses a nan, it is undecided.

        Raises ValueError: the evidence lacks what the rule uses, or has it of another kind.
        """
        try:
            found = self.rule(Evidence(evidence))
        except NotANumber:
            return rules.UNDECIDED
        except (TypeError, ArithmeticError, ValueError) as error:
            raise ValueError(f"claim {self.id}: {error}") from None
        if found in rules.VERDICTS:
            return found
        return (rules.IDENTITY if self.identity else rules.HOLDS) if found else rules.FAILS

    def rule_text(self) -> str:
        """The body of the rule as one line of Python, for the reader."""
        (function,) = ast.parse(inspect.getsource(self.rule)).body
        body = "; ".join(ast.unparse(node) for node in function.body)
        return re.sub(r"\be\.(?=\w)", "", body.removeprefix("return "))


def _declared() -> dict[str, Claim]:
    sources = tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))
    found = {}
    for source, items in sources.items():
        for id, item in items.items():
            rule = getattr(rules, item.pop("rule", re.sub(r"\W", "_", id).lower()))
            found[id] = Claim(id=id, source=source, rule=rule, **item)
    return found


#: every claim by its id: the paper's first, then those of this project
CLAIMS = _declared()


def claim(id: str) -> Claim:
    """The claim with this id; an unknown id is a ValueError that lists the known ones."""
    if id not in CLAIMS:
        raise ValueError(f"unknown claim {id!r}; the ledger has: {', '.join(CLAIMS)}")
    return CLAIMS[id]


@settings
class Record:
    """One test of a claim; notebook and mode are empty until the notebook has been collected."""

    id: str
    evidence: dict[str, bool | int | Annotated[float, AllowInfNan(True)] | str]
    note: str = ""
    notebook: str = ""
    mode: Literal["", "quick", "full"] = ""

    @property
    def verdict(self) -> str:
        """One of `gnclib.suite.rules.VERDICTS`, computed from the evidence on our priors."""
        return claim(self.id).verdict({k: v for k, v in self.evidence.items() if not k.startswith(RESTORED)})

    @property
    def restored(self) -> tuple[str, int | None]:
        """Verdict on the restored priors (P_1 is the rule's R_1) and the images; "not measured" without evidence."""
        given = {k.removeprefix(RESTORED): v for k, v in self.evidence.items() if k.startswith(RESTORED)}
        own = {k.replace("P_", "R_"): v for k, v in given.items()}
        with suppress(ValueError):
            return claim(self.id).verdict(own), own.get("images")
        return "not measured", own.get("images")

    def to_json(self) -> dict[str, Any]:
        """Plain data for the ledger and for the output of a cell; `from_json` reads it back."""
        data = encode(asdict(self) | {"verdict": self.verdict})
        names = ("id", "evidence", "note", "verdict", *(("notebook", "mode") if self.notebook else ()))
        return {name: data[name] for name in names}

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """The record that `to_json` wrote.

        Raises ValueError: the data are no record, or the stored verdict does not follow from the evidence.
        """
        fields = {name: decode(value) for name, value in dict(data).items()}
        stored = fields.pop("verdict", None)
        made = cls(**fields)
        if made.verdict != stored:
            raise ValueError(
                f"claim {made.id}: stored verdict {stored!r}, but the numbers give {made.verdict!r}"
            )
        return made

    def to_markdown(self) -> str:
        """What a notebook shows: a table of claim and verdict, evidence and rule folded away below."""
        item = claim(self.id)
        rows = {
            f"claim **{self.id}**": item.sentence,
            "where": item.where,
            "**verdict**": f"**{self.verdict}**",
            "**verdict on P**": f"**{self.restored[0]}**" if item.learned else "",
            "note": self.note,
        }
        first, *rest = [f"| {name} | {cell(text)} |" for name, text in rows.items() if text]
        behind = [f"evidence: {self.evidence_text()}", "", f"rule: `{item.rule_text()}`"]
        folded = ["", "<details><summary>evidence and rule</summary>", "", *behind, "", "</details>"]
        return "\n".join([first, "|---|---|", *rest, *folded])

    def evidence_text(self) -> str:
        """The evidence on one line, numbers with four significant digits."""
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in self.evidence.items()}
        return ", ".join(f"`{name}` = {value}" for name, value in shown.items())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        text = f"claim {self.id}: {self.verdict}"
        return {"text/plain": text, "text/markdown": self.to_markdown(), MIME: self.to_json()}


def cell(text: str) -> str:
    """`text` made fit for one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def record(
    id: str, evidence: Mapping[str, Any], note: str = "", restored: Mapping[str, Any] | None = None
) -> Record:
    """Test a claim: compute its verdict from the evidence.

    Make the result the last expression of the cell (or `display` it): shown output is what gets collected.

    The evidence is numbers, booleans or text by name (one-element arrays and tensors are turned into numbers), the note
    a remark for the reader, without effect on the verdict. `restored` is the same evidence on the priors of the
    restored recipe, where the claim is about learned priors: what P_1, P_2 or P_3 names in `evidence` goes there by
    itself, and `images` with it. Raises ValueError: unknown claim, evidence that is no single number, boolean or text,
    or evidence that the rule lacks.
    """
    theirs = {name: value for name, value in evidence.items() if "P_" in str(name) and claim(id).learned}
    evidence = {name: value for name, value in evidence.items() if name not in theirs}
    theirs |= dict(restored or {})
    if theirs and "images" in evidence:
        theirs.setdefault("images", evidence["images"])
    evidence |= {RESTORED + name: value for name, value in theirs.items()}
    made = Record(id, {name: _value(id, name, value) for name, value in evidence.items()}, note)
    data = made.to_json()  # computes the verdict, so that a mistake shows here
    if folder := os.environ.get(COLLECT):
        write_text(Path(folder) / "claims" / f"{id}.json", dumps(data))
    return made


def _value(id: str, name: str, value: Any) -> bool | int | float | str:
    """One value of the evidence as plain Python; of numpy and torch those with one element."""
    with suppress(ValueError, RuntimeError):  # of arrays and tensors with more elements
        value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, bool | int | float | str):
        kind = type(value).__name__
        raise ValueError(f"claim {id}: evidence {name} is a {kind}: give one number, a boolean or text")
    return value
