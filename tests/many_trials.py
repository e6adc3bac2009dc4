"""A search of many cheap trials, and the memory of its processes over time.

``python tests/many_trials.py --trials 200`` prints a line every 25 trials, and ends with status 1
if a trial is missing.
"""

import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import tyro
from helpers.machine import descendants

from tune_spaces import constant
from vamf import tracking
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import search_runner
from vamf.presets import PRESETS

CHEAP = PRESETS["toy"].override(
    {
        "batch": 16,
        "steps": 10,
        "log_every": 5,
        "evaluation.every": 10,
        "evaluation.variance_samples": 8,
        "evaluation.gradient_batches": 2,
        "evaluation.distance.samples": 50,
        "checkpoint.every": 10,
    }
)


def mebibytes(pid: int) -> float:
    """The memory of a process, shared pages in parts."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def look(directory: Path, begun: float) -> None:
    """Prints one line."""
    family = {pid: mebibytes(pid) for pid in descendants(os.getpid())}
    trials = sorted((size, pid) for pid, size in family.items() if "ImplicitFunc" in name(pid))
    count = len(list(directory.glob("t*/trial.json")))
    print(
        f"{count:4} trials {time.monotonic() - begun:6.0f} s  driver {mebibytes(os.getpid()):5.0f} "
        f"MiB  trials' processes {[round(size) for size, _ in trials]}  all {len(family) + 1} "
        f"processes {sum(family.values()) + mebibytes(os.getpid()):5.0f} MiB  driver's files "
        f"{len(list(Path('/proc/self/fd').iterdir()))} threads {threading.active_count()}",
        file=sys.stderr,
        flush=True,
    )


def name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def main(trials: int = 200, every: int = 25) -> None:
    """Runs them and looks every so many trials."""
    folder = Path(tempfile.mkdtemp(prefix="many"))
    os.environ["VAMF_CACHE"] = str(folder / "cache")
    directory, uri = folder / "sweep", tracking.address(folder)
    plan = search_runner.Plan(constant, "constant", trials, 1)
    sweep = search_runner.new(plan, CHEAP, directory, uri, Scaling(gpus=0))
    done, begun = threading.Event(), time.monotonic()

    def watch() -> None:
        due = every
        while not done.wait(0.5):
            if len(list(directory.glob("t*/trial.json"))) >= due:
                look(directory, begun)
                due += every

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        found, _ = search_runner.run(constant, sweep)
    finally:
        done.set()
        thread.join()
    look(directory, begun)
    sys.exit(len(found.complete) != trials)


if __name__ == "__main__":
    tyro.cli(main)
