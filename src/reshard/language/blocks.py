"""The models, layouts, and shared lines of a text, by name: of a parsed one, and of one that ships,
of which each block is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from reshard.errors import Source
from reshard.language import tree
from reshard.language.compiled import decoded

BlockName = tuple[str, str, str]
"""A block's keyword, the model that it is of ("" for none), and its name."""

Kind = TypeVar("Kind", tree.ModelBlock, tree.LayoutBlock, tree.SharedBlock)


class Blocks(Protocol):
    """The blocks of one text. Of several of one name the first counts, of shared lines the last."""

    def names(self, kind: str, model: str = "") -> Sequence[str]:
        """What the blocks of a keyword are called, in order; of layouts, those of a model."""

    def model(self, name: str) -> tree.ModelBlock | None:
        """A model; None where there is none of this name."""

    def layout(self, model: str, name: str) -> tree.LayoutBlock | None:
        """A layout of a model, "" for none."""

    def shared(self, name: str) -> tree.SharedBlock | None:
        """Lines that layouts may `use`."""


class ParsedBlocks:
    """The blocks of a document."""

    def __init__(self, document: tree.Document) -> None:
        self._known: dict[BlockName, tree.Block] = {}
        for block in document.blocks:
            if isinstance(block, tree.SharedBlock):
                self._known[block_name(block)] = block
            else:
                self._known.setdefault(block_name(block), block)

    def names(self, kind: str, model: str = "") -> Sequence[str]:
        return [name for own, of, name in self._known if (own, of) == (kind, model)]

    def model(self, name: str) -> tree.ModelBlock | None:
        return _of_kind(self._known.get(("model", "", name)), tree.ModelBlock)

    def layout(self, model: str, name: str) -> tree.LayoutBlock | None:
        return _of_kind(self._known.get(("layout", model, name)), tree.LayoutBlock)

    def shared(self, name: str) -> tree.SharedBlock | None:
        return _of_kind(self._known.get(("config", "", name)), tree.SharedBlock)


class ShippedBlocks:
    """The blocks of a text that ships.

    Args:  source: the text.  trees: its blocks, encoded.
    """

    def __init__(self, source: Source, trees: Mapping[BlockName, str]) -> None:
        self.source = source
        self._trees = trees
        self._made: dict[BlockName, tree.Block] = {}

    def names(self, kind: str, model: str = "") -> Sequence[str]:
        return [name for own, of, name in self._trees if (own, of) == (kind, model)]

    def model(self, name: str) -> tree.ModelBlock | None:
        return _of_kind(self._find(("model", "", name)), tree.ModelBlock)

    def layout(self, model: str, name: str) -> tree.LayoutBlock | None:
        return _of_kind(self._find(("layout", model, name)), tree.LayoutBlock)

    def shared(self, name: str) -> tree.SharedBlock | None:
        return _of_kind(self._find(("config", "", name)), tree.SharedBlock)

    def every(self) -> tuple[tree.Block, ...]:
        """All of them, in order."""
        return tuple(block for block in map(self._find, self._trees) if block is not None)

    def _find(self, name: BlockName) -> tree.Block | None:
        if name not in self._made and name in self._trees:
            self._made[name] = decoded(self._trees[name], self.source)
        return self._made.get(name)


def block_name(block: tree.Block) -> BlockName:
    """What a block is found by."""
    if isinstance(block, tree.LayoutBlock):
        return "layout", "" if block.model is None else block.model.text, block.name.text
    return "model" if isinstance(block, tree.ModelBlock) else "config", "", block.name.text


def _of_kind(block: tree.Block | None, kind: type[Kind]) -> Kind | None:
    return block if isinstance(block, kind) else None
