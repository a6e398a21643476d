"""What is wrong with files that are not as a layout says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import prod

from reshard.errors import Diagnostic, Label, ReshardError, label, source_error
from reshard.formats.described.walk import Leaf
from reshard.language.layout import Layout, PartitionRule
from reshard.run.numbering import NAMES_ONLY

Shape = tuple[int, ...]


def share_mismatch(
    rule: PartitionRule,
    state: str,
    members: Sequence[tuple[str, Shape]],
    leaf: Leaf,
    numel: int,
    length: int,
) -> ReshardError:
    total = sum(prod(shape) for _, shape in members)
    who = f"`{members[0][0]}`" if len(members) == 1 else f"{len(members)} parameters"
    return source_error(
        "share-mismatch",
        f"a share of {state} has {numel} elements, and `as {rule.kind}` gives {length}",
        notes=[f"it is {leaf.shown}", f"{who} of {total} elements are shared"],
        helps=["correct how ranks share it, the alignment, or the order of the parameters"],
        primary=label(rule.span, "cut so"),
    )


def no_shape(rule: PartitionRule, name: str, leaf: Leaf) -> ReshardError:
    return source_error(
        "share-mismatch",
        f"the shape of `{name}` is not known, so its shares cannot be put together",
        notes=[f"one of them is {leaf.shown}"],
        helps=["say where shapes stand: `order by`, or where the weight lies: `state param at`"],
        primary=label(rule.span, "cut so"),
    )


def unlisted(number: int, leaf: Leaf) -> ReshardError:
    return source_error(
        "ambiguous-optimizer-ids",
        f"no group lists parameter number {number}",
        notes=[f"its state is {leaf.shown}"],
        helps=["the file was changed after it was written"],
    )


def unknown_member(name: str, leaf: Leaf) -> ReshardError:
    return source_error(
        "share-mismatch",
        f"the order names `{name}`, which has no weight",
        notes=[f"at {leaf.shown}"],
        primary=label(leaf.entry.span, "names"),
    )


def bad_shard(leaf: Leaf, why: str) -> ReshardError:
    """A rank's part of a tensor that cannot be read."""
    primary = label(leaf.entry.span, "read here")
    return not_a_shard(leaf.file.path, f"{leaf.shown}: {why}", primary)


def not_a_shard(file: object, why: str, primary: Label | None = None) -> ReshardError:
    """A file that does not belong to the others."""
    return source_error(
        "bad-shard",
        f"{file} is not a shard of a distributed checkpoint",
        notes=[why],
        helps=["the folder mixes two checkpoints, or is damaged; copy it again"],
        primary=primary,
    )


def flat_buffer(name: str, leaf: Leaf) -> ReshardError:
    """Weights of FSDP1 that are not taken apart."""
    return source_error(
        "bad-shard",
        f"{leaf.file.path} is not a shard of a distributed checkpoint",
        notes=[f"`{name}` is a flat buffer of FSDP; only the run itself can take it apart"],
        helps=["save with `SHARDED_STATE_DICT` or `FULL_STATE_DICT`"],
        primary=label(leaf.entry.span, "read here"),
    )


def missing_ranks(leaf: Leaf, lost: Sequence[int], ranks: int) -> ReshardError:
    """Ranks that a tensor's own mesh has, and no file is of."""
    return source_error(
        "missing-rank-file",
        f"{len(lost)} of the files of {ranks} ranks are missing",
        notes=[f"those of rank {', '.join(map(str, lost[:8]))}, as {leaf.shown} says of its mesh"],
        helps=["copy the files of all ranks into one folder"],
    )


def bad_fact(leaf: Leaf, why: str) -> ReshardError:
    """A fact of the run that is none."""
    return source_error(
        "bad-fact",
        f"{leaf.shown} is not what the layout says",
        notes=[why, f"it is of type {type(leaf.value).__name__}"],
        primary=label(leaf.entry.span, "read here"),
    )


def not_alike(name: str, state: str, first: Leaf, leaf: Leaf) -> ReshardError:
    """Parts of one tensor that say that it is two."""
    why = f"`{name}` ({state}) has another shape or type than {first.shown}"
    return not_a_shard(leaf.file.path, why)


def unnamed(error: ReshardError, layout: Layout | None = None) -> tuple[Diagnostic, ...]:
    """Why numbered states have no names, with what a user of a layout can do.

    A layout can say an order of the parameters, and factored states are not named by one.

    Args:  layout: of files whose optimizer was given its parameters in an order that nothing says.
    """
    order = '`order "embed", "layers.{i}.attn", ...`'
    helps = [
        f"say in a layout in which order the module registers its parameters: {order}",
        "or leave the states out with `--states weights`",
    ]
    if layout is not None:
        helps = [
            "leave the states out with `--states weights`",
            "or, if it was made of `model.parameters()`, in the order of the module: "
            "`reshard layout show SRC > own.ucl`, then `--layout own.ucl`",
            f"or say another order in that layout: {order}",
        ]
        if any(entry.role == "named" for rule in layout.files for entry in rule.entries):
            helps.append(
                "or make it of `model.named_parameters()`, whose names torch 2.6 and later save"
            )
    return tuple(
        replace(item, helps=tuple(helps)) if item.helps != NAMES_ONLY else item
        for item in error.diagnostics
    )


def order_assumed(parameters: Sequence[tuple[str, Shape]]) -> tuple[Diagnostic, ...]:
    """A warning where the module's order is all that tells parameters of one shape apart."""
    counts = Counter(shape for _, shape in parameters)
    alike = sum(count for count in counts.values() if count > 1)
    if not alike:
        return ()
    warning = Diagnostic(
        "order-assumed",
        "the optimizer is taken to count parameters in the order of the module",
        level="warning",
        notes=(f"{alike} of {len(parameters)} parameters share their shape with another one",),
        helps=('say the order in the layout: `order "embed", "layers.{i}.attn", ...`',),
    )
    return (warning,)
