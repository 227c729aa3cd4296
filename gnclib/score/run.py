"""A whole training run in a folder (``gnc train``).

:func:`drive` is a generator, like :func:`gnclib.score.training.training` which it drives: a notebook plots what it
yields, and :mod:`gnclib.cli` shows a progress bar. Beside checkpoint and log (:mod:`gnclib.io.run`) the folder gets

    model.safetensors, config.json, training.json, README.md    the prior, what it is made from, and its model card

at the end, or by :func:`export` from the checkpoint of a run that is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from gnclib import io
from gnclib.deep import NetworkConfig, kind_of, load_prior
from gnclib.foe import FieldsOfExperts, FoEConfig, weights_sha256
from gnclib.score import ALONE, PRIORS, Group, TrainConfig, card, denoising_psnr, starts, training_set
from gnclib.score.card import Row
from gnclib.score.training import Step, TrainState, load_checkpoint, training


def same_kind(*configs: FoEConfig | NetworkConfig) -> bool:
    """Whether these are configurations of the same prior by name, which may differ in sizes and noise levels."""
    tell = "layers", "constant", "family", "scales", "convex_from", "scaled_input"
    return len({tuple(getattr(c, k, None) for k in tell) for c in configs}) == 1


def start(
    name: str, config: TrainConfig, *, warm_start: str | Path = "", device: torch.device | str = "cpu"
) -> TrainState:
    """A new run.

    ``name`` is one of :data:`PRIORS`, ``warm_start`` a prior to set out from, a shipped name or a folder, which is
    noted in the settings: one of the same kind, which is trained further as it is, or what
    :func:`gnclib.score.starts.warm_start` takes. Raises ValueError: another name, a warm start that does not fit, or
    settings of a run that had one; FileNotFoundError: there is no such prior to start from.
    """
    if name not in PRIORS:
        raise ValueError(f"there is no prior {name!r} to train: choose one of {', '.join(PRIORS)}")
    if config.warm_start or config.warm_start_hidden == "kept":
        raise ValueError(
            "these settings are of a run with a warm start: name the prior to start from in warm_start instead"
        )
    generator = torch.Generator().manual_seed(config.seed)
    model = kind_of(PRIORS[name])(PRIORS[name], generator=generator)
    if str(warm_start):
        before = load_prior(warm_start)
        found = {
            "warm_start": Path(warm_start).resolve().name,
            "warm_start_sha256": weights_sha256(warm_start),
        }
        if same_kind(before.config, model.config):
            model = before.train().requires_grad_(True)
            found["warm_start_hidden"] = "kept"
        elif isinstance(before, FieldsOfExperts) and isinstance(model, FieldsOfExperts):
            generator = torch.Generator().manual_seed(config.seed)
            starts.warm_start(model, before, generator, config.warm_start_hidden)
        else:
            raise ValueError(f"{name} cannot set out from {warm_start}: they are different kinds of energies")
        config = replace(config, **found)
    return TrainState(model.to(device), config)


def drive(
    state: TrainState,
    folder: str | Path,
    *,
    every: int = 1000,
    group: Group = ALONE,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Step, Row | None]]:
    """Train to the end on the images that the settings name, and export the prior: :func:`gnclib.io.run.drive`.

    The state, from :func:`start` or :func:`gnclib.score.training.load_checkpoint`, is changed in place. Of the
    processes that train together only rank 0 validates and writes; the others get None for a row; all end if one is to
    ``stop``. Raises as :func:`gnclib.score.training.training` and :mod:`gnclib.score.training_set`, ValueError for
    ``every`` < 1, and OSError.
    """
    images = training_set.of_run(state)
    fresh = state.step == 0 and not state.record.get("history") and state.config.warm_start_hidden != "kept"
    if fresh and getattr(state.model, "coarse", None):
        starts.begin(state.model, images.train, state.config.seed)
    keeper = None
    if group.rank == 0:
        held_out = [x.to(state.model.offset) for x in images.held_out]
        validate = lambda: fmean(denoising_psnr(state.prior, held_out, 25 / 255))  # noqa: E731
        keeper = io.Keeper(state, folder, Row, ("loss", "image", "smoothing"), validate, every, group.world)
    ended = lambda: group.any(stop(), state.device)  # noqa: E731
    yield from io.drive(training(state, images.train, group), state.total, keeper, ended)
    if keeper and state.step == state.total:
        export(folder)


def export(folder: str | Path) -> TrainState:
    """Write the prior of the checkpoint in ``folder``: weights, config.json, training.json and the model card.

    The run need not be finished: the card then says how many of the planned iterations were made, and the run can be
    resumed as before, whereupon these files are written anew. Evaluations of other weights (``evaluation*.json``) are
    renamed to ``*.json.old``, so that the card does not quote them. Raises as :func:`load_checkpoint`, and OSError.
    """
    folder, state = Path(folder), load_checkpoint(folder)
    weights = folder / "model.safetensors"
    state.prior.make_convex()  # the moving average is so up to the steps between two projections
    if not weights.is_file() or weights.read_bytes() != state.prior.weights_file():
        for stale in folder.glob("evaluation*.json"):  # before there are new weights beside them
            stale.rename(stale.with_name(stale.name + ".old"))
    state.prior.save_pretrained(folder)
    about = {
        "parameters": sum(p.numel() for p in state.trained),
        "images": training_set.TRAINED_ON,
        **io.told(state),
        "weights_sha256": io.sha256(weights),
    }
    io.write_text(folder / "training.json", json.dumps(about, indent=2) + "\n")
    card.write(folder)
    return state
