"""All images of a folder."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gnclib.images.reading import FORMATS, Picture, read

__all__ = ["declared_pixels", "folder_images", "image_files"]

#: what image files of a folder end in, in small or capital letters
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
#: weights of red, green and blue in grey, ITU-R BT.601
LUMA = (0.299, 0.587, 0.114)


def image_files(folder: str | os.PathLike) -> list[Path]:
    """The files of a folder that claim to be images, by name: those with one of :data:`SUFFIXES`, not hidden ones.

    Files of subfolders do not count.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        There is no such folder.
    ValueError
        There is no image in it.
    """
    folder = Path(folder)
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file: give the folder that it lies in")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not (files := [path for path in files if not path.name.startswith(".")]):
        raise ValueError(
            f"there is no image in {folder}: its files (not those of its subfolders) count if they end in one of"
            f" {', '.join(SUFFIXES)}"
        )
    return files


def declared_pixels(path: Path) -> int:
    """What the header of an image file declares; 0 for a damaged or far too large one, which is refused when read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return image.size[0] * image.size[1]
    except Exception:  # decoders raise whatever damaged bytes drive them into
        return 0


def folder_images(folder: str | os.PathLike, colour: bool = False) -> dict[str, Tensor]:
    """All images of a folder in the order of their names.

    Parameters
    ----------
    folder
        See :func:`image_files`.
    colour
        False turns colour to grey by ITU-R 601 luma, rounded to the levels of the file; True demands colour.

    Returns
    -------
    dict
        Name -> (1, 1, H, W), with ``colour`` (3, 1, H, W), float32 in [0, 1].

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        There is no such folder.
    ValueError
        No image in it, or one that is damaged, of a kind that is refused (:func:`gnclib.images.reading.read`), or grey
        where colour is asked for; the message names it.
    """
    pictures = ((path.name, read(path)) for path in image_files(folder))
    if not colour:
        return {name: _grey(picture) for name, picture in pictures}
    found = {name: torch.from_numpy(picture.pixels)[:, None] for name, picture in pictures}
    if grey := [name for name, x in found.items() if len(x) != 3]:
        raise ValueError(
            f"{grey[0]}{f' and {len(grey) - 1} more' if grey[1:] else ''} in {folder}: not in colour"
        )
    return found


def _grey(picture: Picture) -> Tensor:
    if len(picture.pixels) == 1:
        return torch.from_numpy(picture.pixels)[None]
    top = 2**picture.depth - 1
    if picture.depth == 8:  # as PIL does it, which is what BSDS68 is made with
        colours = np.rint(np.moveaxis(picture.pixels, 0, -1) * top).astype(np.uint8)
        grey = np.array(Image.fromarray(colours).convert("L"), np.float32)
    else:
        grey = np.rint(np.tensordot(LUMA, picture.pixels * top, 1)).astype(np.float32)
    return torch.from_numpy(grey).div_(top)[None, None]
