"""Flat groups: the parameters of one param group as data-parallel ranks share them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from reshard.algebra.partition import Buffer, Each, Partition, Share, round_robin, spread
from reshard.errors import ReshardError
from reshard.formats.deepspeed.model_file import Shapes
from reshard.formats.deepspeed.node import Node, mixed_runs, partition_mismatch, ranks_disagree
from reshard.formats.deepspeed.optimizer_file import GroupShard, sort_states
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.storage.torch_file import TensorRef


@dataclass(frozen=True, slots=True)
class FlatGroup:
    """A param group, or at stage 3 a sub-group of one, on the ranks that share it.

    Args:  index: which of the optimizer's groups.  shapes: by name, in the order of the buffer.
           members: data-parallel ranks, by partition.  gaps: elements left free behind each
           parameter.  cut: which elements each partition has.
    """

    index: int
    shapes: Shapes
    members: Sequence[int]
    gaps: tuple[int, ...]
    cut: Partition

    @property
    def used(self) -> int:
        """Elements of a buffer without the padding at its end."""
        return sum(map(prod, self.shapes.values())) + sum(self.gaps[:-1])

    def partition(self, dp_rank: int) -> int:
        """Which partition a data-parallel rank has."""
        return self.members.index(dp_rank)

    def padding(self, dp_rank: int) -> int:
        """Elements at the end of a rank's share that belong to no parameter."""
        return self.cut.paddings(self.used)[self.partition(dp_rank)]

    def slices(self, partition: int) -> dict[str, tuple[int, int]]:
        """By name of a parameter that a partition has some of: where they start, and how many."""
        names = list(self.shapes)
        return {names[s.tensor]: (s.offset, s.numel) for s in self.cut.by_rank[partition]}

    def touched(self, partition: int) -> list[int]:
        """Positions of the parameters that a partition has some of."""
        return list(dict.fromkeys(share.tensor for share in self.cut.by_rank[partition]))


def flat_group(
    stage: int,
    index: int,
    shapes: Shapes,
    members: Sequence[int],
    gaps: tuple[int, ...] = (),
    align: int = 1,
) -> FlatGroup:
    """A group as a ZeRO stage shares it.

    Args:  align: what the length of a buffer of stages 1 and 2 is a multiple of.
    """
    rule = Each() if stage == 3 else Buffer(align, gaps)
    partition = spread(rule, list(shapes.values()), len(members))
    return FlatGroup(index, shapes, members, gaps or (0,) * len(shapes), partition)


# Reading.


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
class StoredGroup:
    """One flat group on one coordinate, with the partitions of all ranks that share it.

    Args:  index: of the group, for messages.  shapes: of its parameters, in buffer order.
           shards: by partition.  members: by partition, whose it is.  stage: ZeRO stage.
           named_by: the file that names the parameters.
           round_robin: whether gradients were reduced round robin, where the writer misnotes its
                 own slices; None where the files do not tell.
    """

    index: int
    shapes: Shapes
    shards: Sequence[GroupShard]
    members: Sequence[int]
    coord: Coord
    stage: int
    named_by: str
    round_robin: bool | None = False

    def read(self) -> ReadGroup:
        """Every state of every parameter, and what is no state of a parameter.

        Raises: ReshardError[partition-mismatch | ranks-disagree | mixed-runs].
        """
        group = self._zero3_group() if self.stage == 3 else self._buffer()
        order = tuple(self.shapes) if self.stage == 3 else self._order(group)
        for shard in self.shards:
            if shard.count not in (None, len(self.shards)):
                raise mixed_runs(
                    f"{shard.file} is one of {shard.count} partitions of group {self.index}, "
                    f"and {len(self.shards)} are here",
                    "`partition_count` in its optimizer state",
                )
        numels = [prod(shape) for shape in self.shapes.values()]
        partitions = range(len(self.shards))
        touched = [sum(numels[tensor] for tensor in group.touched(p)) for p in partitions]
        states = sort_states(self.shards, self._numel, touched, self._disagree)
        places = group.cut.by_tensor(len(numels))
        tensors = [
            *self._elements(states.elements, places),
            *self._wholes(states.wholes, places),
            *(
                number.local(name, state, self.coord)
                for state, number in states.numbers.items()
                for name in self.shapes
            ),
        ]
        return ReadGroup(tuple(tensors), states.kept, order)

    @property
    def _numel(self) -> int:
        """Elements of a partition, padding included."""
        return self.shards[0].partition_numel

    def _elements(
        self, states: Mapping[str, Sequence[TensorRef]], places: Sequence[Sequence[Share]]
    ) -> Iterator[LocalTensor]:
        """States of which every rank holds what belongs to its own elements."""
        files = [shard.file for shard in self.shards]
        for state, refs in states.items():
            self._check_alike(state, refs)
            for (name, shape), shares in zip(self.shapes.items(), places, strict=True):
                fragments = tuple(share_of(share, refs, files) for share in shares)
                yield LocalTensor(name, state, self.coord, shape, refs[0].dtype, fragments)

    def _wholes(
        self, states: Mapping[str, Sequence[TensorRef | None]], places: Sequence[Sequence[Share]]
    ) -> Iterator[LocalTensor]:
        """States of which a rank holds all of every parameter in its partition, one by one.

        Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py `_muon_momentum_buffer`.
        """
        for state, refs in states.items():
            self._check_alike(state, refs)
            offsets = [0] * len(self.shards)
            for (name, shape), shares in zip(self.shapes.items(), places, strict=True):
                holders = sorted({share.rank for share in shares})
                for partition in holders:
                    ref = refs[partition]
                    assert ref is not None
                    at = ref.byte_offset + offsets[partition] * ref.dtype.itemsize
                    offsets[partition] += prod(shape)
                    copy = (("dp", self.members[partition]),) * (len(holders) > 1)  # must agree
                    whole = Fragment(0, prod(shape), self.shards[partition].file, at)
                    coord = (*self.coord, *copy)
                    yield LocalTensor(name, state, coord, shape, ref.dtype, (whole,))

    def _check_alike(self, state: str, refs: Sequence[TensorRef | None]) -> None:
        """All ranks must hold a state as dense tensors of one element type."""
        pairs = [(ref, shard.file) for ref, shard in zip(refs, self.shards, strict=True) if ref]
        for ref, file in pairs:
            if ref.dtype != pairs[0][0].dtype:
                raise self._disagree(f"`{state}`", pairs[0][0].dtype, ref.dtype, file)
            if not ref.is_contiguous:
                raise self._mismatch(f"a `{state}` that is not dense", file)

    # Where the elements are.

    def _zero3_group(self) -> FlatGroup:
        group = flat_group(3, self.index, self.shapes, self.members)
        numel = group.cut.lengths[0]
        for shard in self.shards:
            if shard.partition_numel != numel:
                raise self._mismatch(
                    f"{numel} elements for each of {len(self.shards)} ranks, "
                    f"and {shard.partition_numel} there",
                    shard.file,
                )
        return group

    def _buffer(self) -> FlatGroup:
        """The buffer of stages 1 and 2, whose partitions must have the lengths that are stored."""
        gaps, numel = self.shards[0].gaps, self._numel
        if gaps is not None and len(gaps) != len(self.shapes):
            what = f"{len(gaps)} gaps between {len(self.shapes)} parameters"
            raise self._mismatch(what, self.shards[0].file)
        for shard in self.shards:
            if not shard.fits(numel) or shard.gaps != gaps:
                raise self._disagree(
                    "the partition of a param group",
                    f"{numel} elements",
                    f"{shard.partition_numel} elements",
                    shard.file,
                )
        # The last gap is padding like any other.
        group = self._flat(self.shapes, (*gaps[:-1], 0) if gaps else ())
        room, padding = numel * len(self.shards), sum(shard.padding for shard in self.shards)
        if room - group.used != padding or room < group.used:
            raise self._mismatch(
                f"{group.used} elements of parameters and {padding} of padding, where "
                f"{len(self.shards)} partitions hold {room}",
                self.shards[-1].file,
            )
        return group

    def _flat(self, names: Iterable[str], gaps: tuple[int, ...] = ()) -> FlatGroup:
        """The buffer of the stored length that has parameters in such an order."""
        shapes = {name: self.shapes[name] for name in names}
        room = max(1, self._numel * len(self.shards))
        return flat_group(self.stage, self.index, shapes, self.members, gaps, room)

    def _order(self, group: FlatGroup) -> tuple[str, ...]:
        """Names in the order of the optimizer, where the buffer may have them round robin.

        A writer that does so notes its own slices as if they were in that order.
        """
        names = tuple(self.shapes)
        is_known = self.round_robin is not None
        if self.round_robin or not (is_known or self._slices_hold(group)):
            turn = round_robin(len(names), len(self.shards))
            turned = tuple(name for _, name in sorted(zip(turn, names, strict=True)))
            if is_known or self._slices_hold(self._flat(turned)):
                return turned
        self._check_slices(group)
        return names

    def _slices_hold(self, group: FlatGroup) -> bool:
        """Whether all parameters lie where the writer says that its slices are."""
        return all(
            shard.slices is None or shard.slices.get(name, place) == place
            for partition, shard in enumerate(self.shards)
            for name, place in group.slices(partition).items()
        )

    def _check_slices(self, group: FlatGroup) -> None:
        """Compare with the addresses that the writer noted of its own partition."""
        stated = f"by `param_shapes` in {self.named_by}"
        stored = [
            (p, shard.file, shard.slices) for p, shard in enumerate(self.shards) if shard.slices
        ]
        for partition, file, slices in stored:
            for name, (start, numel) in group.slices(partition).items():
                at, count = slices.get(name, (start, numel))
                if (at, count) != (start, numel):
                    raise partition_mismatch(
                        f"`{name}` does not lie where its writer says",
                        f"elements {start} to {start + numel} of its partition "
                        f"of group {self.index}, {stated}",
                        f"elements {at} to {at + count}, by `param_slice_mappings` in {file}",
                    )
        for partition, file, slices in stored:
            names = set(group.slices(partition))
            noted = {name for name, (_, numel) in slices.items() if numel}
            if names == noted:
                continue
            # The file was written by another rank: it holds other parameters.
            foreign = sorted(noted - names)
            holds, other = ("holds", "does not") if foreign else ("does not hold", "does")
            raise partition_mismatch(
                f"{file} {holds} `{(foreign or sorted(names - noted))[0]}`, "
                f"and partition {partition} of group {self.index} {other}",
                f"by its `param_slice_mappings`, and {stated}",
                advice="the file may be that of another rank or run; copy it again",
            )

    def _mismatch(self, what: str, file: str) -> ReshardError:
        return partition_mismatch(
            f"group {self.index} does not add up: {what}",
            f"{len(self.shapes)} parameters, by `param_shapes` in {self.named_by}",
            f"partition read from {file}",
        )

    def _disagree(self, what: str, first: str, second: str, file: str) -> ReshardError:
        what = f"{what} of group {self.index}"
        return ranks_disagree(what, first, self.shards[0].file, second, file)


def share_of(share: Share, refs: Sequence[TensorRef], files: Sequence[str]) -> Fragment:
    """The elements that a rank's flat array holds of a parameter.

    Args:  refs, files: the arrays of all ranks, and where they lie.
    """
    ref = refs[share.rank]
    at = ref.byte_offset + share.offset * ref.dtype.itemsize
    return Fragment(share.start, share.numel, files[share.rank], at)
