"""Axis sizes from what is known and from the shapes that are stored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from reshard.algebra.split import round_up
from reshard.algebra.term import Leaf, Product, Term, term_axes
from reshard.errors import ReshardError, layout_error
from reshard.language.expression import Expression, evaluate
from reshard.language.expression import names as names_in
from reshard.language.layout import Axis, Rule, Split
from reshard.plan import solve_faults
from reshard.plan.axes import AxisCut, block_count, blocks_of
from reshard.plan.eliminate import eliminate, expand
from reshard.plan.environment import is_known
from reshard.plan.model_values import solve_size
from reshard.plan.solve_faults import Equation, Observation

NO_SPLIT = Split()

Unknown = tuple[str, int | None]
"""An axis, and which block of it; None for the whole axis in one place."""


def rule_dims(rule: Rule, ndim: int) -> tuple[Term, ...] | None:
    """The terms of a stored tensor of this rank, `...` written out; None if it does not fit."""
    extra = ndim - len(rule.dims)
    if extra < 0 or (extra and not rule.rest):
        return None
    return rule.dims + tuple(Leaf(f"...{index}") for index in range(extra))


class Solver:
    """Finds the cut of every axis of stored tensors that share their axes.

    Args:  axes: declared axes, with sizes where the layout states them.  splits: by axis.
           mesh: axis -> size.  env: for the expressions.
           given: names in sizes that the user states: what is stored beyond such a size is padding.
           shares: whether the parts of a sum whose sizes nothing tells are of equal size.
    """

    def __init__(
        self,
        axes: Mapping[str, Axis],
        splits: Mapping[str, Split],
        mesh: Mapping[str, int],
        env: Mapping[str, object],
        *,
        given: Collection[str] = (),
        shares: bool = False,
    ) -> None:
        self._axes = axes
        self._given = given
        self._splits = splits
        self._mesh = mesh
        self._env = self._stated = env
        self._shares = shares
        self._cuts: dict[str, AxisCut] = {}
        self._sizes: dict[Unknown, int] = {}
        self._seen: dict[Unknown, Observation] = {}

    def solve(self, items: Sequence[tuple[tuple[Term, ...], Observation]]) -> dict[str, AxisCut]:
        """The cut of every axis in the terms.

        Args:  items: terms of a stored tensor, with `...` written out, and its shape.
        Raises: ReshardError[shape-mismatch | uneven-split | unsolvable-size | missing-block].
        """
        names = list(
            dict.fromkeys(a for dims, _ in items for term in dims for a in term_axes(term))
        )
        for name in names:
            self._state(name)
        open_equations = [
            Equation(term, length, seen, dim)
            for dims, seen in items
            for dim, (term, length) in enumerate(zip(dims, seen.shape, strict=True))
        ]
        while open_equations:
            left = [item for item in open_equations if not self._settle(item)]
            if (
                len(left) == len(open_equations)
                and not self._derive(names)
                and not self._eliminate(left)
                and not self._share(left)
            ):
                raise solve_faults.unsolvable(left, self._settable(left))
            open_equations = left
        for name in names:
            if name not in self._cuts:
                self._cuts[name] = self._observed(name)
        return self._cuts

    def _state(self, name: str) -> None:
        """Cut an axis whose size the layout states."""
        axis = self._axes.get(name)
        if axis is None or axis.size is None or not is_known(axis.size, self._env):
            return
        split = self._splits.get(name, NO_SPLIT)
        size = integer(evaluate(axis.size, self._env), f"the size of axis `{name}`")
        self._cuts[name] = stated_cut(name, size, split, self._mesh, self._env)

    def _derive(self, names: Sequence[str]) -> bool:
        """State axes whose sizes follow from one that was seen: `d` from `half = d / 2`; whether
        there were such.
        """
        values = dict(self._env)
        for name in names:
            axis, size = self._axes.get(name), self._sizes.get((name, None))
            if size is not None and axis is not None and axis.size is not None:
                solve_size(axis.size, size, values)
        if values == self._env:
            return False
        self._env, open_names = values, [name for name in names if name not in self._cuts]
        for name in open_names:
            if (name, None) not in self._sizes:
                self._state(name)
        return any(name in self._cuts for name in open_names)

    def _eliminate(self, items: Sequence[Equation]) -> bool:
        """Solve several equations at once; whether that gave a size."""
        seen: dict[object, Observation] = {}
        equations = []
        for item in items:
            coord = dict(item.seen.coord)

            def known(axis: str, coord: Mapping[str, int] = coord) -> int | object:
                what = axis, self._block(axis, coord)
                is_open = axis not in self._cuts and what not in self._sizes
                return what if is_open else self._size(Leaf(axis), coord)

            for unknown in self._unknowns(item.term, coord):
                seen.setdefault(unknown, item.seen)
            equations.append((expand(item.term, known), item.length))
        found = eliminate(equations)
        for what, size in found.items():
            assert isinstance(what, tuple)
            self._sizes[what[0], what[1]] = size
            self._seen[what[0], what[1]] = seen[what]
        return bool(found)

    def _settable(self, items: Sequence[Equation]) -> list[str]:
        """Names without a value that the sizes of unknown axes are made of."""
        axes = [axis for item in items for axis in term_axes(item.term) if axis not in self._cuts]
        found = [
            name
            for axis in dict.fromkeys(axes)
            if (declared := self._axes.get(axis)) is not None and declared.size is not None
            for name in names_in(declared.size)
            if self._env.get(name) is None
        ]
        return list(dict.fromkeys(found))

    def _settle(self, item: Equation) -> bool:
        """Check an equation without unknowns, or solve one with a single unknown."""
        coord = dict(item.seen.coord)
        unknown = set(self._unknowns(item.term, coord))
        if not unknown:
            sizes = [self._size(item.term, coord, padded) for padded in (True, False)]
            if item.length not in sizes and not self._is_padded_otherwise(item):
                raise self._mismatch(item, sizes[0], coord)
            return True
        if len(unknown) > 1:
            return False
        return self._solve_for(unknown.pop(), item.term, item.length, item, coord)

    def _is_padded_otherwise(self, item: Equation) -> bool:
        """Whether an axis in one block, whose size the user states, has padding of another length;
        it then has that padding from here on.
        """
        if not isinstance(item.term, Leaf):
            return False
        name = item.term.axis
        axis, cut = self._axes.get(name), self._cuts.get(name)
        split = self._splits.get(name, NO_SPLIT)
        if cut is None or axis is None or axis.size is None or len(cut.blocks) != 1:
            return False
        if split.pad_to is None or split.truncated_to is not None or item.length < cut.size:
            return False
        if not {*names_in(axis.size)} & {*self._given}:
            return False
        self._cuts[name] = AxisCut(cut.over, (item.length,), cut.size)
        return True

    def _solve_for(
        self, what: Unknown, term: Term, length: int, item: Equation, coord: Mapping[str, int]
    ) -> bool:
        """Find the one unknown size in `size of term == length`, which is linear in it.

        What is stored whole may be stored without its padding; that is asked when the size with
        padding has no solution.
        """
        faults = []
        for padded in (True, False):
            base, step = self._line(what, term, coord, padded)
            if step == 0:
                return False
            size, rest = divmod(length - base, step)
            if not rest and size >= 0:
                self._sizes[what] = size
                self._seen[what] = item.seen
                return True
            faults.append(solve_faults.indivisible(item, length, base, step, what[0]))
        raise faults[0]

    def _line(
        self, what: Unknown, term: Term, coord: Mapping[str, int], padded: bool
    ) -> tuple[int, int]:
        """The size of a term where the one unknown size is 0, and what each more of it adds."""
        self._sizes[what] = 0
        base = self._size(term, coord, padded)
        self._sizes[what] = 1
        step = self._size(term, coord, padded) - base
        del self._sizes[what]
        return base, step

    def _share(self, items: Sequence[Equation]) -> bool:
        """Give the unsized parts of one sum equal shares; whether there was such a sum."""
        if not self._shares:
            return False
        for item in items:
            coord = dict(item.seen.coord)
            found = self._open_sum(item.term, item.length, coord)
            if found is None:
                continue
            parts, left = found
            share, rest = divmod(left, len(parts))
            if rest or left < 0:
                raise solve_faults.unequal(item, left, len(parts))
            for part in parts:
                unknown = set(self._unknowns(part, coord))
                if len(unknown) == 1:
                    self._solve_for(unknown.pop(), part, share, item, coord)
            return True
        return False

    def _open_sum(
        self, term: Term, length: int, coord: Mapping[str, int]
    ) -> tuple[list[Term], int] | None:
        """The unsized parts of a sum whose own size is known, and the elements they share."""
        if isinstance(term, Product):
            unsized = [t for t in term.terms if any(True for _ in self._unknowns(t, coord))]
            if len(unsized) != 1:
                return None
            known = 1
            for inner in term.terms:
                known *= 1 if inner is unsized[0] else self._size(inner, coord)
            if known == 0 or length % known:
                return None
            return self._open_sum(unsized[0], length // known, coord)
        if isinstance(term, Leaf):
            return None
        parts = [part.term for part in term.parts]
        unsized = [t for t in parts if any(True for _ in self._unknowns(t, coord))]
        if any(len(set(self._unknowns(t, coord))) > 1 for t in unsized):
            return None
        left = length - sum(self._size(t, coord) for t in parts if t not in unsized)
        return unsized, left

    def _unknowns(self, term: Term, coord: Mapping[str, int]) -> Iterator[Unknown]:
        for name in term_axes(term):
            what = name, self._block(name, coord)
            if name not in self._cuts and what not in self._sizes:
                yield what

    def _size(self, term: Term, coord: Mapping[str, int], padded: bool = True) -> int:
        """Stored elements of a term at a coordinate; what is not known counts nothing."""
        if isinstance(term, Leaf):
            cut = self._cuts.get(term.axis)
            if cut is not None:
                return cut.extent(coord, self._mesh, padded=padded).stored
            return self._sizes.get((term.axis, self._block(term.axis, coord)), 0)
        if isinstance(term, Product):
            size = 1
            for inner in term.terms:
                size *= self._size(inner, coord, padded)
            return size
        return sum(self._size(part.term, coord, padded) for part in term.parts)

    def _block(self, name: str, coord: Mapping[str, int]) -> int | None:
        over = self._splits.get(name, NO_SPLIT).over
        return AxisCut(over, (), 0).block(coord, self._mesh)

    def _observed(self, name: str) -> AxisCut:
        """The cut of an axis by the sizes that were seen on the ranks."""
        split = self._splits.get(name, NO_SPLIT)
        seen = {
            block: (size, self._seen[name, block])
            for (axis, block), size in self._sizes.items()
            if axis == name
        }
        if split.pad_to is not None and split.truncated_to is None:
            raise solve_faults.unknown_padding(name, next(iter(seen.values()))[1])
        whole = seen.pop(None, None)
        count = block_count(split.over, self._mesh)
        if seen:
            blocks = self._blocks(name, split, count, seen)
        else:
            assert whole is not None
            blocks = self._whole_blocks(whole[0], split)
        size = total = sum(blocks)
        if split.truncated_to is not None:
            size = integer(
                evaluate(split.truncated_to, self._env), f"what axis `{name}` is truncated to"
            )
            if size > total:
                first = next(iter(seen.values()))[1] if whole is None else whole[1]
                raise solve_faults.truncated(name, size, total, first)
        if whole is not None and whole[0] not in (total, size):
            raise solve_faults.whole_differs(name, *whole, total)
        return AxisCut(split.over, blocks, size)

    def _blocks(
        self,
        name: str,
        split: Split,
        count: int,
        seen: Mapping[int | None, tuple[int, Observation]],
    ) -> tuple[int, ...]:
        """The size of every block, from those that were seen."""
        sizes = {block: size for block, (size, _) in seen.items() if block is not None}
        missing = [block for block in range(count) if block not in sizes]
        if missing:
            raise solve_faults.missing(name, split, missing, count, next(iter(seen.values()))[1])
        blocks = tuple(sizes[block] for block in range(count))
        first = [found for _, found in seen.values()]
        try:
            wanted = blocks_of(sum(blocks), split, self._mesh)
        except ValueError as error:
            raise solve_faults.uneven(name, split, blocks, first, f"{error}") from None
        if wanted != blocks:
            why = f"the layout says {solve_faults.listed(wanted)}"
            raise solve_faults.uneven(name, split, blocks, first, why)
        return blocks

    def _whole_blocks(self, total: int, split: Split) -> tuple[int, ...]:
        """The blocks of an axis that every file stores whole."""
        try:
            return blocks_of(total, split, self._mesh)
        except ValueError:
            return (total,)

    def _mismatch(self, item: Equation, size: int, coord: Mapping[str, int]) -> ReshardError:
        axes = dict.fromkeys(term_axes(item.term))
        known = {axis: self._size(Leaf(axis), coord) for axis in axes}
        origins = {
            axis: self._seen[what]
            for axis in axes
            if (what := (axis, self._block(axis, coord))) in self._seen
        }
        stated = {
            name: self._stated[name]
            for axis in axes
            if axis not in origins and (size_of := self._size_of(axis)) is not None
            for name in names_in(size_of)
            if name in self._stated
        }
        return solve_faults.mismatch(item, size, known, origins, stated, self._mesh)

    def _size_of(self, axis: str) -> Expression | None:
        """What the layout says that the size of an axis is."""
        return self._axes[axis].size if axis in self._axes else None


def stated_cut(
    name: str, size: int, split: Split, mesh: Mapping[str, int], env: Mapping[str, object]
) -> AxisCut:
    """The cut of an axis whose logical size is known.

    Raises: ReshardError[uneven-split | bad-size].
    """
    stored = padded_size(name, size, split, env)
    if split.truncated_to is not None:
        size = integer(evaluate(split.truncated_to, env), f"what axis `{name}` is truncated to")
        if size > stored:
            raise bad_size(f"what axis `{name}` is truncated to", size, f"at most {stored}")
    if not any(axis in mesh for axis in split.over):
        return AxisCut(split.over, (stored,), size)
    try:
        blocks = blocks_of(stored, split, mesh)
    except ValueError as error:
        count = block_count(split.over, mesh)
        raise solve_faults.unsplit(name, stored, split, count, mesh, f"{error}") from None
    return AxisCut(split.over, blocks, size)


def padded_size(name: str, size: int, split: Split, env: Mapping[str, object]) -> int:
    """The stored elements of an axis of `size` logical ones.

    Raises: ReshardError[bad-size].
    """
    if split.pad_to is None:
        return size
    what = f"what axis `{name}` is padded to a multiple of"
    multiple = integer(evaluate(split.pad_to, env), what)
    if multiple < 1:
        raise bad_size(what, multiple, "at least 1")
    return round_up(size, multiple)


def integer(value: object, what: str) -> int:
    """A size, as it was computed.

    Raises: ReshardError[bad-size].
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_size(what, value, "a whole number")
    if value < 0:
        raise bad_size(what, value, "at least 0")
    return value


def bad_size(what: str, value: object, wanted: str) -> ReshardError:
    """A size that no axis can have."""
    shown = f"{value}".lower() if isinstance(value, bool) else f"{value}"
    return layout_error(
        "bad-size",
        f"{what} is {shown}, and must be {wanted}",
        helps=["correct it in the layout, in the model's configuration, or with `--set`"],
    )
