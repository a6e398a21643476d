"""The grammar file and the parser that lark makes of it."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark import Lark


def grammar_text() -> str:
    """The text of `ucl.lark`: the packaged copy, or the one of a source checkout."""
    packaged = files("reshard") / "_grammar" / "ucl.lark"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[3] / "grammar" / "ucl.lark").read_text(encoding="utf-8")


def build(*, strict: bool = False) -> Lark:
    """A new parser; a strict one fails on every ambiguity of the grammar (needs interegular)."""
    from lark import Lark

    return Lark(
        grammar_text(),
        parser="lalr",
        lexer="contextual",
        propagate_positions=True,
        maybe_placeholders=True,
        strict=strict,
    )


@lru_cache(maxsize=1)
def parser() -> Lark:
    """The parser, from the tables made beforehand where they are of the lark that is installed."""
    import lark

    from reshard.language import parse_tables

    if lark.__version__ != parse_tables.LARK:
        return build()
    parser = lark.Lark.__new__(lark.Lark)
    parser._load({"data": parse_tables.DATA, "memo": parse_tables.MEMO})
    return parser
