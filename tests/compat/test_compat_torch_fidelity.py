"""torch-fidelity's undocumented functions exist and return values of the expected kind.

That the values are those of its public interface: tests/metrics/test_distances.py.
"""

import pytest
import torch

from vamf.compat import torch_fidelity as compat


def features(n, d=4):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(n))


def test_kid_of_one_set_with_itself_is_about_zero():
    assert compat.kid(features(1000), features(1000)) == pytest.approx(0, abs=1e-2)


def test_precision_and_recall_of_one_set_with_itself_are_one():
    assert compat.precision_recall(features(50), features(50)) == (1, 1)


def test_inception_score_of_equal_logits_is_one():
    mean, deviation = compat.inception_score(torch.zeros(100, 1008))
    assert (mean, deviation) == (pytest.approx(1), pytest.approx(0, abs=1e-6))


def test_inception_has_2048_features_and_a_classifier(tmp_path):
    network = compat.untrained_inception()
    (found,) = network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert found.shape == (1, 2048) and network.fc.weight.shape == (1008, 2048)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    again = compat.inception(tmp_path / "weights.pth")
    assert torch.equal(again.fc.weight, network.fc.weight)
