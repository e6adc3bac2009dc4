"""Imports point down, and each outside power is called from its one place: a walk over the code."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.tree import ROOT

from vamf import run_layout

LAYERS = (
    ("vamf.strict_fp32", "vamf.contiguous", "vamf.dropout", "vamf.output", "vamf.cpus"),
    ("vamf.file_lock", "vamf.errors", "vamf.run_layout", "vamf.compat", "vamf.markdown"),
    ("vamf.user_modules",),
    ("vamf.typing", "vamf.serialization", "vamf.rng", "vamf.distributed", "vamf.files"),
    ("vamf.signals", "vamf.redact", "vamf.commands", "vamf.experiment_schema", "vamf.moved_paths"),
    ("vamf.store", "vamf.cache"),
    ("vamf.flow",),
    ("vamf.diagnostics",),
    ("vamf.models", "vamf.data"),
    ("vamf.metrics",),
    ("vamf.experiment_settings",),
    ("vamf.experiment_objective", "vamf.experiment_guidance", "vamf.experiment_stages"),
    ("vamf.experiment",),
    ("vamf.presets", "vamf.training"),
    ("vamf.inference",),
    ("vamf.tracking",),
    ("vamf.cluster", "vamf.cluster.ray"),
    ("vamf.cluster.train", "vamf.cluster.submission"),
    ("vamf.cluster.search",),
    ("vamf.reproduction",),
    ("vamf.benchmarks",),
    ("vamf.api",),
    ("jobs",),
    ("vamf.__main__",),  # the command, which knows the programs and is imported by nothing
)
"""From the bottom up. A part imports itself and lower layers; parts of one layer are strangers."""

RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}


def modules() -> dict[str, Path]:
    """Dotted name and file of every module of the project."""
    files = [f for top in ("vamf", "tune_spaces", "jobs") for f in (ROOT / top).rglob("*.py")]
    names = {f: ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


MODULES = modules()


def imported(source: str, module: str, is_package: bool) -> Iterator[str]:
    """All that a module's code imports, as dotted names: inside functions, relative ones too.

    Of ``from a.b import c`` it is ``a.b.c``, whether c is a module or something in one.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                yield from (name.name for name in names)
            case ast.ImportFrom(base, names, level):
                above = package[: len(package) - level + 1] if level else []
                yield from (".".join([*above, *filter(None, [base]), n.name]) for n in names)
            case ast.Call(
                ast.Name("import_module") | ast.Attribute(_, "import_module"), [first, *_]
            ):
                yield first.value if isinstance(first, ast.Constant) else f"{module}.?"


def strings(source: str) -> Iterator[str]:
    """All strings in a module's code but its docstrings."""
    tree = ast.parse(source)
    alone = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def part_of(name: str) -> str | None:
    """The part in LAYERS that a dotted name belongs to."""
    parts = name.split(".")
    heads = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((head for head in heads if head in RANK), None)


def upward(module: str, imports: set[str]) -> list[str]:
    """Those of a module's imports that break the order of the layers."""
    own, wrong = "vamf.api" if module == "vamf" else part_of(module), []  # which it names
    for name in sorted(imports):
        other, top = part_of("vamf.api" if name == "vamf" else name), name.split(".")[0]
        if other is not None:
            allowed = own is not None and (other == own or RANK[other] < RANK[own])
        elif top in ("vamf", "tune_spaces"):
            allowed = top == "tune_spaces" and own == "jobs"  # or a part without a layer
        else:
            allowed = True
        if not allowed:
            wrong.append(name)
    return wrong


def imports_of(module: str) -> set[str]:
    file = MODULES[module]
    return set(imported(file.read_text(), module, file.name == "__init__.py"))


def users(*prefixes: str) -> set[str]:
    """The modules that import something of these names, or reach it by its dotted name."""
    return {
        module
        for module in MODULES
        if any(n == p or n.startswith(f"{p}.") for n in reached(module) for p in prefixes)
    }


@cache
def reached(module: str) -> set[str]:
    """The dotted names that a module imports or reaches."""
    tree = ast.parse(MODULES[module].read_text())
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return imports_of(module) | attributes


def test_the_walk_sees_the_project():
    assert {
        "vamf.flow.objectives.meanflow",
        "vamf.cluster",
        "jobs.train",
        "tune_spaces.constant",
    } <= set(MODULES)
    assert "vamf.flow.path.interpolate" in imports_of("vamf.flow.objectives.meanflow")
    assert "ray.train" in imports_of("vamf.cluster.train.worker")  # inside a function


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m != "vamf"))
def test_every_module_has_a_layer(module):
    assert part_of(module) is not None or module.split(".")[0] == "tune_spaces"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    by_table = {"vamf.?"} if module == "vamf" else set()  # which test_api compares with imports
    assert upward(module, imports_of(module) - by_table) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        (
            "vamf.flow.objectives.meanflow",
            "from vamf.flow.path import interpolate\nimport torch",
            [],
        ),
        ("vamf.flow.objectives.meanflow", "from vamf.models import mlp", ["vamf.models.mlp"]),
        ("vamf.flow.objectives.meanflow", "from vamf import experiment", ["vamf.experiment"]),
        (
            "vamf.flow.objectives.meanflow",
            "import vamf.cluster.train.fit as t",
            ["vamf.cluster.train.fit"],
        ),
        ("vamf.flow.objectives.meanflow", "from .path import interpolate", []),
        ("vamf.flow.objectives.meanflow", "from ...models.mlp import MLP", ["vamf.models.mlp.MLP"]),
        ("vamf.flow.objectives.meanflow", "from vamf.unheard import of", ["vamf.unheard.of"]),
        (
            "vamf.training.loop",
            "def f():\n    from vamf.tracking import Run",
            ["vamf.tracking.Run"],
        ),
        ("vamf.training.loop", "if False:\n    import jobs.train", ["jobs.train"]),
        ("vamf.cluster.search.tune", "import tune_spaces.constant", ["tune_spaces.constant"]),
        ("vamf.cluster.search.tune", "import_module('tune_spaces.x')", ["tune_spaces.x"]),
        ("vamf.data.toys", "from vamf.models.mlp import MLP", ["vamf.models.mlp.MLP"]),
        ("tune_spaces.constant", "from vamf.presets import TOY", ["vamf.presets.TOY"]),
        ("jobs.tune", "import tune_spaces, vamf.cluster.search.tune", []),
    ],
)
def test_the_walk_finds_upward_imports(module, source, wrong):
    assert upward(module, set(imported(source, module, is_package=False))) == wrong


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("vamf")))
def test_no_program_is_named_below_the_programs(module):
    """A command line spelled in a string is an import, too; one module spells them for all."""
    named = [text for text in strings(MODULES[module].read_text()) if "jobs." in text]
    assert named == [] or module == "vamf.commands"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("vamf")))
def test_file_names_of_runs_are_spelled_in_one_module(module):
    known = [value for name, value in vars(run_layout).items() if name.isupper() and "." in value]
    spelled = set(strings(MODULES[module].read_text())) & set(known)
    assert not spelled or module == "vamf.run_layout"


def test_docstrings_may_name_programs():
    code = '"""jobs.a"""\nclass A:\n    b: int\n    """jobs.c"""\n    d = f"jobs.{b}"'
    assert list(strings(code)) == ["jobs."]


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("tune_spaces")))
def test_search_spaces_import_optuna_only(module):
    tops = {name.split(".")[0] for name in imports_of(module)}
    assert tops <= {"optuna", *sys.stdlib_module_names}


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("vamf.flow")))
def test_the_mathematics_import_torch_only(module):
    tops = {name.split(".")[0] for name in imports_of(module)}
    assert tops <= {"torch", "vamf", *sys.stdlib_module_names}


def test_torch_fidelity_is_imported_by_its_compat_module_only():
    importers = {
        module
        for module in MODULES
        if any(name.split(".")[0] == "torch_fidelity" for name in imports_of(module))
    }
    assert importers == {"vamf.compat.torch_fidelity"}


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (
            (
                *(f"torch.func.{name}" for name in ("jvp", "linearize", "jacfwd", "hessian")),
                *(f"torch.func.{name}" for name in ("vjp", "grad", "grad_and_value", "jacrev")),
                *("torch.autograd.forward_ad", "functorch", "torch.autograd.functional"),
            ),
            {"vamf.flow.derivatives"},
        ),
        (
            ("torch.func",),
            {
                "vamf.flow.derivatives",
                "vamf.models.recomputation",
                "vamf.reproduction.ensemble.stacked_networks",
                "vamf.training.step.precision",
            },
        ),
        (
            ("mlflow",),
            {
                f"vamf.tracking.{name}"
                for name in ("server", "experiments", "shared_view", "model", "registry")
            },
        ),
        (
            ("ray.train",),
            {"vamf.cluster.train.fit", "vamf.cluster.train.worker", "vamf.compat.ray"},
        ),
        (
            ("ray.tune",),
            {"vamf.cluster.search.tune", "vamf.cluster.search.trial_runner", "vamf.compat.ray"},
        ),
    ],
)
def test_each_outside_power_is_called_from_its_one_place(names, places):
    assert users(*names) == places


def test_ray_and_optuna_stay_in_the_cluster():
    spaces = {m for m in MODULES if m.startswith("tune_spaces")}
    cluster = {m for m in MODULES if m.startswith("vamf.cluster")}
    assert users("ray") <= cluster | {"vamf.compat.ray"}
    examples = {m for m in MODULES if m.startswith("jobs.examples")}  # such as users write
    assert users("optuna") <= cluster | spaces | examples | {"vamf.compat.optuna"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_private_names_of_dependencies_are_used_in_compat_only(module):
    owners = "ray|optuna|mlflow|torch|sklearn"
    unstable = r"util\.client|core|tune\.progress_reporter"
    private = re.compile(rf"({owners})(\.\w+)*\._(?!_)\w+.*|ray\.({unstable})\..+")
    code = ast.walk(ast.parse(MODULES[module].read_text()))
    reached = {ast.unparse(node) for node in code if isinstance(node, ast.Attribute)}
    found = [name for name in imports_of(module) | reached if private.fullmatch(name)]
    assert found == [] or module.startswith("vamf.compat.")
