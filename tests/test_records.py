"""`reshard.records` makes dataclasses: what the standard library says of them is true."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import pytest

from reshard.records import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list, repr=False)
    line: int | None = field(default=None, compare=False, kw_only=True)

    def sum(self) -> int:
        return self.x + self.y


@dataclass(frozen=True, slots=True)
class Solid(Point):
    z: int = 0


@dataclass(slots=True)
class Counter:
    count: int = 0
    seen: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.seen.add("made")


def test_an_instance_is_made_shown_compared_and_hashed() -> None:
    assert repr(Point(1)) == "Point(x=1, y=2, line=None)"
    assert Point(1, line=5) == Point(1, 2, [])
    assert Point(1) != Point(2)
    assert Point(1) != Solid(1)
    assert Solid(1, z=3).sum() == 3
    assert {replace(Counterless(1)), Counterless(1)} == {Counterless(1)}
    with pytest.raises(TypeError, match=r"Point.__init__\(\) missing 1 required .*: 'x'"):
        Point()  # type: ignore[call-arg]


@dataclass(frozen=True, slots=True)
class Counterless:
    x: int


def test_every_instance_gets_a_default_of_its_own() -> None:
    first, second = Point(1), Point(1)
    first.tags.append("a")
    assert second.tags == []
    assert Counter().seen == {"made"}


def test_frozen_ones_cannot_be_changed_and_others_can() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'x'"):
        Point(1).x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'x'"):
        del Point(1).x  # type: ignore[misc]
    counter = Counter()
    counter.count += 1
    assert counter.count == 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(counter)


def test_the_standard_library_knows_them() -> None:
    point = Point(1, line=7)
    assert [item.name for item in dataclasses.fields(Solid)] == ["x", "y", "tags", "line", "z"]
    assert dataclasses.asdict(point) == {"x": 1, "y": 2, "tags": [], "line": 7}
    assert dataclasses.replace(point, y=3) == replace(point, y=3) == Point(1, 3)
    assert list(inspect.signature(Point).parameters) == ["x", "y", "tags", "line"]
    match point:
        case Point(x, y):
            assert (x, y) == (1, 2)


def test_the_standard_library_inherits_from_them() -> None:
    @dataclasses.dataclass(frozen=True)
    class Named(Point):
        name: str = ""

    assert Named(1, name="a") == Named(1, 2, [], "a")


def test_they_are_copied_and_pickled() -> None:
    point = Point(1, tags=["a"], line=2)
    assert repr(copy.deepcopy(point)) == repr(point)
    assert pickle.loads(pickle.dumps(point)) == point
