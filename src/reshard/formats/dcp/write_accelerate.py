"""Writes the folders that accelerate's `load_state` reads for FSDP with sharded state dicts.

Source: accelerate/utils/fsdp_utils.py `load_fsdp_model`, `load_fsdp_optimizer` (1.15).
"""

from __future__ import annotations

from reshard.formats.dcp.contents import contents_of
from reshard.formats.dcp.form import Form
from reshard.formats.dcp.rank_files import RankFiles, grid_of
from reshard.formats.dcp.write import output_of
from reshard.plan.arrangement import Arrangement
from reshard.plan.output import Output
from reshard.plan.target import Target

OPTIONS = ("dp", "tp")
MODEL, OPTIMIZER = "pytorch_model_fsdp_0/", "optimizer_0/"


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """Two folders with `.metadata`: of the model, and of the optimizer where there is one.

    Args:  target: options `dp` and `tp`, ranks.
    Raises: ReshardError[unknown-option | bad-option | dcp-tensor-parallel].
    """
    target.reject_unknown(OPTIONS)
    grid = grid_of(arrangement, target)
    contents = contents_of(arrangement)
    form = Form(("model",), ("optimizer",))
    model = RankFiles(arrangement, grid, MODEL)
    model.add_weights(contents, form)
    model.add_rest(contents)
    folders = [model]
    if contents.states:
        optimizer = RankFiles(arrangement, grid, OPTIMIZER)
        optimizer.add_optimizer(contents, form)
        folders.append(optimizer)
    return output_of(contents, folders)
