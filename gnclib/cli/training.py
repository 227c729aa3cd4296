"""The commands that train: ``gnc train``, ``learn`` and ``ablate``."""

from __future__ import annotations

import inspect
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from gnclib.cli import options
from gnclib.cli.options import PATH, POSITIVE, command, say
from gnclib.score.recipes import LEARN_RECIPES, PRIORS, RECIPES, VARIANTS


def _settings_options(recipes: Mapping[str, Any]) -> Callable[[Callable], Callable]:
    """An option for each number and each choice among the settings of these recipes, with its help from their class.

    Settings that are other texts have options of their own, or are filled in by the program.
    """
    config = type(next(iter(recipes.values())))
    docs = re.findall(r"^(\w+)\n((?:    .*\n)+)", inspect.cleandoc(config.__doc__), flags=re.MULTILINE)
    found = []
    for name, text in docs:
        kind = config.__pydantic_fields__[name].annotation
        if kind is str:
            continue
        values = {recipe: getattr(settings, name) for recipe, settings in recipes.items()}
        if len(set(values.values())) == 1:
            default = str(next(iter(values.values())))
        else:
            default = ", ".join(f"{value} for {recipe}" for recipe, value in values.items())
        text = re.sub(r":\w+:`~?([^`]*)`", r"\1", " ".join(text.split()).rstrip(".").replace("``", ""))
        choices = [choice for choice in get_args(kind) if choice != "kept"]  # which is filled in
        found.append(
            click.option(
                "--" + name.replace("_", "-"),
                type=click.Choice(choices) if choices else kind,
                metavar=None if choices else "N" if kind is int else "X",
                help=f"{text[:1].lower()}{text[1:]} (default: {default})",
            )
        )
    return options.together(*found)


def _run_options(every: int) -> Callable[[Callable], Callable]:
    """The options of every run; ``every`` is the default of --every."""
    return options.together(
        click.option("--resume", is_flag=True, help="go on from the checkpoint in DIR"),
        click.option(
            "--every", type=POSITIVE, default=every, metavar="N", help="steps between two checkpoints"
        ),
        options.device,
        click.option(
            "--images",
            metavar="DIR",
            help="train on the images of this folder (not of its subfolders), turned to grey, or on 'embedded', the"
            " photographs of scikit-image; one in eight, at least one and at most eight, is held out for validation"
            " (default: BSDS500 train + test)",
        ),
    )


@command(
    """
    gnc data verify                                first see whether the training images are there
    gnc train R1 --steps 2000                      a first look; some minutes on one core
    gnc train R1 --images embedded --steps 2000    the same on photographs that need no download
    gnc train R1 --images DIR                      on photographs of your own
    gnc train R3 --images DIR --warm-start R3      the shipped R_3 trained further on them
    gnc train P1                                   the recipe as restored from the paper; 45 minutes on one core
    gnc train R1 --resume                          go on after an interruption
    gnc train R3 --warm-start R1 --batch 16        three layers, from the shipped R_1
    gnc train G1                                   a network energy; some hours on one core
    gnc train R3 --export-only                     weights and model card of a run that is not finished
    torchrun --nproc-per-node=2 -m gnclib train R3 --device cuda       one process per GPU
    """
)
@click.argument("prior", type=click.Choice(sorted(PRIORS)), metavar="PRIOR")
@click.option("--out", type=PATH, metavar="DIR", help="folder of the run (default: runs/PRIOR)")
@click.option(
    "--export-only", is_flag=True, help="train nothing: write weights and model card of the checkpoint in DIR"
)
@click.option(
    "--warm-start",
    metavar="PRIOR",
    help="set out from this prior, a shipped name or a folder: from one of the same kind, to train it further, or R1"
    " for R2, R3, M1 and C1, R3 for M3 and C3; further training keeps its sizes and noise levels"
    " (default: as in the paper, from DCT and random kernels)",
)
@_run_options(1000)
@_settings_options(RECIPES)
def train(prior, out, resume, export_only, warm_start, every, device, images, **settings):
    """Train a prior on image patches by joint score matching (Kobler & Pock 2023, eq. 7). Fields of Experts: R1, R2 and
    R3 with our changes, P1, P2 and P3 as restored from the paper, the number being that of the layers, M1 and M3 with
    coarser scales, C1 and C3 the same and convex for strong noise; G1 has a network. A run can be stopped any time:
    Ctrl-C and SIGTERM write a checkpoint first, after a kill the last one counts. A resumed run on the CPU ends with
    the same weights, bit for bit, as one that was never stopped. Under torchrun several processes share each batch."""
    import torch

    from gnclib.foe import weights_sha256
    from gnclib.score import load_checkpoint, run
    from gnclib.score.distributed import join

    folder = out or Path("runs") / prior
    if export_only:
        state = run.export(folder)
        say(f"{prior}: weights after {_done(state)} and their card are in {folder}")
        return
    group, device = join(device)
    given = {name: value for name, value in settings.items() if value is not None}
    if resume:
        digest = {"warm_start_sha256": weights_sha256(warm_start)} if warm_start else {}
        state = _resumed(load_checkpoint(folder, device), images, given | digest)
        if not run.same_kind(state.model.config, PRIORS[prior]):
            raise ValueError(f"the checkpoint in {folder} is of another prior than {prior}")
    else:
        _demand_no_run(folder)
        config = replace(RECIPES[prior], **given, images=_images(images))
        state = run.start(prior, config, warm_start=warm_start or "", device=device)
        if given.get("warm_start_hidden", found := state.config.warm_start_hidden) != found:
            raise ValueError("further training keeps all activations: leave out --warm-start-hidden")
    weights = torch.cat([p.detach().reshape(-1) for p in state.model.parameters()])
    weights = torch.cat([weights, weights.new_tensor([state.step])])
    group.agree(weights, "weights")  # all have looked for a checkpoint
    if group.rank == 0:
        say(f"{prior}: from iteration {state.step} to {state.total}, reports every {every}")
    measures = {"image": ".4f", "smoothing": ".2f"}
    with _to_the_end(prior, state, folder, quiet=group.rank > 0) as stop:
        steps = run.drive(state, folder, every=every, group=group, stop=stop)
        _follow(steps, prior, state, measures, quiet=group.rank > 0)
        group.close()
    if group.rank == 0:
        say(f"{prior}: weights, log and checkpoint are in {folder}")


@command(
    """
    gnc learn R1 --task denoise --sigma 25         as the shipped R1-denoise-25; minutes on one core
    gnc learn R1 --task inpaint --missing 0.8
    gnc learn R1 --sigma 25 --finetune             schedule and prior, from R1-denoise-25
    """
)
@click.argument("prior")
@options.task
@click.option(
    "--sigma", type=float, metavar="S", help="of denoise: noise in grey levels of 0..255 (default: 25)"
)
@click.option(
    "--missing", type=float, metavar="Q", help="of inpaint: fraction of missing pixels (default: 0.8)"
)
@click.option("--steps", type=int, metavar="I", help="steps of the schedule (default: 10)")
@click.option(
    "--t0",
    type=float,
    metavar="T",
    help="noise variance that learning begins with in step 1, down to the smallest of the prior in the last (default:"
    " the largest of the prior; 0.03 for inpaint), in grey values; C3 and G1 learned from 2 to 4 times sigma^2 on",
)
@click.option(
    "--finetune",
    is_flag=False,
    flag_value="",
    metavar="[SCHEDULE]",
    help="train the prior as well, from this learned schedule, a shipped name or a folder (default: PRIOR-TASK)",
)
@click.option(
    "--out",
    type=PATH,
    metavar="DIR",
    help="folder of the run (default: runs/PRIOR-TASK, as in runs/R1-denoise-25); --scheme learned of gnc denoise looks"
    " for it beside the prior",
)
@_run_options(100)
@_settings_options(LEARN_RECIPES)
def learn(prior, task, sigma, missing, steps, t0, finetune, out, resume, device, every, images, **settings):
    """Learn all t_i and eta_i of the GNC flow (Kobler & Pock 2023, eq. 9, unrolled for I steps) for one prior and one
    task from patches of images, and with --finetune the whole prior as well. A run can be stopped and resumed like
    those of 'gnc train'."""
    from gnclib.checks import as_device
    from gnclib.foe import derived
    from gnclib.restore import learn as learning
    from gnclib.restore.learned import Task

    if (missing if task == "denoise" else sigma) is not None:
        raise ValueError("--sigma is for --task denoise, --missing for --task inpaint: leave the other away")
    given_level, default = (sigma, 25.0) if task == "denoise" else (missing, 0.8)
    task = Task(task, default if given_level is None else given_level)
    name = f"{Path(prior).resolve().name}-{'' if finetune is None else 'finetuned-'}{task}"
    folder = out or Path("runs") / name
    device = as_device(device)
    given = {name: value for name, value in settings.items() if value is not None}
    if resume:
        state = learning.load_checkpoint(folder, device)
        if state.schedule.task != task:
            raise ValueError(f"the checkpoint in {folder} is for {state.schedule.task}, not for {task}")
        if state.schedule.prior != (named := Path(prior).resolve().name):
            raise ValueError(f"the checkpoint in {folder} is of {state.schedule.prior}, not of {named}")
        first = state.schedule.first_t
        kept = {"steps": len(first), "t0": first[0].item()}
        state = _resumed(state, images, given | {"steps": steps, "t0": t0}, kept)
    else:
        _demand_no_run(folder)
        kind, begin = "finetune", {"schedule": finetune or derived(prior, str(task))}
        if finetune is None:
            kind, begin = "schedule", {"steps": 10 if steps is None else steps, "t_first": t0}
            if "lr_prior" in given:
                raise ValueError("--lr-prior is for --finetune: without it the prior stays as it is")
        elif steps is not None or t0 is not None:
            raise ValueError("--finetune sets out from a learned schedule: leave --steps and --t0 away")
        config = replace(LEARN_RECIPES[kind], **given, images=_images(images))
        if finetune is not None and not config.lr_prior:
            raise ValueError("--finetune needs --lr-prior above 0")
        state = learning.start(prior, task, config, **begin, device=device)
    with _to_the_end(name, state, folder) as stop:
        _follow(learning.drive(state, folder, every=every, stop=stop), name, state, {"loss": ".3e"})
    say(f"{name}: schedule, card and log are in {folder}")


@command(
    """
    gnc ablate                                     all variants, seeds 0 and 1; an hour and more on one core
    gnc ablate --only recipe --only 'N_tau = 5'    two of them
    gnc ablate --network --seeds 0                 of G1; an hour and a half on one core
    gnc ablate --windows --seeds 0                 of networks that see less or more; an hour on one core
    gnc ablate --departures --seeds 0              from P1 to R1, 100,000 iterations each; some hours on one core
    """
)
@click.option(
    "--steps", type=POSITIVE, metavar="N", help="iterations per training (default: 1000; departures: 100000)"
)
@options.repeated(
    "--seeds",
    type=int,
    default=[0, 1],
    metavar="K",
    help="of patches, noise and kernels; all of one come first",
)
@options.only("a variant, see notebooks 08_ablations and 10_expressive")
@click.option(
    "--network", "kind", flag_value="network", help="of the network energy G1, not of Fields of Experts"
)
@click.option(
    "--windows", "kind", flag_value="windows", help="of networks of one to three scales, convex or not"
)
@click.option(
    "--departures", "kind", flag_value="departures", help="on the way from the recipe of P1 to that of R1"
)
@click.option("--out", type=PATH, metavar="FILE", help="result file (default: runs/ablations[_KIND].json)")
def ablate(steps, seeds, only, kind, out):
    """Train variants of the recipe of the shipped priors, each with the same steps and several seeds, few steps but for
    --departures, and judge them on validation images outside of BSDS68. Each finished training is added to FILE at
    once; started again after an interruption, the command trains what is missing. Those of --departures also have
    checkpoints, log and card, in the folder FILE_runs. Needs BSDS500. The notebooks 08_ablations and 10_expressive read
    the results that come with the package."""
    import torch

    from gnclib.images import data
    from gnclib.studies import ablations

    torch.set_num_threads(1)
    known, (shipped, judge) = VARIANTS[kind or ""](*([steps] if steps else [])), ablations.KINDS[kind or ""]
    names = [variant.name for variant in known]
    if other := [name for name in only if name not in names]:
        raise ValueError(
            f"{', '.join(other)}: not among {', '.join(names)}; other lists: --network, --windows, --departures"
        )
    chosen = [variant for variant in known if variant.name in only or not only]
    out = out or Path("runs") / shipped.name
    folder = out.with_name(f"{out.stem}_runs") if kind == "departures" else None
    images, crops = {} if folder else data.training_images(), ablations.held_out()
    table = ablations.opened(out, known[0].config.steps, judge)
    jobs = list(ablations.jobs(chosen, seeds, images, crops, judge, ablations.JOINT, folder))
    wanted = table.missing("runs", jobs)
    say(f"{len(wanted)} trainings to do, {len(jobs) - len(wanted)} in {out} already")
    for k, run in enumerate(table.fill("runs", wanted), 1):
        levels = " / ".join(f"{value:.2f}" for value in run.psnr)
        say(
            f"{k}/{len(wanted)}  {run.variant}, seed {run.seed}: {levels} dB, calibration error"
            f" {run.calibration:.3f}, {run.cpu_seconds:.0f} s of CPU"
        )


# --- what train and learn share ---------------------------------------------------------------------------


def _images(images: str | None) -> str:
    """What ``--images`` names, as the settings have it: "" for BSDS500, "embedded", or the whole path of a folder."""
    from gnclib.score.training_set import EMBEDDED

    return images if images == EMBEDDED else str(Path(images).resolve()) if images else ""


def _done(state) -> str:
    return f"{state.step} of {state.total} iterations"


def _demand_no_run(folder: Path) -> None:
    if (folder / "checkpoint.safetensors").exists():
        raise ValueError(f"{folder} holds a run already: --resume goes on with it, --out chooses another")


def _resumed(state, images: str | None, given: dict, kept: dict | None = None):
    """A state from a checkpoint, whose settings, and those ``kept`` outside of its config, are those that are given."""
    if images is not None:  # the folder may have moved; other images are refused when they are read
        state.config = replace(state.config, images=_images(images))
    known = vars(state.config) | (kept or {})
    if changed := [name for name, value in given.items() if value not in (None, known[name])]:
        words = ", ".join("--" + name.removesuffix("_sha256").replace("_", "-") for name in changed)
        raise ValueError(f"--resume goes on with the settings of the checkpoint; leave out {words}")
    return state


@contextmanager
def _to_the_end(name: str, state, folder: Path, quiet: bool = False) -> Iterator[Callable[[], bool]]:
    """Whether a signal has come; if one has stopped the run, say so and end with its status."""
    from gnclib.io import signals

    with signals() as received:
        yield lambda: bool(received)
    if state.step < state.total:
        if not quiet:
            why = received[0].name if received else "a signal to another process"
            say(
                f"{name}: stopped by {why} after {_done(state)}; the checkpoint is in {folder}, --resume goes on"
            )
        raise SystemExit(128 + (received[0] if received else signal.SIGTERM))


def _follow(steps: Iterable[tuple], name: str, state, measures: dict[str, str], quiet: bool = False) -> None:
    """Consume the steps of a run, with a bar on a terminal, and a line for each row of its log elsewhere.

    ``measures`` are names of numbers that steps and rows have, and their formats.
    """
    from tqdm import tqdm

    first, total = state.step, state.total
    started, quality, terminal = time.monotonic(), "-", sys.stderr.isatty()
    with tqdm(total=total, initial=first, unit="it", desc=name, disable=quiet or not terminal) as bar:
        for step, row in steps:
            quality = f"{row.validation:.2f} dB" if row else quality
            shown = {key: format(getattr(step, key), form) for key, form in measures.items()}
            bar.set_postfix(shown | {"validation": quality}, refresh=False)
            bar.update()
            if row and not quiet and not terminal:
                left = (time.monotonic() - started) / (step.step - first) * (total - step.step)
                parts = "".join(f"{key} {getattr(row, key):{form}}, " for key, form in measures.items())
                text = f"{name} {row.step}/{total}: {parts}validation {quality}, {tqdm.format_interval(left)} left"
                say(text, error=True)
