"""Filters the log lines and warnings of libraries."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quieten() -> None:
    """Keeps Ray's log lines off the terminal; the log files of its session have them.

    Also suppresses a warning of torch about itself, at the first jvp of a process.
    """
    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from vamf.compat.torch import load_jvp_rules  # slow to import

    load_jvp_rules()


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Suppresses, within the block, Optuna's log lines and its warnings of experimental features.

    Also Ray's warning that drawing a trial took long, which a slow disk can cause.
    """
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "Define-by-run function", UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
