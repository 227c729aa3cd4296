"""Cards of trained priors and of learned schedules: a README written from what the run recorded.

``gnc train`` leaves ``training.json`` (settings, data, machines, revisions) and ``log.csv``; ``gnc evaluate --json``
adds ``evaluation*.json``; ``gnc learn`` leaves ``schedule.json``. No number in a card is typed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NotRequired

from typing_extensions import TypedDict

from gnclib import io
from gnclib.deep import NetworkConfig, configuration
from gnclib.foe import WEIGHTS, FoEConfig
from gnclib.score import HELD_OUT, LEARN_LAST, TrainConfig


class Training(TypedDict):
    """What training.json holds."""

    settings: dict[str, Any]
    iterations: int
    parameters: int
    images: str
    held_out: NotRequired[str]
    hours: float
    machine: str
    software: str
    revision: str
    history: NotRequired[list[io.Turn]]
    note: NotRequired[str]
    weights_sha256: str


class Measured(TypedDict):
    """The results of one noise level, or of one fraction of missing pixels."""

    mean: float
    images: dict[str, float]
    mean_ssim: NotRequired[float]
    mean_psnr_of_measurement: NotRequired[float]
    gradients_per_image: NotRequired[int]
    mean_psnr_per_step: NotRequired[list[float]]
    mean_energy_per_step: NotRequired[list[float]]
    quartiles_psnr_per_step: NotRequired[list[list[float]]]
    quartiles_energy_per_step: NotRequired[list[list[float]]]


class Evaluation(TypedDict):
    """What evaluation*.json hold."""

    scheme: str
    set: str
    steps: NotRequired[int]
    prior: NotRequired[str]
    task: NotRequired[str]
    colour: NotRequired[str]
    precision: NotRequired[str]
    clipping: NotRequired[str]
    noise: NotRequired[str]
    energy: NotRequired[str]
    psnr_by_sigma: NotRequired[dict[str, Measured]]
    psnr_by_missing: NotRequired[dict[str, Measured]]


@dataclass(frozen=True)
class Row:
    """One row of the log: loss and its two parts are means over the iterations since the last row, per pixel."""

    COLUMNS: ClassVar[str] = "step,loss,image,smoothing,lr,validation_psnr_25,seconds"
    step: int
    loss: float
    image: float
    smoothing: float
    lr: float  # of kernels and potentials
    validation: float  # mean PSNR in dB of the one-step estimate at sigma 25/255, on images that are held out
    seconds: float  # that the run has taken so far, validation included, pauses not

    def __str__(self) -> str:
        parts = f"{self.step},{self.loss:.6f},{self.image:.6f},{self.smoothing:.6f},{self.lr:.3e}"
        return f"{parts},{self.validation:.3f},{self.seconds:.0f}"


#: what each objective is, in words
OBJECTIVES = {
    "corrected": "eq. 7 with the boundary term that its integration by parts over tau leaves out",
    "restored": "eq. 7 as restored",
    "vanishing": "eq. 7 with a prior of tau that vanishes at both ends of its interval, in the smoothing part",
    "denoising": "departs from eq. 7: denoising instead of implicit score matching in tau, the mean of"
    " 1/2 (d_tau R + norm(z)^2 - n)^2, which has the same minimiser (up to the border of the patches) and needs neither"
    " second derivatives nor a boundary term",
}
OPTIMISERS = {
    "adabelief": "AdaBelief",
    "adam": "Adam (0.9, 0.99)",
    "muon": "Muon, Adam (0.9, 0.99) for the rest",
}
#: the schemes of evaluation*.json, in words
SCHEMES = {
    "mmse": "one-step MMSE",
    "gnc": "GNC flow",
    "linear": "GNC flow, linear schedule",
    "joint": "joint descent",
    "learned": "learned schedule",
}
#: x_0 of inpainting in words
X_0 = {
    "start": "missing pixels at mid grey",
    "guess": "missing pixels guessed coarse to fine, `gnclib.restore.operators.first_guess`",
}


def _card(
    folder: Path, tags: tuple[str, ...], bsds500: bool, title: str, *lines: str, results: Sequence[str] = ()
) -> Path:
    """Write ``README.md``, headed by the YAML that the Hugging Face hub reads; ``results`` in its "model-index".

    The licence of weights made from other images than those of BSDS500 is for their maker to say.
    """
    text = [
        "---",
        *(["license: mit"] if bsds500 else []),
        "library_name: gnclib",
        "pipeline_tag: image-to-image",
        *(["datasets: [BSDS500]"] if bsds500 else []),
        f"tags: [image-restoration, {', '.join(tags)}]",
        *results,
        "---",
        "",
        f"# {folder.resolve().name}: {title}",
        "",
        *lines,
    ]
    return io.write_text(folder / "README.md", "\n".join(text) + "\n")


def _table(rows: list[tuple[str, Any]]) -> list[str]:
    """The lines of a table without a head, without the rows that say nothing (None)."""
    lines = [f"| {name} | {value} |" for name, value in rows if value is not None]
    return ["| | |", "|---|---|", *lines]


def _made(run: dict[str, Any], seed: int) -> list[tuple[str, Any]]:
    """The rows on how a run was computed."""
    return [
        ("seed", seed),
        ("time", f"{run['hours']} h"),
        ("machine", run["machine"]),
        ("software", f"{run['software']}; revision {run['revision']}"),
    ]


# priors --------------------------------------------------------------------------------------------------------------


def write(folder: str | Path) -> Path:
    """Write ``README.md`` into the folder of a trained prior.

    Raises FileNotFoundError if it has no config.json or training.json, ValueError if a file in it is damaged.
    """
    folder = Path(folder)
    for name in ("config.json", "training.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}: a model card is written from what a training run left behind"
            )
    config = io.read_json(folder / "config.json", "configuration of a prior", dict)
    run = io.read_json(folder / "training.json", "record of a training run", Training)
    try:
        config, settings = configuration(config), TrainConfig(**run["settings"])
    except ValueError as error:
        raise ValueError(f"config.json or training.json in {folder} is damaged: {error}") from None
    kind, title = "energy", "an energy with a network"
    if isinstance(config, FoEConfig):
        kind = "fields-of-experts"
        title = f"Fields of Experts with {config.layers} layer{'s' if config.layers > 1 else ''}"
    lines = [
        "A learned energy R(y, t) of noisy grey images, trained by joint score matching (Kobler & Pock 2023, eqs. 2, 3",
        "and 7). Written by `gnclib.score.card` from `config.json`, `training.json`, `log.csv` and `evaluation*.json`.",
        "",
        *_table([*_training(config, settings, run), *_log(folder, run), *_evaluations(folder)]),
    ]
    if run["iterations"] < settings.steps:
        lines += [
            "",
            f"**Not finished.** These are the weights after {run['iterations']} of {settings.steps} planned"
            " iterations, with the learning rate still on its way down. The checkpoint of the run goes on from there"
            " (`gnc train --resume`).",
        ]
    if note := run.get("note"):
        lines += ["", note]
    tags = ("denoising", kind, "score-matching")
    return _card(folder, tags, "held_out" not in run, title, *lines, results=_model_index(folder))


def _training(
    config: FoEConfig | NetworkConfig, settings: TrainConfig, run: Training
) -> list[tuple[str, Any]]:
    """The rows on how the prior was made."""
    done, experts = run["iterations"], isinstance(config, FoEConfig)
    of = "" if done == settings.steps else f" of {settings.steps} planned, each"
    rates = f"cosine from {settings.lr:g} to {settings.lr_last:g}"
    if settings.optimiser == "muon":
        rates += f", of kernels with several inputs and outputs from {settings.lr_matrix:g}"
    start = "none"
    if experts:
        start = "none: DCT and Kaiming-normal kernels, a quadratic last potential, as in the paper"
    if settings.warm_start:
        hidden = "" if not experts or config.scales else f", hidden activation {settings.warm_start_hidden}"
        if settings.warm_start_hidden == "kept":
            hidden = ", trained further"
        digest = settings.warm_start_sha256
        start = f"`{settings.warm_start}`, SHA-256 of its weights {digest}{hidden} (our choice)"
    return [
        ("parameters", run["parameters"]),
        ("noise levels", f"sigma in [{config.sigma_min}, {config.sigma_max}], grey values in [0, 1]"),
        ("training data", run["images"]),
        ("iterations", f"{done}{of} of batch {settings.batch}, patches of side {settings.patch}"),
        ("loss", f"objective `{settings.objective}`, lambda {settings.smoothing:g} per pixel"),
        ("objective", OBJECTIVES[settings.objective]),
        ("warm start", start),
        ("optimiser", f"{OPTIMISERS[settings.optimiser]}, {rates}"),
        *(_of_experts if experts else _of_network)(config, settings),
        *_course(config, settings),
        *_made(run, settings.seed),
        ("weights", f"SHA-256 {run['weights_sha256']}"),
    ]


def _of_network(config: NetworkConfig, settings: TrainConfig) -> list[tuple[str, str | None]]:
    """The rows on the network, its gate and its arithmetic."""
    channels = ", ".join(map(str, config.channels))
    gate = f"1 up to sigma {config.sigma_open:g}, 0 from {config.sigma_convex:g} on: convex there by construction"
    return [
        ("network", f"U-Net of {channels} channels, sees {config.margin} pixels far (ours)"),
        ("gate", gate),
        ("arithmetic", "bfloat16 in the convolutions" if settings.bf16 else None),
    ]


def _of_experts(config: FoEConfig, settings: TrainConfig) -> list[tuple[str, str | None]]:
    """The rows on coarser scales and convexity."""
    scales = convex = None
    if config.scales:
        begun = "" if settings.warm_start_hidden == "kept" else " started by least squares,"
        levels = ", ".join(str(2 ** (k + 1)) for k in range(config.scales))
        scales = (
            f"{config.coarse_features} experts at each of the scales {levels}, as `gnclib.foe.layers` says (ours);"
            f"{begun} first learning rate {settings.lr_coarse:g}"
        )
    if config.convex_from is not None:
        kept = "potentials are"
        if config.layers > 1:
            kept = "hidden activations are affine and last potentials are"
        convex = (
            f"{kept} kept convex for sigma >= {config.convex_from:g}, those of coarser scales everywhere;"
            " `gnc certify` proves it (ours)"
        )
    return [("coarser scales", scales), ("convexity", convex)]


def _course(config: FoEConfig | NetworkConfig, settings: TrainConfig) -> list[tuple[str, str]]:
    """The rows on the course of the training, those of settings that are in use."""
    wide = (
        f"{settings.wide:.0%} of the iterations see {settings.batch // 4} patches of side {2 * settings.patch} with"
        f" sigma from {settings.wide_from:g} on, the others have sigma up to {settings.narrow_to:g} (ours)"
    )
    rough = (
        f"{settings.roughness:g} times the learning rate: decoupled decay of the potentials' third differences after"
        " each step (ours)"
    )
    if getattr(config, "layers", 1) > 1:
        rough += f"; hidden activations {settings.roughness_hidden:g} times that"
    gradient = f"shortened to the norm {settings.clip:g}, but for the part of c(tau) (ours)"
    weights = f"(sigma / 0.1)^{settings.emphasis:g} in the image part (ours)"
    averaging = f"exponential moving average of the weights, decay {settings.averaging:g}"
    rows = [
        (settings.clip, "gradient", gradient),
        (settings.wide, "wide patches", wide),
        (settings.hold, "learning rates", f"constant for the first {settings.hold:.0%} of the iterations"),
        (settings.emphasis, "weights of noise levels", weights),
        (not settings.projected, "kernels of K_1", "free: neither zero mean nor a bounded norm"),
        (settings.roughness, "roughness", rough),
        (settings.averaging, "averaging", averaging),
    ]
    return [(name, text) for value, name, text in rows if value]


def _log(folder: Path, run: Training) -> list[tuple[str, str]]:
    log = io.rows(folder, Row, run["iterations"])
    if not log:
        return [("validation", "none yet")]
    row = log[-1]
    quality = f"{row.validation:.2f} dB (one-step MMSE, {run.get('held_out', HELD_OUT)})"
    return [
        ("last logged loss per pixel", f"image {row.image:.4f}, smoothing {row.smoothing:.2f}"),
        (f"validation, sigma 25/255, at iteration {row.step}", quality),
    ]


def _evaluations(folder: Path) -> list[tuple[str, str]]:
    found = []
    for file in sorted(folder.glob("evaluation*.json"), key=lambda f: f.stem):
        numbers = io.read_json(file, "evaluation of a prior", Evaluation)
        scheme = SCHEMES.get(numbers["scheme"], numbers["scheme"])
        if numbers["scheme"] != "mmse":
            scheme += f" of {numbers.get('steps', '?')} steps"
        if "colour" in numbers:
            scheme += ", in opponent colours" if numbers["colour"] == "opponent" else ", channel by channel"
        if "precision" in numbers:
            scheme += f", in {numbers['precision']}"
        for sigma, result in numbers.get("psnr_by_sigma", {}).items():
            about = f"{scheme}, mean of {len(result['images'])} images, noise of image k with seed k, nothing clipped"
            found.append((f"{numbers['set']}, sigma {sigma}/255", f"{result['mean']:.2f} dB ({about})"))
    return found


def _model_index(folder: Path) -> list[str]:
    """The lines of the evaluations in the hub's schema "model-index"."""
    lines = []
    for name, value in _evaluations(folder):
        number, about = value.removesuffix(")").split(" dB (", 1)
        kind, quoted = re.sub(r"\W+", "-", name.split(",")[0]), name.replace("'", "''")
        dataset = f"{{type: {kind}, name: '{quoted}'}}"
        lines.append(f"  - task: {{type: image-to-image, name: Denoising}}\n    dataset: {dataset}")
        lines.append(f"    metrics: [{{type: psnr, value: {number}, name: 'PSNR in dB, {about}'}}]")
    return lines and ["model-index:", f"- name: {folder.resolve().name}", "  results:", *lines]


# schedules -----------------------------------------------------------------------------------------------------------


def write_of_schedule(folder: Path) -> Path:
    """Write ``README.md`` beside a ``schedule.json`` that :func:`gnclib.restore.learn.export` has written."""
    values = io.read_json(folder / "schedule.json", "learned schedule", dict)
    run, settings = values["provenance"], values["provenance"]["settings"]
    level, lr, lr_prior = values.get("sigma_255"), settings["lr"], settings["lr_prior"]
    task = f"denoising, sigma {level:g}/255" if level else None
    prior, digest, tuned = values["prior"], run["learned_from"], lr_prior > 0
    shipped = WEIGHTS / prior / "model.safetensors"
    other = shipped.is_file() and io.sha256(shipped) != digest
    named = f"`{prior}`" + (" (of one's own, not the one that comes with gnclib)" if other else "")
    kind = "kernels and potentials as well" if tuned else "all t_i and eta_i"
    shown = f"{run['iterations']} of batch {settings['batch']}, patches of side {settings['patch']}"
    rows = [
        ("task", task or f"inpainting, {values['missing']:.0%} of the pixels missing"),
        ("prior", named + (", fine-tuned: model.safetensors beside this file" if tuned else "")),
        ("weights of the prior", f"SHA-256 {values['prior_sha256']}"),
        ("fine-tuned from", f"{named}, SHA-256 {digest}" if tuned else None),
        ("learned numbers", f"{run['parameters']} ({kind})"),
        ("training data", run["images"]),
        ("loss", "squared error of x_I per pixel, all pixels of the patches"),
        ("start", run["start"]),
        ("x_0", None if level else X_0[values.get("x_0", "start")]),
        ("iterations", shown),
        ("optimiser", f"Adam, cosine from {lr:g} to {LEARN_LAST * lr:g} (tau and log eta)"),
        ("", f"and from {lr_prior:g} to {LEARN_LAST * lr_prior:g} (prior)" if tuned else None),
        *_made(run, settings["seed"]),
        *((f"validation, {name}", f"{value:.2f} dB") for name, value in run["validation_psnr"].items()),
    ]
    held_out = run.get("held_out", "the first 8 images of val outside of BSDS68")
    steps = zip(values["t"], values["eta"], strict=True)
    lines = [
        "t_i and eta_i of x_i = prox_{eta_i D}(x_{i-1} - eta_i grad R(x_{i-1}, t_i)) (Kobler & Pock 2023, eq. 9),",
        "learned. Written by `gnclib.score.card` from `schedule.json`.",
        "",
        *_table(rows),
        "",
        f"Validation: mean PSNR over {held_out}, of each the upper left 256 x 256 pixels,",
        "noise or mask of image k with seed k, nothing clipped.",
        "",
        "| i | t_i | eta_i |",
        "|---|---|---|",
        *(f"| {i} | {t:.4g} | {eta:.4g} |" for i, (t, eta) in enumerate(steps, 1)),
    ]
    title = f"a learned schedule of {len(values['t'])} steps"
    tags = ("denoising" if level else "inpainting", "learned-schedule")
    return _card(folder, tags, "held_out" not in run, title, *lines)
