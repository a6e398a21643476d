"""What a run resumes with besides tensors, as the source tells it or as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.errors import Diagnostic
from reshard.formats.deepspeed.experts import FusedLayer, fused_layers
from reshard.formats.deepspeed.model_file import COUNTERS, SCALING
from reshard.formats.deepspeed.node import Node
from reshard.plan.arrangement import Arrangement
from reshard.run.run import Group
from reshard.storage.inert import Record
from reshard.storage.kept import MISSING, Decoder

WRITTEN_FOR = "0.19.8"
"""The DeepSpeed version whose files are written when the source is of another framework."""

_DTYPES = {
    **dict.fromkeys(("BF16", "bf16", "bfloat16"), DType.BF16),
    **dict.fromkeys(("F16", "fp16", "float16"), DType.F16),
    **dict.fromkeys(("F32", "fp32", "float32"), DType.F32),
}


@dataclass(frozen=True, slots=True)
class Resume:
    """The state of training, as objects that a pickle can hold.

    Args:  version: DeepSpeed's.  counters: see COUNTERS.
           groups: with decoded settings; () where the source does not tell.
           optimizer: see SCALING, as far as the source has them; optimizer_other: entries of no
                 known meaning beside them.
           config: the source's `ds_config`.
           model: other entries of a model file (`data_sampler`, `num_experts`, ...).
           module: entries of a module's state that are no tensors, as the first file has them.
           client: entries that the training script added.
           pipeline: by layer number, the keys of its file and the tensors' names; None for a
                 model that is no pipeline.
           fused: layers of AutoEP.
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
    groups: tuple[Group, ...]
    lr_scheduler: object
    optimizer: Mapping[str, object]
    optimizer_other: Mapping[str, object]
    config: Mapping[str, object]
    model: Mapping[str, object]
    module: Mapping[str, object]
    client: Mapping[str, object]
    dtype: DType | None
    zero_stage: int | None
    pipeline: Mapping[str, Mapping[str, str]] | None
    fused: tuple[FusedLayer, ...]
    expert_layers: tuple[str, ...]
    mesh: Mapping[str, int]
    ranks: Mapping[str, Mapping[str, object]]
    kept: Mapping[str, Mapping[str, object]]
    paths: Mapping[str, tuple[str, ...]]
    unstored: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def zero(self) -> Mapping[str, object]:
        """The source's settings of ZeRO."""
        return _mapping(self.config.get("zero_optimization"))

    @property
    def ep(self) -> int | None:
        """How many ranks share the experts of AutoEP, whatever form they are in now.

        A universal checkpoint has no ranks, but its experts were placed on some, and go back there.
        """
        return len(self.fused[0].experts) if self.fused else None

    def common_settings(self) -> tuple[dict[str, object], tuple[str, ...]]:
        """Hyper-parameters that all groups share, and the names of those that differ."""
        groups = [group.settings for group in self.groups] or [{}]
        differing = tuple(
            key
            for key in dict.fromkeys(key for settings in groups for key in settings)
            if any(key not in own or own[key] != groups[0].get(key) for own in groups)
        )
        common = {key: value for key, value in groups[0].items() if key not in differing}
        return common, differing

    def scaling(self, *, same: bool) -> dict[str, object]:
        """The loss scaler and its kind, for a run of the same precision alone; gradient clipping.

        Another run's scaler would scale what must not be, or not scale what must.
        """
        own = SCALING if same else ("clip_grad",)
        return {key: self.optimizer[key] for key in own if key in self.optimizer}

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

    def module_state(self, tensors: Mapping[str, object]) -> dict[str, object]:
        """A module's state as the model itself takes it, where its modules are dicts of dicts."""
        out: dict[str, object] = {}
        for name, value in {**tensors, **self.module}.items():
            *way, key = self.paths.get(name, (name,))
            inner = out
            for step in way:
                found = inner.setdefault(step, {})
                assert isinstance(found, dict)
                inner = found
            inner[key] = value
        return out

    def warning(self) -> Diagnostic | None:
        """What was not told by the source."""
        if not self.missing:
            return None
        return Diagnostic(
            "deepspeed-defaults",
            "the source does not tell all that DeepSpeed resumes with",
            "warning",
            notes=self.missing,
            helps=("set in the training script what these values should be",),
        )


def resume_of(arrangement: Arrangement, decoder: Decoder) -> Resume:
    """What the catalog of an arrangement knows, decoded."""
    run = arrangement.catalog.training
    told = run.of("deepspeed")
    missing = []
    counters = {"global_steps": run.iteration or 0, "skipped_steps": 0}
    known = decoder.mapping(told.get("counters"))
    counters.update({k: v for k, v in known.items() if k in COUNTERS and isinstance(v, int)})
    if run.iteration is None and "global_steps" not in known:
        missing.append("the number of steps done: 0 is written as `global_steps`")
    if not told and "skipped_steps" not in known:
        missing.append("steps that were skipped: 0 is written as `skipped_steps`")
    state = decoder.mapping(run.state)
    if "lr_scheduler" not in state and not told:
        missing.append("the learning rate schedule: None is written as `lr_scheduler`")
    if not run.has_settings:
        missing.append("the optimizer's hyper-parameters: those of the run that loads stay")
    model = decoder.mapping(told.get("other"))
    module = decoder.nested(told.get("module_other"))
    client = decoder.mapping(told.get("client_state"))
    info = decoder.value(told.get("universal_checkpoint_info"))
    if info is not None:
        client["universal_checkpoint_info"] = info
    stage, pipeline = told.get("zero_stage"), told.get("pipeline")
    saved_over = _mapping(told.get("saved_over")).items()
    return Resume(
        str(told.get("version") or WRITTEN_FOR),
        counters,
        tuple(Group(decoder.mapping(g.settings), g.params or ()) for g in run.param_groups),
        state.get("lr_scheduler"),
        {key: state[key] for key in SCALING if state.get(key) is not None},
        decoder.mapping(told.get("optimizer_other")),
        _mapping(decoder.value(told.get("ds_config"))),
        model,
        next(iter(module.values()), {}),
        client,
        _DTYPES.get(str(told.get("compute_dtype"))),
        stage if isinstance(stage, int) else None,
        None
        if pipeline is None
        else {
            layer: {key: str(name) for key, name in _mapping(keys).items()}
            for layer, keys in _mapping(_mapping(pipeline).get("layers")).items()
        },
        fused_layers(Node(dict(model), "the source")),
        _names(_mapping(told.get("moe")).get("layers")),
        {axis: size for axis, size in saved_over if isinstance(size, int)}
        or dict(arrangement.mesh),
        decoder.nested(told.get("per_rank")),
        decoder.nested(told.get("optimizer_states")),
        {name: _names(path) for name, path in _mapping(told.get("module_paths")).items()},
        _names(told.get("unstored")),
        tuple(missing),
    )


def with_own(root: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """A tree with the entries that one rank's file has, or lacks, for itself."""
    return {key: value for key, value in {**root, **own}.items() if value is not MISSING}


def loss_scaler(scale: float = 1.0) -> Record:
    """A `LossScaler`, which does not scale in runs of bf16 and fp32.

    Source: DeepSpeed 0.19.8 deepspeed/runtime/fp16/loss_scaler.py.
    """
    record = Record("deepspeed.runtime.fp16.loss_scaler", "LossScaler", (), "newobj")
    record.state.append({"cur_scale": scale, "dynamic": False})
    return record


def _mapping(value: object) -> dict[str, object]:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()
