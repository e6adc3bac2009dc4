"""Samples in files, any number of them; exported networks generate the same samples."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import TINY
from PIL import Image

from vamf.data.torchvision_sets import CIFAR10
from vamf.inference.export import export
from vamf.inference.load import Trained, load
from vamf.inference.sampling import generator_of, save_samples
from vamf.inference.serving import Served
from vamf.metrics.quantize import to_uint8
from vamf.presets import PRESETS
from vamf.training.evaluation import protocol
from vamf.training.loop import Session, train
from vamf.training.step.trainer import Trainer

CPU = torch.device("cpu")
LABELLED = TINY.override({"model.classes": 10, "guidance.omega": 1.0})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(LABELLED, Session(directory=folder))
    return folder


@pytest.fixture(scope="module")
def trained(run):
    """With weights that differ enough to show classes after six steps of training."""
    found = load(run, CPU)
    with torch.no_grad():
        g = torch.Generator().manual_seed(0)
        for p in found.ema.parameters():
            p.add_(torch.randn(p.shape, generator=g) / 8)
    return found


def pixels(generate, n):
    return to_uint8(generate(range(n))).permute(0, 2, 3, 1).numpy()


def test_an_array_and_a_folder_hold_the_same_images(trained, tmp_path):
    generate = generator_of(trained, steps=1, seed=3)
    assert save_samples(generate, trained.shape, 270, tmp_path / "a.npz") == 270
    assert save_samples(generate, trained.shape, 270, tmp_path / "folder") == 270
    with np.load(tmp_path / "a.npz") as stored:
        array = stored["arr_0"]
    assert array.shape == (270, 8, 8, 1) and array.dtype == np.uint8
    assert (array == pixels(generate, 270)).all()
    files = sorted((tmp_path / "folder").iterdir())
    assert [f.name for f in files][:2] == ["000000.png", "000001.png"] and len(files) == 270
    assert all((np.array(Image.open(f)) == array[i, :, :, 0]).all() for i, f in enumerate(files))


def test_a_picture_of_any_number(trained, tmp_path):
    generate = generator_of(trained, steps=1, seed=3)
    assert save_samples(generate, trained.shape, None, tmp_path / "a.png") == 64
    assert save_samples(generate, trained.shape, 5, tmp_path / "b.png") == 5
    scale, side = 4, 9  # 8 pixels and a line
    for name, rows, columns in (("a.png", 8, 8), ("b.png", 3, 2)):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (columns * side * scale, rows * side * scale)


def test_colour_pictures(tmp_path):
    images = torch.zeros(4, 3, 32, 32)
    images[:, 0] = 1
    save_samples(lambda i: images[list(i)], (3, 32, 32), 4, tmp_path / "a.png")
    save_samples(lambda i: images[list(i)], (3, 32, 32), 4, tmp_path / "folder")
    for file in (tmp_path / "a.png", tmp_path / "folder" / "000003.png"):
        with Image.open(file) as picture:
            assert picture.getpixel((0, 0)) == (255, 128, 128)


def test_classes(trained):
    by_class = [generator_of(trained, steps=1, seed=0, label=k)(range(6)) for k in range(10)]
    differ = torch.pdist(torch.stack(by_class).flatten(1))
    assert differ.min() > 1e-3
    again = generator_of(trained, steps=1, seed=0, label=4)(range(3))
    torch.testing.assert_close(again, by_class[4][:3])
    with pytest.raises(ValueError, match=r"labels must lie in 0, ..., 9; got 10"):
        generator_of(trained, steps=1, seed=0, label=10)


def test_a_guided_network_takes_a_scale():
    """As 1 - 1 / scale, for samples and in requests; the protocol names it."""
    changes = {"model.guided": True, "guidance.max_scale": 4.0, "evaluation.guidance_scale": 2.0}
    experiment, seen = LABELLED.override(changes), []
    own = Trainer(experiment, experiment.data.load("train"))
    own.ema.module.register_forward_pre_hook(lambda _, args: seen.append(args[4]))
    trained = Trained(experiment, own.ema, own.beta, Path("here"), 0)
    for scale in (None, 1.0, 4.0):
        generator_of(trained, steps=1, seed=0, label=3, scale=scale)(range(2))
    Served(trained).images([{"count": 2, "scale": 4}, {"count": 2}])
    assert [part.tolist() for part in seen] == [[k] * 2 for k in (0.5, 0.0, 0.75, 0.75, 0.5)]
    assert "1-step samples, guidance scale 2, moving average" in protocol(experiment)
    with pytest.raises(ValueError, match=r"must lie in \[1, guidance.max_scale\].*; got 5.0 and"):
        generator_of(trained, steps=1, seed=0, scale=5.0)
    with pytest.raises(ValueError, match=r"guidance_scale must be at least 1; got 0.5"):
        Served(trained).images([{"count": 1, "scale": 0.5}])


def test_a_network_may_take_the_times_of_guidance():
    """For samples and in requests; Heun's rule is told the scale at guided times alone."""
    changes = {"model.guided": True, "guidance.max_scale": 4.0, "evaluation.guidance_scale": 2.0}
    changes |= {"model.guided_interval": True, "guidance.random_interval": True}
    experiment, seen = LABELLED.override(changes | {"evaluation.guidance_t_max": 0.75}), []
    own = Trainer(experiment, experiment.data.load("train"))
    own.ema.module.register_forward_pre_hook(lambda _, args: seen.append(args))
    trained = Trained(experiment, own.ema, own.beta, Path("here"), 0)
    generator_of(trained, steps=2, seed=0, interval=(0.25, 0.5))(range(1))
    Served(trained).images([{"count": 1, "t_min": 0.5}])
    told = [(args[2].item(), args[4].item(), args[5].flatten().tolist()) for args in seen]
    assert told == [(1, 0.5, [0.25, 0.5]), (0.5, 0.5, [0.25, 0.5]), (1, 0.5, [0.5, 0.75])]
    assert "guidance scale 2 from t = 0 to 0.75, moving average" in protocol(experiment)
    seen.clear()
    heun = experiment.override({"evaluation.sampler": "heun"})
    generator_of(trained._replace(experiment=heun), steps=2, seed=0)(range(1))
    told = [(args[2].item(), args[4].item(), len(args)) for args in seen]
    assert told == [(1, 0, 5), (0.5, 0.5, 5), (0.5, 0.5, 5), (0, 0.5, 5)]
    with pytest.raises(ValueError, match=r"in \[0, 0.5\] and guidance_t_max .*; got 0.6 and 0.75"):
        Served(trained).images([{"count": 1, "t_min": 0.6}])


def test_a_network_that_is_not_guided_takes_no_scale(trained):
    generator_of(trained, steps=1, seed=0, scale=1.0)
    with pytest.raises(ValueError, match=r"and be 1 without that; got 2.0 and None"):
        generator_of(trained, steps=1, seed=0, scale=2.0)
    with pytest.raises(ValueError, match=r"must be 0 and 1 without .*; got 0.2 and 0.6"):
        generator_of(trained, steps=1, seed=0, interval=(0.2, 0.6))


def test_a_network_without_classes_takes_no_label(tmp_path):
    train(TINY.override({"steps": 1}), Session(directory=tmp_path))
    with pytest.raises(ValueError, match="this network takes no labels; got 3"):
        generator_of(load(tmp_path, CPU), steps=1, seed=0, label=3)


@pytest.mark.parametrize(
    ("shape", "count", "out", "line"),
    [
        ((1, 8, 8), 0, "a.png", "count must be at least 1; got 0"),
        ((1, 8, 8), 2, "a.jpg", "to a .png, a .npz or a folder; got"),
        ((2,), 2, "a.npz", "points are drawn into a .png; got"),
        ((1, 8, 8), 2, "full", "must be empty; got files in"),
    ],
)
def test_what_cannot_be_written_is_refused(shape, count, out, line, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ValueError, match=line):
        save_samples(lambda i: torch.zeros(len(i), *shape), shape, count, tmp_path / out)


def test_an_exported_file_gives_the_same_samples(run, tmp_path):
    out = tmp_path / "some" / "model.safetensors"
    assert export(run, out) == 6
    there, here = load(out, CPU), load(run, CPU)
    assert there.experiment == here.experiment == LABELLED and there.step == 6
    both = [generator_of(each, steps=2, seed=1)(range(5)) for each in (there, here)]
    assert torch.equal(*both)
    state = torch.load(here.path / "state.pt", weights_only=True)
    assert out.stat().st_size < (here.path / "state.pt").stat().st_size / 2
    assert there.beta(torch.tensor([0.5])) == here.beta(torch.tensor([0.5])) and state["step"] == 6


def test_an_export_that_fails_leaves_the_older_file(run, tmp_path):
    out = tmp_path / "model.safetensors"
    export(run, out)
    before, limits = out.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as on a full disk
    try:
        with pytest.raises(Exception, match="File too large"):
            export(run, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


def test_an_adaptive_beta_is_exported_too(tmp_path):
    changes = {"beta.kind": "AdaptiveBeta", "steps": 1, "checkpoint.every": 1}
    train(TINY.override(changes), Session(directory=tmp_path))
    out = tmp_path / "model.safetensors"
    export(tmp_path, out)
    t = torch.linspace(0, 1, 7)
    assert torch.equal(load(out, CPU).beta(t), load(tmp_path, CPU).beta(t))


def test_networks_are_used_where_their_data_are_not(tmp_path):
    changes = {"model.channels": 8, "model.blocks": 1, "data.root": str(tmp_path / "absent")}
    changes["evaluation.distance.extractor"] = "randconv64_v1"
    experiment = PRESETS["cifar10_cond"].override(changes)
    assert isinstance(experiment.data, CIFAR10)
    step = tmp_path / "checkpoints" / "step_00000000"
    step.mkdir(parents=True)
    experiment.save(step / "experiment.json")
    data = type("Data", (), {"shape": (3, 32, 32)})()
    torch.save(Trainer(experiment, data).state_dict(), step / "state.pt")
    (step / "meta.json").write_text('{"metrics": {}}')
    export(step, tmp_path / "m.safetensors")
    samples = generator_of(load(tmp_path / "m.safetensors", CPU), steps=1, seed=0, label=9)
    assert samples(range(2)).shape == (2, 3, 32, 32)


def test_files_that_are_no_exports_are_refused(run, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match=r"must end in .safetensors; got"):
        export(run, tmp_path / "model.pt")
    out = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="is no readable"):
        load(out, CPU)
    out.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no readable"):
        load(out, CPU)
    save_file({"weight": torch.zeros(2)}, out)
    with pytest.raises(ValueError, match="must hold its experiment and step; got"):
        load(out, CPU)


def test_requests(run, tmp_path):
    out = tmp_path / "model.safetensors"
    export(run, out)
    served = Served.load(out)
    images = served.images([{"count": 3, "seed": 7}, {"count": 2.0, "seed": 7, "label": 4}])
    assert images.shape == (5, 8, 8, 1) and images.dtype == np.uint8
    generate = generator_of(load(out, CPU), steps=1, seed=7)
    assert (images[:3] == pixels(generate, 3)).all()
    assert (served.images([{"count": 2, "seed": 7}]) == images[:2]).all()


def test_requests_take_the_experiments_own_steps(trained):
    few = trained._replace(experiment=LABELLED.override({"evaluation.sampling_steps": 3}))
    rows = [{"count": 2, "steps": steps} for steps in (1, 3)]
    one, three = (Served(few).images([row]) for row in rows)
    assert (Served(few).images([{"count": 2}]) == three).all() and (one != three).any()


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"seed": 1}, r"a request holds count, .*; got \['seed'\]"),
        ({"count": 1, "sede": 1}, r"got \['count', 'sede'\]"),
        ({"count": 0}, r"count must lie in 1, ..., 10000; got 0"),
        ({"count": 1.5}, r"count must be a whole number; got 1.5"),
        ({"count": 1, "seed": float("nan")}, "seed must be a whole number; got nan"),
        ({"count": 1, "label": 12}, r"labels must lie in 0, ..., 9; got 12"),
        ({"count": 1, "steps": 0}, "sampling_steps must be at least 1; got 0"),
        ({"count": 1, "scale": 3.0}, "and be 1 without that; got 3.0 and None"),
        ({"count": 1, "scale": None}, "scale must be a number; got None"),
        ({"count": 1, "scale": "much"}, "scale must be a number; got 'much'"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(trained, row, line):
    with pytest.raises(ValueError, match=line):
        Served(trained).images([row])
