"""A digest of everything that decides the bytes of an output: the plan, and the source's files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reshard.plan.output import FileBytes
from reshard.plan.plan import Copy, Placed, Plan, Region
from reshard.plan.runs import FragmentRuns
from reshard.store.digest import digest_bytes, new_digest
from reshard.store.source_files import SourceFiles

ENDS_NBYTES = 64 << 10
"""Bytes at the beginning and at the end of a source's file that are looked at; a zip archive has
the checksums of all that it holds at its end."""


def identities(plan: Plan, files: SourceFiles) -> dict[str, str]:
    """Every file that the catalog lists or the plan reads, with what tells whether it is the same.

    Raises: ReshardError[source-changed | source-unreadable].
    """
    names = dict.fromkeys((*files.known, *_files(plan)))
    return {name: files.identity(name) for name in names}


def fingerprint(plan: Plan, head: Iterable[FileBytes], files: SourceFiles) -> str:
    """A digest of a plan and of the files that it reads.

    A file of the source may be the same if its name, size, time of writing, and both its ends are;
    `identities` tells whether it is.

    Raises: ReshardError[source-truncated | source-changed | source-unreadable].
    """
    digest = new_digest()
    runs: dict[FragmentRuns, str] = {}
    for placed in plan.placed:
        digest.update(repr(_placed(placed, runs)).encode())
    for item in head:
        digest.update(repr((item.file, item.byte_offset, digest_bytes(item.data))).encode())
    for name in _files(plan):
        digest.update(repr((name, *_file(name, files))).encode())
    return digest.text()


def _files(plan: Plan) -> dict[str, None]:
    """The files that a plan reads, in its order."""
    return {name: None for placed in plan.placed for name in files_of(placed)}


def files_of(placed: Placed) -> Iterator[str]:
    """The files that an array is made from."""
    for box in placed.array.boxes:
        yield from box.files


def _placed(placed: Placed, runs: dict[FragmentRuns, str]) -> tuple[object, ...]:
    spec = placed.array.spec
    return (
        *(placed.file, placed.byte_offset, placed.digest, placed.crc),
        *(spec.label, spec.state, spec.dtype.value, spec.numel),
        *(_box(box, runs) for box in placed.array.boxes),
    )


def _box(box: Copy | Region, runs: dict[FragmentRuns, str]) -> tuple[object, ...]:
    """Args:  runs: digests of the fragments of local tensors."""
    if isinstance(box, Copy):
        return _copy(box)
    return (
        box.mode,
        *(
            (
                *(part.dtype.value, _digest(fragments, runs)),
                *(move.shape, move.src_offset, move.src_strides),
                *(move.dst_offset, move.dst_strides),
            )
            for part, move, fragments in zip(box.parts, box.moves, box.runs, strict=True)
        ),
    )


def _digest(fragments: FragmentRuns, runs: dict[FragmentRuns, str]) -> str:
    known = runs.get(fragments)
    if known is None:
        known = runs[fragments] = digest_bytes(repr(fragments.fragments).encode())
    return known


def _copy(copy: Copy) -> tuple[object, ...]:
    return (
        copy.mode,
        *(
            (
                *(origin.file, origin.byte_offset, origin.literal, origin.dtype.value),
                origin.upper,
                *(origin.move.shape, origin.move.src_offset, origin.move.src_strides),
                *(origin.move.dst_offset, origin.move.dst_strides),
            )
            for origin in copy.origins
        ),
    )


def _file(name: str, files: SourceFiles) -> tuple[object, ...]:
    nbytes, mtime_ns = files.hold(name)
    count = min(nbytes, ENDS_NBYTES)
    ends = []
    for byte_offset in (0, nbytes - count):
        data = bytearray(count)
        files.pread_into(name, byte_offset, memoryview(data))
        ends.append(digest_bytes(data))
    return nbytes, mtime_ns, *ends
