"""Syntax errors: lark's complaint in plain words, with what could have stood there instead."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reshard.errors import Diagnostic, Label, Source, Span
from reshard.language.faults import closest
from reshard.language.slips import slip
from reshard.language.statements import (
    BLOCKS,
    KEYWORDS,
    OF_FILE,
    OF_LAYOUT,
    OF_MODEL,
    OF_SHARED,
    OF_UNDER,
    block_of,
    mask,
    statement_at,
)
from reshard.language.stop import Stop
from reshard.language.words import joined, listed

if TYPE_CHECKING:
    from lark.exceptions import UnexpectedInput

_MARKS = {
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "EQUAL": "`=`",
    "REST": "`...`",
    "PLUS": "`+`",
    "MINUS": "`-`",
}
_LONG = 200
_OPERAND = {"INT", "PATH", "STRING", "TRUE", "FALSE", "NOT", "MINUS", "LPAR"}
_OPERATOR = {"OR", "AND", "COMPARE", "PLUS", "MINUS", "STAR", "SLASH", "PERCENT"}
_MODEL_STATEMENT = {"_AXIS", "_TENSOR", "_LET", "_INCLUDE", "RBRACE"}
_LAYOUT_STATEMENT = {
    *("_USE", "_FIX", "_STACK", "_INCLUDE", "_UNDER"),
    *("_MESH", "_CONFIG", "_PLACE", "_PARTITION", "_FILE", "_TIE", "_LEAVE", "_WRAPPER"),
    *("_NAMES", "_ORDER", "STRING", "RBRACE"),
}
_FILE_STATEMENT = {
    *("_STATE", "_STATES", "_SLICES", "_NUMBER", "_NAMED", "_ORDER", "_RUN", "_FILL", "_KEEP"),
    *("_LEAVE", "RBRACE"),
}
_SHARED_STATEMENT = {"_CONFIG", "_USE", "RBRACE"}
_UNDER_STATEMENT = {"STRING", "_UNDER", "RBRACE"}
_BLOCK = {"_MODEL", "_LAYOUT", "_CONFIG"}
_STATEMENTS = (
    *(_LAYOUT_STATEMENT, _MODEL_STATEMENT, _FILE_STATEMENT, _SHARED_STATEMENT, _UNDER_STATEMENT),
)
_FACTOR = {"NAME", "BLANK", "INT", "LPAR"}
_TAIL = {"_AVERAGED", "_ON", "OPTIONAL", "_WHEN", "_WITH"}
_AFTER_AXIS = {"_OVER", "_PADDED", "_TRUNCATED", "COLON"}


def syntax_fault(error: UnexpectedInput, source: Source, text: str) -> Diagnostic:
    """What is wrong at the place where a text stops being UCL.

    Args:  text: the source's, statements with faults that are already known blanked.
    """
    from lark.exceptions import UnexpectedToken

    parser = getattr(error, "interactive_parser", None)
    accepted = frozenset() if parser is None else frozenset(parser.accepts())
    at = error.pos_in_stream or 0
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        return _unclosed(source, text)
    if isinstance(error, UnexpectedToken):
        at = error.token.start_pos or 0
    if text[at : at + 1] == '"' and not isinstance(error, UnexpectedToken):
        return _open_string(source, text, at)
    word = _word_at(text, at)
    before = _end_of_last(parser)
    stop = Stop(text, at, word, accepted, statement_at(text, at), at if before is None else before)
    return _of_blocks(stop, source) or _of_slip(stop, source) or _plain(stop, parser, source)


def _unclosed(source: Source, text: str) -> Diagnostic:
    """The end of a text inside a block."""
    end = len(text.rstrip())
    masked = mask(text)
    found = block_of(masked, text, len(text))
    if found is None:
        return _fault(source, "expected more, found the end of the text", "the end", end, end)
    begin, header = found
    opened = statement_at(text, end - 1).open_bracket(end)
    if opened is not None:
        mark, close = masked[opened], "]" if masked[opened] == "[" else ")"
        headline = f"`{mark}` is not closed"
        return _fault(source, headline, "nothing closes it", opened, opened + 1, f"write `{close}`")
    name = _named(header)
    return _fault(
        source,
        f"{name} is not closed",
        "expected `}`",
        end,
        end,
        "write `}` behind its last statement",
        beside=(begin, begin + len(header), "opened here"),
    )


def _open_string(source: Source, text: str, at: int) -> Diagnostic:
    line = text[at:].partition("\n")[0]
    name = re.match(r'"[^\s=]*(?: [^\s="]+)*', line)
    shown = name[0] if name and len(name[0]) <= _LONG else '"...'
    return _fault(
        source,
        "a string that is not closed",
        "no closing quote on this line",
        at,
        at + len(line.rstrip()),
        f'write `{shown}"`',
    )


def _of_blocks(stop: Stop, source: Source) -> Diagnostic | None:
    """A statement in a block where it does not belong, or in none."""
    around = block_of(stop.statement.masked, stop.text, stop.at)
    end = stop.at + len(stop.word)
    can_begin = any(stop.accepted >= kind for kind in (_LAYOUT_STATEMENT, _MODEL_STATEMENT))
    can_begin = can_begin or any(
        stop.accepted >= kind for kind in (_FILE_STATEMENT, _SHARED_STATEMENT, _UNDER_STATEMENT)
    )
    if around is None:
        return _outside(stop, source) if stop.accepted >= _BLOCK else None
    if not can_begin or not stop.is_first:
        return None
    begin, header = around
    kind = header.partition(" ")[0]
    if stop.word in BLOCKS:
        return _fault(
            source,
            f"{_named(header)} is not closed before this `{stop.word}`",
            "`}` belongs before this",
            stop.at,
            end,
            "write `}` behind the last statement of the block",
            beside=(begin, begin + len(header), "opened here"),
        )
    own = _OF_BLOCK.get(kind, OF_LAYOUT)
    follows = re.match(r"\s*=(?!=)\s*(.*)", stop.text[end:])
    if follows is not None and "config" in own and re.fullmatch(r"[A-Za-z]\w*", stop.word):
        said = f"config {stop.word} = {follows[1].partition('#')[0].strip()}"
        return _fault(
            source,
            f"`{stop.word}` starts no statement of a {kind}",
            "no such statement",
            stop.at,
            end,
            f"write `{said}`",
        )
    if stop.word in KEYWORDS or stop.word.startswith('"'):
        what = "a rule" if stop.word.startswith('"') else f"`{stop.word}`"
        return _fault(
            source,
            f"{what} does not belong in a {kind}",
            "not expected here",
            stop.at,
            end,
            f"statements of a {kind} are {listed(own)}{_rules_too(own)}",
        )
    if not stop.word[:1].isalpha():
        return None
    near = closest(stop.word.lower(), own)
    return _fault(
        source,
        f"`{stop.word}` starts no statement of a {kind}",
        "no such statement",
        stop.at,
        end,
        f"did you mean `{near}`?"
        if near
        else f"statements of a {kind} are {listed(own)}{_rules_too(own)}",
    )


_OF_BLOCK = {"model": OF_MODEL, "file": OF_FILE, "config": OF_SHARED, "under": OF_UNDER}


def _outside(stop: Stop, source: Source) -> Diagnostic | None:
    end = stop.at + len(stop.word)
    if stop.word.startswith('"') or stop.word in KEYWORDS:
        of_model = stop.word in OF_MODEL
        what = "a rule" if stop.word.startswith('"') else f"`{stop.word}`"
        block = "model" if of_model else "layout"
        said = stop.text[stop.at : stop.statement.end].strip().partition("\n")[0]
        return _fault(
            source,
            f"{what} stands outside of a {block}",
            f"belongs in a {block}",
            stop.at,
            end,
            f"write `{block} NAME {{ {said} }}`",
        )
    if stop.word == "}":
        return _fault(source, "`}` closes nothing", "no open block", stop.at, end, "leave it out")
    near = closest(stop.word.lower(), BLOCKS)
    if near is None:
        return None
    return _fault(
        source,
        f"`{stop.word}` starts no block",
        "not expected here",
        stop.at,
        end,
        f"did you mean `{near}`?",
    )


def _of_slip(stop: Stop, source: Source) -> Diagnostic | None:
    found = slip(stop)
    if found is None:
        return None
    begin, end = found.span or (stop.at, stop.at + len(stop.word))
    return _fault(source, found.headline, found.label, begin, end, found.help)


def _plain(stop: Stop, parser: object, source: Source) -> Diagnostic:
    """What could have stood there."""
    wanted, found = _in_words(set(stop.accepted)), _shown(stop.word)
    starts = stop.word in KEYWORDS or stop.word[:1] in ('"', "}")
    if stop.is_first and starts and stop.before < stop.at:
        # the fault is what is missing there, not what comes on the next line
        headline = f"expected {wanted} after {_last_shown(parser)}, found {found}"
        return _fault(source, headline, f"expected {wanted}", stop.before, stop.before)
    end = stop.at + len(stop.word)
    return _fault(source, f"expected {wanted}, found {found}", "not expected here", stop.at, end)


def _fault(
    source: Source,
    headline: str,
    label: str,
    start: int,
    end: int,
    help_text: str = "",
    *,
    beside: tuple[int, int, str] | None = None,
) -> Diagnostic:
    return Diagnostic(
        "syntax",
        headline,
        "error",
        Label(Span.of(source, start, end), label),
        () if beside is None else (Label(Span.of(source, *beside[:2]), beside[2]),),
        helps=(help_text,) if help_text else (),
    )


def _rules_too(statements: tuple[str, ...]) -> str:
    return ", and rules" * (statements in (OF_LAYOUT, OF_UNDER))


def _named(header: str) -> str:
    """A block as a message calls it: layout `hf`."""
    kind, _, rest = header.partition(" ")
    found = re.match(r'\w+|"[^"]*"', rest.strip())
    return f"{kind} `{found[0]}`" if found else kind


def _in_words(accepted: set[str]) -> str:
    """The accepted terminals, gathered to what a person would call them."""
    left = set(accepted)
    words: list[str] = []
    found = next((kind for kind in _STATEMENTS if left >= kind), None)
    if found is not None:
        # at the start of a statement nothing else helps; behind one, it may also go on
        left -= found
        closing = ["a new statement", "`}`"]
    elif left >= _BLOCK:
        left -= _BLOCK | {"$END"}
        closing = ["`model`", "`layout`"]
    else:
        closing = []
    if left >= _OPERAND - {"NOT"}:
        left -= _OPERAND
        words.append("an expression")
    if left >= _FACTOR:
        left -= _FACTOR
        words.append("an axis")
    if left >= _OPERATOR - {"OR", "AND", "COMPARE", "PLUS", "MINUS"} and "STAR" in left:
        left -= _OPERATOR
        words.append("an operator")
    words += sorted(_word(name) for name in left)
    words += closing
    return joined(list(dict.fromkeys(words)), "or") or "nothing more"


def _word(terminal: str) -> str:
    if terminal in _MARKS:
        return _MARKS[terminal]
    plain = {
        "NAME": "a name",
        "PATH": "a name",
        "BLANK": "`_`",
        "INT": "a number",
        "STRING": "a string",
        "COMPARE": "a comparison",
        "$END": "the end of the text",
    }
    return plain.get(terminal) or f"`{terminal.strip('_').lower()}`"


def _word_at(text: str, at: int) -> str:
    """What stands at a place: a word, a string, or one character."""
    found = re.compile(r'"(?:\\.|[^"\\\n])*"|\w+|.', re.DOTALL).match(text, at)
    return found[0] if found else ""


def _shown(text: str) -> str:
    if len(text) > 40:
        text = text[:37] + "..."
    return f"`{text}`" if text.isprintable() else ascii(text)


def _last(parser: object) -> object:
    stack = getattr(getattr(parser, "parser_state", None), "value_stack", None)
    return stack[-1] if stack else None


def _end_of_last(parser: object) -> int | None:
    """Where the last thing that was understood ends."""
    last = _last(parser)
    if isinstance(last, str):
        return getattr(last, "end_pos", None)
    if isinstance(last, list):  # lark's repetitions
        last = last[-1] if last else None
        if isinstance(last, str):
            return getattr(last, "end_pos", None)
    meta = getattr(last, "meta", None)
    return None if meta is None or meta.empty else meta.end_pos


def _last_shown(parser: object) -> str:
    last = _last(parser)
    return _shown(last) if isinstance(last, str) else "this"
