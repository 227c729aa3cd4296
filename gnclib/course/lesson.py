"""The parts of a lesson: the exercise, hints to wrong formulas, random inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["F64", "Exercise", "Formula", "hints", "in_turn", "integer", "number", "shaped", "slip"]

F64 = {"dtype": torch.float64}
Formula = Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """What `gnclib.course.engine.examine` has to know of one exercise.

    Parameters
    ----------
    id : str
        Lesson and number, such as "2.3".
    title : str
        A few words.
    points, minutes : int
        What a right answer earns, and the time that a prepared student needs.
    solution : callable
        The truth, called with the exercise's arguments; returns a tensor, a number, or a tuple of these.
    draw : callable
        ``draw(generator)`` returns the arguments as a tuple. It is called anew for every call of a function, so that
        nobody sees what another one has changed.
    mistakes : mapping
        Hint -> wrong formulas, called with the exercise's arguments, in the order in which they are tried.
    laws : mapping
        Hint -> functions ``holds(result, *arguments)``, true for every right answer.
    variants : mapping
        Remark -> formulas that are not the truth but right, too.
    factors : callable
        Quantities that are easily forgotten, by name, from the arguments: numbers that scale the result.
    rounds : int
        How many random inputs are tried.
    rtol, atol : float
        Agreement means |result - truth| <= atol + rtol |truth|.
    keeps_graph : bool
        May the result carry the graph of automatic differentiation?
    by_hand : bool
        Is automatic differentiation forbidden?
    """

    id: str
    title: str
    points: int
    minutes: int
    solution: Formula
    draw: Callable[[torch.Generator], tuple]
    mistakes: Mapping[str, Sequence[Formula]] = field(default_factory=dict)
    laws: Mapping[str, Sequence[Callable[..., bool]]] = field(default_factory=dict)
    variants: Mapping[str, Sequence[Formula]] = field(default_factory=dict)
    factors: Callable[..., Mapping[str, Any]] = field(default=lambda *arguments: {})
    rounds: int = 6
    rtol: float = 1e-5
    atol: float = 1e-8
    keeps_graph: bool = False
    by_hand: bool = False

    def arguments(self, k: int) -> tuple:
        """The random arguments of round `k`: the same values at every call, as new objects."""
        return self.draw(torch.Generator().manual_seed(1000 + k))


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


def number(g: torch.Generator, low: float, high: float) -> float:
    """A random number between two ends."""
    return low + (high - low) * float(torch.rand(1, generator=g, **F64))


def integer(g: torch.Generator, low: int, high: int) -> int:
    """A random integer, both ends included."""
    return int(torch.randint(low, high + 1, (1,), generator=g))


def in_turn(g: torch.Generator, *choices: Any) -> Any:
    """One of the choices, the next one in each round, for a fresh generator of `Exercise.arguments`."""
    return choices[(g.initial_seed() - 1000) % len(choices)]


def shaped(call: str, value: float | Tensor, *shapes: tuple[int, ...]) -> Tensor:
    """An argument of a function that a student's code calls, as a tensor of one of the shapes that the docstring names.

    Raises
    ------
    TypeError
        It has another shape.
    """
    value = torch.as_tensor(value, **F64)
    if value.shape not in shapes:
        wanted = " or ".join("one number" if shape == () else f"the shape {shape}" for shape in shapes)
        raise TypeError(
            f"{call} wants {wanted} as its last argument, and has got the shape {tuple(value.shape)}"
        )
    return value
