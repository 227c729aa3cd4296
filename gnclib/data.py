"""Images: BSDS500 by split, the BSDS68 benchmark, patches, and pictures that need no network.

The Berkeley Segmentation Data Set (Arbelaez, Maire, Fowlkes & Malik, TPAMI 2011) has 500 photographs of
321 x 481 pixels (either way up) in three splits: train (200), val (100) and test (200). The denoising
benchmark BSDS68 of Roth & Black is a *subset of val*. Priors are therefore trained on train + test only:
`training_images` refuses val, so a benchmark number is never a number on training data.

The images are not part of this package. They are read from the folder named by the environment variable
`GNC_DATA_DIR` (which holds `BSDS500/{train,val,test}/*.jpg`) or else downloaded once into pooch's cache from
a public mirror at a pinned commit. Either way each file is checked against the SHA-256 in `bsds500.sha256`.

Grey values are PIL's `convert("L")` (ITU-R 601 luma, rounded to 8 bits) divided by 255: float32 in [0, 1],
shape (1, 1, H, W). That is the grey version which the benchmark uses.
"""

import hashlib
import io
import math
import os
import re
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gnclib.leaves import dead_leaves, leaf_radii
from gnclib.reading import read_bytes

with warnings.catch_warnings():  # in a notebook tqdm.auto wants ipywidgets; nothing here needs them
    warnings.filterwarnings("ignore", message="IProgress not found")
    import pooch

__all__ = [
    "PatchSampler",
    "add_noise",
    "available",
    "bsds68",
    "bsds68_ids",
    "bsds500",
    "bsds500_ids",
    "dead_leaves",
    "embedded",
    "leaf_radii",
    "middle",
    "patches",
    "refuse_validation",
    "training_images",
    "validation_images",
    "verify",
]

SPLITS = ("train", "val", "test")
#: bytes; the largest image of BSDS500 has less than a tenth of it
LARGEST = 2_000_000
COMMIT = "a04b7c6c3a9f0ace74bf205c72a43d32e1c72722"
URL = f"https://raw.githubusercontent.com/BIDS/BSDS500/{COMMIT}/BSDS500/data/images/"
EMBEDDED = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "moon.png", "motorcycle_left.png", "rocket.jpg"),
)


# --- which images there are -------------------------------------------------------------------------------


def parse_hashes(content: bytes) -> dict[str, str]:
    """Name -> SHA-256 of the 500 images, from the list that comes with the package. Raises ValueError."""
    line = re.compile(r"([0-9a-f]{64})  ((?:train|val|test)/[0-9]{1,8}\.jpg)")
    found = [line.fullmatch(text) for text in content.decode("ascii", "replace").splitlines()]
    hashes = {match[2]: match[1] for match in found if match}
    if len(found) != len(hashes) or [sum(k.startswith(s) for k in hashes) for s in SPLITS] != [200, 100, 200]:
        raise ValueError("the list bsds500.sha256 of the package is damaged: install gnclib anew")
    return hashes


def parse_benchmark(content: bytes) -> tuple[str, ...]:
    """The ids of BSDS68, from the list that comes with the package. Raises ValueError."""
    ids = tuple(content.decode("ascii", "replace").split())
    if len(set(ids)) != 68 or len(ids) != 68 or not all(f"val/{image}.jpg" in _hashes() for image in ids):
        raise ValueError("the list bsds68.txt of the package is damaged: install gnclib anew")
    return ids


@cache
def _hashes() -> dict[str, str]:
    return parse_hashes((files("gnclib") / "bsds500.sha256").read_bytes())


@cache
def bsds68_ids() -> tuple[str, ...]:
    """Ids of the 68 images of BSDS68, in the order of the benchmark. All of them are in val."""
    return parse_benchmark((files("gnclib") / "bsds68.txt").read_bytes())


def bsds500_ids(split: str) -> tuple[str, ...]:
    """Ids of the images of a split, sorted. Raises ValueError if there is no such split."""
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} of BSDS500: choose one of {', '.join(SPLITS)}")
    return tuple(sorted(Path(name).stem for name in _hashes() if name.startswith(f"{split}/")))


# --- where they lie ---------------------------------------------------------------------------------------


def _local_folder() -> Path | None:
    """The folder BSDS500 below GNC_DATA_DIR, or None if the variable is not set."""
    root = os.environ.get("GNC_DATA_DIR")
    if not root:
        return None
    folder = Path(root).expanduser() / "BSDS500"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"GNC_DATA_DIR is {root!r}, but there is no folder {folder}: let it name the folder that holds "
            "BSDS500/{train,val,test}/*.jpg, or unset it to download the images"
        )
    return folder


def _cache_folder() -> Path:
    return Path(pooch.os_cache("gnclib")) / f"BSDS500-{COMMIT[:8]}"


def available(splits: Iterable[str] = SPLITS) -> bool:
    """Whether all images of these splits are at hand without a download (hashes are not checked here)."""
    names = [name for split in splits for name in _names(split, bsds500_ids(split))]
    try:
        folder = _local_folder() or _cache_folder()
    except FileNotFoundError:
        return False
    return all((folder / name).is_file() for name in names)


def _read_local(folder: Path, name: str) -> bytes:
    """The bytes of one image whose hash is right. Raises FileNotFoundError or ValueError naming the file."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: put the image there, or unset GNC_DATA_DIR to download it"
        )
    try:
        content = read_bytes(path, LARGEST)
    except ValueError:
        content = b""
    if hashlib.sha256(content).hexdigest() != _hashes()[name]:
        raise ValueError(
            f"{path} is not the image of BSDS500 (its SHA-256 differs): it is corrupt or was changed. "
            "Delete it and copy or download it anew"
        )
    return content


def _remove_remains(folder: Path) -> None:
    """Remove what a killed download left: pooch's temporary files, if an hour old (another may be at work)."""
    for split in SPLITS:
        for path in (folder / split).glob("tmp*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()


def _download(names: list[str]) -> Path:
    """Download into pooch's cache what is not there yet; return the folder."""
    folder = _cache_folder()
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        fetcher = pooch.create(path=folder, base_url=URL, registry=_hashes(), retry_if_failed=2)
        pooch.get_logger().setLevel("WARNING")
        _remove_remains(folder)
        try:
            for name in tqdm(missing, desc="BSDS500", unit="image"):
                fetcher.fetch(name)
        except (OSError, ValueError) as error:  # OSError: no network, HTTP errors; ValueError: wrong hash
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__  # --debug: all
            raise ConnectionError(
                f"BSDS500 is not here, and could not be downloaded from {URL} ({reason}). If this "
                "machine has no network, copy the data set here and set the environment variable "
                "GNC_DATA_DIR to the folder that holds BSDS500/{train,val,test}/*.jpg; or work with "
                "gnclib.data.embedded(), photographs that need no network"
            ) from error
    return folder


def _contents(names: list[str]) -> dict[str, bytes]:
    folder = _local_folder() or _download(names)
    return {name: _read_local(folder, name) for name in names}


def _images(split: str, ids: Iterable[str], colour: bool = False) -> dict[str, Tensor]:
    """Grey images of a split by their ids, in this order; or (3, 1, H, W), their red, green and blue."""
    decode = _colour if colour else _grey
    return {Path(name).stem: decode(content) for name, content in _contents(_names(split, ids)).items()}


def _names(split: str, ids: Iterable[str]) -> list[str]:
    return [f"{split}/{image}.jpg" for image in ids]


def _grey(content: bytes) -> Tensor:
    with Image.open(io.BytesIO(content)) as image:
        grey = np.array(image.convert("L"))
    return torch.from_numpy(grey).float().div_(255)[None, None]


def _colour(content: bytes) -> Tensor:
    with Image.open(io.BytesIO(content)) as image:
        channels = np.moveaxis(np.array(image.convert("RGB")), -1, 0)
    return torch.from_numpy(channels.copy()).float().div_(255)[:, None]


# --- data sets --------------------------------------------------------------------------------------------


def bsds500(split: str) -> dict[str, Tensor]:
    """Grey images of one split of BSDS500: a dict id -> float32 tensor (1, 1, H, W) in [0, 1], sorted by id.

    Reads below GNC_DATA_DIR if that is set; otherwise downloads (about 10 to 20 MB per split) with a progress
    bar. Raises ValueError for an unknown split or a corrupt file, FileNotFoundError for a missing one, and
    ConnectionError, saying what to do, when the download fails.
    """
    return _images(split, bsds500_ids(split))


def bsds68(colour: bool = False) -> dict[str, Tensor]:
    """The 68 test images of Roth & Black in the benchmark's order: dict id -> (1, 1, H, W). For tests only.

    colour: (3, 1, H, W), red, green and blue: the benchmark that is known as CBSD68.
    """
    return _images("val", bsds68_ids(), colour)


def validation_images() -> dict[str, Tensor]:
    """The 32 images of val that are not in BSDS68: for choosing settings without touching the benchmark."""
    benchmark = set(bsds68_ids())
    return _images("val", [image for image in bsds500_ids("val") if image not in benchmark])


def refuse_validation(ids: Iterable[str]) -> None:
    """Raise ValueError if one of these image ids belongs to val, and say so louder if it belongs to BSDS68."""
    ids = set(ids)
    if leaked := sorted(ids & set(bsds68_ids())):
        raise ValueError(
            f"these images belong to the test set BSDS68, never train on them: {', '.join(leaked)}"
        )
    if leaked := sorted(ids & set(bsds500_ids("val"))):
        raise ValueError(f"these images belong to val, never train on them: {', '.join(leaked)}")


def refuse_validation_files(paths: Iterable[Path]) -> None:
    """Raise ValueError if one of these files has the content or, but for its suffix, the name of an image of val."""
    paths = list(paths)
    hashes = {digest for name, digest in _hashes().items() if name.startswith("val/")}
    for path in paths:
        if path.stat().st_size <= LARGEST and hashlib.sha256(path.read_bytes()).hexdigest() in hashes:
            raise ValueError(
                f"{path} is an image of BSDS500 val, which holds the test set BSDS68: never train on it"
            )
    if named := sorted({path.stem for path in paths} & set(bsds500_ids("val"))):
        raise ValueError(
            f"these files have names of images of BSDS500 val, which holds the test set BSDS68: {', '.join(named)}. "
            "Never train on those; if yours are others, give them other names"
        )


def training_images(splits: Iterable[str] = ("train", "test")) -> dict[str, Tensor]:
    """Images to train on: by default train + test, 400 of them. ValueError for val, which holds BSDS68."""
    splits = (splits,) if isinstance(splits, str) else tuple(splits)
    if not splits:
        raise ValueError("training_images needs at least one split: 'train', 'test' or both")
    if "val" in splits:
        raise ValueError("val must not be trained on: it contains the test set BSDS68. Use train and test")
    images = {}
    for split in splits:
        images.update(bsds500(split))
    refuse_validation(images)
    return images


def verify(splits: Iterable[str] = SPLITS) -> int:
    """Check the SHA-256 of every image of these splits (downloading what is absent); return their number."""
    return sum(len(_contents(_names(split, bsds500_ids(split)))) for split in splits)


def embedded() -> dict[str, Tensor]:
    """Grey photographs bundled with scikit-image (no network): dict name -> (1, 1, H, W), float32, [0, 1]."""
    folder = files("skimage") / "data"
    return {Path(name).stem: _grey((folder / name).read_bytes()) for name in EMBEDDED}


# --- patches and noise ------------------------------------------------------------------------------------


class PatchSampler:
    """Uniformly random square crops of a set of images, fast enough for a training loop.

    Every position of every image at which a patch fits is equally likely; with `augment` each crop is also
    turned or mirrored by one of the 8 symmetries of the square, all equally likely. Images with 8-bit grey
    values are stored as uint8, so sampling is exact and 400 photographs take 62 MB.

    images: dict name -> (1, 1, H, W) or an iterable of such tensors, in [0, 1]; size: side of the patch in
    pixels; generator: the only source of randomness. Raises ValueError for no images, a wrong shape or dtype,
    and for a patch larger than an image.
    """

    def __init__(
        self, images: Mapping[str, Tensor] | Iterable[Tensor], size: int, generator, augment: bool = True
    ):
        images = list(images.values() if isinstance(images, Mapping) else images)
        if not images:
            raise ValueError("there are no images to take patches from")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"the size of a patch must be a positive integer, got {size!r}")
        for image in images:
            if image.ndim != 4 or image.shape[:2] != (1, 1) or not image.is_floating_point():
                raise ValueError(
                    f"images must be a float tensor (1, 1, H, W), not {image.dtype} {tuple(image.shape)}"
                )
            height, width = image.shape[2:]
            if min(height, width) < size:
                raise ValueError(
                    f"a patch of {size} x {size} does not fit into an image of {height} x {width}"
                )
        if not isinstance(generator, torch.Generator):
            raise ValueError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        self.size, self.generator, self.augment = size, generator, augment
        self._pixels = _pack(images)  # (total number of pixels,)
        shapes = torch.tensor([image.shape[2:] for image in images])  # (N, 2)
        self._width = shapes[:, 1]
        self._columns = shapes[:, 1] - size + 1  # positions per row, (N,)
        self._last = ((shapes[:, 0] - size + 1) * self._columns).cumsum(0)  # cumulated positions, (N,)
        self._start = shapes.prod(1).cumsum(0) - shapes.prod(1)  # first pixel of each image, (N,)
        self._side = torch.arange(size)

    @property
    def positions(self) -> int:
        """The number of different crops (without symmetries)."""
        return int(self._last[-1])

    def sample(self, count: int) -> Tensor:
        """Draw `count` patches: float32 (count, 1, size, size) in [0, 1]."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"the number of patches must be a positive integer, got {count!r}")
        draw = torch.randint(self.positions, (count,), generator=self.generator)
        image = torch.searchsorted(self._last, draw, right=True)  # (count,)
        draw = draw - torch.where(image > 0, self._last[image - 1], 0)  # position within the image
        width, columns = self._width[image], self._columns[image]
        corner = self._start[image] + draw // columns * width + draw % columns
        down = self._side.expand(count, -1)  # (count, size): offsets of rows ...
        right = down  # ... and of columns
        step_down, step_right = width, torch.ones_like(image)
        if self.augment:
            flip = torch.randint(8, (count,), generator=self.generator)
            down = torch.where((flip & 1 > 0)[:, None], self.size - 1 - down, down)
            right = torch.where((flip & 2 > 0)[:, None], self.size - 1 - right, right)
            turned = flip & 4 > 0
            step_down, step_right = (
                torch.where(turned, step_right, step_down),
                torch.where(turned, step_down, step_right),
            )
        rows = corner[:, None] + down * step_down[:, None]  # (count, size)
        index = rows[:, :, None] + (right * step_right[:, None])[:, None, :]  # (count, size, size)
        patches = self._pixels[index][:, None]
        return patches.float().div_(255) if patches.dtype == torch.uint8 else patches


def _pack(images: list[Tensor]) -> Tensor:
    """All pixels in one vector: uint8 if every grey value is a multiple of 1/255, else float32."""
    pixels = torch.cat([image.detach().reshape(-1).float() for image in images])
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise ValueError("grey values must lie in [0, 1]")
    levels = (pixels * 255).round()
    return levels.to(torch.uint8) if torch.equal(levels / 255, pixels) else pixels


def patches(images, size: int, count: int, generator, augment: bool = False) -> Tensor:
    """Uniformly random crops (count, 1, size, size) of images; arguments and errors as in `PatchSampler`."""
    return PatchSampler(images, size, generator, augment=augment).sample(count)


def middle(x: Tensor, side: int) -> Tensor:
    """The square of ``side`` pixels in the middle of x (B, 1, H, W), or all of a smaller image."""
    top, left = ((length - min(length, side)) // 2 for length in x.shape[-2:])
    return x[..., top : top + side, left : left + side]


def add_noise(x: Tensor, sigma: float, seed: int | torch.Generator) -> Tensor:
    """White Gaussian noise, y = x + sigma z with z ~ N(0, I). The result is *not* clipped to [0, 1].

    x: any floating tensor; sigma >= 0: standard deviation on the scale of the grey values (25/255 for "sigma
    25"); seed: an integer or a torch.Generator on the CPU. Convention for benchmarks: the noise of image k of
    BSDS68 (k = 0, ..., 67 in the benchmark's order) has seed k. Raises ValueError for anything else.
    """
    if not torch.is_tensor(x) or not x.is_floating_point():
        raise ValueError("x must be a floating point tensor")
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma must be finite and >= 0, got {sigma}")
    if isinstance(seed, int) and not isinstance(seed, bool):
        seed = torch.Generator().manual_seed(seed)
    if not isinstance(seed, torch.Generator):
        raise ValueError(f"seed must be an integer or a torch.Generator, got {type(seed).__name__}")
    return x + sigma * torch.randn(x.shape, generator=seed, dtype=x.dtype).to(x.device)
