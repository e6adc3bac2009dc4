"""Every preset is a value that survives JSON and trains."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.latents import write_vae
from helpers.pictures import trust_cifar10, write_images, write_tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vamf.data.encoding import Encoding, encode
from vamf.data.latents import Latents
from vamf.data.torchvision_sets import CIFAR10, MNIST
from vamf.data.vae import VAE
from vamf.experiment import Experiment
from vamf.presets import PRESETS
from vamf.training.checkpoints.checkpoint import find_checkpoint
from vamf.training.loop import Session, Summary, train
from vamf.training.step.trainer import Trainer

LEFT = ("mnist_imf", "cifar10_imf", "cifar10_short", "cifar10_short_cond", "cifar10_25min")
"""The presets that are left to the slow suite: others are of their kind."""
PRESET = pytest.mark.parametrize(
    "preset",
    [pytest.param(p, id=n, marks=[pytest.mark.slow] * (n in LEFT)) for n, p in PRESETS.items()],
)

TINY = {
    "steps": 2,
    "batch": 4,
    "evaluation.variance_samples": 4,
    "evaluation.gradient_batches": 2,
}
TINY_DISTANCE = {
    "FrechetDistance": {"samples": 40},
    "SlicedWasserstein": {"samples": 16, "directions": 4, "repetitions": 2},
}


TINY_NETWORK = {"model.channels": 8, "model.blocks": 1}
TINY_TRANSFORMER = {"model.width": 16, "model.depth": 1, "model.heads": 2, "model.classes": 2}
TINY_LATENTS = {"size": 4, "resolution": 8, "classes": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with random pixels in the place of MNIST and CIFAR-10."""
    root = tmp_path_factory.mktemp("data")
    write_tiny(root)
    with pytest.MonkeyPatch.context() as patch:
        trust_cifar10(patch)
        yield root


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Settings of latents of random pixels, by an autoencoder of random weights."""
    pytest.importorskip("diffusers", reason="needs vamf[latents]")
    root = tmp_path_factory.mktemp("latents")
    network = write_vae(root / "vae")
    for name in ("a", "b"):
        write_images(root / "images" / name, np.zeros((4, 8, 8, 3), "u1"))
    vae = VAE(str(network), torch.device("cpu"))
    list(encode(Encoding(size=8), root / "images", root / "latents", vae))
    return TINY_LATENTS | {
        "root": str(root / "latents"),
        "images": str(root / "images"),
        "vae": str(network),
    }


def tiny(preset, request):
    settings = TINY_DISTANCE[type(preset.evaluation.distance).__name__]
    changes = TINY | {f"evaluation.distance.{n}": v for n, v in settings.items()}
    if isinstance(preset.data, Latents):
        settings = request.getfixturevalue("latents")
        changes |= TINY_TRANSFORMER | {f"data.{n}": v for n, v in settings.items()}
    if isinstance(preset.data, MNIST | CIFAR10):
        changes |= TINY_NETWORK | {"data.root": str(request.getfixturevalue("images"))}
    if isinstance(preset.data, MNIST | CIFAR10 | Latents):
        changes |= {"evaluation.distance.extractor": "randconv64_v1"}
    if not preset.loss.learns_velocity:
        changes |= {"evaluation.sampling_steps": 2}
    if preset.stages:
        changes |= {"stages.0.share": 0.5}
    return preset.override(changes)


@PRESET
def test_round_trip_through_json(preset):
    text = json.dumps(preset.to_dict(), allow_nan=False)
    assert Experiment.from_dict(json.loads(text)) == preset


class Crossings(TorchDispatchMode):
    """Operations that take tensors from one device to another."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [a for a in tree_leaves((args, out)) if isinstance(a, torch.Tensor)]
        if len({a.device for a in tensors}) > 1:
            self.seen.append(str(func))
        return out


@PRESET
def test_no_step_waits_for_a_copy_to_its_device(preset, request):
    """As a CUDA graph cannot: it would not be captured. The device is one without memory."""
    experiment = tiny(preset, request).override({"compute.compile": True})
    own = Trainer(experiment, experiment.data.load("train"))
    inputs = tree_map_only(torch.Tensor, lambda a: a.to("meta"), own.objective.inputs(0))
    own.net.to("meta")
    own.ema.to("meta")
    with Crossings() as crossings:
        own.objective.terms(inputs).loss.backward()
    assert not crossings.seen


@PRESET
def test_two_steps_of_training(preset, tmp_path, request):
    experiment, logged, reported = tiny(preset, request), [], []
    session = Session(
        directory=tmp_path,
        log=lambda figures, step: logged.append((step, dict(figures))),
        report=reported.append,
    )
    summary = train(experiment, session)
    ((step, figures),) = logged
    key = f"eval/{experiment.evaluation.distance.key}"
    variances = {"eval/loss_variance", "eval/gradient_variance"}
    expected = {key, *variances} if experiment.loss.learns_velocity else {key}
    assert summary.step == step == 2 and expected <= set(summary.metrics) <= set(figures)
    assert all(math.isfinite(measured.value) for measured in summary.metrics.values())
    assert all(math.isfinite(value) for n, value in figures.items() if not n.endswith("_se"))
    assert [r["step"] for r in reported] == [2]
    assert find_checkpoint(tmp_path).experiment() == experiment
    assert Summary.load(tmp_path / "summary.json").metrics.keys() == summary.metrics.keys()
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["step_00000002.png"]


@pytest.mark.parametrize(
    ("name", "millions"), [("b4", 131), ("b2", 131), ("l2", 459), ("xl2", 676)]
)
def test_networks_for_imagenet_are_as_large_as_published(name, millions):
    """Table 4 of arXiv 2505.13447; without weights in memory."""
    preset = PRESETS[f"imagenet_dit_{name}"]
    with torch.device("meta"):
        network = preset.model.build(preset.data.shape)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions
