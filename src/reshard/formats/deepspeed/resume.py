"""What a run resumes with besides tensors, as the source tells it or as defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from reshard.dtypes import DType
from reshard.errors import Diagnostic
from reshard.plan.arrangement import Arrangement
from reshard.storage.inert import Record
from reshard.storage.kept import decode

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
                 the source has them; optimizer_other: entries of no known meaning beside them.
           config: the source's `ds_config`.
           model: other entries of a model file (`data_sampler`, `num_experts`, ...).
           module: entries of a module's state that are no tensors, by file.
           client: entries that the training script added.
           pipeline: by layer number, the keys of its file and the tensors' names; None for a
                 model that is no pipeline.
           expert_layers: modules that the numbered layers of experts belong to.
           mesh: of the run that saved.
           ranks: by file of the source, what it says otherwise than the first rank's.
           kept: optimizer states that cannot be cut anew, by file and `GROUP.STATE`.
           paths: by name of a weight, the keys that lead to it where modules are dicts of dicts.
           unstored: names in a module of which no file holds anything.
           missing: what the source does not tell and what is written instead, for people.
    """

    version: str
    counters: Mapping[str, int]
    groups: tuple[ParamGroup, ...]
    lr_scheduler: object
    optimizer: Mapping[str, object]
    optimizer_other: Mapping[str, object]
    config: Mapping[str, object]
    model: Mapping[str, object]
    module: Mapping[str, Mapping[str, object]]
    client: Mapping[str, object]
    dtype: DType | None
    zero_stage: int | None
    pipeline: Mapping[str, Mapping[str, str]] | None
    expert_layers: tuple[str, ...]
    mesh: Mapping[str, int]
    ranks: Mapping[str, Mapping[str, object]]
    kept: Mapping[str, Mapping[str, object]]
    paths: Mapping[str, tuple[str, ...]]
    unstored: tuple[str, ...]
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

    @property
    def has_settings(self) -> bool:
        """Whether the hyper-parameters of the param groups are known."""
        return any(group.settings for group in self.groups)

    def scaling(self, *, same: bool) -> dict[str, object]:
        """The loss scaler and its kind, for a run of the same precision alone; gradient clipping.

        Another run's scaler would scale what must not be, or not scale what must.
        """
        own: tuple[str, ...] = ("clip_grad",)
        if same:
            own = ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")
        return {key: self.optimizer[key] for key in own if key in self.optimizer}

    def module_entries(self) -> dict[str, object]:
        """Entries of the module's state that are no tensors, as the first file has them."""
        return dict(next(iter(self.module.values()), {}))

    def kept_in(self, file: str) -> dict[int, dict[str, object]]:
        """States of a file's groups that cannot be cut anew, by group."""
        out: dict[int, dict[str, object]] = {}
        for key, value in self.kept.get(file, {}).items():
            group, _, state = key.partition(".")
            out.setdefault(int(group), {})[state] = value
        return out

    @property
    def kept_names(self) -> tuple[str, ...]:
        """States that cannot be cut anew."""
        keys = (key for own in self.kept.values() for key in own)
        return tuple(dict.fromkeys(key.partition(".")[2] for key in keys))

    def nested(self, module: Mapping[str, object]) -> dict[str, object]:
        """A module's state as the model itself takes it, where its modules are dicts of dicts."""
        out: dict[str, object] = {}
        for name, value in module.items():
            *way, key = self.paths.get(name, (name,))
            inner = out
            for step in way:
                found = inner.setdefault(step, {})
                assert isinstance(found, dict)
                inner = found
            inner[key] = value
        return out

    def own(self, file: str) -> dict[str, object]:
        """What a file of the source says for itself, where the target has the same file."""
        return dict(self.ranks.get(file, {}))

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
    training = arrangement.catalog.training
    told = dict(training.framework or {})
    mine = told.get("name") == "deepspeed"
    told = told if mine else {}
    decode = _Decoder(tensor)
    missing = []
    counters = {
        key: value
        for key, value in decode.mapping(told.get("counters")).items()
        if isinstance(value, int)
    }
    if "global_steps" not in counters:
        counters["global_steps"] = training.iteration or 0
        if training.iteration is None:
            missing.append("the number of steps done: 0 is written as `global_steps`")
    if "skipped_steps" not in counters:
        counters["skipped_steps"] = 0
        if not mine:
            missing.append("steps that were skipped: 0 is written as `skipped_steps`")
    state = decode.mapping(training.state)
    if "lr_scheduler" not in state and not mine:
        missing.append("the learning rate schedule: None is written as `lr_scheduler`")
    groups = tuple(
        ParamGroup(
            tuple(str(name) for name in _list(group.get("params"))),
            decode.mapping({key: value for key, value in group.items() if key != "params"}),
        )
        for group in training.param_groups
    )
    if not any(group.settings for group in groups):
        missing.append("the optimizer's hyper-parameters: those of the run that loads stay")
    stage = told.get("zero_stage")
    return Resume(
        str(told.get("version") or WRITTEN_FOR),
        {key: counters[key] for key in COUNTERS if key in counters},
        groups,
        state.get("lr_scheduler"),
        {
            key: state[key]
            for key in ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")
            if state.get(key) is not None
        },
        decode.mapping(told.get("optimizer_other")),
        _mapping(decode.value(told.get("ds_config"))),
        decode.mapping(told.get("other")),
        decode.nested(told.get("module_other")),
        _client(told, decode),
        _DTYPES.get(str(told.get("compute_dtype"))),
        stage if isinstance(stage, int) else None,
        _pipeline(told.get("pipeline")),
        tuple(str(item) for item in _list(_mapping(told.get("moe")).get("layers"))),
        _mesh(told, arrangement),
        decode.nested(told.get("per_rank")),
        decode.nested(told.get("optimizer_states")),
        {
            name: tuple(str(key) for key in _list(path))
            for name, path in _mapping(told.get("module_paths")).items()
        },
        tuple(str(name) for name in _list(told.get("unstored"))),
        tuple(missing),
    )


_MISSING = object()
"""Stands for an entry that one rank's file lacks."""


def with_own(root: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """A tree with the entries that one rank's file has, or lacks, for itself."""
    out = {**root, **own}
    return {key: value for key, value in out.items() if value is not _MISSING}


class _Decoder:
    """Makes objects of the JSON values that the reader kept."""

    def __init__(self, tensor: Callable[[object], object]) -> None:
        self._tensor = tensor

    def value(self, value: object) -> object:
        if value == {"$missing": True}:
            return _MISSING
        return decode(value, self._tensor)

    def mapping(self, value: object) -> dict[str, object]:
        return {key: self.value(item) for key, item in _mapping(value).items()}

    def nested(self, value: object) -> dict[str, dict[str, object]]:
        return {key: self.mapping(item) for key, item in _mapping(value).items()}


def loss_scaler(scale: float = 1.0) -> Record:
    """A `LossScaler`, which does not scale in runs of bf16 and fp32.

    Source: DeepSpeed 0.19.8 deepspeed/runtime/fp16/loss_scaler.py.
    """
    record = Record("deepspeed.runtime.fp16.loss_scaler", "LossScaler", (), "newobj")
    record.state.append({"cur_scale": scale, "dynamic": False})
    return record


def _mesh(told: Mapping[str, object], arrangement: Arrangement) -> dict[str, int]:
    """The sizes of the run that saved, also where its tensors were made whole since."""
    saved = _mapping(told.get("saved_over"))
    sizes = {axis: size for axis, size in saved.items() if isinstance(size, int)}
    return sizes or dict(arrangement.mesh)


def _client(told: Mapping[str, object], decode: _Decoder) -> dict[str, object]:
    out = decode.mapping(told.get("client_state"))
    info = decode.value(told.get("universal_checkpoint_info"))
    if info is not None:
        out["universal_checkpoint_info"] = info
    return out


def _pipeline(value: object) -> dict[str, dict[str, str]] | None:
    if value is None:
        return None
    return {
        layer: {key: str(name) for key, name in _mapping(keys).items()}
        for layer, keys in _mapping(_mapping(value).get("layers")).items()
    }


def _mapping(value: object) -> dict[str, object]:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
