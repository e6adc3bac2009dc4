"""``vamf compare``: what it prints and writes, and its one line for what it refuses."""

import re
from pathlib import Path

import pytest
from helpers.ended import DISTANCE, write_run, write_search
from helpers.s3_server import Server
from PIL import Image

from jobs import compare
from vamf.cluster.search.analysis import comparison, curves
from vamf.metrics.distances import Measurement
from vamf.store import Store
from vamf.training.evaluation_log import add


def test_a_search_and_a_run_are_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = write_search(tmp_path / "s", {0.0: [9.0, 9.5], 0.5: [4.0, 4.1]})
    runs = [
        write_run(tmp_path / f"r{seed}", {"proxy": "ema", "seed": seed}, distance=9.0 + seed / 2)
        for seed in (0, 1)
    ]
    compare.main([str(search), *map(str, runs), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:5]]
    name = "fd_digits_cnn64_v1_n40_train"
    assert rows[0] == ["configuration", "seeds", name, "loss_variance", "seconds", "verdict"]
    assert rows[2][:3] == ["beta.value=0 proxy=online", "0, 1", "9.25 ± 0.25"]
    assert [row[-1] for row in rows[2:]] == ["baseline", "better", "indistinguishable"]
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        *("metrics.png", "samples.png", "table.md")
    ]
    assert lines[-3:] == [
        f"table      {tmp_path / 'out' / 'table.md'}",
        f"plot       {tmp_path / 'out' / 'metrics.png'}",
        f"samples    {tmp_path / 'out' / 'samples.png'}",
    ]


def test_the_best_trial_alone_and_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_search(tmp_path / "s", {0.0: [9.0], 0.5: [4.0], 1.0: [5.0]})
    write_run(tmp_path / "r", {"beta.value": 1.0}, distance=6.0)
    compare.main(["--best", "r", "s"])
    out = capsys.readouterr().out
    assert "| beta.value=1 " in out and "| beta.value=0.5 " in out and "beta.value=0 " not in out
    assert "--seeds 2" in out and (tmp_path / "comparison" / "table.md").exists()


def test_a_search_of_named_trials_has_their_names_costs_and_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = write_search(tmp_path / "s", {0.0: [9.0, 9.5], 0.5: [4.0, 4.1]}, labels=("a", "b"))
    for trial, pace in enumerate((0.25, 0.125)):
        for seed in (0, 1):
            run = search / f"t{trial:03d}" / f"seed_{seed}"
            for step, value in ((2, 8.0), (4, 4.0 + seed)):
                add(run, step, pace, {DISTANCE: Measurement(value, 0.1)}, gib=6.0 + seed)
    found = comparison.compare([search])
    name = found.distance
    assert [row.label for row in found.rows] == ["a", "b"]
    assert curves.points(found.rows[1], name) == [
        curves.Point(0.25, 2 * found.rows[1].runs[0].experiment.batch, Measurement(8.0, 0.0)),
        curves.Point(0.5, 4 * found.rows[1].runs[0].experiment.batch, Measurement(4.5, 0.5)),
    ]
    compare.main([str(search), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:4]]
    assert rows[0][-3:] == ["ms a step", "peak GiB", "verdict"]
    assert [row[-3:-1] for row in rows[2:]] == [["250.0", "7.0"], ["125.0", "7.0"]]
    assert f"curves     {tmp_path / 'out' / 'curves.png'}" in lines
    assert Image.open(tmp_path / "out" / "curves.png").width > 1000


def test_the_curves_of_a_large_search_are_those_of_its_nearest_trials(tmp_path: Path) -> None:
    """And of the first, however far it is."""
    distances = [20.0, *(abs(k - 7.5) for k in range(14))]
    search = write_search(tmp_path / "s", {k / 20: [d] for k, d in enumerate(distances)})
    drawn = curves.shown(comparison.compare([search]))
    assert [row.metrics[DISTANCE].value for row in drawn] == [20.0, *distances[4:13]]


@pytest.mark.parametrize("wrong", ["sampling_steps", "not ended", "one", "other"])
def test_a_refusal_is_one_line(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a", distance=1.0)
    b = write_run(tmp_path / "b", {"evaluation.sampling_steps": 4}, distance=1.0)
    if wrong == "not ended":
        (b / "summary.json").unlink()
    folders = {"one": [a], "other": [a, tmp_path]}.get(wrong, [a, b])
    with pytest.raises(SystemExit) as ended:
        compare.main([*map(str, folders), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")
    assert {
        "sampling_steps": f"got evaluation.sampling_steps 1 and 4 of {a} and {b}",
        "not ended": f"train --resume {b}",
        "one": "at least two runs, or a search; got 1",
        "other": "must be a run or a search",
    }[wrong] in said.err
    assert not (tmp_path / "out").exists()


def stored(folder: Path, store: Store) -> str:
    """The address to which the files of a folder were uploaded."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        store.upload(path, path.relative_to(folder).as_posix())
    return store.url


@pytest.mark.slow
def test_what_is_in_a_store_is_compared_as_in_folders(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path / "cache"))
    search = write_search(tmp_path / "s", {0.0: [9.0, 9.5], 0.5: [4.0, 4.1]})
    run = write_run(tmp_path / "r", {"proxy": "ema"}, distance=9.0)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "state.pt").write_bytes(b"weights")
    stores = [Store(s3.url(f"compare/{place.name}")) for place in (search, run)]
    places = [stored(*pair) for pair in zip((search, run), stores, strict=True)]
    found = {}
    for name, chosen in (
        ("folders", [search, run]),
        ("stores", places),
        ("mixed", [search, *places]),
    ):
        compare.main([*map(str, chosen), "--out", str(tmp_path / name)])
        found[name] = [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]
    assert found["folders"] == found["stores"]
    said = capsys.readouterr().out
    assert f"left out   {stores[0] / 't000' / 'seed_0'}: " in said
    copied = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert copied == {
        *("sweep.json", "trial.json", "experiment.json", "summary.json", "step_00000006.png")
    }

    stores[1].delete("summary.json")
    stores[0].delete("t001/trial.json", "t000/trial.json")
    for store, line in zip(
        (*stores, Store(s3.url("compare/none"))),
        (
            "is complete; to resume: .*tune --resume",
            "has not ended.*train --resume",
            "neither exper",
        ),
        strict=True,
    ):
        with pytest.raises(SystemExit):
            compare.main([str(run), store.url])
        (said,) = capsys.readouterr().err.splitlines()
        assert str(store) in said and re.search(line, said) and "cache" not in said


def test_the_help_says_what_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in ("one row", "baseline", "better, worse or indistinguishable", "samples.png"):
        assert part in said
    assert "--best" in said and "have not ended" in said
