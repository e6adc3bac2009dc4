"""Couplings on disk: a sample keeps its noise, splits are apart, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.couplings import POINTS, digits_couplings, random_pairs, write_couplings
from helpers.latents import INDEX
from helpers.tiny import TINY

from vamf.data.couplings import Couplings
from vamf.data.dataset import Coupled, Images, Labelled
from vamf.data.digits import Digits
from vamf.data.image_folder import ImageFolder
from vamf.data.latents import Latents
from vamf.data.mixtures import Mixture
from vamf.data.source import DataSource, LatentSource
from vamf.data.streaming import StreamedSet
from vamf.data.toys import Toy
from vamf.experiment import Experiment
from vamf.rng import generator
from vamf.training.evaluation import protocol
from vamf.training.replica_consistency import fingerprint

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "pairs", digits_couplings(tmp_path / "pairs")


def test_a_set_is_what_training_asks_for(folder):
    source = Couplings(root=folder[0])
    assert isinstance(source, DataSource) and not isinstance(source, LatentSource)
    assert (source.shape, source.classes, source.original) == ((1, 8, 8), 10, Digits())
    data = source.load("train")
    assert isinstance(data, Coupled) and isinstance(data, Labelled)
    assert isinstance(data, StreamedSet) and not isinstance(data, Images)
    assert not isinstance(Digits().load("train"), Coupled)


def numbers(pairs, of):
    """The numbers of given samples or noises among the pairs."""
    flat = pairs.flatten(1)
    return [(flat == one.flatten()).all(1).nonzero().item() for one in of]


def test_each_sample_keeps_its_noise_and_its_label(folder):
    root, pairs = folder
    data = Couplings(root=root).load("train")
    seen = set()
    for step in range(4):
        x, e = data.batch(step, 7, 5, CPU), data.noise_of(step, 7, 5, CPU)
        chosen = numbers(pairs[:, 0], x)
        assert chosen == numbers(pairs[:, 1], e)
        assert [k % 10 for k in chosen] == data.labels_of(step, 7, 5, CPU).tolist()
        part = slice(1, None, 2)
        assert torch.equal(data.noise_of(step, 7, 5, CPU, part), e[part])
        assert torch.equal(data.batch(step, 7, 5, CPU, part), x[part])
        seen |= set(chosen)
    assert seen == set(range(23))  # 28 samples, of 23 to train on
    x, e = data.draw_pairs(50, generator(1))
    assert numbers(pairs[:, 0], x) == numbers(pairs[:, 1], e)
    assert torch.equal(data.draw(50, generator(1)), x)


def test_splits_are_apart(folder):
    source = Couplings(root=folder[0], held_out=0.25)
    train, test = (source.load(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 6)
    assert sorted([*train.places, *test.places]) == list(range(24))
    assert train.fingerprint() != test.fingerprint()


def test_pairs_far_apart_are_left_out(folder):
    root, pairs = folder
    near = Couplings(root=root, keep=0.5)
    apart = (pairs[:, 1] - pairs[:, 0]).flatten(1).norm(dim=1)
    kept = sorted([*near.load("train").places, *near.load("test").places])
    assert kept == sorted(apart.argsort()[:12].tolist())


@pytest.mark.parametrize(
    "source", [Toy(name="two_moons"), Mixture(dim=3), Digits(), Latents(size=4, classes=3)]
)
def test_what_a_folder_says_stands_in_the_experiment(source, tmp_path):
    """A run can be loaded where its couplings are not: it knows shape, classes and data."""
    write_couplings(tmp_path / "pairs", random_pairs(4, source.shape), source)
    made = Couplings(root=tmp_path / "pairs")
    (tmp_path / "pairs" / "couplings.json").unlink()
    base = POINTS if len(source.shape) == 1 else TINY
    experiment = replace(base, data=made)
    assert experiment.data == made and experiment.original == source
    assert Experiment.from_dict(experiment.to_dict()) == experiment
    assert made.classes == 0


def test_couplings_of_latents_are_decoded_and_compared_with_images(tmp_path):
    latents = Latents(size=4, classes=3, vae="vae", images=Path("photos"))
    write_couplings(tmp_path / "pairs", random_pairs(4, latents.shape), latents)
    experiment = TINY.override({"data.kind": "Couplings", "data.root": str(tmp_path / "pairs")})
    assert experiment.reference_images == latents.reference_images
    assert experiment.located().data.original.images.is_absolute()
    assert ", decoded by vae" in protocol(experiment)
    with pytest.raises(ValueError, match=r"got evaluation.distance.reference test"):
        experiment.override({"evaluation.distance.reference": "test"})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"proxy": "batch"}, "the proxy batch is a velocity of independent noise.*got batch"),
        ({"proxy": "oracle"}, "the proxy oracle needs data with a closed-form velocity"),
        ({"augment.p": 0.1, "model.augmentations": 6}, "cannot be augmented.*: use augment null"),
        (
            {
                **{"times.kind": "UniformTimes", "times.prob_equal": 1, "loss.kind": "DDPM"},
                **{"evaluation.sampler": "ddim", "proxy": "ema", "beta.value": 0},
            },
            "a DDPM needs independent noise, and couplings have their own; got ",
        ),
        ({"data.keep": 0}, r"keep in \(0, 1\] and held_out in \(0, 1\); got 0"),
        ({"data.held_out": 1}, r"keep in \(0, 1\] and held_out in \(0, 1\); got 1.0 and 1"),
        (
            {"data.labelled": False, "guidance.omega": 1, "model.classes": 10},
            "guidance needs labels, and pairs have them if their flow had classes; got none in ",
        ),
        ({"evaluation.distance.kind": "SlicedWasserstein"}, "images by FrechetDistance"),
    ],
)
def test_what_needs_independent_noise_is_refused(changes, line, folder):
    coupled = {"data.kind": "Couplings", "data.root": str(folder[0])}
    assert TINY.override(coupled).original == Digits()
    with pytest.raises(ValueError, match=line) as refused:
        TINY.override(coupled | changes)
    assert "\n" not in str(refused.value)


def test_folders_without_couplings_and_of_others_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"must hold couplings.json, which .*jobs.couple.* writes"):
        Couplings(root=tmp_path)
    with pytest.raises(ValueError, match=r"must have the shape \(2,\); got \(1, 8, 8\) in"):
        Couplings(root=folder[0], source=Toy(), labelled=False).load("train")
    with pytest.raises(ValueError, match="must have the classes 0; got 10 in"):
        Couplings(root=folder[0], labelled=False).load("train")
    write_couplings(tmp_path / "moons", random_pairs(4, (2,)), Toy(name="two_moons"))
    with pytest.raises(ValueError, match=r"must be of the data Toy\(.*eight.*; got Toy\(.*moons"):
        Couplings(root=tmp_path / "moons", source=Toy()).load("train")
    with pytest.raises(ValueError, match="besides those held out; got 1 pairs, 1 of them"):
        Couplings(root=folder[0], keep=0.01).load("train")
    with pytest.raises(ValueError, match="split must be 'train' or 'test'; got 'all'"):
        Couplings(root=folder[0]).load("all")
    INDEX.save(tmp_path)
    (tmp_path / "index.json").rename(tmp_path / "couplings.json")
    with pytest.raises(ValueError, match=r"couplings.json must be an index of couplings; got"):
        Couplings(root=tmp_path)


@pytest.mark.parametrize(
    ("cut", "line"),
    [
        (slice(None, -1), r"pairs-00001.npy is damaged: mmap length is greater than file size"),
        (slice(0), r"pairs-00001.npy is damaged: "),
    ],
)
def test_truncated_files_are_named(cut, line, folder):
    path = folder[0] / "pairs-00001.npy"
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(ValueError, match=line):
        Couplings(root=folder[0]).load("train")


def test_one_wrong_bit_is_found_when_its_pair_is_read(folder):
    path = folder[0] / "pairs-00001.npy"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1  # of the noise of pair 7
    path.write_bytes(content)
    data = Couplings(root=folder[0]).load("train")
    with pytest.raises(ValueError, match=r"pairs-00001.npy is damaged: row 3 is not as it was"):
        for step in range(4):
            data.batch(step, 7, 0, CPU)


def test_what_samples_are_compared_with_is_looked_for_before_training(folder, tmp_path):
    TINY.override({"data.kind": "Couplings", "data.root": str(folder[0])}).prepare()
    images = ImageFolder(root=tmp_path / "gone", size=8, channels=1)
    write_couplings(tmp_path / "of images", folder[1], images)
    with pytest.raises(ValueError, match="gone"):
        TINY.override({"data.kind": "Couplings", "data.root": f"{tmp_path}/of images"}).prepare()


def test_workers_compare_the_noise_too(tmp_path):
    """By a digest of all pairs: those of one noise alone differ."""
    pairs = random_pairs(8, (2,))
    other = pairs.clone()
    other[3, 1] += 1
    digests = set()
    for name, some in {"a": pairs, "b": other, "c": pairs}.items():
        write_couplings(tmp_path / name, some, Toy())
        experiment = replace(POINTS, data=Couplings(root=tmp_path / name))
        digests.add(fingerprint(experiment.data.load("train"), experiment))
    assert len(digests) == 2


def test_a_source_can_be_named_anew(folder):
    """Where the original data lie elsewhere than when the couplings were made."""
    source = {"kind": "MNIST", "root": "/new/place"}
    about = json.loads((folder[0] / "couplings.json").read_text())
    about |= {"source": source | {"root": "/old"}, "shape": [1, 28, 28]}
    (folder[0] / "couplings.json").write_text(json.dumps(about))
    coupled = {"data.kind": "Couplings", "data.root": str(folder[0])}
    named = {f"data.source.{name}": value for name, value in source.items()}
    assert TINY.override(coupled).original.root == Path("/old")
    assert TINY.override(coupled | named).original.root == Path("/new/place")
