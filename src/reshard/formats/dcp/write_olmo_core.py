"""Writes a step's folder of OLMo-core.

Source: OLMo-core train/checkpoint.py `Checkpointer`, distributed/checkpoint/__init__.py (fa6c501).
"""

from __future__ import annotations

import json

from reshard.errors import Diagnostic
from reshard.formats.dcp.contents import contents_of
from reshard.formats.dcp.form import Form
from reshard.formats.dcp.rank_files import RankFiles, grid_of
from reshard.formats.dcp.write import output_of
from reshard.plan.arrangement import Arrangement
from reshard.plan.catalog import Catalog
from reshard.plan.output import FileBytes, Output
from reshard.plan.target import Target
from reshard.storage.side_files import read_side_files

OPTIONS = ("dp", "tp", "flatten")
_MARK = ".metadata.json"
_TRAINER = "train/rank0.pt"


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder `model_and_optim`, and beside it what the source has of OLMo-core.

    Args:  target: options `dp` and `tp`, ranks; `flatten`, 1 for a flattened optimizer.
    Raises: ReshardError[unknown-option | bad-option | dcp-tensor-parallel].
    """
    target.reject_unknown(OPTIONS)
    grid = grid_of(arrangement, target)
    contents = contents_of(arrangement)
    form = Form(("model",), ("optim",), target.integer("flatten", 0, least=0) == 1)
    files = RankFiles(arrangement, grid, "model_and_optim/")
    files.add_weights(contents, form)
    files.add_optimizer(contents, form)
    catalog = arrangement.catalog
    mark = read_side_files(catalog, [_MARK])[_MARK] if _MARK in catalog.side_files else None
    contents.warned += _warnings(catalog)
    files.add_rest(contents)
    return output_of(contents, [files], last=[_mark(mark)])


def _mark(data: bytes | None) -> FileBytes:
    """The file that is written last; OLMo-core takes a folder without it for incomplete."""
    made = json.dumps({"version": "2.0"}).encode()
    return FileBytes(_MARK, 0, made if data is None else data)


def _warnings(catalog: Catalog) -> list[Diagnostic]:
    if _TRAINER in catalog.side_files:
        return []
    return [
        Diagnostic(
            "olmo-trainer-state",
            "there is no state of OLMo-core's trainer to write",
            "warning",
            notes=(f"`{_TRAINER}` tells it the step and the data that were seen",),
            helps=("give OLMo-core the folder `model_and_optim` inside of it as `load_path`",),
        )
    ]
