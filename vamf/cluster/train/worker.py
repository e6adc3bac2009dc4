"""The function that each Ray Train worker runs: it trains and reports progress."""

import shutil
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vamf import output, signals
from vamf.cluster.ray.storage_check import not_shared
from vamf.cluster.train import system_metrics
from vamf.cluster.train.progress import COMPILING, add_note, described, notes
from vamf.cluster.train.save_request import SaveRequest
from vamf.cluster.train.store_sync import StoreSync
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.files import write_whole
from vamf.run_layout import CHECKPOINTS, EXPERIMENT, NOTES, PROGRESS
from vamf.store import Store
from vamf.tracking import Run, Tracker, error_tags
from vamf.training.checkpoints.remote_checkpoints import fetch_alone, working_copy
from vamf.training.checkpoints.resume import NoteRecorder
from vamf.training.loop import ERROR, Session, train

Report = Callable[[Mapping[str, Any]], None]


def work(config: dict[str, Any]) -> None:
    """The function that every Ray Train worker runs."""
    output.escape_unencodable()
    if config["probe"] and not (probe := Path(config["probe"])).exists():
        raise not_shared(probe.parent, [f"node {socket.gethostname()}"])
    workers = _workers(config["workers"], config["gpus"])
    try:
        config, mirror = _with_local_copy(config, workers)
        tracker = _tracker(config) if config["run"] and workers.rank == 0 else None
        session = _session(config, workers, tracker, mirror)
        with (
            mirror.following(session.note) if mirror else nullcontext(),
            _sending(tracker) if tracker else nullcontext(),
        ):
            experiment = Experiment.from_dict(config["experiment"])
            if session.leads and experiment.compute.compile and workers.device.type == "cuda":
                add_note(session.directory, COMPILING)
            train(experiment, session)
        if config["store"]:
            shutil.rmtree(Path(config["directory"]) / CHECKPOINTS, ignore_errors=True)
    except Exception as error:
        if config["workers"]:
            error.add_note(traceback.format_exc())  # Ray does not send tracebacks to the driver
        raise


def _with_local_copy(
    config: dict[str, Any], workers: Workers
) -> tuple[dict[str, Any], StoreSync | None]:
    """With a store, copies the run to a folder of this node; only rank 0 copies files back."""
    mirror = config["mirror"]
    if config["store"]:
        store = Store(config["store"])
        folder = working_copy(store, "worker" if workers.rank == 0 else "node")
        config = config | {"directory": str(folder)}
        mirror = StoreSync(store, folder) if workers.rank == 0 else None
        if mirror:
            mirror.clear()
            mirror.pull()
            if not (folder / EXPERIMENT).exists():
                raise not_shared(store, [f"node {socket.gethostname()}"])
    if mirror:
        mirror.fetch()
    return config, mirror


@contextmanager
def _sending(tracker: Tracker) -> Iterator[None]:
    """A thread sends what is logged; at the end, what it has not yet sent is sent."""
    try:
        with tracker.in_background(), system_metrics.logged(tracker):
            yield
    finally:
        tracker.flush()


def _tracker(config: dict[str, Any]) -> Tracker:
    run = Run(**config["run"])
    return Tracker(run.kept_in(Path(config["directory"])))


def _session(
    config: dict[str, Any], workers: Workers, tracker: Tracker | None, mirror: StoreSync | None
) -> Session:
    directory = Path(config["directory"])
    session = Session(
        directory=directory,
        workers=workers,
        gpus=config["gpus"] or 1.0,
        wrap=_distributed(workers),
        report=_report(config, workers),
        early_stop=config["early_stop"],
        interruption=signals.pending,
    )
    if tracker:
        session = replace(
            session,
            log=_log(tracker),
            picture=_picture(tracker),
            note=_note(directory, tracker),
        )
    if mirror:
        session = replace(session, on_checkpoint=mirror.changed)
    elif not config["store"] and config["workers"] and workers.rank == 0:
        request = SaveRequest(directory)
        session = replace(session, save_requested=request.is_made, save_done=request.clear)
    elif config["store"]:
        run = Store(config["store"])
        session = replace(session, fetch_checkpoint=lambda path: fetch_alone(run, path))
    return session


def _workers(workers: int, gpus: float | None) -> Workers:
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
            write_whole(directory / PROGRESS, described(progress))
        if config["workers"] > 0:
            import ray.train

            more = {NOTES: "".join(f"{n}\n" for n in notes(directory))} if config["store"] else {}
            ray.train.report({**progress, **more})
        elif given:
            given(progress)

    return report


def _log(tracker: Tracker) -> Callable[[Mapping[str, float], int], None]:
    """Logs metrics as curves, and their errors, the latest, as a tag for each group of metrics."""

    def log(values: Mapping[str, float], step: int) -> None:
        errors = {n.removesuffix(ERROR): v for n, v in values.items() if n.endswith(ERROR)}
        tracker.metrics({n: v for n, v in values.items() if not n.endswith(ERROR)}, step)
        if errors:
            tracker.tags(error_tags(errors))

    return log


def _note(directory: Path, tracker: Tracker) -> NoteRecorder:
    def note(name: str, text: str) -> None:
        add_note(directory, text)
        tracker.tags({name: text})

    return note


def _picture(tracker: Tracker) -> Callable[[Path, int], None]:
    return lambda path, step: tracker.image(path, path.parent.name, step)
