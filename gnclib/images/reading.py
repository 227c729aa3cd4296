"""Image files in, one by one or a folder of them, with all that belongs to a picture, and what masks in them mark.

Grey or colour, 8 or 16 bit, upright, with alpha, colour profile, EXIF and resolution.

A file may be cut off, damaged, or made to fill the memory. So

* only the formats of :data:`FORMATS` are tried (Pillow knows dozens, one of which starts another program);
* what the header declares is checked against :data:`MOST_PIXELS` before any pixel is decoded;
* whatever a decoder raises at a damaged file (struct.error, zlib.error, KeyError, ...) becomes a ValueError that names
  the file. Trouble with the file system stays an OSError.

Nothing is converted silently. Pillow reads 16-bit colour as 8 bit without a word; here such TIFF files go through
tifffile, and such PNG files are refused with advice. What has no plain meaning for a denoiser (palettes with
transparency are fine; black-and-white, CMYK, floating point, animations are not) is refused by name.
"""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageChops, ImageOps, UnidentifiedImageError

from gnclib.io import read_bytes

#: what Pillow may take a file for
FORMATS = ("PNG", "TIFF", "JPEG", "BMP", "GIF", "WEBP", "PPM")
#: images that declare more pixels than this are refused before they are decoded
MOST_PIXELS = 100_000_000
#: bytes; larger files are not opened
LARGEST_FILE = 1_000_000_000
#: EXIF that describes the picture (title, camera, program, time, author, copyright); not how its pixels are stored
_KEPT_EXIF = (270, 271, 272, 305, 306, 315, 316, 33432, *range(40091, 40096))
_KEPT_GROUPS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
#: of the EXIF group: width and height in pixels
_EXIF_SIZE = (40962, 40963)
#: what a fourth sample of TIFF files may be, by tifffile's names
EXTRA = {"unassalpha": "alpha", "assocalpha": "associated alpha", "unspecified": "an extra band"}


@dataclass(frozen=True)
class Picture:
    """An image in memory.

    ``kind`` says what alpha is: "unassalpha", or of TIFF files "assocalpha", by which the colours are multiplied, or
    "unspecified", another band than alpha.
    """

    pixels: np.ndarray  # float32 (C, H, W), C = 1 (grey) or 3 (red, green, blue), grey values in [0, 1]
    alpha: np.ndarray | None  # (H, W) integers as in the file
    depth: int  # bits per channel in the file, 8 or 16
    profile: bytes | None = None  # embedded ICC colour profile
    exif: bytes | None = None  # descriptive, without orientation
    dpi: tuple[float, float] | None = None  # along the width, along the height, in pixels per inch
    kind: str = "unassalpha"

    def __str__(self) -> str:
        channels, height, width = self.pixels.shape
        colour = "grey" if channels == 1 else "colour"
        more = "" if self.alpha is None else f" with {EXTRA[self.kind]}"
        return f"{width} x {height}, {colour}{more}, {self.depth} bit"


def read(path: str | os.PathLike, *, bilevel: bool = False) -> Picture:
    """Picture in an image file; its content counts, not the suffix. Masks are often ``bilevel``: black-and-white.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, other OSError
        There is no such file, it is a folder, it may not be read.
    ValueError
        It is no image, damaged, too large, or of a kind that is refused; the message says which and what to do.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of an image file")
    return decode(read_bytes(path, LARGEST_FILE), str(path), bilevel=bilevel)


def decode(content: bytes, name: str, *, bilevel: bool = False) -> Picture:
    """Picture in the bytes of a file; `name` is for the messages. Raises ValueError as :func:`read`."""
    if not content:
        raise ValueError(f"{name} is empty: no image file")
    for decoder in ("PIL", "tifffile"):  # what they log about damage would land on stderr
        logging.getLogger(decoder).addHandler(logging.NullHandler())
    try:
        with warnings.catch_warnings(action="ignore"):  # odd metadata; _demand_size judges large images
            return _decode(content, name, bilevel)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except UnidentifiedImageError:
        kind = "a TIFF of a kind" if content[:4] in (b"II*\0", b"MM\0*") else "an image file"
        raise ValueError(
            f"{name} is not {kind} that can be read here: convert it to grey or RGB, 8 or 16 bit"
        ) from None
    except MemoryError:
        raise ValueError(f"{name} needs more memory than there is") from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{name} declares more than the {MOST_PIXELS // 10**6} million pixels read here"
        ) from None
    except Exception as error:  # decoders raise whatever damaged bytes drive them into
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is a damaged image file: {reason}") from error


class _Refused(Exception):
    """The file is sound as far as looked at, but not taken; the message is for the user."""


def _decode(content: bytes, name: str, bilevel: bool) -> Picture:
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        if (found := _grey_with_a_band(content, name)) is None:
            raise
        return found
    with opened as image:
        _demand_size(image.size, name)
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: a photograph and its previews
            raise _Refused(f"{name} has {image.n_frames} frames or pages: save one of them as its own file")
        wide, extra = _is_wide_colour(image, content), _has_extra_band(image)
        if wide and image.format != "TIFF":
            raise _Refused(f"{name} has 16 bits per colour channel, which is read from TIFF only: convert it")
        if image.format == "TIFF" and 2 in image.tag_v2.get(339, ()):
            raise _Refused(f"{name} holds integers with a sign: convert it to 8 or 16 bit")
        exif = image.getexif()  # now: Pillow closes TIFF files when it has the pixels
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        turned = orientation in (5, 6, 7, 8)
        stored = image.size[::-1] if turned and image.format == "TIFF" else image.size  # turned already
        remarks = _description(exif, stored[::-1] if turned else stored)
        profile = image.info.get("icc_profile")
        dpi = _resolution(image.info.get("dpi"), turned)
        kind = "unassalpha"
        if wide or extra:
            array, kind = _wide_tiff(content, stored, name)
            array = _upright(array, orientation)
        else:
            array = np.asarray(_plain(image, name, bilevel))
            clear = image.info.get("transparency")
            if image.format == "PNG" and image.mode.startswith("I;16") and clear is not None:
                array = np.dstack([array, np.where(array == clear, 0, 65535).astype(np.uint16)])
            if image.format == "TIFF" and image.mode.startswith("I;16"):
                if (bits := image.tag_v2.get(258, (16,))[0]) != 16:  # 12 bits would stay unscaled
                    raise _Refused(f"{name} has {bits} bits per pixel: convert it to 8 or 16 bit")
                if image.tag_v2.get(262) == 0:  # white is zero, and Pillow leaves it so
                    array = 65535 - array
    profile = profile if isinstance(profile, bytes) and profile else None
    return replace(_picture(array, profile, remarks, dpi), kind=kind)


def _demand_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise _Refused(
            f"{name} declares {size[0]} x {size[1]} pixels, more than the {MOST_PIXELS // 10**6} million"
            " read here: cut it into parts"
        )


# --- kinds of pixels --------------------------------------------------------------------------------------


def _is_wide_colour(image: Image.Image, content: bytes) -> bool:
    """Whether the file has more than 8 bits in each of several channels."""
    if image.format == "PNG":  # signature, IHDR with width, height, bit depth, colour type
        return content[24] == 16 and content[25] != 0
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))
        return len(bits) > 1 and max(bits) > 8
    if image.format == "PPM":
        return image.mode == "RGB" and image.tile[0][0] != "raw"  # another maximum than 255
    return False


def _has_extra_band(image: Image.Image) -> bool:
    """Whether a TIFF file has samples beyond grey or colour that are not declared as plain alpha."""
    if image.format != "TIFF" or (kind := image.tag_v2.get(262)) not in (0, 1, 2):
        return False
    return image.tag_v2.get(277, 1) > (3 if kind == 2 else 1) and tuple(image.tag_v2.get(338, ())) != (2,)


def _wide_tiff(content: bytes, size: tuple[int, int], name: str) -> tuple[np.ndarray, str]:
    """(H, W, C) of a TIFF file with several channels, of 16 bits or with an extra band; what that band is."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        samples = page.samplesperpixel
        if (page.imagewidth, page.imagelength) != size or page.imagedepth != 1 or not 2 <= samples <= 4:
            raise _Refused(f"{name} is a TIFF with {samples} channels of {page.shape}: convert it to RGB")
        if page.photometric.name not in ("RGB", "MINISBLACK") or page.dtype not in (np.uint8, np.uint16):
            raise _Refused(
                f"{name} is a TIFF of kind {page.photometric.name}, {page.dtype}: convert it to RGB"
            )
        colours = 3 if page.photometric.name == "RGB" else 1
        if not colours <= samples <= colours + 1:
            raise _Refused(
                f"{name} has {samples} channels: grey or RGB and one more are read, save the others as a file of theirs"
            )
        if page.compression not in (1, 8, 32946, 32773):  # none, deflate twice, packbits
            raise _Refused(
                f"{name} is compressed by {page.compression.name}, with 16 bits per channel or an extra band: save it"
                " without compression or with deflate"
            )
        # deflate makes data at most 1032 times smaller: what promises more is a fragment, or made to fill the memory
        if max(page.nbytes, 2 * math.prod(page.chunks)) > 1100 * len(content):
            raise _Refused(f"{name} is a damaged image file: it holds less than it declares")
        array = page.asarray()
        extra = [sample.name.lower() for sample in page.extrasamples] or ["unspecified"]
        return array if page.planarconfig.name == "CONTIG" else np.moveaxis(array, 0, -1), extra[0]


def _grey_with_a_band(content: bytes, name: str) -> Picture | None:
    """A TIFF file of 16-bit grey and alpha or another band, which Pillow does not open; None if it is none."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages.first
            size, turn = (page.imagewidth, page.imagelength), int(page.tags.valueof(274, 1))
            dpi, profile = page.get_resolution("INCH") if 282 in page.tags else None, page.iccprofile
            if page.samplesperpixel != 2 or len(file.pages) > 1:
                return None
    except Exception:  # decoders raise whatever damaged bytes drive them into
        return None
    _demand_size(size, name)
    array, kind = _wide_tiff(content, size, name)
    return replace(_picture(_upright(array, turn), profile, None, _resolution(dpi, turn > 4)), kind=kind)


def _plain(image: Image.Image, name: str, bilevel: bool) -> Image.Image:
    """Upright, and in one of the modes L, LA, RGB, RGBA, I;16."""
    if image.mode == "1" and bilevel:
        if image.format == "TIFF" and image.tag_v2.get(262) == 0 and "tifffile" in str(image.tag_v2.get(305)):
            image = ImageChops.invert(image)  # an array of bools, which it stores with true as black
        return ImageOps.exif_transpose(image).convert("L")
    if image.mode not in ("P", "PA", "L", "LA", "RGB", "RGBA", "I;16", "I;16B"):
        raise _Refused(f"{name} has the mode {image.mode}: convert it to 8 or 16 bit grey or to RGB first")
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("P", "PA"):
        return upright.convert("RGBA" if upright.mode == "PA" or "transparency" in image.info else "RGB")
    if upright.mode in ("L", "RGB") and "transparency" in image.info:
        return upright.convert("LA" if upright.mode == "L" else "RGBA")
    return upright


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as its EXIF orientation means it; what `ImageOps.exif_transpose` does for Pillow's images."""
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, 0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return array[::rows, ::columns]


def _picture(array: np.ndarray, profile, exif, dpi) -> Picture:
    depth = 8 * array.dtype.itemsize
    array = array[..., None] if array.ndim == 2 else array  # (H, W, C)
    alpha = array[..., -1].astype(array.dtype.newbyteorder("=")) if array.shape[-1] in (2, 4) else None
    colour = array[..., : 1 if array.shape[-1] <= 2 else 3]
    pixels = np.ascontiguousarray(np.moveaxis(colour, -1, 0), dtype=np.float32)
    pixels /= 2**depth - 1
    return Picture(pixels, alpha, depth, profile, exif, dpi)


# --- what else is in a file -------------------------------------------------------------------------------


def _resolution(dpi, turned: bool) -> tuple[float, float] | None:
    """(x, y) in pixels per inch, if the file has one that makes sense."""
    try:
        x, y = (float(v) for v in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not (0 < x < 1e5 and 0 < y < 1e5):
        return None
    return (y, x) if turned else (x, y)


def _description(exif: Image.Exif, size: tuple[int, int]) -> bytes | None:
    """The EXIF worth keeping, without orientation and preview, for a picture of this (width, height).

    Tags that cannot be written again are left out: a damaged remark is no reason to refuse the picture.
    """
    kept = Image.Exif()
    for key in _KEPT_EXIF:
        if exif.get(key) and not str(exif[key]).startswith('{"shape": '):  # of the array that tifffile had
            kept[key] = _as_stored(exif[key])
    for group in _KEPT_GROUPS:
        values = {key: _as_stored(value) for key, value in exif.get_ifd(group).items()}
        values.update({k: v for k, v in zip(_EXIF_SIZE, size, strict=True) if k in values})
        values.pop(ExifTags.Base.MakerNote, None)  # holds offsets into the old file
        if values:
            kept.get_ifd(group).update(values)
    try:
        return kept.tobytes() if len(kept) or any(kept.get_ifd(g) for g in _KEPT_GROUPS) else None
    except Exception:
        return None


class _AsStored(str):
    """A text of EXIF whose bytes, read by Pillow one character each, are written again, not only those of ASCII."""

    def encode(self, encoding: str = "", errors: str = "replace") -> bytes:
        return super().encode("latin-1", errors)


def _as_stored(value: Any) -> Any:
    return _AsStored(value) if isinstance(value, str) else value


def remarks(content: bytes) -> Image.Exif:
    """The EXIF of a :class:`Picture`, to be written with all bytes of its texts."""
    exif = Image.Exif()
    exif.load(content)
    exif.update({key: _as_stored(value) for key, value in exif.items()})
    for group in _KEPT_GROUPS:
        values = exif.get_ifd(group)
        values.update({key: _as_stored(value) for key, value in values.items()})
    return exif


# --- masks ----------------------------------------------------------------------------------------------


def read_mask(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """Where a picture marks pixels as missing, (H, W) bool, and how it was understood, in words.

    * A picture with transparent pixels: the ink on it, whatever its colour.
    * JPEG and lossy WebP, whose black is not quite black around what is white: brighter than half.
    * Any other: all that is not black; the true pixels of a TIFF file that tifffile made of bools.

    Raises
    ------
    ValueError
        As :func:`read`, and for ink that is partly black, partly not, on a transparent ground.
    """
    picture = read(path, bilevel=True)
    light = picture.pixels.max(0)
    if picture.alpha is not None and picture.kind != "unspecified" and not picture.alpha.all():
        ink = picture.alpha > 0
        if len(set((light[ink] > 0).tolist())) > 1:
            raise ValueError(
                f"the mask {path} has transparent, black and brighter pixels: make it black and white, or leave the"
                " known pixels transparent and paint the missing ones in one colour"
            )
        return ink, "ink, not transparent = missing"
    content, kind, bilevel = Path(path).read_bytes(), "TIFF", False  # one that Pillow does not open
    with suppress(UnidentifiedImageError), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        kind, bilevel = image.format, image.mode == "1"
    if kind in ("JPEG", "MPO") or (kind == "WEBP" and b"VP8 " in _chunks(content)):
        return light > 0.5, "lossy file, brighter than half = missing"
    return light > 0, "true = missing" if bilevel and kind == "TIFF" else "white = missing"


def _chunks(content: bytes) -> list[bytes]:
    """The names of the chunks of a RIFF file."""
    found, at = [], 12
    while at + 8 <= len(content):
        found.append(content[at : at + 4])
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return found


# --- sizes ------------------------------------------------------------------------------------------------


def declared_pixels(path: Path) -> int:
    """What the header of an image file declares; 0 for a damaged or far too large one, which is refused when read."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            return image.size[0] * image.size[1]
    except Exception:  # decoders raise whatever damaged bytes drive them into
        return 0
