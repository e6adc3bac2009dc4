"""One experiment, trained by one process and by two workers, whose ends several tests look at."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.tiny import TINY

from vamf.experiment import Experiment

CHANGES = {
    "steps": 40,
    "evaluation.every": 10,
    "checkpoint.every": 1,
    "checkpoint.keep": 40,
    "probe.every": 20,
    "probe.pairs": 3,
    "probe.bins": 2,
}
LONG = TINY.override(CHANGES)
"""Long enough for a worker to be killed in the middle."""


@dataclass(frozen=True)
class Twins:
    experiment: Experiment
    uri: str
    one: Path
    """The folder of the run in this process."""
    two: Path
    """The folder of the run on two workers; each left its state in rank0.pt, rank1.pt."""


def keeping_states() -> Callable[[dict[str, Any]], None]:
    """The function of a worker, which also leaves the state of the worker's trainer behind.

    A closure, which Ray pickles whole: workers cannot import this file.
    """

    def work(config: dict[str, Any]) -> None:
        from pathlib import Path

        import torch

        from vamf.cluster.train import worker
        from vamf.training import loop

        trainers: list[loop.Trainer] = []

        class Kept(loop.Trainer):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments)  # type: ignore[arg-type]
                trainers.append(self)

        loop.Trainer = Kept  # type: ignore[misc]
        worker.work(config)
        (trainer,) = trainers
        path = Path(config["directory"]) / f"rank{trainer.workers.rank}.pt"
        torch.save(trainer.state_dict(), path)

    return work
