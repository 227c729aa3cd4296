"""How well a prior solves inverse problems, in the conventions that this project states beside every number.

Problems: y = x + sigma z, or x with a fraction of its pixels missing; image k of a list gets its noise or mask from a
torch.Generator with seed k. Neither the noisy image nor the result is clipped; PSNR and SSIM have data range 1 and are
averaged over the images. The schemes are those of :mod:`gnclib.restore.schemes`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from gnclib.images import metrics
from gnclib.restore import Denoising, Scheme
from gnclib.restore.colour import choose_planes


@dataclass(frozen=True)
class Restoration:
    """How one image went; tuples have a number for each step."""

    start: float  # PSNR in dB of what the solver starts from, the noisy image or that with filled holes
    psnr: tuple[float, ...]
    energy: tuple[float, ...]  # D(x_i) + R(x_i, t_min) in nats per pixel, t_min the prior's smallest t
    ssim: float  # of the result
    seconds: float  # wall clock of the solver alone, without what is measured here
    image: Tensor  # the result, shaped like the image


def restoration(scheme: Scheme, x: Tensor, seed: int, basis: str = "channels") -> Restoration:
    """Measure the clean image x, with noise or mask of this seed, and restore it step by step.

    Noise and masks are drawn on the CPU, so that they are the same everywhere; the rest happens where the scheme is.

    Parameters
    ----------
    scheme : Scheme
    x : (1, 1, H, W), or the channels of a colour image (3, 1, H, W)
        The PSNR of a colour image is that of all channels together, its SSIM their mean.
    seed : of noise or mask, drawn for each channel anew
    basis : {"channels", "opponent"}
        "opponent" restores the planes of :mod:`gnclib.restore.colour` instead of the channels, in denoising.

    Raises as the solvers.
    """
    x, back = x.to(scheme.device), lambda x: x
    data = scheme.task.measure(x, torch.Generator().manual_seed(seed))
    if basis != "channels":
        if not isinstance(data, Denoising):
            raise ValueError(f"{basis} colours are for denoising: take the basis channels")
        planes = choose_planes(data.y.cpu().numpy(), data.sigma, basis)
        data = Denoising(torch.from_numpy(planes.values).to(data.y), data.sigma)
        back = lambda v: torch.from_numpy(planes.join(v.cpu().numpy())).to(v)  # noqa: E731
    t_min = scheme.prior.sigma_min**2
    path, seconds, states, begun = [], 0.0, scheme.states(data), time.perf_counter()
    for state in states:
        if x.is_cuda:  # which returns before it is done
            torch.cuda.synchronize(x.device)
        seconds += time.perf_counter() - begun
        with torch.no_grad():
            energy = (data.energy(state.x) + scheme.prior.energy(state.x, t_min)).sum().item() / x.numel()
        found = back(state.x)
        path.append((psnr(found, x), energy))
        begun = time.perf_counter()
    per_step = tuple(map(tuple, zip(*path, strict=True)))
    return Restoration(
        psnr(back(data.start()), x), *per_step, metrics.ssim(found, x).mean().item(), seconds, found
    )


def psnr(found: Tensor, x: Tensor) -> float:
    """PSNR in dB over all channels (C, 1, H, W) or (C, H, W) together, data range 1, nothing clipped."""
    return metrics.psnr(*(v.flatten(0, -2)[None, None] for v in (found, x))).item()
