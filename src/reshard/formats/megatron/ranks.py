"""The rank files of a legacy checkpoint and their places on the mesh.

Source: Megatron-LM, megatron/training/checkpointing.py `get_checkpoint_name`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments, arguments_in, arguments_of
from reshard.formats.megatron.rank_settings import differences, settings_of
from reshard.storage.torch_file import TorchFile, open_torch_file

MODEL_FILES = ("model_optim_rng.pt", "model_rng.pt")
DISTRIBUTED = "distrib_optim.pt"
"""The states of the distributed optimizer, beside the model's file."""

_TOLD = 4
"""Settings that differ and are named."""

MAX_RANKS = 1 << 20
_NAME = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?$")


@dataclass(frozen=True, slots=True)
class RankFile:
    """One `model_optim_rng.pt`.

    Args:  tp, pp, ep: its ranks.  file: relative to the folder of the iteration.
           strange: other files of its folder that may hold an optimizer.
    """

    tp: int
    pp: int
    ep: int
    file: str
    root: Mapping[object, object]
    opened: TorchFile
    strange: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranks:
    """All rank files.

    Args:  args: of the first one, the same in all.  tp, pp, ep, etp: sizes of the mesh; experts
                 are cut over etp.
    """

    files: tuple[RankFile, ...]
    args: Arguments
    tp: int
    pp: int
    ep: int
    etp: int

    def places(self, file: RankFile, *, expert: bool) -> tuple[tuple[int, int], ...]:
        """The tp and ep ranks for which a file is read: its own, and those of ranks that wrote none
        because their tensors are in this one.
        """
        own = (file.tp, file.ep)
        here = [f for f in self.files if f.pp == file.pp]
        written = {(f.tp, f.ep) for f in here}
        if len(written) == self.tp * self.ep:
            return (own,)

        def holds(other: RankFile, tp: int, ep: int) -> bool:
            if expert:
                return other.tp % self.etp == tp % self.etp and other.ep == ep
            return other.tp == tp

        lent = [
            (tp, ep)
            for tp in range(self.tp)
            for ep in range(self.ep)
            if (tp, ep) not in written
            and next(other for other in here if holds(other, tp, ep)) == file
        ]
        return (own, *lent)

    @property
    def version(self) -> float:
        """The checkpoint's version; files without one are of the first."""
        value = self.files[0].root.get("checkpoint_version", 0)
        return float(value) if isinstance(value, (int, float)) else 0.0


@dataclass(frozen=True, slots=True)
class _Folder:
    """The folder of a rank.

    Args:  numbers: tp, and what stands behind it in the name.
    """

    path: Path
    numbers: tuple[int, ...]
    file: str
    opened: TorchFile
    strange: tuple[str, ...]


def read_ranks(folder: Path, *, strict: bool = True) -> Ranks:
    """Open every rank file of an iteration's folder.

    Args:  strict: whether the arguments must be there; else the folders' names say the sizes.
    Raises: ReshardError[foreign-rank | missing-ranks | mixed-runs | no-arguments | renamed-file |
            unsupported-expert-tp], and what `open_torch_file` raises.
    """
    found = [_open(path) for path in _rank_folders(folder)]
    first = found[0]
    args = _arguments(first, strict)
    sizes = _sizes(args, found)
    files = []
    for item in found:
        here = _arguments(item, strict)
        _check_same(folder, first, item, args, here)
        root = item.opened.root
        assert isinstance(root, dict)
        place = _place(item.numbers, sizes)
        if any(rank >= size for rank, size in zip(place, sizes, strict=True)):
            raise source_error(
                "foreign-rank",
                f"`{item.path.name}` in {folder} is of no rank of this run",
                notes=[f"the run had tp={sizes[0]}, pp={sizes[1]}, ep={sizes[2]}"],
                helps=["move it elsewhere if it was left by another run"],
            )
        name = f"{item.path.name}/{item.file}"
        files.append(RankFile(*place, name, root, item.opened, item.strange))
    _check_own_ranks(folder, files, sizes)
    etp = args.expert_tp if args.integer("num_experts") else sizes[0]
    _check_expert_tp(etp, sizes)
    _check_complete(folder, files, sizes, etp)
    return Ranks(tuple(files), args, *sizes, etp)


def _rank_folders(folder: Path) -> list[Path]:
    found = sorted(folder.glob("mp_rank_*"))
    for path in found:
        if _NAME.match(path.name) is None or not path.is_dir():
            raise source_error(
                "foreign-rank",
                f"`{path.name}` in {folder} is not the folder of a rank",
                notes=["names are `mp_rank_TT`, `mp_rank_TT_PPP`, `mp_rank_TT_PPP_EEE`"],
                helps=["move it elsewhere if it does not belong to the checkpoint"],
            )
    # Before 2023, the distributed optimizer of every data-parallel rank had a folder of its own.
    return [p for p in found if not _only_optimizer(p)] or found


def _only_optimizer(path: Path) -> bool:
    return (path / "optim.pt").exists() and not any((path / n).exists() for n in MODEL_FILES)


def _open(path: Path) -> _Folder:
    match = _NAME.match(path.name)
    assert match is not None
    numbers = tuple(int(text) for text in match.groups() if text is not None)
    file = next((name for name in MODEL_FILES if (path / name).exists()), None)
    if file is None:
        raise source_error(
            "missing-ranks",
            f"{path} has no `model_optim_rng.pt`",
            helps=["copy the folders of all ranks"],
        )
    opened = open_torch_file(path / file)
    if not isinstance(opened.root, dict):
        raise source_error(
            "no-model",
            f"{opened.path} holds no model",
            notes=[f"its root is a {type(opened.root).__name__}"],
        )
    older = sorted(path.parent.glob(f"{path.name}_*/optim.pt")) if file == "model_rng.pt" else []
    strange = [p.name for p in sorted(path.glob("*optim*.pt")) if p.name not in (file, DISTRIBUTED)]
    strange += [f"{p.parent.name}/{p.name}" for p in older]
    return _Folder(path, numbers, file, opened, tuple(strange))


def _arguments(item: _Folder, strict: bool) -> Arguments:
    root = item.opened.root
    if not strict and isinstance(root, dict) and "args" not in root:
        return Arguments({}, item.opened.path)
    return arguments_of(item.opened)


def _sizes(args: Arguments, found: Sequence[_Folder]) -> tuple[int, int, int]:
    """tp, pp, ep: as the arguments say; without them as the folders' names do."""
    if args.values:
        return args.size("tp"), args.size("pp"), args.size("ep")
    tp, pp, ep = (
        1 + max((f.numbers[i] for f in found if len(f.numbers) > i), default=0) for i in range(3)
    )
    return tp, pp, ep


def _check_same(
    folder: Path, first: _Folder, item: _Folder, args: Arguments, here: Arguments
) -> None:
    """Refuse files of two runs, or of two iterations of one."""
    told: dict[str, tuple[object, ...]] = {}
    for axis in ("tp", "pp", "ep"):
        told[axis] = (args.size(axis), here.size(axis))
    for name in ("num_layers", "hidden_size", "num_experts", "padded_vocab_size"):
        told[name] = (args.integer(name), here.integer(name))
    for name in ("iteration", "checkpoint_version"):
        roots = (first.opened.root, item.opened.root)
        told[name] = tuple(root.get(name) if isinstance(root, dict) else None for root in roots)
    differ = {name: pair for name, pair in told.items() if pair[0] != pair[1]}
    if not differ:
        roots = (first.opened.root, item.opened.root)
        sides = [
            settings_of(root if isinstance(root, dict) else {}, own)
            for root, own in zip(roots, (args, here), strict=True)
        ]
        apart = differences(*sides)
        differ = {name: (sides[0][name], sides[1][name]) for name in apart[:_TOLD]}
    if differ:
        one = ", ".join(f"{name}={pair[1]}" for name, pair in differ.items())
        other = ", ".join(f"{name}={pair[0]}" for name, pair in differ.items())
        raise source_error(
            "mixed-runs",
            f"{folder} holds files of two runs, or of two iterations of one",
            notes=[
                f"{item.path.name}/{item.file} says {one}",
                f"{first.path.name}/{first.file} says {other}",
            ],
            helps=["remove what does not belong to the checkpoint"],
        )


def _place(numbers: tuple[int, ...], sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """A folder's ranks: one suffix is the pipeline's, or the experts' when there is one stage."""
    tp, *more = numbers
    if len(more) == 2:
        return tp, more[0], more[1]
    if not more:
        return tp, 0, 0
    return (tp, more[0], 0) if sizes[1] > 1 else (tp, 0, more[0])


def _check_own_ranks(folder: Path, files: Sequence[RankFile], sizes: tuple[int, int, int]) -> None:
    """Refuse files that were exchanged: a run notes in each which rank of all wrote it.

    Tensor-parallel ranks are neighbours, and stages follow each other. Files that all tell of one
    rank tell nothing: other tools write them so.
    Source: megatron/core/parallel_state.py `RankGenerator`.
    """
    stated = {file.file: _global_rank(file) for file in files}
    if len(set(stated.values())) == 1 or None in stated.values():
        return
    ranks = {name: rank for name, rank in stated.items() if rank is not None}
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
                "`rank` in its arguments; the name tells which part of the model a file holds",
            ],
            helps=["give the folders their own names again, or copy the checkpoint again"],
        )


def _global_rank(file: RankFile) -> int | None:
    args = arguments_in(file.root.get("args"), file.file)
    return None if args is None else args.integer("rank")


def _check_expert_tp(etp: int, sizes: tuple[int, int, int]) -> None:
    """Refuse sizes under which a rank's part of an expert does not follow from its tp rank.

    Tensor-parallel ranks are neighbours in both groupings of ranks, so they do if one size divides
    the other. A larger etp gives several ranks the same file name.
    """
    if sizes[0] % etp:
        raise source_error(
            "unsupported-expert-tp",
            f"experts are cut over {etp} ranks, dense layers over {sizes[0]}",
            notes=["the names of the folders do not tell which rank holds which part then"],
            helps=["save it as `torch_dist`, which says where each part belongs"],
        )


def _check_complete(
    folder: Path, files: list[RankFile], sizes: tuple[int, int, int], etp: int
) -> None:
    """Refuse a folder without some rank's part; where experts have ranks of their own, some pairs
    of tp and ep rank hold nothing that others do not hold too, and are not written.
    """
    tp, pp, ep = sizes
    if not 0 < pp * max(tp, ep * etp) <= MAX_RANKS or min(tp, pp, ep) < 1:
        raise source_error(
            "missing-ranks",
            f"{folder} is not of a run with tp={tp}, pp={pp}, ep={ep}",
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
