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
    tensors = show_count(found.tensors, "tensor")
    files = f"{show_count(found.files, 'file')}, {show_nbytes(found.nbytes)}"
    if found.is_whole:
        lines = [
            f"intact: {found.left}",
            f"  {tensors} in {files}: every byte as it was written",
        ]
    elif found.checksums:
        lines = [
            f"intact: {found.left}",
            f"  {tensors} in {files}: their bytes have the checksums that",
            "  the files state; no checksum covers the files together",
        ]
    elif len(found.unchecked) == found.holding:
        lines = [
            f"readable: {found.left}",
            f"  {tensors}; every file is whole, and copies agree, but",
            "  the format has no checksums: other bytes would not be noticed",
        ]
    else:
        some = f"{len(found.unchecked):,} of {show_count(found.holding, 'file')} with tensors"
        lines = [
            f"readable: {found.left}",
            f"  {tensors}; every file is whole, copies agree, and checksums that are",
            f"  there are right; {some} have none, e.g.",
            f"  `{found.unchecked[0]}`: other bytes would not be noticed there",
        ]
    return "\n".join([*lines, f"  {pace}"])
