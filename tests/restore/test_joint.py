"""Algorithm 2 and PALM against profile minimisation in closed form, brute force on mixtures, and monotone energy."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.gmm import figure1_mixture
from gnclib.restore import schedules
from gnclib.restore.flow import State, gnc_flow, last, proximal_gradient
from gnclib.restore.joint import joint_descent, palm
from gnclib.restore.operators import Denoising, Inpainting

MEAN, VARIANCE = 0.4, 0.02
SOLVERS = (joint_descent, palm)


class Gaussian:
    """The energy of N(MEAN, VARIANCE) per pixel: n/2 log(s^2 + t) + ||y - m||^2 / (2 (s^2 + t))."""

    def _width(self, y, t):
        return VARIANCE + torch.as_tensor(t, dtype=y.dtype).reshape(-1, *[1] * (y.ndim - 1))

    def energy(self, y, t):
        width = self._width(y, t)
        return (0.5 * width.log() + (y - MEAN) ** 2 / (2 * width)).flatten(1).sum(1)

    def grad(self, y, t):
        return (y - MEAN) / self._width(y, t)

    def dtau(self, y, t, *, order):
        assert order == 1
        width, t = self._width(y, t), torch.as_tensor(t, dtype=y.dtype).reshape(-1, *[1] * (y.ndim - 1))
        return (((1 / width - (y - MEAN) ** 2 / width**2) * t).flatten(1).sum(1),)


class Scores:
    """No derivative in tau: enough for the GNC flow, not for a search over t."""

    def grad(self, y, t):
        return y

    def energy(self, y, t):
        return y.flatten(1).square().sum(1) / 2


class OnLine:
    """D(x) = (x - y)^2 / (2 sigma^2) for a batch of numbers."""

    def __init__(self, y, sigma):
        self.y, self.sigma = y, sigma

    def energy(self, x):
        return (x - self.y) ** 2 / (2 * self.sigma**2)

    def prox(self, v, step):
        return (self.sigma**2 * v + step * self.y) / (self.sigma**2 + step)

    def start(self):
        return self.y.clone()


def noisy(batch=2, side=6, seed=0):
    z = torch.randn(batch, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return MEAN + math.sqrt(VARIANCE) * z


# ------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("solver", SOLVERS)
def test_joint_minimum_of_a_gaussian(solver):
    """Given t the best x is a weighted mean; what is left is a function of t alone, minimised by scipy."""
    y, sigma, t_last = noisy() * 3, 0.2, 1e-3
    end = last(solver(Gaussian(), 1.0, Denoising(y, sigma), steps=300, t_last=t_last))
    for k in range(len(y)):
        data = Denoising(y[k : k + 1], sigma)

        def profile(tau, data=data):
            width = VARIANCE + math.exp(2 * tau)
            x = (width * data.y + sigma**2 * MEAN) / (width + sigma**2)
            return (data.energy(x) + Gaussian().energy(x, math.exp(2 * tau))).item()

        best = minimize_scalar(
            profile, bounds=(0.5 * math.log(t_last), 0.0), method="bounded", options={"xatol": 1e-9}
        )
        assert 0.5 * math.log(t_last) + 0.1 < best.x < -0.1  # an inner minimum: the test means something
        assert 0.5 * math.log(end.t[k]) == pytest.approx(best.x, abs=1e-4)
        assert end.energy[k].item() == pytest.approx(best.fun, abs=1e-8)


def test_proximal_gradient_on_a_quadratic_prior_ends_at_the_closed_form():
    y, sigma, t = noisy(), 0.1, 0.03
    end = last(proximal_gradient(Gaussian(), t, Denoising(y, sigma), steps=400)).x
    width = VARIANCE + t
    torch.testing.assert_close(end, (width * y + sigma**2 * MEAN) / (width + sigma**2), rtol=0, atol=1e-12)


def test_first_step_is_the_formula():
    prior, y, sigma, t = Gaussian(), noisy(), 0.1, 0.25
    state = next(joint_descent(prior, t, Denoising(y, sigma), steps=1, t_last=1e-4))
    v = y - t * prior.grad(y, t)
    x = (sigma**2 * v + t * y) / (sigma**2 + t)
    tau = 0.5 * math.log(t) - prior.dtau(x, t, order=1)[0] / (2 * 36)
    torch.testing.assert_close(state.x, x)
    torch.testing.assert_close(state.t, (2 * tau).exp().clamp(1e-4, t))


@pytest.mark.parametrize("summands", [None, 48 * 36, 7.0])
def test_the_preconditioner_divides_the_step_in_tau(summands):
    """d_tau R of one Gaussian by hand, at the x of the step; 2 n where no number of summands is given, n = 36."""
    y, t = noisy(), 0.25
    state = next(joint_descent(Gaussian(), t, Denoising(y, 0.1), steps=1, t_last=1e-6, summands=summands))
    width = VARIANCE + t
    slope = t * (1 / width - (state.x - MEAN) ** 2 / width**2).sum((1, 2, 3))
    moved = 0.5 * math.log(t) - 0.5 * state.t.log()
    assert bool((moved > 1e-3).all())
    torch.testing.assert_close(moved, slope / (summands or 72), rtol=1e-9, atol=0)


def palm_by_hand(y, sigma, t_first, t_last, steps):
    """PALM for one image of independent Gaussian pixels, in plain numpy: the smallest doubled bounds that do.

    R(., t) has the curvature 1 / (s^2 + t), so L is good as soon as it is at least that; M is tried out.
    """
    x, tau, n = y.copy(), 0.5 * math.log(t_first), y.size
    bound_x, bound_tau = 1 / t_first, 2.0 * n

    def energy(x, tau):
        width = VARIANCE + math.exp(2 * tau)
        return 0.5 * n * math.log(width) + ((x - MEAN) ** 2).sum() / (2 * width)

    for _ in range(steps):
        t = math.exp(2 * tau)
        width = VARIANCE + t
        bound_x /= 2
        while bound_x < 1 / width:
            bound_x *= 2
        v = x - (x - MEAN) / width / bound_x
        x = (sigma**2 * v + y / bound_x) / (sigma**2 + 1 / bound_x)
        slope = t * (n / width - ((x - MEAN) ** 2).sum() / width**2)
        bound_tau /= 2
        while True:
            new = min(max(tau - slope / bound_tau, 0.5 * math.log(t_last)), 0.5 * math.log(t_first))
            model = energy(x, tau) + slope * (new - tau) + bound_tau / 2 * (new - tau) ** 2
            if energy(x, new) <= model + 1e-12:
                break
            bound_tau *= 2
        tau = new
        yield x, math.exp(2 * tau), bound_x, bound_tau


@pytest.mark.parametrize("t_first", [0.9, 0.003])
def test_palm_takes_the_longest_steps_that_its_model_allows(t_first):
    y = noisy(3) * torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    states = list(palm(Gaussian(), t_first, Denoising(y, 0.3), steps=8, t_last=1e-4))
    bounds = set()
    for k in range(3):
        for state, (x, t, bound_x, bound_tau) in zip(
            states, palm_by_hand(y[k].numpy(), 0.3, t_first, 1e-4, 8), strict=True
        ):
            np.testing.assert_allclose(state.x[k].numpy(), x, rtol=1e-9, atol=1e-12)
            assert state.t[k].item() == pytest.approx(t, rel=1e-9)
            bounds.add((round(bound_x * t_first, 9), round(bound_tau / 72, 9)))
    assert len(bounds) > 3  # they grew and shrank


# --------------------------------------------------------------------------------------- brute force on mixtures


@pytest.mark.parametrize("measured", [0.0, 0.2, 0.5])
def test_all_schemes_reach_the_global_map_of_a_mixture(measured):
    """From every start all schemes end at the minimum over a fine grid of x and t; plain descent does not."""
    mixture, sigma, t_last = figure1_mixture(), 0.5, 1e-4
    starts = torch.linspace(-1, 1, 21, dtype=torch.float64)
    data = OnLine(torch.full_like(starts, measured), sigma)
    grid = torch.linspace(-1.2, 1.2, 4801, dtype=torch.float64)
    over_t = [
        mixture.energy(grid, t) + OnLine(measured, sigma).energy(grid) for t in np.geomspace(t_last, 1, 41)
    ]
    best_t, best_x = np.unravel_index(torch.stack(over_t).argmin().item(), (41, len(grid)))
    assert best_t == 0  # the joint minimum is the MAP
    ends = {
        "predefined": gnc_flow(mixture, schedules.log_schedule(1.0, t_last, 200), data, starts),
        "joint": joint_descent(mixture, 1.0, data, starts, steps=200, t_last=t_last),
        "palm": palm(mixture, 1.0, data, starts, steps=200, t_last=t_last),
        "control": proximal_gradient(mixture, t_last, data, starts, steps=1000),
    }
    arrived = {
        name: ((last(s).x - grid[best_x]).abs() < 1e-3).double().mean().item() for name, s in ends.items()
    }
    assert [arrived[name] for name in ("predefined", "joint", "palm")] == [1, 1, 1]
    assert arrived["control"] < 0.3


# ------------------------------------------------------------------------------------------------ monotone energy


@pytest.mark.parametrize("border", ["denoise", "inpaint"])
def test_palm_never_raises_the_energy_of_a_learned_prior(border):
    prior = FieldsOfExperts.from_pretrained("R1").double()
    y = noisy(side=20)
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    data = Denoising(y, 0.1) if border == "denoise" else Inpainting(y, mask)
    first = State(0, 0.2, data.start(), prior, data).energy
    energies = torch.stack([first, *(s.energy for s in palm(prior, 0.2, data, steps=12))])
    assert bool((energies.diff(dim=0) <= 1e-9 * energies[:-1].abs()).all())
    assert bool((energies[0] - energies[-1] > 1.0).all())  # and it gets somewhere


def test_palm_finds_the_short_steps_that_a_wrong_first_guess_needs():
    class Steep(Gaussian):  # curvature 100 times that of an energy smoothed with t
        def energy(self, y, t):
            return 50 * ((y - MEAN) ** 2).flatten(1).sum(1) + 0 * self._width(y, t).flatten()

        def grad(self, y, t):
            return 100 * (y - MEAN)

        def dtau(self, y, t, *, order):
            return (torch.zeros(len(y), dtype=y.dtype),)

    y = noisy() + 1
    end = last(palm(Steep(), 1.0, Denoising(y, 10.0), steps=60, t_last=0.5)).x
    torch.testing.assert_close(end, (100 * MEAN + y / 100) / (100 + 1 / 100), rtol=0, atol=1e-8)


@pytest.mark.parametrize("task", ["denoise", "inpaint"])
def test_palm_can_go_on_where_nothing_moves_any_more(task):
    """Hundreds of steps in float32 after the end is reached: no Lipschitz estimate may run down to 0."""
    y = noisy().float()
    data = Denoising(0.1 * y, 0.01) if task == "denoise" else Inpainting(y, torch.ones(6, 6))
    states = list(palm(Gaussian(), 1.0, data, steps=400, t_last=0.1))
    torch.testing.assert_close(states[-1].x, states[100].x)
    torch.testing.assert_close(states[-1].t, states[100].t, rtol=0.01, atol=0)


def test_palm_does_not_search_for_ever():
    class Broken(Gaussian):
        def energy(self, y, t):
            return super().energy(y, t) * math.nan

    with pytest.raises(RuntimeError, match="finite"):
        next(palm(Broken(), 1.0, Denoising(noisy(), 10.0), steps=1, t_last=1e-4))


# ---------------------------------------------------------------------------------------------- batches and t


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_of_a_batch_do_not_meet(solver):
    y = noisy(3) * torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    together = last(solver(Gaussian(), 1.0, Denoising(y, 0.2), steps=7, t_last=1e-3))
    for k in range(3):
        alone = last(solver(Gaussian(), 1.0, Denoising(y[k : k + 1], 0.2), steps=7, t_last=1e-3))
        torch.testing.assert_close(together.x[k], alone.x[0])
        torch.testing.assert_close(together.t[k], alone.t[0])


@pytest.mark.parametrize("solver", SOLVERS)
def test_t_stays_in_its_interval_and_the_prior_gives_its_lower_end(solver):
    prior = FieldsOfExperts(FoEConfig(features=4, kernel_size=3, nodes_x=31, nodes_tau=5))
    ts = torch.stack([s.t for s in solver(prior, 0.3, Denoising(noisy().float(), 0.1), steps=9)])
    low = prior.sigma_min**2
    assert bool(((ts >= low * (1 - 1e-5)) & (ts <= 0.3 * (1 + 1e-5))).all())


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t_first": 0.0}, "fall from t_first"),
        ({"t_first": math.nan}, "fall from t_first"),
        ({"t_first": 1e-5}, "fall from t_first"),
        ({"t_last": -1.0}, "fall from t_first"),
        ({"t_last": None}, "t_last"),
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"data": None}, "start"),
        ({"start": torch.full((2, 1, 6, 6), math.nan)}, "start"),
        ({"prior": Scores()}, "dtau"),
        ({"prior": object()}, "dtau"),
    ],
)
def test_bad_input(solver, change, message):
    good = {"prior": Gaussian(), "t_first": 1.0, "data": Denoising(noisy(), 0.1), "steps": 3, "t_last": 1e-3}
    given = good | change
    with pytest.raises(ValueError, match=message):
        solver(given.pop("prior"), given.pop("t_first"), given.pop("data"), **given)


@pytest.mark.parametrize("summands", [0.0, -3.0, math.nan, math.inf])
def test_bad_preconditioners(summands):
    with pytest.raises(ValueError, match="summands"):
        joint_descent(Gaussian(), 1.0, Denoising(noisy(), 0.1), steps=1, t_last=0.1, summands=summands)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ends", [(4.0, None), (0.5, 1e-6)])
def test_t_outside_of_the_range_of_the_prior(solver, ends):
    prior = FieldsOfExperts(FoEConfig(features=4, kernel_size=3, nodes_x=31, nodes_tau=5))
    with pytest.raises(ValueError, match="this prior knows t from"):
        solver(prior, ends[0], Denoising(noisy().float(), 0.1), steps=1, t_last=ends[1])


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_largest_t_of_the_range_up_to_rounding(solver):
    prior = FieldsOfExperts(FoEConfig(features=4, kernel_size=3, nodes_x=31, nodes_tau=5, sigma_max=0.7))
    assert prior.sigma_max**2 < 0.49
    states = list(solver(prior, 0.49, Denoising(noisy().float(), 0.1), steps=2))
    assert bool(states[-1].x.isfinite().all())


def test_numpy_profile_agrees_with_the_energy_of_the_state():
    y = noisy(1)
    state = next(joint_descent(Gaussian(), 0.5, Denoising(y, 0.3), steps=1, t_last=1e-3))
    x, t = state.x.numpy(), state.t.item()
    by_hand = ((x - y.numpy()) ** 2).sum() / (2 * 0.09)
    by_hand += (0.5 * np.log(VARIANCE + t) + (x - MEAN) ** 2 / (2 * (VARIANCE + t))).sum()
    assert state.energy.item() == pytest.approx(by_hand, rel=1e-12)
