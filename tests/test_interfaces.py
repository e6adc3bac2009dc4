"""Each concrete choice satisfies the Protocol that the code takes it by."""

import dataclasses
from pathlib import Path

import pytest
import torch

from vamf.data.digits import Digits
from vamf.data.image_folder import ImageFolder
from vamf.data.latents import Latents
from vamf.data.mixtures import Mixture
from vamf.data.source import DataSource, LatentSource, PointSource, is_points
from vamf.data.torchvision_sets import CIFAR10, MNIST
from vamf.data.toys import Toy
from vamf.diagnostics.adaptive import AdaptiveBeta
from vamf.experiment import Experiment
from vamf.experiment_settings import Evaluation
from vamf.flow.objectives.terms import ObjectiveRule
from vamf.flow.schedules import BetaOfTime, BetaRule, BetaSchedule, PlannedBeta
from vamf.metrics.distances import FrechetDistance
from vamf.metrics.extractors import Extractor, build
from vamf.training.evaluation import protocol

POINTS: list[PointSource] = [Toy(), Mixture(), Mixture(centres="redrawn")]
IMAGES: list[DataSource] = [Digits(), MNIST(), CIFAR10(), ImageFolder(), Latents()]
PLANNED: list[PlannedBeta] = [BetaSchedule(), BetaOfTime()]
RULES: list[BetaRule] = [*PLANNED, AdaptiveBeta()]


def by_class(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize("data", [*POINTS, *IMAGES], ids=by_class)
def test_data_sets_are_data_sources(data):
    assert isinstance(data, DataSource) and dataclasses.is_dataclass(data)
    assert data.shape and all(isinstance(size, int) for size in data.shape)
    assert isinstance(data.classes, int) and isinstance(data.has_exact_velocity, bool)
    assert hash(data) == hash(dataclasses.replace(data))  # they are keys of caches


@pytest.mark.parametrize("data", [*POINTS, *IMAGES], ids=by_class)
def test_points_have_one_axis(data):
    assert is_points(data) == isinstance(data, PointSource) == (data in POINTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halved:
    """A user's own latents: the handwritten digits at half of their size."""

    has_exact_velocity = False
    shape = (1, 4, 4)
    classes = 0
    decoder_name = "nearest neighbour"
    decoder_packages = ("nothing",)
    reference_images = Digits()
    place: str = "here"

    def velocity(self):
        raise ValueError("no velocity")

    def load(self, split):
        return Digits().load(split)

    def decoder(self, device):
        return lambda z: z.repeat_interleave(2, -1).repeat_interleave(2, -2).to(device)

    def decoder_fingerprint(self, device):
        return "1"

    def prepare(self, compared):
        raise ValueError(f"compared {compared}")

    def located(self):
        return dataclasses.replace(self, place="/here")

    def write_random(self, folder, count):
        return {"place": str(folder)}


@pytest.mark.parametrize("data", [*POINTS, *IMAGES, Halved()], ids=by_class)
def test_latents_can_be_decoded(data):
    assert isinstance(data, LatentSource) == isinstance(data, Latents | Halved)
    if isinstance(data, LatentSource):
        assert isinstance(data.reference_images, DataSource) and len(data.shape) == 3
        assert isinstance(data.decoder_name, str) and isinstance(data.decoder_packages, tuple)


def test_latents_of_a_users_own_are_decoded_and_compared_with_their_images():
    experiment = Experiment(data=Halved())
    assert experiment.reference_images == Digits()
    latents = torch.arange(16.0).reshape(1, *Halved.shape)
    images = experiment.decoder(torch.device("cpu"))(latents)
    assert images.shape[1:] == experiment.reference_images.shape
    assert torch.equal(images[..., ::2, ::2], latents)
    assert ", decoded by nearest neighbour" in protocol(experiment)
    assert experiment.located().data == Halved(place="/here")
    with pytest.raises(ValueError, match="compared True"):
        experiment.prepare()
    with pytest.raises(ValueError, match="latents are compared"):
        Experiment(data=Halved(), evaluation=Evaluation(distance=FrechetDistance(reference="test")))


def test_random_latents_can_be_read(tmp_path: Path):
    """Of any description, with labels and mirror images."""
    data = Latents(size=4, resolution=32, classes=3)
    written = dataclasses.replace(data, root=Path(data.write_random(tmp_path, 7)["root"]))
    latents = written.load("train")
    assert len(latents) == 7 and latents.shape == data.shape
    assert latents.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("data", [*POINTS, *IMAGES], ids=by_class)
def test_data_without_an_exact_velocity_refuse_it(data):
    if not data.has_exact_velocity:
        with pytest.raises(ValueError, match=r"velocity|centres"):
            data.velocity()


@pytest.mark.parametrize("rule", RULES, ids=by_class)
def test_choices_of_beta_are_rules(rule):
    assert isinstance(rule, BetaRule) and rule.label.startswith("β")
    assert isinstance(rule, PlannedBeta) == (rule in PLANNED)


def test_rules_say_whether_beta_varies_over_training():
    moving = BetaSchedule(value=0.0, end=1.0, shape="linear")
    assert moving.varies_over_training and AdaptiveBeta().varies_over_training
    assert not (BetaSchedule().varies_over_training or BetaOfTime().varies_over_training)


@dataclasses.dataclass(frozen=True)
class Nothing(ObjectiveRule):
    """A user's own objective that names no more than its loss."""

    def __call__(self, u, draws, **_):
        raise NotImplementedError


def test_objectives_of_a_users_own_learn_a_velocity_and_weigh_all_samples_alike():
    rule = Nothing()
    assert isinstance(rule, ObjectiveRule) and rule.learns_velocity
    assert rule.mixes_tangent and rule.has_landscape
    assert rule.weight(torch.tensor([0.0, 7.0])).tolist() == [1.0, 1.0]
    assert rule.probes == 0 and not rule.moves  # neither signs nor progress are drawn for it


@pytest.mark.parametrize("name", ["digits_cnn64_v1", "randconv64_v1"])
def test_extractors_satisfy_their_interface(name):
    extractor: Extractor = build(name)
    assert isinstance(extractor, Extractor) and extractor.dim == 64
