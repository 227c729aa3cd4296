"""Image files in and out: grey or colour, 8 or 16 bit, with the alpha channel and the colour profile kept.

Nothing is converted silently. Pillow reads 16-bit colour as 8 bit without a word; here such TIFF files go through
tifffile, and such PNG files are refused with advice. What has no plain meaning for a denoiser (palettes with
transparency are fine; black-and-white, CMYK, floating point, animations are not) is refused by name.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gnclib.files import write_bytes

__all__ = ["Picture", "check_writable", "read", "write"]

_LOSSLESS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
_LOSSY = {".jpg": "JPEG", ".jpeg": "JPEG"}
_FORMATS = _LOSSLESS | _LOSSY


@dataclass(frozen=True)
class Picture:
    """An image in memory.

    pixels: float32 (C, H, W), C = 1 (grey) or 3 (red, green, blue), grey values in [0, 1].
    alpha: (H, W) integers as in the file, or None. depth: bits per channel in the file, 8 or 16.
    profile: the embedded ICC colour profile, or None.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    depth: int
    profile: bytes | None = None

    def __str__(self) -> str:
        channels, height, width = self.pixels.shape
        kind = "grey" if channels == 1 else "colour"
        return (
            f"{width} x {height}, {kind}{' with alpha' if self.alpha is not None else ''}, {self.depth} bit"
        )


def read(path: str | os.PathLike) -> Picture:
    """Read an image file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no image, or of a kind that is refused; the message says which and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no image file {path}")
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError(
                    f"{path} has {image.n_frames} frames or pages: save one of them as its own file"
                )
            wide = _is_wide_colour(image, path)
            if wide and image.format != "TIFF":
                raise ValueError(
                    f"{path} has 16 bits per colour channel, which is read from TIFF only: convert it"
                )
            profile = image.info.get("icc_profile")
            array = _read_tiff(path) if wide else np.asarray(_plain(image, path))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image file that can be read here") from None
    except (SyntaxError, EOFError) as error:
        raise ValueError(f"{path} is a damaged image file: {error}") from None
    return _picture(array, profile)


def _is_wide_colour(image: Image.Image, path: Path) -> bool:
    """Whether the file has more than 8 bits in each of several channels."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            header = file.read(26)  # signature, IHDR with width, height, bit depth, colour type
        return header[24] == 16 and header[25] != 0
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))
        return len(bits) > 1 and max(bits) > 8
    return False


def _read_tiff(path: Path) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        array = page.asarray()
        if page.photometric.name not in ("RGB", "MINISBLACK") or array.dtype != np.uint16:
            raise ValueError(
                f"{path} is a TIFF of kind {page.photometric.name}, {array.dtype}: convert it to RGB"
            )
        return array if page.planarconfig.name == "CONTIG" else np.moveaxis(array, 0, -1)


def _plain(image: Image.Image, path: Path) -> Image.Image:
    """Upright, and in one of the modes L, LA, RGB, RGBA, I;16."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("L", "RGB") and "transparency" in image.info:
        return image.convert("LA" if image.mode == "L" else "RGBA")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "I;16", "I;16B"):
        raise ValueError(f"{path} has the mode {image.mode}: convert it to 8 or 16 bit grey or to RGB first")
    return image


def _picture(array: np.ndarray, profile: bytes | None) -> Picture:
    depth = 8 * array.dtype.itemsize
    array = array[..., None] if array.ndim == 2 else array  # (H, W, C)
    alpha = array[..., -1].copy() if array.shape[-1] in (2, 4) else None
    colour = array[..., : 1 if array.shape[-1] <= 2 else 3]
    pixels = np.moveaxis(colour, -1, 0).astype(np.float32) / (2**depth - 1)
    return Picture(np.ascontiguousarray(pixels), alpha, depth, profile)


def check_writable(path: str | os.PathLike, picture: Picture, force: bool = False) -> Path:
    """Say before the long computation, not after it, that `picture` cannot be written to `path`.

    Raises
    ------
    ValueError
        Unknown suffix, or the format cannot hold 16 bits or alpha.
    FileExistsError
        The file exists and `force` is not given.
    FileNotFoundError
        The folder does not exist.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"cannot write {path.name!r}: choose one of the suffixes {', '.join(_FORMATS)}")
    colour = picture.pixels.shape[0] == 3 or picture.alpha is not None
    if picture.depth == 16 and (suffix not in (".png", ".tif", ".tiff") or (colour and suffix == ".png")):
        better = ".tif" if colour else ".png or .tif"
        raise ValueError(
            f"{path.name!r} cannot hold this 16-bit image: write to a name that ends in {better}"
        )
    if picture.alpha is not None and suffix in (".jpg", ".jpeg", ".bmp"):
        raise ValueError(
            f"{path.name!r} cannot hold the alpha channel: write to a name that ends in .png or .tif"
        )
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
    levels = np.rint(np.clip(pixels, 0.0, 1.0) * top).astype(np.float32)
    return replace(picture, pixels=levels / top)


def write(path: str | os.PathLike, picture: Picture, force: bool = False) -> Path:
    """Write an image file in one step, in the bit depth of the picture; raises as `check_writable` does."""
    path = check_writable(path, picture, force)
    top = 2**picture.depth - 1
    kind = np.uint8 if picture.depth == 8 else np.uint16
    array = np.rint(np.clip(np.moveaxis(picture.pixels, 0, -1), 0, 1).astype(np.float64) * top).astype(kind)
    if picture.alpha is not None:
        array = np.concatenate([array, picture.alpha[..., None].astype(kind)], axis=-1)
    array = array[..., 0] if array.shape[-1] == 1 else array
    buffer = io.BytesIO()
    if picture.depth == 16 and array.ndim == 3:
        import tifffile

        photometric = "rgb" if picture.pixels.shape[0] == 3 else "minisblack"
        extra = None if picture.alpha is None else ["unassalpha"]
        tifffile.imwrite(buffer, array, photometric=photometric, extrasamples=extra, metadata=None)
    else:
        options = {"quality": 95, "subsampling": 0} if path.suffix.lower() in _LOSSY else {}
        if picture.profile:
            options["icc_profile"] = picture.profile
        Image.fromarray(array).save(buffer, _FORMATS[path.suffix.lower()], **options)
    return write_bytes(path, buffer.getvalue())
