"""The grammar by itself: no ambiguities, and lark only where a text is parsed."""

from __future__ import annotations

import subprocess
import sys

from reshard.language import grammar


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
