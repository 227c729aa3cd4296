"""The subcommand ``gnc course``: the notebooks with exercises, for students, for instructors and for nbgrader."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gnclib.cli.evaluate import say

__all__ = ["course_parser"]


def course_parser(add) -> None:
    sub = add(
        "course", _course, "make the notebooks of the course, with exercises, from their source",
        "The source notebooks in notebooks/exercises/source hold text, solutions, checks and remarks for the\n"
        "instructor. Without options, the students' copies in notebooks/exercises are made from them (no solutions,\n"
        "no remarks, executed), and the table in INSTRUCTOR.md is brought up to date. A source that disagrees with\n"
        "the exercises of the library changes nothing.",
        "  gnc course                             the students' copies, after a change of the source\n"
        "  gnc course --only 4                    only lesson 4\n"
        "  gnc course --instructor solved/        the instructor's copies: solved, with remarks, executed\n"
        "  gnc course --nbgrader course/          a course folder for nbgrader: generate_assignment, autograde\n"
        "  gnc course --check                     run nothing; are the students' copies those of the source?\n"
        "  gnc course --table                     the exercises with points and minutes",
    )  # fmt: skip
    sub.add_argument("--only", action="append", default=[], metavar="LESSON",
                     help="a lesson, by number or name; may be repeated (default: all)")  # fmt: skip
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--instructor", type=Path, metavar="DIR", help="write the instructor's copies to DIR")
    what.add_argument("--nbgrader", type=Path, metavar="DIR", help="write a course for nbgrader to DIR")
    what.add_argument("--check", action="store_true", help="only check what is there, exit 1 if it is wrong")
    what.add_argument("--table", action="store_true", help="only print the table of the exercises")


def _course(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from gnclib.course import copies as course
    from gnclib.course import sources as course_check

    if args.only and (args.check or args.table):
        raise ValueError("--only cannot go with --check or --table: they are about the whole course")
    if args.table:
        say(course_check.table())
        return
    if args.check:
        wrong = course_check.check()
        if wrong:
            raise course.CourseError("\n  ".join([f"{len(wrong)} things are wrong with the course:", *wrong]))
        say(f"the students' copies are what the source makes: {', '.join(course.sources())}")
        return
    here = course.folder().resolve()
    out = args.instructor or args.nbgrader or here
    if out is not here and out.resolve() in (here, here / "source"):
        raise ValueError(f"{out} holds the notebooks themselves: choose another folder")
    nodes = {name: course.read(path) for name, path in course.sources(args.only).items()}
    wrong = [line for name, node in nodes.items() for line in course_check.problems(node, name)]
    if wrong:
        raise course.CourseError("\n  ".join(["the source is wrong, nothing was written:", *wrong]))
    if args.nbgrader:
        for path in course.write_nbgrader(nodes, out):
            say(f"wrote {path}")
        return
    for name, node in tqdm(nodes.items(), unit="notebook", disable=not sys.stderr.isatty()):
        copy = node if args.instructor else course.student(node)
        course.write_executed(copy, out / f"{name}.ipynb")
        say(f"wrote {out / f'{name}.ipynb'}")
    if not args.instructor:
        course_check.refresh_page()
