"""The model card of a trained prior: a README beside its weights, written from what the run recorded.

``gnc train`` leaves ``training.json`` (settings, data, machine, revision) and ``log.csv``; ``gnc evaluate --json``
adds ``evaluation*.json``. :func:`write` turns them into ``README.md``, so that no number in it is typed by hand.
"""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

from gnclib import __version__, files
from gnclib.train import TrainState


def provenance(state: TrainState, seconds: float) -> dict:
    """What a run has to tell about itself: settings, sizes, training data, machine, software, revision."""
    root = Path(__file__).parents[1]
    asked = subprocess.run(
        ["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return {
        "settings": asdict(state.config),
        "iterations": state.step,
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "images": "BSDS500 train + test (400 images); val, which contains BSDS68, is refused",
        "hours": round(seconds / 3600, 2),
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} torch thread(s)",
        "software": f"gnclib {__version__}, torch {torch.__version__.split('+')[0]}",
        "revision": asked.stdout.strip() or "unknown",
    }


def write(folder: str | Path) -> Path:
    """Write ``README.md`` into the folder of a trained prior.

    Raises:
        FileNotFoundError: the folder has no config.json, training.json or log.csv.
    """
    folder = Path(folder)
    for name in ("config.json", "training.json", "log.csv"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}: a model card is written from a finished training run"
            )
    config, run = (json.loads((folder / name).read_text()) for name in ("config.json", "training.json"))
    settings = run["settings"]
    last = (folder / "log.csv").read_text().splitlines()[-1].split(",")
    lines = [
        f"# {folder.name}: Fields of Experts with {config['layers']} layer{'s' if config['layers'] > 1 else ''}",
        "",
        "A learned energy R(y, t) of noisy grey images, trained by joint score matching (Kobler & Pock 2023, eqs. 2, 3",
        "and 7). Written by `gnclib.card` from `config.json`, `training.json`, `log.csv` and `evaluation*.json`.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {run['parameters']} |",
        f"| noise levels | sigma in [{config['sigma_min']}, {config['sigma_max']}], grey values in [0, 1] |",
        f"| training data | {run['images']} |",
        f"| iterations | {run['iterations']} of batch {settings['batch']}, patches of side {settings['patch']} |",
        f"| loss | eq. 7, objective `{settings['objective']}`, lambda {settings['smoothing']:g} per pixel |",
        f"| optimiser | AdaBelief, cosine from {settings['lr']:g} to {settings['lr_last']:g} |",
        f"| seed | {settings['seed']} |",
        f"| time | {run['hours']} h |",
        f"| machine | {run['machine']} |",
        f"| software | {run['software']}, revision {run['revision']} |",
        f"| last logged loss per pixel | image {float(last[2]):.4f}, smoothing {float(last[3]):.2f} |",
        f"| validation, sigma 25/255 | {float(last[5]):.2f} dB (one-step MMSE, 8 crops of val outside of BSDS68) |",
    ]
    for file in sorted(folder.glob("evaluation*.json"), key=lambda f: f.stem):
        numbers = json.loads(file.read_text())
        scheme = "one-step MMSE" if numbers["scheme"] == "mmse" else f"GNC flow of {numbers['steps']} steps"
        for sigma, result in numbers["psnr_by_sigma"].items():
            lines.append(
                f"| {numbers['set']}, sigma {sigma}/255 | {result['mean']:.2f} dB ({scheme}, mean of"
                f" {len(result['images'])} images, noise of image k with seed k, nothing clipped) |"
            )
    if note := run.get("note"):
        lines += ["", note]
    return files.write_text(folder / "README.md", "\n".join(lines) + "\n")
