"""Real Ray clusters and a real MLflow database, for the tests that need them."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from helpers import leftovers, s3_server, warm
from helpers.ray_nodes import TOKEN, Node
from hypothesis.configuration import set_hypothesis_home_dir

os.environ.update(TOKEN)
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # as vamf.cluster has it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks; processes share the cores

os.environ.setdefault(leftovers.MARK, uuid4().hex)  # processes of pytest-xdist have their parent's

# Reference statistics are kept in the user's cache folder; those of tests are not.
os.environ["VAMF_CACHE"] = tempfile.mkdtemp(prefix="vamf-cache")
atexit.register(shutil.rmtree, os.environ["VAMF_CACHE"], ignore_errors=True)
set_hypothesis_home_dir(os.environ["VAMF_CACHE"])


STARTED, LEFT = pytest.StashKey[set[str]](), pytest.StashKey[list[str]]()
"""The files that were there when the tests began, and what they left."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests, and no others")


def pytest_configure(config: pytest.Config) -> None:
    """Leaves the slow tests out, or all others, unless tests are named or chosen by ``-m``."""
    named = any("::" in argument for argument in config.args)
    if not (named or config.option.markexpr):
        config.option.markexpr = "slow" if config.option.slow else "not slow"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Garbage collections, of which each training makes one, leave out what was imported."""
    gc.collect()
    gc.freeze()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.stash[STARTED] = leftovers.files()


@pytest.hookimpl(trylast=True)  # after the fixtures of the session
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a session that leaves processes, and with them ports, or files behind."""
    if hasattr(session.config, "workerinput"):
        return  # pytest-xdist's own process looks once all others have ended
    if lines := leftovers.left(os.environ[leftovers.MARK], session.stash[STARTED]):
        session.config.stash[LEFT] = lines
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds to a failure the ends of the logs of what the test had started."""
    report = yield
    if report.failed and "tmp_path" in item.funcargs:
        folders = [item.funcargs["tmp_path"], *(node.folder for node in Node.alive)]
        if (logs := _local_logs()) is not None:
            folders.append(logs)
        report.sections += leftovers.tails(folders, call.start)
    return report


def _local_logs() -> Path | None:
    """The folder of the logs of the cluster that this process has started, if it has."""
    from vamf.cluster.ray import connect

    found = connect.log_folder()
    return Path(found) if found else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.config.option.markexpr == "not slow":
        terminalreporter.write_line("Slow tests were left out: the option --slow runs them.")
    for line in terminalreporter.config.stash.get(LEFT, []):
        terminalreporter.write_line(f"left behind: {line}", red=True)


@pytest.fixture(scope="session")
def warm_workers() -> Iterator[None]:
    """A server that forks the workers of all clusters that the tests start."""
    with warm.serving():
        yield


@pytest.fixture(scope="session")
def ray_head(warm_workers: None) -> Iterator[str]:
    """The dashboard's address of a one-node cluster with two CPUs, for Ray Jobs."""
    head = Node(cpus=2)
    try:
        head.wait()
        yield head.address
    finally:
        head.stop()


@pytest.fixture(scope="session")
def local_ray(warm_workers: None) -> Iterator[None]:
    """The cluster that a run starts on this machine, shared by all tests of this process."""
    import ray

    from vamf.cluster.ray import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        connect.connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Server]:
    """An S3 server with a bucket, which knows the keys in the environment."""
    server = s3_server.Server(tmp_path_factory.mktemp("s3") / "log")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.KEYS.items():
            patch.setenv(name, value)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SQLite database of MLflow's: making its tables takes seconds, so tests share it.

    The processes of pytest-xdist have copies of one.
    """
    from vamf import tracking
    from vamf.file_lock import locked

    base, database = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("tracking")
    empty = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "empty.db"
    with locked(empty.with_suffix(".lock"), wait=True):
        if not empty.exists():
            tracking.check(f"sqlite:///{empty}")
    shutil.copy(empty, database / "mlflow.db")
    return f"sqlite:///{database / 'mlflow.db'}"
