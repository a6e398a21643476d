"""Writes the parse tables of the grammar: `python -m reshard.language.make_tables`.

lark computes them from `grammar/ucl.lark` in some 200 ms; loading them as literals takes 10 ms.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from reshard.language import grammar

if TYPE_CHECKING:
    from lark import Lark

_SHIFT = 0
"""The action of lark's tables that goes to another state; the other one reduces by a rule."""


def module_text() -> str:
    """The text of `parse_tables.py` for the grammar as it is now."""
    import lark
    from lark.grammar import Rule
    from lark.lexer import TerminalDef

    parser: Lark = grammar.build()
    data, memo = parser.memo_serialize([TerminalDef, Rule])
    data["parser"]["parser"] = _numbered(data["parser"]["parser"])
    return (
        '"""Made by `python -m reshard.language.make_tables`; not edited by hand."""\n\n'
        f"LARK = {lark.__version__!r}\n"
        f"DATA: dict[str, object] = {data!r}\n"
        f"MEMO: dict[int, object] = {memo!r}\n"
    )


def _numbered(table: dict[str, Any]) -> dict[str, Any]:
    """The table with tokens and states numbered in an order of their own.

    lark numbers both in the order of a set of strings, which is another one in every process.
    """
    name: dict[int, str] = table["tokens"]
    number = {name: index for index, name in enumerate(sorted(name.values()))}
    order = {state: index for index, state in enumerate(table["start_states"].values())}
    rows = {}
    queue = list(order)
    for state in queue:
        row = sorted((number[name[token]], step) for token, step in table["states"][state].items())
        for _, (action, to) in row:
            if action == _SHIFT and to not in order:
                order[to] = len(order)
                queue.append(to)
        rows[order[state]] = {
            token: (action, order[to] if action == _SHIFT else to) for token, (action, to) in row
        }
    return {
        "tokens": dict(enumerate(number)),
        "states": rows,
        "start_states": {rule: order[state] for rule, state in table["start_states"].items()},
        "end_states": {rule: order[state] for rule, state in table["end_states"].items()},
    }


if __name__ == "__main__":
    Path(__file__).with_name("parse_tables.py").write_text(module_text(), encoding="utf-8")
