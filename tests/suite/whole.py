"""Plugin of ``make test``: one execution of each notebook serves its stored outputs, its figures and its claims.

nbval runs the committed notebooks cell by cell and compares the outputs of the marked cells. Meanwhile the variable
`gnclib.suite.plots.COLLECT` makes `plots.save` and `claims.record` write into a folder, which is compared with figures/
in the end. Loaded by ``pytest -p tests.suite.whole``; works with and without pytest-xdist. The last line counts all.
"""

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from gnclib.suite import claims, ledger, reproduce
from gnclib.suite.plots import COLLECT, UNSEEN

ROOT = Path(__file__).parents[2]
FOLDER = "GNC_TEST_COLLECT"  # for the workers of pytest-xdist, which inherit the environment


def notebook_of(path: Path) -> str | None:
    """The name of a notebook with figures and claims, None for other files (exercises among them)."""
    return path.stem if path.suffix == ".ipynb" and path.parent == ROOT / "notebooks" else None


class Whole:
    """In the process that reports: collects what the notebooks made, compares it, and counts."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gnc-test-"))
        os.environ[FOLDER] = str(self.folder)
        self.notebooks: set[Path] = set()
        self.figures = self.claims = self.unlike = self.not_compared = 0
        self.lines: list[str] = []

    def pytest_runtest_logreport(self, report):
        path = ROOT / report.nodeid.partition("::")[0]
        if path.suffix == ".ipynb":
            self.notebooks.add(path)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        names = [name for name in map(notebook_of, self.notebooks) if name]
        if names and not session.config.option.collectonly:
            self.compare(names)
            if self.unlike:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def compare(self, names):
        stored = {record.id: record for record in ledger.load(ROOT / "figures" / "claims.json")}
        fresh = [
            claims.Record.from_json(json.loads(path.read_text()))
            for path in sorted((self.folder / "claims").glob("*.json"))
        ]
        unknown = [record.id for record in fresh if record.id not in stored]
        known = [record for record in fresh if record.id in stored]
        ledger.save(
            self.folder, [replace(r, notebook=stored[r.id].notebook, mode=stored[r.id].mode) for r in known]
        )
        wrong = {f"claim {id}": "not in figures/claims.json" for id in unknown}
        for name in names:
            changed, elsewhere = reproduce.compared(name, ROOT / "figures", self.folder)
            wrong |= changed
            self.lines += [f"{key}: not compared, {reason}" for key, reason in elsewhere.items()]
            self.not_compared += len(elsewhere)
        self.lines += [f"{key}: {reason}" for key, reason in wrong.items()]
        self.figures = sum(figure.notebook in names for figure in reproduce.MANIFEST.values())
        self.claims = sum(record.notebook in names for record in stored.values())
        self.unlike = len(wrong)

    def pytest_terminal_summary(self, terminalreporter):
        if self.lines:
            terminalreporter.section("figures and claims that differ from figures/")
            terminalreporter.write_line("\n".join(self.lines))

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config):
        shutil.rmtree(self.folder, ignore_errors=True)
        stats = config.pluginmanager.get_plugin("terminalreporter").stats
        passed, failed, skipped = (
            sum(len(stats.get(key, [])) for key in keys)
            for keys in (("passed", "xpassed"), ("failed", "error"), ("skipped", "xfailed"))
        )
        same = self.figures + self.claims - self.unlike - self.not_compared
        print(
            f"tests and cells: {passed} passed, {failed} failed, {skipped} skipped; notebooks executed once:"
            f" {len(self.notebooks)}; {self.figures} figures and {self.claims} claims: {same} reproduced,"
            f" {self.unlike} not, {self.not_compared} made from other images here"
        )
        print(f"{passed + same} passed, {failed + self.unlike} failed, {skipped + self.not_compared} skipped")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Whole(), "gnclib-whole")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """The kernel of a notebook is started when its first cell is set up, and inherits what is set here."""
    with pytest.MonkeyPatch.context() if notebook_of(item.path) else contextlib.nullcontext() as patch:
        if patch:
            patch.setenv(COLLECT, os.environ[FOLDER])
            patch.setenv(UNSEEN, "1")
        return (yield)
