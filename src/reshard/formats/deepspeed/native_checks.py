"""What DeepSpeed's files cannot be made of, and what their loader will not restore."""

from __future__ import annotations

from collections.abc import Sequence

from reshard.dtypes import DType
from reshard.errors import Diagnostic, ReshardError, target_error
from reshard.formats.deepspeed.inventory import Inventory
from reshard.formats.deepspeed.native_options import SUB_GROUP_SIZE, NativeOptions, sub_group_size
from reshard.formats.deepspeed.resume import Resume
from reshard.plan.names import listed_kinds
from reshard.run.states import MASTER, PARAM, STEP

MAX_GROUPS = 8


def check_native(inventory: Inventory, resume: Resume, options: NativeOptions) -> None:
    """Refuse what would have to be guessed.

    Raises: ReshardError[deepspeed-no-param-groups | deepspeed-param-groups |
            deepspeed-no-settings | deepspeed-no-scaler | deepspeed-steps |
            deepspeed-pipeline-stage | deepspeed-kept-state].
    Source: DeepSpeed 0.19.8 runtime/pipe/engine.py `PipelineEngine.__init__`.
    """
    if not resume.groups:
        raise target_error(
            "deepspeed-no-param-groups",
            "the source does not tell the param groups of its optimizer",
            notes=["DeepSpeed's own files hold all parameters of a group in one buffer, in order"],
            helps=["convert to `deepspeed-universal`, which has every parameter by its name"],
        )
    grouped = dict.fromkeys(name for group in resume.groups for name in group.members)
    alone = listed_kinds(name for name in inventory.trained if name not in grouped)
    absent = listed_kinds(name for name in grouped if name not in set(inventory.trained))
    if alone or absent:
        raise target_error(
            "deepspeed-param-groups",
            "the optimizer's param groups are not of the parameters that are stored",
            notes=[
                *(f"{item} is in no group" for item in alone[:MAX_GROUPS]),
                *(f"{item} is not stored" for item in absent[:MAX_GROUPS]),
            ],
            helps=["if the tensors were renamed, convert with their own names"],
        )
    if not any(group.settings for group in resume.groups):
        raise target_error(
            "deepspeed-no-settings",
            "the source does not tell the hyper-parameters of its optimizer",
            notes=[
                "loading DeepSpeed's own files replaces those of the run, "
                "which cannot train without",
                "elastic checkpoints (`elastic_checkpoint: true`) do not hold them",
            ],
            helps=["convert to `deepspeed-universal`, which leaves those of the run in place"],
        )
    needs_scaler = options.zero == 3 and options.dtype is DType.F16
    if needs_scaler and "loss_scaler" not in resume.scaling(same=options.is_same_type):
        raise target_error(
            "deepspeed-no-scaler",
            "the source has no loss scaler for a run of fp16",
            notes=["loading at ZeRO stage 3 replaces the one that the run has configured"],
            helps=["choose `zero=1` or `zero=2`, or convert to `deepspeed-universal`"],
        )
    inventory.check_numbers(resume.groups)
    if resume.pipeline is not None and options.zero > 1:
        raise target_error(
            "deepspeed-pipeline-stage",
            f"DeepSpeed does not run a pipeline with ZeRO stage {options.zero}",
            notes=[f"the source is a pipeline of {len(resume.pipeline)} layers"],
            helps=["choose `zero=1`"],
        )
    if resume.kept and not _same_partition(resume, options):
        wanted = f"`deepspeed:zero={resume.zero_stage},dp={resume.mesh.get('dp', 1)}`"
        raise _kept_state(inventory, resume, wanted if resume.zero_stage in (1, 2, 3) else "")


def check_universal(inventory: Inventory, resume: Resume) -> None:
    """Refuse states that DeepSpeed cannot load from its universal form.

    Every file but `step.pt` is a tensor of which each rank takes its own elements.

    Source: DeepSpeed 0.19.8 runtime/base_optimizer.py
    `load_hp_checkpoint_state_from_checkpoint_dir`.
    Raises: ReshardError[deepspeed-kept-state | deepspeed-universal-state].
    """
    if resume.kept:
        raise _kept_state(inventory, resume, "")
    others = [state for state in inventory.numbers if state != STEP]
    why = "one number per parameter, of which it has none"
    if not others and any(
        "momentum_buffer" in inventory.states.get(name, {})
        for group in resume.groups
        if group.settings.get("use_muon") is True
        for name in group.members
    ):
        others = ["momentum_buffer"]
        why = "Muon keeps it of whole parameters, and the loader gives each rank its elements alone"
    if not others:
        return
    listed = ", ".join(f"`{state}`" for state in others)
    raise target_error(
        "deepspeed-universal-state",
        f"DeepSpeed does not load optimizer {'state' if len(others) == 1 else 'states'} {listed} "
        "from its universal form",
        notes=[why],
        helps=[
            "convert to `deepspeed:zero=...,dp=...` for the run that goes on",
            f"or leave {listed} out: {_states_option(inventory, others)}",
        ],
    )


def _kept_state(inventory: Inventory, resume: Resume, able: str) -> ReshardError:
    """The error for states of partitions.  Args:  able: a target that has the same ones."""
    names = resume.kept_names
    listed = ", ".join(f"`{name}`" for name in names)
    helps = [f"convert to {able}, where every rank finds its own again"] if able else []
    return target_error(
        "deepspeed-kept-state",
        f"optimizer {'state' if len(names) == 1 else 'states'} {listed} cannot be carried to this "
        "target",
        notes=[
            "what a rank keeps there is of its own partition of the source, not of parameters",
            f"first found in {next(iter(resume.kept))}",
        ],
        helps=[*helps, f"leave {listed} out: {_states_option(inventory, names)}"],
    )


def _states_option(inventory: Inventory, without: Sequence[str]) -> str:
    """The option that asks for all other states."""
    shaped = (state for states in inventory.states.values() for state in states)
    kinds = dict.fromkeys((*shaped, *inventory.numbers))
    return f"`--states {','.join(kind for kind in kinds if kind not in without)}`"


def _same_partition(resume: Resume, options: NativeOptions) -> bool:
    """Whether every rank of the target has the partition that it had in the source."""
    sizes = {"dp": options.dp, "tp": options.tp, "pp": options.pp, "ep": options.ep}
    alike = {
        "round_robin_gradients": options.round_robin,
        "parameter_alignment": options.param_alignment,
    }
    return (
        all(resume.mesh.get(axis, 1) == size for axis, size in sizes.items())
        and {resume.zero_stage, options.zero} in ({1}, {2}, {1, 2}, {3})
        and (options.zero < 3 or options.sub_group_size == sub_group_size(resume.zero))
        and all((resume.zero.get(key) is True) == value for key, value in alike.items())
    )


# Warnings; None for what does not need one.


def warning(code: str, headline: str, *notes: str, helps: Sequence[str] = ()) -> Diagnostic:
    """A warning of a target."""
    return Diagnostic(code, headline, "warning", notes=notes, helps=tuple(helps))


def weights_only(inventory: Inventory, condition: str = "") -> Diagnostic | None:
    """That there are no optimizer states.

    Args:  condition: how the folder must be loaded then.
    """
    if any(set(inventory.states[name]) - {PARAM, MASTER} for name in inventory.trained):
        return None
    return warning(
        "deepspeed-no-states",
        "there are no optimizer states to write, so weights alone are written",
        "the optimizer starts anew",
        helps=[f"load it {condition}"] if condition else [],
    )


def no_master(inventory: Inventory) -> Diagnostic | None:
    """That master weights are made of weights with fewer bits."""
    full = (DType.F32, DType.F64)
    weights = {
        n: inventory.states[n] for n in inventory.trained if MASTER not in inventory.states[n]
    }
    narrow = {n: own[PARAM].dtype for n, own in weights.items() if own[PARAM].dtype not in full}
    if not narrow:
        return None
    return warning(
        "deepspeed-no-master",
        f"{len(narrow)} parameters have no fp32 master weights; they are made of "
        f"{next(iter(narrow.values()))}",
        *listed_kinds(narrow)[:MAX_GROUPS],
        helps=["if the run that made them had master weights, convert its own checkpoint"],
    )


def rank_state(resume: Resume, files: Sequence[str]) -> Diagnostic | None:
    """That some ranks' own state is lost.

    Args:  files: of the source, with entries of their own that no target file has.
    """
    keys = list(dict.fromkeys(f"`{key}`" for file in files for key in resume.ranks[file]))
    if not keys:
        return None
    return warning(
        "deepspeed-rank-state",
        "what files of single ranks say for themselves is not written",
        f"{', '.join(keys[:MAX_GROUPS])} in {files[0]}",
        *([f"and {len(files) - 1} more files"] if len(files) > 1 else []),
        "the first rank's is written for all",
        helps=["a `universal` checkpoint keeps it"],
    )


def unstored_names(resume: Resume, options: NativeOptions) -> Diagnostic | None:
    """That names of the module are written nowhere."""
    names = resume.unstored
    if not names or options.zero == 3 or resume.pipeline is not None:
        return None
    return warning(
        "deepspeed-unstored-name",
        f"{len(names)} names of the module are not written: no file of the source holds them",
        *listed_kinds(names)[:MAX_GROUPS],
        "a checkpoint of stage 3 lists them without any data: parameters in no param "
        "group, or second names of others",
        helps=["load it with `engine.load_checkpoint(..., load_module_strict=False)`"],
    )


def needed_settings(options: NativeOptions) -> Diagnostic | None:
    """What the configuration of the run that loads must have."""
    needed = {}
    if options.round_robin:
        needed["`round_robin_gradients: true`"] = "`round_robin=0`"
    if options.param_alignment:
        needed["`parameter_alignment: true`"] = "`param_alignment=0`"
    if options.zero == 3 and options.sub_group_size != SUB_GROUP_SIZE:
        needed[f"`sub_group_size: {options.sub_group_size}`"] = f"`sub_group_size={SUB_GROUP_SIZE}`"
    if not needed:
        return None
    return warning(
        "deepspeed-needs-setting",
        f"the folder loads only where `zero_optimization` has {' and '.join(needed)}",
        "it is so in the source's `ds_config`, or the target asks for it",
        helps=[f"for a run without, add {' and '.join(needed.values())} to the target"],
    )
