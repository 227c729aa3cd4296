"""Image files survive reading and writing unchanged, or are refused by name; tiles do not change a gradient."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

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
    with pytest.raises(FileNotFoundError, match="there is no file"):
        images.read(tmp_path / "absent.png")


def test_writing_refuses(tmp_path):
    grey16 = images.Picture(np.zeros((1, 4, 4), np.float32), None, 16)
    alpha = images.Picture(np.zeros((3, 4, 4), np.float32), np.zeros((4, 4), np.uint8), 8)
    colour16 = images.Picture(np.zeros((3, 4, 4), np.float32), None, 16)
    for name, picture, message in [
        ("a.jpg", grey16, "16 bit"), ("a.png", colour16, r"end in \.tif"), ("a.jpg", alpha, "alpha"),
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


def described(orientation=6):
    exif = Image.Exif()
    exif[274], exif[271], exif[33432] = orientation, "camera", "somebody"
    exif.get_ifd(0x8769).update({0xA002: 9, 0xA003: 6, 0x829A: 0.01, 36867: "2020:01:01 00:00:00"})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 2.0, 3.0)})
    return exif.tobytes()


@pytest.mark.parametrize("source", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize("target", ["b.jpg", "b.png", "b.tif", "b.bmp"])
def test_what_else_is_in_a_file_is_kept(tmp_path, source, target):
    """Profile, camera, time, place, resolution; turned pixels, so no orientation, and sides and resolution swapped."""
    Image.fromarray(levels((6, 9, 3), 8)).save(
        tmp_path / source, exif=described(), dpi=(72, 144), icc_profile=b"profile" * 9
    )
    images.write(tmp_path / target, images.read(tmp_path / source))
    with Image.open(tmp_path / target) as image:
        assert image.size == (6, 9)
        assert image.info["dpi"] == pytest.approx((144, 72), abs=0.02)
        exif = image.getexif()
        assert exif.get(274, 1) == 1
        if target != "b.bmp":
            assert image.info["icc_profile"] == b"profile" * 9
            assert (exif[271], exif[33432]) == ("camera", "somebody")
            assert exif.get_ifd(0x8769)[0xA002] == 6
            assert exif.get_ifd(0x8769)[0x829A] == pytest.approx(0.01)
            assert exif.get_ifd(0x8825)[2] == (48, 2, 3)


class Utf8(str):
    """A text that Pillow writes as UTF-8, as cameras and editors do."""

    def encode(self, *_):
        return super().encode("utf-8")


@pytest.mark.parametrize("target", ["b.jpg", "b.png", "b.tif", "wide.tif"])
def test_names_beyond_ascii_are_kept(tmp_path, target):
    exif, name, lens = Image.Exif(), Utf8("\N{COPYRIGHT SIGN} Bo\u0161"), Utf8("f\u00fcr \u00d8")
    exif[33432] = name
    exif.get_ifd(0x8769)[42036] = lens
    Image.fromarray(levels((6, 9, 3), 8)).save(tmp_path / "a.jpg", exif=exif)
    picture = images.read(tmp_path / "a.jpg")
    if target == "wide.tif":
        images.write(tmp_path / target, replace(picture, depth=16))
        assert name.encode() in (tmp_path / target).read_bytes()
        return
    images.write(tmp_path / target, picture)
    with Image.open(tmp_path / target) as image:
        found = image.getexif()
        assert found[33432].encode("latin-1") == name.encode()
        assert found.get_ifd(0x8769)[42036].encode("latin-1") == lens.encode()


def test_the_shape_of_the_array_that_tifffile_had_is_not_kept(tmp_path):
    array = levels((3, 6, 9), 8)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig="separate")
    images.write(tmp_path / "b.tif", images.read(tmp_path / "a.tif"))
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert "shape" not in file.pages[0].description
        np.testing.assert_array_equal(file.asarray(), np.moveaxis(array, 0, -1))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_grey_with_a_band_of_sixteen_bits(tmp_path, byteorder, kind):
    array = levels((6, 9, 2), 16)
    tifffile.imwrite(
        tmp_path / "a.tif", array, photometric="minisblack", extrasamples=[kind], planarconfig="contig",
        byteorder=byteorder, resolution=(300, 300), resolutionunit="INCH",
    )  # fmt: skip
    picture = images.read(tmp_path / "a.tif")
    assert (picture.depth, picture.kind, picture.dpi) == (16, kind, (300, 300))
    images.write(tmp_path / "b.tif", picture)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), array)
    again = images.read(tmp_path / "b.tif")
    np.testing.assert_array_equal(again.alpha, array[..., 1])


def test_wide_tiff_is_turned_like_any_other(tmp_path):
    array = levels((6, 9, 3), 8)
    for orientation in range(1, 9):
        Image.fromarray(array).save(tmp_path / "a.png", exif=described(orientation))
        tifffile.imwrite(
            tmp_path / "a.tif", array.astype(np.uint16) * 257, photometric="rgb",
            extratags=[(274, "H", 1, orientation, True)], metadata=None,
        )  # fmt: skip
        narrow, wide = (images.read(tmp_path / name).pixels for name in ("a.png", "a.tif"))
        np.testing.assert_allclose(wide, narrow, atol=1e-6)


def test_sixteen_bit_grey_with_white_as_zero(tmp_path):
    array = levels((6, 9), 16)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    np.testing.assert_allclose(images.read(tmp_path / "a.tif").pixels[0], 1 - array / 65535, atol=1e-6)


def test_faults_of_the_file_system(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name, kind, message in [
        ("loop.png", FileNotFoundError, "there is no file"),
        ("empty.png", ValueError, "is empty"),
        ("folder.png", IsADirectoryError, "is a folder"),
        ("x" * 300, OSError, "long|no file"),
        ("a\0b", FileNotFoundError, "no"),
    ]:
        with pytest.raises(kind, match=message):
            images.read(tmp_path / name)
    Image.fromarray(levels((6, 9), 8)).save(tmp_path / "wrong suffix ü.jpg", "PNG")
    assert images.read(tmp_path / "wrong suffix ü.jpg").pixels.shape == (1, 6, 9)  # what is inside counts
    image = bytearray((tmp_path / "wrong suffix ü.jpg").read_bytes())
    for damaged in (image[:-30], image[:40], image[:20]):
        (tmp_path / "damaged.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.png is"):
            images.read(tmp_path / "damaged.png")


def test_a_photograph_with_previews_is_read(tmp_path):
    """Cameras write JPEG files with a second, small picture behind the first (MPO)."""
    first, second = (Image.fromarray(levels((8, 8, 3), 8, seed)) for seed in (0, 1))
    first.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    first.save(tmp_path / "alone.jpg", quality=95)
    np.testing.assert_array_equal(*(images.read(tmp_path / n).pixels for n in ("photo.jpg", "alone.jpg")))


@pytest.mark.parametrize(("depth", "channels"), [(8, 2), (8, 4), (16, 4)])
@pytest.mark.parametrize(("extra", "said"), [(0, "an extra band"), (1, "associated alpha"), (2, "alpha")])
def test_an_extra_sample_of_tiff_stays_what_it_is(tmp_path, depth, channels, extra, said):
    array, photometric = levels((7, 9, channels), depth), "rgb" if channels == 4 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif", array, photometric=photometric, planarconfig="contig", extrasamples=[extra]
    )
    picture = images.read(tmp_path / "a.tif")
    assert f" with {said}, {depth} bit" in str(picture)
    images.write(tmp_path / "b.tif", picture)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert [int(sample) for sample in file.pages[0].extrasamples] == [extra]
        np.testing.assert_array_equal(file.pages[0].asarray(), array)
    if extra != 2:
        with pytest.raises(ValueError, match=rf"cannot hold .* with {said}, .* in \.tif$"):
            images.write(tmp_path / "b.png", picture)


def test_two_extra_samples_are_refused_and_not_dropped(tmp_path):
    for depth in (8, 16):
        tifffile.imwrite(tmp_path / "a.tif", levels((7, 9, 5), depth), photometric="rgb", extrasamples=[0, 0])
        with pytest.raises(ValueError, match=r"5 channels|TIFF of a kind"):
            images.read(tmp_path / "a.tif")


def test_a_transparent_level_of_sixteen_bits_becomes_alpha(tmp_path):
    array = levels((6, 8), 16)
    Image.fromarray(array).save(tmp_path / "a.png", transparency=int(array[2, 3]))
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["transparency"] == array[2, 3]
    picture = images.read(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.alpha, np.where(array == array[2, 3], 0, 65535))
    np.testing.assert_allclose(picture.pixels[0], array / 65535, atol=1e-7)


def marked(shape=(40, 50)):
    missing = np.zeros(shape, bool)
    missing[10:14] = True
    return missing


def ink(path, mask, level, ground=0):
    colour = np.where(mask, level, ground).astype(np.uint8)
    Image.fromarray(np.dstack([colour] * 3 + [255 * mask.astype(np.uint8)])).save(path)


@pytest.mark.parametrize(
    ("name", "save", "meaning"),
    [
        ("bool.tif", tifffile.imwrite, "true"),
        ("one.png", lambda path, m: Image.fromarray(m).save(path), "white"),
        ("one.tif", lambda path, m: Image.fromarray(m).save(path), "true"),
        ("dark.png", lambda path, m: Image.fromarray(m.astype(np.uint8)).save(path), "white"),
        ("grey16.png", lambda path, m: Image.fromarray(m.astype(np.uint16)).save(path), "white"),
        (
            "q75.jpg",
            lambda path, m: Image.fromarray(255 * m.astype(np.uint8)).save(path),
            "brighter than half",
        ),
        (
            "q30.webp",
            lambda path, m: Image.fromarray(255 * m.astype(np.uint8)).save(path, quality=30),
            "half",
        ),
        (
            "profile.webp",  # its pixels come late in the file
            lambda path, m: Image.fromarray(255 * m.astype(np.uint8)).save(
                path,
                quality=30,
                icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
            ),
            "half",
        ),
        (
            "band.tif",  # grey of 16 bits and a band, which Pillow does not open
            lambda path, m: tifffile.imwrite(
                path,
                np.dstack([m, m]).astype(np.uint16),
                photometric="minisblack",
                planarconfig="contig",
                extrasamples=["unspecified"],
            ),
            "white",
        ),
        ("black.png", lambda path, m: ink(path, m, 0), "ink"),
        ("hidden.png", lambda path, m: ink(path, m, 0, 255), "ink"),
        ("white.png", lambda path, m: ink(path, m, 255, 255), "ink"),
    ],
)
def test_masks_are_understood_and_said(tmp_path, name, save, meaning):
    save(tmp_path / name, marked())
    missing, said = images.read_mask(tmp_path / name)
    np.testing.assert_array_equal(missing, marked())
    assert meaning in said.partition(" = missing")[0]


def test_integers_with_a_sign_are_no_grey_levels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8), -1, np.int8))
    with pytest.raises(ValueError, match="holds integers with a sign"):
        images.read(tmp_path / "a.tif")


def test_a_mask_of_two_inks_on_a_transparent_ground_is_refused(tmp_path):
    colour = np.where(marked(), 255, 0).astype(np.uint8)
    alpha = np.full(colour.shape, 255, np.uint8)
    alpha[:5] = 0
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="make it black and white"):
        images.read_mask(tmp_path / "a.png")
