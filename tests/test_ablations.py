"""The yardsticks of the ablations on energies whose answers are known, and the sweep itself."""

import math
from dataclasses import replace

import pytest
import torch

from gnclib import ablations, data
from gnclib.ablations import Variant
from gnclib.foe import FoEConfig
from gnclib.train import TrainConfig

TINY = FoEConfig(features=4, kernel_size=3, nodes_x=21, nodes_tau=5)
BRIEF = TrainConfig(steps=3, batch=4, patch=12, fraction=0.5)
TAUS = torch.linspace(-3, 0, 4)


class Gaussian:
    """Pixels independent N(1/2, v), smoothed: F = n/2 log(v + t) + ||y - 1/2||^2 / (2 (v + t))."""

    def __init__(self, v):
        self.v = v

    def dtau(self, y, t):
        first = (t - t * (y - 0.5) ** 2 / (self.v + t)) / (self.v + t)
        return first.sum((1, 2, 3)), None


def patches(v, count=400, size=12):
    return 0.5 + math.sqrt(v) * torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def test_calibration_vanishes_for_the_true_energy():
    value = ablations.calibration(Gaussian(0.04), patches(0.04), TAUS)
    assert value.shape == (4, 400)
    error = value.std(1) / math.sqrt(400)
    assert (value.mean(1).abs() < 6 * error).all()


def test_calibration_of_a_wrong_energy_is_what_theory_says():
    """With pixels N(1/2, u) instead of v the mean of d_tau F / n is t (v - u) / (v + t)^2."""
    u, v = 0.04, 0.16
    value = ablations.calibration(Gaussian(v), patches(u), TAUS)
    t = (2 * TAUS).exp()
    expected = t * (v - u) / (v + t) ** 2
    assert ((value.mean(1) - expected).abs() < 6 * value.std(1) / math.sqrt(400)).all()
    assert (expected > 30 * value.std(1) / math.sqrt(400)).any()  # the test could have failed


@pytest.mark.parametrize("taus", [torch.zeros(0), torch.zeros(2, 2), torch.tensor(0.0)])
def test_calibration_wants_a_vector_of_taus(taus):
    with pytest.raises(ValueError, match="taus must be a vector"):
        ablations.calibration(Gaussian(1.0), patches(1.0, 2), taus)


def test_calibration_wants_images():
    with pytest.raises(ValueError, match="shape"):
        ablations.calibration(Gaussian(1.0), torch.zeros(3, 8, 8), TAUS)


def test_sweep_repeats_itself_and_judges_what_it_trained():
    leaves = {str(k): data.dead_leaves(32, 32, torch.Generator().manual_seed(k)) for k in range(2)}
    held_out = [data.dead_leaves(24, 24, torch.Generator().manual_seed(9))]
    variants = [Variant("dct", TINY, BRIEF), Variant("random", TINY, BRIEF, "random")]
    options = {"sigmas": (0.1, 0.3), "levels": 3, "patches": 5, "size": 10}
    first, again = (list(ablations.sweep(variants, [0, 1], leaves, held_out, **options)) for _ in range(2))
    assert [(r.variant, r.seed) for r in first] == [("dct", 0), ("dct", 1), ("random", 0), ("random", 1)]
    assert first == again
    assert len({r.psnr for r in first}) == 4
    x = data.patches(held_out, 10, 5, torch.Generator().manual_seed(0))
    for r in first:
        assert r.taus == pytest.approx((math.log(0.01), math.log(0.1), 0.0), abs=1e-12)
        profile = ablations.calibration(r.prior, x, torch.tensor(r.taus)).mean(1)
        assert r.profile == pytest.approx(profile.tolist(), abs=1e-5)
        assert r.calibration == pytest.approx(profile.abs().mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("variants", "options", "says"),
    [
        ([], {}, "at least one"),
        ([Variant("a", TINY, BRIEF), Variant("a", TINY, replace(BRIEF, lr=0.01))], {}, "different names"),
        ([Variant("a", TINY, BRIEF)], {"levels": 1}, "levels must be at least 2"),
    ],
)
def test_sweep_refuses_what_cannot_be_compared(variants, options, says):
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=says):
        next(ablations.sweep(variants, [0], [image], [image], **options))


def test_sweep_never_trains_on_the_benchmark():
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="BSDS68"):
        next(
            ablations.sweep([Variant("a", TINY, BRIEF)], [0], {data.bsds68_ids()[3]: image}, [image], size=8)
        )
