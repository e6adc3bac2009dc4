"""Logs runs to MLflow: the driver creates a run, rank 0 logs to it.

All events pass through a queue on shared storage. So a server that is down costs one warning, and
no point of a curve is lost or sent twice.
"""

from vamf.tracking.run import Run, address, files_beside, page_address, ui_command
from vamf.tracking.run_end import closing
from vamf.tracking.server import check, create, history, require, view_path
from vamf.tracking.tracker import Tracker, error_tags, rejoin
from vamf.tracking.unsent_events import Resent, address_of, resend

__all__ = [
    "Resent",
    "Run",
    "Tracker",
    "address",
    "address_of",
    "check",
    "closing",
    "create",
    "error_tags",
    "files_beside",
    "history",
    "page_address",
    "rejoin",
    "require",
    "resend",
    "ui_command",
    "view_path",
]
