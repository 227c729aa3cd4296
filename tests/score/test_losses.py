"""The per-sample terms against closed forms: a Gaussian in several dimensions, whose joint score is known.

(On the line, tests/test_toy.py compares their means with exact quadrature.)
"""

import math

import pytest
import torch

from gnclib.score import losses as sm

D, VARIANCE = 6, 0.04  # X ~ N(0, VARIANCE I) in D dimensions
TAU_MIN, TAU_MAX = math.log(0.05), math.log(1.0)


def sample(count, seed=0, tau=None):
    g = torch.Generator().manual_seed(seed)
    x = math.sqrt(VARIANCE) * torch.randn(count, D, generator=g, dtype=torch.float64)
    z = torch.randn(count, D, generator=g, dtype=torch.float64)
    if tau is None:
        tau = TAU_MIN + (TAU_MAX - TAU_MIN) * torch.rand(count, generator=g, dtype=torch.float64)
    return x + tau.exp()[:, None] * z, z, tau


def true_derivatives(y, tau):
    """grad, d_tau and d_tautau of F = ||y||^2 / (2 s) + D/2 log s with s = VARIANCE + e^(2 tau)."""
    t = (2 * tau).exp()
    s = VARIANCE + t
    square = y.square().sum(1)
    first = -square * t / s**2 + D * t / s
    second = -square * (2 * t / s**2 - 4 * t**2 / s**3) + D * (2 * t / s - 2 * t**2 / s**2)
    return y / s[:, None], first, second


def mean_and_error(values):
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def test_closed_form_derivatives_are_right():
    y, _, tau = sample(5)
    tau = tau.clone().requires_grad_()
    s = VARIANCE + (2 * tau).exp()
    energy = y.square().sum(1) / (2 * s) + D / 2 * s.log()
    (first,) = torch.autograd.grad(energy.sum(), tau, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), tau)
    _, expected_first, expected_second = true_derivatives(y, tau.detach())
    torch.testing.assert_close(first.detach(), expected_first)
    torch.testing.assert_close(second, expected_second)


def test_image_term_is_smallest_at_the_true_score():
    """E of the term at c grad F is a parabola in c with its vertex at 1: the derivative there vanishes (5 sigma)."""
    y, z, tau = sample(100_000)
    grad, *_ = true_derivatives(y, tau)
    t = (2 * tau).exp()
    slope = (t.sqrt()[:, None] * grad * (t.sqrt()[:, None] * grad - z)).sum(1)  # d/dc at c = 1
    mean, error = mean_and_error(slope)
    assert abs(mean) < 5 * error < 0.2
    at = [sm.image_term(c * grad, z, t).mean().item() for c in (0.9, 1.0, 1.1)]
    assert at[1] < min(at[0], at[2])
    by_hand = 0.5 * sum((t[0].sqrt() * grad[0, k] - z[0, k]) ** 2 for k in range(D))
    torch.testing.assert_close(sm.image_term(grad, z, t)[0], by_hand)


@pytest.mark.parametrize("term", ["corrected", "denoising"])
def test_smoothing_terms_are_smallest_at_the_true_derivative(term):
    y, z, tau = sample(100_000, seed=1)
    _, first, second = true_derivatives(y, tau)
    n = len(y)
    if term == "denoising":
        slope = first * (first + z.square().sum(1) - D)
        mean, error = mean_and_error(slope)
    else:
        ends = []
        for k, end in enumerate((TAU_MAX, TAU_MIN)):
            at_end = torch.full((n,), end, dtype=torch.float64)
            y_end, _, _ = sample(n, seed=2 + k, tau=at_end)
            ends.append(true_derivatives(y_end, at_end)[1])
        mean, error = mean_and_error(first**2 - second)
        mean += sm.boundary_term(*ends, TAU_MIN, TAU_MAX).item()
        error += sum(mean_and_error(e)[1] for e in ends) / (TAU_MAX - TAU_MIN)
    assert abs(mean) < 5 * error < 0.4


def test_restored_smoothing_term_is_not_where_the_boundary_matters():
    """A perturbation h(tau) = tau: the loss as restored falls along it at the true energy, the corrected one does not.

    d/de of E[1/2 (d_tau F + e)^2 - d_tautau F] = E[d_tau F] = 0; but the boundary term of h is 1 - 1 = 0 as well, so
    take h = tau^2 / 2: slope E[tau d_tau F - 1] = -1 for the loss as restored; the boundary term adds
    (tau_max - tau_min) / (tau_max - tau_min) = 1.
    """
    y, _, tau = sample(100_000, seed=5)
    _, first, _ = true_derivatives(y, tau)
    mean, error = mean_and_error(tau * first - 1)
    assert abs(mean + 1) < 5 * error < 0.2
    ends = torch.tensor([TAU_MAX]), torch.tensor([TAU_MIN])
    assert sm.boundary_term(*ends, TAU_MIN, TAU_MAX).item() == pytest.approx(1)


@pytest.mark.parametrize("direction", [lambda tau: tau**2 / 2, lambda tau: (3 * tau).sin(), lambda tau: tau])
def test_the_vanishing_prior_needs_no_boundary_term(direction):
    """The loss does not change to first order when any h(tau) is added to the true energy, its ends included."""
    y, _, tau = sample(200_000, seed=6)
    tau.requires_grad_()
    _, first, second = true_derivatives(y, tau.detach())
    (slope,) = torch.autograd.grad(direction(tau).sum(), tau, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), tau) if slope.requires_grad else (torch.zeros_like(tau),)
    slope, at = slope.detach(), tau.detach()
    eps = 1e-4
    ends = [
        sm.vanishing_term(first + e * slope, second + e * bend, at, TAU_MIN, TAU_MAX) for e in (eps, -eps)
    ]
    mean, error = mean_and_error((ends[0] - ends[1]) / (2 * eps))
    assert abs(mean) < 5 * error < 0.2
    again = [sm.implicit_term(first + e * slope, second + e * bend) for e in (eps, -eps)]
    restored, _ = mean_and_error((again[0] - again[1]) / (2 * eps))
    if direction(torch.tensor(2.0)) != 2:  # a straight line has no boundary term
        assert abs(restored) > 20 * error


def test_explicit_term_vanishes_at_the_truth():
    y, _, tau = sample(10)
    _, first, _ = true_derivatives(y, tau)
    assert sm.explicit_term(first, -first).abs().max() == 0
    torch.testing.assert_close(
        sm.explicit_term(first + 2, -first), torch.full((10,), 2.0, dtype=torch.float64)
    )


def test_bad_shapes_are_named():
    z = torch.zeros(3, 1, 4, 4)
    with pytest.raises(ValueError, match="grad and z"):
        sm.image_term(z[:2], z, torch.ones(3))
    with pytest.raises(ValueError, match="t must have shape"):
        sm.image_term(z, z, torch.ones(2))
    with pytest.raises(ValueError, match="second derivative"):
        sm.implicit_term(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="first must have shape"):
        sm.denoising_term(torch.zeros(2), z)
    with pytest.raises(ValueError, match="first and tau"):
        sm.vanishing_term(torch.zeros(3), torch.zeros(3), torch.zeros(2), 0.0, 1.0)
    with pytest.raises(ValueError, match="tau_min must be below"):
        sm.vanishing_term(torch.zeros(3), torch.zeros(3), torch.zeros(3), 1.0, 1.0)
    with pytest.raises(ValueError, match="score"):
        sm.explicit_term(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="tau_min must be below"):
        sm.boundary_term(torch.zeros(3), torch.zeros(3), 1.0, 1.0)
