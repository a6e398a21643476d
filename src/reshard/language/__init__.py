"""UCL, the language that says how a checkpoint is laid out.

Importing this package imports nothing that parses, checks, or prints a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from reshard.language.compile import compile_layout, compile_models
from reshard.language.expression import evaluate, names, to_text
from reshard.language.layout import Layout, Model
from reshard.language.library import missing_models, parse
from reshard.language.models import NO_MODELS
from reshard.language.pattern import NamePattern
from reshard.language.shipped_trees import TEXTS
from reshard.language.tree import Document

if TYPE_CHECKING:
    from reshard.language.canonical import format_document

__all__ = [
    "Document",
    "Layout",
    "Model",
    "NamePattern",
    "compile_layout",
    "compile_models",
    "evaluate",
    "format_document",
    "load_layout",
    "names",
    "parse",
    "to_text",
]


_HOME_OF = {"format_document": "reshard.language.canonical"}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def load_layout(
    text: str,
    file_name: str = "<text>",
    layout_name: str | None = None,
    *,
    models: Mapping[str, Model] = NO_MODELS,
    is_checked: bool = False,
) -> Layout:
    """One layout of a UCL text, parsed, checked, and compiled.

    Args:  file_name: for messages.  layout_name: which layout; None for the only one.
           models: those that the text may refer to without declaring them; those that ship where
           there are none.  is_checked: the text ships, and the tests have checked it.
    Raises: syntax, unknown-layout, and everything that `check` finds wrong.
    """
    document = parse(text, file_name)
    known = models or missing_models(document)
    is_checked = is_checked or text in TEXTS
    return compile_layout(document, layout_name, models=known, is_checked=is_checked)
