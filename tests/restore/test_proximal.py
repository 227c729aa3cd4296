"""The proximal map of an energy: closed form, brute force, stationarity, descent, independence of the batch."""

import pytest
import torch

from gnclib.foe import FieldsOfExperts
from gnclib.gmm import GaussianMixture
from gnclib.gmm import mixture as gmm
from gnclib.images import data
from gnclib.restore import proximal


def objective(prior, z, v, t, eta):
    return eta * prior.energy(z, t) + 0.5 * (z - v).reshape(len(v), -1).square().sum(1)


def test_one_gaussian_has_a_closed_form():
    mixture = GaussianMixture(weights=[1.0], means=[0.3], variances=[0.04])
    v = torch.tensor([-2.0, 0.0, 0.3, 5.0], dtype=torch.float64)
    t, eta = torch.tensor([0.01, 0.02, 0.5, 1.0]).double(), torch.tensor([0.5, 3.0, 0.1, 0.7]).double()
    s = 0.04 + t
    found = proximal.proximal_point(mixture, v, t, eta, tolerance=1e-12)
    assert bool(found.reached.all())
    torch.testing.assert_close(found.x, (s * v + eta * 0.3) / (s + eta), rtol=0, atol=1e-11)


def test_the_first_step_is_newtons_where_the_curvature_is_1_over_t():
    """As long as a smoothed energy allows; a quarter of it would take more steps, four times as much be halved."""
    point = GaussianMixture(weights=[1.0], means=[0.3], variances=[1e-15])
    v = torch.tensor([-2.0, 0.0, 5.0], dtype=torch.float64)
    for t, eta in ((0.01, 0.5), (2.0, 0.1)):
        found = proximal.proximal_point(point, v, t, eta, tolerance=1e-9)
        assert (found.steps, bool(found.reached.all())) == (1, True)


def test_convex_mixture_against_a_grid():
    mixture = gmm.figure1_mixture()
    t = 1.5 * mixture.convexity_threshold(None)
    v = torch.linspace(-3, 3, 13, dtype=torch.float64)
    grid = torch.linspace(-4, 4, 800_001, dtype=torch.float64)
    energy = mixture.energy(grid, t)
    found = proximal.proximal_point(mixture, v, t, 0.8, tolerance=1e-10)
    assert bool(found.reached.all())
    for value, x in zip(v, found.x, strict=True):
        best = grid[(0.8 * energy + 0.5 * (grid - value) ** 2).argmin()]
        assert abs(x - best) <= 1e-5  # the grid's spacing


def test_non_convex_mixture_ends_in_a_stationary_point_below_the_start():
    mixture = gmm.figure1_mixture()
    v = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64)
    t, eta = 1e-3, 0.5
    found = proximal.proximal_point(mixture, v, t, eta, tolerance=1e-9, iterations=1000)
    assert bool(found.reached.all())
    slope = eta * mixture.grad(found.x, t) + (found.x - v)
    assert slope.abs().max() <= 1e-9
    assert bool((objective(mixture, found.x, v, t, eta) <= objective(mixture, v, v, t, eta) + 1e-12).all())
    curvature = eta * mixture.hessian(found.x, t).reshape(-1) + 1
    assert bool((curvature > -1e-6).all())  # minima, not maxima


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_learned_energy(dtype):
    prior = FieldsOfExperts.from_pretrained("R1")
    exact = FieldsOfExperts.from_pretrained("R1").double()
    x = data.embedded()["camera"][..., 100:132, 100:132]
    v = data.add_noise(torch.cat([x, x.flip(-1), x.flip(-2)]), 0.1, seed=1).to(dtype)
    t, eta = torch.tensor([0.01, 0.0025, 0.0004]).to(dtype), torch.tensor([0.01, 0.01, 0.0008]).to(dtype)
    found = proximal.proximal_point(prior.to(dtype), v, t, eta)
    assert bool(found.reached.all())
    z, start, wide = found.x.double(), v.double(), eta.double().reshape(-1, 1, 1, 1)
    residual = z - start + wide * exact.grad(z, t.double())
    assert residual.square().mean((1, 2, 3)).sqrt().max() <= 1.1e-5  # rounding of float32 apart, 1e-5
    fall = objective(exact, start, start, t.double(), eta.double()) - objective(
        exact, z, start, t.double(), eta.double()
    )
    assert bool((fall > 0.05).all())
    for k in range(3):  # the others in the batch do not matter
        alone = proximal.proximal_point(prior, v[k : k + 1], t[k].item(), eta[k].item()).x
        assert (alone - found.x[k]).abs().max() < 2e-4
    assert torch.equal(proximal.proximal_point(prior, v, t, 0.0).x, v)


def test_a_tolerance_out_of_reach_is_told_and_the_value_still_falls():
    mixture = gmm.figure1_mixture()
    v = torch.tensor([0.7], dtype=torch.float64)
    found = proximal.proximal_point(mixture, v, 1e-3, 0.5, tolerance=1e-12, iterations=2)
    assert found.steps == 2
    assert not bool(found.reached)
    slope = 0.5 * mixture.grad(found.x, 1e-3) + (found.x - v)
    assert found.residual == pytest.approx(slope.abs().item())
    assert objective(mixture, found.x, v, 1e-3, 0.5) < objective(mixture, v, v, 1e-3, 0.5)


def test_an_energy_that_is_not_a_number_is_not_said_to_be_minimised():
    class Broken(GaussianMixture):
        def grad(self, y, t):
            return torch.full_like(y, torch.nan)

    mixture = Broken(weights=[1.0], means=[-0.3], variances=[0.04])
    v = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert proximal.proximal_point(mixture, v, 0.01, 0.5).reached.tolist() == [False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": 0.0}, "t is the noise variance"),
        ({"t": -1.0}, "must be >= 0"),
        ({"step": float("nan")}, "finite"),
        ({"step": -1.0}, ">= 0"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"iterations": 0}, "steps"),
        ({"v": torch.tensor([float("nan")])}, "finite"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"v": torch.zeros(1, dtype=torch.float64), "t": 0.1, "step": 0.1} | change
    with pytest.raises(ValueError, match=message):
        proximal.proximal_point(gmm.figure1_mixture(), **arguments)
