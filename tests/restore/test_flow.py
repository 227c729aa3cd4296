"""GNC flow against closed forms for one Gaussian, quadrature, and a plain numpy loop for the attainment map."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from gnclib.gmm import GaussianMixture, figure1_mixture
from gnclib.restore.flow import (
    attained,
    attainment_map,
    ddim_flow,
    gnc_flow,
    last,
    proximal_gradient,
    steps_until_all_arrive,
)
from gnclib.restore.operators import Denoising, Inpainting
from gnclib.restore.schedules import linear_schedule, log_schedule, step_sizes

MEAN, VARIANCE = 0.3, 0.04


class Gaussian:
    """F(y, t) = ||y - m||^2 / (2 (s^2 + t)) for tensors of any shape; counts its gradient evaluations."""

    def __init__(self):
        self.calls = 0

    def grad(self, y, t):
        self.calls += 1
        t = torch.as_tensor(t, dtype=y.dtype)
        return (y - MEAN) / (VARIANCE + t.reshape(-1, *[1] * (y.ndim - 1)))


def starts(count=5):
    return torch.linspace(-1, 1, count, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------- schedules


def test_schedules_against_numpy():
    np.testing.assert_allclose(log_schedule(2.0, 1e-4, 7), np.geomspace(2.0, 1e-4, 7), rtol=1e-12)
    np.testing.assert_allclose(linear_schedule(2.0, 1e-4, 7), np.linspace(2.0, 1e-4, 7), rtol=1e-12)
    for schedule in (log_schedule, linear_schedule):
        ends = schedule(0.7, 1e-4, 4)
        assert ends.dtype == torch.float64
        assert (ends[0].item(), ends[-1].item()) == (0.7, 1e-4)  # exactly
        assert schedule(0.7, 1e-4, 1).tolist() == [0.7]
        assert schedule(1e-4, 0.7, 2).tolist() == [1e-4, 0.7]  # rising ones are allowed


@pytest.mark.parametrize("schedule", [log_schedule, linear_schedule])
@pytest.mark.parametrize(
    "bad",
    [
        (0.0, 1e-4, 3),
        (1.0, -1e-4, 3),
        (math.nan, 1e-4, 3),
        (1.0, math.inf, 3),
        (1.0, 0.1, 0),
        (1.0, 0.1, 2.5),
        (1.0, 0.1, math.inf),
        (1.0, 0.1, math.nan),
        (1.0, 0.1, True),
        (1.0, 0.1, "3"),
    ],
)
def test_bad_schedule_ends(schedule, bad):
    wrong = "steps" if bad[:2] == (1.0, 0.1) else "t_last" if bad[0] == 1.0 else "t_first"
    with pytest.raises(ValueError, match=wrong):
        schedule(*bad)


def test_increments_telescope_and_are_the_shortened_full_steps():
    ts = log_schedule(1.0, 1e-3, 7)
    full, increments = step_sizes(ts), step_sizes(ts, "increment")
    assert torch.equal(full, ts)
    for j in range(7):
        assert increments[j:].sum().item() == pytest.approx(ts[j].item(), rel=1e-12)
    np.testing.assert_allclose(increments[:-1], ts[:-1] * (1 - ts[1:] / ts[:-1]), rtol=1e-12)
    both = torch.stack([ts, 0.5 * ts], dim=1)
    torch.testing.assert_close(step_sizes(both, "increment")[:, 1], 0.5 * increments)


@pytest.mark.parametrize(
    ("schedule", "rule", "message"),
    [
        ([0.1, 0.2], "increment", "rise"),
        ([0.2, 0.1], "half", "full or increment"),
        ([0.2, 0.0], "full", "schedule"),
        (0.2, "full", "schedule"),
        ("falling", "full", "schedule"),
    ],
)
def test_bad_rules(schedule, rule, message):
    with pytest.raises(ValueError, match=message):
        step_sizes(schedule, rule)


def test_step_sizes_are_the_callers_own():
    ts = log_schedule(1.0, 1e-3, 7)
    step_sizes(ts).mul_(0.5)
    assert torch.equal(ts, log_schedule(1.0, 1e-3, 7))


@pytest.mark.parametrize("count", [7, 7.0, np.int64(7), np.float64(7)])
def test_a_number_of_steps_may_come_from_numpy(count):
    assert torch.equal(log_schedule(1.0, 1e-3, count), log_schedule(1.0, 1e-3, 7))


# ------------------------------------------------------------------------------------------------ GNC flow


def test_given_step_sizes_enter_gradient_and_prox():
    y = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ts, etas, sigma = [0.5, 0.1], [0.2, 0.3], 0.1
    x = y
    for t, eta in zip(ts, etas, strict=True):
        v = x - eta * Gaussian().grad(x, t)
        x = (sigma**2 * v + eta * y) / (sigma**2 + eta)
    torch.testing.assert_close(last(gnc_flow(Gaussian(), ts, Denoising(y, sigma), step_sizes=etas)).x, x)
    for bad in ([0.2], [0.2, -0.3], [0.2, math.nan], torch.ones(2, 2)):
        with pytest.raises(ValueError, match=r"step size|schedule"):
            gnc_flow(Gaussian(), ts, Denoising(y, sigma), step_sizes=bad)


def test_a_rising_schedule_must_be_meant():
    with pytest.raises(ValueError, match="rises"):
        gnc_flow(Gaussian(), [0.1, 0.2], start=starts())
    assert len(list(gnc_flow(Gaussian(), [0.1, 0.2], start=starts(), rising=True))) == 2


def test_states_know_their_energies():
    y = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixture = figure1_mixture()
    state = last(gnc_flow(mixture, [0.5, 0.1], start=starts()))
    torch.testing.assert_close(state.energy, mixture.energy(state.x, 0.1))

    class Flat(Gaussian):
        def energy(self, y, t):
            return torch.full((len(y),), float(t), dtype=y.dtype)

    state = last(gnc_flow(Flat(), [0.5, 0.1], Denoising(y, 0.1)))
    torch.testing.assert_close(state.energy, 50 * (state.x - y).square().sum((1, 2, 3)) + 0.1)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 1, 3, 3)])
def test_one_gaussian_closed_form(shape):
    """x_i - m = prod_{j <= i} s^2 / (s^2 + t_j) (x_0 - m), in 1D, d dimensions and on images."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ts = log_schedule(1.0, 1e-3, 9)
    shrink = torch.cumprod(VARIANCE / (VARIANCE + ts), dim=0)
    states = list(gnc_flow(Gaussian(), ts, start=start))
    assert [state.step for state in states] == list(range(1, 10))
    assert [state.t for state in states] == ts.tolist()
    for state, factor in zip(states, shrink, strict=True):
        torch.testing.assert_close(state.x, MEAN + factor * (start - MEAN), rtol=1e-12, atol=1e-12)


def test_one_gaussian_with_data_closed_form():
    """Eq. (9) with both maps affine: the flow at a constant t has the fixed point of the prox step."""
    y = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma, t = 0.2, 0.05
    end = last(gnc_flow(Gaussian(), [t] * 400, data=Denoising(y, sigma))).x
    # the fixed point solves (x - y) / sigma^2 + (x - m) / (s^2 + t) = 0: the MAP estimate under the smoothed prior
    a, b = 1 / sigma**2, 1 / (VARIANCE + t)
    torch.testing.assert_close(end, (a * y + b * MEAN) / (a + b), rtol=1e-10, atol=1e-10)


def test_without_data_eq_9_is_algorithm_1():
    """An inpainting problem with nothing observed says nothing: the flow of eq. (9) is that of Algorithm 1."""
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nothing = Inpainting(start, torch.zeros(4, 4))
    ts = log_schedule(1.0, 1e-3, 6)
    for a, b in zip(
        gnc_flow(Gaussian(), ts, nothing, start), gnc_flow(Gaussian(), ts, start=start), strict=True
    ):
        torch.testing.assert_close(a.x, b.x, rtol=0, atol=0)


def test_each_step_is_the_posterior_mean():
    """Tweedie: a step equals `denoise`, which has a test against quadrature."""
    mixture = figure1_mixture()
    x = starts(7)
    for state in gnc_flow(mixture, log_schedule(1.0, 1e-2, 5), start=x):
        torch.testing.assert_close(state.x, mixture.denoise(x, state.t), rtol=1e-10, atol=1e-10)
        x = state.x


def test_flow_is_lazy_and_states_are_frozen():
    prior = Gaussian()
    flow = gnc_flow(prior, log_schedule(1.0, 1e-3, 1000), start=starts())
    assert prior.calls == 0
    first, second = next(flow), next(flow)
    assert prior.calls == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.x = second.x


def test_flow_leaves_the_caller_alone():
    """The start is not touched, no graph is recorded, and the caller's gradient mode survives a suspended flow."""
    start = starts().requires_grad_()
    before = start.detach().clone()
    flow = gnc_flow(Gaussian(), [0.5, 0.1], start=start)
    state = next(flow)
    assert not state.x.requires_grad
    assert torch.is_grad_enabled()
    assert torch.equal(start.detach(), before)
    start.data.zero_()  # what the caller does later does not reach the flow
    torch.testing.assert_close(next(flow).x, last(gnc_flow(Gaussian(), [0.5, 0.1], start=before)).x)


def test_schedule_per_sample():
    ts = torch.stack([log_schedule(1.0, 1e-3, 6), log_schedule(0.2, 1e-2, 6)], dim=1)  # (6, 2)
    mixture, start = figure1_mixture(), torch.tensor([-0.9, 0.6], dtype=torch.float64)
    end = last(gnc_flow(mixture, ts, start=start))
    torch.testing.assert_close(end.t, ts[-1])
    for b in range(2):
        alone = last(gnc_flow(mixture, ts[:, b], start=start[b : b + 1]))
        torch.testing.assert_close(end.x[b], alone.x[0], rtol=1e-12, atol=1e-12)


def test_default_start_is_the_data():
    y = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = last(gnc_flow(Gaussian(), [0.5, 0.1], data=Denoising(y, 0.1))).x
    b = last(gnc_flow(Gaussian(), [0.5, 0.1], data=Denoising(y, 0.1), start=y)).x
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "schedule", [[], [0.5, 0.0], [0.5, -0.1], [math.nan], [math.inf], 0.5, None, torch.ones(2, 3)]
)
@pytest.mark.parametrize("solver", [gnc_flow, ddim_flow])
def test_bad_schedule(solver, schedule):
    with pytest.raises(ValueError, match="schedule"):
        solver(Gaussian(), schedule, start=starts())  # raised at the call, not at the first next


@pytest.mark.parametrize(
    "start", [torch.tensor(0.5), torch.arange(3), torch.tensor([0.1, math.nan]), torch.ones(0)]
)
def test_bad_start(start):
    for call in (
        lambda: gnc_flow(Gaussian(), [0.5], start=start),
        lambda: proximal_gradient(Gaussian(), 0, start=start, step=1, steps=1),
    ):
        with pytest.raises(ValueError, match="start"):
            call()


def test_missing_start_and_prior_without_gradient():
    with pytest.raises(ValueError, match="start"):
        gnc_flow(Gaussian(), [0.5])
    with pytest.raises(ValueError, match="grad"):
        gnc_flow(object(), [0.5], start=starts())


# --------------------------------------------------------------------------------- DDIM, gradient descent


def test_ddim_tends_to_the_probability_flow():
    """For one Gaussian the ODE dx/dt = grad F / 2 has x - m ~ sqrt(s^2 + t); DDIM is first order in the step."""
    start, t = starts(), 1.0
    exact = MEAN + math.sqrt(VARIANCE / (VARIANCE + t)) * (start - MEAN)
    errors = []
    for steps in (400, 800):
        end = last(ddim_flow(Gaussian(), log_schedule(t, 1e-9, steps), start)).x
        errors.append((end - exact).abs().max().item())
    assert errors[1] < 0.005
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


def test_ddim_single_step_is_a_gnc_step():
    a = last(ddim_flow(Gaussian(), [0.3], starts())).x
    b = last(gnc_flow(Gaussian(), [0.3], start=starts())).x
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_ddim_refuses_a_rising_schedule():
    with pytest.raises(ValueError, match="rise"):
        ddim_flow(Gaussian(), [0.1, 0.2], starts())


def test_gradient_descent_closed_form():
    states = list(proximal_gradient(Gaussian(), 0.06, start=starts(), step=0.02, steps=8))
    assert len(states) == 8
    for state in states:
        factor = (1 - 0.02 / (VARIANCE + 0.06)) ** state.step
        torch.testing.assert_close(state.x, MEAN + factor * (starts() - MEAN), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "bad", [(-0.1, 0.1, 3), (0.0, 0.0, 3), (0.0, None, 3), (0.0, math.nan, 3), (0.0, 0.1, 0), (0.0, 0.1, 1.5)]
)
def test_bad_gradient_descent(bad):
    t, step, steps = bad
    with pytest.raises(ValueError, match=r"finite|integer"):
        proximal_gradient(Gaussian(), t, start=starts(), step=step, steps=steps)


# --------------------------------------------------------------------------------------------- attainment


def numpy_flow(y, t_first, steps, t_last=1e-4):
    """Algorithm 1 for the Figure 1 mixture once more, one start at a time, in plain numpy."""
    w, mu = np.array([0.15, 0.20, 0.10, 0.30, 0.25]), np.array([-0.8, -0.4, 0.0, 0.35, 0.75])
    s = np.array([0.05, 0.08, 0.04, 0.06, 0.10])
    for t in np.geomspace(t_first, t_last, steps):
        p = w * np.exp(-((y - mu) ** 2) / (2 * (s**2 + t))) / np.sqrt(s**2 + t)
        y = y - t * (p * (y - mu) / (s**2 + t)).sum() / p.sum()
    return y


def test_attainment_map_against_numpy():
    mixture, target, tolerance = figure1_mixture(), 0.35, 0.02
    points, t_firsts, steps = starts(21), [0.05, 0.3, 2.0], [2, 9, 30]
    found = attainment_map(mixture, points, t_firsts, steps, target, tolerance)
    expected = [
        [np.mean([abs(numpy_flow(y, t, n) - target) <= tolerance for y in points.tolist()]) for n in steps]
        for t in t_firsts
    ]
    np.testing.assert_array_equal(found.numpy(), expected)
    assert 0 < found[0, -1] < 1  # the map is not trivial


def test_attainment_in_the_plane():
    """Of a product the energy is a sum: on the diagonal both coordinates flow as on the line."""
    line, target = figure1_mixture(), 0.35
    pairs = [(w * v, (m, n), (a, b)) for w, m, a in parts(line) for v, n, b in parts(line)]
    w, means, variances = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    plane = GaussianMixture(w, means, torch.diag_embed(variances))
    points, t_firsts, steps = starts(9), [0.05, 2.0], [9]
    found = attainment_map(
        plane, torch.stack([points, points], 1), t_firsts, steps, torch.full((2,), target), 0.03
    )
    expected = attainment_map(line, points, t_firsts, steps, target, 0.03 / math.sqrt(2))
    torch.testing.assert_close(found, expected)


def parts(mixture):
    """Weight, mean and variance of each component on the line."""
    return list(
        zip(
            mixture.weights.tolist(),
            mixture.means.flatten().tolist(),
            mixture.variances.tolist(),
            strict=True,
        )
    )


def test_steps_until_all_arrive():
    """A setting that works by luck and then fails again with more steps does not count."""
    arrival = torch.tensor([[0.1, 1.0, 0.9, 1.0, 1.0], [1.0] * 5, [1.0, 1.0, 1.0, 1.0, 0.99]])
    assert steps_until_all_arrive(arrival, [1, 2, 4, 8, 16])[:2] == [8, 1]
    assert math.isnan(steps_until_all_arrive(arrival, [1, 2, 4, 8, 16])[2])
    for bad in ([1, 2, 4], [1, 2, 4, 16, 8]):
        with pytest.raises(ValueError, match="rising"):
            steps_until_all_arrive(arrival, bad)


def test_attained_measures_the_norm():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.6]])
    assert attained(x, torch.zeros(2), 0.55).tolist() == [False, True, False]


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_bad_tolerance(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        attained(starts(), 0.3, tolerance)


def test_bad_targets_and_maps():
    with pytest.raises(ValueError, match="target"):
        attained(starts(), torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match="steps"):
        attainment_map(Gaussian(), starts(), [1.0], [0], 0.3, 0.1)


def test_last_needs_a_state():
    flow = gnc_flow(Gaussian(), [0.5], start=starts())
    last(flow)
    with pytest.raises(ValueError, match="no state"):
        last(flow)
