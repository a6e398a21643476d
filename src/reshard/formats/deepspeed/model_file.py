"""What one model file says: weights, names, shapes, and the state of training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from reshard.formats.deepspeed.node import Node
from reshard.storage.kept import fingerprint
from reshard.storage.torch_file import TensorRef

Shapes = Mapping[str, tuple[int, ...]]
Path = tuple[str, ...]

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
"""Entries of a model file that count."""
MODEL_PLACES = tuple(
    """
    module buffer_names optimizer param_shapes frozen_param_shapes frozen_param_fragments
    shared_params dp_world_size mp_world_size checkpoint_parallel_dimensions ds_version
    """.split()  # noqa: SIM905
)
"""Entries of a model file that say where tensors are; the catalog is made of them."""
OTHER = tuple(
    """
    data_sampler random_ltd num_experts ds_autoep_layers autoep_layers csr_tensor_module_names
    sparse_tensor_module_names
    """.split()  # noqa: SIM905
)
"""Entries of a model file that go along as they are."""
SCALING = ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")
"""Entries of an optimizer's state that other frameworks have too."""
OPTIMIZER_PLACES = tuple(
    """
    zero_stage base_optimizer_state base_optimizer_state_step single_partition_of_fp32_groups
    group_paddings param_alignment_paddings partition_count param_slice_mappings
    optimizer_state_dict fp32_flat_groups fp32_groups fp32_groups_flat ds_zero_partition_groups
    ds_version universal_checkpoint_info state param_groups
    """.split()  # noqa: SIM905
)
"""Entries of an optimizer's state that say where tensors are."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The parts of a model file that say where tensors are.

    Args:  root: the whole tree.
           module: weights by name; none where layers have files of their own (pipelines).
           paths: by name of a weight that lies in dicts within `module`, the keys that lead to it.
           rest: what `module` holds besides weights, by name.
           param_shapes: per param group (stages 1 and 2) or sub-group (stage 3), in the order of
                 the flat buffer; None without ZeRO.
           frozen_shapes, frozen_fragments: of parameters that are not trained, as far as the
                 writer tells.
           shared: alias -> stored name.
    """

    root: Node
    module: Mapping[str, TensorRef]
    paths: Mapping[str, Path]
    rest: Mapping[str, Node]
    param_shapes: tuple[Shapes, ...] | None
    buffer_names: tuple[str, ...]
    frozen_shapes: Shapes
    frozen_fragments: Mapping[str, TensorRef]
    shared: Mapping[str, str]

    @property
    def file(self) -> str:
        """Its name."""
        return self.root.file

    @property
    def config(self) -> Node | None:
        """The configuration of the run; None where only the path of its file was saved."""
        node = self.root.get("ds_config")
        return node if node is not None and node.is_dict else None

    def trained_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The names and the shapes of all parameters that the optimizer has."""
        for shapes in self.param_shapes or ():
            yield from shapes.items()

    @property
    def trained(self) -> Shapes:
        """The same, by name."""
        return dict(self.trained_shapes())

    def setting(self, *keys: str) -> Node | None:
        """What the configuration says behind several keys."""
        return None if self.config is None else self.config.find(*keys)

    def zero(self, *keys: str) -> Node | None:
        """What the configuration says of ZeRO behind several keys."""
        return self.setting("zero_optimization", *keys)


def read_model_file(root: Node) -> ModelFile:
    """The parts of a model file.

    Raises: ReshardError[missing-key | unexpected-content].
    """
    if not root.has("module"):
        raise root.lacks("module")
    frozen, fragments = root.get("frozen_param_shapes"), root.get("frozen_param_fragments")
    shared, buffers = root.get("shared_params"), root.get("buffer_names")
    param_shapes = _param_shapes(root.get("param_shapes"))
    frozen_shapes = {} if frozen is None else _shapes(frozen)
    buffer_names = () if buffers is None else tuple(item.text() for item in buffers.items())
    named = {*frozen_shapes, *buffer_names, *(n for shapes in param_shapes or () for n in shapes)}
    names = None if param_shapes is None else named
    module = root.get("module")
    return ModelFile(
        root,
        *(({}, {}, {}) if module is None else _read_module(module, names)),
        param_shapes,
        buffer_names,
        frozen_shapes,
        {} if fragments is None else tensors_of(fragments),
        {} if shared is None else _shared(shared),
    )


def tensors_of(node: Node) -> dict[str, TensorRef]:
    """The entries of a dict that are tensors."""
    return {key: n.value for key, n in node.entries() if isinstance(n.value, TensorRef)}


def _read_module(
    module: Node, known: Collection[str] | None
) -> tuple[dict[str, TensorRef], dict[str, Path], dict[str, Node]]:
    """The weights of a module's state, also of one whose modules are dicts within each other.

    Megatron's models return such a state: `module["language_model"]["encoder"]["layers.0.weight"]`.

    Args:  known: names that the file says the module has; None where it says none.
    Returns: `module`, `paths`, and `rest` of a `ModelFile`.
    """
    weights: dict[str, TensorRef] = {}
    paths: dict[str, Path] = {}
    rest: dict[str, Node] = {}
    for key, node in module.entries():
        leaves = {".".join(path): (path, leaf) for path, leaf in _leaves(node, (key,))}
        tensors = [name for name, (_, leaf) in leaves.items() if isinstance(leaf.value, TensorRef)]
        is_nested = node.is_dict and any(known is None or name in known for name in tensors)
        for name, (path, leaf) in leaves.items() if is_nested else [(key, ((key,), node))]:
            if is_nested:
                paths[name] = path
            if isinstance(leaf.value, TensorRef):
                weights[name] = leaf.value
            else:
                rest[name] = leaf
    return weights, paths, rest


def _leaves(node: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    """What lies in a dict of dicts, with the keys that lead there.

    What a module's `get_extra_state` returned is one thing.
    """
    if not node.is_dict or not node.value or path[-1].endswith("_extra_state"):
        yield path, node
        return
    for key, item in node.entries():
        yield from _leaves(item, (*path, key))


def _param_shapes(node: Node | None) -> tuple[Shapes, ...] | None:
    if node is None:
        return None
    if node.is_dict:  # one group, before DeepSpeed 0.4
        return (_shapes(node),)
    return tuple(_shapes(item) for item in node.items())


def _shapes(node: Node) -> dict[str, tuple[int, ...]]:
    return {name: item.shape() for name, item in node.entries()}


def _shared(node: Node) -> dict[str, str]:
    if node.is_dict:
        return {name: item.text() for name, item in node.entries()}
    pairs = (tuple(pair.items()) for pair in node.items())  # before DeepSpeed 0.8.1
    return {alias.text(): stored.text() for alias, stored in pairs}


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
