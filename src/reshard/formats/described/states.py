"""From leaves to local tensors: names for numbers, and the shares of ranks put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import Diagnostic, ReshardError, label, source_error
from reshard.formats.described.boxes import join_boxes, parts_of
from reshard.formats.described.faults import (
    flat_buffer,
    no_shape,
    order_assumed,
    share_mismatch,
    unknown_member,
    unlisted,
    unnamed,
)
from reshard.formats.described.local import are_alike, integer, local_tensor, memory_of, shape_of
from reshard.formats.described.names import Unwrapped, name_numbers
from reshard.formats.described.shards import Shards
from reshard.formats.described.sharing import ALL, Sharing
from reshard.formats.described.shipped import is_order_free, is_shipped, order_of
from reshard.formats.described.tree import is_tensor
from reshard.formats.described.walk import Leaf, Walked
from reshard.language.layout import Layout, PartitionRule
from reshard.language.place import GROUP, NAME, NUMBER, STATE
from reshard.plan.catalog import Coord, Fragment, Left, LocalTensor
from reshard.run.numbering import GIVEN, SORTED, looks_sorted, names_of_numbers
from reshard.storage.inert import Record
from reshard.storage.tensor_ref import TensorRef

Shape = tuple[int, ...]
_SHAPED = ("exp_avg", "exp_avg_sq", "master", "momentum_buffer")
"""States that have the shape of their parameter, the surest first."""


@dataclass(slots=True)
class States:
    """What was put together.

    Args:  groups: the names of each group's parameters, in order; of the first stage, where each
           has its own.  groups_of: those of each file that lists some.
           aliases: other name -> name.
           uncut: weights that every rank has whole where the others are DTensors.
           withheld: why numbered states are not listed.  assumed: a warning of their order.
           copies: of tensors that say themselves which ranks hold the same of them.
    """

    tensors: list[LocalTensor] = field(default_factory=list)
    groups: list[list[str]] = field(default_factory=list)
    groups_of: dict[str, list[list[str]]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    uncut: list[str] = field(default_factory=list)
    frozen: tuple[str, ...] = ()
    copies: int = 1
    withheld: tuple[Diagnostic, ...] = ()
    assumed: tuple[Diagnostic, ...] = ()


def put_together(
    layout: Layout,
    walked: Walked,
    mesh: Mapping[str, int],
    config: Mapping[str, object] | None = None,
) -> States:
    """Every tensor of every state, on every coordinate.

    Args:  config: of the model; which order its parameters have may depend on it.
    Raises: ReshardError[ambiguous-optimizer-ids | share-mismatch | missing-place | state-mismatch |
            not-obeyed | name-clash].
    """
    return _Together(layout, walked, mesh, config or {}).states()


def _is_weight(leaf: Leaf) -> bool:
    return leaf.entry.names[:1] == ("param",)


class _Together:
    def __init__(
        self,
        layout: Layout,
        walked: Walked,
        mesh: Mapping[str, int],
        config: Mapping[str, object],
    ) -> None:
        self._config = config
        self._layout = layout
        self._mesh = mesh
        self._shared = {rule.over for rule in layout.partitions}
        self._leaves = name_numbers(walked.leaves)
        leaves = self._of("state", "states")
        self._sharing = Sharing(layout, mesh)
        self._shards = Shards(layout, walked, mesh, self._sharing)
        if self._shards.are_used:
            self._shared = set(mesh)
        self._out = States()
        self._same_memory: set[str] = set()
        self._ties = [tie for tie in layout.ties if tie.holds(config)]
        self._names_of = Unwrapped(
            layout.wrappers,
            [str(x.bindings[NAME]) for x in leaves if NAME in x.bindings],
            [str(x.bindings[NAME]) for x in leaves if NAME in x.bindings and _is_weight(x)],
        )

    def _of(self, *roles: str) -> list[Leaf]:
        return [leaf for leaf in self._leaves if leaf.entry.role in roles]

    def states(self) -> States:
        out = self._out
        by_home: dict[Coord, list[tuple[str, Leaf]]] = {}
        for leaf in self._of("state", "states"):
            state = (
                str(leaf.bindings[STATE]) if leaf.entry.role == "states" else leaf.entry.names[0]
            )
            by_home.setdefault(self._coord(leaf, self._shared), []).append((state, leaf))
        self._check_partitions({state for items in by_home.values() for state, _ in items})
        for home, leaves in by_home.items():
            self._home(home, leaves)
        for tie in self._ties:
            self._tie(tie.alias, tie.name, is_asked=tie.when is not None)
        states = {t.name for t in out.tensors if t.state != "param"}
        if states:
            weights = dict.fromkeys(t.name for t in out.tensors if t.state == "param")
            others = {*states, *out.aliases}
            out.frozen = tuple(name for name in weights if name not in others)
        return out

    def _coord(self, leaf: Leaf, without: set[str]) -> Coord:
        """Where a leaf lies; axes of one rank, and those that share states, do not count."""
        return tuple(
            (axis, int(leaf.bindings[axis]))
            for axis, size in self._mesh.items()
            if axis in leaf.bindings and axis not in without and size > 1
        )

    # ---- one coordinate ------------------------------------------------------------------------

    def _home(self, home: Coord, leaves: Sequence[tuple[str, Leaf]]) -> None:
        """Everything that one coordinate of the model-parallel mesh holds."""
        shapes: dict[str, Shape] = {}
        named: dict[tuple[str, str], list[Leaf]] = {}
        numbered: dict[tuple[str, int], list[Leaf]] = {}
        grouped: dict[tuple[str, int], list[Leaf]] = {}
        for state, leaf in leaves:
            if NAME in leaf.bindings:
                name = self._names_of.name(str(leaf.bindings[NAME]))
                if "_flat_param" in name:
                    raise flat_buffer(name, leaf)
                if self._is_left_out(name, leaf):
                    continue
                named.setdefault((state, name), []).append(leaf)
                if self._shards.are_used and _is_weight(leaf):
                    self._shards.add(name, leaf)
            elif NUMBER in leaf.bindings:
                numbered.setdefault((state, int(leaf.bindings[NUMBER])), []).append(leaf)
            else:
                grouped.setdefault((state, int(leaf.bindings[GROUP])), []).append(leaf)
        self._find_aliases(named)
        for (state, name), found in named.items():
            if state == "param" and is_tensor(found[0].value):
                shapes[name] = self._whole_shape(state, found)
        names = self._names(home, numbered, shapes)
        known = numbered.items() if names is not None else ()
        for (state, number), found in known:
            assert names is not None
            if number not in names:
                self._out.withheld = self._out.withheld or unnamed(unlisted(number, found[0]))
                continue
            named.setdefault((state, names[number]), []).extend(found)
        orders = self._orders(home, shapes)
        for (state, name), found in named.items():
            if state != "param" or name not in self._same_memory:
                self._tensor(home, state, name, found, shapes.get(name))
        for (state, group), found in grouped.items():
            self._buffer(home, state, group, found, orders)

    def _tensor(
        self, home: Coord, state: str, name: str, found: Sequence[Leaf], shape: Shape | None
    ) -> None:
        """One parameter's tensor of one state, from the ranks that share it or have copies."""
        rule = self._sharing.rule(state, found[0].bindings)
        first = found[0].value
        is_alone = rule is not None and rule.is_dtensor and isinstance(first, TensorRef)
        if (
            self._shards.are_used
            or any(isinstance(leaf.value, Record) for leaf in found)
            or (is_alone and isinstance(first, TensorRef) and first.shape)
        ):
            if is_alone and state == "param":
                self._out.uncut.append(name)
            joined = join_boxes(name, state, found, self._mesh, self._shards)
            self._out.copies = max(self._out.copies, len(joined))
            self._out.tensors += joined
            return
        if rule is None or not isinstance(first, TensorRef) or not first.shape:
            self._copies(name, state, found)
            return
        parts = self._by_rank(rule, found, f"`{name}` ({state})")
        whole = self._whole_shape(state, found) if rule.kind == "rows" else shape
        if whole is None:
            raise no_shape(rule, name, found[0])
        self._shares(home, state, rule, [(name, whole)], parts)

    def _buffer(
        self,
        home: Coord,
        state: str,
        group: int,
        found: Sequence[Leaf],
        orders: Mapping[int, Mapping[str, Shape]],
    ) -> None:
        """What one place holds for all parameters of a group."""
        if group not in orders:
            raise source_error(
                "missing-place",
                f"nothing says which parameters are in group {group}",
                notes=[f"{state} of that group is at {found[0].shown}"],
                helps=["say where their order stands: `order by` or `number by`"],
                primary=label(found[0].entry.span, "states of a group"),
            )
        members = list(orders[group].items())
        rule = self._sharing.rule(state, found[0].bindings)
        if not isinstance(found[0].value, TensorRef) or not found[0].value.shape:
            for name, _ in members:
                self._copies(name, state, found)
            return
        if rule is None:
            used = PartitionRule((state,), "", "buffer", None, span=found[0].entry.span)
            self._shares(home, state, used, members, found[:1])
            return
        parts = self._by_rank(rule, found, f"group {group} ({state})")
        self._shares(home, state, rule, members, parts)

    def _copies(self, name: str, state: str, found: Sequence[Leaf]) -> None:
        """What each rank has whole; numbers that are alike are there once."""
        without = self._shared if are_alike(found) else set()
        made = {self._coord(leaf, without): leaf for leaf in reversed(found)}
        for coord, leaf in reversed(made.items()):
            self._out.tensors.append(local_tensor(name, state, coord, leaf))

    def _by_rank(self, rule: PartitionRule, found: Sequence[Leaf], what: str) -> list[Leaf]:
        """The share of every rank, in order."""
        held = {int(leaf.bindings[rule.over]): leaf for leaf in found}
        lost = [rank for rank in range(self._mesh[rule.over]) if rank not in held]
        if lost:
            raise source_error(
                "missing-place",
                f"the share of {what} of rank {lost[0]} of `{rule.over}` is missing",
                notes=[f"that of another rank is {found[0].shown}"],
                helps=["the files may be of different runs; copy those of one"],
                primary=label(rule.span, "shared by all ranks"),
            )
        return [held[rank] for rank in range(self._mesh[rule.over])]

    def _shares(
        self,
        home: Coord,
        state: str,
        rule: PartitionRule,
        members: Sequence[tuple[str, Shape]],
        parts: Sequence[Leaf],
    ) -> None:
        """The tensors whose elements ranks share; shares that are not as long as they must be are
        refused."""
        cut = self._sharing.cuts(rule, *(shape for _, shape in members))
        refs = [leaf.value for leaf in parts]
        for leaf, ref, length in zip(parts, refs, cut.lengths, strict=True):
            numel = ref.numel if isinstance(ref, TensorRef) else -1
            if numel != length:
                raise share_mismatch(rule, state, members, leaf, numel, length)
        fragments: dict[int, list[Fragment]] = {}
        for share in cut.shares:
            leaf, ref = parts[share.rank], refs[share.rank]
            assert isinstance(ref, TensorRef)
            if not ref.is_contiguous:
                raise share_mismatch(rule, state, members, leaf, ref.numel, ref.numel)
            offset = ref.byte_offset + share.offset * ref.dtype.itemsize
            fragments.setdefault(share.tensor, []).append(
                Fragment(share.start, share.numel, leaf.file.path, offset)
            )
        dtypes = {ref.dtype for ref in refs if isinstance(ref, TensorRef)}
        if len(dtypes) > 1:
            raise source_error(
                "dtype-mismatch",
                f"ranks hold {state} in different element types: {', '.join(map(str, dtypes))}",
                notes=[f"the first is {parts[0].shown}"],
            )
        for index, (name, shape) in enumerate(members):
            found = sorted(fragments.get(index, []), key=lambda item: item.start)
            self._out.tensors.append(
                LocalTensor(name, state, home, shape, next(iter(dtypes)), tuple(found))
            )

    def _whole_shape(self, state: str, found: Sequence[Leaf]) -> Shape:
        """The shape of a tensor that its ranks may share by rows."""
        if isinstance(found[0].value, Record):
            parts = parts_of(found[0], self._mesh)
            return parts[0].shape if parts else ()
        shapes = [leaf.value.shape for leaf in found if isinstance(leaf.value, TensorRef)]
        rule = self._sharing.rule(state, found[0].bindings)
        if rule is None or rule.kind != "rows" or rule.is_dtensor or not shapes[0]:
            return shapes[0]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _names(
        self,
        home: Coord,
        numbered: Mapping[tuple[str, int], Sequence[Leaf]],
        shapes: Mapping[str, Shape],
    ) -> dict[int, str] | None:
        """The name of every number; None where it is not known. The groups are noted."""
        numbers = self._lists("number", home)
        named = self._lists("named", home)
        if numbers and all(isinstance(n, str) for listed in numbers.values() for n in listed):
            numbers, named = {}, numbers  # FSDP's own state dict has names where torch counts
        if named and numbers:
            pairs = [
                (integer(number), self._names_of.name(str(name)))
                for group, listed in numbers.items()
                for number, name in zip(listed, named.get(group, ()), strict=False)
            ]
            out = dict(pairs)
        elif numbers:
            seen: dict[int, Shape] = {}
            for state in dict.fromkeys((*_SHAPED, *(state for state, _ in numbered))):
                for (kind, number), found in numbered.items():
                    if kind == state and is_tensor(found[0].value):
                        shape = self._whole_shape(state, found)
                        if shape:
                            seen.setdefault(number, shape)
            parameters = [(n, s) for n, s in shapes.items() if n not in self._out.aliases]
            parameters = self._as_shared(parameters, numbered)
            groups = [[integer(n) for n in listed] for listed in numbers.values()]
            where = next(leaf.file.path for leaf in self._of("number"))
            why, parameters = self._in_order(parameters, numbered)
            try:
                out = names_of_numbers(
                    groups, seen, parameters, where, is_ordered=not why, why_unordered=why
                )
            except ReshardError as error:
                self._out.withheld += unnamed(error, self._layout if why == GIVEN else None)
                return None
        else:
            out = {}
        for leaf in self._of("number") or self._of("named"):
            if self._coord(leaf, self._shared) == home and isinstance(leaf.value, (list, tuple)):
                names = [
                    out[integer(n)] if numbers else self._names_of.name(str(n)) for n in leaf.value
                ]
                self._out.groups_of.setdefault(leaf.file.path, []).append(names)
        if not self._out.groups:
            self._out.groups = next(iter(self._out.groups_of.values()), [])
        return out

    def _as_shared(
        self,
        parameters: list[tuple[str, Shape]],
        numbered: Mapping[tuple[str, int], Sequence[Leaf]],
    ) -> list[tuple[str, Shape]]:
        """The parameters with the shapes that numbered states have: those of flat shares."""
        rules = [self._sharing.rule(state) for state, _ in numbered]
        kinds = ("each", "balanced")
        rule = next((item for item in rules if item is not None and item.kind in kinds), None)
        if rule is None:
            return parameters
        return [(n, (self._sharing.cuts(rule, s).lengths[0],)) for n, s in parameters]

    def _in_order(
        self,
        parameters: list[tuple[str, Shape]],
        numbered: Mapping[tuple[str, int], Sequence[Leaf]],
    ) -> tuple[str, list[tuple[str, Shape]]]:
        """Why the order of the optimizer is not known, if it is not; the parameters in it.

        What a layout says goes first; a file of torch has the module's order, and one of
        safetensors has its names sorted. A script may give an optimizer another order.
        """
        order = order_of(self._layout, [name for name, _ in parameters], self._config)
        if order is not None:
            return "", sorted(parameters, key=lambda item: order.key(item[0]))
        weights = [leaf.file.path for leaf in self._of("state") if NAME in leaf.bindings]
        is_sorted = any(path.endswith(".safetensors") for path in weights) or looks_sorted(
            [name for name, _ in parameters]
        )
        if is_sorted:
            return SORTED, parameters
        if numbered and is_order_free(self._layout):
            return GIVEN, parameters
        if numbered and not is_shipped(self._layout):
            self._out.assumed = self._out.assumed or order_assumed(parameters)
        return "", parameters

    def _lists(self, role: str, home: Coord) -> dict[int, list[object]]:
        """The lists of numbers or names, by group."""
        out: dict[int, list[object]] = {}
        for leaf in self._of(role):
            if self._coord(leaf, self._shared) == home and NUMBER not in leaf.bindings:
                assert isinstance(leaf.value, (list, tuple))
                out.setdefault(int(leaf.bindings.get(GROUP, 0)), list(leaf.value))
        return out

    def _orders(self, home: Coord, shapes: Mapping[str, Shape]) -> dict[int, dict[str, Shape]]:
        """The names and shapes of what each buffer holds, in order."""
        out: dict[int, dict[str, Shape]] = {}
        for leaf in self._of("order"):
            group = out.setdefault(int(leaf.bindings.get(GROUP, 0)), {})
            if NAME in leaf.bindings:
                shape = shape_of(leaf.value)
                name = self._names_of.name(str(leaf.bindings[NAME]))
                known = shapes.get(name)
                if shape is None or known not in (None, shape):
                    raise source_error(
                        "share-mismatch",
                        f"the order of group {leaf.bindings.get(GROUP, 0)} gives `{name}` the "
                        f"shape {shape and list(shape)}"
                        + (f", and its weight has {list(known)}" if known is not None else ""),
                        notes=[f"at {leaf.shown}"],
                        primary=label(leaf.entry.span, "names and shapes"),
                    )
                group.setdefault(name, shape)
            elif isinstance(leaf.value, (list, tuple)):
                for item in leaf.value:
                    name = self._names_of.name(str(item))
                    if name not in shapes:
                        raise unknown_member(name, leaf)
                    group.setdefault(name, shapes[name])
        if out and not self._out.groups:
            self._out.groups = [list(out[group]) for group in sorted(out)]
        if not out and self._out.groups:
            for index, names in enumerate(self._out.groups):
                out[index] = {name: shapes[name] for name in names if name in shapes}
        if not out and shapes:
            out[0] = {n: s for n, s in shapes.items() if n not in self._out.aliases}
        return out

    def _is_left_out(self, name: str, leaf: Leaf) -> bool:
        for item in self._layout.left_out:
            if item.pattern.match(name) is not None:
                entry = Left(
                    leaf.file.path, ".".join(str(at).lstrip("/") for at in leaf.where), item.because
                )
                self._out.left.append(entry)
                return True
        return False

    def _find_aliases(self, named: Mapping[tuple[str, str], Sequence[Leaf]]) -> None:
        """Names of one file that refer to the same memory."""
        places: dict[object, str] = {}
        for (state, name), found in named.items():
            ref = memory_of(found[0].value)
            if state == "param" and ref is not None and ref.numel:
                place = (
                    found[0].file.path,
                    ref.storage_key,
                    ref.storage_offset,
                    ref.shape,
                    ref.strides,
                    ref.dtype,
                )
                first = places.setdefault(place, name)
                if first != name:
                    self._out.aliases[name] = first
                    self._same_memory.add(name)

    def _tie(self, alias: str, name: str, *, is_asked: bool) -> None:
        stored = {tensor.name for tensor in self._out.tensors}
        if is_asked and {alias, name} <= stored:
            return  # two tensors, which the names of the model hold against each other
        known = {self._out.aliases.get(name, name), self._out.aliases.get(alias, alias)}
        if not known & stored:
            if is_asked:
                return
            raise source_error(
                "not-obeyed",
                f"neither `{alias}` nor `{name}` is stored, and the layout ties them",
                helps=["correct the names, or remove the `tie`"],
                primary=label(self._layout.span, "in this layout"),
            )
        if name in stored:
            self._out.aliases[alias] = name
        elif self._out.aliases.get(name) != alias:
            self._out.aliases[name] = alias

    def _check_partitions(self, states: set[str]) -> None:
        for rule in self._layout.partitions:
            for state in rule.states:
                if state != ALL and states and state not in states and states != {"param"}:
                    raise source_error(
                        "not-obeyed",
                        f"no file stores a state `{state}`, which `{rule.over}` is to share",
                        notes=[f"they store {', '.join(f'`{s}`' for s in sorted(states))}"],
                        helps=["correct its name, or leave it out of the line"],
                        primary=label(rule.span, f"`{state}` is not stored"),
                    )
