"""CUDA engine: the splines in float32 through torch.compile, which makes Triton kernels of them.

Both passes of :mod:`gnclib.spline.reference` are compiled as they stand, each into one graph without breaks and with
dynamic shapes, once per set of orders. Where that fails a warning says so once, and the same formulas run in plain
torch. ``GNC_NATIVE=0`` switches it off.

**Never run on a GPU so far.** The tests compile it for the CPU, where torch.compile makes C++ of the same graphs, and
compare with float64. The backward pass adds up with atomic operations, whose order is not fixed: gradients in the
coefficients agree from run to run only to rounding, unless torch.use_deterministic_algorithms(True) is set.
"""

from __future__ import annotations

import os
import threading
import warnings
from functools import cache, partial

import torch
from torch import Tensor

from gnclib.checks import hidden
from gnclib.spline import reference as spline_reference

_lock = threading.Lock()
#: whether a compilation has failed in this process, so that plain torch is used
failed = False


def usable(x: Tensor, coefficients: Tensor) -> bool:
    """Whether this engine serves these tensors: float32 on one CUDA device, not empty, and not switched off."""
    return (
        x.is_cuda
        and x.device == coefficients.device
        and x.dtype == coefficients.dtype == torch.float32
        and x.numel() > 0
        and not failed
        and os.environ.get("GNC_NATIVE", "1") != "0"
        and not hidden()  # torch.func has no rule for it
    )


@cache
def _compiled(function, orders: tuple[int, ...]):
    return torch.compile(function, fullgraph=True, dynamic=True)


def _call(function, x: Tensor, coefficients: Tensor, grid, orders: tuple[int, ...], *grads):
    """The function, compiled; as it stands where that fails, for this call and for good."""
    global failed
    x, coefficients = x.detach(), coefficients.detach()  # requires_grad would be compiled in
    arguments = x, coefficients, grid, orders, *grads
    if not failed:
        try:
            with _lock:
                return _compiled(function, orders)(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"gnclib: torch.compile could not compile the splines ({reason}); plain torch is used instead,"
                " several times slower",
                RuntimeWarning,
                stacklevel=2,
            )
    return function(*arguments)


#: :func:`gnclib.spline.reference.evaluate` and :func:`gnclib.spline.reference.backward`, compiled
forward = partial(_call, spline_reference.evaluate)
backward = partial(_call, spline_reference.backward)
