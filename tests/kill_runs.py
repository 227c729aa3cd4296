"""Small runs of every resumable command, to be killed by SIGKILL at any moment, and what must be left of them.

Each subject has a function that begins or resumes it in a folder (in a process of its own), one that reads all that it
has left there, whole or not at all, and gives it without what depends on the clock.
"""

import hashlib
import http.server
import json
import os
import random
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.images import data
from gnclib.io import read_json, read_tensors
from gnclib.restore.learned import LearnedSchedule, Task
from gnclib.studies import field, figure3
from gnclib.studies import patches as patch_bounds
from gnclib.studies.figure3 import Settings
from gnclib.suite import notebooks, reproduce
from tests import child_runs

NAMES = tuple(f"{split}/{k}.jpg" for split in ("train", "val", "test") for k in (1, 2))
PICTURES = {name: random.Random(name).randbytes(60_000) for name in NAMES}


def alone():
    torch.set_num_threads(1)
    child_runs.offline()


# --- what is run ------------------------------------------------------------------------------------------


def train(folder):
    child_runs.finish("R1", folder, 4)


def learn_schedule(folder):
    from gnclib.io import CHECKPOINT
    from gnclib.restore import learn
    from gnclib.score import LearnConfig

    alone()
    if (folder / CHECKPOINT).exists():
        state = learn.load_checkpoint(folder)
    else:
        config = LearnConfig(iterations=8, patch=16, lr=0.02, lr_prior=0.01)
        state = learn.start(folder.parent / "tiny", Task("denoise", 25), config, steps=3)
    for _ in learn.drive(state, folder, every=2):
        pass


def sweep(folder):
    from gnclib.cli import main as cli

    alone()
    figure3.SETTINGS = Settings((0.01, 0.1), (1, 3), crop=12, reference_schedule=4, reference_steps=10)
    figure3.EMBEDDED = tuple("abcdefgh")
    images = {name: child_runs.leaves(16, k) for k, name in enumerate("abcdefgh")}
    data.embedded = lambda: images
    words = ["sweep", "--prior", str(folder.parent / "tiny"), "--set", "embedded", "--crop", "12"]
    assert cli.main([*words, "--out", str(folder / "out" / "sweep.json")]) == 0


def compare(folder):
    from gnclib.cli import main as cli

    alone()
    pictures = str(folder.parent / "pictures")
    words = ["compare", "--images", pictures, "--sigma", "25", "--only", "R1 mmse", "--only", "R1 gnc"]
    assert cli.main([*words, "--out", str(folder / "out" / "field.json")]) == 0


def patches(folder):
    from gnclib.cli import main as cli

    alone()
    patch_bounds.SIZES = (2, 3, 4)
    assert cli.main(["patches", "--per-image", "20", "--out", str(folder / "out" / "patches.json")]) == 0


def figures(folder):
    manifest = {name: notebooks.Figure(f"0{k}_tiny", name) for k, name in ((1, "one"), (2, "two"))}
    reproduce.run(out=folder / "out", manifest=manifest, folder=folder.parent / "notebooks", jobs=2)


def download(folder):
    serve_from((folder.parent / "url").read_text(), folder / "out")
    data._contents(list(NAMES))


def serve_from(url, cache):
    os.environ.pop("GNC_DATA_DIR", None)
    data.URL = url
    data._hashes = lambda: {name: hashlib.sha256(content).hexdigest() for name, content in PICTURES.items()}
    data._cache_folder = lambda: cache


# --- what is left -----------------------------------------------------------------------------------------


def rows(path):
    """A log without its last column, the seconds."""
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()] if path.is_file() else []


def tensors(path):
    return {k: v.tolist() for k, v in read_tensors(path)[0].items()} if path.is_file() else {}


def of_run(folder):
    found = {"log": rows(folder / "log.csv")}
    for name in ("checkpoint.safetensors", "model.safetensors"):
        found[name] = tensors(folder / name)
    if (folder / "config.json").exists():
        found["config"] = read_json(folder / "config.json", "config")
    if (folder / "schedule.json").exists():
        schedule = LearnedSchedule.from_pretrained(folder)
        found["schedule"] = schedule.t.tolist(), schedule.eta.tolist(), schedule.prior_sha256
    return found


def of_table(load, path, table):
    """The rows without the time, and the revision, which changes when somebody edits the clone meanwhile."""
    found = load(path).rows[table] if path.exists() else []
    return [row.model_dump(exclude={"made", "seconds", "cpu_seconds", "wall", "cpu"}) for row in found]


def of_sweep(folder):
    return of_table(figure3.load, folder / "out" / "sweep.json", "runs")


def of_compare(folder):
    return of_table(field.load, folder / "out" / "field.json", "results")


def of_patches(folder):
    return of_table(patch_bounds.load, folder / "out" / "patches.json", "sizes")


def of_files(folder):
    """All bytes; files of JSON must be whole."""
    out = folder / "out"
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    for name, content in found.items():
        if name.endswith(".json"):
            json.loads(content)
    return found


def of_download(folder):
    """What passes as an image is one; pooch's temporary files are no images for anybody."""
    found = {name: c for name, c in of_files(folder).items() if not Path(name).name.startswith("tmp")}
    assert all(content == PICTURES[name] for name, content in found.items())
    return found


SUBJECTS = {
    "train": (train, of_run),
    "learn": (learn_schedule, of_run),
    "sweep": (sweep, of_sweep),
    "compare": (compare, of_compare),
    "patches": (patches, of_patches),
    "figures": (figures, of_files),
    "download": (download, of_download),
}


# --- what they find ---------------------------------------------------------------------------------------


class Slow(http.server.BaseHTTPRequestHandler):
    """The pictures, a piece at a time."""

    def do_GET(self):
        content = PICTURES[self.path.removeprefix("/")]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            for k in range(0, len(content), 10_000):
                self.wfile.write(content[k : k + 10_000])
                self.wfile.flush()
                time.sleep(0.01)
        except OSError:  # the other side was killed
            pass

    def log_message(self, *_):
        pass


def prepare(name, place):
    """Make what a subject finds beside its folder; return what is to be called in the end.

    It is no part of the subject and made only once: nobody would clear up what a kill leaves in it.
    """
    if name == "learn":
        generator = torch.Generator().manual_seed(1)
        FieldsOfExperts(child_runs.PRIORS["R1"], generator=generator).save_pretrained(place / "tiny")
    if name == "sweep":
        config = FoEConfig(features=3, kernel_size=3, nodes_x=15, nodes_tau=5, sigma_min=0.02)
        FieldsOfExperts(config).save_pretrained(place / "tiny")
    if name == "compare":
        (place / "pictures").mkdir()
        for k in range(8):
            grey = (255 * child_runs.leaves(24, k)[0, 0]).byte().numpy()
            Image.fromarray(grey).save(place / "pictures" / f"{k}.png")
    if name == "figures":
        from tests.suite.test_reproduce import saving, write

        for k, figure in ((1, "one"), (2, "two")):
            write(place / "notebooks", f"0{k}_tiny", saving(figure))
    if name == "download":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (place / "url").write_text(f"http://127.0.0.1:{server.server_port}/")
        return server.shutdown
    return lambda: None


# --- kills ------------------------------------------------------------------------------------------------


@dataclass
class Kills:
    """What became of a subject: kills that hit, runs begun anew because one had ended, files left over meanwhile."""

    hit: int = 0
    anew: int = 0
    remains: int = 0
    seconds: float = 0.0


def begin(name, folder, ready):
    """In the child: say that all is imported, and run the subject without a word."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    ready.set()
    SUBJECTS[name][0](folder)


def in_child(name, folder, seconds=None):
    """Run a subject; kill it so many seconds after its beginning. Returns its exit code and the seconds it ran."""
    ready = child_runs.context.Event()
    process = child_runs.child(begin, name, folder, ready)
    assert ready.wait(120)
    began = time.monotonic()
    process.join(600 if seconds is None else seconds)
    if process.is_alive():
        assert seconds is not None, "it does not end"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode, time.monotonic() - began


def remains(place):
    """Temporary files and folders below a place."""
    found = [p for pattern in (".*.tmp", ".gnc-*", "tmp*") for p in place.rglob(pattern)]
    return sorted(str(p.relative_to(place)) for p in found)


def kill_again_and_again(name, place, kills, seed=0):
    """Kill a subject that many times at random moments, resume it each time, and then let it end.

    After each kill all that is visible must be whole. The result is that of a run which nobody has killed.
    """
    draw, result, (_, look) = random.Random(f"{name} {seed}"), Kills(), SUBJECTS[name]
    done = prepare(name, place)
    try:
        code, longest = in_child(name, place / "whole")
        assert code == 0
        whole, folder = look(place / "whole"), place / "killed0"
        while result.hit < kills:
            code, _ = in_child(name, folder, draw.uniform(0.02, 1) * longest)
            assert code in (0, -signal.SIGKILL), code
            result.hit += code != 0
            result.remains += bool(remains(place))
            if folder.exists():
                look(folder)
            if code == 0:
                assert look(folder) == whole
                result.anew += 1
                longest *= 0.9
                folder = place / f"killed{result.anew}"
        assert in_child(name, folder)[0] == 0
        assert look(folder) == whole
        result.seconds = longest
    finally:
        done()
    return result
