"""MALA against exact posteriors of Gaussians and mixtures; R-hat and effective sizes of autoregressive chains."""

import math

import pytest
import torch

from gnclib.gmm import GaussianMixture, figure1_mixture
from gnclib.restore import sampling
from gnclib.restore.evidence import Gaussian
from gnclib.restore.sampling import ACCEPTED, cosines, effective_size, mala, r_hat
from tests.draws import generator

F64 = torch.float64


class Fit:
    """D(x) = ||x - y||^2 / (2 s^2) of points."""

    def __init__(self, y, s):
        self.y, self.s = y, s

    def energy(self, x):
        return (x - self.y).square().reshape(len(x), -1).sum(1) / (2 * self.s**2)

    def prox(self, v, step):
        raise NotImplementedError

    def start(self):
        return self.y.clone()


def run(prior, t, data, start, gradients, seed=0, **options):
    """The draws (N, B, ...) and the share that was accepted."""
    found = list(mala(prior, t, data, start, gradients=gradients, generator=generator(seed), **options))
    return torch.stack([s.x for s in found]), torch.stack([s.accepted for s in found]).double().mean().item()


def within(value, expected, chains, sigmas=5):
    """Means over the draws lie within Monte Carlo errors of what is expected."""
    error = (chains.reshape(-1, *chains.shape[2:]).var(0) / effective_size(chains)).sqrt()
    assert ((value - expected).abs() < sigmas * error).all(), (value, expected, error)


def test_gaussian_posterior():
    """x ~ N(m, S), y = x + s z: the posterior is Gaussian with precision S^-1 + I / s^2."""
    covariance = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, 0.2], [0.0, 0.2, 0.5]], dtype=F64)
    mean, y, s = torch.tensor([0.3, -1.0, 0.5], dtype=F64), torch.tensor([1.0, 0.0, 0.0], dtype=F64), 0.7
    prior = GaussianMixture([1.0], mean[None], covariance[None])
    precision = torch.linalg.inv(covariance) + torch.eye(3, dtype=F64) / s**2
    expected = torch.linalg.inv(precision)
    centre = expected @ (torch.linalg.inv(covariance) @ mean + y / s**2)
    start = 3 * torch.randn(20, 3, generator=generator(1), dtype=F64)
    draws, rate = run(prior, 0.0, Fit(y, s), start, 3000)
    assert rate == pytest.approx(ACCEPTED, abs=0.05)
    assert r_hat(draws).max() < 1.01
    assert effective_size(draws).min() > 1000
    within(draws.mean((0, 1)), centre, draws)
    products = (draws - centre)[..., :, None] * (draws - centre)[..., None, :]
    within(products.mean((0, 1)), expected, products)


def test_mixture_posterior_on_the_line():
    """Against quadrature: mean, variance and the probability of the left half. Two modes that chains cross."""
    mixture, t, y, s = figure1_mixture(), 0.005, 0.05, 0.3
    x = torch.linspace(-4, 4, 80001, dtype=F64)
    density = torch.exp(-mixture.energy(x, t) - (x - y) ** 2 / (2 * s**2))
    density /= density.sum()
    start = torch.linspace(-1, 1, 40, dtype=F64)
    draws, _ = run(mixture, t, Fit(torch.tensor([y], dtype=F64), s), start, 4000)
    assert r_hat(draws) < 1.02
    for function in (lambda v: v, lambda v: (v - 0.1) ** 2, lambda v: (v < 0.2).double()):
        values = function(draws)
        within(values.mean(), (density * function(x)).sum(), values)


def test_large_steps_are_still_exact_and_small_ones_are_accepted():
    """The invariant density does not depend on the step; without tuning and with a tiny one nearly all is accepted."""
    line = GaussianMixture([1.0], [0.0], [1.0])
    start = torch.randn(50, generator=generator(2), dtype=F64)
    draws, rate = run(line, 0.0, None, start, 3000, step=30.0)
    assert rate > 0.3
    within((draws**2).mean(), 1.0, draws**2)


def test_what_is_not_free_stays():
    """Inpainting: the conditional law of the second number given the first."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64)
    prior = GaussianMixture([1.0], torch.zeros(1, 2, dtype=F64), covariance[None])
    start = torch.tensor([[1.5, 0.0]], dtype=F64).repeat(30, 1)
    free = torch.tensor([False, True]).expand(30, 2)
    draws, _ = run(prior, 0.0, None, start, 2000, free=free)
    assert (draws[..., 0] == 1.5).all()
    second = draws[..., 1]
    within(second.mean(), 0.8 * 1.5, second)
    within(((second - 1.2) ** 2).mean(), 1 - 0.8**2, (second - 1.2) ** 2)


def test_annealing_finds_the_weights_of_modes_that_chains_do_not_cross():
    """Modes 40 standard deviations apart, all chains start in one: MALA stays, annealed chains divide as 0.3 : 0.7."""
    mixture, t = GaussianMixture([0.3, 0.7], [-1.0, 1.0], [0.002, 0.002]), 5e-4
    start = torch.full((400,), -1.0, dtype=F64)
    (*_, end) = mala(mixture, t, start=start, gradients=600, generator=generator(5))
    assert (end.x < 0).all()
    draws = list(mala(mixture, t, start=start, gradients=1200, generator=generator(6), first=1.0))
    share = (draws[-1].x > 0).double().mean().item()
    assert abs(share - 0.7) < 5 * math.sqrt(0.21 / 400)
    right = torch.stack([s.x for s in draws])[:, draws[-1].x > 0]
    within(((right - 1) ** 2).mean(), 0.002 + t, (right - 1) ** 2)


def test_annealed_images_have_a_gaussian_posterior():
    """Coefficients whose variances differ by a factor of 1000: mean and variance of each, and steps that count on."""
    variances = torch.logspace(0.5, -2.5, 64, dtype=F64).reshape(8, 8)
    base, t, s = Gaussian(0.4, variances), 1e-3, 0.2
    y = base.coloured(torch.randn(1, 1, 8, 8, generator=generator(7), dtype=F64), t)
    start = torch.rand(8, 1, 8, 8, generator=generator(8), dtype=F64)
    found = list(mala(base, t, Fit(y, s), start, gradients=3000, generator=generator(9), first=1.0))
    assert [sample.step for sample in found] == list(range(1, len(found) + 1))
    draws = torch.stack([sample.x for sample in found])
    assert 1400 < len(draws) < 3000
    draws = cosines(draws.flatten(0, 1)).view_as(draws)
    precision = 1 / (variances + t) + 1 / s**2
    prior_mean = cosines(torch.full_like(y, 0.4))
    mean = (prior_mean / (variances + t) + cosines(y) / s**2) / precision
    assert r_hat(draws).max() < 1.05
    within(draws.mean((0, 1)), mean[0], draws)
    within(((draws - mean) ** 2).mean((0, 1)), (1 / precision)[None], (draws - mean) ** 2)


def test_annealing_withstands_a_direction_that_is_much_steeper_than_its_neighbours():
    """One frequency that the mean curvature of its ring hides: the first steps are too long for it."""
    variances = torch.full((32, 32), 10.0, dtype=F64)
    variances[20, 20] = 0.0
    base, start = Gaussian(0.4, variances), torch.rand(2, 1, 32, 32, generator=generator(1), dtype=F64)
    target = sampling._target(base, 1e-3, None)
    made = sampling._coordinates(target, start, 1e-3, generator(2), None)
    way = list(sampling._chain(target, made, 0.1, 60, 60, generator(3), sure=30))
    assert max(s.energy.max().item() for s in way) < target(start)[0].max() + 1024
    assert way[-1].size < 0.1


def test_known_pixels_of_images_stay_and_the_others_have_their_conditional_law():
    """Against the dense Gaussian; in coordinates of their own the chains are soon worth many draws."""
    k = torch.arange(8, dtype=F64)
    variances, t = 1 / (0.1 + k[:, None] ** 2 + k**2) ** 1.5, 1e-3
    base = Gaussian(0.4, variances)
    y = base.coloured(torch.randn(1, 1, 8, 8, generator=generator(7), dtype=F64), t)
    free = torch.rand(1, 1, 8, 8, generator=generator(8)) < 0.7
    start = torch.where(free, torch.rand(8, 1, 8, 8, generator=generator(9), dtype=F64), y)
    draws, _ = run(base, t, None, start, 1500, free=free)
    moves = free.flatten()
    assert (draws.flatten(2)[..., ~moves] == y.flatten()[~moves]).all()
    basis = cosines(torch.eye(64, dtype=F64).view(64, 1, 8, 8)).view(64, 64)
    precision = (basis / (variances + t).flatten()) @ basis.T
    covariance = torch.linalg.inv(precision[moves][:, moves])
    known = y.flatten()[~moves] - 0.4
    mean = 0.4 - covariance @ precision[moves][:, ~moves] @ known
    found = draws.flatten(2)[..., moves]
    assert r_hat(found).max() < 1.03
    assert effective_size(found).median() > 500
    within(found.mean((0, 1)), mean, found)
    within(((found - mean) ** 2).mean((0, 1)), covariance.diagonal(), (found - mean) ** 2)


@pytest.mark.parametrize("limit", [10, 4096])
def test_masks_that_differ_between_chains_and_large_images_move_pixel_by_pixel(limit, monkeypatch):
    monkeypatch.setattr(sampling, "DENSE", limit)
    base, t = Gaussian(0.4, torch.full((4, 4), 0.5, dtype=F64)), 1e-2
    free = torch.rand(1 if limit == 10 else 20, 1, 4, 4, generator=generator(8)) < 0.7
    start = torch.rand(20, 1, 4, 4, generator=generator(9), dtype=F64)
    assert not sampling._coordinates(None, start, t, None, free).own
    draws, _ = run(base, t, None, start, 1500, free=free)
    free = free.expand_as(start)
    assert (draws[:, ~free] == start[~free]).all()
    squares = (draws[:, free] - 0.4) ** 2
    within(squares.mean(), 0.5 + t, squares.mean(1, keepdim=True))


def test_corner_cases_of_images():
    """All pixels free, none free, no noise, float32 with annealing and a mask, and a budget of nothing."""
    base, start = Gaussian(0.4, torch.full((4, 4), 0.5, dtype=F64)), torch.rand(3, 1, 4, 4, dtype=F64)
    every = torch.ones_like(start, dtype=torch.bool)
    assert torch.equal(*(run(base, 0.01, None, start, 50, free=f)[0] for f in (every, None)))
    assert (run(base, 0.01, None, start, 50, free=~every)[0] == start).all()
    assert (run(base, 0.0, None, start, 50)[0] != start).any()
    free = torch.rand(1, 1, 4, 4) < 0.5
    draws, _ = run(base, 0.01, None, start.float(), 600, free=free, first=1.0, step=0.2)
    assert draws.dtype == torch.float32
    assert (draws[..., ~free[0, 0]] == start.float()[..., ~free[0, 0]]).all()
    looks, of = [], Gaussian(0.4, torch.full((4, 4), 0.5, dtype=F64))
    of.grad = lambda y, t: looks.append(t) or base.grad(y, t)
    list(mala(of, 0.01, start=start, gradients=50))
    assert len(looks) == 50
    for gradients in (1, 2, 3):
        assert not list(mala(base, 0.01, start=start, gradients=gradients))


def test_diagnostics_of_autoregressive_chains():
    """x_k = a x_{k-1} + noise has the effective size N (1 - a) / (1 + a); chains about two means never mix."""
    n, a = 40_000, 0.9
    noise = torch.randn(n, 4, generator=generator(3), dtype=F64)
    chains = [noise[0] / math.sqrt(1 - a**2)]
    for z in noise[1:]:
        chains.append(a * chains[-1] + z)
    chains = torch.stack(chains)
    assert effective_size(chains).item() == pytest.approx(4 * n * (1 - a) / (1 + a), rel=0.1)
    assert effective_size(noise).item() == pytest.approx(4 * n, rel=0.1)
    assert r_hat(noise).item() == pytest.approx(1, abs=1e-3)
    apart = noise + torch.tensor([0.0, 0.0, 3.0, 3.0], dtype=F64)
    between = torch.tensor([0.0, 0.0, 3.0, 3.0] * 2, dtype=F64).var()
    assert r_hat(apart).item() == pytest.approx(math.sqrt(1 + between), rel=0.02)


def test_bad_input():
    line = figure1_mixture()
    start = torch.zeros(3, dtype=F64)
    with pytest.raises(ValueError, match="start"):
        mala(line, 0.0, gradients=10)
    with pytest.raises(ValueError, match="step"):
        mala(line, 0.0, start=start, gradients=10, step=0.0)
    with pytest.raises(ValueError, match="integer"):
        mala(line, 0.0, start=start, gradients=0)
    for t, first in [(-1.0, None), (math.nan, None), (0.5, 0.1), (0.0, 1.0), (0.1, math.inf)]:
        with pytest.raises(ValueError, match="t must be finite"):
            mala(line, t, start=start, gradients=1000, first=first)
    with pytest.raises(ValueError, match="534 gradients or more, got 500"):
        mala(line, 0.01, start=start, gradients=500, first=1.0)
    with pytest.raises(ValueError, match="4 draws"):
        r_hat(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="4 draws"):
        effective_size(torch.zeros(3, 2))
