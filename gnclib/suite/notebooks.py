"""Notebooks as files: run one with parameters, refresh a committed one, and check what is committed.

Committed notebooks are executed, so that a reader sees the figures without running anything, and cleaned of everything
that changes from run to run (timings, versions, traces of papermill). `check` says in words what is wrong with one.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gnclib.io.files import write_bytes
from gnclib.io.reading import demand, read_json

__all__ = ["NotebookError", "check", "clean", "execute", "find", "load", "parameters", "refresh", "run"]

CLEAN_KEYS = (
    *("metadata.papermill", "metadata.widgets", "metadata.signature", "metadata.language_info.version"),
    *("cell.metadata.papermill", "cell.metadata.execution", "cell.metadata.ExecuteTime"),
    *("cell.metadata.collapsed", "cell.metadata.scrolled"),
)
#: bytes of the largest notebook that is read
LARGEST = 50_000_000
KERNEL = {"kernel_name": "python3", "extra_arguments": ["--log-level=ERROR"]}


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
        found = {path.stem: path.resolve() for path in sorted(place.glob("[0-9]*.ipynb"))}
        if found:
            return found
    raise FileNotFoundError(
        f"no notebooks in {' or '.join(map(str, places))}: they are part of the repository, not of the installed "
        "package; clone it and run this from its top folder"
    )


def parameters(path: Path) -> dict[str, Any]:
    """Names and defaults of the cell tagged `parameters`, as papermill sees them.

    Raises
    ------
    NotebookError
        There is no such cell, or more than one.
    """
    cells = [c for c in load(path)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"{path.name} has {len(cells)} cells tagged 'parameters', expected exactly one")
    import papermill

    try:
        found = papermill.inspect_notebook(str(path))
    except Exception as error:  # whatever else it stumbles over
        raise NotebookError(f"{path.name} is not a notebook: {type(error).__name__}: {error}") from None
    try:
        return {name: ast.literal_eval(item["default"]) for name, item in found.items()}
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise NotebookError(
            f"{path.name}: the parameters must be plain literals such as 3, 0.1, 'R1' or False"
        ) from None


def execute(path: Path, output: Path, given: Mapping[str, Any], progress: bool = False) -> dict[str, Any]:
    """Run a notebook by papermill with parameters; the executed copy goes to `output` and is returned.

    The source is not touched. The notebook runs in an empty temporary folder, so that one which depends on the
    folder it is started from does not pass.

    Raises
    ------
    NotebookError
        A parameter the notebook does not have, `output` is the source, a cell failed, or the kernel died.
    """
    path, output = Path(path).resolve(), Path(output).resolve()
    if path == output:
        raise NotebookError(f"{path.name}: the executed copy would overwrite the notebook itself")
    known = parameters(path)
    for name, value in given.items():
        if name not in known:
            raise NotebookError(f"{path.name} has no parameter {name!r}; it has: {', '.join(known)}")
        if type(value) is not type(known[name]):
            raise NotebookError(f"{path.name}: parameter {name} is {known[name]!r} by default, got {value!r}")
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    bar = {"desc": path.stem, "unit": "cell", "leave": True} if progress else False
    try:
        with tempfile.TemporaryDirectory(prefix="gnc-cwd-") as cwd, _inline_figures():
            papermill.execute_notebook(
                str(path), str(output), parameters=dict(given), cwd=cwd, progress_bar=bar, **KERNEL
            )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(_failure(path, error)) from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise NotebookError(f"{path.name}: {str(error).strip().splitlines()[-1]}") from None
    return load(output)


@contextlib.contextmanager
def _inline_figures() -> Iterator[None]:
    """Kernels started meanwhile show figures in the notebook, whatever MPLBACKEND says outside."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _failure(path: Path, error: Any) -> str:
    """One short message: notebook, cell, failing line, exception."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
    arrows = [line.strip() for line in lines if re.match(r"\s*-+>\s*\d+", line)]
    place = re.sub(r"^-+>\s*\d+\s*", "", arrows[0]) if arrows else error.source.strip().splitlines()[0]
    reason = str(error.evalue).strip() or "(no message)"
    # papermill inserts a cell with the given parameters, so the count in the notebook itself is one less
    count = error.exec_count - 1 if error.exec_count else "?"
    return f"{path.name}, cell In [{count}], at '{place}': {error.ename}: {reason}"


def load(path: Path) -> dict[str, Any]:
    """The notebook as plain data; a file that is none is a NotebookError."""
    try:
        content = read_json(path, "notebook", dict, LARGEST)
        demand(content.get("metadata"), dict, "metadata")
        if content.get("nbformat") != 4 or not isinstance(content.get("nbformat_minor"), int):
            raise ValueError("it is not of version 4")
        for number, cell in enumerate(demand(content.get("cells"), [dict], "cells")):
            _check_cell(cell, f"cell {number}")
    except ValueError as error:
        reason = str(error).removeprefix(f"{path} is no notebook: ")  # of read_json
        raise NotebookError(f"{path} is not a notebook: {reason}") from None
    return content


def node_of(path: Path) -> Any:
    """The notebook as nbformat's object; a file that is none is a NotebookError."""
    import nbformat

    load(path)
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # whatever else it stumbles over
        raise NotebookError(f"{path} is not a notebook: {type(error).__name__}: {error}") from None


def _check_cell(cell: dict[str, Any], name: str) -> None:
    """Raise ValueError unless the cell has what the functions of this project look at."""
    if demand(cell.get("cell_type"), str, f"{name}: cell_type") not in ("code", "markdown", "raw"):
        raise ValueError(f"{name} is of no known type")
    demand(cell.get("source"), (str, [str]), f"{name}: source")
    demand(demand(cell.get("metadata"), dict, f"{name}: metadata").get("tags", []), [str], f"{name}: tags")
    if cell["cell_type"] == "code":
        demand(cell.get("execution_count"), (int, None), f"{name}: execution_count")
        for output in demand(cell.get("outputs"), [dict], f"{name}: outputs"):
            needed = {"error": ("ename", "evalue"), "stream": ("name", "text")}
            kind = demand(output.get("output_type"), str, f"{name}: output_type")
            for key in needed.get(kind, ()):
                demand(output.get(key), (str, [str]), f"{name}: {key}")
            demand(output.get("data", {}), dict, f"{name}: data")


def clean(content: bytes) -> bytes:
    """The notebook without what changes from run to run; outputs, counts and cell ids stay. Idempotent."""
    import nbformat
    from nbstripout import strip_output

    node = nbformat.reads(content.decode("utf-8"), as_version=nbformat.NO_CONVERT)
    node = strip_output(node, keep_output=True, keep_count=True, keep_id=True, extra_keys=CLEAN_KEYS)
    return (nbformat.writes(node).rstrip("\n") + "\n").encode()


def run(node: Any, name: str) -> Any:
    """Run all cells of a notebook in an empty temporary folder and return it with its outputs.

    Raises
    ------
    NotebookError
        A cell failed or the kernel died; `name` says which notebook it was.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    with tempfile.TemporaryDirectory(prefix="gnc-cwd-") as cwd, _inline_figures():
        client = NotebookClient(node, timeout=900, resources={"metadata": {"path": cwd}}, **KERNEL)
        try:
            return client.execute()
        except CellExecutionError as error:
            raise NotebookError(
                f"{name}: {error.ename}: {error.evalue}; the notebook was left as it was"
            ) from None
        except DeadKernelError as error:
            raise NotebookError(f"{name}: {error}; the notebook was left as it was") from None


def refresh(path: Path) -> None:
    """Run a committed notebook with its own defaults, clean it, and put it in place of the old one in one step."""
    import nbformat

    node = run(node_of(path), path.name)
    write_bytes(path, clean(nbformat.writes(node).encode()))


def check(path: Path) -> list[str]:
    """What is wrong with a committed notebook, in words; [] if it is executed, in order, clean and parameterised."""
    content = Path(path).read_bytes()
    wrong: list[str] = []
    try:
        defaults = parameters(path)
        if defaults.get("full") is not False or defaults.get("out") != "":
            wrong.append("the parameters cell must set full = False and out = ''")
    except NotebookError as error:
        wrong.append(str(error).removeprefix(f"{path.name} "))
    counts = []
    for number, cell in enumerate(load(path)["cells"]):
        if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
            continue
        counts.append(cell["execution_count"])
        if cell["execution_count"] is None:
            wrong.append(f"cell {number} was not executed")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                wrong.append(f"cell {number} ended in {output['ename']}: {output['evalue']}")
            if output.get("name") == "stderr":
                text = "".join(output["text"]).strip().splitlines()
                wrong.append(f"cell {number} wrote to stderr: {text[0] if text else ''}")
        if "NBVAL_CHECK_OUTPUT" in "".join(cell["source"]) and not cell["outputs"]:
            wrong.append(f"cell {number} is marked NBVAL_CHECK_OUTPUT but has no output")
    if None not in counts and counts != list(range(1, len(counts) + 1)):
        wrong.append("its cells were not run once each from top to bottom")
    if clean(content) != content:
        wrong.append("it is not clean")
    return [f"{path.name}: {text}; run 'gnc notebooks --only {path.stem}'" for text in wrong]
