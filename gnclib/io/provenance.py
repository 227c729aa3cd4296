"""Provenance of a result: the revision of the code, the machine, the versions of the software."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from gnclib import __version__


def revision() -> str:
    """The git revision of the code, with "-dirty" if files differ from it; "unknown" outside of a clone."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__))  # else it is a project that gnclib is installed in
        return git("describe", "--always", "--dirty").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(device: torch.device | str = "cpu", processes: int = 1) -> str:
    """The machine that computes, in words: the model of the GPU or of the CPU, for a CPU with torch's threads.

    `device` is where the tensors are, `processes` how many processes work together.
    """
    device = torch.device(device)
    if device.type == "cuda":
        text = torch.cuda.get_device_name(device)
    else:
        text = f"{processor()} ({platform.machine()}), {torch.get_num_threads()} torch thread(s)"
    return text + (f", {processes} processes" if processes > 1 else "")


def software(*packages: str) -> str:
    """The versions of gnclib and of those packages that are installed, as ``"gnclib 0.1.0, torch 2.13.0"``."""
    found = [f"gnclib {__version__}"]
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package).split('+')[0]}")
    return ", ".join(found)


def processor() -> str:
    """The model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or "CPU"
