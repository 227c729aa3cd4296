"""All exercises by number, the check that students call, and their progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gnclib.course import lesson1, lesson2, lesson3, lesson4, lesson5, lesson6
from gnclib.course.engine import RIGHT, Verdict, examine
from gnclib.course.lesson import Exercise

EXERCISES: dict[str, Exercise] = {
    item.heading.id: item
    for lesson in (lesson1, lesson2, lesson3, lesson4, lesson5, lesson6)
    for item in lesson.EXERCISES
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
