"""What the keys of frameworks' own model configurations change, and transformers' words for them.

`layouts/framework_keys.json` has a table for each framework: `changing`, keys that change what a
model computes, with the values that change nothing; `harmless`, keys that change nothing whatever
their value; `says`, keys that transformers says in its own words, `$` for the value.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from reshard.models.transformers import ROPE, WINDOW, rope_of, window_of

_OFF: tuple[object, ...] = (None, False, 0)
_VALUE = "$"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a configuration says of its model, in the words of another framework.

    Args:  words: in the other framework's words.  said: the keys that they say.
           lost: keys whose values the other framework has no words for.
    """

    words: Mapping[str, object] = field(default_factory=dict)
    said: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class FrameworkKeys:
    """The keys of one framework's model configurations."""

    changing: Mapping[str, tuple[object, ...]]
    harmless: frozenset[str]
    says: Mapping[str, Mapping[str, object]]

    def facts(self, config: Mapping[str, object]) -> Facts:
        """What a configuration says, in transformers' words."""
        words: dict[str, object] = {}
        for key, rule in self.says.items():
            value = config.get(key)
            form = rule["as"]
            if value in (*_OFF, rule.get("plain")) or not isinstance(form, Mapping):
                continue
            words.update({name: _filled(item, value) for name, item in form.items()})
        return Facts(words, frozenset(self.says))

    def config(self, words: Mapping[str, object]) -> Facts:
        """The framework's own keys for a configuration in transformers' words."""
        out: dict[str, object] = {}
        said: set[str] = set()
        for key, rule in self.says.items():
            form = rule["as"]
            assert isinstance(form, Mapping), key
            for name, item in form.items():
                value = _found(item, _stated(words, name))
                if value is not None:
                    out[key] = value
                    said.update(_names_of(name))
        return Facts(out, frozenset(said))

    def unsaid(self, config: Mapping[str, object], said: Collection[str]) -> dict[str, object]:
        """What changes the model, and nothing takes up.

        Args:  said: keys that a layout or a fact takes up.
        """
        return {
            key: config[key]
            for key, plain in self.changing.items()
            if key in config and key not in said and not _is_plain(config[key], plain)
        }

    def unknown(self, config: Mapping[str, object], said: Collection[str]) -> tuple[str, ...]:
        """Keys that the framework does not have, and that are not off."""
        keys = {*self.changing, *self.harmless, *self.says, *said}
        return tuple(sorted(k for k, v in config.items() if k not in keys and not _is_off(v)))


@cache
def keys_of(framework: str) -> FrameworkKeys:
    """The table of a framework: `megatron`, `nanotron`, or `meta`."""
    folder = resources.files("reshard").joinpath("layouts")
    table = json.loads(folder.joinpath("framework_keys.json").read_text("utf-8"))[framework]
    return FrameworkKeys(
        {key: (None, *plain) if plain else _OFF for key, plain in table["changing"].items()},
        frozenset(table.get("harmless", ())),
        table.get("says", {}),
    )


def _stated(words: Mapping[str, object], name: str) -> object:
    """A value of a configuration, whichever of transformers' spellings it has."""
    if name in ROPE:
        rope = rope_of(words)
        return {key: value for key, value in rope.items() if key != "rope_theta"}
    return window_of(words) if name in WINDOW else words.get(name)


def _names_of(name: str) -> tuple[str, ...]:
    return ROPE if name in ROPE else WINDOW if name in WINDOW else (name,)


def _filled(form: object, value: object) -> object:
    if isinstance(form, Mapping):
        return {key: _filled(item, value) for key, item in form.items()}
    return value if form == _VALUE else form


def _found(form: object, value: object) -> object:
    """The value that fills a form so; None where none does."""
    if form == _VALUE:
        return value or None
    if not isinstance(form, Mapping) or not isinstance(value, Mapping):
        return None
    if form.keys() != value.keys():
        return None
    filling = next((value[key] for key, item in form.items() if item == _VALUE), None)
    return filling if _filled(form, filling) == value else None


def _is_plain(value: object, plain: tuple[object, ...]) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, plain) for item in value)
    return value in plain


def _is_off(value: object) -> bool:
    return value in _OFF or value in ([], {}, "")
