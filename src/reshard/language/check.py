"""Checks."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.errors import Diagnostic
from reshard.language import tree
from reshard.language.layout import Model


def check(document: tree.Document, *, models: Mapping[str, Model]) -> tuple[Diagnostic, ...]:
    return ()
