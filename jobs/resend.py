"""Send queued events to MLflow: ``python -m jobs.resend runs/NAME``; ``runs`` for all."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from vamf.cluster.search.mlflow_outage import resend
from vamf.store import storage_path

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Send to MLflow what runs logged while it did not answer, without training."""

    folder: Annotated[str, tyro.conf.Positional]
    """A run's folder, a search's, or the storage of many; or a run's address in an object store."""
    tracking: str | None = None
    """MLflow's tracking URI; by default the one that the runs were logged to."""


def main(argv: list[str]) -> None:
    options = cli.read(Options, argv, "resend")
    found = cli.guarded(lambda: resend(storage_path(options.folder), options.tracking))
    if found.left:
        cli.stop(f"events that could not be sent: {found.left}; that were: {found.sent}", status=1)
    nothing = not found.sent and not found.refused
    print("nothing was waiting to be sent" if nothing else f"events sent: {found.sent}")
    if found.refused:
        cli.stop(f"events that MLflow refused: {found.refused}", status=1)


if __name__ == "__main__":
    cli.start(main)
