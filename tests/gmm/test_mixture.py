"""Mixtures against autograd, finite differences, quadrature and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.autograd.functional import hessian as autograd_hessian

from gnclib.gmm import GaussianMixture, empirical, figure1_mixture, threshold
from tests.draws import generator

F64 = torch.float64


def random_mixture(d: int, full: bool, seed: int = 0, k: int = 4) -> GaussianMixture:
    g = generator(seed)
    weights = torch.rand(k, generator=g, dtype=F64) + 0.1
    means = torch.randn(k, d, generator=g, dtype=F64)
    variances = torch.rand(k, generator=g, dtype=F64) * 0.5 + 0.05
    if full:
        root = torch.randn(k, d, d, generator=g, dtype=F64)
        variances = root @ root.mT / d + 0.05 * torch.eye(d, dtype=F64)
    return GaussianMixture(weights / weights.sum(), means, variances)


CASES = [(1, False), (1, True), (2, False), (2, True), (10, False), (10, True)]


@pytest.mark.parametrize(("d", "full"), CASES)
def test_energy_is_minus_log_of_the_density(d, full):
    mixture, t = random_mixture(d, full), 0.3
    y = torch.randn(6, d, generator=generator(1), dtype=F64)
    total = 0
    for w, mu, v in zip(mixture.weights, mixture.means, mixture.variances, strict=True):
        cov = (v if full else v * torch.eye(d, dtype=F64)) + t * torch.eye(d, dtype=F64)
        total = total + w * torch.distributions.MultivariateNormal(mu, cov).log_prob(y).exp()
    assert torch.allclose(mixture.energy(y, t), -total.log(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("d", "full"), CASES)
def test_grad_and_hessian_match_autograd(d, full):
    mixture = random_mixture(d, full)
    y = torch.randn(5, d, generator=generator(2), dtype=F64)
    t = torch.tensor([0.0, 0.01, 0.1, 1.0, 9.0], dtype=F64)  # one t per sample
    grad, hess = mixture.grad(y, t), mixture.hessian(y, t)
    for k in range(5):

        def energy(point, k=k):
            return mixture.energy(point[None], t[k])[0]

        point = y[k].clone().requires_grad_()
        expected = torch.autograd.grad(energy(point), point)[0]
        assert torch.allclose(grad[k], expected, rtol=1e-10, atol=1e-10)
        assert torch.allclose(hess[k], autograd_hessian(energy, y[k]), rtol=1e-9, atol=1e-9)
    v = torch.randn(5, d, generator=generator(3), dtype=F64)
    torch.testing.assert_close(mixture.hvp(y, t, v), torch.einsum("bij,bj->bi", hess, v))
    with pytest.raises(ValueError, match="as many v as y"):
        mixture.hvp(y, t, v[:1])


def test_line_and_one_dimensional_space_agree():
    line = figure1_mixture()
    space = GaussianMixture(line.weights, line.means[:, None], line.variances)
    y = torch.linspace(-1.5, 1.5, 11, dtype=F64)
    assert torch.equal(line.energy(y, 0.1), space.energy(y[:, None], 0.1))
    assert torch.equal(line.grad(y, 0.1), space.grad(y[:, None], 0.1)[:, 0])
    assert torch.equal(line.hessian(y, 0.1), space.hessian(y[:, None], 0.1)[:, 0, 0])


@pytest.mark.parametrize("d", [1, 2, 10])
def test_tau_derivatives_match_autograd_and_the_heat_equation(d):
    mixture = random_mixture(d, full=d == 2)
    y = torch.randn(6, d, generator=generator(4), dtype=F64)
    tau = torch.linspace(-3.0, 0.7, 6, dtype=F64).requires_grad_()
    t = (2 * tau).exp()
    first = torch.autograd.grad(mixture.energy(y, t).sum(), tau, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), tau)[0]
    ours = mixture.dtau(y, t.detach())
    assert torch.allclose(ours[0], first, rtol=1e-9, atol=1e-10)
    assert torch.allclose(ours[1], second, rtol=1e-9, atol=1e-9)
    # f solves the heat equation d_t f = 1/2 Laplace f, so d_t F = (tr hess F - |grad F|^2) / 2
    t = t.detach()
    trace = mixture.hessian(y, t).diagonal(dim1=1, dim2=2).sum(1)
    heat = t * (trace - mixture.grad(y, t).square().sum(1))
    assert torch.allclose(ours[0], heat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [1e-4, 0.05, 1.0])
def test_tweedie_matches_the_posterior_mean_by_quadrature(t):
    mixture = figure1_mixture()
    w, mu, s = mixture.weights.numpy(), mixture.means.numpy(), mixture.variances.numpy() ** 0.5
    for y in (-0.9, -0.1, 0.2, 0.6):

        def joint(x, y=y):
            return (w * norm.pdf(x, mu, s)).sum() * norm.pdf(y, x, math.sqrt(t))

        lo, hi = max(-1.6, y - 9 * math.sqrt(t)), min(1.6, y + 9 * math.sqrt(t))
        options = {
            "limit": 400,
            "points": [m for m in mu if lo < m < hi] + [y],
            "epsabs": 1e-13,
            "epsrel": 1e-11,
        }
        mass, moment = (
            quad(joint, lo, hi, **options)[0],
            quad(lambda x, y=y: x * joint(x, y), lo, hi, **options)[0],
        )
        assert mixture.denoise([y], t).item() == pytest.approx(moment / mass, abs=1e-8)


@pytest.mark.parametrize(("d", "full"), CASES)
def test_tweedie_is_a_full_gradient_step(d, full):
    mixture = random_mixture(d, full)
    y = torch.randn(7, d, generator=generator(5), dtype=F64)
    assert torch.allclose(mixture.denoise(y, 0.4), y - 0.4 * mixture.grad(y, 0.4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [0.0, 1e-6, 0.2])
def test_sixty_standard_deviations_out(t):
    mixture = figure1_mixture()
    far = 60 * math.sqrt(0.01 + t)
    y = torch.tensor([-0.8 - far, 0.75 + far], dtype=F64)
    # only the widest component (0.75, 0.01) is left on the right, and its formulas are elementary
    assert mixture.energy(y, t)[1].item() == pytest.approx(
        60**2 / 2 + 0.5 * math.log(2 * math.pi * (0.01 + t)) - math.log(0.25), rel=1e-6 if t < 0.1 else 0.05
    )
    for value in (mixture.energy(y, t), mixture.grad(y, t), mixture.hessian(y, t), mixture.denoise(y, t)):
        assert torch.isfinite(value).all()
    if t > 0:
        assert all(torch.isfinite(value).all() for value in mixture.dtau(y, t))


def test_far_out_the_hessian_is_that_of_the_widest_component():
    """Naive sum g a^2 - (sum g a)^2 has an error of about 1e-16 a^2 = 1e4 at this distance."""
    mixture = GaussianMixture([0.4, 0.6], [-0.5, 0.5], [1e-4, 1e-4])
    assert mixture.hessian([1e6], 0.0).item() == pytest.approx(1e4, rel=1e-12)


@pytest.mark.parametrize("full", [False, True])
def test_sample_has_the_moments_of_the_mixture(full):
    mixture, n, t = random_mixture(2, full, seed=8), 200_000, 0.3
    x = mixture.sample(n, generator(9), t=t)
    w, mu = mixture.weights, mixture.means
    mean = w @ mu
    parts = mixture.variances if full else mixture.variances[:, None, None] * torch.eye(2, dtype=F64)
    second = torch.einsum("k,kij->ij", w, parts + mu[:, :, None] * mu[:, None, :])
    cov = second - mean[:, None] * mean + t * torch.eye(2, dtype=F64)
    centred = x - mean
    # six standard errors, those estimated from the sample itself: fails by chance once in 10^8
    bound = 6 * x.std(0) / math.sqrt(n)
    assert ((x.mean(0) - mean).abs() < bound).all()
    products = centred[:, :, None] * centred[:, None, :]
    assert ((products.mean(0) - cov).abs() < 6 * products.std(0) / math.sqrt(n)).all()


def test_sample_follows_the_distribution_function_and_the_generator():
    mixture, n = figure1_mixture(), 100_000
    x = mixture.sample(n, generator(1))
    assert torch.equal(x, mixture.sample(n, generator(1)))
    assert not torch.equal(x, mixture.sample(n, generator(2)))
    grid = torch.linspace(-1, 1, 41, dtype=F64)
    s = mixture.variances.sqrt()
    cdf = (mixture.weights * torch.special.ndtr((grid[:, None] - mixture.means) / s)).sum(1)
    gap = ((x[:, None] <= grid).double().mean(0) - cdf).abs().max()
    assert gap < math.sqrt(math.log(2e8) / (2 * n))  # Dvoretzky-Kiefer-Wolfowitz at 1e-8


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.1, 0.9), (0.999, 0.001), (1e-9, 1 - 1e-9)])
@pytest.mark.parametrize(("a", "s2"), [(0.7, 0.04), (1.5, 0.0)])
def test_two_components_have_threshold_a2_minus_s2(weights, a, s2):
    mixture = GaussianMixture(weights, [-a, a], [s2, s2])
    exact = a**2 - s2
    assert mixture.convexity_threshold() == pytest.approx(exact, rel=1e-10)
    below, above = mixture.min_hessian(exact - 1e-4), mixture.min_hessian(exact + 1e-4)
    assert below[0] < 0 < above[0]
    # where g = 1/2 Popoviciu is an equality, so the minimum is 1/v - a^2/v^2; the weights only move the place
    assert below[0] == pytest.approx(1 / (a**2 - 1e-4) - a**2 / (a**2 - 1e-4) ** 2, rel=1e-6)
    place = (a**2 - 1e-4) * math.log(weights[0] / weights[1]) / (2 * a)
    assert below[1] == pytest.approx(place, abs=1e-4)


def test_two_points_at_distance_d_have_threshold_a_quarter_of_d_squared():
    for d in (1e-3, 1.0, 250.0):
        assert empirical([0.0, d]).convexity_threshold() == pytest.approx(d**2 / 4, rel=1e-10)


@pytest.mark.parametrize(
    "mixture",
    [
        GaussianMixture([1.0], [0.3], [0.1]),
        GaussianMixture([0.5, 0.5], [-0.1, 0.1], [0.04, 0.04]),  # a < s: convex from the start
        GaussianMixture([0.5, 0.5], [-0.2, 0.2], [0.04, 0.04]),  # a = s: the border
        GaussianMixture([0.3, 0.7], [0.2, 0.2], [0.1, 0.1]),  # twice the same component
        GaussianMixture([1.0, 0.0], [-1.0, 1.0], [0.1, 0.1]),  # a component of weight zero
        empirical([0.4]),
    ],
)
@pytest.mark.parametrize("domain", [None, (-1.0, 1.0)])
def test_always_convex_means_threshold_zero(mixture, domain):
    assert mixture.convexity_threshold(domain) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("domain", [None, (-1.0, 1.0)])
def test_threshold_against_brute_force(seed, domain):
    g = generator(seed)
    k = 2 + seed
    weights = torch.rand(k, generator=g, dtype=F64) ** 4 + 1e-6
    means = 2 * torch.rand(k, generator=g, dtype=F64) - 1
    variances = 10 ** (-4 * torch.rand(k, generator=g, dtype=F64) - 0.5)
    mixture = GaussianMixture(weights / weights.sum(), means, variances)
    threshold = mixture.convexity_threshold(domain)
    y = torch.linspace(*(domain or (-20.0, 20.0)), 100_001, dtype=F64)
    assert threshold > 0
    assert mixture.min_hessian(threshold * (1 - 1e-7), domain)[0] < 0  # below t*: a point that proves it
    for factor in (1 + 1e-7, 1.01, 1.1, 1.5, 3.0):  # above t*: no grid point contradicts
        assert mixture.hessian(y, threshold * factor).min() > 0
    low, high = mixture.min_hessian(0.5 * threshold, domain), mixture.hessian(y, 0.5 * threshold).min().item()
    assert low[0] <= high + 1e-12
    assert low[0] == pytest.approx(mixture.hessian([low[1]], 0.5 * threshold).item(), rel=1e-9)


def test_on_a_bounded_domain_convexity_can_come_go_and_return():
    """The transition, at y = v log(w_2/w_1)/(2 a), wanders through X as t grows: the largest root is wanted."""
    mixture, domain = GaussianMixture([0.982, 0.018], [-1.0, 1.0], [0.0, 0.0]), (0.9, 1.1)
    threshold = mixture.convexity_threshold(domain)
    y = torch.linspace(*domain, 2001, dtype=F64)
    times = [0.05, 0.2, threshold - 1e-6, threshold + 1e-6, 2.0]
    assert [mixture.hessian(y, t).min().item() > 0 for t in times] == [True, True, False, True, True]
    spell = torch.linspace(0.01, 4, 4000, dtype=F64)
    worst = torch.stack([mixture.hessian(y, t).min() for t in spell.tolist()])
    assert threshold == pytest.approx(spell[worst < 0].max().item(), abs=2e-3)


def test_weights_far_from_balance_move_the_threshold_outside_the_means():
    """Equal means, unequal variances: non-convex far outside X while convex on X, at the same t."""
    mixture = GaussianMixture([0.999, 0.001], [0.0, 0.0], [0.01, 1.0])
    inside, line = mixture.convexity_threshold((-0.2, 0.2)), mixture.convexity_threshold()
    assert inside < line
    value, place = mixture.min_hessian(0.5 * (inside + line))
    assert value < 0
    assert abs(place) > 0.2


def test_figure1_mixture_is_what_the_notebooks_say():
    mixture = figure1_mixture()
    assert mixture.convexity_threshold((-1, 1)) == pytest.approx(0.17637, abs=1e-5)
    assert mixture.theorem_bound((-1, 1)) == pytest.approx(4 - 0.0016, abs=1e-12)
    y = torch.linspace(-1, 1, 20_001, dtype=F64)
    e = mixture.energy(y, 0.0)
    minima = y[1:-1][(e[1:-1] < e[:-2]) & (e[1:-1] < e[2:])]
    assert len(minima) == 5
    assert y[e.argmin()].item() == pytest.approx(0.35, abs=1e-3)


@pytest.mark.parametrize(("d", "full"), CASES)
def test_theorem_bound_suffices(d, full):
    mixture = random_mixture(d, full, seed=3)
    t = mixture.theorem_bound()
    smallest = (mixture.variances if not full else torch.linalg.eigvalsh(mixture.variances)).min()
    diameter = (mixture.means[:, None] - mixture.means).norm(dim=-1).max()
    assert t == pytest.approx(max((diameter**2 - smallest).item(), 0.0), rel=1e-12)
    mix = torch.rand(200, 4, generator=generator(1), dtype=F64)
    y = (mix / mix.sum(1, keepdim=True)) @ mixture.means  # points of the convex hull
    assert torch.linalg.eigvalsh(mixture.hessian(y, t)).min() >= 0


def test_popoviciu_bound_is_global_and_tight_for_two_points():
    points = torch.randn(6, 3, generator=generator(2), dtype=F64)
    mixture = GaussianMixture(torch.full((6,), 1 / 6), points, torch.full((6,), 0.04))
    t = mixture.popoviciu_bound()
    assert t < mixture.theorem_bound()
    y = 6 * torch.randn(2000, 3, generator=generator(3), dtype=F64)
    assert torch.linalg.eigvalsh(mixture.hessian(y, t)).min() >= -1e-12
    two = GaussianMixture([0.3, 0.7], [[0.0, 0.0], [3.0, 4.0]], [0.5, 0.5])
    assert two.popoviciu_bound() == pytest.approx(25 / 4 - 0.5)
    line = torch.linspace(-2, 3, 5001, dtype=F64)[:, None] * torch.tensor([3.0, 4.0], dtype=F64)
    below = torch.linalg.eigvalsh(two.hessian(line, two.popoviciu_bound() - 1e-3)).min()
    assert below < 0


def test_variance_preserving_is_a_rescaled_mixture():
    mixture = figure1_mixture()
    y = torch.linspace(-2, 2, 41, dtype=F64)
    for a in (0.2, 0.7, 1.0):
        vp = mixture.variance_preserving(a).energy(math.sqrt(a) * y, 0.0)
        assert torch.allclose(vp, mixture.energy(y, (1 - a) / a) + 0.5 * math.log(a), atol=1e-12)
    matrix = random_mixture(2, full=True)
    x = torch.randn(5, 2, generator=generator(6), dtype=F64)
    vp = matrix.variance_preserving(0.5).energy(math.sqrt(0.5) * x, 0.0)
    assert torch.allclose(vp, matrix.energy(x, 1.0) + math.log(0.5), atol=1e-12)


def test_weights_are_normalised_unless_they_are_so_to_rounding():
    """Off the simplex by more than 1e-6 is an error, by more than 1e-12 rounding, by less left as written."""
    for off, kept in ((5e-13, True), (1.5e-12, False), (9e-7, False)):
        weights = [0.5, 0.5 + off]
        mixture = GaussianMixture(weights, [0.0, 1.0], [1.0, 1.0])
        assert (mixture.weights.tolist() == weights) is kept
        assert kept or mixture.weights.sum().item() == pytest.approx(1, abs=1e-15)
    with pytest.raises(ValueError, match="simplex"):
        GaussianMixture([0.5, 0.5 + 1.5e-6], [0.0, 1.0], [1.0, 1.0])


def test_components_of_weight_zero_never_matter():
    kept = GaussianMixture([0.4, 0.6], [0.0, 1.0], [0.2, 0.3])
    with_zero = GaussianMixture([0.4, 0.0, 0.6], [0.0, 9.0, 1.0], [0.2, 0.0, 0.3])  # it would be a point mass
    y = torch.linspace(-3, 3, 7, dtype=F64)
    for name in ("energy", "grad", "hessian", "denoise"):
        assert torch.equal(getattr(kept, name)(y, 0.0), getattr(with_zero, name)(y, 0.0))
    assert with_zero.theorem_bound() == kept.theorem_bound()


def test_covariances_may_be_off_symmetry_and_near_singular_up_to_rounding():
    def of(second):
        return GaussianMixture([0.5, 0.5], torch.zeros(2, 2), [[[2.0, 0.0], [0.0, 2.0]], second])

    of([[1.0, 0.9e-10], [0.0, 1.0]])
    of([[1.0, 0.0], [0.0, 1.5e-13]])
    with pytest.raises(ValueError, match="symmetric, matrix 1"):
        of([[1.0, 1.5e-10], [0.0, 1.0]])
    with pytest.raises(ValueError, match="positive definite, matrix 1"):
        of([[1.0, 0.0], [0.0, 0.9e-13]])


def test_the_bounds_of_theory_at_their_borders():
    at_the_ends = GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.04, 0.05])
    assert at_the_ends.theorem_bound((-1, 1)) == at_the_ends.theorem_bound() == 4 - 0.04
    wide = GaussianMixture([0.5, 0.5], [-0.1, 0.1], [1.0, 1.0])
    assert wide.theorem_bound() == wide.popoviciu_bound() == 0
    plane = GaussianMixture([1.0], [[0.5, 0.5]], [0.1])
    assert plane.theorem_bound([[0.0, 0.0], [3.0, 4.0]]) == pytest.approx(25 - 0.1)
    for box in ([[0.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, -1.0]]):
        with pytest.raises(ValueError, match="in all 2 directions"):
            plane.theorem_bound(box)


def test_the_smallest_samples_and_orders():
    mixture = figure1_mixture()
    assert mixture.sample(1, generator()).shape == (1,)
    with pytest.raises(ValueError, match="n must be"):
        mixture.sample(True, generator())
    (first,) = mixture.dtau([0.3], 0.2, order=1)
    assert torch.equal(first, mixture.dtau([0.3], 0.2)[0])
    with pytest.raises(ValueError, match="order must be 1 or 2"):
        mixture.dtau([0.3], 0.2, order=3)
    assert repr(mixture) == "GaussianMixture(K=5, d=1)"


def test_the_input_is_not_changed():
    weights, means, variances = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.1])
    mixture = GaussianMixture(weights, means, variances)
    means += 5
    assert mixture.means.tolist() == [0.0, 1.0]


ONE = ([1.0], [0.0], [1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.6], [0.0, 1.0], [1.0, 1.0]), "weights must lie on the simplex"),
        (([-0.5, 1.5], [0.0, 1.0], [1.0, 1.0]), "weights must lie on the simplex"),
        (([0.5, math.nan], [0.0, 1.0], [1.0, 1.0]), "weights must be finite"),
        (([], [], []), "weights must have shape"),
        (([0.5, 0.5], [0.0, 1.0, 2.0], [1.0, 1.0]), "means must have shape"),
        (([0.5, 0.5], [0.0, math.inf], [1.0, 1.0]), "means must be finite"),
        (([1.0], ["a"], [1.0]), "means must be numbers"),
        (([0.5, 0.5], [0.0, 1.0], [1.0]), "variances must have shape"),
        (([0.5, 0.5], [0.0, 1.0], [1.0, -1.0]), "variances must be >= 0"),
        (([0.5, 0.5], [0.0, 1.0], [1.0, math.nan]), "variances must be finite"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [0.0, 1.0]]]), "symmetric, matrix 0"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "positive definite"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 1.0], [1.0, 1.0]]]), "positive definite"),
        (([1.0], [0.0], [[[1.0]]]), "variances must have shape"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


@pytest.mark.parametrize("name", ["energy", "grad", "hessian", "denoise", "dtau"])
@pytest.mark.parametrize(
    ("y", "t", "message"),
    [
        (torch.zeros(2, 1), 0.1, "y must have shape"),
        (torch.tensor([math.nan]), 0.1, "y must be finite"),
        (torch.zeros(3), -0.1, "t is a noise variance"),
        (torch.zeros(3), torch.ones(2), "t must be a number"),
    ],
)
def test_bad_points_and_times(name, y, t, message):
    with pytest.raises(ValueError, match=message):
        getattr(GaussianMixture(*ONE), name)(y, t)


def test_bad_points_in_space():
    with pytest.raises(ValueError, match=r"\(B, 2\)"):
        random_mixture(2, full=True).energy(torch.zeros(3), 0.1)


def test_time_zero():
    with pytest.raises(ValueError, match="point mass"):
        empirical([0.0, 1.0]).energy([0.5], 0.0)
    with pytest.raises(ValueError, match="t > 0"):
        GaussianMixture(*ONE).dtau([0.5], 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample(0, generator()), "n must be"),
        (lambda m: m.sample(2.5, generator()), "n must be"),
        (lambda m: m.sample(3, 42), "Generator"),
        (lambda m: m.sample(3, generator(), t=-1.0), "noise variance"),
        (lambda m: m.theorem_bound((1, -1)), "lo < hi"),
        (lambda m: m.theorem_bound((0.5, 1)), "every mean"),
        (lambda m: m.theorem_bound(3), "pair"),
        (lambda m: m.convexity_threshold((1, -1)), "lo < hi"),
        (lambda m: m.convexity_threshold((0, math.inf)), "finite"),
        (lambda m: m.convexity_threshold("ab"), "pair"),
        (lambda m: m.min_hessian(-1.0), "noise variance"),
        (lambda m: m.min_hessian(0.1, (1, 1)), "lo < hi"),
        (lambda m: m.variance_preserving(0.0), r"\(0, 1\]"),
        (lambda m: m.variance_preserving(1.5), r"\(0, 1\]"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call(GaussianMixture(*ONE))


def test_thresholds_are_for_the_line():
    with pytest.raises(ValueError, match="on the line"):
        random_mixture(2, full=False).convexity_threshold()
    with pytest.raises(ValueError, match="on the line"):
        random_mixture(2, full=False).min_hessian(0.1)


@pytest.mark.parametrize("full", [False, True])
def test_popoviciu_needs_equal_isotropic_covariances(full):
    with pytest.raises(ValueError, match="equal isotropic"):
        random_mixture(2, full).popoviciu_bound()


@pytest.mark.parametrize("points", [[], [[[1.0]]], [0.0, math.nan]])
def test_bad_empirical(points):
    with pytest.raises(ValueError, match="points"):
        empirical(points)


# --- where thresholds are looked for ------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", [(-1.0, 1.0), (-0.3, 0.1), (2.0, 3.0), None])
def test_the_search_leaves_no_gap_and_stays_inside(domain):
    """Steps of at most a thousandth of the domain, on the line of the means and four standard deviations beyond."""
    mixture, t = figure1_mixture(), 0.01
    parts = (mixture.weights.log().numpy(), mixture.means.numpy(), mixture.variances.numpy() + t)
    y = threshold._candidates(parts, *(domain or (-math.inf, math.inf)))
    low, high = domain or (-0.8 - 4 * math.sqrt(0.02), 0.75 + 4 * math.sqrt(0.02))
    inner = y[(y >= low - 1e-12) & (y <= high + 1e-12)]
    assert abs(inner[0] - low) < 1e-9
    assert abs(inner[-1] - high) < 1e-9
    assert np.diff(inner).max() <= (high - low) / 1000 * 1.001
    if domain:
        assert len(inner) == len(y)
    else:
        assert y[0] < -2  # crossings of the widest component with the others lie outside


def test_narrow_components_are_resolved():
    """Steps of at most a quarter of a standard deviation within five of each mean."""
    mu, v = np.array([-0.5, 0.4]), np.array([1e-8, 1e-6])
    y = threshold._candidates((np.log([0.5, 0.5]), mu, v), -1.0, 1.0)
    for m, s in zip(mu, np.sqrt(v), strict=True):
        near = y[abs(y - m) < 5.3 * s]
        assert near[0] < m - 5 * s
        assert near[-1] > m + 5 * s
        assert np.diff(near).max() < 0.2501 * s


@pytest.mark.parametrize("seed", range(5))
def test_crossings_are_where_two_leading_components_balance(seed):
    """Against numpy.roots of the difference of two log-terms, and the width against its slope there."""
    g, t = generator(seed), 0.02
    weights = torch.rand(3, generator=g, dtype=F64) + 1e-3
    mixture = GaussianMixture(
        weights / weights.sum(), torch.randn(3, generator=g, dtype=F64), torch.rand(3, generator=g, dtype=F64)
    )
    log_w, mu, v = (mixture.weights.log().numpy(), mixture.means.numpy(), mixture.variances.numpy() + t)
    y, width = threshold._crossings((log_w, mu, v))

    def terms(x):
        return log_w - 0.5 * ((x - mu) ** 2 / v + np.log(v))

    expected = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        square, linear = 0.5 / v[j] - 0.5 / v[i], mu[i] / v[i] - mu[j] / v[j]
        constant = terms(0)[i] - terms(0)[j]
        for root in np.roots([square, linear, constant]):
            if abs(root.imag) < 1e-12 and terms(root.real)[i] > terms(root.real).max() - 12:
                expected.append(
                    (root.real, 1 / max(abs(2 * square * root.real + linear), math.sqrt(abs(square))))
                )
        vertex = -linear / (2 * square)  # where the two come closest, or differ the most
        if min(terms(vertex)[[i, j]]) > terms(vertex).max() - 12:
            expected.append((vertex, 1 / math.sqrt(abs(square))))
    for root, wide in expected:
        k = np.abs(y - root).argmin()
        assert y[k] == pytest.approx(root, rel=1e-9, abs=1e-9)
        assert width[k] == pytest.approx(wide, rel=1e-9)
    assert expected
    seconds = [np.sort(terms(x))[-2] - terms(x).max() for x in y]
    assert min(seconds) > -12
