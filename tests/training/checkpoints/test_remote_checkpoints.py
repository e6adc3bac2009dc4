"""Checkpoints of a run in a store: what is downloaded, what is kept, and what is replaced."""

import shutil
from pathlib import Path

import helpers.under_store  # noqa: F401  a store that is a folder
import pytest
from helpers.tiny import TINY

from vamf.store import Store
from vamf.training.checkpoints.checkpoint import CheckpointFolder, find_checkpoint
from vamf.training.checkpoints.manifest import damage
from vamf.training.checkpoints.remote_checkpoints import (
    complete,
    fetch,
    fetch_alone,
    fetch_newest,
    fetched,
    working_copy,
)

KEY = f"eval/{TINY.evaluation.distance.key}"
WHOLE = {"experiment.json", "manifest.json", "meta.json", "state.pt"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A run in a store with checkpoints at the steps 1, 2 and 3; the second is the best."""
    monkeypatch.setenv("UNDER", str(tmp_path.parent))  # the bucket is the test's own folder
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path / "cache"))
    folder = CheckpointFolder(path=tmp_path / "run" / "checkpoints", keep=9, best_by=KEY)
    for step, value in ((1, 0.5), (2, 0.1), (3, 0.7)):
        folder.save(TINY, {"step": step}, {KEY: value})
    return Store(f"under://{tmp_path.name}/run")


def there(tmp_path: Path, step: int) -> Path:
    """A checkpoint in the store, as a folder."""
    return tmp_path / "run" / "checkpoints" / f"step_{step:08d}"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the objects that are downloaded."""
    names, download = [], Store.download

    def noted(store: Store, name: str, path: Path) -> None:
        names.append(name)
        download(store, name, path)

    monkeypatch.setattr(Store, "download", noted)
    return names


def test_complete_are_those_with_a_manifest_oldest_first(run: Store, tmp_path: Path) -> None:
    (there(tmp_path, 2) / "manifest.json").unlink()
    assert complete(run) == ["step_00000001", "step_00000003"]


def test_a_checkpoint_is_downloaded_once(run: Store, tmp_path: Path, downloads: list[str]) -> None:
    path = tmp_path / "here" / "step_00000002"
    path.parent.mkdir()
    fetch(run, path, whole=False)
    assert files(path) == WHOLE - {"state.pt"} and "state.pt" not in downloads
    fetch(run, path, whole=False)
    assert len(downloads) == 2  # the manifest itself is compared
    fetch(run, path)
    assert files(path) == WHOLE and damage(path) is None and len(downloads) == 5
    fetch(run, path)
    fetch(run, path, whole=False)
    assert files(path) == WHOLE and len(downloads) == 5
    assert files(path.parent) == {path.name}


@pytest.mark.parametrize("whole", [True, False])
def test_another_checkpoint_of_the_same_step_is_replaced(
    run: Store, tmp_path: Path, whole: bool
) -> None:
    """Also where a killed process has left a download that is not complete."""
    path = tmp_path / "here" / "step_00000002"
    shutil.copytree(there(tmp_path, 3), path)
    (path / "left").write_text("over")
    aside = path.with_name(f".{path.name}.partial")
    aside.mkdir()
    (aside / "half").write_text("a file")
    fetch(run, path, whole=whole)
    assert files(path) == (WHOLE if whole else WHOLE - {"state.pt"}) and not aside.exists()
    for file in path.iterdir():
        assert file.read_bytes() == (there(tmp_path, 2) / file.name).read_bytes()


def test_what_the_store_lacks_is_damage(run: Store, tmp_path: Path) -> None:
    path = tmp_path / "here" / "step_00000002"
    (there(tmp_path, 2) / "state.pt").unlink()
    fetch(run, path)
    assert damage(path) == "state.pt: is missing"
    shutil.rmtree(there(tmp_path, 2))
    with pytest.raises(FileNotFoundError):
        fetch(run, path)


@pytest.mark.parametrize("manifest", ['{"../../outside": {}}', "[1]", "no JSON", "3"])
def test_a_manifest_leads_to_no_file_outside(run: Store, tmp_path: Path, manifest: str) -> None:
    (tmp_path / "run" / "outside").write_text("a secret")
    (there(tmp_path, 2) / "manifest.json").write_text(manifest)
    path = tmp_path / "here" / "step_00000002"
    if manifest == "[1]":
        (there(tmp_path, 2) / "manifest.json").write_text('["../../outside"]')
    fetch(run, path)
    assert files(path) == {"manifest.json"} and damage(path) is not None
    assert not (tmp_path / "outside").exists()


def test_the_newest_intact_one_comes_with_metrics_of_the_older(run: Store, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    (there(tmp_path, 3) / "state.pt").write_bytes(b"damaged")
    assert fetch_newest(run, folder) == ["step_00000003"]
    found = {path.name: files(path) for path in folder.iterdir()}
    assert found == {
        "step_00000001": WHOLE - {"state.pt"},
        "step_00000002": WHOLE,
        "step_00000003": WHOLE,  # to be named by the run
    }
    for step in (1, 2):
        (there(tmp_path, step) / "state.pt").write_bytes(b"damaged")
    assert fetch_newest(run, tmp_path / "none") == []
    assert fetch_newest(Store(f"under://{tmp_path.name}/nothing"), tmp_path / "nothing") == []


def test_a_nodes_copy_holds_one_checkpoint(run: Store, tmp_path: Path) -> None:
    folder = tmp_path / "node" / "run" / "checkpoints"
    for step in (1, 3, 3):
        fetch_alone(run, folder / f"step_{step:08d}")
        assert files(folder) == {f"step_{step:08d}"}
        assert files(folder / f"step_{step:08d}") == WHOLE


def test_the_address_of_a_run_gives_metrics_and_that_of_a_checkpoint_all_of_it(
    run: Store, tmp_path: Path
) -> None:
    folder = fetched(run)
    assert folder == working_copy(run, "read")
    assert {p.name: files(p) for p in (folder / "checkpoints").iterdir()} == {
        f"step_{step:08d}": WHOLE - {"state.pt"} for step in (1, 2, 3)
    }
    path = fetched(run / "checkpoints" / "step_00000003")
    assert path == folder / "checkpoints" / "step_00000003" and files(path) == WHOLE
    shutil.rmtree(there(tmp_path, 1))
    assert files(fetched(run) / "checkpoints") == {"step_00000002", "step_00000003"}
    with pytest.raises(FileNotFoundError, match="there is none"):
        fetched(Store(f"under://{tmp_path.name}/nothing"))


def test_the_best_checkpoint_of_a_run_is_found_and_loaded(run: Store) -> None:
    found = find_checkpoint(Path(run.url))
    assert found.step == 2 and found.load() == {"step": 2} and files(found.path) == WHOLE
    newest = find_checkpoint(Path(run.url) / "checkpoints" / "step_00000003")
    assert newest.step == 3 and newest.load() == {"step": 3}
    with pytest.raises(ValueError, match="no checkpoint could be read from under://"):
        find_checkpoint(Path(f"{run.url}_none"))


def test_copies_of_different_places_are_apart(tmp_path: Path, run: Store) -> None:
    places = ["under://bucket/a", "under://bucket/a/b", "under://other/a", "s3://bucket/a"]
    found = [working_copy(Store(place), "read") for place in places]
    found += [working_copy(Store(places[0]), "driver")]
    assert len({*found}) == 5
    assert all(path.is_relative_to(tmp_path / "cache" / "store") for path in found)
    odd = working_copy(Store("under://bucket/../a b/.."), "read")
    assert odd.is_relative_to(tmp_path / "cache" / "store") and ".." not in odd.parts
    assert " " not in odd.name and odd == working_copy(Store("under://bucket/../a b/.."), "read")
