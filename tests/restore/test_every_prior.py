"""Every prior that comes with the package, in all that restores images: each scheme, colour, inpainting, learning."""

import math

import numpy as np
import pytest
import torch

from gnclib import denoise_gnc, inpaint_gnc
from gnclib.foe import WEIGHTS
from gnclib.images import add_noise, data, psnr
from gnclib.restore import Task, learn
from gnclib.score import LearnConfig

SIGMA = 25 / 255
NAMES = sorted(p.parent.name for p in WEIGHTS.glob("*/model.safetensors") if "-" not in p.parent.name)
pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def clean():
    return data.embedded()["camera"][..., 100:148, 120:172]  # (1, 1, 48, 52)


@pytest.fixture(scope="module")
def noisy(clean):
    return add_noise(clean, SIGMA, seed=0)


def quality(found: np.ndarray, clean: torch.Tensor) -> float:
    return psnr(torch.from_numpy(found)[None, None], clean).item()


@pytest.mark.parametrize(("scheme", "steps"), [("mmse", None), ("gnc", 4), ("joint", 30)])
def test_noise_is_removed(name, scheme, steps, clean, noisy):
    y = noisy[0, 0].numpy()
    found = denoise_gnc(y, SIGMA, prior=name, scheme=scheme, steps=steps)
    assert quality(found, clean) > quality(y, clean) + 2.5


def test_colour_is_denoised(name, clean):
    image = np.stack([scale * clean[0, 0].numpy() for scale in (1.0, 0.8, 0.6)], -1)
    y = image + SIGMA * np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
    found = denoise_gnc(y, SIGMA, prior=name, scheme="mmse", channel_axis=-1)
    assert ((found - image) ** 2).mean() < 0.4 * ((y - image) ** 2).mean()


def test_missing_pixels_are_filled_in(name, clean):
    """Better than grey values of the known pixels' mean, and the known pixels stay."""
    image, mask = clean[0, 0].numpy(), np.random.default_rng(0).random(clean.shape[2:]) < 0.5
    found = inpaint_gnc(image, mask, prior=name, steps=6)
    assert np.array_equal(found[~mask], image[~mask])
    mean = np.where(mask, image[~mask].mean(), image)
    assert quality(found, clean) > quality(mean, clean) + 5


def test_a_schedule_is_learned(name, clean):
    """Two steps of it, a few updates: every number gets a gradient, and the loss falls."""
    config = LearnConfig(iterations=4, batch=2, patch=32)
    state = learn.start(name, Task("denoise", 25.0), config, steps=2, t_first=2 * SIGMA**2)
    losses = [step.loss for step in learn.learning(state, [clean])]
    parameters = list(state.schedule.parameters())
    assert all(bool((p.grad != 0).any()) for p in parameters)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < SIGMA**2
