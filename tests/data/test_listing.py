"""Which files of a folder are images: links, what systems leave behind, endings, strange names."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import write_images
from PIL import Image, features

from vamf.data import decode_cache
from vamf.data.encoding import Encoding
from vamf.data.image_files import Cut, Unreadable, image_files
from vamf.data.image_folder import ImageFolder
from vamf.data.listing import endings, formats

PIXELS = np.random.RandomState(0).randint(0, 256, (3, 8, 8, 3)).astype("u1")


def folder(root, **settings):
    return ImageFolder(**{"root": root, "size": 8, "crop": "exact"} | settings)


def names(root):
    return [str(path.relative_to(root)) for path in image_files(root)]


@pytest.mark.parametrize("linked", [["cat", "dog"], ["dog"]], ids=["all", "one"])
@pytest.mark.parametrize("memory_gb", [8.0, 0.0], ids=["memory", "disk"])
def test_class_folders_that_are_links_are_followed(tmp_path, linked, memory_gb):
    root = tmp_path / "root"
    for name in ("cat", "dog"):
        write_images((tmp_path / "store" if name in linked else root) / name, PIXELS)
    root.mkdir(exist_ok=True)
    for name in linked:
        (root / name).symlink_to(tmp_path / "store" / name)
    data = folder(root, classes=2, memory_gb=memory_gb).load("train")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (data.pixels([0]) == data.pixels([3])).all()
    assert Encoding(size=8).folder(root).classes == 2


def test_links_may_lead_in_circles(tmp_path):
    write_images(tmp_path / "a", PIXELS[:1])
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert names(tmp_path) == ["a/000000.png", "b/000000.png"]


@pytest.mark.parametrize("to", ["absent.png", "self.png"])
@pytest.mark.parametrize("memory_gb", [8.0, 0.0], ids=["memory", "disk"])
def test_links_that_lead_nowhere_are_named(tmp_path, capsys, to, memory_gb):
    write_images(tmp_path, PIXELS)
    (tmp_path / "self.png").symlink_to(tmp_path / to)
    with pytest.raises(ValueError, match=r"1 of 4 files cannot be used: .*self\.png is no image"):
        folder(tmp_path, memory_gb=memory_gb).load("train")
    assert len(folder(tmp_path, memory_gb=memory_gb, damaged="skip").load("train")) == 3
    assert "self.png" in capsys.readouterr().out


def test_what_systems_leave_behind_is_passed_over(tmp_path):
    for name in ("cat", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "cat/.ipynb_checkpoints"):
        write_images(tmp_path / name, PIXELS)
    (tmp_path / "lost+found").mkdir(mode=0)
    (tmp_path / "cat" / "._000000.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    data = folder(tmp_path, classes=1).load("train")
    assert len(data) == 3 and not data.labels.any()


def test_a_hidden_folder_may_be_the_root(tmp_path):
    write_images(tmp_path / ".cache", PIXELS)
    assert len(image_files(tmp_path / ".cache")) == 3


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    """The rights of the user who runs the tests do not matter."""
    write_images(tmp_path / "cat", PIXELS)
    scan = os.scandir

    def closed(path):
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ValueError, match=r"must be readable; got Permission denied of .*cat$"):
        image_files(tmp_path)


def test_only_formats_that_hold_pictures_count():
    assert {".png", ".jpg", ".jpeg", ".mpo", ".webp", ".tif", ".gif", ".bmp", ".pgm"} <= endings()
    assert not {".pdf", ".h5", ".hdf", ".mpg", ".mpeg", ".eps", ".ps", ".wmf", ".palm"} & endings()
    assert not {".grib", ".bufr", ".fits", ".fit", ".iim"} & endings()
    assert {*formats()} <= {*Image.OPEN}


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89HDF\r\n\x1a\n", b"%PDF-1"])
def test_other_formats_are_not_opened_under_a_pictures_name(tmp_path, content):
    """An EPS would start Ghostscript."""
    more = b"%%BoundingBox: 0 0 8 8\n%%EndComments\n" + bytes(64)
    (tmp_path / "a.png").write_bytes(content + more)
    with pytest.raises(Unreadable, match=r"a\.png is no image that Pillow reads"):
        Cut(size=8, channels=3, crop="exact").check(tmp_path / "a.png")


def test_files_that_are_no_images_by_their_endings_are_reported(tmp_path, capsys):
    write_images(tmp_path, PIXELS)
    for name in ("a.heic", "b.HEIC", "labels.txt", "c.h5"):
        (tmp_path / name).write_bytes(b"?")
    assert len(folder(tmp_path).load("train")) == 3
    assert "files that are not images by their endings, in" in (out := capsys.readouterr().out)
    assert ": .heic 2, .h5 1, .txt 1\n" in out
    for path in image_files(tmp_path):
        path.unlink()
    with pytest.raises(ValueError, match=r"got none in .*, but .* endings: \.heic 2, \.h5 1, "):
        image_files(tmp_path)


def test_surplus_classes_are_named(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, PIXELS)
    write_images(tmp_path / "misc", PIXELS[:1])
    (tmp_path / "new").mkdir()
    found = r"got 3, by number of images misc 1, cat 3, dog 3; and without images new$"
    for classes in (2, 4):
        with pytest.raises(ValueError, match=rf"must have {classes} class subfolders; {found}"):
            folder(tmp_path, classes=classes).load("train")
    write_images(tmp_path, PIXELS)
    with pytest.raises(ValueError, match=r"in class subfolders; got .*000000\.png and 2 more$"):
        folder(tmp_path, classes=3).load("train")


def test_held_out_classes_must_be_those_of_training(tmp_path):
    for name in ("train/cat", "train/dog", "test/dog", "test/emu", "same/cat", "same/dog"):
        write_images(tmp_path / name, PIXELS)
    root = tmp_path / "train"
    with pytest.raises(ValueError, match=r"test must have the class subfolders of .*; got emu$"):
        folder(root, test=tmp_path / "test", classes=2).load("test")
    same = folder(root, test=tmp_path / "same", classes=2).load("test")
    assert same.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("memory_gb", [8.0, 0.0], ids=["memory", "disk"])
def test_strange_names_are_reported_readably(tmp_path, capsys, monkeypatch, memory_gb):
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decode_cache, "WORTH_S", 0.0)
    root = tmp_path / "root"
    write_images(root / "a", PIXELS)
    for name in (b"\xff\xfe.png", b"two\nlines.png"):
        Path(os.fsdecode(os.fsencode(root / "a") + b"/" + name)).write_bytes(b"no image")
    (root / os.fsdecode(b"\xe9")).mkdir()
    (root / "a" / "000000.png").rename(root / os.fsdecode(b"\xe9") / "0.png")
    with pytest.raises(ValueError, match="2 of 5 files cannot be used") as caught:
        folder(root, memory_gb=memory_gb).load("train")
    line = str(caught.value)
    assert r"\xff\xfe.png" in line and r"two\nlines.png" in line and line.isprintable()
    with pytest.raises(ValueError, match=r"got 2, by number of images \\xe9 1, a 4"):
        folder(root, memory_gb=memory_gb, classes=3).load("train")
    data = folder(root, memory_gb=memory_gb, classes=2, damaged="skip").load("train")
    assert data.labels.tolist() == [0, 0, 1] and len(data.fingerprint()) == 32
    assert r"\xff\xfe.png" in capsys.readouterr().out  # as UTF-8


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>404", "it seems to be an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"no image", "its content is of no known format"),
    ],
)
def test_what_lies_in_an_images_place_is_reported(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Unreadable, match=rf"a\.png is no image that Pillow reads: .*{reason}"):
        Cut(size=8, channels=3, crop="centre")(tmp_path / "a.png")


KEPT = [".png", ".jpg", ".webp", ".gif", ".tif", ".bmp", ".tga", ".jp2", ".ico", ".qoi"]
KEPT += [".avif"] * features.check("avif")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("ending", KEPT)
def test_damage_of_all_kinds_is_unreadable_or_pixels(tmp_path, ending):
    """Cut short, bytes overwritten: of any decoder no other exception comes."""
    path, random = tmp_path / f"a{ending}", np.random.RandomState(1)
    Image.fromarray(PIXELS[0]).resize((32, 32)).save(path)
    whole, cut = path.read_bytes(), Cut(size=8, channels=3, crop="centre")
    unreadable = 0
    for trial in range(60):
        content = bytearray(whole)
        if trial % 3 == 0:
            del content[random.randint(len(whole)) :]
        for _ in range(1 + trial % 4):
            if content:
                content[random.randint(min(len(content), 200))] = random.randint(256)
        path.write_bytes(content)
        try:
            assert cut(path).shape == (3, 8, 8)
        except Unreadable as error:
            unreadable += 1
            assert str(error).startswith(f"{path} is no image that Pillow reads: ")
    assert unreadable


def test_any_exception_of_a_decoder_makes_a_file_unreadable(tmp_path, monkeypatch, capsys):
    """A damaged AVIF raises RuntimeError."""
    write_images(tmp_path, PIXELS)
    load = Image.Image.convert

    class StrangeError(Exception):
        pass

    def failing(image, *arguments, **more):
        if (np.asarray(image) == PIXELS[1]).all():
            raise StrangeError
        return load(image, *arguments, **more)

    monkeypatch.setattr(Image.Image, "convert", failing)
    with pytest.raises(ValueError, match=r"000001\.png is no image .*: StrangeError"):
        folder(tmp_path).load("train")
    assert len(folder(tmp_path, damaged="skip").load("train")) == 2
    assert "skipped 1 of 3 files" in capsys.readouterr().out
