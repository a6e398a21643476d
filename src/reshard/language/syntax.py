"""Syntax errors: lark's complaint in plain words, with what could have stood there instead."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reshard.errors import Diagnostic, Exit, Label, ReshardError, Source, Span
from reshard.language.words import joined

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
_OPERAND = {"INT", "PATH", "STRING", "TRUE", "FALSE", "NOT", "MINUS", "LPAR"}
_OPERATOR = {"OR", "AND", "COMPARE", "PLUS", "MINUS", "STAR", "SLASH", "PERCENT"}
_MODEL_STATEMENT = {"_AXIS", "_TENSOR", "RBRACE"}
_LAYOUT_STATEMENT = {
    *("_MESH", "_CONFIG", "_PLACE", "_PARTITION", "_FILE", "_TIE", "_LEAVE", "_WRAPPER"),
    *("_NAMES", "_ORDER", "STRING", "RBRACE"),
}
_FILE_STATEMENT = {
    *("_STATE", "_STATES", "_NUMBER", "_NAMED", "_ORDER", "_RUN", "_KEEP", "_LEAVE", "RBRACE"),
}
_BLOCK = {"_MODEL", "_LAYOUT"}
_FACTOR = {"NAME", "BLANK", "INT", "LPAR"}
_TAIL = {"_AVERAGED", "_ON", "OPTIONAL", "_WHEN"}
_AFTER_AXIS = {"_OVER", "_PADDED", "_TRUNCATED", "COLON"}


def syntax_error(error: UnexpectedInput, source: Source) -> ReshardError:
    """One message for the place where a text stops being UCL."""
    from lark.exceptions import UnexpectedToken

    parser = getattr(error, "interactive_parser", None)
    accepted = set() if parser is None else set(parser.accepts())
    wanted = _in_words(accepted)
    at = error.pos_in_stream or 0
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        at, length, found = len(source.text), 0, "the end of the text"
    elif isinstance(error, UnexpectedToken):
        at, length = error.token.start_pos or 0, len(str(error.token))
        found = _shown(str(error.token))
    else:
        at, length, found = _characters(source.text, at)
    helps = _helps(source.text, at, accepted)
    before = _end_of_last(parser)
    if found == "a string that is not closed":
        return _error(f"{found}", "no closing quote on this line", source, at, length, helps)
    if before is not None and "\n" in source.text[before:at]:
        # the fault is what is missing there, not what comes on the next line
        return _error(
            f"expected {wanted} after {_last_shown(parser)}, found {found}",
            f"expected {wanted}",
            source,
            before,
            0,
            helps,
        )
    return _error(
        f"expected {wanted}, found {found}", "not expected here", source, at, length, helps
    )


def _error(
    headline: str, label: str, source: Source, start: int, length: int, helps: list[str]
) -> ReshardError:
    span = Span.of(source, start, start + length)
    diagnostic = Diagnostic("syntax", headline, "error", Label(span, label), helps=tuple(helps))
    return ReshardError(diagnostic, Exit.LAYOUT)


def _in_words(accepted: set[str]) -> str:
    """The accepted terminals, gathered to what a person would call them."""
    left = set(accepted)
    words: list[str] = []
    if any(left >= kind for kind in (_LAYOUT_STATEMENT, _MODEL_STATEMENT, _FILE_STATEMENT)):
        # at the start of a statement nothing else helps; behind one, it may also go on
        left -= _LAYOUT_STATEMENT | _MODEL_STATEMENT | _FILE_STATEMENT
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


def _characters(text: str, at: int) -> tuple[int, int, str]:
    """What stands where no token could be read: (start, length, words)."""
    if text[at : at + 1] == '"':
        end = text.find("\n", at)
        return at, (len(text) if end < 0 else end) - at, "a string that is not closed"
    word = re.compile(r"\w+|.", re.DOTALL).match(text, at)
    found = word[0] if word else ""
    return at, len(found), _shown(found)


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


def _helps(text: str, at: int, accepted: set[str]) -> list[str]:
    if text[at : at + 1] == ";":
        return ["statements need no separator; leave the `;` out"]
    if text[at : at + 2] == "//":
        return ["a comment starts with `#`"]
    if text[at : at + 1] == "'":
        return ['strings stand in double quotes: `"..."`']
    if text[at : at + 1] == "+" and "RSQB" in accepted:
        return ["a sum stands in parentheses: `(a + b)`"]
    if text[at : at + 1] == "[" and "RSQB" in accepted:
        return ["parts of other atoms stand in parentheses: `(wq[q d] + wk[d])`"]
    return []
