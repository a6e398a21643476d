"""The shipped layouts: one UCL file for each family of models, and those of the user."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from reshard.errors import Source
from reshard.language.blocks import Blocks, ShippedBlocks
from reshard.language.compile import compile_block, compile_layout, compile_layouts
from reshard.language.expression import Binary, Expression, Text, Variable
from reshard.language.layout import Layout, Model
from reshard.language.models import compile_model
from reshard.language.shipped_index import MODELS
from reshard.language.shipped_trees import TEXTS, TREES
from reshard.language.tree import Document, ModelBlock

if TYPE_CHECKING:
    from reshard.language.expand import Expander
    from reshard.language.expand_models import Known

MAX_TEXT = 1 << 22
"""Characters of one text of a user."""

_DIGITS = re.compile("[0-9#]+")
_TYPE = "model_type"


class Indexed(NamedTuple):
    """What `shipped_index` says of a layout: the types of models that it is of, and its names, with
    `#` in place of numbers.
    """

    types: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """The layouts of one model; of what ships, each is made when it is first looked at.

    Args:  name: of the model.  file: for messages.
           read: gives the tree of the model and its layouts.
           index: of what ships, by layout.
    """

    name: str
    file: str
    read: Callable[[], Document] = field(repr=False)
    index: Mapping[str, Indexed] | None = field(default=None, repr=False)
    _made: dict[str, Layout] = field(default_factory=dict, repr=False)

    @property
    def document(self) -> Document:
        """The model and its layouts, as parsed."""
        return self.read()

    @property
    def layout_names(self) -> tuple[str, ...]:
        """The layouts, in the order of the file."""
        if self.index is not None:
            return tuple(self.index)
        return tuple(block.name.text for block in self.document.layouts)

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """Every layout, compiled; those of the user are checked before, what ships by its tests.

        Raises: everything that `check` finds wrong.
        """
        return {name: self.layout(name) for name in self.layout_names}

    def layout(self, name: str) -> Layout:
        """One layout, checked and compiled.

        Raises: what `layouts` raises.
        """
        if name not in self._made:
            if self.index is None:
                self._made.update(compile_layouts(self.document))
            else:
                self._made[name] = _shipped_layout(self.name, name)
        return self._made[name]

    def types(self, layout: str | None = None) -> frozenset[str]:
        """The types of models that the layouts say that they are of; none for most of a user's.

        Args:  layout: only what this one says.
        """
        if self.index is not None:
            asked = self.index.values() if layout is None else [self.index[layout]]
            return frozenset(text for item in asked for text in item.types)
        blocks = self.document.layouts
        asked_of = [item for item in blocks if layout in (None, item.name.text)]
        return frozenset(text for item in asked_of for text in types_in(item.when))

    def may_have(self, layout: str, forms: Collection[str]) -> bool:
        """Whether a layout may have a rule for each of some names; it is not made to tell it.

        Args:  forms: of the names (`name_form`).
        """
        return self.index is None or set(self.index[layout].names).issuperset(forms)


def name_form(name: str) -> str:
    """A name without what tells it from others that a rule is of, too."""
    return _DIGITS.sub("#", name)


def types_in(condition: Expression | None) -> tuple[str, ...]:
    """The types of models that a condition asks for."""
    if not isinstance(condition, Binary):
        return ()
    left, right = condition.left, condition.right
    if isinstance(left, Variable) and left.name == _TYPE and isinstance(right, Text):
        return (right.value,) if condition.operator == "==" else ()
    return (*types_in(left), *types_in(right))


def parse(text: str, name: str = "<text>") -> Document:
    """The tree of a UCL text, its short forms written out; it may refer to what ships.

    Args:  name: of the file, for messages.
    Raises: syntax, and what `expand` finds wrong.
    """
    if text in TEXTS:
        source = Source(name, text)
        return Document(ShippedBlocks(source, TEXTS[text]).every(), (), source)
    from reshard.language import parser

    return _expanded(parser.parse(text, name))


def _expanded(document: Document) -> Document:
    from reshard.language.expand import expand

    return expand(document, known())


@cache
def shipped() -> tuple[Family, ...]:
    """Every family that comes with reshard, by name."""
    return tuple(
        Family(
            name,
            file.rpartition("/")[2],
            cache(partial(_shipped_document, file, name)),
            {layout: Indexed(*item) for layout, item in layouts.items()},
        )
        for name, (file, layouts) in MODELS.items()
    )


def _shipped_document(file: str, name: str) -> Document:
    return _of_model(_expanded(_written(file)), name)


def _shipped_layout(model: str, name: str) -> Layout:
    file, made = MODELS[model][0], _shipped_model(model)
    block = _expander(file).layout(model, name)
    assert block is not None
    assert made is not None
    assert made.block is not None
    source = _blocks(file).source
    return compile_block(block, made, Document((made.block, block), source=source))


def shipped_texts() -> tuple[str, ...]:
    """The texts of all families that come with reshard."""
    return tuple(_texts().values())


def shipped_text(name: str) -> str | None:
    """The UCL text of a family that comes with reshard; None where there is none of this name."""
    return _texts().get(f"{name}.ucl")


@cache
def shipped_layout(file: str, name: str = "") -> Layout:
    """The layout of a text that ships and has no other one.

    Args:  file: in the package.  name: of the text, for messages; "" for that of the file.
    """
    blocks = _blocks(file)
    source = blocks.source if not name else Source(name, blocks.source.text)
    document = Document(ShippedBlocks(source, TREES[file]).every(), (), source)
    return compile_layout(_expanded(document), is_checked=True)


@cache
def _texts() -> Mapping[str, str]:
    """The shipped texts of models, by file."""
    return {
        path.name: _text(file)
        for file in TREES
        if (path := PurePosixPath(file)).parent.name == "layouts"
    }


def _text(file: str) -> str:
    return resources.files("reshard").joinpath(*file.split("/")).read_text(encoding="utf-8")


@cache
def _blocks(file: str) -> ShippedBlocks:
    return ShippedBlocks(Source(file.rpartition("/")[2], _text(file)), TREES[file])


@cache
def _expander(file: str) -> Expander:
    from reshard.language.expand import Expander
    from reshard.language.faults import Faults

    return Expander(_blocks(file), known(), Faults())


def _model_home(name: str) -> Blocks | None:
    if name in MODELS:
        return _blocks(MODELS[name][0])
    return next((x for x in map(_blocks, TREES) if name in x.names("model")), None)


def _shared_home(name: str) -> Blocks | None:
    return next((x for x in map(_blocks, TREES) if name in x.names("config")), None)


def _written(file: str) -> Document:
    return Document(_blocks(file).every(), (), _blocks(file).source)


@cache
def known() -> Known:
    """The texts that ship, for those that refer to them."""
    from reshard.language.expand_models import Known

    return Known(_model_home, _shared_home)


def missing_models(document: Document) -> Mapping[str, Model]:
    """The models that a document's layouts are of and that it does not declare, where they ship."""
    own = {block.name.text for block in document.models}
    wanted = {block.model.text for block in document.layouts if block.model is not None} - own
    if not wanted:
        return {}
    return {name: model for name in wanted if (model := _shipped_model(name)) is not None}


@cache
def _shipped_model(name: str) -> Model | None:
    block = _expander(MODELS[name][0]).model(name) if name in MODELS else None
    return None if block is None else compile_model(block)


def own_families(document: Document) -> tuple[Family, ...]:
    """The families that a user's layouts are of: models of the document, or those that ship with
    the user's layouts in place of theirs.
    """
    names = dict.fromkeys(block.model.text for block in document.layouts if block.model)
    models = {block.name.text: block for block in document.models}
    for family in shipped():
        if family.name in names.keys() - models.keys():
            models[family.name] = family.document.models[0]
    return tuple(_family(document, models[name]) for name in names)


def families(text: str, file: str) -> tuple[Family, ...]:
    """The families of one text: its models that have layouts.

    Raises: syntax.
    """
    return declared_families(parse(text, file))


def declared_families(document: Document) -> tuple[Family, ...]:
    """The families of a document: its models, each with its layouts."""
    return tuple(_family(document, block) for block in document.models)


def _family(document: Document, model: ModelBlock) -> Family:
    made = _with_layouts(document, model)
    return Family(model.name.text, document.source.name, lambda: made)


def _of_model(document: Document, name: str) -> Document:
    return _with_layouts(document, next(x for x in document.models if x.name.text == name))


def _with_layouts(document: Document, model: ModelBlock) -> Document:
    name = model.name.text
    layouts = (x for x in document.layouts if x.model is not None and x.model.text == name)
    return replace(document, blocks=(model, *layouts))


def read_families(path: Path) -> tuple[Family, ...]:
    """The families of a user's file.

    Raises: OSError, syntax.
    """
    return families(path.read_text(encoding="utf-8"), str(path))
