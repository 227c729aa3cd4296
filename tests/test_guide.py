"""README and guide: their examples run, their links lead somewhere, their numbers are those that are shipped."""

import hashlib
import json
import math
import re
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from benchmarks import engine
from gnclib import denoise_gnc, load_prior
from gnclib.images import data
from gnclib.score.recipes import departure_variants
from gnclib.studies import ablations, coverage, field, problems
from gnclib.suite import ledger

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "notebooks" / "guide"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(GUIDE.glob("*.md"))]


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def examples(path: Path) -> list[str]:
    """The blocks marked ``python``; those that need data of the reader's own are marked ``py`` or not at all."""
    return re.findall(r"```python\n(.*?)```", text(path), flags=re.DOTALL)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 9_000


def test_the_readme_counts_the_verdicts_on_the_paper():
    (row,) = re.findall(r"\| The paper's claims \| (.*) \|", text(ROOT / "figures" / "claims.md"))
    identities, holds, caveats, undecided, fails = map(int, row.split(" | "))
    total = identities + holds + caveats + undecided + fails
    said = f"of {total}, {identities} are identities, {holds} hold, {caveats} with a caveat, {fails} do not"
    assert said in " ".join(text(ROOT / "README.md").split())
    assert undecided == 0


def test_the_page_on_reproducibility_says_how_verdicts_changed():
    page, stored = text(GUIDE / "reproducibility.md"), ledger.load(ROOT / "figures" / "claims.json")
    evidence = {record.id: record.evidence for record in stored}
    of_page = re.findall(r"^\| ([A-Z]\S*-\S+) \| [a-z ]+ \| ([a-z ]+) \|", page, re.MULTILINE)
    assert len(of_page) == 12
    assert dict(of_page).items() <= {record.id: record.verdict for record in stored}.items()
    bent = [100 * evidence["F2-quadratic"][f"share_parabolas_R_{k}"] for k in (2, 3)]
    assert "{:.0f} % of R_2's potentials and {:.0f} % of R_3's".format(*bent) in page
    minima = {k: v for k, v in evidence["F2-simpler"].items() if k.startswith("minima_R_")}
    assert all(
        minima[f"minima_R_{k}_at_{s}"] > minima[f"minima_R_1_at_{s}"] for k in (2, 3) for s in (32, 100, 316)
    )
    assert f"{evidence['I-mmse']['best_other_prior_above_db']:.2f} dB above" in page
    assert "Thirteen of the 50" in page
    assert sum(record.verdict == "verified identity" for record in stored) == 13


def test_the_eigenvalues_of_the_page_on_priors_are_those_of_notebook_9():
    """Smallest over the crops at sigma = 1, away from the border and with it."""
    found = json.loads((ROOT / "figures" / "learned_hessian.json").read_text(encoding="utf-8"))
    inside = {name: np.array(values)[-1].min(0) for name, values in found["inside"].items()}  # noisy, clean
    everywhere = {name: np.array(values)[-1, ..., 0].min(0) for name, values in found["eigenvalues"].items()}
    page = " ".join(text(GUIDE / "priors.md").split())
    p, r = ([f"{inside[f'{kind}_{k}'][0]:.2f} ({kind}{k})" for k in (1, 2, 3)] for kind in "PR")
    assert f"is {p[0]}, {p[1]} and {p[2]}, {r[0]}, {r[1]} and {r[2]};" in page
    border = ", ".join(f"{everywhere[f'R_{k}'][0]:.2f}" for k in (1, 2, 3))
    assert (
        f"negative for R1, R2 and R3, too ({border}), and at clean photographs R2 has {inside['R_2'][1]:.2f} ("
        in page
    )


def test_the_coverage_of_intervals_is_that_of_the_study():
    rows, page = coverage.load().rows["images"], " ".join(text(GUIDE / "own_images.md").split())
    at, middle, correlations = coverage.LEVELS.index(0.9), coverage.LEVELS.index(0.5), []
    for name in coverage.PRIORS:
        cases = [coverage.summary(rows, name, sigma) for sigma in coverage.NOISE]
        for kind in ("raw", "inside"):
            assert " / ".join(f"{100 * getattr(c, kind)[at]:.1f}" for c in cases) + " %" in page
        assert all(51.95 < 100 * c.inside[middle] < 56 for c in cases)
        correlations += [c.correlation for c in cases]
    assert f"correlation {min(correlations):.3f} and more" in page
    sets = [
        [r for r in rows if (r.prior, r.set) == (p, f"{n} photons")] for p in ("R1", "R3") for n in (20, 100)
    ]
    assert all(len(found) == 68 for found in sets)
    shares = [100 * np.mean([row.inside[at] for row in found]) for found in sets]
    said = "those of 90 % hold {:.1f} and {:.1f} % (R_1) and {:.1f} and {:.1f} % (R_3) of the errors"
    assert said.format(*shares) in page
    over = [100 * (sum(r.risk for r in found) / sum(r.squared for r in found) - 1) for found in sets[::2]]
    assert "SURE is {:.0f} and {:.0f} % too large at 20 photons".format(*over) in page


def test_sentences_on_learned_schedules_are_those_of_the_comparison():
    page, shipped = " ".join(text(GUIDE / "priors.md").split()), field.load()

    def mean(method, task):
        return np.mean([*field.psnr_by_image(shipped, method, task).values()])

    assert "is at these three levels within 0.02 dB of R_3, in one step and with learned schedules" in page
    for scheme, task in product(("mmse", "learned"), ("denoise-15", "denoise-25", "denoise-50")):
        assert abs(mean(f"C3 {scheme}", task) - mean(f"R3 {scheme}", task)) < 0.02
    for prior, least, most in (("G1", 0.04, 0.04), ("R3", 0.04, 0.06)):
        found = []
        for level in (15, 25, 50):
            eight, one = (
                field.psnr_by_image(shipped, f"{prior} {s}", f"denoise-{level}")
                for s in ("symmetric", "mmse")
            )
            assert len(eight) == 68
            assert all(eight[image] > value for image, value in one.items())
            found.append(np.mean([*eight.values()]) - np.mean([*one.values()]))
        assert [round(end(found), 2) for end in (min, max)] == [least, most]
    assert "by 0.04 dB with G1 and 0.04 to 0.06 dB with R_3, for eight gradients" in page
    gains = [
        mean(f"{p} learned", "inpaint-80") - mean("biharmonic", "inpaint-80") for p in ("R3", "G1", "R1")
    ]
    assert (
        "{:.2f} dB better than biharmonic inpainting, G1 {:.2f} dB and R_1 {:.2f} dB".format(*gains) in page
    )


@pytest.mark.filterwarnings("ignore:what varies")
def test_the_example_of_unequal_noise_in_colour():
    """Two numbers of the page on own images, from the description beside them."""
    x = data.embedded(colour=True)["astronaut"].numpy().reshape(3, 512, 512)[:, 192:320, 192:320]
    y = x + np.random.default_rng(0).standard_normal(x.shape) * np.array([40, 20, 10])[:, None, None] / 255
    values = [
        -10 * np.log10(np.mean((denoise_gnc(y, channel_axis=0, colour=colour) - x) ** 2))
        for colour in ("auto", "channels")
    ]
    said = "31.3 dB, against 29.1 dB channel by channel"
    assert said in " ".join(text(GUIDE / "own_images.md").split())
    assert [f"{value:.1f}" for value in values] == re.findall(r"\d\d\.\d", said)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(path)):
        if "://" not in target:
            assert (path.parent / target.partition("#")[0]).exists(), f"{path.name} links to {target}"


def test_the_example_of_the_readme_restores_an_image():
    (code,) = examples(ROOT / "README.md")
    first, *steps = [re.findall(r"-?\d+\.\d+(?:e-?\d+)?", line) for line in run(code).splitlines()]
    assert float(first[0]) < float(first[1])
    assert len(steps) == 10
    assert float(steps[-1][-1]) > 28  # PSNR in dB; the noisy image has 20.2


def test_the_proof_of_the_guide_is_one():
    _, code = examples(GUIDE / "pipelines.md")
    assert "proved: F(., t) is convex on [-1, 1.5] for every t >=" in run(code)


def test_the_mean_of_chains_has_the_numbers_of_the_guide():
    page = " ".join(text(GUIDE / "pipelines.md").split())
    found = [re.findall(r"\d+\.\d", line) for line in run(examples(GUIDE / "pipelines.md")[0]).splitlines()]
    assert "the mean has {1} dB and the flow {0} dB".format(*found[0]) in page
    assert (
        "On all pixels they have {1} and {0} dB, but there chains disagree (R-hat up to {2})".format(
            *found[1]
        )
        in page
    )


def test_the_page_on_speed_shows_what_was_measured():
    table = json.loads((ROOT / "benchmarks" / "engine.json").read_text(encoding="utf-8"))
    page = text(GUIDE / "speed.md")
    assert engine.report(table) in page
    seconds = {name: row["seconds"]["ours"] for name, row in table["rows"].items()}
    single, half = (seconds[f"R3 learned schedule{k}"] / seconds["BM3D"] for k in ("", ", bfloat16"))
    said = " ".join(page.split())
    assert f"falls from {single:.2f} to {half:.2f} of that of BM3D" in said
    assert f"at {table['rows']['G1 gradient']['ratio']:.2f} times the floor an explicit backward pass" in said
    assert ("Here R3's gradient misses its goal" in said) == (table["rows"]["R3 gradient"]["ratio"] > 1.4)


def test_the_losses_of_the_network_in_inverse_problems_are_told():
    found = {}
    for row in problems.load().rows["results"]:
        found.setdefault((row.task, row.method), {})[row.image] = row.psnr
    worst = {}
    for task in ("super-3", "sensing"):
        network, one_layer = (found[task, f"{name} gnc"] for name in ("G1", "R1"))
        worst[task] = sorted(one_layer[image] - value for image, value in network.items())[::-1]
    said = (
        "G1 loses {:.1f} dB to R_1 on one image at x3, and {:.1f} and {:.1f} dB on two in compressed sensing"
    )
    said = said.format(worst["super-3"][0], *worst["sensing"][:2])
    assert said in " ".join(text(GUIDE / "pipelines.md").split())


@pytest.mark.parametrize("name", ["add_a_prior", "add_an_operator", "add_a_figure", "add_a_claim"])
def test_examples_of_extensions_run(name):
    (code,) = examples(GUIDE / f"{name}.md")
    assert "assert" in code  # each ends in a check of its own
    run(code)


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "gnclib" / "weights").glob("[A-Z][0-9]")), ids=lambda f: f.name
)
def test_the_table_of_priors_is_what_is_shipped(folder):
    made, measured = (
        json.loads((folder / name).read_text()) for name in ("training.json", "evaluation.json")
    )
    (row,) = re.findall(rf"^\| {folder.name} \|.*$", text(GUIDE / "priors.md"), re.MULTILINE)
    means = [f"{measured['psnr_by_sigma'][sigma]['mean']:.2f}" for sigma in ("15", "25", "50")]
    assert f"| {' / '.join(means)} |" in row
    assert all(len(measured["psnr_by_sigma"][sigma]["images"]) == 68 for sigma in ("15", "25", "50"))
    assert f"{made['iterations']:,}" in row
    assert ("unfinished" in row) == (made["iterations"] < made["settings"]["steps"])
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert made.get("weights_sha256", digest) == digest
    if folder.name == "R3":
        assert " / ".join(means) in " ".join(text(ROOT / "README.md").split())


def test_makefile_has_the_targets_that_are_named():
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), flags=re.MULTILINE))
    named = {
        name for path in PAGES for name in re.findall(r"(?:`|^)make ([a-z-]+)", text(path), re.MULTILINE)
    }
    named -= {"it", "its"}  # English, at the beginning of a line
    assert {"figures", "test"} <= named <= targets


def test_the_tables_are_those_of_the_shipped_results():
    assert field.table(field.load()) in text(GUIDE / "priors.md")
    assert problems.table(problems.load()) in text(GUIDE / "pipelines.md")
    assert ablations.table(ablations.load(ablations.DEPARTURES)) in text(GUIDE / "priors.md")
    drifts, worst = coverage.load(), {}
    assert coverage.drift_table(drifts) in text(GUIDE / "priors.md")
    for row in drifts.rows["drifts"]:
        worst[row.prior] = max(worst.get(row.prior, 0), abs(100 * np.mean(row.values)))
    assert {name for name, value in worst.items() if value <= 1} == {"R3", "G1"}
    assert sorted(worst, key=worst.get)[2] == "P3"
    said = "(at most {R3:.1f} and {G1:.1f} %); P3 reaches {P3:.1f} %, the others more, C1 {C1:.1f} % at sigma = 0.01"
    assert said.format(**worst) in " ".join(text(GUIDE / "priors.md").split())


def test_what_each_departure_brings_is_what_the_trainings_gave():
    page = " ".join(text(GUIDE / "priors.md").split())
    rows = {row.variant: row for row in ablations.load(ablations.DEPARTURES).rows["runs"]}
    _, averaged, denoising, kernels, scaled, damped = (rows[v.name] for v in departure_variants())
    gains = [np.subtract(b.psnr, a.psnr) for a, b in pairwise((averaged, denoising, kernels, scaled, damped))]
    for said in (
        "loses {:.2f} dB at 15 and {:.2f} at 25, and gains {:.2f} at sigma = 1".format(
            *-gains[0][:2], gains[0][4]
        ),
        f"where the eigenvalue falls to {denoising.curvature[1]:.2f};",
        f"at sigma = 1 from {kernels.curvature[1]:.2f} to {scaled.curvature[1]:.2f} and the",
        f"the PSNR there by {gains[2][4]:.2f} dB",
        f"took {scaled.cpu_seconds / 60:.0f} minutes, not {kernels.cpu_seconds / 60:.0f}.",
        f"changes nothing beyond chance ({-gains[3][4]:.2f} dB at sigma = 1)",
        f"nothing lasts, of the other {gains[2][3]:.2f} dB.",
    ):
        assert said in page
    assert np.abs(gains[0] + gains[1]).max() < 0.02  # undone
    assert damped.curvature[1] < scaled.curvature[1]

    def short(name, other):
        """Mean gain over the noise levels, smallest eigenvalue at sigma = 1 and seconds of each, largest gain."""
        a, b = ([r for r in ablations.load().rows["runs"] if r.variant == n] for n in (other, name))
        gains = np.mean([r.psnr for r in b], 0) - np.mean([r.psnr for r in a], 0)
        ends = [np.mean([r.curvature[1] for r in runs]) for runs in (a, b)]
        return gains.mean(), *ends, *(np.mean([r.cpu_seconds for r in runs]) for runs in (a, b)), gains.max()

    gain, without, there, *_ = short("recipe", "roughness = 0")
    assert f"damping gained {gain:.2f} dB and lifted the eigenvalue from {without:.2f} to {there:.2f}" in page
    assert f"the scaled input gained {short('recipe', 'input not scaled')[-1]:.2f} dB at 128" in page
    limit = next(r for r in ledger.load(ROOT / "figures" / "claims.json") if r.id == "A-deep").evidence[
        "threshold_dB"
    ]
    assert f"a difference is decided beyond {limit:.2f} dB" in page
    for name, other, what in (
        ("R_3 warm", "R_3 cold", "warm start instead of a cold one"),
        ("R_3 magnitudes", "R_3 lambda / 5", "magnitudes in the last hidden layer"),
        ("R_3 dilated", "R_3 magnitudes", "dilated kernels"),
    ):
        row = "| {:+.2f}{} | {:.2f}, {:.2f} | {:.0f}, {:.0f} |"
        found = short(name, other)
        decided = ", undecided" if abs(found[0]) < limit else ""
        assert f"| {what} {row.format(found[0], decided, *found[1:5])}" in page


@pytest.mark.skipif(not data.available(("val",)), reason="the validation images of BSDS500 are not here")
def test_recipes_that_were_trained_twice():
    page, judge = " ".join(text(GUIDE / "priors.md").split()), ablations.KINDS["departures"][1]
    rows = {row.variant: row for row in ablations.load(ablations.DEPARTURES).rows["runs"]}
    crops = ablations.held_out()
    for shipped, name in (("P1", "P_1"), ("R1", "+ damping (R_1)")):
        found = judge(load_prior(shipped), crops)
        gains = np.subtract(found["psnr"], rows[name].psnr)
        if shipped == "P1":
            said = f"has {gains[-1]:.2f} dB more at sigma = 1 and an eigenvalue of {found['curvature'][1]:.2f} there"
            assert said in page
        else:
            assert np.abs(gains).max() < 0.01
            assert "R1 has the same PSNR to 0.01 dB" in page


def test_the_price_of_a_proved_bound_is_that_of_the_figure():
    stored = json.loads((ROOT / "figures" / "price_of_convexity.json").read_text(encoding="utf-8"))
    price = dict(zip(stored["bounds"], stored["proved"], strict=True))
    said = " ".join(text(GUIDE / "priors.md").split())
    assert f"at most 8 away from the border for {max(price[8]):.4f} dB or less" in said
    assert f"at most 4 for {min(price[4]):.2f} to {max(price[4]):.2f} dB, and at most 2" in said
    assert f"for {min(price[2]):.1f} to {max(price[2]):.1f} dB (eight crops" in said
    assert f"R_1 itself has {load_prior('R1').certify(1.0).inner_curvature:.1f} at sigma = 1" in said


def test_the_table_of_noise_levels_is_that_of_the_shipped_results():
    found = {}
    for row in field.load(field.ALL_LEVELS).rows["results"]:
        level = float(row.task.removeprefix("denoise-"))
        found.setdefault(row.method, {}).setdefault(level, []).append(row.psnr)
    page = text(GUIDE / "priors.md")
    levels = sorted(found["Wiener"])
    assert f"| {' | '.join(f'{level / 255:g}' for level in levels)} |" in page
    for name, by_level in found.items():
        assert all(len(values) == 68 for values in by_level.values())
        means = [f"{fmean(by_level[level]):.2f}" if level in by_level else "-" for level in levels]
        assert f"| {name} | {' | '.join(means)} |" in page
    assert {"Wiener", *(f"{prior} mmse" for prior in field.PRIORS)} == found.keys()
    mean = {
        (name.split()[0], level / 255): fmean(v) for name, rows in found.items() for level, v in rows.items()
    }
    levels, said = [level / 255 for level in levels], " ".join(page.split())
    below = {
        p: [s for s in levels if mean.get((p, s), math.inf) < mean["Wiener", s]][:1] for p in field.PRIORS
    }
    assert {p for p, first in below.items() if not first} == {"C1", "M1", "M3"}
    assert {p for p, first in below.items() if first == [0.8]} == {"R1", "R2", "P1", "P2", "P3"}
    assert (below["R3"], below["C3"], below["G1"]) == ([1], [1.4], [4])
    assert (
        "C1, M1 and M3 are above it at every level of their range, C3 up to 1 and G1 up to 2; R1, R2 and P1 to P3 fall"
        " below it at 0.8" in said
    )
    levels = [s for s in levels if s <= 1]  # the range of all
    gains = [mean["P2", s] - mean["R2", s] for s in levels if s >= 0.5]
    assert f"P2 is better than R2 (by {min(gains):.2f} to {max(gains):.2f} dB" in said
    assert f"P1 as good as R1 but at sigma = 1 ({mean['R1', 1] - mean['P1', 1]:.2f} dB less)" in said
    assert f"(at 0.01 P1 has {mean['P1', levels[0]]:.2f} dB, M1 {mean['M1', levels[0]]:.2f})" in said
    lost = {s: mean["R3", s] - mean["C3", s] for s in levels}
    assert max(abs(v) for s, v in lost.items() if s <= 0.2) < 0.02
    assert max(v for s, v in lost.items() if s >= 0.8) < 0
    assert f"within 0.02 dB, {lost[0.5]:.2f} dB less at 0.5 and more from 0.8 on" in said
    price = {s: mean["M3", s] - mean["C3", s] for s in (*levels, 1.4, 2)}
    assert f"and {price[1.4]:.2f} and {price[2]:.2f} dB at 1.4 and 2, the end of its range" in said
    over = [mean["G1", s] - mean["R3", s] for s in levels]
    assert (
        f"above R3 by {over[0]:.2f} dB at 0.01 and by {min(over[1:]):.2f} to {max(over):.2f} dB from 0.05 on"
        in said
    )
    filters = [f"{mean[name, s]:.2f}" for name in ("G1", "Wiener") for s in (4, 8)]
    assert "{} / {} dB at 4 / 8, the filter {} / {}".format(*filters) in said
    most = max(price[s] for s in levels if s <= 0.1)
    assert (
        f"costs it {most:.2f} dB at most up to sigma = 0.1, {price[0.5]:.2f} dB at 0.5 and {price[1]:.2f} dB at 1"
        in said
    )
    gains = [mean["M3", s] - mean["R3", s] for s in levels if s >= 0.5]
    assert f"better than R3 by {min(gains):.2f} to {max(gains):.2f} dB from 0.5 on" in said
    proved = [load_prior("C3").certify(s**2).inner_curvature for s in (0.6, 1.0)]
    assert f"is at most {proved[0]:.1f} at sigma = 0.6 and {proved[1]:.1f} at 1" in said
    price = fmean(found["M1 mmse"][255.0]) - fmean(found["C1 mmse"][255.0])
    assert f"at sigma = 1, {price:.2f} dB more than C1" in " ".join(text(ROOT / "README.md").split())
