"""Figures and claims from notebooks: what ``gnc figures`` does.

A figure is three files, NAME.png, NAME.pdf and NAME.json (the numbers behind it), written by `gnclib.suite.plots.save`,
and declared with its notebook in figures.toml.

`run` executes notebooks, each with an empty staging folder as its `out`. A notebook counts as done only if exactly the
figures that are declared for it lie there, complete. Where the numbers of a figure agree with those in the output
folder, its files stay as they are, so that another processor does not change their last digits; the others move there,
one atomic step each, and so do the claims. A notebook that fails leaves everything as it was, and the others still run.
"""

from __future__ import annotations

import difflib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gnclib.io import held, write_bytes, write_text
from gnclib.suite import ledger, notebooks
from gnclib.suite.notebooks import MANIFEST, Manifest, NotebookError, gallery

SUFFIXES = (".png", ".pdf", ".json")


def select(only: Iterable[str], manifest: Manifest = MANIFEST, folder: Path | None = None) -> dict[str, Path]:
    """The notebooks, in order, that make what `only` names (figures or notebooks); all of them if it is empty.

    Raises ValueError: a name that is neither a figure nor a notebook.
    """
    found = notebooks.find(folder)
    wanted = set()
    for name in only:
        notebook = manifest[name].notebook if name in manifest else name.removesuffix(".ipynb")
        if notebook not in found:
            names = [*manifest, *found]
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
            raise ValueError(f"no figure or notebook is called {name!r}; {hint}")
        wanted.add(notebook)
    return {name: path for name, path in found.items() if not wanted or name in wanted}


@dataclass(frozen=True)
class Done:
    """What became of one notebook and of its figures."""

    notebook: str
    seconds: float = 0.0
    figures: tuple[str, ...] = ()
    failure: str | None = None
    changed: Mapping[str, str] = field(default_factory=dict)  # by figure or claim, the first difference
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # by figure, why it is not compared
    redrawn: tuple[str, ...] = ()  # their numbers agree, although the picture differs in some byte

    def tell(self, say: Callable[[str], None]) -> None:
        """A line about the notebook, and one for each figure or claim that differs."""
        made = ", ".join(self.figures) or "no figures declared"
        outcome = f"FAILED: {self.failure}" if self.failure else made
        say(f"{self.notebook:<26}{self.seconds:6.1f} s  {outcome}")
        for words, found in (("changed", self.changed), ("not compared", self.elsewhere)):
            for name, reason in found.items():
                say(f"  {words}: {name}: {reason}")


def compared(
    notebook: str, old: Path, new: Path, manifest: Manifest = MANIFEST
) -> tuple[dict[str, str], dict[str, str]]:
    """Compare figures and claims of one notebook in two folders: numbers and evidence within their tolerance.

    Returns `changed` and `elsewhere` as in :class:`Done`. Where a figure was made from other images, the claims of its
    notebook are not compared either.
    """
    changed, elsewhere = {}, {}
    for name, figure in notebooks.of(notebook, manifest).items():
        try:
            files = old / f"{name}.json", new / f"{name}.json"
            unlike, reason = ledger.compare_files(*files, figure.rtol, figure.atol)
        except (FileNotFoundError, ValueError) as error:
            unlike, reason = [str(error)], None
        if reason:
            elsewhere[name] = reason
        elif unlike:
            changed[name] = unlike[0]
    if not elsewhere:
        records = ([r for r in ledger.load(f / "claims.json") if r.notebook == notebook] for f in (old, new))
        changed |= {f"claim {id}": reason for id, reason in ledger.changes(*records).items()}
    return changed, elsewhere


def run(
    only: Iterable[str] = (),
    full: bool = False,
    out: str | os.PathLike = "figures",
    *,
    jobs: int = 1,
    keep: bool = True,
    manifest: Manifest = MANIFEST,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Done]:
    """Execute notebooks, compare their figures and claims with those in `out`, and bring there what has changed.

    `only` names figures or notebooks, all if it is empty; `jobs` notebooks run at the same time, each in a kernel of
    its own. `keep=False` only compares, and leaves `out` as it is. Tests give another manifest and folder of notebooks.

    Raises
    ------
    ValueError, NotADirectoryError
        A wrong name in `only`, a damaged ledger in `out`; `out` is a file.
    RuntimeError
        Another run works in `out`.
    NotebookError
        One or more notebooks failed. All were tried, and the successful ones are in `out`.
    """
    chosen = select(only, manifest, folder)
    out = Path(out).resolve()
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: give a folder for the figures")
    jobs = max(1, min(jobs, len(chosen)))
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else 0  # the kernels share the cores
    known, done = notebooks.find(folder), []
    ledger.load(out / "claims.json")  # a damaged one is named before anything runs

    if keep:
        out.mkdir(parents=True, exist_ok=True)
    with (
        held(out, "another 'gnc figures'") if keep else nullcontext(),
        tempfile.TemporaryDirectory(prefix="gnc-figures-") as place,
        ThreadPoolExecutor(jobs) as pool,
    ):
        stagings = {name: Path(place) / name for name in chosen}
        runs = {
            pool.submit(_execute, path, full, stagings[name], threads): name for name, path in chosen.items()
        }
        try:
            for finished in as_completed(runs):
                name = runs[finished]
                item = _judged(finished, name, full, out, stagings[name], manifest)
                if keep and not item.failure:
                    _bring(item, stagings[name], out, known, manifest)
                done.append(item)
                item.tell(say)
        except BaseException:  # Ctrl-C above all
            pool.shutdown(wait=False, cancel_futures=True)
            notebooks.stop()
            raise
    if failed := [item for item in done if item.failure]:
        reasons = "\n".join(f"  {item.failure}" for item in failed)
        raise NotebookError(
            f"{len(failed)} of {len(done)} notebooks failed; their older figures were kept:\n{reasons}"
        )
    return done


def _execute(path: Path, full: bool, staging: Path, threads: int) -> tuple[Any, float]:
    """The notebook, run with an empty staging folder as its `out`, and the seconds that it took."""
    start = time.monotonic()
    staging.mkdir()
    node = notebooks.load(path)
    notebooks.parameters(node, path.name)  # it has these two
    node = notebooks.execute(node, path.name, {"full": full, "out": str(staging)}, threads, seen=False)
    return node, time.monotonic() - start


def _judged(finished: Future, name: str, full: bool, out: Path, staging: Path, manifest: Manifest) -> Done:
    """Check what a notebook has made, and compare that with `out`."""
    figures = notebooks.of(name, manifest)
    try:
        node, seconds = finished.result()
        _check_made(name, figures, staging)
        ledger.save(staging, ledger.collect(node, name, "full" if full else "quick"))
        changed, elsewhere = compared(name, out, staging, manifest)
    except (NotebookError, ValueError) as error:
        return Done(name, failure=str(error))
    new = [key for key in figures if not all((out / f"{key}{suffix}").is_file() for suffix in SUFFIXES)]
    changed |= dict.fromkeys(new, "new")
    redrawn = tuple(
        key
        for key in figures
        if key not in changed | elsewhere
        and any((out / (key + s)).read_bytes() != (staging / (key + s)).read_bytes() for s in SUFFIXES)
    )
    return Done(name, seconds, tuple(figures), None, changed, elsewhere, redrawn)


def _check_made(name: str, figures: Iterable[str], staging: Path) -> None:
    """Every declared figure is there and not empty; nothing undeclared lies beside them."""
    declared = {f"{figure}{suffix}" for figure in figures for suffix in SUFFIXES}
    made = {file.name for file in staging.iterdir() if file.stat().st_size}
    if missing := sorted(declared - made):
        raise NotebookError(f"{name} ran, but did not make {', '.join(missing)}, which the manifest declares")
    if extra := sorted(made - declared):
        raise NotebookError(f"{name} wrote {', '.join(extra)}, which figures.toml does not declare for it")


def _bring(item: Done, staging: Path, out: Path, known: Iterable[str], manifest: Manifest) -> None:
    """Write to `out` the figures that changed, and the claims."""
    for key in set(item.figures) & (item.changed | item.elsewhere).keys():
        for suffix in SUFFIXES:
            write_bytes(out / f"{key}{suffix}", (staging / f"{key}{suffix}").read_bytes())
    before, now = (ledger.load(folder / "claims.json") for folder in (out, staging))
    ledger.save(out, ledger.merge(before, now, [item.notebook], known))
    write_text(out / "README.md", gallery(manifest))


def check(path: Path, records: Iterable[ledger.Record]) -> list[str]:
    """What is wrong with a committed notebook, in words; [] if it is executed, in order, clean and parameterised.

    What it shows of its claims must agree with the records of the ledger, verdicts and evidence.
    """
    wrong, node = [], notebooks.load(path)
    try:
        notebooks.parameters(node, path.name)
        shown = ledger.collect(node, path.stem, "quick")
        kept = [record for record in records if record.notebook == path.stem]
        wrong += [f"claim {id}: {text}" for id, text in ledger.changes(kept, shown).items()]
    except (NotebookError, ValueError) as error:
        wrong.append(str(error).removeprefix(f"{path.name} "))
    wrong += notebooks.unfinished(node, path.read_bytes())
    return [f"{path.name}: {text}; run 'gnc notebooks --only {path.stem}'" for text in wrong]
