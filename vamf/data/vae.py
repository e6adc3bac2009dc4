"""Encodes images to latents and decodes latents with diffusers' Stable Diffusion autoencoders."""

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vamf.data.dataset import to_float
from vamf.files import expanded
from vamf.strict_fp32 import strict_fp32
from vamf.typing import Pixels, Sample

AT_ONCE = {"cpu": 4, "cuda": 32}
"""Images of 256x256 that are encoded or decoded at once: 1 GB on the CPU, 10 GB on a GPU."""


def located(name: str) -> str:
    """The absolute path of an autoencoder's folder; a repository's name is returned unchanged.

    ``name`` may begin with ``~``. Raises ValueError if that user has no home.
    """
    folder = expanded(Path(name))
    return str(folder.absolute()) if name.startswith("~") or folder.is_dir() else name


class VAE:
    """An ``AutoencoderKL`` in strict float32, so that machines differ by rounding only."""

    def __init__(self, name: str, device: torch.device) -> None:
        """``name`` is that of a repository on the Hugging Face hub, or a folder.

        Raises ValueError if diffusers or the weights are missing.
        """
        self.name, self.device = name, device
        self.network = _load(located(name)).to(device)
        config = self.network.config
        self.scaling = float(config.scaling_factor)
        if config.get("shift_factor"):
            raise ValueError(
                f"the VAE must have no shift factor; got {config.shift_factor}, {name}"
            )
        self.sha256 = _sha256(self.network.state_dict())

    def encode(self, images: Pixels) -> Tensor:
        """Mean and log-variance of the posterior, unscaled, (n, 2 channels, height, width)."""
        with strict_fp32():
            return torch.cat([self._moments(part) for part in self._parts(images)])

    def _moments(self, images: Pixels) -> Tensor:
        posterior = self.network.encode(to_float(images)).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    def decode(self, latents: Sample) -> Sample:
        """The images (n, 3, H, W) of scaled latents, about [-1, 1], on the VAE's device."""
        with strict_fp32():
            parts = [self.network.decode(z / self.scaling).sample for z in self._parts(latents)]
            return torch.cat(parts)

    def _parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        return batch.to(self.device).split(AT_ONCE.get(self.device.type, 4))


@cache
def load(name: str, device: torch.device) -> VAE:
    """The VAE of that name; each process reads it once."""
    return VAE(name, device)


def _load(name: str) -> Any:
    try:
        with _quiet():
            from diffusers import AutoencoderKL  # ten CPU-seconds
    except ImportError as error:
        raise ValueError(
            "latents are encoded and decoded by diffusers: `pip install 'vamf[latents]'`, or "
            f"`uv run --extra latents`; got {error}"
        ) from None
    for offline in (True, False):  # a cached copy needs no network
        try:
            with _quiet():
                found = AutoencoderKL.from_pretrained(
                    name, local_files_only=offline, low_cpu_mem_usage=False
                )
            return found.float().eval().requires_grad_(False)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
    raise ValueError(
        "the VAE must be a folder with diffusers' AutoencoderKL (config.json and weights), or a "
        f"repository of the Hugging Face hub in its cache or in reach; got {name}: {reason:.200}"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides warnings and the hub's log of each attempt: the final error says what failed."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.setLevel(level)


def _sha256(state: dict[str, Tensor]) -> str:
    """SHA-256 of names and values: independent of the file format."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().data)
    return digest.hexdigest()
