"""A driver of its own, which joins a cluster: ``python driver.py WHAT FOLDER``, in RAY_ADDRESS.

A process can join one cluster only, and that of the tests may be in another.
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from helpers.tiny import TINY

from vamf.cluster.ray import connect
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train import worker
from vamf.cluster.train.fit import fit
from vamf.cluster.train.tracked_run import launch, new
from vamf.data import dataset
from vamf.training import loop

KEPT = TINY.override({"batch": 12, "checkpoint.every": 1, "checkpoint.keep": 40})
"""Its batch divides among 2 and among 3 workers."""

ELASTIC = KEPT.override({"steps": 20, "evaluation.every": 20})
GROWN, SHRUNK = 5, 10
"""Steps at which 2 workers wait to be 3, and 3 workers for the loss of one."""


def in_float64() -> None:
    """Has this process train in float64, and measure nothing."""
    torch.set_default_dtype(torch.float64)
    dataset.to_float = lambda images: images.double() / 127.5 - 1  # type: ignore[assignment]
    loop.evaluate = lambda trainer: {}  # type: ignore[assignment]


def spread(folder: Path) -> None:
    """The same experiment on 2 and on 3 nodes, and in this process."""

    def work(config: dict[str, Any]) -> None:
        import ray

        in_float64()
        node = ray.get_runtime_context().get_node_id()
        (Path(config["directory"]) / f"node_{node}").touch()
        worker.work(config)

    for workers in (2, 3):
        scaling = Scaling(workers=workers, placement="STRICT_SPREAD", wait=300)
        (folder / f"wants_{workers}").touch()
        scaling = connect.prepare(scaling, folder, "")
        fit_with(work, folder / str(workers), scaling)
    in_float64()
    (folder / "1").mkdir()
    loop.train(KEPT, loop.Session(directory=folder / "1"))


def fit_with(work: Callable[[dict[str, Any]], None], directory: Path, scaling: Scaling) -> None:
    """``fit`` with another function in the workers, which cannot import this file: a closure
    is pickled whole."""
    directory.mkdir()
    here, worker.work = worker.work, work
    try:
        fit(KEPT, directory, None, scaling)
    finally:
        worker.work = here


def unprepared(folder: Path) -> None:
    """Two workers on two nodes, of which nobody asked before whether they see the folder."""
    connect.connect()
    (folder / "late").mkdir()
    try:
        fit(KEPT, folder / "late", None, Scaling(workers=2, gpus=0, placement="SPREAD"))
    except ValueError as error:
        print(f"refused: {error}")


def elastic(folder: Path) -> None:
    """2 to 3 workers, which wait at two steps for the cluster to change."""

    def work(config: dict[str, Any]) -> None:
        def held(config: dict[str, Any], workers: Any) -> Callable[[Mapping[str, Any]], None]:
            report = make_report(config, workers)

            def reports(progress: Mapping[str, Any]) -> None:
                report(progress)
                step = progress["step"]
                while (workers.world == 2 and GROWN <= step < SHRUNK) or (
                    workers.world == 3 and step >= SHRUNK
                ):
                    time.sleep(0.1)

            return reports

        make_report, worker._report = worker._report, held
        worker.work(config)

    scaling = Scaling(workers=3, min_workers=2, resize_every=2, gpus=0)
    scaling = connect.prepare(scaling, folder, "")
    worker.work = work
    launch(ELASTIC, new(folder / "elastic", sys.argv[3], "digits"), scaling)


if __name__ == "__main__":
    {"spread": spread, "unprepared": unprepared, "elastic": elastic}[sys.argv[1]](Path(sys.argv[2]))
