"""Notebooks as files: how one is run, written, and checked before it is committed.

Committed notebooks are executed, so that a reader sees the figures without running anything, and cleaned of everything
that changes from run to run (timings, versions, traces of papermill).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnclib.io import read_json, write_bytes

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema would build its grammar for two seconds
CLEAN_KEYS = (
    *("metadata.papermill", "metadata.widgets", "metadata.signature", "metadata.language_info.version"),
    *("cell.metadata.papermill", "cell.metadata.execution", "cell.metadata.ExecuteTime"),
    *("cell.metadata.collapsed", "cell.metadata.scrolled"),
)
#: what the cell of the parameters says of these two
_DEFAULTS = (r"^full = False\b", r"^out = (\"\"|'')")
WIDGET = "application/vnd.jupyter.widget-view+json"
#: bytes of the largest notebook that is read
LARGEST = 50_000_000


class NotebookError(RuntimeError):
    """A notebook could not be run, or did not do what it is there for; the message says which and why."""


def find(folder: Path | None = None) -> dict[str, Path]:
    """The notebooks by name, in order: those of `folder`, by default `notebooks/` of the clone (or of the cwd).

    Raises FileNotFoundError: there is no such folder, or no notebook in it.
    """
    places = [folder] if folder else [Path(__file__).parents[2] / "notebooks", Path.cwd() / "notebooks"]
    for place in places:
        if found := {path.stem: path.resolve() for path in sorted(place.glob("*.ipynb"))}:
            return found
    where = " or ".join(map(str, places))
    raise FileNotFoundError(f"no notebooks in {where}: clone the repository and run this from its top folder")


def load(path: Path) -> Any:
    """The notebook as nbformat's object, with the source of each cell as one string.

    Raises NotebookError: the file is no notebook of version 4.
    """
    import nbformat

    try:
        content = read_json(path, "notebook", dict, LARGEST)
        if content.get("nbformat") != 4:
            raise ValueError("it is not of version 4")
        ids = [cell.get("id") for cell in content["cells"]]
        if None in ids or len({*ids}) < len(ids):
            raise ValueError("it has a cell without an id, or with that of another")
        nbformat.validate(content)
        return nbformat.v4.rwbase.rejoin_lines(nbformat.from_dict(content))
    except Exception as error:  # nbformat stumbles over much
        reason = str(error).removeprefix(f"{path} is no notebook: ").strip() or type(error).__name__
        raise NotebookError(f"{path} is not a notebook: {reason.splitlines()[0]}") from None


def parameters(node: Any, name: str) -> Any:
    """The cell of a notebook that is tagged `parameters`, with the quick defaults of `full` and `out`.

    Raises NotebookError: there is no such cell, or more than one, or it has other defaults.
    """
    cells = [cell for cell in node.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1 or not all(re.search(line, cells[0].source, re.M) for line in _DEFAULTS):
        raise NotebookError(
            f"{name} has {len(cells)} cells tagged 'parameters'; there must be one, with full = False and out = ''"
        )
    return cells[0]


#: papermill in a process of its own, which dies with its kernel as soon as its input is closed
_PAPERMILL = """
import json, os, psutil, sys, threading, traitlets.config
sys.modules["rfc3987_syntax"] = None; import papermill  # without it, as above
def watch():
    os.read(0, 1)
    kernels = psutil.Process().children(recursive=True)
    for kernel in kernels: kernel.kill()
    psutil.wait_procs(kernels, timeout=5); os._exit(1)
threading.Thread(target=watch, daemon=True).start()
options = json.loads(sys.argv[1])
kernel = traitlets.config.Config(KernelManager=options.pop("kernel"))
papermill.execute_notebook(**options, config=kernel)
"""


def execute(
    node: Any, name: str, given: Mapping[str, Any] | None = None, threads: int = 0, seen: bool = True
) -> Any:
    """Run a notebook, nbformat's object, by papermill, and return it with its outputs; it is left as it is.

    It runs in an empty temporary folder, so that one which depends on the folder it is started from does not pass.
    `name` is that of its file, for messages; `given` are parameters in place of the defaults; a computation in the
    kernel may use so many threads, 0 leaves that to the environment; where it is not `seen`, the outputs have no
    pictures. Raises NotebookError: a cell failed, or the kernel died.
    """
    import nbformat

    # a kernel shows its figures in the notebook, whatever the backend of this process, and no sliders
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment |= {"GNC_HEADLESS": "1"} | ({} if seen else {"GNC_UNSEEN": "1"})
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    with tempfile.TemporaryDirectory(prefix="gnc-run-") as folder:
        source, done, empty = (Path(folder) / part for part in ("source.ipynb", "done.ipynb", "cwd"))
        empty.mkdir()
        nbformat.write(node, source)
        options = {
            "input_path": str(source), "output_path": str(done), "parameters": dict(given or {}), "cwd": str(empty),
            "progress_bar": False, "kernel_name": "python3", "extra_arguments": ["--log-level=CRITICAL"],
            "execution_timeout": 900, "coalesce_streams": True, "kernel": {},
        }  # fmt: skip
        if os.name == "posix" and len(folder) < 85:  # sockets have short names; ports may collide
            options["kernel"] = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        error = _in_a_process([sys.executable, "-c", _PAPERMILL, json.dumps(options)], environment)
        found = nbformat.read(done, nbformat.NO_CONVERT) if done.is_file() else nbformat.v4.new_notebook()
    if error is None:
        return found
    outputs = (output for cell in found.cells for output in cell.get("outputs", ()))
    if failed := next((output for output in outputs if output.output_type == "error"), None):
        reason = f"{failed.ename}: {failed.evalue.strip() or '(no message)'}"
        raise NotebookError(f"{name}, {_place(failed.traceback, bool(given))}: {reason}")
    raise NotebookError(f"{name}: {(error.strip().splitlines() or ['papermill was killed'])[-1]}")


_running: set[subprocess.Popen] = set()


def _in_a_process(words: list[str], environment: dict[str, str]) -> str | None:
    """Run a command to its end: what it wrote to stderr if it failed. Where that is interrupted, its input ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, env=environment, start_new_session=True, **pipes)
    _running.add(process)
    try:
        error = process.stderr.read()
        if process.stdin.closed:
            raise KeyboardInterrupt  # by `stop`
        return error.decode("utf-8", "replace") if process.wait() else None
    finally:
        _running.discard(process)
        process.stdin.close()
        process.wait()
        process.stderr.close()


def stop() -> None:
    """End what other threads `execute`, kernels included; a KeyboardInterrupt is raised in them."""
    for process in [*_running]:
        process.stdin.close()


def _place(traceback: list[str], inserted: bool) -> str:
    """The cell that failed, and the line in it, from IPython's traceback; an inserted cell is not counted."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))
    cell = re.search(r"Cell In ?\[(\d+)\]", text)
    line = re.search(r"^-+> *\d+ (.*)$", text, re.M)
    number = int(cell[1]) - inserted if cell else "?"
    return f"cell In [{number}]" + (f", at '{line[1].strip()}'" if line else "")


def clean(content: bytes) -> bytes:
    """The notebook without what changes from run to run; outputs, counts and cell ids stay. Idempotent."""
    import nbformat
    from nbstripout import strip_output

    node = nbformat.reads(content.decode("utf-8"), as_version=nbformat.NO_CONVERT)
    node = strip_output(node, keep_output=True, keep_count=True, keep_id=True, extra_keys=CLEAN_KEYS)
    for cell in node.cells:
        if cell.metadata.get("tags") == []:  # papermill
            del cell.metadata["tags"]
        if "outputs" in cell:  # a slider has another id in every run, and moves only beside a kernel
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    return (nbformat.writes(node).rstrip("\n") + "\n").encode()


def write(node: Any, path: Path) -> Path:
    """Write a notebook to `path`, clean and its figures with alternative texts, in one step."""
    describe(node)
    return write_bytes(path, clean(json.dumps(node).encode()))


def refresh(path: Path) -> None:
    """Run a committed notebook with its own defaults and put it, executed and clean, in place of the old one."""
    write(execute(load(path), path.name), path)


def unfinished(node: Any, content: bytes) -> list[str]:
    """Why a notebook, and the content of its file, are not fit to be committed; [] if they are executed and clean."""
    wrong, counts = [], []
    for number, cell in enumerate(node.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        counts.append(cell.execution_count)
        for output in cell.outputs:
            if output.output_type == "error":
                wrong.append(f"cell {number} ended in {output.ename}: {output.evalue}")
            if output.get("name") == "stderr":
                wrong.append(f"cell {number} wrote to stderr: {output.text.strip().partition(chr(10))[0]}")
        if "NBVAL_CHECK_OUTPUT" in cell.source and not cell.outputs:
            wrong.append(f"cell {number} is marked NBVAL_CHECK_OUTPUT but has no output")
    if counts != list(range(1, len(counts) + 1)):
        wrong.append("its cells were not run once each from top to bottom")
    if clean(content) != content:
        wrong.append("it is not clean")
    return wrong


# --- the declared figures: figures.toml ---

_SAVED = re.compile(r"\bsave\(\s*\w+,\s*[\"']([\w-]+)[\"']")


@dataclass(frozen=True)
class Figure:
    """A declared figure: its notebook, title, tolerance of its numbers (`gnclib.suite.ledger`), and what is seen."""

    notebook: str
    title: str
    rtol: float = 1e-3
    atol: float = 1e-9
    alt: str = ""


def _declared() -> dict[str, Figure]:
    by_notebook = tomllib.loads(Path(__file__).with_name("figures.toml").read_text(encoding="utf-8"))
    alt = by_notebook.pop("alt")
    return {
        name: Figure(notebook, **({"title": item} if isinstance(item, str) else item), alt=alt.get(name, ""))
        for notebook, figures in by_notebook.items()
        for name, item in figures.items()
    }


#: every figure by its name
MANIFEST = _declared()
Manifest = Mapping[str, Figure]


def of(notebook: str, manifest: Manifest) -> dict[str, Figure]:
    """The figures of one notebook."""
    return {name: figure for name, figure in manifest.items() if figure.notebook == notebook}


def gallery(manifest: Manifest = MANIFEST) -> str:
    """A Markdown page for the folder of the figures: each with its title and files, under its notebook."""
    lines = [
        "# Figures",
        "",
        "All of them, by the notebook that makes them; written by `gnc figures`, as are the numbers behind each figure",
        "(JSON) and the [ledger of claims](claims.md).",
    ]
    for notebook in sorted({figure.notebook for figure in manifest.values()}):
        lines += ["", f"## {notebook}"]
        for name, figure in of(notebook, manifest).items():
            lines += ["", f"![{figure.alt or figure.title}]({name}.png)", ""]
            lines += [f"*{figure.title}.* [pdf]({name}.pdf), [numbers]({name}.json)"]
    return "\n".join(lines) + "\n"


def describe(node: Any, manifest: Manifest = MANIFEST) -> None:
    """Give each picture of a notebook the text of the figure that its cell saves, or the `alt` of its cell.

    It stands in the metadata of the output, where nbconvert, and GitHub with it, look for it.
    """
    for cell in (cell for cell in node.cells if cell.cell_type == "code"):
        shown = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        texts = [manifest[name].alt if name in manifest else "" for name in _SAVED.findall(cell.source)]
        for output, text in zip(shown, texts or [cell.metadata.get("alt")], strict=False):
            if text:
                output.metadata["image/png"] = {"alt": text}


def contact_sheet(folder: Path, manifest: Manifest = MANIFEST, side: int = 190, columns: int = 6) -> Any:
    """The figures of a folder, small, in the order of the notebooks, a PIL image; `side` of a cell in pixels."""
    from PIL import Image, ImageDraw

    names = sorted(manifest, key=lambda name: manifest[name].notebook)
    names = [name for name in names if (folder / f"{name}.png").is_file()]
    rows = -(-len(names) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    draw = ImageDraw.Draw(sheet)
    for k, name in enumerate(names):
        left, top = k % columns * side, k // columns * side
        with Image.open(folder / f"{name}.png") as picture:
            small = picture.convert("RGB")
        small.thumbnail((side - 10, side - 26))
        sheet.paste(small, (left + (side - small.width) // 2, top + 18 + (side - 26 - small.height) // 2))
        draw.text((left + 6, top + 3), name, fill="black")
    return sheet
