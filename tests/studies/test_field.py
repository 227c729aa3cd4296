"""The comparison with the field: measurements, stale and resumed results, times, tables."""

import hashlib
import json
import os
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image

from gnclib.cli import main as cli
from gnclib.foe import FieldsOfExperts, FoEConfig, hub
from gnclib.images import data
from gnclib.images.metrics import psnr, ssim
from gnclib.io import table
from gnclib.io.table import Content, Origin
from gnclib.restore import LearnedSchedule, Task, learned
from gnclib.score import mmse
from gnclib.studies import comparison, field
from gnclib.studies.comparison import Images, Method, Quality


def photo(height, width, top=200, left=220, name="camera"):
    return data.embedded()[name][..., top : top + height, left : left + width]


# --- what is compared -------------------------------------------------------------------------------------

SIGMA, HOLES = Task("denoise", 25), Task("inpaint", 0.8)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped priors with one tiny R1."""
    folder = tmp_path / "weights"
    for module in (hub, learned, field):
        monkeypatch.setattr(module, "WEIGHTS", folder)
    monkeypatch.setattr(field, "PRIORS", ("R1",))
    save_tiny(folder / "R1", 0)
    return folder


def save_tiny(folder, seed):
    config = FoEConfig(features=4, kernel_size=3, nodes_x=21, nodes_tau=5)
    prior = FieldsOfExperts(config, generator=torch.Generator().manual_seed(seed)).requires_grad_(False)
    prior.weights[0] *= 1 + 0.1 * seed
    prior.save_pretrained(folder)
    return prior


def test_learned_schedules_are_compared_as_soon_as_they_are_shipped(shipped):
    assert "R1 learned" not in field.methods(SIGMA)
    prior = FieldsOfExperts.from_pretrained("R1")
    schedule = LearnedSchedule(
        [0.02, 0.001], [0.01, 0.002], t_range=(1e-4, 1.0), task=SIGMA, prior="R1",
        prior_sha256=learned.weights_sha256(prior),
    )  # fmt: skip
    schedule.save_pretrained(shipped / "R1-denoise-25")
    assert "R1 learned" in field.methods(SIGMA)
    assert "R1 learned" not in field.methods(Task("denoise", 15))
    method = field.methods(SIGMA)["R1 learned"]()
    measured = SIGMA.measure(photo(24, 24), torch.Generator().manual_seed(0))
    x, evaluations = method.solve(measured)
    assert torch.equal(x, schedule(prior, measured))
    assert evaluations == 2
    assert method.settings["t"] == [0.02, 0.001]
    assert method.parameters == sum(p.numel() for p in prior.parameters()) + 4


def test_measurements_are_those_of_the_protocol(shipped, tmp_path):
    """Noise of seed k and sigma / 255; a mask of seed k where rand < 0.2; numbers recomputed from scratch."""
    images = {"a": photo(30, 34), "b": photo(32, 30, 60, 200)}
    results = list(
        field.compare(tmp_path / "a.json", images, "two", [SIGMA, HOLES], ["R1 mmse", "biharmonic"])
    )
    assert [(r.method, r.task, r.image, r.seed) for r in results] == [
        ("R1 mmse", "denoise-25", "a", 0), ("R1 mmse", "denoise-25", "b", 1),
        ("biharmonic", "inpaint-80", "a", 0), ("biharmonic", "inpaint-80", "b", 1),
    ]  # fmt: skip
    prior = FieldsOfExperts.from_pretrained("R1")
    for k, x in enumerate(images.values()):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
        y = mmse(prior, x + 25 / 255 * noise, (25 / 255) ** 2)
        assert results[k].psnr == pytest.approx(psnr(y, x).item(), abs=1e-4)
        assert results[k].ssim == pytest.approx(ssim(y, x).item(), abs=1e-5)
        assert results[k].evaluations == 1
        known = torch.rand(x.shape, generator=torch.Generator().manual_seed(k)) < 0.2
        y = comparison.biharmonic(torch.where(known, x, 0.7), known)
        assert results[2 + k].psnr == pytest.approx(psnr(y, x).item(), abs=1e-4)
        assert results[2 + k].evaluations is None


def test_no_method_sees_the_clean_image():
    x = photo(20, 20)
    measured = HOLES.measure(x, torch.Generator().manual_seed(0))
    assert (measured.y[~measured.mask] == 0).all()
    assert (measured.start() - x)[~measured.mask].abs().min() > 0


def test_results_of_other_weights_are_run_again(shipped, tmp_path):
    path, images = tmp_path / "a.json", {"a": photo(24, 24), "b": photo(24, 24, 60, 200)}
    run = lambda: list(field.compare(path, images, "two", [SIGMA], ["R1 mmse", "R1 gnc", "TV"]))  # noqa: E731
    before = run()
    assert len(before) == 6
    assert run() == []
    save_tiny(shipped / "R1", 1)
    after = run()
    assert [r.method for r in after] == ["R1 mmse", "R1 gnc"] * 2
    assert {r.psnr for r in after}.isdisjoint(r.psnr for r in before)
    digest = hashlib.sha256((shipped / "R1" / "model.safetensors").read_bytes()).hexdigest()
    rows = field.load(path).rows["results"]
    assert sorted({row.method for row in rows}) == ["R1 gnc", "R1 mmse", "TV"]
    assert {row.settings.get("weights", digest) for row in rows} == {digest}


def test_an_interrupted_rerun_does_not_count_stale_results(shipped, tmp_path):
    path, images = tmp_path / "a.json", {"a": photo(24, 24), "b": photo(24, 24, 60, 200)}
    run = lambda: field.compare(path, images, "two", [SIGMA], ["R1 mmse"])  # noqa: E731
    list(run())
    save_tiny(shipped / "R1", 1)
    assert next(run()).image == "a"  # and then it is killed
    assert [r.image for r in run()] == ["b"]


# --- the file ---------------------------------------------------------------------------------------------


def blur(name, strength, calls):
    """A method that costs nothing; ``calls`` gets its name at each call."""

    def solve(measured):
        calls.append(name)
        return measured.y * (1 - strength) + 0.5 * strength, 3

    return Method(name, solve, {"strength": strength}, 7)


@pytest.fixture
def calls(monkeypatch):
    """Two cheap methods in the place of all others; the list of their calls."""
    found = []
    made = {"BM3D": lambda: blur("BM3D", 0.1, found), "other": lambda: blur("other", 0.3, found)}
    monkeypatch.setattr(field, "methods", lambda task, weight=None: made)
    return found


IMAGES = {name: photo(16, 16, top, 150) for name, top in (("a", 60), ("b", 90), ("c", 120))}


def without_seconds(path):
    rows = field.load(path).rows["results"]
    return [row.model_copy(update={"wall": 0.0, "cpu": 0.0}) for row in rows]


def test_a_killed_comparison_goes_on_and_ends_as_if_it_had_not_been(calls, tmp_path):
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    assert len(list(field.compare(whole, IMAGES, "three", [SIGMA]))) == 6
    assert calls == ["BM3D", "other"] * 3
    killed = field.compare(parts, IMAGES, "three", [SIGMA])
    first = [next(killed) for _ in range(3)]
    killed.close()  # what has been yielded is in the file
    rest = list(field.compare(parts, IMAGES, "three", [SIGMA]))
    assert [(r.image, r.method) for r in first + rest] == [(i, m) for i in "abc" for m in ("BM3D", "other")]
    assert without_seconds(parts) == without_seconds(whole)
    calls.clear()
    assert list(field.compare(parts, IMAGES, "three", [SIGMA])) == []
    assert calls == []
    (row,) = (r for r in field.load(parts).rows["results"] if (r.method, r.image) == ("BM3D", "b"))
    y = SIGMA.measure(IMAGES["b"], torch.Generator().manual_seed(1)).y
    assert (row.seed, row.psnr) == (1, pytest.approx(psnr(0.9 * y + 0.05, IMAGES["b"]).item(), abs=1e-4))


def test_results_about_other_images_are_not_mixed(calls, tmp_path):
    path = tmp_path / "a.json"
    next(field.compare(path, IMAGES, "three", [SIGMA]))
    with pytest.raises(ValueError, match="its set is three, not BSDS68"):
        next(field.compare(path, IMAGES, "BSDS68", [SIGMA]))


# --- time -------------------------------------------------------------------------------------------------


def test_methods_are_timed_in_turns_against_bm3d(monkeypatch, tmp_path):
    order = []

    def slow(name, rounds):
        def solve(measured):
            order.append((name, tuple(measured.y.shape)))
            for _ in range(rounds):
                np.linalg.svd(np.ones((40, 40)))
            return measured.y, None

        return Method(name, solve, {})

    made = {"BM3D": lambda: slow("BM3D", 100), "twice": lambda: slow("twice", 200)}
    monkeypatch.setattr(field, "methods", lambda task, weight=None: made if task == SIGMA else {})
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    path = tmp_path / "a.json"
    seconds = {row.method: sum(row.cpu) for row in field.timing(path, IMAGES, "three", [HOLES], ["twice"])}
    assert [name for name, _ in order] == ["BM3D", "twice"] * 4  # a warm-up, then each image
    assert allowed is None or os.sched_getaffinity(0) == allowed
    ratio = seconds["twice"] / seconds["BM3D"]
    assert 1.2 < ratio < 3.5
    list(field.compare(path, IMAGES, "three", [SIGMA]))
    row = next(line for line in field.table(field.load(path)).splitlines() if "twice" in line)
    assert f"| {ratio:.3g} |" in row
    again = {row.method: sum(row.cpu) for row in field.timing(path, IMAGES, "three", [SIGMA])}
    row = next(line for line in field.table(field.load(path)).splitlines() if "twice" in line)
    assert f"| {again['twice'] / again['BM3D']:.3g} |" in row  # the last run counts


# --- the table --------------------------------------------------------------------------------------------


MADE = Origin(revision="r", machine="m", software="s")


def synthetic():
    def rows(method, task, images, parameters=None):
        return [
            Quality(
                method=method, task=task, image=image, seed=0, psnr=psnr, ssim=ssim, wall=1, cpu=1, evaluations=count,
                settings={"parameters": parameters}, made=MADE,
            )
            for image, (psnr, ssim, count) in images.items()
        ]  # fmt: skip

    def timing(task, method, cpu, evaluations=None):
        settings = {"reference": "denoise-5", "images": ["a", "b"]}
        columns = {
            "run": 1,
            "task": task,
            "method": method,
            "cpu": cpu,
            "wall": cpu,
            "evaluations": evaluations,
        }
        return field.Timing(**columns, settings=settings, made=MADE)

    results = [
        *rows("BM3D", "denoise-50", {"a": (25.0, 0.7, None)}),
        *rows("BM3D", "denoise-5", {"a": (30.0, 0.9, None), "b": (31.0, 0.8, None)}),
        *rows("ours", "denoise-5", {"a": (32.0, 0.95, 2)}, 12345),
        *rows("ours", "inpaint-80", {"a": (20.0, 0.5, 9)}, 12347),
    ]
    times = [
        timing("denoise-5", "BM3D", [4.0, 6.0]),
        timing("denoise-5", "ours", [1.0, 1.5], 2),
        timing("inpaint-80", "ours", [30.0, 30.0], 9),
    ]
    return Content(Images(set="a few"), {"results": results, "tv": [], "timing": times})


def test_table():
    measured, cited = field.table(synthetic()).split("Cited, not measured here:")
    assert measured.splitlines()[:4] == [
        "| method | parameters | sigma 5 | sigma 50 | 80 % missing | time, sigma 5 | time, 80 % missing | images |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| BM3D | - | 30.50 (0.850) | 25.00 (0.700) | - | 1 | - | 2 / 1 |",
        "| ours | 12,345 / 12,347 | 32.00 (0.950) | - | 20.00 (0.500) | 0.25 | 6 | 1 |",
    ]
    assert "DnCNN" not in measured
    assert "| TNRD (7x7, 5 stages) | 26,645 | 31.42 | 28.92 | 25.97 |" in cited
    assert all(source[:5] in field.table(synthetic()) for *_, source in field.CITED)


def test_psnr_by_image():
    content = synthetic()
    content.rows["results"].append(content.rows["results"][3].model_copy(update={"image": "b", "psnr": 33.0}))
    assert field.psnr_by_image(content, "ours", "denoise-5") == {"a": 32.0, "b": 33.0}
    with pytest.raises(ValueError, match="no result of 'ours' at 'denoise-50' yet"):
        field.psnr_by_image(content, "ours", "denoise-50")


def test_a_time_of_another_number_of_steps_is_left_out():
    content = synthetic()
    content.rows["timing"][2] = content.rows["timing"][2].model_copy(update={"evaluations": 10})
    assert "time, 80 % missing" not in field.table(content)


@pytest.mark.parametrize("lost", ["method", "seconds"])
def test_a_timing_without_its_unit_is_refused(tmp_path, lost):
    """A table would be made of it: it must not get as far as a division by zero there."""
    content, path = synthetic(), tmp_path / "a.json"
    path.write_text(table.dumps(content, field.FORM))
    assert field.load(path) == content
    unit = content.rows["timing"].pop(0)
    if lost == "seconds":
        content.rows["timing"].append(unit.model_copy(update={"cpu": []}))
    path.write_text(table.dumps(content, field.FORM))
    with pytest.raises(ValueError, match="timing 1 lacks the time of BM3D"):
        field.load(path)


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="no results"):
        field.table(Content(Images(set="none"), {"results": [], "tv": [], "timing": []}))


# --- the command ------------------------------------------------------------------------------------------


def gnc(capsys, *words):
    threads = torch.get_num_threads()
    status = cli.main([str(word) for word in words])
    torch.set_num_threads(threads)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def folder(tmp_path):
    for k in range(2):
        grey = (photo(20, 20, 60 + 20 * k, 150)[0, 0] * 255).round().to(torch.uint8).numpy()
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(grey).save(tmp_path / "photos" / f"{k}.png")
    return tmp_path / "photos"


def test_the_command_compares_resumes_and_shows(calls, folder, tmp_path, capsys):
    words = ("compare", "--images", folder, "--sigma", 25, "--out", tmp_path / "a.json")
    status, out, _ = gnc(capsys, *words, "--limit", 1)
    assert (status, "2 results were added" in out) == (0, True)
    status, out, _ = gnc(capsys, *words)
    assert (status, "2 results were added" in out) == (0, True)
    assert calls == ["BM3D", "other"] * 2
    status, out, _ = gnc(capsys, "compare", "--table", "--out", tmp_path / "a.json")
    assert status == 0
    assert out == field.table(field.load(tmp_path / "a.json")) + "\n"


def test_the_command_refuses_nonsense(calls, folder, tmp_path, capsys):
    good = ["compare", "--images", folder, "--out", tmp_path / "a.json"]
    (tmp_path / "foreign.json").write_text('{"a": 1}')
    (tmp_path / "empty").mkdir()
    for words, status, says in [
        ([*good, "--sigma", 0], 2, "must lie in"),
        ([*good, "--sigma", "nan"], 2, "must lie in"),
        ([*good, "--missing", 100], 2, "must lie in"),
        ([*good, "--missing", 0.8], 2, "--missing is in percent here: 0.8 of the pixels is --missing 80"),
        ([*good, "--limit", 0], 2, "--limit"),
        ([*good, "--timing", 0], 2, "--timing"),
        ([*good, "--only", "BM4D"], 2, "no method 'BM4D' for these problems: choose one of BM3D, other"),
        (["compare", "--images", tmp_path / "none"], 1, "there is no folder"),
        (["compare", "--images", tmp_path / "empty"], 2, "no image in"),
        ([*good[:3], "--out", tmp_path / "foreign.json"], 2, "no file of comparisons"),
        (["compare", "--table", "--out", tmp_path / "none.json"], 1, "none.json"),
        (["compare", "--table", "--out", tmp_path / "foreign.json"], 2, "no file of comparisons"),
    ]:
        result, _, err = gnc(capsys, *words)
        assert (result, says in err, "Traceback" in err) == (status, True, False), (words, err)
        assert not (tmp_path / "a.json").exists()
    assert calls == []


def test_tuning_is_recorded_and_not_repeated(tmp_path, monkeypatch):
    path, count = tmp_path / "a.json", []
    monkeypatch.setattr(data, "training_images", lambda: {"x": photo(20, 20)})
    tune, level = comparison.tune_tv, Task("denoise", 33)  # none of the shipped ones
    monkeypatch.setattr(field, "tune_tv", lambda *args: count.append(1) or tune(*args))
    for _ in range(2):
        list(field.compare(path, {"a": photo(16, 16)}, "some", [level], ["TV"]))
    (row,) = field.load(path).rows["tv"]
    assert (row.task, row.weight) == ("denoise-33", tune({"x": photo(20, 20)}, level.sigma)["weight"])
    assert row.on == ["x"]
    assert len(count) == 1
    monkeypatch.setattr(data, "training_images", lambda: pytest.fail("the shipped weight will do"))
    list(field.compare(tmp_path / "b.json", {"a": photo(16, 16)}, "some", [SIGMA], ["TV"]))
    known = {row.task: row.weight for row in field.load().rows["tv"]}
    assert [row.weight for row in field.load(tmp_path / "b.json").rows["tv"]] == [known["denoise-25"]]


# --- the shipped results ----------------------------------------------------------------------------------


def test_shipped_results_are_those_of_the_shipped_weights():
    """If this fails after a change of weights: gnc compare --out gnclib/studies/field.json runs what is stale."""
    content = field.load()
    weights = {row.task: row.weight for row in content.rows["tv"]}
    for task in field.TASKS:
        offered = field.methods(task, weights.get(str(task)))
        rows = [row for row in content.rows["results"] if row.task == str(task)]
        settings = {(row.method, json.dumps(row.settings)) for row in rows}
        for name, found in settings:
            if name != "BM3D":  # which was made without its package, too
                method = offered[name]()
                (job,) = comparison.jobs(task, [method], {"a": photo(8, 8)})
                now = job.depends
                assert json.loads(found) == now, (name, task)
        assert not any(row.made.revision.endswith("dirty") for row in rows)


def test_shipped_results_agree_with_the_evaluations_of_the_priors():
    content = field.load()
    for prior in field.PRIORS:
        recorded = json.loads((hub.WEIGHTS / prior / "evaluation.json").read_text())["psnr_by_sigma"]
        for task in (t for t in field.TASKS if t.kind == "denoise"):
            found = field.psnr_by_image(content, f"{prior} mmse", str(task))
            expected = recorded[f"{task.level:g}"]["images"]
            assert found == {image: pytest.approx(expected[image], abs=1e-3) for image in found}


def test_the_readme_shows_the_shipped_results():
    readme = (hub.WEIGHTS.parents[1] / "README.md").read_text(encoding="utf-8")
    shipped = field.load()
    psnr = (field.psnr_by_image(shipped, "R3 learned", f"denoise-{s}").values() for s in (15, 25, 50))
    assert " / ".join(f"{fmean(values):.2f}" for values in psnr) in " ".join(readme.split())
