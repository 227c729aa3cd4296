"""From notebooks to figures: what ``gnc figures`` does.

`MANIFEST` declares every figure with the notebook that makes it. `run` executes notebooks in temporary copies, each
with an empty staging folder as its `out`. A notebook counts as done only if every figure declared for it lies there,
complete and made just now; then its files move to the output folder, one atomic step each, and the claims it recorded
enter the ledger. A notebook that fails leaves everything as it was, and the others still run.
"""

from __future__ import annotations

import difflib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnclib import compare, ledger, notebooks
from gnclib.notebooks import NotebookError

__all__ = ["MANIFEST", "Done", "Figure", "compare_runs", "run", "select"]

SUFFIXES = (".png", ".pdf", ".json")


@dataclass(frozen=True)
class Figure:
    """A declared figure: the notebook that makes it, its title, and the tolerance of its numbers (`gnclib.compare`)."""

    notebook: str
    title: str
    rtol: float = 1e-3
    atol: float = 1e-9


MANIFEST: dict[str, Figure] = {
    "convexity_map": Figure("01_convexity_theorem", "Where the Hessian of the smoothed energy is negative"),
    "bound_sharpness": Figure("01_convexity_theorem", "Exact thresholds against two bounds, equal variances"),
    "two_components": Figure(
        "01_convexity_theorem", "Two components: exact threshold, and where it is attained"
    ),
    "once_convex": Figure("01_convexity_theorem", "Once convex, always convex: on the line, and in a window"),
    "outside_domain": Figure("01_convexity_theorem", "Convex on X and non-convex outside, unequal variances"),
    "empirical_measure": Figure("01_convexity_theorem", "Exact threshold of an empirical measure"),
    "certificate": Figure(
        "01_convexity_theorem", "Boxes on which convexity is proved by interval arithmetic"
    ),
    "tweedie_maps": Figure("02_gnc_flow", "One step of the flow is the MMSE estimate, for several t"),
    "gnc_trajectories": Figure("02_gnc_flow", "Trajectories of the GNC flow"),
    "figure1": Figure("02_gnc_flow", "Figure 1: smoothed energies, attainment over t_0 and I, convexity"),
    "steps_needed": Figure("02_gnc_flow", "Steps needed until all trajectories arrive, against t_0"),
    "gnc_and_ddim": Figure("02_gnc_flow", "Where the GNC flow and DDIM end"),
    "gnc_control": Figure("02_gnc_flow", "GNC flow against gradient descent and random restarts"),
    "gnc_failure": Figure("02_gnc_flow", "Mixtures on which the GNC flow misses the global minimum"),
    "score_truth": Figure("03_score_matching", "The true energy on the line and its derivatives"),
    "score_regression": Figure(
        "03_score_matching", "Both derivatives of the energy are regressions on the noise"
    ),
    "score_boundary": Figure(
        "03_score_matching", "The boundary artefact of eq. 7 as printed, and its prediction"
    ),
    "score_maps": Figure("03_score_matching", "Errors of the learned derivatives over (y, tau)", rtol=1e-2),
    "score_lambda": Figure(
        "03_score_matching", "Role of lambda for the printed and the corrected loss", rtol=1e-2
    ),
    "score_valley": Figure("03_score_matching", "The artefact makes a spurious valley in tau"),
    "score_samples": Figure(
        "03_score_matching", "Error against the number of samples, by estimator", rtol=5e-2
    ),
    "spline_basis": Figure("04_train_foe", "Quartic B-splines: partition of unity and smoothness"),
    "dct_kernels": Figure("04_train_foe", "The kernels before training: the DCT basis"),
    "train_live": Figure("04_train_foe", "A short training: loss parts and denoising", rtol=2e-2),
    "train_before_after": Figure(
        "04_train_foe", "A photograph denoised before and after training", rtol=2e-2
    ),
    "train_log": Figure("04_train_foe", "The log of the training of the shipped R_1"),
    "train_quality": Figure("04_train_foe", "R_1 over noise levels: denoising and calibration", rtol=1e-2),
    "ablation_psnr": Figure("07_ablations", "Short trainings compared: denoising", rtol=2e-2),
    "ablation_calibration": Figure("07_ablations", "Short trainings compared: calibration in tau", rtol=0.2),
    "effective_range": Figure("05_kernels_and_potentials", "Range of the responses against the noise level"),
    "figure2_r1": Figure(
        "05_kernels_and_potentials", "Figure 2 for R_1: sixteen kernels and their potentials"
    ),
    "figure2_r1_all": Figure(
        "05_kernels_and_potentials", "Figure 2 for R_1: all 48 kernels and their potentials"
    ),
    "potentials_shape": Figure(
        "05_kernels_and_potentials",
        "How quadratic, convex and rugged the potentials are",
        rtol=1e-2,
        atol=1e-3,
    ),
    "learned_hessian": Figure(
        "05_kernels_and_potentials",
        "Is the learned energy convex? Eigenvalues and chords",
        rtol=2e-2,
        atol=1e-3,
    ),
    "mmse_step": Figure("05_kernels_and_potentials", "One denoising step and what it removes"),
    "images_from_noise": Figure(
        "05_kernels_and_potentials", "From noise to images without data, in three ways", rtol=2e-2, atol=1e-3
    ),
    "one_step": Figure(
        "06_inverse_problems", "One step as a denoiser: gain, optimal factor, wrong noise level"
    ),
    "denoising_steps": Figure(
        "06_inverse_problems", "Energy and PSNR per step of the GNC flow", rtol=1e-2, atol=2e-3
    ),
    "denoising_images": Figure(
        "06_inverse_problems", "A photograph denoised by one step and by the GNC flow"
    ),
    "attainment_images": Figure(
        "06_inverse_problems", "Attainment, PSNR and memory of the start over t_0 and I", rtol=1e-2, atol=2e-3
    ),
    "sum_of_steps": Figure("06_inverse_problems", "What the sum of the steps decides", rtol=1e-2, atol=2e-3),
    "inpainting_images": Figure("06_inverse_problems", "A photograph inpainted by the GNC flow"),
}


@dataclass(frozen=True)
class Done:
    """What became of one notebook: its figures and seconds, or the reason why it failed."""

    notebook: str
    seconds: float
    figures: tuple[str, ...] = ()
    failure: str | None = None


def select(
    only: Iterable[str], manifest: Mapping[str, Figure] = MANIFEST, folder: Path | None = None
) -> dict[str, Path]:
    """The notebooks that make what `only` names (figures or notebooks); all of them if it is empty.

    Raises
    ------
    ValueError
        A name that is neither a figure nor a notebook.
    NotebookError
        The manifest names a notebook that does not exist.
    """
    found = notebooks.find(folder)
    declared = {figure.notebook for figure in manifest.values()}
    wanted = set()
    for name in only:
        notebook = manifest[name].notebook if name in manifest else name.removesuffix(".ipynb")
        if notebook not in found and notebook not in declared:
            names = [*manifest, *found]
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
            raise ValueError(f"no figure or notebook is called {name!r}; {hint}")
        wanted.add(notebook)
    if absent := sorted((wanted or declared) - found.keys()):
        raise NotebookError(f"the manifest names notebooks that are missing: {', '.join(absent)}")
    return {name: path for name, path in found.items() if not wanted or name in wanted}


def run(
    only: Iterable[str] = (),
    full: bool = False,
    out: str | os.PathLike = "figures",
    progress: bool = True,
    *,
    manifest: Mapping[str, Figure] = MANIFEST,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Done]:
    """Execute notebooks and bring their figures and claims to `out`.

    Parameters
    ----------
    only
        Names of figures or notebooks; empty means everything.
    full
        Run with `full = True` instead of the quick defaults.
    out
        Folder for NAME.png, NAME.pdf, NAME.json, claims.json and claims.md; made where it is missing.
    progress
        Show one bar per notebook, counting cells.
    manifest, folder
        Other declarations and another folder of notebooks (tests use these).
    say
        Called with one line of text per finished notebook.

    Raises
    ------
    ValueError, NotADirectoryError
        A wrong name in `only`; `out` is a file.
    NotebookError
        One or more notebooks failed. All were tried, and the successful ones are in `out`.
    """
    chosen = select(only, manifest, folder)
    out = Path(out).resolve()
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: give a folder for the figures")
    out.mkdir(parents=True, exist_ok=True)
    known = notebooks.find(folder)
    records = ledger.load(out / "claims.json")
    done = []
    for name, path in chosen.items():
        start = time.monotonic()
        figures = tuple(figure for figure, item in manifest.items() if item.notebook == name)
        try:
            new = _run_one(name, path, figures, full, out, progress)
            records = ledger.merge(records, new, [name], known)
            ledger.save(out, records)
            done.append(Done(name, time.monotonic() - start, figures))
        except (NotebookError, ValueError) as error:
            done.append(Done(name, time.monotonic() - start, failure=str(error)))
        say(_summary(done[-1]))
    if failed := [item for item in done if item.failure]:
        reasons = "\n".join(f"  {item.failure}" for item in failed)
        raise NotebookError(
            f"{len(failed)} of {len(done)} notebooks failed; their older figures were kept:\n{reasons}"
        )
    return done


def _summary(item: Done) -> str:
    result = f"FAILED: {item.failure}" if item.failure else ", ".join(item.figures) or "no figures declared"
    return f"{item.notebook:<26}{item.seconds:6.1f} s  {result}"


def _run_one(
    name: str, path: Path, figures: tuple[str, ...], full: bool, out: Path, progress: bool
) -> list[ledger.Entry]:
    """Execute one notebook into a staging folder beside `out`, check what it made, then move it to `out`."""
    with tempfile.TemporaryDirectory(prefix=".gnc-", dir=out.parent) as temporary:
        staging = Path(temporary) / "out"
        staging.mkdir()
        begun = time.time()
        given = {"full": full, "out": str(staging)}
        executed = notebooks.execute(path, Path(temporary) / path.name, given, progress)
        _check_made(name, figures, staging, begun)
        records = ledger.collect(executed, name, "full" if full else "quick")
        for file in sorted(staging.iterdir()):
            os.replace(file, out / file.name)
    return records


def _check_made(name: str, figures: tuple[str, ...], staging: Path, begun: float) -> None:
    """Every declared figure is there, not empty and made after `begun`; nothing undeclared lies beside them."""
    for figure in figures:
        for suffix in SUFFIXES:
            file = staging / f"{figure}{suffix}"
            if not file.is_file() or file.stat().st_size == 0:
                raise NotebookError(f"{name} ran, but did not make {file.name}, which the manifest declares")
            if file.stat().st_mtime < begun - 2:  # some file systems keep times to two seconds
                raise NotebookError(f"{name}: {file.name} is stale, it was not made by this run")
    declared = {f"{figure}{suffix}" for figure in figures for suffix in SUFFIXES}
    if extra := sorted({file.name for file in staging.iterdir()} - declared):
        raise NotebookError(
            f"{name} wrote {', '.join(extra)}, which gnclib.reproduce.MANIFEST does not declare for it"
        )


def compare_runs(
    reference: Path,
    value: Path,
    only: Iterable[str] = (),
    *,
    manifest: Mapping[str, Figure] = MANIFEST,
    folder: Path | None = None,
) -> tuple[list[str], list[str]]:
    """Compare a fresh run in `value` with the one kept in `reference`: numbers within tolerance, verdicts exactly.

    Returns
    -------
    (wrong, remarks)
        Lines of text; the run reproduces the reference if `wrong` is empty. Remarks tell what was not compared.
    """
    chosen = select(only, manifest, folder)
    wrong, remarks, skipped = [], [], set()
    for name, figure in manifest.items():
        if figure.notebook not in chosen:
            continue
        try:
            found, reason = compare.compare_files(
                reference / f"{name}.json", value / f"{name}.json", figure.rtol, figure.atol
            )
        except FileNotFoundError as error:
            found, reason = [str(error)], None
        wrong += [f"{name}: {text}" for text in found]
        if reason:
            remarks.append(f"{name}: not compared, {reason}")
            skipped.add(figure.notebook)
    old, new = (_verdicts(path / "claims.json", chosen) for path in (reference, value))
    for key in sorted(old.keys() | new.keys()):
        if key[1] not in skipped and old.get(key) != new.get(key):
            kept, now = old.get(key, "no record"), new.get(key, "no record")
            wrong.append(f"claim {key[0]} ({key[1]}): {now!r} instead of {kept!r}")
    if not only:
        declared = {name + suffix for name in manifest for suffix in SUFFIXES} | {"claims.json", "claims.md"}
        files = {path.name for path in reference.iterdir() if path.is_file()} if reference.is_dir() else set()
        wrong += [f"{file}: left over, not in the manifest: delete it" for file in sorted(files - declared)]
    return wrong, remarks


def _verdicts(path: Path, chosen: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    return {(e["id"], e["notebook"]): e["verdict"] for e in ledger.load(path) if e["notebook"] in chosen}
