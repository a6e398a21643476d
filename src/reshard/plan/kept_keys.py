"""What a source kept of its run that only the program that wrote it reads again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from reshard.plan.catalog import Left
from reshard.run.run import Run

_WHY = "only the program that wrote it reads it again"
_EMPTY: tuple[object, ...] = (None, "", [], {}, (), False)

_KEYED = {"dcp": ("objects",), "deepspeed": ("client_state",), "megatron": ("objects", "other")}
"""Where the keys of a run are among what a framework kept, by its name."""

_SHARD = re.compile("/shard_[0-9]+_[0-9]+")
"""Behind the key of an object that Megatron cuts: which part of how many."""

_SCHEDULERS = ("lr_scheduler", "lr_schedulers", "scheduler")
"""Keys that are read as the state of the scheduler, which other frameworks have too."""


def kept_keys(training: Run) -> tuple[Left, ...]:
    """Keys of the source that are neither tensors nor facts that other frameworks have too."""
    framework = training.framework
    schedulers = _SCHEDULERS if training.scheduler else ()
    keys = (key for key in _named(training) if key.split(".")[0] not in schedulers)
    out = [Left("", key, _WHY) for key in keys]
    kept = framework.get("kept")
    if isinstance(kept, list):
        out += [Left(str(item["file"]), _path(item["where"]), _WHY) for item in kept]
    return tuple(out)


def _named(training: Run) -> Iterator[str]:
    for place in _KEYED.get(training.writer, ()):
        found = training.of(training.writer).get(place)
        if isinstance(found, Mapping):
            named = (str(key) for key, value in found.items() if value not in _EMPTY)
            yield from dict.fromkeys(_SHARD.sub("", key) for key in named)


def _path(where: Sequence[Sequence[object]]) -> str:
    """The steps to a value, `args.dtype`: keys and places."""
    return ".".join(str(step) for _, step in where)
