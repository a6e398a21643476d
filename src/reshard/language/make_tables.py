"""Writes the parse tables of the grammar: `python -m reshard.language.make_tables`.

lark computes them from `grammar/ucl.lark`. It is needed here and in the tests, and nowhere else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reshard.language import grammar

if TYPE_CHECKING:
    from lark.grammar import Rule
    from lark.lexer import TerminalDef

_WORD = "[A-Za-z_][A-Za-z0-9_]*"
_KEYWORD = re.compile(r"(?:\(\?:)?([a-z_]+)\)?\(\?!\[A-Za-z0-9_\]\)")

_HEAD = '''"""Made by `python -m reshard.language.make_tables`; not edited by hand.

Tokens are numbered, terminals first. A row of STATES has pairs of a token and what is done there:
the next state, or -1 - the number of a rule to reduce by.
"""

Rule = tuple[int, int, str, bool, tuple[tuple[int, bool, int], ...], int]
"""Its token; parts; the node's name; whether one child stands for it; the parts that are children:
index, whether its children are taken instead, absent ones before it; absent ones behind."""
'''


def module_text() -> str:
    """The text of `parse_tables.py` for the grammar as it is now."""
    parser: Any = grammar.build()
    conf = parser.parser.lexer_conf
    terminals = {item.name: item for item in conf.terminals}
    ignored = [terminals.pop(name).pattern.to_regexp() for name in conf.ignore]
    keywords = {
        found[1]: name
        for name, item in terminals.items()
        if item.priority == 1 and (found := _KEYWORD.fullmatch(item.pattern.to_regexp()))
    }
    others = sorted((terminals[x] for x in terminals.keys() - keywords.values()), key=_precedence)
    assert all(item.priority < 1 for item in others), "a keyword must look like a word"
    names = [*sorted(terminals), "$END"]
    rules = list(parser.rules)
    tokens = names + sorted({rule.origin.name for rule in rules})
    number = {name: index for index, name in enumerate(tokens)}
    states, last = _states(parser.parser.parser._parse_table, number, rules)
    tables: dict[str, tuple[str, object]] = {
        "TERMINALS": ("tuple[str, ...]", tuple(names)),
        "END": ("int", number["$END"]),
        "IGNORED": ("str", f"(?:{'|'.join(ignored)})*"),
        "WORD": ("str", _WORD),
        "KEYWORDS": ("dict[str, int]", {word: number[x] for word, x in sorted(keywords.items())}),
        "OTHERS": (
            "tuple[tuple[int, str], ...]",
            tuple((number[item.name], item.pattern.to_regexp()) for item in others),
        ),
        "RULES": ("tuple[Rule, ...]", tuple(_rule(rule, number) for rule in rules)),
        "STATES": ("tuple[tuple[int, ...], ...]", states),
        "LAST": ("int", last),
    }
    lines = (f"{name}: {kind} = {value!r}\n" for name, (kind, value) in tables.items())
    return _HEAD + "".join(lines)


def _precedence(item: TerminalDef) -> tuple[object, ...]:
    """The order in which lark tries terminals."""
    pattern = item.pattern
    return (-item.priority, -pattern.max_width, -len(pattern.value), item.name)


def _rule(rule: Any, number: dict[str, int]) -> tuple[object, ...]:
    """A rule as `lalr` reads it; what becomes of its parts is said as in lark's tree builder."""
    options = rule.options
    absent = "".join(map(str, map(int, options.empty_indices or [False] * len(rule.expansion))))
    gaps = [len(ones) for ones in absent.split("0")]
    picked, nones = [], 0
    for index, symbol in enumerate(rule.expansion):
        nones += gaps[index]
        if not (symbol.is_term and symbol.filter_out):
            is_inlined = not symbol.is_term and symbol.name.startswith("_")
            picked.append((index, is_inlined, nones))
            nones = 0
    is_single = bool(options.expand1 and not rule.alias)
    data = str(rule.alias or options.template_source or rule.origin.name)
    nones += gaps[-1]
    return (number[rule.origin.name], len(rule.expansion), data, is_single, tuple(picked), nones)


def _states(
    table: Any, number: dict[str, int], rules: list[Rule]
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The rows of all states, numbered in an order of their own, and the state of a whole text.

    lark numbers them in the order of a set of strings, which is another one in every process.
    """
    index = {rule: place for place, rule in enumerate(rules)}
    order = {table.start_states["start"]: 0}
    queue = list(order)
    rows = []
    for state in queue:
        row: list[int] = []
        for name, (action, to) in sorted(table.states[state].items()):
            if action.name == "Shift" and to not in order:
                order[to] = len(order)
                queue.append(to)
            row += (number[name], order[to] if action.name == "Shift" else ~index[to])
        rows.append(tuple(row))
    return tuple(rows), order[table.end_states["start"]]


if __name__ == "__main__":
    Path(__file__).with_name("parse_tables.py").write_text(module_text(), encoding="utf-8")
