"""The files of one step's folder, by what their names say; and the names of those to write.

Source: DeepSpeed 0.19.8 runtime/engine.py `_get_ckpt_name`, `_get_zero_ckpt_name`,
`_get_expert_ckpt_name`; runtime/pipe/module.py `ckpt_layer_path`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.records import dataclass, field

Rank = tuple[int, int]
"""(ZeRO data-parallel rank, model-parallel rank), as file names number them."""


class FileName:
    """The name of a kind of file, read and made: `{mp:02d}` is a number with its least digits."""

    def __init__(self, text: str) -> None:
        self.make = text.format
        self._pattern = re.compile(
            re.sub(r"\\\{(\w+)(?::\w+)?\\\}", r"(?P<\1>\\d+)", re.escape(text))
        )

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """The numbers in the name of such a file; None for another one's."""
        found = self._pattern.fullmatch(name)
        return None if found is None else tuple(int(group) for group in found.groups())


MODEL = FileName("mp_rank_{mp:02d}_model_states.pt")
MODEL_ZERO3 = FileName("zero_pp_rank_{dp}_mp_rank_{mp:02d}_model_states.pt")
OPTIMIZERS = {
    prefix: FileName(prefix + "zero_pp_rank_{dp}_mp_rank_{mp:02d}_optim_states.pt")
    for prefix in ("", "bf16_", "fp16_")
}
LAYER = FileName("layer_{layer:02d}-model_states.pt")
LAYER_TP = FileName("layer_{layer:02d}-model_{tp:02d}-model_states.pt")
EXPERT = FileName("layer_{layer}_expert_{expert}_mp_rank_{mp:02d}_model_states.pt")
EXPERT_OLD = FileName("expert_{expert}_mp_rank_{mp:02d}_model_states.pt")
EXPERT_OPTIMIZER = FileName("expp_rank_{ep}_mp_rank_{mp:02d}_optim_states.pt")


@dataclass(slots=True)
class Folder:
    """What lies in a step's folder; every value is a file name.

    Args:  models: by mp rank, `mp_rank_*`.  zero3_models: `zero_pp_rank_*_model_states`.
           optimizers: by rank; prefix: what their names start with (`bf16_`, `fp16_`, or nothing).
           layers: by (layer, tp rank); tp rank is None where the name has none.
           experts: by (MoE layer or None, global expert, mp rank).
           expert_optimizers: by (ep rank, mp rank), of runs without ZeRO.
    """

    root: Path
    models: dict[int, str] = field(default_factory=dict)
    zero3_models: dict[Rank, str] = field(default_factory=dict)
    optimizers: dict[Rank, str] = field(default_factory=dict)
    prefix: str = ""
    layers: dict[tuple[int, int | None], str] = field(default_factory=dict)
    experts: dict[tuple[int | None, int, int], str] = field(default_factory=dict)
    expert_optimizers: dict[Rank, str] = field(default_factory=dict)

    @property
    def is_zero3(self) -> bool:
        """Whether weights are partitioned, as the names of the model files tell."""
        return bool(self.zero3_models)


def is_step_folder(path: Path) -> bool:
    """Whether a folder directly holds files of a DeepSpeed checkpoint."""
    kinds = (MODEL, MODEL_ZERO3, *OPTIMIZERS.values())
    try:
        with os.scandir(path) as entries:
            return any(kind.numbers(entry.name) for entry in entries for kind in kinds)
    except OSError:
        return False


def read_folder(root: Path) -> Folder:
    """Sort the files of a step's folder.

    Raises: ReshardError[mixed-runs] when files of two runs lie side by side.
    """
    names = sorted(os.listdir(root))

    def of(kind: FileName) -> dict[tuple[int, ...], str]:
        found = {numbers: name for name in names if (numbers := kind.numbers(name))}
        return dict(sorted(found.items()))

    optimizers = {prefix: found for prefix, kind in OPTIMIZERS.items() if (found := of(kind))}
    if len(optimizers) > 1:
        (_, one), (_, two) = sorted(optimizers.items())[:2]
        notes = [
            f"{len(one)} optimizer files are named like the first, {len(two)} like the second",
            "DeepSpeed puts `bf16_` before the names of bf16 runs",
        ]
        raise _mixed(root, one, two, *notes)
    models, zero3_models = of(MODEL), of(MODEL_ZERO3)
    if models and zero3_models:
        note = "the first name is of ZeRO stages 0 to 2, the second of stage 3"
        raise _mixed(root, models, zero3_models, note)
    plain, ranked = of(LAYER), of(LAYER_TP)
    if plain and ranked:
        note = "the first is of a run without tensor parallelism, the second with"
        raise _mixed(root, plain, ranked, note)
    prefix, found = next(iter(optimizers.items()), ("", {}))
    return Folder(
        root,
        {mp: name for (mp,), name in models.items()},
        {(dp, mp): name for (dp, mp), name in zero3_models.items()},
        {(dp, mp): name for (dp, mp), name in found.items()},
        prefix,
        {
            **{(layer, None): name for (layer,), name in plain.items()},
            **{(layer, tp): name for (layer, tp), name in ranked.items()},
        },
        {
            **{(None, expert, mp): name for (expert, mp), name in of(EXPERT_OLD).items()},
            **{(layer, expert, mp): name for (layer, expert, mp), name in of(EXPERT).items()},
        },
        {(ep, mp): name for (ep, mp), name in of(EXPERT_OPTIMIZER).items()},
    )


def _mixed(
    root: Path, one: dict[tuple[int, ...], str], two: dict[tuple[int, ...], str], *notes: str
) -> ReshardError:
    first, second = next(iter(one.values())), next(iter(two.values()))
    return mixed_runs(f"{root.name} holds files of two runs: {first}, and {second}", *notes)


def mixed_runs(headline: str, *notes: str) -> ReshardError:
    """The error for files that were not written together."""
    return source_error(
        "mixed-runs",
        headline,
        notes=notes,
        helps=["copy the files of one run into a folder of their own and convert that"],
    )


def not_one_run(one: str, two: str, *notes: str) -> ReshardError:
    """The error for two files of different runs."""
    return mixed_runs(f"{one} and {two} are not of one run", *notes)
