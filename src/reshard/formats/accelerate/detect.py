"""Whether a folder is an FSDP checkpoint of accelerate in `.bin` files.

Source: accelerate/utils/fsdp_utils.py `save_fsdp_model`, `save_fsdp_optimizer` (1.15).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import source_error
from reshard.storage.source import LocalSource

_FILE = re.compile(
    r"(?P<kind>pytorch_model_fsdp|optimizer)(?:_(?P<index>[0-9]+))?(?:_rank(?P<rank>[0-9]+))?\.bin"
)


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a model or of its optimizer.

    Args:  whole: the file of all ranks; None where every rank has its own.  ranks: by rank.
    """

    whole: str | None
    ranks: Mapping[int, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Every file."""
        return (self.whole,) if self.whole else tuple(self.ranks.values())


def detect(path: Path) -> bool:
    """Whether a folder holds the weights of a model that FSDP cut."""
    matches = (_FILE.fullmatch(name) for name in LocalSource(path).files())
    return any(match is not None and match["kind"] != "optimizer" for match in matches)


def find_files(path: Path, kind: str) -> Files | None:
    """The files of one kind, `pytorch_model_fsdp` or `optimizer`; None without any.

    Raises: ReshardError[ambiguous-weights].
    """
    found: dict[tuple[int, bool], dict[int, str]] = {}
    for name in LocalSource(path).files():
        match = _FILE.fullmatch(name)
        if match is not None and match["kind"] == kind:
            key = (int(match["index"] or 0), match["rank"] is None)
            found.setdefault(key, {})[int(match["rank"] or 0)] = name
    if len(found) > 1:
        one, other = (next(iter(names.values())) for names in list(found.values())[:2])
        raise source_error(
            "ambiguous-weights",
            f"{path} holds more than one set of weights",
            notes=[f"it has `{one}` and `{other}`"],
            helps=["move one of them out of the folder"],
        )
    for (_, is_whole), names in found.items():
        return Files(names[0], {}) if is_whole else Files(None, dict(sorted(names.items())))
    return None
