"""The beta landscape against closed forms of a linear-Gaussian model, and against brute force."""

import itertools
import math

import pytest
import torch
from torch import nn

from vamf.diagnostics.landscape import CURVES, Landscape, ProbeMoments, coefficients
from vamf.diagnostics.probe import Probe, ProbeTarget, gram, probe_pair
from vamf.diagnostics.variance import flat_gradient, sample_losses
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.terms import AdaptiveWeight, Draws
from vamf.flow.oracle import MixtureVelocity
from vamf.flow.tangents import boundary_velocity
from vamf.models.mlp import MLPConfig
from vamf.rng import generator

BETAS = torch.tensor([0.0, 0.25, 0.5, 0.8, 1.0], dtype=torch.float64)
R, T, STD = 0.2, 0.7, 0.5


class Linear(nn.Module):
    """u(z, r, t) = W z: every quantity of the theory has a closed form."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, z, r, t):
        return z @ self.weight.T


W = torch.tensor([[1.5, 0.4], [-0.3, 0.9]], dtype=torch.float64)
PROXY = torch.tensor([[0.6, 0.2], [-0.1, 0.1]], dtype=torch.float64)
"""v_hat(z) = PROXY z."""
GAP = T - R
S = (1 - T) ** 2 * STD**2 + T**2
"""Variance of z along each axis, for data N(0, STD^2) and noise N(0, 1)."""
V = (T - (1 - T) * STD**2) / S
"""v(z) = V z."""
SIGMA2 = STD**2 / S
"""Variance of v' along each axis, by (1 + STD^2) - V^2 S."""


def linear_draws(n, key):
    g = generator("linear", key)
    x = STD * torch.randn(n, 2, generator=g, dtype=torch.float64)
    e = torch.randn(n, 2, generator=g, dtype=torch.float64)
    r, t = (torch.full((n,), value, dtype=torch.float64) for value in (R, T))
    return Draws(x, e, r, t)


def tables(probed, pairs, edges, batch, draw=linear_draws):
    parts = [
        probe_pair(
            probed,
            (draw(batch, 2 * k), draw(batch, 2 * k + 1)),
            edges,
            generator("signs", k),
        )
        for k in range(pairs)
    ]
    return ProbeMoments(
        *(torch.cat([getattr(p, f) for p in parts]) for f in ProbeMoments.__annotations__)
    )


@pytest.fixture(scope="module")
def linear():
    net = Linear(W)
    velocity = MixtureVelocity(torch.zeros(1, 2, dtype=torch.float64), STD)
    probed = ProbeTarget(net, list(net.parameters()), lambda z, t: z @ PROXY.T, velocity)
    found = tables(probed, 200, (0.0, 1.0), 64)
    return Landscape(found, (0.0, 1.0), 64, True)


def close(landscape, name, expected, reach=4.5):
    values, errors = landscape.curve(name, BETAS)
    assert ((values - expected).abs() < reach * errors + 1e-12).all(), (values, expected, errors)
    return values


def conditional(beta):
    """E|2 (J v' - beta A v') z^T / d|^2 and E|2 beta A b z^T / d|^2: z and v' are independent."""
    a = GAP * W
    j = a - torch.eye(2, dtype=torch.float64)
    noise = (j - beta * a).square().sum() * SIGMA2 * 2 * S
    away = beta * a @ (PROXY - V * torch.eye(2, dtype=torch.float64))
    # E|B z|^2 |z|^2 = S^2 (d + 2) |B|^2 for z ~ N(0, S I) in d = 2 dimensions.
    return noise, S**2 * 4 * away.square().sum()


def test_the_noise_of_the_model_is_what_it_should_be():
    assert pytest.approx((1 + STD**2) - V**2 * S) == SIGMA2


def test_conditional_curves_in_closed_form(linear):
    noise, away = (torch.stack(part) for part in zip(*(conditional(b) for b in BETAS), strict=True))
    close(linear, "conditional/trace", noise)
    close(linear, "conditional/bias2", away)
    close(linear, "conditional/mse", noise + away)


def test_the_minimiser_is_the_matrix_formula_of_the_paper(linear):
    """beta* = Tr(G J Sigma A^T) / Tr(G A (Sigma + b b^T) A^T) with G = 4 z z^T / d^2."""
    a = GAP * W
    j, b = a - torch.eye(2, dtype=torch.float64), PROXY - V * torch.eye(2, dtype=torch.float64)
    up = (j * a).sum() * SIGMA2 * 2 * S
    down = a.square().sum() * SIGMA2 * 2 * S + S**2 * 4 * (a @ b).square().sum()
    value, error = linear.minimiser("conditional/mse")
    expected = min(max(float(up / down), 0.0), 1.0)
    assert abs(value - expected) < 4.5 * error + 1e-9
    low, high = linear.interval("conditional/mse")
    assert 0 <= low <= value <= high <= 1


def direct(beta, n=400_000):
    """Per-sample gradients 2 residual z^T / d of many draws, and of their means given z."""
    draws = linear_draws(n, "direct")
    z, v_cond = (1 - T) * draws.x + T * draws.e, draws.e - draws.x
    v = V * z

    def gradient(noisy):
        tangent = (1 - beta) * noisy + beta * z @ PROXY.T
        residual = z @ W.T + GAP * tangent @ W.T - noisy
        return (residual[:, :, None] * z[:, None, :]).flatten(1)

    return gradient(v_cond), gradient(v)


@pytest.mark.parametrize("index", range(len(BETAS)))
def test_conditional_and_explained_variance_add_up_to_the_unconditional_one(linear, index):
    noisy, explained = direct(float(BETAS[index]))
    values, errors = linear.curve("gradient/trace", BETAS)
    total = noisy.var(0).sum()
    assert abs(values[index] * 64 - total) < 4.5 * errors[index] * 64 + 0.01 * total
    parts = conditional(BETAS[index])[0] + explained.var(0).sum()
    assert float(parts) == pytest.approx(float(total), rel=0.02)


def test_bias_and_mse_of_the_batch_gradient_in_closed_form(linear):
    """E[g(beta)] - E[g(0)] = 2 beta A b E[z z^T] / d."""
    b = PROXY - V * torch.eye(2, dtype=torch.float64)
    bias2 = (BETAS * S) ** 2 * (GAP * W @ b).square().sum()
    close(linear, "gradient/bias2", bias2)
    trace, bias, mse = (linear.curve(f"gradient/{w}", BETAS)[0] for w in ("trace", "bias2", "mse"))
    torch.testing.assert_close(trace + bias, mse)


def test_the_papers_scalars_in_closed_form(linear):
    found = linear.estimates()
    kappa = GAP * float(W.trace()) / 2 - 1
    b = PROXY - V * torch.eye(2, dtype=torch.float64)
    for name, expected in {
        "kappa": kappa,
        "sigma2": 2 * SIGMA2,
        "bias2": float(S * b.square().sum()),
    }.items():
        value, error = found[f"probe/{name}"]
        assert abs(value - expected) < 4.5 * error + 1e-12
    bias2 = float(S * b.square().sum())
    scalar = kappa / (kappa + 1) * 2 * SIGMA2 / (2 * SIGMA2 + bias2)
    value, error = found["beta_star/paper_scalar"]
    assert abs(value - min(max(scalar, 0), 1)) < 4.5 * error + 1e-9


def test_the_papers_scalar_formula_where_the_jacobian_is_large():
    """kappa > 0, so that beta* lies inside [0, 1]; a quarter of the samples has r = t."""
    steep, velocity = 4 * W, MixtureVelocity(torch.zeros(1, 2, dtype=torch.float64), STD)

    def some_equal(n, key):
        draws, n_equal = linear_draws(n, key), n // 4
        r = torch.cat([draws.t[:n_equal], draws.r[n_equal:]])
        return Draws(draws.x, draws.e, r, draws.t, n_equal)

    net = Linear(steep)
    probed = ProbeTarget(net, list(net.parameters()), lambda z, t: z @ PROXY.T, velocity)
    found = Landscape(tables(probed, 100, (0.0, 1.0), 64, some_equal), (0.0, 1.0), 64, True)
    assert found.bins == 1
    kappa = GAP * float(steep.trace()) / 2 - 1
    value, error = found.estimates()["probe/kappa"]
    assert 0 < error < 0.05 * kappa and abs(value - kappa) < 4.5 * error
    b = PROXY - V * torch.eye(2, dtype=torch.float64)
    bias2 = float(S * b.square().sum())
    expected = kappa / (kappa + 1) * 2 * SIGMA2 / (2 * SIGMA2 + bias2)
    value, error = found.estimates()["beta_star/paper_scalar"]
    assert 0.1 < expected < 0.9 and error < 0.05 and abs(value - expected) < 4.5 * error
    value, error = found.minimiser("conditional/mse")
    low, high = found.interval("conditional/mse")
    assert 0 < low < value < high < 1
    # 1.98422: the 97.5 % quantile of Student's t with 99 degrees of freedom, of any table.
    assert (value - low, high - value) == pytest.approx((1.98422 * error,) * 2, rel=1e-5)


def test_samples_whose_times_are_clipped_do_not_count_as_interior():
    """A quarter of the samples has r = t from the start, another one by clipping r to t."""

    def clipped(n, key):
        draws, half = linear_draws(n, key), n // 2
        r = torch.cat([draws.t[:half], draws.r[half:]])
        return Draws(draws.x, draws.e, r, draws.t, n // 4)

    net = Linear(W)
    probed = ProbeTarget(net, list(net.parameters()), lambda z, t: z @ PROXY.T)
    found = Landscape(tables(probed, 100, (0.0, 1.0), 64, clipped), (0.0, 1.0), 64, False)
    assert (found.tables.scalars[:, 0] == 0.5).all()
    kappa = GAP * float(W.trace()) / 2 - 1
    value, error = found.estimates()["probe/kappa"]
    assert abs(value - kappa) < 4.5 * error + 1e-12 and error < 0.05 * abs(kappa + 1)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLPConfig(hidden=(16, 16), embedding=8).build((2,)).double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return net


def mixed_draws(n, key):
    g = generator("mixed", key)
    x, e = (torch.randn(n, 2, generator=g, dtype=torch.float64) for _ in range(2))
    r, t = torch.rand(2, n, generator=g, dtype=torch.float64).sort(0).values
    n_equal = n // 4
    return Draws(x, e, torch.cat([t[:n_equal], r[n_equal:]]), t, n_equal)


@pytest.mark.parametrize("beta", BETAS.tolist())
def test_the_quadratic_equals_brute_force(beta):
    """The trace from two gradients a batch, against the loss's own gradient at each beta."""
    net = network()
    v_hat, parameters = boundary_velocity(network(1)), list(net.parameters())
    mean = tables(ProbeTarget(net, parameters, v_hat), 1, (0.0, 0.3, 1.0), 32, mixed_draws).map(
        lambda table: table.mean(0)
    )
    powers = beta ** torch.arange(5, dtype=torch.float64)
    a, b = (
        flat_gradient(MeanFlowLoss()(net, draws, beta=beta, v_hat=v_hat).loss / 2, parameters)
        for draws in (mixed_draws(32, 0), mixed_draws(32, 1))
    )
    found = float(coefficients("gradient/trace", mean) @ powers)
    assert found == pytest.approx(float((a - b).square().sum() / 2), rel=1e-10)
    losses = torch.cat([sample_losses(net, mixed_draws(32, k), beta, v_hat) for k in range(2)])
    for what, expected in (("mean", losses.mean()), ("variance", losses.var(correction=0))):
        found = float(coefficients(f"loss/{what}", mean) @ powers)
        assert found == pytest.approx(float(expected), rel=1e-10)


def test_bins_add_up_to_all():
    net = network()
    probed = ProbeTarget(net, list(net.parameters()), boundary_velocity(network(1)))
    several = tables(probed, 3, (0.0, 0.2, 0.5, 1.0), 32, mixed_draws).map(lambda x: x.mean(0))
    one = tables(probed, 3, (0.0, 1.0), 32, mixed_draws).map(lambda x: x.mean(0))
    for name in ("gradient/trace", "gradient/bias2", "loss/mean", "loss/variance"):
        torch.testing.assert_close(coefficients(name, several), coefficients(name, one))


def test_the_weight_is_that_of_the_loss():
    net = network()
    v_hat, parameters, rule = boundary_velocity(network(1)), list(net.parameters()), 0.75
    weight = AdaptiveWeight(p=rule)
    probed = ProbeTarget(net, parameters, v_hat, weight=(weight, lambda t: 0.4))
    mean = tables(probed, 1, (0.0, 1.0), 32, mixed_draws).map(lambda x: x.mean(0))
    loss = MeanFlowLoss(weight=weight)
    a, b = (
        flat_gradient(loss(net, mixed_draws(32, k), beta=0.4, v_hat=v_hat).loss / 2, parameters)
        for k in range(2)
    )
    found = coefficients("gradient/trace", mean) @ (0.4 ** torch.arange(5, dtype=torch.float64))
    assert float(found) == pytest.approx(float((a - b).square().sum() / 2), rel=1e-10)


def test_without_the_velocity_there_is_no_conditional_curve():
    net = network()
    probed = ProbeTarget(net, list(net.parameters()), boundary_velocity(network(1)))
    found = Landscape(tables(probed, 3, (0.0, 1.0), 32, mixed_draws), (0.0, 1.0), 32, False)
    assert set(found.names) == {n for n in CURVES if not n.startswith("conditional")}
    assert all(math.isfinite(value) for value, _ in found.estimates().values())
    assert found.tables.conditional.isnan().all()
    assert {getattr(found.tables, f).dtype for f in ProbeMoments.__annotations__} == {torch.float64}


def test_the_gradient_is_flat_where_r_equals_t():
    net = network()
    probed = ProbeTarget(net, list(net.parameters()), boundary_velocity(network(1)))

    def equal(n, key):
        draws = mixed_draws(n, key)
        return draws._replace(r=draws.t, n_equal=n)

    found = Landscape(tables(probed, 2, (0.0, 1.0), 32, equal), (0.0, 1.0), 32, False)
    values, _ = found.curve("gradient/mse", BETAS)
    assert (values == values[0]).all() and math.isnan(found.minimiser("gradient/mse").value)
    assert all(map(math.isnan, found.interval("gradient/mse")))  # and not all of [0, 1]


def test_a_landscape_that_is_not_finite_has_no_minimum():
    net = network()
    probed = ProbeTarget(net, list(net.parameters()), boundary_velocity(network(1)))
    whole = tables(probed, 3, (0.0, 1.0), 32, mixed_draws)
    broken = Landscape(whole.map(lambda table: table * math.nan), (0.0, 1.0), 32, False)
    for name in broken.names:
        found = (*broken.minimiser(name), *broken.interval(name))
        assert all(map(math.isnan, found))


def test_gram_in_parts_is_the_product(monkeypatch):
    monkeypatch.setattr("vamf.diagnostics.probe.COLUMNS", 3)
    a, b = (torch.randn(2, 10, generator=generator("gram", k)) for k in range(2))
    torch.testing.assert_close(gram(a, b), a.double() @ b.double().T)


def test_gradients_of_parts_of_a_batch_make_the_same_landscape(monkeypatch):
    net = network()
    probed = ProbeTarget(net, list(net.parameters()), boundary_velocity(network(1)))
    whole = tables(probed, 2, (0.0, 0.5, 1.0), 32, mixed_draws)
    monkeypatch.setattr("vamf.diagnostics.variance.NUMBERS", 10)  # five points
    parts = tables(probed, 2, (0.0, 0.5, 1.0), 32, mixed_draws)
    torch.testing.assert_close(parts.covariance, whole.covariance)
    torch.testing.assert_close(parts.crossed, whole.crossed)


@pytest.mark.parametrize("wrong", [{"pairs": 1}, {"every": 0}, {"bins": 0}])
def test_a_probe_too_small_for_a_variance_is_refused(wrong):
    with pytest.raises(ValueError, match="at least"):
        Probe(**wrong)


def test_the_smallest_probe_is_allowed():
    smallest = Probe(every=1, pairs=2, bins=1)
    assert (
        not smallest.weighted
        and smallest.edges == (0.0, 1.0)
        and Probe(bins=4).edges == (0.0, 0.25, 0.5, 0.75, 1.0)
    )


def test_batches_of_one_sample_have_a_landscape():
    """Half of the squared difference of the two samples' gradients; one has r = t."""
    net, beta = network(), 0.3
    v_hat, parameters = boundary_velocity(network(1)), list(net.parameters())
    velocity = MixtureVelocity(torch.zeros(1, 2, dtype=torch.float64), STD)

    def alone(n, key):
        return next(itertools.islice(mixed_draws(4, "alone").parts(1), key, None))

    probed = ProbeTarget(net, parameters, v_hat, velocity)
    mean = tables(probed, 1, (0.0, 1.0), 1, alone).map(lambda table: table.mean(0))
    a, b = (
        flat_gradient(MeanFlowLoss()(net, alone(1, k), beta=beta, v_hat=v_hat).loss / 2, parameters)
        for k in range(2)
    )
    powers = beta ** torch.arange(5, dtype=torch.float64)
    found = float(coefficients("gradient/trace", mean) @ powers)
    assert found == pytest.approx(float((a - b).square().sum() / 2), rel=1e-10)
    assert coefficients("conditional/mse", mean).isfinite().all()
    assert [alone(1, k).n_equal for k in range(2)] == [1, 0] and mean.scalars[0] == 0.5


@pytest.mark.parametrize("dim", [1, 3])
def test_conditional_curves_of_one_sample_are_exact(dim):
    """|2 (J v' - beta A v') z^T / d|^2 and |2 beta A b z^T / d|^2: random signs fall out."""
    g = generator("one sample", dim)
    w, proxy = torch.randn(2, dim, dim, generator=g, dtype=torch.float64)
    x, e = torch.randn(2, 1, dim, generator=g, dtype=torch.float64)
    r, t = torch.tensor([[R], [T]], dtype=torch.float64)
    net, velocity = Linear(w), MixtureVelocity(torch.zeros(1, dim, dtype=torch.float64), STD)
    probed = ProbeTarget(net, list(net.parameters()), lambda z, t: z @ proxy.T, velocity)
    mean = tables(probed, 1, (0.0, 1.0), 1, lambda n, key: Draws(x, e, r, t)).map(
        lambda table: table.mean(0)
    )
    z, v_cond = (1 - T) * x + T * e, e - x
    noise, a = v_cond - V * z, GAP * w
    for beta in BETAS.tolist():
        powers = beta ** torch.arange(5, dtype=torch.float64)
        varied = (1 - beta) * noise @ a.T - noise
        away = beta * (z @ proxy.T - V * z) @ a.T
        for what, part in (("trace", varied), ("bias2", away)):
            expected = (2 / dim) ** 2 * part.square().sum() * z.square().sum()
            found = coefficients(f"conditional/{what}", mean) @ powers
            assert float(found) == pytest.approx(float(expected), rel=1e-10)


def test_each_bin_has_the_samples_of_its_times():
    """The loss of a bin is the mean over its samples; a time on an edge is in the upper one."""
    net, v_hat, edges, beta = network(), boundary_velocity(network(1)), (0.0, 0.2, 0.5, 1.0), 0.4
    drawn = [mixed_draws(40, key) for key in range(2)]
    for draws in drawn:
        draws.t[-2:] = torch.tensor([0.2, 0.5], dtype=torch.float64)
        draws.r[-2:] = 0.1
    probed = ProbeTarget(net, list(net.parameters()), v_hat)
    mean = tables(probed, 1, edges, 40, lambda n, key: drawn[key]).map(lambda table: table.mean(0))
    losses = torch.cat([sample_losses(net, draws, beta, v_hat) for draws in drawn])
    t = torch.cat([draws.t for draws in drawn])
    powers = beta ** torch.arange(5, dtype=torch.float64)
    for bin, (low, high) in enumerate(itertools.pairwise(edges)):
        own = losses[(low <= t) & (t < high)]
        assert float(mean.count[bin]) == pytest.approx(len(own) / 80)
        for what, expected in (("mean", own.mean()), ("variance", own.var(correction=0))):
            found = coefficients(f"loss/{what}", mean, bin) @ powers
            assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("name", CURVES)
def test_coefficients_stay_on_the_device_of_the_tables(name):
    """A device without memory refuses to mix with others, as a GPU does."""
    tables = ProbeMoments.zeros(3, 2, torch.device("meta"))
    assert coefficients(name, tables.map(lambda table: table.mean(0))).device.type == "meta"


def test_the_error_of_a_mean_is_its_standard_error():
    """The jackknife of a mean is exactly s / sqrt(n), here of the mean loss at beta = 0."""
    n, blank = 7, ProbeMoments.zeros(7, 1, torch.device("cpu"))
    blank.count.fill_(1)
    blank.first[:, 0, 0] = torch.randn(n, generator=generator("jackknife")).double()
    landscape = Landscape(blank, (0.0, 1.0), 8, False)
    value, error = landscape.curve("loss/mean", torch.zeros(1))
    losses = blank.first[:, 0, 0]
    torch.testing.assert_close(value[0], losses.mean())
    torch.testing.assert_close(error[0], losses.std() / n**0.5)


def by_hand(pairs, first=(0.0, 0.0, 0.0), scalars=(0.0,) * 8):
    """A landscape whose mean loss has given coefficients, and with given scalars."""
    found = ProbeMoments.zeros(pairs, 1, torch.device("cpu"))
    found.count.fill_(1)
    found.first[:, 0] = torch.tensor(first, dtype=torch.float64)
    found.scalars[:] = torch.tensor(scalars, dtype=torch.float64)
    return Landscape(found, (0.0, 1.0), 8, True)


@pytest.mark.parametrize(
    ("first", "lowest"),
    [
        ((1.0, -0.5, 0.0), 1.0),  # straight lines, down and up
        ((1.0, 0.5, 0.0), 0.0),
        ((1.0, -0.5, 1.0), 0.25),  # parabolas: inside, beyond either end, and upside down
        ((1.0, -3.0, 1.0), 1.0),
        ((1.0, 3.0, 1.0), 0.0),
        ((1.0, 0.9, -1.0), 1.0),
        ((1.0, 1.1, -1.0), 0.0),
        ((1.0, 0.0, 0.0), math.nan),
    ],
)
def test_the_lowest_point_of_lines_and_parabolas(first, lowest):
    value, error = by_hand(3, first).minimiser("loss/mean")
    assert value == pytest.approx(lowest, abs=1e-12, nan_ok=True)
    assert error == pytest.approx(0 if math.isfinite(lowest) else math.nan, nan_ok=True)


@pytest.mark.parametrize(
    ("kappa", "sigma2", "bias2", "expected"),
    [
        (1.0, 3.0, 1.0, 0.5 * 0.75),
        (3.0, 2.0, 2.0, 0.75 * 0.5),
        (-0.5, 3.0, 1.0, 0.0),  # -1 of a weight: as little as there is
        (-2.0, 3.0, 1.0, 1.0),  # 2 times 3/4: as much as there is
    ],
)
def test_the_papers_scalar_formula_stays_within_its_limits(kappa, sigma2, bias2, expected):
    """kappa / (kappa + 1) sigma^2 / (sigma^2 + b^2); A's share of half the samples is kappa + 1."""
    scalars = (0.5, 0.5 * (kappa + 1), sigma2, bias2, 0.0, 1.0, 0.0, 1.0)
    found = by_hand(3, scalars=scalars).estimates()
    assert found["probe/kappa"] == pytest.approx((kappa, 0))
    assert found["beta_star/paper_scalar"] == pytest.approx((expected, 0))


@pytest.mark.parametrize(("product", "square", "share"), [(0.6, 2.0, 0.3), (3.0, 2.0, 1.0)])
def test_the_papers_other_formulas_stay_within_their_limits(product, square, share):
    """-<J v', D> / |D|^2, and 1 - <v', A v'> / |A v'|^2 = <J v', A v'> / |A v'|^2."""
    for sign, expected in ((1, share), (-1, 0.0)):
        scalars = (1.0, 1.0, 1.0, 1.0, -sign * product, square, square - sign * product, square)
        found = by_hand(3, scalars=scalars).estimates()
        assert found["beta_star/paper_matrix"] == pytest.approx((expected, 0))
        assert found["beta_star/paper_no_bias"] == pytest.approx((expected, 0))
