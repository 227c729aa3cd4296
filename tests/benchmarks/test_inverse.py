"""Camera shake and Fourier sampling: the stored results, their table in the guide, and one of them again."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import inverse
from gnclib.foe import WEIGHTS
from gnclib.images import psnr
from gnclib.io import sha256
from gnclib.studies import problems

PAGE = Path(__file__).parents[2] / "notebooks" / "guide" / "pipelines.md"


@pytest.fixture(scope="module")
def content():
    return problems.FORM.load(inverse.STORED)


def test_the_page_has_the_stored_table(content):
    assert inverse.table(content) in PAGE.read_text(encoding="utf-8")


def test_results_are_complete_tuned_elsewhere_and_of_the_shipped_weights(content):
    tuned = {(row.task, row.method): row for row in content.rows["tuned"]}
    found = {}
    for row in content.rows["results"]:
        found.setdefault((row.task, row.method), []).append(row.image)
        assert tuned[row.task, row.method].best.items() <= row.settings.items()
        assert "dirty" not in row.made.revision
        if "weights" in row.settings:
            assert row.settings["weights"] == sha256(WEIGHTS / row.method[:2] / "model.safetensors")
    images = sorted(inverse.images())
    assert all(sorted(names) == images for names in found.values())
    assert {("shake", "R1 gnc"), ("fourier", "R1 gnc")} <= found.keys()
    assert all(int(name) > 999 for row in tuned.values() for name in row.on)  # of BSDS500


def test_a_stored_number_comes_out_again(content):
    images = inverse.images()
    row = next(
        r for r in content.rows["results"] if (r.task, r.method) == ("fourier", "R1 gnc") and r.seed == 5
    )
    (tuned,) = (t for t in content.rows["tuned"] if (t.task, t.method) == (row.task, row.method))
    data = inverse.tasks()["fourier"].measure(images[row.image], torch.Generator().manual_seed(row.seed))
    found, gradients = problems.method("R1 gnc", tuned.best).solve(data)
    assert psnr(found, images[row.image]).item() == pytest.approx(row.psnr, abs=0.02)
    assert gradients == row.evaluations


def test_another_file_of_kernels_is_refused(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "a.mat").write_bytes(np.zeros(4).tobytes())
    with pytest.raises(ValueError, match="is not the file"):
        inverse.kernels(tmp_path / "a.mat")
