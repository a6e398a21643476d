"""A checkpoint that is open: what it holds, and the bytes of any part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reshard.api.arguments import checked
from reshard.api.inspection import Inspection, inspect_source
from reshard.api.request import PathLike, Request
from reshard.api.source import OpenedSource, open_source
from reshard.dtypes import DType
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.plan.arrangement import Whole
from reshard.run.run import Run
from reshard.run.states import EXTRA, PARAM

if TYPE_CHECKING:
    from numpy.typing import NDArray

Index = int | slice
"""What selects along one dimension: an index, or a range with any step above 0."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One whole tensor of a checkpoint.

    Args:  shape: whole, without padding.  dtypes: by the states that are stored of it.
           axes: what each dimension is made of, in the words of the layout.
    """

    name: str
    shape: tuple[int, ...]
    dtypes: Mapping[str, DType]
    axes: tuple[str, ...]


class Checkpoint:
    """A checkpoint whose files were looked at and proved to hold everything; no tensor was read.

    Made by `reshard.open`.
    """

    def __init__(self, source: OpenedSource) -> None:
        self._source = source

    def __repr__(self) -> str:
        return f"<{self.format} checkpoint at {self.path}, {len(self.tensors)} tensors>"

    def _repr_html_(self) -> str:
        """What `inspect` says, for a notebook."""
        return self.inspect()._repr_html_()

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """What is unusual about it, with its consequence."""
        return self._source.catalog.oddities

    @property
    def path(self) -> Path:
        """As it was given to `open`."""
        return self._source.path

    @property
    def format(self) -> str:
        """`deepspeed`, `megatron`, `universal`, ..."""
        return self._source.catalog.format

    @property
    def mesh(self) -> Mapping[str, int]:
        """Size of every axis of the grid of ranks that wrote it."""
        return dict(self._source.arrangement.mesh)

    @property
    def layout(self) -> str:
        """The layout through which it was read, as UCL."""
        return self._source.layout_text

    @property
    def training(self) -> Run:
        """What it knows besides tensors: iteration, parameter groups, schedulers, ..."""
        return self._source.catalog.training

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of tensors (tied weights): other name -> stored name."""
        return dict(self._source.catalog.aliases or {})

    @cached_property
    def states(self) -> tuple[str, ...]:
        """The kinds of state that are stored: `param`, `master`, `exp_avg`, ..."""
        return tuple(dict.fromkeys(whole.state for whole in self._source.arrangement.wholes))

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every whole tensor by name, buffers and what belongs to no parameter included."""
        wholes_of: dict[str, list[Whole]] = {}
        for whole in self._source.arrangement.wholes:
            wholes_of.setdefault(whole.name, []).append(whole)
        out = {}
        for name, wholes in wholes_of.items():
            main = max(wholes, key=lambda whole: len(whole.shape))
            dtypes = {whole.state: whole.dtype for whole in wholes}
            out[name] = TensorInfo(name, main.shape, dtypes, main.axes)
        return out

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters, frozen ones included; no buffers, no extras."""
        buffers = set(self._source.catalog.buffers)
        return tuple(
            name
            for name, info in self.tensors.items()
            if name not in buffers and set(info.dtypes) != {EXTRA}
        )

    @checked
    def read(
        self,
        name: str,
        state: str = PARAM,
        slices: Sequence[Index] | Index | None = None,
    ) -> NDArray[Any]:
        """A whole tensor, or a part of it; no more bytes are read than that part needs.

        Args:  name: as in `tensors`, or an alias.  state: one that is stored of it.
               slices: as between the brackets of a numpy array; dimensions that it leaves out are
                       taken whole.
        Returns: an array of the stored type (`ml_dtypes` has the types that numpy lacks), that
                 shares no memory with anything.
        Raises: ReshardError[unknown-tensor | unknown-state | bad-slice | replica-mismatch], and
                what is wrong with the files.
        """
        from reshard.api.reading import read_part

        return read_part(self._source, self._whole(name, state), slices)

    def inspect(self) -> Inspection:
        """What the checkpoint is: the answer of `reshard inspect`."""
        return inspect_source(self._source)

    def _whole(self, name: str, state: str) -> Whole:
        own_name = (self._source.catalog.aliases or {}).get(name, name)
        for whole in self._source.arrangement.wholes:
            if whole.name == own_name and whole.state == state:
                return whole
        if own_name in self.tensors:
            raise _no_state(self, own_name, state)
        raise _no_tensor(self, name)


@checked
def open_checkpoint(
    path: PathLike,
    *,
    step: str | None = None,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, float | None] | None = None,
    model: str | None = None,
    names: str | None = None,
) -> Checkpoint:
    """The checkpoint of a folder, proved whole; its tensors are read when they are asked for.

    Args:  path: the folder of a run (with its `latest` file) or of one step; step: which one.
           layout: a UCL file that is used instead of what the checkpoint says about itself;
                   layout_name: which layout of it.  settings: sizes that win over its own.
           model: of which the checkpoint is.  names: call the tensors as this layout of it does.
    Raises: ReshardError[source-missing | unknown-source], and all that is wrong with the source.
    """
    source = open_source(path, Request.of(locals()))
    if source.catalog.withheld:
        raise ReshardError(source.catalog.withheld, Exit.SOURCE)
    return Checkpoint(source)


def _no_tensor(checkpoint: Checkpoint, name: str) -> ReshardError:
    near = get_close_matches(name, [*checkpoint.tensors, *checkpoint.aliases], 1)
    return ReshardError(
        Diagnostic(
            "unknown-tensor",
            f"the checkpoint has no tensor `{name}`",
            notes=(f"it has {len(checkpoint.tensors)}: {checkpoint.path}",),
            helps=(f"did you mean `{near[0]}`?",) if near else (),
        ),
        Exit.USAGE,
    )


def _no_state(checkpoint: Checkpoint, name: str, state: str) -> ReshardError:
    names = ", ".join(f"`{kind}`" for kind in checkpoint.tensors[name].dtypes)
    near = get_close_matches(state, checkpoint.tensors[name].dtypes, 1)
    return ReshardError(
        Diagnostic(
            "unknown-state",
            f"the checkpoint stores no state `{state}` of `{name}`",
            notes=(f"it stores {names}", f"source: {checkpoint.path}"),
            helps=(f"did you mean `{near[0]}`?",) if near else (),
        ),
        Exit.USAGE,
    )
