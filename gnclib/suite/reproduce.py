"""From notebooks to figures: what ``gnc figures`` does.

`run` executes notebooks in temporary copies, each with an empty staging folder as its `out`. A notebook counts as done
only if every figure declared for it (`gnclib.suite.manifest`) lies there, complete. Where the numbers of a figure agree
with those in the output folder, its files stay as they are, so that another processor does not change their last
digits; the others move there, one atomic step each, and so do the claims. A notebook that fails leaves everything as it
was, and the others still run.
"""

from __future__ import annotations

import difflib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from gnclib.io import files
from gnclib.suite import compare, ledger, notebooks
from gnclib.suite.manifest import MANIFEST, SUFFIXES, Figure, gallery
from gnclib.suite.notebooks import NotebookError

__all__ = ["MANIFEST", "PAGES", "SUFFIXES", "Done", "Figure", "compare_runs", "run", "select"]

#: what lies beside the figures: the ledger, and the gallery
PAGES = {"claims.json", "claims.md", "README.md"}


@dataclass(frozen=True)
class Done:
    """What became of one notebook.

    Attributes
    ----------
    notebook, seconds, failure
        Its name, how long it ran, and the reason why it failed, if it did.
    figures, changed
        The figures that it makes; those that were written, each with the first difference from the one before.
    redrawn
        Figures that were kept because their numbers agree, although the picture differs in some byte.
    """

    notebook: str
    seconds: float
    figures: tuple[str, ...] = ()
    failure: str | None = None
    changed: Mapping[str, str] = field(default_factory=dict)
    redrawn: tuple[str, ...] = ()


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
    *,
    jobs: int = 1,
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
        Folder for NAME.png, NAME.pdf, NAME.json, claims.json, claims.md and README.md; made where it is missing.
    jobs
        Notebooks that run at the same time, each in a process of its own.
    manifest, folder
        Other declarations and another folder of notebooks (tests use these).
    say
        Called with one line of text per finished notebook, and one per figure that changed.

    Raises
    ------
    ValueError, NotADirectoryError
        A wrong name in `only`, fewer than one job; `out` is a file.
    RuntimeError
        Another run works in `out`.
    NotebookError
        One or more notebooks failed. All were tried, and the successful ones are in `out`.
    """
    if jobs < 1:
        raise ValueError(f"the number of jobs must be at least 1, got {jobs}")
    chosen = select(only, manifest, folder)
    out = Path(out).resolve()
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: give a folder for the figures")
    out.mkdir(parents=True, exist_ok=True)
    with files.held(out, "another 'gnc figures'"):
        records = ledger.load(out / "claims.json")
        tasks = [
            (path, {key: item for key, item in manifest.items() if item.notebook == name}, full, out)
            for name, path in chosen.items()
        ]
        done = []
        for item, new in _results(tasks, min(jobs, len(tasks))):
            if item.failure is None:
                records = ledger.merge(records, new, [item.notebook], notebooks.find(folder))
                ledger.save(out, records)
                files.write_text(out / "README.md", gallery(manifest))
            done.append(item)
            result = (
                f"FAILED: {item.failure}"
                if item.failure
                else ", ".join(item.figures) or "no figures declared"
            )
            say(f"{item.notebook:<26}{item.seconds:6.1f} s  {result}")
            for name, reason in item.changed.items():
                say(f"  changed: {name}: {reason}")
    if failed := [item for item in done if item.failure]:
        reasons = "\n".join(f"  {item.failure}" for item in failed)
        raise NotebookError(
            f"{len(failed)} of {len(done)} notebooks failed; their older figures were kept:\n{reasons}"
        )
    return done


def _results(tasks: list[tuple], jobs: int) -> Iterator[tuple[Done, list[ledger.Entry]]]:
    """The results of `_attempt` for all tasks, as they become ready."""
    if jobs == 1:
        yield from (_attempt(*task) for task in tasks)
        return
    # Kernels inherit the environment: share the cores among them, or each would start a thread for every core.
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_worker, initargs=(threads,)) as pool:
        for future in as_completed([pool.submit(_attempt, *task) for task in tasks]):
            yield future.result()


def _worker(threads: str) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    parent = os.getppid()

    def watch() -> None:  # a worker whose parent was killed would wait for its next task for ever
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(
    path: Path, figures: Mapping[str, Figure], full: bool, out: Path
) -> tuple[Done, list[ledger.Entry]]:
    """Execute one notebook into a staging folder, check what it made, and move to `out` what has changed.

    Returns what became of it and the claims that it recorded.
    """
    name, start = path.stem, time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="gnc-figures-") as temporary:
            staging = Path(temporary) / "out"
            staging.mkdir()
            executed = notebooks.execute(
                path, Path(temporary) / path.name, {"full": full, "out": str(staging)}
            )
            _check_made(name, figures, staging)
            records = ledger.collect(executed, name, "full" if full else "quick")
            changed, redrawn = {}, []
            for key, figure in figures.items():
                made = {f"{key}{suffix}": (staging / f"{key}{suffix}").read_bytes() for suffix in SUFFIXES}
                if reason := _change(out / f"{key}.json", staging / f"{key}.json", figure):
                    changed[key] = reason
                    for file, content in made.items():
                        files.write_bytes(out / file, content)
                elif any((out / file).read_bytes() != content for file, content in made.items()):
                    redrawn.append(key)
    except (NotebookError, ValueError) as error:
        return Done(name, time.monotonic() - start, failure=str(error)), []
    return Done(name, time.monotonic() - start, tuple(figures), None, changed, tuple(redrawn)), records


def _check_made(name: str, figures: Iterable[str], staging: Path) -> None:
    """Every declared figure is there and not empty; nothing undeclared lies beside them."""
    declared = {f"{figure}{suffix}" for figure in figures for suffix in SUFFIXES}
    made = {file.name for file in staging.iterdir() if file.stat().st_size}
    if missing := sorted(declared - made):
        raise NotebookError(f"{name} ran, but did not make {', '.join(missing)}, which the manifest declares")
    if extra := sorted(made - declared):
        raise NotebookError(f"{name} wrote {', '.join(extra)}, which figures.toml does not declare for it")


def _change(old: Path, new: Path, figure: Figure) -> str | None:
    """Why the figure at `new` has to replace the one at `old`: the first difference; None if the numbers agree."""
    if not all(old.with_suffix(suffix).is_file() for suffix in SUFFIXES):
        return "new"
    try:
        found, reason = compare.compare_files(old, new, figure.rtol, figure.atol)
    except ValueError as error:
        return str(error)
    return reason or next(iter(found), None)


def compare_runs(
    reference: Path,
    value: Path,
    only: Iterable[str] = (),
    *,
    manifest: Mapping[str, Figure] = MANIFEST,
    folder: Path | None = None,
) -> tuple[list[str], list[str]]:
    """Compare a fresh run in `value` with the one kept in `reference`: numbers and evidence within their tolerance.

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
        except (FileNotFoundError, ValueError) as error:
            found, reason = [str(error)], None
        wrong += [f"{name}: {text}" for text in found]
        if reason:
            remarks.append(f"{name}: not compared, {reason}")
            skipped.add(figure.notebook)
    old, new = (
        {e["id"]: e for e in ledger.load(path / "claims.json") if e["notebook"] in chosen.keys() - skipped}
        for path in (reference, value)
    )
    wrong += [f"claim {id}: recorded in only one of the two" for id in sorted(old.keys() ^ new.keys())]
    for id in old.keys() & new.keys():
        wrong += [f"claim {id} ({old[id]['notebook']}): {text}" for text in ledger.changes(old[id], new[id])]
    if not only:
        declared = {name + suffix for name in manifest for suffix in SUFFIXES} | PAGES
        there = {path.name for path in reference.iterdir() if path.is_file()} if reference.is_dir() else set()
        wrong += [f"{file}: left over, not in the manifest: delete it" for file in sorted(there - declared)]
    return wrong, remarks
