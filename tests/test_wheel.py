"""The installed package: what the wheel holds, and that it works far from the clone."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by the build backend itself: no network, no pip."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return zipfile.ZipFile(made)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Its content, unpacked where it is found before the clone."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


@pytest.fixture
def python(installed, tmp_path):
    """Run Python in an empty folder with the unpacked wheel, and not the clone, on the path."""

    def run(*words, status=0):
        environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    return run


def committed() -> set[str]:
    done = subprocess.run(["git", "ls-files", "-z", "gnclib"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git clone")
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(wheel.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert committed() <= inside
    assert {name.split("/")[0] for name in inside} == {"gnclib"}  # no tests, notebooks or figures
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".so", ".ipynb"))]
    assert {
        "gnclib/py.typed",
        "gnclib/weights/R1/model.safetensors",
        "gnclib/studies/ablations.json",
    } <= inside
    assert sum(item.file_size for item in wheel.infolist()) < 20_000_000
    (scripts,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "gnc = gnclib.cli.main:main" in wheel.read(scripts).decode()
    (metadata,) = [name for name in names if name.endswith("/METADATA")]
    text = wheel.read(metadata).decode()
    assert "Provides-Extra: deepinv" in text
    assert "Provides-Extra: hub" in text


def test_every_data_file_is_the_committed_one(wheel):
    for name in wheel.namelist():
        if name.startswith("gnclib/") and not name.endswith((".py", "/")):
            assert wheel.read(name) == (ROOT / name).read_bytes(), name


def test_it_works_far_from_the_clone(python, installed, tmp_path):
    pixels = np.clip(128 + 25 * np.random.default_rng(0).standard_normal((48, 56)), 0, 255)
    Image.fromarray(pixels.round().astype(np.uint8)).save(tmp_path / "noisy.png")
    place, spread = python("-c", (
        "import gnclib; print(gnclib.__file__)\n"
        "from gnclib import FieldsOfExperts, GaussianMixture, LearnedSchedule\n"
        "import sys; from gnclib.cli import main as cli\n"
        "assert FieldsOfExperts.from_pretrained('R3').config.layers == 3\n"
        "assert gnclib.load_prior('G1').certify(16.0).convex\n"
        "assert len(LearnedSchedule.from_pretrained('R1-denoise-25')) == 10\n"
        "assert cli.main('denoise noisy.png --sigma 25 -o clean.png'.split()) == 0\n"
        "import numpy as np; from PIL import Image; print(np.asarray(Image.open('clean.png'), float).std())"
    )).replace("clean.png: ", "\0").split("\0")  # fmt: skip
    assert Path(place.strip()) == installed / "gnclib" / "__init__.py"
    assert float(spread.split()[-1]) < 6  # of a flat image with noise of 25


def test_help_and_what_needs_the_clone(python, installed):
    assert "gnc COMMAND --help" in python("-m", "gnclib", "--help")
    for command in ("figures", "notebooks"):
        said = python("-m", "gnclib", command, status=1)
        assert said.startswith("gnc: error: no notebooks in ")
        assert "clone the repository and run this from its top folder" in said
        assert len(said.splitlines()) == 1
    assert not (installed / "figures").exists()
