"""Files that somebody else may have written, read with care: a file is what it should be, or a ValueError says why.

A file on disk is input like any other: cut off by a full disk, changed by a flipped bit, made by another program, or
made to do harm. Three things hold for every reader of the project, because they all go through here:

* *Bounded.* A file larger than its kind can be is refused unread; what is read is never more than that.
* *Strict.* JSON is that of the standard: no nan, no infinity (not even as 1e999), no name twice, no integer beyond 64
  bits, no nesting deeper than :data:`DEEPEST`. Tensors are those of safetensors, which holds numbers and nothing that
  could be executed, and every number in them is finite.
* *Checked.* :func:`demand` compares parsed JSON with a shape, written as plain Python::

      demand(values, {"name": str, "t": [float], "note?": str, "by image": {str: float}})

  names a string, a list of finite numbers, a name that may be missing, and a mapping with any names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnclib.io import files

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "demand", "demand_tensors", "generator_from", "in_parts", "moments", "number_of_log", "parse_json", "read_bytes",
    "read_json", "read_log", "read_tensors", "shape_of_fields",
]  # fmt: skip

#: bytes of the largest JSON file and of the largest file of tensors that are read
LARGEST_JSON, LARGEST_TENSORS = 20_000_000, 1_000_000_000
#: bytes of the largest header of a file of tensors
LARGEST_HEADER = 5_000_000
#: kinds of numbers in tensors
KINDS = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8")
#: lists and objects in each other
DEEPEST = 50


def read_bytes(path: str | os.PathLike, largest: int) -> bytes:
    """The content of a file of at most ``largest`` bytes.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is larger. OSError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():  # a folder, a pipe and a device are none; nor is a name that no file can have
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > largest else file.read(size + 1)
    if max(size, len(content)) > largest:
        raise ValueError(
            f"{path} has {max(size, len(content))} bytes, a file of its kind has at most {largest}"
        )
    return content


# JSON ----------------------------------------------------------------------------------------------------------------


def read_json(
    path: str | os.PathLike,
    kind: str,
    shape: Any = object,
    largest: int = LARGEST_JSON,
    *,
    plain: bool = True,
) -> Any:
    """What a file of strict JSON holds.

    Args:
        path: of the file. kind: what the file should be, in words, for the message.
        shape: of its content, see :func:`demand`. largest: number of its bytes.
        plain: False for a file from :func:`gnclib.io.files.encode`: nan and infinity are decoded, and they are numbers.

    Raises:
        FileNotFoundError: there is no such file. ValueError: anything is wrong with it; the message names it.
    """
    content = read_bytes(path, largest)
    try:
        value = parse_json(content)
        return demand(value if plain else files.decode(value), shape)
    except ValueError as error:
        raise ValueError(f"{path} is no {kind}: {error}") from None


def parse_json(content: bytes | str) -> Any:
    """The value of strict JSON, UTF-8. Raises ValueError."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    def real(digits: str) -> float:
        if abs(value := float(digits)) == float("inf"):
            raise ValueError(f"the number {digits[:30]} is too large")
        return value

    def integer(digits: str) -> int:
        if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**63:
            raise ValueError(f"the integer {digits[:30]} has more than 64 bits")
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError(f"a name occurs twice among {_some(name for name, _ in pairs)}")
        return found

    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(
            text, parse_constant=refuse, parse_float=real, parse_int=integer, object_pairs_hook=once
        )
    except RecursionError:
        raise ValueError(f"its lists and objects are nested more than {DEEPEST} deep") from None
    level = [value]  # all values that are this deep
    for _ in range(DEEPEST + 1):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return value
        level = [v for items in containers for v in (items.values() if isinstance(items, dict) else items)]
    raise ValueError(f"its lists and objects are nested more than {DEEPEST} deep")


def demand(value: Any, shape: Any, name: str = "") -> Any:
    """Check parsed JSON against a shape and return it unchanged.

    Args:
        value: from :func:`parse_json`.
        shape: ``str``, ``bool``, ``int``, ``float`` (an integer will do; finite), ``complex`` (a number that may be nan
            or infinite, as :func:`gnclib.io.files.decode` gives them), ``list``, ``dict``, ``None``, or ``object`` for
            anything; ``[shape]`` a list of such; a tuple of shapes, one of which it must have; ``{str: shape}`` an
            object with any names; any other dict an object with these names and no others, those that end in "?" may
            be missing.
        name: of the value, for the message.

    Raises:
        ValueError: it has another shape; the message says where.
    """
    what = name or "it"
    if isinstance(shape, tuple):
        for option in shape:
            try:
                return demand(value, option, name)
            except ValueError:
                continue
        raise ValueError(f"{what} must be {' or '.join(map(_called, shape))}, got {_brief(value)}")
    if isinstance(shape, list):
        for k, item in enumerate(demand(value, list, name)):
            demand(item, shape[0], f"{name}[{k}]")
    elif isinstance(shape, dict):
        demand(value, dict, name)
        if set(shape) == {str}:
            parts = {key: shape[str] for key in value}
        else:
            parts = {key.removesuffix("?"): kind for key, kind in shape.items()}
            needed = {key for key in shape if not key.endswith("?")}
            if wrong := [*(value.keys() - parts.keys()), *(needed - value.keys())]:
                raise ValueError(f"{name and name + ': '}these names are missing or unknown: {_some(wrong)}")
        for key, item in value.items():
            demand(item, parts[key], f"{name}.{key}" if name else key)
    elif not _is(value, shape):
        raise ValueError(f"{what} must be {_called(shape)}, got {_brief(value)}")
    return value


def _is(value: Any, kind: Any) -> bool:
    if kind is object:
        return True
    if kind is None:
        return value is None
    if isinstance(value, bool):
        return kind is bool
    if kind is complex:
        return isinstance(value, (int, float))
    if kind is float:
        return isinstance(value, (int, float)) and abs(value) < 1e300  # nan compares false
    return isinstance(value, kind)


def _called(kind: Any) -> str:
    if isinstance(kind, (dict, list)):
        kind = type(kind)
    names = {
        dict: "a JSON object",
        int: "an integer",
        bool: "true or false",
        float: "a float (any finite number)",
        complex: "a number",
        None: "null",
    }
    return names.get(kind) or f"a {kind.__name__}"


def _brief(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{_called(type(value))} of {len(value)}"
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _some(names: Iterable[Any]) -> str:
    names = sorted(str(name)[:40] for name in names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def shape_of_fields(cls: type) -> dict[str, Any]:
    """The shape of a dataclass whose fields are annotated int, float, bool or str, all of which may be missing."""
    kinds = {"int": int, "float": float, "bool": bool, "str": str}
    return {f"{name}?": kinds[kind] for name, kind in cls.__annotations__.items()}


# tensors -------------------------------------------------------------------------------------------------------------


def read_tensors(
    path: str | os.PathLike, largest: int = LARGEST_TENSORS
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, by name, and its metadata. They take as much memory as the file again.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is damaged or no such file, or holds nan or infinity.
    """
    content = read_bytes(path, largest)
    try:
        size = int.from_bytes(content[:8], "little")
        if len(content) < 8 or size > min(len(content) - 8, LARGEST_HEADER):
            raise ValueError("it does not begin as a safetensors file")
        header = demand(parse_json(content[8 : 8 + size]), dict, "its header")
        metadata = demand(header.get("__metadata__", {}), {str: str}, "its metadata")
        return _tensors(content), metadata
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _tensors(content: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

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
        raise ValueError(f"{what}: these tensors are missing or unknown: {_some(wrong)}")
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape or not found[name].is_floating_point():
            is_now = f"{tuple(found[name].shape)} of {found[name].dtype}"
            raise ValueError(f"{what}: {name} must hold floating point numbers {shape}, got {is_now}")
        if not bool((found[name].abs() <= 3e38).all()):
            raise ValueError(f"{what}: {name} holds numbers that are too large for float32")


def in_parts(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """The tensors NAME.REST by NAME and REST ("" for NAME alone). Raises ValueError for another NAME."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first not in parts:
            raise ValueError(f"there is a tensor {name[:40]!r}, which has no meaning here")
        parts[first][rest] = tensor
    return parts


def moments(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """The state of an optimiser from tensors INDEX.KEY, each shaped like its parameter or a single number.

    Raises:
        ValueError: another shape, a parameter that there is not, or parameters with different keys.
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
    import torch

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


# logs ----------------------------------------------------------------------------------------------------------------


def read_log(path: str | os.PathLike, columns: str) -> list[list[float]]:
    """The rows of a log.csv with these columns; the first one counts steps, which rise from row to row.

    The means of a row without steps are nan; no number is infinite.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is no such log; the message says in which line.
    """
    text = read_bytes(path, LARGEST_JSON).decode("utf-8", errors="replace")
    first, *lines = text.split("\n")
    if first != columns or lines[-1:] != [""]:
        raise ValueError(f"{path} is no log with the columns {columns}, or its end is missing")
    found: list[list[float]] = []
    for number, line in enumerate(lines[:-1], 2):
        try:
            row = [number_of_log(part) for part in line.split(",")]
            if len(row) != columns.count(",") + 1 or row[0] != int(row[0]) or row[0] < 0:
                raise ValueError("these are not its columns")
            if found and row[0] <= found[-1][0]:
                raise ValueError("its step does not come after the one before")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, {line[:80]!r}: {error}") from None
        found.append(row)
    return found


def number_of_log(text: str) -> float:
    """A number as a log has it: digits, sign, point and exponent, or nan. Raises ValueError."""
    if text != "nan" and not set(text) <= set("0123456789+-.e"):
        raise ValueError(f"{text[:30]!r} is no number")
    if abs(value := float(text)) >= 1e300:
        raise ValueError(f"{text[:30]} is too large")
    return value
