"""Writes the folder that DeepSpeed itself loads as a universal checkpoint, at stages 1, 2, and 3.

Source: DeepSpeed 0.19.8 runtime/base_optimizer.py `load_hp_checkpoint_state_from_checkpoint_dir`,
runtime/zero/stage3.py `load_hp_checkpoint_state_from_checkpoint_dir_stage3`, checkpoint/
universal_checkpoint.py; docs/formats/deepspeed-writing.md says what each file holds.
"""

from __future__ import annotations

from collections.abc import Mapping

from reshard.dtypes import DType
from reshard.errors import Diagnostic, target_error
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
from reshard.formats.deepspeed.native_checks import (
    check_universal,
    listed_names,
    no_master,
    rank_state,
    weights_only,
)
from reshard.formats.deepspeed.native_experts import (
    NamedTensors,
    local_names,
    refuse_several_sizes,
)
from reshard.formats.deepspeed.resume import Resume, resume_of
from reshard.formats.deepspeed.tensor_keys import tensor_keys
from reshard.plan.arrangement import Arrangement
from reshard.plan.output import Output
from reshard.plan.target import Target
from reshard.run.states import EXP_AVG, EXP_AVG_SQ, STEP
from reshard.storage.kept import Decoder
from reshard.storage.numbers import Number
from reshard.storage.torch_output import TorchOutput

OPTIONS = ("ep", "tag")

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
    resume = resume_of(arrangement, Decoder(output.constant, inventory.extra_tensor(output)))
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
    dp_size = arrangement.mesh.get("dp", 1)
    output.add(f"{tag}/{MODEL.fill({'mp': 0})}", _model_states(resume, module, dp_size))
    output.add(f"{tag}/{MODEL_ZERO3.fill({'dp': 0, 'mp': 0})}", _model_states(resume, {}, dp_size))
    warnings = (
        _not_restored(inventory, tag),
        _differing(resume),
        _round_robin(resume),
        weights_only(inventory, "at stage 3 with `load_optimizer_states=False`"),
        _stage3_states(inventory),
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
    folder = f"{root}/{_folder_name(item.name)}"
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


def _folder_name(name: str) -> str:
    encoded = name.encode("utf-8", "replace")
    unfit = encoded.decode() != name or len(encoded) > _MAX_NAME or "/" in name or "\0" in name
    if unfit or name in ("", ".", "..", "optimizer_state.pt"):
        raise target_error(
            "deepspeed-name",
            f"the parameter `{name}` cannot be written, because its name cannot name a folder",
            notes=["DeepSpeed's universal form has a folder for every parameter"],
            helps=["convert to `universal`, or to `deepspeed`"],
        )
    return name


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


def _model_states(resume: Resume, module: Mapping[str, object], dp_size: int) -> dict[str, object]:
    return {
        "module": resume.module_state(module),
        "lr_scheduler": resume.lr_scheduler,
        **resume.model,
        **resume.counters,
        "dp_world_size": dp_size,
        "mp_world_size": 1,
        "ds_config": dict(resume.config),
        "ds_version": resume.version,
        **resume.client,
    }


# Warnings; None for what does not need one.


def _not_restored(inventory: Inventory, tag: str) -> Diagnostic | None:
    names = [whole.name for whole in inventory.unmanaged]
    if not names:
        return None
    return Diagnostic(
        "deepspeed-not-restored",
        f"DeepSpeed does not restore {len(names)} frozen parameters and buffers "
        "from a universal folder",
        "warning",
        notes=tuple(listed_names(names)),
        helps=(
            f"load `module` of {tag}/mp_rank_00_model_states.pt into the model with "
            "`strict=False` before `deepspeed.initialize`",
        ),
    )


def _differing(resume: Resume) -> Diagnostic | None:
    """Settings that stage 3 would make one for all groups, and which are left out for it."""
    _, differing = resume.common_settings()
    if not differing:
        return None
    listed = ", ".join(f"`{key}`" for key in differing)
    return Diagnostic(
        "deepspeed-group-settings",
        f"param groups differ in {listed}, which DeepSpeed restores at stages 1 and 2 alone",
        "warning",
        notes=("at stage 3 its loader sets one value for all groups, so they are left out there",),
        helps=("at stage 3, build the optimizer with the values that each group should have",),
    )


def _round_robin(resume: Resume) -> Diagnostic | None:
    if resume.zero.get("round_robin_gradients") is not True:
        return None
    return Diagnostic(
        "deepspeed-round-robin",
        "DeepSpeed misplaces the states of a universal folder in a run with "
        "`round_robin_gradients`",
        "warning",
        notes=(
            "the source's `ds_config` has it; the loader takes the order of parameters without it",
        ),
        helps=("set `round_robin_gradients: false` for the run that loads the folder",),
    )


def _stage3_states(inventory: Inventory) -> Diagnostic | None:
    """Optimizers with other states than Adam's, of which stage 3 does not know."""
    found = {state for name in inventory.trained for state in inventory.shaped_states(name)}
    if found <= {FP32, EXP_AVG, EXP_AVG_SQ} and len(found) in (1, 3):
        return None
    known = ", ".join(f"`{state}`" for state in sorted(found - {FP32}))
    return Diagnostic(
        "deepspeed-stage3-states",
        "DeepSpeed does not load these optimizer states at stage 3",
        "warning",
        notes=(
            f"the source has {known}",
            "at stage 3 its loader reads `exp_avg` and `exp_avg_sq`, both and no other",
        ),
        helps=("load it at stage 1 or 2, or convert to `deepspeed:zero=3`",),
    )
