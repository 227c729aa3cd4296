"""The sweep that comes with the package, in one resumable file; the options of ``gnc ablate``.

Every finished training is added to a JSON file at once and atomically, with its settings and provenance. A run that
was killed goes on where it was: what is in the file is not trained again. Training data: train + test of BSDS500.
Judged on the middle of each of the 32 images of val outside of BSDS68: the benchmark plays no part in any choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from gnclib.foe import FoEConfig
from gnclib.images import data
from gnclib.io import files, provenance, reading
from gnclib.score.recipes import TrainConfig, Variant, variants
from gnclib.studies.ablations import Judge, Result, joint_outcome, sweep

#: the results that come with the package
SHIPPED = Path(__file__).with_name("ablations.json")
CROP = 160
#: variants whose priors are also tried in joint optimisation, on that many of the held-out crops
JOINT, JOINT_CROPS = ("recipe", "objective corrected", "objective printed", "objective vanishing"), 8
_RUN = {"variant": str, "seed": int, "machine": str, "software": str, "revision": str, "cpu_seconds": float}
#: what the file holds
_SHAPE = {
    "judge": dict,
    "held_out": str,
    "variants": {str: {"prior": dict, "config": dict, "kernels": str, "warm": (str, None)}},
    "runs": [
        _RUN | {name: [float] for name in ("psnr", "profile", "error", "curvature", "joint?")},
    ],
}
JUDGE = Judge(sigmas=tuple(s / 255 for s in (15, 25, 50, 128)), patches=64, curvature_at=(0.1, 1.0))


def held_out() -> list[torch.Tensor]:
    """The middle of every validation image: 32 crops (1, 1, 160, 160)."""
    return [data.middle(x, CROP) for x in data.validation_images().values()]


# the file ----------------------------------------------------------------------------------------------------------


def settings(variant: Variant) -> dict:
    """A variant as JSON data; what it starts from by name."""
    return {
        "prior": asdict(variant.prior),
        "config": asdict(variant.config),
        "kernels": variant.kernels,
        "warm": variant.warm and variant.warm.name,
    }


def load(path: str | Path = SHIPPED) -> dict:
    """The content of a result file: "judge", "held_out", "variants" (name -> settings) and "runs".

    Raises:
        FileNotFoundError: there is none. ValueError: it is no result file.
    """
    content = reading.read_json(path, "file of ablations", _SHAPE)
    try:
        for entry in content["variants"].values():
            FoEConfig.from_dict(entry["prior"]), TrainConfig(**entry["config"])
        if lost := {run["variant"] for run in content["runs"]} - content["variants"].keys():
            raise ValueError(f"the settings of {', '.join(sorted(lost))} are missing")
    except ValueError as error:
        raise ValueError(f"{path} is no file of ablations: {error}") from None
    return content


def check(content: dict, chosen: Sequence[Variant]) -> None:
    """Raise ValueError unless the runs in ``content`` were made with the settings of these variants and of ``JUDGE``.

    A setting that an older version did not have counts as its default.
    """
    if content["judge"] != files.encode(asdict(JUDGE)):
        raise ValueError("its runs were judged otherwise than now: choose another --out")
    for v in chosen:
        if v.name in content["variants"]:
            known, now = content["variants"][v.name], settings(v)
            same = FoEConfig.from_dict(known["prior"]), TrainConfig(**known["config"])
            same = same == (v.prior, v.config)
            if not same or any(known[key] != now[key] for key in ("kernels", "warm")):
                raise ValueError(f"its runs of {v.name!r} had other settings: choose another --out")


def add(path: Path, variant: Variant, result: Result) -> None:
    """Add one result to the file (made where it is missing), atomically."""
    content = load(path) if path.is_file() else _empty()
    check(content, [variant])
    content["variants"][variant.name] = settings(variant)
    run = {
        "variant": result.variant,
        "seed": result.seed,
        "psnr": [round(v, 4) for v in result.psnr],
        "profile": [round(v, 5) for v in result.profile],
        "error": [round(v, 5) for v in result.error],
        "curvature": [round(v, 4) for v in result.curvature],
        "cpu_seconds": round(result.seconds),
        "machine": provenance.machine(),
        "software": provenance.software("torch"),
        "revision": provenance.revision(),
    }
    if result.joint:
        run["joint"] = [round(v, 4) for v in result.joint]
    content["runs"].append(run)
    files.write_text(path, files.dumps(content))


def _empty() -> dict:
    where = f"the middle {CROP} x {CROP} pixels of each of the 32 images of val of BSDS500 outside of BSDS68"
    return {"judge": files.encode(asdict(JUDGE)), "held_out": where, "variants": {}, "runs": []}


# the command -------------------------------------------------------------------------------------------------------


def main(args: argparse.Namespace) -> None:
    """Run ``gnc ablate``. Raises ValueError for options that do not fit together or the file."""
    if args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    torch.set_num_threads(args.threads)
    chosen = {v.name: v for v in variants(args.steps) if v.name in args.only or not args.only}
    known = set()
    if args.out.is_file():
        content = load(args.out)
        try:
            check(content, list(chosen.values()))
        except ValueError as error:
            raise ValueError(f"{args.out} cannot be continued: {error}") from None
        known = {(run["variant"], run["seed"]) for run in content["runs"]}
    wanted = [(name, seed) for seed in args.seeds for name in chosen if (name, seed) not in known]
    print(f"{len(wanted)} trainings to do, {len(known)} in {args.out} already", flush=True)
    if not wanted:
        return
    images, crops = data.training_images(), held_out()
    for k, result in enumerate(sweep(chosen.values(), args.seeds, images, crops, JUDGE, known), 1):
        if result.variant in JOINT:
            result = replace(result, joint=joint_outcome(result.prior, crops[:JOINT_CROPS]))
        add(args.out, chosen[result.variant], result)
        levels = " / ".join(f"{v:.2f}" for v in result.psnr)
        print(
            f"{k}/{len(wanted)}  {result.variant}, seed {result.seed}: {levels} dB, calibration error"
            f" {result.calibration:.3f}, {result.seconds:.0f} s of CPU",
            flush=True,
        )
