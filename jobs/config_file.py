"""Settings from a file: ``--config FILE``."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vamf import serialization
from vamf.experiment import Experiment
from vamf.experiment_schema import migrated
from vamf.files import expanded


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as in JSON and in YAML 1.2; PyYAML reads YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    [*"-+0123456789"],
)


def applied(experiment: Experiment, path: Path) -> Experiment:
    """The experiment with the settings of a file, nested or by dotted name.

    What ``--dry-run`` prints is such a file. Raises ValueError that names the file, if it cannot be
    read or a setting is wrong.
    """
    settings = read(path)
    try:
        return experiment.override(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """The settings of a file by dotted name: JSON if its name ends so, or else YAML.

    Raises ValueError that names the file, if it cannot be read.
    """
    try:
        text = expanded(path).read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else _Loader(text).get_single_data()
        if not isinstance(data, Mapping):
            raise ValueError(f"it must hold settings by name; got {data!r:.80}")
        flat = serialization.flatten(migrated(data) if "schema" in data else data)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    return dict(sorted(flat.items(), key=lambda item: item[0].count(".")))  # outer kinds first
