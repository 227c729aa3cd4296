"""Peers: the stand-in for symmetric padding, the stored results, and their table in the guide."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import peers
from gnclib.foe import WEIGHTS
from gnclib.io import sha256
from gnclib.io.table import read_table

PAGE = Path(__file__).parents[2] / "notebooks" / "guide" / "priors.md"


@pytest.mark.parametrize("pad", [(1, 1, 1, 1), (2, 3, 0, 4)])
def test_symmetric_padding_and_its_adjoint(pad):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 5, 7, generator=g, dtype=torch.float64)
    left, right, top, bottom = pad
    wanted = np.pad(x.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)), mode="symmetric")
    padded = peers.symmetric_pad(x, pad)
    np.testing.assert_array_equal(padded, wanted)
    z = torch.randn(padded.shape, generator=g, dtype=torch.float64)
    back = peers.symmetric_pad_transpose(z, pad)
    assert (padded * z).sum() == pytest.approx(float((x * back).sum()), rel=1e-12)


def test_the_page_has_the_table_of_the_stored_results():
    content = read_table(peers.STORED, peers.FORM)
    assert peers.table(content) in PAGE.read_text(encoding="utf-8")
    rows = [row for row in content.rows["results"] if row.task == "denoise-25"]
    images = {
        name: {row.image for row in rows if row.method == name} for name in {row.method for row in rows}
    }
    assert {frozenset(of_method) for of_method in images.values()} == {frozenset(images["TDV"])}
    for row in content.rows["results"]:
        if row.method in peers.PEERS:
            assert row.settings["repository"].endswith(peers.PEERS[row.method].repository)
            assert len(row.settings["commit"]) == 40
        elif (prior := row.method.split()[0]) in ("R1", "R3", "C1", "G1"):
            assert row.settings["weights"] == sha256(WEIGHTS / prior / "model.safetensors")
