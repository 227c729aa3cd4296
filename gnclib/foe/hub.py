"""Places of weights: those of the package, folders, and repositories of the Hugging Face hub; what lies there.

A repository is named ``"hf:owner/name"`` or ``"hf:owner/name@revision"`` (a branch, tag or commit); every other name is
one of the package or a folder. Only the files that are asked for are fetched, JSON and safetensors: nothing that could
run code. ``huggingface_hub`` keeps them in its cache, from where they are read again without a network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnclib import io
from gnclib.foe.config import FoEConfig

if TYPE_CHECKING:
    from torch import Tensor

#: folder of the weights that come with the package
WEIGHTS = Path(__file__).parents[1] / "weights"
#: what a prior consists of
FILES = ("config.json", "model.safetensors")

_WORD = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_NAME = re.compile(rf"hf:(?P<repository>{_WORD}/{_WORD})(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def is_hub_name(name: str | os.PathLike) -> bool:
    """Whether `name` is meant for the hub: a text that begins with "hf:"; a Path never is."""
    return isinstance(name, str) and name.startswith("hf:")


def derived(name: str | os.PathLike, suffix: str) -> str:
    """Place of what belongs to a prior: "hf:owner/name-suffix@revision" on the hub, else "name-suffix", where "./name"
    stays a folder.
    """
    if is_hub_name(name):
        repository, at, revision = name.partition("@")
        return f"{repository}-{suffix}{at}{revision}"
    return f"{str(name).rstrip('/' + os.sep)}-{suffix}"


def locate(name: str | os.PathLike, files: Sequence[str] = FILES, what: str = "prior") -> Path:
    """The folder in which files, all of them, lie: of the package, another one, or fetched from the hub, in this order.

    Raises
    ------
    FileNotFoundError
        There is nothing of that name, or a file is missing there.
    ValueError
        A name that begins with "hf:" and has another form than "hf:owner/name" or "hf:owner/name@revision".
    ConnectionError
        The hub cannot be reached (no network, HF_HUB_OFFLINE, an error of the server, no right to read) and the cache
        does not hold the repository; the message says which files to fetch by hand.
    ImportError
        The hub is meant, but ``huggingface_hub`` is not installed.
    """
    shipped = sorted(p.name for p in WEIGHTS.glob("*") if (p / files[0]).is_file())
    if is_hub_name(name):
        folder = _download(str(name), files, what)
    else:
        folder = WEIGHTS / str(name) if str(name) in shipped else Path(name)
    missing, wanted = [file for file in files if not (folder / file).is_file()], " and ".join(files)
    if not missing:
        return folder
    if is_hub_name(name):
        raise FileNotFoundError(
            f"{name} (or its copy in the cache) holds no {missing[0]}: a {what} needs {wanted}"
        )
    there = f"{missing[0]} is missing in" if folder.is_dir() else "there is no folder"
    raise FileNotFoundError(
        f"no {what} {str(name)!r}: {there} {folder.absolute()}; the shipped ones are {', '.join(shipped) or 'none'};"
        f" a folder must hold {wanted}; a repository of the Hugging Face hub is named hf:owner/name"
    )


def read_prior(
    name: str | os.PathLike, configuration: Callable[[dict[str, Any]], Any] = FoEConfig.from_dict
) -> tuple[Any, dict[str, Tensor]]:
    """Configuration and weights of a prior; `configuration` makes the one of what config.json holds.

    The weights are compared with the configuration before anybody makes something as large as that says. Raises
    ValueError if a file is damaged or they do not fit each other, and as :func:`locate`.
    """
    folder = locate(name)
    try:
        config = configuration(io.read_json(folder / "config.json", "configuration", dict))
        state, _ = io.read_tensors(folder / "model.safetensors")
    except ValueError as error:
        raise ValueError(f"the prior in {folder} cannot be read: {error}") from None
    io.demand_tensors(state, config.shapes, f"the weights in {folder} do not fit its config.json")
    return config, state


def weights_sha256(name: str | os.PathLike) -> str:
    """SHA-256 of the model.safetensors that :func:`read_prior` reads for this name."""
    return io.sha256(locate(name) / "model.safetensors")


def _download(name: str, files: Sequence[str], what: str) -> Path:
    """The copy of a repository in the cache, fetched if need be."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ValueError(
            f"{name!r} names no repository of the hub: write hf:owner/name or hf:owner/name@revision"
        )
    repository, revision = parts["repository"], parts["revision"]
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise ImportError(
            f"to fetch {name} from the Hugging Face hub, install huggingface_hub ({error})"
        ) from error
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except (RepositoryNotFoundError, RevisionNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"no {what} {name!r}: no public repository of the hub ({_line(error)})"
        ) from error
    except Exception as error:  # httpx, OSError and huggingface_hub's own, all of them "could not be fetched"
        raise ConnectionError(
            f"the {what} {name} could not be fetched from the Hugging Face hub ({_line(error)}). By hand: put"
            f" {' and '.join(files)} from the page of {repository} there, revision {revision or 'main'}, into a"
            f" folder, and give that folder instead of the name"
        ) from error


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
