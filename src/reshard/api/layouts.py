"""UCL files: checked, and in canonical form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reshard.api.arguments import checked
from reshard.api.request import PathLike
from reshard.api.user_layouts import read_layout_file
from reshard.errors import Diagnostic, Exit, ReshardError, layout_error
from reshard.language import compile_layout, format_document, parse, parser
from reshard.language.check import check
from reshard.language.compile import one_layout
from reshard.language.expression import to_text
from reshard.language.faults import closest
from reshard.language.layout import Layout
from reshard.language.library import (
    Family,
    families,
    missing_models,
    shipped,
    shipped_text,
    shipped_texts,
)
from reshard.language.words import listed
from reshard.models.megatron import argument_names
from reshard.models.transformers import config_keys
from reshard.plan.shown import Plain, Shown
from reshard.plan.text import WIDTH, show_count, wrap


@dataclass(frozen=True, slots=True)
class LayoutSummary:
    """One layout of a file.  mesh: its axes.  model: of which it is, if of any."""

    name: str
    model: str | None
    mesh: tuple[str, ...]
    rules: int


@dataclass(frozen=True, slots=True)
class CheckedLayouts(Plain):
    """A UCL file without errors.

    Args:  models: that the file declares.  warnings: of what has no effect.
    """

    path: str
    models: tuple[str, ...]
    layouts: tuple[LayoutSummary, ...]
    warnings: tuple[Diagnostic, ...]

    def to_text(self) -> str:
        """For people."""
        lines = [f"{self.path} is correct"]
        lines += [f"  model {name}" for name in self.models]
        for item in self.layouts:
            of = f" of {item.model}" if item.model else ""
            over = f", mesh {', '.join(item.mesh)}" if item.mesh else ""
            lines.append(f"  layout {item.name}{of}: {show_count(item.rules, 'rule')}{over}")
        lines.append("proved: every rule uses each axis of its atoms exactly once")
        return "\n".join(lines)


def check_layout(path: PathLike) -> CheckedLayouts:
    """Check a UCL file without a checkpoint.

    Raises: ReshardError[layout-missing], and everything that is wrong with the text, at once.
    """
    document = parse(read_layout_file(Path(path)), str(path))
    models = missing_models(document)
    diagnostics = check(document, models=models, vocabulary=vocabulary())
    errors = [item for item in diagnostics if item.level == "error"]
    if errors:
        raise ReshardError(errors, Exit.LAYOUT)
    layouts = []
    for block in document.layouts:
        compiled = compile_layout(document, block.name.text, models=models)
        model = None if compiled.model is None else compiled.model.name
        layouts.append(
            LayoutSummary(compiled.name, model, tuple(compiled.mesh), len(compiled.rules))
        )
    declared = tuple(block.name.text for block in document.models)
    return CheckedLayouts(str(path), declared, tuple(layouts), diagnostics)


def layout_text(name: str, *, expanded: bool = False) -> str | None:
    """The text of a UCL file or of layouts that ship; None where a name is that of another path.

    Args:  name: `FILE.ucl` or `MODEL`, with `#LAYOUT` behind it for one layout of it.
           expanded: with everything written out that `like` and other short forms stand for.
    Raises: ReshardError[layout-missing | syntax | unknown-layout], and what is wrong with the text.
    """
    file, _, layout = name.partition("#")
    if file.endswith(".ucl"):
        text, where = read_layout_file(Path(file)), file
    else:
        built_in = None if Path(file).exists() else shipped_text(file)
        if built_in is None:
            return None
        text, where = built_in, f"{file}.ucl"
    if not layout and not expanded:
        return text
    document = parse(text, where) if expanded else parser.parse(text, where)
    return format_document(one_layout(document, layout) if layout else document)


def expanded_text(text: str) -> str:
    """A text with everything written out that its short forms stand for.

    Raises: syntax, and what is wrong with the short forms.
    """
    return format_document(parse(text))


def format_layout(path: PathLike, *, write: bool = False) -> tuple[str, bool]:
    """The canonical text of a UCL file, and whether the file has it already.

    Args:  write: replace the file's text, if it differs.
    Raises: ReshardError[layout-missing | syntax].
    """
    file = Path(path)
    before = read_layout_file(file)
    after = format_document(parser.parse(before, str(path)))
    if write and after != before:
        file.write_text(after, encoding="utf-8")
    return after, after == before


_WORD = re.compile(r"[A-Za-z_]\w*")
_NO_NAME = re.compile(r'"(?:\\.|[^"\\\n])*"|#[^\n]*')


@cache
def vocabulary() -> frozenset[str]:
    """Names that may stand in sizes, conditions, and `config` lines."""
    texts = [_NO_NAME.sub(" ", text) for text in shipped_texts()]
    words = {word for text in texts for word in _WORD.findall(text)}
    return frozenset((*words, *argument_names(), *config_keys()))


@dataclass(frozen=True, slots=True)
class LayoutFacts:
    """One layout of a family.

    Args:  mesh: its axes; () where tensors are whole.
           of: which checkpoints, as a condition; None for any.
           comment: what the file says of it.
    """

    name: str
    mesh: tuple[str, ...]
    rules: int
    of: str | None
    comment: str


@dataclass(frozen=True, slots=True)
class FamilyFacts:
    """A model and its layouts.  covers: what the file says of it.  file: where it is."""

    name: str
    file: str
    covers: str
    layouts: tuple[LayoutFacts, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Layouts(Plain, Shown):
    """Families of layouts."""

    families: tuple[FamilyFacts, ...]

    def summary(self) -> str:
        """In a line."""
        layouts = sum(len(family.layouts) for family in self.families)
        return f"{show_count(len(self.families), 'model')}, {show_count(layouts, 'layout')}"

    def to_text(self) -> str:
        """For people, 80 columns wide."""
        blocks = [_family_text(family) for family in self.families]
        count = sum(len(family.layouts) for family in self.families)
        end = f"{show_count(len(self.families), 'model')}, {show_count(count, 'layout')}"
        return "\n\n".join([*blocks, end])


def shipped_layouts_text(name: str) -> str:
    """The UCL text of a model whose layouts ship.

    Raises: ReshardError[unknown-model-name].
    """
    text = shipped_text(name)
    if text is None:
        names = [family.name for family in shipped()]
        near = closest(name, names)
        raise layout_error(
            "unknown-model-name",
            f"there is no built-in model `{name}`",
            notes=[f"known are {listed(names)}"],
            helps=[
                f"did you mean `{near}`?"
                if near
                else "to list your own file, give its name as `FILE.ucl`"
            ],
        )
    return text


@checked
def list_layouts(path: PathLike | None = None) -> Layouts:
    """What ships, or what a UCL file declares.

    Args:  path: of a UCL file with models.
    Raises: ReshardError[layout-missing | syntax], and everything that is wrong with the text.
    """
    all_families = shipped() if path is None else families(read_layout_file(Path(path)), str(path))
    return Layouts(tuple(_facts(family) for family in all_families))


def _facts(family: Family) -> FamilyFacts:
    (model,) = family.document.models
    comments = {block.name.text: block.trivia.comments for block in family.document.layouts}
    return FamilyFacts(
        family.name,
        family.file,
        _prose(model.trivia.comments),
        tuple(_layout(item, comments[item.name]) for item in family.layouts.values()),
    )


def _layout(layout: Layout, comments: tuple[str, ...]) -> LayoutFacts:
    return LayoutFacts(
        layout.name,
        tuple(layout.mesh),
        len(layout.rules),
        None if layout.when is None else to_text(layout.when),
        _prose(comments),
    )


def _prose(comments: tuple[str, ...]) -> str:
    return " ".join(line.removeprefix("#").strip() for line in comments).strip()


def _family_text(family: FamilyFacts) -> str:
    lines = [family.name, *(f"  {line}" for line in wrap(family.covers, WIDTH - 2))]
    width = max((len(item.name) for item in family.layouts), default=0)
    for item in family.layouts:
        over = f"over {', '.join(item.mesh)}" if item.mesh else "whole tensors"
        lines.append(f"  {item.name:<{width}}  {show_count(item.rules, 'rule'):>8}, {over}")
    return "\n".join(lines)
