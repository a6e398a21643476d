"""Prepares a Hugging Face folder: weights, index, configuration, and what goes along."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from reshard.dtypes import DType
from reshard.errors import Diagnostic, target_error
from reshard.formats.sharded_set import MAX_FILE_NBYTES, SetFile, nbytes, share_out
from reshard.models import adapters
from reshard.models.adapters import adapter_of
from reshard.models.config import ModelConfig, model_config
from reshard.models.config_json import CONFIG
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.names import group_names, quantity
from reshard.plan.output import FileBytes, Output, PlacedSpec, Written
from reshard.plan.plan import ArraySpec
from reshard.plan.target import Target
from reshard.plan.text import show_count
from reshard.run.run import Run
from reshard.run.states import MASTER, PARAM, WEIGHTS
from reshard.store.side_files import read_side_files

SINGLE = "model.safetensors"
_ONLY_WEIGHTS = "a model folder holds weights only"
_SHOWN = 5
_KEYS = 12
"""Hyper-parameters that are listed."""


def prepare(
    arrangement: Arrangement, target: Target, *, max_file_nbytes: int = MAX_FILE_NBYTES
) -> Output:
    """The folder as arrays with their places.

    A parameter that has no weight in the element type of the computation (ZeRO-3) is written from
    its master weight.

    Args:  max_file_nbytes: tensor bytes of one file; a larger tensor gets a file of its own.
    Raises: ReshardError[unknown-option | tensor-name | tensor-dtype | no-weights |
            quantized-weights].
    """
    target.reject_unknown(())
    weights, dropped = _choose(arrangement)
    _check(arrangement, weights)
    is_adapter = adapter_of(arrangement.catalog) is not None
    config = ModelConfig(None) if is_adapter else model_config(arrangement, weights)
    weights = (*weights, *_untied(arrangement, weights, config))
    state_of = {item.name: item.state for item in weights}
    if is_adapter:
        max_file_nbytes = sum(map(nbytes, weights)) + 1  # PEFT reads one file
    (group,) = share_out([replace(item, state=PARAM) for item in weights], max_file_nbytes)
    files = group.files
    if len(files) == 1:
        files = (replace(files[0], path=adapters.SAFETENSORS if is_adapter else SINGLE),)
    last = [] if len(files) == 1 else [FileBytes(group.index_path, 0, group.index())]
    catalog = arrangement.catalog
    small = read_side_files(catalog, (name for name in catalog.side_files if name != CONFIG))
    if config.data is not None:
        small[CONFIG] = config.data

    def finish(results: Sequence[Written]) -> tuple[FileBytes, ...]:
        return tuple(last)

    return Output(
        placed=tuple(
            PlacedSpec(_spec(item, state_of[item.name]), file.path, file.offsets[item.name], False)
            for file in files
            for item in file.tensors
        ),
        files={file.path: file.nbytes for file in files},
        head=(*_heads(files), *(FileBytes(path, 0, data) for path, data in small.items())),
        finish=finish,
        warnings=_warnings(arrangement, weights, config),
        dropped=dropped,
    )


def _choose(
    arrangement: Arrangement,
) -> tuple[tuple[Whole, ...], tuple[tuple[str, str, str], ...]]:
    """The best weight of every parameter; everything else with the reason that it is not here."""
    best: dict[str, Whole] = {}
    for state in WEIGHTS:
        for item in arrangement.wholes:
            if item.state == state and not (state == MASTER and item.rule < 0):
                best.setdefault(item.name, item)
    keys = {(item.name, item.state) for item in best.values()}
    dropped = tuple(
        (item.name, item.state, _ONLY_WEIGHTS)
        for item in arrangement.wholes
        if (item.name, item.state) not in keys
    )
    return tuple(best.values()), dropped


def _untied(arrangement: Arrangement, weights: Sequence[Whole], model: ModelConfig) -> list[Whole]:
    """Other names of tied weights, where the configuration says that nothing is tied."""
    config = None if model.data is None else json.loads(model.data)
    if config is None or config.get("tie_word_embeddings") is not False:
        return []
    by_name = {item.name: item for item in weights}
    aliases = arrangement.catalog.aliases or {}
    return [replace(by_name[name], name=alias) for alias, name in aliases.items()]


def _check(arrangement: Arrangement, weights: Sequence[Whole]) -> None:
    if not weights:
        raise target_error(
            "no-weights",
            "the source stores no weights, and a model folder holds nothing else",
            notes=[f"read from {arrangement.catalog.root}"],
        )
    for item in weights:
        if item.dtype == DType.C128:
            raise target_error(
                "tensor-dtype",
                f"no safetensors file that other programs read can store `{item.name}` in "
                f"{item.dtype}",
                helps=["convert to `universal`, which reshard itself reads"],
            )


def _spec(item: Whole, state: str) -> ArraySpec:
    numel = nbytes(item) // item.dtype.itemsize
    return ArraySpec(item.name, state, item.dtype, numel, item.segments, item.shape)


def _heads(files: Sequence[SetFile]) -> list[FileBytes]:
    return [FileBytes(file.path, 0, file.head) for file in files]


def _warnings(
    arrangement: Arrangement, weights: Sequence[Whole], config: ModelConfig
) -> tuple[Diagnostic, ...]:
    out = list(config.warnings)
    masters = [item.name for item in weights if item.state == MASTER]
    if masters:
        patterns = [f"`{name}`{quantity(count)}" for name, count in group_names(masters)[:_SHOWN]]
        out.append(
            Diagnostic(
                "weights-of-masters",
                f"{len(masters)} tensors are written from the optimizer's master weights",
                level="warning",
                notes=("the source stores no other weights of them", *patterns),
                helps=("`--dtype bf16` rounds them to the type of the computation",),
            )
        )
    losses = ", ".join(_of_training(arrangement.catalog.training))
    if losses:
        out.append(
            Diagnostic(
                "training-left",
                "the state of the training is not in a model folder",
                level="warning",
                notes=(f"left behind: {losses}",),
                helps=("keep the source, or convert to `universal`, to go on training",),
            )
        )
    return tuple(out)


def _of_training(training: Run) -> Iterator[str]:
    """What is known of a run, by name."""
    if training.iteration is not None:
        yield f"`iteration` ({training.iteration:,})"
    if training.param_groups:
        keys = dict.fromkeys(key for group in training.param_groups for key in group.settings)
        quoted = [f"`{key}`" for key in keys]
        more = f", and {len(quoted) - _KEYS} more" if len(quoted) > _KEYS else ""
        count = show_count(len(training.param_groups), "group")
        yield f"`param_groups` ({count}: {', '.join(quoted[:_KEYS])}{more})"
    yield from (f"`{key}`" for key in training.state)
