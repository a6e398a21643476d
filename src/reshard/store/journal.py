"""What a run notes of the arrays that it has written, so that a later one can go on from them.

A text file.  Each line is the crc32 of a JSON document, a space, and the document.  The first
says what is made, every other what is done; lines are only ever added.  A record is a claim: who
goes on from it reads the bytes again and takes their digest.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import threading
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FORMAT = 1
NEW = "journal.new"
"""What a journal is called until its first line is durable."""

_MAX_NBYTES = 1 << 30
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Making:
    """What a run makes; another run goes on only from one that is equal.

    Args:  program: with its version.  target: as `--to` said it.
           plan: a digest of it and of the source's files.
           files: that are known beforehand, with their sizes in bytes.
           sources: files of the source, with what changes when one is replaced or written.  Where
                    it is not equal, what was made of that file has to be proved by the file.
    """

    program: str
    target: str
    plan: str
    files: Mapping[str, int]
    sources: Mapping[str, str] = field(default_factory=dict)

    def changed(self, other: Making) -> frozenset[str]:
        """The files of the source that may not be what they were."""
        return frozenset(
            name for name, identity in other.sources.items() if self.sources.get(name) != identity
        )

    def difference(self, other: Making) -> str:
        """Why this is not what is wanted, in words; empty if it is."""
        if self.program != other.program:
            return f"it was written by {self.program}, and this is {other.program}"
        if self.target != other.target:
            return f"it was written for `{self.target}`"
        if self.plan != other.plan or self.files != other.files:
            return "the source or the options of the conversion have changed"
        return ""


@dataclass(frozen=True, slots=True)
class Record:
    """An array that was written.

    Args:  index: in the plan.  digest: of its bytes.
    """

    index: int
    digest: str


@dataclass(frozen=True, slots=True)
class Notes:
    """A journal as it was found.

    Args:  making: None where the first line cannot be read.  records: by index.
           files: every file that may have been made.
           committed: inode of the folder that was being put in place.
           fault: what is wrong with it, in words; a last line that is not whole is no fault.
    """

    making: Making | None
    records: Mapping[int, Record]
    files: frozenset[str]
    committed: int | None
    fault: str


class Journal:
    """A journal that is being written; safe to use from several threads.

    A failure to add a record is no failure of the run: there is less to go on from, that is all.
    """

    def __init__(self, path: Path, fd: int, nbytes: int) -> None:
        self.path = path
        self.nbytes_done = 0
        self._fd = fd
        self._good = nbytes
        self._is_broken = False
        self._lock = threading.Lock()

    @staticmethod
    def create(path: Path, making: Making, records: Iterable[Record] = ()) -> Journal:
        """Begin a journal, in place of one that may be there.

        Args:  records: of an earlier run, that were proved.
        Raises: OSError.
        """
        new = path.with_name(NEW)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        head: dict[str, object] = {
            "journal": FORMAT,
            "program": making.program,
            "target": making.target,
        }
        head |= {"plan": making.plan, "files": dict(making.files)}
        text = _line(head | {"sources": dict(making.sources)})
        values = [_value(item) for item in records]
        if values:
            text += _line({"done": values})
        fd = os.open(new, _FLAGS | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write(fd, text)
            os.fsync(fd)
            os.rename(new, path)
        except BaseException:
            os.close(fd)
            raise
        return Journal(path, fd, len(text))

    def add(self, records: Iterable[Record], nbytes: int) -> None:
        """Note arrays that were written.

        Args:  nbytes: of them.
        """
        line = _line({"done": [_value(item) for item in records]})
        with self._lock:
            if self._is_broken:
                return
            try:
                _write(self._fd, line)
            except OSError:
                self._is_broken = True
                return
            self._good += len(line)
            self.nbytes_done += nbytes

    def add_file(self, name: str) -> None:
        """Note a file before it is made; durable.

        Raises: OSError.
        """
        self._add_surely({"file": name})

    def void(self, name: str) -> None:
        """Note that nothing in a file may be trusted; durable.

        Raises: OSError.
        """
        self._add_surely({"void": name})

    def commit(self, inode: int) -> None:
        """Note that all is there, in a folder with this inode, and only has to be put in place.

        Raises: OSError.
        """
        self._add_surely({"commit": inode})

    def sync(self) -> None:
        """Make the records durable.

        Raises: OSError.
        """
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _add_surely(self, document: Mapping[str, object]) -> None:
        line = _line(document)
        with self._lock:
            if self._is_broken:
                os.ftruncate(self._fd, self._good)
            self._is_broken = True
            _write(self._fd, line)
            os.fsync(self._fd)
            self._good += len(line)
            self._is_broken = False


def read_journal(path: Path) -> Notes:
    """What a journal says.

    Raises: OSError, also for what is no ordinary file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        data = file.read(_MAX_NBYTES)
    lines = data.split(b"\n")
    documents: list[dict[str, object]] = []
    fault = ""
    for number, line in enumerate(lines[:-1]):  # what follows the last line end is not whole
        document = _document(line)
        if document is None:
            if number < len(lines) - 2:
                fault = f"line {number + 1} of its journal is damaged"
            break
        documents.append(document)
    making = _making(documents[0]) if documents else None
    if making is None:
        return Notes(None, {}, frozenset(), None, fault or "its journal cannot be read")
    return _notes(making, documents[1:], fault)


def _notes(making: Making, documents: Iterable[Mapping[str, object]], fault: str) -> Notes:
    records: dict[int, Record] = {}
    files, void = set(making.files), set()
    committed = None
    for document in documents:
        arrays, file = document.get("done"), document.get("file")
        if isinstance(arrays, list):
            for item in arrays:
                record = _record(item)
                if record is None:
                    fault = fault or "its journal contains an invalid record"
                else:
                    records[record.index] = record
        elif isinstance(file, str):
            files.add(file)
        elif isinstance(document.get("void"), str):
            void.add(document["void"])
        elif isinstance(document.get("commit"), int):
            committed = document["commit"]
    if void:
        fault = fault or f"`{sorted(map(str, void))[0]}` could not be flushed to disk"
    assert committed is None or isinstance(committed, int)
    return Notes(making, records, frozenset(files), committed, fault)


def _line(document: Mapping[str, object]) -> bytes:
    data = json.dumps(document, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _document(line: bytes) -> dict[str, object] | None:
    crc, _, data = line.partition(b" ")
    if crc != b"%08x" % zlib.crc32(data):
        return None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _making(head: Mapping[str, object]) -> Making | None:
    texts = [head.get(key) for key in ("program", "target", "plan")]
    files, sources = head.get("files"), head.get("sources")
    if head.get("journal") != FORMAT or not isinstance(files, dict):
        return None
    if not all(isinstance(text, str) for text in texts):
        return None
    if not all(isinstance(nbytes, int) for nbytes in files.values()):
        return None
    if not isinstance(sources, dict):
        sources = {}
    return Making(str(texts[0]), str(texts[1]), str(texts[2]), files, sources)


def _value(record: Record) -> tuple[int, str]:
    return record.index, record.digest


def _record(value: object) -> Record | None:
    if not (isinstance(value, list) and len(value) == 2):
        return None
    index, digest = value
    if not (isinstance(index, int) and isinstance(digest, str) and index >= 0):
        return None
    return Record(index, digest)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        count = os.write(fd, view)
        if not count:
            raise OSError("nothing was written")
        view = view[count:]
