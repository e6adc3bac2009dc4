"""Decoded images are kept for the same files, and for no others."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import write_images
from PIL import Image

from vamf.data import decode_cache
from vamf.data import image_files as files
from vamf.data.decode_cache import decoded as look
from vamf.data.image_files import Cut, image_files

CUT = Cut(size=8, channels=3, crop="exact")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decode_cache, "WORTH_S", 0.0)
    pixels = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 3)).astype("u1")
    write_images(tmp_path / "images", pixels)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    return tmp_path / "images"


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that are decoded."""
    names: list[str] = []
    decode = Cut.__call__

    def noted(cut, path):
        names.append(path.name)
        return decode(cut, path)

    monkeypatch.setattr(Cut, "__call__", noted)
    return names


def seen(root: Path, cut: Cut = CUT):
    return look(root, image_files(root), cut)


def test_a_second_look_decodes_nothing_but_what_was_of_no_use(root, opened, capsys):
    images, complaints = seen(root)
    assert len(opened) == 7 and "decoded 7 files" in capsys.readouterr().out
    again, lines = seen(root)
    assert opened[7:] == ["broken.png"] and torch.equal(again, images) and lines == complaints
    direct, said = files.decode(image_files(root), CUT)
    assert torch.equal(direct, images) and said == complaints
    assert [bool(line) for line in complaints] == [False] * 6 + [True]
    assert "broken.png is no image" in complaints[-1] and not images[-1].any()
    again[0] = 0  # it is the caller's own
    assert not torch.equal(seen(root)[0], again)


def test_a_file_that_could_not_be_read_for_a_while_is_read(root, monkeypatch):
    """Its name, size and time of change are as before."""
    whole = Image.open

    def failing(path, *args):
        if Path(path.name).name == "000002.png":
            raise OSError("input/output error")
        return whole(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", failing)
        images, complaints = seen(root)
    assert "input/output error" in complaints[2] and not images[2].any()
    images, complaints = seen(root)
    assert not complaints[2] and torch.equal(images[2], CUT(root / "000002.png"))


@pytest.mark.parametrize("change", ["content", "time", "name", "more", "cut", "root"])
def test_other_files_are_decoded(root, opened, change):
    seen(root)
    first, cut = root / "000000.png", CUT
    stat = first.stat()
    if change == "content":
        first.write_bytes((root / "000001.png").read_bytes() + b" ")
        os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "time":
        os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "name":
        first.rename(root / "a.png")
    elif change == "more":
        (root / "b.png").write_bytes(first.read_bytes())
    elif change == "cut":
        cut = Cut(size=4, channels=3, crop="centre")
    else:
        root = root.rename(root.with_name("other"))
    before = len(opened)
    images, _ = seen(root, cut)
    assert len(opened) == before + len(images)


def test_what_is_damaged_or_cannot_be_kept_is_decoded(root, opened, tmp_path, monkeypatch, capsys):
    images, _ = seen(root)
    (kept,) = (tmp_path / "cache" / "pixels").glob("*.npz")
    content = bytearray(kept.read_bytes())
    content[len(content) // 3] ^= 1
    kept.write_bytes(content)
    assert torch.equal(seen(root)[0], images) and len(opened) == 14
    (tmp_path / "file").touch()
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path / "file"))
    assert torch.equal(seen(root)[0], images) and len(opened) == 21


def test_no_damage_of_what_is_kept_goes_unseen(tmp_path, monkeypatch):
    """Bits, blocks and ends, most of all of the headers: what is read is what was written."""
    random = np.random.RandomState(0)
    pixels = torch.from_numpy(random.randint(0, 256, (400, 3, 8, 8)).astype("u1"))  # over a buffer
    complaints, path = [""] * 399 + ["of no use"], tmp_path / "kept.npz"
    decode_cache._write(path, pixels, complaints)
    whole = path.read_bytes()
    places = [*range(200), *range(len(whole) - 1000, len(whole), 2)]
    places += random.randint(len(whole), size=100).tolist()
    unread = 0
    for trial, place in enumerate(places):
        content = bytearray(whole)
        content[place] ^= 1 << random.randint(8)
        if trial % 20 == 0:
            content[place : place + 16] = bytes(16)
        if trial % 25 == 0:
            del content[place:]
        path.write_bytes(content)
        found = decode_cache._read(path)
        unread += found is None
        if found is not None:  # a date, or another field of no use
            assert found[0].dtype == torch.uint8 and torch.equal(found[0], pixels)
            assert found[1] == complaints
    assert unread > len(places) / 2
    path.write_bytes(whole)
    for place, bit in ((68, 1), (121, 1)):  # the length of a header, and the shape in it
        content = bytearray(whole)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        assert decode_cache._read(path) is None


def test_what_is_decoded_at_once_is_not_kept(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decode_cache, "WORTH_S", 60.0)
    seen(root)
    assert not [*(tmp_path / "cache").rglob("*.npz")] and not capsys.readouterr().out
