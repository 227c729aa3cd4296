"""Small files, written atomically, and strict JSON text, the same for the same content.

Every file of the project that somebody may look at while it is written (figures, ledgers, denoised images) goes through
`write_bytes`: the bytes land in a temporary file beside the target, and `os.replace` then puts the whole file in place.
A reader sees the old file or the new one, never a half of one. What a killed process leaves of its temporary file goes
with the next write of the same file.

Strict JSON knows neither nan nor infinity; `encode` writes them as ``{"float": "nan"}`` and `decode` reads them back.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Write `content` to `path` atomically; missing folders are made, a file that is replaced leaves its mode.

    A link stays one: what it leads to is written. Raises IsADirectoryError for a folder, and OSError for a device or a
    pipe and where it cannot be written; what was there is then as it was.
    """
    given, path = Path(path), Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{given} is a folder, not a file: give the name of a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{given} is a device or a pipe: give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_remains(path.parent, path.name)
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            with suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it replaces anything: power may fail, too
            if fcntl:  # while the lock is held
                os.replace(temporary, path)
        if not fcntl:  # Windows renames no open file
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return given


def _temporary(path: Path) -> tuple[int, Path]:
    """A new temporary file beside `path`, locked where the system can do that, so that nobody takes it for a remain."""
    while True:
        name = path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(4)}.tmp")
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with suppress(OSError):  # a file system without locks
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink or not fcntl:  # else it was removed before it was locked
            return handle, name
        os.close(handle)


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:200])  # names have at most 255 bytes


def remove_remains(folder: str | os.PathLike, name: str = "") -> None:
    """Remove the temporary files of processes that were killed while they wrote into a folder, not those below it.

    With a `name` only the remains of the file of this name. A process that still writes holds the lock of its file,
    which stays. On Windows, without such locks, all stay.
    """
    if not fcntl:
        return
    written = re.escape(_shortened(name)) or ".+"
    mine = re.compile(rf"\.{written}\.[a-z0-9_]{{8}}\.tmp")
    for other in [entry.path for entry in os.scandir(folder) if mine.fullmatch(entry.name)]:
        with suppress(OSError), open(other, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(other)


@contextmanager
def held(folder: str | os.PathLike, what: str) -> Iterator[None]:
    """Nobody else holds the folder meanwhile: neither another process nor another thread.

    The lock is a file `.lock` in the folder, which goes when the folder is free again; a lock whose process was killed
    is free. Raises RuntimeError, with a message that begins with `what`, if somebody else holds it.
    """
    lock = FileLock(Path(folder) / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(
            f"{what} is at work in {folder} already: wait for it, or give another folder"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            os.unlink(lock.lock_file)
        lock.release()


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write `text` to `path` as UTF-8 with ``\\n`` line ends, atomically.

    What UTF-8 cannot hold (bytes of a file name that are no text) becomes an escape like ``\\udcff``, as in JSON.
    """
    return write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encode(value: Any, digits: int | None = None) -> Any:
    """Turn numbers, arrays, tensors, mappings and sequences into strict JSON data.

    Arrays and tensors become nested lists, their 0-dimensional cases numbers. nan and the infinities become
    ``{"float": "nan"}`` and so on. With `digits`, floats are rounded to that many significant digits. Raises ValueError
    for what has no place in JSON, and for a mapping with a key that is not a string.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return {"float": repr(float(value))}
        return float(f"{value:.{digits}g}") if digits else float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"JSON keys are strings, got {key!r} ({type(key).__name__}): use str(key)")
        return {key: encode(item, digits) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy arrays and scalars, tensors of any device
        return encode(value.tolist(), digits)
    if isinstance(value, (list, tuple)):
        return [encode(item, digits) for item in value]
    raise ValueError(
        f"cannot store a {type(value).__name__} as JSON: use numbers, text, lists, mappings or arrays"
    )


def decode(value: Any) -> Any:
    """Undo `encode`: ``{"float": "nan"}`` becomes nan again."""
    if isinstance(value, dict):
        if set(value) == {"float"} and value["float"] in ("nan", "inf", "-inf"):
            return float(value["float"])
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


def dumps(value: Any, digits: int | None = None) -> str:
    """Strict JSON text of `value` with a final newline; lists of plain numbers stay on one line."""
    return _lines(encode(value, digits), 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    pad, inner = " " * depth, " " * (depth + 1)
    if isinstance(value, dict) and value and set(value) != {"float"}:
        items = [
            f"{inner}{json.dumps(k, ensure_ascii=False)}: {_lines(v, depth + 1)}" for k, v in value.items()
        ]
        return "{\n" + ",\n".join(items) + "\n" + pad + "}"
    if isinstance(value, list) and any(isinstance(v, (list, dict)) and v for v in value):
        return "[\n" + ",\n".join(inner + _lines(v, depth + 1) for v in value) + "\n" + pad + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
