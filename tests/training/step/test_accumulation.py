"""Micro-batches give the step of the whole batch, and blocks that are computed again their own."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from vamf.cluster.ray.scaling import Scaling
from vamf.compat.torch import map_tensors
from vamf.diagnostics.variance import flat_gradient
from vamf.dropout import Masks
from vamf.presets import PRESETS
from vamf.rng import generator
from vamf.training import loop
from vamf.training.loop import Session, train
from vamf.training.step import objective as objectives
from vamf.training.step import trainer as trainers
from vamf.training.step.memory import GIB, PART, Memory, samples_beside
from vamf.training.step.trainer import Trainer

DIGITS = PRESETS["digits"].override(
    {"model.channels": 4, "batch": 12, "beta.value": 0.5, "times.prob_equal": 0.4, "steps": 20}
)
CHANGES = {
    "plain": {},
    "compiled": {"compute.compile": True},
    "guided": {"model.classes": 10, "guidance.cfg_kappa": 0.5, "guidance.omega": 0.7},
    "guided, compiled": {
        **{"model.classes": 10, "guidance.cfg_kappa": 0.5, "compute.compile": True},
    },
    "more terms": {"loss.anchor.weight": 0.5, "loss.trace.probes": 2},
    "alpha-Flow": {"loss.alpha.value": 0.5},
    "head": {"proxy": "head", "model.velocity_head": True},
    "of time": {"beta.kind": "BetaOfTime"},
    "semigroup": {"beta.value": 0.0, "loss.kind": "SemigroupLoss"},
    "terminal velocity": {"beta.value": 0.0, "loss.kind": "TerminalVelocityLoss"},
    "batch's own proxy": {"proxy": "batch", "loss.gamma": 0.5, "loss.difference.epsilon": 1e-3},
}


def moved(experiment):
    """A trainer whose weights are no longer those at the start, which give nearly 0."""
    own = Trainer(experiment, experiment.data.load("train"))
    with torch.no_grad():
        for k, parameter in enumerate(own.net.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator("moved", k)))
    return own


def doubled(inputs):
    return map_tensors(lambda a: a.double() if a.is_floating_point() else a, inputs)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_micro_batches_have_the_gradient_of_the_whole_batch(changes, dropout, monkeypatch):
    """Five samples have r = t: parts of four hold one or two of them."""
    own = moved(DIGITS.override(changes | {"model.dropout": dropout}))
    objective = own.objective.double()
    parameters, inputs = list(objective.net.parameters()), doubled(objective.inputs(3))
    shared = Masks(len(inputs.draws.x))
    monkeypatch.setattr(objectives, "Masks", lambda samples: shared)
    whole = objective.terms(inputs)
    expected = flat_gradient(whole.loss, parameters)
    found, loss = torch.zeros_like(expected), 0
    for index in range(3):
        mine = shared.at(torch.arange(12)[index::3])
        monkeypatch.setattr(objectives, "Masks", lambda samples, mine=mine: mine)
        terms = objective.terms(inputs.micro_batch(index, 3))
        found, loss = found + flat_gradient(terms.loss, parameters) / 3, loss + terms.loss / 3
        assert terms.n_equal == (2, 2, 1)[index]
    assert (found - expected).norm() <= 1e-12 * expected.norm()
    torch.testing.assert_close(loss, whole.loss, rtol=1e-13, atol=0)


def steps_of(experiment):
    """The weights after three steps, what was logged of them, and the way of the weights."""
    own = moved(experiment)
    start = weights(own)
    for _ in range(3):
        own.train_step()
    return weights(own), own.collect(), weights(own) - start


def weights(own):
    return torch.cat([p.detach().flatten() for p in own.net.parameters()])


def test_steps_in_micro_batches_are_those_of_whole_batches():
    (whole, expected, way), (split, logged, _) = (
        steps_of(DIGITS.override({"compute.accumulate": parts})) for parts in (1, 3)
    )
    assert (whole - split).norm() < 1e-3 * way.norm()  # float32; Adam divides by small numbers
    assert logged == pytest.approx(expected, rel=1e-4)


class Replayed:
    """A captured step without a GPU: its gradients are its own, and replaced at the next call."""

    def __init__(self, objective, share=1.0):
        self._objective, self._share = objective, share

    def __call__(self, inputs):
        parameters = list(self._objective.net.parameters())
        assert all(p.grad is None for p in parameters)
        terms = self._objective.terms(inputs)
        terms.loss.backward(torch.full_like(terms.loss, self._share))
        self.last = [p.grad for p in parameters]
        return terms._replace(loss=terms.loss.detach())


@pytest.mark.parametrize("parts", [1, 3])
def test_captured_micro_batches_are_added_up(parts, monkeypatch):
    changes = {"compute.accumulate": parts, "compute.compile": True, "model.dropout": 0.2}
    usual = steps_of(DIGITS.override(changes))
    monkeypatch.setattr(trainers, "captured", Replayed)
    replayed = steps_of(DIGITS.override(changes))
    assert torch.equal(usual[0], replayed[0]) and usual[1] == replayed[1]


def test_gradients_of_parameters_that_have_none_stay_none():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    total = trainers.GradientSum([first, second])
    for step in range(2):
        for value in (1.0, 2.0):
            first.grad = torch.full((2,), value + step)
            total.take()
            assert first.grad is None
        total.give()
        assert second.grad is None and torch.equal(first.grad, torch.full((2,), 3.0 + 2 * step))
        first.grad = None


def held_and_gradient(experiment, checkpointing):
    """Bytes that a step keeps between its passes, and its gradient."""
    own = moved(experiment.override({"compute.checkpointing": checkpointing}))
    torch.manual_seed(3)
    held = {}
    keep = saved_tensors_hooks(lambda a: held.setdefault(id(a), a), lambda a: a)
    with own.execution.step(), keep:
        loss = own.objective.terms(own.objective.inputs(0)).loss
    gradient = flat_gradient(loss, own.net.parameters())
    return sum(a.numel() * a.element_size() for a in held.values()), gradient


NETWORKS = {
    "unet": {"model.attention": [4], "model.dropout": 0.3, "model.blocks": 2},
    "dit": {"model.kind": "DiTConfig", "model.patch": 2, "model.width": 16, "model.heads": 2},
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_blocks_that_are_computed_again_give_the_same_bits(changes, compiled, precision):
    """With dropout masks, labels, guidance, rounded weights and joined images."""
    over = {"compute.compile": compiled, "compute.precision": precision, "batch": 4}
    experiment = DIGITS.override(changes | CHANGES["guided"] | over)
    usual, expected = held_and_gradient(experiment, False)
    again, found = held_and_gradient(experiment, True)
    assert expected.norm() > 0 and torch.equal(found, expected)
    assert again < usual / 2


WRONG = [
    ({"compute.accumulate": 0}, "compute.accumulate must be at least 1; got 0"),
    (
        {"compute.accumulate": 5},
        "compute.accumulate must divide a worker's share of the batch, 12 samples of 1 worker; "
        "got 5: the nearest are 4 and 6",
    ),
    (
        {"compute.accumulate": 24},
        "compute.accumulate must divide a worker's share of the batch, 12 samples of 1 worker; "
        "got 24: the nearest are 12",
    ),
]


@pytest.mark.parametrize(("changes", "line"), WRONG, ids=lambda a: str(a)[:40])
def test_numbers_of_micro_batches_that_do_not_divide_are_refused(changes, line):
    with pytest.raises(ValueError) as refused:
        DIGITS.override(changes)
    assert str(refused.value).endswith(line)


def test_they_divide_the_share_of_each_worker():
    with pytest.raises(ValueError, match="6 samples of 2 workers; got 4: the nearest"):
        Scaling(workers=2).check(DIGITS.override({"compute.accumulate": 4}))
    Scaling(workers=2).check(DIGITS.override({"compute.accumulate": 3}))


def test_a_network_without_blocks_computes_none_again():
    with pytest.raises(ValueError, match="needs a network of blocks, a UNetConfig or a DiTConfig"):
        PRESETS["toy"].override({"compute.checkpointing": True})


MEMORY = Memory(least=10, fixed=4, sample=2, moments=8, sums=4, free=100, share=60)


def test_the_fewest_micro_batches_that_fit_are_found():
    """100 bytes, of which 92 may be used: 4 + 2 * 60 / 2 + 8 + 4 = 76."""
    assert MEMORY.of(1) == 132 and MEMORY.of(2) == 76 and MEMORY.fewest_parts == 2
    assert MEMORY._replace(free=82).fewest_parts == 3  # 4 + 40 + 8 + 4 = 56
    assert MEMORY._replace(free=24).fewest_parts == 20  # 22 bytes: 10 at the end of the pass
    assert MEMORY._replace(free=23).fewest_parts is None
    assert MEMORY._replace(free=144).fewest_parts == 1


def test_a_step_that_does_not_fit_ends_the_run_with_one_line(tmp_path, monkeypatch):
    def full(own):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loop.Trainer, "train_step", full)
    monkeypatch.setattr(loop, "out_of_memory", lambda own: "a step must fit: use --accumulate 2")
    with pytest.raises(ValueError, match=r"^a step must fit: use --accumulate 2$") as ended:
        train(DIGITS, Session(directory=tmp_path))
    assert ended.value.__context__ is None  # which would hold the step's memory


@pytest.mark.parametrize(
    ("peak", "total", "expected"),  # GiB: `cifar10` in batches of 128 and 1,024, `imagenet_dit_xl2`
    [(6.6, 139, 256), (44.2, 139, 202), (111.7, 139, 80), (20.0, 24, 77)],
)
def test_a_gradient_beside_captured_steps_takes_a_quarter_of_the_gpu(
    peak, total, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, total * GIB))
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    found = samples_beside(SimpleNamespace(workers=on_gpu, samples_at_once=256))
    assert found == expected
    assert peak * (found - 1) / 256 < PART * total
