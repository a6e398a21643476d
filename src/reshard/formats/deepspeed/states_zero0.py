"""Optimizer states of runs without ZeRO: whole tensors, numbered.

Source: DeepSpeed 0.19.8, runtime/fp16/{fused,unfused}_optimizer.py `state_dict`, and
torch.optim.Optimizer.state_dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.node import Node, scalar_of
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.run.rounding import PROBED, rounds_to
from reshard.run.states import MASTER
from reshard.storage.kept import local_tensor
from reshard.storage.torch_file import TensorRef

_ROUNDED = (DType.F32, DType.BF16, DType.F16)


@dataclass(frozen=True, slots=True)
class Numbered:
    """What an optimizer has of one number.

    Args:  tensors: by state kind, with elements; the master weights among them.
           others: by state kind, one number each, or something else.
           nodes: all but the master weights as they are stored.
    """

    tensors: Mapping[str, TensorRef]
    others: Mapping[str, Node]
    nodes: Mapping[str, Node]


@dataclass(frozen=True, slots=True)
class PlainOptimizer:
    """An optimizer's state_dict.

    Args:  root: it.  inner: torch's own within it.  groups: numbers per param group.
           states: by number.  flat: whether a group is one number, with flat buffers of all its
           parameters.
    """

    root: Node
    inner: Node
    groups: tuple[tuple[int, ...], ...]
    states: Mapping[int, Numbered]
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
    flat = root.has("fp32_groups_flat")
    masters: dict[int, TensorRef] = {}
    if flat:
        for own, node in zip(groups, root.at("fp32_groups_flat").items(), strict=True):
            masters[own[0]] = node.tensor()
    elif root.has("fp32_groups"):
        for own, node in zip(groups, root.at("fp32_groups").items(), strict=True):
            tensors = [item.tensor() for item in node.items()]
            masters.update(zip(own, tensors, strict=True))
    state = inner.at("state")
    states = {
        number: _numbered(state.get(number), masters.get(number))
        for own in groups
        for number in own
    }
    return PlainOptimizer(root, inner, groups, states, flat)


def _numbered(node: Node | None, master: TensorRef | None) -> Numbered:
    tensors = {} if master is None else {MASTER: master}
    others: dict[str, Node] = {}
    entries = () if node is None else [e for e in node.entries() if not e[1].is_none]
    for name, item in entries:
        if isinstance(item.value, TensorRef) and item.value.shape != ():
            tensors[name] = item.value
        else:
            others[name] = item
    return Numbered(tensors, others, dict(entries))


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

    def tensors(self, coord: Coord) -> Iterator[LocalTensor]:
        """Every state of every parameter.

        Raises: ReshardError[state-mismatch].
        """
        file = self._optimizer.file
        for name, (group, position) in self.places.items():
            weight = self._weights[name]
            own = self._states(group, position)
            for state, ref in own.tensors.items():
                if self._optimizer.flat:
                    yield self._run(weight, state, ref, position, coord)
                elif ref.shape == weight.shape:
                    yield local_tensor(ref, name, state, coord, file)
            for state, node in own.others.items():
                if (scalar := scalar_of(node.value, file)) is not None:
                    yield scalar.local(name, state, coord)

    def kept(self) -> dict[str, Node]:
        """States that are neither one number of a parameter nor one for each of its elements."""
        out: dict[str, Node] = {}
        for name, (group, position) in self.places.items():
            own = self._states(group, position)
            number = self._groups[group][1][0 if self._optimizer.flat else position]
            for state, node in own.nodes.items():
                value = node.value
                flat = self._optimizer.flat and state in own.tensors
                shaped = isinstance(value, TensorRef) and value.shape == self._weights[name].shape
                if not flat and not shaped and scalar_of(value, node.file) is None:
                    out[f"{number}.{state}"] = node
        return out

    def _states(self, group: int, position: int) -> Numbered:
        numbers = self._groups[group][1]
        return self._optimizer.states[numbers[0 if self._optimizer.flat else position]]

    def _run(
        self, weight: LocalTensor, state: str, ref: TensorRef, position: int, coord: Coord
    ) -> LocalTensor:
        """A parameter's run in a flat buffer of its group."""
        whole = self._states(self.places[weight.name][0], 0).tensors[MASTER].shape
        if ref.shape != whole or not ref.is_contiguous:
            raise _mismatch(state, ref, whole, self._optimizer.file)
        start = ref.byte_offset + position * ref.dtype.itemsize
        fragment = Fragment(0, weight.numel, self._optimizer.file, start)
        return LocalTensor(
            weight.name, state, coord, weight.shape, ref.dtype, (fragment,) * bool(weight.numel)
        )

    def _assign(self) -> dict[str, tuple[int, int]]:
        names = list(self._weights)
        file = self._optimizer.file
        if self._optimizer.flat:
            goal = [self._states(group, 0).tensors[MASTER].numel for group in self._positions]
            return assign(goal, names, self._step_flat, file, may_skip=True)
        goal = [len(numbers) for _, numbers in self._groups]
        if sum(goal) > len(names):
            raise ambiguous_ids(
                file, f"it has {sum(goal)} numbers, the model files hold {len(names)} weights"
            )
        return assign(goal, names, self._step, file, may_skip=sum(goal) < len(names))

    @property
    def _positions(self) -> range:
        return range(len(self._groups))

    def _step(self, group: int, position: int, name: str) -> int | None:
        own, weight = self._states(group, position), self._weights[name]
        master = own.tensors.get(MASTER)
        shapes = {ref.shape for ref in own.tensors.values()}
        if not shapes <= {weight.shape, *_factors(weight.shape)}:
            return None
        if master is not None and master.shape != weight.shape:
            return None
        if master is not None and not self._rounds(master, 0, weight):
            return None
        return position + 1

    def _step_flat(self, group: int, position: int, name: str) -> int | None:
        weight = self._weights[name]
        master = self._states(group, 0).tensors[MASTER]
        after = position + weight.numel
        if after > master.numel or not self._rounds(master, position, weight):
            return None
        return after

    def _rounds(self, master: TensorRef, start: int, weight: LocalTensor) -> bool:
        """Whether the first elements of a weight are those of its master weight, rounded."""
        dense = master.is_contiguous and all(f.strides is None for f in weight.fragments)
        if master.dtype != DType.F32 or weight.dtype not in _ROUNDED or not dense:
            return True
        count = min(PROBED, prod(weight.shape))
        if not count:
            return True
        first = weight.fragments[0]
        count = min(count, first.numel)
        return rounds_to(
            self._head(master.file, master.byte_offset + 4 * start, 4 * count),
            self._head(
                str(self._folder / first.file), first.byte_offset, weight.dtype.itemsize * count
            ),
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


def _mismatch(state: str, ref: TensorRef, whole: tuple[int, ...], file: str) -> ReshardError:
    return source_error(
        "state-mismatch",
        f"state `{state}` of a flat group has shape {list(ref.shape)}",
        notes=[f"the master weights of the group have {list(whole)}", f"read from {file}"],
        helps=["load it with DeepSpeed, train one step with ZeRO stage 1, and save again"],
    )


_SHOWN = 4

MAX_STATES = 20_000
"""Positions that are followed at once before the search is given up."""

Step = Callable[[int, int, str], int | None]
"""(group, position, name) -> the next position if the name can stand there, else None."""


def assign(
    goal: Sequence[int], names: Sequence[str], step: Step, file: str, *, may_skip: bool
) -> dict[str, tuple[int, int]]:
    """The group and the position of every name.

    Args:  goal: by group, the position behind its last parameter.
           names: in the module's order.  may_skip: whether some may have no position.
    Raises: ReshardError[ambiguous-optimizer-ids].
    """
    end = tuple(goal)
    layers: list[dict[tuple[int, ...], int]] = [{(0,) * len(goal): 1}]  # 2 stands for several ways
    for name in names:
        reached: dict[tuple[int, ...], int] = {}
        for at, ways in layers[-1].items():
            for group, position in enumerate(at):
                after = step(group, position, name) if position < end[group] else None
                if after is not None and after <= end[group]:
                    key = (*at[:group], after, *at[group + 1 :])
                    reached[key] = min(2, reached.get(key, 0) + ways)
            if may_skip:
                reached[at] = min(2, reached.get(at, 0) + ways)
        if len(reached) > MAX_STATES:
            raise ambiguous_ids(file, "too many parameters of one shape are in several groups")
        layers.append(reached)
    ways = layers[-1].get(end, 0)
    if ways == 0:
        raise ambiguous_ids(file, "no order of the weights fits the shapes of the states")
    if ways > 1:
        raise ambiguous_ids(
            file,
            "several orders of the weights fit the shapes of the states",
            _candidates(names, step, layers, end, may_skip),
        )
    return _walk(names, step, layers, end)


def _candidates(
    names: Sequence[str],
    step: Step,
    layers: Sequence[dict[tuple[int, ...], int]],
    end: tuple[int, ...],
    may_skip: bool,
) -> list[str]:
    """Which names each state can have, for people; of the first few that can have several."""
    found: dict[tuple[int, int], list[str]] = {}
    goals = {end}
    for count in range(len(names), 0, -1):
        name = names[count - 1]
        before: set[tuple[int, ...]] = set()
        for at in layers[count - 1]:
            if may_skip and at in goals:
                before.add(at)
            for group, position in enumerate(at):
                after = step(group, position, name) if position < end[group] else None
                if after is not None and (*at[:group], after, *at[group + 1 :]) in goals:
                    before.add(at)
                    own = found.setdefault((group, position), [])
                    if name not in own:
                        own.insert(0, name)
        goals = before
    several = [(place, own) for place, own in sorted(found.items()) if len(own) > 1]
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


def _walk(
    names: Sequence[str],
    step: Step,
    layers: Sequence[dict[tuple[int, ...], int]],
    end: tuple[int, ...],
) -> dict[str, tuple[int, int]]:
    """The one way, followed from its end."""
    out: dict[str, tuple[int, int]] = {}
    goal = end
    for count in range(len(names), 0, -1):
        name = names[count - 1]
        group, at = _before(layers[count - 1], goal, step, name)
        if group is not None:
            out[name] = (group, at[group])
        goal = at
    return dict(reversed(out.items()))


def _before(
    layer: dict[tuple[int, ...], int], goal: tuple[int, ...], step: Step, name: str
) -> tuple[int | None, tuple[int, ...]]:
    """From which positions a name led to these, and the group that it stood in."""
    for at in layer:
        moved = [group for group, position in enumerate(at) if position != goal[group]]
        if not moved:
            return None, at
        if len(moved) == 1 and step(moved[0], at[moved[0]], name) == goal[moved[0]]:
            return moved[0], at
    raise AssertionError("the search has no way back")


def ambiguous_ids(file: str, why: str, notes: Sequence[str] = ()) -> ReshardError:
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
