"""What a verification found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.api.mismatch_text import mismatch_lines
from reshard.errors import render_all
from reshard.plan.text import show_count, show_nbytes, show_pace

if TYPE_CHECKING:
    from reshard.api.verification import Verification


def verification_text(found: Verification) -> str:
    """The answer of `reshard verify`, 80 columns wide."""
    if found.right is None:
        told = f"\n\n{render_all(found.warnings)}" if found.warnings else ""
        return _one(found) + told
    if found.ok:
        what = f"{show_count(found.tensors, 'tensor')}, {show_nbytes(found.nbytes)}"
        lines = [f"equal bit for bit: {what}"]
    else:
        lines = [f"different: {len(found.mismatches):,} of {show_count(found.tensors, 'tensor')}"]
    lines += [f"  A  {found.left}", f"  B  {found.right}"]
    if found.padded:
        lines.append(
            f"  {show_count(found.padded, 'tensor')} with other padding of the vocabulary: rows of "
            "zeros on one side"
        )
    lines.append(f"  {show_pace(2 * found.nbytes, found.seconds)}")
    lines += mismatch_lines(found.mismatches)
    return "\n".join(lines)


def _one(found: Verification) -> str:
    pace = show_pace(found.nbytes, found.seconds)
    if found.faults:
        count = show_count(len(found.faults), "fault")
        return f"damaged: {count} in {found.left}\n  {pace}\n\n{render_all(found.faults)}"
    if not found.checksums:
        return (
            f"readable: {found.left}\n"
            f"  {show_count(found.tensors, 'tensor')}; every file is whole, and copies agree, but\n"
            "  the format has no checksums: other bytes would not be noticed\n"
            f"  {pace}"
        )
    files = f"{show_count(found.files, 'file')}, {show_nbytes(found.nbytes)}"
    return (
        f"intact: {found.left}\n"
        f"  {show_count(found.tensors, 'tensor')} in {files}: every byte as it was written\n"
        f"  {pace}"
    )
