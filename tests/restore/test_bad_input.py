"""Bad input to the solvers of inverse problems, kind by kind: the error says what was wrong and what is allowed."""

import json
import math

import pytest
import torch

from gnclib.foe import FieldsOfExperts, FoEConfig
from gnclib.images.metrics import psnr
from gnclib.restore import schemes
from gnclib.restore.flow import gnc_flow, last, proximal_gradient
from gnclib.restore.joint import joint_descent, palm
from gnclib.restore.learned import LearnedSchedule, Task
from gnclib.restore.operators import Denoising, Inpainting
from gnclib.restore.schedules import linear_schedule, log_schedule

GOOD = torch.full((1, 1, 16, 16), 0.5)


def changed(value):
    x = GOOD.clone()
    x[0, 0, 3, 4] = value
    return x


IMAGES = {
    "nan": (changed(math.nan), "finite"),
    "inf": (changed(math.inf), "finite"),
    "no channel": (GOOD[0], "x\\[None, None\\]"),
    "colour": (GOOD.expand(1, 3, 16, 16), "channel by channel"),
    "empty": (GOOD[:0], "none of them 0"),
    "bytes": ((255 * GOOD).to(torch.uint8), "divide by 255"),
    "0 to 255": (255 * GOOD, "divide by 255"),
    "a list": (GOOD.tolist(), "torch tensor"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind):
    x, message = IMAGES[kind]
    prior = FieldsOfExperts(FoEConfig(features=4, kernel_size=3, nodes_x=31, nodes_tau=5))
    calls = [lambda: Denoising(x, 0.1), lambda: Inpainting(x, torch.ones(16, 16))]
    if kind != "0 to 255":  # only of a measurement the range is known
        calls += [lambda: prior.grad(x, 0.1), lambda: psnr(x, GOOD)]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(16, 15), "does not fit"),
        (torch.ones(2, 1, 16, 16), "does not fit"),
        (torch.full((16, 16), 0.5), "boolean or hold only 0"),
        (torch.full((16, 16), math.nan), "boolean or hold only 0"),
    ],
)
def test_masks(mask, message):
    with pytest.raises(ValueError, match=message):
        Inpainting(GOOD, mask)


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.nan, math.inf])
def test_noise_levels(sigma):
    with pytest.raises(ValueError, match="sigma"):
        Denoising(GOOD, sigma)
    with pytest.raises(ValueError, match="sigma"):
        Task("denoise", 255 * sigma)


@pytest.fixture(scope="module")
def prior():
    return FieldsOfExperts.from_pretrained("R1")


@pytest.mark.parametrize("t_first", [4.0, 1e-6])
def test_t_outside_of_the_trained_range(prior, t_first):
    data = Denoising(GOOD, 0.1)
    with pytest.raises(ValueError, match=r"range \[0.0001, 1\]"):
        last(gnc_flow(prior, [t_first], data))
    with pytest.raises(ValueError, match=r"range \[0.0001, 1\]"):
        last(proximal_gradient(prior, t_first, data, steps=1))
    for solver in (joint_descent, palm):
        with pytest.raises(ValueError, match=r"t must fall|knows t from 0.0001 to 1"):
            solver(prior, t_first, data, steps=1)


@pytest.mark.parametrize("schedule", [[], [0.1, 0.2], [0.1, 0.0], [0.1, -0.1], [math.nan], "fast", None])
def test_schedules(prior, schedule):
    with pytest.raises(ValueError, match="schedule"):
        gnc_flow(prior, schedule, Denoising(GOOD, 0.1))


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "ten"])
def test_numbers_of_steps(prior, steps):
    data = Denoising(GOOD, 0.1)
    for call in (
        lambda: log_schedule(1.0, 1e-4, steps),
        lambda: linear_schedule(1.0, 1e-4, steps),
        lambda: joint_descent(prior, 1.0, data, steps=steps),
        lambda: palm(prior, 1.0, data, steps=steps),
        lambda: proximal_gradient(prior, 0.1, data, steps=steps),
        lambda: schemes.load("gnc", "R1", Task("denoise", 25), steps),
    ):
        with pytest.raises(ValueError, match="steps must be an integer >= 1"):
            call()


def test_unknown_names(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"no prior 'R9': there is no folder .*R9; the shipped ones are C1, C3, G1, M1, M3, P1, P2, P3, R1",
    ):
        FieldsOfExperts.from_pretrained("R9")
    with pytest.raises(FileNotFoundError, match="no learned schedule 'R1-denoise-33'"):
        LearnedSchedule.from_pretrained("R1-denoise-33")
    with pytest.raises(FileNotFoundError, match="no prior"):
        FieldsOfExperts.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "other shapes", "pickle"])
def test_checkpoints(prior, tmp_path, damage):
    prior.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "foreign":
        file.write_bytes(b"\x89PNG\r\n" + bytes(500))
    elif damage == "pickle":
        torch.save(prior.state_dict(), file)
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"features": 24}))
    with pytest.raises(ValueError, match=r"cannot be read|do not fit"):
        FieldsOfExperts.from_pretrained(tmp_path)


def test_a_folder_without_a_schedule(tmp_path):
    (tmp_path / "schedule.json").write_text('{"task": "denoise"')
    with pytest.raises(ValueError, match="is no learned schedule"):
        LearnedSchedule.from_pretrained(tmp_path)
