r"""Quartic B-splines: the functions phi(x, tau) of the Fields of Experts.

The centred quartic B-spline beta has support [-5/2, 5/2], is C^3, and its integer translates sum to one.
A function on a uniform grid with nodes ``mu_i`` and spacing ``h`` is

    phi(x) = sum_i a_i beta((x - mu_i) / h),

and with two variables (Kobler & Pock 2023, appendix B)

    phi(x, tau) = sum_ij w_ij beta((x - mu_i) / dx) beta((tau - nu_j) / dtau).

tau is constant per image, so :func:`contract` sums over j first and leaves one-dimensional coefficients per
image; :func:`evaluate` then turns them into one polynomial per interval and evaluates it by Horner's rule.

*Outside of the range* of its grid a spline is continued linearly, with the value and the slope at the end of the
range (our choice; the bare basis would drop to zero and leave the energy with a slope of the wrong sign).

One function, three engines with the same results up to rounding (tests say so), chosen by the tensors:

* :mod:`gnclib.spline.reference`, plain torch: the definition; any device, any floating dtype, any derivative.
* :mod:`gnclib.spline.native`, compiled C++: float32 on CPU.
* :mod:`gnclib.spline.compiled`, torch.compile: float32 on CUDA.

Where an engine cannot be built a warning says so once and the definition takes over; ``GNC_NATIVE=0`` in the
environment allows the definition only. ``benchmarks/engine.py`` measures them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gnclib.spline import compiled as spline_compiled
from gnclib.spline import native as spline_native
from gnclib.spline import reference as spline_reference
from gnclib.spline.reference import ORDER


@dataclass(frozen=True)
class SplineGrid:
    """Uniform nodes of a quartic spline which is complete on the range [low, high].

    ``count`` nodes lie at ``low + (i - 3/2) h`` with ``h = (high - low) / (count - 4)``, so that exactly five basis
    functions overlap at each point of the range and constants (all quartic polynomials in fact) are reproduced. Raises
    ValueError: fewer than five nodes, or an empty or non-finite range.
    """

    count: int
    low: float
    high: float

    def __post_init__(self):
        if int(self.count) != self.count or self.count < ORDER:
            raise ValueError(f"a quartic spline needs an integer count of at least 5 nodes, got {self.count}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the range must be finite with low < high, got [{self.low}, {self.high}]")

    @property
    def intervals(self) -> int:
        """Number of polynomial pieces in the range."""
        return self.count - (ORDER - 1)

    @property
    def spacing(self) -> float:
        return (self.high - self.low) / self.intervals

    def nodes(self) -> Tensor:
        """The node positions mu_i, shape (count,)."""
        return self.low + (torch.arange(self.count, dtype=torch.float64) - 1.5) * self.spacing

    def fit(self, x: Tensor, values: Tensor) -> Tensor:
        """Coefficients (..., count) of the least-squares spline to samples.

        Parameters
        ----------
        x : (P,) float64
            Points in the range, dense enough that each basis function is seen.
        values : (..., P) float64
        """
        basis = quartic_bspline((x[:, None] - self.nodes()) / self.spacing)  # (P, count)
        flat = torch.linalg.lstsq(basis, values.reshape(-1, len(x)).T).solution.T
        return flat.reshape(*values.shape[:-1], self.count)

    def quadratic(self, a: float = 0.0, b: float = 0.0, c: float = 0.0) -> Tensor:
        """Coefficients (count,) whose spline *is* a + b x + c x^2 on the range.

        beta has mean 0 and variance 5/12, so sum_i mu_i beta = x and sum_i mu_i^2 beta = x^2 + 5/12 h^2.
        """
        mu = self.nodes()
        return a + b * mu + c * (mu**2 - 5 / 12 * self.spacing**2)


def quartic_bspline(u: Tensor, derivative: int = 0) -> Tensor:
    r"""The centred quartic B-spline beta(u) or one of its derivatives, element by element.

        beta(u) = 1/24 [ (5/2 - |u|)_+^4 - 5 (3/2 - |u|)_+^4 + 10 (1/2 - |u|)_+^4 ],      v_+ = max(v, 0)

    Parameters
    ----------
    derivative
        0 to 4, else ValueError. The fourth derivative is piecewise constant (right-continuous at u >= 0).
    """
    if derivative not in (0, 1, 2, 3, 4):
        raise ValueError(f"derivative must be 0, 1, 2, 3 or 4, got {derivative!r}")
    power = ORDER - 1 - derivative
    left = u.new_tensor([2.5, 1.5, 0.5]) - u.abs()[..., None]
    left = left.clamp(min=0) ** power if power else (left > 0).to(u.dtype)
    values = (left * u.new_tensor([1.0, -5.0, 10.0])).sum(-1) / math.factorial(power)
    return torch.where(u < 0, values, -values) if derivative % 2 else values


def contract(weights: Tensor, tau: Tensor, grid: SplineGrid, derivative: int = 0) -> Tensor:
    r"""Sum over the tau direction: a_bci = sum_j w_cij d^k/dtau^k beta((tau_b - nu_j) / dtau).

    Parameters
    ----------
    weights : (..., N_tau)
    tau : (B,)
        Logarithmic smoothing parameter per image, inside of the range of ``grid``.
    derivative
        Order k of the derivative in tau, 0 to 4.

    Returns
    -------
    (B, ...)
        The coefficients a.
    """
    if weights.shape[-1] != grid.count:
        raise ValueError(f"weights end in {weights.shape[-1]} tau nodes but the grid has {grid.count}")
    if tau.dim() != 1:
        raise ValueError(f"tau must have shape (B,), got {tuple(tau.shape)}")
    nodes = grid.nodes().to(tau)
    basis = (
        quartic_bspline((tau[:, None] - nodes) / grid.spacing, derivative) / grid.spacing**derivative
    )  # (B, N_tau)
    return torch.tensordot(basis, weights, dims=([1], [weights.dim() - 1]))


def evaluate(
    x: Tensor, coefficients: Tensor, grid: SplineGrid, orders: tuple[int, ...] = (0,)
) -> tuple[Tensor, ...]:
    r"""One-dimensional splines and their derivatives, one function per leading index.

        phi_s^{(k)}(x) = h^-k sum_i a_si beta^{(k)}((x - mu_i) / h),    k in ``orders``,

    continued linearly outside of the range of the grid (second derivatives are zero there).

    Parameters
    ----------
    x : (*S, ...)
        Points; everything behind S belongs to the same function.
    coefficients : (*S, N_x)
    orders
        Derivatives k wanted, each 0, 1 or 2.

    Returns
    -------
    tuple
        One tensor shaped like ``x`` per order, differentiable in x and in the coefficients.

    Raises
    ------
    ValueError
        Shapes that do not match, or an unknown order.
    """
    lead = coefficients.shape[:-1]
    if coefficients.shape[-1] != grid.count or x.shape[: len(lead)] != lead:
        raise ValueError(
            f"coefficients of shape {tuple(coefficients.shape)} do not match x of shape {tuple(x.shape)} and"
            f" {grid.count} nodes: expected (*S, N_x) for x of shape (*S, ...)"
        )
    if not orders or any(k not in (0, 1, 2) for k in orders):
        raise ValueError(f"orders must be a non-empty tuple of 0, 1 and 2, got {orders!r}")
    flat, rows = x.reshape(lead.numel(), -1), coefficients.reshape(-1, grid.count)  # (S, M), (S, N_x)
    engine = _engine(flat, rows)
    if engine is None:
        values = dict(zip(orders, spline_reference.evaluate(flat, rows, grid, orders), strict=True))
    else:
        distinct = tuple(dict.fromkeys(orders))
        values = dict(zip(distinct, _Evaluate.apply(flat, rows, grid, distinct, engine), strict=True))
    return tuple(values[k].view_as(x) for k in orders)


def _engine(x: Tensor, coefficients: Tensor):
    """The module that evaluates these tensors fast, or None where only the definition does."""
    return next((e for e in (spline_native, spline_compiled) if e.usable(x, coefficients)), None)


class _Evaluate(torch.autograd.Function):
    """phi^(k)(x) and its first derivatives by an engine; higher ones by autograd of the backward pass's formula."""

    @staticmethod
    def forward(ctx, x, coefficients, grid, orders, engine):
        ctx.save_for_backward(x, coefficients)
        ctx.settings = grid, orders, engine
        ctx.set_materialize_grads(False)
        return engine.forward(x, coefficients, grid, orders)

    @staticmethod
    def backward(ctx, *grads):
        grid, orders, engine = ctx.settings
        given = {k: g for k, g in zip(orders, grads, strict=True) if g is not None}
        backward = spline_reference.backward if torch.is_grad_enabled() else engine.backward
        return *backward(*ctx.saved_tensors, grid, tuple(given), tuple(given.values())), None, None, None
