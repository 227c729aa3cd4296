"""The compiled spline evaluation on CPU, built on first use; nothing here is needed for a correct result.

``spline_native.cpp`` is compiled by torch's own extension loader (about two seconds, once; the library is kept in
torch's extension cache). Where no compiler is at hand, or the build fails, :func:`usable` answers False, a warning
says so once, and :mod:`gnclib.spline` goes on in plain torch. Set the environment variable ``GNC_NATIVE=0`` to switch
it off.
"""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("spline_native.cpp")
_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_tried = False


def _build() -> ctypes.CDLL:
    from torch.utils import cpp_extension

    flags = [
        "-O3",
        "-march=native",
        "-std=c++17",
        "-fopenmp",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
    ]
    path = cpp_extension.load(
        "gnclib_spline",
        [str(_SOURCE)],
        extra_cflags=flags,
        extra_ldflags=["-fopenmp"],
        is_python_module=False,
    )
    library = ctypes.CDLL(
        path or os.path.join(cpp_extension._get_build_directory("gnclib_spline", False), "gnclib_spline.so")
    )
    pointer, number, integer = ctypes.c_void_p, ctypes.c_float, ctypes.c_int
    head = [pointer] * 3 + [number] * 2 + [integer, ctypes.c_int64, ctypes.c_int64, integer] + [pointer] * 3
    library.gnc_spline_forward.argtypes = [*head, integer]
    library.gnc_spline_backward.argtypes = [*head, pointer, pointer, integer]
    library.gnc_spline_forward.restype = library.gnc_spline_backward.restype = None
    return library


def library() -> ctypes.CDLL | None:
    """The compiled library, or None where it is switched off or could not be built (said once, by a warning)."""
    global _library, _tried
    with _lock:
        if not _tried:
            _tried = True
            if os.environ.get("GNC_NATIVE", "1") != "0":
                try:
                    _library = _build()
                except Exception as error:
                    reason = (
                        str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                    )
                    warnings.warn(
                        f"gnclib: the compiled splines could not be built ({reason}); plain torch is used instead,"
                        " several times slower",
                        RuntimeWarning,
                        stacklevel=2,
                    )
    return _library


def usable(x: Tensor, coefficients: Tensor) -> bool:
    """Whether the compiled form serves these tensors: float32 on CPU, not empty, and the library is there."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.dtype == coefficients.dtype == torch.float32
    return (
        plain
        and x.device.type == coefficients.device.type == "cpu"
        and x.numel() > 0
        and library() is not None
    )


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, coefficients, grid, matrix, orders, reference):
        x, coefficients = x.contiguous(), coefficients.contiguous()
        ctx.save_for_backward(x, coefficients)
        ctx.settings = grid, matrix, orders, reference
        outputs = {k: torch.empty_like(x) for k in orders}
        library().gnc_spline_forward(
            *_arguments(x, coefficients, grid, matrix, outputs), torch.get_num_threads()
        )
        return tuple(outputs[k] for k in orders)

    @staticmethod
    def backward(ctx, *grads):
        x, coefficients = ctx.saved_tensors
        grid, matrix, orders, reference = ctx.settings
        if torch.is_grad_enabled():  # a derivative of this derivative is wanted: leave it to the reference
            wanted = torch.autograd.grad(
                reference(x, coefficients, grid, orders), (x, coefficients), grads, create_graph=True
            )
        else:
            by_order = {k: g.contiguous() for k, g in zip(orders, grads, strict=True)}
            wanted = torch.empty_like(x), torch.empty_like(coefficients)
            library().gnc_spline_backward(
                *_arguments(x, coefficients, grid, matrix, by_order),
                *(w.data_ptr() for w in wanted),
                torch.get_num_threads(),
            )
        return *wanted, None, None, None, None


def _arguments(x: Tensor, coefficients: Tensor, grid, matrix: Tensor, by_order: dict[int, Tensor]) -> tuple:
    return (
        *(
            x.data_ptr(),
            coefficients.data_ptr(),
            matrix.data_ptr(),
            grid.low / grid.spacing,
            1.0 / grid.spacing,
        ),
        *(grid.intervals, x.shape[0], x.shape[1], sum(1 << k for k in by_order)),
        *(by_order[k].data_ptr() if k in by_order else None for k in range(3)),
    )


def evaluate(
    x: Tensor, coefficients: Tensor, grid, matrix: Tensor, orders: tuple[int, ...], reference
) -> tuple[Tensor, ...]:
    """As :func:`gnclib.spline.evaluate_reference`, which is passed as ``reference`` for higher derivatives.

    ``matrix`` (5, 5), float32: row m has the powers of f of the m-th basis function on an interval.
    """
    distinct = tuple(dict.fromkeys(orders))
    values = dict(
        zip(distinct, _Evaluate.apply(x, coefficients, grid, matrix, distinct, reference), strict=True)
    )
    return tuple(values[k] for k in orders)
