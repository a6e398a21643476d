"""Writes the folder of a run that nanotron resumes from, by the description of its files.

Source: nanotron/serialize/{main,weights,optimizer,metadata}.py (2411b02).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod

from reshard.algebra.partition import Each, spread
from reshard.dtypes import DType
from reshard.errors import target_error
from reshard.formats.described.shipped import description
from reshard.formats.described.write import Writer
from reshard.formats.nanotron import LATEST, NAME, OPTIMIZER_CONFIG
from reshard.formats.nanotron.stages import place
from reshard.formats.nanotron.write_training import facts, shares_groups, training_warnings
from reshard.language.layout import Layout
from reshard.plan.arrangement import Arrangement
from reshard.plan.names import group_names, quantity
from reshard.plan.output import FileBytes, Output, Written
from reshard.plan.recut import CutTensor
from reshard.plan.target import Target
from reshard.run.states import EXTRA, MASTER, PARAM, STEP

OPTIONS = ("tp", "pp", "dp", "zero")
_OF_WEIGHTS = {"param", "metadata", "model_config"}
"""What the files hold that a checkpoint of weights alone has."""


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  arrangement: in the names of a layout `nanotron`.
           target: `tp`, `pp`, `dp`, and `zero` (1 where states are shared among data-parallel
           ranks, as they are by default if there are several; else 0).
    Raises: ReshardError[unknown-option | bad-option | uneven-target | target-stages |
            nanotron-states].
    """
    target.reject_unknown(OPTIONS)
    sizes = {axis: target.integer(axis, 1) or 1 for axis in ("pp", "dp", "tp")}
    zero = target.integer("zero", int(sizes["dp"] > 1), least=0) or 0
    if zero > 1:
        raise target_error(
            "bad-option",
            f"option `zero` of target `{NAME}` is `{zero}`, and nanotron has 0 and 1",
            helps=[f"write it as `{NAME}:zero=1`"],
        )
    # Without ZeRO, all data-parallel ranks have the same, and one of them writes it.
    mesh = {axis: size for axis, size in (*sizes.items(), ("ep", 1)) if axis != "dp" or zero}
    states = {w.state for w in arrangement.wholes} - {PARAM, EXTRA, MASTER}
    placement = place(arrangement, mesh, has_group_each=not shares_groups(arrangement))
    if states:
        _check_states(arrangement, placement.cut)
    training = facts(arrangement, sizes, placement.cut)
    wholes = (  # torch counts steps in fp32, and has them first
        replace(w, dtype=DType.F32) if w.state == STEP and w.rule < 0 else w
        for w in sorted(arrangement.wholes, key=lambda item: item.state != STEP)
    )
    catalog = replace(arrangement.catalog, training=training)
    tag = str(training.iteration or 0)
    layout = description(NAME) if states else _of_weights(description(NAME))
    output = Writer(
        replace(arrangement, catalog=catalog, wholes=tuple(wholes)),
        layout,
        mesh,
        folder=f"{tag}/",
        placement=placement,
    ).output()
    made = []
    if states:
        config = _optimizer_config(arrangement, placement.cut, sizes, zero=bool(zero))
        data = json.dumps(config, indent=2).encode()
        made.append(FileBytes(f"{tag}/{OPTIMIZER_CONFIG}", 0, data))

    def finish(written: Sequence[Written]) -> tuple[FileBytes, ...]:
        return (*output.finish(written), FileBytes(LATEST, 0, tag.encode()))

    return replace(
        output,
        head=(*output.head, *made),
        finish=finish,
        warnings=training_warnings(arrangement, has_states=bool(states)),
    )


def _of_weights(layout: Layout) -> Layout:
    """The files of a checkpoint without states."""
    files = (f for f in layout.files if any(_OF_WEIGHTS & {*x.names} for x in f.entries))
    return replace(layout, files=tuple(files))


def _check_states(arrangement: Arrangement, names: Mapping[str, object]) -> None:
    """Refuse states that nanotron does not resume from."""
    stored = {(whole.name, whole.state) for whole in arrangement.wholes}
    with_states = {name for name, state in stored if state not in (PARAM, EXTRA)}
    groups = arrangement.catalog.training.param_groups
    grouped = {name for group in groups for name in group.members}
    left = [name for name in names if name in with_states and name not in grouped]
    if left:
        shown = [f"`{name}`{quantity(count)} is in none" for name, count in group_names(left)]
        raise _refused(
            "the source does not tell the param groups of all parameters with states", shown[:5]
        )
    for name in names:
        if name in with_states and (name, STEP) not in stored:
            raise _refused(
                f"the source has no `step` of `{name}`, which the optimizer resumes from", []
            )


def _refused(why: str, notes: Sequence[str]) -> Exception:
    help_text = "write the weights alone, with `--states weights`"
    return target_error("nanotron-states", why, notes=notes, helps=[help_text])


def _optimizer_config(
    arrangement: Arrangement,
    cut: Mapping[str, Sequence[CutTensor]],
    sizes: Mapping[str, int],
    *,
    zero: bool,
) -> dict[str, object]:
    """What `optimizer_config.json` says, of all stages (nanotron tells of the first alone).

    Source: nanotron/serialize/optimizer.py `save_optimizer` (2411b02).
    """
    has_masters = any(w.state == MASTER for w in arrangement.wholes)
    kind = "OptimizerFromGradientAccumulator" if has_masters else "NamedOptimizer"
    configs: dict[str, object] = {}
    if zero:
        kind = "ZeroDistributedOptimizer"
        shapes = {name: items[0].shape for name, items in cut.items()}
        configs = {
            "param_name_to_dp_rank_offsets": {
                name: dict(_offsets(prod(shape), sizes["dp"])) for name, shape in shapes.items()
            },
            "orig_param_shapes": {n: [str(size) for size in s] for n, s in shapes.items()},
        }
    said = {f"{axis}_size": str(sizes[axis]) for axis in ("tp", "dp", "pp")}
    parallelism = {**said, "expert_parallel_size": "1"}
    return {"type": kind, "parallelism": parallelism, "configs": configs}


def _offsets(numel: int, ranks: int) -> Iterator[tuple[str, list[str]]]:
    ends = [0, *accumulate(spread(Each("balanced"), [(numel,)], ranks).lengths)]
    for rank, (start, stop) in enumerate(pairwise(ends)):
        if start < stop:
            yield str(rank), [str(start), str(stop)]


__all__ = ["OPTIONS", "prepare"]
