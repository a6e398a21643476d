"""What a run resumes with besides tensors, as the source tells it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.formats.megatron.write_groups import Settings, SourceGroup, is_fused
from reshard.plan.catalog import Catalog
from reshard.storage.inert import Record
from reshard.storage.kept import constant_of, decode
from reshard.storage.torch_writer import NewTensor

Constant = Callable[[DType, tuple[int, ...], bytes], NewTensor]
"""Makes a tensor of known bytes."""

_RNG = re.compile(r"rng_state/shard_(\d+)\.(\d+)_(\d+)\.(\d+)")
_WRITTEN_ANEW = ("content_metadata", "checkpoint_version")
_CONSUMED = ("optimizer.distributed.", "chained_", "rng_state/")
_EXTRA = "._extra_state/"


@dataclass(frozen=True, slots=True)
class Resume:
    """The state of training, as objects that a pickle can hold.

    Args:  is_megatron: the source is of Megatron.  args: its arguments; empty if it is not.
           iteration, samples: None if unknown.  groups: () where the source has no optimizer.
           scheduler, scaler: None where the source has none.
           other: further entries of the root (`num_floating_point_operations_so_far`, ...).
           rng: by (tp, pp, ep), the state of a rank's random numbers; ep is 0 where all ep ranks
                have the same.
           rng_mesh: (tp, pp, ep) that they are of.
           objects: of a `torch_dist` checkpoint, what belongs to no rank, by key.
           extra_states: of modules, by key.
    """

    is_megatron: bool
    args: Mapping[str, object]
    iteration: int | None
    samples: int | None
    groups: tuple[SourceGroup, ...]
    scheduler: object
    scaler: object
    other: Mapping[str, object]
    rng: Mapping[tuple[int, int, int], object]
    rng_mesh: tuple[int, int, int]
    objects: Mapping[str, object]
    extra_states: Mapping[str, object]

    @property
    def sizes(self) -> dict[str, int]:
        """Of the mesh of a run of Megatron's."""
        tp, pp, ep = self.rng_mesh
        return {"tp": tp, "pp": pp, "ep": ep, "dp": _size(self.args, "data_parallel_size")}

    @property
    def is_fused(self) -> bool:
        """Whether the source's Adam counts steps by param group."""
        return is_fused(self.groups)


def resume_of(catalog: Catalog, constant: Constant) -> Resume:
    """What a catalog knows, decoded.

    Args:  constant: what stands for the tensors within it.
    Raises: ReshardError[bad-object].
    """
    training = catalog.training
    told = dict(training.framework or {})
    is_megatron = told.get("name") == "megatron"
    told = told if is_megatron else {}
    decode = _Decoder(constant)
    args = _namespace(decode.value(told.get("args")))
    objects = decode.mapping(told.get("objects"))
    state = decode.mapping(training.state)
    sizes = tuple(
        _size(args, f"{name}_model_parallel_size") for name in ("tensor", "pipeline", "expert")
    )
    mesh = (sizes[0], sizes[1], sizes[2])
    samples = args.get("consumed_train_samples")
    return Resume(
        is_megatron,
        args,
        training.iteration,
        samples if isinstance(samples, int) else None,
        _groups(training.param_groups, decode),
        state.get("lr_scheduler") if is_megatron else None,
        state.get("loss_scaler") if is_megatron else None,
        {k: v for k, v in decode.mapping(told.get("other")).items() if k not in _WRITTEN_ANEW},
        _rng(decode.value(told.get("rng_state")), objects, mesh),
        mesh,
        {k: v for k, v in objects.items() if not k.startswith(_CONSUMED) and _EXTRA not in k},
        {k: v for k, v in objects.items() if _EXTRA in k},
    )


class _Decoder:
    """Makes objects of the JSON values that a reader kept."""

    def __init__(self, constant: Constant) -> None:
        self._constant = constant

    def value(self, value: object) -> object:
        return decode(value, self._tensor)

    def mapping(self, value: object) -> dict[str, object]:
        items = value.items() if isinstance(value, Mapping) else ()
        return {str(key): self.value(item) for key, item in items}

    def _tensor(self, body: object) -> object:
        return constant_of(body, self._constant)


def _groups(found: tuple[Mapping[str, object], ...], decode: _Decoder) -> tuple[SourceGroup, ...]:
    out = []
    for group in found:
        settings: Settings = decode.mapping({k: v for k, v in group.items() if k != "params"})
        params = group.get("params")
        names = tuple(str(name) for name in params) if isinstance(params, list) else None
        if settings:
            out.append(SourceGroup(names, settings))
    return tuple(out)


def _namespace(value: object) -> dict[str, object]:
    if isinstance(value, Record):
        return {str(key): item for key, item in value.attributes.items()}
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _size(args: Mapping[str, object], name: str) -> int:
    value = args.get(name)
    return value if isinstance(value, int) else 1


def _rng(
    listed: object, objects: Mapping[str, object], mesh: tuple[int, int, int]
) -> dict[tuple[int, int, int], object]:
    """By rank; the files of a legacy checkpoint are listed by their names."""
    out: dict[tuple[int, int, int], object] = {}
    for key, value in objects.items():
        match = _RNG.fullmatch(key)
        if match and isinstance(value, list) and len(value) == 1:
            pp, tp, pps, tps = map(int, match.groups())
            if (tps, pps) == mesh[:2]:
                out[tp, pp, 0] = value[0]
    states = listed if isinstance(listed, list) else []
    places = [(t, p, e) for t in range(mesh[0]) for p in range(mesh[1]) for e in range(mesh[2])]
    if states and len(states) == len(places) and all(state is not None for state in states):
        out.update(zip(places, states, strict=True))
    return out
