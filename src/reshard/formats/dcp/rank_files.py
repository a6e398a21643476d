"""The data files of the ranks and the `.metadata` beside them, being put together.

Which box of a tensor each rank has follows from the rules of DTensor: tensor-parallel ranks cut one
dimension, and FSDP the first dimension of what they have, each as `torch.chunk` does.
Source: torch/distributed/tensor/placement_types.py `Shard.local_shard_size_and_offset` (2.13).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from reshard.algebra.box import Box
from reshard.algebra.split import split_sizes
from reshard.algebra.term import term_axes
from reshard.errors import target_error
from reshard.formats.dcp.contents import Contents
from reshard.formats.dcp.form import Form, joined
from reshard.formats.dcp.names import Path
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.output import FileBytes
from reshard.plan.slice import slice_spec
from reshard.plan.target import Target
from reshard.storage.dcp_writer import DcpWriter, NewChunk, data_file
from reshard.storage.kept import Decoder, constant_of

_CUT = ("kv", "f", "v")
"""What tensor-parallel ranks cut of a model: heads, the inner size of the MLP, and the vocabulary.

It is what the shipped layouts of Megatron lay over `tp`, and what the plans of torchtitan and
transformers cut (`ColwiseParallel`, `RowwiseParallel`)."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The ranks that will hold the files.

    Args:  dp: ranks of FSDP.  tp: tensor-parallel ranks, which count fastest.
    """

    dp: int = 1
    tp: int = 1

    def parts(
        self, shape: tuple[int, ...], cut: int | None, *, whole: bool
    ) -> list[tuple[int | None, Box]]:
        """The boxes of a tensor, without those that are empty, each with the rank that writes it.

        A box that any rank may write has None.

        Args:  cut: the dimension that tensor-parallel ranks cut; None if each has all of it.
               whole: FSDP leaves it as it is (buffers).
        """
        every = Box.whole(shape)
        if not shape or (whole and cut is None) or not every.volume:
            return [(None, every)]
        out = [(rank, box) for rank, box in self._boxes(shape, cut, whole) if box.volume]
        return [(None, out[0][1])] if len(out) == 1 else list(out)

    def _boxes(
        self, shape: tuple[int, ...], cut: int | None, whole: bool
    ) -> Iterator[tuple[int, Box]]:
        columns = [(0, 0)] if cut is None else _chunks(shape[cut], self.tp)
        for tp_rank, (start, width) in enumerate(columns):
            lo, size = [0] * len(shape), list(shape)
            if cut is not None:
                lo[cut], size[cut] = start, width
            rows = [(0, size[0])] if whole else _chunks(size[0], self.dp)
            for dp_rank, (first, count) in enumerate(rows):
                box = Box((lo[0] + first, *lo[1:]), (count, *size[1:]))
                yield dp_rank * self.tp + tp_rank, box


def _chunks(length: int, count: int) -> list[tuple[int, int]]:
    """Start and size of every piece of a dimension."""
    sizes = split_sizes(length, count, "chunk")
    return list(zip(accumulate(sizes, initial=0), sizes, strict=False))


def grid_of(arrangement: Arrangement, target: Target) -> Grid:
    """The ranks that a target asks for.

    Raises: ReshardError[bad-option | dcp-tensor-parallel].
    """
    grid = Grid(target.integer("dp", 1) or 1, target.integer("tp", 1) or 1)
    if grid.tp > 1 and not _tensor_parallel_axes(arrangement):
        raise target_error(
            "dcp-tensor-parallel",
            f"layout `{arrangement.layout.name}` does not say what tensor-parallel ranks cut",
            notes=[f"target `{target}`", "no axis of it lies over `tp`"],
            helps=[
                "leave `tp` out: PyTorch loads chunks of any shape into a tensor-parallel model",
                "or name the model's layout with `--names`, or give one that cuts over `tp` with "
                "`--layout`",
            ],
        )
    return grid


def _tensor_parallel_axes(arrangement: Arrangement) -> set[str]:
    """The axes that lie over tensor-parallel ranks: those of the layout, else of every model."""
    stated = {
        axis
        for bound in arrangement.bound.values()
        for axis, cut in bound.cuts.items()
        if "tp" in cut.over
    }
    model = arrangement.layout.model
    return stated or ({*_CUT} & {*model.axes} if model is not None else set())


class RankFiles:
    """One folder with `.metadata`.

    Args:  folder: goes before its file names, e.g. `optimizer_0/`.
    """

    def __init__(self, arrangement: Arrangement, grid: Grid, folder: str = "") -> None:
        self._arrangement = arrangement
        self._grid = grid
        self.writer = DcpWriter(folder)
        self._paths: dict[str, Path] = {}
        self._mark: dict[str, object] = {}
        self._axes = _tensor_parallel_axes(arrangement)
        self._buffers = {*arrangement.catalog.buffers}

    def metadata(self) -> FileBytes:
        """The file `.metadata`, once everything was added."""
        return self.writer.metadata(dict(self._paths), **self._mark)

    def add_weights(self, contents: Contents, form: Form) -> None:
        """Add the model, tied weights under each of their names."""
        self._mark = contents.mark(form).attribute()
        for name, whole in contents.weights.items():
            self.add_tensor(form.weight(name), whole)
        for name, stored in contents.aliases.items():
            if stored in contents.weights and name not in contents.weights:
                self.add_tensor(form.weight(name), contents.weights[stored])

    def add_optimizer(self, contents: Contents, form: Form) -> None:
        """Add states and hyper-parameters."""
        for name, states in contents.states.items():
            for state, whole in states.items():
                self.add_tensor(form.state(name, state), whole)
        for at, index, group in form.groups(contents.settings.groups):
            owners: tuple[int | str, ...] = group.members if form.flattened else (index,)
            for owner in owners:
                for key, value in group.settings.items():
                    self.add_object(form.setting(owner, key, at), value)
            if not form.flattened:
                listed = [form.state_name(name) for name in group.members]
                self.add_object(form.setting(index, "params", at), listed)

    def add_rest(self, contents: Contents) -> None:
        """Add what belongs to no parameter."""
        for path, whole in contents.extras:
            self.add_tensor(path, whole)
        for path, value in contents.objects:
            self.add_object(path, value)

    def add_tensor(self, path: Path, whole: Whole) -> None:
        """Add a tensor, cut as the ranks have it."""
        plain = whole.name in self._buffers or whole.rule < 0
        parts = self._grid.parts(whole.shape, self._cut(whole), whole=plain)
        chunks = [
            NewChunk(
                box.lo,
                slice_spec(whole, box),
                self._lightest() if rank is None else data_file(rank),
            )
            for rank, box in parts
        ]
        self.writer.add_tensor(self._claim(path), whole.dtype, whole.shape, chunks)

    def add_object(self, path: Path, value: object) -> None:
        """Add an object that is told as tagged JSON; one that is there already stays.

        One that is a tensor is a tensor of the checkpoint, as torch's loader looks for it.
        """
        if joined(path) in self._paths:
            return
        if isinstance(value, dict) and isinstance(value.get("$tensor"), dict):
            file = self._lightest()
            add = partial(self.writer.add_constant, self._claim(path), file=file)
            constant_of(value["$tensor"], lambda dtype, shape, data: add(dtype, shape, data))
        else:
            root = Decoder(self.writer.constant).value(value)
            self.writer.add_object(self._claim(path), root, self._lightest())

    def has(self, path: Path) -> bool:
        """Whether something stands there."""
        return joined(path) in self._paths

    def _claim(self, path: Path) -> str:
        key = joined(path)
        self._paths[key] = path
        return key

    def _cut(self, whole: Whole) -> int | None:
        """The dimension that tensor-parallel ranks cut."""
        bound = self._arrangement.bound.get(whole.name)
        if self._grid.tp == 1 or bound is None or whole.rule < 0:
            return None
        for dim, term in enumerate(bound.dims):
            if self._axes & set(term_axes(term)):
                return dim
        return None

    def _lightest(self) -> str:
        """The file with the fewest bytes so far, as torch gives copies to the idlest rank."""
        files = [data_file(rank) for rank in range(self._grid.dp * self._grid.tp)]
        return min(files, key=self.writer.nbytes)
