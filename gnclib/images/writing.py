"""Image files out: bit depth, alpha, colour profile, EXIF and resolution as they came in.

Every format keeps what it can hold: PNG, JPEG and TIFF all of it (16-bit colour TIFF profile, resolution and the
plain texts of EXIF), BMP the resolution. JPEG is written with quality 95 and without subsampling.
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from gnclib.images.reading import Picture, remarks
from gnclib.io import write_bytes

_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP", ".jpg": "JPEG", ".jpeg": "JPEG"}
#: what TIFF files end in
TIFF = (".tif", ".tiff")


def check_writable(path: str | os.PathLike, picture: Picture, force: bool = False) -> Path:
    """Refuse, before the long computation, a path that the picture cannot be written to; return it as a Path.

    Raises
    ------
    ValueError
        Unknown suffix, or the format cannot hold 16 bits or alpha.
    FileExistsError
        The file exists and `force` is not given.
    FileNotFoundError
        The folder does not exist.
    IsADirectoryError
        The path is a folder.
    """
    alpha, path = picture.alpha is not None, Path(path)
    if picture.kind != "unassalpha" or (picture.depth == 16 and (alpha or len(picture.pixels) == 3)):
        fit = TIFF
    else:
        fit = (".png", *TIFF) if picture.depth == 16 or alpha else tuple(_FORMATS)
    if (suffix := path.suffix.lower()) in _FORMATS and suffix not in fit:
        better = " or ".join(fit[:-1])  # without .tiff
        raise ValueError(f"{path.name!r} cannot hold this picture ({picture}): let its name end in {better}")
    return check_place(path, tuple(_FORMATS), force)


def check_place(path: str | os.PathLike, suffixes: tuple[str, ...], force: bool = False) -> Path:
    """Refuse a path at which no file with one of these suffixes can be written, as :func:`check_writable` does."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path.name!r} here: choose one of the suffixes {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: use --force to overwrite it")
    return path


def quantise(picture: Picture, pixels: np.ndarray) -> Picture:
    """`picture` with other pixels (C, H, W), clipped to [0, 1] and rounded to the grey levels of its depth."""
    top = 2**picture.depth - 1
    made = np.clip(pixels, 0.0, 1.0, dtype=np.float32)
    made *= top
    np.rint(made, out=made)
    made /= top
    return replace(picture, pixels=made)


def write(path: str | os.PathLike, picture: Picture, force: bool = False) -> Path:
    """Write an image file in one step, in the bit depth of the picture; raises as `check_writable` does."""
    path = check_writable(path, picture, force)
    array, kind = _levels(picture), _FORMATS[path.suffix.lower()]
    buffer = io.BytesIO()
    if array.ndim == 3 and (picture.depth == 16 or picture.kind != "unassalpha"):
        _encode_wide_tiff(buffer, array, picture)
        return write_bytes(path, buffer.getvalue())
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    if picture.profile:
        options["icc_profile"] = picture.profile
    if picture.dpi:
        options["dpi"] = picture.dpi
    if picture.exif and kind != "BMP":
        options["exif"] = remarks(picture.exif) if kind == "TIFF" else picture.exif
    try:
        Image.fromarray(array).save(buffer, kind, **options)
    except Exception:  # a remark that cannot be written is no reason to lose the picture
        options.pop("exif", None)
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, kind, **options)
    return write_bytes(path, buffer.getvalue())


def check_map(path: str | os.PathLike, force: bool = False) -> Path:
    """Refuse, before the long computation, a path that :func:`write_map` cannot write to; return it as a Path.

    Raises
    ------
    ValueError
        It does not end in .tif or .tiff.
    FileExistsError
        It or the PNG file beside it exists and `force` is not given.
    FileNotFoundError
        The folder does not exist.
    """
    path = check_place(path, TIFF, force)  # which can hold real numbers
    check_place(path.with_suffix(".png"), (".png",), force)
    return path


def write_map(path: str | os.PathLike, values: np.ndarray, white: float, force: bool = False) -> Path:
    """Real numbers (C, H, W) as a float32 TIFF file, and beside it a PNG to look at: black is 0, `white` white.

    Returns the path of the PNG file; raises as :func:`check_map`.
    """
    path = check_map(path, force)
    array = np.moveaxis(values, 0, -1) if len(values) == 3 else values[0]
    buffer, picture = io.BytesIO(), io.BytesIO()
    kind = "rgb" if len(values) == 3 else "minisblack"
    tifffile.imwrite(buffer, array.astype(np.float32), photometric=kind, metadata=None, software=False)
    grey = np.nan_to_num(array / white).clip(0, 1) * 255
    Image.fromarray(np.rint(grey).astype(np.uint8)).save(picture, "PNG")
    write_bytes(path, buffer.getvalue())
    return write_bytes(path.with_suffix(".png"), picture.getvalue())


def _levels(picture: Picture) -> np.ndarray:
    """The integers of the file, (H, W) or (H, W, C) with alpha last."""
    levels = [np.rint((2**picture.depth - 1) * np.clip(grey, 0.0, 1.0)) for grey in picture.pixels]
    levels += [] if picture.alpha is None else [picture.alpha]
    array = np.stack(levels, -1, dtype=f"u{picture.depth // 8}", casting="unsafe")
    return array[..., 0] if array.shape[-1] == 1 else array


def _encode_wide_tiff(buffer: io.BytesIO, array: np.ndarray, picture: Picture) -> None:
    texts = remarks(picture.exif) if picture.exif else {}
    tags = [(key, "s", 0, text.encode(), True) for key, text in texts.items() if isinstance(text, str)]
    tifffile.imwrite(
        buffer, array, metadata=None, iccprofile=picture.profile,
        photometric="rgb" if picture.pixels.shape[0] == 3 else "minisblack",
        extrasamples=None if picture.alpha is None else [picture.kind],
        resolution=picture.dpi, resolutionunit=None if picture.dpi is None else "inch",
        software=False, extratags=tags,
    )  # fmt: skip
