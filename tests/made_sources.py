"""Layouts at random, and checkpoints that are cut as they say, element by element."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

from brute_force import PAD, tensor_elements
from reshard.algebra.term import Extent, Leaf, Part, Product, Sum, Term, term_axes
from reshard.dtypes import DType
from reshard.language import load_layout
from reshard.language.layout import Layout
from reshard.plan.arrangement import Whole
from reshard.plan.catalog import Catalog, Coord, Fragment, LocalTensor
from reshard.plan.output import PlacedSpec
from reshard.plan.plan import ArraySpec
from reshard.run.run import Run

Mesh = Mapping[str, int]


@dataclass(frozen=True)
class MadeAxis:
    """An axis of a rule or of a name, and how it lies.

    Args:  padding: elements behind the others (`truncated`), or the multiple that is padded to.
    """

    name: str
    size: int
    over: tuple[str, ...] = ()
    rule: str = "even"
    widths: tuple[int, ...] = ()
    truncated: int = 0
    multiple: int = 0
    is_stated: bool = False

    @property
    def text(self) -> str:
        """As a rule writes it."""
        out = self.name + f":{self.size}" * self.is_stated
        if self.over:
            listed = ", ".join(self.over)
            out += f" over {listed}" if len(self.over) == 1 else f" over ({listed})"
        if self.rule == "sizes":
            out += f" as ({', '.join(map(str, self.widths))})"
        elif self.rule != "even":
            out += f" as {self.rule}"
        if self.multiple:
            out += f" padded to a multiple of {self.multiple} * {self.over[0]}"
        if self.truncated:
            out += f" truncated to {self.size}"
        return out

    def blocks(self, mesh: Mesh, source: Mesh | None = None) -> tuple[int, ...]:
        """The stored size of every block; `source` is the mesh that padding was chosen for."""
        count = prod(mesh.get(axis, 1) for axis in self.over)
        stored = self.size
        if self.multiple:
            stored = -(-stored // (self.multiple * mesh[self.over[0]]))
            stored *= self.multiple * mesh[self.over[0]]
        if self.truncated:
            kept = source is None or prod(source.get(a, 1) for a in self.over) == count
            stored = stored + self.truncated if kept else -(-stored // count) * count
        if self.rule == "sizes" and count > 1:
            return self.widths
        if self.rule == "chunk":
            step = max(1, -(-stored // count))
            return tuple(len(range(stored)[i * step : (i + 1) * step]) for i in range(count))
        if self.rule == "even":
            assert stored % count == 0
        return tuple(len(part) for part in np.array_split(np.arange(stored), count))

    def extent(self, coord: Mapping[str, int], mesh: Mesh, blocks: tuple[int, ...]) -> Extent:
        """What a coordinate holds."""
        index = 0
        for axis in self.over:
            index = index * mesh.get(axis, 1) + coord.get(axis, 0)
        lo = sum(blocks[:index])
        held = [i for i in range(lo, lo + blocks[index]) if i < self.size]
        return Extent(min(lo, self.size), len(held), blocks[index])


@dataclass(frozen=True)
class MadeRule:
    """A rule and the whole tensors that follow it.

    Args:  prefix: of the name, with `#` where the slot is.  slot: the index in the name, if any.
    """

    prefix: str
    slot: MadeAxis | None
    is_local: bool
    dims: tuple[Term, ...]
    axes: Mapping[str, MadeAxis]
    states: tuple[str, ...]

    @property
    def text(self) -> str:
        """The rule as UCL."""
        name = self.prefix
        if self.slot is not None:
            inner = f"local {self.slot.text}" if self.is_local else self.slot.name
            name = name.replace("#", f"{{{inner}}}")
        return f'"{name}" = [{", ".join(self._show(term) for term in self.dims)}]'

    def _show(self, term: Term) -> str:
        if isinstance(term, Leaf):
            return self.axes[term.axis].text
        if isinstance(term, Product):
            return " ".join(self._show(inner) for inner in term.terms) or "1"
        parts = []
        for part in term.parts:
            inner = self._show(part.term)
            plain = isinstance(part.term, Leaf) and part.term.axis == part.label
            parts.append(inner if plain else f"{part.label}[{inner}]")
        return f"({' + '.join(parts)})"

    def names(self) -> Iterator[tuple[str, int]]:
        """The whole tensors, with the index in their names."""
        for index in range(self.slot.size if self.slot else 1):
            yield self.prefix.replace("#", str(index)), index

    def over(self) -> set[str]:
        """The mesh axes that cut some of it."""
        slot = self.slot.over if self.slot and self.is_local else ()
        return {mesh for axis in self.axes.values() for mesh in axis.over} | set(slot)


@dataclass(frozen=True)
class Stored:
    """A checkpoint: its catalog, and the bytes of its files."""

    catalog: Catalog
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Made:
    """Rules on a mesh."""

    mesh: Mesh
    rules: tuple[MadeRule, ...]
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The layout as UCL."""
        rules = "".join(f"    {rule.text}\n" for rule in self.rules)
        return f"layout made {{\n    mesh {', '.join(self.mesh)}\n{rules}}}\n"

    @property
    def layout(self) -> Layout:
        """The layout, compiled."""
        return load_layout(self.text)

    def value(
        self, name: str, state: str, labels: tuple[str, ...], index: Mapping[str, int]
    ) -> int:
        """An element of a whole tensor: a number that no other element has."""
        key = (name, state, labels, tuple(sorted(index.items())))
        return int(self.values.setdefault(key, len(self.values) + 1))

    def whole(self, rule: MadeRule, name: str, state: str) -> Any:
        """A whole tensor, flat."""
        extents = {axis.name: Extent.whole(axis.size) for axis in rule.axes.values()}
        elements = tensor_elements(rule.dims, extents)
        assert None not in elements
        return np.array([self.value(name, state, *item) for item in elements if item], np.int32)

    def number(self, name: str) -> Any:
        """The number of a parameter."""
        return np.array([self.value(name, "step", (), {})], np.int32)

    def local(
        self, mesh: Mesh, *, source: Mesh | None = None
    ) -> Iterator[tuple[MadeRule, str, str, str, Coord, tuple[int, ...], Any]]:
        """Every local tensor on a mesh: rule, whole name, name, state, coord, shape, values."""
        for rule in self.rules:
            used = [a for a in mesh if mesh[a] > 1 and (a in rule.over() or a in ("pp", "tp"))]
            blocks = {name: axis.blocks(mesh, source) for name, axis in rule.axes.items()}
            for position in product(*(range(mesh[axis]) for axis in used)):
                coord = dict(zip(used, position, strict=True))
                extents = {
                    name: axis.extent(coord, mesh, blocks[name]) for name, axis in rule.axes.items()
                }
                shape = tuple(len(tensor_elements([term], extents)) for term in rule.dims)
                elements = tensor_elements(rule.dims, extents)
                for name, index in rule.names():
                    stored = name
                    if rule.slot is not None and rule.is_local:
                        held = rule.slot.extent(coord, mesh, rule.slot.blocks(mesh))
                        if not held.lo <= index < held.lo + held.size:
                            continue
                        stored = rule.prefix.replace("#", str(index - held.lo))
                    for state in rule.states:
                        data = [
                            PAD if item is None else self.value(name, state, *item)
                            for item in elements
                        ]
                        where = tuple(coord.items())
                        yield rule, name, stored, state, where, shape, np.array(data, np.int32)

    def store(self, pieces: Sequence[int] = ()) -> Stored:
        """The checkpoint on its own mesh.

        Args:  pieces: how long the runs of local tensors are, in turn; whole tensors if none.
        """
        tensors = []
        files: dict[str, bytes] = {}
        lengths = iter(pieces)
        for number, (rule, name, stored, state, coord, shape, data) in enumerate(
            self.local(self.mesh)
        ):
            fragments = []
            at = 0
            while at < data.size:
                run = min(data.size - at, next(lengths, data.size))
                file = f"{number}-{len(fragments)}.bin"
                files[file] = b"\xee" * 3 + data[at : at + run].tobytes()
                fragments.append(Fragment(at, run, file, 3))
                at += run
            tensors.append(LocalTensor(stored, state, coord, shape, DType.I32, tuple(fragments)))
            if state == rule.states[0]:
                literal = Fragment(0, 1, "", 0, None, self.number(name).tobytes())
                tensors.append(LocalTensor(stored, "step", coord, (), DType.I32, (literal,)))
        return Stored(make_catalog(self.text, self.mesh, tensors), files)


def make_catalog(text: str, mesh: Mesh, tensors: Sequence[LocalTensor], **more: Any) -> Catalog:
    """A catalog of these tensors."""
    root = more.pop("root", "/made")
    return Catalog("made", "", root, mesh, tuple(tensors), load_layout(text), Run(), **more)


def whole_spec(whole: Whole) -> PlacedSpec:
    """A whole tensor as an array that is wanted."""
    numel = prod(whole.shape)
    spec = ArraySpec(whole.name, whole.state, whole.dtype, numel, whole.segments, whole.shape)
    return PlacedSpec(spec, "out", 0)


MESHES = st.fixed_dictionaries(
    {"tp": st.integers(1, 3), "pp": st.integers(1, 2), "ep": st.integers(1, 2)}
)


@st.composite
def made(draw: st.DrawFn) -> Made:
    """A layout with everything that a rule can say, and its checkpoint."""
    mesh = draw(MESHES)
    rules = tuple(draw(_rule(mesh, index)) for index in range(draw(st.integers(1, 3))))
    return Made(mesh, rules)


@st.composite
def _rule(draw: st.DrawFn, mesh: Mesh, number: int) -> MadeRule:
    free = list(draw(st.permutations(sorted(mesh))))
    names = iter("abcdefghijk")
    axes: dict[str, MadeAxis] = {}

    def axis(
        name: str = "", *, stated: bool = False, cut: bool = True, padded: bool = True
    ) -> Leaf:
        made_axis = draw(_axis(name or next(names), mesh, free if cut else [], stated, padded))
        axes[made_axis.name] = made_axis
        for mesh_axis in made_axis.over:
            free.remove(mesh_axis)
        return Leaf(made_axis.name)

    def fused() -> Term:
        kind = draw(st.sampled_from(["equal", "stated", "grouped"]))
        if kind == "grouped":  # for each group its rows of the first part, then of the others
            group, many, each = axis(), axis(stated=True, cut=False), axis(stated=True, cut=False)
            first = Part("q", Product((many, each)))
            return Product((group, Sum((first, Part("k", each), Part("v", each)))))
        first = axis("x", stated=kind == "stated", padded=False)
        like = axes["x"]
        parts = [Part("x", first)]
        for label in ("y", "z")[: draw(st.integers(1, 2))]:
            axes[label] = replace(like, name=label)
            if kind == "stated":
                size = draw(st.integers(1, 3)) * prod(mesh.values())
                axes[label] = MadeAxis(label, size, like.over, is_stated=True)
            parts.append(Part(label, Leaf(label)))
        return Sum(tuple(parts))

    dims: list[Term] = []
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(["axis", "axis", "product", "unit"]))
        if kind == "axis":
            dims.append(axis())
        elif kind == "product":
            dims.append(Product((axis(stated=True), axis())))
        else:
            dims.append(Product(()))
    if draw(st.booleans()):
        dims.insert(draw(st.integers(0, len(dims))), fused())
    slot = None
    is_local = False
    prefix = f"p{number}.weight"
    if draw(st.booleans()):
        prefix = f"p{number}.#.weight"
        slot = MadeAxis("l", draw(st.integers(1, 3)))
        is_local = bool(free) and draw(st.booleans())
        if is_local:
            slot = MadeAxis("l", draw(st.integers(1, 2)) * mesh[free[0]], (free[0],))
            if draw(st.booleans()):
                widths = tuple(draw(st.integers(1, 3)) for _ in range(mesh[free[0]]))
                slot = MadeAxis("l", sum(widths), (free[0],), "sizes", widths)
    states = ("param", *draw(st.sets(st.sampled_from(["exp_avg", "momentum"]))))
    assert all(name in axes for term in dims for name in term_axes(term))
    return MadeRule(prefix, slot, is_local, tuple(dims), axes, states)


@st.composite
def _axis(
    draw: st.DrawFn, name: str, mesh: Mesh, free: Sequence[str], stated: bool, padded: bool
) -> MadeAxis:
    size = draw(st.integers(1, 4))
    if not free or draw(st.booleans()):
        return MadeAxis(name, size, is_stated=stated)
    over = tuple(free[: draw(st.integers(1, min(2, len(free))))])
    count = prod(mesh[axis] for axis in over)
    kinds = ["even", "even", "chunk", "balanced", "sizes", *(["pad", "cut"] if padded else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "even":
        return MadeAxis(name, size * count, over, is_stated=stated)
    if kind == "sizes":
        widths = tuple(draw(st.integers(1, 3)) for _ in range(count))
        return MadeAxis(name, sum(widths), over, "sizes", widths, is_stated=stated)
    if kind == "pad" and len(over) == 1:
        return MadeAxis(name, size, over, multiple=draw(st.integers(1, 2)), is_stated=True)
    if kind == "cut" and not stated:
        total = size * count
        truncated = draw(st.integers(0, total - 1))
        if truncated:
            return MadeAxis(name, total - truncated, over, truncated=truncated)
    rule = kind if kind in ("chunk", "balanced") else "even"
    return MadeAxis(
        name, size + count if rule != "even" else size * count, over, rule, is_stated=stated
    )
