"""``jobs.evaluate --images`` and ``--check``: figures, and one line for what is missing."""

import numpy as np
import pytest
import torch
from helpers.pictures import trust_cifar10, write_cifar10, write_images
from PIL import Image

from jobs import evaluate
from vamf.data.digits import Digits
from vamf.data.image_folder import ImageFolder
from vamf.data.torchvision_sets import CIFAR10
from vamf.distributed import Workers
from vamf.metrics import calibration, inception_weights
from vamf.metrics.distances import FrechetDistance
from vamf.metrics.extractors import RandomExtractor

TEST = Digits().load("test")


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "digits", TEST.images[:, 0].numpy())
    return tmp_path / "digits"


def mistake(argv, capsys, status=2):
    """The one line with which the job ends."""
    with pytest.raises(SystemExit) as ended:
        evaluate.main([str(argument) for argument in argv])
    assert ended.value.code == status
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_a_folder_is_measured_as_its_images_are(folder, tmp_path, capsys):
    saved = tmp_path / "theirs.npz"
    evaluate.main(["--images", str(folder), "--preset", "digits", "--save", str(saved)])
    lines = capsys.readouterr().out.splitlines()
    expected = FrechetDistance().of_images(TEST, Digits(), Workers())
    assert lines[0] == f"450 images in {folder}"
    assert lines[1:] == [f"{name:44} {figure}" for name, figure in expected.items()]
    setting = f"evaluation.distance.reference={saved}"
    evaluate.main(["--images", str(folder), "--preset", "digits", "--set", setting])
    name, value = capsys.readouterr().out.splitlines()[1].split(maxsplit=1)
    assert name == "fd_digits_cnn64_v1_n450_theirs"
    assert float(value.split()[0]) == pytest.approx(0, abs=1e-9)  # of themselves


def test_unusable_folders_are_one_line(folder, tmp_path, capsys):
    argv = ["--preset", "digits", "--images"]
    (tmp_path / "empty").mkdir()
    assert "must hold at least one" in mistake([*argv, tmp_path / "empty"], capsys)
    Image.fromarray(np.zeros((9, 8), "u1")).save(folder / "odd.png")
    line = mistake([*argv, folder], capsys)
    assert "1 of 451 files cannot be used" in line and "must be 8x8; got 8x9" in line
    evaluate.main([*argv, str(folder), "--damaged", "skip"])
    assert "450 images" in capsys.readouterr().out
    line = mistake(["--preset", "digist", "--images", folder], capsys)
    assert line == "unknown preset 'digist'; did you mean 'digits'?"
    line = mistake(["--preset", "toy", "--images", folder], capsys)
    assert line == "a folder of images needs a preset of images; got toy"


def test_absent_data_are_one_line(folder, tmp_path, capsys):
    line = mistake(["--images", folder, "--set", f"data.root={tmp_path / 'absent'}"], capsys)
    assert line.startswith(f"CIFAR-10 must lie in {tmp_path / 'absent' / 'cifar-10-batches-py'}")


def test_published_statistics_need_no_data(tmp_path, capsys):
    images = np.random.RandomState(0).randint(0, 256, (50, 32, 32, 3)).astype("u1")
    write_images(tmp_path / "images", images)
    argv = ["--images", str(tmp_path / "images"), "--set", f"data.root={tmp_path / 'absent'}"]
    argv += ["evaluation.distance.extractor=randconv64_v1"]
    saved = FrechetDistance(extractor="randconv64_v1")
    folder = ImageFolder.of(tmp_path / "images", 3, 32, "refuse").load("train")
    saved.save(folder, tmp_path / "theirs.npz", Workers())
    evaluate.main([*argv, f"evaluation.distance.reference={tmp_path / 'theirs.npz'}"])
    assert "fd_randconv64_v1_n50_theirs" in capsys.readouterr().out


@pytest.fixture
def offline(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def test_a_check_without_weights_is_one_line(offline, tmp_path, capsys):
    line = mistake(["--check", "--data.root", tmp_path], capsys)
    assert inception_weights.FILE in line and "95 MB" in line
    assert str(tmp_path / "hub" / "checkpoints") in line
    wrong = tmp_path / "other.pth"
    wrong.write_bytes(b"other weights")
    line = mistake(["--check", "--weights", wrong], capsys)
    assert "begins with 6726825d" in line and f"at {wrong}" in line


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(calibration, "build", lambda *_: RandomExtractor())


def test_a_check_without_data_is_one_line(untrained, tmp_path, capsys):
    line = mistake(["--check", "--data.root", tmp_path], capsys)
    assert line.startswith("CIFAR-10 must lie in")


@pytest.mark.slow
def test_figures_that_are_not_the_published_ones_fail(untrained, tmp_path, capsys, monkeypatch):
    trust_cifar10(monkeypatch)
    random = np.random.RandomState(0)
    for split in ("train", "test"):
        images = random.randint(0, 256, (5000, 32, 32, 3)).astype("u1")
        write_cifar10(tmp_path, images, np.zeros(5000, int), split)
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--check", "--data.root", str(tmp_path)])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith("FAIL  FID of 5,000") and "expected 10.3233 ± 0.001" in first
    assert second.startswith("FAIL") and "expected 3.1500 ± 0.05" in second
    assert err == "error: the FID measured here is not the published one\n"
    train = CIFAR10(root=tmp_path).load("train")
    places = np.random.RandomState(2020).choice(5000, 5000, replace=False)
    chosen = calibration.chosen(train, 5000)
    assert torch.equal(chosen.images, train.images[torch.from_numpy(places)])


def test_figures_that_are_pass(monkeypatch, capsys):
    anchor = calibration.KnownValue("it", 3.16, 3.15, 0.05)
    monkeypatch.setattr(calibration, "known_values", lambda *_: iter([anchor]))
    evaluate.main(["--check"])
    assert capsys.readouterr().out == "pass  it: 3.1600, expected 3.1500 ± 0.05\n"
    assert not calibration.KnownValue("it", float("nan"), 3.15, 0.05).holds
