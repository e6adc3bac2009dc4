"""Runs kept in an object store: killed, damaged, read, spread over nodes that share no folder."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers.machine import command, kill, wait_until
from helpers.ray_nodes import Node, started
from helpers.s3_server import Server
from helpers.tiny import TINY, checkpoint, history, options, same, tracked
from helpers.tree import HELPERS
from helpers.twin_runs import CHANGES, Twins
from test_faults import assert_history
from test_spread import python

from jobs import evaluate, export, probe, resend, sample, train
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train import store_sync
from vamf.cluster.train.tracked_run import launch, new
from vamf.errors import RunFailed
from vamf.run_layout import MANIFEST, STATE
from vamf.store import Store
from vamf.tracking.event_queue import Event
from vamf.training.checkpoints.checkpoint import find_checkpoint
from vamf.training.checkpoints.exported_file import read_export
from vamf.training.checkpoints.remote_checkpoints import complete

KEPT = {"checkpoint.keep": 2}
FEW = CHANGES | KEPT
"""The twins' experiment, of which few checkpoints stay."""


@pytest.fixture
def run(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A new run's place in a store, on a machine that has nothing of it."""
    fresh_machine(tmp_path / "here", monkeypatch)
    return Store(s3.url(f"{tmp_path.name}/a"))


def fresh_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the working copies of this process are in an empty folder."""
    assert not folder.exists()
    monkeypatch.setenv("VAMF_CACHE", str(folder))


def of_step(run: Store, step: int) -> Store:
    return run / "checkpoints" / f"step_{step:08d}"


def has_folder(top: Path, pattern: str) -> bool:
    """Whether there is such a folder; others may go meanwhile, which ``rglob`` does not forgive."""
    return any(Path(folder).match(pattern) for folder, _, _ in os.walk(top))


def latest(run: Store) -> int:
    """The step of the latest whole checkpoint."""
    return max((int(name.removeprefix("step_")) for name in complete(run)), default=0)


def loaded(run: Store, step: int) -> dict[str, Any]:
    return find_checkpoint(Path(of_step(run, step).url)).load()


def best_step(directory: Path) -> int:
    return find_checkpoint(directory).step


def assert_as_twin(run: Store, twin: Path, uri: str) -> None:
    """Weights, curves and what is kept are those of a run that was never disturbed."""
    assert same(loaded(run, 40), checkpoint(twin, 40).load())
    assert_history(uri, run, twin)
    kept = {f"step_{step:08d}" for step in (39, 40, best_step(twin))}
    names = run.names()
    stored = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
    assert set(complete(run)) == stored == kept
    assert {"experiment.json", "run.json", "summary.json", "progress"} <= set(names)
    pictures = {f"samples/{path.name}" for path in (twin / "samples").iterdir()}
    assert pictures <= set(names)
    assert not any("partial" in name or "uploading" in name for name in names)
    for name in names:
        if name.endswith("events.jsonl"):
            assert run.read(name) == b""


@contextmanager
def halted(run: Store, step: int, uri: str, cache: Path, said: Path) -> Iterator[Store]:
    """``jobs.train``, until half of a checkpoint, of this step or later, is uploaded; at the end of
    the block it is killed."""
    script = HELPERS / "halting_upload.py"
    arguments = ["digits", "--storage", run.parent.url, "--name", run.name, "--tracking", uri]
    with said.open("w") as file:
        driver = subprocess.Popen(
            [sys.executable, str(script), str(step), *arguments, *options(FEW)],
            env=os.environ | {"VAMF_CACHE": str(cache)},
            stdout=file,
            stderr=file,
        )
    try:
        wait_until(lambda: "HALTED" in said.read_text() or driver.poll() is not None, "an upload")
        assert driver.poll() is None, said.read_text()
        yield run / "checkpoints" / said.read_text().split("HALTED ")[1].split()[0]
    finally:
        kill({driver.pid})
        driver.wait()


@pytest.mark.slow
def test_a_run_killed_in_mid_upload_goes_on_on_another_machine(
    twins: Twins,
    run: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The training loop did not wait for the upload: what it did meanwhile is lost with it."""
    gone, said = tmp_path / "gone", tmp_path / "said"
    with halted(run, 12, twins.uri, gone, said) as half:
        wait_until(lambda: has_folder(gone, "checkpoints/step_*30"), "step 30")
    assert 0 < latest(run) < 30
    assert "meta.json" in half.names() and MANIFEST not in half.names()

    train.main(["--resume", run.url, "--tracking", twins.uri])
    out, err = capsys.readouterr()
    assert f"run        {run}" in out and "damaged" not in err
    assert list((tmp_path / "here").rglob("*.pt")) == []  # a copy is deleted when all is well
    assert_as_twin(run, twins.one, twins.uri)


@pytest.mark.slow
def test_a_damaged_object_costs_only_its_steps(
    twins: Twins, run: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def die(progress: Mapping[str, Any]) -> None:
        if progress["step"] == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(TINY.override(FEW), new(run, twins.uri, "digits"), Scaling(), report=die)
    step = latest(run)
    assert 20 < step <= 25
    state = of_step(run, step).read(STATE)
    of_step(run, step).write(STATE, state[:-100] + b"x" * 100)
    with pytest.raises(ValueError, match=r"state\.pt: its checksum differs"):
        loaded(run, step)

    fresh_machine(tmp_path / "there", monkeypatch)
    train.main(["--resume", run.url, "--tracking", twins.uri])
    (found,) = tracked(twins.uri, run)
    reported = found.data.tags["checkpoint.damaged"]
    assert "its checksum differs" in reported and reported.endswith(
        f"; resumes from step {step - 1}"
    )
    assert_as_twin(run, twins.one, twins.uri)


@pytest.mark.slow
def test_a_store_that_takes_nothing_for_a_while_is_reported_and_costs_nothing(
    twins: Twins, run: Store, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 7 on it refuses the keys, until the run has reported it."""
    monkeypatch.setattr(store_sync, "PAUSES_S", (0.1,))
    start, notes = new(run, twins.uri, "digits"), []

    def come_and_go(progress: Mapping[str, Any]) -> None:
        if progress["step"] == 7:
            s3.refuse(True)
        if progress["step"] == 33:
            path = start.directory / "notes"
            wait_until(path.exists, "a note")
            notes.append(path.read_text())
            s3.refuse(False)

    try:
        launch(TINY.override(FEW), start, Scaling(), report=come_and_go)
    finally:
        s3.refuse(False)
    (found,) = tracked(twins.uri, run)
    reported = found.data.tags["storage.behind"]
    assert notes == [f"{reported}\n"] and reported.endswith("; training continues")
    assert "INVALID_ACCESS_KEY_ID" in reported
    assert_as_twin(run, twins.one, twins.uri)


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_with_one_line(
    tracking_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3: Server
) -> None:
    monkeypatch.setattr(store_sync, "PAUSES_S", ())
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path / "here"))
    server = Server(tmp_path / "log")
    server.start()
    run = Store(server.url("runs/a"))
    try:
        with pytest.raises(RunFailed, match="NETWORK_CONNECTION") as caught:
            launch(
                TINY,
                new(run, tracking_uri, "digits"),
                Scaling(),
                report=lambda progress: server.stop() if progress["step"] == 4 else None,
            )
    finally:
        server.stop()
    assert "\n" not in str(caught.value) and str(caught.value).endswith("resume the run")
    (found,) = tracked(tracking_uri, run)
    assert found.info.status == "FAILED" and "NETWORK_CONNECTION" in found.data.tags["error"]


@pytest.mark.slow
def test_nodes_without_a_common_folder_train_on_a_store(
    twins: Twins, run: Store, nodes: list[Node], tmp_path: Path
) -> None:
    """A worker is killed on the way: the others' nodes have nothing of its checkpoints."""
    caches = [tmp_path / "node0", tmp_path / "node1"]
    head = started(nodes, cpus=1, env={"VAMF_CACHE": str(caches[0])})
    second = started(nodes, cpus=1, head=head, env={"VAMF_CACHE": str(caches[1])})
    said = tmp_path / "said"
    arguments = ["digits", "--storage", run.parent.url, "--name", run.name]
    arguments += ["--tracking", twins.uri, "--scaling.workers", "2"]
    with python(head, "-m", "jobs.train", *arguments, *options(FEW), said=said) as process:
        wait_until(lambda: latest(run) > 5 or process.poll() is not None, "checkpoints", 300)
        assert process.poll() is None, said.read_text()
        assert not all(cache.exists() for cache in caches)  # rank 1 has needed nothing so far
        kill(pid for pid in second.processes() if "RayTrainWorker" in command(pid))
        wait_until(lambda: all(cache.exists() for cache in caches), "another start", 300)
        assert process.wait(300) == 0, said.read_text()
    assert f"run        {run}" in said.read_text()
    assert_as_twin(run, twins.two, twins.uri)


@pytest.mark.slow
def test_readers_take_the_address_of_a_run(
    run: Store, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And use what they would use of the same run in a folder; keys in the address stay there."""
    secret, shown = "s3cretpassw0rd", run
    run = Store(run.url.replace("s3://", f"s3://anyone:{secret}@"))
    place, plain = ["--tracking", tracking_uri, *options({"checkpoint.every": 1})], tmp_path / "p"
    train.main(["digits", "--storage", run.parent.url, "--name", run.name, *place])
    train.main(["digits", "--storage", str(plain), "--name", "a", *place])
    database = Path(tracking_uri.removeprefix("sqlite:///"))
    reported = [capsys.readouterr().out.encode(), database.read_bytes()]
    reported += [shown.read(name) for name in shown.names()]
    assert b"run        s3://...@bucket/" in reported[0]
    assert not any(secret.encode() in text for text in reported)
    found = {}
    for name, where in (("store", run.url), ("plain", str(plain / "a"))):
        capsys.readouterr()
        out = tmp_path / name
        evaluate.main([where, "--samples", "40", "--device", "cpu"])
        figures = capsys.readouterr().out.splitlines()[1:]
        sample.main([where, "--out", str(out / "grid.png"), "--device", "cpu"])
        export.main([where, "--out", str(out / "model.safetensors")])
        probe.main(
            [where, "--pairs", "2", "--bins", "1", "--out", str(out / "l"), "--device", "cpu"]
        )
        assert secret not in capsys.readouterr().out
        pictures = [path.read_bytes() for path in sorted(out.glob("*.png"))]
        found[name] = figures, pictures, read_export(out / "model.safetensors")[1:]
    assert len(found["store"][1]) == 2
    assert same(found["store"], found["plain"])
    assert same(loaded(run, 6), checkpoint(plain / "a", 6).load())
    with pytest.raises(SystemExit):
        sample.main([(run.parent / "b").url])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no checkpoint") and str(run.parent / "b") in line


@pytest.mark.slow
def test_what_a_run_in_a_store_could_not_send_is_sent_from_any_machine(
    run: Store,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launch(TINY, new(run, tracking_uri, "digits"), Scaling())
    (tracked_run,) = tracked(tracking_uri, run)
    queue = f"spool/{tracked_run.info.run_id}"
    event = Event(kind="metrics", data={"values": {"loss/train": 0.5}, "step": 7})
    run.write(f"{queue}/events.jsonl", json.dumps(asdict(event)).encode() + b"\n")
    run.delete(f"{queue}/sent")
    for machine, line in (("there", "events sent: 1"), ("now", "nothing was waiting")):
        fresh_machine(tmp_path / machine, monkeypatch)
        resend.main([run.url])
        assert capsys.readouterr().out.splitlines()[-1].startswith(line)
    assert history(tracking_uri, tracked_run, "loss/train")[7] == 0.5
