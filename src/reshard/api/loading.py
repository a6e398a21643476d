"""`load`: the tensors of one rank of a run, cut from a checkpoint of any layout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from reshard import formats
from reshard.api.arguments import checked
from reshard.api.request import PathLike, Request
from reshard.api.source import OpenedSource
from reshard.api.states import select_states
from reshard.api.target_source import open_for_target, read_target
from reshard.errors import Diagnostic, Exit, ReshardError, target_error
from reshard.plan.arrangement import Arrangement
from reshard.plan.build import OnDrift, build_arrays
from reshard.plan.lay_out import LaidTensor, lay_out
from reshard.plan.plan import ArraySpec
from reshard.plan.shown import Shown
from reshard.plan.text import show_count
from reshard.run.run import Run
from reshard.run.states import EXTRA

if TYPE_CHECKING:
    from reshard.engine.elements import Elements

Framework = Literal["torch", "numpy"]


@dataclass(frozen=True, slots=True, repr=False)
class Loaded(Shown):
    """What one rank of a run resumes with.

    Args:  tensors: by state kind and by the target's name: torch tensors on the CPU, or numpy
                    arrays; cut and padded as the target's files would be.
           training: iteration, parameter groups, schedulers, ...
           aliases: other names of tensors (tied weights): other name -> name.
           warnings: what is unusual about the checkpoint, with its consequence.
    """

    tensors: Mapping[str, Mapping[str, Any]]
    training: Run
    aliases: Mapping[str, str]
    warnings: tuple[Diagnostic, ...] = ()

    def to_text(self) -> str:
        """For people: how many tensors of each kind of state, and of which iteration."""
        counts = [
            f"{state} of {show_count(len(of), 'tensor')}" for state, of in self.tensors.items()
        ]
        step = self.training.iteration
        return (
            ", ".join([*counts, *([] if step is None else [f"iteration {step}"])]) or "no tensors"
        )


@checked
def load(
    path: PathLike,
    to: str = "universal",
    *,
    rank: Mapping[str, int] | None = None,
    states: str | Iterable[str] = "all",
    framework: Framework = "torch",
    step: str | None = None,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, float | None] | None = None,
    model: str | None = None,
    names: str | None = None,
    places: Iterable[str] = (),
    dtype: str | None = None,
    on_drift: OnDrift = "error",
    threads: int | None = None,
) -> Loaded:
    """The tensors of one rank, in the target's names; no more bytes are read than it needs.

    What a target cuts further over data parallel ranks (the optimizer states of ZeRO) is given as
    the model-parallel rank has it, whole.

    Args:  path: of a checkpoint of any format.
           to: the target, as `convert` takes it, e.g. `megatron:tp=4,pp=2`; `universal` for whole
               tensors.
           rank: position on each axis of the target's mesh that is longer than 1, e.g.
                 `{"tp": 3, "pp": 0}`.
           framework: what the tensors are made as.
    Other arguments, and Raises: as for `convert`; ReshardError[bad-rank].
    """
    if framework == "torch":
        _check_torch()
    request = Request.of(locals())
    target = read_target(to)
    form = formats.TARGETS[target.format]
    source = open_for_target(path, target, request)
    arrangement = select_states(source, request.states).arrangement
    specs = formats.local_specs(arrangement, target, rank or {})
    if specs is None:
        mesh = form.mesh_of(target)
        for axis in form.kept_mesh:
            mesh[axis] = target.integer(axis, arrangement.mesh.get(axis, 1)) or 1
        specs = rank_specs(arrangement, mesh, rank or {}, str(target))
    arrays = _read(source, arrangement, specs, on_drift, threads)
    tensors: dict[str, dict[str, Any]] = {}
    for spec, array in zip(specs, arrays, strict=True):
        tensors.setdefault(spec.state, {})[spec.label] = _made(array, spec, framework)
    catalog = source.catalog
    return Loaded(tensors, catalog.training, dict(catalog.aliases or {}), catalog.oddities)


def _check_torch() -> None:
    """Refuse torch tensors where torch is not installed, before anything is read.

    Raises: ReshardError[bad-argument].
    """
    try:
        spec = find_spec("torch")
    except ValueError:  # it is imported in some other way, or kept from being imported
        spec = None
    if spec is None and sys.modules.get("torch") is None:
        raise ReshardError(
            Diagnostic(
                "bad-argument",
                "argument `framework` is 'torch', but torch is not installed",
                helps=('install torch, or ask for numpy arrays: `framework="numpy"`',),
            ),
            Exit.USAGE,
        )


def rank_specs(
    arrangement: Arrangement, mesh: Mapping[str, int], rank: Mapping[str, int], target: str
) -> tuple[ArraySpec, ...]:
    """Every array of one coordinate of a mesh, in the order of the source.

    Args:  target: for messages.
    Raises: ReshardError[bad-rank], and what `lay_out` raises.
    """
    _check_rank(mesh, rank, target)
    local = {laid.whole: laid for laid in lay_out(arrangement, mesh, rank=rank)}
    return tuple(
        _spec(local[whole.name], whole.state, whole.dtype, is_number=whole.rule < 0)
        for whole in arrangement.wholes
        if whole.state != EXTRA and whole.name in local
    )


def _spec(laid: LaidTensor, state: str, dtype: Any, *, is_number: bool) -> ArraySpec:
    if is_number:
        return ArraySpec(laid.name, state, dtype, 1, laid.numbers, ())
    return ArraySpec(laid.name, state, dtype, prod(laid.shape), laid.segments, laid.shape)


def _check_rank(mesh: Mapping[str, int], rank: Mapping[str, int], target: str) -> None:
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.items()) or "one rank"
    for axis, index in rank.items():
        if axis not in mesh:
            why = f"`{axis}` is not an axis of its mesh"
        elif not 0 <= index < mesh[axis]:
            why = f"{axis}={index} is not below {axis}={mesh[axis]}"
        else:
            continue
        raise _bad_rank(why, target, sizes)
    missing = [axis for axis, size in mesh.items() if size > 1 and axis not in rank]
    missing = [axis for axis in missing if axis != "dp"]
    if missing:
        raise _bad_rank(f"it does not say {', '.join(missing)}", target, sizes)


def _bad_rank(why: str, target: str, sizes: str) -> ReshardError:
    return target_error(
        "bad-rank",
        f"target `{target}` has no such rank: {why}",
        notes=[f"its mesh is {sizes}"],
        helps=['give the position on each axis that is longer than 1: `rank={"tp": 0, "pp": 1}`'],
    )


def _read(
    source: OpenedSource,
    arrangement: Arrangement,
    specs: Sequence[ArraySpec],
    on_drift: OnDrift,
    threads: int | None,
) -> list[Elements]:
    from reshard.engine.compare import read_array
    from reshard.engine.run import default_threads

    arrays = build_arrays(arrangement, specs, on_drift=on_drift)
    with (
        source.files() as files,
        ThreadPoolExecutor(threads or default_threads()) as pool,
    ):
        return list(pool.map(lambda array: read_array(array, files), arrays))


def _made(array: Elements, spec: ArraySpec, framework: Framework) -> Any:
    if framework == "numpy":
        return array
    from reshard.engine.torch_tensors import as_tensor

    return as_tensor(array, spec.dtype)
