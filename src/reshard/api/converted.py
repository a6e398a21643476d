"""What a conversion did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from reshard import formats
from reshard.plan.fate import Fate
from reshard.plan.report import PlanReport, not_written_lines
from reshard.plan.shown import Shown
from reshard.plan.target import parse_target
from reshard.plan.text import show_count, show_nbytes, show_pace


@dataclass(frozen=True, slots=True)
class Resumed:
    """What an earlier run of the same conversion had written, read again and found right.

    Args:  arrays: pieces of the target.  nbytes: of them.
    """

    arrays: int
    nbytes: int

    def to_text(self) -> str:
        """In a few words."""
        arrays = show_count(self.arrays, "array")
        return f"reused from an interrupted run: {arrays}, {show_nbytes(self.nbytes)}"


@dataclass(frozen=True, slots=True, repr=False)
class Converted(Shown):
    """What `convert` did.

    Args:  path: of the new folder.  report: the plan that was followed.
           seconds: from the first look at the source to the last byte in place.
           dry_run: nothing was written.
           resumed: what an earlier run had written, and was not written again.
           next_step: what to do with the folder.
    """

    path: Path
    report: PlanReport
    seconds: float
    dry_run: bool = False
    resumed: Resumed = field(default_factory=lambda: Resumed(0, 0))
    next_step: str = ""

    def summary(self) -> str:
        """In a line."""
        verb = "would write" if self.dry_run else "wrote"
        return f"{verb} {self.path}, {show_nbytes(self.report.nbytes_written)}"

    def to_text(self) -> str:
        """What was written, and what to do next."""
        report = self.report
        written = written_fates(report)
        missing = not_written_lines(report.fates)
        files = f"{show_nbytes(report.nbytes_written)} in {show_count(len(report.files), 'file')}"
        target = formats.TARGETS[
            parse_target(report.target, formats.TARGETS, formats.described_names()).format
        ]
        lines = [f"wrote a {target.title} to {self.path}"]
        lines.append(f"  {show_count(len(written), 'tensor')}, {files}")
        if self.resumed.arrays:
            lines.append(f"  {self.resumed.to_text()}")
        lines.append(f"  {show_pace(report.nbytes_written, self.seconds)}")
        if missing:
            lines += ["", *missing]
        return "\n".join([*lines, "", f"next: {self.next_step}"])

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        return {
            "path": str(self.path),
            "dry_run": self.dry_run,
            "seconds": round(self.seconds, 3),
            "resumed": {"arrays": self.resumed.arrays, "nbytes": self.resumed.nbytes},
            **self.report.to_json(),
        }


def written_fates(report: PlanReport) -> list[Fate]:
    """The tensors of a source that have a place in the target."""
    return [fate for fate in report.fates if fate.is_written]
