"""log Z against mixtures and Gaussians, whose densities are known, and by two ways that share nothing."""

import math

import numpy as np
import pytest
import torch

from gnclib import load_prior
from gnclib.deep import NetworkEnergy
from gnclib.deep.config import NetworkConfig
from gnclib.gmm import GaussianMixture
from gnclib.images import data
from gnclib.restore.evidence import Gaussian, WithBrightness, _bennett, annealed_constant, quadratic_constant
from tests.draws import generator

F64 = torch.float64


def mixture(d):
    """Four Gaussians about one standard deviation apart."""
    means = torch.randn(4, d, generator=generator(d), dtype=F64) / d**0.5
    return GaussianMixture([0.4, 0.3, 0.2, 0.1], means, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64))


class Shifted:
    """An energy plus a number: log Z of a density is then minus that number."""

    def __init__(self, energy, by):
        self.inner, self.by = energy, by

    def energy(self, y, t):
        return self.inner.energy(y, t) + self.by

    def grad(self, y, t):
        return self.inner.grad(y, t)


@pytest.mark.parametrize(("d", "steps", "chains"), [(2, 100, 200), (16, 200, 200), (256, 100, 40)])
def test_the_constant_of_a_mixture(d, steps, chains):
    """Bracketed, and right to 1e-3 per dimension and to four of its own standard errors."""
    base, like = (
        Gaussian(torch.zeros(d, dtype=F64), torch.full((d,), 0.3, dtype=F64)),
        torch.zeros(chains, d, dtype=F64),
    )
    found = annealed_constant(Shifted(mixture(d), 5.0), 1.0, base, like, steps=steps, generator=generator())
    assert abs(found.value + 5) < 4 * found.error
    assert abs(found.value + 5) < 1e-3 * max(d, 4)
    assert found.lower - 4 * found.error < -5 < found.upper + 4 * found.error
    assert found.lower - found.error < found.value < found.upper + found.error
    assert 0.3 < found.accepted < 0.8


def test_the_error_of_the_estimate_is_its_spread():
    """Log weights of two Gaussians that fulfil the theorem of Crooks: the ratio is known, here e^3."""
    rng, spread = np.random.default_rng(0), 1.5
    shift = spread**2 / 2
    found = [
        _bennett(3 - shift + spread * rng.standard_normal(400), 3 + shift + spread * rng.standard_normal(400))
        for _ in range(300)
    ]
    values, errors = np.transpose(found)
    assert abs(values.mean() - 3) < 4 * values.std() / math.sqrt(len(values))
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)


def test_more_steps_close_the_bracket():
    """A base that is too wide by far: the gap falls with the steps, and both bounds are on their sides."""
    base, like, gaps = (
        Gaussian(torch.full((16,), 0.5, dtype=F64), torch.full((16,), 3.0, dtype=F64)),
        torch.zeros(60, 16, dtype=F64),
        [],
    )
    for steps in (10, 40, 160):
        found = annealed_constant(mixture(16), 1.0, base, like, steps=steps, generator=generator(1))
        assert found.lower < 0.1
        assert found.upper > -0.1
        gaps.append(found.upper - found.lower)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_quadratics_by_their_determinant():
    root = torch.randn(12, 12, generator=generator(), dtype=F64)
    line = GaussianMixture(
        [1.0], torch.arange(12.0, dtype=F64)[None], (root @ root.T + torch.eye(12, dtype=F64))[None]
    )
    at = torch.ones(1, 12, dtype=F64)
    assert quadratic_constant(Shifted(line, 2.5), 0.7, at) == pytest.approx(-2.5, abs=1e-9)
    with pytest.raises(ValueError, match="no quadratic"):
        quadratic_constant(mixture(12), 0.1, at)

    class Saddle:
        def energy(self, y, t):
            return 0.5 * (y[:, 0] ** 2 - y[:, 1] ** 2)

        def grad(self, y, t):
            return y * torch.tensor([1.0, -1.0], dtype=F64)

    with pytest.raises(ValueError, match="not positive definite"):
        quadratic_constant(Saddle(), 1.0, torch.zeros(1, 2, dtype=F64))


def test_both_ways_agree_on_a_network():
    """Weights without meaning, where the gate is shut: annealing knows nothing of determinants."""
    torch.manual_seed(0)
    energy = NetworkEnergy(NetworkConfig(channels=(4, 6, 6), embedding=8), generator=generator()).double()
    energy.requires_grad_(False)
    t, base = 25.0, Gaussian(0.45, torch.full((12, 12), 0.5, dtype=F64))
    exact = quadratic_constant(energy, t, torch.full((1, 1, 12, 12), 0.45, dtype=F64))
    found = annealed_constant(
        energy, t, base, torch.zeros(40, 1, 12, 12, dtype=F64), steps=40, generator=generator(2)
    )
    assert abs(found.value - exact) < 4 * found.error < 0.5


def test_the_gaussian_is_a_normalised_energy():
    """Against the dense covariance of white noise that was coloured; its gradient against differences."""
    variances = torch.rand(5, 7, generator=generator(), dtype=F64)
    base, t = Gaussian(0.4, variances), 0.3
    units = torch.eye(35, dtype=F64).reshape(35, 1, 5, 7)
    root = (base.coloured(units, t) - 0.4).reshape(35, 35).T
    law = torch.distributions.MultivariateNormal(torch.full((35,), 0.4, dtype=F64), root @ root.T)
    y = base.coloured(torch.randn(3, 1, 5, 7, generator=generator(1), dtype=F64), t)
    torch.testing.assert_close(base.energy(y, t), -law.log_prob(y.reshape(3, 35)))
    v, h = torch.randn(y.shape, generator=generator(2), dtype=F64), 1e-5
    slope = (base.energy(y + h * v, t) - base.energy(y - h * v, t)) / (2 * h)
    torch.testing.assert_close((base.grad(y, t) * v).sum((1, 2, 3)), slope)
    many = base.coloured(torch.randn(4000, 1, 5, 7, generator=generator(3), dtype=F64), 0.0)
    again = Gaussian.of(many)
    assert again.mean == pytest.approx(0.4, abs=0.01)
    assert (again.variances / variances - 1).abs().max() < 0.12  # 5 sigma of 2 / 4000


def test_brightness_makes_experts_a_density():
    """Along constants exp(-R) is flat, and with the density of mean grey values its integral is that of exp(-R)."""
    prior, t = load_prior("R1").double(), 0.04
    prior.project()  # means of the kernels are 0 to single precision in the file
    y = data.add_noise(data.embedded()["camera"][..., 100:120, 220:240].double(), 0.2, 0)
    whole = WithBrightness(prior, 0.4, 30.0)
    a = torch.linspace(-60, 60, 2001, dtype=F64)  # n^(1/2) times the change of the mean grey value
    moved = y - y.mean() + 0.4 + a[:, None, None, None] / 20
    density = torch.cat([(prior.energy(y, t) - whole.energy(part, t)).exp() for part in moved.split(100)])
    assert torch.trapezoid(density, a).item() == pytest.approx(1, abs=1e-6)
    v, h = torch.randn(y.shape, generator=generator(2), dtype=F64), 1e-5
    slope = (whole.energy(y + h * v, t) - whole.energy(y - h * v, t)) / (2 * h)
    torch.testing.assert_close((whole.grad(y, t) * v).sum((1, 2, 3)), slope, rtol=1e-5, atol=1e-5)
    assert math.isfinite(whole.energy(y, t).item())
