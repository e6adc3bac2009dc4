"""Comparisons of small written runs: means, errors, verdicts, labels, and what is refused."""

import json
import tarfile
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.ended import DISTANCE, ERROR, VARIANCE, write_run, write_search
from helpers.tiny import TINY
from PIL import Image
from scipy import stats
from test_legacy import STORAGE

import vamf
from vamf.cluster.search.analysis.comparison import BASELINE, UNKNOWN, compare
from vamf.cluster.search.analysis.comparison_files import figure, side_by_side, write
from vamf.cluster.search.analysis.configurations import ONLY, labels
from vamf.metrics import significance
from vamf.training.loop import Summary


def write_seeds(root: Path, name: str, beta: float, distances: dict[int, float]) -> list[Path]:
    return [
        write_run(
            root / f"{name}{seed}",
            {"beta.value": beta, "seed": seed},
            distance=distance,
            seconds=10.0 * (1 + seed),
        )
        for seed, distance in distances.items()
    ]


def test_seeds_are_one_row_with_mean_and_standard_error(tmp_path: Path) -> None:
    a = write_seeds(tmp_path, "a", 0.0, {0: 1.0, 1: 2.0, 2: 6.0})
    b = write_seeds(tmp_path, "b", 0.5, {4: 7.0})
    found = compare([a[2], b[0], a[0], a[1]])
    first, second = found.rows
    assert (first.label, second.label) == ("beta.value=0", "beta.value=0.5")
    assert first.seeds == (0, 1, 2) and second.seeds == (4,)
    # Deviations -2, -1, 3: variance 14 / 2, error sqrt(7 / 3).
    assert first.metrics[DISTANCE] == pytest.approx((3.0, (7 / 3) ** 0.5))
    assert first.metrics[VARIANCE] == pytest.approx((0.5, 0.0))
    assert second.metrics[DISTANCE] == (7.0, ERROR)
    assert first.seconds == 20.0 and second.seconds == 50.0
    assert found.names == (DISTANCE, VARIANCE)


def test_verdicts_are_those_of_the_paired_test(tmp_path: Path) -> None:
    luck = np.array([0.0, 3.0, -2.0])
    noise = {0.0: [0.0, 0.1, -0.1], 0.5: [-9.9, -10.1, -10.0], 1.0: [0.1, 0.0, 0.0]}
    values = {beta: 20 + luck + own for beta, own in noise.items()}
    folders = [
        folder
        for beta, row in values.items()
        for folder in write_seeds(tmp_path, f"b{beta}_", beta, dict(enumerate(row.tolist())))
    ]
    found = compare(folders)
    verdicts = [row.verdict for row in found.rows]
    assert verdicts == [BASELINE, "better", "indistinguishable"]
    assert verdicts[1:] == significance.verdicts(np.stack([*values.values()]))
    # Without the pairing, the seeds' luck would hide a difference of this size.
    assert stats.ttest_ind(values[0.0], values[0.5] + 9.5).pvalue > 0.05
    table = found.table().splitlines()
    assert table[0].split("|")[-2].strip() == "verdict" and "better" in table[3]
    assert "pairs the seeds" in str(found).splitlines()[-1]
    assert compare([*folders[3:], *folders[:3]]).rows[2].verdict == "worse"


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    base = write_seeds(tmp_path, "a", 0.0, {0: 10.0, 1: 10.1, 2: 10.2, 3: 10.3})
    same = write_seeds(tmp_path, "b", 0.5, {1: 1.0, 2: 1.1, 3: 1.21, 9: 500.0})
    few = write_seeds(tmp_path, "c", 1.0, {3: 1.0, 8: 1.0})
    found = compare([*base, *same, *few])
    assert [row.verdict for row in found.rows] == [BASELINE, "better", UNKNOWN]
    lost = write_seeds(tmp_path, "d", 0.7, {0: 1.0, 1: float("nan")})
    found = compare([*base, *lost])
    assert [row.verdict for row in found.rows] == [BASELINE, "lost"]
    assert any(note.startswith("lost: ") for note in found.notes())


def test_one_seed_each_has_no_verdict(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"{b}", {"beta.value": b}, distance=1 + b) for b in (0.0, 1.0)]
    found = compare(folders)
    assert [row.verdict for row in found.rows] == [BASELINE, UNKNOWN]
    assert "verdict" not in found.table()
    assert "--seeds 2" in found.notes()[-1] and "another --seed" in found.notes()[-1]
    assert "error of one evaluation" in found.notes()[-2]


def test_replicas_alone_are_one_row(tmp_path: Path) -> None:
    found = compare(write_seeds(tmp_path, "a", 0.0, {0: 1.0, 1: 2.0}))
    assert [row.label for row in found.rows] == [ONLY]
    assert found.notes() == ["no verdict: all runs have the same configuration"]


def test_a_run_that_is_there_already_is_left_out(tmp_path: Path) -> None:
    search = write_search(tmp_path / "s", {0.0: [1.0], 0.5: [2.0]})
    twin = write_run(tmp_path / "twin", {"beta.value": 0.5, "log_every": 3}, distance=2.0)
    found = compare([search, twin])
    assert [row.seeds for row in found.rows] == [(0,), (0,)]
    assert found.left_out == (twin,) and str(twin) in found.notes()[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{}, {"optim.lr": 1e-4}], ["optim.lr=0.002", "optim.lr=0.0001"]),
        (
            [{}, {"beta.value": 1.0, "optim.lr": 1e-4}],
            ["beta.value=0.5 optim.lr=0.002", "beta.value=1 optim.lr=0.0001"],
        ),
        (
            [{}, {"beta.value": 0.50000001}],
            ["beta.value=0.5", "beta.value=0.50000001"],
        ),
        (
            [{}, {"guidance.omega": 2.0, "model.classes": 10}],
            [
                "guidance=null model.classes=0",
                "guidance.kind=Guidance guidance.omega=2 model.classes=10",
            ],
        ),
        (
            [{}, {"model.multipliers": [1, 1]}],
            ["model.multipliers=[1,2]", "model.multipliers=[1,1]"],
        ),
        (
            [{}, {"times.kind": "UniformTimes", "times.prob_equal": 1.0}],
            ["times.kind=LogitNormalTimes", "times.kind=UniformTimes times.prob_equal=1"],
        ),
        (
            [{}, {"times.kind": "UniformTimes", "times.prob_equal": 0.75}],
            ["times.kind=LogitNormalTimes", "times.kind=UniformTimes"],
        ),
        (
            [{}, {"beta.kind": "AdaptiveBeta"}, {"beta.value": 1.0}],
            [
                "beta.kind=BetaSchedule beta.value=0.5",
                "beta.kind=AdaptiveBeta",
                "beta.kind=BetaSchedule beta.value=1",
            ],
        ),
        (
            [{}, {"proxy": "ema", "compute.compile": True}],
            ["compute.compile=false proxy=online", "compute.compile=true proxy=ema"],
        ),
    ],
    ids=str,
)
def test_labels_are_what_differs(changes: list[dict], expected: list[str]) -> None:
    assert labels([TINY.override(change) for change in changes]) == expected


def test_a_search_beside_a_run(tmp_path: Path) -> None:
    search = write_search(tmp_path / "s", {0.0: [9.0, 9.5], 0.5: [4.0, 4.1], 1.0: [6.0, 6.5]})
    run = write_run(tmp_path / "r", {"proxy": "ema"}, distance=3.0)
    found = compare([search, run])
    assert [row.metrics[DISTANCE].value for row in found.rows] == [9.25, 4.05, 6.25, 3.0]
    assert found.rows[-1].label == "beta.value=0.5 proxy=ema"
    best = compare([run, search], best=True)
    assert [row.label for row in best.rows] == ["proxy=ema", "proxy=online"]
    assert best.rows[1].metrics[DISTANCE].value == 4.05


def test_a_run_without_a_metric_leaves_the_common_ones(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", distance=1.0)
    b = write_run(tmp_path / "b", {"beta.value": 1.0}, distance=2.0)
    summary = Summary.load(b / "summary.json")
    replace(summary, metrics={DISTANCE: summary.metrics[DISTANCE]}).save(b / "summary.json")
    found = compare([a, b])
    assert found.names == (DISTANCE,)
    assert len(figure(found).axes) == 1
    replace(summary, metrics={VARIANCE: summary.metrics[VARIANCE]}).save(b / "summary.json")
    with pytest.raises(ValueError, match=f"{b} must have measured {DISTANCE}"):
        compare([a, b])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"evaluation.sampling_steps": 4}, "evaluation.sampling_steps 1 and 4"),
        ({"evaluation.sampler": "heun"}, "evaluation.sampler average and heun"),
        ({"evaluation.seed": 7}, "evaluation.seed 2020 and 7"),
        ({"evaluation.distance.samples": 80}, "evaluation.distance.samples 40 and 80"),
        ({"evaluation.distance.reference": "test"}, "evaluation.distance.reference train and test"),
        (
            {"evaluation.distance.extractor": "randconv64_v1"},
            "evaluation.distance.extractor digits_cnn64_v1 and randconv64_v1",
        ),
        ({"data.kind": "MNIST"}, "data.kind Digits and MNIST"),
    ],
    ids=str,
)
def test_another_protocol_is_refused(settings: dict, line: str, tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", distance=1.0), tmp_path / "b"
    write_run(b, {"beta.value": 1.0, **settings}, distance=1.0)
    with pytest.raises(ValueError) as refused:
        compare([a, b])
    assert str(refused.value) == (
        f"runs must share data and evaluation to be compared; got {line} of {a} and {b}"
    )


def test_what_does_not_change_the_protocol_is_accepted(tmp_path: Path) -> None:
    many = {"evaluation.distance.samples": 1000}
    a = write_run(tmp_path / "a", many, distance=1.0)
    more = {"evaluation.every": 2, "evaluation.distance.also": ["kid"], "checkpoint.keep": 1}
    b = write_run(tmp_path / "b", {"seed": 1, **many, **more}, distance=1.0)
    assert [row.seeds for row in compare([a, b]).rows] == [(0, 1)]


def test_what_has_not_ended_is_refused(tmp_path: Path) -> None:
    ended = write_run(tmp_path / "ended", distance=1.0)
    with tarfile.open(STORAGE) as tar:
        tar.extractall(tmp_path, filter="data")
    run, search = tmp_path / "storage" / "run", tmp_path / "storage" / "search"
    with pytest.raises(ValueError, match=rf"{run} has not ended: .*train --resume {run}$"):
        compare([ended, run])
    with pytest.raises(ValueError, match=rf"t001.seed_0 has not ended: .*tune --resume {search}$"):
        compare([ended, search / "t001" / "seed_0"])
    (search / "t000" / "trial.json").unlink()
    with pytest.raises(ValueError, match=rf"no trial of {search} is complete.*tune --resume"):
        compare([ended, search])
    summary = Summary.load(ended / "summary.json")
    replace(summary, step=2, stopped="beaten").save(ended / "summary.json")
    with pytest.raises(ValueError, match="ended early, at step 2 of 6: beaten"):
        compare([ended, ended])


def test_other_folders_are_refused(tmp_path: Path) -> None:
    ended = write_run(tmp_path / "ended", distance=1.0)
    with tarfile.open(STORAGE) as tar:
        tar.extractall(tmp_path, filter="data")
    storage = tmp_path / "storage"
    for folder, line in (
        (storage, "must be a run or a search; it has neither experiment.json nor sweep.json"),
        (tmp_path / "absent", "absent is not a folder; known: ended"),
        (tmp_path / "endd", "endd is not a folder; did you mean 'ended'?"),
        (storage / "run" / "checkpoints" / "step_00000004", "is a checkpoint; give the folder of"),
    ):
        with pytest.raises(ValueError, match=line):
            compare([ended, folder])
    with pytest.raises(ValueError, match="at least two runs, or a search; got 1"):
        compare([ended])
    search = write_search(tmp_path / "s", {0.0: [1.0]})
    for damaged, name in ((search, "sweep.json"), (ended, "summary.json")):
        (damaged / name).write_text("{")
        with pytest.raises(ValueError, match=f"{damaged} cannot be read: "):
            compare([ended, search])


def test_a_search_that_lost_a_seed_is_refused(tmp_path: Path) -> None:
    search = write_search(tmp_path / "s", {0.0: [1.0, 2.0]})
    (search / "t000" / "seed_1" / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"t000 must hold a run for each of its 2 seeds; got 1"):
        compare([search, search])


def test_a_search_of_an_older_version_is_read(tmp_path: Path) -> None:
    with tarfile.open(STORAGE) as tar:
        tar.extractall(tmp_path, filter="data")
    search = tmp_path / "storage" / "search"
    run = write_run(tmp_path / "run", {"steps": 60, "model.multipliers": [1]}, distance=30.0)
    found = vamf.compare([str(search), run])
    first, second = found.rows
    assert (first.label, second.label) == ("beta.value=0 steps=6", "beta.value=0.5 steps=60")
    assert first.metrics[DISTANCE] == (55.30432708247031, 3.215878877405873)
    assert isinstance(found, vamf.Comparison) and str(found).startswith("| configuration")
    rows = found.to_pandas()
    assert list(rows[DISTANCE]) == [55.30432708247031, 30.0]
    assert list(rows[f"{DISTANCE} ±"]) == [3.215878877405873, ERROR]
    assert list(rows["configuration"]) == [first.label, second.label]
    picture = Image.open(write(found, tmp_path / "out")["samples"])
    assert picture.width > 2 * Image.open(first.runs[0].picture or "").width


def test_the_plot_has_points_with_errors_and_labels_apart(tmp_path: Path) -> None:
    betas = np.linspace(0, 1, 12).tolist()
    many = {"optim.lr": 1e-3, "optim.beta2": 0.99, "batch": 32, "ema": 0.99, "model.channels": 16}
    folders = [
        write_run(tmp_path / f"{i}", {"beta.value": b, **(many if i else {})}, distance=1 + b)
        for i, b in enumerate(betas)
    ]
    drawn = figure(compare(folders))
    drawn.savefig(BytesIO())  # places the labels
    left, right = drawn.axes
    assert (left.get_xlabel(), right.get_xlabel()) == (VARIANCE[5:], DISTANCE[5:])
    bars = [bar.lines for bar in right.containers]
    assert [points.get_xdata()[0] for points, _, _ in bars] == [1 + b for b in betas]
    ends = bars[3][2][0].get_segments()[0][:, 0]
    assert ends == pytest.approx([1 + betas[3] - ERROR, 1 + betas[3] + ERROR])
    boxes = sorted((t.get_window_extent() for t in left.get_yticklabels()), key=lambda b: b.y0)
    assert len(boxes) == 12
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    assert all(box.x0 >= 0 and box.x1 <= left.get_window_extent().x0 for box in boxes)


def test_pictures_stand_side_by_side_below_their_labels(tmp_path: Path) -> None:
    colours = ["red", "green", "blue", "yellow", "cyan"]
    folders = [
        write_run(
            tmp_path / colour,
            {"beta.value": i / 4, "optim.lr": 0.001 * (i + 1)},
            distance=1.0,
            colour=colour,
        )
        for i, colour in enumerate(colours)
    ]
    files = write(compare(folders), tmp_path / "out")
    assert {path.name for path in files.values()} == {"table.md", "metrics.png", "samples.png"}
    sheet = Image.open(files["samples"])
    assert sheet.width == 4 * 208 + 8  # four, of 60 pixels in 200, and margins; the fifth below
    for colour in colours:
        wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        assert sum(n for n, c in sheet.getcolors(1 << 20) or [] if c == wanted) == 60 * 40
    assert files["table"].read_text() == f"{compare(folders)}\n"


def test_long_labels_stay_above_their_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (60, 40), "red").save(path)
    one = side_by_side([("beta.value=0.5 " * 9 + "x" * 99, path), ("x", path)])
    between = one.crop((208, 0, 216, one.height))  # between the two labels
    assert between.getcolors() == [(8 * one.height, (255, 255, 255))]


def test_runs_without_pictures_leave_none(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{b}", {"beta.value": b}, distance=1.0, colour=None)
        for b in (0.0, 1.0)
    ]
    assert {*write(compare(folders), tmp_path / "out")} == {"table", "plot"}
    assert json.loads((folders[0] / "summary.json").read_text())["step"] == 6
