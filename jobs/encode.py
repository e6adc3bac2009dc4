"""Encode images for training on latents: ``python -m jobs.encode FOLDER --out LATENTS``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vamf.data.encoding import Encoding, encode
from vamf.data.vae import VAE

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Encode a folder of images with an autoencoder of Stable Diffusion; run it again to resume."""

    images: Annotated[Path, tyro.conf.Positional]
    """The folder: flat, or one subfolder a class."""
    out: Path = Path("data/latents")
    """Folder for the latents; what it holds of them stays, and what is damaged is made anew."""
    vae: str = "stabilityai/sd-vae-ft-mse"
    """The autoencoder: a repository of the Hugging Face hub, or a folder."""
    encoding: Annotated[Encoding, tyro.conf.arg(name="")] = field(default_factory=Encoding)
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def main(argv: list[str]) -> None:
    options = cli.read(Options, argv, "encode")
    vae = cli.guarded(lambda: VAE(options.vae, torch.device(options.device)))
    lines = encode(options.encoding, options.images, options.out, vae)
    while line := cli.guarded(lambda: next(lines, None), resume="the same command"):
        print(line, flush=True)


if __name__ == "__main__":
    cli.start(main)
