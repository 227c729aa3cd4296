"""The widget of napari: its manifest, and what it makes of layers, against our function on each frame."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import gnclib
from gnclib.images import data
from gnclib.integrations.napari import denoise

MANIFEST = Path(gnclib.__file__).parent / "integrations" / "napari.yaml"
X = data.embedded()["camera"][0, 0, 100:148, 120:164].numpy()


def layer(values, rgb=False):
    return SimpleNamespace(data=values, rgb=rgb, name="cells", scale=np.ones(values.ndim - rgb))


def noisy(scale, count=2):
    return scale * (X + 0.1 * np.random.default_rng(0).standard_normal((count, *X.shape)))


def test_the_manifest_names_the_widget():
    content = yaml.safe_load(MANIFEST.read_text())
    (command,), (widget,) = content["contributions"]["commands"], content["contributions"]["widgets"]
    module, name = command["python_name"].split(":")
    assert getattr(import_module(module), name) is denoise
    assert (widget["command"], widget["display_name"]) == (command["id"], "Denoise (gnclib)")


def test_the_manifest_is_valid_for_napari():
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_frames_of_a_stack_of_integers(kind):
    top = np.iinfo(kind).max
    frames = noisy(top).clip(0, top).round().astype(kind)
    values, settings, what = denoise(layer(frames), sigma=0.1 * top)
    for frame, found in zip(frames, values, strict=True):
        np.testing.assert_allclose(found / top, gnclib.denoise_gnc(frame, 0.1), atol=1e-5)
    assert (settings["name"], what) == ("cells, denoised", "image")


def test_floats_have_the_range_of_the_layer_and_the_noise_is_estimated():
    frame = 7 + noisy(3000.0, count=1)[0]
    values, _, _ = denoise(layer(frame))
    ends = (frame.min(), frame.max())
    grey = ((frame - ends[0]) / (ends[1] - ends[0])).astype(np.float32)
    np.testing.assert_allclose((values - ends[0]) / (ends[1] - ends[0]), gnclib.denoise_gnc(grey), atol=1e-4)
    error = [np.square(a - 7 - 3000 * X).mean() for a in (values, frame)]
    assert error[0] < error[1] / 3


def test_integers_with_a_sign_over_more_than_half_of_their_range():
    frame = (40000 * noisy(1.0, count=1)[0].clip(0, 1) - 20000).astype(np.int16)
    same = [denoise(layer(frame.astype(kind)), sigma=4000.0)[0] for kind in ("int16", "float64")]
    np.testing.assert_allclose(*same, atol=1)


def test_colours_and_what_is_refused():
    frame = np.moveaxis(noisy(255, 3).clip(0, 255).round().astype(np.uint8), 0, -1)
    values, settings, _ = denoise(layer(frame, rgb=True), sigma=25.5)
    expected = gnclib.denoise_gnc(frame, 0.1, channel_axis=-1)
    np.testing.assert_allclose(values, expected.clip(0, 1), atol=1e-5)
    assert settings["rgb"]
    with pytest.raises(ValueError, match=r"cells goes from 1.0 to 1.0"):
        denoise(layer(np.ones((8, 8))))
