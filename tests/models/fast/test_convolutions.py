"""A convolution in halves gives the same result, and is used only where it is faster."""

import pytest
import torch

from vamf.models.fast import convolutions
from vamf.models.layers import Conv2d
from vamf.rng import generator

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def convolution(device="cpu", kernel=3):
    g = generator("halving", kernel)
    conv = Conv2d(16, 8, kernel, padding=kernel // 2)
    with torch.no_grad():
        conv.weight.normal_(generator=g)
    images = torch.randn(5, 16, 6, 6, generator=g)
    like = {"device": device, "dtype": torch.bfloat16, "memory_format": torch.channels_last}
    return conv.to(**like), images.to(**like)


@on_a_gpu
@pytest.mark.parametrize("kernel", [1, 3])
@torch.no_grad()
def test_halves_are_the_whole(kernel):
    conv, x = convolution("cuda", kernel)
    halves, whole = convolutions.in_halves(conv, x), convolutions.whole(conv, x)
    torch.testing.assert_close(halves, whole, rtol=1e-2, atol=1e-2)
    assert halves.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("halves", "milliseconds", "expected"),
    [(0.0, 1.0, True), (0.0, 1.9, False), (0.0, 3.0, False), (1e-2, 1.0, False)],
    ids=["faster", "hardly faster", "slower", "other bits"],
)
def test_they_pay_where_they_are_faster_and_the_same(monkeypatch, halves, milliseconds, expected):
    conv, x = convolution()

    def in_halves(conv, x):
        return convolutions.whole(conv, x) + halves

    times = {in_halves: milliseconds, convolutions.whole: 2.0}
    monkeypatch.setattr(convolutions, "in_halves", in_halves)
    monkeypatch.setattr(convolutions, "_milliseconds", lambda way, conv, x: times[way])
    assert convolutions._pays(conv, x) is expected


def test_on_a_cpu_and_with_a_graph_it_is_the_convolution(monkeypatch):
    monkeypatch.setattr(convolutions, "_pays", lambda conv, x: pytest.fail("it was timed"))
    conv, x = convolution()
    assert convolutions.convolution(conv, x).requires_grad
    with torch.no_grad():
        assert torch.equal(convolutions.convolution(conv, x), convolutions.whole(conv, x))


@torch.no_grad()
def test_nothing_is_decided_on_arbitrary_values(monkeypatch):
    """While kernels are compiled they do not run: one NaN would decide, and so would zeros."""
    conv, x = convolution()
    monkeypatch.setattr(convolutions, "_halved", {})
    monkeypatch.setattr(convolutions, "_may_halve", lambda x: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(convolutions, "in_halves", lambda conv, x: convolutions.whole(conv, x) + 1)
    monkeypatch.setattr(convolutions, "_pays", lambda conv, x: bool(x.isfinite().all()))
    with convolutions.undecided():
        found = convolutions.convolution(conv, torch.full_like(x, float("nan")))
    assert found.isnan().all()
    assert torch.equal(convolutions.convolution(conv, x), convolutions.whole(conv, x) + 1)
