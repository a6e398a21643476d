"""A family of models with names of its own is one UCL file: read, cut anew, and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_forge import Forge, Kind

import reshard
from reshard.algebra.term import Leaf, Sum, Term
from reshard.errors import ReshardError
from reshard.formats.megatron.modules import rules_of
from reshard.language.layout import Split
from reshard.language.library import shipped

FAMILY = """\
model spoon {
    axis layer = num_hidden_layers
    axis h
    axis f
    axis d
    axis v

    tensor table  [v, h]
    tensor polish [layer, h]
    tensor left   [layer, f, h]
    tensor right  [layer, f, h]
    tensor bowl   [layer, h, f]
    tensor crest  [layer, d]
    tensor rim    [h]
}

layout megatron of spoon {
    mesh vpp, pp, tp, ep, dp
    place layer over vpp, pp
    place f, v over tp

    config num_hidden_layers = args.num_layers
ORDER
    "shelf.table.weight"                             = table[v, h] on first stage
    "decoder.layers.{local layer}.spoon.polish"      = polish[h]
    "decoder.layers.{local layer}.spoon.grip.weight" = [(left[f] + right[f]), h]
    "decoder.layers.{local layer}.spoon.bowl.weight" = bowl[h, f]
    "decoder.layers.{local layer}.spoon.crest"       = crest[d]
    "drawer.rim"                                     = rim[h] on last stage
}
"""
DIST = """
layout megatron_dist of spoon {
    config num_hidden_layers = args.num_layers

    "shelf.table.weight"               = table[v, h]
    "decoder.layers.spoon.polish"      = polish[layer, h]
    "decoder.layers.spoon.grip.weight" = [layer, (left[f] + right[f]), h]
    "decoder.layers.spoon.bowl.weight" = bowl[layer, h, f]
    "decoder.layers.spoon.crest"       = crest[layer, d]
    "drawer.rim"                       = rim[h]
}
"""
ORDER = """
    order "shelf.table", "decoder.layers.{layer}.spoon.polish",
    "decoder.layers.{layer}.spoon.grip", "decoder.layers.{layer}.spoon.bowl",
    "decoder.layers.{layer}.spoon.crest", "drawer.rim"
"""


@dataclass(frozen=True)
class Spoon(Forge):
    """A model whose modules no other has."""

    def layer(self) -> list[Kind]:
        """The parameters of a layer, in the order of the module."""
        return [
            Kind("spoon.polish", (8,)),
            Kind("spoon.grip.weight", (24, 8), "halves"),
            Kind("spoon.bowl.weight", (8, 12), "columns"),
            Kind("spoon.crest", (5,)),
        ]

    def outside(self) -> tuple[list[Kind], list[Kind]]:
        """The parameters before and behind the layers."""
        return [Kind("shelf.table.weight", (24, 8), "rows")], [Kind("drawer.rim", (8,))]


def family(tmp_path: Path, order: str = ORDER) -> Path:
    """The user's file."""
    path = tmp_path / "spoon.ucl"
    path.write_text(FAMILY.replace("ORDER\n", order))
    return path


def states(found: Any, run: Forge) -> Iterator[tuple[str, str]]:
    """Every tensor that differs from the run's."""
    for (name, state), value in run.whole().items():
        if not np.array_equal(np.asarray(found.read(name, state)), value):
            yield name, state


@pytest.mark.parametrize("target", ["tp=1", "tp=2,pp=2", "tp=4,pp=2,vpp=2", "tp=2,pp=1,adam=fused"])
@pytest.mark.parametrize("optimizer", ["distributed_optimizer=0", "distributed_optimizer=1"])
def test_a_family_is_one_file(target: str, optimizer: str, tmp_path: Path) -> None:
    run = Spoon(tp=2, pp=2, stages=(2, 2))
    layout = family(tmp_path)
    source = run.write(tmp_path / "run")
    assert not list(states(reshard.open(source, layout=layout), run))
    out = tmp_path / "out"
    reshard.convert(source, out, f"megatron:{target},{optimizer}", layout=layout)
    found = reshard.open(out, layout=layout)
    assert not list(states(found, run))
    reshard.convert(out, tmp_path / "back", "megatron:tp=2,pp=2", layout=layout)
    assert not list(states(reshard.open(tmp_path / "back", layout=layout), run))


@pytest.mark.parametrize("optimizer", ["distributed_optimizer=0", "distributed_optimizer=1"])
def test_a_family_has_keys_of_its_own_in_a_distributed_checkpoint(
    optimizer: str, tmp_path: Path
) -> None:
    run = Spoon(tp=2, pp=2, stages=(2, 2))
    source, layout = run.write(tmp_path / "run"), family(tmp_path)
    layout.write_text(layout.read_text() + DIST)
    reshard.convert(source, tmp_path / "out", f"megatron-dist:{optimizer}", layout=layout)
    assert "decoder.layers.spoon.crest" in reshard.open(tmp_path / "out").tensors
    target = f"megatron:tp=2,pp=2,{optimizer}"
    reshard.convert(tmp_path / "out", tmp_path / "back", target, layout=layout)
    assert not list(states(reshard.open(tmp_path / "back", layout=layout), run))


def test_a_family_that_does_not_say_how_its_parameters_are_counted(tmp_path: Path) -> None:
    source = Spoon(tp=2, pp=2, stages=(2, 2)).write(tmp_path / "run")
    layout = family(tmp_path, "")
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, tmp_path / "out", "megatron:tp=1", layout=layout)
    assert caught.value.diagnostics[0].render() == (
        "error[megatron-order]: the position of `shelf.table.weight` among Megatron's parameters "
        "is unknown\n"
        "  = note: the optimizer's states have no names there: they are numbered in that order\n"
        "  = help: write the format that names them, `megatron-dist`\n"
        '  = help: or state it in the layout of the target: `order "embedding", ...`\n'
        "  = help: or leave the optimizer out with `--states weights`"
    )


def test_names_that_nothing_describes_are_whole_where_the_ranks_hold_the_same(
    tmp_path: Path,
) -> None:
    @dataclass(frozen=True)
    class More(Forge):
        def outside(self) -> tuple[list[Kind], list[Kind]]:
            before, after = super().outside()
            return before, [*after, Kind("drawer.rim", (8,))]

    run = More(tp=2)
    assert not list(states(reshard.open(run.write(tmp_path / "run")), run))


def cut_of(dims: Iterable[Term], places: Mapping[str, Split]) -> tuple[int, int] | None:
    """The dimension that tensor-parallel ranks share, and into how many parts it falls."""
    for dimension, term in enumerate(dims):
        parts = [part.term for part in term.parts] if isinstance(term, Sum) else [term]
        over = {m for p in parts for axis in leading(p) for m in places.get(axis, Split()).over}
        if over & {"tp", "etp"}:
            return dimension, len(parts)
    return None


def leading(term: Term) -> list[str]:
    """The axes that a term is counted by first."""
    if isinstance(term, Leaf):
        return [term.axis]
    if isinstance(term, Sum):
        return [axis for part in term.parts for axis in leading(part.term)]
    return leading(term.terms[0]) if term.terms else []


def shipped_rules() -> list[tuple[str, str]]:
    """Every name of a layout `megatron` that ships, with the layout's family."""
    found = {}
    for family in shipped():
        if "megatron" in family.layout_names:
            for rule in family.layout("megatron").rules:
                indices = {slot.axis: 0 for slot in rule.pattern.slots}
                found[family.name, rule.pattern.fill(indices)] = None
    return list(found)


@pytest.mark.parametrize(("family", "name"), shipped_rules())
def test_the_layouts_of_models_say_what_the_description_says(family: str, name: str) -> None:
    """The one fact that stands in both: where a model is known, and where none is."""
    (own,) = [item for item in shipped() if item.name == family]
    layout = own.layout("megatron")
    rules = [layout.rules[index] for index, _ in layout.matches(name)]
    said = {cut_of(rule.dims, {**layout.places, **rule.splits}) for rule in rules}
    known = rules_of(name) or rules_of(name.replace(".bias", ".weight"))
    described = {cut_of(rule.dims, rule.splits) for rule in known}
    if name.endswith(".bias"):  # whole where its weight is cut by columns
        described = {cut if cut and cut[0] == 0 else None for cut in described}
    assert said <= described, (said, described)
