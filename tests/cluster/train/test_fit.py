"""Two real workers under Ray Train do what one process does on the joined batch."""

import json
from pathlib import Path

import pytest
import torch
from helpers.couplings import POINTS, random_pairs, write_couplings
from helpers.tiny import TINY, checkpoint, history, same, tracked
from helpers.twin_runs import Twins

from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train.fit import fit
from vamf.cluster.train.progress import progress
from vamf.data.toys import Toy


def vector(state: dict, part: str) -> torch.Tensor:
    """A part of a state as one vector, in float64."""
    if part == "gradient":  # Adam's first moment after one step is a tenth of it
        moments = state["optimiser"]["state"].values()
        return torch.cat([moment["exp_avg"].flatten() for moment in moments]).double() * 10
    tensors = [tensor for tensor in state[part].values() if tensor.is_floating_point()]
    return torch.cat([tensor.flatten() for tensor in tensors]).double()


@pytest.mark.slow
def test_two_workers_have_the_gradient_of_one_on_the_joined_batch(twins: Twins) -> None:
    one, two = (vector(checkpoint(run, 1).load(), "gradient") for run in (twins.one, twins.two))
    assert one.norm() > 0.01
    # Sums of 16 samples' float32 gradients in another order: measured 4e-7.
    assert (two - one).norm() < 1e-5 * one.norm()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["net", "ema"])
def test_weights_agree_after_a_few_steps(twins: Twins, part: str) -> None:
    one, two = (vector(checkpoint(run, 3).load(), part) for run in (twins.one, twins.two))
    # Adam divides by a gradient's own size, which carries the rounding of the smallest gradients
    # into whole steps: measured 1e-5 of the way that three steps take.
    assert (two - one).norm() < 1e-4 * (one - start(twins, part)).norm()


def start(twins: Twins, part: str) -> torch.Tensor:
    from vamf.training.step.trainer import build_networks

    experiment = twins.experiment
    shape = experiment.data.load("train").shape
    net, ema = build_networks(experiment, shape, torch.device("cpu"))
    return vector({"net": net.state_dict(), "ema": ema.state_dict()}, part)


@pytest.mark.slow
def test_two_workers_measure_what_one_measures(twins: Twins) -> None:
    one, two = (checkpoint(run, 10).metrics() for run in (twins.one, twins.two))
    names = [name for name in one if name.startswith("eval/") and not name.endswith("_se")]
    assert len(names) == 4
    for name in names:
        # Measured at most 1e-6; pixels are rounded to 8 bits, and the distance was the same.
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.slow
def test_two_workers_probe_the_landscape_that_one_probes(twins: Twins) -> None:
    """Of three pairs of batches one worker takes two, the other one."""
    one, two = (
        json.loads((run / "landscape" / "step_00000020.json").read_text())["total"]
        for run in (twins.one, twins.two)
    )
    assert one.keys() == two.keys() and "conditional/mse" in one
    for name, curve in one.items():
        assert two[name]["value"] == pytest.approx(curve["value"], rel=1e-3), name


@pytest.mark.slow
def test_all_ranks_hold_the_same_state(twins: Twins) -> None:
    first, second = (torch.load(twins.two / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(first, second)
    assert same(first, checkpoint(twins.two, 40).load())


@pytest.mark.slow
def test_each_figure_is_logged_once_and_is_that_of_all_workers(twins: Twins) -> None:
    (one,), (two,) = (tracked(twins.uri, run) for run in (twins.one, twins.two))
    assert (one.info.status, two.info.status) == ("FINISHED", "FINISHED")
    for key, steps in {
        "loss/train": range(1, 41),
        "loss/per_dimension": range(1, 41),
        "grad/norm": range(1, 41),
        "eval/loss_variance": range(10, 41, 10),
    }.items():
        ours, theirs = history(twins.uri, two, key), history(twins.uri, one, key)
        assert list(ours) == list(theirs) == list(steps)
        assert ours[10] == pytest.approx(theirs[10], rel=1e-3), key
    assert progress(twins.two) == 40


@pytest.mark.slow
def test_each_of_two_workers_reads_its_own_pairs_of_couplings(
    local_ray: None, tmp_path: Path
) -> None:
    """The gradient is the mean over 12 different pairs, as of one process that reads them all."""
    write_couplings(tmp_path / "pairs", random_pairs(32, (2,)), Toy())
    changes = {"data.kind": "Couplings", "data.root": str(tmp_path / "pairs")}
    experiment = POINTS.override(changes | {"checkpoint.every": 1, "checkpoint.keep": 4})
    runs = [tmp_path / f"of {workers}" for workers in (0, 2)]
    for run, workers in zip(runs, (0, 2), strict=True):
        run.mkdir()
        fit(experiment, run, None, Scaling(workers=workers, gpus=0))
    one, two = (vector(checkpoint(run, 1).load(), "gradient") for run in runs)
    assert one.norm() > 0.01
    # Sums of 12 samples' float32 gradients in another order: measured 8e-8.
    assert (two - one).norm() < 1e-5 * one.norm()
    one, two = (vector(checkpoint(run, 4).load(), "net") for run in runs)
    assert (two - one).norm() < 1e-6 * one.norm()  # measured 5e-9


def test_scaling_is_checked_before_anything_starts() -> None:
    with pytest.raises(ValueError, match=r"batch must be divisible .* got 16 for 3 workers"):
        Scaling(workers=3).check(TINY)
    Scaling(workers=2).check(TINY)
    for wrong in ({"workers": -1}, {"cpus": 0}, {"gpus": -1}, {"max_failures": -1}):
        with pytest.raises(ValueError, match="scaling needs workers >= 0"):
            Scaling(**wrong)


def test_an_elastic_run_is_checked_for_all_its_numbers_of_workers() -> None:
    Scaling(workers=2, min_workers=1).check(TINY)
    with pytest.raises(ValueError, match=r"batch must be divisible .* got 16 for 3 workers"):
        Scaling(workers=4, min_workers=2).check(TINY)
    for workers, fewest in ((2, 0), (2, 3), (0, 0)):
        with pytest.raises(ValueError, match=r"min_workers must lie in 1, \.\.\., workers; got"):
            Scaling(workers=workers, min_workers=fewest)
    with pytest.raises(ValueError, match="needs placement PACK or SPREAD; got STRICT_SPREAD"):
        Scaling(workers=2, min_workers=1, placement="STRICT_SPREAD")
    with pytest.raises(ValueError, match="scaling needs wait >= 0 and resize_every > 0"):
        Scaling(workers=2, min_workers=1, resize_every=0)
