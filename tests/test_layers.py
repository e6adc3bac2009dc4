"""Imports point down, and each outside power is called from its one place: a walk over the code."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    ("vamf.precision", "vamf.memory", "vamf.dropout", "vamf.output", "vamf.cpus"),
    ("vamf.typing", "vamf.values", "vamf.random", "vamf.distributed", "vamf.files", "vamf.redact"),
    ("vamf.store", "vamf.cache"),
    ("vamf.flow",),
    ("vamf.diagnostics",),
    ("vamf.models", "vamf.data"),
    ("vamf.metrics",),
    ("vamf.experiment",),
    ("vamf.presets", "vamf.training"),
    ("vamf.tracking",),
    ("vamf.cluster",),
    ("vamf.reproduction",),
    ("jobs",),
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


def part_of(name: str) -> str | None:
    """The part in LAYERS that a dotted name belongs to."""
    parts = name.split(".")
    heads = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((head for head in heads if head in RANK), None)


def upward(module: str, imports: set[str]) -> list[str]:
    """Those of a module's imports that break the order of the layers."""
    own, wrong = part_of(module), []
    for name in sorted(imports):
        other, top = part_of(name), name.split(".")[0]
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
    found = set()
    for module, file in MODULES.items():
        reached = {
            ast.unparse(node)
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Attribute)
        }
        names = imports_of(module) | reached
        if any(name == p or name.startswith(f"{p}.") for name in names for p in prefixes):
            found.add(module)
    return found


def test_the_walk_sees_the_project():
    assert {"vamf.flow.losses", "vamf.cluster", "jobs.train", "tune_spaces.constant"} <= set(
        MODULES
    )
    assert "vamf.flow.path.interpolate" in imports_of("vamf.flow.losses")
    assert "ray.train" in imports_of("vamf.cluster.worker")  # inside a function


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m != "vamf"))
def test_every_module_has_a_layer(module):
    assert part_of(module) is not None or module.split(".")[0] == "tune_spaces"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    assert upward(module, imports_of(module)) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("vamf.flow.losses", "from vamf.flow.path import interpolate\nimport torch", []),
        ("vamf.flow.losses", "from vamf.models import mlp", ["vamf.models.mlp"]),
        ("vamf.flow.losses", "from vamf import experiment", ["vamf.experiment"]),
        ("vamf.flow.losses", "import vamf.cluster.train as t", ["vamf.cluster.train"]),
        ("vamf.flow.losses", "from .path import interpolate", []),
        ("vamf.flow.losses", "from ..models.mlp import MLP", ["vamf.models.mlp.MLP"]),
        ("vamf.flow.losses", "from vamf.unheard import of", ["vamf.unheard.of"]),
        (
            "vamf.training.loop",
            "def f():\n    from vamf.tracking import Run",
            ["vamf.tracking.Run"],
        ),
        ("vamf.training.loop", "if False:\n    import jobs.train", ["jobs.train"]),
        ("vamf.cluster.tune", "import tune_spaces.constant", ["tune_spaces.constant"]),
        ("vamf.cluster.tune", "import_module('tune_spaces.x')", ["tune_spaces.x"]),
        ("vamf.data.toys", "from vamf.models.mlp import MLP", ["vamf.models.mlp.MLP"]),
        ("tune_spaces.constant", "from vamf.presets import TOY", ["vamf.presets.TOY"]),
        ("jobs.tune", "import tune_spaces, vamf.cluster.tune", []),
    ],
)
def test_the_walk_finds_upward_imports(module, source, wrong):
    assert upward(module, set(imported(source, module, is_package=False))) == wrong


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("tune_spaces")))
def test_search_spaces_import_optuna_only(module):
    tops = {name.split(".")[0] for name in imports_of(module)}
    assert tops <= {"optuna", *sys.stdlib_module_names}


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("vamf.flow")))
def test_the_mathematics_import_torch_only(module):
    tops = {name.split(".")[0] for name in imports_of(module)}
    assert tops <= {"torch", "vamf", *sys.stdlib_module_names}


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
            {"vamf.flow.derivatives", "vamf.training.members", "vamf.training.precision"},
        ),
        (("mlflow",), {"vamf.tracking.server", "vamf.tracking.model"}),
        (("ray.train",), {"vamf.cluster.train", "vamf.cluster.worker"}),
        (("ray.tune",), {"vamf.cluster.tune"}),
    ],
)
def test_each_outside_power_is_called_from_its_one_place(names, places):
    assert users(*names) == places


def test_ray_and_optuna_stay_in_the_cluster():
    spaces = {m for m in MODULES if m.startswith("tune_spaces")}
    assert all(m.startswith("vamf.cluster") for m in users("ray"))
    assert all(m.startswith("vamf.cluster") for m in users("optuna") - spaces)
