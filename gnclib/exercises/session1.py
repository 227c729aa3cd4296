"""Session 1, mixtures, smoothing, convexity: the truths, the random inputs and the usual mistakes."""

from __future__ import annotations

import torch
from torch import Tensor

from gnclib.exercises.engine import Exercise, Law, Mistake
from gnclib.gmm import GaussianMixture

F64 = {"dtype": torch.float64}


def draw_mixture(g: torch.Generator, largest: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and variances (K,) of a random mixture on the line."""
    k = int(torch.randint(2, largest + 1, (1,), generator=g))
    weights = torch.rand(k, generator=g, **F64) + 0.05
    means = 2 * torch.rand(k, generator=g, **F64) - 1
    variances = 0.3 * torch.rand(k, generator=g, **F64) + 0.01
    return weights / weights.sum(), means, variances


def _points(g: torch.Generator) -> tuple[Tensor, float]:
    """Points y (B,) and a noise variance t."""
    n = int(torch.randint(3, 9, (1,), generator=g))
    return 3 * torch.rand(n, generator=g, **F64) - 1.5, float(0.05 + 0.7 * torch.rand(1, generator=g, **F64))


def _mixture_point(g: torch.Generator) -> tuple:
    return (*draw_mixture(g), *_points(g))


def _energy(w, mu, v, y, t):
    return GaussianMixture(w, mu, v).energy(y, t)


def _log_normal(y, mu, v):
    return -0.5 * ((y[:, None] - mu) ** 2 / v + v.log())


ENERGY = Exercise(
    "1.1",
    "the smoothed energy",
    points=2,
    minutes=10,
    solution=_energy,
    draw=_mixture_point,
    mistakes=(
        Mistake(
            lambda w, mu, v, y, t: _energy(w, mu, v, y, 0.0),
            "the noise is missing: smoothing adds its variance t to the variance of every component",
        ),
        Mistake(
            lambda w, mu, v, y, t: _energy(w, mu, v, y, t**2),
            "t is the noise variance already: add t to the variances, not its square",
        ),
        Mistake(
            lambda w, mu, v, y, t: _energy(w, mu, v, y, t**0.5),
            "variances add, standard deviations do not: add t, not its root",
        ),
        Mistake(
            lambda w, mu, v, y, t: -(w.log() + _log_normal(y, mu, v + t)).logsumexp(1),
            "the factor 1/sqrt(2 pi) of the normal density is missing: exp(-F) does not integrate to one",
        ),
    ),
    laws=(
        Law(
            lambda f, *a: bool((f > -10).all()), "the energy is far too low: an energy is MINUS a log-density"
        ),
    ),
)

EXERCISES = (ENERGY,)
