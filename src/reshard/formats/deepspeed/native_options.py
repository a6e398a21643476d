"""What `--to deepspeed:zero=2,dp=4` asks for, what it cannot be made of, and what its loader will
not restore.

What the target leaves out is taken from the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.dtypes import DType
from reshard.errors import Diagnostic, ReshardError, target_error, warning
from reshard.formats.deepspeed.experts import sharing_ranks
from reshard.formats.deepspeed.inventory import Inventory, find_tag
from reshard.formats.deepspeed.resume import Resume
from reshard.plan.arrangement import Arrangement
from reshard.plan.names import listed_kinds
from reshard.plan.target import Target
from reshard.run.states import MASTER, PARAM, STEP

_SIZES = ("dp", "tp", "pp", "ep")
OPTIONS = ("zero", *_SIZES, "dtype", "round_robin", "param_alignment", "sub_group_size", "tag")

SUB_GROUP_SIZE = 1_000_000_000
"""DeepSpeed's own `sub_group_size` where the configuration does not say."""

_DTYPES = {"fp32": DType.F32, "bf16": DType.BF16, "fp16": DType.F16}


class NativeOptions:
    """A run of DeepSpeed, as far as its files depend on it.

    Raises: ReshardError[unknown-option | bad-option].
    """

    def __init__(
        self, arrangement: Arrangement, target: Target, inventory: Inventory, resume: Resume
    ) -> None:
        target.reject_unknown(OPTIONS)
        known = {**arrangement.mesh, "ep": resume.ep or arrangement.mesh.get("ep", 1)}
        sizes = {axis: target.integer(axis, known.get(axis, 1)) or 1 for axis in _SIZES}
        self.zero = _zero(target, resume)
        self.dp, self.tp, self.pp, self.ep = sizes.values()
        if self.dp % self.ep:
            raise target_error(
                "bad-option",
                f"{self.dp} data-parallel ranks cannot be {self.ep} expert-parallel ones",
                notes=["every expert-parallel rank has as many data-parallel ranks"],
                helps=[f"choose a `dp` that is a multiple of ep={self.ep}"],
            )
        self.stored = resume.dtype or inventory.weights_dtype()
        """What the weights of the source are that its model computes with; None if unknown."""
        self.dtype = _dtype(target, self.stored)
        """Of the weights that the model computes with."""
        # Stage 3 has neither of the two orders, and no more has BF16_Optimizer.
        is_plain = self.zero == 3 or (self.zero == 1 and _is_bf16_optimizer(resume.config))
        name = "round_robin_gradients"
        self.round_robin = _flag(target, "round_robin", resume.zero, name) and not is_plain
        name = "parameter_alignment"
        self.param_alignment = _flag(target, "param_alignment", resume.zero, name) and not is_plain
        """Parameters are aligned to 16 bytes of `dtype`."""
        self.data_first = resume.config.get("use_data_before_expert_parallelism") is True
        """Neighbouring data-parallel ranks have the same experts."""
        size = target.integer("sub_group_size", sub_group_size(resume.zero))
        self.sub_group_size = size or SUB_GROUP_SIZE
        """Elements of a rank's share after which stage 3 begins a new sub-group."""
        self.tag = find_tag(target, f"global_step{resume.counters['global_steps']}")

    @property
    def mesh(self) -> dict[str, int]:
        """The axes along which tensors are cut or copied."""
        return {"pp": self.pp, "tp": self.tp, "ep": self.ep}

    @property
    def sizes(self) -> dict[str, object]:
        """The same as a model file states it."""
        return {
            "dp_world_size": self.dp,
            "mp_world_size": self.pp * self.tp,
            "checkpoint_parallel_dimensions": {"pp_degree": self.pp, "tp_degree": self.tp},
        }

    @property
    def is_same_type(self) -> bool:
        """Whether the model computes with the type that it has in the source."""
        return self.dtype is self.stored

    @property
    def prefix(self) -> str:
        """What the names of optimizer files begin with."""
        return "bf16_" if self.dtype is DType.BF16 else ""

    @property
    def sharing(self) -> list[range]:
        """By expert-parallel rank, the data-parallel ranks that have its experts."""
        return sharing_ranks(self.dp, self.ep, data_first=self.data_first)

    def ep_rank(self, dp_rank: int) -> int:
        """The expert-parallel rank of a data-parallel one."""
        return dp_rank // (self.dp // self.ep) if self.data_first else dp_rank % self.ep

    def config(self, resume: Resume) -> dict[str, object]:
        """The source's `ds_config`, with what these files are for."""
        zero = {**resume.zero, "stage": self.zero}
        known = {
            "round_robin_gradients": self.round_robin,
            "parameter_alignment": self.param_alignment,
            "elastic_checkpoint": False,
        }
        zero |= {key: value for key, value in known.items() if value or key in zero}
        if self.zero == 3 and (self.sub_group_size != SUB_GROUP_SIZE or "sub_group_size" in zero):
            zero["sub_group_size"] = self.sub_group_size
        config = {**resume.config, "zero_optimization": zero}
        for key, dtype in _DTYPES.items() if not self.is_same_type else ():
            if key != "fp32" and (key in config or dtype is self.dtype):
                config[key] = {"enabled": dtype is self.dtype}
        return config


def _zero(target: Target, resume: Resume) -> int:
    zero = target.integer("zero", resume.zero_stage or 1, least=0)
    if zero in (1, 2, 3):
        return zero
    why = "without ZeRO the optimizer's states are not named, so they are not written"
    raise target_error(
        "bad-option",
        f"option `zero` of target `{target.format}` is `{zero}`, not one of 1, 2, 3",
        notes=[why] if zero == 0 else [],
        helps=[f"write it as `{target.format}:zero=1`"],
    )


def _is_bf16_optimizer(config: Mapping[str, object]) -> bool:
    """Whether stage 1 runs with DeepSpeed's `BF16_Optimizer`, which lays buffers out plainly."""
    types, bf16 = config.get("data_types"), config.get("bf16")
    return (
        isinstance(bf16, dict)
        and bf16.get("enabled") is True
        and isinstance(types, dict)
        and types.get("grad_accum_dtype") in ("fp32", "float32")
    )


def _dtype(target: Target, stored: DType | None) -> DType:
    text = target.options.get("dtype")
    if text is None:
        return stored or DType.F32
    if text not in _DTYPES:
        raise target_error(
            "bad-option",
            f"option `dtype` of target `{target.format}` is `{text}`",
            notes=[f"it is one of {', '.join(f'`{name}`' for name in _DTYPES)}"],
        )
    return _DTYPES[text]


def _flag(target: Target, key: str, settings: Mapping[str, object], name: str) -> bool:
    text = target.options.get(key)
    if text is None:
        return settings.get(name) is True
    if text not in ("0", "1"):
        raise target_error(
            "bad-option",
            f"option `{key}` of target `{target.format}` is `{text}`, not 0 or 1",
            helps=[f"write 1 if the run that loads has `{name}` in its configuration"],
        )
    return text == "1"


def sub_group_size(settings: Mapping[str, object]) -> int:
    """What the configuration says, or DeepSpeed's own."""
    value = settings.get("sub_group_size")
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1:
        return int(value)
    return SUB_GROUP_SIZE


# What DeepSpeed's files cannot be made of.

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
            "the source does not record the param groups of its optimizer",
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
            "the source does not record the hyper-parameters of its optimizer",
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
            "a rank keeps there values of its partition in the source, not of parameters",
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
        "what differs between the files of ranks is not written",
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
