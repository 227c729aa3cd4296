r"""The checks behind the exercises: is a student's function right, and if not, what is wrong with it?

An `Exercise` knows the truth (a function of the library or a closed form), a way to draw random inputs, and the
mistakes that people make. `examine` calls the student's function on several random inputs, compares it with the truth,
and explains a difference, from the specific to the general:

1. not solved yet, or an exception, nothing returned, a wrong type, shape or dtype, an argument changed in place, nan;
2. one of the exercise's `Mistake` formulas: the result equals theirs on *every* input, so its message applies;
3. a quantity of the exercise is missing or too many: the result is the truth times ``t``, ``1/sigma``, ... throughout;
4. the sign, or one constant factor;
5. a `Law` that every right answer obeys and this one breaks (it sums to one, it is symmetric ...);
6. else the first input on which the results differ, and by how much.

A mistake that only shows on some inputs cannot hide: an answer is right only if it agrees on all of them.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["TO_DO", "Exercise", "Law", "Mistake", "Verdict", "examine"]

TO_DO, RIGHT, NOT_YET = "to do", "right", "not yet"


@dataclass(frozen=True)
class Mistake:
    """A wrong formula that people write, with the exercise's arguments, and what to tell them."""

    formula: Callable[..., Any]
    message: str


@dataclass(frozen=True)
class Law:
    """A property of every right answer: ``holds(result, *arguments)``, and what to say where it fails."""

    holds: Callable[..., bool]
    message: str


@dataclass(frozen=True)
class Exercise:
    """What `examine` has to know of one exercise.

    Attributes:
        id: lesson and number, such as "2.3".
        title: a few words.
        points: what a right answer earns.
        minutes: time that a prepared student needs.
        solution: the truth, called with the exercise's arguments.
        draw: random arguments from a seeded generator, a tuple; called anew for every call of a function, so that
            nobody sees what another one has changed. Tensors, numbers, mixtures, functions: anything goes.
        mistakes: in the order in which they are tried.
        laws: see the module's head.
        factors: quantities that are easily forgotten, by name, from the arguments: numbers or tensors that broadcast
            against the result.
        rounds: how many random inputs are tried.
        rtol, atol: agreement means |result - truth| <= atol + rtol |truth|.
    """

    id: str
    title: str
    points: int
    minutes: int
    solution: Callable[..., Any]
    draw: Callable[[torch.Generator], tuple]
    mistakes: Sequence[Mistake] = ()
    laws: Sequence[Law] = ()
    factors: Callable[..., Mapping[str, Any]] = field(default=lambda *arguments: {})
    rounds: int = 6
    rtol: float = 1e-5
    atol: float = 1e-8

    def arguments(self, round_: int) -> tuple:
        """The random arguments of one round; the same ones at every call, as new objects."""
        return self.draw(torch.Generator().manual_seed(1000 + round_))

    def truth(self, round_: int) -> Any:
        """The right result of one round."""
        return self.solution(*self.arguments(round_))


@dataclass(frozen=True)
class Verdict:
    """``status`` is "to do", "right" or "not yet"; ``message`` says what is wrong; ``points`` out of ``out_of``."""

    exercise: Exercise
    status: str
    message: str = ""

    @property
    def points(self) -> int:
        return self.exercise.points if self.status == RIGHT else 0

    def __str__(self) -> str:
        earned = f" ({self.points} of {self.exercise.points} points)" if self.status == RIGHT else ""
        message = f": {self.message}" if self.message else ""
        return f"{self.exercise.id} {self.exercise.title} - {self.status}{earned}{message}"


def examine(exercise: Exercise, function: Callable[..., Any]) -> Verdict:
    """Compare a student's function with the truth and explain the difference (see the module's head).

    Raises:
        TypeError: what was handed in is no function.
    """
    if not callable(function):
        raise TypeError(
            f"hand in the function itself, as in check({exercise.id!r}, my_function) without parentheses, "
            f"got {type(function).__name__}"
        )
    truths = [exercise.truth(k) for k in range(exercise.rounds)]
    results = []
    for k, truth in enumerate(truths):
        given = exercise.arguments(k)
        try:
            result = function(*given)
        except NotImplementedError:
            return Verdict(exercise, TO_DO)
        except Exception as error:
            return Verdict(exercise, NOT_YET, _crash(error, function, len(given)))
        message = _form(result, truth, "") or _touched(given, exercise.arguments(k))
        if message:
            return Verdict(exercise, NOT_YET, message)
        results.append(result)
    pairs = list(zip(results, truths, strict=True))
    if all(_agree(a, b, exercise) for a, b in pairs):
        return Verdict(exercise, RIGHT)
    if any(map(_single, results)) and all(_agree(a, b, exercise, 1e-3, 1e-4) for a, b in pairs):
        message = "right, but in single precision only: make every tensor with dtype=torch.float64"
        return Verdict(exercise, NOT_YET, message)
    return Verdict(exercise, NOT_YET, _explain(exercise, [_double(result) for result in results], truths))


# --- does it have the right form? ---------------------------------------------------------------------------------


def _crash(error: Exception, function: Callable[..., Any], count: int) -> str:
    """The exception, with the innermost line that the student wrote; lines of libraries say nothing to them."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without our own call
    if not frames:
        return f"the function cannot be called with its {count} argument(s): {error}"
    home = getattr(getattr(function, "__code__", None), "co_filename", None)
    own = [frame for frame in frames if frame.filename == home] or frames[:1]
    where = f" in the line `{own[-1].line}`" if own[-1].line else ""
    return f"your code stopped with {type(error).__name__}{where}: {error}"


def _single(result: Any) -> bool:
    """Is any part of the result in single (or lower) precision?"""
    if isinstance(result, (tuple, list)):
        return any(map(_single, result))
    return isinstance(result, Tensor) and result.dtype in (torch.float32, torch.float16, torch.bfloat16)


def _double(result: Any) -> Any:
    """The result without its graph and with floating-point tensors in double precision, for laws and comparisons."""
    if isinstance(result, (tuple, list)):
        return tuple(map(_double, result))
    if isinstance(result, Tensor):
        return result.detach().double() if result.dtype.is_floating_point else result.detach()
    return result


def _form(result: Any, truth: Any, part: str) -> str:
    """What is wrong with type, shape, dtype and finiteness; empty if nothing is."""
    of = f"{part} " if part else ""
    if result is None:
        return "the function returns nothing: is the `return` missing?"
    if isinstance(truth, (tuple, list)):
        if not isinstance(result, (tuple, list)):
            return f"{len(truth)} results are wanted, as a tuple, not one {type(result).__name__}"
        if len(result) != len(truth):
            return f"{len(truth)} results are wanted, not {len(result)}"
        names = ("first", "second", "third", "fourth", "fifth")
        parts = (
            _form(a, b, f"the {names[k]}" if k < 5 else f"number {k + 1}")
            for k, (a, b) in enumerate(zip(result, truth, strict=True))
        )
        return next(filter(None, parts), "")
    if isinstance(truth, Tensor) and truth.ndim:
        if not isinstance(result, Tensor):
            return f"{of or 'the '}result is a {type(result).__name__}, a torch.Tensor is wanted"
        if result.shape != truth.shape:
            return (
                f"{of or 'the '}result has the shape {tuple(result.shape)}, {tuple(truth.shape)} is wanted: "
                "look at the shapes in the docstring"
            )
        if truth.dtype.is_floating_point and not result.dtype.is_floating_point:
            return f"{of or 'the '}result has the dtype {result.dtype}, a floating-point one is wanted"
        if not torch.isfinite(result.detach()).all() and torch.isfinite(truth).all():
            why = "division by zero, exp of a large number, log of an underflowed zero?"
            return f"{of or 'the '}result contains nan or inf: {why}"
        return ""
    if isinstance(truth, (bool, str)):
        return (
            ""
            if isinstance(result, type(truth))
            else f"{of or 'the '}result must be a {type(truth).__name__}"
        )
    try:
        number = float(result.detach() if isinstance(result, Tensor) else result)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: of torch, for complex numbers
        number = None
    if number is None or isinstance(result, str):
        return f"{of or 'the '}result is a {type(result).__name__}, one number is wanted"
    if shape := tuple(getattr(result, "shape", ())):
        return f"{of or 'the '}result has the shape {shape}, one number is wanted"
    return (
        ""
        if math.isfinite(number) or not math.isfinite(float(truth))
        else f"{of or 'the '}result is {number}"
    )


def _touched(given: tuple, fresh: tuple) -> str:
    for k, (a, b) in enumerate(zip(given, fresh, strict=True)):
        if isinstance(a, Tensor) and not torch.equal(a.detach(), b.detach()):
            return f"the function changes its argument number {k + 1} in place: work on a copy"
        if isinstance(a, Tensor) and a.requires_grad != b.requires_grad:
            return (
                f"the function switches on requires_grad of its argument number {k + 1}, which is the caller's: begin "
                "with a copy of your own, x = x.detach().clone().requires_grad_()"
            )
    return ""


# --- agreement and explanation ------------------------------------------------------------------------------------


def _agree(a: Any, b: Any, exercise: Exercise, rtol: float = 0.0, atol: float = 0.0) -> bool:
    if isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_agree(x, y, exercise, rtol, atol) for x, y in zip(a, b, strict=True))
    if isinstance(b, (bool, str)):
        return a == b
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (a, b))
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=max(rtol, exercise.rtol), atol=max(atol, exercise.atol)
    )


def _explain(exercise: Exercise, results: list, truths: list) -> str:
    pairs = list(zip(results, truths, strict=True))
    rounds = range(exercise.rounds)
    for mistake in exercise.mistakes:
        if all(_agree(results[k], mistake.formula(*exercise.arguments(k)), exercise) for k in rounds):
            return mistake.message
    return (
        _factor(exercise, results, truths)
        or _constant(exercise, pairs)
        or _broken_law(exercise, results)
        or _first_difference(exercise, pairs)
    )


def _numeric(value: Any) -> bool:
    return isinstance(value, (Tensor, float, int)) and not isinstance(value, bool)


def _factor(exercise: Exercise, results: list, truths: list) -> str:
    if not all(map(_numeric, truths)):
        return ""
    factors = [exercise.factors(*exercise.arguments(k)) for k in range(exercise.rounds)]
    for name in factors[0]:
        for power, words in ((1, "times too large"), (-1, "times too small")):
            scaled = [b * f[name] ** power for b, f in zip(truths, factors, strict=True)]
            if all(_agree(a, s, exercise) for a, s in zip(results, scaled, strict=True)):
                return f"the result is {name} {words} on every input: check where {name} enters"
    return ""


def _constant(exercise: Exercise, pairs: list) -> str:
    """The sign, or a constant factor: ratio <a, b> / <b, b> the same on all inputs."""
    if not all(_numeric(b) for _, b in pairs):
        return ""
    flat = [[torch.as_tensor(x, dtype=torch.float64).detach().reshape(-1) for x in pair] for pair in pairs]
    a, b = (torch.cat(part) for part in zip(*flat, strict=True))
    if not b.square().sum() > 0:
        return ""
    ratio = float((a * b).sum() / b.square().sum())
    if ratio == 0 or not torch.allclose(a, ratio * b, rtol=1e-5, atol=exercise.atol):
        return ""
    if abs(ratio + 1) < 1e-5:
        return "the sign is wrong"
    return f"the result is {ratio:.6g} times the right one on every input: a constant is missing or too much"


def _broken_law(exercise: Exercise, results: list) -> str:
    for law in exercise.laws:
        if not all(law.holds(results[k], *exercise.arguments(k)) for k in range(exercise.rounds)):
            return law.message
    return ""


def _first_difference(exercise: Exercise, pairs: list) -> str:
    k, (a, b) = next((k, p) for k, p in enumerate(pairs) if not _agree(*p, exercise))
    right = sum(_agree(*p, exercise) for p in pairs)
    some = f"right on {right} of {len(pairs)} random inputs; " if right else ""
    if not (_numeric(b) and _numeric(a)):
        return f"{some}on input {k + 1} the result differs"
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (a, b))
    worst = tuple(map(int, np.unravel_index(int((a - b).abs().argmax()), b.shape)))
    of = f"entry [{', '.join(map(str, worst))}] of " if b.ndim else ""
    return f"{some}on input {k + 1}, {of}the result is {a[worst]:.5g}, and {b[worst]:.5g} is right"
