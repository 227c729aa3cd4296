"""The repository as a whole: declarations agree with each other, imports point down, what is committed is complete."""

import ast
import functools
import hashlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import gnclib
from gnclib.images import data
from gnclib.suite import claims, ledger, notebooks, reproduce

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Which package may import which; everyone may import `gnclib.checks`.
ALLOWED = {
    "gmm": "",
    "certify": "gmm",
    "io": "",
    "spline": "io",
    "images": "io",
    "foe": "spline io",
    "deep": "foe spline io",
    "score": "deep foe gmm spline images io",
    "restore": "deep foe score images io",
    "studies": "restore score deep foe gmm spline images io",
    "suite": "io",
    "course": "suite gmm spline deep foe score restore images io",
    "integrations": "restore deep foe images io",
    "cli": "course suite studies restore score deep foe spline images io",
    "__main__": "cli",
}


def requirements() -> dict[str, Requirement]:
    extras = [item for group in PROJECT["optional-dependencies"].values() for item in group]
    made = map(Requirement, [*PROJECT["dependencies"], *extras])
    return {item.name.lower(): item for item in made}


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git clone")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


# --- imports ----------------------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name; a package is its __init__.py, its face."""
    files = (ROOT / "gnclib").rglob("*.py")
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in files}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def imported(path: Path, inside: bool) -> set[tuple[str, str]]:
    """(module, name) of the imports from the package that run, also those inside functions; "" for a whole module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    idle = {id(node) for block in types for statement in block.body for node in ast.walk(statement)}
    found = set()
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import) and id(node) not in idle:
            found |= {(alias.name, "") for alias in node.names}
        if isinstance(node, ast.ImportFrom) and id(node) not in idle:
            assert not node.level, f"{path}: imports name the package, they are not relative"
            found |= {(node.module, alias.name) for alias in node.names}
    return {(module, name) for module, name in found if module.partition(".")[0] == "gnclib"}


def defined(path: Path) -> set[str]:
    """The names that the top level of a module makes itself."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    made = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    targets = [t for n in body if isinstance(n, ast.Assign) for t in n.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return made | {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def arrows(inside: bool, through_faces: bool) -> dict[str, set[str]]:
    """By module, what it imports (or only when it is loaded); names of a face can be traced to the file of each."""
    known = modules()
    owners = {(name.rpartition(".")[0], item): name for name, path in known.items() for item in defined(path)}
    graph = {}
    for name, path in known.items():
        graph[name] = set()
        for module, item in imported(path, inside):
            target = f"{module}.{item}" if f"{module}.{item}" in known else module
            if through_faces and target == module and known[module].name == "__init__.py":
                target = owners.get((module, item), target)
            graph[name].add(target)
        graph[name] -= {name, "gnclib.checks"}
    return graph


def levels(graph: dict[str, set[str]]) -> int:
    """The number of modules on the longest way through the imports; RecursionError if they run in a circle."""
    depth = functools.cache(lambda name: 1 + max(map(depth, graph[name]), default=0))
    return max(map(depth, graph))


def test_imports_run_one_way():
    packages = {path.name for path in (ROOT / "gnclib").iterdir() if (path / "__init__.py").is_file()}
    assert packages | {"__main__"} == ALLOWED.keys(), "a new package needs its line in the table"
    wrong = set()
    for name, targets in arrows(inside=True, through_faces=False).items():
        place = name.split(".")[1:2]
        reached = {target.split(".")[1] for target in targets if "." in target} & packages - set(place)
        wrong |= {
            (*place, target) for target in reached if place and target not in ALLOWED.get(*place, "").split()
        }
    assert wrong == set()


def test_imports_run_in_no_circle_and_on_few_levels():
    assert levels(arrows(inside=True, through_faces=True)) <= 11


def sizes() -> dict[str, int]:
    """Lines of each file of the package, in Python and C++."""
    files = [path for path in (ROOT / "gnclib").rglob("*") if path.suffix in (".py", ".cpp")]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in files}


# How large the house is today. Whoever makes it smaller lowers the number; what raised it: a new kind of prior, the
# energy as a probability (posterior covariance, SURE, sampling, calibration, constants, entropies), checks of what
# users bring (ranges, bands, masks, streams, noise that is unequal, correlated, not white or of its own level in each
# pixel), gnc doctor, energies with a network, trained, described and used as the others are, and stacks of
# microscopes, frame by frame; a sixth lesson of the course (second-order Tweedie, SURE, coverage, price of convexity);
# schedules from few pairs, verdicts on P beside R, Fourier sampling, annealed sampling, napari and bioimage.io; what
# files of a new user showed (curves of integers, texts beyond ASCII, maps over results, frames stored as colours);
# several layers that are convex by construction, coordinates for chains of images with known pixels, and chains without
# data; what networks see beyond the border, and schedules of P beside R; long ablations, which can be resumed.
MOST_ARROWS, MOST_LINES, MOST_LINES_WITHOUT_THE_COURSE, MOST_LONG_FILES = 222, 23_075, 20_028, 1


def without_the_course() -> int:
    return sum(lines for name, lines in sizes().items() if not name.startswith("gnclib/course/"))


def test_the_house_does_not_grow():
    assert sum(map(len, arrows(inside=False, through_faces=False).values())) <= MOST_ARROWS
    assert sum(sizes().values()) <= MOST_LINES
    assert without_the_course() <= MOST_LINES_WITHOUT_THE_COURSE
    assert sum(lines > 400 for lines in sizes().values()) <= MOST_LONG_FILES


# What the house aims at. A goal that is reached fails here until its mark is taken away.
@pytest.mark.xfail(reason="goal: at most 120 arrows between files when they are loaded", strict=True)
def test_imports_are_few():
    assert sum(map(len, arrows(inside=False, through_faces=False).values())) <= 120


@pytest.mark.xfail(reason="goal: no file of more than 400 lines", strict=True)
def test_files_stay_readable():
    assert {name: lines for name, lines in sizes().items() if lines > 400} == {}


@pytest.mark.xfail(reason="goal: 16,000 lines in all, 13,000 without the course", strict=True)
def test_the_whole_stays_readable():
    assert sum(sizes().values()) <= 16_000
    assert without_the_course() <= 13_000


HEAVY = {"torch", "numpy", "scipy", "matplotlib", "skimage", "PIL", "safetensors", "tqdm", "pooch"}


def loaded_by(code: str, *words: str) -> set[str]:
    """The top-level packages that are loaded after `code` has run in a new process."""
    code = f"import sys\n{code}\nprint('LOADED', *sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_the_package_itself_loads_nothing_heavy():
    assert not loaded_by("import gnclib, gnclib.integrations, gnclib.foe.hub; dir(gnclib)") & HEAVY


def test_help_loads_nothing_heavy():
    """`gnc --help` and the help of every command: the import graph, not the time."""
    code = """
from gnclib.cli import main as cli
for word in ["", *cli.COMMANDS]:
    assert cli.main([*word.split(), "--help"]) == 0
    heavy = sorted(name for name in sys.modules if name in {HEAVY})
    assert not heavy, (word, heavy)
""".replace("{HEAVY}", repr(HEAVY))
    assert not loaded_by(code) & HEAVY


def stub() -> dict[str, str]:
    """The public names by the packages that hold them, from what type checkers read."""
    tree = ast.parse((ROOT / "gnclib" / "__init__.pyi").read_text(encoding="utf-8"))
    lines = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert all(
        alias.asname == alias.name for node in lines for alias in node.names
    )  # else it is not re-exported
    return {alias.name: f"gnclib.{node.module}" for node in lines for alias in node.names}


def test_public_names_are_loaded_on_demand():
    assert {
        *(
            "Denoising",
            "FieldsOfExperts",
            "GaussianMixture",
            "Inpainting",
            "LearnedSchedule",
            "certify_convex",
        ),
        *(
            "denoise_gnc",
            "enclose_threshold",
            "estimate_sigma",
            "gnc_flow",
            "inpaint_gnc",
            "joint_descent",
            "load_prior",
            "psnr",
        ),
    } <= set(gnclib.__all__)
    for name, package in stub().items():
        assert getattr(gnclib, name) is getattr(importlib.import_module(package), name)
    with pytest.raises(AttributeError, match="Denoise"):
        _ = gnclib.Denoise
    with pytest.raises(ImportError, match="cannot import name"):
        from gnclib import Denoise  # noqa: F401


def test_type_checkers_see_the_same_public_names():
    assert sorted(stub()) == sorted(gnclib.__all__) == sorted(dir(gnclib))
    assert (ROOT / "gnclib" / "py.typed").is_file()


# --- versions and dependencies ----------------------------------------------------------------------------

CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def test_conda_environment_states_the_bounds_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    packages = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip[-1] == "-e ."
    conda = {}
    for item in map(Requirement, [*packages, *pip[:-1]]):
        conda[CONDA_NAMES.get(item.name, item.name)] = item.specifier
    assert str(conda.pop("python")) == PROJECT["requires-python"]
    conda.pop("pip")
    assert conda == {name: item.specifier for name, item in requirements().items()}


def test_constraints_pin_every_dependency_within_its_bounds():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert "+" not in version, f"{line}: a local version cannot be installed elsewhere"
            pins[name.lower()] = Version(version)
    for name, item in requirements().items():
        assert pins[name] in item.specifier, name


def test_versions_agree_and_the_citation_parses():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert gnclib.__version__ == PROJECT["version"] == citation["version"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"]
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Kobler", "Pock"]
    assert "2302.10502" in paper["url"]
    for key in ("message", "title", "authors"):
        assert citation[key]


# --- notebooks, figures, ledger ---------------------------------------------------------------------------

NAMES = (
    "00_the_paper_in_fifteen_minutes",
    *("01_convexity_theorem", "02_gnc_flow", "03_score_matching", "04_train_foe"),
    *("05_kernels_and_potentials", "06_inverse_problems", "07_attainment_maps", "08_ablations"),
    *("09_convex_by_construction", "10_expressive", "11_energy_as_probability"),
    *("appendix_beyond_the_line", "appendix_inverse_problems", "appendix_robustness"),
)


def test_the_notebooks_are_there():
    assert tuple(notebooks.find(ROOT / "notebooks")) == NAMES


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_is_executed_and_clean_and_agrees_with_the_ledger(path):
    assert reproduce.check(path, ledger.load(ROOT / "figures" / "claims.json")) == []


def test_manifest_names_notebooks_and_the_readme_names_both():
    assert {figure.notebook for figure in reproduce.MANIFEST.values()} == set(NAMES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"notebooks/{name}.ipynb" in readme
    gallery = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    assert gallery == reproduce.gallery()
    assert all(f"({name}.png)" in gallery for name in reproduce.MANIFEST)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_manifest_declares_what_the_notebook_saves(path):
    sources = ["".join(c["source"]) for c in notebooks.load(path)["cells"] if c["cell_type"] == "code"]
    saved = set(re.findall(r"\bsave\(\s*\w+,\s*[\"']([\w-]+)[\"']", "\n".join(sources)))
    assert saved == {name for name, figure in reproduce.MANIFEST.items() if figure.notebook == path.stem}


def test_committed_figures_are_those_of_the_manifest():
    expected = {name + suffix for name in reproduce.MANIFEST for suffix in reproduce.SUFFIXES}
    found = {path.name for path in tracked() if path.parent == ROOT / "figures"}
    assert found == expected | {"claims.json", "claims.md", "README.md"}


def test_the_page_of_the_ledger_is_made_from_it_and_has_every_claim():
    stored = ledger.load(ROOT / "figures" / "claims.json")
    assert (ROOT / "figures" / "claims.md").read_text(encoding="utf-8") == ledger.to_markdown(stored)
    assert {record.id for record in stored} == claims.CLAIMS.keys()


# --- files ------------------------------------------------------------------------------------------------


def test_no_image_of_bsds500_and_nothing_large_is_tracked():
    forbidden = {digest: name for name, digest in data._hashes().items()}
    assert len(forbidden) == 500
    for path in tracked():
        content = path.read_bytes()
        assert len(content) < 6_000_000, f"{path} has {len(content)} bytes"
        assert path.suffix not in (".pt", ".pth", ".pkl", ".ckpt"), f"{path}: weights go into safetensors"
        assert hashlib.sha256(content).hexdigest() not in forbidden, f"{path} is an image of BSDS500"


def test_no_absolute_path_is_tracked_in_results():
    """What was computed names priors and folders, not where they lay on the machine."""
    kinds = {".json", ".csv", ".ipynb"}
    results = [path for path in tracked() if path.suffix in kinds and path.parts[len(ROOT.parts)] != "tests"]
    assert len(results) > 100
    wrong = [
        str(p) for p in results if re.search(r'"/(root|home|work|tmp|Users)/', p.read_text(encoding="utf-8"))
    ]
    assert wrong == []


def test_no_link_is_tracked():
    done = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not [line for line in done.stdout.splitlines() if line.startswith("120000")]
