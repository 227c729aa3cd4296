"""The table of noise maps in the guide is that of the stored results, and these can be recomputed."""

from pathlib import Path

import pytest

from benchmarks import noise_maps
from gnclib.foe import WEIGHTS
from gnclib.io import sha256

PAGE = Path(__file__).parents[2] / "notebooks" / "guide" / "own_images.md"


def test_the_page_has_the_stored_numbers():
    assert noise_maps.table(noise_maps.load()) in PAGE.read_text(encoding="utf-8")


def test_the_numbers_are_those_of_the_shipped_prior():
    stored = noise_maps.load()
    assert stored["settings"]["weights"] == sha256(WEIGHTS / "R1" / "model.safetensors")
    row = {row["image, peak"]: row for row in stored["rows"]}["camera, 20"]
    found = noise_maps.measured("camera", 20)
    assert found == pytest.approx([row[column] for column in noise_maps.COLUMNS], abs=0.02)
