"""The model for bioimage.io: what rdf.yaml names is there and computes what it says; its own validator."""

import numpy as np
import pytest
import torch
import yaml

import gnclib
from gnclib.integrations import bioimageio
from gnclib.io import sha256


@pytest.fixture(scope="module")
def rdf(tmp_path_factory):
    return bioimageio.export("C1", tmp_path_factory.mktemp("model"), sigma_255=50)


def test_the_named_files_compute_the_named_result(rdf):
    content = yaml.safe_load(rdf.read_text())
    weights = content["weights"]["pytorch_state_dict"]
    for named in (weights, content["inputs"][0]["test_tensor"], content["outputs"][0]["test_tensor"]):
        assert sha256(rdf.with_name(named["source"])) == named["sha256"]
    model = getattr(bioimageio, weights["architecture"]["callable"])(**weights["architecture"]["kwargs"])
    for p in model.parameters():
        p.data.zero_()
    model.load_state_dict(torch.load(rdf.with_name(weights["source"]), weights_only=True))
    y, x = (torch.from_numpy(np.load(rdf.with_name(f"{name}.npy"))) for name in ("noisy", "denoised"))
    torch.testing.assert_close(model(y), x, rtol=0, atol=1e-6)
    expected = gnclib.denoise_gnc(y[0, 0].numpy(), 50 / 255, prior="C1", scheme="mmse")
    np.testing.assert_allclose(x[0, 0], expected, atol=1e-5)
    assert (rdf.with_name("README.md")).read_text().startswith("# C1")


def test_its_own_validator_accepts_it(rdf):
    spec = pytest.importorskip("bioimageio.spec")
    summary = spec.load_description_and_validate_format_only(rdf)
    assert summary.status == "valid-format", summary.format()
