"""Figure 3: one job against loops written out, the summary against numpy, and a sweep that survives what may happen."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gnclib.cli import main as cli
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.images import data
from gnclib.restore.flow import last
from gnclib.restore.joint import joint_descent
from gnclib.studies import figure3, figure3_run
from gnclib.studies.figure3 import ALGORITHMS, TASKS, Settings
from tests.leaves import dead_leaves

TINY = FoEConfig(features=4, kernel_size=3, nodes_x=21, nodes_tau=5, sigma_min=0.02)
SMALL = Settings(
    t_firsts=(1e-3, 0.05, 1.0), steps=(1, 3, 8), crop=12, reference_schedule=5, reference_steps=40
)
BRIEF = replace(SMALL, t_firsts=(0.01, 0.1), steps=(1, 4), reference_schedule=3, reference_steps=10)


def tiny(seed=0):
    """A prior with potentials that nobody has trained: bent, and different per channel and noise level."""
    generator = torch.Generator().manual_seed(seed)
    prior = FieldsOfExperts(TINY, generator=generator).requires_grad_(False)
    prior.weights[0] += 0.05 * torch.rand(prior.weights[0].shape, generator=generator)
    return prior


def leaves(seed=3, size=20):
    return dead_leaves(size, size, torch.Generator().manual_seed(seed))


# --- one job ----------------------------------------------------------------------------------------------


class ByHand:
    """Denoising and inpainting written out for one image, without the data terms and solvers of the library."""

    def __init__(self, task, x, seed):
        self.prior, self.task, self.x, self.t_min = tiny().double(), task, x, 0.02**2
        generator = torch.Generator().manual_seed(seed)
        if task == "denoise":
            self.s = 25.5 / 255
            self.y = self.start = x + self.s * torch.randn(x.shape, generator=generator)  # float32
        else:
            self.known = torch.rand(x.shape, generator=generator) < 0.2
            self.start = torch.where(self.known, x, 0.5 * torch.ones_like(x))

    def step(self, x, t):
        v = x - t * self.prior.grad(x, t)
        if self.task == "denoise":
            return (self.s**2 * v + t * self.y) / (self.s**2 + t)
        return torch.where(self.known, self.x, v)

    def energy(self, x, t=None):
        value = self.prior.energy(x, t or self.t_min).item()
        if self.task == "denoise":
            value += ((x - self.y) ** 2).sum().item() / (2 * self.s**2)
        return value / x.numel()

    def psnr(self, x):
        return -10 * math.log10(((x - self.x) ** 2).mean().item())

    def run(self, ts):
        x = self.start
        for t in ts:
            x = self.step(x, float(t))
        return x


@pytest.fixture(scope="module", params=TASKS)
def job(request):
    """A result in float32, and the same problem by hand in float64."""
    x = figure3.centre(leaves(), 12)
    assert torch.equal(x, leaves()[..., 4:16, 4:16])
    return figure3.measure(tiny(), request.param, x, 5, SMALL), ByHand(request.param, x.double(), 5)


def test_flows_are_those_of_a_direct_loop(job):
    result, hand = job
    assert result["start"] == pytest.approx([hand.energy(hand.start), hand.psnr(hand.start)], abs=2e-3)
    spread = []
    for i, t in enumerate(SMALL.t_firsts):
        for j, total in enumerate(SMALL.steps):
            schedules = {
                "gnc": np.linspace(t, hand.t_min, total),
                "gnc log": np.geomspace(t, hand.t_min, total),
            }
            for name, ts in schedules.items():
                x = hand.run(ts)
                assert result[name]["energy"][i][j] == pytest.approx(hand.energy(x), abs=2e-4), (
                    name,
                    t,
                    total,
                )
                assert result[name]["psnr"][i][j] == pytest.approx(hand.psnr(x), abs=2e-3)
                spread.append(result[name]["energy"][i][j])
    assert max(spread) - min(spread) > 0.1  # the test could have failed


def test_joint_iterates_are_those_of_separate_runs(job):
    result, hand = job
    for i, t_first in enumerate(SMALL.t_firsts):
        for j, total in enumerate(SMALL.steps):
            term = figure3.problem(hand.task, hand.x.float(), 5, SMALL)
            end = last(joint_descent(tiny(), t_first, term, steps=total))
            x, t = end.x.double(), float(end.t)
            found = [result["joint"][name][i][j] for name in ("energy", "psnr", "own", "t")]
            assert found == pytest.approx(
                [hand.energy(x), hand.psnr(x), hand.energy(x, t), t], rel=1e-3, abs=2e-4
            )


def test_reference_and_distances(job):
    result, hand = job
    x = hand.run(np.geomspace(1, hand.t_min, 5))
    energies = [hand.energy(x)]
    for taken in range(1, 41):
        x = hand.step(x, hand.t_min)
        energies.append(hand.energy(x))
        if taken % 10 == 0 and energies[-11] - energies[-1] < 1e-5:
            break
    assert result["reference"] == pytest.approx([energies[-1], hand.psnr(x), taken], abs=2e-3)
    end = hand.run(np.linspace(0.05, hand.t_min, 3))
    distance = ((end - x) ** 2).mean().sqrt().item()
    assert distance > 0.01
    assert result["gnc"]["distance"][1][1] == pytest.approx(distance, abs=2e-4)


def test_how_many_t_0_run_at_once_does_not_matter(monkeypatch, job):
    result, hand = job
    monkeypatch.setattr(figure3, "PIXELS_AT_ONCE", 1)
    again = figure3.measure(tiny(), hand.task, hand.x.float(), 5, SMALL)
    for name in ("energy", "psnr", "distance"):
        assert np.allclose(again["gnc"][name], result["gnc"][name], atol=2e-3)


def test_known_pixels_and_noise_are_those_of_the_seed():
    x = leaves(size=40)
    term = figure3.problem("inpaint", x, 7, SMALL, 2)
    assert term.mask[0].float().mean().item() == pytest.approx(0.2, abs=6 * math.sqrt(0.16 / 1600))
    assert torch.equal(term.mask[0], term.mask[1])
    noisy = figure3.problem("denoise", x, 7, SMALL).y
    assert torch.equal(noisy, x + data.add_noise(torch.zeros_like(x), 0.1, 7))
    assert noisy.min() < 0 or noisy.max() > 1  # not clipped


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"t_firsts": ()}, "t_firsts"), ({"t_firsts": (0.1, 0.1)}, "rising"), ({"steps": (0, 1)}, "steps"),
        ({"steps": (1.5,)}, "steps"), ({"sigma": 0.0}, "sigma"), ({"observed": 1.0}, "known pixels"),
        ({"crop": -1}, "crop"),
    ],
)  # fmt: skip
def test_bad_settings(change, text):
    with pytest.raises(ValueError, match=text):
        Settings(**change)


def test_bad_jobs():
    x = leaves(size=12)
    with pytest.raises(ValueError, match="unknown task 'blur'"):
        figure3.measure(tiny(), "blur", x, 0, SMALL)
    with pytest.raises(ValueError, match=r"t_0 must lie above t_min = 0\.0004"):
        figure3.measure(tiny(), "denoise", x, 0, Settings(t_firsts=(4e-4, 1.0)))
    with pytest.raises(ValueError, match="no crop of 13x13"):
        figure3.centre(x, 13)
    with pytest.raises(ValueError, match="unknown set 'val'"):
        figure3_run.jobs(SMALL, sets=["val"])
    with pytest.raises(ValueError, match="limit"):
        figure3_run.jobs(SMALL, limit=0)


# --- summary and comparison -------------------------------------------------------------------------------


@pytest.fixture
def content():
    """Random results of 5 images per task in one set, one image in another."""
    draw = np.random.default_rng(0)
    settings = Settings(t_firsts=(0.01, 0.1), steps=(1, 2, 4))
    made = figure3_run.empty({"name": "R1", "weights_sha256": "ab"}, settings)
    for where, image in [("bsds68", str(k)) for k in range(5)] + [("embedded", "moon")]:
        for task in TASKS:
            run = {"set": where, "task": task, "image": image, "reference": [10.0, 27.0, 30], "made": {}}
            for name in ALGORITHMS:
                run[name] = {
                    "energy": (9.9 + 0.2 * draw.random((2, 3))).round(4).tolist(),
                    "psnr": (27 + draw.random((2, 3))).round(3).tolist(),
                    "distance": (0.1 * draw.random((2, 3))).round(4).tolist(),
                }
            figure3_run.include(made, run)
    return made


@pytest.mark.parametrize("minimum", figure3.MINIMA)
def test_aggregate_against_numpy(content, minimum):
    found = figure3.aggregate(content, 0.06, minimum=minimum, distance=0.07)
    assert found.keys() == {(task, name) for task in TASKS for name in ALGORITHMS}
    for (task, name), summary in found.items():
        there, quality, gaps = [], [], []
        for run in content["runs"]:
            if run["set"] == "bsds68" and run["task"] == task:
                floor = min(np.min(run[a]["energy"]) for a in ALGORITHMS)
                floor = 10.0 if minimum == "reference" else min(floor, 10.0)
                gaps.append(np.array(run[name]["energy"]) - floor)
                near = np.array(run[name]["distance"]) <= 0.07
                there.append((gaps[-1] <= 0.06) & (near | (minimum == "lowest")))
                quality.append(run[name]["psnr"])
        assert summary.images == 5
        for values, mean, error in (
            (there, summary.rate, summary.rate_error),
            (quality, summary.psnr, summary.psnr_error),
        ):
            values = np.array(values, dtype=float)
            assert np.allclose(mean, values.mean(0), atol=1e-12)
            assert np.allclose(error, values.std(0, ddof=1) / np.sqrt(5), atol=1e-12)
        assert np.allclose(summary.gap, np.mean(gaps, axis=0), atol=1e-12)
    rates = torch.stack([summary.rate for summary in found.values()])
    assert 0 < rates.min() + rates.mean() < rates.max() <= 1  # cells differ


def test_aggregate_of_one_image_and_what_it_refuses(content):
    alone = figure3.aggregate(content, which="embedded")["denoise", "joint"]
    assert alone.images == 1
    assert alone.rate_error.isnan().all()
    for tolerance in (0.0, math.nan):
        with pytest.raises(ValueError, match="tolerance"):
            figure3.aggregate(content, tolerance)
    with pytest.raises(ValueError, match="minimum must be one of"):
        figure3.aggregate(content, minimum="global")
    with pytest.raises(ValueError, match="there are runs of: bsds68, embedded"):
        figure3.aggregate(content, which="set12")
    content["runs"][0]["reference"] = None
    with pytest.raises(ValueError, match="without a reference"):
        figure3.aggregate(content, minimum="reference")


def part_of(content, change=0.0):
    """One image, some t_0 and I, in another order of computing; energies off by ``change``."""
    settings = Settings(t_firsts=(0.1, 0.5), steps=(2, 4, 9), reference_schedule=0)
    part = figure3_run.empty({"name": "again", "weights_sha256": "ab"}, settings)
    run = json.loads(json.dumps(content["runs"][2])) | {"reference": None, "made": {}}
    for name in ALGORITHMS:
        for quantity, shift in (("energy", change), ("psnr", 2 * change)):
            first, *rest = (value + shift for value in content["runs"][2][name][quantity][1][1:])
            run[name][quantity] = [[first, *rest, 0.0], [0.0, 0.0, 0.0]]
    figure3_run.include(part, run)
    return part


def test_agree_compares_what_both_have(content):
    assert figure3.agree(content, content) == figure3.Agreement(
        0.0, 0.0, len(content["runs"]) * (3 * 2 * 3 + 1)
    )
    same = figure3.agree(content, part_of(content))
    assert same
    assert (same.energy, same.psnr, same.cells) == (0.0, 0.0, 3 * 2)
    other = figure3.agree(content, part_of(content, 0.01))
    assert not other
    assert (other.energy, other.psnr) == pytest.approx((0.01, 0.02))


def test_agree_refuses_what_cannot_be_compared(content):
    part = part_of(content)
    with pytest.raises(ValueError, match="different weights"):
        figure3.agree(content, part | {"prior": {"name": "R1", "weights_sha256": "cd"}})
    with pytest.raises(ValueError, match="crop was 160 in one and 96"):
        figure3.agree(content, part | {"settings": {**part["settings"], "crop": 96}})
    part["runs"][0]["image"] = "nobody"
    with pytest.raises(ValueError, match="in common"):
        figure3.agree(content, part)


# --- the sweep --------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Run ``gnc sweep`` on two drawn images with a prior from a folder; returns (exit status, file)."""
    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(data, "embedded", lambda: {name: leaves(k, 16) for k, name in enumerate("abc")})
    monkeypatch.setattr(figure3_run, "EMBEDDED", ("a", "b"))
    monkeypatch.setattr(figure3_run, "SETTINGS", BRIEF)

    def run(*options):
        status = cli.main(["sweep", "--prior", "tiny", "--set", "embedded", "--crop", "12", *options])
        return status, tmp_path / "runs" / "figure3_tiny.json"

    return run


def timeless(path):
    """The runs of a file by job, without what differs from run to run."""
    content = figure3_run.load(path)
    keep = {}
    for run in content["runs"]:
        key = run["set"], run["task"], run["image"]
        assert key not in keep, "computed twice"
        keep[key] = {k: v for k, v in run.items() if k not in ("seconds", "cpu_seconds", "made")}
    return keep


def test_a_sweep_fills_its_file_and_can_be_extended(sweep, capsys):
    status, path = sweep("--task", "denoise", "--limit", "1")
    assert (status, len(timeless(path))) == (0, 1)
    first = path.read_bytes()
    assert sweep("--task", "denoise", "--limit", "1")[0] == 0
    assert "0 jobs to do, 1 in" in capsys.readouterr().out
    assert path.read_bytes() == first
    assert sweep()[0] == 0
    runs = timeless(path)
    assert runs.keys() == {("embedded", task, image) for task in TASKS for image in "ab"}
    content = figure3_run.load(path)
    assert content["made"] == [figure3_run._here("cpu")]
    assert content["prior"] == {k: figure3_run.identify("tiny")[k] for k in ("name", "weights_sha256")}
    settings = Settings.from_dict(content["settings"])
    expected = figure3.measure(tiny(), "inpaint", figure3.centre(leaves(1, 16), 12), 1, settings)
    assert runs["embedded", "inpaint", "b"] | expected == runs["embedded", "inpaint", "b"]
    again = figure3_run.compute("tiny", settings, ["embedded"], limit=1)
    assert figure3.agree(content, again) == figure3.Agreement(0.0, 0.0, 2 * (3 * 2 * 2 + 1))


def test_an_interrupted_sweep_goes_on_where_it_was(sweep, tmp_path, monkeypatch, capsys):
    assert sweep("--out", "whole.json")[0] == 0
    measure, calls = figure3_run.measure, []

    def stopping(*arguments):
        calls.append(arguments[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(figure3_run, "measure", stopping)
    status, path = sweep()
    assert (status, len(timeless(path))) == (130, 2)
    assert sweep()[0] == 0
    assert calls == [
        "denoise",
        "inpaint",
        "denoise",
        "denoise",
        "inpaint",
    ]  # the third was lost, nothing else
    assert timeless(path) == timeless(tmp_path / "whole.json")
    assert "4/4  embedded b inpaint" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["truncated", "foreign", "list", "binary", "other settings", "other weights"])
def test_a_file_that_does_not_fit_is_refused_and_left_as_it_is(sweep, tmp_path, capsys, how):
    status, path = sweep("--limit", "1", "--task", "denoise")
    assert status == 0
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif how in ("foreign", "list", "binary"):
        path.write_bytes({"foreign": b'{"runs": []}', "list": b"[1]", "binary": b"\xff\xfe\x00"}[how])
    elif how == "other weights":
        tiny(1).save_pretrained(tmp_path / "tiny")
    before = path.read_bytes()
    capsys.readouterr()
    status, _ = sweep(*(["--crop", "10"] if how == "other settings" else []))
    text = capsys.readouterr().err
    assert status == 2
    assert path.read_bytes() == before
    expected = {"other settings": "another crop", "other weights": "other weights"}.get(
        how, "no result of gnc sweep"
    )
    assert str(path.name) in text
    assert expected in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--workers", "0"], "'--workers': 0 is not in the range x>=1"),
        (["--limit", "0"], "'--limit': 0 is not in the range x>=1"),
        (["--crop", "-1"], "crop must be >= 0"), (["--crop", "17"], "no crop of 17x17"),
        (["--workers", "2", "--scheduler", "tcp://x:1"], "cluster of its own"), (["--prior", "R9"], "no prior 'R9'"),
    ],
)  # fmt: skip
def test_bad_options(sweep, capsys, options, text):
    status, path = sweep(*options)
    assert status in (1, 2)
    assert text in capsys.readouterr().err
    assert not path.exists()


def test_without_dask_several_workers_say_what_is_missing(sweep, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    assert sweep("--workers", "2")[0] == 1
    assert "pip install 'gnclib[sweep]'" in capsys.readouterr().err


def test_a_worker_refuses_other_weights_than_the_client(tmp_path):
    tiny().save_pretrained(tmp_path)
    prior = figure3_run.identify(str(tmp_path)) | {"weights_sha256": "0" * 64}
    job = figure3_run.Job("embedded", "a", "denoise", 0, leaves(size=12))
    with pytest.raises(ValueError, match="the client's 000000000000"):
        figure3_run.work(job, prior, SMALL)


def test_a_killed_worker_loses_nothing(sweep, tmp_path, monkeypatch):
    """Two worker processes; one of those at work is killed after the first result. The file is that of one process."""
    monkeypatch.setattr(figure3_run, "EMBEDDED", tuple("abc"))
    monkeypatch.setattr(figure3_run, "SETTINGS", replace(BRIEF, steps=(1, 24)))
    assert sweep("--out", "serial.json")[0] == 0
    add, killed = figure3_run.add, []
    with figure3_run.client(2) as connected:
        pids = connected.run(os.getpid)

        def adding(*arguments):
            add(*arguments)
            busy = [address for address, keys in connected.processing().items() if keys]
            if busy and not killed:
                killed.append(pids[busy[0]])
                os.kill(killed[0], signal.SIGKILL)

        monkeypatch.setattr(figure3_run, "add", adding)
        status, path = sweep("--scheduler", connected.scheduler.address)
        left = connected.run(os.getpid).values()
    assert status == 0
    assert len(killed) == 1
    assert killed[0] not in left
    assert timeless(path) == timeless(tmp_path / "serial.json")


# --- what comes with the package --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted(Path(figure3.__file__).parent.glob("figure3_*.json")), ids=lambda p: p.stem
)
def test_the_shipped_result_fits_the_shipped_prior(path):
    content = figure3_run.load(path)
    prior = figure3_run.identify(path.stem.removeprefix("figure3_"))
    figure3_run.check(content, prior, Settings())
    assert path.stat().st_size < 1_000_000
    done = figure3_run.done(content)
    assert len(done) == len(content["runs"])
    assert {(name, image) for name, _, image in done if name == "embedded"} == {
        ("embedded", image) for image in figure3_run.EMBEDDED
    }
    images = {task: {image for name, t, image in done if (name, t) == ("bsds68", task)} for task in TASKS}
    assert images["denoise"] == images["inpaint"] <= set(data.bsds68_ids())
    shape = len(Settings().t_firsts), len(Settings().steps)
    for run in content["runs"]:
        assert run["seed"] == (figure3_run.EMBEDDED if run["set"] == "embedded" else data.bsds68_ids()).index(
            run["image"]
        )
        for algorithm in ALGORITHMS:
            for table in run[algorithm].values():
                assert np.shape(table) == shape
                assert np.isfinite(table).all()
    assert not any("dirty" in made["revision"] or made["revision"] == "unknown" for made in content["made"])
