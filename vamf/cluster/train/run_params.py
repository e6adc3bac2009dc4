"""Which settings of a run are its parameters in MLflow, and its data set there.

``experiment.json`` has all settings.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vamf import presets
from vamf.experiment import Experiment
from vamf.run_layout import RUN
from vamf.serialization import KIND, to_dict

MAIN = (
    "data.kind",
    "model.kind",
    "loss.kind",
    "beta.kind",
    "beta.value",
    "proxy",
    "optim.lr",
    "batch",
    "steps",
    "ema",
    "seed",
    "compute.precision",
)
"""Settings by which runs are compared, and which are always parameters if the experiment has
them."""


def parameters(experiment: Experiment, preset: str, varied: Iterable[str] = ()) -> dict[str, Any]:
    """What a search varies, then what differs from the preset, and ``MAIN``.

    Of an experiment whose preset is not known here, such as one from Python: all settings, or, in a
    search, ``MAIN``.
    """
    flat, varied = experiment.flatten(), tuple(varied)
    try:
        chosen: Collection[str] = experiment.differences(presets.preset(preset))
    except (ValueError, ImportError):
        chosen = () if varied else flat
    first = {name: flat[name] for name in varied if name in flat}
    shown = {*chosen, *MAIN, *(("init",) if experiment.init else ())}
    return first | {name: value for name, value in flat.items() if name in shown}


def shared(experiment: Experiment, preset: str, varied: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that all trials of a search share: without those that it varies."""
    kinds = {name.removesuffix(KIND) for name in varied if name.endswith(f".{KIND}")}
    found = parameters(experiment, preset, varied)
    return {
        name: value
        for name, value in found.items()
        if name not in varied and not name.startswith(tuple(kinds))
    }


def origin(experiment: Experiment) -> dict[str, str]:
    """The MLflow tag with the run from whose checkpoint the experiment starts; empty if none."""
    if experiment.init is None:
        return {}
    run_file = experiment.init.parent.parent / RUN  # of RUN/checkpoints/STEP
    try:
        return {"init.run": json.loads(run_file.read_text())["run_id"]}
    except (OSError, ValueError, KeyError, TypeError):  # an export, or not a run of MLflow
        return {}


def dataset(experiment: Experiment) -> tuple[str, str, str]:
    """The name of the data, a digest of their settings, and the settings as JSON."""
    data = experiment.data
    settings = json.dumps(to_dict(data), sort_keys=True)
    name = getattr(data, "name", "") or type(data).__name__
    return str(name), hashlib.sha256(settings.encode()).hexdigest()[:8], settings
