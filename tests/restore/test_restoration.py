"""Numpy arrays in and out: the dtypes of scikit-image, the same numbers as by hand, masks the other way round."""

import numpy as np
import pytest
import torch
from scipy.interpolate import griddata
from skimage.restoration import inpaint_biharmonic

from gnclib.images import data
from gnclib.restore import schemes
from gnclib.restore.flow import last
from gnclib.restore.learned import Task
from gnclib.restore.operators import Denoising, Inpainting, first_guess
from gnclib.restore.restoration import denoise_channels, denoise_gnc, inpaint_channels, inpaint_gnc

SIGMA = 25 / 255
QUICK = {"steps": 3}


def photo(height=48, width=56, noise=SIGMA, seed=0):
    x = data.embedded()["camera"][..., 100 : 100 + height, 220 : 220 + width]
    return (data.add_noise(x, noise, seed) if noise else x)[0, 0].numpy()


def holes(shape, fraction=0.3, seed=1):
    return np.random.default_rng(seed).random(shape) < fraction


def by_hand(y, sigma=SIGMA, steps=3):
    scheme = schemes.load("gnc", "R1", Task("denoise", 255 * sigma), steps)
    y = torch.from_numpy(np.array(y, np.float32))[None, None]
    return last(scheme.states(Denoising(y, scheme.task.sigma))).x[0, 0].numpy()


@pytest.mark.parametrize("kind", ["bool", "uint8", "uint16", "float16", "float32", "float64", ">f4"])
def test_dtypes_have_their_ranges(kind):
    y = photo().clip(0, 1)
    top = np.iinfo(kind).max if np.issubdtype(kind, np.integer) else 1
    image = y > 0.5 if kind == "bool" else (top * y.astype(float)).astype(kind)
    before, result = image.copy(), denoise_gnc(image, SIGMA, **QUICK)
    np.testing.assert_array_equal(image, before)
    assert result.dtype == (np.float32 if kind in ("float16", "float32", ">f4") else np.float64)
    np.testing.assert_allclose(result, by_hand(image.astype(float) / top), atol=1e-6)
    # where nothing is missing, what comes back is the float image itself
    kept = inpaint_gnc(image, np.zeros(image.shape, bool), **QUICK)
    assert kept.dtype == result.dtype
    np.testing.assert_array_equal(kept, (image.astype(float) / top).astype(kept.dtype))
    assert not np.shares_memory(kept, image)


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint32", "uint64"])
def test_other_integers_need_the_value_of_white(kind):
    image, missing = np.rint(100 * photo().clip(0, 1)).astype(kind), holes((48, 56))
    with pytest.raises(ValueError, match="data_range=4095 for 12 bits"):
        denoise_gnc(image, SIGMA)
    with pytest.raises(ValueError, match="data_range"):
        inpaint_gnc(image.tolist(), missing)
    expected = denoise_gnc(image / 100, SIGMA, **QUICK)
    np.testing.assert_array_equal(denoise_gnc(image, SIGMA, data_range=100, **QUICK), expected)
    np.testing.assert_array_equal(denoise_gnc(image + 9, SIGMA, data_range=(9, 109), **QUICK), expected)
    filled = inpaint_gnc(image / 100, missing, **QUICK)
    np.testing.assert_array_equal(inpaint_gnc(image, missing, data_range=100, **QUICK), filled)


def test_twelve_bits_in_sixteen():
    y = photo().clip(0, 1)
    twelve = np.rint(4095 * y).astype(np.uint16)
    with pytest.warns(RuntimeWarning, match="of 65535: if white is less, say so"):
        denoise_gnc(twelve, SIGMA, **QUICK)
    np.testing.assert_allclose(denoise_gnc(twelve, SIGMA, data_range=4095, **QUICK), by_hand(y), atol=2e-3)


@pytest.mark.filterwarnings("error")
def test_an_eighth_of_sixteen_bits_is_enough():
    """A dark image of 16 bits is one; 13 bits and more are not doubted."""
    y = photo().clip(0, 1)
    denoise_gnc(np.rint(0.13 * 65535 * y / y.max()).astype(np.uint16), SIGMA, **QUICK)
    with pytest.raises(RuntimeWarning, match="of 65535"):
        denoise_gnc(np.rint(0.12 * 65535 * y / y.max()).astype(np.uint16), SIGMA, **QUICK)


@pytest.mark.parametrize("counts", [20, 8, 255, 4095])
def test_counts_are_refused_unless_white_is_named(counts):
    y = counts * photo()
    with pytest.raises(ValueError, match="data_range"):
        denoise_gnc(y)
    found = denoise_gnc(y, SIGMA, data_range=counts, **QUICK)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(photo()), atol=1e-5)
    for wrong in (0, -1, (1, 1), (0, np.nan), np.inf):
        with pytest.raises(ValueError, match="black below white"):
            denoise_gnc(y, SIGMA, data_range=wrong)


def test_alpha_stays_and_colour_is_that_of_rgb():
    rgb = np.stack([photo(seed=k) for k in range(3)], -1)
    alpha = np.linspace(0, 1, rgb[..., 0].size, dtype=np.float32).reshape(rgb.shape[:2])
    rgba = np.dstack([rgb, alpha])
    for sigma in (SIGMA, None):
        found = denoise_gnc(rgba, sigma, channel_axis=-1, **QUICK)
        np.testing.assert_array_equal(found[..., 3], alpha)
        np.testing.assert_array_equal(found[..., :3], denoise_gnc(rgb, sigma, channel_axis=-1, **QUICK))
    alone = [denoise_gnc(c, SIGMA, **QUICK) for c in np.moveaxis(rgba, -1, 0)]
    bands = denoise_gnc(rgba, SIGMA, channel_axis=-1, colour="channels", **QUICK)
    np.testing.assert_array_equal(bands, np.stack(alone, -1))
    five = np.dstack([rgba, rgb[..., 0]])  # more than four are bands of their own
    np.testing.assert_array_equal(denoise_gnc(five, SIGMA, channel_axis=-1, **QUICK)[..., :4], bands)


def test_layout_of_the_array_does_not_matter():
    y = photo()
    expected = by_hand(y)
    locked = y.copy()
    locked.flags.writeable = False
    wide = np.zeros((96, 112), np.float32)
    wide[::2, ::2] = y
    upside = np.ascontiguousarray(y[::-1])[::-1]
    for image in (locked, wide[::2, ::2], np.asfortranarray(y), upside, y.tolist()):
        np.testing.assert_array_equal(
            denoise_gnc(image, SIGMA, **QUICK), expected.astype(np.asarray(image).dtype)
        )
    np.testing.assert_array_equal(locked, y)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_colour_goes_channel_by_channel(axis):
    channels = [photo(seed=k) for k in range(3)]
    image, missing = np.stack(channels, axis), holes((48, 56))
    result = denoise_gnc(image, SIGMA, channel_axis=axis, colour="channels", clip=True, **QUICK)
    filled = inpaint_gnc(image, missing, channel_axis=axis, **QUICK)
    assert result.shape == filled.shape == image.shape
    for k, y in enumerate(channels):
        np.testing.assert_array_equal(result.take(k, axis), by_hand(y).clip(0, 1))
        np.testing.assert_array_equal(filled.take(k, axis), inpaint_gnc(y, missing, **QUICK))


def test_denoising_removes_noise_of_unknown_level():
    """Two thirds of the gain in PSNR remain when sigma is estimated; a constant comes back as it is."""
    clean, y = photo(128, 128, 0), photo(128, 128)
    error = [np.mean((x - clean) ** 2) for x in (y, denoise_gnc(y, SIGMA), denoise_gnc(y))]
    gain = 10 * np.log10(error[0] / np.array(error[1:]))
    assert gain[0] > 6
    assert gain[1] > gain[0] - 0.5
    flat = np.full((40, 50), 0.3)
    np.testing.assert_array_equal(denoise_gnc(flat), flat)
    both = denoise_gnc(np.stack([flat, y[:40, :50]]), channel_axis=0, **QUICK)
    np.testing.assert_array_equal(both[0], flat)
    np.testing.assert_allclose(both[1], denoise_gnc(y[:40, :50], **QUICK), atol=1e-6)


@pytest.mark.parametrize("scheme", ["gnc", "joint", "learned"])
def test_inpainting_fills_what_is_true_in_the_mask(scheme):
    x = photo(64, 64, 0).astype(np.float64)
    missing = holes(x.shape, 0.8)
    damaged = np.where(missing, np.nan, x)  # what was there is not looked at
    result = inpaint_gnc(damaged, missing, scheme=scheme)
    np.testing.assert_array_equal(result[~missing], x[~missing])
    if scheme == "joint":  # stops early, smoother than the others
        at, all_pixels = np.argwhere(~missing), np.indices(x.shape).transpose(1, 2, 0)
        theirs = griddata(at, x[~missing], all_pixels, method="nearest")
    else:
        theirs = inpaint_biharmonic(np.where(missing, 0, x), missing)
    ours, theirs = (np.mean((z - x)[missing] ** 2) for z in (result, theirs))
    assert ours < theirs
    with pytest.raises(ValueError, match="inverted"):
        inpaint_gnc(x, np.ones_like(missing))


def test_inpainting_looks_only_around_the_holes_and_sees_all_it_needs():
    """The same as by hand on the whole image, though a corner and a line are missing far from the border."""
    x = photo(64, 80, 0)
    missing = np.zeros(x.shape, bool)
    missing[20:23, 30:60] = True
    missing[40, 50] = True
    for tile in (None, 16):
        result = inpaint_gnc(x, missing.astype(int), tile=tile)
        scheme = schemes.load("gnc", "R1", Task("inpaint", 0.5))
        term = Inpainting(torch.from_numpy(np.array(x))[None, None], torch.from_numpy(~missing))
        # the start is coarse to fine, and depends on where the rectangle begins: at even pixels it does not matter
        start = first_guess(term.y[..., 14:47, 24:66], term.mask[..., 14:47, 24:66])
        whole = term.start()
        whole[..., 14:47, 24:66] = start
        np.testing.assert_allclose(result, last(scheme.states(term, whole)).x[0, 0].numpy(), atol=2e-6)


def test_first_guess_is_exact_on_constants_and_close_on_slopes():
    known = torch.from_numpy(~holes((33, 47), 0.7))[None, None]
    known[..., 5:25, 8:30] = False
    flat = torch.full((1, 1, 33, 47), 0.3, dtype=torch.float64)
    torch.testing.assert_close(first_guess(torch.where(known, flat, 9.0), known), flat)
    slope = torch.linspace(0, 1, 47, dtype=torch.float64).expand(1, 1, 33, 47)
    found = first_guess(torch.where(known, slope, torch.nan), known)
    assert torch.equal(found[known], slope[known])
    assert (found - slope).abs().max() < 0.15


def test_first_guess_is_a_copy():
    y, known = torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    guess = first_guess(y, known)
    assert torch.equal(guess, y)
    assert guess.data_ptr() != y.data_ptr()


def test_first_guess_of_nothing_is_grey():
    known = torch.zeros(2, 1, 5, 7, dtype=torch.bool)
    known[1, 0, 4, 6] = True
    guess = first_guess(torch.where(known, 0.9, 0.0), known)
    torch.testing.assert_close(guess[0], torch.full((1, 5, 7), 0.5))
    torch.testing.assert_close(guess[1], torch.full((1, 5, 7), 0.9))


def test_the_functions_on_channels_tell_what_they_found_and_how_far_they_are():
    """One plane is noisy and one is not: the steps are counted from 0 on over all planes."""
    flat, told = np.full((48, 56), 0.3, np.float32), []
    image, found = denoise_channels(np.stack([flat, photo()]), steps=4, progress=lambda *at: told.append(at))
    assert told == [(k, 4) for k in range(5)]
    assert found.levels[0] is None
    assert found.levels[1] == pytest.approx(SIGMA, rel=0.1)
    assert (found.basis, found.doubt) == ("channels", "")
    np.testing.assert_array_equal(image[0], flat)
    np.testing.assert_array_equal(image[1], denoise_gnc(photo(), found.levels[1], steps=4))
    told.clear()
    missing = holes((48, 56))
    filled = inpaint_channels(
        np.stack([flat, photo()]), missing, steps=2, progress=lambda *at: told.append(at)
    )
    assert told == [(k, 4) for k in range(5)]
    np.testing.assert_array_equal(filled[1], inpaint_gnc(photo(), missing, steps=2))


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((9, 9, 3)), {}, "channel_axis"),
        (np.zeros((9, 9)), {"channel_axis": -1}, "channel_axis"),
        (np.zeros((9, 9, 3)), {"channel_axis": 3}, "one of 3 axes"),
        (np.zeros((9, 0)), {}, "no pixels"),
        (np.zeros((9, 9), complex), {}, "real numbers"),
        (np.array([["a"] * 9] * 9), {}, "real numbers"),
        (np.full((9, 9), np.nan), {}, "finite"),
        (np.full((9, 9), 200.0), {}, "divide by 255"),
        (100.0 * np.arange(243).reshape(9, 9, 3), {"channel_axis": -1}, "from 0 to 2.4e\\+04: divide by 255"),
        (np.ma.masked_less(np.ones((9, 9)), 0), {}, "masked arrays"),
        (np.zeros((2, 2)), {}, "too small"),
        (np.zeros((9, 9)), {"sigma": 25}, "divide grey levels by 255"),
        (np.zeros((9, 9)), {"sigma": 0.005}, "outside of this prior's range"),
        (np.zeros((9, 9)), {"sigma": np.nan}, "units of the float image"),
        (np.zeros((9, 9)), {"scheme": "magic"}, "unknown scheme"),
        (np.zeros((9, 9)), {"colour": "lab"}, "one of auto, opponent, channels, got 'lab'"),
    ],
)
def test_bad_images(image, options, message):
    with pytest.raises(ValueError, match=message):
        denoise_gnc(image, **{"sigma": 0.1} | options)


@pytest.mark.parametrize(
    ("mask", "message"), [(np.zeros((9, 8)), "shape"), (np.full((9, 9), 0.5), "0 \\(known\\) and 1")]
)
def test_bad_masks(mask, message):
    with pytest.raises(ValueError, match=message):
        inpaint_gnc(np.zeros((9, 9)), mask)


@pytest.mark.parametrize("name", ["R1", "C1", "P1", "P2", "P3"])
def test_torch_may_have_another_default_type(name):
    """Everything is computed in float32 and comes out the same."""
    y = photo(48, 48)
    expected = denoise_gnc(y, SIGMA, prior=name, **QUICK)
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(denoise_gnc(y, SIGMA, prior=name, **QUICK), expected)
        inpaint_gnc(y, holes(y.shape), prior=name, **QUICK)
        if name == "R1":
            for scheme in ("mmse", "joint", "learned"):
                denoise_gnc(y, SIGMA, scheme=scheme)
    finally:
        torch.set_default_dtype(torch.float32)
