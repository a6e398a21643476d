"""From a path to a source that is understood: recognized, catalogued, bound, and proved whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from reshard import formats
from reshard.errors import ReshardError, layout_error
from reshard.language import load_layout
from reshard.plan.arrangement import Arrangement
from reshard.plan.bind import bind
from reshard.plan.catalog import Catalog
from reshard.plan.prove import Proof, prove_sources

PathLike = str | Path


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source and the proof that all of it is there.

    Args:  layout_text: UCL through which it was read; the source's own, or the user's.
    """

    path: Path
    catalog: Catalog
    arrangement: Arrangement
    proof: Proof
    layout_text: str


def open_source(
    path: PathLike,
    *,
    step: str | None = None,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, int] | None = None,
) -> OpenedSource:
    """A source, read through its own layout or through the user's.

    Args:  step: which one of several that the folder holds.
           layout: a UCL file; layout_name: which layout of it.
           settings: sizes that win over those of the checkpoint.
    Raises: source-missing, unknown-source, layout-missing, and everything that the format, the
            language, and the coverage proof find wrong.
    """
    folder = Path(path)
    # The user's layout first: a slip in it should not wait for a big checkpoint to be read.
    own = None if layout is None else read_layout_file(Path(layout))
    chosen = None if own is None else load_layout(own, str(layout), layout_name)
    catalog = formats.read(
        formats.recognize(folder), folder, step=step, strict_layout=chosen is None
    )
    if chosen is None:
        chosen = load_layout(catalog.layout, f"{catalog.format} layout", catalog.layout_name)
    arrangement = bind(chosen, catalog, settings=settings)
    proof = prove_sources(arrangement)
    return OpenedSource(folder, catalog, arrangement, proof, own or catalog.layout)


def read_layout_file(path: Path) -> str:
    """The text of a UCL file.

    Raises: ReshardError[layout-missing].
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        reason = error.strerror or type(error).__name__
        raise _no_layout(path, reason.lower()) from None
    except UnicodeDecodeError as error:
        raise _no_layout(path, f"byte {error.start} is not UTF-8 text") from None


def _no_layout(path: Path, reason: str) -> ReshardError:
    others = [item.name for item in path.parent.glob("*.ucl") if item != path]
    near = get_close_matches(path.name, others, 1) if not path.exists() else []
    return layout_error(
        "layout-missing",
        f"the layout file `{path}` cannot be read",
        notes=[reason],
        helps=[f"did you mean `{path.parent / near[0]}`?"] if near else [],
    )
