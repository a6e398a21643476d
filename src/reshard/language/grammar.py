"""The grammar file, and lark's parser of it, which the tables of `lalr` are taken from."""

from __future__ import annotations

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
