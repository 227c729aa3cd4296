"""The shipped results are those of the code: random rows computed again, and figures that follow from the rows.

Each day other rows are drawn, two images per study. A failure says its seed; GNC_SAMPLE=SEED draws the same rows again.
In the comparison every quick method is drawn each day; of what takes ten seconds and more per image (BM3D, joint
optimisation, inpainting with R2 and R3) one row a day. Not computed again: seconds, and the trainings of the ablations,
which take minutes each (notebook 08_ablations with full=True trains two of them); they are bound to the figures below.
"""

import datetime
import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from gnclib.deep import load_prior
from gnclib.foe import FieldsOfExperts
from gnclib.gmm import bounds
from gnclib.images import data, psnr
from gnclib.restore import Task
from gnclib.studies import ablations, entropy, field, figure3, pairs, patches, problems
from gnclib.studies.attainment import measure
from gnclib.studies.comparison import jobs

SEED = os.environ.get("GNC_SAMPLE", datetime.date.today().isoformat())
FIGURES = Path(__file__).parents[2] / "figures"
#: how far two machines may be apart in dB and in SSIM: single and double precision differ by a tenth of it
PSNR, SSIM = 0.005, 1e-4

needs_val = pytest.mark.skipif(not data.available(("val",)), reason="needs val of BSDS500: set GNC_DATA_DIR")
needs_training = pytest.mark.skipif(
    not data.available(("train", "test")), reason="needs train and test of BSDS500: set GNC_DATA_DIR"
)


def draw(study):
    return random.Random(f"{SEED} {study}")


def forged(row, **changes):
    """A row whose columns are changed by these amounts."""
    return row.model_copy(update={name: getattr(row, name) + change for name, change in changes.items()})


# --- field and problems: one image by one method ----------------------------------------------------------


def again(task, method, images, row):
    """The columns of a row, computed now."""
    (job,) = (j for j in jobs(task, [method], images) if j.given["image"] == row.image)
    assert job.given["seed"] == row.seed
    return job.compute()


def agrees(row, found):
    return (
        abs(found["psnr"] - row.psnr) <= PSNR
        and abs(found["ssim"] - row.ssim) <= SSIM
        and found["evaluations"] == row.evaluations
    )


def is_slow(row):
    """Whether it takes ten seconds or more."""
    prior, _, scheme = row.method.partition(" ")
    deep_inpainting = row.task.startswith("inpaint") and prior in ("R2", "R3")
    return row.method == "BM3D" or scheme == "joint" or deep_inpainting


def field_sample():
    """One row for each quick method, with a random task, on two images; and one slow row."""
    rng, rows = draw("field"), field.load().rows["results"]
    try:
        import bm3d  # noqa: F401
    except (ImportError, OSError):  # an optional package
        rows = [row for row in rows if row.method != "BM3D"]
    if not data.available(("train", "test")):
        rows = [row for row in rows if row.method != "Wiener"]
    names = rng.sample(sorted({row.image for row in rows if row.method == "R3 finetuned"}), 2)
    quick = [row for row in rows if row.image in names and not is_slow(row)]
    chosen = [
        rng.choice([row for row in quick if row.method == name])
        for name in dict.fromkeys(row.method for row in quick)
    ]
    return [*chosen, rng.choice([row for row in rows if is_slow(row)])]


@pytest.fixture(scope="module")
def field_pairs():
    """Stored rows of the comparison with what they are now."""
    images, weights = data.bsds68(), {row.task: row.weight for row in field.load().rows["tv"]}
    tasks, pairs = {str(task): task for task in field.TASKS}, []
    for row in field_sample():
        task = tasks[row.task]
        method = field.methods(task, weights.get(row.task))[row.method]()
        pairs.append((row, again(task, method, images, row)))
    return pairs


@needs_val
def test_the_comparison_is_what_the_methods_do(field_pairs):
    assert {row.method for row, _ in field_pairs} >= {"TV", "biharmonic", "R1 gnc", "R3 learned"}
    for row, found in field_pairs:
        assert agrees(row, found), (
            f"GNC_SAMPLE={SEED}: {row.method}, {row.task}, {row.image}: {found}, not {row}"
        )


@needs_training
@needs_val
def test_one_step_at_other_noise_levels_is_as_stored():
    """The Wiener filter and two priors, at a random level on a random image each."""
    images, rng, rows = data.bsds68(), draw("levels"), field.load(field.ALL_LEVELS).rows["results"]
    for name in ("Wiener", *rng.sample([f"{prior} mmse" for prior in field.PRIORS], 2)):
        row = rng.choice([row for row in rows if row.method == name])
        task = Task("denoise", float(row.task.removeprefix("denoise-")))
        found = again(task, field.methods(task)[name](), images, row)
        assert agrees(row, found), f"GNC_SAMPLE={SEED}: {name}, {row.task}, {row.image}: {found}, not {row}"
        assert not agrees(forged(row, psnr=0.01), found)


@needs_val
def test_learned_schedules_that_are_said_to_be_better_are_noticed(field_pairs):
    """0.3 dB on every value of R3 learned and finetuned; also 0.01 dB on any one value that is drawn."""
    better = [
        (forged(row, psnr=0.3), found)
        for row, found in field_pairs
        if row.method in ("R3 learned", "R3 finetuned")
    ]
    assert len(better) >= 2
    assert not any(agrees(row, found) for row, found in better)
    assert not any(agrees(forged(row, psnr=0.01), found) for row, found in field_pairs)
    assert not any(agrees(forged(row, ssim=0.001), found) for row, found in field_pairs)


@pytest.fixture(scope="module")
def problem_pairs():
    """Stored rows of two inverse problems on two images with what they are now."""
    rng, content, images = draw("problems"), problems.load(), problems.images()
    rows = [row for row in content.rows["results"] if not row.method.endswith("long")]  # five times as slow
    best = {(row.task, row.method): row.best for row in content.rows["tuned"]}
    pairs = []
    for image in rng.sample(list(images), 2):
        row = rng.choice([row for row in rows if row.image == image])
        method = problems.method(row.method, best[row.task, row.method])
        pairs.append((row, again(problems.PROBLEMS[row.task], method, images, row)))
    return pairs


@needs_val
def test_the_inverse_problems_are_solved_as_stored(problem_pairs):
    for row, found in problem_pairs:
        assert agrees(row, found), (
            f"GNC_SAMPLE={SEED}: {row.method}, {row.task}, {row.image}: {found}, not {row}"
        )
        assert not agrees(forged(row, psnr=-0.01), found)


@needs_training
def test_a_tuning_is_what_its_setting_gives():
    """One setting of one grid, on the training crops that the row names."""
    rng = draw("tuning")
    row = rng.choice([row for row in problems.load().rows["tuned"] if "long" not in row.method])
    kind, prior, _ = problems._parts(row.method)
    k = rng.randrange(len(row.grid))
    training, found = data.training_images(), []
    for seed, name in enumerate(row.on):
        x = data.middle(training[name], problems.TUNING_SIDE)
        measured = problems.PROBLEMS[row.task].measure(x, torch.Generator().manual_seed(seed))
        *_, state = problems.solve(kind, measured, row.grid[k], prior)
        found.append(psnr(state.x, x).item())
    assert np.mean(found) == pytest.approx(row.psnr[k], abs=PSNR), (
        f"GNC_SAMPLE={SEED}: {row.method}, {row.task}"
    )


# --- figure 3: one t_0 of two images ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def figure3_pairs():
    """Stored runs of some images with their settings, and the maps of one t_0 as they are now with theirs."""
    files = dict.fromkeys((figure3.SHIPPED, figure3.RESTORED), 2)
    files |= dict.fromkeys((figure3.LONG, figure3.RESTORED_LONG, figure3.DEEP, figure3.RESTORED_DEEP), 1)
    files |= dict.fromkeys((figure3.WHOLE, figure3.RESTORED_WHOLE), 1)
    rng, contents = draw("figure 3"), ((figure3.load(path), count) for path, count in files.items())
    pairs, images = [], {"bsds68": data.bsds68(), "embedded": data.embedded()}
    for content, run in ((c, run) for c, count in contents for run in rng.sample(c.rows["runs"], count)):
        settings, prior = content.about.settings, FieldsOfExperts.from_pretrained(content.about.prior)
        t = rng.choice(settings.t_firsts)
        most = rng.choice((64, 256)) if settings.crop else 8
        steps = tuple(s for s in settings.steps if s <= most)
        brief = vars(settings) | {"t_firsts": (t,), "steps": steps, "reference_schedule": 0}
        brief = figure3.Settings(**brief)
        x = images[run.set][run.image]
        x = data.middle(x, settings.crop) if settings.crop else x
        pairs.append((run, settings, measure(prior, run.task, x, run.seed, brief)["maps"], brief))
    return pairs


@needs_val
def test_the_maps_of_figure_3_are_what_the_algorithms_do(figure3_pairs):
    """To what the rounding of another processor changes, and a value that is forged is noticed."""
    for run, settings, found, brief in figure3_pairs:
        (t,), count = brief.t_firsts, len(brief.steps)
        row = settings.t_firsts.index(t)
        assert settings.steps[:count] == brief.steps
        assert found.keys() == run.maps.keys()
        limits = {"energy": 0.001, "psnr": 0.01} | ({"t": 0.01} if "t" in found[[*found][-1]] else {})
        for name, maps in found.items():
            for quantity, limit in limits.items():
                if quantity in maps:
                    apart = np.subtract(maps[quantity][0], run.maps[name][quantity][row][:count])
                    apart /= maps[quantity][0] if quantity == "t" else 1
                    where = f"{run.set}, {run.task}, {run.image}, {name}, t_0 = {t:g}, {quantity}: {apart}"
                    assert np.abs(apart).max() < limit, f"GNC_SAMPLE={SEED}: {where}"


# --- patches ----------------------------------------------------------------------------------------------


@needs_training
def test_the_diameter_of_the_patches_and_the_ends_of_their_edge():
    content, size = patches.load(), draw("patches").choice(patches.SIZES)
    about = content.about
    (row,) = (row for row in content.rows["sizes"] if row.size == size)
    points = patches.draw(data.training_images(), size, about.per_image, about.seed)
    assert len(points) == row.patches
    assert row.theorem == pytest.approx(bounds.squared_diameter(points) ** 0.5, rel=1e-9)
    assert row.popoviciu == row.theorem / 2
    a, b = (torch.tensor(end, dtype=torch.float64) for end in row.edge_patches)
    for end in (a, b):
        assert ((points - end).abs().amax(1) < 1e-9).sum() == 1
    assert row.edge == pytest.approx((a - b).norm().item() / 2, rel=1e-9)
    # the Hessian of the energy at the point of the cube: I / t - Cov / t^2, with the weights of Gaussians around it
    t, y = row.cube**2, torch.tensor(row.cube_point, dtype=torch.float64)
    weights = torch.softmax(-(points - y).square().sum(1) / (2 * t), 0)
    centred = points - weights @ points
    top = torch.linalg.eigvalsh((weights[:, None] * centred).T @ centred)[-1].item()
    assert top >= t * (1 - 1e-9)  # not convex there


# --- figures ----------------------------------------------------------------------------------------------


def committed(name):
    return json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))


def maps_of(content):
    found = figure3.aggregate(content, minimum="reference")
    return {f"{task} {a} {k}": getattr(s, k) for (task, a), s in found.items() for k in ("rate", "psnr")}


@pytest.mark.parametrize(("name", "path"), [("figure3", figure3.SHIPPED), ("figure3_deep", figure3.DEEP)])
def test_the_maps_that_are_drawn_are_the_means_of_the_rows(name, path):
    drawn, content = committed(name), figure3.load(path)
    for key, values in maps_of(content).items():
        assert np.allclose(values, drawn[key], rtol=1e-6), key
    for run in content.rows["runs"]:
        for maps in run.maps.values():
            maps["psnr"][0] = [value + 0.01 for value in maps["psnr"][0]]
    assert not all(np.allclose(values, drawn[key], rtol=1e-6) for key, values in maps_of(content).items())


def test_the_points_that_are_drawn_are_the_rows_of_the_inverse_problems():
    content, drawn, tuning = problems.load(), committed("problems_bsds68"), committed("problems_tuning")
    found = {}
    for row in content.rows["results"]:
        found.setdefault(f"{row.task} {row.method}", []).append(row.psnr)
    assert drawn == {name: pytest.approx(values, rel=1e-7) for name, values in found.items()}
    for row in content.rows["tuned"]:
        assert tuning[row.task][row.method] == pytest.approx(row.psnr, rel=1e-7)


def test_the_ablations_that_are_drawn_are_the_rows():
    drawn, differences = committed("ablation_yardsticks"), committed("ablation_psnr")
    runs = {}
    for row in sorted(ablations.load().rows["runs"], key=lambda row: row.seed):
        runs.setdefault(row.variant, []).append(row)
    assert set(drawn["variants"]) == runs.keys()
    for name, errors, curvature in zip(
        *(drawn[k] for k in ("variants", "calibration", "curvature")), strict=True
    ):
        assert errors == pytest.approx([row.calibration for row in runs[name]], rel=1e-6)
        assert np.allclose(curvature, [row.curvature for row in runs[name]], rtol=1e-6)
    recipe = {row.seed: np.array(row.psnr) for row in runs["recipe"]}
    shallow = [v.name for v in ablations.VARIANTS[""]()[1:] if v.prior.layers == 1]
    for name in shallow:
        gaps = np.mean([row.psnr - recipe[row.seed] for row in runs[name]], axis=0)
        k = differences["variants"].index(name) - 1
        assert np.allclose(differences["difference"][k], gaps, rtol=1e-5, atol=1e-9), name


def test_the_bounds_that_are_drawn_are_the_rows_of_the_patches():
    drawn = committed("patch_bounds")
    for row in patches.load().rows["sizes"]:
        k = drawn["side"].index(row.size)
        for name in ("theorem", "popoviciu", "edge", "cube"):
            assert math.isclose(drawn[name][k], getattr(row, name), rel_tol=1e-7)


# --- entropies: two images at one noise level under each prior ----------------------------------------------


@needs_val
def test_two_images_under_each_density():
    stored, chance = entropy.load(), draw("entropy")
    about, images = stored.about, data.bsds68()
    for prior in entropy.PRIORS:
        row = chance.choice([r for r in stored.rows["levels"] if r.prior == prior])
        x = torch.cat([data.middle(images[name], about.side) for name in about.images[:2]])
        found = entropy.measured(
            entropy.density(load_prior(prior), about.mean, about.brightness), x, row.sigma
        )
        for name in ("energy", "left"):
            for now, then in zip(found[name], getattr(row, name), strict=False):
                assert math.isclose(now, then, rel_tol=1e-4, abs_tol=1e-3), (prior, row.sigma, name)
            assert not math.isclose(found[name][0], getattr(row, name)[0] + 0.01, rel_tol=1e-4, abs_tol=1e-3)


# --- pairs: two images by one schedule --------------------------------------------------------------------


@needs_val
def test_stored_schedules_give_their_psnr():
    content, chance = pairs.load(), draw("pairs")
    row = chance.choice(content.rows["schedules"])
    t, eta = (torch.tensor(column, dtype=torch.float64) for column in (row.t, row.eta))
    images, prior = data.bsds68(), FieldsOfExperts.from_pretrained(row.prior)
    assert list(images) == content.about.images
    for k in chance.sample(range(68), 2):
        found = pairs.restored(prior, t, eta, images[content.about.images[k]], k)
        assert abs(found - row.psnr[k]) <= PSNR, (
            f"{row.prior} {row.method}, {row.pairs} pairs, image {k}, GNC_SAMPLE={SEED}"
        )
