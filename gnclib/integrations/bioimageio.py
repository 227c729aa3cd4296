"""A prior as a model of the BioImage Model Zoo (bioimage.io): one-step denoising at one noise level.

``python -m gnclib.integrations.bioimageio R1 FOLDER`` writes ``rdf.yaml`` (format 0.5) and the files that it names from
the folder of the prior and its card; ``bioimageio.spec`` validates it. Whoever runs the model needs gnclib.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gnclib.deep import load_prior
from gnclib.foe import locate
from gnclib.images import add_noise, embedded
from gnclib.io import dumps, sha256, write_bytes, write_text

SUMMARY = (
    "Posterior mean of grey images in [0, 1] with white Gaussian noise of standard deviation {level:g}/255, by a"
    " learned energy (Kobler & Pock 2023)"
)


class Denoiser(nn.Module):
    """y - t grad R(y, t) with t = (sigma_255 / 255)^2 for y (B, 1, H, W), the posterior mean by Tweedie's formula."""

    def __init__(self, prior: str = "R1", sigma_255: float = 25.0) -> None:
        super().__init__()
        self.energy, self.t = load_prior(prior), (sigma_255 / 255) ** 2

    def forward(self, y: Tensor) -> Tensor:
        return y - self.t * self.energy.grad(y, self.t)


def export(prior: str, folder: Path, sigma_255: float = 25.0) -> Path:
    """Write the model of a prior into a folder, which is made; returns its ``rdf.yaml``.

    The description of the model is the card of the prior. Raises ValueError for a noise level outside of its range, and
    FileNotFoundError if there is no such prior or no card beside it.
    """
    card = (locate(prior, ("README.md",), "card") / "README.md").read_text(encoding="utf-8")
    model = Denoiser(prior, sigma_255)
    y = add_noise(embedded()["camera"][..., 100:228, 200:328], sigma_255 / 255, 0)
    x, content = model(y).detach(), io.BytesIO()
    torch.save(model.state_dict(), content)
    folder = Path(folder)
    write_bytes(folder / "weights.pt", content.getvalue())
    write_text(folder / "README.md", card.split("\n---\n", 1)[-1].lstrip())
    axes = [{"type": "batch"}, {"type": "channel", "channel_names": ["grey"]}]
    given = [{"type": "space", "id": k, "size": {"min": 64, "step": 1}} for k in "yx"]
    same = [{"type": "space", "id": k, "size": {"tensor_id": "noisy", "axis_id": k}} for k in "yx"]
    tensors = []
    for name, array, space in (("noisy", y, given), ("denoised", x, same)):
        np.save(content := io.BytesIO(), array.numpy())
        write_bytes(folder / f"{name}.npy", content.getvalue())
        test = _file(folder, f"{name}.npy")
        tensors.append({"id": name, "axes": axes + space, "data": {"type": "float32"}, "test_tensor": test})
    architecture = {
        "import_from": "gnclib.integrations.bioimageio", "callable": "Denoiser",
        "kwargs": {"prior": prior, "sigma_255": sigma_255},
    }  # fmt: skip
    described = {
        "type": "model", "format_version": "0.5.5", "name": f"gnclib {prior} sigma {sigma_255:g}",
        "description": SUMMARY.format(level=sigma_255), "documentation": "README.md", "license": "MIT",
        "authors": [{"name": "The gnclib founders"}], "tags": ["denoising", "pytorch", "2d", "image-restoration"],
        "cite": [{"text": "Kobler & Pock, Learning Gradually Non-convex Image Priors Using Score Matching, 2023",
                  "url": "https://arxiv.org/abs/2302.10502"}],
        "inputs": tensors[:1], "outputs": tensors[1:],
        "weights": {"pytorch_state_dict": {**_file(folder, "weights.pt"), "architecture": architecture,
                                           "pytorch_version": torch.__version__.split("+")[0]}},
    }  # fmt: skip
    return write_text(folder / "rdf.yaml", dumps(described))  # JSON is YAML


def _file(folder: Path, name: str) -> dict[str, str]:
    return {"source": name, "sha256": sha256(folder / name)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prior")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sigma", type=float, default=25.0, help="of 255 (default: 25)")
    given = parser.parse_args()
    print(export(given.prior, given.folder, given.sigma))
