"""Zip files that lie about their members."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from cases_pickle import model
from corpus import Corpus
from forge_zip import Entry, archive, zipped

CORPUS = Corpus("zip")
PICKLE = model()


def zip_file(case: str, data: bytes) -> None:
    """One case: a DeepSpeed checkpoint (stage 0, one rank) whose only file is this."""

    def build(folder: Path) -> None:
        step = folder / "src" / "global_step1"
        step.mkdir(parents=True)
        (step / "mp_rank_00_model_states.pt").write_bytes(data)

    CORPUS.add(case, build)


def entries(**changes: object) -> list[Entry]:
    """The members of a sound file, of which the pickle's is changed."""
    found = archive(PICKLE)
    for key, value in changes.items():
        setattr(found[0], key, value)
    return found


def end_of(data: bytes) -> int:
    """Where the end record begins."""
    return data.rindex(b"PK\x05\x06")


def with_zip64(**lies: int) -> bytes:
    """A sound file with a 64-bit end record, some of whose fields are others."""
    data = zipped(archive(PICKLE))
    at = end_of(data)
    _, _, _, _, count, nbytes, start, _ = struct.unpack("<4s4H2LH", data[at:])
    told = {"count": count, "nbytes": nbytes, "start": start, "at": at, "disk": 0, **lies}
    record = struct.pack(
        "<4sQ2H2L4Q",
        *(b"PK\x06\x06", 44, 45, 45, told["disk"], 0),
        *(told["count"], told["count"], told["nbytes"], told["start"]),
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, told["at"], 1)
    return data[:at] + record + locator + data[at:]


SOUND = zipped(archive(PICKLE))

zip_file("sound", SOUND)
zip_file("sound_with_a_comment", zipped(archive(PICKLE), comment=b"a comment"))
zip_file("sound_with_zeros_behind", SOUND + bytes(1000))
zip_file("sound_in_64_bits", with_zip64())

# ---- no zip file, or not all of it ---------------------------------------------------------------

zip_file("empty", b"")
zip_file("text", b"#!/bin/sh\ntouch canary\n")
zip_file("half", SOUND[: len(SOUND) // 2])
zip_file("without_the_last_byte", SOUND[:-1])
zip_file("only_the_end", SOUND[end_of(SOUND) :])
zip_file("only_zeros", bytes(100_000))
zip_file("legacy_tar", b"pickle".ljust(257, b"\0") + b"ustar".ljust(300, b"\0"))

# ---- the end record ------------------------------------------------------------------------------

zip_file("bytes_behind_the_end", SOUND + b"more")
zip_file("another_end_in_the_comment", zipped(archive(PICKLE), comment=SOUND[end_of(SOUND) :]))
zip_file(
    "another_directory_in_the_comment",
    zipped(archive(PICKLE), comment=zipped([Entry("a/data.pkl", b"N.")])),
)
zip_file("two_ends", zipped(archive(PICKLE), between=SOUND[end_of(SOUND) :]))
zip_file("comment_too_long", SOUND[:-2] + b"\xff\x00")
zip_file("several_volumes", zipped(archive(PICKLE), disk=1))
zip_file("more_members_than_there_are", zipped(archive(PICKLE), count=9))
zip_file("fewer_members_than_there_are", zipped(archive(PICKLE), count=2))
zip_file("directory_behind_the_file", zipped(archive(PICKLE), directory_at=1 << 31))
zip_file("directory_too_long", zipped(archive(PICKLE), directory_nbytes=1 << 31))
zip_file("directory_elsewhere", zipped(archive(PICKLE), directory_at=3))
zip_file("zip64_count_missing", zipped(archive(PICKLE), count=0xFFFF))
zip_file("zip64_disagrees_on_the_count", with_zip64(count=1 << 40))
zip_file("zip64_disagrees_on_the_directory", with_zip64(start=1 << 63))
zip_file("zip64_is_elsewhere", with_zip64(at=0))
zip_file("zip64_is_beyond_the_file", with_zip64(at=1 << 62))
zip_file("zip64_of_another_volume", with_zip64(disk=7))

# ---- members -------------------------------------------------------------------------------------

BOMB = zlib.compress(bytes(50_000_000), 9)[2:-4]
zip_file("compressed_bomb", zipped(entries(data=BOMB, method=8, size=50_000_000, packed=len(BOMB))))
zip_file("unknown_method", zipped(entries(method=99)))
zip_file("encrypted", zipped(entries(flags=1)))
zip_file("larger_than_the_file", zipped(entries(size=1 << 31)))
zip_file("larger_than_4_gigabytes", zipped(entries(size=0xFFFFFFFF, packed=0xFFFFFFFF)))
WIDE = struct.pack("<2H2Q", 1, 16, 1 << 62, 1 << 62)
zip_file("larger_than_all_disks", zipped(entries(size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=WIDE)))
zip_file("runs_over_the_next_member", zipped(entries(flags=8, size=400)))
zip_file("runs_into_the_directory", zipped(entries(flags=8, size=2_000)))
zip_file("two_sizes", zipped(entries(packed=3)))
zip_file("smaller_than_its_header_says", zipped(entries(size=40)))
zip_file("header_of_another_member", zipped(entries(local_name="a/data.bad")))
zip_file("header_elsewhere", zipped(entries(local_at=5)))
zip_file("header_behind_the_directory", zipped(entries(local_at=1 << 31)))
zip_file("checksum_of_another_member", zipped(entries(crc=0)))
zip_file("name_twice", zipped([*archive(PICKLE), Entry("a/data.pkl", b"N.")]))
zip_file("two_archives", zipped([*archive(PICKLE), Entry("b/data.pkl", b"N.")]))
zip_file("no_pickle", zipped(archive(PICKLE)[1:]))
zip_file("pickle_at_the_top", zipped([Entry("data.pkl", PICKLE)]))
zip_file("absolute_names", zipped([Entry("/data.pkl", PICKLE), Entry("/data/0", bytes(16))]))
zip_file("names_lead_out", zipped([Entry("../data.pkl", PICKLE), Entry("../data/0", bytes(16))]))
zip_file("name_is_no_text", SOUND.replace(b"a/version", b"a/\xff\xfe\xfd\xfc\xfb\xfa\xf9"))
zip_file("name_with_escape_sequences", zipped([*archive(PICKLE), *[Entry("a/\x1b[2Jx", b"")] * 2]))
zip_file("big_endian", zipped([*archive(PICKLE)[:1], Entry("a/byteorder", b"big")]))
zip_file("byte_order_that_is_long", zipped([*archive(PICKLE)[:1], Entry("a/byteorder", b"x" * 99)]))


def nested() -> bytes:
    """A member whose bytes are the header and the bytes of another."""
    inner = zipped([Entry("a/data/0", bytes(16))])
    header = inner[: inner.index(b"PK\x01\x02")]
    outer = Entry("a/data/1", header)
    found = [*archive(PICKLE)[:1], outer]
    zipped(found)
    within = outer.at + 30 + len("a/data/1")
    return zipped([*found, Entry("a/data/0", bytes(16), local_at=within)])


zip_file("member_within_a_member", nested())


@CORPUS.case()
def sparse_directory(folder: Path) -> None:
    """A file that claims terabytes, of which the disk holds nothing."""
    step = folder / "src" / "global_step1"
    step.mkdir(parents=True)
    nbytes = 1 << 42
    head = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 8, 0, 0, 0, 0, 0, 0, len("a/data.pkl"), 0)
    extra = struct.pack("<2H2Q", 1, 16, nbytes, nbytes)
    directory = (
        struct.pack(
            "<4s4B4H3L5H2L",
            *(b"PK\x01\x02", 45, 0, 45, 0, 8, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF),
            *(len("a/data.pkl"), len(extra), 0, 0, 0, 0, 0),
        )
        + b"a/data.pkl"
        + extra
    )
    start = 30 + len("a/data.pkl") + nbytes
    at = start + len(directory)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory), start)
    end = (
        record
        + struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    )
    with (step / "mp_rank_00_model_states.pt").open("wb") as file:
        file.write(head + b"a/data.pkl")
        file.seek(start)
        file.write(directory + end)
