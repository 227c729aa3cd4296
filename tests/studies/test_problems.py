"""More inverse problems: what is measured and solved against independent code, tuning and the result file."""

import numpy as np
import pytest
import torch
from skimage import data as pictures

from gnclib.cli import main as cli
from gnclib.foe import WEIGHTS, FieldsOfExperts
from gnclib.images.data import middle
from gnclib.images.metrics import psnr
from gnclib.io.files import sha256
from gnclib.io.table import Content
from gnclib.restore import flow as solvers
from gnclib.restore.linear import LinearMeasurement
from gnclib.studies import comparison, problems
from gnclib.studies.comparison import Images
from gnclib.studies.problems import PROBLEMS

SEED = 3


def photo(side=48, top=60, left=200):
    part = pictures.camera()[top : top + side, left : left + side]
    return torch.from_numpy(part).float()[None, None] / 255


def seeded(seed=SEED):
    return torch.Generator().manual_seed(seed)


# --- what is measured -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_noise_has_the_stated_level_and_the_seed_decides(name):
    problem, x = PROBLEMS[name], photo(96)
    data = problem.measure(x, seeded())
    rest = data.y - data.operator(x)
    count = rest.numel()
    assert abs(rest.std().item() / problem.sigma - 1) < 5 / (2 * count) ** 0.5
    assert torch.equal(data.y, problem.measure(x, seeded()).y)
    assert not torch.equal(data.y, problem.measure(x, seeded(4)).y)
    assert data.sigma == problem.sigma


def test_another_seed_senses_other_coefficients():
    first, second = (PROBLEMS["sensing"].measure(photo(), seeded(k)).operator for k in (0, 1))
    assert not torch.equal(first.kept, second.kept)
    assert not torch.equal(first.signs, second.signs)


def test_the_middle_of_an_image():
    x = torch.arange(35.0).reshape(1, 1, 5, 7)
    assert torch.equal(middle(x, 3), x[..., 1:4, 2:5])
    assert torch.equal(middle(x, 6), x[..., :, 0:6])
    assert torch.equal(middle(x, 9), x)


# --- TV ---------------------------------------------------------------------------------------------------


def total(x):
    """Isotropic TV with forward differences, written once more."""
    x = x[0, 0].double().numpy()
    down, right = np.zeros_like(x), np.zeros_like(x)
    down[:-1], right[:, :-1] = np.diff(x, axis=0), np.diff(x, axis=1)
    return float(np.sqrt(down**2 + right**2).sum())


class Identity:
    """A = I, for which the TV problem is the one that scikit-image solves."""

    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        return x

    def adjoint(self, u):
        return u


def test_tv_without_an_operator_is_that_of_scikit_image():
    x = photo(24).double()
    y = x + 0.1 * torch.randn(x.shape, generator=seeded(), dtype=x.dtype)
    data = LinearMeasurement(Identity((24, 24)), y, 0.1, accuracy=1e-8)
    weight = 0.08
    ours = solvers.last(problems.total_variation(data, weight / 0.1**2, 100, accuracy=1e-7)).x
    theirs = comparison.tv(y, weight, 1e-8)
    assert (ours - theirs).abs().max() < 5e-3
    assert psnr(ours, theirs) > 60


@pytest.mark.parametrize("name", ["deblur", "sensing"])
def test_tv_is_minimal_among_its_neighbours(name):
    """No convex combination with other candidates has less energy: the solution of a convex problem."""
    x = photo(40)
    data, weight = PROBLEMS[name].measure(x, seeded()), 10.0
    solution = solvers.last(problems.total_variation(data, weight, 300)).x
    energy = lambda image: data.energy(image).item() + weight * total(image)  # noqa: E731
    best, spread = energy(solution), 1e-3 * energy(data.start())
    rivals = [
        x,
        data.start(),
        torch.full_like(x, 0.5),
        solvers.last(problems.total_variation(data, 20.0, 50)).x,
    ]
    for rival in rivals:
        for share in (0.01, 0.1, 0.5, 1.0):
            assert energy(solution + share * (rival - solution)) > best - spread, share


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_a_weight_of_tv_that_makes_no_sense(weight):
    data = PROBLEMS["deblur"].measure(photo(), seeded())
    with pytest.raises(ValueError, match="weight of TV"):
        next(problems.total_variation(data, weight))


# --- the methods ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prior():
    return FieldsOfExperts.from_pretrained("R1")


@pytest.mark.parametrize("name", PROBLEMS)
def test_gnc_improves_on_least_squares_and_on_as_many_steps_without(name, prior):
    x = photo(64)
    data = PROBLEMS[name].measure(x, seeded())
    start = psnr(next(problems.solve("least squares", data, {})).x, x)
    t = {"deblur": 0.01, "super-2": 0.003, "super-3": 0.01, "sensing": 3e-4, "tomography": 0.003}[name]
    gnc = psnr(solvers.last(problems.solve("gnc", data, {"t_first": 0.1, "t_last": t}, prior)).x, x)
    without = psnr(solvers.last(problems.solve("fixed", data, {"t": t}, prior)).x, x)
    assert gnc > start + 0.5
    assert gnc > without - 0.1


def test_gradients_are_counted(prior):
    data = PROBLEMS["super-3"].measure(photo(33), seeded())
    counted = {
        "fixed": ({"t": 0.01}, problems.STEPS),
        "gnc": ({"t_first": 0.1, "t_last": 0.01}, problems.STEPS),
    }
    for kind, (settings, steps) in counted.items():
        _, evaluations = problems.method(f"R1 {kind}", settings).solve(data)
        assert evaluations == steps
    assert problems.method("least squares", {}).solve(data)[1] is None


def test_the_grid_keeps_to_the_range_of_the_prior():
    inside = problems.grid("gnc", 1e-3, 0.1)
    assert {s["t_first"] for s in inside} == {0.03, 0.1}
    assert min(s["t_last"] for s in inside) == 1e-3
    assert all(s["t_last"] < s["t_first"] for s in inside)
    assert problems.grid("least squares", 1e-4, 1) == [{}]


# --- tuning and the file ----------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Two settings per method, two training crops, few steps."""
    monkeypatch.setattr(problems, "TV_WEIGHTS", (0.05, 5.0))
    monkeypatch.setattr(problems, "STEPS", 2)
    crops = {"8049": photo(32), "8143": photo(32, 150, 100)}
    monkeypatch.setattr(problems, "training_images", lambda: crops)
    monkeypatch.setattr(problems, "TUNING_STEP", 1)
    return crops


def test_tuning_takes_the_best_of_the_grid(small):
    found = problems.tune(PROBLEMS["sensing"], "TV", small)
    assert found["grid"] == [{"weight": 0.05}, {"weight": 5.0}]
    assert found["best"] == found["grid"][int(np.argmax(found["psnr"]))]
    by_hand = []
    for k, x in enumerate(small.values()):
        data = PROBLEMS["sensing"].measure(x, seeded(k))
        by_hand.append(psnr(solvers.last(problems.total_variation(data, 0.05 / 0.01)).x, x).item())
    assert found["psnr"][0] == pytest.approx(np.mean(by_hand), abs=1e-3)


def test_tuning_keeps_what_another_process_has_added_meanwhile(small, tmp_path, monkeypatch):
    path, tune = tmp_path / "a.json", problems.tune
    images, only = {"a": photo(36)}, ["least squares"]

    def slowly(problem, name, clean):
        monkeypatch.setattr(problems, "tune", tune)
        list(problems.restore(path, images, "one", ["super-2"], only))  # the other one
        return tune(problem, name, clean)

    monkeypatch.setattr(problems, "tune", slowly)
    list(problems.restore(path, images, "one", ["sensing"], only))
    content = problems.load(path)
    assert {row.task for row in content.rows["tuned"]} == {"super-2", "sensing"}
    assert {row.task for row in content.rows["results"]} == {"super-2", "sensing"}


def test_no_tuning_on_validation_images():
    with pytest.raises(ValueError, match="never train on them"):
        problems.tune(PROBLEMS["deblur"], "TV", {"101085": photo()})


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(small, tmp_path):
    images = {"a": photo(36), "b": photo(36, 200, 220)}
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    run = lambda path: problems.restore(path, images, "two", ["super-2"], ["least squares", "R1 gnc"])  # noqa: E731
    assert len(list(run(whole))) == 4
    killed = run(parts)
    first = [next(killed) for _ in range(3)]
    killed.close()
    rest = list(run(parts))
    assert [(r.method, r.image) for r in first + rest] == [
        ("least squares", "a"), ("least squares", "b"), ("R1 gnc", "a"), ("R1 gnc", "b"),
    ]  # fmt: skip
    contents = [problems.load(path).rows for path in (whole, parts)]
    for rows in contents:
        rows["results"] = [row.model_copy(update={"wall": 0.0, "cpu": 0.0}) for row in rows["results"]]
    assert contents[0] == contents[1]
    assert list(run(parts)) == []
    assert (
        problems.table(problems.load(whole)).splitlines()[0] == "| method | gradients | super-resolution x2 |"
    )


def test_what_cannot_be_run(tmp_path):
    path = tmp_path / "a.json"
    for problem, only, words in (("haze", (), "unknown problem"), ("deblur", ["R9 gnc"], "unknown method")):
        with pytest.raises(ValueError, match=words):
            next(problems.restore(path, {"a": photo()}, "one", [problem], only))
    with pytest.raises(ValueError, match="no results"):
        problems.table(Content(Images(set="none"), {"results": [], "tuned": []}))
    assert not path.exists()


# --- what is shipped --------------------------------------------------------------------------------------


def test_shipped_results_are_complete_and_of_the_shipped_weights(capsys):
    content = problems.load()
    tuned = {(row.task, row.method): row for row in content.rows["tuned"]}
    images = {}
    for row in content.rows["results"]:
        images.setdefault((row.task, row.method), set()).add(row.image)
        assert "dirty" not in row.made.revision
        assert tuned[row.task, row.method].best.items() <= row.settings.items()
        prior = row.method.split()[0]
        if (WEIGHTS / prior).is_dir():
            assert row.settings["weights"] == sha256(WEIGHTS / prior / "model.safetensors")
            assert row.settings["weights"] == tuned[row.task, row.method].settings["weights"]
    assert images.keys() == {(task, method) for _, method in images for task in PROBLEMS}
    assert {"least squares", "TV", "R1 fixed", "R1 fixed long", "R1 gnc"} <= {method for _, method in images}
    assert all(len(names) == problems.COUNT for names in images.values())
    assert cli.main(["problems", "--table"]) == 0
    assert capsys.readouterr().out == problems.table(content) + "\n"


def test_shipped_choices_are_the_best_of_their_grids():
    for row in problems.load().rows["tuned"]:
        assert len(row.grid) == len(row.psnr)
        assert row.psnr[row.grid.index(row.best)] == max(row.psnr)  # of several, if they agree to 0.001 dB
