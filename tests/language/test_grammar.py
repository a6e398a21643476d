"""The grammar by itself: no ambiguities, and what `lalr` reads of its tables is what lark reads."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedInput, UnexpectedToken

from reshard.language import grammar, lalr, make_tables

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "src" / "reshard" / "layouts").rglob("*.ucl"))
SHOWN = [
    text
    for page in sorted(ROOT.glob("docs/**/*.md"))
    for text in re.findall(r"^```(?:text|ucl)?\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    if re.match(r"\s*(?:layout|model|config) ", text)
]
PUT_IN = ("", "x", "_", "1", " ", "\n", "=", '"', *"[]}(%é", " when ", " over tp ")


def test_the_grammar_is_strictly_lalr() -> None:
    parser = grammar.build(strict=True)
    assert parser.parse('layout x { "a" = [...] }').data == "start"


def test_parsing_leaves_lark_out() -> None:
    code = (
        "import sys, reshard.language as l\n"
        "l.parse('layout x {}')\n"
        "try: l.parse('layout {')\n"
        "except Exception: pass\n"
        "print('lark' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_parse_tables_are_those_of_the_grammar() -> None:
    """Where this fails, `python -m reshard.language.make_tables` writes them again."""
    module = files("reshard") / "language" / "parse_tables.py"
    assert make_tables.module_text() == module.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parser() -> Lark:
    return grammar.build()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_read_is_what_lark_reads(path: Path, parser: Lark) -> None:
    text = path.read_text(encoding="utf-8")
    assert _differences(lalr.parse(text), parser.parse(text)) == []


def test_where_reading_stops_is_where_lark_stops(parser: Lark) -> None:
    """Every text of the documentation, and with a slip in it: the place, what could have stood
    there, and where what was understood ends.
    """
    chance = random.Random(0)
    assert len(SHOWN) > 20
    for text in SHOWN:
        for _ in range(4):
            at = chance.randrange(len(text) + 1)
            slipped = text[:at] + chance.choice(PUT_IN) + text[at + chance.choice((0, 1, 1, 5)) :]
            assert _stop(slipped) == _stop_of_lark(slipped, parser), slipped


def _differences(ours: lalr.Value, lark: object) -> list[object]:
    """Pairs of nodes that are not the same."""
    if lark is None or ours is None:
        return [] if lark is ours else [(ours, lark)]
    if isinstance(lark, Token):
        place = (lark.start_pos, lark.end_pos)
        is_same = isinstance(ours, lalr.Token) and str(ours) == str(lark)
        return [] if is_same and (ours.start, ours.end) == place else [(ours, lark)]
    assert isinstance(lark, Tree)
    place = (-1, -1) if lark.meta.empty else (lark.meta.start_pos, lark.meta.end_pos)
    if not isinstance(ours, lalr.Node) or ours.data != lark.data:
        return [(ours, lark)]
    if (ours.start, ours.end) != place or len(ours.children) != len(lark.children):
        return [(ours, lark)]
    pairs = zip(ours.children, lark.children, strict=True)
    return [item for one, other in pairs for item in _differences(one, other)]


def _stop(text: str) -> object:
    try:
        lalr.parse(text)
    except lalr.Unexpected as error:
        end = -1 if error.last is None else error.last.end
        return error.at, error.is_end, error.accepted, end
    return None


def _stop_of_lark(text: str, parser: Lark) -> object:
    try:
        parser.parse(text)
    except UnexpectedInput as error:
        state = error.interactive_parser  # type: ignore[attr-defined]
        accepted = frozenset(state.accepts())
        values = state.parser_state.value_stack
        last = values[-1] if values else None
        place = last if isinstance(last, Token) else getattr(last, "meta", None)
        end = getattr(place, "end_pos", None)
        is_token = isinstance(error, UnexpectedToken)
        is_end = is_token and error.token.type == "$END"
        at = len(text) if is_end else error.token.start_pos if is_token else error.pos_in_stream
        return at, is_end, accepted, -1 if end is None else end
    return None
