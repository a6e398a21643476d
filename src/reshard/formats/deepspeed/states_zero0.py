"""Optimizer states of runs without ZeRO: whole tensors, numbered.

torch numbers parameters group by group, in the order in which they were given; that order is taken
to follow the module's.  Names are accepted only where one assignment alone is possible.

Source: DeepSpeed 0.19.8, runtime/fp16/{fused,unfused}_optimizer.py `state_dict`, and
torch.optim.Optimizer.state_dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.node import Node, scalar_of, unexpected
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.run.numbering import NoOneWayError, assign, either
from reshard.run.rounding import PROBED, rounds_to
from reshard.run.states import MASTER
from reshard.storage.kept import local_tensor
from reshard.storage.torch_file import TensorRef
from reshard.store.regular_file import pread_regular

_ROUNDED = (DType.F32, DType.BF16, DType.F16)
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class PlainOptimizer:
    """An optimizer's state_dict.

    Args:  root: it.  inner: torch's own within it.  groups: numbers per param group.
           states: by number, what it has by state; the master weights first.
           flat: whether a group is one number, with flat buffers of all its parameters.
    """

    root: Node
    inner: Node
    groups: tuple[tuple[int, ...], ...]
    states: Mapping[int, Mapping[str, Node]]
    flat: bool

    @property
    def file(self) -> str:
        """The file that it stands in."""
        return self.root.file


def read_optimizer(root: Node) -> PlainOptimizer:
    """A plain torch state, or one of DeepSpeed's fp16 and bf16 wrappers.

    Raises: ReshardError[missing-key | unexpected-content].
    """
    inner = root.at("optimizer_state_dict") if root.has("optimizer_state_dict") else root
    groups = tuple(group.at("params").integers() for group in inner.at("param_groups").items())
    states: dict[int, dict[str, Node]] = {number: {} for numbers in groups for number in numbers}
    flat = root.has("fp32_groups_flat")
    key = "fp32_groups_flat" if flat else "fp32_groups"
    if root.has(key):
        masters = [[node] if flat else [*node.items()] for node in root.at(key).items()]
        wanted = [numbers[:1] if flat else numbers for numbers in groups]
        if masters and [len(nodes) for nodes in masters] != [len(numbers) for numbers in wanted]:
            raise unexpected(
                f"`{key}` of {root.file} is not of the parameters that its param groups have",
                f"{sum(map(len, masters))} tensors, and {sum(map(len, wanted))} numbers",
            )
        for numbers, nodes in zip(wanted, masters, strict=False):
            for number, master in zip(numbers, nodes, strict=True):
                master.tensor()
                states[number][MASTER] = master
    for number, entries in states.items():
        state = inner.at("state").get(number)
        if state is not None:
            entries.update((name, item) for name, item in state.entries() if not item.is_none)
    return PlainOptimizer(root, inner, groups, states, flat)


def _tensors(states: Mapping[str, Node]) -> dict[str, TensorRef]:
    """What has elements among the states of a number."""
    values = {state: node.value for state, node in states.items()}
    return {s: v for s, v in values.items() if isinstance(v, TensorRef) and v.shape != ()}


class Naming:
    """Names for the states of one optimizer.

    Args:  weights: of all parameters that it may have, in the module's order.
           folder: what file names are relative to.
           groups: positions of the param groups that are looked at.
    """

    def __init__(
        self,
        optimizer: PlainOptimizer,
        weights: Sequence[LocalTensor],
        folder: Path,
        groups: Sequence[int],
    ) -> None:
        self._optimizer = optimizer
        self._weights = {tensor.name: tensor for tensor in weights}
        self._folder = folder
        self._groups = [(index, optimizer.groups[index]) for index in groups]
        self._heads: dict[tuple[str, int], bytes] = {}
        self.places = self._assign()

    def group_names(self) -> dict[int, list[str]]:
        """Names by the position of their param group, in its order."""
        out: dict[int, list[tuple[int, str]]] = {index: [] for index, _ in self._groups}
        for name, (group, position) in self.places.items():
            out[self._groups[group][0]].append((position, name))
        return {index: [name for _, name in sorted(names)] for index, names in out.items()}

    def read(self, coord: Coord) -> tuple[list[LocalTensor], dict[str, Node]]:
        """Every state of every parameter, and by `NUMBER.STATE` what is none.

        A state of a parameter is one number, or one for each of its elements.

        Raises: ReshardError[state-mismatch].
        """
        tensors: list[LocalTensor] = []
        kept: dict[str, Node] = {}
        file = self._optimizer.file
        for name, (group, position) in self.places.items():
            weight, states = self._weights[name], self._states(group, position)
            refs = _tensors(states)
            for state in sorted(states, key=lambda state: state not in refs):
                ref, scalar = refs.get(state), scalar_of(states[state])
                if ref is not None and self._optimizer.flat:
                    tensors.append(self._run(weight, state, ref, position, coord))
                elif ref is not None and ref.shape == weight.shape:
                    tensors.append(local_tensor(ref, name, state, coord, file))
                elif scalar is not None:
                    tensors.append(scalar.local(name, state, coord))
                else:
                    kept[f"{self._number(group, position)}.{state}"] = states[state]
        return tensors, kept

    def _number(self, group: int, position: int) -> int:
        return self._groups[group][1][0 if self._optimizer.flat else position]

    def _states(self, group: int, position: int) -> Mapping[str, Node]:
        return self._optimizer.states[self._number(group, position)]

    def _run(
        self, weight: LocalTensor, state: str, ref: TensorRef, position: int, coord: Coord
    ) -> LocalTensor:
        """A parameter's run in a flat buffer of its group."""
        shape = self._buffer(self.places[weight.name][0]).shape
        if ref.shape != shape or not ref.is_contiguous:
            raise source_error(
                "state-mismatch",
                f"state `{state}` of a flat group has shape {list(ref.shape)}",
                notes=[
                    f"the master weights of the group have {list(shape)}",
                    f"read from {self._optimizer.file}",
                ],
                helps=["load it with DeepSpeed, train one step with ZeRO stage 1, and save again"],
            )
        start = ref.byte_offset + position * ref.dtype.itemsize
        run = (Fragment(0, weight.numel, self._optimizer.file, start),) * bool(weight.numel)
        return LocalTensor(weight.name, state, coord, weight.shape, ref.dtype, run)

    def _buffer(self, group: int) -> TensorRef:
        return self._states(group, 0)[MASTER].tensor()

    def _assign(self) -> dict[str, tuple[int, int]]:
        names, file = list(self._weights), self._optimizer.file
        step, spare = self._step, None
        if self._optimizer.flat:
            goal = [self._buffer(group).numel for group in range(len(self._groups))]
            step = self._step_flat
        else:
            goal = [len(numbers) for _, numbers in self._groups]
            spare = len(names) - sum(goal)
            if spare < 0:
                why = f"it has {sum(goal)} numbers, the model files hold {len(names)} weights"
                raise _ambiguous(file, why)
        try:
            return assign(goal, names, step, spare=spare)
        except NoOneWayError as error:
            several = [
                f"state {position} of group {group} is of {either(candidates)}"
                for (group, position), candidates in error.candidates.items()
            ]
            more = f"and {len(several) - _SHOWN} more states have several names that fit"
            shown = [*several[:_SHOWN], *([more] if len(several) > _SHOWN else [])]
            raise _ambiguous(file, error.why, *shown) from None

    def _step(self, group: int, position: int, name: str) -> int | None:
        refs, weight = _tensors(self._states(group, position)), self._weights[name]
        master = refs.get(MASTER)
        fits = {ref.shape for ref in refs.values()} <= {weight.shape, *_factors(weight.shape)}
        same = master is None or (master.shape == weight.shape and self._rounds(master, 0, weight))
        return position + 1 if fits and same else None

    def _step_flat(self, group: int, position: int, name: str) -> int | None:
        weight, master = self._weights[name], self._buffer(group)
        after = position + weight.numel
        fits = after <= master.numel and self._rounds(master, position, weight)
        return after if fits else None

    def _rounds(self, master: TensorRef, start: int, weight: LocalTensor) -> bool:
        """Whether the first elements of a weight are those of its master weight, rounded."""
        dense = master.is_contiguous and all(f.strides is None for f in weight.fragments)
        if master.dtype != DType.F32 or weight.dtype not in _ROUNDED or not dense:
            return True
        if not weight.numel:
            return True
        first = weight.fragments[0]
        count = min(PROBED, first.numel)
        path, nbytes = str(self._folder / first.file), weight.dtype.itemsize * count
        return rounds_to(
            self._head(master.file, master.byte_offset + 4 * start, 4 * count),
            self._head(path, first.byte_offset, nbytes),
            weight.dtype,
        )

    def _head(self, path: str, byte_offset: int, nbytes: int) -> bytes:
        head = self._heads.get((path, byte_offset), b"")
        if len(head) < nbytes:
            head = self._heads[path, byte_offset] = pread_regular(path, byte_offset, nbytes)
        return head[:nbytes]


def _factors(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shapes of factored states, such as Adafactor's: without one of the dimensions."""
    for index in range(len(shape) if len(shape) > 1 else 0):
        yield (*shape[:index], *shape[index + 1 :])


def _ambiguous(file: str, *notes: str) -> ReshardError:
    """The error for states that cannot be given names."""
    return source_error(
        "ambiguous-optimizer-ids",
        f"the optimizer states in {file} cannot be given names",
        notes=[
            *notes,
            "without ZeRO, DeepSpeed saves states by number, without the names of their parameters",
        ],
        helps=[
            "convert the weights alone with `--states weights`",
            "load it with DeepSpeed, train one step with ZeRO stage 1, whose files have names, and "
            "save again",
        ],
    )
