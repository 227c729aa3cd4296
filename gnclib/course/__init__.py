"""The course: exercises with automatic checks, and the notebooks that they are in.

Here: truths, usual mistakes and hints of the exercises (`lesson1` to `lesson6`), the check (`engine`), and the
notebooks for students, instructors and nbgrader, made from one source (`copies`).
Never: results that a notebook outside of the course or the command line uses.
May import: `suite`, `gmm`, `spline`, `foe`, `score`, `restore`, `images`, `io`.

``check("1.1", my_function)`` says "to do", "right", or what is wrong.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "engine": ["EXERCISES", "Verdict", "check", "examine", "exercise", "progress", "solved"],
        "lesson": ["Exercise"],
    },
)
