"""The page of every error code."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from reshard.errors import Diagnostic, Exit, ReshardError

_NOT_A_CODE = "README"


def error_codes() -> tuple[str, ...]:
    """Every code that a message can have, sorted."""
    names = (item.name for item in _pages().iterdir())
    return tuple(
        sorted(name[:-3] for name in names if name.endswith(".md") and name[:-3] != _NOT_A_CODE)
    )


def explain(code: str) -> str:
    """The page of a code, as Markdown.

    Args:  code: alone, or as it is printed: `error[CODE]`.
    Raises: ReshardError[unknown-code].
    """
    name = code.strip().rpartition("[")[2].rstrip(":").rstrip("]").lower()
    codes = error_codes()
    if name in codes:
        return (_pages() / f"{name}.md").read_text(encoding="utf-8")
    near = get_close_matches(name, codes, 3)
    names = ", ".join(f"`{item}`" for item in near)
    raise ReshardError(
        Diagnostic(
            "unknown-code",
            f"there is no error code `{code}`",
            notes=("`reshard explain` lists all codes",),
            helps=(f"did you mean {names}?",) if near else (),
        ),
        Exit.USAGE,
    )


@lru_cache(maxsize=1)
def _pages() -> Traversable:
    """The packaged copy, or the folder of a source checkout."""
    packaged = files("reshard") / "_errors"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "docs" / "errors"
