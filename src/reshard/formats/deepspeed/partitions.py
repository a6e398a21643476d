"""From the partitions of all data-parallel ranks to whole local tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.flat import (
    Run,
    buffer_offsets,
    buffer_runs,
    each_numel,
    each_runs,
)
from reshard.formats.deepspeed.model_file import ModelFile, Shapes
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.shard import GroupShard, Shard, sort_states
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.storage.torch_file import TensorRef


@dataclass(frozen=True, slots=True)
class ReadGroup:
    """What one flat group holds.

    Args:  tensors: every state of every parameter.
           kept: other states, by partition.  order: names in the order of the optimizer.
    """

    tensors: tuple[LocalTensor, ...]
    kept: Mapping[str, Sequence[Node | None]]
    order: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FlatGroup:
    """One flat group on one coordinate, with the partitions of all ranks that share it.

    Args:  index: of the group, for messages.  shapes: of its parameters, in buffer order.
           shards: by partition.  dp_ranks: by partition, whose it is.  stage: ZeRO stage.
           told_by: the file that names the parameters.
           round_robin: whether gradients were reduced round robin, where the writer misnotes its
                 own slices; None where the files do not tell.
    """

    index: int
    shapes: Shapes
    shards: Sequence[GroupShard]
    dp_ranks: Sequence[int]
    coord: Coord
    stage: int
    told_by: str
    round_robin: bool | None = False

    def read(self) -> ReadGroup:
        """Every state of every parameter, and what is no state of a parameter.

        Raises: ReshardError[partition-mismatch | ranks-disagree | mixed-runs].
        """
        places = list(self._runs_each() if self.stage == 3 else self._runs_buffer())
        self._check_count()
        touched = [0] * len(self.shards)
        for shape, runs in zip(self.shapes.values(), places, strict=True):
            for partition in {run.partition for run in runs if run.numel}:
                touched[partition] += prod(shape)
        states = sort_states(self.shards, self._numel, touched, self._disagree)
        tensors = [
            *self._elements(states.elements, places),
            *self._wholes(states.wholes, places),
            *(
                number.local(name, state, self.coord)
                for state, number in states.numbers.items()
                for name in self.shapes
            ),
        ]
        return ReadGroup(tuple(tensors), states.kept, self._order(places))

    @property
    def _numel(self) -> int:
        """Elements of a partition, padding included."""
        return self.shards[0].partition_numel

    def _elements(
        self, states: Mapping[str, Sequence[TensorRef]], places: Sequence[tuple[Run, ...]]
    ) -> Iterator[LocalTensor]:
        """States of which every rank holds what belongs to its own elements."""
        for state, refs in states.items():
            self._check_alike(state, refs)
            itemsize = refs[0].dtype.itemsize
            files = [shard.file for shard in self.shards]
            bases = [ref.byte_offset for ref in refs]
            for (name, shape), runs in zip(self.shapes.items(), places, strict=True):
                fragments = tuple(
                    Fragment(
                        run.start,
                        run.numel,
                        files[run.partition],
                        bases[run.partition] + run.offset * itemsize,
                    )
                    for run in runs
                )
                yield LocalTensor(name, state, self.coord, shape, refs[0].dtype, fragments)

    def _wholes(
        self, states: Mapping[str, Sequence[TensorRef | None]], places: Sequence[tuple[Run, ...]]
    ) -> Iterator[LocalTensor]:
        """States of which a rank holds all of every parameter in its partition, one by one.

        Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py `_muon_momentum_buffer`.
        """
        for state, refs in states.items():
            self._check_alike(state, [ref for ref in refs if ref is not None])
            offsets = [0] * len(self.shards)
            for (name, shape), runs in zip(self.shapes.items(), places, strict=True):
                holders = sorted({run.partition for run in runs if run.numel})
                for partition in holders:
                    ref = refs[partition]
                    assert ref is not None
                    at = ref.byte_offset + offsets[partition] * ref.dtype.itemsize
                    offsets[partition] += prod(shape)
                    coord = self.coord
                    if len(holders) > 1:  # copies, which must agree
                        coord = (*coord, ("dp", self.dp_ranks[partition]))
                    whole = Fragment(0, prod(shape), self.shards[partition].file, at)
                    yield LocalTensor(name, state, coord, shape, ref.dtype, (whole,))

    def _order(self, places: Sequence[tuple[Run, ...]]) -> tuple[str, ...]:
        """Names in the order of the optimizer, where the buffer may have them round robin."""
        names = tuple(self.shapes)
        if self.stage == 3 or self.round_robin is False:
            return names
        if self.round_robin or not self._slices_hold(names, places):
            return written_order(names, len(self.shards))
        return names

    # Where the elements are.

    def _runs_buffer(self) -> Iterator[tuple[Run, ...]]:
        numels = [prod(shape) for shape in self.shapes.values()]
        gaps = self.shards[0].gaps
        if gaps is not None and len(gaps) != len(numels):
            raise self._mismatch(
                f"{len(gaps)} gaps between {len(numels)} parameters", self.shards[0].file
            )
        own = self._numel
        for shard in self.shards:
            if not shard.fits(own) or shard.gaps != gaps:
                raise self._disagree(
                    "the partition of a param group",
                    f"{own} elements",
                    f"{shard.partition_numel} elements",
                    shard.file,
                )
        offsets, end = buffer_offsets(numels, gaps)
        left = own * len(self.shards) - end
        padding = sum(shard.padding for shard in self.shards)
        if left != padding:
            raise self._mismatch(
                f"{end} elements of parameters and {padding} of padding, where "
                f"{len(self.shards)} partitions hold {own * len(self.shards)}",
                self.shards[-1].file,
            )
        runs = [tuple(buffer_runs(a, n, own)) for a, n in zip(offsets, numels, strict=True)]
        if self.round_robin is False or (self.round_robin is None and not self._is_turned(runs)):
            self._check_slices(runs)
        yield from runs

    def _is_turned(self, runs: Sequence[tuple[Run, ...]]) -> bool:
        """Whether the writer's slices are those of the order before it was made round robin."""
        if self._slices_hold(tuple(self.shapes), runs):
            return False
        names = written_order(tuple(self.shapes), len(self.shards))
        offsets, _ = buffer_offsets([prod(self.shapes[name]) for name in names], None)
        turned = [
            tuple(buffer_runs(at, prod(self.shapes[name]), self._numel))
            for at, name in zip(offsets, names, strict=True)
        ]
        return self._slices_hold(names, turned)

    def _slices_hold(self, names: Sequence[str], runs: Sequence[tuple[Run, ...]]) -> bool:
        """Whether all parameters lie where the writer says that its slices are."""
        said = [shard.slices for shard in self.shards]
        return all(
            own is None or own.get(name, (run.offset, run.numel)) == (run.offset, run.numel)
            for name, places in zip(names, runs, strict=True)
            for run in places
            for own in (said[run.partition],)
        )

    def _runs_each(self) -> Iterator[tuple[Run, ...]]:
        count = len(self.shards)
        numels = [prod(shape) for shape in self.shapes.values()]
        held = sum(each_numel(numel, count) for numel in numels)
        for shard in self.shards:
            if shard.partition_numel != held:
                raise self._mismatch(
                    f"{held} elements for each of {count} ranks, and {shard.partition_numel} there",
                    shard.file,
                )
        offset = 0
        for numel in numels:
            yield tuple(each_runs(offset, numel, count))
            offset += each_numel(numel, count)

    def _check_slices(self, runs: Sequence[tuple[Run, ...]]) -> None:
        """Compare with the addresses that the writer noted of its own partition."""
        for name, own in zip(self.shapes, runs, strict=True):
            for run in own:
                shard = self.shards[run.partition]
                said = None if shard.slices is None else shard.slices.get(name)
                if said is not None and said != (run.offset, run.numel):
                    raise source_error(
                        "partition-mismatch",
                        f"`{name}` does not lie where its writer says",
                        notes=[
                            f"elements {run.offset} to {run.offset + run.numel} of its partition "
                            f"of group {self.index}, by `param_shapes` in {self.told_by}",
                            f"elements {said[0]} to {said[0] + said[1]}, by `param_slice_mappings` "
                            f"in {shard.file}",
                        ],
                        helps=["the model file and the optimizer files may be of different runs"],
                    )

        for partition, shard in enumerate(self.shards):
            self._check_slice_names(partition, shard, runs)

    def _check_slice_names(
        self, partition: int, shard: GroupShard, runs: Sequence[tuple[Run, ...]]
    ) -> None:
        """Refuse a file that was written by another rank: it holds other parameters."""
        if not shard.slices:
            return
        held = {
            name
            for name, own in zip(self.shapes, runs, strict=True)
            if any(run.partition == partition and run.numel for run in own)
        }
        said = {name for name, (_, numel) in shard.slices.items() if numel}
        if held != said:
            foreign, missing = sorted(said - held), sorted(held - said)
            own = f"{shard.file} holds" if foreign else f"{shard.file} does not hold"
            other = "does not" if foreign else "does"
            raise source_error(
                "partition-mismatch",
                f"{own} `{(foreign or missing)[0]}`, "
                f"and partition {partition} of group {self.index} {other}",
                notes=[f"by its `param_slice_mappings`, and by `param_shapes` in {self.told_by}"],
                helps=["the file may be that of another rank or run; copy it again"],
            )

    # What is stored.

    def _check_alike(self, state: str, refs: Sequence[TensorRef]) -> None:
        """All ranks must hold a state as dense tensors of one element type."""
        for ref, shard in zip(refs, self.shards, strict=False):
            if ref.dtype != refs[0].dtype:
                raise self._disagree(f"`{state}`", refs[0].dtype, ref.dtype, shard.file)
            if not ref.is_contiguous:
                raise self._mismatch(f"a `{state}` that is not dense", shard.file)

    def _check_count(self) -> None:
        for shard in self.shards:
            if shard.count is not None and shard.count != len(self.shards):
                raise source_error(
                    "mixed-runs",
                    f"{shard.file} is one of {shard.count} partitions of group {self.index}, "
                    f"and {len(self.shards)} are here",
                    notes=["`partition_count` in its optimizer state"],
                    helps=["copy the files of one run into a folder of their own"],
                )

    def _mismatch(self, what: str, file: str) -> ReshardError:
        return source_error(
            "partition-mismatch",
            f"group {self.index} does not add up: {what}",
            notes=[
                f"{len(self.shapes)} parameters, by `param_shapes` in {self.told_by}",
                f"partition read from {file}",
            ],
            helps=["the model file and the optimizer files may be of different runs"],
        )

    def _disagree(self, what: str, first: str, second: str, file: str) -> ReshardError:
        return ranks_disagree(
            f"{what} of group {self.index}", first, self.shards[0].file, second, file
        )


def written_order(names: Sequence[str], count: int) -> tuple[str, ...]:
    """The optimizer's order of parameters that a buffer of `count` ranks has round robin.

    For D ranks the buffer holds the parameters 0, D, 2D, ..., then 1, D + 1, ..., and so on.
    Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py `_round_robin_reorder`.
    """
    turn = [index for first in range(count) for index in range(first, len(names), count)]
    return tuple(name for _, name in sorted(zip(turn, names, strict=True)))


def ranks_disagree(what: str, first: str, file: str, second: str, other: str) -> ReshardError:
    """The error for what all ranks must say alike."""
    return source_error(
        "ranks-disagree",
        f"ranks disagree about {what}: {first}, and {second}",
        notes=[f"{first} in {file}", f"{second} in {other}"],
        helps=["the files may be of different runs or steps; copy those of one"],
    )


def no_shapes(model: ModelFile, shard: Shard) -> ReshardError:
    """The error for a model file that does not name the parameters of the flat groups."""
    found = model.param_shapes
    said = "there are no `param_shapes`"
    if found is not None:
        said = f"groups in its `param_shapes`: {len(found)}"
    return source_error(
        "missing-param-shapes",
        f"{model.file} does not say which parameters {shard.file} holds",
        notes=[
            said,
            f"groups in the optimizer file: {len(shard.groups)}",
        ],
        helps=["the files may be of different runs, or were written by DeepSpeed before 0.3.16"],
    )
