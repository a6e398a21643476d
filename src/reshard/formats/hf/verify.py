"""Checks the files of a model folder, and compares a second set of weights with the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from reshard.formats import checked
from reshard.formats.checked import Checked
from reshard.formats.hf.second_set import differing_bytes
from reshard.plan.catalog import Catalog


def check_bytes(catalog: Catalog, on_bytes: Callable[[int], None]) -> Checked:
    """Check each file by itself, and say where a second set holds other weights.

    Args:  on_bytes: is told how many bytes more were read.
    """
    result = checked.check_bytes(catalog, on_bytes)
    return replace(result, warnings=differing_bytes(catalog, on_bytes))
