"""The sweep behind Figure 3: one job per image and task, on one process or on a dask cluster, in one resumable file.

A job (:func:`work`) needs nothing but its arguments and the weights of the prior, which each worker reads itself, by
the name of a shipped prior or from a folder that it sees under the same path; it refuses weights other than those of
the client. The client alone writes: each result is added to the file at once and atomically, with its time and where
it was computed. A worker that dies loses the job it was at, which dask gives to another one; a client that dies loses
what is not in the file. Started again, the sweep computes what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from gnclib.foe import WEIGHTS, FieldsOfExperts
from gnclib.images import data
from gnclib.io import files, provenance, reading
from gnclib.studies.figure3 import ALGORITHMS, TASKS, Settings, centre, measure

#: sets of images; the embedded photographs come first, anyone can recompute them
SETS = ("embedded", "bsds68")
#: what the shipped results were made with
SETTINGS = Settings()
_TABLES = {str: [[complex]]}
#: what a result file holds; a table may lack where it was made by an older version
_SHAPE = {
    "about?": str,
    "prior": {"name": str, "weights_sha256": str},
    "settings": dict,
    "made": [{"machine": str, "device": str, "software": str, "revision": str}],
    "runs": [
        {
            **{"set": str, "task": str, "image": str, "seed": int, "size": [int], "made": int},
            **{"seconds": float, "cpu_seconds": float, "start": [complex], "reference": ([complex], None)},
            **{f"{name}?": _TABLES for name in ALGORITHMS},
        }
    ],
}
EMBEDDED = ("camera", "chelsea", "coins", "rocket")


@dataclass(frozen=True)
class Job:
    """One image and task. seed: that of its noise or mask, the number of the image in its set; x: (1, 1, H, W)."""

    set: str
    image: str
    task: str
    seed: int
    x: Tensor = field(repr=False, compare=False)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.set, self.task, self.image


def jobs(
    settings: Settings,
    sets: Sequence[str] = SETS,
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
) -> list[Job]:
    """The jobs in an order in which any beginning is useful: image by image, all tasks of an image together.

    limit: only the first images of each set. Raises ValueError for an unknown set or task, or a limit below 1; and
    what `gnclib.images.data.bsds68` raises where the images are not at hand.
    """
    for kind, asked, known in (("set", sets, SETS), ("task", tasks, TASKS)):
        if wrong := [name for name in asked if name not in known]:
            raise ValueError(f"unknown {kind} {wrong[0]!r}: choose from {', '.join(known)}")
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is a number of images and must be at least 1, got {limit}")
    chosen = []
    for name in (s for s in SETS if s in sets):
        images = data.bsds68() if name == "bsds68" else _embedded()
        for seed, (image, x) in list(enumerate(images.items()))[:limit]:
            chosen += [
                Job(name, image, task, seed, centre(x, settings.crop)) for task in TASKS if task in tasks
            ]
    return chosen


def _embedded() -> dict[str, Tensor]:
    photographs = data.embedded()
    return {name: photographs[name] for name in EMBEDDED}


# the work ------------------------------------------------------------------------------------------------------------


def identify(prior: str) -> dict:
    """{"name", "folder", "weights_sha256"} of a shipped prior or a folder; "folder" is what workers load it from.

    Raises FileNotFoundError or ValueError as `FieldsOfExperts.from_pretrained`.
    """
    FieldsOfExperts.from_pretrained(prior)
    shipped = (WEIGHTS / prior / "config.json").is_file()
    folder = WEIGHTS / prior if shipped else Path(prior).resolve()
    digest = files.sha256(folder / "model.safetensors")
    return {"name": folder.name, "folder": prior if shipped else str(folder), "weights_sha256": digest}


@cache
def _loaded(folder: str, digest: str, device: str) -> FieldsOfExperts:
    """The prior, read once per process; it must be the one that the client means."""
    if (found := identify(folder)["weights_sha256"]) != digest:
        raise ValueError(
            f"the worker's weights of {folder!r} have SHA-256 {found[:12]}, the client's {digest[:12]}: give both the"
            " same files"
        )
    return FieldsOfExperts.from_pretrained(folder).to(device)


def work(job: Job, prior: dict, settings: Settings, device: str = "cpu") -> dict:
    """Compute one job with one torch thread: what the file holds of it, and under "made" where that happened.

    prior: of `identify`. Raises ValueError where this process finds other weights than the client, or no such device.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"this worker has no device {device!r}: use cpu")
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    energy = _loaded(prior["folder"], prior["weights_sha256"], device)
    result = measure(energy, job.task, job.x.to(device), job.seed, settings)
    return {
        "set": job.set,
        "task": job.task,
        "image": job.image,
        "seed": job.seed,
        "size": list(job.x.shape[-2:]),
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **result,
        "made": _here(device),
    }


@cache
def _here(device: str) -> dict:
    return {
        "machine": provenance.machine(device),
        "device": device,
        "software": provenance.software("torch"),
        "revision": provenance.revision(),
    }


def serially(function: Callable[[Job], dict], wanted: Sequence[Job]) -> Iterator[dict]:
    """The results one after the other in this process, without dask."""
    return map(function, wanted)


@contextmanager
def client(workers: int = 0, scheduler: str = "") -> Iterator:
    """A dask client: of the cluster at the address ``scheduler``, else of a new one of ``workers`` local processes.

    Raises ImportError where dask.distributed is not installed; OSError where no scheduler answers.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError(
            f"several workers need dask.distributed ({error}): pip install 'gnclib[sweep]', or use one worker"
        ) from error
    if scheduler:
        with Client(scheduler) as connected:
            yield connected
        return
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as connected,
    ):
        yield connected


def on_cluster(connected, function: Callable[[Job], dict], wanted: Sequence[Job]) -> Iterator[dict]:
    """The results in the order in which the workers of a dask client finish them.

    Raises what a job raises, and RuntimeError for a job at which one worker after the other died.
    """
    from distributed import KilledWorker, as_completed

    futures = [connected.submit(function, job, priority=-n) for n, job in enumerate(wanted)]
    for future in as_completed(futures):
        try:
            result = future.result()
        except KilledWorker as error:
            raise RuntimeError(
                f"every worker that took a certain job died ({error}); results so far are in the file. Out of memory?"
            ) from error
        except CancelledError as error:
            raise RuntimeError(f"the scheduler is gone ({error}); results so far are in the file") from error
        future.release()
        yield result


# the file ------------------------------------------------------------------------------------------------------------


def shipped(prior: str = "R1") -> Path:
    """The result of a shipped prior that comes with the package (not every prior has one)."""
    return Path(__file__).with_name(f"figure3_{prior}.json")


def empty(prior: dict, settings: Settings) -> dict:
    """The content of a file without runs. prior: of `identify`."""
    return {
        "about": "Energies in nats per pixel at t_min, PSNR in dB with peak 1, nothing clipped; noise or mask of image"
        " k of a set from torch's generator with seed k; see gnclib/figure3.py.",
        "prior": {name: prior[name] for name in ("name", "weights_sha256")},
        "settings": asdict(settings),
        "made": [],
        "runs": [],
    }


def load(path: str | Path | None = None) -> dict:
    """The content of a result file, by default the shipped one of R_1.

    "prior", "settings", "made" (machines, devices, software, revisions), and "runs", each with "set", "task",
    "image", "seed", "size", "seconds", "cpu_seconds", what `gnclib.studies.figure3.measure` returns, and in
    "made" the number of its entry there.

    Raises:
        FileNotFoundError: there is none. ValueError: it is no result file, or a damaged one.
    """
    path = shipped() if path is None else Path(path)
    content = reading.read_json(path, "result of gnc sweep", _SHAPE, plain=False)
    try:
        settings = Settings.from_dict(content["settings"])
        for run in content["runs"]:
            _check_run(run, settings, len(content["made"]))
    except ValueError as error:
        raise ValueError(f"{path} is no result of gnc sweep: {error}") from None
    return content


def _check_run(run: dict, settings: Settings, made: int) -> None:
    """Raise ValueError unless a run has a place of origin, and a table of the right size for each quantity."""
    if not 0 <= run["made"] < made:
        raise ValueError(f"{run['image']} was made nowhere that the file knows")
    pair, three = len(run["start"]), len(run["reference"] or (0, 0, 0))
    if (pair, three, len(run["size"])) != (2, 3, 2):
        raise ValueError(f"{run['image']} lacks numbers")
    for name in (name for name in ALGORITHMS if name in run):
        for quantity, rows in run[name].items():
            if [len(row) for row in rows] != [len(settings.steps)] * len(settings.t_firsts):
                raise ValueError(
                    f"{quantity} of {name} of {run['image']} is no table of t_0 by number of steps"
                )


def check(content: dict, prior: dict, settings: Settings) -> None:
    """Raise ValueError unless the runs of ``content`` were made with this prior and these settings."""
    if content["prior"]["weights_sha256"] != prior["weights_sha256"]:
        raise ValueError(
            f"its runs were made with other weights (of {content['prior']['name']}): choose another --out"
        )
    theirs = Settings.from_dict(content["settings"])
    changed = [n for n, v in asdict(settings).items() if getattr(theirs, n) != v]
    if changed:
        raise ValueError(f"its runs were made with another {', '.join(changed)}: choose another --out")


def done(content: dict) -> set[tuple[str, str, str]]:
    """The keys of the jobs that are in it."""
    return {(run["set"], run["task"], run["image"]) for run in content["runs"]}


def include(content: dict, run: dict) -> None:
    """Add one result of `work` to a content, in place."""
    if run["made"] not in content["made"]:
        content["made"].append(run["made"])
    content["runs"].append({**run, "made": content["made"].index(run["made"])})


def add(path: Path, prior: dict, settings: Settings, run: dict) -> None:
    """Add one result to the file (made where it is missing), atomically. Raises ValueError as `load` and `check`."""
    content = load(path) if path.is_file() else empty(prior, settings)
    check(content, prior, settings)
    include(content, run)
    files.write_text(path, files.dumps(content))


def compute(
    prior: str,
    settings: Settings,
    sets: Sequence[str] = SETS,
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
) -> dict:
    """A content computed here and now, in this process and without a file; for comparison with a shipped one.

    Arguments and errors as for `jobs` and `identify`. It leaves torch with one thread.
    """
    known = identify(prior)
    content = empty(known, settings)
    for run in serially(partial(work, prior=known, settings=settings), jobs(settings, sets, tasks, limit)):
        include(content, run)
    return content
