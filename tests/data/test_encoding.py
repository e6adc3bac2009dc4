"""Images to latents by a real autoencoder, of random weights: what is made, and refused."""

import json

import numpy as np
import pytest
import torch
from helpers.latents import write_vae
from helpers.pictures import write_images

from jobs import encode, train
from vamf.data import vae
from vamf.data.encoding import Encoding
from vamf.data.latents import Latents
from vamf.data.shards import Index

CPU = torch.device("cpu")


diffusers = pytest.importorskip("diffusers", reason="needs vamf[latents]")


def refused(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        encode.main(argv)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_vae(tmp_path_factory.mktemp("vae") / "one")


@pytest.fixture
def photos(tmp_path):
    """Ten images of three classes, 12x8 and larger than the 8x8 that are encoded."""
    pixels = np.random.RandomState(0).randint(0, 256, (10, 8, 12, 3)).astype("u1")
    for name, some in zip("abc", np.split(pixels, [4, 7]), strict=True):
        write_images(tmp_path / "photos" / name, some)
    return tmp_path / "photos"


def job(photos, out, network, *more):
    settings = ["--size", "8", "--shard", "4", "--device", "cpu"]
    encode.main([str(photos), "--out", str(out), "--vae", str(network), *settings, *more])


def declared(out, photos, network, **settings):
    tiny = {"size": 4, "resolution": 8, "classes": 3}
    return Latents(**{"root": out, "images": photos, "vae": str(network)} | tiny | settings)


def test_latents_are_the_posteriors_of_the_images_and_of_their_mirror_images(
    photos, network, tmp_path, capsys
):
    job(photos, tmp_path / "out", network)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "shard 1 of 3, 4 images: encoded"
    train.main(["imagenet_dit_b4", *out[3].split()[3:], "--model.classes", "3", "--dry-run"])
    assert json.loads(capsys.readouterr().out)["data"]["resolution"] == 8
    data = declared(tmp_path / "out", photos, network)
    found, images = data.load("train"), data.reference_images.load("train")
    assert found.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    theirs = diffusers.AutoencoderKL.from_pretrained(network)
    for view, flipped in enumerate([images.images, images.images.flip(3)]):
        with torch.no_grad():
            posterior = theirs.encode(flipped.float() / 127.5 - 1).latent_dist
        expected = torch.cat([posterior.mean, posterior.logvar], 1)
        stored = found.shards.read(np.arange(10), np.full(10, view))
        torch.testing.assert_close(stored, expected, rtol=1e-4, atol=1e-5)
    index = Index.load(tmp_path / "out")
    assert index.scaling == theirs.config.scaling_factor == 0.18215
    assert index.shape == (4, 4, 4) and index.classes == 3 and index.vae == str(network)


def test_decoding_is_diffusers_own(photos, network, tmp_path):
    job(photos, tmp_path / "out", network)
    decode = declared(tmp_path / "out", photos, network).decoder(CPU)
    z = torch.randn(6, 4, 4, 4)  # more than are decoded at once
    with torch.no_grad():
        expected = diffusers.AutoencoderKL.from_pretrained(network).decode(z / 0.18215).sample
    assert expected.shape == (6, 3, 8, 8)
    torch.testing.assert_close(decode(z), expected, rtol=1e-4, atol=1e-5)


def test_what_is_encoded_stays_and_what_is_damaged_is_made_anew(photos, network, tmp_path, capsys):
    out = tmp_path / "out"
    job(photos, out, network)
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "moments-00001.npy").unlink()
    content = bytearray(whole["moments-00002.npy"])
    content[-1] ^= 1
    (out / "moments-00002.npy").write_bytes(content)
    capsys.readouterr()
    job(photos, out, network)
    said = [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()[:3]]
    assert said == ["is there", "encoded", "encoded"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    unchanged = {name for name, time in times.items() if (out / name).stat().st_mtime_ns == time}
    assert unchanged == {"index.json", "moments-00000.npy", "rows-00000.npy"}


def once(real, count, else_do=lambda *_: None):
    """A function that works ``count`` times, and is interrupted in the next."""
    calls = []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) > count:
            else_do(*arguments)
            raise KeyboardInterrupt
        return real(*arguments)

    return interrupt


@pytest.mark.parametrize("when", ["encoding", "writing"])
def test_an_interrupted_job_leaves_whole_shards_and_goes_on(
    photos, network, tmp_path, monkeypatch, when
):
    """Interrupted in the second shard, which is not there then."""
    job(photos, tmp_path / "whole", network)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        if when == "encoding":  # one image of the plan, two views of the first shard
            patch.setattr(vae.VAE, "encode", once(vae.VAE.encode, 3))
        else:  # of moments and rows of the first shard, and rows of the second
            save = np.save
            patch.setattr(np, "save", once(save, 3, lambda file, array: save(file, array[:1])))
        with pytest.raises(SystemExit) as ended:
            job(photos, out, network)
    assert ended.value.code == 130
    names = {"index.json", "moments-00000.npy", "rows-00000.npy"}
    assert {path.name for path in out.iterdir()} - names <= {"rows-00001.npy"}
    with pytest.raises(ValueError, match=r"moments-00001.npy is missing"):
        declared(out, photos, network).load("train")
    job(photos, out, network)
    assert _contents(out) == _contents(tmp_path / "whole")


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_processes_share_the_work(photos, network, tmp_path):
    for part, shards in ((0, {0, 2}), (1, {0, 1, 2})):
        job(photos, tmp_path / "shared", network, "--part", str(part), "2")
        found = {int(path.stem[-5:]) for path in (tmp_path / "shared").glob("moments-*.npy")}
        assert found == shards
    job(photos, tmp_path / "alone", network)
    assert _contents(tmp_path / "shared") == _contents(tmp_path / "alone")


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
def test_parts_that_are_none_are_refused(part):
    with pytest.raises(ValueError, match=r"a part of 0 N, ..., N-1 N; got 256, 4096 and"):
        Encoding(part=part)


def test_folders_with_other_latents_are_refused(photos, network, tmp_path, capsys):
    out = tmp_path / "out"
    job(photos, out, network)
    start = [str(photos), "--out", str(out), "--size", "8", "--device", "cpu", "--vae"]
    other = write_vae(tmp_path / "other", seed=1)
    capsys.readouterr()
    assert "must hold latents with vae_sha256" in refused([*start, str(other)], capsys)
    line = refused([*start, str(network), "--shard", "5"], capsys)
    assert line == f"{out} must hold latents with shard 5; got 4"
    line = refused([*start, str(network), "--shard", "4", "--no-mirror"], capsys)
    assert line == f"{out} must hold latents with mirrored False; got True"
    write_images(photos / "d", np.zeros((1, 8, 8, 3), "u1"))
    assert "must hold latents with classes 4; got 3" in refused([*start, str(network)], capsys)
    start[2] = str(photos)
    line = refused([*start, str(network)], capsys)
    assert line == f"a folder for latents must be empty; got files in {photos}"
    line = refused([*start, str(network), "--size", "9"], capsys)
    assert line == f"size must be a multiple of 2 for {network}; got 9"


def test_images_of_no_use_are_refused_or_replaced(photos, network, tmp_path, capsys):
    """By their headers before anything is encoded; what lies behind those when it is met."""
    path = photos / "b" / "000001.png"
    path.write_bytes(path.read_bytes()[:80])
    argv = [str(photos), "--out", str(tmp_path / "out"), "--size", "8", "--device", "cpu"]
    argv += ["--vae", str(network)]
    assert "000001.png is no image that Pillow reads" in refused(argv, capsys)
    encode.main([*argv, "--damaged", "skip"])
    assert "skipped unusable file 1" in capsys.readouterr().out
    shards = declared(tmp_path / "out", photos, network).load("train").shards
    bad, following = shards.read(np.array([5, 6]), np.array([0, 0]))
    assert torch.equal(bad, following)  # the next one of its class
    assert "must hold at least one; got none" in refused(
        [str(tmp_path / "out"), "--vae", str(network)], capsys
    )


def test_vaes_that_are_not_to_be_had_are_one_line(photos, network, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (str(tmp_path / "absent"), str(photos), "nobody/nothing"):
        line = refused([str(photos), "--vae", name], capsys)
        assert "must be a folder with diffusers' AutoencoderKL" in line and f"got {name}: " in line
    broken = write_vae(tmp_path / "broken")
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"got {broken}: " in refused([str(photos), "--vae", str(broken)], capsys)
    shifted = write_vae(tmp_path / "shifted", shift_factor=0.1)
    line = refused([str(photos), "--vae", str(shifted)], capsys)
    assert line == f"the VAE must have no shift factor; got 0.1, {shifted}"


def test_latents_of_other_weights_are_not_decoded(photos, network, tmp_path):
    """A folder is known by its weights, wherever it lies, and by its scaling factor."""
    job(photos, tmp_path / "out", network)
    copy = write_vae(tmp_path / "copy")
    assert declared(tmp_path / "out", photos, copy).decoder(CPU)
    other = declared(tmp_path / "out", photos, write_vae(tmp_path / "other", seed=1))
    with pytest.raises(
        ValueError, match=r"must be of the VAE .*other, weights [0-9a-f]{12}, .*; got"
    ):
        other.decoder(CPU)
    scaled = declared(tmp_path / "out", photos, write_vae(tmp_path / "s", scaling_factor=0.5))
    with pytest.raises(ValueError, match=r"scaling factor 0.5; got .* scaling factor 0.18215, in"):
        scaled.decoder(CPU)
