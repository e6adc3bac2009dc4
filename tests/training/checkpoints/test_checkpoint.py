"""Checkpoints: atomic, pruned, and refused if damaged, foreign or malicious."""

import errno
import json
import os
import pickle
import resource
import struct
from contextlib import contextmanager

import pytest
import torch

from vamf.data.toys import Toy
from vamf.experiment import Experiment
from vamf.experiment_settings import Evaluation
from vamf.metrics.distances import SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.training.checkpoints.checkpoint import Checkpoint, CheckpointFolder, find_checkpoint
from vamf.training.checkpoints.manifest import entry

EXPERIMENT = Experiment(
    data=Toy(),
    model=MLPConfig(hidden=(4,), embedding=2),
    evaluation=Evaluation(distance=SlicedWasserstein(samples=8)),
)
KEY = "eval/sw1_n8"
CPU = torch.device("cpu")


def state(step):
    return {
        "step": step,
        "net": {"w": torch.arange(1000.0) + step},
        "optimiser": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
    }


def folder(path, keep=2):
    return CheckpointFolder(path=path / "checkpoints", keep=keep, best_by=KEY)


def saved(path, *values, keep=2, experiment=EXPERIMENT):
    """One checkpoint for each value, at the steps 10, 20, ...; None: without a value."""
    checkpoints = folder(path, keep)
    for i, value in enumerate(values, start=1):
        checkpoints.save(experiment, state(10 * i), {} if value is None else {KEY: value})
    return checkpoints


def steps(checkpoints):
    return [checkpoint.step for checkpoint in checkpoints.all()]


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint = folder(tmp_path).save(EXPERIMENT, state(10), {KEY: 0.5, "loss/train": 2.0})
    loaded = checkpoint.load()
    assert checkpoint.step == loaded["step"] == 10
    assert torch.equal(loaded["net"]["w"], state(10)["net"]["w"])
    assert loaded["optimiser"]["param_groups"] == [{"lr": 0.1}]
    assert loaded["optimiser"]["state"][0]["step"] == 3
    assert checkpoint.metrics() == {KEY: 0.5, "loss/train": 2.0}
    assert checkpoint.experiment() == EXPERIMENT
    assert checkpoint.load_for(EXPERIMENT, CPU)["step"] == 10


def test_an_empty_folder_has_no_checkpoints(tmp_path):
    empty = folder(tmp_path)
    assert empty.all() == [] and empty.latest() is None and empty.best() is None


def test_an_incomplete_checkpoint_is_ignored_and_replaced(tmp_path):
    """A process killed before the rename leaves a hidden folder behind."""
    checkpoints = saved(tmp_path, 1.0)
    half = checkpoints.path / ".step_00000020.partial"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    (half / "left").write_text("over")
    assert steps(checkpoints) == [10] and checkpoints.latest().step == 10
    assert find_checkpoint(tmp_path).step == 10
    checkpoints.save(EXPERIMENT, state(20), {})
    assert steps(checkpoints) == [10, 20] and not half.exists()
    assert checkpoints.latest().load()["step"] == 20
    assert {p.name for p in checkpoints.latest().path.iterdir()} == {
        "experiment.json",
        "manifest.json",
        "meta.json",
        "state.pt",
    }


@pytest.mark.parametrize("call", ["torch.save", "pathlib.Path.rename"])
def test_a_save_that_dies_leaves_the_former_checkpoints(call, tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1.0)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(call, die)
        checkpoints.save(EXPERIMENT, state(20), {})
    assert steps(checkpoints) == [10] and checkpoints.latest().load()["step"] == 10


def test_files_are_on_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    """The order of system calls: all fsyncs of the content come before the rename."""
    events, fsync, rename = [], os.fsync, type(tmp_path).rename

    def record_rename(self, target):
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", lambda d: (events.append("fsync"), fsync(d))[1])
    monkeypatch.setattr(type(tmp_path), "rename", record_rename)
    saved(tmp_path, None)
    # Four files and their folder; then the folder that holds the new name.
    assert events == ["fsync"] * 5 + ["rename", "fsync"]


def test_a_step_saved_again_is_replaced(tmp_path):
    checkpoints = saved(tmp_path, 1.0, 2.0)
    other = state(20) | {"net": {"w": torch.zeros(2)}}
    checkpoints.save(EXPERIMENT, other, {KEY: 7.0})
    assert steps(checkpoints) == [10, 20]
    assert checkpoints.latest().load()["net"]["w"].tolist() == [0, 0]
    assert checkpoints.latest().metrics() == {KEY: 7.0}


@pytest.mark.parametrize(
    ("values", "keep", "left"),
    [
        ((1, 2, 3, 4), 2, [10, 30, 40]),  # the best one and the last two
        ((4, 3, 2, 1), 2, [30, 40]),
        ((4, 1, 2, 3), 1, [20, 40]),
        ((None, None, None), 1, [30]),  # nothing was measured
        ((None, 5, None, None), 1, [20, 40]),
        ((1, 0.5, 3, 4), 1, [20, 40]),  # a former best one goes
        ((3, 2), 5, [10, 20]),
    ],
)
def test_pruning_keeps_the_last_ones_and_the_best(values, keep, left, tmp_path):
    checkpoints = saved(tmp_path, *values, keep=keep)
    assert steps(checkpoints) == left


def test_a_metric_that_is_not_a_number_is_never_the_best(tmp_path):
    checkpoints = saved(tmp_path, float("nan"), 0.4, 0.9, keep=1)
    assert steps(checkpoints) == [20, 30] and checkpoints.best().step == 20


def test_steps_are_ordered_as_numbers(tmp_path):
    checkpoints = folder(tmp_path, keep=3)
    for step in (5, 123_456_789, 99):  # nine digits outgrow the name's padding
        checkpoints.save(EXPERIMENT, state(step), {})
    assert steps(checkpoints) == [5, 99, 123_456_789]


DAMAGE = {
    "empty": lambda data: b"",
    "first byte": lambda data: data[:1],
    "first half": lambda data: data[: len(data) // 2],
    "all but the end": lambda data: data[:-30],
    "text": lambda data: b"this is no archive\n",
    "zeros": lambda data: bytes(len(data)),
    "noise": lambda data: bytes(range(256)) * 8,
    "start of a pickle": lambda data: b"\x80\x02}",
    "another pickle": lambda data: pickle.dumps(struct.calcsize, protocol=2),
    "middle overwritten": lambda data: data[:600] + bytes(400) + data[1000:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_a_value_error_that_names_the_path(damage, tmp_path):
    checkpoint = saved(tmp_path, 1.0).latest()
    file = checkpoint.path / "state.pt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="is damaged") as caught:
        checkpoint.load_for(EXPERIMENT, CPU)
    assert str(checkpoint.path) in str(caught.value) and "\n" not in str(caught.value)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("state.pt", lambda path: os.truncate(path, 3000), "state.pt: 3000 of "),
        ("state.pt", flip, "state.pt: its checksum differs"),
        ("state.pt", lambda path: path.unlink(), "state.pt: is missing"),
        ("meta.json", flip, "meta.json: its checksum differs"),
        ("experiment.json", lambda path: os.truncate(path, 0), "experiment.json: 0 of "),
        ("manifest.json", lambda path: os.truncate(path, 20), "manifest.json: "),
        ("manifest.json", lambda path: path.write_text("[]"), "manifest.json: "),
        ("manifest.json", lambda path: path.write_text("{}"), "manifest.json: 'experiment.json'"),
    ],
)
def test_damage_is_found_by_its_checksum_and_the_one_before_serves(name, harm, said, tmp_path):
    checkpoints = saved(tmp_path, 1.0, 2.0)
    harm(checkpoints.latest().path / name)
    found, (wrong,) = checkpoints.intact()
    assert found.step == 10 and found.load()["step"] == 10
    assert said in wrong and str(checkpoints.latest().path) in wrong and "\n" not in wrong
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.latest().load()


@pytest.mark.parametrize("name", ["{outside}", "../../outside", "./meta.json", "sub/../meta.json"])
def test_a_manifest_names_no_file_outside_its_folder(name, tmp_path):
    """The file matches its checksum; only its path is wrong."""
    checkpoints = saved(tmp_path, 1.0)
    (tmp_path / "outside").write_text("secret")
    file = checkpoints.latest().path / "manifest.json"
    named = name.format(outside=tmp_path / "outside")
    target = file.parent / named
    (file.parent / "sub").mkdir() if named.startswith("sub") else None
    file.write_text(json.dumps(json.loads(file.read_text()) | {named: entry(target)}))
    with pytest.raises(ValueError, match=f"names '{named}', which is not a file in its folder"):
        checkpoints.latest().load()


@pytest.mark.parametrize("name", ["state.pt", "experiment.json", "meta.json", "manifest.json"])
@pytest.mark.parametrize("removed", [[], ["manifest.json"]])
def test_a_link_in_a_checkpoint_is_not_followed(name, removed, tmp_path):
    """The target of the link is intact; with a manifest, and in a checkpoint without one."""
    path = saved(tmp_path, 1.0).latest().path
    for other in {*removed} - {name}:
        (path / other).unlink()
    (path / name).rename(tmp_path / "outside")
    (path / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=f"is damaged: {name}: is a link"):
        Checkpoint(path).load()


def test_a_link_to_a_checkpoint_is_none_of_the_run(tmp_path):
    checkpoints = saved(tmp_path / "run", None)
    elsewhere = saved(tmp_path / "elsewhere", None, None).latest().path
    (checkpoints.path / elsewhere.name).symlink_to(elsewhere)
    assert steps(checkpoints) == [10]
    checkpoints.save(EXPERIMENT, state(30), {})
    assert (elsewhere / "state.pt").exists()


def test_the_contents_of_a_damaged_checkpoint_are_not_trusted(tmp_path):
    checkpoints = saved(tmp_path, 3.0, 1.0, 2.0, keep=3)
    (checkpoints.at(20).path / "meta.json").write_text("{")
    assert checkpoints.best().step == 30
    checkpoints.save(EXPERIMENT, state(40), {})  # neither does it keep others from being saved
    assert checkpoints.latest().step == 40


def test_a_checkpoint_that_is_set_aside_does_not_count(tmp_path):
    """Otherwise pruning would delete intact ones, and a second crash would lose the run."""
    saved(tmp_path, None, None, keep=2)
    checkpoints = folder(tmp_path, keep=1)
    checkpoints.tidy(after=10)
    assert steps(checkpoints) == [10]
    checkpoints.save(EXPERIMENT, state(15), {})
    assert steps(checkpoints) == [15]
    assert (checkpoints.path / ".step_00000020.damaged" / "state.pt").exists()


def test_tidying_deletes_what_a_killed_process_left(tmp_path):
    checkpoints = saved(tmp_path, None, None)
    for name in (".step_00000030.partial", ".step_00000005.removed"):
        (checkpoints.path / name).mkdir()
        (checkpoints.path / name / "state.pt").write_bytes(b"half")
    checkpoints.tidy(after=20)
    assert sorted(path.name for path in checkpoints.path.iterdir()) == [
        "step_00000010",
        "step_00000020",
    ]


@pytest.mark.parametrize("died_at", [1, 2])
def test_a_process_killed_while_it_prunes_leaves_no_half_a_checkpoint(
    died_at, tmp_path, monkeypatch
):
    """Files are deleted one by one: a folder with its old name would look like a checkpoint."""
    checkpoints, unlink, count = saved(tmp_path, None, keep=1), os.unlink, []

    def die(*args, **kwargs):
        count.append(1)
        if len(count) == died_at:
            raise KeyboardInterrupt
        unlink(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "unlink", die)
        checkpoints.save(EXPERIMENT, state(20), {})
    assert steps(checkpoints) == [20]
    assert all(checkpoint.load() for checkpoint in checkpoints.all())


def test_a_checkpoint_without_a_manifest_is_accepted(tmp_path):
    checkpoint = saved(tmp_path, 1.0).latest()
    (checkpoint.path / "manifest.json").unlink()
    meta = json.loads((checkpoint.path / "meta.json").read_text())
    del meta["made_on"]
    (checkpoint.path / "meta.json").write_text(json.dumps(meta))
    assert checkpoint.load()["step"] == 10
    assert checkpoint.made_on() is None


@contextmanager
def largest_file(size):
    """The kernel refuses to let this process's files grow further, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 2000, 4200])
def test_a_full_disk_is_reported_and_leaves_no_incomplete_checkpoint(size, tmp_path):
    checkpoints = saved(tmp_path, 1.0)
    with largest_file(size), pytest.raises(OSError, match="File too large") as caught:
        checkpoints.save(EXPERIMENT, state(20), {})
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(checkpoints.at(20).path)
    assert [path.name for path in checkpoints.path.iterdir()] == ["step_00000010"]
    assert checkpoints.latest().load()["step"] == 10
    assert checkpoints.save(EXPERIMENT, state(20), {}).load()["step"] == 20


def test_a_missing_state_is_a_value_error(tmp_path):
    checkpoint = saved(tmp_path, 1.0).latest()
    (checkpoint.path / "state.pt").unlink()
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load()


@pytest.mark.parametrize("text", ["", "{", None])
def test_a_damaged_experiment_is_a_value_error_that_names_the_path(text, tmp_path):
    checkpoint = saved(tmp_path, 1.0).latest()
    file = checkpoint.path / "experiment.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(ValueError, match="is not a readable checkpoint") as caught:
        checkpoint.experiment()
    assert str(checkpoint.path) in str(caught.value)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Bomb.target),)


@pytest.mark.parametrize(
    "write", [torch.save, lambda o, f: f.write_bytes(pickle.dumps(o, protocol=2))]
)
def test_code_in_a_state_is_never_run(write, tmp_path):
    checkpoint = saved(tmp_path, 1.0).latest()
    Bomb.target = tmp_path / "exploded"
    file, manifest = checkpoint.path / "state.pt", checkpoint.path / "manifest.json"
    write(state(10) | {"net": Bomb()}, file)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"state.pt": entry(file)}))
    checkpoint.check()  # its checksums hold: whoever made it made them
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load()
    assert not Bomb.target.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optim.lr": 0.25}, ["optim.lr 0.001 there, 0.25 here"]),
        ({"seed": 3, "batch": 64}, ["seed 0 there, 3 here", "batch 256 there, 64 here"]),
        ({"model.hidden": [4, 4]}, ["model.hidden [4] there, [4, 4] here"]),
        ({"loss.anchor.weight": 0.5}, ["loss.anchor.weight None there, 0.5 here"]),
        ({"times.kind": "UniformTimes"}, ["times.kind LogitNormalTimes there, UniformTimes here"]),
    ],
)
def test_another_experiments_state_is_refused_by_what_differs(changes, named, tmp_path):
    checkpoint = saved(tmp_path, 1.0).latest()
    with pytest.raises(ValueError, match="is of another experiment") as caught:
        checkpoint.load_for(EXPERIMENT.override(changes), CPU)
    assert all(name in str(caught.value) for name in [*named, str(checkpoint.path)])
    assert "ema" not in str(caught.value)  # what is the same is not listed


def test_find_takes_a_checkpoint_a_run_or_its_folder_of_checkpoints(tmp_path):
    checkpoints = saved(tmp_path / "run", 2, 1, 3)
    best = tmp_path / "run" / "checkpoints" / "step_00000020"
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints", best):
        assert find_checkpoint(path) == Checkpoint(best)
    last = checkpoints.latest().path
    assert find_checkpoint(last).step == 30


def test_find_takes_the_latest_when_nothing_was_measured(tmp_path):
    saved(tmp_path, None, None)
    assert find_checkpoint(tmp_path).step == 20


def test_find_resolves_relative_paths(tmp_path, monkeypatch):
    saved(tmp_path / "run", 1)
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(type(tmp_path)("run")).path.is_absolute()


def test_find_names_the_nearest_run(tmp_path):
    saved(tmp_path / "digits-0412", 1)
    saved(tmp_path / "toy-0413", 1)
    with pytest.raises(ValueError, match=r"did you mean 'digits-0412'\?") as caught:
        find_checkpoint(tmp_path / "digits-0421")
    assert str(tmp_path / "digits-0421") in str(caught.value)
    with pytest.raises(ValueError, match="known: digits-0412, toy-0413"):
        find_checkpoint(tmp_path / "qqq")


def test_find_without_any_run(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere" / "run"):
        with pytest.raises(ValueError, match="no checkpoint in") as caught:
            find_checkpoint(path)
        assert str(path) in str(caught.value)
