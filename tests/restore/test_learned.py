"""Learned schedules: finite differences, closed forms for quadratic energies, and files that are no schedules."""

import hashlib
import json
import math

import pytest
import torch

from gnclib.deep import load_prior
from gnclib.foe import WEIGHTS, FieldsOfExperts, FoEConfig, hub
from gnclib.images import data
from gnclib.images.metrics import psnr
from gnclib.restore.flow import gnc_flow, last
from gnclib.restore.learned import ETA_RANGE, LearnedSchedule, Task, weights_sha256
from gnclib.restore.operators import Denoising, Inpainting
from gnclib.restore.tiles import Tiled
from gnclib.studies import comparison

RANGE = (1e-4, 1.0)
NOISE, HOLES = Task("denoise", 25), Task("inpaint", 0.8)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prior(layers=1):
    """A small energy in float64 with nothing symmetric or quadratic about it."""
    config = FoEConfig(layers=layers, features=4, kernel_size=3, nodes_x=21, nodes_tau=7)
    model = FieldsOfExperts(config, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for k, w in enumerate(model.weights):
            w += 0.1 * (draw(*w.shape, seed=k) - 0.5)
    return model


def schedule(t=(0.3, 0.02, 0.05), eta=(0.02, 0.01, 0.03), task=NOISE, **origin):
    return LearnedSchedule(t, eta, t_range=RANGE, task=task, **origin)


def measurement(task, count=2, side=9):
    x = draw(count, 1, side, side, seed=3)
    return x, task.measure(x, torch.Generator().manual_seed(4))


class Quadratic:
    """R(x) = a/2 ||x||^2, whatever t."""

    def __init__(self, a):
        self.a = a

    def grad(self, y, t):
        return self.a * y


# --- the unrolled flow -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [NOISE, HOLES], ids=str)
@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_in_t_and_eta_by_finite_differences(layers, task):
    """Central differences of the squared error in log t_i and log eta_i, in float64."""
    model, (x, measured) = prior(layers), measurement(task)
    s = schedule(task=task)

    def loss():
        return (s(model, measured) - x).square().mean()

    loss().backward()
    h = 1e-5
    for p, rate in ((s.shift_tau, "t"), (s.shift_log_eta, "eta")):
        for i in range(len(s)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    p[i] += sign * h
                    values.append(loss().item())
                    p[i] -= sign * h
            by_differences = (values[0] - values[1]) / (2 * h)
            assert abs(by_differences) > 1e-7, f"{rate}_{i} has no influence: nothing is tested"
            assert p.grad[i].item() == pytest.approx(by_differences, rel=1e-5)


def test_the_gradient_reaches_the_prior():
    """By finite differences along a random direction of all kernels and potentials."""
    model, (x, measured) = prior(2), measurement(NOISE)
    s, trained = schedule(), [*model.kernels, *model.weights]
    direction = [draw(*p.shape, seed=k) - 0.5 for k, p in enumerate(trained)]

    def loss():
        return (s(model, measured) - x).square().mean()

    loss().backward()
    slope = sum((p.grad * d).sum() for p, d in zip(trained, direction, strict=True)).item()
    h, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(trained, direction, strict=True):
                p += sign * h * d
            values.append(loss().item())
            for p, d in zip(trained, direction, strict=True):
                p -= sign * h * d
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize(("task", "x_0"), [(NOISE, "start"), (HOLES, "start"), (HOLES, "guess")], ids=str)
def test_forward_and_states_are_equation_9(task, x_0):
    model, (_, measured) = prior(), measurement(task)
    s = schedule(task=task, x_0=x_0)
    x, y = getattr(measured, x_0)(), measured.y
    for t, eta, state in zip((0.3, 0.02, 0.05), (0.02, 0.01, 0.03), s.states(model, measured), strict=True):
        v = x - eta * model.grad(x, t)
        if task is NOISE:
            x = (task.sigma**2 * v + eta * y) / (task.sigma**2 + eta)
        else:
            x = torch.where(measured.mask, y, v)
        torch.testing.assert_close(state.x, x, rtol=1e-12, atol=1e-12)
        assert state.t == t
        assert not state.x.requires_grad
    torch.testing.assert_close(s(model, measured).detach(), x, rtol=1e-12, atol=1e-12)
    start = draw(*y.shape, seed=9)
    torch.testing.assert_close(s(model, measured, start).detach(), last(s.states(model, measured, start)).x)


def test_states_of_tiles_are_those_of_the_image():
    model = prior(2).float()
    measured = Denoising(draw(1, 1, 40, 50).float(), 0.1)
    s = schedule()
    whole, tiles = (last(s.states(p, measured)).x for p in (model, Tiled(model, 16)))
    torch.testing.assert_close(whole, tiles, rtol=1e-5, atol=1e-5)


def test_without_step_sizes_it_begins_as_the_gnc_flow():
    model, (_, measured) = prior(), measurement(NOISE)
    ts = [0.5, 0.1, 0.01]
    s = LearnedSchedule(ts, t_range=RANGE, task=NOISE)
    torch.testing.assert_close(s(model, measured).detach(), last(gnc_flow(model, ts, measured)).x)


def test_one_learned_step_on_a_quadratic_energy_is_the_wiener_filter():
    r"""With R = a/2 ||x||^2 one step scales y by c(eta) = (s^2 (1 - a eta) + eta) / (s^2 + eta).

    The best factor for given pairs is <x, y> / ||y||^2, hence eta = s^2 (1 - c) / (c + a s^2 - 1); for x ~ N(0, 1/a)
    it tends to 1 / (1 + a s^2), the Wiener filter, which is also the minimiser of D + R, reached with eta = 1/a.
    """
    a, task = 20.0, Task("denoise", 51)
    variance, generator = task.sigma**2, torch.Generator().manual_seed(0)
    x = torch.randn(10, 1, 50, 50, generator=generator, dtype=torch.float64) / math.sqrt(a)
    measured = task.measure(x, generator)
    s = LearnedSchedule([0.01], t_range=RANGE, task=task)
    optimizer = torch.optim.Adam([s.shift_log_eta])
    for k in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - k / 300) ** 2
        optimizer.zero_grad()
        (s(Quadratic(a), measured) - x).square().mean().backward()
        optimizer.step()
        s.project()
    y = measured.y
    c = ((x * y).sum() / y.square().sum()).item()
    assert s.eta.item() == pytest.approx(variance * (1 - c) / (c + a * variance - 1), rel=1e-5)
    # 25,000 samples: the relative standard error of c is below 1 %
    assert c == pytest.approx(1 / (1 + a * variance), rel=0.03)
    result, best = last(s.states(Quadratic(a), measured)).x, y / (1 + a * variance)
    torch.testing.assert_close(result, c * y, rtol=1e-6, atol=1e-9)
    exact = LearnedSchedule([0.01], [1 / a], t_range=RANGE, task=task)
    torch.testing.assert_close(last(exact.states(Quadratic(a), measured)).x, best, rtol=1e-12, atol=1e-12)


# --- constraints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [5.0, 1e3, -5.0, -1e3])
def test_constraints_hold_for_extreme_parameters(far):
    s = schedule()
    with torch.no_grad():
        s.shift_tau.fill_(far)
        s.shift_log_eta.fill_(20 * far)
    end = int(far > 0)
    for _ in range(2):
        assert s.t.tolist() == pytest.approx([RANGE[end]] * 3, rel=1e-12)
        assert s.eta.tolist() == pytest.approx([ETA_RANGE[end]] * 3, rel=1e-12)
        for values, (low, high) in ((s.t, RANGE), (s.eta, ETA_RANGE)):
            assert bool(((values >= low) & (values <= high)).all())
        s.project()
    with torch.no_grad():  # from there a step back is felt at once
        s.shift_tau -= math.copysign(0.1, far)
    assert s.t.tolist() == pytest.approx([RANGE[end] * math.exp(-math.copysign(0.2, far))] * 3, rel=1e-9)


def test_a_schedule_may_begin_at_the_ends_and_leave_them():
    """A sigmoid would be stuck there; here the gradients at both ends are those of finite differences inwards."""
    model, (x, measured) = prior(), measurement(NOISE)
    s = LearnedSchedule([1.0, 1e-4], t_range=RANGE, task=NOISE)
    before = (s(model, measured) - x).square().mean()
    before.backward()
    for i, h in ((0, -1e-6), (1, 1e-6)):
        with torch.no_grad():
            s.shift_tau[i] += h
            after = (s(model, measured) - x).square().mean()
            s.shift_tau[i] -= h
        assert s.shift_tau.grad[i].item() == pytest.approx((after - before).item() / h, rel=1e-3)
        assert s.shift_tau.grad[i] != 0


# --- tasks -------------------------------------------------------------------------------------------------


def test_measurements():
    x = draw(1, 1, 300, 300, seed=5)
    noisy = NOISE.measure(x, torch.Generator().manual_seed(0))
    assert isinstance(noisy, Denoising)
    assert noisy.sigma == NOISE.sigma == 25 / 255
    n, z = x.numel(), (noisy.y - x) / noisy.sigma
    assert abs(z.mean().item()) < 5 / math.sqrt(n)
    assert abs(z.var().item() - 1) < 5 * math.sqrt(2 / n)
    torch.testing.assert_close(noisy.y, data.add_noise(x, 25 / 255, 0))  # the convention of the benchmarks
    holes = HOLES.measure(x, torch.Generator().manual_seed(0))
    assert isinstance(holes, Inpainting)
    assert abs(holes.mask.double().mean().item() - 0.2) < 5 * math.sqrt(0.2 * 0.8 / n)
    assert torch.equal(holes.y, torch.where(holes.mask, x, 0.0))  # what is hidden is not given away
    assert (str(NOISE), str(HOLES), str(Task("denoise", 12.5))) == (
        "denoise-25",
        "inpaint-80",
        "denoise-12.5",
    )


@pytest.mark.parametrize(
    ("kind", "level", "message"),
    [
        ("deblur", 1.0, "denoise, inpaint"),
        ("denoise", 0.0, "0..255"),
        ("denoise", 2551.0, "0..255"),
        ("denoise", math.nan, "0..255"),
        ("inpaint", 0.0, "fraction"),
        ("inpaint", 1.0, "fraction"),
        ("inpaint", 80, "fraction"),
    ],
)
def test_bad_tasks(kind, level, message):
    with pytest.raises(ValueError, match=message):
        Task(kind, level)


@pytest.mark.parametrize(
    ("t", "eta", "t_range", "message"),
    [
        ([], None, RANGE, "one per step"),
        ([[0.1]], None, RANGE, "one per step"),
        (["a"], None, RANGE, "list of numbers"),
        ([2.0], None, RANGE, r"t must lie in \[0.0001, 1\]"),
        ([math.nan], None, RANGE, "t must lie in"),
        ([0.1], [0.1, 0.1], RANGE, "one t and one eta"),
        ([0.1], [-0.1], RANGE, "eta must lie in"),
        ([0.1], [math.inf], RANGE, "eta must lie in"),
        ([0.1], None, (0.0, 1.0), "t_range"),
        ([0.1], None, (1.0, 0.1), "t_range"),
    ],
)
def test_bad_schedules(t, eta, t_range, message):
    with pytest.raises(ValueError, match=message):
        LearnedSchedule(t, eta, t_range=t_range, task=NOISE)


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "x_0"), [(NOISE, "start"), (HOLES, "start"), (HOLES, "guess")], ids=str)
def test_files_keep_everything_to_the_bit(tmp_path, task, x_0):
    s = schedule(
        task=task,
        x_0=x_0,
        prior="R9",
        prior_sha256="0123456789abcdef" * 4,
        provenance={"seed": 3, "loss": 0.1},
    )
    with torch.no_grad():
        s.shift_tau += draw(3, seed=1) - 0.5
        s.shift_log_eta += draw(3, seed=2) - 0.5
    s.save_pretrained(tmp_path / "a")
    again = LearnedSchedule.from_pretrained(tmp_path / "a")
    assert torch.equal(again.t, s.t)
    assert torch.equal(again.eta, s.eta)
    for name in ("task", "x_0", "prior", "prior_sha256", "provenance", "t_range"):
        assert getattr(again, name) == getattr(s, name)
    assert not any(p.requires_grad for p in again.parameters())
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a" / "schedule.json").read_bytes() == (tmp_path / "b" / "schedule.json").read_bytes()


def test_files_that_do_not_name_x_0_begin_at_the_start(tmp_path):
    schedule(task=HOLES, x_0="start").save_pretrained(tmp_path)
    path = tmp_path / "schedule.json"
    path.write_text(without("x_0")(path.read_text()))
    assert LearnedSchedule.from_pretrained(tmp_path).x_0 == "start"


def changed(**values):
    return lambda content: json.dumps(json.loads(content) | values)


def without(name):
    return lambda content: json.dumps({k: v for k, v in json.loads(content).items() if k != name})


BAD = {
    "truncated": (lambda c: c[: len(c) // 2], "no learned schedule"),
    "empty": (lambda c: "", "no learned schedule"),
    "foreign": (lambda c: '{"layers": 1}', "missing or unknown: task"),
    "a list": (lambda c: "[1, 2]", "must be a valid dictionary"),
    "nan": (lambda c: c.replace("0.3,", "NaN,"), "NaN is no number of JSON"),
    "infinity": (lambda c: c.replace("0.3,", "-Infinity,"), "-Infinity is no number"),
    "overflow": (lambda c: c.replace("0.3,", "1e999,"), "1e999 is too large"),
    "endless digits": (lambda c: c.replace("0.3,", "1" * 5000 + ","), "no learned schedule"),
    "large integer": (changed(t=[10**400, 0.1, 0.1]), "more than 64 bits"),
    "twice": (lambda c: c.replace('"t":', '"eta": [1, 1, 1], "t":', 1), "occurs twice"),
    "deep": (lambda c: "[" * 100_000, "no learned schedule"),
    "not text": (lambda c: b"\xff\xfe\x00".decode("latin-1"), "no learned schedule"),
    "huge": (lambda c: c + " " * 1_000_000, "has 1000"),
    "negative eta": (changed(eta=[0.02, -0.01, 0.03]), "eta must lie in"),
    "zero eta": (changed(eta=[0.02, 0.0, 0.03]), "eta must lie in"),
    "t above": (changed(t=[1.1, 0.1, 0.1]), "t must lie in"),
    "t below": (changed(t=[0.0, 0.1, 0.1]), "t must lie in"),
    "lengths": (changed(eta=[0.02, 0.01]), "one t and one eta"),
    "no steps": (changed(t=[], eta=[]), "one per step"),
    "nested": (changed(t=[[0.1], [0.1], [0.1]]), r"t\[0\] must be a valid number"),
    "truth values": (changed(t=[True, True, True]), r"t\[0\] must be a valid number"),
    "words": (changed(t=["0.1", "0.1", "0.1"]), r"t\[0\] must be a valid number"),
    "t as text": (changed(t="0.1"), "t must be a valid list"),
    "range of one": (changed(t_range=[0.1]), "t_range List should have at least 2 items"),
    "range reversed": (changed(t_range=[1.0, 0.0001]), "t_range must be"),
    "task": (changed(task="deblur"), "task must be 'denoise' or 'inpaint', got 'deblur'"),
    "task as list": (changed(task=["denoise"]), "task must be 'denoise' or 'inpaint'"),
    "level": (changed(sigma_255=-3), "sigma is in grey levels"),
    "level as text": (changed(sigma_255="25"), "sigma_255 must be a valid number"),
    "x_0": (changed(x_0="random"), "x_0 must be one of start to denoise, got 'random'"),
    "x_0 of another task": (changed(x_0="guess"), "x_0 must be one of start to denoise"),
    "digest": (changed(prior_sha256="../../etc"), "prior_sha256 String should match pattern"),
    "prior": (changed(prior=None), "prior must be a valid string"),
    "missing name": (without("eta"), "missing or unknown: eta"),
    "no level": (without("sigma_255"), "must be called sigma_255, got none"),
    "other task's level": (changed(missing=0.8), "must be called sigma_255, got missing, sigma_255"),
    "unknown name": (changed(extra=1), "missing or unknown: extra"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path, name):
    spoil, message = BAD[name]
    schedule().save_pretrained(tmp_path)
    path = tmp_path / "schedule.json"
    spoiled = spoil(path.read_text())
    assert spoiled != path.read_text()
    path.write_text(spoiled, encoding="latin-1" if name == "not text" else "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        LearnedSchedule.from_pretrained(tmp_path)
    assert str(path) in str(caught.value)


def test_an_unknown_name_is_told_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "WEIGHTS", tmp_path)
    schedule().save_pretrained(tmp_path / "R9-denoise-25")
    assert len(LearnedSchedule.from_pretrained("R9-denoise-25")) == 3
    with pytest.raises(FileNotFoundError, match="shipped ones are R9-denoise-25"):
        LearnedSchedule.from_pretrained("R9-denoise-26")


def test_other_weights_are_noticed():
    model = prior()
    s = schedule(prior="R9", prior_sha256=weights_sha256(model))
    s.demand_fit(model)
    with torch.no_grad():
        model.weights[0][0, 0, 0] += 1e-6
    with pytest.raises(ValueError, match=r"other weights of the prior R9.*gnc learn"):
        s.demand_fit(model)


def test_the_digest_is_that_of_the_file():
    file = WEIGHTS / "R1" / "model.safetensors"
    assert (
        weights_sha256(FieldsOfExperts.from_pretrained("R1")) == hashlib.sha256(file.read_bytes()).hexdigest()
    )


# --- what is shipped ---------------------------------------------------------------------------------------

SHIPPED = sorted(p.parent.name for p in WEIGHTS.glob("*/schedule.json"))


def test_shipped_schedules():
    tasks = ("denoise-15", "denoise-25", "denoise-50", "inpaint-80")
    assert {f"{prior}-{task}" for prior in ("R1", "R3") for task in tasks} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_schedule_is_for_the_shipped_prior(name):
    s = LearnedSchedule.from_pretrained(name)
    own = (WEIGHTS / name / "config.json").is_file()  # fine-tuned
    model = load_prior(name if own else s.prior)
    s.demand_fit(model)
    assert s.t_range == (model.sigma_min**2, model.sigma_max**2)
    assert name.endswith(str(s.task))
    card = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    assert s.prior_sha256 in card
    assert all(f"{value:.2f} dB" in card for value in s.provenance["validation_psnr"].values())


@pytest.mark.parametrize("name", [n for n in SHIPPED if n.startswith("R1-denoise")])
def test_a_shipped_schedule_beats_one_step(name):
    """On a bundled photograph, of which nothing was learned."""
    s, model = LearnedSchedule.from_pretrained(name), FieldsOfExperts.from_pretrained("R1")
    x = data.embedded()["camera"][..., 100:228, 150:278]
    measured, t = s.task.measure(x, torch.Generator().manual_seed(0)), s.task.sigma**2
    one_step = psnr(measured.y - t * model.grad(measured.y, t), x)
    assert psnr(last(s.states(model, measured)).x, x) > one_step


@pytest.mark.parametrize("name", [n for n in SHIPPED if "inpaint" in n])
def test_a_shipped_schedule_beats_biharmonic_inpainting(name):
    s = LearnedSchedule.from_pretrained(name)
    x = data.embedded()["camera"][..., 100:228, 150:278]
    measured = s.task.measure(x, torch.Generator().manual_seed(0))
    found = last(s.states(load_prior(s.prior), measured)).x
    assert psnr(found, x) > psnr(comparison.biharmonic(measured.y, measured.mask), x) + 0.3
    assert torch.equal(found[measured.mask], x[measured.mask])
