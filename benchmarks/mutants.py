"""Mutation runs: one small change of the code at a time, and whether the tests of its package notice.

    python benchmarks/mutants.py gmm certify --sample 60 --seed 0

Each mutant is tested in a copy of the package by those of ``tests/PACKAGE`` that call the changed function, the fastest
first (all of them, if none does so in the same process); it is killed if a test fails, or if they take longer than
three times as long as without it. A survivor that no test can tell from the original is listed in ``mutants.toml`` with
the reason. Results are kept in a file, one line each: a mutant is run again when the code of its module has changed, a
survivor also when the tests have; without the file everything is run anew.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import cProfile
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import torch  # noqa: F401  loaded here, so that no child needs to

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "mutants.jsonl"
EQUIVALENT = Path(__file__).with_name("mutants.toml")
PACKAGES = ("gmm", "certify", "spline", "foe", "score", "restore")


def both_ways(pairs: str) -> dict[str, str]:
    names = [pair.split() for pair in pairs.split(",")]
    return dict(names) | {b: a for a, b in names}


OPERATORS = both_ways("Lt LtE,Gt GtE,Eq NotEq,Is IsNot,In NotIn,Add Sub,Mult Div,BitOr BitAnd,And Or")
OPERATORS |= {"Pow": "Mult", "FloorDiv": "Div", "Mod": "Mult"}
FUNCTIONS = both_ways("min max,argmin argmax,floor ceil,sin cos,any all,minimum maximum,low high,left right")
#: functions that are symmetric in their arguments
SYMMETRIC = set("min max minimum maximum hypot transpose flip hull _dot".split())


def opposite(operator: ast.AST) -> ast.AST:
    return getattr(ast, OPERATORS[type(operator).__name__])()


def interchangeable(function: ast.AST, first: ast.AST, second: ast.AST) -> bool:
    name = getattr(function, "attr", getattr(function, "id", None))
    return name in SYMMETRIC or ast.dump(first) == ast.dump(second)


def changes(node: ast.AST):
    """What may be changed at a node: pairs (kind, replacement)."""
    match node:
        case ast.Compare(left, [operator, *others], right) if type(operator).__name__ in OPERATORS:
            yield "comparison", ast.Compare(left, [opposite(operator), *others], right)
        case ast.BinOp(left, operator, right) if type(operator).__name__ in OPERATORS:
            yield "arithmetic", ast.BinOp(left, opposite(operator), right)
        case ast.BoolOp(operator, values):
            yield "and/or", ast.BoolOp(opposite(operator), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield "sign or not", operand
        case ast.Constant(bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield "constant", ast.Constant(value + 1 if value in (0, 1) else 2 * value)
        case ast.Call(function, [first, second, *others], keywords) if not interchangeable(
            function, first, second
        ):
            yield "arguments", ast.Call(function, [second, first, *others], keywords)
        case ast.Attribute(value, name, context) if name in FUNCTIONS:
            yield "name", ast.Attribute(value, FUNCTIONS[name], context)
        case ast.Name(name, context) if name in FUNCTIONS:
            yield "name", ast.Name(FUNCTIONS[name], context)
        case ast.Return(value) if value is not None:
            yield "return value", ast.Return(ast.Constant(None))
        case ast.If(test, body, orelse):
            yield "condition", ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break() | ast.Expr(ast.Call()):
            yield "statement", ast.Pass()


def children(node: ast.AST):
    """(parent, field, index or None, child) of what may be mutated: no annotations, decorators, messages or texts.

    Nor the ``strict=True`` of a zip, which guards against mistakes in the code itself, and which line a warning names.
    """
    if isinstance(node, ast.JoinedStr | ast.Raise) or getattr(node, "arg", None) in ("strict", "stacklevel"):
        return
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list"):
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST):
                    yield node, field, index, child


def scopes(tree: ast.AST) -> dict[ast.AST, str]:
    """The class and function, such as "GaussianMixture.energy", in which each node is; "" at the top of the module."""
    found = {tree: ""}
    for node in ast.walk(tree):  # parents come first
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            found[child] = f"{found[node]}.{child.name}".lstrip(".") if named else found[node]
    return found


def mutants(path: Path):
    """All mutants of a module: (what identifies it, the line, the change, the mutated source)."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # docstrings
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0].value = ast.copy_location(ast.Constant(""), node.body[0])
    text = ast.unparse(tree)
    inside, module = scopes(tree), str(path.relative_to(ROOT))
    queue, number, met = list(children(tree)), 0, Counter()
    for parent, field, index, node in queue:  # grows while it is walked
        queue += children(node)
        for kind, replacement in changes(node):
            ast.copy_location(replacement, node)
            container, key = (vars(parent), field) if index is None else (getattr(parent, field), index)
            container[key] = replacement
            mutated = ast.unparse(ast.fix_missing_locations(tree))
            container[key] = node
            compile(mutated, path, "exec")  # a mutant that cannot be loaded would count as killed
            number += 1
            before, after = (ast.unparse(n).splitlines()[0][:60] for n in (node, replacement))
            identity = hashlib.sha256(f"{path.name} {number} {text}".encode()).hexdigest()[:12]
            change = f"{module} {inside[node]}: {before} -> {after} ({kind})"
            met[change] += 1
            yield identity, node.lineno, change if met[change] == 1 else f"{change} #{met[change]}", mutated


class Calls:
    """A plugin of pytest: how long each test takes, and which functions of the package it calls."""

    def __init__(self):
        self.seconds, self.called = {}, {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        profile, began = cProfile.Profile(builtins=False), time.monotonic()
        profile.enable()
        try:
            return (yield)
        finally:
            profile.disable()
            self.seconds[item.nodeid] = time.monotonic() - began
            codes = [entry.code for entry in profile.getstats() if "/gnclib/" in entry.code.co_filename]
            names = {f"{code.co_filename} {code.co_qualname.replace('.<locals>', '')}" for code in codes}
            self.called[item.nodeid] = [name.partition("/gnclib/")[2] for name in names]


def pytest_in(tree: Path, where: list[str], found: Path | None) -> None:
    """Run tests in this process, which ends with pytest's exit status; with ``found``, write there what they call."""
    os.setsid()
    os.chdir(tree)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.path.insert(0, str(tree))
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    calls = Calls()
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *where], [calls] if found else [])
    if found:
        others = [
            name for name in sys.modules if not name.startswith(("gnclib", "tests", "benchmarks", "__m"))
        ]
        found.write_text(json.dumps([calls.seconds, calls.called, others]))
    os._exit(status)


def tests(tree: Path, where: list[str], limit: float | None, found: Path | None) -> tuple[str, float]:
    """Run tests in a copied tree: "survived", "killed" or "timeout", and the seconds it took."""
    began = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=pytest_in, args=(tree, where, found))
    process.start()
    try:
        process.join(limit)
        verdict = {None: "timeout", 0: "survived"}.get(process.exitcode, "killed")
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
    return verdict, time.monotonic() - began


def callers(package: str, tree: Path) -> tuple[dict[str, float], dict[str, list[str]]]:
    """The seconds that each test of the package takes, and by function of the package the tests that call it."""
    found = tree / f"{package}.json"
    verdict, _ = tests(tree, [f"tests/{package}"], None, found)
    if verdict != "survived":
        raise SystemExit(f"tests/{package} fail without any mutation")
    seconds, called, others = json.loads(found.read_text())
    for name in others:  # what all tests load, so that no child needs to
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if "gnclib" in sys.modules:  # every child would test the original, and every mutant survive
        raise SystemExit("what the tests import loads gnclib before it is mutated")
    by_name = {}
    for test in sorted(seconds, key=seconds.get):
        for name in called[test]:
            by_name.setdefault(name, []).append(test)
    return seconds, by_name


def chosen(package: str, args) -> list[tuple]:
    """The sample of a package: (path, identity, line, change, mutated source)."""
    found = []
    for path in sorted((ROOT / "gnclib" / package).glob("[!_]*.py")):
        if path.stem in (args.only or [path.stem]):
            found += [(path, *mutant) for mutant in mutants(path)]
    if args.sample and args.sample < len(found):
        found = random.Random(args.seed).sample(found, args.sample)
    return found


def run(package: str, args, tree: Path, done: dict[str, dict]):
    """The results of a package's sample, those of earlier runs included; new ones are written as they come."""
    texts = [path.read_text() for path in sorted((ROOT / "tests" / package).glob("*.py"))]
    stamp = hashlib.sha256("".join(texts).encode()).hexdigest()[:12]
    seconds, by_name = {}, {}
    for path, identity, line, change, mutated in chosen(package, args):
        known = done.get(identity, {"verdict": "survived", "tests": ""})
        if known["verdict"] == "survived" and known["tests"] != stamp:
            if not seconds:
                seconds, by_name = callers(package, tree)
            name = change.partition(":")[0].removeprefix("gnclib/")
            where = by_name.get(name, list(seconds))
            copied = tree / path.relative_to(ROOT)
            copied.unlink()
            copied.write_text(mutated)
            verdict, took = tests(tree, where, 30 + 3 * sum(map(seconds.get, where)), None)
            copied.unlink()
            copied.symlink_to(path)
            known = {"mutant": identity, "change": change, "line": line, "verdict": verdict, "tests": stamp}
            done[identity] = known
            with RESULTS.open("a") as file:
                file.write(json.dumps(known | {"seconds": round(took, 1)}) + "\n")
            print(f"{verdict:9} line {line} of {change}", flush=True)
        yield known


def report(package: str, results: list[dict], reasons: dict[str, str]) -> None:
    """Print the survivors, those with a reason last, and the shares."""
    survivors = [result for result in results if result["verdict"] == "survived"]
    excused = [result for result in survivors if result["change"] in reasons]
    for result in survivors:
        if result not in excused:
            print(f"SURVIVED line {result['line']} of {result['change']}")
    for result in excused:
        print(f"equivalent: {result['change']}: {reasons[result['change']]}")
    count = max(len(results), 1)
    killed, settled = (100 * (1 - n / count) for n in (len(survivors), len(survivors) - len(excused)))
    print(
        f"{package}: {len(results)} mutants, {len(survivors)} survived, {len(excused)} of them equivalent:"
        f" {killed:.1f} % killed, {settled:.1f} % killed or equivalent"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", default=PACKAGES, help=f"of {', '.join(PACKAGES)}")
    parser.add_argument("--only", nargs="*", help="names of modules, such as threshold")
    parser.add_argument(
        "--sample", type=int, default=40, help="mutants per package; 0: all, which takes hours"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    args = parser.parse_args()
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    done = {result["mutant"]: result for result in map(json.loads, lines)}
    reasons = {
        change: group["reason"]
        for group in tomllib.loads(EQUIVALENT.read_text())["equivalent"]
        for change in group["changes"]
    }
    with tempfile.TemporaryDirectory() as folder:
        tree, cached = Path(folder), shutil.ignore_patterns("__pycache__")
        for path in ROOT.iterdir():
            if path.name in ("gnclib", "tests"):
                shutil.copytree(path, tree / path.name, copy_function=os.symlink, ignore=cached)
            else:
                (tree / path.name).symlink_to(path)
        for package in args.packages:
            report(package, list(run(package, args, tree, done)), reasons)


if __name__ == "__main__":
    main()
