"""What a checkpoint knows besides tensors, held to what another one knows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reshard.models.config_json import CONFIG, stated_config
from reshard.plan.catalog import Catalog
from reshard.plan.shown import Plain
from reshard.store.digest import digest_file_range

Fate = Literal["changed", "not kept", "added"]


@dataclass(frozen=True, slots=True)
class FactChange(Plain):
    """One value that is not the same on both sides.

    Args:  path: e.g. `training.state.clip_grad`.  a, b: as JSON values; None where it is not.
    """

    path: str
    fate: Fate
    a: object = None
    b: object = None

    def __str__(self) -> str:
        if self.fate == "changed":
            return f"{self.path}: {_short(self.a)} became {_short(self.b)}"
        return f"{self.path}: {_short(self.a if self.fate == 'not kept' else self.b)}"


def compare_facts(left: Catalog, right: Catalog) -> tuple[FactChange, ...]:
    """Every value that differs: of training, roles of names, and the files beside the weights.

    Of `config.json` every key is compared, and of Megatron's arguments, where both have them, those
    that do not say how a checkpoint lies over ranks. What else only the writing framework
    understands (`training.framework`) is not: it says how a checkpoint was written.
    """
    one, other = facts_of(left), facts_of(right)
    args = _arguments(left), _arguments(right)
    if all(args):  # another framework has other words for them, in its configuration
        one |= _leaves(args[0], "args")
        other |= _leaves(args[1], "args")
    out = []
    for path in dict.fromkeys((*one, *other)):
        if path not in other:
            out.append(FactChange(path, "not kept", one[path]))
        elif path not in one:
            out.append(FactChange(path, "added", None, other[path]))
        elif not _same(one[path], other[path]):
            out.append(FactChange(path, "changed", one[path], other[path]))
    return tuple(out)


def facts_of(catalog: Catalog) -> dict[str, object]:
    """Single values by path.

    Param groups are counted by those that have parameters; on others no tensor hangs.
    """
    training = catalog.training
    groups = training.param_groups
    tree = {
        "training": {
            "iteration": training.iteration,
            "param_groups": [_group(group) for group in groups if group.get("params")],
            "state": training.state,
        },
        "aliases": dict(catalog.aliases or {}),
        "buffers": dict.fromkeys(sorted(catalog.buffers), "in it"),
        "frozen": dict.fromkeys(sorted(catalog.frozen), "in it"),
        "side_files": {
            name: _digest(catalog, path)
            for name, path in sorted(catalog.side_files.items())
            if name != CONFIG
        },
        CONFIG: dict(stated_config(catalog) or {}),
    }
    return dict(_leaves(tree, ""))


_OF_THE_LAYOUT = re.compile(
    r"\w*(parallel|pipeline|virtual|world_size|rank|ckpt|checkpoint|distributed|dist_)\w*"
    r"|iteration|curr_iteration|consumed_\w+|skipped_\w+|padded_vocab_size"
    r"|make_vocab_size_divisible_by|no_save_\w+|no_load_\w+|decoder_\w+_num_layers|params_dtype"
    r"|bf16|fp16"
)
"""Arguments that say how a checkpoint lies over ranks and files, not what was trained."""


def _arguments(catalog: Catalog) -> dict[str, object]:
    """The arguments of a run of Megatron, which a target may write anew."""
    args = (catalog.config or {}).get("args")
    if not isinstance(args, Mapping):
        return {}
    return {key: item for key, item in args.items() if not _OF_THE_LAYOUT.fullmatch(str(key))}


def _group(group: Mapping[str, object]) -> dict[str, object]:
    """A group with its parameters in no order: each form has one of its own."""
    names = group["params"]
    assert isinstance(names, list | tuple)
    return {**group, "params": dict.fromkeys(map(str, names), "in it")}


def _digest(catalog: Catalog, path: str) -> str:
    nbytes = next((file.nbytes for file in catalog.files if file.path == path), 0)
    return digest_file_range(Path(catalog.root) / path, 0, nbytes)


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    elif value is not None:
        yield path, value


def _same(one: object, other: object) -> bool:
    """Equal, and of one type; what is not a number equals itself."""
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
