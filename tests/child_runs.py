"""Small training runs for tests, also in processes of their own that may be killed or started as several ranks.

Children come from a fork server, which imports once what they need. They never touch BSDS500: :func:`offline` gives
them drawn images.
"""

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from gnclib import io
from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.images import data
from gnclib.io import CHECKPOINT, files
from gnclib.score import TrainConfig, TrainState, distributed, load_checkpoint
from gnclib.score import run as training_run
from gnclib.score.card import Row
from gnclib.score.training import training
from tests.leaves import dead_leaves

PRIORS = {"R1": FoEConfig(features=6, kernel_size=3, nodes_x=31, nodes_tau=7)}
PRIORS["R3"] = replace(PRIORS["R1"], layers=3)
SETTINGS = TrainConfig(steps=20, batch=6, patch=18, fraction=0.5, roughness=1.0)

context = multiprocessing.get_context("forkserver")
#: what every child would import anew: each optimiser of torch loads torch._dynamo, the compiled splines cpp_extension
IMPORTED = ["tests.kill_runs", "gnclib.cli.main", "torch._dynamo", "torch.utils.cpp_extension"]
context.set_forkserver_preload(IMPORTED)


def leaves(size, seed=0):
    return dead_leaves(size, size, torch.Generator().manual_seed(seed))


def offline():
    data.training_images = lambda: {f"leaves{k}": leaves(40, k) for k in range(2)}
    data.validation_images = lambda: {"leaves": leaves(32, 7)}


def fresh(prior, config=SETTINGS):
    return TrainState(FieldsOfExperts(PRIORS[prior], generator=torch.Generator().manual_seed(1)), config)


def rows(folder):
    """The rows of a log of a training."""
    return io.rows(folder, Row)


def run(state, folder, **options):
    """A training to its end: the trained prior."""
    for _ in training_run.drive(state, folder, **options):
        pass
    state.prior.make_convex()  # as in the file
    return state.prior


def child(target, *arguments):
    """Start ``target`` in a process of its own."""
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


# --- runs that are killed ----------------------------------------------------------------------------------


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(number):
    """In the midst of an update of the weights."""
    project, calls = FieldsOfExperts.project, []

    def killing(model):
        calls.append(1)
        if len(calls) == number:
            kill()
        project(model)

    FieldsOfExperts.project = killing


def kill_at_write(number, name, phase):
    """At the ``number``-th write of the file ``name``: before, in the middle of its temporary file, or after it."""
    write, calls = files.write_bytes, []

    def killing(path, content):
        calls.extend([1] if Path(path).name == name else [])
        now = Path(path).name == name and len(calls) == number
        if now and phase == "middle":
            handle, _ = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=Path(path).parent)
            os.write(handle, content[: len(content) // 2])
        if now and phase != "after":
            kill()
        written = write(path, content)
        if now:
            kill()
        return written

    files.write_bytes = killing


def kill_after(seconds):
    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()


FAULTS = {"step": kill_at_step, "write": kill_at_write, "seconds": kill_after}


def finish(prior, folder, every, fault=()):
    """Begin or resume a run and end it, unless it is killed: ``fault`` is a name of FAULTS and its arguments."""
    torch.set_num_threads(1)
    offline()
    state = load_checkpoint(folder) if (Path(folder) / CHECKPOINT).exists() else fresh(prior)
    if fault:
        FAULTS[fault[0]](*fault[1:])
    run(state, folder, every=every)


# --- several ranks -----------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_ranks(world, target, *arguments):
    """Start ``target(group, *arguments)`` in ``world`` processes that form a gloo group."""
    port = free_port()
    return [child(_as_rank, rank, world, port, target, *arguments) for rank in range(world)]


def _as_rank(rank, world, port, target, *arguments):
    torch.set_num_threads(1)
    offline()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_PORT=str(port))
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    distributed.PATIENCE = 1000.0  # longer than any test waits: it is not what ends the waiting
    group, _ = distributed.join("cpu")
    target(group, *arguments)
    group.close()


def double_run(group, prior, config, folder):
    """Train in float64 and write the weights and the losses of this rank into ``folder``."""
    state = fresh(prior, config)
    state.model.double()
    steps = list(training(state, data.training_images(), group))
    losses = torch.tensor([[s.loss, s.image, s.smoothing] for s in steps], dtype=torch.float64)
    save_file({**state.model.state_dict(), "losses": losses}, Path(folder) / f"{group.rank}.safetensors")


def one_rank_stops(group, folder):
    """Rank 1 alone is told to stop after its third step."""
    state = fresh("R1")
    calls = []

    def stop():
        calls.append(1)
        return group.rank == 1 and len(calls) == 3

    run(state, folder, every=100, group=group, stop=stop)
    Path(folder, f"stopped{group.rank}").write_text(str(state.step))


def one_rank_fails(group, folder, how):
    """In step 3 rank 1 dies, raises, or has a loss that is nan; what each rank says is written down."""
    from gnclib.score import training as train

    loss_parts, calls = train.loss_parts, []

    def failing(*arguments):
        calls.append(1)
        image, smoothing = loss_parts(*arguments)
        if group.rank == 1 and len(calls) == 3:
            if how == "dies":
                kill()
            if how == "raises":
                raise OSError("the data are gone")
            image = image * float("nan")
        return image, smoothing

    train.loss_parts = failing
    state = fresh("R1")
    try:
        run(state, folder, every=2, group=group)
    except Exception as error:
        Path(folder, f"failed{group.rank}").write_text(f"{type(error).__name__} after {state.step}: {error}")
        os._exit(3)
