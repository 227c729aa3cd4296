"""Schedules from few pairs: the tuned ones by brute force, the learned one by its own loss, gains by hand."""

import numpy as np
import pytest
import torch

from gnclib.deep import load_prior
from gnclib.images import data, psnr
from gnclib.io.table import Content, Origin
from gnclib.restore import Denoising, gnc_flow, last, linear_schedule, log_schedule
from gnclib.score import LearnConfig
from gnclib.studies import pairs

SIGMA, T_MIN = 25 / 255, 1e-4
MADE = {"settings": {}, "made": Origin(revision="", machine="", software="")}


@pytest.fixture
def x():
    """Three patches of 40 x 40 pixels."""
    return data.patches(data.embedded(), 40, 3, torch.Generator().manual_seed(0))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pairs, "LearnConfig", lambda **given: LearnConfig(iterations=12, patch=40, **given))


def noisy(x, seed):
    return x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("method", "kind"), [("linear", linear_schedule), ("logarithmic", log_schedule)])
def test_the_tuned_beginning_is_the_best_of_the_grid_on_the_pairs(x, method, kind):
    t, eta = pairs.schedule("R1", method, x, 5)
    assert torch.equal(t, eta)
    prior, y = load_prior("R1"), noisy(x, 5)
    found = [
        psnr(last(gnc_flow(prior, kind(first, T_MIN, 10), Denoising(y, SIGMA))).x, x).mean().item()
        for first in pairs.FIRST
    ]
    assert t[0].item() == pytest.approx(pairs.FIRST[int(np.argmax(found))])


def test_increments_sum_to_the_variance(x):
    t, eta = pairs.schedule("R1", "increments", x, 0)
    assert t[0].item() == pytest.approx(SIGMA**2)
    assert eta.sum().item() == pytest.approx(SIGMA**2)


def test_learning_lowers_the_error_on_its_pairs(x, quick):
    """From the tuned logarithmic schedule, on the same noise."""
    prior, term = load_prior("R1"), Denoising(noisy(x, 5), SIGMA)
    loss = []
    for method in ("logarithmic", "learned"):
        t, eta = pairs.schedule("R1", method, x, 5)
        restored = last(gnc_flow(prior, t, term, step_sizes=eta, rising=True)).x
        loss.append((restored - x).square().mean().item())
    assert loss[1] < loss[0]


def test_images_of_val_are_refused(tmp_path, x):
    with pytest.raises(ValueError, match="BSDS68"):
        next(pairs.compute(tmp_path / "f.json", {data.bsds68_ids()[0]: x[:1]}, {"a": x[:1]}))


def test_the_file_is_filled_once_and_says_what_the_schedule_gives(tmp_path, x, quick):
    training, judges = {"a": x[:1], "b": x[1:2]}, {"c": x[2:]}
    rows = list(pairs.compute(tmp_path / "f.json", training, judges, counts=(2,), seeds=1, priors=("R1",)))
    assert [row.method for row in rows] == list(pairs.METHODS)
    assert not list(
        pairs.compute(tmp_path / "f.json", training, judges, counts=(2,), seeds=1, priors=("R1",))
    )
    for row in pairs.load(tmp_path / "f.json").rows["schedules"]:
        t, eta = (torch.tensor(column, dtype=torch.float64) for column in (row.t, row.eta))
        assert pairs.restored(load_prior("R1"), t, eta, x[2:], 0) == pytest.approx(row.psnr[0], abs=2e-3)


def test_each_prior_has_schedules_of_its_own(tmp_path, x, quick):
    given = tmp_path / "f.json", {"a": x[:1]}, {"c": x[2:]}
    rows = {row.prior: row for row in pairs.compute(*given, counts=(1,), seeds=1) if row.method == "learned"}
    assert rows.keys() == {"R1", "P1"}
    for name, row in rows.items():
        t, eta = (torch.tensor(column, dtype=torch.float64) for column in (row.t, row.eta))
        assert pairs.restored(load_prior(name), t, eta, x[2:], 0) == pytest.approx(row.psnr[0], abs=2e-3)


def test_gains_are_over_the_better_of_the_others():
    def row(method, seed, *values, prior="R1"):
        return pairs.Schedule(
            prior=prior, method=method, pairs=2, seed=seed, t=[1.0], eta=[1.0], psnr=list(values), **MADE
        )

    rows = [
        *(row("learned", 0, 30.0, 31.0), row("linear", 0, 29.0, 29.0), row("logarithmic", 0, 28.0, 29.5)),
        *(row("learned", 0, 50.0, 60.0, prior="P1"), row("linear", 0, 40.0, 40.0, prior="P1")),
        *(row("learned", 1, 30.0, 30.0), row("linear", 1, 31.0, 29.0), row("logarithmic", 1, 29.0, 29.0)),
    ]
    gains = pairs.gains(Content(None, {"schedules": rows}), "R1", "learned", ("linear", "logarithmic"))
    np.testing.assert_allclose(gains[2], [[1.0, 2.0], [-1.0, 1.0]])
    shuffled = pairs.gains(
        Content(None, {"schedules": rows[::-1]}), "R1", "learned", ("linear", "logarithmic")
    )
    np.testing.assert_array_equal(shuffled[2], gains[2])
    of_p = pairs.gains(Content(None, {"schedules": rows}), "P1", "learned", ("linear",))
    np.testing.assert_allclose(of_p[2], [[10.0, 20.0]])
