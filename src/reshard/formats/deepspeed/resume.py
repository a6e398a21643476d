"""What a run resumes with besides tensors, as the source tells it or as defaults."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.dtypes import DType
from reshard.errors import Diagnostic, warning
from reshard.formats.deepspeed.experts import fused_layers
from reshard.formats.deepspeed.model_file import COUNTERS
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


class Resume:
    """The state of training, as objects that a pickle can hold; `training` has read it.

    Args:  decoder: makes these objects.
    """

    def __init__(self, arrangement: Arrangement, decoder: Decoder) -> None:
        self._run = run = arrangement.catalog.training
        self._decoder = decoder
        kept = run.of("deepspeed")
        known, state = decoder.mapping(kept.get("counters")), decoder.mapping(run.state)
        stage, pipeline = kept.get("zero_stage"), kept.get("pipeline")
        info = decoder.value(kept.get("universal_checkpoint_info"))

        self.version = str(kept.get("version") or WRITTEN_FOR)
        self.counters = {"global_steps": run.iteration or 0, "skipped_steps": 0} | {
            key: value for key, value in known.items() if key in COUNTERS and isinstance(value, int)
        }
        self.groups = tuple(Group(decoder.mapping(g.settings), g.members) for g in run.param_groups)
        """With decoded settings; () where the source does not tell."""
        self.lr_scheduler = state.get("lr_scheduler")
        self.optimizer_other = decoder.mapping(kept.get("optimizer_other"))
        """Entries of no known meaning in the optimizer's state."""
        self.config = _mapping(decoder.value(kept.get("ds_config")))
        self.model = decoder.mapping(kept.get("other"))
        """Other entries of a model file (`data_sampler`, `num_experts`, ...)."""
        self.module = next(iter(decoder.nested(kept.get("module_other")).values()), {})
        """Entries of a module's state that are no tensors, as the first file has them."""
        self.client = decoder.mapping(kept.get("client_state"))
        """Entries that the training script added."""
        if info is not None:
            self.client["universal_checkpoint_info"] = info
        self.dtype = _DTYPES.get(str(kept.get("compute_dtype")))
        self.zero_stage = stage if isinstance(stage, int) else None
        self.pipeline: dict[str, dict[str, str]] | None = None
        if pipeline is not None:
            self.pipeline = {
                layer: {key: str(name) for key, name in _mapping(keys).items()}
                for layer, keys in _mapping(_mapping(pipeline).get("layers")).items()
            }
        """By layer number, the keys of its file and the tensors' names; None without a pipeline."""
        self.fused = fused_layers(Node(dict(self.model), "the source"))
        self.expert_layers = _names(_mapping(kept.get("moe")).get("layers"))
        """Modules that the numbered layers of experts belong to."""
        sizes = _mapping(kept.get("saved_over")).items()
        self.mesh = {axis: n for axis, n in sizes if isinstance(n, int)} or dict(arrangement.mesh)
        """Of the run that saved."""
        self.ranks = decoder.nested(kept.get("per_rank"))
        """By file of the source, what it says otherwise than the first rank's."""
        self.kept = decoder.nested(kept.get("optimizer_states"))
        """Optimizer states that cannot be cut anew, by file and `GROUP.STATE`."""
        self.paths = {n: _names(path) for n, path in _mapping(kept.get("module_paths")).items()}
        """By name of a weight, the keys that lead to it where modules are dicts of dicts."""
        self.unstored = _names(kept.get("unstored"))
        """Names in a module of which no file holds anything."""
        unknown = {
            "the number of steps done: 0 is written as `global_steps`": run.iteration is None
            and "global_steps" not in known,
            "steps that were skipped: 0 is written as `skipped_steps`": not kept,
            "the learning rate schedule: None is written as `lr_scheduler`": not kept
            and "lr_scheduler" not in state,
            "the optimizer's hyper-parameters: those of the run that loads stay": (
                not run.has_settings
            ),
        }
        self._unknown = tuple(text for text, is_unknown in unknown.items() if is_unknown)

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
            if any(
                key not in settings_of_group or settings_of_group[key] != groups[0].get(key)
                for settings_of_group in groups
            )
        )
        return {key: value for key, value in groups[0].items() if key not in differing}, differing

    def scaling(self, *, same: bool) -> dict[str, object]:
        """Gradient clipping, and the loss scaler for a run of the same precision alone."""
        return self._decoder.mapping(self._run.scaling(same=same))

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
        keys = (key for states in self.kept.values() for key in states)
        return tuple(dict.fromkeys(key.partition(".")[2] for key in keys))

    def module_state(self, tensors: Mapping[str, object]) -> dict[str, object]:
        """A module's state as the model itself takes it, where its modules are dicts of dicts."""
        out: dict[str, object] = {}
        for name, value in {**tensors, **self.module}.items():
            *way, key = self.paths.get(name, (name,))
            inner = out
            for step in way:
                below = inner.setdefault(step, {})
                assert isinstance(below, dict)
                inner = below
            inner[key] = value
        return out

    def model_entries(self, sizes: Mapping[str, object], config: object) -> dict[str, object]:
        """The entries of a model file that say nothing of where tensors are.

        Args:  sizes: of the mesh.  config: of the run that loads.
        """
        return {
            "lr_scheduler": self.lr_scheduler,
            **self.model,
            **self.counters,
            **sizes,
            "ds_config": config,
            "ds_version": self.version,
            **self.client,
        }

    def warning(self) -> Diagnostic | None:
        """What the source does not tell, and what is written instead."""
        if not self._unknown:
            return None
        headline = "the source does not record everything that DeepSpeed resumes with"
        advice = "set in the training script what these values should be"
        return warning("deepspeed-defaults", headline, *self._unknown, helps=(advice,))


def with_own(root: Mapping[str, object], entries: Mapping[str, object]) -> dict[str, object]:
    """A tree with the entries that one rank's file has, or lacks, for itself."""
    return {key: value for key, value in {**root, **entries}.items() if value is not MISSING}


def loss_scaler(scale: float = 1.0) -> Record:
    """A `LossScaler`, which does not scale in runs of bf16 and fp32.

    Source: DeepSpeed 0.19.8 deepspeed/runtime/fp16/loss_scaler.py.
    """
    fields = {"cur_scale": scale, "dynamic": False}
    name = "deepspeed.runtime.fp16.loss_scaler"
    return Record(name, "LossScaler", (), "newobj", [fields])


def _mapping(value: object) -> dict[str, object]:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()
