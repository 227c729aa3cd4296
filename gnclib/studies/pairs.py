r"""Schedules from few pairs: what 2 I learned numbers gain over a schedule with a tuned beginning (section 4).

Denoising by R_1 or P_1 in I = 10 steps of eq. (9) at sigma = 25 / 255. N pairs are N random patches of training images
with their noise, drawn once. From the same pairs come

    linear, logarithmic   eta_i = t_i, t_1 the best of a grid by the mean PSNR on the pairs, t_I = t_min
    increments            logarithmic from sigma^2, eta_i = t_i - t_{i+1}: nothing is chosen
    learned               all t_i and eta_i by Adam, from that logarithmic one, on batches of (at most) two of the
                          pairs; ``gnc learn`` does the same with new pairs in each

and each is judged on BSDS68, image k with noise of seed k, nothing clipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gnclib.deep import load_prior
from gnclib.foe import weights_sha256
from gnclib.images import PatchSampler, psnr, refuse_validation
from gnclib.io import Content, Form, Job, Record, Row, Table, rounded
from gnclib.restore import Denoising, Task, gnc_flow, last, learn, linear_schedule, log_schedule, step_sizes
from gnclib.score import LEARN_LAST, LearnConfig, learning_rate

#: the results that come with the package
SHIPPED = Path(__file__).with_name("pairs.json")
PRIORS, TASK, STEPS = ("R1", "P1"), Task("denoise", 25), 10
METHODS = ("linear", "logarithmic", "increments", "learned")
#: numbers of pairs, each with this many draws of them
COUNTS, SEEDS = (1, 2, 4, 8, 16, 64), 2
#: t_1 of linear and logarithmic schedules
FIRST = tuple(round(10 ** (-3 + k / 8), 7) for k in range(17))


class About(Record):
    """The noise level in grey levels of 0..255 and the names of the images that judge."""

    sigma: float
    images: list[str]


class Schedule(Row):
    """A schedule from N pairs of one draw, and its PSNR in dB on each image."""

    by: ClassVar[tuple[str, ...]] = ("prior", "method", "pairs")
    key: ClassVar[tuple[str, ...]] = ("seed",)
    prior: str
    method: str
    pairs: int
    seed: int
    t: list[rounded(8)]
    eta: list[rounded(8)]
    psnr: list[rounded(4)]


FORM = Form("file of schedules", About, {"schedules": Schedule}, SHIPPED)
load = FORM.load


def restored(prior, t: Tensor, eta: Tensor, x: Tensor, seed: int) -> float:
    """PSNR in dB of the flow along (t_i, eta_i) for a clean image (1, 1, H, W) with noise of this seed."""
    measured = TASK.measure(x, torch.Generator().manual_seed(seed))
    return psnr(last(gnc_flow(prior, t, measured, step_sizes=eta, rising=True)).x, x).item()


def schedule(name: str, method: str, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """t_i and eta_i, float64 (I,) each, for a prior by a method of :data:`METHODS` from clean patches x (N, 1, H, W).

    Their noise and the order in which they are shown follow from the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    y = TASK.measure(x, generator).y
    config = LearnConfig(batch=min(2, len(x)), seed=seed)
    prior = load_prior(name)
    t_min = prior.sigma_min**2
    if method == "increments":
        t = log_schedule(TASK.sigma**2, t_min, STEPS)
        return t, step_sizes(t, "increment")
    kind, data_term = linear_schedule if method == "linear" else log_schedule, Denoising(y, TASK.sigma)
    tried = [kind(t, t_min, STEPS) for t in FIRST]
    t = max(tried, key=lambda t: psnr(last(gnc_flow(prior, t, data_term)).x, x).mean().item())
    if method != "learned":
        return t, t
    state = learn.start(name, TASK, config, steps=STEPS, t_first=t[0].item())
    for step in range(config.iterations):
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config.lr, LEARN_LAST * config.lr, step, config.iterations)
        shown = torch.randperm(len(x), generator=generator)[: config.batch]
        loss = (state.schedule(state.model, Denoising(y[shown], TASK.sigma)) - x[shown]).square().mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.schedule.project()
    return state.schedule.t.detach(), state.schedule.eta.detach()


def _judged(name: str, method: str, x: Tensor, seed: int, images: Mapping[str, Tensor]) -> dict[str, Any]:
    t, eta = schedule(name, method, x, seed)
    prior = load_prior(name)
    with torch.no_grad():
        found = [restored(prior, t, eta, image, k) for k, image in enumerate(images.values())]
    return {"t": t.tolist(), "eta": eta.tolist(), "psnr": found}


def compute(
    path: str | Path,
    training: Mapping[str, Tensor],
    images: Mapping[str, Tensor],
    counts: Sequence[int] = COUNTS,
    seeds: int = SEEDS,
    priors: Sequence[str] = PRIORS,
) -> Iterator[Schedule]:
    """Compute what is missing in the file, made where it is missing; yield rows as they are added.

    Pairs come from `training`, names -> (1, 1, H, W), which must not hold images of val (ValueError).
    """
    refuse_validation(training)
    file = Table(path, FORM, About(sigma=TASK.level, images=list(images)))
    settings = {
        name: {"weights": weights_sha256(name), "iterations": LearnConfig().iterations} for name in priors
    }
    for count in counts:
        for name, seed in product(priors, range(seeds)):
            sampler = PatchSampler(training, LearnConfig().patch, torch.Generator().manual_seed(1000 + seed))
            x = sampler.sample(count)
            wanted = METHODS if (count, seed) == (max(counts), 0) else ("linear", "logarithmic", "learned")
            for method in wanted:
                given = {"prior": name, "method": method, "pairs": count, "seed": seed}
                job = Job(given, settings[name], partial(_judged, name, method, x, seed, images))
                yield from file.fill("schedules", [job])


def psnr_by_pairs(content: Content, prior: str, method: str) -> dict[int, np.ndarray]:
    """By number of pairs: PSNR in dB of the method's schedules for this prior, (seeds, images)."""
    rows = [row for row in content.rows["schedules"] if (row.prior, row.method) == (prior, method)]
    found: dict[int, list[list[float]]] = {}
    for row in sorted(rows, key=lambda row: (row.pairs, row.seed)):
        found.setdefault(row.pairs, []).append(row.psnr)
    return {count: np.array(values) for count, values in found.items()}


def gains(content: Content, prior: str, method: str, others: Iterable[str]) -> dict[int, np.ndarray]:
    """By number of pairs: PSNR in dB of a method minus the best of others from as many pairs, (seeds, images)."""
    beside = [psnr_by_pairs(content, prior, other) for other in others]

    def best(count: int, seed: int) -> np.ndarray:
        return max((found[count][seed] for found in beside), key=np.mean)

    own = psnr_by_pairs(content, prior, method)
    return {count: np.array([v - best(count, seed) for seed, v in enumerate(own[count])]) for count in own}
