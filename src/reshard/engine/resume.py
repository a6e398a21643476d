"""Proves what an earlier run has written: its bytes are read again, and their digests taken.

Where a file of the source was replaced or written since, so are the bytes that it gives now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from reshard.engine.compare import digest_array
from reshard.engine.fingerprint import files_of
from reshard.plan.output import Written
from reshard.plan.plan import Placed, Plan
from reshard.store.digest import crc32, new_digest
from reshard.store.journal import Record
from reshard.store.output import OutputFolder
from reshard.store.source_files import SourceFiles

_CHUNK = 1 << 20


def go_on(
    plan: Plan,
    folder: OutputFolder,
    sizes: Mapping[str, int],
    threads: int,
    source: SourceFiles,
) -> dict[int, Written]:
    """What need not be written again, by position in the plan; the folder goes on from there.

    Between arrays, a file is made zero again, so that it is what it would be in a new one.

    Args:  sizes: of all files that are known beforehand, in bytes.
    Raises: ReshardError[output-foreign | output-unwritable | disk-full], and as `digest_array`.
    """
    claims = [
        (record, plan.placed[index])
        for index, record in sorted(folder.claims.items())
        if index < len(plan.placed)
    ]
    kept = {p.file for _, p in claims}
    kept = {name for name in kept if folder.find_kept(name, sizes[name])}
    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = pool.map(
            lambda claim: _written(claim[0], claim[1], kept, folder, source),
            claims,
        )
        proved = {
            record.index: (record, written)
            for (record, _), written in zip(claims, found, strict=True)
            if written is not None
        }
    files = {written.placed.file for _, written in proved.values()}
    nbytes = sum(written.placed.array.spec.nbytes for _, written in proved.values())
    folder.go_on([record for record, _ in proved.values()], files, nbytes)
    for name, placed in _by_file(plan, files).items():
        for start, stop in _gaps(placed, sizes[name]):
            for at in range(start, stop, _CHUNK):
                folder.write(name, at, bytes(min(_CHUNK, stop - at)))
    return {index: written for index, (_, written) in proved.items()}


def _written(
    record: Record,
    placed: Placed,
    kept: Collection[str],
    folder: OutputFolder,
    source: SourceFiles,
) -> Written | None:
    """What is known of an array whose bytes are there; bytes that cannot be read are not.

    An array that is made of a file of the source that changed is made once more to prove it.
    """
    if placed.file not in kept:
        return None
    digest, crc = new_digest(), 0
    at, stop = placed.byte_offset, placed.byte_offset + placed.array.spec.nbytes
    buffer = memoryview(bytearray(min(_CHUNK, max(stop - at, 1))))
    while at < stop:
        try:
            got = folder.read(placed.file, at, buffer[: min(len(buffer), stop - at)])
        except OSError:
            return None
        if not got:
            return None
        digest.update(buffer[:got])
        if placed.crc:
            crc = crc32(buffer[:got], crc)
        at += got
    if digest.text() != record.digest:
        return None
    is_doubtful = folder.changed and any(name in folder.changed for name in files_of(placed))
    if is_doubtful and digest_array(placed.array, source) != record.digest:
        return None
    return Written(placed, record.digest if placed.digest else None, crc if placed.crc else None)


def _by_file(plan: Plan, files: Collection[str]) -> dict[str, list[Placed]]:
    out: dict[str, list[Placed]] = {}
    for placed in plan.placed:
        if placed.file in files:
            out.setdefault(placed.file, []).append(placed)
    return out


def _gaps(placed: Sequence[Placed], nbytes: int) -> Iterable[tuple[int, int]]:
    """Ranges of a file, in bytes, that no array covers."""
    at = 0
    for item in sorted(placed, key=lambda item: item.byte_offset):
        if at < item.byte_offset:
            yield at, item.byte_offset
        at = max(at, item.byte_offset + item.array.spec.nbytes)
    if at < nbytes:
        yield at, nbytes
