"""A search's study: which points are drawn when it goes on."""

import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from jobs import named
from vamf.cluster.search import search_runner
from vamf.cluster.search.search_config import Sweep, storage
from vamf.cluster.search.space import Space
from vamf.cluster.search.study import sampler
from vamf.presets import PRESETS
from vamf.tracking import Run

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SPACES = {name: named.space(name) for name in named.SPACES}
RANDOM = SimpleNamespace(
    OBJECTIVES=("a", "b"),
    POINTS=(),
    sampler=lambda seed: optuna.samplers.RandomSampler(seed=seed),
    space=lambda trial: {"beta.value": trial.suggest_float("beta.value", 0.0, 1.0)},
)
NSGA = SimpleNamespace(
    **vars(RANDOM) | {"sampler": lambda seed: optuna.samplers.NSGAIISampler(seed=seed)}
)
ALL = pytest.mark.parametrize(
    "space", [*SPACES.values(), RANDOM, NSGA], ids=[*SPACES, "random", "nsga"]
)


@cache
def tables() -> bytes:
    """A database with Optuna's tables and no study: making them takes a second."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.db"
        optuna.get_all_study_names(f"sqlite:///{file}")
        return file.read_bytes()


def sweep_in(folder: Path, seed: int = 0) -> Sweep:
    folder.mkdir(exist_ok=True)
    if not (folder / "study.db").exists():
        (folder / "study.db").write_bytes(tables())
    run = Run(uri="", experiment_id="", run_id="", spool="")
    return Sweep(
        directory=folder,
        space="",
        experiment=PRESETS["toy"].override({"seed": seed}),
        preset="toy",
        objectives=("a", "b"),
        trials=8,
        seeds=1,
        parent=run,
    )


def drawn(space: Space, sweep: Sweep, state: TrialState, n: int = 3) -> list[Mapping[str, Any]]:
    """The next points of a search that is started, or goes on; they end in this state."""
    study = optuna.create_study(
        study_name=sweep.name,
        storage=sweep.storage,
        directions=["minimize"] * 2,
        sampler=sampler(space, sweep),
        load_if_exists=True,
    )
    points = []
    for _ in range(n):
        trial = study.ask()
        points.append(dict(space.space(trial)))
        values = [float(trial.number), 1.0] if state == TrialState.COMPLETE else None
        study.tell(trial, values, state=state)
    return points


@pytest.mark.parametrize(
    ("space", "state"),
    [
        *((space, TrialState.COMPLETE) for space in [*SPACES.values(), RANDOM, NSGA]),
        *((SPACES["constant"], state) for state in (TrialState.FAIL, TrialState.PRUNED)),
        *((SPACES["of_time"], state) for state in (TrialState.FAIL, TrialState.PRUNED)),
    ],
)
def test_a_resumed_search_draws_points_of_its_own(
    space: Space, state: TrialState, tmp_path: Path
) -> None:
    """Twice resumed: no number that was drawn comes again, whatever became of the trials."""
    points = [p for _ in range(3) for p in drawn(space, sweep_in(tmp_path / "s"), state)]
    numbers = [v for point in points for v in point.values() if isinstance(v, float)]
    assert len(set(numbers)) == len(numbers) >= 9


@ALL
def test_a_new_search_draws_what_its_seed_says(space: Space, tmp_path: Path) -> None:
    state = TrialState.COMPLETE
    first = drawn(space, sweep_in(tmp_path / "a"), state)
    assert first == drawn(space, sweep_in(tmp_path / "b"), state)
    assert first != drawn(space, sweep_in(tmp_path / "c", seed=1), state)


def test_a_resumed_sobol_sequence_is_the_one_that_was_begun(tmp_path: Path) -> None:
    whole = drawn(SPACES["constant"], sweep_in(tmp_path / "a"), TrialState.COMPLETE, 9)
    parts = [
        drawn(SPACES["constant"], sweep_in(tmp_path / "b"), TrialState.COMPLETE, 3)
        for _ in range(3)
    ]
    assert whole == [point for part in parts for point in part]


def test_a_study_of_another_optuna_is_one_line(tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    optuna.create_study(storage=storage(tmp_path))
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("UPDATE version_info SET schema_version = 10")
        database.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    with pytest.raises(ValueError, match="must be readable; got The runtime optuna") as caught:
        search_runner.resumed(tmp_path, tracking_uri)
    assert f"`$ optuna storage upgrade --storage {storage(tmp_path)}`" in str(caught.value)
    (tmp_path / "study.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(ValueError, match=r"must be readable; got .*file is not a database"):
        search_runner.resumed(tmp_path, tracking_uri)
