"""Two real processes, one of which truly has another experiment, code, data or weights."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tree import ROOT

from vamf.distributed import Workers
from vamf.training.replica_consistency import SHOWN, agree, differences

SCRIPT = '''
import dataclasses, sys, torch, vamf
from helpers.group import member
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
from vamf.data.digits import Digits
from vamf.distributed import Workers
from vamf.presets import PRESETS
from vamf.training.step import networks
from vamf.errors import WorkersDiffer
from vamf.training.checkpoints.checkpoint import CheckpointFolder
from vamf.training.loop import Session, train

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
TINY = PRESETS["digits"].override({
    "model.channels": 4, "model.multipliers": [1], "batch": 4, "steps": 2, "log_every": 1,
    "optim.lr": 0.001,
    "evaluation.variance_samples": 2, "evaluation.gradient_batches": 2,
    "evaluation.distance.samples": 40,
})

def attempt(name, experiment=TINY, wrap=DistributedDataParallel):
    steps = []
    session = Session(
        directory=folder / name, workers=Workers(rank, 2), wrap=wrap,
        report=lambda progress: steps.append(progress["step"]),
    )
    try:
        train(experiment, session)
        said = "agreed"
    except WorkersDiffer as error:
        said = str(error)
    print(f"{name}|{len(steps)}|{said}", flush=True)

def elsewhere(owner, attribute, other, run):
    """Runs something while rank 1 has another function than rank 0."""
    own = getattr(owner, attribute)
    if rank == 1:
        setattr(owner, attribute, lambda *arguments: other(own(*arguments)))
    run()
    setattr(owner, attribute, own)

def one_pixel(dataset):
    dataset = type(dataset)(dataset.images.clone(), dataset.labels)
    dataset.images[700, 0, 3, 3] += 1
    return dataset

with member(rank, folder):
    attempt("same")
    if len(sys.argv) == 3:
        attempt("setting", TINY.override({"optim.lr": 0.25}) if rank else TINY)
        elsewhere(Digits, "load", one_pixel, lambda: attempt("data"))
        elsewhere(networks, "seed_of", lambda seed: seed + 1, lambda: attempt("weights"))
        attempt("unsynchronised", wrap=lambda objective: objective)
'''


def both(folder: Path, second: Path = ROOT, *arguments: str) -> list[dict[str, tuple[int, str]]]:
    """What each of two processes reports and says; the second one runs the code of a folder."""
    folder.mkdir()
    places = enumerate((ROOT, second))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(folder), *arguments],
            env={"PYTHONPATH": f"{place}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": ""},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, place in places
    ]
    said = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err
            lines = (line.split("|", 2) for line in out.splitlines())
            said.append({name: (int(steps), text) for name, steps, text in lines})
    finally:
        for process in processes:
            process.kill()
    return said


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    first, second = both(tmp_path_factory.mktemp("agreement") / "same")
    assert first == second  # all workers raise, so none waits for another for ever
    return first


@pytest.mark.slow
def test_workers_that_agree_train(reports: dict[str, tuple[int, str]]) -> None:
    assert reports["same"] == (2, "agreed")


@pytest.mark.slow
def test_another_experiment_is_named_before_the_first_step(
    reports: dict[str, tuple[int, str]],
) -> None:
    expected = "the workers differ: rank 1 has setting optim.lr 0.25, rank 0 0.001"
    assert reports["setting"] == (0, expected)


@pytest.mark.slow
def test_one_other_pixel_is_named_before_the_first_step(
    reports: dict[str, tuple[int, str]],
) -> None:
    steps, text = reports["data"]
    assert steps == 0
    assert text.startswith("the workers differ: rank 1 has data ")


@pytest.mark.slow
def test_other_initial_weights_are_named_before_the_first_step(
    reports: dict[str, tuple[int, str]],
) -> None:
    """DistributedDataParallel hides them in the network, and not in its moving average."""
    steps, text = reports["weights"]
    assert steps == 0
    assert text.startswith("the workers differ: rank 1 has state ema ")


@pytest.mark.slow
def test_gradients_that_are_not_shared_are_named_after_step_1(
    reports: dict[str, tuple[int, str]],
) -> None:
    steps, text = reports["unsynchronised"]
    assert steps == 0  # refused before anything of that step was reported
    assert "rank 1 has state net " in text
    assert "rank 1 has state optimiser " in text


@pytest.mark.slow
def test_other_code_is_named_by_its_file(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "vamf", tmp_path / "other" / "vamf")
    with (tmp_path / "other" / "vamf" / "flow" / "path.py").open("a") as file:
        file.write("# changed on one node\n")
    first, second = both(tmp_path / "run", tmp_path / "other", "code only")
    assert first == second
    steps, text = first["same"]
    assert steps == 0
    assert text.startswith("the workers differ: rank 1 has code flow/path.py ")
    assert text.count("rank 1 has") == 1


def test_the_odd_one_out_is_named_whichever_rank_it_is() -> None:
    a, b = {"x": 1, "y": "s"}, {"x": 2, "y": "s"}
    assert differences([a, a, a]) == []
    assert differences([b, a, a]) == ["rank 0 has x 2, rank 1 1"]
    assert differences([a, b]) == ["rank 1 has x 2, rank 0 1"]
    assert differences([a, a, {"y": "s"}]) == ["rank 2 has x null, rank 0 1"]


def test_a_long_list_is_cut() -> None:
    class Two(Workers):
        def gather(self, text: str) -> list[str]:
            return [text, "{}"]

    with pytest.raises(ValueError, match=r", and 7 more$") as caught:
        agree(Two(0, 2), {f"f{i}": i for i in range(7 + SHOWN)})
    assert str(caught.value).count("rank 1 has") == SHOWN


def test_a_worker_alone_agrees_with_itself() -> None:
    assert Workers().gather("é") == ["é"]
    agree(Workers(), {"x": 1})
