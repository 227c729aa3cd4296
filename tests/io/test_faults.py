"""Faults of the surroundings: full disks, no network, no home, odd names, closed pipes, two at once.

None of these tests relies on permission bits, which do not bind root.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnclib.cli import main as cli
from gnclib.foe import FieldsOfExperts
from gnclib.images import data
from gnclib.io import files
from gnclib.score import run as training_run
from gnclib.suite import notebooks, reproduce
from tests import child_runs
from tests.suite.test_reproduce import saving, write

ODD = "ünï cödé 目录"
posix = pytest.mark.skipif(os.name != "posix", reason="about Unix")


def gnc(*words, environment=None, **options):
    """The command in a process of its own, with nothing but this in its environment."""
    kept = {
        k: os.environ[k] for k in ("PATH", "PYTHONPATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if k in os.environ
    }
    run = [sys.executable, "-m", "gnclib", *map(str, words)]
    given = kept | {"OMP_NUM_THREADS": "1"} | (environment or {})
    options = {
        "capture_output": True,
        "timeout": 120,
        "env": given,
        "cwd": Path(__file__).parents[2],
    } | options
    return subprocess.run(run, **options)


@pytest.fixture
def odd(tmp_path):
    """A folder with an odd name and a small image in it."""
    folder = tmp_path / ODD
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "bild ä.png")
    return folder


# --- names ------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_the_terminal_cannot_show(odd, encoding):
    """The work is done and said, with escapes for what the terminal does not know; errors are one line."""
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": encoding}
    words = ["denoise", odd / "bild ä.png", "--sigma", "25", "--scheme", "mmse", "-o", odd / "aus 目.png"]
    done = gnc(*words, environment=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"24 x 24, grey, 8 bit" in done.stdout
    assert (odd / "aus 目.png").is_file()
    done = gnc(*words, environment=environment)  # it is there already
    assert done.returncode == 1
    assert done.stderr.startswith(b"gnc: error: ")
    assert done.stderr.count(b"\n") == 1


@posix
def test_names_that_are_no_text(tmp_path):
    """A folder whose name is not UTF-8 is measured, and the result is JSON that names it."""
    folder = os.path.join(os.fsencode(tmp_path), b"bad \xff")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    shutil.copy(files.__file__, os.path.join(folder, b"no image.py"))
    Image.fromarray(np.full((24, 24), 100, np.uint8)).save(os.path.join(os.fsdecode(folder), "a.png"))
    out = tmp_path / "numbers.json"
    words = ["evaluate", "--sigma", "25", "--images", os.fsdecode(folder), "--json", out]
    done = gnc(*words, environment={"PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"bad \udcff" in out.read_bytes()
    import json

    assert os.fsencode(json.loads(out.read_text(encoding="utf-8"))["set"]) == folder


def test_a_training_in_a_folder_with_an_odd_name(tmp_path, monkeypatch, drawn_images):
    monkeypatch.setitem(training_run.PRIORS, "R1", child_runs.PRIORS["R1"])
    folder = tmp_path / ODD / "R1 neu"
    options = ["--steps", "4", "--batch", "4", "--patch", "18", "--every", "2", "--out", str(folder)]
    assert cli.main(["train", "R1", *options]) == 0
    assert cli.main(["train", "R1", "--resume", "--out", str(folder)]) == 0
    assert [row.step for row in child_runs.rows(folder)] == [2, 4]
    assert "# R1 neu: Fields of Experts" in (folder / "README.md").read_text(encoding="utf-8")
    assert FieldsOfExperts.from_pretrained(folder).config == child_runs.PRIORS["R1"]


# --- no home, no place for temporary files ------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    "environment",
    [{}, {"HOME": "/dev/null"}, {"HOME": "/dev/null", "TMPDIR": "/dev/null"}],
    ids=["unset", "no", "nor"],
)
def test_without_a_home(odd, environment):
    """Nothing needs one; splines that can be compiled nowhere are evaluated by torch, and that is said."""
    words = ["denoise", odd / "bild ä.png", "--sigma", "25", "--steps", "2", "-o", odd / "aus.png"]
    done = gnc(*words, environment=environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (odd / "aus.png").is_file()


@posix
def test_figures_without_a_home_in_a_folder_with_an_odd_name(tmp_path):
    pytest.importorskip("papermill")
    write(tmp_path / ODD / "notebooks", "01_tiny", saving("one"))
    code = (
        "import sys; from pathlib import Path; from gnclib.suite import notebooks, reproduce\n"
        "here = Path(sys.argv[1]); manifest = {'one': notebooks.Figure('01_tiny', 'One')}\n"
        "reproduce.run(out=here / 'out put', manifest=manifest, folder=here / 'notebooks')"
    )
    kept = {k: os.environ[k] for k in ("PATH", "PYTHONPATH") if k in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / ODD)],
        env=kept | {"HOME": "/dev/null", "OMP_NUM_THREADS": "1", "LC_ALL": "C"},
        capture_output=True, timeout=120, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
    assert (tmp_path / ODD / "out put" / "one.json").is_file()


# --- no space, no network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, place):
    path = files.write_text(tmp_path / "a.json", "old\n")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, place, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new\n")
    monkeypatch.undo()
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
    assert files.write_text(path, "new\n").read_text() == "new\n"


@posix
def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path):
    """The system itself refuses to write more than 10,000 bytes, in the midst of the file."""
    path = files.write_text(tmp_path / "a", "old\n")
    code = (
        "import resource, signal, sys; from gnclib.io import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "files.write_bytes(sys.argv[1], bytes(100_000))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "wb") as full:
        done = gnc("data", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith(b"gnc: error: [Errno 28] No space left")
    assert b"Traceback" not in done.stderr


@posix
def test_a_reader_that_has_gone():
    """`gnc ... | head -1` does its work to the end, without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = gnc("figures", "--list", capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_a_network_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("GNC_DATA_DIR", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(data, "URL", f"http://127.0.0.1:{child_runs.free_port()}/")
    monkeypatch.setattr(data, "_cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(data.pooch.core.time, "sleep", lambda seconds: None)
    with pytest.raises(ConnectionError, match=r"could not be downloaded(.|\n)*GNC_DATA_DIR(.|\n)*embedded"):
        data.bsds68()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not data.available()


# --- two at once --------------------------------------------------------------------------------------------


@posix
def test_a_second_gnc_figures_in_the_same_folder_is_refused(tmp_path):
    write(tmp_path / "notebooks", "01_tiny", saving("one"))
    manifest, out = {"one": notebooks.Figure("01_tiny", "One")}, tmp_path / "figures"
    out.mkdir()
    options = {"manifest": manifest, "folder": tmp_path / "notebooks"}
    with (
        files.held(out, "another 'gnc figures'"),
        pytest.raises(RuntimeError, match=r"is at work in .*figures already"),
    ):
        reproduce.run(out=out, **options)
    assert list(out.iterdir()) == []
    with files.held(out, "somebody"), files.held(tmp_path, "somebody else"):  # other folders are free
        pass


@posix
def test_a_folder_is_free_again_after_a_kill(tmp_path):
    code = (
        "import sys, time; from gnclib.io import files\n"
        "with files.held(sys.argv[1], 'a'): print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"1\n"
        with pytest.raises(RuntimeError, match="b is at work"), files.held(tmp_path, "b"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with files.held(tmp_path, "b"):
        pass


@posix
def test_remains_go_and_what_is_being_written_stays(tmp_path):
    """Eight threads write one file again and again: it is always whole; what a killed writer left is gone."""
    path = tmp_path / "a.json"
    left, other, named = (
        tmp_path / n for n in (".a.json.abcdefgh.tmp", ".b.json.abcdefgh.tmp", ".a.json.tmp")
    )
    for file in (left, other, named):
        file.write_text("remains")
    contents = [bytes([k]) * 20_000 for k in range(8)]
    wrong = []

    def writing(content):
        try:
            for _ in range(12):
                files.write_bytes(path, content)
                if path.read_bytes() not in contents:
                    wrong.append("half a file")
        except OSError as error:
            wrong.append(error)

    threads = [threading.Thread(target=writing, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(tmp_path.iterdir()) == sorted([named, other, path])
    handle, live = files._temporary(tmp_path / "c.json")
    files.remove_remains(tmp_path)  # of all files of a folder
    assert sorted(tmp_path.iterdir()) == sorted([named, live, path])
    os.close(handle)


# --- read-only ------------------------------------------------------------------------------------------------


@posix
def test_a_folder_that_is_read_only_for_everybody(tmp_path):
    """On a read-only mount (root is bound by that, too) a write is one clear line, and what is there can be used."""
    files.write_text(tmp_path / "ro" / "old.txt", "old\n")
    Image.fromarray(np.full((24, 24), 100, np.uint8)).save(tmp_path / "ro" / "a.png")
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"'
    trial = ["unshare", "-m", "sh", "-c", f'{mount} && ! touch "$0/x" 2>/dev/null', str(tmp_path / "ro")]
    if not shutil.which("unshare") or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("no read-only mount can be made here")
    inside = f'{mount} && cd "$0" && exec "$@"'  # the folder from before the mount could be written to
    for words in (
        ["denoise", "a.png", "--sigma", "25", "--scheme", "mmse", "-o", "out.png"],
        ["figures", "--only", "figure1", "--out", "figures"],
    ):
        run = [
            "unshare",
            "-m",
            "sh",
            "-c",
            inside,
            str(tmp_path / "ro"),
            sys.executable,
            "-m",
            "gnclib",
            *words,
        ]
        environment = os.environ | {
            "PYTHONPATH": str(Path(cli.__file__).parents[2]),
            "GNC_DATA_DIR": str(tmp_path),
        }
        done = subprocess.run(
            run, capture_output=True, text=True, cwd=tmp_path / "ro", env=environment, timeout=120
        )
        assert done.returncode == 1, done
        assert done.stderr.splitlines()[-1].startswith("gnc: error: "), done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(p.name for p in (tmp_path / "ro").iterdir()) == ["a.png", "old.txt"]
