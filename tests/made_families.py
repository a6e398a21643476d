"""Tiny models of the shipped families in any of their layouts, cut by the oracle.

The oracle reads the rules, and nothing of what binds, renames, or plans by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import numpy as np

from brute_force import PAD, tensor_elements
from reshard.algebra.term import Extent
from reshard.dtypes import DType
from reshard.language import load_layout
from reshard.language.conditions import constant
from reshard.language.expression import names, to_text
from reshard.language.layout import Layout, Model, Rule
from reshard.language.library import Family
from reshard.plan.catalog import Catalog, Coord, Fragment, LocalTensor
from reshard.run.run import Run

Values = dict[tuple[str, str, Coord], tuple[tuple[int, ...], list[int]]]
"""Shape and elements by name, state, and coordinate."""

STATES = ("param", "exp_avg")
DIVISOR = 2

NUMBERS: Mapping[str, int] = {
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "hidden_size": 4,
    "intermediate_size": 4,
    "vocab_size": 3,
    "max_position_embeddings": 3,
    "type_vocab_size": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_intermediate_size": 2,
    "shared_expert_intermediate_size": 4,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 1,
    "qk_rope_head_dim": 2,
    "v_head_dim": 2,
    "kv_lora_rank": 2,
    "q_lora_rank": 3,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
}


def python(expression: object, env: Mapping[str, object]) -> Any:
    """An expression's value as Python has it; UCL's operators are written and bind alike."""
    if expression is None:
        return True
    text = to_text(expression).replace(" / ", " // ")  # type: ignore[arg-type]
    return eval(text, {"__builtins__": {}, "true": True, "false": False}, dict(env))


def facts_of(model: Model, layouts: list[Layout]) -> tuple[str, ...]:
    """Every yes-or-no question of a model and some of its layouts."""
    asked: dict[str, None] = {}
    for condition in [*(t.when for t in model.tensors.values())]:
        asked.update(dict.fromkeys(names(condition) if condition is not None else ()))
    for layout in layouts:
        for rule in layout.rules:
            asked.update(dict.fromkeys(names(rule.when) if rule.when is not None else ()))
    return tuple(name for name in asked if name not in NUMBERS and name not in ("pp", "tp"))


def stated(layout: Layout) -> dict[str, object]:
    """What a layout's `config` lines say is always so."""
    values = {name: constant(value, {}) for name, value in layout.config.items()}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class MadeFamily:
    """A checkpoint of a family's model in one layout on one mesh.

    Args:  facts: answers to `facts_of`.  numbers: in place of some of NUMBERS.
           layers: of each virtual stage; equal shares if none are said.
    """

    family: Family
    name: str
    mesh: Mapping[str, int]
    facts: Mapping[str, bool]
    numbers: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[int, ...] = ()

    @property
    def layout(self) -> Layout:
        """The layout."""
        return self.family.layout(self.name)

    @property
    def env(self) -> dict[str, object]:
        """What expressions may name."""
        return {"pp": 1, **NUMBERS, **self.numbers, **self.facts, **self.mesh}

    @property
    def config(self) -> dict[str, object]:
        """The model's own words, which every layout understands."""
        divisor = {"args": {"make_vocab_size_divisible_by": DIVISOR}, "vocab_divisor": DIVISOR}
        return {**NUMBERS, **self.numbers, **self.facts, **divisor}

    def sizes(self) -> dict[str, int]:
        """The length of every axis."""
        model = self.layout.model
        assert model is not None
        return {axis.name: python(axis.size, self.env) for axis in model.axes.values()}

    def values(self) -> Values:
        """Every local tensor, of every state."""
        out: Values = {}
        model = self.layout.model
        assert model is not None
        order = sorted(model.tensors)
        for rule, stored, coord, elements, shape in self._local():
            where = tuple(sorted(coord.items()))
            codes = []
            for item in elements:
                if item is None:
                    codes.append(None)
                    continue
                atom = rule.atom or item[0][0]
                code = order.index(atom)
                for axis in model.tensors[atom].axes:
                    code = code * 7 + item[1][axis]
                codes.append(code)
            for number, state in enumerate(STATES):
                data = [PAD if code is None else 2 * code + number for code in codes]
                assert (stored, state, where) not in out
                out[stored, state, where] = shape, data
            out[stored, "step", where] = (), [77]
        return out

    def _local(
        self,
    ) -> Iterator[tuple[Rule, str, dict[str, int], list[Any], tuple[int, ...]]]:
        sizes = self.sizes()
        used = [axis for axis in self.mesh if self.mesh[axis] > 1 and axis != "dp"]
        pipeline = self.mesh.get("pp", 1)
        stages = self.mesh.get("vpp", 1) * pipeline
        layers = self.layers or (sizes.get("layer", 0) // stages,) * stages
        for rule in self.layout.rules:
            if not python(rule.when, self.env):
                continue
            along = range(sizes.get(rule.along, 0))
            kept = [i for i in along if python(rule.only, {**self.env, rule.along: i})]
            if rule.only is not None and not kept:
                continue
            slots = {slot.axis: slot.local for slot in rule.pattern.slots}
            chunked = "layer" in slots or rule.stage is not None
            for position in product(*(range(self.mesh[a]) for a in used if chunked or a != "vpp")):
                axes = [axis for axis in used if chunked or axis != "vpp"]
                coord = dict(zip(axes, position, strict=True))
                stage = coord.get("vpp", 0) * pipeline + coord.get("pp", 0)
                if (rule.stage == "first" and stage) or (
                    rule.stage == "last" and stage != stages - 1
                ):
                    continue
                extents = {a: Extent.whole(size) for a, size in sizes.items()}
                extents.update(self._cut(coord, sizes))
                if slots.get("layer"):
                    extents["layer"] = Extent(sum(layers[:stage]), layers[stage], layers[stage])
                yield from self._named(rule, slots, coord, extents, kept)

    def _named(
        self,
        rule: Rule,
        slots: Mapping[str, bool],
        coord: dict[str, int],
        extents: Mapping[str, Extent],
        kept: list[int],
    ) -> Iterator[tuple[Rule, str, dict[str, int], list[Any], tuple[int, ...]]]:
        held = [range(extents[axis].lo, extents[axis].lo + extents[axis].size) for axis in slots]
        for indices in product(*held):
            at = dict(zip(slots, indices, strict=True))
            if rule.only is not None and at.get(rule.along, kept[0]) not in kept:
                continue
            elements = tensor_elements(
                rule.dims, {**extents, **{axis: Extent(i, 1, 1) for axis, i in at.items()}}
            )
            for item in elements:
                if item is not None:
                    item[1].update(at)
            shape = tuple(len(tensor_elements([term], extents)) for term in rule.dims)
            local = {a: i - extents[a].lo if slots[a] else i for a, i in at.items()}
            yield rule, rule.pattern.fill(local), coord, elements, shape

    def _cut(self, coord: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, Extent]:
        out = {}
        for axis, split in self.layout.places.items():
            if axis == "layer":
                continue
            ranks = prod(self.mesh.get(over, 1) for over in split.over)
            at = sum(coord.get(over, 0) for over in split.over)  # one mesh axis cuts an axis
            stored = sizes[axis]
            if split.pad_to is not None:
                multiple = DIVISOR * ranks
                stored = -(-stored // multiple) * multiple
            share = stored // ranks
            low = min(at * share, sizes[axis])
            out[axis] = Extent(low, min((at + 1) * share, sizes[axis]) - low, share)
        return out

    def store(self) -> tuple[Catalog, dict[str, bytes]]:
        """The checkpoint, a file for each tensor."""
        files: dict[str, bytes] = {}
        tensors = []
        for count, ((stored, state, coord), (shape, data)) in enumerate(self.values().items()):
            files[f"{count}.bin"] = np.array(data, np.int32).tobytes()
            run = Fragment(0, prod(shape), f"{count}.bin", 0)
            tensors.append(LocalTensor(stored, state, coord, shape, DType.I32, (run,)))
        own = load_layout(f'layout {self.name} {{ "**" = [...] optional }}')
        mesh = {**dict.fromkeys(self.layout.mesh, 1), **self.mesh}
        return Catalog("made", "", "/made", mesh, tuple(tensors), own, Run(), self.config), files
