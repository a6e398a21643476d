"""States that a checkpoint has of the parameters of a group, but for a few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reshard.errors import Diagnostic
from reshard.plan.arrangement import Whole
from reshard.run.run import Group
from reshard.run.states import EXTRA, MASTER, PARAM

Kind = tuple[int, int]
"""The param group of a parameter, and its number of dimensions: matrices may have other states."""


def lacking_states(wholes: Iterable[Whole], groups: Iterable[Group]) -> Iterator[Diagnostic]:
    """A warning for each state that a few parameters lack, of those alike that are trained.

    A parameter without any state of the optimizer was never trained, and lacks nothing.
    """
    group_of = {name: at for at, group in enumerate(groups) for name in group.members}
    states: dict[str, set[str]] = {}
    dims: dict[str, int] = {}
    for whole in wholes:
        if whole.state != EXTRA:
            states.setdefault(whole.name, set()).add(whole.state)
            dims[whole.name] = max(dims.get(whole.name, 0), len(whole.shape))
    alike: dict[Kind, list[str]] = {}
    for name, count in dims.items():
        alike.setdefault((group_of.get(name, -1), count), []).append(name)
    lacking: dict[str, list[str]] = {}
    for names in alike.values():
        trained = [name for name in names if states[name] - {PARAM, MASTER}]
        for state in sorted(set[str]().union(*(states[name] for name in trained)) - {MASTER}):
            without = [name for name in trained if state not in states[name]]
            if 0 < 2 * len(without) < len(trained):
                lacking.setdefault(state, []).extend(without)
    for state, names in lacking.items():
        others = ", ".join(f"`{other}`" for other in sorted(states[names[0]]))
        noun = "parameter" if len(names) == 1 else "parameters"
        yield Diagnostic(
            "lacking-states",
            f"the source does not store `{state}` of {len(names)} {noun}",
            level="warning",
            notes=(
                f"first: `{names[0]}`, of which it stores {others}",
                "it stores it of the others in their param group",
            ),
            helps=("look for a lost file or key: a loader may refuse the checkpoint without it",),
        )
