"""Full float32 for networks that measure or decode, whatever the precision of training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def strict_fp32() -> Iterator[None]:
    """Convolutions and products in IEEE float32, deterministic, without autocast or gradients.

    TF32 (cuDNN's default) or bfloat16 features change a Fréchet distance by percents, and
    differently if the reference was computed in another precision. All settings are restored at the
    end.
    """
    backends = torch.backends
    products = (backends.cuda.matmul, backends.mkldnn.matmul)  # type: ignore[attr-defined]
    convolutions = (backends.cudnn.conv, backends.mkldnn.conv)  # type: ignore[attr-defined]
    before = [(each, each.fp32_precision) for each in (*products, *convolutions)]
    cudnn = (backends.cudnn.benchmark, backends.cudnn.deterministic)
    try:
        for each, _ in before:
            each.fp32_precision = "ieee"
        backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
        cuda, cpu = (torch.autocast(device, enabled=False) for device in ("cuda", "cpu"))
        with torch.no_grad(), cuda, cpu:
            yield
    finally:
        for each, precision in before:
            each.fp32_precision = precision
        backends.cudnn.benchmark, backends.cudnn.deterministic = cudnn
