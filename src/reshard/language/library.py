"""The shipped layouts: one UCL file for each family of models, and those of the user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path

from reshard.language import parser
from reshard.language.compile import compile_layouts, compile_models
from reshard.language.expand import expand
from reshard.language.expand_models import Known
from reshard.language.layout import Layout, Model
from reshard.language.tree import Document, LayoutBlock


@dataclass(frozen=True, slots=True)
class Family:
    """One file of layouts of one model.

    Args:  name: of the model.  file: for messages.  document: as parsed.
    """

    name: str
    file: str
    document: Document
    _made: dict[str, Layout] = field(default_factory=dict, compare=False, repr=False)

    @property
    def layout_names(self) -> tuple[str, ...]:
        """The layouts, in the order of the file."""
        return tuple(block.name.text for block in self.document.layouts)

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """Every layout, checked and compiled.

        Raises: everything that `check` finds wrong.
        """
        if not self._made:
            self._made.update(compile_layouts(self.document))
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
    found: list[Family] = []
    for file, text in _texts().items():
        found += families(text, file)
    return tuple(found)


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
    for family in shipped() if names.keys() - models.keys() else ():
        models.setdefault(family.name, family.document.models[0])
    return tuple(
        Family(
            name,
            document.source.name,
            replace(document, blocks=(models[name], *_layouts_of(document, name))),
        )
        for name in names
    )


def families(text: str, file: str) -> tuple[Family, ...]:
    """The families of one text: its models that have layouts.

    Raises: syntax.
    """
    document = parse(text, file)
    return tuple(
        Family(
            block.name.text,
            file,
            replace(document, blocks=(block, *_layouts_of(document, block.name.text))),
        )
        for block in document.models
    )


def _layouts_of(document: Document, model: str) -> tuple[LayoutBlock, ...]:
    return tuple(
        block for block in document.layouts if block.model is not None and block.model.text == model
    )


def read_families(path: Path) -> tuple[Family, ...]:
    """The families of a user's file.

    Raises: OSError, syntax.
    """
    return families(path.read_text(encoding="utf-8"), str(path))
