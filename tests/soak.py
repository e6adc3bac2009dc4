"""Trains on real Ray nodes while something random is killed every minute; compares with a twin.

``python tests/soak.py --minutes 30`` ends with its report, and with status 1 if anything is wrong.
"""

import itertools
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch
import tyro
from helpers.machine import command, kill, train_workers, wait_until
from helpers.mlflow_server import Server
from helpers.ray_nodes import TOKEN, Node
from helpers.tiny import checkpoint, history, same, tracked
from mlflow import MlflowClient
from torch.utils._pytree import tree_leaves

from vamf.tracking.event_queue import EventQueue
from vamf.training.checkpoints.checkpoint import Checkpoint

ROOT = Path(__file__).parents[1]
KINDS = ("worker", "node", "driver", "checkpoint", "mlflow")
PAUSE_S = 0.3
"""Seconds of rest after a step, until the kills are over: on few cores a restart takes long."""
SAVED = 20
"""Steps between checkpoints."""
SETTINGS = {
    "batch": 64,
    "log_every": 10,
    "checkpoint.every": SAVED,
    "evaluation.every": 25 * SAVED,
    "evaluation.variance_samples": 64,
    "evaluation.gradient_batches": 4,
    "evaluation.distance.samples": 200,
}


@dataclass(kw_only=True)
class Kill:
    """Something that was killed, and how the run got over it."""

    kind: str
    time: float
    recovered: float | None = None
    """When the run went on, by Unix time; None for an MLflow server, which the run outlives."""
    lost: int = 0
    """Steps that were repeated."""


@dataclass(kw_only=True)
class Soak:
    """The processes of a soak test: a head, two nodes, an MLflow server and the run's driver."""

    folder: Path
    minutes: float
    every: float
    """Seconds between kills; more if the run has not gone on since the kill before the last."""
    chance: random.Random
    head: Node = field(init=False)
    nodes: list[Node] = field(init=False)
    server: Server = field(init=False)
    driver: subprocess.Popen[bytes] | None = None
    kills: list[Kill] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """More than fit into the time: the rest is trained at full speed, once it is over."""
        return int(self.minutes * 60 / PAUSE_S) // SAVED * SAVED

    def start(self) -> None:
        """Starts nodes and server."""
        self.server = Server(self.folder)
        self.server.start()
        self.head = Node(cpus=0)
        self.head.wait()
        self.nodes = []
        for _ in range(2):  # one after the other: Ray fails to start two at once on few cores
            self.nodes.append(self._node())
            self.nodes[-1].wait()

    def _node(self) -> Node:
        return Node(cpus=2, head=self.head)

    def stop(self) -> None:
        """Ends whatever it started."""
        if self.driver is not None:
            self.driver.kill()
            self.driver.wait()
        self.server.kill()
        for node in (*self.nodes, self.head):
            node.stop()

    def drive(self, name: str, *, resume: bool = False) -> None:
        """Starts the driver of a run on two workers of two CPUs: each has a node to itself."""
        texts = [f"{name}={value}" for name, value in (SETTINGS | {"steps": self.steps}).items()]
        begin = ["toy", "--storage", str(self.folder), "--name", name]
        chosen = ["--resume", str(self.folder / name)] if resume else begin
        scaling = ["--scaling.workers=2", "--scaling.cpus=2", "--scaling.max-failures=1000"]
        arguments = [*chosen, *scaling, *([] if resume else ["--set", *texts])]
        pace = [str(self.folder / f"{name}.steps"), str(PAUSE_S)]
        with (self.folder / f"{name}.said").open("ab") as said:
            self.driver = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/paced_train.py"), *pace, *arguments],
                cwd=ROOT,
                env=os.environ
                | {"RAY_ADDRESS": f"127.0.0.1:{self.head.port}", "OMP_NUM_THREADS": "1"}
                | {"MLFLOW_TRACKING_URI": self.server.uri, "PYTHONPATH": str(ROOT)},
                stdout=said,
                stderr=said,
            )

    def taken(self, name: str) -> list[tuple[float, int, int]]:
        """All steps of a run, repeated ones too: time, process, step."""
        with suppress(FileNotFoundError):
            lines = (self.folder / f"{name}.steps").read_text().splitlines()
            fields = (line.split() for line in lines)
            return [(float(at), int(pid), int(step)) for at, pid, step in fields]
        return []

    def undisturbed(self) -> None:
        """The twin: the same run, at full speed and left alone."""
        self.drive("twin")
        assert self.driver is not None
        status = self.driver.wait()
        assert status == 0, (self.folder / "twin.said").read_text()

    def disturbed(self) -> None:
        """The run that something is killed of every minute, until the time is over."""
        slow = self.folder / "run.steps.slow"
        slow.touch()
        self.drive("run")
        wait_until(lambda: bool(self.taken("run")), "the first step", 300)
        last = time.time()
        until = last + self.minutes * 60
        kinds = list[str]()
        while not self._finished():
            self._replace_nodes()
            now = time.time()
            assert now < until + 1800, "the run did not end within half an hour of the kills"
            if now > until:
                slow.unlink(missing_ok=True)
            elif now > last + self.every and self._has_gone_on():
                kinds = kinds or self.chance.sample(KINDS, len(KINDS))
                if self._kill(kinds[-1]):
                    kinds.pop()
                    last = now
            time.sleep(0.5)

    def _has_gone_on(self) -> bool:
        """Since the kill before the last; so that some kills fall into a recovery."""
        taken = self.taken("run")
        return len(self.kills) < 2 or taken[-1][0] > self.kills[-2].time + 1

    def _replace_nodes(self) -> None:
        """Starts nodes again that did not come up."""
        for index, node in enumerate(self.nodes):
            if node.process.poll() is not None:
                self.surprises.append("a node did not start")
                node.stop()
                self.nodes[index] = self._node()

    def _finished(self) -> bool:
        """Whether the run has; a driver that has ended otherwise is started again."""
        assert self.driver is not None
        if (status := self.driver.poll()) in (None, 0):
            return status == 0
        if status > 0:  # killed by nobody here
            said = (self.folder / "run.said").read_text().splitlines()
            self._tell(f"the driver ended by itself with {status}: {said[-1]}")
            self.surprises.append(said[-1])
        for node in self.nodes:
            node.wait()
        self.drive("run", resume=True)
        return False

    def _kill(self, kind: str) -> bool:
        at = self.taken("run")[-1][2]
        done = bool(getattr(self, f"_kill_{kind}")())
        if done:
            self.kills.append(Kill(kind=kind, time=time.time()))
            self._tell(f"killed {kind} at step {at}")
        return done

    def _tell(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)

    def _kill_worker(self) -> bool:
        workers = sorted(train_workers())
        if workers:
            kill([self.chance.choice(workers)])
        return bool(workers)

    def _kill_node(self) -> bool:
        if not all(node._is_up() for node in self.nodes):
            return False
        lost = self.chance.randrange(2)
        self.nodes[lost].lose()
        self.nodes[lost].stop()
        self.nodes[lost] = self._node()
        return True

    def _kill_driver(self) -> bool:
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()
        return True

    def _kill_checkpoint(self) -> bool:
        """Truncates the newest, if there is another one, and makes the run read it."""
        found = sorted((self.folder / "run/checkpoints").glob("step_*"))
        if len(found) < 2 or not train_workers():
            return False
        with suppress(FileNotFoundError):
            os.truncate(found[-1] / "state.pt", 1000)
            return self._kill_worker()
        return False

    def _kill_mlflow(self) -> bool:
        self.server.kill()
        time.sleep(self.chance.uniform(3, 15))
        self.server.start()
        return True


def follow(kills: list[Kill], taken: list[tuple[float, int, int]]) -> int:
    """Notes after which kill each new process of rank 0 went on; returns how many did.

    Steps of kills that fell into one recovery are lost to the first of them.
    """
    recoveries = 0
    for (_, pid, step), (at, next_pid, next_step) in itertools.pairwise(taken):
        assert next_step <= step + 1, f"step {step} was followed by {next_step}"
        if pid == next_pid:
            continue
        recoveries += 1
        waiting = [k for k in kills if k.kind != "mlflow" and k.recovered is None and k.time < at]
        for outlived in waiting:
            outlived.recovered = at
        if waiting:
            waiting[0].lost = step - next_step + 1
    return recoveries


def difference(one: Checkpoint, other: Checkpoint) -> float:
    """The largest difference of two states in any number; 0 if they agree bit for bit."""
    a, b = one.load(), other.load()
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    numbers = [(x.double(), y.double()) for x, y in pairs if isinstance(x, torch.Tensor)]
    largest = max(float((x - y).abs().max()) for x, y in numbers)
    return 0.0 if same(a, b) else largest or math.inf


def check_tracking(soak: Soak) -> dict[str, object]:
    """What MLflow holds: one finished run for each folder, whose curves are the twin's."""
    (run,) = tracked(soak.server.uri, soak.folder / "run")
    (twin,) = tracked(soak.server.uri, soak.folder / "twin")
    client = MlflowClient(soak.server.uri)
    runs = client.search_runs([run.info.experiment_id])
    names = sorted(name for name in twin.data.metrics if not name.startswith("time/"))
    points = 0
    for name in names:
        curve = history(soak.server.uri, run, name)  # which refuses steps that repeat
        assert curve == history(soak.server.uri, twin, name), name
        points += len(curve)
    return {
        "runs in MLflow (2 expected)": len(runs),
        "status": run.info.status,
        "curves equal to the twin's": len(names),
        "points, each once and in order": points,
        "events left in the queue": not EventQueue(
            soak.folder / "run/spool" / run.info.run_id
        ).empty(),
        "notes": {k: v for k, v in run.data.tags.items() if k.startswith(("workers.", "error"))},
    }


def check_files(folder: Path) -> dict[str, object]:
    """What the run's folder holds that it should not."""
    left = [p for p in folder.rglob("*") if p.suffix in (".partial", ".removed", ".new")]
    found = sorted((folder / "checkpoints").glob("step_*"))
    for path in found:
        Checkpoint(path).check()
    hidden = len(list((folder / "checkpoints").glob(".step_*.damaged")))
    return {
        "half-written files": [str(path.relative_to(folder)) for path in left],
        "checkpoints, all intact": len(found),
        "damaged ones, put aside": hidden,
    }


def reported(kills: list[Kill]) -> str:
    """A line for each kind."""
    lines = []
    for kind in KINDS:
        own = [kill for kill in kills if kill.kind == kind]
        seconds = [kill.recovered - kill.time for kill in own if kill.recovered]
        lost = [kill.lost for kill in own]
        line = f"{kind:10} {len(own):3} killed"
        if seconds:
            line += (
                f", {len(seconds)} recovered after {mean(seconds):.0f} s ({min(seconds):.0f} to "
                f"{max(seconds):.0f}), steps repeated {mean(lost):.1f} a kill, {max(lost)} at most"
            )
        lines.append(line)
    return "\n".join(lines)


def main(
    minutes: float = 30.0, every: float = 60.0, seed: int = 0, folder: Path | None = None
) -> None:
    """Kills something every so many seconds for so many minutes, then lets the run end."""
    folder = folder or Path(tempfile.mkdtemp(prefix="soak"))
    folder.mkdir(exist_ok=True)
    os.environ |= TOKEN | {"VAMF_CACHE": str(folder.resolve() / "cache")}
    soak = Soak(folder=folder.resolve(), minutes=minutes, every=every, chance=random.Random(seed))
    try:
        soak.start()
        soak._tell(f"{soak.steps} steps in {folder}; first the twin")
        soak.undisturbed()
        soak._tell("the twin is done")
        begun = time.time()
        soak.disturbed()
        seconds = time.time() - begun
        wait_until(lambda: not train_workers(), "the end of all workers", 60)
        taken = soak.taken("run")
        recoveries = follow(soak.kills, taken)
        run, twin = (checkpoint(soak.folder / name, soak.steps) for name in ("run", "twin"))
        final = difference(run, twin)
        figures = check_tracking(soak) | check_files(soak.folder / "run")
        folders = [str(node.folder) for node in (soak.head, *soak.nodes)]
    finally:
        soak.stop()
    print(reported(soak.kills))
    figures = {
        "seconds": round(seconds),
        "kills": len(soak.kills),
        "recoveries": recoveries,
        "steps": soak.steps,
        "steps repeated": len(taken) - soak.steps,
        "largest difference from the twin": final,
        **figures,
        "processes left": orphans(folders),
        "what nobody killed and yet ended": soak.surprises,
    }
    for name, value in figures.items():
        print(f"{name:40} {value}")
    wrong = final != 0 or figures["half-written files"] or figures["processes left"]
    sys.exit(1 if wrong or figures["runs in MLflow (2 expected)"] != 2 else 0)


def orphans(folders: list[str]) -> list[str]:
    """Processes that outlived the nodes whose folders these are."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                reported = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if any(folder.encode() in reported for folder in folders):
                    found.append(command(int(entry.name)))
    return found


if __name__ == "__main__":
    tyro.cli(main)
