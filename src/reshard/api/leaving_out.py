"""Tensors that the user does not want, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from reshard.api.unnamed import leave_out
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.plan.catalog import Catalog


def without_named(catalog: Catalog, patterns: Iterable[str]) -> Catalog:
    """The catalog without the tensors whose names follow one of the patterns, in all their states.

    Args:  patterns: names; a `*` stands for any characters.
    Raises: ReshardError[unknown-tensor] for a pattern that no name follows.
    """
    names = dict.fromkeys(tensor.name for tensor in catalog.tensors)
    reasons: dict[str, str] = {}
    for text in patterns:
        parts = (re.escape(part) for part in text.split("*"))
        pattern = re.compile(".*".join(parts), re.DOTALL)
        found = [name for name in names if pattern.fullmatch(name)]
        if not found:
            raise _unknown(text, names)
        reasons.update(dict.fromkeys(found, f"left out, as `{text}` is not wanted"))
    return leave_out(catalog, reasons) if reasons else catalog


def _unknown(text: str, names: Iterable[str]) -> ReshardError:
    from difflib import get_close_matches

    near = get_close_matches(text, names, 1)
    return ReshardError(
        Diagnostic(
            "unknown-tensor",
            f"no tensor of the source is named `{text}`, which is to be left out",
            helps=(f"did you mean `{near[0]}`?",) if near else (),
        ),
        Exit.USAGE,
    )
