r"""Energy and PSNR that both treatments of the smoothing leave on one image, over t_0 and the number of steps I.

Kobler & Pock 2023, section 4, run from many initial smoothings t_0 with many numbers of steps. All results are measured
with

    E(x) = ( D(x) + R(x, t_min) ) / n     in nats per pixel,     t_min = sigma_min^2 of the prior, n pixels,

and the PSNR. What is compared:

    gnc       the GNC flow (eq. 9) with steps eta_i = t_i and the paper's schedule, linear from t_0 to t_min
    gnc log   the same with a schedule linear in log t: our control for what is due to the schedule alone
    joint     Algorithm 2 from t_0 with our preconditioner N = 2 n; it does not depend on I, so that one run of max I
              steps has the iterates of all I
    literal   the same with N = 48 n, channels x pixels, the number of summands read literally

for two problems, *denoise* (y = x + sigma z) and *inpaint* (each pixel known with probability 0.2, no noise). Neither y
nor any result is clipped. The *reference* is one long run: a logarithmic schedule of 150 steps through the whole range
of the prior, then proximal gradient steps at t_min until E decreases by less than 1e-6 per step.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from gnclib.images import psnr
from gnclib.io import settings
from gnclib.restore import (
    Denoising,
    Inpainting,
    Task,
    gnc_flow,
    joint_descent,
    last,
    linear_schedule,
    log_schedule,
    proximal_gradient,
)

TASKS = ("denoise", "inpaint")
SCHEDULES = {"gnc": linear_schedule, "gnc log": log_schedule}
#: the preconditioner of Algorithm 2 per pixel: ours, and "the number of summands of (3)" of 48 channels
SUMMANDS = {"joint": 2, "literal": 48}
ALGORITHMS = (*SCHEDULES, "joint")
#: pixels that go through the prior at once on a CPU: more do not fit into its caches and take longer
PIXELS_AT_ONCE = 51_200
#: the reference looks at its energy after so many proximal gradient steps
LOOK = 10


def _known(values: tuple) -> tuple:
    if not values or len(set(values)) < len(values) or not set(values) <= {*SCHEDULES, *SUMMANDS}:
        raise ValueError(f"must be some of {', '.join((*SCHEDULES, *SUMMANDS))}, each once, got {values}")
    return values


def _rises(values: tuple) -> tuple:
    if not values or any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"must be at least one value, strictly rising, got {values}")
    return values


Count = Annotated[int, Field(ge=0)]
#: a list will do for a tuple, as JSON has no other
Rising = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False), AfterValidator(_rises)]
RisingCounts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False), AfterValidator(_rises)]


@settings
class Settings:
    """What is measured for one image and task; defaults are our choices where the paper's numbers are lost.

    The shipped results have all algorithms but "literal". Raises ValueError: values outside of their ranges.
    """

    t_firsts: Rising = (3.162e-4, 1e-3, 3.162e-3, 1e-2, 3.162e-2, 0.1, 0.3162, 1.0)  # noise variances
    steps: RisingCounts = (1, 2, 4, 8, 16, 32, 64)
    sigma: Annotated[float, Field(gt=0, le=1)] = 25.5 / 255  # of the denoising problem, grey values in [0, 1]
    observed: Annotated[float, Field(gt=0, lt=1)] = 0.2  # part of the known pixels
    crop: Count = 160  # side of the square cut from the middle of each image; 0 for whole images
    algorithms: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_known)] = ALGORITHMS
    reference_schedule: Count = 150  # steps; 0: no reference
    reference_steps: Count = 500  # at most, of proximal gradient
    reference_decrease: float = 1e-6  # of E per step, in nats per pixel, at which they end


def problem(task: str, x: Tensor, seed: int, settings: Settings, count: int = 1) -> Denoising | Inpainting:
    """The data term of a task on the clean image x (1, 1, H, W), `count` times as a batch.

    z or the mask are drawn from a generator of this seed. Raises ValueError for another task.
    """
    level = 255 * settings.sigma if task == "denoise" else 1 - settings.observed
    one = Task(task, level).measure(x, torch.Generator().manual_seed(seed))
    y = one.y.expand(count, -1, -1, -1)
    return Denoising(y, settings.sigma) if task == "denoise" else Inpainting(y, one.mask)


@torch.no_grad()
def measure(prior, task: str, x: Tensor, seed: int, settings: Settings) -> dict:
    """All runs of one image: T values of t_0 times J numbers of steps for each algorithm, and the reference.

    Raises ValueError: an unknown task, or t_0 outside of (t_min, sigma_max^2] of the prior.

    x is the clean image (1, 1, H, W) in [0, 1], cut already; the seed is that of z or the mask.

    Returns
    -------
    dict
        "start": [E, PSNR]; "reference": [E, PSNR, proximal gradient steps] or None; "maps": by algorithm "energy" (E,
        nats per pixel), "psnr" (dB) and, where there is a reference, "distance" (root mean square difference from its
        image), each T lists of J numbers; of joint optimisation also "own", its own energy
        (D(x_i) + R(x_i, t_i)) / n, and the "t" it has found.
        Energies and distances are rounded to 1e-4, PSNRs to 1e-3 dB, t to four digits.
    """
    t_min, t_max = prior.sigma_min**2, prior.sigma_max**2
    if not t_min < settings.t_firsts[0] <= settings.t_firsts[-1] <= t_max * (1 + 1e-6):
        raise ValueError(
            f"t_0 must lie above t_min = {t_min:g} and not above {t_max:g}, the noise variances of this prior, got"
            f" {settings.t_firsts[0]:g} to {settings.t_firsts[-1]:g}"
        )
    term = problem(task, x, seed, settings)
    first = _judge(prior, term, term.start(), x)
    aim = reference = None
    if settings.reference_schedule:
        aim, reference = _reference(prior, term, x, settings)
    maps = {}
    for name in settings.algorithms:
        if name in SCHEDULES:
            maps[name] = _flows(prior, name, task, x, seed, settings, aim)
        else:
            maps[name] = _joint(prior, SUMMANDS[name] * x.numel(), term, x, settings, aim)
    return {
        "start": [_rounded(quantity, first[quantity].item()) for quantity in ("energy", "psnr")],
        "reference": reference,
        "maps": {
            name: {q: [[_rounded(q, v) for v in row] for row in rows] for q, rows in found.items()}
            for name, found in maps.items()
        },
    }


def _rounded(quantity: str, value: float) -> float:
    if quantity == "t":
        return float(f"{value:.4g}")
    return round(value, 3 if quantity == "psnr" else 4)


def _judge(prior, term, z: Tensor, x: Tensor, aim: Tensor | None = None) -> dict[str, Tensor]:
    """E, PSNR and distance from ``aim`` of images z (B, 1, H, W), each (B,)."""
    energy = term.energy(z) + prior.energy(z, prior.sigma_min**2)
    found = {"energy": energy.double() / x.numel(), "psnr": psnr(z, x.expand_as(z))}
    if aim is not None:
        found["distance"] = (z - aim).double().square().mean((1, 2, 3)).sqrt()
    return found


def _reference(prior, term, x: Tensor, settings: Settings) -> tuple[Tensor, list[float]]:
    """The image (1, 1, H, W) of the long run and its [E, PSNR, number of proximal gradient steps]."""
    t_min, t_max = prior.sigma_min**2, prior.sigma_max**2
    z = last(gnc_flow(prior, log_schedule(t_max, t_min, settings.reference_schedule), term)).x
    found = _judge(prior, term, z, x)
    taken = 0
    while taken < settings.reference_steps:
        z = last(proximal_gradient(prior, t_min, term, z, steps=LOOK)).x
        before, found = found, _judge(prior, term, z, x)
        taken += LOOK
        if (before["energy"] - found["energy"]).item() < LOOK * settings.reference_decrease:
            break
    return z, [*(_rounded(quantity, found[quantity].item()) for quantity in ("energy", "psnr")), taken]


def _flows(
    prior, name: str, task: str, x: Tensor, seed: int, settings: Settings, aim: Tensor | None
) -> dict[str, list[list[float]]]:
    """The GNC flow with one kind of schedule; several t_0 are one batch with a schedule per sample."""
    t_min, count = prior.sigma_min**2, len(settings.t_firsts)
    at_once = max(1, PIXELS_AT_ONCE // x.numel()) if x.device.type == "cpu" else count  # t_0 run together
    rows: dict[str, list] = {}
    for k in range(0, count, at_once):
        firsts = settings.t_firsts[k : k + at_once]
        term = problem(task, x, seed, settings, len(firsts))
        columns = []
        for total in settings.steps:
            schedule = torch.stack([SCHEDULES[name](t, t_min, total) for t in firsts], dim=1)  # (I, B)
            columns.append(_judge(prior, term, last(gnc_flow(prior, schedule, term)).x, x, aim))
        for quantity in columns[0]:
            table = torch.stack([column[quantity] for column in columns], dim=1)  # (B, J)
            rows.setdefault(quantity, []).extend(table.tolist())
    return rows


def _joint(
    prior, summands: int, term, x: Tensor, settings: Settings, aim: Tensor | None
) -> dict[str, list[list[float]]]:
    """Algorithm 2 with a preconditioner from each t_0, looked at after each number of steps."""
    rows: dict[str, list[list]] = {}
    for k, t_first in enumerate(settings.t_firsts):
        for state in joint_descent(prior, t_first, term, steps=settings.steps[-1], summands=summands):
            if state.step in settings.steps:
                found = _judge(prior, term, state.x, x, aim)
                found |= {"own": state.energy.double() / x.numel(), "t": state.t}
                for quantity, value in found.items():
                    rows.setdefault(quantity, [[] for _ in settings.t_firsts])[k].append(value.item())
    return rows
