"""The toy energy and its losses: against the spline module and the identities of section 3.2."""

import math

import numpy as np
import pytest
import torch

from gnclib.gmm import GaussianMixture, figure1_mixture
from gnclib.score import losses as sm
from gnclib.score import toy
from gnclib.spline import SplineGrid
from gnclib.spline import splines as spline
from tests.draws import generator

LOW, HIGH = math.log(0.1), 0.0
MIXTURE = figure1_mixture()
BASIS = toy.SplineBasis(SplineGrid(44, -3.0, 3.0), SplineGrid(9, LOW, HIGH))
UNIFORM, SINE = toy.UniformTau(LOW, HIGH), toy.SineTau(LOW, HIGH)


def energy(seed=0, basis=BASIS):
    shape = (basis.y.count, basis.tau.count)
    return toy.SplineEnergy(basis, torch.randn(shape, generator=generator(seed), dtype=torch.float64))


def points(count=500, seed=1):
    y = 8 * torch.rand(count, generator=generator(seed), dtype=torch.float64) - 4  # also outside of the grid
    tau = LOW + (HIGH - LOW) * torch.rand(count, generator=generator(seed + 1), dtype=torch.float64)
    return y, tau


@pytest.fixture(scope="module")
def exact():
    return toy.quadrature(MIXTURE, BASIS, UNIFORM)


@pytest.fixture(scope="module")
def ends():
    return [toy.quadrature(MIXTURE, BASIS, UNIFORM, at=tau) for tau in (HIGH, LOW)]


@pytest.fixture(scope="module")
def drawn():
    return toy.sample(MIXTURE, 20_000, UNIFORM, generator(3))


# --- the energy ---------------------------------------------------------------------------------------------------


def test_energy_against_the_spline_module():
    """Two implementations: local features here, contracted polynomials there, inside and outside of the grid."""
    r, (y, tau) = energy(), points()
    t = (2 * tau).exp()
    coefficients = spline.contract(r.weights, tau, BASIS.tau)  # (B, N_y)
    value, slope, curvature = spline.evaluate(y, coefficients, BASIS.y, (0, 1, 2))
    for ours, theirs in [(r.energy(y, t), value), (r.grad(y, t), slope), (r.hessian(y, t), curvature)]:
        assert (ours - theirs).abs().max() < 1e-9 * theirs.abs().max()
    for order, ours in zip((1, 2), r.dtau(y, t), strict=True):
        theirs = spline.evaluate(y, spline.contract(r.weights, tau, BASIS.tau, order), BASIS.y)[0]
        assert (ours - theirs).abs().max() < 1e-9 * theirs.abs().max()


def test_energy_contract_with_scalar_time():
    r, (y, _) = energy(), points(7)
    assert torch.equal(r.energy(y, 0.3), r.energy(y, torch.full((7,), 0.3, dtype=torch.float64)))


# --- priors of tau and points -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [UNIFORM, SINE])
def test_prior_of_tau(prior):
    tau = torch.linspace(LOW, HIGH, 100_001, dtype=torch.float64)
    assert abs(torch.trapezoid(prior.density(tau), tau) - 1) < 1e-8
    inner, e = tau[1000:-1000], 1e-6
    numeric = (prior.density(inner + e).log() - prior.density(inner - e).log()) / (2 * e)
    assert (numeric - prior.slope(inner)).abs().max() < 1e-5 * max(1.0, float(prior.slope(inner).abs().max()))
    n = 20_000
    drawn = prior.draw(n, generator(4)).sort().values
    assert drawn[0] >= LOW
    assert drawn[-1] <= HIGH
    cumulated = torch.cumulative_trapezoid(prior.density(tau), tau)
    cdf = cumulated[torch.searchsorted(tau[1:], drawn).clamp(max=len(cumulated) - 1)]
    assert (cdf - (torch.arange(n) + 0.5) / n).abs().max() < 2.7 / math.sqrt(
        n
    )  # Kolmogorov-Smirnov, level 1e-6


@pytest.mark.parametrize("prior", [UNIFORM, SINE])
def test_quadrature_moments(prior):
    """Mass, mean and variance of y = x + e^tau z; E t from a fine sum over tau."""
    p = toy.quadrature(MIXTURE, BASIS, prior)
    w, mu, var = MIXTURE.weights, MIXTURE.means, MIXTURE.variances
    tau = torch.linspace(LOW, HIGH, 200_001, dtype=torch.float64)
    mean_t = torch.trapezoid(prior.density(tau) * (2 * tau).exp(), tau)
    assert abs(p.mean(torch.ones_like(p.y)) - 1) < 1e-10
    assert abs(p.mean(p.y) - (w * mu).sum()) < 1e-10
    assert abs(p.mean(p.y**2) - (w * (var + mu**2)).sum() - mean_t) < 1e-8


def test_quadrature_reaches_as_far_as_the_broadest_component():
    mixture = GaussianMixture([0.5, 0.5], [0.0, 0.0], [1e-4, 4.0])
    found = toy.quadrature(mixture, BASIS, UNIFORM, at=LOW)
    assert found.weight.sum().item() == pytest.approx(1, abs=1e-9)
    assert found.mean(found.y**2).item() == pytest.approx(0.5 * (1e-4 + 4.0) + math.exp(2 * LOW), rel=1e-9)


@pytest.mark.parametrize("side", [-1, 1])
def test_quadrature_reaches_a_component_far_to_one_side(side):
    found = toy.quadrature(
        GaussianMixture([0.5, 0.5], [0.0, 30.0 * side], [0.1, 0.1]), BASIS, UNIFORM, at=LOW
    )
    assert found.weight.sum().item() == pytest.approx(1, abs=1e-9)
    assert found.mean(found.y).item() == pytest.approx(15 * side, rel=1e-9)


def test_samples_follow_the_same_law(exact, drawn):
    """Monte Carlo means of a few functions against quadrature, six standard errors."""
    for g in (lambda p: p.y, lambda p: p.y**2, lambda p: (3 * p.y).cos() * p.tau, lambda p: p.tau**2):
        values = g(drawn)
        error = values.std() / math.sqrt(len(values))
        assert abs(drawn.mean(values) - exact.mean(g(exact))) < 6 * error
    fixed = toy.sample(MIXTURE, 100, SINE, generator(), at=LOW)
    assert torch.equal(fixed.tau, torch.full_like(fixed.y, LOW))


def test_mean_tau_derivative_of_the_true_energy_vanishes():
    """E[d_tau F | tau] = 0, since the density integrates to one at each tau."""
    for tau in torch.linspace(LOW, HIGH, 7, dtype=torch.float64).tolist():
        p = toy.quadrature(MIXTURE, BASIS, UNIFORM, at=tau)
        first, _ = MIXTURE.dtau(p.y, p.t)
        assert abs(p.mean(first)) < 1e-8 * p.mean(first.abs())


# --- the losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_forms_are_the_means_of_the_training_terms(drawn, seed):
    """The quadratic forms and gnclib.score.losses give the same number on the same samples."""
    r, lam = energy(seed), 0.3
    grad, (first, second) = r.grad(drawn.y, drawn.t), r.dtau(drawn.y, drawn.t)
    true_first, _ = MIXTURE.dtau(drawn.y, drawn.t)
    high, low = (toy.sample(MIXTURE, 500, UNIFORM, generator(k), at=tau) for k, tau in [(7, HIGH), (8, LOW)])
    ends = [r.dtau(p.y, p.t)[0] for p in (high, low)]
    pairs = [
        (toy.image_denoising(BASIS, drawn), sm.image_term(grad, drawn.z, drawn.t).mean()),
        (toy.tau_implicit(BASIS, drawn), sm.implicit_term(first, second).mean()),
        (toy.tau_denoising(BASIS, drawn), sm.denoising_term(first, drawn.z).mean()),
        (toy.tau_explicit(BASIS, drawn, MIXTURE), sm.explicit_term(first, -true_first).mean()),
        (toy.boundary(BASIS, high, low, UNIFORM), sm.boundary_term(*ends, LOW, HIGH)),
    ]
    for form, mean in pairs:
        assert abs(form(r) - mean) < 1e-9 * abs(mean)
    total = pairs[0][0] + lam * pairs[1][0]
    assert abs(total(r) - pairs[0][1] - lam * pairs[1][1]) < 1e-9 * abs(total(r))


def test_integration_by_parts_needs_the_boundary_term(exact, ends):
    """implicit + boundary - explicit = -1/2 E (d_tau F)^2 for every R; without the boundary term it is not constant."""
    explicit, implicit = toy.tau_explicit(BASIS, exact, MIXTURE), toy.tau_implicit(BASIS, exact)
    boundary = toy.boundary(BASIS, *ends, UNIFORM)
    constant = -0.5 * exact.mean(MIXTURE.dtau(exact.y, exact.t)[0] ** 2).item()
    gaps = []
    for seed in range(5):
        r = energy(seed)
        assert abs((implicit + boundary)(r) - explicit(r) - constant) < 1e-8 * explicit(r)
        gaps.append(implicit(r) - explicit(r) - constant)
        assert abs(gaps[-1] + boundary(r)) < 1e-8 * explicit(r)
    assert max(gaps) - min(gaps) > 0.1  # not a matter of rounding


def test_vanishing_prior_needs_none():
    exact = toy.quadrature(MIXTURE, BASIS, SINE)
    explicit = toy.tau_explicit(BASIS, exact, MIXTURE)
    implicit = toy.tau_implicit(BASIS, exact, SINE)
    constant = -0.5 * exact.mean(MIXTURE.dtau(exact.y, exact.t)[0] ** 2).item()
    for seed in range(5):
        r = energy(seed)
        assert abs(implicit(r) - explicit(r) - constant) < 1e-6 * explicit(r)


def test_denoising_and_explicit_forms_agree_in_expectation():
    """Same matrix on the same points; vectors agree along random directions within six standard errors."""
    p = toy.sample(MIXTURE, 20_000, UNIFORM, generator(5))
    pairs = [
        (
            toy.image_explicit(BASIS, p, MIXTURE),
            toy.image_denoising(BASIS, p),
            lambda r: p.t.sqrt() * r.grad(p.y, p.t) * (p.t.sqrt() * MIXTURE.grad(p.y, p.t) - p.z),
        ),
        (
            toy.tau_explicit(BASIS, p, MIXTURE),
            toy.tau_denoising(BASIS, p),
            lambda r: r.dtau(p.y, p.t)[0] * (MIXTURE.dtau(p.y, p.t)[0] - 1 + p.z**2),
        ),
    ]
    for explicit, denoising, difference in pairs:
        assert abs(explicit.matrix - denoising.matrix).max() < 1e-12
        for seed in range(8):
            r = energy(seed)
            error = difference(r).std() / math.sqrt(len(p.y))
            gap = (explicit.vector - denoising.vector) @ r.weights.reshape(-1).numpy()
            assert abs(gap - difference(r).mean()) < 1e-9 + 1e-9 * abs(gap)
            assert abs(gap) < 6 * error


def test_explicit_score_matching_recovers_an_energy_of_the_span(exact):
    """Where the truth is itself a toy energy, the minimiser is the truth up to a constant."""
    truth = energy(11)
    loss = toy.image_explicit(BASIS, exact, truth) + 0.5 * toy.tau_explicit(BASIS, exact, truth)
    found = loss.minimise(BASIS, ridge=1e-13)
    difference = found.energy(exact.y, exact.t) - truth.energy(exact.y, exact.t)
    spread = exact.mean((difference - exact.mean(difference)) ** 2).sqrt()
    assert spread < 1e-4 * exact.mean(truth.energy(exact.y, exact.t) ** 2).sqrt()


def test_minimiser_minimises(exact):
    loss = toy.image_explicit(BASIS, exact, MIXTURE) + toy.tau_explicit(BASIS, exact, MIXTURE)
    ridge = 1e-6
    best = loss.minimise(BASIS, ridge)
    weight = ridge * loss.matrix.diagonal().mean()

    def penalised(w):
        return loss(toy.SplineEnergy(BASIS, w)) + 0.5 * weight * float((w**2).sum())

    for seed in range(6):
        step = 1e-2 * energy(seed).weights
        assert penalised(best.weights) < min(penalised(best.weights + step), penalised(best.weights - step))


def test_without_smoothing_part_any_function_of_tau_is_free(exact):
    """lambda = 0: adding c(tau) changes nothing in the image part (and everything in the smoothing part)."""
    image = toy.image_explicit(BASIS, exact, MIXTURE)
    smoothing = toy.tau_explicit(BASIS, exact, MIXTURE)
    r = energy(2)
    constant = torch.randn(BASIS.tau.count, generator=generator(9), dtype=torch.float64)
    shifted = toy.SplineEnergy(BASIS, r.weights + 10 * constant)
    assert abs(image(shifted) - image(r)) < 1e-8 * image(r)
    assert abs(smoothing(shifted) - smoothing(r)) > 0.1 * smoothing(r)


def relative_tau_error(r, exact):
    first, _ = MIXTURE.dtau(exact.y, exact.t)
    return (exact.mean((r.dtau(exact.y, exact.t)[0] - first) ** 2) / exact.mean(first**2)).sqrt().item()


def test_restored_loss_has_a_boundary_artefact_and_the_remedies_have_none(exact, ends):
    image = toy.image_explicit(BASIS, exact, MIXTURE)
    explicit = image + 0.1 * toy.tau_explicit(BASIS, exact, MIXTURE)
    restored = image + 0.1 * toy.tau_implicit(BASIS, exact)
    corrected = restored + 0.1 * toy.boundary(BASIS, *ends, UNIFORM)
    reference = explicit.minimise(BASIS)
    found = corrected.minimise(BASIS)
    for at in (toy.SplineEnergy.grad, lambda r, y, t: r.dtau(y, t)[0]):
        one, two = at(found, exact.y, exact.t), at(reference, exact.y, exact.t)
        assert exact.mean((one - two) ** 2) < 1e-10 * exact.mean(two**2)
    assert relative_tau_error(reference, exact) < 0.1
    assert relative_tau_error(restored.minimise(BASIS), exact) > 2
    high, low = ends
    slopes = [p.mean(restored.minimise(BASIS).dtau(p.y, p.t)[0]) for p in (high, low)]
    assert slopes[0] > 1
    assert slopes[1] < -1


# --- bad input ----------------------------------------------------------------------------------------------------


def test_bad_points():
    y, tau = points(5)
    with pytest.raises(ValueError, match="both be"):
        BASIS.features(y, tau[:4])
    with pytest.raises(ValueError, match="tau must lie"):
        BASIS.features(y, tau + 3)
    for end, outwards in ((LOW, -1), (HIGH, 1)):
        at = torch.full_like(y, end)
        rounded = BASIS.features(y, at + outwards * 0.9e-6)
        assert abs(rounded - BASIS.features(y, at)).max() == 0
        with pytest.raises(ValueError, match="tau must lie"):
            BASIS.features(y, at + outwards * 1.1e-6)
    with pytest.raises(ValueError, match="order"):
        BASIS.features(y, tau, (3, 0))


@pytest.mark.parametrize("t", [0.0, 2.0, 1e-6, -1.0, math.nan])
def test_bad_time(t):
    with pytest.raises(ValueError, match=r"t must be finite|tau must lie|variance"):
        energy().energy(torch.zeros(3, dtype=torch.float64), t)


def test_bad_weights():
    with pytest.raises(ValueError, match="shape"):
        toy.SplineEnergy(BASIS, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="finite"):
        toy.SplineEnergy(BASIS, torch.full((BASIS.y.count, BASIS.tau.count), math.nan))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1.0, -1.0), (-math.inf, 0.0), (math.nan, 0.0)])
def test_bad_prior(low, high):
    for kind in (toy.UniformTau, toy.SineTau):
        with pytest.raises(ValueError, match="range of tau"):
            kind(low, high)


def test_bad_mixtures_and_ranges():
    plane = GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    with pytest.raises(ValueError, match="line"):
        toy.quadrature(plane, BASIS, UNIFORM)
    with pytest.raises(ValueError, match="line"):
        toy.sample(plane, 5, UNIFORM, generator())
    for prior, at in (
        (toy.UniformTau(LOW - 1, HIGH), None),
        (toy.UniformTau(LOW, HIGH + 1), None),
        (UNIFORM, HIGH + 1),
    ):
        with pytest.raises(ValueError, match="tau must lie"):
            toy.tau_implicit(BASIS, toy.quadrature(MIXTURE, BASIS, prior, at))


def test_denoising_needs_noise(exact):
    for loss in (toy.image_denoising, toy.tau_denoising):
        with pytest.raises(ValueError, match=r"sample\(\)"):
            loss(BASIS, exact)


def test_bad_minimisation(exact):
    loss = toy.tau_implicit(BASIS, exact)
    with pytest.raises(ValueError, match="ridge"):
        loss.minimise(BASIS, ridge=0.0)
    with pytest.raises(ValueError, match="weights"):
        loss.minimise(toy.SplineBasis(BASIS.y, SplineGrid(10, LOW, HIGH)))


def test_noise_beside_y_has_the_right_moments():
    """E z^k and E y z^k over the joint law of y = x + e^tau z, in closed form; and E[z | y] is Tweedie's formula."""
    basis = toy.SplineBasis(SplineGrid(84, -4.0, 4.0), SplineGrid(7, -2.0, 0.0))
    prior, mixture = toy.UniformTau(-2.0, 0.0), figure1_mixture()
    points = toy.quadrature(mixture, basis, prior)
    noisy = toy.with_noise(mixture, points)
    for power, moment in ((0, 1.0), (1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert noisy.mean(noisy.z**power).item() == pytest.approx(moment, abs=1e-9)
    assert noisy.mean(noisy.y * noisy.z).item() == pytest.approx(
        points.mean(points.t.sqrt()).item(), rel=1e-9
    )
    per_point = (noisy.weight * noisy.z).reshape(len(points.y), -1).sum(1) / points.weight
    torch.testing.assert_close(
        per_point, points.t.sqrt() * mixture.grad(points.y, points.t), rtol=1e-9, atol=1e-9
    )


# --- why the image part has the weight t -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single(exact):
    """At the points of `exact`: features d_y phi, and the mean square of the target z / sqrt(t) and of its noise."""
    noisy = toy.with_noise(MIXTURE, exact)
    target = noisy.z / noisy.t.sqrt()
    parts = target, target - MIXTURE.grad(noisy.y, noisy.t)
    given = [(noisy.weight * p**2).reshape(len(exact.y), -1).sum(1) / exact.weight for p in parts]
    return BASIS.features(exact.y, exact.tau, (1, 0)), *given


def test_the_weight_t_gives_the_best_fit_from_samples(exact, single):
    """The error A^-1 C A^-1 of the weights fitted with t^p is smallest for p = 1, and only little larger for p = 0."""
    phi, _, residual = single

    def form(weight):
        return (phi.multiply((exact.weight * weight).numpy()[:, None]).T @ phi).toarray()

    found = {}
    for p in (0.0, 0.5, 1.0, 1.5, 2.0):
        a = form(exact.t**p)
        a[np.diag_indices_from(a)] += 1e-10 * a.diagonal().mean()  # constants remain free
        inverse = np.linalg.inv(a)
        found[p] = np.sum(form(exact.t) * (inverse @ form(exact.t ** (2 * p) * residual) @ inverse))
    assert min(found, key=found.get) == 1.0
    assert found[0.0] < 1.2 * found[1.0]


@pytest.mark.parametrize(("p", "model"), [(0.5, 0), (1.0, -1)], ids=["spline in y", "spline in y / sigma"])
def test_the_weight_that_balances_a_stochastic_gradient(exact, single, p, model):
    """A fifth of the noise levels makes a fifth of it: with t for a model in y / sigma, with sqrt(t) for one in y."""
    phi, target, _ = single
    variance = exact.t ** (2 * p + model) * target * torch.from_numpy(phi.multiply(phi).sum(1))
    fifth = (HIGH - LOW) / 5
    for part in (exact.tau < LOW + fifth, exact.tau > HIGH - fifth):
        share = exact.mean(part * variance) / exact.mean(variance)
        assert share.item() == pytest.approx(0.2, abs=0.02)
