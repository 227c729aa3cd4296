"""gnc learn on small runs: what is learned and left, stopping and going on, fine-tuning, bad input."""

import json
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch

from gnclib import io
from gnclib.cli import main as cli
from gnclib.cli import training
from gnclib.foe import FieldsOfExperts
from gnclib.images import data
from gnclib.images.metrics import psnr
from gnclib.io import CHECKPOINT
from gnclib.restore import learn
from gnclib.restore.flow import last
from gnclib.restore.learn import load_checkpoint
from gnclib.restore.learned import LearnedSchedule, Task, weights_sha256
from gnclib.score import LearnConfig, denoising_psnr
from tests import child_runs
from tests.commands import gnc

NOISE = Task("denoise", 25)
SMALL = LearnConfig(iterations=6, patch=16)
TUNING = replace(SMALL, lr=0.02, lr_prior=0.01)
pytestmark = pytest.mark.usefixtures("drawn_images")


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A small untrained prior in a folder."""
    folder = tmp_path_factory.mktemp("priors") / "tiny"
    FieldsOfExperts(child_runs.PRIORS["R1"], generator=torch.Generator().manual_seed(1)).save_pretrained(
        folder
    )
    return folder


def begin(prior, config=SMALL, task=NOISE):
    return learn.start(prior, task, config, steps=3)


def run(state, folder, **options):
    return list(learn.drive(state, folder, **options))


def same(a, b):
    """All tensors of two runs to the bit, and their logs but for the seconds."""
    first, second = load_checkpoint(a), load_checkpoint(b)
    for part in ("schedule", "model"):
        one, other = (getattr(s, part).state_dict() for s in (first, second))
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert torch.equal(first.generator.get_state(), second.generator.get_state())
    logs = [[str(r).rpartition(",")[0] for r in io.rows(folder, learn.Row)] for folder in (a, b)]
    assert logs[0] == logs[1]
    read = [json.loads((folder / "schedule.json").read_text()) for folder in (a, b)]
    for content in read:
        content["provenance"].pop("hours")
        content["provenance"].pop("history")
        content["provenance"] |= dict.fromkeys(("machine", "software", "revision"), "")
    assert read[0] == read[1]
    return True


# --- what is learned and left ------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [Task("denoise", 75), Task("inpaint", 0.8)], ids=str)
def test_a_run_learns_and_leaves_schedule_log_and_card(prior, tmp_path, task):
    state = begin(prior, replace(SMALL, iterations=30), task)
    first = state.schedule.t
    steps, rows = zip(*run(state, tmp_path, every=20), strict=True)
    assert [s.step for s in steps] == list(range(1, 31))
    assert [row.step for row in rows if row] == [20, 30]
    log = io.rows(tmp_path, learn.Row)
    assert [row.step for row in log] == [0, 20, 30]
    assert log[1].loss == pytest.approx(sum(s.loss for s in steps[:20]) / 20, abs=1e-8)
    least = 0.3 if task.kind == "denoise" else 0.05  # dB; inpainting begins at a good guess
    assert log[-1].validation > log[0].validation + least
    schedule = LearnedSchedule.from_pretrained(tmp_path)
    assert not torch.equal(schedule.t, first)
    assert (schedule.task, schedule.prior) == (task, "tiny")
    assert schedule.x_0 == ("start" if task.kind == "denoise" else "guess")
    schedule.demand_fit(FieldsOfExperts.from_pretrained(prior))
    assert not (tmp_path / "model.safetensors").exists()
    x = data.validation_images()["leaves"]
    measured = task.measure(x, torch.Generator().manual_seed(0))
    end = last(schedule.states(FieldsOfExperts.from_pretrained(prior), measured)).x
    found = schedule.provenance["validation_psnr"]
    assert found["learned"] == pytest.approx(psnr(end, x).item(), abs=1e-3)
    assert found["initial schedule"] == pytest.approx(log[0].validation, abs=1e-3)
    if task.kind == "denoise":
        (one_step,) = denoising_psnr(FieldsOfExperts.from_pretrained(prior), [x], task.sigma)
        assert found["one-step MMSE"] == pytest.approx(one_step, abs=1e-3)
    page = (tmp_path / "README.md").read_text()
    assert f"| validation, learned | {log[-1].validation:.2f} dB |" in page
    assert "| iterations | 30 of batch 2, patches of side 16 |" in page
    assert "| learned numbers | 6 (all t_i and eta_i) |" in page
    for i, (t, eta) in enumerate(zip(schedule.t, schedule.eta, strict=True), 1):
        assert f"| {i} | {t:.4g} | {eta:.4g} |" in page


def test_fine_tuning_lowers_the_loss_and_leaves_a_prior(prior, tmp_path):
    """Schedule first, then schedule and prior: less error on pairs that neither has seen."""
    run(begin(prior, replace(SMALL, iterations=30)), tmp_path / "tiny-denoise-25", every=30)
    config = replace(TUNING, iterations=60)
    state = learn.start(prior, NOISE, config, schedule=tmp_path / "tiny-denoise-25")
    run(state, tmp_path / "tuned", every=60)
    x = torch.cat([child_runs.leaves(40, seed) for seed in range(20, 28)])
    measured = NOISE.measure(x, torch.Generator().manual_seed(5))
    errors = []
    for schedule, model in ((tmp_path / "tiny-denoise-25", prior), (tmp_path / "tuned", tmp_path / "tuned")):
        schedule, model = LearnedSchedule.from_pretrained(schedule), FieldsOfExperts.from_pretrained(model)
        schedule.demand_fit(model)
        errors.append((last(schedule.states(model, measured)).x - x).square().mean().item())
    assert errors[1] < 0.97 * errors[0]
    tuned, before = (FieldsOfExperts.from_pretrained(p) for p in (tmp_path / "tuned", prior))
    assert not torch.equal(tuned.kernels[0], before.kernels[0])
    assert not torch.equal(tuned.weights[0], before.weights[0])
    assert tuned.kernels[0].sum((-1, -2)).abs().max() < 1e-5  # projected
    assert tuned.kernels[0].flatten(1).norm(dim=1).max() < 1 + 1e-5
    page = (tmp_path / "tuned" / "README.md").read_text()
    assert f"| fine-tuned from | `tiny`, SHA-256 {weights_sha256(before)} |" in page
    assert f"| weights of the prior | SHA-256 {weights_sha256(tuned)} |" in page


def test_fine_tuning_leaves_free_kernels_free(prior, tmp_path):
    """Those of a prior trained by the restored recipe are not put back to zero mean and norm 1."""
    free = FieldsOfExperts.from_pretrained(prior)
    free.kernels[0] += 0.3
    free.save_pretrained(tmp_path / "free")
    state = learn.start(tmp_path / "free", NOISE, replace(TUNING, iterations=2), steps=3)
    assert not state.model.projected
    run(state, tmp_path / "tuned")
    assert FieldsOfExperts.from_pretrained(tmp_path / "tuned").kernels[0].mean((-1, -2)).min() > 0.2


def test_fine_tuning_leaves_a_convex_prior_convex(tmp_path):
    convex = FieldsOfExperts(replace(child_runs.PRIORS["R1"], convex_from=0.2))
    convex.make_convex()
    convex.save_pretrained(tmp_path / "convex")
    assert convex.certify(0.5).convex
    state = learn.start(tmp_path / "convex", NOISE, replace(TUNING, iterations=4, lr_prior=0.05), steps=3)
    run(state, tmp_path / "tuned")
    tuned = FieldsOfExperts.from_pretrained(tmp_path / "tuned")
    assert tuned.certify(0.5).convex
    assert not torch.equal(tuned.weights[0], convex.weights[0])


def test_fine_tuning_on_patches_that_a_coarse_scale_does_not_fit_into(tmp_path):
    """It has no gradient, and stays as it is."""
    scales = FieldsOfExperts(replace(child_runs.PRIORS["R1"], scales=4, coarse_features=3))
    scales.save_pretrained(tmp_path / "scales")
    state = learn.start(tmp_path / "scales", NOISE, replace(TUNING, iterations=2), steps=3)
    run(state, tmp_path / "tuned")
    tuned = FieldsOfExperts.from_pretrained(tmp_path / "tuned")
    assert not torch.equal(tuned.kernels[0], scales.kernels[0])


@pytest.mark.parametrize("name", ["R1", "mine"])
def test_a_card_tells_a_prior_of_ones_own_from_the_shipped_one(prior, tmp_path, name):
    shutil.copytree(prior, tmp_path / name)
    run(begin(tmp_path / name, replace(SMALL, iterations=1)), tmp_path / "learned")
    other = " (of one's own, not the one that comes with gnclib)" if name == "R1" else ""
    assert f"| prior | `{name}`{other} |" in (tmp_path / "learned" / "README.md").read_text()


def test_the_first_guess_of_a_schedule_stays_in_the_range_of_the_prior(tmp_path):
    few = replace(child_runs.PRIORS["R1"], sigma_max=0.15)
    FieldsOfExperts(few).save_pretrained(tmp_path / "few")
    begun = begin(tmp_path / "few", task=Task("inpaint", 0.8))
    assert begun.schedule.t[0].item() == pytest.approx(0.15**2)


@pytest.mark.parametrize("x_0", ["start", "guess"])
def test_inpainting_goes_on_where_its_schedule_began(prior, tmp_path, x_0):
    task, t = Task("inpaint", 0.8), [0.1, 0.001]
    own = weights_sha256(FieldsOfExperts.from_pretrained(prior))
    LearnedSchedule(t, t_range=(1e-4, 1.0), task=task, x_0=x_0, prior_sha256=own).save_pretrained(
        tmp_path / "a"
    )
    state = learn.start(prior, task, SMALL, schedule=tmp_path / "a")
    assert state.schedule.x_0 == x_0
    run(state, tmp_path / "b")
    assert LearnedSchedule.from_pretrained(tmp_path / "b").x_0 == x_0


# --- stopping and going on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, TUNING], ids=["schedule", "prior as well"])
def test_a_resumed_run_ends_like_a_whole_one(prior, tmp_path, config):
    run(begin(prior, config), tmp_path / "whole", every=4)
    for step, _ in learn.drive(begin(prior, config), tmp_path / "cut", every=4):
        if step.step == 3:
            break
    assert not (tmp_path / "cut" / "schedule.json").exists()
    state = load_checkpoint(tmp_path / "cut")
    assert state.step == 3
    run(state, tmp_path / "cut", every=4, stop=lambda: state.step == 5)
    assert load_checkpoint(tmp_path / "cut").step == 5
    run(load_checkpoint(tmp_path / "cut"), tmp_path / "cut", every=4)
    assert same(tmp_path / "whole", tmp_path / "cut")
    run(load_checkpoint(tmp_path / "cut"), tmp_path / "cut")  # a finished run: exported again
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_what_is_not_finite_stops_the_run_and_spares_the_checkpoint(prior, tmp_path, monkeypatch):
    forward, calls = LearnedSchedule.forward, []

    def failing(self, *arguments):
        calls.append(1)
        value = forward(self, *arguments)
        return value * float("nan") if len(calls) == 4 else value

    with monkeypatch.context() as patched:
        patched.setattr(LearnedSchedule, "forward", failing)
        state = begin(prior)
        with pytest.raises(FloatingPointError, match="loss is nan at step 4: learning stopped, and the last"):
            run(state, tmp_path, every=2)
        kept = load_checkpoint(tmp_path)
        assert kept.step == 2
        assert state.schedule.t.isfinite().all()
        run(kept, tmp_path, every=2)
    run(begin(prior), tmp_path / "whole", every=2)
    assert same(tmp_path, tmp_path / "whole")


def test_iterates_that_diverge(prior):
    """Steps far too long for this energy: named as such, and not as bad images."""
    state = learn.start(prior, Task("inpaint", 0.8), SMALL, steps=20)
    with torch.no_grad():
        state.schedule.shift_log_eta += 50
        state.model.weights[0].mul_(1e38)
    with pytest.raises(FloatingPointError, match="the iterates diverge"):
        next(learn.learning(state, data.training_images()))


def test_patches_and_held_out_images_go_to_where_the_prior_is(prior, tmp_path):
    """In place of a GPU, which this machine may not have: a prior in double precision."""
    state = begin(prior, TUNING)
    state.model.double()
    run(state, tmp_path)
    assert load_checkpoint(tmp_path).step == TUNING.iterations


def test_a_device_that_is_not_there(prior, tmp_path, capsys):
    words = ("learn", str(prior), "--device", "abacus", "--out", str(tmp_path / "run"))
    assert cli.main(words) == 2
    assert "abacus" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- bad input ---------------------------------------------------------------------------------------------


def test_validation_images_are_refused(prior):
    x = child_runs.leaves(40)
    for name, message in (
        (data.bsds68_ids()[0], "BSDS68, never"),
        (data.bsds500_ids("val")[1], "never train"),
    ):
        state = begin(prior)
        with pytest.raises(ValueError, match=message):
            next(learn.learning(state, {"leaves": x, name: x}))
        assert state.step == 0


def test_bad_settings(prior, tmp_path):
    for change in ({"iterations": 0}, {"batch": 2.5}, {"patch": True}, {"lr": 0.0}, {"lr_prior": -1.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(SMALL, **change)
    with pytest.raises(ValueError, match="outside of this prior's range"):
        begin(prior, task=Task("denoise", 2))
    with pytest.raises(ValueError, match="patches of 2 pixels are too small"):
        next(learn.learning(begin("R1", replace(SMALL, patch=2)), data.training_images()))
    with pytest.raises(ValueError, match="must be a positive integer"):
        next(learn.drive(begin(prior), tmp_path, every=0))
    with pytest.raises(FileNotFoundError, match="start without --resume"):
        load_checkpoint(tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"foreign")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_fine_tuning_starts_from_a_schedule_that_fits(prior, tmp_path):
    run(begin(prior), tmp_path / "learned", every=6)
    other = FieldsOfExperts(child_runs.PRIORS["R1"])
    other.offset.data += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="other weights"):
        learn.start(tmp_path / "other", NOISE, TUNING, schedule=tmp_path / "learned")
    with pytest.raises(ValueError, match="learned for denoise-25, not for denoise-50"):
        learn.start(prior, Task("denoise", 50), TUNING, schedule=tmp_path / "learned")


# --- the command -------------------------------------------------------------------------------------------

QUICK = ("--iterations", 6, "--patch", 16, "--every", 2)


def test_the_command(prior, tmp_path, capsys):
    words = ("learn", prior, "--sigma", 25, "--out", tmp_path / "a")
    status, out, err = gnc(capsys, *words, *QUICK, "--steps", 3)
    assert status == 0
    assert f"tiny-denoise-25: schedule, card and log are in {tmp_path / 'a'}" in out
    assert [line.split(":")[0] for line in err.splitlines()] == [f"tiny-denoise-25 {k}/6" for k in (2, 4, 6)]
    run(begin(prior), tmp_path / "b", every=2)
    assert same(tmp_path / "a", tmp_path / "b")  # as the library does it
    assert "holds a run already" in gnc(capsys, *words, *QUICK)[2]
    assert gnc(capsys, *words, "--resume", "--steps", 3)[0] == 0
    for option in (("--steps", 4), ("--t0", 0.1), ("--seed", 1), ("--lr", 0.1)):
        status, _, err = gnc(capsys, *words, "--resume", *option)
        assert (status, f"leave out {option[0]}" in err) == (2, True)
    assert "is for denoise-25, not for inpaint-80" in gnc(
        capsys, "learn", prior, "--task", "inpaint", "--resume", "--out", tmp_path / "a"
    )[2]  # fmt: skip
    late = ("learn", prior, *QUICK, "--steps", 3, "--t0", 0.04, "--out", tmp_path / "late")
    assert gnc(capsys, *late)[0] == 0
    assert load_checkpoint(tmp_path / "late").schedule.first_t.tolist() == pytest.approx([0.04, 0.002, 1e-4])
    assert "| start | t_i logarithmic from 0.04 to 0.0001" in (tmp_path / "late" / "README.md").read_text()
    assert gnc(capsys, *late, "--resume")[0] == 0
    tune = ("learn", prior, "--out", tmp_path / "c", "--finetune", tmp_path / "a")
    assert gnc(capsys, *tune, *QUICK)[0] == 0
    assert "--lr-prior above 0" in gnc(capsys, *tune[:-3], tmp_path / "d", *tune[-2:], "--lr-prior", 0)[2]
    FieldsOfExperts.from_pretrained(tmp_path / "c")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--missing", 0.8), "leave the other away"),
        (("--task", "inpaint", "--sigma", 25), "leave the other away"),
        (("--task", "inpaint", "--missing", 80), "fraction"),
        (("--sigma", 0), "0..255"),
        (("--lr-prior", 0.1), "is for --finetune"),
        (("--finetune", "--steps", 3), "leave --steps and --t0 away"),
        (("--finetune", "--t0", 0.1), "leave --steps and --t0 away"),
        (("--t0", 4.0), "t_0 must lie in the range of this prior, 0.0001 to 1, got 4"),
        (("--t0", "nan"), "t_0 must lie in the range"),
        (("--steps", 0), "steps must be an integer >= 1"),
        (("--iterations", 0), "iterations must be a positive integer"),
    ],
)
def test_options_that_make_no_sense(prior, tmp_path, capsys, words, message):
    status, _, err = gnc(capsys, "learn", prior, "--out", tmp_path, *words)
    assert (status, message in err, list(tmp_path.iterdir())) == (2, True, []), err


def test_without_a_learned_schedule_there_is_no_fine_tuning(prior, tmp_path, capsys):
    status, _, err = gnc(capsys, "learn", prior, "--out", tmp_path, "--finetune", "--sigma", 33)
    assert status == 1
    assert "no learned schedule" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint(prior, tmp_path, capsys, monkeypatch, number):
    learning = learn.learning

    def interrupted(*arguments):
        for step in learning(*arguments):
            if step.step == 3:
                signal.raise_signal(number)
            yield step

    monkeypatch.setattr(learn, "learning", interrupted)
    words = ("learn", prior, "--out", tmp_path / "a")
    with pytest.raises(SystemExit) as caught:
        cli.main([str(w) for w in (*words, "--steps", 3, *QUICK)])
    assert caught.value.code == 128 + number
    assert f"stopped by {number.name} after 3 of 6 iterations" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "a").step == 3
    monkeypatch.setattr(learn, "learning", learning)
    assert gnc(capsys, *words, "--resume", "--every", 2)[0] == 0
    run(begin(prior), tmp_path / "b", every=2)
    assert same(tmp_path / "a", tmp_path / "b")


def test_the_bar_shows_quality_and_time_left(prior, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    state = begin(prior)
    training._follow(learn.drive(state, tmp_path, every=3), "tiny", state, {"loss": ".3e"})
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert f"validation={io.rows(tmp_path, learn.Row)[-1].validation:.2f} dB" in shown
