"""Settings that all ranks must have alike, and what they may have each for itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

from reshard.errors import Diagnostic
from reshard.formats.deepspeed.experts import FUSED
from reshard.formats.deepspeed.model_file import (
    MODEL_PLACES,
    OPTIMIZER_PLACES,
    ModelFile,
    differing,
    without,
)
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.optimizer_file import base_of
from reshard.formats.deepspeed.source import Source
from reshard.plan.agreement import agreed, disagreements
from reshard.storage.inert import Record
from reshard.storage.kept import Keeper, fingerprint

_COPIES = ("loss_scaler", "dynamic_loss_scale", "clip_grad")
"""Entries of an optimizer's state that are copies on every rank."""

_SETTINGS = frozenset(
    """
    lr initial_lr max_lr min_lr base_lr weight_decay decoupled_weight_decay eps betas beta1 beta2
    momentum base_momentum max_momentum momentum_decay dampening nesterov rho alpha amsgrad
    maximize bias_correction adam_w_mode use_muon ns_method moe name
    """.split()  # noqa: SIM905
)
"""Hyper-parameters; other entries of a param group may be what an optimizer adapts on each rank."""

_NOT_TOLD = ("overflow", "lr_scheduler", *FUSED)
"""What may differ: between steps, pipeline stages, and expert-parallel ranks."""

_MOST_COMPARED = 1 << 20
"""Bytes of a buffer; larger ones are not looked at."""
_SHOWN = 6

_OF_A_RANK = ("rank", "rng", "random", "device", "seed", "host", "pid", "time")
"""Parts of names of what every rank has for itself."""


def check_settings(source: Source) -> None:
    """Refuse ranks of one pipeline stage that have other hyper-parameters or another schedule.

    Raises: ReshardError[mixed-runs].
    """
    for stage in range(source.grid.pp):
        shards = [s for (_, mp), s in source.shards.items() if source.grid.stage(mp) == stage]
        if shards:
            copies = [(shard.file, _settings(shard.optimizer)) for shard in shards]
            agreed(copies, "settings of the optimizer")
        models = [m for (_, mp), m in source.models.items() if source.grid.stage(mp) == stage]
        key = "lr_scheduler"
        schedules = [(model.file, {key: _plain(model.root.mapping().get(key))}) for model in models]
        agreed(schedules, "learning rate schedules")


def _settings(optimizer: Node) -> dict[str, object]:
    entries = optimizer.mapping()
    base = base_of(optimizer)
    nodes = base.at("param_groups").items() if base is not None and base.has("param_groups") else ()
    groups = [
        {str(key): _plain(value) for key, value in group.mapping().items() if key in _SETTINGS}
        for group in nodes
    ]
    return {"param_groups": groups, **{key: _plain(entries.get(key)) for key in _COPIES}}


def differing_buffers(source: Source) -> tuple[Diagnostic, ...]:
    """A warning for buffers that differ between the data-parallel ranks of stage 3."""
    names: dict[str, ModelFile] = {}
    for rank, model in source.models.items():
        first = source.models[0, rank[1]]
        for name in model.buffer_names:
            one, other = first.module.get(name), model.module.get(name)
            if one is None or other is None or name in names:
                continue
            if one.nbytes <= _MOST_COMPARED and fingerprint(one) != fingerprint(other):
                names[name] = model
    if not names:
        return ()
    listed = [f"`{name}` in {model.file}" for name, model in list(names.items())[:_SHOWN]]
    what, which = f"{len(names)} buffers differ", "those of rank 0 are"
    if len(names) == 1:
        what, which = "1 buffer differs", "that of rank 0 is"
    headline = f"{what} between data-parallel ranks; {which} read"
    return (_ranks_differ(headline, (", ".join(listed),)),)


def per_rank(
    source: Source, keeper: Keeper
) -> tuple[dict[str, dict[str, object]], tuple[Diagnostic, ...]]:
    """By file, what it says otherwise than the first rank's, and a warning where few files do."""
    out: dict[str, dict[str, object]] = {}
    listed: dict[str, str] = {}

    def compare(file: str, first: Mapping[str, Node], own: Mapping[str, Node], name: str) -> None:
        keys = differing(first, own)
        if keys:
            out[file] = {
                key: keeper.keep(own[key].value, f"{name}.{key}", own[key].file)
                if key in own
                else {"$missing": True}
                for key in keys
            }
        for key in keys:
            sides = [("", {key: _plain(node)}) for node in (first.get(key), own.get(key))]
            for one in disagreements(sides, of_each=_NOT_TOLD):
                path = re.sub(r"\[\d+\]", "", one.path)
                if not any(part in path.lower() for part in _OF_A_RANK):
                    listed.setdefault(f"`{path}`", file)

    first = without(source.first.root, MODEL_PLACES)
    for (dp, mp), model in source.models.items():
        if model is not source.first:
            compare(model.file, first, without(model.root, MODEL_PLACES), f"rank.{dp}.{mp}")
    told = {rank: _optimizer_entries(shard.optimizer) for rank, shard in source.shards.items()}
    for (dp, mp), own in told.items():
        alike = told[0, source.grid.stage(mp) * source.grid.tp]
        groups = {"param_groups": alike["param_groups"]} if "param_groups" in alike else {}
        name = f"optimizer.rank.{dp}.{mp}"
        compare(source.shards[dp, mp].file, {**told[0, 0], **groups}, own, name)
    if not listed:
        return out, ()
    shown = [f"{entry} in {file}" for entry, file in list(listed.items())[:_SHOWN]]
    if len(listed) > _SHOWN:
        shown.append(f"and {len(listed) - _SHOWN} more")
    notes = (
        ", ".join(shown),
        "`universal` keeps what each of them says; other targets have what rank 0 says",
    )
    return out, (_ranks_differ("files of other ranks say otherwise than that of rank 0", notes),)


def _optimizer_entries(optimizer: Node) -> dict[str, Node]:
    """Everything in an optimizer's state that is not about where tensors are."""
    out = without(optimizer, OPTIMIZER_PLACES)
    base = base_of(optimizer)
    if base is not None and base.has("param_groups"):
        out["param_groups"] = base.at("param_groups")
    return out


def _ranks_differ(headline: str, notes: tuple[str, ...]) -> Diagnostic:
    return Diagnostic(
        "ranks-differ",
        headline,
        level="warning",
        notes=notes,
        helps=("check that the files are of one run, where the ranks should be alike",),
    )


def _plain(value: object) -> object:
    """A value as JSON, an object as what it has by name."""
    if isinstance(value, Node):
        return _plain(value.value)
    if isinstance(value, Record) and value.attributes:
        return {str(key): _plain(item) for key, item in value.attributes.items()}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return fingerprint(value)
