"""Common slips in a text that is no UCL: what is wrong, and what to write instead."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from reshard.language.faults import closest
from reshard.language.short_slips import header, quoted, short
from reshard.language.statements import statement_at
from reshard.language.stop import Slip, Stop

NO_BRACE = "a block begins with `{`"

_QUOTES = "'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_AND_SO_ON = {"&&": "and", "&": "and", "||": "or", "|": "or", "!": "not", "~": "not"}
_WHEN = {"if": "when", "where": "when", "unless": "when not"}
_COMPARED = (
    "a condition compares numbers: `layer == 3`, `layer >= 2`, `layer % 4 == 0`; join them with "
    "`and` and `or`"
)


def slip(stop: Stop) -> Slip | None:
    """The slip that somebody probably made; None where nothing comes to mind."""
    for look in _LOOKS:
        found = look(stop)
        if found is not None:
            return found
    return None


def _strange(stop: Stop) -> Slip | None:
    char = stop.word[:1]
    if char in _QUOTES and char:
        line = stop.text[stop.at :].partition("\n")[0]
        inside = re.match(rf"[{_QUOTES}]([^{_QUOTES}]*)[{_QUOTES}]", line)
        shown = inside[1] if inside else "..."
        length = len(inside[0]) if inside else 1
        return Slip(
            "a string stands in double quotes",
            "these are other quotes" if inside else "this is another quote",
            f'write `"{shown}"`',
            (stop.at, stop.at + length),
        )
    if char and ord(char) > 127:
        name = unicodedata.name(char, "a character").lower()
        return Slip(
            f"{name} (U+{ord(char):04X}) cannot stand outside of a string",
            "this character",
            "write an ordinary space" if char.isspace() else "remove it",
        )
    return None


def _separator(stop: Stop) -> Slip | None:
    text, at = stop.text, stop.at
    if stop.word == ";":
        return Slip("statements need no separator", "not expected here", "leave the `;` out")
    if text[at : at + 2] in ("//", "/*", "--"):
        return Slip(
            f"`{text[at : at + 2]}` starts no comment",
            "not expected here",
            "a comment starts with `#`",
        )
    return None


def _trailing_comma(stop: Stop) -> Slip | None:
    comma = len(stop.text[: stop.at].rstrip()) - 1
    is_end = stop.word in ("]", ")", "}") or stop.is_first
    if comma < 0 or stop.text[comma] != "," or not is_end or stop.word[:1].isalpha():
        return None
    return Slip(
        "nothing follows this comma", "the last comma", "leave the comma out", (comma, comma + 1)
    )


def _open_bracket(stop: Stop) -> Slip | None:
    if not (stop.is_first or stop.word == "}") or not stop.before:
        return None
    opened = statement_at(stop.text, stop.before - 1).open_bracket(stop.before)
    if opened is None:
        return None
    mark = stop.text[opened]
    close = "]" if mark == "[" else ")"
    begin = opened - len(re.search(r"\w*$", stop.text[:opened])[0])  # type: ignore[index]
    inside = " ".join(stop.text[begin : stop.before].split())
    return Slip(
        f"`{mark}` is not closed",
        f"expected `{close}`",
        f"write `{inside}{close}`",
        (stop.before, stop.before),
    )


def _open_block(stop: Stop) -> Slip | None:
    if "LBRACE" not in stop.accepted or not stop.is_first or not stop.before:
        return None
    header = statement_at(stop.text, stop.before - 1)
    said = " ".join(stop.text[header.start : stop.before].split())
    return Slip(NO_BRACE, "expected `{`", f"write `{said} {{`", (stop.before, stop.before))


def _equals(stop: Stop) -> Slip | None:
    if "EQUAL" not in stop.accepted:
        return None
    if stop.text[stop.at : stop.at + 2] in ("->", "=>", ":=", "<-") or stop.word == ":":
        mark = stop.word if stop.word == ":" else stop.text[stop.at : stop.at + 2]
        return Slip(f"`{mark}` stands where `=` belongs", "not expected here", "write `=`")
    if stop.keyword == "config" and stop.word == ".":
        return _backwards(stop)
    if stop.accepted == {"EQUAL"} and not stop.is_first:
        what = "a name and what is stored under it" if stop.keyword == '"' else "these two"
        return Slip(
            f"`=` is missing between {what}", "`=` belongs before this", f"write `= {stop.word}`"
        )
    return None


def _backwards(stop: Stop) -> Slip:
    rest = stop.statement.text(stop.text)
    found = re.match(r"config\s+([\w.]+)\s*=\s*([A-Za-z]\w*)\s*$", rest)
    begin = len(stop.text[: stop.at]) - len(re.search(r"\w*$", stop.text[: stop.at])[0])  # type: ignore[index]
    path = re.match(r"[\w.]+", stop.text[begin:])
    end = begin + len(path[0]) if path else stop.at + 1
    name = stop.text[begin:end]
    left = found[2] if found else name.rpartition(".")[2] or "NAME"
    right = f"config {left} = {name}"
    return Slip(
        "the left side of `config` is a name of the model's, without dots",
        "a name of the framework's configuration",
        f"write `{right}`",
        (begin, end),
    )


def _keyword_slips(stop: Stop) -> Slip | None:
    word, accepted = stop.word, stop.accepted
    if word == "on" and "_OVER" in accepted:
        return Slip("an axis is placed with `over`", "`over` belongs here", "write `over`")
    if word in _WHEN and "_WHEN" in accepted:
        return Slip(
            "a condition starts with `when`", "`when` belongs here", f"write `{_WHEN[word]}`"
        )
    if accepted == {"_A"}:
        return Slip(
            "a padded size is a multiple of a number",
            "`a multiple of` belongs before this",
            f"write `padded to a multiple of {word}`, or of the number that the framework pads to, "
            "such as `128 * tp`",
        )
    if "FIRST" in accepted:
        return Slip(
            "a rule can be on the first or on the last stage",
            "`first` or `last` belongs here",
            "write `on first stage` or `on last stage`",
        )
    return None


def _parentheses(stop: Stop) -> Slip | None:
    if stop.word != "(" or stop.keyword != "place":
        return None
    inside = re.match(r"\(([^()\n]*)\)", stop.text[stop.at :])
    shown = inside[1].strip() if inside else "..."
    last = re.search(r"(\w+)\s*$", stop.text[: stop.at])
    lead = last[1] if last else "over"
    what = "mesh axes" if lead == "over" else "sizes"
    return Slip(
        f"{what} stand without parentheses in `place`",
        "no parentheses here",
        f"write `{lead} {shown}`",
        (stop.at, stop.at + (len(inside[0]) if inside else 1)),
    )


def _operators(stop: Stop) -> Slip | None:
    two = stop.text[stop.at : stop.at + 2]
    mark = two if two in _AND_SO_ON else stop.word
    if mark in _AND_SO_ON and (stop.is_expression or "NOT" in stop.accepted):
        word = _AND_SO_ON[mark]
        return Slip(
            f"`{mark}` is no operator",
            "not expected here",
            f"write `{word}`",
            (stop.at, stop.at + len(mark)),
        )
    if stop.word == "=" and "COMPARE" in stop.accepted:
        return Slip("`=` compares nothing", "not expected here", "write `==`")
    return None


def _number(stop: Stop) -> Slip | None:
    begin = len(stop.text[: stop.at].rstrip("0123456789"))
    found = re.match(r"\d+\.\d*", stop.text[begin:])
    if stop.word != "." or found is None:
        return None
    return Slip(
        f"`{found[0]}` is not a whole number",
        "not a whole number",
        "sizes are whole numbers; write a fraction as a division: `3 * tp / 2`",
        (begin, begin + len(found[0])),
    )


def _lists(stop: Stop) -> Slip | None:
    before = re.search(r"(\w+)\s+(?:not\s+)?in\s*$", stop.text[: stop.at])
    if before is not None and stop.accepted == {"PATH"} and stop.word in ("[", "(", "{"):
        listed = re.match(r"[\[({]([\d\s,]+)[\])}]", stop.text[stop.at :])
        numbers = re.findall(r"\d+", listed[1]) if listed else []
        either = " or ".join(f"{before[1]} == {number}" for number in numbers)
        return Slip(
            "a condition asks for a list of the configuration, by its name",
            "a list that stands here",
            f"write `{either}`" if either else _COMPARED,
            (stop.at, stop.at + (len(listed[0]) if listed else 1)),
        )
    is_ternary = stop.word == "?" and ":" in stop.text[stop.at :].partition("\n")[0]
    if stop.is_expression and not stop.is_first and is_ternary:
        return Slip("`?` is no operator", "not expected here", "write `a if condition else b`")
    return None


def _hyphen(stop: Stop) -> Slip | None:
    if stop.word != "-":
        return None
    begin = stop.at - len(re.search(r"\w*$", stop.text[: stop.at])[0])  # type: ignore[index]
    found = re.match(r"\w+(?:-\w+)+", stop.text[begin:])
    if found is None:
        return None
    return Slip(
        f"`{found[0]}` is no name",
        "names have letters, digits, and `_`",
        f"write `{found[0].replace('-', '_')}`",
        (begin, begin + len(found[0])),
    )


def _sum(stop: Stop) -> Slip | None:
    if stop.word not in ("+", "[") or "RSQB" not in stop.accepted or stop.is_first:
        return None
    begin, end = stop.statement.dimension(stop.at)
    inside = stop.text[begin:end].strip()
    if stop.word == "[" and "+" not in inside:
        return Slip(
            "an atom stands inside another one's brackets",
            "not expected here",
            "parts of other atoms stand in parentheses: `(wq[q d] + wk[d])`",
        )
    at = stop.text.index(inside, begin)
    return Slip(
        "a sum stands in parentheses",
        "not in parentheses",
        f"write `({inside})`",
        (at, at + len(inside)),
    )


def _colon(stop: Stop) -> Slip | None:
    if stop.word == ":" and "LSQB" in stop.accepted:
        name = re.search(r"(\w+)\s*$", stop.text[: stop.at])
        shown = name[1] if name else "NAME"
        axes = re.match(r":\s*(\[[^\]\n]*\])", stop.text[stop.at :])
        return Slip(
            "no colon stands behind the name of a tensor",
            "not expected here",
            f"write `tensor {shown} {axes[1] if axes else '[...]'}`",
        )
    return None


def _comma(stop: Stop) -> Slip | None:
    is_name = re.fullmatch(r"[A-Za-z]\w*", stop.word)
    if "COMMA" not in stop.accepted or not is_name or stop.is_first:
        return None
    words = [x.strip("_").lower() for x in stop.accepted if x.startswith("_")]
    if closest(stop.word, words) is not None:
        return None
    last = re.search(r"(\w+)\s*$", stop.text[: stop.at])
    path = re.match(r"[\w.]+", stop.text[stop.at :])
    if stop.keyword == "config" and path and "." in path[0]:
        return Slip(
            "`=` is missing after the name", "`=` belongs before this", f"write `= {path[0]}`"
        )
    return Slip(
        "names are separated by commas",
        "a comma belongs before this",
        f"write `{last[1] if last else '...'}, {stop.word}`",
    )


def _tail(stop: Stop) -> Slip | None:
    if "_AVERAGED" not in stop.accepted or stop.is_first or not stop.word[:1].isalpha():
        return None
    near = closest(stop.word, ["averaged", "on", "optional", "when", "with"])
    if near is not None:
        return Slip(f"`{stop.word}` is no word of a rule", "not expected here", f"write `{near}`")
    if stop.word.startswith("transpose"):
        found = re.search(r"(\w*)\[([^\[\]]*)\]\s*$", stop.text[: stop.at])
        turned = ", ".join(reversed([x.strip() for x in found[2].split(",")])) if found else "f, h"
        return Slip(
            "a rule is not marked as transposed",
            "not expected here",
            "write the dimensions in the order in which they are stored: "
            f"`{found[1] if found else 'down'}[{turned}]`",
        )
    return Slip(
        f"`{stop.word}` is no word of a rule",
        "not expected here",
        "behind the brackets may stand `on first stage`, `optional`, `with bias`, "
        "`averaged over ...`, or `when ...`",
    )


def _near_keyword(stop: Stop) -> Slip | None:
    words = [x.strip("_").lower() for x in stop.accepted if x.strip("_").isalpha()]
    near = closest(stop.word.lower(), words)
    if near is None or stop.is_first or not stop.word.isalpha():
        return None
    return Slip(f"`{stop.word}` stands where `{near}` may", "not expected here", f"write `{near}`")


_LOOKS: tuple[Callable[[Stop], Slip | None], ...] = (
    *(
        _strange,
        _separator,
        _trailing_comma,
        _open_bracket,
        header,
        short,
        quoted,
        _open_block,
        _hyphen,
        _equals,
        _keyword_slips,
    ),
    *(_parentheses, _operators, _number, _lists, _sum, _colon, _comma, _tail, _near_keyword),
)
