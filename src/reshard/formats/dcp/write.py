"""Writes a checkpoint that `torch.distributed.checkpoint.load` reads, for any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

from reshard.formats.dcp.contents import Contents, contents_of
from reshard.formats.dcp.form import Form, form_of
from reshard.formats.dcp.rank_files import RankFiles, grid_of
from reshard.plan.arrangement import Arrangement
from reshard.plan.output import FileBytes, Output, Written
from reshard.plan.target import Target

OPTIONS = ("dp", "tp", "flatten")


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  target: options `dp` (ranks of FSDP), `tp` (tensor-parallel ranks), and `flatten` (1 for
           the optimizer as `flatten_optimizer_state_dict` makes it, 0 for nested).
    Raises: ReshardError[unknown-option | bad-option | dcp-tensor-parallel].
    """
    target.reject_unknown(OPTIONS)
    grid = grid_of(arrangement, target)
    form = form_of(arrangement.catalog.training.of("dcp")) or Form()
    flatten = target.integer("flatten", least=0)
    if flatten is not None:
        form = Form(form.model, form.optimizer, bool(flatten))
    contents = contents_of(arrangement)
    files = RankFiles(arrangement, grid)
    files.add_weights(contents, form)
    files.add_optimizer(contents, form)
    files.add_rest(contents)
    return output_of(contents, [files])


def output_of(
    contents: Contents,
    folders: Sequence[RankFiles],
    last: Sequence[FileBytes] = (),
    beside: str = "",
) -> Output:
    """The output of one or several folders with `.metadata`.

    Args:  last: files that are written after everything else.
           beside: see Output.
    """
    counts = [len(folder.writer.placed) for folder in folders]
    metadata = [folder.metadata() for folder in folders]

    def finish(written: Sequence[Written]) -> tuple[FileBytes, ...]:
        out: list[FileBytes] = []
        at = 0
        for folder, count in zip(folders, counts, strict=True):
            out += folder.writer.finish(written[at : at + count])
            at += count
        return (*out, *metadata, *last)

    return Output(
        tuple(item for folder in folders for item in folder.writer.placed),
        {name: size for folder in folders for name, size in folder.writer.files.items()},
        tuple(item for folder in folders for item in folder.writer.head),
        finish,
        contents.warnings(),
        contents.dropped(),
        contents.folded(),
        beside,
        tuple(item.file for item in last),
    )
