"""Figure 3: one job against loops written out, the summary against numpy, and a sweep that survives what may happen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gnclib.cli import main as cli
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.images import data
from gnclib.io import table
from gnclib.io.files import sha256
from gnclib.io.table import Content, Origin
from gnclib.restore.flow import last
from gnclib.restore.joint import joint_descent
from gnclib.studies import attainment, figure3
from gnclib.studies.attainment import ALGORITHMS
from gnclib.studies.figure3 import TASKS, About, Run, Settings
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
    x = leaves()[..., 4:16, 4:16]
    return attainment.measure(tiny(), request.param, x, 5, SMALL), ByHand(request.param, x.double(), 5)


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
                assert result["maps"][name]["energy"][i][j] == pytest.approx(hand.energy(x), abs=2e-4), (
                    name,
                    t,
                    total,
                )
                assert result["maps"][name]["psnr"][i][j] == pytest.approx(hand.psnr(x), abs=2e-3)
                spread.append(result["maps"][name]["energy"][i][j])
    assert max(spread) - min(spread) > 0.1  # the test could have failed


def test_joint_iterates_are_those_of_separate_runs(job):
    result, hand = job
    for i, t_first in enumerate(SMALL.t_firsts):
        for j, total in enumerate(SMALL.steps):
            term = attainment.problem(hand.task, hand.x.float(), 5, SMALL)
            end = last(joint_descent(tiny(), t_first, term, steps=total))
            x, t = end.x.double(), float(end.t)
            found = [result["maps"]["joint"][name][i][j] for name in ("energy", "psnr", "own", "t")]
            assert found == pytest.approx(
                [hand.energy(x), hand.psnr(x), hand.energy(x, t), t], rel=1e-3, abs=2e-4
            )


def test_the_literal_preconditioner_counts_channels_and_pixels(job):
    result, hand = job
    settings = replace(SMALL, algorithms=("literal",), reference_schedule=0)
    found = attainment.measure(tiny(), hand.task, hand.x.float(), 5, settings)["maps"]
    assert [*found] == ["literal"]
    term = attainment.problem(hand.task, hand.x.float(), 5, settings)
    end = last(joint_descent(tiny(), 0.05, term, steps=8, summands=48 * 12 * 12))
    maps = found["literal"]
    assert maps["t"][1][2] == pytest.approx(float(end.t), rel=1e-3)
    assert maps["energy"][1][2] == pytest.approx(hand.energy(end.x.double()), abs=2e-4)
    assert maps["t"][1][2] > 1.2 * result["maps"]["joint"]["t"][1][2]  # slower
    with pytest.raises(ValueError, match="must be some of gnc, gnc log, joint, literal"):
        Settings(algorithms=("palm",))


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
    assert result["maps"]["gnc"]["distance"][1][1] == pytest.approx(distance, abs=2e-4)


def test_how_many_t_0_run_at_once_does_not_matter(monkeypatch, job):
    result, hand = job
    monkeypatch.setattr(attainment, "PIXELS_AT_ONCE", 1)
    again = attainment.measure(tiny(), hand.task, hand.x.float(), 5, SMALL)
    for name in ("energy", "psnr", "distance"):
        assert np.allclose(again["maps"]["gnc"][name], result["maps"]["gnc"][name], atol=2e-3)


def test_known_pixels_and_noise_are_those_of_the_seed():
    x = leaves(size=40)
    term = attainment.problem("inpaint", x, 7, SMALL, 2)
    assert term.mask[0].float().mean().item() == pytest.approx(0.2, abs=6 * math.sqrt(0.16 / 1600))
    assert torch.equal(term.mask[0], term.mask[1])
    noisy = attainment.problem("denoise", x, 7, SMALL).y
    assert torch.equal(noisy, x + data.add_noise(torch.zeros_like(x), 0.1, 7))
    assert noisy.min() < 0 or noisy.max() > 1  # not clipped


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"t_firsts": ()}, "t_firsts"), ({"t_firsts": (0.1, 0.1)}, "rising"), ({"t_firsts": (0.0, 0.1)}, "t_firsts"),
        ({"steps": (0, 1)}, "steps"), ({"steps": (1.5,)}, "steps"), ({"sigma": 0.0}, "sigma"),
        ({"sigma": math.inf}, "sigma"), ({"observed": 1.0}, "observed"), ({"crop": -1}, "crop"),
    ],
)  # fmt: skip
def test_bad_settings(change, text):
    with pytest.raises(ValueError, match=text):
        Settings(**change)


def test_bad_jobs():
    x = leaves(size=12)
    with pytest.raises(ValueError, match="task must be one of denoise, inpaint, got 'blur'"):
        attainment.measure(tiny(), "blur", x, 0, SMALL)
    with pytest.raises(ValueError, match=r"t_0 must lie above t_min = 0\.0004"):
        attainment.measure(tiny(), "denoise", x, 0, Settings(t_firsts=(4e-4, 1.0)))


# --- summary and comparison -------------------------------------------------------------------------------


MADE = Origin(revision="r", machine="m", software="s")


@pytest.fixture
def content():
    """Random results of 5 images per task in one set, one image in another."""
    draw, runs = np.random.default_rng(0), []
    images = {"bsds68": "01234", "embedded": ("moon",)}
    for where, task in ((where, task) for where in images for task in TASKS):
        for image in images[where]:
            maps = {
                name: {
                    "energy": (9.9 + 0.2 * draw.random((2, 3))).round(4).tolist(),
                    "psnr": (27 + draw.random((2, 3))).round(3).tolist(),
                    "distance": (0.1 * draw.random((2, 3))).round(4).tolist(),
                }
                for name in ALGORITHMS
            }
            where_to = {"set": where, "task": task, "image": image, "seed": 0, "size": [9, 9]}
            spent = {"seconds": 1.0, "cpu_seconds": 1.0, "start": [20.0, 20.0]}
            long = {"reference": [10.0, 27.0, 30.0], "settings": {}, "made": MADE}
            runs.append(Run(**where_to, **spent, **long, maps=maps))
    settings = Settings(t_firsts=(0.01, 0.1), steps=(1, 2, 4))
    return Content(About(prior="R1", weights="ab", settings=settings), {"runs": runs})


def test_a_content_is_what_its_file_says(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(table.dumps(content, figure3.FORM))
    assert figure3.load(path) == content


@pytest.mark.parametrize("damage", ["lost row", "lost table", "lost algorithm", "no start", "other size"])
def test_a_map_of_the_wrong_shape_is_refused(content, tmp_path, damage):
    run = content.rows["runs"][3]
    if damage == "lost row":
        run.maps["gnc"]["psnr"].pop()
    elif damage == "lost table":
        del run.maps["joint"]["distance"]
    elif damage == "lost algorithm":
        del run.maps["gnc log"]
    elif damage == "no start":
        run.start.clear()
    else:
        run.size.append(1)
    (tmp_path / "a.json").write_text(table.dumps(content, figure3.FORM))
    with pytest.raises(ValueError, match=r"no result of gnc sweep: .* lacks"):
        figure3.load(tmp_path / "a.json")


@pytest.mark.parametrize("minimum", figure3.MINIMA)
def test_aggregate_against_numpy(content, minimum):
    found = figure3.aggregate(content, 0.06, minimum=minimum, distance=0.07)
    assert found.keys() == {(task, name) for task in TASKS for name in ALGORITHMS}
    for (task, name), summary in found.items():
        there, quality, gaps = [], [], []
        for run in content.rows["runs"]:
            if run.set == "bsds68" and run.task == task:
                floor = min(np.min(run.maps[a]["energy"]) for a in ALGORITHMS)
                floor = 10.0 if minimum == "reference" else min(floor, 10.0)
                gaps.append(np.array(run.maps[name]["energy"]) - floor)
                near = np.array(run.maps[name]["distance"]) <= 0.07
                there.append((gaps[-1] <= 0.06) & (near | (minimum == "lowest")))
                quality.append(run.maps[name]["psnr"])
        assert summary.images == 5
        for values, mean in ((there, summary.rate), (quality, summary.psnr)):
            assert np.allclose(mean, np.mean(values, axis=0), atol=1e-12)
        assert np.allclose(summary.gap, np.mean(gaps, axis=0), atol=1e-12)
    rates = torch.stack([summary.rate for summary in found.values()])
    assert 0 < rates.min() + rates.mean() < rates.max() <= 1  # cells differ


def test_an_energy_that_is_not_a_number_is_not_the_lowest(content):
    run = content.rows["runs"][0]
    expected = figure3.lowest(run)
    table = run.maps["gnc"]["energy"]
    table[0][0] = expected + 1  # not the lowest
    assert figure3.lowest(run) == expected
    table[0][0] = math.nan
    assert figure3.lowest(run) == expected


def test_what_aggregate_refuses(content):
    for tolerance in (0.0, math.nan):
        with pytest.raises(ValueError, match="tolerance"):
            figure3.aggregate(content, tolerance)
    with pytest.raises(ValueError, match="minimum must be one of"):
        figure3.aggregate(content, minimum="global")
    content.rows["runs"][0] = content.rows["runs"][0].model_copy(update={"reference": None})
    with pytest.raises(ValueError, match="without a reference"):
        figure3.aggregate(content, minimum="reference")


# --- the sweep --------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Run ``gnc sweep`` on two drawn images with a prior from a folder; returns (exit status, file)."""
    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(data, "embedded", lambda: {name: leaves(k, 16) for k, name in enumerate("abc")})
    monkeypatch.setattr(figure3, "EMBEDDED", ("a", "b"))
    monkeypatch.setattr(figure3, "SETTINGS", BRIEF)

    def run(*options):
        status = cli.main(["sweep", "--prior", "tiny", "--set", "embedded", "--crop", "12", *options])
        return status, tmp_path / "runs" / "figure3_tiny.json"

    return run


def timeless(path):
    """The runs of a file by job, without what differs from run to run."""
    runs = figure3.load(path).rows["runs"]
    return {(r.set, r.task, r.image): r.model_copy(update={"seconds": 0, "cpu_seconds": 0}) for r in runs}


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
    content = figure3.load(path)
    digest = sha256(path.parents[1] / "tiny" / "model.safetensors")
    assert (content.about.prior, content.about.weights) == ("tiny", digest)
    settings = content.about.settings
    expected = attainment.measure(tiny(), "inpaint", data.middle(leaves(1, 16), 12), 1, settings)
    run = runs["embedded", "inpaint", "b"]
    assert (run.seed, run.size) == (1, [12, 12])
    assert {name: getattr(run, name) for name in expected} == expected


def test_an_interrupted_sweep_goes_on_where_it_was(sweep, tmp_path, monkeypatch, capsys):
    assert sweep("--out", "whole.json")[0] == 0
    measure, calls = figure3.measure, []

    def stopping(*arguments):
        calls.append(arguments[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(figure3, "measure", stopping)
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
    assert "embedded b inpaint: " in capsys.readouterr().out


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
    expected = {"other settings": "its crop is 12, not 10", "other weights": "its weights is"}.get(
        how, "no result of gnc sweep"
    )
    assert str(path.name) in text
    assert expected in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--workers", "0"], "'--workers': 0 is not in the range x>=1"),
        (["--limit", "0"], "'--limit': 0 is not in the range x>=1"),
        (["--crop", "-1"], "crop must be"), (["--prior", "R9"], "no prior 'R9'"),
    ],
)  # fmt: skip
def test_bad_options(sweep, capsys, options, text):
    status, path = sweep(*options)
    assert status in (1, 2)
    assert text in capsys.readouterr().err
    assert not path.exists()


def test_workers_fill_the_same_file(sweep, tmp_path):
    """Each takes its prior and its image with the job."""
    assert sweep("--out", "serial.json")[0] == 0
    status, path = sweep("--workers", "2")
    assert status == 0
    assert timeless(path) == timeless(tmp_path / "serial.json")


# --- what comes with the package --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((figure3.SHIPPED, "R1"), (figure3.LONG, "R1"), (figure3.RESTORED, "P1")),
        *((figure3.RESTORED_LONG, "P1"), (figure3.DEEP, "R3"), (figure3.RESTORED_DEEP, "P3")),
        *((figure3.WHOLE, "R1"), (figure3.RESTORED_WHOLE, "P1")),
    ],
    ids=["R1", "long_R1", "P1", "long_P1", "R3", "P3", "whole_R1", "whole_P1"],
)
def test_the_shipped_results_fit_the_shipped_priors(path, name):
    content = figure3.load(path)
    settings = Settings(crop=80) if path in (figure3.SHIPPED, figure3.DEEP) else content.about.settings
    if not settings.crop:
        most = {"t_firsts": (0.01, 1.0), "algorithms": (*attainment.ALGORITHMS, "literal")}
        assert settings == Settings(crop=0, reference_schedule=150 if name == "R1" else 0, **most)
    assert figure3.opened(path, name, settings).read() == content
    assert path.stat().st_size < 1_000_000
    done = {(run.set, run.task, run.image) for run in content.rows["runs"]}
    embedded, count = (
        figure3.EMBEDDED if path == figure3.SHIPPED else (),
        24 if name in ("R3", "P3") or not settings.crop else 68,
    )
    assert {(name, image) for name, _, image in done if name == "embedded"} == {
        ("embedded", image) for image in embedded
    }
    images = {task: {image for name, t, image in done if (name, t) == ("bsds68", task)} for task in TASKS}
    assert images["denoise"] == images["inpaint"] == set(data.bsds68_ids()[:count])
    for run in content.rows["runs"]:
        names = figure3.EMBEDDED if run.set == "embedded" else data.bsds68_ids()
        assert run.seed == names.index(run.image)
        assert sorted(run.size) == ([settings.crop] * 2 if settings.crop else [321, 481])
        for algorithm in settings.algorithms:
            for values in run.maps[algorithm].values():
                assert np.isfinite(values).all()
        assert "dirty" not in run.made.revision
        assert run.made.revision != "unknown"
