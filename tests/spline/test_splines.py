"""Quartic splines against scipy's B-splines, autograd and dense sums: the definition and every engine."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch.utils import cpp_extension

from gnclib.spline import SplineGrid, contract, evaluate, quartic_bspline
from gnclib.spline import compiled as spline_compiled
from gnclib.spline import native as spline_native
from gnclib.spline import reference as spline_reference
from gnclib.spline import splines as spline
from gnclib.spline.reference import evaluate as evaluate_reference
from tests.draws import generator

f64 = {"dtype": torch.float64}
KNOTS = np.arange(6) - 2.5  # of the centred basis function, where its pieces meet
ORDERS = [orders for k in (1, 2, 3) for orders in itertools.combinations((0, 1, 2), k)]


def scipy_spline(grid, coefficients):
    """The same function by scipy: knots half way between the nodes."""
    knots = grid.nodes()[0].item() - 2.5 * grid.spacing + grid.spacing * np.arange(grid.count + 5)
    return BSpline(knots, np.asarray(coefficients), 4)


def scipy_basis(grid, x, derivative):
    """All basis functions of a grid at x (M,), by scipy: (M, N_x)."""
    return scipy_spline(grid, np.eye(grid.count)).derivative(derivative)(np.asarray(x, dtype=np.float64))


def scipy_values_and_gradients(x, coefficients, grid, orders, weights):
    """phi^(k) at x (S, M) inside of the range, and the gradients of sum_k <w_k, phi^(k)>, all by scipy."""
    x, a, weights = x.double().numpy(), coefficients.double().numpy(), [w.double().numpy() for w in weights]
    bases = [np.stack([scipy_basis(grid, row, k) for row in x]) for k in range(4)]  # (S, M, N_x)
    phi = [np.einsum("smi,si->sm", basis, a) for basis in bases]
    g_x = sum(w * phi[k + 1] for k, w in zip(orders, weights, strict=True))
    g_a = sum(np.einsum("smi,sm->si", bases[k], w) for k, w in zip(orders, weights, strict=True))
    return [*(phi[k] for k in orders), g_x, g_a]


def problem(count=13, rows=3, points=200, reach=1.6, dtype=torch.float64, seed=0):
    """Random splines on [-1, 2.5] and points of which a good part lies outside of that range."""
    g, grid = generator(seed), SplineGrid(count, -1.0, 2.5)
    x = 0.75 + reach * 1.75 * (2 * torch.rand(rows, points, generator=g, **f64) - 1)
    return x.to(dtype), torch.randn(rows, count, generator=g, **f64).to(dtype), grid


# --- basis ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("derivative", range(5))
def test_basis_against_scipy(derivative):
    u = torch.linspace(-3, 3, 1001, **f64) + 1e-4  # off the knots, where the 4th derivative jumps
    expected = BSpline.basis_element(KNOTS, extrapolate=False).derivative(derivative)(u)
    expected = np.nan_to_num(expected, nan=0.0)  # scipy's mark for outside of the support
    np.testing.assert_allclose(quartic_bspline(u, derivative), expected, atol=1e-12)


def test_basis_is_a_partition_of_unity():
    u = torch.linspace(-0.5, 0.5, 301, **f64)
    shifted = torch.stack([quartic_bspline(u - i) for i in range(-3, 4)])
    torch.testing.assert_close(shifted.sum(0), torch.ones_like(u), atol=1e-14, rtol=0)
    assert (shifted >= 0).all()


@pytest.mark.parametrize("knot", KNOTS)
def test_basis_is_three_times_continuously_differentiable_and_no_more(knot):
    """Both sides of a knot: derivatives 0 to 3 agree, the fourth jumps by a binomial coefficient."""
    sides = torch.tensor([knot - 1e-9, knot + 1e-9], **f64)
    jumps = [quartic_bspline(sides, k).diff().abs().item() for k in range(5)]
    assert max(jumps[:4]) < 1e-7
    assert jumps[4] == pytest.approx([1, 5, 10, 10, 5, 1][int(knot + 2.5)])


def test_basis_at_its_knots():
    """The pieces meet there, and the fourth derivative is that of the piece which begins (for u >= 0)."""
    knots = torch.tensor([0.0, 0.5, 1.5, 2.5], **f64)
    np.testing.assert_allclose(quartic_bspline(knots), [115 / 192, 11 / 24, 1 / 24, 0], atol=1e-15)
    assert quartic_bspline(knots, 4).tolist() == [6, -4, 1, 0]


@pytest.mark.parametrize("derivative", [-1, 5, 1.5, "1"])
def test_unknown_derivatives_of_the_basis(derivative):
    with pytest.raises(ValueError, match="derivative must be"):
        quartic_bspline(torch.zeros(1), derivative)


# --- grids ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "low", "high"), [(5, 0.0, 1.0), (31, -3.0, 3.0)])
def test_least_squares_fits(count, low, high):
    """A spline is found again from its samples, and a smooth function up to the fifth power of the spacing."""
    grid = SplineGrid(count, low, high)
    x = torch.linspace(low, high, 20 * count, **f64)
    coefficients = torch.randn(2, 3, count, generator=torch.Generator().manual_seed(0), **f64)
    values = evaluate(x.expand(2, 3, -1).contiguous(), coefficients, grid)[0]
    torch.testing.assert_close(grid.fit(x, values), coefficients, rtol=0, atol=1e-9)
    (found,) = evaluate(x[None], grid.fit(x, x.sin()[None]), grid)
    assert (found - x.sin()).abs().max() < 0.01 * grid.spacing**5


@pytest.mark.parametrize(("count", "low", "high"), [(5, 0.0, 1.0), (31, -3.0, 3.0), (95, -6.0, 6.0)])
def test_quadratics_are_reproduced_exactly(count, low, high):
    grid = SplineGrid(count, low, high)
    x = torch.linspace(low, high, 500, **f64)[None]
    a, b, c = 0.3, -1.2, 0.7
    value, slope, curvature = evaluate(x, grid.quadratic(a, b, c)[None], grid, (0, 1, 2))
    torch.testing.assert_close(value, a + b * x + c * x**2, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(slope, b + 2 * c * x, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(curvature, torch.full_like(x, 2 * c), atol=1e-9, rtol=0)
    assert (grid.quadratic() == 0).all()
    assert torch.equal(grid.quadratic(c=c), grid.quadratic(0, 0, c))


def test_exactly_five_functions_overlap_at_each_point_of_the_range():
    grid = SplineGrid(9, -1.0, 1.0)
    x = torch.linspace(-0.999, 0.999, 400, **f64)
    active = quartic_bspline((x[:, None] - grid.nodes()) / grid.spacing) > 0
    off_knots = ((x - grid.low) / grid.spacing).frac() > 1e-9
    assert (active.sum(1)[off_knots] == 5).all()


@pytest.mark.parametrize(
    "arguments", [(4, 0, 1), (7.5, 0, 1), (9, 1, 1), (9, 2, 1), (9, 0, np.inf), (9, -np.inf, 0)]
)
def test_bad_grids(arguments):
    with pytest.raises(ValueError, match=r"at least 5 nodes|finite with low < high"):
        SplineGrid(*arguments)


# --- evaluate: the definition in plain torch --------------------------------------------------------------


@pytest.mark.parametrize("count", [5, 6, 31, 63, 127])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_values_and_derivatives_against_scipy(count, order):
    x, coefficients, grid = problem(count, reach=0.999)  # inside of the range
    (ours,) = evaluate(x, coefficients, grid, (order,))
    expected = [
        scipy_spline(grid, c).derivative(order)(p) for c, p in zip(coefficients, x.numpy(), strict=True)
    ]
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9 / grid.spacing**order)


def test_continued_linearly_outside_of_the_range():
    _, coefficients, grid = problem()
    for end, away in ((grid.low, -1.0), (grid.high, 1.0)):
        x = end + away * torch.tensor([[0.0, 0.01, 1.0, 50.0]] * 3, **f64)
        value, slope, curvature = evaluate(x, coefficients, grid, (0, 1, 2))
        for row in range(3):
            exact = scipy_spline(grid, coefficients[row])
            at_end, slope_at_end = float(exact(end)), float(exact.derivative(1)(end))
            np.testing.assert_allclose(slope[row], slope_at_end, rtol=1e-9)
            np.testing.assert_allclose(value[row], at_end + slope_at_end * (x[row] - end), rtol=1e-9)
        assert (curvature[:, 1:] == 0).all()


def test_derivatives_against_autograd():
    x, coefficients, grid = problem()
    x.requires_grad_()
    value, slope, curvature = evaluate(x, coefficients, grid, (0, 1, 2))
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(slope, first)
    torch.testing.assert_close(curvature, second)


@pytest.mark.parametrize("orders", [(0,), (1,), (2,), (0, 1, 2)])
def test_gradients_against_finite_differences(orders):
    """torch's gradcheck and gradgradcheck in float64; points next to a knot of phi''' are left out."""
    x, coefficients, grid = problem(count=6, rows=2, points=8, reach=1.3, seed=3)
    distance = ((x - grid.low) / grid.spacing - ((x - grid.low) / grid.spacing).round()).abs() * grid.spacing
    x = torch.where(distance < 1e-3, x + 0.01, x).requires_grad_()
    coefficients.requires_grad_()

    def function(x, coefficients):
        return evaluate(x, coefficients, grid, orders)

    assert torch.autograd.gradcheck(function, (x, coefficients))
    assert torch.autograd.gradgradcheck(function, (x, coefficients))


def test_leading_shapes_share_or_own_their_function():
    x, coefficients, grid = problem(rows=6, points=20)
    flat = evaluate(x, coefficients, grid)[0]
    nested = evaluate(x.reshape(2, 3, 4, 5), coefficients.reshape(2, 3, -1), grid)[0]
    assert torch.equal(nested.reshape(6, 20), flat)
    shared = evaluate(x, coefficients[0], grid)[0]  # S = (): one function for all
    assert torch.equal(shared[0], flat[0])


def test_bad_input_to_evaluate():
    x, coefficients, grid = problem()
    with pytest.raises(ValueError, match="do not match"):
        evaluate(x[:2], coefficients, grid)
    with pytest.raises(ValueError, match="13 nodes"):
        evaluate(x, coefficients[:, 1:], grid)
    for orders in ((), (3,), (0, -1)):
        with pytest.raises(ValueError, match="orders must be"):
            evaluate(x, coefficients, grid, orders)


# --- contract ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("derivative", range(5))
def test_contract_and_evaluate_are_the_double_sum(derivative):
    """phi(x, tau) = sum_ij w_ij beta((x - mu_i) / dx) beta((tau - nu_j) / dtau), written out densely."""
    g, gx, gt = generator(1), SplineGrid(9, -1.0, 1.0), SplineGrid(7, -4.6, 0.0)
    w = torch.randn(2, 9, 7, generator=g, **f64)
    tau, x = torch.tensor([-4.6, -2.0, -1e-9], **f64), 2 * torch.rand(3, 2, 11, generator=g, **f64) - 1
    ours = evaluate(x, contract(w, tau, gt, derivative), gx)[0]
    for b, c, k in itertools.product(range(3), range(2), range(11)):
        in_x = quartic_bspline((x[b, c, k] - gx.nodes()) / gx.spacing)
        in_tau = quartic_bspline((tau[b] - gt.nodes()) / gt.spacing, derivative) / gt.spacing**derivative
        dense = sum(w[c, i, j] * in_x[i] * in_tau[j] for i in range(9) for j in range(7))
        assert ours[b, c, k].item() == pytest.approx(dense.item(), abs=1e-12, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("derivative", range(3))
def test_mixed_derivatives_against_scipy(derivative, dtype):
    """phi and its derivatives in x of order k and in tau of order l: sum_ij w_ij B_i^(k)(x) B_j^(l)(tau)."""
    g, gx, gt = generator(4), SplineGrid(31, -6.0, 6.0), SplineGrid(11, -4.6, 0.0)
    w = torch.randn(2, 31, 11, generator=g, **f64).to(dtype)
    tau = torch.tensor([-4.5, -2.0, -0.1], dtype=dtype)
    x = (12 * torch.rand(3, 2, 50, generator=g, **f64) - 6).to(dtype)
    found = evaluate(x, contract(w, tau, gt, derivative), gx, (0, 1, 2))
    in_tau = scipy_basis(gt, tau, derivative)
    for k, values in enumerate(found):
        in_x = np.stack([[scipy_basis(gx, row, k) for row in plane] for plane in x])  # (B, C, M, N_x)
        exact = np.einsum("bcmi,cij,bj->bcm", in_x, w.double(), in_tau)
        relative = 1e-11 if dtype == torch.float64 else 1e-5
        assert np.abs(values.double().numpy() - exact).max() < relative * np.abs(exact).max()


def test_contract_differentiates_in_tau():
    grid, w = SplineGrid(11, -4.6, 0.0), torch.randn(3, 11, generator=generator(2), **f64)
    tau = torch.tensor([-3.0, -0.2], **f64, requires_grad=True)
    for derivative in range(4):
        value = contract(w, tau, grid, derivative)
        (slope,) = torch.autograd.grad(value.sum(), tau)
        torch.testing.assert_close(slope, contract(w, tau.detach(), grid, derivative + 1).sum(1))


def test_bad_input_to_contract():
    grid = SplineGrid(7, 0.0, 1.0)
    with pytest.raises(ValueError, match="7"):
        contract(torch.zeros(3, 6), torch.zeros(2), grid)
    with pytest.raises(ValueError, match=r"shape \(B,\)"):
        contract(torch.zeros(3, 7), torch.tensor(0.5), grid)
    with pytest.raises(ValueError, match="derivative"):
        contract(torch.zeros(3, 7), torch.zeros(2), grid, 5)
    flat = contract(torch.ones(3, 7, **f64), torch.full((2,), 0.5, **f64), grid)  # by itself no derivative
    torch.testing.assert_close(flat, torch.ones(2, 3, **f64))


# --- the backward pass of the definition ------------------------------------------------------------------


@pytest.mark.parametrize("count", [31, 63, 127])
@pytest.mark.parametrize("orders", ORDERS)
def test_backward_formula_against_scipy(count, orders):
    x, coefficients, grid = problem(count, points=60, reach=0.999)
    weights = tuple(torch.randn(x.shape, generator=generator(k), **f64) for k in orders)
    found = spline_reference.backward(x, coefficients, grid, orders, weights)
    exact = scipy_values_and_gradients(x, coefficients, grid, orders, weights)[-2:]
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10 * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("orders", ORDERS)
def test_backward_formula_against_autograd_outside_of_the_range(orders):
    """First and second derivatives: those of the formula are taken by autograd, too."""
    x, coefficients, grid = problem(9, rows=2, points=40)
    weights = tuple(torch.randn(x.shape, generator=generator(k), **f64).requires_grad_() for k in orders)
    directions = [torch.randn(v.shape, generator=generator(7), **f64) for v in (x, coefficients)]
    x.requires_grad_(), coefficients.requires_grad_()
    values = evaluate_reference(x, coefficients, grid, orders)
    by_autograd = torch.autograd.grad(values, (x, coefficients), weights, create_graph=True)
    by_hand = spline_reference.backward(x, coefficients, grid, orders, weights)
    for a, b in zip(by_hand, by_autograd, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)
    second = [
        torch.autograd.grad(first, (x, coefficients, *weights), directions)
        for first in (by_hand, by_autograd)
    ]
    for a, b in zip(*second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-8)


# --- the engines ------------------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    if spline_native.library() is None:
        pytest.skip("no compiled splines on this machine")


def gradients(function, x, coefficients, weights):
    """Values, and the gradients of sum_k <w_k, phi^(k)> in x and in the coefficients."""
    x, coefficients = x.clone().requires_grad_(), coefficients.clone().requires_grad_()
    values = function(x, coefficients)
    total = sum((v * w).sum() for v, w in zip(values, weights, strict=True))
    return *(v.detach() for v in values), *torch.autograd.grad(total, (x, coefficients))


def largest_error(found, exact):
    return (found.double() - exact).abs().max().item()


@pytest.mark.parametrize("count", [5, 31, 63, 127])
@pytest.mark.parametrize("orders", ORDERS)
def test_compiled_values_and_gradients_against_float64(compiled, count, orders):
    """Errors are those of float32: in the k-th derivative u |x/h| max|a| (2/h)^k, u = 2^-24, times a few.

    An odd number of points, so that blocks of eight and the rest both run; some points outside of the range."""
    x, coefficients, grid = problem(count, rows=5, points=1003, reach=1.2, dtype=torch.float32, seed=count)
    weights = [torch.randn(x.shape, generator=generator(k)) for k in orders]
    assert spline_native.usable(x, coefficients)
    *values, g_x, g_coefficients = gradients(
        lambda x, c: evaluate(x, c, grid, orders), x, coefficients, weights
    )
    *exact, exact_x, exact_coefficients = gradients(
        lambda x, c: evaluate_reference(x, c, grid, orders),
        *(v.double() for v in (x, coefficients)),
        [w.double() for w in weights],
    )
    rounding = 2**-24 * (1 + x.abs().max().item() / grid.spacing)
    unit = rounding * coefficients.abs().max().item()
    for k, value, reference in zip(orders, values, exact, strict=True):
        assert largest_error(value, reference) < 8 * unit * (2 / grid.spacing) ** k
    assert largest_error(g_x, exact_x) < 32 * unit * (2 / grid.spacing) ** (max(orders) + 1)
    walk = (2 / grid.spacing) ** max(orders) * x.shape[1] ** 0.5  # a sum of 1003 terms of either sign
    size = exact_coefficients.abs().max().item() + walk
    assert largest_error(g_coefficients, exact_coefficients) < 8 * rounding * size


def check_against_scipy(count, orders, points):
    """float32 within 1e-5 of the largest number of its kind, for values and both gradients."""
    g, grid = generator(count), SplineGrid(count, -6.0, 6.0)
    x = (1.5 * torch.randn(3, points, generator=g)).clamp(-5.99, 5.99)
    coefficients = torch.randn(3, count, generator=g)
    weights = [torch.randn(x.shape, generator=g) for _ in orders]
    found = gradients(lambda x, c: evaluate(x, c, grid, orders), x, coefficients, weights)
    exact = scipy_values_and_gradients(x, coefficients, grid, orders, weights)
    for a, b in zip(found, exact, strict=True):
        assert np.abs(a.double().numpy() - b).max() < 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("count", [31, 63, 127])
@pytest.mark.parametrize("orders", [(0, 1), (0, 1, 2)])
def test_compiled_form_against_scipy(compiled, count, orders):
    check_against_scipy(count, orders, points=301)


def test_compiled_form_does_not_depend_on_the_number_of_threads(compiled):
    x, coefficients, grid = problem(63, rows=7, points=5001, reach=1.2, dtype=torch.float32)
    weights = [torch.randn(x.shape, generator=generator(k)) for k in range(3)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(gradients(lambda x, c: evaluate(x, c, grid, (0, 1, 2)), x, coefficients, weights))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_double_backward_through_the_compiled_form(compiled):
    """A gradient penalty: differentiate the derivative, compiled against float64 plain torch."""
    x, _, grid = problem(21, rows=2, points=301, reach=1.2, dtype=torch.float32)
    coefficients = torch.sin(grid.nodes()).float().expand(2, -1)

    def penalty(function, x, c):
        x, c = x.clone().requires_grad_(), c.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(x, c, grid, (0,))[0].sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, c))

    exact = penalty(evaluate_reference, x.double(), coefficients.double())
    for a, b in zip(penalty(evaluate, x, coefficients), exact, strict=True):
        assert largest_error(a, b) < 1e-4 * b.abs().max()


def test_double_backward_in_the_coefficients_alone(compiled):
    """x is data and needs no gradient, and only one of two results is used."""
    x, coefficients, grid = problem(9, rows=2, points=30, dtype=torch.float32)
    results = []
    for dtype in (torch.float32, torch.float64):
        c, w = coefficients.to(dtype).requires_grad_(), torch.ones(x.shape, dtype=dtype, requires_grad=True)
        slope = evaluate(x.to(dtype), c, grid, (0, 1))[1]
        (first,) = torch.autograd.grad(slope, c, w, create_graph=True)
        results += [first, *torch.autograd.grad(first.square().sum(), w)]
    for a, b in zip(results[:2], results[2:], strict=True):
        assert largest_error(a, b) < 1e-5 * b.abs().max()


def test_compiled_form_with_repeated_orders_and_views(compiled):
    x, coefficients, grid = problem(9, rows=4, points=40, dtype=torch.float32)
    a, b, c = evaluate(x, coefficients, grid, (1, 0, 1))
    assert torch.equal(a, c)
    assert torch.equal(b, evaluate(x, coefficients, grid)[0])
    turned = evaluate(x.t().contiguous().t(), coefficients, grid, (0,))[0]  # not contiguous
    assert torch.equal(turned, b)


def test_compiled_form_survives_values_that_are_not_finite(compiled):
    """A diverging training must end in nan, not in a crash: block of eight and rest both."""
    x, coefficients, grid = problem(9, rows=1, points=11, dtype=torch.float32)
    for value in (float("nan"), float("inf"), -float("inf")):
        for place in (0, 10):
            broken = x.clone()
            broken[0, place] = value
            result = evaluate(broken, coefficients, grid)[0][0]
            assert not torch.isfinite(result[place])
            assert torch.isfinite(result[torch.arange(11) != place]).all()


def test_which_tensors_the_compiled_form_serves(compiled):
    x, c = torch.zeros(2, 3), torch.zeros(2, 9)
    assert spline_native.usable(x, c)
    assert spline_native.usable(torch.nn.Parameter(x[:1, :1]), c)
    assert not spline_native.usable(x.to("meta"), c.to("meta"))
    assert not spline_native.usable(x.double(), c.double())
    assert not spline_native.usable(x, c.double())
    assert not spline_native.usable(x[:, :0], c)


def test_another_build_has_another_name(monkeypatch):
    """A library that a running process uses is never replaced: source, flags and processor are in its name."""
    name = spline_native._name()
    assert spline_native._name() == name
    monkeypatch.setattr(spline_native, "_FLAGS", ["-O2"])
    assert spline_native._name() != name


def test_a_damaged_library_is_built_again(tmp_path):
    """One that was cut off would end the process by a bus error as soon as it is called."""
    found = spline_native.library()
    if found is None:
        pytest.skip("the splines are not compiled here")
    whole = Path(found._name)
    content, copy = whole.read_bytes(), tmp_path / whole.name
    for damaged in (
        b"",
        content[:20_000],
        content[:-1],
        content + b"\0",
        content[:99] + b"\xff" + content[100:],
    ):
        copy.write_bytes(damaged)
        assert spline_native._whole(tmp_path, spline_native._name()) is None
    copy.write_bytes(content)
    assert spline_native._whole(tmp_path, spline_native._name()) == copy


def test_a_source_is_built_once_and_kept_whole(tmp_path, monkeypatch):
    """In a folder that does not exist yet; what is kept serves the next process, and nothing else is left behind."""
    root, sources = tmp_path / "not" / "yet", []
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(root))
    monkeypatch.setenv("GNC_NATIVE", "1")
    monkeypatch.setattr(spline_native, "_libraries", {})
    for number in (42, 43):
        sources.append(tmp_path / f"source{number}.cpp")
        sources[-1].write_text(f'extern "C" int gnc_number() {{ return {number}; }}\n')
        assert spline_native.library(sources[-1]).gnc_number() == number
    kept = sorted(root.iterdir())
    assert [path.suffix for path in kept] == [".so", ".so"]
    monkeypatch.setattr(spline_native, "_libraries", {})  # as in another process
    monkeypatch.setattr(cpp_extension, "load", None)
    assert [spline_native.library(source).gnc_number() for source in sources] == [42, 43]
    assert sorted(root.iterdir()) == kept


@pytest.mark.stress
def test_torch_compile_against_scipy(compiled, monkeypatch):
    """The engine for CUDA, compiled for the CPU: two graphs, forward and backward, serve points of any number."""
    monkeypatch.setattr(spline, "_engine", lambda *tensors: spline_compiled)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for points in (301, 500):
        check_against_scipy(63, (0, 1), points)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 2
    assert not spline_compiled.failed
    grid = SplineGrid(63, -6.0, 6.0)
    x = torch.linspace(-9, 9, 1600).view(4, 400)  # some of it outside
    coefficients = torch.randn(4, 63, generator=generator())
    ours = evaluate(x, coefficients, grid, (0, 1))
    exact = evaluate_reference(x.double(), coefficients.double(), grid, (0, 1))
    for a, b in zip(ours, exact, strict=True):
        assert largest_error(a, b) < 1e-5 * b.abs().max()


def test_torch_compile_that_fails_says_so_once_and_goes_on(monkeypatch):
    def broken(function, orders):
        raise NotImplementedError("no Triton here\nand a long story")

    monkeypatch.setattr(spline, "_engine", lambda *tensors: spline_compiled)
    monkeypatch.setattr(spline_compiled, "failed", False)
    monkeypatch.setattr(spline_compiled, "_compiled", broken)
    x, coefficients, grid = problem(9, rows=2, points=30, dtype=torch.float32)
    weights = [torch.ones_like(x), x]
    with pytest.warns(RuntimeWarning, match=r"could not compile the splines \(no Triton here\)") as said:
        found = gradients(lambda x, c: evaluate(x, c, grid, (0, 1)), x, coefficients, weights)
    assert len(said) == 1
    assert spline_compiled.failed
    exact = gradients(lambda x, c: evaluate_reference(x, c, grid, (0, 1)), x, coefficients, weights)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_memory_that_runs_out_is_no_failed_compilation(monkeypatch):
    def exhausted(function, orders):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(spline_compiled, "failed", False)
    monkeypatch.setattr(spline_compiled, "_compiled", exhausted)
    x, coefficients, grid = problem(9, rows=2, points=30, dtype=torch.float32)
    with pytest.raises(torch.OutOfMemoryError):
        spline_compiled.forward(x, coefficients, grid, (0,))
    assert not spline_compiled.failed


class OnCuda:
    """As much of a CUDA tensor as the choice of an engine looks at."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, dtype=torch.float32, count=6):
        self.dtype, self.numel = dtype, lambda: count


def test_which_tensors_go_through_torch_compile(monkeypatch):
    assert spline._engine(OnCuda(), OnCuda()) is spline_compiled
    assert spline._engine(OnCuda(count=1), OnCuda()) is spline_compiled
    monkeypatch.setattr(OnCuda, "device", property(lambda self: object()))  # two devices
    assert spline._engine(OnCuda(), OnCuda()) is None
    monkeypatch.setattr(OnCuda, "device", torch.device("cuda", 0))
    assert spline._engine(OnCuda(torch.float64), OnCuda(torch.float64)) is None
    assert spline._engine(OnCuda(count=0), OnCuda()) is None
    assert spline._engine(torch.zeros(2, 3).double(), torch.zeros(2, 9).double()) is None
    monkeypatch.setenv("GNC_NATIVE", "0")
    assert spline._engine(OnCuda(), OnCuda()) is None


SCRIPT = """
import warnings
import torch
from gnclib.spline import native as spline_native
from gnclib.spline import SplineGrid, evaluate
warnings.simplefilter("error")
x, c = torch.linspace(-2, 2, 50)[None], torch.sin(torch.arange(9.0))[None]
print(*torch.cat(evaluate(x, c, SplineGrid(9, -1.0, 1.0), (0, 1, 2))).flatten().tolist())
assert spline_native.library() is None
"""


def script_values(dtype):
    """The values that SCRIPT prints."""
    grid = SplineGrid(9, -1.0, 1.0)
    x, c = torch.linspace(-2, 2, 50)[None].to(dtype), torch.sin(torch.arange(9.0))[None].to(dtype)
    return torch.cat(evaluate(x, c, grid, (0, 1, 2))).flatten()


def test_switched_off_by_the_environment():
    """GNC_NATIVE=0 in a fresh process: no warning (they are errors there), no library, the right values."""
    environment = {**os.environ, "GNC_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    values = np.array(done.stdout.split(), dtype=float)
    np.testing.assert_allclose(values, script_values(torch.float64), rtol=1e-4, atol=1e-4)


def test_without_a_compiler_it_says_so_once_and_goes_on(tmp_path, monkeypatch):
    """A compiler that does not exist and an empty cache of built extensions: torch's own loader fails."""
    monkeypatch.setattr(spline_native, "_libraries", {})
    monkeypatch.setenv("GNC_NATIVE", "1")
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "empty"))
    with pytest.warns(RuntimeWarning, match=r"compiled splines could not be built \(Error building") as said:
        values = [script_values(torch.float32) for _ in range(3)]
    assert len([w for w in said if "compiled splines" in str(w.message)]) == 1
    assert spline_native.library() is None
    assert torch.equal(values[0], values[2])
    torch.testing.assert_close(values[0].double(), script_values(torch.float64), rtol=1e-4, atol=1e-4)
