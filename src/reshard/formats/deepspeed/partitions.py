"""From the partitions of all data-parallel ranks to whole local tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from reshard.formats.deepspeed.scalar import Scalar
from reshard.formats.deepspeed.shard import GroupShard, Shard
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.storage.torch_file import TensorRef


@dataclass(frozen=True, slots=True)
class FlatGroup:
    """One flat group on one coordinate, with the partitions of all ranks that share it.

    Args:  index: of the group, for messages.  shapes: of its parameters, in buffer order.
           shards: by partition.  stage: ZeRO stage.  told_by: the file that names the parameters.
           check_slices: whether what the writer says of slices must hold.
    """

    index: int
    shapes: Shapes
    shards: Sequence[GroupShard]
    coord: Coord
    stage: int
    told_by: str
    check_slices: bool = False

    def tensors(self) -> Iterator[LocalTensor]:
        """Every state of every parameter.

        Raises: ReshardError[partition-mismatch | ranks-disagree].
        """
        places = list(self._runs_each() if self.stage == 3 else self._runs_buffer())
        states = self._states()
        for state, refs in states.items():
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
        for state, scalar in self._scalars().items():
            for name in self.shapes:
                yield scalar.local(name, state, self.coord)

    # Where the elements are.

    def _runs_buffer(self) -> Iterator[tuple[Run, ...]]:
        numels = [prod(shape) for shape in self.shapes.values()]
        gaps = self.shards[0].gaps
        if gaps is not None and len(gaps) != len(numels):
            raise self._mismatch(
                f"{len(gaps)} gaps between {len(numels)} parameters", self.shards[0].file
            )
        own = self.shards[0].partition_numel
        for shard in self.shards:
            if shard.partition_numel != own or shard.gaps != gaps:
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
        if self.check_slices:
            self._check_slices(runs)
        yield from runs

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

    def _states(self) -> dict[str, list[TensorRef]]:
        self._check_count()
        out: dict[str, list[TensorRef]] = {}
        for state, first in self.shards[0].states.items():
            refs = []
            for shard in self.shards:
                ref = shard.states.get(state)
                if ref is None:
                    raise self._disagree(f"`{state}`", "a tensor", "nothing", shard.file)
                if ref.dtype != first.dtype:
                    raise self._disagree(f"`{state}`", first.dtype, ref.dtype, shard.file)
                if not ref.is_contiguous:
                    raise self._mismatch(f"a `{state}` that is not dense", shard.file)
                refs.append(ref)
            out[state] = refs
        for shard in self.shards:
            more = [state for state in shard.states if state not in out]
            if more:
                raise self._disagree(f"`{more[0]}`", "nothing", "a tensor", shard.file)
        return out

    def _scalars(self) -> dict[str, Scalar]:
        out = dict(self.shards[0].scalars)
        for shard in self.shards[1:]:
            _same_scalars(out, shard.scalars, self._disagree, shard.file)
        return out

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


def _same_scalars(
    first: Mapping[str, Scalar],
    second: Mapping[str, Scalar],
    disagree: Callable[[str, str, str, str], ReshardError],
    file: str,
) -> None:
    for name in dict.fromkeys((*first, *second)):
        a, b = first.get(name), second.get(name)
        if a is None or b is None or (a.dtype, a.data) != (b.dtype, b.data):
            raise disagree(f"`{name}`", _show(a), _show(b), file)


def _show(scalar: Scalar | None) -> str:
    return "nothing" if scalar is None else f"{scalar}"


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
