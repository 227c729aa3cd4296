r"""Proximal map of an energy, by gradient descent with a checked step.

    prox_{eta R}(v) = argmin_x F(x),     F(x) = eta R(x, t) + 1/2 ||x - v||^2,     G = eta grad_1 R + (x - v)

Splitting methods (ADMM, Douglas-Rachford, forward-backward with the data term in front) ask a prior for this map. There
is no closed form for a learned energy, so :func:`proximal_point` descends on F from v. The length of each step is
Barzilai and Borwein's, two secant estimates of 1 / curvature in turn, halved until F falls by a share ``DECREASE`` of
what its slope promises. Close to the end F no longer resolves the change, being a sum over all pixels; there a step
counts as good if F stays level to rounding and the slope along the step has not turned steeper than it was (the
approximate Wolfe condition of Hager & Zhang 2005): gradients keep their digits where values lose them.

*Where it stops.* The residual is the root mean square of G over the pixels, in grey values. Where R is convex,
``||x - x*|| <= ||G(x)||``, so the residual bounds the distance to the exact point. Where R is not convex the result is
a stationary point of F below v: F(x) <= F(v) up to rounding, and not always the global minimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gnclib.checks import as_time
from gnclib.restore import Prior, as_count, checked_start, energy_and_grad, wide

#: share of the promised decrease that a step must bring
DECREASE = 1e-4
#: a step is halved at most so many times
HALVINGS = 40
#: steps are never longer than this; 1 is right where R is flat, longer ones serve where it curves downwards
LONGEST = 10.0


@dataclass(frozen=True)
class Proximal:
    """Result of :func:`proximal_point`."""

    x: Tensor  # points, shaped like v
    residual: Tensor  # (B,), root mean square of G over the pixels
    reached: Tensor  # (B,), boolean: residual <= tolerance; false where the gradient is nan
    steps: int  # number of steps taken, the largest within the batch


@torch.no_grad()
def proximal_point(
    prior: Prior,
    v: Tensor,
    t: float | Tensor,
    step: float | Tensor,
    *,
    tolerance: float = 1e-5,
    iterations: int = 300,
) -> Proximal:
    """A stationary point of eta R(x, t) + 1/2 ||x - v||^2, found by descent from v; see the module.

    Every sample has its own steps and stops on its own, so that the result does not depend on the rest of the batch.

    Parameters
    ----------
    v : (B,), (B, d) or (B, 1, H, W); the result is detached from it
    t : float or (B,), > 0, noise variance at which the energy is taken
    step : float or (B,), >= 0
        eta; 0 gives v.
    tolerance : float > 0, of the residual, in grey values
        It is no error if it is not reached: see ``reached``.
    iterations : int >= 1, at most
        Each costs an energy and a gradient, more where steps are halved.

    Raises ValueError: an argument outside of its range.
    """
    v = checked_start(prior, None, v)
    t, eta = as_time(t, len(v), like=v), as_time(step, len(v), like=v)
    if not bool((t > 0).all()):
        raise ValueError("t is the noise variance of the energy and must be > 0")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"the tolerance is a grey value: it must be finite and > 0, got {tolerance}")
    iterations = as_count(iterations)

    def aim(x: Tensor) -> tuple[Tensor, Tensor]:
        """F and its gradient G."""
        value, grad = energy_and_grad(prior, x, t)
        return eta * value + 0.5 * _dot(x - v, x - v), wide(eta, x) * grad + (x - v)

    x, (f, g) = v, aim(v)
    noise = 8 * torch.finfo(x.dtype).eps * f.abs()  # rounding of a sum as large as F
    lowest, pixels = f, x[0].numel()
    length = 1 / (1 + eta / t)  # t Hess R <= 1 for every smoothed energy
    for k in range(iterations + 1):
        residual = (_dot(g, g) / pixels).sqrt()
        moving = residual > tolerance
        if k == iterations or not bool(moving.any()):
            break
        new, f, g_new, length = _step(aim, x, f, g, length * moving, lowest + noise)
        dx, dg = new - x, g_new - g
        x, g, lowest = new, g_new, torch.minimum(lowest, f)
        curvature = _dot(dx, dg)
        secant = _dot(dx, dx) / curvature if k % 2 else curvature / _dot(dg, dg)
        length = torch.where(curvature > 0, secant, 4 * length).nan_to_num(1.0).clamp(1e-12, LONGEST)
    return Proximal(x, residual, residual <= tolerance, k)


def _step(
    aim: Callable, x: Tensor, f: Tensor, g: Tensor, length: Tensor, level: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x - length g with a length, per sample, that is halved until it is good; F and G there; the length."""
    promised = _dot(g, g)
    for _ in range(HALVINGS):
        new = x - wide(length, x) * g
        f_new, g_new = aim(new)
        falls = f_new <= f - DECREASE * length * promised
        level_and_flat = (f_new <= level) & (_dot(g_new, g) >= -(1 - 2 * DECREASE) * promised)
        good = falls | level_and_flat
        if bool(good.all()):
            break
        length = torch.where(good, length, length / 2)
    else:  # not even a tiny step is good: stay
        length = length * good
        new = torch.where(wide(good, x), new, x)
        f_new, g_new = torch.where(good, f_new, f), torch.where(wide(good, x), g_new, g)
    return new, f_new, g_new, length


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> per sample: (B,)."""
    return (a * b).reshape(len(a), -1).sum(1)
