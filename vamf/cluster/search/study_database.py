"""The database of a search's study: a file in the search's folder, or one that others reach."""

import os
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.trials import load_trials
from vamf.errors import one_line
from vamf.redact import redacted
from vamf.tracking.run import sqlite

VARIABLE = "VAMF_STUDY"
"""The environment variable with the address of the database for new searches."""

OWNER = "vamf.search"
"""The study's user attribute with the MLflow run of the search that it belongs to."""

BACKGROUND = re.compile(r" \(Background on this error at: .*?\)")
"""The end of SQLAlchemy's messages."""

SQLITE_WAIT_S = 60
"""Seconds for which a study's file waits for another process that writes to it."""


def address(given: str | None) -> str:
    """The database of a new study: as given, else as ``VAMF_STUDY`` says; empty for a file.

    Raises ValueError for what is not the address of a database.
    """
    chosen = given or os.environ.get(VARIABLE, "")
    if chosen:
        _check(chosen)
    return chosen


def address_again(given: str | None, saved: str) -> str:
    """The database of a study that exists: as given or ``VAMF_STUDY`` says, else as it was saved.

    Raises ValueError for an address of a study that is a file in its search's folder.
    """
    if not saved:
        if given:
            raise ValueError("this search keeps its study in its folder: it takes no --study")
        return ""
    return address(given) or saved


def without_password(address: str) -> str:
    """An address without its password; a user's name stays, as databases need it."""
    if not address:
        return ""
    url = sqlalchemy.make_url(address)
    bare = sqlalchemy.URL.create(
        url.drivername, url.username, None, url.host, url.port, url.database, url.query
    )
    return bare.difference_update_query(["password"]).render_as_string(hide_password=False)


def _check(address: str) -> None:
    try:
        scheme = sqlalchemy.make_url(address).get_backend_name()
    except sqlalchemy.exc.ArgumentError:
        scheme = ""
    if scheme not in ("postgresql", "mysql", "mariadb"):
        raise ValueError(
            "a study's address must be postgresql://USER@HOST/NAME or mysql://USER@HOST/NAME; "
            f"got {redacted(address)}"
        )
    scheme, _, rest = address.partition("://")
    user, _, place = rest.rpartition("@")
    if set(user) & set("/?#@"):  # it would be shown, or taken for a host
        raise ValueError(
            "user and password in a study's address must have special characters escaped, such as "
            f"%2F for / and %40 for @; got {scheme}://...@{place}"
        )


class Database(optuna.storages.RDBStorage):  # type: ignore[misc, unused-ignore]
    """A database on a server. Ray Tune writes it to the disk: without its password."""

    def __init__(self, address: str) -> None:
        super().__init__(address, engine_kwargs={"pool_pre_ping": True})

    def __reduce__(self) -> tuple[Any, ...]:
        return Database, (without_password(self.url),)


@cache
def _on_a_server(address: str) -> Database:
    return Database(address)


@lru_cache(maxsize=8)
def _in_a_file(address: str, _: tuple[int, int]) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(address)


def _identity(file: Path) -> tuple[int, int] | None:
    """What differs between two files of one name; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def database(sweep: Sweep) -> str | optuna.storages.RDBStorage:
    """The sweep's database, as Optuna's functions take it: opened once in a process.

    A file is opened again if another one is in its place; of a missing one it is the address.
    """
    if sweep.study:
        return _on_a_server(sweep.study)
    address = f"{sweep.storage}?timeout={SQLITE_WAIT_S}"
    file = _identity(Path(sqlalchemy.make_url(address).database or ""))
    return address if file is None else _in_a_file(address, file)


def study_names(sweep: Sweep) -> list[str]:
    """The names of all studies in a sweep's database; ValueError if it does not answer."""
    return _names(sweep.storage)


def require_free(address: str, name: str) -> None:
    """Raises ValueError if a database does not answer, or has a study of this name."""
    if address and name in _names(address):
        raise ValueError(f"{redacted(address)} has a study {name} already; choose another --name")


def require_readable(file: Path) -> None:
    """Raises ValueError if the file of a study is damaged, or of another version of Optuna."""
    if file.exists():
        _names(sqlite(file))


def require_own(sweep: Sweep) -> None:
    """Raises ValueError if a database does not answer, or lacks the study, or has another's."""
    if not sweep.study:
        return
    if sweep.name not in _names(sweep.study):
        if load_trials(sweep.directory):  # whose numbers a new study would give again
            raise ValueError(
                f"{redacted(sweep.study)} must have the study {sweep.name}; it has not"
            )
        return
    study = optuna.load_study(study_name=sweep.name, storage=database(sweep))
    owner = study.user_attrs.get(OWNER)
    if owner != sweep.parent.run_id:
        raise ValueError(
            f"the study {sweep.name} in {redacted(sweep.study)} must be that of the search with "
            f"MLflow's run {sweep.parent.run_id}; got that of {owner}"
        )


def _names(address: str) -> list[str]:
    try:
        return optuna.get_all_study_names(
            address if address.startswith("sqlite") else _on_a_server(address)
        )
    except ImportError:
        driver = sqlalchemy.make_url(address).drivername
        raise ValueError(
            f"a study at {driver}://... needs a Python driver, such as psycopg[binary] for "
            "postgresql:// or pymysql for mysql+pymysql://; it is not installed"
        ) from None
    except Exception as error:  # Optuna's, SQLAlchemy's, the driver's
        why = redacted(BACKGROUND.sub("", one_line(error)).replace("$STORAGE_URL", address))
        shown = redacted(address)
        raise ValueError(f"the search's study, {shown}, must be readable; got {why}") from None
