"""Rules, records and the ledger: a verdict follows from the evidence, and nothing gets lost on the way to the page."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gnclib.suite import claims, ledger, rules
from gnclib.suite.rules import VERDICTS, beyond_noise, graded

IDENTITY, HOLDS, CAVEAT, UNDECIDED, FAILS = VERDICTS
LEDGER = Path(__file__).parents[2] / "figures" / "claims.json"
STORED = {record.id: record for record in ledger.load(LEDGER)}

DEPARTURES = "averaging", "denoising", "kernels", "scaling", "damping"
#: what would have to be different for the claim to hold, where it does not today
GOOD = {
    "F1-steps": {"increases_beyond_t_bar": 0},
    "J-calibrated": {"largest_mean": 0.01},
    "I-mmse": {"best_other_prior_above_db": 0.05, "best_told_sigma_over_true": 1.0},
    "P-gain": {"smallest_gain_in_standard_errors": 3.0},
    "F2-simpler": {f"minima_R_{k}_at_{s}": 4.0 - k for k in (1, 2, 3) for s in (10, 32, 100, 316, 1000)},
    "P-deeper": {"smallest_gain_in_standard_errors": 3.0},
    "J-implicit": {"spread_of_difference": 1e-6},
    "J-recovers": {"worst_tau_largest_lambda": 0.05},
    "J-joint": {"error_of_restored": 0.01},
    "J-slow": {f"above_in_{key}": 1.0 for key in ("slowness", "convexity", "eigenvalue_at_1000")},
    "I-lipschitz": {f"largest_R_{k}": 1.0 for k in (1, 2, 3)},
    "R-convex": {f"convex_from_R_{k}": 0.5 for k in (1, 2, 3)},
    "F2-quadratic": {f"share_parabolas_R_{k}": 1.0 for k in (1, 2, 3)},
    "F2-nonconvex": {f"convex_red_R_{k}": 1.0 for k in (1, 2, 3)},
    "F2-linear": {"red_R_2_1": 0.01, "red_R_3_1": 0.01, "red_R_3_2": 0.01},
    "F3-similar": {
        f"linear_48n_{kind}_apart_{task}_from_{t}": 0.01
        for kind in ("psnr", "energy")
        for task in ("denoise", "inpaint", "512_denoise", "512_inpaint")
        for t in ("0.01", "1")
    },
    "F3-attain": {"rate_gnc_at_largest_t0_and_steps": 0.84, "images": 68},
    "F3-early": {"images": 68},
    "F3-inpainting": {"images": 68},
    "F4-energy": {"gnc_gap_of_the_worst_start": 0.01, "joint_gap": 0.01},
    "G-ddim": {"share_at_the_minimum_ddim": 1.0},
    "I-near": {f"distance_from_threshold_{name}": 0.05 for name in ("mixture", "C1", "C3", "G1")},
    "A-dct": {"change_at_128": -0.5, "change_at_25": -0.5},
    "A-scaled": {"change_at_25": -0.1},
    "A-deep": {f"psnr_change_{key}": 0.3 for key in ("lambda", "magnitudes", "dilation")},
    "A-departures": {f"psnr_change_{key}": 0.01 for key in DEPARTURES}
    | {f"eigenvalue_rise_{key}": float(key == "damping") for key in DEPARTURES},
    "X-sure": {
        f"{kind}_{n}_{s}": value
        for kind, value in (("ratio", 1.0), ("error", 0.005))
        for n in ("R1", "R3", "G1")
        for s in (15, 25, 50)
    },
    "X-entropy": {f"{k}_bits_{n}": 0.01 for k in ("largest", "from_0_1") for n in ("R1", "C1", "R3", "G1")},
    "X-ranks": {
        f"share_{kind}_{prior}": 1.0
        for kind in ("unlike_noise", "unlike_checks", "constant", "blurred")
        for prior in ("R_1", "R_2", "R_3", "C_1", "C_3", "M_1", "M_3", "G_1")
    },
    "X-problems": {
        f"standard_errors_above_{other}_{problem}": 2.5
        for other in ("tv", "no_gnc")
        for problem in ("deblur", "super_2", "super_3", "sensing", "tomography")
    },
}
#: changes of evidence under which the claim holds, each of which alone makes it fail
BAD = {
    "T2.2": [{"mixtures": 99}, {"smallest_scaled_eigenvalue": -1e-9}],
    "T2.2-sufficient": [{"points_where_S_holds": 1000}, {"smallest_scaled_eigenvalue": -1e-9}],
    "C2.3": [{"largest_t_star_over_diam2": 1.01}, {"smallest_scaled_eigenvalue": -1e-9}],
    "T2.2-gradual": [
        {"valleys_at_0": 1},
        {"largest_drop_at_once": 2},
        {"increases": 1},
        {"convex_from_t": 0.0},
    ],
    "A1-tweedie": [{"largest_difference": 1e-6}],
    "A1-one-step": [{"spread_at_t_100": 0.02}, {"distance_to_mean_at_t_100": 0.02}],
    "A1-arrive": [{"figure1_share": 0.99}, {"gradient_descent_share": 1.0}],
    "F1-left": [{"valleys_at_0": 1}, {"lowest_at_small_t": 0.1}, {"lowest_at_large_t": -0.1}],
    "F1-steps": [{"increases_from_t_star_to_t_bar": 1}, {"N_at_1000": 103, "N_at_t_bar": 103}],
    "F1-threshold": [{"lowest_at_small_t": 0.1}, {"sign_changes": 2}, {"t_star": 4.0}],
    "P-splines": [{"partition_of_unity": 1e-9}, {"error_of_identity": 1e-9}, {"error_of_quadratic": 1e-9}],
    "P-smooth": [*({f"jump_of_derivative_{k}": 1e-3} for k in range(4)), {"jump_of_derivative_4": 0.0}],
    "P-wiener": [{"difference_to_wiener": 1e-3}, {"difference_of_KtK": 1e-3}],
    "P-gain": [{"smallest_gain_in_standard_errors": -2.1}],
    "P-deeper": [{"smallest_gain_in_standard_errors": -2.1}],
    "J-split": [{"relative_difference": 1e-6}],
    "J-denoising": [{"largest_deviation": 1e-3}, {"spread_of_losses": 0.0}],
    "J-implicit": [{"spread_of_difference": 0.1}],
    "J-recovers": [{"worst_tau_largest_lambda": 0.1, "worst_tau_smallest_lambda": 0.1}],
    "J-joint": [{"error_of_restored": 0.1, "error_of_restored_in_middle_half": 0.1}],
    "J-slow": [
        {"above_in_slowness": -9.0},
        {"above_in_convexity": -9.0},
        {"above_in_eigenvalue_at_100": -9.0},
    ],
    "J-gap": [{"slope_at_tau_max": 1.0}, {"slope_at_tau_min": -1.0}],
    "J-boundary": [{"relative_difference_from_explicit": 1e-2}],
    "J-vanishing": [{"relative_difference_from_explicit": 1e-2}],
    "J-identity": [{"largest_mean": 1e-3}],
    "J-calibrated": [{"largest_mean": 0.09}],
    "J-tau-denoising": [{"largest_deviation": 1e-3}, {"spread_of_losses": 0.0}],
    "I-lipschitz": [{"largest_R_2": 2.1}],
    "I-joint-descends": [{"share_of_steps_that_decrease": 0.9}],
    "I-palm": [{"largest_rise": 1e-3}, {"final_minus_final_of_algorithm_2": 1.0}],
    "I-mmse": [{"smallest_gain_db": -0.1}, {"largest_deviation_of_factor": 0.06}],
    "I-learned": [{"above_best_predefined_db": -0.1}],
    "I-few": [{"lost_with_4_pairs_db": 0.06, "lost_with_16_pairs_db": 0.06}],
    "I-finetune": [{"gain_db": -0.05}],
    "R-convex": [{"convex_from_R_2": math.inf, "convex_at_clean_from_R_2": math.inf}],
    "F2-quadratic": [{"share_parabolas_R_3": 0.4}],
    "F2-nonconvex": [{"nonconvex_blue_R_1": 0.4}, {"convex_red_R_3": 0.9, "worst_gap_red_R_3": 0.2}],
    "F2-linear": [{"red_R_3_2": 0.999}],
    "F2-simpler": [{"minima_R_3_at_10": 3.0}],
    "F3-similar": [
        {"linear_48n_energy_apart_512_denoise_from_1": 0.2},
        {"linear_48n_psnr_apart_512_inpaint_from_0.01": 0.6},
    ],
    "F3-attain": [{"rate_gnc_at_largest_t0_and_steps": 0.7}, {"rate_joint_at_largest_t0_and_steps": 0.6}],
    "I-near": [{"distance_from_threshold_mixture": 0.5, "distance_at_largest_t_C1": 0.5}],
    "G-ddim": [{"smallest_curvature_at_the_start": -0.1}, {"share_of_steps_that_descend_P1": 0.99}],
    "F3-early": [{"psnr_lost_gnc_db": 0.05}],
    "F3-inpainting": [{"inpaint_gnc_lost_db": 4.0}, {"inpaint_joint_lost_db": 4.0}],
    "F4-energy": [{"gnc_gap": 0.06, "gnc_gap_of_the_worst_start": 0.06}, {"joint_gap": 0.06}],
    "F4-learned-energy": [{"learned_gap": 0.0}],
    "F4-learned-psnr": [{"above_gnc_db": -0.1}, {"above_joint_db": -0.1}],
    "F4-last-step": [{"best_step_of_the_photograph": 9, "best_step_of_the_mean_of_68": 9}],
    "X-expressive": [{"above_R_3_db_25": -0.1}, {"proved_convex_from": 8.0}],
    "A-lambda": [{"calibration_error_without": 0.01}, {"psnr_change_at_10_lambda": 0.1}],
    "A-boundary": [
        *({"largest_psnr_difference": 0.03}, {"largest_calibration_difference": 0.02}),
        {"largest_joint_psnr_difference": 0.07},
    ],
    "A-dct": [{"change_at_15": 0.2}],
    "A-scaled": [{"change_at_25": 0.03}],
    "A-nodes": [{"psnr_change_nodes_21": 0.03}, {"psnr_change_nodes_5": 0.03}],
    "A-smooth": [{"psnr_change_without": 0.03}],
    "A-warm": [{"psnr_change_cold": 0.3}],
    "A-deep": [{"psnr_change_dilation": -0.3}],
    "A-departures": [
        *({"psnr_change_kernels": -0.03}, {"eigenvalue_rise_scaling": 1.1}),
        {f"eigenvalue_rise_{key}": -1.0 for key in DEPARTURES},
    ],
    "X-popoviciu": [{"smallest_scaled_eigenvalue": -1e-6}, {"largest_ratio": 0.251}],
    "X-tight": [{"largest_error_two_components": 1e-6}, {"largest_relative_error_two_points": 1e-6}],
    "X-certificate": [
        *({"proved_on_the_window": False}, {"proved_on_the_line": False}),
        *({"bound_on_the_window": -1e-9}, {"bound_on_the_line": -1e-9}),
        *({"bound_on_the_tail_left": -0.1}, {"bound_on_the_tail_right": -math.inf}),
        *({"hessian_at_witness_in_the_window": 1e-9}, {"hessian_at_witness_on_the_line": 1e-9}),
        *({"width_on_the_window": 2e-6}, {"width_on_the_line": 2e-6}),
        *({"false_statement_on_a_window_refused": False}, {"false_statement_on_the_line_refused": False}),
    ],
    "X-once": [{"non_convex_at_first": 0}, {"most_sign_changes_on_the_line": 2}],
    "X-outside": [
        *({"t": 0.9}, {"min_hessian_on_X": -0.1}, {"min_hessian_on_the_line": 0.1}),
        {"attained_at_distance": 0.4},
    ],
    "X-vp": [{"by_bisection": 0.8}, {"of_the_theorem": 0.9}],
    "X-ddim": [
        {"difference_to_denoise_and_renoise": 1e-6},
        {"largest_error_of_ddim_shares": 0.1},
        {"gnc_share_in_deepest_valley": 0.9},
    ],
    "X-control": [{"gnc_arrives": 0.2}, {"evaluations_to_99_percent_gnc": 40}],
    "X-failure": [
        *({"distance_to_global_minimiser": 0.1}, {"energy_too_high_by": 0.01}),
        {"agreement_with_cusp_line": 0.8},
    ],
    "X-edge": [
        *({"triangle_below": 0.24}, {"triangle_above": 0.26}, {"largest_eigenvalue_times_t": 0.01}),
        {"search_between_the_bounds": False},
    ],
    "X-patches": [
        *({"edge_over_popoviciu_smallest": 0.6}, {"cube_over_popoviciu_largest": 0.6}),
        {"smallest_edge_margin": 0.0},
    ],
    "X-attain": [{"gnc": 0.2}, {"gnc_few_components": 0.4}, {"cells_where_gnc_is_worse": 3}],
    "X-far": [{"noise_at_small_t": 9.9}, {"noise_at_large_t": 11.1}, {"flow_db": 10.0}],
    "X-deep": [{"smallest_loss_of_R3_db": 0.05}],
    "X-problems": [{"standard_errors_above_tv_deblur": -2.1}, {"standard_errors_above_no_gnc_sensing": -2.1}],
    "X-intervals": [
        {"covered_percent_R1_15": 87.9},
        {"covered_percent_R3_50": 92.1},
        {"by_the_formula_percent_R1_15": 88.0},
    ],
    "X-sure": [{"ratio_R1_50": 0.95}, {"ratio_R3_15": 1.05}, {"correlation_R3_25": 0.94}],
    "X-entropy": [{"from_0_1_bits_R1": 0.021}],
    "X-ranks": [{"share_unlike_noise_R_1": 0.9}, {"share_unlike_checks_C_1": 0.9}],
}


def evidence(id: str) -> dict:
    """The stored evidence, changed so that the claim holds."""
    stored, good = STORED[id].evidence, GOOD.get(id, {})
    assert good.keys() <= stored.keys()
    return stored | good


@pytest.mark.parametrize("id", claims.CLAIMS)
def test_a_rule_tells_evidence_that_passes_from_evidence_that_fails(id):
    item, good = claims.CLAIMS[id], evidence(id)
    assert item.verdict(good) == (IDENTITY if item.identity else HOLDS)
    assert BAD[id]
    for change in BAD[id]:
        assert change.keys() <= good.keys()
        assert item.verdict(good | change) == FAILS, change


def test_where_a_sentence_fails_beyond_the_noise_no_caveat_covers_it():
    """On numbers just inside and outside of the noise that the evidence states."""
    scaled = evidence("A-scaled")
    limit = scaled["threshold_at_25"]
    for change, verdict in ((-1.1, HOLDS), (-0.9, CAVEAT), (0.9, UNDECIDED), (1.1, FAILS)):
        assert claims.CLAIMS["A-scaled"].verdict(scaled | {"change_at_25": change * limit}) == verdict
    way = evidence("A-departures")
    for change, verdict in ((-0.019, HOLDS), (-0.021, FAILS)):
        assert claims.CLAIMS["A-departures"].verdict(way | {"psnr_change_scaling": change}) == verdict
    deep = evidence("A-deep")
    for change, verdict in ((0.27, HOLDS), (0.25, CAVEAT), (-0.25, UNDECIDED), (-0.27, FAILS)):
        assert claims.CLAIMS["A-deep"].verdict(deep | {"psnr_change_lambda": change}) == verdict
    attain = evidence("F3-attain")
    for lag, verdict in ((0.09, HOLDS), (0.11, FAILS)):
        changed = {"rate_joint_at_largest_t0_and_steps": attain["best_rate_joint"] - lag}
        assert claims.CLAIMS["F3-attain"].verdict(attain | changed) == verdict
    similar = evidence("F3-similar")
    late, early = "linear_48n_psnr_apart_512_denoise_from_1", "linear_48n_psnr_apart_denoise_from_1"
    for apart, ours, verdict, where in (
        *((0.49, 9.0, HOLDS, late), (0.51, 0.49, CAVEAT, late), (0.51, 0.51, FAILS, late)),
        *((0.49, 9.0, HOLDS, early), (0.51, 9.0, CAVEAT, early)),
    ):
        changed = {k: ours for k in similar if k.startswith("logarithmic_2n_psnr")}
        changed |= {k: 0.09 for k in similar if k.startswith("logarithmic_2n_energy")}
        changed |= {where: apart}
        assert claims.CLAIMS["F3-similar"].verdict(similar | changed) == verdict
    assert claims.CLAIMS["X-entropy"].verdict(evidence("X-entropy") | {"largest_bits_C1": 0.021}) == CAVEAT
    problems = evidence("X-problems")
    for errors, verdict in ((1.9, CAVEAT), (-1.9, UNDECIDED), (-2.1, FAILS)):
        changed = {"standard_errors_above_tv_super_3": errors}
        assert claims.CLAIMS["X-problems"].verdict(problems | changed) == verdict


@pytest.mark.parametrize("id", ["I-learned", "F4-energy", "F4-learned-energy"])
def test_few_images_decide_nothing(id):
    for change in ({}, *BAD[id]):  # what would hold, and what would not
        assert claims.CLAIMS[id].verdict(evidence(id) | {"images": 23} | change) == UNDECIDED


def test_verdicts_on_differences_and_grades():
    assert [graded(True, False), graded(False, True), graded(False, False)] == [HOLDS, CAVEAT, FAILS]
    assert beyond_noise([2, 3], [1, 1]) == HOLDS
    assert beyond_noise([2, 0.5], [1, 1]) == CAVEAT
    assert beyond_noise([2, -0.5], [1, 1]) == beyond_noise([0.5, 0.5], [1, 1]) == UNDECIDED
    assert beyond_noise([2, -1.5], [1, 1]) == FAILS


def test_nan_decides_nothing_and_missing_evidence_is_named():
    item = claims.CLAIMS["A1-tweedie"]
    assert item.verdict({"largest_difference": math.nan}) == UNDECIDED
    assert item.verdict({"largest_difference": 0.0, "other": math.nan}) == IDENTITY
    with pytest.raises(ValueError, match="A1-tweedie: the evidence lacks largest_difference; it has: a"):
        item.verdict({"a": 1})
    with pytest.raises(ValueError, match="A1-tweedie"):
        item.verdict({"largest_difference": "small"})
    with pytest.raises(ValueError, match="no name that begins with red_"):
        claims.CLAIMS["F2-linear"].verdict({"a": 1})


def test_the_table_of_claims_and_the_rules_belong_together():
    named = {name for name, item in vars(rules).items() if getattr(item, "__module__", "") == rules.__name__}
    assert named - {"beyond_noise", "from_enough", "graded"} == {
        item.rule.__name__ for item in claims.CLAIMS.values()
    }
    assert claims.CLAIMS.keys() == BAD.keys() == STORED.keys()
    for item in claims.CLAIMS.values():
        assert item.sentence.endswith(".")
        assert item.where
        assert item.source in ("paper", "ours")
        assert "return" not in item.rule_text()[:6]
    papers = [item.where for item in claims.CLAIMS.values() if item.source == "paper"]
    for part in ("Theorem 2.2", "Corollary 2.3", "Algorithm 1", "Algorithm 2", "eq. 7", "eq. 9"):
        assert any(part in where for where in papers), part
    for k in (1, 2, 3, 4):
        assert any(f"Figure {k}" in where for where in papers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("T9.9", {"a": 1}), "unknown claim 'T9.9'"),
        (("A1-tweedie", {}), "lacks largest_difference"),
        (("A1-tweedie", {"largest_difference": torch.ones(2)}), "is a Tensor: give one number"),
        (("A1-tweedie", {"largest_difference": [1, 2]}), "is a list: give one number"),
        (("A1-tweedie", {1: 2.0}), "must be a valid string"),
    ],
)
def test_record_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        claims.record(*arguments)


def test_record_survives_strict_json_with_arrays_and_infinities(tmp_path, monkeypatch):
    monkeypatch.setenv("GNC_COLLECT", str(tmp_path))
    given = {"largest_difference": torch.tensor(0.25), "k": np.int64(3), "ok": np.bool_(True)}
    made = claims.record("A1-tweedie", given | {"top": math.inf, "bad": math.nan})
    text = json.dumps(made.to_json(), allow_nan=False)
    again = claims.Record.from_json(json.loads(text))
    assert again.verdict == made.verdict == FAILS
    assert again.evidence["top"] == math.inf
    assert math.isnan(again.evidence["bad"])
    assert made._repr_mimebundle_()[claims.MIME] == json.loads(text)
    assert json.loads((tmp_path / "claims" / "A1-tweedie.json").read_text()) == json.loads(text)


def test_a_verdict_edited_by_hand_is_noticed():
    data = claims.record("A1-tweedie", {"largest_difference": 1.0}).to_json()
    with pytest.raises(ValueError, match="the numbers give 'does not hold'"):
        claims.Record.from_json(data | {"verdict": "holds"})
    with pytest.raises(ValueError, match="missing or unknown: id"):
        claims.Record.from_json({"float": "nan"})  # no number either


def made(id, notebook, value, mode="quick"):
    name = {"A1-tweedie": "largest_difference", "J-split": "relative_difference"}[id]
    return replace(claims.record(id, {name: value}), notebook=notebook, mode=mode)


def test_merge_replaces_what_changed_and_keeps_the_rest():
    old = [made("A1-tweedie", "02", 1e-16), made("J-split", "03", 1e-16)]
    known = ["02", "03"]
    for value, kept in ((2e-16, 1e-16), (1e-3, 1e-3)):  # rounding, and a number that has really changed
        merged = ledger.merge(old, [made("A1-tweedie", "02", value)], ["02"], known)
        assert [next(iter(record.evidence.values())) for record in merged] == [kept, 1e-16]
    (full, _) = ledger.merge(old, [made("A1-tweedie", "02", 1e-16, "full")], ["02"], known)
    assert full.mode == "full"
    assert [r.id for r in ledger.merge(old, [], ["02"], known)] == ["J-split"]  # no longer recorded
    assert [r.id for r in ledger.merge(old, [], [], ["02"])] == ["A1-tweedie"]  # its notebook has gone


def test_changes_compares_evidence_and_not_only_verdicts():
    old = STORED["I-learned"]
    for factor, found in ((1 + 1e-6, []), (1.01, ["I-learned"])):
        new = replace(
            old,
            evidence=old.evidence
            | {"above_best_predefined_db": old.evidence["above_best_predefined_db"] * factor},
        )
        assert new.verdict == old.verdict
        assert list(ledger.changes([old], [new])) == found
    assert ledger.changes([made("J-split", "03", 0.0)], [made("J-split", "03", 1.0)]) == {
        "J-split": "'does not hold' instead of 'verified identity'"
    }
    assert ledger.changes([old], []) == {"I-learned": "recorded in only one of the two"}


@pytest.mark.parametrize("id", claims.CLAIMS)
def test_every_number_of_the_evidence_is_compared(id):
    """Moved within the tolerance none matters, unless a rule is stricter; beyond the tolerance each one is noticed."""
    item, old = claims.CLAIMS[id], STORED[id]
    numbers = {k: v for k, v in old.evidence.items() if not isinstance(v, (bool, str)) and math.isfinite(v)}
    for name, value in numbers.items():
        allowed = item.atol + item.rtol * abs(value)
        inside, outside = (
            replace(old, evidence=old.evidence | {name: value + s * allowed}) for s in (0.9, 1.1)
        )
        assert inside.verdict != old.verdict or not ledger.changes([old], [inside]), name
        assert ledger.changes([old], [outside]), name


def test_the_stored_ledger_survives_reading_and_writing(tmp_path):
    ledger.save(tmp_path, STORED.values())
    assert (tmp_path / "claims.json").read_bytes() == LEDGER.read_bytes()
    assert (tmp_path / "claims.md").read_bytes() == LEDGER.with_suffix(".md").read_bytes()


def test_page_lists_every_claim(tmp_path):
    records = [made("A1-tweedie", "02_gnc_flow", 0.0), made("J-split", "03_score_matching", 1.0)]
    ledger.save(tmp_path, records)
    assert ledger.load(tmp_path / "claims.json") == records
    page = (tmp_path / "claims.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("|")}
    assert claims.CLAIMS.keys() <= rows.keys()
    assert f"| {IDENTITY} |  |  |  | 02_gnc_flow (quick) |" in rows["A1-tweedie"]
    assert f"| {UNDECIDED} |  |  |  | - (not run) |" in rows["C2.3"]
    papers = [item for item in claims.CLAIMS.values() if item.source == "paper"]
    assert rows["The paper's claims"].endswith(f"| 1 | 0 | 0 | {len(papers) - 2} | 1 |")


def test_a_learned_prior_and_a_restored_one_are_judged_side_by_side(tmp_path):
    """By one rule, each on its own evidence; what one lacks the other does not lend."""
    ours = {"largest_R_1": 1.0, "images": 30}
    both = claims.record("I-lipschitz", ours, restored={"largest_R_1": 3.0, "images": 40})
    assert (both.verdict, both.restored) == (HOLDS, (FAILS, 40))
    assert claims.Record.from_json(both.to_json()) == both
    lone = claims.record("I-lipschitz", ours)
    short = claims.record(
        "F2-simpler",
        {f"minima_R_{k}_at_10": 3.0 - k for k in (1, 2, 3)} | {f"error_R_{k}_at_10": 0.1 for k in (1, 2, 3)},
        restored={"minima_R_1_at_10": 1.0},
    )
    assert (lone.restored, short.restored) == (("not measured", None), ("not measured", None))
    ledger.save(tmp_path, [both])
    assert f"| {HOLDS} | 30 | {FAILS} | 40 |" in (tmp_path / "claims.md").read_text()
    with pytest.raises(ValueError, match="has no name that begins with minima_R_1_at_"):
        claims.record("F2-simpler", {"images": 1}, restored={"minima_R_1": 1.0})


def test_damaged_ledger_is_named(tmp_path):
    for content in ("[]", '{"records": [{}]}', '{"records": [{"id": "A1-tweedie"}]}'):
        (tmp_path / "claims.json").write_text(content)
        with pytest.raises(ValueError, match=r"claims\.json is no claims ledger"):
            ledger.load(tmp_path / "claims.json")
    assert ledger.load(tmp_path / "absent.json") == []
