"""``jobs.train`` with a pause after each step, which it writes down: what the soak test disturbs.

``python tests/paced_train.py LOG PAUSE [options of jobs.train]``. LOG gets a line for each step of
rank 0, "TIME PID STEP"; the pauses, of so many seconds, are made while a file LOG.slow exists.
"""

import sys
from collections.abc import Callable
from typing import Any

from jobs import train
from vamf.cluster.train import worker


def paced(log: str, pause: float) -> Callable[[dict[str, Any]], None]:
    """The function of a worker; a closure, which Ray pickles whole."""
    work = worker.work

    def paced_work(config: dict[str, Any]) -> None:
        import os
        import time
        from pathlib import Path

        from vamf.training.step.trainer import Trainer

        step = Trainer.train_step

        def slow_step(trainer: Trainer) -> None:
            step(trainer)
            if trainer.workers.rank == 0:
                with Path(log).open("a") as file:
                    file.write(f"{time.time()} {os.getpid()} {trainer.step}\n")
            if Path(f"{log}.slow").exists():
                time.sleep(pause)

        Trainer.train_step = slow_step  # type: ignore[method-assign]
        work(config)

    return paced_work


if __name__ == "__main__":
    log, pause, *arguments = sys.argv[1:]
    worker.work = paced(log, float(pause))
    train.main(arguments)
