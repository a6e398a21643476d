"""UCL files: checked, and in canonical form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reshard.api.request import PathLike
from reshard.api.user_layouts import read_layout_file
from reshard.api.vocabulary import vocabulary
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.language import check, compile_layout, format_document, parse, parser
from reshard.language.compile import one_layout
from reshard.language.library import missing_models, shipped_text
from reshard.plan.text import show_count


@dataclass(frozen=True, slots=True)
class LayoutSummary:
    """One layout of a file.  mesh: its axes.  model: of which it is, if of any."""

    name: str
    model: str | None
    mesh: tuple[str, ...]
    rules: int


@dataclass(frozen=True, slots=True)
class CheckedLayouts:
    """A UCL file without errors.

    Args:  models: that the file declares.  warnings: of what has no effect.
    """

    path: str
    models: tuple[str, ...]
    layouts: tuple[LayoutSummary, ...]
    warnings: tuple[Diagnostic, ...]

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        return {
            "path": self.path,
            "models": list(self.models),
            "layouts": [
                {"name": x.name, "model": x.model, "mesh": list(x.mesh), "rules": x.rules}
                for x in self.layouts
            ],
            "warnings": [item.to_json() for item in self.warnings],
        }

    def to_text(self) -> str:
        """For people."""
        lines = [f"{self.path} is correct"]
        lines += [f"  model {name}" for name in self.models]
        for item in self.layouts:
            of = f" of {item.model}" if item.model else ""
            over = f", mesh {', '.join(item.mesh)}" if item.mesh else ""
            lines.append(f"  layout {item.name}{of}: {show_count(item.rules, 'rule')}{over}")
        lines.append("proved: every rule uses each axis of what it holds exactly once")
        return "\n".join(lines)


def check_layout(path: PathLike) -> CheckedLayouts:
    """Check a UCL file without a checkpoint.

    Raises: ReshardError[layout-missing], and everything that is wrong with the text, at once.
    """
    document = parse(read_layout_file(Path(path)), str(path))
    models = missing_models(document)
    found = check(document, models=models, vocabulary=vocabulary())
    errors = [item for item in found if item.level == "error"]
    if errors:
        raise ReshardError(errors, Exit.LAYOUT)
    layouts = []
    for block in document.layouts:
        made = compile_layout(document, block.name.text, models=models)
        model = None if made.model is None else made.model.name
        layouts.append(LayoutSummary(made.name, model, tuple(made.mesh), len(made.rules)))
    declared = tuple(block.name.text for block in document.models)
    return CheckedLayouts(str(path), declared, tuple(layouts), found)


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
        found = None if Path(file).exists() else shipped_text(file)
        if found is None:
            return None
        text, where = found, f"{file}.ucl"
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
