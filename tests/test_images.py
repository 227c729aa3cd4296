"""Image files survive reading and writing unchanged, or are refused by name; tiles do not change a gradient."""

import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from gnclib import images


def levels(shape, depth, seed=0):
    return np.random.default_rng(seed).integers(
        0, 2**depth, shape, dtype=np.uint8 if depth == 8 else np.uint16
    )


def save(path, array):
    if array.dtype == np.uint16 and array.ndim == 3:
        tifffile.imwrite(path, array, photometric="rgb")
    else:
        Image.fromarray(array).save(path)


@pytest.mark.parametrize(
    ("name", "shape", "depth", "channels"),
    [
        ("grey.png", (7, 9), 8, 1),
        ("grey16.png", (7, 9), 16, 1),
        ("grey16.tif", (7, 9), 16, 1),
        ("colour.png", (7, 9, 3), 8, 3),
        ("colour.bmp", (7, 9, 3), 8, 3),
        ("colour16.tif", (7, 9, 3), 16, 3),
        ("alpha.png", (7, 9, 4), 8, 3),
        ("alpha_grey.png", (7, 9, 2), 8, 1),
        ("alpha16.tif", (7, 9, 4), 16, 3),
    ],
)
def test_round_trip_is_exact(tmp_path, name, shape, depth, channels):
    array = levels(shape, depth)
    save(tmp_path / name, array)
    picture = images.read(tmp_path / name)
    assert picture.pixels.shape == (channels, 7, 9)
    assert picture.depth == depth
    first = array if array.ndim == 2 else array[..., 0]
    np.testing.assert_allclose(picture.pixels[0], first / (2**depth - 1), atol=1e-7)
    images.write(tmp_path / f"again-{name}", picture)
    again = images.read(tmp_path / f"again-{name}")
    np.testing.assert_array_equal(again.pixels, picture.pixels)
    if shape[-1] in (2, 4):
        np.testing.assert_array_equal(again.alpha, array[..., -1])


def test_palette_orientation_and_profile(tmp_path):
    colours = Image.fromarray(levels((6, 8, 3), 8))
    colours.quantize(16).save(tmp_path / "palette.png")
    expected = np.asarray(Image.open(tmp_path / "palette.png").convert("RGB"))[..., 1] / 255
    np.testing.assert_allclose(images.read(tmp_path / "palette.png").pixels[1], expected, atol=1e-7)
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    colours.save(tmp_path / "turned.png", exif=exif, icc_profile=b"profile")
    picture = images.read(tmp_path / "turned.png")
    assert picture.pixels.shape == (3, 8, 6)
    images.write(tmp_path / "upright.png", picture)
    with Image.open(tmp_path / "upright.png") as upright:
        assert upright.info["icc_profile"] == b"profile"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: Image.new("1", (4, 4)).save(path), "mode 1"),
        (lambda path: Image.new("CMYK", (4, 4)).save(path, "TIFF"), "mode CMYK"),
        (lambda path: Image.new("F", (4, 4)).save(path, "TIFF"), "mode F"),
        (lambda path: path.write_text("text"), "is not an image file"),
        (
            lambda path: Image.new("L", (4, 4)).save(
                path, "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 9)]
            ),
            "2 frames",
        ),
    ],
)
def test_reading_refuses(tmp_path, make, message):
    make(tmp_path / "image.png")
    with pytest.raises(ValueError, match=message):
        images.read(tmp_path / "image.png")


def test_sixteen_bit_colour_png_is_refused_and_not_halved(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "x.png")
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[24] = 16  # bit depth; the checksum of the header has to follow
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(bytes(content))
    with pytest.raises(ValueError, match="16 bits per colour channel"):
        images.read(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match="no image file"):
        images.read(tmp_path / "absent.png")


def test_writing_refuses(tmp_path):
    grey16 = images.Picture(np.zeros((1, 4, 4), np.float32), None, 16)
    alpha = images.Picture(np.zeros((3, 4, 4), np.float32), np.zeros((4, 4), np.uint8), 8)
    colour16 = images.Picture(np.zeros((3, 4, 4), np.float32), None, 16)
    for name, picture, message in [
        ("a.jpg", grey16, "16-bit"), ("a.png", colour16, r"ends in \.tif"), ("a.jpg", alpha, "alpha"),
        ("a.xyz", grey16, "choose one of the suffixes"), ("a", grey16, "choose one of the suffixes"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            images.write(tmp_path / name, picture)
    with pytest.raises(FileNotFoundError, match="no folder"):
        images.write(tmp_path / "absent" / "a.png", grey16)
    images.write(tmp_path / "a.png", grey16)
    with pytest.raises(FileExistsError, match="--force"):
        images.write(tmp_path / "a.png", grey16)
    images.write(tmp_path / "a.png", grey16, force=True)
