"""The shipped layouts: one UCL file for each family of models, and those of the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path

from reshard.language.compile import compile_layouts, compile_models
from reshard.language.layout import Layout, Model
from reshard.language.parser import parse
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


@cache
def shipped() -> tuple[Family, ...]:
    """Every family that comes with reshard, by name."""
    folder = resources.files("reshard").joinpath("layouts")
    found: list[Family] = []
    for item in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if item.name.endswith(".ucl"):
            found += families(item.read_text(encoding="utf-8"), item.name)
    return tuple(found)


def shipped_texts() -> tuple[str, ...]:
    """The texts of all families that come with reshard."""
    folder = resources.files("reshard").joinpath("layouts")
    files = [item for item in folder.iterdir() if item.name.endswith(".ucl")]
    return tuple(item.read_text(encoding="utf-8") for item in files)


def shipped_text(name: str) -> str:
    """The UCL text of a family that comes with reshard."""
    folder = resources.files("reshard").joinpath("layouts")
    return folder.joinpath(f"{name}.ucl").read_text(encoding="utf-8")


def missing_models(document: Document) -> Mapping[str, Model]:
    """The models that a document's layouts are of and that it does not declare, where they ship."""
    own = {block.name.text for block in document.models}
    wanted = {block.model.text for block in document.layouts if block.model is not None} - own
    if not wanted:
        return {}
    found = {family.name: family for family in shipped() if family.name in wanted}
    return {name: compile_models(family.document)[name] for name, family in found.items()}


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
