"""The table of what the interop run has shown: framework, version, read, write, resume.

Tests say it with `@pytest.mark.covers(KEY, "read", "write", "resume")`, KEY being of `ROWS`. Read:
what the framework wrote is read. Write: it loads what reshard wrote. Resume: it goes on from there,
with equal states and next steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "interop.md"
BESIDE = ROOT / "tests" / "interop" / "beside"
WAYS = ("read", "write", "resume")
HEAD = "| framework | version | read | write | resume |\n|---|---|---|---|---|\n"


@dataclass(frozen=True, slots=True)
class Row:
    """A framework that the run starts.

    Args:  package: its name on the package index.  release: the list of `tests/interop/beside` that
           it is installed with; where empty, `constraints.txt`.
    """

    title: str
    package: str
    release: str = ""

    @property
    def pinned(self) -> str:
        """The version that is installed."""
        path = BESIDE / f"{self.release}.txt" if self.release else ROOT / "constraints.txt"
        found = re.search(rf"^{self.package}==(\S+)$", path.read_text("utf-8"), re.M)
        assert found, f"{path} does not pin {self.package}"
        return found[1]


ROWS = {
    "deepspeed": Row("DeepSpeed", "deepspeed"),
    "trainer": Row("transformers' Trainer with DeepSpeed", "transformers"),
    "transformers": Row("transformers", "transformers"),
    "megatron-core": Row("Megatron-core", "megatron-core"),
    "megatron-core-0.19": Row("Megatron-core", "megatron-core", "megatron-core-0.19"),
    "torch": Row("PyTorch DCP, FSDP", "torch"),
    "accelerate": Row("accelerate", "accelerate"),
    "torchtitan": Row("torchtitan", "torchtitan", "torchtitan"),
    "olmo-core": Row("OLMo-core", "ai2-olmo-core", "olmo-core"),
}
NOT_RUN = (
    ("PyTorch DCP, FSDP", "2.15", "it installs with gigabytes of CUDA libraries"),
    ("nanotron", "2411b02", "[recorded by hand](formats/nanotron.md#resumed-by-nanotron)"),
)
"""Framework, version, and the reason."""


def note(item: pytest.Item) -> None:
    """Let the reports of a test say what it covers."""
    for mark in item.iter_markers("covers"):
        key, *ways = mark.args
        assert key in ROWS, key
        assert set(ways) <= set(WAYS), ways
        item.user_properties.append(("covers", [key, *ways]))


def table(reports: Iterable[Any]) -> str:
    """The table, of the reports of a run."""
    failed: dict[tuple[str, str], bool] = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == "covers":
                for way in value[1:]:
                    cell = (value[0], way)
                    failed[cell] = failed.get(cell, False) or report.outcome != "passed"
    lines = [_line(key, failed) for key in ROWS]
    lines += [f"| {title} | {version} | not run: {why} | | |\n" for title, version, why in NOT_RUN]
    return HEAD + "".join(lines)


def _line(key: str, failed: Mapping[tuple[str, str], bool]) -> str:
    row = ROWS[key]
    words = {None: "no test", True: "FAILED", False: "yes"}
    cells = [words[failed.get((key, way))] for way in WAYS]
    return f"| {row.title} | {row.pinned} | {' | '.join(cells)} |\n"


def shown() -> str:
    """The table of the page."""
    text = PAGE.read_text("utf-8")
    start = text.index(HEAD)
    return text[start : text.find("\n\n", start) + 1]


def write(path: Path, made: str, *, update: bool) -> str:
    """Write the table of a whole run; what is wrong with that of the page, if anything is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made, encoding="utf-8")
    if made == shown():
        return ""
    if update and "FAILED" not in made:
        PAGE.write_text(PAGE.read_text("utf-8").replace(shown(), made), encoding="utf-8")
        return ""
    return f"{PAGE.relative_to(ROOT)} has another table than {path}: see there, or --update-golden"
