"""Which file of a folder is whose, by the names that a layout gives to files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from reshard.errors import ReshardError, label, source_error
from reshard.language.layout import FileRule, Layout
from reshard.language.place import HOLES, Bindings, FileName
from reshard.store.source import LocalSource

_MOST_FILES = 1_000_000


@dataclass(frozen=True, slots=True)
class RankFile:
    """A file of the folder.

    Args:  path: relative to the folder.  rule: index in the layout.  name: the alternative that it
           has.  bindings: of the holes in its name.
    """

    path: str
    rule: int
    name: FileName
    bindings: Bindings


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a folder.

    Args:  mesh: sizes of the axes that names count.
    """

    known: tuple[RankFile, ...]
    mesh: Mapping[str, int]


def find_files(layout: Layout, root: Path, only: str | None = None) -> Files:
    """Every file of a folder with the rule that its name has.

    Args:  only: the one file that is looked at.
    Raises: ReshardError[missing-file | missing-rank-file | mesh-mismatch].
    """
    paths = list(islice(LocalSource(root).below(), _MOST_FILES)) if only is None else [only]
    known: list[RankFile] = []
    others: list[str] = []
    for path in paths:
        found = _rule_of(layout, path)
        if found is None:
            others.append(path)
            continue
        known.append(found)
    mesh: dict[str, int] = dict.fromkeys(layout.mesh, 1)
    for item in known:
        for name, value in item.bindings.items():
            if name in mesh and isinstance(value, int):
                mesh[name] = max(mesh[name], value + 1)
    _check_sizes(layout, root, known, mesh)
    for index, rule in enumerate(layout.files):
        mine = [item for item in known if item.rule == index]
        if not mine and not rule.optional:
            raise _no_file(layout, rule, root, others)
        if mine:
            _check_grid(rule, root, mine, mesh)
    known.sort(key=lambda item: (item.rule, _order(item)))
    return Files(tuple(known), mesh)


class Listing:
    """The files of a folder, listed once for each depth that is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: dict[int, list[str]] = {}

    def first(self, names: tuple[str, ...]) -> str | None:
        """A file with one of some names; nothing deeper than they are is looked at."""
        depth = max(name.count("/") for name in names)
        if depth not in self._paths:
            paths = LocalSource(self.root).below("", depth)
            self._paths[depth] = list(islice(paths, _MOST_FILES))
        patterns = [FileName.parse(name).pattern for name in names]
        found = (x for x in self._paths[depth] if any(y.match(x) is not None for y in patterns))
        return next(found, None)


def _order(item: RankFile) -> tuple[object, ...]:
    """Ranks by number, names part by part, those that are numbers by number."""
    return tuple(
        (1, *((0, int(x)) if x.isdigit() else (1, x) for x in value.split(".")))
        if isinstance(value, str)
        else (0, value)
        for value in item.bindings.values()
    )


def _rule_of(layout: Layout, path: str) -> RankFile | None:
    for index, rule in enumerate(layout.files):
        for name in rule.names:
            bindings = name.pattern.match(path)
            if bindings is not None:
                return RankFile(path, index, name, bindings)
    return None


def _check_sizes(layout: Layout, root: Path, known: list[RankFile], mesh: dict[str, int]) -> None:
    """Refuse a size that a name states and the files have not, such as `world_size_4`."""
    for item in known:
        for name, value in item.bindings.items():
            axis = name.removeprefix("#")
            if axis == name or axis not in mesh or not isinstance(value, int):
                continue
            if mesh[axis] > value:
                raise source_error(
                    "mixed-runs",
                    f"{item.path} says {axis}={value}, and there is a file of rank "
                    f"{mesh[axis] - 1}",
                    notes=[f"in {root}"],
                    helps=["the folder holds files of two runs; keep those of one"],
                )
            mesh[axis] = value


def _check_grid(rule: FileRule, root: Path, mine: list[RankFile], mesh: Mapping[str, int]) -> None:
    """Refuse a folder in which the file of some rank is missing, or is there twice."""
    ranked = [item for item in mine if _is_of_rank(item.name)]
    axes = [h.name for item in ranked[:1] for h in item.name.pattern.holes if not h.is_size]
    if not ranked:
        return
    mine = ranked
    held: dict[tuple[object, ...], RankFile] = {}
    for item in mine:
        place = tuple(item.bindings[axis] for axis in axes)
        other = held.setdefault(place, item)
        if other is not item:
            raise source_error(
                "mixed-runs",
                f"{other.path} and {item.path} are of the same rank",
                notes=[f"in {root}"],
                helps=["the folder holds files of two runs; keep those of one"],
                primary=label(rule.names[0].span, "both have a name of this file"),
            )
    lost = [p for p in product(*(range(mesh[axis]) for axis in axes)) if p not in held]
    if lost:
        sizes = {f"#{axis}": size for axis, size in mesh.items()}
        names = [
            mine[0].name.pattern.fill({**sizes, **dict(zip(axes, place, strict=True))})
            for place in lost
        ]
        raise source_error(
            "missing-rank-file",
            f"{len(lost)} of {len(lost) + len(held)} files are missing: {', '.join(names[:4])}",
            notes=[f"the others of {', '.join(f'{a}={mesh[a]}' for a in axes)} are in {root}"],
            helps=["copy the files of all ranks into one folder"],
            primary=label(rule.names[0].span, "one for each rank"),
        )


def _is_of_rank(name: FileName) -> bool:
    """Whether there is one file of this name for each rank."""
    return not name.pattern.has_star and not any(h.name in HOLES for h in name.pattern.holes)


def _no_file(layout: Layout, rule: FileRule, root: Path, others: list[str]) -> ReshardError:
    shown = ", ".join(f"`{name}`" for name in others[:5]) or "no other files"
    more = f", and {len(others) - 5} more" if len(others) > 5 else ""
    return source_error(
        "missing-file",
        f"{root} has no file `{rule.names[0].text}` of layout `{layout.name}`",
        notes=[f"it has {shown}{more}"],
        helps=["correct the name, or write `optional` behind it if the file may be missing"],
        primary=label(rule.names[0].span, "no such file"),
    )
