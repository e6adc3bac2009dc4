"""Dataclasses as dictionaries and back: round trips, overrides and their errors."""

import json
import math
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Literal

import pytest

from vamf import serialization


@dataclass(frozen=True, kw_only=True)
class Round:
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Square:
    side: float = 2.0
    turned: bool = False


@dataclass(frozen=True, kw_only=True)
class Frame:
    width: int = 1
    colour: Literal["red", "blue"] = "red"


@dataclass(frozen=True, kw_only=True)
class Picture:
    shape: Round | Square = field(default_factory=Round)
    frame: Frame | None = None
    sizes: tuple[int, ...] = (1, 2)
    count: int = 3
    title: str = "untitled"
    file: Path | None = None
    scale: float | None = None

    def __post_init__(self):
        if self.count < 0:
            raise ValueError(f"count must be at least 0; got {self.count}")


FULL = Picture(shape=Square(side=0.1, turned=True), frame=Frame(width=4), sizes=(), file=Path("a"))


@pytest.mark.parametrize("picture", [Picture(), FULL], ids=["defaults", "full"])
def test_round_trip_through_json(picture):
    text = json.dumps(serialization.to_dict(picture), allow_nan=False)
    assert serialization.from_dict(Picture, json.loads(text)) == picture


def test_dictionary_names_the_class_at_every_level():
    data = serialization.to_dict(FULL)
    assert data["kind"] == "Picture" and data["shape"]["kind"] == "Square"
    assert data["frame"] == {"kind": "Frame", "width": 4, "colour": "red"}
    assert data["sizes"] == [] and data["file"] == "a"


def test_absent_fields_take_their_defaults():
    assert serialization.from_dict(Picture, {}) == Picture()
    assert serialization.from_dict(Picture, {"frame": {}}) == Picture(frame=Frame())


def test_flatten():
    flat = serialization.flatten({"a": 1, "b": {"c": [2, 3], "d": {"e": None}}})
    assert flat == {"a": 1, "b.c": [2, 3], "b.d.e": None}
    assert serialization.flatten(serialization.to_dict(FULL))["shape.side"] == 0.1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Picture()),
        ({"count": 5, "sizes": [4]}, Picture(count=5, sizes=(4,))),
        ({"shape.radius": 3}, Picture(shape=Round(radius=3.0))),
        ({"shape.kind": "Square"}, Picture(shape=Square())),
        ({"shape.side": 5.0, "shape.kind": "Square"}, Picture(shape=Square(side=5.0))),
        ({"shape.kind": "Round"}, Picture()),
        ({"frame.width": 2}, Picture(frame=Frame(width=2))),  # None becomes a dataclass
        ({"frame.kind": "Frame"}, Picture(frame=Frame())),
        ({"file": "b/c"}, Picture(file=Path("b/c"))),
        ({"file": 2024}, Picture(file=Path("2024"))),
        ({"scale": 2}, Picture(scale=2.0)),
        ({"count": "7", "scale": "0.5"}, Picture(count=7, scale=0.5)),  # as on a command line
    ],
)
def test_override(changes, expected):
    assert serialization.override(Picture(), changes) == expected
    assert Picture() == Picture(shape=Round(radius=1.0))  # what was overridden is as it was


def test_a_kind_that_stays_keeps_its_fields_and_a_new_one_drops_them():
    same = serialization.override(FULL, {"shape.kind": "Square", "shape.turned": False})
    assert same.shape == Square(side=0.1)
    back = serialization.override(
        serialization.override(FULL, {"shape.kind": "Round"}), {"shape.kind": "Square"}
    )
    assert back.shape == Square()
    assert back.frame == FULL.frame  # the rest stays


@dataclass(frozen=True, kw_only=True)
class Outer:
    picture: Picture | Frame = field(default_factory=Frame)


def test_a_kind_inside_one_that_changes_is_kept_in_any_order():
    changes = {"picture.shape.side": 5, "picture.shape.kind": "Square", "picture.kind": "Picture"}
    for names in permutations(changes):
        found = serialization.override(Outer(), {name: changes[name] for name in names})
        assert found.picture == Picture(shape=Square(side=5.0))


def test_a_dataclass_can_be_taken_away():
    assert serialization.override(FULL, {"frame": None}).frame is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cuont": 1}, "unknown setting 'cuont'; did you mean 'count'?"),
        ({"shape.raduis": 1}, "unknown setting 'shape.raduis'; did you mean 'radius'?"),
        ({"shape.side": 1}, "unknown setting 'shape.side'"),  # a Square's, and it is a Round
        ({"sahpe.side": 1}, "unknown setting 'sahpe'; did you mean 'shape'?"),
        ({"zzz": 1}, "known: shape, frame, sizes, count, title, file, scale"),
        ({"count.x": 1}, "unknown setting 'count.x': count has no fields"),
        ({"frame.width.x": 1}, "frame.width: .*integer"),
        ({"shape.kind": "Oval"}, "shape.kind must be one of Round, Square; got 'Oval'"),
        ({"frame.kind": "Round"}, "frame.kind must be one of Frame; got 'Round'"),
        ({"shape": None}, "set shape by its fields .*shape.radius.*shape.side.*; got None"),
        ({"shape": 3}, "set shape by its fields"),
        ({"frame": "red"}, "set frame by its fields .*frame.width.*; got 'red'"),
        ({"count": "many"}, "count: .*integer.*; got 'many'"),
        ({"count": 1.5}, "count: .*integer.*; got 1.5"),
        ({"count": None}, "count: .*integer.*; got None"),
        ({"sizes": [1, "x"]}, "sizes: .*integer"),
        ({"sizes": 3}, "sizes: .*tuple"),
        ({"frame.colour": "green"}, "frame.colour: .*'red' or 'blue'.*; got 'green'"),
        ({"shape.turned": 7, "shape.kind": "Square"}, "shape.turned: .*boolean"),
        ({"shape.radius": math.nan}, "shape.radius must be finite; got nan"),
        ({"shape.radius": math.inf}, "shape.radius must be finite; got inf"),
        ({"scale": -math.inf}, "scale must be finite; got -inf"),
        ({"count": -1}, "count must be at least 0; got -1"),  # the class's own check
    ],
)
def test_bad_overrides_raise_one_line(changes, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        serialization.override(Picture(), changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity"])
def test_words_for_numbers_that_are_not_finite_are_refused(text):
    """A command line gives text: `times.mean=nan`."""
    with pytest.raises(ValueError, match="must be finite"):
        serialization.override(Picture(), {"scale": text})


def test_a_truth_value_is_no_number():
    with pytest.raises(ValueError, match="count"):
        serialization.override(Picture(), {"count": True})


def test_another_kind_of_the_whole_is_refused():
    with pytest.raises(ValueError, match="kind"):
        serialization.override(FULL, {"kind": "Oval"})


def test_a_union_without_its_kind_is_refused():
    with pytest.raises(ValueError, match=r"shape.kind must be one of Round, Square; got None"):
        serialization.from_dict(Picture, {"shape": {"radius": 2}})


@pytest.mark.parametrize(
    ("name", "hint"),
    [("colr", "; did you mean 'colour'?"), ("qqq", "; known: colour, width")],
)
def test_nearest(name, hint):
    assert serialization.nearest(name, ["colour", "width"]) == hint
