"""Keeping what libraries say of themselves off the terminal, and nothing that the user says."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna


def quieten() -> None:
    """Keeps Ray's own lines off the terminal; they stay in its session's log files.

    Torch, at the first jvp of a process, warns of a deprecated function that it calls itself.
    """
    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import torch._decomp.decompositions_for_jvp  # noqa: F401


def mute_raylet() -> None:
    """Keeps off stdout what Ray's node processes say of a worker's death: a screenful.

    ``log_to_driver=False`` does not reach these lines; they stay in the session's log files.
    """
    import ray._private.worker

    ray._private.worker.listen_error_messages = lambda *_: None


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """While it lasts, none of Optuna's notes on studies and on which of its parts are experimental.

    Nor Ray's that drawing a trial took long, which a database on a slow disk can cause.
    """
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "Define-by-run function", UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
