r"""The energy of one layer on CPU without features in memory: compiled, as operations that torch can trace.

For images z that are already continued and scaled, filters K and one spline per image and channel,

    value(z) = < phi(K z), 1 >,    slope(z) = K^T phi'(K z),    curved(z, v) = K^T [phi''(K z) K v]:

the energy, its gradient and its Hessian times v. ``experts.cpp`` computes each of them tile by tile while the features
are in cache. The definition is :class:`gnclib.foe.FieldsOfExperts` in plain torch, which takes over wherever
:func:`usable` says no: another dtype or device, no compiler, filters of another side than 3, 5 or 7, more than 96
nodes, transforms of torch.func.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from gnclib.checks import hidden, transformed
from gnclib.foe.filters import convolve, convolve_adjoint
from gnclib.spline import SplineGrid, evaluate, native

SIDES = (3, 5, 7)
MOST_NODES = 96
_SOURCE = Path(__file__).with_name("experts.cpp")
_SLOPE, _CURVED, _VALUE = range(3)


def usable(z: Tensor, kernels: Tensor, coefficients: Tensor) -> bool:
    """Whether the compiled form serves these tensors: images (B, 1, H, W), filters (C, 1, s, s), (B, C, N_x)."""
    return (
        all(v.device.type == "cpu" and v.dtype == torch.float32 for v in (z, kernels, coefficients))
        and kernels.shape[-1] in SIDES
        and coefficients.shape[-1] <= MOST_NODES
        and not transformed()
        and native.available(_SOURCE)
    )


@cache
def _library() -> ctypes.CDLL:
    found = native.library(_SOURCE)
    pointer, number, integer, long = ctypes.c_void_p, ctypes.c_float, ctypes.c_int, ctypes.c_int64
    head = [pointer] * 4 + [long] * 4 + [integer] * 2 + [number] * 2
    found.gnc_experts.argtypes = [*head, integer, pointer, pointer, integer]
    found.gnc_experts_backward.argtypes = [*head, pointer, pointer, pointer, integer]
    return found


def _run(function, inputs: tuple[Tensor | None, ...], low: float, high: float, *rest) -> None:
    """A function of the library for z, a direction or None, filters and coefficients; tensors by their addresses."""
    inputs = [None if v is None else v.contiguous() for v in inputs]
    z, _, kernels, coefficients = inputs
    shape = *z[:, 0].shape, len(kernels), kernels.shape[-1], coefficients.shape[-1]
    spacing = (high - low) / (shape[-1] - 4)
    arguments = *inputs, *shape, low / spacing, 1 / spacing, *rest, torch.get_num_threads()
    if function(*(v.data_ptr() if isinstance(v, Tensor) else v for v in arguments)):
        raise ValueError(
            f"the compiled energy takes filters of side 3, 5 or 7 and {MOST_NODES} nodes, got {shape}"
        )


def _operation(name: str) -> Callable:
    """Register a function as an operation of torch, ``op``, which tracing, transforms and autograd see.

    Where none of them is at work it is called as it is: that saves 0.1 ms a time, and the first time two seconds in
    which torch imports its compiler. Callers give a grid, which stands for its ends.
    """

    def register(function: Callable) -> Callable:
        op = torch.library.custom_op(f"gnclib::experts_{name}", mutates_args=())(function)

        @wraps(function)
        def call(*inputs):
            inputs = [a for v in inputs for a in ((v.low, v.high) if isinstance(v, SplineGrid) else (v,))]
            tensors = [v for v in inputs if isinstance(v, Tensor)]
            recorded = torch.is_grad_enabled() and any(v.requires_grad for v in tensors)
            watched = hidden() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0
            plain = {type(v) for v in tensors} <= {Tensor, Parameter}
            return (function if plain and not recorded and not watched else op)(*inputs)

        call.op = op
        return call

    return register


@_operation("slope")
def slope(z: Tensor, kernels: Tensor, coefficients: Tensor, low: float, high: float) -> Tensor:
    """K^T phi'(K z), shaped like z; differentiable in all of them."""
    out = z.new_empty(z.shape)
    _run(_library().gnc_experts, (z, None, kernels, coefficients), low, high, _SLOPE, out, None)
    return out


@_operation("curved")
def curved(z: Tensor, v: Tensor, kernels: Tensor, coefficients: Tensor, low: float, high: float) -> Tensor:
    """K^T [phi''(K z) K v], shaped like z; not differentiable."""
    out = z.new_empty(z.shape)
    _run(_library().gnc_experts, (z, v, kernels, coefficients), low, high, _CURVED, out, None)
    return out


@_operation("value")
def value(z: Tensor, kernels: Tensor, coefficients: Tensor, low: float, high: float) -> Tensor:
    """< phi(K z), 1 >: (B,); differentiable in z."""
    energy = z.new_empty(len(z), dtype=torch.float64)
    _run(_library().gnc_experts, (z, None, kernels, coefficients), low, high, _VALUE, None, energy)
    return energy.to(z.dtype)


@_operation("value_and_slope")
def value_and_slope(
    z: Tensor, kernels: Tensor, coefficients: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Both in little more time than one; not differentiable."""
    out, energy = z.new_empty(z.shape), z.new_empty(len(z), dtype=torch.float64)
    _run(_library().gnc_experts, (z, None, kernels, coefficients), low, high, _VALUE, out, energy)
    return energy.to(z.dtype), out


@_operation("backward")
def _backward(
    z: Tensor, v: Tensor, kernels: Tensor, coefficients: Tensor, low: float, high: float, in_z: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of <v, slope(z)> in z (if wanted; else of no size), in the filters and in the coefficients."""
    out = z.new_empty(z.shape if in_z else 0)
    g = kernels.new_empty(kernels.shape), coefficients.new_empty(coefficients.shape)
    function = _library().gnc_experts_backward
    _run(function, (z, v, kernels, coefficients), low, high, out if in_z else None, *g)
    return out, *g


slope.op.register_fake(lambda z, *_: z.new_empty(z.shape))
curved.op.register_fake(lambda z, *_: z.new_empty(z.shape))
value.op.register_fake(lambda z, *_: z.new_empty(len(z)))
value_and_slope.op.register_fake(lambda z, *_: (z.new_empty(len(z)), z.new_empty(z.shape)))
_backward.op.register_fake(
    lambda z, v, *rest: (z.new_empty(z.shape if rest[-1] else 0), *(a.new_empty(a.shape) for a in rest[:2]))
)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.ends = inputs[3:]


def _slope_backward(ctx, g):
    inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():  # to be differentiated again
        return *_plain_backward(inputs, needed, g, *ctx.ends), None, None
    if not any(needed[1:]):
        return curved(inputs[0], g, *inputs[1:], *ctx.ends), None, None, None, None
    found = _backward(inputs[0], g, *inputs[1:], *ctx.ends, needed[0])
    return *(a if wanted else None for a, wanted in zip(found, needed, strict=True)), None, None


def _plain_backward(inputs: tuple[Tensor, ...], needed: tuple[bool, ...], g: Tensor, low: float, high: float):
    z, kernels, coefficients = inputs
    grid = SplineGrid(coefficients.shape[-1], low, high)
    (slopes,) = evaluate(convolve(z, kernels), coefficients, grid, (1,))
    wanted = [a for a, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(convolve_adjoint(slopes, kernels), wanted, g, create_graph=True))
    return [next(found) if need else None for need in needed]


def _value_backward(ctx, g):
    z, kernels, coefficients = ctx.saved_tensors
    if any(ctx.needs_input_grad[1:3]):
        raise RuntimeError("experts.value is differentiable in the images only")
    return g[:, None, None, None] * slope(z, kernels, coefficients, *ctx.ends), None, None, None, None


slope.op.register_autograd(_slope_backward, setup_context=_keep)
value.op.register_autograd(_value_backward, setup_context=_keep)
