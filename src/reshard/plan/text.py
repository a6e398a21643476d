"""Numbers and tables for people: plain text, at most as wide as a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

WIDTH = 80


def show_nbytes(nbytes: int) -> str:
    """`812 B`, `1.2 MB`, `12.4 GB`: decimal units, one digit behind the point."""
    if nbytes < 1000:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} PB"


def show_seconds(seconds: float) -> str:
    """`0.24 s`, `12.3 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def show_pace(nbytes: int, seconds: float) -> str:
    """How long it took, and how many bytes that is a second."""
    return f"in {show_seconds(seconds)}, {show_nbytes(round(nbytes / max(seconds, 1e-9)))}/s"


def show_count(count: int, noun: str) -> str:
    """`1 file`, `12,345 files`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def facts(pairs: Iterable[tuple[str, str]], *, width: int = WIDTH) -> list[str]:
    """Lines of a label and its value, the values under each other; long values are wrapped."""
    items = [(label, value) for label, value in pairs if value]
    column = max((len(label) for label, _ in items), default=0) + 4
    out = []
    for label, value in items:
        lines = [line for part in value.split("\n") for line in wrap(part, width - column)]
        out.append(f"  {label}".ljust(column) + lines[0])
        out += [" " * column + line for line in lines[1:]]
    return out


def table(rows: Sequence[Sequence[str]], *, right: str = "", width: int = WIDTH) -> list[str]:
    """Lines of a table; the first row is its head.

    A first cell that leaves no room for the others stands on a line of its own: names are never
    cut short.

    Args:  right: for each column `l` or `r`; left for those that it leaves out.
    """
    if not rows:
        return []
    count = len(rows[0])
    sides = right.ljust(count, "l")
    widths = [max(len(row[column]) for row in rows) for column in range(count)]
    others = sum(widths[1:]) + 2 * (count - 1)
    widths[0] = min(widths[0], max(width - others, len(rows[0][0]), 8))
    out = []
    for row in rows:
        cells = [_cell(text, widths[i], sides[i]) for i, text in enumerate(row)]
        if len(row[0]) > widths[0]:
            out.append(row[0])
            cells[0] = " " * widths[0]
        out.append("  ".join(cells).rstrip())
    return out


def wrap(text: str, width: int, *, indent: str = "") -> list[str]:
    """A text broken at blanks; a word that is too long keeps a line of its own."""
    out: list[str] = []
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            out.append(line)
            line = indent + word
        else:
            line = f"{line} {word}" if line else word
    return [*out, line]


def _cell(text: str, width: int, side: str) -> str:
    return text.rjust(width) if side == "r" else text.ljust(width)
