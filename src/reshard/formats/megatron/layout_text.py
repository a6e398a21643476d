"""The layout of a legacy checkpoint as UCL, without a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.modules import Modules
from reshard.formats.megatron.ranks import Ranks
from reshard.formats.megatron.stacks import Stack, layer_of
from reshard.plan.names import group_names, quantity

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")
_TAIL = re.compile(r"(?<=[a-z])\d+$")
_GROUPED = ("experts.weight1", "experts.weight2")


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
    args = ranks.args
    staged = ranks.pp * vpp > 1
    one = ranks.tp == 1 and ranks.ep == 1
    rules: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        dims = modules.dims(name, vocabulary)
        if dims is None and not one:
            unknown.append(name)
        rules.setdefault(_pattern(name, stacks, staged), f"[{dims or '...'}]")
    if unknown and strict:
        raise _uncovered(unknown, args)
    mesh = [*(["vpp"] if vpp > 1 else []), "pp", "tp", "ep", "dp"]
    if "etp" in "".join(rules.values()):
        mesh.insert(-1, "etp")
    lines = ["# Read from the checkpoint's arguments and names.", "layout megatron {"]
    lines.append(f"    mesh {', '.join(mesh)}")
    if staged:
        over = "vpp, pp" if vpp > 1 else "pp"
        lines += [
            f"    place {stack.axis} over {over} as {', '.join(map(str, stack.counts))}"
            for stack in stacks.values()
        ]
    lines.append("")
    width = max((len(pattern) for pattern in rules), default=0) + 2
    for pattern, dims in rules.items():
        quoted = f'"{pattern}"'
        lines.append(f"    {quoted:<{width}} = {dims}")
    return "\n".join([*lines, "}", ""])


def _pattern(name: str, stacks: Mapping[str, Stack], staged: bool) -> str:
    """A name as a pattern: layers counted on their stage, experts on their rank."""
    out = name
    layer = layer_of(name)
    if layer is not None:
        prefix, number = layer
        slot = f"local {stacks[prefix].axis}" if staged else stacks[prefix].axis
        out = f"{prefix}{{{slot}}}{name[len(prefix) + len(str(number)) :]}"
    head, experts, tail = out.partition(".local_experts.")
    if experts:
        tail = re.sub(r"^\d+", "{local e over ep}", tail)
        out = head + experts + tail
    elif ".experts." in out and _TAIL.search(out) and not out.endswith(_GROUPED):
        out = _TAIL.sub("{local e over ep}", out)
    return _INDEX.sub("*", out)


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
