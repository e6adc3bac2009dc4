"""No secret is printed or stored, no code is unpickled, and what is started listens here only."""

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.machine import descendants
from helpers.mlflow_server import Server
from helpers.tree import ROOT

from vamf.redact import redacted, without_credentials
from vamf.tracking import Run, ui_command
from vamf.tracking.error_reasons import failure, reason

SECRET = "s3cr3t-hunter2"
PARTS = ("vamf", "jobs", "tune_spaces")
SOURCES = sorted(path for part in PARTS for path in ROOT.glob(f"{part}/**/*.py"))

UNSAFE = (
    *("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "dill.load"),
    *("joblib.load", "pandas.read_pickle", "marshal.loads", "shelve.open", "eval", "exec"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load"),
)
"""Calls that run what a file says."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_read_in_a_way_that_runs_code(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert name not in UNSAFE, f"line {node.lineno}: {name}"
        if name == "torch.load":
            assert options.get("weights_only") == "True", f"line {node.lineno}"
        assert options.get("allow_pickle", "False") == "False", f"line {node.lineno}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at https://me:pw@host:1/x?", "at https://...@host:1/x?"),
        ("postgresql://me:p@w:x@db/m, http://tok@h", "postgresql://...@db/m, http://...@h"),
        ("mail me@host, see http://host/a@b", "mail me@host, see http://host/a@b"),
        (f"Bearer {SECRET} was refused", "Bearer ... was refused"),
        ("the mode is token", "the mode is token"),
    ],
)
def test_a_text_loses_what_is_secret(
    text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    monkeypatch.setenv("OTHER_TOKEN", "token")  # shorter than any secret
    assert redacted(text) == expected


@pytest.mark.parametrize(
    ("uri", "password"),
    [
        (f"https://me:{SECRET}@host/ml", SECRET),
        (f"https://{SECRET}@host/ml", SECRET),
        (f"postgresql://host/ml?user=me&password={SECRET}", SECRET),
        (f"postgresql://me:{SECRET}%40@host/ml", f"{SECRET}@"),
    ],
)
def test_an_address_is_reported_without_its_credentials(
    uri: str, password: str, tmp_path: Path
) -> None:
    assert without_credentials(uri).endswith("://host/ml")
    error = OSError(f"cannot reach {uri}: {password} refused")
    run = Run(uri=uri, run_id="1", experiment_id="2", spool="/s")
    reported = [
        without_credentials(uri),
        ui_command(uri, tmp_path),
        failure(uri, error),
        reason(uri, error),
    ]
    assert not [text for text in [*reported, repr(run)] if SECRET in text]


def test_the_browser_of_runs_is_for_this_machine(tmp_path: Path) -> None:
    assert ui_command(f"sqlite:///{tmp_path}/mlflow.db", tmp_path).endswith(" --host 127.0.0.1")


def listening(pids: set[int]) -> set[str]:
    """The addresses on which processes listen, in the hexadecimal of /proc/net."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):  # closed meanwhile
                inodes |= set(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}


STARTING = """
import sys, ray
from vamf.cluster.ray import connect
connect.connect()
ray.get(ray.remote(lambda: 0).remote())
print("up", flush=True)
sys.stdin.read()
"""
"""Starts a cluster, with a worker in it, and keeps it until its input is closed."""


@pytest.mark.slow
def test_a_cluster_that_vamf_starts_listens_on_this_machine_only() -> None:
    """In a process of its own: other tests listen for reasons of theirs."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTING],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        found = listening({process.pid} | descendants(process.pid))
        process.communicate("")
    ipv4, mapped = "0100007F", "0000000000000000FFFF00000100007F"
    assert found and found <= {ipv4, mapped}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path / "server")
    found.folder.mkdir()
    found.start()
    yield found
    found.kill()


def holding_it(folder: Path) -> list[Path]:
    """The files that hold the secret."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [path for path in files if SECRET.encode() in path.read_bytes()]


TOY = {
    "batch": 16,
    "steps": 4,
    "log_every": 1,
    "evaluation.every": 4,
    "evaluation.variance_samples": 8,
    "evaluation.gradient_batches": 2,
}
JOBS = {
    "run": ("train toy", {}),
    "failing": ("train toy --scaling.workers 1", {"optim.lr": 1e30}),
    "search": ("tune constant --trials 2", {"model.channels": 8}),
}
"""A job's name, its command line, and what it changes besides."""


@pytest.mark.slow
def test_a_secret_is_nowhere(tmp_path: Path, server: Server) -> None:
    """In the folder of runs, MLflow's database and files, Ray's logs, and what jobs print."""
    storage, said = tmp_path / "runs", tmp_path / "said"
    said.mkdir()
    with tempfile.TemporaryDirectory(prefix="vr") as ray_folder:  # short, for Ray's sockets
        secret = {
            "MLFLOW_TRACKING_URI": f"http://me:{SECRET}@127.0.0.1:{server.port}",
            "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-2",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": f"{SECRET}-3",
        }
        for name, (line, changes) in JOBS.items():
            settings = [f"{key}={value}" for key, value in (TOY | changes).items()]
            command = ["-m", f"jobs.{line}".split()[0], *line.split()[1:], "--name", name]
            done = subprocess.run(
                [sys.executable, *command, "--storage", str(storage), "--set", *settings],
                env=os.environ | secret | {"RAY_TMPDIR": ray_folder},
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == (1 if name == "failing" else 0), done.stderr
            (said / name).write_text(done.stdout + done.stderr)
        assert "the loss of step 2 is not finite" in (said / "failing").read_text()
        assert (storage / "search/ray").is_dir()
        for folder in (storage, said, server.folder, Path(ray_folder)):
            assert not holding_it(folder)
