"""Corollary 2.3 on photographs: thresholds of the empirical measure of their patches.

``gnc patches`` computes the bounds of :mod:`gnclib.gmm.bounds` for s x s patches of the training images of BSDS500
(never val); the notebook ``appendix_beyond_the_line`` draws the file that comes with the package.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gnclib.gmm import bounds as empirical_bounds
from gnclib.io import Form, Job, Record, Row, Table

SHIPPED = Path(__file__).with_name("patches.json")
SIZES = (3, 4, 5, 6, 7, 8)


class About(Record):
    """The set of images and how many they are, how many patches are drawn from each, and the seed."""

    set: str
    images: int
    per_image: int
    seed: int


class Bounds(Row):
    """The bounds for patches of size x size pixels, see :func:`bounds`, and the seconds of the processor they took."""

    key: ClassVar[tuple[str, ...]] = ("size",)
    size: int
    patches: int
    theorem: float
    popoviciu: float
    edge: float | None
    edge_margin: float | None
    edge_patches: list[list[float]] | None
    cube: float
    cube_point: list[float]
    cpu_seconds: float


FORM = Form("result file of 'gnc patches'", About, {"sizes": Bounds}, SHIPPED)
load = FORM.load


def draw(images: Mapping[str, Tensor], size: int, per_image: int, seed: int) -> Tensor:
    """Distinct random patches of the images, at most len(images) * per_image: (N, size^2), float64, in [0, 1].

    Raises ValueError: an image smaller than the patch.
    """
    generator, found = torch.Generator().manual_seed(seed), []
    for name, image in images.items():
        pixels = image.reshape(image.shape[-2:]).double()
        if min(pixels.shape) < size:
            raise ValueError(f"image {name} of {tuple(pixels.shape)} pixels has no {size} x {size} patch")
        for _ in range(per_image):
            i, j = (int(torch.randint(n - size + 1, (1,), generator=generator)) for n in pixels.shape)
            found.append(pixels[i : i + size, j : j + size].reshape(-1))
    return torch.unique(torch.stack(found), dim=0)


def bounds(points: Tensor, seed: int) -> dict[str, Any]:
    """The bounds of one set of patches (N, d), as standard deviations in units of the grey range [0, 1].

    "patches" is N; "theorem" corollary 2.3 on the hull; "popoviciu" on R^d; "edge": not convex on R^d below it, with
    the two ends and the margin of the edge (None if none was found); "cube", "cube_point": not convex at this level at
    this point of [0, 1]^d, found by search.
    """
    contrast = (points - points.mean(1, keepdim=True)).norm(dim=1)
    edge = empirical_bounds.longest_edge(points, contrast.argsort(descending=True)[:400])
    t_cube, where = empirical_bounds.threshold_on_box(points, (0.0, 1.0), torch.Generator().manual_seed(seed))
    diameter = empirical_bounds.squared_diameter(points) ** 0.5
    return {
        "patches": len(points),
        "theorem": diameter,
        "popoviciu": diameter / 2,
        "edge": edge.t_below**0.5 if edge else None,
        "edge_margin": edge.margin if edge else None,
        "edge_patches": [points[k].tolist() for k in (edge.a, edge.b)] if edge else None,
        "cube": t_cube**0.5,
        "cube_point": where.tolist(),
    }


def _timed(images: Mapping[str, Tensor], size: int, per_image: int, seed: int) -> dict[str, Any]:
    began = time.process_time()
    found = bounds(draw(images, size, per_image, seed), seed)
    return found | {"cpu_seconds": round(time.process_time() - began, 1)}


def compute(
    images: Mapping[str, Tensor], name: str, per_image: int, seed: int, path: str | Path
) -> Iterator[Bounds]:
    """Compute what is missing in the file, one patch size after the other; yield rows as they are added.

    `per_image` patches of each of the photographs (1, 1, H, W); the seed is that of these and of the search. Raises
    ValueError if the file was made with other settings.
    """
    about = About(set=name, images=len(images), per_image=per_image, seed=seed)
    wanted = [Job({"size": size}, {}, partial(_timed, images, size, per_image, seed)) for size in SIZES]
    yield from Table(path, FORM, about, packages=("torch", "numpy", "scipy")).fill("sizes", wanted)
