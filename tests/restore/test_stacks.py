"""Stacks: what is in a file stays there, frames become what denoise_gnc makes of them, an interruption costs little."""

import numpy as np
import pytest
import tifffile

from gnclib.images import Stack, data, layout
from gnclib.restore import NoiseCurve, denoise_gnc, denoise_stack, stacks
from tests.cli.test_main import gnc

X = data.embedded()["camera"][0, 0, 100:148, 200:256].double().numpy()
FAST = {"steps": 2}


def frames(count, sigma=20, white=1.0, seed=0):
    g = np.random.default_rng(seed)
    return white * (0.2 + 0.5 * X + sigma / 255 * g.standard_normal((count, *X.shape)))


def whole(count, white, kind, **options):
    return np.rint(frames(count, white=white, **options)).clip(0, white).astype(kind)


def told(path):
    """All that is in a file but its pixels: axes, metadata, tags."""
    with tifffile.TiffFile(path) as file:
        where = ("StripOffsets", "StripByteCounts")
        tags = [{t.name: t.value for t in page.tags if t.name not in where} for page in file.pages]
        return (
            file.series[0].axes,
            file.byteorder,
            file.is_bigtiff,
            file.ome_metadata,
            file.imagej_metadata,
            tags,
        )


STACK = whole(8, 4095, np.uint16).reshape(2, 2, 2, *X.shape)
IMAGEJ = {
    "axes": "TZCYX",
    "unit": "um",
    "spacing": 0.5,
    "finterval": 2.0,
    "Labels": [f"frame {k}" for k in range(8)],
}
OME = {"axes": "TZCYX", "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "µm", "Channel": {"Name": ["DAPI", "GFP"]}}
KINDS = {
    "ImageJ": {"imagej": True, "metadata": IMAGEJ, "resolution": (3, 3)},
    "OME": {"ome": True, "metadata": OME},
    "OME, BigTIFF, big-endian": {"ome": True, "metadata": OME, "bigtiff": True, "byteorder": ">"},
    "tifffile": {"description": "cells", "metadata": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_denoised_and_all_else_in_the_file_stays(tmp_path, kind):
    tifffile.imwrite(tmp_path / "a.tif", STACK, **KINDS[kind])
    assert layout(tmp_path / "a.tif") == "stack"
    denoise_stack(tmp_path / "a.tif", tmp_path / "b.tif", 20 / 255, limits=(None, 4095), **FAST)
    assert told(tmp_path / "b.tif") == told(tmp_path / "a.tif")
    found = tifffile.imread(tmp_path / "b.tif").reshape(STACK.shape)
    for y, x in zip(STACK.reshape(-1, *X.shape), found.reshape(-1, *X.shape), strict=True):
        expected = 4095 * denoise_gnc(y, 20 / 255, data_range=4095, **FAST)
        np.testing.assert_allclose(x, expected, atol=0.6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]


@pytest.mark.parametrize("how", [{"compression": "zlib", "predictor": True}, {"tile": (16, 32)}])
def test_compressed_and_tiled_files_keep_what_is_said_of_them(tmp_path, how):
    tifffile.imwrite(tmp_path / "a.tif", STACK, compressionargs={}, **KINDS["OME"], **how)
    tifffile.imwrite(tmp_path / "plain.tif", STACK, **KINDS["OME"])
    for name in ("a", "plain"):
        denoise_stack(
            tmp_path / f"{name}.tif", tmp_path / f"{name}-out.tif", 0.1, limits=(None, 4095), **FAST
        )
    np.testing.assert_array_equal(*(tifffile.imread(tmp_path / f"{n}-out.tif") for n in ("a", "plain")))
    axes, _, _, ome, *_ = told(tmp_path / "a-out.tif")
    assert (axes, ome) == (told(tmp_path / "a.tif")[0], told(tmp_path / "a.tif")[3])


def test_floats_have_their_own_range_and_what_is_nan_stays_so(tmp_path):
    y = (1000 + 500 * frames(3)).astype(np.float32)
    hole = np.zeros(y.shape, bool)
    hole[:, 10:14, 20:30] = True
    hole[1] = True
    tifffile.imwrite(tmp_path / "a.tif", np.where(hole, np.nan, y), photometric="minisblack")
    lines = []
    denoise_stack(tmp_path / "a.tif", tmp_path / "b.tif", say=lines.append, **FAST)
    found, low, high = tifffile.imread(tmp_path / "b.tif"), y[~hole].min(), y[~hole].max()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), hole)
    assert f"black is {low:.6g}, white {high:.6g}" in lines[0]
    sigma = float(lines[1].split("sigma ")[1].split(" of 255")[0]) / 255
    assert sigma * (high - low) == pytest.approx(500 * 20 / 255, rel=0.15)  # few blocks, with a hole
    far = np.ones(X.shape, bool)
    far[:26, 8:42] = False  # beyond the sight of the prior in two steps
    expected = low + (high - low) * denoise_gnc((y[0] - low) / (high - low), sigma, **FAST)
    np.testing.assert_allclose(found[0][far], expected[far], atol=0.05 * 500 * 20 / 255)
    truth = 1000 + 500 * (0.2 + 0.5 * X)
    assert np.std((found[0] - truth)[~hole[0]]) < 0.7 * np.std((y[0] - truth)[~hole[0]])


def test_one_sigma_for_each_channel_or_for_each_frame(tmp_path):
    levels = [5, 10, 20, 40]
    big = np.kron(X, np.ones((3, 3)))
    g = np.random.default_rng(0)
    y = [[0.3 + 0.3 * big + s / 255 * g.standard_normal(big.shape) for s in levels[::2]] for _ in range(2)]
    tifffile.imwrite(tmp_path / "a.tif", np.float32(y), imagej=True, metadata={"axes": "TCYX"})
    lines = []
    options = {"limits": (0, 1), "say": lines.append, **FAST}
    denoise_stack(tmp_path / "a.tif", tmp_path / "b.tif", **options)
    said = [float(line.split("sigma ")[1].split(" of")[0]) for line in lines if line.endswith("estimated")]
    np.testing.assert_allclose(said, levels[::2], rtol=0.1)
    y = np.float32([0.3 + 0.3 * big + s / 255 * g.standard_normal(big.shape) for s in levels])
    tifffile.imwrite(tmp_path / "a.tif", y, photometric="minisblack")
    denoise_stack(tmp_path / "a.tif", tmp_path / "b.tif", per_frame=True, force=True, **options)
    for noisy, found in zip(y, tifffile.imread(tmp_path / "b.tif"), strict=True):
        np.testing.assert_allclose(found, denoise_gnc(noisy, **FAST), atol=1e-5)


def test_an_interrupted_stack_goes_on_where_it_stopped(tmp_path, monkeypatch):
    a, b, c = (tmp_path / f"{name}.tif" for name in "abc")
    tifffile.imwrite(a, whole(5, 65535, np.uint16))
    denoise_stack(a, c, **FAST)
    b.write_bytes(b"a good file")
    b.chmod(0o640)
    work, calls = stacks._denoised, []

    def stopping(frame, *plan, **options):
        calls.append(plan)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return work(frame, *plan, **options)

    monkeypatch.setattr(stacks, "_denoised", stopping)
    with pytest.raises(KeyboardInterrupt):
        denoise_stack(a, b, force=True, **FAST)
    assert b.read_bytes() == b"a good file"
    lines, ticks = [], []
    denoise_stack(a, b, force=True, say=lines.append, progress=lambda *at: ticks.append(at), **FAST)
    assert "3 of 5 frames are done already" in lines[-1]
    assert (len(calls), ticks) == (6, [(4, 5), (5, 5)])
    assert b.read_bytes() == c.read_bytes()
    assert b.stat().st_mode & 0o777 == 0o640
    del calls[:]
    with pytest.raises(KeyboardInterrupt):
        denoise_stack(a, b, force=True, **FAST)
    denoise_stack(a, b, 0.2, force=True, **FAST)  # another sigma: nothing of the old one is left
    assert len(calls) == 9
    np.testing.assert_array_equal(
        tifffile.imread(b), tifffile.imread(denoise_stack(a, c, 0.2, force=True, **FAST))
    )


def test_colour_frames_and_whole_numbers_beyond_16_bits(tmp_path):
    y = np.moveaxis([whole(2, 255, np.uint8, seed=k) for k in range(3)], 0, -1)
    tifffile.imwrite(tmp_path / "a.tif", y, photometric="rgb")
    denoise_stack(tmp_path / "a.tif", tmp_path / "b.tif", 0.08, **FAST)
    for noisy, found in zip(y, tifffile.imread(tmp_path / "b.tif"), strict=True):
        np.testing.assert_allclose(
            found / 255, denoise_gnc(noisy, 0.08, channel_axis=-1, clip=True, **FAST), atol=0.51 / 255
        )
    for kind in (np.uint32, np.int32):
        tifffile.imwrite(tmp_path / "c.tif", whole(1, 100_000, kind)[0])
        assert layout(tmp_path / "c.tif") == "stack"
        with pytest.raises(ValueError, match="int32 has no range of its own, say what white is"):
            denoise_stack(tmp_path / "c.tif", tmp_path / "d.tif")
    denoise_stack(tmp_path / "c.tif", tmp_path / "d.tif", 0.08, limits=(0, 100_000), **FAST)
    expected = denoise_gnc(tifffile.imread(tmp_path / "c.tif"), 0.08, data_range=100_000, **FAST)
    np.testing.assert_allclose(tifffile.imread(tmp_path / "d.tif"), 100_000 * expected, atol=0.6)


@pytest.mark.filterwarnings("ignore:what varies")
def test_colour_frames_are_denoised_as_colour_pictures_are(tmp_path):
    """Noise in red alone: its covariance is measured in each frame, and the other channels stay."""
    x = np.moveaxis(
        data.embedded(colour=True)["astronaut"].numpy()[..., 30:130, 150:250].reshape(3, 100, 100), 0, -1
    )
    noise = np.random.default_rng(0).standard_normal((2, *x.shape)) * [0.12, 0, 0]
    y = np.rint(255 * (x + noise).clip(0, 1)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", y, photometric="rgb")
    lines = []
    denoise_stack(tmp_path / "a.tif", tmp_path / "b.tif", say=lines.append, **FAST)
    for noisy, found in zip(y, tifffile.imread(tmp_path / "b.tif"), strict=True):
        expected = denoise_gnc(noisy, channel_axis=-1, clip=True, **FAST)
        np.testing.assert_allclose(found / 255, expected, atol=0.51 / 255)
    assert "measured in each frame" in " ".join(lines)


def test_previews_and_constants_are_named(tmp_path):
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(whole(1, 255, np.uint8)[0], subifds=1, metadata=None)
        file.write(whole(1, 255, np.uint8)[0][::2, ::2], subfiletype=1, metadata=None)
    assert layout(tmp_path / "pyramid.tif") == "stack"
    with pytest.raises(ValueError, match="several sizes"):
        denoise_stack(tmp_path / "pyramid.tif", tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c.tif", np.full((2, 40, 40), 7, np.float32))
    with pytest.raises(ValueError, match="all pixels are 7"):
        denoise_stack(tmp_path / "c.tif", tmp_path / "d.tif")


def test_gnc_denoise_takes_stacks(capsys, tmp_path):
    a, b = tmp_path / "a.tif", tmp_path / "b.tif"
    g = np.random.default_rng(0)
    y = np.rint(
        100 + 40 * g.poisson(30 * (0.2 + 0.5 * X), (2, *X.shape)) + 20 * g.standard_normal((2, *X.shape))
    )
    tifffile.imwrite(a, y.astype(np.uint16))
    words = ("denoise", a, "-o", b, "--steps", 2, "--force")
    status, out, err = gnc(capsys, *words, "--sigma", 20)
    assert (status, err, "--white 4095 for 12 bits" in out) == (0, "", True)
    status, out, err = gnc(capsys, *words, "--white", 4095, "--gain", 40, "--offset", 100, "--read-noise", 20)
    assert (status, err, "warning" in out) == (0, "", False)
    curve = NoiseCurve.of_detector(40 / 4095, 100 / 4095, 20 / 4095)
    expected = 4095 * denoise_gnc(y[1].astype(np.uint16), curve, data_range=4095, **FAST)
    np.testing.assert_allclose(tifffile.imread(b)[1], expected, atol=0.6)
    status, out, _ = gnc(capsys, *words, "--white", 4095, "--gain", "auto")
    assert float(out.split("gain ")[1].split(",")[0]) == pytest.approx(40, rel=0.35)
    for more, said in (
        (["--add-noise", "--sigma", 9], "is a stack"),
        (["--black", 5000, "--white", 9], "below white"),
    ):
        status, _, err = gnc(capsys, *words, *more)
        assert (status, said in err) == (2, True)


def test_what_is_no_stack_is_refused(tmp_path):
    a = tmp_path / "a.tif"
    with tifffile.TiffWriter(a) as out:
        out.write(X.astype(np.float32))
        out.write(X[:30].astype(np.float32))
    with pytest.raises(ValueError, match="several sizes"):
        Stack.open(a)
    tifffile.imwrite(a, np.zeros((5, 30, 30), complex))
    with pytest.raises(ValueError, match="save real numbers"):
        Stack.open(a)
    tifffile.imwrite(a, np.zeros((2, 30, 30, 4), np.uint8), photometric="rgb")
    with pytest.raises(ValueError, match="a frame is grey"):
        Stack.open(a)
    tifffile.imwrite(a, STACK)
    content = a.read_bytes()
    for length in range(0, len(content), len(content) // 37):
        a.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.tif"):
            Stack.open(a)
    tifffile.imwrite(a, np.zeros((30, 30), np.uint8))
    assert layout(a) != "stack"
    with pytest.raises(ValueError, match="cannot write"):
        denoise_stack(a, tmp_path / "b.png")
