"""Data: hashes, splits that do not leak, crops that are crops, dead leaves against their closed-form law."""

import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gnclib.images import data
from tests.draws import generator

needs_bsds500 = pytest.mark.skipif(
    not data.available(), reason="the images of BSDS500 are not at hand (set GNC_DATA_DIR to test with them)"
)

# --- the lists -------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_bsds68_is_in_val():
    train, val, test = (set(data.bsds500_ids(split)) for split in data.SPLITS)
    assert (len(train), len(val), len(test)) == (200, 100, 200)
    assert len(train | val | test) == 500
    assert len(data.bsds68_ids()) == len(set(data.bsds68_ids())) == 68
    assert set(data.bsds68_ids()) <= val


def test_hash_list_is_complete_and_well_formed():
    hashes = data._hashes()
    assert len(hashes) == len(set(hashes.values())) == 500  # no photograph appears twice under two names
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in hashes.values())


def test_training_images_check_for_leaks(monkeypatch):
    """Were a benchmark image ever listed as training data, it would be noticed."""
    leak = data.bsds68_ids()[3]
    monkeypatch.setattr(data, "_images", lambda split, ids: {leak: torch.zeros(1, 1, 8, 8)})
    with pytest.raises(ValueError, match=leak):
        data.training_images()


def test_refuse_validation_by_id():
    data.refuse_validation([*data.bsds500_ids("train"), *data.bsds500_ids("test"), "my_own_photograph"])
    with pytest.raises(ValueError, match="BSDS68"):
        data.refuse_validation(["100075", data.bsds68_ids()[0]])
    others = sorted(set(data.bsds500_ids("val")) - set(data.bsds68_ids()))
    with pytest.raises(ValueError, match="belong to BSDS500 val"):
        data.refuse_validation(others[:1])


@pytest.mark.parametrize("split", ["Train", "all", ""])
def test_unknown_split(split):
    with pytest.raises(ValueError, match="there is no split"):
        data.bsds500_ids(split)
    with pytest.raises(ValueError, match="there is no split"):
        data.available([split])


# --- the files -------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A data set of two made-up photographs, with its own hash list, below GNC_DATA_DIR."""
    folder = tmp_path / "BSDS500" / "train"
    folder.mkdir(parents=True)
    hashes = {}
    for k, shape in enumerate([(12, 17, 3), (17, 12, 3)]):
        pixels = np.random.default_rng(k).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.jpg", quality=95)
        hashes[f"train/{k}.jpg"] = hashlib.sha256((folder / f"{k}.jpg").read_bytes()).hexdigest()
    monkeypatch.setattr(data, "_hashes", lambda: hashes)
    monkeypatch.setenv("GNC_DATA_DIR", str(tmp_path))
    return folder


def test_grey_values_are_those_of_pil(tiny):
    images = data.training_images()
    assert list(images) == ["0", "1"]
    assert data.available(["train"])
    for name, image in images.items():
        expected = np.asarray(Image.open(tiny / f"{name}.jpg").convert("L"), dtype=np.float64) / 255
        assert image.dtype == torch.float32
        assert np.abs(image[0, 0].double().numpy() - expected).max() < 1e-7


def test_corrupt_file_is_named(tiny):
    content = bytearray((tiny / "1.jpg").read_bytes())
    content[len(content) // 2] ^= 1  # one flipped bit
    (tiny / "1.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"1\.jpg is not the image of BSDS500"):
        data.training_images()
    with pytest.raises(ValueError, match=r"1\.jpg"):
        data.verify(["train"])


def test_missing_file_is_named(tiny):
    (tiny / "0.jpg").unlink()
    assert not data.available(["train"])
    with pytest.raises(FileNotFoundError, match=r"0\.jpg is missing"):
        data.training_images()


def test_wrong_data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("GNC_DATA_DIR", str(tmp_path / "nowhere"))
    assert not data.available()
    with pytest.raises(FileNotFoundError, match="GNC_DATA_DIR"):
        data.bsds68()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache, and every attempt to open a connection fails."""

    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.delenv("GNC_DATA_DIR", raising=False)
    monkeypatch.setattr(data.pooch, "os_cache", lambda name: tmp_path / name)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between retries


@pytest.mark.usefixtures("no_network")
def test_offline_says_what_to_do():
    assert not data.available()
    with pytest.raises(ConnectionError, match=r"GNC_DATA_DIR.*embedded"):
        data.validation_images()


@pytest.mark.usefixtures("no_network")
def test_embedded_photographs_need_no_network():
    images = data.embedded()
    assert len(images) == len(data.EMBEDDED)
    for name, image in images.items():
        assert image.dtype == torch.float32, name
        assert image.shape[:2] == (1, 1), name
        assert min(image.shape[2:]) >= 256, name
        assert image.min() >= 0, name
        assert image.max() <= 1, name
        # photographs: neighbouring grey values are strongly correlated
        left, right = image[..., :-1].flatten(), image[..., 1:].flatten()
        assert torch.corrcoef(torch.stack([left, right]))[0, 1] > 0.7, name


@pytest.mark.usefixtures("no_network")
def test_download_is_checked_and_cached(tmp_path, monkeypatch):
    """The download itself, from a file URL: right bytes are kept, wrong ones refused."""
    mirror = tmp_path / "mirror" / "train"
    mirror.mkdir(parents=True)
    Image.fromarray(np.full((8, 9), 77, dtype=np.uint8)).save(mirror / "1.jpg")
    digest = hashlib.sha256((mirror / "1.jpg").read_bytes()).hexdigest()

    class Copy:
        def __call__(self, url, output, pooch_object):
            shutil.copy(Path(url.removeprefix("copy://")), output)

    monkeypatch.setattr(data.pooch.core, "choose_downloader", lambda url, progressbar=False: Copy())
    monkeypatch.setattr(data, "URL", f"copy://{tmp_path}/mirror/")
    monkeypatch.setattr(data, "_hashes", lambda: {"train/1.jpg": "0" * 64})
    with pytest.raises(ConnectionError, match="SHA256"):
        data.training_images()
    monkeypatch.setattr(data, "_hashes", lambda: {"train/1.jpg": digest})
    assert abs(data.training_images()["1"].mean() - 77 / 255) < 2 / 255
    (mirror / "1.jpg").unlink()  # from now on only the cache can serve it
    assert data.available(["train"])
    assert data.verify(["train"]) == 1


@needs_bsds500
def test_all_hashes():
    assert data.verify() == 500


@needs_bsds500
def test_the_real_splits():
    benchmark = data.bsds68()
    assert tuple(benchmark) == data.bsds68_ids()
    assert all(tuple(sorted(image.shape[2:])) == (321, 481) for image in benchmark.values())
    validation = data.validation_images()
    assert len(validation) == 32
    assert not set(validation) & set(benchmark)
    training = data.training_images()
    assert len(training) == 400
    assert not set(training) & (set(benchmark) | set(validation))


# --- patches ---------------------------------------------------------------------------------------------


def symmetries(patch):
    turned = [torch.rot90(patch, k, (-2, -1)) for k in range(4)]
    return turned + [turn.flip(-1) for turn in turned]


def brute_force_positions(images, patch):
    """All (image, row, column) at which `patch` occurs."""
    side, found = patch.shape[-1], []
    for k, image in enumerate(images):
        windows = image[0, 0].unfold(0, side, 1).unfold(1, side, 1)  # (rows, columns, side, side)
        hits = (windows == patch[0]).flatten(2).all(-1).nonzero()
        found += [(k, int(i), int(j)) for i, j in hits]
    return found


@pytest.fixture
def unequal():
    """Three images of different sizes, every grey value distinct enough that crops are unique."""
    g = generator(5)
    return [
        torch.randint(256, (1, 1, h, w), generator=g).float() / 255 for h, w in [(9, 14), (13, 7), (6, 6)]
    ]


def test_crops_are_crops_at_uniform_positions(unequal):
    """Brute-force search finds each crop exactly once; all positions are equally likely (chi squared)."""
    size, count = 5, 6000
    sampler = data.PatchSampler(unequal, size, generator(1), augment=False)
    there = 5 * 10 + 9 * 3 + 2 * 2
    crops = sampler.sample(count)
    hits = {}
    for crop in crops:
        key = crop.numpy().tobytes()
        hits[key] = hits.get(key, 0) + 1
    positions = {}
    for key, times in hits.items():
        patch = torch.from_numpy(np.frombuffer(key, dtype=np.float32).reshape(1, size, size).copy())
        (position,) = brute_force_positions(unequal, patch)
        positions[position] = times
    assert len(positions) == there  # every position occurs, so all corners do
    expected = count / there
    chi2 = sum((times - expected) ** 2 / expected for times in positions.values())
    freedom = there - 1
    assert abs(chi2 - freedom) < 6 * math.sqrt(2 * freedom)


def test_all_eight_symmetries_occur_equally_often():
    image = torch.arange(16.0).reshape(1, 1, 4, 4) / 255  # one position: only the symmetry is random
    crops = data.patches([image], 4, 4000, generator(2), augment=True)
    variants = symmetries(image)
    counts = torch.tensor([sum(torch.equal(crop[None], v) for crop in crops) for v in variants])
    assert counts.sum() == 4000  # each crop is one of the eight
    assert (counts - 500).abs().max() < 6 * math.sqrt(4000 * 1 / 8 * 7 / 8)


def test_augmented_crops_are_crops(unequal):
    for crop in data.patches(unequal, 4, 50, generator(3), augment=True):
        assert sum(len(brute_force_positions(unequal, v)) for v in symmetries(crop)) == 1


def test_sampling_repeats_and_accepts_dict_and_any_grey_value():
    image = torch.rand(1, 1, 10, 11, generator=generator(4))  # not multiples of 1/255: kept in float
    one = data.patches({"a": image}, 3, 20, generator(6))
    two = data.patches([image], 3, 20, generator(6))
    assert torch.equal(one, two)
    assert all(len(brute_force_positions([image], crop)) == 1 for crop in one)


@pytest.mark.parametrize(
    ("images", "size", "message"),
    [
        ([], 4, "no images"),
        ([torch.zeros(1, 1, 8, 8)], 9, "does not fit"),
        ([torch.zeros(1, 1, 8, 8)], 0, "positive integer"),
        ([torch.zeros(8, 8)], 4, r"\(1, 1, H, W\)"),
        ([torch.zeros(1, 1, 8, 8, dtype=torch.uint8)], 4, "float tensor"),
        ([torch.full((1, 1, 8, 8), 255.0)], 4, r"\[0, 1\]"),
        ([torch.full((1, 1, 8, 8), math.nan)], 4, r"\[0, 1\]"),
    ],
)
def test_bad_patches(images, size, message):
    with pytest.raises(ValueError, match=message):
        data.patches(images, size, 2, generator())


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_bad_count(count):
    with pytest.raises(ValueError, match="number of patches"):
        data.patches([torch.zeros(1, 1, 8, 8)], 4, count, generator())


def test_sampler_wants_a_generator():
    with pytest.raises(ValueError, match=r"torch\.Generator"):
        data.PatchSampler([torch.zeros(1, 1, 8, 8)], 4, 0)


# --- noise -----------------------------------------------------------------------------------------------


def test_noise_has_the_stated_law_and_is_not_clipped():
    x = torch.full((1, 1, 200, 200), 0.98)
    y = data.add_noise(x, 0.1, 7)
    n = x.numel()
    assert abs((y - x).mean()) < 6 * 0.1 / math.sqrt(n)
    assert abs((y - x).var() / 0.01 - 1) < 6 * math.sqrt(2 / n)
    assert y.max() > 1.1
    assert torch.equal(y, data.add_noise(x, 0.1, generator(7)))
    assert not torch.equal(y, data.add_noise(x, 0.1, 8))


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
def test_bad_sigma(sigma):
    with pytest.raises(ValueError, match="sigma must be finite"):
        data.add_noise(torch.zeros(1, 1, 4, 4), sigma, 0)


def test_bad_noise_arguments():
    with pytest.raises(ValueError, match="floating point"):
        data.add_noise(torch.zeros(4, dtype=torch.uint8), 0.1, 0)
    with pytest.raises(ValueError, match="seed must be"):
        data.add_noise(torch.zeros(4), 0.1, None)
