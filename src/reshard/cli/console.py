"""What goes to which stream: answers to stdout, messages to stderr, colours to terminals."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import TextIO

from reshard.cli.streams import flush, put
from reshard.errors import MAX_SHOWN, Diagnostic, ReshardError, render_all, visible
from reshard.plan.text import wrap

SCHEMA = 1
"""Version of the JSON documents; within it keys are only added."""

_BOLD, _DIM, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_LEVELS = {"error": "\x1b[1;31m", "warning": "\x1b[1;33m", "note": "\x1b[1;36m"}
_NOT_PLAIN = re.compile(r"[^\x20-\x7e\n]")
_MARGIN = re.compile(r"^(?:  = (?:note|help): |(?:error|warning|note)\[)")
_HEADLINE = re.compile(r"^(error|warning|note)(\[[\w-]+\]:)(.*)$")


def print_json(document: Mapping[str, object], *, ok: bool = True) -> None:
    """The one document that `--json` prints."""
    full = _finite({"schema": SCHEMA, "ok": ok, **document})
    text = json.dumps(full, indent=2, ensure_ascii=False, allow_nan=False)
    put(sys.stdout, _NOT_PLAIN.sub(_json_escape, text))


def _finite(value: object) -> object:
    """A value in which numbers that JSON lacks are texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def print_text(text: str, *, exact: bool = False) -> None:
    """An answer.

    Args:  exact: of which a program may want every character; a terminal still gets the safe ones.
    """
    put(sys.stdout, text if exact and not sys.stdout.isatty() else visible(text, "\n\t"))


def print_answer(text: str, *, color: bool) -> None:
    """An answer whose section heads stand out on a terminal."""
    if color and wants_color(sys.stdout):
        put(sys.stdout, _paint_answer(visible(text, "\n")))
    else:
        print_text(text)


def print_message(text: str, *, color: bool = True) -> None:
    """Progress and remarks."""
    flush(sys.stdout)
    text = visible(text, "\n")
    if sys.stderr.isatty():
        text = _wrapped(text)
    put(sys.stderr, _paint(text) if color and wants_color(sys.stderr) else text)
    flush(sys.stderr)


def _wrapped(text: str) -> str:
    """Long lines broken at blanks, as wide as the terminal; quoted sources stay as they are."""
    width = max(shutil.get_terminal_size().columns, 40)
    lines = []
    for line in text.split("\n"):
        match = _MARGIN.match(line)
        if match is None or len(line) <= width:
            lines.append(line)
        else:
            lines += wrap(line, width, indent=" " * (10 if match[0].startswith(" ") else 4))
    return "\n".join(lines)


def _json_escape(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


def print_diagnostics(items: Iterable[Diagnostic], *, color: bool = True) -> None:
    """Warnings and notes, a blank line between them."""
    items = list(items)
    text = render_all(items)
    if text:
        print_message(text, color=color)
    annotate(items)


def print_error(error: ReshardError, *, color: bool = True) -> None:
    """Why something could not be done."""
    print_message(str(error), color=color)
    annotate(error.diagnostics)


def annotate(items: Iterable[Diagnostic]) -> None:
    """Say it to GitHub too, where this is one of its workflows: it shows it next to the change."""
    for item in list(items)[:MAX_SHOWN]:
        where = {}
        if item.primary is not None:
            span = item.primary.span
            where = {"file": span.source.name, "line": str(span.line), "col": str(span.column)}
        level = "notice" if item.level == "note" else item.level
        annotation(level, item.code, "\n".join([item.headline, *item.notes, *item.helps]), where)


def annotation(level: str, title: str, text: str, where: Mapping[str, str] | None = None) -> None:
    """One workflow command of GitHub, which reads them from either stream; else nothing."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        properties = {**(where or {}), "title": f"reshard: {title}"}
        pairs = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
        put(sys.stderr, f"::{level} {pairs}::{_data(text)}")


def _data(text: str) -> str:
    text = visible(text, "\n")
    return text.replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def error_document(error: ReshardError) -> dict[str, object]:
    """A failure for machines."""
    return {"error": error.to_json()}


def wants_color(stream: TextIO) -> bool:
    """Whether colours are welcome on a stream."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM", "") != "dumb"


def _paint(text: str) -> str:
    return "\n".join(_paint_line(line) for line in text.split("\n"))


def _paint_line(line: str) -> str:
    match = _HEADLINE.match(line)
    if match:
        return f"{_LEVELS[match[1]]}{match[1]}{match[2]}{_RESET}{_BOLD}{match[3]}{_RESET}"
    if re.match(r"^ *\d* \|  *\^", line):
        return f"{_LEVELS['error']}{line}{_RESET}"
    return line


def _paint_answer(text: str) -> str:
    """Bold for the first line of every paragraph that others follow."""
    lines = text.split("\n")
    out = []
    for index, line in enumerate(lines):
        first = index == 0 or not lines[index - 1]
        more = index + 1 < len(lines) and bool(lines[index + 1])
        plain = _paint_line(line)
        out.append(f"{_BOLD}{line}{_RESET}" if first and more and plain == line else plain)
    return "\n".join(out)
