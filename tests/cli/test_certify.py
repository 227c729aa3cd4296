"""gnc certify, and gnc denoise with a prior of coarser scales."""

import re

import numpy as np
from PIL import Image

from gnclib.foe import FieldsOfExperts
from gnclib.images import data
from tests.commands import gnc


def test_the_shipped_convex_prior_is_proved_convex(capsys):
    status, out, err = gnc(capsys, "certify", "C1", "--sigma", 10, "--sigma", 153, "--sigma", 255)
    assert (status, err) == (0, "")
    verdicts = re.findall(r"^([\d.]+) +(proved|not proved) +(-?[\d.]+)", out, re.M)
    assert [verdict for _, verdict, _ in verdicts] == ["not proved", "proved", "proved"]
    prior = FieldsOfExperts.from_pretrained("C1")
    assert float(verdicts[0][2]) == round(prior.certify((10 / 255) ** 2).modulus, 3) < 0
    levels = [0.6 * (prior.sigma_max / 0.6) ** (k / 20) for k in range(21)]
    assert all(prior.certify(sigma**2).convex for sigma in levels)


def test_what_has_no_certificate_is_said(capsys):
    status, out, _ = gnc(capsys, "certify", "R3", "--sigma", 255)
    assert status == 0
    assert re.search(r"^1.0000 +not proved +-inf +inf +-inf +inf$", out, re.M)
    assert gnc(capsys, "certify", "C1", "--sigma", 2550)[0] == 2


def test_denoising_with_coarser_scales(capsys, tmp_path):
    x = data.embedded()["camera"][..., 128:224, 200:290]
    noisy = (255 * data.add_noise(x, 25 / 255, 0)[0, 0]).round().clamp(0, 255).byte().numpy()
    Image.fromarray(noisy).save(tmp_path / "noisy.png")
    errors = [float(np.square(noisy / 255 - x[0, 0].numpy()).mean())]
    for words in (["--sigma", 25], ["--sigma", 25, "--scheme", "joint"], ["--scheme", "mmse"]):
        out = tmp_path / "out.png"
        found = gnc(capsys, "denoise", tmp_path / "noisy.png", "--prior", "C1", "--force", "-o", out, *words)
        assert found[0] == 0, found
        errors.append(float(np.square(np.asarray(Image.open(out)) / 255 - x[0, 0].numpy()).mean()))
    assert max(errors[1:]) < 0.3 * errors[0]
