"""The methods of the field against closed forms and other solvers; the comparison, resumed, stale, and as a table."""

import hashlib
import json
import os
import sys
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image

from gnclib.cli import main as cli
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.foe import energy as foe
from gnclib.images import data
from gnclib.images.metrics import psnr, ssim
from gnclib.restore import learned
from gnclib.restore.learned import LearnedSchedule, Task
from gnclib.score import mmse
from gnclib.studies import field, field_methods, field_run, results
from gnclib.studies.results import Method


def photo(height, width, top=200, left=220, name="camera"):
    return data.embedded()[name][..., top : top + height, left : left + width]


# --- TV ---------------------------------------------------------------------------------------------------


def test_tv_of_a_step_is_known_exactly():
    """Two flat halves of n and m columns: each moves towards the other, by w / n and w / m."""
    y = torch.cat([torch.full((1, 1, 6, 4), 0.2), torch.full((1, 1, 6, 8), 0.8)], dim=3).double()
    expected = torch.cat(
        [torch.full((1, 1, 6, 4), 0.2 + 0.1 / 4), torch.full((1, 1, 6, 8), 0.8 - 0.1 / 8)], dim=3
    )
    assert torch.allclose(field.tv(y, 0.1), expected.double(), atol=2e-3)
    assert (expected - y).abs().max() > 0.02  # ten times that


def chambolle_pock(y, weight, steps=3000):
    """The same minimiser by another algorithm: the primal-dual method of Chambolle & Pock 2011."""
    x = bar = y.copy()
    p = np.zeros((2, *y.shape))
    step = 1 / np.sqrt(8)
    for _ in range(steps):
        slope = np.zeros_like(p)
        slope[0, :-1], slope[1, :, :-1] = np.diff(bar, axis=0), np.diff(bar, axis=1)
        p = p + step * slope
        p = p / np.maximum(1, np.sqrt((p**2).sum(0)) / weight)
        adjoint = np.zeros_like(x)
        adjoint[:-1] -= p[0, :-1]
        adjoint[1:] += p[0, :-1]
        adjoint[:, :-1] -= p[1, :, :-1]
        adjoint[:, 1:] += p[1, :, :-1]
        new = (x - step * adjoint + step * y) / (1 + step)
        bar, x = 2 * new - x, new
    return x


def test_tv_agrees_with_another_solver():
    y = data.add_noise(photo(24, 20).double(), 0.1, 0)
    x = field.tv(y, 0.1)
    expected = torch.from_numpy(chambolle_pock(y[0, 0].numpy(), 0.1))
    assert (x[0, 0] - expected).square().mean().sqrt() < 3e-3
    assert (y[0, 0] - expected).square().mean().sqrt() > 0.05


def test_tuned_weight_beats_its_neighbours():
    images = {"a": photo(40, 40), "b": photo(40, 40, 60, 200)}
    tuned = field.tune_tv(images, 0.1)
    assert tuned["images"] == 2

    def quality(weight):
        noisy = [data.add_noise(x, 0.1, k) for k, x in enumerate(images.values())]
        pairs = zip(images.values(), noisy, strict=True)
        return np.mean([psnr(field.tv(y, weight), x).item() for x, y in pairs])

    assert quality(tuned["weight"]) == pytest.approx(tuned["psnr"], abs=1e-4)
    for factor in (0.3, 0.8, 1.25, 3):
        assert quality(factor * tuned["weight"]) < tuned["psnr"]


def test_tuning_never_sees_the_benchmark():
    with pytest.raises(ValueError, match="BSDS68"):
        field.tune_tv({data.bsds68_ids()[0]: photo(20, 20)}, 0.1)
    with pytest.raises(ValueError, match="no images"):
        field.tune_tv({}, 0.1)


# --- BM3D and biharmonic inpainting -----------------------------------------------------------------------


def test_bm3d_denoises_and_repeats_itself():
    pytest.importorskip("bm3d")
    x = photo(40, 48)
    y = data.add_noise(x, 25 / 255, 0)
    first, again = (field.bm3d(y, 25 / 255) for _ in range(2))
    assert first.shape == y.shape
    assert first.dtype == y.dtype
    assert torch.equal(first, again)  # one thread: the order of its sums is fixed
    assert psnr(first, x) > psnr(y, x) + 5
    assert psnr(first, x) > psnr(field.tv(y, 0.07), x)


def test_bm3d_gets_the_noise_level_right():
    """A weaker or stronger filter than sigma asks for is worse."""
    pytest.importorskip("bm3d")
    x = photo(40, 48)
    y = data.add_noise(x, 25 / 255, 0)
    quality = [psnr(field.bm3d(y, sigma / 255), x).item() for sigma in (12, 25, 60)]
    assert quality[1] > max(quality[0], quality[2]) + 0.3


def test_a_missing_bm3d_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ImportError, match=r"non-commercial.*gnclib\[compare\]"):
        field.bm3d(torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)), 0.1)


def test_biharmonic_inpainting_completes_cubic_polynomials():
    """Their fourth differences vanish, so they solve the discrete equation; holes stay clear of the border."""
    v, u = torch.meshgrid(
        torch.linspace(-1, 1, 15).double(), torch.linspace(-1, 1, 18).double(), indexing="ij"
    )
    x = (0.5 + 0.1 * u - 0.2 * v + 0.2 * u * v + 0.05 * u**3 + 0.1 * u**2 - 0.03 * v**3)[None, None]
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    known[..., :2, :] = known[..., -2:, :] = known[..., :2] = known[..., -2:] = True
    filled = field.biharmonic(torch.where(known, x, torch.nan).nan_to_num(9.0), known)
    assert torch.equal(filled[known], x[known])
    assert torch.allclose(filled, x, atol=1e-9)
    assert torch.equal(field.biharmonic(x, torch.ones_like(known)), x)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: field.tv(x, 0.0), "weight must be"),
        (lambda x: field.tv(x, float("nan")), "weight must be"),
        (lambda x: field.bm3d(x, -0.1), "sigma must be"),
        (lambda x: field.bm3d(x.repeat(2, 1, 1, 1), 0.1), "one image"),
        (lambda x: field.tv(x[0, 0], 0.1), "shape"),
        (lambda x: field.tune_tv({"a": x}, 0.0), "sigma must be"),
        (lambda x: field.biharmonic(x, torch.zeros_like(x, dtype=torch.bool)), "no pixel is known"),
        (lambda x: field.biharmonic(x, torch.ones(1, 1, 3, 3, dtype=torch.bool)), "shaped like y"),
        (lambda x: field.biharmonic(x, x), "boolean"),
    ],
)
def test_methods_refuse_nonsense(call, says):
    with pytest.raises(ValueError, match=says):
        call(torch.full((1, 1, 16, 16), 0.5))


# --- what is compared -------------------------------------------------------------------------------------

SIGMA, HOLES = Task("denoise", 25), Task("inpaint", 0.8)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped priors with one tiny R1."""
    folder = tmp_path / "weights"
    for module in (foe, learned, field_methods):
        monkeypatch.setattr(module, "WEIGHTS", folder)
    monkeypatch.setattr(field_methods, "PRIORS", ("R1",))
    monkeypatch.setattr(field_run, "tuned", lambda *args, **options: {"denoise-25": 0.07})
    save_tiny(folder / "R1", 0)
    return folder


def save_tiny(folder, seed):
    config = FoEConfig(features=4, kernel_size=3, nodes_x=21, nodes_tau=5)
    prior = FieldsOfExperts(config, generator=torch.Generator().manual_seed(seed)).requires_grad_(False)
    prior.weights[0] *= 1 + 0.1 * seed
    prior.save_pretrained(folder)
    return prior


def test_learned_schedules_are_compared_as_soon_as_they_are_shipped(shipped):
    assert "R1 learned" not in field_methods.methods(SIGMA)
    prior = FieldsOfExperts.from_pretrained("R1")
    schedule = LearnedSchedule(
        [0.02, 0.001], [0.01, 0.002], t_range=(1e-4, 1.0), task=SIGMA, prior="R1",
        prior_sha256=learned.weights_sha256(prior),
    )  # fmt: skip
    schedule.save_pretrained(shipped / "R1-denoise-25")
    assert "R1 learned" in field_methods.methods(SIGMA)
    assert "R1 learned" not in field_methods.methods(Task("denoise", 15))
    method = field_methods.methods(SIGMA)["R1 learned"]()
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
        field_run.compare(tmp_path / "a.json", images, "two", [SIGMA, HOLES], ["R1 mmse", "biharmonic"])
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
        y = field.biharmonic(torch.where(known, x, 0.7), known)
        assert results[2 + k].psnr == pytest.approx(psnr(y, x).item(), abs=1e-4)
        assert results[2 + k].evaluations is None


def test_no_method_sees_the_clean_image():
    x = photo(20, 20)
    measured = HOLES.measure(x, torch.Generator().manual_seed(0))
    assert (measured.y[~measured.mask] == 0).all()
    assert (measured.start() - x)[~measured.mask].abs().min() > 0


def test_results_of_other_weights_are_run_again(shipped, tmp_path):
    path, images = tmp_path / "a.json", {"a": photo(24, 24), "b": photo(24, 24, 60, 200)}
    run = lambda: list(field_run.compare(path, images, "two", [SIGMA], ["R1 mmse", "R1 gnc", "TV"]))  # noqa: E731
    before = run()
    assert len(before) == 6
    assert run() == []
    save_tiny(shipped / "R1", 1)
    after = run()
    assert [r.method for r in after] == ["R1 mmse", "R1 gnc"] * 2
    assert {r.psnr for r in after}.isdisjoint(r.psnr for r in before)
    digest = hashlib.sha256((shipped / "R1" / "model.safetensors").read_bytes()).hexdigest()
    entries = field_run.load(path)["results"]
    assert sorted(e["method"] for e in entries) == ["R1 gnc", "R1 mmse", "TV"]
    assert {e["settings"].get("weights", digest) for e in entries} == {digest}


def test_an_interrupted_rerun_does_not_count_stale_results(shipped, tmp_path):
    path, images = tmp_path / "a.json", {"a": photo(24, 24), "b": photo(24, 24, 60, 200)}
    run = lambda: field_run.compare(path, images, "two", [SIGMA], ["R1 mmse"])  # noqa: E731
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
    monkeypatch.setattr(field_methods, "methods", lambda task, weight=None: made)
    monkeypatch.setattr(field_run, "tuned", lambda *args, **options: {})
    return found


IMAGES = {name: photo(16, 16, top, 150) for name, top in (("a", 60), ("b", 90), ("c", 120))}


def without_seconds(path):
    content = field_run.load(path)
    for entry in content["results"]:
        entry["images"] = {image: v[:3] + v[5:] for image, v in entry["images"].items()}
    return content


def test_a_killed_comparison_goes_on_and_ends_as_if_it_had_not_been(calls, tmp_path):
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    assert len(list(field_run.compare(whole, IMAGES, "three", [SIGMA]))) == 6
    assert calls == ["BM3D", "other"] * 3
    killed = field_run.compare(parts, IMAGES, "three", [SIGMA])
    first = [next(killed) for _ in range(3)]
    killed.close()  # what has been yielded is in the file
    rest = list(field_run.compare(parts, IMAGES, "three", [SIGMA]))
    assert [(r.image, r.method) for r in first + rest] == [(i, m) for i in "abc" for m in ("BM3D", "other")]
    assert without_seconds(parts) == without_seconds(whole)
    calls.clear()
    assert list(field_run.compare(parts, IMAGES, "three", [SIGMA])) == []
    assert calls == []
    numbers = field_run.load(parts)["results"][0]["images"]["b"]
    y = SIGMA.measure(IMAGES["b"], torch.Generator().manual_seed(1)).y
    assert numbers[:2] == [1, pytest.approx(psnr(0.9 * y + 0.05, IMAGES["b"]).item(), abs=1e-4)]


def test_another_place_in_the_list_is_another_seed(calls, tmp_path):
    path = tmp_path / "a.json"
    list(field_run.compare(path, dict(list(IMAGES.items())[:2]), "some", [SIGMA], ["other"]))
    swapped = {name: IMAGES[name] for name in "acb"}
    assert [(r.image, r.seed) for r in field_run.compare(path, swapped, "some", [SIGMA], ["other"])] == [
        ("c", 1), ("b", 2),
    ]  # fmt: skip
    (entry,) = field_run.load(path)["results"]
    assert {image: v[0] for image, v in entry["images"].items()} == {"a": 0, "c": 1, "b": 2}


def test_other_code_gets_an_entry_of_its_own(calls, tmp_path, monkeypatch):
    path, about = tmp_path / "a.json", results.provenance()
    next(field_run.compare(path, IMAGES, "three", [SIGMA], ["other"]))
    monkeypatch.setattr(results, "provenance", lambda: about | {"revision": "next"})
    list(field_run.compare(path, IMAGES, "three", [SIGMA], ["other"]))
    entries = field_run.load(path)["results"]
    assert [(e["provenance"]["revision"], list(e["images"])) for e in entries] == [
        (about["revision"], ["a"]), ("next", ["b", "c"]),
    ]  # fmt: skip
    assert "| other | 7 |" in field.table(field_run.load(path))
    assert "| 3 |" in field.table(field_run.load(path))


def test_results_about_other_images_are_not_mixed(calls, tmp_path):
    path = tmp_path / "a.json"
    next(field_run.compare(path, IMAGES, "three", [SIGMA]))
    with pytest.raises(ValueError, match="about three, not BSDS68"):
        next(field_run.compare(path, IMAGES, "BSDS68", [SIGMA]))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: "{",
        lambda c: "[]",
        lambda c: json.dumps({"runs": []}),
        lambda c: json.dumps(c | {"columns": ["psnr"]}),
        lambda c: json.dumps(c | {"results": [{"method": "x"}]}),
        lambda c: json.dumps(c | {"results": 3}),
        lambda c: json.dumps(c | {"results": [c["results"][0] | {"images": {"a": [1, 2]}}]}),
    ],
)
def test_what_is_no_result_file(change, calls, tmp_path):
    path = tmp_path / "a.json"
    next(field_run.compare(path, IMAGES, "three", [SIGMA]))
    path.write_text(change(field_run.load(path)))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="no file of comparisons"):
        next(field_run.compare(path, IMAGES, "three", [SIGMA]))
    assert path.read_bytes() == before


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
    monkeypatch.setattr(field_methods, "methods", lambda task, weight=None: made if task == SIGMA else {})
    monkeypatch.setattr(field_run, "tuned", lambda *args, **options: {})
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    path = tmp_path / "a.json"
    seconds = field_run.timing(path, IMAGES, "three", [HOLES], ["twice"])
    assert [name for name, _ in order] == ["BM3D", "twice"] * 4  # a warm-up, then each image
    assert allowed is None or os.sched_getaffinity(0) == allowed
    ratio = sum(seconds["denoise-25"]["twice"]) / sum(seconds["denoise-25"]["BM3D"])
    assert 1.2 < ratio < 3.5
    list(field_run.compare(path, IMAGES, "three", [SIGMA]))
    row = next(line for line in field.table(field_run.load(path)).splitlines() if "twice" in line)
    assert f"| {ratio:.3g} |" in row
    field_run.timing(path, IMAGES, "three", [SIGMA])
    assert len(field_run.load(path)["timing"]) == 1  # the newer one has all that the older one had


# --- the table --------------------------------------------------------------------------------------------


def synthetic():
    def entry(method, task, images, parameters=None):
        columns = {image: [0, *v, 1.0, 1.0, n] for image, (*v, n) in images.items()}
        about = {"settings": {}, "provenance": {}}
        return about | {"method": method, "task": task, "parameters": parameters, "images": columns}

    return {
        "set": "a few",
        "columns": list(results.COLUMNS),
        "tv": {},
        "results": [
            entry("BM3D", "denoise-50", {"a": (25.0, 0.7, None)}),
            entry("BM3D", "denoise-5", {"a": (30.0, 0.9, None), "b": (31.0, 0.8, None)}),
            entry("ours", "denoise-5", {"a": (32.0, 0.95, 2)}, 12345),
            entry("ours", "inpaint-80", {"a": (20.0, 0.5, 9)}, 12347),
        ],
        "timing": [
            {
                "reference": "denoise-5",
                "cpu": {"denoise-5": {"BM3D": [4.0, 6.0], "ours": [1.0, 1.5]}, "inpaint-80": {"ours": [30.0, 30.0]}},
                "evaluations": {"denoise-5": {"BM3D": None, "ours": 2}, "inpaint-80": {"ours": 9}},
            }
        ],
    }  # fmt: skip


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
    assert all(cited.source[:5] in field.table(synthetic()) for cited in field.CITED)


def test_psnr_by_image():
    content = synthetic()
    content["results"].append({**content["results"][2], "images": {"b": [1, 33.0, 0.9, 1.0, 1.0, 2]}})
    assert field.psnr_by_image(content, "ours", "denoise-5") == {"a": 32.0, "b": 33.0}
    with pytest.raises(ValueError, match="no result of 'ours' at 'denoise-50' yet"):
        field.psnr_by_image(content, "ours", "denoise-50")


def test_a_time_of_another_number_of_steps_is_left_out():
    content = synthetic()
    content["timing"][0]["evaluations"]["inpaint-80"]["ours"] = 10
    assert "time, 80 % missing" not in field.table(content)


@pytest.mark.parametrize("lost", ["reference", "cpu", "evaluations"])
def test_a_timing_without_its_unit_or_its_counts_is_refused(tmp_path, lost):
    """A table would be made of it: it must not get as far as a KeyError there."""
    content = json.loads(field_run.SHIPPED.read_text())
    run = synthetic()["timing"][0] | {"images": ["a", "b"], "provenance": content["results"][0]["provenance"]}
    content["timing"] = [run | {"wall": run["cpu"]}]
    (tmp_path / "whole.json").write_text(json.dumps(content))
    assert field_run.load(tmp_path / "whole.json") == content
    if lost == "reference":
        content["timing"][0]["reference"] = "denoise-26"
    elif lost == "cpu":
        run["cpu"][run["reference"]]["BM3D"] = []
    else:
        run["evaluations"][run["reference"]].popitem()
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a timing lacks the time of BM3D or how many gradients"):
        field_run.load(tmp_path / "a.json")


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="no results"):
        field.table(synthetic() | {"results": []})


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
    assert out == field.table(field_run.load(tmp_path / "a.json")) + "\n"


def test_the_command_refuses_nonsense(calls, folder, tmp_path, capsys):
    good = ["compare", "--images", folder, "--out", tmp_path / "a.json"]
    (tmp_path / "foreign.json").write_text('{"a": 1}')
    (tmp_path / "empty").mkdir()
    for words, status, says in [
        ([*good, "--sigma", 0], 2, "must lie in"),
        ([*good, "--sigma", "nan"], 2, "must lie in"),
        ([*good, "--missing", 100], 2, "must lie in"),
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
    monkeypatch.setattr(field_run, "SHIPPED", tmp_path / "none.json")
    monkeypatch.setattr(data, "training_images", lambda: {"x": photo(20, 20)})
    tune = field.tune_tv
    monkeypatch.setattr(field, "tune_tv", lambda *args: count.append(1) or tune(*args))
    weights = field_run.tuned(path, "some", [SIGMA, HOLES])
    assert weights == field_run.tuned(path, "some", [SIGMA, HOLES])
    assert weights == {"denoise-25": tune({"x": photo(20, 20)}, SIGMA.sigma)["weight"]}
    assert len(count) == 1
    field_run.tuned(path, "some", [SIGMA], again=True)
    assert len(count) == 2
    monkeypatch.setattr(field_run, "SHIPPED", path)  # without training images the shipped weight will do
    monkeypatch.setattr(data, "training_images", lambda: pytest.fail("not needed"))
    assert field_run.tuned(tmp_path / "b.json", "some", [SIGMA]) == weights


# --- the shipped results ----------------------------------------------------------------------------------


def test_shipped_results_are_those_of_the_shipped_weights():
    """If this fails after a change of weights: gnc compare --out gnclib/field.json --only ... runs what is stale."""
    content = field_run.load()
    weights = {task: record["weight"] for task, record in content["tv"].items()}
    for task in field_run.TASKS:
        offered = field_methods.methods(task, weights.get(str(task)))
        for entry in (e for e in content["results"] if e["task"] == str(task)):
            if entry["method"] == "BM3D":
                continue  # made without its package, too
            assert not results.stale(entry, offered[entry["method"]]()), (entry["method"], entry["task"])
            assert not entry["provenance"]["revision"].endswith("dirty")


def test_shipped_results_agree_with_the_evaluations_of_the_priors():
    content = field_run.load()
    for prior in field_methods.PRIORS:
        recorded = json.loads((foe.WEIGHTS / prior / "evaluation.json").read_text())["psnr_by_sigma"]
        for task in (t for t in field_run.TASKS if t.kind == "denoise"):
            found = {}
            for entry in content["results"]:
                if (entry["method"], entry["task"]) == (f"{prior} mmse", str(task)):
                    found |= {image: v[1] for image, v in entry["images"].items()}
            expected = recorded[f"{task.level:g}"]["images"]
            assert found == {image: pytest.approx(expected[image], abs=1e-3) for image in found}


def test_the_readme_shows_the_shipped_results():
    readme = (foe.WEIGHTS.parents[1] / "README.md").read_text(encoding="utf-8")
    shipped = field_run.load()
    psnr = (field.psnr_by_image(shipped, "R3 learned", f"denoise-{s}").values() for s in (15, 25, 50))
    assert " / ".join(f"{fmean(values):.2f}" for values in psnr) in " ".join(readme.split())
