"""What reshard notes in `.metadata` of weights, for a way back; torch takes no notice of it.

A further attribute of the root, `reshard`, a dict: `master`, names of weights that are the fp32
master weights of a run that computes in another type; `aliases`, other names of tied weights, also
where there are none: then weights that are alike are not tied; `names`, the format whose own names
the weights have, where that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from reshard.formats.dcp.contents import Contents
from reshard.formats.dcp.form import Form
from reshard.formats.dcp.names import Role
from reshard.run.states import MASTER, PARAM

_KEY = "reshard"


@dataclass(frozen=True, slots=True)
class Mark:
    """See above.

    Args:  is_there: whether reshard wrote the folder.
    """

    is_there: bool = False
    master: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    names_of: str = ""

    def role(self, role: Role) -> Role:
        """What a tensor is: a master weight where that was noted."""
        is_master = role.name in self.master or self.aliases.get(role.name) in self.master
        return replace(role, state=MASTER) if role.state == PARAM and is_master else role


def mark_of(contents: Contents, form: Form) -> dict[str, object]:
    """The attribute to write."""
    master = [
        form.weight_name(name) for name, whole in contents.weights.items() if whole.state == MASTER
    ]
    aliases = {
        form.weight_name(name): form.weight_name(stored)
        for name, stored in contents.aliases.items()
        if stored in contents.weights
    }
    noted: dict[str, object] = {"aliases": aliases}
    names_of = contents.arrangement.catalog.names_of
    if names_of:
        noted["names"] = names_of
    if master:
        noted["master"] = master
    return {_KEY: noted}


def read_mark(extra: Mapping[str, object]) -> Mark:
    """What was noted.

    Args:  extra: attributes of the root of `.metadata` that are not of the format.
    """
    noted = extra.get(_KEY)
    if not isinstance(noted, dict):
        return Mark()
    master, aliases, names = noted.get("master"), noted.get("aliases"), noted.get("names")
    return Mark(
        True,
        frozenset(map(str, master)) if isinstance(master, list) else frozenset(),
        {str(k): str(v) for k, v in aliases.items()} if isinstance(aliases, dict) else {},
        names if isinstance(names, str) else "",
    )


def left_attributes(extra: Mapping[str, object]) -> list[str]:
    """The attributes that nothing reads, and that say something; versions of writers do not."""
    known = {key for key, value in extra.items() if value in (None, "", [], {}, ())}
    return [key for key in extra if key not in {*known, _KEY} and not key.endswith("_version")]
