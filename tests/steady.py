"""Answers without what is different each time."""

from __future__ import annotations

import re

_PACE = re.compile(r"in (?:\d+\.\d+ s|\d+ min \d+ s|\d+ h \d+ min)(, \d+(?:\.\d)? [kMGTP]?B/s)?")


def steady(text: str) -> str:
    """A text in which everything took a tenth of a second."""
    return _PACE.sub(lambda found: "in 0.10 s, 4.0 MB/s" if found[1] else "in 0.10 s", text)
