"""Reads the catalog of a DeepSpeed checkpoint."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import source_error
from reshard.formats.deepspeed.files import Files
from reshard.formats.deepspeed.folder import read_folder
from reshard.formats.deepspeed.grid import find_grid
from reshard.formats.deepspeed.model_file import ModelFile, read_model_file
from reshard.formats.deepspeed.partitions import FlatGroup
from reshard.formats.deepspeed.shards import read_shards
from reshard.formats.deepspeed.step import find_step
from reshard.formats.deepspeed.weights import find_aliases, module_tensors, zero3_tensors
from reshard.plan.catalog import Catalog, LocalTensor, Training

NAME = "deepspeed"


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of one step of a DeepSpeed checkpoint; no tensor is read.

    Args:  path: a step's folder, or the folder that holds several and `latest`.
           step: which of several.  strict_layout: whether every parameter must be described by the
           checkpoint itself; without, the layout is only a draft for the user's own.
    """
    root = find_step(path, step)
    folder = read_folder(root)
    files = Files(root)
    names = {**{(0, mp): name for mp, name in folder.models.items()}, **folder.zero3_models}
    if not names:
        raise source_error("missing-rank-file", f"{root} has no model file")
    models: dict[tuple[int, int], ModelFile] = {
        rank: read_model_file(files.root_of(name)) for rank, name in names.items()
    }
    first = next(iter(models.values()))
    grid = find_grid(folder, first)
    shards = read_shards(files, folder)
    aliases = find_aliases(models.values())
    tensors: list[LocalTensor] = []
    for mp_rank in grid.mp_ranks:
        coord = grid.coord(mp_rank)
        own = [models[dp, mp_rank] for dp in range(grid.dp) if (dp, mp_rank) in models]
        if folder.is_zero3:
            tensors += zero3_tensors(own, coord)
        else:
            tensors += module_tensors(own[0], coord, aliases)
        ranks = [shards[dp, mp_rank] for dp in range(grid.dp)] if shards else []
        for index, shapes in enumerate(own[0].param_shapes or ()):
            group = FlatGroup(
                index,
                shapes,
                [shard.groups[index] for shard in ranks],
                coord,
                ranks[0].stage,
                own[0].file,
                not _is_round_robin(first),
            )
            tensors += group.tensors()
    return Catalog(
        NAME,
        first.root.at("ds_version").text(),
        str(root.resolve()),
        {"pp": grid.pp, "tp": grid.tp, "dp": grid.dp},
        tuple(tensors),
        'layout deepspeed {\n    mesh pp, tp, dp\n    "**" = [...]\n}\n',
        "deepspeed",
        Training(),
        aliases=aliases,
        files=files.seen,
    )


def _is_round_robin(model: ModelFile) -> bool:
    """Whether gradients were reduced round robin, where the writer misnotes its own slices."""
    config = model.root.get("ds_config")
    zero = None if config is None else config.get("zero_optimization")
    flag = None if zero is None else zero.get("round_robin_gradients")
    return flag is not None and bool(flag.value)
