"""Where weights are found: among those of the package, in a folder, or on the Hugging Face hub, in this order.

A hub name is ``"owner/name"`` or ``"owner/name@revision"`` (a branch, tag, commit). Only a *text* of that form is one,
never a ``Path``, and an existing folder of that name comes first. Only the named files are fetched, JSON and
safetensors: nothing that could run code. ``huggingface_hub`` keeps them in its cache, from where they are read again
without a network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["derived", "is_hub_name", "locate"]

_WORD = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_NAME = re.compile(rf"(?P<repository>{_WORD}/{_WORD})(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def is_hub_name(name: str | os.PathLike) -> bool:
    """Whether `name` is meant for the hub: a text "owner/name" or "owner/name@revision", and no folder that exists."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and not Path(name).is_dir()


def derived(name: str, suffix: str) -> str | Path:
    """The place of what belongs to `name`: "owner/name-suffix@revision" on the hub, else a local "name-suffix".

    A local one is a Path, so that what is missing beside a local prior is never looked for on the hub.
    """
    if is_hub_name(name):
        repository, at, revision = name.partition("@")
        return f"{repository}-{suffix}{at}{revision}"
    return Path(f"{name}-{suffix}")


def locate(name: str | os.PathLike, weights: Path, files: Sequence[str], what: str) -> Path:
    """The folder in which `files` lie: `weights`/name, the folder `name`, or a copy of the hub's repository `name`.

    Args:
        name: see the module. weights: folder of what comes with the package. files: all must be there.
        what: "prior" or the like, for messages.

    Raises:
        FileNotFoundError: `name` is none of the three, or a file is missing there.
        ConnectionError: a hub name, but the hub cannot be reached (no network, HF_HUB_OFFLINE, an error of the server,
            no right to read) and the cache does not hold it; says which files to fetch by hand.
        ImportError: a hub name, but ``huggingface_hub`` is not installed.
    """
    shipped = sorted(p.name for p in weights.glob("*") if (p / files[0]).is_file())
    if str(name) in shipped:
        folder = weights / str(name)
    elif is_hub_name(name):
        folder = _download(str(name), files, what)
    else:
        folder = Path(name)
    for file in files:
        if not (folder / file).is_file():
            if is_hub_name(name):
                raise FileNotFoundError(
                    f"the hub's {name} (or its copy in the cache) holds no {file}: a {what} needs {_listed(files)}"
                )
            raise FileNotFoundError(
                f"no {what} {str(name)!r}: the shipped ones are {', '.join(shipped) or 'none'}; a folder must hold"
                f" {_listed(files)} ({file} is missing)"
            )
    return folder


def _download(name: str, files: Sequence[str], what: str) -> Path:
    parts = _NAME.fullmatch(name)
    repository, revision = parts["repository"], parts["revision"]
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise ImportError(
            f"there is no folder {name}; to fetch the {what} of that name from the Hugging Face hub, install"
            f" huggingface_hub ({error})"
        ) from error
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except (RepositoryNotFoundError, RevisionNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"no {what} {name!r}: neither a folder nor a public repository of the hub ({_line(error)})"
        ) from error
    except Exception as error:  # httpx, OSError and huggingface_hub's own, all of them "could not be fetched"
        place = f"the page of {repository} there, revision {revision or 'main'},"
        raise ConnectionError(
            f"the {what} {name} could not be fetched from the Hugging Face hub ({_line(error)}). By hand: put"
            f" {_listed(files)} from {place} into a folder, and give that folder instead of the name"
        ) from error


def _listed(files: Sequence[str]) -> str:
    return " and ".join(files)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
