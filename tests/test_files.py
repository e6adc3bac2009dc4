"""Files are there whole: whoever writes one in place of another and cannot end leaves the old."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.tiny import TINY

from vamf.files import write_whole
from vamf.inference.sampling import save_samples
from vamf.metrics.cnn import CNN
from vamf.metrics.statistics import FeatureStatistics
from vamf.rng import generator
from vamf.training.pictures import save_picture


@contextmanager
def full_disk() -> Iterator[None]:
    """Files cannot grow beyond 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator("files")).clamp(-1, 1)


def statistics(path: Path) -> None:
    one = torch.eye(20, dtype=torch.float64)
    FeatureStatistics(mean=one[0], covariance=one, count=7).save(path)


def images(indices: range) -> torch.Tensor:
    return noise(len(indices), 1, 8, 8)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_whole(path, "x" * 1000),
    "bytes": lambda path: write_whole(path, b"x" * 1000),
    "experiment": TINY.save,
    "statistics": statistics,
    "images": lambda path: save_picture(noise(16, 1, 8, 8), path),
    "points": lambda path: save_picture(noise(16, 2), path),
    "samples": lambda path: save_samples(images, (1, 8, 8), 4, path.with_suffix(".npz")),
    "weights": lambda path: CNN("digits_cnn64_v1").save(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_cannot_be_written_stays_as_it_was(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "file.png")
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    assert len(before) > 100
    with full_disk(), pytest.raises(OSError, match="File too large"):
        WRITERS[name](tmp_path / "file.png")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
