"""The layouts that ship, and those of a user's file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reshard.api.arguments import checked
from reshard.api.request import PathLike
from reshard.api.user_layouts import read_layout_file
from reshard.errors import layout_error
from reshard.language.expression import to_text
from reshard.language.faults import closest
from reshard.language.layout import Layout
from reshard.language.library import Family, families, shipped, shipped_text
from reshard.language.words import listed
from reshard.plan.shown import Shown
from reshard.plan.text import WIDTH, show_count, wrap


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
class Layouts(Shown):
    """Families of layouts."""

    families: tuple[FamilyFacts, ...]

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        return {
            "families": [
                {
                    "name": family.name,
                    "file": family.file,
                    "covers": family.covers,
                    "layouts": [
                        {
                            "name": item.name,
                            "mesh": list(item.mesh),
                            "rules": item.rules,
                            "of": item.of,
                            "comment": item.comment,
                        }
                        for item in family.layouts
                    ],
                }
                for family in self.families
            ]
        }

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
        known = [family.name for family in shipped()]
        near = closest(name, known)
        raise layout_error(
            "unknown-model-name",
            f"no layouts of a model `{name}` ship",
            notes=[f"known are {listed(known)}"],
            helps=[f"did you mean `{near}`?" if near else "name a file of your own as `FILE.ucl`"],
        )
    return text


@checked
def list_layouts(path: PathLike | None = None) -> Layouts:
    """What ships, or what a UCL file declares.

    Args:  path: of a UCL file with models.
    Raises: ReshardError[layout-missing | syntax], and everything that is wrong with the text.
    """
    found = shipped() if path is None else families(read_layout_file(Path(path)), str(path))
    return Layouts(tuple(_facts(family) for family in found))


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
