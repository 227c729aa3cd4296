"""Weights by name: the package, folders, and the hub, of which a local stand-in copies a folder."""

import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gnclib.cli import main as cli
from gnclib.foe import WEIGHTS, FieldsOfExperts, FoEConfig, weights_sha256
from gnclib.restore import schemes
from gnclib.restore.learned import LearnedSchedule, Task


class RepositoryNotFoundError(OSError):
    pass


class RevisionNotFoundError(OSError):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub that holds somebody/R1 and its schedule, in a module of that name; the list of what was asked for."""
    asked = []

    def snapshot_download(repository, *, revision=None, allow_patterns):
        asked.append((repository, revision, tuple(allow_patterns)))
        owner, name = repository.split("/")
        if owner == "nowhere":
            raise TimeoutError("no route to host\nsecond line")
        if owner != "somebody" or not (WEIGHTS / name).is_dir():
            raise RepositoryNotFoundError("404")
        target = tmp_path / "cache" / name
        target.mkdir(parents=True, exist_ok=True)
        for file in (WEIGHTS / name).iterdir():
            if file.name in allow_patterns:
                shutil.copy(file, target)
        return str(target)

    module, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    module.snapshot_download, module.errors = snapshot_download, errors
    errors.RepositoryNotFoundError, errors.RevisionNotFoundError = (
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    monkeypatch.chdir(tmp_path)
    return asked


PRIOR_FILES = ("config.json", "model.safetensors")


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("name", ["o-1/n.2_x", "owner/name@v1.0", "owner/name@feature/x"])
def test_what_a_hub_name_is(server, name):
    with pytest.raises(FileNotFoundError, match="no public repository of the hub"):
        FieldsOfExperts.from_pretrained(f"hf:{name}")
    repository, _, revision = name.partition("@")
    assert server == [(repository, revision or None, PRIOR_FILES)]


@pytest.mark.parametrize(
    "name", ["", "name", "owner/name/more", "/owner/name", "o/n@", "o/n/", "~/name", "a b/c"]
)
def test_what_no_hub_name_is(server, name):
    with pytest.raises(ValueError, match="write hf:owner/name or hf:owner/name@revision"):
        FieldsOfExperts.from_pretrained(f"hf:{name}")
    assert server == []


def test_prior_and_schedule_from_the_hub(server):
    assert same(FieldsOfExperts.from_pretrained("hf:somebody/R1"), FieldsOfExperts.from_pretrained("R1"))
    found = LearnedSchedule.from_pretrained("hf:somebody/R1-denoise-25@v2")
    assert found.t.tolist() == LearnedSchedule.from_pretrained("R1-denoise-25").t.tolist()
    assert server == [
        ("somebody/R1", None, PRIOR_FILES),
        ("somebody/R1-denoise-25", "v2", ("schedule.json",)),
    ]
    assert weights_sha256("hf:somebody/R1") == weights_sha256("R1")


def test_a_name_without_prefix_is_never_looked_for_on_the_hub(server, tmp_path):
    mine = FieldsOfExperts(FoEConfig(features=4, kernel_size=3))
    mine.save_pretrained(tmp_path / "somebody" / "R1")
    mine.save_pretrained(tmp_path / "R1")
    assert same(FieldsOfExperts.from_pretrained("somebody/R1"), mine)
    assert FieldsOfExperts.from_pretrained("R1").config.features == 48  # that of the package
    assert FieldsOfExperts.from_pretrained("./R1").config.features == 4
    (tmp_path / "somebody" / "R2").mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing in"):
        FieldsOfExperts.from_pretrained("somebody/R2")
    for name in ("runs/R1", tmp_path / "runs" / "R1"):
        with pytest.raises(FileNotFoundError) as caught:
            FieldsOfExperts.from_pretrained(name)
        said = str(caught.value)
        assert said.startswith(
            f"no prior '{name}': there is no folder {tmp_path / 'runs' / 'R1'}; the shipped ones are C1, C3, G1, M1, M3"
        )
        assert said.endswith("a repository of the Hugging Face hub is named hf:owner/name")
    with pytest.raises(FileNotFoundError, match="no prior 'hf:somebody/R1': there is no folder"):
        FieldsOfExperts.from_pretrained(Path("hf:somebody/R1"))  # a Path is never a hub name
    assert server == []


def test_what_is_wrong_is_said(server):
    with pytest.raises(FileNotFoundError, match="no public repository of the hub"):
        FieldsOfExperts.from_pretrained("hf:somebody/R9")
    with pytest.raises(FileNotFoundError, match=r"holds no schedule\.json"):
        LearnedSchedule.from_pretrained("hf:somebody/R1")
    with pytest.raises(ConnectionError) as caught:
        FieldsOfExperts.from_pretrained("hf:nowhere/R1@main")
    said = str(caught.value)
    assert "no route to host)" in said
    assert "config.json and model.safetensors from the page of nowhere/R1 there, revision main" in said
    with pytest.raises(FileNotFoundError, match="the shipped ones are C1, C3, G1, M1, M3, P1, P2, P3, R1"):
        FieldsOfExperts.from_pretrained("R9")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="install huggingface_hub"):
        FieldsOfExperts.from_pretrained("hf:somebody/R1")
    FieldsOfExperts.from_pretrained("R1")


def test_schemes_look_beside_the_prior(server):
    task = Task("denoise", 25)
    scheme = schemes.load("learned", "hf:somebody/R1@main", task)
    assert scheme.steps == 10
    assert [ask[:2] for ask in server] == [("somebody/R1-denoise-25", "main"), ("somebody/R1", "main")]
    with pytest.raises(FileNotFoundError, match="nothing was learned for hf:somebody/R1-denoise-20"):
        schemes.load("learned", "hf:somebody/R1", Task("denoise", 20))
    server.clear()
    FieldsOfExperts.from_pretrained("R1").save_pretrained("runs/mine")
    with pytest.raises(FileNotFoundError, match="nothing was learned for runs/mine-denoise-25"):
        schemes.load("learned", "runs/mine", task)
    with pytest.raises(FileNotFoundError, match="nothing was learned for runs/mine-finetuned-denoise-25"):
        schemes.load("finetuned", "runs/mine", task)
    assert server == []  # beside a folder nothing is looked for on the hub


def test_the_command_takes_hub_names(server, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(60, 190, (40, 40))
    Image.fromarray(noise.astype(np.uint8)).save("noisy.png")
    for name, out in (("R1", "a.png"), ("hf:somebody/R1", "b.png")):
        assert cli.main(["denoise", "noisy.png", "--sigma", "25", "-o", out, "--prior", name]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert cli.main(["denoise", "noisy.png", "--sigma", "25", "-o", "c.png", "--prior", "hf:nowhere/R1"]) == 1
    assert "gnc: error: the prior hf:nowhere/R1 could not be fetched" in capsys.readouterr().err


# --- the real library, without a network ------------------------------------------------------------------

OFFLINE = """
import sys
from gnclib.foe import FieldsOfExperts
for name in sys.argv[1:]:
    try:
        print(FieldsOfExperts.from_pretrained(name).config.features)
    except ConnectionError as error:
        print(error)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed"
)
def test_the_real_library_offline(tmp_path):
    commit = hashlib.sha1(b"R1").hexdigest()
    repository = (
        tmp_path / "hub" / "models--somebody--R1"
    )  # what the library's cache looks like after a download
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file in PRIOR_FILES:
        shutil.copy(WEIGHTS / "R1" / file, snapshot)
    names = ["hf:somebody/R1", f"hf:somebody/R1@{commit}", "hf:somebody/R1@other", "hf:somebody/R3"]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *names], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    first, second, third, fourth = done.stdout.splitlines()
    assert first == second == "48"
    assert "from the page of somebody/R1 there, revision other, into a folder" in third
    assert "config.json and model.safetensors from the page of somebody/R3 there, revision main" in fourth


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for; keeps the paths of what is committed."""

    committed: ClassVar[list[str]] = []

    def answer(self, found: dict | list) -> None:
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        here = f"http://127.0.0.1:{self.server.server_port}"
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(sent)["files"]]
            kinds = {True: "lfs", False: "regular"}
            self.answer(
                {
                    "files": [
                        {"path": f, "uploadMode": kinds[f.endswith(".safetensors")], "shouldIgnore": False}
                        for f in files
                    ]
                }
            )
        elif "/lfs/" in self.path:
            upload = {"actions": {"upload": {"href": f"{here}/blob"}}}
            self.answer({"transfer": "basic", "objects": [o | upload for o in json.loads(sent)["objects"]]})
        elif "/commit/" in self.path:
            self.committed += [
                v["path"] for v in (json.loads(line)["value"] for line in sent.splitlines()) if "path" in v
            ]
            self.answer(
                {"commitUrl": "https://huggingface.co/me/R1/commit/0", "commitOid": "0", "commitMessage": ""}
            )
        else:  # the repository is made, the card is valid
            self.answer({"url": "https://huggingface.co/me/R1", "errors": [], "warnings": []})

    def do_PUT(self) -> None:
        assert hashlib.sha256(
            self.rfile.read(int(self.headers["Content-Length"]))
        ).hexdigest() == weights_sha256("R1")
        self.answer({})

    def log_message(self, *words) -> None:
        pass


def test_the_upload_command_of_the_guide_sends_the_folder(tmp_path):
    """The hub's own command, to a stand-in of the hub: every file of the folder, at the top of the repository."""
    command = shutil.which("hf", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("huggingface_hub is not installed")
    guide = (Path(__file__).parents[2] / "notebooks" / "guide" / "pipelines.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^hf upload .*$", guide, re.M)
    words = line.replace("owner/R1", "me/R1").replace("FOLDER", str(WEIGHTS / "R1")).split()
    Hub.committed = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        there = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        own = {
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": "hf_none",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        done = subprocess.run(
            [command, *words[1:]], capture_output=True, text=True, env=os.environ | there | own, timeout=120
        )
        hub.shutdown()
    assert done.returncode == 0, done.stderr
    assert sorted(Hub.committed) == sorted(file.name for file in (WEIGHTS / "R1").iterdir())


# --- what the package ships has the hub's layout ----------------------------------------------------------


@pytest.mark.parametrize("folder", sorted(WEIGHTS.iterdir()), ids=lambda folder: folder.name)
def test_shipped_folders_could_be_uploaded_as_they_are(folder):
    names = {file.name for file in folder.iterdir()}
    assert set(PRIOR_FILES) <= names or "schedule.json" in names
    assert {name.rpartition(".")[2] for name in names} <= {"json", "safetensors", "md", "csv"}
    for name in names:
        if name.endswith(".json"):
            json.loads((folder / name).read_text(encoding="utf-8"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    empty, head, body = text.split("---\n", 2)
    assert empty == ""
    about = yaml.safe_load(head)
    assert about["license"] == "mit"
    assert about["library_name"] == "gnclib"
    assert about["datasets"] == ["BSDS500"]
    assert about["pipeline_tag"] == "image-to-image"
    assert ("inpainting" if "inpaint" in folder.name else "denoising") in about["tags"]
    assert all(isinstance(tag, str) for tag in about["tags"])
    assert body.startswith(f"\n# {folder.name}: ")
    if importlib.util.find_spec("huggingface_hub"):
        from huggingface_hub import ModelCard

        card = ModelCard(text).data
        assert card.to_dict()["library_name"] == "gnclib"
        assert bool(card.eval_results) == ("-" not in folder.name)
        assert all(r.metric_type == "psnr" and 20 < r.metric_value < 45 for r in card.eval_results or [])
