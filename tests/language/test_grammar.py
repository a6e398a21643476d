"""The grammar by itself: no ambiguities, and lark only where a text is parsed."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import lark
import pytest

from reshard.language import grammar, make_tables, parse_tables


def test_the_grammar_is_strictly_lalr() -> None:
    parser = grammar.build(strict=True)
    assert parser.parse('layout x { "a" = [...] }').data == "start"


def test_importing_the_language_leaves_lark_out() -> None:
    code = "import sys, reshard.language; print('lark' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_parsing_does_import_lark() -> None:
    code = "import sys, reshard.language as l; l.parse(''); print('lark' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_the_parse_tables_are_those_of_the_grammar() -> None:
    """Where this fails, `python -m reshard.language.make_tables` writes them again."""
    module = files("reshard") / "language" / "parse_tables.py"
    assert make_tables.module_text() == module.read_text(encoding="utf-8")


def test_another_lark_builds_its_own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_tables, "LARK", "0.0")
    grammar.parser.cache_clear()
    built = grammar.parser()
    monkeypatch.undo()
    grammar.parser.cache_clear()
    assert lark.__version__ == parse_tables.LARK
    text = (files("reshard") / "layouts" / "llama.ucl").read_text(encoding="utf-8")
    assert grammar.parser().parse(text) == built.parse(text)
