"""Latents on disk: what a batch is, that it is read ahead, and what is refused."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.latents import INDEX, write_latents

from jobs import encode
from vamf.data.dataset import Images, Labelled
from vamf.data.latents import Latents
from vamf.data.shards import Index, Shards, intact
from vamf.data.streaming import StreamedSet
from vamf.rng import generator

CPU = torch.device("cpu")


def latents(root, **settings):
    tiny = {"size": 4, "resolution": 8, "classes": 3, "vae": "some/vae"}
    return Latents(**{"root": root} | tiny | settings)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "latents", write_latents(tmp_path / "latents")


def test_a_set_is_what_training_asks_for(folder):
    data = latents(folder[0]).load("train")
    assert isinstance(data, StreamedSet) and isinstance(data, Labelled)
    assert not isinstance(data, Images)  # what is compared are pictures
    assert len(data) == 10 and data.shape == latents(folder[0]).shape == (4, 4, 4)
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert latents(folder[0]).load("test") is not None
    assert latents(folder[0]).reference_images.shape == (3, 8, 8)


@pytest.mark.parametrize("mirror", [True, False])
def test_a_batch_is_scaling_times_a_draw_of_the_posterior(folder, mirror):
    """Solved for the noise: one number of a stream that (seed, step) alone names."""
    root, moments = folder
    data = latents(root, mirror=mirror).load("train")
    batch, images = data.batch(3, 6, 7, CPU), data._order.positions(3, 6, 7)
    coins = torch.randint(2, (6,), generator=generator("mirror", 7, 3)) * mirror
    assert coins.any() == mirror
    mean, log_variance = moments[images, coins].chunk(2, 1)
    noise = (batch / 0.5 - mean) / torch.exp(log_variance / 2)
    expected = torch.randn(6, 4, 4, 4, generator=generator("posterior", 7, 3))
    torch.testing.assert_close(noise, expected, rtol=1e-4, atol=1e-4)  # noise is as large as means
    assert data.labels_of(3, 6, 7, CPU).tolist() == (images % 3).tolist()


def test_each_meeting_is_another_draw_of_both_views_with_the_posteriors_moments(folder):
    root, moments = folder
    data = latents(root).load("train")
    seen = torch.stack([data.batch(step, 10, 0, CPU) for step in range(400)])
    order = torch.stack([data._order.positions(step, 10, 0) for step in range(400)])
    drawn = seen.flatten(0, 1)[order.flatten() == 4]
    assert len(drawn) == 400  # once in each epoch
    mean, variance = moments[4].chunk(2, 1)[0], moments[4].chunk(2, 1)[1].exp()
    mixed = 0.5 * mean.mean(0)
    spread = 0.25 * (variance.mean(0) + (mean[0] - mean[1]).square() / 4)
    # 64 means of 400 draws each: a standard error of spread / 20, and a margin for the largest.
    assert ((drawn.mean(0) - mixed).abs() / (spread / 400).sqrt()).max() < 4.5
    ratio = drawn.var(0) / spread
    assert ratio.min() > 0.6 and ratio.max() < 1.5 and abs(ratio.mean() - 1) < 0.05


def test_workers_share_what_one_would_have(folder):
    data, alone = (latents(folder[0]).load("train") for _ in range(2))
    for step in (0, 1, 5, 2):  # in order, ahead, and back
        whole = alone.batch(step, 6, 1, CPU)
        parts = [data.batch(step, 6, 1, CPU, slice(rank, None, 3)) for rank in range(3)]
        for rank, part in enumerate(parts):
            assert torch.equal(part, whole[rank::3])
            labels = data.labels_of(step, 6, 1, CPU, slice(rank, None, 3))
            assert torch.equal(labels, alone.labels_of(step, 6, 1, CPU)[rank::3])


def test_draws_are_of_the_given_generator(folder):
    data = latents(folder[0]).load("train")
    one, same, other = (data.draw(7, generator(key)) for key in ("a", "a", "b"))
    assert one.shape == (7, 4, 4, 4) and torch.equal(one, same) and not torch.equal(one, other)


def test_batches_are_read_ahead_and_no_shard_is_read_whole(folder, monkeypatch):
    data = latents(folder[0]).load("train")
    assert all(isinstance(part, np.memmap) for part in data.shards._arrays)
    read, read_some = [], data.shards.read
    monkeypatch.setattr(data.shards, "read", lambda *some: read.append(some) or read_some(*some))
    data.batch(0, 1, 0, CPU)
    data._ahead._pool.shutdown(wait=True)
    assert len(read) == 5  # one image of this batch, and of four more
    assert 0 <= data.waiting_share() <= 1


def test_half_precision_is_rounding(tmp_path):
    write_latents(tmp_path / "half", replace(INDEX, dtype="float16"))
    write_latents(tmp_path / "full")
    half, full = (latents(tmp_path / n).load("train").batch(0, 5, 0, CPU) for n in ("half", "full"))
    torch.testing.assert_close(half, full, rtol=2**-9, atol=2**-9)
    assert half.dtype == torch.float32 and not torch.equal(half, full)


def test_fingerprints_are_of_contents(folder, tmp_path):
    write_latents(tmp_path / "copy")
    write_latents(tmp_path / "other", replace(INDEX, scaling=0.25))
    one, copy, other = (
        latents(root).load("train").fingerprint()
        for root in (folder[0], tmp_path / "copy", tmp_path / "other")
    )
    assert one == copy != other


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"vae": "another/vae"}, "must have the vae another/vae; got some/vae in"),
        ({"size": 8}, r"must have the shape \(4, 8, 8\); got \(4, 4, 4\) in"),
        ({"channels": 16}, r"must have the shape \(16, 4, 4\); got \(4, 4, 4\) in"),
        ({"resolution": 16}, "must have the resolution 16; got 8 in"),
        ({"classes": 10}, "must have the classes 10; got 3 in"),
    ],
)
def test_latents_other_than_declared_are_refused(folder, settings, line):
    with pytest.raises(ValueError, match=line) as caught:
        latents(folder[0], **settings).load("train")
    assert str(folder[0]) in str(caught.value)


def test_mirror_images_that_are_not_there_are_refused(tmp_path):
    write_latents(tmp_path / "one", replace(INDEX, mirrored=False))
    assert len(latents(tmp_path / "one", mirror=False).load("train")) == 10
    with pytest.raises(ValueError, match=r"data.mirror needs latents of mirror images; got none"):
        latents(tmp_path / "one").load("train")


def test_labels_out_of_range_are_refused(folder):
    root, _ = folder
    path = root / "rows-00001.npy"
    rows = np.load(path)
    rows["label"][2] = 7
    np.save(path, rows)
    with pytest.raises(ValueError, match=r"labels must lie in 0, ..., 2; got 0 to 7 in"):
        latents(root).load("train")


def test_a_folder_without_latents_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"must hold index.json, which .*jobs.encode.* writes; got"
    ):
        latents(tmp_path).load("train")
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index.json must be an index of latents; got Expecting"):
        latents(tmp_path).load("train")
    (tmp_path / "index.json").write_text('{"kind": "Index"}')
    with pytest.raises(ValueError, match=r"an index of latents; got vae must be set") as caught:
        latents(tmp_path).load("train")
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_shards_are_named(folder):
    root, _ = folder
    path = root / "moments-00001.npy"
    whole = path.read_bytes()
    for content, line in [
        (whole[:-1], r"moments-00001.npy is damaged: mmap length is greater than file size"),
        (b"", r"moments-00001.npy is damaged: "),
        (b"no array", r"moments-00001.npy is damaged: "),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=line):
            latents(root).load("train")
    path.write_bytes((root / "moments-00002.npy").read_bytes())
    with pytest.raises(ValueError, match=r"must hold float32 of shape \(4, 2, 8, 4, 4\), as index"):
        latents(root).load("train")
    path.unlink()
    with pytest.raises(ValueError, match=r"moments-00001.npy is missing, .*makes it anew"):
        latents(root).load("train")


def test_views_of_many_shards_are_read_in_the_order_in_which_they_are_asked_for(folder):
    root, moments = folder
    images, views = np.array([9, 0, 5, 9, 0, 4]), np.array([1, 0, 1, 0, 0, 1])
    shards = Shards(root, INDEX)
    for _ in range(2):
        assert torch.equal(shards.read(images, views), moments[images, views])


def test_one_wrong_bit_is_found_when_its_row_is_read(folder):
    root, _ = folder
    path = root / "moments-00001.npy"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1  # of image 7's mirror image
    path.write_bytes(content)
    data = latents(root).load("train")
    shards = Shards(root, INDEX)
    assert shards.read(np.array([7]), np.array([0])).shape == (1, 8, 4, 4)
    with pytest.raises(ValueError, match=r"moments-00001.npy is damaged: row 3 is not as it was"):
        shards.read(np.array([7]), np.array([1]))
    with pytest.raises(ValueError, match="row 3 is not as it was written"):
        for step in range(20):
            data.batch(step, 10, 0, CPU)
    assert [intact(root, INDEX, number) for number in range(3)] == [True, False, True]


def test_an_index_survives_json(tmp_path):
    INDEX.save(tmp_path)
    assert Index.load(tmp_path) == INDEX
    assert json.loads((tmp_path / "index.json").read_text())["scaling"] == 0.5
    assert [len(INDEX.of(number)) for number in INDEX.shards] == [4, 4, 2]


def test_without_diffusers_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as Python marks what cannot be imported
    with pytest.raises(SystemExit):
        encode.main(["--vae", str(tmp_path), str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'vamf[latents]'" in line
    with pytest.raises(ValueError, match=r"are encoded and decoded by diffusers: `pip install"):
        latents(tmp_path).decoder(CPU)
