"""What is worth knowing of a Megatron checkpoint: warnings of `reshard inspect`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from reshard.errors import Diagnostic, ReshardError
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.ranks import Ranks
from reshard.formats.steps import TRACKER
from reshard.storage.regular_file import read_note

_ITERATION = re.compile(r"iter_(\d{7,})$")


def legacy_oddities(
    folder: Path,
    ranks: Ranks,
    config: Mapping[str, object],
    has_optimizer: bool,
    vocabulary: int | None,
) -> tuple[Diagnostic, ...]:
    """Those of a folder of ranks.

    Args:  vocabulary: its true size, where rows behind it were left out.
    """
    found = list(folder_oddities(folder, ranks.files[0].root.get("iteration")))
    if not has_optimizer:
        found.append(without_optimizer(folder))
    found += vocabulary_oddity(ranks.args, vocabulary)
    return tuple(found)


def folder_oddities(folder: Path, iteration: object) -> Iterator[Diagnostic]:
    """What the names of folders say otherwise than their contents, or than the tracker."""
    match = _ITERATION.match(folder.name)
    if match is None:
        return
    named = int(match.group(1))
    if isinstance(iteration, int) and iteration != named:
        yield Diagnostic(
            "other-iteration",
            f"`{folder.name}` holds iteration {iteration}",
            "warning",
            notes=("Megatron takes the number from the files, not from the folder's name",),
        )
    tracked = _tracked(folder.parent / TRACKER)
    if tracked is not None and tracked < named:
        yield Diagnostic(
            "untracked-iteration",
            f"iteration {named} is newer than {tracked}, which `{TRACKER}` names",
            "warning",
            notes=(
                "Megatron writes that file last: the save of this iteration may not have ended",
            ),
            helps=(f"compare with iteration {tracked}, the last that ended for certain",),
        )


def without_optimizer(folder: Path) -> Diagnostic:
    """No optimizer is stored."""
    return Diagnostic(
        "no-optimizer",
        f"`{folder.name}` holds weights and no optimizer",
        "warning",
        notes=("a release, or a run with `--no-save-optim`, keeps none",),
    )


def vocabulary_oddity(args: Arguments, vocabulary: int | None) -> Iterator[Diagnostic]:
    """Rows that pad the vocabulary are left out."""
    padded = args.integer("padded_vocab_size")
    extra = vocabulary != args.integer("vocab_size")
    more = f", to which `{args.get('tokenizer_type')}` adds one" if extra else ""
    if vocabulary is not None and padded is not None and padded > vocabulary:
        yield Diagnostic(
            "padded-vocabulary",
            f"{padded - vocabulary} of {padded} rows of the vocabulary are padding",
            "warning",
            notes=(
                f"the arguments say `vocab_size={args.integer('vocab_size')}`{more}; "
                "the rows behind it are left out",
                "how many there are depends on tp, and they belong to no token",
            ),
        )


def _tracked(tracker: Path) -> int | None:
    try:
        text = read_note(tracker)
    except (OSError, ReshardError):
        return None
    return int(text) if text.isdecimal() and text.isascii() else None
