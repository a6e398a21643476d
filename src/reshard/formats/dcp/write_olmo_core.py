"""Writes a step's folder of OLMo-core.

Source: OLMo-core train/checkpoint.py `Checkpointer`, distributed/checkpoint/__init__.py (fa6c501).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from reshard.errors import Diagnostic
from reshard.formats.dcp.contents import contents_of
from reshard.formats.dcp.form import Form
from reshard.formats.dcp.rank_files import RankFiles, grid_of
from reshard.formats.dcp.write import output_of
from reshard.formats.run_files import HF_CONFIG
from reshard.models.config_json import CONFIG, model_config_of
from reshard.plan.arrangement import Arrangement
from reshard.plan.catalog import Catalog
from reshard.plan.output import FileBytes, Output
from reshard.plan.target import Target
from reshard.store.side_files import read_side_files

OPTIONS = ("dp", "tp", "flatten")
_MARK = ".metadata.json"
_TRAINER = "train/rank0.pt"
_MOVED = Diagnostic(
    "side-file-moved",
    f"the `{CONFIG}` of transformers is written as `{HF_CONFIG}`",
    "warning",
    notes=(f"OLMo-core reads a `{CONFIG}` of its own form in the folder of a step",),
    helps=("reshard finds it there on the way back",),
)


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
    elsewhere = _elsewhere(catalog)
    if elsewhere:
        contents.warned.append(_MOVED)
    output = output_of(contents, [files], last=[_mark(mark)])
    return replace(output, elsewhere=elsewhere)


def _elsewhere(catalog: Catalog) -> dict[str, str]:
    """transformers' `config.json`, which OLMo-core would take for its own."""
    path = catalog.side_files.get(CONFIG)
    if path is None or model_config_of(Path(catalog.root) / path) is None:
        return {}
    return {CONFIG: HF_CONFIG}


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
