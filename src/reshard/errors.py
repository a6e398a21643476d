"""Diagnostics and the one exception that carries them.

A `Diagnostic` is a value: a stable code, a headline that states a fact, where it is, notes that
say where the facts came from, and help that says what to do.  `ReshardError` holds one or more of
them; `str(error)` is the same text that the command line prints, without colour.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

Level = Literal["error", "warning", "note"]

MAX_LINE = 160
"""Characters of a line of a text that a message shows."""

MAX_LENGTH = 2000
"""Characters of a line of a message; no name is longer."""

MAX_SHOWN = 20
"""Diagnostics printed for one phase; the rest are counted."""


class Exit(IntEnum):
    """Process exit codes (docs/cli.md); an unknown non-zero code is a failure."""

    OK = 0
    BUG = 1
    USAGE = 2
    LAYOUT = 3
    SOURCE = 4
    TARGET = 5
    DIFFERENCE = 6
    OUTPUT = 7
    INTERRUPTED = 130


def visible(text: str, keep: str = "") -> str:
    """A text whose unprintable characters are written as Python's escapes.

    Names come from files: what a terminal would obey, what turns the direction of writing, and
    what has no encoding is shown as what it is.

    Args:  keep: characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text
    )


@dataclass(frozen=True, slots=True)
class Source:
    """A named text that spans point into, normally one UCL file."""

    name: str
    text: str

    def line(self, number: int) -> str:
        """The text of a 1-based line, without its line end."""
        lines = self.text.split("\n")
        return lines[number - 1].rstrip("\r") if 1 <= number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters in a source text.

    Args:  start, end: 0-based character offsets, start <= end <= len(text).
    """

    source: Source = field(repr=False)
    start: int
    end: int

    @property
    def line(self) -> int:
        """The line of `start`, from 1."""
        return self.source.text.count("\n", 0, self.start) + 1

    @property
    def column(self) -> int:
        """The place of `start` in its line, from 1."""
        return self.start - self.source.text.rfind("\n", 0, self.start)

    @staticmethod
    def of(source: Source, start: int, end: int) -> Span:
        """The span of `[start, end)`, as far as the text has it."""
        start = max(0, min(start, len(source.text)))
        end = max(start, min(end, len(source.text)))
        return Span(source, start, end)

    def inside(self, start: int, end: int) -> Span:
        """The span of a part of the text between the quotes of a string, which this is of."""
        return Span.of(self.source, self.start + 1 + start, self.start + 1 + end)


@dataclass(frozen=True, slots=True)
class Label:
    """A span with a few words beside its carets (or dashes, if it is not the primary one)."""

    span: Span
    text: str = ""


def label(span: Span | None, text: str) -> Label | None:
    """A label at a span, where it is known."""
    return None if span is None else Label(span, text)


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing that is wrong (or worth knowing), in the form that every message of reshard has."""

    code: str
    headline: str
    level: Level = "error"
    primary: Label | None = None
    secondary: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    helps: tuple[str, ...] = ()

    def render(self) -> str:
        """The whole message as plain text, without a final line end."""
        lines = [f"{self.level}[{self.code}]: {self.headline}"]
        if self.primary is not None:
            lines += _render_spans(self.primary, self.secondary)
        lines += [f"  = note: {note}" for note in self.notes]
        lines += [f"  = help: {text}" for text in self.helps]
        return "\n".join(_shortened(visible(line)) for line in lines)

    def to_json(self) -> dict[str, object]:
        """The same facts for machines (docs/cli.md, `diagnostics`)."""
        out: dict[str, object] = {"level": self.level, "code": self.code, "headline": self.headline}
        if self.primary is not None:
            span = self.primary.span
            out["span"] = {
                "file": span.source.name,
                "line": span.line,
                "column": span.column,
                "start": span.start,
                "end": span.end,
                "label": self.primary.text,
            }
        if self.notes:
            out["notes"] = list(self.notes)
        if self.helps:
            out["help"] = list(self.helps)
        return out


def _render_spans(primary: Label, secondary: tuple[Label, ...]) -> list[str]:
    """Source lines with carets under the primary span and dashes under the others."""
    here = primary.span
    labels = sorted(
        [(label, "-") for label in secondary if label.span.source is here.source]
        + [(primary, "^")],
        key=lambda item: (item[0].span.line, item[0].span.column),
    )
    width = len(str(max(label.span.line for label, _ in labels)))
    gutter = " " * width
    out = [f"{gutter}--> {here.source.name}:{here.line}:{here.column}", f"{gutter} |"]
    previous: int | None = None
    for label, mark in labels:
        span = label.span
        if previous is not None and span.line > previous + 1:
            out.append("...")
        text = span.source.line(span.line)
        first = _window(labels, span.line, len(text))
        if span.line != previous:
            shown = _one_wide(text[first : first + MAX_LINE])
            out.append(f"{span.line:>{width}} | {shown}".rstrip())
        length = max(1, min(span.end - span.start, len(text) - span.column + 1))
        column = span.column - 1 - first
        if 0 <= column <= MAX_LINE:
            marks = mark * min(length, MAX_LINE - column + 1)
            out.append(f"{gutter} | {' ' * column}{marks} {label.text}".rstrip())
        else:
            out.append(f"{gutter} | at column {span.column}: {label.text}".rstrip())
        previous = span.line
    out.append(f"{gutter} |")
    return out


def _window(labels: list[tuple[Label, str]], line: int, length: int) -> int:
    """From which character on a long line is shown: around what is marked first in it."""
    if length <= MAX_LINE:
        return 0
    column = next(label.span.column for label, mark in labels if label.span.line == line)
    return max(0, min(column - 1 - MAX_LINE // 4, length - MAX_LINE))


def _one_wide(text: str) -> str:
    """A line in which every character takes one column, so that marks stand under it."""
    text = text.replace("\t", " ")
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def _shortened(line: str) -> str:
    if len(line) <= MAX_LENGTH:
        return line
    return f"{line[:MAX_LENGTH]}... and {len(line) - MAX_LENGTH} characters more"


class ReshardError(Exception):
    """What every failure caused by the user's input raises; bugs of ours stay plain exceptions.

    Args:  diagnostics: at least one.  exit_code: what the command line ends with.
    """

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic], exit_code: Exit) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = (
            (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        )
        if not self.diagnostics:
            raise ValueError("a ReshardError needs at least one diagnostic")
        self.exit_code = exit_code
        super().__init__(render_all(self.diagnostics))

    def to_json(self) -> dict[str, object]:
        """The same facts for machines (docs/cli.md, `error`)."""
        return {
            "exit_code": int(self.exit_code),
            "diagnostics": [item.to_json() for item in self.diagnostics],
        }


class ReshardWarning(UserWarning):
    """What the functions of `reshard` warn of: the text that the command line prints."""


def as_bug(error: Exception) -> ReshardError:
    """What the command line says of an exception that is no `ReshardError`: a bug of ours."""
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    text = f"{type(error).__name__}: {error}".strip().rstrip(":")
    left = getattr(error, "__notes__", None) or ("no output was left behind",)
    return ReshardError(
        Diagnostic(
            "bug",
            f"this is a bug in reshard: {text}",
            notes=(f"at {where}, in `{frame.name}`", *left),
            helps=("run it again with RESHARD_DEBUG=1 for the traceback, and report that, please",),
        ),
        Exit.BUG,
    )


def render_all(diagnostics: Iterable[Diagnostic]) -> str:
    """Several messages, a blank line between them, at most MAX_SHOWN and a count of the rest."""
    items = list(diagnostics)
    text = "\n\n".join(item.render() for item in items[:MAX_SHOWN])
    if len(items) > MAX_SHOWN:
        text += f"\n\nand {len(items) - MAX_SHOWN} more"
    return text


def _raiser(
    exit_code: Exit,
    code: str,
    headline: str,
    notes: Iterable[str],
    helps: Iterable[str],
    primary: Label | None,
) -> ReshardError:
    diagnostic = Diagnostic(code, headline, "error", primary, (), tuple(notes), tuple(helps))
    return ReshardError(diagnostic, exit_code)


def warning(code: str, headline: str, *notes: str, helps: Iterable[str] = ()) -> Diagnostic:
    """What is worth knowing, and is no failure."""
    return Diagnostic(code, headline, "warning", notes=notes, helps=tuple(helps))


def layout_error(
    code: str,
    headline: str,
    *,
    notes: Iterable[str] = (),
    helps: Iterable[str] = (),
    primary: Label | None = None,
) -> ReshardError:
    """A fault in a layout or in how it fits the checkpoint (exit code 3)."""
    return _raiser(Exit.LAYOUT, code, headline, notes, helps, primary)


def source_error(
    code: str,
    headline: str,
    *,
    notes: Iterable[str] = (),
    helps: Iterable[str] = (),
    primary: Label | None = None,
) -> ReshardError:
    """A source that is missing, damaged, or unknown (exit code 4)."""
    return _raiser(Exit.SOURCE, code, headline, notes, helps, primary)


def target_error(
    code: str,
    headline: str,
    *,
    notes: Iterable[str] = (),
    helps: Iterable[str] = (),
    primary: Label | None = None,
) -> ReshardError:
    """A target that cannot be made (exit code 5)."""
    return _raiser(Exit.TARGET, code, headline, notes, helps, primary)


def output_error(
    code: str,
    headline: str,
    *,
    notes: Iterable[str] = (),
    helps: Iterable[str] = (),
    primary: Label | None = None,
) -> ReshardError:
    """An output that exists or cannot be written (exit code 7)."""
    return _raiser(Exit.OUTPUT, code, headline, notes, helps, primary)
