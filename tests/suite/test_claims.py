"""The ledger: rules are computed by a closed little language, and nothing gets lost between notebook and page."""

import json
import math

import numpy as np
import pytest
import torch

from gnclib.suite import claims, ledger

EVIDENCE = {"a": 1.0, "b": 2.0, "n": 3, "flag": True, "label": "R1", "top": math.inf, "bad": math.nan}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("a < b", True),
        ("a < b < a", False),
        ("n == 3 and not b < a", True),
        ("b < a or flag", True),
        ("abs(a - b) <= 1 and max(a, b, n) == n", True),
        ("all([a > 0, b > 0]) and not any((a > b, n < 0))", True),
        ("-a + b ** 2 / 2 == 1", True),
        ("label == 'R1'", True),
        ("a < top", True),
        ("bad < 1", False),
        ("not bad < 1", False),  # nan decides nothing, in either direction
        ("a < b or bad > 0", False),
    ],
)
def test_rule_value(rule, expected):
    assert claims.evaluate(rule, EVIDENCE) is expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("a < missing", "missing"),
        ("1 < 2", "none of the evidence"),
        ("a + b", "write a comparison"),
        ("a <", "not a Python expression"),
        ("a.real > 0", "not allowed"),
        ("[a, b][0] > 0", "not allowed"),
        ("(lambda: a)() > 0", "not allowed"),
        ("(a if flag else b) > 0", "not allowed"),
        ("min(a, b, key=abs) > 0", "not allowed"),
        ("__import__('os').getpid() > a", "__import__"),
        ("label * 9 == a", "arithmetic is for numbers"),
        ("a / 0 > 1", "cannot be computed"),
        ("9 ** 999999999 > a", "too large"),
        ("label < a", "cannot be computed"),
    ],
)
def test_rule_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        claims.evaluate(rule, EVIDENCE)


@pytest.mark.parametrize(
    ("error", "verdict"), [(0.01, "holds"), (0.05, "holds with caveat"), (0.5, "does not hold")]
)
def test_verdict_follows_the_numbers(error, verdict):
    made = claims.record(
        "C2.3", {"error": error}, "error < 0.02", "error < 0.1", notebook="01_convexity_theorem"
    )
    assert made.verdict == verdict


def test_caveat_is_checked_even_where_it_does_not_matter():
    with pytest.raises(ValueError, match="erorr"):
        claims.record("C2.3", {"error": 0.0}, "error < 1", "erorr < 2", notebook="01_convexity_theorem")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("T9.9", {"a": 1}, "a > 0"), "unknown claim 'T9.9'"),
        (("T2.2", {}, "a > 0"), "non-empty mapping"),
        (("T2.2", {"a": torch.ones(2)}, "a > 0"), "more than one element"),
        (("T2.2", {"a": [1, 2]}, "a > 0"), "is a list"),
        (("T2.2", {"max": 1}, "max > 0"), "plain Python name"),
    ],
)
def test_record_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        claims.record(*arguments, notebook="01_convexity_theorem")


def test_record_survives_strict_json_with_arrays_and_infinities():
    evidence = {
        "t": torch.tensor(0.25),
        "k": np.int64(3),
        "ok": np.bool_(True),
        "top": math.inf,
        "bad": math.nan,
    }
    made = claims.record(
        "T2.2", evidence, "t < 1 and k == 3 and ok and top > 1", notebook="01_convexity_theorem"
    )
    text = json.dumps(made.to_json(), allow_nan=False)
    again = claims.Record.from_json(json.loads(text))
    assert again.verdict == made.verdict == "holds"
    assert again.evidence["top"] == math.inf
    assert math.isnan(again.evidence["bad"])
    assert made._repr_mimebundle_()[claims.MIME] == json.loads(text)


def test_a_verdict_edited_by_hand_is_noticed():
    data = claims.record("T2.2", {"a": 1}, "a < 0", notebook="01_convexity_theorem").to_json()
    assert data["verdict"] == "does not hold"
    with pytest.raises(ValueError, match="the numbers give 'does not hold'"):
        claims.Record.from_json(data | {"verdict": "holds"})


def test_list_of_claims():
    ids = [item.id for item in claims.CLAIMS]
    assert len(set(ids)) == len(ids)
    assert {item.source for item in claims.CLAIMS} == {"paper", "ours"}
    for item in claims.CLAIMS:
        assert item.sentence.endswith(".")
        assert item.where
    for part in ("Theorem 2.2", "Corollary 2.3", "Algorithm 1", "Algorithm 2", "Figure 1", "Figure 2", "Figure 3",
                 "Figure 4", "eq. 7", "eq. 9"):  # fmt: skip
        assert any(part in item.where for item in claims.CLAIMS if item.source == "paper"), part


def _entry(id, notebook, value, mode="quick"):
    return claims.record(id, {"a": value}, "a > 0", "a == 0", notebook=notebook).to_json() | {"mode": mode}


def test_merge_replaces_the_notebooks_that_ran_and_keeps_the_rest():
    known = ["01_convexity_theorem", "02_gnc_flow"]
    old = [
        _entry("F1-steps", "02_gnc_flow", 1),
        _entry("T2.2", "01_convexity_theorem", 1),
        _entry("C2.3", "gone", 1),
    ]
    merged = ledger.merge(old, [_entry("F1-steps", "02_gnc_flow", -1)], ["02_gnc_flow"], known)
    assert [(e["id"], e["verdict"]) for e in merged] == [("T2.2", "holds"), ("F1-steps", "does not hold")]


def test_page_lists_every_claim_and_the_worst_verdict_counts(tmp_path):
    entries = [_entry("T2.2", "01_convexity_theorem", 1), _entry("T2.2", "02_gnc_flow", 0)]
    ledger.save(tmp_path, entries)
    assert ledger.load(tmp_path / "claims.json") == entries
    page = (tmp_path / "claims.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("|")}
    assert {item.id for item in claims.CLAIMS} <= rows.keys()
    assert "| holds with caveat |" in rows["T2.2"]
    assert "| not yet tested |" in rows["C2.3"]
    papers = [item for item in claims.CLAIMS if item.source == "paper"]
    assert rows["The paper's claims"].endswith(f"| 0 | 1 | 0 | {len(papers) - 1} |")


def test_damaged_ledger_is_named(tmp_path):
    (tmp_path / "claims.json").write_text("[]")
    with pytest.raises(ValueError, match=r"claims\.json is no claims ledger"):
        ledger.load(tmp_path / "claims.json")
    assert ledger.load(tmp_path / "absent.json") == []
