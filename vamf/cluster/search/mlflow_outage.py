"""Sends what trials and runs could not send to MLflow during an outage."""

from vamf import tracking
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.search_copy import SearchCopy
from vamf.cluster.train.run_lock import exclusive
from vamf.cluster.train.store_sync import StoreSync
from vamf.errors import StoreError
from vamf.run_layout import RUN, SWEEP, TRIAL, TRIALS
from vamf.store import StoragePath, Store
from vamf.tracking import Run
from vamf.tracking.unsent_events import Resent, has_unsent, send_all
from vamf.training.checkpoints.remote_checkpoints import working_copy


def send_unsent(sweep: Sweep) -> int:
    """Sends the queued events of trials that ended; returns how many are left."""
    folders = (record.parent for record in sweep.directory.glob(f"{TRIALS}/{TRIAL}"))
    run_files = (file for trial in folders for file in trial.glob(f"*/{RUN}"))
    runs = [Run.load(file, sweep.parent.uri) for file in run_files]
    return send_all([run for run in runs if has_unsent(run)]).left


def resend(location: StoragePath, uri: str | None) -> Resent:
    """Sends the queued events in a folder, or of a run or a search in a store.

    Raises ValueError if that fails.
    """
    if not isinstance(location, Store):
        return tracking.resend(location, uri)
    copy = working_copy(location, "driver")
    with exclusive(location):
        try:
            is_search = SWEEP in location.names()
            mirror = (SearchCopy if is_search else StoreSync)(location, copy)
            mirror.clear()
            mirror.pull()
            found = tracking.resend(copy, uri)
            mirror.push()
        except StoreError as error:
            raise ValueError(f"the run could not be read or written: {error}") from None
    return found
