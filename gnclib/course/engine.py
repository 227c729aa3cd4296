r"""All exercises by number, and their check: is a student's function right, and if not, what is wrong with it?

A `gnclib.course.lesson.Exercise` holds the truth (a function of the library or a closed form), a way to draw random
inputs, and the wrong formulas that people write, each under the hint that it deserves. `examine` calls the student's
function on several random inputs, compares the results with the truth, and explains a difference, from the specific to
the general:

1. not solved yet, or an exception, nothing returned, a wrong type or shape, an argument changed in place, nan;
2. one of the `mistakes`: the results equal those of the wrong formula on *every* input, so its hint applies;
3. a quantity is missing or too many: the result is the truth times ``t``, ``1/sigma``, ... throughout;
4. the sign, or one constant factor; or nothing but the digits that single precision loses;
5. one of the `laws` that every right answer obeys is broken (it sums to one, it is symmetric ...);
6. else the first input on which the results differ, and by how much.

A function that fails on a later input (1) is first compared with the mistakes on the inputs before it. A mistake that
shows on some inputs only cannot hide: an answer is right if it agrees on all of them.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnclib.course import lesson1, lesson2, lesson3, lesson4, lesson5, lesson6
from gnclib.course.lesson import Exercise, Formula

TO_DO, RIGHT, NOT_YET = "to do", "right", "not yet"
SINGLE = "right, but in single precision only: make every tensor with dtype=torch.float64"
ROUNDED = "right to some digits only: a tensor on the way was made without dtype=torch.float64"


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check: `status` is "to do", "right" or "not yet", `message` says what is wrong."""

    exercise: Exercise
    status: str
    message: str = ""

    @property
    def points(self) -> int:
        return self.exercise.heading.points if self.status == RIGHT else 0

    def __str__(self) -> str:
        heading = self.exercise.heading
        earned = f" ({self.points} of {heading.points} points)" if self.status == RIGHT else ""
        message = f": {self.message}" if self.message else ""
        return f"{heading.id} {heading.title} - {self.status}{earned}{message}"


def examine(exercise: Exercise, function: Formula) -> Verdict:
    """Compare a student's function with the truth and explain the difference (see the module's head).

    Raises TypeError: what was handed in is no function.
    """
    if not callable(function):
        raise TypeError(
            f"hand in the function itself, as in check({exercise.heading.id!r}, my_function) without parentheses, "
            f"got {type(function).__name__}"
        )
    results, truths = [], []
    for k in range(exercise.rounds):
        given, truth = exercise.arguments(k), exercise.solution(*exercise.arguments(k))
        try:
            result = function(*given)
        except Exception as error:
            # the stub raises NotImplementedError, and so does torch for a dtype: "abs_cpu" not implemented for 'Bool'
            if isinstance(error, NotImplementedError) and "not implemented for" not in str(error):
                return Verdict(exercise, TO_DO)
            failure = _crash(error, function, len(given))
        else:
            failure = _form(result, truth, _input(exercise, k)) or _touched(given, exercise.arguments(k))
        if failure:
            wrong = not _all_agree(exercise, results, truths)
            hint = _matching(exercise, exercise.mistakes, results) if wrong else ""
            return Verdict(exercise, NOT_YET, hint or failure)
        results.append(result)
        truths.append(truth)
    if _all_agree(exercise, results, truths):
        message = _right_but(exercise, function, results)
        return Verdict(exercise, NOT_YET if message else RIGHT, message)
    if remark := _matching(exercise, exercise.variants, results):
        return Verdict(exercise, RIGHT, remark)
    return Verdict(exercise, NOT_YET, _explain(exercise, results, truths))


def _right_but(exercise: Exercise, function: Formula, results: list) -> str:
    """What is wrong with an answer whose values are right; empty if nothing is."""
    if any(map(_single, results)):
        return SINGLE
    tensors = [part for result in results for part in _parts(result) if isinstance(part, Tensor)]
    if not exercise.keeps_graph and any(part.requires_grad for part in tensors):
        return (
            "right, but the result carries the graph of automatic differentiation: return it with .detach()"
        )
    if exercise.by_hand and _differentiates(function, exercise.arguments(0)):
        return "right, but by automatic differentiation, which this exercise does not allow"
    return ""


def _differentiates(function: Formula, arguments: tuple) -> bool:
    """Does the function use automatic differentiation, which saves tensors (torch.func refuses the hooks for it)?"""

    def refuse(tensor: Tensor) -> Tensor:
        raise RuntimeError("a tensor is saved for differentiation")

    try:
        with torch.autograd.graph.saved_tensors_hooks(refuse, lambda tensor: tensor):
            function(*arguments)
    except RuntimeError:
        return True
    return False


# --- does it have the right form? ---------------------------------------------------------------------------------


def _crash(error: Exception, function: Formula, count: int) -> str:
    """The exception, with the innermost line that the student wrote; lines of libraries say nothing to them."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without our own call
    if not frames:
        return f"the function cannot be called with its {count} argument(s): {error}"
    home = getattr(getattr(function, "__code__", None), "co_filename", None)
    own = [frame for frame in frames if frame.filename == home] or frames[:1]
    where = f" in the line `{own[-1].line}`" if own[-1].line else ""
    return f"your code stopped with {type(error).__name__}{where}: {error}"


def _form(result: Any, truth: Any, where: str, what: str = "the result") -> str:
    """What is wrong with type, shape, dtype and finiteness; empty if nothing is."""
    if result is None:
        return "the function returns nothing: is the `return` missing?"
    if isinstance(truth, tuple):
        return _form_of_tuple(result, truth, where)
    if isinstance(truth, Tensor) and truth.ndim:
        return _form_of_array(result, truth, where, what)
    return _form_of_number(result, where, what)


def _form_of_tuple(result: Any, truth: tuple, where: str) -> str:
    if not isinstance(result, (tuple, list)):
        return f"{len(truth)} results are wanted, as a tuple, not one {type(result).__name__}"
    if len(result) != len(truth):
        return f"{len(truth)} results are wanted, not {len(result)}"
    names = ("the first result", "the second result", "the third result")
    forms = (_form(a, b, where, name) for a, b, name in zip(result, truth, names, strict=False))
    return next(filter(None, forms), "")


def _form_of_array(result: Any, truth: Tensor, where: str, what: str) -> str:
    if not isinstance(result, Tensor):
        return f"{what} is a {type(result).__name__}, a torch.Tensor is wanted"
    if result.shape != truth.shape:
        return (
            f"{what} has the shape {tuple(result.shape)}, {tuple(truth.shape)} is wanted: "
            "look at the shapes in the docstring"
        )
    if not result.dtype.is_floating_point:
        return f"{what} has the dtype {result.dtype}, a floating-point one is wanted"
    if not torch.isfinite(result.detach()).all():
        why = "division by zero, exp of a large number, log of an underflowed zero?"
        return f"{what} contains nan or inf on {where}: {why}"
    return ""


def _form_of_number(result: Any, where: str, what: str) -> str:
    if shape := tuple(getattr(result, "shape", ())):
        return f"{what} has the shape {shape}, one number is wanted"
    try:
        result = result.detach() if isinstance(result, Tensor) else result
        value = None if isinstance(result, str) else float(result)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: of torch, for complex numbers
        value = None
    if value is None:
        return f"{what} is a {type(result).__name__}, one number is wanted"
    return "" if math.isfinite(value) else f"{what} is {value} on {where}"


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


def _input(exercise: Exercise, k: int) -> str:
    """Name of an input, with those of its arguments that are plain numbers."""
    names = inspect.signature(exercise.solution).parameters
    pairs = zip(names, exercise.arguments(k), strict=False)
    numbers = [f"{name} = {value:.3g}" for name, value in pairs if isinstance(value, (int, float))]
    return f"input {k + 1}" + (f" ({', '.join(numbers)})" if numbers else "")


# --- agreement ----------------------------------------------------------------------------------------------------


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _double(value: Any) -> Tensor:
    value = value if isinstance(value, Tensor) else np.asarray(value, np.float64)  # any kind of number
    return torch.as_tensor(value, dtype=torch.float64).detach()


def _single(result: Any) -> bool:
    """Is an array among the results in less than double precision?"""
    return any(isinstance(x, Tensor) and x.ndim and x.dtype != torch.float64 for x in _parts(result))


def _agree(exercise: Exercise, a: Any, b: Any, rtol: float = 0.0, atol: float = 0.0) -> bool:
    tolerance = {"rtol": max(rtol, exercise.rtol), "atol": max(atol, exercise.atol)}
    pairs = [(_double(x), _double(y)) for x, y in zip(_parts(a), _parts(b), strict=True)]
    return all(x.shape == y.shape and torch.allclose(x, y, **tolerance) for x, y in pairs)


def _all_agree(exercise: Exercise, results: list, others: list, rtol: float = 0.0, atol: float = 0.0) -> bool:
    return all(_agree(exercise, a, b, rtol, atol) for a, b in zip(results, others, strict=True))


def _matching(exercise: Exercise, table: Mapping[str, Sequence[Formula]], results: list) -> str:
    """The text beside the first formula that gives these results, those of the first rounds; empty if none does."""
    for text, formulas in table.items():
        if any(all(_gives(exercise, f, k, result) for k, result in enumerate(results)) for f in formulas):
            return text
    return ""


def _gives(exercise: Exercise, formula: Formula, k: int, result: Any) -> bool:
    try:
        return _agree(exercise, result, formula(*exercise.arguments(k)))
    except (RuntimeError, TypeError):  # wrong shapes broadcast, or please a function, on some inputs only
        return False


# --- explanation --------------------------------------------------------------------------------------------------


def _explain(exercise: Exercise, results: list, truths: list) -> str:
    if any(map(_single, results)) and _all_agree(exercise, results, truths, 1e-3, 1e-4):
        return SINGLE
    return (
        _matching(exercise, exercise.mistakes, results)
        or _factor(exercise, results, truths)
        or _constant(exercise, results, truths)
        or _rounded(exercise, results, truths)
        or _broken_law(exercise, results)
        or _first_difference(exercise, results, truths)
    )


def _factor(exercise: Exercise, results: list, truths: list) -> str:
    factors = [exercise.factors(*exercise.arguments(k)) for k in range(exercise.rounds)]
    for name in factors[0]:
        for power, words in ((1, "times too large"), (-1, "times too small")):
            scaled = [b * f[name] ** power for b, f in zip(truths, factors, strict=True)]
            if _all_agree(exercise, results, scaled):
                return f"the result is {name} {words} on every input: check where {name} enters"
    return ""


def _constant(exercise: Exercise, results: list, truths: list) -> str:
    """The sign, or a constant factor: the ratio <a, b> / <b, b> is the same on all inputs."""
    if isinstance(truths[0], tuple):
        return ""
    a, b = (torch.cat([_double(x).reshape(-1) for x in values]) for values in (results, truths))
    ratio = float((a * b).sum() / b.square().sum())
    if ratio == 0 or not torch.allclose(a, ratio * b, rtol=1e-5, atol=exercise.atol):
        return ""
    if abs(ratio + 1) < 1e-5:
        return "the sign is wrong"
    return f"the result is {ratio:.6g} times the right one on every input: a constant is missing or too much"


def _rounded(exercise: Exercise, results: list, truths: list) -> str:
    """Arrays that differ by no more than single precision explains. (A number may come from a search cut short.)

    Entries near zero may be off by as much as others of the usual size; the largest would excuse wrong formulas, too.
    """
    entries = [part.abs().flatten() for truth in truths for part in map(_double, _parts(truth)) if part.ndim]
    size = float(torch.cat(entries).median()) if entries else 0.0
    return ROUNDED if entries and _all_agree(exercise, results, truths, 1e-5, 1e-5 * size) else ""


def _broken_law(exercise: Exercise, results: list) -> str:
    values = [tuple(map(_double, _parts(result))) for result in results]
    values = [value if len(value) > 1 else value[0] for value in values]
    for hint, properties in exercise.laws.items():
        for holds in properties:
            if not all(holds(values[k], *exercise.arguments(k)) for k in range(exercise.rounds)):
                return hint
    return ""


def _first_difference(exercise: Exercise, results: list, truths: list) -> str:
    agree = [_agree(exercise, a, b) for a, b in zip(results, truths, strict=True)]
    k = agree.index(False)
    some = f"right on {sum(agree)} of {len(agree)} random inputs; " if any(agree) else ""
    if isinstance(truths[k], tuple):
        return f"{some}on {_input(exercise, k)} the result differs"
    a, b = _double(results[k]), _double(truths[k])
    worst = tuple(map(int, np.unravel_index(int((a - b).abs().argmax()), b.shape)))
    of = f"entry [{', '.join(map(str, worst))}] of " if b.ndim else ""
    return f"{some}on {_input(exercise, k)}, {of}the result is {a[worst]:.5g}, and {b[worst]:.5g} is right"


# --- what students call ---------------------------------------------------------------------------------------------

EXERCISES: dict[str, Exercise] = {
    item.heading.id: item
    for lesson in (lesson1, lesson2, lesson3, lesson4, lesson5, lesson6)
    for item in vars(lesson).values()
    if isinstance(item, Exercise)
}
_latest: dict[str, Verdict] = {}  # the last verdict on each exercise in this process


def exercise(id: str) -> Exercise:
    """The exercise of that number; a KeyError that lists those there are for an unknown one."""
    try:
        return EXERCISES[id]
    except KeyError:
        raise KeyError(f"there is no exercise {id!r}; there are {', '.join(EXERCISES)}") from None


def check(id: str, function: Callable[..., Any]) -> int:
    """Examine a solution, the student's function itself, print the verdict and return the points earned.

    They are what nbgrader reads. Raises KeyError: an unknown number; TypeError: `function` is no function.
    """
    verdict = examine(exercise(id), function)
    _latest[id] = verdict
    print(verdict)
    return verdict.points


def solved(id: str) -> bool:
    """Was the exercise right when it was last checked? For pictures that need the student's function."""
    return exercise(id).heading.id in _latest and _latest[id].status == RIGHT


def progress(lesson: int) -> None:
    """Print one line for each exercise of a lesson, as last checked, and the points."""
    headings = [item.heading for id, item in EXERCISES.items() if id.startswith(f"{lesson}.")]
    if not headings:
        raise ValueError(f"there is no lesson {lesson!r}")
    for item in headings:
        status = _latest[item.id].status if item.id in _latest else "not checked"
        print(f"{item.id:4s} {item.title:44s} {item.points:2d} points   {status}")
    earned = sum(_latest[item.id].points for item in headings if item.id in _latest)
    print(f"{earned} of {sum(item.points for item in headings)} points")
