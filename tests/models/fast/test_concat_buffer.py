"""Images that are written to the concatenation buffer are concatenated like any others."""

import pytest
import torch

from vamf.flow.duals import Dual
from vamf.models.fast import fused
from vamf.models.fast.concat_buffer import BufferSlot, ConcatBuffer
from vamf.rng import generator

FRONT, BEHIND, N = 3, 2, 4
BIAS = torch.zeros(FRONT, dtype=torch.float64), torch.zeros(BEHIND, dtype=torch.float64)


def image(channels, key=0, n=N):
    g = generator("rooms", key, channels)
    x = torch.randn(n, channels, 4, 6, generator=g, dtype=torch.float64)
    return x.to(memory_format=torch.channels_last).requires_grad_()


def places(*parts):
    """Parts of one buffer for the images that are written to it, and the buffer."""
    buffer = ConcatBuffer(FRONT, BEHIND)
    return buffer, [BufferSlot(buffer, k) if k in parts else None for k in range(2)]


@pytest.mark.parametrize("parts", [(), (0,), (1,), (0, 1)])
def test_values_and_gradients_are_those_of_a_concatenation(parts):
    given = image(FRONT), image(FRONT, 1), image(BEHIND), image(BEHIND, 1)
    weights = torch.randn(N, FRONT + BEHIND, 4, 6, generator=generator("weights")).double()

    def loss(join):
        buffer, (front, behind) = places(*parts)
        skip = fused.residual(*given[2:], BIAS[1], behind)
        first = fused.residual(*given[:2], BIAS[0], front)
        # Each is also used directly, like an image that a later layer reads again.
        return (join(first, skip, buffer) * weights).sum() + first.sin().sum() + skip.exp().sum()

    losses = loss(fused.joined), loss(lambda x, y, _: torch.cat([x, y], 1))
    assert losses[0] == losses[1]
    for mine, theirs in zip(*(torch.autograd.grad(each, given) for each in losses), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_tangents_of_the_last_samples_have_a_buffer_of_their_own():
    buffer, (front, behind) = places(0, 1)
    pairs = [
        [Dual(image(c, k), image(c, k + 2, N - 1).detach()) for k in range(2)]
        for c in (FRONT, BEHIND)
    ]
    skip = fused.residual(*pairs[1], BIAS[1], behind)
    first = fused.residual(*pairs[0], BIAS[0], front)
    joined = fused.joined(first, skip, buffer)
    assert torch.equal(joined.value, torch.cat([first.value, skip.value], 1))
    assert torch.equal(joined.tangent, torch.cat([first.tangent, skip.tangent], 1))


def test_what_was_written_there_is_not_copied():
    buffer, (front, behind) = places(0, 1)
    skip = fused.residual(image(BEHIND), image(BEHIND, 1), BIAS[1], behind)
    first = fused.residual(image(FRONT), image(FRONT, 1), BIAS[0], front)
    joined = fused.joined(first, skip, buffer)
    assert joined.data_ptr() == first.data_ptr()
    assert joined[:, FRONT:].data_ptr() == skip.data_ptr()
    assert joined.is_contiguous(memory_format=torch.channels_last)
