"""The index finds what asking every pattern finds, and asks few of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import ReshardError
from reshard.language.pattern import NamePattern
from reshard.language.pattern_index import PatternIndex

_PIECES = st.sampled_from(["a", "b", ".", "1", "10", "w1", "{i}", "{local j}", "*", "**", "#"])
_NAMES = st.lists(st.sampled_from(["a", "b", ".", "1", "0", "10", "w", "#"]), max_size=6)


def _pattern(pieces: list[str]) -> NamePattern | None:
    try:
        return NamePattern.parse("".join(pieces))
    except ReshardError:  # touching indices
        return None


@given(st.lists(st.lists(_PIECES, min_size=1, max_size=6), max_size=8), _NAMES)
def test_the_index_finds_what_every_pattern_finds(texts: list[list[str]], name: list[str]) -> None:
    patterns = [item for text in texts if (item := _pattern(text)) is not None]
    text = "".join(name)
    every = [(i, m) for i, p in enumerate(patterns) if (m := p.match(text)) is not None]
    assert list(PatternIndex(patterns).matches(text)) == every


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("model.layers.{}.w", "model.layers.{}.w"),
        ("layers.{{layer}}.block{}.w", "layers.3.block{}.w"),
        ("layers.{{layer}}.w{}.{{e}}.b", "layers.3.w{}.4.b"),
        ("layers.{{layer}}.w{}_{{e}}", "layers.3.w{}_4"),
        ("**.w{}", "model.layers.0.w{}"),
        ("block{}.*.weight", "block{}.mlp.weight"),
    ],
)
def test_few_patterns_are_asked(pattern: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    match = NamePattern.match

    def counted(self: NamePattern, name: str) -> object:
        nonlocal asked
        asked += 1
        return match(self, name)

    monkeypatch.setattr(NamePattern, "match", counted)
    count = 500
    index = PatternIndex([NamePattern.parse(pattern.format(i)) for i in range(count)])
    for i in range(count):
        assert [place for place, _ in index.matches(name.format(i))] == [i]
    assert asked <= 2 * count
