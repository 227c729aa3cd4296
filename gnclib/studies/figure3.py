r"""Figure 3: is the minimal energy attained, and how good is the image, over t_0 and the number of steps I.

Both treatments of the smoothing (Kobler & Pock 2023, section 4) are run from many initial smoothings t_0 with many
numbers of steps, and what they leave is measured with one yardstick,

    E(x) = ( D(x) + R(x, t_min) ) / n     in nats per pixel,     t_min = sigma_min^2 of the prior, n pixels,

and the PSNR. What is compared:

    gnc       the GNC flow (eq. 9) with steps eta_i = t_i and the paper's schedule, linear from t_0 to t_min
    gnc log   the same with a schedule linear in log t: our control for what is due to the schedule alone
    joint     Algorithm 2 from t_0; it does not depend on I, so that one run of max I steps has the iterates of all I

for two problems, *denoise* (y = x + sigma z) and *inpaint* (each pixel known with probability 0.2, no noise).
Neither y nor any result is clipped. The global minimum of E cannot be computed. What stands for it is found by all
runs that are made for an image, among them a long *reference*: a logarithmic schedule of 150 steps through the whole
range of the prior, then proximal gradient steps at t_min until E decreases by less than 1e-6 per step. There are two
readings of "attained", whose tolerances are our choice (the paper's is not known):

    lowest      E is at most ``tolerance`` above the lowest E that any run has found
    reference   E is at most ``tolerance`` above that of the reference, and the image is the reference's: their root
                mean square difference is at most ``distance``

They differ where a learned energy has valleys that are deeper than that of natural images, far from everything it was
trained on: there the lowest E belongs to no image at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gnclib.images.data import add_noise
from gnclib.images.metrics import psnr
from gnclib.io.reading import demand
from gnclib.restore.flow import gnc_flow, last, proximal_gradient
from gnclib.restore.joint import joint_descent
from gnclib.restore.operators import Denoising, Inpainting
from gnclib.restore.schedules import linear_schedule, log_schedule

TASKS = ("denoise", "inpaint")
MINIMA = ("lowest", "reference")
SCHEDULES = {"gnc": linear_schedule, "gnc log": log_schedule}
ALGORITHMS = (*SCHEDULES, "joint")
#: how far above the lowest energy that was found counts as attained, in nats per pixel (our choice)
TOLERANCE = 0.05
#: how far from the reference an image may be, root mean square in grey values (our choice)
DISTANCE = 0.05
#: how far results of two machines may be apart: nats per pixel and dB, see `agree`
ENERGY_AGREES, PSNR_AGREES = 0.001, 0.01
#: pixels that go through the prior at once on a CPU: more do not fit into its caches and take longer
PIXELS_AT_ONCE = 51_200
#: the reference looks at its energy after so many proximal gradient steps
LOOK = 10


@dataclass(frozen=True)
class Settings:
    """What is measured for one image and task; defaults are our choices where the paper's numbers are lost.

    t_firsts: the t_0, rising noise variances. steps: the numbers of steps I, rising.
    sigma: noise level of the denoising problem, grey values in [0, 1]. observed: part of the known pixels.
    crop: side of the square cut from the middle of each image; 0 for whole images.
    reference_schedule, reference_steps, reference_decrease: steps of the reference's schedule (0: no reference), its
        greatest number of proximal gradient steps, and the decrease of E per step, nats per pixel, at which they end.

    Raises ValueError for values outside of their ranges.
    """

    t_firsts: tuple[float, ...] = (3.162e-4, 1e-3, 3.162e-3, 1e-2, 3.162e-2, 0.1, 0.3162, 1.0)
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    sigma: float = 25.5 / 255
    observed: float = 0.2
    crop: int = 160
    reference_schedule: int = 150
    reference_steps: int = 500
    reference_decrease: float = 1e-6

    def __post_init__(self):
        for name, kind in (("t_firsts", "noise variances > 0"), ("steps", "integers >= 1")):
            values = getattr(self, name)
            good = all(v > 0 and (name == "t_firsts" or v == int(v)) for v in values)
            if not values or not good or any(a >= b for a, b in pairwise(values)):
                raise ValueError(f"{name} must be {kind}, strictly rising, at least one, got {values}")
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be > 0 (25.5/255 is the paper's), got {self.sigma}")
        if not 0 < self.observed < 1:
            raise ValueError(f"the part of known pixels must lie between 0 and 1, got {self.observed}")
        for name in ("crop", "reference_schedule", "reference_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")

    @classmethod
    def from_dict(cls, values: dict) -> Settings:
        """The inverse of ``dataclasses.asdict``, also after JSON. Raises ValueError for unknown or missing names."""
        if set(values) != {*asdict(cls())}:
            raise ValueError(f"these are no settings of Figure 3: {', '.join(map(str, values))}")
        lists = {"t_firsts": [float], "steps": [int]}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        demand(values, {name: lists.get(name, type(value)) for name, value in asdict(cls()).items()})
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


# one job -------------------------------------------------------------------------------------------------------------


def centre(x: Tensor, side: int) -> Tensor:
    """The middle side x side pixels of images (B, 1, H, W); the whole images for side 0.

    Raises ValueError if an image is smaller.
    """
    if not side:
        return x
    if min(x.shape[-2:]) < side:
        raise ValueError(f"an image of {x.shape[-2]}x{x.shape[-1]} pixels has no crop of {side}x{side}")
    top, left = ((length - side) // 2 for length in x.shape[-2:])
    return x[..., top : top + side, left : left + side].contiguous()


def problem(task: str, x: Tensor, seed: int, settings: Settings, count: int = 1) -> Denoising | Inpainting:
    """The data term of a task for the clean image x (1, 1, H, W), the same measurement ``count`` times.

    denoise: y = x + sigma z, z in float32 from a generator of this seed. inpaint: the pixels at which torch.rand from a
    generator of this seed is below ``observed`` are known exactly. Raises ValueError for another task.
    """
    if task == "denoise":
        y = x + add_noise(torch.zeros_like(x, dtype=torch.float32), settings.sigma, seed)
        return Denoising(y.expand(count, -1, -1, -1), settings.sigma)
    if task == "inpaint":
        known = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < settings.observed
        return Inpainting(x.expand(count, -1, -1, -1), known.to(x.device))
    raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")


def measure(prior, task: str, x: Tensor, seed: int, settings: Settings | None = None) -> dict:
    """All runs of one image: T values of t_0 times J numbers of steps for each algorithm, and the reference.

    Args:
        prior: with ``energy``, ``grad``, ``dtau`` and ``config``, on the device and in the dtype of x.
        task: "denoise" or "inpaint". x: the clean image (1, 1, H, W) in [0, 1], cut already. seed: of z or the mask.

    Returns:
        JSON data, rounded. "start": [E, PSNR]; "reference": [E, PSNR, proximal gradient steps] or None; and by
        algorithm "energy" (E, nats per pixel), "psnr" (dB) and, where there is a reference, "distance" (root mean
        square difference from its image), each T lists of J numbers; for "joint" also "own", its own energy
        (D(x_i) + R(x_i, t_i)) / n, and the "t" it has found.

    Raises:
        ValueError: an unknown task, or t_0 outside of (t_min, sigma_max^2] of the prior.
    """
    settings = settings or Settings()
    t_min, t_max = prior.config.sigma_min**2, prior.config.sigma_max**2
    if not t_min < settings.t_firsts[0] <= settings.t_firsts[-1] <= t_max * (1 + 1e-6):
        raise ValueError(
            f"t_0 must lie above t_min = {t_min:g} and not above {t_max:g}, the noise variances of this prior, got"
            f" {settings.t_firsts[0]:g} to {settings.t_firsts[-1]:g}"
        )
    data = problem(task, x, seed, settings)
    with torch.no_grad():
        first = _judge(prior, data, data.start(), x)
        result = {"start": [first["energy"].item(), first["psnr"].item()], "reference": None}
        aim = None
        if settings.reference_schedule:
            aim, result["reference"] = _reference(prior, data, x, settings)
        for name in SCHEDULES:
            result[name] = _flows(prior, name, task, x, seed, settings, aim)
        result["joint"] = _joint(prior, data, x, settings, aim)
    return _rounded(result)


def _judge(prior, data, z: Tensor, x: Tensor, aim: Tensor | None = None) -> dict[str, Tensor]:
    """E, PSNR and distance from ``aim`` of images z (B, 1, H, W), each (B,)."""
    energy = data.energy(z) + prior.energy(z, prior.config.sigma_min**2)
    found = {"energy": energy.double() / x.numel(), "psnr": psnr(z, x.expand_as(z))}
    if aim is not None:
        found["distance"] = (z - aim).double().square().mean((1, 2, 3)).sqrt()
    return found


def _reference(prior, data, x: Tensor, settings: Settings) -> tuple[Tensor, list[float]]:
    """The image (1, 1, H, W) of the long run and its [E, PSNR, number of proximal gradient steps]."""
    t_min, t_max = prior.config.sigma_min**2, prior.config.sigma_max**2
    z = last(gnc_flow(prior, log_schedule(t_max, t_min, settings.reference_schedule), data)).x
    found = _judge(prior, data, z, x)
    taken = 0
    while taken < settings.reference_steps:
        z = last(proximal_gradient(prior, t_min, data, z, steps=LOOK)).x
        before, found = found, _judge(prior, data, z, x)
        taken += LOOK
        if (before["energy"] - found["energy"]).item() < LOOK * settings.reference_decrease:
            break
    return z, [found["energy"].item(), found["psnr"].item(), taken]


def _flows(
    prior, name: str, task: str, x: Tensor, seed: int, settings: Settings, aim: Tensor | None
) -> dict[str, list[list[float]]]:
    """The GNC flow with one kind of schedule; several t_0 are one batch with a schedule per sample."""
    t_min = prior.config.sigma_min**2
    rows: dict[str, list] = {}
    for firsts in _parts(settings.t_firsts, x):
        data = problem(task, x, seed, settings, len(firsts))
        columns = []
        for total in settings.steps:
            schedule = torch.stack([SCHEDULES[name](t, t_min, total) for t in firsts], dim=1)  # (I, B)
            columns.append(_judge(prior, data, last(gnc_flow(prior, schedule, data)).x, x, aim))
        for quantity in columns[0]:
            table = torch.stack([column[quantity] for column in columns], dim=1)  # (B, J)
            rows.setdefault(quantity, []).extend(table.tolist())
    return rows


def _parts(t_firsts: tuple[float, ...], x: Tensor) -> Iterator[tuple[float, ...]]:
    """The t_0 that run at the same time."""
    at_once = len(t_firsts) if x.device.type != "cpu" else max(1, PIXELS_AT_ONCE // x.numel())
    for first in range(0, len(t_firsts), at_once):
        yield t_firsts[first : first + at_once]


def _joint(prior, data, x: Tensor, settings: Settings, aim: Tensor | None) -> dict[str, list[list[float]]]:
    """Algorithm 2 from each t_0, looked at after each number of steps."""
    rows: dict[str, list] = {}
    for t_first in settings.t_firsts:
        row: dict[str, list] = {}
        for state in joint_descent(prior, t_first, data, steps=settings.steps[-1]):
            if state.step in settings.steps:
                found = _judge(prior, data, state.x, x, aim)
                found |= {"own": state.energy.double() / x.numel(), "t": state.t}
                for quantity, value in found.items():
                    row.setdefault(quantity, []).append(value.item())
        for quantity, values in row.items():
            rows.setdefault(quantity, []).append(values)
    return rows


def _rounded(result: dict) -> dict:
    """Energies and distances to 1e-4, PSNRs to 1e-3 dB, t to four digits."""
    for pair in filter(None, (result["start"], result["reference"])):
        pair[:2] = round(pair[0], 4), round(pair[1], 3)
    for algorithm in ALGORITHMS:
        for quantity, rows in result[algorithm].items():
            for row in rows:
                if quantity == "t":
                    row[:] = [float(f"{v:.4g}") for v in row]
                else:
                    row[:] = [round(v, 3 if quantity == "psnr" else 4) for v in row]
    return result


# what is made of the jobs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """One algorithm and task over all images; tensors are float64 (T, J), t_0 by number of steps.

    images: how many. rate: part of the images whose minimal energy is attained, in [0, 1]. psnr: mean, dB.
    gap: mean of E minus the minimal energy (that of the reading), nats per pixel.
    rate_error, psnr_error: standard errors of the means over the images (the PSNR of images differs much more than
        the PSNR of algorithms on one image); nan for a single image.
    """

    images: int
    rate: Tensor
    rate_error: Tensor
    psnr: Tensor
    psnr_error: Tensor
    gap: Tensor


def lowest(run: dict) -> float:
    """The minimal energy of a run's image: the lowest E that any algorithm or the reference has found."""
    found = [e for algorithm in ALGORITHMS for row in run[algorithm]["energy"] for e in row]
    return min([*found, run["reference"][0]] if run["reference"] else found)


def aggregate(
    content: dict,
    tolerance: float = TOLERANCE,
    which: str = "bsds68",
    *,
    minimum: str = "lowest",
    distance: float = DISTANCE,
) -> dict[tuple[str, str], Summary]:
    """The content of a result file as Figure 3 shows it: (task, algorithm) -> `Summary`.

    content: as `gnclib.studies.figure3_run.load` returns it. which: the set of images. minimum: the reading of
    "attained",
    "lowest" or "reference" (see the module). tolerance: nats per pixel. distance: grey values, for "reference".
    Raises ValueError for another reading, a tolerance or distance that is not > 0, a set without runs, or runs without
    the reference that is asked for.
    """
    if minimum not in MINIMA:
        raise ValueError(f"the minimum must be one of {', '.join(MINIMA)}, got {minimum!r}")
    for name, value in (("tolerance", tolerance), ("distance", distance)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"the {name} must be finite and > 0, got {value}")
    runs = [run for run in content["runs"] if run["set"] == which]
    if not runs:
        known = sorted({run["set"] for run in content["runs"]})
        raise ValueError(
            f"there are no runs of {which!r}; there are runs of: {', '.join(known) or 'nothing'}"
        )
    if minimum == "reference" and not all(run["reference"] for run in runs):
        raise ValueError("these runs were made without a reference")
    summaries = {}
    for task in TASKS:
        of_task = [run for run in runs if run["task"] == task]
        floor = [lowest(run) if minimum == "lowest" else run["reference"][0] for run in of_task]
        for algorithm in ALGORITHMS if of_task else ():

            def table(name: str, of_task=of_task, algorithm=algorithm) -> Tensor:
                return torch.tensor(
                    [run[algorithm][name] for run in of_task], dtype=torch.float64
                )  # (N, T, J)

            gap = table("energy") - torch.tensor(floor, dtype=torch.float64)[:, None, None]
            there = gap <= tolerance
            if minimum == "reference":
                there &= table("distance") <= distance
            (rate, rate_error), (mean, error) = map(_mean, (there.double(), table("psnr")))
            summaries[task, algorithm] = Summary(len(of_task), rate, rate_error, mean, error, gap.mean(0))
    return summaries


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the images and its standard error, each (T, J)."""
    count = len(values)
    error = values.std(0) / math.sqrt(count) if count > 1 else torch.full_like(values[0], math.nan)
    return values.mean(0), error


@dataclass(frozen=True)
class Agreement:
    """How far a stored and a recomputed result are apart: the largest differences, and of how many cells.

    energy: nats per pixel; psnr: dB; cells: (image, task, algorithm, t_0, I), references included.
    """

    energy: float
    psnr: float
    cells: int

    def __bool__(self) -> bool:
        return self.energy <= ENERGY_AGREES and self.psnr <= PSNR_AGREES


def agree(content: dict, recomputed: dict) -> Agreement:
    """Compare what two results have in common, which may be some of the images, of the t_0 and of the I.

    The result is true if no E differs by more than 0.001 nats per pixel and no PSNR by more than 0.01 dB. That is
    for the rounding of another processor or library: float32 and float64 differ by about a tenth of it.

    Raises:
        ValueError: other weights, another noise level, part of known pixels or crop; or nothing in common.
    """
    ours, theirs = (Settings.from_dict(c["settings"]) for c in (content, recomputed))
    if content["prior"]["weights_sha256"] != recomputed["prior"]["weights_sha256"]:
        raise ValueError("these are results of different weights: they cannot agree")
    for name in ("sigma", "observed", "crop"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"{name} was {getattr(ours, name)} in one and {getattr(theirs, name)} in the other"
            )
    here, there = _cells(content), _cells(recomputed)
    common = here.keys() & there.keys()
    if not common:
        raise ValueError(
            "the two results have no image with the same task, t_0 and number of steps in common"
        )
    energy, quality = (max(abs(here[c][k] - there[c][k]) for c in common) for k in (0, 1))
    return Agreement(energy, quality, len(common))


def _cells(content: dict) -> dict[tuple, tuple[float, float]]:
    """(E, PSNR) by (set, task, image, algorithm, t_0, I), and of references by how they were made."""
    settings = Settings.from_dict(content["settings"])
    long = (settings.reference_schedule, settings.reference_steps, settings.reference_decrease)
    cells = {}
    for run in content["runs"]:
        key = run["set"], run["task"], run["image"]
        if run["reference"]:
            cells[*key, "reference", *long] = tuple(run["reference"][:2])
        for algorithm in ALGORITHMS:
            for i, t in enumerate(settings.t_firsts):
                for j, total in enumerate(settings.steps):
                    values = (run[algorithm][quantity][i][j] for quantity in ("energy", "psnr"))
                    cells[*key, algorithm, t, total] = tuple(values)
    return cells
