"""The catalog of a Megatron checkpoint of any form: its tensors, and what it knows besides them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from reshard.errors import Diagnostic, ReshardError
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.groups import Groups, optimizers_in
from reshard.formats.megatron.modules import is_buffer, is_vocabulary
from reshard.formats.steps import TRACKER
from reshard.language import load_layout
from reshard.plan.catalog import Catalog, Left, LocalTensor, SourceFile
from reshard.run.run import Run
from reshard.storage.kept import encode
from reshard.store.regular_file import read_note

_ELSEWHERE = ("model", "optimizer", "iteration", "args", "rng_state", "opt_param_scheduler")
_STATES = ("state", "param_groups", "fp32_from_fp16_params", "fp32_from_fp16")
_CHUNK = re.compile(r"model\d+")
_ITERATION = re.compile(r"iter_(\d{7,})$")


def catalog_of(
    folder: Path,
    root: Mapping[object, object],
    args: Arguments,
    weights: Sequence[LocalTensor],
    states: Sequence[LocalTensor],
    groups: Groups,
    *,
    layout: str,
    framework: Mapping[str, object],
    mesh: Mapping[str, int],
    files: Sequence[SourceFile],
    names: Iterable[str],
    rows: int | None = None,
    vocabulary: int | None = None,
    rng: Sequence[object] = (),
    version: str | None = None,
    aliases: Mapping[str, str] | None = None,
    withheld: tuple[Diagnostic, ...] = (),
    left: Sequence[Left] = (),
) -> Catalog:
    """The catalog of an iteration's folder.

    Args:  root: what its files have in common, beside tensors.
           framework: more of what only Megatron understands, as JSON.
           names: of the weights, over all ranks.
           rows: of the embedding.  vocabulary: its true size, where rows behind it are left out.
           rng: random states, by rank.  withheld: what is wrong with the states.
    """
    names = list(dict.fromkeys(names))
    return Catalog(
        format="megatron",
        version=str(root.get("checkpoint_version", "")) if version is None else version,
        root=str(folder.resolve()),
        mesh=mesh,
        tensors=(*weights, *states),
        layout=load_layout(layout, "megatron layout"),
        training=_run(root, groups, rng, framework),
        config=args.config(rows),
        aliases=aliases,
        buffers=tuple(name for name in names if is_buffer(name)),
        padded=tuple(name for name in names if is_vocabulary(name)),
        files=tuple(files),
        oddities=tuple(
            _oddities(folder, root, args, vocabulary, has_optimizer=bool(states or withheld))
        ),
        withheld=withheld,
        left=tuple(left),
    )


def _run(
    root: Mapping[object, object],
    groups: Groups,
    rng: Sequence[object],
    framework: Mapping[str, object],
) -> Run:
    """Iteration, scheduler, random states, arguments; nothing is left behind."""
    iteration = root.get("iteration")
    state = {}
    if "opt_param_scheduler" in root:
        state["lr_scheduler"] = encode(root["opt_param_scheduler"])
    other = {
        str(key): encode(value)
        for key, value in root.items()
        if str(key) not in _ELSEWHERE and not _CHUNK.fullmatch(str(key))
    }
    scaler = _scaler(root.get("optimizer"))
    if scaler is not None:
        state["loss_scaler"] = scaler
    return Run(
        iteration=iteration if isinstance(iteration, int) else None,
        param_groups=groups.all(),
        state=state,
        framework={
            "name": "megatron",
            "args": encode(root.get("args")),
            "other": other,
            "rng_state": [encode(item) for item in rng],
            "optimizer": encode(_settings(root.get("optimizer"))),
            **framework,
        },
    )


def _settings(optimizer: object) -> object:
    """An optimizer without its states, its masters and its param groups."""
    if isinstance(optimizer, dict):
        return {k: _settings(v) for k, v in optimizer.items() if k not in _STATES}
    if isinstance(optimizer, list):
        return [_settings(item) for item in optimizer]
    return optimizer


def _scaler(optimizer: object) -> object:
    """The loss scaler; chained optimizers have one each, and all of these say the same."""
    scalers = [
        encode(item["grad_scaler"])
        for item in optimizers_in(optimizer)
        if isinstance(item, Mapping) and "grad_scaler" in item
    ]
    return scalers[0] if scalers and all(item == scalers[0] for item in scalers) else None


def _oddities(
    folder: Path,
    root: Mapping[object, object],
    args: Arguments,
    vocabulary: int | None,
    *,
    has_optimizer: bool,
) -> Iterator[Diagnostic]:
    """What the names of folders say otherwise than their contents, or than the tracker; and what
    is not there.
    """
    yield from _of_folder(folder, root.get("iteration"))
    if not has_optimizer:
        yield Diagnostic(
            "no-optimizer",
            f"`{folder.name}` holds weights and no optimizer",
            "warning",
            notes=("a release, or a run with `--no-save-optim`, keeps none",),
        )
    rows, entries = args.integer("padded_vocab_size"), args.integer("vocab_size")
    if vocabulary is not None and rows is not None and rows > vocabulary:
        adds = (
            f", to which `{args.get('tokenizer_type')}` adds one" if vocabulary != entries else ""
        )
        yield Diagnostic(
            "padded-vocabulary",
            f"{rows - vocabulary} of {rows} rows of the vocabulary are padding",
            "warning",
            notes=(
                f"the arguments say `vocab_size={entries}`{adds}; the rows behind it are left out",
                "how many there are depends on tp, and they belong to no token",
            ),
        )


def _of_folder(folder: Path, iteration: object) -> Iterator[Diagnostic]:
    match = _ITERATION.match(folder.name)
    if match is None:
        return
    named = int(match.group(1))
    if isinstance(iteration, int) and iteration != named:
        yield Diagnostic(
            "other-iteration",
            f"`{folder.name}` holds iteration {iteration}",
            "warning",
            notes=("Megatron takes the number from the files, not from the folder's name",),
        )
    tracked = _tracked(folder.parent / TRACKER)
    if tracked is not None and tracked < named:
        yield Diagnostic(
            "untracked-iteration",
            f"iteration {named} is newer than {tracked}, which `{TRACKER}` names",
            "warning",
            notes=(
                "Megatron writes that file last: the save of this iteration may not have ended",
            ),
            helps=(f"compare with iteration {tracked}, the last that ended for certain",),
        )


def _tracked(tracker: Path) -> int | None:
    try:
        text = read_note(tracker)
    except (OSError, ReshardError):
        return None
    return int(text) if text.isdecimal() and text.isascii() else None
