"""Name patterns: what they match, what they fill in again."""

from __future__ import annotations

import pytest

from reshard.language import NamePattern
from reshard.language.pattern import IndexSlot, Match, quoted


@pytest.mark.parametrize(
    ("text", "name", "indices", "captures"),
    [
        ("a.b", "a.b", {}, ()),
        ("layers.{layer}.w", "layers.0.w", {"layer": 0}, ()),
        ("layers.{layer}.w", "layers.10.w", {"layer": 10}, ()),
        ("layers.{ local layer }.w", "layers.7.w", {"layer": 7}, ()),
        ("{a}.{b}", "3.4", {"a": 3, "b": 4}, ()),
        ("*.w", "x.w", {}, ("x",)),
        ("*.w", ".w", {}, ("",)),
        ("**.w", "a.b.c.w", {}, ("a.b.c",)),
        ("**.w.*", "a.w.b.w.c", {}, ("a.w.b", "c")),
        ("**{i}", "layers.12", {"i": 12}, ("layers.",)),
        ("weight{i}*", "weight12_x", {"i": 12}, ("_x",)),
        ("h1{i}", "h123", {"i": 23}, ()),
        ("**", "", {}, ("",)),
        (r"a\*\{b\}\"\\", 'a*{b}"\\', {}, ()),
        ("a[0]+(b)$", "a[0]+(b)$", {}, ()),
        ("**.w", "a\nb.w", {}, ("a\nb",)),
        ("", "", {}, ()),
    ],
)
def test_match_and_fill(
    text: str, name: str, indices: dict[str, int], captures: tuple[str, ...]
) -> None:
    pattern = NamePattern.parse(text)
    found = pattern.match(name)
    assert found == Match(indices, captures)
    assert pattern.fill(indices, captures) == name
    assert pattern.wildcards == len(captures)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.b", "a.b.c"),
        ("a.b", "axb"),
        ("*.w", "a.b.w"),
        ("layers.{layer}.w", "layers.01.w"),
        ("layers.{layer}.w", "layers..w"),
        ("layers.{layer}.w", "layers.-1.w"),
        ("layers.{layer}.w", "layers.\u0663.w"),
        ("layer_{i}*", "layer_01"),
        ("layer_*{i}", "layer_01x"),
        ("layers.{layer}", "layers.9999999999999999999"),
        ("a", "a\n"),
        ("*", "a.b"),
    ],
)
def test_no_match(text: str, name: str) -> None:
    assert NamePattern.parse(text).match(name) is None


def test_slots() -> None:
    text = (
        "{e}.{local f}.{local g over ep}.{local h over (dp, ep) as (3, 1)}"
        ".{local i over tp as chunk}"
    )
    assert NamePattern.parse(text).slots == (
        IndexSlot("e"),
        IndexSlot("f", local=True),
        IndexSlot("g", True, ("ep",)),
        IndexSlot("h", True, ("dp", "ep"), "sizes", (3, 1)),
        IndexSlot("i", True, ("tp",), "chunk"),
    )


def test_quoted_covers_one_name() -> None:
    name = 'odd {name} * with "all" \\ marks'
    pattern = NamePattern.parse(quoted(name))
    assert pattern.match(name) == Match({}, ())
    assert pattern.slots == ()
    assert pattern.wildcards == 0


def test_equality_is_of_what_it_says() -> None:
    assert NamePattern.parse("a.{i}") == NamePattern.parse("a.{i}")
    assert NamePattern.parse("a.{i}") != NamePattern.parse("a.{j}")
