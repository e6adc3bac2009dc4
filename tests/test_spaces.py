"""Search spaces fit their presets, and one that does not is refused."""

import importlib
import pkgutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest

import tune_spaces
from vamf import serialization
from vamf.cluster.search.space import DISTANCE, baseline, check, objectives, points
from vamf.presets import PRESETS

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACES = {
    m.name: importlib.import_module(f"tune_spaces.{m.name}")
    for m in pkgutil.iter_modules(tune_spaces.__path__)
}
SPACE = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def made(suggest, objectives=(DISTANCE, "eval/loss_variance"), points=()):
    """A space of one function."""
    return SimpleNamespace(PRESET="toy", OBJECTIVES=objectives, POINTS=points, space=suggest)


def drawn(space, n):
    """What a space suggests first and in random draws."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for point in points(space, PRESETS[space.PRESET]):
        study.enqueue_trial(point)
    return [dict(space.space(study.ask())) for _ in range(len(space.POINTS) + n)]


def test_there_are_spaces():
    assert {"constant", "schedules"} <= set(SPACES)


@SPACE
def test_space_fits_its_preset(space):
    preset = PRESETS[space.PRESET]
    check(space, preset, draws=40)
    for settings in drawn(space, 40):
        flat = preset.override(settings).flatten()
        assert settings and {n: flat[n] for n in settings} == settings


@SPACE
def test_first_points_are_taken_as_they_are(space):
    first = points(space, PRESETS[space.PRESET])
    for point, settings in zip(first, drawn(space, 0), strict=True):
        assert point.items() <= settings.items()


def test_a_relative_path_in_a_space_is_refused(tmp_path):
    """A trial would look for it in the folder of its worker."""

    def of(reference):
        return made(lambda trial: {"proxy": "reference", "reference": reference})

    check(of(str(tmp_path / "flow")), PRESETS["toy"])
    own = PRESETS["toy"].override({"proxy": "reference", "reference": "runs/flow"})
    check(made(lambda trial: {"beta.value": 0.5}), own)  # which is located before trials start
    with pytest.raises(ValueError, match=r"absolute, as trials .*; got reference=runs/flow$"):
        check(of("runs/flow"), PRESETS["toy"])


def test_first_points_take_the_values_of_the_preset_that_is_varied():
    """mnist's own are those of its source: proxy online, P(r = t) = 1/2, learning rate 1e-3."""
    own = {"proxy": "online", "times.prob_equal": 0.5, "optim.lr": 1e-3}
    found = points(SPACES["recipe"], PRESETS["mnist"])
    assert found == [{"beta.value": beta, **own} for beta in (0.0, 1.0)]
    assert baseline(SPACES["recipe"], PRESETS["mnist"]) == found[0]
    with pytest.raises(ValueError, match=r"does not fit the experiment: it has no guidance\.omega"):
        check(SPACES["guided"], PRESETS["mnist"])
    slow = PRESETS["mnist"].override({"optim.lr": 1e-7})  # out of the space's range
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="first point must give all its parameters, each in its"),
    ):
        warnings.simplefilter("ignore")
        baseline(SPACES["recipe"], slow)


@SPACE
def test_objectives_resolve(space):
    preset = PRESETS[space.PRESET]
    names = objectives(space, preset)
    key = f"eval/{preset.evaluation.distance.key}"
    assert len(names) == len(space.OBJECTIVES) >= 2 and key in names and DISTANCE not in names


@SPACE
def test_sampler_follows_its_seed(space):
    def suggestions(seed):
        study = optuna.create_study(
            directions=["minimize"] * len(space.OBJECTIVES), sampler=space.sampler(seed)
        )
        trials = []
        for _ in range(4):
            trial = study.ask()
            trials.append(dict(space.space(trial)))
            study.tell(trial, [0.0] * len(space.OBJECTIVES))
        return trials

    first = suggestions(0)
    assert isinstance(space.sampler(0), optuna.samplers.BaseSampler)
    assert first == suggestions(0) != suggestions(1)


def test_schedules_suggest_every_shape():
    shapes = {s["beta.shape"] for s in drawn(SPACES["schedules"], 40)}
    assert shapes == {"constant", "linear", "cosine", "step"}


@pytest.mark.parametrize(
    ("suggest", "message"),
    [
        (lambda t: {"beta.vlaue": t.suggest_float("b", 0, 1)}, "did you mean 'value'?"),
        (lambda t: {"btea.value": t.suggest_float("b", 0, 1)}, "did you mean 'beta'?"),
        (lambda t: {"beta.value": t.suggest_float("b", 1.1, 2)}, "must lie in"),
        (lambda t: {"beta.end": t.suggest_float("b", 0, 1)}, "takes no end"),
        (lambda t: {"model.channels": t.suggest_int("c", 8, 16)}, "unknown setting"),  # an MLP
    ],
)
def test_a_space_that_does_not_fit_is_refused(suggest, message):
    with pytest.raises(ValueError, match="does not fit") as caught:
        check(made(suggest), PRESETS["toy"])
    assert message in str(caught.value)


def test_a_field_that_only_some_draws_suggest_is_found():
    def suggest(trial):
        rare = trial.suggest_categorical("rare", [False, False, False, True])
        return {"ema": 2.0} if rare else {"ema": 0.5}

    with pytest.raises(ValueError, match=r"ema must lie in \[0, 1\); got 2.0"):
        check(made(suggest), PRESETS["toy"], draws=40)


def test_first_points_are_checked_too():
    """The bad value is outside of what is drawn at random in practice: probability 1e-6."""

    def suggest(trial):
        return {"beta.value": 5.0 if trial.suggest_int("k", 0, 10**6) == 7 else 0.5}

    check(made(suggest), PRESETS["toy"])
    with pytest.raises(ValueError, match="must lie in"):
        check(made(suggest, points=({"k": 7},)), PRESETS["toy"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((DISTANCE, "eval/los_variance"), "did you mean 'eval/loss_variance'"),
        ((DISTANCE,), "at least two objectives"),
        ((DISTANCE, DISTANCE), "at least two objectives"),
        ((DISTANCE, "eval/sw1_n4096"), "at least two objectives"),  # the same, by its own name
        ((DISTANCE, "loss/train"), "is not measured"),
    ],
)
def test_bad_objectives_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        objectives(made(None, names), PRESETS["toy"])


def test_distance_stands_for_the_experiments_own():
    toy = PRESETS["toy"]
    smaller = replace(
        toy,
        evaluation=replace(
            toy.evaluation,
            distance=serialization.override(toy.evaluation.distance, {"samples": 64}),
        ),
    )
    assert objectives(made(None), toy)[-1] == "eval/sw1_n4096"
    assert objectives(made(None), smaller)[-1] == "eval/sw1_n64"


def test_a_baseline_without_a_beta_is_refused():
    with pytest.raises(ValueError, match="needs an objective that has a beta; got DDPM"):
        objectives(made(None), PRESETS["cifar10_ddpm"])


@SPACE
def test_the_baseline_is_mean_flow(space):
    """beta = 0, and everything else at the preset's own values."""
    preset = PRESETS[space.PRESET]
    made_of = preset.override(baseline(space, preset))
    assert made_of.beta.label == "β=0.000" and replace(made_of, beta=preset.beta) == preset


def two(trial):
    return {
        "beta.value": trial.suggest_float("beta.value", 0, 1),
        "optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True),
    }


@pytest.mark.parametrize(
    "point", [{"beta.value": 0.0}, {"beta.value": 0.0, "optim.lr": 1.0}], ids=str
)
def test_a_first_point_outside_of_its_space_is_refused(point):
    line = "a space's first point must give all its parameters, each in its range; got {"
    with pytest.raises(ValueError, match=line) as raised, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        baseline(made(two, points=(point,)), PRESETS["toy"])
    assert "\n" not in str(raised.value)


def test_a_space_without_points_has_no_baseline():
    assert baseline(made(two), PRESETS["toy"]) is None
    point = {"beta.value": 0.0, "optim.lr": 1e-3}
    assert baseline(made(two, points=(point,)), PRESETS["toy"]) == point


@pytest.mark.parametrize("order", [1, -1])
def test_the_distance_decides_wherever_it_stands(order):
    """Tables, verdicts and the best trial are by the last objective."""
    names = (DISTANCE, "eval/loss_variance", "eval/gradient_variance")[::order]
    found = objectives(made(lambda trial: {}, names), PRESETS["toy"])
    assert found[-1] == f"eval/{PRESETS['toy'].evaluation.distance.key}"
    assert set(found[:-1]) == {"eval/loss_variance", "eval/gradient_variance"}
    others = tuple(name for name in names if name != DISTANCE)
    assert objectives(made(lambda trial: {}, others), PRESETS["toy"]) == others
