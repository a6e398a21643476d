"""What a native folder cannot be made of, and what its loader will not restore."""

from __future__ import annotations

from collections.abc import Sequence

from reshard.dtypes import DType
from reshard.errors import Diagnostic, target_error
from reshard.formats.deepspeed.inventory import Inventory
from reshard.formats.deepspeed.native_options import SUB_GROUP_SIZE, NativeOptions
from reshard.formats.deepspeed.native_pipeline import check_pipeline
from reshard.formats.deepspeed.resume import Resume
from reshard.plan.names import group_names, quantity

MAX_GROUPS = 8


def check_native(inventory: Inventory, resume: Resume, options: NativeOptions) -> None:
    """Refuse what would have to be guessed.

    Raises: ReshardError[deepspeed-no-param-groups | deepspeed-param-groups |
            deepspeed-no-settings | deepspeed-no-scaler | deepspeed-steps |
            deepspeed-pipeline-stage].
    """
    if not resume.groups:
        raise target_error(
            "deepspeed-no-param-groups",
            "the source does not tell the param groups of its optimizer",
            notes=["DeepSpeed's own files hold all parameters of a group in one buffer, in order"],
            helps=["convert to `deepspeed-universal`, which has every parameter by its name"],
        )
    _check_names(inventory, resume)
    if not resume.has_settings:
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
    if options.zero == 3 and options.dtype is DType.F16:
        _check_scaler(resume, options)
    inventory.check_steps(resume.groups)
    check_pipeline(resume, options)


def _check_scaler(resume: Resume, options: NativeOptions) -> None:
    if "loss_scaler" in resume.scaling(same=options.dtype is options.stored):
        return
    raise target_error(
        "deepspeed-no-scaler",
        "the source has no loss scaler for a run of fp16",
        notes=["loading at ZeRO stage 3 replaces the one that the run has configured"],
        helps=["choose `zero=1` or `zero=2`, or convert to `deepspeed-universal`"],
    )


def _check_names(inventory: Inventory, resume: Resume) -> None:
    grouped = {name for group in resume.groups for name in group.params}
    trained = set(inventory.trained)
    alone = [name for name in inventory.trained if name not in grouped]
    absent = [name for group in resume.groups for name in group.params if name not in trained]
    if not alone and not absent:
        return
    notes = [f"`{name}`{quantity(count)} is in no group" for name, count in _shown(alone)]
    notes += [f"`{name}`{quantity(count)} is not stored" for name, count in _shown(absent)]
    raise target_error(
        "deepspeed-param-groups",
        "the optimizer's param groups are not of the parameters that are stored",
        notes=notes,
        helps=["if the tensors were renamed, convert with their own names"],
    )


def _shown(names: Sequence[str]) -> list[tuple[str, int]]:
    return group_names(names)[:MAX_GROUPS] if names else []


def native_warnings(
    inventory: Inventory, resume: Resume, options: NativeOptions, unused: Sequence[str]
) -> tuple[Diagnostic, ...]:
    """What is to be known before a run loads the folder.

    Args:  unused: files of the source with entries of their own that no target file has.
    """
    return (
        *resume.warning(),
        *weights_only(inventory),
        *no_master(inventory),
        *_needed_settings(options),
        *_unstored(resume, options),
        *rank_state(resume, unused),
    )


def weights_only(inventory: Inventory, condition: str = "") -> tuple[Diagnostic, ...]:
    """That there are no optimizer states.

    Args:  condition: how the folder must be loaded then.
    """
    if any(set(inventory.states[name]) - {"param", "master"} for name in inventory.trained):
        return ()
    return (
        Diagnostic(
            "deepspeed-no-states",
            "the source has no optimizer states, so weights alone are written",
            "warning",
            notes=("the optimizer starts anew",),
            helps=(f"load it {condition}",) if condition else (),
        ),
    )


def no_master(inventory: Inventory) -> tuple[Diagnostic, ...]:
    """That master weights are made of weights with fewer bits."""
    names = [
        name
        for name in inventory.trained
        if "master" not in inventory.states[name]
        and inventory.states[name]["param"].dtype not in (DType.F32, DType.F64)
    ]
    if not names:
        return ()
    return (
        Diagnostic(
            "deepspeed-no-master",
            f"{len(names)} parameters have no fp32 master weights; they are made of "
            f"{inventory.states[names[0]]['param'].dtype}",
            "warning",
            notes=tuple(f"`{name}`{quantity(count)}" for name, count in _shown(names)),
            helps=("if the run that made them had master weights, convert its own checkpoint",),
        ),
    )


def rank_state(resume: Resume, files: Sequence[str]) -> tuple[Diagnostic, ...]:
    """That some ranks' own state is lost, and optimizer states that cannot be cut."""
    out = []
    keys = list(dict.fromkeys(key for file in files for key in resume.ranks[file]))
    if keys:
        out.append(
            Diagnostic(
                "deepspeed-rank-state",
                "what files of single ranks say for themselves is not written",
                "warning",
                notes=(
                    f"{', '.join(f'`{key}`' for key in keys[:MAX_GROUPS])} in {files[0]}",
                    *((f"and {len(files) - 1} more files",) if len(files) > 1 else ()),
                    "the first rank's is written for all",
                ),
                helps=("a `universal` checkpoint keeps it",),
            )
        )
    if resume.kept:
        out.append(
            Diagnostic(
                "deepspeed-kept-state",
                "optimizer states that cannot be cut anew are not written",
                "warning",
                notes=(f"first found in {resume.kept[0]}",),
                helps=("a `universal` checkpoint keeps them as found",),
            )
        )
    return tuple(out)


def _unstored(resume: Resume, options: NativeOptions) -> tuple[Diagnostic, ...]:
    names = resume.unstored
    if not names or options.zero == 3 or resume.pipeline is not None:
        return ()
    return (
        Diagnostic(
            "deepspeed-unstored-name",
            f"{len(names)} names of the module are not written: nothing tells whose they are",
            "warning",
            notes=(
                *(f"`{name}`{quantity(count)}" for name, count in _shown(names)),
                "a checkpoint of stage 3 lists them without any data, as second names of others",
            ),
            helps=("load it with `engine.load_checkpoint(..., load_module_strict=False)`",),
        ),
    )


def _needed_settings(options: NativeOptions) -> tuple[Diagnostic, ...]:
    needed = {}
    if options.round_robin:
        needed["`round_robin_gradients: true`"] = "`round_robin=0`"
    if options.param_alignment:
        needed["`parameter_alignment: true`"] = "`param_alignment=0`"
    if options.zero == 3 and options.sub_group_size != SUB_GROUP_SIZE:
        needed[f"`sub_group_size: {options.sub_group_size}`"] = f"`sub_group_size={SUB_GROUP_SIZE}`"
    if not needed:
        return ()
    return (
        Diagnostic(
            "deepspeed-needs-setting",
            f"the folder loads only where `zero_optimization` has {' and '.join(needed)}",
            "warning",
            notes=("it is so in the source's `ds_config`, or the target asks for it",),
            helps=(f"for a run without, add {' and '.join(needed.values())} to the target",),
        ),
    )
