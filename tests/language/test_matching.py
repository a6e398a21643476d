"""Matching in time that is linear gives what a regular expression gives."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from reshard.language.matching import Part, match_runs

LETTERS = st.text("a.1b0", min_size=1, max_size=3)
PARTS = st.lists(st.one_of(LETTERS, st.none(), st.booleans()), min_size=1, max_size=6)


def _regex(parts: list[Part]) -> str:
    out = []
    for place, part in enumerate(parts):
        before = place > 0 and isinstance(parts[place - 1], bool)
        behind = place + 1 < len(parts) and isinstance(parts[place + 1], bool)
        if isinstance(part, bool):
            out.append("(.*?)" if part else "([^.]*?)")
        elif part is None:
            digits = "(0|[1-9][0-9]{0,17})"
            out.append(f"{'(?<![0-9])' * before}{digits}{'(?![0-9])' * behind}")
        else:
            out.append(re.escape(part))
    return "".join(out)


@given(parts=PARTS, name=st.text("a.1b0", max_size=10))
def test_as_a_regular_expression(parts: list[Part], name: str) -> None:
    assume(not any(a is None and b is None for a, b in pairwise(parts)))

    found = re.compile(_regex(parts), re.DOTALL).fullmatch(name)
    assert match_runs(parts, name) == (None if found is None else found.groups())


def test_a_flood_of_wildcards_ends() -> None:
    flood: list[Part] = [part for _ in range(15) for part in (True, "a")] + ["b"]
    assert match_runs(flood, "a" * 5_000) is None
    assert match_runs(flood, "a" * 5_000 + "b") == ("",) * 14 + ("a" * 4_985,)
