"""From notebooks to figures: what ``gnc figures`` does.

`gnclib.suite.manifest` declares every figure with the notebook that makes it. `run` executes notebooks in temporary
copies, each with an empty staging folder as its `out`. A notebook counts as done only if every figure
declared for it lies there, complete and made just now; then its files move to the output folder, one atomic
step each, and the claims it recorded enter the ledger. A notebook that fails leaves everything as it was, and
the others still run.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gnclib.io import files
from gnclib.suite import compare, ledger, notebooks
from gnclib.suite.manifest import MANIFEST, SUFFIXES, Figure, gallery
from gnclib.suite.notebooks import NotebookError

__all__ = ["MANIFEST", "PAGES", "SUFFIXES", "Done", "Figure", "compare_runs", "run", "select"]

#: what lies beside the figures: the ledger, and the gallery
PAGES = {"claims.json", "claims.md", "README.md"}


@dataclass(frozen=True)
class Done:
    """What became of one notebook: its figures and seconds, or the reason why it failed.

    changed: the figures of which a file is not, byte for byte, the one that lay there before.
    """

    notebook: str
    seconds: float
    figures: tuple[str, ...] = ()
    failure: str | None = None
    changed: tuple[str, ...] = ()


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
    progress
        Show one bar per notebook, counting cells; with several jobs one bar that counts notebooks.
    jobs
        Notebooks that run at the same time, each in a process of its own.
    manifest, folder
        Other declarations and another folder of notebooks (tests use these).
    say
        Called with one line of text per finished notebook.

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
        _remove_remains(out)
        return _run(chosen, full, out, progress, jobs, manifest, notebooks.find(folder), say)


def _run(chosen, full, out, progress, jobs, manifest, known, say) -> list[Done]:
    """:func:`run` on what it has chosen, while it holds the folder."""
    records = ledger.load(out / "claims.json")
    tasks = [
        (name, path, tuple(key for key, item in manifest.items() if item.notebook == name), full, out)
        for name, path in chosen.items()
    ]
    done = []
    for item, new in _results(tasks, min(jobs, len(tasks)), progress):
        if item.failure is None:
            records = ledger.merge(records, new, [item.notebook], known)
            ledger.save(out, records)
            files.write_text(out / "README.md", gallery(manifest))
        done.append(item)
        say(_summary(item))
    if failed := [item for item in done if item.failure]:
        reasons = "\n".join(f"  {item.failure}" for item in failed)
        raise NotebookError(
            f"{len(failed)} of {len(done)} notebooks failed; their older figures were kept:\n{reasons}"
        )
    return done


def _remove_remains(out: Path) -> None:
    """Remove the staging folders of a run into the same folder that was killed."""
    mine = re.compile(rf"\.gnc-{re.escape(out.name)}\.[a-z0-9_]{{8}}")
    for entry in list(os.scandir(out.parent)):
        if entry.is_dir(follow_symlinks=False) and mine.fullmatch(entry.name):
            shutil.rmtree(entry.path, ignore_errors=True)


def _results(tasks: list[tuple], jobs: int, progress: bool) -> Iterator[tuple[Done, list[ledger.Entry]]]:
    """The results of `_attempt` for all tasks, as they become ready."""
    if jobs == 1:
        for task in tasks:
            yield _attempt(*task, progress=progress)
        return
    from tqdm import tqdm

    # Kernels inherit the environment: share the cores among them, or each would start a thread for every core.
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_share_cores, initargs=(threads,))
    with pool, tqdm(total=len(tasks), unit="notebook", disable=not progress) as bar:
        for future in as_completed([pool.submit(_attempt, *task) for task in tasks]):
            bar.update()
            with tqdm.external_write_mode():
                yield future.result()


def _share_cores(threads: str) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    parent = os.getppid()

    def watch() -> None:  # a worker whose parent was killed would wait for its next task for ever
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(
    name: str, path: Path, figures: tuple[str, ...], full: bool, out: Path, progress: bool = False
) -> tuple[Done, list[ledger.Entry]]:
    """`_run_one`, with what became of it instead of an exception."""
    start = time.monotonic()
    try:
        records, changed = _run_one(name, path, figures, full, out, progress)
    except (NotebookError, ValueError) as error:
        return Done(name, time.monotonic() - start, failure=str(error)), []
    return Done(name, time.monotonic() - start, figures, changed=changed), records


def _summary(item: Done) -> str:
    result = f"FAILED: {item.failure}" if item.failure else ", ".join(item.figures) or "no figures declared"
    return f"{item.notebook:<26}{item.seconds:6.1f} s  {result}"


def _run_one(
    name: str, path: Path, figures: tuple[str, ...], full: bool, out: Path, progress: bool
) -> tuple[list[ledger.Entry], tuple[str, ...]]:
    """Execute one notebook into a staging folder beside `out`, check what it made, then move it to `out`.

    Returns the claims that it recorded, and those of its figures that changed.
    """
    with tempfile.TemporaryDirectory(prefix=f".gnc-{out.name}.", dir=out.parent) as temporary:
        staging = Path(temporary) / "out"
        staging.mkdir()
        begun = time.time()
        given = {"full": full, "out": str(staging)}
        executed = notebooks.execute(path, Path(temporary) / path.name, given, progress)
        _check_made(name, figures, staging, begun)
        records = ledger.collect(executed, name, "full" if full else "quick")
        changed = set()
        for file in sorted(staging.iterdir()):
            old = out / file.name
            if not (old.is_file() and old.read_bytes() == file.read_bytes()):
                changed.add(file.stem)
            os.replace(file, old)
    return records, tuple(name for name in figures if name in changed)


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
            f"{name} wrote {', '.join(extra)}, which gnclib/manifest.py does not declare for it"
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
        except (FileNotFoundError, ValueError) as error:
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
        declared = {name + suffix for name in manifest for suffix in SUFFIXES} | PAGES
        there = {path.name for path in reference.iterdir() if path.is_file()} if reference.is_dir() else set()
        wrong += [f"{file}: left over, not in the manifest: delete it" for file in sorted(there - declared)]
    return wrong, remarks


def _verdicts(path: Path, chosen: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    return {(e["id"], e["notebook"]): e["verdict"] for e in ledger.load(path) if e["notebook"] in chosen}
