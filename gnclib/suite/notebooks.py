"""Notebooks as files: run one with parameters, refresh a committed one, and check what is committed.

Committed notebooks are executed, so that a reader sees the figures without running anything, and cleaned of everything
that changes from run to run (timings, versions, traces of papermill).
"""

from __future__ import annotations

import ast
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gnclib.io import read_json, write_bytes

__all__ = ["NotebookError", "check", "clean", "execute", "find", "load", "parameters", "refresh", "run"]

CLEAN_KEYS = (
    *("metadata.papermill", "metadata.widgets", "metadata.signature", "metadata.language_info.version"),
    *("cell.metadata.papermill", "cell.metadata.execution", "cell.metadata.ExecuteTime"),
    *("cell.metadata.collapsed", "cell.metadata.scrolled"),
)
#: bytes of the largest notebook that is read
LARGEST = 50_000_000


class NotebookError(RuntimeError):
    """A notebook could not be run, or did not do what it is there for; the message says which and why."""


def find(folder: Path | None = None) -> dict[str, Path]:
    """The notebooks by name, in order: those of `folder`, by default `notebooks/` of the clone (or of the cwd).

    Raises
    ------
    FileNotFoundError
        There is no such folder, or no notebook in it.
    """
    places = [folder] if folder else [Path(__file__).parents[2] / "notebooks", Path.cwd() / "notebooks"]
    for place in places:
        if found := {path.stem: path.resolve() for path in sorted(place.glob("[0-9]*.ipynb"))}:
            return found
    raise FileNotFoundError(
        f"no notebooks in {' or '.join(map(str, places))}: they are part of the repository, not of the installed "
        "package; clone it and run this from its top folder"
    )


def load(path: Path) -> Any:
    """The notebook as nbformat's object, with the source of each cell as one string.

    Raises
    ------
    NotebookError
        The file is no notebook of version 4.
    """
    import nbformat

    try:
        content = read_json(path, "notebook", dict, LARGEST)
        if content.get("nbformat") != 4:
            raise ValueError("it is not of version 4")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a cell without an id, or with that of another
            nbformat.validate(content)
        return nbformat.v4.rwbase.rejoin_lines(nbformat.from_dict(content))
    except Exception as error:  # nbformat stumbles over much
        reason = str(error).removeprefix(f"{path} is no notebook: ").strip() or type(error).__name__
        raise NotebookError(f"{path} is not a notebook: {reason.splitlines()[0]}") from None


def parameters(path: Path) -> dict[str, Any]:
    """Names and defaults of the cell tagged `parameters`.

    Raises
    ------
    NotebookError
        There is no such cell, or more than one, or its values are no plain literals.
    """
    cells = [c for c in load(path)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"{path.name} has {len(cells)} cells tagged 'parameters', expected exactly one")
    found = {}
    try:
        for node in ast.parse(cells[0]["source"]).body:
            (target,) = node.targets
            found[target.id] = ast.literal_eval(node.value)
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError):
        raise NotebookError(
            f"{path.name}: the parameters must be plain literals such as 3, 0.1, 'R1' or False"
        ) from None
    return found


def execute(path: Path, output: Path, given: Mapping[str, Any] | None = None) -> Any:
    """Run a notebook by papermill with parameters; the executed copy goes to `output` and is returned.

    The source is not touched. The notebook runs in an empty temporary folder, so that one which depends on the
    folder it is started from does not pass.

    Raises
    ------
    NotebookError
        A parameter the notebook does not have, a cell failed, or the kernel died.
    """
    known = parameters(path) if given else {}
    for name, value in (given or {}).items():
        if name not in known:
            raise NotebookError(f"{path.name} has no parameter {name!r}; it has: {', '.join(known)}")
        if type(value) is not type(known[name]):
            raise NotebookError(f"{path.name}: parameter {name} is {known[name]!r} by default, got {value!r}")
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    backend = os.environ.pop("MPLBACKEND", None)  # the kernel shows its figures in the notebook
    try:
        with tempfile.TemporaryDirectory(prefix="gnc-cwd-") as cwd:
            papermill.execute_notebook(
                str(path), str(output), dict(given or {}), cwd=cwd, progress_bar=False, kernel_name="python3",
                extra_arguments=["--log-level=CRITICAL"], execution_timeout=900, coalesce_streams=True,
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise NotebookError(_failure(path, error, inserted=bool(given))) from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise NotebookError(f"{path.name}: {str(error).strip().splitlines()[-1]}") from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return load(output)


def _failure(path: Path, error: Any, inserted: bool) -> str:
    """One short message: notebook, cell, failing line, exception."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
    arrows = [line.strip() for line in lines if re.match(r"\s*-+>\s*\d+", line)]
    place = re.sub(r"^-+>\s*\d+\s*", "", arrows[0]) if arrows else error.source.strip().splitlines()[0]
    reason = str(error.evalue).strip() or "(no message)"
    # the cell that papermill inserts for given parameters is counted, too
    count = error.exec_count - inserted if error.exec_count else "?"
    return f"{path.name}, cell In [{count}], at '{place}': {error.ename}: {reason}"


def run(node: Any, name: str) -> Any:
    """Run all cells of a notebook, as nbformat's object, and return it with its outputs.

    Raises
    ------
    NotebookError
        A cell failed or the kernel died; `name` says which notebook it was.
    """
    import nbformat

    with tempfile.TemporaryDirectory(prefix="gnc-run-") as folder:
        source = Path(folder) / name
        nbformat.write(node, source)
        return execute(source, Path(folder) / f"done-{name}")


def clean(content: bytes) -> bytes:
    """The notebook without what changes from run to run; outputs, counts and cell ids stay. Idempotent."""
    import nbformat
    from nbstripout import strip_output

    node = nbformat.reads(content.decode("utf-8"), as_version=nbformat.NO_CONVERT)
    node = strip_output(node, keep_output=True, keep_count=True, keep_id=True, extra_keys=CLEAN_KEYS)
    for cell in node.cells:
        if cell.metadata.get("tags") == []:  # papermill
            del cell.metadata["tags"]
    return (nbformat.writes(node).rstrip("\n") + "\n").encode()


def refresh(path: Path) -> None:
    """Run a committed notebook with its own defaults, clean it, and put it in place of the old one in one step."""
    import nbformat

    write_bytes(path, clean(nbformat.writes(run(load(path), path.name)).encode()))


def check(path: Path) -> list[str]:
    """What is wrong with a committed notebook, in words; [] if it is executed, in order, clean and parameterised."""
    wrong: list[str] = []
    try:
        defaults = parameters(path)
        if defaults.get("full") is not False or defaults.get("out") != "":
            wrong.append("the parameters cell must set full = False and out = ''")
    except NotebookError as error:
        wrong.append(str(error).removeprefix(f"{path.name} "))
    counts = []
    for number, cell in enumerate(load(path)["cells"]):
        if cell["cell_type"] != "code" or not cell["source"].strip():
            continue
        counts.append(cell["execution_count"])
        if cell["execution_count"] is None:
            wrong.append(f"cell {number} was not executed")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                wrong.append(f"cell {number} ended in {output['ename']}: {output['evalue']}")
            if output.get("name") == "stderr":
                wrong.append(f"cell {number} wrote to stderr: {output['text'].strip().partition(chr(10))[0]}")
        if "NBVAL_CHECK_OUTPUT" in cell["source"] and not cell["outputs"]:
            wrong.append(f"cell {number} is marked NBVAL_CHECK_OUTPUT but has no output")
    if None not in counts and counts != list(range(1, len(counts) + 1)):
        wrong.append("its cells were not run once each from top to bottom")
    content = Path(path).read_bytes()
    if clean(content) != content:
        wrong.append("it is not clean")
    return [f"{path.name}: {text}; run 'gnc notebooks --only {path.stem}'" for text in wrong]
