"""What a run resumes with besides tensors, as the source tells it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.write_groups import is_fused
from reshard.plan.catalog import Catalog
from reshard.run.run import Group
from reshard.storage.inert import Record
from reshard.storage.kept import Constant, Decoder

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
    groups: tuple[Group, ...]
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
        return {axis: Arguments(self.args, "").size(axis) for axis in ("tp", "pp", "ep", "dp")}

    @property
    def is_fused(self) -> bool:
        """Whether the source's Adam counts steps by param group."""
        return is_fused(self.groups)


def resume_of(catalog: Catalog, constant: Constant[object]) -> Resume:
    """What a catalog knows, decoded.

    Args:  constant: what stands for the tensors within it.
    Raises: ReshardError[bad-object].
    """
    training = catalog.training
    kept_by = training.of("megatron")
    is_megatron = bool(kept_by)
    decode = Decoder(constant)
    args = _namespace(decode.value(kept_by.get("args")))
    objects = decode.mapping(kept_by.get("objects"))
    state = decode.mapping(training.state)
    arguments = Arguments(args, "")
    mesh = arguments.size("tp"), arguments.size("pp"), arguments.size("ep")
    return Resume(
        is_megatron,
        args,
        training.iteration,
        arguments.integer("consumed_train_samples"),
        tuple(
            Group(settings, group.params)
            for group in training.param_groups
            if (settings := decode.mapping(group.settings))
        ),
        state.get("lr_scheduler") if is_megatron else None,
        state.get("loss_scaler") if is_megatron else None,
        {k: v for k, v in decode.mapping(kept_by.get("other")).items() if k not in _WRITTEN_ANEW},
        _rng(decode.value(kept_by.get("rng_state")), objects, mesh),
        mesh,
        {k: v for k, v in objects.items() if not k.startswith(_CONSUMED) and _EXTRA not in k},
        {k: v for k, v in objects.items() if _EXTRA in k},
    )


def _namespace(value: object) -> dict[str, object]:
    if isinstance(value, Record):
        return {str(key): item for key, item in value.attributes.items()}
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _rng(
    states_of: object, objects: Mapping[str, object], mesh: tuple[int, int, int]
) -> dict[tuple[int, int, int], object]:
    """By rank; the files of a legacy checkpoint are listed by their names."""
    out: dict[tuple[int, int, int], object] = {}
    for key, value in objects.items():
        match = _RNG.fullmatch(key)
        if match and isinstance(value, list) and len(value) == 1:
            pp, tp, pps, tps = map(int, match.groups())
            if (tps, pps) == mesh[:2]:
                out[tp, pp, 0] = value[0]
    states = states_of if isinstance(states_of, list) else []
    places = [(t, p, e) for t in range(mesh[0]) for p in range(mesh[1]) for e in range(mesh[2])]
    if states and len(states) == len(places) and all(state is not None for state in states):
        out.update(zip(places, states, strict=True))
    return out
