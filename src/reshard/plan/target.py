"""What `--to` says: a format and its options."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from reshard.errors import ReshardError, target_error
from reshard.language.layout import Layout

MAX_RANKS = 1 << 17
"""Of a run, and so of an axis of its mesh."""

_WHY_RANKS = "every rank has files of its own, which are planned before anything is written"

_COUNTS = frozenset(
    ("bucket_size", "flatten", "iteration", "samples", "step", "sub_group_size", "zero")
)
"""Options that are no sizes of a mesh."""

_MAX_COUNT = 2**63 - 1
_MOST_DIGITS = 19

_AXES = frozenset(("dp", "tp", "pp"))
"""Axes whose sizes make the number of ranks; the others lie over ranks that these count already."""


def _limit(key: str) -> int:
    return _MAX_COUNT if key in _COUNTS else MAX_RANKS


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_SHOWN = 24


@dataclass(frozen=True, slots=True)
class Target:
    """`format[:key=value,...]`, split but not yet understood; the format checks its own options.

    Args:  layout: of a target that a layout describes: its name, or `FILE.ucl#NAME`.
           described: that layout.
    """

    format: str
    options: Mapping[str, str]
    layout: str = ""
    described: Layout | None = field(default=None, compare=False, repr=False)

    @property
    def head(self) -> str:
        """What stands before the options."""
        return self.layout or self.format

    @property
    def layout_file(self) -> tuple[str, str | None] | None:
        """The file of the layout and its name there; None for a layout that ships."""
        file, mark, name = self.layout.partition("#")
        return (file, name if mark else None) if file.endswith(".ucl") else None

    def __str__(self) -> str:
        if not self.options:
            return self.head
        return self.head + ":" + ",".join(f"{key}={value}" for key, value in self.options.items())

    def reject_unknown(self, known: Collection[str]) -> None:
        """Refuse an option that the format does not have.

        Raises: ReshardError[unknown-option].
        """
        for key in self.options:
            if key not in known:
                near = difflib.get_close_matches(key, list(known), 1)
                listed = ", ".join(f"`{name}`" for name in known)
                raise target_error(
                    "unknown-option",
                    f"target `{self.head}` has no option `{key}`",
                    notes=[f"it takes {listed}" if known else "it takes no options"],
                    helps=[f"did you mean `{near[0]}`?"] if near else [],
                )

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int | None:
        """An option as an integer that is not below `least`; `default` where it is not given.

        Raises: ReshardError[bad-option].
        """
        text = self.options.get(key)
        if text is None:
            return default
        limit = _limit(key)
        digits = text.lstrip("0") or "0"
        is_integer = text.isascii() and text.isdigit()
        helps = [f"write it as `{self.head}:{key}={max(least, 2)}`"]
        if is_integer and (len(digits) > _MOST_DIGITS or int(digits) > limit):
            fault = f"is {_shown(text)}, and the maximum is {limit:,}"
            raise self.refusal(key, fault, [_WHY_RANKS] if limit == MAX_RANKS else [], helps)
        if not is_integer or int(digits) < least:
            fault = f"is `{_shown(text)}`, not an integer of at least {least}"
            raise self.refusal(key, fault, [], helps)
        return int(digits)

    def choice(self, key: str, choices: Sequence[str]) -> str | None:
        """An option as one of several words; None where it is not given.

        Raises: ReshardError[bad-option].
        """
        text = self.options.get(key)
        if text is not None and text not in choices:
            listed = " or ".join(f"`{item}`" for item in choices)
            helps = [f"write it as `{self.head}:{key}={choices[-1]}`"]
            raise self.refusal(key, f"is `{text}`, not {listed}", [], helps)
        return text

    def refusal(
        self, key: str, fault: str, notes: Sequence[str], helps: Sequence[str]
    ) -> ReshardError:
        """The error for an option that cannot be so.

        Args:  fault: what it is, behind its name.
        """
        headline = f"option `{key}` of target `{self.head}` {fault}"
        return target_error("bad-option", headline, notes=notes, helps=helps)

    def check_ranks(self) -> None:
        """Refuse more ranks than any run has.

        Raises: ReshardError[bad-option].
        """
        axes = {
            key: int(value)
            for key, value in self.options.items()
            if (self.layout or key in _AXES)
            and value.isascii()
            and value.isdigit()
            and len(value) <= _MOST_DIGITS
        }
        if prod(axes.values()) > MAX_RANKS and max(axes.values()) <= MAX_RANKS:
            said = " * ".join(f"{key}={value}" for key, value in axes.items())
            raise target_error(
                "bad-option",
                f"target `{self.head}` has {said} = {prod(axes.values()):,} ranks, and the "
                f"maximum is {MAX_RANKS:,}",
                notes=[_WHY_RANKS],
                helps=["choose smaller sizes"],
            )


DESCRIBED = "described"
"""The format of targets that a layout describes."""

_FILE = re.compile(r"(?P<layout>[^#]*?\.ucl(?:#[A-Za-z]\w*)?)(?::(?P<rest>.*))?", re.DOTALL)


def parse_target(text: str, formats: Collection[str], layouts: Collection[str] = ()) -> Target:
    """Split `format[:key=value,...]` or `FILE.ucl[#layout][:axis=size,...]`.

    Args:  formats: the names that can be written.  layouts: those of layouts that describe files.
    Raises: ReshardError[bad-target | unknown-target | bad-option].
    """
    target = _split(text, formats, layouts)
    target.check_ranks()
    return target


def _split(text: str, formats: Collection[str], layouts: Collection[str]) -> Target:
    file = _FILE.fullmatch(text)
    if file is not None:
        return Target(DESCRIBED, _options(text, file["rest"] or ""), file["layout"])
    name, _, rest = text.partition(":")
    if name in layouts:
        return Target(DESCRIBED, _options(text, rest), name)
    if name not in formats or name == DESCRIBED:
        raise _unknown(name, [*(item for item in formats if item != DESCRIBED), *layouts])
    return Target(name, _options(text, rest))


def _options(text: str, rest: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = item.partition("=")
        if not equals or not key or not value or key in options:
            fault = "is given twice" if key in options else "is not `key=value`"
            raise target_error(
                "bad-target",
                f"option `{item}` of target `{text}` {fault}",
                helps=[
                    "write a target as `format:key=value,key=value`, e.g. `deepspeed:zero=2,dp=4`"
                ],
            )
        options[key] = value
    return options


def _unknown(name: str, formats: Collection[str]) -> ReshardError:
    near = difflib.get_close_matches(name, list(formats), 1)
    helps = [f"did you mean `{near[0]}`?"] if near else []
    listed = ", ".join(f"`{item}`" for item in formats)
    return target_error(
        "unknown-target",
        f"there is no target format `{name}`",
        notes=[f"formats: {listed}"],
        helps=helps,
    )
