"""What a run resumes with besides tensors, as the source tells it or as defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from reshard.dtypes import DType
from reshard.errors import Diagnostic
from reshard.plan.arrangement import Arrangement
from reshard.storage.inert import Record
from reshard.storage.objects import from_json

WRITTEN_FOR = "0.19.8"
"""The DeepSpeed version whose files are written when the source is of another framework."""

COUNTERS = ("global_steps", "skipped_steps", "global_samples")

_DTYPES = {
    "BF16": DType.BF16,
    "F16": DType.F16,
    "F32": DType.F32,
    "bf16": DType.BF16,
    "fp16": DType.F16,
    "fp32": DType.F32,
    "bfloat16": DType.BF16,
    "float16": DType.F16,
    "float32": DType.F32,
}


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """One param group of the optimizer.

    Args:  params: names of whole tensors, in the order of the optimizer.
           settings: hyper-parameters.
    """

    params: tuple[str, ...]
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Resume:
    """The state of training, as objects that a pickle can hold.

    Args:  version: DeepSpeed's.  counters: see COUNTERS.
           groups: () where the source does not tell.
           optimizer: `loss_scaler`, `dynamic_loss_scale`, `overflow`, and `clip_grad`, as far as
                 the source has them.
           zero: the source's `zero_optimization` settings.
           model: other entries of a model file (`data_sampler`, `num_experts`, ...).
           client: entries that the training script added.
           pipeline: by layer number, the keys of its file and the tensors' names; None for a
                 model that is no pipeline.
           expert_layers: module prefixes of the numbered layers of experts.
           missing: what the source does not tell and what is written instead, for people.
    """

    version: str
    counters: Mapping[str, int]
    groups: tuple[ParamGroup, ...]
    lr_scheduler: object
    optimizer: Mapping[str, object]
    config: Mapping[str, object]
    model: Mapping[str, object]
    client: Mapping[str, object]
    dtype: DType | None
    zero_stage: int | None
    pipeline: Mapping[str, Mapping[str, str]] | None
    expert_layers: tuple[str, ...]
    missing: tuple[str, ...] = field(default=())

    @property
    def zero(self) -> Mapping[str, object]:
        """The source's settings of ZeRO."""
        found = self.config.get("zero_optimization")
        return found if isinstance(found, dict) else {}

    def common_settings(self) -> tuple[dict[str, object], tuple[str, ...]]:
        """Hyper-parameters that all groups share, and the names of those that differ."""
        if not self.groups:
            return {}, ()
        first = self.groups[0].settings
        differing = tuple(
            key
            for key in dict.fromkeys(key for group in self.groups for key in group.settings)
            if any(
                key not in group.settings or group.settings[key] != first.get(key)
                for group in self.groups
            )
        )
        return {key: value for key, value in first.items() if key not in differing}, differing

    def scaling(self, dtype: DType | None) -> dict[str, object]:
        """The loss scaler and its kind, for a run of the same precision alone.

        Another run's would scale what must not be, or not scale what must.

        Args:  dtype: of the run that loads; None where any may, then only that of fp16 is given.
        """
        own: tuple[str, ...] = ("clip_grad",)
        if self.dtype is DType.F16 if dtype is None else dtype is self.dtype:
            own = ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")
        return {key: self.optimizer[key] for key in own if key in self.optimizer}

    def warning(self) -> tuple[Diagnostic, ...]:
        """What was not told by the source."""
        if not self.missing:
            return ()
        return (
            Diagnostic(
                "deepspeed-defaults",
                "the source does not tell all that DeepSpeed resumes with",
                "warning",
                notes=tuple(f"{item}" for item in self.missing),
                helps=("set in the training script what these values should be",),
            ),
        )


def resume_of(arrangement: Arrangement, tensor: Callable[[object], object]) -> Resume:
    """What the catalog of an arrangement knows, decoded.

    Args:  tensor: what stands for a tensor inside of it, given its name.
    """

    def decoded(value: object) -> object:
        return from_json(value, tensor)

    training = arrangement.catalog.training
    told = dict(training.framework or {})
    mine = told.get("name") == "deepspeed"
    if not mine:
        told = {}
    missing = []
    counters = {
        key: value
        for key, value in _mapping(told.get("counters")).items()
        if isinstance(value, int)
    }
    if "global_steps" not in counters:
        counters["global_steps"] = training.iteration or 0
        if training.iteration is None:
            missing.append("the number of steps done: 0 is written as `global_steps`")
    if "skipped_steps" not in counters:
        counters["skipped_steps"] = 0
        if mine is False:
            missing.append("steps that were skipped: 0 is written as `skipped_steps`")
    state = {key: decoded(value) for key, value in (training.state or {}).items()}
    if state.get("lr_scheduler") is None and not mine:
        missing.append("the learning rate scheduler: None is written as `lr_scheduler`")
    groups = tuple(
        ParamGroup(
            tuple(str(name) for name in _list(group.get("params"))),
            {key: decoded(value) for key, value in group.items() if key != "params"},
        )
        for group in training.param_groups
    )
    if not groups:
        missing.append("the optimizer's param groups and their hyper-parameters")
    pipeline, stage = told.get("pipeline"), told.get("zero_stage")
    return Resume(
        str(told.get("version") or arrangement.catalog.version) if mine else WRITTEN_FOR,
        {key: counters[key] for key in COUNTERS if key in counters},
        groups,
        state.get("lr_scheduler"),
        {
            key: state[key]
            for key in ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")
            if state.get(key) is not None
        },
        _mapping(decoded(told.get("ds_config"))),
        _mapping(decoded(told.get("other"))),
        _client(told, decoded),
        _DTYPES.get(str(told.get("compute_dtype"))),
        stage if isinstance(stage, int) else None,
        None
        if pipeline is None
        else {
            layer: {key: str(name) for key, name in _mapping(keys).items()}
            for layer, keys in _mapping(_mapping(pipeline).get("layers")).items()
        },
        tuple(str(item) for item in _list(_mapping(told.get("moe")).get("layers"))),
        tuple(missing),
    )


def loss_scaler(scale: float = 1.0) -> Record:
    """A `LossScaler`, which does not scale in runs of bf16 and fp32.

    Source: DeepSpeed 0.19.8 deepspeed/runtime/fp16/loss_scaler.py.
    """
    record = Record("deepspeed.runtime.fp16.loss_scaler", "LossScaler", (), "newobj")
    record.state.append({"cur_scale": scale, "dynamic": False})
    return record


def _client(told: Mapping[str, object], decoded: Callable[[object], object]) -> dict[str, object]:
    out = _mapping(decoded(told.get("client_state")))
    info = decoded(told.get("universal_checkpoint_info"))
    if info is not None:
        out["universal_checkpoint_info"] = info
    return out


def _mapping(value: object) -> dict[str, object]:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
