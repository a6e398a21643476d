"""The directory of a zip file: where each member's bytes lie. Stored members only.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory),
4.3.14 to 4.3.16 (zip64 and end records).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from reshard.errors import ReshardError, source_error
from reshard.storage.window import NBYTES, Window
from reshard.store.regular_file import open_regular

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s4B4H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_NBYTES = 1 << 27
"""Of a directory; about a million members."""
_MAX_NAME = 1024
_DESCRIPTOR = 8
"""Flag of a local header: sizes and checksum stand behind the data."""


@dataclass(frozen=True, slots=True)
class Member:
    """One stored member.

    Args:  byte_offset: absolute position in the file of its first byte.  crc: CRC-32 as stated.
           header_at: absolute position of its own header.
    """

    name: str
    byte_offset: int
    nbytes: int
    crc: int
    header_at: int = 0


def read_zip_directory(
    file: Window, where: str, byte_offset: int, nbytes: int
) -> dict[str, Member]:
    """Members by name, in the order of the directory.

    Args:  file: an open one.  where: what to call it in messages.
           byte_offset, nbytes: the part of the file that is the zip file.
    Raises: ReshardError[not-a-torch-file | truncated | unsupported-zip | bad-zip].
    """
    start, stop = byte_offset, byte_offset + nbytes
    tail_nbytes = min(nbytes, NBYTES)
    tail = file.pread(tail_nbytes, stop - tail_nbytes)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 and tail_nbytes < nbytes:  # a long comment may follow it
        tail_nbytes = min(nbytes, _END.size + 0xFFFF)
        tail = file.pread(tail_nbytes, stop - tail_nbytes)
        at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        head = file.pread(min(nbytes, 4), start)
        if head == b"PK\x03\x04":
            raise source_error(
                "truncated",
                f"{where} ends before its directory",
                notes=[f"{nbytes} bytes; the end record of a zip file is missing"],
                helps=["the file was not written or copied completely; copy it again"],
            )
        raise source_error(
            "not-a-torch-file",
            f"{where} is not a file that `torch.save` wrote",
            notes=[f"{nbytes} bytes, beginning with {head!r}"],
        )
    end_at = stop - tail_nbytes + at
    _refuse_trailing(where, tail[at:])
    count, size, offset, directory_end = _directory(file, where, tail[at:], end_at, start)
    if offset + size != directory_end - start:
        raise _bad(where, f"its directory of {size} bytes at {offset} does not fit")
    if size > _MAX_NBYTES:
        raise _bad(where, f"its directory has {size} bytes; at most {_MAX_NBYTES} are read")
    raw = file.pread(size, start + offset)
    members: dict[str, Member] = {}
    position = 0
    for _ in range(count):
        if position + _CENTRAL.size > len(raw):
            raise _bad(where, "its directory is too short")
        fields = _CENTRAL.unpack_from(raw, position)
        flags, method = fields[5], fields[6]
        crc, packed, unpacked = fields[9:12]
        name_nbytes, extra_nbytes, comment_nbytes = fields[12:15]
        local = fields[18]
        if fields[0] != b"PK\x01\x02":
            raise _bad(where, "its directory has an unknown record")
        begin = position + _CENTRAL.size
        name_raw = raw[begin : begin + name_nbytes]
        extra = raw[begin + name_nbytes : begin + name_nbytes + extra_nbytes]
        position = begin + name_nbytes + extra_nbytes + comment_nbytes
        if position > len(raw):
            raise _bad(where, "its directory is too short")
        try:
            name = name_raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _bad(where, f"a member's name is {name_raw!r}") from None
        packed, unpacked, local = _wide(where, name, extra, packed, unpacked, local)
        if flags & 1 or method:
            raise source_error(
                "unsupported-zip",
                f"member `{name}` of {where} is {'encrypted' if flags & 1 else 'compressed'}",
                notes=["`torch.save` stores its members as they are"],
                helps=["unpack the file and store it again with `zip -0`"],
            )
        if packed != unpacked:
            raise _bad(where, f"member `{name}` has {packed} bytes, and {unpacked}")
        if name in members:
            raise _bad(where, f"member `{name}` is there twice")
        told = (flags & 1, method, crc, packed, unpacked)
        data_at = _local_data(file, where, name, name_raw, start + local, start + offset, told)
        if data_at + unpacked > start + offset:
            raise _bad(where, f"member `{name}` of {unpacked} bytes runs into the directory")
        members[name] = Member(name, data_at, unpacked, crc, start + local)
    if position != len(raw):
        raise _bad(where, f"its directory has {len(raw) - position} bytes more than its members")
    _refuse_overlap(where, members)
    return members


def archive_name(path: str | os.PathLike[str]) -> str:
    """The folder that the first member of a zip file is in; empty where there is none."""
    fd = open_regular(path)
    try:
        head = os.pread(fd, _LOCAL.size + _MAX_NAME, 0)
    finally:
        os.close(fd)
    if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
        return ""
    name = head[_LOCAL.size :][: _LOCAL.unpack_from(head)[9]]
    return name.decode("utf-8", "replace").rpartition("/")[0]


def _refuse_trailing(where: str, tail: bytes) -> None:
    """Refuse what follows the end record and is no comment of its length; zeros do no harm."""
    comment_nbytes = _END.unpack_from(tail)[7]
    rest = tail[_END.size + comment_nbytes :]
    if len(tail) < _END.size + comment_nbytes:
        raise _bad(where, f"its comment of {comment_nbytes} bytes does not fit")
    if rest.strip(b"\0"):
        raise _bad(where, f"{len(rest)} bytes follow its end")


def _directory(
    file: Window, where: str, tail: bytes, end_at: int, start: int
) -> tuple[int, int, int, int]:
    """Records, bytes, and offset of the directory, and the absolute position where it must end.

    The 64-bit record, where there is one, has to say the same as the short one.
    """
    _, *short, _ = _END.unpack_from(tail)
    long = _zip64(file, where, end_at, start)
    if long is None:
        if 0xFFFF in short[:4] or 0xFFFFFFFF in short[4:]:
            raise _bad(where, "its 64-bit end record cannot be found")
        fields, directory_end = short, end_at
    else:
        fields, directory_end = long
        limits = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
        for value, wide, limit in zip(short, fields, limits, strict=True):
            if value not in (limit, wide):
                raise _bad(where, f"its end records disagree: {value}, and {wide}")
    disk, first_disk, disks, count, size, offset = fields
    if disk or first_disk or disks != count:
        raise _bad(where, "it is one of several volumes")
    return count, size, offset, directory_end


def _zip64(file: Window, where: str, end_at: int, start: int) -> tuple[list[int], int] | None:
    """What the 64-bit end record says, in the order of the short one, and where it begins."""
    locator_at = end_at - _LOCATOR64.size
    raw = file.pread(_LOCATOR64.size, locator_at) if locator_at >= start else b""
    if raw[:4] != b"PK\x06\x07":
        return None
    at = start + _LOCATOR64.unpack(raw)[2]
    raw = file.pread(_END64.size, at) if at + _END64.size <= locator_at else b""
    if len(raw) < _END64.size or raw[:4] != b"PK\x06\x06":
        raise _bad(where, "its 64-bit end record cannot be found")
    _, nbytes, _, _, disk, first_disk, disks, count, size, offset = _END64.unpack(raw)
    if at + 12 + nbytes != locator_at:
        raise _bad(where, "its 64-bit end record cannot be found")
    return [disk, first_disk, disks, count, size, offset], at


def _wide(
    where: str, name: str, extra: bytes, packed: int, unpacked: int, local: int
) -> tuple[int, int, int]:
    """Sizes and offset from the zip64 extra field, for those that say 0xFFFFFFFF."""
    at = 0
    while at + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + size]
        at += 4 + size
        if tag != 1:
            continue
        wide = list(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
        try:
            if unpacked == 0xFFFFFFFF:
                unpacked = wide.pop(0)
            if packed == 0xFFFFFFFF:
                packed = wide.pop(0)
            if local == 0xFFFFFFFF:
                local = wide.pop(0)
        except IndexError:
            raise _bad(where, f"member `{name}` has no 64-bit size") from None
    return packed, unpacked, local


def _local_data(
    file: Window,
    where: str,
    name: str,
    name_raw: bytes,
    at: int,
    directory_at: int,
    told: tuple[int, int, int, int, int],
) -> int:
    """Where a member's bytes begin, by its own header, which must not contradict the directory.

    Args:  told: by the directory: encrypted, method, checksum, and sizes.
    """
    raw = file.pread(_LOCAL.size + len(name_raw), at) if 0 <= at < directory_at else b""
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
        raise _bad(where, f"member `{name}` is not where the directory says")
    _, _, flags, method, _, _, crc, packed, unpacked, name_nbytes, extra_nbytes = _LOCAL.unpack(
        raw[: _LOCAL.size]
    )
    if name_nbytes != len(name_raw) or raw[_LOCAL.size :] != name_raw:
        raise _bad(where, f"member `{name}` has another name in its own header")
    sizes = [packed, unpacked]
    if 0xFFFFFFFF in sizes and not flags & _DESCRIPTOR:
        extra = file.pread(extra_nbytes, at + len(raw))
        sizes = list(_wide(where, name, extra, packed, unpacked, 0)[:2])
    own = (flags & 1, method, crc, *sizes)
    unknown = (0, 0xFFFFFFFF) if flags & _DESCRIPTOR else ()
    if own[:2] != told[:2] or any(
        a != b and a not in unknown for a, b in zip(own[2:], told[2:], strict=True)
    ):
        raise _bad(where, f"member `{name}` is another one in its own header")
    return at + len(raw) + int(extra_nbytes)


def _refuse_overlap(where: str, members: dict[str, Member]) -> None:
    end, previous = 0, ""
    for member in sorted(members.values(), key=lambda m: m.header_at):
        if member.header_at < end:
            raise _bad(where, f"members `{previous}` and `{member.name}` overlap")
        end, previous = member.byte_offset + member.nbytes, member.name


def _bad(where: str, why: str) -> ReshardError:
    return source_error(
        "bad-zip",
        f"{where} is not a valid zip file",
        notes=[why],
        helps=["the file is damaged; copy it again"],
    )
