"""The truths that are closed forms of their own, against the library and against autograd."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.autograd.functional import hessian

from gnclib.course import exercise
from gnclib.course.lesson import Draw
from gnclib.course.lesson1 import CALLS, _draw_bracket
from gnclib.course.lesson5 import JOINT
from gnclib.foe import FoEConfig
from gnclib.foe.convexity import project
from gnclib.gmm import GaussianMixture
from gnclib.restore import log_schedule, posterior_moments
from gnclib.restore.flow import attainment_map, ddim_flow, gnc_flow


@pytest.mark.parametrize("seed", range(4))
def test_gradient_and_hessian_are_those_of_the_library(seed):
    g = Draw(seed)
    w, _, v = g.mixture()
    mu, y = (g.randn(n, 3) for n in (len(w), 5))
    mixture, t = GaussianMixture(w, mu, v), 0.3
    alone = [GaussianMixture([1.0], mu[i : i + 1], v[i : i + 1]).energy(y, t) for i in range(len(w))]
    responsibilities = w * (mixture.energy(y, t)[:, None] - torch.stack(alone, 1)).exp()
    torch.testing.assert_close(responsibilities.sum(1), torch.ones(5, dtype=torch.float64))
    arguments = (responsibilities, mu, v, y, t)
    torch.testing.assert_close(exercise("1.3").solution(*arguments), mixture.grad(y, t))
    by_autograd = torch.stack([hessian(lambda x: mixture.energy(x[None], t)[0], point) for point in y])
    torch.testing.assert_close(exercise("1.4").solution(*arguments), by_autograd)


@pytest.mark.parametrize("seed", range(4))
def test_responsibilities_are_those_of_bayes(seed):
    """-d F / d log w_i, without the constraint that the weights sum to one, is the responsibility of i."""
    g = Draw(seed)
    w, mu, v = g.mixture()
    y = torch.linspace(-1, 1, 7, dtype=torch.float64)
    log_w = w.log().requires_grad_()
    normal = torch.distributions.Normal(mu, (v + 0.2).sqrt())
    rows = [(normal.log_prob(point) + log_w).logsumexp(0) for point in y]
    expected = torch.stack([torch.autograd.grad(row, log_w)[0] for row in rows])
    torch.testing.assert_close(exercise("1.2").solution(w, mu, v, y, 0.2), expected)


@pytest.mark.parametrize("seed", range(4))
def test_bound_and_threshold_are_those_of_the_library(seed):
    g = Draw(seed)
    mu, cov = exercise("1.5").draw(g)
    uniform = torch.full((len(mu),), 1 / len(mu), dtype=torch.float64)
    assert exercise("1.5").solution(mu, cov) == pytest.approx(
        GaussianMixture(uniform, mu, cov).theorem_bound()
    )
    pair = GaussianMixture([0.2, 0.8], [-0.8, 0.8], [0.1, 0.1])
    threshold = exercise("1.6").solution(lambda t: pair.min_hessian(t)[0], 0.01, 2.0, 1e-9)
    assert threshold == pytest.approx(0.8**2 - 0.1, abs=1e-7)
    lowest, t_low, t_high, _ = _draw_bracket(g)
    assert lowest(t_high) >= 0
    assert t_low < t_high


def test_the_check_of_the_threshold_ends_a_loop_that_does_not():
    lowest, *_ = _draw_bracket(Draw(0))
    for _ in range(CALLS):
        lowest(1.0)
    with pytest.raises(RuntimeError, match="does your loop ever end"):
        lowest(1.0)


@pytest.mark.parametrize(("id", "flow"), [("2.4", gnc_flow), ("2.5", ddim_flow)])
@pytest.mark.parametrize("k", range(2))
def test_flows_are_those_of_the_library(id, flow, k):
    """On falling schedules, on the line (k = 0) and in space (k = 1); the library refuses others."""
    grad, _, start = exercise(id).arguments(k)
    schedule = log_schedule(2.0, 1e-3, 5)
    path = [start, *(state.x for state in flow(SimpleNamespace(grad=grad), schedule, start=start))]
    torch.testing.assert_close(exercise(id).solution(grad, schedule, start), torch.stack(path))


def test_the_attainment_map_is_that_of_the_library():
    grad, *arguments = exercise("2.6").arguments(0)
    torch.testing.assert_close(
        exercise("2.6").solution(grad, *arguments), attainment_map(SimpleNamespace(grad=grad), *arguments)
    )


def test_the_step_of_algorithm_2_is_tried_at_both_ends_and_between_them():
    free = []
    for k in range(JOINT.rounds):
        *functions_and_images, t_min, t_max = JOINT.arguments(k)
        free.append(JOINT.solution(*functions_and_images, 0.0, math.inf)[1])
    t = torch.cat(free)
    assert (t < t_min).sum() >= 2
    assert ((t > t_min) & (t < t_max)).sum() >= 2
    assert (t > t_max).sum() >= 2


@pytest.mark.parametrize("k", range(3))
def test_tweedies_second_formula_is_that_of_autograd_and_of_the_textbook(k):
    m, cov, y, t = exercise("6.1").arguments(k)
    noisy = torch.distributions.MultivariateNormal(m, cov + t * torch.eye(len(m), dtype=torch.float64))
    bend = -hessian(noisy.log_prob, y[0])
    mean, spread = exercise("6.1").solution(m, cov, y, t)
    torch.testing.assert_close(spread, t * (torch.eye(len(m), dtype=torch.float64) - t * bend))
    torch.testing.assert_close(spread, (cov.inverse() + torch.eye(len(m)) / t).inverse())
    torch.testing.assert_close(mean, (m @ cov.inverse() + y / t) @ spread)


def test_steins_estimate_is_right_on_average():
    """For one clean image and many noises, within six standard deviations of the mean."""
    grad, hvp, y, t, _ = exercise("6.2").arguments(1)
    clean, g = y[:1] / 2, Draw(7)
    noisy = clean + math.sqrt(t) * g.randn(60_000, *clean.shape[1:])
    signs = torch.sign(g.randn(2, *noisy.shape))
    error = (noisy - t * grad(noisy, t) - clean).square().sum((1, 2, 3))
    off = exercise("6.2").solution(grad, hvp, noisy, t, signs) - error
    assert abs(off.mean()) < 6 * off.std() / math.sqrt(len(off))
    assert off.std() / math.sqrt(len(off)) < 0.01 * error.mean()


def test_steins_estimate_is_that_of_the_library():
    """With an image of one row, as a vector, and an exact trace: unit vectors times the root of n are such probes."""
    grad, hvp, y, t, _ = exercise("6.2").arguments(0)
    row = y[:1, :, :1]
    n = row.numel()
    units = math.sqrt(n) * torch.eye(n, dtype=torch.float64).reshape(n, *row.shape)

    def images(x):
        return x.reshape(-1, 1, 1, n)

    vectors = SimpleNamespace(
        grad=lambda x, t: grad(images(x), float(t)).reshape(x.shape),
        hvp=lambda x, t, v: hvp(images(x), float(t[0]), images(v)).reshape(x.shape),
    )
    found = posterior_moments(vectors, row.reshape(1, n), t)
    torch.testing.assert_close(exercise("6.2").solution(grad, hvp, row, t, units), found.risk)


def test_gaussian_errors_are_covered_as_promised():
    g, levels = Draw(3), torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    std = 0.1 + g.rand(1, 1, 400, 500)
    share = exercise("6.3").solution(std * g.randn(*std.shape), 0 * std, std, levels)
    assert ((share - levels).abs() < 6 * (levels * (1 - levels) / std.numel()).sqrt()).all()


def test_the_closest_convex_potential_is_that_of_the_library_and_none_is_closer():
    grid = FoEConfig().grid_x
    x, g = grid.nodes().double(), Draw(5)
    w = (1 + ((x[1:] + x[:-1]) / 2) ** 2) ** -2
    a = 0.1 * x**2 + 0.02 * g.randn(len(x))
    closest = exercise("6.4").solution(a, w)
    projected = a.repeat(2, 1)[..., None].clone()
    project(projected, 0, grid)
    torch.testing.assert_close(
        closest, projected[0, :, 0], rtol=0, atol=1e-3
    )  # the library keeps a small slope
    off = closest.diff() - a.diff()
    for k in range(
        200
    ):  # <gradient, another rising sequence - ours> is not negative: the optimum, as it is convex
        other = Draw(k).randn(len(w)).sort().values
        assert (w * off) @ (other - closest.diff()) > -1e-9
