"""Optimizer states of runs without ZeRO: whole tensors, numbered.

torch numbers parameters group by group, in the order in which they were given; that order is taken
to follow the module's.  Names are accepted only where one assignment alone is possible.

Source: DeepSpeed 0.19.8, runtime/fp16/{fused,unfused}_optimizer.py `state_dict`, and
torch.optim.Optimizer.state_dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.node import Node, scalar_of
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.records import dataclass
from reshard.run.rounding import PROBED, rounds_to
from reshard.run.states import MASTER
from reshard.storage.kept import local_tensor
from reshard.storage.torch_file import TensorRef

_ROUNDED = (DType.F32, DType.BF16, DType.F16)
_SHOWN = 4

MAX_STATES = 20_000
"""Positions that are followed at once before the search is given up."""


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
    groups = tuple(
        tuple(item.integer() for item in group.at("params").items())
        for group in inner.at("param_groups").items()
    )
    states: dict[int, dict[str, Node]] = {number: {} for own in groups for number in own}
    flat = root.has("fp32_groups_flat")
    key = "fp32_groups_flat" if flat else "fp32_groups"
    stored = (
        [[node] if flat else [*node.items()] for node in root.at(key).items()]
        if root.has(key)
        else []
    )
    wanted = [own[:1] if flat else own for own in groups]
    if stored and [len(own) for own in stored] != [len(own) for own in wanted]:
        raise source_error(
            "unexpected-content",
            f"`{key}` of {root.file} is not of the parameters that its param groups have",
            notes=[f"{sum(map(len, stored))} tensors, and {sum(map(len, wanted))} numbers"],
            helps=["the file was written by another program, or by a version that is not known"],
        )
    for own, nodes in zip(wanted, stored, strict=False):
        for number, master in zip(own, nodes, strict=True):
            master.tensor()
            states[number][MASTER] = master
    for number, entries in states.items():
        state = inner.at("state").get(number)
        if state is not None:
            entries.update((name, item) for name, item in state.entries() if not item.is_none)
    return PlainOptimizer(root, inner, groups, states, flat)


def _tensors(states: Mapping[str, Node]) -> dict[str, TensorRef]:
    """What has elements among the states of a number."""
    found = {state: node.value for state, node in states.items()}
    return {s: v for s, v in found.items() if isinstance(v, TensorRef) and v.shape != ()}


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
        return {index: [name for _, name in sorted(own)] for index, own in out.items()}

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
            for state, ref in refs.items():
                if self._optimizer.flat:
                    tensors.append(self._run(weight, state, ref, position, coord))
                elif ref.shape == weight.shape:
                    tensors.append(local_tensor(ref, name, state, coord, file))
                else:
                    kept[f"{self._number(group, position)}.{state}"] = states[state]
            for state in (state for state in states if state not in refs):
                scalar = scalar_of(states[state].value, file)
                if scalar is not None:
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
        whole = self._buffer(self.places[weight.name][0]).shape
        if ref.shape != whole or not ref.is_contiguous:
            raise source_error(
                "state-mismatch",
                f"state `{state}` of a flat group has shape {list(ref.shape)}",
                notes=[
                    f"the master weights of the group have {list(whole)}",
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
        names = list(self._weights)
        file = self._optimizer.file
        if self._optimizer.flat:
            goal = [self._buffer(group).numel for group in range(len(self._groups))]
            return assign(goal, names, self._step_flat, file, may_skip=True)
        goal = [len(numbers) for _, numbers in self._groups]
        if sum(goal) > len(names):
            raise _ambiguous(
                file, f"it has {sum(goal)} numbers, the model files hold {len(names)} weights"
            )
        return assign(goal, names, self._step, file, may_skip=sum(goal) < len(names))

    def _step(self, group: int, position: int, name: str) -> int | None:
        refs, weight = _tensors(self._states(group, position)), self._weights[name]
        master = refs.get(MASTER)
        if not {ref.shape for ref in refs.values()} <= {weight.shape, *_factors(weight.shape)}:
            return None
        if master is not None and (
            master.shape != weight.shape or not self._rounds(master, 0, weight)
        ):
            return None
        return position + 1

    def _step_flat(self, group: int, position: int, name: str) -> int | None:
        weight, master = self._weights[name], self._buffer(group)
        after = position + weight.numel
        if after > master.numel or not self._rounds(master, position, weight):
            return None
        return after

    def _rounds(self, master: TensorRef, start: int, weight: LocalTensor) -> bool:
        """Whether the first elements of a weight are those of its master weight, rounded."""
        dense = master.is_contiguous and all(f.strides is None for f in weight.fragments)
        count = min(PROBED, prod(weight.shape))
        if master.dtype != DType.F32 or weight.dtype not in _ROUNDED or not dense or not count:
            return True
        first = weight.fragments[0]
        count = min(count, first.numel)
        path, nbytes = str(self._folder / first.file), weight.dtype.itemsize * count
        return rounds_to(
            self._head(master.file, master.byte_offset + 4 * start, 4 * count),
            self._head(path, first.byte_offset, nbytes),
            weight.dtype,
        )

    def _head(self, path: str, byte_offset: int, nbytes: int) -> bytes:
        key = (path, byte_offset)
        found = self._heads.get(key, b"")
        if len(found) < nbytes:
            with Path(path).open("rb", buffering=0) as file:
                file.seek(byte_offset)
                found = file.read(nbytes)
            self._heads[key] = found
        return found[:nbytes]


def _factors(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shapes of factored states, such as Adafactor's: without one of the dimensions."""
    for index in range(len(shape) if len(shape) > 1 else 0):
        yield (*shape[:index], *shape[index + 1 :])


# Names for numbers, or for places in a buffer.

Step = Callable[[int, int, str], int | None]
"""(group, position, name) -> the next position if the name can stand there, else None."""
At = tuple[int, ...]
"""By group, how far it has come."""
Layer = Mapping[At, Sequence[tuple[At, int | None]]]
"""How a name leads to positions: from which, and standing in which group; None if in none."""


def assign(
    goal: Sequence[int], names: Sequence[str], step: Step, file: str, *, may_skip: bool
) -> dict[str, tuple[int, int]]:
    """The group and the position of every name.

    Args:  goal: by group, the position behind its last parameter.
           names: in the module's order.  may_skip: whether some may have no position.
    Raises: ReshardError[ambiguous-optimizer-ids].
    """
    end = tuple(goal)
    ways: dict[At, int] = {(0,) * len(goal): 1}  # 2 stands for several
    layers: list[Layer] = []
    for name in names:
        reached: dict[At, list[tuple[At, int | None]]] = {}
        for at in ways:
            for group, position in enumerate(at):
                after = step(group, position, name) if position < end[group] else None
                if after is not None and after <= end[group]:
                    reached.setdefault((*at[:group], after, *at[group + 1 :]), []).append(
                        (at, group)
                    )
            if may_skip:
                reached.setdefault(at, []).append((at, None))
        if len(reached) > MAX_STATES:
            raise _ambiguous(file, "too many parameters of one shape are in several groups")
        ways = {at: min(2, sum(ways[before] for before, _ in own)) for at, own in reached.items()}
        layers.append(reached)
    found = ways.get(end, 0)
    if found != 1:
        what = "several orders of the weights fit" if found else "no order of the weights fits"
        candidates = _candidates(names, layers, end) if found else []
        raise _ambiguous(file, f"{what} the shapes of the states", *candidates)
    out: dict[str, tuple[int, int]] = {}
    at = end
    for name, layer in zip(reversed(names), reversed(layers), strict=True):
        at, standing = layer[at][0]
        if standing is not None:
            out[name] = (standing, at[standing])
    return dict(reversed(out.items()))


def _candidates(names: Sequence[str], layers: Sequence[Layer], end: At) -> list[str]:
    """Which names each state can have, for people; of the first few that can have several."""
    found: dict[tuple[int, int], dict[str, None]] = {}
    goals = {end}
    for name, layer in zip(reversed(names), reversed(layers), strict=True):
        edges = [edge for goal in goals for edge in layer.get(goal, ())]
        for before, group in edges:
            if group is not None:
                found.setdefault((group, before[group]), {})[name] = None
        goals = {before for before, _ in edges}
    several = [(place, [*reversed(own)]) for place, own in sorted(found.items()) if len(own) > 1]
    out = [
        f"state {position} of group {group} is of {_either(own)}"
        for (group, position), own in several[:_SHOWN]
    ]
    if len(several) > _SHOWN:
        out.append(f"and {len(several) - _SHOWN} more states have several names that fit")
    return out


def _either(names: Sequence[str]) -> str:
    listed = [f"`{name}`" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        listed.append(f"{len(names) - _SHOWN} more")
    return f"{', '.join(listed[:-1])}, or {listed[-1]}" if len(listed) > 2 else " or ".join(listed)


def _ambiguous(file: str, why: str, *notes: str) -> ReshardError:
    """The error for states that cannot be given names.

    Args:  notes: what is known of them all the same.
    """
    return source_error(
        "ambiguous-optimizer-ids",
        f"the optimizer states in {file} cannot be given names",
        notes=[
            why,
            *notes,
            "without ZeRO, DeepSpeed saves states by number and does not say whose they are",
        ],
        helps=[
            "convert the weights alone with `--states weights`",
            "load it with DeepSpeed, train one step with ZeRO stage 1, whose files have names, and "
            "save again",
        ],
    )
