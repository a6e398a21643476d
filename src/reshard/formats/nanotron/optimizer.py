"""The states: a torch file a rank, by number, with the names of the numbers beside them.

Source: nanotron/serialize/optimizer.py `save_optimizer`, nanotron/optim/named_optimizer.py,
nanotron/optim/gradient_accumulator.py (2411b02).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import cast

from reshard.algebra.flat import cut
from reshard.errors import ReshardError, source_error
from reshard.formats.nanotron import COPY
from reshard.formats.nanotron.groups import Group
from reshard.formats.nanotron.slices import data_ranges
from reshard.formats.nanotron.weights import Shard, Weight, boxed
from reshard.plan.agreement import agreed
from reshard.plan.catalog import Fragment, Left, LocalTensor, SourceFile
from reshard.storage.kept import encode
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.torch_file import open_torch_file
from reshard.store.links import refuse_outside

_FILE = re.compile(
    r"optimizer_pp-(?P<pp>[0-9]+)-of-(?P<pps>[0-9]+)(?:_dp-(?P<dp>[0-9]+)-of-(?P<dps>[0-9]+))?"
    r"_tp-(?P<tp>[0-9]+)-of-(?P<tps>[0-9]+)(?:_exp-(?P<ep>[0-9]+)-of-(?P<eps>[0-9]+))?\.pt"
)
_ENTRIES = ("state", "names", "param_groups", "gradient_accumulator")
Sizes = tuple[int, int | None, int, int]
"""pp, dp (None without ZeRO), tp, and expert parallel size."""


@dataclass(frozen=True, slots=True)
class RankFile:
    """One file.  Args: dp: None without ZeRO, where all data-parallel ranks have the same."""

    file: str
    pp: int
    dp: int | None
    tp: int
    ep: int


@dataclass(slots=True)
class States:
    """What the files of all ranks hold.

    Args:  parts: by name and state, and then by the rank whose copy it is, its fragments.
           dtypes: of these.  stages: the param groups of each pipeline stage.
           left: entries of the files that are neither read nor kept.
    """

    files: list[SourceFile] = field(default_factory=list)
    tensors: tuple[LocalTensor, ...] = ()
    stages: dict[int, list[Group]] = field(default_factory=dict)
    sizes: Sizes | None = None
    copies: int = 1
    left: list[Left] = field(default_factory=list)


def read_states(root: Path, weights: Mapping[str, Weight]) -> States:
    """Every state of every parameter; none without a folder `optimizer`.

    Raises: ReshardError[missing-rank-file | bad-shard | partition-mismatch | outside-link], and
            what `open_torch_file` raises.
    """
    found, sizes = _files(root)
    out = States(sizes=sizes)
    if sizes is None:
        return out
    reader = _Reader(root, weights, sizes)
    for item in found:
        path = root / item.file
        refuse_outside(root, path)
        stat = path.stat()
        out.files.append(SourceFile(item.file, stat.st_size, stat.st_mtime_ns))
        rank = open_torch_file(path).root
        reader.add(item, rank)
        out.left += [
            Left(item.file, str(key), "it is nothing that nanotron reads of an optimizer")
            for key in (rank if isinstance(rank, dict) else ())
            if key not in _ENTRIES
        ]
    out.tensors = tuple(reader.local_tensors())
    out.stages = reader.stages
    out.copies = reader.copies
    return out


def _files(root: Path) -> tuple[list[RankFile], Sizes | None]:
    found: list[RankFile] = []
    kinds: set[Sizes] = set()
    folder = root / "optimizer"
    for path in sorted(folder.glob("optimizer_*.pt")) if folder.is_dir() else ():
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise _bad(path, "its name does not say of which rank it is")
        number = {
            key: None if text is None else int(text) for key, text in match.groupdict().items()
        }
        file = path.relative_to(root).as_posix()
        found.append(
            RankFile(file, number["pp"] or 0, number["dp"], number["tp"] or 0, number["ep"] or 0)
        )
        kinds.add((number["pps"] or 1, number["dps"], number["tps"] or 1, number["eps"] or 1))
    if not found:
        return [], None
    if len(kinds) > 1:
        raise _bad(folder, "its files are of runs of several sizes")
    sizes = kinds.pop()
    pps, dps, tps, eps = sizes
    have = {(item.pp, item.dp, item.tp, item.ep) for item in found}
    wanted = [
        (pp, dp, tp, ep)
        for pp in range(pps)
        for dp in ([None] if dps is None else range(dps))
        for tp in range(tps)
        for ep in range(eps)
    ]
    missing = [item for item in wanted if item not in have]
    if missing:
        pp, dp, tp, ep = missing[0]
        told = "" if dp is None else f"dp={dp}, "
        raise source_error(
            "missing-rank-file",
            f"{len(missing)} of {len(wanted)} optimizer files are missing",
            notes=[f"in {folder}: that of pp={pp}, {told}tp={tp}, exp={ep}"],
            helps=["copy the files of all ranks into one folder"],
        )
    return found, sizes


class _Reader:
    """Puts the states of all ranks together."""

    def __init__(self, root: Path, weights: Mapping[str, Weight], sizes: Sizes) -> None:
        self._root = root
        self._weights = weights
        self._sizes = sizes
        self._parts: dict[tuple[str, str], dict[tuple[int, ...], list[Fragment]]] = {}
        self._refs: dict[tuple[str, str], TensorRef] = {}
        self.stages: dict[int, list[Group]] = {}
        self._first_of: dict[int, str] = {}
        self.copies = 1

    def add(self, item: RankFile, root: object) -> None:
        """The states of one rank."""
        path = self._root / item.file
        if not isinstance(root, dict) or not isinstance(root.get("state"), dict):
            raise _bad(path, "it has no `state`")
        names = root.get("names")
        state = cast("dict[object, object]", root["state"])
        if not isinstance(names, dict) or set(names) != set(state):
            raise _bad(path, "`names` does not name the parameters of `state`")
        for index, values in state.items():
            name = self._name(path, names[index])
            if not isinstance(values, dict):
                raise _bad(path, f"the state of `{name}` is no dict")
            for kind, value in values.items():
                self._state(item, name, str(kind), value)
        masters = root.get("gradient_accumulator", {})
        if not isinstance(masters, dict):
            raise _bad(path, "`gradient_accumulator` is no dict")
        for name, value in masters.items():
            self._state(item, self._name(path, name), "master", value)
        self._group(item, root.get("param_groups", []), names)

    def _name(self, path: Path, name: object) -> str:
        text = str(name)
        for known in (text, text.removeprefix("module.")):
            if known in self._weights:
                return known
        raise _bad(path, f"`{text}` is no parameter of the model")

    def _state(self, item: RankFile, name: str, kind: str, ref: object) -> None:
        path = self._root / item.file
        if not isinstance(ref, TensorRef):
            raise _bad(path, f"`{kind}` of `{name}` is no tensor")
        weight = self._weights[name]
        shard = weight.shard(item.tp, item.ep)
        if shard is None:
            raise _bad(path, f"the weights have no shard of `{name}` for tp={item.tp}")
        key = (name, kind)
        first = self._refs.setdefault(key, ref)
        if first.dtype != ref.dtype or (not ref.shape) != (not first.shape):
            raise _bad(path, f"`{kind}` of `{name}` is of another type than at the first rank")
        tp, ep = shard.rank
        owner: tuple[int, ...] = (
            item.pp,
            0 if tp is not None else item.tp,
            0 if ep is not None else item.ep,
        )
        if not ref.shape and weight.shape:
            owner = (item.pp, item.tp, item.ep, item.dp or 0)
            where = [Fragment(0, 1, item.file, ref.byte_offset)]
        else:
            where = list(self._boxes(item, weight, shard, kind, ref))
        self._parts.setdefault(key, {}).setdefault(owner, []).extend(where)

    def _boxes(
        self, item: RankFile, weight: Weight, shard: Shard, kind: str, ref: TensorRef
    ) -> Iterator[Fragment]:
        """The boxes of the whole tensor that a state of a rank holds."""
        numel = prod(shard.shape)
        start, stop = 0, numel
        if item.dp is not None:
            start, stop = data_ranges(numel, self._sizes[1] or 1)[item.dp]
        if ref.numel != stop - start or not ref.is_contiguous:
            raise source_error(
                "partition-mismatch",
                f"`{kind}` of `{weight.name}` has {ref.numel} elements in {item.file}",
                notes=[f"this rank has {stop - start} of the {numel} elements of its shard"],
                helps=["the folder mixes two checkpoints; copy it again"],
            )
        for piece in shard.pieces:
            for part in cut(piece, start, stop):
                shifted = part.shift(-start)
                yield boxed(shifted, weight.shape, item.file, ref.byte_offset, ref.dtype)

    def _group(self, item: RankFile, groups: object, names: Mapping[object, object]) -> None:
        """Add the parameters of a rank's groups to those of its stage, whose settings are one."""
        path = self._root / item.file
        if not isinstance(groups, list):
            raise _bad(path, "`param_groups` is no list")
        found = []
        for group in groups:
            if not isinstance(group, dict) or not isinstance(group.get("params"), list):
                raise _bad(path, "a param group has no `params`")
            own = [self._name(path, names[i]) for i in group["params"] if i in names]
            rest = {str(key): value for key, value in group.items() if key != "params"}
            found.append(Group({k: encode(v) for k, v in rest.items()}, own))
        known = self.stages.get(item.pp)
        if known is None:
            self.stages[item.pp] = found
            self._first_of[item.pp] = item.file
            return
        copies = [
            (self._first_of[item.pp], [group.settings for group in known]),
            (item.file, [group.settings for group in found]),
        ]
        agreed(copies, "param groups of a stage")
        for one, other in zip(known, found, strict=True):
            one.members += [name for name in other.members if name not in one.members]

    def local_tensors(self) -> Iterator[LocalTensor]:
        """Every state; one that several ranks hold, once for each."""
        for (name, kind), owners in self._parts.items():
            ref = self._refs[name, kind]
            weight = self._weights[name]
            shape = ref.shape if not ref.shape else weight.shape
            self.copies = max(self.copies, len(owners))
            for copy, fragments in enumerate(owners.values()):
                coord = ((COPY, copy),) if len(owners) > 1 else ()
                yield LocalTensor(name, kind, coord, shape, ref.dtype, tuple(fragments))


def _bad(path: Path, why: str) -> ReshardError:
    return source_error(
        "bad-shard",
        f"{path} is not a shard of a distributed checkpoint",
        notes=[why],
        helps=["the folder mixes two checkpoints, or is damaged; copy it again"],
    )
