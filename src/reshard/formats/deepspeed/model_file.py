"""What one model file says: weights, names, shapes, and the state of training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from reshard.formats.deepspeed.node import Node
from reshard.records import dataclass, field
from reshard.storage.kept import fingerprint
from reshard.storage.torch_file import TensorRef

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The parts of a model file that say where tensors are.

    Args:  root: the whole tree.
           module: weights by name; None where layers have files of their own (pipelines).
           paths: by name of a weight that lies in dicts within `module`, the keys that lead to it.
           rest: what `module` holds besides weights, by name.
           param_shapes: per param group (stages 1 and 2) or sub-group (stage 3), in the order of
                 the flat buffer; None without ZeRO.
           frozen_shapes, frozen_fragments: of parameters that are not trained, None where the
                 writer does not tell.
           shared: alias -> stored name.
    """

    root: Node
    module: Mapping[str, TensorRef] | None
    paths: Mapping[str, tuple[str, ...]]
    rest: Mapping[str, Node]
    param_shapes: tuple[Shapes, ...] | None
    buffer_names: tuple[str, ...]
    frozen_shapes: Shapes | None
    frozen_fragments: Mapping[str, TensorRef] | None
    shared: Mapping[str, str]

    @property
    def file(self) -> str:
        """Its name."""
        return self.root.file

    @property
    def config(self) -> Node | None:
        """The configuration of the run; None where only the path of its file was saved."""
        found = self.root.get("ds_config")
        return found if found is not None and isinstance(found.value, dict) else None

    @property
    def trained(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters that the optimizer has."""
        return {name: shape for own in self.param_shapes or () for name, shape in own.items()}

    def setting(self, *keys: str) -> Node | None:
        """What the configuration says behind several keys."""
        return None if self.config is None else self.config.find(*keys)


def read_model_file(root: Node) -> ModelFile:
    """The parts of a model file.

    Raises: ReshardError[missing-key | unexpected-content].
    """
    if not root.has("module"):
        raise root.lacks("module")
    module, frozen = root.get("module"), root.get("frozen_param_shapes")
    fragments, shared = root.get("frozen_param_fragments"), root.get("shared_params")
    buffers = root.get("buffer_names")
    shapes = _param_shapes(root)
    frozen_shapes = None if frozen is None else _shapes(frozen)
    buffer_names = () if buffers is None else tuple(item.text() for item in buffers.items())
    named = (*(frozen_shapes or ()), *(name for own in shapes or () for name in own))
    tree = _Tree()
    if module is not None:
        tree.add(module, None if shapes is None else {*buffer_names, *named})
    return ModelFile(
        root,
        None if module is None else tree.weights,
        tree.paths,
        tree.rest,
        shapes,
        buffer_names,
        frozen_shapes,
        None
        if fragments is None
        else {n: t.value for n, t in fragments.entries() if isinstance(t.value, TensorRef)},
        {} if shared is None else _shared(shared),
    )


@dataclass(slots=True)
class _Tree:
    """The weights of a module's state, also of one whose modules are dicts within each other.

    Megatron's models return such a state: `module["language_model"]["encoder"]["layers.0.weight"]`.
    """

    weights: dict[str, TensorRef] = field(default_factory=dict)
    paths: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rest: dict[str, Node] = field(default_factory=dict)

    def add(self, module: Node, known: Collection[str] | None) -> None:
        """Every entry of the state.

        Args:  known: names that the file says the module has; None where it says none.
        """
        for key, node in module.entries():
            inner = [] if _is_extra(key) else list(_leaves(node, (key,)))
            weights = {".".join(path): leaf for path, leaf in inner if _is_tensor(leaf)}
            named = weights and (known is None or any(name in known for name in weights))
            if isinstance(node.value, TensorRef):
                self.weights[key] = node.value
            elif not named:
                self.rest[key] = node
            else:
                for path, leaf in inner:
                    name = ".".join(path)
                    self.paths[name] = path
                    if isinstance(leaf.value, TensorRef):
                        self.weights[name] = leaf.value
                    else:
                        self.rest[name] = leaf


def _is_extra(key: str) -> bool:
    """Whether an entry is what a module's `get_extra_state` returned."""
    return key.endswith("_extra_state")


def _is_tensor(node: Node) -> bool:
    return isinstance(node.value, TensorRef)


def _leaves(node: Node, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Node]]:
    """What the dicts within a dict hold, with the keys that lead there."""
    if not isinstance(node.value, dict):
        return
    for key, item in node.entries():
        if isinstance(item.value, dict) and item.value and not _is_extra(key):
            yield from _leaves(item, (*path, key))
        else:
            yield (*path, key), item


def _param_shapes(root: Node) -> tuple[Shapes, ...] | None:
    node = root.get("param_shapes")
    if node is None:
        return None
    if isinstance(node.value, dict):  # one group, before DeepSpeed 0.4
        return (_shapes(node),)
    return tuple(_shapes(item) for item in node.items())


def _shapes(node: Node) -> dict[str, tuple[int, ...]]:
    return {name: item.shape() for name, item in node.entries()}


def _shared(node: Node) -> dict[str, str]:
    if isinstance(node.value, dict):
        return {name: item.text() for name, item in node.entries()}
    out = {}
    for pair in node.items():  # a list of pairs, before DeepSpeed 0.8.1
        alias, stored = pair.items()
        out[alias.text()] = stored.text()
    return out


COUNTERS = ("global_steps", "global_samples", "skipped_steps")
"""Entries of a model file that count."""
MODEL_PLACES = (
    "module",
    "buffer_names",
    "optimizer",
    "param_shapes",
    "frozen_param_shapes",
    "frozen_param_fragments",
    "shared_params",
    "dp_world_size",
    "mp_world_size",
    "checkpoint_parallel_dimensions",
    "ds_version",
)
"""Entries of a model file that say where tensors are; the catalog is made of them."""
OTHER = (
    "data_sampler",
    "random_ltd",
    "num_experts",
    "ds_autoep_layers",
    "autoep_layers",
    "csr_tensor_module_names",
    "sparse_tensor_module_names",
)
"""Entries of a model file that go along as they are."""
SCALING = ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")
"""Entries of an optimizer's state that other frameworks have too."""
OPTIMIZER_PLACES = (
    "zero_stage",
    "base_optimizer_state",
    "base_optimizer_state_step",
    "single_partition_of_fp32_groups",
    "group_paddings",
    "param_alignment_paddings",
    "partition_count",
    "param_slice_mappings",
    "optimizer_state_dict",
    "fp32_flat_groups",
    "fp32_groups",
    "fp32_groups_flat",
    "ds_zero_partition_groups",
    "ds_version",
    "universal_checkpoint_info",
    "state",
    "param_groups",
)
"""Entries of an optimizer's state that say where tensors are."""


def client_entries(root: Node) -> dict[str, Node]:
    """What the training script added to a model file."""
    known = (*OTHER, *COUNTERS, "lr_scheduler", "ds_config", "universal_checkpoint_info")
    return without(root, (*MODEL_PLACES, *known))


def without(node: Node, known: Collection[str]) -> dict[str, Node]:
    """The other entries of a dict."""
    return {key: item for key, item in node.entries() if key not in known}


def differing(first: Mapping[str, Node], other: Mapping[str, Node]) -> list[str]:
    """Keys whose values are not equal, or that one side lacks."""
    out = []
    for key in dict.fromkeys((*first, *other)):
        a, b = first.get(key), other.get(key)
        if a is None or b is None or not _same(a.value, b.value):
            out.append(key)
    return out


def _same(first: object, second: object) -> bool:
    plain = (type(None), bool, int, float, str)
    if isinstance(first, plain) and isinstance(second, plain):
        return type(first) is type(second) and repr(first) == repr(second)
    return fingerprint(first) == fingerprint(second)
