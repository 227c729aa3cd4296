"""Damaged files for tests: from a good one to many that are cut, flipped, spliced, or changed where it means something.

Everything is drawn from one seeded `random.Random`, so that a failure can be repeated: its number is in the message.
"""

import io
import json
import os
import random
import struct
import time
import zipfile
from collections import Counter
from copy import deepcopy
from pathlib import Path

import torch

#: what takes the place of a value in JSON
WEIRD = (
    *(float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 1e-320, 1e999, -1, 0, 1, 2, 0.5, 2**31, 2**53, 2**63),
    *(10**30, -(10**400), 10**4000, True, False, None, "", "nan", "0", "-1", "R1", "../../etc/passwd", "\0", "é" * 50),
    *("x" * 5000, [], {}, [[]], [None], {"": None}, {"float": "nan"}, {"float": "x"}, [[[[[0]]]]], [1.5] * 100),
)  # fmt: skip
NUMBERS = (
    b"nan",
    b"NaN",
    b"Infinity",
    b"1e308",
    b"-1",
    b"1e999",
    b"9" * 400,
    b"null",
    b'"',
    b"[",
    b"{",
    b"\0",
    b"\xff",
)


# --- bytes ------------------------------------------------------------------------------------------------


def bytes_changed(draw: random.Random, whole: bytes) -> bytes:
    """Cut off, with flipped bits, with a piece that is gone, doubled, overwritten or from elsewhere in the file."""
    kind, n = draw.randrange(8), len(whole)
    a, b = sorted(draw.randrange(n + 1) for _ in range(2))
    if kind == 0:
        return whole[:a]
    if kind == 1:
        changed = bytearray(whole)
        for _ in range(draw.choice((1, 1, 1, 8))):
            place = draw.randrange(n)
            changed[place] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind == 2:
        return whole[:a] + whole[b:]
    if kind == 3:
        return whole[:b] + whole[a:]
    if kind == 4:
        return whole[:a] + draw.choice((b"\0", b"\xff", b" ")) * (b - a) + whole[b:]
    if kind == 5:
        return whole[:a] + draw.choice(NUMBERS) + whole[a:]
    if kind == 6:
        c = draw.randrange(n + 1)
        return whole[:a] + whole[c : c + b - a] + whole[b:]
    return whole[a:b] + whole[:a] + whole[b:]


# --- JSON -------------------------------------------------------------------------------------------------


def _places(value, at=()):
    """Every place in parsed JSON, as the keys that lead to it."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*at, key))


def value_changed(draw: random.Random, value):
    """Parsed JSON with one to three places changed: replaced, gone, doubled, added to, or wrapped."""
    value = deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 3))):
        places = list(_places(value))
        # one of the names at a random depth, so that long lists of numbers are not all that is changed
        depth = draw.choice(sorted({len(p) for p in places}))
        place = draw.choice([p for p in places if len(p) == depth])
        if not place:
            value = draw.choice((deepcopy(draw.choice(WEIRD)), [value], {"a": value}, value))
            continue
        inner = value
        for key in place[:-1]:
            inner = inner[key]
        key, kind = place[-1], draw.randrange(6)
        if kind == 0:
            del inner[key]
        elif kind == 1 and isinstance(inner, dict):
            inner[draw.choice(("extra", "", "\0", "../x", "__class__", str(key) + "?"))] = draw.choice(WEIRD)
        elif kind == 1:
            inner.insert(key, deepcopy(inner[key]))
        elif kind == 2:
            inner[key] = draw.choice(([inner[key]], {"a": inner[key]}, str(inner[key])))
        elif kind == 3 and isinstance(inner[key], (int, float)):
            inner[key] = -inner[key] * draw.choice((1, 1000, 3))
        else:
            inner[key] = deepcopy(draw.choice(WEIRD))
    return value


def json_changed(draw: random.Random, whole: bytes) -> bytes:
    """Text of JSON, changed where it means something, or else byte by byte; sometimes nested deeply."""
    kind = draw.randrange(10)
    if kind < 3:
        return bytes_changed(draw, whole)
    if kind == 3:
        deep = draw.choice((60, 500, 990, 5000, 100_000))
        pair = draw.choice((("[", "]"), ('{"a":', "}")))
        text = pair[0] * deep + "0" + pair[1] * deep * draw.randrange(2)
        at = whole.find(b":", draw.randrange(len(whole)))
        return (
            text.encode()
            if at < 0 or draw.randrange(2)
            else whole[: at + 1] + text.encode() + whole[at + 1 :]
        )
    return json.dumps(value_changed(draw, json.loads(whole))).encode()


# --- tensors ----------------------------------------------------------------------------------------------


def tensors_changed(draw: random.Random, whole: bytes) -> bytes:
    """A safetensors file whose header lies, whose numbers are nan, or which is something else altogether."""
    size = int.from_bytes(whole[:8], "little")
    header, numbers = json.loads(whole[8 : 8 + size]), bytearray(whole[8 + size :])
    kind = draw.randrange(10)
    names = [name for name in header if name != "__metadata__"]
    name = draw.choice(names)
    entry = header[name]
    begin, end = entry["data_offsets"]
    if kind == 0:
        return bytes_changed(draw, whole)
    if kind == 1:
        length = draw.choice((0, 1, size - 1, size + 1, len(whole), 2**31, 2**63 - 1, 2**64 - 1))
        return length.to_bytes(8, "little") + whole[8:]
    if kind == 2:
        entry["shape"] = draw.choice(
            (
                [],
                [2**40],
                [2**62, 4],
                [-1],
                [0],
                [0, 2**62],
                [1.5],
                [*entry["shape"], 1],
                entry["shape"][::-1],
                "x",
                None,
            )
        )
    elif kind == 3:
        entry["dtype"] = draw.choice(
            ("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "Q7", "", None, 3)
        )
    elif kind == 4:
        far = draw.choice((begin + 4, end - 4, end + 4, 0, -4, 2**40, 2**63, 2**64 - 1, None, "x"))
        entry["data_offsets"] = draw.choice(([begin, far], [far, end], [end, begin], [begin], []))
    elif kind == 5:
        other = draw.choice(names)
        change = draw.choice(("gone", "renamed", "twice", "exchanged"))
        if change in ("gone", "renamed"):
            del header[name]
        if change in ("renamed", "twice"):
            header[draw.choice(("x", "", "../x", "kernels.99", "model.x", "optimizer.9.x", name + "\0"))] = (
                entry
            )
        if change == "exchanged":
            header[name], header[other] = header[other], entry
    elif kind == 6 and end - begin >= 4:
        values = {"F32": "f", "F64": "d"}.get(entry["dtype"])
        if values:
            width = 4 if values == "f" else 8
            place = begin + width * draw.randrange((end - begin) // width)
            bad = draw.choice((float("nan"), float("inf"), float("-inf"), 3.3e38, -1.0))
            numbers[place : place + width] = struct.pack("<" + values, bad)
        else:
            numbers[begin + draw.randrange(end - begin)] ^= 0xFF
    elif kind == 7 and "state" in header.get("__metadata__", {}):
        state = header["__metadata__"]["state"].encode()
        header["__metadata__"]["state"] = json_changed(draw, state).decode("utf-8", "replace")
    elif kind == 8:
        header["__metadata__"] = draw.choice(
            (None, {}, {"state": "{}"}, {"state": 3}, {"state": "[" * 10_000}, "x", [])
        )
    else:
        return draw.choice((b"", b"\x89PNG\r\n\x1a\n" + whole, zipped(whole), whole + b"\0" * 7, whole[::-1]))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(numbers)


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", content)
    return buffer.getvalue()


class Marker:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickles(marker: Path) -> list[bytes]:
    """Pickles, also as torch writes them, that would leave a trace if anybody executed them."""
    import pickle

    made = [pickle.dumps(Marker(marker), protocol) for protocol in range(6)]
    for zipfiles in (True, False):
        buffer = io.BytesIO()
        torch.save({"weights": Marker(marker)}, buffer, _use_new_zipfile_serialization=zipfiles)
        made.append(buffer.getvalue())
    return made + [zipped(content) for content in made]


# --- logs -------------------------------------------------------------------------------------------------


def log_changed(draw: random.Random, whole: bytes) -> bytes:
    """A log.csv with numbers, columns or lines that are changed."""
    if draw.randrange(3) == 0:
        return bytes_changed(draw, whole)
    lines = [line.split(b",") for line in whole.split(b"\n")]
    line = draw.choice(lines)
    place, kind = draw.randrange(len(line)), draw.randrange(5)
    if kind == 0:
        del line[place]
    elif kind == 1:
        lines.insert(draw.randrange(len(lines)), list(line))
    elif kind == 2:
        lines.remove(line)
    else:
        line[place] = draw.choice(
            (*NUMBERS, b"", b"-inf", b"1_0", b" 1", "٣".encode(), b"0x10", b"1e400", b"9" * 5000)
        )
    return b"\n".join(b",".join(line) for line in lines)


# --- what must hold ---------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, int]:
    """Names and sizes of the files below a folder."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*"))}


def feed(
    read, path: Path, contents, valid, *, allowed=(ValueError,), named: str | None = None, made=()
) -> Counter:
    """Give the file one content after the other and read it.

    Whatever `read` does, it may only raise what is `allowed`, with a message that has `named` in it (the name of the
    file by default); what it returns must be `valid`; no file appears or changes but those `made`, and no reading
    takes longer than ten seconds of the processor. Returns how many were "refused" and how many "accepted".
    """
    outcome = Counter()
    whole = path.read_bytes()
    for number, content in enumerate(contents):
        path.write_bytes(content)
        before, began = files_of(path.parent), time.process_time()
        try:
            result = read()
        except allowed as error:
            outcome["refused"] += 1
            message = str(error)
        except BaseException as error:
            raise AssertionError(
                f"mutant {number}, {content[:300]!r}: {type(error).__name__}: {error}"
            ) from error
        else:
            outcome["accepted"] += 1
            message = ""
            valid(result)
        if message:
            assert (named or path.name) in message, f"mutant {number}: {message[:300]}"
            assert len(message) < 20_000, f"mutant {number}: a message of {len(message)} characters"
        assert time.process_time() - began < 10, f"mutant {number} takes too long"
        after = {name: size for name, size in files_of(path.parent).items() if name not in made}
        assert after == {name: size for name, size in before.items() if name not in made}, f"mutant {number}"
    path.write_bytes(whole)
    return outcome
