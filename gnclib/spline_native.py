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

    flags = ["-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
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
    head = [pointer, pointer, number, number, integer, ctypes.c_int64, ctypes.c_int64, integer]
    library.gnc_spline_forward.argtypes = [*head, pointer, pointer, pointer, integer]
    library.gnc_spline_backward.argtypes = [*head, pointer, pointer, pointer, pointer, pointer, integer]
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
                        f"gnclib: the compiled splines could not be built ({reason}); plain torch is used, several times slower",
                        RuntimeWarning,
                        stacklevel=2,
                    )
    return _library


def usable(x: Tensor, table: Tensor) -> bool:
    """Whether the compiled form serves these tensors: float32 on CPU, not empty, and the library is there."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.dtype == table.dtype == torch.float32
    return plain and x.device.type == table.device.type == "cpu" and x.numel() > 0 and library() is not None


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, table, low, spacing, orders, reference):
        x, table = x.contiguous(), table.contiguous()
        ctx.save_for_backward(x, table)
        ctx.settings = low, spacing, orders, reference
        outputs = {k: torch.empty_like(x) for k in orders}
        mask = sum(1 << k for k in outputs)
        library().gnc_spline_forward(
            *_head(x, table, low, spacing),
            mask,
            *(_address(outputs.get(k)) for k in range(3)),
            torch.get_num_threads(),
        )
        return tuple(outputs[k] for k in orders)

    @staticmethod
    def backward(ctx, *grads):
        x, table = ctx.saved_tensors
        low, spacing, orders, reference = ctx.settings
        if torch.is_grad_enabled():  # a derivative of this derivative is wanted: leave it to the reference
            return *torch.autograd.grad(
                reference(x, table, low, spacing, orders), (x, table), grads, create_graph=True
            ), *[None] * 4
        by_order = {k: g.contiguous() for k, g in zip(orders, grads, strict=True)}
        g_x, g_table = torch.empty_like(x), torch.empty_like(table)
        library().gnc_spline_backward(
            *_head(x, table, low, spacing),
            sum(1 << k for k in by_order),
            *(_address(by_order.get(k)) for k in range(3)),
            _address(g_x),
            _address(g_table),
            torch.get_num_threads(),
        )
        return g_x, g_table, None, None, None, None


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _head(x: Tensor, table: Tensor, low: float, spacing: float) -> tuple:
    return x.data_ptr(), table.data_ptr(), low, 1.0 / spacing, table.shape[1], x.shape[0], x.shape[1]


def evaluate(
    x: Tensor, table: Tensor, low: float, spacing: float, orders: tuple[int, ...], reference
) -> tuple[Tensor, ...]:
    """As :func:`gnclib.spline.evaluate_polynomials`, which is passed as ``reference`` for higher derivatives."""
    distinct = tuple(dict.fromkeys(orders))
    values = dict(zip(distinct, _Evaluate.apply(x, table, low, spacing, distinct, reference), strict=True))
    return tuple(values[k] for k in orders)
