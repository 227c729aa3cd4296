"""The command ``gnc doctor``: what a bug report needs, and whether this installation computes what it should."""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from gnclib.cli.options import command, say

PACKAGES = ("gnclib", "torch", "numpy", "scipy", "scikit-image", "pillow", "tifffile", "safetensors")
#: how far, relative to its largest value, the gradient may be from the definition's, which is plain torch in float64
TOLERANCE = 1e-4
#: in grey levels: how far the estimated noise may be from what was added
ESTIMATE = 3.0
#: dB that denoising gains at least on the photograph of the self-test
GAIN = 7.0


@command(
    """
    gnc doctor                             a page for a bug report; exit 1 if something is wrong
    """
)
def doctor():
    """Say what is installed here (versions, processor, compiler, threads, data, weights) and whether it works: a
    self-test of a few seconds. What is wrong is said with its remedy, and the exit status is 1."""
    wrong = [line for part in (_versions, _machine, _weights, _self_test) for line in part()]
    for line in wrong:
        say(f"WRONG: {line}")
    if wrong:
        raise RuntimeError(f"{len(wrong)} things are wrong, see above")
    say("all is well")


def _versions() -> Iterator[str]:
    say(f"Python {platform.python_version()}, {platform.platform()}, in {sys.prefix}")
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield f"{name} is not installed: pip install {name}"
    say(", ".join(f"{name} {version}" for name, version in found.items()))


def _machine() -> Iterator[str]:
    import torch

    from gnclib.foe import experts
    from gnclib.images import data
    from gnclib.spline import native

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    say(
        f"processor: {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {torch.get_num_threads()}"
        f" threads; CUDA: {cuda}"
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        built = native.available() and native.available(Path(experts.__file__).with_suffix(".cpp"))
    off = os.environ.get("GNC_NATIVE") == "0"
    state = "built" if built else "switched off by GNC_NATIVE=0" if off else "not built"
    say(f"compiled engine: {state} (compiler: {os.environ.get('CXX', 'c++')})")
    if not built and not off:
        reason = "; ".join(str(warning.message) for warning in said) or "an earlier attempt failed"
        yield f"{reason}; install a C++ compiler (g++ or clang++), or set GNC_NATIVE=0 to do without"
    where = os.environ.get("GNC_DATA_DIR", "the download cache")
    there = [split for split in data.SPLITS if data.available([split])]
    say(f"BSDS500 in {where}: {', '.join(there) or 'not there, and not needed'}")


def _weights() -> Iterator[str]:
    from gnclib.deep import load_prior
    from gnclib.foe import WEIGHTS
    from gnclib.io import read_json, sha256

    for file in sorted(WEIGHTS.glob("*/model.safetensors")):
        name, digest = file.parent.name, sha256(file)
        say(f"{name}: SHA-256 {digest[:16]}")
        try:
            load_prior(name)
            card = file.with_name("training.json")
            card = read_json(card, "card", dict, 10**7) if card.exists() else {}
        except (OSError, ValueError) as error:
            yield f"{error}; install gnclib again"
            continue
        if card.get("weights_sha256", digest) != digest:
            yield f"the weights of {name} are not those of its card: install gnclib again"


def _self_test() -> Iterator[str]:
    import torch

    from gnclib.deep import load_prior
    from gnclib.images import add_noise, embedded, psnr
    from gnclib.restore import denoise_gnc, estimate_sigma

    started, sigma = time.monotonic(), 25 / 255
    x = embedded()["camera"][..., 100:228, 200:328]
    y = add_noise(x, sigma, 0)
    prior = load_prior("R1")
    fast = prior.grad(y, sigma**2).double()
    exact = prior.double().grad(y.double(), sigma**2)
    error = ((fast - exact).abs().max() / exact.abs().max()).item()
    level = 255 * estimate_sigma(y)
    denoised = torch.from_numpy(denoise_gnc(y[0, 0].numpy(), sigma))[None, None]
    gain = psnr(denoised, x).item() - psnr(y, x).item()
    say(
        f"self-test: gradient within {error:.0e} of the definition, sigma 25 estimated as {level:.1f}, denoising"
        f" gains {gain:.1f} dB, {time.monotonic() - started:.1f} s"
    )
    if not error < TOLERANCE:
        yield "the compiled gradient is wrong: set GNC_NATIVE=0, and report this page"
    if not abs(level - 25) < ESTIMATE or not gain > GAIN:
        yield "an image is not restored as it should be: report this page"
