"""The claims ledger: what the paper says, what our numbers say, and the rule that turns numbers into a verdict.

`CLAIMS` lists every testable claim. A notebook that tests one ends a cell with

    claims.record("F1-steps", {"steps_at_small_t0": 94, "steps_at_large_t0": 11},
                  holds="steps_at_large_t0 < steps_at_small_t0", notebook="02_gnc_flow")

The rule is an expression over the names of the evidence, and `evaluate` computes the verdict from it, so that the rule
stated is the rule applied; nobody types a verdict. The record is shown as a small table, and it travels in the cell's
output under the MIME type `MIME`, from where ``gnc figures`` collects the ledger ``claims.md``.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gnclib.io.files import decode, encode
from gnclib.io.reading import demand
from gnclib.suite.claims_list import CLAIMS, Claim

__all__ = ["CLAIMS", "MIME", "VERDICTS", "Claim", "Record", "claim", "evaluate", "record"]

MIME = "application/vnd.gnclib.claim+json"
VERDICTS = ("holds", "holds with caveat", "does not hold", "not yet tested")

#: characters of a rule
LONGEST = 2000
_KINDS = {"id": str, "evidence": {str: (bool, complex, str)}, "holds": str, "caveat": (str, None)}
_KINDS |= {"note": str, "notebook": str}
_CALLS: dict[str, Callable] = {"min": min, "max": max, "abs": abs, "all": all, "any": any}
_BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip
_UNARY = {ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos}
_COMPARE = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


def claim(id: str) -> Claim:
    """The claim with this id; an unknown id is a ValueError that lists the known ones."""
    for item in CLAIMS:
        if item.id == id:
            return item
    raise ValueError(f"unknown claim {id!r}; the ledger has: {', '.join(c.id for c in CLAIMS)}")


def evaluate(rule: str, evidence: Mapping[str, Any]) -> bool:
    """Truth of a rule over the evidence, by a small interpreter of its own: no builtins, no attributes, no indexing.

    A rule may use the names of the evidence, numbers, text, ``+ - * / **``, comparisons (also chained), ``and or not``,
    tuples and lists, and ``min max abs all any``. It is false as soon as it uses a name whose value is nan.

    Raises
    ------
    ValueError
        The rule does not parse, uses an unknown name or any other syntax, uses no evidence at all, or gives something
        that is neither true nor false.
    """
    if len(rule) > LONGEST:
        raise ValueError(f"a rule has at most {LONGEST} characters, this one {len(rule)}")
    try:
        tree = ast.parse(rule.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"rule {rule!r} is not a Python expression: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL; too many brackets
        raise ValueError(f"rule {rule[:80]!r} is not a Python expression: {type(error).__name__}") from None
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - _CALLS.keys()
    if unknown := sorted(names - evidence.keys()):
        raise ValueError(
            f"rule {rule!r} uses {', '.join(unknown)}, which the evidence lacks; it has: {', '.join(evidence)}"
        )
    if not names:
        raise ValueError(f"rule {rule!r} uses none of the evidence: a verdict must follow from the numbers")
    try:
        result = _value(tree.body, evidence, rule)
    except (ArithmeticError, TypeError, RecursionError) as error:
        raise ValueError(f"rule {rule!r} cannot be computed from {dict(evidence)}: {error}") from None
    if not isinstance(result, bool):
        raise ValueError(f"rule {rule!r} gives {result!r}: write a comparison, so that it is true or false")
    return result and not any(_is_nan(evidence[name]) for name in names)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _value(node: ast.expr, names: Mapping[str, Any], rule: str) -> Any:
    def visit(child: ast.expr) -> Any:
        return _value(child, names, rule)

    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [visit(item) for item in items]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](visit(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _arithmetic(op, visit(left), visit(right), rule)
        case ast.BoolOp(op=op, values=items):
            return (all if isinstance(op, ast.And) else any)([bool(visit(item)) for item in items])
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in _COMPARE for op in ops):
            values = [visit(left), *map(visit, rest)]
            pairs = zip(ops, values[:-1], values[1:], strict=True)
            return all(bool(_COMPARE[type(op)](a, b)) for op, a, b in pairs)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CALLS:
            return _CALLS[name](*map(visit, args))
    raise ValueError(f"rule {rule!r}: '{ast.unparse(node)}' is not allowed; see gnclib.suite.claims.evaluate")


def _arithmetic(op: ast.operator, a: Any, b: Any, rule: str) -> Any:
    if not all(isinstance(v, (int, float)) for v in (a, b)):
        raise ValueError(f"rule {rule!r}: arithmetic is for numbers, got {a!r} and {b!r}")
    if isinstance(op, ast.Pow) and abs(b) > 64:
        raise ValueError(f"rule {rule!r}: the power {b!r} is too large")
    result = _BINARY[type(op)](a, b)
    if isinstance(result, complex) or (isinstance(result, int) and result.bit_length() > 10_000):
        raise ValueError(f"rule {rule!r}: an intermediate number is complex or too large")
    return result


@dataclass(frozen=True)
class Record:
    """One test of a claim: evidence, rule and the verdict computed from both. Made by `record`."""

    id: str
    evidence: Mapping[str, bool | int | float | str]
    holds: str
    caveat: str | None
    note: str
    notebook: str
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        holds = evaluate(self.holds, self.evidence)
        caveat = self.caveat is not None and evaluate(self.caveat, self.evidence)
        object.__setattr__(self, "verdict", VERDICTS[0] if holds else VERDICTS[1] if caveat else VERDICTS[2])

    def to_json(self) -> dict[str, Any]:
        """Plain data for the ledger; `from_json` reads it back and computes the verdict anew."""
        names = ("id", "evidence", "holds", "caveat", "note", "notebook", "verdict")
        return {name: encode(getattr(self, name)) for name in names}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote. A stored verdict that does not follow from the numbers is a ValueError."""
        names = ("id", "evidence", "holds", "caveat", "note", "notebook")
        if not isinstance(data, Mapping):
            raise ValueError(f"the record of a claim must be a mapping, got {type(data).__name__}")
        if missing := [name for name in (*names, "verdict") if name not in data]:
            raise ValueError(f"the record of a claim lacks {', '.join(missing)}")
        made = cls(**{name: demand(decode(data[name]), _KINDS[name], name) for name in names})
        if made.verdict != data["verdict"]:
            raise ValueError(
                f"claim {made.id}: stored verdict {data['verdict']!r}, but the numbers give {made.verdict!r}"
            )
        return made

    def to_markdown(self) -> str:
        """The table that a notebook shows."""
        item = claim(self.id)
        rows = [
            f"| claim **{self.id}** | {item.sentence} |",
            "|---|---|",
            f"| where | {item.where} |",
            f"| evidence | {self.evidence_text()} |",
            f"| holds if | `{self.holds}` |",
        ]
        if self.caveat:
            rows.append(f"| with caveat if | `{self.caveat}` |")
        rows.append(f"| **verdict** | **{self.verdict}** |")
        if self.note:
            rows.append(f"| note | {cell(self.note)} |")
        return "\n".join(rows)

    def evidence_text(self) -> str:
        """The evidence on one line, numbers with four significant digits."""
        return ", ".join(f"`{name}` = {cell(_short(value))}" for name, value in self.evidence.items())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        text = f"claim {self.id}: {self.verdict}"
        return {"text/plain": text, "text/markdown": self.to_markdown(), MIME: self.to_json()}


def cell(text: str) -> str:
    """`text` made fit for one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def record(
    id: str,
    evidence: Mapping[str, Any],
    holds: str,
    caveat: str | None = None,
    note: str = "",
    *,
    notebook: str,
) -> Record:
    """Test a claim: compute its verdict from the evidence by the stated rule.

    Parameters
    ----------
    id
        Id of a claim in `CLAIMS`.
    evidence
        Numbers, booleans or text by name; one-element arrays and tensors are turned into numbers.
    holds, caveat
        Rules in the language of `evaluate`. The verdict is "holds" if `holds` is true, else "holds with caveat" if
        `caveat` is given and true, else "does not hold".
    note
        A remark for the reader; it has no part in the verdict.
    notebook
        Name of the notebook that records, for instance "02_gnc_flow".

    Returns
    -------
    Record
        Make it the last expression of the cell (or `display` it): shown output is what gets collected.

    Raises
    ------
    ValueError
        Unknown claim, evidence that is no single number, boolean or text, or a rule that `evaluate` refuses.
    """
    claim(id)
    if not isinstance(evidence, Mapping) or not evidence:
        raise ValueError(
            f"claim {id}: the evidence is a non-empty mapping from names to numbers, got {evidence!r}"
        )
    if not notebook:
        raise ValueError(f"claim {id}: say which notebook records it, e.g. notebook='02_gnc_flow'")
    return Record(id, {k: _scalar(id, k, v) for k, v in evidence.items()}, holds, caveat, note, notebook)


def _scalar(id: str, name: Any, value: Any) -> bool | int | float | str:
    if not isinstance(name, str) or not name.isidentifier() or name in _CALLS:
        raise ValueError(
            f"claim {id}: evidence name {name!r} must be a plain Python name other than {', '.join(_CALLS)}"
        )
    if not isinstance(value, (bool, int, float, str)) and hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            raise ValueError(
                f"claim {id}: evidence {name} has more than one element: give one number"
            ) from None
    if isinstance(value, bool) or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    raise ValueError(
        f"claim {id}: evidence {name} is a {type(value).__name__}: give a number, a boolean or text"
    )
