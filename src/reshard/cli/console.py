"""What goes to which stream: answers to stdout, messages to stderr, colours to terminals."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TextIO

from reshard.errors import Diagnostic, ReshardError, render_all

SCHEMA = 1
"""Version of the JSON documents; within it keys are only added."""

_BOLD, _DIM, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_LEVELS = {"error": "\x1b[1;31m", "warning": "\x1b[1;33m", "note": "\x1b[1;36m"}
_HEADLINE = re.compile(r"^(error|warning|note)(\[[\w-]+\]:)(.*)$")


def print_json(document: Mapping[str, object], *, ok: bool = True) -> None:
    """The one document that `--json` prints."""
    full = {"schema": SCHEMA, "ok": ok, **document}
    print_text(json.dumps(full, indent=2, ensure_ascii=False))


def print_text(text: str) -> None:
    """An answer."""
    sys.stdout.write(text + "\n")


def print_answer(text: str, *, color: bool) -> None:
    """An answer whose section heads stand out on a terminal."""
    print_text(_paint_answer(text) if color and wants_color(sys.stdout) else text)


def print_message(text: str, *, color: bool = True) -> None:
    """Progress and remarks."""
    sys.stdout.flush()
    sys.stderr.write((_paint(text) if color and wants_color(sys.stderr) else text) + "\n")
    sys.stderr.flush()


def print_diagnostics(items: Iterable[Diagnostic], *, color: bool = True) -> None:
    """Warnings and notes, a blank line between them."""
    text = render_all(items)
    if text:
        print_message(text, color=color)


def error_document(error: ReshardError) -> dict[str, object]:
    """A failure for machines."""
    return {
        "error": {
            "exit_code": int(error.exit_code),
            "diagnostics": [item.to_json() for item in error.diagnostics],
        }
    }


def wants_color(stream: TextIO) -> bool:
    """Whether colours are welcome on a stream."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM", "") != "dumb"


def _paint(text: str) -> str:
    return "\n".join(_paint_line(line) for line in text.split("\n"))


def _paint_line(line: str) -> str:
    found = _HEADLINE.match(line)
    if found:
        return f"{_LEVELS[found[1]]}{found[1]}{found[2]}{_RESET}{_BOLD}{found[3]}{_RESET}"
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
