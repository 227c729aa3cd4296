"""Files that are written: their rights, and folders that are held."""

import os
import stat
import subprocess
import sys

import pytest

from gnclib.io import files


@pytest.mark.skipif(os.name != "posix", reason="about Unix")
@pytest.mark.parametrize(("mask", "rights"), [(0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_rights_of_the_umask_which_nobody_touches(tmp_path, mask, rights):
    """The umask is one for all threads of a process: to read it by setting it would open other threads' files."""
    code = (
        "import os, sys; from gnclib.io import files\n"
        f"os.umask({mask}); os.umask = None\n"
        "files.write_bytes(sys.argv[1], bytes(10)); files.write_bytes(sys.argv[1], bytes(20))\n"
        "print(oct(os.stat(sys.argv[1]).st_mode & 0o777))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True)
    assert done.stdout == f"{oct(rights)}\n", done.stderr


def test_a_held_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), files.held(tmp_path, "somebody"):
        raise KeyError
    with files.held(tmp_path, "somebody"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="about Unix")
@pytest.mark.skipif(os.name != "posix", reason="about Unix")
def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a device or a pipe"):
        files.write_bytes(tmp_path / "pipe", b"a")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(os.name != "posix", reason="about Unix")
def test_a_name_may_have_255_bytes(tmp_path):
    name = 83 * "\u4e2d" + ".a"  # 251
    files.write_bytes(tmp_path / name, b"a")
    (tmp_path / f".{files._shortened(name)}.00000000.tmp").write_bytes(b"killed")
    files.write_bytes(tmp_path / name, b"b")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"b")]


def test_a_replaced_file_keeps_its_mode_and_a_link_stays_one(tmp_path):
    real, link, chain = (tmp_path / name for name in ("folder/real", "link", "chain"))
    real.parent.mkdir()
    real.write_bytes(b"before")
    real.chmod(0o640)
    link.symlink_to("folder/real")
    chain.symlink_to(link)
    for path in (real, link, chain):
        assert files.write_bytes(path, str(path).encode()) == path
        assert real.read_bytes() == str(path).encode()
        assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert chain.is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chain", "folder", "link", "real"]
