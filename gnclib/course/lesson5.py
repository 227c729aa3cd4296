"""Lesson 5, inverse problems and schedules: the truths, the random inputs and the usual mistakes."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from gnclib.course.engine import Exercise, Law, Mistake
from gnclib.restore.schedules import log_schedule

F64 = {"dtype": torch.float64}


def _number(g: torch.Generator, low: float, high: float) -> float:
    return float(low + (high - low) * torch.rand(1, generator=g, **F64))


def _images(g: torch.Generator, count: int = 2) -> list[Tensor]:
    """``count`` batches (B, 1, H, W) of values around [0, 1], with as many columns as images but other heights."""
    b = int(torch.randint(2, 5, (1,), generator=g))
    shape = (b, 1, b + 2, b)
    return [0.5 + 0.4 * torch.randn(shape, generator=g, **F64) for _ in range(count)]


def _wide(value: float | Tensor) -> Tensor:
    """A number or one value per image, as a factor of images."""
    return torch.as_tensor(value, **F64).reshape(-1, 1, 1, 1)


# --- 5.1 peak signal-to-noise ratio -------------------------------------------------------------------------------


def _psnr_draw(g: torch.Generator) -> tuple[Tensor, Tensor]:
    x, noise = _images(g)
    levels = torch.logspace(-1.5, -0.3, len(x), **F64).reshape(-1, 1, 1, 1)
    return x + levels * noise, x.clamp(0.02, 0.93)


def _psnr(x, ref, *, peak=1.0, log=torch.log10):
    return -10 * log((x - ref).square().mean((1, 2, 3)) / torch.as_tensor(peak) ** 2)


PSNR = Exercise(
    "5.1",
    "peak signal-to-noise ratio",
    points=1,
    minutes=5,
    solution=_psnr,
    draw=_psnr_draw,
    mistakes=(
        Mistake(
            lambda x, ref: _psnr(x.clamp(0, 1), ref),
            "the image was clipped to [0, 1] first, which flatters it: measure what the method returned",
        ),
        Mistake(partial(_psnr, log=torch.log), "decibels are decimal: this is the natural logarithm"),
        Mistake(
            lambda x, ref: -10 * (x - ref).square().sum((1, 2, 3)).log10(),
            "the squared error was summed, not averaged: the value would depend on the size of the image",
        ),
        Mistake(
            lambda x, ref: _psnr(x, ref, peak=ref.amax((1, 2, 3))),
            "the peak is 1, the range of the data, not the brightest pixel of the reference",
        ),
        Mistake(
            lambda x, ref: _psnr(x, ref, peak=x.amax((1, 2, 3))),
            "the peak is 1, the range of the data, not the brightest pixel of x: noise would raise the value",
        ),
        Mistake(
            lambda x, ref: _psnr(x, ref, peak=x.max()),
            "the peak is 1, the range of the data, not the brightest pixel of x: noise would raise the value",
        ),
        Mistake(
            lambda x, ref: -10 * (x - ref).square().log10().mean((1, 2, 3)),
            "first the mean over the pixels, then the logarithm: decibels of single pixels are not averaged",
        ),
        Mistake(partial(_psnr, peak=255.0), "the peak is 1: grey values are in [0, 1] here, not in 0..255"),
        Mistake(
            lambda x, ref: -10 * (x - ref).square().mean().log10().expand(len(x)),
            "the error was averaged over the batch, too: each image has a value of its own",
        ),
        Mistake(
            lambda x, ref: -20 * (x - ref).abs().mean((1, 2, 3)).log10(),
            "this is the mean absolute error: the S in MSE stands for squared",
        ),
    ),
)

# --- 5.2 the proximal map for denoising ---------------------------------------------------------------------------


def _denoising_draw(g: torch.Generator) -> tuple:
    return *_images(g), _number(g, 0.05, 0.9), 10 ** _number(g, -2, 0.5)


def _mean(v, y, a, b):
    return (a * v + b * y) / (a + b)


DENOISING = Exercise(
    "5.2",
    "proximal map for denoising",
    points=2,
    minutes=8,
    solution=lambda v, y, sigma, eta: _mean(v, y, sigma**2, eta),
    draw=_denoising_draw,
    mistakes=(
        Mistake(
            lambda v, y, sigma, eta: _mean(v, y, eta, sigma**2),
            "the weights are exchanged: what should a very small step eta do to v?",
        ),
        Mistake(
            lambda v, y, sigma, eta: _mean(v, y, sigma, eta),
            "sigma is a standard deviation, and the data term contains the variance",
        ),
        Mistake(
            lambda v, y, sigma, eta: _mean(v, y, sigma**2, 2 * eta),
            "the measurement has twice its weight: a factor 1/2 was lost in D or in the distance to v",
        ),
        Mistake(
            lambda v, y, sigma, eta: _mean(v, y, 2 * sigma**2, eta),
            "v has twice its weight: a factor 1/2 was lost in D or in the distance to v",
        ),
        Mistake(
            lambda v, y, sigma, eta: v - eta * (v - y) / sigma**2,
            "this is an explicit gradient step on D: the gradient must be taken at the RESULT of the step",
        ),
        Mistake(
            lambda v, y, sigma, eta: sigma**2 * v + eta * y,
            "the weights do not sum to one: if v = y, the result must be y",
        ),
        Mistake(
            lambda v, y, sigma, eta: _mean(v, y, 1.0, eta),
            "sigma is not used: the noisier the measurement, the less it should count",
        ),
        Mistake(
            lambda v, y, sigma, eta: _mean(v, y, sigma**2, 1 / eta),
            "the step enters inverted: a LONG step should end near the minimiser of D",
        ),
    ),
    laws=(
        Law(
            lambda p, v, y, sigma, eta: bool((torch.minimum(v, y) - 1e-9 <= p).all()),
            "the result leaves the interval between v and y, which no proximal map of this D does",
        ),
    ),
    factors=lambda v, y, sigma, eta: {"sigma^2": sigma**2, "eta": eta, "sigma^2 + eta": sigma**2 + eta},
)

# --- 5.3 the proximal map with missing pixels ---------------------------------------------------------------------


def _mask_draw(g: torch.Generator) -> tuple:
    v, y = _images(g)
    mask = torch.rand(v.shape, generator=g) < 0.4
    sigma = _number(g, 0.1, 0.9) * float(torch.rand(1, generator=g) < 0.6)  # 0 at times: exact pixels
    return v, y, mask, sigma, 10 ** _number(g, -1.5, 0.5)


def _masked(v, y, mask, sigma, eta):
    return torch.where(mask, _mean(v, y, sigma**2, eta), v)


MASKED = Exercise(
    "5.3",
    "proximal map with missing pixels",
    points=2,
    minutes=8,
    solution=_masked,
    draw=_mask_draw,
    mistakes=(
        Mistake(
            lambda v, y, mask, sigma, eta: _masked(v, y, ~mask, sigma, eta),
            "the mask is the wrong way round: True marks the pixels that were measured",
        ),
        Mistake(
            lambda v, y, mask, sigma, eta: torch.where(mask, y, v),
            "known pixels are taken over as they are, which is right for sigma = 0 only: these carry noise",
        ),
        Mistake(
            lambda v, y, mask, sigma, eta: _mean(v, y, sigma**2, eta),
            "the mask is not used: a missing pixel of y is not a measurement",
        ),
        Mistake(
            lambda v, y, mask, sigma, eta: _mean(v, mask * y, sigma**2, eta),
            "missing pixels are drawn towards zero, as if black had been measured there",
        ),
        Mistake(
            lambda v, y, mask, sigma, eta: torch.where(mask, _mean(v, y, sigma**2, eta), 0.5),
            "missing pixels were put to mid grey, which is how to START: the prox leaves there what the prior did",
        ),
        Mistake(
            lambda v, y, mask, sigma, eta: mask * _mean(v, y, sigma**2, eta),
            "missing pixels have become zero: where there is no data term, which x is closest to v?",
        ),
        Mistake(
            lambda v, y, mask, sigma, eta: torch.where(mask, _mean(v, y, eta, sigma**2), v),
            "the weights of v and y are exchanged: for sigma = 0 the known pixels must come out as measured",
        ),
        Mistake(
            lambda v, y, mask, sigma, eta: torch.where(mask, _mean(v, y, sigma, eta), v),
            "sigma is a standard deviation, and the data term contains the variance",
        ),
        Mistake(
            lambda v, y, mask, sigma, eta: _masked(v, y, mask, sigma, eta) if sigma else y,
            "right for sigma > 0; for sigma = 0 the missing pixels, where y holds anything, were taken over, too",
        ),
    ),
    laws=(
        Law(
            lambda p, v, y, mask, sigma, eta: torch.equal(p[~mask], v[~mask]),
            "missing pixels must come out as they went in: there the data term is zero",
        ),
        Law(
            lambda p, v, y, mask, sigma, eta: sigma > 0 or torch.allclose(p[mask], y[mask]),
            "for sigma = 0 the known pixels must come out exactly as measured",
        ),
        Law(
            lambda p, v, y, mask, sigma, eta: (
                sigma == 0 or torch.allclose(p, _masked(v, y, mask, sigma, eta), atol=1e-8)
            ),
            "right for sigma = 0, wrong for sigma > 0: there the known pixels end between v and y, as in exercise 5.2",
        ),
    ),
)

# --- 5.4 the GNC flow with a data term ----------------------------------------------------------------------------


class Wells:
    """A smooth random energy of images with its gradient and its derivative in tau, and a data term beside it."""

    def __init__(self, g: torch.Generator):
        self.s2, self.b, self.c = _number(g, 0.02, 0.15), _number(g, -1.0, 1.0), _number(g, -1.5, 0.5)
        self.sigma2, (self.y, self.start) = _number(g, 0.02, 0.4), _images(g)

    def grad(self, x: Tensor, t: float | Tensor) -> Tensor:
        return (x - 0.5) / (self.s2 + _wide(t)) + self.b * torch.sin(5 * x)

    def dtau(self, x: Tensor, t: float | Tensor) -> Tensor:
        v = self.s2 + _wide(t)
        return (_wide(t) * (1 / v - (x - 0.5).square() / v**2) + self.c).sum((1, 2, 3))

    def prox(self, v: Tensor, step: float | Tensor) -> Tensor:
        return _mean(v, self.y, self.sigma2, _wide(step))


def _flow_draw(g: torch.Generator) -> tuple:
    wells, steps = Wells(g), int(torch.randint(3, 7, (1,), generator=g))
    t = log_schedule(_number(g, 0.2, 0.6), 0.01, steps)
    return wells.grad, wells.prox, t, t * (0.3 + 0.6 * torch.rand(steps, generator=g, **F64)), wells.start


def _flow(grad, prox, t, eta, x0, *, gradient="here", order="gradient first", prox_step=None, sign=1.0):
    x = x0
    for ti, step, prox_eta in zip(
        t.tolist(), eta.tolist(), (eta if prox_step is None else prox_step), strict=True
    ):
        if order == "gradient first":
            x = prox(x - sign * step * grad(x if gradient == "here" else x0, ti), prox_eta)
        elif order == "prox first":
            x = prox(x, prox_eta)
            x = x - step * grad(x, ti)
        else:
            x = x - step * grad(x, ti)
    return prox(x, prox_eta) if order == "prox last" else x


FLOW = Exercise(
    "5.4",
    "GNC flow with a data term",
    points=2,
    minutes=10,
    solution=_flow,
    draw=_flow_draw,
    mistakes=(
        Mistake(
            lambda grad, prox, t, eta, x0: _flow(grad, prox, t, t, x0),
            "the steps have the length t_i, eta_i is not used: t_i says how smooth, eta_i how far",
        ),
        Mistake(
            lambda grad, prox, t, eta, x0: _flow(grad, prox, t, eta, x0, prox_step=t),
            "gradient and prox are two halves of ONE step: both have the length eta_i",
        ),
        Mistake(
            lambda grad, prox, t, eta, x0: _flow(grad, prox, eta, eta, x0),
            "the gradient is taken at the smoothing eta_i: eta_i is the length of the step",
        ),
        Mistake(partial(_flow, sign=-1.0), "the flow climbs: an energy goes down AGAINST its gradient"),
        Mistake(
            partial(_flow, order="prox first"),
            "the data come first and the prior last: eq. (9) does it in the other order",
        ),
        Mistake(partial(_flow, order="no prox"), "the data term is missing: this is the flow of Algorithm 1"),
        Mistake(
            partial(_flow, order="prox last"), "the prox is used once, at the end: it belongs into every step"
        ),
        Mistake(
            partial(_flow, gradient="at the start"),
            "the gradient is always taken at x_0: it belongs to the current x",
        ),
        Mistake(
            lambda grad, prox, t, eta, x0: _flow(grad, prox, t[:-1], eta[:-1], x0), "the last step is missing"
        ),
        Mistake(
            lambda grad, prox, t, eta, x0: _flow(grad, prox, t[1:], eta[1:], x0),
            "the first entry of the schedule is never used: Python counts from 0",
        ),
        Mistake(
            lambda grad, prox, t, eta, x0: _flow(grad, prox, t[-1:], eta[-1:], x0),
            "every step sets out from x_0, so that only the last one counts: it must start where the one before ended",
        ),
        Mistake(
            lambda grad, prox, t, eta, x0: _flow(grad, prox, t[:1], eta[:1], x0),
            "only one step is taken: is the `return` inside the loop, or x never updated?",
        ),
        Mistake(
            lambda grad, prox, t, eta, x0: _flow(grad, prox, t.flip(0), eta.flip(0), x0),
            "the schedule runs backwards: from strong smoothing to weak",
        ),
    ),
)

# --- 5.5 a schedule and its clock ---------------------------------------------------------------------------------


def _schedule_draw(g: torch.Generator) -> tuple[float, float, int]:
    """One step at times, though not in the first round."""
    last = 10 ** _number(g, -4, -2)
    steps = (6, 1, 3, 9, 12, 2)[int(torch.randint(0, 6, (1,), generator=g))]
    return last * 10 ** _number(g, 0.7, 3), last, steps


def _increments(t: Tensor) -> tuple[Tensor, Tensor]:
    return t, t - torch.cat([t[1:], t.new_zeros(1)])


SCHEDULE = Exercise(
    "5.5",
    "a logarithmic schedule and its clock",
    points=2,
    minutes=10,
    solution=lambda first, last, steps: _increments(log_schedule(first, last, steps)),
    draw=_schedule_draw,
    mistakes=(
        Mistake(
            lambda first, last, steps: _increments(torch.linspace(first, last, steps, **F64)),
            "this schedule is linear: it is log t that shall have equal steps",
        ),
        Mistake(
            lambda first, last, steps: _increments(torch.linspace(first**0.5, last**0.5, steps, **F64) ** 2),
            "this schedule has equal steps in sigma: it is log t that shall have equal steps",
        ),
        Mistake(
            lambda first, last, steps: _increments(
                first * (last / first) ** (torch.arange(steps, **F64) / steps)
            ),
            "the schedule stops one step before t_last: I numbers have I - 1 gaps",
        ),
        Mistake(
            lambda first, last, steps: (log_schedule(first, last, steps),) * 2,
            "the t_i are right, but eta_i = t_i is the paper's rule: here a step is as long as t falls",
        ),
        Mistake(
            lambda first, last, steps: (
                log_schedule(first, last, steps),
                -_increments(log_schedule(first, last, steps))[1],
            ),
            "the t_i are right, the steps have the wrong sign: t falls, and lengths are positive",
        ),
    ),
    laws=(
        Law(
            lambda r, first, last, steps: bool((r[0].diff() <= 0).all()),
            "the schedule rises: graduated non-convexity goes from strong smoothing to weak",
        ),
        Law(
            lambda r, first, last, steps: torch.allclose(r[0], log_schedule(first, last, steps)),
            "the t_i are not yet right: they start at t_first, end at t_last and have equal RATIOS",
        ),
        Law(
            lambda r, first, last, steps: bool((r[1] > 0).all()),
            "the t_i are right, but some step is zero or negative: after t_I comes t = 0, the last step is full",
        ),
        Law(
            lambda r, first, last, steps: abs(float(r[1].sum()) / first - 1) < 1e-5,
            "the t_i are right, but the steps do not sum to t_1: which t comes after step i, and after step I?",
        ),
    ),
)

# --- 5.6 one step of Algorithm 2 ----------------------------------------------------------------------------------


def _joint_draw(g: torch.Generator) -> tuple:
    wells = Wells(g)
    t_min, t_max = 0.02, 0.3
    t = t_min * (t_max / t_min) ** torch.rand(len(wells.start), generator=g, **F64)
    return wells.grad, wells.dtau, wells.prox, wells.start, t, t_min, t_max


def _image_step(grad, prox, x, t, at=None):
    return prox(x - _wide(t) * grad(x, t if at is None else at), t)


def _joint(
    grad, dtau, prox, x, t, t_min, t_max, *, at="new", n=None, ends=None, sign=1.0, log=2.0, shape=None
):
    wide = t.reshape((-1, 1, 1, 1) if shape is None else shape)
    new = prox(x - wide * grad(x, t), t if shape is None else wide.expand(len(t)))
    n = 2 * x[0].numel() if n is None else n
    tau = t.log() / log - sign * dtau(new if at == "new" else x, t) / n
    low, high = ends or (t_min, t_max)
    return new, (log * tau).exp().clamp(low, high)


def _tau_first(grad, dtau, prox, x, t, t_min, t_max):
    t = _joint(grad, dtau, prox, x, t, t_min, t_max, at="old")[1]
    return _image_step(grad, prox, x, t), t


def _smoothing_tau(grad, dtau, prox, x, t, t_min, t_max, image=True):
    """The functions are asked at tau instead of t; with image = False only the second one."""
    tau = 0.5 * t.log()
    new = _image_step(grad, prox, x, t, tau if image else t)
    return new, (2 * (tau - dtau(new, tau) / (2 * x[0].numel()))).exp().clamp(t_min, t_max)


JOINT = Exercise(
    "5.6",
    "one step of Algorithm 2",
    points=3,
    minutes=15,
    solution=_joint,
    draw=_joint_draw,
    mistakes=(
        Mistake(
            partial(_joint, at="old"),
            "the derivative in tau is taken at the old image: the two steps alternate, the second sees the first",
        ),
        Mistake(
            partial(_joint, ends=(0.0, math.inf)),
            "t leaves the interval [t_min, t_max]: the step is a PROJECTED one, clipped AFTER it was made",
        ),
        Mistake(
            lambda *a: _joint(*a, ends=(a[5] ** 2, a[6] ** 2)),
            "tau was clipped to log t_min and log t_max: its ends need the 1/2, too",
        ),
        Mistake(_tau_first, "t moved before the image: the image has the first turn, with the old t"),
        Mistake(_smoothing_tau, "grad and dtau want the variance t, not tau"),
        Mistake(partial(_smoothing_tau, image=False), "dtau(x, t) wants the variance t, not tau"),
        Mistake(
            lambda *a: _joint(*a, n=a[3][0].numel()),
            "the step in tau is twice as long as Newton's: see the second derivative of the Gaussian's energy",
        ),
        Mistake(
            lambda *a: _joint(*a, n=2 * a[3].numel()),
            "n counts the pixels of ONE image: this step depends on the size of the batch",
        ),
        Mistake(
            partial(_joint, n=1.0),
            "the step in tau is not preconditioned: R is a sum over pixels, and so is its derivative",
        ),
        Mistake(
            partial(_joint, n=2.0),
            "the step in tau is not preconditioned: R is a sum over pixels, and so is its derivative",
        ),
        Mistake(partial(_joint, sign=-1.0), "the step in tau climbs: it must go AGAINST the derivative"),
        Mistake(
            partial(_joint, log=1.0),
            "this step was made in log t, which is 2 tau: go from t to tau = 0.5 log t, step, and come back",
        ),
        Mistake(
            lambda grad, dtau, prox, x, t, t_min, t_max: (
                _joint(grad, dtau, prox, x, t, t_min, t_max)[0],
                (t - dtau(_joint(grad, dtau, prox, x, t, t_min, t_max)[0], t) / (2 * x[0].numel())).clamp(
                    t_min, t_max
                ),
            ),
            "t itself was stepped with the derivative in tau: go from t to tau = 0.5 log t, step, and come back",
        ),
        Mistake(
            partial(_joint, shape=(-1,)),
            "t (B,) was broadcast along the columns of the images: give it the shape (B, 1, 1, 1)",
        ),
    ),
    laws=(
        Law(
            lambda r, grad, dtau, prox, x, t, t_min, t_max: (
                not torch.allclose(r[0], _image_step(grad, prox, x, t, 0.5 * t.log()))
            ),
            "grad(x, t) wants the variance t, not tau",
        ),
        Law(
            lambda r, grad, dtau, prox, x, t, t_min, t_max: (
                not torch.allclose(r[0], x - _wide(t) * grad(x, t))
            ),
            "the image has not met its data: after the gradient step comes the prox",
        ),
        Law(
            lambda r, *a: torch.allclose(r[0], _joint(*a)[0]),
            "the new image is not yet right: it is one step of eq. (9) with eta = t, image by image",
        ),
        Law(
            lambda r, *a: bool(((r[1] >= a[5] - 1e-12) & (r[1] <= a[6] + 1e-12)).all()),
            "t leaves the interval [t_min, t_max]: was tau returned, or compared with the ends for t?",
        ),
        Law(
            lambda r, *a: torch.allclose(r[1], _joint(*a)[1]),
            "the new image is right, the new t is not: check n, the 1/2 of tau and the ends of its interval",
        ),
    ),
)

EXERCISES = (PSNR, DENOISING, MASKED, FLOW, SCHEDULE, JOINT)
