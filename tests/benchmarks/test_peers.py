"""Peers: the stand-in for symmetric padding, the stored results, and their table in the guide."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import peers
from gnclib.foe import WEIGHTS
from gnclib.io import sha256

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


@pytest.mark.parametrize(("file", "count"), [(peers.STORED, 68), (peers.WHOLE, 68)], ids=["crops", "whole"])
def test_the_page_has_the_table_of_the_stored_results(file, count):
    content = peers.FORM.load(file)
    table = peers.table(content)
    assert table in PAGE.read_text(encoding="utf-8")
    images = {}
    for row in content.rows["results"]:
        images.setdefault((row.task, row.method), {})[row.image] = row
        if row.method in peers.PEERS:
            assert peers.PEERS[row.method].takes(float(row.task.removeprefix("denoise-")))
            assert row.settings["repository"].endswith(peers.PEERS[row.method].repository)
            assert len(row.settings["commit"]) == 40
        elif (prior := row.method.split()[0]) in ("R1", "R3", "C1", "G1"):
            assert row.settings["weights"] == sha256(WEIGHTS / prior / "model.safetensors")
    for (
        task,
        name,
    ), found in images.items():  # of a part of the images there is a difference, and their number
        whole = images[task, "R1 learned"]
        assert len(whole) == count
        assert found.keys() <= whole.keys()
        apart = np.mean([row.psnr - whole[image].psnr for image, row in found.items()])
        part = f"R1 {apart:+.2f} [{len(found)}]"
        (line,) = (line for line in table.splitlines() if line.startswith(f"| {name} |"))
        assert (part in line) == (len(found) < count)


def test_the_sentences_below_the_tables_are_about_them():
    """Each difference that the page names, computed on the images that both methods have."""
    files, said = {}, " ".join(PAGE.read_text(encoding="utf-8").split())
    for kind, file in (("whole", peers.WHOLE), ("crops", peers.STORED)):
        for row in peers.FORM.load(file).rows["results"]:
            files.setdefault((kind, row.task.removeprefix("denoise-"), row.method), {})[row.image] = row

    def above(kind, level, name, other):
        ours, theirs = files[kind, level, name], files[kind, level, other]
        gains = [ours[image].psnr - theirs[image].psnr for image in ours.keys() & theirs.keys()]
        return f"{np.mean(gains):.2f} dB"

    def times(kind, level, name, other):
        return np.divide(
            *(np.mean([row.cpu for row in files[kind, level, n].values()]) for n in (name, other))
        )

    tdv = [
        above(kind, "25", "TDV", other) for kind in ("whole", "crops") for other in ("R3 learned", "G1 mmse")
    ]
    assert (
        f"it is {tdv[0]} above R_3 with its learned schedule and {tdv[1]} above one step of G1 on the whole"
        in said
    )
    assert f"({tdv[2].removesuffix(' dB')} and {tdv[3]} on the crops)" in said
    assert round(times("whole", "25", "TDV", "R3 learned")) == 13
    assert round(times("whole", "25", "TDV", "G1 mmse"), -1) == 50
    assert "a thirteenth and, on another machine, about a fiftieth of its time" in said
    assert f"is {above('crops', '25', 'MFoE', 'R1 learned')} above R_1 and" in said
    assert f"{above('crops', '25', 'R3 learned', 'MFoE')} behind R_3" in said
    wcrr = [above("crops", "25", "WCRR-NN", other) for other in ("R1 learned", "BM3D")]
    assert f"is {wcrr[0]} above R_1 and {wcrr[1]} above BM3D" in said
    assert f"(on the nine whole images {above('whole', '25', 'WCRR-NN', 'R1 learned')} above R_1)" in said
    study = [
        above("crops", "25.5", f"{kind}-study", f"{kind}-NN").removesuffix(" dB") for kind in ("CRR", "WCRR")
    ]
    assert f"gain {' and '.join(study)} dB there" in said
    assert f"CRR-NN, convex, is {above('crops', '25', 'C1 mmse', 'CRR-NN')} behind C1" in said
    assert 9.5 < times("crops", "25.5", "TDV-study", "TDV") < 11
    assert "takes ten times as long" in said


def test_the_revisions_are_commits_of_the_project():
    revisions = {
        row.made.revision for f in (peers.STORED, peers.WHOLE) for row in peers.FORM.load(f).rows["results"]
    }
    git = ["git", "-C", str(PAGE.parent), "merge-base", "--is-ancestor"]
    if subprocess.run([*git, "HEAD", "HEAD"], capture_output=True).returncode:
        pytest.skip("not a git clone")
    missing = {r for r in revisions if subprocess.run([*git, r, "HEAD"], capture_output=True).returncode}
    assert missing == set()
