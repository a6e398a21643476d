"""The tensors of a target, at each of its coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from reshard.algebra.piece import Piece
from reshard.dtypes import DType
from reshard.errors import Diagnostic, label, target_error
from reshard.formats.described import NAME as FORMAT
from reshard.formats.described.groups import STAGE
from reshard.formats.described.sharing import Sharing
from reshard.formats.described.shipped import is_shipped, order_of
from reshard.formats.described.slices import made_slices
from reshard.formats.dtensor import rank_mesh, row_shard
from reshard.language.layout import Entry, Layout, PartitionRule
from reshard.language.place import NAME, NUMBER
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.framework_config import framework_config
from reshard.plan.names import group_names, quantity
from reshard.plan.plan import ArraySpec
from reshard.plan.recut import CutTensor, cut_tensors
from reshard.plan.slice import in_shares
from reshard.run.states import EXTRA, MASTER, PARAM
from reshard.storage.inert import Record
from reshard.storage.torch_output import TorchOutput
from reshard.storage.torch_writer import NewTensor

At = Mapping[str, str | int]
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Placement:
    """Where parameters lie by a rule of their framework, which no layout can state.

    Args:  cut: by name, in the order of the model, what each coordinate holds.
           axes: by name, the axes that cut it, be they of one rank.
           homes: by name, the pipeline stage that saves the weight.
           holders: by name, the stages whose optimizers have it.
           has_group_each: whether every parameter has a group of its own.
    """

    cut: Mapping[str, list[CutTensor]]
    axes: Mapping[str, tuple[str, ...]]
    homes: Mapping[str, int]
    holders: Mapping[str, frozenset[int]]
    has_group_each: bool


@dataclass(frozen=True, slots=True)
class FileGroup:
    """A group as a file lists it.

    Args:  number: of the group of the source that it is of.  members: names of its parameters.
    """

    number: int
    members: list[str]


class WrittenStates:
    """Which tensor goes where, and which have no place.

    Args:  names: of parameters, in the order of the source.  kinds: states that are stored.
           groups: names of each group's parameters, in the order of their numbers.
    """

    def __init__(
        self,
        arrangement: Arrangement,
        layout: Layout,
        mesh: Mapping[str, int],
        output: TorchOutput,
        device: str,
        placement: Placement | None = None,
    ) -> None:
        self._arrangement = arrangement
        self._layout = layout
        self._mesh = mesh
        self._output = output
        self._device = device
        uncut = arrangement.catalog.training.of(FORMAT).get("uncut", [])
        self._uncut = frozenset(uncut if isinstance(uncut, list) else [])
        self._placement, self._sharing = placement, Sharing(layout, mesh)
        self._cut = placement.cut if placement else cut_tensors(arrangement, layout, mesh)
        entries = [entry for rule in layout.files for entry in rule.entries]
        self._counts_by_file = any(
            x.role == "named" and any(place.has(NUMBER) for place in x.places) for x in entries
        )
        self._by_file: dict[tuple[object, ...], tuple[list[FileGroup], dict[str, int]]] = {}
        self._copies = _same_weights(arrangement)
        known = {**(arrangement.catalog.config or {}), **arrangement.values}
        stored = {whole.name for whole in arrangement.wholes}
        ties = {tie.alias: tie.name for tie in layout.ties if tie.holds(known)}
        self.aliases = {**(arrangement.catalog.aliases or {}), **self._copies} | {
            alias: name for alias, name in ties.items() if alias not in stored and name in stored
        }
        self._wholes: dict[tuple[str, str], Whole] = {
            (whole.name, whole.state): whole
            for whole in arrangement.wholes
            if whole.state != EXTRA and whole.name not in self._copies
        }
        self._specs: dict[int, tuple[NewTensor, ArraySpec]] = {}
        self._meshes: dict[tuple[str, int], Record] = {}
        self._placed: set[tuple[str, str]] = set()
        self._folded: dict[tuple[str, str], str] = {}
        self._homes = self._find_homes()
        self._masters = self._masters_as_weights()
        self.makes_weights = False
        for name, state in list(self._wholes) if placement else ():
            if state == MASTER:  # the weights of a source that has no others
                if (name, PARAM) not in self._wholes and MASTER in self._homes:
                    self.makes_weights = True
                self._wholes.setdefault((name, PARAM), self._wholes[name, state])
        self._homes = self._find_homes()
        order = self._cut if placement else ()
        self.names = list(dict.fromkeys([*order, *(name for name, _ in self._wholes)]))
        self.kinds = list(dict.fromkeys(state for _, state in self._wholes))
        self.groups, self._is_guessed = self._find_groups()
        self._numbers = {
            name: number for number, name in enumerate(n for group in self.groups for n in group)
        }

    # ---- what goes where -----------------------------------------------------------------------

    def _find_homes(self) -> dict[str, Entry]:
        """By state, the statement that it is written by: the one that names it, else any."""
        out: dict[str, Entry] = {}
        for state in dict.fromkeys(state for _, state in self._wholes):
            entries = [entry for rule in self._layout.files for entry in rule.entries]
            named = [e for e in entries if e.role == "state" and state in e.names]
            free = [e for e in entries if e.role == "states" and state != "param"]
            if named or free:
                out[state] = (named or free)[0]
        return out

    def _masters_as_weights(self) -> tuple[str, ...]:
        """Write master weights as the weights where an optimizer of torch is what loads the states.

        The layouts that ship are of such optimizers. They keep no master weights: the weights of a
        run in mixed precision are in fp32, and another state that they load is rounded to the type
        of the weights. A layout of a user's own may be of any optimizer.

        Returns: the names of the weights.
        """
        home = self._homes.get(MASTER)
        framework = self._arrangement.catalog.training.framework or {}
        if (
            home is None
            or home.role == "state"
            or not is_shipped(self._layout)
            or framework.get("layout") == self._layout.name
        ):
            return ()
        masters = {name: whole for (name, state), whole in self._wholes.items() if state == MASTER}
        for name in masters:
            if (name, PARAM) in self._wholes:
                self._folded[name, PARAM] = "the master weights, from which it is rounded"
        self._wholes = {
            (name, state): masters.get(name, whole) if state == PARAM else whole
            for (name, kind), whole in self._wholes.items()
            for state in [PARAM if kind == MASTER else kind]
        }
        return tuple(masters)

    def of(self, entry: Entry) -> list[str]:
        """The states that a statement writes."""
        return [state for state, home in self._homes.items() if home is entry]

    def _find_groups(self) -> tuple[list[list[str]], bool]:
        """The parameters of each group, and whether their order is only the source's."""
        known = set(self.names)
        trained = {name for name, state in self._wholes if state != PARAM} | set(self._masters)
        groups = [
            [str(name) for name in params if name in known]
            for group in self._arrangement.catalog.training.param_groups
            if isinstance(params := group.get("params"), (list, tuple))
        ]
        is_known = any(groups) or not trained
        if not is_known:
            groups = [[name for name in self.names if name in trained]]
        config = dict(self._arrangement.catalog.config or {})
        if self._arrangement.layout.model is not None:
            config |= framework_config(self._arrangement.layout, self._arrangement.values)
        order = order_of(self._layout, [name for group in groups for name in group], config)
        if order is not None:
            self.names.sort(key=order.key)
            return [sorted(group, key=order.key) for group in groups], False
        framework = self._arrangement.catalog.training.framework
        return groups, not is_known or framework.get("layout") != self._layout.name

    def listed(self, at: At) -> tuple[list[FileGroup], dict[str, int]]:
        """The groups of a file, and the number of each parameter that it has."""
        if not self._counts_by_file and STAGE not in at:
            groups = [FileGroup(index, names) for index, names in enumerate(self.groups)]
            return groups, self._numbers
        key = tuple(at.get(axis) for axis in self._mesh)
        if key not in self._by_file:
            groups = []
            for index, names in enumerate(self.groups):
                held = [name for name in names if self._is_on_stage(name, at, of_weight=False)]
                groups.append(FileGroup(index, [x for x in held if self._local(x, at)]))
            if self._placement is not None and self._placement.has_group_each:
                order = {name: index for index, name in enumerate(self.names)}
                each = [FileGroup(g.number, [name]) for g in groups for name in g.members]
                groups = sorted(each, key=lambda group: order[group.members[0]])
            present = [n for group in groups for n in group.members]
            if self._counts_by_file:
                present = [name for name in present if self._has_share(name, at)]
            self._by_file[key] = groups, {name: number for number, name in enumerate(present)}
        return self._by_file[key]

    def numbers(self, at: At) -> list[list[int]]:
        """The numbers of each group of a file."""
        groups, known = self.listed(at)
        return [[known[name] for name in group.members if name in known] for group in groups]

    def number(self, name: str, at: At, entry: Entry) -> int:
        """The number of a parameter in a file.

        Raises: ReshardError[no-groups].
        """
        _, known = self.listed(at)
        if name in known:
            return known[name]
        raise target_error(
            "no-groups",
            f"`{name}` has no number, since it is in no parameter group of the source",
            notes=["states are written by number here, group by group"],
            helps=["leave the states out with `--states weights`"],
            primary=label(entry.span, "by number"),
        )

    def weights(self) -> list[Whole]:
        """The weights that are written."""
        return [whole for (_, state), whole in self._wholes.items() if state == PARAM]

    # ---- tensors -------------------------------------------------------------------------------

    def tensors(self, state: str, at: At, path: str) -> Iterator[tuple[str, str, object]]:
        """What a file holds of a state: name of the parameter, name there, and tensor."""
        names = [str(at[NAME])] if NAME in at else self.names
        if self._counts_by_file and state != PARAM:
            names = list(self.listed(at)[1])
        for name in names:
            whole, local = self._wholes.get((name, state)), self._local(name, at)
            if whole is None or local is None:
                continue
            if not self._is_on_stage(name, at, of_weight=state == PARAM):
                continue
            self._placed.add((name, whole.state))
            if whole.rule < 0:
                yield name, local.name, self._tensor(_number_spec(whole, whole.segments))
                continue
            self._check_axes(local, at, path)
            rule = self._sharing.rule(state, at)
            if rule is not None and (not local.shape or (rule.is_dtensor and name in self._uncut)):
                rule = None
            yield name, local.name, self._share(whole, local, rule, at)

    def _share(self, whole: Whole, local: CutTensor, rule: PartitionRule | None, at: At) -> object:
        """A rank's part of one tensor."""
        length, segments = self._held([(whole, local)], rule, at)
        shape = local.shape
        if rule is not None:
            row = prod(shape[1:])
            rows = (length // row if row else 0, *shape[1:])
            shape = rows if rule.kind == "rows" else (length,)
        spec = ArraySpec(whole.name, whole.state, whole.dtype, length, segments, shape)
        part = self._tensor(spec)
        if rule is None or not rule.is_dtensor:
            return part
        return row_shard(part, local.shape, self._rank_mesh(rule, at))

    def _held(
        self, members: Sequence[tuple[Whole, CutTensor]], rule: PartitionRule | None, at: At
    ) -> tuple[int, tuple[tuple[str, Piece], ...]]:
        """What a rank has of tensors that lie in one place: how many elements, and which."""
        rank = 0 if rule is None else int(at[rule.over])
        cuts = self._sharing.cuts(rule, *(local.shape for _, local in members))
        held: list[tuple[str, Piece]] = []
        for share in cuts.by_rank[rank]:
            whole, local = members[share.tensor]
            held += in_shares(local.segments[whole.state], [share])
        return cuts.lengths[rank], tuple(held)

    def _rank_mesh(self, rule: PartitionRule, at: At) -> Record:
        """The mesh as a rank's tensors of one file name it: once, as torch pickles it."""
        ranks, rank = self._mesh[rule.over], int(at[rule.over])
        known = self._meshes.get((rule.over, rank))
        if known is None:
            data = b"".join(number.to_bytes(4, "little") for number in range(ranks))
            numbers = self._output.constant(DType.I32, (ranks,), data)
            known = self._meshes[rule.over, rank] = rank_mesh(ranks, rank, numbers, self._device)
        return known

    def buffer(self, state: str, group: int, at: At, entry: Entry) -> NewTensor | None:
        """What a file holds of a state for all parameters of a group."""
        members = []
        for name in self.groups[group]:
            whole, local = self._wholes.get((name, state)), self._local(name, at)
            if whole is not None and local is not None:
                members.append((whole, local))
        if not members:
            return None
        if len(members) != len(self.groups[group]):
            raise target_error(
                "no-groups",
                f"not every parameter of group {group} has a state `{state}`",
                notes=["one place holds it for all of the group"],
                helps=["leave it out with `--states`"],
                primary=label(entry.span, "of a whole group"),
            )
        first, _ = members[0]
        self._placed.update((whole.name, state) for whole, _ in members)
        if first.rule < 0:
            segments = tuple(item for whole, _ in members for item in whole.segments)
            for whole, _ in members[1:]:
                self._folded[whole.name, state] = f"one `{state}` of its group"
            return self._tensor(_number_spec(first, segments))
        length, held = self._held(members, self._sharing.rule(state, at), at)
        what = f"{state} of group {group}"
        return self._tensor(ArraySpec(what, state, first.dtype, length, held, (length,)))

    def local_shape(self, name: str, at: At) -> tuple[int, ...]:
        """The shape of a parameter at a coordinate."""
        local = self._local(name, at)
        return () if local is None else local.shape

    def axes_of(self, name: str) -> set[str]:
        """The axes that cut a parameter."""
        if self._placement is not None:
            return set(self._placement.axes[name])
        return {axis for item in self._cut.get(name, ()) for axis, _ in item.coord}

    def slices(self, name: str, at: At) -> dict[str, str]:
        """What the file of a weight says of the part that it holds."""
        whole, local = self._wholes[name, PARAM], self._local(name, at)
        assert local is not None, "it is written"
        over = [axis for axis in self._mesh if axis in self.axes_of(name)]
        return made_slices(whole, local, self._mesh, over)

    def _is_on_stage(self, name: str, at: At, *, of_weight: bool) -> bool:
        if self._placement is None or STAGE not in at:
            return True
        stages = self._placement.holders[name]
        return at[STAGE] in ((self._placement.homes[name],) if of_weight else stages)

    def _has_share(self, name: str, at: At) -> bool:
        """Whether a file has some of a parameter's states."""
        local = self._local(name, at)
        rules = (self._sharing.rule(state, at) for state in self.kinds if state != PARAM)
        rule = next((rule for rule in rules if rule is not None), None)
        if local is None or rule is None:
            return local is not None
        return bool(self._sharing.cuts(rule, local.shape).lengths[int(at[rule.over])])

    def _local(self, name: str, at: At) -> CutTensor | None:
        """What a coordinate holds of a tensor; None for nothing."""
        for item in self._cut.get(name, ()):
            if all(at.get(axis, index) == index for axis, index in item.coord):
                return item
        return None

    def _check_axes(self, local: CutTensor, at: At, path: str) -> None:
        for axis, _ in local.coord:
            if axis not in at:
                raise target_error(
                    "no-place",
                    f"`{local.name}` is cut over `{axis}`, and {path} is not of one rank of it",
                    helps=[f"name the file after the rank: `{{{axis}}}`"],
                    primary=label(self._layout.span, "this layout"),
                )

    def _tensor(self, spec: ArraySpec) -> NewTensor:
        made = self._output.tensor(spec)
        self._specs[id(made)] = (made, spec)
        return made

    def spec_of(self, value: object) -> ArraySpec:
        """The array that fills a tensor."""
        return self._specs[id(value)][1]

    # ---- what has no place ---------------------------------------------------------------------

    def dropped(self) -> Iterator[tuple[str, str, str]]:
        """For `Output.dropped`."""
        stored = ((whole.name, whole.state) for whole in self._wholes.values())
        for name, state in dict.fromkeys(stored):
            if (name, state) not in self._placed:
                yield name, state, f"layout `{self._layout.name}` has no place for it"

    def folded(self) -> tuple[tuple[str, str, str], ...]:
        """For `Output.folded`."""
        return tuple((name, state, how) for (name, state), how in self._folded.items())

    def warnings(self) -> Iterator[Diagnostic]:
        """For `Output.warnings`."""
        if self._masters:
            yield self._weights_of_masters()
        counts = any(e.role == "number" for rule in self._layout.files for e in rule.entries)
        if self._is_guessed and counts and self._numbers:
            yield Diagnostic(
                "order-assumed",
                "parameters are numbered in the order in which the source lists them",
                level="warning",
                notes=(
                    "an optimizer takes states by number: what loads them must register its "
                    "parameters in the same order",
                ),
                helps=('say the order in the layout: `order "embed", "layers.{i}.attn", ...`',),
            )

    def _weights_of_masters(self) -> Diagnostic:
        kinds = [whole.state for whole in self._arrangement.wholes if whole.state != EXTRA]
        others = ",".join(dict.fromkeys(kind for kind in kinds if kind != MASTER))
        shown = [f"`{name}`{quantity(count)}" for name, count in group_names(self._masters)]
        note = "the optimizers of torch have no state `master`; a run in mixed precision has fp32 "
        helps = [f"`--states {others}` writes the weights of the source"] if PARAM in kinds else []
        return Diagnostic(
            "weights-of-masters",
            f"{len(self._masters)} tensors are written from the optimizer's master weights",
            level="warning",
            notes=(note + "weights", *shown[:_SHOWN]),
            helps=tuple(helps),
        )


def _same_weights(arrangement: Arrangement) -> dict[str, str]:
    """Weights that are another one once more, as the names of the model say: name -> first name."""
    firsts: dict[object, str] = {}
    out: dict[str, str] = {}
    for whole in arrangement.wholes:
        if whole.state == "param" and whole.rule >= 0:
            key = (
                whole.shape,
                whole.dtype,
                tuple((k, p.box, p.strides) for k, p in whole.segments),
            )
            first = firsts.setdefault(key, whole.name)
            if first != whole.name:
                out[whole.name] = first
    return out


def _number_spec(whole: Whole, segments: tuple[tuple[str, Piece], ...]) -> ArraySpec:
    return ArraySpec(whole.name, whole.state, whole.dtype, 1, segments, ())
