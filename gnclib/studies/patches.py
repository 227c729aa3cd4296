"""Corollary 2.3 on photographs: thresholds of the empirical measure of their patches, as a small file of results.

``gnc patches`` computes the bounds of :mod:`gnclib.gmm.bounds` for s x s patches of the training images of
BSDS500 (never val) and writes them with their provenance; notebook 09 draws the file that comes with the package.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnclib.gmm import bounds as empirical_bounds
from gnclib.io.files import dumps, write_text
from gnclib.io.reading import read_json

__all__ = ["SHIPPED", "SIZES", "bounds", "compute", "draw", "load"]

SHIPPED = Path(__file__).with_name("patches.json")
#: what a result file holds
_SHAPE = {
    "settings": {"set": str, "images": int, "per_image": int, "seed": int},
    "sizes": {
        str: {
            **{"patches": int, "theorem": float, "popoviciu": float, "cube": float, "cube_point": [float]},
            **{"edge": (float, None), "edge_margin": (float, None), "edge_patches": ([[float]], None)},
            "made": dict,
        }
    },
}
SIZES = (3, 4, 5, 6, 7, 8)


def draw(images: Mapping[str, Tensor], size: int, per_image: int, seed: int) -> Tensor:
    """Distinct random patches of the images, at most len(images) * per_image: (N, size^2), float64, in [0, 1].

    Raises:
        ValueError: an image smaller than the patch, or no patches wanted.
    """
    if size < 1 or per_image < 1:
        raise ValueError(f"size and per_image must be at least 1, got {size} and {per_image}")
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

    ``theorem``: corollary 2.3 on the hull. ``popoviciu``: on R^d. ``edge``: not convex on R^d below it, with the length
    and margin of the edge (None if none was found). ``cube``: not convex on [0, 1]^d at it, found by search.
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


def compute(
    images: Mapping[str, Tensor], name: str, per_image: int, seed: int, path: Path, about: Mapping[str, Any]
):
    """Compute what is missing in the file, one patch size after the other; yields (size, result) as they are written.

    Raises:
        ValueError: the file was made with other settings.
    """
    settings = {"set": name, "images": len(images), "per_image": per_image, "seed": seed}
    content = load(path) if path.exists() else {"settings": settings, "sizes": {}}
    if content["settings"] != settings:
        raise ValueError(f"{path} was made with {content['settings']}, not {settings}: choose another file")
    for size in SIZES:
        if str(size) not in content["sizes"]:
            began = time.process_time()
            result = bounds(draw(images, size, per_image, seed), seed)
            result["made"] = {**about, "cpu_seconds": round(time.process_time() - began, 1)}
            content["sizes"][str(size)] = result
            write_text(path, dumps(content))
            yield size, result


def load(path: Path = SHIPPED) -> dict[str, Any]:
    """The results in a file: {"settings": ..., "sizes": {"3": bounds(...) and "made", ...}}.

    Raises:
        ValueError: no file of this kind.
    """
    content = read_json(path, "result file of 'gnc patches'", _SHAPE)
    if wrong := [size for size in content["sizes"] if not (size.isdecimal() and len(size) < 4)]:
        raise ValueError(
            f"{path} is no result file of 'gnc patches': {wrong[0][:40]!r} is no size of a patch"
        )
    return content
