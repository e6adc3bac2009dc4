"""Whether trials can be placed: checked before a search, and while nodes are gone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from helpers.machine import command, wait_until
from helpers.ray_nodes import TOKEN, Node
from helpers.tiny import options
from optuna.trial import TrialState

from vamf.cluster.ray import capacity_watch
from vamf.cluster.ray.capacity import Amounts, runs_that_fit, shortage
from vamf.cluster.ray.capacity_watch import CapacityWatch
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search.trials import load_trials

SMALL, LARGE = {"CPU": 3.0}, {"CPU": 4.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("scaling", "nodes", "fits"),
    [
        (Scaling(workers=3, cpus=2, gpus=0), [SMALL, SMALL], 0),  # 6 CPUs in all, but in threes
        (Scaling(workers=2, cpus=2, gpus=0), [SMALL, SMALL], 1),
        (Scaling(workers=2, cpus=1, gpus=0), [SMALL, SMALL], 3),
        (Scaling(workers=0, cpus=4, gpus=0), [SMALL, SMALL], 0),
        (Scaling(workers=0, cpus=4, gpus=0), [SMALL, LARGE], 1),
        (Scaling(workers=2, cpus=1, gpus=0.5), [SMALL, LARGE], 1),
        (Scaling(workers=10, cpus=0.1, gpus=0.1), [LARGE], 1),  # ten tenths are one
        (Scaling(workers=1), [], 0),
        (Scaling(workers=3, min_workers=2, cpus=3, gpus=0), [SMALL, LARGE], 1),
        (Scaling(workers=2, placement="SPREAD"), [LARGE, SMALL], 3),
        (Scaling(workers=2, placement="STRICT_PACK"), [LARGE, SMALL], 3),
        (Scaling(workers=4, placement="STRICT_PACK"), [SMALL, LARGE], 1),
        (Scaling(workers=4, placement="STRICT_PACK"), [SMALL, SMALL], 0),
        (Scaling(workers=2, placement="STRICT_SPREAD"), [LARGE, SMALL], 3),
        (Scaling(workers=2, placement="STRICT_SPREAD"), [LARGE, SMALL, SMALL], 5),
        (Scaling(workers=3, placement="STRICT_SPREAD"), [LARGE, SMALL], 0),
    ],
)
def test_workers_are_placed_each_on_one_node(
    scaling: Scaling, nodes: list[Amounts], fits: int
) -> None:
    assert runs_that_fit(scaling, nodes) == fits


def test_what_is_missing_is_said_in_words() -> None:
    scaling = Scaling(workers=2, cpus=4, gpus=1)
    assert shortage(scaling, [SMALL, SMALL, LARGE]) == (
        "2 x 4 CPU and 1 GPU, each on one node; nodes: 2 x 3 CPU and 0 GPU, 1 x 4 CPU and 1 GPU"
    )
    assert shortage(scaling, []).endswith("each on one node; nodes: none")


def test_missing_nodes_are_reported_once_and_so_is_their_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, nodes, said = 100.0, [SMALL], list[tuple[float, str]]()
    monkeypatch.setattr(capacity_watch.time, "monotonic", lambda: now)
    monkeypatch.setattr(capacity_watch, "sizes", lambda: nodes)
    watch = CapacityWatch(Scaling(workers=1, gpus=0))
    for second in range(100):
        now, nodes = 100.0 + second, [SMALL] if not 20 <= second < 60 else []
        if line := watch.look():
            said.append((second, line))
    assert said == [
        (40, "no trial can be placed, nodes are missing: it needs 1 x 1 CPU, each on one node; "
        "nodes: none"),
        (60, "there is room for a trial again"),
    ]  # fmt: skip


@pytest.fixture
def nodes(warm_workers: None) -> Iterator[list[Node]]:
    """A head and a node of one CPU each, beside another cluster on the same machine.

    A trial's own process reserves 1 MB of memory, and so does not fit on the head.
    """
    started: list[Node] = []
    other = Node(cpus=1)
    try:
        other.wait()
        started.append(Node(cpus=1, memory=100_000))
        started[0].wait()
        started.append(Node(cpus=1, head=started[0]))
        started[1].wait()
        yield started
    finally:
        for node in [*reversed(started), other]:
            node.stop()


def searching(head: Node, storage: Path, *arguments: str) -> subprocess.Popen[str]:
    """``jobs.tune`` on a cluster; what it says goes to a file."""
    changes = {"steps": 40, "evaluation.every": 40, "checkpoint.every": 10}
    fixed = ["--storage", str(storage), "--name", "sweep", "--trials", "2", *arguments]
    with (storage / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.tune", "constant", *fixed, *options(changes)],
            env=os.environ | TOKEN | {"RAY_ADDRESS": f"127.0.0.1:{head.port}"},
            stdout=said,
            stderr=said,
            text=True,
        )


@pytest.mark.slow
def test_trials_wait_for_lost_nodes_aloud_and_what_never_fits_is_refused(
    nodes: list[Node], tmp_path: Path
) -> None:
    """Trials of two workers of one CPU take both nodes; one is lost in mid-trial."""
    head, unlucky = nodes
    said = tmp_path / "said"
    wide = searching(head, tmp_path, "--scaling.workers", "1", "--scaling.cpus", "2")
    assert wide.wait(300) == 2
    assert said.read_text() == (
        "error: the cluster must have room for a run; it needs 1 x 2 CPU, each on one node; "
        "nodes: 2 x 1 CPU\n"
    )

    search = searching(head, tmp_path, "--scaling.workers", "2")
    try:
        first = tmp_path / "sweep/t000/seed_0/checkpoints"
        wait_until(lambda: any(first.glob("step_*")), "a checkpoint", seconds=300)
        lost = " ".join(command(pid) for pid in unlucky.processes())
        assert "RayTrainWorker" in lost and "ImplicitFunc" in lost  # the trial's own process
        unlucky.lose()
        reported = "no trial can be placed, nodes are missing: it needs 2 x 1 CPU"
        wait_until(lambda: reported in said.read_text(), "a line on what is missing")
        assert not load_trials(tmp_path / "sweep")
        nodes.append(Node(cpus=1, head=head))
        nodes[-1].wait()
        assert search.wait(400) == 0, said.read_text()
    finally:
        search.kill()
        search.wait()
    text = said.read_text()
    assert text.count("trial 0: its process died; it resumes from its checkpoint") == 1
    assert text.count("no trial can be placed") == 1
    assert text.count("there is room for a trial again") == 1
    assert [trial.complete for trial in load_trials(tmp_path / "sweep")] == [True, True]
    study = optuna.load_study(
        study_name="sweep", storage=f"sqlite:///{tmp_path / 'sweep/study.db'}"
    )
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
