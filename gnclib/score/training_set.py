"""Training and validation images (``--images`` of gnc train and gnc learn), and the PSNR that is watched.

The default is BSDS500 train + test, watched on images of val outside of BSDS68. Anyone else's photographs do as well,
from a folder or those that come with scikit-image ("embedded"): one in eight of them, eight at most, is then held out.
A run remembers which images it began with by a digest of their grey values, so that it cannot be resumed on others.

Images of the split val, which holds the benchmark BSDS68, are refused by the SHA-256 of their files and by their
names. A copy of one that was renamed and encoded anew is not recognised.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gnclib import io
from gnclib.images import data, declared_pixels, image_files, psnr

if TYPE_CHECKING:
    from gnclib.foe import LearnedEnergy

#: what BSDS500 is to a run, in words
TRAINED_ON = "BSDS500 train + test (400 images); val, which contains BSDS68, is refused"
HELD_OUT = "8 crops of val outside of BSDS68"
#: the name of the photographs of scikit-image, in place of a folder
EMBEDDED = "embedded"
#: a folder with more pixels than this does not fit into the memory of a small machine (4 bytes each while it is read)
MOST_PIXELS = 1_000_000_000
#: at most so many images are held out, and of each its upper left square of this side
MOST_HELD_OUT, SIDE = 8, 256


@dataclass(frozen=True)
class TrainingSet:
    """Images to train on and to watch the training with, float32 in [0, 1]."""

    train: dict[str, Tensor]  # name -> (1, 1, H, W)
    held_out: list[Tensor]  # of others the upper left square, at most 256 x 256 pixels, each (1, 1, h, w)
    about: str  # what they are, in words
    held_out_about: str
    digest: str = ""  # SHA-256 of all images and their names; "" for BSDS500, whose files are all checked


def training_set(images: str | os.PathLike = "", patch: int = 1) -> TrainingSet:
    """BSDS500 (""), the photographs of scikit-image ("embedded"), or all images of a folder, turned to grey.

    Raises FileNotFoundError, NotADirectoryError or ConnectionError: there is no such folder; BSDS500 cannot be
    downloaded. ValueError: fewer than two images, two with the same grey values, one that is smaller than a patch,
    damaged, of a kind that is not read here or of BSDS500 val, or too many pixels.
    """
    if not str(images):
        train = data.training_images()
        held_out = [x[..., :SIDE, :SIDE] for x in list(data.validation_images().values())[:MOST_HELD_OUT]]
        return TrainingSet(train, held_out, TRAINED_ON, HELD_OUT)
    if str(images) == EMBEDDED:
        found, name = data.embedded(), "scikit-image"
    else:
        found, name = _of_folder(Path(images)), f"the folder `{Path(images).resolve().name}`"
    if len(found) < 2:
        raise ValueError(
            f"{images} holds one image: at least two are needed, since one is held out for validation"
        )
    if small := [f"{k} ({x.shape[3]} x {x.shape[2]})" for k, x in found.items() if min(x.shape[2:]) < patch]:
        raise ValueError(
            f"patches of {patch} x {patch} pixels do not fit into {', '.join(small[:5])}"
            f"{' and others' if len(small) > 5 else ''}: leave such images out or set a smaller --patch"
        )
    names = list(found)
    count = max(1, min(MOST_HELD_OUT, len(names) // 8))
    others = {names[k * len(names) // count] for k in range(count)}
    train = {key: x for key, x in found.items() if key not in others}
    return TrainingSet(
        train,
        [found[key][..., :SIDE, :SIDE] for key in names if key in others],
        f"{len(train)} of the {len(found)} images of {name}; the other {count} for validation",
        f"{count} of the {len(found)} images of {name}, held out",
        _digest(found),
    )


def of_run(state: io.State) -> TrainingSet:
    """The images of a run, which then remembers them: its settings their digest, its record what they are.

    Raises ValueError: the run began with other images; or as :func:`training_set`.
    """
    config = state.config
    side = 2 * config.patch if getattr(config, "wide", 0) else config.patch
    chosen = training_set(config.images, side)
    if state.step and chosen.digest != config.images_sha256:
        where = config.images or "BSDS500"
        raise ValueError(
            f"the run began with other images than those of {where}: it can only go on with the same ones"
        )
    state.config = replace(config, images_sha256=chosen.digest)
    if chosen.digest:
        state.record |= {"images": chosen.about, "held_out": chosen.held_out_about}
    return chosen


def _of_folder(folder: Path) -> dict[str, Tensor]:
    """The images of a folder in grey, none of them of BSDS500 val, not too many to be held."""
    if not folder.exists():
        raise FileNotFoundError(
            f"there is no folder {folder}: --images names a folder of photographs, or is {EMBEDDED!r}"
        )
    files = image_files(folder)
    if (pixels := sum(map(declared_pixels, files))) > MOST_PIXELS:
        raise ValueError(
            f"{folder} holds {pixels / 1e6:.0f} million pixels, more than the {MOST_PIXELS // 10**6} million that are "
            "read here: give it fewer or smaller images"
        )
    data.refuse_validation_files(files)
    return data.folder_images(folder)


def _digest(images: dict[str, Tensor]) -> str:
    """SHA-256 of all images and their names.

    Raises ValueError if two have the same grey values: one could be trained on and the other be held out.
    """
    seen: dict[bytes, str] = {}
    whole = hashlib.sha256()
    for name, x in images.items():
        shape, pixels = f"{tuple(x.shape)}", x.contiguous().numpy().tobytes()
        key = hashlib.sha256(shape.encode() + pixels).digest()
        if key in seen:
            raise ValueError(
                f"{seen[key]} and {name} are the same image: keep one of them, or the validation might see what "
                "was trained on"
            )
        seen[key] = name
        whole.update(f"{name} {shape}\n".encode() + pixels)
    return whole.hexdigest()


# validation ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mmse(prior: LearnedEnergy, y: Tensor, t: float) -> Tensor:
    """The estimate E[X | Y = y] = y - t grad_1 R(y, t), if R is the energy of the data (Tweedie); not clipped.

    y are images (B, 1, H, W), grey values of [0, 1] plus noise of variance t, which is in the range of the prior.
    """
    return y - t * prior.grad(y, t)


def denoising_psnr(prior: LearnedEnergy, images: Iterable[Tensor], sigma: float) -> list[float]:
    """PSNR in dB (data range 1, nothing clipped) of the one-step estimate of each image, the k-th with noise of seed k.

    The images are clean, each (1, 1, H, W). Raises ValueError: no images, or sigma outside of the range of the prior.
    """
    noisy = ((data.add_noise(x, sigma, k), x) for k, x in enumerate(images))
    if not (values := [psnr(mmse(prior, y, sigma**2), x).item() for y, x in noisy]):
        raise ValueError("there are no images to evaluate on")
    return values
