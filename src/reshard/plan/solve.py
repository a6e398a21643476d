"""Axis sizes from what is known and from the shapes that are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reshard.algebra.split import round_up, split_sizes
from reshard.algebra.term import Leaf, Product, Sum, Term, term_axes
from reshard.errors import ReshardError, layout_error
from reshard.language.expression import evaluate
from reshard.language.layout import Axis, Rule, Split
from reshard.plan.axes import AxisCut, block_count
from reshard.plan.catalog import Coord

NO_SPLIT = Split()


@dataclass(frozen=True, slots=True)
class Observation:
    """A stored shape and where it was found."""

    name: str
    coord: Coord
    shape: tuple[int, ...]
    file: str


def rule_dims(rule: Rule, ndim: int) -> tuple[Term, ...] | None:
    """The terms of a stored tensor of this rank, `...` written out; None if it does not fit."""
    extra = ndim - len(rule.dims)
    if extra < 0 or (extra and not rule.rest):
        return None
    return rule.dims + tuple(Leaf(f"...{index}") for index in range(extra))


class Solver:
    """Finds the cut of every axis of one group of stored tensors that share their axes.

    Args:  splits: by axis.  axes: declared axes, with sizes where the layout states them.
           mesh: axis -> size.  env: for the expressions.
    """

    def __init__(
        self,
        axes: Mapping[str, Axis],
        splits: Mapping[str, Split],
        mesh: Mapping[str, int],
        env: Mapping[str, object],
    ) -> None:
        self._axes = axes
        self._splits = splits
        self._mesh = mesh
        self._env = env
        self._cuts: dict[str, AxisCut] = {}
        self._seen: dict[str, dict[int | None, tuple[int, Observation]]] = {}

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
        for dims, seen in items:
            coord = dict(seen.coord)
            for position, (term, length) in enumerate(zip(dims, seen.shape, strict=True)):
                self._equate(term, length, coord, seen, position)
        for name in names:
            if name not in self._cuts:
                self._observe(name)
        return self._cuts

    def _state(self, name: str) -> None:
        """Cut an axis whose size the layout states."""
        axis = self._axes.get(name)
        if axis is None or axis.size is None:
            return
        self._cuts[name] = stated_cut(
            name,
            _integer(evaluate(axis.size, self._env)),
            self._splits.get(name, NO_SPLIT),
            self._mesh,
            self._env,
        )

    def _local(self, name: str, coord: Mapping[str, int]) -> int | None:
        cut = self._cuts.get(name)
        if cut is not None:
            return cut.extent(coord, self._mesh).stored
        known = self._seen.get(name, {}).get(self._block(name, coord))
        return None if known is None else known[0]

    def _block(self, name: str, coord: Mapping[str, int]) -> int | None:
        over = self._splits.get(name, NO_SPLIT).over
        return AxisCut(over, (), 0).block(coord, self._mesh)

    def _size(self, term: Term, coord: Mapping[str, int]) -> int | None:
        if isinstance(term, Leaf):
            return self._local(term.axis, coord)
        items = term.terms if isinstance(term, Product) else tuple(p.term for p in term.parts)
        sizes = [self._size(item, coord) for item in items]
        total = 1 if isinstance(term, Product) else 0
        for size in sizes:
            if size is None:
                return None
            total = total * size if isinstance(term, Product) else total + size
        return total

    def _equate(
        self, term: Term, length: int, coord: Mapping[str, int], seen: Observation, dim: int
    ) -> None:
        """Use `size of term == length` to find what is unknown in the term."""
        size = self._size(term, coord)
        if size is not None:
            if size != length:
                raise self._mismatch(term, size, length, coord, seen, dim)
            return
        if isinstance(term, Leaf):
            self._seen.setdefault(term.axis, {})[self._block(term.axis, coord)] = (length, seen)
            return
        if isinstance(term, Product):
            unknown = [t for t in term.terms if self._size(t, coord) is None]
            known = 1
            for item in term.terms:
                known *= self._size(item, coord) or 1
            if len(unknown) > 1:
                raise self._unsolvable(term, length, seen, dim)
            if length % known:
                raise self._indivisible(length, known, seen, dim)
            self._equate(unknown[0], length // known, coord, seen, dim)
            return
        parts = [part.term for part in term.parts]
        unknown = [t for t in parts if self._size(t, coord) is None]
        left = length - sum(self._size(t, coord) or 0 for t in parts)
        if left < 0 or left % len(unknown):
            raise self._indivisible(left, len(unknown), seen, dim)
        for item in unknown:
            self._equate(item, left // len(unknown), coord, seen, dim)

    def _observe(self, name: str) -> None:
        """Cut an axis by the sizes that were seen on the ranks."""
        split = self._splits.get(name, NO_SPLIT)
        seen = self._seen.get(name, {})
        whole = seen.get(None)
        count = block_count(split.over, self._mesh)
        sizes = {block: size for block, (size, _) in seen.items() if block is not None}
        if split.rule == "sizes" and not sizes:
            blocks = split.sizes
        elif sizes:
            first = next(iter(sizes.values()))
            if split.rule == "even" and any(size != first for size in sizes.values()):
                raise self._uneven(name, split, seen)
            missing = [block for block in range(count) if block not in sizes]
            if missing and split.rule != "even":
                raise self._missing(name, split, missing, seen)
            blocks = tuple(sizes.get(block, first) for block in range(count))
        else:
            assert whole is not None
            blocks = (whole[0],) if not split.over else _even_or_whole(whole[0], count, split)
        total = sum(blocks)
        if whole is not None and split.truncated_to is None and whole[0] != total:
            raise layout_error(
                "shape-mismatch",
                f"axis `{name}` of `{whole[1].name}` has {whole[0]} elements in one file "
                f"and {total} over the ranks of another",
                notes=[f"whole in {whole[1].file}"],
            )
        if split.rule != "even" and split.over:
            try:
                wanted = split_sizes(total, count, split.rule, split.sizes)
            except ValueError as error:
                raise self._uneven(name, split, seen, str(error)) from None
            if wanted != blocks:
                raise self._uneven(name, split, seen, f"the rule gives {_list(wanted)}")
        size = total
        if split.truncated_to is not None:
            size = _integer(evaluate(split.truncated_to, self._env))
            if size > total:
                raise layout_error(
                    "shape-mismatch",
                    f"axis `{name}` is truncated to {size}, "
                    f"but its blocks hold only {total} elements",
                    notes=[f"first seen in {next(iter(seen.values()))[1].file}"],
                )
        self._cuts[name] = AxisCut(split.over, blocks, size)

    def _mismatch(
        self,
        term: Term,
        size: int,
        length: int,
        coord: Mapping[str, int],
        seen: Observation,
        dim: int,
    ) -> ReshardError:
        axes = term_axes(term)
        others = [self._seen[a] for a in axes if a in self._seen]
        notes = [f"shape {list(seen.shape)} in {seen.file}"]
        for other in others:
            first = next(iter(other.values()))[1]
            if first.file != seen.file or first.name != seen.name:
                notes.append(f"`{first.name}` has shape {list(first.shape)} in {first.file}")
        return layout_error(
            "shape-mismatch",
            f"dimension {dim} of `{seen.name}` has {length} elements where the layout says {size}",
            notes=notes,
            helps=[
                "an axis that is cut needs `over MESH_AXIS`; "
                "one that is not must be equal everywhere"
            ],
        )

    def _uneven(
        self,
        name: str,
        split: Split,
        seen: Mapping[int | None, tuple[int, Observation]],
        why: str = "",
    ) -> ReshardError:
        sizes = [
            size
            for block, (size, _) in sorted(
                ((b, v) for b, v in seen.items() if b is not None), key=lambda item: item[0]
            )
        ]
        first = next(iter(seen.values()))[1]
        return layout_error(
            "uneven-split",
            f"axis `{name}` of `{first.name}` is not cut evenly over {_over(split.over)}",
            notes=[f"the ranks hold {_list(sizes)} elements", *([why] if why else [])],
            helps=[f"state the widths: `over {', '.join(split.over)} as ({_list(sizes)})`"],
        )

    def _missing(
        self,
        name: str,
        split: Split,
        missing: list[int],
        seen: Mapping[int | None, tuple[int, Observation]],
    ) -> ReshardError:
        first = next(iter(seen.values()))[1]
        return layout_error(
            "missing-block",
            f"block {missing[0]} of axis `{name}` of `{first.name}` over {_over(split.over)} "
            "is not stored",
            notes=[f"{len(seen)} of {len(seen) + len(missing)} blocks were found"],
        )

    def _unsolvable(self, term: Product, length: int, seen: Observation, dim: int) -> ReshardError:
        factors = " * ".join(_show(item) for item in term.terms)
        return layout_error(
            "unsolvable-size",
            f"dimension {dim} of `{seen.name}` does not tell the sizes of its axes",
            notes=[f"{factors} = {length}, from shape {list(seen.shape)} in {seen.file}"],
            helps=[
                "state a size, e.g. `d:64` in the rule, `axis d = 64` in the model, or `--set d=64`"
            ],
        )

    def _indivisible(self, left: int, parts: int, seen: Observation, dim: int) -> ReshardError:
        return layout_error(
            "shape-mismatch",
            f"dimension {dim} of `{seen.name}` leaves {left} elements for {parts} equal parts",
            notes=[f"shape {list(seen.shape)} in {seen.file}"],
            helps=["state the sizes of the parts, e.g. `(q:64 + k:16 + v:16)`"],
        )


def stated_cut(
    name: str, size: int, split: Split, mesh: Mapping[str, int], env: Mapping[str, object]
) -> AxisCut:
    """The cut of an axis whose logical size is known.

    Raises: ReshardError[uneven-split].
    """
    stored = size
    if split.pad_to is not None:
        stored = round_up(size, _integer(evaluate(split.pad_to, env)))
    if split.truncated_to is not None:
        size = min(size, _integer(evaluate(split.truncated_to, env)))
    count = block_count(split.over, mesh)
    try:
        blocks = split_sizes(stored, count, split.rule, split.sizes)
    except ValueError as error:
        raise layout_error(
            "uneven-split",
            f"axis `{name}` of {stored} elements cannot be cut over {_over(split.over)}",
            notes=[f"{error}", "mesh: " + ", ".join(f"{a}={n}" for a, n in mesh.items())],
            helps=[
                f"pad it: `place {name} over {', '.join(split.over)} "
                f"padded to a multiple of {count}`",
                "or state the widths with `as`, or cut by rule with `as chunk` or `as balanced`",
            ],
        ) from None
    return AxisCut(split.over, blocks, size)


def _even_or_whole(total: int, count: int, split: Split) -> tuple[int, ...]:
    try:
        return split_sizes(total, count, split.rule, split.sizes)
    except ValueError:
        return (total,)


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise layout_error("bad-size", f"a size is {value!r}, not an integer")
    return value


def _over(axes: tuple[str, ...]) -> str:
    return ", ".join(f"`{axis}`" for axis in axes)


def _list(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _show(term: Term) -> str:
    if isinstance(term, Leaf):
        return term.axis
    if isinstance(term, Product):
        return " * ".join(_show(item) for item in term.terms)
    assert isinstance(term, Sum)
    return "(" + " + ".join(_show(part.term) for part in term.parts) + ")"
