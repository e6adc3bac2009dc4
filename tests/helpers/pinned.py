"""Runs whose results are kept: in tests, ``python -m helpers.pinned`` writes pins.json anew."""

import json
import math
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.latents import write_vae
from helpers.pictures import write_images
from helpers.small import SMALL
from helpers.tiny import checkpoint

from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train.fit import fit
from vamf.data.encoding import Encoding, encode
from vamf.data.vae import VAE
from vamf.experiment import Experiment
from vamf.inference.load import load
from vamf.inference.sampling import generator_of
from vamf.presets import PRESETS
from vamf.reproduction.runner import Computing
from vamf.reproduction.runner import run as reproduce
from vamf.rng import generator
from vamf.training.loop import Session, train

PINS = Path(__file__).with_name("pins.json")
STEPS = 20
SHORT = {
    "batch": 16,
    "steps": STEPS,
    "log_every": STEPS,
    "optim.warmup": 5,
    "ema": 0.9,
    "evaluation.every": STEPS,
    "evaluation.variance_samples": 8,
    "evaluation.gradient_batches": 2,
    "checkpoint.every": STEPS,
}
IMAGES = SHORT | {"model.channels": 8, "evaluation.distance.samples": 40}
POINTS = SHORT | {
    "model.hidden": [16, 16],
    "model.embedding": 8,
    "evaluation.distance.samples": 64,
    "evaluation.distance.directions": 8,
}
NOISE = {"times.kind": "UniformTimes", "times.prob_equal": 1.0}
GUIDED = {"model.classes": 10, "guidance.omega": 1.5, "guidance.cfg_kappa": 0.4}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits", IMAGES),
    "toy": ("toy", POINTS | {"beta.value": 0.5, "proxy": "ema"}),
    "oracle": (
        "toy",
        POINTS | {"data.kind": "Mixture", "data.dim": 2, "proxy": "oracle", "beta.value": 0.75},
    ),
    "guided": ("digits", IMAGES | GUIDED),
    "adaptive": (
        "digits",
        IMAGES | {"beta.kind": "AdaptiveBeta", "beta.begin": 4, "beta.every": 8, "beta.pairs": 2},
    ),
    "alpha": ("digits", IMAGES | {"loss.alpha.begin": 0.2, "loss.alpha.finish": 0.8}),
    "ddpm": (
        "digits",
        IMAGES
        | NOISE
        | {"ddpm.levels": 50, "proxy": "ema", "beta.value": 0.0}
        | {"evaluation.sampler": "ddim", "evaluation.sampling_steps": 5},
    ),
    "head": ("digits", IMAGES | {"proxy": "head", "model.velocity_head": True}),
    "latents": (
        "imagenet_dit_b4",
        SHORT
        | {"data.size": 4, "data.resolution": 8, "data.classes": 2, "model.classes": 2}
        | {"model.patch": 2, "model.width": 16, "model.depth": 2, "model.heads": 2}
        | {"optim.lr": 1e-3, "evaluation.distance.extractor": "randconv64_v1"}
        | {"evaluation.distance.samples": 40},
    ),
    "weighted": (
        "digits",
        IMAGES
        | {"beta.value": 0.3, "proxy": "ema", "model.dropout": 0.2, "loss.trace.sigma": "bridge"}
        | {"loss.anchor.weight": 0.2, "augment.p": 0.5, "model.augmentations": 6},
    ),
    "told": (
        "digits",
        IMAGES | {"model.classes": 10, "model.guided": True, "guidance.max_scale": 3.0},
    ),
    "compiled": ("digits", IMAGES | GUIDED | {"compute.compile": True, "model.dropout": 0.1}),
    "bfloat16": (
        "digits",
        IMAGES | {"compute.compile": True, "compute.precision": "bfloat16", "beta.value": 0.5},
    ),
    "probed": ("digits", IMAGES | {"probe.every": STEPS, "probe.pairs": 2, "probe.bins": 2}),
}


def experiment(name: str, folder: Path) -> Experiment:
    preset, changes = RUNS[name]
    if name == "latents":
        changes = changes | latents(folder)
    return PRESETS[preset].override(changes)


def latents(folder: Path) -> dict[str, Any]:
    """Settings of random images of two classes, a random autoencoder, and its latents."""
    pixels = np.random.RandomState(0).randint(0, 256, (12, 8, 8, 3)).astype("u1")
    for name, some in zip("ab", np.split(pixels, 2), strict=True):
        write_images(folder / "images" / name, some)
    vae = VAE(str(write_vae(folder / "vae")), torch.device("cpu"))
    list(encode(Encoding(size=8, shard=5), folder / "images", folder / "latents", vae))
    places = {"root": "latents", "images": "images", "vae": "vae"}
    return {f"data.{name}": str(folder / place) for name, place in places.items()}


def sketch(tensors: Iterable[torch.Tensor]) -> dict[str, Any]:
    """The norm of some tensors, and eight random projections of them."""
    projected, squares = torch.zeros(8, dtype=torch.float64), 0.0
    for number, tensor in enumerate(tensors):
        values = tensor.detach().cpu().double().flatten()
        draws = torch.randn(8, len(values), generator=generator("pin", number), dtype=torch.float64)
        projected += draws @ values
        squares += float(values.square().sum())
    return {"norm": math.sqrt(squares), "sketch": projected.tolist()}


def run(name: str, folder: Path) -> dict[str, Any]:
    """What a short training ends with."""
    torch.set_num_threads(1)
    chosen, place = experiment(name, folder), folder / "run"
    summary = train(chosen, Session(directory=place))
    return result(chosen, place, {n: m.value for n, m in summary.metrics.items()})


def run_by_two(folder: Path) -> dict[str, Any]:
    """The same with two workers under Ray Train."""
    chosen, place = experiment("digits", folder), folder / "run"
    summary = fit(chosen, place, None, Scaling(workers=2, gpus=0))
    return result(chosen, place, {n: m.value for n, m in summary.metrics.items()})


def run_ensemble(folder: Path) -> dict[str, Any]:
    """What a small reproduction measures."""
    torch.set_num_threads(1)
    protocol, computing = replace(SMALL, sets=("two_moons",)), Computing(device="cpu", together=1)
    (found,) = reproduce(protocol, folder, computing, lambda line: None)
    return {name: getattr(found, name) for name in ("sw1", "sw2", "trace", "floor", "lost")}


def result(chosen: Experiment, place: Path, metrics: dict[str, float]) -> dict[str, Any]:
    state = checkpoint(place, STEPS).load()
    generate = generator_of(load(place, torch.device("cpu")), steps=None, seed=3)
    return {
        "weights": sketch(state["net"][key] for key in sorted(state["net"])),
        "average": sketch(state["ema"][key] for key in sorted(state["ema"])),
        "samples": sketch([generate(range(8))]),
        "metrics": metrics,
    }


def main() -> None:
    found: dict[str, Any] = {}
    others = {"two workers": run_by_two, "ensemble": run_ensemble}
    for name in sys.argv[1:] or [*RUNS, *others]:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            found[name] = others[name](place) if name in others else run(name, place)
            print(name, flush=True)
    before = json.loads(PINS.read_text()) if PINS.exists() else {}
    PINS.write_text(json.dumps(before | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
