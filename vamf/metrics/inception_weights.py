"""Finds or downloads the published Inception weights, without which there is no FID."""

from pathlib import Path

import torch

from vamf.metrics.cnn import file_sha256

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SIZE = "95 MB"
SHA256_PREFIX = "6726825d"
"""The first digits of the published file's SHA-256, which are part of its name."""


def find(path: Path | None = None) -> tuple[Path, str]:
    """The weights file and its SHA-256: at ``path``, else in torch.hub's folder, else downloaded.

    Raises ValueError if there is no such file, or its hash is wrong.
    """
    if path is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
        if not path.is_file():
            _download(path)
    elif not path.is_file():
        raise ValueError(f"weights must be the file {FILE} from {URL}; got no file at {path}")
    sha256 = file_sha256(path)
    if not sha256.startswith(SHA256_PREFIX):
        raise ValueError(
            f"weights must have a SHA-256 that begins with {SHA256_PREFIX}, as {URL} has; "
            f"got {sha256} at {path}"
        )
    return path, sha256


def _download(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256_PREFIX, progress=False)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"FID needs the Inception weights {FILE} ({SIZE}), and nothing replaces them: "
            f"fetch {URL} and put it at {path}, or name it by evaluation.distance.weights; "
            f"the download failed with {type(error).__name__}: {error}"
        ) from error
