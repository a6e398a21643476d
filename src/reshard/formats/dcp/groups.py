"""The param groups of an optimizer, put together from where their hyper-parameters stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reshard.formats.dcp.names import GroupKey


def plain_groups(groups: Mapping[GroupKey, object]) -> list[dict[object, object]]:
    """The groups that an optimizer numbers, in their order."""
    numbered: dict[int, dict[object, object]] = {}
    for key, value in groups.items():
        if key.owner is None and isinstance(value, list):
            for index, group in enumerate(value):
                if isinstance(group, dict):
                    numbered.setdefault(index, {}).update(group)
        elif isinstance(key.owner, int):
            numbered.setdefault(key.owner, {})[key.key] = value
    return [numbered[index] for index in sorted(numbered)]


def params_lists(groups: Mapping[GroupKey, object]) -> Iterator[list[object]]:
    """The `params` of every group, in their order."""
    for group in plain_groups(groups):
        if isinstance(group.get("params"), list):
            yield listed(group, "params")


def listed(group: Mapping[object, object], key: str) -> list[object]:
    """A list of a group; an empty one where it has none."""
    value = group.get(key)
    return value if isinstance(value, list) else []
