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
    for prior, digest in stored["settings"]["weights"].items():
        assert digest == sha256(WEIGHTS / prior / "model.safetensors")
    row = {row["image, peak"]: row for row in stored["rows"]}["camera, 20"]
    found = noise_maps.measured("camera", 20)
    assert found == pytest.approx([row[column] for column in noise_maps.COLUMNS], abs=0.02)


def test_the_sentences_below_the_table_are_about_it():
    rows = noise_maps.load()["rows"]
    r_1, bm3d = ([row[column] for row in rows] for column in ("detector known", "Anscombe, BM3D"))
    gains = [a - b for a, b in zip(r_1, bm3d, strict=True)]
    assert [sum(gain > 0.05 for gain in gains), sum(abs(gain) < 0.05 for gain in gains)] == [3, 2]
    assert f"{-min(gains):.1f}" == "0.4"
    for row in rows:
        assert min(row["R_3, detector known"], row["R_3, estimated"]) > max(
            row["Anscombe"], row["Anscombe, BM3D"]
        )
        assert row["estimated"] > row["true map"] - 0.155
