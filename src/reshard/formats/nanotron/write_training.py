"""What nanotron wants to know besides tensors: step, samples, sizes of the model, schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reshard.errors import Diagnostic
from reshard.formats.described.groups import ONE_EACH, SHARED
from reshard.formats.described.slices import VERSION
from reshard.formats.nanotron import NAME
from reshard.formats.nanotron.stages import rows
from reshard.models.config_json import known_facts
from reshard.models.framework_keys import keys_of
from reshard.plan.arrangement import Arrangement
from reshard.plan.framework_config import framework_config
from reshard.plan.model_values import model_names
from reshard.plan.recut import CutTensor
from reshard.run.run import Group, Run


def facts(
    arrangement: Arrangement, sizes: Mapping[str, int], cut: Mapping[str, list[CutTensor]]
) -> Run:
    """The run as nanotron's files state it: a scheduler, if it is one of nanotron's, and what its
    JSON files say.

    Args:  cut: of every parameter, in the order of the model.
    """
    run = arrangement.catalog.training
    scheduler = run.scheduler if isinstance(run.scheduler, Mapping) and _own(arrangement) else None
    made = {
        "metadata": _metadata(arrangement, sizes),
        "model_config": _model_config(arrangement, rows(cut)),
    }
    state = {**made, **({} if scheduler is None else {"lr_scheduler": scheduler})}
    groups = (Group({k: v for k, v in g.items() if k != "param_names"}) for g in run.param_groups)
    return replace(run, state=state, param_groups=tuple(map(Group.of, groups)))


def _metadata(arrangement: Arrangement, sizes: Mapping[str, int]) -> dict[str, object]:
    """What `checkpoint_metadata.json` says: the source's own, at the new sizes."""
    own = _own(arrangement).get("metadata")
    base = dict(own) if isinstance(own, Mapping) else {}
    metas: dict[str, object] = {
        "consumed_train_samples": 0,
        "last_train_step": arrangement.catalog.training.iteration or 0,
        "consumed_tokens_total": 0,
        "last_stage_idx": None,
        "data_stages": [],
    }
    now = {"version": VERSION, "cp": 1, "tp": sizes["tp"], "dp": sizes["dp"]}
    return {"metas": metas, "custom_metas": None, **base, **now}


def _model_config(arrangement: Arrangement, vocab: int) -> dict[str, object]:
    """What `model_config.json` says: the source's own, or what is known of the model.

    Args:  vocab: rows of the embedding, padding included.
    """
    own = _own(arrangement).get("model_config")
    if isinstance(own, Mapping):
        base = dict(own)
    else:
        layout, values = arrangement.layout, arrangement.values
        base = framework_config(layout, values)
        assert layout.model is not None, "its names are those of a model"
        for name in model_names(layout.model):
            if name not in layout.config and values.get(name) is not None:
                base.setdefault(name, values[name])
        base.update(keys_of(NAME).config(known_facts(arrangement.catalog)).words)
    return {**base, "vocab_size": vocab}


def shares_groups(arrangement: Arrangement) -> bool:
    """Whether a source of nanotron's has the same few groups on every stage, as earlier ones do."""
    return _own(arrangement).get("groups", ONE_EACH) == SHARED


def training_warnings(arrangement: Arrangement, *, has_states: bool) -> tuple[Diagnostic, ...]:
    """What a run finds missing."""
    own = _own(arrangement)
    left = []
    if has_states and not arrangement.catalog.training.state.get("lr_scheduler"):
        left.append("the state of the learning rate scheduler")
    elif has_states and not own:
        left.append("the state of the learning rate scheduler, which is not one of nanotron's")
    if not own:
        left.append("how many samples and tokens were consumed, which begin at 0")
    if any(str(name).startswith("random/") for name in _objects(own)):
        left.append("random states, of which there is one a rank")
    if not left:
        return ()
    return (
        Diagnostic(
            "nanotron-left",
            "nanotron's folder lacks some of the state of the training",
            level="warning",
            notes=tuple(left),
            helps=("set `load_lr_scheduler: false` in the run's config where it is missing",),
        ),
    )


def _own(arrangement: Arrangement) -> Mapping[str, object]:
    """What nanotron itself said, if the source comes from it."""
    return arrangement.catalog.training.of(NAME)


def _objects(own: Mapping[str, object]) -> Mapping[str, object]:
    found = own.get("objects")
    return found if isinstance(found, Mapping) else {}
