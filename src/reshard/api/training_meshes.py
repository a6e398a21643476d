"""`meshes`: on which meshes a model can be trained, and what a rank then holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from reshard.api.arguments import checked
from reshard.api.request import PathLike, Request
from reshard.api.simulated_model import DTYPES, SimulatedModel
from reshard.api.states import parse_dtypes
from reshard.dtypes import DType
from reshard.errors import layout_error
from reshard.models.nearest import listed
from reshard.plan.meshes import mesh_choices
from reshard.plan.place import parse_placement, place
from reshard.plan.shown import Plain, Shown
from reshard.plan.text import facts, show_count, show_nbytes, table
from reshard.run.states import PARAM

_MOST_MESHES = 40
_MESH_NAMES = "megatron"


@dataclass(frozen=True, slots=True)
class MeshFacts:
    """A mesh that a model can be trained on, and the bytes of the rank that holds most.

    Args:  sizes: of the axes `tp`, `pp`, `ep`, and `dp`.  weights, gradients: a copy of each.
           states: of the optimizer, shared by the ranks that hold the same weights.
    """

    sizes: Mapping[str, int]
    weights: int
    gradients: int
    states: int

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.states

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return {
            **self.sizes,
            "weights": self.weights,
            "gradients": self.gradients,
            "states": self.states,
            "nbytes": self.nbytes,
        }


@dataclass(frozen=True, slots=True, repr=False)
class Meshes(Plain, Shown):
    """The meshes of a number of ranks that a model can be trained on.

    Args:  model: its type.  parameters: elements of its weights.  ranks: of each mesh.
           memory: bytes of a rank; meshes that need more are in `too_large`.  None for no limit.
           dtypes: of weights, gradients, and each state of the optimizer.
           possible: from the least tensor parallelism to the most.
           refused: why others cannot be, and how many each reason excludes.
    """

    model: str
    parameters: int
    ranks: int
    memory: int | None
    dtypes: Mapping[str, DType]
    possible: tuple[MeshFacts, ...]
    too_large: int
    refused: Mapping[str, int]

    def to_text(self) -> str:
        """For people, 80 columns wide."""
        dtypes = ", ".join(f"{name} {dtype}" for name, dtype in self.dtypes.items())
        lines = [
            f"{self.model}, {self.parameters:,} parameters on {show_count(self.ranks, 'rank')}",
            *facts([("types", dtypes), ("states", "shared by the dp ranks, as ZeRO-1 does")]),
        ]
        rows = [("tp", "pp", "ep", "dp", "weights", "gradients", "states", "a rank holds")]
        for item in self.possible[:_MOST_MESHES]:
            sizes = (f"{item.sizes[axis]:,}" for axis in ("tp", "pp", "ep", "dp"))
            parts = (item.weights, item.gradients, item.states, item.nbytes)
            tp, pp, ep, dp = sizes
            weights, gradients, states, nbytes = map(show_nbytes, parts)
            rows.append((tp, pp, ep, dp, weights, gradients, states, nbytes))
        if self.possible:
            lines += ["", *(f"  {line}" for line in table(rows, right="rrrrrrrr", width=78))]
        rest = len(self.possible) - _MOST_MESHES
        if rest > 0:
            lines.append(f"  and {rest:,} more, which `--json` lists")
        if self.too_large and self.memory is not None:
            need = "1 mesh needs" if self.too_large == 1 else f"{self.too_large:,} meshes need"
            lines += ["", f"{need} more than {show_nbytes(self.memory)} on a rank"]
        if self.refused:
            lines += ["", "not possible"]
            for why, count in self.refused.items():
                lines.append(f"  {why}" + (f" ({count} meshes)" if count > 1 else ""))
        return "\n".join(lines)


@checked
def meshes(
    config: PathLike,
    ranks: int,
    *,
    memory: int | None = None,
    layout: PathLike | None = None,
    settings: Mapping[str, float | None] | None = None,
    places: Iterable[str] = (),
    dtype: str | None = None,
) -> Meshes:
    """The meshes that a model can be trained on, as Megatron cuts it, and what a rank then holds.

    Weights and gradients are whole on every data-parallel rank, and the optimizer's states are
    shared by them. Activations and buffers of communication come on top.

    Args:  config: the model's `config.json`, or a folder that holds it.
           ranks: of the mesh.  memory: bytes of a rank.
           layout: a UCL file that describes the model, if it does not ship.
           settings: sizes that win over the configuration's.
           places: as for `convert`; `layer=pp:balanced` for stages of unequal length.
           dtype: of the weights, `bf16` if not given; or by state. Gradients are in fp32, as
                  Megatron adds them up.
    Raises: ReshardError; what it says is in docs/errors/.
    """
    request = Request.of(locals())
    simulated = SimulatedModel.read(Path(config), request)
    if _MESH_NAMES not in simulated.family.layout_names:
        raise layout_error(
            "unknown-names",
            f"model `{simulated.family.name}` has no layout `{_MESH_NAMES}`, which says how it is "
            "cut",
            notes=[f"it has {listed(simulated.family.layout_names)}"],
        )
    dtypes = {**DTYPES, **parse_dtypes(dtype)}
    states = sum(item.itemsize for state, item in dtypes.items() if state != PARAM)
    placements = {item.axis: item for item in map(parse_placement, request.places)}
    cut = place(simulated.family.layout(_MESH_NAMES), placements)
    possible: list[MeshFacts] = []
    too_large = 0
    refused: Counter[str] = Counter()
    for choice in mesh_choices(simulated.atoms, cut, ranks, request.settings):
        share = choice.share
        if share is None:
            refused[choice.why] += 1
            continue
        dp, ep = choice.sizes["dp"], choice.sizes["ep"]
        shared = -(-share.dense // dp) - (-share.experts // (dp // ep))
        found = MeshFacts(
            choice.sizes,
            share.numel * dtypes[PARAM].itemsize,
            share.numel * DType.F32.itemsize,
            shared * states,
        )
        if memory is not None and found.nbytes > memory:
            too_large += 1
        else:
            possible.append(found)
    shown = {"weights": dtypes[PARAM], "gradients": DType.F32, **dtypes}
    del shown[PARAM]
    return Meshes(
        simulated.kind,
        simulated.parameters,
        ranks,
        memory,
        shown,
        tuple(possible),
        too_large,
        refused,
    )
