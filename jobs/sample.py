"""Draw samples from a checkpoint: ``python -m jobs.sample runs/NAME --out grid.png --label 3``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vamf.inference import load, sampling

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw samples from a checkpoint's moving average."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint, a run's folder for its best one, or an exported file."""
    out: Path = Path("samples.png")
    """What to write: a picture (.png), an array (.npz, `arr_0` as in ADM), or a folder of PNGs."""
    count: int | None = None
    """How many; by default as many as a picture shows."""
    label: int | None = None
    """Class of all samples, for a network that knows classes; by default random ones."""
    scale: float | None = None
    """Guidance scale, for a network that takes one as an input; by default the experiment's."""
    interval: tuple[float, float] | None = None
    """First and last guided time, for a network that takes them; by default the experiment's."""
    steps: int | None = None
    """Steps of the sampler; by default the experiment's, one for most."""
    seed: int = 0
    """Seed of the noise: sample i is a function of seed and i, whatever the count."""
    set: tuple[str, ...] = ()
    """Other settings, as `name=value`, such as `data.vae=FOLDER` for a model of latents."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def main(argv: list[str]) -> None:
    options = cli.read(Options, argv, "sample")
    device, out = torch.device(options.device), options.out
    trained = cli.guarded(lambda: load.load(options.checkpoint, device))
    experiment = cli.guarded(lambda: cli.changed(trained.experiment, options.set))
    trained = trained._replace(experiment=experiment)
    names = ("steps", "seed", "label", "scale", "interval")
    chosen = {name: getattr(options, name) for name in names}
    generate = cli.guarded(lambda: sampling.generator_of(trained, **chosen))
    n = cli.guarded(lambda: sampling.save_samples(generate, trained.shape, options.count, out))
    print(f"{out}: {n} samples of {trained.path}, step {trained.step}")


def check(argv: list[str]) -> None:
    """Exits with an error if the options are invalid; opens none of the files they name."""
    cli.read(Options, argv, "sample")


if __name__ == "__main__":
    cli.start(main)
