"""A catalog: everything that a checkpoint stores and where it lies, without any data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from reshard.algebra.box import Box
from reshard.dtypes import DType
from reshard.errors import Diagnostic
from reshard.language.layout import Layout
from reshard.plan.shown import Plain
from reshard.run.run import Run

Coord = tuple[tuple[str, int], ...]
"""A position on the mesh: (axis, index) pairs in mesh order; an axis left out does not vary."""


def show_coord(coord: Coord) -> str:
    """`tp=1, pp=0`, or `every rank` for a coordinate that varies on no axis."""
    return ", ".join(f"{axis}={index}" for axis, index in coord) or "every rank"


@dataclass(frozen=True, slots=True)
class Upper:
    """The upper halves of fp32 numbers of which a fragment holds the lower ones: bf16 weights.

    A weight is the upper 16 bits of its master, and one more where the lower ones, taken as a
    signed number, are negative.

    Args:  file, byte_offset: of the weight of the fragment's first element.
           dtype: in which the lower halves are stored: int16, or fp32 numbers of the same values.
    """

    file: str
    byte_offset: int
    dtype: DType


@dataclass(frozen=True, slots=True)
class Fragment:
    """A run of a local tensor's elements as it lies in a file.

    Args:  start: flat row-major index, in the local tensor, of the first element of the run.
           numel: elements of the run.
           file: path relative to the root of the checkpoint.
           byte_offset: absolute position in the file of the first element.
           strides: None when the run is dense; else element strides of a whole local tensor that is
                    not stored row-major (then start is 0 and numel is all of it).
           literal: the bytes themselves when they are no part of a file as raw elements (a Python
                    number in a pickle); byte_offset is then 0.
           box: not a run but this box of the local tensor, by itself: row-major, or with `strides`
                of the box; start is then 0 and numel the volume of the box.
           upper: what each element is joined with; both are then dense and in one order.
    """

    start: int
    numel: int
    file: str
    byte_offset: int
    strides: tuple[int, ...] | None = None
    literal: bytes | None = None
    box: Box | None = None
    upper: Upper | None = None


@dataclass(frozen=True, slots=True)
class LocalTensor:
    """One tensor of one state kind on one coordinate of the model-parallel mesh.

    Args:  name: as stored, with local indices where the format numbers locally.
           state: state kind (`param`, `master`, `exp_avg`, `exp_avg_sq`, `step`, ...).
           coord: on the axes that cut or copy tensors (tp, pp, ep); data-parallel partitions are
                  not coordinates: their runs are the fragments.
           shape: local shape, padding included.
           fragments: disjoint, together the whole tensor, ascending by start; either runs, or
                      boxes.
    """

    name: str
    state: str
    coord: Coord
    shape: tuple[int, ...]
    dtype: DType
    fragments: tuple[Fragment, ...]

    @property
    def numel(self) -> int:
        """Elements of the local tensor."""
        return prod(self.shape)

    @property
    def file(self) -> str:
        """A file that holds some of it, for messages."""
        return self.fragments[0].file if self.fragments else "(no file)"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the source as it was when it was catalogued.

    Args:  path: relative to the root.  mtime_ns: as the file system tells.
    """

    path: str
    nbytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Left(Plain):
    """Something of the source that is neither read nor kept.

    Args:  file: path relative to the root; it may begin with `..`, for what lies above.
           key: which entry of the file, its parts joined by dots; "" is the whole file.
           why: the reason, as a sentence that follows a colon.
    """

    file: str
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Catalog:
    """A whole source.

    Args:  format: name of the format (`deepspeed`, `universal`, ...).  version: of the writer.
           root: absolute path of the folder that relative file names start from.
           mesh: axis -> size, data-parallel axes included.
           tensors: local tensors of all states and coordinates.
           layout: how they map, as the checkpoint says itself; `reshard layout show` prints it.
           training: what is known of the run besides tensors.
           config: the model's configuration where the source has it (JSON).
           aliases: other names of a parameter (tied weights): alias -> stored name.
           buffers: names of `param` tensors that are buffers, not parameters.
           frozen: names of parameters that are not trained.
           padded: names of tensors whose last rows may be padding, which belongs to no token.
           files: everything that was read.
           side_files: those of `files` that go along as they are (a tokenizer): the name under
                       which each does, and its path.
           nearby: what lies around and is no part of it, in a few words: logs, other steps.
           left: files, and keys in files, that are neither read nor kept, with the reason of each.
           oddities: warnings found on the way.
           names_of: the format whose own names the tensors have, as far as where they came from
                     shows it; "" where nothing does.
           withheld: why states other than the weights are not listed, though they are stored; an
                     error for everyone who asks for more than the weights.
    """

    format: str
    version: str
    root: str
    mesh: Mapping[str, int]
    tensors: tuple[LocalTensor, ...]
    layout: Layout
    training: Run
    config: Mapping[str, object] | None = None
    aliases: Mapping[str, str] | None = None
    buffers: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    padded: tuple[str, ...] = ()
    files: tuple[SourceFile, ...] = ()
    side_files: Mapping[str, str] = field(default_factory=dict)
    nearby: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left: tuple[Left, ...] = ()
    oddities: tuple[Diagnostic, ...] = ()
    names_of: str = ""
    withheld: tuple[Diagnostic, ...] = ()

    def with_warnings(self, warnings: Iterable[Diagnostic]) -> Catalog:
        """The catalog with further warnings."""
        return replace(self, oddities=(*self.oddities, *warnings))
