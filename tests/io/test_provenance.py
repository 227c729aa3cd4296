"""Provenance: revision, machine, software."""

import importlib.metadata
import subprocess

import torch

from gnclib import __version__
from gnclib.io import provenance


def test_the_revision_is_that_of_this_project(tmp_path, monkeypatch):
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    found = provenance.revision()
    assert found == "unknown" or head.startswith(found.removesuffix("-dirty"))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "gnclib" / "io" / "provenance.py"))
    assert provenance.revision() == "unknown"
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert provenance.revision() == "unknown"


def test_a_clone_of_another_project_is_not_taken_for_ours(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lib" / "gnclib" / "io" / "provenance.py"))
    assert provenance.revision() == "unknown"


def test_threads_and_processes_are_part_of_the_machine():
    threads = torch.get_num_threads()
    assert f", {threads} torch thread(s)" in provenance.machine()
    assert provenance.machine(torch.device("cpu"), 4) == provenance.machine("cpu") + ", 4 processes"


def test_software_names_versions_of_what_is_installed():
    version = importlib.metadata.version("numpy")
    assert provenance.software("numpy", "no-such-package") == f"gnclib {__version__}, numpy {version}"
    assert "+" not in provenance.software("torch")
