"""Common slips in the short forms of UCL: `like`, `under`, `fix`, `stack`, `with bias`."""

from __future__ import annotations

import re

from reshard.language.stop import Slip, Stop

NOT_QUOTED = "the beginning of names stands in double quotes"
QUOTED = "a name stands without quotes"

_LIKE = ("as", "extends", "from", "inherits", "is", "likes", "alike", "use")


def header(stop: Stop) -> Slip | None:
    """What a layout or a model is like."""
    if stop.keyword not in ("layout", "model") or stop.is_first:
        return None
    follows = re.match(r"\W*(\w+(?:\.\w+)?)", stop.text[stop.at + len(stop.word) :])
    if "_LIKE" in stop.accepted and stop.word == "whole":
        other = re.match(r"whole\s+like\s+([\w.]+)", stop.text[stop.at :])
        return Slip(
            "`whole` stands behind the layout that this one is like",
            "not expected here",
            f"write `like {other[1] if other else 'megatron'} whole`",
        )
    if "_LIKE" in stop.accepted and (stop.word in _LIKE or stop.word == ":"):
        shown = follows[1] if follows else "megatron"
        return Slip(
            "what a block is like stands behind `like`",
            "`like` belongs here",
            f"write `like {shown}`",
        )
    return None


def quoted(stop: Stop) -> Slip | None:
    """Strings where names belong, and the other way about."""
    if stop.is_first:
        return None
    is_name = stop.accepted <= {"NAME", "PATH"}
    if is_name and stop.word.startswith('"'):
        return Slip(QUOTED, "no quotes here", f"write `{stop.word[1:-1]}`")
    if is_name and stop.word == "{" and stop.keyword == "stack":
        inside = re.match(r"\{\s*(?:local\s+)?(\w+)\s*\}", stop.text[stop.at :])
        length = len(inside[0]) if inside else 1
        return Slip(
            "an axis stands without braces",
            "no braces here",
            f"write `stack {inside[1] if inside else 'layer'}`",
            (stop.at, stop.at + length),
        )
    before = re.search(r"stack\s+over\s+$", stop.text[: stop.at])
    if before is not None and stop.keyword == "stack":
        start = stop.at - len(before[0])
        return Slip(
            "`stack` names its axis alone",
            "not expected here",
            f"write `stack {stop.word}`",
            (start, stop.at + len(stop.word)),
        )
    if stop.accepted == {"STRING"} and stop.keyword in ("under", "include"):
        line = stop.text[stop.at :].partition("\n")[0]
        found = re.match(r"(?:[^\s{]|\{[^{}\s]*\})+", line)
        shown = found[0] if found else "layers."
        return Slip(
            NOT_QUOTED,
            "not in quotes",
            f'write `under "{shown}"`',
            (stop.at, stop.at + len(shown)),
        )
    return None


def short(stop: Stop) -> Slip | None:
    """Statements that stand for others."""
    if stop.keyword == '"' and stop.word == "{" and stop.accepted == {"EQUAL"}:
        name = re.search(r'"[^"\n]*"\s*$', stop.text[: stop.at])
        shown = name[0].strip() if name else '"..."'
        return Slip(
            "rules under one beginning stand in a block of `under`",
            "no rule begins so",
            f"write `under {shown} {{`",
        )
    fixed = re.search(r"\bfix\s+(\w+)$", stop.text[: stop.before])
    if fixed is not None and stop.is_first and stop.accepted == {"EQUAL"}:
        return Slip(
            "`fix` states a value",
            "which value?",
            f"write `fix {fixed[1]} = true`",
            (stop.before, stop.before),
        )
    if stop.word == "=" and stop.text[stop.at - 1 : stop.at] == "=" and "PATH" in stop.accepted:
        return Slip(
            "a value is stated with one `=`",
            "compares",
            "write `=`",
            (stop.at - 1, stop.at + 1),
        )
    included = re.search(r"\binclude\s+([\w.]+)(?:\s+as\s+\w+)?$", stop.text[: stop.before])
    if included is not None and "_UNDER" in stop.accepted:
        shown = included[1] if "." in included[1] else "llama.hf"
        help_text = f'write `include {shown} under "language_model."`'
        if "." not in included[1]:
            help_text += f", or `use {included[1]}` for shared `config` lines"
        is_end = stop.is_first or stop.word == "}"
        return Slip(
            "`include` says under which names the rules of a layout stand",
            "`under` belongs here",
            help_text,
            (stop.before, stop.before) if is_end else None,
        )
    return _bias(stop)


def _bias(stop: Stop) -> Slip | None:
    if stop.keyword == "tensor" and stop.word == "with" and "_BIAS" in stop.accepted:
        return Slip(
            "a model names the bias of a tensor",
            "not expected here",
            "write `bias NAME`; `with bias` stands behind a rule of a layout",
        )
    nameless = re.search(r"bias\s+(when)\s+$", stop.text[: stop.at])
    if stop.keyword == "tensor" and nameless is not None:
        start = stop.at - len(nameless[0]) + nameless[0].index("when")
        return Slip(
            "the bias of a tensor has a name",
            "a name belongs before this",
            "write `bias NAME when ...`",
            (start, start + len("when")),
        )
    if "_WITH" in stop.accepted and not stop.is_first and stop.keyword == '"':
        wide = stop.text[stop.at :].partition("\n")[0]
        if re.match(r"(?:and\s+|plus\s+|\+\s*)?bias\b", wide):
            return Slip(
                "a rule that stores a bias too has `with bias` behind it",
                "not expected here",
                "write `with bias`",
            )
    return None
