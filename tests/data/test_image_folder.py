"""Folders of images: what is read, what is refused, and the same batches from memory and disk."""

import numpy as np
import pytest
import torch
from helpers.pictures import write_images
from PIL import Image

from vamf.data.dataset import ImageSet
from vamf.data.image_files import Cut
from vamf.data.image_folder import ImageFolder
from vamf.data.streaming import FileSet, StreamedSet
from vamf.rng import generator

CPU = torch.device("cpu")
RANDOM = np.random.RandomState(0)


def pixels(n, *shape):
    return RANDOM.randint(0, 256, (n, *shape)).astype("u1")


@pytest.fixture
def flat(tmp_path):
    images = pixels(10, 8, 8, 3)
    write_images(tmp_path / "flat", images)
    return tmp_path / "flat", torch.from_numpy(images).permute(0, 3, 1, 2)


def folder(root, **settings):
    return ImageFolder(**{"root": root, "size": 8, "crop": "exact"} | settings)


def test_a_flat_folder_in_the_order_of_names(flat):
    root, images = flat
    data = folder(root).load("train")
    assert isinstance(data, ImageSet) and torch.equal(data.images, images)
    assert not data.labels.any()
    assert folder(root).load("test") is not None


@pytest.mark.parametrize("memory_gb", [8.0, 0.0], ids=["memory", "disk"])
def test_class_subfolders(tmp_path, memory_gb):
    for name, count in (("cat", 3), ("dog", 2)):
        write_images(tmp_path / name, pixels(count, 8, 8, 3))
    data = folder(tmp_path, classes=2, memory_gb=memory_gb).load("train")
    assert data.labels.tolist() == [0, 0, 0, 1, 1] and len(data) == 5
    with pytest.raises(ValueError, match="must have 3 class subfolders; got 2"):
        folder(tmp_path, classes=3, memory_gb=memory_gb).load("train")
    write_images(tmp_path, pixels(1, 8, 8, 3))
    with pytest.raises(ValueError, match=r"must lie in class subfolders; got .*000000\.png"):
        folder(tmp_path, classes=2, memory_gb=memory_gb, channels=1).load("train")


@pytest.mark.parametrize("ending", [".bmp", ".png", ".tiff", ".webp", ".jpg", ".gif"])
def test_formats(tmp_path, ending):
    array = np.full((1, 8, 8, 3), 100, "u1")
    if ending == ".webp":
        (tmp_path / "a").mkdir()
        Image.fromarray(array[0]).save(tmp_path / "a" / "0.webp", lossless=True)
    else:
        write_images(tmp_path / "a", array, ending)
    data = folder(tmp_path / "a").load("train")
    assert (data.images.int() - 100).abs().max() <= 1


def test_images_are_scaled_by_their_shorter_side_and_cut_in_the_middle(tmp_path):
    wide = np.zeros((1, 40, 80, 3), "u1")
    wide[:, :, 20:60] = 200  # the middle square
    write_images(tmp_path, wide)
    image = folder(tmp_path, crop="centre").load("train").images[0].int()
    assert image.shape == (3, 8, 8) and (image - 200).abs()[:, :, 1:7].max() <= 2
    tall = Image.fromarray(np.ascontiguousarray(wide[0].transpose(1, 0, 2)))
    tall.save(tmp_path / "000000.png")
    again = Cut(size=8, channels=3, crop="centre")(tmp_path / "000000.png").int()
    assert torch.equal(again.transpose(1, 2), image)


def test_grey(tmp_path):
    write_images(tmp_path, pixels(2, 8, 8))
    assert folder(tmp_path, channels=1).load("train").shape == (1, 8, 8)


@pytest.fixture
def damaged(tmp_path):
    """Nine files: a truncated one, a text, one of another size, and six of use."""
    root = tmp_path / "damaged"
    paths = write_images(root, pixels(9, 8, 8, 3))
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    paths[4].write_text("no image")
    Image.fromarray(pixels(1, 9, 8, 3)[0]).save(paths[7])
    return root


def test_files_of_no_use_are_refused_by_number_and_name(damaged):
    with pytest.raises(ValueError, match="3 of 9 files cannot be used") as caught:
        folder(damaged).load("train")
    line = str(caught.value)
    assert all(name in line for name in ("000002.png", "000004.png", "000007.png"))
    assert "must be 8x8; got 8x9" in line and "\n" not in line


def test_files_of_no_use_are_skipped_and_named(damaged, capsys):
    data = folder(damaged, damaged="skip").load("train")
    assert len(data) == 6
    assert "skipped 3 of 9 files" in capsys.readouterr().out


def test_streams_name_damage_when_they_meet_it(damaged, capsys):
    """Headers are looked at beforehand, what lies behind them is not."""
    with pytest.raises(ValueError, match="2 of 9 files cannot be used"):
        folder(damaged, memory_gb=0.0).load("train")
    data = folder(damaged, memory_gb=0.0, damaged="skip").load("train")
    assert isinstance(data, StreamedSet) and len(data) == 7
    whole = data.pixels(range(7))
    assert torch.equal(whole[2], whole[3])  # the next one takes its place
    out = capsys.readouterr().out
    assert "skipped 2 of 9" in out and "unusable file 1" in out and "000002.png" in out
    refusing = FileSet(data.files, data.cut, data.labels, skip=False)
    with pytest.raises(ValueError, match=r"000002\.png is no image that Pillow reads"):
        refusing.pixels(range(7))


def test_nothing_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a folder of images must exist; got"):
        folder(tmp_path / "absent").load("train")
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(ValueError, match="must hold at least one; got none in"):
        folder(tmp_path).load("train")
    (tmp_path / "a.png").write_text("")
    with pytest.raises(ValueError, match="1 of 1 files cannot be used"):
        folder(tmp_path, damaged="skip").load("train")


def test_disk_and_memory_serve_the_same_batches(flat):
    root, _ = flat
    memory, disk = (folder(root, memory_gb=size).load("train") for size in (8.0, 0.0))
    for step in (0, 1, 2, 7, 3):  # in order, a jump ahead, and back
        for part in (slice(None), slice(1, None, 2)):
            arguments = (step, 4, 0, CPU, part)
            assert torch.equal(disk.batch(*arguments), memory.batch(*arguments))
            assert torch.equal(disk.labels_of(*arguments), memory.labels_of(*arguments))
    assert torch.equal(disk.draw(5, generator("d")), memory.draw(5, generator("d")))
    assert torch.equal(disk.pixels(range(2, 9)), memory.pixels(range(2, 9)))
    assert disk.shape == memory.shape and len(disk) == len(memory)
    assert 0 <= disk.waiting_share() <= 1


def test_batches_are_read_ahead(flat, monkeypatch):
    data = folder(flat[0], memory_gb=0.0).load("train")
    data.batch(0, 2, 0, CPU)
    ahead = data._ahead
    assert {key[0] for key in ahead._coming} == {1, 2, 3, 4}
    monkeypatch.setattr(ahead, "_read", lambda place: pytest.fail("read again"))
    ahead._pool.shutdown(wait=True)
    with pytest.raises(RuntimeError, match="after shutdown"):  # only the fifth is asked for
        data.batch(1, 2, 0, CPU)


def test_fingerprints_tell_sets_apart(flat):
    root, images = flat
    memory, disk = (folder(root, memory_gb=size).load("train") for size in (8.0, 0.0))
    assert memory.fingerprint() == ImageSet(images, torch.zeros(10)).fingerprint()
    assert memory.fingerprint() != ImageSet(images.flip(0), torch.zeros(10)).fingerprint()
    before = disk.fingerprint()
    write_images(root, pixels(1, 8, 8, 3))
    assert disk.fingerprint() != before
