"""BSDS500 by split, the BSDS68 benchmark, photographs that need no network, those of a folder, and noise.

The Berkeley Segmentation Data Set (Arbelaez, Maire, Fowlkes & Malik, TPAMI 2011) has 500 photographs of 321 x 481
pixels (either way up) in three splits: train (200), val (100) and test (200). The denoising benchmark BSDS68 of Roth &
Black is a *subset of val*. Priors are therefore trained on train + test only: `training_images` has these, and
`refuse_validation` the rest, so a benchmark number is never a number on training data.

The images are not part of this package. They are read from the folder named by the environment variable `GNC_DATA_DIR`
(which holds `BSDS500/{train,val,test}/*.jpg`) or else downloaded once into pooch's cache from a public mirror at a
pinned commit. Either way each file is checked against the SHA-256 in `bsds500.sha256`.

Grey values are PIL's `convert("L")` (ITU-R 601 luma, rounded to 8 bits) divided by 255: float32 in [0, 1], shape
(1, 1, H, W). That is the grey version which the benchmark uses.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gnclib.images import PatchSampler, Picture, middle, patches, read  # noqa: F401  (for notebooks)
from gnclib.io import read_bytes

with warnings.catch_warnings():  # in a notebook tqdm.auto wants ipywidgets; nothing here needs them
    warnings.filterwarnings("ignore", message="IProgress not found")
    import pooch

#: what image files of a folder end in, in small or capital letters
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm")

SPLITS = ("train", "val", "test")
#: bytes; the largest image of BSDS500 has less than a tenth of it
LARGEST = 2_000_000
COMMIT = "a04b7c6c3a9f0ace74bf205c72a43d32e1c72722"
URL = f"https://raw.githubusercontent.com/BIDS/BSDS500/{COMMIT}/BSDS500/data/images/"
#: photographs of scikit-image
EMBEDDED = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "moon.png", "motorcycle_left.png", "rocket.jpg"),
)
#: those of them that are in colour
COLOURED = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
_photograph = cache(lambda name, mode: _decode((files("skimage") / "data" / name).read_bytes(), mode))
#: weights of red, green and blue in grey, ITU-R BT.601
LUMA = (0.299, 0.587, 0.114)


# --- which images there are -------------------------------------------------------------------------------


@cache
def _hashes() -> dict[str, str]:
    """Name -> SHA-256 of the 500 images, from the list that comes with the package."""
    lines = (files("gnclib.images") / "bsds500.sha256").read_text(encoding="ascii").splitlines()
    return {name: digest for digest, name in map(str.split, lines)}


@cache
def bsds68_ids() -> tuple[str, ...]:
    """Ids of the 68 images of BSDS68, in the order of the benchmark. All of them are in val."""
    return tuple((files("gnclib.images") / "bsds68.txt").read_text(encoding="ascii").split())


def bsds500_ids(split: str) -> tuple[str, ...]:
    """Ids of the images of a split, sorted. Raises ValueError if there is no such split."""
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} of BSDS500: choose one of {', '.join(SPLITS)}")
    return tuple(sorted(Path(name).stem for name in _hashes() if name.startswith(f"{split}/")))


def _names(split: str, ids: Iterable[str]) -> list[str]:
    return [f"{split}/{image}.jpg" for image in ids]


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


def _download(names: list[str]) -> Path:
    """Download into pooch's cache what is not there yet; return the folder."""
    folder = _cache_folder()
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        fetcher = pooch.create(path=folder, base_url=URL, registry=_hashes(), retry_if_failed=2)
        pooch.get_logger().setLevel("WARNING")
        try:
            for name in tqdm(missing, desc="BSDS500", unit="image"):
                fetcher.fetch(name)
        except (OSError, ValueError) as error:  # OSError: no network, HTTP errors; ValueError: wrong hash
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__  # --debug: all
            raise ConnectionError(
                f"BSDS500 is not here, and could not be downloaded from {URL} ({reason}). If this "
                "machine has no network, copy the data set here and set the environment variable "
                "GNC_DATA_DIR to the folder that holds BSDS500/{train,val,test}/*.jpg; or work with "
                "gnclib.images.data.embedded(), photographs that need no network"
            ) from error
    return folder


def _contents(names: list[str]) -> dict[str, bytes]:
    folder = _local_folder() or _download(names)
    return {name: _read_local(folder, name) for name in names}


def _images(split: str, ids: Iterable[str], mode: str = "L") -> dict[str, Tensor]:
    """Images of a split by their ids, in this order; mode as for :func:`_decode`."""
    contents = _contents(_names(split, ids))
    return {Path(name).stem: _decode(content, mode) for name, content in contents.items()}


def _decode(content: bytes, mode: str = "L") -> Tensor:
    """Grey (1, 1, H, W), or with the mode "RGB" red, green and blue (3, 1, H, W); in [0, 1]."""
    with Image.open(io.BytesIO(content)) as image:
        channels = np.moveaxis(np.atleast_3d(np.array(image.convert(mode), np.float32)), -1, 0)
    return torch.from_numpy(np.ascontiguousarray(channels)).div_(255)[:, None]


# --- data sets --------------------------------------------------------------------------------------------


def bsds68(colour: bool = False) -> dict[str, Tensor]:
    """The 68 test images of Roth & Black in the benchmark's order, for tests only.

    The files are downloaded if need be (10 to 20 MB per split).

    Parameters
    ----------
    colour
        Red, green and blue, the benchmark that is known as CBSD68, instead of grey.

    Returns
    -------
    dict
        Id -> (1, 1, H, W), in colour (3, 1, H, W), float32 in [0, 1].

    Raises
    ------
    ValueError, FileNotFoundError, ConnectionError
        A file is corrupt; one is missing below GNC_DATA_DIR; the download fails.
    """
    return _images("val", bsds68_ids(), "RGB" if colour else "L")


def validation_images() -> dict[str, Tensor]:
    """The 32 images of val that are not in BSDS68: for choosing settings without touching the benchmark."""
    benchmark = set(bsds68_ids())
    return _images("val", [image for image in bsds500_ids("val") if image not in benchmark])


def training_images() -> dict[str, Tensor]:
    """The images to train on: train and test, each sorted by id, 400 of them. Raises as :func:`bsds68`."""
    images = _images("train", bsds500_ids("train")) | _images("test", bsds500_ids("test"))
    refuse_validation(images)
    return images


def refuse_validation(ids: Iterable[str]) -> None:
    """Raise ValueError if one of these image ids belongs to val."""
    if leaked := sorted(set(ids) & set(bsds500_ids("val"))):
        raise ValueError(
            "these images belong to BSDS500 val, which holds the test set BSDS68, never train on them:"
            f" {', '.join(leaked)}"
        )


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


def verify(splits: Iterable[str] = SPLITS) -> int:
    """Check the SHA-256 of every image of these splits (downloading what is absent); return their number."""
    return sum(len(_contents(_names(split, bsds500_ids(split)))) for split in splits)


def embedded(colour: bool = False) -> dict[str, Tensor]:
    """Photographs bundled with scikit-image, which need no network.

    Parameters
    ----------
    colour
        Only those in colour, as they are, instead of all in grey.

    Returns
    -------
    dict
        Name -> (1, 1, H, W), in colour (3, 1, H, W), float32 in [0, 1].
    """
    names, mode = (COLOURED, "RGB") if colour else (EMBEDDED, "L")
    return {Path(name).stem: _photograph(name, mode).clone() for name in names}


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
        more = f" and {len(grey) - 1} more" if grey[1:] else ""
        raise ValueError(f"{grey[0]}{more} in {folder}: not in colour, leave them out or measure in grey")
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


# --- noise -------------------------------------------------------------------------------------------------


def add_noise(x: Tensor, sigma: float, seed: int | torch.Generator) -> Tensor:
    """White Gaussian noise, y = x + sigma z with z ~ N(0, I). The result is *not* clipped to [0, 1].

    Parameters
    ----------
    x
        Any floating tensor.
    sigma
        Standard deviation >= 0 on the scale of the grey values (25/255 for "sigma 25").
    seed
        An integer or a torch.Generator on the CPU. In benchmarks the noise of image k of BSDS68 (k = 0, ..., 67 in the
        benchmark's order) has seed k.

    Raises
    ------
    ValueError
        Anything else.
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
