"""The rank files of a legacy checkpoint and their places on the mesh.

Source: Megatron-LM, megatron/training/checkpointing.py `get_checkpoint_name`,
`generate_state_dict`; megatron/core/parallel_state.py `RankGenerator`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.megatron.groups import RUNTIME, optimizers_in
from reshard.formats.megatron.modules import description
from reshard.models.run_arguments import Arguments, arguments_in, no_arguments
from reshard.plan.agreement import agreed
from reshard.storage.torch_file import TensorRef, open_torch_file, read_small
from reshard.store.source import LocalSource

MODEL_FILES = ("model_optim_rng.pt", "model_rng.pt")
DISTRIBUTED = "distrib_optim.pt"
"""The states of the distributed optimizer, beside the model's file."""
_OLD_OPTIMIZER = "optim.pt"

MAX_RANKS = 1 << 20

_OF_ONE_RANK = ("rank", "local_rank", "node_rank", "global_rank", "device", "local_world_size")
_OF_ALL_RANKS = ("iteration", "checkpoint_version", "num_floating_point_operations_so_far")
_KEYS = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr", "default_config")
"""What tells one param group from another."""

Settings = dict[str, object]

AXES = ("tp", "pp", "ep")
Sizes = tuple[int, int, int]
"""Of these axes."""


@dataclass(frozen=True, slots=True)
class RankFile:
    """One `model_optim_rng.pt`.

    Args:  numbers: what those in the name of its folder may be.
           file: relative to the folder of the iteration.
           strange: other files of its folder that may hold an optimizer.  tp, pp, ep: its ranks.
    """

    numbers: tuple[Mapping[str, int], ...]
    file: str
    root: Mapping[object, object]
    args: Arguments
    strange: tuple[str, ...]
    tp: int = 0
    pp: int = 0
    ep: int = 0

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return self.file.partition("/")[0]


class Ranks:
    """All rank files.

    Args:  args: of the first one, the same in all.  sizes: of the mesh.  etp: ranks that share an
                 expert.
    """

    def __init__(self, files: Sequence[RankFile], args: Arguments, sizes: Sizes, etp: int) -> None:
        self.files, self.args, self.etp = files, args, etp
        self.tp, self.pp, self.ep = sizes
        version = files[0].root.get("checkpoint_version", 0)  # files without one are of the first
        self.version = float(version) if isinstance(version, (int, float)) else 0.0

    @cached_property
    def places(self) -> Mapping[tuple[str, bool], Sequence[tuple[int, int]]]:
        """By file, and whether a tensor is of an expert: the tp and ep ranks for which it is read,
        its own, and those of ranks that wrote none because their tensors are in this one.
        """
        kinds = (False, True)
        out = {(file.file, expert): [(file.tp, file.ep)] for file in self.files for expert in kinds}
        for pp in range(self.pp):
            files = [file for file in self.files if file.pp == pp]
            pairs = {(file.tp, file.ep) for file in files}
            ranks = [pair for pair in product(range(self.tp), range(self.ep)) if pair not in pairs]
            for (tp, ep), expert in product(ranks, kinds):
                same = (f for f in files if (f.tp - tp) % (self.etp if expert else self.tp) == 0)
                other = next(f for f in same if f.ep == ep or not expert)
                out[other.file, expert].append((tp, ep))
        return out


def rank_folder(place: Sizes, sizes: Sizes) -> str:
    """The name of a rank's folder: besides tp it has the axes along which there are several."""
    axes = {axis for axis, size in zip(AXES, sizes, strict=True) if size > 1 or axis == "tp"}
    names = description().files[0].names
    name = next(item for item in names if {hole.name for hole in item.pattern.holes} == axes)
    return name.pattern.fill(dict(zip(AXES, place, strict=True))).partition("/")[0]


def _ranks_in(folder: str) -> list[dict[str, int]]:
    """What the numbers in a folder's name may be ranks of: several ways if there are two."""
    out = []
    for name in description().files[0].names:
        numbers = name.pattern.match(f"{folder}/{MODEL_FILES[0]}")
        if numbers is not None and name.pattern.fill(numbers).partition("/")[0] == folder:
            out.append({axis: int(numbers[axis]) for axis in AXES if axis in numbers})
    return out


def _place(numbers: Sequence[Mapping[str, int]], sizes: Sizes) -> Sizes:
    """A folder's ranks: one suffix is the pipeline's, or the experts' when there is one stage."""
    several = {axis for axis, size in zip(AXES, sizes, strict=True) if size > 1 or axis == "tp"}
    ranks = next((item for item in numbers if item.keys() <= several), numbers[-1])
    return ranks["tp"], ranks.get("pp", 0), ranks.get("ep", 0)


def read_ranks(folder: Path, *, strict: bool = True) -> Ranks:
    """Open every rank file of an iteration's folder.

    Args:  strict: whether the arguments must be there; else the folders' names say the sizes.
    Raises: ReshardError[foreign-rank | missing-ranks | mixed-runs | no-arguments | renamed-file |
            unsupported-expert-tp], and what `open_torch_file` raises.
    """
    source = LocalSource(folder)
    items = [_open(source, name, strict) for name in _rank_folders(source)]
    args = items[0].args
    sizes = _sizes(args, items)
    _check_same(items)
    files = []
    for item in items:
        place = _place(item.numbers, sizes)
        if any(rank >= size for rank, size in zip(place, sizes, strict=True)):
            raise source_error(
                "foreign-rank",
                f"`{item.folder}` in {folder} does not belong to a rank of this run",
                notes=[f"the run had tp={sizes[0]}, pp={sizes[1]}, ep={sizes[2]}"],
                helps=["move it elsewhere if it belongs to another run"],
            )
        files.append(replace(item, tp=place[0], pp=place[1], ep=place[2]))
    _check_own_ranks(folder, files, sizes)
    etp = args.expert_tp if args.integer("num_experts") else sizes[0]
    if sizes[0] % etp:
        # Tensor-parallel ranks are neighbours in both groupings of ranks, so a rank's part of an
        # expert follows from its tp rank if one size divides the other; a larger etp gives several
        # ranks the same file name.
        raise source_error(
            "unsupported-expert-tp",
            f"experts are cut over {etp} ranks, dense layers over {sizes[0]}",
            notes=["then the names of the folders do not show which rank has which shard"],
            helps=["save it as `torch_dist`, which states where each part belongs"],
        )
    _check_complete(folder, files, sizes, etp)
    return Ranks(files, args, sizes, etp)


def _rank_folders(source: LocalSource) -> list[str]:
    names = [*source.matching("mp_rank_*", folders=True), *source.matching("mp_rank_*")]
    for name in sorted(names):
        if not _ranks_in(name) or not source.has_folder(name):
            raise source_error(
                "foreign-rank",
                f"`{name}` in {source.root} is not the folder of a rank",
                notes=["names are `mp_rank_TT`, `mp_rank_TT_PPP`, `mp_rank_TT_PPP_EEE`"],
                helps=["move it elsewhere if it does not belong to the checkpoint"],
            )
    # Before 2023, the distributed optimizer of every data-parallel rank had a folder of its own.
    old = {name for name in names if source.has(f"{name}/{_OLD_OPTIMIZER}")}
    return [name for name in names if name not in old or _model_file(source, name)] or names


def _model_file(source: LocalSource, folder: str) -> str | None:
    files = (f"{folder}/{name}" for name in MODEL_FILES)
    return next((file for file in files if source.has(file)), None)


def _open(source: LocalSource, folder: str, strict: bool) -> RankFile:
    file = _model_file(source, folder)
    if file is None:
        raise source_error(
            "missing-ranks",
            f"{source.root / folder} has no `{MODEL_FILES[0]}`",
            helps=["copy the folders of all ranks"],
        )
    opened = open_torch_file(source.root / file)  # ranks may lie on other disks, behind links
    root = opened.root
    if not isinstance(root, dict):
        raise source_error(
            "no-model",
            f"{opened.path} contains no model",
            notes=[f"its root is a {type(root).__name__}"],
        )
    expected = (file, f"{folder}/{DISTRIBUTED}")
    strange = [name for name in source.matching(f"{folder}/*optim*.pt") if name not in expected]
    strange = [name.rpartition("/")[2] for name in strange]
    if file.endswith(MODEL_FILES[1]):
        strange += source.matching(f"{folder}_*/{_OLD_OPTIMIZER}")
    args = arguments_in(root.get("args"), opened.path)
    if args is None and (strict or "args" in root):
        raise no_arguments(opened.path)
    args = args or Arguments({}, opened.path)
    return RankFile(tuple(_ranks_in(folder)), file, root, args, tuple(strange))


def _sizes(args: Arguments, items: Sequence[RankFile]) -> Sizes:
    """tp, pp, ep: as the arguments say; without them as the folders' names do."""
    if args.values:
        return args.size("tp"), args.size("pp"), args.size("ep")
    tp, pp, ep = (1 + max(f.numbers[0].get(axis, 0) for f in items) for axis in AXES)
    return tp, pp, ep


def _check_same(files: Sequence[RankFile]) -> None:
    """Refuse files of two runs, or of two iterations of one.

    A stage may lack a param group, or an optimizer, which others have.
    """
    copies: dict[str, list[tuple[str, Settings]]] = {}
    for file in files:
        for what, settings in _settings(file).items():
            copies.setdefault(what, []).append((file.file, settings))
    for what, settings_of in copies.items():
        agreed(settings_of, what)


def _settings(file: RankFile) -> dict[str, Settings]:
    """What all ranks have in common, by what it is."""
    run = {key: file.root[key] for key in _OF_ALL_RANKS if key in file.root}
    arguments = {
        f"args.{key}" if key in _OF_ALL_RANKS else key: value
        for key, value in file.args.values.items()
        if key not in _OF_ONE_RANK
    }
    out = {"settings of the run": _plain((run | arguments).items())}
    for key in ("opt_param_scheduler", "lr_scheduler"):
        out[f"settings of `{key}`"] = _plain(_entries(file.root.get(key)))
    groups: dict[str, list[Settings]] = {}
    for optimizer in optimizers_in(file.root.get("optimizer")):
        if not isinstance(optimizer, Mapping):
            continue
        if optimizer.get("grad_scaler"):
            out["settings of `grad_scaler`"] = _plain(_entries(optimizer["grad_scaler"]))
        inner = optimizer.get("optimizer", optimizer)
        items = inner.get("param_groups") if isinstance(inner, Mapping) else None
        for group in items if isinstance(items, list) else []:
            if isinstance(group, Mapping):
                label = ", ".join(f"{key}={group[key]}" for key in _KEYS if key in group)
                values = ((k, v) for k, v in group.items() if k not in RUNTIME)
                groups.setdefault(label, []).append(_plain(values))
    for label, settings in groups.items():
        if len(settings) == 1:
            out[f"settings of the param group with {label}"] = settings[0]
    return out


class _Own:
    """A value that a rank may have of its own, which is like any other: a path, a tensor."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def _plain(entries: Iterable[tuple[object, object]]) -> Settings:
    out: Settings = {}
    for key, value in entries:
        if isinstance(value, TensorRef) and value.numel == 1:
            out[str(key)] = read_small(value)
        else:
            out[str(key)] = value if _is_common(value) else _Own()
    return out


def _entries(value: object) -> Iterable[tuple[object, object]]:
    return value.items() if isinstance(value, Mapping) else ()


def _is_common(value: object) -> bool:
    """Whether a value is plain and not a place, which nodes may have of their own."""
    if isinstance(value, str):
        return not {"/", ":"} & set(value)
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (int, float, bool)) for item in value)
    return value is None or isinstance(value, (int, float, bool))


def _check_own_ranks(folder: Path, files: Sequence[RankFile], sizes: Sizes) -> None:
    """Refuse files that were exchanged: a run notes in each which rank of all wrote it.

    Tensor-parallel ranks are neighbours, and stages follow each other. Files that all tell of one
    rank tell nothing: other tools write them so.
    """
    numbers = {file.file: file.args.integer("rank") for file in files}
    if len(set(numbers.values())) == 1 or None in numbers.values():
        return
    ranks = {name: rank for name, rank in numbers.items() if rank is not None}
    for file in files:
        before = [f for f in files if (f.tp, f.ep, f.pp + 1) == (file.tp, file.ep, file.pp)]
        wrong = f"tp={ranks[file.file] % sizes[0]}"
        if ranks[file.file] % sizes[0] == file.tp:
            if not any(ranks[other.file] >= ranks[file.file] for other in before):
                continue
            wrong = f"an earlier stage than that of rank {ranks[before[0].file]}"
        raise source_error(
            "renamed-file",
            f"{folder / file.file} was written by rank {ranks[file.file]}, which has {wrong}",
            notes=[
                f"its folder's name says tp={file.tp}, pp={file.pp}, ep={file.ep}",
                "`rank` in its arguments; the name shows which part of the model a file contains",
            ],
            helps=["restore the original names of the folders, or copy the checkpoint again"],
        )


def _check_complete(folder: Path, files: list[RankFile], sizes: Sizes, etp: int) -> None:
    """Refuse a folder without some rank's part; where experts have ranks of their own, some pairs
    of tp and ep rank hold nothing that others do not hold too, and are not written.
    """
    tp, pp, ep = sizes
    if not 0 < pp * max(tp, ep * etp) <= MAX_RANKS or min(tp, pp, ep) < 1:
        raise source_error(
            "missing-ranks",
            f"{folder} cannot be of a run with tp={tp}, pp={pp}, ep={ep}",
            notes=[f"{len(files)} rank folders were found"],
            helps=["the arguments in its files are damaged; copy them again"],
        )
    dense = {(f.tp, f.pp) for f in files}
    experts = {(f.tp % etp, f.ep, f.pp) for f in files}
    missing = [f"tp={t}, pp={p}" for p in range(pp) for t in range(tp) if (t, p) not in dense]
    missing += [
        f"ep={e}, pp={p}" + (f", etp={t}" if etp > 1 else "")
        for p in range(pp)
        for e in range(ep)
        for t in range(etp)
        if ep > 1 and (t, e, p) not in experts
    ]
    if missing:
        raise source_error(
            "missing-ranks",
            f"{folder} lacks the files of {len(missing)} ranks",
            notes=[
                f"first: {missing[0]}; the run had tp={tp}, pp={pp}, ep={ep}",
                f"{len(files)} rank folders were found",
            ],
            helps=["copy the folders of all ranks"],
        )
