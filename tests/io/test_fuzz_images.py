"""Whatever bytes lie in an image file: a sound picture or a ValueError, no other exception, and no exploding memory."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from gnclib.images import reading as image_reading
from gnclib.images.reading import decode

EACH = 1000  # mutants per family


def saved(array, kind, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def wide(array, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def seeds() -> dict[str, list[bytes]]:
    """Small sound files of every family."""
    rng = np.random.default_rng(0)
    grey, colour, alpha = (rng.integers(0, 256, (12, 17, *c), dtype=np.uint8) for c in ((), (3,), (4,)))
    grey16, colour16 = (rng.integers(0, 65536, (12, 17, *c), dtype=np.uint16) for c in ((), (3,)))
    smooth = np.add.outer(np.arange(32), np.arange(24)).astype(np.uint8)
    exif = Image.Exif()
    exif[274], exif[271] = 6, "camera"
    exif.get_ifd(0x8769)[0xA002] = 17
    more = {"exif": exif.tobytes(), "icc_profile": b"profile" * 9, "dpi": (72, 144)}
    text = PngImagePlugin.PngInfo()
    text.add_text("title", "a remark", zip=True)
    text.add_itxt("comment", "another", zip=True)
    palette = np.asarray(Image.fromarray(colour).quantize(8))
    return {
        "png": [
            saved(grey, "PNG"), saved(grey16, "PNG", **more), saved(alpha, "PNG", pnginfo=text, **more),
            saved(palette, "PNG", transparency=3), saved(colour, "PNG", transparency=(1, 2, 3)),
        ],
        "jpeg": [
            saved(smooth, "JPEG"), saved(colour, "JPEG", **more), saved(colour, "JPEG", progressive=True),
        ],
        "tiff": [
            saved(grey, "TIFF", **more), saved(grey16, "TIFF"), saved(colour, "TIFF", compression="tiff_lzw"),
            saved(alpha, "TIFF", compression="tiff_adobe_deflate"), wide(colour16, photometric="rgb"),
            wide(colour16, photometric="rgb", compression="zlib", predictor=2),
            wide(colour16, photometric="rgb", tile=(16, 16), byteorder=">"),
            wide(np.moveaxis(colour16, -1, 0), photometric="rgb", planarconfig="separate"),
        ],
        "others": [
            saved(colour, "BMP"), saved(grey, "BMP"), saved(grey, "GIF"), saved(palette, "GIF", transparency=1),
            saved(colour, "WEBP", lossless=True), saved(smooth, "WEBP"), saved(colour, "PPM"), saved(grey, "PPM"),
        ],
    }  # fmt: skip


def mended(content: bytes) -> bytes:
    """A PNG with the right checksums, so that the damage behind them is seen."""
    made, at = bytearray(content), 8
    while at + 12 <= len(made):
        (length,) = struct.unpack(">I", made[at : at + 4])
        if at + 12 + length > len(made):
            break
        made[at + 8 + length : at + 12 + length] = zlib.crc32(made[at + 4 : at + 8 + length]).to_bytes(
            4, "big"
        )
        at += 12 + length
    return bytes(made)


def mutant(rng: np.random.Generator, files: list[bytes]) -> bytes:
    """One of the files with bytes changed (mostly in its head), cut off, doubled, or joined with another."""
    content = bytearray(files[rng.integers(len(files))])
    kind = rng.integers(6)
    if kind <= 2:
        reach = len(content) if kind == 0 else min(len(content), 160)
        for _ in range(rng.integers(1, 9)):
            content[rng.integers(reach)] = rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))])
    elif kind == 3:
        del content[rng.integers(len(content)) :]
    elif kind == 4:
        first, last = sorted(rng.integers(0, len(content) + 1, 2))
        if rng.integers(2):
            content[first:last] = content[first:last] * 2
        else:
            del content[first:last]
    else:
        other = files[rng.integers(len(files))]
        content = content[: rng.integers(len(content))] + other[rng.integers(len(other)) :]
    content = bytes(content)
    return mended(content) if content[:4] == b"\x89PNG" and rng.integers(3) else content


@pytest.mark.parametrize("family", seeds())
def test_mutants_are_read_or_refused(family, monkeypatch, capfd):
    monkeypatch.setattr(image_reading, "MOST_PIXELS", 1_000_000)  # seconds, not minutes, at large mutants
    rng, files, fate = np.random.default_rng(42), seeds()[family], {"read": 0, "refused": 0}
    for content in files:
        decode(content, "sound")
    for k in range(EACH):
        content = mutant(rng, files)
        try:
            picture = decode(content, f"mutant {k}")
        except ValueError as error:
            fate["refused"] += f"mutant {k} " in str(error)
            continue
        fate["read"] += 1
        channels, height, width = picture.pixels.shape
        assert channels in (1, 3)
        assert 0 < height * width <= 1_000_000
        assert picture.pixels.dtype == np.float32
        assert np.isfinite(picture.pixels).all()
        assert 0 <= picture.pixels.min() <= picture.pixels.max() <= 1
        assert picture.depth in (8, 16)
        if picture.alpha is not None:
            assert picture.alpha.shape == (height, width)
        assert picture.dpi is None or min(picture.dpi) > 0
    assert sum(fate.values()) == EACH
    assert min(fate.values()) > EACH // 50, fate  # both ways were taken, many times
    talk = capfd.readouterr()  # nor does a decoder talk to the user; but libtiff does, in C
    assert (talk.out, "" if family == "tiff" else talk.err) == ("", "")
    print(family, fate)


BOMBS = """
import io, resource, struct, sys, zlib
from pathlib import Path
import numpy as np
import tifffile
from PIL import Image
from gnclib import images

def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

def png(width, height, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((width + 1) * height) if width < 100 else bytes(10**6)))
    return b"\\x89PNG\\r\\n\\x1a\\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")

def tiff(width, height, bits=(16, 16, 16), strip=100, rows=None, samples=3, tile=None):
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, bits), (259, 3, [1]), (262, 3, [2 if samples == 3 else 1]),
            (277, 3, [samples])]
    tags += [(322, 4, [tile]), (323, 4, [tile]), (324, 4, [8]), (325, 4, [strip])] if tile else [
        (273, 4, [8]), (278, 4, [rows or height]), (279, 4, [strip])]
    extra, entries, at = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, kind, values in sorted(tags):
        body = struct.pack("<" + {3: "H", 4: "I"}[kind] * len(values), *values)
        if len(body) > 4:
            entries += struct.pack("<HHII", tag, kind, len(values), at + len(extra)); extra += body
        else:
            entries += struct.pack("<HHI", tag, kind, len(values)) + body.ljust(4, b"\\0")
    return b"II*\\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4) + extra + bytes(200)

zeros = zlib.compress(bytes(300_000_000), 9)
jpeg = io.BytesIO(); Image.new("L", (16, 16)).save(jpeg, "JPEG")
at = jpeg.getvalue().index(b"\\xff\\xc0") + 5
gif = io.BytesIO(); Image.new("L", (16, 16)).save(gif, "GIF")
bmp = io.BytesIO(); Image.new("L", (16, 16)).save(bmp, "BMP")
bombs = {
    "wide.png": png(60_000, 60_000),
    "text.png": png(16, 16, chunk(b"zTXt", b"a\\0\\0" + zeros)),
    "itext.png": png(16, 16, chunk(b"iTXt", b"a\\0\\1\\0\\0\\0" + zeros)),
    "profile.png": png(16, 16, chunk(b"iCCP", b"a\\0\\0" + zeros)),
    "large.tif": tiff(2**31 - 1, 2**31 - 1),
    "large8.tif": tiff(60_000, 60_000, (8,), samples=1),
    "strip.tif": tiff(9_999, 9_999, strip=2**32 - 1),
    "tile.tif": tiff(16, 16, tile=2**20),
    "samples.tif": tiff(16, 16, (16,) * 60_000, samples=60_000),
    "large.jpg": jpeg.getvalue()[:at] + b"\\xff\\x00\\xff\\x00" + jpeg.getvalue()[at + 4:],
    "large.gif": gif.getvalue()[:6] + b"\\xff" * 4 + gif.getvalue()[10:],
    "large.bmp": bmp.getvalue()[:18] + struct.pack("<ii", 2**30, 2**30) + bmp.getvalue()[26:],
    "large.ppm": b"P5 100000 100000 255 " + bytes(100),
}
del zeros
folder = Path(sys.argv[1])
for name, content in bombs.items():
    (folder / name).write_bytes(content)
with open(folder / "long.png", "wb") as file:
    file.truncate(2**31)  # two GB of nothing, in a sparse file
names = [*bombs, "long.png"]
del bombs, content
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 300_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in names:
    try:
        picture = images.read(folder / name)
        print(name, "read", picture)
    except ValueError as error:
        print(name, "refused", str(error).replace(sys.argv[1], ""))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="limits memory and reads /proc as Linux does"
)
def test_bombs_do_not_allocate(tmp_path):
    """Files that declare up to 10^18 pixels, or inflate to 300 MB of remarks, in 300 MB of address space."""
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    fates = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert len(fates) == 14
    assert "more memory than there is" not in done.stdout  # each is seen through before memory is asked for
    for name, fate in fates.items():
        assert fate.startswith("refused"), (name, fate)
