"""A cluster that loses a node, and then its head: what that costs a job."""

from pathlib import Path

import pytest
from helpers.machine import command, wait_until
from helpers.ray_nodes import Node, started
from helpers.tiny import options, tracked
from helpers.tree import ROOT
from helpers.twin_runs import CHANGES, Twins
from test_faults import assert_as_twin, latest

from jobs import submit as submit_job
from vamf.cluster.submission.submit import Submission, submit


@pytest.mark.slow
def test_a_lost_node_and_then_a_lost_head_cost_nothing(
    twins: Twins,
    nodes: list[Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Two workers of two CPUs each, so that each needs a node of its own.

    The lost node is replaced by another one; of the lost head's cluster nothing is left, and the
    job is submitted again to a new one.
    """
    monkeypatch.setenv("MLFLOW_TRACKING_URI", twins.uri)
    directory, scaling = tmp_path / "lost", ["--scaling.workers", "2", "--scaling.cpus", "2"]
    head = started(nodes, cpus=2)
    unlucky = started(nodes, cpus=2, head=head)
    train = ["train", "digits", "--storage", str(tmp_path), "--name", "lost", *scaling]
    submit(Submission(command=(*train, *options(CHANGES)), address=head.address, working_dir=ROOT))
    wait_until(lambda: latest(directory) > 2, "a few steps", seconds=300)
    family = unlucky.processes()
    assert any("RayTrainWorker" in command(pid) for pid in family)
    unlucky.lose()
    reached = latest(directory)
    assert reached < 40

    spare = started(nodes, cpus=2, head=head)
    wait_until(lambda: latest(directory) > reached + 2, "the run going on", seconds=300)
    assert any("RayTrainWorker" in command(pid) for pid in spare.processes())
    head.lose()
    assert latest(directory) < 40
    wait_until(lambda: not spare.processes(), "the end of what the lost head had started")
    (run,) = tracked(twins.uri, directory)
    assert run.info.status == "RUNNING"

    again = started(nodes, cpus=4)
    capfd.readouterr()
    command_line = ["--address", again.address, "--working-dir", str(ROOT), "--"]
    command_line += ["train", "--resume", str(directory), *scaling]
    assert submit_job.main(command_line) == 0
    out, _ = capfd.readouterr()
    assert f"run        {directory}" in out
    assert "Traceback" not in out
    assert_as_twin(directory, twins.two, twins.uri)
