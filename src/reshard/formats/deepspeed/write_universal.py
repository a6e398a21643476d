"""Writes the folder that DeepSpeed itself loads as a universal checkpoint, at stages 1, 2, and 3.

Source: DeepSpeed 0.19.8 runtime/base_optimizer.py `load_hp_checkpoint_state_from_checkpoint_dir`,
runtime/zero/stage3.py `load_hp_checkpoint_state_from_checkpoint_dir_stage3`, checkpoint/
universal_checkpoint.py; docs/formats/deepspeed-writing.md says what each file holds.
"""

from __future__ import annotations

from collections.abc import Iterator

from reshard.algebra.term import Leaf, Product, Sum, Term, term_axes, term_size
from reshard.dtypes import DType
from reshard.errors import Diagnostic, ReshardError, target_error, warning
from reshard.formats.deepspeed.files import (
    LATEST_UNIVERSAL,
    MODEL,
    MODEL_ZERO3,
    OPTIMIZER_STATE,
    ZERO,
)
from reshard.formats.deepspeed.inventory import (
    FP32,
    Inventory,
    find_tag,
    whole_spec,
)
from reshard.formats.deepspeed.native_experts import (
    NamedTensors,
    local_names,
    refuse_several_sizes,
)
from reshard.formats.deepspeed.native_options import (
    MAX_GROUPS,
    check_universal,
    no_master,
    rank_state,
    weights_only,
)
from reshard.formats.deepspeed.resume import Resume
from reshard.plan.arrangement import Arrangement, Bound
from reshard.plan.names import listed_kinds
from reshard.plan.output import Output
from reshard.plan.target import Target
from reshard.run.states import EXP_AVG, EXP_AVG_SQ, STEP
from reshard.storage.inert import Record
from reshard.storage.kept import Decoder
from reshard.storage.numbers import Number
from reshard.storage.torch_output import TorchOutput

OPTIONS = ("ep", "tag")
SUBPARAMS = ("deepspeed.checkpoint.universal_checkpoint", "SubparamShape")

_MAX_NAME = 255  # bytes, of a folder on every file system


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  target: options `ep` (expert-parallel ranks of the run that will load the folder; matters
           for experts of `deepspeed.moe` alone) and `tag` (name of the folder inside).
    Raises: ReshardError[unknown-option | bad-option | deepspeed-tensor-cut | deepspeed-name |
            deepspeed-experts | deepspeed-steps | deepspeed-kept-state | deepspeed-universal-state |
            numbers-disagree].
    """
    target.reject_unknown(OPTIONS)
    output = TorchOutput()
    inventory = Inventory(arrangement)
    resume = Resume(arrangement, Decoder(output.constant, inventory.extra_tensor(output)))
    refuse_several_sizes(arrangement)
    inventory.check_numbers(resume.groups)
    check_universal(inventory, resume)
    ep_size = target.integer("ep", arrangement.mesh.get("ep", 1)) or 1
    tag = find_tag(target, f"global_step{resume.counters['global_steps']}_universal")
    step: Number | None = None
    for item in local_names(arrangement, inventory.trained, ep_size):
        number = _parameter(arrangement, inventory, item, output, f"{tag}/{ZERO}")
        step = step or number
    output.add(f"{tag}/{OPTIMIZER_STATE}", _optimizer_state(inventory, resume, step, output))
    module = {
        whole.name: output.tensor(whole_spec(whole, whole.dtype, whole.name))
        for whole in inventory.unmanaged
    }
    rank = {"dp": 0, "mp": 0}
    sizes = {"dp_world_size": arrangement.mesh.get("dp", 1), "mp_world_size": 1}
    rest = resume.model_entries(sizes, dict(resume.config))
    for kind, weights in ((MODEL, module), (MODEL_ZERO3, {})):
        content = {"module": resume.module_state(weights), **rest}
        output.add(f"{tag}/{kind.fill(rank)}", content)
    warnings = (
        *_warnings(inventory, resume, tag),
        no_master(inventory),
        rank_state(resume, tuple(resume.ranks)),
        resume.warning(),
    )
    return inventory.planned(output, (LATEST_UNIVERSAL, tag), warnings)


def _parameter(
    arrangement: Arrangement,
    inventory: Inventory,
    item: NamedTensors,
    output: TorchOutput,
    root: str,
) -> Number | None:
    """The folder of one parameter; returns its step."""
    first = item.names[0]
    _check_name(item.name)
    folder = f"{root}/{item.name}"
    keys = item.keys(inventory.any_shape(first))
    if keys is None:
        keys = tensor_keys(arrangement, arrangement.bound[first])
    for state, source in inventory.shaped_states(first).items():
        wholes = [inventory.whole(name, source) for name in item.names]
        dtype = DType.F32 if state == FP32 else wholes[0].dtype
        spec = item.spec(wholes, dtype, f"{item.name} {state}")
        output.add(f"{folder}/{state}.pt", {"param": output.tensor(spec), **keys})
    for name in item.names:
        inventory.derive_weights(name)
    number = inventory.numbers.get(STEP, {}).get(first)
    if number is not None:
        output.add(f"{folder}/step.pt", inventory.number(number, output))
        for name in item.names[1:]:
            inventory.fold(name, STEP, "one for all experts")
    return number


def _check_name(name: str) -> None:
    encoded = name.encode("utf-8", "replace")
    unfit = encoded.decode() != name or len(encoded) > _MAX_NAME or "/" in name or "\0" in name
    if unfit or name in ("", ".", "..", "optimizer_state.pt"):
        raise target_error(
            "deepspeed-name",
            f"the parameter `{name}` cannot be written, because its name cannot name a folder",
            notes=["DeepSpeed's universal form has a folder for every parameter"],
            helps=["convert to `universal`, or to `deepspeed`"],
        )


def _optimizer_state(
    inventory: Inventory, resume: Resume, step: Number | None, output: TorchOutput
) -> object:
    common, _ = resume.common_settings()
    value = 0 if step is None else inventory.number(step, output)
    # One entry for each param group of the run that loads: a group without one stays as it is.
    # Where the source knows no groups, none of the target's can be more than there are parameters.
    groups = [group.settings for group in resume.groups] or [{} for _ in inventory.trained]
    return {
        "ds_version": resume.version,
        **resume.scaling(same=DType.F16 in (resume.dtype, inventory.weights_dtype())),
        **resume.optimizer_other,
        "param_groups": [{**settings, "params": []} for settings in groups],
        "optimizer_state_dict": {
            "state": {0: {"step": value}},
            "param_groups": [{**common, "params": []}],
        },
    }


# What a file says besides `param`: how the loader cuts a whole tensor over ranks.


def tensor_keys(arrangement: Arrangement, bound: Bound) -> dict[str, object]:
    """The keys that tell DeepSpeed's loader how to cut a whole tensor.

    Raises: ReshardError[deepspeed-tensor-cut] when the loader has no way to make that cut.
    Source: DeepSpeed 0.19.8 checkpoint/universal_checkpoint.py `load_hp_checkpoint_state`.
    """
    lead = bound.dims[0] if bound.dims else None
    if isinstance(lead, Leaf) and "ep" in bound.cuts[lead.axis].over:
        return {"is_expert_param": True, "ep_num_experts": bound.cuts[lead.axis].size}
    cut = {axis for axis, item in bound.cuts.items() if "tp" in item.over}
    factors = [
        (dim, position, factor)
        for dim, term in enumerate(bound.dims)
        for position, factor in enumerate(_factors(term))
    ]
    places = [index for index, (_, _, term) in enumerate(factors) if cut & set(term_axes(term))]
    if not places:
        return {}
    if len(places) > 1:
        raise _unlike(bound, "it is cut along two of its axes")
    dim, position, factor = factors[places[0]]
    if _is_padded(arrangement, bound, cut):
        if dim or position or not isinstance(factor, Leaf):
            raise _unlike(bound, "it is padded along another axis than the first")
        return {"cat_dim": 0, "vocab_tensor": True}
    if isinstance(factor, Leaf) and position == 0:
        return {"cat_dim": dim}
    parts = [part.term for part in factor.parts] if isinstance(factor, Sum) else [factor]
    if not all(_leads(part, cut) for part in parts):
        raise _unlike(bound, "a part of it is not cut, or not along its slowest axis")
    extents = bound.whole_extents()
    sizes = tuple(term_size(part, extents) for part in parts)
    if position == 0 and len(set(sizes)) == 1:
        return {"cat_dim": dim, "param_n_sub_params": len(sizes)}
    view: list[object] = [term_size(item, extents) for _, _, item in factors]
    view[places[0]] = sizes
    fields = {"patterns": [], "shape": tuple(view), "partition_dim": places[0]}
    return {"sub_param_shape": Record(*SUBPARAMS, (), "newobj", [fields])}


def _factors(term: Term) -> Iterator[Term]:
    """The factors of one dimension, the slowest first."""
    if isinstance(term, Product):
        for inner in term.terms:
            yield from _factors(inner)
    else:
        yield term


def _leads(term: Term, cut: set[str]) -> bool:
    """Whether equal blocks of the whole term are what the ranks hold."""
    if isinstance(term, Leaf):
        return term.axis in cut
    if isinstance(term, Product):
        rest = {axis for inner in term.terms[1:] for axis in term_axes(inner)}
        return bool(term.terms) and _leads(term.terms[0], cut) and not rest & cut
    return False


def _is_padded(arrangement: Arrangement, bound: Bound, cut: set[str]) -> bool:
    rule = arrangement.layout.rules[bound.rule]
    splits = (rule.splits.get(axis) or arrangement.layout.places.get(axis) for axis in cut)
    return any(bound.cuts[axis].stored != bound.cuts[axis].size for axis in cut) or any(
        split is not None and (split.pad_to is not None or split.truncated_to is not None)
        for split in splits
    )


def _unlike(bound: Bound, why: str) -> ReshardError:
    return target_error(
        "deepspeed-tensor-cut",
        f"DeepSpeed cannot cut `{bound.name}` over tensor-parallel ranks as its layout says",
        notes=[
            why,
            "its loader cuts one axis in equal blocks, or every part of a sum in equal blocks",
        ],
        helps=["convert to `universal`, or to `deepspeed` with the same `tp`"],
    )


# Warnings.


def _warnings(inventory: Inventory, resume: Resume, tag: str) -> Iterator[Diagnostic | None]:
    """What the loader does not restore, or does not restore at each stage."""
    names = [whole.name for whole in inventory.unmanaged]
    if names:
        yield warning(
            "deepspeed-not-restored",
            f"DeepSpeed does not restore {len(names)} frozen parameters and buffers "
            "from a universal folder",
            *listed_kinds(names)[:MAX_GROUPS],
            helps=[
                f"load `module` of {tag}/mp_rank_00_model_states.pt into the model with "
                "`strict=False` before `deepspeed.initialize`",
            ],
        )
    _, differing = resume.common_settings()
    if differing:
        listed = ", ".join(f"`{key}`" for key in differing)
        yield warning(
            "deepspeed-group-settings",
            f"param groups differ in {listed}, which DeepSpeed restores at stages 1 and 2 alone",
            "at stage 3 its loader sets one value for all groups, so they are left out there",
            helps=["at stage 3, build the optimizer with the values that each group should have"],
        )
    if resume.zero.get("round_robin_gradients") is True:
        yield warning(
            "deepspeed-round-robin",
            "DeepSpeed misplaces the states of a universal folder in a run with "
            "`round_robin_gradients`",
            "the source's `ds_config` has it; the loader takes the order of parameters without it",
            helps=["set `round_robin_gradients: false` for the run that loads the folder"],
        )
    yield weights_only(inventory, "at stage 3 with `load_optimizer_states=False`")
    states = {state for name in inventory.trained for state in inventory.shaped_states(name)}
    if not states <= {FP32, EXP_AVG, EXP_AVG_SQ} or len(states) not in (1, 3):
        yield warning(
            "deepspeed-stage3-states",
            "DeepSpeed does not load these optimizer states at stage 3",
            f"the source has {', '.join(f'`{state}`' for state in sorted(states - {FP32}))}",
            "at stage 3 its loader reads `exp_avg` and `exp_avg_sq`, both and no other",
            helps=["load it at stage 1 or 2, or convert to `deepspeed:zero=3`"],
        )
