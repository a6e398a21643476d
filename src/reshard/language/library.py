"""The shipped layouts: one UCL file for each family of models, and those of the user."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import resources
from pathlib import Path

from reshard.language import parser
from reshard.language.compile import compile_layouts, compile_models
from reshard.language.expand import expand
from reshard.language.expand_models import Known
from reshard.language.layout import Layout, Model
from reshard.language.tree import Document, ModelBlock

_MODEL = re.compile(r"^model\s+(\w+)", re.M)


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One file of layouts of one model; what ships is parsed when it is first looked at.

    Args:  name: of the model.  file: for messages.
           read: gives the tree of the model and its layouts.
           text: of the file, where it may not be parsed yet.
    """

    name: str
    file: str
    read: Callable[[], Document] = field(repr=False)
    text: str | None = field(default=None, repr=False)
    _made: dict[str, Layout] = field(default_factory=dict, repr=False)

    @property
    def document(self) -> Document:
        """The model and its layouts, as parsed."""
        return self.read()

    def may_be_of(self, kind: str) -> bool:
        """Whether its layouts may be those of a `model_type`; nothing is parsed to tell it."""
        return self.text is None or f'"{kind}"' in self.text or "model_type" not in self.text

    @property
    def layout_names(self) -> tuple[str, ...]:
        """The layouts, in the order of the file."""
        return tuple(block.name.text for block in self.document.layouts)

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """Every layout, compiled; those of the user are checked before, what ships by its tests.

        Raises: everything that `check` finds wrong.
        """
        if not self._made:
            is_shipped = self.text is not None
            self._made.update(compile_layouts(self.document, is_checked=is_shipped))
        return self._made

    def layout(self, name: str) -> Layout:
        """One layout, checked and compiled.

        Raises: what `layouts` raises.
        """
        return self.layouts[name]


def parse(text: str, name: str = "<text>") -> Document:
    """The tree of a UCL text, its short forms written out; it may refer to what ships.

    Args:  name: of the file, for messages.
    Raises: syntax, and what `expand` finds wrong.
    """
    return expand(parser.parse(text, name), _KNOWN)


@cache
def shipped() -> tuple[Family, ...]:
    """Every family that comes with reshard, by name."""
    return tuple(
        Family(name, file, cache(partial(_shipped_document, file, name)), text)
        for file, text in _texts().items()
        for name in _MODEL.findall(text)
    )


def _shipped_document(file: str, name: str) -> Document:
    return _of_model(expand(_written(file), _KNOWN), name)


def shipped_texts() -> tuple[str, ...]:
    """The texts of all families that come with reshard."""
    return tuple(_texts().values())


def shipped_text(name: str) -> str | None:
    """The UCL text of a family that comes with reshard; None where there is none of this name."""
    return _texts().get(f"{name}.ucl")


@cache
def _texts() -> Mapping[str, str]:
    """The shipped texts, by file."""
    folder = resources.files("reshard").joinpath("layouts")
    files = sorted(item.name for item in folder.iterdir() if item.name.endswith(".ucl"))
    return {file: folder.joinpath(file).read_text(encoding="utf-8") for file in files}


def _home(kind: str, name: str) -> Document | None:
    """The shipped text that declares a block, as written: `model NAME` or `config NAME`."""
    declares = re.compile(rf"^{kind}\s+{re.escape(name)}\b", re.M)
    file = next((file for file, text in _texts().items() if declares.search(text)), None)
    return None if file is None else _written(file)


@cache
def _written(file: str) -> Document:
    return parser.parse(_texts()[file], file)


_KNOWN = Known(lambda name: _home("model", name), lambda name: _home("config", name))


def missing_models(document: Document) -> Mapping[str, Model]:
    """The models that a document's layouts are of and that it does not declare, where they ship."""
    own = {block.name.text for block in document.models}
    wanted = {block.model.text for block in document.layouts if block.model is not None} - own
    if not wanted:
        return {}
    return {name: model for name in wanted if (model := _shipped_model(name)) is not None}


@cache
def _shipped_model(name: str) -> Model | None:
    written = _home("model", name)
    return None if written is None else compile_models(expand(written, _KNOWN))[name]


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
