"""Stacks of images in TIFF files (BigTIFF, OME-TIFF, ImageJ's, tifffile's), frame by frame.

Frames are replaced in a copy of the file, in which all else stays as it is: axes, metadata, byte order. Only a file
whose pixels are compressed or in tiles is stored anew before, with the tags that it has.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from gnclib.images.reading import MOST_PIXELS

#: tags that say how pixels are stored, that lead to other places of a file, and that tifffile writes by itself
_STORAGE = {254, *range(256, 260), 262, 266, 270, 273, *range(277, 280), 282, 283, 284, 296, 305, 317}
_STORAGE |= {*range(322, 326), 330, 338, 339, 34665, 34853, 37724, 40965}


def layout(path: str | os.PathLike) -> str:
    """What a TIFF file holds: "stack", "planes" or "".

    A stack has several pages, or is of a microscope, or of other numbers than grey levels; "planes" is a picture that
    tifffile stored plane by plane, as it does by default with three or four frames. All other files have "".
    """
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            several = len(file.pages) > 1 or file.is_ome or file.is_imagej or file.is_bigtiff
            if several or page.subifds or page.dtype.kind not in "ub" or page.dtype.itemsize > 2:
                return "stack"
            return "planes" if page.is_shaped and page.planarconfig == 2 and page.samplesperpixel > 1 else ""
    except Exception:  # no TIFF file, or a damaged one: reading it as a picture says so
        return ""


@dataclass(frozen=True)
class Stack:
    """The frames of a TIFF file, where they lie in it."""

    path: Path
    axes: str  # as tifffile names them ("TZCYX")
    shape: tuple[int, ...]
    frame: tuple[int, ...]  # the part of the shape that belongs to "YX" or "YXS"
    dtype: np.dtype  # of the pixels, in the byte order of the file
    places: tuple[int, ...]  # at which byte each frame begins; empty if the pixels are compressed or in tiles

    @classmethod
    def open(cls, path: str | os.PathLike) -> Stack:
        """Raises ValueError if the file is damaged or holds no frames of one size; the message says what to do."""
        try:
            with tifffile.TiffFile(path) as file:
                return cls._of(Path(path), file)
        except (tifffile.TiffFileError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is a damaged TIFF file: {error}") from error

    @classmethod
    def _of(cls, path: Path, file: tifffile.TiffFile) -> Stack:
        series, page = file.series[0], file.series[0].keyframe
        axes, shape, kind = series.axes, series.shape, np.dtype(series.dtype).newbyteorder(file.byteorder)
        frame, pages = shape[-3 if axes.endswith("YXS") else -2 :], list(series.pages)
        if len(file.series) > 1 or len(series.levels) > 1 or None in pages:
            raise ValueError(
                f"{path} holds images of several sizes, previews or gaps: save one stack without them"
            )
        if any(item.parent is not file for item in pages):
            raise ValueError(f"{path} is one of several files of a stack: save it as one file")
        other = not axes.endswith(("YX", "YXS")) or len(frame) == 3 != frame[-1]
        if other or page.photometric.name == "PALETTE":
            raise ValueError(
                f"{path} has the axes {axes} {shape}: a frame is grey (..YX) or RGB (..YXS), save it so"
            )
        if kind.kind not in "uif" or math.prod(frame) > 3 * MOST_PIXELS:
            raise ValueError(
                f"{path} holds {kind}, {frame} a frame: save real numbers, at most {MOST_PIXELS} pixels"
            )
        size, count = math.prod(frame) * kind.itemsize, math.prod(shape) // math.prod(frame)
        places = tuple(item.dataoffsets[0] for item in pages if item.is_final)
        if series.dataoffset is not None:  # all frames in one piece; ImageJ then describes the first one only
            places = tuple(series.dataoffset + k * size for k in range(count))
        elif len(pages) != count or page.nbytes > 1100 * sum(page.databytecounts):  # deflate's best
            raise ValueError(f"{path} is a damaged TIFF file: it holds less than it declares")
        if places and max(places) + size > file.filehandle.size:
            raise ValueError(f"{path} is a damaged TIFF file: it was cut off")
        return cls(path, axes, shape, frame, kind, places if len(places) == count else ())

    def channel(self, k: int) -> int:
        """Which of the channels (the axis C) frame k belongs to; 0 without such an axis."""
        shape = self.shape[: len(self.shape) - len(self.frame)]
        return int(np.unravel_index(k, shape)[self.axes.index("C")]) if "C" in self.axes else 0

    def _pixels(self, k: int, mode: str) -> np.memmap:
        return np.memmap(self.path, self.dtype, mode, self.places[k], self.frame)

    def read(self, k: int) -> np.ndarray:
        """Frame k as floats (C, H, W), C = 1 or 3."""
        wide = np.float32 if self.dtype.itemsize <= 2 or self.dtype.str[1:] == "f4" else np.float64
        return np.moveaxis(np.atleast_3d(self._pixels(k, "r")), -1, 0).astype(wide, order="C")

    def write(self, k: int, frame: np.ndarray) -> None:
        """Replace frame k by (C, H, W), for integers rounded and cut off, and have it on the disk."""
        if self.dtype.kind != "f":
            limits = np.iinfo(self.dtype)
            frame = np.rint(frame).clip(limits.min, limits.max)
        pixels = self._pixels(k, "r+")
        pixels[...] = np.moveaxis(frame, 0, -1).reshape(self.frame)
        pixels.flush()


def unpack(source: Path, path: Path) -> None:
    """Store a TIFF file anew, page by page, without compression. Raises ValueError if it cannot be decoded."""
    try:
        with tifffile.TiffFile(source) as file:
            wide = file.is_bigtiff or file.series[0].nbytes > 2**32 - 2**25
            with tifffile.TiffWriter(path, bigtiff=wide, byteorder=file.byteorder) as out:
                for page in (file.pages.get(k).aspage() for k in range(len(file.pages))):
                    tags = [tag.astuple() for tag in page.tags if tag.code not in _STORAGE]
                    out.write(
                        page.asarray(), photometric=page.photometric, description=page.description.encode(),
                        metadata=None, software=page.software or False, resolution=page.resolution, extratags=tags,
                        resolutionunit=page.resolutionunit, subfiletype=page.subfiletype,
                    )  # fmt: skip
    except Exception as error:  # decoders raise whatever damaged bytes drive them into
        raise ValueError(
            f"{source} cannot be decoded ({error}): save it without compression, or by deflate"
        ) from error
