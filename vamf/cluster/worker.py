"""What each Ray Train worker does: trains its share, and tells what becomes of it."""

import shutil
import socket
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vamf import output
from vamf.cluster import signals
from vamf.cluster.bars import NOTES, PROGRESS, add_note, notes
from vamf.cluster.mirror import Mirror
from vamf.cluster.notice import Notice
from vamf.cluster.shared import unseen
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.files import write_whole
from vamf.store import Store
from vamf.tracking import Run, Tracker
from vamf.training.fetching import CHECKPOINTS, fetch_alone, working_copy
from vamf.training.loop import Session, train
from vamf.training.restoring import Note

Report = Callable[[Mapping[str, Any]], None]

EXPERIMENT = "experiment.json"
"""The file that says what a run is."""


def work(config: dict[str, Any]) -> None:
    """The function that every Ray Train worker runs."""
    output.tolerate()
    if config["mark"] and not (mark := Path(config["mark"])).exists():
        raise unseen(mark.parent, [f"node {socket.gethostname()}"])
    workers = _place(config["workers"], config["gpus"])
    try:
        config, mirror = _brought(config, workers)
        tracker = _tracker(config) if config["run"] and workers.rank == 0 else None
        session = _session(config, workers, tracker, mirror)
        with mirror.following(session.note) if mirror else nullcontext():
            try:
                train(Experiment.from_dict(config["experiment"]), session)
            finally:
                if tracker:
                    tracker.flush()
        if config["store"]:
            shutil.rmtree(Path(config["directory"]) / CHECKPOINTS, ignore_errors=True)
    except Exception as error:
        if config["workers"]:
            error.add_note(traceback.format_exc())  # which would not travel to the driver
        raise


def _brought(config: dict[str, Any], workers: Workers) -> tuple[dict[str, Any], Mirror | None]:
    """With a store, brings the run to a folder of this node; only rank 0 brings anything back."""
    mirror = config["mirror"]
    if config["store"]:
        store = Store(config["store"])
        folder = working_copy(store, "worker" if workers.rank == 0 else "node")
        config = config | {"directory": str(folder)}
        mirror = Mirror(store, folder) if workers.rank == 0 else None
        if mirror:
            mirror.clear()
            mirror.pull()
            if not (folder / EXPERIMENT).exists():
                raise unseen(store, [f"node {socket.gethostname()}"])
    if mirror:
        mirror.fetch()
    return config, mirror


def _tracker(config: dict[str, Any]) -> Tracker:
    run = Run(**config["run"])
    return Tracker(run.kept_in(Path(config["directory"])))


def _session(
    config: dict[str, Any], workers: Workers, tracker: Tracker | None, mirror: Mirror | None
) -> Session:
    directory = Path(config["directory"])
    session = Session(
        directory=directory,
        workers=workers,
        wrap=_distributed(workers),
        report=_report(config, workers),
        halt=config["halt"],
        ending=signals.pending,
    )
    if tracker:
        session = replace(
            session,
            log=tracker.metrics,
            picture=_picture(tracker),
            note=_note(directory, tracker),
        )
    if mirror:
        session = replace(session, saved=mirror.changed)
    elif not config["store"] and config["workers"] and workers.rank == 0:
        notice = Notice(directory)
        session = replace(session, asked=notice.given, answered=notice.take)
    elif config["store"]:
        run = Store(config["store"])
        session = replace(session, fetch=lambda path: fetch_alone(run, path))
    return session


def _place(workers: int, gpus: float | None) -> Workers:
    if workers == 0:
        use_gpu = gpus != 0 and torch.cuda.is_available()
        return Workers(device=torch.device("cuda" if use_gpu else "cpu"))
    from ray.train import get_context
    from ray.train.torch import get_device

    context = get_context()
    return Workers(context.get_world_rank(), context.get_world_size(), get_device())


def _distributed(workers: Workers) -> Callable[[nn.Module], nn.Module]:
    if workers.world == 1:
        return lambda objective: objective
    devices = [workers.device] if workers.device.type == "cuda" else None
    return lambda objective: DistributedDataParallel(
        objective, device_ids=devices, broadcast_buffers=False
    )


def _report(config: dict[str, Any], workers: Workers) -> Report:
    directory, given = Path(config["directory"]), config["report"]

    def report(progress: Mapping[str, Any]) -> None:
        if workers.rank == 0:
            write_whole(directory / PROGRESS, str(progress["step"]))
        if config["workers"] > 0:
            import ray.train

            noted = {NOTES: "".join(f"{n}\n" for n in notes(directory))} if config["store"] else {}
            ray.train.report({**progress, **noted})
        elif given:
            given(progress)

    return report


def _note(directory: Path, tracker: Tracker) -> Note:
    def note(name: str, text: str) -> None:
        add_note(directory, text)
        tracker.tags({name: text})

    return note


def _picture(tracker: Tracker) -> Callable[[Path, int], None]:
    return lambda path, step: tracker.image(path, path.parent.name, step)
