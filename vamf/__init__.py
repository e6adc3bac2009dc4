"""vamf: variance-aware Mean Flows. Train one-step generative models, and find their beta.

    import vamf

    run = vamf.train("digits", steps=500)          # or an Experiment; workers=2 for Ray Train
    run.load().grid()                              # 64 one-step samples, as a picture
    search = vamf.tune("constant", trials=6)       # Ray Tune and Optuna
    search.to_pandas()
    vamf.compare([run.directory, search.directory])   # a row for each configuration

Importing vamf takes no time: what is named below is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vamf.api import Model, Search, TrainedRun, compare, load, results, resume, train, tune
    from vamf.cluster.ray.scaling import Scaling
    from vamf.cluster.search.analysis.comparison import Comparison
    from vamf.experiment import Experiment
    from vamf.presets import PRESETS

_WHERE = {
    "Comparison": "vamf.cluster.search.analysis.comparison",
    "PRESETS": "vamf.presets",
    "Experiment": "vamf.experiment",
    "Scaling": "vamf.cluster.ray.scaling",
    **dict.fromkeys(("Model", "Search", "TrainedRun", "load", "results", "resume"), "vamf.api"),
    **dict.fromkeys(("compare", "train", "tune"), "vamf.api"),
}

__all__ = [
    "PRESETS",
    "Comparison",
    "Experiment",
    "Model",
    "Scaling",
    "Search",
    "TrainedRun",
    "compare",
    "load",
    "results",
    "resume",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vamf' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
