"""Camera shake and Fourier sampling: ``python benchmarks/inverse.py``, resumable; ``table`` prints what is stored.

Two inverse problems that papers on image priors share, both with noise of sigma 0.01:

* *shake*: the eight blur kernels that Levin et al. (CVPR 2009) measured, periodic borders; kernel k mod 8 for image k;
* *Fourier*: a quarter of the columns of the Fourier transform, 8 % of all around the lowest frequency, the others
  random, as in magnetic resonance imaging (of real images, which is simpler than a scanner's).

The images are the middle of four photographs that scikit-image ships, each four times. Methods, and how they are tuned
on training images of BSDS500, are those of :mod:`gnclib.studies.problems`. The kernels are not part of this project:
``--kernels`` names the file Levin09.mat of github.com/cszn/DPIR, which is fetched where it is not given, and read by
``h5py``.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor

from gnclib.images import embedded, middle
from gnclib.io import Content, markdown, sha256
from gnclib.restore import PeriodicBlur, SampledFourier
from gnclib.studies import problems
from gnclib.studies.comparison import Quality
from gnclib.studies.problems import Problem

STORED = Path(__file__).with_name("inverse.json")
PHOTOGRAPHS, TIMES, SIDE = ("camera", "astronaut", "coffee", "chelsea"), 4, 128
SET = f"scikit-image: {', '.join(PHOTOGRAPHS)}, the middle {SIDE} x {SIDE} pixels, each {TIMES} times"
METHODS = ("least squares", "TV", "R1 fixed", "R1 gnc", "R3 gnc")
URL = (
    "https://raw.githubusercontent.com/cszn/DPIR/15bca3fcc1f3cc51a1f99ccf027691e278c19354/kernels/Levin09.mat"
)
HASH = "377ce2fa5c95784cf454eb1c6e286038dc2ace76fb94a15ba6383a8f7b48aa1d"


@cache
def kernels(file: Path | None) -> tuple[np.ndarray, ...]:
    """The eight kernels of the file, each (k, k) with sum 1; fetched for None. ValueError if it is another file."""
    import h5py

    file = file or Path(pooch.retrieve(URL, known_hash=HASH))
    if sha256(file) != HASH:
        raise ValueError(f"{file} is not the file that the results were made with (its SHA-256 differs)")
    with h5py.File(file) as stored:
        return tuple(stored[at][()].T for at in stored["kernels"][()].ravel())


def _shaken(file: Path | None, size: tuple[int, int], generator: torch.Generator) -> PeriodicBlur:
    known = kernels(file)
    return PeriodicBlur(known[generator.initial_seed() % len(known)], size)


def tasks(file: Path | None = None) -> dict[str, Problem]:
    """The problems; the kernels are read when the first image is measured."""
    return {
        "shake": Problem("shake", "camera shake", partial(_shaken, file), 0.01),
        "fourier": Problem("fourier", "Fourier, 4 x", lambda size, g: SampledFourier(size, 4, g), 0.01),
    }


def images() -> dict[str, Tensor]:
    """Name -> (1, 1, SIDE, SIDE)."""
    photographs = embedded()
    return {f"{n} {k + 1}": middle(photographs[n], SIDE) for n in PHOTOGRAPHS for k in range(TIMES)}


def table(content: Content) -> str:
    """Mean PSNR in dB (SSIM) as markdown, and how many gradients of an energy one image takes."""
    found: dict[str, dict[str, list[Quality]]] = {}
    for row in content.rows["results"]:
        found.setdefault(row.method, {}).setdefault(row.task, []).append(row)
    titles, lines = {name: task.title for name, task in tasks().items()}, []
    for name in (name for name in METHODS if name in found):
        of = [found[name].get(task, []) for task in titles]
        cells = [
            f"{np.mean([r.psnr for r in rows]):.2f} ({np.mean([r.ssim for r in rows]):.3f})" if rows else "-"
            for rows in of
        ]
        lines.append([name, str(next(r for rows in of for r in rows).evaluations or "-"), *cells])
    return markdown(["method", "gradients", *titles.values()], lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--kernels", type=Path, help="Levin09.mat (default: fetched)")
    parser.add_argument("--only", action="append", choices=METHODS, help="repeated: these methods")
    parser.add_argument("--task", action="append", choices=tuple(tasks()), help="repeated: these problems")
    parser.add_argument("--out", type=Path, default=STORED)
    given = parser.parse_args(words)
    if given.what == "run":
        torch.set_num_threads(1)
        among = tasks(given.kernels)
        for row in problems.restore(given.out, images(), SET, given.task or (), given.only or METHODS, among):
            print(row, flush=True)
    print(table(problems.FORM.load(given.out)))


if __name__ == "__main__":
    main()
