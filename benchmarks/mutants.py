"""Mutation runs: one small change of the code at a time, and whether the tests of its package notice.

    python benchmarks/mutants.py gmm certify --sample 60 --seed 0

Each mutant is tested in a copy of the package with ``pytest -x tests/PACKAGE``; it is killed if a test fails, or if the
tests take longer than three times as long as without it. Results are kept in a file, one line each: what is in it
already is not run again, unless its source or its tests have changed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "mutants.jsonl"
PACKAGES = ("gmm", "certify", "spline", "foe", "score", "restore")


def both_ways(pairs: str) -> dict[str, str]:
    names = [pair.split() for pair in pairs.split(",")]
    return dict(names) | {b: a for a, b in names}


OPERATORS = both_ways("Lt LtE,Gt GtE,Eq NotEq,Is IsNot,In NotIn,Add Sub,Mult Div,BitOr BitAnd,And Or")
OPERATORS |= {"Pow": "Mult", "FloorDiv": "Div", "Mod": "Mult"}
FUNCTIONS = both_ways("min max,argmin argmax,floor ceil,sin cos,any all,minimum maximum,low high,left right")


def opposite(operator: ast.AST) -> ast.AST:
    return getattr(ast, OPERATORS[type(operator).__name__])()


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
        case ast.Call(function, [first, second, *others], keywords) if ast.dump(first) != ast.dump(second):
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
    """(parent, field, index or None, child) of what may be mutated: no annotations, decorators, messages or texts."""
    if isinstance(node, ast.JoinedStr | ast.Raise):
        return
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list"):
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST):
                    yield node, field, index, child


def mutants(path: Path, stamp: str):
    """All mutants of a module: (identity, line number, what is changed, mutated source)."""
    text = path.read_text()
    tree = ast.parse(text)
    queue, number = list(children(tree)), 0
    for parent, field, index, node in queue:  # grows while it is walked
        queue += children(node)
        for kind, replacement in changes(node):
            ast.copy_location(replacement, node)
            container, key = (vars(parent), field) if index is None else (getattr(parent, field), index)
            container[key] = replacement
            mutated = ast.unparse(ast.fix_missing_locations(tree))
            container[key] = node
            number += 1
            before, after = (ast.unparse(n).splitlines()[0][:60] for n in (node, replacement))
            identity = hashlib.sha256(f"{path.name} {number} {text} {stamp}".encode()).hexdigest()[:12]
            yield identity, node.lineno, f"{kind}: {before} -> {after}", mutated


def tests(package: str, first: str, tree: Path, limit: float | None) -> tuple[str, float]:
    """Run the tests of a package in a copied tree: "passed", "failed" or "timeout", and the seconds it took."""
    folder = tree / "tests" / package
    where = [path for path in (folder / f"test_{first}.py", folder) if path.exists()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *where]
    environment = dict(os.environ, PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    began, quiet = time.monotonic(), subprocess.DEVNULL
    run = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        verdict = "failed" if run.wait(limit) else "passed"
    except subprocess.TimeoutExpired:
        verdict = "timeout"
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    return verdict, time.monotonic() - began


def run(package: str, args, tree: Path, done: dict[str, dict]):
    """The results of a package's sample, those of earlier runs included; new ones are written as they come."""
    stamp = "".join(path.read_text() for path in sorted((ROOT / "tests" / package).glob("*.py")))
    found = []
    for path in sorted((ROOT / "gnclib" / package).glob("[!_]*.py")):
        if path.stem in (args.only or [path.stem]):
            found += [(path, *mutant) for mutant in mutants(path, stamp)]
    if args.sample and args.sample < len(found):
        found = random.Random(args.seed).sample(found, args.sample)
    verdict, usual = tests(package, "", tree, None)
    if verdict != "passed":
        raise SystemExit(f"tests/{package} fail without any mutation")
    for path, identity, line, what, mutated in found:
        if identity not in done:
            copied = tree / path.relative_to(ROOT)
            copied.unlink()
            copied.write_text(mutated)
            verdict, seconds = tests(package, path.stem, tree, 30 + 3 * usual)
            copied.unlink()
            copied.symlink_to(path)
            verdict = {"passed": "survived", "failed": "killed"}.get(verdict, verdict)
            where = f"{path.relative_to(ROOT)}:{line}"
            done[identity] = {"mutant": identity, "where": where, "what": what, "verdict": verdict}
            with RESULTS.open("a") as file:
                file.write(json.dumps(done[identity] | {"seconds": round(seconds, 1)}) + "\n")
            print(f"{verdict:9} {where} {what}", flush=True)
        yield done[identity]


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
    with tempfile.TemporaryDirectory() as folder:
        tree, cached = Path(folder), shutil.ignore_patterns("__pycache__")
        for path in ROOT.iterdir():
            if path.name in ("gnclib", "tests"):
                shutil.copytree(path, tree / path.name, copy_function=os.symlink, ignore=cached)
            else:
                (tree / path.name).symlink_to(path)
        for package in args.packages:
            verdicts = [result["verdict"] for result in run(package, args, tree, done)]
            survived = verdicts.count("survived")
            share = 100 * (1 - survived / max(len(verdicts), 1))
            print(f"{package}: {len(verdicts)} mutants, {survived} survived, {share:.1f} % killed")


if __name__ == "__main__":
    main()
