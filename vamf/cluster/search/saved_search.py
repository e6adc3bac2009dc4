"""Writes a search's settings to its folder, and reads them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vamf import serialization
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import study_database
from vamf.cluster.search.budget import Budget
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.search_config import Sweep
from vamf.experiment import Experiment
from vamf.files import write_whole
from vamf.run_layout import SWEEP
from vamf.store import Store
from vamf.tracking import Run


def saved(directory: Path, uri: str = "", store: Store | None = None) -> Sweep:
    """The search in a folder, as it was saved, to be read; ValueError if there is none.

    ``store`` is the location of which the folder is a copy, if it is one.
    """
    if not (directory / SWEEP).exists():
        raise ValueError(f"no search in {store or directory}: {SWEEP} is missing")
    data: dict[str, Any] = json.loads((directory / SWEEP).read_text())
    parent = Run(**data["parent"] | {"uri": uri})
    experiment = Experiment.from_dict(data["experiment"]).located()
    halving, budget = data.get("halving", {}), data.get("budget", {})  # older searches lack them
    fields: Mapping[str, Any] = data | {
        "directory": directory,
        "store": store,
        "experiment": experiment.moved(parent.directory, directory),
        "objectives": tuple(data["objectives"]),
        "parent": parent.kept_in(directory),
        "scaling": Scaling(**data["scaling"]),
        "halving": serialization.from_dict(Halving, halving),
        "budget": serialization.from_dict(Budget, budget),
        "study": study_database.address_again(None, data.get("study", "")),
    }
    return Sweep(**fields)


def save(sweep: Sweep) -> None:
    """Writes a search to its folder, without passwords."""
    data = asdict(replace(sweep, store=None)) | {
        "directory": None,
        "experiment": sweep.experiment.to_dict(),
        "parent": asdict(replace(sweep.parent, uri="")),  # it may hold credentials
        "study": study_database.without_password(sweep.study),
    }
    write_whole(sweep.directory / SWEEP, json.dumps(data, indent=2) + "\n")
