"""CPU engine: C++ that is compiled on first use; nothing here is needed for a correct result.

A source beside a module is compiled by torch's own extension loader (a few seconds, once; the library is kept in
torch's extension cache). Where no compiler is at hand, or a build fails, :func:`library` answers None, a warning
says so once, and the caller goes on in plain torch. ``GNC_NATIVE=0`` in the environment switches all of it off.

Also here: the compiled form of :mod:`gnclib.spline.reference`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from gnclib.checks import hidden
from gnclib.io import write_bytes
from gnclib.spline import reference as spline_reference

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = [
    *("-O3", "-march=native", "-std=c++17", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
]
_lock = threading.Lock()
_libraries: dict[Path, ctypes.CDLL | None] = {}


def _name(source: Path = _SOURCE) -> str:
    """One library per source, flags, torch and processor: building another never replaces one that a process uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    parts = source.read_text(), *_FLAGS, torch.__version__, platform.machine(), processor
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"gnclib_{source.parent.name}_{source.stem}_{digest}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _whole(root: Path, name: str) -> Path | None:
    """The library that is kept under ``root``, if its content has the digest that is part of its name.

    One that was cut off would not be refused by the system: it would end the process.
    """
    for path in sorted(root.glob(f"{name}-*.so")):
        if path.stem == f"{name}-{_digest(path.read_bytes())}":
            return path
    return None


def _build(source: Path) -> ctypes.CDLL:
    from torch.utils import cpp_extension

    name = _name(source)
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    built = _whole(root, name)
    if built is None:
        root.mkdir(parents=True, exist_ok=True)
        # in a folder of its own: torch's loader locks its folder with a file, for which everybody else would wait
        # forever if this process were killed meanwhile
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=root) as folder:
            cpp_extension.load(
                name,
                [str(source)],
                extra_cflags=_FLAGS,
                extra_ldflags=["-fopenmp"],
                build_directory=folder,
                is_python_module=False,
            )
            content = (Path(folder) / f"{name}.so").read_bytes()
            built = write_bytes(root / f"{name}-{_digest(content)}.so", content)
    return ctypes.CDLL(str(built))


def library(source: Path = _SOURCE) -> ctypes.CDLL | None:
    """The compiled source, or None where it is switched off or could not be built (said once, by a warning)."""
    with _lock:
        if source not in _libraries:
            failed_before = None in _libraries.values()
            _libraries[source] = None
            if os.environ.get("GNC_NATIVE", "1") != "0":
                try:
                    _libraries[source] = _build(source)
                except Exception as error:
                    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                    if not failed_before:
                        warnings.warn(
                            f"gnclib: the compiled splines could not be built ({reason}); plain torch is used"
                            " instead, several times slower",
                            RuntimeWarning,
                            stacklevel=2,
                        )
        return _libraries[source]


def available(source: Path = _SOURCE) -> bool:
    """Whether there is a :func:`library`, as a constant of a traced program."""
    return library(source) is not None


# All that torch.compiler.assume_constant_result does, but for the import of the compiler.
available._dynamo_marked_constant = True


@cache
def _splines() -> ctypes.CDLL:
    """The :func:`library`, which is there where these are :func:`usable`."""
    found, pointer, number, integer = library(), ctypes.c_void_p, ctypes.c_float, ctypes.c_int
    head = [pointer] * 3 + [number] * 2 + [integer, ctypes.c_int64, ctypes.c_int64, integer] + [pointer] * 3
    found.gnc_spline_forward.argtypes = [*head, integer]
    found.gnc_spline_backward.argtypes = [*head, pointer, pointer, integer]
    found.gnc_spline_forward.restype = found.gnc_spline_backward.restype = None
    return found


def usable(x: Tensor, coefficients: Tensor) -> bool:
    """Whether the compiled form serves these tensors: float32 on CPU, not empty, and the library is there."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.dtype == coefficients.dtype == torch.float32
    return (
        plain
        and x.device.type == coefficients.device.type == "cpu"
        and x.numel() > 0
        and not hidden()
        and available()
    )


@cache
def _matrix() -> Tensor:
    return spline_reference.pieces(torch.float32)  # kept: the library gets its address


def forward(x: Tensor, coefficients: Tensor, grid, orders: tuple[int, ...]) -> tuple[Tensor, ...]:
    """:func:`gnclib.spline.reference.evaluate` for tensors which are :func:`usable` and distinct ``orders``."""
    x, coefficients = x.contiguous(), coefficients.contiguous()
    values = {k: torch.empty_like(x) for k in orders}
    _splines().gnc_spline_forward(*_arguments(x, coefficients, grid, values), torch.get_num_threads())
    return tuple(values[k] for k in orders)


def backward(
    x: Tensor, coefficients: Tensor, grid, orders: tuple[int, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """:func:`gnclib.spline.reference.backward`, likewise."""
    x, coefficients = x.contiguous(), coefficients.contiguous()
    by_order = {k: g.contiguous() for k, g in zip(orders, grads, strict=True)}
    wanted = torch.empty_like(x), torch.empty_like(coefficients)
    _splines().gnc_spline_backward(
        *_arguments(x, coefficients, grid, by_order),
        *(w.data_ptr() for w in wanted),
        torch.get_num_threads(),
    )
    return wanted


def _arguments(x: Tensor, coefficients: Tensor, grid, by_order: dict[int, Tensor]) -> tuple:
    return (
        *(v.data_ptr() for v in (x, coefficients, _matrix())),
        *(grid.low / grid.spacing, 1.0 / grid.spacing, grid.intervals, *x.shape),
        sum(1 << k for k in by_order),
        *(by_order[k].data_ptr() if k in by_order else None for k in range(3)),
    )
