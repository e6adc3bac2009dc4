"""Runs over several nodes: the same numbers, more and fewer nodes on the way, one storage."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from helpers.driver import ELASTIC, GROWN, KEPT, SHRUNK
from helpers.machine import kill, wait_until
from helpers.ray_nodes import Node, started
from helpers.tiny import checkpoint, history, options, tracked
from helpers.tree import HELPERS, ROOT, TESTS
from mlflow import MlflowClient
from test_faults import latest

IMPATIENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
"""Ray Train first tries to start workers on a node that is lost, for a minute otherwise."""


@contextmanager
def python(head: Node, *arguments: str, said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that joins a head's cluster, as a user's would."""
    paths = [str(TESTS), str(ROOT)]
    known = (
        os.environ
        | IMPATIENT
        | {
            "RAY_ADDRESS": f"127.0.0.1:{head.port}",
            "PYTHONPATH": os.pathsep.join(paths),
        }
    )
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=known, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            kill({process.pid})
            process.wait()


def driver(
    head: Node, what: str, folder: Path, *more: str, said: Path
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """``driver.py``."""
    return python(head, str(HELPERS / "driver.py"), what, str(folder), *more, said=said)


def moments(run: Path, step: int) -> torch.Tensor:
    """Adam's average of the gradients up to a step, as one vector."""
    state = checkpoint(run, step).load()["optimiser"]["state"].values()
    return torch.cat([moment["exp_avg"].flatten() for moment in state])


def gradient(run: Path, step: int) -> torch.Tensor:
    """The gradient of a step, counted from 1."""
    decay = KEPT.optim.beta1
    before = moments(run, step - 1) if step > 1 else 0.0
    return (moments(run, step) - decay * before) / (1 - decay)


def weights(run: Path, step: int) -> torch.Tensor:
    state = checkpoint(run, step).load()
    return torch.cat(
        [tensor.flatten() for part in ("net", "ema") for tensor in state[part].values()]
    )


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they differ by rounding in float64 alone: measured at most 1.4e-15."""
    assert one.dtype == other.dtype == torch.float64
    return bool((one - other).norm() < 1e-12 * one.norm())


@pytest.mark.slow
def test_nodes_have_the_gradients_of_one_worker_step_for_step(
    nodes: list[Node], tmp_path: Path
) -> None:
    """The third node comes when 3 workers wait for it."""
    head, said = started(nodes, cpus=1), tmp_path / "said"
    started(nodes, cpus=1, head=head)
    with driver(head, "spread", tmp_path, said=said) as process:
        wait_until(lambda: (tmp_path / "wants_3").exists() or process.poll() is not None, "2", 300)
        assert not (tmp_path / "3").exists(), said.read_text()
        started(nodes, cpus=1, head=head)
        assert process.wait(300) == 0, said.read_text()
    one = tmp_path / "1"
    for workers in (2, 3):
        run = tmp_path / str(workers)
        assert len(list(run.glob("node_*"))) == workers  # each worker had a node of its own
        for step in range(1, KEPT.steps + 1):
            assert close(gradient(one, step), gradient(run, step)), (workers, step)
            assert close(weights(one, step), weights(run, step)), (workers, step)
    assert not close(gradient(one, 1), gradient(one, 2))
    assert not close(weights(one, 1), weights(one, 2))


@pytest.mark.slow
def test_an_elastic_run_grows_and_shrinks_with_its_cluster_and_says_so(
    nodes: list[Node], tracking_uri: str, tmp_path: Path
) -> None:
    head = started(nodes, cpus=1)
    started(nodes, cpus=1, head=head)
    said, directory = tmp_path / "said", tmp_path / "elastic"
    with driver(head, "elastic", tmp_path, tracking_uri, said=said) as process:
        wait_until(lambda: latest(directory) == GROWN, "2 workers' waiting for a third", 300)
        third = started(nodes, cpus=1, head=head)
        wait_until(lambda: latest(directory) == SHRUNK, "3 workers' waiting for a loss", 300)
        third.lose()
        assert process.wait(300) == 0, said.read_text()
    (run,) = tracked(tracking_uri, directory)
    assert run.info.status == "FINISHED"
    workers = history(tracking_uri, run, "time/workers")
    assert workers == {
        step: 3.0 if GROWN < step <= SHRUNK else 2.0 for step in range(1, ELASTIC.steps + 1)
    }
    noted = (directory / "notes").read_text().splitlines()
    changes = [re.findall(r"(\d) x a CPU", line) for line in noted]
    assert changes == [["2", "3"], ["3", "2"]], noted
    assert f"up to step {GROWN}" in noted[0] and f"up to step {SHRUNK}" in noted[1]
    assert run.data.tags["workers.changed"] == noted[1]
    assert checkpoint(directory, 20).made_on().startswith("2 x ")


@pytest.mark.slow
def test_storage_that_one_node_does_not_see_is_refused(
    nodes: list[Node], tracking_uri: str, tmp_path: Path
) -> None:
    """Before anything is made, and by a worker on a node that nobody had asked."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes the rights of root")
    storage, said = tmp_path / "runs", tmp_path / "said"
    storage.mkdir()
    head = started(nodes, cpus=1)
    started(nodes, cpus=1, head=head, hidden=storage)
    arguments = ["-m", "jobs.train", "digits", "--storage", f"file://{storage}"]
    arguments += ["--tracking", tracking_uri, "--name", "a", "--scaling.workers", "2"]
    with python(head, *arguments, *options({}), said=said) as process:
        assert process.wait(300) == 2
    (line,) = said.read_text().splitlines()
    assert line.startswith(f"error: the storage must be a folder that all nodes see; got {storage}")
    assert line.count("node ") == 1 and line.endswith("cannot see the run's files")
    assert list(storage.iterdir()) == []
    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert not client.search_runs(experiments, f"tags.directory = '{storage / 'a'}'")

    with driver(head, "unprepared", storage, said=said) as process:
        assert process.wait(300) == 0, said.read_text()
    refused = said.read_text().splitlines()[-1]
    assert refused.startswith("refused: the storage must be a folder that all nodes see; got ")
    assert not (storage / "late" / "checkpoints").exists()
