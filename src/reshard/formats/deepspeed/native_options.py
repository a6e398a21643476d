"""What `--to deepspeed:zero=2,dp=4` says, with what it leaves out taken from the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.errors import target_error
from reshard.formats.deepspeed.experts import sharing_ranks
from reshard.formats.deepspeed.inventory import Inventory, find_tag
from reshard.formats.deepspeed.resume import Resume
from reshard.plan.arrangement import Arrangement
from reshard.plan.target import Target

_SIZES = ("dp", "tp", "pp", "ep")
OPTIONS = ("zero", *_SIZES, "dtype", "round_robin", "param_alignment", "sub_group_size", "tag")

SUB_GROUP_SIZE = 1_000_000_000
"""DeepSpeed's own `sub_group_size` where the configuration does not say."""

_DTYPES = {"fp32": DType.F32, "bf16": DType.BF16, "fp16": DType.F16}


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """A run of DeepSpeed, as far as its files depend on it.

    Args:  zero: stage, 1 to 3.  dp, tp, pp, ep: sizes; ep divides dp.
           dtype: of the weights that the model computes with; stored: the source's, None unknown.
           round_robin: parameters of a group lie in the order of `round_robin_gradients`.
           param_alignment: they are aligned to 16 bytes of `dtype`.
           data_first: neighbouring data-parallel ranks have the same experts.
           sub_group_size: elements of a rank's share after which stage 3 begins a new sub-group.
           tag: name of the step's folder.
    """

    zero: int
    dp: int
    tp: int
    pp: int
    ep: int
    dtype: DType
    stored: DType | None
    round_robin: bool
    param_alignment: bool
    data_first: bool
    sub_group_size: int
    tag: str

    @property
    def mesh(self) -> dict[str, int]:
        """The axes along which tensors are cut or copied."""
        return {"pp": self.pp, "tp": self.tp, "ep": self.ep}

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


def native_options(
    arrangement: Arrangement, target: Target, inventory: Inventory, resume: Resume
) -> NativeOptions:
    """The options of a target.

    Raises: ReshardError[unknown-option | bad-option].
    """
    target.reject_unknown(OPTIONS)
    stored = resume.dtype or inventory.weights_dtype()
    zero = target.integer("zero", resume.zero_stage or 1, least=0)
    if zero not in (1, 2, 3):
        why = "without ZeRO the optimizer's states are not named, so they are not written"
        raise target_error(
            "bad-option",
            f"option `zero` of target `{target.format}` is `{zero}`, not one of 1, 2, 3",
            notes=[why] if zero == 0 else [],
            helps=[f"write it as `{target.format}:zero=1`"],
        )
    known = {**arrangement.mesh, "ep": resume.ep or arrangement.mesh.get("ep", 1)}
    sizes = {axis: target.integer(axis, known.get(axis, 1)) or 1 for axis in _SIZES}
    if sizes["dp"] % sizes["ep"]:
        raise target_error(
            "bad-option",
            f"{sizes['dp']} data-parallel ranks cannot be {sizes['ep']} expert-parallel ones",
            notes=["every expert-parallel rank has as many data-parallel ranks"],
            helps=[f"choose a `dp` that is a multiple of ep={sizes['ep']}"],
        )
    # Stage 3 has neither of the two orders, and no more has BF16_Optimizer.
    is_plain = zero == 3 or (zero == 1 and _is_bf16_optimizer(resume.config))
    return NativeOptions(
        zero,
        sizes["dp"],
        sizes["tp"],
        sizes["pp"],
        sizes["ep"],
        _dtype(target, stored),
        stored,
        _flag(target, "round_robin", resume.zero, "round_robin_gradients") and not is_plain,
        _flag(target, "param_alignment", resume.zero, "parameter_alignment") and not is_plain,
        resume.config.get("use_data_before_expert_parallelism") is True,
        target.integer("sub_group_size", sub_group_size(resume.zero)) or SUB_GROUP_SIZE,
        find_tag(target, f"global_step{resume.counters['global_steps']}"),
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
