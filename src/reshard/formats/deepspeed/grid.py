"""The grid of ranks that wrote a checkpoint, and whether all of them are here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.folder import (
    MODEL,
    MODEL_ZERO3,
    OPTIMIZERS,
    FileName,
    Folder,
    Rank,
    mixed_runs,
)
from reshard.formats.deepspeed.model_file import ModelFile
from reshard.plan.catalog import Coord
from reshard.records import dataclass, replace

MAX_RANKS = 1 << 20
"""Ranks of a run; more are a damaged number."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Sizes of the mesh: pipeline stages, tensor-parallel ranks, data-parallel ranks.

    An mp rank, as file names number it, is `pp * tp size + tp`.
    """

    pp: int
    tp: int
    dp: int

    @property
    def mp_ranks(self) -> range:
        """Every mp rank."""
        return range(self.pp * self.tp)

    def stage(self, mp_rank: int) -> int:
        """The pipeline stage of an mp rank."""
        return mp_rank // self.tp

    def tp_rank(self, mp_rank: int) -> int:
        """The tensor-parallel rank of an mp rank."""
        return mp_rank % self.tp

    def coord(self, mp_rank: int) -> Coord:
        """Its position on the axes that are longer than one."""
        out: list[tuple[str, int]] = []
        if self.pp > 1:
            out.append(("pp", self.stage(mp_rank)))
        if self.tp > 1:
            out.append(("tp", self.tp_rank(mp_rank)))
        return tuple(out)


def find_grid(folder: Folder, first: ModelFile) -> Grid:
    """The grid that the files' names and the first model file agree on.

    Args:  first: any model file.
    Raises: ReshardError[missing-rank-file | mixed-runs].
    """
    found = folder.zero3_models or {(0, mp): name for mp, name in folder.models.items()}
    mp_size = _stated(first, "mp_world_size", len({mp for _, mp in found}))
    pp, tp = _degrees(folder, first, mp_size)
    ranks = {dp for dp, _ in (*folder.optimizers, *folder.zero3_models)}
    dp = _stated(first, "dp_world_size", max(ranks, default=0) + 1)
    grid = Grid(pp, tp, dp)
    kind = MODEL_ZERO3 if folder.is_zero3 else MODEL
    _complete(found, range(dp if folder.is_zero3 else 1), grid, kind, first)
    if folder.optimizers or folder.is_zero3:
        _complete(folder.optimizers, range(dp), grid, OPTIMIZERS[folder.prefix], first)
    return grid


def has_sequence_ranks(folder: Folder, first: ModelFile) -> bool:
    """Whether the mp rank in files' names is a rank of the sequence (Ulysses), before 0.19.

    Such a run partitions over all ranks, data and sequence; the rank of the sequence is the
    remainder of the other, so that it tells nothing more.

    Source: DeepSpeed 0.18.3 runtime/engine.py `_get_zero_ckpt_name`; runtime/sequence_parallel/
    parallel_state_sp.py `get_model_parallel_rank`.
    """
    stated = first.root.get("mp_world_size")
    ranks = folder.optimizers or folder.zero3_models
    size = max((mp for _, mp in ranks), default=0) + 1
    wanted = {(dp, dp % size) for dp, _ in ranks}
    return stated is not None and stated.value == 1 and size > 1 and wanted == set(ranks)


def by_data_rank(folder: Folder) -> Folder:
    """The folder of a run with sequence ranks, as it would be without."""
    return replace(
        folder,
        optimizers={(dp, 0): name for (dp, _), name in folder.optimizers.items()},
        zero3_models={(dp, 0): name for (dp, _), name in folder.zero3_models.items()},
    )


def _stated(first: ModelFile, key: str, default: int) -> int:
    node = first.root.get(key)
    return default if node is None else node.integer()


def _degrees(folder: Folder, first: ModelFile, mp_size: int) -> tuple[int, int]:
    """Pipeline stages and tensor-parallel ranks."""
    stated = first.root.get("checkpoint_parallel_dimensions")
    if stated is not None:
        pp, tp = stated.at("pp_degree").integer(), stated.at("tp_degree").integer()
        if pp * tp == mp_size:
            return pp, tp
        raise source_error(
            "mixed-runs",
            f"{first.file} speaks of {pp} pipeline stages and {tp} tensor-parallel ranks, "
            f"and of {mp_size} model-parallel ranks",
            notes=["`checkpoint_parallel_dimensions` and `mp_world_size` disagree"],
        )
    if not folder.layers:
        return 1, mp_size
    tp = len({tp_rank for _, tp_rank in folder.layers})
    if mp_size % tp:
        raise source_error(
            "mixed-runs",
            f"{mp_size} model-parallel ranks cannot be stages of {tp} tensor-parallel ranks each",
            notes=[
                f"layer files name {tp} tensor-parallel ranks",
                f"`mp_world_size` in {first.file}",
            ],
        )
    return mp_size // tp, tp


def _complete(
    found: Mapping[Rank, str], dp_ranks: range, grid: Grid, kind: FileName, first: ModelFile
) -> None:
    count = dp_ranks.stop * grid.pp * grid.tp
    if count > MAX_RANKS:
        raise source_error(
            "missing-rank-file",
            f"{count} ranks have not written {len(found)} files",
            notes=[f"the sizes are read from {first.file}"],
            helps=["the file is damaged; copy it again"],
        )
    wanted = dict.fromkeys((dp, mp) for dp in dp_ranks for mp in grid.mp_ranks)
    missing = [rank for rank in wanted if rank not in found]
    extra = [name for rank, name in found.items() if rank not in wanted]
    if extra:
        raise mixed_runs(
            f"{extra[0]} is of a rank that this run does not have",
            f"{first.file} is of a run with dp={grid.dp}, tp={grid.tp}, and pp={grid.pp}",
            *([f"{len(extra)} files too many: {_listed(extra)}"] if len(extra) > 1 else []),
        )
    if missing:
        names = [kind.make(dp=dp, mp=mp) for dp, mp in missing]
        raise missing_files(names, len(wanted), first.file)


def missing_files(names: Sequence[str], wanted: int, told_by: str) -> ReshardError:
    """The error for files that are not there."""
    return source_error(
        "missing-rank-file",
        f"{len(names)} of {wanted} files are missing: {_listed(names)}",
        notes=[f"which there must be is told by {told_by}"],
        helps=["copy the files of all ranks; on several machines each one has only its own"],
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) <= 4:
        return ", ".join(names)
    return f"{names[0]}, {names[1]}, ..., {names[-1]}"
