"""How tensors are shared out among files: one sharded safetensors set for each state kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from reshard.errors import target_error
from reshard.plan.arrangement import Whole
from reshard.run.states import EXTRA, MOMENTS, PARAM, STEP, WEIGHTS
from reshard.storage.index import SUFFIX, write_index
from reshard.storage.safetensors import layout_header

MAX_FILE_NBYTES = 5_000_000_000
"""Tensor bytes of one file, unless it holds a single tensor that is larger."""

_STATES = (*WEIGHTS, *MOMENTS, STEP)
_STEMS = {PARAM: "model", EXTRA: "extra/tensors"}
_PLAIN = re.compile(r"[A-Za-z0-9_-]")
_METADATA = {"format": "pt"}  # what loaders of Hugging Face models look for
_MAX_TENSORS = 100_000  # of one file, so that its header keeps well below the format's limit


@dataclass(frozen=True, slots=True)
class SetFile:
    """One safetensors file of the output.

    Args:  path: relative.  head: its first bytes, the safetensors header.
           offsets: absolute byte offset of each tensor, by name.  nbytes: of the whole file.
           tensors: in the order of their offsets.
    """

    path: str
    head: bytes
    offsets: Mapping[str, int]
    nbytes: int
    tensors: tuple[Whole, ...]


@dataclass(frozen=True, slots=True)
class StateSet:
    """All files of one state kind.

    Args:  stem: what their names start with.
    """

    state: str
    stem: str
    files: tuple[SetFile, ...]

    @property
    def index_path(self) -> str:
        """Where its index lies."""
        return self.stem + SUFFIX

    def index(self) -> bytes:
        """Its index: tensor name to file name."""
        weight_map = {
            item.name: file.path.rpartition("/")[2] for file in self.files for item in file.tensors
        }
        total = sum(nbytes(item) for file in self.files for item in file.tensors)
        return write_index(weight_map, {"total_size": total})


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key by which `layers.2` comes before `layers.10`."""
    runs = re.split(r"([0-9]+)", name)
    return tuple(
        (1, int(run), run) if position % 2 else (0, 0, run) for position, run in enumerate(runs)
    )


def nbytes(whole: Whole) -> int:
    """Bytes of a whole tensor."""
    return prod(whole.shape) * whole.dtype.itemsize


def stem_of(state: str) -> str:
    """What the file names of a state kind start with.

    A state kind may be any text that a checkpoint holds, so all but plain characters are written as
    `%` and the two hex digits of each UTF-8 byte.
    """
    if state in _STEMS:
        return _STEMS[state]
    stem = "".join(
        char
        if _PLAIN.fullmatch(char)
        else "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
        for char in state
    )
    return stem.replace("m", "%6D", 1) if stem == "model" else stem or "%"


def share_out(wholes: Sequence[Whole], max_file_nbytes: int = MAX_FILE_NBYTES) -> list[StateSet]:
    """The sharded sets of some whole tensors, one a state kind.

    Neither the order of `wholes` nor anything but their names, types, and shapes matters.

    Args:  max_file_nbytes: tensor bytes of one file; a larger tensor gets a file of its own.
    Raises: ReshardError[tensor-name].
    """
    _refuse_names(wholes)
    members: dict[str, list[Whole]] = {}
    for whole in wholes:
        members.setdefault(whole.state, []).append(whole)
    order = sorted(members, key=lambda s: (_STATES.index(s) if s in _STATES else len(_STATES), s))
    return [_state_set(state, members[state], max_file_nbytes) for state in order]


def _refuse_names(wholes: Sequence[Whole]) -> None:
    for whole in wholes:
        try:
            whole.name.encode("utf-8")
            sound = whole.name not in ("", "__metadata__")
        except UnicodeEncodeError:
            sound = False
        if not sound:
            raise target_error(
                "tensor-name",
                f"no safetensors file can hold a tensor of the name {whole.name!r}",
                notes=[f"state `{whole.state}`"],
                helps=["rename it where the checkpoint is saved"],
            )


def _state_set(state: str, wholes: Sequence[Whole], max_file_nbytes: int) -> StateSet:
    groups: list[list[Whole]] = []
    room = 0
    for whole in sorted(wholes, key=lambda item: natural(item.name)):
        if not groups or nbytes(whole) > room or len(groups[-1]) == _MAX_TENSORS:
            groups.append([])
            room = max_file_nbytes
        groups[-1].append(whole)
        room -= nbytes(whole)
    stem = stem_of(state)
    return StateSet(
        state,
        stem,
        tuple(
            _set_file(f"{stem}-{number:05}-of-{len(groups):05}.safetensors", group)
            for number, group in enumerate(groups, 1)
        ),
    )


def _set_file(path: str, wholes: Sequence[Whole]) -> SetFile:
    tensors = {item.name: (item.dtype, item.shape) for item in wholes}
    head, offsets, total = layout_header(tensors, _METADATA)
    tensors_in_order = sorted(wholes, key=lambda item: (offsets[item.name], nbytes(item)))
    return SetFile(path, head, offsets, total, tuple(tensors_in_order))
