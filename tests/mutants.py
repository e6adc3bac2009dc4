"""Which wrong lines the fast tests would not see: changes one thing at a time, and runs them.

``python tests/mutants.py vamf/flow vamf/metrics --count 100 --seed 0 --out mutants.json`` draws
mutants of the files below these places, runs for each the fast tests that import its file, the
nearest by name first, and writes each mutant's line before and after, and what became of it:
killed, survived, or timeout, which counts as killed. Each one is tested in a copy of the tree.
"""

import argparse
import ast
import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 150
"""What the tests of one mutant may take."""
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Wrong versions of a node."""
    new = copy.deepcopy(node)
    match new:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            new.op = SWAPS[type(op)]()
            yield new
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            new.ops = [SWAPS[type(op)]()]
            yield new
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1 if isinstance(value, int) or value == 0 else value * 2)
        case ast.Call(func=ast.Attribute(value=inner, attr="detach")):
            yield inner
        case ast.Call(keywords=[_, *_]):
            new.keywords = new.keywords[:-1]
            yield new


def mutants(file: Path) -> Iterator[tuple[int, str, str, str]]:
    """Line, its code before and after, and the whole file, of every mutant of a file."""
    tree = ast.parse(file.read_text())
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            for index, node in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(node, ast.expr) or isinstance(parent, ast.Expr):
                    continue  # neither statements nor docstrings
                for wrong in changes(node):
                    before, line = ast.unparse(node), node.lineno
                    _put(parent, name, value, index, wrong)
                    yield line, before, ast.unparse(wrong), ast.unparse(tree)
                    _put(parent, name, value, index, node)


def _put(parent: ast.AST, name: str, value: object, index: int, node: ast.AST) -> None:
    if isinstance(value, list):
        value[index] = node
    else:
        setattr(parent, name, node)


def tests_of(file: Path) -> list[Path]:
    """The test files that import a module, its namesake first."""
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    package, _, leaf = module.rpartition(".")
    marks = (f"from {module} import", f"import {module}", f"from {package} import {leaf}")
    found = [
        t for t in (ROOT / "tests").rglob("test_*.py") if any(m in t.read_text() for m in marks)
    ]
    return sorted(found, key=lambda t: (leaf not in t.stem, t.stat().st_size))


def run(tree: Path, tests: list[Path]) -> None:
    """In a process of its own: ends with pytest's status."""
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    os.environ["PYTHONPATH"] = str(tree)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    signal.alarm(SECONDS)
    import pytest

    os._exit(pytest.main(["-x", "-q", *map(str, tests)]))


def verdict(tree: Path, file: Path, source: str) -> str:
    """What becomes of a mutant."""
    place = file.relative_to(ROOT)
    tests = [tree / test.relative_to(ROOT) for test in tests_of(file)]
    (tree / place).write_text(source)
    child = multiprocessing.get_context("fork").Process(target=run, args=(tree, tests))
    child.start()
    child.join()
    shutil.copy(file, tree / place)
    return {0: "survived", -signal.SIGALRM: "timeout", 5: "untested"}.get(
        child.exitcode or 0, "killed"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("places", nargs="+", type=Path, help="files, or folders of them")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help="of N shares the I-th")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    options = parser.parse_args()
    import scipy.stats  # noqa: F401  what children need not import again
    import torch  # noqa: F401

    files = [f.resolve() for top in options.places for f in sorted(top.rglob("*.py")) or [top]]
    drawn = [(f, *mutant) for f in files for mutant in mutants(f)]
    random.Random(options.seed).shuffle(drawn)
    found, (first, step) = [], options.share
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        skip = shutil.ignore_patterns(".git", ".venv", ".whl", "runs", "__pycache__")
        shutil.copytree(ROOT, tree, ignore=skip)
        for file, line, before, after, source in drawn[: options.count][first::step]:
            row = {"file": str(file.relative_to(ROOT)), "line": line, "before": before}
            found.append(row | {"after": after, "fate": verdict(tree, file, source)})
            options.out.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{len(found)}/{len(drawn)}", *found[-1].values(), flush=True)


if __name__ == "__main__":
    main()
