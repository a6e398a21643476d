"""The messages that the bad inputs get: one file a group, `--update-golden` rewrites them."""

from __future__ import annotations

import re
from pathlib import Path

EXPECTED = Path(__file__).parent / "expected"


class Expected:
    """What every case of every group must say."""

    def __init__(self, update: bool) -> None:
        self._update = update
        self._known: dict[str, dict[str, str]] = {}
        self._seen: dict[str, dict[str, str]] = {}

    def check(self, group: str, name: str, text: str) -> None:
        """Compare with the table of the group."""
        self._seen.setdefault(group, {})[name] = text
        if self._update:
            return
        known = self._known.get(group)
        if known is None:
            known = self._known[group] = _read(EXPECTED / f"{group}.txt")
        assert name in known, f"{name} is not in expected/{group}.txt; make it, --update-golden"
        assert text == known[name]

    def names(self, group: str) -> set[str]:
        """Every case that the table of a group has."""
        return set(_read(EXPECTED / f"{group}.txt"))

    def write(self) -> None:
        """Put what was seen into the tables."""
        for group, seen in self._seen.items() if self._update else ():
            path = EXPECTED / f"{group}.txt"
            texts = {**(_read(path) if path.is_file() else {}), **seen}
            path.write_text(
                "\n".join(f"== {name}\n{texts[name]}\n" for name in sorted(texts)),
                encoding="utf-8",
            )


def _read(path: Path) -> dict[str, str]:
    parts = re.split(r"^== (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text.strip("\n") for name, text in zip(parts[1::2], parts[2::2], strict=True)}
