"""Which parameters a rank of a distributed checkpoint had, and in which order it registered them.

The checkpoint lists its weights in the order of the module that saved them, layers and experts
stacked. A rank's own parameters are boxes of these: those of its stage's layers, of its tensor
parallel rank, and of its experts.
Source: megatron/core/transformer/{transformer_block,mlp,moe/experts}.py `sharded_state_dict`
(core 0.12 to 0.20).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from reshard.dtypes import DType
from reshard.formats.megatron.buffers import Member, Part
from reshard.formats.megatron.legacy import EMBEDDING, OUTPUT
from reshard.formats.megatron.masters import box_of
from reshard.formats.megatron.modules import is_buffer, is_expert, is_vocabulary
from reshard.formats.megatron.names import layer_of
from reshard.models.run_arguments import Arguments
from reshard.plan.catalog import Fragment, LocalTensor
from reshard.run.states import PARAM

_STACKED = re.compile(r"^(?!mtp\.)(.*?layers\.)(?!\d)")
_EXPERT = re.compile(r"(\.experts\.experts\.)(\d+)\.")
_HALVES = ("_w", "_v")


@dataclass(frozen=True, slots=True)
class Place:
    """A rank, and what of the model it has.

    Args:  dense, expert: its number and how many there are, among the ranks that cut its dense
                          tensors, and an expert.  ep: among those that share experts.
           layers: of its chunk.  first, last: whether its chunk is the first, the last of all.
           experts: whether the optimizer has experts alone, or none; None for both.
           dtype: of the parameters.
    """

    dense: tuple[int, int]
    expert: tuple[int, int]
    ep: tuple[int, int]
    layers: range
    first: bool
    last: bool
    experts: bool | None
    dtype: DType


class RankMembers:
    """The weights of a checkpoint, as ranks had them."""

    def __init__(self, weights: Sequence[LocalTensor], args: Arguments) -> None:
        self._args = args
        self.tensors = {t.name: t for t in weights if t.state == PARAM and not is_buffer(t.name)}
        self._has_mtp = any(name.startswith("mtp.") for name in self.tensors)
        tied = not args.get("untie_embeddings_and_output_weights") and args.size("pp") > 1
        self._tied = tied and OUTPUT not in self.tensors  # the last stage has a copy
        self._index: dict[tuple[str, int], dict[tuple[int, ...], list[Part]]] = {}
        self._inside = {n: self._layers(t) for n, t in self.tensors.items() if self._layers(t)}
        self.layers = max(self._inside.values(), default=0)
        singles = [int(m[2]) for m in map(_EXPERT.search, self.tensors) if m is not None]
        self._experts_apart = 1 + max(singles, default=-1)

    @staticmethod
    def _layers(tensor: LocalTensor) -> int:
        if _STACKED.match(tensor.name):
            return tensor.shape[0]
        layer = layer_of(tensor.name)
        return 0 if layer is None else layer[1] + 1

    def orders(self, place: Place) -> Iterator[list[Member]]:
        """The parameters of a rank in every order that is known: experts one by one, or matrix by
        matrix; and with the copies that the last stage may have of the embedding.
        """
        for by_expert in (True, False):
            for copies in self._copies() if place.last and not place.first else ((),):
                yield list(self._members(place, by_expert, copies))

    def _copies(self) -> tuple[tuple[str, ...], ...]:
        """What the last stage may have a copy of the embedding as: as the output layer where the
        two are tied, as itself for the prediction of several tokens.
        """
        tied = (OUTPUT,) if self._tied else ()
        return ((EMBEDDING, *tied), (EMBEDDING,), tied) if self._has_mtp else (tied,)

    def shared(self, place: Place) -> tuple[str, ...]:
        """The parameters that have a bucket of their own, since another stage has a copy."""
        if place.experts is True or (place.first and place.last):
            return ()
        if self._tied:
            return (EMBEDDING, OUTPUT)
        return (EMBEDDING,) if self._has_mtp else ()

    def _members(self, place: Place, by_expert: bool, copies: tuple[str, ...]) -> Iterator[Member]:
        before = [EMBEDDING] if EMBEDDING in copies and EMBEDDING in self.tensors else []
        behind = []
        for name in self.tensors:
            if name not in self._inside and name.startswith("embedding."):
                before += [name] * place.first
            elif name not in self._inside:
                behind += [name] * place.last
        yield from chain(*(self._one(name, (), place) for name in before))
        for layer in place.layers:
            yield from self._layer(layer, place, by_expert)
        yield from chain(*(self._one(name, (), place) for name in behind))
        if OUTPUT in copies and EMBEDDING in self.tensors:
            for member in self._one(EMBEDDING, (), place):
                yield Member(OUTPUT, member.parts)

    def _layer(self, layer: int, place: Place, by_expert: bool) -> Iterator[Member]:
        """One layer: experts stand where the first of them is listed."""
        experts: list[tuple[int, int, Member]] = []
        plain: list[Member | None] = []
        order: dict[str, int] = {}
        for name in self._inside:
            index = layer_of(name)
            if index is not None and index[1] != layer:
                continue
            lead = () if index is not None else (layer,)
            if not is_expert(name):
                plain += self._one(name, lead, place)
                continue
            if None not in plain:
                plain.append(None)
            matrix = order.setdefault(_EXPERT.sub(r"\1", name).removesuffix("_w"), len(order))
            for expert, member in self._experts(name, lead, place):
                experts.append((expert, matrix, member))
        experts.sort(key=lambda item: item[:2] if by_expert else (item[1], item[0]))
        for item in plain:
            if item is None:
                yield from (member for _, _, member in experts)
            else:
                yield item

    def _experts(
        self, name: str, lead: tuple[int, ...], place: Place
    ) -> Iterator[tuple[int, Member]]:
        """The experts that a rank has of one name."""
        single = _EXPERT.search(name)
        if single is not None:
            count, experts = self._experts_apart, [int(single[2])]
        else:
            count = self.tensors[name].shape[len(lead)]
            experts = list(range(count))
        number, ranks = place.ep
        share = range(number * count // ranks, (number + 1) * count // ranks)
        for expert in experts:
            if expert in share:
                inner = lead if single is not None else (*lead, expert)
                for member in self._one(name, inner, place):
                    yield expert, member

    def _one(self, name: str, lead: tuple[int, ...], place: Place) -> Iterator[Member]:
        """A parameter, unless the optimizer does not have it; halves of one are put together."""
        tensor = self.tensors[name]
        if tensor.dtype != place.dtype or (
            name.endswith(_HALVES[1]) and _other(name) in self.tensors
        ):
            return
        if place.experts is not None and place.experts != is_expert(name):
            return
        parts = self._parts(name, lead, place)
        second = name.removesuffix(_HALVES[0]) + _HALVES[1]
        if name.endswith(_HALVES[0]) and second in self.tensors:
            parts = [*parts, *self._parts(second, lead, place)]
        if parts:
            yield Member(name, tuple(parts))

    def _parts(self, name: str, lead: tuple[int, ...], place: Place) -> list[Part]:
        """What one rank holds of a tensor: its chunks, which a copied tensor has only once.

        Args:  lead: layer and expert, where the tensor stacks them.
        """
        key = (name, len(lead))
        if key not in self._index:
            table: dict[tuple[int, ...], list[Part]] = {}
            for fragment in self.tensors[name].fragments:
                part = self._part(self.tensors[name], fragment)
                table.setdefault(part.box.lo[: len(lead)], []).append(part)
            for chunks in table.values():
                chunks.sort(key=lambda part: part.box.lo)
            self._index[key] = table
        parts = self._index[key].get(lead, [])
        number, ranks = place.expert if is_expert(name) else place.dense
        return parts[number::ranks] if len(parts) >= ranks else parts

    def _part(self, tensor: LocalTensor, fragment: Fragment) -> Part:
        box = box_of(tensor, fragment)
        checked = box.volume
        if is_vocabulary(tensor.name) and box.size:
            rows = self._args.checked_rows(tensor.shape[0]) - box.lo[0]
            checked = max(0, min(rows, box.size[0])) * (box.volume // max(1, box.size[0]))
        return Part(tensor, fragment, checked)


def _other(name: str) -> str:
    return name.removesuffix(_HALVES[1]) + _HALVES[0]
