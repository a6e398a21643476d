"""The layout of a legacy checkpoint as UCL, without a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.formats.megatron.modules import Modules
from reshard.formats.megatron.names import Stack, expert_of, layer_of
from reshard.formats.megatron.ranks import Ranks
from reshard.models.run_arguments import Arguments
from reshard.plan.names import group_names, quantity

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


def layout_text(
    names: Iterable[str],
    ranks: Ranks,
    stacks: Mapping[str, Stack],
    vpp: int,
    modules: Modules,
    vocabulary: int | None,
    *,
    strict: bool = True,
) -> str:
    """The layout of a legacy checkpoint, without a model.

    Args:  names: as stored.  vocabulary: its true size, if it is known.
           strict: whether every name must be known; else what is not is taken for a copy.
    Raises: ReshardError[uncovered-parameter] when a name is not known, and tp or ep > 1.
    """
    staged = ranks.pp * vpp > 1
    rules: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        dims = modules.dims(name, vocabulary)
        if dims is None and ranks.tp * ranks.ep > 1:
            unknown.append(name)
        rules.setdefault(_pattern(name, stacks, staged), f"[{dims or '...'}]")
    if unknown and strict:
        raise _uncovered(unknown, ranks.args)
    mesh = ["vpp"] * (vpp > 1) + ["pp", "tp", "ep"]
    mesh += ["etp"] * ("etp" in "".join(rules.values())) + ["dp"]
    over = "vpp, pp" if vpp > 1 else "pp"
    places = [
        f"    place {stack.axis} over {over} as {', '.join(map(str, stack.counts))}"
        for stack in stacks.values()
    ]
    return "\n".join(
        [
            "# Read from the checkpoint's arguments and names.",
            "layout megatron {",
            f"    mesh {', '.join(mesh)}",
            *(places if staged else ()),
            "",
            *rule_lines(rules),
            "}",
            "",
        ]
    )


def rule_lines(rules: Mapping[str, str]) -> list[str]:
    """Rules in canonical form: patterns with their dimensions."""
    width = max((len(pattern) for pattern in rules), default=0) + 2
    quoted = ((f'"{pattern}"', dims) for pattern, dims in rules.items())
    return [f"    {pattern:<{width}} = {dims}" for pattern, dims in quoted]


def _pattern(name: str, stacks: Mapping[str, Stack], staged: bool) -> str:
    """A name as a pattern: layers counted on their stage, experts on their rank."""
    layer = layer_of(name)
    if layer is not None:
        prefix, _, rest = layer
        local = "local " if staged else ""
        name = f"{prefix}{{{local}{stacks[prefix].axis}}}{rest}"
    expert = expert_of(name)
    if expert is not None:
        head, _, tail = expert
        name = f"{head}{{local e over ep}}{tail}"
    return _INDEX.sub("*", name)


def _uncovered(names: Iterable[str], args: Arguments) -> ReshardError:
    groups = group_names(list(names))
    return ReshardError(
        [
            Diagnostic(
                "uncovered-parameter",
                f"how `{group}`{quantity(count)} is cut over tp is not known",
                notes=(f"the run had tp={args.size('tp')}, ep={args.size('ep')}",),
                helps=("say it in a layout of your own, and give it with `--layout FILE`",),
            )
            for group, count in groups
        ],
        Exit.LAYOUT,
    )
