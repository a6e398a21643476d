"""What a checkpoint is, as a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from reshard import formats
from reshard.algebra.term import term_axes
from reshard.api.arguments import checked
from reshard.api.request import PathLike, Request
from reshard.api.source import OpenedSource, open_source
from reshard.dtypes import DType
from reshard.engine.progress import OnProgress
from reshard.errors import Diagnostic, visible
from reshard.plan.arrangement import Arrangement, Bound, Whole
from reshard.plan.catalog import Left
from reshard.plan.left_text import left_lines
from reshard.plan.names import group_names
from reshard.plan.prove import Proof
from reshard.plan.report import proved, show_mesh
from reshard.plan.shown import Plain, Shown
from reshard.plan.text import facts, show_count, show_nbytes, table
from reshard.run.run import Run
from reshard.run.states import EXTRA
from reshard.storage.kept import plain

Role = Literal["parameter", "frozen", "buffer", "extra"]


@dataclass(frozen=True, slots=True)
class TensorFacts(Plain, json_keys={"lies": "mesh"}):
    """One whole tensor.

    Args:  shape: without padding.  axes: what each dimension is made of, as the layout writes it.
           states: element type by kind of state.
           lies: by mesh axis, how the tensor lies along it: `dim 0` (cut), `copy`, `mean` (copies
                 are averaged), `name` (its index tells), or the one index that holds it.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    states: Mapping[str, DType]
    lies: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StateFacts(Plain):
    """All tensors of one kind of state.

    Args:  dtypes: every element type that occurs.  elements, nbytes: each counted once, unpadded.
    """

    state: str
    dtypes: tuple[DType, ...]
    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Plain, Shown, json_keys={"title": None}):
    """What a checkpoint is.

    Args:  path: as it was given.  root: the folder of its files.  title: of the format.
           version: of what wrote it.  files, nbytes: what was found on disk.
           layout: UCL through which it was read.  aliases: other name -> stored name.
           proof: that it stores everything that it claims to.
           side_files: names of the small files that go along as they are.
           nearby: what else lies there, in a few words: `other steps`, `logs`.
           left: files and keys that are neither read nor kept, with the reason of each.
           oddities: what is unusual, with its consequence.
    """

    path: str
    root: str
    format: str
    title: str
    version: str
    mesh: Mapping[str, int]
    files: int
    nbytes: int
    states: tuple[StateFacts, ...]
    tensors: tuple[TensorFacts, ...]
    aliases: Mapping[str, str]
    training: Run
    layout: str
    proof: Proof
    side_files: tuple[str, ...]
    nearby: Mapping[str, tuple[str, ...]]
    left: tuple[Left, ...]
    oddities: tuple[Diagnostic, ...]

    def summary(self) -> str:
        """In a line."""
        what = f"{show_count(len(self.tensors), 'tensor')}, {show_nbytes(self.nbytes)}"
        return f"{self.title} at {self.path}, {what}"

    def to_text(self) -> str:
        """For people, 80 columns wide."""

        return inspection_text(self)


@checked
def inspect(
    path: PathLike,
    *,
    step: str | None = None,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, float | None] | None = None,
    check: bool = False,
    on_progress: OnProgress | None = None,
) -> Inspection:
    """What a checkpoint is: format, mesh, layout, tensors, states, oddities; no tensor is read.

    Args and Raises: as for `open`.  check: read all of it, and hold it to its own digests or
                     checksums.  on_progress: is called now and then while it is checked.
    """
    return inspect_source(open_source(path, Request.of(locals())))


def inspect_source(source: OpenedSource) -> Inspection:
    """The facts of a source that is open."""
    catalog, arrangement = source.catalog, source.arrangement
    return Inspection(
        str(source.path),
        _shown_root(source.path, catalog.root),
        catalog.format,
        formats.SOURCES[catalog.format].title,
        catalog.version and formats.SOURCES[catalog.format].writer + catalog.version,
        dict(arrangement.mesh),
        len(catalog.files),
        sum(file.nbytes for file in catalog.files),
        _states(arrangement),
        _tensors(arrangement),
        dict(catalog.aliases or {}),
        catalog.training,
        source.layout_text,
        source.proof,
        tuple(catalog.side_files),
        dict(catalog.nearby),
        catalog.left,
        catalog.oddities,
    )


def _shown_root(path: Path, root: str) -> str:
    """The folder of the files, in the words of the user where it lies below what was given."""
    given, folder = path.resolve(), Path(root).resolve()
    if folder.is_relative_to(given):
        return str(path / folder.relative_to(given))
    return root


def _states(arrangement: Arrangement) -> tuple[StateFacts, ...]:
    by_state: dict[str, list[Whole]] = {}
    for whole in arrangement.wholes:
        by_state.setdefault(whole.state, []).append(whole)
    return tuple(
        StateFacts(
            state,
            tuple(sorted({whole.dtype for whole in wholes})),
            len(wholes),
            sum(prod(whole.shape) for whole in wholes),
            sum(prod(whole.shape) * whole.dtype.itemsize for whole in wholes),
        )
        for state, wholes in by_state.items()
    )


def _tensors(arrangement: Arrangement) -> tuple[TensorFacts, ...]:
    catalog = arrangement.catalog
    buffers, frozen = set(catalog.buffers), set(catalog.frozen)
    axes = _crossed(arrangement)
    by_name: dict[str, list[Whole]] = {}
    for whole in arrangement.wholes:
        by_name.setdefault(whole.name, []).append(whole)
    out = []
    for name, wholes in by_name.items():
        main = max(wholes, key=lambda whole: len(whole.shape))
        role: Role = "parameter"
        if main.state == EXTRA:
            role = "extra"
        elif name in buffers:
            role = "buffer"
        elif name in frozen:
            role = "frozen"
        bound = arrangement.bound.get(name)
        lies = {} if bound is None else {axis: _lies(arrangement, bound, axis) for axis in axes}
        states = {whole.state: whole.dtype for whole in wholes}
        out.append(TensorFacts(name, role, main.shape, main.axes, states, lies))
    return tuple(out)


def _crossed(arrangement: Arrangement) -> tuple[str, ...]:
    """The mesh axes along which tensors are cut or copied, in the order of the mesh."""
    used = {axis for tensor in arrangement.catalog.tensors for axis, _ in tensor.coord}
    return tuple(axis for axis, size in arrangement.mesh.items() if axis in used and size > 1)


def _lies(arrangement: Arrangement, bound: Bound, axis: str) -> str:
    """How a tensor lies along one mesh axis."""
    dims = [
        dim
        for dim, term in enumerate(bound.dims)
        if any(axis in bound.cuts[name].over for name in term_axes(term) if name in bound.cuts)
    ]
    if dims:
        return "dim " + ", ".join(map(str, dims))
    if any(axis in bound.cuts[name].over for name in bound.indices if name in bound.cuts):
        return "name"
    indices = sorted({index for coord in bound.coords for name, index in coord if name == axis})
    if len(indices) == 1:
        return str(indices[0])
    averaged = any(axis in arrangement.averaged.get(key, ()) for key in bound.atoms.values())
    return "mean" if averaged else "copy"


_SECTIONS = {
    "parameter": "parameters",
    "frozen": "frozen parameters",
    "buffer": "buffers",
    "extra": "tensors that belong to no parameter",
}


_MAX_NAMES = 12


def inspection_text(result: Inspection) -> str:
    """The answer of `reshard inspect`, 80 columns wide."""
    files = f"{show_count(result.files, 'file')}, {show_nbytes(result.nbytes)}"
    lines = [result.title]
    lines += facts(
        [
            ("folder", result.root),
            ("written by", _writer(result)),
            ("files", files),
            ("side files", _listed(result.side_files)),
            ("mesh", show_mesh(result.mesh)),
            *_training_facts(result),
            *((what, _listed(names)) for what, names in result.nearby.items()),
        ]
    )
    lines += ["", *_state_table(result)]
    for role, title in _SECTIONS.items():
        tensors = [item for item in result.tensors if item.role == role]
        if tensors:
            lines += ["", *_tensor_table(title, tensors)]
    if result.aliases:
        lines += ["", "tied", *(f"  {other} = {name}" for other, name in result.aliases.items())]
    lines += ["", f"complete: {proved(result.proof)}"]
    if result.left:
        lines += ["", *left_lines(result.left)]
    if result.oddities:
        lines += ["", "warnings"]
        for item in result.oddities:
            lines += ["", *item.render().split("\n")]
    return "\n".join(lines)


def _writer(result: Inspection) -> str:
    """The program, and what it was set to: the plain values that a framework says of itself."""
    framework = dict(result.training.framework)
    writer = " ".join(str(framework.pop(key)) for key in ("name", "version") if framework.get(key))
    plain = {key: item for key, item in framework.items() if isinstance(item, str | int)}
    settings = [f"{key} {item}" for key, item in plain.items() if item not in ("", None)]
    version = result.version.strip()
    names = [version, writer] if version.lower() != writer.lower() else [writer]
    return ", ".join([*filter(None, names), *settings])


def _training_facts(result: Inspection) -> list[tuple[str, str]]:
    training = result.training
    out = []
    if training.iteration is not None:
        out.append(("iteration", f"{training.iteration:,}"))
    groups = [_group_text(group) for group in training.param_groups]
    out.append(("param groups", "\n".join(groups)))
    keys = [key for key, value in training.state.items() if value is not None]
    out.append(("training state", ", ".join(keys)))
    client = training.framework.get("client_state")
    if isinstance(client, Mapping):
        out.append(("client state", ", ".join(map(str, client))))
    return out


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(map(visible, names[:_MAX_NAMES])) + more


def _group_text(group: Mapping[str, object]) -> str:
    params = group.get("params")
    count = show_count(len(params), "parameter") if isinstance(params, Sequence) else "?"
    settings = [
        f"{key}={plain(group[key])}" for key in ("lr", "weight_decay") if group.get(key) is not None
    ]
    return ", ".join([count, *settings])


def _state_table(result: Inspection) -> list[str]:
    rows = [("state", "dtype", "tensors", "elements", "size")]
    rows += [
        (
            item.state,
            ", ".join(item.dtypes),
            f"{item.tensors:,}",
            f"{item.elements:,}",
            show_nbytes(item.nbytes),
        )
        for item in result.states
    ]
    return table(rows, right="llrrr")


def _tensor_table(title: str, tensors: Sequence[TensorFacts]) -> list[str]:
    """One row for each family of names that are alike in everything else."""
    axes = list(dict.fromkeys(axis for item in tensors for axis in item.lies))
    ((usual, _),) = Counter(tuple(item.states) for item in tensors).most_common(1)
    mixed = any(tuple(item.states) != usual for item in tensors)
    families: dict[tuple[object, ...], list[TensorFacts]] = {}
    for item in tensors:
        lies = tuple(_kind(item.lies.get(axis, "")) for axis in axes)
        pattern = ".".join("#" if part.isdigit() else part for part in item.name.split("."))
        key = (pattern, item.shape, item.axes, lies, tuple(item.states))
        families.setdefault(key, []).append(item)
    rows = [(f"{title} ({len(tensors):,})", "shape", *axes, *(("states",) if mixed else ()))]
    for members in families.values():
        first = members[0]
        rows.append(
            (
                group_names([item.name for item in members])[0][0],
                _shape(first),
                *(_lies_together([item.lies.get(axis, "") for item in members]) for axis in axes),
                *((", ".join(first.states),) if mixed else ()),
            )
        )
    return table(rows)


def _shape(item: TensorFacts) -> str:
    """The shape, with a dimension's parts where it is made of several."""
    return "[" + ", ".join(map(str, item.shape)) + "]"


def _kind(lies: str) -> str:
    return "index" if lies.isdigit() else lies


def _lies_together(values: Sequence[str]) -> str:
    """`0`, `0..1`, or what all have in common."""
    if not all(value.isdigit() for value in values):
        return values[0]
    indices = sorted({int(value) for value in values})
    return str(indices[0]) if len(indices) == 1 else f"{indices[0]}..{indices[-1]}"
