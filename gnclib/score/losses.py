r"""Loss terms of joint score matching (Kobler & Pock 2023, section 3.2), one value per sample.

The data are y = x + e^tau z with z ~ N(0, I), t = e^(2 tau), tau uniform on [tau_min, tau_max] with density f_T.
Explicit score matching of the joint density f(y, tau) = f(y | tau) f_T(tau), eqs. (4) and (5),

    E  t/2 || grad_1 R + grad_1 log f ||^2  +  lambda/2 | d_tau R + d_tau log f |^2

needs the unknown score. Two classical identities remove it (eqs. 6 and 7):

* image part, *denoising* score matching: E 1/2 || sqrt(t) grad_1 R - z ||^2 + const       (`image_term`)
* smoothing part, *implicit* score matching: E 1/2 (d_tau R)^2 - d_tautau R + const         (`implicit_term`)

The second identity is an integration by parts over tau. For a density f_T that jumps at the ends of its interval the
boundary term does not vanish, and

    E[d_tau R  d_tau log f] = -E[d_tautau R] + (E[d_tau R | tau_max] - E[d_tau R | tau_min]) / (tau_max - tau_min):

`boundary_term` is what the restored loss (7) leaves out; under a density that vanishes at both ends it is zero
(`vanishing_term`). There is another way, not in the paper: since
d_tau log f(y | x, tau) = ||z||^2 - n in closed form, *denoising* score matching works in tau as well and needs neither
a second derivative nor a boundary term (`denoising_term`). All have the explicit loss as their expectation, up
to constants; ``03_score_matching`` compares them where the true score is known. Shapes that do not match, or a range of
tau that is empty, raise ValueError.
"""

from __future__ import annotations

import math

from torch import Tensor


def _same(a: Tensor, b: Tensor, names: str) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{names} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def _length(tau_min: float, tau_max: float) -> float:
    if not tau_min < tau_max:
        raise ValueError(f"tau_min must be below tau_max, got {tau_min} and {tau_max}")
    return tau_max - tau_min


def image_term(grad: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """1/2 || sqrt(t) grad_1 R(y, t) - z ||^2, first term of eqs. (6) and (7): (B,), a sum over the n pixels.

    grad_1 R(y, t) is (B, ...), or (B,) in one dimension, as is z, the noise of y = x + sqrt(t) z; t is (B,).
    """
    _same(grad, z, "grad and z")
    if t.shape != grad.shape[:1]:
        raise ValueError(f"t must have shape {tuple(grad.shape[:1])}, got {tuple(t.shape)}")
    root = t.sqrt().view(-1, *[1] * (grad.dim() - 1))
    return 0.5 * ((root * grad - z) ** 2).reshape(len(z), -1).sum(1)


def implicit_term(first: Tensor, second: Tensor) -> Tensor:
    """1/2 (d_tau R)^2 - d_tautau R, second term of eq. (7) as restored (without lambda): (B,)."""
    _same(first, second, "first and second derivative")
    return 0.5 * first**2 - second


def boundary_term(first_at_max: Tensor, first_at_min: Tensor, tau_min: float, tau_max: float) -> Tensor:
    """(E[d_tau R | tau_max] - E[d_tau R | tau_min]) / (tau_max - tau_min), to be added to `implicit_term`: a scalar.

    Of samples (or expectations) of d_tau R at y ~ f(. | tau) at the two ends the means are taken.
    """
    return (first_at_max.mean() - first_at_min.mean()) / _length(tau_min, tau_max)


def vanishing_term(first: Tensor, second: Tensor, tau: Tensor, tau_min: float, tau_max: float) -> Tensor:
    """The smoothing part of eq. (7) under a prior of tau that vanishes at both ends, by *uniform* samples of tau: (B,).

    With f_T = w/L, w = 2 sin^2(pi u), u = (tau - tau_min)/L, L = tau_max - tau_min, no boundary term arises. Written
    for R + (-log f_T) and weighted by w, so that tau is drawn uniformly as for the image part, it reads

        w (1/2 (d_tau R)^2 - d_tautau R) - w' d_tau R,       w' = 2 pi/L sin(2 pi u):

    the factor (log f_T)', which is infinite at the ends, never occurs on its own. d_tau R, d_tautau R and tau are (B,).
    """
    _same(first, second, "first and second derivative")
    _same(first, tau, "first and tau")
    length = _length(tau_min, tau_max)
    phase = math.pi * (tau - tau_min) / length
    weight = 2 * phase.sin() ** 2
    slope = 2 * math.pi / length * (2 * phase).sin()
    return weight * (0.5 * first**2 - second) - slope * first


def denoising_term(first: Tensor, z: Tensor) -> Tensor:
    """1/2 (d_tau R + ||z||^2 - n)^2: denoising score matching in tau (not in the paper), (B,).

    The regression target n - ||z||^2, z being the noise of y = x + e^tau z, (B, ...) or (B,), has the conditional
    expectation -d_tau log f(y | tau) given (y, tau).
    """
    if first.shape != z.shape[:1]:
        raise ValueError(f"first must have shape {tuple(z.shape[:1])}, got {tuple(first.shape)}")
    n = z[0].numel()
    return 0.5 * (first + (z**2).reshape(len(z), -1).sum(1) - n) ** 2


def explicit_term(first: Tensor, score: Tensor) -> Tensor:
    """1/2 (d_tau R + d_tau log f)^2, second term of eq. (5) in tau, where the true score is known: (B,)."""
    _same(first, score, "first and score")
    return 0.5 * (first + score) ** 2
