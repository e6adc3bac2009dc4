"""Networks loaded from checkpoints, computed as in training."""

import copy

import pytest
import torch
from helpers.tiny import TINY

from vamf.distributed import Workers
from vamf.inference.export import export
from vamf.inference.load import load, load_trainer
from vamf.inference.measure import measure
from vamf.inference.sampling import generator_of
from vamf.presets import PRESETS
from vamf.training.loop import Session, train
from vamf.training.step.trainer import Trainer

CPU = torch.device("cpu")


def products() -> tuple[str, bool]:
    """Whether this process rounds the factors of matrix products, and of convolutions, to TF32."""
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("trained_in", "wanted"), [("float32", ("highest", False)), ("tf32", ("high", True))]
)
def test_samples_are_computed_in_the_precision_of_training(trained_in, wanted, tmp_path):
    """Forward and backward, on a checkpoint and on an export; the process's setting is kept."""
    before = products()
    experiment = TINY.override({"compute.precision": trained_in, "steps": 2})
    seen = []
    trainer = Trainer(experiment, experiment.data.load("train"))
    next(trainer.net.parameters()).register_hook(lambda _: seen.append(products()))
    trainer.train_step()
    train(experiment, Session(directory=tmp_path))
    export(tmp_path, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        trained = load(path, CPU)
        trained.ema.register_forward_hook(lambda *_: seen.append(products()))
        generator_of(trained, steps=None, seed=0)(range(2))
        measure(trained, trained.experiment, Workers())
    assert len(seen) > 5 and set(seen) == {wanted}
    assert products() == before


def test_a_compiled_run_is_used_as_any_other(tmp_path):
    """Its weights have channels last; an export is read by others; a probe has its own batch."""
    how = {"compute.compile": True, "compute.accumulate": 2}
    compiled = PRESETS["digits"].override(how | {"steps": 2, "batch": 4})
    train(compiled, Session(directory=tmp_path))
    exported = tmp_path / "model.safetensors"
    export(tmp_path, exported)
    one, other = (load(path, CPU) for path in (tmp_path, exported))
    for a, b in zip(one.ema.parameters(), other.ema.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(p.ndim == 4 and p.std() > 0 for p in other.ema.parameters())
    assert load_trainer(tmp_path, CPU, {"batch": 5}).step == 2


@pytest.mark.parametrize("compiled", [(True, False), (False, True)])
def test_moments_of_the_optimiser_take_the_layout_of_their_weights(compiled):
    """A state of weights with another memory layout continues with the same results."""
    digits = PRESETS["digits"].override({"steps": 8, "batch": 4})
    data = digits.data.load("train")
    first, second = (Trainer(digits.override({"compute.compile": c}), data) for c in compiled)
    for _ in range(2):
        first.train_step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for own in (first, second):
        own.train_step()
    for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    moments = [second.optimiser.state[p]["exp_avg"] for p in second.net.parameters()]
    for p, moment in zip(second.net.parameters(), moments, strict=True):
        assert moment.stride() == p.stride()
