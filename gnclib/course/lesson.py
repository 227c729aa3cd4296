"""The parts of a lesson: the exercise, hints to wrong formulas, random inputs and energies."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

F64 = {"dtype": torch.float64}
Formula = Callable[..., Any]


class Draw:
    """The random inputs of one round, the same in every run, in double precision."""

    def __init__(self, round: int):
        self.round, self.generator = round, torch.Generator().manual_seed(1000 + round)

    def rand(self, *shape: int) -> Tensor:
        """Numbers from [0, 1)."""
        return torch.rand(*shape, generator=self.generator, **F64)

    def randn(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, **F64)

    def number(self, low: float, high: float) -> float:
        """A number between two ends."""
        return low + (high - low) * float(self.rand(1))

    def integer(self, low: int, high: int) -> int:
        """An integer, both ends included."""
        return int(torch.randint(low, high + 1, (1,), generator=self.generator))

    def in_turn(self, *choices: Any) -> Any:
        """One of the choices, the next one in each round."""
        return choices[self.round % len(choices)]

    def mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and variances (K,) of a mixture on the line, K from 2 to 6."""
        k = self.integer(2, 6)
        weights, means, variances = self.rand(k) + 0.05, 2 * self.rand(k) - 1, 0.3 * self.rand(k) + 0.01
        return weights / weights.sum(), means, variances

    def images(self) -> tuple[Tensor, Tensor]:
        """Two batches (B, 1, H, W) of values around [0, 1], with as many columns as images but other heights."""
        b = self.integer(2, 4)
        return 0.5 + 0.4 * self.randn(b, 1, b + 2, b), 0.5 + 0.4 * self.randn(b, 1, b + 2, b)


@dataclass(frozen=True)
class Heading:
    """Number of an exercise ("2.3" is the third of lesson 2), title, points of a right answer, minutes it may take."""

    id: str
    title: str
    points: int
    minutes: int


@dataclass(frozen=True)
class Exercise:
    """What `gnclib.course.engine.examine` has to know of one exercise; formulas are called with its arguments.

    ``draw(g)`` makes the arguments, a tuple, of a `Draw`, anew for every call of a function, so that nobody sees what
    another one has changed. Results are a tensor, a number, or a tuple of these.
    """

    heading: Heading
    solution: Formula  # the truth
    draw: Callable[[Draw], tuple]
    mistakes: Mapping[str, Sequence[Formula]] = field(default_factory=dict)  # by hint, in the order of trial
    laws: Mapping[str, Sequence[Callable[..., bool]]] = field(default_factory=dict)  # f(result, *arguments)
    variants: Mapping[str, Sequence[Formula]] = field(default_factory=dict)  # by remark: right, too
    factors: Callable[..., Mapping[str, Any]] = field(default=lambda *arguments: {})  # that scale the result
    rounds: int = 6  # how many random inputs are tried
    rtol: float = 1e-5  # |result - truth| <= atol + rtol |truth|
    atol: float = 1e-8
    keeps_graph: bool = False  # may the result carry the graph of automatic differentiation?
    by_hand: bool = False  # is automatic differentiation forbidden?

    def arguments(self, k: int) -> tuple:
        """The random arguments of round `k`: the same values at every call, as new objects."""
        return self.draw(Draw(k))


def hints(*entries: str | Formula) -> dict[str, list[Formula]]:
    """A table of hints: each text is followed by the formulas that it belongs to."""
    table: dict[str, list[Formula]] = {}
    for entry in entries:
        if isinstance(entry, str):
            table[entry] = formulas = []
        else:
            formulas.append(entry)
    return table


def slip(formula: Formula, **changes: Any) -> Formula:
    """The formula with wrong ingredients.

    Each change is a value, or for an argument of the exercise also a function that makes the wrong one of the right
    one: ``slip(energy, t=0.0)``, ``slip(energy, t=math.sqrt)``.
    """
    names = list(inspect.signature(formula).parameters)

    def slipped(*arguments):
        given = dict(zip(names, arguments, strict=False))
        for name, change in changes.items():
            given[name] = change(given[name]) if name in given and callable(change) else change
        return formula(**given)

    return slipped


def shaped(call: str, value: float | Tensor, *shapes: tuple[int, ...]) -> Tensor:
    """An argument of a function that a student's code calls, as a tensor of one of the shapes that the docstring names.

    Raises TypeError: it has another shape.
    """
    value = torch.as_tensor(value, **F64)
    if value.shape not in shapes:
        wanted = " or ".join("one number" if shape == () else f"the shape {shape}" for shape in shapes)
        raise TypeError(
            f"{call} wants {wanted} as its last argument, and has got the shape {tuple(value.shape)}"
        )
    return value


# --- energies for the draws ----------------------------------------------------------------------------------------


def wide(value: float | Tensor) -> Tensor:
    """A number or one value per image, as a factor of images."""
    return torch.as_tensor(value, **F64).reshape(-1, 1, 1, 1)


class Ridges:
    """R(y) = 1/2 y^T A y + sum_k c_k log cosh(b_k . y): smooth, not convex, all derivatives in closed form."""

    def __init__(self, g: Draw, d: int):
        a = g.randn(d, d)
        self.a, self.b = a + a.T, g.randn(4, d)
        self.c = g.randn(4)

    def __call__(self, y: Tensor) -> Tensor:
        if y.ndim != 2:
            raise TypeError(f"energy(y) wants points of the shape (B, d), and has got {tuple(y.shape)}")
        u = y @ self.b.T  # (B, 4)
        log_cosh = torch.logaddexp(u, -u) - math.log(2)
        return 0.5 * ((y @ self.a) * y).sum(-1) + log_cosh @ self.c

    def derivatives(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (B, d) and Hessian (B, d, d)."""
        slope = torch.tanh(y @ self.b.T)
        bends = torch.einsum("bk,ki,kj->bij", self.c * (1 - slope**2), self.b, self.b)
        return y @ self.a + (self.c * slope) @ self.b, self.a + bends


class Slopes:
    """phi_c'(x) = a_c x / (1 + x^2) + b_c x for features (B, C, h, w)."""

    def __init__(self, g: Draw, channels: int):
        self.a, self.b = 0.5 + g.rand(2, channels, 1, 1)

    def __call__(self, x):
        if x.ndim != 4 or x.shape[1] != len(self.a):
            raise TypeError(
                f"slope(x) wants features of the shape (B, C, h, w), and has got {tuple(x.shape)}"
            )
        return self.a * x / (1 + x**2) + self.b * x


class Wells:
    """A smooth random energy of images, its derivatives, and a data term, all of them image by image.

    Every image has the same measurement, so that they also take one image of a batch. t and the step are numbers or
    (B,).
    """

    def __init__(self, g: Draw, rise: float = 0.0):
        self.s2, self.b, self.rise = g.number(0.02, 0.15), g.number(-1.0, 1.0), rise
        self.sigma2, (self.start, y) = g.number(0.02, 0.4), g.images()
        self.y = y[:1]

    def grad(self, x: Tensor, t: float | Tensor) -> Tensor:
        t = wide(shaped("grad(x, t)", t, (), (len(x),)))
        return (x - 0.5) / (self.s2 + t) + self.b * torch.sin(5 * x)

    def dtau(self, x: Tensor, t: float | Tensor) -> Tensor:
        t = wide(shaped("dtau(x, t)", t, (), (len(x),)))
        return (self.rise + t / (0.2 + t) * (1 - 2 * (x - 0.5).square())).sum((1, 2, 3))

    def prox(self, v: Tensor, step: float | Tensor) -> Tensor:
        step = wide(shaped("prox(v, t)", step, (), (len(v),)))
        return (self.sigma2 * v + step * self.y) / (self.sigma2 + step)
