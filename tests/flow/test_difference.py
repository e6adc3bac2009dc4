"""The total derivative by differences: its order, its borders, and the loss that takes it."""

import pytest
import torch
from helpers.velocities import Net, gradient, of_one_point, point_draws

from vamf.flow.derivatives import apply_with_tangent, total_derivative
from vamf.flow.difference import Difference
from vamf.flow.duals import dual_mode
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.trace import TraceWeight


def proxy(z, t):
    """Some velocity that is no network's."""
    return torch.sin(2 * z) * t[:, None]


def inputs(t, r):
    d = point_draws(len(t))
    as_time = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
    return d.x, as_time(r), as_time(t), d.e


def error(epsilon, args):
    net = Net()
    with torch.no_grad():
        exact = total_derivative(net, *args)[1]
        return (Difference(epsilon=epsilon)(net, *args) - exact).norm(dim=1)


def ratios(args):
    """By how much a tenth of the step divides each sample's error."""
    return error(1e-2, args) / error(1e-3, args)


def test_it_is_of_order_2_inside():
    args = inputs([0.5, 0.7, 0.9], [0.1, 0.3, 0.88])
    torch.testing.assert_close(ratios(args), torch.full((3,), 100.0).double(), rtol=0.1, atol=0)


def test_it_is_of_order_1_at_the_borders():
    """At t = 1 it looks back; where r is so near that it cannot look back, it looks ahead."""
    args = inputs([1.0, 1.0, 0.5], [0.1, 0.6, 0.5])
    torch.testing.assert_close(ratios(args), torch.full((3,), 10.0).double(), rtol=0.1, atol=0)


def test_it_never_leaves_the_times_that_are_trained():
    z, r, t, v = inputs([1.0, 0.9995, 0.5004, 1.0, 1.0], [0.0, 0.9994, 0.5, 0.9999, 1.0])
    seen = []

    def u(z, r, t):
        seen.append(t)
        return z * t[:, None]

    found = Difference(epsilon=1e-3)(u, z, r, t, v)
    for s in seen:
        assert (s >= r).all() and (s <= 1).all()
    after, before = seen
    expected = [1, 1, 0.5014, 1, 1], [0.999, 0.9994, 0.5, 0.9999, 1]
    torch.testing.assert_close(after, torch.tensor(expected[0]).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(before, torch.tensor(expected[1]).double(), rtol=0, atol=1e-7)
    # u is quadratic in time along the path: z + t v, and the middle's distance from t times v.
    middle = ((after + before) / 2 - t)[:4, None]
    exact = (z + t[:, None] * v)[:4] + 2 * middle * v[:4]
    torch.testing.assert_close(found[:4], exact, rtol=1e-9, atol=1e-9)
    assert not found[4].any()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_the_loss_is_that_of_the_jvp_at_order_2(beta):
    net, d = Net(), point_draws()

    def of(difference):
        loss = MeanFlowLoss(difference=difference)
        return gradient(loss(net, d, beta=beta, v_hat=proxy).loss, net)

    exact = of(None)
    coarse, fine = ((of(Difference(epsilon=h)) - exact).norm() for h in (1e-2, 1e-3))
    assert coarse / fine == pytest.approx(100, rel=0.1) and coarse < 1e-2 * exact.norm()


def test_one_data_point_has_zero_loss_at_its_closed_form():
    """The path is straight and u constant along it, so the difference is exact: 0."""
    x0 = torch.tensor([0.7, -1.3], dtype=torch.float64)
    d, (exact, v) = point_draws(x=x0), of_one_point(x0)
    loss = MeanFlowLoss(difference=Difference())
    assert loss(exact, d, beta=0.4, v_hat=v).squared_error.max() < 1e-20


def test_a_network_without_forward_mode_is_trained():
    """And in the mode that carries duals, which such a network does not take."""

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0].cos()

    net, d = Net(), point_draws()

    def u(z, r, t):
        return Opaque.apply(net(z, r, t))

    loss = MeanFlowLoss(difference=Difference(epsilon=1e-4))
    given = {"beta": 0.4, "v_hat": proxy}
    found = loss(u, d, **given)
    expected = MeanFlowLoss()(lambda *args: net(*args).sin(), d, **given)
    torch.testing.assert_close(
        gradient(found.loss, net), gradient(expected.loss, net), rtol=1e-6, atol=1e-8
    )
    with pytest.raises(RuntimeError):
        MeanFlowLoss()(u, d, **given)
    with dual_mode():
        carried = loss(u, d, **given)
        plain = MeanFlowLoss()(lambda *args: apply_with_tangent(net, *args), d, **given)
    assert torch.equal(carried.squared_error, found.squared_error)
    assert not torch.equal(plain.squared_error, found.squared_error)


@pytest.mark.parametrize("n_equal", [0, 3, 8])
def test_only_samples_with_two_times_are_evaluated_twice_more(n_equal):
    calls = []

    def u(z, r, t):
        calls.append(len(z))
        return z * (1 + t - r)[:, None]

    MeanFlowLoss(difference=Difference())(u, point_draws(n_equal=n_equal), beta=0.0, v_hat=None)
    assert sorted(calls) == [*([8 - n_equal] * 2 if n_equal < 8 else []), 8]


def test_bad_settings_are_refused():
    for epsilon in (0.0, -1e-3, 0.6, float("nan")):
        with pytest.raises(ValueError, match=r"a difference needs epsilon in \(0, 0\.5\]; got"):
            Difference(epsilon=epsilon)
    with pytest.raises(ValueError, match=r"loss\.trace needs the jvp of the network"):
        MeanFlowLoss(difference=Difference(), trace=TraceWeight())
