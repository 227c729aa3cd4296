"""Masks in image files: which pixels they mark as missing, and how that was understood."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from gnclib.images.reading import FORMATS, read


def read_mask(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """Where a picture marks pixels as missing, (H, W) bool, and how it was understood, in words.

    * A picture with transparent pixels: the ink on it, whatever its colour.
    * JPEG and lossy WebP, whose black is not quite black around what is white: brighter than half.
    * Any other: all that is not black; the true pixels of a TIFF file that tifffile made of bools.

    Raises
    ------
    ValueError
        As :func:`gnclib.images.read`, and for ink that is partly black, partly not, on a transparent ground.
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
    with Image.open(path, formats=FORMATS) as image:
        kind, bilevel = image.format, image.mode == "1"
    if kind in ("JPEG", "MPO") or (kind == "WEBP" and b"VP8 " in Path(path).read_bytes()[:64]):
        return light > 0.5, "lossy file, brighter than half = missing"
    return light > 0, "true = missing" if bilevel and kind == "TIFF" else "white = missing"
