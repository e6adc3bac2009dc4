"""MLflow: the driver creates a run, rank 0 logs to it, and no point is lost or sent twice.

Every event goes through a queue on shared storage, so that a server which is down costs a line on
stderr and no point of any curve.
"""

from vamf.tracking.making import NotCreated
from vamf.tracking.model import save_model
from vamf.tracking.resending import Resent, address_of, resend
from vamf.tracking.run import Run, address, ui_command
from vamf.tracking.server import check, create, history, require
from vamf.tracking.tracker import Tracker, rejoin

__all__ = [
    "NotCreated",
    "Resent",
    "Run",
    "Tracker",
    "address",
    "address_of",
    "check",
    "create",
    "history",
    "rejoin",
    "require",
    "resend",
    "save_model",
    "ui_command",
]
