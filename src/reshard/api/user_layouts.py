"""UCL files of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from reshard.api.request import Request
from reshard.errors import ReshardError, layout_error
from reshard.language import Document, compile_layout, parse
from reshard.language.compile import compile_layouts
from reshard.language.layout import Layout
from reshard.language.library import MAX_TEXT, Family, missing_models, own_families


@dataclass(frozen=True, slots=True)
class UserLayouts:
    """What the user gives to read a source through.

    Args:  document: the text; None where there is none.  layout: the one that is meant.
           families: or those of a text with several, of which one is to be found that fits.
    """

    document: Document | None = None
    layout: Layout | None = None
    families: tuple[Family, ...] = ()

    @classmethod
    def of(cls, request: Request) -> UserLayouts:
        """The layouts of a request.

        Raises: ReshardError[layout-missing | unknown-layout], and what is wrong with the text.
        """
        if request.layout is None:
            return cls()
        document = read_layouts(Path(request.layout))
        families = () if request.layout_name else _alternatives(document, request.model)
        return cls(
            document, None if families else one_layout(document, request.layout_name), families
        )


def read_layouts(path: Path) -> Document:
    """The tree of a UCL file.

    Raises: ReshardError[layout-missing | syntax].
    """
    return parse(read_layout_file(path), str(path))


def one_layout(document: Document, name: str | None) -> Layout:
    """A layout of a user's text, which may be of a model that ships.

    Raises: unknown-layout, and everything that is wrong with the text.
    """
    return compile_layout(document, name, models=missing_models(document))


def _alternatives(document: Document, model: str | None) -> tuple[Family, ...]:
    """The families of a user's text that has several layouts, all of models: one of them may fit.

    Raises: everything that is wrong with the text.
    """
    if len(document.layouts) < 2 or any(block.model is None for block in document.layouts):
        return ()
    compile_layouts(document, models=missing_models(document))
    families = own_families(document)
    return tuple(family for family in families if model is None or family.name == model)


def read_layout_file(path: Path) -> str:
    """The text of a UCL file.

    Raises: ReshardError[layout-missing].
    """
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_TEXT + 1)  # the language refuses what is longer
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        reason = error.strerror or type(error).__name__
        raise _no_layout(path, reason.lower()) from None
    except UnicodeDecodeError as error:
        raise _no_layout(
            path, f"byte {error.start} is not UTF-8 text", "save the file as UTF-8"
        ) from None


def _no_layout(path: Path, reason: str, help_text: str = "") -> ReshardError:
    others = [item.name for item in path.parent.glob("*.ucl") if item != path]
    near = get_close_matches(path.name, others, 1) if not path.exists() else []
    return layout_error(
        "layout-missing",
        f"the layout file `{path}` cannot be read",
        notes=[reason],
        helps=[f"did you mean `{path.parent / near[0]}`?"]
        if near
        else [help_text] * bool(help_text),
    )
