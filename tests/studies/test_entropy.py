"""Entropies two ways: closed forms of Gaussians, code lengths by counting, and the shipped numbers."""

import io
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm

from gnclib.io.table import Content, Job, Origin, Table
from gnclib.restore.evidence import Gaussian
from gnclib.restore.sampling import cosines
from gnclib.studies import entropy
from gnclib.studies.entropy import SIGMAS, Constant, Level

MADE = {"settings": {}, "made": Origin(revision="", machine="", software="")}
VARIANCES = torch.logspace(-5, 1.5, 64, dtype=torch.float64).reshape(8, 8)


def rows(prior, off=0.0, tilt=0.0):
    """What a Gaussian has by its formulas, with an energy that is off by so much, rising with log sigma."""
    levels = []
    for sigma in SIGMAS:
        v = VARIANCES + sigma**2
        energy = (
            0.5 * (2 * math.pi * math.e * v).log().mean().item() + off + tilt * math.log(sigma / SIGMAS[-1])
        )
        left = (VARIANCES / v).mean().item()
        levels.append(Level(prior=prior, sigma=sigma, energy=[energy] * 2, left=[left] * 2, **MADE))
    return levels


def content(off=0.0, tilt=0.0, log_z=0.0):
    numbers = {"lower": log_z, "upper": log_z, "value": log_z, "error": 0.0, "accepted": 1.0}
    constant = Constant(prior="R1", sigma=SIGMAS[-1], method="", **numbers, **MADE)
    return Content(
        None, {"constants": [constant], "levels": rows("Gaussian") + rows("R1", off, tilt), "codes": []}
    )


def test_both_entropies_of_a_gaussian_agree_and_errors_show():
    assert entropy.curves(content(), "R1").gap < 1e-3
    assert entropy.curves(content(off=-7.0, log_z=7.0), "R1").gap < 1e-3
    assert entropy.curves(content(log_z=0.1), "R1").gap == pytest.approx(0.1 / math.log(2), abs=1e-3)
    found = entropy.curves(content(tilt=0.02), "R1")  # an energy whose constant changes along t
    assert found.gap == pytest.approx(0.02 * math.log(SIGMAS[-1] / SIGMAS[0]) / math.log(2), abs=1e-3)
    with pytest.raises(ValueError, match="no results of R3"):
        entropy.curves(content(), "R3")


def test_what_is_measured_of_samples_of_a_gaussian():
    base, sigma = Gaussian(0.4, VARIANCES), 0.3
    x = base.coloured(
        torch.randn(3000, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.0
    )
    found, v = entropy.measured(base, x, sigma), VARIANCES + sigma**2
    assert np.mean(found["energy"]) == pytest.approx(
        0.5 * (2 * math.pi * math.e * v).log().mean().item(), abs=6e-3
    )
    assert np.mean(found["left"]) == pytest.approx((VARIANCES / v).mean().item(), rel=0.02)


@pytest.mark.parametrize("start", entropy.STARTS)
def test_a_chain_finds_the_energy_of_a_gaussian_from_both_starts(start):
    """Its mean energy is n / 2 above the smallest; the picture is the clean image that is expected given a draw."""
    base, sigma = Gaussian(0.4, VARIANCES), 0.3
    x = torch.full((2, 1, 8, 8), 5.0, dtype=torch.float64)  # far from probable
    found = entropy.chain(base, x, sigma, start, 1, 1500)
    v = VARIANCES + sigma**2
    assert found["energy"] == pytest.approx(
        [0.5 * (2 * math.pi * math.e * v).log().mean().item()] * 2, abs=0.05
    )
    assert 0.4 < found["accepted"] < 0.75
    draw = torch.tensor(found["image"], dtype=torch.float64).view(1, 1, 8, 8) / 1000
    shares = cosines(draw - 0.4)[0, 0] ** 2 / (VARIANCES**2 / v)  # its covariance
    large = shares[VARIANCES > 0.01]  # beside these a thousandth of the grey scale is nothing
    assert len(large) > 30
    assert abs(large.mean().item() - 1) < 4 * math.sqrt(2 / len(large))


def test_code_lengths():
    """Noise around grey by its density against the entropy of rounded noise; files by what they hold."""
    x, sigma = torch.full((60, 1, 16, 16), 0.5), entropy.CODED[1]
    found = entropy.coded(x, sigma, "Gaussian", Gaussian(0.5, torch.zeros(16, 16)), 0.0)["bits"]
    cells = np.diff(
        norm.cdf(np.arange(-60, 61) - 0.25, scale=entropy.SCALE * sigma)
    )  # 64 + SCALE / 2 = 127.75
    assert found == pytest.approx(-(cells[cells > 0] * np.log2(cells[cells > 0])).sum(), abs=0.02)
    levels = (64 + entropy.SCALE * entropy.noisy(x, sigma)).round()
    for coder in ("PNG", "WebP"):
        bits = entropy.coded(x, sigma, coder, None, 0.0)["bits"]
        assert found < bits < found + 1
    file = io.BytesIO()
    Image.fromarray(levels.reshape(-1, 16).byte().numpy()).save(file, "PNG", optimize=True)
    assert entropy.coded(x, sigma, "PNG", None, 0.0)["bits"] == 8 * file.tell() / levels.numel()


@pytest.mark.parametrize("coder", entropy.FURTHER)
def test_formats_of_imagecodecs_lose_nothing_and_need_more_than_the_entropy(coder, monkeypatch):
    """What is counted can be read back: the file gives the same grey values; a constant costs next to nothing."""
    x, sigma = torch.full((60, 1, 16, 16), 0.5), entropy.CODED[1]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "imagecodecs", None)
        with pytest.raises(ImportError, match=r"need imagecodecs: pip install 'gnclib\[compare\]'"):
            entropy.coded(x, sigma, coder, None, 0.0)
    package = pytest.importorskip("imagecodecs")
    bits = entropy.coded(x, sigma, coder, None, 0.0)["bits"]
    cells = np.diff(norm.cdf(np.arange(-60, 61) - 0.25, scale=entropy.SCALE * sigma))
    noise = -(cells[cells > 0] * np.log2(cells[cells > 0])).sum()
    assert noise < bits < noise + 1
    levels = (64 + entropy.SCALE * entropy.noisy(x, sigma)).round().reshape(-1, 16).byte().numpy()
    encode, options = entropy.FURTHER[coder]
    file = getattr(package, encode)(levels, **options)
    assert bits == 8 * len(file) / levels.size
    np.testing.assert_array_equal(package.imread(file), levels)


def test_rows_of_one_prior_do_not_replace_those_of_another(tmp_path):
    """Settings differ, and with them rows would go that have their group in common."""
    about = entropy.About(side=8, images=["a"], mean=0.4, brightness=1.0)
    file = Table(tmp_path / "entropy.json", entropy.FORM, about)
    numbers = dict.fromkeys(("lower", "upper", "value", "error", "accepted"), 0.5)
    for prior in ("R1", "C1"):
        file.add(
            "constants",
            (Job({"prior": prior, "sigma": 1.0}, {"weights": prior}, dict), {"method": "", **numbers}),
        )
        file.add("codes", (Job({"coder": prior, "sigma": 0.1}, {"weights": prior}, dict), {"bits": 5.0}))
    content = entropy.load(file.path)
    assert [row.prior for row in content.rows["constants"]] == ["R1", "C1"]
    assert [row.coder for row in content.rows["codes"]] == ["R1", "C1"]
