"""Strict JSON and settings: what somebody else may have written is as it should be, or a ValueError says why not.

A file on disk is input like any other: cut off by a full disk, changed by a flipped bit, made by another program, or
made to do harm. Every reader of JSON in the project goes through :func:`read_json`:

* *Bounded.* A file larger than its kind can be is refused unread; what is read is never more than that.
* *Strict.* JSON is that of the standard: no nan, no infinity, no number beyond 1e300, no name twice, no integer beyond
  64 bits, no nesting deeper than :data:`DEEPEST`.
* *Checked.* The content is compared with a type by pydantic, strictly (an integer is no bool, text is no number), with
  no other names than those of the type. Any type will do; records are a ``TypedDict`` of ``typing_extensions``::

      class Entry(TypedDict):
          name: str
          t: list[float]
          note: NotRequired[str]

      entries = read_json(path, "file of entries", dict[str, Entry])

Settings are dataclasses made by :func:`settings`, whose fields are checked in the same way.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict, TypeAdapter, ValidationError

#: bytes of the largest JSON file that is read
LARGEST_JSON = 20_000_000
#: lists and objects in each other
DEEPEST = 50
#: numbers of this size and beyond mean nothing here
TOO_LARGE = 1e300
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def read_bytes(path: str | os.PathLike, largest: int) -> bytes:
    """The content of a file of at most ``largest`` bytes.

    Raises ValueError for a larger one, and FileNotFoundError for a folder, a pipe or a device, too.
    """
    path = Path(path)
    if not path.is_file():  # nor is a name that no file can have
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


def read_json(path: str | os.PathLike, kind: str, model: Any = object, largest: int = LARGEST_JSON) -> Any:
    """What a file of strict JSON holds, of a type as :func:`check` takes it; ``kind`` says in words what it should be.

    :func:`gnclib.io.files.decode` turns what stands for nan and infinity into numbers. Raises FileNotFoundError or
    ValueError, which says what is wrong and where.
    """
    content = read_bytes(path, largest)
    try:
        return check(parse_json(content), model)
    except ValueError as error:
        raise ValueError(f"{path} is no {kind}: {error}") from None


def parse_json(content: bytes | str) -> Any:
    """The value of strict JSON, UTF-8. Raises ValueError."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    def real(digits: str) -> float:
        if abs(value := float(digits)) >= TOO_LARGE:
            raise ValueError(f"the number {digits[:30]} is too large")
        return value

    def integer(digits: str) -> int:
        if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**63:
            raise ValueError(f"the integer {digits[:30]} has more than 64 bits")
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError(f"a name occurs twice among {some(name for name, _ in pairs)}")
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


def some(names: Iterable[Any]) -> str:
    """The first eight of the names in alphabetical order, each cut off after 40 characters."""
    names = sorted(str(name)[:40] for name in names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


# types ---------------------------------------------------------------------------------------------------------------


def check(value: Any, model: Any, name: str = "") -> Any:
    """Parsed JSON as a value of a type; integers become floats where the type says float.

    The model is a type that pydantic knows: ``dict[str, list[float]]``, a ``TypedDict``, a ``Literal``, ... Not a
    dataclass: that is made by ``Settings(**check(value, dict))``. Raises ValueError for another type; the message says
    where, and begins with the name.
    """
    try:
        return _adapter(model).validate_python([value])[0]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(_complaint(first, name, first["loc"][1:])) from None


@functools.lru_cache(maxsize=64)
def _adapter(model: Any) -> TypeAdapter:
    return TypeAdapter(list[model], config=STRICT)  # so a TypedDict takes the configuration, too


@dataclass_transform(frozen_default=True)
def settings(cls: type) -> type:
    """Class decorator: a frozen dataclass whose fields are checked by their types when one is made or replaced.

    The ``description`` of a field's type says what its values must be, as the message has it::

        Rate = Annotated[float, Field(gt=0, lt=1, description="must lie in (0, 1)")]

    An error is a ValueError of one line with field, range and value: ``lr must lie in (0, 1), got 3.0``.
    """
    made = pydantic.dataclasses.dataclass(frozen=True, config=STRICT)(cls)
    begin = made.__init__

    @functools.wraps(begin)
    def checked(self, *values: Any, **named: Any) -> None:
        try:
            begin(self, *values, **named)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            known = made.__pydantic_fields__.get(first["loc"][0] if first["loc"] else "")
            raise ValueError(_complaint(first, "", first["loc"], known and known.description)) from None

    made.__init__ = checked
    return made


def _complaint(error: Any, name: str, places: Iterable[str | int], range_: str | None = None) -> str:
    """One error of pydantic in one line: where, what should be there, what is there."""
    where = name
    for place in places:
        where += f"[{place}]" if isinstance(place, int) else f"{'.' if where else ''}{place[:40]}"
    kind, message = error["type"], error["msg"]
    if kind in ("missing", "extra_forbidden", "unexpected_keyword_argument"):
        return f"these names are missing or unknown: {where}"
    if kind == "value_error":  # of a validator of ours
        return f"{where and where + ' '}{message.removeprefix('Value error, ')}"
    message = range_ or message.replace("Input should be", "must be").replace("Input should", "must")
    return f"{where or 'it'} {message}, got {_brief(error['input'])}"


def _brief(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return repr(value)[:60]
