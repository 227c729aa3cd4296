"""The card of a learned schedule: a README beside its schedule.json, from which it is written."""

from __future__ import annotations

from pathlib import Path

from gnclib import io
from gnclib.foe import WEIGHTS
from gnclib.restore.learned import SCHEDULE
from gnclib.score import card

__all__ = ["FINAL", "write"]

#: x_0 of inpainting in words
X_0 = {
    "start": "missing pixels at mid grey",
    "guess": "missing pixels guessed coarse to fine, `gnclib.restore.operators.first_guess`",
}
#: the last learning rate is this part of the first
FINAL = 0.01


def write(folder: Path) -> Path:
    """Write ``README.md`` beside a ``schedule.json`` that :func:`gnclib.restore.learn.export` has written."""
    values = io.read_json(folder / SCHEDULE, "learned schedule", dict)
    run, settings = values["provenance"], values["provenance"]["settings"]
    level, lr, lr_prior = values.get("sigma_255"), settings["lr"], settings["lr_prior"]
    task = (
        f"denoising, sigma {level:g}/255"
        if level
        else f"inpainting, {values['missing']:.0%} of the pixels missing"
    )
    named, tuned = _named(values["prior"], run["learned_from"]), lr_prior > 0
    kind = "kernels and potentials as well" if tuned else "all t_i and eta_i"
    rows = [
        ("task", task),
        ("prior", named + (", fine-tuned: model.safetensors beside this file" if tuned else "")),
        ("weights of the prior", f"SHA-256 {values['prior_sha256']}"),
        ("fine-tuned from", f"{named}, SHA-256 {run['learned_from']}" if tuned else None),
        ("learned numbers", f"{run['parameters']} ({kind})"),
        ("training data", run["images"]),
        ("loss", "squared error of x_I per pixel, all pixels of the patches"),
        ("start", run["start"]),
        ("x_0", None if level else X_0[values.get("x_0", "start")]),
        (
            "iterations",
            f"{run['iterations']} of batch {settings['batch']}, patches of side {settings['patch']}",
        ),
        ("optimiser", f"Adam, cosine from {lr:g} to {FINAL * lr:g} (tau and log eta)"),
        ("", f"and from {lr_prior:g} to {FINAL * lr_prior:g} (prior)" if tuned else None),
        ("seed", settings["seed"]),
        ("time", f"{run['hours']} h"),
        ("machine", run["machine"]),
        ("software", f"{run['software']}; revision {run['revision']}"),
        *((f"validation, {name}", f"{value:.2f} dB") for name, value in run["validation_psnr"].items()),
    ]
    tags = ("image-restoration", "denoising" if level else "inpainting", "learned-schedule")
    held_out = run.get("held_out", "the first 8 images of val outside of BSDS68")
    steps = zip(values["t"], values["eta"], strict=True)
    lines = [
        *card.front_matter(*tags, bsds500="held_out" not in run),
        f"# {folder.resolve().name}: a learned schedule of {len(values['t'])} steps",
        "",
        "t_i and eta_i of x_i = prox_{eta_i D}(x_{i-1} - eta_i grad R(x_{i-1}, t_i)) (Kobler & Pock 2023, eq. 9),",
        "learned. Written by `gnclib.restore.learned_card` from `schedule.json`.",
        "",
        *card.table([row for row in rows if row[1] is not None]),
        "",
        f"Validation: mean PSNR over {held_out}, of each the upper left 256 x 256 pixels,",
        "noise or mask of image k with seed k, nothing clipped.",
        "",
        "| i | t_i | eta_i |",
        "|---|---|---|",
        *(f"| {i} | {t:.4g} | {eta:.4g} |" for i, (t, eta) in enumerate(steps, 1)),
    ]
    return io.write_text(folder / "README.md", "\n".join(lines) + "\n")


def _named(prior: str, digest: str) -> str:
    """The name of a prior in a card; one of one's own that is called like a shipped one is told apart."""
    shipped = WEIGHTS / prior / "model.safetensors"
    other = shipped.is_file() and io.sha256(shipped) != digest
    return f"`{prior}`" + (" (of one's own, not the one that comes with gnclib)" if other else "")
