"""The model card of a trained prior: a README beside its weights, written from what the run recorded.

``gnc train`` leaves ``training.json`` (settings, data, machines, revisions) and ``log.csv``; ``gnc evaluate --json``
adds ``evaluation*.json``. :func:`write` turns them into ``README.md``, so that no number in it is typed by hand.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from gnclib.foe.config import FoEConfig
from gnclib.io import files
from gnclib.io import provenance as origin
from gnclib.io.reading import read_json
from gnclib.io.run import read_log
from gnclib.score.settings import TrainConfig
from gnclib.score.state import TrainState

#: the columns of log.csv
COLUMNS = "step,loss,image,smoothing,lr,validation_psnr_25,seconds"
#: what a run was trained on and watched with, unless it says otherwise
TRAINED_ON = "BSDS500 train + test (400 images); val, which contains BSDS68, is refused"
HELD_OUT = "8 crops of val outside of BSDS68"
_HISTORY = {"from": int, "revision": str, "machine": str, "software": str}
#: what training.json holds
_TRAINING = {
    **{"settings": dict, "iterations": int, "parameters": int, "images": str, "hours": float},
    **{"machine": str, "software": str, "revision": str, "history?": [_HISTORY]},
    **{"note?": str, "weights_sha256?": str, "held_out?": str},
}
_MEASURED = {
    **{"mean": float, "images": {str: float}, "gradients_per_image?": int},
    **{f"{name}?": float for name in ("mean_ssim", "mean_psnr_of_measurement")},
    **{f"{name}?": [float] for name in ("mean_psnr_per_step", "mean_energy_per_step")},
}
#: what evaluation*.json hold
_EVALUATION = {
    **{"scheme": str, "set": str, "steps?": int},
    **{f"{name}?": str for name in ("prior", "task", "colour", "clipping", "noise", "energy")},
    **{f"psnr_by_{level}?": {str: _MEASURED} for level in ("sigma", "missing")},
}
#: what each objective is, in words
OBJECTIVES = {
    "corrected": "eq. 7 with the boundary term that its integration by parts over tau leaves out",
    "printed": "eq. 7 as printed",
    "vanishing": "eq. 7 with a prior of tau that vanishes at both ends of its interval, in the smoothing part",
    "denoising": "departs from eq. 7: denoising instead of implicit score matching in tau, the mean of"
    " 1/2 (d_tau R + norm(z)^2 - n)^2, which has the same minimiser (up to the border of the patches) and needs neither"
    " second derivatives nor a boundary term",
}
#: the schemes of evaluation*.json, in words
SCHEMES = {
    "mmse": "one-step MMSE",
    "gnc": "GNC flow",
    "joint": "joint descent",
    "learned": "learned schedule",
}


# what a run tells about itself -------------------------------------------------------------------------------------


def remember(state: TrainState, processes: int = 1) -> None:
    """Add to ``state.record["history"]`` from which iteration on which code ran on which machine.

    To be called when a run starts or resumes; nothing is added where nothing has changed.
    """
    history = state.record.setdefault("history", [])
    if state.step and not history:  # a checkpoint of a version that kept no history
        history.append({"from": 0, "revision": "unknown", "machine": "unknown", "software": "unknown"})
    now = {
        "from": state.step,
        "revision": origin.revision(),
        "machine": origin.machine(state.model.offset.device, processes),
        "software": origin.software("torch"),
    }
    if history and history[-1]["from"] == state.step:
        history.pop()  # no iteration was made with it
    if not history or {**history[-1], "from": state.step} != now:
        history.append(now)


def provenance(state: TrainState, seconds: float) -> dict:
    """What a run has to tell about itself: settings, sizes, training data, machines, software, revisions."""
    unknown = {"from": 0, "revision": "unknown", "machine": "unknown", "software": "unknown"}
    history = state.record.get("history") or [unknown]
    return {
        "settings": asdict(state.config) | {"images": Path(state.config.images).name},
        "iterations": state.step,
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "images": state.record.get("images", TRAINED_ON),
        **({"held_out": state.record["held_out"]} if "held_out" in state.record else {}),
        "hours": round(seconds / 3600, 2),
        "machine": _in_turn(history, "machine"),
        "software": _in_turn(history, "software"),
        "revision": _in_turn(history, "revision"),
        "history": history,
        **({"note": state.record["note"]} if "note" in state.record else {}),
    }


def _in_turn(history: list[dict], key: str) -> str:
    """ "a", or "a for the first 2000 iterations, b from there on" where the value changed."""
    turns: list[tuple[int, str]] = []
    for entry in history:
        if not turns or turns[-1][1] != entry[key]:
            turns.append((entry["from"], entry[key]))
    if len(turns) == 1:
        return turns[0][1]
    parts = [f"{turns[0][1]} for the first {turns[1][0]} iterations"]
    return ", ".join([*parts, *(f"{value} from {first} on" for first, value in turns[1:])])


# the card ----------------------------------------------------------------------------------------------------------


def front_matter(*tags: str, bsds500: bool = True) -> list[str]:
    """The head of a card in YAML, which the Hugging Face hub reads: licence, library, data and `tags`, as lines.

    bsds500: whether that is the training data. The licence of weights made from other images is for their maker to say.
    """
    return [
        "---",
        *(["license: mit"] if bsds500 else []),
        "library_name: gnclib",
        "pipeline_tag: image-to-image",
        *(["datasets: [BSDS500]"] if bsds500 else []),
        f"tags: [{', '.join(tags)}]",
        "---",
        "",
    ]


def write(folder: str | Path) -> Path:
    """Write ``README.md`` into the folder of a trained prior.

    Raises:
        FileNotFoundError: the folder has no config.json or training.json. ValueError: a file in it is damaged.
    """
    folder = Path(folder)
    for name in ("config.json", "training.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}: a model card is written from what a training run left behind"
            )
    config = read_json(folder / "config.json", "configuration of a prior", dict)
    run = read_json(folder / "training.json", "record of a training run", _TRAINING)
    try:
        config = asdict(FoEConfig.from_dict(config))
        run["settings"] = asdict(TrainConfig(**run["settings"]))
    except ValueError as error:
        raise ValueError(f"config.json or training.json in {folder} is damaged: {error}") from None
    layers = f"{config['layers']} layer{'s' if config['layers'] > 1 else ''}"
    tags = ("image-restoration", "denoising", "fields-of-experts", "score-matching")
    lines = [
        *front_matter(*tags, bsds500="held_out" not in run),
        f"# {folder.resolve().name}: Fields of Experts with {layers}",
        "",
        "A learned energy R(y, t) of noisy grey images, trained by joint score matching (Kobler & Pock 2023, eqs. 2, 3",
        "and 7). Written by `gnclib.score.card` from `config.json`, `training.json`, `log.csv` and `evaluation*.json`.",
        "",
        "| | |",
        "|---|---|",
        *(
            f"| {name} | {value} |"
            for name, value in [*_training(config, run), *_log(folder, run), *_evaluations(folder)]
        ),
    ]
    if run["iterations"] < run["settings"]["steps"]:
        lines += [
            "",
            f"**Not finished.** These are the weights after {run['iterations']} of {run['settings']['steps']} planned"
            " iterations, with the learning rate still on its way down. The checkpoint of the run goes on from there"
            " (`gnc train --resume`).",
        ]
    if note := run.get("note"):
        lines += ["", note]
    return files.write_text(folder / "README.md", "\n".join(lines) + "\n")


def _training(config: dict, run: dict) -> list[tuple[str, str]]:
    """The rows on how the prior was made; ``run`` may be the training.json of an older version."""
    settings, done = run["settings"], run["iterations"]
    of = "" if done == settings["steps"] else f" of {settings['steps']} planned, each"
    start = "none: DCT and Kaiming-normal kernels, a quadratic last potential, as in the paper"
    if (run.get("history") or [{}])[0].get("revision") == "unknown" and config["layers"] > 1:
        start = "none recorded: the run began with a version that did not do so"
    if settings.get("warm_start"):
        digest = settings["warm_start_sha256"]
        hidden = settings.get("warm_start_hidden", "identity")
        start = f"`{settings['warm_start']}`, SHA-256 of its weights {digest}, hidden activation {hidden} (our choice)"
    rows = [
        ("parameters", run["parameters"]),
        ("noise levels", f"sigma in [{config['sigma_min']}, {config['sigma_max']}], grey values in [0, 1]"),
        ("training data", run["images"]),
        ("iterations", f"{done}{of} of batch {settings['batch']}, patches of side {settings['patch']}"),
        ("loss", f"objective `{settings['objective']}`, lambda {settings['smoothing']:g} per pixel"),
        ("objective", OBJECTIVES[settings["objective"]]),
        ("warm start", start),
        ("optimiser", f"AdaBelief, cosine from {settings['lr']:g} to {settings['lr_last']:g}"),
    ]
    if settings.get("roughness"):
        text = "times the learning rate: decoupled decay of the potentials' third differences after each step (ours)"
        if config["layers"] > 1:
            text += f"; hidden activations {settings.get('roughness_hidden', 1.0):g} times that"
        rows.append(("roughness", f"{settings['roughness']:g} {text}"))
    if settings.get("averaging"):
        rows.append(
            ("averaging", f"exponential moving average of the weights, decay {settings['averaging']:g}")
        )
    rows += [
        ("seed", settings["seed"]),
        ("time", f"{run['hours']} h"),
        ("machine", run["machine"]),
        ("software", f"{run['software']}; revision {run['revision']}"),
    ]
    if "weights_sha256" in run:
        rows.append(("weights", f"SHA-256 {run['weights_sha256']}"))
    return rows


def _log(folder: Path, run: dict) -> list[tuple[str, str]]:
    held_out = run.get("held_out", HELD_OUT)
    log = folder / "log.csv"
    rows = read_log(log, COLUMNS) if log.is_file() else []
    if not rows:
        return [("validation", "none yet")]
    step, _, image, smoothing, _, quality, _ = rows[-1]
    return [
        ("last logged loss per pixel", f"image {image:.4f}, smoothing {smoothing:.2f}"),
        (
            f"validation, sigma 25/255, at iteration {step:.0f}",
            f"{quality:.2f} dB (one-step MMSE, {held_out})",
        ),
    ]


def _evaluations(folder: Path) -> list[tuple[str, str]]:
    found = []
    for file in sorted(folder.glob("evaluation*.json"), key=lambda f: f.stem):
        numbers = read_json(file, "evaluation of a prior", _EVALUATION)
        scheme = SCHEMES.get(numbers["scheme"], numbers["scheme"])
        if numbers["scheme"] != "mmse":
            scheme += f" of {numbers.get('steps', '?')} steps"
        if "colour" in numbers:
            scheme += ", in opponent colours" if numbers["colour"] == "opponent" else ", channel by channel"
        for sigma, result in numbers.get("psnr_by_sigma", {}).items():
            about = f"{scheme}, mean of {len(result['images'])} images, noise of image k with seed k, nothing clipped"
            found.append((f"{numbers['set']}, sigma {sigma}/255", f"{result['mean']:.2f} dB ({about})"))
    return found
