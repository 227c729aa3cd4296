"""Tensors from safetensors files, read with care: bounded, finite, with the demanded names and shapes.

Safetensors hold numbers and nothing that could be executed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from safetensors.torch import load
from torch import Tensor

from gnclib.io.reading import check, parse_json, read_bytes, some

#: bytes of the largest file of tensors that is read, and of its largest header
LARGEST, LARGEST_HEADER = 1_000_000_000, 5_000_000
#: kinds of numbers in tensors
KINDS = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8")


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, by name, and its metadata. They take as much memory as the file again.

    Raises FileNotFoundError, or ValueError if it is damaged or no such file, or holds nan or infinity.
    """
    content = read_bytes(path, LARGEST)
    try:
        size = int.from_bytes(content[:8], "little")
        if len(content) < 8 or size > min(len(content) - 8, LARGEST_HEADER):
            raise ValueError("it does not begin as a safetensors file")
        header = check(parse_json(content[8 : 8 + size]), dict, "its header")
        metadata = check(header.get("__metadata__", {}), dict[str, str], "its metadata")
        return _tensors(content), metadata
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _tensors(content: bytes) -> dict[str, Tensor]:
    try:
        tensors = load(content)
    except (
        Exception
    ) as error:  # besides its own it lets through what torch says of shapes and kinds of numbers
        raise ValueError(f"{type(error).__name__}: {error}") from None
    for name, tensor in tensors.items():
        if str(tensor.dtype).removeprefix("torch.") not in KINDS:
            raise ValueError(f"the tensor {name} is of the kind {tensor.dtype}, which is not used here")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"the tensor {name} holds nan or infinity")
    return tensors


def demand_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise ValueError unless there are these names with these shapes, all of them floating point numbers."""
    if wrong := found.keys() ^ wanted.keys():
        raise ValueError(f"{what}: these tensors are missing or unknown: {some(wrong)}")
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape or not found[name].is_floating_point():
            is_now = f"{tuple(found[name].shape)} of {found[name].dtype}"
            raise ValueError(f"{what}: {name} must hold floating point numbers {shape}, got {is_now}")
        if not bool((found[name].abs() <= 3e38).all()):
            raise ValueError(f"{what}: {name} holds numbers that are too large for float32")


def in_parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors NAME.REST by NAME and REST, "" for NAME alone."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = tensor
    return parts


def moments(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """The state of an optimiser from tensors INDEX.KEY, each shaped like its parameter or a single number.

    Raises ValueError for another shape, a parameter that there is not, or parameters with different keys.
    """
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if not (index.isascii() and index.isdigit() and int(index) < len(shapes) and key):
            raise ValueError(f"the optimiser has no state {name[:40]!r}")
        if tuple(tensor.shape) not in ((), shapes[int(index)]) or not tensor.is_floating_point():
            raise ValueError(f"the state {name[:40]!r} of the optimiser has the shape {tuple(tensor.shape)}")
        if key not in ("exp_avg", "max_exp_avg") and bool((tensor < 0).any()):
            raise ValueError(
                f"the state {name[:40]!r} of the optimiser, a count or a mean of squares, is negative"
            )
        found.setdefault(int(index), {})[key] = tensor
    if len({frozenset(keys) for keys in found.values()}) > 1:
        raise ValueError("parts of the state of the optimiser are missing")
    return found


def generator_from(state: Tensor) -> torch.Generator:
    """The random generator on the CPU with this state. Raises ValueError if it is none."""
    generator, trial = torch.Generator(), torch.Generator()
    try:
        generator.set_state(state)
        trial.set_state(state)
        drawn = torch.randn(2, generator=trial, dtype=torch.float64), torch.randn(2, generator=trial)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the state of the random generator is damaged: {error}") from None
    if not all(bool(values.isfinite().all()) for values in drawn):
        raise ValueError("the state of the random generator is damaged: it gives nan")
    return generator
