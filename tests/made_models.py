"""A tiny Llama in the layouts of two frameworks, each cut by the oracle from the same atoms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from brute_force import PAD, tensor_elements
from reshard.algebra.term import Extent
from reshard.dtypes import DType
from reshard.language import load_layout
from reshard.language.layout import Layout, Rule
from reshard.plan.catalog import Catalog, Coord, Fragment, LocalTensor
from reshard.run.run import Run

Values = dict[tuple[str, str, Coord], tuple[tuple[int, ...], list[int]]]
"""Shape and elements by name, state, and coordinate."""

# ruff: noqa: E501

TEXT = """
model llama {
    axis layer = num_hidden_layers
    axis kv    = num_key_value_heads
    axis q     = num_attention_heads / num_key_value_heads
    axis d     = head_dim
    axis h     = hidden_size
    axis f     = intermediate_size
    axis v     = vocab_size

    tensor embed [v, h]
    tensor wq    [layer, kv, q, d, h]
    tensor wk    [layer, kv, d, h]
    tensor wv    [layer, kv, d, h]
    tensor wo    [layer, h, kv, q, d]
    tensor gate  [layer, f, h]
    tensor up    [layer, f, h]
    tensor down  [layer, h, f]
    tensor norm1 [layer, h]
    tensor norm  [h]
    tensor head  [v, h] when not tie_word_embeddings
}

layout hf of llama {
    "model.embed_tokens.weight"                    = embed[v, h]
    "model.layers.{layer}.self_attn.q_proj.weight" = wq[kv q d, h]
    "model.layers.{layer}.self_attn.k_proj.weight" = wk[kv d, h]
    "model.layers.{layer}.self_attn.v_proj.weight" = wv[kv d, h]
    "model.layers.{layer}.self_attn.o_proj.weight" = wo[h, kv q d]
    "model.layers.{layer}.mlp.gate_proj.weight"    = gate[f, h]
    "model.layers.{layer}.mlp.up_proj.weight"      = up[f, h]
    "model.layers.{layer}.mlp.down_proj.weight"    = down[h, f]
    "model.layers.{layer}.input_layernorm.weight"  = norm1[h]
    "model.norm.weight"                            = norm[h]
    "lm_head.weight"                               = head[v, h]
}

layout stacked of llama {
    "embed" = embed[v, h]
    "qkv"   = [layer, kv (wq[q d] + wk[d] + wv[d]), h]
    "wo"    = wo[layer, kv q d, h]
    "mlp"   = [layer, h, (gate[f] + up[f])]
    "down"  = down[layer, f, h]
    "norms" = norm1[layer, h]
    "norm"  = norm[h]
    "head"  = head[h, v]
}

layout megatron of llama {
    mesh vpp, pp, tp, dp
    config num_hidden_layers   = args.num_layers
    config num_attention_heads = args.num_attention_heads
    config num_key_value_heads = args.num_query_groups or args.num_attention_heads
    config head_dim            = args.kv_channels
    config hidden_size         = args.hidden_size
    config intermediate_size   = args.ffn_hidden_size
    config vocab_size          = args.vocab_size
    config tie_word_embeddings = not args.untie_embeddings_and_output_weights
    place layer over vpp, pp
    place kv, f over tp
    place v over tp padded to a multiple of 4 * tp

    "embedding.word_embeddings.weight"                               = embed[v, h] on first stage
    "decoder.layers.{local layer}.self_attention.linear_qkv.weight"  = [kv (wq[q d] + wk[d] + wv[d]), h]
    "decoder.layers.{local layer}.self_attention.linear_proj.weight" = wo[h, kv q d]
    "decoder.layers.{local layer}.mlp.linear_fc1.weight"             = [(gate[f] + up[f]), h]
    "decoder.layers.{local layer}.mlp.linear_fc2.weight"             = down[h, f]
    "decoder.layers.{local layer}.input_layernorm.weight"            = norm1[h]
    "decoder.final_layernorm.weight"                                 = norm[h] on last stage
    "output_layer.weight"                                            = head[v, h] on last stage
    "output_layer.weight"                                            = embed[v, h] on last stage when tie_word_embeddings and pp > 1
}
"""

SIZES = {"layer": 4, "kv": 2, "q": 2, "d": 2, "h": 3, "f": 4, "v": 5}

STATES = ("param", "master", "exp_avg")


def config(name: str, *, tied: bool) -> dict[str, object]:
    """The configuration as a framework spells it."""
    heads = SIZES["kv"] * SIZES["q"]
    if name == "megatron":
        args = {
            "num_layers": SIZES["layer"],
            "num_attention_heads": heads,
            "num_query_groups": SIZES["kv"],
            "kv_channels": SIZES["d"],
            "hidden_size": SIZES["h"],
            "ffn_hidden_size": SIZES["f"],
            "vocab_size": SIZES["v"],
            "untie_embeddings_and_output_weights": not tied,
        }
        return {"args": args}
    return {
        "num_hidden_layers": SIZES["layer"],
        "num_attention_heads": heads,
        "num_key_value_heads": SIZES["kv"],
        "head_dim": SIZES["d"],
        "hidden_size": SIZES["h"],
        "intermediate_size": SIZES["f"],
        "vocab_size": SIZES["v"],
        "tie_word_embeddings": tied,
    }


@cache
def layout(name: str) -> Layout:
    """One of the layouts."""
    return load_layout(TEXT, "models.ucl", name)


@dataclass(frozen=True)
class MadeModel:
    """A model's checkpoint in one layout on one mesh, cut by the oracle.

    Args:  layers: how many each block of the pipeline has; equal ones if none are said.
           same_steps: of all layers.
    """

    name: str
    mesh: Mapping[str, int]
    tied: bool = False
    layers: tuple[int, ...] = ()
    same_steps: bool = False

    def value(self, atom: str, state: str, index: Mapping[str, int]) -> int:
        """An element of an atom: a number that says which."""
        out = 1 + sorted([*layout("hf").model.tensors]).index(atom)  # type: ignore[union-attr]
        out = out * len(STATES) + STATES.index(state)
        for axis in layout("hf").model.tensors[atom].axes:  # type: ignore[union-attr]
            out = out * 8 + index[axis]
        return out

    def number(self, atom: str, layer: int) -> int:
        """The steps of a parameter: all parts of one that is fused have the same."""
        return 1000 if self.same_steps else 1000 + layer

    def values(self) -> Values:
        """Every local tensor, of every state."""
        out: Values = {}
        for rule, stored, coord, elements, shape, layer in self._local():
            where = tuple(sorted(coord.items()))
            atom = rule.atom
            for state in STATES:
                data = [
                    PAD if item is None else self.value(atom or item[0][0], state, item[1])
                    for item in elements
                ]
                out[stored, state, where] = shape, data
            out[stored, "step", where] = (), [self.number(atom or "wq", layer)]
        return out

    def _rules(self) -> Iterator[Rule]:
        pipeline = self.mesh.get("pp", 1)
        for rule in layout(self.name).rules:
            if rule.atom == "head" and self.tied:
                continue
            if rule.when is not None and rule.atom == "embed" and not (self.tied and pipeline > 1):
                continue
            yield rule

    def _local(
        self,
    ) -> Iterator[tuple[Rule, str, dict[str, int], list[Any], tuple[int, ...], int]]:
        used = [axis for axis in self.mesh if self.mesh[axis] > 1 and axis != "dp"]
        stages = self.mesh.get("vpp", 1) * self.mesh.get("pp", 1)
        layers = self.layers or (SIZES["layer"] // stages,) * stages
        for rule in self._rules():
            named = bool(rule.pattern.slots)
            axes = used if named or rule.stage else [axis for axis in used if axis != "vpp"]
            for position in product(*(range(self.mesh[axis]) for axis in axes)):
                coord = dict(zip(axes, position, strict=True))
                stage = coord.get("vpp", 0) * self.mesh.get("pp", 1) + coord.get("pp", 0)
                if rule.stage == "first" and stage:
                    continue
                if rule.stage == "last" and stage != stages - 1:
                    continue
                extents = {axis: Extent.whole(size) for axis, size in SIZES.items()}
                if self.name == "megatron":
                    extents.update(self._cut(coord))
                shape = tuple(len(tensor_elements([term], extents)) for term in rule.dims)
                first = sum(layers[:stage])
                for index in range(layers[stage]) if named else [0]:
                    one = {"layer": Extent(first + index, 1, 1)}
                    elements = tensor_elements(rule.dims, {**extents, **(one if named else {})})
                    for item in elements:
                        if item is not None and named:
                            item[1]["layer"] = first + index
                    stored = rule.pattern.fill({"layer": index if self.is_local else first + index})
                    yield rule, stored, coord, elements, shape, first + index if named else 0

    @property
    def is_local(self) -> bool:
        """Whether layers are counted from 0 on each stage."""
        return self.name == "megatron"

    def _cut(self, coord: Mapping[str, int]) -> dict[str, Extent]:
        ranks, at = self.mesh.get("tp", 1), coord.get("tp", 0)
        out = {}
        for axis in ("kv", "f"):
            size = SIZES[axis] // ranks
            out[axis] = Extent(at * size, size, size)
        stored = -(-SIZES["v"] // (4 * ranks)) * 4
        held = [i for i in range(at * stored, (at + 1) * stored) if i < SIZES["v"]]
        out["v"] = Extent(min(at * stored, SIZES["v"]), len(held), stored)
        return out

    def store(self, runs: Sequence[int] = ()) -> tuple[Catalog, dict[str, bytes]]:
        """The checkpoint; states other than `param` lie in runs of these lengths, in turn."""
        return store(self.values(), self.name, self.mesh, config(self.name, tied=self.tied), runs)


def store(
    values: Values,
    name: str,
    mesh: Mapping[str, int],
    settings: Mapping[str, object],
    runs: Iterable[int] = (),
) -> tuple[Catalog, dict[str, bytes]]:
    """Local tensors as a checkpoint."""
    files: dict[str, bytes] = {}
    tensors = []
    lengths = iter(runs)
    for count, ((stored, state, coord), (shape, data)) in enumerate(values.items()):
        fragments = []
        at = 0
        while at < prod(shape):
            run = prod(shape) - at
            if state not in ("param", "step"):
                run = min(run, next(lengths, run))
            file = f"{count}-{len(fragments)}.bin"
            files[file] = b"\xee" * 3 + np.array(data[at : at + run], np.int32).tobytes()
            fragments.append(Fragment(at, run, file, 3))
            at += run
        tensors.append(LocalTensor(stored, state, coord, shape, DType.I32, tuple(fragments)))
    catalog = Catalog(name, "", "/made", dict(mesh), tuple(tensors), layout(name), Run(), settings)
    return catalog, files
