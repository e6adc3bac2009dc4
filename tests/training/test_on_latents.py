"""Runs on latents: trained as latents; shown, measured and served as images."""

import numpy as np
import pytest
import torch
from helpers.latents import write_vae
from helpers.pictures import write_images
from PIL import Image

from jobs import evaluate, sample
from vamf.data.encoding import Encoding, encode
from vamf.data.vae import VAE
from vamf.inference.export import export
from vamf.inference.load import load
from vamf.inference.serving import Served
from vamf.metrics.quantize import to_uint8
from vamf.presets import PRESETS
from vamf.training.evaluation import noise
from vamf.training.loop import Session, train

diffusers = pytest.importorskip("diffusers", reason="needs vamf[latents]")

CPU = torch.device("cpu")
LOGGED = []
SETTINGS = {
    **{"model.width": 16, "model.depth": 1, "model.heads": 2, "model.classes": 2},
    **{"data.size": 4, "data.resolution": 8, "data.classes": 2},
    **{"steps": 4, "batch": 4, "log_every": 2, "optim.lr": 1e-2, "ema": 0.5},
    **{"evaluation.variance_samples": 4, "evaluation.gradient_batches": 2},
    **{"evaluation.distance.samples": 40, "evaluation.distance.extractor": "randconv64_v1"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two classes, an autoencoder, its latents, and a run on them."""
    root = tmp_path_factory.mktemp("on latents")
    pixels = np.random.RandomState(0).randint(0, 256, (12, 8, 8, 3)).astype("u1")
    for name, some in zip("ab", np.split(pixels, 2), strict=True):
        write_images(root / "images" / name, some)
    network = write_vae(root / "vae")
    vae = VAE(str(network), CPU)
    list(encode(Encoding(size=8, shard=5), root / "images", root / "latents", vae))
    train(
        experiment(root),
        Session(directory=root / "run", log=lambda metrics, _: LOGGED.append(metrics)),
    )
    return root


def places(root):
    """Settings with the locations of the data."""
    found = {"root": root / "latents", "images": root / "images", "vae": root / "vae"}
    return {f"data.{name}": str(path) for name, path in found.items()}


def experiment(root, **changes):
    return PRESETS["imagenet_dit_b4"].override(SETTINGS | places(root) | changes)


def refused(job, argv, capsys):
    with pytest.raises(SystemExit) as ended:
        job.main([str(argument) for argument in argv])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_waiting_for_the_disk_is_logged(folder):
    assert len(LOGGED) == 2 and all(0 <= metrics["time/waiting"] <= 1 for metrics in LOGGED)


def test_the_runs_own_picture_is_of_images(folder):
    with Image.open(folder / "run" / "samples" / "step_00000004.png") as picture:
        assert picture.mode == "RGB" and picture.size == (8 * 9 * 4, 8 * 9 * 4)


def test_samples_are_decoded_latents(folder, tmp_path):
    out = tmp_path / "a.npz"
    sample.main(
        [str(folder / "run"), "--count", "3", "--seed", "5", "--label", "1", "--out", str(out)]
    )
    with np.load(out) as stored:
        images = stored["arr_0"]
    trained = load(folder / "run", CPU)
    e = noise(5, range(3), (4, 4, 4), CPU)
    zero, one = torch.zeros(3), torch.ones(3)
    with torch.no_grad():
        latents = e - trained.ema(e, zero, one, one.long())
        theirs = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
        expected = to_uint8(theirs.decode(latents / 0.18215).sample).permute(0, 2, 3, 1).numpy()
    assert images.shape == (3, 8, 8, 3)
    assert np.abs(images.astype(int) - expected).max() <= 1  # decoded four at a time


def test_distances_are_of_images_and_the_variance_of_latents(folder, tmp_path, capsys):
    evaluate.main([str(folder / "run"), "--device", "cpu"])
    out = capsys.readouterr().out
    assert f"decoded by {folder / 'vae'}" in out.splitlines()[0]
    for name in ("fd_randconv64_v1_n40_train", "loss_variance", "of real test latents, decoded"):
        assert name in out
    images = tmp_path / "samples"
    sample.main([str(folder / "run"), "--count", "40", "--seed", "2020", "--out", str(images)])
    capsys.readouterr()
    settings = [f"{name}={value}" for name, value in (SETTINGS | places(folder)).items()]
    preset = ["--preset", "imagenet_dit_b4", "--set", *settings]
    evaluate.main(["--images", str(images), *preset])
    theirs = float(capsys.readouterr().out.splitlines()[1].split()[1])
    ours = next(line for line in out.splitlines() if line.startswith("fd_randconv64_v1_n40_train "))
    assert float(ours.split()[1]) == pytest.approx(theirs, rel=0.05)  # to the digits shown


def test_an_export_is_served_as_images_where_the_latents_are_not(folder, tmp_path):
    export(folder / "run", tmp_path / "m.safetensors")
    hidden = folder / "hidden"
    (folder / "latents").rename(hidden)
    try:
        images = Served.load(tmp_path / "m.safetensors").images([{"count": 2, "seed": 3}])
    finally:
        hidden.rename(folder / "latents")
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.uint8


def test_what_is_missing_is_one_line(folder, tmp_path, capsys):
    run = folder / "run"
    line = refused(sample, [run, "--set", f"data.vae={tmp_path}"], capsys)
    assert line.startswith("the VAE must be a folder with diffusers' AutoencoderKL")
    other = write_vae(tmp_path / "other", seed=1)
    for job in (sample, evaluate):
        line = refused(job, [run, "--set", f"data.vae={other}"], capsys)
        assert f"latents must be of the VAE {other}, weights" in line and "; got those of" in line
    line = refused(evaluate, [run, "--set", f"data.root={tmp_path / 'absent'}"], capsys)
    assert "must hold index.json" in line
    line = refused(evaluate, [run, "--set", f"data.images={tmp_path / 'absent'}"], capsys)
    assert line == f"a folder of images must exist; got {tmp_path / 'absent'}"
    with pytest.raises(ValueError, match="a folder of images must exist"):  # before any step
        experiment(folder, **{"data.images": str(tmp_path / "absent")}).prepare()
    line = refused(evaluate, [run, "--set", "data.size=8"], capsys)
    assert "latents must have the shape (4, 8, 8); got (4, 4, 4)" in line


def test_settings_that_do_not_fit_latents_are_refused(folder):
    with pytest.raises(ValueError, match=r"data.mirror for latents; got Augmentation"):
        experiment(folder, **{"augment.mirror": True})
    with pytest.raises(ValueError, match=r"with a file of statistics; got .* test"):
        experiment(folder, **{"evaluation.distance.reference": "test"})
