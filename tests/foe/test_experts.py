"""The compiled energy of one layer against plain torch in float64; energies under torch's tracing and transforms."""

import math
import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gnclib.foe import FieldsOfExperts, FoEConfig, experts
from gnclib.spline import SplineGrid, evaluate, native

OPERATIONS = [experts.slope, experts.curved, experts.value, experts.value_and_slope, experts._backward]


@pytest.fixture
def compiled():
    if not native.available(experts._SOURCE):
        pytest.skip("no compiler on this machine")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def problem(side=7, channels=48, nodes=95, batch=2, height=41, width=53):
    """Images, a direction, filters and coefficients; features leave the range of the nodes here and there."""
    grid = SplineGrid(nodes, -4.0, 5.0)
    z, v = random(batch, 1, height, width), random(batch, 1, height, width, seed=1)
    kernels = 2 * random(channels, 1, side, side, seed=2) / side
    return z, v, kernels, 1 + random(batch, channels, nodes, seed=3), grid


def definition(z, v, kernels, coefficients, grid):
    """Energy, gradient and Hessian times v: convolutions of torch in float64, the gradient by autograd."""
    z, v, kernels, coefficients = (a.double() for a in (z, v, kernels, coefficients))
    z = z.requires_grad_()
    energy = evaluate(F.conv2d(z, kernels), coefficients, grid)[0].sum((1, 2, 3))
    (slope,) = torch.autograd.grad(energy.sum(), z, create_graph=True)
    (curved,) = torch.autograd.grad(slope, z, v)
    return energy.detach(), slope.detach(), curved


def check(found, exact):
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    error = ((found.double() - exact).abs().max() / exact.abs().max()).item()
    assert error < 1e-4  # float32 features of size 100 in units of the spacing of random coefficients


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch": 7, "height": 17, "width": 16},
        {"batch": 1, "height": 7, "width": 7},  # one feature
        {"height": 38, "width": 48 + 6},  # one whole band and one whole block
        {"height": 39, "width": 49 + 6},
        {"side": 3, "channels": 5, "nodes": 5},
        {"side": 5, "channels": 24, "nodes": 96, "height": 100, "width": 9},
        {"side": 3, "channels": 1, "nodes": 33},
    ],
    ids=str,
)
def test_against_the_definition(compiled, changes):
    z, v, kernels, coefficients, grid = problem(**changes)
    energy, slope, curved = definition(z, v, kernels, coefficients, grid)
    weights = kernels, coefficients, grid
    assert experts.usable(z, kernels, coefficients)
    check(experts.value(z, *weights), energy)
    check(experts.slope(z, *weights), slope)
    check(experts.curved(z, v, *weights), curved)
    for found, exact in zip(experts.value_and_slope(z, *weights), (energy, slope), strict=True):
        check(found, exact)


@pytest.mark.parametrize(
    "changes", [{}, {"batch": 7, "height": 40, "width": 17}, {"side": 3, "channels": 5, "nodes": 9}], ids=str
)
@pytest.mark.parametrize("in_z", [True, False])
def test_backward_pass_against_autograd(compiled, changes, in_z):
    """The gradients of <v, slope(z)> in images, filters and coefficients, and a second derivative."""
    z, v, kernels, coefficients, grid = problem(**changes)
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [a.to(dtype, copy=True).requires_grad_() for a in (z, kernels, coefficients)]
        inputs[0].requires_grad_(in_z)
        wanted = inputs[0 if in_z else 1 :]
        if dtype == torch.float32:
            slope = experts.slope(*inputs, grid)
        else:
            slope = F.conv_transpose2d(
                evaluate(F.conv2d(inputs[0], inputs[1]), inputs[2], grid, (1,))[0], inputs[1]
            )
        first = torch.autograd.grad((slope * v.to(dtype)).sum(), wanted, retain_graph=True)
        again = torch.autograd.grad((slope * v.to(dtype)).sum(), wanted, create_graph=True)
        second = torch.autograd.grad(again[0].square().sum(), wanted)
        results.append((*first, *again, *second))
    for found, exact in zip(*results, strict=True):
        check(found.detach(), exact.detach())


def test_strides_do_not_matter(compiled):
    z, v, kernels, coefficients, grid = problem()
    expected = experts.curved(z, v, kernels, coefficients, grid)
    turned = [a.transpose(-1, -2).contiguous().transpose(-1, -2) for a in (z, v)]
    last = kernels.to(memory_format=torch.channels_last).contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        experts.curved(*turned, last, coefficients.expand(2, -1, -1).flip(-1).flip(-1), grid), expected
    )
    every_other = torch.stack([z, z + 1], -1)[..., 0]
    assert torch.equal(
        experts.slope(every_other, kernels, coefficients, grid), experts.slope(z, kernels, coefficients, grid)
    )


def test_threads_and_neighbours_in_a_batch_change_no_bit(compiled):
    z, v, kernels, coefficients, grid = problem(batch=3, height=100)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([*experts.value_and_slope(z, kernels, coefficients, grid)])
            results[-1].append(experts.curved(z, v, kernels, coefficients, grid))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    alone = experts.value_and_slope(z[1:2], kernels, coefficients[1:2], grid)
    assert all(torch.equal(a, b[1:2]) for a, b in zip(alone, results[0], strict=False))


def test_values_that_are_not_finite_stay_where_they_are(compiled):
    z, _, kernels, coefficients, grid = problem(batch=1)
    for value in (math.nan, math.inf):
        broken = z.clone()
        broken[0, 0, 20, 20] = value
        found = experts.slope(broken, kernels, coefficients, grid)
        far = torch.ones_like(z, dtype=torch.bool)
        far[..., 8:33, 8:33] = False
        assert torch.equal(found[far], experts.slope(z, kernels, coefficients, grid)[far])
        assert not torch.isfinite(experts.value(broken, kernels, coefficients, grid)).any()


def test_which_tensors_it_serves(compiled):
    z, _, kernels, coefficients, _ = problem()
    assert experts.usable(z, kernels, coefficients)
    assert not experts.usable(z.double(), kernels, coefficients)
    assert not experts.usable(z, kernels[..., :6, :6], coefficients)
    assert not experts.usable(z, kernels, torch.cat([coefficients, coefficients], -1))
    assert not torch.func.vmap(lambda z: torch.tensor(experts.usable(z, kernels, coefficients)))(
        z[None]
    ).any()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.op._name)
def test_operations_are_what_torch_takes_them_for(compiled, operation):
    z, v, kernels, coefficients, grid = problem(side=3, channels=5, nodes=11, height=9, width=10)
    v = (v,) if operation in (experts.curved, experts._backward) else ()
    last = (True,) if operation is experts._backward else ()
    differentiable = operation in (experts.slope, experts.value)
    z.requires_grad_(differentiable)
    checks = "test_schema", "test_faketensor", *(("test_autograd_registration",) if differentiable else ())
    torch.library.opcheck(
        operation.op, (z, *v, kernels, coefficients, grid.low, grid.high, *last), test_utils=checks
    )


def test_what_watches_operations_sees_them(compiled):
    """A dispatch mode of torch is told of the operation, and a traced program computes it for another image."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    z, _, kernels, coefficients, grid = problem(side=3, channels=5, nodes=11, height=9, width=10)
    with Watch():
        experts.slope(z, kernels, coefficients, grid)
    assert any("experts_slope" in name for name in seen)
    with warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(
            lambda z: experts.slope(z, kernels, coefficients, grid), z, check_trace=False
        )
    torch.testing.assert_close(traced(z + 0.1), experts.slope(z + 0.1, kernels, coefficients, grid))


def test_an_energy_is_computed_without_the_compiler_of_torch():
    """Its import takes two seconds, which every command and notebook would wait for; scipy.optimize a third of one."""
    program = """
import sys, torch
from gnclib import load_prior
prior, y = load_prior("R1"), torch.rand(1, 1, 32, 32)
prior.energy_and_grad(y, 0.01), prior.grad(y, 0.01), prior.hvp(y, 0.01, y), prior.dtau(y, 0.01)
assert "torch._dynamo" not in sys.modules
assert "scipy.optimize" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)


# --- every public result, however it is reached -----------------------------------------------------------


def prior_and_images(layers, batch=1, size=30):
    config = FoEConfig(
        layers=layers, features=8, kernel_size=3, nodes_x=15, nodes_tau=7, range=3.0, dilation=layers
    )
    prior = FieldsOfExperts(config, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    for w in prior.weights:
        w += 0.1 * random(*w.shape)
    return prior, torch.rand(batch, 1, size, size + 1, generator=torch.Generator().manual_seed(1))


METHODS = {
    "energy": lambda prior, y: prior.energy(y, 0.01),
    "grad": lambda prior, y: prior.grad(y, 0.01),
    "energy_and_grad": lambda prior, y: prior.energy_and_grad(y, 0.01),
    "inner_grad": lambda prior, y: prior.inner_grad(y, 0.01),
    "dtau": lambda prior, y: prior.dtau(y, 0.01),
    "hvp": lambda prior, y: prior.hvp(y, 0.01, y.flip(-1)),
    "denoiser": lambda prior, y: y - 0.01 * prior.grad(y, 0.01),
}


def same(found, expected, rtol=1e-4):
    found, expected = (a if isinstance(a, tuple) else (a,) for a in (found, expected))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= rtol * b.abs().max()


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("backend", ["aot_eager"])
def test_traced_results_are_those_of_eager_torch(layers, backend):
    """In one graph each."""
    prior, y = prior_and_images(layers)
    for method in METHODS.values():
        torch._dynamo.reset()
        traced = torch.compile(lambda y, method=method: method(prior, y), backend=backend, fullgraph=True)
        same(traced(y), method(prior, y))


@pytest.mark.stress
@pytest.mark.parametrize("layers", [1, 3])
def test_inductor(layers):
    prior, y = prior_and_images(layers)
    for name in ("energy", "grad", "denoiser", "hvp"):
        torch._dynamo.reset()
        same(torch.compile(lambda y, name=name: METHODS[name](prior, y))(y), METHODS[name](prior, y))


@pytest.mark.parametrize("layers", [1, 3])
def test_traced_backward_pass(layers):
    prior, y = prior_and_images(layers)
    for name in ("energy", "grad"):
        torch._dynamo.reset()
        results = []
        for f in (METHODS[name], torch.compile(METHODS[name], backend="aot_eager")):
            x = y.clone().requires_grad_()
            results.append(torch.autograd.grad(f(prior, x).square().sum(), x)[0])
        same(*results)


@pytest.mark.parametrize("layers", [1, 3])
def test_export(layers):
    prior, y = prior_and_images(layers)

    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.prior = prior

        def forward(self, y):
            return METHODS["denoiser"](self.prior, y)

    same(torch.export.export(Denoiser(), (y,)).module()(y), METHODS["denoiser"](prior, y))


@pytest.mark.parametrize("layers", [1, 3])
def test_function_transforms(layers):
    prior, y = prior_and_images(layers, batch=3, size=9)
    gradient = prior.grad(y, 0.01)
    same(torch.func.grad(lambda y: prior.energy(y, 0.01).sum())(y), gradient)
    same(torch.func.vmap(lambda y: prior.grad(y[None], 0.01)[0])(y), gradient)
    one, v = y[:1, :, :8, :9], random(1, 1, 8, 9)
    hessian = torch.func.hessian(lambda y: prior.energy(y, 0.01).sum())(one)
    same((hessian * v).sum((4, 5, 6, 7)), prior.hvp(one, 0.01, v), 1e-3)
    _, tangent = torch.func.jvp(lambda y: prior.grad(y, 0.01), (one,), (v,))
    same(tangent, prior.hvp(one, 0.01, v), 1e-3)


@pytest.mark.parametrize("layers", [1, 3])
def test_autocast(layers):
    prior, y = prior_and_images(layers)
    expected = METHODS["grad"](prior, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(METHODS["grad"](prior, y), expected, 0.05)
        found = [METHODS[name](prior, y) for name in ("energy", "dtau", "hvp")]
    same(found[0].float(), METHODS["energy"](prior, y), 0.05)
    same(found[1], METHODS["dtau"](prior, y), 1e-6)
    same(found[2], METHODS["hvp"](prior, y), 1e-6)
