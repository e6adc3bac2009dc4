"""Properties of what is read, whoever wrote it or cut it short: for any value, byte or order.

Hypothesis draws the cases; `--hypothesis-seed` repeats them.
"""

import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from PIL import Image

from vamf.data.image_files import Cut, Unreadable
from vamf.experiment import Experiment
from vamf.presets import PRESETS
from vamf.redact import without_credentials
from vamf.store import Store, absolute, storage_path
from vamf.tracking.event_queue import Event, EventQueue
from vamf.tracking.run import database, located, relative, sqlite
from vamf.training.checkpoints.checkpoint import Checkpoint, CheckpointFolder

settings.register_profile("bounded", deadline=None, database=None, max_examples=60)
settings.load_profile("bounded")

TEXT = st.text(max_size=12)
ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    st.lists(st.one_of(st.integers(-2, 9), st.floats(), TEXT), max_size=3),
    st.dictionaries(TEXT, st.integers(), max_size=2),
)
NAMES = sorted({name for preset in PRESETS.values() for name in preset.flatten()})


def near(value: object) -> st.SearchStrategy[Any]:
    """Values of the kind of another one, many of which could stand in its place."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(max(0, value // 3), 3 * value + 2)
    if isinstance(value, float):
        return st.floats(*sorted((0.3 * value, min(3.0 * value, 1.0))))
    return st.just(value)


@st.composite
def experiments(draw: st.DrawFn) -> tuple[Experiment, Experiment]:
    """A preset, and the same with a few other settings where they are allowed."""
    preset = experiment = PRESETS[draw(st.sampled_from(sorted(PRESETS)))]
    flat = experiment.flatten()
    for name in draw(st.lists(st.sampled_from(sorted(flat)), max_size=6, unique=True)):
        try:
            experiment = experiment.override({name: draw(near(flat[name]))})
        except ValueError:
            continue
    return preset, experiment


@given(experiments())
def test_an_experiment_is_what_was_written_of_it(pair: tuple[Experiment, Experiment]) -> None:
    preset, experiment = pair
    text = json.dumps(experiment.to_dict())
    assert Experiment.from_dict(json.loads(text)) == experiment
    assert json.dumps(Experiment.from_dict(json.loads(text)).to_dict()) == text
    before, after = preset.flatten(), experiment.flatten()
    changes = {name: value for name, value in after.items() if before[name] != value}
    assert preset.override(changes) == experiment


@given(st.sampled_from(sorted(PRESETS)), st.sampled_from(NAMES) | TEXT, ANYTHING)
def test_any_override_is_taken_whole_or_refused_in_one_line(
    preset: str, name: str, value: object
) -> None:
    try:
        changed = PRESETS[preset].override({name: value})
    except ValueError as error:
        assert str(error) and "\n" not in str(error).replace(repr(value), "").replace(name, "")
        return
    assert Experiment.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


EXPERIMENT, METRICS = PRESETS["toy"], {"eval/sw1_n8": 0.5}
STATE = {"step": 10, "net": {"w": torch.arange(1000.0)}, "optimiser": {"state": {}}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder."""
    folder = CheckpointFolder(path=tmp_path_factory.mktemp("whole"), keep=1, best_by="")
    return folder.save(EXPERIMENT, STATE, METRICS).path


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One byte that is another, an end that is missing, or one that is too much."""
    at = draw(st.floats(0, 1, exclude_max=True))
    what = draw(st.sampled_from(["flip", "cut", "grow"]))
    flip, more = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=9))

    def damaged(content: bytes) -> bytes:
        position = int(at * len(content))
        if what == "grow":
            return content + more
        if what == "cut":
            return content[:position]
        return content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :]

    return damaged


@given(st.sampled_from(["state.pt", "meta.json", "experiment.json", "manifest.json"]), damages())
def test_a_damaged_checkpoint_is_the_same_or_refused(
    whole: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    copy = whole.parent / "copy" / whole.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(whole, copy)
    (copy / name).write_bytes(damage((whole / name).read_bytes()))
    damaged = Checkpoint(copy)
    try:
        assert same(damaged.load(), STATE)
        assert damaged.experiment() == EXPERIMENT and damaged.metrics() == METRICS
    except ValueError as error:
        assert str(copy) in str(error) and "\n" not in str(error)
        return
    assert name == "manifest.json"  # of which a blank may be another


DATA = st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.floats(allow_nan=False)), max_size=3)


@given(st.lists(DATA, min_size=1, max_size=6), st.floats(0, 1), DATA)
def test_a_queue_that_was_cut_keeps_what_came_before(
    tmp_path_factory: pytest.TempPathFactory, data: list[dict], at: float, more: dict
) -> None:
    """As a process leaves it that is killed while it writes: what follows is not spoilt."""
    folder = tmp_path_factory.mktemp("queue")
    sent = [Event(kind="tags", data=item) for item in data]
    for event in sent:
        EventQueue(folder).append(event)
    content = (folder / "events.jsonl").read_bytes()
    kept = content[: int(at * len(content))]
    (folder / "events.jsonl").write_bytes(kept)
    last = Event(kind="tags", data=more)
    EventQueue(folder).append(last)
    found = [queued.event for queued in EventQueue(folder).peek()]
    assert found == [*sent[: len(found) - 1], last]
    assert len(found) - 1 >= kept.count(b"\n")


class TwoSenders(RuleBasedStateMachine):
    """Two processes' views of one queue, in any order of their acts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vamf-queue"))
        self.ends = [EventQueue(self.folder), EventQueue(self.folder)]
        self.all: list[Event] = []
        self.received: list[Event] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(end=st.sampled_from([0, 1]), data=DATA)
    def append(self, end: int, data: dict) -> None:
        self.all.append(Event(kind="tags", data=data))
        self.ends[end].append(self.all[-1])

    @rule(end=st.sampled_from([0, 1]), count=st.integers(1, 4))
    def send(self, end: int, count: int) -> None:
        with self.ends[end].sender() as (mine, _):
            assert mine
            if waiting := self.ends[end].peek()[:count]:
                self.received += [queued.event for queued in waiting]
                self.ends[end].acknowledge(waiting[-1].end)

    @precondition(lambda self: self.all)
    @rule(at=st.floats(0, 1, exclude_min=True, exclude_max=True))
    def die_while_writing(self, at: float) -> None:
        line = json.dumps(asdict(Event(kind="tags", data={"half": "line"}))).encode()
        with (self.folder / "events.jsonl").open("ab") as file:
            file.write(line[: int(at * len(line))])

    @rule(end=st.sampled_from([0, 1]))
    def start_again(self, end: int) -> None:
        self.ends[end] = EventQueue(self.folder)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        waiting = [queued.event for queued in self.ends[0].peek()]
        assert self.received + waiting == self.all


TestTwoSenders = TwoSenders.TestCase
TestTwoSenders.settings = settings(max_examples=25, stateful_step_count=25)

MODES = {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "JPEG": ["L", "RGB", "CMYK"]}
MODES |= {"TIFF": ["1", "L", "RGB", "CMYK", "I;16", "LAB"], "WEBP": ["RGB", "RGBA"], "GIF": ["P"]}
MODES |= {"BMP": ["1", "L", "P", "RGB"]}
CUT = Cut(size=8, channels=3, crop="centre")


@st.composite
def image_files(draw: st.DrawFn) -> tuple[bytes, int]:
    """An image file of random pixels of any format and mode, and its number of pixels."""
    kind = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[kind]))
    size = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    noise = np.random.default_rng(draw(st.integers(0, 99)))
    if mode == "I;16":
        image = Image.fromarray(noise.integers(0, 2**16, size, dtype=np.uint16))
    else:
        image = Image.fromarray(noise.integers(0, 256, (*size, 4), dtype=np.uint8), "RGBA")
        image = image.convert("RGB").convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue(), size[0] * size[1]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damages that it reads over
@given(image_files(), st.none() | damages())
def test_an_image_file_is_pixels_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    file: tuple[bytes, int],
    damage: Callable[[bytes], bytes] | None,
) -> None:
    path = tmp_path_factory.mktemp("image") / "a.png"
    path.write_bytes(damage(file[0]) if damage else file[0])
    try:
        pixels = CUT(path)
    except Unreadable as error:
        assert damage is not None, error
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 8, 8)


PART = st.text("abcdefxyz019-_.%~", min_size=1, max_size=6).filter(lambda t: t not in (".", ".."))
PATHS = st.lists(PART, min_size=1, max_size=4).map("/".join)
FILES = st.lists(st.text("ab01-_.%?{}# ü", min_size=1, max_size=6), min_size=1, max_size=4).map(
    lambda parts: "/".join(f"x{part}x" for part in parts)
)
USERS = st.text("abcABC09", min_size=3, max_size=8)
SECRETS = st.text("ghijGHIJ17", min_size=8, max_size=12)


@given(FILES, st.booleans())
def test_addresses_of_databases_become_absolute_once(path: str, whole: bool) -> None:
    """Whatever the folders' names: the address of a file is read as that file."""
    uri = sqlite(Path("/", path) if whole else Path(path))
    found = located(uri)
    assert located(found) == found and not relative(found)
    assert database(found) == (Path("/") if whole else Path.cwd()) / path
    assert relative(uri) != whole


@given(USERS, SECRETS, PATHS, st.sampled_from(["http", "https", "postgresql", "s3", "gs"]))
def test_addresses_are_reported_without_their_secrets(
    user: str, secret: str, path: str, scheme: str
) -> None:
    uri = f"{scheme}://{user}:{secret}@host.example:5000/{path}?password={secret}x"
    assert secret not in without_credentials(uri) and "host.example:5000" in without_credentials(
        uri
    )
    if scheme in ("s3", "gs"):
        found = storage_path(uri)
        assert isinstance(found, Store) and found.url == uri
        assert secret not in str(found) and secret not in repr(found)


@given(PATHS, PART)
def test_a_place_in_a_store_is_above_what_is_below_it(path: str, name: str) -> None:
    below = Store(f"s3://bucket/{path}") / name
    assert below.name == name and below.parent == Store(f"s3://bucket/{path}")
    assert storage_path(below.url) == below and absolute(Path(below.url)) == Path(below.url)
