"""Which wrong lines the fast tests would not see: changes one thing at a time, and runs them.

``python tests/mutants.py vamf/flow vamf/metrics --count 100 --seed 0 --cover /tmp/cover.json``
draws mutants of the files below these places, runs for each the fast tests that ran its line, and
writes each mutant's line before and after, and what became of it: killed, by which test; timeout,
which counts as killed; survived; untested, if no test runs its file; or unclear, if its tests are
not found any more. Each one is tested in a copy of the tree. The file of ``--cover`` keeps which
test runs which lines; tests that it does not know, or that have changed, are run for it first,
which needs ``coverage`` and minutes. Mutants that ``--out`` has are not tried again, but for those
that were not killed with ``--again``.
"""

import argparse
import ast
import contextlib
import copy
import gc
import hashlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 60.0
"""What the tests of one mutant may take of a processor, as it was recorded."""
AT_ONCE = 5
"""Test files that are recorded together: what they cover is kept then."""
HEAVY = ["hypothesis", "mlflow.tracking", "moocore", "optuna", "pandas", "ray", "ray.tune"]
HEAVY += ["scipy.linalg", "scipy.stats", "sklearn.linear_model", "torch._dynamo", "torchvision"]
HEAVY += ["torch._decomp.decompositions_for_jvp"]
"""What tests import and mutants do not change: imported once, before the forks."""
NEUTRAL = ["device", "flush", "frozen", "help", "kw_only", "non_blocking", "repr", "strict"]
"""Keywords without which right code does the same on a CPU, or only looks different."""
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
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
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
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
        case ast.Call(keywords=[*_, last]) if last.arg not in NEUTRAL:
            new.keywords = new.keywords[:-1]
            yield new


def mutants(file: Path) -> Iterator[tuple[int, str, str, str]]:
    """Line, its code before and after, and the whole file, of every mutant of a file.

    What only a message says is left out, and keywords that change nothing here.
    """
    tree = ast.parse(file.read_text())
    out = (node for node in ast.walk(tree) if _neutral(node))
    left_out = {node for top in out for node in ast.walk(top)}
    for parent in (node for node in ast.walk(tree) if node not in left_out):
        for name, value in ast.iter_fields(parent):
            for index, node in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(node, ast.expr | ast.AugAssign) or isinstance(parent, ast.Expr):
                    continue  # neither other statements nor docstrings
                for wrong in changes(node):
                    before, line = ast.unparse(node), node.lineno
                    _put(parent, name, value, index, wrong)
                    yield line, before, ast.unparse(wrong), ast.unparse(tree)
                    _put(parent, name, value, index, node)


def _neutral(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg in NEUTRAL)


def _put(parent: ast.AST, name: str, value: object, index: int, node: ast.AST) -> None:
    if isinstance(value, list):
        value[index] = node
    else:
        setattr(parent, name, node)


class Recorder:
    """Which lines each test runs, by ``coverage``, and how much of a processor's time it takes."""

    def __init__(self, switch: Callable[[str], None]) -> None:
        self.switch, self.current = switch, ""
        self.seconds: dict[str, float] = {}
        self.fixtures: dict[str, list[str]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Generator[None, Any, Any]:
        for thing in vars(item.module).values():  # what one test has computed for the others
            getattr(thing, "cache_clear", lambda: None)()
        self.current = item.nodeid
        self.fixtures[item.nodeid] = list(item.fixturenames)
        self.switch(self.current)
        started = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - started

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        shared = fixturedef.scope != "function"
        self.switch(f"fixture {fixturedef.argname}" if shared else self.current)
        try:
            return (yield)
        finally:
            self.switch(self.current)


class Witness:
    """Ends the process at the first test that fails, whose name it writes, or after the last."""

    def __init__(self, note: Path) -> None:
        self.note = note

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        os._exit(exitstatus)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.note.write_text(report.nodeid)
            os._exit(1)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.note.write_text(f"import of {report.nodeid}")
            os._exit(1)


def run_tests(tree: Path, tests: list[str], plugin: object) -> int:
    """pytest's status, in a process of its own."""
    os.chdir(tree)
    os.setpgid(0, 0)  # what tests start ends with them
    sys.path[:0] = [str(tree), str(tree / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return pytest.main(["-q", "-p", "_hypothesis_pytestplugin", *tests], plugins=[plugin])


def record(tree: Path, tests: list[str], out: Path) -> None:
    """In a process of its own: runs test files, and writes what they cover."""
    import coverage  # type: ignore[import-not-found]

    measured = coverage.Coverage(data_file=None, source=[str(tree / "vamf")])
    measured.start()
    recorder = Recorder(measured.switch_context)
    sys.path[:0] = [str(tree)]
    for module in tree.glob("vamf/**/*.py"):  # or the first test would run their top levels
        if "kernels" not in module.parts:
            importlib.import_module(".".join(module.relative_to(tree).with_suffix("").parts))
    run_tests(tree, tests, recorder)
    measured.stop()
    data = measured.get_data()
    lines: dict[str, dict[str, list[int]]] = {}
    for file in data.measured_files():
        for line, contexts in data.contexts_by_lineno(file).items():
            for context in filter(None, contexts):
                by_file = lines.setdefault(context, {})
                by_file.setdefault(str(Path(file).relative_to(tree)), []).append(line)
    found: dict[str, Any] = {name: {} for name in tests}
    for test, names in recorder.fixtures.items():
        ran: dict[str, set[int]] = {}
        for context in (test, *(f"fixture {name}" for name in names)):
            for file, its in lines.get(context, {}).items():
                ran.setdefault(file, set()).update(its)
        row = {"seconds": recorder.seconds[test], "lines": {f: sorted(ran[f]) for f in ran}}
        found[test.partition("::")[0]][test] = row
    out.write_text(json.dumps(found))


def covered(tree: Path, chosen: list[Path], cache: Path) -> dict[str, Any]:
    """What each test of some files runs, and in what time: as kept, and of new files recorded."""
    names = [str(t) for top in chosen for t in (sorted(top.rglob("test_*.py")) or [top])]
    known = json.loads(cache.read_text()) if cache.exists() else {}
    marks = {n: hashlib.sha256((ROOT / n).read_bytes()).hexdigest() for n in names}
    missing = [n for n in names if known.get(n, {}).get("mark") != marks[n]]
    for first in range(0, len(missing), AT_ONCE):
        part = tree.parent / "part.json"
        in_child(None, record, tree, missing[first : first + AT_ONCE], part)
        for name, tests in json.loads(part.read_text()).items():
            known[name] = {"mark": marks[name], "tests": tests}
        cache.write_text(json.dumps(known))
    return {test: row for name in names for test, row in known[name]["tests"].items()}


def tests_of(file: str, lines: set[int], cover: dict[str, Any]) -> list[str]:
    """The tests that run one of some lines, or if none is given any of the file, in ``SECONDS``.

    File by file, its namesake and the quick ones first.
    """
    by_file: dict[str, dict[str, float]] = {}
    for test, row in cover.items():
        ran = row["lines"].get(file, ())
        if ran and (not lines or lines.intersection(ran)):
            by_file.setdefault(test.partition("::")[0], {})[test] = row["seconds"]
    near = sorted(
        by_file, key=lambda f: (Path(file).stem not in Path(f).stem, sum(by_file[f].values()))
    )
    chosen, left = [], SECONDS
    for name in near:
        for test, seconds in sorted(by_file[name].items(), key=lambda pair: pair[1]):
            if seconds <= left:
                chosen.append(test)
                left -= seconds
    return chosen


def in_child(seconds: float | None, function: Callable[..., Any], *args: object) -> int:
    """The status of a forked process that calls a function; it ends after so many seconds."""

    def whole() -> None:
        if seconds:
            signal.alarm(round(seconds))
        os._exit(function(*args) or 0)

    child = multiprocessing.get_context("fork").Process(target=whole)
    child.start()
    child.join()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid or 0, signal.SIGKILL)
    return child.exitcode or 0


def verdict(tree: Path, mutant: tuple[Path, int, str, str, str], cover: dict[str, Any]) -> Any:
    """What becomes of a mutant, how many tests were run, and which one killed it."""
    file, line, _, _, source = mutant
    place = str(file.relative_to(ROOT))
    lines = statement(file, line)
    tests = tests_of(place, lines, cover)
    if uncovered := bool(lines) and not tests:  # run by processes that tests start, or not at all
        tests = tests_of(place, set(), cover)
    if not tests:
        return {"fate": "untested", "covered": False, "tests": 0, "by": "", "status": 0}
    note = tree.parent / "note"
    note.unlink(missing_ok=True)
    (tree / place).write_text(source)
    Path(importlib.util.cache_from_source(str(tree / place))).unlink(missing_ok=True)
    seconds = 120 + 4 * sum(cover[test]["seconds"] for test in tests)
    status = in_child(seconds, run_tests, tree, tests, Witness(note))
    shutil.copy(file, tree / place)
    Path(importlib.util.cache_from_source(str(tree / place))).unlink(missing_ok=True)
    fates = {0: "survived", -signal.SIGALRM: "timeout"}  # else: as if its tests had other names
    fate = "killed" if note.exists() else fates.get(status, "unclear")
    by = note.read_text() if note.exists() else ""
    return {"fate": fate, "covered": not uncovered, "tests": len(tests), "by": by, "status": status}


def statement(file: Path, line: int) -> set[int]:
    """The lines of a statement, without what is nested in it; none outside of functions."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree, spans = ast.parse(file.read_text()), []
    for function in (node for node in ast.walk(tree) if isinstance(node, functions)):
        for node in (node for top in function.body for node in ast.walk(top)):
            if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
                head = node.body[0].lineno - 1 if hasattr(node, "body") else node.end_lineno or 0
                whole = {*range(node.lineno, max(head, node.lineno) + 1)}
                spans.append((node.lineno, whole if line in whole else {line}))
    return max(spans, key=lambda pair: pair[0], default=(0, set()))[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("places", nargs="+", type=Path, help="files, or folders of them")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help="of N shares the I-th")
    parser.add_argument("--tests", nargs="+", type=Path, default=[Path("tests")])
    parser.add_argument("--cover", type=Path, default=Path("cover.json"))
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    parser.add_argument("--again", action="store_true", help="try survivors once more")
    options = parser.parse_args()
    for module in HEAVY:
        importlib.import_module(module)
    gc.freeze()  # forks need not look through it

    files = [f.resolve() for top in options.places for f in sorted(top.rglob("*.py")) or [top]]
    drawn = [(f, *mutant) for f in files for mutant in mutants(f)]
    random.Random(options.seed).shuffle(drawn)
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        skip = shutil.ignore_patterns(".git", ".venv", ".whl", "runs", "__pycache__")
        shutil.copytree(ROOT, tree, ignore=skip)
        cover = covered(tree, options.tests, options.cover)
        first, step = options.share
        for mutant in drawn[: options.count][first::step]:
            file, line, before, after, _ = mutant
            row = {"file": str(file.relative_to(ROOT)), "line": line, "before": before}
            row |= {"after": after}
            same = [r for r in rows if all(r[key] == row[key] for key in row)]
            if same and not (
                options.again and same[0]["fate"] in ("survived", "untested", "unclear")
            ):
                continue
            rows = [r for r in rows if r not in same]
            rows.append(row | verdict(tree, mutant, cover))
            options.out.write_text(json.dumps(rows, indent=1) + "\n")
            print(f"{len(rows)}/{len(drawn)}", *rows[-1].values(), flush=True)


if __name__ == "__main__":
    main()
