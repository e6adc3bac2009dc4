"""What a module must not load: checked in a Python process of its own."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("vamf.tracking", ("vamf.training", "vamf.inference", "mlflow")),
        ("jobs.sample", ("optuna", "ray", "mlflow")),
    ],
)
def test_a_module_does_not_load_what_it_does_not_need(module, unwanted):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert [
        name for name in loaded if f"{name}.".startswith(tuple(f"{u}." for u in unwanted))
    ] == []
