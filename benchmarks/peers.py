"""Peers of our priors under the same noise: ``python benchmarks/peers.py TDV /path/to/clone`` and so on, resumable.

A peer is an energy whose authors publish a trained checkpoint. Its own code computes, from a clone of its repository
(a path is given; nothing of it is copied here), by the solver and the settings of its authors' test script:

* *WCRR-NN*, *CRR-NN* (github.com/axgoujon/weakly_convex_ridge_regularizer): accelerated gradient descent with restarts
  to a relative change of 1e-4, for noise up to 30 of 255, for which they were trained;
* *MFoE* (github.com/StanislasDucotterd/MFoE): the same kind of descent, noise up to 51 of 255;
* *TDV* (github.com/VLOGroup/tdv): ten steps learned for sigma 25; other levels by scaling the image, as its script
  does. Symmetric padding, which it takes from a package in C++ and CUDA, is written here in torch;
* *CRR-study*, *WCRR-study*, *TDV-study* (github.com/johertrich/LearnedRegularizers, the code of the comparative study
  arXiv 2510.01755): its energies trained bilevel (IFT) for sigma = 0.1, minimised by its accelerated descent with line
  search to a relative change of 1e-4. A base class from DeepInverse, all it needs of that, has a stand-in here.

``ours`` runs BM3D, TV and our priors. Noise of image k has seed k, nothing is clipped, PSNR and SSIM have data range 1.
Seconds are those of the processor, one thread. Gradients: of the peer's energy, per image.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnclib.images import data
from gnclib.io import Content, Form, Table, markdown, sha256
from gnclib.restore import Denoising, Task
from gnclib.studies import field
from gnclib.studies.comparison import PACKAGES, Images, Method, Quality, jobs

#: of the middles of 68 images, and of the whole images
STORED, WHOLE = (Path(__file__).with_name(name) for name in ("peers.json", "peers_full.json"))
FORM = Form("file of peers", Images, {"results": Quality, "tv": field.Tuning})
#: of 255; the second last is sigma = 0.1 of 1
LEVELS = (25, 15, 25.5, 50)
#: (name, scheme) of our priors
OURS = (("R1", "learned"), ("R3", "learned"), ("C1", "mmse"), ("G1", "mmse"))
#: noisy image (1, 1, H, W) and sigma -> result, and how many gradients it took
Solver = Callable[[Tensor, float], tuple[Tensor, int]]


@dataclass(frozen=True)
class Peer:
    """A published energy.

    Attributes
    ----------
    repository : on GitHub
    checkpoint : in it
    load : folder of the clone -> its solver, number of parameters and what is certified of the energy
    strongest : the strongest noise, of 255, for which it was trained or made
    only : the one level for which it was trained, where it was for one and has no way to others
    cited : published PSNR on all of BSDS68 by noise level, where its authors state it
    """

    repository: str
    checkpoint: str
    load: Callable[[Path], tuple[Solver, int, str]]
    strongest: float = 255
    only: float | None = None
    cited: dict[int, float] | None = None

    def takes(self, level: float) -> bool:
        """Whether it is made for noise of this level, of 255."""
        return level <= self.strongest and self.only in (None, level)


# peers ---------------------------------------------------------------------------------------------------------------


def _ridge(name: str, folder: Path) -> tuple[Solver, int, str]:
    """WCRR-NN or CRR-NN; sigma in grey levels."""
    from models import utils  # of the peer

    torch.manual_seed(0)  # the norm of its filters comes from a power method
    model = utils.load_model(name, "cpu")
    model.conv_layer.spectral_norm(mode="power_method", n_steps=200)

    def solve(y: Tensor, sigma: float) -> tuple[Tensor, int]:
        level = torch.full((1, 1, 1, 1), 255 * sigma)
        x, last, _ = utils.accelerated_gd_batch(y, model, sigma=level, ada_restart=True, tol=1e-4)
        return x, last + 1

    return solve, model.num_params, "weakly convex, modulus 1" if model.rho_wcvx else "convex"


def _mfoe(folder: Path) -> tuple[Solver, int, str]:
    """MFoE: lambda (s(W y) - s'(W y)), s' of curvature at most scale^2 / tau, ||W|| <= 1, which bounds the modulus."""
    from models.mfoe import MFoE
    from models.optimization import AGDR

    state = torch.load(folder / PEERS["MFoE"].checkpoint, map_location="cpu", weights_only=True)
    config = state["config"]
    descent = config["optimization"]["fixed_point_solver_fw_params"]
    model = MFoE(config["model_params"], config["multi_convolution"], descent, {})
    model.load_state_dict(state["state_dict"])
    model.conv_layer.spectral_norm()
    modulus = model.scale**2 * model.lamb.exp() / F.relu(model.taus).exp().min()

    def solve(y: Tensor, sigma: float) -> tuple[Tensor, int]:
        x, count, _ = AGDR(y, y, model, torch.full((1, 1, 1, 1), sigma), **descent)
        return x, count

    return solve, model.num_params, f"weakly convex, modulus <= {modulus:.3g}"


def _tdv(folder: Path) -> tuple[Solver, int, str]:
    """TDV with 3 scales and 3 blocks, trained for sigma 25."""
    sys.modules["optoth"] = types.ModuleType("optoth")
    sys.modules["optoth.pad2d"] = sys.modules["optoth"].pad2d = padding = types.ModuleType("optoth.pad2d")
    padding.pad2d, padding.pad2d_transpose = symmetric_pad, symmetric_pad_transpose
    import model as code  # of the peer

    state = torch.load(folder / PEERS["TDV"].checkpoint, map_location="cpu", weights_only=True)
    net = code.VNet(state["config"])
    net.load_state_dict(state["model"])

    def solve(y: Tensor, sigma: float) -> tuple[Tensor, int]:
        scale = 25 / (255 * sigma)
        return net(scale * y, scale * y)[-1] / scale, net.S

    return solve, sum(p.numel() for p in net.parameters()), "none"


class _Halves:
    """1/2 |x - y|^2 in the form in which the study's solver takes a data term; counts the gradients."""

    def __init__(self) -> None:
        self.gradients = 0

    def __call__(self, x: Tensor, y: Tensor, physics: object) -> Tensor:
        return (x - y).square().sum((1, 2, 3)) / 2

    def grad(self, x: Tensor, y: Tensor, physics: object) -> Tensor:
        self.gradients += 1
        return x - y


def _study(name: str, folder: Path) -> tuple[Solver, int, str]:
    """CRR, WCRR or TDV of the study; its modules one by one, for its packages import much that is not needed."""
    for package in ("deepinv", "deepinv.optim"):
        sys.modules.setdefault(package, types.ModuleType(package))
    sys.modules["deepinv.optim"].Prior = torch.nn.Module
    for package in ("priors", "priors.tdv", "evaluation"):
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(folder.joinpath(*package.split(".")))]
    from evaluation.nmAPG import reconstruct_nmAPG  # of the peer
    from priors.parameter_learning_wrapper import ParameterLearningWrapper
    from priors.tdv.model import TDV
    from priors.wcrr import WCRR

    kind = name.removesuffix("-study")
    if kind == "TDV":
        base = TDV(in_channels=1, num_features=32, multiplier=1, num_mb=3, num_scales=3, zero_mean=True)
    else:
        base = WCRR(sigma=0.1, weak_convexity=float(kind == "WCRR"), device="cpu")
    energy = ParameterLearningWrapper(base, device="cpu").requires_grad_(False).eval()
    energy.load_state_dict(torch.load(folder / PEERS[name].checkpoint, map_location="cpu", weights_only=True))
    modulus = f"weakly convex, modulus {energy.alpha.exp():.3g}"
    certificate = {"CRR": "convex", "WCRR": modulus, "TDV": "none"}[kind]

    def solve(y: Tensor, sigma: float) -> tuple[Tensor, int]:
        data = _Halves()
        identity = types.SimpleNamespace(A_dagger=torch.clone)
        x = reconstruct_nmAPG(y, identity, data, energy, lamda=1, step_size=0.1, max_iter=1000, tol=1e-4)
        return x, data.gradients

    return solve, sum(p.numel() for p in energy.parameters()), certificate


def _mirrored(length: int, before: int, after: int) -> Tensor:
    """Which pixel stands at each place of a row that is continued by its mirror image, edge pixels twice."""
    at = torch.arange(-before, length + after) % (2 * length)
    return torch.minimum(at, 2 * length - 1 - at)


def symmetric_pad(x: Tensor, pad: tuple[int, int, int, int], mode: str = "symmetric") -> Tensor:
    """(B, C, H, W) continued by its mirror image: left, right, top, bottom."""
    rows, columns = _mirrored(x.shape[2], *pad[2:]), _mirrored(x.shape[3], *pad[:2])
    return x[:, :, rows][..., columns]


def symmetric_pad_transpose(x: Tensor, pad: tuple[int, int, int, int], mode: str = "symmetric") -> Tensor:
    """The adjoint of :func:`symmetric_pad`."""
    height, width = x.shape[2] - pad[2] - pad[3], x.shape[3] - pad[0] - pad[1]
    x = x.new_zeros(*x.shape[:2], height, x.shape[3]).index_add_(2, _mirrored(height, *pad[2:]), x)
    return x.new_zeros(*x.shape[:3], width).index_add_(3, _mirrored(width, *pad[:2]), x)


_RIDGES = "axgoujon/weakly_convex_ridge_regularizer"
_STUDY = "johertrich/LearnedRegularizers"
PEERS = {
    "CRR-NN": Peer(_RIDGES, "trained_models/CRR-CNN/checkpoints/checkpoint_6000.pth", partial(_ridge, "CRR-CNN"), 30),
    "WCRR-NN": Peer(
        _RIDGES, "trained_models/WCRR-CNN/checkpoints/checkpoint_6000.pth", partial(_ridge, "WCRR-CNN"), 30,
        cited={25: 28.68},
    ),
    "MFoE": Peer(
        "StanislasDucotterd/MFoE", "trained_models/MFoE_groupsize_4/checkpoints/checkpoint_5000.pth", _mfoe, 51
    ),
    "TDV": Peer("VLOGroup/tdv", "checkpoints/tdv3-3-25-f32-gray.pth", _tdv),
    **{
        f"{kind}-study": Peer(
            _STUDY, f"weights/bilevel_Denoising/{kind}_bilevel_IFT_for_Denoising.pt",
            partial(_study, f"{kind}-study"), only=25.5,
        )
        for kind in ("CRR", "WCRR", "TDV")
    },
}  # fmt: skip


def peer_method(name: str, folder: Path, commit: str) -> Method:
    """A peer from a clone of its repository. ImportError or OSError if that is none, or lacks its checkpoint."""
    peer = PEERS[name]
    sys.path.insert(0, str(folder))
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        solve, parameters, certificate = peer.load(folder)
    settings = {
        "repository": f"https://github.com/{peer.repository}", "commit": commit,
        "checkpoint": peer.checkpoint, "sha256": sha256(folder / peer.checkpoint), "certificate": certificate,
    }  # fmt: skip

    def apply(measured: Denoising) -> tuple[Tensor, int]:
        return solve(measured.y.float(), measured.sigma)

    return Method(name, apply, settings, parameters)


def our_methods(table: Table, task: Task) -> Iterator[Method]:
    """BM3D, TV and our priors for a noise level."""
    yield from (method for _, method in field.made(table, [(task, "BM3D"), (task, "TV")]))
    yield from (field.ours(prior, name, task) for prior, name in OURS)


# the table -----------------------------------------------------------------------------------------------------------

#: of the methods that are no peers
CERTIFICATES = {"TV": "convex", "BM3D": "no energy"}


def table(content: Content) -> str:
    """The results as markdown: measured on the images of the file, and, in columns of their own, cited numbers.

    PSNR in dB (SSIM), means over the images of the file; of a method that was run on some of them only, how far it is
    from "R1 learned" on these, and their number; processor seconds and gradients per image are those at sigma 25, or
    at the level of the method.
    """
    found: dict[str, dict[float, list[Quality]]] = {}
    for row in content.rows["results"]:
        found.setdefault(row.method, {}).setdefault(float(row.task.removeprefix("denoise-")), []).append(row)
    levels = sorted({level for of_level in found.values() for level in of_level})
    lines = []
    for name in sorted(found, key=lambda name: _beyond(found[name], found["R1 learned"])):
        of_level, cited = found[name], (PEERS[name].cited if name in PEERS else None) or {}
        some = of_level.get(25) or next(iter(of_level.values()))
        first = some[0].settings
        certificate = first.get("certificate") or CERTIFICATES.get(name, "none at these levels")
        gradients = [row.evaluations for row in some if row.evaluations is not None]
        cells = [_cell(of_level.get(level, []), found["R1 learned"][level]) for level in levels]
        cost = [
            f"{np.mean([row.cpu for row in some]):.2g}",
            f"{np.mean(gradients):.0f}" if gradients else "-",
        ]
        parameters = "-" if first["parameters"] is None else f"{first['parameters']:,}"
        lines.append(
            [name, parameters, certificate, *cells, *cost, *(f"{cited[25]:.2f}" if 25 in cited else "-",)]
        )
    head = ["sigma 25.5 (0.1)" if level == 25.5 else f"sigma {level:g}" for level in levels]
    return markdown(
        ["method", "parameters", "certificate", *head, "seconds", "gradients", "cited, sigma 25"], lines
    )


def _beyond(ours: dict[float, list[Quality]], others: dict[float, list[Quality]]) -> float:
    """By how many dB a method is above another on the images of both, at sigma 25 or the first level that it has."""
    level = 25 if 25 in ours else next(iter(ours))
    there = {row.image: row.psnr for row in others[level]}
    return float(np.mean([row.psnr - there[row.image] for row in ours[level] if row.image in there]))


def _cell(rows: list[Quality], reference: list[Quality]) -> str:
    if not rows:
        return "-"
    if {row.image for row in reference} > {row.image for row in rows}:
        return f"R1 {_beyond({25: rows}, {25: reference}):+.2f} [{len(rows)}]"
    return f"{np.mean([r.psnr for r in rows]):.2f} ({np.mean([r.ssim for r in rows]):.3f})"


# the command ---------------------------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*PEERS, "ours", "table"])
    parser.add_argument("folder", nargs="?", type=Path, help="the clone of a peer's repository")
    parser.add_argument("--commit", help="its revision (default: that of the clone)")
    parser.add_argument("--images", type=int, default=8, help="only the first images of BSDS68 (default: 8)")
    parser.add_argument("--crop", type=int, help="only the middle, so many pixels wide and high")
    parser.add_argument("--sigma", type=float, action="append", help=f"of 255, repeated; default: {LEVELS}")
    parser.add_argument("--only", action="append", help="of ours: these methods")
    parser.add_argument("--out", type=Path, default=STORED)
    given = parser.parse_args(words)
    if given.name == "table":
        print(table(FORM.load(given.out)))
        return
    if given.name != "ours" and given.folder is None:
        parser.error(f"give the folder of a clone of https://github.com/{PEERS[given.name].repository}")
    torch.set_num_threads(1)
    images = dict(list(data.bsds68().items())[: given.images])
    what = "BSDS68"
    if given.crop:
        what += f", the middle {given.crop} x {given.crop} pixels"
        images = {name: data.middle(x, given.crop) for name, x in images.items()}
    file = Table(given.out, FORM, Images(set=what), packages=PACKAGES)
    if given.name != "ours":
        git = ["git", "-C", str(given.folder), "rev-parse", "HEAD"]
        commit = (
            given.commit or subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        )
        made = [peer_method(given.name, given.folder.resolve(), commit)]
    for level in given.sigma or LEVELS:
        task = Task("denoise", level)
        if given.name == "ours":
            made = [m for m in our_methods(file, task) if not given.only or m.name in given.only]
        elif not PEERS[given.name].takes(level):
            print(f"{given.name} is not made for sigma {level:g}")
            continue
        for row in file.fill("results", jobs(task, made, images)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
