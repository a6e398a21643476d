"""The public functions as Python's users call them: what the command line warns of is a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, TypeVar

from reshard.api.checkpoint import Checkpoint, open_checkpoint
from reshard.api.converting import Converted
from reshard.api.converting import convert as _convert
from reshard.api.loading import Loaded
from reshard.api.loading import load as _load
from reshard.api.roundtrip_proof import RoundTrip
from reshard.api.roundtripping import roundtrip as _roundtrip
from reshard.errors import Diagnostic, ReshardWarning

P = ParamSpec("P")
R = TypeVar("R")


def _warning(
    function: Callable[P, R], items: Callable[[R], Iterable[Diagnostic]]
) -> Callable[P, R]:
    """A function that warns of what its result says."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        result = function(*args, **options)
        for item in items(result):
            if item.level == "warning":
                warnings.warn(item.render(), ReshardWarning, stacklevel=2)
        return result

    return call


def _of_checkpoint(checkpoint: Checkpoint) -> Iterable[Diagnostic]:
    return checkpoint.warnings


def _of_conversion(result: Converted) -> Iterable[Diagnostic]:
    return result.report.warnings


def _of_rank(loaded: Loaded) -> Iterable[Diagnostic]:
    return loaded.warnings


def _of_roundtrip(result: RoundTrip) -> Iterable[Diagnostic]:
    return dict.fromkeys(item for way in result.ways for item in way.warnings)


open_ = _warning(open_checkpoint, _of_checkpoint)
convert = _warning(_convert, _of_conversion)
load = _warning(_load, _of_rank)
roundtrip = _warning(_roundtrip, _of_roundtrip)
